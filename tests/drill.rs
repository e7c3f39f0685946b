//! Drills without an engine: databases, trees and configuration are brought back into scratch, and counted. What could go
//! wrong: a drill that says good of what it has not seen, one that touches what is live, one that leaves something behind.
//! Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/forge.rs"]
mod forge;
mod support;

use forge::forge;
use serde_json::{Value, json};
use support::{Done, Home, PROGRAM, killed_at_every_line, run, sh};

/// A home with a tree, a database and configuration; its key.
fn home(seal: &str) -> (Home, String) {
    let home = Home::new().documents();
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
            home.assert_nothing_left();
            assert!(!home.path("state/run.journal").exists());
        },
    );
    drill(&home, 0, &[]);
}
