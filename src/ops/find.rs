//! Which stored backup is meant.

use std::path::Path;

use crate::cancel::Cancel;
use crate::catalog::{self, Entry};
use crate::hint::Hint;
use crate::id::BackupName;
use crate::setup::Setup;
use crate::store::{FsStore, Store, StoreError};

/// How a person names a backup.
#[derive(Debug, Clone)]
pub enum Wanted {
    Name(BackupName),
    Latest,
    All,
    /// The archive as a file on this machine.
    File(std::path::PathBuf),
}

impl Wanted {
    /// A path has a slash; anything else is a name, which may carry the suffix of its archive.
    pub fn parse(text: &str) -> Result<Self, crate::id::NameError> {
        if text.contains('/') {
            return Ok(Self::File(text.into()));
        }
        let name = BackupName::of_object(text).map_or_else(|| text.parse(), Ok)?;
        // A file of that name in the current directory is what was meant only if it is written as a path.
        Ok(Self::Name(name))
    }
}

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub store: Option<String>,
    pub tier: Option<String>,
    pub host: Option<String>,
}

/// A backup in one place.
pub struct Found<'a> {
    pub store: StoreRef<'a>,
    pub dir: String,
    /// Empty for a file that was named directly.
    pub tier: String,
    pub entry: Entry,
}

pub enum StoreRef<'a> {
    Configured(&'a dyn Store),
    Directory(Box<FsStore>),
}

impl Found<'_> {
    pub fn store(&self) -> &dyn Store {
        match &self.store {
            StoreRef::Configured(s) => *s,
            StoreRef::Directory(s) => s.as_ref(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no store {0:?}")]
    NoStore(String),
    #[error("there is no tier {0:?}")]
    NoTier(String),
    #[error("{0} is in no store")]
    NoBackup(String),
    #[error("no backup is complete enough to be the latest")]
    NoLatest,
    #[error("there is no backup in any store")]
    Empty,
    #[error("{0} is not the archive of a committed backup: {1} does not lie beside it")]
    NotCommitted(String, String),
    #[error(transparent)]
    Name(#[from] crate::id::NameError),
}

impl Hint for FindError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(e) => return e.hint(),
            Self::NoStore(_) | Self::NoTier(_) => "see what is configured: tars-backup config show".into(),
            Self::NoBackup(_) => "see what there is: tars-backup list".into(),
            Self::NoLatest | Self::Empty => {
                "make one: tars-backup backup; see what there is: tars-backup list".into()
            }
            Self::NotCommitted(..) => "copy all files of the backup together, or name another one".into(),
            Self::Name(_) => "see the names: tars-backup list".into(),
        })
    }
}

/// All committed backups that the filter lets through, oldest first. A store that cannot be listed is an error only
/// for its caller to decide: it is in the second list.
pub fn all<'a>(
    setup: &'a Setup,
    filter: &Filter,
    cancel: &Cancel,
) -> Result<(Vec<Found<'a>>, Vec<StoreError>), FindError> {
    if let Some(name) = filter.store.as_deref().filter(|n| setup.store(n).is_none()) {
        return Err(FindError::NoStore(name.to_owned()));
    }
    if let Some(name) = filter.tier.as_deref().filter(|n| setup.tier(n).is_none()) {
        return Err(FindError::NoTier(name.to_owned()));
    }
    let mut found = Vec::new();
    let mut failed = Vec::new();
    for store in setup.stores.iter().map(AsRef::as_ref) {
        if filter.store.as_deref().is_some_and(|n| n != store.name()) {
            continue;
        }
        match of_store(setup, store, filter, cancel) {
            Ok(entries) => found.extend(entries),
            Err(StoreError::Interrupted(i)) => return Err(StoreError::Interrupted(i).into()),
            Err(e) => failed.push(e),
        }
    }
    found.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
    Ok((found, failed))
}

fn of_store<'a>(
    setup: &'a Setup,
    store: &'a dyn Store,
    filter: &Filter,
    cancel: &Cancel,
) -> Result<Vec<Found<'a>>, StoreError> {
    store.reach(cancel)?;
    let mut found = Vec::new();
    for tier in &setup.tiers {
        if filter.tier.as_deref().is_some_and(|n| n != tier.name.as_str()) {
            continue;
        }
        for entry in catalog::list(store, &tier.path, cancel)? {
            cancel.check()?;
            let host = entry.manifest.as_ref().map(|m| m.host.as_str()).ok();
            if filter.host.as_deref().is_none_or(|h| host == Some(h)) {
                found.push(Found {
                    store: StoreRef::Configured(store),
                    dir: tier.path.clone(),
                    tier: tier.name.to_string(),
                    entry,
                });
            }
        }
    }
    Ok(found)
}

/// Chooses among `found`; several are the copies of one backup, or all backups.
pub fn choose<'a>(found: Vec<Found<'a>>, wanted: &Wanted) -> Result<Vec<Found<'a>>, FindError> {
    match wanted {
        Wanted::All if found.is_empty() => Err(FindError::Empty),
        Wanted::All => Ok(found),
        Wanted::Name(name) => {
            let copies: Vec<Found<'a>> = found.into_iter().filter(|f| f.entry.name == *name).collect();
            if copies.is_empty() { Err(FindError::NoBackup(name.to_string())) } else { Ok(copies) }
        }
        Wanted::Latest => {
            let counts =
                |f: &Found<'_>| f.entry.manifest.as_ref().is_ok_and(crate::manifest::Manifest::counts);
            let newest = found.iter().filter(|f| counts(f)).map(|f| f.entry.name.clone()).max();
            let newest = newest.ok_or(FindError::NoLatest)?;
            Ok(found.into_iter().filter(|f| f.entry.name == newest).collect())
        }
        Wanted::File(path) => Err(FindError::NoBackup(path.display().to_string())),
    }
}

/// A backup whose archive lies as a file on this machine, its small files beside it.
pub fn file(path: &Path, exe: &Path, cancel: &Cancel) -> Result<Found<'static>, FindError> {
    let shown = path.display().to_string();
    let file_name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let name = BackupName::of_object(&file_name).ok_or(crate::id::NameError::Backup(file_name))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let store = FsStore::unmarked(parent, exe);
    let entry = catalog::list(&store, "", cancel)?
        .into_iter()
        .find(|e| e.name == name)
        .ok_or_else(|| FindError::NotCommitted(shown, name.manifest_file()))?;
    Ok(Found { store: StoreRef::Directory(Box::new(store)), dir: String::new(), tier: String::new(), entry })
}
