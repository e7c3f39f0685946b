//! Brings components of a backup back. What could go wrong: live data that is destroyed by a restore that fails. So
//! everything is fetched, compared and read through before anything is touched; the old data is saved and stays beside
//! until the new one is proved; and each component is wholly old or wholly new, also after a kill.

mod bare;
mod compose;
mod dependents;
mod fetch;
mod put;
mod safety;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::World;
use super::backup::{connect_if, context, holds, own_dirs_of};
use super::find::Found;
use crate::cancel::{Cancel, Interrupted};
use crate::change::with_ending;
use crate::docker::hold::{HoldError, Holds};
use crate::docker::{Container, Docker, DockerError};
use crate::hint::{Hint, chain};
use crate::manifest::{Component, ComponentState, Manifest, State};
use crate::progress::{Event, What};
use crate::reach::Reach;
use crate::run_guard::RunGuard;
use crate::run_journal::Pending;
use crate::setup::Setup;
use crate::source::{Configured, Context, Originals, Source, SourceError};
use crate::target::{Compared, Existing, Target, Wishes, Work};
use crate::units::{millis, show_bytes};
use crate::whole_file;

pub use bare::{BareError, compose_dirs, programs_of, setup_of};
pub use fetch::{FetchError, Fetched, fetch, fetch_one};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Only these components; all, when empty.
    pub components: Vec<String>,
    pub skip: Vec<String>,
    /// Write the data below this directory, and touch nothing else.
    pub to: Option<PathBuf>,
    /// Put configuration files back where their originals can be opened, else references beside them.
    pub restore_config: bool,
    pub skip_validation: bool,
    pub allow_partial: bool,
    /// Leave a failed component as it is, for a person.
    pub keep: bool,
    pub no_safety_backup: bool,
    pub wishes: Wishes,
    /// On a machine without a configuration: where files may be put.
    pub reach: Option<Reach>,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Staging(#[from] crate::staging::StagingError),
    #[error(transparent)]
    Hold(HoldError),
    #[error(transparent)]
    Docker(DockerError),
    #[error("{name} is not in {backup}")]
    NoComponent { name: String, backup: String, known: String },
    #[error("{backup} is not whole: it lacks {missing} or a part of it")]
    Partial { backup: String, missing: String },
    #[error(transparent)]
    Bare(#[from] BareError),
    #[error("there is nothing to restore")]
    Nothing,
    #[error("{path} has {free} free, and {needed} are needed there")]
    Space { path: PathBuf, free: String, needed: String },
    #[error("cannot look at {path}")]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl From<HoldError> for RestoreError {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Hold(e),
        }
    }
}

impl From<DockerError> for RestoreError {
    fn from(e: DockerError) -> Self {
        match e {
            DockerError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Docker(e),
        }
    }
}

impl Hint for RestoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Fetch(e) => return e.hint(),
            Self::Bare(e) => return e.hint(),
            Self::Staging(e) => return e.hint(),
            Self::Hold(e) => return e.hint(),
            Self::Docker(e) => return e.hint(),
            Self::NoComponent { known, .. } => format!("it has: {known}"),
            Self::Partial { .. } => {
                "choose another backup (tars-backup list), or take what there is with --allow-partial".into()
            }
            Self::Nothing => {
                "leave out --component and --skip, or see what is in it: tars-backup show".into()
            }
            Self::Space { path, .. } => format!("make room: df -h {}", path.display()),
            _ => return None,
        })
    }
}

/// The components that a restore is about.
#[derive(Debug)]
pub struct Chosen<'a> {
    pub name: &'a str,
    pub component: &'a Component,
}

/// Decides which components come back; touches nothing.
pub fn choose<'a>(manifest: &'a Manifest, request: &Request) -> Result<Vec<Chosen<'a>>, RestoreError> {
    let backup = manifest.backup_name.to_string();
    for name in request.components.iter().chain(&request.skip) {
        if manifest.details.get(name).is_none_or(|c| c.members.is_empty()) {
            let known: Vec<&str> = manifest.whole().map(|(n, _)| n).collect();
            return Err(RestoreError::NoComponent { name: name.clone(), backup, known: known.join(", ") });
        }
    }
    let wanted = |name: &str| is_wanted(request, name);
    let is_whole = |name: &str| manifest.details.get(name).is_some_and(|c| c.state == ComponentState::Whole);
    let chosen: Vec<Chosen<'a>> = manifest
        .details
        .iter()
        .filter(|(name, c)| wanted(name) && !c.members.is_empty())
        .filter(|(_, c)| c.state == ComponentState::Whole || request.allow_partial)
        .map(|(name, component)| Chosen { name, component })
        .collect();
    // What was asked for by its name is not left out without a word; nor is what no backup should be without.
    // Nor does a backup lack what nobody wanted in it: a safety copy comes back as it is.
    let was_wanted = |name: &&String| {
        (manifest.only.is_empty() || manifest.only.contains(name)) && !manifest.skip.contains(name)
    };
    let asked: Vec<&String> = match request.components.as_slice() {
        [] if manifest.state == State::Partial => {
            manifest.expected_components.iter().filter(was_wanted).collect()
        }
        [] => Vec::new(),
        named => named.iter().collect(),
    };
    let missing: Vec<String> =
        asked.into_iter().filter(|n| !request.skip.contains(n) && !is_whole(n)).cloned().collect();
    if !missing.is_empty() && !request.allow_partial {
        return Err(RestoreError::Partial { backup, missing: missing.join(", ") });
    }
    if chosen.is_empty() { Err(RestoreError::Nothing) } else { Ok(chosen) }
}

fn is_wanted(request: &Request, name: &str) -> bool {
    let only = request.components.is_empty() || request.components.iter().any(|c| c == name);
    only && !request.skip.iter().any(|c| c == name)
}

/// What the backup should have, and does not come back, or not all of it: for a person.
fn lacking(manifest: &Manifest, request: &Request) -> Vec<String> {
    let names: BTreeSet<&String> =
        manifest.expected_components.iter().chain(manifest.details.keys()).collect();
    // Nobody wanted it in that backup.
    let left_out = |name: &String| !manifest.only.is_empty() && !manifest.details.contains_key(name);
    names
        .into_iter()
        .filter(|name| is_wanted(request, name) && !manifest.skip.contains(name) && !left_out(name))
        .filter_map(|name| match manifest.details.get(name).map(|c| (c.state, c.members.is_empty())) {
            Some((ComponentState::Whole, _)) => None,
            None | Some((ComponentState::Failed, _) | (_, true)) => {
                Some(format!("{name} does not come back: the backup lacks it"))
            }
            Some(_) if request.allow_partial => {
                Some(format!("{name} is incomplete in the backup: what it lacks does not come back"))
            }
            Some(_) => Some(format!(
                "{name} does not come back: it is incomplete in the backup (--allow-partial takes what there is)"
            )),
        })
        .collect()
}

/// What will happen to one component, for a person.
#[derive(Debug, Serialize)]
pub struct PlanLine {
    pub component: String,
    /// What is replaced; None when nothing is done.
    pub target: Option<String>,
    /// What is there now.
    pub now: Option<String>,
    /// What comes.
    pub then: String,
    /// Each file of it, where a person has to agree to each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Why nothing can be done for it.
    pub problem: Option<String>,
    pub hint: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct RestorePlan {
    pub backup: String,
    pub made: String,
    pub host: String,
    pub lines: Vec<PlanLine>,
    /// Containers that are stopped meanwhile, because they depend on the data.
    pub stopped_meanwhile: Vec<String>,
    pub warnings: Vec<String>,
}

impl RestorePlan {
    /// Whether anything would be changed.
    pub fn does_something(&self) -> bool {
        self.lines.iter().any(|l| l.problem.is_none())
    }
}

/// How one component came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    Restored,
    /// Configuration whose originals could not be opened: references lie beside the live files.
    Referenced,
    /// It failed, and the old data is back.
    RolledBack,
    /// It failed; what is there now is told.
    Kept,
    /// Nothing was done for it.
    NotRestored,
    /// Configuration that nobody asked for.
    LeftAlone,
}

#[derive(Debug, Serialize)]
pub struct ComponentOutcome {
    pub component: String,
    pub fate: Fate,
    /// What was asked for and does not come back, although the rest of it does.
    pub lacking: Vec<String>,
    pub warnings: Vec<String>,
    pub error: Option<String>,
    pub hint: Option<String>,
    /// Whether the backup may be at fault, and not only this machine.
    #[serde(skip)]
    pub of_backup: bool,
}

impl ComponentOutcome {
    fn of(name: &str, fate: Fate) -> Self {
        Self {
            component: name.to_owned(),
            fate,
            lacking: Vec::new(),
            warnings: Vec::new(),
            error: None,
            hint: None,
            of_backup: false,
        }
    }

    /// Whether its live data is what it was, and nothing lies beside it.
    fn is_as_before(&self) -> bool {
        matches!(self.fate, Fate::RolledBack | Fate::NotRestored | Fate::LeftAlone)
    }
}

#[derive(Debug, Serialize)]
pub struct RestoreOutcome {
    pub backup: String,
    pub components: Vec<ComponentOutcome>,
    /// Where the data that was replaced is saved.
    pub safety_copy: Option<String>,
    pub left_held: Vec<String>,
    /// What is wrong with containers that depend on what was restored.
    pub unhealthy: Vec<String>,
    /// What a person should know and that failed nothing.
    pub warnings: Vec<String>,
    /// Whether a signal ended it before all was done.
    pub interrupted: bool,
    /// From the first byte that was fetched to the last container that was waited for.
    pub duration_ms: u64,
}

impl RestoreOutcome {
    fn of(manifest: &Manifest) -> Self {
        Self {
            backup: manifest.backup_name.to_string(),
            components: Vec::new(),
            safety_copy: None,
            left_held: Vec::new(),
            unhealthy: Vec::new(),
            warnings: Vec::new(),
            interrupted: false,
            duration_ms: 0,
        }
    }

    /// Whether nothing was changed, and nothing is left.
    pub fn is_as_before(&self) -> bool {
        self.left_held.is_empty() && self.components.iter().all(ComponentOutcome::is_as_before)
    }

    /// What an interrupt leaves to be told: an error only where nothing was changed and nothing is left.
    fn interrupted(mut self, chosen: &[Chosen<'_>], i: Interrupted) -> Result<Self, RestoreError> {
        if self.is_as_before() {
            return Err(i.into());
        }
        for c in &chosen[self.components.len()..] {
            let error = Some("interrupted before its turn".to_owned());
            self.components
                .push(ComponentOutcome { error, ..ComponentOutcome::of(c.name, Fate::NotRestored) });
        }
        self.interrupted = true;
        Ok(self)
    }

    pub fn restored(&self) -> usize {
        self.components.iter().filter(|c| matches!(c.fate, Fate::Restored | Fate::Referenced)).count()
    }

    pub fn is_whole(&self) -> bool {
        let good =
            |c: &ComponentOutcome| matches!(c.fate, Fate::Restored | Fate::LeftAlone) && c.lacking.is_empty();
        !self.interrupted
            && self.left_held.is_empty()
            && self.unhealthy.is_empty()
            && self.components.iter().all(good)
    }
}

/// A component with everything that is needed to bring it back.
struct Part<'a> {
    chosen: &'a Chosen<'a>,
    action: Result<Action<'a>, Hindrance>,
}

/// Why a component cannot be brought back.
struct Hindrance {
    why: String,
    hint: Option<String>,
    /// Whether the backup may be at fault, and not only this machine.
    of_backup: bool,
}

impl From<(String, Option<String>)> for Hindrance {
    fn from((why, hint): (String, Option<String>)) -> Self {
        Self { why, hint, of_backup: false }
    }
}

enum Action<'a> {
    Put(Box<dyn Target + 'a>),
    /// Members and live files that get a reference beside them.
    Refer {
        files: Vec<(String, PathBuf)>,
        closed: Option<(String, Option<String>)>,
    },
    LeaveAlone,
}

/// A restore that is ready to begin.
pub struct Restore<'a> {
    setup: &'a Setup,
    request: &'a Request,
    fetched: &'a Fetched,
    chosen: &'a [Chosen<'a>],
    world: &'a World<'a>,
    docker: Result<Docker, DockerError>,
    own_dirs: Vec<PathBuf>,
    holds: Holds<'a>,
    /// What the components need on each file system, by its number, where nothing old makes room for them.
    claims: Option<RefCell<BTreeMap<u64, u64>>>,
}

impl<'a> Restore<'a> {
    pub fn new(
        setup: &'a Setup,
        request: &'a Request,
        fetched: &'a Fetched,
        chosen: &'a [Chosen<'a>],
        world: &'a World<'a>,
    ) -> Result<Self, RestoreError> {
        let source = |c: &Chosen<'_>| setup.sources.iter().find(|s| s.name.as_str() == c.name);
        // Also where only somebody is to be stopped for it.
        let needed = chosen
            .iter()
            .filter_map(source)
            .any(|s| s.source.needs_docker() || s.source.may_be_mounted() || !s.dependents.is_empty());
        // A service of that name in another stack is not what the data came from.
        let docker = connect_if(needed, setup, world)?.map(|d| d.else_in_project(project_of(chosen)));
        let holds = holds(&setup.agent, world);
        let own_dirs = own_dirs_of(setup);
        Ok(Self { setup, request, fetched, chosen, world, docker, own_dirs, holds, claims: None })
    }

    /// A restore that is a part of something else, which knows the engine and began the run, to where there is nothing yet:
    /// what its components need adds up.
    pub(super) fn within(
        setup: &'a Setup,
        request: &'a Request,
        fetched: &'a Fetched,
        chosen: &'a [Chosen<'a>],
        world: &'a World<'a>,
        docker: Result<Docker, DockerError>,
        holds: Holds<'a>,
    ) -> Self {
        let own_dirs = own_dirs_of(setup);
        let claims = Some(RefCell::default());
        Self { setup, request, fetched, chosen, world, docker, own_dirs, holds, claims }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// What the manifest says of each component beside what is there now.
    pub(super) fn compare(&self) -> Vec<(&'a str, Result<Vec<Compared>, SourceError>)> {
        let one = |c: &Chosen<'a>| {
            let of_name = |s: &&Configured| s.name.as_str() == c.name;
            let source = &self.setup.sources.iter().find(of_name)?.source;
            let context = self.context();
            let target = source.target(&context, c.component).transpose()?;
            Some((c.name, target.and_then(|target| target.compare(&context, c.component))))
        };
        self.chosen.iter().filter_map(one).collect()
    }

    /// What may be used beside the targets.
    pub(super) fn context(&self) -> Context<'_> {
        let tier = self.fetched.manifest.tier.as_str();
        context(self.setup, tier, self.world, &self.docker, &self.holds, &self.own_dirs, None)
    }

    fn parts(&self) -> Result<Vec<Part<'_>>, RestoreError> {
        if let Some(claims) = &self.claims {
            claims.borrow_mut().clear();
        }
        self.chosen.iter().map(|chosen| Ok(Part { chosen, action: self.action(chosen)? })).collect()
    }

    fn action(&self, chosen: &Chosen<'_>) -> Result<Result<Action<'_>, Hindrance>, RestoreError> {
        let cannot = |why: String, hint: &str| Ok(Err((why, Some(hint.to_owned())).into()));
        let elsewhere = "restore it elsewhere with --to DIR, then follow RESTORE.md";
        let found = self.setup.sources.iter().find(|s| s.name.as_str() == chosen.name);
        let Some(Configured { kind, source, .. }) = found else {
            return cannot("the configuration has no source of that name".into(), elsewhere);
        };
        if *kind != chosen.component.kind {
            let why =
                format!("it was a source of type {}, and is one of type {kind} now", chosen.component.kind);
            return cannot(why, elsewhere);
        }
        let context = self.context();
        if source.is_configuration() {
            return match self.request.restore_config {
                true => self.bring_config(chosen, source.as_ref()),
                false if self.request.components.is_empty() => Ok(Ok(Action::LeaveAlone)),
                false => cannot("configuration is left alone".into(), "put it back with --restore-config"),
            };
        }
        match source.target(&context, chosen.component) {
            Ok(Some(target)) => self.surveyed(chosen, target),
            Ok(None) => {
                let why = format!("this version does not put back what is of type {kind}");
                cannot(why, elsewhere)
            }
            Err(e) => self.not_ready(chosen, e),
        }
    }

    /// Originals over the live files where they can be opened, else references beside them.
    fn bring_config<'b>(
        &'b self,
        chosen: &Chosen<'_>,
        source: &'b dyn Source,
    ) -> Result<Result<Action<'b>, Hindrance>, RestoreError> {
        let (context, work) = (self.context(), self.work_of(chosen));
        let closed = match source.originals(&context, &work) {
            Ok(Originals::Open(target)) => return self.surveyed(chosen, target),
            // Without a configuration there are no live files for references to lie beside.
            Ok(Originals::Closed(why, hint)) if self.request.reach.is_some() => {
                return Ok(Err((why, hint).into()));
            }
            Ok(Originals::Closed(why, hint)) => Some((why, hint)),
            Ok(Originals::None) => None,
            Err(e) => return self.not_ready(chosen, e),
        };
        match source.references(&context, &work) {
            Ok(files) if files.is_empty() => {
                let closed = closed.unwrap_or_else(|| {
                    let hint = "see what there is: write it elsewhere with --to DIR".to_owned();
                    ("none of the files that the configuration names now is in it".to_owned(), Some(hint))
                });
                Ok(Err(closed.into()))
            }
            Ok(files) => Ok(Ok(Action::Refer { files, closed })),
            Err(e) => self.not_ready(chosen, e),
        }
    }

    fn surveyed<'b>(
        &'b self,
        chosen: &Chosen<'_>,
        target: Box<dyn Target + 'b>,
    ) -> Result<Result<Action<'b>, Hindrance>, RestoreError> {
        match target.survey(&self.context(), &self.work_of(chosen)) {
            Ok((disk, bytes)) => match self.enough(&disk, bytes) {
                Ok(()) => Ok(Ok(Action::Put(target))),
                Err(e) => Ok(Err((chain(&e), e.hint()).into())),
            },
            Err(e) => self.not_ready(chosen, e),
        }
    }

    fn not_ready<T>(
        &self,
        chosen: &Chosen<'_>,
        e: SourceError,
    ) -> Result<Result<T, Hindrance>, RestoreError> {
        let of_backup = !e.is_of_this_machine();
        match e {
            SourceError::Interrupted(i) => Err(i.into()),
            e @ SourceError::Docker(DockerError::NoContainer { .. }) => {
                let hint = Some(compose::make_containers(chosen.component));
                Ok(Err(Hindrance { why: chain(&e), hint, of_backup }))
            }
            e => {
                let why = self.world.vault.scrub(&chain(&e));
                Ok(Err(Hindrance { why, hint: e.hint(), of_backup }))
            }
        }
    }

    /// An error unless `bytes` fit on the disk of `dir`, beside what others need there.
    fn enough(&self, dir: &Path, bytes: u64) -> Result<(), RestoreError> {
        let look = |source| RestoreError::Look { path: dir.to_owned(), source };
        let free = crate::archive::compress::free_bytes(dir).map_err(look)?;
        let mut claims = self.claims.as_ref().map(|claims| claims.borrow_mut());
        let claimed = match &mut claims {
            Some(claims) => Some(claims.entry(std::fs::metadata(dir).map_err(look)?.dev()).or_default()),
            None => None,
        };
        let needed = claimed.as_ref().map_or(0, |n| **n).saturating_add(bytes);
        if free < needed {
            let (free, needed) = (show_bytes(free), show_bytes(needed));
            return Err(RestoreError::Space { path: dir.to_owned(), free, needed });
        }
        if let Some(claimed) = claimed {
            *claimed = needed;
        }
        Ok(())
    }

    fn work_of<'b>(&'b self, chosen: &'b Chosen<'b>) -> Work<'b> {
        self.work_on(chosen.name, chosen.component)
    }

    pub(super) fn work_on<'b>(&'b self, name: &'b str, component: &'b Component) -> Work<'b> {
        self.fetched.work(name, component, self.request)
    }

    fn lacking(&self) -> Vec<String> {
        lacking(&self.fetched.manifest, self.request)
    }

    /// What would happen, with everything read through; nothing is changed.
    pub fn plan(&self) -> Result<RestorePlan, RestoreError> {
        let manifest = &self.fetched.manifest;
        let mut lines = Vec::new();
        let mut lacking = self.lacking();
        let parts = self.parts()?;
        let dependents = self.dependents(&parts)?;
        for part in parts {
            let c = part.chosen.component;
            let version = c.facts.get("server_version").and_then(serde_json::Value::as_str);
            let version = version.map_or_else(String::new, |v| format!(", of version {v}"));
            let then = format!("{} files, {}{version}", c.files, show_bytes(c.bytes_in));
            let mut line = PlanLine {
                component: part.chosen.name.to_owned(),
                target: None,
                now: None,
                then,
                files: Vec::new(),
                problem: None,
                hint: None,
            };
            match part.action {
                Err(hindrance) => (line.problem, line.hint) = (Some(hindrance.why), hindrance.hint),
                Ok(Action::Refer { files, closed }) => {
                    if let Some((why, _)) = closed {
                        line.then = format!("references only: {why}");
                    }
                    let names: Vec<String> =
                        files.iter().map(|(_, p)| reference(p).display().to_string()).collect();
                    line.target = Some(names.join(", "));
                }
                Ok(Action::LeaveAlone) => {
                    line.then = "left alone; --restore-config puts it back".into();
                }
                Ok(Action::Put(target)) => {
                    line.target = Some(target.describe());
                    line.files = target.listed();
                    lacking.extend(
                        target.not_put_back().iter().map(|text| format!("{}: {text}", part.chosen.name)),
                    );
                    line.now = match target.existing(&self.context()) {
                        Ok(Existing::Something(what)) => Some(what),
                        Ok(Existing::Nothing) => Some("nothing".into()),
                        Err(SourceError::Interrupted(i)) => return Err(i.into()),
                        Err(e) => Some(format!("unreadable: {}", chain(&e))),
                    };
                }
            }
            lines.push(line);
        }
        Ok(RestorePlan {
            backup: manifest.backup_name.to_string(),
            made: manifest.timestamp.clone(),
            host: manifest.host.clone(),
            lines,
            stopped_meanwhile: dependents.containers.into_iter().map(|c| c.name).collect(),
            warnings: lacking.into_iter().chain(dependents.warnings).collect(),
        })
    }

    /// Does it. The guard proves that nobody else runs. `waited`: how long a person took to confirm. What was decided
    /// before an interrupt is an outcome, too.
    pub fn run(&self, guard: &RunGuard, waited: Duration) -> Result<RestoreOutcome, RestoreError> {
        let mut outcome = RestoreOutcome::of(&self.fetched.manifest);
        let backup = &outcome.backup;
        self.world
            .monitor
            .event(Event::new(What::RestoreStarted, format!("Restore of {backup} started")).backup(backup));
        let ended = self.run_parts(&self.parts()?, &mut outcome);
        if ended.is_err() {
            // What the interrupt left beside live data goes now, and not when somebody looks after us.
            let world = self.world;
            let dirs = self.setup.agent.dirs();
            let done =
                super::recover::recover(&dirs, guard, world.runtime, &Cancel::default(), world.monitor)?;
            for component in outcome.components.iter_mut().filter(|c| self.is_undecided(&c.component)) {
                // It could not be taken back now.
                component.fate = Fate::Kept;
            }
            let left = self.holds.finish();
            // What the run had to leave may be done by now.
            outcome.left_held.extend(if done.left.is_empty() { Vec::new() } else { left });
            outcome.left_held.extend(done.left);
        } else {
            outcome.left_held = self.holds.finish();
        }
        outcome.duration_ms = millis(self.fetched.began.elapsed().saturating_sub(waited));
        match ended {
            Ok(()) => Ok(outcome),
            Err(RestoreError::Interrupted(i)) => outcome.interrupted(self.chosen, i),
            Err(e) => Err(e),
        }
    }

    /// Whether nothing of it is left to be undone or finished.
    pub fn is_settled(&self) -> bool {
        self.holds.journal().pending().is_ok_and(|p| p.is_empty())
    }

    /// Whether the journal has a change of its live data that is neither taken back nor good.
    fn is_undecided(&self, component: &str) -> bool {
        let is_it = |p: Pending| p.changes.iter().any(|c| c.component == component && !c.committed);
        self.holds.journal().pending().is_ok_and(is_it)
    }

    fn run_parts(&self, parts: &[Part<'_>], outcome: &mut RestoreOutcome) -> Result<(), RestoreError> {
        let dependents::Dependents { containers: dependents, warnings } = self.dependents(parts)?;
        outcome.warnings = self.lacking().into_iter().chain(warnings).collect();
        for warning in &outcome.warnings {
            self.world.monitor.event(Event::new(What::Warning, warning.clone()));
        }
        let stopped = match self.docker.as_ref() {
            Ok(docker) if !dependents.is_empty() => {
                self.world.monitor.phase("stopping what depends on the data", None);
                Some(self.holds.stop_these(docker, &dependents, self.world.cancel)?)
            }
            _ => None,
        };
        let target_of = |name: &str| {
            let part = parts.iter().find(|p| p.chosen.name == name)?;
            if let Ok(Action::Put(target)) = &part.action { Some(target) } else { None }
        };
        // Where nothing is, there is nothing to save.
        let saved = |p: &&Part<'_>| match &p.action {
            Ok(Action::Put(target)) => {
                !target.keeps_old() && !matches!(target.existing(&self.context()), Ok(Existing::Nothing))
            }
            _ => false,
        };
        let put: Vec<&str> = parts.iter().filter(saved).map(|p| p.chosen.name).collect();
        let covers = |name: &str, copy: &Component| {
            target_of(name).is_some_and(|target| target.is_saved_by(&self.context(), copy))
        };
        let safety = match self.request.no_safety_backup || put.is_empty() {
            true => safety::Safety::default(),
            false => safety::copy(self.setup, &put, covers, &self.holds, self.world)?,
        };
        outcome.safety_copy = safety.archive.clone();
        let mut unseen = Vec::new();
        for part in parts {
            self.world.cancel.check()?;
            let (component, containers) = self.one(part, &safety);
            outcome.components.push(component);
            unseen
                .push(containers?.into_iter().filter(|c| dependents.iter().any(|d| d.id == c.id)).collect());
        }
        if let Some(stopped) = stopped {
            stopped.end();
        }
        outcome.unhealthy = match self.health(&dependents, parts, &unseen) {
            Err(e @ RestoreError::Interrupted(_)) => {
                let names: Vec<&str> = dependents.iter().map(|c| c.name.as_str()).collect();
                let names = names.join(", ");
                outcome.unhealthy = vec![format!("not waited for until they are well: {names}")];
                return Err(e);
            }
            other => other?,
        };
        Ok(())
    }

    /// How it came out, and the containers that were stopped for it, unless it was interrupted.
    fn one(
        &self,
        part: &Part<'_>,
        safety: &safety::Safety,
    ) -> (ComponentOutcome, Result<Vec<Container>, Interrupted>) {
        let name = part.chosen.name;
        let mut containers = Vec::new();
        let mut outcome = ComponentOutcome::of(name, Fate::NotRestored);
        match &part.action {
            Err(hindrance) => {
                outcome.of_backup = hindrance.of_backup;
                (outcome.error, outcome.hint) = (Some(hindrance.why.clone()), hindrance.hint.clone());
            }
            Ok(Action::LeaveAlone) => {
                outcome.fate = Fate::LeftAlone;
                return (outcome, Ok(containers));
            }
            Ok(Action::Refer { files, closed }) => match self.refer(files) {
                Ok(()) => match closed {
                    None => outcome.fate = Fate::Restored,
                    Some((why, hint)) => {
                        outcome.fate = Fate::Referenced;
                        (outcome.error, outcome.hint) = (Some(why.clone()), hint.clone());
                    }
                },
                Err(e) => (outcome.error, outcome.hint) = (Some(chain(&e)), e.hint()),
            },
            Ok(Action::Put(target)) => {
                match self.put(target.as_ref(), part.chosen, safety.lacks(name), &mut outcome) {
                    Ok(stopped) => containers = stopped,
                    Err(SourceError::Interrupted(i)) => {
                        // The recovery that follows takes back what is not decided, and clears up what is.
                        if self.is_undecided(name) {
                            outcome.fate = Fate::RolledBack;
                        }
                        if outcome.fate != Fate::Restored {
                            outcome.error = Some(chain(&i));
                        }
                        return (outcome, Err(i));
                    }
                    Err(e) => {
                        outcome.fate = match outcome.fate {
                            Fate::NotRestored => Fate::RolledBack,
                            // The new data is good, and something of the old is still in the way.
                            Fate::Restored => Fate::Kept,
                            other => other,
                        };
                        outcome.of_backup |= !e.is_of_this_machine();
                        outcome.error = Some(self.world.vault.scrub(&chain(&e)));
                        outcome.hint = e.hint();
                    }
                }
                outcome.lacking = target.not_put_back();
            }
        }
        let event = match (&outcome.error, outcome.fate) {
            (_, Fate::Restored) => Event::new(What::RestoreReplaced, format!("Restored {name}")),
            (error, fate) => {
                let after = match fate {
                    Fate::RolledBack => "; the old data is as it was",
                    Fate::Kept => "; it is left as it is",
                    Fate::Referenced => "; references lie beside the live files",
                    _ => "",
                };
                let why = error.clone().unwrap_or_default();
                Event::new(What::RestoreFailed, format!("{name} was not restored: {why}{after}"))
            }
        };
        self.world.monitor.event(event.component(name));
        (outcome, Ok(containers))
    }

    fn refer(&self, files: &[(String, PathBuf)]) -> Result<(), SourceError> {
        for (member, live) in files {
            let to = reference(live);
            let put = |source| SourceError::Place { path: to.clone(), source };
            let text = std::fs::read(self.fetched.dir().join(member)).map_err(put)?;
            whole_file::write(&to, &text).map_err(put)?;
        }
        Ok(())
    }
}

/// The Compose project that all components came from whose project is known.
fn project_of<'a>(chosen: &[Chosen<'a>]) -> Option<&'a str> {
    let of = |c: &Chosen<'a>| c.component.facts.get("compose")?.get("project")?.as_str();
    let mut projects: Vec<&str> = chosen.iter().filter_map(of).collect();
    projects.dedup();
    if let [one] = projects.as_slice() { Some(one) } else { None }
}

/// `tars-home.env.reference`, beside the live file.
fn reference(live: &Path) -> PathBuf {
    with_ending(live, ".reference")
}

/// Writes the data of the chosen components below `to`, and touches nothing else.
pub fn write_to(
    fetched: &Fetched,
    chosen: &[Chosen<'_>],
    to: &Path,
    request: &Request,
    world: &World<'_>,
) -> Result<RestoreOutcome, RestoreError> {
    let mut outcome = RestoreOutcome::of(&fetched.manifest);
    outcome.warnings = lacking(&fetched.manifest, request);
    for c in chosen {
        let work = fetched.work(c.name, c.component, request);
        let mut component = ComponentOutcome::of(c.name, Fate::Restored);
        let written = world.cancel.check().map_err(SourceError::from);
        match written.and_then(|()| fetch::write_component(&work, to, world)) {
            Ok(warnings) => component.warnings = warnings,
            Err(SourceError::Interrupted(i)) => return outcome.interrupted(chosen, i),
            Err(e) => {
                component.fate = Fate::NotRestored;
                (component.error, component.hint) = (Some(chain(&e)), e.hint());
            }
        }
        outcome.components.push(component);
    }
    outcome.duration_ms = millis(fetched.began.elapsed());
    Ok(outcome)
}

/// Copies of one backup, the nearest first.
pub fn nearest_first(mut copies: Vec<Found<'_>>) -> Vec<Found<'_>> {
    copies.sort_by_key(|f| f.store().local_root().is_none());
    copies
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_as_it_is_after_a_failure_is_not_as_before() {
        let outcome = |fates: &[Fate], left: &[&str]| RestoreOutcome {
            backup: "b".into(),
            components: fates.iter().map(|fate| ComponentOutcome::of("c", *fate)).collect(),
            safety_copy: None,
            left_held: left.iter().map(|l| (*l).to_owned()).collect(),
            unhealthy: Vec::new(),
            warnings: Vec::new(),
            interrupted: false,
            duration_ms: 0,
        };
        let nothing = [Fate::RolledBack, Fate::NotRestored, Fate::LeftAlone];
        assert!(outcome(&nothing, &[]).is_as_before());
        assert!(!outcome(&nothing, &["a container"]).is_as_before());
        for changed in [Fate::Kept, Fate::Restored, Fate::Referenced] {
            assert!(!outcome(&[Fate::RolledBack, changed], &[]).is_as_before(), "{changed:?}");
        }
        // Such an outcome restored nothing, and the new configuration is live.
        assert_eq!(outcome(&[Fate::Kept], &[]).restored(), 0);
    }
}
