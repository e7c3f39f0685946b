//! `tars-backup store`.

mod package;

use std::time::Duration;

use jiff::Timestamp;

use super::args::{Global, StoreAction, StoreArgs};
use super::recover::lock;
use super::session::{Failed, Session, load};
use crate::archive::layout::store_guide;
use crate::exit::Exit;
use crate::host::Identity;
use crate::id::show_name;
use crate::journal::Sink;
use crate::progress::{Event, Monitor, What};
use crate::render::{json, text};
use crate::store::{self, Claim, Owner, StoreError};

pub fn run(global: &Global, args: &StoreArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    let (name, verb) = match &args.action {
        StoreAction::Init { store, .. } => (store, "store init"),
        StoreAction::Check { store } => (store, "store check"),
        StoreAction::Adopt { store } => (store, "store adopt"),
    };
    let Some(chosen) = setup.store(name) else {
        let known: Vec<&str> = setup.stores.iter().map(|s| s.name()).collect();
        let hint = format!("configured stores: {}", known.join(", "));
        return Err(Failed::text(Exit::Usage, format!("there is no store {name:?}"), Some(hint)));
    };
    // A package that is none is told before anything is written.
    let package = match &args.action {
        StoreAction::Init { with_package: Some(file), .. } => {
            Some(package::read(file).map_err(|e| session.failed(Exit::Failed, &e))?)
        }
        _ => None,
    };
    let owner = session.owner(&setup, Identity::Make)?;
    let _locked = lock(&session, &setup.agent, verb, Duration::ZERO)?;
    let claim = |how| store::claim(chosen, &owner, how, Timestamp::now(), store_guide(), &session.cancel);
    let (outcome, done) = match &args.action {
        StoreAction::Init { .. } => (claim(Claim::Init).map(|_| ()), "is initialised".to_owned()),
        StoreAction::Adopt { .. } => match claim(Claim::Adopt) {
            Ok(was) => (Ok(()), belongs(&owner, was.as_ref())),
            Err(e) => (Err(e), String::new()),
        },
        StoreAction::Check { .. } => {
            let nonce = std::process::id().to_string();
            let proved = store::prove(chosen, &owner, &nonce, &session.cancel);
            (proved, "takes, keeps and gives back data".to_owned())
        }
    };
    let made = outcome.is_ok() && !matches!(args.action, StoreAction::Check { .. });
    match outcome {
        // Asking twice is no mistake.
        Ok(()) | Err(StoreError::HasMarker { .. }) => {}
        Err(StoreError::Interrupted(i)) => return Err(session.interrupted(i)),
        Err(e) => return Err(session.failed(Exit::Failed, &e)),
    }
    let sentence = format!("Store {name} {done} ({})", chosen.location());
    if made {
        session.monitor.event(Event::new(What::StoreInitialised, &sentence).store(name));
    }
    let kept = match &package {
        None => None,
        Some(package) => {
            session
                .monitor
                .phase(&format!("bringing {} to {name}", package.file), Some(package.bytes.len() as u64));
            let moved = |bytes| session.monitor.moved(bytes);
            match store::keep(chosen, &package.file, &package.bytes, &moved, &session.cancel) {
                Ok(keeping) => Some(package::told(&session.monitor, name, &package.file, &keeping)),
                Err(StoreError::Interrupted(i)) => return Err(session.interrupted(i)),
                Err(e) => return Err(session.failed(Exit::Failed, &e)),
            }
        }
    };
    session.monitor.clear();
    let free = chosen.free_bytes().unwrap_or(None);
    let printed = if global.json {
        json::print(&serde_json::json!({
            "store": name, "location": chosen.location(), "ok": true, "free_bytes": free,
            "package": package.as_ref().map(|p| format!("{}/{}", store::TOOLS, p.file)),
        }))
    } else {
        let free = free.map_or_else(String::new, |n| format!(", {} free", crate::units::show_bytes(n)));
        let kept = kept.map_or_else(String::new, |said| format!("{said}\n"));
        text::print(&format!("{sentence}{free}\n{kept}"))
    };
    printed.map_err(Failed::output)?;
    Ok(Exit::Ok)
}

/// In words: whose a store is now, and whose it was.
fn belongs(now: &Owner, was: Option<&Owner>) -> String {
    match was {
        Some(was) if was.machine_id == now.machine_id => "belonged to this machine before".to_owned(),
        // A name is somebody else's text.
        Some(was) => format!("belongs to this machine now; it was of {}", show_name(was.host.as_bytes())),
        None => "belongs to this machine now".to_owned(),
    }
}
