//! Getting an archive into a store: the bytes, whole or in parts, read back; then the manifest, whose presence is the
//! commit. What could go wrong: a backup that is visible and not whole, so nothing is committed that was not read back.
//! What was not committed is taken away again, but for parts that a later try can go on from.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::archive::pack::Packed;
use crate::cancel::{Cancel, Interrupted};
use crate::id::{BackupName, MAX_PARTS, part_file, parts_file, sha256_file};
use crate::manifest::{Encryption, Manifest, ManifestError, sha256_line};
use crate::marks::{self, Depth, Verified};
use crate::progress::Monitor;
use crate::store::{Object, Put, Store, StoreError, object};

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

#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the packed archive")]
    Archive(#[source] io::Error),
    #[error("the packed archive {0} is not what was packed any more")]
    Changed(String),
    #[error("store {store:?} has another backup of the name {name}")]
    NameTaken { store: String, name: String },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl crate::hint::Hint for DeliveryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            Self::Changed(_) => Some("the disk of the spool damages data: check it (dmesg, smartctl)".into()),
            _ => None,
        }
    }
}

impl From<Interrupted> for DeliveryError {
    fn from(e: Interrupted) -> Self {
        Self::Store(e.into())
    }
}

/// The archive as it goes to a store, plain or sealed.
#[derive(Debug, Clone)]
pub struct Parcel {
    pub packed: Packed,
    pub encryption: Encryption,
}

impl Parcel {
    pub fn file(&self, name: &BackupName) -> String {
        name.archive_as(self.encryption.is_sealed())
    }
}

/// Where a backup is to lie.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub store: &'a dyn Store,
    pub dir: &'a str,
}

/// Whether an earlier try may have left something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Whatever has the name already belongs to somebody else.
    First,
    /// What has the name is ours: parts that are there are gone on from.
    Again,
}

/// Delivers and commits. After an error nothing of it is visible as a backup, and nothing is left but parts that
/// `Attempt::Again` goes on from; `left_parts` tells of those.
pub fn deliver(
    to: Place<'_>,
    manifest: &Manifest,
    parcel: &Parcel,
    attempt: Attempt,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    now: fn() -> Timestamp,
) -> Result<Receipt, DeliveryError> {
    let mut delivery = Delivery {
        to,
        name: &manifest.backup_name,
        archive: parcel.file(&manifest.backup_name),
        parcel,
        attempt,
        created: Vec::new(),
        cancel,
        monitor,
    };
    let started = Instant::now();
    let done = delivery.run(manifest);
    if let Err(e) = &done {
        delivery.withdraw_after(e);
    }
    let name = &manifest.backup_name;
    let sha256 = parcel.packed.sha256.clone();
    let proof = done?;
    let time = now();
    let receipt = Receipt {
        store: to.store.name().to_owned(),
        object: object(to.dir, &delivery.archive),
        bytes: parcel.packed.bytes,
        sha256,
        method: "read-back".to_owned(),
        time: time.strftime("%FT%TZ").to_string(),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    // Only remarks beside the backup: a store that refuses them still has the backup.
    if proof == Proof::Now {
        let (time, sha256) = (receipt.time.clone(), receipt.sha256.clone());
        let _ = marks::set(to.store, to.dir, name, &Verified { time, depth: Depth::Digest, sha256 });
    }
    let _ = note_receipt(to, name, &receipt);
    Ok(receipt)
}

/// Whether parts of an archive of that name wait in the store for a later try. What cannot be asked is taken for yes.
pub fn left_parts(to: Place<'_>, name: &BackupName, cancel: &Cancel) -> bool {
    let part = |o: &Object| {
        BackupName::of_object(&o.name).as_ref() == Some(name)
            && [false, true]
                .iter()
                .any(|sealed| o.name.starts_with(&format!("{}.p", name.archive_as(*sealed))))
    };
    to.store.part_bytes().is_some() && to.store.list(to.dir, cancel).map_or(true, |all| all.iter().any(part))
}

/// When the stored bytes were read back.
#[derive(PartialEq, Eq)]
enum Proof {
    Now,
    /// By an earlier try, which could not tell any more.
    Earlier,
}

/// One piece of the archive: an object of its own in the store.
struct Piece {
    file: String,
    from: u64,
    bytes: u64,
    sha256: String,
}

struct Delivery<'a> {
    to: Place<'a>,
    name: &'a BackupName,
    archive: String,
    parcel: &'a Parcel,
    attempt: Attempt,
    /// Objects that this try has made. Only these may be taken away again: a name that was in use already belongs to a
    /// backup that is not ours to touch.
    created: Vec<String>,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

impl Delivery<'_> {
    fn run(&mut self, manifest: &Manifest) -> Result<Proof, DeliveryError> {
        let there: Vec<Object> = self
            .to
            .store
            .list(self.to.dir, self.cancel)?
            .into_iter()
            .filter(|o| BackupName::of_object(&o.name).as_ref() == Some(self.name))
            .collect();
        if self.is_committed(&there)? {
            return Ok(Proof::Earlier);
        }
        if let (Attempt::First, Some(other)) = (self.attempt, there.first()) {
            let (store, object) = (self.to.store.name().to_owned(), other.name.clone());
            return Err(StoreError::Exists { store, object }.into());
        }
        let pieces = self.pieces()?;
        for piece in &pieces {
            self.upload(piece, &there)?;
        }
        for piece in &pieces {
            self.prove(piece)?;
        }
        let packed = &self.parcel.packed;
        if pieces.len() > 1 {
            let lines: String = pieces.iter().map(|p| sha256_line(&p.sha256, &p.file)).collect();
            self.put_small(&parts_file(&self.archive), lines.as_bytes())?;
        }
        let line = sha256_line(&packed.sha256, &self.archive);
        self.put_small(&sha256_file(&self.archive), line.as_bytes())?;
        // Manifest last: its presence is the commit.
        self.cancel.check()?;
        let manifest = Manifest { encryption: self.parcel.encryption.clone(), ..manifest.clone() };
        let sidecar = manifest.to_sidecar(packed.bytes, &packed.sha256)?;
        self.put_small(&self.name.manifest_file(), &sidecar)?;
        Ok(Proof::Now)
    }

    /// Whether an earlier try came to its end and could not tell. Another backup of that name is refused.
    fn is_committed(&self, there: &[Object]) -> Result<bool, DeliveryError> {
        let file = self.name.manifest_file();
        if self.attempt == Attempt::First || !there.iter().any(|o| o.name == file) {
            return Ok(false);
        }
        let text = self.to.store.read_small(&object(self.to.dir, &file), self.cancel)?;
        let same = Manifest::read_sidecar(&text)
            .is_ok_and(|m| m.sha256.as_deref() == Some(self.parcel.packed.sha256.as_str()));
        if same {
            return Ok(true);
        }
        let (store, name) = (self.to.store.name().to_owned(), self.name.to_string());
        Err(DeliveryError::NameTaken { store, name })
    }

    /// Takes the archive apart as the store wants it, reading all of it once: what lay in the spool for days is
    /// compared with what was packed before it is sent.
    fn pieces(&self) -> Result<Vec<Piece>, DeliveryError> {
        let packed = &self.parcel.packed;
        let whole = |bytes| vec![(self.archive.clone(), 0, bytes)];
        let cuts: Vec<(String, u64, u64)> = match self.to.store.part_bytes() {
            Some(part) if packed.bytes > part => {
                let part = part.max(packed.bytes.div_ceil(MAX_PARTS));
                (0..packed.bytes.div_ceil(part))
                    .zip(1..)
                    .map(|(i, number)| {
                        let from = i * part;
                        (part_file(&self.archive, number), from, part.min(packed.bytes - from))
                    })
                    .collect()
            }
            // It was just packed, and what is stored is compared with the digest of that.
            _ if self.attempt == Attempt::First => {
                let (sha256, bytes) = (packed.sha256.clone(), packed.bytes);
                return Ok(vec![Piece { file: self.archive.clone(), from: 0, bytes, sha256 }]);
            }
            _ => whole(packed.bytes),
        };
        let mut file = File::open(&packed.path).map_err(DeliveryError::Archive)?;
        let mut all = Sha256::new();
        let mut pieces = Vec::new();
        for (name, from, bytes) in cuts {
            let mut one = Sha256::new();
            let mut left = (&mut file).take(bytes);
            let mut buffer = vec![0; 1 << 20];
            loop {
                self.cancel.check()?;
                let n = left.read(&mut buffer).map_err(DeliveryError::Archive)?;
                if n == 0 {
                    break;
                }
                one.update(&buffer[..n]);
                all.update(&buffer[..n]);
            }
            pieces.push(Piece { file: name, from, bytes, sha256: hex::encode(one.finalize()) });
        }
        if hex::encode(all.finalize()) != packed.sha256 {
            return Err(DeliveryError::Changed(packed.path.display().to_string()));
        }
        Ok(pieces)
    }

    fn upload(&mut self, piece: &Piece, there: &[Object]) -> Result<(), DeliveryError> {
        let path = object(self.to.dir, &piece.file);
        if let Some(earlier) = there.iter().find(|o| o.name == piece.file) {
            if earlier.bytes == piece.bytes {
                self.monitor.moved(piece.bytes);
                return Ok(());
            }
            self.to.store.delete(&path)?;
        }
        self.send(piece, &path)
    }

    fn send(&mut self, piece: &Piece, path: &str) -> Result<(), DeliveryError> {
        let mut file = File::open(&self.parcel.packed.path).map_err(DeliveryError::Archive)?;
        file.seek(SeekFrom::Start(piece.from)).map_err(DeliveryError::Archive)?;
        let mut data = file.take(piece.bytes);
        let moved = |n| self.monitor.moved(n);
        let put = self.to.store.put(path, &mut data, piece.bytes, Put::New, self.cancel, &moved);
        self.note(path, put)
    }

    /// Reads a piece back. One that was there from an earlier try, and is wrong, is sent once more.
    fn prove(&mut self, piece: &Piece) -> Result<(), DeliveryError> {
        let path = object(self.to.dir, &piece.file);
        let wanted = (piece.bytes, piece.sha256.clone());
        if digest_of(self.to.store, &path, self.cancel, self.monitor)? == wanted {
            return Ok(());
        }
        if !self.created.contains(&path) {
            self.to.store.delete(&path)?;
            self.send(piece, &path)?;
            if digest_of(self.to.store, &path, self.cancel, self.monitor)? == wanted {
                return Ok(());
            }
        }
        Err(StoreError::ReadBack { store: self.to.store.name().to_owned(), object: path }.into())
    }

    fn put_small(&mut self, file: &str, data: &[u8]) -> Result<(), DeliveryError> {
        let path = object(self.to.dir, file);
        let how = if self.attempt == Attempt::First { Put::New } else { Put::Replace };
        let put = self.to.store.put_small(&path, data, how);
        self.note(&path, put)
    }

    fn note(&mut self, path: &str, put: Result<(), StoreError>) -> Result<(), DeliveryError> {
        // A put that failed half way may have made it; one that was refused has not.
        if !matches!(put, Err(StoreError::Exists { .. })) {
            self.created.push(path.to_owned());
        }
        Ok(put?)
    }

    /// Takes away what must not stay after this error.
    fn withdraw_after(&mut self, error: &DeliveryError) {
        match error {
            // It would have to answer for that.
            DeliveryError::Store(StoreError::Down { .. }) => return,
            // What it lost or changed is no ground to go on from.
            DeliveryError::Store(StoreError::ReadBack { .. } | StoreError::Length { .. }) => {}
            // Whole parts are worth their way; half ones are never visible.
            _ => {
                let part = format!("{}.p", object(self.to.dir, &self.archive));
                self.created.retain(|path| !path.starts_with(&part));
            }
        }
        // Last made, first gone: the commit goes before what it commits. What cannot be removed is invisible all the
        // same.
        while let Some(path) = self.created.pop() {
            let _ = self.to.store.delete(&path);
        }
    }
}

/// Notes beside a backup what proves that this store has it.
fn note_receipt(to: Place<'_>, name: &BackupName, receipt: &Receipt) -> Result<(), StoreError> {
    let mut text = serde_json::to_vec(receipt).unwrap_or_default();
    text.push(b'\n');
    to.store.put_small(&object(to.dir, &name.receipt_file()), &text, Put::Replace)
}

/// Length and SHA-256 of a stored object, as the medium holds it.
pub fn digest_of(
    store: &dyn Store,
    object: &str,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<(u64, String), StoreError> {
    let read = digest(store.open(object, cancel)?, cancel, monitor);
    cancel.check()?;
    read.map_err(|source| StoreError::Io {
        store: store.name().to_owned(),
        action: "read",
        object: object.to_owned(),
        source,
    })
}

/// Length and SHA-256 of all that comes. An interrupt is an error of reading.
pub fn digest(mut from: impl Read, cancel: &Cancel, monitor: &dyn Monitor) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0u64;
    loop {
        cancel.check().map_err(io::Error::other)?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hex::encode(hasher.finalize()))),
            Ok(n) => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
                monitor.moved(n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use crate::progress::tests::Quiet;
    use crate::store::FsStore;
    use std::path::Path;

    fn parcel(dir: &Path, text: &str) -> Parcel {
        let path = dir.join("packed");
        std::fs::write(&path, text).unwrap();
        let sha256 = hex::encode(Sha256::digest(text));
        Parcel {
            packed: Packed { path, bytes: text.len() as u64, sha256 },
            encryption: Encryption::default(),
        }
    }

    fn try_deliver(store: &FsStore, parcel: &Parcel, attempt: Attempt) -> Result<Receipt, DeliveryError> {
        let to = Place { store, dir: "daily" };
        deliver(to, &sample(), parcel, attempt, &Cancel::default(), &Quiet, Timestamp::now)
    }

    fn names(store: &FsStore) -> Vec<String> {
        store.list("daily", &Cancel::default()).unwrap().into_iter().map(|o| o.name).collect()
    }

    #[test]
    fn a_name_that_is_taken_is_refused_and_what_has_it_stays_untouched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir_all(root.join("daily")).unwrap();
        let name = sample().backup_name;
        let old =
            [name.archive(), sha256_file(&name.archive()), name.manifest_file(), name.beside("verified")];
        for file in &old {
            std::fs::write(root.join("daily").join(file), "older").unwrap();
        }
        let store = FsStore::unmarked(&root, Path::new("/nonexistent"));
        let refused = try_deliver(&store, &parcel(dir.path(), "new"), Attempt::First);
        assert!(matches!(refused, Err(DeliveryError::Store(StoreError::Exists { .. }))));
        let refused = try_deliver(&store, &parcel(dir.path(), "new"), Attempt::Again);
        assert!(matches!(refused, Err(DeliveryError::NameTaken { .. })));
        for file in &old {
            assert_eq!(std::fs::read_to_string(root.join("daily").join(file)).unwrap(), "older", "{file}");
        }
    }

    #[test]
    fn what_does_not_read_back_equal_is_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = FsStore::unmarked(&root, Path::new("/nonexistent"));
        let mut other = parcel(dir.path(), "new");
        other.packed.sha256 = "not that of the file".into();
        let bad = try_deliver(&store, &other, Attempt::First);
        assert!(matches!(bad, Err(DeliveryError::Store(StoreError::ReadBack { .. }))));
        assert_eq!(names(&store), [""; 0]);
    }

    #[test]
    fn a_second_try_finds_what_the_first_one_finished() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = FsStore::unmarked(&root, Path::new("/nonexistent"));
        let parcel = parcel(dir.path(), "new");
        try_deliver(&store, &parcel, Attempt::First).unwrap();
        let before = names(&store);
        assert!(before.contains(&sample().backup_name.receipt_file()), "{before:?}");
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
        assert_eq!(names(&store), before);
    }

    #[test]
    fn an_archive_that_rotted_before_a_second_try_is_not_sent() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        std::fs::create_dir(&root).unwrap();
        let store = FsStore::unmarked(&root, Path::new("/nonexistent"));
        let parcel = parcel(dir.path(), "new");
        std::fs::write(&parcel.packed.path, "mew").unwrap();
        let bad = try_deliver(&store, &parcel, Attempt::Again);
        assert!(matches!(bad, Err(DeliveryError::Changed(_))));
        assert_eq!(names(&store), [""; 0]);
    }
}
