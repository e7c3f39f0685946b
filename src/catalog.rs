//! The backups that a store holds. What could go wrong: something counted as a backup that is none, so only what has a
//! commit is here, and one whose commit does not read as true is here as damaged.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cancel::Cancel;
use crate::id::{BackupName, sha256_file};
use crate::legacy;
use crate::manifest::{Manifest, ManifestError};
use crate::marks::{self, Accepted, Drilled, Mark, Pin, Trash, Verified};
use crate::store::{Object, Store, StoreError, object};
use crate::stored::Stored;

/// Manifests that are asked for at the same time, where each answer takes a way over the network.
const READERS: usize = 8;

/// A committed backup in one store.
pub struct Entry {
    pub name: BackupName,
    pub manifest: Result<Manifest, Damage>,
    pub verified: Option<Verified>,
    pub drilled: Option<Drilled>,
    pub pin: Option<Pin>,
    pub accepted: bool,
    /// It is on its way out: it counts nowhere.
    pub trash: Option<Trash>,
    /// Its archive; empty where that is missing.
    pub archive: Stored,
}

impl Entry {
    /// Whether it shrank, and nobody has said that this is right.
    pub fn has_open_anomaly(&self) -> bool {
        !self.accepted && self.manifest.as_ref().is_ok_and(|m| !m.anomalies.is_empty())
    }

    /// Whether its stored bytes, as the manifest has them, were found good.
    pub fn is_verified(&self) -> bool {
        let stored = self.manifest.as_ref().ok().and_then(|m| m.sha256.as_deref());
        self.verified.as_ref().is_some_and(|v| Some(v.sha256.as_str()) == stored)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("its manifest names another backup ({0})")]
    OtherName(BackupName),
    #[error("its archive {0} is missing")]
    NoArchive(String),
    #[error("its archive is {found} bytes long, the manifest says {wanted}")]
    Length { wanted: u64, found: u64 },
}

impl Damage {
    /// What to do about a backup that only a newer version can read; None of one that is damaged.
    pub fn of_newer(&self) -> Option<&'static str> {
        match self {
            Self::Manifest(e) => e.of_newer(),
            _ => None,
        }
    }
}

/// A directory of a store, listed once.
pub struct Listing<'a> {
    store: &'a dyn Store,
    dir: &'a str,
    objects: Vec<Object>,
    cancel: &'a Cancel,
}

/// Committed backups in `dir` of a store, oldest first. Fails rather than showing a shorter list.
pub fn list(store: &dyn Store, dir: &str, cancel: &Cancel) -> Result<Vec<Entry>, StoreError> {
    Listing::of(store, dir, cancel)?.entries()
}

impl<'a> Listing<'a> {
    pub fn of(store: &'a dyn Store, dir: &'a str, cancel: &'a Cancel) -> Result<Self, StoreError> {
        let mut objects = store.list(dir, cancel)?;
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { store, dir, objects, cancel })
    }

    /// Names in use, committed or not.
    pub fn used(&self) -> impl Iterator<Item = BackupName> + '_ {
        self.objects.iter().filter_map(|o| BackupName::of_object(&o.name))
    }

    /// Names of what may be a committed backup, oldest first.
    pub fn names(&self) -> Vec<BackupName> {
        let committed = |o: &Object| {
            let name = BackupName::of_object(&o.name)?;
            let ours = o.name == name.manifest_file();
            let legacy = o.name == sha256_file(&name.archive()) && !self.has(&name.manifest_file());
            (ours || legacy).then_some(name)
        };
        let mut names: Vec<BackupName> = self.objects.iter().filter_map(committed).collect();
        names.sort();
        names
    }

    /// All that is committed, oldest first.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let names = self.names();
        let readers = if self.store.local_root().is_some() { 1 } else { READERS.min(names.len()) };
        if readers <= 1 {
            return names.into_iter().filter_map(|name| self.entry(name).transpose()).collect();
        }
        let (next, read) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| {
                    while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let entry = self.entry(name.clone());
                        let failed = entry.is_err();
                        if let Ok(mut read) = read.lock() {
                            read.push(entry);
                        }
                        if failed {
                            // One that cannot be read fails the whole list: nobody needs the rest.
                            next.store(names.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let read = read.into_inner().unwrap_or_default();
        let mut entries: Vec<Entry> =
            read.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One of them; None where a closer look shows that it is no backup.
    pub fn entry(&self, name: BackupName) -> Result<Option<Entry>, StoreError> {
        self.cancel.check()?;
        if !self.has(&name.manifest_file()) {
            return self.legacy(name);
        }
        let text = self.store.read_small(&object(self.dir, &name.manifest_file()), self.cancel)?;
        let (manifest, archive) = match self.judge(&text, &name) {
            Ok((manifest, archive)) => (Ok(manifest), archive),
            Err(damage) => (Err(damage), Stored::default()),
        };
        self.with_marks(name, manifest, archive).map(Some)
    }

    /// An archive of the bash script; None when it is one of ours that was never finished.
    fn legacy(&self, name: BackupName) -> Result<Option<Entry>, StoreError> {
        let file = name.archive();
        let Some(archive) = Stored::find(&self.objects, &file).filter(|a| !a.in_parts(&file)) else {
            return Ok(None);
        };
        let text = self.store.read_small(&object(self.dir, &sha256_file(&file)), self.cancel)?;
        let Some(sha256) = legacy::digest_in(&text, &name) else { return Ok(None) };
        let manifest = Ok(legacy::outside(name.clone(), archive.bytes(), sha256));
        self.with_marks(name, manifest, archive).map(Some)
    }

    fn with_marks(
        &self,
        name: BackupName,
        manifest: Result<Manifest, Damage>,
        archive: Stored,
    ) -> Result<Entry, StoreError> {
        // One that does not read still pins, and still is one.
        let pin = self.mark::<Pin>(&name)?.map(Option::unwrap_or_default);
        let trash = self.mark::<Trash>(&name)?.map(Option::unwrap_or_default);
        let verified = self.mark::<Verified>(&name)?.flatten();
        let drilled = self.mark::<Drilled>(&name)?.flatten();
        let accepted = self.mark::<Accepted>(&name)?.flatten().is_some();
        Ok(Entry { name, manifest, verified, drilled, pin, accepted, trash, archive })
    }

    /// Asks only for what the listing has: the marks of most backups cost nothing.
    fn mark<M: Mark>(&self, name: &BackupName) -> Result<Option<Option<M>>, StoreError> {
        match self.has(&M::file(name)) {
            true => marks::read(self.store, self.dir, name, self.cancel),
            false => Ok(None),
        }
    }

    /// Everything that belongs to a name, committed or not.
    pub fn objects_of(&self, name: &BackupName) -> Vec<&Object> {
        self.objects.iter().filter(|o| BackupName::of_object(&o.name).as_ref() == Some(name)).collect()
    }

    fn judge(&self, text: &[u8], name: &BackupName) -> Result<(Manifest, Stored), Damage> {
        let manifest = Manifest::read_sidecar(text)?;
        if manifest.backup_name != *name {
            return Err(Damage::OtherName(manifest.backup_name));
        }
        let file = manifest.archive_file();
        let archive = Stored::find(&self.objects, &file).ok_or(Damage::NoArchive(file))?;
        match (manifest.bytes, archive.bytes()) {
            (Some(wanted), found) if wanted != found => Err(Damage::Length { wanted, found }),
            _ => Ok((manifest, archive)),
        }
    }

    fn has(&self, file: &str) -> bool {
        self.objects.binary_search_by(|o| o.name.as_str().cmp(file)).is_ok()
    }
}
