//! Entries of a tar onto a disk, as they were: the only code that writes what an archive names. Nothing in an archive is
//! believed: `survey` reads it all and writes nothing, and `unpack` asks every question again while it writes.
//! What could go wrong: a name that leads out of the directory. So names are taken apart (`rules`), every step goes
//! through handles of directories that we made (`place`), nothing is followed and nothing that exists is written to.

mod attributes;
mod place;
mod rules;

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use self::attributes::{Attributes, Target};
use self::place::Place;
use self::rules::{Ledger, Step, What};
use super::tree::{Tally, show_name};
use crate::cancel::{Cancel, Interrupted};
use crate::format::tarwalk::{self, Body, Entry, Extent, TarError};
use crate::progress::Monitor;

/// What an archive may hold at most, from what is known of it; None where nothing is known. Ceilings of our own hold
/// besides, so that no archive can take all memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Headers in the tar, as `TreeReport::entries` counts them.
    pub entries: Option<u64>,
    /// Bytes of all regular files, holes included, as `TreeReport::bytes` counts them.
    pub bytes: Option<u64>,
}

/// What a tar holds, and what it needs of a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Survey {
    /// Headers in the tar.
    pub entries: u64,
    /// Regular files; further names of one (hard links) do not count.
    pub files: u64,
    /// What it takes in a file system: everything but further names, and parents that are not listed.
    pub inodes: u64,
    /// Bytes of all regular files, holes included.
    pub bytes: u64,
    /// Bytes of all regular files without their holes: what must be written.
    pub data_bytes: u64,
    /// Parts of the longest path; 0 when there is only a root.
    pub depth: u64,
}

/// What was written, and what could not be put back in full.
#[derive(Debug, Clone, Default)]
pub struct Unpacked {
    pub survey: Survey,
    /// Entries that belong to us now, because nobody else may be given files here.
    pub owners: Tally,
    pub modes: Tally,
    pub times: Tally,
    /// Extended attributes and access lists.
    pub xattrs: Tally,
}

impl Unpacked {
    /// One sentence for each sort of thing that is not as it was; empty when all is.
    pub fn warnings(&self) -> Vec<String> {
        [
            self.owners.sentence("owner not restored"),
            self.modes.sentence("mode not restored in full"),
            self.xattrs.sentence("extended attribute or access list not restored"),
            self.times.sentence("time not restored"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Why a tar is not unpacked. Texts are fit for a terminal: what an archive names is shown with control characters
/// escaped, and cut when it is very long.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("the tar holds {path}, {why}")]
    Hostile { path: String, why: &'static str },
    #[error("the tar cannot be read")]
    Tar(#[source] TarError),
    #[error("the tar holds more than the {limit} entries that it may have")]
    TooManyEntries { limit: u64 },
    #[error("the tar holds more than the {limit} bytes that it may have")]
    TooManyBytes { limit: u64 },
    #[error("the directories in the tar have more names and attributes than can be held")]
    TooMuchToHold,
    #[error("{path} is no place to unpack to: {why}")]
    NotFresh { path: String, why: &'static str },
    #[error("cannot write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

impl From<TarError> for UnpackError {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

impl crate::hint::Hint for UnpackError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Hostile { .. } | Self::Tar(_) | Self::TooManyBytes { .. } => {
                "use another copy or another backup: tars-backup list".into()
            }
            Self::TooManyEntries { .. } | Self::TooMuchToHold => {
                "use another copy or another backup; if you trust it, unpack it by hand with tar".into()
            }
            Self::NotFresh { .. } => "name a directory that is new, empty and yours".into(),
            Self::Write { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "make room there, or choose another place: df -h; df -i".into()
                }
                _ => return None,
            },
            Self::Interrupted(_) => return None,
        })
    }
}

impl UnpackError {
    fn write(path: &[u8], e: impl Into<io::Error>) -> Self {
        Self::Write { path: shown(path), source: e.into() }
    }
}

/// Longest piece of a name that a text shows, bytes.
const SHOWN_BYTES: usize = 300;

/// The beginning of a name, for `show_name` and for tallies.
fn cut(path: &[u8]) -> Vec<u8> {
    match path.get(..SHOWN_BYTES) {
        _ if path.is_empty() => b".".to_vec(),
        Some(begin) if path.len() > SHOWN_BYTES => [begin, b"..."].concat(),
        _ => path.to_vec(),
    }
}

fn shown(path: &[u8]) -> String {
    show_name(&cut(path))
}

/// The tar on its way in. Skipping a large file is one call of the walker, so cancelling must be seen here.
struct Stream<'a, R> {
    input: R,
    cancel: &'a Cancel,
    /// Bytes read so far.
    at: &'a Cell<u64>,
}

impl<R: Read> Read for Stream<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let n = self.input.read(into)?;
        self.at.set(self.at.get() + n as u64);
        Ok(n)
    }
}

fn walk(
    tar: impl Read,
    cancel: &Cancel,
    at: &Cell<u64>,
    on_entry: impl FnMut(&Entry, &mut Body<'_>) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    tarwalk::walk(Stream { input: tar, cancel, at }, on_entry).map(drop).map_err(|e| match e {
        // An interrupt arrives as a read error.
        UnpackError::Tar(e) => cancel.check().map_or_else(UnpackError::from, |()| UnpackError::Tar(e)),
        e => e,
    })
}

/// Reads a whole tar and writes nothing. Ok means that `unpack` will refuse none of its names, links, kinds and sizes.
/// Fails with `Hostile`, `Tar`, a limit, or `Interrupted`.
pub fn survey(tar: impl Read, limits: &Limits, cancel: &Cancel) -> Result<Survey, UnpackError> {
    let mut ledger = Ledger::new(*limits);
    walk(tar, cancel, &Cell::new(0), |entry, _| ledger.admit(entry).map(drop))?;
    Ok(ledger.survey())
}

/// Writes all entries of a tar below `into`, a new and empty directory that only we can enter; the metadata of the tar's
/// root entry goes to `into` itself, last of all. When this returns Ok, everything is on the disk. After an error `into`
/// holds a part, and the caller removes it. Attributes that cannot be set here are told in `Unpacked`; a full disk, a
/// failing one, and whatever concerns names or data are errors. `monitor` is told of the bytes of files.
pub fn unpack(
    tar: impl Read,
    into: &Path,
    limits: &Limits,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Unpacked, UnpackError> {
    let top = open_fresh(into)?;
    let at = Cell::new(0);
    let mut unpacker = Unpacker {
        ledger: Ledger::new(*limits),
        place: Place::new(top.as_fd()),
        directories: Vec::new(),
        root: None,
        buffer: vec![0; 1 << 20],
        out: Unpacked::default(),
        at: &at,
        cancel,
        monitor,
    };
    walk(tar, cancel, &at, |entry, body| unpacker.entry(entry, body))?;
    let out = unpacker.finish(&top)?;
    // The handle is as old as the tree, so that an error of writing back any of it is reported here.
    rustix::fs::syncfs(&top).map_err(|e| UnpackError::write(b"", e))?;
    Ok(out)
}

/// Opens the directory to unpack to, and takes from it what new entries would inherit.
fn open_fresh(into: &Path) -> Result<OwnedFd, UnpackError> {
    use std::os::unix::ffi::OsStrExt;
    let path = into.as_os_str().as_bytes();
    let unfit = |why| UnpackError::NotFresh { path: shown(path), why };
    let fail = |e| UnpackError::write(path, e);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(into, flags, Mode::empty()).map_err(fail)?;
    let stat = rustix::fs::fstat(&top).map_err(fail)?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(unfit("it belongs to somebody else"));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(unfit("others can enter it"));
    }
    for entry in rustix::fs::Dir::read_from(&top).map_err(fail)? {
        if ![c".", c".."].contains(&entry.map_err(fail)?.file_name()) {
            return Err(unfit("it is not empty"));
        }
    }
    attributes::disinherit(top.as_fd()).map_err(fail)?;
    Ok(top)
}

struct Unpacker<'a> {
    ledger: Ledger,
    place: Place<'a>,
    /// Directories that were made, with what the archive says of them; None for parents that it did not list.
    directories: Vec<(Box<[u8]>, Option<Attributes>)>,
    root: Option<Attributes>,
    buffer: Vec<u8>,
    out: Unpacked,
    at: &'a Cell<u64>,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, body: &mut Body<'_>) -> Result<(), UnpackError> {
        self.cancel.check()?;
        let step = self.ledger.admit(entry)?;
        for length in &step.missing {
            let parent = &step.path[..*length];
            self.place.directory(parent).map_err(|e| UnpackError::write(parent, e))?;
            self.directories.push((parent.into(), None));
        }
        self.write(&step, entry, body)
    }

    fn write(&mut self, step: &Step<'_>, entry: &Entry, body: &mut Body<'_>) -> Result<(), UnpackError> {
        let path = step.path;
        let fail = |e| UnpackError::write(path, e);
        match step.what {
            What::Root => self.root = Some(step.attributes()),
            What::Directory { made } => {
                if !made {
                    self.place.directory(path).map_err(fail)?;
                }
                self.directories.push((path.into(), Some(step.attributes())));
            }
            What::File => {
                let file = std::fs::File::from(self.place.file(path).map_err(fail)?);
                self.contents(&file, path, entry, body)?;
                step.attributes().set(Target::Open(file.as_fd()), path, &mut self.out)?;
            }
            What::Fifo => {
                let fifo = self.place.fifo(path).map_err(fail)?;
                step.attributes().set(Target::Open(fifo.as_fd()), path, &mut self.out)?;
            }
            What::Symlink => {
                let (parent, name) = self.place.symlink(path, &entry.link).map_err(fail)?;
                step.attributes().set(Target::Beside { parent, name }, path, &mut self.out)?;
            }
            What::Hardlink { first } => self.place.hardlink(path, first).map_err(fail)?,
        }
        Ok(())
    }

    fn contents(
        &mut self,
        file: &std::fs::File,
        path: &[u8],
        entry: &Entry,
        body: &mut Body<'_>,
    ) -> Result<(), UnpackError> {
        let whole = [Extent { offset: 0, bytes: entry.size }];
        let mut end = 0;
        for extent in entry.extents.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < extent.bytes {
                self.cancel.check()?;
                let most = usize::try_from(extent.bytes - done).unwrap_or(usize::MAX).min(self.buffer.len());
                let n = body.read(&mut self.buffer[..most]).map_err(|e| self.unread(e))?;
                file.write_all_at(&self.buffer[..n], extent.offset + done)
                    .map_err(|e| UnpackError::write(path, e))?;
                self.monitor.moved(n as u64);
                done += n as u64;
            }
            if extent.bytes > 0 {
                end = extent.offset + extent.bytes;
            }
        }
        if end < entry.size {
            // It ends in a hole.
            rustix::fs::ftruncate(file, entry.size).map_err(|e| UnpackError::write(path, e))?;
        }
        Ok(())
    }

    fn unread(&self, source: io::Error) -> UnpackError {
        let bytes = self.at.get();
        UnpackError::Tar(match source.kind() {
            io::ErrorKind::UnexpectedEof => TarError::Truncated { bytes },
            _ => TarError::Read { offset: bytes, source },
        })
    }

    /// Owners, modes and times of directories: now that nothing is written into them any more.
    fn finish(mut self, top: &OwnedFd) -> Result<Unpacked, UnpackError> {
        let mut directories = std::mem::take(&mut self.directories);
        // A path sorts behind those of its parents; so this begins with the deepest of each branch.
        directories.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        for (i, (path, attributes)) in directories.iter().enumerate() {
            self.cancel.check()?;
            // Made as a missing parent, and listed later: what is listed counts.
            let twice = [i.checked_sub(1), i.checked_add(1)]
                .into_iter()
                .flatten()
                .any(|j| directories.get(j).is_some_and(|(other, _)| other == path));
            if attributes.is_none() && twice {
                continue;
            }
            let fd = self.place.reopen(path).map_err(|e| UnpackError::write(path, e))?;
            match attributes {
                Some(a) => a.set(Target::Open(fd.as_fd()), path, &mut self.out)?,
                None => attributes::set_default(fd.as_fd(), path, &mut self.out)?,
            }
        }
        if let Some(attributes) = &self.root {
            attributes.set(Target::Open(top.as_fd()), b"", &mut self.out)?;
        }
        self.out.survey = self.ledger.survey();
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests;
