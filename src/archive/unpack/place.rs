//! Making entries below one directory, by handles. What could go wrong: a part of a path that is a link; so the kernel
//! is asked to follow none and to stay beneath, and what is made must be new.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Result;

use super::rules::split;

/// Longest path in one call, bytes: the kernel takes 4096 with the closing NUL.
const CALL_BYTES: usize = 4000;

/// Read and write for the owner: until an entry has its owner and mode, it is nobody else's.
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY: Mode = Mode::RWXU;

/// The directory that everything is made below. Paths are those that the rules admitted.
pub(super) struct Place<'t> {
    top: BorrowedFd<'t>,
    /// The directory used last, as most entries have the same parent as the one before.
    last: Vec<u8>,
    fd: Option<OwnedFd>,
}

impl<'t> Place<'t> {
    pub fn new(top: BorrowedFd<'t>) -> Self {
        Self { top, last: Vec::new(), fd: None }
    }

    pub fn directory(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = self.locate(path)?;
        rustix::fs::mkdirat(parent, name, DIRECTORY)
    }

    /// A new and empty file, open for writing.
    pub fn file(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, name) = self.locate(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, FILE)
    }

    /// A new fifo, open; with both ends in one handle no open waits for the other end.
    pub fn fifo(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, name) = self.locate(path)?;
        rustix::fs::mknodat(parent, name, FileType::Fifo, FILE, 0)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::empty())
    }

    /// A new link to anywhere; returns its parent and name, since a link cannot be opened for changes.
    pub fn symlink<'p>(&mut self, path: &'p [u8], target: &[u8]) -> Result<(BorrowedFd<'_>, &'p [u8])> {
        let (parent, name) = self.locate(path)?;
        rustix::fs::symlinkat(target, parent, name)?;
        Ok((parent, name))
    }

    /// A further name of `first`, itself: a link is not followed.
    pub fn hardlink(&mut self, path: &[u8], first: &[u8]) -> Result<()> {
        let (first_dir, first_name) = split(first);
        let from = open_beneath(self.top, first_dir, OFlags::PATH)?;
        let from = from.as_ref().map_or(self.top, AsFd::as_fd);
        let (parent, name) = self.locate(path)?;
        rustix::fs::linkat(from, first_name, parent, name, AtFlags::empty())
    }

    /// A directory that was made before, open so that its attributes can be set.
    pub fn reopen(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, name) = self.locate(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::empty())
    }

    fn locate<'p>(&mut self, path: &'p [u8]) -> Result<(BorrowedFd<'_>, &'p [u8])> {
        let (parent, name) = split(path);
        if parent != self.last.as_slice() {
            let below = match &self.fd {
                Some(fd) => parent
                    .strip_prefix(self.last.as_slice())
                    .and_then(|rest| rest.strip_prefix(b"/"))
                    .map(|rest| (fd.as_fd(), rest)),
                None => None,
            };
            let (from, rest) = below.unwrap_or((self.top, parent));
            self.fd = open_beneath(from, rest, OFlags::PATH)?;
            self.last.clear();
            self.last.extend_from_slice(parent);
        }
        Ok((self.fd.as_ref().map_or(self.top, AsFd::as_fd), name))
    }
}

/// The directory `path` below `from`; None when that is `from` itself.
fn open_beneath(from: BorrowedFd<'_>, path: &[u8], access: OFlags) -> Result<Option<OwnedFd>> {
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut rest = path;
    let mut fd: Option<OwnedFd> = None;
    while !rest.is_empty() {
        let (piece, behind) = match rest.get(..CALL_BYTES).and_then(|begin| memchr::memrchr(b'/', begin)) {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => (rest, &b""[..]),
        };
        let base = fd.as_ref().map_or(from, AsFd::as_fd);
        fd = Some(rustix::fs::openat2(base, piece, flags, Mode::empty(), inside)?);
        rest = behind;
    }
    Ok(fd)
}
