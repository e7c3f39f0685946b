//! Signals, kills, full disks and second runs: whatever ends a run, nothing half is visible and nothing is left.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use support::{Home, sh};

fn with_noise(bytes: u64) -> Home {
    let home = Home::new().documents();
    sh(&format!("head -c {bytes} /dev/urandom > '{}'", home.at("docs/noise")));
    home
}

#[test]
fn a_signal_while_a_command_runs_ends_it_and_leaves_nothing() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let home = Home::new().documents();
        let child = home.at("child.pid");
        let home = home
            .source("slow", &format!("type = \"command\"\ncommand = [\"sh\", \"-c\", \"echo $$ > '{child}'; echo begun; sleep 600\"]"))
            .ready();
        let run = home.spawn(&["backup"]);
        wait_until(|| std::fs::read_to_string(home.path("child.pid")).is_ok_and(|pid| pid.ends_with('\n')));
        let started = Instant::now();
        run.signal(signal);
        run.end().expect(code).says("interrupted");
        assert!(started.elapsed() < Duration::from_secs(10), "it took too long to end");
        let pid = std::fs::read_to_string(home.path("child.pid")).unwrap();
        assert_eq!(
            sh(&format!("ls -d /proc/{} 2>/dev/null || true", pid.trim())),
            "",
            "the command still runs"
        );
        home.assert_nothing_left();
        assert_eq!(home.committed(), [""; 0]);
    }
}

/// Ends runs after a growing delay, so that every phase is hit by some of them.
#[test]
fn a_signal_at_any_moment_leaves_all_or_nothing() {
    let home = with_noise(60_000_000).ready();
    let started = Instant::now();
    home.backup(0);
    let mut whole = started.elapsed();
    let mut interrupted = 0;
    // How long a run takes depends on what else this machine does: the first one may have been slow.
    for round in 0..5 {
        for step in 0..30u32 {
            let before = home.committed().len();
            let run = home.spawn(&["backup"]);
            let started = Instant::now();
            std::thread::sleep(whole * step / 28);
            run.signal(if step % 2 == 0 { "TERM" } else { "INT" });
            let done = run.end();
            let made = home.committed().len() - before;
            match done.code {
                0 => {
                    assert_eq!(made, 1, "{}", done.stderr);
                    whole = whole.min(started.elapsed());
                }
                130 | 143 => {
                    assert_eq!(made, 0, "{}", done.stderr);
                    interrupted += 1;
                }
                // Before the program listens for signals, and so before it says anything, they end it at once.
                1002 | 1015 if done.stderr.is_empty() => assert_eq!(made, 0),
                code => panic!("{code}: {}", done.stderr),
            }
            home.assert_nothing_left();
        }
        if interrupted >= 8 {
            break;
        }
        assert!(round < 4, "only {interrupted} runs were hit");
    }
    home.tars(&["verify", "--all", "--deep"]).expect(0);
}

#[test]
fn a_killed_run_leaves_nothing_visible_and_the_next_one_clears_up() {
    let home = with_noise(60_000_000).ready();
    let started = Instant::now();
    home.backup(0);
    let whole = started.elapsed();
    for step in 0..16u32 {
        let run = home.spawn(&["backup"]);
        std::thread::sleep(whole * step / 14);
        run.signal("KILL");
        run.end();
        home.tars(&["list"]).expect(0);
    }
    let names = home.committed();
    home.tars(&["verify", "--all", "--deep"]).expect(0);
    // A kill may hit each object, but hits the small ones seldom.
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    for object in ["tar.gz", "tar.gz.sha256", "manifest.json", "verified", "receipt.json", "trash"] {
        let left = format!("store/daily/.tars-backup-tmp-{}-tars-backup-20260101_000000.{object}", gone.id());
        std::fs::write(home.path(&left), "half").unwrap();
    }
    home.backup(0);
    assert_eq!(home.committed().len(), names.len() + 1);
    assert_eq!(sh(&format!("find '{}' -mindepth 1", home.at("state/staging"))), "");
    assert_eq!(sh(&format!("find '{}' -name '.tars-backup-tmp-*'", home.at("store"))), "");
}

/// The directory of the store is not even there while its disk is not mounted.
#[test]
fn a_store_that_went_away_gets_its_backup_when_it_is_back() {
    let home = Home::new().documents().ready();
    for (away, back) in [
        ("mv store away", "mv away store"),
        ("mv store/tars-backup-store.json .", "mv tars-backup-store.json store"),
    ] {
        home.backup(0);
        let before = home.committed_at("store/daily").len();
        // The names in it cannot be seen while it is away, and nobody makes two backups in a second.
        std::thread::sleep(Duration::from_millis(1100));
        sh(&format!("cd '{}' && {away}", home.root().display()));
        home.tars(&["backup"]).expect(1).says("spool");
        assert!(!home.path("store").exists() || home.committed().len() == before);
        sh(&format!("cd '{}' && {back}", home.root().display()));
        home.tars(&["sync"]).expect(0);
        assert_eq!(home.committed().len(), before + 1);
    }
    home.tars(&["verify", "--all", "--deep"]).expect(0);
}

/// Between the look at it and the delivery lies the whole capture.
#[test]
fn a_store_that_is_unmounted_meanwhile_gets_nothing_on_the_disk_below() {
    let home = Home::new().documents();
    let store = home.at("store");
    sh(&format!("mount -t tmpfs tars-store '{store}'"));
    let unmount =
        format!("type = \"command\"\ncommand = [\"sh\", \"-c\", \"umount -l '{store}'; echo done\"]");
    let home = home.source("trick", &unmount).ready();
    home.tars(&["backup"]).expect(1).says("has no marker").says("spool");
    assert_eq!(sh(&format!("find '{store}' -mindepth 1")), "");
    let waits = sh(&format!("find '{}' -name '*.tar.gz'", home.at("state/spool")));
    assert_eq!(waits.lines().count(), 1, "{waits}");
}

#[test]
fn a_second_run_is_refused_with_the_holder_or_waits() {
    let home = Home::new().documents();
    let gate = home.at("gate");
    let command = format!(
        "type = \"command\"\ncommand = [\"sh\", \"-c\", \"while [ ! -e '{gate}' ]; do sleep 0.05; done; echo x\"]"
    );
    let home = home.source("slow", &command).ready();
    let mut first = home.spawn(&["backup"]);
    first.wait_for("Capturing slow");
    let pid = first.pid();
    home.tars(&["backup"]).expect(75).says(&format!("pid {pid} backup since"));
    home.tars(&["store", "check", "nas"]).expect(75);
    // Looking needs no lock.
    home.tars(&["list"]).expect(0);
    home.tars(&["backup", "--dry-run"]).expect(0);
    let mut waiting = home.spawn(&["backup", "--wait", "5m"]);
    waiting.wait_for(&format!("Waiting for another run: pid {pid} backup"));
    std::fs::write(home.path("gate"), "").unwrap();
    first.end().expect(0);
    waiting.end().expect(0);
    assert_eq!(home.committed().len(), 2);

    let held = home.spawn(&["backup", "--wait", "0.3s"]);
    held.end().expect(0);
}

#[test]
fn waiting_for_the_lock_ends_by_a_signal() {
    let home = Home::new().source("slow", "type = \"command\"\ncommand = [\"sleep\", \"600\"]").ready();
    let mut first = home.spawn(&["backup"]);
    first.wait_for("Capturing slow");
    let mut second = home.spawn(&["backup", "--wait", "1h"]);
    second.wait_for("Waiting");
    second.signal("TERM");
    second.end().expect(143);
    first.signal("INT");
    first.end().expect(130);
    home.assert_nothing_left();
}

#[test]
fn a_full_staging_disk_is_a_clear_error_and_leaves_nothing() {
    let home = with_noise(60_000_000);
    let staging = home.at("small");
    let agent = format!(
        "[agent]\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\nstaging_dir = \"{staging}\"\n\
         spool_dir = \"{staging}/spool\"",
        home.root().display()
    );
    let home = home.extra(&agent).ready();
    std::fs::create_dir(&staging).unwrap();
    sh(&format!("mount -t tmpfs -o size=40M small '{staging}'"));
    let done = home.tars(&["backup"]);
    let left = sh(&format!("find '{staging}' -mindepth 1 ! -path '{staging}/spool'"));
    sh(&format!("mount -o remount,size=90M '{staging}'"));
    let packing = home.tars(&["backup"]);
    let left_packing = sh(&format!("find '{staging}' -mindepth 1 ! -path '{staging}/spool'"));
    sh(&format!("mount -o remount,size=400M '{staging}'"));
    let enough = home.tars(&["backup"]);
    sh(&format!("umount '{staging}'"));
    done.expect(1).says("documents failed").says("in staging").says("staging is full: make room");
    assert_eq!(left, "");
    // The component fits, component and archive together do not.
    packing.expect(1).says("cannot write the archive").says("its disk is full: make room");
    assert_eq!(left_packing, "");
    enough.expect(0);
    assert_eq!(home.committed().len(), 1);
    home.assert_nothing_left();
}

#[test]
fn a_full_store_fails_without_leaving_half_an_archive() {
    let home = with_noise(60_000_000);
    home.write_config();
    sh(&format!("mount -t tmpfs -o size=40M small '{}'", home.at("store")));
    let init = home.tars(&["store", "init", "nas"]);
    let full = home.tars(&["backup"]);
    let left = sh(&format!("find '{}' -type f -printf '%f\\n' | sort", home.at("store")));
    sh(&format!("umount '{}'", home.at("store")));
    init.expect(0);
    full.expect(1).says("store \"nas\": cannot write").says("make room in the store");
    assert_eq!(left, "RESTORE.md\ntars-backup-store.json\n");
    home.assert_nothing_left();
}

#[test]
fn a_store_that_is_not_mounted_is_refused_and_nothing_is_written_below_it() {
    let home = Home::new().documents();
    let extra = format!(
        "[stores.usb]\ntype = \"fs\"\npath = \"{}\"\nrequire_mount = true\n[tiers.cold]\nstores = [\"usb\"]\npath = \"cold\"",
        home.at("usb")
    );
    let home = home.extra(&extra).ready();
    std::fs::create_dir(home.path("usb")).unwrap();
    home.tars(&["store", "init", "usb"]).expect(1).says("nothing is mounted at");
    sh(&format!("mount -t tmpfs usb '{}'", home.at("usb")));
    let init = home.tars(&["store", "init", "usb"]);
    let good = home.tars(&["backup", "--tier", "cold"]);
    sh(&format!("umount '{}'", home.at("usb")));
    init.expect(0);
    good.expect(0);
    home.tars(&["backup", "--tier", "cold"]).expect(1).says("nothing is mounted at").says("findmnt");
    home.tars(&["list", "--store", "usb"]).expect(2).says("nothing is mounted at");
    assert_eq!(sh(&format!("find '{}' -mindepth 1", home.at("usb"))), "");
    // Without require_mount the missing marker says the same.
    std::fs::remove_file(home.path("store/tars-backup-store.json")).unwrap();
    home.tars(&["backup"]).expect(1).says("has no marker").says("store init nas");
    assert_eq!(home.committed(), [""; 0]);
}

#[test]
fn a_store_of_another_machine_is_refused_until_it_is_adopted() {
    let home = Home::new().documents().ready();
    let marker = home.path("store/tars-backup-store.json");
    let text = std::fs::read_to_string(&marker).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["machine_id"] = "00000000000000000000000000000001".into();
    value["host"] = "old-home".into();
    std::fs::write(&marker, value.to_string()).unwrap();
    home.tars(&["backup"]).expect(1).says("belongs to another machine (old-home)").says("store adopt nas");
    home.tars(&["store", "init", "nas"]).expect(1).says("store adopt nas");
    home.tars(&["store", "adopt", "nas"]).expect(0);
    home.backup(0);
}

#[test]
fn one_dead_store_does_not_stop_the_other() {
    let home = Home::new().documents().second_store().ready();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let rows = home.tars(&["list", "--json"]).expect(0).json();
    assert_eq!(rows[0]["stores"].as_array().unwrap().len(), 2, "{rows}");
    sh(&format!("mv '{0}' '{0}.away'", home.at("second")));
    let done = home.tars(&["backup", "--tier", "both", "--json"]).expect(2);
    let outcome = done.json();
    assert_eq!(outcome["stores"].as_array().unwrap().iter().filter(|s| s["receipt"].is_object()).count(), 1);
    assert!(done.stderr.contains("is not there"), "{}", done.stderr);
}

fn wait_until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}
