//! `status` on a machine without systemd: it is healthy when everything can be had back, and says what is wrong when not.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::Home;

#[track_caller]
fn status(home: &Home, code: i32) -> Value {
    home.tars(&["status", "--json"]).expect(code).json()
}

#[track_caller]
fn problems(home: &Home) -> String {
    let status = status(home, 1);
    assert_eq!(status["healthy"], false, "{status}");
    let text = status["problems"].as_array().unwrap().iter().map(|p| p["what"].as_str().unwrap());
    text.collect::<Vec<_>>().join("\n")
}

#[test]
fn it_is_healthy_with_a_good_backup_of_everything_and_says_which() {
    let home = Home::new().documents().ready();
    let before = problems(&home);
    assert!(before.contains("there is no good backup of hot in nas"), "{before}");
    home.backup(0);
    let good = status(&home, 0);
    let name = home.only();
    assert_eq!(good["components"][0]["component"], "documents");
    assert_eq!(good["components"][0]["backup"], name.as_str(), "{good}");
    assert!(good["components"][0]["verified"]["time"].is_string(), "{good}");
    assert_eq!(
        (&good["tiers"][0]["backups"], &good["tiers"][0]["newest"]),
        (&1.into(), &name.as_str().into())
    );
    assert_eq!(good["tiers"][0]["last_run"]["status"], 0);
    home.tars(&["status"]).expect(0).says("healthy").says(&name).says("Waiting in the spool: empty");
}

#[test]
fn what_is_wrong_is_told_with_its_reason() {
    let failing = "type = \"command\"\ncommand = [\"sh\", \"-c\", \"echo no luck >&2; exit 7\"]";
    let home = Home::new().documents().source("extra", failing).ready();
    home.backup(2);
    let told = problems(&home);
    for text in ["lacks extra", "extra is in no backup in nas", "ended with status 2", "no luck"] {
        assert!(told.contains(text), "{text:?} is not in:\n{told}");
    }

    let home = Home::new().documents().ready();
    home.backup(0);
    std::fs::write(home.object(".tar.gz"), "cut").unwrap();
    assert!(problems(&home).contains("is damaged"), "{}", problems(&home));
    std::fs::remove_file(home.object(".tar.gz.sha256")).unwrap();
    std::fs::remove_dir_all(home.path("store")).unwrap();
    assert!(problems(&home).contains("is not there"), "{}", problems(&home));
}

#[test]
fn a_copy_that_is_not_known_to_be_readable_is_a_problem_and_one_in_the_spool_too() {
    let home = Home::new().documents().second_store().ready();
    home.backup(0);
    std::fs::remove_file(home.object(".verified")).unwrap();
    let told = problems(&home);
    assert!(told.contains("is not known to be readable"), "{told}");
    home.tars(&["verify", "--latest", "--store", "nas"]).expect(0);
    let told = problems(&home);
    assert!(!told.contains("readable") && told.contains("second"), "{told}");

    home.tars(&["store", "init", "second"]).expect(0);
    status(&home, 0);
    std::fs::rename(home.path("second"), home.path("away")).unwrap();
    home.tars(&["backup", "--tier", "both"]).expect(2);
    std::fs::rename(home.path("away"), home.path("second")).unwrap();
    let waiting = status(&home, 1);
    assert_eq!(waiting["spool"]["backups"], 1, "{waiting}");
    assert!(problems(&home).contains("waits for second"), "{}", problems(&home));
    home.tars(&["sync"]).expect(0);
    // What was wrong with that run is over.
    status(&home, 0);
}

#[test]
fn secrets_that_are_in_no_backup_are_a_warning() {
    let home = Home::new();
    std::fs::write(home.path("stack.env"), "A=1\n").unwrap();
    let file = home.at("stack.env");
    let home = home.source("configuration", &format!("type = \"config_files\"\nfiles = [{file:?}]")).ready();
    home.backup(0);
    let good = status(&home, 0);
    assert!(good["warnings"].to_string().contains("the secrets of this stack are in no backup"), "{good}");
}

#[test]
fn a_tier_that_is_not_configured_is_no_failure_where_that_was_said() {
    let home = Home::new().documents().ready();
    home.tars(&["backup", "--tier", "cold"]).expect(78);
    home.tars(&["backup", "--tier", "cold", "--if-configured"]).expect(0).says("Tier cold is not configured");
    home.tars(&["backup", "--tier", "hot", "--if-configured", "--wait-ready", "1ms"]).expect(0);
    assert_eq!(home.committed().len(), 1);
}

#[test]
fn the_instance_of_a_unit_says_what_is_restored() {
    let home = Home::new().documents();
    std::fs::create_dir(home.path("more")).unwrap();
    std::fs::write(home.path("more/b.txt"), "more\n").unwrap();
    let more = home.at("more");
    let home = home.source("more", &format!("type = \"directory\"\npath = {more:?}")).ready();
    home.backup(0);
    let name = home.only();
    let [a, b] = ["docs/a.txt", "more/b.txt"].map(|f| home.path(f));
    for (instance, restored) in [
        ("documents".to_owned(), [true, false]),
        ("latest:more".to_owned(), [false, true]),
        (name.clone(), [true, true]),
        (format!("{name}:more,documents"), [true, true]),
        ("latest".to_owned(), [true, true]),
    ] {
        std::fs::write(&a, "changed\n").unwrap();
        std::fs::write(&b, "changed\n").unwrap();
        home.tars(&["restore", "--unit-instance", &instance, "--yes"]).expect(0);
        let back = [&a, &b].map(|f| std::fs::read_to_string(f).unwrap() != "changed\n");
        assert_eq!(back, restored, "{instance}");
    }
    home.tars(&["restore", "--unit-instance", "latest:nothing", "--yes"]).expect(64);
}
