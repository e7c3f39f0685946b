//! Undoes what a killed run left: containers that it held, containers that it made, files in staging. What could go
//! wrong: to undo what a living run has done, so it takes the proof that nobody else runs; and to forget what could not
//! be undone now, so the journal keeps that until it is.

use jiff::Timestamp;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::cancel::{Cancel, Interrupted};
use crate::config::Dirs;
use crate::docker::hold::released;
use crate::docker::{Docker, DockerError};
use crate::hint::{Hint, chain};
use crate::progress::{Event, Monitor, What};
use crate::run_guard::RunGuard;
use crate::run_journal::{Pending, RunJournal, Step};
use crate::staging::Staging;

/// What was done, and what is left to do.
#[derive(Debug, Default, Serialize)]
pub struct Recovered {
    /// Containers that run again.
    pub released: Vec<String>,
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
            let held = pending.held.iter().map(|h| format!("{} is held by a killed run", h.name));
            let helpers = pending.helpers.iter().map(|h| format!("{} was made by a killed run", h.name));
            held.chain(helpers).collect()
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
    // Containers first: somebody may be waiting for them.
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
    let docker = match Docker::connect(pending.socket.as_deref(), None, runtime.clone(), cancel.clone()) {
        Ok(docker) => docker,
        Err(DockerError::Interrupted(i)) => return Err(i),
        Err(e) => {
            let names: Vec<&str> = pending.held.iter().map(|h| h.name.as_str()).collect();
            let names = if names.is_empty() { "helper containers".to_owned() } else { names.join(", ") };
            leave(done, monitor, format!("a killed run left {names}, and {}{}", chain(&e), hint(&e)));
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

fn leave(done: &mut Recovered, monitor: &dyn Monitor, text: String) {
    monitor.event(Event::new(What::ContainerLeft, text.clone()));
    done.left.push(text);
}

fn hint(e: &impl Hint) -> String {
    e.hint().map_or_else(String::new, |h| format!(" ({h})"))
}
