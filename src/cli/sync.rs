//! `tars-backup sync`.

use std::time::Duration;

use super::args::{Global, SyncArgs};
use super::gate::{self, Asker};
use super::recover::lock;
use super::session::{Failed, Session, load};
use crate::exit::Exit;
use crate::host::Identity;
use crate::journal::Sink;
use crate::ops::sync::{self, SyncError};
use crate::render::{json, text};

pub fn run(global: &Global, args: &SyncArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    if let Some(exit) = gate::shut(&session, &setup.agent, Asker::of(args.unless_held))? {
        return Ok(exit);
    }
    let owner = session.owner(&setup, Identity::Make)?;
    let world = session.world(&owner);
    let (guard, _) = lock(&session, &setup.agent, "sync", args.wait.unwrap_or(Duration::ZERO))?;
    let outcome = sync::run(&setup, &guard, &world).map_err(|e| match e {
        SyncError::Interrupted(i) => session.interrupted(i),
        e => session.failed(Exit::Failed, &e),
    })?;
    session.monitor.clear();
    let printed = match global.json {
        true => json::print(&outcome),
        false => text::print(&session.vault.scrub(&text::sync(&outcome))),
    };
    printed.map_err(Failed::output)?;
    Ok(match (outcome.is_whole(), outcome.delivered()) {
        (true, _) => Exit::Ok,
        (false, 0) => Exit::Failed,
        (false, _) => Exit::Partial,
    })
}
