//! Which stored backup is meant.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::World;
use crate::archive::seal::{SealError, unseal};
use crate::cancel::Cancel;
use crate::catalog::{self, Entry, Listing};
use crate::hint::Hint;
use crate::id::BackupName;
use crate::keyring::KeyError;
use crate::manifest::Manifest;
use crate::setup::Setup;
use crate::store::{self, FsStore, HOSTS, Store, StoreError, object};
use crate::stored::PartSums;

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
    /// What is in the trash, and nothing else; it counts nowhere.
    pub trash: bool,
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
    /// One that was named for this command alone.
    Named(Arc<dyn Store>),
}

impl Found<'_> {
    pub fn store(&self) -> &dyn Store {
        match &self.store {
            StoreRef::Configured(s) => *s,
            StoreRef::Named(s) => s.as_ref(),
        }
    }

    /// Its archive as it is stored, and the digests of its parts once they are read.
    pub fn open(&self, cancel: &Cancel) -> Result<(Box<dyn Read + Send + '_>, PartSums), StoreError> {
        self.entry.archive.open(self.store(), &self.dir, cancel)
    }

    /// Its archive as it was packed: a sealed one is opened.
    pub fn open_plain(
        &self,
        manifest: &Manifest,
        world: &World<'_>,
    ) -> Result<Box<dyn Read + Send + '_>, OpenError> {
        let (stored, _) = self.open(world.cancel)?;
        opened(stored, manifest, world)
    }
}

/// The plain archive in what a store holds.
pub fn opened<'a>(
    stored: Box<dyn Read + Send + 'a>,
    manifest: &Manifest,
    world: &World<'_>,
) -> Result<Box<dyn Read + Send + 'a>, OpenError> {
    if !manifest.encryption.is_sealed() {
        return Ok(stored);
    }
    let identities = world.keyring.identities(world.vault)?.ok_or(OpenError::NoIdentity)?;
    Ok(unseal(stored, &identities)?)
}

/// Why the archive of a backup cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("it is sealed, and no identity is here")]
    NoIdentity,
}

impl Hint for OpenError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Store(e) => e.hint(),
            Self::Seal(e) => e.hint(),
            Self::Key(e) => e.hint(),
            Self::NoIdentity => Some("name the file of an identity: --identity FILE".into()),
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
    #[error("no machine {host:?} has backups there")]
    NoHost { host: String, known: String },
    #[error("several machines have backups there: {0}")]
    ManyHosts(String),
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
            Self::NoHost { known, .. } => format!("there are those of: {known}"),
            Self::ManyHosts(_) => "say whose: --host NAME".into(),
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
        let host = filter.host.as_deref().unwrap_or(&setup.host);
        let dir = store::tier_dir(store, host, &tier.path);
        for entry in catalog::list(store, &dir, cancel)? {
            cancel.check()?;
            if is_of(&entry, filter.host.as_deref()) && entry.trash.is_some() == filter.trash {
                let tier = tier.name.to_string();
                found.push(Found { store: StoreRef::Configured(store), dir: dir.clone(), tier, entry });
            }
        }
    }
    Ok(found)
}

/// Of a manifest that cannot be read nobody knows whose it is: it is shown, or its damage would never be.
fn is_of(entry: &Entry, host: Option<&str>) -> bool {
    let made_by = entry.manifest.as_ref().map(|m| m.host.as_str()).ok();
    host.is_none_or(|h| made_by.is_none_or(|m| m == h))
}

/// What was found, and the stores that could not be looked at.
pub type Everywhere<'a> = (Vec<Found<'a>>, Vec<(String, StoreError)>);

/// Every copy of one backup in the stores of the configuration, also one in the trash; and the stores that could not be
/// looked at.
pub fn copies_of<'a>(
    setup: &'a Setup,
    name: &BackupName,
    cancel: &Cancel,
) -> Result<Everywhere<'a>, FindError> {
    let (mut found, mut failed) = (Vec::new(), Vec::new());
    for store in setup.stores.iter().map(AsRef::as_ref) {
        match store.reach(cancel).and_then(|()| copies_in(setup, store, name, cancel)) {
            Ok(copies) => found.extend(copies),
            Err(StoreError::Interrupted(i)) => return Err(StoreError::Interrupted(i).into()),
            Err(e) => failed.push((store.name().to_owned(), e)),
        }
    }
    Ok((found, failed))
}

/// The same in one store, which must be there.
pub fn copies_in<'a>(
    setup: &Setup,
    store: &'a dyn Store,
    name: &BackupName,
    cancel: &Cancel,
) -> Result<Vec<Found<'a>>, StoreError> {
    let mut found = Vec::new();
    for tier in &setup.tiers {
        let dir = store::tier_dir(store, &setup.host, &tier.path);
        let listing = Listing::of(store, &dir, cancel)?;
        if let Some(entry) =
            listing.names().contains(name).then(|| listing.entry(name.clone())).transpose()?.flatten()
        {
            let tier = tier.name.to_string();
            found.push(Found { store: StoreRef::Configured(store), dir: dir.clone(), tier, entry });
        }
    }
    Ok(found)
}

/// Deeper than any path of a tier; a loop of links ends there.
const DEEPEST: usize = 8;

/// All committed backups of a store of which no configuration knows the tiers, oldest first: every directory is looked
/// into. Where several machines share it, `host` says which one is meant.
pub fn everywhere(
    store: Arc<dyn Store>,
    host: Option<&str>,
    cancel: &Cancel,
) -> Result<Vec<Found<'static>>, FindError> {
    store.reach(cancel)?;
    let hosts = store.dirs(HOSTS, cancel)?;
    let home = match (host, hosts.as_slice()) {
        (_, []) => String::new(),
        (Some(host), hosts) => {
            let name = crate::id::encode(host);
            if !hosts.contains(&name) {
                return Err(FindError::NoHost { host: host.to_owned(), known: hosts.join(", ") });
            }
            object(HOSTS, &name)
        }
        (None, [one]) => object(HOSTS, one),
        (None, several) => return Err(FindError::ManyHosts(several.join(", "))),
    };
    let mut dirs = vec![(home.clone(), 0)];
    let mut found = Vec::new();
    while let Some((dir, depth)) = dirs.pop() {
        if depth < DEEPEST {
            let below = store.dirs(&dir, cancel)?;
            let hosts_of_others = |name: &String| dir.is_empty() && name == HOSTS;
            dirs.extend(
                below.iter().filter(|n| !hosts_of_others(n)).map(|name| (object(&dir, name), depth + 1)),
            );
        }
        for entry in catalog::list(store.as_ref(), &dir, cancel)? {
            if is_of(&entry, host) && entry.trash.is_none() {
                let tier = dir.strip_prefix(&home).unwrap_or(&dir).trim_start_matches('/').to_owned();
                found.push(Found { store: StoreRef::Named(store.clone()), dir: dir.clone(), tier, entry });
            }
        }
    }
    found.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
    Ok(found)
}

/// How far the clocks of two machines may be apart.
pub const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// Whether it was made after now, by a clock that was wrong. Of one that tells no time nobody knows.
pub fn is_future(entry: &Entry, now: Timestamp) -> bool {
    let time = entry.manifest.as_ref().ok().and_then(|m| m.timestamp.parse::<Timestamp>().ok());
    time.is_some_and(|t| t.duration_since(now) > CLOCKS_DIFFER)
}

/// The newest one. One of the future would be that until its date, and hide all that is made meanwhile; only where there
/// is no other it is taken, since then it may be the clock of this machine that is wrong.
pub fn newest<'a>(entries: impl Iterator<Item = &'a Entry>, now: Timestamp) -> Option<&'a Entry> {
    entries.max_by_key(|e| (!is_future(e, now), &e.name))
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
            let counts = |e: &&Entry| e.manifest.as_ref().is_ok_and(Manifest::counts);
            let newest = newest(found.iter().map(|f| &f.entry).filter(counts), Timestamp::now());
            let newest = newest.ok_or(FindError::NoLatest)?.name.clone();
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
    Ok(Found { store: StoreRef::Named(Arc::new(store)), dir: String::new(), tier: String::new(), entry })
}
