//! `tars-backup drill`.

use std::time::Duration;

use super::args::{DrillArgs, Global};
use super::gate::{self, Asker};
use super::inspect;
use super::recover::lock;
use super::session::{Failed, Session, load, load_optional, machine};
use crate::exit::Exit;
use crate::host::Identity;
use crate::journal::Sink;
use crate::marks::DrillVerdict;
use crate::ops::drill::{self, DrillError, Ground};
use crate::ops::find::Wanted;
use crate::ops::restore;
use crate::render::{json, text};
use crate::setup;

pub fn run(global: &Global, args: &DrillArgs, sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    // A machine that only drills needs no configuration; where a timer asks, one that is gone is a failure.
    let setup = match args.if_identity {
        true => Some(load(global, &session.access)?),
        false => load_optional(global, &session.access)?,
    };
    session.opens_with(setup.as_ref(), &args.identity);
    let configured = setup.as_ref().is_some_and(|s| s.encryption.identity.is_some());
    if args.if_identity && !configured {
        log::info!("No identity is configured here, so this host drills nothing by itself");
        return Ok(Exit::Ok);
    }
    if let (true, Some(setup)) = (args.unless_held, &setup)
        && let Some(exit) = gate::shut(&session, &setup.agent, Asker::Timer)?
    {
        return Ok(exit);
    }
    let (owner, agent, docker) = match &setup {
        Some(setup) => (session.owner(setup, Identity::LookOnly)?, setup.agent.clone(), setup.docker.clone()),
        None => {
            let (agent, docker) = setup::bare(&machine(&session.access));
            (session.reader(None)?, agent, docker)
        }
    };
    let world = session.world(&owner);
    let (guard, recovered) = lock(&session, &agent, "drill", args.wait.unwrap_or(Duration::ZERO))?;
    if !recovered.left.is_empty() {
        let text = format!("a killed run is not cleared up: {}", recovered.left.join("; "));
        return Err(Failed::text(Exit::Failed, text, Some("tars-backup recover".into())));
    }
    let wanted = match &args.backup {
        Some(name) => inspect::parse(&session, name)?,
        None => Wanted::Latest,
    };
    let (copies, unlisted) = inspect::search(&session, setup.as_ref(), &[wanted], &args.place())?;
    // Exactly the copy that a restore would take first: another one would prove nothing of it.
    let copy = restore::nearest_first(copies).into_iter().next();
    let copy = copy.ok_or_else(|| Failed::text(Exit::Failed, "there is no copy of the backup", None))?;
    let sources = setup.as_ref().map_or(&[][..], |s| &s.sources);
    let ground = Ground { agent: &agent, docker: &docker, host: &owner.host, sources };
    let report = drill::run(&copy, &ground, &guard, &world).map_err(|e| match e {
        DrillError::Interrupted(i) => session.interrupted(i),
        e => session.failed(Exit::Failed, &e),
    })?;
    session.monitor.clear();
    let printed = match global.json {
        true => json::print(&report),
        false => text::print(&session.vault.scrub(&text::drill(&report, global.verbose > 0))),
    };
    printed.map_err(Failed::output)?;
    let exit = match (report.verdict, report.left.is_empty()) {
        (DrillVerdict::Bad, _) | (_, false) => Exit::Failed,
        (DrillVerdict::Partly | DrillVerdict::NotDrilled, _) => Exit::Partial,
        (DrillVerdict::Good, _) => Exit::Ok,
    };
    Ok(exit.worst(unlisted))
}
