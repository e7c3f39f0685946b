//! Drills without an engine: databases, trees and configuration are brought back into scratch, and counted. What could go
//! wrong: a drill that says good of what it has not seen, one that touches what is live, one that leaves something behind.
//! Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/forge.rs"]
mod forge;
mod support;

use std::path::Path;

use forge::forge;
use serde_json::{Value, json};
use support::{Done, Home, PROGRAM, killed_at_every_line, run, sh};

/// A home with a tree, a database and configuration; its key.
fn home(seal: &str) -> (Home, String) {
    home_with(seal, |home| home)
}

/// The same with more in it.
fn home_with(seal: &str, more: impl FnOnce(Home) -> Home) -> (Home, String) {
    let home = more(Home::new().documents());
    let (key, env, db) = (home.at("key.txt"), home.at("app.env"), home.at("app.db"));
    let said = run(PROGRAM, &["key", "new", "--output", &key]).expect(0).stderr;
    let recipient = said.split_whitespace().find(|w| w.starts_with("age1")).unwrap().to_owned();
    sh(&format!(
        "printf 'PASSWORD=correct-horse-battery\\n' >'{env}'; ln -s a.txt '{0}/docs/link'; mkdir '{0}/docs/empty'
         sqlite3 '{db}' 'CREATE TABLE people (n); INSERT INTO people VALUES (1), (2), (3); CREATE TABLE none (n)'",
        home.root().display()
    ));
    let home = home
        .source("app", &format!("type = \"sqlite\"\npath = \"{db}\""))
        .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]"))
        .source("told", "type = \"command\"\ncommand = [\"echo\", \"x\"]")
        .extra(&format!("[encryption]\nrecipients = [\"{recipient}\"]\nseal = \"{seal}\""))
        .ready();
    home.backup(0);
    (home, recipient)
}

fn line<'a>(report: &'a Value, component: &str) -> &'a Value {
    let lines = report["components"].as_array().unwrap();
    lines.iter().find(|l| l["component"] == component).unwrap_or_else(|| panic!("{component}: {report}"))
}

/// A drill with the key, which must end with `code`; nothing of it is left, and nothing live is touched.
#[track_caller]
fn drill(home: &Home, code: i32, more: &[&str]) -> (Value, Done) {
    let live =
        |home: &Home| sh(&format!("cd '{}'; sha256sum app.db app.env docs/a.txt; ls", home.root().display()));
    let before = live(home);
    let key = home.at("key.txt");
    let args = [&["drill", "--json", "--identity", key.as_str()], more].concat();
    let done = home.tars(&args).expect(code);
    assert_eq!(live(home), before);
    home.assert_nothing_left();
    assert!(!home.path("state/run.journal").exists());
    (done.json(), done)
}

#[test]
fn all_of_it_is_brought_back_and_counted() {
    for seal in ["never", "always"] {
        let (home, _) = home(seal);
        let (report, _) = drill(&home, 0, &["--latest", "--from", "nas"]);
        assert_eq!(report["verdict"], "good", "{report}");
        assert!(report["rto_ms"].as_u64().is_some() && report["left"] == json!([]), "{report}");
        let compared = |component: &str, what: &str| {
            let all = line(&report, component)["compared"].as_array().unwrap().clone();
            let one =
                all.iter().find(|c| c["what"] == what).unwrap_or_else(|| panic!("{what}: {all:?}")).clone();
            assert_eq!((&one["equal"], &one["manifest"]), (&json!(true), &one["found"]), "{one}");
            one["found"].as_u64().unwrap()
        };
        assert_eq!(compared("app", "rows of people"), 3);
        assert_eq!(compared("app", "rows of none"), 0);
        assert_eq!(compared("app", "tables"), 2);
        assert_eq!(compared("documents", "files"), 1);
        assert_eq!(compared("documents", "symlinks"), 1);
        assert_eq!(compared("documents", "directories"), 2);
        assert_eq!(compared("configuration", "originals"), 2, "the env file and our own configuration");
        assert_eq!(line(&report, "told")["proof"], "proved");
        let mark: Value = serde_json::from_slice(&std::fs::read(home.object(".drilled")).unwrap()).unwrap();
        assert_eq!((&mark["verdict"], &mark["failed"]), (&json!("good"), &json!([])), "{mark}");
    }
}

#[test]
fn it_says_in_words_what_was_proved() {
    let (home, _) = home("always");
    let key = home.at("key.txt");
    home.tars(&["drill", "-v", "--identity", &key])
        .expect(0)
        .says(": good")
        .says("app: proved: a scratch file")
        .says("rows of people: 3 in the manifest, 3 found")
        .says("Time to recover: ")
        .says("documents: proved: a scratch directory");
}

#[test]
fn what_a_backup_calls_its_tables_makes_no_line_of_its_own() {
    let (home, _) = home("never");
    let db = home.at("app.db");
    sh(&format!("printf 'CREATE TABLE \"x\\n  postgres: proved\\033[2J\" (n);' | sqlite3 '{db}'"));
    home.tars(&["backup"]).expect(0);
    let said = home.tars(&["drill", "-v", "--identity", &home.at("key.txt")]).expect(0).stdout;
    assert!(said.contains("rows of x"), "{said}");
    assert!(!said.contains('\u{1b}') && !said.lines().any(|l| l.starts_with("  postgres")), "{said}");
}

#[test]
fn without_the_identity_nothing_is_called_good() {
    let (sealed, _) = home("always");
    let report = sealed.tars(&["drill", "--json"]).expect(2).json();
    assert_eq!(report["verdict"], "not_drilled");
    assert!(
        report["reason"].as_str().unwrap().contains("cannot be opened: it is sealed, and no identity"),
        "{report}"
    );
    assert!(!sealed.object(".drilled").exists(), "nothing new is known of it");
    sealed.tars(&["drill"]).expect(2).says("NOT DRILLED").says("--identity FILE");
    // The archive is open, and the originals of the configuration in it are not.
    let (plain, _) = home("never");
    let report = plain.tars(&["drill", "--json"]).expect(2).json();
    assert_eq!(report["verdict"], "partly", "{report}");
    assert_eq!(line(&report, "configuration")["proof"], "not_drilled");
    let reason = line(&report, "configuration")["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("the originals stay sealed"), "{reason}");
    assert_eq!(line(&report, "app")["proof"], "proved");
}

#[test]
fn an_identity_that_cannot_be_read_is_told_and_nothing_is_called_bad() {
    let (sealed, _) = home("always");
    let (plain, _) = home("never");
    let garbage = sealed.at("garbage.txt");
    std::fs::write(&garbage, "this is no key\n").unwrap();
    for (key, why) in [("/nonexistent", "cannot read the identity file"), (&garbage, "is no identity")] {
        let report = sealed.tars(&["drill", "--json", "--identity", key]).expect(2).json();
        assert_eq!(report["verdict"], "not_drilled", "{report}");
        assert!(report["reason"].as_str().unwrap().contains(why), "{report}");
        assert!(!sealed.object(".drilled").exists(), "nothing new is known of it");
        let report = plain.tars(&["drill", "--json", "--identity", key]).expect(2).json();
        assert_eq!(report["verdict"], "partly", "{report}");
        let reason = line(&report, "configuration")["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(why), "{reason}");
    }
}

/// A small file system, until it is dropped.
struct Disk(String);

impl Disk {
    fn new(path: String, options: &str) -> Self {
        sh(&format!("mkdir -p '{path}'; mount -t tmpfs -o {options} tmpfs '{path}'"));
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &["-l", &self.0]);
    }
}

#[test]
fn a_disk_that_is_too_small_says_nothing_of_the_backup() {
    let (home, _) = home_with("never", |home| {
        let agent = format!(
            "[agent]\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\nstaging_dir = \"{0}/small\"",
            home.root().display()
        );
        // 2.9 MiB each; in the archive next to nothing.
        ["one", "two"].into_iter().fold(home.extra(&agent), |home, name| {
            let path = home.at(name);
            sh(&format!("mkdir '{path}'; (yes {name} || true) | head -c 3040870 >'{path}/text'"));
            home.source(name, &format!("type = \"directory\"\npath = \"{path}\""))
        })
    });
    drill(&home, 0, &[]);
    let mark = std::fs::read(home.object(".drilled")).unwrap();
    // Too small for one of them, for both together; no inode left for the archive, for a tree, in a tree; read-only.
    for options in ["size=2m", "size=5m", "nr_inodes=10", "nr_inodes=14", "nr_inodes=17", "ro"] {
        let disk = Disk::new(home.at("small"), options);
        let (report, _) = drill(&home, 2, &[]);
        drop(disk);
        let lines = report["components"].as_array().unwrap();
        assert!(lines.iter().all(|l| l["proof"] != "failed"), "{options}: {report}");
        let why = report["reason"].as_str().map(str::to_owned);
        let whys = lines.iter().filter(|l| l["proof"] == "not_drilled").map(|l| l["reason"].to_string());
        let whys: Vec<String> = whys.chain(why).collect();
        assert!(!whys.is_empty() && whys.iter().all(|w| w.len() > 10), "{options}: {report}");
        if options == "size=5m" {
            assert_eq!(whys.len(), 1, "{report}");
            assert!(whys[0].contains("free, and") && whys[0].contains("needed"), "{whys:?}");
            let one = lines.iter().find(|l| l["proof"] == "not_drilled").unwrap();
            assert!(one["hint"].as_str().unwrap().contains("agent.staging_dir"), "{one}");
        }
        assert_eq!(std::fs::read(home.object(".drilled")).unwrap(), mark, "{options}: what was proved stays");
    }
    home.tars(&["status"]).expect(0);
}

#[test]
fn a_drill_that_sees_less_does_not_take_back_that_it_was_bad() {
    let (home, _) = home("never");
    forge(&home, None, |_, manifest| manifest["details"]["configuration"]["facts"]["originals"] = json!(7));
    drill(&home, 1, &[]);
    let mark = std::fs::read(home.object(".drilled")).unwrap();
    // Without the key nobody looks at what was bad.
    let said = home.tars(&["drill"]).expect(2).says("the earlier result");
    assert!(said.stdout.contains("bad"), "{}", said.stdout);
    assert_eq!(std::fs::read(home.object(".drilled")).unwrap(), mark);
    home.tars(&["status"]).expect(1);
}

#[test]
fn a_newest_backup_that_failed_stays_a_problem_when_an_older_one_is_drilled_well() {
    let (home, _) = home("never");
    let (old, store, away) = (home.only(), home.at("store/daily"), home.at("away"));
    sh(&format!("mkdir '{away}'; mv '{store}/{old}'.* '{away}'; sleep 1.1"));
    home.backup(0);
    let new = home.only();
    forge(&home, None, |_, manifest| manifest["details"]["app"]["facts"]["rows"]["people"] = json!(4));
    sh(&format!("mv '{away}'/* '{store}'"));
    home.tars(&["verify", "--all"]).expect(0);
    drill(&home, 1, &[&new]);
    home.tars(&["status"]).expect(1).says(&new);
    drill(&home, 0, &[&old]);
    let said = home.tars(&["status"]).expect(1);
    let problem = said.stdout.lines().find(|l| l.contains("could not bring app back")).unwrap_or_default();
    assert!(problem.contains(&new), "{}", said.stdout);
    let row = said.stdout.lines().find(|l| l.starts_with("app ")).unwrap();
    assert!(row.contains("BAD") && row.ends_with(&new), "{row}");
    // What was drilled well is another backup than the one of the row.
    let row = said.stdout.lines().find(|l| l.starts_with("documents ")).unwrap();
    assert!(row.contains(&format!("({new})")) || !row.contains("BAD"), "{row}");
    let status = home.tars(&["status", "--json"]).json();
    let app = status["components"].as_array().unwrap().iter().find(|c| c["component"] == "app").unwrap();
    assert_eq!((&app["drill_failed"], &app["drilled"]["backup"]), (&json!(true), &json!(old)), "{app}");
    // A newer one that came back ends it; the bad one is still told.
    sh("sleep 1.1");
    home.backup(0);
    drill(&home, 0, &["--latest"]);
    home.tars(&["status"]).expect(0).says(&new);
}

#[test]
fn what_a_backup_should_have_and_lacks_is_told() {
    let expects = |edit: fn(&mut Value)| {
        let (home, _) = home("never");
        forge(&home, None, |_, manifest| edit(manifest));
        home
    };
    let more = |manifest: &mut Value| {
        manifest["expected_components"].as_array_mut().unwrap().push(json!("mail"));
    };
    let home = expects(more);
    let (report, _) = drill(&home, 2, &[]);
    assert_eq!(report["verdict"], "partly", "{report}");
    let lacks = line(&report, "mail");
    assert_eq!((&lacks["proof"], &lacks["reason"]), (&json!("not_drilled"), &json!("the backup lacks it")));
    home.tars(&["verify", "--deep", &home.only(), "--identity", &home.at("key.txt")]).expect(1).says("mail");
    let home = expects(|manifest| manifest["failed_components"].as_array_mut().unwrap().push(json!("mail")));
    assert_eq!(line(&drill(&home, 2, &[]).0, "mail")["proof"], "not_drilled");
    // Nobody wanted it in that backup.
    let home = expects(|manifest| {
        manifest["expected_components"].as_array_mut().unwrap().push(json!("mail"));
        manifest["skip"] = json!(["mail"]);
    });
    let name = home.only();
    assert_eq!(drill(&home, 0, &[&name]).0["verdict"], "good");
    home.tars(&["verify", "--deep", &name]).expect(0);
}

#[test]
fn a_backup_of_a_newer_version_is_neither_good_nor_bad() {
    let (home, _) = home("never");
    let name = home.only();
    home.tars(&["verify", &name]).expect(0);
    drill(&home, 0, &[&name]);
    let (drilled, verified) = (home.object(".drilled"), home.object(".verified"));
    let marks = || (std::fs::read(&drilled).unwrap(), std::fs::read(&verified).unwrap());
    let before = marks();
    let manifest = home.object(".manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace("\"schema\": 1", "\"schema\": 2");
    let of = |text: &str| {
        let at = text.find("\"manifest_sha256\": \"").unwrap() + "\"manifest_sha256\": \"".len();
        (text[..at].to_owned(), text[at + 64..].to_owned())
    };
    let (begin, end) = of(&text);
    std::fs::write(&manifest, format!("{begin}{end}")).unwrap();
    let digest = sh(&format!("sha256sum '{}' | cut -c1-64", manifest.display()));
    std::fs::write(&manifest, format!("{begin}{}{end}", digest.trim())).unwrap();
    let (report, _) = drill(&home, 2, &[&name]);
    assert_eq!(report["verdict"], "not_drilled", "{report}");
    assert!(report["reason"].as_str().unwrap().contains("schema 2"), "{report}");
    assert!(report["hint"].as_str().unwrap().contains("the version that made it"), "{report}");
    for deep in [None, Some("--deep")] {
        let args: Vec<&str> = ["verify", name.as_str()].into_iter().chain(deep).collect();
        home.tars(&args).expect(2).says("NOT CHECKED").says("schema 2").says("the version that made it");
    }
    assert_eq!(marks(), before);
    home.tars(&["restore", &name, "--yes", "--to", &home.at("out")])
        .expect(1)
        .says("the version that made it");
}

#[test]
fn of_a_manifest_that_cannot_be_read_nothing_is_noted() {
    let (home, _) = home("never");
    let name = home.only();
    std::fs::write(home.object(".manifest.json"), "{").unwrap();
    let (report, _) = drill(&home, 1, &[&name]);
    assert_eq!(report["verdict"], "bad", "{report}");
    assert!(!home.object(".drilled").exists(), "it would be a mark of nothing");
}

#[test]
fn numbers_that_are_missing_prove_nothing() {
    type Lie = (&'static str, fn(&Path, &mut Value), &'static str);
    let lies: [Lie; 6] = [
        ("documents", |_, c| c["facts"] = json!({}), "the manifest has no numbers of it"),
        ("documents", |_, c| drop(c["facts"].as_object_mut().unwrap().remove("files")), "how many files"),
        (
            "configuration",
            |dir, c| {
                std::fs::remove_file(dir.join("config/originals.tar.age")).unwrap();
                let members = c["members"].as_array_mut().unwrap();
                members.retain(|m| m != "config/originals.tar.age");
            },
            "originals: the manifest says 2, found 0",
        ),
        ("configuration", |_, c| c["facts"] = json!({}), "files: the manifest says 0"),
        ("papers", |_, c| c["facts"]["files"] = json!(99), "files"),
        ("papers", |_, c| drop(c["facts"].as_object_mut().unwrap().remove("bytes")), "bytes"),
    ];
    for (component, lie, why) in lies {
        let (home, _) = home_with("never", |home| {
            let path = home.at("docs");
            home.source("papers", &format!("type = \"directory\"\nmode = \"inventory\"\npath = \"{path}\""))
        });
        forge(&home, None, |dir, manifest| lie(dir, &mut manifest["details"][component]));
        let (report, _) = drill(&home, 1, &[]);
        let reason = line(&report, component)["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(why), "{component}: {reason}");
        for other in ["app", "documents", "configuration", "papers"].iter().filter(|o| **o != component) {
            assert_eq!(line(&report, other)["proof"], "proved", "{report}");
        }
        if component == "papers" {
            home.tars(&["verify", "--deep", &home.only()]).expect(1).says(why);
        }
    }
}

#[test]
fn a_manifest_that_lies_fails_although_every_digest_is_right() {
    type Lie = (&'static str, fn(&mut Value), &'static str);
    let lies: [Lie; 4] = [
        ("app", |f| f["rows"]["people"] = json!(4), "row counts"),
        ("app", |f| drop(f["rows"].as_object_mut().unwrap().remove("none")), "row counts"),
        ("documents", |f| f["files"] = json!(2), "files"),
        ("configuration", |f| f["originals"] = json!(7), "originals: the manifest says 7, found 2"),
    ];
    for sealed in [false, true] {
        for (component, lie, why) in lies {
            let (home, recipient) = home("never");
            let seal = sealed.then_some(recipient.as_str());
            forge(&home, seal, |_, manifest| lie(&mut manifest["details"][component]["facts"]));
            let (report, done) = drill(&home, 1, &["--latest"]);
            assert_eq!(report["verdict"], "bad");
            let reason = line(&report, component)["reason"].as_str().unwrap_or_default().to_owned();
            assert!(reason.contains(why), "{component}: {reason}");
            for other in ["app", "documents", "configuration"].iter().filter(|o| **o != component) {
                assert_eq!(line(&report, other)["proof"], "proved", "{report}");
            }
            assert!(done.stderr.contains(&format!("BAD: {component}: ")), "{}", done.stderr);
            let mark: Value =
                serde_json::from_slice(&std::fs::read(home.object(".drilled")).unwrap()).unwrap();
            assert_eq!((&mark["verdict"], &mark["failed"]), (&json!("bad"), &json!([component])));
        }
    }
}

#[test]
fn each_component_that_is_damaged_fails_for_its_own_reason() {
    type Damage = (&'static str, &'static str, &'static str);
    let damages: [Damage; 4] = [
        // A page of the database is noise, and its compression is whole.
        (
            "app",
            "gunzip app.sqlite3.gz; printf 'garbage-garbage' | dd of=app.sqlite3 bs=1 seek=4096 conv=notrunc; gzip app.sqlite3",
            "database",
        ),
        ("app", "gunzip app.sqlite3.gz; truncate -s 4096 app.sqlite3; gzip app.sqlite3", "database"),
        ("documents", "gunzip documents.tar.gz; truncate -s 1000 documents.tar; gzip documents.tar", "tar"),
        ("configuration", "truncate -s -40 config/originals.tar.age", "originals"),
    ];
    for (component, damage, why) in damages {
        let (home, recipient) = home("never");
        forge(&home, Some(&recipient), |dir, _| {
            drop(sh(&format!("cd '{}'; {damage} 2>/dev/null", dir.display())))
        });
        let (report, _) = drill(&home, 1, &[]);
        assert_eq!(report["verdict"], "bad", "{report}");
        let reason = line(&report, component)["reason"].as_str().unwrap_or_default().to_owned();
        assert!(reason.contains(why), "{component} ({damage}): {reason}");
        for other in ["app", "documents", "configuration"].iter().filter(|o| **o != component) {
            assert_eq!(line(&report, other)["proof"], "proved", "{report}");
        }
    }
}

#[test]
fn bytes_that_changed_in_the_store_are_bad_and_count_no_more() {
    let (home, _) = home("never");
    home.tars(&["verify", "--latest"]).expect(0);
    assert!(home.object(".verified").exists());
    let archive = home.object(".tar.gz");
    sh(&format!("printf x | dd of='{}' bs=1 seek=700 conv=notrunc 2>/dev/null", archive.display()));
    let (report, _) = drill(&home, 1, &[]);
    assert_eq!((&report["verdict"], &report["components"]), (&json!("bad"), &json!([])), "{report}");
    assert!(report["reason"].as_str().unwrap().contains("is damaged"), "{report}");
    assert!(!home.object(".verified").exists());
    home.tars(&["status"]).expect(1).says("the last drill");
}

#[test]
fn a_store_that_does_not_answer_says_nothing_of_the_backup() {
    let (home, _) = home("never");
    let archive = home.object(".tar.gz");
    sh(&format!("mv '{0}' '{0}.away'; mkdir '{0}'", archive.display()));
    let done = home.tars(&["drill"]);
    sh(&format!("rmdir '{0}'; mv '{0}.away' '{0}'", archive.display()));
    assert_eq!(done.code, 1, "{}{}", done.stdout, done.stderr);
    assert!(!home.object(".drilled").exists());
    drill(&home, 0, &[]);
}

#[test]
fn a_timer_drills_nothing_where_no_identity_is_configured() {
    let (home, _) = home("never");
    home.tars(&["drill", "--latest", "--if-identity"]).expect(0).says("No identity is configured here");
    assert!(!home.object(".drilled").exists());
    let key = home.at("key.txt");
    let home = home.extra(&format!("identity = {{ file = \"{key}\" }}"));
    home.write_config();
    home.tars(&["drill", "--latest", "--if-identity"]).expect(0).says(": good");
}

#[test]
fn a_machine_without_a_configuration_can_drill() {
    let (home, _) = home("always");
    let (url, key) = (format!("file://{}", home.at("store")), home.at("key.txt"));
    let state = home.at("elsewhere");
    let mut drill = std::process::Command::new(PROGRAM);
    drill.args(["drill", "--json", "--from", &url, "--identity", &key]);
    drill.env("HOME", &state).env("XDG_STATE_HOME", &state);
    let out = drill.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}");
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["verdict"], "good", "{report}");
}

#[test]
fn killed_anywhere_it_leaves_nothing_that_recover_does_not_remove() {
    let (home, _) = home("never");
    let key = home.at("key.txt");
    killed_at_every_line(
        &home,
        3,
        || {
            let mut run = home.command(&["drill", "--identity", &key, "--wait", "30s"]);
            run.env("TARS_BACKUP_GUARDIAN", "no");
            run
        },
        || (),
        |_| {
            home.tars(&["recover"]).expect(0);
            // The mark in the making, when all else was gone already. It is removed by the next delivery, as any.
            sh(&format!("rm -f '{}'/.tars-backup-tmp-*.drilled", home.at("store/daily")));
            home.assert_nothing_left();
            assert!(!home.path("state/run.journal").exists());
        },
    );
    drill(&home, 0, &[]);
}
