//! Archives of the bash script that came before: listed, verified, and read back; and what is no such archive is not
//! taken for one.

#![allow(clippy::unwrap_used)]

#[path = "support/legacy.rs"]
mod legacy;
mod support;

use support::{Home, PROGRAM, run, sh};

fn home() -> Home {
    let home = Home::new().documents();
    std::fs::write(home.path("tars-home.env"), "PORT=81\n").unwrap();
    let env = home.at("tars-home.env");
    home.source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]\nown = false"))
        .ready()
}

#[test]
fn they_are_listed_and_verified_whoever_packed_them() {
    for (tar, stamp) in [("tar", "20260131_020000"), ("busybox tar", "20260201_020000")] {
        let home = home();
        home.backup(0);
        legacy::make(&home.path("store/daily"), stamp, tar);
        let rows = home.tars(&["list", "--json"]).expect(0).json();
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["state"], "legacy");
        assert_eq!(rows[0]["latest"], false);
        assert_eq!(rows[1]["latest"], true, "never the latest");
        home.tars(&["list"]).expect(0).says("legacy");
        let name = format!("tars-backup-{stamp}");
        home.tars(&["verify", &name]).expect(0).says("good (digest)");
        home.tars(&["verify", "--deep", &name]).expect(0).says("good (every component read)");
        home.tars(&["show", &name]).expect(0);
    }
}

#[test]
fn a_damaged_one_is_bad_and_gives_nothing_back() {
    let home = home();
    let archive = legacy::make(&home.path("store/daily"), "20260131_020000", "tar");
    sh(&format!("printf X | dd of='{}' bs=1 seek=200 conv=notrunc status=none", archive.display()));
    let name = "tars-backup-20260131_020000";
    home.tars(&["verify", name]).expect(1).says("BAD");
    home.tars(&["restore", name, "--to", &home.at("out")]).expect(1).says("damaged");
    assert!(!home.path("out").exists());
}

#[test]
fn its_files_and_its_configuration_come_back() {
    let home = home();
    let archive =
        legacy::make(&home.path("elsewhere"), "20260131_020000", "busybox tar").display().to_string();
    let out = home.at("out");
    run(PROGRAM, &["restore", "--backup-file", &archive, "--to", &out]).expect(0);
    assert_eq!(sh(&format!("cat '{out}/backend_logs/deep/second'")), "a line\n");
    assert_eq!(sh(&format!("stat -c '%a %u %g %h' '{out}/backend_logs/app.log'")), "640 12 34 2\n");
    assert_eq!(sh(&format!("readlink '{out}/backend_logs/link'")), "app.log\n");
    assert_eq!(
        sh(&format!("tail -n 3 '{out}/postgres.sql' | head -n 1")),
        "-- PostgreSQL database dump complete\n"
    );
    home.tars(&[
        "restore",
        "--backup-file",
        &archive,
        "--yes",
        "--restore-config",
        "--component",
        "configuration",
    ])
    .expect(0);
    assert_eq!(sh(&format!("cat '{}'", home.at("tars-home.env"))), "PORT=81\n");
    assert_eq!(sh(&format!("cat '{}.reference'", home.at("tars-home.env"))), "PORT=80\n");
}

#[test]
fn what_was_never_finished_is_no_archive_of_the_script() {
    let home = home();
    let archive = legacy::make(&home.path("store/daily"), "20260131_020000", "tar");
    let sum = format!("{}.sha256", archive.display());
    // As ours is before its commit: the bare name.
    sh(&format!("cd '{}' && sha256sum *.tar.gz > '{sum}'", home.at("store/daily")));
    assert_eq!(home.tars(&["list", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
    std::fs::remove_file(&sum).unwrap();
    assert_eq!(home.tars(&["list", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
}
