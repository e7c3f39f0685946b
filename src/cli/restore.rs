//! `tars-backup restore`.

mod bare;

use std::io::{BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::args::{Global, RestoreArgs, Roles};
use super::places;
use super::recover::lock;
use super::session::{Failed, Session, has_no_config, load, load_optional};
use crate::exit::{Exit, Signal};
use crate::hint::Hint;
use crate::host::Identity;
use crate::journal::Sink;
use crate::ops::World;
use crate::ops::find::{self, Filter, FindError, Found, Wanted};
use crate::ops::restore::{
    self, Chosen, Fetched, Request, Restore, RestoreError, RestoreOutcome, RestorePlan,
};
use crate::progress::{Event, Monitor, What};
use crate::reach::OWN;
use crate::render::{json, text};
use crate::setup::Setup;
use crate::staging::RunDir;
use crate::store::StoreError;
use crate::target::Wishes;

pub fn run(global: &Global, args: &RestoreArgs, sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let named;
    let args = match &args.unit_instance {
        None => args,
        Some(instance) => {
            let setup = load(global, &session.access)?;
            named = by_instance(args, instance, &setup);
            &named
        }
    };
    let mut request = request(args)?;
    let elsewhere = request.to.is_some();
    // Data can be written elsewhere by a machine that has no configuration; and the configuration itself comes first there,
    // also under another name.
    let setup = match (elsewhere, request.restore_config) {
        (true, _) => load_optional(global, &session.access)?,
        (false, true) if has_no_config(global) => None,
        (false, _) => Some(load(global, &session.access)?),
    };
    session.opens_with(setup.as_ref(), &args.identity);
    if !args.yes && !args.dry_run && !elsewhere && !std::io::stdin().is_terminal() {
        let hint = "look first with --dry-run, then again with --yes".to_owned();
        return Err(Failed::text(
            Exit::Usage,
            "nobody is there to confirm what will be replaced",
            Some(hint),
        ));
    }
    if setup.is_none() && !elsewhere {
        return bare::run(global, args, request, &session);
    }
    if !args.below.is_empty() {
        // As when it was not there yet, which may have been a moment ago: a second time writes nothing that the first did not.
        request.reach = Some(bare::reach(args, &request)?);
        log::warn!(
            "this machine has a configuration: of what it names, only what lies below the directories of --below and {OWN} \
             is put back"
        );
    }
    let owner = match &setup {
        // The safety copy says who made it.
        Some(setup) if !args.dry_run && !elsewhere => session.owner(setup, Identity::Make)?,
        setup => session.reader(setup.as_ref())?,
    };
    let world = session.world(&owner);
    match &setup {
        Some(setup) if !args.dry_run && !elsewhere => {
            let wait = args.wait.unwrap_or(Duration::ZERO);
            let (guard, recovered) = lock(&session, &setup.agent, "restore", wait)?;
            if !recovered.left.is_empty() {
                let hint = "tars-backup recover".to_owned();
                let text = format!("a killed run is not cleared up: {}", recovered.left.join("; "));
                return Err(Failed::text(Exit::Failed, text, Some(hint)));
            }
            let dir = RunDir::create(&setup.agent.staging_dir, "restore")
                .map_err(|e| session.failed(Exit::Failed, &e))?;
            let (fetched, unsure) = fetch(&session, args, &request, Some(setup), dir, &world)?;
            let chosen = choose(&session, &fetched, &request)?;
            let restore = prepare(&session, setup, &request, &fetched, &chosen, &world)?;
            let mut plan = restore.plan().map_err(|e| failed(&session, &e))?;
            plan.warnings.splice(..0, unsure);
            session.monitor.clear();
            let asked = Instant::now();
            // Where nothing can be done there is nothing to agree to.
            if !args.yes && plan.does_something() {
                confirm(&text::restore_plan(&plan), &plan.backup)?;
            }
            let outcome = restore.run(&guard, asked.elapsed()).map_err(|e| failed(&session, &e))?;
            finish(global, &session, &outcome)
        }
        Some(setup) if args.dry_run && !elsewhere => {
            let dir = RunDir::temporary().map_err(|e| session.failed(Exit::Failed, &e))?;
            let (fetched, unsure) = fetch(&session, args, &request, Some(setup), dir, &world)?;
            let chosen = choose(&session, &fetched, &request)?;
            let restore = prepare(&session, setup, &request, &fetched, &chosen, &world)?;
            let mut plan = restore.plan().map_err(|e| failed(&session, &e))?;
            plan.warnings.splice(..0, unsure);
            session.monitor.clear();
            let printed =
                if global.json { json::print(&plan) } else { text::print(&text::restore_plan(&plan)) };
            printed.map_err(Failed::output)?;
            Ok(planned(&plan))
        }
        _ => {
            let dir = RunDir::temporary().map_err(|e| session.failed(Exit::Failed, &e))?;
            let (fetched, _) = fetch(&session, args, &request, setup.as_ref(), dir, &world)?;
            let chosen = choose(&session, &fetched, &request)?;
            let to = request.to.as_deref().unwrap_or(std::path::Path::new("."));
            if args.dry_run {
                let names: Vec<&str> = chosen.iter().map(|c| c.name).collect();
                session.monitor.clear();
                let line = format!("Would write {} below {}\n", names.join(", "), to.display());
                text::print(&line).map_err(Failed::output)?;
                return Ok(Exit::Ok);
            }
            let outcome = restore::write_to(&fetched, &chosen, to, &request, &world)
                .map_err(|e| failed(&session, &e))?;
            finish(global, &session, &outcome)
        }
    }
}

/// The command that an instance of the unit stands for: COMPONENT, `latest`, BACKUP, or one of these two with `:COMPONENT`.
fn by_instance(args: &RestoreArgs, instance: &str, setup: &Setup) -> RestoreArgs {
    let is_source = |name: &str| setup.sources.iter().any(|s| s.name.as_str() == name);
    let (backup, components) = match instance.split_once(':') {
        Some((backup, components)) => (backup, components),
        None if is_source(instance) => ("latest", instance),
        None => (instance, ""),
    };
    let components = components.split(',').filter(|c| !c.is_empty()).map(str::to_owned).collect();
    let latest = backup == "latest";
    let backup = (!latest).then(|| backup.to_owned());
    RestoreArgs { backup, latest, component: components, unit_instance: None, ..args.clone() }
}

/// What the restore itself would end with, as far as a plan can know.
fn planned(plan: &RestorePlan) -> Exit {
    match (plan.lines.iter().all(|l| l.problem.is_none()), plan.does_something()) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::Partial,
        (false, false) => Exit::Failed,
    }
}

fn request(args: &RestoreArgs) -> Result<Request, Failed> {
    let to = args.to.as_ref().map(std::path::absolute).transpose();
    let to = to.map_err(|e| Failed::text(Exit::Usage, format!("--to is no usable directory: {e}"), None))?;
    Ok(Request {
        components: args.component.clone(),
        skip: args.skip.clone(),
        to,
        restore_config: args.restore_config,
        skip_validation: args.skip_validation,
        allow_partial: args.allow_partial,
        keep: args.keep,
        no_safety_backup: args.no_safety_backup,
        wishes: Wishes {
            fresh: args.fresh,
            via_export: args.via_export,
            overwrite_roles: args.roles == Roles::Overwrite,
        },
        reach: None,
    })
}

fn failed(session: &Session, e: &RestoreError) -> Failed {
    let exit = match e {
        RestoreError::NoComponent { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    session.failed(exit, e)
}

/// The backup, and what makes it unsure that it is the one that was meant.
fn fetch(
    session: &Session,
    args: &RestoreArgs,
    request: &Request,
    setup: Option<&Setup>,
    dir: RunDir,
    world: &World<'_>,
) -> Result<(Fetched, Vec<String>), Failed> {
    let (copies, unsure) = copies(session, args, setup)?;
    restore::fetch(&restore::nearest_first(copies), request, dir, world)
        .map(|fetched| (fetched, unsure))
        .map_err(|e| failed(session, &RestoreError::from(e)))
}

fn copies<'a>(
    session: &Session,
    args: &RestoreArgs,
    setup: Option<&'a Setup>,
) -> Result<(Vec<Found<'a>>, Vec<String>), Failed> {
    let wrong = |e: &FindError| places::failed(session, e);
    let wanted = match (&args.backup_file, &args.backup) {
        (Some(file), _) => Wanted::File(file.clone()),
        (None, Some(text)) => Wanted::parse(text).map_err(|e| wrong(&e.into()))?,
        (None, None) => Wanted::Latest,
    };
    if let Wanted::File(path) = &wanted {
        let found = find::file(path, &session.access.exe, &session.cancel).map_err(|e| wrong(&e))?;
        return Ok((vec![found], Vec::new()));
    }
    let filter = Filter { store: args.from.clone(), host: args.host.clone(), ..Filter::default() };
    let (found, unreachable) = places::look(session, setup, &filter, args.credentials.as_deref())?;
    for e in &unreachable {
        let hint = e.hint().map_or_else(String::new, |h| format!(" ({h})"));
        log::warn!("{}{hint}", crate::hint::chain(e));
    }
    let copies = find::choose(found, &wanted).map_err(|e| wrong(&e))?;
    let mut unsure = Vec::new();
    if let (Wanted::Latest, None, Some(newest)) = (&wanted, &args.from, copies.first()) {
        let name = &newest.entry.name;
        let text = |e: &StoreError| {
            let why = session.vault.scrub(&crate::hint::chain(e));
            format!("{name} may not be the latest: a store could not be looked at ({why})")
        };
        unsure.extend(unreachable.iter().map(text));
        // What is replaced by an old backup cannot be asked for again.
        if let (Some(first), true, None) = (unsure.first(), args.yes && !args.dry_run, &args.to) {
            let hint = format!("name the backup ({name}), or the store: --from STORE");
            return Err(Failed::text(Exit::Failed, first.clone(), Some(hint)));
        }
    }
    Ok((copies, unsure))
}

fn choose<'a>(session: &Session, fetched: &'a Fetched, request: &Request) -> Result<Vec<Chosen<'a>>, Failed> {
    restore::choose(&fetched.manifest, request).map_err(|e| failed(session, &e))
}

fn prepare<'a>(
    session: &Session,
    setup: &'a Setup,
    request: &'a Request,
    fetched: &'a Fetched,
    chosen: &'a [Chosen<'a>],
    world: &'a World<'a>,
) -> Result<Restore<'a>, Failed> {
    Restore::new(setup, request, fetched, chosen, world).map_err(|e| failed(session, &e))
}

/// Asks twice: whether, and then for the name of the backup, which nobody types by mistake.
fn confirm(plan: &str, backup: &str) -> Result<(), Failed> {
    let mut err = std::io::stderr().lock();
    let mut ask = |question: &str, wanted: &str| -> Result<(), Failed> {
        write!(err, "{question}: ").and_then(|()| err.flush()).map_err(Failed::output)?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map_err(Failed::output)?;
        if answer.trim() == wanted {
            return Ok(());
        }
        Err(Failed::text(Exit::Failed, "not confirmed; nothing was changed", None))
    };
    ask(&format!("{plan}\nType yes to replace what is there now"), "yes")?;
    ask(&format!("Type the name of the backup ({backup})"), backup)
}

fn finish(global: &Global, session: &Session, outcome: &RestoreOutcome) -> Result<Exit, Failed> {
    let summary = session.vault.scrub(&text::restore_outcome(outcome));
    let mut event = Event::new(What::RestoreFinished, summary.trim_end()).backup(&outcome.backup);
    event.duration_ms = Some(outcome.duration_ms);
    session.monitor.event(event);
    if global.json {
        json::print(outcome).map_err(Failed::output)?;
    }
    if outcome.interrupted {
        return Ok(Exit::Interrupted(session.cancel.signal().unwrap_or(Signal::Interrupt)));
    }
    Ok(match (outcome.is_whole(), outcome.restored()) {
        (true, _) => Exit::Ok,
        (false, 0) => Exit::Failed,
        (false, _) => Exit::Partial,
    })
}
