//! The gate in front of what writes to stores or deletes there, on a machine that was recovered and that nobody has accepted
//! yet; and `tars-backup accept --host`, which opens it.

use std::path::PathBuf;
use std::time::Duration;

use super::args::{AcceptArgs, Global};
use super::recover::lock;
use super::session::{Failed, Session, load, machine};
use crate::config::Agent;
use crate::exit::Exit;
use crate::held_host::HeldHost;
use crate::journal::Sink;
use crate::progress::{Event, Monitor, What};
use crate::render::{json, text};

const NEXT: &str = "when the data is back and the old machine is off: tars-backup accept --host";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A timer: nobody is there, and tomorrow it asks again.
    Timer,
    Person,
}

impl Asker {
    /// `--unless-held` is what the units of timers say.
    pub fn of(unless_held: bool) -> Self {
        if unless_held { Self::Timer } else { Self::Person }
    }
}

/// Where a note of a recovery may lie: where this machine works by itself, and where the configuration says.
pub(super) fn dirs(session: &Session, agent: &Agent) -> Vec<PathBuf> {
    let mut dirs = vec![machine(&session.access).places.state, agent.state_dir.clone()];
    dirs.dedup();
    dirs
}

/// The exit status of a run that must not go on. A timer has nothing to do, and that is no failure; a person is refused.
pub(super) fn shut(session: &Session, agent: &Agent, asker: Asker) -> Result<Option<Exit>, Failed> {
    let Some(held) = HeldHost::look(&dirs(session, agent)) else { return Ok(None) };
    let sentence = held.sentence();
    match asker {
        Asker::Timer => {
            session
                .monitor
                .event(Event::new(What::HostHeld, format!("Nothing is done: {sentence} ({NEXT})")));
            Ok(Some(Exit::Ok))
        }
        Asker::Person => Err(Failed::text(Exit::Failed, sentence, Some(NEXT.to_owned()))),
    }
}

pub fn accept(global: &Global, args: &AcceptArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    let _locked = lock(&session, &setup.agent, "accept", args.wait.unwrap_or(Duration::ZERO))?;
    let dirs = dirs(&session, &setup.agent);
    let held = HeldHost::look(&dirs);
    HeldHost::clear(&dirs).map_err(|e| {
        let dirs: Vec<String> = dirs.iter().map(|d| d.display().to_string()).collect();
        let hint = format!("run as root; the note is held.json in {}", dirs.join(" or "));
        Failed::text(Exit::Failed, format!("the note of the recovery cannot be removed: {e}"), Some(hint))
    })?;
    session.monitor.clear();
    let said = match &held {
        Some(held) => {
            let said =
                format!("{} is accepted: it makes backups as {} from now on", host_of(held), setup.host);
            session.monitor.event(Event::new(What::HostAccepted, said.clone()));
            said
        }
        None => "This machine is not held: nothing to accept".to_owned(),
    };
    let printed = match global.json {
        true => {
            json::print(&serde_json::json!({ "was_held": held.is_some(), "held": held, "host": setup.host }))
        }
        false => text::print(&format!("{said}\n")),
    };
    printed.map_err(Failed::output)?;
    Ok(Exit::Ok)
}

fn host_of(held: &HeldHost) -> String {
    format!("The machine that was recovered from {} of {}", held.backup, held.host)
}
