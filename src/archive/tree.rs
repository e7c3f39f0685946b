//! A directory tree into a tar, as it is: owners, modes, nanoseconds, links, holes, attributes, odd names. Read through
//! directory handles, never through paths, so that a tree that changes meanwhile cannot lead the walk elsewhere.
//! What could go wrong: a tree that is not the one that was meant (unmounted, replaced, emptied) and still counts as
//! good; `finish` compares the root with what it was at the start.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::tarfile::{Kind, Meta, SparseMap, TarWriter};
use crate::cancel::{Cancel, Interrupted};
use crate::format::tarwalk::{self, Mtime};
pub use crate::id::show_name;
use crate::progress::Monitor;

/// How a tree is read.
#[derive(Debug, Clone)]
pub struct TreeRules {
    pub exclude: Exclude,
    /// Directories that are left out whole: our own staging and state.
    pub own_dirs: Vec<PathBuf>,
    pub cross_mounts: bool,
    pub allow_empty: bool,
    /// Paths from the root where other mounts begin that are known and no part of it: a directory stays, empty.
    pub mounted: Vec<PathBuf>,
}

impl TreeRules {
    pub(super) fn is_mounted(&self, relative: &[u8]) -> bool {
        self.mounted.iter().any(|m| m.as_os_str().as_bytes() == relative)
    }
}

/// Patterns of what is left out. Without a slash a pattern means a name at any depth, with one a path from the root.
#[derive(Debug, Clone, Default)]
pub struct Exclude {
    patterns: Vec<String>,
    set: GlobSet,
}

impl Exclude {
    pub fn new(patterns: &[String]) -> Result<Self, (String, String)> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            let trimmed = pattern.trim_end_matches('/');
            let anchored = match trimmed.strip_prefix('/') {
                Some(rest) => rest.to_owned(),
                None if trimmed.contains('/') => trimmed.to_owned(),
                None => format!("**/{trimmed}"),
            };
            let glob = GlobBuilder::new(&anchored)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|e| (pattern.clone(), e.kind().to_string()))?;
            set.add(glob);
        }
        let set = set.build().map_err(|e| (patterns.join(", "), e.to_string()))?;
        Ok(Self { patterns: patterns.to_vec(), set })
    }

    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    pub(super) fn hides(&self, relative: &[u8]) -> bool {
        !self.set.is_empty() && self.set.is_match(Path::new(std::ffi::OsStr::from_bytes(relative)))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{path} is not there")]
    NoRoot { path: PathBuf },
    #[error("{path} is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("cannot read {path}")]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("a link in {path} leads out of the volume or directory that it lies in")]
    Outside { path: PathBuf },
    #[error("what the engine sends of {path} cannot be used: {why}")]
    Foreign { path: PathBuf, why: String },
    #[error("{path} is empty")]
    Empty { path: PathBuf },
    #[error("another file system is mounted at {path}")]
    Mount { path: PathBuf },
    #[error("{path} was replaced, unmounted or mounted over while it was read")]
    RootChanged { path: PathBuf },
    #[error("{vanished} of {seen} entries below {path} vanished while it was read")]
    Vanished { path: PathBuf, vanished: u64, seen: u64 },
    #[error("cannot write the tar")]
    Write(#[source] io::Error),
}

impl TreeError {
    /// The same, with another name for what lies at `from`.
    pub fn renamed(mut self, from: &Path, to: &Path) -> Self {
        let path = match &mut self {
            Self::NoRoot { path }
            | Self::NotADirectory { path }
            | Self::Root { path, .. }
            | Self::Outside { path }
            | Self::Foreign { path, .. }
            | Self::Empty { path }
            | Self::Mount { path }
            | Self::RootChanged { path }
            | Self::Vanished { path, .. } => path,
            Self::Interrupted(_) | Self::Write(_) => return self,
        };
        if let Ok(below) = path.strip_prefix(from) {
            *path = if below.as_os_str().is_empty() { to.to_owned() } else { to.join(below) };
        }
        self
    }
}

impl crate::hint::Hint for TreeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Empty { .. } => {
                "if that is right, set allow_empty = true; else look whether it is mounted".into()
            }
            Self::Mount { .. } => {
                "give it a source of its own and exclude it here, or set cross_mounts = true to take it along"
                    .into()
            }
            Self::NoRoot { .. } | Self::RootChanged { .. } => "is it mounted? see: findmnt".into(),
            Self::Vanished { .. } => "is something deleting it? run the backup again when it is quiet".into(),
            _ => return None,
        })
    }
}

/// At most this many names are listed one by one; the rest is counted.
const LISTED: usize = 20;

/// Things of one sort that happened to entries: the first names, and how many in all.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub count: u64,
    names: Vec<String>,
}

impl Tally {
    pub(super) fn add(&mut self, path: &[u8], detail: Option<&str>) {
        self.count += 1;
        if self.names.len() < LISTED {
            let shown = show_name(path);
            self.names.push(detail.map_or_else(|| shown.clone(), |d| format!("{shown} ({d})")));
        }
    }

    /// One sentence; None when it did not happen.
    pub fn sentence(&self, what: &str) -> Option<String> {
        if self.count == 0 {
            return None;
        }
        let more = self.count - self.names.len() as u64;
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!("{what}: {}{tail}", self.names.join(", ")))
    }
}

/// What was found in a tree.
#[derive(Debug, Default, Clone)]
pub struct TreeReport {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    pub hardlinks: u64,
    pub fifos: u64,
    /// Bytes of all regular files, holes included, each hard-linked file once.
    pub bytes: u64,
    /// Headers in the tar.
    pub entries: u64,
    pub vanished: Tally,
    pub unreadable: Tally,
    pub changed: Tally,
    pub skipped: Tally,
    /// Entries whose extended attributes could not be read, or are more than a tar header takes.
    pub attributes: Tally,
}

impl TreeReport {
    pub fn warnings(&self) -> Vec<String> {
        [
            self.vanished.sentence("vanished while being read"),
            self.changed.sentence("changed size while being read"),
            self.skipped.sentence("not archived, sockets and devices"),
            self.attributes.sentence("extended attributes not archived, or not all of them"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Everything but the root itself.
    pub fn entries_below(&self) -> u64 {
        let plain = self.files + self.symlinks + self.fifos + self.skipped.count;
        plain + self.directories.saturating_sub(1)
    }

    /// Set when something could not be read: what is archived is then not all of it.
    pub fn incomplete(&self) -> Option<String> {
        self.unreadable.sentence("unreadable")
    }
}

/// Sees the bytes of every regular file on their way into the tar, so that what is said of a copy is true of the copy.
pub trait Watch {
    /// A file begins; `path` is relative to the root, `mtime` when it was last written.
    fn file(&mut self, path: &[u8], size: u64, mtime: Mtime);
    /// Data of it, in order; what lies between two pieces is a hole.
    fn data(&mut self, offset: u64, bytes: &[u8]);
    /// It is over; `whole` unless it changed or could not be read to its end.
    fn end(&mut self, whole: bool);
}

/// Nobody looks.
pub struct Unwatched;

impl Watch for Unwatched {
    fn file(&mut self, _: &[u8], _: u64, _: Mtime) {}
    fn data(&mut self, _: u64, _: &[u8]) {}
    fn end(&mut self, _: bool) {}
}

/// Writes the tree at `root` as entries `./…`, its own entry first.
pub fn pack<W: Write>(
    root: &Path,
    rules: &TreeRules,
    tar: &mut TarWriter<W>,
    watch: &mut dyn Watch,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<TreeReport, TreeError> {
    let mut packer = Packer { tar, links: HashMap::new(), buffer: vec![0; 1 << 20], watch, cancel, monitor };
    walk(root, rules, cancel, &mut packer)
}

/// What a tree holds, without its contents.
#[derive(Debug, Clone)]
pub struct Inventory {
    pub report: TreeReport,
    /// SHA-256 over path, type, mode, owner, size and time of every entry, hex.
    pub digest: String,
}

pub fn inventory(root: &Path, rules: &TreeRules, cancel: &Cancel) -> Result<Inventory, TreeError> {
    let mut surveyor = Surveyor { hasher: Sha256::new() };
    let report = walk(root, rules, cancel, &mut surveyor)?;
    Ok(Inventory { report, digest: hex::encode(surveyor.hasher.finalize()) })
}

/// Device and inode of each of them that is there.
fn ids_of(dirs: &[PathBuf]) -> Vec<(u64, u64)> {
    dirs.iter().filter_map(|d| rustix::fs::stat(d).ok()).map(|s| (s.st_dev, s.st_ino)).collect()
}

/// What a backup of the tree leaves out, as paths below `root`: what the patterns hide, our own directories, sockets and
/// devices.
pub fn left_out(
    root: &Path,
    exclude: &Exclude,
    own_dirs: &[PathBuf],
    cancel: &Cancel,
) -> Result<Vec<PathBuf>, TreeError> {
    let own = ids_of(own_dirs);
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(dir) = waiting.pop() {
        cancel.check()?;
        let path = root.join(&dir);
        let fail = |source| TreeError::Root { path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let below = dir.join(entry.file_name());
            let kind = entry.file_type().map_err(fail)?;
            if exclude.hides(below.as_os_str().as_bytes()) {
                found.push(below);
            } else if kind.is_dir() {
                let meta = entry.metadata().map_err(fail)?;
                if own.contains(&(meta.dev(), meta.ino())) {
                    found.push(below);
                } else {
                    waiting.push(below);
                }
            } else if !kind.is_file() && !kind.is_symlink() && !std::os::unix::fs::FileTypeExt::is_fifo(&kind)
            {
                found.push(below);
            }
        }
    }
    Ok(found)
}

/// An entry that the walk found. Its parent is open; the entry itself is not.
struct Found<'a> {
    parent: BorrowedFd<'a>,
    name: &'a CStr,
    /// From the root, without a leading `./`.
    relative: &'a [u8],
    stat: Stat,
    kind: FileType,
}

/// What to do with each entry.
trait Visit {
    /// A directory, already open. The root has an empty relative path.
    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        relative: &[u8],
        stat: &Stat,
        report: &mut TreeReport,
    ) -> Result<(), TreeError>;
    /// Anything else. An error of reading goes into the report; only writing and the signal end the walk.
    fn other(&mut self, found: &Found<'_>, report: &mut TreeReport) -> Result<(), TreeError>;
    fn entries(&self) -> u64;
}

fn root_error(path: &Path, e: Errno) -> TreeError {
    let path = path.to_owned();
    match e {
        Errno::NOENT => TreeError::NoRoot { path },
        Errno::NOTDIR => TreeError::NotADirectory { path },
        Errno::XDEV | Errno::LOOP => TreeError::Outside { path },
        e => TreeError::Root { path, source: e.into() },
    }
}

/// A directory that is open, and can be read by a path that stays valid while this lives.
pub struct Opened {
    path: PathBuf,
    _fd: OwnedFd,
}

impl Opened {
    /// `path` as a process sees it whose root directory is `root`: its absolute links mean that root.
    pub fn below_root(root: &Path, path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| root_error(root, e))?;
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd =
            rustix::fs::openat2(&top, path, flags, Mode::empty(), inside).map_err(|e| root_error(path, e))?;
        Ok(Self { path: format!("/proc/self/fd/{}", fd.as_raw_fd()).into(), _fd: fd })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The real path of the directory `rest` below `base`. Links in `rest` are somebody else's: none may lead out of `base`.
pub fn beneath(base: &Path, rest: &Path) -> Result<PathBuf, TreeError> {
    if rest.as_os_str().is_empty() {
        return Ok(base.to_owned());
    }
    let path = base.join(rest);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(base, flags, Mode::empty()).map_err(|e| root_error(base, e))?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let fd =
        rustix::fs::openat2(&top, rest, flags, Mode::empty(), inside).map_err(|e| root_error(&path, e))?;
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let real = rustix::fs::readlink(link, Vec::new()).map_err(|e| root_error(&path, e))?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(real.into_bytes())))
}

struct Level {
    fd: OwnedFd,
    /// Names still to visit, last one next.
    names: Vec<CString>,
    /// Length of the relative path of this directory.
    path_len: usize,
}

fn walk(
    root: &Path,
    rules: &TreeRules,
    cancel: &Cancel,
    visit: &mut dyn Visit,
) -> Result<TreeReport, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(|e| root_error(root, e))?;
    let fail_root = |e: Errno| TreeError::Root { path: root.to_owned(), source: e.into() };
    let top_stat = rustix::fs::fstat(&top).map_err(fail_root)?;
    let own = ids_of(&rules.own_dirs);

    let mut report = TreeReport { directories: 1, ..TreeReport::default() };
    visit.directory(top.as_fd(), b"", &top_stat, &mut report)?;
    let names = list(top.as_fd()).map_err(fail_root)?;
    let mut seen = 0u64;
    let mut path: Vec<u8> = Vec::new();
    let mut levels = vec![Level { fd: top, names, path_len: 0 }];

    while let Some(level) = levels.last_mut() {
        cancel.check()?;
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        path.truncate(level.path_len);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if rules.exclude.hides(&path) {
            continue;
        }
        seen += 1;
        let stat = match rustix::fs::statat(&level.fd, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(s) => s,
            Err(Errno::NOENT) => {
                report.vanished.add(&path, None);
                continue;
            }
            Err(e) => {
                report.unreadable.add(&path, Some(&e.to_string()));
                continue;
            }
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if rules.is_mounted(&path) {
            if kind == FileType::Directory {
                report.directories += 1;
                let fd = rustix::fs::openat(&level.fd, &name, flags | OFlags::NOFOLLOW, Mode::empty());
                match fd {
                    Ok(fd) => visit.directory(fd.as_fd(), &path, &stat, &mut report)?,
                    Err(e) => report.unreadable.add(&path, Some(&e.to_string())),
                }
            }
            continue;
        }
        if stat.st_dev != top_stat.st_dev && kind == FileType::Directory && !rules.cross_mounts {
            return Err(TreeError::Mount { path: root.join(std::ffi::OsStr::from_bytes(&path)) });
        }
        if kind != FileType::Directory {
            visit.other(
                &Found { parent: level.fd.as_fd(), name: &name, relative: &path, stat, kind },
                &mut report,
            )?;
            continue;
        }
        if own.contains(&(stat.st_dev, stat.st_ino)) {
            continue;
        }
        let opened = rustix::fs::openat(&level.fd, &name, flags | OFlags::NOFOLLOW, Mode::empty())
            .and_then(|fd| Ok((list(fd.as_fd())?, rustix::fs::fstat(&fd)?, fd)));
        match opened {
            Ok((names, stat, fd)) => {
                report.directories += 1;
                visit.directory(fd.as_fd(), &path, &stat, &mut report)?;
                levels.push(Level { fd, names, path_len: path.len() });
            }
            // ENOTDIR, ELOOP: it became something else between two looks, which is as gone as gone.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => report.vanished.add(&path, None),
            Err(e) => report.unreadable.add(&path, Some(&e.to_string())),
        }
    }
    report.entries = visit.entries();
    check_end(root, rules, &top_stat, seen, &report)?;
    Ok(report)
}

/// In a small tree one vanished file is more than 1 %, and still ordinary.
const VANISHED_ORDINARY: u64 = 5;

fn check_end(
    root: &Path,
    rules: &TreeRules,
    start: &Stat,
    seen: u64,
    report: &TreeReport,
) -> Result<(), TreeError> {
    let path = root.to_owned();
    match rustix::fs::stat(root) {
        Ok(now) if (now.st_dev, now.st_ino) == (start.st_dev, start.st_ino) && now.st_nlink > 0 => {}
        _ => return Err(TreeError::RootChanged { path }),
    }
    let vanished = report.vanished.count;
    if vanished > VANISHED_ORDINARY && vanished * 100 > seen {
        return Err(TreeError::Vanished { path, vanished, seen });
    }
    if seen == 0 && !rules.allow_empty {
        return Err(TreeError::Empty { path });
    }
    Ok(())
}

/// Names in a directory, in reverse order of their bytes, so that popping goes forward.
fn list(fd: BorrowedFd<'_>) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    // A directory that changes while it is read may tell a name twice; nobody unpacks an archive with doubles.
    names.dedup();
    Ok(names)
}

struct Packer<'a, W: Write> {
    tar: &'a mut TarWriter<W>,
    /// First path of each file that has more than one name.
    links: HashMap<(u64, u64), Vec<u8>>,
    buffer: Vec<u8>,
    watch: &'a mut dyn Watch,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

/// `./a/b`, as GNU tar writes it for `tar -C root .`.
pub(super) fn member(relative: &[u8]) -> Vec<u8> {
    if relative.is_empty() { b".".to_vec() } else { [b"./", relative].concat() }
}

impl<W: Write> Visit for Packer<'_, W> {
    fn directory(
        &mut self,
        fd: BorrowedFd<'_>,
        relative: &[u8],
        stat: &Stat,
        report: &mut TreeReport,
    ) -> Result<(), TreeError> {
        let path = member(relative);
        let xattrs = xattrs_of(fd).told(relative, report);
        self.tar.entry(&meta(&path, Kind::Directory, stat, None, &xattrs)).map_err(TreeError::Write)
    }

    fn other(&mut self, found: &Found<'_>, report: &mut TreeReport) -> Result<(), TreeError> {
        let path = member(found.relative);
        let id = (found.stat.st_dev, found.stat.st_ino);
        let linked = found.stat.st_nlink > 1;
        if linked && let Some(first) = self.links.get(&id) {
            report.hardlinks += 1;
            let m = meta(&path, Kind::Hardlink, &found.stat, Some(first), &[]);
            return self.tar.entry(&m).map_err(TreeError::Write);
        }
        let archived = match found.kind {
            FileType::RegularFile => self.regular(found, &path, report)?,
            FileType::Symlink => self.symlink(found, &path, report)?,
            FileType::Fifo => {
                report.fifos += 1;
                let xattrs = xattrs_beside(found.parent, found.name).told(found.relative, report);
                self.tar
                    .entry(&meta(&path, Kind::Fifo, &found.stat, None, &xattrs))
                    .map_err(TreeError::Write)?;
                true
            }
            _ => {
                report.skipped.add(found.relative, Some(kind_name(found.kind)));
                false
            }
        };
        if linked && archived {
            self.links.insert(id, path);
        }
        Ok(())
    }

    fn entries(&self) -> u64 {
        self.tar.entries()
    }
}

impl<W: Write> Packer<'_, W> {
    fn symlink(
        &mut self,
        found: &Found<'_>,
        path: &[u8],
        report: &mut TreeReport,
    ) -> Result<bool, TreeError> {
        match rustix::fs::readlinkat(found.parent, found.name, Vec::new()) {
            Ok(target) => {
                report.symlinks += 1;
                let xattrs = xattrs_beside(found.parent, found.name).told(found.relative, report);
                let m = meta(path, Kind::Symlink, &found.stat, Some(target.as_bytes()), &xattrs);
                self.tar.entry(&m).map_err(TreeError::Write)?;
                Ok(true)
            }
            Err(Errno::NOENT | Errno::INVAL) => {
                report.vanished.add(found.relative, None);
                Ok(false)
            }
            Err(e) => {
                report.unreadable.add(found.relative, Some(&e.to_string()));
                Ok(false)
            }
        }
    }

    fn regular(
        &mut self,
        found: &Found<'_>,
        path: &[u8],
        report: &mut TreeReport,
    ) -> Result<bool, TreeError> {
        let (file, stat) = match open_regular(found.parent, found.name) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) => {
                report.vanished.add(found.relative, None);
                return Ok(false);
            }
            Err(e) => {
                report.unreadable.add(found.relative, Some(&e.to_string()));
                return Ok(false);
            }
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let xattrs = xattrs_of(file.as_fd()).told(found.relative, report);
        let m = meta(path, Kind::File, &stat, None, &xattrs);
        report.files += 1;
        report.bytes += size;
        let holes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512 < size;
        let map = if holes { data_map(file.as_fd(), size) } else { None };
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        self.watch.file(found.relative, size, Mtime { secs: stat.st_mtime, nanos });
        let outcome = match map {
            Some(map) => self.sparse_body(&m, &file, &map)?,
            None => self.plain_body(&m, &file, size)?,
        };
        self.watch.end(matches!(outcome, BodyEnd::Whole));
        match outcome {
            BodyEnd::Whole => {}
            BodyEnd::Changed => report.changed.add(found.relative, None),
            BodyEnd::Unreadable(e) => report.unreadable.add(found.relative, Some(&e.to_string())),
        }
        Ok(true)
    }

    fn plain_body(&mut self, m: &Meta<'_>, file: &std::fs::File, size: u64) -> Result<BodyEnd, TreeError> {
        let mut body = self.tar.file(m, size).map_err(TreeError::Write)?;
        let mut left = size;
        let mut end = BodyEnd::Whole;
        while left > 0 {
            self.cancel.check()?;
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            match read_some(file, &mut self.buffer[..want]) {
                Ok(0) => {
                    end = BodyEnd::Changed;
                    break;
                }
                Ok(n) => {
                    body.write(&self.buffer[..n]).map_err(TreeError::Write)?;
                    self.watch.data(size - left, &self.buffer[..n]);
                    self.monitor.moved(n as u64);
                    left -= n as u64;
                }
                Err(e) => {
                    end = BodyEnd::Unreadable(e);
                    break;
                }
            }
        }
        body.finish().map_err(TreeError::Write)?;
        // One stat more tells of growth, which reading exactly `size` bytes cannot see.
        let grown = || rustix::fs::fstat(file).is_ok_and(|s| u64::try_from(s.st_size).unwrap_or(0) != size);
        if matches!(end, BodyEnd::Whole) && grown() {
            end = BodyEnd::Changed;
        }
        Ok(end)
    }

    fn sparse_body(
        &mut self,
        m: &Meta<'_>,
        file: &std::fs::File,
        map: &SparseMap,
    ) -> Result<BodyEnd, TreeError> {
        use std::os::unix::fs::FileExt;
        let mut body = self.tar.sparse(m, map).map_err(TreeError::Write)?;
        let mut end = BodyEnd::Whole;
        'extents: for (offset, length) in &map.extents {
            let mut done = 0;
            while done < *length {
                self.cancel.check()?;
                let want = usize::try_from(length - done).unwrap_or(usize::MAX).min(self.buffer.len());
                match file.read_at(&mut self.buffer[..want], offset + done) {
                    Ok(0) => {
                        end = BodyEnd::Changed;
                        break 'extents;
                    }
                    Ok(n) => {
                        body.write(&self.buffer[..n]).map_err(TreeError::Write)?;
                        self.watch.data(offset + done, &self.buffer[..n]);
                        self.monitor.moved(n as u64);
                        done += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        end = BodyEnd::Unreadable(e);
                        break 'extents;
                    }
                }
            }
        }
        body.finish().map_err(TreeError::Write)?;
        if matches!(end, BodyEnd::Whole)
            && rustix::fs::fstat(file).is_ok_and(|s| u64::try_from(s.st_size).unwrap_or(0) != map.size)
        {
            end = BodyEnd::Changed;
        }
        Ok(end)
    }
}

enum BodyEnd {
    Whole,
    Changed,
    Unreadable(io::Error),
}

fn read_some(mut file: &std::fs::File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Opens without following a link, without waiting on a fifo that took the file's place, and without touching its
/// access time where that is allowed. `INVAL` when it is not a regular file any more.
fn open_regular(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<(std::fs::File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(parent, name, flags, Mode::empty())?,
        other => other?,
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok((std::fs::File::from(fd), stat))
}

/// Where the data lies; None when the file system cannot tell or the file has no hole after all.
fn data_map(fd: BorrowedFd<'_>, size: u64) -> Option<SparseMap> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(s) if s < size => s,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(fd, SeekFrom::Hole(start)).ok()?.min(size);
        // So many pieces that readers of a sparse file give up: then its holes are stored as zeros.
        if end <= start || extents.len() + 1 >= tarwalk::MAX_EXTENTS {
            return None;
        }
        extents.push((start, end - start));
        at = end;
    }
    rustix::fs::seek(fd, SeekFrom::Start(0)).ok()?;
    let whole = matches!(extents.as_slice(), [(0, n)] if *n == size);
    (!whole).then_some(SparseMap { extents, size })
}

fn meta<'a>(
    path: &'a [u8],
    kind: Kind,
    stat: &Stat,
    link: Option<&'a [u8]>,
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
) -> Meta<'a> {
    Meta {
        path,
        kind,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        link,
        xattrs,
    }
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Extended attributes, ACLs among them, and whether some are missing here.
#[derive(Default)]
struct Attributes {
    read: Xattrs,
    lost: bool,
}

impl Attributes {
    fn told(self, path: &[u8], report: &mut TreeReport) -> Xattrs {
        if self.lost {
            report.attributes.add(path, None);
        }
        self.read
    }
}

/// Most bytes of names and values of one entry: readers limit the header that they go into.
const MOST_ATTRIBUTES: usize = 256 << 10;
/// What the kernel limits the list of names, and one value, to.
const LARGEST_ATTRIBUTE: usize = 64 << 10;

fn xattrs_of(fd: BorrowedFd<'_>) -> Attributes {
    collect_xattrs(
        |names| rustix::fs::flistxattr(fd, names),
        |name, value| rustix::fs::fgetxattr(fd, name, value),
    )
}

/// The same for an entry that cannot be opened for reading (a link, a fifo).
fn xattrs_beside(parent: BorrowedFd<'_>, name: &CStr) -> Attributes {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
    collect_xattrs(
        |names| rustix::fs::llistxattr(&path, names),
        |name, value| rustix::fs::lgetxattr(&path, name, value),
    )
}

fn collect_xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> Attributes {
    let mut names = vec![0u8; 1024];
    let listed = match list(&mut names) {
        Err(Errno::RANGE) => {
            names.resize(LARGEST_ATTRIBUTE, 0);
            list(&mut names)
        }
        other => other,
    };
    let mut found = Attributes::default();
    let len = match listed {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOENT) => return found,
        Ok(len) => len,
        Err(_) => return Attributes { lost: true, ..found },
    };
    let mut value = vec![0u8; LARGEST_ATTRIBUTE];
    let mut bytes = 0;
    for name in names[..len].split_inclusive(|b| *b == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        match get(name, &mut value) {
            Ok(n) if bytes + n + name.count_bytes() <= MOST_ATTRIBUTES => {
                bytes += n + name.count_bytes();
                found.read.push((name.to_bytes().to_vec(), value[..n].to_vec()));
            }
            // Removed since it was listed.
            Err(Errno::NODATA | Errno::NOENT) => {}
            Ok(_) | Err(_) => found.lost = true,
        }
    }
    found.read.sort();
    found
}

struct Surveyor {
    hasher: Sha256,
}

impl Surveyor {
    fn note(&mut self, relative: &[u8], stat: &Stat) {
        self.hasher.update(relative);
        // Size and time of a directory are the file system's business, not the data's.
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let (size, time) =
            if directory { (0, (0, 0)) } else { (stat.st_size, (stat.st_mtime, stat.st_mtime_nsec)) };
        self.hasher.update(format!(
            "\0{:o} {} {} {size} {}.{}\n",
            stat.st_mode, stat.st_uid, stat.st_gid, time.0, time.1
        ));
    }
}

impl Visit for Surveyor {
    fn directory(
        &mut self,
        _: BorrowedFd<'_>,
        relative: &[u8],
        stat: &Stat,
        _: &mut TreeReport,
    ) -> Result<(), TreeError> {
        self.note(relative, stat);
        Ok(())
    }

    fn other(&mut self, found: &Found<'_>, report: &mut TreeReport) -> Result<(), TreeError> {
        self.note(found.relative, &found.stat);
        match found.kind {
            FileType::RegularFile => {
                report.files += 1;
                report.bytes += u64::try_from(found.stat.st_size).unwrap_or(0);
            }
            FileType::Symlink => report.symlinks += 1,
            FileType::Fifo => report.fifos += 1,
            kind => report.skipped.add(found.relative, Some(kind_name(kind))),
        }
        Ok(())
    }

    fn entries(&self) -> u64 {
        0
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        _ => "unknown type",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(get: impl Fn(&CStr, &mut [u8]) -> rustix::io::Result<usize>) -> Attributes {
        let list = |names: &mut [u8]| {
            let all = b"user.a\0user.b\0user.c\0";
            names[..all.len()].copy_from_slice(all);
            Ok(all.len())
        };
        collect_xattrs(list, get)
    }

    #[test]
    fn an_attribute_that_cannot_be_read_is_told_and_one_that_was_removed_is_not() {
        let read = |name: &CStr, value: &mut [u8]| match name.to_bytes() {
            b"user.b" => Err(Errno::NODATA),
            _ => {
                value[0] = b'x';
                Ok(1)
            }
        };
        let found = attributes(read);
        assert_eq!((found.read.len(), found.lost), (2, false));
        let failing = |name: &CStr, value: &mut [u8]| {
            if name == c"user.c" { Err(Errno::IO) } else { read(name, value) }
        };
        let found = attributes(failing);
        assert_eq!((found.read.len(), found.lost), (1, true));
        let mut report = TreeReport::default();
        found.told(b"dir/file", &mut report);
        assert!(
            report.warnings()[0].contains("extended attributes not archived, or not all of them: dir/file")
        );
        let none = collect_xattrs(|_| Err(Errno::OPNOTSUPP), |_, _| Err(Errno::IO));
        assert!(!none.lost, "a file system without them has none");
    }

    #[test]
    fn more_attributes_than_a_header_takes_are_told() {
        let list = |names: &mut [u8]| {
            let all: Vec<u8> = (0..6).flat_map(|i| format!("user.{i}\0").into_bytes()).collect();
            names[..all.len()].copy_from_slice(&all);
            Ok(all.len())
        };
        let found = collect_xattrs(list, |_, value| Ok(value.len()));
        assert!(found.lost && !found.read.is_empty());
        assert!(found.read.iter().map(|(_, v)| v.len()).sum::<usize>() <= MOST_ATTRIBUTES);
    }

    #[test]
    fn a_name_cannot_lead_the_eye_astray() {
        let shown = show_name("a\u{202e}b\u{2028}c\u{1b}[31m\nd é".as_bytes());
        assert_eq!(shown, "a\\u{202e}b\\u{2028}c\\u{1b}[31m\\nd é");
    }
}
