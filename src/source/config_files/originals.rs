//! The configuration as it is, with every secret, as a tar that only the recipients can read. What could go wrong: a
//! backup that holds the key to itself, which is of no use to its owner and of much to a thief; so the identity is left
//! out wherever it stands. And a tar that somebody else sealed, for age does not say who did: every entry is judged before
//! anything of it is used. The plain tar never lies on a disk.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component as Part, Path};

use super::{MAX_BYTES, Original, SourceError, read_file};
use crate::archive::compress::Staged;
use crate::archive::seal::Sealer;
use crate::archive::tarfile::{Kind, Meta, TarWriter};
use crate::archive::tree::show_name;
use crate::cancel::{Cancel, Interrupted};
use crate::format::tarwalk::{self, TarError};
use crate::hint::chain;
use crate::keys::{Identities, SECRET_PREFIX, secret_lines};
use crate::redact::base64;
use crate::secret::SecretRef;
use crate::source::Context;
use crate::staging::Stage;

pub const MEMBER: &str = "config/originals.tar.age";
/// What stands where a key was that opens backups.
pub const LEFT_OUT: &str = "<AGE IDENTITY LEFT OUT>";
/// All files together; more is no configuration.
const MOST_BYTES: u64 = 256 << 20;
const MOST_ENTRIES: usize = 10_000;
/// Of the characters behind the prefix of a key; fewer are a mention of it.
const SHORTEST_KEY: usize = 20;
/// How the body of every unprotected ssh key begins.
const SSH_PREAMBLE: &str = "b3BlbnNzaC1rZXktdjE";

/// The member that was made, and what is not in it.
pub struct Sealed {
    pub staged: Staged,
    pub files: u64,
    pub secrets: u64,
    pub warnings: Vec<String>,
}

/// Where a file lies in the tar. None for a path that leads upwards.
pub fn name_of(path: &Path) -> Option<Vec<u8>> {
    let mut name: Vec<u8> = Vec::new();
    for part in path.components() {
        match part {
            Part::RootDir | Part::CurDir => {}
            Part::Normal(part) => {
                if !name.is_empty() {
                    name.push(b'/');
                }
                name.extend_from_slice(part.as_bytes());
            }
            Part::ParentDir | Part::Prefix(_) => return None,
        }
    }
    (!name.is_empty()).then_some(name)
}

/// Where the value of a secret lies in the tar. A credential has no colon in its name, so these never meet.
pub fn name_of_secret(reference: &SecretRef) -> Option<Vec<u8>> {
    match reference {
        SecretRef::Credential(name) if name.contains([':', '/']) || name == "." || name == ".." => None,
        SecretRef::Credential(name) => Some(format!("credentials/{name}").into_bytes()),
        SecretRef::File(path) => Some([b"credentials/file:/".as_slice(), &name_of(path)?].concat()),
        SecretRef::Env(name) if name.contains('/') => None,
        SecretRef::Env(name) => Some(format!("credentials/env:{name}").into_bytes()),
    }
}

pub fn seal(context: &Context<'_>, stage: &Stage<'_>, originals: &[Original]) -> Result<Sealed, SourceError> {
    let failed = SourceError::write(MEMBER);
    let keys = Keys::of(context);
    let mut warnings = Vec::new();
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for original in originals {
        entries.extend(file_entry(original, &keys, &mut warnings));
    }
    let files = entries.len() as u64;
    for reference in context.secret_refs {
        entries.extend(secret_entry(context, reference, &keys, &mut warnings));
    }
    let secrets = entries.len() as u64 - files;
    let write = || -> io::Result<Staged> {
        let out = stage.plain(MEMBER).map_err(io::Error::other)?;
        let mut tar = TarWriter::new(Sealer::new(&context.encryption.recipients, out)?);
        for entry in &entries {
            let mut body = tar.file(&entry.meta(), entry.bytes.len() as u64)?;
            body.write(&entry.bytes)?;
            body.finish()?;
        }
        tar.finish()?.finish()?.finish()
    };
    Ok(Sealed { staged: write().map_err(failed)?, files, secrets, warnings })
}

/// A file on its way into the tar.
struct Entry<'a> {
    name: Vec<u8>,
    bytes: Cow<'a, [u8]>,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    mtime_ns: u32,
}

impl Entry<'_> {
    fn meta(&self) -> Meta<'_> {
        Meta {
            path: &self.name,
            kind: Kind::File,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            mtime_ns: self.mtime_ns,
            link: None,
            xattrs: &[],
        }
    }
}

fn file_entry<'a>(original: &'a Original, keys: &Keys, warnings: &mut Vec<String>) -> Option<Entry<'a>> {
    let shown = show_name(original.path.as_os_str().as_bytes());
    let Some(name) = name_of(&original.path) else {
        warnings.push(format!("{shown} is not among the originals: write its path without .. in it"));
        return None;
    };
    if keys.is_file_of(&original.meta) {
        warnings.push(format!("{shown} is the identity that opens backups, and is not among the originals"));
        return None;
    }
    let bytes = match keys.clean(&original.bytes) {
        Clean::Whole => Cow::Borrowed(original.bytes.as_slice()),
        Clean::Without(bytes) => {
            warnings.push(format!(
                "{shown} holds a key that opens backups; among the originals it is without it, and cannot be put back: \
                 keep the key elsewhere"
            ));
            Cow::Owned(bytes)
        }
        Clean::Unclear => {
            warnings.push(format!("{shown} holds a key that opens backups, and is not among the originals"));
            return None;
        }
    };
    let meta = &original.meta;
    Some(Entry {
        name,
        bytes,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: meta.mtime(),
        mtime_ns: u32::try_from(meta.mtime_nsec()).unwrap_or(0),
    })
}

/// The value of one reference. One that cannot be read here is told, and fails nothing: the source that needs it does.
fn secret_entry(
    context: &Context<'_>,
    reference: &SecretRef,
    keys: &Keys,
    warnings: &mut Vec<String>,
) -> Option<Entry<'static>> {
    let mut without = |why: String| {
        warnings.push(format!("{reference} is not among the originals: {why}"));
        None
    };
    let Some(name) = name_of_secret(reference) else { return without("its name is no file name".into()) };
    let holds_key = || "it holds a key that opens backups".to_owned();
    let (bytes, meta) = match reference {
        SecretRef::File(path) => match read_file(path) {
            Ok(file) if keys.is_file_of(&file.meta) => return without(holds_key()),
            Ok(file) => (file.bytes, Some(file.meta)),
            Err(e) => return without(e.to_string()),
        },
        _ => match context.vault.read(reference) {
            Ok(value) => (value.into_bytes(), None),
            Err(e) => return without(chain(&e)),
        },
    };
    if !matches!(keys.clean(&bytes), Clean::Whole) {
        return without(holds_key());
    }
    Some(Entry {
        name,
        bytes: Cow::Owned(bytes),
        mode: 0o600,
        uid: meta.as_ref().map_or(0, MetadataExt::uid),
        gid: meta.as_ref().map_or(0, MetadataExt::gid),
        mtime: meta.as_ref().map_or(0, MetadataExt::mtime),
        mtime_ns: 0,
    })
}

/// What is known of the keys that open backups, to find them in files.
#[derive(Default)]
struct Keys {
    /// Device and inode of the file that the identity lies in.
    file: Option<(u64, u64)>,
    /// Lines of the identity.
    lines: Vec<Vec<u8>>,
    /// Public keys: the private one of none of them may be in a backup.
    recipients: BTreeSet<String>,
}

enum Clean {
    Whole,
    Without(Vec<u8>),
    /// It has a key in a form that cannot be taken out.
    Unclear,
}

impl Keys {
    fn of(context: &Context<'_>) -> Self {
        let encryption = context.encryption;
        let mut keys = Self {
            recipients: encryption.recipients.texts().map(str::to_owned).collect(),
            ..Self::default()
        };
        let Some(reference) = &encryption.identity else { return keys };
        if let SecretRef::File(path) = reference {
            keys.file = std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        }
        // On a host that has only public keys there is nothing to be found.
        if let Ok(text) = context.vault.read(reference) {
            keys.learn(&text);
        }
        keys
    }

    fn learn(&mut self, identity: &str) {
        let lines =
            secret_lines(identity).filter(|l| l.len() >= SHORTEST_KEY && !l.starts_with(SSH_PREAMBLE));
        self.lines.extend(lines.map(|l| l.as_bytes().to_vec()));
        if let Ok(found) = Identities::parse(identity) {
            self.recipients.extend(found.recipients().map(str::to_owned));
        }
    }

    fn is_file_of(&self, meta: &std::fs::Metadata) -> bool {
        self.file == Some((meta.dev(), meta.ino()))
    }

    fn clean(&self, bytes: &[u8]) -> Clean {
        let cleaned = self.without(bytes);
        // Text of two bytes a character: nothing is taken out of it, it is left out.
        let narrow: Vec<u8> = bytes.iter().copied().filter(|b| *b != 0).collect();
        if narrow.len() < bytes.len() && self.without(&narrow) != narrow {
            return Clean::Unclear;
        }
        if cleaned == bytes { Clean::Whole } else { Clean::Without(cleaned) }
    }

    /// Whether a private key of ssh is that of a recipient.
    fn opens(&self, pem: &str) -> bool {
        if let Ok(found) = Identities::parse(pem) {
            return found.recipients().any(|r| self.recipients.contains(r));
        }
        // One with a passphrase has its public key in the clear.
        let body: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        let Some(body) = base64(body.as_bytes()) else { return false };
        let public = self.recipients.iter().filter_map(|r| base64(r.split_once(' ')?.1.as_bytes()));
        public.into_iter().any(|public| memchr::memmem::find(&body, &public).is_some())
    }

    fn without(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = without_native(bytes);
        for block in ssh_blocks(&out).into_iter().rev() {
            if std::str::from_utf8(&out[block.clone()]).is_ok_and(|text| self.opens(&plain_lines(text))) {
                out.splice(block, LEFT_OUT.bytes());
            }
        }
        for line in &self.lines {
            while let Some(at) = memchr::memmem::find(&out, line) {
                out.splice(at..at + line.len(), LEFT_OUT.bytes());
            }
        }
        out
    }
}

/// Without any private key of age, whosever it is.
fn without_native(bytes: &[u8]) -> Vec<u8> {
    let upper = bytes.to_ascii_uppercase();
    let mut out = Vec::with_capacity(bytes.len());
    let mut done = 0;
    for at in memchr::memmem::find_iter(&upper, SECRET_PREFIX.as_bytes()) {
        let is_of_key = |b: &&u8| b.is_ascii_alphanumeric() || **b == b'-';
        let end = at + upper[at..].iter().take_while(is_of_key).count();
        if at < done || end - at - SECRET_PREFIX.len() < SHORTEST_KEY {
            continue;
        }
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(LEFT_OUT.as_bytes());
        done = end;
    }
    out.extend_from_slice(&bytes[done..]);
    out
}

/// Where private keys of ssh stand, in order. Other things in the same armour, such as certificates, are passed over.
fn ssh_blocks(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    const DASHES: &[u8] = b"-----";
    let marks = |mark: &'static [u8], begins| {
        memchr::memmem::find_iter(bytes, mark).map(move |at| (at, at + mark.len(), begins))
    };
    let mut all: Vec<_> = marks(b"-----BEGIN ", true).chain(marks(b"-----END ", false)).collect();
    all.sort_unstable();
    let mut blocks = Vec::new();
    let mut begun = None;
    for (at, label, begins) in all {
        let end = memchr::memmem::find(&bytes[label..], DASHES).map(|length| label + length);
        let end = end.filter(|end| {
            let label = &bytes[label..*end];
            label.ends_with(b"PRIVATE KEY") && !label.contains(&b'\n')
        });
        begun = match (begins, end, begun) {
            (true, Some(_), _) => Some(at),
            (false, Some(end), Some(begin)) => {
                blocks.push(begin..end + DASHES.len());
                None
            }
            _ => None,
        };
    }
    blocks
}

/// A key that is indented, or written in one line with `\n` in it, in lines of its own.
fn plain_lines(block: &str) -> String {
    let text = block.replace("\\r", "").replace("\\n", "\n");
    text.lines()
        .map(|l| {
            l.trim_matches(|c: char| c.is_whitespace() || c == '"' || c == '+' || c == '\\').to_owned() + "\n"
        })
        .collect()
}

/// A file of the tar that was read back.
#[derive(Debug, Clone)]
pub struct Found {
    pub name: Vec<u8>,
    pub bytes: Vec<u8>,
    /// Permissions, without setuid and its like.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: tarwalk::Mtime,
}

impl Found {
    /// Whether a key was taken out of it, so that it is not what it was.
    pub fn lacks_key(&self) -> bool {
        memchr::memmem::find(&self.bytes, LEFT_OUT.as_bytes()).is_some()
    }
}

enum Stop {
    Tar(TarError),
    Hostile(String),
    Interrupted(Interrupted),
}

impl From<TarError> for Stop {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

/// All files of the tar, or nothing: one entry that we would not have written is reason enough to believe none.
pub fn read(tar: &mut dyn Read, cancel: &Cancel) -> Result<Vec<Found>, SourceError> {
    let mut found: Vec<Found> = Vec::new();
    let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut total = 0u64;
    let walked = tarwalk::walk(tar, |entry, body| -> Result<(), Stop> {
        cancel.check().map_err(Stop::Interrupted)?;
        let hostile = |why: &str| Stop::Hostile(format!("it holds {}, {why}", show_name(&entry.path)));
        let is_dir = entry.kind == tarwalk::Kind::Directory;
        let path = if is_dir { entry.path.strip_suffix(b"/").unwrap_or(&entry.path) } else { &entry.path };
        if path.split(|b| *b == b'/').any(|part| matches!(part, b"" | b"." | b"..")) {
            return Err(hostile("which leads out of it"));
        }
        if !names.insert(path.to_vec()) {
            return Err(hostile("which is in it twice"));
        }
        if names.len() > MOST_ENTRIES {
            return Err(hostile("and too many more"));
        }
        if is_dir {
            return Ok(());
        }
        if entry.kind != tarwalk::Kind::Regular || entry.extents.is_some() {
            return Err(hostile("which is no plain file"));
        }
        total = total.saturating_add(entry.size);
        if entry.size > MAX_BYTES || total > MOST_BYTES {
            return Err(hostile("which is larger than a configuration is"));
        }
        let owner = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (owner(entry.uid), owner(entry.gid)) else {
            return Err(hostile("whose owner is no number of a user"));
        };
        let mut bytes = Vec::new();
        body.read_to_end(&mut bytes).map_err(|source| Stop::Tar(TarError::Read { offset: 0, source }))?;
        let (mode, mtime) = (entry.mode & 0o777, entry.mtime);
        found.push(Found { name: path.to_vec(), bytes, mode, uid, gid, mtime });
        Ok(())
    });
    let another = "use another copy or another backup: tars-backup list";
    match walked {
        Ok(_) => Ok(found),
        Err(Stop::Interrupted(i)) => Err(i.into()),
        Err(Stop::Hostile(why)) => Err(SourceError::hinted(MEMBER, why, another)),
        Err(Stop::Tar(e)) => Err(SourceError::hinted(MEMBER, chain(&e), another)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::generate;
    use crate::keys::tests::{ED25519, ED25519_LOCKED, ED25519_LOCKED_PUBLIC, ED25519_PUBLIC};

    fn cleaned(keys: &Keys, text: &str) -> Option<String> {
        match keys.clean(text.as_bytes()) {
            Clean::Whole => Some(text.to_owned()),
            Clean::Without(bytes) => Some(String::from_utf8(bytes).unwrap()),
            Clean::Unclear => None,
        }
    }

    #[test]
    fn no_key_of_age_stays_whoever_it_belongs_to() {
        let secret = generate("x").file.lines().last().unwrap().to_owned();
        let keys = Keys::default();
        for form in [secret.clone(), secret.to_lowercase()] {
            let text = cleaned(&keys, &format!("A={form}\nB=\"{form}\" # {form}\n")).unwrap();
            assert_eq!(text, format!("A={LEFT_OUT}\nB=\"{LEFT_OUT}\" # {LEFT_OUT}\n"));
        }
        let mention = "# such as AGE-SECRET-KEY-1… in a file\n";
        assert_eq!(cleaned(&keys, mention).as_deref(), Some(mention));
        let wide: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(matches!(keys.clean(&wide), Clean::Unclear));
    }

    #[test]
    fn the_ssh_key_that_opens_backups_does_not_stay_and_another_one_does() {
        let other = Keys::default();
        let ours = Keys { recipients: [ED25519_PUBLIC.to_owned()].into(), ..Keys::default() };
        let mut by_line = Keys::default();
        by_line.learn(ED25519);
        let indented = ED25519.lines().map(|l| format!("    {l}\n")).collect::<String>();
        let escaped = format!("key: \"{}\"\n", ED25519.replace('\n', "\\n"));
        for text in [ED25519.to_owned(), indented, escaped] {
            assert_eq!(cleaned(&other, &text).as_deref(), Some(text.as_str()));
            for keys in [&ours, &by_line] {
                let without = cleaned(keys, &format!("a\n{text}b\n")).unwrap();
                assert!(without.contains(LEFT_OUT) && without.starts_with('a') && without.ends_with("b\n"));
                for line in secret_lines(ED25519).filter(|l| !l.starts_with(SSH_PREAMBLE)) {
                    assert!(!without.contains(line), "{without}");
                }
            }
        }
    }

    /// Other armour before a key, between two, or a key that was cut does not hide the next one.
    #[test]
    fn a_key_is_found_behind_whatever_else_stands_in_dashes() {
        let keys = Keys { recipients: [ED25519_PUBLIC.to_owned()].into(), ..Keys::default() };
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let public = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n";
        let cut = &ED25519_LOCKED[..100];
        for before in
            [certificate, public, "-----BEGIN nothing", "-----\n", cut, "-----BEGIN RSA PRIVATE KEY-----\n"]
        {
            let text = format!("{before}\n{ED25519}{certificate}{ED25519}");
            let without = cleaned(&keys, &text).unwrap();
            assert_eq!(without, format!("{before}\n{LEFT_OUT}\n{certificate}{LEFT_OUT}\n"));
        }
    }

    #[test]
    fn a_key_with_a_passphrase_does_not_stay_either() {
        let text = format!("a\n{ED25519_LOCKED}b\n");
        let of = |public: &str| Keys { recipients: [public.to_owned()].into(), ..Keys::default() };
        assert_eq!(cleaned(&of(ED25519_PUBLIC), &text).as_deref(), Some(text.as_str()));
        assert_eq!(cleaned(&of(ED25519_LOCKED_PUBLIC), &text).unwrap(), format!("a\n{LEFT_OUT}\nb\n"));
    }

    #[test]
    fn names_are_those_of_files_without_the_first_slash() {
        assert_eq!(name_of(Path::new("/etc/./a//b.env")).as_deref(), Some(b"etc/a/b.env".as_slice()));
        assert_eq!(name_of(Path::new("/etc/../shadow")), None);
        assert_eq!(name_of(Path::new("/")), None);
        let of = |r: SecretRef| name_of_secret(&r).map(|n| String::from_utf8(n).unwrap());
        assert_eq!(of(SecretRef::Credential("b2".into())).as_deref(), Some("credentials/b2"));
        assert_eq!(of(SecretRef::File("/etc/pw".into())).as_deref(), Some("credentials/file:/etc/pw"));
        assert_eq!(of(SecretRef::Env("PW".into())).as_deref(), Some("credentials/env:PW"));
        assert_eq!(of(SecretRef::Credential("..".into())), None);
        assert_eq!(of(SecretRef::Credential("file:".into())), None);
    }

    fn tar(entries: &[(&str, Kind, &[u8])]) -> Vec<u8> {
        let mut tar = TarWriter::new(Vec::new());
        for (path, kind, bytes) in entries {
            let link = matches!(kind, Kind::Symlink | Kind::Hardlink).then_some(b"etc/a".as_slice());
            let meta = Meta {
                path: path.as_bytes(),
                kind: *kind,
                mode: 0o4755,
                uid: 1000,
                gid: 1001,
                mtime: 5,
                mtime_ns: 6,
                link,
                xattrs: &[],
            };
            if *kind == Kind::File {
                let mut body = tar.file(&meta, bytes.len() as u64).unwrap();
                body.write(bytes).unwrap();
                body.finish().unwrap();
            } else {
                tar.entry(&meta).unwrap();
            }
        }
        tar.finish().unwrap()
    }

    #[test]
    fn a_tar_of_ours_is_read_whole_and_setuid_is_not_believed() {
        let good = tar(&[("etc", Kind::Directory, b""), ("etc/a", Kind::File, b"A"), ("b", Kind::File, b"")]);
        let found = read(&mut good.as_slice(), &Cancel::default()).unwrap();
        let names: Vec<&[u8]> = found.iter().map(|f| f.name.as_slice()).collect();
        assert_eq!(names, [b"etc/a".as_slice(), b"b"]);
        assert_eq!((found[0].mode, found[0].uid, found[0].gid, found[0].mtime.nanos), (0o755, 1000, 1001, 6));
        assert!(read(&mut &good[..good.len() - 700], &Cancel::default()).is_err());
    }

    #[test]
    fn what_we_would_not_have_written_is_refused_as_a_whole() {
        let file = ("etc/a", Kind::File, b"A".as_slice());
        let cases: [(&str, Kind); 8] = [
            ("/etc/shadow", Kind::File),
            ("etc/../../shadow", Kind::File),
            ("./etc/b", Kind::File),
            ("etc/a", Kind::File),
            ("etc/b", Kind::Symlink),
            ("etc/b", Kind::Hardlink),
            ("etc/b", Kind::Fifo),
            ("..", Kind::Directory),
        ];
        for (path, kind) in cases {
            let bad = tar(&[file, (path, kind, b"x")]);
            let e = read(&mut bad.as_slice(), &Cancel::default()).unwrap_err();
            assert!(e.to_string().contains(MEMBER), "{path}: {e}");
        }
        let large = vec![0; usize::try_from(MAX_BYTES).unwrap() + 1];
        assert!(read(&mut tar(&[("a", Kind::File, &large)]).as_slice(), &Cancel::default()).is_err());
    }
}
