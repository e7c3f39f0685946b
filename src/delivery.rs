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
use crate::hint::chain;
use crate::id::{BackupName, MAX_PARTS, is_part, part_file, parts_file, sha256_file};
use crate::manifest::{Encryption, Manifest, ManifestError, sha256_line};
use crate::marks::{self, Depth, Verified};
use crate::progress::{Event, Monitor, What};
use crate::store::{Object, Put, Store, StoreError, object};
use crate::stored::Stored;
use crate::units::show_bytes;

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
    #[error("it could not be sealed, and this store gets nothing unsealed: {why}")]
    NotSealed { why: String, hint: Option<String> },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl crate::hint::Hint for DeliveryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            Self::NotSealed { hint, .. } => hint.clone(),
            // Sealed another time it is the same backup, which only a copy that was found good can show.
            Self::NameTaken { store, name } => {
                Some(format!("look at that one: tars-backup verify --store {store} {name}"))
            }
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

/// Hears that the name was free and that from here on what has it is ours, before the first byte is sent.
pub type Begun<'a> = &'a (dyn Fn() + Sync);

/// Whether an earlier try may have left something.
#[derive(Clone, Copy)]
pub enum Attempt<'a> {
    /// Whatever has the name already belongs to somebody else.
    First(Begun<'a>),
    /// The same, of an archive that was not packed just now.
    Late(Begun<'a>),
    /// What has the name is ours: a try that had found the name free began to send. Parts that are there are gone on from.
    Again,
}

/// Delivers and commits. After an error nothing is left but parts that `Attempt::Again` goes on from (`left_parts` tells of them).
/// Only a store that does not answer any more may keep more, and be it the commit: that one is of a whole archive, and
/// the next try reads it back.
pub fn deliver(
    to: Place<'_>,
    manifest: &Manifest,
    parcel: &Parcel,
    attempt: Attempt<'_>,
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
    done?;
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
    // Only remarks beside the backup: a store that refuses them still has the backup. But what is not marked counts for
    // nothing there, and somebody must hear that.
    let (time, sha256) = (receipt.time.clone(), receipt.sha256.clone());
    let marked = marks::set(to.store, to.dir, name, &Verified { time, depth: Depth::Digest, sha256 });
    let noted = note_receipt(to, name, &receipt);
    if let Err(e) = marked.and(noted) {
        let store = to.store.name();
        let text = format!(
            "{name} is whole in {store}, but that could not be noted beside it: {}; to note it: tars-backup verify \
             --store {store} {name}",
            chain(&e)
        );
        monitor.event(Event::new(What::Warning, text).backup(name).store(store));
    }
    Ok(receipt)
}

/// Whether parts of an archive of that name wait in the store for a later try. What cannot be asked is taken for yes.
pub fn left_parts(to: Place<'_>, name: &BackupName, cancel: &Cancel) -> bool {
    let part = |o: &Object| [false, true].iter().any(|sealed| is_part(&o.name, &name.archive_as(*sealed)));
    to.store.part_bytes().is_some() && to.store.list(to.dir, cancel).map_or(true, |all| all.iter().any(part))
}

/// One piece of the archive: an object of its own in the store.
struct Piece {
    file: String,
    from: u64,
    bytes: u64,
    sha256: String,
}

/// Name, beginning and length of a piece.
type Cut = (String, u64, u64);

/// Whether an object can be that piece, by what a listing shows.
fn is_of(o: &Object, (name, _, bytes): &Cut) -> bool {
    o.name == *name && o.bytes == *bytes
}

struct Delivery<'a> {
    to: Place<'a>,
    name: &'a BackupName,
    archive: String,
    parcel: &'a Parcel,
    attempt: Attempt<'a>,
    /// Objects that this try has made. Only these may be taken away again: a name that was in use already belongs to a
    /// backup that is not ours to touch.
    created: Vec<String>,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

impl Delivery<'_> {
    fn run(&mut self, manifest: &Manifest) -> Result<(), DeliveryError> {
        let there: Vec<Object> = self
            .to
            .store
            .list(self.to.dir, self.cancel)?
            .into_iter()
            .filter(|o| BackupName::of_object(&o.name).as_ref() == Some(self.name))
            .collect();
        if let (Attempt::First(_) | Attempt::Late(_), Some(other)) = (self.attempt, there.first()) {
            let (store, object) = (self.to.store.name().to_owned(), other.name.clone());
            return Err(StoreError::Exists { store, object }.into());
        }
        let committed = self.is_committed(&there)?;
        if committed && self.stands(&there)? {
            return Ok(());
        }
        let cuts = self.cuts();
        let pieces = self.pieces(&cuts)?;
        if committed {
            // Its archive is gone or not what the manifest says: no backup, and none to be seen while it is sent again.
            self.to.store.delete(&object(self.to.dir, &self.name.manifest_file()))?;
        }
        self.clear_stale(&cuts, &there)?;
        self.find_room(&cuts, &there)?;
        if let Attempt::First(begun) | Attempt::Late(begun) = self.attempt {
            begun();
        }
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
        self.put_small(&self.name.manifest_file(), &sidecar)
    }

    /// Whether an earlier try came to its end and could not tell. Another backup of that name is refused.
    fn is_committed(&self, there: &[Object]) -> Result<bool, DeliveryError> {
        let file = self.name.manifest_file();
        if !there.iter().any(|o| o.name == file) {
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

    /// Whether what the manifest there promises reads back, in the pieces in which it lies.
    fn stands(&self, there: &[Object]) -> Result<bool, DeliveryError> {
        let (packed, store) = (&self.parcel.packed, self.to.store);
        let has = |file: String| there.iter().any(|o| o.name == file);
        let Some(stored) = Stored::find(there, &self.archive) else { return Ok(false) };
        let told =
            has(sha256_file(&self.archive)) && (stored.objects().len() < 2 || has(parts_file(&self.archive)));
        if !told || stored.bytes() != packed.bytes {
            return Ok(false);
        }
        let (reader, _) = stored.open(store, self.to.dir, self.cancel)?;
        let read = digest(reader, self.cancel, self.monitor)
            .map_err(|e| store.broken(&object(self.to.dir, &self.archive), e))?;
        self.monitor.moved(packed.bytes);
        Ok(read == (packed.bytes, packed.sha256.clone()))
    }

    /// How the store wants the archive.
    fn cuts(&self) -> Vec<Cut> {
        let bytes = self.parcel.packed.bytes;
        let Some(part) = self.to.store.part_bytes().filter(|part| bytes > *part) else {
            return vec![(self.archive.clone(), 0, bytes)];
        };
        let part = part.max(bytes.div_ceil(MAX_PARTS));
        let cut = |(i, number)| {
            let from = i * part;
            (part_file(&self.archive, number), from, part.min(bytes - from))
        };
        (0..bytes.div_ceil(part)).zip(1..).map(cut).collect()
    }

    /// Whether what is not there yet has room.
    fn find_room(&self, cuts: &[Cut], there: &[Object]) -> Result<(), DeliveryError> {
        let Some(free) = self.to.store.free_bytes()? else { return Ok(()) };
        let needed: u64 =
            cuts.iter().filter(|cut| !there.iter().any(|o| is_of(o, cut))).map(|(_, _, b)| b).sum();
        if needed <= free {
            return Ok(());
        }
        Err(StoreError::Io {
            store: self.to.store.name().to_owned(),
            action: "write",
            object: self.archive.clone(),
            source: io::Error::new(
                io::ErrorKind::StorageFull,
                format!("{} are free, {} are needed", show_bytes(free), show_bytes(needed)),
            ),
        }
        .into())
    }

    /// Takes the archive apart as the store wants it, reading all of it once: what lay in the spool for days is
    /// compared with what was packed before it is sent.
    fn pieces(&self, cuts: &[Cut]) -> Result<Vec<Piece>, DeliveryError> {
        let packed = &self.parcel.packed;
        // It was just packed, and what is stored is compared with the digest of that.
        if cuts.len() == 1 && matches!(self.attempt, Attempt::First(_)) {
            let (sha256, bytes) = (packed.sha256.clone(), packed.bytes);
            return Ok(vec![Piece { file: self.archive.clone(), from: 0, bytes, sha256 }]);
        }
        let mut file = File::open(&packed.path).map_err(DeliveryError::Archive)?;
        let mut all = Sha256::new();
        let mut pieces = Vec::new();
        for (name, from, bytes) in cuts.iter().cloned() {
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

    /// Removes what earlier tries left beside it: the archive whole or in parts of another length, or unsealed, and lists
    /// of digests. Whoever reads takes a whole one before parts, and all parts that there are.
    /// And all of it takes room.
    fn clear_stale(&self, cuts: &[Cut], there: &[Object]) -> Result<(), DeliveryError> {
        for o in there.iter().filter(|o| !cuts.iter().any(|cut| is_of(o, cut))) {
            let stale = [false, true].iter().any(|sealed| {
                let archive = self.name.archive_as(*sealed);
                o.name == archive
                    || is_part(&o.name, &archive)
                    || o.name == parts_file(&archive)
                    || o.name == sha256_file(&archive)
            });
            if stale {
                self.to.store.delete(&object(self.to.dir, &o.name))?;
            }
        }
        Ok(())
    }

    fn upload(&mut self, piece: &Piece, there: &[Object]) -> Result<(), DeliveryError> {
        let path = object(self.to.dir, &piece.file);
        if there.iter().any(|o| o.name == piece.file && o.bytes == piece.bytes) {
            self.monitor.moved(piece.bytes);
            return Ok(());
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
        let put = self.to.store.put_small(&path, data, Put::New);
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
                let list = object(self.to.dir, &parts_file(&self.archive));
                self.created.retain(|path| !path.starts_with(&part) || *path == list);
            }
        }
        // Last made, first gone: the commit goes before what it commits, and where it cannot be removed all that it
        // commits stays.
        while let Some(path) = self.created.pop() {
            if self.to.store.delete(&path).is_err() {
                return;
            }
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
    read.map_err(|e| store.broken(object, e))
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
    use crate::progress::tests::{Listener, Quiet};
    use crate::store::FsStore;
    use crate::store::tests::{Odd, down, refused};
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    fn parcel(dir: &Path, text: &str) -> Parcel {
        let path = dir.join("packed");
        std::fs::write(&path, text).unwrap();
        let sha256 = hex::encode(Sha256::digest(text));
        Parcel {
            packed: Packed { path, bytes: text.len() as u64, sha256 },
            encryption: Encryption::default(),
        }
    }

    const FIRST: Attempt<'static> = Attempt::First(&|| ());

    fn try_deliver(
        store: &dyn Store,
        parcel: &Parcel,
        attempt: Attempt<'_>,
    ) -> Result<Receipt, DeliveryError> {
        let to = Place { store, dir: "daily" };
        deliver(to, &sample(), parcel, attempt, &Cancel::default(), &Quiet, Timestamp::now)
    }

    fn names(store: &dyn Store) -> Vec<String> {
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
        let refused = try_deliver(&store, &parcel(dir.path(), "new"), FIRST);
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
        let bad = try_deliver(&store, &other, FIRST);
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
        try_deliver(&store, &parcel, FIRST).unwrap();
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

    #[test]
    fn a_mark_that_the_store_refuses_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let store = Odd { part_bytes: None, ..store };
        for mark in [".verified", ".receipt.json"] {
            store.on(move |verb, object| (verb == "put" && object.ends_with(mark)).then(|| refused(object)));
            let told = Listener::default();
            let to = Place { store: &store, dir: "daily" };
            deliver(to, &sample(), &parcel, Attempt::Again, &Cancel::default(), &told, Timestamp::now)
                .unwrap();
            let told = told.0.into_inner().unwrap();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains("tars-backup verify --store odd tars-backup-"), "{told:?}");
        }
    }

    /// A store in parts of four bytes, its directory, and ten bytes to deliver.
    fn in_parts(dir: &Path) -> (Odd, Parcel) {
        let root = dir.join("store");
        std::fs::create_dir(&root).unwrap();
        (Odd { part_bytes: Some(4), ..Odd::new(&root) }, parcel(dir, "0123456789"))
    }

    /// What the store shows of it, as a reader finds it.
    fn stored(store: &dyn Store) -> Option<Vec<u8>> {
        let listing = store.list("daily", &Cancel::default()).unwrap();
        listing.iter().find(|o| o.name == sample().backup_name.manifest_file())?;
        let found = Stored::find(&listing, &sample().backup_name.archive()).expect("a commit of nothing");
        let mut text = Vec::new();
        found.open(store, "daily", &Cancel::default()).unwrap().0.read_to_end(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn a_commit_that_cannot_be_taken_back_keeps_what_it_commits() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let store = Odd { part_bytes: None, ..store };
        // The manifest gets there, does not read back, and does not go away.
        store.on(|verb, object| {
            let manifest = object.ends_with(".manifest.json");
            (manifest && matches!(verb, "read" | "delete")).then(|| refused(object))
        });
        try_deliver(&store, &parcel, FIRST).unwrap_err();
        store.on(|_, _| None);
        assert_eq!(stored(&store).as_deref(), Some(&b"0123456789"[..]), "{:?}", names(&store));
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
    }

    #[test]
    fn a_line_that_is_cut_while_it_is_read_back_costs_nothing_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let store = Odd { part_bytes: None, ..store };
        store.on(|verb, object| (verb == "read").then(|| down(object)));
        let lost = try_deliver(&store, &parcel, FIRST);
        assert!(matches!(lost, Err(DeliveryError::Store(StoreError::Down { .. }))), "{lost:?}");
        store.on(|_, _| None);
        assert_eq!(names(&store), [sample().backup_name.archive()]);
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
        assert!(stored(&store).is_some());
    }

    #[test]
    fn a_commit_whose_archive_is_gone_or_bad_is_no_proof() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let root = dir.path().join("store/daily");
        let file = |name: String| root.join(name);
        let archive = sample().backup_name.archive();
        type Harm<'a> = &'a dyn Fn();
        let harms: [Harm<'_>; 5] = [
            &|| (1..=3).for_each(|n| std::fs::remove_file(file(part_file(&archive, n))).unwrap()),
            &|| std::fs::remove_file(file(part_file(&archive, 3))).unwrap(),
            &|| std::fs::write(file(part_file(&archive, 2)), "4x67").unwrap(),
            &|| std::fs::remove_file(file(sha256_file(&archive))).unwrap(),
            &|| std::fs::remove_file(file(parts_file(&archive))).unwrap(),
        ];
        try_deliver(&store, &parcel, FIRST).unwrap();
        for (n, harm) in harms.iter().enumerate() {
            harm();
            // Nothing of it is to be seen while it is not whole.
            store.on(|verb, object| (verb == "put").then(|| refused(object)));
            try_deliver(&store, &parcel, Attempt::Again).unwrap_err();
            store.on(|_, _| None);
            assert_eq!(stored(&store), None, "{n}");
            try_deliver(&store, &parcel, Attempt::Again).unwrap();
            assert_eq!(stored(&store).as_deref(), Some(&b"0123456789"[..]), "{n}");
            assert_eq!(names(&store).len(), 3 + 5, "{:?}", names(&store));
        }
        // Nothing is taken away for an archive that rotted here.
        std::fs::write(file(part_file(&archive, 2)), "4x67").unwrap();
        std::fs::write(&parcel.packed.path, "0123456780").unwrap();
        let bad = try_deliver(&store, &parcel, Attempt::Again);
        assert!(matches!(bad, Err(DeliveryError::Changed(_))), "{bad:?}");
        assert!(stored(&store).is_some());
    }

    #[test]
    fn parts_of_another_length_and_a_whole_archive_of_before_are_not_left_beside() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, parcel) = in_parts(dir.path());
        let archive = sample().backup_name.archive();
        let breaks = |store: &Odd, at: &'static str| {
            store.on(move |verb, object| (verb == "put" && object.ends_with(at)).then(|| down(object)));
        };
        // Shorter parts, longer parts, the whole: each is broken off and gone on from in the next form.
        for (part_bytes, fails) in [(Some(2), ".sha256"), (Some(6), ".sha256"), (None, ".sha256")] {
            store.part_bytes = part_bytes;
            breaks(&store, fails);
            try_deliver(&store, &parcel, if part_bytes == Some(2) { FIRST } else { Attempt::Again })
                .unwrap_err();
        }
        assert!(names(&store).contains(&archive), "{:?}", names(&store));
        // What an unsealed try left goes as well.
        let sealed = Parcel {
            encryption: Encryption { method: Some("age".into()), ..Encryption::default() },
            ..parcel.clone()
        };
        store.on(|_, _| None);
        store.part_bytes = Some(4);
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
        assert_eq!(stored(&store).as_deref(), Some(&b"0123456789"[..]));
        let parts = names(&store).iter().filter(|n| is_part(n, &archive)).count();
        assert_eq!((parts, names(&store).contains(&archive)), (3, false), "{:?}", names(&store));

        store.inside.delete(&object("daily", &sample().backup_name.manifest_file())).unwrap();
        try_deliver(&store, &sealed, Attempt::Again).unwrap();
        let left: Vec<String> = names(&store).into_iter().filter(|n| n.contains(".tar.gz")).collect();
        assert!(left.iter().all(|n| n.contains(".tar.gz.age")), "{left:?}");
    }

    #[test]
    fn room_is_asked_only_for_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, parcel) = in_parts(dir.path());
        store.free = Some(9);
        let heard = AtomicBool::new(false);
        let begun = || heard.store(true, Ordering::SeqCst);
        let full = try_deliver(&store, &parcel, Attempt::First(&begun)).unwrap_err();
        let DeliveryError::Store(StoreError::Io { source, .. }) = full else { panic!("{full:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        assert!(!heard.load(Ordering::SeqCst), "nothing was sent");

        store.free = Some(10);
        store.on(|verb, object| (verb == "put" && object.ends_with("p0003")).then(|| down(object)));
        try_deliver(&store, &parcel, Attempt::First(&begun)).unwrap_err();
        assert!(heard.load(Ordering::SeqCst));
        store.on(|_, _| None);
        store.free = Some(2);
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
        // All of it lies there, and only the commit was lost.
        store.inside.delete(&object("daily", &sample().backup_name.manifest_file())).unwrap();
        store.free = Some(0);
        try_deliver(&store, &parcel, Attempt::Again).unwrap();
    }

    #[test]
    fn a_name_is_ours_only_after_it_was_found_free() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let heard = AtomicUsize::new(0);
        let begun = || {
            heard.fetch_add(1, Ordering::SeqCst);
        };
        store.on(|verb, object| (verb == "list").then(|| down(object)));
        try_deliver(&store, &parcel, Attempt::First(&begun)).unwrap_err();
        store.on(|_, _| None);
        std::fs::create_dir(dir.path().join("store/daily")).unwrap();
        let theirs = dir.path().join("store/daily").join(part_file(&sample().backup_name.archive(), 1));
        std::fs::write(&theirs, "theirs").unwrap();
        for attempt in [Attempt::First(&begun), Attempt::Late(&begun)] {
            let taken = try_deliver(&store, &parcel, attempt);
            assert!(matches!(taken, Err(DeliveryError::Store(StoreError::Exists { .. }))), "{taken:?}");
        }
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
        assert_eq!(heard.load(Ordering::SeqCst), 0);
        std::fs::remove_file(&theirs).unwrap();
        try_deliver(&store, &parcel, Attempt::Late(&begun)).unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn what_rotted_while_it_waited_is_not_sent_for_the_first_time_either() {
        let dir = tempfile::tempdir().unwrap();
        let (store, parcel) = in_parts(dir.path());
        let store = Odd { part_bytes: None, ..store };
        std::fs::write(&parcel.packed.path, "0123456780").unwrap();
        let bad = try_deliver(&store, &parcel, Attempt::Late(&|| ()));
        assert!(matches!(bad, Err(DeliveryError::Changed(_))), "{bad:?}");
        assert_eq!(names(&store), [""; 0]);
    }
}
