//! `tars-backup status`.

use super::args::Global;
use super::gate;
use super::session::{Failed, Session, load};
use crate::exit::Exit;
use crate::held_host::HeldHost;
use crate::journal::Sink;
use crate::ops::status;
use crate::render::{json, text};

pub fn run(global: &Global, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    let owner = session.reader(Some(&setup))?;
    let held = HeldHost::look(&gate::dirs(&session, &setup.agent));
    let status =
        status::run(&setup, held.as_ref(), &session.world(&owner)).map_err(|i| session.interrupted(i))?;
    session.monitor.clear();
    let printed = match global.json {
        true => json::print(&status),
        false => text::print(&session.vault.scrub(&text::status(&status))),
    };
    printed.map_err(Failed::output)?;
    Ok(if status.healthy { Exit::Ok } else { Exit::Failed })
}
