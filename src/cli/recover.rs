//! `tars-backup recover`, and the hidden child that calls it when a run in a shell is killed.

use std::time::Duration;

use super::args::{Global, GuardianArgs};
use super::session::{Failed, Session, lenient_agent};
use crate::config::{Agent, Dirs};
use crate::exit::Exit;
use crate::guardian;
use crate::journal::Sink;
use crate::ops::recover::{self, Recovered};
use crate::render::json;
use crate::run_guard::{GuardError, RunGuard};

/// Takes the lock for `verb`, and clears up after whoever was killed while he held it.
pub(super) fn lock(
    session: &Session,
    agent: &Agent,
    verb: &str,
    wait: Duration,
) -> Result<(RunGuard, Recovered), Failed> {
    let guard = RunGuard::acquire(&agent.runtime_dir, verb, wait, &session.cancel, &session.monitor)
        .map_err(|e| guard_failed(session, &e))?;
    let recovered = undo(session, &agent.dirs(), &guard)?;
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
    with(global, &session, &agent.dirs(), Duration::ZERO)
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
    let done = undo(session, dirs, &guard)?;
    if global.json {
        json::print(&done).map_err(Failed::output)?;
    }
    Ok(exit_of(&done))
}

fn exit_of(done: &Recovered) -> Exit {
    if done.left.is_empty() { Exit::Ok } else { Exit::Failed }
}
