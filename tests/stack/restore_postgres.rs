//! Databases come back into their server: whole, with everything that belongs to them, or not at all. What could go wrong:
//! a dump that does not load, and live data that is gone by then.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{Lab, source, until};
use crate::postgres::{SECOND, assert_same, load_odd_data, portrait};
use crate::support::{Home, killed_at_every_line, restore_to_kill, sh};

fn home_of(pg: &str, more: &str) -> Home {
    Home::new().source("postgres", &source("postgres", pg, more)).ready()
}

/// Nothing that is made during a restore is left.
#[track_caller]
fn assert_clean(lab: &Lab, home: &Home, pg: &str) {
    let all = lab.sql(pg, "template1", "SELECT datname FROM pg_database");
    assert!(!all.contains("__tars"), "{all}");
    assert!(!home.path("state/run.journal").exists());
}

#[test]
fn odd_databases_come_back_with_everything_that_belongs_to_them() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    load_odd_data(&lab, &pg);
    let home = home_of(&pg, "");
    let before = portrait(&lab, &pg);
    home.backup(0);

    lab.sql(&pg, "postgres", &format!("DROP DATABASE \"{SECOND}\"; DROP ROLE \"zweite \"\"Besitzer\"\"\""));
    lab.sql(
        &pg,
        "tars_home",
        "DROP SCHEMA app CASCADE; DROP SCHEMA public CASCADE; SELECT lo_unlink(oid) FROM pg_largeobject_metadata;
         CREATE SCHEMA public; CREATE TABLE fresh (v integer); REVOKE app_group FROM app_reader;
         ALTER DATABASE tars_home RESET ALL; ALTER DATABASE tars_home OWNER TO app_old;
         COMMENT ON DATABASE tars_home IS NULL; ALTER DATABASE tars_home CONNECTION LIMIT -1;",
    );
    // What the backup does not know stays.
    lab.sql(&pg, "postgres", "CREATE DATABASE other; CREATE ROLE another");
    lab.sql(&pg, "other", "CREATE TABLE t AS SELECT generate_series(1, 10) AS v");

    let plan = home.tars(&["restore", "--latest", "--dry-run"]).expect(0).stdout;
    assert!(plan.contains("PostgreSQL 15.") && plan.contains("2 databases"), "{plan}");
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert_eq!(lab.sql(&pg, "other", "SELECT sum(v) FROM t; DROP TABLE t"), "55\n");
    lab.sql(&pg, "postgres", "DROP DATABASE other; DROP ROLE another");
    assert_same(&home, &before, &portrait(&lab, &pg));
    assert_clean(&lab, &home, &pg);
    // And once more, over what is whole.
    home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
    assert_same(&home, &before, &portrait(&lab, &pg));
    assert_clean(&lab, &home, &pg);
    sh(&format!("test ! -e '{}'", home.at("state/run.journal")));
}

/// Few rows that are long: what counts is how much passes through pipes, files and memory.
#[test]
fn a_table_of_a_gigabyte_comes_back_byte_by_byte() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(
        &pg,
        "tars_home",
        "CREATE TABLE big (i integer PRIMARY KEY, v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL;
         INSERT INTO big SELECT i, repeat(md5(i::text) || E'\\t\\\\\\n', 30000) FROM generate_series(1, 1000) i",
    );
    let size = lab.sql(&pg, "tars_home", "SELECT pg_total_relation_size('big')");
    assert!(size.trim().parse::<u64>().unwrap() > 1 << 30, "{size}");
    let digest = "SELECT count(*), sum(length(v)), md5(string_agg(md5(v), '' ORDER BY i)) FROM big";
    let before = lab.sql(&pg, "tars_home", digest);
    let home = home_of(&pg, "");
    home.backup(0);
    lab.sql(&pg, "tars_home", "TRUNCATE big");
    home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
    assert_eq!(lab.sql(&pg, "tars_home", digest), before);
    assert_clean(&lab, &home, &pg);
}

/// An archive of the bash script with this dump in it.
fn script_archive(home: &Home, dump: &str) -> String {
    let name = "tars-backup-20260131_020000";
    let dir = home.path("old");
    std::fs::create_dir_all(dir.join(name)).unwrap();
    std::fs::write(dir.join(name).join("postgres.sql"), dump).unwrap();
    sh(&format!(
        "cd '{}' && gzip -f {name}/postgres.sql
         printf '{{\"version\": \"1.0.12\", \"components\": [\"postgres\"], \"checksums\": {{\"postgres.sql.gz\": \"%s\"}}, \"failed_components\": [\"\"]}}' \"$(sha256sum {name}/postgres.sql.gz | cut -d' ' -f1)\" > {name}/manifest.json
         tar -czf {name}.tar.gz {name} && sha256sum \"$PWD/{name}.tar.gz\" > {name}.tar.gz.sha256",
        dir.display()
    ));
    dir.join(format!("{name}.tar.gz")).display().to_string()
}

fn whole_dump(body: &str) -> String {
    format!(
        "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 15.4\n\nSET client_encoding = 'UTF8';\n\
         {body}\n--\n-- PostgreSQL database dump complete\n--\n\n"
    )
}

/// The database has a table `t` with one text.
fn small(lab: &Lab, pg: &str, value: &str) {
    let make = format!("DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT '{value}'::text AS v");
    lab.sql(pg, "tars_home", &make);
}

fn value(lab: &Lab, pg: &str) -> String {
    lab.sql(pg, "tars_home", "SELECT v FROM t").trim().to_owned()
}

#[test]
fn a_dump_that_cannot_be_loaded_leaves_the_old_data_served() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "after");
    let home = home_of(&pg, "");
    let refused = |dump: &str, why: &str| {
        let archive = script_archive(&home, dump);
        home.tars(&["restore", "--backup-file", &archive, "--yes", "--no-safety-backup"]).expect(1).says(why);
        assert_eq!(value(&lab, &pg), "after");
        assert_clean(&lab, &home, &pg);
    };
    let rows = "CREATE TABLE t (v text);\nCOPY t (v) FROM stdin;\nbefore\n\\.\n";
    // A statement that fails half way.
    refused(&whole_dump(&format!("{rows}CREATE TABLE t (v text);\n")), "already exists");
    // Cut between two statements: such a dump loads without any error.
    refused(whole_dump(rows).split("--\n-- PostgreSQL database dump complete").next().unwrap(), "is cut off");
    // Before anything changes.
    let extension = "CREATE EXTENSION IF NOT EXISTS \"no-such thing\" WITH SCHEMA public;\n";
    refused(&whole_dump(&format!("{extension}{rows}")), "no extension no-such thing");
    refused(
        &whole_dump(&format!("SET default_tablespace = 'fast disk';\n{rows}")),
        "no tablespace fast disk",
    );
    refused(&whole_dump(rows).replace("15.4", "99.1"), "the dump is of version 99.1");
    // Rows that a trigger keeps out.
    let trigger = "CREATE TABLE t (v text);\nCREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';\n\
        CREATE TRIGGER no BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION no();\nCOPY t (v) FROM stdin;\nbefore\n\\.\n";
    refused(&whole_dump(trigger), "t has 0 rows, and its dump 1");
    // A command for psql.
    refused(&whole_dump(&format!("{rows}\\! touch /tmp/owned\n")), "restrict");
    assert_eq!(lab.sh(&pg, "ls /tmp/owned 2>/dev/null || true"), "");
    // What would keep the old database from going.
    lab.sql(
        &pg,
        "tars_home",
        "CREATE SUBSCRIPTION sub CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)",
    );
    refused(&whole_dump(rows), "a subscription (sub)");
}

#[test]
fn the_dump_of_the_bash_script_is_loaded_as_the_owner_of_the_database() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "after");
    lab.sql(
        &pg,
        "tars_home",
        "CREATE ROLE app LOGIN; ALTER DATABASE tars_home OWNER TO app; ALTER DATABASE tars_home SET work_mem = '5MB'",
    );
    let home = home_of(&pg, "");
    let body = "DROP TABLE IF EXISTS public.t;\nCREATE TABLE public.t (v text);\nCOPY public.t (v) FROM stdin;\nbefore\n\\.\n";
    let archive = script_archive(&home, &whole_dump(body));
    home.tars(&["restore", "--backup-file", &archive, "--yes"]).expect(0);
    assert_eq!(value(&lab, &pg), "before");
    let query = "SELECT tableowner FROM pg_tables WHERE tablename = 't'; SHOW work_mem;
                 SELECT datdba::regrole FROM pg_database WHERE datname = 'tars_home'";
    assert_eq!(lab.sql(&pg, "tars_home", query), "app\n5MB\napp\n");
    assert_clean(&lab, &home, &pg);
    // The safety copy undoes it.
    let saved = sh(&format!("ls '{}'/*.tar.gz", home.at("state/pre-restore")));
    home.tars(&["restore", "--backup-file", saved.trim(), "--yes", "--no-safety-backup"]).expect(0);
    assert_eq!(value(&lab, &pg), "after");
}

#[test]
fn roles_that_are_there_are_kept_unless_it_is_asked_for() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(
        &pg,
        "postgres",
        "CREATE ROLE app LOGIN PASSWORD 'old one' CONNECTION LIMIT 5; ALTER ROLE app SET work_mem = '5MB'; CREATE ROLE team; GRANT team TO app",
    );
    let home = home_of(&pg, "");
    home.backup(0);
    let role = "SELECT rolpassword, rolconnlimit, rolcreatedb, rolconfig FROM pg_authid LEFT JOIN pg_db_role_setting ON false, \
                LATERAL (SELECT (SELECT setconfig FROM pg_db_role_setting WHERE setrole = pg_authid.oid) AS rolconfig) x WHERE rolname = 'app'";
    let then = lab.sql(&pg, "postgres", role);
    lab.sql(
        &pg,
        "postgres",
        "ALTER ROLE app CREATEDB PASSWORD 'new one' CONNECTION LIMIT -1; ALTER ROLE app RESET ALL; REVOKE team FROM app",
    );
    let now = lab.sql(&pg, "postgres", role);
    assert_ne!(then, now);
    let done = home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
    let done = done.says(
        "role app: CREATEDB now, another password, another connection limit, other settings; it is kept",
    );
    assert!(!format!("{}{}", done.stdout, done.stderr).contains("SCRAM-SHA"));
    assert_eq!(lab.sql(&pg, "postgres", role), now);
    assert_eq!(lab.sql(&pg, "postgres", "SELECT pg_has_role('app', 'team', 'MEMBER')"), "t\n");
    home.tars(&["restore", "--latest", "--yes", "--no-safety-backup", "--roles", "overwrite"]).expect(0);
    assert_eq!(lab.sql(&pg, "postgres", role), then);
    assert_clean(&lab, &home, &pg);
}

#[test]
fn what_is_made_for_a_restore_that_fails_goes_again_roles_too() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(
        &pg,
        "postgres",
        "CREATE ROLE team; CREATE ROLE app; GRANT team TO app; CREATE ROLE gone; GRANT team TO gone",
    );
    small(&lab, &pg, "before");
    lab.sql(&pg, "tars_home", "CREATE TABLE owned (v integer); ALTER TABLE owned OWNER TO gone");
    // What is loaded depends on something outside, so that it loads no more.
    lab.sql(&pg, "postgres", "CREATE DATABASE outside");
    lab.sql(
        &pg,
        "tars_home",
        "CREATE MATERIALIZED VIEW m AS SELECT 1 / count(*) AS v FROM pg_database WHERE datname = 'outside'",
    );
    let home = home_of(&pg, "databases = [\"tars_home\"]");
    home.backup(0);
    small(&lab, &pg, "after");
    lab.sql(&pg, "tars_home", "DROP TABLE owned");
    lab.sql(&pg, "postgres", "DROP ROLE gone; REVOKE team FROM app; DROP DATABASE outside");
    let roles = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1;
                 SELECT roleid::regrole, member::regrole FROM pg_auth_members WHERE roleid >= 16384";
    let before = lab.sql(&pg, "postgres", roles);
    let restore = ["restore", "--latest", "--yes", "--no-safety-backup", "--roles", "overwrite"];
    home.tars(&restore).expect(1).says("division by zero").says("old data");
    assert_eq!(lab.sql(&pg, "postgres", roles), before);
    assert_eq!(value(&lab, &pg), "after");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn databases_of_icu_and_many_large_objects_come_back() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(
        &pg,
        "postgres",
        "CREATE DATABASE icu TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'de-DE-u-co-phonebk' LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8'",
    );
    lab.sql(
        &pg,
        "postgres",
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    lab.sql(&pg, "latin", "SET client_encoding = 'UTF8'; CREATE TABLE \"größe\" AS SELECT 'é'::text AS v");
    lab.sql(
        &pg,
        "icu",
        "CREATE TABLE t (v text PRIMARY KEY); INSERT INTO t VALUES ('Ärger'), ('Adler'), ('Zorn'), ('adler');
         SELECT count(lo_from_bytea(0, convert_to('object ' || i, 'UTF8'))) FROM generate_series(1, 20000) i",
    );
    let home = home_of(&pg, "");
    home.backup(0);
    let objects = "SELECT count(*), sum(oid::bigint), md5(string_agg(md5(lo_get(oid)), '' ORDER BY oid)) FROM pg_largeobject_metadata";
    let order = "SELECT string_agg(v, ' ' ORDER BY v) FROM t; SELECT daticulocale FROM pg_database WHERE datname = 'icu'";
    let (objects_then, order_then) = (lab.sql(&pg, "icu", objects), lab.sql(&pg, "icu", order));
    lab.sql(&pg, "postgres", "DROP DATABASE icu; DROP DATABASE latin");
    home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
    assert_eq!(lab.sql(&pg, "icu", objects), objects_then);
    assert_eq!(lab.sql(&pg, "icu", order), order_then);
    assert_eq!(lab.sql(&pg, "latin", "SET client_encoding = 'UTF8'; SELECT v FROM \"größe\""), "é\n");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn clients_that_never_rest_see_the_old_or_the_new_and_nothing_else() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    let home = home_of(&pg, "");
    home.backup(0);
    small(&lab, &pg, "after");
    let client = "while [ ! -e /tmp/stop ]; do psql -X -A -t -U tars -d tars_home -c 'SELECT v, pg_sleep(0.02) FROM t' >>/tmp/seen 2>>/tmp/errors || true; sleep 0.1; done";
    for _ in 0..4 {
        lab.ok(&["exec", "-d", &pg, "bash", "-c", client]);
    }
    let _idle = lab.session(&pg, "BEGIN; SELECT 1 FROM t \\g /dev/null\n");
    for round in 0..2 {
        lab.sh(&pg, "until grep -q after /tmp/seen 2>/dev/null; do sleep 0.1; done");
        home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
        assert_eq!(value(&lab, &pg), "before");
        if round < 1 {
            lab.sql(&pg, "tars_home", "UPDATE t SET v = 'after'");
        }
    }
    lab.sh(&pg, "touch /tmp/stop");
    let seen = lab.sh(&pg, "sort /tmp/seen | uniq -c");
    let kinds: Vec<&str> = seen.lines().map(|l| l.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(kinds, ["after|", "before|"], "{seen}");
    let errors = lab.sh(&pg, "sort -u /tmp/errors || true");
    // Whoever is ended while it opens the table is told at which word of its question: LINE 1, and a mark below.
    let is_place = |l: &str| l.starts_with("LINE 1: ") || l.trim() == "^";
    for line in errors.lines().filter(|l| !l.trim().is_empty() && !is_place(l)) {
        let known = [
            "terminating connection",
            "database \"tars_home\" does not exist",
            "just been dropped or renamed",
            "server closed",
            "connection to server",
            "before or while",
            "terminated abnormally",
        ];
        assert!(known.iter().any(|k| line.contains(k)), "{line:?} among\n{errors}");
    }
    assert_clean(&lab, &home, &pg);
}

/// Kills of a restore at every line of the journal and after many moments; `settled` says which data is there.
fn kill_everywhere(
    home: &Home,
    more: &[&str],
    moments: u64,
    mut again: impl FnMut(),
    mut settled: impl FnMut(),
) {
    killed_at_every_line(
        home,
        3,
        || restore_to_kill(home, true, more),
        &mut again,
        |_| {
            until("the guardian has recovered", || !home.path("state/run.journal").exists());
            settled();
        },
    );
    for moment in 0..moments {
        again();
        let mut child = restore_to_kill(home, true, more)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("it has begun", || {
            home.path("state/run.journal").exists() || child.try_wait().unwrap().is_some()
        });
        std::thread::sleep(Duration::from_millis(moment * 150));
        child.kill().unwrap();
        child.wait().unwrap();
        until("the guardian has recovered", || !home.path("state/run.journal").exists());
        settled();
    }
    home.tars(&["recover"]).expect(0);
}

#[test]
fn killed_at_any_step_all_databases_are_old_or_all_are_new() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    lab.sql(&pg, "postgres", "CREATE ROLE gone; CREATE TABLE t AS SELECT 'before'::text AS v");
    small(&lab, &pg, "before");
    lab.sql(&pg, "tars_home", "CREATE TABLE owned (v integer); ALTER TABLE owned OWNER TO gone");
    let home = home_of(&pg, "");
    home.backup(0);
    let (mut old, mut new) = (0, 0);
    kill_everywhere(
        &home,
        &[],
        8,
        || {
            lab.sql(&pg, "tars_home", "UPDATE t SET v = 'after'; DROP TABLE IF EXISTS owned");
            lab.sql(&pg, "postgres", "UPDATE t SET v = 'after'; DROP ROLE IF EXISTS gone");
        },
        || {
            let second = lab.sql(&pg, "postgres", "SELECT v FROM t");
            assert_eq!(value(&lab, &pg), second.trim(), "one database is old, the other new");
            let role = lab.sql(&pg, "postgres", "SELECT count(*) FROM pg_roles WHERE rolname = 'gone'");
            match second.trim() {
                "before" => (new, _) = (new + 1, assert_eq!(role, "1\n")),
                _ => (old, _) = (old + 1, assert_eq!(role, "0\n")),
            }
            assert_clean(&lab, &home, &pg);
        },
    );
    assert!(old > 3 && new > 0, "{old} {new}");
}

#[test]
fn an_interrupted_load_leaves_nothing_and_a_server_that_is_down_is_recovered_when_it_runs_again() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    // The load takes its time.
    lab.sql(&pg, "tars_home", "CREATE FUNCTION slow() RETURNS int LANGUAGE sql AS 'SELECT 1 FROM pg_sleep(10)'; CREATE MATERIALIZED VIEW m AS SELECT slow() WITH NO DATA; REFRESH MATERIALIZED VIEW m");
    let home = home_of(&pg, "");
    home.backup(0);
    small(&lab, &pg, "after");
    // A signal: everything goes at once.
    let child = home.spawn(&["restore", "--latest", "--yes", "--no-safety-backup"]);
    until("a new database is there", || {
        lab.sql(&pg, "postgres", "SELECT datname FROM pg_database").contains("__tars_new")
    });
    child.signal("INT");
    child.end().expect(130);
    assert_eq!(value(&lab, &pg), "after");
    assert_clean(&lab, &home, &pg);

    let mut child = home.spawn(&["restore", "--latest", "--yes", "--no-safety-backup"]);
    until("a new database is there", || {
        lab.sql(&pg, "postgres", "SELECT datname FROM pg_database").contains("__tars_new")
    });
    // The guardian too, so that nobody does it meanwhile.
    sh(&format!("pkill -KILL -P {} || true; kill -KILL {}", child.pid(), child.pid()));
    child.child.wait().unwrap();
    lab.ok(&["stop", "-t", "5", &pg]);
    home.tars(&["recover"]).expect(1).says("cannot be asked: it is exited").says("docker start");
    assert!(home.path("state/run.journal").exists());
    lab.ok(&["start", &pg]);
    home.tars(&["recover"]).expect(0);
    assert_eq!(value(&lab, &pg), "after");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn a_cluster_that_does_not_start_is_made_anew() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    load_odd_data(&lab, &pg);
    small(&lab, &pg, "before");
    let home = home_of(&pg, "");
    home.backup(0);
    // The container gives its own role the password of its environment, with other salt.
    let portrait = |lab: &Lab, pg: &str| {
        let mut all = portrait(lab, pg);
        let roles = all.get_mut("roles").unwrap();
        *roles = roles.lines().filter(|l| !l.starts_with("ALTER ROLE tars ")).collect::<Vec<_>>().join("\n");
        all
    };
    let before = portrait(&lab, &pg);
    let data = lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{pg}_data")]);
    let data = data.trim();

    // It keeps restarting.
    lab.ok(&["update", "--restart", "always", &pg]);
    sh(&format!("echo broken > '{data}/global/pg_control'"));
    lab.docker(&["kill", &pg]);
    lab.docker(&["start", &pg]);
    let state = || lab.ok(&["inspect", "-f", "{{.State.Status}}", &pg]);
    until("it restarts in a loop", || state().trim() == "restarting");
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("--fresh");
    home.tars(&["restore", "--latest", "--yes", "--fresh"]).expect(0).says("kept in");
    assert_same(&home, &before, &portrait(&lab, &pg));
    assert_clean(&lab, &home, &pg);
    let kept = sh(&format!("cat '{data}'.before-*/global/pg_control; rm -r '{data}'.before-*"));
    assert_eq!(kept, "broken\n");

    // Everything is gone, and it is stopped.
    lab.ok(&["update", "--restart", "no", &pg]);
    lab.ok(&["stop", "-t", "5", &pg]);
    sh(&format!("find '{data}' -mindepth 1 -delete"));
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("docker start");
    home.tars(&["restore", "--latest", "--yes", "--fresh"]).expect(0);
    assert_same(&home, &before, &portrait(&lab, &pg));

    // What fails brings the old cluster back.
    lab.sql(&pg, "tars_home", "UPDATE t SET v = 'after'");
    let archive = script_archive(&home, &whole_dump("CREATE TABLE t (v text);\nSELECT nonsense;\n"));
    home.tars(&["restore", "--backup-file", &archive, "--yes", "--fresh", "--no-safety-backup"])
        .expect(1)
        .says("nonsense")
        .says("old data");
    lab.await_postgres(&pg);
    assert_eq!(value(&lab, &pg), "after");
    assert_eq!(sh(&format!("find '{data}/..' -mindepth 1 -maxdepth 1 -name '*tars*'")), "");
}

#[test]
fn killed_at_any_step_of_a_new_cluster_the_server_serves_the_old_or_the_new() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    let home = home_of(&pg, "");
    home.backup(0);
    let data = lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &format!("{pg}_data")]);
    kill_everywhere(
        &home,
        &["--fresh"],
        3,
        || drop(lab.sql(&pg, "tars_home", "UPDATE t SET v = 'after'")),
        || {
            lab.await_postgres(&pg);
            assert!(["before", "after"].contains(&value(&lab, &pg).as_str()));
            assert_eq!(sh(&format!("find '{}/..' -mindepth 1 -maxdepth 1 -name '*tars*'", data.trim())), "");
            assert_clean(&lab, &home, &pg);
        },
    );
}

#[test]
fn a_container_that_was_never_started_is_started_and_filled() {
    let lab = Lab::new();
    let first = lab.postgres("first");
    small(&lab, &first, "before");
    let home = home_of(&first, "");
    home.backup(0);
    lab.ok(&["rm", "-f", "-v", &first]);
    lab.ok(&["volume", "rm", &format!("{first}_data")]);
    let volume = format!("{}:/var/lib/postgresql/data", lab.volume("first_data"));
    let args = [
        "-e",
        "POSTGRES_USER=tars",
        "-e",
        "POSTGRES_DB=tars_home",
        "-e",
        "POSTGRES_PASSWORD=x",
        "-v",
        &volume,
        "postgres:15-alpine",
        "postgres",
        "-c",
        "fsync=off",
    ];
    let pg = lab.container(&["create"], "first", &args);
    let plan = home.tars(&["restore", "--latest", "--dry-run"]).expect(0).stdout;
    assert!(plan.contains("nothing"), "{plan}");
    assert_eq!(lab.ok(&["inspect", "-f", "{{.State.Status}}", &pg]).trim(), "created");
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("had never been started; it runs now");
    assert_eq!(value(&lab, &pg), "before");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn without_a_safety_copy_the_old_databases_stay_under_another_name() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    let home = home_of(&pg, "");
    home.backup(0);
    small(&lab, &pg, "after");
    // No backup can be made of this.
    lab.sql(&pg, "postgres", "CREATE DATABASE broken");
    lab.sql(&pg, "broken", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; UPDATE pg_proc SET prolang = 1 WHERE proname = 'f'");
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("tars_home_before_");
    assert_eq!(value(&lab, &pg), "before");
    let names = lab.sql(
        &pg,
        "template1",
        "SELECT datname FROM pg_database WHERE datname LIKE '%_before_%' ORDER BY 1",
    );
    let kept: Vec<&str> = names.lines().collect();
    assert_eq!(kept.len(), 2, "{names}");
    assert_eq!(lab.sql(&pg, kept[1], "SELECT v FROM t"), "after\n");
    assert_clean(&lab, &home, &pg);

    // The same backup once more: the name is taken by what was replaced the first time.
    small(&lab, &pg, "later");
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says(&format!("{}.2", kept[1]));
    assert_eq!(value(&lab, &pg), "before");
    assert_eq!(lab.sql(&pg, kept[1], "SELECT v FROM t"), "after\n");
    assert_eq!(lab.sql(&pg, &format!("{}.2", kept[1]), "SELECT v FROM t"), "later\n");
    assert_clean(&lab, &home, &pg);
}

/// As after a kill between giving a new database the name under which it is kept, and saying so.
#[test]
fn a_new_database_that_has_another_name_by_now_is_left_and_the_undoing_ends() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    let home = home_of(&pg, "");
    home.backup(0);
    small(&lab, &pg, "after");
    let mut child = restore_to_kill(&home, false, &[]).stderr(std::process::Stdio::null()).spawn().unwrap();
    let journal = home.path("state/run.journal");
    while !std::fs::read_to_string(&journal).unwrap_or_default().contains("\"step\":\"change\"") {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it changed anything");
        std::thread::sleep(Duration::from_micros(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let new = "SELECT datname FROM pg_database WHERE datname LIKE 'tars_home__tars_new_%'";
    let new = lab.sql(&pg, "template1", new);
    lab.sql(&pg, "template1", &format!("ALTER DATABASE \"{}\" RENAME TO kept", new.trim()));
    home.tars(&["recover"]).expect(0);
    assert_eq!(value(&lab, &pg), "after");
    assert_eq!(lab.sql(&pg, "kept", "SELECT v FROM t"), "before\n");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn a_database_that_the_source_does_not_name_any_more_is_not_lost() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    small(&lab, &pg, "before");
    lab.sql(&pg, "postgres", "CREATE DATABASE second");
    lab.sql(&pg, "second", "CREATE TABLE t AS SELECT 'before'::text AS v");
    let home = home_of(&pg, "");
    home.backup(0);
    let home = home.only_source("postgres", &source("postgres", &pg, "databases = [\"tars_home\"]"));
    lab.sql(&pg, "second", "UPDATE t SET v = 'after'");
    home.tars(&["restore", "--latest", "--yes"])
        .expect(0)
        .says("in no safety copy (the source does not capture all that is replaced)");
    assert_eq!(lab.sql(&pg, "second", "SELECT v FROM t"), "before\n");
    let kept =
        lab.sql(&pg, "template1", "SELECT datname FROM pg_database WHERE datname LIKE 'second_before_%'");
    assert_eq!(lab.sql(&pg, kept.trim(), "SELECT v FROM t"), "after\n");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn no_password_and_no_hash_of_one_is_in_a_list_of_processes_or_in_a_line() {
    let lab = Lab::new();
    let pg = lab.postgres("postgres");
    let (core, hash) = ("CoreRestore6230", "md50123456789abcdef6230fedcba987654");
    lab.sql(&pg, "postgres", &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD $p$it's {core}$p$; CREATE ROLE app PASSWORD '{hash}'; CREATE ROLE lost PASSWORD '{hash}'"));
    lab.sh(&pg, "f=$PGDATA/pg_hba.conf; { echo 'local all keeper scram-sha-256'; cat $f; } >/tmp/hba && cat /tmp/hba >$f");
    lab.sql(&pg, "postgres", "SELECT pg_reload_conf()");
    small(&lab, &pg, "before");
    let home = Home::new();
    std::fs::write(home.path("secret"), format!("it's {core}\n")).unwrap();
    let file = home.at("secret");
    let home = home
        .source(
            "postgres",
            &source("postgres", &pg, &format!("user = \"keeper\"\npassword = {{ file = {file:?} }}")),
        )
        .ready();
    home.backup(0);
    small(&lab, &pg, "after");
    lab.sql(&pg, "postgres", "DROP ROLE lost; ALTER ROLE app PASSWORD NULL");
    let over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").unwrap() {
                    let line = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line);
                    assert!(!line.contains(core) && !line.contains("cdef6230fedcba"), "{line}");
                }
                rounds += 1;
            }
            rounds
        });
        let done = home.tars(&["-vv", "restore", "--latest", "--yes", "--roles", "overwrite", "--json"]);
        over.store(true, Ordering::SeqCst);
        assert!(looks.join().unwrap() > 10);
        done
    })
    .expect(0);
    let said = format!("{}{}", done.stdout, done.stderr);
    assert!(!said.contains(core) && !said.contains(hash), "{said}");
    assert_eq!(value(&lab, &pg), "before");
    let roles = "SELECT rolname FROM pg_authid WHERE rolpassword LIKE 'md50123%' ORDER BY 1";
    assert_eq!(lab.sql(&pg, "postgres", roles), "app\nlost\n");
    assert_clean(&lab, &home, &pg);
}

#[test]
fn a_disk_that_gets_full_leaves_the_old_data_served() {
    let lab = Lab::new();
    let home = Home::new();
    let disk = home.at("disk");
    sh(&format!("mkdir '{disk}' && mount -t tmpfs -o size=400m tmpfs '{disk}' && mkdir '{disk}/pg'"));
    let mount = format!("{disk}/pg:/var/lib/postgresql/data");
    let args = [
        "-e",
        "POSTGRES_USER=tars",
        "-e",
        "POSTGRES_DB=tars_home",
        "-e",
        "POSTGRES_PASSWORD=x",
        "-v",
        &mount,
        "postgres:15-alpine",
        "postgres",
        "-c",
        "fsync=off",
        "-c",
        "max_wal_size=64MB",
    ];
    let pg = lab.container(&["run", "-d"], "postgres", &args);
    lab.await_postgres(&pg);
    small(&lab, &pg, "before");
    // Few letters in the dump, much on the disk.
    lab.sql(
        &pg,
        "tars_home",
        "CREATE TABLE wide AS SELECT 1::smallint AS v FROM generate_series(1, 2000000)",
    );
    let home = home.source("postgres", &source("postgres", &pg, "")).ready();
    home.backup(0);
    lab.sql(&pg, "tars_home", "DROP TABLE wide; UPDATE t SET v = 'after'");
    lab.sql(&pg, "tars_home", "CHECKPOINT");
    sh(&format!(
        "free=$(df -Pm '{disk}' | awk 'NR == 2 {{ print $4 }}'); fallocate -l $((free - 100))M '{disk}/filler'"
    ));
    let done = home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]);
    sh(&format!("rm '{disk}/filler'"));
    let served = value(&lab, &pg);
    assert_clean(&lab, &home, &pg);
    lab.ok(&["rm", "-f", &pg]);
    sh(&format!("umount -l '{disk}'"));
    done.expect(1).says("no room to go on").says("make room");
    assert_eq!(served, "after");
}
