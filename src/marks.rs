//! The small objects that tell of a backup and lie beside it, so that they outlive this host: found good, pinned, accepted,
//! in the trash. What could go wrong: a mark that does not read taken for the one that lets data go; so a pin that does not
//! read pins, and what is in the trash at an unknown time is not deleted.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cancel::Cancel;
use crate::id::BackupName;
use crate::store::{Put, Store, StoreError, object};

/// How deep stored bytes were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// SHA-256 of the stored archive.
    Digest,
    /// Every component read and checked.
    Deep,
}

/// When a stored backup was last found good. A failed look takes the mark away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub time: String,
    pub depth: Depth,
    /// Of the stored archive: the mark says nothing about another one.
    pub sha256: String,
}

/// Keeps a backup whatever the rules say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// When it was set; None of one that does not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// It ends here; None: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// A person has looked at an anomaly and found the backup good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

/// A backup that will be deleted, and counts nowhere until then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trash {
    /// None of one that does not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    #[serde(default)]
    pub reason: String,
}

/// What came of bringing a backup back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrillVerdict {
    /// All of it was brought back, and is what the manifest says.
    Good,
    /// What could be brought back was good; something could not.
    Partly,
    NotDrilled,
    Bad,
}

/// The last drill of a stored backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    pub time: Timestamp,
    pub verdict: DrillVerdict,
    /// Of the stored archive: the mark says nothing about another one.
    pub sha256: String,
    /// Components that were brought back and proved.
    pub proved: Vec<String>,
    /// Those that were not as they should be.
    pub failed: Vec<String>,
    pub not_drilled: Vec<String>,
    /// From the first byte that was fetched to the last service that answered.
    pub rto_ms: Option<u64>,
}

/// One kind of them.
pub trait Mark: Serialize + for<'de> Deserialize<'de> {
    fn file(name: &BackupName) -> String;
}

impl Mark for Verified {
    fn file(name: &BackupName) -> String {
        name.beside("verified")
    }
}

impl Mark for Drilled {
    fn file(name: &BackupName) -> String {
        name.beside("drilled")
    }
}

impl Mark for Pin {
    fn file(name: &BackupName) -> String {
        name.beside("pin")
    }
}

impl Mark for Accepted {
    fn file(name: &BackupName) -> String {
        name.beside("accepted")
    }
}

impl Mark for Trash {
    fn file(name: &BackupName) -> String {
        name.beside("trash")
    }
}

/// Writes a mark in the place of an earlier one of its kind.
pub fn set<M: Mark>(store: &dyn Store, dir: &str, name: &BackupName, mark: &M) -> Result<(), StoreError> {
    let mut text = serde_json::to_vec(mark).unwrap_or_default();
    text.push(b'\n');
    store.put_small(&object(dir, &M::file(name)), &text, Put::Replace)
}

/// Takes a mark away; one that is not there is no error.
pub fn clear<M: Mark>(store: &dyn Store, dir: &str, name: &BackupName) -> Result<(), StoreError> {
    store.delete(&object(dir, &M::file(name)))
}

/// Reads a mark. None: it is not there. `Some(None)`: what is there does not read.
pub fn read<M: Mark>(
    store: &dyn Store,
    dir: &str,
    name: &BackupName,
    cancel: &Cancel,
) -> Result<Option<Option<M>>, StoreError> {
    match store.read_small(&object(dir, &M::file(name)), cancel) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).ok())),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FsStore;
    use std::path::Path;

    #[test]
    fn a_mark_is_written_read_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsStore::unmarked(dir.path(), Path::new("/nonexistent"));
        let name: BackupName = "tars-backup-20260102_030405".parse().unwrap();
        let read = || read::<Pin>(&store, "daily", &name, &Cancel::default()).unwrap();
        assert_eq!(read(), None);
        std::fs::create_dir(dir.path().join("daily")).unwrap();
        let pin =
            Pin { reason: Some("audit".into()), until: "2027-01-01T00:00:00Z".parse().ok(), time: None };
        set(&store, "daily", &name, &pin).unwrap();
        assert_eq!(read(), Some(Some(pin)));
        std::fs::write(dir.path().join("daily/tars-backup-20260102_030405.pin"), "{").unwrap();
        assert_eq!(read(), Some(None), "it is there, and nobody can say until when");
        clear::<Pin>(&store, "daily", &name).unwrap();
        clear::<Pin>(&store, "daily", &name).unwrap();
        assert_eq!(read(), None);
    }
}
