//! All that a new machine needs to get the backups back, gathered for paper. What could go wrong: the secrets in it are seen
//! on the way; so they are read here, kept in a value that nothing prints by chance, and told to the vault, which keeps them
//! out of every line. And a kit that lacks something on the day: what could not be read here is named in it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::World;
use super::find::{self, Filter, FindError};
use crate::cancel::Interrupted;
use crate::catalog::Entry;
use crate::docker::compose::{self, Stack};
use crate::hint::{Hint, chain};
use crate::keyring::KeyError;
use crate::reach;
use crate::secret::SecretRef;
use crate::setup::Setup;
use crate::store::{self, Key, Store, StoreError};
use crate::vault::SecretError;

/// A file that must lie at the same path on another machine is no longer than this.
const MOST_BYTES: u64 = 1 << 20;

/// A value that only the paper shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

#[derive(Debug, Serialize)]
pub struct Kit {
    pub host: String,
    pub made: Timestamp,
    pub version: &'static str,
    pub stores: Vec<KitStore>,
    pub recipients: Vec<String>,
    /// Private keys, as their files are.
    pub identities: Vec<Secret>,
    /// Where the private key is to be found, where it is configured.
    pub identity_from: Option<String>,
    /// The sources of the configuration.
    pub components: Vec<String>,
    /// Directories of the stack, to be named when its files are put back.
    pub below: Vec<PathBuf>,
    /// The stacks whose data is in the backups.
    pub stacks: Vec<Stack>,
    /// What this machine has to make containers from them: `docker compose` or `docker-compose`.
    pub compose_program: &'static str,
    /// What is not in it because it could not be read, and what to do.
    pub missing: Vec<String>,
    /// What would make a recovery easier.
    pub advice: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct KitStore {
    pub name: String,
    pub location: String,
    pub offsite: bool,
    /// What `--from` takes.
    pub url: String,
    pub facts: Vec<(&'static str, String)>,
    /// By the names that `--credentials` takes; None where it could not be read.
    pub keys: Vec<(&'static str, Option<Secret>)>,
    pub files: Vec<KitFile>,
    /// Where its root is seen by https, and the region that a request is signed for.
    pub web: Option<(String, String)>,
    /// Packages of tars-backup that lie there.
    pub packages: Vec<KitPackage>,
    pub notes: Vec<String>,
}

/// A file that the URL names: certificates, host keys.
#[derive(Debug, Serialize)]
pub struct KitFile {
    pub path: PathBuf,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct KitPackage {
    pub file: String,
    pub sha256: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum KitError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("there is no store {0:?}")]
    NoStore(String),
    #[error("the store {0:?} is forgotten with the process: nothing leads to it")]
    NoUrl(String),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Hint for KitError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Key(e) => e.hint(),
            Self::NoStore(_) => Some("see which there are: tars-backup config show".into()),
            Self::Interrupted(_) | Self::NoUrl(_) => None,
        }
    }
}

/// `only`: the store that was asked for. `given`: files of private keys to be printed, too.
pub fn gather(
    setup: &Setup,
    only: Option<&str>,
    given: &[PathBuf],
    world: &World<'_>,
) -> Result<Kit, KitError> {
    if let Some(name) = only.filter(|name| setup.store(name).is_none()) {
        return Err(KitError::NoStore(name.to_owned()));
    }
    let (mut missing, mut advice) = (Vec::new(), Vec::new());
    let mut stores = Vec::new();
    for store in setup.stores.iter().filter(|s| only.is_none_or(|name| s.name() == name)) {
        match one(store.as_ref(), world, &mut missing)? {
            Some(store) => stores.push(store),
            None if only.is_some() => return Err(KitError::NoUrl(store.name().to_owned())),
            None => {}
        }
    }
    // What is at hand when the house is gone comes first.
    stores.sort_by_key(|s: &KitStore| !s.offsite);
    if !stores.iter().any(|s| !s.packages.is_empty()) {
        advice.push(
            "no store keeps the package of tars-backup: tars-backup store init STORE --with-package FILE"
                .into(),
        );
    }
    let recipients: Vec<String> = setup.encryption.recipients.texts().map(str::to_owned).collect();
    let identities = identities(setup, given, world, &mut missing)?;
    if recipients.is_empty() {
        advice.push(
            "the secrets of the stack are in no backup, as [encryption] names no recipient: keep the configuration elsewhere, too"
                .into(),
        );
    }
    let files: Vec<&Path> =
        setup.sources.iter().flat_map(|s| s.source.files()).map(PathBuf::as_path).collect();
    let secrets = setup
        .secret_refs
        .iter()
        .filter_map(|r| if let SecretRef::File(p) = r { Some(p.as_path()) } else { None });
    let below = reach::dirs_of(files.iter().copied().chain(secrets));
    Ok(Kit {
        host: setup.host.clone(),
        made: (world.now)(),
        version: env!("CARGO_PKG_VERSION"),
        stores,
        recipients,
        identities,
        identity_from: setup.encryption.identity.as_ref().map(ToString::to_string),
        components: setup
            .sources
            .iter()
            .filter(|s| s.source.is_configuration())
            .map(|s| s.name.to_string())
            .collect(),
        below,
        stacks: stacks(setup, only, &files, world)?,
        compose_program: compose::program(),
        missing,
        advice,
    })
}

fn one(
    store: &dyn Store,
    world: &World<'_>,
    missing: &mut Vec<String>,
) -> Result<Option<KitStore>, Interrupted> {
    let Some(kit) = store.kit() else { return Ok(None) };
    let name = store.name();
    let mut lacks = |what: String| missing.push(format!("store {name}: {what}"));
    let mut keys = Vec::new();
    for (label, key) in &kit.keys {
        match read(label, key, world) {
            Ok(value) => keys.push((*label, Some(Secret(value)))),
            Err(e) => {
                lacks(format!("its {label} could not be read here ({}): write it in by hand", chain(&e)));
                keys.push((*label, None));
            }
        }
    }
    let mut files = Vec::new();
    for path in &kit.files {
        let long = std::fs::metadata(path).is_ok_and(|m| m.len() > MOST_BYTES);
        match std::fs::read_to_string(path) {
            Ok(text) if !long => files.push(KitFile { path: path.clone(), text }),
            Ok(_) => lacks(format!("{} is too long for paper: keep it, too", path.display())),
            Err(e) => lacks(format!("{} could not be read here ({e}): keep it, too", path.display())),
        }
    }
    let packages = match store.reach(world.cancel).and_then(|()| store::kept(store, world.cancel)) {
        Ok(kept) => kept.into_iter().map(|k| KitPackage { file: k.file, sha256: k.sha256 }).collect(),
        Err(StoreError::Interrupted(i)) => return Err(i),
        Err(e) => {
            lacks(format!("it could not be asked for the package of tars-backup ({})", chain(&e)));
            Vec::new()
        }
    };
    Ok(Some(KitStore {
        name: name.to_owned(),
        location: store.location(),
        offsite: store.is_offsite(),
        url: kit.url,
        facts: kit.facts,
        keys,
        files,
        web: kit.web,
        packages,
        notes: kit.notes,
    }))
}

/// The key as it opens the store. One of ssh has more lines than one, and a line break at its end.
fn read(label: &str, key: &Key, world: &World<'_>) -> Result<String, SecretError> {
    let value = key.read(label, world.vault)?;
    Ok(if label == "ssh_key" { format!("{value}\n") } else { value })
}

fn identities(
    setup: &Setup,
    given: &[PathBuf],
    world: &World<'_>,
    missing: &mut Vec<String>,
) -> Result<Vec<Secret>, KitError> {
    // What is no identity is refused here, and its lines are known to the vault from now on.
    let found = world.keyring.identities(world.vault)?;
    let mut all = Vec::new();
    for path in given {
        match std::fs::read_to_string(path) {
            Ok(text) => all.push(Secret(text)),
            Err(e) => missing.push(format!("{} cannot be read twice ({e}): name a file", path.display())),
        }
    }
    if let (Some(_), true, Some(reference)) = (&found, given.is_empty(), &setup.encryption.identity)
        && let Ok(text) = world.vault.read(reference)
    {
        all.push(Secret(format!("{text}\n")));
    }
    // None is no lack: on a host that is backed up it has no place.
    Ok(all)
}

/// As their containers said when the newest backup was made; where none did, by the names of the files of the
/// configuration.
fn stacks(
    setup: &Setup,
    only: Option<&str>,
    files: &[&Path],
    world: &World<'_>,
) -> Result<Vec<Stack>, KitError> {
    let filter = Filter { store: only.map(str::to_owned), ..Filter::default() };
    // That a store cannot be looked at is told where it is asked for the package.
    let found = match find::all(setup, &filter, world.cancel) {
        Ok((found, _)) => found,
        Err(FindError::Store(StoreError::Interrupted(i))) => return Err(i.into()),
        Err(_) => Vec::new(),
    };
    let mut stacks = found.iter().rev().map(|f| noted(&f.entry)).find(|s| !s.is_empty()).unwrap_or_default();
    if stacks.is_empty() {
        let project = &setup.docker.project;
        stacks = compose_files(files)
            .into_iter()
            .map(|files| Stack { project: project.clone(), files, ..Stack::default() })
            .collect();
    }
    for stack in &mut stacks {
        stack.environment = environment(stack, files);
    }
    Ok(stacks)
}

fn noted(entry: &Entry) -> Vec<Stack> {
    let mut all = Vec::new();
    for stack in entry.manifest.iter().flat_map(|m| m.details.values()).filter_map(Stack::noted) {
        if !all.contains(&stack) {
            all.push(stack);
        }
    }
    all
}

/// Without the file of variables, passwords would be empty. Compose reads `.env` by itself; another one has to be named,
/// and version 1 did not note which. One too many only tells names that nobody asks for.
fn environment(stack: &Stack, files: &[&Path]) -> Vec<PathBuf> {
    let dir = stack.directory.as_deref().or_else(|| stack.files.first()?.parent());
    let beside: Vec<&Path> = files.iter().copied().filter(|f| f.parent() == dir).collect();
    if !stack.environment.is_empty() || beside.iter().any(|f| f.ends_with(".env")) {
        return stack.environment.clone();
    }
    beside.into_iter().filter(|f| f.extension().is_some_and(|e| e == "env")).map(Path::to_owned).collect()
}

/// Compose files by directory, `docker-compose.yml` before `docker-compose.override.yml`.
fn compose_files(files: &[&Path]) -> Vec<Vec<PathBuf>> {
    let is_compose = |p: &&&Path| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
        yaml && (name.starts_with("compose.") || name.starts_with("docker-compose"))
    };
    let mut dirs: Vec<Vec<PathBuf>> = Vec::new();
    for path in files.iter().filter(is_compose) {
        match dirs.iter_mut().find(|d| d.first().and_then(|p| p.parent()) == path.parent()) {
            Some(dir) => dir.push(path.to_path_buf()),
            None => dirs.push(vec![path.to_path_buf()]),
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_variables_is_named_unless_compose_finds_it() {
        let path = Path::new;
        let files = [path("/a/docker-compose.home.yml"), path("/a/tars-home.env"), path("/b/x.env")];
        let of = |files: &[&Path]| {
            let stack = Stack { files: vec!["/a/docker-compose.home.yml".into()], ..Stack::default() };
            environment(&stack, files)
        };
        assert_eq!(of(&files), [path("/a/tars-home.env")]);
        assert_eq!(of(&[&files[..], &[path("/a/.env")]].concat()), [""; 0].map(PathBuf::from));
    }
}
