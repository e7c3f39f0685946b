//! Which entries of a tar may be written, decided before they are. What could go wrong: two names that we think
//! different and a file system takes for one, or a parent that is not the directory that it seems; so each name has one
//! form here, and the kind of everything that the archive named is remembered.

use std::collections::HashMap;
use std::collections::hash_map;

use sha2::{Digest, Sha256};

use super::attributes::{Attributes, acl_fallback};
use super::{Limits, Survey, UnpackError, shown};
use crate::format::tarwalk::{Entry, Kind};

/// Most names of one archive: with hashes instead of names the table stays below 500 MB while it grows.
const MAX_NODES: u64 = 14_000_000;
/// Most bytes of names and attributes of directories, which are kept to the end.
const MAX_HELD_BYTES: u64 = 256 << 20;
/// What a directory takes besides.
const HELD_EACH_BYTES: u64 = 128;
/// Deepest path; trees are walked with one open handle per level when they are archived, so none of ours comes near it.
const MAX_DEPTH: u64 = 4096;
/// Longest name and longest link target that Linux takes, bytes.
const MAX_NAME_BYTES: usize = 255;
const MAX_TARGET_BYTES: usize = 4095;

/// The first half of a SHA-256: nobody finds two names with the same one.
type PathHash = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    /// A parent of something, not listed itself so far.
    Missing,
    File,
    Symlink,
    Fifo,
}

/// How an admitted entry is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What<'e> {
    Root,
    /// `made` when it had to be made already for something below it.
    Directory {
        made: bool,
    },
    File,
    Symlink,
    Fifo,
    /// A further name of `first`, which was made before and is no directory.
    Hardlink {
        first: &'e [u8],
    },
}

/// An admitted entry.
#[derive(Debug)]
pub(super) struct Step<'e> {
    /// From the root; parts that a file system knows, between single slashes. Empty for the root.
    pub path: &'e [u8],
    pub what: What<'e>,
    /// Lengths of those parents' paths that nothing has made yet, shortest first.
    pub missing: Vec<usize>,
    entry: &'e Entry,
    uid: u32,
    gid: u32,
}

impl Step<'_> {
    pub fn attributes(&self) -> Attributes {
        Attributes {
            uid: self.uid,
            gid: self.gid,
            mode: self.entry.mode,
            mode_without_acl: acl_fallback(self.entry.mode, &self.entry.xattrs),
            mtime: self.entry.mtime,
            xattrs: self.entry.xattrs.clone().into_boxed_slice(),
        }
    }
}

/// Everything that an archive has named so far.
pub(super) struct Ledger {
    nodes: HashMap<PathHash, Node>,
    limits: Limits,
    survey: Survey,
    has_root: bool,
    held_bytes: u64,
    /// The parent of the last entry, known to be a directory: most entries have the same one.
    parent: Vec<u8>,
}

impl Ledger {
    pub fn new(limits: Limits) -> Self {
        Self {
            nodes: HashMap::new(),
            limits,
            survey: Survey::default(),
            has_root: false,
            held_bytes: 0,
            parent: Vec::new(),
        }
    }

    /// What was admitted so far.
    pub fn survey(&self) -> Survey {
        self.survey
    }

    /// Takes an entry up, or says why it must not be written. After an error the whole archive is refused.
    pub fn admit<'e>(&mut self, entry: &'e Entry) -> Result<Step<'e>, UnpackError> {
        let hostile = |why| UnpackError::Hostile { path: shown(&entry.path), why };
        self.count(entry)?;
        let (uid, gid) = (owner(entry.uid).map_err(hostile)?, owner(entry.gid).map_err(hostile)?);
        let path = plain(&entry.path, entry.kind).map_err(hostile)?;
        if path.is_empty() {
            if entry.kind != Kind::Directory {
                return Err(hostile("a root that is no directory"));
            }
            if std::mem::replace(&mut self.has_root, true) {
                return Err(hostile("a second root"));
            }
            self.hold(entry)?;
            return Ok(Step { path, what: What::Root, missing: Vec::new(), entry, uid, gid });
        }
        let missing = self.parents(path).map_err(hostile)?;
        for length in &missing {
            self.hold_path(*length)?;
        }
        let (node, mut what) = match entry.kind {
            Kind::Directory => (Node::Directory, What::Directory { made: false }),
            Kind::Regular => (Node::File, What::File),
            Kind::Fifo => (Node::Fifo, What::Fifo),
            Kind::Symlink if entry.link.len() > MAX_TARGET_BYTES => {
                return Err(hostile("a link whose target is too long"));
            }
            Kind::Symlink => (Node::Symlink, What::Symlink),
            Kind::Hardlink => {
                let first = plain(&entry.link, entry.kind).map_err(hostile)?;
                match self.nodes.get(&hash_of(first)) {
                    // A link or a fifo with two names is legal, and its further name is made without following it.
                    Some(node @ (Node::File | Node::Symlink | Node::Fifo)) => {
                        (*node, What::Hardlink { first })
                    }
                    _ => return Err(hostile("a hard link to something that is no earlier file of it")),
                }
            }
            Kind::CharDevice | Kind::BlockDevice => return Err(hostile("a device")),
            Kind::Other(_) => return Err(hostile("something of an unknown type")),
        };
        match self.nodes.entry(hash_of(path)) {
            hash_map::Entry::Vacant(free) => {
                free.insert(node);
                self.survey.inodes += u64::from(entry.kind != Kind::Hardlink);
            }
            hash_map::Entry::Occupied(mut taken) => match (*taken.get(), node) {
                (Node::Missing, Node::Directory) => {
                    taken.insert(node);
                    what = What::Directory { made: true };
                }
                (Node::Missing, _) => return Err(hostile("which is no directory and has entries below it")),
                _ => return Err(hostile("for the second time")),
            },
        }
        if node == Node::Directory {
            self.hold(entry)?;
        }
        self.ceiling()?;
        Ok(Step { path, what, missing, entry, uid, gid })
    }

    fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.survey.entries += 1;
        if let Some(limit) = self.limits.entries.filter(|limit| self.survey.entries > *limit) {
            return Err(UnpackError::TooManyEntries { limit });
        }
        if entry.kind == Kind::Regular {
            let limit = self.limits.bytes.unwrap_or(u64::MAX);
            self.survey.files += 1;
            // The data is never more than the size, so it needs no look of its own.
            self.survey.data_bytes = self.survey.data_bytes.saturating_add(entry.stored_bytes);
            self.survey.bytes = self
                .survey
                .bytes
                .checked_add(entry.size)
                .filter(|sum| *sum <= limit)
                .ok_or(UnpackError::TooManyBytes { limit })?;
        }
        Ok(())
    }

    fn ceiling(&self) -> Result<(), UnpackError> {
        if self.nodes.len() as u64 > MAX_NODES {
            return Err(UnpackError::TooManyEntries { limit: MAX_NODES });
        }
        Ok(())
    }

    /// A directory's name and attributes are kept to the end.
    fn hold(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
        self.hold_path(entry.path.len() + xattrs)
    }

    fn hold_path(&mut self, bytes: usize) -> Result<(), UnpackError> {
        self.held_bytes += bytes as u64 + HELD_EACH_BYTES;
        if self.held_bytes > MAX_HELD_BYTES { Err(UnpackError::TooMuchToHold) } else { Ok(()) }
    }

    /// Makes sure that every parent of `path` is a directory; returns those that are new.
    fn parents(&mut self, path: &[u8]) -> Result<Vec<usize>, &'static str> {
        let depth = memchr::memchr_iter(b'/', path).count() as u64 + 1;
        if depth > MAX_DEPTH {
            return Err("which lies too deep");
        }
        self.survey.depth = self.survey.depth.max(depth);
        let mut missing = Vec::new();
        let parent = split(path).0;
        if parent.is_empty() || parent == self.parent {
            return Ok(missing);
        }
        // One hasher goes along the path, so that a long one costs its length and not the square of it.
        let mut hasher = Sha256::new();
        let mut hashed = 0;
        for end in memchr::memchr_iter(b'/', path) {
            hasher.update(&path[hashed..end]);
            hashed = end;
            match self.nodes.entry(half(hasher.clone())) {
                hash_map::Entry::Vacant(free) => {
                    free.insert(Node::Missing);
                    self.survey.inodes += 1;
                    missing.push(end);
                }
                hash_map::Entry::Occupied(known) => match known.get() {
                    Node::Directory | Node::Missing => {}
                    _ => return Err("which lies below something that is no directory"),
                },
            }
        }
        self.parent.clear();
        self.parent.extend_from_slice(parent);
        Ok(missing)
    }
}

fn half(hasher: Sha256) -> PathHash {
    let mut half = PathHash::default();
    let whole = hasher.finalize();
    half.copy_from_slice(&whole[..size_of::<PathHash>()]);
    half
}

fn hash_of(path: &[u8]) -> PathHash {
    half(Sha256::new_with_prefix(path))
}

/// The highest number means "leave it as it is" to the kernel: such a file would stay ours, with its set-id bits.
fn owner(id: u64) -> Result<u32, &'static str> {
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or("which has an owner that no system knows")
}

/// The one form of a name: without `./` at the beginning and the slash at the end of a directory; the root is empty.
fn plain(name: &[u8], kind: Kind) -> Result<&[u8], &'static str> {
    if name.starts_with(b"/") {
        return Err("an absolute name");
    }
    let mut path = if name == b"." { b"" } else { name.strip_prefix(b"./").unwrap_or(name) };
    if kind == Kind::Directory {
        path = path.strip_suffix(b"/").unwrap_or(path);
    }
    if path.is_empty() {
        return Ok(path);
    }
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => return Err("a name with an empty part"),
            b".." => return Err("a name that leads upwards"),
            _ if part.contains(&0) => return Err("a name with a NUL in it"),
            _ if part.len() > MAX_NAME_BYTES => return Err("a name that is too long"),
            _ => {}
        }
    }
    Ok(path)
}

/// A path as parent and name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b'/', path) {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
