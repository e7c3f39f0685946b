//! Proves that a stored backup can be brought back, by bringing it back where nothing is live: services into throwaway
//! containers of the images that they came from, files into scratch. What could go wrong: a proof that says more than was
//! seen, so each component tells where it was brought back and which numbers were compared, or why it was not; a shortage
//! of this machine told as a bad backup, so only what the data or its server shows is one; and a drill that touches what is
//! live, so the engine that it uses knows no container but its own.

mod scene;

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use self::scene::Scene;
use super::World;
use super::find::{Found, OpenError};
use super::restore::{self, Fate, Request, Restore, RestoreError};
use crate::archive::read::codec_of;
use crate::archive::seal::SealError;
use crate::cancel::Interrupted;
use crate::config::{Agent, DockerSettings};
use crate::docker::hold::HoldError;
use crate::hint::{Hint, chain};
use crate::id::show_name;
use crate::manifest::{Component, ComponentState, Manifest};
use crate::marks::{self, DrillVerdict, Drilled, Verified};
use crate::progress::{Event, Monitor, What};
use crate::run_guard::RunGuard;
use crate::run_journal::JournalError;
use crate::source::{self, CheckError, Configured, Context, Member, Rehearsal, SourceError};
use crate::staging::{RunDir, StagingError};
use crate::target::{Compared, Work};

/// What of this machine a drill uses.
pub struct Ground<'a> {
    pub agent: &'a Agent,
    pub docker: &'a DockerSettings,
    pub host: &'a str,
    /// Sources of the configuration, where there is one: how long those of the same name may take.
    pub sources: &'a [Configured],
}

#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Fetch(restore::FetchError),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Hold(HoldError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Restore(RestoreError),
    #[error("cannot use {path} for what is brought back")]
    Scratch {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the sources of the drill are not understood: {0}")]
    Sources(String),
}

impl From<HoldError> for DrillError {
    fn from(e: HoldError) -> Self {
        match e {
            HoldError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Hold(e),
        }
    }
}

impl From<RestoreError> for DrillError {
    fn from(e: RestoreError) -> Self {
        match e {
            RestoreError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Restore(e),
        }
    }
}

impl DrillError {
    /// Whether this machine or its engine is the reason: then it says nothing of the backup.
    fn is_of_this_machine(&self) -> bool {
        match self {
            Self::Staging(_) | Self::Hold(_) | Self::Journal(_) | Self::Scratch { .. } => true,
            Self::Fetch(e) => is_a_shortage(e),
            Self::Restore(e) => matches!(
                e,
                RestoreError::Staging(_)
                    | RestoreError::Hold(_)
                    | RestoreError::Docker(_)
                    | RestoreError::Space { .. }
                    | RestoreError::Look { .. }
            ),
            Self::Interrupted(_) | Self::Sources(_) => false,
        }
    }
}

/// Whether an archive could not be fetched for want of room.
fn is_a_shortage(e: &restore::FetchError) -> bool {
    matches!(e, restore::FetchError::Space { .. } | restore::FetchError::Write { .. })
}

impl Hint for DrillError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Fetch(e) => e.hint(),
            Self::Staging(e) => e.hint(),
            Self::Hold(e) => e.hint(),
            Self::Journal(e) => e.hint(),
            Self::Restore(e) => e.hint(),
            Self::Interrupted(_) | Self::Scratch { .. } | Self::Sources(_) => None,
        }
    }
}

/// What became of one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// It was brought back, and is what the manifest says.
    Proved,
    Failed,
    NotDrilled,
}

#[derive(Debug, Serialize)]
pub struct Line {
    pub component: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub proof: Proof,
    /// What it was brought back into; None where it was not.
    pub place: Option<String>,
    pub compared: Vec<Compared>,
    /// Why it failed, or was not drilled.
    pub reason: Option<String>,
    pub hint: Option<String>,
    pub warnings: Vec<String>,
}

impl Line {
    fn of(component: String, kind: String) -> Self {
        Self {
            component,
            kind,
            proof: Proof::Proved,
            place: None,
            compared: Vec::new(),
            reason: None,
            hint: None,
            warnings: Vec::new(),
        }
    }

    fn fail(&mut self, why: impl Into<String>, hint: Option<String>) {
        (self.proof, self.reason, self.hint) = (Proof::Failed, Some(why.into()), hint);
    }

    fn leave_out(&mut self, why: impl Into<String>, hint: Option<String>) {
        (self.proof, self.reason, self.hint) = (Proof::NotDrilled, Some(why.into()), hint);
    }

    /// It did not come through: the backup's fault, unless this machine or its engine is the reason.
    fn stop(&mut self, e: &SourceError) {
        match e.is_of_this_machine() {
            true => self.leave_out(chain(e), e.hint()),
            false => self.fail(chain(e), None),
        }
    }

    /// Takes what was counted, and fails where the manifest says something else.
    fn take(&mut self, compared: Vec<Compared>) {
        self.compared.extend(compared);
        let unequal = self.compared.iter().filter(|c| !c.equal);
        let texts: Vec<String> = unequal
            .map(|c| format!("{}: the manifest says {}, found {}", c.what, c.manifest, c.found))
            .collect();
        if !texts.is_empty() && self.proof == Proof::Proved {
            self.fail(texts.join("; "), None);
        }
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub backup: String,
    pub store: String,
    /// Time of the backup.
    pub made: Option<String>,
    pub host: Option<String>,
    pub verdict: DrillVerdict,
    /// What is wrong with the copy as a whole, or why it could not be opened.
    pub reason: Option<String>,
    pub hint: Option<String>,
    pub components: Vec<Line>,
    /// Length of the archive as it is stored.
    pub bytes: Option<u64>,
    /// Time to fetch, open and check the archive.
    pub fetch_ms: Option<u64>,
    /// The whole way: from the first byte that was fetched to the last service that answered with the right numbers.
    pub rto_ms: Option<u64>,
    /// What the drill made and could not remove.
    pub left: Vec<String>,
    pub notes: Vec<String>,
}

impl Report {
    fn of(copy: &Found<'_>) -> Self {
        let manifest = copy.entry.manifest.as_ref().ok();
        Self {
            backup: copy.entry.name.to_string(),
            store: copy.store().name().to_owned(),
            made: manifest.map(|m| m.timestamp.clone()),
            host: manifest.map(|m| m.host.clone()),
            verdict: DrillVerdict::NotDrilled,
            reason: None,
            hint: None,
            components: Vec::new(),
            bytes: manifest.and_then(|m| m.bytes),
            fetch_ms: None,
            rto_ms: None,
            left: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// This machine ended it before its end: nothing more is known than was found by then.
    fn break_off(&mut self, e: &DrillError) {
        for line in self.components.iter_mut().filter(|l| l.proof == Proof::Proved) {
            line.leave_out("the drill ended before it was proved", None);
        }
        (self.reason, self.hint) = (Some(chain(e)), e.hint());
    }

    fn judge(&mut self) {
        let any = |proof| self.components.iter().any(|l| l.proof == proof);
        self.verdict = match (any(Proof::Failed), any(Proof::NotDrilled), any(Proof::Proved)) {
            (true, _, _) => DrillVerdict::Bad,
            (false, true, true) => DrillVerdict::Partly,
            (false, false, true) => DrillVerdict::Good,
            (false, _, false) => DrillVerdict::NotDrilled,
        };
    }

    /// Much of it is what a backup calls its tables and files: none of that makes a line of its own.
    fn make_plain(&mut self) {
        let of_lines = self.components.iter_mut().flat_map(|l| {
            let compared = l.compared.iter_mut().map(|c| &mut c.what);
            compared.chain(&mut l.reason).chain(&mut l.place).chain(&mut l.warnings)
        });
        for text in of_lines.chain(&mut self.reason) {
            *text = show_name(text.as_bytes());
        }
    }

    fn names(&self, proof: Proof) -> Vec<String> {
        self.components.iter().filter(|l| l.proof == proof).map(|l| l.component.clone()).collect()
    }

    fn to_mark(&self, time: Timestamp, sha256: &str) -> Drilled {
        Drilled {
            time,
            verdict: self.verdict,
            sha256: sha256.to_owned(),
            proved: self.names(Proof::Proved),
            failed: self.names(Proof::Failed),
            not_drilled: self.names(Proof::NotDrilled),
            rto_ms: self.rto_ms,
        }
    }
}

/// Drills one copy of one backup, and notes beside it what came of it. The guard proves that nobody else runs.
pub fn run(
    copy: &Found<'_>,
    ground: &Ground<'_>,
    guard: &RunGuard,
    world: &World<'_>,
) -> Result<Report, DrillError> {
    let mut report = Report::of(copy);
    let text = format!("Drill of {} in {} started", report.backup, report.store);
    world.monitor.event(Event::new(What::DrillStarted, text).backup(&report.backup).store(&report.store));
    match attempt(copy, ground, guard, world, &mut report) {
        Err(e) if e.is_of_this_machine() => {
            report.break_off(&e);
            report.judge();
        }
        other => other?,
    }
    report.make_plain();
    let damaged = report.verdict == DrillVerdict::Bad && report.components.is_empty();
    note(copy, &mut report, damaged, world);
    Ok(report)
}

fn attempt(
    copy: &Found<'_>,
    ground: &Ground<'_>,
    guard: &RunGuard,
    world: &World<'_>,
    report: &mut Report,
) -> Result<(), DrillError> {
    let dir = RunDir::create(&ground.agent.staging_dir, "drill")?;
    match restore::fetch_one(copy, dir, world) {
        Ok(fetched) => {
            report.fetch_ms = Some(fetched.elapsed_ms());
            bring_back(fetched, ground, guard, world, report)?;
            report.judge();
            Ok(())
        }
        Err(e) => unfetched(e, report),
    }
}

/// What it says of the backup that it could not be fetched; an error where that says nothing of it.
fn unfetched(e: restore::FetchError, report: &mut Report) -> Result<(), DrillError> {
    use restore::FetchError;
    let closed = match &e {
        FetchError::Newer { .. } => true,
        FetchError::Open { source, .. } => matches!(
            **source,
            OpenError::NoIdentity | OpenError::Key(_) | OpenError::Seal(SealError::NoIdentity { .. })
        ),
        _ => false,
    };
    let bad = match &e {
        FetchError::Damaged { .. } | FetchError::NoGoodCopy(_) => true,
        FetchError::Open { source, .. } => matches!(**source, OpenError::Seal(_)),
        _ => false,
    };
    (report.reason, report.hint) = (Some(chain(&e)), e.hint());
    report.verdict = match (closed, bad, e) {
        (true, _, _) => DrillVerdict::NotDrilled,
        (_, true, _) => DrillVerdict::Bad,
        (_, _, FetchError::Interrupted(i)) => return Err(i.into()),
        (_, _, e) => return Err(DrillError::Fetch(e)),
    };
    Ok(())
}

/// Everything that the archive holds, each as its kind says.
fn bring_back(
    mut fetched: restore::Fetched,
    ground: &Ground<'_>,
    guard: &RunGuard,
    world: &World<'_>,
    report: &mut Report,
) -> Result<(), DrillError> {
    let known = fetched.manifest.clone();
    // Where it came from is live: nothing of it is looked for.
    for component in fetched.manifest.details.values_mut() {
        component.facts.remove("compose");
    }
    let scratch = RunDir::create(&ground.agent.staging_dir, "drill-scratch")?;
    let quiet = Quiet(world.monitor);
    let world = &World { monitor: &quiet, ..*world };
    let mut scene = Scene::new(scratch.path(), ground, world);
    for (name, component) in &known.details {
        report.components.push(begin(name, component, &mut scene)?);
    }
    for name in known.missing() {
        let mut line = Line::of(show_name(name.as_bytes()), "unknown".into());
        line.leave_out(LACKS, None);
        report.components.push(line);
    }
    let mut put: Vec<String> = Vec::new();
    for line in report.components.iter_mut() {
        let component = fetched.manifest.details.get_mut(&line.component);
        let (Some(component), Some(place)) = (component, scene.place_of(&line.component)) else { continue };
        // A tree goes back as a tree, whatever it was that it came from.
        component.kind.clone_from(&place.kind);
        for fact in &place.forget {
            component.facts.remove(*fact);
        }
        line.place = Some(place.shown.clone());
        put.push(line.component.clone());
    }
    let request = Request { components: put, keep: true, no_safety_backup: true, ..Request::default() };
    let chosen = match request.components.is_empty() {
        true => Vec::new(),
        false => restore::choose(&fetched.manifest, &request)?,
    };
    let setup = scene.setup()?;
    let worked = {
        let restore = Restore::within(
            &setup,
            &request,
            &fetched,
            &chosen,
            world,
            scene.engine(),
            scene.holds().inner(),
        );
        put_back(&restore, guard, &scene, report)
            .and_then(|()| read_through(&restore, &known, scratch.path(), report))
    };
    if report.rto_ms.is_none() {
        report.rto_ms = Some(fetched.elapsed_ms());
    }
    // Scratch is gone by the time that anybody reads it.
    let gone = scratch.path().display().to_string();
    for hint in report.components.iter_mut().filter_map(|l| l.hint.as_mut()).filter(|h| h.contains(&gone)) {
        let dir = ground.agent.staging_dir.display();
        *hint = format!("make room (df -h {dir}), or set agent.staging_dir to a larger disk");
    }
    report.left = scene.clear();
    worked
}

/// The place of what has none.
const READ: &str = "read, as there is nothing to bring it into";
const LACKS: &str = "the backup lacks it";

/// Whether and where a component can be brought back.
fn begin(name: &str, component: &Component, scene: &mut Scene<'_>) -> Result<Line, DrillError> {
    let mut line = Line::of(name.to_owned(), component.kind.clone());
    match (component.state, component.members.is_empty()) {
        (ComponentState::Whole, false) => {}
        (ComponentState::Incomplete, false) => {
            line.leave_out("it is incomplete in the backup", None);
            return Ok(line);
        }
        _ => {
            line.leave_out(LACKS, None);
            return Ok(line);
        }
    }
    let is_tree = |m: &String| codec_of(m).0.ends_with(".tar");
    match source::rehearsal(&component.kind) {
        None => {
            let why = format!("this version does not know sources of type {}", component.kind);
            line.leave_out(why, Some("use the version that made it, or a newer one".into()));
        }
        Some(Rehearsal::Directory) if component.members.iter().any(is_tree) => scene.directory(name),
        Some(Rehearsal::File) => scene.file(name, &component.kind),
        Some(Rehearsal::Server(make)) => {
            if let Err((why, hint)) = scene.server(name, component, make)? {
                line.leave_out(why, hint);
            }
        }
        Some(Rehearsal::Directory | Rehearsal::Read(_)) => {
            line.place = Some(READ.into());
        }
    }
    Ok(line)
}

/// Restores what has a place, and counts it there.
fn put_back(
    restore: &Restore<'_>,
    guard: &RunGuard,
    scene: &Scene<'_>,
    report: &mut Report,
) -> Result<(), DrillError> {
    if restore.is_empty() {
        return Ok(());
    }
    let outcome = restore.run(guard, std::time::Duration::ZERO)?;
    if outcome.interrupted {
        return Err(Interrupted.into());
    }
    for done in outcome.components {
        let Some(line) = report.components.iter_mut().find(|l| l.component == done.component) else {
            continue;
        };
        // What is said of a container of ours is about the drill, and not about the backup.
        line.warnings.extend(done.warnings.into_iter().filter(|w| !scene.is_about_it(w)));
        if done.fate != Fate::Restored {
            line.warnings.clear();
            let why = done.error.unwrap_or_else(|| "it was not brought back".into());
            match done.of_backup {
                // What could be done about it names a container that is gone by then.
                true => line.fail(why, None),
                false => line.leave_out(why, done.hint),
            }
        }
    }
    for (name, compared) in restore.compare() {
        let Some(line) = report.components.iter_mut().find(|l| l.component == name) else { continue };
        match compared {
            _ if line.proof != Proof::Proved => {}
            Ok(compared) => line.take(compared),
            Err(SourceError::Interrupted(i)) => return Err(i.into()),
            Err(e) => line.stop(&e),
        }
    }
    report.rto_ms = Some(outcome.duration_ms);
    let is_server = |l: &&mut Line| matches!(source::rehearsal(&l.kind), Some(Rehearsal::Server(_)));
    let failed = report.components.iter_mut().filter(|l| l.proof == Proof::Failed).filter(is_server);
    let failed: Vec<&mut Line> = failed.collect();
    if let Some(gone) = (!failed.is_empty()).then(|| scene.engine_gone()).flatten() {
        for line in failed {
            line.leave_out(chain(&gone), gone.hint());
        }
    }
    Ok(())
}

/// Reads what no server was there for, and what a server did not need, with all that its kind knows.
fn read_through(
    restore: &Restore<'_>,
    known: &Manifest,
    scratch: &Path,
    report: &mut Report,
) -> Result<(), DrillError> {
    let context = restore.context();
    for line in report.components.iter_mut().filter(|l| l.proof == Proof::Proved) {
        let Some(component) = known.details.get(&line.component) else { continue };
        let name = line.component.clone();
        let work = restore.work_on(&name, component);
        let done = match source::rehearsal(&component.kind) {
            Some(Rehearsal::Read(read)) => {
                check(&context, &work, scratch).and_then(|()| read(&context, &work))
            }
            Some(Rehearsal::Directory) if line.place.as_deref() == Some(READ) => {
                let compared = check(&context, &work, scratch).and_then(|()| source::inventoried(&work));
                compared.map(|compared| source::Rehearsed { compared, closed: None })
            }
            Some(Rehearsal::Directory | Rehearsal::Server(_)) => {
                check(&context, &work, scratch).map(|()| source::Rehearsed::default())
            }
            Some(Rehearsal::File) => Ok(source::Rehearsed::default()),
            None => continue,
        };
        match done {
            Ok(done) => {
                line.take(done.compared);
                if let (Some((why, hint)), Proof::Proved) = (done.closed, line.proof) {
                    line.leave_out(why, hint);
                }
                must_be_counted(line, known.legacy);
            }
            Err(SourceError::Interrupted(i)) => return Err(i.into()),
            Err(e) => line.stop(&e),
        }
    }
    Ok(())
}

/// Where nothing was compared, nothing is proved.
fn must_be_counted(line: &mut Line, legacy: bool) {
    let counts_nothing = line.kind == source::COMMAND;
    if line.proof != Proof::Proved || !line.compared.is_empty() || counts_nothing {
        return;
    }
    let into = line.place.as_deref().filter(|place| *place != READ);
    let done = into.map_or_else(|| "was read".to_owned(), |place| format!("was brought back into {place}"));
    let is_server = matches!(source::rehearsal(&line.kind), Some(Rehearsal::Server(_)));
    match legacy || is_server {
        true => line.leave_out(format!("it {done}, and the backup has no numbers of it to compare"), None),
        false => line.fail(format!("it {done}, and the manifest has no numbers of it"), None),
    }
}

/// The check that `verify --deep` makes of each member.
fn check(context: &Context<'_>, work: &Work<'_>, scratch: &Path) -> Result<(), SourceError> {
    for name in &work.component.members {
        context.cancel.check()?;
        work.open(name, |body| {
            let mut member = Member { name: codec_of(name).0, body, component: work.component, scratch };
            source::check(&mut member).map_err(|e| match e {
                // Nothing that an archive holds is an error of the system.
                CheckError::Read(source) if source.raw_os_error().is_some() => {
                    SourceError::Place { path: scratch.to_owned(), source }
                }
                CheckError::Read(source) => {
                    SourceError::Read { what: format!("{name} of the archive"), source }
                }
                CheckError::Bad(why) => SourceError::Bad { what: name.clone(), why, hint: None },
            })
        })?;
    }
    Ok(())
}

/// That an earlier result of the same bytes stays, where this drill did not look at all that it speaks of.
fn weightier(earlier: Option<&Drilled>, report: &Report, sha256: &str) -> Option<String> {
    let earlier = earlier.filter(|e| e.sha256 == sha256 && report.verdict == DrillVerdict::Partly)?;
    let proved = report.names(Proof::Proved);
    let all_seen = earlier.proved.iter().chain(&earlier.failed).all(|name| proved.contains(name));
    let word = match earlier.verdict {
        DrillVerdict::Good => "good",
        DrillVerdict::Partly => "partly",
        DrillVerdict::NotDrilled => "not drilled",
        DrillVerdict::Bad => "bad",
    };
    let time = earlier.time.strftime("%F %T UTC");
    (!all_seen).then(|| format!("the earlier result stays noted ({word}, {time}): this drill saw less"))
}

/// Notes the result beside the copy, and in the audit trail. `damaged`: its bytes are not those of the backup.
fn note(copy: &Found<'_>, report: &mut Report, damaged: bool, world: &World<'_>) {
    let (store, name) = (copy.store(), &copy.entry.name);
    let mut noted = Ok(());
    // A mark is one of certain bytes: where the manifest does not read nobody knows which.
    let sha256 = copy.entry.manifest.as_ref().ok().and_then(|m| m.sha256.as_deref());
    match (report.verdict, sha256) {
        // Of one that nobody could open nothing new is known.
        (DrillVerdict::NotDrilled, _) | (_, None) => {}
        (_, Some(sha256)) => match weightier(copy.entry.drilled.as_ref(), report, sha256) {
            Some(kept) => report.notes.push(kept),
            None => {
                noted = marks::set(store, &copy.dir, name, &report.to_mark((world.now)(), sha256));
            }
        },
    }
    if damaged {
        noted = noted.and(marks::clear::<Verified>(store, &copy.dir, name));
    }
    if let Err(e) = noted {
        report.notes.push(format!("the result could not be noted in the store: {}", chain(&e)));
    }
    let because = |proof| {
        let lines = report.components.iter().filter(move |l| l.proof == proof);
        let text = |l: &Line| format!("{}: {}", l.component, l.reason.as_deref().unwrap_or("unknown"));
        let all: Vec<String> = report.reason.iter().cloned().chain(lines.map(text)).collect();
        world.vault.scrub(&all.join("; "))
    };
    let (what, text) = match report.verdict {
        DrillVerdict::Good => (What::DrillGood, "good: all of it was brought back".to_owned()),
        DrillVerdict::Partly => {
            (What::DrillPartly, format!("not all was drilled: {}", because(Proof::NotDrilled)))
        }
        DrillVerdict::NotDrilled => {
            (What::DrillPartly, format!("not drilled: {}", because(Proof::NotDrilled)))
        }
        DrillVerdict::Bad => (What::DrillBad, format!("BAD: {}", because(Proof::Failed))),
    };
    let mut event = Event::new(what, format!("Drill of {name} in {}: {text}", store.name()));
    event.duration_ms = report.rto_ms;
    world.monitor.event(event.backup(name).store(store.name()));
}

/// Lets progress through, and of what happens only what stays: the restores of a drill are none of the audit trail.
struct Quiet<'a>(&'a dyn Monitor);

impl Monitor for Quiet<'_> {
    fn event(&self, event: Event) {
        if event.what == What::ContainerLeft {
            self.0.event(event);
        }
    }

    fn moved(&self, bytes: u64) {
        self.0.moved(bytes);
    }

    fn phase(&self, text: &str, total: Option<u64>) {
        self.0.phase(text, total);
    }

    fn waiting(&self, text: &str) {
        self.0.waiting(text);
    }
}
