//! `tars-backup prune`.

use std::time::Duration;

use super::args::{Global, PruneArgs};
use super::gate::{self, Asker};
use super::recover::lock;
use super::session::{Failed, Session, load};
use crate::exit::Exit;
use crate::host::Identity;
use crate::journal::Sink;
use crate::ops::prune::{self, PruneError, Request};
use crate::render::{json, text};

pub fn run(global: &Global, args: &PruneArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    if args.confirm
        && let Some(exit) = gate::shut(&session, &setup.agent, Asker::Person)?
    {
        return Ok(exit);
    }
    let identity = if args.confirm { Identity::Make } else { Identity::LookOnly };
    let owner = session.owner(&setup, identity)?;
    let world = session.world(&owner);
    let guard = match args.confirm {
        true => Some(lock(&session, &setup.agent, "prune", args.wait.unwrap_or(Duration::ZERO))?.0),
        false => None,
    };
    let request = Request { tier: args.tier.clone(), store: args.store.clone() };
    let mut plots = prune::plan(&setup, &request, &world).map_err(|e| match e {
        PruneError::Interrupted(i) => session.interrupted(i),
        PruneError::NoTier(_) | PruneError::NoStore(_) => session.failed(Exit::Usage, &e),
        e => session.failed(Exit::Failed, &e),
    })?;
    if let Some(guard) = &guard {
        prune::apply(&setup, &mut plots, guard, &world).map_err(|i| session.interrupted(i))?;
    }
    session.monitor.clear();
    let printed = match global.json {
        true => json::print(&plots),
        false => text::print(&session.vault.scrub(&text::prune(&plots, args.confirm))),
    };
    printed.map_err(Failed::output)?;
    let failed = plots.iter().filter(|p| p.failure.is_some()).count();
    Ok(match failed {
        0 => Exit::Ok,
        n if n == plots.len() => Exit::Failed,
        _ => Exit::Partial,
    })
}
