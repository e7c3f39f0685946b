//! The whole stack comes back: every service from one archive, while the others wait. What could go wrong: an application
//! that works on half of it, or that writes its old state into restored data.

use crate::lab::{ASK, Lab, lab_file, source, until};
use crate::support::{Home, follow_the_guide, killed_at_every_line, restore_to_kill, run, sh};
use crate::{legacy, postgres, redis};

struct Stack {
    lab: Lab,
    pg: String,
    redis: String,
    chroma: String,
    ollama: String,
    backend: String,
}

impl Stack {
    fn up() -> Self {
        let lab = Lab::new();
        let name = |s: &str| format!("{}tars-home-{s}", lab.prefix);
        let [pg, redis, chroma, ollama, backend] =
            ["postgres", "redis", "chromadb", "ollama", "backend"].map(name);
        let stack = Self { lab, pg, redis, chroma, ollama, backend };
        stack.script("up");
        stack
    }

    fn script(&self, verb: &str) {
        sh(&format!("LAB_PREFIX='{}' '{}' {verb}", self.lab.prefix, lab_file("stack.sh")));
    }

    fn fill(&self) {
        self.lab.chroma_py(&self.chroma, &["seed"]);
        postgres::load_odd_data(&self.lab, &self.pg);
        sh(&format!("'{}' '{}'", lab_file("odd-redis.sh"), self.redis));
        self.lab.sh(&self.backend, "mkdir -p /app/logs/old && echo a line > /app/logs/app.log");
    }

    fn home(&self) -> Home {
        let home = Home::new();
        let env = home.at("tars-home.env");
        std::fs::write(&env, "PORT=8001\n").unwrap();
        let backend = &self.backend;
        let home = home
            .source("chromadb", &source("chromadb", &self.chroma, ""))
            .source("postgres", &source("postgres", &self.pg, ""))
            .source("redis", &source("redis", &self.redis, ""))
            .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]"))
            .source("ollama", &source("ollama", &self.ollama, ""))
            .source(
                "backend_logs",
                &format!(
                    "type = \"volume\"\ncontainer = {backend:?}\npath = \"/app/logs\"\nconsistency = \"live\""
                ),
            )
            .extra("[docker]\nhealth_timeout = \"60s\"\n")
            .ready();
        home.tars(&["backup", "--include-models"]).expect(0);
        home
    }

    fn states(&self) -> String {
        let mine = format!("name={}", self.lab.prefix);
        self.lab.ok(&["ps", "-a", "--filter", &mine, "--format", "{{.Names}} {{.ID}} {{.State}}"])
    }

    fn logs(&self) -> String {
        self.lab.sh(&self.backend, "cd /app/logs; find . | sort; cat app.log")
    }

    fn models(&self) -> String {
        self.lab.sh(&self.ollama, "cd /root/.ollama; find . -type f -exec sha256sum {} + | sort")
    }

    fn portrait(&self) -> Portrait {
        for (container, wait) in
            [(&self.chroma, Lab::await_chroma as fn(&Lab, &str)), (&self.pg, Lab::await_postgres)]
        {
            wait(&self.lab, container);
        }
        Portrait {
            pg: postgres::portrait(&self.lab, &self.pg),
            redis: redis::keys(&self.lab, &self.redis),
            chroma: self.lab.chroma_holds(&self.chroma),
            files: [self.logs(), self.models()],
        }
    }

    fn collections(&self) -> String {
        let databases = "api/v2/tenants/default_tenant/databases/default_database/collections";
        format!("{}/{databases}", self.lab.url(&self.chroma, 8000))
    }

    /// The data of one part is gone or another one.
    fn ruin(&self, part: &str) {
        match part {
            "postgres" => drop(self.lab.sql(
                &self.pg,
                "tars_home",
                "DROP SCHEMA public CASCADE; CREATE SCHEMA public; CREATE TABLE later (v int)",
            )),
            "redis" => {
                self.lab.redis_cli(&self.redis, &["FLUSHALL"]);
                self.lab.redis_cli(&self.redis, &["SET", "later", "1"]);
            }
            "chromadb" => self.lab.delete_collection(&format!("{}/odd", self.collections())),
            "ollama" => drop(self.lab.sh(&self.ollama, "rm -rf /root/.ollama/models")),
            _ => drop(self.lab.sh(&self.backend, "rm -r /app/logs/old; echo another > /app/logs/app.log")),
        }
    }

    fn is_ruined(&self, part: &str) -> bool {
        match part {
            "postgres" => {
                self.lab.sql(&self.pg, "tars_home", "SELECT to_regclass('later')").trim() == "later"
            }
            "redis" => {
                until("Redis answers", || {
                    self.lab.docker(&["exec", &self.redis, "redis-cli", "PING"]).stdout == "PONG\n"
                });
                self.lab.redis_cli(&self.redis, &["EXISTS", "later"]) == "1\n"
            }
            "chromadb" => {
                self.lab.await_chroma(&self.chroma);
                !sh(&format!("{ASK} '{}'", self.collections())).contains("\"odd\"")
            }
            "ollama" => self.models().is_empty() || !self.models().contains("/models/"),
            _ => self.logs().contains("another"),
        }
    }
}

const PARTS: [&str; 5] = ["postgres", "redis", "chromadb", "ollama", "backend_logs"];

#[derive(PartialEq)]
struct Portrait {
    pg: std::collections::BTreeMap<String, String>,
    redis: Vec<String>,
    chroma: [String; 2],
    files: [String; 2],
}

impl Portrait {
    #[track_caller]
    fn assert_is(&self, home: &Home, wanted: &Self) {
        for (what, text) in &wanted.pg {
            // Only what the sequences may be ahead of is left out by the portrait itself.
            assert_eq!(self.pg.get(what), Some(text), "{what}");
        }
        assert_eq!(self.redis, wanted.redis);
        assert_eq!(self.files, wanted.files);
        let [a, b] = [home.at("a.json"), home.at("b.json")];
        std::fs::write(&a, &wanted.chroma[0]).unwrap();
        std::fs::write(&b, &self.chroma[0]).unwrap();
        run("python3", &[&lab_file("chroma.py"), "-", "compare", &a, &b]).expect(0);
        assert_eq!(self.chroma[1], wanted.chroma[1], "the index finds something else");
    }
}

#[test]
fn everything_that_was_destroyed_comes_back_and_every_container_runs() {
    let s = Stack::up();
    s.fill();
    let home = s.home();
    let (wanted, states) = (s.portrait(), s.states());
    for part in PARTS {
        s.ruin(part);
        assert!(s.is_ruined(part), "{part}");
    }
    // One part alone leaves the others as they are.
    for part in PARTS {
        home.tars(&["restore", "--latest", "--yes", "--no-safety-backup", "--component", part])
            .expect(0)
            .says(&format!("restored {part}"));
        for other in PARTS {
            assert_eq!(s.is_ruined(other), other != part, "{other} after a restore of {part}");
        }
        s.ruin(part);
    }

    let done = home.tars(&["restore", "--latest", "--yes"]).expect(0);
    let said = format!("{}{}", done.stdout, done.stderr);
    let at = |text: &str| said.find(text).unwrap_or_else(|| panic!("{text:?} is not in:\n{said}"));
    let stopped = at(&format!("Stopped {}", s.backend));
    let back = at(&format!("Started {} again", s.backend));
    assert!(stopped < at("Backup of tier"), "the safety copy is made when nobody writes any more");
    for part in PARTS {
        assert!(at(&format!("Restored {part}")) < back, "{part}");
    }
    s.portrait().assert_is(&home, &wanted);
    assert_eq!(s.states(), states, "the same containers, all running");
    assert!(!home.path("state/run.journal").exists());
}

/// A small stack by labels of Compose: a Redis, and an application that depends on it and stores its state when it ends.
fn pair(lab: &Lab, check: &str) -> (String, String) {
    let needs = format!("com.docker.compose.depends_on={}redis:service_started:true", lab.prefix);
    let of_redis = [
        "com.docker.compose.project.working_dir=/srv/my stack",
        "com.docker.compose.project.config_files=/srv/my stack/c.yml",
    ];
    pair_with(lab, check, &of_redis, &[&needs])
}

/// The same with these labels of Compose.
fn pair_with(lab: &Lab, check: &str, of_redis: &[&str], of_app: &[&str]) -> (String, String) {
    let volume = format!("{}:/data", lab.volume("redis_data"));
    let labels = |service: &str, more: &[&str]| -> Vec<String> {
        let mut all = lab.labels("stack", service);
        all.extend(more.iter().flat_map(|l| ["--label".to_owned(), (*l).to_owned()]));
        all
    };
    let of_redis = labels("redis", of_redis);
    let mut args: Vec<&str> = of_redis.iter().map(String::as_str).collect();
    args.extend(["-v", &volume]);
    args.extend(["redis:7-alpine", "redis-server", "--appendonly", "yes"]);
    let redis = lab.container_on("bridge", &["run", "-d"], "redis", &args);
    lab.await_redis(&redis);
    let address =
        lab.ok(&["inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &redis]);
    let last_words = format!(
        "trap 'redis-cli -h {} SET last words; exit 0' TERM; touch /tmp/well; while :; do sleep 0.1 & wait $!; done",
        address.trim()
    );
    let of_app = labels("app", of_app);
    let mut args: Vec<&str> = of_app.iter().map(String::as_str).collect();
    args.extend(["--health-cmd", check, "--health-interval", "1s", "--health-retries", "1"]);
    args.extend(["redis:7-alpine", "sh", "-c", &last_words]);
    let app = lab.container_on("bridge", &["run", "-d"], "app", &args);
    (redis, app)
}

#[test]
fn an_application_that_stays_unwell_is_told_and_the_new_data_stays() {
    let lab = Lab::new();
    let (redis, app) = pair(&lab, "test ! -e /tmp/ill");
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = Home::new()
        .source("redis", &source("redis", &redis, ""))
        .extra("[docker]\nhealth_timeout = \"20s\"\n")
        .ready();
    home.backup(0);
    lab.redis_cli(&redis, &["SET", "k", "after"]);
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "before\n");
    assert_eq!(
        lab.redis_cli(&redis, &["EXISTS", "last"]),
        "0\n",
        "its last words came before the restored data"
    );
    lab.sh(&app, "touch /tmp/ill");
    lab.redis_cli(&redis, &["SET", "k", "after"]);
    home.tars(&["restore", "--latest", "--yes"]).expect(2).says("is unhealthy").says(&app);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "before\n");
    assert!(!home.path("state/run.journal").exists());
}

#[test]
fn who_stops_waiting_for_an_application_learns_what_was_restored() {
    let lab = Lab::new();
    let (redis, app) = pair(&lab, "test ! -e /tmp/ill");
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = Home::new()
        .source("redis", &source("redis", &redis, ""))
        .extra("[docker]\nhealth_timeout = \"120s\"\n")
        .ready();
    home.backup(0);
    lab.redis_cli(&redis, &["SET", "k", "after"]);
    lab.sh(&app, "touch /tmp/ill");
    let mut run = home.spawn(&["restore", "--latest", "--yes"]);
    run.wait_for("Restored redis");
    run.signal("INT");
    let done =
        run.end().expect(130).says("restored redis").says("what was there before").says("not waited for");
    assert!(!done.stderr.contains("nothing was left behind"), "{}", done.stderr);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "before\n");
    assert!(!home.path("state/run.journal").exists());
}

/// Version 1 of Compose labels no dependencies.
#[test]
fn where_the_labels_do_not_say_who_depends_on_the_data_the_compose_file_does() {
    for labelled in [true, false] {
        let lab = Lab::new();
        let home = Home::new();
        let (main, more) = (home.path("docker-compose.yml"), home.path("more.yaml"));
        let p = &lab.prefix;
        std::fs::write(&main, format!("services:\n  {p}redis: {{image: 'redis:7'}}\n  {p}app: {{}}\n"))
            .unwrap();
        std::fs::write(&more, format!("services:\n  {p}app:\n    depends_on:\n      - {p}redis\n")).unwrap();
        let dir = format!("com.docker.compose.project.working_dir={}", home.root().display());
        let files = "com.docker.compose.project.config_files=docker-compose.yml,more.yaml";
        let labels: &[&str] = if labelled { &[&dir, files] } else { &[] };
        let (redis, app) = pair_with(&lab, "true", labels, labels);
        lab.redis_cli(&redis, &["SET", "k", "before"]);
        let home = match labelled {
            true => home,
            false => {
                let files = format!("files = [\"{}\", \"{}\"]", main.display(), more.display());
                home.source("configuration", &format!("type = \"config_files\"\n{files}"))
            }
        };
        let home = home.source("redis", &source("redis", &redis, "")).ready();
        home.backup(0);
        lab.redis_cli(&redis, &["SET", "k", "after"]);
        let plan = home.tars(&["restore", "--latest", "--dry-run", "--json"]).expect(0).json();
        assert_eq!(plan["stopped_meanwhile"], serde_json::json!([app]));
        home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"])
            .expect(0)
            .says(&format!("Stopped {app}"))
            .says(&format!("Started {app} again"));
        assert_eq!(lab.redis_cli(&redis, &["MGET", "k", "last"]), "before\n\n");
        // A file that cannot be read stops nothing, and is said.
        std::fs::write(&main, "services: [").unwrap();
        std::fs::remove_file(&more).unwrap();
        let done = home.tars(&["restore", "--latest", "--yes", "--no-safety-backup"]).expect(0);
        assert!(!done.stderr.contains(&format!("Stopped {app}")), "{}", done.stderr);
        for path in [&main, &more] {
            let told = format!("the Compose file {} cannot be read", path.display());
            assert_eq!(
                done.stderr.matches(&told).count(),
                2,
                "as it happens and in the end: {}",
                done.stderr
            );
        }
    }
}

#[test]
fn killed_at_any_step_the_application_runs_again_with_old_or_new_data() {
    let lab = Lab::new();
    let (redis, app) = pair(&lab, "true");
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = Home::new().source("redis", &source("redis", &redis, "")).ready();
    home.backup(0);
    killed_at_every_line(
        &home,
        6,
        || restore_to_kill(&home, false, &[]),
        || drop(lab.redis_cli(&redis, &["SET", "k", "after"])),
        |line| {
            home.tars(&["recover"]).expect(0);
            for container in [&redis, &app] {
                let state = lab.ok(&["inspect", "-f", "{{.State.Status}}", container]);
                assert_eq!(state, "running\n", "{container} after a kill at line {line}");
            }
            lab.await_redis(&redis);
            let now = lab.redis_cli(&redis, &["GET", "k"]);
            assert!(now == "before\n" || now == "after\n", "{now} after a kill at line {line}");
            assert!(!home.path("state/run.journal").exists());
        },
    );
}

#[test]
fn containers_that_are_gone_are_asked_for_with_the_very_command() {
    let lab = Lab::new();
    let (redis, app) = pair(&lab, "true");
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = Home::new().source("redis", &source("redis", &redis, "")).ready();
    home.backup(0);
    lab.ok(&["rm", "-f", &redis, &app]);
    // Another stack has a service of that name.
    let other = lab.labels("other", "redis");
    let mut args: Vec<&str> = other.iter().map(String::as_str).collect();
    args.extend(["--label", "com.docker.compose.service=redis", "redis:7-alpine", "redis-server"]);
    let other = lab.container(&["run", "-d"], "other", &args);
    lab.await_redis(&other);
    lab.redis_cli(&other, &["SET", "k", "other"]);
    home.tars(&["restore", "--latest", "--yes"])
        .expect(1)
        .says("--project-directory '/srv/my stack' --file '/srv/my stack/c.yml' up --no-start");
    assert_eq!(lab.redis_cli(&other, &["GET", "k"]), "other\n");
}

#[test]
fn the_guide_alone_brings_an_empty_stack_back() {
    let s = Stack::up();
    s.fill();
    let home = s.home();
    let wanted = s.portrait();
    let unpacked = home.unpack("unpacked");
    s.script("down");
    s.script("up");
    for (component, container) in [
        ("postgres", &s.pg),
        ("redis", &s.redis),
        ("chromadb", &s.chroma),
        ("ollama", &s.ollama),
        ("backend_logs", &s.backend),
    ] {
        follow_the_guide(&unpacked, component, container, container);
    }
    until("Redis answers", || s.lab.docker(&["exec", &s.redis, "redis-cli", "PING"]).stdout == "PONG\n");
    s.portrait().assert_is(&home, &wanted);
}

#[test]
fn an_archive_of_the_bash_script_brings_all_its_parts_back() {
    let s = Stack::up();
    s.fill();
    s.lab.sql(
        &s.pg,
        "tars_home",
        "CREATE TABLE plain AS SELECT i, md5(i::text) AS m FROM generate_series(1, 5000) i",
    );
    let home = Home::new()
        .source("chromadb", &source("chromadb", &s.chroma, ""))
        .source("postgres", &source("postgres", &s.pg, ""))
        .source("redis", &source("redis", &s.redis, ""))
        .ready();
    let archive = legacy::make(&home.path("store/daily"), "20260131_020000", "tar");
    let dump = "pg_dump -U tars --clean --if-exists --no-owner --no-privileges tars_home | gzip";
    legacy::put_in(&archive, "postgres.sql.gz", &format!("docker exec {} sh -c '{dump}'", s.pg));
    s.lab.redis_cli(&s.redis, &["SAVE"]);
    legacy::put_in(&archive, "redis-dump.rdb", &format!("docker exec {} cat /data/dump.rdb", s.redis));
    // The script copied a running server. Here it stands still, so that the copy is of one moment each time.
    let (chroma, data) = (&s.chroma, s.lab.ok(&["inspect", "-f", "{{(index .Mounts 0).Source}}", &s.chroma]));
    let copy = format!("tar -C '{}' -czf - .", data.trim());
    let still = format!("docker pause {chroma} >&2; {copy}; docker unpause {chroma} >&2");
    legacy::put_in(&archive, "chromadb.tar.gz", &still);
    let table =
        || s.lab.sql(&s.pg, "tars_home", "SELECT count(*), md5(string_agg(m, '' ORDER BY i)) FROM plain");
    let (rows, keys, vectors) = (table(), redis::keys(&s.lab, &s.redis), s.lab.chroma_holds(&s.chroma));
    for part in ["postgres", "redis", "chromadb"] {
        s.ruin(part);
    }
    let parts = "postgres,redis,chromadb";
    home.tars(&["restore", "tars-backup-20260131_020000", "--yes", "--component", parts]).expect(0);
    for part in ["postgres", "redis", "chromadb"] {
        assert!(!s.is_ruined(part), "{part}");
    }
    assert_eq!(table(), rows);
    assert_eq!(redis::keys(&s.lab, &s.redis), keys);
    assert!(s.lab.chroma_holds(&s.chroma)[1] == vectors[1], "the index finds something else");
    // The server still has them after another start: it reads its append-only file.
    s.lab.ok(&["restart", &s.redis]);
    assert!(!s.is_ruined("redis"));
    assert_eq!(redis::keys(&s.lab, &s.redis), keys);
}
