//! All that a new machine needs to get the backups back, gathered for paper. What could go wrong: the secrets in it are seen
//! on the way; so they are read here, kept in a value that nothing prints by chance, and told to the vault, which keeps them
//! out of every line. And a kit that lacks something on the day: what could not be read here is named in it, and so is what
//! will not come back by itself.

mod stacks;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::World;
use crate::cancel::Interrupted;
use crate::config::{Components, Tier};
use crate::docker::compose::{self, Stack};
use crate::format::deb::{DebName, compare_versions};
use crate::hint::{Hint, chain};
use crate::keyring::KeyError;
use crate::keys::Identities;
use crate::reach::{self, OWN, Outside, Reach, is_our_credential};
use crate::secret::SecretRef;
use crate::setup::Setup;
use crate::store::{self, Kept, Key, Store, StoreError};
use crate::vault::SecretError;

/// A file that must lie at the same path on another machine is no longer than this.
const MOST_BYTES: u64 = 1 << 20;

/// The package of this program, as its files begin.
const PACKAGE: &str = "tars-backup";

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
    /// Where the configuration lies, where that must be said to every command.
    pub config: Option<PathBuf>,
    /// The first one is that of the commands.
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
    /// What a machine without a configuration does not get back, because it belongs to the system.
    pub by_hand: Vec<String>,
    /// The stacks whose data is in the backups.
    pub stacks: Vec<Stack>,
    /// What this machine has to make containers from them: `docker compose` or `docker-compose`.
    pub compose_program: &'static str,
    /// What is not in it because it could not be read, and what to do.
    pub missing: Vec<String>,
    /// What would make a recovery easier.
    pub advice: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
pub struct KitStore {
    pub name: String,
    pub location: String,
    pub offsite: bool,
    /// Those that bring backups there.
    pub tiers: Vec<String>,
    /// Whether the configuration is among them.
    pub has_configuration: bool,
    /// What `--from` takes.
    pub url: String,
    pub facts: Vec<(&'static str, String)>,
    /// By the names that `--credentials` takes; None where it could not be read.
    pub keys: Vec<(&'static str, Option<Secret>)>,
    pub files: Vec<KitFile>,
    /// Where its root is seen by https, and the region that a request is signed for.
    pub web: Option<(String, String)>,
    /// What has to be mounted before it is there.
    pub mount: Option<KitMount>,
    /// Packages of tars-backup that lie there.
    pub packages: Vec<KitPackage>,
    pub notes: Vec<String>,
}

/// A file that the store cannot do without: certificates, host keys, settings.
#[derive(Debug, Serialize)]
pub struct KitFile {
    /// As the configuration calls it.
    pub what: &'static str,
    pub path: PathBuf,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct KitMount {
    pub source: String,
    pub point: PathBuf,
    pub kind: String,
    pub options: Vec<String>,
    /// It lies on another machine.
    pub network: bool,
}

#[derive(Debug, Serialize)]
pub struct KitPackage {
    pub file: String,
    pub architecture: String,
    pub version: String,
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
    #[error("the private keys would not read back from paper as they are")]
    NotPrintable,
}

impl Hint for KitError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Key(e) => e.hint(),
            Self::NoStore(_) => Some("see which there are: tars-backup config show".into()),
            Self::NotPrintable => {
                Some("name one file with --identity, and print another kit for the next".into())
            }
            Self::Interrupted(_) | Self::NoUrl(_) => None,
        }
    }
}

/// `only`: the store that was asked for. `config`: where the configuration lies, if that is not where it is looked for.
pub fn gather(
    setup: &Setup,
    only: Option<&str>,
    config: Option<&Path>,
    world: &World<'_>,
) -> Result<Kit, KitError> {
    if let Some(name) = only.filter(|name| setup.store(name).is_none()) {
        return Err(KitError::NoStore(name.to_owned()));
    }
    let (mut missing, mut advice) = (Vec::new(), Vec::new());
    let mut stores = Vec::new();
    for store in setup.stores.iter().filter(|s| only.is_none_or(|name| s.name() == name)) {
        match one(store.as_ref(), setup, world, &mut missing)? {
            Some(store) => stores.push(store),
            None if only.is_some() => return Err(KitError::NoUrl(store.name().to_owned())),
            None => {}
        }
    }
    stores.sort_by_key(place_of);
    if !stores.iter().any(|s| !s.packages.is_empty()) {
        advice.push(
            "no store keeps the package of tars-backup: tars-backup store init STORE --with-package FILE"
                .into(),
        );
    }
    let recipients: Vec<String> = setup.encryption.recipients.texts().map(str::to_owned).collect();
    let identities = identities(&recipients, world, &mut missing)?;
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
    let below = reach::dirs_of(files.iter().copied().chain(secrets.clone()));
    let credentials = setup
        .secret_refs
        .iter()
        .filter_map(|r| if let SecretRef::Credential(name) = r { Some(name.as_str()) } else { None });
    let by_hand = by_hand(files.iter().copied().chain(secrets), credentials);
    if !by_hand.is_empty() {
        advice.push(format!(
            "these belong to the system and do not come back by themselves: {}: put them back by hand, from \
             config/originals.tar.age of the backup (docs/sealing.md, Open by hand)",
            by_hand.join(", ")
        ));
    }
    if let Some(path) = config.filter(|path| Reach::default().judge(path).is_err()) {
        missing.push(format!(
            "the configuration lies at {} and cannot come back by itself: move it below {OWN}, and print the kit again",
            path.display()
        ));
    }
    Ok(Kit {
        host: setup.host.clone(),
        made: (world.now)(),
        version: env!("CARGO_PKG_VERSION"),
        config: config.map(Path::to_owned),
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
        by_hand,
        stacks: stacks::of(setup, only, &files, world)?,
        compose_program: compose::program(),
        missing,
        advice,
    })
}

/// What a bare machine refuses to write, whatever is named to it: files, and credentials that systemd itself acts on.
fn by_hand<'a>(
    paths: impl Iterator<Item = &'a Path>,
    credentials: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let none = Reach::default();
    let of_system = |path: &&Path| none.judge(path) == Err(Outside::System);
    let mut all: Vec<String> = paths.filter(of_system).map(|path| path.display().to_string()).collect();
    all.extend(credentials.filter(|name| !is_our_credential(name)).map(|name| format!("credential {name}")));
    all.sort();
    all.dedup();
    all
}

/// First comes what has backups, and of that what has the configuration, and of that what is at hand when the house is
/// gone.
fn place_of(store: &KitStore) -> (bool, bool, bool) {
    (store.tiers.is_empty(), !store.has_configuration, !store.offsite)
}

/// Whether backups of a tier have the configuration; one that is copied has what the other tier has.
fn has_configuration(setup: &Setup, tier: &Tier) -> bool {
    let from = tier.promote_from.as_deref().and_then(|name| setup.tier(name)).unwrap_or(tier);
    setup.sources.iter().filter(|s| s.source.is_configuration()).any(|s| match &from.components {
        Components::Default => s.on_by_default,
        Components::All => true,
        Components::These(names) => names.iter().any(|name| *name == s.name.as_str()),
    })
}

/// The newest package of this program for each architecture.
fn newest(kept: Vec<Kept>) -> Vec<KitPackage> {
    let mut all: Vec<KitPackage> = Vec::new();
    let of = |file: &str| {
        let name = DebName::parse(file).filter(|name| name.package == PACKAGE)?;
        Some((name.architecture.to_owned(), name.version.to_owned()))
    };
    for package in kept {
        let Some((architecture, version)) = of(&package.file) else { continue };
        let this = KitPackage { architecture, version, file: package.file, sha256: package.sha256 };
        match all.iter_mut().find(|known| known.architecture == this.architecture) {
            Some(known) if compare_versions(&known.version, &this.version).is_lt() => *known = this,
            Some(_) => {}
            None => all.push(this),
        }
    }
    all.sort_by(|a, b| a.architecture.cmp(&b.architecture));
    all
}

fn one(
    store: &dyn Store,
    setup: &Setup,
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
    for (what, path) in &kit.files {
        let long = std::fs::metadata(path).is_ok_and(|m| m.len() > MOST_BYTES);
        match std::fs::read_to_string(path) {
            Ok(text) if !long => files.push(KitFile { what, path: path.clone(), text }),
            Ok(_) => lacks(format!("{} is too long for paper: keep it, too", path.display())),
            Err(e) => lacks(format!("{} could not be read here ({e}): keep it, too", path.display())),
        }
    }
    let packages = match store.reach(world.cancel).and_then(|()| store::kept(store, world.cancel)) {
        Ok(kept) => newest(kept),
        Err(StoreError::Interrupted(i)) => return Err(i),
        Err(e) => {
            lacks(format!("it could not be asked for the package of tars-backup ({})", chain(&e)));
            Vec::new()
        }
    };
    let used: Vec<&Tier> = setup.tiers.iter().filter(|t| t.stores.iter().any(|s| s == name)).collect();
    let mut notes = kit.notes;
    if used.is_empty() {
        notes.push("no tier uses it: it may have no backups, and no command below takes one from it".into());
    }
    Ok(Some(KitStore {
        name: name.to_owned(),
        location: store.location(),
        offsite: store.is_offsite(),
        tiers: used.iter().map(|t| t.name.to_string()).collect(),
        has_configuration: used.iter().any(|t| has_configuration(setup, t)),
        url: kit.url,
        facts: kit.facts,
        keys,
        files,
        web: kit.web,
        mount: kit.mount.map(|m| KitMount {
            network: m.is_network(),
            source: m.source,
            point: m.point,
            kind: m.kind,
            options: m.options,
        }),
        packages,
        notes,
    }))
}

/// The key as it opens the store. One of ssh has more lines than one, and a line break at its end.
fn read(label: &str, key: &Key, world: &World<'_>) -> Result<String, SecretError> {
    let value = key.read(label, world.vault)?;
    Ok(if label == "ssh_key" { format!("{value}\n") } else { value })
}

/// What the keyring has read: its files may be pipes, which say nothing a second time.
fn identities(
    recipients: &[String],
    world: &World<'_>,
    missing: &mut Vec<String>,
) -> Result<Vec<Secret>, KitError> {
    // None is no lack: on a host that is backed up it has no place.
    let Some(found) = world.keyring.identities(world.vault)? else { return Ok(Vec::new()) };
    let texts: Vec<Secret> = found.texts().map(|text| Secret(text.to_owned())).collect();
    let read_back = Identities::parse(&identity_file(&texts));
    if !read_back.is_ok_and(|again| again.recipients().eq(found.recipients())) {
        return Err(KitError::NotPrintable);
    }
    let opens = |key: &str| recipients.iter().any(|r| r == key);
    if !recipients.is_empty() && !found.recipients().any(opens) {
        missing.push(format!(
            "no private key that is printed here opens what is sealed from now on, for {}: name the one that does with \
             --identity FILE",
            recipients.join(", ")
        ));
    }
    Ok(texts)
}

/// Private keys as one file.
pub fn identity_file(texts: &[Secret]) -> String {
    texts.iter().map(|text| format!("{}\n", text.0.trim_end_matches('\n'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(name: &str, tiers: &[&str], has_configuration: bool, offsite: bool) -> KitStore {
        KitStore {
            name: name.into(),
            offsite,
            tiers: tiers.iter().map(|t| (*t).to_owned()).collect(),
            has_configuration,
            ..KitStore::default()
        }
    }

    #[test]
    fn the_farthest_store_that_has_the_configuration_comes_first() {
        let mut stores = [
            store("unused", &[], false, true),
            store("nas", &["hot"], true, false),
            store("data", &["logs"], false, true),
            store("bucket", &["cold"], true, true),
        ];
        stores.sort_by_key(place_of);
        let names: Vec<&str> = stores.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(names, ["bucket", "nas", "data", "unused"]);
    }

    #[test]
    fn of_each_architecture_the_newest_package_of_this_program_is_named() {
        let kept = |file: &str| Kept { file: file.into(), sha256: None };
        let files = [
            "age_1.1.1-1_amd64.deb",
            "tars-backup_0.10.0-1_amd64.deb",
            "tars-backup_0.9.0-1_amd64.deb",
            "tars-backup_0.9.0-1_arm64.deb",
            "zfs_2_amd64.deb",
        ];
        let found = newest(files.iter().map(|f| kept(f)).collect());
        let found: Vec<&str> = found.iter().map(|p| p.file.as_str()).collect();
        assert_eq!(found, ["tars-backup_0.10.0-1_amd64.deb", "tars-backup_0.9.0-1_arm64.deb"]);
    }

    #[test]
    fn what_is_of_the_system_is_put_back_by_hand() {
        let paths =
            ["/opt/stack/.env", "/etc/docker/daemon.json", "/root/.ssh/id", "/etc/tars-backup/ca.pem"];
        let found = by_hand(paths.iter().map(Path::new), ["b2-key", "tmpfiles.extra"].into_iter());
        assert_eq!(found, ["/etc/docker/daemon.json", "/root/.ssh/id", "credential tmpfiles.extra"]);
    }
}
