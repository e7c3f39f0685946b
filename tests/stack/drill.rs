//! Drills with an engine: every service is brought back into a throwaway container of its own image, counted there, and
//! all of it is removed. What could go wrong: a drill that reaches what is live, that leaves something behind, or that says
//! good of what it has not seen.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::forge::forge;
use crate::lab::{CHROMA, Lab, OLD_CHROMA, lab_file, source, until};
use crate::postgres;
use crate::servers::{BUCKET, KEY, KEY_ID, S3Server, S3sFs};
use crate::support::{Home, PROGRAM, Running, run, sh};

struct Stack {
    lab: Lab,
    home: Home,
    pg: String,
    redis: String,
    chroma: String,
    recipient: String,
}

impl Stack {
    /// Servers with little in them, and a plain backup.
    fn new() -> Self {
        let stack = Self::up("never", "", |lab, pg, redis, chroma| {
            lab.sql(pg, "tars_home", "CREATE TABLE notes (n int primary key, t text); INSERT INTO notes SELECT g, 'note' FROM generate_series(1, 100) g; CREATE TABLE none (n int)");
            lab.redis_cli(redis, &["MSET", "a", "1", "b", "2"]);
            lab.redis_cli(redis, &["SET", "c", "3", "EX", "100000"]);
            lab.chroma_py(chroma, &["seed"]);
        });
        stack.home.backup(0);
        stack
    }

    fn up(seal: &str, more: &str, fill: impl FnOnce(&Lab, &str, &str, &str)) -> Self {
        let lab = Lab::new();
        let pg = lab.start_postgres("postgres");
        let data = format!("{}:/data", lab.volume("redis_data"));
        let redis = lab.redis("redis", &["-v", &data], &["--appendonly", "yes"]);
        let vectors = format!("{}:/chroma/chroma", lab.volume("chroma_data"));
        let chroma = lab.chroma(CHROMA, "chromadb", Some(&vectors), Some("/chroma/chroma"));
        lab.await_postgres(&pg);
        fill(&lab, &pg, &redis, &chroma);
        let home = Home::new().documents();
        let (env, db, key) = (home.at("tars-home.env"), home.at("app.db"), home.at("key.txt"));
        std::fs::write(&env, "PASSWORD=correct-horse-battery\n").unwrap();
        sh(&format!("sqlite3 '{db}' 'CREATE TABLE t (n); INSERT INTO t VALUES (1), (2)'"));
        let said = run(PROGRAM, &["key", "new", "--output", &key]).expect(0).stderr;
        let recipient = said.split_whitespace().find(|w| w.starts_with("age1")).unwrap().to_owned();
        let home = home
            .source("chromadb", &source("chromadb", &chroma, ""))
            .source("postgres", &source("postgres", &pg, ""))
            .source("redis", &source("redis", &redis, ""))
            .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]"))
            .source("app", &format!("type = \"sqlite\"\npath = \"{db}\""))
            .extra(&format!("[encryption]\nrecipients = [\"{recipient}\"]\nseal = \"{seal}\"\n{more}"))
            .env("DRILL_KEY_ID", KEY_ID)
            .env("DRILL_KEY", KEY)
            .ready();
        Self { lab, home, pg, redis, chroma, recipient }
    }

    /// Every container that was there, and since when it runs.
    fn lives(&self) -> String {
        let all = [&self.pg, &self.redis, &self.chroma];
        all.map(|c| {
            self.lab.ok(&["inspect", "-f", "{{.Name}} {{.Id}} {{.State.StartedAt}} {{.State.Status}}", c])
        })
        .concat()
    }

    /// What any drill of this engine has that is not that of another test.
    fn of_drills(&self, pid: i32) -> Vec<String> {
        let mine = |text: String| -> Vec<String> {
            let prefix = format!("tars-backup-drill-{pid}-");
            text.lines().filter(|l| l.contains(&prefix)).map(str::to_owned).collect()
        };
        let label = "label=tars-backup.drill";
        let containers = self.lab.ok(&["ps", "-a", "--filter", label, "--format", "{{.Names}}"]);
        let volumes = self.lab.ok(&["volume", "ls", "--filter", label, "--format", "{{.Name}}"]);
        let networks = self.lab.ok(&["network", "ls", "--filter", label, "--format", "{{.Name}}"]);
        [containers, volumes, networks].into_iter().flat_map(mine).collect()
    }

    /// A drill with the key, which must end with `code`. It leaves nothing, and nothing live notices it.
    #[track_caller]
    fn drill(&self, code: i32, more: &[&str]) -> Value {
        let before = self.lives();
        let key = self.home.at("key.txt");
        let running = self.home.spawn(&[&["drill", "--json", "--identity", key.as_str()], more].concat());
        let pid = running.pid();
        let done = running.end().expect(code);
        assert_eq!(self.lives(), before);
        assert_eq!(self.of_drills(pid), Vec::<String>::new());
        assert!(!self.home.path("state/run.journal").exists());
        let staging =
            sh(&format!("find '{}' -mindepth 1 2>/dev/null || true", self.home.at("state/staging")));
        assert_eq!(staging, "");
        done.json()
    }

    /// Only this component is not proved, for a reason that holds all of these words.
    #[track_caller]
    fn only(&self, report: &Value, component: &str, proof: &str, words: &[&str]) {
        for l in report["components"].as_array().unwrap() {
            let wanted = if l["component"] == component { proof } else { "proved" };
            assert_eq!(l["proof"], wanted, "{component}: {l}");
        }
        let reason = line(report, component)["reason"].as_str().unwrap_or_default();
        for word in words {
            assert!(reason.contains(word), "{component}: {word:?} is not in {reason:?}");
        }
    }
}

fn line<'a>(report: &'a Value, component: &str) -> &'a Value {
    let lines = report["components"].as_array().unwrap();
    lines.iter().find(|l| l["component"] == component).unwrap_or_else(|| panic!("{component}: {report}"))
}

/// What was found of something, which is what the manifest says.
#[track_caller]
fn found(report: &Value, component: &str, what: &str) -> u64 {
    let all = line(report, component)["compared"].as_array().unwrap();
    let one = all.iter().find(|c| c["what"] == what).unwrap_or_else(|| panic!("{what}: {all:?}"));
    assert_eq!((&one["equal"], &one["manifest"]), (&json!(true), &one["found"]), "{one}");
    one["found"].as_u64().unwrap()
}

#[test]
fn odd_data_of_every_service_comes_back_out_of_a_sealed_bucket() {
    let s3 = S3sFs::start();
    let bucket = format!(
        "[stores.bucket]\ntype = \"s3\"\nbucket = {BUCKET:?}\nendpoint = {:?}\nkey_id = {{ env = \"DRILL_KEY_ID\" }}\n\
         key = {{ env = \"DRILL_KEY\" }}\n[tiers.cold]\nstores = [\"bucket\"]\npath = \"monthly\"\n",
        s3.endpoint()
    );
    let stack = Stack::up("offsite", &bucket, |lab, pg, redis, chroma| {
        postgres::load_odd_data(lab, pg);
        sh(&format!("'{}' '{redis}'", lab_file("odd-redis.sh")));
        lab.chroma_py(chroma, &["seed"]);
    });
    stack.home.tars(&["store", "init", "bucket"]).expect(0);
    stack.home.tars(&["backup", "--tier", "cold"]).expect(0);
    // What is counted live.
    let keys: u64 = stack.lab.redis_cli(&stack.redis, &["DBSIZE"]).trim().parse().unwrap();
    let databases =
        stack.lab.sql(&stack.pg, "tars_home", "SELECT count(*) FROM pg_database WHERE NOT datistemplate");
    assert!(databases.trim().parse::<u32>().unwrap() > 1 && keys > 0);

    let report = stack.drill(0, &["--latest", "--from", "bucket"]);
    assert_eq!((&report["verdict"], &report["store"]), (&json!("good"), &json!("bucket")), "{report}");
    assert!(report["rto_ms"].as_u64().unwrap() >= report["fetch_ms"].as_u64().unwrap());
    for (component, image) in
        [("postgres", "postgres:15-alpine"), ("redis", "redis:7-alpine"), ("chromadb", "chromadb/chroma")]
    {
        let place = line(&report, component)["place"].as_str().unwrap().to_owned();
        assert!(place.contains("throwaway container") && place.contains(image), "{place}");
        assert!(line(&report, component)["compared"].as_array().unwrap().len() > 1, "{report}");
    }
    let lasting = line(&report, "redis")["compared"].as_array().unwrap().iter();
    let of_first = lasting.filter(|c| c["what"].as_str().unwrap().contains("database 0"));
    assert_eq!(of_first.map(|c| c["found"].as_u64().unwrap()).sum::<u64>(), keys);
    assert_eq!(found(&report, "app", "rows of t"), 2);
    let mark = stack.home.tars(&["status", "--json"]).json();
    let drilled = mark["components"].as_array().unwrap().iter().find(|c| c["component"] == "postgres");
    assert!(drilled.unwrap()["drilled"]["rto_ms"].as_u64().is_some(), "{mark}");

    // The same by a machine that has the URL, the key and the engine, and no configuration.
    let url = format!("s3://{BUCKET}?endpoint={}", s3.endpoint());
    let mut bare = std::process::Command::new(PROGRAM);
    bare.args(["drill", "--json", "--from", &url, "--identity", &stack.home.at("key.txt")]);
    bare.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", KEY).env("LOG", "1");
    let out = bare.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn what_a_drill_makes_is_in_a_network_of_its_own_and_carries_no_other_label() {
    let stack = Stack::new();
    let key = stack.home.at("key.txt");
    let running = stack.home.spawn(&["drill", "--identity", &key]);
    let name = |service: &str| {
        let prefix = format!("tars-backup-drill-{}-", running.pid());
        let all = stack.lab.ok(&["ps", "-a", "--format", "{{.Names}}"]);
        all.lines().find(|l| l.starts_with(&prefix) && l.ends_with(service)).map(str::to_owned)
    };
    until("the last container is made", || name("redis").is_some());
    running.signal("STOP");
    let check = |service: &str| {
        let container = name(service).unwrap();
        let seen: Value = serde_json::from_str(&stack.lab.ok(&["inspect", &container])).unwrap();
        let seen = &seen[0];
        let drill = seen["Config"]["Labels"]["tars-backup.drill"].as_str().unwrap().to_owned();
        let labels = seen["Config"]["Labels"].as_object().unwrap();
        assert!(labels.keys().all(|k| !k.contains("compose")), "{labels:?}");
        assert_eq!(seen["HostConfig"]["PortBindings"].as_object().map_or(0, serde_json::Map::len), 0);
        let mounts = seen["Mounts"].as_array().unwrap();
        assert!(!mounts.is_empty());
        for mount in mounts {
            let volume = mount["Name"].as_str().unwrap();
            let label = stack.lab.ok(&["volume", "inspect", "-f", "{{json .Labels}}", volume]);
            assert_eq!(label.trim(), format!("{{\"tars-backup.drill\":\"{drill}\"}}"), "{mount}");
        }
        let networks = seen["NetworkSettings"]["Networks"].as_object().unwrap();
        assert_eq!(networks.len(), 1);
        let network = networks.keys().next().unwrap();
        match service {
            "chromadb" => {
                let internal = stack.lab.ok(&["network", "inspect", "-f", "{{.Internal}}", network]);
                assert_eq!(internal.trim(), "true");
            }
            // Asked by commands in it alone.
            _ => assert_eq!(network, "none", "{service}"),
        }
    };
    ["postgres", "redis", "chromadb"].iter().for_each(|s| check(s));
    running.signal("CONT");
    running.end().expect(0).says(": good");
}

#[test]
fn facts_that_lie_fail_the_service_that_they_are_about() {
    let stack = Stack::new();
    let saved = stack.home.at("saved");
    let store = stack.home.at("store/daily");
    sh(&format!("cp -a '{store}' '{saved}'"));
    type Lie = (&'static str, fn(&mut Value), &'static [&'static str]);
    let lies: [Lie; 4] = [
        (
            "postgres",
            |f| f["databases"]["tars_home"]["rows"]["public.notes"] = json!(101),
            &["rows", "manifest"],
        ),
        ("redis", |f| f["databases"]["0"]["keys"] = json!(4), &["keys", "manifest"]),
        ("chromadb", |f| f["collections"][0]["records"] = json!(1_000_000), &["collections", "manifest"]),
        ("documents", |f| f["bytes"] = json!(7), &["bytes"]),
    ];
    for (component, lie, why) in lies {
        sh(&format!("rm -rf '{store}'; cp -a '{saved}' '{store}'"));
        forge(&stack.home, Some(&stack.recipient), |_, manifest| {
            lie(&mut manifest["details"][component]["facts"])
        });
        let report = stack.drill(1, &[]);
        assert_eq!(report["verdict"], "bad", "{report}");
        stack.only(&report, component, "failed", why);
    }
}

#[test]
fn keys_that_were_never_counted_are_loaded_and_not_called_proved() {
    let stack = Stack::new();
    forge(&stack.home, Some(&stack.recipient), |_, manifest| {
        let facts = manifest["details"]["redis"]["facts"].as_object_mut().unwrap();
        facts.remove("databases");
    });
    let report = stack.drill(2, &[]);
    assert_eq!(report["verdict"], "partly", "{report}");
    stack.only(&report, "redis", "not_drilled", &["throwaway container", "no numbers of it to compare"]);
}

#[test]
fn rows_that_the_manifest_does_not_count_fail() {
    let stack = Stack::new();
    forge(&stack.home, Some(&stack.recipient), |_, manifest| {
        let databases = &mut manifest["details"]["postgres"]["facts"]["databases"];
        databases["tars_home"].as_object_mut().unwrap().remove("rows");
    });
    let report = stack.drill(1, &[]);
    stack.only(&report, "postgres", "failed", &["rows"]);
}

#[test]
fn an_export_is_read_although_no_server_needs_it() {
    let lab = Lab::new();
    let chroma = lab.chroma(CHROMA, "chromadb", None, None);
    lab.chroma_py(&chroma, &["seed"]);
    let home = Home::new().source("chromadb", &source("chromadb", &chroma, "export = [\"hot\"]")).ready();
    home.backup(0);
    let drill = |code: i32| home.tars(&["drill", "--json"]).expect(code).json();
    assert_eq!(drill(0)["verdict"], "good");
    // The last record is gone.
    forge(&home, None, |dir, _| {
        sh(&format!(
            "f=$(find '{}/chromadb-export' -name '*.jsonl.gz' -size +200c | head -1); gunzip \"$f\"; f=${{f%.gz}}
             sed -i '$d' \"$f\"; gzip \"$f\"",
            dir.display()
        ));
    });
    let report = drill(1);
    let reason = line(&report, "chromadb")["reason"].as_str().unwrap();
    assert!(reason.contains("chromadb-export/") && reason.contains("lines"), "{report}");
}

#[test]
fn a_server_with_names_or_tablespaces_of_its_own_is_not_called_bad() {
    let lab = Lab::new();
    let data = format!("{}:/data", lab.volume("redis_data"));
    let own = ["--appendonly", "yes", "--dir", "/data/own", "--dbfilename", "own.rdb"];
    let own = [&own[..], &["--appenddirname", "own-aof", "--appendfilename", "own.aof"]].concat();
    lab.ok(&[
        "run",
        "--rm",
        "--label",
        "tars-lab=test",
        "--network",
        "none",
        "-v",
        &data,
        "redis:7-alpine",
        "sh",
        "-c",
        "mkdir /data/own; chown redis /data/own",
    ]);
    let redis = lab.redis("redis", &["-v", &data], &own);
    lab.redis_cli(&redis, &["MSET", "a", "1", "b", "2"]);
    let pg = lab.postgres("postgres");
    lab.ok(&["exec", "-u", "postgres", &pg, "mkdir", "-p", "/var/lib/postgresql/fast"]);
    lab.sql(&pg, "tars_home", "CREATE TABLESPACE fast LOCATION '/var/lib/postgresql/fast'");
    lab.sql(&pg, "tars_home", "CREATE TABLE t TABLESPACE fast AS SELECT 1 AS n");
    let home = Home::new()
        .source("redis", &source("redis", &redis, "save_timeout = \"90s\"\ntimeout = \"2h\""))
        .source("postgres", &source("postgres", &pg, "idle_timeout = \"77s\""))
        .ready();
    home.backup(0);
    let report = home.tars(&["drill", "--json"]).expect(2).json();
    assert_eq!(found(&report, "redis", "lasting keys of database 0"), 2);
    assert_eq!(line(&report, "redis")["proof"], "proved", "{report}");
    let postgres = line(&report, "postgres");
    assert_eq!(postgres["proof"], "not_drilled", "{report}");
    assert!(postgres["reason"].as_str().unwrap().contains("no tablespace fast"), "{report}");
}

/// The socket of the engine under another name, until it is taken away with all that goes through it.
struct Socket {
    path: PathBuf,
    open: Arc<Mutex<Option<Vec<UnixStream>>>>,
}

impl Socket {
    fn to_engine(path: PathBuf) -> Self {
        let engine = std::env::var("DOCKER_HOST").unwrap().trim_start_matches("unix://").to_owned();
        let listener = UnixListener::bind(&path).unwrap();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let known = open.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&engine).unwrap());
                let Some(open) = &mut *known.lock().unwrap() else { return };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    open.push(from.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self { path, open }
    }

    fn take_away(&self) {
        std::fs::remove_file(&self.path).unwrap();
        for stream in self.open.lock().unwrap().take().unwrap() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn an_engine_that_goes_away_says_nothing_of_the_backup() {
    let stack = Stack::new();
    stack.drill(0, &[]);
    let mark = std::fs::read(stack.home.object(".drilled")).unwrap();
    let key = stack.home.at("key.txt");
    let journal = stack.home.path("state/run.journal");
    // Lines of the journal: its containers are about to be made; services are being loaded.
    for (at, wanted) in [3, 6, 9].into_iter().enumerate() {
        let socket = Socket::to_engine(stack.home.path(&format!("engine-{at}.sock")));
        let mut drill = stack.home.command(&["drill", "--json", "--identity", &key]);
        drill.env("DOCKER_HOST", format!("unix://{}", socket.path.display()));
        drill.stdout(Stdio::piped()).stderr(Stdio::piped());
        let drill = Running { child: drill.spawn().unwrap() };
        until("the drill is at work", || {
            let text = std::fs::read(&journal).unwrap_or_default();
            text.iter().filter(|b| **b == b'\n').count() >= wanted
        });
        socket.take_away();
        let pid = drill.pid();
        let report = drill.end().expect(1).json();
        let lines = report["components"].as_array().unwrap();
        assert!(lines.iter().all(|l| l["proof"] != "failed"), "{wanted}: {report}");
        assert!(lines.iter().any(|l| l["proof"] == "not_drilled"), "{wanted}: {report}");
        assert!(
            report["left"].as_array().unwrap().iter().any(|l| l.to_string().contains("recover")),
            "{report}"
        );
        assert_eq!(std::fs::read(stack.home.object(".drilled")).unwrap(), mark, "what was proved stays");
        // The journal knows where the engine was.
        let _back = Socket::to_engine(socket.path.clone());
        stack.home.tars(&["recover"]).expect(0);
        assert_eq!(stack.of_drills(pid), Vec::<String>::new());
    }
    stack.drill(0, &[]);
}

#[test]
fn what_is_damaged_inside_fails_where_a_server_meets_it() {
    let stack = Stack::new();
    let (saved, store) = (stack.home.at("saved"), stack.home.at("store/daily"));
    sh(&format!("cp -a '{store}' '{saved}'"));
    let damages: [(&str, &str, &[&str]); 6] = [
        // No end: half a dump.
        (
            "postgres",
            "gunzip postgres.sql.gz; head -c -200 postgres.sql > x; mv x postgres.sql; gzip postgres.sql",
            &["postgres.sql.gz"],
        ),
        // Only a server finds this.
        (
            "postgres",
            "gunzip postgres.sql.gz; sed -i '/^-- PostgreSQL database dump complete/i CREATE TABLE odd (v no_such_type);' postgres.sql; gzip postgres.sql",
            &["no_such_type"],
        ),
        ("redis", "printf X | dd of=redis-dump.rdb bs=1 seek=30 conv=notrunc", &["redis"]),
        ("redis", "truncate -s -9 redis-dump.rdb", &["redis"]),
        // A page of its database is noise.
        (
            "chromadb",
            "mkdir x; tar -xzf chromadb.tar.gz -C x; f=$(find x -name chroma.sqlite3); printf 'garbage-garbage!' | dd of=$f bs=1 seek=4096 conv=notrunc; tar -czf chromadb.tar.gz -C x .; rm -r x",
            &["malformed"],
        ),
        (
            "app",
            "gunzip app.sqlite3.gz; printf 'garbage-garbage' | dd of=app.sqlite3 bs=1 seek=4096 conv=notrunc; gzip app.sqlite3",
            &["database"],
        ),
    ];
    for (component, damage, why) in damages {
        sh(&format!("rm -rf '{store}'; cp -a '{saved}' '{store}'"));
        forge(&stack.home, Some(&stack.recipient), |dir, _| {
            sh(&format!("cd '{}'; ( {damage} ) 2>/dev/null", dir.display()));
        });
        let report = stack.drill(1, &[]);
        stack.only(&report, component, "failed", why);
    }
}

#[test]
fn without_image_or_engine_a_service_is_not_drilled_and_nothing_is_called_good() {
    let stack = Stack::new();
    let (saved, store) = (stack.home.at("saved"), stack.home.at("store/daily"));
    sh(&format!("cp -a '{store}' '{saved}'"));
    let none = format!("sha256:{}", "0".repeat(64));
    forge(&stack.home, None, |_, manifest| {
        let facts = &mut manifest["details"]["redis"]["facts"];
        facts["image_id"] = json!(none);
        facts.as_object_mut().unwrap().remove("image_digest");
    });
    // The name is there and means another image by now: that one is not taken.
    let report = stack.drill(2, &[]);
    assert_eq!(report["verdict"], "partly", "{report}");
    stack.only(&report, "redis", "not_drilled", &["redis:7-alpine", "is not on this engine"]);
    stack.home.tars(&["drill", "--identity", &stack.home.at("key.txt")]).expect(2).says("NOT ALL OF IT");

    sh(&format!("rm -rf '{store}'; cp -a '{saved}' '{store}'"));
    let extra = "[docker]\nsocket = \"/nonexistent/docker.sock\"";
    let home = stack.home.extra(extra);
    home.write_config();
    let report = home.tars(&["drill", "--json", "--identity", &home.at("key.txt")]).expect(2).json();
    for service in ["postgres", "redis", "chromadb"] {
        assert_eq!(line(&report, service)["proof"], "not_drilled", "{report}");
        assert!(line(&report, service)["reason"].as_str().unwrap().contains("does not answer"), "{report}");
    }
    assert_eq!(found(&report, "app", "rows of t"), 2);
    let mark: Value = serde_json::from_slice(&std::fs::read(home.object(".drilled")).unwrap()).unwrap();
    assert_eq!((&mark["verdict"], mark["not_drilled"].as_array().unwrap().len()), (&json!("partly"), 3));
}

#[test]
fn the_old_server_of_vectors_is_drilled_by_its_own_image() {
    let lab = Lab::new();
    let chroma = lab.chroma(OLD_CHROMA, "old", None, None);
    lab.chroma_py(&chroma, &["seed"]);
    let home = Home::new().source("vectors", &source("chromadb", &chroma, "")).ready();
    home.backup(0);
    let report = home.tars(&["drill", "--json"]).expect(0).json();
    assert!(line(&report, "vectors")["place"].as_str().unwrap().contains(OLD_CHROMA), "{report}");
    assert!(found(&report, "vectors", "collections") > 1);
}

#[test]
fn an_interrupt_and_a_kill_leave_nothing() {
    let stack = Stack::new();
    let before = stack.lives();
    let key = stack.home.at("key.txt");
    for (signal, guardian, code) in [("INT", true, Some(130)), ("KILL", true, None), ("KILL", false, None)] {
        // Lines of the journal: its containers are about to be made; services are being loaded.
        for wanted in [2, 7] {
            let mut command = stack.home.command(&["drill", "--identity", &key, "--wait", "60s"]);
            if !guardian {
                command.env("TARS_BACKUP_GUARDIAN", "no");
            }
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            let journal = stack.home.path("state/run.journal");
            until("the drill is at work", || {
                let text = std::fs::read(&journal).unwrap_or_default();
                text.iter().filter(|b| **b == b'\n').count() >= wanted
            });
            std::thread::sleep(Duration::from_millis(50));
            sh(&format!("kill -{signal} {pid}"));
            let status = child.wait().unwrap();
            assert_eq!(status.code(), code, "{signal} at {wanted}");
            if signal == "KILL" && !guardian {
                assert!(journal.exists());
                stack.home.tars(&["recover"]).expect(0);
            }
            until("all of it is removed", || !journal.exists());
            assert_eq!(stack.of_drills(pid), Vec::<String>::new(), "{signal} at {wanted}");
            assert_eq!(stack.lives(), before);
            let staging =
                format!("find '{}' -mindepth 1 2>/dev/null || true", stack.home.at("state/staging"));
            until("staging is empty", || sh(&staging).is_empty());
        }
    }
    assert_eq!(stack.lab.redis_cli(&stack.redis, &["DBSIZE"]).trim(), "3");
    stack.drill(0, &[]);
}

#[test]
fn a_container_that_is_taken_away_in_the_middle_fails_and_nothing_live_takes_its_place() {
    let stack = Stack::new();
    let before = stack.lives();
    let key = stack.home.at("key.txt");
    let running = stack.home.spawn(&["drill", "--json", "--identity", &key]);
    let gone = || {
        let prefix = format!("tars-backup-drill-{}-", running.pid());
        let all = stack.lab.ok(&["ps", "-a", "--format", "{{.Names}}"]);
        let name = all.lines().find(|l| l.starts_with(&prefix) && l.ends_with("-redis")).map(str::to_owned);
        name.is_some_and(|name| stack.lab.docker(&["rm", "-f", "-v", &name]).code == 0)
    };
    until("its container is removed", gone);
    let report = running.end().expect(1).json();
    assert_eq!(line(&report, "redis")["proof"], "failed", "{report}");
    assert_eq!(stack.lives(), before);
    assert_eq!(stack.lab.redis_cli(&stack.redis, &["DBSIZE"]).trim(), "3");
}
