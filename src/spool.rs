//! Archives that a store still lacks wait here until every store has them. What could go wrong: a waiting archive that
//! is dropped to make room, or one that nobody knows of; so a full spool refuses the new one, and an entry tells what is
//! missing where. An entry without that note was never finished and is swept.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::pack::Packed;
use crate::delivery::Parcel;
use crate::hint::Hint;
use crate::id::BackupName;
use crate::manifest::{Encryption, Manifest};
use crate::staging::{StagingError, make_private};

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

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// When it was packed, RFC 3339, UTC.
    since: String,
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

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of all archives that wait.
    pub fn bytes(&self) -> Result<u64, SpoolError> {
        let mut sum = 0;
        for dir in self.dirs()? {
            for file in entries_of(&dir)? {
                sum += file.metadata().map_or(0, |m| m.len());
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
        let with_note = |dir: &PathBuf| dir.join(NOTE).exists();
        Ok(self.dirs()?.into_iter().filter(with_note).map(Entry::read).collect())
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
            if !dir.join(NOTE).exists() {
                std::fs::remove_dir_all(&dir).map_err(|e| failed("remove", &dir, e))?;
                removed.push(dir.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
        }
        Ok(removed)
    }

    /// The directories of the entries, whole or not, oldest first. Whatever else lies here is not ours.
    fn dirs(&self) -> Result<Vec<PathBuf>, SpoolError> {
        let ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str());
            path.is_dir() && name.is_some_and(|n| n.parse::<BackupName>().is_ok())
        };
        let mut dirs: Vec<PathBuf> = entries_of(&self.dir)?.into_iter().filter(ours).collect();
        dirs.sort();
        Ok(dirs)
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

    /// Makes what was packed an entry: from here on it survives our death.
    pub fn enter(
        mut self,
        manifest: &Manifest,
        parcels: &[&Parcel],
        pending: Vec<Pending>,
    ) -> Result<Entry, SpoolError> {
        let waiting = |p: &&Parcel| Waiting {
            bytes: p.packed.bytes,
            sha256: p.packed.sha256.clone(),
            encryption: p.encryption.clone(),
        };
        let archives = parcels.iter().map(waiting).collect();
        let since = manifest.timestamp.clone();
        let note = Note { since, manifest: manifest.clone(), archives, pending };
        for parcel in parcels {
            let path = &parcel.packed.path;
            File::open(path).and_then(|f| f.sync_all()).map_err(|e| failed("sync", path, e))?;
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
        let mut file = tempfile::NamedTempFile::new_in(&self.dir).map_err(fail)?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(&path).map_err(|e| fail(e.error))?;
        sync_dir(&self.dir).map_err(fail)
    }

    pub fn manifest(&self) -> &Manifest {
        &self.note.manifest
    }

    pub fn since(&self) -> &str {
        &self.note.since
    }

    pub fn pending(&self) -> &[Pending] {
        &self.note.pending
    }

    /// The archive, plain or sealed, as it waits here.
    pub fn parcel(&self, sealed: bool) -> Option<Parcel> {
        let waiting = self.note.archives.iter().find(|w| w.encryption.is_sealed() == sealed)?;
        let path = self.dir.join(self.note.manifest.backup_name.archive_as(sealed));
        let packed = Packed { path, bytes: waiting.bytes, sha256: waiting.sha256.clone() };
        Some(Parcel { packed, encryption: waiting.encryption.clone() })
    }

    /// A store has it. Archives that no store waits for any more go; after the last store the whole entry.
    pub fn delivered(&mut self, store: &str) -> Result<(), SpoolError> {
        self.note.pending.retain(|p| p.store != store);
        if self.note.pending.is_empty() {
            return self.remove();
        }
        self.write()?;
        for sealed in [false, true] {
            if !self.note.pending.iter().any(|p| p.sealed == sealed) {
                let path = self.dir.join(self.note.manifest.backup_name.archive_as(sealed));
                remove_file(&path)?;
            }
        }
        Ok(())
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

fn entries_of(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let fail = |e| failed("list", dir, e);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    entries.map(|e| e.map(|e| e.path()).map_err(fail)).collect()
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
        Pending { store: store.into(), dir: "daily".into(), sealed, error: None }
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
        let slot = spool.begin(&name).unwrap();
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
}
