//! Whatever goes wrong in a container is a failed component with its reason; the rest of the backup is kept.

use std::time::{Duration, Instant};

use crate::lab::{Lab, assert_failed, source, until};
use crate::support::Home;

fn home(kind: &str, container: &str, more: &str) -> Home {
    Home::new().documents().source(kind, &source(kind, container, more)).ready()
}

#[test]
fn a_dump_cut_in_the_middle_of_its_rows_is_a_failed_component() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    let _held = lab.hold_dumps(&pg);
    let home = home("postgres", &pg, "");
    let run = home.spawn(&["backup"]);
    lab.until_dump_waits(&pg);
    home.wait_for_staging();
    lab.sh(&pg, "kill -KILL $(pgrep -x pg_dump)");
    assert_failed(&home, run.end(), "postgres", &["pg_dump in", "status 137"], "partial");
    assert_eq!(home.manifest()["components"], serde_json::json!(["documents"]));
}

#[test]
fn whatever_breaks_a_running_dump_is_a_failed_component_with_its_reason() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    let held = lab.hold_dumps(&pg);
    let broken = |what: &str, idle: &str, reasons: &[&str], act: &dyn Fn()| {
        let home = home("postgres", &pg, &format!("idle_timeout = {idle:?}"));
        let run = home.spawn(&["backup"]);
        lab.until_dump_waits(&pg);
        home.wait_for_staging();
        let started = Instant::now();
        act();
        assert_failed(&home, run.end(), "postgres", reasons, "partial");
        assert!(started.elapsed() < Duration::from_secs(60), "{what}: it took {:?}", started.elapsed());
    };
    broken("pg_dump is ended", "5m", &["pg_dump in", "terminated by user"], &|| {
        lab.sh(&pg, "kill -TERM $(pgrep -x pg_dump)");
    });
    broken("the server ends the session", "5m", &["status 1", "terminating connection"], &|| {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'";
        lab.sql(&pg, "tars_home", end);
    });
    broken("the container is paused", "10s", &["pg_dump in", "sent nothing for 10 s"], &|| {
        lab.ok(&["pause", &pg]);
    });
    lab.ok(&["unpause", &pg]);
    lab.sh(&pg, "pkill -KILL -x pg_dump || true");
    broken("the container is killed", "5m", &["pg_dump in"], &|| {
        lab.ok(&["kill", &pg]);
    });
    drop(held);
}

#[test]
fn a_dump_that_waits_for_a_lock_fails_and_does_not_run_on() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(&pg, "tars_home", "CREATE TABLE wanted (a integer)");
    let _lock = lab.session(&pg, "BEGIN; LOCK TABLE wanted IN ACCESS EXCLUSIVE MODE;");
    let home = home("postgres", &pg, "idle_timeout = \"10s\"");
    let done = home.tars(&["backup"]).says("is it waiting for a lock?");
    assert_failed(&home, done, "postgres", &["pg_dump in", "sent nothing for 10 s"], "partial");
    lab.assert_dump_is_gone(&pg);
}

#[test]
fn a_signal_during_a_dump_ends_it_in_the_container_too_and_leaves_nothing() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    let _held = lab.hold_dumps(&pg);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let home = home("postgres", &pg, "");
        let run = home.spawn(&["backup"]);
        lab.until_dump_waits(&pg);
        home.wait_for_staging();
        let started = Instant::now();
        run.signal(signal);
        run.end().expect(code).says("interrupted");
        assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
        assert_eq!(home.committed(), [""; 0]);
        home.assert_nothing_left();
        lab.assert_dump_is_gone(&pg);
    }
}

#[test]
fn what_the_postgresql_server_refuses_is_a_failed_component() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(
        &pg,
        "tars_home",
        "CREATE ROLE limited LOGIN; CREATE TABLE open (a integer); CREATE TABLE closed (a integer);
         GRANT SELECT ON open TO limited;",
    );
    let fails = |more: &str, reasons: &[&str], hint: &str| {
        let home = home("postgres", &pg, more);
        let done = home.tars(&["backup"]).says(hint);
        assert_failed(&home, done, "postgres", reasons, "partial");
    };
    let limited = "user = \"limited\"\ndatabases = [\"tars_home\"]";
    fails(limited, &["pg_dumpall in", "permission denied for table pg_authid"], "docker logs");
    fails(
        &format!("{limited}\nglobals = false"),
        &["pg_dump in", "permission denied for table closed"],
        "docker logs",
    );
    fails(
        "databases = [\"tars_home\", \"gone away\"]",
        &["database \"gone away\""],
        "it has: postgres, tars_home",
    );
    fails("user = \"nobody here\"", &["role \"nobody here\" does not exist"], "docker logs");
    // All names of the program, as distributions have wrappers.
    lab.sh(&pg, "rm -f $(which -a pg_dump)");
    fails("globals = false", &["pg_dump in", "status 127", "not found"], "docker logs");
}

#[test]
fn a_container_that_is_missing_stopped_or_paused_is_a_failed_component_at_once() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &[]);
    let fails = |container: &str, reasons: &[&str], hint: &str| {
        let home = home("redis", container, "service = \"no such service\"");
        let started = Instant::now();
        let done = home.tars(&["backup"]).says(hint);
        assert_failed(&home, done, "redis", reasons, "degraded");
        assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    };
    fails("tars-test-nowhere", &["there is no container \"tars-test-nowhere\""], "docker ps -a");
    lab.ok(&["pause", &redis]);
    fails(&redis, &[&format!("container {redis} is paused")], "docker");
    lab.ok(&["unpause", &redis]);
    lab.ok(&["stop", "-t", "0", &redis]);
    fails(&redis, &[&format!("container {redis} is exited")], &format!("docker start {redis}"));
    // A missing critical component makes it partial.
    let home = home("redis", &redis, "critical = true");
    assert_failed(&home, home.tars(&["backup"]), "redis", &["is exited"], "partial");
}

#[test]
fn a_save_that_fails_is_a_failed_component_and_the_next_one_is_good() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &["--save", ""]);
    lab.redis_cli(&redis, &["SET", "a", "1"]);
    lab.redis_cli(&redis, &["SAVE"]);
    lab.redis_cli(&redis, &["SET", "b", "2"]);
    // The old dump file stays readable: it must not be taken for a new one.
    lab.sh(&redis, "chown root:root /data && chmod 755 /data");
    let refused = home("redis", &redis, "");
    let done = refused.tars(&["backup"]).says("is the disk full or read-only?");
    assert_failed(&refused, done, "redis", &["the background save failed"], "degraded");
    lab.sh(&redis, "chown redis:redis /data");
    let home = home("redis", &redis, "");
    home.backup(0);
    assert_eq!(home.manifest()["details"]["redis"]["facts"]["databases"]["0"]["keys"], 2);
}

#[test]
fn when_every_component_fails_nothing_is_made() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &[]);
    lab.ok(&["kill", &redis]);
    until("it is dead", || lab.ok(&["inspect", "-f", "{{.State.Running}}", &redis]).trim() == "false");
    let home = Home::new()
        .source("redis", &source("redis", &redis, ""))
        .source("postgres", &source("postgres", "tars-test-nowhere", "service = \"no such service\""))
        .ready();
    let done = home.tars(&["backup"]).expect(1).says("No backup was made");
    for text in [format!("container {redis} is exited"), "there is no container \"tars-test-nowhere\"".into()]
    {
        assert_eq!(
            done.stderr.matches(&text).count(),
            2,
            "once in the log, once in the summary: {}",
            done.stderr
        );
    }
    assert_eq!(home.committed(), [""; 0]);
    home.assert_nothing_left();
}
