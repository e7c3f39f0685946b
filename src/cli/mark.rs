//! `tars-backup pin`, `unpin`, `accept` and `undelete`: a person's word on a backup.

use std::time::Duration;

use super::args::{AcceptArgs, Global, OneArgs, PinArgs};
use super::inspect;
use super::recover::lock;
use super::session::{Failed, Session, load};
use crate::exit::Exit;
use crate::host::Identity;
use crate::journal::Sink;
use crate::ops::find::{FindError, Wanted};
use crate::ops::mark::{self, MarkError, Word};
use crate::render::{json, text};

pub fn pin(global: &Global, args: &PinArgs, sink: Sink) -> Result<Exit, Failed> {
    let word = Word::Pin { reason: args.reason.clone(), until: args.until };
    tell(global, &args.one, "pin", &word, sink)
}

pub fn unpin(global: &Global, args: &OneArgs, sink: Sink) -> Result<Exit, Failed> {
    tell(global, args, "unpin", &Word::Unpin, sink)
}

pub fn accept(global: &Global, args: &AcceptArgs, sink: Sink) -> Result<Exit, Failed> {
    let one = OneArgs { backup: args.backup.clone().unwrap_or_default(), wait: args.wait };
    tell(global, &one, "accept", &Word::Accept, sink)
}

pub fn undelete(global: &Global, args: &OneArgs, sink: Sink) -> Result<Exit, Failed> {
    tell(global, args, "undelete", &Word::Undelete, sink)
}

fn tell(global: &Global, args: &OneArgs, verb: &str, word: &Word, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    let Wanted::Name(name) = inspect::parse(&session, &args.backup)? else {
        let hint = "name it as tars-backup list shows it".to_owned();
        return Err(Failed::text(Exit::Usage, "a path is not the name of a backup", Some(hint)));
    };
    let owner = session.owner(&setup, Identity::Make)?;
    let world = session.world(&owner);
    let (guard, _) = lock(&session, &setup.agent, verb, args.wait.unwrap_or(Duration::ZERO))?;
    let outcome = mark::tell(&setup, &name, word, &guard, &world).map_err(|e| match e {
        MarkError::Interrupted(i) => session.interrupted(i),
        MarkError::Find(FindError::Name(_)) => session.failed(Exit::Usage, &e),
        e => session.failed(Exit::Failed, &e),
    })?;
    session.monitor.clear();
    let printed = match global.json {
        true => json::print(&outcome),
        false => text::print(&session.vault.scrub(&text::mark(&outcome))),
    };
    printed.map_err(Failed::output)?;
    Ok(match (outcome.failed.is_empty(), outcome.told.is_empty()) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::Failed,
        (false, false) => Exit::Partial,
    })
}
