//! The backups that a store holds. What could go wrong: something counted as a backup that is none, so only what has a
//! commit is here, and one whose commit does not read as true is here as damaged.

use crate::cancel::Cancel;
use crate::delivery::Verified;
use crate::id::BackupName;
use crate::legacy;
use crate::manifest::{Manifest, ManifestError};
use crate::store::{Object, Store, StoreError, object};

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
pub fn list(store: &dyn Store, dir: &str, cancel: &Cancel) -> Result<Vec<Entry>, StoreError> {
    let objects = store.list(dir, cancel)?;
    let mut entries = Vec::new();
    for o in &objects {
        let Some(name) = BackupName::of_object(&o.name) else { continue };
        if o.name == name.manifest_file() {
            entries.push(read(store, dir, &objects, name, cancel)?);
        } else if o.name == name.sha256_file() {
            entries.extend(read_legacy(store, dir, &objects, name, cancel)?);
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn read(
    store: &dyn Store,
    dir: &str,
    objects: &[Object],
    name: BackupName,
    cancel: &Cancel,
) -> Result<Entry, StoreError> {
    let text = store.read_small(&object(dir, &name.manifest_file()), cancel)?;
    let manifest = judge(&text, &name, objects);
    let verified = mark(store, dir, objects, &name, cancel);
    Ok(Entry { name, manifest, verified })
}

/// An archive of the bash script; None when it is one of ours, finished or not.
fn read_legacy(
    store: &dyn Store,
    dir: &str,
    objects: &[Object],
    name: BackupName,
    cancel: &Cancel,
) -> Result<Option<Entry>, StoreError> {
    let bytes = |wanted: String| objects.iter().find(|o| o.name == wanted).map(|o| o.bytes);
    let (None, Some(archive)) = (bytes(name.manifest_file()), bytes(name.archive())) else { return Ok(None) };
    let text = store.read_small(&object(dir, &name.sha256_file()), cancel)?;
    let Some(sha256) = legacy::digest_in(&text, &name) else { return Ok(None) };
    let verified = mark(store, dir, objects, &name, cancel);
    Ok(Some(Entry { manifest: Ok(legacy::outside(name.clone(), archive, sha256)), name, verified }))
}

/// When it was last found good. A mark that does not read is no mark.
fn mark(
    store: &dyn Store,
    dir: &str,
    objects: &[Object],
    name: &BackupName,
    cancel: &Cancel,
) -> Option<Verified> {
    let file = name.verified_file();
    objects.iter().find(|o| o.name == file)?;
    store.read_small(&object(dir, &file), cancel).ok().and_then(|t| serde_json::from_slice(&t).ok())
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
pub fn knows(store: &dyn Store, dir: &str, name: &BackupName, cancel: &Cancel) -> Result<bool, StoreError> {
    Ok(store.list(dir, cancel)?.iter().any(|o| BackupName::of_object(&o.name).as_ref() == Some(name)))
}
