//! The hidden command of tars-backup-failed@.service: tells the operator, by a command of his own, that a unit has failed.

use std::process::Stdio;
use std::time::Duration;

use super::args::Global;
use super::session::{Failed, Session, lenient_hooks};
use crate::exit::Exit;
use crate::journal::Sink;
use crate::process::{Process, ProcessError, Request};
use crate::progress::{Event, Monitor, What};

/// A message that cannot be sent within this time is given up.
const DEADLINE: Duration = Duration::from_secs(60);

pub fn run(global: &Global, unit: &str, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let hooks = lenient_hooks(global)?;
    let Some(program) = hooks.on_failure.first() else {
        log::info!("{unit} has failed; hooks.on_failure names no command to run");
        return Ok(Exit::Ok);
    };
    // MONITOR_SERVICE_RESULT and its like are in our environment, and so in that of the command.
    let request = Request {
        argv: hooks.on_failure.clone(),
        env: vec![("TARS_BACKUP_UNIT".into(), unit.into())],
        dir: None,
        total: DEADLINE,
        idle: DEADLINE,
    };
    let outcome = Process::start_with(
        &request,
        Stdio::null(),
        session.runtime.handle().clone(),
        session.cancel.clone(),
    )
    .and_then(to_its_end);
    match outcome {
        Ok(()) => {
            let text = format!("{unit} has failed; {program} was run");
            session.monitor.event(Event::new(What::HookRun, text));
            Ok(Exit::Ok)
        }
        Err(e) => {
            let text = format!("{unit} has failed, and so has hooks.on_failure: {}", crate::hint::chain(&e));
            session.monitor.event(Event::new(What::HookFailed, text));
            Ok(Exit::Failed)
        }
    }
}

/// What it prints is of no interest, but it must be able to.
fn to_its_end(mut process: Process) -> Result<(), ProcessError> {
    let mut buffer = [0u8; 4096];
    while process.read(&mut buffer)? > 0 {}
    process.finish()
}
