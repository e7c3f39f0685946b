//! The backups that a store holds. What could go wrong: something counted as a backup that is none, so only what has a
//! commit is here, and one whose commit does not read as true is here as damaged.

use crate::delivery::{Verified, object};
use crate::id::BackupName;
use crate::manifest::{Manifest, ManifestError};
use crate::store::{Object, Store, StoreError};

/// A committed backup in one store.
pub struct Entry {
    pub name: BackupName,
    pub manifest: Result<Manifest, Damage>,
    pub verified: Option<Verified>,
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

/// Committed backups in `dir` of a store, oldest first. Fails rather than showing a shorter list.
pub fn list(store: &dyn Store, dir: &str) -> Result<Vec<Entry>, StoreError> {
    let objects = store.list(dir)?;
    let mut entries = Vec::new();
    for o in &objects {
        let Some(name) = BackupName::of_object(&o.name) else { continue };
        if o.name == name.manifest_file() {
            entries.push(read(store, dir, &objects, name)?);
        }
    }
    Ok(entries)
}

fn read(store: &dyn Store, dir: &str, objects: &[Object], name: BackupName) -> Result<Entry, StoreError> {
    let text = store.read_small(&object(dir, &name.manifest_file()))?;
    let manifest = judge(&text, &name, objects);
    let verified = if objects.iter().any(|o| o.name == name.verified_file()) {
        // A mark that does not read is no mark.
        store
            .read_small(&object(dir, &name.verified_file()))
            .ok()
            .and_then(|t| serde_json::from_slice(&t).ok())
    } else {
        None
    };
    Ok(Entry { name, manifest, verified })
}

fn judge(text: &[u8], name: &BackupName, objects: &[Object]) -> Result<Manifest, Damage> {
    let manifest = Manifest::read_sidecar(text)?;
    if manifest.backup_name != *name {
        return Err(Damage::OtherName(manifest.backup_name));
    }
    let archive = name.archive();
    let found = objects.iter().find(|o| o.name == archive).ok_or(Damage::NoArchive(archive))?.bytes;
    match manifest.bytes {
        Some(wanted) if wanted != found => Err(Damage::Length { wanted, found }),
        _ => Ok(manifest),
    }
}

/// Whether any object of a store in `dir` belongs to `name`, committed or not.
pub fn knows(store: &dyn Store, dir: &str, name: &BackupName) -> Result<bool, StoreError> {
    Ok(store.list(dir)?.iter().any(|o| BackupName::of_object(&o.name).as_ref() == Some(name)))
}
