//! Databases come back into their server: whole, with everything that belongs to them, or not at all. What could go wrong:
//! a dump that does not load, and live data that is gone by then.

use crate::lab::{Lab, source};
use crate::postgres::{SECOND, assert_same, load_odd_data, portrait};
use crate::support::{Home, sh};

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
