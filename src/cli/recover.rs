//! `tars-backup recover`, and the hidden child that calls it when a run in a shell is killed.

use std::time::Duration;

use super::args::{Global, GuardianArgs};
use super::session::{Failed, Session, lenient_agent, places_alone};
use crate::config::{Agent, Dirs};
use crate::exit::Exit;
use crate::guardian;
use crate::journal::Sink;
use crate::ops::recover::{self, Recovered};
use crate::progress::{Event, Monitor, What};
use crate::render::json;
use crate::run_guard::{GuardError, RunGuard};
use crate::run_journal::RunJournal;
use crate::systemd::Systemd;

/// Takes the lock for `verb`, and clears up after whoever was killed while he held it.
pub(super) fn lock(
    session: &Session,
    agent: &Agent,
    verb: &str,
    wait: Duration,
) -> Result<(RunGuard, Recovered), Failed> {
    let guard = RunGuard::acquire(&agent.runtime_dir, verb, wait, &session.cancel, &session.monitor)
        .map_err(|e| guard_failed(session, &e))?;
    let dirs = agent.dirs();
    if let Some(unit) = stronger(&dirs) {
        // It needs the lock itself.
        drop(guard);
        hand_over(session, &unit)?;
        let text = format!("a restore was broken off; {unit} is putting it right, and nothing was done here");
        let hint = format!("look at it, then again: systemctl status {unit}");
        return Err(Failed::text(Exit::Failed, text, Some(hint)));
    }
    let recovered = undo(session, &dirs, &guard)?;
    Ok((guard, recovered))
}

fn guard_failed(session: &Session, e: &GuardError) -> Failed {
    match e {
        GuardError::Interrupted(i) => session.interrupted(*i),
        GuardError::Busy { .. } => session.failed(Exit::Busy, e),
        GuardError::Unusable { .. } => session.failed(Exit::Failed, e),
    }
}

fn undo(session: &Session, dirs: &Dirs, guard: &RunGuard) -> Result<Recovered, Failed> {
    recover::recover(dirs, guard, session.runtime.handle(), &session.cancel, &session.monitor)
        .map_err(|i| session.interrupted(i))
}

/// Does not need a valid configuration: a container must not stay down because of a misspelt key.
pub fn run(global: &Global, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let (agent, problem) = lenient_agent(global, &session.access);
    if let Some(problem) = problem {
        log::warn!("{problem}");
    }
    let done = with(global, &session, &agent.dirs(), Duration::ZERO)?;
    // A restore of the configuration began when there was none, and may have been killed when there was one.
    let before = places_alone(&session.access).dirs();
    if before.state != agent.state_dir
        && RunJournal::new(&before.state).pending().is_ok_and(|p| p.is_of_a_restore())
    {
        let then = with(global, &session, &before, Duration::ZERO)?;
        return Ok(if done == Exit::Ok { then } else { done });
    }
    Ok(done)
}

/// Waits for the end of the run that started it.
pub fn guardian(global: &Global, args: &GuardianArgs, sink: Sink) -> Result<Exit, Failed> {
    if guardian::was_dismissed() {
        return Ok(Exit::Ok);
    }
    let session = Session::start(global, sink)?;
    let dirs = Dirs {
        state: args.state_dir.clone(),
        staging: args.staging_dir.clone(),
        runtime: args.runtime_dir.clone(),
    };
    // The dead run's lock goes with it; whoever gets it before us recovers before he does anything else.
    with(global, &session, &dirs, Duration::from_secs(10))
}

fn with(global: &Global, session: &Session, dirs: &Dirs, wait: Duration) -> Result<Exit, Failed> {
    let guard = match RunGuard::acquire(&dirs.runtime, "recover", wait, &session.cancel, &session.monitor) {
        Ok(guard) => guard,
        // A living run looks after its own.
        Err(GuardError::Busy { holder }) => {
            log::info!("Nothing touched: another run is at work ({holder})");
            return Ok(Exit::Ok);
        }
        Err(e) => return Err(guard_failed(session, &e)),
    };
    if let Some(unit) = stronger(dirs) {
        drop(guard);
        hand_over(session, &unit)?;
        return Ok(Exit::Ok);
    }
    let done = undo(session, dirs, &guard)?;
    if global.json {
        json::print(&done).map_err(Failed::output)?;
    }
    Ok(exit_of(&done))
}

/// Set in units whose sandbox lets nothing be put back: the unit that may.
const RECOVERY_UNIT: &str = "TARS_BACKUP_RECOVERY_UNIT";

/// The unit that must undo what a killed run left, where we may not.
fn stronger(dirs: &Dirs) -> Option<String> {
    let unit = std::env::var(RECOVERY_UNIT).ok().filter(|unit| !unit.is_empty())?;
    let pending = RunJournal::new(&dirs.state).pending().ok()?;
    pending.is_of_a_restore().then_some(unit)
}

fn hand_over(session: &Session, unit: &str) -> Result<(), Failed> {
    let systemd = Systemd::new(session.runtime.handle().clone(), session.cancel.clone());
    let text = format!("A broken-off restore is handed over to {unit}");
    session.monitor.event(Event::new(What::RecoveryHandedOver, text));
    // It may wait for the engine; we do not.
    match systemd.control(&["start", "--no-block", unit]) {
        Ok(_) => Ok(()),
        Err(e) => Err(session.failed(Exit::Failed, &e)),
    }
}

fn exit_of(done: &Recovered) -> Exit {
    if done.left.is_empty() { Exit::Ok } else { Exit::Failed }
}
