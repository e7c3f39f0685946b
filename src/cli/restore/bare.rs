//! `tars-backup restore --restore-config` on a machine without a configuration: the first step of a recovery from nothing.
//! What could go wrong: what comes back is live at once, and its timers with it; so the machine is held before the first file
//! is in place, and stays so until somebody accepts it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{choose, confirm, failed, fetch, finish, planned, prepare};
use crate::cli::args::{Global, RestoreArgs};
use crate::cli::recover::lock;
use crate::cli::session::{Failed, Session, config_path, has_no_config, machine, places_alone};
use crate::exit::Exit;
use crate::held_host::HeldHost;
use crate::ops::restore::{self, Request, RestoreError, RestoreOutcome};
use crate::progress::{Event, Monitor, What};
use crate::reach::{OWN, Reach};
use crate::render::{json, text};
use crate::staging::{RunDir, make_private};

/// Where files may be put, in a person's words.
pub fn reach(args: &RestoreArgs, request: &Request) -> Result<Reach, Failed> {
    Reach::new(&args.below, request.allow_partial).map_err(|bad| {
        let hint = "name the directory in which the files of the stack lie, such as --below /opt/tars-home";
        let text = format!("{} belongs to the system, or is no plain absolute path", bad.display());
        Failed::text(Exit::Usage, text, Some(hint.into()))
    })
}

pub fn run(global: &Global, args: &RestoreArgs, request: Request, session: &Session) -> Result<Exit, Failed> {
    let mut request = Request { reach: Some(reach(args, &request)?), ..request };
    let config = config_path(global);
    if Reach::default().judge(&config).is_err() {
        let text = format!("there is no configuration at {}", config.display());
        let hint = format!(
            "what lay below {OWN} comes back by itself, also under another name: --config {OWN}/NAME.toml; else write it \
             elsewhere and put it together by hand: --to DIR instead of --restore-config"
        );
        return Err(Failed::text(Exit::Config, text, Some(hint)));
    }
    let here = places_alone(&session.access);
    let owner = session.reader(None)?;
    let world = session.world(&owner);
    let locked = match args.dry_run {
        true => None,
        false => Some(lock(session, &here, "restore", args.wait.unwrap_or(Duration::ZERO))?),
    };
    if let Some((_, recovered)) = &locked
        && !recovered.left.is_empty()
    {
        let text = format!("a killed run is not cleared up: {}", recovered.left.join("; "));
        return Err(Failed::text(Exit::Failed, text, Some("tars-backup recover".to_owned())));
    }
    let dir = match args.dry_run {
        true => RunDir::temporary(),
        false => RunDir::create(&here.staging_dir, "restore"),
    };
    let dir = dir.map_err(|e| session.failed(Exit::Failed, &e))?;
    let (fetched, _) = fetch(session, args, &request, None, dir, &world)?;
    let chosen = choose(session, &fetched, &request)?;
    let machine = machine(&session.access);
    let setup = restore::setup_of(&fetched, &chosen, &request, &config, &machine, &here, &world)
        .map_err(|e| failed(session, &RestoreError::from(e)))?;
    if args.below.is_empty() {
        // Nobody has said it in words of his own; so each path is shown, and a person agrees to all of them or to none.
        let dirs = restore::compose_dirs(&setup, &fetched);
        request.reach = Some(Reach::told(&dirs, request.allow_partial));
    }
    let restore = prepare(session, &setup, &request, &fetched, &chosen, &world)?;
    let mut plan = restore.plan().map_err(|e| failed(session, &e))?;
    let programs = restore::programs_of(&setup);
    if !programs.is_empty() {
        let list = programs.join(", ");
        plan.warnings.push(format!("this configuration runs programs on this machine: {list}; look at it before you accept the machine"));
    }
    if setup.host != fetched.manifest.host {
        plan.warnings.push(another_name(&setup.host, &fetched.manifest.host));
    }
    session.monitor.clear();
    if args.dry_run {
        let printed = if global.json { json::print(&plan) } else { text::print(&text::restore_plan(&plan)) };
        printed.map_err(Failed::output)?;
        return Ok(planned(&plan));
    }
    let asked = Instant::now();
    if !args.yes && plan.does_something() {
        confirm(&text::restore_plan(&plan), &plan.backup)?;
    }
    let waited = asked.elapsed();
    let Some((guard, _)) = &locked else { return Ok(Exit::Failed) };
    let noted = plan
        .does_something()
        .then(|| hold(session, &here.state_dir, &plan.backup, &plan.host))
        .transpose()?;
    for warning in &plan.warnings {
        session.monitor.event(Event::new(What::Warning, session.vault.scrub(warning)));
    }
    let outcome = restore.run(guard, waited).map_err(|e| failed(session, &e));
    // What was not put back needs nobody's word: where all is as it was, and nothing is left to be decided.
    let as_before = outcome.as_ref().map_or(true, RestoreOutcome::is_as_before);
    if let Some(Noted::Now(dirs)) = noted
        && as_before
        && has_no_config(global)
        && restore.is_settled()
        && let Err(e) = HeldHost::clear(&dirs)
    {
        log::warn!("the note of the recovery stays: {e} (tars-backup accept --host)");
    }
    finish(global, session, &outcome?)
}

enum Noted {
    Now(Vec<PathBuf>),
    Before,
}

/// From here on no timer does anything.
fn hold(session: &Session, state_dir: &std::path::Path, backup: &str, host: &str) -> Result<Noted, Failed> {
    let dirs = vec![state_dir.to_owned()];
    if HeldHost::look(&dirs).is_some() {
        return Ok(Noted::Before);
    }
    let held = HeldHost { backup: backup.to_owned(), host: host.to_owned(), since: Some(Timestamp::now()) };
    let told = |e: std::io::Error| {
        let text = format!(
            "cannot hold this machine: {} cannot be written: {e}; nothing was changed",
            state_dir.display()
        );
        Failed::text(Exit::Failed, text, Some("run as root, with room on that disk".into()))
    };
    make_private(state_dir).map_err(|e| told(std::io::Error::other(e)))?;
    held.note(state_dir).map_err(told)?;
    let text = format!("Timers do nothing until tars-backup accept --host: {}", held.sentence());
    session.monitor.event(Event::new(What::HostHeld, text));
    Ok(Noted::Now(dirs))
}

fn another_name(now: &str, then: &str) -> String {
    format!(
        "this machine is {now}, and {then} made the backups: to go on with them, put [agent] host = \"{then}\" into \
         {OWN}/conf.d/host.toml"
    )
}
