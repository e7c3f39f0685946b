//! One backup: look, capture, pack, deliver, commit. What could go wrong: to say that all is well when it is not; so
//! every failure ends up in the `Outcome`, and only what was read back from a store is committed there.

mod capture;
mod compose;
mod deliver;
mod gate;
mod preview;
mod ready;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::World;
use super::pins::{self, PinError};
use super::prune::{self, Plot};
use crate::archive::gzip::Pool;
use crate::archive::pack::PackError;
use crate::cancel::Interrupted;
use crate::catalog::Listing;
use crate::config::{Agent, Components, Seal, Tier};
use crate::delivery::Receipt;
use crate::docker::hold::Holds;
use crate::docker::{Docker, DockerError};
use crate::exit::Verdict;
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::last_run::LastRun;
use crate::manifest::{ComponentState, ManifestError, State};
use crate::marks::Pin;
use crate::progress::{Event, What};
use crate::run_guard::RunGuard;
use crate::run_journal::RunJournal;
use crate::setup::Setup;
use crate::source::{Configured, Context, MODELS};
use crate::spool::Spool;
use crate::staging::{Staging, StagingError, make_private};
use crate::store::{self, FsStore, Store, StoreError};
use crate::units::millis;

pub use preview::{Preview, preview};
pub use ready::wait as wait_ready;

use deliver::{Bench, Shipment};
pub(super) use deliver::{bring, committed, note_begun, sealed};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub tier: Option<String>,
    pub output_dir: Option<PathBuf>,
    pub only: Vec<String>,
    pub skip: Vec<String>,
    /// Also the models of sources that are not on by default.
    pub include_models: bool,
    /// Old spellings: skipped where they are configured.
    pub skip_if_present: Vec<&'static str>,
    /// What `only` names need not belong to the tier.
    pub any_tier: bool,
    pub tags: Vec<String>,
    /// Kept whatever the rules say.
    pub pin: Option<Pin>,
    /// For ourselves, on this machine: never sealed, whatever the configuration says.
    pub private: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("there is no tier {name:?}")]
    NoTier { name: String, known: String },
    #[error("there is no source {name:?} in tier {tier:?}")]
    NoComponent { name: String, tier: String, known: String },
    #[error("nothing is left to back up")]
    Nothing,
}

impl Hint for PlanError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoTier { known, .. } => format!("configured tiers: {known}"),
            Self::NoComponent { known, .. } => format!("it has: {known}"),
            Self::Nothing => "leave out --only and --skip, or look at components = of the tier".into(),
        })
    }
}

/// What a run will do.
pub struct BackupPlan<'a> {
    pub tier: &'a Tier,
    /// The tier's components.
    pub expected: Vec<&'a Configured>,
    /// Those of them that this run captures.
    pub selected: Vec<&'a Configured>,
    pub targets: Vec<Target<'a>>,
    request: &'a Request,
}

impl BackupPlan<'_> {
    /// Whether it holds only what somebody chose for an occasion.
    pub fn is_handpicked(&self) -> bool {
        let r = self.request;
        let skips = self.selected.len() < self.expected.len();
        !r.only.is_empty() || skips || r.tags.iter().any(|t| t == "pre-restore")
    }
}

pub struct Target<'a> {
    pub store: TargetStore<'a>,
    pub dir: String,
    /// Whether it gets the archive sealed.
    pub sealed: bool,
}

pub enum TargetStore<'a> {
    Configured(&'a dyn Store),
    Directory(FsStore),
}

impl Target<'_> {
    pub fn store(&self) -> &dyn Store {
        match &self.store {
            TargetStore::Configured(s) => *s,
            TargetStore::Directory(s) => s,
        }
    }

    /// Whether it is a store that is there tomorrow, and can be waited for.
    pub fn is_configured(&self) -> bool {
        matches!(self.store, TargetStore::Configured(_))
    }
}

/// Decides what to do; touches nothing.
pub fn plan<'a>(
    setup: &'a Setup,
    request: &'a Request,
    exe: &std::path::Path,
) -> Result<BackupPlan<'a>, PlanError> {
    let wanted = request.tier.as_deref().unwrap_or(&setup.agent.default_tier);
    let tier = setup.tier(wanted).ok_or_else(|| PlanError::NoTier {
        name: wanted.to_owned(),
        known: setup.tiers.iter().map(|t| t.name.to_string()).collect::<Vec<_>>().join(", "),
    })?;
    let expected: Vec<&Configured> = setup
        .sources
        .iter()
        .filter(|s| {
            let asked_for = request.include_models && s.kind == MODELS;
            let named = request.any_tier && request.only.iter().any(|name| name == s.name.as_str());
            is_of(s, tier) || asked_for || named
        })
        .collect();
    for name in request.only.iter().chain(&request.skip) {
        if !expected.iter().any(|s| s.name.as_str() == name) {
            let known: Vec<String> = expected.iter().map(|s| s.name.to_string()).collect();
            return Err(PlanError::NoComponent {
                name: name.clone(),
                tier: tier.name.to_string(),
                known: known.join(", "),
            });
        }
    }
    let selected: Vec<&Configured> = expected
        .iter()
        .copied()
        .filter(|s| {
            let name = s.name.as_str();
            let only = request.only.is_empty() || request.only.iter().any(|o| o == name);
            let skipped = request.skip.iter().any(|o| o == name) || request.skip_if_present.contains(&name);
            only && !skipped
        })
        .collect();
    if selected.is_empty() {
        return Err(PlanError::Nothing);
    }
    let targets = match &request.output_dir {
        Some(dir) => {
            let store = FsStore::unmarked(dir, exe);
            let sealed = !request.private && seals(setup, &store);
            vec![Target { store: TargetStore::Directory(store), dir: String::new(), sealed }]
        }
        None => tier
            .stores
            .iter()
            .filter_map(|name| setup.store(name))
            .map(|s| Target {
                store: TargetStore::Configured(s),
                dir: store::tier_dir(s, &setup.host, &tier.path),
                sealed: seals(setup, s),
            })
            .collect(),
    };
    Ok(BackupPlan { tier, expected, selected, targets, request })
}

fn is_of(source: &Configured, tier: &Tier) -> bool {
    match &tier.components {
        Components::Default => source.on_by_default,
        Components::All => true,
        Components::These(names) => names.iter().any(|n| n == source.name.as_str()),
    }
}

/// The components of a tier.
pub(super) fn expected_of<'a>(setup: &'a Setup, tier: &'a Tier) -> impl Iterator<Item = &'a Configured> {
    setup.sources.iter().filter(|s| is_of(s, tier))
}

/// Whether archives in that store are sealed.
pub(super) fn seals(setup: &Setup, store: &dyn Store) -> bool {
    let wanted = match setup.encryption.seal {
        Seal::Always => true,
        Seal::Never => false,
        Seal::Offsite => store.is_offsite(),
    };
    wanted && !setup.encryption.recipients.is_empty()
}

/// An error as the outcome keeps it: one line, and what to do.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub error: String,
    pub hint: Option<String>,
}

impl Failure {
    pub(super) fn of<E: std::error::Error + Hint>(e: &E, world: &World<'_>) -> Self {
        Self { error: world.vault.scrub(&chain(e)), hint: e.hint().map(|h| world.vault.scrub(&h)) }
    }

    fn text(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None }
    }

    fn hint_text(&self) -> String {
        self.hint.as_ref().map_or_else(String::new, |h| format!(" ({h})"))
    }

    fn split(failure: Option<Self>) -> (Option<String>, Option<String>) {
        failure.map_or((None, None), |f| (Some(f.error), f.hint))
    }
}

/// How a run ended.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// None when nothing was packed.
    pub name: Option<BackupName>,
    pub tier: String,
    pub state: Option<State>,
    pub bytes: u64,
    pub sha256: Option<String>,
    pub duration_ms: u64,
    pub components: Vec<ComponentResult>,
    pub stores: Vec<StoreResult>,
    /// Components that shrank to under half: somebody has to look.
    pub anomalies: Vec<String>,
    /// What was deleted afterwards, per store.
    pub pruned: Vec<Plot>,
    /// Why nothing could be deleted at all.
    pub prune_failure: Option<Failure>,
    /// Containers that were held and could not be brought back: what, why, and what to run.
    pub left_held: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct ComponentResult {
    pub name: String,
    pub critical: bool,
    pub state: ComponentState,
    pub bytes_in: u64,
    pub bytes_stored: u64,
    pub duration_ms: u64,
    pub warnings: Vec<String>,
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub struct StoreResult {
    pub store: String,
    pub receipt: Option<Receipt>,
    /// Whether the backup waits in the spool for this store.
    pub spooled: bool,
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

impl Outcome {
    pub fn verdict(&self) -> Verdict {
        Verdict {
            committed: self.stores.iter().any(|s| s.receipt.is_some()),
            all_captured: self.components.iter().all(|c| c.state == ComponentState::Whole),
            all_delivered: self.stores.iter().all(|s| s.receipt.is_some()),
            all_released: self.left_held.is_empty(),
            as_before: self.anomalies.is_empty(),
            all_pruned: self.prune_failure.is_none() && self.pruned.iter().all(|p| p.failure.is_none()),
        }
    }
}

/// Why a run ended before it had an outcome.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Pack(PackError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("cannot start the compression threads")]
    Threads(#[source] std::io::Error),
    #[error(transparent)]
    Pin(PinError),
}

impl From<PinError> for BackupError {
    fn from(e: PinError) -> Self {
        match e {
            PinError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Pin(e),
        }
    }
}

impl From<PackError> for BackupError {
    fn from(e: PackError) -> Self {
        match e {
            PackError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Pack(e),
        }
    }
}

impl Hint for BackupError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Staging(e) => e.hint(),
            Self::Pack(e) => e.hint(),
            Self::Pin(e) => e.hint(),
            _ => None,
        }
    }
}

/// Runs the plan. The guard proves that nobody else does. Whatever happens, no container stays held.
pub fn run(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    _guard: &RunGuard,
    world: &World<'_>,
) -> Result<Outcome, BackupError> {
    make_private(&setup.agent.state_dir)?;
    let holds = holds(&setup.agent, world);
    let outcome = run_with(setup, plan, &holds, world);
    let left_held = holds.finish();
    outcome.map(|outcome| Outcome { left_held, ..outcome })
}

/// The same inside another operation, which has the guard and may hold containers meanwhile.
pub(super) fn run_inside(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    holds: &Holds<'_>,
    world: &World<'_>,
) -> Result<Outcome, BackupError> {
    let holds = holds.inner();
    let outcome = run_with(setup, plan, &holds, world);
    let left_held = holds.finish();
    outcome.map(|outcome| Outcome { left_held, ..outcome })
}

fn run_with(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    holds: &Holds<'_>,
    world: &World<'_>,
) -> Result<Outcome, BackupError> {
    let started = Instant::now();
    let tier = plan.tier.name.to_string();
    world.monitor.event(Event::new(What::RunStarted, format!("Backup of tier {tier} started")).tier(&tier));

    let last = LastRun::of(&setup.agent.state_dir, &tier);
    let mut usable = Vec::new();
    let mut stores = Vec::new();
    let mut may_pass = false;
    for target in &plan.targets {
        match check_target(target, world) {
            Ok(()) => usable.push(target),
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => {
                // What took a backup of this tier before is not a store that was never made.
                let returns = e.may_pass() || (e.is_away() && last.recall().is_some());
                may_pass |= target.is_configured() && returns;
                stores.push(store_failed(target.store().name(), Failure::of(&e, world), world));
            }
        }
    }
    let outcome = |name, stores, components| Outcome {
        name,
        tier: tier.clone(),
        state: None,
        bytes: 0,
        sha256: None,
        duration_ms: millis(started.elapsed()),
        components,
        stores,
        anomalies: Vec::new(),
        pruned: Vec::new(),
        prune_failure: None,
        left_held: Vec::new(),
    };
    // What is captured tonight is worth keeping where a store may come back; else no service is held for nothing.
    if usable.is_empty() && !may_pass {
        return Ok(outcome(None, stores, Vec::new()));
    }

    let docker = connect(setup, plan, world)?;
    let (name, time) = choose_name(setup, &usable, world)?;
    let pool = Pool::start(setup.agent.threads).map_err(BackupError::Threads)?;
    let staging = Staging::create(&setup.agent.staging_dir, name.as_str(), pool, setup.archive)?;
    let mut captured = capture::all(setup, plan, &usable, &staging, &docker, holds, world)?;
    capture::refuse_shared_members(&mut captured, world);
    if captured.iter().all(|c| c.outcome.is_err()) {
        let components = captured.iter().map(|c| compose::result_of(c, world)).collect();
        return Ok(outcome(Some(name), stores, components));
    }

    let bytes =
        captured.iter().filter_map(|c| c.outcome.as_ref().ok()).flat_map(|c| &c.staged).map(|s| s.bytes);
    let bench = Bench::prepare(setup, plan, bytes.sum(), &staging, &name, world);
    let anomalies = gate::check(plan, &captured, &usable, &last, world)?;
    let (manifest, packed) =
        compose::pack_all(plan, &mut captured, &anomalies, &staging, &bench, (&name, time), world)?;
    let components = captured.iter().map(|c| compose::result_of(c, world)).collect();
    staging.drop_components(captured.iter().map(|c| c.configured.name.as_str()));
    let shipment = Shipment::prepare(setup, plan, &manifest, packed, bench, &stores, world)?;
    for failed in &mut stores {
        failed.spooled = shipment.is_spooled();
    }
    if let Some(pin) = &plan.request.pin {
        let stores: Vec<&str> = plan.targets.iter().map(|t| t.store().name()).collect();
        pins::note(setup, &name, &Pin { time: Some(time), ..pin.clone() }, &stores)?;
    }
    // After such a run nothing old is deleted: it may be all that is left.
    let may_prune = !plan.is_handpicked() && manifest.state != State::Partial && anomalies.is_empty();
    let make_room = |store: &str| {
        may_prune && prune::make_room(setup, plan.tier, store, &name, world).unwrap_or_default()
    };
    stores.extend(deliver::all(&usable, &manifest, &shipment, &make_room, world)?);
    if plan.request.pin.is_some() {
        match pins::settle(setup, world) {
            // Noted they are, and the backup is made: a signal that comes now ends it as it is.
            Ok(_) | Err(PinError::Interrupted(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if manifest.counts() && stores.iter().any(|s| s.receipt.is_some()) {
        // Without it the next run asks the stores.
        let _ = last.note(&manifest);
    }
    // Wherever it is by now: what it had is known.
    if manifest.counts() && manifest.state == State::Complete && anomalies.is_empty() {
        let _ = last.note_measure(&manifest);
    }
    let have: Vec<&str> = stores.iter().filter(|s| s.receipt.is_some()).map(|s| s.store.as_str()).collect();
    let (mut pruned, mut prune_failure) = (Vec::new(), None);
    // The backup is made: whatever happens from here on, that is what is told.
    if may_prune && !have.is_empty() && plan.targets.iter().all(Target::is_configured) {
        world.monitor.phase("pruning", None);
        (pruned, prune_failure) = prune::after_run(setup, plan.tier, &name, &have, world);
    }
    let packed = shipment.packed();
    Ok(Outcome {
        name: Some(name),
        tier,
        state: Some(manifest.state),
        bytes: packed.map_or(0, |p| p.bytes),
        sha256: packed.map(|p| p.sha256.clone()),
        duration_ms: millis(started.elapsed()),
        components,
        stores,
        anomalies: anomalies.iter().map(ToString::to_string).collect(),
        pruned,
        prune_failure,
        left_held: Vec::new(),
    })
}

fn check_target(target: &Target<'_>, world: &World<'_>) -> Result<(), StoreError> {
    if let TargetStore::Directory(s) = &target.store {
        s.create_root(world.cancel)?;
    }
    store::check_marker(target.store(), world.owner, world.cancel)
}

/// Connects only where a source needs it; a failure is then that of each of those sources.
fn connect(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    world: &World<'_>,
) -> Result<Result<Docker, DockerError>, Interrupted> {
    connect_if(plan.selected.iter().any(|s| s.source.needs_docker()), setup, world)
}

/// The same, where the caller knows whether it is needed.
pub(super) fn connect_if(
    needed: bool,
    setup: &Setup,
    world: &World<'_>,
) -> Result<Result<Docker, DockerError>, Interrupted> {
    if !needed {
        return Ok(Err(DockerError::Unreachable { socket: String::new(), reason: "not asked for".into() }));
    }
    let docker = Docker::connect(
        setup.docker.socket.as_deref(),
        setup.docker.project.clone(),
        world.runtime.clone(),
        world.cancel.clone(),
    );
    match docker {
        Err(DockerError::Interrupted(i)) => Err(i),
        other => Ok(other),
    }
}

/// Directories that no source captures: ours, and those of the stores, or each backup would hold all earlier ones.
fn own_dirs(setup: &Setup, plan: &BackupPlan<'_>) -> Vec<PathBuf> {
    let targets = plan.targets.iter().filter_map(|t| t.store().local_root());
    own_dirs_of(setup).into_iter().chain(targets.map(std::path::Path::to_owned)).collect()
}

pub(super) fn own_dirs_of(setup: &Setup) -> Vec<PathBuf> {
    let ours = setup.agent.own_dirs().into_iter();
    let stores = setup.stores.iter().filter_map(|s| s.local_root());
    ours.chain(stores).map(std::path::Path::to_owned).collect()
}

/// The holds of this run. Nothing is written or started before the first one.
pub(super) fn holds<'a>(agent: &Agent, world: &World<'a>) -> Holds<'a> {
    let dirs = [
        ("--state-dir", &agent.state_dir),
        ("--staging-dir", &agent.staging_dir),
        ("--runtime-dir", &agent.runtime_dir),
    ];
    let guard = dirs.iter().flat_map(|(flag, dir)| [(*flag).into(), dir.as_os_str().to_owned()]).collect();
    Holds::new(RunJournal::new(&agent.state_dir), (world.exe.to_owned(), guard), world.monitor)
}

pub(super) fn context<'a>(
    setup: &'a Setup,
    tier: &'a str,
    world: &'a World<'a>,
    docker: &'a Result<Docker, DockerError>,
    holds: &'a Holds<'a>,
    own_dirs: &'a [PathBuf],
    previous: Option<&'a Map<String, Value>>,
) -> Context<'a> {
    Context {
        tier,
        cancel: world.cancel,
        monitor: world.monitor,
        runtime: world.runtime,
        docker: docker.as_ref().map_err(Clone::clone),
        holds,
        vault: world.vault,
        encryption: &setup.encryption,
        keyring: world.keyring,
        secret_refs: &setup.secret_refs,
        config_files: &setup.files,
        own_dirs,
        agent_dirs: setup.agent.own_dirs(),
        exe: world.exe,
        previous,
    }
}

/// A name that no store in reach uses, also not for something unfinished. One that is out of reach is asked when something
/// first goes there, be it days later: what it has of that name by then is not ours.
fn choose_name(
    setup: &Setup,
    usable: &[&Target<'_>],
    world: &World<'_>,
) -> Result<(BackupName, Timestamp), Interrupted> {
    // A listing that fails now may fail the delivery later; a name in use is refused there.
    let mut used = BTreeSet::new();
    let mut look = |store: &dyn Store, dir: &str| {
        if let Ok(listing) = Listing::of(store, dir, world.cancel) {
            used.extend(listing.used());
        }
    };
    for target in usable {
        look(target.store(), &target.dir);
    }
    for store in setup.stores.iter().map(AsRef::as_ref).filter(|s| s.reach(world.cancel).is_ok()) {
        for tier in &setup.tiers {
            look(store, &store::tier_dir(store, &setup.host, &tier.path));
        }
    }
    used.extend(Spool::new(&setup.agent.spool_dir, 0).names().unwrap_or_default());
    loop {
        world.cancel.check()?;
        let time = (world.now)();
        let name = BackupName::at(time);
        if !used.contains(&name) {
            return Ok((name, time));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn store_failed(store: &str, failure: Failure, world: &World<'_>) -> StoreResult {
    let text = format!("{}{}", failure.error, failure.hint_text());
    world.monitor.event(Event::new(What::StoreFailed, text).store(store));
    StoreResult { store: store.to_owned(), receipt: None, spooled: false, failure: Some(failure) }
}
