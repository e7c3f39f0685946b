//! `tars-backup init` against a real engine: a stack is found, what is written for it is good and makes a complete backup,
//! and nothing is written over, told, or left out without a word. Needs the laboratory.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
#[path = "stack/lab.rs"]
mod lab;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use lab::{Lab, ODD_PASSWORD, lab_file};
use serde_json::{Value, json};
use support::{Done, Home, sh};

const SERVICES: &str = "tars-lab/services:1";
const TOKEN: &str = "hunter2-and-more";

/// Keeps everything that a run writes inside the home of the test: what `init` writes names the places of the machine.
fn at_home(home: &Home) {
    std::fs::create_dir_all(home.path("conf.d")).unwrap();
    let root = home.root().display();
    let text = format!("[agent]\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n");
    std::fs::write(home.path("conf.d/10-test.toml"), text).unwrap();
}

fn init(home: &Home, lab: &Lab, more: &[&str]) -> Done {
    let (project, store) = (format!("{}deploy", lab.prefix), home.at("store"));
    home.tars(&[&["init", "--project", &project, "--store", &store], more].concat())
}

fn source<'a>(found: &'a Value, name: &str) -> &'a Value {
    let all = found["sources"].as_array().unwrap();
    all.iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no source {name} in {found:#}"))
}

fn mode(path: &std::path::Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// The engine says nothing of what a test adds by `docker run`; so this is the label that Compose would give.
fn label(key: &str, value: &str) -> [String; 2] {
    ["--label".to_owned(), format!("com.docker.compose.{key}={value}")]
}

#[test]
fn what_is_written_for_a_stack_makes_a_complete_backup() {
    let lab = Lab::new();
    let stack = |verb| {
        sh(&format!(
            "LAB_PREFIX='{}' REDIS_PASSWORD='{TOKEN}-redis' '{}' {verb}",
            lab.prefix,
            lab_file("stack.sh")
        ))
    };
    stack("up");
    let home = Home::new();
    let at = |path: &str| home.at(path);
    for (file, text) in [
        (
            "stack/compose.yml",
            "services:\n  web:\n    env_file: [web.env, gone.env]\n    container_name: x\n",
        ),
        ("stack/web.env", &format!("TOKEN={TOKEN}\n")),
        ("stack/.env", "PORT=1\n"),
        ("stack/app.yml", "colour: red\n"),
        ("stack/key", "a secret and nothing else\n"),
        ("stack/data/a [1].txt", "data\n"),
        ("stack/data/db/base", "of a database\n"),
        ("stack/data/.env", "PORT=2\n"),
        ("documents/b.txt", "read\n"),
    ] {
        std::fs::create_dir_all(home.path(file).parent().unwrap()).unwrap();
        std::fs::write(home.path(file), text).unwrap();
    }
    std::fs::create_dir(home.path("stack/nothing")).unwrap();
    sh(&format!("sqlite3 '{}' 'CREATE TABLE t (x); INSERT INTO t VALUES (1)'", at("stack/app.db")));
    let _socket = UnixListener::bind(home.path("stack/socket")).unwrap();
    let logs = lab.volume("deploy_web_logs");
    let cache = lab.volume("deploy_later");
    let mut args: Vec<String> = [
        format!("TOKEN={TOKEN}"),
        // Looks like a place of data, and is none of a server.
        format!("PGDATA=/{TOKEN}"),
    ]
    .iter()
    .flat_map(|e| ["-e".to_owned(), e.clone()])
    .collect();
    args.extend(label("project.working_dir", &at("stack")));
    args.extend(label("project.config_files", &format!("{},missing.yml", at("stack/compose.yml"))));
    for mount in [
        format!("{}:/app/data", at("stack/data")),
        format!("{}:/documents:ro", at("documents")),
        format!("{}:/app/nothing", at("stack/nothing")),
        format!("{}:/etc/app.yml:ro", at("stack/app.yml")),
        format!("{}:/run/secrets/key:ro", at("stack/key")),
        format!("{}:/app/app.db", at("stack/app.db")),
        format!("{}:/run/app.socket", at("stack/socket")),
        "/etc/hostname:/etc/hostname.host:ro".to_owned(),
        "/:/host:ro".to_owned(),
        "/without/a/name".to_owned(),
        format!("{logs}:/app/logs"),
        format!("{cache}:/app/later"),
    ] {
        args.extend(["-v".to_owned(), mount]);
    }
    args.extend(
        ["--stop-timeout", "1", "--tmpfs", "/app/tmp", SERVICES, "sleep", "infinity"].map(str::to_owned),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let web = lab.container(&["run", "-d"], "web", &args);
    lab.sh(&web, "echo started >/app/logs/web.log; echo x >/without/a/name/x");
    let data = format!("{}:/var/lib/mysql", at("stack/data/db"));
    lab.container(&["create"], "mysql", &["-v", &data, SERVICES, "mysqld"]);

    let done = init(&home, &lab, &["--json"]).expect(0);
    let found = done.json();
    let project = format!("{}deploy", lab.prefix);
    assert_eq!(found["project"], project);
    assert_eq!(found["containers"].as_array().unwrap().len(), 7);
    let names = ["chromadb", "postgres", "redis", "ollama"];
    for name in names {
        let s = source(&found, name);
        assert_eq!(s["type"], name);
        assert_eq!(s["keys"]["container"], format!("{}tars-home-{name}", lab.prefix));
    }
    assert_eq!(source(&found, "chromadb")["keys"]["volume"], format!("{project}_chroma_data"));
    let backend_logs = source(&found, "backend_logs");
    assert_eq!(backend_logs["keys"]["volume"], format!("{project}_backend_logs"));
    assert_eq!(backend_logs["keys"]["on_by_default"], false);
    let prefix = lab.prefix.trim_end_matches('-');
    let of_web = |name: &str| source(&found, &format!("{prefix}-web-{name}"));
    let data = of_web("data");
    assert_eq!(data["type"], "volume");
    assert_eq!(data["keys"]["path"], "/app/data");
    assert_eq!(data["keys"]["consistency"], "pause");
    assert_eq!(data["keys"]["exclude"], json!(["/db"]));
    assert_eq!(of_web("documents")["type"], "directory");
    assert_eq!(of_web("nothing")["keys"]["allow_empty"], true);
    assert_eq!(of_web("name")["out_of_use"], true);
    assert_eq!(source(&found, "app")["type"], "sqlite");
    let mysql = source(&found, &format!("{prefix}-mysql"));
    assert_eq!(mysql["keys"]["consistency"], "stop");
    let files = source(&found, "configuration")["keys"]["files"].clone();
    let wanted = ["stack/compose.yml", "stack/web.env", "stack/.env", "stack/app.yml"].map(&at);
    assert_eq!(files, json!(wanted));
    let left: Vec<&str> =
        found["left_out"].as_array().unwrap().iter().filter_map(|l| l["what"].as_str()).collect();
    for what in ["stack/gone.env", "stack/missing.yml", "stack/key"].map(&at) {
        assert!(left.iter().any(|l| l.starts_with(&what)), "{what} is not in {left:#?}");
    }
    assert!(left.iter().any(|l| l.starts_with("/ (/host of ")), "{left:#?}");
    assert_eq!(left.len(), 4, "{left:#?}");

    let text = std::fs::read_to_string(home.path("config.toml")).unwrap();
    assert_eq!(mode(&home.path("config.toml")), 0o600);
    for secret in [TOKEN, ODD_PASSWORD, "a secret and nothing else"] {
        assert!(!text.contains(secret) && !done.stdout.contains(secret) && !done.stderr.contains(secret));
    }

    // A second time nothing is looked at, and nothing changes.
    init(&home, &lab, &[]).expect(1).says("is there already").says(".old");
    assert_eq!(std::fs::read_to_string(home.path("config.toml")).unwrap(), text);

    home.tars(&["config", "check"]).expect(0).says("is good");
    at_home(&home);
    home.tars(&["config", "check"]).expect(0);
    // The name tells what the disk of the test is.
    let store = found["store"]["name"].as_str().unwrap();
    home.tars(&["store", "init", store]).expect(0);
    let plan = home.tars(&["backup", "--dry-run", "--json"]).expect(0).json();
    for component in plan["components"].as_array().unwrap() {
        assert_eq!(component["error"], Value::Null, "{component:#}");
    }
    let outcome = home.backup(0);
    assert_eq!(outcome["state"], "complete");
    let unpacked = home.unpack("out");
    let inside = sh(&format!("tar -tzf '{}/{prefix}-web-data.tar.gz'", unpacked.display()));
    assert!(
        inside.contains("a [1].txt") && inside.contains("./.env") && !inside.contains("base"),
        "{inside}"
    );
    let kept = sh(&format!("cat '{}'/config/*", unpacked.display()));
    assert!(kept.contains("colour: red") && !kept.contains(TOKEN), "{kept}");
    stack("down");
}

#[test]
fn odd_names_are_written_so_that_they_are_found_again() {
    let lab = Lab::new();
    let home = Home::new();
    let odd = "it's [a] {b}* ünï\u{202e} \\ $HOME #x";
    std::fs::create_dir_all(home.path(odd).join("sub")).unwrap();
    std::fs::write(home.path(odd).join("sub/file"), "x\n").unwrap();
    std::fs::write(home.path(odd).join("com[p]ose.yml"), "services: {}\n").unwrap();
    let mut args: Vec<String> = Vec::new();
    args.extend(label("service", "we\"ird\n[sources.evil]\ntype = 'x'"));
    args.extend(label("project.working_dir", &home.at(odd)));
    args.extend(label("project.config_files", "com[p]ose.yml"));
    args.extend(["-v".to_owned(), format!("{}:/da ta [1]", home.at(odd))]);
    args.extend([SERVICES, "sleep", "infinity"].map(str::to_owned));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let container = lab.container(&["run", "-d"], "odd", &args);
    let found = init(&home, &lab, &["--json"]).expect(0).json();
    assert_eq!(found["sources"].as_array().unwrap().len(), 2, "{found:#}");
    let data = source(&found, "we-ird--sources-evil--type----x--da-ta--1");
    assert_eq!(data["keys"]["container"], container);
    assert_eq!(data["keys"]["exclude"], json!(["/com\\[p\\]ose.yml"]));
    at_home(&home);
    home.tars(&["config", "check"]).expect(0);
    home.tars(&["store", "init", found["store"]["name"].as_str().unwrap()]).expect(0);
    home.backup(0);
    let archive = home.unpack("out").join("we-ird--sources-evil--type----x--da-ta--1.tar.gz");
    let inside = sh(&format!("tar -tzf '{}'", archive.display()));
    assert!(inside.contains("./sub/file") && !inside.contains("ose.yml"), "{inside}");
    // And what a terminal is shown obeys nobody.
    std::fs::remove_file(home.path("config.toml")).unwrap();
    let shown = init(&home, &lab, &[]).expect(0).stdout;
    assert!(!shown.contains('\u{202e}') && !shown.contains("\n[sources.evil]"), "{shown}");
}

#[test]
fn of_several_projects_one_must_be_named() {
    let lab = Lab::new();
    let home = Home::new();
    lab.container(&["create"], "one", &[SERVICES]);
    let other = label("project", &format!("{}other", lab.prefix));
    lab.container(&["create"], "two", &[&other[0], &other[1], SERVICES]);
    let store = home.at("store");
    let done = home.tars(&["init", "--store", &store]).expect(64);
    let done = done.says("several Compose projects").says("--project NAME");
    done.says(&format!("{}deploy", lab.prefix)).says(&format!("{}other", lab.prefix));
    home.tars(&["init", "--project", "nosuch"])
        .expect(64)
        .says("no Compose project \"nosuch\"")
        .says(&format!("{}other", lab.prefix));
    assert!(!home.path("config.toml").exists());
    // Where the directory is not there it is made, for us alone.
    let config = home.at("etc/deep/config.toml");
    let run = |args: &[&str]| support::run(support::PROGRAM, args);
    let project = format!("{}deploy", lab.prefix);
    let done = run(&["--config", &config, "init", "--project", &project, "--store", &store]).expect(0);
    let done = done.says("the files of the stack: no Compose file of it was found here");
    done.says(&project).says(&format!("tars-backup --config {config} config check"));
    assert_eq!((mode(&home.path("etc")), mode(&home.path("etc/deep"))), (0o700, 0o700));
    assert_eq!(mode(&home.path("etc/deep/config.toml")), 0o600);
    assert_eq!(sh(&format!("ls -A '{}'", home.at("etc/deep"))), "config.toml\n");
    run(&["--config", &config, "config", "check"]).expect(0);
}

#[test]
fn a_store_in_what_is_captured_is_refused() {
    let lab = Lab::new();
    let home = Home::new();
    std::fs::create_dir(home.path("data")).unwrap();
    std::fs::write(home.path("data/x"), "x").unwrap();
    std::os::unix::fs::symlink(home.path("data"), home.path("link")).unwrap();
    let mount = format!("{}:/data", home.at("data"));
    lab.container(&["create"], "app", &["-v", &mount, SERVICES]);
    let project = format!("{}deploy", lab.prefix);
    for store in ["data", "data/store", "link/store", ".", "data/../data/x/.."] {
        let store = home.at(store);
        let done = home.tars(&["init", "--project", &project, "--store", &store]).expect(1);
        done.says("lie in one another").says("--store DIR");
        assert!(!home.path("config.toml").exists(), "{store}");
    }
    home.tars(&["init", "--project", &project, "--store", &home.at("data-store")]).expect(0);
}

#[test]
fn without_an_engine_the_way_to_an_example_is_told() {
    let home = Home::new().env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    home.tars(&["init"])
        .expect(1)
        .says("/nonexistent/docker.sock does not answer")
        .says("/usr/share/doc/tars-backup/examples");
    assert!(!home.path("config.toml").exists());
    // Whose file is there is asked first.
    std::os::unix::fs::symlink("nowhere", home.path("config.toml")).unwrap();
    home.tars(&["init"]).expect(1).says("is there already");
    assert!(home.path("config.toml").symlink_metadata().unwrap().is_symlink());
}
