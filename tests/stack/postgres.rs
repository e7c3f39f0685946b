//! Odd databases: what the archive holds is all of it, and stock tools alone bring it back.

use std::collections::BTreeMap;

use serde_json::json;

use crate::lab::{Lab, lab_file, source, verify_deep};
use crate::support::{Home, follow_the_guide, run, sh};

pub const SECOND: &str = "Zweite-DB é";
const MEMBERS: [&str; 7] = [
    "postgres-Zweite-DB%20%C3%A9.settings.sql",
    "postgres-Zweite-DB%20%C3%A9.sql",
    "postgres-globals.sql",
    "postgres-postgres.settings.sql",
    "postgres-postgres.sql",
    "postgres.settings.sql",
    "postgres.sql",
];

/// Ordinary tables with the names that a dump gives them.
const TABLES: &str = "FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')";

pub fn load_odd_data(lab: &Lab, pg: &str) {
    let script = |name: &str| std::fs::read_to_string(lab_file(name)).unwrap();
    lab.sql(pg, "tars_home", &script("odd.sql"));
    lab.sql(
        pg,
        "tars_home",
        &format!(
            "CREATE DATABASE \"{SECOND}\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';"
        ),
    );
    lab.sql(pg, SECOND, &script("odd-second.sql"));
}

/// Rows per table, as the server counts them.
fn counts(lab: &Lab, pg: &str, database: &str) -> BTreeMap<String, u64> {
    let query = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) || '|' || (xpath('/row/c/text()', query_to_xml(
           format('SELECT count(*) AS c FROM ONLY %I.%I', n.nspname, c.relname), false, true, '')))[1] {TABLES}"
    );
    let rows = lab.sql(pg, database, &query);
    rows.lines()
        .map(|l| l.rsplit_once('|').map(|(name, n)| (name.to_owned(), n.parse().unwrap())).unwrap())
        .collect()
}

/// What the server itself would dump, without the marks that differ each time. The order of settings, and of the roles
/// of a policy, follows internal numbers that are new in a loaded cluster.
fn own_dump(lab: &Lab, pg: &str, argv: &[&str]) -> String {
    let mut args = vec!["exec", pg];
    args.extend(argv);
    let (mut settings, mut rest) = (Vec::new(), String::new());
    for line in lab.ok(&args).lines() {
        if line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ") {
            continue;
        } else if line.starts_with("ALTER DATABASE ") || line.starts_with("ALTER ROLE ") {
            settings.push(line.to_owned());
        } else if line.starts_with("CREATE POLICY ") {
            let mut words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
            words.sort_unstable();
            rest.push_str(&words.join(" "));
        } else {
            rest.push_str(line);
        }
        rest.push('\n');
    }
    settings.sort();
    format!("{}\n{rest}", settings.join("\n"))
}

/// Lines of an answer, without the order that internal numbers give them.
fn sorted(answer: &str) -> String {
    let mut lines: Vec<&str> = answer.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Everything that must be the same in the cluster that was loaded, by what it is about.
pub fn portrait(lab: &Lab, pg: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut add = |what: String, text: String| {
        assert!(!text.is_empty(), "{what} is empty: the comparison would prove nothing");
        all.insert(what, text);
    };
    add("roles".into(), own_dump(lab, pg, &["pg_dumpall", "-U", "tars", "--globals-only"]));
    let cluster = [
        ("members", "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members WHERE roleid >= 16384 ORDER BY 1, 2"),
        (
            "settings",
            "SELECT datname, setrole::regrole, ARRAY(SELECT unnest(setconfig) ORDER BY 1) FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase
             WHERE setrole = 0 OR setrole >= 16384 ORDER BY datname, setrole::regrole::text",
        ),
        (
            "databases",
            "SELECT datname, datdba::regrole, pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider,
             datconnlimit, datallowconn, shobj_description(oid, 'pg_database') FROM pg_database ORDER BY 1",
        ),
        (
            "rights on databases",
            "SELECT datname, coalesce(nullif(grantee, 0)::regrole::text, 'public'), privilege_type, is_grantable
             FROM pg_database, aclexplode(datacl) ORDER BY 1, 2, 3",
        ),
    ];
    for (what, query) in cluster {
        add(what.into(), sorted(&lab.sql(pg, "tars_home", query)));
    }
    let inside = [
        ("rows", format!("SELECT format('%I.%I', n.nspname, c.relname), md5(query_to_xml(format('SELECT md5(string_agg(t::text, E''\\n'' ORDER BY t::text)) FROM ONLY %I.%I t', n.nspname, c.relname), true, true, '')::text) {TABLES} ORDER BY 1")),
        ("large objects", "SELECT m.oid, lomowner::regrole, lomacl, md5(lo_get(m.oid)), length(lo_get(m.oid)), obj_description(m.oid, 'pg_largeobject') FROM pg_largeobject_metadata m ORDER BY 1".into()),
    ];
    let only_first = [
        (
            "materialized views",
            "SELECT schemaname, matviewname, ispopulated, CASE WHEN ispopulated THEN
               query_to_xml(format('SELECT * FROM %I.%I t ORDER BY t::text', schemaname, matviewname), true, true, '')::text END
             FROM pg_matviews ORDER BY 1, 2",
        ),
        ("policies", "SELECT schemaname, tablename, policyname, permissive, cmd, qual, with_check, ARRAY(SELECT unnest(roles) ORDER BY 1) FROM pg_policies ORDER BY 1, 2, 3"),
        ("publications", "SELECT pubname, pubowner::regrole, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate FROM pg_publication ORDER BY 1"),
        ("published tables", "SELECT * FROM pg_publication_tables ORDER BY 1, 2, 3"),
        ("sequences", "SELECT * FROM pg_sequences ORDER BY 1, 2"),
    ];
    for database in ["tars_home", SECOND] {
        for (what, query) in &inside {
            add(format!("{what} of {database}"), sorted(&lab.sql(pg, database, query)));
        }
        add(
            format!("dump of {database}"),
            own_dump(lab, pg, &["pg_dump", "-U", "tars", "--create", "-d", database]),
        );
    }
    for (what, query) in only_first {
        add(what.into(), sorted(&lab.sql(pg, "tars_home", query)));
    }
    all
}

#[test]
fn odd_databases_come_back_whole_by_the_commands_of_the_guide_alone() {
    let lab = Lab::new();
    let empty = lab.start_postgres("empty");
    let pg = lab.postgres("postgres");
    load_odd_data(&lab, &pg);
    let home = Home::new().documents().source("postgres", &source("postgres", &pg, "")).ready();
    let outcome = home.backup(0);
    assert_eq!(outcome["state"], "complete");
    verify_deep(&home);

    // Stock tools alone.
    let name = home.only();
    sh(&format!("cd '{}' && sha256sum -c --strict {name}.tar.gz.sha256", home.at("store/daily")));
    let listed = sh(&format!("tar -tzf '{}'", home.object(".tar.gz").display()));
    let unpacked = home.unpack("out");
    for member in MEMBERS {
        assert!(listed.contains(&format!("{name}/{member}.gz\n")), "{member} is not in {listed}");
    }
    sh(&format!("find '{}' -name '*.gz' -print0 | xargs -0 gunzip -t", unpacked.display()));

    // What was counted in the dump is what the server counts.
    let manifest = home.manifest();
    let facts = &manifest["details"]["postgres"]["facts"];
    for database in ["tars_home", SECOND, "postgres"] {
        assert_eq!(facts["databases"][database]["rows"], json!(counts(&lab, &pg, database)), "{database}");
        let objects = lab.sql(&pg, database, "SELECT count(*) FROM pg_largeobject_metadata");
        assert_eq!(facts["databases"][database]["large_objects"].to_string(), objects.trim(), "{database}");
    }
    let version = lab.sql(&pg, "postgres", "SHOW server_version");
    assert_eq!(facts["server_version"], version.trim());
    assert_eq!(facts["main_database"], "tars_home");
    assert_eq!(facts["databases"]["tars_home"]["member"], "postgres.sql");

    lab.await_postgres(&empty);
    let said = follow_the_guide(&unpacked, "postgres", &pg, &empty);
    for line in said.lines().filter(|l| l.contains("ERROR")) {
        assert!(line.ends_with("already exists"), "{line}");
    }
    assert_same(&home, &portrait(&lab, &pg), &portrait(&lab, &empty));
}

/// Two portraits are the same; what differs is shown.
#[track_caller]
pub fn assert_same(home: &Home, source: &BTreeMap<String, String>, loaded: &BTreeMap<String, String>) {
    for (what, text) in source {
        if *text != loaded[what] {
            std::fs::write(home.path("source"), text).unwrap();
            std::fs::write(home.path("loaded"), &loaded[what]).unwrap();
            let diff = run("diff", &["-u", &home.at("source"), &home.at("loaded")]);
            panic!("{what} differs:\n{}", diff.stdout);
        }
    }
}

/// The stack as Compose leaves it, with every compression.
#[test]
fn the_stack_is_found_by_its_labels_and_every_compression_is_verified() {
    let lab = Lab::new();
    let env =
        format!("LAB_PREFIX='{}' LAB_SERVICES='postgres redis' REDIS_PASSWORD='odd pa\"ss $1'", lab.prefix);
    sh(&format!("{env} '{}' up", lab_file("stack.sh")));
    let (pg, redis) = (format!("{}tars-home-postgres", lab.prefix), format!("{}tars-home-redis", lab.prefix));
    load_odd_data(&lab, &pg);
    sh(&format!("{env} '{}' '{redis}'", lab_file("odd-redis.sh")));
    for (method, suffix, test) in
        [("gzip", ".gz", "gunzip -t"), ("zstd", ".zst", "zstd -tq"), ("none", "", "test -s")]
    {
        let home = Home::new()
            .source("postgres", "type = \"postgres\"")
            .source("redis", "type = \"redis\"")
            .extra(&format!("[docker]\nproject = \"{}deploy\"", lab.prefix))
            .extra(&format!("[archive]\ncompression = \"{method}\""))
            .ready();
        home.backup(0);
        verify_deep(&home);
        let unpacked = home.unpack("out");
        for member in MEMBERS {
            sh(&format!("{test} '{}/{member}{suffix}'", unpacked.display()));
        }
        let manifest = home.manifest();
        assert_eq!(manifest["components"], json!(["postgres", "redis"]));
        assert_eq!(manifest["state"], "complete");
        let volumes = ["postgres_data", "redis_data"].map(|v| format!("{}deploy_{v}", lab.prefix));
        assert_eq!(manifest["docker_volumes"], json!(volumes));
        for (component, container, image) in
            [("postgres", &pg, "postgres:15-alpine"), ("redis", &redis, "redis:7-alpine")]
        {
            let facts = &manifest["details"][component]["facts"];
            assert_eq!(facts["container"], **container);
            assert_eq!(facts["image"], image);
            assert_eq!(facts["image_id"], lab.ok(&["inspect", "-f", "{{.Image}}", container]).trim());
            assert!(facts["server_version"].as_str().is_some_and(|v| v.starts_with(['1', '7'])), "{facts}");
        }
        let facts = &manifest["details"]["postgres"]["facts"]["databases"];
        assert_eq!(facts["tars_home"]["rows"], json!(counts(&lab, &pg, "tars_home")));
    }
    sh(&format!("{env} '{}' down", lab_file("stack.sh")));
}
