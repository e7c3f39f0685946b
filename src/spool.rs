//! Archives that a store still lacks wait here until every store has them. What could go wrong: a waiting archive that
//! is dropped to make room, or one that nobody knows of; so a full spool refuses the new one, and an entry tells what is
//! missing where. An entry without that note was never finished and is swept; what cannot be looked at is not without.

use std::fs::{DirBuilder, DirEntry, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::pack::Packed;
use crate::delivery::Parcel;
use crate::hint::Hint;
use crate::id::BackupName;
use crate::manifest::{Encryption, Manifest};
use crate::staging::{StagingError, make_private};
use crate::whole_file;

const NOTE: &str = "entry.json";

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error(transparent)]
    Dir(#[from] StagingError),
    #[error("cannot {action} {path} in the spool")]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the note {path} in the spool is not readable")]
    Note { path: PathBuf },
}

impl Hint for SpoolError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Dir(e) => e.hint(),
            Self::Note { path } => Some(format!(
                "the archive beside it is whole or not, look: {}",
                path.parent().unwrap_or(path).display()
            )),
            Self::Io { .. } => None,
        }
    }
}

/// A store that still lacks the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub store: String,
    /// Directory in that store.
    pub dir: String,
    pub sealed: bool,
    /// Whether something was sent there: then what has the name there is ours.
    #[serde(default)]
    pub begun: bool,
    /// Why it does not have it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An archive as a file of the spool.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    bytes: u64,
    sha256: String,
    #[serde(default)]
    encryption: Encryption,
}

impl Waiting {
    fn of(parcel: &Parcel) -> Self {
        Self {
            bytes: parcel.packed.bytes,
            sha256: parcel.packed.sha256.clone(),
            encryption: parcel.encryption.clone(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    manifest: Manifest,
    archives: Vec<Waiting>,
    pending: Vec<Pending>,
}

pub struct Spool {
    dir: PathBuf,
    limit: u64,
}

/// A backup that waits.
pub struct Entry {
    dir: PathBuf,
    note: Note,
}

impl Spool {
    /// `limit`: bytes that it may hold.
    pub fn new(dir: &Path, limit: u64) -> Self {
        Self { dir: dir.to_owned(), limit }
    }

    /// Bytes of all archives that wait.
    pub fn bytes(&self) -> Result<u64, SpoolError> {
        let mut sum = 0;
        for dir in self.dirs()? {
            for file in entries_of(&dir)? {
                sum += match file.metadata() {
                    Ok(found) => found.len(),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
                    Err(e) => return Err(failed("look at", &file.path(), e)),
                };
            }
        }
        Ok(sum)
    }

    /// Whether `bytes` more may come in.
    pub fn has_room(&self, bytes: u64) -> Result<bool, SpoolError> {
        Ok(self.bytes()?.saturating_add(bytes) <= self.limit)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A fresh directory for the archive of a run.
    pub fn begin(&self, name: &BackupName) -> Result<Slot, SpoolError> {
        make_private(&self.dir)?;
        let dir = self.dir.join(name.as_str());
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| failed("make", &dir, e))?;
        Ok(Slot { dir, entered: false })
    }

    /// All that waits, oldest first. A note that does not read is an error of its own: the archive is not lost.
    pub fn entries(&self) -> Result<Vec<Result<Entry, SpoolError>>, SpoolError> {
        let entry = |dir: PathBuf| match has_note(&dir) {
            Ok(true) => Some(Entry::read(dir)),
            Ok(false) => None,
            Err(e) => Some(Err(e)),
        };
        Ok(self.dirs()?.into_iter().filter_map(entry).collect())
    }

    /// Names that are in use here.
    pub fn names(&self) -> Result<Vec<BackupName>, SpoolError> {
        let name = |dir: PathBuf| dir.file_name()?.to_str()?.parse().ok();
        Ok(self.dirs()?.into_iter().filter_map(name).collect())
    }

    /// Removes what runs left that were killed while they packed; returns the names. Only for the holder of the lock.
    pub fn sweep(&self) -> Result<Vec<String>, SpoolError> {
        let mut removed = Vec::new();
        for dir in self.dirs()? {
            if !has_note(&dir)? {
                std::fs::remove_dir_all(&dir).map_err(|e| failed("remove", &dir, e))?;
                removed.push(dir.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        Ok(removed)
    }

    /// The directories of the entries, whole or not, oldest first. Whatever else lies here is not ours.
    fn dirs(&self) -> Result<Vec<PathBuf>, SpoolError> {
        let mut dirs = Vec::new();
        for entry in entries_of(&self.dir)? {
            let ours = entry.file_name().to_str().is_some_and(|n| n.parse::<BackupName>().is_ok());
            if ours && entry.file_type().map_err(|e| failed("look at", &entry.path(), e))?.is_dir() {
                dirs.push(entry.path());
            }
        }
        dirs.sort();
        Ok(dirs)
    }
}

/// Whether a directory is an entry. Only where the note is not there is it none: one that cannot be looked at may be the
/// last trace of a backup.
fn has_note(dir: &Path) -> Result<bool, SpoolError> {
    let path = dir.join(NOTE);
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("look at", &path, e)),
    }
}

/// Where a run packs. It goes when it is dropped, unless it became an entry.
pub struct Slot {
    dir: PathBuf,
    entered: bool,
}

impl Slot {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes what was packed an entry: from here on it survives our death. Where that fails it stays until the slot is
    /// dropped.
    pub fn enter(
        &mut self,
        manifest: &Manifest,
        parcels: &[&Parcel],
        pending: Vec<Pending>,
    ) -> Result<Entry, SpoolError> {
        let archives = parcels.iter().map(|p| Waiting::of(p)).collect();
        let note = Note { manifest: manifest.clone(), archives, pending };
        for parcel in parcels {
            sync_file(&parcel.packed.path)?;
        }
        let entry = Entry { dir: self.dir.clone(), note };
        entry.write()?;
        let parent = entry.dir.parent().unwrap_or(&entry.dir);
        sync_dir(parent).map_err(|e| failed("sync", parent, e))?;
        self.entered = true;
        Ok(entry)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.entered {
            // What cannot be removed now is swept by the next run.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

impl Entry {
    fn read(dir: PathBuf) -> Result<Self, SpoolError> {
        let path = dir.join(NOTE);
        let text = std::fs::read(&path).map_err(|e| failed("read", &path, e))?;
        let note: Note =
            serde_json::from_slice(&text).map_err(|_| SpoolError::Note { path: path.clone() })?;
        let named = dir.file_name().and_then(|n| n.to_str()) == Some(note.manifest.backup_name.as_str());
        if named { Ok(Self { dir, note }) } else { Err(SpoolError::Note { path }) }
    }

    fn write(&self) -> Result<(), SpoolError> {
        let path = self.dir.join(NOTE);
        let fail = |e| failed("write", &path, e);
        let text = serde_json::to_vec_pretty(&self.note).map_err(|e| fail(e.into()))?;
        whole_file::write(&path, &text).map_err(fail)
    }

    pub fn manifest(&self) -> &Manifest {
        &self.note.manifest
    }

    pub fn pending(&self) -> &[Pending] {
        &self.note.pending
    }

    /// Where the archive lies in that form, or would.
    pub fn path(&self, sealed: bool) -> PathBuf {
        self.dir.join(self.note.manifest.backup_name.archive_as(sealed))
    }

    /// The archive, plain or sealed, as it waits here.
    pub fn parcel(&self, sealed: bool) -> Option<Parcel> {
        let waiting = self.note.archives.iter().find(|w| w.encryption.is_sealed() == sealed)?;
        let path = self.path(sealed);
        let packed = Packed { path, bytes: waiting.bytes, sha256: waiting.sha256.clone() };
        Some(Parcel { packed, encryption: waiting.encryption.clone() })
    }

    /// A store has it. Archives that no store waits for any more go; after the last store the whole entry.
    pub fn delivered(&mut self, store: &str) -> Result<(), SpoolError> {
        self.note.pending.retain(|p| p.store != store);
        if self.note.pending.is_empty() {
            return self.remove();
        }
        self.settle()
    }

    /// Writes the note, and then removes the archives that no store waits for any more.
    fn settle(&mut self) -> Result<(), SpoolError> {
        let Note { archives, pending, .. } = &mut self.note;
        archives.retain(|w| pending.iter().any(|p| p.sealed == w.encryption.is_sealed()));
        self.write()?;
        for sealed in [false, true] {
            if !self.note.pending.iter().any(|p| p.sealed == sealed) {
                remove_file(&self.path(sealed))?;
            }
        }
        Ok(())
    }

    /// That store waits for the archive in this form from now on, which lies at its `path`.
    pub fn seal_for(&mut self, store: &str, sealed: &Parcel) -> Result<(), SpoolError> {
        sync_file(&sealed.packed.path)?;
        if self.parcel(true).is_none() {
            self.note.archives.push(Waiting::of(sealed));
        }
        for p in self.note.pending.iter_mut().filter(|p| p.store == store) {
            p.sealed = true;
        }
        self.settle()
    }

    /// Further stores wait for it, none of which does already.
    pub fn also(&mut self, pending: Vec<Pending>) -> Result<(), SpoolError> {
        self.note.pending.extend(pending);
        self.write()
    }

    /// Notes that something is sent to a store, before it is.
    pub fn begun(&mut self, store: &str) -> Result<(), SpoolError> {
        for p in self.note.pending.iter_mut().filter(|p| p.store == store) {
            p.begun = true;
        }
        self.write()
    }

    /// Notes why a store does not have it yet.
    pub fn failed(&mut self, store: &str, error: &str) -> Result<(), SpoolError> {
        for p in self.note.pending.iter_mut().filter(|p| p.store == store) {
            p.error = Some(error.to_owned());
        }
        self.write()
    }

    /// Gives it up: nobody waits for it.
    pub fn remove(&self) -> Result<(), SpoolError> {
        // Without its note it is nothing, whatever else of it could not be removed.
        remove_file(&self.dir.join(NOTE))?;
        std::fs::remove_dir_all(&self.dir).map_err(|e| failed("remove", &self.dir, e))
    }
}

fn remove_file(path: &Path) -> Result<(), SpoolError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

fn sync_file(path: &Path) -> Result<(), SpoolError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed("sync", path, e))
}

fn entries_of(dir: &Path) -> Result<Vec<DirEntry>, SpoolError> {
    let fail = |e| failed("list", dir, e);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    entries.map(|e| e.map_err(fail)).collect()
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> SpoolError {
    SpoolError::Io { action, path: path.to_owned(), source }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;

    fn pending(store: &str, sealed: bool) -> Pending {
        Pending { store: store.into(), dir: "daily".into(), sealed, begun: false, error: None }
    }

    fn packed(dir: &Path, sealed: bool) -> Parcel {
        let path = dir.join(sample().backup_name.archive_as(sealed));
        std::fs::write(&path, "data").unwrap();
        let method = sealed.then(|| "age".to_owned());
        Parcel {
            packed: Packed { path, bytes: 4, sha256: "00".into() },
            encryption: Encryption { method, ..Encryption::default() },
        }
    }

    #[test]
    fn an_entry_goes_when_the_last_store_has_it_and_each_archive_with_its_last_store() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(&dir.path().join("spool"), 1000);
        let name = sample().backup_name;
        let mut slot = spool.begin(&name).unwrap();
        let at = slot.dir().to_owned();
        let (plain, sealed) = (packed(&at, false), packed(&at, true));
        let stores = vec![pending("nas", false), pending("s3", true)];
        slot.enter(&sample(), &[&plain, &sealed], stores).unwrap();
        assert!(spool.begin(&name).is_err(), "a name that is in use is not given again");

        let mut entry = spool.entries().unwrap().swap_remove(0).unwrap();
        assert_eq!(entry.parcel(true).unwrap().packed.path, sealed.packed.path);
        entry.delivered("nas").unwrap();
        assert!(!plain.packed.path.exists() && sealed.packed.path.exists());
        entry.failed("s3", "it is down").unwrap();
        let mut entry = spool.entries().unwrap().swap_remove(0).unwrap();
        assert_eq!(entry.pending()[0].error.as_deref(), Some("it is down"));
        entry.delivered("s3").unwrap();
        assert!(!at.exists() && spool.entries().unwrap().is_empty());
    }

    #[test]
    fn what_was_never_finished_is_swept_and_a_note_that_does_not_read_keeps_its_archive() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1000);
        let half = dir.path().join(sample().backup_name.as_str());
        std::fs::create_dir(&half).unwrap();
        std::fs::write(half.join("x.tar.gz"), "half").unwrap();
        let torn = dir.path().join("tars-backup-20260102_030406");
        std::fs::create_dir(&torn).unwrap();
        packed(&torn, false);
        std::fs::write(torn.join(NOTE), "{").unwrap();
        std::fs::create_dir(dir.path().join("somebody's")).unwrap();
        assert_eq!(spool.sweep().unwrap(), ["tars-backup-20260102_030405"]);
        assert!(!half.exists() && torn.join(sample().backup_name.archive()).exists());
        assert!(matches!(spool.entries().unwrap()[0], Err(SpoolError::Note { .. })));
        assert!(dir.path().join("somebody's").exists());
    }

    #[test]
    fn a_full_spool_says_so_and_a_slot_that_was_not_entered_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 10);
        let slot = spool.begin(&sample().backup_name).unwrap();
        std::fs::write(slot.dir().join("x"), [0; 8]).unwrap();
        assert!(spool.has_room(2).unwrap() && !spool.has_room(3).unwrap());
        drop(slot);
        assert_eq!(spool.bytes().unwrap(), 0);
        assert!(spool.names().unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_looked_at_is_neither_swept_nor_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1000);
        let name = sample().backup_name;
        let mut slot = spool.begin(&name).unwrap();
        let (at, parcel) = (slot.dir().to_owned(), packed(slot.dir(), false));
        slot.enter(&sample(), &[&parcel], vec![pending("nas", false)]).unwrap();
        // A note that the system finds no way to, as on a disk that fails.
        std::fs::remove_file(at.join(NOTE)).unwrap();
        std::os::unix::fs::symlink(NOTE, at.join(NOTE)).unwrap();
        assert!(!spool.sweep().is_ok_and(|removed| !removed.is_empty()));
        assert!(parcel.packed.path.exists(), "the only copy is gone");
        assert!(matches!(spool.entries().unwrap()[0], Err(SpoolError::Io { .. })));
        assert_eq!(spool.names().unwrap(), [name]);
    }

    #[test]
    fn an_entry_that_cannot_be_written_leaves_the_archive_until_the_slot_goes() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1000);
        let mut slot = spool.begin(&sample().backup_name).unwrap();
        let parcel = packed(slot.dir(), false);
        std::fs::create_dir(slot.dir().join(NOTE)).unwrap();
        slot.enter(&sample(), &[&parcel], vec![pending("nas", false)]).map(drop).unwrap_err();
        assert!(parcel.packed.path.exists());
        drop(slot);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_is_sealed_later_takes_the_place_of_the_plain_one_store_by_store() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path(), 1000);
        let mut slot = spool.begin(&sample().backup_name).unwrap();
        let plain = packed(slot.dir(), false);
        let stores = vec![pending("one", false), pending("two", false)];
        let mut entry = slot.enter(&sample(), &[&plain], stores).unwrap();
        let at = slot.dir().to_owned();
        drop(slot);
        let sealed = packed(&at, true);
        assert_eq!(entry.path(true), sealed.packed.path);
        entry.begun("one").unwrap();
        entry.seal_for("one", &sealed).unwrap();
        let mut entry = spool.entries().unwrap().swap_remove(0).unwrap();
        let known: Vec<_> = entry.pending().iter().map(|p| (p.sealed, p.begun)).collect();
        assert_eq!(known, [(true, true), (false, false)]);
        assert!(plain.packed.path.exists() && entry.parcel(true).is_some());
        entry.seal_for("two", &sealed).unwrap();
        assert!(!plain.packed.path.exists() && sealed.packed.path.exists());
    }
}
