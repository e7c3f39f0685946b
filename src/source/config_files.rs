//! The configuration of the stack: env, Compose and other files, and our own. What could go wrong: a password in a
//! backup that anybody may read, so every file is redacted, and whatever was found secret is searched for in all of
//! them again; one that remains fails the component. With recipients configured the files as they are go along, sealed.

mod originals;
mod putting;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Originals, Rehearsal, Rehearsed, Source, SourceError, Uses,
};
use crate::archive::seal::{SealError, unseal};
use crate::archive::tree::show_name;
use crate::cancel::Cancel;
use crate::config::Section;
use crate::docker::Limits;
use crate::hint::{Hint, chain};
use crate::id::Name;
use crate::keyring::Keyring;
use crate::manifest::{CONFIG_DIR, Component};
use crate::redact::{Input, redact};
use crate::staging::Stage;
use crate::target::{Compared, Work};
use crate::vault::Vault;

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Read(rehearse),
};

/// A configuration file larger than this is not one.
const MAX_BYTES: u64 = 16 << 20;
const INVENTORY: &str = "INVENTORY.txt";

struct ConfigFiles {
    files: Vec<PathBuf>,
    own: bool,
    harmless: Vec<String>,
}

fn read(_: &Name, s: &Section<'_>, _: Limits) -> Box<dyn Source> {
    let files = s.texts("files", "Files to keep: env, Compose, and others of the stack");
    for f in files.iter().filter(|f| !f.starts_with('/')) {
        s.problem("files", format!("must be absolute paths, not {f:?}"), None);
    }
    let own = s.flag("own", true, "Also keep the configuration of tars-backup itself");
    if files.is_empty() && !own && s.is_present() {
        s.problem("files", "names no file", None);
    }
    Box::new(ConfigFiles {
        files: files.into_iter().map(PathBuf::from).collect(),
        own,
        harmless: s.texts("harmless_keys", "Keys whose values are never secret although their names look so"),
    })
}

/// A file as it was read.
struct Original {
    path: PathBuf,
    bytes: Vec<u8>,
    meta: std::fs::Metadata,
}

impl ConfigFiles {
    fn paths(&self, context: &Context<'_>) -> Vec<PathBuf> {
        let own: &[PathBuf] = if self.own { context.config_files } else { &[] };
        let mut paths: Vec<PathBuf> = Vec::new();
        for p in self.files.iter().chain(own) {
            if !paths.contains(p) {
                paths.push(p.clone());
            }
        }
        paths
    }
}

impl Source for ConfigFiles {
    fn uses(&self) -> Uses<'_> {
        let files: Vec<&Path> = self.files.iter().map(PathBuf::as_path).collect();
        Uses { reads: files.clone(), replaces: files, ..Uses::default() }
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn is_configuration(&self) -> bool {
        true
    }

    fn references(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
    ) -> Result<Vec<(String, PathBuf)>, SourceError> {
        let members = &work.component.members;
        let inventory = format!("{CONFIG_DIR}{INVENTORY}");
        let paths = self.paths(context);
        if !members.contains(&inventory) {
            // Made by the bash script, which kept base names.
            let names = member_names(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>());
            let of_name = |name: &str| {
                let both = [format!("{CONFIG_DIR}{name}"), format!("{CONFIG_DIR}{name}.redacted")];
                both.into_iter().find(|m| members.contains(m))
            };
            let found = paths.into_iter().zip(names).filter_map(|(path, name)| Some((of_name(&name)?, path)));
            return Ok(found.collect());
        }
        let text = inventory_of(work, &inventory)?;
        Ok(copies_of(paths, &text, members))
    }

    fn originals<'a>(&'a self, context: &Context<'_>, work: &Work<'_>) -> Result<Originals<'a>, SourceError> {
        let found = match open(work, context.keyring, context.vault, context.cancel)? {
            Opened::None => return Ok(Originals::None),
            Opened::Closed(why, hint) => return Ok(Originals::Closed(why, hint)),
            Opened::Open(found) => found,
        };
        let store = putting::Credstore::default();
        let paths = self.paths(context);
        Ok(Originals::Open(Box::new(putting::Putting::new(context, &paths, &found, work.reach, store))))
    }

    fn method(&self) -> String {
        let own = if self.own { " and our own" } else { "" };
        format!("redacted copies of {} files{own}", self.files.len())
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let mut bytes = 0;
        for path in self.paths(context) {
            let meta = std::fs::metadata(&path)
                .map_err(|source| SourceError::Read { what: path.display().to_string(), source })?;
            bytes += meta.len();
        }
        Ok(Some(bytes))
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let mut originals = Vec::new();
        let mut unreadable = Vec::new();
        for path in self.paths(context) {
            match read_file(&path) {
                Ok(original) => originals.push(original),
                Err(e) => unreadable.push(format!("{} ({e})", show_name(path.as_os_str().as_bytes()))),
            }
        }
        if originals.is_empty() {
            let what = if unreadable.is_empty() { "no file".into() } else { unreadable.join(", ") };
            return Err(SourceError::hinted("configuration files", what, "look at files = of the source"));
        }
        let names: Vec<String> = originals.iter().map(|o| o.path.display().to_string()).collect();
        let inputs: Vec<Input<'_>> =
            originals.iter().zip(&names).map(|(o, name)| Input { name, bytes: &o.bytes }).collect();
        let report = redact(&inputs, &self.harmless);

        let members = member_names(&originals.iter().map(|o| o.path.as_path()).collect::<Vec<_>>());
        let mut capture = Capture {
            consistency: "live",
            warnings: report.warnings.clone(),
            incomplete: (!unreadable.is_empty()).then(|| format!("unreadable: {}", unreadable.join(", "))),
            ..Capture::default()
        };
        let mut inventory = String::from("# path\tmode\tuid\tgid\tbytes\tmodified (UTC)\tin this archive\n");
        let mut redacted_count = 0;
        for ((original, redacted), member) in originals.iter().zip(&report.files).zip(members) {
            let suffix = if redacted.changed { ".redacted" } else { "" };
            let member = format!("{CONFIG_DIR}{member}{suffix}");
            no_secret(&report.secrets, &redacted.bytes, &original.path)?;
            redacted_count += u64::from(redacted.changed);
            inventory.push_str(&inventory_line(original, &member));
            capture.bytes_in += original.bytes.len() as u64;
            capture.files += 1;
            capture.staged.push(stage_bytes(stage, &member, &redacted.bytes)?);
        }
        no_secret(&report.secrets, inventory.as_bytes(), Path::new(INVENTORY))?;
        let member = format!("{CONFIG_DIR}{INVENTORY}");
        capture.staged.push(stage_bytes(stage, &member, inventory.as_bytes())?);
        context.vault.learn_found(report.secrets);
        capture.facts = Map::from_iter([
            ("files".into(), json!(capture.files)),
            ("redacted".into(), json!(redacted_count)),
        ]);
        if !context.encryption.recipients.is_empty() {
            let sealed = originals::seal(context, stage, &originals)?;
            capture.facts.insert("originals".into(), json!(sealed.files));
            capture.facts.insert("secrets".into(), json!(sealed.secrets));
            capture.staged.push(sealed.staged);
            capture.warnings.extend(sealed.warnings);
        }
        Ok(capture)
    }
}

fn inventory_of(work: &Work<'_>, member: &str) -> Result<String, SourceError> {
    let mut text = String::new();
    File::open(work.dir.join(member))
        .and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text))
        .map_err(|source| SourceError::Read { what: format!("{member} of the archive"), source })?;
    Ok(text)
}

/// The originals of a component, as far as they can be opened here.
enum Opened {
    None,
    Closed(String, Option<String>),
    Open(Vec<originals::Found>),
}

fn open(work: &Work<'_>, keyring: &Keyring, vault: &Vault, cancel: &Cancel) -> Result<Opened, SourceError> {
    if !work.component.members.iter().any(|m| m == originals::MEMBER) {
        return Ok(Opened::None);
    }
    let closed = |why: String, hint| Ok(Opened::Closed(format!("the originals stay sealed: {why}"), hint));
    let identities = match keyring.identities(vault) {
        Ok(Some(identities)) => identities,
        Ok(None) => {
            return closed(
                "there is no identity on this host".into(),
                Some("name one: --identity FILE".into()),
            );
        }
        Err(e) => return Err(SourceError::Key(e)),
    };
    let read = |source| SourceError::Read { what: format!("{} of the archive", originals::MEMBER), source };
    let sealed = File::open(work.dir.join(originals::MEMBER)).map_err(read)?;
    match unseal(Box::new(sealed), &identities) {
        Ok(mut tar) => Ok(Opened::Open(originals::read(&mut tar, cancel)?)),
        Err(e @ SealError::NoIdentity { .. }) => closed(chain(&e), e.hint()),
        Err(e) => Err(SourceError::Bad { what: originals::MEMBER.into(), why: chain(&e), hint: e.hint() }),
    }
}

/// Our own configuration among the originals of a component.
pub enum OwnConfig {
    /// It has no originals.
    None,
    /// They cannot be opened: why, and what to do.
    Closed(String, Option<String>),
    /// It is not among them; these may be it, under another name.
    Elsewhere(Vec<PathBuf>),
    /// The files, in the order in which they override each other.
    Files(Vec<(PathBuf, String)>),
}

/// Looks for the configuration that lay at `config`, and what was in `conf.d` beside it.
pub fn own_config(
    work: &Work<'_>,
    config: &Path,
    keyring: &Keyring,
    vault: &Vault,
    cancel: &Cancel,
) -> Result<OwnConfig, SourceError> {
    let found = match open(work, keyring, vault, cancel)? {
        Opened::None => return Ok(OwnConfig::None),
        Opened::Closed(why, hint) => return Ok(OwnConfig::Closed(why, hint)),
        Opened::Open(found) => found,
    };
    let beside = config.parent().unwrap_or(Path::new("/")).join("conf.d");
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let mut others = Vec::new();
    for file in &found {
        let path = Path::new("/").join(std::ffi::OsStr::from_bytes(&file.name));
        let is_toml = path.extension().is_some_and(|x| x == "toml");
        let more = path.parent() == Some(&beside) && is_toml;
        if path != config && !more {
            let is_more = path.parent().is_some_and(|dir| dir.ends_with("conf.d"));
            others.extend((is_toml && !is_more).then_some(path));
            continue;
        }
        let text = String::from_utf8(file.bytes.clone()).map_err(|_| {
            SourceError::hinted(
                show_name(&file.name),
                "it is no text, and so no configuration",
                "write the originals elsewhere with --to DIR, and look at them",
            )
        })?;
        files.push((path, text));
    }
    // The file itself first, the others by name.
    files.sort_by_key(|(path, _)| (path != config, path.clone()));
    Ok(match files.first() {
        Some((path, _)) if path == config => OwnConfig::Files(files),
        _ => OwnConfig::Elsewhere(others),
    })
}

fn read_file(path: &Path) -> io::Result<Original> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if meta.len() > MAX_BYTES {
        return Err(io::Error::other("larger than 16 MiB"));
    }
    Ok(Original { path: path.to_owned(), bytes: std::fs::read(path)?, meta })
}

fn stage_bytes(
    stage: &Stage<'_>,
    member: &str,
    bytes: &[u8],
) -> Result<crate::archive::compress::Staged, SourceError> {
    let mut out = stage.plain(member)?;
    out.write_all(bytes).map_err(SourceError::write(member))?;
    out.finish().map_err(SourceError::write(member))
}

/// The last look: redaction has replaced every secret, and still nothing leaves unseen.
fn no_secret(secrets: &crate::redact::Secrets, bytes: &[u8], path: &Path) -> Result<(), SourceError> {
    match secrets.remains_in(bytes) {
        None => Ok(()),
        Some(label) => Err(SourceError::hinted(
            path.display().to_string(),
            format!("the value of {label} would remain readable in it"),
            "write that value only under its own key, or name the key in harmless_keys if it is no secret",
        )),
    }
}

/// The base name; files that share one keep their whole path.
fn member_names(paths: &[&Path]) -> Vec<String> {
    let base = |p: &Path| p.file_name().map_or_else(String::new, |n| safe(&n.to_string_lossy()));
    let own = originals::MEMBER.trim_start_matches(CONFIG_DIR);
    let bases: Vec<String> = paths.iter().map(|p| base(p)).collect();
    let alike = |b: &String| bases.iter().filter(|o| *o == b).count() > 1 || b == INVENTORY || *b == own;
    paths
        .iter()
        .zip(&bases)
        .map(|(p, b)| if alike(b) { safe(p.to_string_lossy().trim_start_matches('/')) } else { b.clone() })
        .collect()
}

/// Control characters would break listings and digests; paths are absolute and so cannot climb once made relative.
fn safe(path: &str) -> String {
    let clean = |part: &str| match part {
        "" | "." | ".." => "_".to_owned(),
        part => part.chars().map(|c| if c.is_control() || c == '\\' { '_' } else { c }).collect(),
    };
    path.split('/').map(clean).collect::<Vec<String>>().join("/")
}

/// The members that are copies of these files. Their names in the archive follow from all that were in it, so only the
/// whole path tells.
fn copies_of(paths: Vec<PathBuf>, inventory: &str, members: &[String]) -> Vec<(String, PathBuf)> {
    let lines = inventory.lines().filter(|line| !line.starts_with('#'));
    let known: BTreeMap<&str, &str> =
        lines.filter_map(|line| Some((line.split_once('\t')?.0, line.rsplit_once('\t')?.1))).collect();
    let member = |path: &Path| {
        let member = known.get(show_name(path.as_os_str().as_bytes()).as_str())?;
        members.iter().find(|m| m == member).cloned()
    };
    paths.into_iter().filter_map(|path| Some((member(&path)?, path))).collect()
}

fn inventory_line(o: &Original, member: &str) -> String {
    let modified = jiff::Timestamp::from_second(o.meta.mtime())
        .map_or_else(|_| "unknown".to_owned(), |t| t.strftime("%FT%TZ").to_string());
    format!(
        "{}\t{:04o}\t{}\t{}\t{}\t{modified}\t{member}\n",
        show_name(o.path.as_os_str().as_bytes()),
        o.meta.mode() & 0o7777,
        o.meta.uid(),
        o.meta.gid(),
        o.bytes.len()
    )
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    io::copy(member.body, &mut io::sink()).map(|_| ()).map_err(CheckError::Read)
}

/// Every file of the list is there, and the originals open: what a restore of them would need.
fn rehearse(context: &Context<'_>, work: &Work<'_>) -> Result<Rehearsed, SourceError> {
    let fact = |key: &str| work.fact(key).unwrap_or(0);
    let mut done = Rehearsed::default();
    let members = &work.component.members;
    let inventory = format!("{CONFIG_DIR}{INVENTORY}");
    if members.contains(&inventory) {
        let text = inventory_of(work, &inventory)?;
        let listed = text.lines().filter(|line| !line.starts_with('#'));
        let there =
            listed.filter_map(|line| line.rsplit_once('\t')).filter(|(_, m)| members.iter().any(|x| x == m));
        done.compared.push(Compared::exactly("files", fact("files"), there.count() as u64));
    } else if work.fact("files").is_some() {
        done.compared.push(Compared::exactly("files", fact("files"), 0));
    }
    match open(work, context.keyring, context.vault, context.cancel)? {
        Opened::None => {
            let promised = ["originals", "secrets"].into_iter().filter(|key| fact(key) > 0);
            done.compared.extend(promised.map(|key| Compared::exactly(key, fact(key), 0)));
        }
        Opened::Closed(why, hint) => done.closed = Some((why, hint)),
        Opened::Open(found) => {
            let secrets = found.iter().filter(|f| f.name.starts_with(b"credentials/")).count() as u64;
            let files = found.len() as u64 - secrets;
            done.compared.push(Compared::exactly("originals", fact("originals"), files));
            done.compared.push(Compared::exactly("secrets", fact("secrets"), secrets));
        }
    }
    Ok(done)
}

fn restore(_: &str, component: &Component) -> String {
    let mut text = format!(
        "Configuration files are in `{CONFIG_DIR}`; `{CONFIG_DIR}{INVENTORY}` tells where each belongs, its owner and its \
         mode. A name that ends in `.redacted` had secrets replaced by `<REDACTED>`: use it to read, never as it is.\n"
    );
    if component.members.iter().any(|m| m == originals::MEMBER) {
        text.push_str(&format!(
            "\n`{0}` has the files as they were, each under its whole path, and below `credentials/` the secrets that \
             the configuration refers to. Its recipients open it with the private key in the file IDENTITY (the first \
             line makes a directory that only you can read):\n\n```\nmkdir -m 0700 originals\n\
             age -d -i IDENTITY {0} | tar -xpf - -C originals\n```\n",
            originals::MEMBER
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_base_name_keep_their_path() {
        let names = member_names(&[Path::new("/a/.env"), Path::new("/b/.env"), Path::new("/b/compose.yml")]);
        assert_eq!(names, ["a/.env", "b/.env", "compose.yml"]);
    }

    #[test]
    fn a_copy_is_known_by_its_path_and_not_by_its_name() {
        let members = ["config/a/.env", "config/b/.env.redacted"].map(str::to_owned);
        let inventory = "# path\tmode\tin this archive\n/a/.env\t0600\tconfig/a/.env\n\
                         /b/.env\t0600\tconfig/b/.env.redacted\n/c/.env\t0600\tconfig/elsewhere\n";
        let of = |paths: &[&str]| {
            let paths = paths.iter().map(PathBuf::from).collect();
            copies_of(paths, inventory, &members).into_iter().map(|(member, _)| member).collect::<Vec<_>>()
        };
        assert_eq!(of(&["/b/.env"]), ["config/b/.env.redacted"]);
        assert_eq!(of(&["/a/.env", "/b/.env"]), members);
        assert!(of(&["/c/.env", "/d/.env", "/.env"]).is_empty());
    }

    #[test]
    fn a_name_never_climbs_or_breaks_a_line() {
        assert_eq!(safe("a/../b\nc"), "a/_/b_c");
    }
}
