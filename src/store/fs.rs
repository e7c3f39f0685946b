//! A directory: local, or a mounted NAS. What could go wrong: a power cut between a rename and the disk, and half a
//! file under a final name; so everything is written beside, synced, checked, renamed, and the directory synced too.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{Advice, CWD, RenameFlags};
use rustix::io::Errno;

use super::kit::{Kit, in_path};
use super::{Access, Object, Put, Store, StoreError, TEMP, is_leftover, temp_name};
use crate::cancel::Cancel;
use crate::config::Section;
use crate::mounts;

pub struct FsStore {
    name: String,
    root: PathBuf,
    require_mount: bool,
    marker: bool,
    by_host: bool,
    exe: PathBuf,
}

pub(super) fn read(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    let root = s.required_path("path", "Root directory of the store");
    let require_mount =
        s.flag("require_mount", false, "Refuse the store unless its path lies on a mounted disk of its own");
    // One spelling, so that two stores on one root are seen.
    let root: PathBuf = root.components().collect();
    Box::new(FsStore {
        name: name.to_owned(),
        root,
        require_mount,
        marker: true,
        by_host: false,
        exe: access.exe.clone(),
    })
}

impl FsStore {
    /// A directory that was named on the command line: used as it is, without marker.
    pub fn unmarked(root: &Path, exe: &Path) -> Self {
        Self {
            name: root.display().to_string(),
            root: root.to_owned(),
            require_mount: false,
            marker: false,
            by_host: false,
            exe: exe.to_owned(),
        }
    }

    /// The same, shared by machines that each have a directory below `hosts/`.
    pub fn shared(self) -> Self {
        Self { by_host: true, ..self }
    }

    fn error(&self, action: &'static str, object: &str, source: io::Error) -> StoreError {
        if source.kind() == io::ErrorKind::NotFound && action != "write" {
            return StoreError::NotFound { store: self.name.clone(), object: object.to_owned() };
        }
        StoreError::Io { store: self.name.clone(), action, object: object.to_owned(), source }
    }

    fn path(&self, object: &str) -> Result<PathBuf, StoreError> {
        let climbs = object.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if climbs || object.contains('\0') {
            return Err(self.error("use", object, io::Error::other("not a path inside the store")));
        }
        Ok(self.root.join(object))
    }

    /// Makes the directory of an object, each new one durably entered in its parent.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() || dir == self.root {
            return Ok(());
        }
        let parent = dir.parent().unwrap_or(&self.root);
        self.make_dirs(parent)?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => {
                other?;
                sync_dir(parent)
            }
        }
    }

    fn check_mount(&self, path: &Path, cancel: &Cancel) -> Result<(), StoreError> {
        mounts::check(&self.exe, path, self.require_mount, cancel).map_err(|source| match source {
            mounts::MountError::Interrupted(i) => StoreError::Interrupted(i),
            source => StoreError::Mount { store: self.name.clone(), source },
        })
    }

    fn make_root(&self) -> io::Result<()> {
        if self.root.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        self.root.parent().map_or(Ok(()), sync_dir)
    }

    /// Every entry of a directory whose name is text.
    fn each(
        &self,
        dir: &str,
        cancel: &Cancel,
        mut take: impl FnMut(String, std::fs::Metadata),
    ) -> Result<(), StoreError> {
        let path = if dir.is_empty() { self.root.clone() } else { self.path(dir)? };
        let fail = |e| self.error("list", dir, e);
        let entries = match std::fs::read_dir(&path) {
            // The root itself must be there; a tier that was never written to need not.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.is_empty() && self.root.is_dir() => {
                return Ok(());
            }
            other => other.map_err(fail)?,
        };
        for entry in entries {
            cancel.check()?;
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => take(name, other.map_err(fail)?),
            }
        }
        Ok(())
    }

    fn write_temp(
        &self,
        temp: &Path,
        data: &mut dyn Read,
        bytes: u64,
        object: &str,
        cancel: &Cancel,
        moved: &dyn Fn(u64),
    ) -> Result<(), StoreError> {
        let fail = |e| self.error("write", object, e);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(temp).map_err(fail)?;
        let mut buffer = vec![0; 1 << 20];
        let mut written = 0u64;
        loop {
            cancel.check()?;
            let n = match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.error("take the data of", object, e)),
            };
            file.write_all(&buffer[..n]).map_err(fail)?;
            written += n as u64;
            moved(n as u64);
        }
        file.sync_all().map_err(fail)?;
        let found = file.metadata().map_err(fail)?.len();
        if written != bytes || found != bytes {
            return Err(StoreError::Length {
                store: self.name.clone(),
                object: object.to_owned(),
                wanted: bytes,
                found,
            });
        }
        // From here on a read comes from the disk, not from what we just wrote to memory.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        Ok(())
    }
}

/// Renames so that an existing file is never replaced.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without that flag (NFS, CIFS): names are unique and we hold the lock, so looking is enough.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            std::fs::rename(from, to)
        }
        other => Ok(other?),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Store for FsStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn place(&self) -> String {
        // As it is spelled, because it is asked while the configuration is read: a mount that hangs must not be touched.
        let mut spelled = PathBuf::new();
        for part in self.root.components() {
            match part {
                Component::CurDir => {}
                Component::ParentDir => {
                    spelled.pop();
                }
                part => spelled.push(part),
            }
        }
        spelled.display().to_string()
    }

    fn kit(&self) -> Option<Kit> {
        let root = self.root.to_str()?;
        let mounted = "a disk of its own or another machine's: it must be mounted there first".to_owned();
        // As the kernel knows it: no disk has to answer for that.
        let mount = mounts::Table::read().ok().and_then(|table| table.disk(&self.root).cloned());
        Some(Kit {
            url: format!("file://{}", in_path(root)),
            facts: vec![("directory", root.to_owned())],
            notes: (self.require_mount && mount.is_none()).then_some(mounted).into_iter().collect(),
            mount,
            ..Kit::default()
        })
    }

    fn local_root(&self) -> Option<&Path> {
        Some(&self.root)
    }

    fn by_host(&self) -> bool {
        self.by_host
    }

    fn reach(&self, cancel: &Cancel) -> Result<(), StoreError> {
        self.check_mount(&self.root, cancel)
    }

    fn create_root(&self, cancel: &Cancel) -> Result<(), StoreError> {
        // The disk of the nearest directory that exists is the disk that the root will be on.
        let above = self.root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        self.check_mount(above, cancel)?;
        self.make_root().map_err(|e| self.error("write", "its root directory", e))
    }

    fn needs_marker(&self) -> bool {
        self.marker
    }

    fn list(&self, dir: &str, cancel: &Cancel) -> Result<Vec<Object>, StoreError> {
        let mut objects = Vec::new();
        self.each(dir, cancel, |name, meta| {
            if meta.is_file() && !name.starts_with(TEMP) {
                objects.push(Object { name, bytes: meta.len() });
            }
        })?;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    fn dirs(&self, dir: &str, cancel: &Cancel) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        self.each(dir, cancel, |name, meta| {
            if meta.is_dir() {
                names.push(name);
            }
        })?;
        names.sort();
        Ok(names)
    }

    fn open(&self, object: &str, _: &Cancel) -> Result<Box<dyn Read + Send>, StoreError> {
        let file = File::open(self.path(object)?).map_err(|e| self.error("read", object, e))?;
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        Ok(Box::new(file))
    }

    fn put(
        &self,
        object: &str,
        data: &mut dyn Read,
        bytes: u64,
        how: Put,
        cancel: &Cancel,
        moved: &dyn Fn(u64),
    ) -> Result<(), StoreError> {
        let path = self.path(object)?;
        let fail = |e| self.error("write", object, e);
        let (Some(dir), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(fail(io::Error::other("not a file name")));
        };
        self.make_dirs(dir).map_err(fail)?;
        let temp = dir.join(temp_name(None, &file.to_string_lossy()));
        let written = self.write_temp(&temp, data, bytes, object, cancel, moved).and_then(|()| {
            let renamed = match how {
                Put::New => rename_new(&temp, &path),
                Put::Replace => std::fs::rename(&temp, &path),
            };
            renamed.map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => {
                    StoreError::Exists { store: self.name.clone(), object: object.to_owned() }
                }
                _ => fail(e),
            })
        });
        if written.is_err() {
            let _ = std::fs::remove_file(&temp);
        }
        written?;
        sync_dir(dir).map_err(fail)
    }

    fn modified(&self, object: &str, _: &Cancel) -> Result<Option<Timestamp>, StoreError> {
        let time = std::fs::metadata(self.path(object)?).and_then(|m| m.modified());
        let time = time.map_err(|e| self.error("look at", object, e))?;
        Ok(Timestamp::try_from(time).ok())
    }

    fn delete(&self, object: &str) -> Result<(), StoreError> {
        let path = self.path(object)?;
        let fail = |e| self.error("delete", object, e);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(fail(e)),
            Ok(()) => path.parent().map_or(Ok(()), sync_dir).map_err(fail),
        }
    }

    fn sweep(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let path = if dir.is_empty() { self.root.clone() } else { self.path(dir)? };
        let fail = |e| self.error("clear", dir, e);
        let mut removed = Vec::new();
        let entries = match std::fs::read_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
            other => other.map_err(fail)?,
        };
        for entry in entries {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_leftover(&name) {
                std::fs::remove_file(entry.path()).map_err(fail)?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        let fail = |e: Errno| self.error("look at the free space of", "/", e.into());
        let stat = rustix::fs::statvfs(&self.root).map_err(fail)?;
        // Some network mounts do not know their size and say 0: that is no full disk.
        Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store(dir: &Path) -> FsStore {
        FsStore::unmarked(dir, Path::new("/nonexistent"))
    }

    fn put(s: &FsStore, object: &str, data: &[u8], claimed: u64, how: Put) -> Result<(), StoreError> {
        s.put(object, &mut &data[..], claimed, how, &Cancel::default(), &|_| ())
    }

    #[test]
    fn an_object_is_private_whole_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(dir.path());
        put(&s, "daily/a", b"one", 3, Put::New).unwrap();
        assert!(matches!(put(&s, "daily/a", b"two", 3, Put::New), Err(StoreError::Exists { .. })));
        let path = dir.path().join("daily/a");
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        put(&s, "daily/a", b"three", 5, Put::Replace).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(s.list("daily", &Cancel::default()).unwrap(), [Object { name: "a".into(), bytes: 5 }]);
    }

    #[test]
    fn a_short_or_interrupted_object_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(dir.path());
        assert!(matches!(put(&s, "x", b"short", 6, Put::New), Err(StoreError::Length { .. })));
        let cancel = Cancel::default();
        cancel.request(crate::exit::Signal::Interrupt);
        let stopped = s.put("x", &mut &b"data"[..], 4, Put::New, &cancel, &|_| ());
        assert!(matches!(stopped, Err(StoreError::Interrupted(_))));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_never_climb_and_a_missing_root_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let s = store(&dir.path().join("root"));
        for bad in ["../x", "/etc/passwd", "a//b", "a/./b", ""] {
            assert!(s.path(bad).is_err(), "{bad:?}");
        }
        assert!(s.list("daily", &Cancel::default()).is_err(), "an unmounted store must not look empty");
        assert!(s.open("daily/x", &Cancel::default()).err().is_some_and(|e| e.is_not_found()));
    }

    #[test]
    fn a_place_is_spelled_without_a_look_at_it() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        let link = dir.path().join("link");
        assert_eq!(store(&link.join("./a/../b/")).place(), link.join("b").display().to_string());
        assert_eq!(store(Path::new("/../x")).place(), "/x");
    }
}
