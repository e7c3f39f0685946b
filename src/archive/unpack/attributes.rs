//! Owner, mode, time and extended attributes of an entry that was made. What could go wrong: rights that nobody had
//! before. So a file that cannot be given to its owner loses its set-id bits, and one whose access list cannot be set
//! gets no wider mode than the list allowed.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags};
use rustix::io::Errno;

use super::{UnpackError, Unpacked, cut};
use crate::format::tarwalk::Mtime;

const SET_ID: u32 = 0o6000;
const ACCESS_LIST: &[u8] = b"system.posix_acl_access";
const LAYER_MARKS: &[u8] = b"trusted.overlay.";
/// An attribute that is refused for lack of room while this much is free does not fit into the file system's own form,
/// bytes.
const ROOM_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Attributes {
    pub uid: u32,
    pub gid: u32,
    /// With set-id and sticky bits.
    pub mode: u32,
    /// The mode where the access list cannot be set.
    pub mode_without_acl: u32,
    pub mtime: Mtime,
    pub xattrs: Box<[(Vec<u8>, Vec<u8>)]>,
}

/// What gets the attributes.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Open(BorrowedFd<'a>),
    /// A symlink, which is never followed.
    Beside {
        parent: BorrowedFd<'a>,
        name: &'a [u8],
    },
}

impl Attributes {
    /// Sets all; what this place or this user does not allow is noted in `out`, all else is an error.
    pub fn set(&self, target: Target<'_>, path: &[u8], out: &mut Unpacked) -> Result<(), UnpackError> {
        let owned = tolerated(chown(target, self.uid, self.gid), path)?;
        if let Some(e) = owned {
            out.owners.add(&cut(path), Some(&format!("{}:{}, {e}", self.uid, self.gid)));
        }
        // Behind the owner, whose change takes capabilities away, and before the mode, which may forbid writing.
        let mut mode = self.mode;
        for (stored, value) in &self.xattrs {
            let name = attribute_name(stored);
            // Marks of a layered file system: nobody's data, and in a layer they would bring other files back.
            if name.starts_with(LAYER_MARKS) {
                continue;
            }
            let Some(e) = tolerated_xattr(target, &name, value, path)? else { continue };
            let detail = format!("{}, {e}", super::shown(&name));
            out.xattrs.add(&cut(path), Some(&detail));
            if name == ACCESS_LIST {
                mode = self.mode_without_acl;
            }
        }
        if let Target::Open(fd) = target {
            if owned.is_some() {
                mode &= !SET_ID;
            }
            set_mode(fd, mode, self.mode, path, out)?;
        }
        if let Some(e) = tolerated(set_time(target, self.mtime), path)? {
            out.times.add(&cut(path), Some(&e.to_string()));
        }
        Ok(())
    }
}

/// A directory that the archive only implies: for everybody to enter, and the super-user's.
pub(super) fn set_default(fd: BorrowedFd<'_>, path: &[u8], out: &mut Unpacked) -> Result<(), UnpackError> {
    if let Some(e) = tolerated(chown(Target::Open(fd), 0, 0), path)? {
        out.owners.add(&cut(path), Some(&format!("0:0, {e}")));
    }
    set_mode(fd, 0o755, 0o755, path, out)
}

/// Takes the access lists from a directory, so that what is made in it has only what its archive says.
pub(super) fn disinherit(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    for name in ["system.posix_acl_default", "system.posix_acl_access"] {
        match rustix::fs::fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The mode that gives no more than an access list did. The group's bits of a mode with a list are the list's mask, so
/// without the list they would give the group what was meant for somebody else.
pub(super) fn acl_fallback(mode: u32, xattrs: &[(Vec<u8>, Vec<u8>)]) -> u32 {
    const OWNING_GROUP: [u8; 2] = 4u16.to_le_bytes();
    let Some((_, list)) = xattrs.iter().find(|(name, _)| name == ACCESS_LIST) else { return mode };
    let entries = list.get(4..).unwrap_or_default().chunks_exact(8);
    let group = entries
        .filter(|e| e[..2] == OWNING_GROUP)
        .map(|e| u32::from(u16::from_le_bytes([e[2], e[3]])))
        .next()
        .unwrap_or(0);
    mode & (!0o070 | (group & 7) << 3)
}

/// GNU tar writes `=` and `%` of an attribute's name as `%3D` and `%25`, because `=` ends a keyword; so do we.
fn attribute_name(stored: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(stored.len());
    let mut rest = stored;
    while let [first, behind @ ..] = rest {
        let (byte, used) = match rest.get(..3) {
            Some(b"%3D") => (b'=', 3),
            Some(b"%25") => (b'%', 3),
            _ => (*first, 1),
        };
        name.push(byte);
        rest = &behind[used - 1..];
    }
    name
}

fn chown(target: Target<'_>, uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    match target {
        Target::Open(fd) => rustix::fs::fchown(fd, uid, gid),
        Target::Beside { parent, name } => {
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

fn set_mode(
    fd: BorrowedFd<'_>,
    mode: u32,
    wanted: u32,
    path: &[u8],
    out: &mut Unpacked,
) -> Result<(), UnpackError> {
    let fail = |e| UnpackError::write(path, e);
    let refused = tolerated(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)), path)?;
    // A set-group bit may be left out in silence.
    let left_out =
        wanted & SET_ID != 0 && rustix::fs::fstat(fd).map_err(fail)?.st_mode & SET_ID != wanted & SET_ID;
    if let Some(e) = refused {
        out.modes.add(&cut(path), Some(&format!("{wanted:04o}, {e}")));
    } else if left_out {
        out.modes.add(&cut(path), Some(&format!("{wanted:04o}, without its set-id bits")));
    } else if mode != wanted {
        out.modes.add(&cut(path), Some(&format!("{wanted:04o}, narrowed to {mode:04o}")));
    }
    Ok(())
}

fn set_time(target: Target<'_>, mtime: Mtime) -> rustix::io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() },
    };
    match target {
        Target::Open(fd) => rustix::fs::futimens(fd, &times),
        Target::Beside { parent, name } => {
            rustix::fs::utimensat(parent, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
}

fn set_xattr(target: Target<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    match target {
        Target::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        // The kernel has no call for a link beside a handle; this path leads through the handle all the same.
        Target::Beside { parent, name: link } => {
            let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), link].concat();
            match rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()) {
                // No /proc here.
                Err(Errno::NOENT) => Err(Errno::OPNOTSUPP),
                other => other,
            }
        }
    }
}

fn tolerated_xattr(
    target: Target<'_>,
    name: &[u8],
    value: &[u8],
    path: &[u8],
) -> Result<Option<Errno>, UnpackError> {
    let result = set_xattr(target, name, value);
    let fd = match target {
        Target::Open(fd) => fd,
        Target::Beside { parent, .. } => parent,
    };
    match result {
        Err(e @ Errno::NOSPC) if has_room(fd) => Ok(Some(e)),
        result => tolerated(result, path),
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstatvfs(fd).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) > ROOM_BYTES)
}

/// Not allowed here, or not known here: a warning. Anything else, a full or failing disk above all, is an error.
fn tolerated(result: rustix::io::Result<()>, path: &[u8]) -> Result<Option<Errno>, UnpackError> {
    match result {
        Ok(()) => Ok(None),
        Err(
            e @ (Errno::PERM
            | Errno::ACCESS
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::INVAL
            | Errno::RANGE
            | Errno::TOOBIG),
        ) => Ok(Some(e)),
        Err(e) => Err(UnpackError::write(path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_the_name_of_an_attribute_are_taken_back() {
        for (stored, name) in [
            (&b"user.a"[..], &b"user.a"[..]),
            (b"user.a%3Db", b"user.a=b"),
            (b"user.%253D", b"user.%3D"),
            (b"user.%", b"user.%"),
            (b"user.%3", b"user.%3"),
            (b"%25", b"%"),
        ] {
            assert_eq!(attribute_name(stored), name);
        }
    }

    #[test]
    fn without_its_list_a_file_is_no_more_open_than_with_it() {
        let entry = |tag: u16, perm: u16| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &[0xff; 4]].concat();
        let list =
            [2u32.to_le_bytes().to_vec(), entry(1, 6), entry(2, 7), entry(4, 4), entry(0x10, 7)].concat();
        assert_eq!(acl_fallback(0o2674, &[(ACCESS_LIST.to_vec(), list)]), 0o2644);
        assert_eq!(acl_fallback(0o674, &[(ACCESS_LIST.to_vec(), b"x".to_vec())]), 0o604);
        assert_eq!(acl_fallback(0o674, &[]), 0o674);
    }
}
