//! A small file that stands under its name whole or not at all, and is on the disk then. What could go wrong: a file cut by
//! a kill that is read as if it were all; so it is written beside and takes the name in one step. The name beside is always
//! the same, so that the next one clears away what a kill left.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

/// Writes a file that only its owner may read, in the place of whatever has the name. A link there is replaced, not
/// followed.
pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    write_as(path, text, 0o600)
}

/// The same, with another mode.
pub fn write_as(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    take_name(&prepare(path, text, mode)?, path, RenameFlags::empty())
}

/// The same of a file that is new: `AlreadyExists` where something has the name.
pub fn create(path: &Path, text: &[u8]) -> io::Result<()> {
    take_name(&prepare(path, text, 0o600)?, path, RenameFlags::NOREPLACE)
}

fn take_name(temp: &Path, path: &Path, how: RenameFlags) -> io::Result<()> {
    let named = rustix::fs::renameat_with(CWD, temp, CWD, path, how);
    if named.is_err() {
        let _ = std::fs::remove_file(temp);
    }
    named?;
    sync_parent(path)
}

fn prepare(path: &Path, text: &[u8], mode: u32) -> io::Result<PathBuf> {
    let temp = beside(path);
    match std::fs::remove_file(&temp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // New, so that a link which somebody lays there meanwhile is not followed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp)?;
    let written = file
        .write_all(text)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    written.map(|()| temp)
}

/// `.NAME.tars-backup-new`
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tars-backup-new");
    path.with_file_name(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<OsString> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect()
    }

    #[test]
    fn it_is_private_takes_the_place_of_what_was_there_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("note"), dir.path().join("other"));
        std::fs::write(&other, "untouched").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        std::os::unix::fs::symlink(&other, beside(&path)).unwrap();
        for text in ["first", "second"] {
            write(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let meta = path.symlink_metadata().unwrap();
            assert!(meta.is_file());
            assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        }
        write_as(&path, b"unit", 0o644).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[test]
    fn what_a_kill_left_is_gone_with_the_next_one_and_a_new_one_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        std::fs::write(beside(&path), "a half of something longer").unwrap();
        create(&path, b"new").unwrap();
        assert_eq!(create(&path, b"newer").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(names(dir.path()), ["note"]);
    }

    #[test]
    fn one_that_cannot_take_its_name_is_not_left_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        std::fs::create_dir(&path).unwrap();
        write(&path, b"text").unwrap_err();
        assert_eq!(names(dir.path()), ["note"]);
    }
}
