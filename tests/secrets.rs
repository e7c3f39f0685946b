//! No secret of the stack's configuration leaves in the clear: not in the archive, the log, the JSON or the arguments
//! of any process.

#![allow(clippy::unwrap_used)]

mod support;

use support::{Home, sh};

const DB_PASSWORD: &str = "t4rs/Db+Pass&word9";
const JWT_SECRET: &str = "Zk3vQ81xYp0Rw7Lm5Nc2Bd6";
const API_TOKEN: &str = "tok-live-5f2a9c71e8d3";

fn stack(home: &Home) {
    std::fs::create_dir_all(home.path("stack")).unwrap();
    let write = |name: &str, text: String| std::fs::write(home.path(&format!("stack/{name}")), text).unwrap();
    let encoded = "t4rs%2FDb%2BPass%26word9";
    write(
        "tars-home.env",
        format!(
            "# T.A.R.S. home\nPOSTGRES_USER=tars\nPOSTGRES_DB=tars_home\nPOSTGRES_PASSWORD={DB_PASSWORD}\n\
             DATABASE_URL=postgresql://tars:{encoded}@postgres:5432/tars_home\n\
             # the password was {DB_PASSWORD} before the move, too\nJWT_SECRET='{JWT_SECRET}'\nLOG_LEVEL=info\nPORT=8000\n"
        ),
    );
    write(
        "docker-compose.home.yml",
        format!(
            "services:\n  backend:\n    image: tars-backend:v1.0.10-home\n    environment:\n      - API_TOKEN={API_TOKEN}\n      \
             - DATABASE_URL=postgresql://tars:{DB_PASSWORD}@postgres/tars_home\n      - MODE=home\n  redis:\n    image: redis:7-alpine\n    \
             command: redis-server --appendonly yes --requirepass {API_TOKEN}\n    # old: {JWT_SECRET}\n"
        ),
    );
    write(
        "tars-home.yml",
        format!(
            "server:\n  port: 8000\nauth:\n  jwt:\n    secret: \"{JWT_SECRET}\"\nnested: {{api_key: {API_TOKEN}, size: 3}}\n"
        ),
    );
}

fn with_stack() -> Home {
    let home = Home::new().documents();
    stack(&home);
    let files: Vec<String> = ["tars-home.env", "docker-compose.home.yml", "tars-home.yml"]
        .iter()
        .map(|f| format!("\"{}\"", home.at(&format!("stack/{f}"))))
        .collect();
    let lines = format!("type = \"config_files\"\nfiles = [{}]", files.join(", "));
    let echo = format!(
        "type = \"command\"\ncritical = false\ncommand = [\"sh\", \"-c\", \"echo {DB_PASSWORD} >&2; exit 3\"]"
    );
    home.source("configuration", &lines).source("leaky", &echo).ready()
}

fn needles() -> Vec<String> {
    let mut all = Vec::new();
    for secret in [DB_PASSWORD, JWT_SECRET, API_TOKEN] {
        all.push(secret.to_owned());
        all.push(
            secret
                .bytes()
                .map(|b| {
                    if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
                        (b as char).to_string()
                    } else {
                        format!("%{b:02X}")
                    }
                })
                .collect(),
        );
    }
    all
}

#[test]
fn no_secret_of_the_stack_is_in_the_archive_the_manifest_or_the_output() {
    let home = with_stack();
    // The configuration itself holds one in a command, so it is left out of what is searched.
    let done = home.tars(&["backup", "--json"]).expect(2);
    let dir = home.unpack("out");
    sh(&format!("cd '{}' && gunzip *.gz", dir.display()));
    let grep = |needle: &str| {
        sh(&format!(
            "grep -rlF -- '{needle}' '{}' '{}' || true",
            dir.display(),
            home.object(".manifest.json").display()
        ))
    };
    for needle in needles() {
        assert_eq!(grep(&needle), "", "{needle} is readable");
        for text in [&done.stdout, &done.stderr] {
            assert!(!text.contains(&needle), "{needle} was printed:\n{text}");
        }
        for args in [&["show", "--latest"][..], &["list"], &["config", "show"], &["verify", "--all"]] {
            let shown = home.tars(args);
            let own_command = args[0] == "config";
            assert!(
                own_command || !format!("{}{}", shown.stdout, shown.stderr).contains(&needle),
                "{args:?}"
            );
        }
    }
    let config = |name: &str| std::fs::read_to_string(dir.join("config").join(name)).unwrap();
    let env = config("tars-home.env.redacted");
    assert!(
        env.contains("POSTGRES_PASSWORD=<REDACTED>")
            && env.contains("LOG_LEVEL=info")
            && env.contains("# T.A.R.S. home"),
        "{env}"
    );
    assert!(env.contains("@postgres:5432/tars_home"), "{env}");
    let compose = config("docker-compose.home.yml.redacted");
    assert!(compose.contains("image: redis:7-alpine") && compose.contains("- MODE=home"), "{compose}");
    let inventory = config("INVENTORY.txt");
    assert!(inventory.contains("tars-home.env\t0644\t0\t0\t"), "{inventory}");
    let sums = sh(&format!(
        "cd '{}/config' && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1",
        dir.display()
    ));
    assert_eq!(home.manifest()["checksums"]["config/"], format!("sha256:{}", sums.trim()));
}

#[test]
fn a_harmless_file_keeps_its_name_and_bytes() {
    let home = Home::new();
    let text = "server:\n  port: 8000 # listen\n  host: 0.0.0.0\n";
    std::fs::write(home.path("tars-home.yml"), text).unwrap();
    let lines = format!("type = \"config_files\"\nown = false\nfiles = [\"{}\"]", home.at("tars-home.yml"));
    let home = home.source("configuration", &lines).ready();
    home.backup(0);
    assert_eq!(std::fs::read_to_string(home.unpack("out").join("config/tars-home.yml")).unwrap(), text);
}

#[test]
fn a_missing_file_makes_the_configuration_incomplete() {
    let home = Home::new();
    std::fs::write(home.path("a.env"), "MODE=home\n").unwrap();
    let lines =
        format!("type = \"config_files\"\nfiles = [\"{}\", \"{}\"]", home.at("a.env"), home.at("gone.env"));
    let home = home.source("configuration", &lines).ready();
    home.tars(&["backup"]).expect(2).says("configuration is incomplete").says("gone.env");
    assert_eq!(home.manifest()["state"], "partial");
    assert!(home.unpack("out").join("config/a.env").exists());
}

#[test]
fn a_secret_that_is_also_a_name_in_the_manifest_fails_the_configuration() {
    let home = Home::new();
    std::fs::write(home.path("a.env"), "API_TOKEN=warehouse-main\n").unwrap();
    let lines = format!("type = \"config_files\"\nown = false\nfiles = [\"{}\"]", home.at("a.env"));
    let home = home
        .source("configuration", &lines)
        .source("warehouse-main", "type = \"command\"\ncommand = [\"echo\", \"x\"]")
        .ready();
    let done = home.tars(&["backup"]).expect(2);
    assert!(done.stderr.contains("configuration failed: the value of API_TOKEN"), "{}", done.stderr);
    assert!(!home.unpack("out").join("config").exists());
}

#[test]
fn a_secret_given_by_reference_reaches_the_program_and_no_output() {
    for kind in ["file", "env", "credential"] {
        let home = Home::new();
        std::fs::write(home.path("secret"), format!("{DB_PASSWORD}\n")).unwrap();
        let reference = if kind == "credential" {
            // As systemd hands one to a unit.
            "{ credential = \"secret\" }".to_owned()
        } else if kind == "file" {
            format!("{{ file = \"{}\" }}", home.at("secret"))
        } else {
            "{ env = \"MY_PW\" }".to_owned()
        };
        let lines = format!(
            "type = \"command\"\nsecret_env = \"PW\"\nsecret = {reference}\ncommand = [\"sh\", \"-c\", \"printf %s \\\"$PW\\\" | sha256sum; echo \\\"got $PW\\\" >&2; [ -e '{}' ]\"]",
            home.at("fail-not")
        );
        let credentials = home.root().display().to_string();
        let home = home.env("MY_PW", DB_PASSWORD).env("CREDENTIALS_DIRECTORY", &credentials);
        let home = home.source("out", &lines).ready();
        let failed = home.tars(&["backup"]).expect(1).says("got <REDACTED>");
        assert!(!failed.stderr.contains(DB_PASSWORD));
        std::fs::write(home.path("fail-not"), "").unwrap();
        home.backup(0);
        let archive = home.object(".tar.gz");
        let seen = sh(&format!("tar -xzOf '{}' '{}/out.out.gz' | gunzip", archive.display(), home.only()));
        let wanted = sh(&format!("printf %s '{DB_PASSWORD}' | sha256sum"));
        assert_eq!(seen, wanted);
    }
    let home = Home::new()
        .source("out", "type = \"command\"\nsecret = { file = \"/nonexistent/pw\" }\ncommand = [\"true\"]")
        .ready();
    home.tars(&["backup"]).expect(1).says("is not there").says("install -m 0600");
}
