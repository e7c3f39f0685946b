//! Tables and sentences for people.

use std::io::{self, Write};
use std::time::Duration;

use crate::id::{show_name, show_text};
use crate::manifest::{ComponentState, Manifest};
use crate::marks::{Depth, DrillVerdict};
use crate::ops::apply;
use crate::ops::backup::{Outcome, Preview};
use crate::ops::drill::{self, Proof};
use crate::ops::init::Found;
use crate::ops::list::Row;
use crate::ops::mark;
use crate::ops::prune::{DeedKind, Plot};
use crate::ops::restore::{Fate, RestoreOutcome, RestorePlan};
use crate::ops::status::{Remark, Status};
use crate::ops::sync;
use crate::target::Compared;
use crate::units::{show_bytes, show_duration};

/// Columns as wide as their widest cell; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let pad = width - cell.chars().count();
            line.push_str(cell);
            line.push_str(&" ".repeat(pad + 2));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

pub fn print(text: &str) -> io::Result<()> {
    put(show_text(text).as_bytes())
}

/// Standard output, byte for byte: for what is made for a program and names nothing of a backup.
pub fn put(bytes: &[u8]) -> io::Result<()> {
    match io::stdout().lock().write_all(bytes) {
        // A reader that has seen enough (`| head`) is no failure.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn heading(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// What a new configuration was made of, and what to do next.
pub fn init(found: &Found) -> String {
    let one_line = |text: &str| show_name(text.as_bytes());
    let count = found.containers.len();
    let mut out = format!(
        "Compose project {}: {count} container{}\n\n",
        one_line(&found.project),
        if count == 1 { "" } else { "s" }
    );
    let mut cells = vec![heading(&["SOURCE", "TYPE", "FROM", ""])];
    for source in &found.sources {
        let word = match (source.out_of_use, source.is_on_by_default()) {
            (true, _) => "written out of use",
            (false, false) => "only when asked for",
            (false, true) => "",
        };
        let cell = [source.name.as_str(), source.kind, &one_line(&source.from), word];
        cells.push(cell.map(str::to_owned).to_vec());
    }
    out.push_str(&table(&cells));
    if !found.left_out.is_empty() {
        out.push_str("\nSeen, and not captured:\n");
        for left in &found.left_out {
            out.push_str(&format!("  {}: {}\n", one_line(&left.what), one_line(&left.why)));
        }
    }
    out.push_str(&format!("\nStore {}: {}\n", found.store.name, one_line(&found.store.path)));
    for line in found.store.about() {
        out.push_str(&format!("  {}\n", one_line(&line)));
    }
    out.push_str(&format!("\nWrote {}. Next:\n", one_line(&found.config)));
    for command in &found.next {
        out.push_str(&format!("  {}\n", one_line(command)));
    }
    out
}

pub fn list(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No backups\n".to_owned();
    }
    let mut cells =
        vec![heading(&["BACKUP", "TIME (UTC)", "AGE", "SIZE", "TIER", "STORES", "STATE", "VERIFIED", ""])];
    for r in rows {
        let mut state = r.state.clone();
        if !r.only.is_empty() {
            state.push_str(&format!(", only {}", r.only.join(",")));
        }
        if !r.skip.is_empty() {
            state.push_str(&format!(", without {}", r.skip.join(",")));
        }
        let verified = r.verified.as_ref().map_or_else(
            || "-".to_owned(),
            |v| format!("{}{}", v.time, if v.depth == Depth::Deep { " (deep)" } else { "" }),
        );
        let mut remarks: Vec<String> = r.tags.iter().map(|t| format!("#{t}")).collect();
        if let Some(pin) = &r.pinned {
            remarks
                .push(pin.until.map_or_else(|| "pinned".to_owned(), |until| format!("pinned until {until}")));
        }
        if !r.anomalies.is_empty() {
            let accepted = if r.accepted { " (accepted)" } else { "" };
            remarks.push(format!("anomaly: {}{accepted}", r.anomalies.join(",")));
        }
        if let Some(trash) = &r.trash {
            let since = trash.time.map_or_else(String::new, |t| format!(" since {t}"));
            remarks.push(format!("in the trash{since}: {}", trash.reason));
        }
        if r.latest {
            remarks.insert(0, "latest".to_owned());
        }
        remarks.extend(r.error.clone());
        cells.push(vec![
            r.name.to_string(),
            r.timestamp.clone().unwrap_or_else(|| "-".to_owned()),
            r.age_s.map_or_else(|| "-".to_owned(), |s| show_duration(Duration::from_secs(s))),
            r.bytes.map_or_else(|| "-".to_owned(), show_bytes),
            r.tier.clone(),
            r.stores.join(","),
            state,
            verified,
            remarks.join(" "),
        ]);
    }
    table(&cells)
}

pub fn manifest(m: &Manifest) -> String {
    let mut out = format!(
        "{}\n  made     {} on {} by tars-backup {}, tier {}\n  state    {}\n",
        m.backup_name, m.timestamp, m.host, m.version, m.tier, m.state
    );
    if let (Some(bytes), Some(sha256)) = (m.bytes, &m.sha256) {
        out.push_str(&format!("  archive  {}, SHA-256 {sha256}\n", show_bytes(bytes)));
    }
    for (label, list) in
        [("tags", &m.tags), ("only", &m.only), ("without", &m.skip), ("volumes", &m.docker_volumes)]
    {
        if !list.is_empty() {
            out.push_str(&format!("  {label:<8} {}\n", list.join(", ")));
        }
    }
    out.push('\n');
    let mut cells =
        vec![heading(&["COMPONENT", "TYPE", "STATE", "READ", "STORED", "FILES", "TIME", "MEMBERS"])];
    for (name, c) in &m.details {
        cells.push(vec![
            name.clone(),
            c.kind.clone(),
            component_state(c.state, c.critical).to_owned(),
            show_bytes(c.bytes_in),
            show_bytes(c.bytes_stored),
            c.files.to_string(),
            show_duration(Duration::from_millis(c.duration_ms)),
            c.members.join(" "),
        ]);
    }
    out.push_str(&table(&cells));
    for (name, c) in &m.details {
        for text in c.error.iter().chain(&c.warnings) {
            out.push_str(&format!("  {name}: {}\n", show_name(text.as_bytes())));
        }
    }
    out
}

fn component_state(state: ComponentState, critical: bool) -> &'static str {
    match (state, critical) {
        (ComponentState::Whole, _) => "whole",
        (ComponentState::Incomplete, true) => "INCOMPLETE (critical)",
        (ComponentState::Incomplete, false) => "incomplete",
        (ComponentState::Failed, true) => "FAILED (critical)",
        (ComponentState::Failed, false) => "failed",
    }
}

pub fn preview(p: &Preview) -> String {
    let mut out = format!("Plan for tier {} (nothing was written)\n\n", p.tier);
    let mut cells = vec![heading(&["COMPONENT", "TYPE", "CRITICAL", "ESTIMATE", "METHOD"])];
    for c in &p.components {
        cells.push(vec![
            c.name.clone(),
            c.kind.to_owned(),
            if c.critical { "yes" } else { "no" }.to_owned(),
            c.bytes_in.map_or_else(|| "-".to_owned(), show_bytes),
            c.method.clone(),
        ]);
    }
    out.push_str(&table(&cells));
    out.push('\n');
    let mut cells = vec![heading(&["STORE", "LOCATION", "PATH", "FREE"])];
    for s in &p.stores {
        let free = s.free_bytes.map_or_else(|| "-".to_owned(), show_bytes);
        cells.push(vec![s.name.clone(), s.location.clone(), s.path.clone(), free]);
    }
    out.push_str(&table(&cells));
    for plot in &p.retention {
        let what = match (&plot.halted, plot.deeds.len()) {
            (Some(why), _) => format!("nothing would be deleted: {why}"),
            (None, 0) => "nothing would be deleted".to_owned(),
            (None, n) => format!("{n} would go (tars-backup prune shows which)"),
        };
        out.push_str(&format!("\nRetention in {}: {what}\n", plot.store));
    }
    let failed = p.components.iter().map(|c| (&c.name, &c.error, &c.hint));
    let failed = failed.chain(p.stores.iter().map(|s| (&s.name, &s.error, &s.hint)));
    for (name, error, hint) in failed {
        if let Some(error) = error {
            let hint = hint.as_ref().map_or_else(String::new, |h| format!("\n  hint: {h}"));
            out.push_str(&format!("\nWould fail: {name}: {error}{hint}\n"));
        }
    }
    for pending in &p.pending {
        out.push_str(&format!("\nFirst to be undone: {pending}; or now: tars-backup recover\n"));
    }
    out
}

/// What a restore would replace.
pub fn restore_plan(p: &RestorePlan) -> String {
    let mut out = format!("Restore of {} (made {} on {})\n\n", p.backup, p.made, p.host);
    let mut cells = vec![heading(&["COMPONENT", "REPLACES", "THERE NOW", "COMES"])];
    for l in p.lines.iter().filter(|l| l.problem.is_none()) {
        let cell = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        cells.push(vec![l.component.clone(), cell(&l.target), cell(&l.now), l.then.clone()]);
    }
    if cells.len() > 1 {
        out.push_str(&table(&cells));
    }
    for l in p.lines.iter().filter(|l| !l.files.is_empty()) {
        out.push_str(&format!("\nEverything that is written for {}:\n", l.component));
        out.extend(l.files.iter().map(|file| format!("  {file}\n")));
    }
    for l in &p.lines {
        if let Some(problem) = &l.problem {
            let hint = l.hint.as_ref().map_or_else(String::new, |h| format!("\n  hint: {h}"));
            out.push_str(&format!("\nNot restored: {}: {problem}{hint}\n", l.component));
        }
    }
    if !p.stopped_meanwhile.is_empty() {
        out.push_str(&format!("\nStopped meanwhile: {}\n", p.stopped_meanwhile.join(", ")));
    }
    out.extend(p.warnings.iter().map(|text| format!("\nWarning: {text}\n")));
    out
}

/// The last words of a restore.
pub fn restore_outcome(o: &RestoreOutcome) -> String {
    let restored: Vec<&str> =
        o.components.iter().filter(|c| c.fate == Fate::Restored).map(|c| c.component.as_str()).collect();
    let took = show_duration(Duration::from_millis(o.duration_ms));
    let mut out = match restored.as_slice() {
        [] => format!("{}: nothing was restored ({took})\n", o.backup),
        names => format!("{}: restored {}, {took}\n", o.backup, names.join(", ")),
    };
    if o.interrupted {
        out.push_str("  interrupted: this is what was decided before\n");
    }
    for c in &o.components {
        for text in c.lacking.iter().chain(&c.warnings) {
            out.push_str(&format!("  {}: {text}\n", c.component));
        }
        if let Some(error) = &c.error {
            let after = match c.fate {
                Fate::RolledBack => "; the old data is as it was",
                Fate::Kept => "; it is left as it is",
                Fate::Referenced => "; references lie beside the live files",
                Fate::Restored | Fate::NotRestored | Fate::LeftAlone => "",
            };
            out.push_str(&format!("  {}: {error}{after}\n", c.component));
            out.extend(c.hint.iter().map(|h| format!("    hint: {h}\n")));
        }
    }
    out.extend(o.safety_copy.iter().map(|path| format!("  what was there before: {path}\n")));
    let others = o.left_held.iter().chain(&o.unhealthy).chain(&o.warnings);
    out.extend(others.map(|text| format!("  {text}\n")));
    out
}

/// What a drill proved, and what not. `all`: every number that was compared.
pub fn drill(r: &drill::Report, all: bool) -> String {
    let verdict = match r.verdict {
        DrillVerdict::Good => "good",
        DrillVerdict::Partly => "NOT ALL OF IT WAS DRILLED",
        DrillVerdict::NotDrilled => "NOT DRILLED",
        DrillVerdict::Bad => "BAD",
    };
    let made = r.made.as_ref().map_or_else(String::new, |t| format!(" (made {t})"));
    let mut out = format!("Drill of {}{made} in {}: {verdict}\n", r.backup, r.store);
    let hint = |h: &Option<String>| h.as_ref().map_or_else(String::new, |h| format!("    hint: {h}\n"));
    out.extend(r.reason.iter().map(|why| format!("  {why}\n")));
    out.push_str(&hint(&r.hint));
    for l in &r.components {
        let words = match (l.proof, &l.reason, &l.place) {
            (Proof::Failed, Some(why), _) => format!("FAILED: {why}"),
            (Proof::NotDrilled, Some(why), _) => format!("not drilled: {why}"),
            (_, _, Some(place)) => format!("proved: {place}; {}", compared(&l.compared)),
            (_, _, None) => "proved".to_owned(),
        };
        out.push_str(&format!("  {}: {words}\n", l.component));
        out.push_str(&hint(&l.hint));
        out.extend(l.warnings.iter().map(|w| format!("    {w}\n")));
        for c in l.compared.iter().filter(|_| all) {
            let sign = if c.equal { "" } else { "  DIFFERS" };
            out.push_str(&format!(
                "    {}: {} in the manifest, {} found{sign}\n",
                c.what, c.manifest, c.found
            ));
        }
    }
    let time = |ms: u64| show_duration(Duration::from_millis(ms));
    if let Some(rto) = r.rto_ms {
        let fetched = r.fetch_ms.map_or_else(String::new, |ms| format!(", {} of it to fetch", time(ms)));
        let bytes = r.bytes.map_or_else(String::new, |n| format!(" {}", show_bytes(n)));
        out.push_str(&format!("Time to recover: {}{fetched}{bytes}\n", time(rto)));
    }
    out.extend(r.left.iter().chain(&r.notes).map(|text| format!("  {text}\n")));
    out
}

/// The first few numbers, and how many there are.
fn compared(all: &[Compared]) -> String {
    let shown: Vec<String> = all.iter().take(3).map(|c| format!("{} {}", c.found, c.what)).collect();
    match all.len() {
        0 => "no numbers to compare".to_owned(),
        n if n > shown.len() => {
            format!("{n} numbers as in the manifest: {}, … (all with -v)", shown.join(", "))
        }
        _ => format!("as in the manifest: {}", shown.join(", ")),
    }
}

/// The last words of a run, for a person.
pub fn outcome(o: &Outcome) -> String {
    let took = show_duration(Duration::from_millis(o.duration_ms));
    let committed: Vec<&str> =
        o.stores.iter().filter(|s| s.receipt.is_some()).map(|s| s.store.as_str()).collect();
    let waits: Vec<&str> = o.stores.iter().filter(|s| s.spooled).map(|s| s.store.as_str()).collect();
    let mut out = match (&o.name, o.state, committed.as_slice()) {
        (Some(name), Some(state), [_, ..]) => {
            format!("{name}: {state}, {} in {}, {took}\n", show_bytes(o.bytes), committed.join(", "))
        }
        (Some(name), Some(state), []) if !waits.is_empty() => {
            format!("{name}: {state}, {}, in no store yet, {took}\n", show_bytes(o.bytes))
        }
        _ => format!("No backup was made ({took})\n"),
    };
    let components = o.components.iter().map(|c| (&c.name, &c.failure));
    for (name, failure) in components.chain(o.stores.iter().map(|s| (&s.store, &s.failure))) {
        if let Some(f) = failure {
            out.push_str(&format!("  {name}: {}\n", f.error));
            out.extend(f.hint.iter().map(|h| format!("    hint: {h}\n")));
        }
    }
    if !waits.is_empty() {
        out.push_str(&format!("  it waits in the spool for {}\n", waits.join(", ")));
        out.push_str("    hint: tars-backup sync\n");
    }
    if !o.anomalies.is_empty() {
        let name = o.name.as_ref().map(ToString::to_string).unwrap_or_default();
        out.extend(o.anomalies.iter().map(|a| format!("  anomaly: {a}\n")));
        out.push_str(&format!(
            "    hint: nothing is pruned until somebody has looked; if it is right: tars-backup accept {name}\n"
        ));
    }
    out.push_str(&pruned(&o.pruned));
    if let Some(f) = &o.prune_failure {
        out.push_str(&format!("  nothing was pruned: {}\n", f.error));
        out.extend(f.hint.iter().map(|h| format!("    hint: {h}\n")));
    }
    out.extend(o.left_held.iter().map(|text| format!("  {text}\n")));
    out
}

/// Whether all is well, and what is not.
pub fn status(s: &Status) -> String {
    let age = |seconds: Option<u64>| {
        seconds.map_or_else(|| "-".to_owned(), |s| show_duration(Duration::from_secs(s)))
    };
    let utc =
        |t: Option<jiff::Timestamp>| t.map_or_else(|| "-".to_owned(), |t| t.strftime("%F %T").to_string());
    let name =
        |n: &Option<crate::id::BackupName>| n.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
    let well = if s.healthy { "healthy".to_owned() } else { format!("{} to mend", s.problems.len()) };
    let mut out = format!("{}, {}: {well}\n\n", s.host, s.time.strftime("%F %T UTC"));
    let mut cells = vec![heading(&[
        "COMPONENT",
        "STORE",
        "LAST RESTORABLE (UTC)",
        "AGE",
        "VERIFIED (UTC)",
        "DRILLED (UTC)",
        "BACKUP",
    ])];
    for c in &s.components {
        let verified = c.verified.as_ref().and_then(|v| v.time.parse().ok());
        let drilled = match &c.drilled {
            _ if c.drill_failed => "BAD".to_owned(),
            Some(d) if c.backup.as_ref() != Some(&d.backup) => {
                format!("{} ({})", utc(Some(d.time)), d.backup)
            }
            other => utc(other.as_ref().map(|d| d.time)),
        };
        cells.push(vec![
            c.component.clone(),
            c.store.clone(),
            utc(c.timestamp),
            age(c.age_s),
            utc(verified),
            drilled,
            name(&c.backup),
        ]);
    }
    out.push_str(&table(&cells));
    let mut cells =
        vec![heading(&["TIER", "STORE", "BACKUPS", "NEWEST GOOD ONE", "NEXT RUN (UTC)", "LAST RUN (UTC)"])];
    for t in &s.tiers {
        let last = t
            .last_run
            .as_ref()
            .map_or_else(|| "-".to_owned(), |e| format!("{}, status {}", e.time.strftime("%F %T"), e.status));
        cells.push(vec![
            t.tier.clone(),
            t.store.clone(),
            t.backups.to_string(),
            name(&t.newest),
            utc(t.next_run),
            last,
        ]);
    }
    out.push_str(&format!("\n{}", table(&cells)));
    let spool = &s.spool;
    let waits = match spool.backups {
        0 => "empty".to_owned(),
        n => format!("{n}, {} of {}", show_bytes(spool.bytes), show_bytes(spool.limit_bytes)),
    };
    out.push_str(&format!("\nWaiting in the spool: {waits}\n"));
    for (title, remarks) in [("To mend", &s.problems), ("To know", &s.warnings)] {
        if !remarks.is_empty() {
            out.push_str(&format!("\n{title}:\n"));
            out.extend(remarks.iter().map(remark));
        }
    }
    out
}

fn remark(r: &Remark) -> String {
    let hint = r.hint.as_ref().map_or_else(String::new, |h| format!("    hint: {h}\n"));
    format!("  {}\n{hint}", r.what.replace('\n', "\n    "))
}

/// What systemd was given, or would be.
pub fn applied(plan: &apply::Plan, dry_run: bool) -> String {
    let mut cells = Vec::new();
    for change in plan.files.iter().filter(|c| c.fate != apply::Fate::Same) {
        let word = match (change.fate, dry_run) {
            (apply::Fate::Removed, true) => "would remove",
            (apply::Fate::Removed, false) => "removed",
            (_, true) => "would write",
            (_, false) => "wrote",
        };
        cells.push(vec![word.to_owned(), change.path.display().to_string()]);
    }
    let mut out = table(&cells);
    if cells.is_empty() {
        out.push_str("systemd knows this configuration already\n");
    } else if !plan.running && !dry_run {
        out.push_str("systemd does not run here: it reads this when it starts\n");
    }
    out.extend(plan.notes.iter().map(|n| format!("note: {n}\n")));
    out
}

/// What goes and what stays, and why. `done`: it was to be done; else it is only told.
pub fn prune(plots: &[Plot], done: bool) -> String {
    let mut out = String::new();
    for p in plots {
        out.push_str(&format!("Tier {} in {} ({})\n", p.tier, p.store, p.dir));
        let mut cells = Vec::new();
        for line in &p.decisions {
            let verb = if line.keep { "keep" } else { "trash" };
            cells.push(vec![format!("  {verb}"), line.name.to_string(), line.reasons.join(", ")]);
        }
        for deed in p.deeds.iter().filter(|d| d.what != DeedKind::Trash) {
            cells.push(vec!["  delete".to_owned(), deed.name.to_string(), deed.reason.clone()]);
        }
        out.push_str(&table(&cells));
        match (&p.halted, &p.failure) {
            (_, Some(f)) => {
                out.push_str(&format!("  failed: {}\n", f.error));
                out.extend(f.hint.iter().map(|h| format!("    hint: {h}\n")));
            }
            (Some(why), None) => out.push_str(&format!("  nothing is deleted here: {why}\n")),
            (None, None) => {}
        }
        let (count, total) = (p.done().count(), p.deeds.len());
        match (done, total) {
            (_, 0) => {}
            (true, _) => out.push_str(&format!("  done: {count} of {total}\n")),
            (false, _) => {
                out.push_str(&format!("  {total} would go; to do it: tars-backup prune --confirm\n"))
            }
        }
        out.push('\n');
    }
    if out.is_empty() {
        out.push_str("No tier has a store\n");
    }
    out
}

/// What a run deleted, in one line per store.
fn pruned(plots: &[Plot]) -> String {
    let mut out = String::new();
    for p in plots {
        let count = p.done().count();
        if let Some(f) = &p.failure {
            out.push_str(&format!("  pruning of {} failed: {}\n", p.store, f.error));
            out.extend(f.hint.iter().map(|h| format!("    hint: {h}\n")));
        } else if count > 0 {
            out.push_str(&format!("  pruned {count} in {}\n", p.store));
        }
    }
    out
}

/// Who was told a person's word.
pub fn mark(o: &mark::Outcome) -> String {
    let mut out = String::new();
    if !o.told.is_empty() {
        out.push_str(&format!("{}: done in {}\n", o.name, o.told.join(", ")));
    }
    for n in &o.failed {
        out.push_str(&format!("{}: not in {}: {}\n", o.name, n.store, n.failure.error));
        out.extend(n.failure.hint.iter().map(|h| format!("  hint: {h}\n")));
    }
    out
}

pub fn sync(o: &sync::Outcome) -> String {
    let mut out = String::new();
    for d in &o.deliveries {
        match (&d.receipt, &d.failure) {
            (Some(r), _) => {
                out.push_str(&format!("{} is in {} now ({})\n", d.name, d.store, show_bytes(r.bytes)));
            }
            (None, failure) => {
                let (error, hint) =
                    failure.as_ref().map_or(("", None), |f| (f.error.as_str(), f.hint.as_ref()));
                out.push_str(&format!("{} still waits for {}: {error}\n", d.name, d.store));
                out.extend(hint.iter().map(|h| format!("  hint: {h}\n")));
            }
        }
    }
    for f in &o.unreadable {
        out.push_str(&format!("{}\n", f.error));
        out.extend(f.hint.iter().map(|h| format!("  hint: {h}\n")));
    }
    if out.is_empty() {
        out.push_str("Nothing waits: every store has what it should have\n");
    }
    out
}
