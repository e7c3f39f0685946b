//! Containers of one test, removed when it ends. What could go wrong: the engine may be one that somebody works with, so
//! every name begins with a prefix of this very test, and only what carries the label of the laboratory is removed.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Done, Home, PROGRAM, run, sh};

/// Everything that shells, URLs, TOML and JSON get wrong, around a part that can be searched for in any encoding.
pub const ODD_PASSWORD: &str = "p@ss w'ord\"$HOME\\x:/%41ü#;";

/// The images of ChromaDB 1.5.9 and of 0.6.3. Where no path is given, the first writes to `/data`, the other to
/// `/chroma/chroma`.
pub const CHROMA: &str = "chromadb/chroma:latest";
pub const OLD_CHROMA: &str = "tars-lab/chroma:0";

/// A question to a ChromaDB server, in a shell: on a busy machine it now and then loses one without a word.
pub const ASK: &str = "curl -sf --max-time 60 --retry 3";

/// Waits until `condition` holds. It is long only for what fails.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(240);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Path of a file of the laboratory.
pub fn lab_file(name: &str) -> String {
    format!("{}/tests/lab/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Status and body of the answer to a plain GET; `http://ADDRESS:PORT` is `server`. Silence is asked again, twice.
#[track_caller]
pub fn http_get(server: &str, path: &str) -> (u16, String) {
    let address = server.trim_start_matches("http://");
    let ask = || {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).map(|_| answer)
    };
    let silent = |e: &std::io::Error| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    let again = |asked: std::io::Result<String>| match asked {
        Err(e) if silent(&e) => ask(),
        asked => asked,
    };
    let answer = again(again(ask())).unwrap_or_else(|e| panic!("{server}{path}: {e}"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{server}{path}: {answer:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    (status.unwrap_or_else(|| panic!("{server}{path}: {head:?}")), body.to_owned())
}

pub struct Lab {
    pub prefix: String,
    /// Another engine than the one of the environment.
    pub host: Option<String>,
}

impl Lab {
    #[track_caller]
    pub fn new() -> Self {
        static READY: OnceLock<Result<(), String>> = OnceLock::new();
        let ready = READY.get_or_init(|| {
            let lab = Self { prefix: String::new(), host: None };
            for image in ["tars-lab/services:1", "postgres:15-alpine", "redis:7-alpine"] {
                let d =
                    lab.docker(&["image", "inspect", "-f", "{{index .Config.Labels \"tars-lab\"}}", image]);
                if d.code != 0 || d.stdout.trim().is_empty() {
                    return Err(format!("{image}: {}", d.stderr.trim()));
                }
            }
            lab.remove_orphans();
            Ok(())
        });
        if let Err(why) = ready {
            panic!(
                "no Docker engine with the images of tests/lab answers ({why}); run `make test`, which prepares them"
            );
        }
        Self::on(None)
    }

    pub fn on(host: Option<String>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let prefix = format!("tars-test-{}-{}-", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        Self { prefix, host }
    }

    /// What a killed test process left.
    fn remove_orphans(&self) {
        let list = |args: &[&str]| self.ok(args).lines().map(str::to_owned).collect::<Vec<_>>();
        let orphan = |name: &String| {
            let pid = name.strip_prefix("tars-test-").and_then(|rest| rest.split('-').next());
            pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
        };
        for name in list(&["ps", "-a", "--filter", "label=tars-lab", "--format", "{{.Names}}"]) {
            if orphan(&name) {
                self.docker(&["rm", "-f", "-v", &name]);
            }
        }
        for name in list(&["volume", "ls", "--filter", "label=tars-lab", "--format", "{{.Name}}"]) {
            if orphan(&name) {
                self.docker(&["volume", "rm", &name]);
            }
        }
        for name in list(&["network", "ls", "--filter", "label=tars-lab", "--format", "{{.Name}}"]) {
            if orphan(&name) {
                self.docker(&["network", "rm", &name]);
            }
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(args).stdin(Stdio::null());
        command.envs(self.host.iter().map(|h| ("DOCKER_HOST", h)));
        command
    }

    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Done {
        let output = self.command(args).output().unwrap_or_else(|e| {
            panic!("cannot run docker: {e}; run `make test`, which installs what the tests need")
        });
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// A call that must succeed; its output.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let d = self.docker(args);
        assert_eq!(d.code, 0, "docker {args:?}\n{}{}", d.stdout, d.stderr);
        d.stdout
    }

    /// A shell line in a container, as root.
    #[track_caller]
    pub fn sh(&self, container: &str, line: &str) -> String {
        self.ok(&["exec", container, "bash", "-euc", line])
    }

    /// A command in a container with this standard input.
    #[track_caller]
    pub fn feed(&self, container: &str, argv: &[&str], input: &[u8]) -> String {
        let mut args = vec!["exec", "-i", container];
        args.extend(argv);
        let mut command = self.command(&args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let output = std::thread::scope(|scope| {
            // A command that ends early has an error to tell, so a broken pipe is none of ours.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output().unwrap()
        });
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{argv:?} in {container}: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Labels of a container that Compose would give it.
    pub fn labels(&self, project: &str, service: &str) -> Vec<String> {
        [
            "tars-lab=test".to_owned(),
            format!("com.docker.compose.project={}{project}", self.prefix),
            format!("com.docker.compose.service={}{service}", self.prefix),
            "com.docker.compose.oneoff=False".to_owned(),
        ]
        .into_iter()
        .flat_map(|l| ["--label".to_owned(), l])
        .collect()
    }

    /// A volume of this test; its full name.
    #[track_caller]
    pub fn volume(&self, name: &str) -> String {
        let full = format!("{}{name}", self.prefix);
        self.ok(&["volume", "create", "--label", "tars-lab=test", &full]);
        full
    }

    /// Starts (`run -d`) or only makes (`create`) a container without a network; its full name.
    #[track_caller]
    pub fn container(&self, how: &[&str], name: &str, args: &[&str]) -> String {
        self.container_on("none", how, name, args)
    }

    /// The same on a network.
    #[track_caller]
    pub fn container_on(&self, network: &str, how: &[&str], name: &str, args: &[&str]) -> String {
        let full = format!("{}{name}", self.prefix);
        let labels = self.labels("deploy", name);
        let mut all = how.to_vec();
        all.extend(["--name", &full, "--network", network]);
        all.extend(labels.iter().map(String::as_str));
        all.extend(args);
        self.ok(&all);
        full
    }

    /// Whether something in a container listens on a TCP port. Costs little: a command in a container takes a tenth of a
    /// second of a processor from the server that is waited for.
    fn listens(&self, container: &str, port: u16) -> bool {
        let d = self.docker(&["inspect", "-f", "{{.State.Pid}}", container]);
        let pid = d.stdout.trim();
        let wanted = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|table| {
            let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            // Address here, address there, state: 0A is one that listens.
            sockets.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.len() > 3 && words[1].ends_with(&wanted) && words[3] == "0A"
            })
        })
    }

    /// A PostgreSQL server with the database `tars_home`; not yet ready. The disk is not waited for: the test outlives
    /// no power failure.
    #[track_caller]
    pub fn start_postgres(&self, name: &str) -> String {
        let volume = format!("{}:/var/lib/postgresql/data", self.volume(&format!("{name}_data")));
        let password = format!("POSTGRES_PASSWORD={ODD_PASSWORD}");
        let args = [
            "-e",
            "POSTGRES_USER=tars",
            "-e",
            "POSTGRES_DB=tars_home",
            "-e",
            &password,
            "-v",
            &volume,
            "postgres:15-alpine",
            "postgres",
            "-c",
            "fsync=off",
            "-c",
            "full_page_writes=off",
        ];
        self.container(&["run", "-d"], name, &args)
    }

    /// While it initialises, a server listens on no TCP address.
    #[track_caller]
    pub fn await_postgres(&self, container: &str) {
        until("PostgreSQL answers", || {
            let asked = ["exec", container, "pg_isready", "-q", "-h", "127.0.0.1", "-U", "tars"];
            self.listens(container, 5432) && self.docker(&asked).code == 0
        });
    }

    #[track_caller]
    pub fn postgres(&self, name: &str) -> String {
        let container = self.start_postgres(name);
        self.await_postgres(&container);
        container
    }

    /// Answer of a query, one line per row, fields separated by `|`.
    #[track_caller]
    pub fn sql(&self, container: &str, database: &str, query: &str) -> String {
        let argv = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", "tars", "-d", database];
        self.feed(container, &argv, query.as_bytes())
    }

    /// A Redis server; `args` are those of `docker run` up to the image, `server` its own.
    #[track_caller]
    pub fn redis(&self, name: &str, args: &[&str], server: &[&str]) -> String {
        let mut all = args.to_vec();
        if !all.iter().any(|a| a.starts_with("redis:") || a.starts_with("tars-lab/")) {
            all.push("redis:7-alpine");
        }
        all.push("redis-server");
        all.extend(server);
        let container = self.container(&["run", "-d"], name, &all);
        self.await_redis(&container);
        container
    }

    #[track_caller]
    pub fn await_redis(&self, container: &str) {
        until("Redis answers", || {
            if !self.listens(container, 6379) {
                return false;
            }
            let d = self.docker(&["exec", container, "redis-cli", "ping"]);
            d.stdout.trim() == "PONG" || d.stdout.starts_with("NOAUTH")
        });
    }

    /// Reply to one command; it must be none of the usual refusals.
    #[track_caller]
    pub fn redis_cli(&self, container: &str, words: &[&str]) -> String {
        let mut args = vec!["exec", container, "redis-cli"];
        args.extend(words);
        let reply = self.ok(&args);
        assert!(!reply.starts_with("ERR") && !reply.starts_with("NOAUTH"), "{words:?}: {reply}");
        reply
    }

    /// One field of INFO.
    #[track_caller]
    pub fn redis_info(&self, container: &str, field: &str) -> String {
        let all = self.redis_cli(container, &["INFO", "everything"]);
        let line =
            all.lines().find_map(|l| l.trim_end().strip_prefix(&format!("{field}:")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("INFO has no {field}"))
    }

    /// A ChromaDB server, ready: `image` is `CHROMA` or `OLD_CHROMA`; `mount` is that of `docker run -v`, of a volume or
    /// of a directory, or none for data in the container's own layer; `path` is where the server shall write.
    #[track_caller]
    pub fn chroma(&self, image: &str, name: &str, mount: Option<&str>, path: Option<&str>) -> String {
        let mut args = vec!["-p", "127.0.0.1::8000"];
        args.extend(mount.iter().flat_map(|m| ["-v", m]));
        args.push(image);
        args.extend(path.iter().flat_map(|p| ["run", "--host", "0.0.0.0", "--port", "8000", "--path", p]));
        let container = self.container_on("bridge", &["run", "-d"], name, &args);
        self.await_chroma(&container);
        container
    }

    #[track_caller]
    pub fn await_chroma(&self, container: &str) {
        let url = "http://localhost:8000/api/v2/heartbeat";
        until("ChromaDB answers", || {
            self.listens(container, 8000) && self.docker(&["exec", container, "curl", "-sf", url]).code == 0
        });
    }

    /// Where a port of a container can be reached from here. Another one after each start of the container.
    #[track_caller]
    pub fn url(&self, container: &str, port: u16) -> String {
        format!("http://{}", self.ok(&["port", container, &format!("{port}/tcp")]).trim())
    }

    /// The command that runs `tests/lab/chroma.py` against a server that `chroma` started.
    pub fn chroma_command(&self, container: &str, words: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.arg(lab_file("chroma.py")).arg(self.url(container, 8000)).args(words).stdin(Stdio::null());
        command
    }

    /// What it prints; it must succeed.
    #[track_caller]
    pub fn chroma_py(&self, container: &str, words: &[&str]) -> String {
        let output = self.chroma_command(container, words).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "chroma.py {words:?} with {container}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Deletes a collection by its URL. Not found: it is gone, and only the answer was lost.
    #[track_caller]
    pub fn delete_collection(&self, url: &str) {
        let ask = ASK.replace("-sf", "-s");
        let status = sh(&format!("{ask} -o /dev/null -w '%{{http_code}}' -X DELETE '{url}'"));
        assert!(status == "200" || status == "404", "{url}: {status}");
    }

    /// Everything in a server of ChromaDB, and what its indexes find.
    #[track_caller]
    pub fn chroma_holds(&self, container: &str) -> [String; 2] {
        [self.chroma_py(container, &["dump"]), self.chroma_py(container, &["nearest"])]
    }

    /// The same for a directory or a volume, by a second server that is opened on it, `name`, and removed again. A server
    /// changes what it opens, so this is for copies.
    #[track_caller]
    pub fn chroma_data_holds(&self, image: &str, name: &str, data: &str) -> [String; 2] {
        let server = self.chroma(image, name, Some(&format!("{data}:/data")), Some("/data"));
        let found = self.chroma_holds(&server);
        self.ok(&["rm", "-f", "-v", &server]);
        found
    }

    /// From now on dumps of `tars_home` stop after the rows of one table and amid the rows of the next, until the returned
    /// session ends: reading a long value needs an index that the session holds.
    #[track_caller]
    pub fn hold_dumps(&self, postgres: &str) -> Session {
        self.sql(
            postgres,
            "tars_home",
            "CREATE TABLE noise AS SELECT i, md5(i::text) || md5((-i)::text) AS v FROM generate_series(1, 200000) i;
             CREATE TABLE stuck (v text); ALTER TABLE stuck ALTER v SET STORAGE EXTERNAL;
             INSERT INTO stuck SELECT md5(i::text) FROM generate_series(1, 20000) i;
             INSERT INTO stuck SELECT repeat('x', 10000);",
        );
        let index = "SELECT indexrelid::regclass FROM pg_index JOIN pg_class c ON indrelid = c.reltoastrelid WHERE c.oid = 'stuck'::regclass";
        let index = self.sql(postgres, "tars_home", index);
        self.session(postgres, &format!("BEGIN; REINDEX INDEX {index};"))
    }

    /// A session that has done `commands` and stays open.
    #[track_caller]
    pub fn session(&self, postgres: &str, commands: &str) -> Session {
        let args = ["exec", "-i", postgres, "psql", "-X", "-A", "-t", "-q", "-U", "tars", "-d", "tars_home"];
        let mut command = self.command(&args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "{commands}\nSELECT 'ready';").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Session { child, stdin: Some(stdin) }
    }

    /// Waits until pg_dump waits for a lock: whatever comes before it is out.
    #[track_caller]
    pub fn until_dump_waits(&self, postgres: &str) {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'";
        until("pg_dump waits for a lock", || self.sql(postgres, "tars_home", query).trim() == "1");
    }

    /// Fails unless pg_dump ends soon in the container, and the server still answers.
    #[track_caller]
    pub fn assert_dump_is_gone(&self, postgres: &str) {
        let seen = || self.docker(&["exec", postgres, "pgrep", "-x", "pg_dump"]).code;
        let deadline = Instant::now() + Duration::from_secs(60);
        while seen() == 0 {
            assert!(Instant::now() < deadline, "pg_dump still runs in the container");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.sql(postgres, "tars_home", "SELECT 1"), "1\n");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.prefix.is_empty() {
            return;
        }
        let filter = format!("name={}", self.prefix);
        let list = |args: &[&str]| {
            let d = self.docker(args);
            d.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        for id in list(&["ps", "-aq", "--filter", &filter, "--filter", "label=tars-lab"]) {
            self.docker(&["rm", "-f", "-v", &id]);
        }
        for name in list(&["volume", "ls", "-q", "--filter", &filter, "--filter", "label=tars-lab"]) {
            self.docker(&["volume", "rm", &name]);
        }
        for name in list(&["network", "ls", "-q", "--filter", &filter, "--filter", "label=tars-lab"]) {
            self.docker(&["network", "rm", &name]);
        }
    }
}

/// An open database session; ends when it is dropped.
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input ends psql, also in the container.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// `type` and `container` of a source.
pub fn source(kind: &str, container: &str, more: &str) -> String {
    format!("type = {kind:?}\ncontainer = {container:?}\n{more}")
}

/// The run ended with status 2; `component` alone failed, for a reason that holds all of `reasons`, and says so in the
/// log, in the summary and in the manifest. The backup is `state`.
#[track_caller]
pub fn assert_failed(home: &Home, done: Done, component: &str, reasons: &[&str], state: &str) -> Value {
    let done = done.expect(2);
    let manifest = home.manifest();
    let error = manifest["details"][component]["error"].as_str().unwrap_or_default();
    for reason in reasons {
        assert!(error.contains(reason), "{reason:?} is not in {error:?}");
    }
    assert_eq!(manifest["failed_components"], serde_json::json!([component]));
    assert_eq!(manifest["details"][component]["state"], "failed");
    assert_eq!(manifest["details"][component]["members"], serde_json::json!([]));
    assert_eq!(manifest["state"], state);
    let log = format!("{component} failed: {error}");
    assert!(done.stderr.contains(&log), "{log:?} is not in the log:\n{}", done.stderr);
    let summary = format!("\n  {component}: {error}\n");
    assert!(done.stderr.contains(&summary), "{summary:?} is not in the summary:\n{}", done.stderr);
    assert!(done.stderr.contains(&format!("{}: {state}, ", home.only())), "{}", done.stderr);
    home.assert_nothing_left();
    manifest
}

/// An archive that lies anywhere, read to its last byte.
#[track_caller]
pub fn verify_deep(home: &Home) {
    let archive = home.object(".tar.gz").display().to_string();
    run(PROGRAM, &["verify", "--deep", &archive]).expect(0).says("good");
    home.tars(&["verify", "--latest", "--deep"]).expect(0).says("every component read");
}
