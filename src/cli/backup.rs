//! `tars-backup backup`.

use std::time::Duration;

use jiff::Timestamp;

use super::args::{BackupArgs, Global};
use super::gate::{self, Asker};
use super::recover::lock;
use super::session::{Failed, Session, load};
use crate::config::{Agent, Tier};
use crate::exit::{Exit, Verdict};
use crate::host::Identity;
use crate::journal::Sink;
use crate::last_run::{Ended, LastRun};
use crate::marks::Pin;
use crate::ops::backup::{self, BackupError, Outcome, PlanError, Request};
use crate::ops::promote::{self, PromoteError};
use crate::ops::recover::Recovered;
use crate::progress::{Event, Monitor, What};
use crate::render::{json, text};
use crate::run_journal::RunJournal;
use crate::setup::Setup;

pub fn run(global: &Global, args: &BackupArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    let request = request(args)?;
    // What goes elsewhere, or nowhere, does no harm to the backups of the old machine.
    if !args.dry_run
        && request.output_dir.is_none()
        && let Some(exit) = gate::shut(&session, &setup.agent, Asker::of(args.unless_held))?
    {
        return Ok(exit);
    }
    let wanted = request.tier.as_deref().unwrap_or(&setup.agent.default_tier);
    let tier = setup.tier(wanted);
    if args.if_configured && tier.is_none() {
        let text = format!("Tier {wanted} is not configured: nothing to do");
        session.monitor.event(Event::new(What::TierAbsent, text).tier(wanted));
        return Ok(Exit::Ok);
    }
    if let Some((tier, from)) = tier.and_then(|t| Some((t, t.promote_from.as_deref()?)))
        && request.output_dir.is_none()
    {
        return promote(global, args, &session, &setup, tier, from);
    }
    let plan = backup::plan(&setup, &request, &session.access.exe).map_err(|e| {
        // A tier belongs to the configuration; a component that is not there was mistyped here.
        let exit = if matches!(e, PlanError::NoTier { .. }) { Exit::Config } else { Exit::Usage };
        session.failed(exit, &e)
    })?;
    let identity = if args.dry_run { Identity::LookOnly } else { Identity::Make };
    let owner = session.owner(&setup, identity)?;
    let world = session.world(&owner);
    if args.dry_run {
        let preview = backup::preview(&setup, &plan, &world).map_err(|i| session.interrupted(i))?;
        session.monitor.clear();
        let printed = if global.json { json::print(&preview) } else { text::print(&text::preview(&preview)) };
        printed.map_err(Failed::output)?;
        return Ok(if preview.is_ready() { Exit::Ok } else { Exit::Partial });
    }
    let silence = plan.selected.iter().map(|s| s.limits.idle.min(s.limits.total)).max();
    session.monitor.allow_silence(silence.unwrap_or_default());
    if let Some(limit) = args.wait_ready {
        backup::wait_ready(&setup, &plan, limit, &world).map_err(|i| session.interrupted(i))?;
    }
    let wait = args.wait.unwrap_or(Duration::ZERO);
    let (guard, recovered) = lock(&session, &setup.agent, "backup", wait)?;

    let whole_tier = request.output_dir.is_none() && !plan.is_handpicked();
    let last = whole_tier.then(|| LastRun::of(&setup.agent.state_dir, plan.tier.name.as_str()));
    if let Err(failed) = must_be_settled(&setup.agent, &recovered) {
        session.monitor.event(Event::new(What::RunFailed, "Backup failed").tier(&plan.tier.name));
        note_end(&session, last.as_ref(), failed.exit, &failed.lines.join("\n"), false);
        return Err(failed);
    }
    match backup::run(&setup, &plan, &guard, &world) {
        Ok(mut outcome) => {
            outcome.left_held.extend(recovered.left);
            finish(global, &session, &outcome, last.as_ref())
        }
        Err(BackupError::Interrupted(i)) => Err(session.interrupted(i)),
        Err(e) => {
            session.monitor.event(Event::new(What::RunFailed, "Backup failed").tier(&plan.tier.name));
            let failed = session.failed(Exit::Failed, &e);
            note_end(&session, last.as_ref(), failed.exit, &failed.lines.join("\n"), false);
            Err(failed)
        }
    }
}

/// A backup of data that is half restored would look like one of good data.
fn must_be_settled(agent: &Agent, recovered: &Recovered) -> Result<(), Failed> {
    let broken_off = RunJournal::new(&agent.state_dir).pending().is_ok_and(|p| p.is_of_a_restore());
    if !broken_off {
        return Ok(());
    }
    let why = recovered.left.join("; ");
    let text = format!("a restore was broken off and cannot be put right ({why}); no backup was made");
    Err(Failed::text(Exit::Failed, text, Some("mend that, then: tars-backup recover".into())))
}

/// For `status`; nothing depends on it.
fn note_end(session: &Session, last: Option<&LastRun>, exit: Exit, summary: &str, only_delivery: bool) {
    let Some(last) = last else { return };
    let (time, summary) = (Timestamp::now(), summary.trim_end().to_owned());
    let ended = Ended { time, status: exit.code(), summary, only_delivery };
    if let Err(e) = last.note_end(&ended) {
        let text = format!("how this run ended could not be noted for status: {e}");
        session.monitor.event(Event::new(What::Warning, text));
    }
}

/// A tier that is made of the backups of another: nothing is captured.
fn promote(
    global: &Global,
    args: &BackupArgs,
    session: &Session,
    setup: &Setup,
    tier: &Tier,
    from: &str,
) -> Result<Exit, Failed> {
    let chosen = !args.only.is_empty() || !args.skip.is_empty() || !args.tag.is_empty();
    if chosen
        || args.include_models
        || args.pin
        || args.skip_chromadb
        || args.skip_postgres
        || args.skip_redis
    {
        let text =
            format!("tier {} is promoted from {from}: a backup that is there is copied as it is", tier.name);
        let hint = format!("give such options to: tars-backup backup --tier {from}; or pin it afterwards");
        return Err(Failed::text(Exit::Usage, text, Some(hint)));
    }
    let told = |e: PromoteError| match e {
        PromoteError::Interrupted(i) => session.interrupted(i),
        e => session.failed(Exit::Failed, &e),
    };
    let identity = if args.dry_run { Identity::LookOnly } else { Identity::Make };
    let owner = session.owner(setup, identity)?;
    let world = session.world(&owner);
    if args.dry_run {
        let copies = promote::choose(setup, tier, from, &world).map_err(told)?;
        let name = copies.first().map(|c| c.entry.name.to_string()).unwrap_or_default();
        session.monitor.clear();
        let printed = match global.json {
            true => json::print(&serde_json::json!({
                "tier": tier.name, "promote_from": from, "name": name, "stores": tier.stores,
            })),
            false => {
                text::print(&format!("{name} of tier {from} would be copied to {}\n", tier.stores.join(", ")))
            }
        };
        printed.map_err(Failed::output)?;
        return Ok(Exit::Ok);
    }
    let (guard, _) = lock(session, &setup.agent, "backup", args.wait.unwrap_or(Duration::ZERO))?;
    let last = LastRun::of(&setup.agent.state_dir, tier.name.as_str());
    let outcome = promote::run(setup, tier, from, &guard, &world).map_err(|e| {
        let failed = told(e);
        session.monitor.event(Event::new(What::RunFailed, "Backup failed").tier(&tier.name));
        if !matches!(failed.exit, Exit::Interrupted(_)) {
            note_end(session, Some(&last), failed.exit, &failed.lines.join("\n"), false);
        }
        failed
    })?;
    finish(global, session, &outcome, Some(&last))
}

fn request(args: &BackupArgs) -> Result<Request, Failed> {
    let output_dir = match &args.output_dir {
        Some(dir) => Some(std::path::absolute(dir).map_err(|e| {
            Failed::text(Exit::Usage, format!("{} is no usable directory: {e}", dir.display()), None)
        })?),
        None => None,
    };
    let old =
        [(args.skip_chromadb, "chromadb"), (args.skip_postgres, "postgres"), (args.skip_redis, "redis")];
    Ok(Request {
        tier: args.tier.clone(),
        output_dir,
        only: args.only.clone(),
        skip: args.skip.clone(),
        include_models: args.include_models,
        skip_if_present: old.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect(),
        tags: args.tag.clone(),
        pin: args.pin.then_some(Pin { time: None, reason: None, until: args.until }),
        any_tier: false,
        private: false,
    })
}

fn finish(
    global: &Global,
    session: &Session,
    outcome: &Outcome,
    last: Option<&LastRun>,
) -> Result<Exit, Failed> {
    let exit = Exit::from(outcome.verdict());
    let summary = session.vault.scrub(&text::outcome(outcome));
    let delivered = Verdict { all_delivered: true, ..outcome.verdict() };
    note_end(session, last, exit, &summary, exit == Exit::Partial && Exit::from(delivered) == Exit::Ok);
    let what = if exit == Exit::Failed { What::RunFailed } else { What::RunFinished };
    let mut event = Event::new(what, summary.trim_end()).tier(&outcome.tier).bytes(outcome.bytes);
    event.name = outcome.name.as_ref().map(ToString::to_string);
    event.duration_ms = Some(outcome.duration_ms);
    session.monitor.event(event);
    if global.json {
        json::print(outcome).map_err(Failed::output)?;
    }
    Ok(exit)
}
