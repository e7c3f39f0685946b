//! What the rules let go is deleted, and nothing else, whatever happens meanwhile: from outside, with backups of dates that
//! a person can check. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::path::Path;

use jiff::{SignedDuration, Timestamp, ToSpan, tz::TimeZone};
use proxy::{Act, Proxy};
use serde_json::Value;
use servers::{BUCKET, KEY, KEY_ID, S3Server, S3sFs};
use support::{Home, sh};
use tars_backup::id::BackupName;
use tars_backup::manifest::{Manifest, State};

/// A tier `hot` with this rule, and one backup in it, made now.
fn home(rule: &str) -> Home {
    let home = Home::new().documents().extra(&format!("[tiers.hot.keep]\n{rule}")).ready();
    home.backup(0);
    home
}

/// A home `home-1` with a store `s3` behind `endpoint`, and more configuration.
fn s3_home(endpoint: &str, more: &str) -> Home {
    let home = Home::new().documents();
    for (name, value) in [("key-id", KEY_ID), ("secret", KEY)] {
        std::fs::write(home.path(name), value).unwrap();
    }
    let (id, key, root) = (home.at("key-id"), home.at("secret"), home.root().display().to_string());
    let home = home
        .extra(&format!(
            "[agent]\nhost = \"home-1\"\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n\
             [stores.s3]\ntype = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"{endpoint}\"\nregion = \"us-east-1\"\n\
             key_id = {{ file = \"{id}\" }}\nkey = {{ file = \"{key}\" }}\n{more}"
        ))
        .ready();
    home.tars(&["store", "init", "s3"]).expect(0);
    home
}

fn days_ago(days: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(24 * days)
}

/// A backup as if it had been made at `time`, by the likeness of the newest one in `from`; returns its name.
fn fabricate(
    from: &Path,
    to: &Path,
    time: Timestamp,
    verified: bool,
    edit: impl Fn(&mut Manifest),
) -> String {
    let newest = sh(&format!("cd '{}'; ls *.manifest.json | tail -1", from.display()));
    let like = newest.trim().strip_suffix(".manifest.json").unwrap();
    let mut manifest =
        Manifest::read_sidecar(&std::fs::read(from.join(format!("{like}.manifest.json"))).unwrap()).unwrap();
    let name = BackupName::at(time);
    manifest.backup_name = name.clone();
    manifest.timestamp = time.strftime("%FT%TZ").to_string();
    edit(&mut manifest);
    let (bytes, sha256) = (manifest.bytes.unwrap(), manifest.sha256.clone().unwrap());
    std::fs::create_dir_all(to).unwrap();
    let archive = name.archive();
    std::fs::copy(from.join(format!("{like}.tar.gz")), to.join(&archive)).unwrap();
    std::fs::write(to.join(format!("{archive}.sha256")), format!("{sha256}  {archive}\n")).unwrap();
    if verified {
        let mark =
            format!("{{\"time\":\"{}\",\"depth\":\"digest\",\"sha256\":\"{sha256}\"}}\n", manifest.timestamp);
        std::fs::write(to.join(name.beside("verified")), mark).unwrap();
    }
    std::fs::write(to.join(name.manifest_file()), manifest.to_sidecar(bytes, &sha256).unwrap()).unwrap();
    name.to_string()
}

/// Good ones, `days` days before now.
fn good(home: &Home, days: impl IntoIterator<Item = i64>) -> Vec<String> {
    let dir = home.path("store/daily");
    days.into_iter().map(|d| fabricate(&dir, &dir, days_ago(d), true, |_| ())).collect()
}

fn listed(home: &Home, more: &[&str]) -> Vec<String> {
    let rows = home.tars(&[&["list", "--json"], more].concat()).expect(0).json();
    rows.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
}

fn plots(home: &Home, more: &[&str], code: i32) -> Value {
    home.tars(&[&["prune", "--json"], more].concat()).expect(code).json()
}

/// Nothing is visible that lacks its archive.
fn all_good(home: &Home) {
    home.tars(&["verify", "--all"]).expect(0);
}

#[test]
fn what_no_rule_wants_goes_into_the_trash_and_comes_back_whole() {
    let home = home("within = \"7d\"");
    let old = good(&home, [20, 19, 6]);
    let newest = home.committed().pop().unwrap();

    let told = home.tars(&["prune"]).expect(0).says("older than every rule keeps").says("--confirm");
    assert!(
        told.stdout.contains("within 7 days") && told.stdout.contains("newest 3 verified"),
        "{}",
        told.stdout
    );
    assert_eq!(listed(&home, &[]).len(), 4, "nothing is deleted without --confirm");

    home.tars(&["prune", "--confirm"]).expect(0);
    let left = listed(&home, &[]);
    assert_eq!(left, [old[1].clone(), old[2].clone(), newest.clone()], "the newest three stay");
    assert_eq!(listed(&home, &["--trash"]), [old[0].clone()]);
    home.tars(&["verify", &old[0]]).expect(1).says("is in no store");
    home.tars(&["pin", &old[0]]).expect(1).says("undelete");

    home.tars(&["undelete", &old[0]]).expect(0);
    assert_eq!(listed(&home, &[]).len(), 4);
    all_good(&home);
    home.tars(&["undelete", &old[0]]).expect(1).says("in no trash");

    // Out of the trash for ever when its time is over.
    home.tars(&["prune", "--confirm"]).expect(0);
    home.tars(&["prune", "--confirm"]).expect(0);
    assert_eq!(listed(&home, &["--trash"]).len(), 1, "one day is not over");
    let mark = home.path(&format!("store/daily/{}.trash", old[0]));
    let then = days_ago(2);
    std::fs::write(&mark, format!("{{\"time\":\"{then}\",\"reason\":\"old\"}}")).unwrap();
    home.tars(&["prune", "--confirm"]).expect(0);
    assert_eq!(sh(&format!("ls '{}' | grep -c '{}' || true", home.at("store/daily"), old[0])), "0\n");
    home.tars(&["undelete", &old[0]]).expect(1).says("is in no store");
}

/// A tier for each rule, all in `store`.
fn four_tiers(store: &str) -> String {
    let tier = |name: &str, path: &str, keep: &str| {
        format!(
            "[tiers.{name}]\nstores = [\"{store}\"]\npath = \"{path}\"\ntrash_days = 0\nkeep = {{ {keep} }}\n"
        )
    };
    tier("days", "days", "within = \"7d\"")
        + &tier("warm", "weekly", "within = \"4 weeks\"")
        + &tier("cold", "monthly", "monthly = 12, yearly = 5")
        + &tier("archive", "yearly", "forever = true")
}

/// 400 days in each of them, up to 1 December 2025, a Monday; pruned, and looked at.
fn four_hundred_days(home: &Home, root: &Path) {
    home.backup(0);
    let (from, x) = (home.path("store/daily"), root.join("x"));
    let newest: Timestamp = "2025-12-01T02:00:00Z".parse().unwrap();
    for days in 0..400 {
        fabricate(&from, &x, newest - SignedDuration::from_hours(24 * days), true, |_| ());
    }
    for tier in ["days", "weekly", "monthly", "yearly"] {
        sh(&format!("cp -al '{0}/x' '{0}/{tier}'", root.display()));
    }
    home.tars(&["prune", "--confirm"]).expect(0);
    let of = |tier: &str| listed(home, &["--tier", tier]);
    // 24 November to 1 December; the first day of four weeks is 3 November.
    assert_eq!(of("days").len(), 8);
    assert_eq!((of("warm").len(), of("warm")[0].as_str()), (29, "tars-backup-20251103_020000"));
    // The last of each month from January to November 2025, and 1 December; then 31 December 2024, which is the
    // newest of its year, and the oldest of all, 28 October 2024, because there are no five years yet; and 29 November,
    // the third of the newest three.
    let cold = of("cold");
    let days: Vec<&str> = cold.iter().map(|n| &n[12..20]).collect();
    let wanted = [
        "20241028", "20241231", "20250131", "20250228", "20250331", "20250430", "20250531", "20250630",
        "20250731", "20250831", "20250930", "20251031", "20251129", "20251130", "20251201",
    ];
    assert_eq!(days, wanted);
    assert_eq!(of("archive").len(), 400);
    home.tars(&["prune", "--confirm"]).expect(0);
    assert_eq!(of("cold"), cold, "a second time there is nothing to do");
}

#[test]
fn four_hundred_days_in_four_tiers_of_a_directory() {
    let home = Home::new().documents().extra(&four_tiers("nas")).ready();
    four_hundred_days(&home, &home.path("store"));
    all_good(&home);
}

#[test]
fn four_hundred_days_in_four_tiers_of_a_bucket() {
    let server = S3sFs::start();
    let home = s3_home(&server.endpoint(), &four_tiers("s3"));
    four_hundred_days(&home, &server.bucket().join("hosts/home-1"));
}

#[test]
fn after_a_long_pause_the_first_run_loses_nothing() {
    let home = home("within = \"7d\"\nmin = 1");
    let first = home.only();
    let old = good(&home, 40..=47);
    sh(&format!("rm '{}'/{first}.*", home.at("store/daily")));
    home.backup(0);
    assert_eq!(listed(&home, &[]).len(), 9);
    assert_eq!(listed(&home, &["--trash"]).len(), 0);
    // The next one has a good one of today to count from.
    sh("sleep 1.1");
    home.backup(0);
    assert_eq!(listed(&home, &["--trash"]), old.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(listed(&home, &[]).len(), 2);
}

#[test]
fn forty_failed_nights_push_no_good_one_out() {
    let home = home("within = \"7d\"\nlast = 2\nmin = 1");
    let first = home.only();
    let dir = home.path("store/daily");
    let old = good(&home, [41, 42]);
    for days in 1..=40 {
        let an_hour_before = days_ago(days) - SignedDuration::from_hours(1);
        fabricate(&dir, &dir, an_hour_before, true, |m| m.state = State::Partial);
    }
    sh(&format!("rm '{}'/{first}.*", dir.display()));
    let told = plots(&home, &["--confirm"], 0);
    assert_eq!(told[0]["deeds"].as_array().unwrap().len(), 0, "{told}");
    for name in &old {
        assert!(listed(&home, &[]).contains(name));
    }
    // A partial run deletes nothing; a good one lets the partial ones go that are older than a week.
    home.backup(0);
    sh("sleep 1.1");
    home.backup(0);
    let left = listed(&home, &[]);
    assert_eq!(left.len(), 6 + 2, "{left:?}");
}

#[test]
fn killed_at_any_step_of_a_deletion_nothing_visible_lacks_its_archive() {
    let home = home("within = \"7d\"\nmin = 1");
    good(&home, [30, 31, 32]);
    let text = std::fs::read_to_string(home.path("config.toml")).unwrap();
    let text = text.replace("path = \"daily\"\n", "path = \"daily\"\ntrash_days = 0\n");
    std::fs::write(home.path("config.toml"), text).unwrap();
    let (program, config) = (support::PROGRAM, home.at("config.toml"));
    let mut killed = 0;
    for step in 1..60 {
        for call in ["unlink,unlinkat", "rename,renameat,renameat2"] {
            let line = format!(
                "strace -qqf -o /dev/null -e trace={call} -e inject={call}:signal=KILL:when={step} \
                 '{program}' --config '{config}' prune --confirm >/dev/null 2>&1 || true"
            );
            sh(&line);
            killed += 1;
            all_good(&home);
        }
        // One by one they go: what is deleted is deleted for ever, and never half.
        let newest = home.committed().pop().unwrap();
        if sh(&format!("ls '{}' | grep -v '{newest}' || true", home.at("store/daily"))).is_empty() {
            break;
        }
    }
    assert!(killed > 6, "{killed}");
    home.tars(&["prune", "--confirm"]).expect(0);
    assert_eq!(listed(&home, &[]).len(), 1);
    // Half-written marks are nothing to anybody.
    let rest = sh(&format!("ls '{}' | grep -v '{}' || true", home.at("store/daily"), home.only()));
    assert_eq!(rest, "", "every object of what was deleted is gone");
}

#[test]
fn a_pin_keeps_until_its_day_and_is_read_again() {
    let home = home("within = \"7d\"\nmin = 1");
    let old = good(&home, [30, 31, 32, 33]);
    home.tars(&["pin", &old[0], "--reason", "the audit of May"]).expect(0);
    home.tars(&["pin", &old[1], "--until", "2020-01-01"]).expect(0);
    // Not tomorrow: that may be today when it is looked at.
    let later = (Timestamp::now().to_zoned(TimeZone::UTC).date() + 2.days()).to_string();
    home.tars(&["pin", &old[2], "--until", &later]).expect(0);
    home.tars(&["pin", &old[3], "--until", "soon"]).expect(64).says("a day such as");
    home.tars(&["pin", "tars-backup-20200101_000000"]).expect(1).says("is in no store");
    home.tars(&["list"]).expect(0).says("pinned until");
    home.tars(&["prune", "--confirm"]).expect(0).says("pinned: the audit of May");
    let left = listed(&home, &[]);
    assert!(left.contains(&old[0]) && left.contains(&old[2]) && left.len() == 3, "{left:?}");
    // One that does not read pins all the same.
    std::fs::write(home.path(&format!("store/daily/{}.pin", old[0])), "{").unwrap();
    home.tars(&["prune", "--confirm"]).expect(0);
    assert!(listed(&home, &[]).contains(&old[0]));
    home.tars(&["unpin", &old[0]]).expect(0);
    home.tars(&["prune", "--confirm"]).expect(0);
    assert!(!listed(&home, &[]).contains(&old[0]));
    // With the run that makes it.
    sh("sleep 1.1");
    let made = home.tars(&["backup", "--pin", "--until", &later, "--json"]).expect(0).json();
    let made = made["name"].as_str().unwrap();
    assert!(home.path(&format!("store/daily/{made}.pin")).exists());
}

#[test]
fn a_pin_that_a_store_has_not_taken_stops_pruning_there() {
    let home = Home::new().documents().second_store();
    let home = home.extra("[tiers.both.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let (nas, second) = (home.path("store/both"), home.path("second/both"));
    let name = fabricate(&nas, &nas, days_ago(30), true, |_| ());
    sh(&format!("cp -a '{}'/{name}* '{}'", nas.display(), second.display()));
    // The disk of the second store is away.
    sh(&format!("mv '{0}' '{0}.away'", home.at("second")));
    home.tars(&["pin", &name]).expect(2).says("second");
    sh(&format!("mv '{0}.away' '{0}'", home.at("second")));
    let told = plots(&home, &["--confirm", "--tier", "both"], 0);
    let of = |store: &str| told.as_array().unwrap().iter().find(|p| p["store"] == store).unwrap().clone();
    assert!(of("second")["halted"].as_str().unwrap().contains("not yet written"), "{told}");
    assert_eq!(of("nas")["halted"], Value::Null);
    assert!(second.join(format!("{name}.manifest.json")).exists());
    home.tars(&["sync"]).expect(0);
    assert!(second.join(format!("{name}.pin")).exists());
    let told = plots(&home, &["--tier", "both"], 0);
    assert_eq!(told[1]["halted"], Value::Null, "{told}");
}

#[test]
fn a_component_that_shrank_is_an_anomaly_until_it_is_accepted() {
    let home = Home::new().documents();
    let logs = home.at("logs");
    let home = home
        .source("logs", &format!("type = \"directory\"\npath = \"{logs}\"\nanomaly = false"))
        .extra("[tiers.hot.keep]\nwithin = \"7d\"\nmin = 1");
    sh(&format!("mkdir '{logs}'; head -c 200000 /dev/urandom | tee '{logs}/a' > '{}'", home.at("docs/big")));
    let home = home.ready();
    home.backup(0);
    let whole = home.only();
    let old = good(&home, [30]);
    sh(&format!("head -c 20000 /dev/urandom | tee '{logs}/a' > '{}'; sleep 1.1", home.at("docs/big")));

    let outcome = home.tars(&["backup"]).expect(2).says("anomaly: documents").says("tars-backup accept");
    assert!(!outcome.stderr.contains("anomaly: logs"), "{}", outcome.stderr);
    let small = home.committed().pop().unwrap();
    home.tars(&["list"]).expect(0).says("anomaly: documents");
    assert!(listed(&home, &[]).contains(&old[0]), "the old ones stay");
    home.tars(&["prune", "--confirm"]).expect(0).says("is not accepted");
    assert!(listed(&home, &[]).contains(&old[0]));

    // The next night says it again: what is compared with is still the whole one.
    sh("sleep 1.1");
    home.tars(&["backup"]).expect(2).says("anomaly: documents");
    let second = home.committed().pop().unwrap();
    home.tars(&["accept", &whole]).expect(1).says("no anomaly");
    home.tars(&["accept", &small]).expect(0);
    home.tars(&["accept", &second]).expect(0);
    sh("sleep 1.1");
    home.backup(0);
    assert!(!listed(&home, &[]).contains(&old[0]), "now the rules are followed");
}

/// With no store in reach there is no backup to compare with, and what was made meanwhile would be the measure of the next.
#[test]
fn what_shrank_while_the_store_was_away_is_an_anomaly_too() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let home = s3_home(&proxy.endpoint(), "[tiers.away]\nstores = [\"s3\"]\npath = \"away\"");
    let backup = |code| {
        sh("sleep 1.1");
        home.tars(&["backup", "--tier", "away", "--json"]).expect(code)
    };
    sh(&format!("head -c 200000 /dev/urandom > '{}'", home.at("docs/big")));
    backup(0);
    std::fs::remove_file(home.path("docs/big")).unwrap();
    proxy.on(|_| Act::error(403, "AccessDenied"));
    backup(1).says("anomaly: documents");
    backup(1).says("anomaly: documents");
    proxy.on(|_| Act::Pass);
    home.tars(&["sync"]).expect(0);
    backup(2).says("anomaly: documents");
    for name in listed(&home, &["--tier", "away"]).into_iter().skip(1) {
        home.tars(&["accept", &name]).expect(0);
    }
    backup(0);
}

#[test]
fn a_backup_of_the_future_is_no_measure() {
    let home = Home::new().documents().extra("[tiers.hot.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.backup(0);
    let dir = home.path("store/daily");
    fabricate(&dir, &dir, days_ago(-400), true, |_| ());
    sh(&format!("head -c 200000 /dev/urandom > '{}'; sleep 1.1", home.at("docs/big")));
    home.backup(0);
    sh(&format!("rm '{}'; sleep 1.1", home.at("docs/big")));
    home.tars(&["backup"]).expect(2).says("anomaly: documents");
}

/// A pin that is still to be written outlives what becomes of the store in the configuration, and what waits for another.
#[test]
fn a_pin_that_is_to_be_written_is_never_forgotten() {
    let home = Home::new().documents().second_store();
    let home = home.extra("[tiers.both.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let (nas, second) = (home.path("store/both"), home.path("second/both"));
    let away = |store: &str| sh(&format!("mv '{0}' '{0}.away'", home.at(store)));
    let back = |store: &str| sh(&format!("mv '{0}.away' '{0}'", home.at(store)));
    // One that waits for the first store, and lies in the second.
    away("store");
    sh("sleep 1.1");
    let waits = home.tars(&["backup", "--tier", "both", "--json"]).expect(2).json()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    back("store");
    away("second");
    home.tars(&["pin", &waits]).expect(1).says("second");
    // The second store is taken out of the configuration, and comes back.
    let text = std::fs::read_to_string(home.path("config.toml")).unwrap();
    let (head, tail) = text.split_once("[stores.second]").unwrap();
    let (_, tail) = tail.split_once("\n[").unwrap_or(("", ""));
    let without = format!("{head}[{tail}").replace(", \"second\"", "").replace("\"second\", ", "");
    std::fs::write(home.path("config.toml"), without).unwrap();
    home.tars(&["sync"]);
    std::fs::write(home.path("config.toml"), text).unwrap();
    back("second");
    let old = fabricate(&nas, &second, days_ago(30), true, |_| ());
    let told = plots(&home, &["--confirm", "--tier", "both"], 0);
    let of = |store: &str| told.as_array().unwrap().iter().find(|p| p["store"] == store).unwrap().clone();
    assert!(of("second")["halted"].as_str().unwrap_or_default().contains(&waits), "{told}");
    assert!(second.join(format!("{old}.manifest.json")).exists());
    home.tars(&["sync"]).expect(0);
    assert!(second.join(format!("{waits}.pin")).exists());
}

#[test]
fn a_pin_waits_for_its_store_also_while_the_backup_waits_for_another() {
    let home = Home::new().documents().second_store();
    let home = home.extra("[tiers.both.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    sh(&format!("mv '{0}' '{0}.away'; sleep 1.1", home.at("store")));
    let waits = home.tars(&["backup", "--tier", "both", "--json"]).expect(2).json()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    sh(&format!("mv '{0}' '{0}.away'", home.at("second")));
    home.tars(&["pin", &waits]).expect(1);
    sh(&format!("mv '{0}.away' '{0}'", home.at("second")));
    let told = plots(&home, &["--tier", "both", "--store", "second"], 0);
    assert!(told[0]["halted"].as_str().unwrap_or_default().contains(&waits), "{told}");
}

/// A disk check, a rule of a bucket or a hand took the manifest: what was stored whole is no rest of a broken upload.
#[test]
fn what_only_lost_its_manifest_is_not_swept() {
    let home = home("within = \"7d\"\nmin = 1");
    let dir = home.path("store/daily");
    let [whole, never] = [30, 31].map(|d| fabricate(&dir, &dir, days_ago(d), d == 30, |_| ()));
    for name in [&whole, &never] {
        std::fs::remove_file(dir.join(format!("{name}.manifest.json"))).unwrap();
    }
    let told = home.tars(&["prune", "--confirm"]).expect(0);
    told.says(&whole).says("its manifest is gone");
    assert!(dir.join(format!("{whole}.tar.gz")).exists());
    assert!(!dir.join(format!("{never}.tar.gz")).exists(), "that was never committed");
}

/// What is in the trash counts nowhere; but what is found bad meanwhile may be what it was let go for.
#[test]
fn what_is_needed_by_now_is_not_deleted_out_of_the_trash() {
    let home = home("within = \"7d\"\nmin = 3");
    let dir = home.path("store/daily");
    let names = good(&home, [30, 31, 32]);
    home.tars(&["prune", "--confirm"]).expect(0);
    let oldest = &names[2];
    assert!(!listed(&home, &[]).contains(oldest), "it is in the trash");
    let mark = dir.join(format!("{oldest}.trash"));
    sh(&format!("sed -i 's/\"time\": *\"[^\"]*\"/\"time\":\"2020-01-01T00:00:00Z\"/' '{}'", mark.display()));
    sh(&format!("printf x >> '{}/{}.tar.gz'", dir.display(), names[0]));
    home.tars(&["verify", &names[0]]).expect(1);
    home.tars(&["prune", "--confirm"]).expect(0).says("tars-backup undelete").says(oldest);
    assert!(dir.join(format!("{oldest}.tar.gz")).exists());
    home.tars(&["undelete", oldest]).expect(0);
    assert!(listed(&home, &[]).contains(oldest));
}

#[test]
fn a_clock_that_went_back_deletes_nothing() {
    let home = home("within = \"7d\"\nmin = 1");
    good(&home, [30]);
    let later = Timestamp::now() + SignedDuration::from_hours(30);
    std::fs::write(home.path("state/clock"), format!("{later}\n")).unwrap();
    home.tars(&["prune", "--confirm"]).expect(0).says("went back");
    assert_eq!(listed(&home, &["--trash"]).len(), 0);
    home.tars(&["prune", "--confirm"]).expect(0);
    assert_eq!(listed(&home, &["--trash"]).len(), 1);
}

#[test]
fn what_is_not_ours_or_not_understood_stays() {
    let home = home("within = \"7d\"\nmin = 1");
    let dir = home.path("store/daily");
    let foreign = fabricate(&dir, &dir, days_ago(30), true, |m| m.host = "another".into());
    let torn = fabricate(&dir, &dir, days_ago(31), true, |_| ());
    std::fs::write(dir.join(format!("{torn}.manifest.json")), "{").unwrap();
    let future = fabricate(&dir, &dir, days_ago(-3), true, |_| ());
    let legacy = BackupName::at(days_ago(50));
    std::fs::write(dir.join(legacy.archive()), "old").unwrap();
    let line = format!("{}  /mnt/nas/daily/{}\n", "a".repeat(64), legacy.archive());
    std::fs::write(dir.join(format!("{}.sha256", legacy.archive())), line).unwrap();
    std::fs::write(dir.join("notes.txt"), "mine").unwrap();
    // What was never committed goes after a week, the younger one does not.
    let (stale, young) = (BackupName::at(days_ago(9)), BackupName::at(days_ago(5)));
    for name in [&stale, &young] {
        std::fs::write(dir.join(name.archive()), "half").unwrap();
    }
    let told = plots(&home, &["--confirm"], 0);
    assert_eq!(told[0]["deeds"].as_array().unwrap().len(), 1, "{told}");
    for name in [&foreign, &torn, &future, legacy.as_str(), young.as_str()].map(ToString::to_string) {
        assert_ne!(sh(&format!("ls '{}' | grep -c '^{name}' || true", dir.display())), "0\n", "{name}");
    }
    assert!(dir.join("notes.txt").exists() && !dir.join(stale.archive()).exists());
    assert!(dir.join(format!("{foreign}.manifest.json")).exists());
}

#[test]
fn a_full_store_gives_up_what_the_rules_let_go_also_when_another_is_down() {
    let home = Home::new().second_store();
    sh(&format!("mkdir '{0}'; head -c 6000000 /dev/urandom > '{0}/big'", home.at("docs")));
    let path = home.at("docs");
    let home = home.source("documents", &format!("type = \"directory\"\npath = \"{path}\""));
    let home = home.extra("[tiers.both.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.tars(&["store", "init", "second"]).expect(0);
    sh(&format!("mount -t tmpfs -o size=20M small '{}'", home.at("store")));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        home.tars(&["store", "init", "nas"]).expect(0);
        home.tars(&["backup", "--tier", "both"]).expect(0);
        let dir = home.path("store/both");
        let first = sh(&format!("cd '{}'; ls *.manifest.json", dir.display()));
        let first = first.trim().trim_end_matches(".manifest.json").to_owned();
        let old = fabricate(&dir, &dir, days_ago(30), true, |_| ());
        let older = fabricate(&dir, &dir, days_ago(31), true, |_| ());
        sh(&format!("mv '{0}' '{0}.away'; sleep 1.1", home.at("second")));
        // Not even a mark has room.
        sh(&format!("cat /dev/zero > '{}/filled' || true", home.at("store")));
        let done = home.tars(&["backup", "--tier", "both"]).expect(2).says("second");
        let nas = listed(&home, &["--store", "nas"]);
        assert!(
            nas.contains(&first) && !nas.contains(&old) && !nas.contains(&older),
            "{nas:?} {}",
            done.stderr
        );
        assert_eq!(nas.len(), 2);
        home.tars(&["verify", "--all", "--store", "nas"]).expect(0);
    }));
    sh(&format!("umount '{}'", home.at("store")));
    outcome.unwrap();
}

#[test]
fn a_listing_of_a_bucket_that_fails_or_is_cut_deletes_nothing() {
    let server = S3sFs::start();
    let proxy = Proxy::start(&server.endpoint());
    let tier = "[tiers.away]\nstores = [\"s3\"]\npath = \"weekly\"\nkeep = { within = \"7d\", min = 1 }";
    let home = s3_home(&proxy.endpoint(), tier);
    home.tars(&["backup", "--tier", "away"]).expect(0);
    let dir = server.bucket().join("hosts/home-1/weekly");
    // More objects than one page of a listing holds.
    for days in 30..300 {
        fabricate(&dir, &dir, days_ago(days), true, |_| ());
    }
    let there = || sh(&format!("ls '{}' | wc -l", dir.display()));
    let before = there();
    let prune = ["prune", "--confirm", "--tier", "away"];
    proxy.on(|seen| if seen.is_listing() { Act::error(403, "AccessDenied") } else { Act::Pass });
    home.tars(&prune).expect(1).says("AccessDenied");
    proxy.on(
        |seen| {
            if seen.is("GET", "continuation-token=") { Act::error(403, "AccessDenied") } else { Act::Pass }
        },
    );
    home.tars(&prune).expect(1).says("AccessDenied");
    assert!(proxy.count(|seen| seen.is("GET", "continuation-token=")) > 0, "it has a second page");
    proxy.on(|seen| if seen.is("GET", "continuation-token=") { Act::CutAnswer } else { Act::Pass });
    home.tars(&prune).expect(1);
    // A manifest that cannot be read now is no damage, and no reason to go on without it.
    proxy
        .on(|seen| if seen.is("GET", "manifest.json") { Act::error(403, "AccessDenied") } else { Act::Pass });
    home.tars(&prune).expect(1).says("AccessDenied");
    assert_eq!(there(), before);
    // Two calls for each backup that is looked at, and no more than a few for all of them together.
    proxy.on(|_| Act::Pass);
    home.tars(&["prune", "--tier", "away"]).expect(0);
    let each = proxy.count(|seen| seen.is("GET", "tars-backup-"));
    assert!((542..560).contains(&each), "{each} objects were read");
    let done = home.tars(&[&prune[..], &["--json"]].concat()).expect(0).json();
    assert_eq!(done[0]["deeds"].as_array().unwrap().iter().filter(|d| d["done"] == true).count(), 270);
    let rows = home.tars(&["list", "--json", "--store", "s3"]).expect(0).json();
    assert_eq!(rows.as_array().unwrap().len(), 1);
}

#[test]
fn a_tier_that_is_promoted_gets_the_newest_good_one_byte_for_byte() {
    let home = Home::new().documents().second_store();
    let home = home
        .extra(
            "[tiers.cold]\nstores = [\"nas\", \"second\"]\npath = \"monthly\"\npromote_from = \"hot\"\nmax_age = \"8d\"",
        )
        .ready();
    home.tars(&["store", "init", "second"]).expect(0);
    let cold = ["backup", "--tier", "cold"];
    home.tars(&cold).expect(1).says("no backup that could be promoted");
    home.tars(&["backup", "--tier", "cold", "--only", "documents"]).expect(64).says("promoted from hot");
    home.tars(&["backup", "--only", "documents"]).expect(0);
    home.tars(&cold).expect(1).says("no backup that could be promoted");
    home.backup(0);
    let real = home.committed();
    let daily = home.path("store/daily");
    let ago = |minutes: i64| Timestamp::now() - SignedDuration::from_mins(minutes);
    let make = |minutes: i64, verified: bool, edit: fn(&mut Manifest)| {
        fabricate(&daily, &daily, ago(minutes), verified, edit)
    };
    // Newer ones that nobody found good, that lack something, that shrank, or that are of tomorrow.
    let name = make(600, true, |_| ());
    make(500, false, |_| ());
    make(400, true, |m| m.state = State::Partial);
    make(300, true, |m| m.anomalies = vec!["documents".into()]);
    make(200, true, |m| m.host = "another".into());
    make(-300, true, |_| ());
    for name in real {
        sh(&format!("rm '{}'/{name}.*", daily.display()));
    }
    home.tars(&["backup", "--tier", "cold", "--dry-run"]).expect(0).says(&name);
    assert!(!home.path("store/monthly").exists());
    home.tars(&["pin", &name]).expect(0);
    home.tars(&cold).expect(0).says(&name);
    for store in ["store", "second"] {
        sh(&format!(
            "cmp '{0}/daily/{name}.tar.gz' '{1}/monthly/{name}.tar.gz'",
            home.at("store"),
            home.at(store)
        ));
        sh(&format!(
            "cd '{}/monthly'; sha256sum -c {name}.tar.gz.sha256; test -s {name}.pin",
            home.at(store)
        ));
    }
    let row = home.tars(&["list", "--json", "--tier", "cold"]).expect(0).json();
    assert_eq!((&row[0]["tier"], row.as_array().unwrap().len()), (&"cold".into(), 1), "the tier is the path");
    home.tars(&cold).expect(0);
    assert_eq!(listed(&home, &["--tier", "cold"]).len(), 1, "a second time it is there already");
    assert_eq!(sh(&format!("ls -A '{}'", home.at("state/spool"))), "");
    home.tars(&["verify", "--all", "--store", "second"]).expect(0);

    // For months the same old one: that is a failure.
    sh(&format!("rm -r '{0}'; mkdir '{0}'", daily.display()));
    let monthly = home.path("store/monthly");
    let old = fabricate(&monthly, &daily, days_ago(9), true, |_| ());
    home.tars(&cold).expect(1).says("max_age").says(&old);
    // A copy that is damaged is not copied, whatever its mark says.
    let fresh = fabricate(&monthly, &daily, days_ago(2), true, |_| ());
    sh(&format!(
        "printf x | dd of='{}/{fresh}.tar.gz' bs=1 seek=500 conv=notrunc status=none",
        daily.display()
    ));
    home.tars(&cold).expect(1).says("not what its manifest says");
    assert_eq!(listed(&home, &["--tier", "cold"]).len(), 1);
}

/// A plain backup, and a tier `cold` in a bucket that gets it sealed; the recipient, and the file of the private key.
fn sealed_when_promoted(endpoint: &str) -> (Home, String, String) {
    let home = s3_home(endpoint, "");
    let identity = home.at("identity");
    let recipient = sh(&format!("age-keygen -o '{identity}' 2>&1 | grep -o 'age1.*'")).trim().to_owned();
    let home = home.extra(&format!(
        "[encryption]\nrecipients = [\"{recipient}\"]\n\
         [tiers.cold]\nstores = [\"s3\"]\npath = \"monthly\"\npromote_from = \"hot\""
    ));
    home.write_config();
    home.backup(0);
    (home, recipient, identity)
}

#[test]
fn a_plain_backup_is_sealed_when_it_is_promoted_out_of_the_house() {
    let server = S3sFs::start();
    let (home, recipient, identity) = sealed_when_promoted(&server.endpoint());
    let name = home.only();
    home.tars(&["backup", "--tier", "cold"]).expect(0);
    let dir = server.bucket().join("hosts/home-1/monthly");
    let beside = std::fs::read_to_string(dir.join(format!("{name}.manifest.json"))).unwrap();
    assert!(beside.contains(&recipient) && !beside.contains("checksums"), "{beside}");
    sh(&format!(
        "cd '{}'; test ! -e {name}.tar.gz; age -d -i '{identity}' {name}.tar.gz.age | cmp - '{}/daily/{name}.tar.gz'",
        dir.display(),
        home.at("store")
    ));
    home.tars(&["verify", "--all", "--store", "s3", "--deep", "--identity", &identity]).expect(0);
    // A sealed one is copied as it is.
    sh(&format!("rm '{}'/daily/*", home.at("store")));
    let warm = "[tiers.warm]\nstores = [\"s3\", \"nas\"]\npath = \"monthly\"\n";
    let config = std::fs::read_to_string(home.path("config.toml")).unwrap();
    let (before, after) = config.split_once("[tiers.cold]").unwrap();
    let after = after.split_once("\n\n").map_or("", |(_, rest)| rest);
    std::fs::write(home.path("config.toml"), format!("{before}{warm}\n{after}")).unwrap();
    home.tars(&["sync"]).expect(0).says("is in nas now");
    sh(&format!(
        "cmp '{0}/{name}.tar.gz.age' '{1}/monthly/{name}.tar.gz.age'",
        dir.display(),
        home.at("store")
    ));
}

#[test]
fn a_promotion_that_is_repeated_leaves_nothing_that_waits() {
    let server = S3sFs::start();
    let proxy = Proxy::start(&server.endpoint());
    let (home, ..) = sealed_when_promoted(&proxy.endpoint());
    let name = home.only();
    let cold = ["backup", "--tier", "cold"];
    let spool = || sh(&format!("ls -A '{}'", home.at("state/spool")));
    let nothing_waits = || {
        assert_eq!(spool(), "");
        home.tars(&["sync"]).expect(0);
    };

    // A store that does not answer gets it when it does, and the run says that nobody has it yet.
    proxy.on(|_| Act::error(403, "AccessDenied"));
    home.tars(&cold).expect(1).says("waits in the spool for s3");
    home.tars(&cold).expect(1).says("waits in the spool for s3");
    proxy.on(|_| Act::Pass);
    home.tars(&["sync"]).expect(0).says("is in s3 now");
    nothing_waits();

    // Sealed once more it would have other bytes: what is there already is what was wanted.
    let dir = server.bucket().join("hosts/home-1/monthly");
    let sum = || sh(&format!("cd '{}'; sha256sum {name}.tar.gz.age {name}.manifest.json", dir.display()));
    let before = sum();
    home.tars(&cold).expect(0).says(&name).says("is in s3 already");
    nothing_waits();
    // The same where that could not be asked at first.
    proxy.on(|_| Act::error(403, "AccessDenied"));
    home.tars(&cold).expect(1).says("waits in the spool for s3");
    proxy.on(|_| Act::Pass);
    home.tars(&["sync"]).expect(0);
    nothing_waits();
    assert_eq!(sum(), before);

    // One that nobody found good is no proof, and another sealed one cannot take its place.
    std::fs::remove_file(dir.join(format!("{name}.verified"))).unwrap();
    home.tars(&cold).expect(1).says("not known to be readable").says("tars-backup verify");
    nothing_waits();
    home.tars(&["verify", &name, "--store", "s3"]).expect(0);
    home.tars(&cold).expect(0).says("is in s3 already");
    // What is on its way out is no copy.
    std::fs::write(dir.join(format!("{name}.trash")), "{}").unwrap();
    home.tars(&cold).expect(1).says("trash").says("tars-backup undelete");
    nothing_waits();

    // A backup of another time that has the name stays what it is.
    std::fs::remove_file(dir.join(format!("{name}.trash"))).unwrap();
    let path = dir.join(format!("{name}.manifest.json"));
    let mut other = Manifest::read_sidecar(&std::fs::read(&path).unwrap()).unwrap();
    other.host = "another".into();
    let (bytes, sha256) = (other.bytes.unwrap(), other.sha256.clone().unwrap());
    std::fs::write(&path, other.to_sidecar(bytes, &sha256).unwrap()).unwrap();
    let before = sum();
    home.tars(&cold).expect(1).says("another backup of the name");
    nothing_waits();
    assert_eq!(sum(), before);
}

#[test]
fn a_store_that_is_down_while_others_get_a_promotion_gets_it_later() {
    let server = S3sFs::start();
    let proxy = Proxy::start(&server.endpoint());
    let tier = "[tiers.cold]\nstores = [\"nas\", \"s3\"]\npath = \"monthly\"\npromote_from = \"hot\"";
    let home = s3_home(&proxy.endpoint(), tier);
    home.backup(0);
    let name = home.only();
    let cold = ["backup", "--tier", "cold"];
    proxy.on(|_| Act::error(403, "AccessDenied"));
    home.tars(&cold).expect(2).says("waits in the spool for s3");
    home.tars(&cold).expect(2).says("is in nas already").says("waits in the spool for s3");
    proxy.on(|_| Act::Pass);
    home.tars(&cold).expect(0);
    assert_eq!(sh(&format!("ls -A '{}'", home.at("state/spool"))), "");
    home.tars(&["sync"]).expect(0);
    for store in ["nas", "s3"] {
        assert_eq!(listed(&home, &["--tier", "cold", "--store", store]), [name.as_str()]);
    }
    home.tars(&["verify", "--all", "--store", "s3"]).expect(0);
}

#[test]
fn a_backup_of_the_future_hides_none_that_is_real() {
    let home = home("min = 1");
    let (real, daily) = (home.only(), home.path("store/daily"));
    let future = fabricate(&daily, &daily, days_ago(-300), true, |_| ());
    let latest = || {
        let rows = home.tars(&["list", "--json"]).expect(0).json();
        let latest = rows.as_array().unwrap().iter().filter(|r| r["latest"] == true);
        latest.map(|r| r["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let status = |code| home.tars(&["status", "--json"]).expect(code).json();
    assert_eq!(latest(), [real.as_str()]);
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says(&real);
    let told = status(0);
    assert_eq!(told["tiers"][0]["newest"], real.as_str(), "{told}");
    assert_eq!(told["components"][0]["backup"], real.as_str(), "{told}");

    // Where there is no other it is what there is, but no sign that the timer works.
    sh(&format!("rm '{}'/{real}.*", daily.display()));
    assert_eq!(latest(), [future.as_str()]);
    home.tars(&["show", "--latest"]).expect(0).says(&future);
    let told = status(1);
    assert!(told["problems"].to_string().contains("is of the future"), "{told}");
}

#[test]
fn a_store_that_was_away_gets_what_its_rule_holds() {
    let home = Home::new().documents().second_store();
    let home = home.extra("[tiers.both.keep]\nwithin = \"7d\"\nmin = 1").ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let (nas, second) = (home.path("store/both"), home.path("second/both"));
    let make = |days: i64, verified: bool| fabricate(&nas, &nas, days_ago(days), verified, |_| ());
    let wanted = [make(2, true), make(3, true)];
    let (old, unproven, trashed) = (make(30, true), make(4, false), make(5, true));
    std::fs::write(second.join(format!("{trashed}.trash")), "{}").unwrap();
    sh(&format!("cp '{0}'/{trashed}.* '{1}'", nas.display(), second.display()));
    home.tars(&["sync"]).expect(0).says(&wanted[0]).says(&wanted[1]);
    for name in &wanted {
        sh(&format!("cmp '{0}/{name}.tar.gz' '{1}/{name}.tar.gz'", nas.display(), second.display()));
    }
    for name in [&old, &unproven] {
        assert!(!second.join(format!("{name}.manifest.json")).exists(), "{name}");
    }
    assert!(second.join(format!("{trashed}.trash")).exists());
    home.tars(&["verify", "--all", "--store", "second"]).expect(0);
    let again = home.tars(&["sync"]).expect(0);
    assert!(again.stdout.contains("Nothing waits"), "{}", again.stdout);
}

#[test]
fn what_still_waits_for_one_store_can_be_promoted_to_another() {
    let third = tempfile::tempdir().unwrap();
    let home = Home::new().documents().second_store().extra(&format!(
        "[stores.third]\ntype = \"fs\"\npath = \"{}\"\n\
         [tiers.cold]\nstores = [\"third\"]\npath = \"monthly\"\npromote_from = \"both\"",
        third.path().display()
    ));
    let home = home.ready();
    for store in ["second", "third"] {
        home.tars(&["store", "init", store]).expect(0);
    }
    let second = home.at("second");
    sh(&format!("mv '{second}' '{second}.away'"));
    home.tars(&["backup", "--tier", "both"]).expect(2).says("waits in the spool for second");
    home.tars(&["backup", "--tier", "cold"]).expect(0);
    home.tars(&["verify", "--all", "--store", "third"]).expect(0);
    assert_ne!(sh(&format!("ls '{}'", home.at("state/spool"))), "", "it still waits for the second store");
    home.tars(&["backup", "--tier", "cold"]).expect(0);
    sh(&format!("mv '{second}.away' '{second}'"));
    home.tars(&["sync"]).expect(0).says("is in second now");
    assert_eq!(sh(&format!("ls '{}'", home.at("state/spool"))), "");
    home.tars(&["verify", "--all", "--store", "second"]).expect(0);
}

/// What is fetched to be copied is as large as a backup, and lies on the disk of other services.
#[test]
fn a_copy_that_the_disk_of_the_spool_cannot_hold_is_not_begun() {
    let home = Home::new().documents().second_store();
    let (root, spool) = (home.root().display().to_string(), home.at("small"));
    sh(&format!("mkdir '{spool}' && mount -t tmpfs -o size=20m tars-spool '{spool}'"));
    sh(&format!("head -c 12000000 /dev/urandom > '{}'", home.at("docs/noise")));
    let agent =
        format!("state_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\nspool_dir = \"{spool}\"");
    let cold =
        "[tiers.cold]\nstores = [\"second\"]\npath = \"cold\"\npromote_from = \"hot\"\nmax_age = \"8d\"";
    let home = home.extra(&format!("[agent]\n{agent}\n{cold}")).ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.backup(0);
    sh(&format!("head -c 10000000 /dev/zero > '{spool}/of-somebody-else'"));
    home.tars(&["backup", "--tier", "cold"]).expect(1).says("the disk of the spool has");
    sh(&format!("rm '{spool}/of-somebody-else'"));
    home.tars(&["backup", "--tier", "cold"]).expect(0);
    assert_eq!(home.committed_at("second/cold").len(), 1);
    sh(&format!("umount '{spool}'"));
}
