//! Which backups of one directory of one store stay, which may go, and why. Pure: the caller lists, and only the caller
//! deletes. What could go wrong: the last good copy goes because a clock, a failed night or a typo made it look old. So
//! only what is proven good takes part in choosing, ages count from the newest good one and never from today, what is not
//! understood stays, and whoever is in doubt deletes nothing at all.

mod words;

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::DateTime;
use jiff::tz::Offset;
use jiff::{Span, Timestamp};

use crate::config::Keep;
use crate::id::BackupName;

/// Months and days that what does not count is kept for, where the rule has no `within`.
const WITHIN_BY_DEFAULT: (u32, u32) = (0, 7);

/// How much of a backup is there, as its manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Complete,
    Degraded,
    Partial,
    /// Made by the bash script that came before.
    Legacy,
    /// Its manifest does not read.
    Damaged,
}

/// A backup in one directory of one store, as its objects tell. A directory has each name once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub name: BackupName,
    /// Start of its run; None where nobody can tell, then it is kept.
    pub time: Option<Timestamp>,
    pub standing: Standing,
    /// Components that are in it whole.
    pub whole: BTreeSet<String>,
    /// Made with `--only` or `--skip`, or before a restore.
    pub handpicked: bool,
    /// Made by this host.
    pub ours: bool,
    pub verified: bool,
    pub pinned: Option<Pinned>,
    /// An anomaly of it was not accepted.
    pub suspect: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// At this moment the pin is over; None: never.
    pub until: Option<Timestamp>,
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// Only tells what is dated in the future, and which pins are over.
    pub now: Timestamp,
    pub keep: &'a Keep,
    /// The configured ones.
    pub components: &'a [String],
    /// The backup of the run that prunes; None for a prune by hand.
    pub this_run: Option<&'a BackupName>,
    /// False where the store was full and lacks it: then it is no substitute for anything there.
    pub count_this_run: bool,
}

/// What is to happen to all copies of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Oldest first, one per copy; those without a time come before all others.
    pub decisions: Vec<Decision>,
    /// Set: nothing may be deleted, and every decision is to keep.
    pub halted: Option<Halt>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub name: BackupName,
    pub keep: bool,
    /// All that keep it, or the one that lets it go; never empty. In a halted plan also what would have let it go.
    pub reasons: Vec<Reason>,
}

/// Why nothing may be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    EmptyRule,
    /// Nothing that counts was there before this run.
    NothingGood,
    /// Nothing that counts would stay.
    NothingLeft,
    /// The newest one whose anomaly was not accepted.
    Anomaly(BackupName),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Forever,
    ThisRun,
    Min(u32),
    Within {
        months: u32,
        days: u32,
    },
    Last(u32),
    /// The newest one of a day, week, month or year.
    NewestOf {
        rhythm: Rhythm,
        period: String,
    },
    /// The oldest one, while there are fewer periods than asked for.
    StandsIn {
        rhythm: Rhythm,
        wanted: u32,
    },
    NewestWith(String),
    Pinned(Pinned),
    Legacy,
    Foreign,
    Unreadable,
    Undated,
    Future,
    Suspect,
    NoNewerComplete,
    /// There is no reference to count its age from.
    NoReference,
    /// Lets it go: no rule wants it.
    Outdated,
    /// Lets it go: it never counted, it is old, and there is a newer complete one.
    Expired {
        lack: Lack,
        days: i64,
        than: BackupName,
    },
}

/// Why a copy takes no part in choosing, though it is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    Partial,
    Handpicked,
    Unverified,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rhythm {
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// What a copy is to the rules.
enum Class {
    /// Takes part in choosing.
    Counts(Timestamp),
    /// Goes once it is old and there is a better one.
    Lacks(Lack, Timestamp),
    /// Stays, whatever the rules say.
    Stays(Reason),
}

/// A copy that counts.
#[derive(Clone, Copy)]
struct Good<'a> {
    copy: &'a Copy,
    time: Timestamp,
}

/// What keeps each copy. By name, as deletion is: a name that is kept once is kept.
#[derive(Default)]
struct Reasons<'a>(BTreeMap<&'a BackupName, Vec<Reason>>);

impl<'a> Reasons<'a> {
    fn keep(&mut self, copy: &'a Copy, reason: Reason) {
        self.0.entry(&copy.name).or_default().push(reason);
    }
}

/// Decides over every copy in a directory. `copies` must be a whole listing, in any order.
pub fn plan(copies: &[Copy], circumstances: &Circumstances<'_>) -> Plan {
    let mut all: Vec<(&Copy, Class)> = copies.iter().map(|c| (c, circumstances.class(c))).collect();
    all.sort_by_key(|(copy, _)| (copy.time, &copy.name));
    let good: Vec<Good<'_>> = newest_first(&all)
        .filter_map(|(copy, class)| match class {
            Class::Counts(time) => Some(Good { copy, time: *time }),
            Class::Lacks(..) | Class::Stays(_) => None,
        })
        .collect();
    // What this run made cannot make anything old: after a long pause its neighbours are still all that there is.
    let reference = good.iter().find(|g| !circumstances.is_this_run(g.copy)).copied();

    let mut reasons = Reasons::default();
    for (copy, class) in &all {
        keep_for_itself(copy, class, circumstances, &mut reasons);
        if let Class::Lacks(_, time) = class {
            keep_while_needed(copy, *time, circumstances.keep, &good, reference, &mut reasons);
        }
    }
    keep_by_rule(&good, reference, circumstances.keep, &mut reasons);
    keep_components(&all, circumstances.components, &mut reasons);

    let halted = halt(&all, &good, reference, circumstances, &reasons);
    let decide = |(copy, class): &(&Copy, Class)| {
        let kept = reasons.0.get(&copy.name);
        Decision {
            name: copy.name.clone(),
            keep: kept.is_some() || halted.is_some(),
            reasons: kept.cloned().unwrap_or_else(|| vec![why_it_goes(class, reference)]),
        }
    };
    Plan { decisions: all.iter().map(decide).collect(), halted }
}

impl Circumstances<'_> {
    fn is_this_run(&self, copy: &Copy) -> bool {
        self.this_run == Some(&copy.name)
    }

    fn class(&self, copy: &Copy) -> Class {
        Class::Stays(match (copy.standing, copy.time) {
            _ if !copy.ours => Reason::Foreign,
            (Standing::Legacy, _) => Reason::Legacy,
            (Standing::Damaged, _) => Reason::Unreadable,
            (_, None) => Reason::Undated,
            (_, Some(time)) if time > self.now => Reason::Future,
            _ if copy.suspect => Reason::Suspect,
            _ if self.is_this_run(copy) && !self.count_this_run => Reason::ThisRun,
            (Standing::Partial, Some(time)) => return Class::Lacks(Lack::Partial, time),
            (_, Some(time)) if copy.handpicked => return Class::Lacks(Lack::Handpicked, time),
            (_, Some(time)) if !copy.verified => return Class::Lacks(Lack::Unverified, time),
            (Standing::Complete | Standing::Degraded, Some(time)) => return Class::Counts(time),
        })
    }
}

fn newest_first<'l, 'a>(all: &'l [(&'a Copy, Class)]) -> impl Iterator<Item = (&'a Copy, &'l Class)> {
    all.iter().rev().map(|(copy, class)| (*copy, class))
}

/// What lies in the copy itself, whatever else is there.
fn keep_for_itself<'a>(copy: &'a Copy, class: &Class, c: &Circumstances<'_>, reasons: &mut Reasons<'a>) {
    match class {
        Class::Stays(reason) => reasons.keep(copy, reason.clone()),
        _ if c.is_this_run(copy) => reasons.keep(copy, Reason::ThisRun),
        Class::Counts(_) | Class::Lacks(..) => {}
    }
    if let Some(pinned) = copy.pinned.as_ref().filter(|p| p.until.is_none_or(|until| until > c.now)) {
        reasons.keep(copy, Reason::Pinned(pinned.clone()));
    }
    if c.keep.forever {
        reasons.keep(copy, Reason::Forever);
    }
}

/// One that does not count goes only once it is old and a complete one has come since.
fn keep_while_needed<'a>(
    copy: &'a Copy,
    time: Timestamp,
    rule: &Keep,
    good: &[Good<'_>],
    reference: Option<Good<'_>>,
    reasons: &mut Reasons<'a>,
) {
    let (months, days) = within(rule).unwrap_or(WITHIN_BY_DEFAULT);
    match reference {
        None => reasons.keep(copy, Reason::NoReference),
        Some(r) if utc(time) >= earlier(r.time, months, days) => {
            reasons.keep(copy, Reason::Within { months, days });
        }
        Some(_) => {}
    }
    if !good.iter().any(|g| g.copy.standing == Standing::Complete && g.time > time) {
        reasons.keep(copy, Reason::NoNewerComplete);
    }
}

/// Each rule by itself: what any of them wants stays. `good` has the newest first.
fn keep_by_rule<'a>(good: &[Good<'a>], reference: Option<Good<'a>>, rule: &Keep, reasons: &mut Reasons<'a>) {
    let min = rule.min.max(1);
    for g in good.iter().take(size(min)) {
        reasons.keep(g.copy, Reason::Min(min));
    }
    if let (Some(reference), Some((months, days))) = (reference, within(rule)) {
        let start = earlier(reference.time, months, days);
        for g in good.iter().filter(|g| utc(g.time) >= start) {
            reasons.keep(g.copy, Reason::Within { months, days });
        }
    }
    if let Some(last) = asked(rule.last) {
        for g in good.iter().take(size(last)) {
            reasons.keep(g.copy, Reason::Last(last));
        }
    }
    for (rhythm, wanted) in [
        (Rhythm::Daily, rule.daily),
        (Rhythm::Weekly, rule.weekly),
        (Rhythm::Monthly, rule.monthly),
        (Rhythm::Yearly, rule.yearly),
    ] {
        let Some(wanted) = asked(wanted) else { continue };
        let mut newest: Vec<(String, Good<'a>)> = good.iter().map(|g| (rhythm.period(g.time), *g)).collect();
        newest.dedup_by(|next, first| next.0 == first.0);
        // While there are too few periods the oldest one of all stays too: nothing else reaches back as far.
        let chosen = newest.last().map(|(_, g)| &g.copy.name);
        if newest.len() < size(wanted)
            && let Some(oldest) = good.last().filter(|g| chosen != Some(&g.copy.name))
        {
            reasons.keep(oldest.copy, Reason::StandsIn { rhythm, wanted });
        }
        for (period, g) in newest.into_iter().take(size(wanted)) {
            reasons.keep(g.copy, Reason::NewestOf { rhythm, period });
        }
    }
}

/// While a component fails night after night, its last good copy lies in a backup that no rule wants any more, or in one
/// that never counted.
fn keep_components<'a>(all: &[(&'a Copy, Class)], components: &[String], reasons: &mut Reasons<'a>) {
    for component in components {
        let holds = |(copy, class): &(&Copy, &Class)| {
            copy.verified && !matches!(class, Class::Stays(_)) && copy.whole.contains(component)
        };
        if let Some((copy, _)) = newest_first(all).find(holds) {
            reasons.keep(copy, Reason::NewestWith(component.clone()));
        }
    }
}

/// What an operator can mend comes first.
fn halt(
    all: &[(&Copy, Class)],
    good: &[Good<'_>],
    reference: Option<Good<'_>>,
    c: &Circumstances<'_>,
    reasons: &Reasons<'_>,
) -> Option<Halt> {
    if is_empty(c.keep) {
        return Some(Halt::EmptyRule);
    }
    let suspect = |copy: &&Copy| copy.suspect && copy.ours && copy.time.is_none_or(|time| time <= c.now);
    if let Some(copy) = newest_first(all).map(|(copy, _)| copy).find(suspect) {
        return Some(Halt::Anomaly(copy.name.clone()));
    }
    if reference.is_none() {
        return Some(Halt::NothingGood);
    }
    // `min` is at least 1, so this cannot be; should it ever be, nobody is left to ask.
    let left = good.iter().any(|g| reasons.0.contains_key(&g.copy.name));
    (!left).then_some(Halt::NothingLeft)
}

fn why_it_goes(class: &Class, reference: Option<Good<'_>>) -> Reason {
    match (class, reference) {
        (Class::Lacks(lack, time), Some(r)) => Reason::Expired {
            lack: *lack,
            days: r.time.duration_since(*time).as_hours() / 24,
            than: r.copy.name.clone(),
        },
        _ => Reason::Outdated,
    }
}

/// A rule of 0 is none: it could only mean to delete everything.
fn asked(n: Option<u32>) -> Option<u32> {
    n.filter(|n| *n > 0)
}

fn within(rule: &Keep) -> Option<(u32, u32)> {
    rule.within.filter(|length| *length != (0, 0))
}

fn is_empty(rule: &Keep) -> bool {
    let counts = [rule.last, rule.daily, rule.weekly, rule.monthly, rule.yearly];
    !rule.forever && within(rule).is_none() && counts.into_iter().all(|n| asked(n).is_none())
}

fn size(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn utc(time: Timestamp) -> DateTime {
    Offset::UTC.to_datetime(time)
}

/// Calendar months first, then days: a month before 31 March is the last day of February. What is too long for a
/// calendar reaches back to its beginning.
fn earlier(time: Timestamp, months: u32, days: u32) -> DateTime {
    let length = Span::new().try_months(months).and_then(|span| span.try_days(days));
    length.map_or(DateTime::MIN, |length| utc(time).saturating_sub(length))
}

impl Rhythm {
    /// Name of the day, ISO week, month or year in UTC.
    fn period(self, time: Timestamp) -> String {
        let day = utc(time).date();
        match self {
            Self::Daily => day.to_string(),
            Self::Weekly => {
                let week = day.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Self::Monthly => format!("{:04}-{:02}", day.year(), day.month()),
            Self::Yearly => format!("{:04}", day.year()),
        }
    }
}

#[cfg(test)]
mod tests;
