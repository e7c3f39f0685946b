//! Getting an archive into a store, in two steps: first the bytes, read back; then, when every store was tried, the
//! manifest, whose presence is the commit. What could go wrong: a backup that is visible and not whole, so nothing is
//! committed that was not read back, and what was not committed is taken away again.

use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::archive::pack::Packed;
use crate::cancel::Cancel;
use crate::id::BackupName;
use crate::manifest::{Manifest, ManifestError, sha256_line};
use crate::progress::Monitor;
use crate::store::{Put, Store, StoreError, object};

/// What proves that a store has a backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Receipt {
    pub store: String,
    pub object: String,
    pub bytes: u64,
    pub sha256: String,
    /// How it was proved: `read-back`.
    pub method: String,
    pub time: String,
    pub duration_ms: u64,
}

/// How deep stored bytes were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// SHA-256 of the stored archive.
    Digest,
    /// Every component read and checked.
    Deep,
}

/// The small object that tells when a stored backup was last found good.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verified {
    pub time: String,
    pub depth: Depth,
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the packed archive")]
    Archive(#[source] io::Error),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl crate::hint::Hint for DeliveryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            _ => None,
        }
    }
}

/// An archive that lies whole in a store, but is not yet a backup.
#[derive(Debug)]
pub struct Uncommitted {
    started: Instant,
    created: Created,
}

/// Objects that one delivery has made. Only these may be taken away again: a name that was in use already belongs to a
/// backup that is not ours to touch.
#[derive(Debug, Default)]
struct Created(Vec<String>);

impl Created {
    fn note(&mut self, object: &str, put: Result<(), StoreError>) -> Result<(), StoreError> {
        // A put that failed half way may have made it; one that was refused has not.
        if !matches!(put, Err(StoreError::Exists { .. })) {
            self.0.push(object.to_owned());
        }
        put
    }

    fn withdraw(&mut self, store: &dyn Store) {
        // Last made, first gone: the commit goes before what it commits. What cannot be removed is invisible all the same.
        while let Some(object) = self.0.pop() {
            let _ = store.delete(&object);
        }
    }
}

impl Uncommitted {
    /// Takes the archive away again.
    pub fn withdraw(mut self, store: &dyn Store) {
        self.created.withdraw(store);
    }
}

/// Stores the archive and its `.sha256`, and reads the archive back. Whatever fails, nothing stays.
pub fn deliver(
    store: &dyn Store,
    dir: &str,
    name: &BackupName,
    packed: &Packed,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Uncommitted, DeliveryError> {
    let started = Instant::now();
    let mut created = Created::default();
    match try_deliver(store, dir, name, packed, &mut created, cancel, monitor) {
        Ok(()) => Ok(Uncommitted { started, created }),
        Err(e) => {
            created.withdraw(store);
            Err(e)
        }
    }
}

fn try_deliver(
    store: &dyn Store,
    dir: &str,
    name: &BackupName,
    packed: &Packed,
    created: &mut Created,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<(), DeliveryError> {
    let moved = |n| monitor.moved(n);
    let archive = object(dir, &name.archive());
    let mut file = File::open(&packed.path).map_err(DeliveryError::Archive)?;
    created.note(&archive, store.put(&archive, &mut file, packed.bytes, Put::New, cancel, &moved))?;
    let line = sha256_line(&packed.sha256, &name.archive());
    let sum = object(dir, &name.sha256_file());
    created.note(&sum, store.put_small(&sum, line.as_bytes(), Put::New))?;
    let (bytes, sha256) = digest_of(store, &archive, cancel, monitor)?;
    if bytes != packed.bytes || sha256 != packed.sha256 {
        return Err(StoreError::ReadBack { store: store.name().to_owned(), object: archive }.into());
    }
    Ok(())
}

/// Makes the delivered archive a backup: writes the sidecar manifest. Where that fails, nothing stays.
pub fn commit(
    store: &dyn Store,
    dir: &str,
    manifest: &Manifest,
    packed: &Packed,
    mut delivered: Uncommitted,
    now: Timestamp,
) -> Result<Receipt, DeliveryError> {
    let name = &manifest.backup_name;
    let sidecar = manifest.to_sidecar(packed.bytes, &packed.sha256)?;
    // Manifest last: its presence is the commit.
    let commit = object(dir, &name.manifest_file());
    if let Err(e) = delivered.created.note(&commit, store.put_small(&commit, &sidecar, Put::New)) {
        delivered.withdraw(store);
        return Err(e.into());
    }
    let time = now.strftime("%FT%TZ").to_string();
    // Only a remark beside the backup: a store that refuses it still has the backup.
    let _ = mark_verified(store, dir, name, Depth::Digest, &packed.sha256, now);
    Ok(Receipt {
        store: store.name().to_owned(),
        object: object(dir, &name.archive()),
        bytes: packed.bytes,
        sha256: packed.sha256.clone(),
        method: "read-back".to_owned(),
        time,
        duration_ms: u64::try_from(delivered.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Notes beside a backup that its stored bytes were found good.
pub fn mark_verified(
    store: &dyn Store,
    dir: &str,
    name: &BackupName,
    depth: Depth,
    sha256: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mark = Verified { time: now.strftime("%FT%TZ").to_string(), depth, sha256: sha256.to_owned() };
    let mut text = serde_json::to_vec(&mark).unwrap_or_default();
    text.push(b'\n');
    store.put_small(&object(dir, &name.verified_file()), &text, Put::Replace)
}

/// Length and SHA-256 of a stored object, as the medium holds it.
pub fn digest_of(
    store: &dyn Store,
    object: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<(u64, String), StoreError> {
    let mut reader = store.open(object, cancel)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0u64;
    loop {
        cancel.check()?;
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex::encode(hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
                monitor.moved(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(StoreError::Io {
                    store: store.name().to_owned(),
                    action: "read",
                    object: object.to_owned(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tests::Quiet;
    use crate::store::FsStore;

    #[test]
    fn a_name_that_is_taken_is_refused_and_what_has_it_stays_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let name: BackupName = "tars-backup-20260102_030405".parse().unwrap();
        let old = [name.archive(), name.sha256_file(), name.manifest_file(), name.verified_file()];
        for file in &old {
            std::fs::write(dir.path().join(file), "older").unwrap();
        }
        let path = dir.path().join("packed");
        std::fs::write(&path, "new").unwrap();
        let packed = Packed { path, bytes: 3, sha256: "x".into() };
        let store = FsStore::unmarked(dir.path(), std::path::Path::new("/nonexistent"));
        let refused = deliver(&store, "", &name, &packed, &Cancel::default(), &Quiet);
        assert!(matches!(refused, Err(DeliveryError::Store(StoreError::Exists { .. }))));
        for file in &old {
            assert_eq!(std::fs::read_to_string(dir.path().join(file)).unwrap(), "older", "{file}");
        }
    }

    #[test]
    fn what_does_not_read_back_equal_is_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let name: BackupName = "tars-backup-20260102_030405".parse().unwrap();
        let path = dir.path().join("packed");
        std::fs::write(&path, "new").unwrap();
        let packed = Packed { path: path.clone(), bytes: 3, sha256: "not that of the file".into() };
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = FsStore::unmarked(&root, std::path::Path::new("/nonexistent"));
        let bad = deliver(&store, "daily", &name, &packed, &Cancel::default(), &Quiet);
        assert!(matches!(bad, Err(DeliveryError::Store(StoreError::ReadBack { .. }))));
        assert_eq!(store.list("daily", &Cancel::default()).unwrap(), []);
    }
}
