//! `list`, `show`, `verify`, `extract`: commands that look at what is stored.

use jiff::Timestamp;

use super::args::{ExtractArgs, Global, ListArgs, PlaceArgs, ShowArgs, VerifyArgs};
use super::gate::{self, Asker};
use super::places;
use super::session::{Failed, Session, load, load_optional};
use crate::exit::Exit;
use crate::hint::Hint;
use crate::journal::Sink;
use crate::manifest::Manifest;
use crate::marks::Depth;
use crate::ops::extract::{ExtractError, Extracted};
use crate::ops::find::{self, Filter, FindError, Found, OpenError, Wanted};
use crate::ops::inside::{self, InsideError};
use crate::ops::{World, extract as extracting, list as listing, verify as verifying};
use crate::progress::{Event, Monitor, What};
use crate::render::{json, text};
use crate::setup::Setup;
use crate::store::StoreError;

pub fn list(global: &Global, args: &ListArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let setup = match is_url(&args.place) {
        true => load_optional(global, &session.access)?,
        false => Some(load(global, &session.access)?),
    };
    let filter = Filter { tier: args.tier.clone(), trash: args.trash, ..filter(&args.place) };
    let (found, failed) = places::look(&session, setup.as_ref(), &filter, args.place.credentials.as_deref())?;
    let rows = listing::rows(&found, Timestamp::now());
    session.monitor.clear();
    let printed = if global.json { json::print(&rows) } else { text::print(&text::list(&rows)) };
    printed.map_err(Failed::output)?;
    Ok(warn_unlisted(&session, &failed))
}

/// A store that cannot be looked at is told, and makes the answer incomplete.
fn warn_unlisted(session: &Session, failed: &[StoreError]) -> Exit {
    for e in failed {
        let hint = e.hint().map_or_else(String::new, |h| format!(" ({h})"));
        session.monitor.event(Event::new(What::Warning, format!("{}{hint}", crate::hint::chain(e))));
    }
    if failed.is_empty() { Exit::Ok } else { Exit::Partial }
}

fn is_url(place: &PlaceArgs) -> bool {
    place.store.as_deref().is_some_and(|s| s.contains("://"))
}

fn filter(place: &PlaceArgs) -> Filter {
    Filter { store: place.store.clone(), host: place.host.clone(), ..Filter::default() }
}

pub(super) fn parse(session: &Session, text: &str) -> Result<Wanted, Failed> {
    Wanted::parse(text).map_err(|e| places::failed(session, &FindError::Name(e)))
}

/// Copies of the wanted backups, and the stores that could not be looked at.
pub(super) fn search<'a>(
    session: &Session,
    setup: Option<&'a Setup>,
    wanted: &[Wanted],
    place: &PlaceArgs,
) -> Result<(Vec<Found<'a>>, Exit), Failed> {
    let mut chosen = Vec::new();
    let mut exit = Exit::Ok;
    for want in wanted {
        if let Wanted::File(path) = want {
            chosen.push(
                find::file(path, &session.access.exe, &session.cancel)
                    .map_err(|e| places::failed(session, &e))?,
            );
            continue;
        }
        let (found, failed) = places::look(session, setup, &filter(place), place.credentials.as_deref())?;
        exit = exit.worst(warn_unlisted(session, &failed));
        chosen.extend(find::choose(found, want).map_err(|e| places::failed(session, &e))?);
    }
    Ok((chosen, exit))
}

fn wanted(session: &Session, name: Option<&str>, latest: bool) -> Result<Wanted, Failed> {
    match name {
        _ if latest => Ok(Wanted::Latest),
        Some(name) => parse(session, name),
        None => Err(Failed::text(Exit::Usage, "no backup is named", None)),
    }
}

pub fn show(global: &Global, args: &ShowArgs, sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = load_optional(global, &session.access)?;
    session.opens_with(setup.as_ref(), &args.identity);
    let want = wanted(&session, args.backup.as_deref(), args.latest)?;
    let (found, _) = search(&session, setup.as_ref(), &[want], &args.place)?;
    let readable = found.iter().find_map(|f| Some((f, f.entry.manifest.as_ref().ok()?)));
    match (readable, found.first()) {
        (Some((copy, beside)), _) => {
            let opened = unsealed(&session, setup.as_ref(), copy, beside)?;
            let manifest = opened.as_ref().unwrap_or(beside);
            session.monitor.clear();
            let printed =
                if global.json { json::print(manifest) } else { text::print(&text::manifest(manifest)) };
            printed.map_err(Failed::output)?;
            Ok(Exit::Ok)
        }
        (None, Some(f)) => {
            let why = f.entry.manifest.as_ref().err().map(|e| crate::hint::chain(e)).unwrap_or_default();
            Err(Failed::text(
                Exit::Failed,
                format!("{}: {why}", f.entry.name),
                Some("use another copy or another backup: tars-backup list".into()),
            ))
        }
        (None, None) => Err(Failed::text(Exit::Failed, "no such backup", None)),
    }
}

/// The manifest inside a sealed archive, where a key for it is here; else what lies beside it has to do.
fn unsealed(
    session: &Session,
    setup: Option<&Setup>,
    copy: &Found<'_>,
    beside: &Manifest,
) -> Result<Option<Manifest>, Failed> {
    if !beside.encryption.is_sealed() {
        return Ok(None);
    }
    let owner = session.reader(setup)?;
    match inside::manifest(copy, &session.world(&owner)) {
        Ok(inner) => Ok(Some(Manifest {
            encryption: beside.encryption.clone(),
            bytes: beside.bytes,
            sha256: beside.sha256.clone(),
            manifest_sha256: beside.manifest_sha256.clone(),
            ..inner
        })),
        Err(InsideError::Open(_, e @ (OpenError::NoIdentity | OpenError::Seal(_)))) => {
            let text = format!("Shown is what lies beside the sealed archive: {}", crate::hint::chain(&e));
            session.monitor.event(Event::new(What::Warning, text));
            Ok(None)
        }
        Err(e) => Err(session.failed(Exit::Failed, &e)),
    }
}

pub fn verify(global: &Global, args: &VerifyArgs, sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = load_optional(global, &session.access)?;
    session.opens_with(setup.as_ref(), &args.identity);
    if let (true, Some(setup)) = (args.unless_held, &setup)
        && let Some(exit) = gate::shut(&session, &setup.agent, Asker::Timer)?
    {
        return Ok(exit);
    }
    let mut want = Vec::new();
    if args.all {
        want.push(Wanted::All);
    } else if args.latest {
        want.push(Wanted::Latest);
    }
    for name in &args.backups {
        want.push(parse(&session, name)?);
    }
    let (found, mut exit) = search(&session, setup.as_ref(), &want, &args.place)?;
    let owner = session.reader(setup.as_ref())?;
    let world = session.world(&owner);
    let scratch = tempfile::Builder::new()
        .prefix("tars-backup-verify-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir()
        .map_err(|e| Failed::text(Exit::Failed, format!("cannot make a scratch directory: {e}"), None))?;
    let depth = if args.deep { Depth::Deep } else { Depth::Digest };
    let mut reports = Vec::new();
    for f in &found {
        let report =
            verifying::verify(f, depth, scratch.path(), &world).map_err(|i| session.interrupted(i))?;
        exit = exit.worst(match (report.good, report.as_asked) {
            (false, _) if report.newer && report.faults.is_empty() => Exit::Partial,
            (false, _) => Exit::Failed,
            (true, false) => Exit::Partial,
            (true, true) => Exit::Ok,
        });
        reports.push(report);
    }
    session.monitor.clear();
    if global.json {
        json::print(&reports).map_err(Failed::output)?;
    } else {
        let mut out = String::new();
        for r in &reports {
            let how = if r.depth == Depth::Deep { "every component read" } else { "digest" };
            let verdict = match (r.good, r.faults.is_empty()) {
                (true, _) => "good",
                (false, true) => "NOT CHECKED",
                (false, false) => "BAD",
            };
            out.push_str(&format!("{} in {}: {verdict} ({how})\n", r.name, r.store));
            for line in r.faults.iter().chain(&r.unchecked).chain(&r.notes) {
                out.push_str(&format!("  {line}\n"));
            }
        }
        text::print(&out).map_err(Failed::output)?;
    }
    Ok(exit)
}

/// From the first copy that is good: a damaged one is no reason to give up while there is another.
fn extract_any(
    session: &Session,
    found: &[Found<'_>],
    paths: &[String],
    to: &std::path::Path,
    world: &World<'_>,
) -> Result<Extracted, Failed> {
    let mut damaged = None;
    for copy in found {
        match extracting::extract(copy, paths, to, world) {
            Ok(done) => return Ok(done),
            Err(ExtractError::Interrupted(i)) => return Err(session.interrupted(i)),
            Err(e @ ExtractError::Damaged { .. }) => {
                let text = format!("{} in {}", crate::hint::chain(&e), copy.store().name());
                session.monitor.event(Event::new(What::Warning, text).store(copy.store().name()));
                damaged = Some(e);
            }
            Err(e) => return Err(session.failed(Exit::Failed, &e)),
        }
    }
    Err(damaged.map_or_else(
        || Failed::text(Exit::Failed, "no such backup", None),
        |e| session.failed(Exit::Failed, &e),
    ))
}

pub fn extract(global: &Global, args: &ExtractArgs, sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = load_optional(global, &session.access)?;
    session.opens_with(setup.as_ref(), &args.identity);
    let mut paths = args.paths.clone();
    if args.latest {
        // With --latest every argument is a path.
        paths.splice(0..0, args.backup.clone());
    }
    let want = wanted(&session, args.backup.as_deref(), args.latest)?;
    let (found, _) = search(&session, setup.as_ref(), &[want], &args.place)?;
    let owner = session.reader(setup.as_ref())?;
    let world = session.world(&owner);
    let done = extract_any(&session, &found, &paths, &args.to, &world)?;
    session.monitor.clear();
    if global.json {
        json::print(&done).map_err(Failed::output)?;
    } else {
        let mut out = String::new();
        for file in &done.files {
            out.push_str(&format!("{}\n", args.to.join(file).display()));
        }
        text::print(&out).map_err(Failed::output)?;
    }
    Ok(Exit::Ok)
}
