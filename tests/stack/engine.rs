//! Engines that do not answer, freeze, or die. Those that are harmed are the tests' own.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::lab::{Lab, assert_failed, lab_file, source};
use crate::support::{Home, sh};

#[test]
fn an_engine_that_accepts_and_never_answers_costs_a_bounded_time() {
    let home = Home::new().documents().source("redis", &source("redis", "any", ""));
    let socket = home.at("engine.sock");
    let home = home.extra(&format!("[docker]\nsocket = {socket:?}")).ready();
    let listener = UnixListener::bind(&socket).unwrap();
    let held = std::thread::spawn(move || {
        // Reads what is asked and says nothing, until the program gives up.
        let (mut connection, _) = listener.accept().unwrap();
        let mut asked = Vec::new();
        connection.read_to_end(&mut asked).map(|_| asked).unwrap_or_default()
    });
    let started = Instant::now();
    let done = home.tars(&["backup"]).says("systemctl status docker");
    assert!(started.elapsed() < Duration::from_secs(90), "it took {:?}", started.elapsed());
    assert_failed(&home, done, "redis", &["the Docker engine did not answer within"], "degraded");
    assert!(String::from_utf8_lossy(&held.join().unwrap()).contains("/version"), "it asked for the version");
}

#[test]
fn an_engine_that_is_not_there_is_named_with_its_socket() {
    let home = Home::new().documents().source("postgres", &source("postgres", "any", ""));
    let socket = home.at("engine.sock");
    let home = home.extra(&format!("[docker]\nsocket = {socket:?}")).ready();
    let done = home.tars(&["backup"]).says("is it running? systemctl status docker");
    assert_failed(&home, done, "postgres", &["the Docker engine at", &socket, "does not answer"], "partial");
}

/// An engine of our own, by the script of the laboratory; stopped when dropped. Its data stay, so that the image is
/// loaded once.
pub struct SecondEngine {
    dir: PathBuf,
    pub host: String,
}

impl SecondEngine {
    /// Each test has one of its own, by its name.
    pub fn up(name: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let mut engine = Self { dir, host: String::new() };
        engine.script("up");
        let line = engine.script("env");
        engine.host = sh(&format!("{line} printf %s \"$DOCKER_HOST\""));
        engine
    }

    fn script(&self, verb: &str) -> String {
        self.script_with(verb, None)
    }

    fn script_with(&self, verb: &str, flag: Option<&str>) -> String {
        let script = lab_file("engine.sh");
        let mut command = Command::new("bash");
        command.arg(script).arg(verb).env("LAB_DIR", &self.dir);
        // An engine that answers there would be taken instead.
        command.envs(flag.map(|f| (f, "1")));
        let output = command.env("DOCKER_HOST", "unix:///nonexistent").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Copies an image of the first engine, unless it is there already.
    pub fn load(&self, first: &Lab, image: &str) {
        let lab = Lab { prefix: String::new(), host: Some(self.host.clone()) };
        let id = |lab: &Lab| lab.docker(&["image", "inspect", "-f", "{{.Id}}", image]).stdout;
        if id(first) != id(&lab) {
            sh(&format!("docker save {image} | DOCKER_HOST='{}' docker load", self.host));
        }
    }

    /// Ends it, in good order or not, and starts it again with its containers.
    pub fn restart(&self, violent: bool) {
        if violent {
            self.signal("KILL");
        }
        self.script("down");
        self.script_with("up", Some("LAB_KEEP"));
    }

    pub fn signal(&self, name: &str) {
        sh(&format!("kill -{name} $(cat '{}/engine/dockerd.pid')", self.dir.display()));
    }
}

impl Drop for SecondEngine {
    fn drop(&mut self) {
        // A frozen one would not hear that it shall end.
        let _ = std::panic::catch_unwind(|| {
            sh(&format!("kill -CONT $(cat '{}/engine/dockerd.pid') || true", self.dir.display()));
            self.script("down");
        });
    }
}

#[test]
fn an_engine_that_freezes_or_dies_during_a_dump_is_a_failed_component() {
    let first = Lab::new();
    let engine = SecondEngine::up("second-engine");
    let lab = Lab::on(Some(engine.host.clone()));
    engine.load(&first, "postgres:15-alpine");
    let pg = lab.postgres("postgres");
    let _held = lab.hold_dumps(&pg);
    let broken = |idle: &str, signal: &str, reasons: &[&str]| {
        let more = format!("idle_timeout = {idle:?}");
        let home = Home::new()
            .documents()
            .source("postgres", &source("postgres", &pg, &more))
            .extra(&format!("[docker]\nsocket = {:?}", engine.host))
            .ready();
        let run = home.spawn(&["backup"]);
        lab.until_dump_waits(&pg);
        home.wait_for_staging();
        let started = Instant::now();
        engine.signal(signal);
        assert_failed(&home, run.end(), "postgres", reasons, "partial");
        assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    };
    broken("10s", "STOP", &["pg_dump in", "sent nothing for 10 s"]);
    engine.signal("CONT");
    lab.sh(&pg, "pkill -KILL -x pg_dump || true");
    broken("5m", "KILL", &["pg_dump", "Docker engine"]);
}
