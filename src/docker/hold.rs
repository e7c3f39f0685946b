//! Containers kept from writing while their data is read. What could go wrong: a service that stays down, or a copy of
//! data that somebody wrote to all the same. So the journal knows of a hold before the engine does; a hold ends when its
//! last user is done, when its time is up, or when the run is killed and somebody recovers; and at the end of a hold
//! every writer must be exactly as we left it.
//!
//! A container that commands run in (`in_use`) is never held, and a held one is never used: each waits for the other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::acts::{Fate, Purpose};
use super::client::{Docker, DockerError};
use super::containers::Container;
use super::place::{Devices, Place};
use crate::cancel::{Cancel, Interrupted};
use crate::guardian::Guardian;
use crate::hint::{Hint, chain};
use crate::progress::{Event, Monitor, What};
use crate::run_journal::{Held, Helper, How, JournalError, RunJournal, Step};
use crate::units::show_duration;

#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Docker(DockerError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("cannot start the guardian that would continue the containers if this run were killed")]
    Guardian(#[source] std::io::Error),
    #[error("container {name} is paused, and would go on with the old data")]
    Paused { name: String },
    #[error("container {name} does not run with the new data: {why}")]
    DoesNotRun { name: String, why: String },
    #[error("container {name} keeps restarting, so it cannot be paused")]
    Restarting { name: String },
    #[error("container {name} is removed when it stops, so it would not come back")]
    Ephemeral { name: String },
    #[error("the data could not be read within {}; {names} was continued first", show_duration(*limit))]
    Expired { names: String, limit: Duration },
    #[error("{name} {what} while its data was read, so the copy is not of one moment")]
    Disturbed { name: String, what: &'static str },
}

impl HoldError {
    /// Whether the reason is the engine or this machine, and not what a server made of its data.
    pub fn is_of_this_machine(&self) -> bool {
        match self {
            Self::Docker(e) => e.is_of_this_machine(),
            Self::DoesNotRun { .. } | Self::Restarting { .. } | Self::Ephemeral { .. } => false,
            _ => true,
        }
    }
}

impl From<DockerError> for HoldError {
    fn from(e: DockerError) -> Self {
        match e {
            DockerError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Docker(e),
        }
    }
}

impl Hint for HoldError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Docker(e) => e.hint(),
            Self::Journal(e) => e.hint(),
            Self::Paused { name } => Some(format!("docker unpause {name}, or stop it; then again")),
            Self::DoesNotRun { name, .. } => Some(format!("docker logs --tail 50 {name}")),
            Self::Restarting { name } => {
                Some(format!("mend it: docker logs --tail 50 {name}; or set consistency = \"stop\""))
            }
            Self::Ephemeral { .. } => Some("set consistency = \"pause\", or run it without --rm".into()),
            Self::Expired { .. } => Some(
                "raise max_pause of the source, or make the copy shorter: exclude what is not needed".into(),
            ),
            Self::Disturbed { .. } => Some("run the backup again when nobody works on the containers".into()),
            _ => None,
        }
    }
}

/// All holds of one run.
pub struct Holds<'a> {
    journal: Arc<RunJournal>,
    /// The holds of the run that this one is a part of: they begin and end the journal.
    parent: Option<&'a Holds<'a>>,
    /// Program and arguments of the guardian of this run.
    guard: (PathBuf, Vec<std::ffi::OsString>),
    monitor: &'a dyn Monitor,
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    held: BTreeMap<String, Entry>,
    /// Containers that commands run in: how many.
    used: BTreeMap<String, usize>,
    active: BTreeMap<u64, Active>,
    last: u64,
    /// Counts what entered and left `held`, so that a list of containers made before can be known as outdated.
    changes: u64,
    begun: bool,
    guardian: Option<Guardian>,
    /// Helpers that run, each with its engine.
    windows: Vec<(String, Docker)>,
    /// Containers that could not be brought back, for a person.
    left: Vec<String>,
    closed: bool,
}

struct Entry {
    container: Container,
    how: How,
    since: Instant,
    holders: BTreeSet<u64>,
    phase: Phase,
    docker: Docker,
}

/// Whose containers are held.
#[derive(Clone, Copy)]
enum Whom<'a> {
    /// Those that can write at a place.
    Writers(&'a Place),
    /// Those that have anything of it mounted.
    Everybody(&'a Place),
    /// These, by their ids.
    These(&'a [Container]),
}

impl Whom<'_> {
    fn concerns(&self, c: &Container, devices: &Devices) -> bool {
        match self {
            Self::Writers(place) => place.is_written_by(c, devices),
            Self::Everybody(place) => place.is_mounted_by(c, devices),
            Self::These(containers) => containers.iter().any(|other| other.id == c.id),
        }
    }

    fn place(&self) -> Option<&Place> {
        match self {
            Self::Writers(place) | Self::Everybody(place) => Some(place),
            Self::These(_) => None,
        }
    }
}

/// Longer than any restore takes.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a container must run to be called running.
const STEADY: Duration = Duration::from_secs(3);
/// How often a pause is tried, and the time between.
const FREEZES: u32 = 10;
const FREEZE_AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was done to it yet.
    Reserved,
    /// The engine is just doing it.
    Taking,
    Held,
    /// It is being brought back.
    Leaving,
}

struct Active {
    ids: Vec<String>,
    deadline: Instant,
    cancel: Cancel,
    expired: bool,
}

impl<'a> Holds<'a> {
    /// `guard`: our program and the arguments of its guardian command.
    pub fn new(
        journal: RunJournal,
        guard: (PathBuf, Vec<std::ffi::OsString>),
        monitor: &'a dyn Monitor,
    ) -> Self {
        let journal = Arc::new(journal);
        Self { journal, parent: None, guard, monitor, table: Mutex::default(), changed: Condvar::new() }
    }

    /// Holds of an operation inside another: it knows nothing of what the other holds, and both share one journal.
    pub fn inner(&self) -> Holds<'_> {
        Holds {
            journal: self.journal.clone(),
            parent: Some(self),
            guard: self.guard.clone(),
            monitor: self.monitor,
            table: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change of the table, but not for long: the signal does not wake it.
    fn rest<'t>(&self, table: MutexGuard<'t, Table>) -> MutexGuard<'t, Table> {
        let waited = self.changed.wait_timeout(table, Duration::from_millis(100));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// The container is kept free of holds while the result lives.
    pub fn in_use(&self, id: &str, cancel: &Cancel) -> Result<InUse<'_>, Interrupted> {
        let mut table = self.table();
        while table.held.contains_key(id) {
            cancel.check()?;
            table = self.rest(table);
        }
        *table.used.entry(id.to_owned()).or_default() += 1;
        Ok(InUse { holds: self, id: id.to_owned() })
    }

    /// The journal of this run, for steps that are not about containers.
    pub fn journal(&self) -> &RunJournal {
        &self.journal
    }

    /// Begins the journal of a run that changes something before, or without, holding a container. `docker` is the engine
    /// of the run, if it has one: whoever recovers must find that very engine.
    pub fn begin_changes(&self, docker: Option<&Docker>) -> Result<(), HoldError> {
        self.begin(docker)
    }

    /// Holds every container that can write at `place`, for at most `limit`. Nothing to hold is fine.
    pub fn hold(
        &self,
        docker: &Docker,
        place: &Place,
        how: How,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Hold<'_>, HoldError> {
        self.hold_as(docker, Whom::Writers(place), how, limit, cancel)
    }

    /// Stops every container that has anything of `place` mounted, for as long as it takes: nobody goes on with a
    /// directory that is exchanged. Fails when one of them is paused.
    pub fn stop_all(&self, docker: &Docker, place: &Place, cancel: &Cancel) -> Result<Hold<'_>, HoldError> {
        let devices = docker.devices()?;
        for container in docker.paused()? {
            if place.is_mounted_by(&container, &devices) {
                return Err(HoldError::Paused { name: container.name });
            }
        }
        self.hold_as(docker, Whom::Everybody(place), How::Stop, FOR_EVER, cancel)
    }

    /// Stops those of these containers that run, in this order, for as long as it takes.
    pub fn stop_these(
        &self,
        docker: &Docker,
        containers: &[Container],
        cancel: &Cancel,
    ) -> Result<Hold<'_>, HoldError> {
        self.hold_as(docker, Whom::These(containers), How::Stop, FOR_EVER, cancel)
    }

    fn hold_as(
        &self,
        docker: &Docker,
        whom: Whom<'_>,
        how: How,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<Hold<'_>, HoldError> {
        let devices = docker.devices()?;
        let own_cancel = cancel.child();
        let (number, wanted, fresh) = self.reserve(docker, &devices, whom, how, limit, &own_cancel)?;
        let mut hold = Hold {
            holds: self,
            number,
            how,
            since: Instant::now(),
            complete: Timestamp::now(),
            limit,
            docker: docker.undisturbed(),
            place: whom.place().cloned(),
            devices,
            wanted,
            cancel: own_cancel,
            over: false,
        };
        for container in fresh {
            // Dropping the hold undoes what was done so far.
            self.take(docker, &container, how)?;
            // Only now, so that a signal cannot leave us in doubt about what the engine does.
            if hold.cancel.check().is_err() {
                return Err(hold.why_interrupted());
            }
        }
        hold.complete = Timestamp::now();
        Ok(hold)
    }

    /// Enters a new hold into the table, once nobody is in the way; what is to be held, and what of it is not yet.
    fn reserve(
        &self,
        docker: &Docker,
        devices: &Devices,
        whom: Whom<'_>,
        how: How,
        limit: Duration,
        cancel: &Cancel,
    ) -> Result<(u64, Vec<Container>, Vec<Container>), HoldError> {
        let concerns = |c: &Container| whom.concerns(c, devices);
        loop {
            cancel.check()?;
            let changes = self.table().changes;
            let mut running: Vec<Container> = docker.active()?.into_iter().filter(concerns).collect();
            if let Whom::These(order) = whom {
                running.sort_by_key(|c| order.iter().position(|other| other.id == c.id));
            }
            let mut table = self.table();
            if table.changes != changes {
                continue;
            }
            let mut wanted = running.clone();
            // What another source stopped does not run now, and will while we read.
            for entry in table.held.values() {
                let known = wanted.iter().any(|c| c.id == entry.container.id);
                if !known && concerns(&entry.container) {
                    wanted.push(entry.container.clone());
                }
            }
            let blocked = wanted.iter().any(|c| {
                table.used.contains_key(&c.id)
                    || table.held.get(&c.id).is_some_and(|e| e.phase != Phase::Held || e.how != how)
            });
            if blocked {
                self.monitor.waiting("waiting for another source that uses the same container");
                drop(self.rest(table));
                continue;
            }
            let is_held = |table: &Table, c: &Container| table.held.contains_key(&c.id);
            let fresh: Vec<Container> = wanted.iter().filter(|c| !is_held(&table, c)).cloned().collect();
            if let Some(c) = fresh.iter().find(|c| how == How::Pause && c.state == "restarting") {
                return Err(HoldError::Restarting { name: c.name.clone() });
            }
            if let Some(c) = fresh.iter().find(|c| how == How::Stop && c.auto_remove) {
                return Err(HoldError::Ephemeral { name: c.name.clone() });
            }
            table.last += 1;
            table.changes += 1;
            let number = table.last;
            let mut since = Instant::now();
            for c in &wanted {
                let entry = table.held.entry(c.id.clone()).or_insert_with(|| Entry {
                    container: c.clone(),
                    how,
                    since,
                    holders: BTreeSet::new(),
                    phase: Phase::Reserved,
                    docker: docker.undisturbed(),
                });
                entry.holders.insert(number);
                // No container is held for longer than any of its users allows.
                since = since.min(entry.since);
            }
            let ids = wanted.iter().map(|c| c.id.clone()).collect();
            let active = Active { ids, deadline: since + limit, cancel: cancel.clone(), expired: false };
            table.active.insert(number, active);
            self.changed.notify_all();
            return Ok((number, wanted, fresh));
        }
    }

    fn take(&self, docker: &Docker, container: &Container, how: How) -> Result<(), HoldError> {
        match self.table().held.get_mut(&container.id) {
            Some(entry) if !entry.holders.is_empty() => entry.phase = Phase::Taking,
            // Its time was up before it began; the caller sees that.
            _ => return Ok(()),
        }
        let docker = &docker.undisturbed();
        let mut tries = 0;
        loop {
            tries += 1;
            // Before each try: whoever recovers waits as long after it as the engine may still be at it.
            let known = self
                .begin(Some(docker))
                .and_then(|()| Ok(self.journal.record(&Step::Hold(container.to_held(how)))?));
            if known.is_err() {
                let phase = if tries == 1 { Phase::Reserved } else { Phase::Held };
                self.enter(&container.id, phase);
                return known;
            }
            match docker.take_hold(container, how) {
                Err(e) if e.is_not_frozen() && tries < FREEZES => std::thread::sleep(FREEZE_AGAIN),
                outcome => {
                    self.enter(&container.id, Phase::Held);
                    outcome?;
                    break;
                }
            }
        }
        let verb = if how == How::Pause { "Paused" } else { "Stopped" };
        self.monitor.event(Event::new(What::ContainerHeld, format!("{verb} {}", container.name)));
        Ok(())
    }

    fn enter(&self, id: &str, phase: Phase) {
        if let Some(entry) = self.table().held.get_mut(id) {
            entry.phase = phase;
        }
        self.changed.notify_all();
    }

    /// Before the first act of the run: its first line in the journal, and its guardian.
    fn begin(&self, docker: Option<&Docker>) -> Result<(), HoldError> {
        if let Some(parent) = self.parent {
            return parent.begin(docker);
        }
        let mut table = self.table();
        if !table.begun {
            // First, so that there is no journal that nobody looks after.
            let (exe, arguments) = &self.guard;
            let guardian = Guardian::start(exe, arguments).map_err(HoldError::Guardian)?;
            let (pid, socket) = (std::process::id(), docker.map(|d| d.address().to_owned()));
            if let Err(e) = self.journal.record(&Step::Run { pid, socket }) {
                if let Some(guardian) = guardian {
                    guardian.dismiss();
                }
                return Err(e.into());
            }
            table.guardian = guardian;
            table.begun = true;
        }
        Ok(())
    }

    /// Creates a helper container, runs `work` with its name and its window, removes it.
    pub fn with_helper<T, E: From<HoldError>>(
        &self,
        docker: &Docker,
        place: &Place,
        image: Option<&str>,
        work: impl FnOnce(&str, &str) -> Result<T, E>,
    ) -> Result<T, E> {
        let image = match image {
            Some(image) => image.to_owned(),
            None => docker.any_image().map_err(HoldError::from)?,
        };
        self.begin(Some(docker))?;
        let name = self.announce_helper().map_err(E::from)?;
        // Deaf to the interrupt, which would leave us in doubt about what the engine does.
        let made = docker.undisturbed().create_helper(&name, &image, &place.seat, Purpose::Read);
        let settle = match &made {
            Ok(_) | Err(DockerError::Refused { .. }) => Duration::ZERO,
            Err(_) => Helper::SETTLE,
        };
        let outcome = made.map_err(|e| E::from(HoldError::from(e))).and_then(|window| work(&name, window));
        match docker.undisturbed().remove_helper(&name, settle) {
            Ok(()) => self.journal.record(&Step::HelperRemoved { name }).map_err(HoldError::from)?,
            Err(e) => self.leave(format!("the helper container {name} could not be removed: {}", chain(&e))),
        }
        outcome
    }

    fn announce_helper(&self) -> Result<String, HoldError> {
        let number = {
            let mut table = self.table();
            table.last += 1;
            table.last
        };
        let name = format!("tars-backup-helper-{}-{number}", std::process::id());
        let helper = Helper { name: name.clone(), at: Timestamp::now() };
        self.journal.record(&Step::Helper(helper))?;
        Ok(name)
    }

    /// Creates and starts a helper container that shows `place` to this host until the run ends: its name, and where it
    /// shows it within itself.
    pub fn open_window(
        &self,
        docker: &Docker,
        place: &Place,
        image: Option<&str>,
    ) -> Result<(String, &'static str), HoldError> {
        let image = image.map_or_else(|| docker.any_image(), |image| Ok(image.to_owned()))?;
        self.begin(Some(docker))?;
        let name = self.announce_helper()?;
        self.table().windows.push((name.clone(), docker.undisturbed()));
        let window = docker.undisturbed().create_helper(&name, &image, &place.seat, Purpose::Write)?;
        Ok((name, window))
    }

    fn close_windows(&self) {
        let windows = std::mem::take(&mut self.table().windows);
        // Data that could not be put right is reached through its window by whoever recovers.
        if windows.is_empty() || self.journal.pending().is_ok_and(|p| !p.changes.is_empty()) {
            return;
        }
        for (name, docker) in windows {
            let removed = docker.remove_helper(&name, Duration::ZERO).map_err(HoldError::from);
            let known = || Ok(self.journal.record(&Step::HelperRemoved { name: name.clone() })?);
            if let Err(e) = removed.and_then(|()| known()) {
                self.leave(format!("the helper container {name} could not be removed: {}", chain(&e)));
            }
        }
    }

    /// Lets holds go whose time is up. Runs beside the captures until `close`.
    pub fn watch(&self) {
        let mut table = self.table();
        while !table.closed {
            let now = Instant::now();
            let due = table.active.iter().find(|(_, a)| !a.expired && a.deadline <= now).map(|(n, _)| *n);
            match due {
                Some(number) => {
                    drop(table);
                    self.expire(number);
                    table = self.table();
                }
                None => table = self.rest(table),
            }
        }
    }

    /// Ends `watch`.
    pub fn close(&self) {
        self.table().closed = true;
        self.changed.notify_all();
    }

    /// Time is up for the containers of one hold, so it is for everybody who shares one of them.
    fn expire(&self, number: u64) {
        let ids = {
            let mut table = self.table();
            let Some(ids) = table.active.get(&number).map(|a| a.ids.clone()) else { return };
            for (other, active) in &mut table.active {
                if *other == number || active.ids.iter().any(|id| ids.contains(id)) {
                    active.expired = true;
                    active.cancel.stop();
                }
            }
            for id in &ids {
                if let Some(entry) = table.held.get_mut(id) {
                    entry.holders.clear();
                }
            }
            ids
        };
        self.let_go(&ids);
    }

    /// Gives up the share of one hold, and lets go what nobody holds any more.
    fn give_up(&self, number: u64) -> bool {
        let (ids, expired) = {
            let mut table = self.table();
            let Some(active) = table.active.remove(&number) else { return false };
            for id in &active.ids {
                if let Some(entry) = table.held.get_mut(id) {
                    entry.holders.remove(&number);
                }
            }
            (active.ids, active.expired)
        };
        self.let_go(&ids);
        expired
    }

    /// Continues those of the containers that nobody holds any more; returns when each of them is let go.
    fn let_go(&self, ids: &[String]) {
        for id in ids.iter().rev() {
            let (held, docker) = {
                let mut table = self.table();
                let Some(entry) = table.held.get_mut(id) else { continue };
                if !entry.holders.is_empty() {
                    continue;
                }
                match entry.phase {
                    Phase::Held => entry.phase = Phase::Leaving,
                    Phase::Reserved => {
                        table.held.remove(id);
                        table.changes += 1;
                        continue;
                    }
                    // Whoever is at it looks again when it is done.
                    Phase::Taking => continue,
                    Phase::Leaving => {
                        while table.held.get(id).is_some_and(|e| e.phase == Phase::Leaving) {
                            table = self.rest(table);
                        }
                        continue;
                    }
                }
                (entry.container.to_held(entry.how), entry.docker.clone())
            };
            self.continue_one(&held, &docker);
            let mut table = self.table();
            table.held.remove(id);
            table.changes += 1;
            self.changed.notify_all();
        }
    }

    fn continue_one(&self, held: &Held, docker: &Docker) {
        match docker.let_go(held) {
            Ok(fate) => {
                if let Err(e) = self.journal.record(&Step::Released { id: held.id.clone() }) {
                    self.leave(format!("{} runs again, but {}", held.name, chain(&e)));
                }
                self.monitor.event(released(held, &fate));
            }
            Err(e) => self.leave(format!(
                "{} was {} and could not be continued: {}; run: tars-backup recover",
                held.name,
                if held.how == How::Pause { "paused" } else { "stopped" },
                chain(&e)
            )),
        }
    }

    fn leave(&self, text: String) {
        self.monitor.event(Event::new(What::ContainerLeft, text.clone()));
        self.table().left.push(text);
    }

    /// Ends the holding of a run; what could not be undone, for a person. The guardian goes only when nothing is left.
    pub fn finish(&self) -> Vec<String> {
        self.close_windows();
        let (guardian, begun) = {
            let mut table = self.table();
            (table.guardian.take(), table.begun)
        };
        if begun {
            match self.journal.finish() {
                Ok(pending) if pending.is_empty() => {
                    if let Some(guardian) = guardian {
                        guardian.dismiss();
                    }
                }
                Ok(_) => {}
                Err(e) => self.leave(chain(&e)),
            }
        }
        std::mem::take(&mut self.table().left)
    }
}

/// What the audit trail says of a container that was let go.
pub fn released(held: &Held, fate: &Fate) -> Event {
    let name = &held.name;
    let text = match fate {
        Fate::Continued if held.how == How::Pause => format!("Continued {name}"),
        Fate::Continued => format!("Started {name} again"),
        Fate::Ran => format!("{name} runs"),
        Fate::Replaced(other) => format!("{name} was replaced meanwhile; {other} runs in its place"),
        Fate::Gone => format!("{name} was removed meanwhile, and nothing took its place"),
    };
    Event::new(What::ContainerReleased, text)
}

/// Commands may run in the container.
pub struct InUse<'a> {
    holds: &'a Holds<'a>,
    id: String,
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let mut table = self.holds.table();
        if let Some(count) = table.used.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                table.used.remove(&self.id);
            }
        }
        self.holds.changed.notify_all();
    }
}

/// Writers of a place, held. Dropped without `release`, it lets them go all the same.
#[must_use = "dropping it lets the containers go"]
pub struct Hold<'a> {
    holds: &'a Holds<'a>,
    number: u64,
    how: How,
    since: Instant,
    /// From here on nobody can write.
    complete: Timestamp,
    limit: Duration,
    docker: Docker,
    place: Option<Place>,
    devices: Devices,
    wanted: Vec<Container>,
    cancel: Cancel,
    over: bool,
}

impl Hold<'_> {
    /// Raised when the run is interrupted, and when the time of this hold is up.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Names of the held containers.
    pub fn names(&self) -> Vec<&str> {
        self.wanted.iter().map(|c| c.name.as_str()).collect()
    }

    /// Lets the containers go. Good only when nothing could write from the first act to now; how long that was, zero
    /// when nothing had to be held.
    pub fn release(mut self) -> Result<Duration, HoldError> {
        let undisturbed = self.check();
        self.over = true;
        let expired = self.holds.give_up(self.number);
        if expired {
            return Err(self.expired());
        }
        undisturbed?;
        Ok(if self.wanted.is_empty() { Duration::ZERO } else { self.since.elapsed() })
    }

    /// The containers of this hold.
    pub fn containers(&self) -> &[Container] {
        &self.wanted
    }

    fn not_held_by_others(&self) -> Vec<&Container> {
        let table = self.holds.table();
        let ours_alone = |c: &&Container| {
            table.held.get(&c.id).is_none_or(|e| e.holders.iter().all(|n| *n == self.number))
        };
        self.wanted.iter().filter(ours_alone).collect()
    }

    /// Starts the containers that nobody else needs stopped, and sees whether they run. The journal still has them as
    /// held.
    pub fn start(&self) -> Result<(), HoldError> {
        let wanted = self.not_held_by_others();
        for container in wanted.iter().rev() {
            let name = || container.name.clone();
            self.docker
                .let_go(&container.to_held(How::Stop))
                .map_err(|e| HoldError::DoesNotRun { name: name(), why: chain(&e) })?;
        }
        let until = Instant::now() + STEADY;
        while !wanted.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            for container in &wanted {
                let state = self.docker.look(&container.id)?.map_or("gone".to_owned(), |c| c.state);
                if state != "running" {
                    let why = format!("it is {state}");
                    return Err(HoldError::DoesNotRun { name: container.name.clone(), why });
                }
            }
        }
        Ok(())
    }

    /// Stops the containers again after `start`.
    pub fn stop(&self) -> Result<(), HoldError> {
        for container in &self.wanted {
            if self.docker.look(&container.id)?.is_some_and(|c| c.is_active()) {
                self.docker.take_hold(container, How::Stop)?;
            }
        }
        Ok(())
    }

    /// Leaves the containers as they are: nobody may use their data now. The journal has them for recover.
    pub fn abandon(mut self, why: &str) {
        self.over = true;
        let names = self.names().join(", ");
        self.holds.leave(format!("{names}: stopped, because {why}; run: tars-backup recover"));
    }

    /// Lets the containers run, whatever became of them meanwhile.
    pub fn end(mut self) {
        self.over = true;
        self.holds.give_up(self.number);
    }

    /// What to say when work under this hold was interrupted: its own time being up, or the run's signal.
    pub fn why_interrupted(mut self) -> HoldError {
        self.over = true;
        if self.holds.give_up(self.number) { self.expired() } else { HoldError::Interrupted(Interrupted) }
    }

    fn expired(&self) -> HoldError {
        HoldError::Expired { names: self.names().join(", "), limit: self.limit }
    }

    /// Every writer is as we left it, and there is no new one.
    fn check(&self) -> Result<(), HoldError> {
        let disturbed = |name: &str, what| Err(HoldError::Disturbed { name: name.to_owned(), what });
        let continued = "was continued by somebody else";
        for before in &self.wanted {
            match (self.how, self.docker.look(&before.id)?) {
                // A stopped one writes no more when it is removed; before a paused one is, it may be stopped.
                (How::Stop, None) => {}
                (How::Pause, None) => return disturbed(&before.name, "was removed"),
                (_, Some(now)) if now.started_at != before.started_at => {
                    return disturbed(&before.name, "was started again");
                }
                (_, Some(now)) if now.is_active() => return disturbed(&before.name, continued),
                // It is thawed to be stopped, and may write its last words.
                (How::Pause, Some(now)) if now.state != "paused" => {
                    return disturbed(&before.name, "was stopped");
                }
                _ => {}
            }
        }
        let Some(place) = &self.place else { return Ok(()) };
        if let Some(container) = self.docker.writers(place, &self.devices)?.first() {
            return disturbed(&container.name, "was started");
        }
        // What came and went, or was continued and held again.
        for woken in self.docker.woken_since(self.complete)? {
            if let Some(ours) = self.wanted.iter().find(|c| c.id == woken.id) {
                return disturbed(&ours.name, continued);
            }
            let writes = match self.docker.look(&woken.id)? {
                Some(container) => place.is_written_by(&container, &self.devices),
                // What the engine tells of a mount is all that is left of it.
                None => place.volume().is_some_and(|v| woken.volumes.contains(v)),
            };
            if writes {
                return disturbed(&woken.name, "was started");
            }
        }
        Ok(())
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.holds.give_up(self.number);
        }
    }
}
