use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

/// Histories per property; there are five.
const HISTORIES: u32 = 4000;

/// `2026-11-02`, which is 02:00 then, or `2026-11-02T13:30`.
fn at(text: &str) -> Timestamp {
    let text = if text.contains('T') { format!("{text}:00Z") } else { format!("{text}T02:00:00Z") };
    text.parse().unwrap()
}

fn complete(time: Timestamp) -> Copy {
    Copy {
        name: BackupName::at(time),
        time: Some(time),
        standing: Standing::Complete,
        whole: BTreeSet::from(["postgres".to_owned()]),
        handpicked: false,
        ours: true,
        verified: true,
        pinned: None,
        suspect: false,
    }
}

fn good(text: &str) -> Copy {
    complete(at(text))
}

fn goods(texts: &[&str]) -> Vec<Copy> {
    texts.iter().map(|t| good(t)).collect()
}

fn partial(text: &str) -> Copy {
    Copy { standing: Standing::Partial, verified: false, whole: BTreeSet::new(), ..good(text) }
}

/// One good copy a day at 02:00, from `first` on.
fn nights(first: &str, days: i64) -> Vec<Copy> {
    (0..days).map(|n| complete(at(first) + SignedDuration::from_hours(24 * n))).collect()
}

fn components() -> Vec<String> {
    ["chromadb", "postgres", "redis"].map(str::to_owned).to_vec()
}

/// A prune by hand on the last day of 2030.
fn pruned(copies: &[Copy], keep: &Keep) -> Plan {
    let now = at("2030-12-31");
    plan(
        copies,
        &Circumstances { now, keep, components: &components(), this_run: None, count_this_run: true },
    )
}

fn kept(plan: &Plan) -> BTreeSet<&str> {
    plan.decisions.iter().filter(|d| d.keep).map(|d| d.name.as_str()).collect()
}

/// Exactly these of `copies` stay.
#[track_caller]
fn stay(copies: &[Copy], keep: Keep, texts: &[&str]) {
    let plan = pruned(copies, &keep);
    let names: Vec<String> = texts.iter().map(|t| BackupName::at(at(t)).to_string()).collect();
    assert_eq!(plan.halted, None);
    assert_eq!(kept(&plan), names.iter().map(String::as_str).collect());
}

fn reasons(plan: &Plan, copy: &Copy) -> String {
    let decision = plan.decisions.iter().find(|d| d.name == copy.name).unwrap();
    let texts: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
    format!("{}: {}", if decision.keep { "keep" } else { "delete" }, texts.join("; "))
}

fn within_days(days: u32) -> Keep {
    Keep { within: Some((0, days)), min: 1, ..Keep::default() }
}

fn within_months(months: u32) -> Keep {
    Keep { within: Some((months, 0)), min: 1, ..Keep::default() }
}

#[test]
fn within_days_counts_from_the_newest_and_its_edge_is_kept() {
    let mut copies = nights("2026-11-01", 10);
    copies.push(good("2026-11-03T01:59"));
    stay(
        &copies,
        within_days(7),
        &[
            "2026-11-03",
            "2026-11-04",
            "2026-11-05",
            "2026-11-06",
            "2026-11-07",
            "2026-11-08",
            "2026-11-09",
            "2026-11-10",
        ],
    );
}

#[test]
fn within_months_goes_by_the_calendar() {
    // A month before 31 March is the end of February, whatever its length.
    stay(
        &goods(&["2026-02-27", "2026-02-28", "2026-03-31"]),
        within_months(1),
        &["2026-02-28", "2026-03-31"],
    );
    stay(
        &goods(&["2028-02-28", "2028-02-29", "2028-03-31"]),
        within_months(1),
        &["2028-02-29", "2028-03-31"],
    );
    stay(
        &goods(&["2026-03-29", "2026-03-30", "2026-04-30"]),
        within_months(1),
        &["2026-03-30", "2026-04-30"],
    );
    stay(
        &goods(&["2025-10-31T01:59", "2025-10-31", "2026-10-31"]),
        within_months(12),
        &["2025-10-31", "2026-10-31"],
    );
    // A year before a leap day.
    stay(
        &goods(&["2027-02-27", "2027-02-28", "2028-02-29"]),
        within_months(12),
        &["2027-02-28", "2028-02-29"],
    );
    // Months first, then days.
    let both = Keep { within: Some((1, 1)), min: 1, ..Keep::default() };
    stay(&goods(&["2026-02-26", "2026-02-27", "2026-03-31"]), both, &["2026-02-27", "2026-03-31"]);
}

#[test]
fn last_counts_copies_and_daily_counts_days() {
    // Summer time ends in Europe on 25 October 2026: in UTC that is a day like any other.
    let copies = goods(&[
        "2026-10-22",
        "2026-10-23",
        "2026-10-24T23:59",
        "2026-10-25T00:00",
        "2026-10-25T00:30",
        "2026-10-25T01:30",
    ]);
    let last = Keep { last: Some(2), min: 1, ..Keep::default() };
    stay(&copies, last, &["2026-10-25T00:30", "2026-10-25T01:30"]);
    let daily = Keep { daily: Some(3), min: 1, ..Keep::default() };
    stay(&copies, daily, &["2026-10-23", "2026-10-24T23:59", "2026-10-25T01:30"]);
    // Days without a backup do not count.
    let gaps = goods(&["2026-01-05", "2026-03-01", "2026-08-30", "2026-10-25"]);
    let daily = Keep { daily: Some(3), min: 1, ..Keep::default() };
    stay(&gaps, daily, &["2026-03-01", "2026-08-30", "2026-10-25"]);
}

#[test]
fn weeks_are_those_of_iso() {
    // 2026 has a week 53, from Monday 28 December to Sunday 3 January.
    let copies = goods(&["2026-12-20", "2026-12-27", "2026-12-28", "2027-01-01", "2027-01-03", "2027-01-04"]);
    let weekly = Keep { weekly: Some(3), min: 1, ..Keep::default() };
    stay(&copies, weekly.clone(), &["2026-12-27", "2027-01-03", "2027-01-04"]);
    let plan = pruned(&copies, &weekly);
    assert_eq!(reasons(&plan, &good("2027-01-03")), "keep: weekly 2026-W53");
    assert_eq!(
        reasons(&plan, &good("2027-01-04")),
        "keep: newest 1 verified; weekly 2027-W01; newest that holds postgres"
    );
    // Monday 30 December 2024 belongs to 2025.
    let copies = goods(&["2024-12-22", "2024-12-29", "2024-12-30", "2025-01-05"]);
    stay(&copies, Keep { weekly: Some(2), min: 1, ..Keep::default() }, &["2024-12-29", "2025-01-05"]);
}

#[test]
fn months_and_years() {
    let copies = goods(&[
        "2024-02-29",
        "2024-12-31T23:59",
        "2025-01-01T00:00",
        "2025-12-31",
        "2026-01-31",
        "2026-02-01",
        "2026-02-28",
    ]);
    let monthly = Keep { monthly: Some(3), min: 1, ..Keep::default() };
    stay(&copies, monthly, &["2025-12-31", "2026-01-31", "2026-02-28"]);
    let yearly = Keep { yearly: Some(3), min: 1, ..Keep::default() };
    stay(&copies, yearly, &["2024-12-31T23:59", "2025-12-31", "2026-02-28"]);
}

#[test]
fn the_oldest_stands_in_until_there_are_enough() {
    let copies = goods(&["2026-09-05", "2026-09-20", "2026-10-20", "2026-11-01", "2026-11-02"]);
    let monthly = Keep { monthly: Some(12), min: 1, ..Keep::default() };
    stay(&copies, monthly.clone(), &["2026-09-05", "2026-09-20", "2026-10-20", "2026-11-02"]);
    let plan = pruned(&copies, &monthly);
    assert_eq!(reasons(&plan, &copies[0]), "keep: oldest: stands in until there are 12 monthly ones");
    assert_eq!(reasons(&plan, &copies[1]), "keep: monthly 2026-09");
    assert_eq!(reasons(&plan, &copies[3]), "delete: older than every rule keeps");
    // One that is chosen anyway stands in for nothing.
    let only = pruned(&copies[4..], &monthly);
    assert_eq!(
        reasons(&only, &copies[4]),
        "keep: newest 1 verified; monthly 2026-11; newest that holds postgres"
    );
    // As many as asked for: it goes.
    let monthly = Keep { monthly: Some(3), min: 1, ..Keep::default() };
    stay(&copies, monthly, &["2026-09-20", "2026-10-20", "2026-11-02"]);
}

#[test]
fn rules_add_up_and_min_holds() {
    let copies = nights("2026-10-01", 40);
    let keep = Keep {
        within: Some((0, 2)),
        last: Some(2),
        weekly: Some(2),
        monthly: Some(2),
        min: 5,
        ..Keep::default()
    };
    // 9 November 2026 is a Monday.
    stay(
        &copies,
        keep,
        &["2026-10-31", "2026-11-05", "2026-11-06", "2026-11-07", "2026-11-08", "2026-11-09"],
    );
    // A `min` of 0 is 1.
    let plan = pruned(&copies, &Keep { daily: Some(1), min: 0, ..Keep::default() });
    assert_eq!(
        reasons(&plan, &copies[39]),
        "keep: newest 1 verified; daily 2026-11-09; newest that holds postgres"
    );
    let all = pruned(&copies, &Keep { forever: true, ..Keep::default() });
    assert_eq!((kept(&all).len(), &all.halted), (40, &None));
    assert_eq!(reasons(&all, &copies[0]), "keep: kept for ever");
}

#[test]
fn an_empty_rule_deletes_nothing() {
    let zeros = Keep {
        within: Some((0, 0)),
        last: Some(0),
        daily: Some(0),
        weekly: Some(0),
        monthly: Some(0),
        yearly: Some(0),
        forever: false,
        min: 2,
    };
    for keep in [Keep { min: 2, ..Keep::default() }, zeros] {
        let plan = pruned(&nights("2026-10-01", 5), &keep);
        assert_eq!(plan.halted, Some(Halt::EmptyRule));
        assert_eq!(kept(&plan).len(), 5);
    }
}

#[test]
fn what_does_not_count_goes_when_it_is_old_and_there_is_better() {
    let mut copies = goods(&["2026-10-20", "2026-11-10"]);
    let handpicked = Copy { handpicked: true, ..good("2026-10-02") };
    let unread = Copy { verified: false, ..good("2026-11-02T12:00") };
    copies.extend([partial("2026-10-01"), handpicked.clone(), unread.clone(), partial("2026-11-05")]);
    let last = Keep { last: Some(1), min: 2, ..Keep::default() };
    let plan = pruned(&copies, &last);
    let said = |text: &str| reasons(&plan, &good(text));
    assert_eq!(said("2026-10-01"), "delete: partial, 40 days older than tars-backup-20261110_020000");
    assert_eq!(said("2026-10-02"), "delete: hand-picked, 39 days older than tars-backup-20261110_020000");
    assert_eq!(
        reasons(&plan, &unread),
        "delete: not verified, 7 days older than tars-backup-20261110_020000"
    );
    assert_eq!(said("2026-11-05"), "keep: within 7 days of the newest good one");
    // The rule's own `within` instead of the 7 days.
    let plan = pruned(&copies, &Keep { within: Some((1, 0)), ..last.clone() });
    assert_eq!(reasons(&plan, &unread), "keep: within 1 month of the newest good one");
    assert!(reasons(&plan, &handpicked).starts_with("delete: hand-picked"));
    // A degraded one is good, but no reason to let a partial one go.
    for copy in &mut copies[..2] {
        copy.standing = Standing::Degraded;
    }
    let plan = pruned(&copies, &last);
    assert_eq!(reasons(&plan, &copies[2]), "keep: no newer complete one is verified here");
}

#[test]
fn what_is_not_understood_or_not_ours_stays() {
    let mut copies = nights("2026-11-01", 5);
    let old = |n: i64| complete(at("2020-01-01") + SignedDuration::from_hours(24 * n));
    let pin =
        |until: &str, reason: &str| Some(Pinned { until: Some(at(until)), reason: Some(reason.to_owned()) });
    let odd = [
        (Copy { ours: false, ..old(0) }, "of another host"),
        (Copy { standing: Standing::Legacy, ..old(1) }, "made by the old script"),
        (Copy { standing: Standing::Damaged, time: None, ..old(2) }, "unreadable manifest"),
        (Copy { time: None, ..old(3) }, "its time is not known"),
        (good("2031-01-01"), "dated in the future"),
        (
            Copy { pinned: pin("2031-01-01", "before\nthe move"), ..old(4) },
            "pinned until 2031-01-01T02:00:00Z: before\\nthe move",
        ),
        (Copy { pinned: Some(Pinned { until: None, reason: None }), ..old(5) }, "pinned"),
        (
            Copy { standing: Standing::Degraded, whole: components().into_iter().collect(), ..old(6) },
            "newest that holds chromadb; newest that holds redis",
        ),
    ];
    copies.extend(odd.iter().map(|(copy, _)| copy.clone()));
    // It is over at the moment that it names.
    let over = Copy { pinned: pin("2030-12-31", ""), ..old(7) };
    copies.push(over.clone());
    let plan = pruned(&copies, &within_days(2));
    for (copy, reason) in &odd {
        assert_eq!(reasons(&plan, copy), format!("keep: {reason}"));
    }
    assert_eq!(reasons(&plan, &over), "delete: older than every rule keeps");
    assert_eq!(kept(&plan).len(), 3 + odd.len());
}

#[test]
fn an_open_anomaly_halts_and_the_plan_still_teaches() {
    let mut copies = nights("2026-11-01", 10);
    copies[4].suspect = true;
    copies[6].suspect = true;
    let plan = pruned(&copies, &within_days(2));
    assert_eq!(plan.halted, Some(Halt::Anomaly(copies[6].name.clone())));
    assert_eq!(kept(&plan).len(), 10);
    assert_eq!(reasons(&plan, &copies[0]), "keep: older than every rule keeps");
    assert_eq!(reasons(&plan, &copies[6]), "keep: an anomaly of it is not accepted");
    // That of another host, or one dated in the future, is not for us to judge.
    copies[4].ours = false;
    copies[6].time = Some(at("2031-01-01"));
    assert_eq!(pruned(&copies, &within_days(2)).halted, None);
}

/// What a machine goes through: runs, each of which prunes.
struct Machine {
    keep: Keep,
    stored: Vec<Copy>,
}

impl Machine {
    fn new(keep: Keep) -> Self {
        Self { keep, stored: Vec::new() }
    }

    fn run(&mut self, made: Copy) -> Plan {
        let now = made.time.unwrap() + SignedDuration::from_mins(10);
        self.run_at(made, now)
    }

    fn run_at(&mut self, made: Copy, now: Timestamp) -> Plan {
        let name = made.name.clone();
        self.stored.push(made);
        let plan = plan(
            &self.stored,
            &Circumstances {
                now,
                keep: &self.keep,
                components: &components(),
                this_run: Some(&name),
                count_this_run: true,
            },
        );
        apply(&mut self.stored, &plan);
        plan
    }

    fn names(&self) -> BTreeSet<&str> {
        self.stored.iter().map(|c| c.name.as_str()).collect()
    }
}

fn apply(copies: &mut Vec<Copy>, plan: &Plan) {
    let gone: BTreeSet<&BackupName> = plan.decisions.iter().filter(|d| !d.keep).map(|d| &d.name).collect();
    copies.retain(|c| !gone.contains(&c.name));
}

#[test]
fn the_first_run_after_forty_days_off_loses_nothing() {
    let mut machine = Machine::new(Keep { min: 3, ..within_days(7) });
    for made in nights("2026-09-01", 10) {
        machine.run(made);
    }
    // The reference is the night before: 7 days back from 9 September, and this run.
    assert_eq!(machine.stored.len(), 9);
    machine.run(good("2026-10-20"));
    // One night more than before has aged, as on any other day; the pause took nothing.
    assert_eq!(machine.stored.len(), 9);
    assert!(machine.names().contains("tars-backup-20260903_020000"));
    machine.run(good("2026-10-21"));
    assert_eq!(
        machine.names(),
        BTreeSet::from([
            "tars-backup-20260910_020000",
            "tars-backup-20261020_020000",
            "tars-backup-20261021_020000",
        ])
    );
}

#[test]
fn forty_failed_nights_leave_the_good_ones() {
    let mut machine = Machine::new(Keep { min: 3, ..within_days(7) });
    for made in nights("2026-09-01", 10) {
        machine.run(made);
    }
    let before: Vec<Copy> = machine.stored.clone();
    for made in nights("2026-09-11", 40) {
        machine.run(Copy { standing: Standing::Partial, whole: BTreeSet::new(), ..made });
    }
    // The first failed night still ages the one of 2 September, as the night before would have; then nothing ages.
    assert!(before[1..].iter().all(|c| machine.stored.contains(c)));
    assert_eq!(machine.stored.len(), 8 + 40);
    // All is well again: the next but one tidies up.
    machine.run(good("2026-10-21"));
    machine.run(good("2026-10-22"));
    let good = machine.stored.iter().filter(|c| c.standing == Standing::Complete);
    assert_eq!(good.map(|c| c.name.as_str()).min(), Some("tars-backup-20260910_020000"));
    assert_eq!(machine.stored.len(), 3 + 7, "partial ones from 14 to 20 October");
}

#[test]
fn a_night_with_a_wrong_clock_makes_nothing_old() {
    let mut machine = Machine::new(Keep { min: 1, ..within_days(7) });
    for made in nights("2026-09-01", 10) {
        machine.run(made);
    }
    machine.run(good("2027-05-05"));
    assert_eq!(machine.stored.len(), 9, "the jump ages nothing by itself");
    // Back again: it is dated in the future and takes part in nothing.
    for made in nights("2026-09-12", 10) {
        machine.run(made);
    }
    assert_eq!(machine.stored.len(), 9 + 1);
    // And backwards: the own copy stays, however old it seems.
    let plan = machine.run_at(good("2020-01-01"), at("2026-09-22"));
    assert_eq!(reasons(&plan, &good("2020-01-01")), "keep: of this run");
}

#[test]
fn a_full_store_counts_without_this_run() {
    let copies = nights("2026-11-01", 5);
    let name = BackupName::at(at("2026-11-06"));
    let keep = Keep { last: Some(3), min: 1, ..Keep::default() };
    let components = components();
    let mut c = Circumstances {
        now: at("2026-11-06T03:00"),
        keep: &keep,
        components: &components,
        this_run: Some(&name),
        count_this_run: false,
    };
    assert_eq!(kept(&plan(&copies, &c)).len(), 3);
    // Should it be there nevertheless, it stays and takes nobody's place.
    let with = [copies.clone(), vec![good("2026-11-06")]].concat();
    assert_eq!(kept(&plan(&with, &c)).len(), 4);
    c.count_this_run = true;
    assert_eq!(kept(&plan(&with, &c)).len(), 3);
    // The first backup of all is no reason to let a partial one go.
    let first = plan(&[partial("2020-01-01"), good("2026-11-06")], &c);
    assert_eq!(first.halted, Some(Halt::NothingGood));
    assert_eq!(reasons(&first, &partial("2020-01-01")), "keep: no good one is here to count its age from");
}

#[test]
fn the_ends_of_time_do_no_harm() {
    let ends = [Timestamp::MIN, Timestamp::UNIX_EPOCH, Timestamp::MAX];
    let copies: Vec<Copy> = (0u8..)
        .zip(ends)
        .map(|(n, time)| Copy { time: Some(time), ..good(&format!("2026-11-0{}", n + 1)) })
        .collect();
    for now in ends {
        for within in [(u32::MAX, u32::MAX), (239_976, 7_304_484), (0, 1), (0, u32::MAX), (u32::MAX, 0)] {
            let n = Some(u32::MAX);
            for n in [None, Some(1), n] {
                let keep = Keep {
                    within: Some(within),
                    last: n,
                    daily: n,
                    weekly: n,
                    monthly: n,
                    yearly: n,
                    forever: false,
                    min: u32::MAX,
                };
                for this_run in copies.iter().map(|c| &c.name) {
                    let (this_run, count_this_run, components) = (Some(this_run), true, &components());
                    let c = Circumstances { now, keep: &keep, components, this_run, count_this_run };
                    assert_eq!(kept(&plan(&copies, &c)).len(), 3);
                }
            }
        }
    }
    assert_eq!(earlier(Timestamp::MAX, u32::MAX, 0), DateTime::MIN);
    assert_eq!(earlier(Timestamp::MIN, 1, 1), DateTime::MIN);
}

/// A random directory, and a random rule.
#[derive(Debug, Clone)]
struct World {
    copies: Vec<Copy>,
    keep: Keep,
    now: Timestamp,
    this_run: Option<BackupName>,
    count_this_run: bool,
}

impl World {
    fn plan(&self) -> Plan {
        let (keep, now, count_this_run) = (&self.keep, self.now, self.count_this_run);
        let (this_run, components) = (self.this_run.as_ref(), &components());
        plan(&self.copies, &Circumstances { now, keep, components, this_run, count_this_run })
    }

    fn gone(&self) -> BTreeSet<BackupName> {
        self.plan().decisions.into_iter().filter(|d| !d.keep).map(|d| d.name).collect()
    }
}

/// Nanoseconds from `now` to the time of a copy: whole days for ties and edges, and all else.
fn distance() -> impl Strategy<Value = i128> {
    const SECOND: i128 = 1_000_000_000;
    const DAY: i128 = 86_400 * SECOND;
    prop_oneof![
        10 => (0i128..40).prop_map(|d| -d * DAY),
        5 => (0i128..1500).prop_map(|d| -d * DAY),
        5 => (0i128..120 * 86_400).prop_map(|s| -s * SECOND),
        1 => -3 * DAY..3 * DAY,
        1 => (1i128..500).prop_map(|d| d * DAY),
        1 => prop::sample::select(vec![i128::MIN / 2, i128::MAX / 2]),
    ]
}

fn copy() -> impl Strategy<Value = Copy> {
    let standing = prop_oneof![
        10 => Just(Standing::Complete),
        4 => Just(Standing::Degraded),
        4 => Just(Standing::Partial),
        1 => Just(Standing::Legacy),
        1 => Just(Standing::Damaged),
    ];
    let whole = prop::collection::btree_set(prop::sample::select(components()), 0..=3);
    let rare = || prop::bool::weighted(0.08);
    let pin = prop::option::weighted(0.1, prop::option::of(distance()));
    (distance(), rare(), standing, whole, (rare(), rare(), rare(), rare()), pin).prop_map(
        |(distance, undated, standing, whole, (handpicked, foreign, unread, suspect), pin)| Copy {
            // Times are distances from the epoch until `placed` moves them to where `now` is.
            time: (!undated).then(|| moved(Timestamp::UNIX_EPOCH, distance)),
            standing,
            whole,
            handpicked,
            ours: !foreign,
            verified: !unread,
            pinned: pin
                .map(|until| Pinned { until: until.map(|d| moved(Timestamp::UNIX_EPOCH, -d)), reason: None }),
            suspect,
            ..good("2026-01-01")
        },
    )
}

fn moved(from: Timestamp, by: i128) -> Timestamp {
    let (min, max) = (Timestamp::MIN.as_nanosecond(), Timestamp::MAX.as_nanosecond());
    Timestamp::from_nanosecond((from.as_nanosecond() + by).clamp(min, max)).unwrap()
}

fn rule() -> impl Strategy<Value = Keep> {
    let within = prop_oneof![
        4 => (Just(0), 1u32..60),
        2 => (1u32..30, Just(0)),
        1 => (0u32..5, 1u32..40),
        1 => Just((u32::MAX, 0)),
    ];
    let count =
        || prop::option::weighted(0.35, prop_oneof![8 => 1u32..6, 1 => Just(1000u32), 1 => Just(0u32)]);
    let counts = (count(), count(), count(), count(), count());
    (prop::option::of(within), counts, prop::bool::weighted(0.02), 0u32..6).prop_map(
        |(within, (last, daily, weekly, monthly, yearly), forever, min)| Keep {
            within,
            last,
            daily,
            weekly,
            monthly,
            yearly,
            forever,
            min,
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    let now = (0i64..12 * 365 * 24).prop_map(|h| at("2020-01-01") + SignedDuration::from_hours(h));
    let copies = prop::collection::vec(copy(), 0..30);
    (copies, rule(), now, 0usize..60, any::<bool>(), prop::bool::weighted(0.9)).prop_map(
        |(mut copies, keep, now, this_run, count_this_run, accepted)| {
            let place = |time: &mut Timestamp| *time = moved(now, time.as_nanosecond());
            for (n, copy) in (0i64..).zip(&mut copies) {
                // The order of names is not that of times.
                copy.name = BackupName::at(at("2026-01-01") + SignedDuration::from_secs(n * 7919 % 1000));
                copy.time.iter_mut().for_each(place);
                copy.pinned.iter_mut().filter_map(|p| p.until.as_mut()).for_each(place);
                copy.suspect &= !accepted;
            }
            let this_run = copies.get(this_run).map(|c| c.name.clone());
            World { copies, keep, now, this_run, count_this_run }
        },
    )
}

/// The rules once more, copy by copy and by other arithmetic.
struct Naive<'a>(&'a World);

impl Naive<'_> {
    fn is_this_run(&self, c: &Copy) -> bool {
        self.0.this_run.as_ref() == Some(&c.name)
    }

    /// Understood, ours, of the past, and believed.
    fn is_fair(&self, c: &Copy) -> bool {
        let known = !matches!(c.standing, Standing::Legacy | Standing::Damaged);
        let absent = self.is_this_run(c) && !self.0.count_this_run;
        known && c.ours && !c.suspect && !absent && c.time.is_some_and(|t| t <= self.0.now)
    }

    fn counts(&self, c: &Copy) -> bool {
        self.is_fair(c) && c.standing != Standing::Partial && !c.handpicked && c.verified
    }

    fn good(&self) -> impl Iterator<Item = &Copy> {
        self.0.copies.iter().filter(|c| self.counts(c))
    }

    fn newer(&self, c: &Copy) -> Vec<&Copy> {
        self.good().filter(|g| (g.time, &g.name) > (c.time, &c.name)).collect()
    }

    fn reference(&self) -> Option<&Copy> {
        self.good().filter(|g| !self.is_this_run(g)).max_by_key(|g| (g.time, &g.name))
    }

    fn rule_is_empty(&self) -> bool {
        let k = &self.0.keep;
        k.within.is_none()
            && !k.forever
            && [k.last, k.daily, k.weekly, k.monthly, k.yearly].iter().all(|n| n.unwrap_or(0) == 0)
    }

    fn is_recent(&self, c: &Copy, within: (u32, u32)) -> bool {
        self.reference().is_none_or(|r| c.time.unwrap().as_nanosecond() >= start(r.time.unwrap(), within))
    }

    fn is_pinned(&self, c: &Copy) -> bool {
        c.pinned.as_ref().is_some_and(|p| p.until.is_none_or(|until| self.0.now < until))
    }

    fn is_newest_holder(&self, c: &Copy, component: &String) -> bool {
        let holds = |c: &Copy| self.is_fair(c) && c.verified && c.whole.contains(component);
        let newer = |o: &Copy| holds(o) && (o.time, &o.name) > (c.time, &c.name);
        holds(c) && !self.0.copies.iter().any(newer)
    }

    fn wants(&self, c: &Copy, wanted: Option<u32>, period: fn(Timestamp) -> String) -> bool {
        let wanted = wanted.unwrap_or(0) as usize;
        let of = |c: &Copy| period(c.time.unwrap());
        let newer: BTreeSet<String> = self.newer(c).into_iter().map(of).collect();
        let all: BTreeSet<String> = self.good().map(of).collect();
        let oldest = self.newer(c).len() + 1 == self.good().count();
        !newer.contains(&of(c)) && newer.len() < wanted || oldest && all.len() < wanted
    }

    fn stays(&self, c: &Copy) -> bool {
        let keep = &self.0.keep;
        if !self.is_fair(c)
            || self.is_this_run(c)
            || self.is_pinned(c)
            || keep.forever
            || components().iter().any(|name| self.is_newest_holder(c, name))
        {
            return true;
        }
        if !self.counts(c) {
            let better = self.newer(c).iter().any(|g| g.standing == Standing::Complete && g.time > c.time);
            return self.is_recent(c, keep.within.unwrap_or((0, 7))) || !better;
        }
        let before = self.newer(c).len();
        before < keep.min.max(1).max(keep.last.unwrap_or(0)) as usize
            || keep.within.is_some_and(|within| self.is_recent(c, within))
            || self.wants(c, keep.daily, |t| day_number(t).to_string())
            || self.wants(c, keep.weekly, |t| (day_number(t) + 3).div_euclid(7).to_string())
            || self.wants(c, keep.monthly, |t| month(t).to_string())
            || self.wants(c, keep.yearly, |t| month(t).div_euclid(12).to_string())
    }
}

const DAY: i128 = 86_400_000_000_000;

/// Days since 1 January 1970, which was a Thursday.
fn day_number(time: Timestamp) -> i128 {
    time.as_nanosecond().div_euclid(DAY)
}

/// Months since January of the year 0, from the text.
fn month(time: Timestamp) -> i128 {
    let text = time.to_string();
    let (date, _) = text.split_once('T').unwrap();
    let (rest, _day) = date.rsplit_once('-').unwrap();
    let (year, month) = rest.rsplit_once('-').unwrap();
    year.parse::<i128>().unwrap() * 12 + month.parse::<i128>().unwrap() - 1
}

/// Day number of the first of a month.
fn first_of(month: i128) -> i128 {
    // Counted from March, so that a leap day is the last of its year.
    let (year, of_year) = ((month - 2).div_euclid(12), (month - 2).rem_euclid(12));
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leaps + [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337][of_year as usize] - 719_468
}

/// Nanosecond that lies `within` before `time`.
fn start(time: Timestamp, (months, days): (u32, u32)) -> i128 {
    let (this, there) = (month(time), month(time) - i128::from(months));
    let day = day_number(time) - first_of(this);
    let day = day.min(first_of(there + 1) - first_of(there) - 1);
    (first_of(there) + day - i128::from(days)) * DAY + time.as_nanosecond().rem_euclid(DAY)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(HISTORIES))]

    #[test]
    fn the_naive_rules_agree(world in world()) {
        let (plan, naive) = (world.plan(), Naive(&world));
        let suspect = |c: &&Copy| c.suspect && c.ours && c.time.is_none_or(|t| t <= world.now);
        let suspects = world.copies.iter().filter(suspect);
        let halted = if naive.rule_is_empty() {
            Some(Halt::EmptyRule)
        } else if let Some(newest) = suspects.max_by_key(|c| (c.time, &c.name)) {
            Some(Halt::Anomaly(newest.name.clone()))
        } else {
            naive.reference().is_none().then_some(Halt::NothingGood)
        };
        prop_assert_eq!(&plan.halted, &halted);
        for c in &world.copies {
            let decision = plan.decisions.iter().find(|d| d.name == c.name).unwrap();
            let said = &decision.reasons;
            let goes = matches!(said.as_slice(), [Reason::Outdated | Reason::Expired { .. }]);
            prop_assert_eq!(decision.keep, halted.is_some() || naive.stays(c), "{:?} {:?}", c, said);
            // In a halted plan the reasons are those that there would be otherwise.
            if naive.reference().is_some() {
                prop_assert_eq!(goes, !naive.stays(c), "{:?} {:?}", c, said);
            }
            prop_assert!(!said.is_empty());
        }
    }

    /// The list of the specification, one by one.
    #[test]
    fn what_is_never_deleted_stays(world in world()) {
        let (plan, gone, naive) = (world.plan(), world.gone(), Naive(&world));
        prop_assert_ne!(&plan.halted, &Some(Halt::NothingLeft));
        prop_assert!(plan.halted.is_none() || gone.is_empty());
        let mut good: Vec<&Copy> = naive.good().collect();
        good.sort_by_key(|c| (c.time, &c.name));
        let newest = good.iter().rev().take(world.keep.min.max(1) as usize);
        prop_assert!(newest.clone().all(|c| !gone.contains(&c.name)), "the newest `min` stay");
        prop_assert!(gone.is_empty() || good.iter().any(|c| !gone.contains(&c.name)), "a good one stays");
        for component in components() {
            let holder = world.copies.iter().find(|c| naive.is_newest_holder(c, &component));
            prop_assert!(holder.is_none_or(|c| !gone.contains(&c.name)), "the last {} stays", component);
        }
        for c in world.copies.iter().filter(|c| gone.contains(&c.name)) {
            let reference = naive.reference().unwrap();
            prop_assert!(c.ours && !c.suspect && !naive.is_pinned(c) && !naive.is_this_run(c));
            prop_assert!(!matches!(c.standing, Standing::Legacy | Standing::Damaged));
            prop_assert!(c.time.is_some_and(|t| t <= world.now), "neither undated nor in the future");
            prop_assert!(c.time <= reference.time, "nothing newer than the reference");
            prop_assert!(!world.keep.forever && !naive.rule_is_empty());
            let recent = |within| naive.is_recent(c, within);
            prop_assert!(!world.keep.within.is_some_and(recent), "nothing within `within`");
            if !naive.counts(c) {
                prop_assert!(world.keep.within.is_some() || !recent((0, 7)));
                prop_assert!(good.iter().any(|g| g.standing == Standing::Complete && g.time > c.time));
            }
        }
    }

    #[test]
    fn a_second_prune_finds_nothing_and_order_is_nothing(
        (world, shuffled) in world().prop_flat_map(|w| {
            let shuffled = Just(w.copies.clone()).prop_shuffle();
            (Just(w), shuffled)
        }),
    ) {
        let plan = world.plan();
        prop_assert_eq!(&World { copies: shuffled, ..world.clone() }.plan(), &plan);
        prop_assert_eq!(plan.decisions.len(), world.copies.len());
        let time = |name: &BackupName| world.copies.iter().find(|c| c.name == *name).unwrap().time;
        prop_assert!(plan.decisions.is_sorted_by_key(|d| (time(&d.name), &d.name)));
        let mut after = world.clone();
        apply(&mut after.copies, &plan);
        prop_assert!(after.gone().is_empty());
    }

    #[test]
    fn now_is_no_reason_and_a_longer_within_deletes_no_more(
        world in world(), months in 0u32..4, days in 0u32..40,
    ) {
        // As far as `now` can go without anything passing into the past, or a pin running out.
        let pins = world.copies.iter().filter_map(|c| c.pinned.as_ref()?.until);
        let moments: Vec<Timestamp> = world.copies.iter().filter_map(|c| c.time).chain(pins).collect();
        let first = moments.iter().copied().filter(|t| *t <= world.now).max().unwrap_or(Timestamp::MIN);
        let next = moments.iter().copied().filter(|t| *t > world.now).min();
        let last = next.map_or(Timestamp::MAX, |t| moved(t, -1));
        for now in [first, last] {
            prop_assert_eq!(World { now, ..world.clone() }.plan(), world.plan());
        }
        if let Some((m, d)) = world.keep.within {
            let within = Some((m.saturating_add(months), d + days));
            let longer = World { keep: Keep { within, ..world.keep.clone() }, ..world.clone() };
            prop_assert!(longer.gone().is_subset(&world.gone()));
        }
    }

    /// Failed runs, foreign ones and a wrong clock take nobody's place.
    #[test]
    fn what_does_not_count_changes_nothing_for_the_others(world in world()) {
        let naive = Naive(&world);
        let mut alone = world.clone();
        alone.copies.retain(|c| c.suspect || naive.is_fair(c) && c.verified);
        let (with, without) = (world.plan(), alone.plan());
        prop_assert_eq!(&with.halted, &without.halted);
        for decision in &without.decisions {
            prop_assert!(with.decisions.contains(decision));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Pruning every night keeps what one prune at the end would have kept.
    #[test]
    fn nightly_pruning_loses_nothing_on_the_way(
        keep in rule(), gaps in prop::collection::vec(prop_oneof![6 => Just(24i64), 1 => 1i64..1200], 1..100),
    ) {
        let (mut machine, mut all, mut time) = (Machine::new(keep.clone()), Vec::new(), at("2026-01-01"));
        for gap in gaps {
            time += SignedDuration::from_hours(gap);
            all.push(complete(time));
            machine.run(complete(time));
        }
        let mut at_once = Machine { keep, stored: all.clone() };
        at_once.stored.pop();
        at_once.run(complete(time));
        prop_assert_eq!(machine.names(), at_once.names());
    }
}
