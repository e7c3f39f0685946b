//! The program as a person uses it: arguments, configuration, exit statuses, error texts.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Home, run, sh};

#[test]
fn a_backup_is_made_listed_shown_verified_and_extracted() {
    let home = Home::new().documents().ready();
    let outcome = home.backup(0);
    let name = home.only();
    assert_eq!(outcome["name"], name);
    assert_eq!(outcome["state"], "complete");
    let rows = home.tars(&["list", "--json"]).expect(0).json();
    assert_eq!(rows[0]["name"], name);
    assert_eq!(rows[0]["latest"], true);
    assert!(rows[0]["verified"]["time"].is_string(), "delivery read it back");
    home.tars(&["list"]).expect(0).says(&name).says("complete").says("nas");
    home.tars(&["show", &name]).expect(0).says("documents.tar.gz");
    home.tars(&["verify", &name]).expect(0).says("good (digest)");
    home.tars(&["verify", "--latest", "--deep"]).expect(0).says("good (every component read)");
    home.tars(&["extract", &name, "documents.tar.gz", "--to", &home.at("out")]).expect(0);
    assert_eq!(sh(&format!("tar -xzOf '{}' ./a.txt", home.at("out/documents.tar.gz"))), "hello\n");
    assert_eq!(sh(&format!("ls -A '{}'", home.at("out"))), "documents.tar.gz\n");
    home.assert_nothing_left();
}

#[test]
fn an_archive_that_lies_anywhere_is_verified_and_extracted_without_a_configuration() {
    let home = Home::new().documents().ready();
    home.backup(0);
    sh(&format!("cp -r '{}' '{}'", home.at("store/daily"), home.at("elsewhere")));
    let archive = home.at(&format!("elsewhere/{}.tar.gz", home.only()));
    run(support::PROGRAM, &["verify", "--deep", &archive]).expect(0).says("good");
    run(support::PROGRAM, &["extract", &archive, "--to", &home.at("out")]).expect(0);
    assert!(home.path("out/RESTORE.md").exists());
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    let home = Home::new().documents().ready();
    for args in [
        &["frobnicate"][..],
        &[],
        &["backup", "--tierr", "hot"],
        &["backup", "--wait", "soon"],
        &["backup", "--tag", "two words"],
        &["backup", "--only", "nosuch"],
        &["backup", "--skip", "nosuch"],
        &["verify"],
        &["verify", "--latest", "--all"],
        &["verify", "not-a-name"],
        &["show"],
        &["extract", "tars-backup-20260101_000000"],
        &["list", "--tier", "nosuch"],
        &["list", "--store", "nosuch"],
        &["store", "init", "nosuch"],
        &["backup", "--skip", "documents"],
    ] {
        home.tars(args).expect(64);
    }
    home.tars(&["--help"]).expect(0).says("Make a backup now");
    home.tars(&["--version"]).expect(0).says("tars-backup 0");
    assert_eq!(home.committed(), [""; 0]);
}

#[test]
fn every_problem_of_a_configuration_is_told_at_once_with_line_and_hint() {
    let home = Home::new();
    std::fs::write(
        home.path("config.toml"),
        r#"[agent]
default_teir = "hot"
jobs = 0
[sources.docs]
type = "direktory"
[sources.db]
type = "sqlite"
[sources.pg]
type = "postgres"
password = "hunter2-hunter2"
[sources."../evil"]
type = "directory"
path = "/srv"
[sources.globs]
type = "directory"
path = "relative/path"
exclude = ["[a"]
[stores.nas]
type = "fs"
path = "/mnt/nas"
require_mounted = true
[stores.same]
type = "fs"
path = "/mnt/nas/"
[tiers.hot]
stores = ["nsa"]
path = "daily"
keep = { within = "7 fortnights" }
[tiers.cold]
stores = ["nas"]
path = "daily/sub"
components = ["nosuch"]
"#,
    )
    .unwrap();
    let done = home.tars(&["config", "check"]).expect(78);
    for (line, text) in [
        (2, "agent.default_teir: unknown key"),
        (3, "agent.jobs: must be from 1 to 32, not 0"),
        (5, "sources.docs.type: is not a kind of source"),
        (6, "sources.db.path: missing"),
        (10, "sources.pg.password: must be a reference"),
        (11, "sources.../evil"),
        (16, "sources.globs.path: must be an absolute path"),
        (17, "sources.globs.exclude: \"[a\" is not a pattern"),
        (21, "stores.nas.require_mounted: unknown key"),
        (24, "is or overlaps /mnt/nas, the root of store \"nas\""),
        (26, "tiers.hot.stores: there is no store \"nsa\""),
        (28, "tiers.hot.keep.within: must be a length"),
        (31, "lie in one another"),
        (32, "tiers.cold.components: there is no source \"nosuch\""),
    ] {
        let wanted = format!("config.toml:{line}: ");
        assert!(
            done.stderr.lines().any(|l| l.contains(&wanted) && l.contains(text)),
            "line {line}: {text}\nnot in\n{}",
            done.stderr
        );
    }
    assert!(done.stderr.contains("did you mean default_tier?"), "{}", done.stderr);
    assert!(done.stderr.contains("did you mean \"directory\"?"), "{}", done.stderr);
    assert!(done.stderr.contains("did you mean nas?"), "{}", done.stderr);
    assert!(!done.stderr.contains("hunter2"), "{}", done.stderr);
    home.tars(&["backup"]).expect(78).says("problems in the configuration");
    let shown = home.tars(&["config", "check", "--json"]).expect(78).json();
    assert_eq!(shown["ok"], false);
    assert!(shown["problems"].as_array().unwrap().iter().any(|p| p["line"] == 3 && p["key"] == "agent.jobs"));
}

#[test]
fn an_unreadable_or_missing_configuration_and_an_unknown_tier_end_with_78() {
    let home = Home::new().documents().ready();
    home.tars(&["backup", "--tier", "warm"])
        .expect(78)
        .says("there is no tier \"warm\"")
        .says("configured tiers: hot");
    std::fs::write(home.path("config.toml"), "a = [\n").unwrap();
    home.tars(&["backup"]).expect(78).says("not valid TOML");
    std::fs::remove_file(home.path("config.toml")).unwrap();
    home.tars(&["backup"]).expect(78).says("cannot read the configuration").says("--config FILE");
}

#[test]
fn a_later_file_in_conf_d_overrides_and_adds() {
    let home = Home::new().documents().ready();
    std::fs::create_dir(home.path("conf.d")).unwrap();
    std::fs::write(
        home.path("conf.d/10-out.toml"),
        "[sources.out]\ntype = \"command\"\ncommand = [\"echo\", \"x\"]\n",
    )
    .unwrap();
    std::fs::write(home.path("conf.d/20-off.toml"), "[sources.documents]\non_by_default = false\n").unwrap();
    std::fs::write(home.path("conf.d/ignored.bak"), "nonsense").unwrap();
    let outcome = home.backup(0);
    assert_eq!(outcome["components"].as_array().unwrap().len(), 1);
    assert_eq!(outcome["components"][0]["name"], "out");
    let shown = home.tars(&["config", "show", "--json"]).expect(0).json();
    assert_eq!(shown["sources"]["documents"]["on_by_default"], false);
    assert_eq!(shown["tiers"]["hot"]["path"], "daily");
}

#[test]
fn the_shown_configuration_is_itself_a_good_configuration() {
    let home = Home::new()
        .documents()
        .source("pg", "type = \"postgres\"\npassword = { credential = \"pg\" }")
        .ready();
    let shown = home.tars(&["config", "show"]).expect(0);
    assert!(shown.stdout.contains("password = { credential = \"pg\" }"), "{}", shown.stdout);
    std::fs::write(home.path("config.toml"), shown.stdout).unwrap();
    home.tars(&["config", "check"]).expect(0);
    let schema = home.tars(&["config", "schema"]).expect(0).json();
    assert_eq!(schema["properties"]["agent"]["additionalProperties"], false);
}

#[test]
fn a_dry_run_shows_the_plan_and_writes_nothing() {
    let home =
        Home::new().documents().source("gone", "type = \"sqlite\"\npath = \"/nonexistent.db\"").ready();
    let tree = || sh(&format!("find '{}' -printf '%p %s %T@\\n' | sort", home.root().display()));
    let before = tree();
    let done = home.tars(&["backup", "--dry-run"]).expect(2);
    assert!(done.stdout.contains("files of"), "{}", done.stdout);
    assert!(done.stdout.contains("Would fail: gone"), "{}", done.stdout);
    assert_eq!(before, tree());
    home.tars(&["backup", "--dry-run", "--only", "documents"]).expect(0);
    assert_eq!(before, tree());
}

#[test]
fn chosen_components_end_well_but_do_not_make_the_backup_count() {
    let home =
        Home::new().documents().source("out", "type = \"command\"\ncommand = [\"echo\", \"x\"]").ready();
    let outcome =
        home.tars(&["backup", "--only", "out", "--tag", "before-upgrade", "--json"]).expect(0).json();
    assert_eq!(outcome["state"], "partial");
    let manifest = home.manifest();
    assert_eq!(manifest["only"][0], "out");
    assert_eq!(manifest["tags"][0], "before-upgrade");
    assert_eq!(manifest["expected_components"], serde_json::json!(["documents", "out"]));
    home.tars(&["list"]).expect(0).says("only out").says("#before-upgrade");
    home.tars(&["verify", "--latest"]).expect(1).says("no backup is complete enough");
    // Old spellings of what is not configured are no mistake.
    home.tars(&["backup", "--skip-redis", "--skip-postgres", "--skip-chromadb"]).expect(0);
    home.tars(&["verify", "--latest"]).expect(0);
}

#[test]
fn an_output_directory_takes_the_place_of_the_stores() {
    let home = Home::new().documents().ready();
    home.tars(&["backup", "--output-dir", &home.at("usb/stick")]).expect(0);
    assert_eq!(home.committed(), [""; 0]);
    let archive = sh(&format!("ls '{}'/*.tar.gz", home.at("usb/stick")));
    sh(&format!("cd '{}' && sha256sum -c *.sha256", home.at("usb/stick")));
    run(support::PROGRAM, &["verify", "--deep", archive.trim()]).expect(0);
}

#[test]
fn a_command_that_fails_after_output_is_a_failed_component() {
    let home = Home::new()
        .documents()
        .source("out", "type = \"command\"\ncritical = false\ncommand = [\"sh\", \"-c\", \"echo half; echo 'disk on fire' >&2; exit 3\"]")
        .ready();
    let done = home.tars(&["backup"]).expect(2);
    assert!(done.stderr.contains("out failed: sh ended with status 3: disk on fire"), "{}", done.stderr);
    let manifest = home.manifest();
    assert_eq!(manifest["state"], "degraded");
    assert_eq!(manifest["failed_components"], serde_json::json!(["out"]));
    assert_eq!(manifest["details"]["out"]["error"], "sh ended with status 3: disk on fire");
    assert_eq!(manifest["components"], serde_json::json!(["documents"]));
    let listing = sh(&format!("tar -tzf '{}'", home.object(".tar.gz").display()));
    assert!(!listing.contains("out.out"), "{listing}");
    home.tars(&["verify", "--latest", "--deep"]).expect(0).says("out is not in it");
}

#[test]
fn commands_that_cannot_start_hang_or_say_nothing_fail_with_their_reason() {
    for (lines, says) in [
        ("command = [\"/nonexistent/tool\"]", "cannot start /nonexistent/tool"),
        ("command = [\"true\"]", "there was none"),
        ("command = [\"sleep\", \"60\"]\nidle_timeout = \"1s\"", "sleep sent nothing for 1 s"),
        ("command = [\"yes\"]\ntimeout = \"1s\"", "yes was not done after 1 s"),
        ("command = [\"sh\", \"-c\", \"echo x; kill -9 $$\"]", "sh was killed by signal 9"),
    ] {
        let home = Home::new().source("out", &format!("type = \"command\"\n{lines}")).ready();
        home.tars(&["backup"]).expect(1).says(says).says("No backup was made");
        home.assert_nothing_left();
        assert_eq!(home.committed(), [""; 0]);
    }
}

#[test]
fn two_sources_cannot_share_a_file_of_the_archive() {
    let home = Home::new()
        .source("a", "type = \"command\"\ncommand = [\"echo\", \"1\"]\nfilename = \"same\"")
        .source("b", "type = \"command\"\ncommand = [\"echo\", \"2\"]\nfilename = \"same\"")
        .ready();
    home.tars(&["backup"]).expect(2).says("its file same.gz is also one of a");
    home.tars(&["verify", &home.only(), "--deep"]).expect(1).says("critical component b");
}

#[test]
fn a_database_under_writes_is_captured_whole() {
    let home = Home::new();
    let path = home.at("app.db");
    for mode in ["wal", "delete"] {
        let _ = std::fs::remove_file(home.path("app.db"));
        sh(&format!(
            "sqlite3 '{path}' 'PRAGMA journal_mode={mode}; CREATE TABLE t(x TEXT); CREATE TABLE \"odd \"\"name\"(y);' >/dev/null"
        ));
        let home = Home::new().source("app", &format!("type = \"sqlite\"\npath = \"{path}\"")).ready();
        let stop = home.at("stop");
        let mut writer = std::process::Command::new("bash")
            .args(["-c", &format!(
                "while [ ! -e '{stop}' ]; do sqlite3 -cmd '.timeout 5000' '{path}' \"BEGIN; INSERT INTO t SELECT hex(randomblob(2000)) FROM generate_series(1,20); INSERT INTO \\\"odd \\\"\\\"name\\\" SELECT 1 FROM generate_series(1,20); COMMIT\"; done"
            )])
            .spawn()
            .unwrap();
        for _ in 0..8 {
            home.backup(0);
        }
        std::fs::write(&stop, "").unwrap();
        writer.wait().unwrap();
        home.tars(&["verify", "--all", "--deep"]).expect(0);
        for name in home.committed() {
            let archive = home.at(&format!("store/daily/{name}.tar.gz"));
            let copy = home.at("copy.db");
            sh(&format!("tar -xzOf '{archive}' '{name}/app.sqlite3.gz' | gunzip > '{copy}'"));
            let checked = sh(&format!(
                "sqlite3 -readonly 'file:{copy}?immutable=1' 'PRAGMA integrity_check; SELECT (SELECT count(*) FROM t) = (SELECT count(*) FROM \"odd \"\"name\")'"
            ));
            assert_eq!(checked, "ok\n1\n", "{mode}: both tables are of one moment");
            sh(&format!("rm -f '{copy}'*"));
        }
    }
}

#[test]
fn a_database_that_stays_locked_is_a_failure_in_time() {
    let home = Home::new();
    let path = home.at("app.db");
    sh(&format!("sqlite3 '{path}' 'CREATE TABLE t(x); INSERT INTO t VALUES(1)'"));
    let home =
        home.source("app", &format!("type = \"sqlite\"\npath = \"{path}\"\nidle_timeout = \"1s\"")).ready();
    let held = home.at("held");
    let mut holder = std::process::Command::new("sqlite3")
        .args([
            &path,
            "BEGIN EXCLUSIVE",
            &format!(".shell touch '{held}'; while [ ! -e '{held}.off' ]; do sleep 0.05; done"),
        ])
        .spawn()
        .unwrap();
    while !home.path("held").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let done = home.tars(&["backup"]);
    std::fs::write(home.path("held.off"), "").unwrap();
    holder.wait().unwrap();
    done.expect(1).says("it stayed locked");
    home.backup(0);
}

#[test]
fn a_missing_empty_or_damaged_database_is_a_failure() {
    let home = Home::new();
    std::fs::write(home.path("empty.db"), "").unwrap();
    std::fs::write(
        home.path("text.db"),
        "this is no database, but it is long enough to look like one\n".repeat(20),
    )
    .unwrap();
    let damaged = home.at("damaged.db");
    sh(&format!(
        "sqlite3 '{damaged}' 'CREATE TABLE t(x); INSERT INTO t SELECT hex(randomblob(400)) FROM generate_series(1,200); CREATE INDEX i ON t(x)'; \
         dd if=/dev/urandom of='{damaged}' bs=1 seek=20000 count=9000 conv=notrunc status=none"
    ));
    for (file, says) in [
        ("missing.db", "No such file"),
        ("empty.db", "the file is empty"),
        ("text.db", "not a database"),
        ("damaged.db", "damaged.db"),
    ] {
        let world =
            Home::new().source("app", &format!("type = \"sqlite\"\npath = \"{}\"", home.at(file))).ready();
        world.tars(&["backup"]).expect(1).says("app failed").says(says);
        assert_eq!(world.committed(), [""; 0]);
    }
    assert!(!home.path("missing.db").exists(), "looking must not create it");
}

#[test]
fn one_place_is_never_two_stores() {
    let home = Home::new().documents();
    sh(&format!("ln -s store '{}'", home.at("link")));
    for (path, stores) in
        [("link", "\"nas\", \"b\""), ("store/inside", "\"nas\", \"b\""), ("other", "\"b\", \"b\"")]
    {
        let extra = format!(
            "[stores.b]\ntype = \"fs\"\npath = \"{}\"\n[tiers.warm]\nstores = [{stores}]",
            home.at(path)
        );
        let text = format!(
            "[sources.d]\ntype = \"directory\"\npath = \"/srv\"\n[stores.nas]\ntype = \"fs\"\npath = \"{}\"\n{extra}\n[tiers.hot]\nstores = [\"nas\"]\n",
            home.at("store")
        );
        std::fs::write(home.path("config.toml"), text).unwrap();
        let done = home.tars(&["config", "check"]).expect(78);
        assert!(done.stderr.contains("overlaps") || done.stderr.contains("twice"), "{}", done.stderr);
    }
}

#[test]
fn extract_takes_the_good_copy_where_one_is_damaged() {
    let home = Home::new().documents().second_store().ready();
    home.tars(&["store", "init", "second"]).expect(0);
    let mut told = 0;
    for damaged in ["store", "second"] {
        let name = home.tars(&["backup", "--tier", "both", "--json"]).expect(0).json()["name"]
            .as_str()
            .unwrap()
            .to_owned();
        sh(&format!(
            "printf x | dd of='{}/both/{name}.tar.gz' bs=1 seek=300 conv=notrunc status=none",
            home.at(damaged)
        ));
        let out = home.at(&format!("out-{damaged}"));
        let done = home.tars(&["extract", &name, "--to", &out]).expect(0);
        told += usize::from(done.stderr.contains("is damaged"));
        sh(&format!("gunzip -t '{out}/documents.tar.gz'"));
    }
    assert_eq!(told, 1, "the first copy is looked at first, and only its damage is met");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is_one() {
    let home = Home::new().documents().ready();
    home.backup(0);
    let name = home.only();
    for args in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["man"],
        &["--help"],
        &["help", "restore"],
        &["--version"],
        &["list"],
        &["list", "--json"],
        &["show", &name],
        &["show", "--latest", "--json"],
        &["verify", "--all"],
        &["verify", "--all", "--json"],
        &["prune"],
        &["status"],
        &["status", "--json"],
        &["config", "check"],
        &["config", "show"],
        &["config", "schema"],
        &["backup", "--dry-run"],
        &["key", "show"],
        &["sync"],
        &["recover", "--json"],
    ] {
        let status = home.tars(args).code;
        // Nobody reads: as after `| head -1`, when there was more to say.
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let ended = home.command(args).stdout(closed.try_clone().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!said.contains("pipe") && !said.contains("cannot write"), "{args:?} says {said}");
        assert_eq!(ended.status.code(), Some(status), "{args:?}: {said}");
        // Nor of what it says besides: `2>&1 | head -1`.
        let ended = home.command(args).stdout(closed.try_clone().unwrap()).stderr(closed).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{args:?}");
    }
    for args in [&["completions", "bash"][..], &["man"], &["list"], &["list", "--json"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = home.command(args).stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{args:?}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains("cannot write the output"), "{args:?} says {said}");
    }
}

#[test]
fn the_manual_and_the_completions_know_every_command_and_option() {
    let page = run(support::PROGRAM, &["man"]).expect(0).stdout;
    for word in ["TARS-BACKUP BACKUP", "TARS-BACKUP STORE INIT", "output\\-dir", "deep", "wait"] {
        assert!(page.contains(word), "{word} is not in the manual");
    }
    assert!(!page.contains("probe"), "a hidden command is in the manual");
    for shell in ["bash", "zsh", "fish"] {
        run(support::PROGRAM, &["completions", shell]).expect(0).says("output-dir");
    }
}
