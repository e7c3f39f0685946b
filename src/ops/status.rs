//! Is there a good backup of everything, and what is wrong? From the stores, the spool, what the last runs noted, and the
//! timers. What could go wrong: health that nobody looked for; so what could not be found out is a problem, not silence.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::World;
use super::backup::expected_of;
use super::{apply, find, recover};
use crate::cancel::Interrupted;
use crate::catalog::{self, Entry};
use crate::config::Tier;
use crate::held_host::HeldHost;
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::last_run::{Ended, LastRun};
use crate::manifest::{Manifest, State};
use crate::marks::{DrillVerdict, Drilled, Verified};
use crate::process::ProcessError;
use crate::setup::Setup;
use crate::spool::{Spool, SpoolError};
use crate::store::{self, Store, StoreError};
use crate::systemd::{self, Systemd, unix_time};

/// How much later than its time a run may end before it counts as missed: timers wait for each other for so long.
const GRACE: SignedDuration = SignedDuration::from_hours(13);
/// A month, and a week of grace.
const DRILL_EVERY: SignedDuration = SignedDuration::from_hours(38 * 24);
/// Units that work by themselves.
const UNITS: [&str; 5] = [
    "tars-backup.service",
    "tars-backup-sync.service",
    "tars-backup-verify.service",
    "tars-backup-drill.service",
    "tars-backup-recover.service",
];

#[derive(Debug, Serialize)]
pub struct Status {
    pub host: String,
    pub time: Timestamp,
    pub healthy: bool,
    pub components: Vec<Restorable>,
    pub tiers: Vec<TierStatus>,
    pub spool: SpoolStatus,
    /// What makes it unhealthy.
    pub problems: Vec<Remark>,
    pub warnings: Vec<Remark>,
}

/// Something that a person should know, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remark {
    pub what: String,
    pub hint: Option<String>,
}

impl Remark {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }
}

/// The newest point from which a component can be had back out of one store.
#[derive(Debug, Serialize)]
pub struct Restorable {
    pub component: String,
    pub critical: bool,
    pub store: String,
    /// None: no backup in that store holds it.
    pub backup: Option<BackupName>,
    pub tier: Option<String>,
    pub timestamp: Option<Timestamp>,
    pub age_s: Option<u64>,
    pub verified: Option<Verified>,
    /// When a drill last brought it back out of that store, and out of which backup.
    pub drilled: Option<LastDrill>,
    /// Whether the last drill of this very backup could not bring it back.
    pub drill_failed: bool,
}

#[derive(Debug, Clone, Serialize)]
pub struct LastDrill {
    pub time: Timestamp,
    pub backup: BackupName,
    pub rto_ms: Option<u64>,
}

/// One tier in one store.
#[derive(Debug, Serialize)]
pub struct TierStatus {
    pub tier: String,
    pub store: String,
    /// Backups that are there, without those in the trash.
    pub backups: usize,
    /// The newest one that counts.
    pub newest: Option<BackupName>,
    pub newest_timestamp: Option<Timestamp>,
    /// When its timer fires; None where nothing is known of one.
    pub schedule: Option<String>,
    pub next_run: Option<Timestamp>,
    pub last_run: Option<Ended>,
}

#[derive(Debug, Default, Serialize)]
pub struct SpoolStatus {
    pub backups: usize,
    pub bytes: u64,
    pub limit_bytes: u64,
}

/// Looks; changes nothing.
pub fn run(setup: &Setup, held: Option<&HeldHost>, world: &World<'_>) -> Result<Status, Interrupted> {
    let now = (world.now)();
    let mut status = Status {
        host: setup.host.clone(),
        time: now,
        healthy: true,
        components: Vec::new(),
        tiers: Vec::new(),
        spool: SpoolStatus::default(),
        problems: Vec::new(),
        warnings: Vec::new(),
    };
    if let Some(held) = held {
        let what = format!("its timers do nothing: {}", held.sentence());
        let hint = "when the data is back and the old machine is off: tars-backup accept --host";
        status.problems.push(Remark::new(what, hint));
    }
    let systemd = Systemd::new(world.runtime.clone(), world.cancel.clone());
    let manager = systemd::is_running().then_some(&systemd);
    let mut holds: BTreeMap<(String, String), Restorable> = BTreeMap::new();
    for tier in &setup.tiers {
        let timer = timer(tier, manager, &mut status)?;
        let last_run = LastRun::of(&setup.agent.state_dir, tier.name.as_str()).ended();
        for store in tier.stores.iter().filter_map(|name| setup.store(name)) {
            let dir = store::tier_dir(store, &setup.host, &tier.path);
            let entries = match listed(store, &dir, world) {
                Ok(entries) => entries,
                Err(StoreError::Interrupted(i)) => return Err(i),
                Err(e) => {
                    let what = format!("{}: {}", store.name(), world.vault.scrub(&chain(&e)));
                    let remark = Remark { what, hint: e.hint() };
                    // Told once, however many tiers it has.
                    if !status.problems.contains(&remark) {
                        status.problems.push(remark);
                    }
                    continue;
                }
            };
            for source in expected_of(setup, tier) {
                let best = restorable(source.name.as_str(), source.critical, tier, store, &entries, now);
                let key = (best.component.clone(), best.store.clone());
                let newest = |a: Option<LastDrill>, b: Option<LastDrill>| {
                    a.into_iter().chain(b).max_by_key(|d| d.time)
                };
                match holds.get_mut(&key) {
                    Some(known) if !is_newer(&best, known, now) => {
                        known.drilled = newest(known.drilled.take(), best.drilled);
                    }
                    known => {
                        let drilled = newest(known.and_then(|k| k.drilled.take()), best.drilled.clone());
                        holds.insert(key, Restorable { drilled, ..best });
                    }
                }
            }
            let row = judge(setup, tier, store, &entries, &timer, last_run.clone(), now, &mut status);
            status.tiers.push(row);
        }
        // What only waited for a store is told by the spool, while it does.
        if let Some(ended) = last_run.filter(|e| e.status != 0 && !e.only_delivery) {
            let what = format!(
                "the last run of {}, {}, ended with status {}: {}",
                tier.name,
                ended.time.strftime("%F %T UTC"),
                ended.status,
                ended.summary
            );
            status.problems.push(Remark::new(
                what,
                format!("when it is mended: tars-backup backup --tier {}", tier.name),
            ));
        }
    }
    status.components = holds.into_values().collect();
    for lost in status.components.iter().filter(|c| c.backup.is_none() && c.critical) {
        // Of a store without any backup the tier has told already.
        if status.tiers.iter().any(|t| t.store == lost.store && t.backups > 0) {
            let what = format!("{} is in no backup in {}", lost.component, lost.store);
            status.problems.push(Remark::new(what, "tars-backup backup"));
        }
    }
    undrilled(setup, now, &mut status);
    spool(setup, world, &mut status);
    let pending = recover::pending(&setup.agent.dirs());
    status.problems.extend(pending.into_iter().map(|what| Remark::new(what, "tars-backup recover")));
    if let Some(systemd) = manager {
        units(setup, systemd, &mut status)?;
        if apply::is_stale(setup) == Some(true) {
            let what = "the units of systemd do not know this configuration: paths, credentials and schedules may be missing in them";
            status.warnings.push(Remark::new(what, "tars-backup config apply"));
        }
    }
    let has_secrets = setup.sources.iter().any(|s| s.source.is_configuration());
    if has_secrets && setup.encryption.recipients.is_empty() {
        let what = "the secrets of this stack are in no backup: [encryption] names no recipient, so its files are kept redacted only";
        status.warnings.push(Remark::new(what, "tars-backup key new, then encryption.recipients"));
    }
    status.healthy = status.problems.is_empty();
    Ok(status)
}

/// What is there and not on its way out. A store of another machine is none of ours to judge.
fn listed(store: &dyn Store, dir: &str, world: &World<'_>) -> Result<Vec<Entry>, StoreError> {
    store::check_marker(store, world.owner, world.cancel)?;
    let mut entries = catalog::list(store, dir, world.cancel)?;
    entries.retain(|e| e.trash.is_none());
    Ok(entries)
}

/// Whether it is a better point to come back to. Like the latest of all, one of the future is that only without another.
fn is_newer(one: &Restorable, than: &Restorable, now: Timestamp) -> bool {
    let rank = |r: &Restorable| r.timestamp.map(|t| (t.duration_since(now) <= find::CLOCKS_DIFFER, t));
    rank(one) > rank(than)
}

fn time_of(manifest: &Manifest) -> Option<Timestamp> {
    manifest.timestamp.parse().ok()
}

fn restorable(
    component: &str,
    critical: bool,
    tier: &Tier,
    store: &dyn Store,
    entries: &[Entry],
    now: Timestamp,
) -> Restorable {
    let holds = |e: &&Entry| e.manifest.as_ref().is_ok_and(|m| m.whole().any(|(name, _)| name == component));
    let best = find::newest(entries.iter().filter(holds), now);
    let timestamp = best.and_then(|e| e.manifest.as_ref().ok()).and_then(time_of);
    Restorable {
        component: component.to_owned(),
        critical,
        store: store.name().to_owned(),
        backup: best.map(|e| e.name.clone()),
        tier: best.map(|_| tier.name.to_string()),
        timestamp,
        age_s: timestamp.and_then(|t| u64::try_from(now.as_second() - t.as_second()).ok()),
        verified: best.filter(|e| e.is_verified()).and_then(|e| e.verified.clone()),
        drill_failed: best.and_then(drill_of).is_some_and(|d| could_not(d, component)),
        drilled: drills(entries)
            .filter(|(_, d)| d.proved.iter().any(|name| name == component))
            .map(|(e, d)| LastDrill { time: d.time, backup: e.name.clone(), rto_ms: d.rto_ms })
            .max_by_key(|last| last.time),
    }
}

/// Drills of the very bytes that are stored.
fn drills(entries: &[Entry]) -> impl DoubleEndedIterator<Item = (&Entry, &Drilled)> {
    entries.iter().filter_map(|e| Some((e, drill_of(e)?)))
}

/// The drill of the very bytes that are stored.
fn drill_of(entry: &Entry) -> Option<&Drilled> {
    let stored = entry.manifest.as_ref().ok().and_then(|m| m.sha256.as_deref());
    entry.drilled.as_ref().filter(|d| stored == Some(&d.sha256))
}

/// Whether it found the component bad. With the bytes of the backup all of it is.
fn could_not(drill: &Drilled, component: &str) -> bool {
    let names = &drill.failed;
    drill.verdict == DrillVerdict::Bad && (names.is_empty() || names.iter().any(|name| name == component))
}

/// Every backup that a drill found bad: a problem until a newer one brought back what it could not.
fn drilled_badly(store: &dyn Store, place: &str, entries: &[Entry], status: &mut Status) {
    let last = drills(entries).max_by_key(|(_, d)| d.time).map(|(e, _)| &e.name);
    for (at, (entry, drill)) in drills(entries).enumerate() {
        if drill.verdict != DrillVerdict::Bad {
            continue;
        }
        let is_last = last == Some(&entry.name);
        let newer = drills(entries).skip(at + 1).map(|(_, d)| d);
        let came_back = |d: &Drilled| match drill.failed.as_slice() {
            [] => d.verdict != DrillVerdict::Bad,
            names => names.iter().all(|name| d.proved.contains(name)),
        };
        let mended = newer.into_iter().any(came_back);
        let which = if is_last { "the last drill" } else { "a drill" };
        let found = match drill.failed.as_slice() {
            [] => format!("{which} of {place} found {} damaged", entry.name),
            names => {
                format!("{which} of {place} could not bring {} back out of {}", names.join(", "), entry.name)
            }
        };
        let again = format!("tars-backup drill {} --from {}", entry.name, store.name());
        match mended && !is_last {
            true => {
                let what = format!("{found}; a newer backup was brought back since");
                status.warnings.push(Remark::new(what, again));
            }
            false => status.problems.push(Remark::new(found, again)),
        }
    }
}

/// Where drills are wanted: what has waited for one for longer than the timer lets it.
fn undrilled(setup: &Setup, now: Timestamp, status: &mut Status) {
    if setup.encryption.identity.is_none() {
        return;
    }
    let long_ago = |t: Timestamp| now.duration_since(t) > DRILL_EVERY;
    let is_old = |c: &&Restorable| match &c.drilled {
        Some(drilled) => long_ago(drilled.time),
        // The first one may be a month away.
        None => c.timestamp.is_some_and(long_ago),
    };
    let names: std::collections::BTreeSet<&str> = status
        .components
        .iter()
        .filter(is_old)
        // One store that it was brought back from is enough.
        .filter(|c| !status.components.iter().any(|o| o.component == c.component && !is_old(&o)))
        .map(|c| c.component.as_str())
        .collect();
    if !names.is_empty() {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let what =
            format!("no drill has brought these back for {} days: {names}", DRILL_EVERY.as_hours() / 24);
        status.warnings.push(Remark::new(what, "tars-backup drill --latest"));
    }
}

/// Whether it is one that a restore would take without being told to.
fn counts(entry: &Entry) -> bool {
    entry.manifest.as_ref().is_ok_and(Manifest::counts) && !entry.has_open_anomaly()
}

#[allow(clippy::too_many_arguments)]
fn judge(
    setup: &Setup,
    tier: &Tier,
    store: &dyn Store,
    entries: &[Entry],
    timer: &Timer,
    last_run: Option<Ended>,
    now: Timestamp,
    status: &mut Status,
) -> TierStatus {
    let place = format!("{} in {}", tier.name, store.name());
    let again = format!("tars-backup backup --tier {}", tier.name);
    for entry in entries {
        let Err(damage) = &entry.manifest else { continue };
        let (what, hint) = match damage.of_newer() {
            Some(hint) => {
                (format!("{} of {place} cannot be judged: {}", entry.name, chain(damage)), hint.to_owned())
            }
            None => (
                format!("{} of {place} is damaged: {}", entry.name, chain(damage)),
                format!("tars-backup verify {}", entry.name),
            ),
        };
        status.problems.push(Remark::new(what, hint));
    }
    let newest = find::newest(entries.iter().filter(|e| counts(e)), now);
    let timestamp = newest.and_then(|e| e.manifest.as_ref().ok()).and_then(time_of);
    match (newest, timestamp) {
        (Some(entry), Some(made)) => {
            if !entry.is_verified() {
                let what = format!("{}, the newest of {place}, is not known to be readable", entry.name);
                status.problems.push(Remark::new(what, format!("tars-backup verify {}", entry.name)));
            }
            if find::is_future(entry, now) {
                // Whether the timer still works cannot be seen from it.
                let what = format!(
                    "the newest good backup of {place} is of the future, {}: a clock was or is wrong",
                    made.strftime("%F %T UTC")
                );
                status.problems.push(Remark::new(what, format!("timedatectl; when it is right: {again}")));
            } else if timer.missed(made, now) {
                let what =
                    format!("{place} is late: its newest good backup is of {}", made.strftime("%F %T UTC"));
                status.problems.push(Remark::new(
                    what,
                    format!("journalctl -u tars-backup@{}.service; {again}", tier.name),
                ));
            }
        }
        // A tier that is made once a month has none in its first weeks.
        _ if last_run.is_some() || setup.agent.default_tier == tier.name.as_str() || !entries.is_empty() => {
            status.problems.push(Remark::new(format!("there is no good backup of {place}"), again));
        }
        _ => {
            status.warnings.push(Remark::new(format!("there is no backup of {place} yet"), again));
        }
    }
    drilled_badly(store, &place, entries, status);
    let latest = find::newest(entries.iter(), now).filter(|e| newest.is_none_or(|n| n.name != e.name));
    if let Some((entry, manifest)) = latest.and_then(|e| Some((e, e.manifest.as_ref().ok()?))) {
        if entry.has_open_anomaly() {
            let what = format!("{} of {place} shrank: {}", entry.name, manifest.anomalies.join(", "));
            status
                .problems
                .push(Remark::new(what, format!("if it is right: tars-backup accept {}", entry.name)));
        } else if manifest.state == State::Partial && !manifest.is_handpicked() {
            let what = format!("{} of {place} lacks {}", entry.name, manifest.failed_components.join(", "));
            status.problems.push(Remark::new(what, format!("tars-backup show {}", entry.name)));
        }
    }
    TierStatus {
        tier: tier.name.to_string(),
        store: store.name().to_owned(),
        backups: entries.len(),
        newest: newest.map(|e| e.name.clone()),
        newest_timestamp: timestamp,
        schedule: timer.schedule.clone(),
        next_run: timer.next,
        last_run,
    }
}

/// What is known of the timer of a tier.
#[derive(Debug, Default)]
struct Timer {
    schedule: Option<String>,
    next: Option<Timestamp>,
    /// How long after a run the next ones are due: the first and the second.
    due: Vec<SignedDuration>,
}

impl Timer {
    /// Whether a run should have ended since `made`: the next one, with time to wait for others, or the second.
    fn missed(&self, made: Timestamp, now: Timestamp) -> bool {
        let [first, second] = self.due.as_slice() else { return false };
        let waited = now.duration_since(made);
        waited > (*first + GRACE).min((*second).max(*first + *first))
    }
}

fn timer(tier: &Tier, manager: Option<&Systemd>, status: &mut Status) -> Result<Timer, Interrupted> {
    let mut timer = Timer { schedule: tier.schedule.clone(), ..Timer::default() };
    let Some(systemd) = manager else { return Ok(timer) };
    let unit = crate::sandbox::timer_of(tier.name.as_str());
    let wanted = ["ActiveState", "TimersCalendar"];
    let shown = match systemd.show(&unit, &wanted) {
        Ok(shown) => shown,
        Err(ProcessError::Interrupted(i)) => return Err(i),
        Err(e) => {
            status.warnings.push(Remark::new(
                format!("nothing is known of {unit}: {}", chain(&e)),
                "systemctl list-timers",
            ));
            return Ok(timer);
        }
    };
    let value = |key: &str| shown.get(key).map(String::as_str).unwrap_or_default();
    if let Some((schedule, next)) = calendar_of(value("TimersCalendar")) {
        timer.next = next;
        timer.schedule.get_or_insert(schedule);
    }
    if value("ActiveState") != "active" {
        let what = format!("nothing makes backups of {} by itself: {unit} does not run", tier.name);
        match &tier.schedule {
            Some(_) => status
                .problems
                .push(Remark::new(what, format!("tars-backup config apply; systemctl enable --now {unit}"))),
            None => status.warnings.push(Remark::new(what, format!("systemctl enable --now {unit}"))),
        }
        return Ok(timer);
    }
    if let Some(schedule) = &timer.schedule {
        // Measured from a moment when it fires, so that the first one is a whole period away.
        let now = status.time;
        match systemd.calendar(schedule, now, 3) {
            Ok(moments) => {
                if let [a, b, c] = moments.as_slice() {
                    timer.due = vec![b.duration_since(*a), c.duration_since(*a)];
                }
            }
            Err(ProcessError::Interrupted(i)) => return Err(i),
            // A schedule that is none is told by `config apply`.
            Err(_) => {}
        }
    }
    Ok(timer)
}

/// The expression in `{ OnCalendar=*-*-* 02:00:00 ; next_elapse=@1763866800 }`, and when that is.
fn calendar_of(text: &str) -> Option<(String, Option<Timestamp>)> {
    let (_, rest) = text.split_once("OnCalendar=")?;
    let (expression, rest) = rest.split_once(" ;")?;
    let next = rest.split_once("next_elapse=").and_then(|(_, at)| unix_time(at.split_whitespace().next()?));
    Some((expression.trim().to_owned(), next))
}

fn spool(setup: &Setup, world: &World<'_>, status: &mut Status) {
    let spool = Spool::new(&setup.agent.spool_dir, setup.agent.spool_limit);
    let unreadable = |e: &SpoolError| Remark { what: world.vault.scrub(&chain(e)), hint: e.hint() };
    status.spool.limit_bytes = spool.limit();
    match spool.bytes() {
        Ok(bytes) => status.spool.bytes = bytes,
        Err(e) => status.problems.push(unreadable(&e)),
    }
    match spool.entries() {
        Err(e) => status.problems.push(unreadable(&e)),
        Ok(entries) => {
            status.spool.backups = entries.len();
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(e) => {
                        status.problems.push(unreadable(&e));
                        continue;
                    }
                };
                for waits in entry.pending() {
                    let why = waits.error.as_ref().map_or_else(String::new, |e| format!(": {e}"));
                    let name = &entry.manifest().backup_name;
                    let what = world.vault.scrub(&format!("{name} waits for {}{why}", waits.store));
                    status.problems.push(Remark::new(what, "tars-backup sync"));
                }
            }
        }
    }
}

/// Units that ended badly. What a run noted itself is told with its reasons, by `run`.
fn units(setup: &Setup, systemd: &Systemd, status: &mut Status) -> Result<(), Interrupted> {
    let tiers = setup.tiers.iter().map(|t| format!("tars-backup@{}.service", t.name));
    for unit in UNITS.iter().map(|u| (*u).to_owned()).chain(tiers) {
        let shown = match systemd.show(&unit, &["ActiveState", "Result", "ExecMainStatus"]) {
            Ok(shown) => shown,
            Err(ProcessError::Interrupted(i)) => return Err(i),
            Err(e) => {
                let what = format!("nothing is known of {unit}: {}", chain(&e));
                status.warnings.push(Remark::new(what, "systemctl status"));
                return Ok(());
            }
        };
        let value = |key: &str| shown.get(key).map(String::as_str).unwrap_or_default();
        let noted = unit.contains('@') || unit == UNITS[0];
        let by_itself = value("Result") == "exit-code" && matches!(value("ExecMainStatus"), "1" | "2");
        if value("ActiveState") == "failed" && !(noted && by_itself) {
            let what = format!("{unit} failed ({}, status {})", value("Result"), value("ExecMainStatus"));
            status.problems.push(Remark::new(what, format!("journalctl -u {unit}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daily_run_is_missed_when_the_next_one_had_time_to_end() {
        let timer = |hours: [i64; 2]| Timer {
            due: hours.map(SignedDuration::from_hours).to_vec(),
            ..Timer::default()
        };
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let made = at("2026-11-20T02:01:00Z");
        let daily = timer([24, 48]);
        assert!(!daily.missed(made, at("2026-11-21T02:30:00Z")));
        assert!(!daily.missed(made, at("2026-11-21T15:00:00Z")));
        assert!(daily.missed(made, at("2026-11-21T15:02:00Z")));
        // More often than the waiting takes: the second one decides.
        let hourly = timer([1, 2]);
        assert!(!hourly.missed(made, at("2026-11-20T03:59:00Z")));
        assert!(hourly.missed(made, at("2026-11-20T04:02:00Z")));
        assert!(!Timer::default().missed(made, at("2027-11-20T02:01:00Z")));
    }

    #[test]
    fn the_schedule_of_a_timer_is_read_from_what_systemd_shows() {
        let shown = "{ OnCalendar=Sun *-*-* 03:00:00 ; next_elapse=@1763866800 }";
        let next = Timestamp::from_second(1_763_866_800).ok();
        assert_eq!(calendar_of(shown), Some(("Sun *-*-* 03:00:00".to_owned(), next)));
        assert_eq!(calendar_of(""), None);
    }
}
