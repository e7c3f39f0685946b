//! One backup: look, capture, pack, deliver, commit. What could go wrong: to say that all is well when it is not; so
//! every failure ends up in the `Outcome`, and only what was read back from a store is committed there.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::World;
use crate::archive::compress::Staged;
use crate::archive::gzip::Pool;
use crate::archive::layout;
use crate::archive::pack::{self, PackError, Packed, Text};
use crate::cancel::Interrupted;
use crate::catalog;
use crate::config::{Components, Tier};
use crate::delivery::{self, DeliveryError, Receipt, Uncommitted};
use crate::docker::{Docker, DockerError};
use crate::exit::Verdict;
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::manifest::{self, Component, ComponentState, Manifest, ManifestError, SCHEMA, State};
use crate::progress::{Event, What};
use crate::run_guard::RunGuard;
use crate::setup::Setup;
use crate::source::{self, Capture, Configured, Context, SourceError};
use crate::staging::{Staging, StagingError};
use crate::store::{self, FsStore, Store, StoreError};
use crate::units::{show_bytes, show_duration};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub tier: Option<String>,
    pub output_dir: Option<PathBuf>,
    pub only: Vec<String>,
    pub skip: Vec<String>,
    /// Old spellings: skipped where they are configured.
    pub skip_if_present: Vec<&'static str>,
    pub tags: Vec<String>,
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

pub struct Target<'a> {
    pub store: TargetStore<'a>,
    pub dir: String,
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
        .filter(|s| match &tier.components {
            Components::Default => s.on_by_default,
            Components::All => true,
            Components::These(names) => names.iter().any(|n| n == s.name.as_str()),
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
            vec![Target { store: TargetStore::Directory(FsStore::unmarked(dir, exe)), dir: String::new() }]
        }
        None => tier
            .stores
            .iter()
            .filter_map(|name| setup.store(name))
            .map(|s| Target { store: TargetStore::Configured(s), dir: tier.path.clone() })
            .collect(),
    };
    Ok(BackupPlan { tier, expected, selected, targets, request })
}

/// What a run would do, found out without writing anything.
#[derive(Debug, Serialize)]
pub struct Preview {
    pub tier: String,
    pub components: Vec<PreviewComponent>,
    pub stores: Vec<PreviewStore>,
}

#[derive(Debug, Serialize)]
pub struct PreviewComponent {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub critical: bool,
    pub method: String,
    /// Bytes to be read, where that is cheap to know.
    pub bytes_in: Option<u64>,
    pub error: Option<String>,
    pub hint: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct PreviewStore {
    pub name: String,
    pub location: String,
    pub path: String,
    pub free_bytes: Option<u64>,
    pub error: Option<String>,
    pub hint: Option<String>,
}

impl Preview {
    /// Whether a run has a chance to be complete.
    pub fn is_ready(&self) -> bool {
        self.components.iter().all(|c| c.error.is_none()) && self.stores.iter().all(|s| s.error.is_none())
    }
}

pub fn preview(setup: &Setup, plan: &BackupPlan<'_>, world: &World<'_>) -> Result<Preview, Interrupted> {
    let docker = connect(setup, plan, world)?;
    let own_dirs = own_dirs(setup);
    let mut components = Vec::new();
    for s in &plan.selected {
        let context = context(setup, world, &docker, &own_dirs, None);
        let (bytes_in, failure) = match s.source.probe(&context) {
            Ok(bytes) => (bytes, None),
            Err(SourceError::Interrupted(i)) => return Err(i),
            Err(e) => (None, Some(Failure::of(&e, world))),
        };
        let (error, hint) = Failure::split(failure);
        components.push(PreviewComponent {
            name: s.name.to_string(),
            kind: s.kind,
            critical: s.critical,
            method: s.source.method(),
            bytes_in,
            error,
            hint,
        });
    }
    let mut stores = Vec::new();
    for target in &plan.targets {
        let looked = match &target.store {
            TargetStore::Configured(s) => {
                store::check_marker(*s, world.owner, world.cancel).and_then(|()| s.free_bytes())
            }
            TargetStore::Directory(s) => Ok(s.free_bytes().unwrap_or(None)),
        };
        let (free_bytes, failure) = match looked {
            Ok(free) => (free, None),
            Err(StoreError::Interrupted(i)) => return Err(i),
            Err(e) => (None, Some(Failure::of(&e, world))),
        };
        let (error, hint) = Failure::split(failure);
        stores.push(PreviewStore {
            name: target.store().name().to_owned(),
            location: target.store().location(),
            path: target.dir.clone(),
            free_bytes,
            error,
            hint,
        });
    }
    Ok(Preview { tier: plan.tier.name.to_string(), components, stores })
}

/// An error as the outcome keeps it: one line, and what to do.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    pub error: String,
    pub hint: Option<String>,
}

impl Failure {
    fn of<E: std::error::Error + Hint>(e: &E, world: &World<'_>) -> Self {
        Self { error: world.vault.scrub(&chain(e)), hint: e.hint().map(|h| world.vault.scrub(&h)) }
    }

    fn text(error: impl Into<String>) -> Self {
        Self { error: error.into(), hint: None }
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
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

impl Outcome {
    pub fn verdict(&self) -> Verdict {
        Verdict {
            committed: self.stores.iter().any(|s| s.receipt.is_some()),
            all_captured: self.components.iter().all(|c| c.state == ComponentState::Whole),
            all_delivered: self.stores.iter().all(|s| s.receipt.is_some()),
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
            _ => None,
        }
    }
}

/// A component after capture.
struct Captured<'a> {
    configured: &'a Configured,
    outcome: Result<Capture, Failure>,
    took: Duration,
}

/// Runs the plan. The guard proves that nobody else does.
pub fn run(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    _guard: &RunGuard,
    world: &World<'_>,
) -> Result<Outcome, BackupError> {
    let started = Instant::now();
    let tier = plan.tier.name.to_string();
    world.monitor.event(Event::new(What::RunStarted, format!("Backup of tier {tier} started")).tier(&tier));

    let mut usable = Vec::new();
    let mut stores = Vec::new();
    for target in &plan.targets {
        match check_target(target, world) {
            Ok(()) => usable.push(target),
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => stores.push(store_failed(target.store().name(), Failure::of(&e, world), world)),
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
    };
    if usable.is_empty() {
        return Ok(outcome(None, stores, Vec::new()));
    }

    let docker = connect(setup, plan, world)?;
    let (name, time) = choose_name(setup, &usable, world)?;
    let pool = Pool::start(setup.agent.threads).map_err(BackupError::Threads)?;
    let staging = Staging::create(&setup.agent.staging_dir, name.as_str(), pool, setup.archive)?;
    let mut captured = capture_all(setup, plan, &usable, &staging, &docker, world)?;
    refuse_shared_members(&mut captured, world);
    if captured.iter().all(|c| c.outcome.is_err()) {
        let components = captured.iter().map(|c| result_of(c, plan, world)).collect();
        return Ok(outcome(Some(name), stores, components));
    }

    let (manifest, packed) = pack_all(plan, &mut captured, &staging, &name, time, world)?;
    let components = captured.iter().map(|c| result_of(c, plan, world)).collect();
    stores.extend(deliver_all(&usable, &manifest, &packed, world)?);
    Ok(Outcome {
        name: Some(name),
        tier,
        state: Some(manifest.state),
        bytes: packed.bytes,
        sha256: Some(packed.sha256),
        duration_ms: millis(started.elapsed()),
        components,
        stores,
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
    if !plan.selected.iter().any(|s| s.source.needs_docker()) {
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

fn own_dirs(setup: &Setup) -> Vec<PathBuf> {
    setup.agent.own_dirs().into_iter().map(std::path::Path::to_owned).collect()
}

fn context<'a>(
    setup: &'a Setup,
    world: &'a World<'a>,
    docker: &'a Result<Docker, DockerError>,
    own_dirs: &'a [PathBuf],
    previous: Option<&'a Map<String, Value>>,
) -> Context<'a> {
    Context {
        cancel: world.cancel,
        monitor: world.monitor,
        runtime: world.runtime,
        docker: docker.as_ref().map_err(Clone::clone),
        vault: world.vault,
        config_files: &setup.files,
        own_dirs,
        exe: world.exe,
        previous,
    }
}

/// A name that no store has ever used, also not for something unfinished.
fn choose_name(
    setup: &Setup,
    usable: &[&Target<'_>],
    world: &World<'_>,
) -> Result<(BackupName, Timestamp), Interrupted> {
    let all = setup.stores.iter().map(AsRef::as_ref);
    let reachable: Vec<&dyn Store> = all.filter(|s| s.reach(world.cancel).is_ok()).collect();
    loop {
        world.cancel.check()?;
        let time = (world.now)();
        let name = BackupName::at(time);
        // A listing that fails now fails the delivery later; a name in use is refused there too.
        let knows = |store: &dyn Store, dir: &str| catalog::knows(store, dir, &name).unwrap_or(false);
        let taken = usable.iter().any(|target| knows(target.store(), &target.dir))
            || reachable.iter().any(|store| setup.tiers.iter().any(|tier| knows(*store, &tier.path)));
        if !taken {
            return Ok((name, time));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Facts of each component in the newest earlier backup of the tier.
fn previous_facts(usable: &[&Target<'_>]) -> BTreeMap<String, Map<String, Value>> {
    let mut facts = BTreeMap::new();
    let Some(target) = usable.first() else { return facts };
    let Ok(entries) = catalog::list(target.store(), &target.dir) else { return facts };
    for entry in entries {
        if let Ok(manifest) = entry.manifest {
            for (name, component) in manifest.whole() {
                facts.insert(name.to_owned(), component.facts.clone());
            }
        }
    }
    facts
}

fn capture_all<'a>(
    setup: &Setup,
    plan: &BackupPlan<'a>,
    usable: &[&Target<'_>],
    staging: &Staging,
    docker: &Result<Docker, DockerError>,
    world: &World<'_>,
) -> Result<Vec<Captured<'a>>, Interrupted> {
    world.monitor.phase("capturing", None);
    let own_dirs = own_dirs(setup);
    let compared = plan.selected.iter().any(|s| s.source.compares());
    let previous = if compared { previous_facts(usable) } else { BTreeMap::new() };
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Captured<'a>)>> = Mutex::new(Vec::new());
    let workers = setup.agent.jobs.clamp(1, plan.selected.len().max(1));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(configured) = plan.selected.get(index) else { return };
                    let context =
                        context(setup, world, docker, &own_dirs, previous.get(configured.name.as_str()));
                    let captured = capture_one(configured, &context, staging, world);
                    if let Ok(mut done) = done.lock() {
                        done.push((index, captured));
                    }
                }
            });
        }
    });
    world.cancel.check()?;
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, c)| c).collect())
}

fn capture_one<'a>(
    configured: &'a Configured,
    context: &Context<'_>,
    staging: &Staging,
    world: &World<'_>,
) -> Captured<'a> {
    let started = Instant::now();
    let name = configured.name.as_str();
    let event = |what, text: String| Event::new(what, text).component(name);
    world
        .monitor
        .event(event(What::ComponentStarted, format!("Capturing {name}: {}", configured.source.method())));
    // One broken component must not take the others down.
    let attempt = catch_unwind(AssertUnwindSafe(|| -> Result<Capture, SourceError> {
        let stage = staging.component(name)?;
        configured.source.capture(context, &stage)
    }));
    let outcome = match attempt {
        Ok(Ok(capture)) => Ok(capture),
        Ok(Err(e)) => Err(Failure::of(&e, world)),
        Err(_) => Err(Failure::text("internal error: the capture panicked; please report it")),
    };
    match &outcome {
        Ok(capture) => {
            for warning in &capture.warnings {
                world.monitor.event(event(What::Warning, world.vault.scrub(&format!("{name}: {warning}"))));
            }
            if let Some(why) = &capture.incomplete {
                let text = world.vault.scrub(&format!("{name} is incomplete: {why}"));
                world.monitor.event(event(What::ComponentFailed, text).took(started));
            } else {
                let stored = capture.staged.iter().map(|s| s.bytes).sum();
                let text = format!(
                    "Captured {name}: {} read, {} stored, {}",
                    show_bytes(capture.bytes_in),
                    show_bytes(stored),
                    show_duration(started.elapsed())
                );
                world.monitor.event(event(What::ComponentCaptured, text).bytes(stored).took(started));
            }
        }
        Err(_) if world.cancel.check().is_err() => {}
        Err(failure) => {
            let text = format!("{name} failed: {}{}", failure.error, hint_text(failure));
            world.monitor.event(event(What::ComponentFailed, text).took(started));
        }
    }
    Captured { configured, outcome, took: started.elapsed() }
}

fn hint_text(failure: &Failure) -> String {
    failure.hint.as_ref().map_or_else(String::new, |h| format!(" ({h})"))
}

/// Two components that would write one file of the archive: the second one fails.
fn refuse_shared_members(captured: &mut [Captured<'_>], world: &World<'_>) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for c in captured {
        let name = c.configured.name.to_string();
        let Ok(capture) = &c.outcome else { continue };
        let clash =
            capture.staged.iter().find_map(|s| owners.get(&s.member).map(|o| (s.member.clone(), o.clone())));
        match clash {
            Some((member, owner)) => {
                let error = format!("its file {member} is also one of {owner}: give the source another name");
                let text = format!("{name} failed: {error}");
                world.monitor.event(Event::new(What::ComponentFailed, text).component(&name));
                c.outcome = Err(Failure::text(error));
            }
            None => owners.extend(capture.staged.iter().map(|s| (s.member.clone(), name.clone()))),
        }
    }
}

fn pack_all(
    plan: &BackupPlan<'_>,
    captured: &mut [Captured<'_>],
    staging: &Staging,
    name: &BackupName,
    time: Timestamp,
    world: &World<'_>,
) -> Result<(Manifest, Packed), BackupError> {
    let (manifest, guide) = loop {
        let manifest = manifest_of(plan, captured, name, time, world);
        let sections: Vec<(String, String)> = manifest
            .details
            .iter()
            .filter(|(_, c)| !c.members.is_empty())
            .map(|(n, c)| (n.clone(), source::restore_guide(n, c)))
            .collect();
        let guide = layout::guide(&manifest, &sections);
        let text = manifest.to_inner()?;
        let leak = world.vault.remains_in(&text).or_else(|| world.vault.remains_in(guide.as_bytes()));
        match leak {
            Some(label) if fail_configuration(captured, &label, world) => {}
            _ => break (manifest, guide),
        }
    };
    let inner = manifest.to_inner()?;
    let files: Vec<&Staged> =
        captured.iter().filter_map(|c| c.outcome.as_ref().ok()).flat_map(|c| &c.staged).collect();
    let total = files.iter().map(|f| f.bytes).sum();
    world.monitor.phase("packing", Some(total));
    world.monitor.event(Event::new(What::Packing, format!("Packing {name}")).backup(name));
    let texts = [
        Text { member: layout::MANIFEST, bytes: &inner },
        Text { member: layout::GUIDE, bytes: guide.as_bytes() },
    ];
    let packed = pack::pack(
        &pack::Plan { name, time: time.as_second(), texts: &texts, files: &files },
        &staging.dir().join(name.archive()),
        staging.reserve(),
        staging.pool(),
        staging.how(),
        world.cancel,
        world.monitor,
    )?;
    Ok((manifest, packed))
}

/// A secret of the configuration stands in the manifest or the guide, as the name of something else: then the
/// configuration component fails. Says whether there was one to fail.
fn fail_configuration(captured: &mut [Captured<'_>], label: &str, world: &World<'_>) -> bool {
    let mut failed = false;
    for c in captured.iter_mut().filter(|c| c.configured.kind == "config_files" && c.outcome.is_ok()) {
        let error = format!("the value of {label} would stand readable in the manifest or in RESTORE.md");
        let text = format!("{} failed: {error}", c.configured.name);
        world.monitor.event(Event::new(What::ComponentFailed, text).component(&c.configured.name));
        c.outcome = Err(Failure {
            error,
            hint: Some(
                "it is also the name of something; choose another secret, or name its key in harmless_keys"
                    .into(),
            ),
        });
        failed = true;
    }
    failed
}

fn manifest_of(
    plan: &BackupPlan<'_>,
    captured: &[Captured<'_>],
    name: &BackupName,
    time: Timestamp,
    world: &World<'_>,
) -> Manifest {
    let mut details = BTreeMap::new();
    let mut volumes = Vec::new();
    for c in captured {
        if let Ok(capture) = &c.outcome {
            volumes.extend(
                capture.volumes.iter().filter(|v| !volumes.contains(*v)).cloned().collect::<Vec<_>>(),
            );
        }
        details.insert(c.configured.name.to_string(), component_of(c, world));
    }
    let names = |wanted: fn(ComponentState) -> bool| -> Vec<String> {
        captured.iter().filter(|c| wanted(state_of(c))).map(|c| c.configured.name.to_string()).collect()
    };
    let whole = names(|s| s == ComponentState::Whole);
    let whole_refs: Vec<&str> = whole.iter().map(String::as_str).collect();
    let staged = captured.iter().filter_map(|c| c.outcome.as_ref().ok()).flat_map(|c| &c.staged);
    let skipped = |component: &str| {
        plan.expected.iter().any(|s| s.name.as_str() == component)
            && !plan.selected.iter().any(|s| s.name.as_str() == component)
    };
    Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: time.strftime("%FT%TZ").to_string(),
        backup_name: name.clone(),
        components: whole.clone(),
        checksums: layout::checksums(staged),
        host: world.owner.host.clone(),
        docker_volumes: volumes,
        options: manifest::Options {
            include_models: false,
            skip_chromadb: skipped("chromadb"),
            skip_postgres: skipped("postgres"),
            skip_redis: skipped("redis"),
        },
        failed_components: names(|s| s != ComponentState::Whole),
        schema: SCHEMA,
        tier: plan.tier.name.to_string(),
        tags: plan.request.tags.clone(),
        only: plan.request.only.clone(),
        skip: plan
            .request
            .skip
            .iter()
            .cloned()
            .chain(plan.request.skip_if_present.iter().filter(|s| skipped(s)).map(|s| (*s).to_owned()))
            .collect(),
        expected_components: plan.expected.iter().map(|s| s.name.to_string()).collect(),
        state: State::of(plan.expected.iter().map(|s| (s.name.as_str(), s.critical)), &whole_refs),
        encryption: manifest::Encryption::default(),
        details,
        bytes: None,
        sha256: None,
        manifest_sha256: None,
    }
}

fn state_of(c: &Captured<'_>) -> ComponentState {
    match &c.outcome {
        Ok(capture) if capture.incomplete.is_none() => ComponentState::Whole,
        Ok(_) => ComponentState::Incomplete,
        Err(_) => ComponentState::Failed,
    }
}

fn component_of(c: &Captured<'_>, world: &World<'_>) -> Component {
    let mut component = Component {
        kind: c.configured.kind.to_owned(),
        critical: c.configured.critical,
        state: state_of(c),
        members: Vec::new(),
        bytes_in: 0,
        bytes_stored: 0,
        files: 0,
        duration_ms: millis(c.took),
        consistency: "none".to_owned(),
        paused_ms: 0,
        warnings: Vec::new(),
        error: None,
        facts: Map::new(),
    };
    match &c.outcome {
        Ok(capture) => {
            component.members = capture.staged.iter().map(|s| s.member.clone()).collect();
            component.bytes_in = capture.bytes_in;
            component.bytes_stored = capture.staged.iter().map(|s| s.bytes).sum();
            component.files = capture.files;
            component.consistency = capture.consistency.to_owned();
            component.warnings = capture.warnings.iter().map(|w| world.vault.scrub(w)).collect();
            component.error = capture.incomplete.as_ref().map(|e| world.vault.scrub(e));
            component.facts = capture.facts.clone();
        }
        Err(failure) => component.error = Some(failure.error.clone()),
    }
    component
}

fn result_of(c: &Captured<'_>, plan: &BackupPlan<'_>, world: &World<'_>) -> ComponentResult {
    let component = component_of(c, world);
    debug_assert!(plan.selected.iter().any(|s| s.name == c.configured.name));
    ComponentResult {
        name: c.configured.name.to_string(),
        critical: component.critical,
        state: component.state,
        bytes_in: component.bytes_in,
        bytes_stored: component.bytes_stored,
        duration_ms: component.duration_ms,
        warnings: component.warnings,
        failure: match &c.outcome {
            Err(failure) => Some(failure.clone()),
            Ok(_) => component.error.map(Failure::text),
        },
    }
}

fn store_failed(store: &str, failure: Failure, world: &World<'_>) -> StoreResult {
    let text = format!("{}{}", failure.error, hint_text(&failure));
    world.monitor.event(Event::new(What::StoreFailed, text).store(store));
    StoreResult { store: store.to_owned(), receipt: None, failure: Some(failure) }
}

/// Delivers to all stores at once, each on its own; commits only after every one was tried, so that an interrupt
/// leaves either nothing or whole backups.
fn deliver_all(
    usable: &[&Target<'_>],
    manifest: &Manifest,
    packed: &Packed,
    world: &World<'_>,
) -> Result<Vec<StoreResult>, Interrupted> {
    let name = &manifest.backup_name;
    // Written once, read back once.
    world.monitor.phase("delivering", Some(2 * packed.bytes * usable.len() as u64));
    let attempts: Vec<Result<Uncommitted, DeliveryError>> = std::thread::scope(|scope| {
        let running: Vec<_> =
            usable.iter().map(|target| scope.spawn(|| deliver_one(target, name, packed, world))).collect();
        running
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(DeliveryError::Archive(std::io::Error::other(
                        "internal error: the delivery panicked",
                    )))
                })
            })
            .collect()
    });
    if let Err(interrupted) = world.cancel.check() {
        for (target, attempt) in usable.iter().zip(attempts) {
            if let Ok(delivered) = attempt {
                delivered.withdraw(target.store());
            }
        }
        return Err(interrupted);
    }
    let mut results = Vec::new();
    for (target, attempt) in usable.iter().zip(attempts) {
        let store = target.store();
        let committed = attempt.and_then(|delivered| {
            delivery::commit(store, &target.dir, manifest, packed, delivered, (world.now)())
        });
        results.push(match committed {
            Ok(receipt) => {
                let text = format!(
                    "Committed {name} to {}: {}, {}, read back",
                    store.name(),
                    show_bytes(receipt.bytes),
                    manifest.state
                );
                let event =
                    Event::new(What::Committed, text).backup(name).store(store.name()).tier(&manifest.tier);
                let mut event = event.bytes(receipt.bytes);
                event.duration_ms = Some(receipt.duration_ms);
                world.monitor.event(event);
                StoreResult { store: store.name().to_owned(), receipt: Some(receipt), failure: None }
            }
            Err(e) => store_failed(store.name(), Failure::of(&e, world), world),
        });
    }
    Ok(results)
}

fn deliver_one(
    target: &Target<'_>,
    name: &BackupName,
    packed: &Packed,
    world: &World<'_>,
) -> Result<Uncommitted, DeliveryError> {
    let store = target.store();
    let event = Event::new(What::Delivering, format!("Delivering {name} to {}", store.name()));
    world.monitor.event(event.backup(name).store(store.name()));
    for left in store.sweep(&target.dir)? {
        let text = format!("Removed what a killed run left in {}: {left}", store.name());
        world.monitor.event(Event::new(What::LeftoverRemoved, text).store(store.name()));
    }
    if let Some(free) = store.free_bytes()?
        && free < packed.bytes
    {
        return Err(StoreError::Io {
            store: store.name().to_owned(),
            action: "write",
            object: name.archive(),
            source: std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!("{} are free, {} are needed", show_bytes(free), show_bytes(packed.bytes)),
            ),
        }
        .into());
    }
    delivery::deliver(store, &target.dir, name, packed, world.cancel, world.monitor)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
