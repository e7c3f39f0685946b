//! Restore of files and SQLite: destroyed data comes back as it was, what is not asked for stays, and whatever goes wrong,
//! in whatever moment, each component is wholly old or wholly new. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::path::Path;

use support::{Home, describe, killed_at_every_line, make_odd, restore_to_kill, sh, wait_for_growth};

/// Two directories and a database, backed up once.
fn with_three() -> Home {
    let home = Home::new().documents();
    sh(&format!(
        "mkdir -p '{0}/cache/deep'; echo b > '{0}/b.txt'; echo c > '{0}/cache/deep/c'",
        home.at("more")
    ));
    let (more, db) = (home.at("more"), home.at("app.sqlite3"));
    sh(&format!(
        "sqlite3 '{db}' 'CREATE TABLE t(v); INSERT INTO t VALUES (1),(2)'; chmod 640 '{db}'; chown 12:34 '{db}'"
    ));
    let home = home
        .source("more", &format!("type = \"directory\"\npath = \"{more}\"\nexclude = [\"cache\"]"))
        .source("app", &format!("type = \"sqlite\"\npath = \"{db}\""))
        .ready();
    home.backup(0);
    home
}

fn change_all(home: &Home) {
    sh(&format!(
        "cd '{}'; rm docs/a.txt; echo changed > docs/new; echo changed > more/b.txt; echo kept > more/cache/deep/c; \
         sqlite3 app.sqlite3 'DELETE FROM t; INSERT INTO t VALUES (99)'",
        home.root().display()
    ));
}

fn rows(path: &str) -> String {
    sh(&format!("sqlite3 '{path}' 'SELECT group_concat(v) FROM t'"))
}

/// Everything that a restore could touch.
fn state(home: &Home) -> String {
    ["docs", "more"].iter().map(|d| describe(&home.path(d))).collect::<String>()
        + &rows(&home.at("app.sqlite3"))
}

/// Nothing of a restore lies beside the data.
#[track_caller]
fn assert_clean(home: &Home) {
    let left = sh(&format!("find '{}' -name '*tars-restore*' -not -path '*/store/*'", home.root().display()));
    assert_eq!(left, "", "left behind");
    assert!(!home.path("state/run.journal").exists(), "the journal is still there");
}

#[test]
fn an_odd_tree_comes_back_as_it_was() {
    let home = Home::new();
    std::fs::create_dir(home.path("docs")).unwrap();
    make_odd(&home.path("docs"));
    let path = home.at("docs");
    let home = home.source("documents", &format!("type = \"directory\"\npath = \"{path}\"")).ready();
    // A socket and a device are not in a backup.
    sh(&format!("rm '{path}/sock' '{path}/null'"));
    home.backup(0);
    let before = describe(&home.path("docs"));
    let attributes = format!("cd '{path}' && getfattr -dhR -m - . 2>/dev/null; getfacl -Rnp .");
    let attributes_before = sh(&attributes);
    for ruin in [
        "rm -rf docs",
        "find docs -mindepth 1 -delete; chmod 700 docs",
        "echo x > docs/plain; mkdir docs/fresh",
    ] {
        sh(&format!("cd '{}'; {ruin}", home.root().display()));
        home.tars(&["restore", "--latest", "--yes"]).expect(0).says("restored documents");
        assert_eq!(describe(&home.path("docs")), before, "after {ruin}");
        assert_eq!(sh(&attributes), attributes_before, "after {ruin}");
        let archive = home.object(".tar.gz");
        sh(&format!(
            "mkdir -p '{0}'; tar -xzOf '{1}' --wildcards '*/documents.tar.gz' | gunzip | \
             tar --compare --numeric-owner --xattrs -C '{path}'",
            home.at("x"),
            archive.display()
        ));
        assert_clean(&home);
    }
}

#[test]
fn what_the_source_leaves_out_stays_and_only_what_is_asked_for_changes() {
    let home = with_three();
    change_all(&home);
    home.tars(&["restore", "--latest", "--yes", "--component", "more"]).expect(0);
    assert_eq!(sh(&format!("cat '{}'", home.at("more/b.txt"))), "b\n");
    assert_eq!(sh(&format!("cat '{}'", home.at("more/cache/deep/c"))), "kept\n");
    assert!(home.path("docs/new").exists());
    assert_eq!(rows(&home.at("app.sqlite3")), "99\n");
    home.tars(&["restore", "--latest", "--yes", "--skip", "more,app"]).expect(0);
    assert!(home.path("docs/a.txt").exists() && !home.path("docs/new").exists());
    assert_eq!(rows(&home.at("app.sqlite3")), "99\n");
    home.tars(&["restore", "--latest", "--force", "--component", "app"]).expect(0);
    assert_eq!(rows(&home.at("app.sqlite3")), "1,2\n");
    assert_clean(&home);
    // What was replaced is saved, and is no backup that `--latest` takes.
    let saved = sh(&format!("ls '{}' | grep -c manifest.json", home.at("state/pre-restore")));
    assert_eq!(saved, "3\n");
    assert_eq!(home.committed().len(), 1);
    home.tars(&["restore", "--latest", "--yes", "--component", "nothing"])
        .expect(64)
        .says("it has: app, documents, more");
}

#[test]
fn what_fails_before_it_is_live_is_kept_for_a_person_under_a_name_that_says_so() {
    let home = Home::new();
    let at = |name: &str| home.at(name);
    sh(&format!("mkdir '{0}'; echo a > '{0}/a'; ln -s /nowhere '{0}/deep'", at("docs")));
    sh(&format!("sqlite3 '{}' 'CREATE TABLE t(v); INSERT INTO t VALUES (1);'", at("app.sqlite3")));
    let docs = format!("type = \"directory\"\npath = \"{}\"\nexclude = [\"cache\"]", at("docs"));
    let app = format!("type = \"sqlite\"\npath = \"{}\"", at("app.sqlite3"));
    let home = home.source("documents", &docs).source("app", &app).ready();
    home.backup(0);
    let at = |name: &str| home.at(name);
    // What the backup leaves out has no place where a link is now.
    sh(&format!(
        "cd '{}'; rm deep; mkdir -p deep/cache cache; echo c > deep/cache/c; echo d > cache/d",
        at("docs")
    ));
    sh(&format!("sqlite3 '{}' 'PRAGMA journal_mode=WAL; UPDATE t SET v = 99;'", at("app.sqlite3")));
    let before = describe(&home.path("docs"));
    let mut application = std::process::Command::new("sqlite3");
    let mut application = application
        .arg(home.path("app.sqlite3"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = application.stdin.take().unwrap();
    input.write_all(b"BEGIN IMMEDIATE; SELECT v FROM t;\n").unwrap();
    let mut seen = [0; 3];
    application.stdout.take().unwrap().read_exact(&mut seen).unwrap();
    let done = home.tars(&["restore", "--latest", "--yes", "--keep", "--no-safety-backup"]).expect(1);
    drop(input);
    application.wait().unwrap();
    let name = home.only();
    for (component, kept) in [("documents", "docs"), ("app", "app.sqlite3")] {
        let path = format!("{}.restored-{name}", at(kept));
        let told = format!("{component}: the old data is live; the new data is in {path}\n");
        assert!(done.stderr.contains(&told), "{told:?} is not in:\n{}", done.stderr);
    }
    assert_eq!(describe(&home.path("docs")), before);
    assert_eq!(rows(&at("app.sqlite3")), "99\n");
    assert_eq!(sh(&format!("cat '{}.restored-{name}/a'", at("docs"))), "a\n");
    assert_eq!(rows(&format!("{}.restored-{name}", at("app.sqlite3"))), "1\n");
    assert_eq!(sh(&format!("ls -A '{}' | grep tars-restore || true", home.root().display())), "");
    assert!(!home.path("state/run.journal").exists());
}

#[test]
fn the_time_that_it_took_is_told() {
    let home = with_three();
    let done = home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
    let line = done.stderr.lines().find(|l| l.contains(": restored ")).unwrap();
    let took = line.rsplit(", ").next().unwrap();
    assert!(took.starts_with(|c: char| c.is_ascii_digit()) && took.ends_with('s'), "{line}");
    let restore = ["restore", "--latest", "--yes", "--no-safety-backup", "--json"];
    let outcome = home.tars(&restore).expect(0).json();
    assert!(outcome["duration_ms"].as_u64().unwrap() > 0, "{outcome}");
    let elsewhere = ["restore", "--latest", "--to", &home.at("out"), "--json"];
    assert!(home.tars(&elsewhere).expect(0).json()["duration_ms"].as_u64().unwrap() > 0);
}

#[test]
fn a_dry_run_shows_what_would_change_and_changes_nothing() {
    let home = with_three();
    change_all(&home);
    let before = state(&home) + &sh(&format!("cd '{}'; find . | sort", home.root().display()));
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says("directory").says("SQLite database");
    let plan = home.tars(&["restore", "--latest", "--dry-run", "--json"]).expect(0).json();
    assert_eq!(plan["lines"].as_array().unwrap().len(), 3);
    let after = state(&home) + &sh(&format!("cd '{}'; find . | sort", home.root().display()));
    assert_eq!(after, before);
    // Nobody is there to say yes.
    home.tars(&["restore", "--latest"]).expect(64).says("--yes");
    assert_eq!(state(&home) + &sh(&format!("cd '{}'; find . | sort", home.root().display())), before);
}

#[test]
fn elsewhere_means_that_nothing_here_changes() {
    let home = with_three();
    change_all(&home);
    let before = state(&home);
    let to = home.at("elsewhere");
    home.tars(&["restore", "--latest", "--to", &to]).expect(0);
    assert_eq!(state(&home), before);
    assert_eq!(sh(&format!("cat '{to}/documents/a.txt'")), "hello\n");
    assert_eq!(rows(&format!("{to}/app.sqlite3")), "1,2\n");
    // As private as what it comes from may have been.
    assert_eq!(sh(&format!("stat -c %a '{to}/app.sqlite3'")), "600\n");
    // The archive alone is enough, without any configuration.
    let archive = home.object(".tar.gz").display().to_string();
    let second = home.at("second");
    support::run(support::PROGRAM, &["restore", "--backup-file", &archive, "--to", &second]).expect(0);
    assert_eq!(sh(&format!("cat '{second}/more/b.txt'")), "b\n");
}

#[test]
fn an_application_sees_the_new_rows_or_stops_the_restore() {
    for (mode, code) in [("DELETE", 0), ("WAL", 1)] {
        let home = Home::new();
        let db = home.at("app.sqlite3");
        sh(&format!(
            "sqlite3 '{db}' 'PRAGMA journal_mode={mode}; CREATE TABLE t(v); INSERT INTO t VALUES (1)'"
        ));
        let home = home.source("app", &format!("type = \"sqlite\"\npath = \"{db}\"")).ready();
        home.backup(0);
        let script = format!(
            "import sqlite3,sys\nc=sqlite3.connect('{db}')\nc.execute('DELETE FROM t');c.execute('INSERT INTO t VALUES (2)');c.commit()\n\
             list(c.execute('SELECT * FROM t'))\nprint('ready',flush=True)\nsys.stdin.readline()\n\
             print(list(c.execute('SELECT v FROM t')))"
        );
        let mut application = std::process::Command::new("python3")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = std::io::BufReader::new(application.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let done = home.tars(&["restore", "--latest", "--yes"]).expect(code);
        if code == 1 {
            done.says("locked by another program");
        }
        drop(application.stdin.take());
        line.clear();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, if code == 0 { "[(1,)]\n" } else { "[(2,)]\n" }, "{mode}");
        application.wait().unwrap();
        assert_clean(&home);
    }
}

#[test]
fn configuration_gets_references_and_never_a_redacted_file_over_a_live_one() {
    let home = Home::new().documents();
    std::fs::write(home.path("app.env"), "PASSWORD=correct-horse-battery\nPORT=80\n").unwrap();
    let env = home.at("app.env");
    let home = home.source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]")).ready();
    home.backup(0);
    std::fs::write(home.path("app.env"), "PASSWORD=new\n").unwrap();
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says("--restore-config");
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    home.tars(&["restore", "--latest", "--yes", "--component", "configuration"])
        .expect(1)
        .says("--restore-config");
    assert!(!home.path("app.env.reference").exists());
    home.tars(&["restore", "--latest", "--yes", "--restore-config"]).expect(0);
    assert_eq!(std::fs::read_to_string(home.path("app.env")).unwrap(), "PASSWORD=new\n");
    let reference = std::fs::read_to_string(home.path("app.env.reference")).unwrap();
    assert!(reference.contains("PORT=80") && !reference.contains("correct-horse"), "{reference}");
    assert_eq!(sh(&format!("stat -c %a '{env}.reference'")), "600\n");
}

#[test]
fn a_damaged_copy_means_the_next_store_and_damage_everywhere_means_nothing() {
    let home = Home::new().documents().second_store().ready();
    std::fs::create_dir(home.path("second")).unwrap();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let flip = |store: &str| {
        let archive = sh(&format!("ls '{}'/both/*.tar.gz", home.at(store)));
        sh(&format!("printf X | dd of='{}' bs=1 seek=400 conv=notrunc status=none", archive.trim()));
    };
    flip("second");
    std::fs::remove_file(home.path("docs/a.txt")).unwrap();
    sh(&format!("echo other > '{}'", home.at("docs/b")));
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("is damaged");
    assert!(home.path("docs/a.txt").exists());
    flip("store");
    sh(&format!("echo newest > '{}'", home.at("docs/a.txt")));
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("is damaged");
    assert_eq!(sh(&format!("cat '{}'", home.at("docs/a.txt"))), "newest\n");
    assert_clean(&home);
}

#[test]
fn a_partial_backup_needs_a_word() {
    let home = Home::new()
        .documents()
        .source("bad", "type = \"command\"\ncommand = [\"false\"]\ncritical = true")
        .ready();
    home.backup(2);
    let name = home.only();
    std::fs::remove_file(home.path("docs/a.txt")).unwrap();
    home.tars(&["restore", &name, "--yes"]).expect(1).says("it lacks bad");
    home.tars(&["restore", &name, "--yes", "--allow-partial"]).expect(0);
    assert!(home.path("docs/a.txt").exists());
}

#[test]
fn what_a_backup_has_only_in_part_is_never_left_out_without_a_word() {
    let home = Home::new().documents();
    let (env, gone) = (home.at("app.env"), home.at("gone.env"));
    std::fs::write(&env, "PORT=80\n").unwrap();
    let lines = format!("type = \"config_files\"\nfiles = [\"{env}\", \"{gone}\"]\ncritical = false");
    let home = home.source("configuration", &lines).ready();
    home.backup(2);
    let name = home.only();
    assert_eq!(home.manifest()["state"], "degraded");
    let named = ["restore", &name, "--yes", "--component", "documents,configuration", "--restore-config"];
    std::fs::remove_file(home.path("docs/a.txt")).unwrap();
    home.tars(&named).expect(1).says("it lacks configuration or a part of it").says("--allow-partial");
    assert!(!home.path("docs/a.txt").exists());
    let told = "configuration does not come back: it is incomplete in the backup";
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says(told);
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says(told);
    assert!(home.path("docs/a.txt").exists());
    home.tars(&["restore", "--latest", "--to", &home.at("out")]).expect(0).says(told);
    // Nobody wanted it, and nothing is said.
    let done = home.tars(&["restore", "--latest", "--yes", "--skip", "configuration"]).expect(0);
    assert!(!done.stderr.contains("does not come back"), "{}", done.stderr);
    home.tars(&[&named[..], &["--allow-partial"]].concat())
        .expect(0)
        .says("what it lacks does not come back");
    assert!(home.path("app.env.reference").exists());
}

#[test]
fn a_database_does_not_come_back_beside_what_is_left_of_another() {
    let home = with_three();
    change_all(&home);
    sh(&format!("cd '{}'; rm app.sqlite3; echo x > app.sqlite3-wal", home.root().display()));
    home.tars(&["restore", "--latest", "--dry-run"]).expect(2).says("app.sqlite3-wal of it").says("mv -n");
    home.tars(&["restore", "--latest", "--yes"])
        .expect(2)
        .says("app.sqlite3-wal of it")
        .says("restored documents");
    assert!(!home.path("app.sqlite3").exists());
    sh(&format!("cd '{}'; mv app.sqlite3-wal elsewhere", home.root().display()));
    home.tars(&["restore", "--latest", "--yes", "--component", "app"]).expect(0);
    assert_eq!(rows(&home.at("app.sqlite3")), "1,2\n");
    // What is no database any more is not read, and told how to get out of the way.
    std::fs::write(home.path("app.sqlite3"), "no database ".repeat(2000)).unwrap();
    home.tars(&["restore", "--latest", "--yes", "--component", "app"]).expect(1).says("mv -n");
    assert_clean(&home);
}

#[test]
fn the_latest_backup_is_not_chosen_blindly_where_a_store_cannot_be_looked_at() {
    let home = Home::new().documents().second_store().ready();
    std::fs::create_dir(home.path("second")).unwrap();
    home.tars(&["store", "init", "second"]).expect(0);
    home.tars(&["backup", "--tier", "both"]).expect(0);
    let shown = home.tars(&["list", "--json"]).expect(0).stdout;
    let name = shown.split('"').find(|w| w.starts_with("tars-backup-")).unwrap().to_owned();
    std::fs::rename(home.path("second"), home.path("away")).unwrap();
    let gone = || std::fs::remove_file(home.path("docs/a.txt")).unwrap();
    gone();
    let told = format!("{name} may not be the latest");
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says(&told);
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says(&told).says("--from STORE");
    assert!(!home.path("docs/a.txt").exists());
    home.tars(&["restore", "--latest", "--to", &home.at("out")]).expect(0);
    home.tars(&["restore", "--latest", "--from", "nas", "--yes"]).expect(0);
    gone();
    home.tars(&["restore", &name, "--yes"]).expect(0);
    assert!(home.path("docs/a.txt").exists());
}

#[test]
fn configuration_is_known_by_its_whole_path_whatever_the_configuration_names_now() {
    let home = Home::new();
    let env = |dir: &str| home.at(&format!("{dir}/.env"));
    for dir in ["a", "b"] {
        std::fs::create_dir(home.path(dir)).unwrap();
        std::fs::write(env(dir), format!("PORT=80\nNAME={dir}\n")).unwrap();
    }
    let (a, b) = (env("a"), env("b"));
    let of = |files: &[&String]| format!("type = \"config_files\"\nfiles = {files:?}\nown = false");
    let home = home.documents().source("configuration", &of(&[&a, &b])).ready();
    home.backup(0);
    let name = home.only();
    let documents = format!("type = \"directory\"\npath = {:?}", home.at("docs"));
    let home = home.only_source("configuration", &of(&[&a])).source("documents", &documents);
    home.write_config();
    home.tars(&["restore", &name, "--yes"]).expect(0);
    home.tars(&["restore", &name, "--yes", "--restore-config"]).expect(0);
    assert!(std::fs::read_to_string(format!("{a}.reference")).unwrap().contains("NAME=a"));
    std::fs::remove_file(format!("{a}.reference")).unwrap();
    // The one that is alone in its backup has the base name that the other one has now.
    sh("sleep 1.1");
    home.backup(0);
    let home = home.only_source("configuration", &of(&[&b]));
    home.tars(&["restore", "--latest", "--yes", "--component", "configuration", "--restore-config"])
        .expect(1)
        .says("none of the files");
    assert!(!Path::new(&format!("{b}.reference")).exists());
}

#[test]
fn a_signal_after_the_first_component_tells_what_was_decided() {
    let home = Home::new().documents();
    sh(&format!("head -c 300000000 /dev/urandom > '{}'", home.at("docs/noise")));
    let db = home.at("app.sqlite3");
    sh(&format!("sqlite3 '{db}' 'CREATE TABLE t(v); INSERT INTO t VALUES (1)'"));
    let home = home.source("app", &format!("type = \"sqlite\"\npath = \"{db}\"")).ready();
    home.backup(0);
    sh(&format!("echo newer > '{}'; sqlite3 '{db}' 'UPDATE t SET v = 2'", home.at("docs/a.txt")));
    let run = home.spawn(&["restore", "--latest", "--yes", "--no-safety-backup"]);
    wait_for_growth(home.root(), "tars-restore");
    run.signal("TERM");
    let done = run.end().expect(143).says("restored app").says("interrupted: this is what was decided");
    assert!(done.stderr.contains("documents: interrupted"), "{}", done.stderr);
    assert!(!done.stderr.contains("nothing was left behind"), "{}", done.stderr);
    assert_eq!(rows(&db), "1\n");
    assert_eq!(sh(&format!("cat '{}'", home.at("docs/a.txt"))), "newer\n");
    assert_clean(&home);
    home.assert_nothing_left();
}

#[test]
fn whom_a_restore_should_stop_and_cannot_find_is_told() {
    let home = Home::new();
    let docs = home.at("docs");
    sh(&format!("mkdir '{docs}'; echo a > '{docs}/a'"));
    let lines = format!("type = \"directory\"\npath = {docs:?}\ndependents = [\"backend\"]");
    let home = home.source("documents", &lines).env("DOCKER_HOST", "/nowhere/docker.sock").ready();
    home.backup(0);
    let told = "backend cannot be looked up, and is not stopped for documents";
    home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says(told);
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says(told);
    // A host without an engine has nobody to stop.
    let home = home.only_source("documents", &lines.replace("dependents = [\"backend\"]", ""));
    let done = home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert!(!done.stderr.contains("stopped"), "{}", done.stderr);
    // One whose engine does not answer may have somebody.
    std::fs::write(home.path("docker.sock"), "").unwrap();
    let socket = home.at("docker.sock");
    let home = home.extra(&format!("[docker]\nsocket = {socket:?}"));
    home.write_config();
    home.tars(&["restore", "--latest", "--yes"])
        .expect(0)
        .says("no container that has documents mounted is stopped");
}

/// A file system of its own that is full but for `free` bytes, or read-only.
struct Disk(String);

impl Disk {
    fn new(path: &Path, options: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let path = path.display().to_string();
        sh(&format!("mount -t tmpfs -o {options} tmpfs '{path}'"));
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        support::run("umount", &["-l", &self.0]);
    }
}

#[test]
fn a_full_or_read_only_disk_leaves_the_old_data() {
    for how in ["full", "read-only", "mount point"] {
        let home = Home::new();
        let disk = Disk::new(&home.path("disk"), "size=24m");
        let docs = match how {
            // It cannot be renamed: its entries are exchanged within.
            "mount point" => home.at("disk"),
            _ => home.at("disk/docs"),
        };
        sh(&format!(
            "mkdir -p '{docs}/sub'; head -c 8000000 /dev/urandom > '{docs}/sub/noise'; echo a > '{docs}/a'"
        ));
        let home = home.source("documents", &format!("type = \"directory\"\npath = \"{docs}\"")).ready();
        home.backup(0);
        let saved = describe(Path::new(&docs));
        sh(&format!("echo changed > '{docs}/a'; echo more > '{docs}/more'"));
        let before = describe(Path::new(&docs));
        match how {
            "full" => {
                sh(&format!("head -c 12000000 /dev/zero > '{}'", home.at("disk/filler")));
                home.tars(&["restore", "--latest", "--yes"]).expect(1).says("make room");
                assert_eq!(describe(Path::new(&docs)), before);
            }
            "read-only" => {
                sh(&format!("mount -o remount,ro '{}'", disk.0));
                home.tars(&["restore", "--latest", "--yes"]).expect(1);
                assert_eq!(describe(Path::new(&docs)), before);
            }
            _ => {
                home.tars(&["restore", "--latest", "--yes"]).expect(0);
                assert_eq!(describe(Path::new(&docs)), saved);
                assert_eq!(sh(&format!("cat '{docs}/a'")), "a\n");
            }
        }
        assert_clean(&home);
    }
}

#[test]
fn killed_at_any_step_each_component_is_wholly_old_or_wholly_new() {
    let home = with_three();
    // So that the steps take long enough to be hit.
    sh(&format!("for i in $(seq 300); do echo $i > '{0}'/f$i; done", home.at("docs")));
    home.tars(&["backup"]).expect(0);
    change_all(&home);
    sh(&format!("rm '{}'/f1*", home.at("docs")));
    let old = |part: &str| match part {
        "app" => rows(&home.at("app.sqlite3")) == "99\n",
        "docs" => home.path("docs/new").exists() && !home.path("docs/f1").exists(),
        _ => std::fs::read_to_string(home.path("more/b.txt")).unwrap() == "changed\n",
    };
    let new = |part: &str| match part {
        "app" => rows(&home.at("app.sqlite3")) == "1,2\n",
        "docs" => {
            !home.path("docs/new").exists()
                && home.path("docs/f1").exists()
                && home.path("docs/f300").exists()
        }
        _ => std::fs::read_to_string(home.path("more/b.txt")).unwrap() == "b\n",
    };
    killed_at_every_line(
        &home,
        9,
        || restore_to_kill(&home, false, &[]),
        || change_all_again(&home),
        |line| {
            home.tars(&["recover"]).expect(0);
            assert_clean(&home);
            for part in ["app", "docs", "more"] {
                assert!(old(part) || new(part), "{part} is neither old nor new after a kill at line {line}");
            }
            assert_eq!(std::fs::read_to_string(home.path("more/cache/deep/c")).unwrap(), "kept\n");
            // Nothing is in the way of the next one.
            home.tars(&["recover"]).expect(0);
        },
    );
    assert!(new("app") && new("docs") && new("more"));
    home.assert_nothing_left();
}

/// No source captures them, so no backup has them: they must outlive what lies around them.
#[test]
fn a_store_within_what_is_restored_stays() {
    let home = Home::new().documents();
    let inside = home.at("docs/backups");
    let lines =
        "[stores.inside]\ntype = \"fs\"\npath = \"PATH\"\n[tiers.in]\nstores = [\"inside\"]\npath = \"in\"";
    let home = home.extra(&lines.replace("PATH", &inside)).ready();
    sh(&format!("mkdir '{inside}'"));
    home.tars(&["store", "init", "inside"]).expect(0);
    for tier in ["in", "in", "hot"] {
        home.tars(&["backup", "--tier", tier]).expect(0);
    }
    sh(&format!("echo changed > '{}'", home.at("docs/a.txt")));
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert_eq!(sh(&format!("cat '{}'", home.at("docs/a.txt"))), "hello\n");
    assert_eq!(home.committed_at("docs/backups/in").len(), 2);
    home.tars(&["verify", "--all", "--store", "inside", "--deep"]).expect(0);
    home.tars(&["backup", "--tier", "in"]).expect(0);
}

#[test]
fn what_we_work_in_is_not_moved_under_our_feet() {
    let home = Home::new().documents();
    let agent =
        format!("[agent]\nstate_dir = \"{0}/docs/state\"\nruntime_dir = \"{0}/run\"", home.root().display());
    let home = home.extra(&agent).ready();
    home.backup(0);
    sh(&format!("echo changed > '{}'", home.at("docs/a.txt")));
    for how in ["--dry-run", "--yes"] {
        home.tars(&["restore", "--latest", how]).expect(1).says("docs/state of tars-backup lies in it");
    }
    assert_eq!(sh(&format!("cat '{}'", home.at("docs/a.txt"))), "changed\n");
    home.tars(&["restore", "--latest", "--to", &home.at("elsewhere")]).expect(0);
}

/// The journal says what is half done, and nobody can finish it now.
#[test]
fn what_is_half_restored_is_not_backed_up() {
    let home = Home::new().documents();
    let db = home.at("app.sqlite3");
    sh(&format!("sqlite3 '{db}' 'CREATE TABLE t(v); INSERT INTO t VALUES (1)'"));
    let home = home.source("app", &format!("type = \"sqlite\"\npath = \"{db}\"")).ready();
    home.backup(0);
    let change = format!(
        "{{\"way\":\"sqlite\",\"live\":\"{db}\",\"new\":\"{db}.new\",\"old\":\"{db}.old\",\"count\":77,\"inode\":1}}"
    );
    let lines = [
        "{\"step\":\"run\",\"pid\":1,\"socket\":null}".to_owned(),
        format!("{{\"step\":\"change\",\"component\":\"app\",\"change\":{change}}}"),
    ];
    sh(&format!("cp '{db}' '{db}.old'"));
    std::fs::write(home.path("state/run.journal"), lines.join("\n") + "\n").unwrap();
    // Whoever holds it keeps the old one from being loaded.
    let application = rusqlite::Connection::open(home.path("app.sqlite3")).unwrap();
    application.execute_batch("BEGIN EXCLUSIVE").unwrap();
    home.tars(&["backup"]).expect(1).says("a restore was broken off").says("no backup was made");
    assert_eq!(home.committed().len(), 1);
    drop(application);
    home.backup(0);
    assert_eq!(home.committed().len(), 2);
}

#[test]
fn a_signal_leaves_the_old_data_and_nothing_beside_it() {
    let home = Home::new().documents();
    sh(&format!("head -c 300000000 /dev/urandom > '{}'", home.at("docs/noise")));
    let home = home.ready();
    home.backup(0);
    sh(&format!("echo newer > '{}'", home.at("docs/a.txt")));
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let run = home.spawn(&["restore", "--latest", "--yes", "--no-safety-backup"]);
        wait_for_growth(home.root(), "tars-restore");
        run.signal(signal);
        run.end().expect(code);
        assert_clean(&home);
        home.assert_nothing_left();
        assert_eq!(sh(&format!("cat '{}'", home.at("docs/a.txt"))), "newer\n");
    }
}

/// Old data again, whatever the last restore made of it.
fn change_all_again(home: &Home) {
    sh(&format!(
        "cd '{}'; rm -f docs/a.txt docs/f1*; echo changed > docs/new; echo changed > more/b.txt; \
         echo kept > more/cache/deep/c; sqlite3 app.sqlite3 'DELETE FROM t; INSERT INTO t VALUES (99)'",
        home.root().display()
    ));
}
