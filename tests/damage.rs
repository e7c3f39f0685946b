//! Damage of every kind, to every stored object, is found by `verify`. A thousand random cases, and the ones that are
//! easy to miss by name.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;

use proptest::test_runner::{Config, TestRunner};
use support::{Home, run, sh};

fn with_backup() -> Home {
    let home = Home::new().documents();
    std::fs::write(home.path("app.env"), "DB_PASSWORD=correct-horse-battery\nMODE=home\n").unwrap();
    std::fs::write(home.path("docs/noise"), (0..40_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>())
        .unwrap();
    let files = home.at("app.env");
    let home = home
        .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{files}\"]"))
        .source("out", "type = \"command\"\ncommand = [\"seq\", \"1\", \"5000\"]")
        .ready();
    home.backup(0);
    home
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Flip(u64, u8),
    Cut(u64),
    Append(u8),
    ZeroTail(u64),
}

fn apply(bytes: &mut Vec<u8>, damage: Damage) {
    let len = bytes.len() as u64;
    match damage {
        Damage::Flip(at, mask) => bytes[(at % len) as usize] ^= mask,
        Damage::Cut(at) => bytes.truncate((at % len) as usize),
        Damage::Append(byte) => bytes.push(byte),
        Damage::ZeroTail(n) => {
            let from = (len - 1 - n % len) as usize;
            bytes[from..].fill(0);
        }
    }
}

#[test]
fn any_damage_to_any_object_of_a_backup_is_found() {
    use proptest::prelude::*;
    let home = with_backup();
    let objects: Vec<PathBuf> =
        [".tar.gz", ".tar.gz.sha256", ".manifest.json"].map(|s| home.object(s)).to_vec();
    let originals: Vec<Vec<u8>> = objects.iter().map(|p| std::fs::read(p).unwrap()).collect();
    let name = home.only();
    let damage = prop_oneof![
        8 => (any::<u64>(), 1u8..=255).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        3 => any::<u64>().prop_map(Damage::Cut),
        1 => any::<u8>().prop_map(Damage::Append),
        1 => any::<u64>().prop_map(Damage::ZeroTail),
    ];
    let mut runner = TestRunner::new(Config { cases: 1000, failure_persistence: None, ..Config::default() });
    runner
        .run(&(0usize..3, damage, any::<bool>()), |(which, damage, deep)| {
            let mut bytes = originals[which].clone();
            apply(&mut bytes, damage);
            if bytes == originals[which] {
                return Ok(());
            }
            std::fs::write(&objects[which], &bytes).unwrap();
            let mut args = vec!["verify", name.as_str()];
            args.extend(deep.then_some("--deep"));
            let done = home.tars(&args);
            std::fs::write(&objects[which], &originals[which]).unwrap();
            prop_assert_eq!(done.code, 1, "{:?}\n{}{}", objects[which], done.stdout, done.stderr);
            prop_assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
            Ok(())
        })
        .unwrap();
    home.tars(&["verify", &name, "--deep"]).expect(0);
}

#[test]
fn a_backup_without_its_manifest_is_invisible() {
    let home = with_backup();
    let name = home.only();
    std::fs::remove_file(home.object(".manifest.json")).unwrap();
    home.tars(&["list"]).expect(0).says("No backups");
    home.tars(&["verify", &name]).expect(1).says("is in no store");
    home.tars(&["verify", "--latest"]).expect(1).says("no backup is complete enough");
    let archive = home.at(&format!("store/daily/{name}.tar.gz"));
    home.tars(&["verify", &archive]).expect(1).says("does not lie beside it");
    // The name stays taken all the same.
    let next = home.backup(0);
    assert_ne!(next["name"], name);
}

#[test]
fn a_missing_archive_or_checksum_is_found_and_listed_as_damaged() {
    let home = with_backup();
    let (name, archive) = (home.only(), home.object(".tar.gz"));
    std::fs::remove_file(home.object(".tar.gz.sha256")).unwrap();
    home.tars(&["verify", &name]).expect(1).says(".sha256 is missing");
    std::fs::remove_file(archive).unwrap();
    home.tars(&["list"]).expect(0).says("damaged").says("is missing");
    home.tars(&["verify", &name]).expect(1).says("is missing");
    home.tars(&["show", &name]).expect(1);
    home.tars(&["extract", &name, "--to", &home.at("out")]).expect(1);
    assert!(!home.path("out").exists());
}

#[test]
fn a_damaged_manifest_is_of_every_machine_that_is_asked_for() {
    let home = with_backup();
    let host = home.manifest()["host"].as_str().unwrap().to_owned();
    let verify = ["verify", "--all", "--host", &host];
    home.tars(&verify).expect(0);
    let name = home.only();
    std::fs::write(home.object(".manifest.json"), "{}").unwrap();
    home.tars(&verify).expect(1).says(&name);
    home.tars(&["list", "--host", &host]).expect(0).says(&name);
}

#[test]
fn a_failed_verify_takes_the_mark_away_and_a_good_one_brings_it_back() {
    let home = with_backup();
    let name = home.only();
    let (archive, mark) = (home.object(".tar.gz"), home.object(".verified"));
    let good = std::fs::read(&archive).unwrap();
    assert!(mark.exists());
    let mut bad = good.clone();
    bad[1000] ^= 1;
    std::fs::write(&archive, bad).unwrap();
    home.tars(&["verify", &name]).expect(1);
    assert!(!mark.exists());
    std::fs::write(&archive, good).unwrap();
    home.tars(&["verify", &name, "--deep"]).expect(0);
    assert!(std::fs::read_to_string(&mark).unwrap().contains("\"depth\":\"deep\""));
}

#[test]
fn a_swapped_backup_under_another_name_is_found() {
    let home = with_backup();
    let first = home.only();
    std::fs::write(home.path("docs/later"), "later").unwrap();
    home.backup(0);
    let second = home.committed().pop().unwrap();
    let at = |name: &str, suffix: &str| home.path(&format!("store/daily/{name}{suffix}"));
    for suffix in [".tar.gz", ".manifest.json"] {
        std::fs::copy(at(&first, suffix), at(&second, suffix)).unwrap();
    }
    home.tars(&["verify", &second]).expect(1).says("names another backup");
}

#[test]
fn a_scratch_disk_without_room_is_no_damage() {
    let home = Home::new();
    let path = home.at("app.sqlite3");
    sh(&format!(
        "sqlite3 '{path}' 'CREATE TABLE t(x); INSERT INTO t SELECT hex(randomblob(400)) FROM generate_series(1,4000)'"
    ));
    let home = home.source("app", &format!("type = \"sqlite\"\npath = \"{path}\"")).ready();
    home.backup(0);
    let (name, mark) = (home.only(), std::fs::read(home.object(".verified")).unwrap());
    let config = home.at("config.toml");
    let deep = |script: &str| {
        run(
            "bash",
            &["-c", script, "limited", support::PROGRAM, "--config", &config, "verify", "--deep", &name],
        )
    };
    // No file may be as long as the database is.
    let limited = "trap '' XFSZ; ulimit -f 512; exec \"$@\"";
    let done = deep(limited).expect(1).says("NOT CHECKED").says("app: app.sqlite3");
    assert!(!done.stderr.contains("is damaged"), "{}", done.stderr);
    assert_eq!(std::fs::read(home.object(".verified")).unwrap(), mark);

    // What is damaged all the same is told.
    let good = std::fs::read(home.object(".tar.gz")).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(home.object(".tar.gz"), &bad).unwrap();
    deep(limited).expect(1).says("another SHA-256");
    assert!(!home.object(".verified").exists());
    std::fs::write(home.object(".tar.gz"), &good).unwrap();
    deep("exec \"$@\"").expect(0);
}
