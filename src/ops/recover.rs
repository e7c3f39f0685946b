//! Undoes what a killed run left: containers that it held, containers that it made, files in staging. What could go
//! wrong: to undo what a living run has done, so it takes the proof that nobody else runs; and to forget what could not
//! be undone now, so the journal keeps that until it is.

use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::cancel::{Cancel, Interrupted};
use crate::config::Dirs;
use crate::docker::hold::released;
use crate::docker::{DRILL_LABEL, Docker, DockerError};
use crate::hint::{Hint, chain};
use crate::progress::{Event, Monitor, What};
use crate::run_guard::RunGuard;
use crate::run_journal::{Drill, Held, How, Pending, RunJournal, Step};
use crate::staging::Staging;

/// What was done, and what is left to do.
#[derive(Debug, Default, Serialize)]
pub struct Recovered {
    /// Containers that run again.
    pub released: Vec<String>,
    /// Components whose broken-off restore was undone or finished.
    pub settled: Vec<String>,
    /// Files and helper containers that are gone.
    pub removed: Vec<String>,
    /// What could not be undone: what, why, and what to run.
    pub left: Vec<String>,
}

/// What a recovery would have to do, for a person; nothing is touched.
pub fn pending(dirs: &Dirs) -> Vec<String> {
    match RunJournal::new(&dirs.state).pending() {
        Err(e) => vec![chain(&e)],
        Ok(pending) => {
            let changes = pending.changes.iter().map(|c| {
                format!(
                    "the restore of {} was {}",
                    c.component,
                    if c.committed { "not cleared up" } else { "broken off" }
                )
            });
            let scratch = pending.scratch.iter().map(|(_, s)| format!("{s} was left by a restore"));
            let held = pending.held.iter().map(|h| format!("{} is held by a killed run", h.name));
            let helpers = pending.helpers.iter().map(|h| format!("{} was made by a killed run", h.name));
            let drill = pending.drill.iter().map(|d| {
                format!(
                    "a drill was broken off, and its containers may be there (label {DRILL_LABEL}={})",
                    d.id
                )
            });
            changes.chain(scratch).chain(held).chain(helpers).chain(drill).collect()
        }
    }
}

/// Undoes everything that can be undone. Only the holder of the lock may: whatever is there belongs to nobody alive.
pub fn recover(
    dirs: &Dirs,
    _guard: &RunGuard,
    runtime: &Handle,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Recovered, Interrupted> {
    let mut done = Recovered::default();
    let journal = RunJournal::new(&dirs.state);
    match journal.pending() {
        Ok(pending) if pending.is_empty() => {}
        Ok(pending) => undo(&journal, &pending, runtime, cancel, monitor, &mut done)?,
        Err(e) => leave(&mut done, monitor, format!("{}{}", chain(&e), hint(&e))),
    }
    if done.left.is_empty()
        && let Err(e) = journal.finish()
    {
        leave(&mut done, monitor, chain(&e));
    }
    match Staging::sweep(&dirs.staging) {
        Ok(names) => {
            for name in names {
                let text = format!("Removed what a killed run left in staging: {name}");
                monitor.event(Event::new(What::LeftoverRemoved, text));
                done.removed.push(name);
            }
        }
        Err(e) => {
            let text = format!("cannot clear what a killed run left in {}: {e}", dirs.staging.display());
            leave(&mut done, monitor, text);
        }
    }
    Ok(done)
}

fn undo(
    journal: &RunJournal,
    pending: &Pending,
    runtime: &Handle,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    done: &mut Recovered,
) -> Result<(), Interrupted> {
    if let Some(drill) = &pending.drill {
        throw_away(journal, pending, drill, runtime, cancel, monitor, done)?;
    }
    let by_engine = !pending.touched.is_empty()
        || !pending.helpers.is_empty()
        || pending.changes.iter().any(|c| c.change.server().is_some())
        || pending.scratch.iter().any(|(_, s)| s.needs_engine());
    let docker = match by_engine {
        false => None,
        true => match engine(pending, runtime, cancel, monitor, done)? {
            Some(docker) => Some(docker),
            None => return Ok(()),
        },
    };
    // What is half restored is put right before anybody may use it again.
    if !settle_all(journal, pending, docker.as_ref(), monitor, done)? {
        return Ok(());
    }
    let Some(docker) = docker else { return Ok(()) };
    // Read again: those that were stopped for it are held, too.
    let pending = match journal.pending() {
        Ok(pending) => pending,
        Err(e) => {
            leave(done, monitor, chain(&e));
            return Ok(());
        }
    };
    for held in &pending.held {
        match docker.let_go(held) {
            Ok(fate) => {
                monitor.event(released(held, &fate));
                done.released.push(held.name.clone());
                if let Err(e) = journal.record(&Step::Released { id: held.id.clone() }) {
                    leave(done, monitor, chain(&e));
                }
            }
            Err(DockerError::Interrupted(i)) => return Err(i),
            Err(e) => {
                let text = format!("{} could not be continued: {}{}", held.name, chain(&e), hint(&e));
                leave(done, monitor, text);
            }
        }
    }
    for helper in &pending.helpers {
        let name = &helper.name;
        match docker.remove_helper(name, helper.unsettled(Timestamp::now())) {
            Ok(()) => {
                let text = format!("Removed the helper container {name}");
                monitor.event(Event::new(What::LeftoverRemoved, text));
                done.removed.push(name.clone());
                if let Err(e) = journal.record(&Step::HelperRemoved { name: name.clone() }) {
                    leave(done, monitor, chain(&e));
                }
            }
            Err(DockerError::Interrupted(i)) => return Err(i),
            Err(e) => leave(done, monitor, format!("{name} could not be removed: {}", chain(&e))),
        }
    }
    Ok(())
}

/// Removes what a drill made. Without an engine it made nothing but files in staging.
fn throw_away(
    journal: &RunJournal,
    pending: &Pending,
    drill: &Drill,
    runtime: &Handle,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    done: &mut Recovered,
) -> Result<(), Interrupted> {
    if pending.socket.is_some() {
        let Some(docker) = engine(pending, runtime, cancel, monitor, done)? else { return Ok(()) };
        match docker.remove_drill(&drill.id, drill.unsettled(Timestamp::now())) {
            Ok(names) => {
                for name in names {
                    let text = format!("Removed what a drill left: {name}");
                    monitor.event(Event::new(What::LeftoverRemoved, text));
                    done.removed.push(name);
                }
            }
            Err(DockerError::Interrupted(i)) => return Err(i),
            Err(e) => {
                let what = format!("the containers of a drill (label {DRILL_LABEL}={})", drill.id);
                leave(done, monitor, format!("{what} could not be removed: {}{}", chain(&e), hint(&e)));
                return Ok(());
            }
        }
    }
    if let Err(e) = journal.record(&Step::DrillRemoved { id: drill.id.clone() }) {
        leave(done, monitor, chain(&e));
    }
    Ok(())
}

/// The engine of the dead run; None when it does not answer, which is said.
fn engine(
    pending: &Pending,
    runtime: &Handle,
    cancel: &Cancel,
    monitor: &dyn Monitor,
    done: &mut Recovered,
) -> Result<Option<Docker>, Interrupted> {
    match Docker::connect(pending.socket.as_deref(), None, runtime.clone(), cancel.clone()) {
        Ok(docker) => Ok(Some(docker)),
        Err(DockerError::Interrupted(i)) => Err(i),
        Err(e) => {
            let names: Vec<&str> = pending.held.iter().map(|h| h.name.as_str()).collect();
            let names = if names.is_empty() { "its containers".to_owned() } else { names.join(", ") };
            leave(done, monitor, format!("a killed run left {names}, and {}{}", chain(&e), hint(&e)));
            Ok(None)
        }
    }
}

/// Rolls changes of live data back, or forward when they were committed. False when one could not be settled: then
/// nobody may use that data yet.
fn settle_all(
    journal: &RunJournal,
    pending: &Pending,
    docker: Option<&Docker>,
    monitor: &dyn Monitor,
    done: &mut Recovered,
) -> Result<bool, Interrupted> {
    let before = done.left.len();
    if pending.changes.iter().any(|c| !c.committed)
        && let Some(docker) = docker
    {
        // Those that were started again with the new data would go on with it. A server that undoes its own change must run.
        let asked = |held: &&Held| pending.changes.iter().all(|c| c.change.server() != Some(&held.id));
        for held in pending.touched.iter().filter(asked) {
            match stop_again(journal, docker, held) {
                Ok(()) => {}
                Err(StopError::Docker(DockerError::Interrupted(i))) => return Err(i),
                Err(e) => leave(done, monitor, format!("{} could not be stopped: {}", held.name, chain(&e))),
            }
        }
        if done.left.len() > before {
            return Ok(false);
        }
    }
    let mut settled: Vec<&str> = Vec::new();
    for c in pending.changes.iter().rev() {
        let (outcome, verb) = match c.committed {
            true => (c.finish(docker), "finished"),
            false => (c.change.undo(docker), "undone: the old data is back"),
        };
        match outcome {
            Ok(()) => {
                let text = format!("The broken-off restore of {} is {verb}", c.component);
                monitor.event(Event::new(What::RestoreUndone, text).component(&c.component));
                done.settled.push(c.component.clone());
                settled.push(&c.component);
            }
            Err(e) => {
                let text =
                    format!("the restore of {} could not be settled: {}{}", c.component, chain(&e), hint(&e));
                leave(done, monitor, text);
            }
        }
    }
    for (component, scratch) in &pending.scratch {
        match scratch.remove(docker) {
            Ok(()) => settled.push(component),
            Err(e) => {
                let text = format!("{scratch} could not be removed: {}{}", chain(&e), hint(&e));
                leave(done, monitor, text);
            }
        }
    }
    if done.left.len() > before {
        return Ok(false);
    }
    for component in settled {
        if let Err(e) = journal.record(&Step::Settled { component: component.to_owned() }) {
            leave(done, monitor, chain(&e));
        }
    }
    Ok(true)
}

#[derive(Debug, thiserror::Error)]
enum StopError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Journal(#[from] crate::run_journal::JournalError),
}

fn stop_again(journal: &RunJournal, docker: &Docker, held: &Held) -> Result<(), StopError> {
    let Some(container) = docker.look(&held.id)?.filter(crate::docker::Container::is_active) else {
        return Ok(());
    };
    journal.record(&Step::Hold(container.to_held(How::Stop)))?;
    Ok(docker.take_hold(&container, How::Stop)?)
}

fn leave(done: &mut Recovered, monitor: &dyn Monitor, text: String) {
    monitor.event(Event::new(What::ContainerLeft, text.clone()));
    done.left.push(text);
}

fn hint(e: &impl Hint) -> String {
    e.hint().map_or_else(String::new, |h| format!(" ({h})"))
}
