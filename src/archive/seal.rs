//! Sealing: a file that only its recipients can read, as the stock `age` program writes and opens it. What could go
//! wrong: a sealed file that is cut and looks whole; so a `Sealer` is finished by value, and whoever reads without an end
//! gets an error. age releases what it has read so far: whatever is unsealed counts only when its end was reached.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::compress::{HashFile, Reserve};
use super::pack::Packed;
use crate::cancel::{Cancel, Interrupted};
use crate::hint::Hint;
use crate::keys::{Identities, Recipients};
use crate::progress::Monitor;

/// How every age file begins.
const MAGIC: &[u8] = b"age-encryption.org/v1\n";
/// Headers are a few hundred bytes per recipient. What is longer is no header.
const MOST_HEADER_BYTES: u64 = 1 << 20;
/// age works on pieces of 64 KiB; larger reads spare system calls.
const BUFFER_BYTES: usize = 512 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("there is nobody to seal for")]
    NoRecipient,
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the sealed file")]
    Sealed(#[source] io::Error),
    #[error("it is no age file")]
    NotAge,
    #[error("the header of the sealed file is damaged")]
    Header,
    #[error("none of the identities opens it: it is sealed for {}", people(*recipients))]
    NoIdentity { recipients: usize },
    #[error("it is sealed with a passphrase, not for a key")]
    Passphrase,
}

fn people(recipients: usize) -> String {
    if recipients == 1 { "1 other recipient".into() } else { format!("{recipients} other recipients") }
}

impl Hint for SealError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRecipient => {
                "make a key (tars-backup key new), and name it in recipients of [encryption]".into()
            }
            Self::NoIdentity { .. } => {
                "name the identity file of one of them: --identity FILE; whose it is: tars-backup key show"
                    .into()
            }
            Self::Passphrase => "open it by hand: age -d FILE".into(),
            Self::NotAge | Self::Header => "use another copy or another backup: tars-backup list".into(),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "its disk is full: make room, or set agent.spool_dir or agent.staging_dir to a larger one"
                    .into()
            }
            _ => return None,
        })
    }
}

/// Seals what is written to it. Dropped without `finish` it leaves a file that age refuses as truncated.
pub struct Sealer<W: Write> {
    out: age::stream::StreamWriter<W>,
}

impl<W: Write> Sealer<W> {
    /// Writes the header.
    pub fn new(recipients: &Recipients, to: W) -> io::Result<Self> {
        let encryptor = age::Encryptor::with_recipients(recipients.keys()).map_err(|e| match e {
            age::EncryptError::MissingRecipients => io::Error::other(SealError::NoRecipient),
            age::EncryptError::Io(e) => e,
            _ => io::Error::other("a recipient cannot be sealed for"),
        })?;
        Ok(Self { out: encryptor.wrap_output(to)? })
    }

    /// Writes the end.
    pub fn finish(self) -> io::Result<W> {
        self.out.finish()
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Seals the file `plain` as the new file `to`, in one pass and little memory. After an error nothing is left at `to`.
/// Whoever moves it out of staging syncs it, as with a plain archive.
pub fn seal(
    plain: &Path,
    to: &Path,
    recipients: &Recipients,
    reserve: Reserve,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Packed, SealError> {
    if recipients.is_empty() {
        return Err(SealError::NoRecipient);
    }
    let read = |source| SealError::Read { path: plain.to_owned(), source };
    let mut from = File::open(plain).map_err(read)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let file = file.map_err(|source| SealError::Write { path: to.to_owned(), source })?;
    let sealed = pour(&mut from, plain, HashFile::new(file, reserve), to, recipients, cancel, monitor);
    if sealed.is_err() {
        // The error that is told already matters more; a half file is of no use to anybody.
        let _ = std::fs::remove_file(to);
    }
    sealed
}

fn pour(
    from: &mut File,
    plain: &Path,
    sink: HashFile,
    to: &Path,
    recipients: &Recipients,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Packed, SealError> {
    let write = |source| SealError::Write { path: to.to_owned(), source };
    let mut sealer = Sealer::new(recipients, sink).map_err(write)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        cancel.check()?;
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(SealError::Read { path: plain.to_owned(), source }),
        };
        sealer.write_all(&buffer[..n]).map_err(write)?;
        monitor.moved(n as u64);
    }
    let (bytes, sha256) = sealer.finish().and_then(HashFile::finish).map_err(write)?;
    Ok(Packed { path: to.to_owned(), bytes, sha256 })
}

/// The plain content. What is damaged or cut shows as an error of a read, at the latest of the one at the end.
pub fn unseal<'a>(
    sealed: Box<dyn Read + Send + 'a>,
    identities: &Identities,
) -> Result<Box<dyn Read + Send + 'a>, SealError> {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, sealed);
    let header = read_header(&mut input)?;
    let stanzas = Stanzas::of(&header);
    let whole = Cursor::new(header).chain(input);
    let decryptor = age::Decryptor::new(whole).map_err(|e| fault(e, &stanzas))?;
    if decryptor.is_scrypt() {
        return Err(SealError::Passphrase);
    }
    let plain = decryptor.decrypt(identities.keys()).map_err(|e| fault(e, &stanzas))?;
    Ok(Box::new(plain))
}

fn fault(e: age::DecryptError, stanzas: &Stanzas) -> SealError {
    match e {
        age::DecryptError::Io(e) if e.kind() != io::ErrorKind::UnexpectedEof => SealError::Sealed(e),
        age::DecryptError::NoMatchingKeys => SealError::NoIdentity { recipients: stanzas.recipients },
        _ => SealError::Header,
    }
}

/// The header up to the line that closes it; what follows stays unread.
fn read_header(input: &mut impl BufRead) -> Result<Vec<u8>, SealError> {
    let mut header = Vec::new();
    let mut limited = input.take(MOST_HEADER_BYTES);
    let first = limited.by_ref().take(MAGIC.len() as u64).read_to_end(&mut header);
    first.map_err(SealError::Sealed)?;
    if header != MAGIC {
        return Err(SealError::NotAge);
    }
    loop {
        let begin = header.len();
        limited.read_until(b'\n', &mut header).map_err(SealError::Sealed)?;
        let line = &header[begin..];
        if !line.ends_with(b"\n") {
            return Err(SealError::Header);
        }
        if line.starts_with(b"---") {
            return Ok(header);
        }
    }
}

/// What a header says of its recipients.
struct Stanzas {
    recipients: usize,
}

impl Stanzas {
    /// Programs may add stanzas that stand for nobody, whose names end in `-grease`.
    fn of(header: &[u8]) -> Self {
        let lines = header.split(|b| *b == b'\n').filter_map(|line| line.strip_prefix(b"-> "));
        let names = lines.map(|line| line.split(|b| *b == b' ').next().unwrap_or_default());
        Self { recipients: names.filter(|name| !name.ends_with(b"-grease")).count() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::keys::generate;
    use crate::keys::tests::{ED25519, ED25519_PUBLIC};
    use crate::progress::tests::Quiet;

    fn identities(file: &str) -> Identities {
        Identities::parse(file).unwrap()
    }

    /// Data that spans several pieces of age and ends within one.
    fn data() -> Vec<u8> {
        (0..300_000u32).flat_map(u32::to_le_bytes).collect()
    }

    fn sealed_for(recipients: &Recipients, data: &[u8]) -> Vec<u8> {
        let mut sealer = Sealer::new(recipients, Vec::new()).unwrap();
        sealer.write_all(data).unwrap();
        sealer.finish().unwrap()
    }

    fn open(sealed: &[u8], identities: &Identities) -> Result<io::Result<Vec<u8>>, SealError> {
        let mut plain = unseal(Box::new(Cursor::new(sealed.to_vec())), identities)?;
        let mut out = Vec::new();
        Ok(plain.read_to_end(&mut out).map(|_| out))
    }

    /// Runs the stock program over `input`; its output, or what it said.
    fn age(args: &[&str], input: &[u8]) -> Result<Vec<u8>, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input).unwrap();
        file.rewind().unwrap();
        let out = Command::new("age").args(args).stdin(Stdio::from(file)).output();
        let out =
            out.unwrap_or_else(|e| panic!("cannot run age: {e}; `make test` installs what the tests need"));
        match out.status.success() {
            true => Ok(out.stdout),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    fn key_file(dir: &Path, name: &str, text: &str) -> String {
        let path = dir.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path.display().to_string()
    }

    #[test]
    fn what_we_seal_the_stock_program_opens_with_each_of_the_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (generate("a"), generate("b"));
        let recipients = Recipients::parse(&[&a.recipient, ED25519_PUBLIC, &b.recipient]).unwrap();
        let sealed = sealed_for(&recipients, &data());
        for (name, text) in [("a", a.file.as_str()), ("b", &b.file), ("ssh", ED25519)] {
            let path = key_file(dir.path(), name, text);
            assert!(age(&["-d", "-i", &path], &sealed).unwrap() == data(), "{name}");
            assert!(open(&sealed, &identities(text)).unwrap().unwrap() == data(), "{name}");
        }
    }

    #[test]
    fn what_the_stock_program_seals_we_open_with_each_of_the_keys() {
        let (a, b) = (generate("a"), generate("b"));
        for data in [Vec::new(), b"short".to_vec(), vec![7; 64 << 10], data()] {
            let args = ["-r", &a.recipient, "-r", ED25519_PUBLIC, "-r", &b.recipient];
            let sealed = age(&args, &data).unwrap();
            for text in [a.file.as_str(), &b.file, ED25519] {
                assert!(open(&sealed, &identities(text)).unwrap().unwrap() == data);
            }
        }
    }

    #[test]
    fn a_file_of_the_program_is_written_new_private_and_with_its_digest() {
        use sha2::{Digest, Sha256};
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = generate("x");
        let recipients = Recipients::parse(&[&key.recipient]).unwrap();
        let (plain, to) = (dir.path().join("plain"), dir.path().join("plain.age"));
        std::fs::write(&plain, data()).unwrap();
        let reserve = Reserve { dir: dir.path().to_owned(), bytes: 0 };
        let again = || seal(&plain, &to, &recipients, reserve.clone(), &Cancel::default(), &Quiet);
        let packed = again().unwrap();
        let bytes = std::fs::read(&to).unwrap();
        assert_eq!((packed.bytes, packed.sha256), (bytes.len() as u64, hex::encode(Sha256::digest(&bytes))));
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(open(&bytes, &identities(&key.file)).unwrap().unwrap() == data());
        // What is there is not written over.
        assert!(matches!(again(), Err(SealError::Write { .. })));
        assert!(std::fs::read(&to).unwrap() == bytes);
    }

    #[test]
    fn a_full_disk_an_interrupt_or_nobody_to_seal_for_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let recipients = Recipients::parse(&[generate("x").recipient]).unwrap();
        let (plain, to) = (dir.path().join("plain"), dir.path().join("plain.age"));
        std::fs::write(&plain, vec![1; 40 << 20]).unwrap();
        let full = Reserve { dir: dir.path().to_owned(), bytes: u64::MAX };
        let none = Reserve { bytes: 0, ..full.clone() };
        let e = seal(&plain, &to, &recipients, full, &Cancel::default(), &Quiet).unwrap_err();
        assert!(matches!(&e, SealError::Write { .. }) && e.hint().is_some(), "{e:?}");
        let cancel = Cancel::default();
        cancel.request(crate::exit::Signal::Terminate);
        let e = seal(&plain, &to, &recipients, none.clone(), &cancel, &Quiet).unwrap_err();
        assert!(matches!(e, SealError::Interrupted(_)), "{e:?}");
        let nobody = Recipients::default();
        let e = seal(&plain, &to, &nobody, none, &Cancel::default(), &Quiet).unwrap_err();
        assert!(matches!(e, SealError::NoRecipient), "{e:?}");
        assert!(!to.exists());
    }

    #[test]
    fn a_sealer_that_is_dropped_leaves_what_age_refuses() {
        let dir = tempfile::tempdir().unwrap();
        let key = generate("x");
        let recipients = Recipients::parse(&[&key.recipient]).unwrap();
        let mut out = Vec::new();
        let mut sealer = Sealer::new(&recipients, &mut out).unwrap();
        sealer.write_all(&data()).unwrap();
        drop(sealer);
        let path = key_file(dir.path(), "key", &key.file);
        assert!(age(&["-d", "-i", &path], &out).is_err());
        assert!(open(&out, &identities(&key.file)).unwrap().is_err());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_an_error() {
        let key = generate("x");
        let (recipients, own) = (Recipients::parse(&[&key.recipient]).unwrap(), identities(&key.file));
        let sealed = sealed_for(&recipients, &data());
        let is_whole = |bytes: &[u8]| matches!(open(bytes, &own), Ok(Ok(_)));
        assert!(is_whole(&sealed));
        let places = (0..400).chain((400..sealed.len()).step_by(9_973)).chain([sealed.len() - 1]);
        for at in places {
            assert!(!is_whole(&sealed[..at]), "cut at {at}");
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(!is_whole(&flipped), "flipped at {at}");
        }
        let longer = [sealed.as_slice(), b"x"].concat();
        assert!(!is_whole(&longer));
    }

    #[test]
    fn the_errors_tell_what_is_wrong() {
        let (own, other) = (generate("x"), generate("y"));
        let stranger = identities(&own.file);
        let e = open(b"\x1f\x8b\x08 a gzip", &stranger).unwrap_err();
        assert!(matches!(e, SealError::NotAge), "{e:?}");
        let e = open(b"", &stranger).unwrap_err();
        assert!(matches!(e, SealError::NotAge), "{e:?}");
        let recipients = Recipients::parse(&[&other.recipient, ED25519_PUBLIC]).unwrap();
        let sealed = sealed_for(&recipients, b"x");
        let e = open(&sealed, &stranger).unwrap_err();
        assert!(matches!(e, SealError::NoIdentity { recipients: 2 }), "{e:?}");
        assert!(e.to_string().contains("2 other recipients") && e.hint().unwrap().contains("--identity"));
        let e = open(&sealed[..60], &stranger).unwrap_err();
        assert!(matches!(e, SealError::Header), "{e:?}");
        let endless = [MAGIC, &vec![b'x'; 3 << 20]].concat();
        assert!(matches!(open(&endless, &stranger).unwrap_err(), SealError::Header));
    }
}
