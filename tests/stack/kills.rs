//! SIGKILL at every step of a run that holds containers. What could go wrong: a moment between a note in the journal and
//! its act, of which nobody thought; so the steps are found by the tests, and listed nowhere.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::holds::{inspect, journal_lines, memory_volume, sleeper, status, volume, volume_source};
use crate::lab::{Lab, until};
use crate::support::{Home, sh};

/// Three containers: one that is paused, one that is stopped, and one whose volume only the engine can read.
struct Stack {
    lab: Lab,
    home: Home,
    containers: Vec<String>,
    before: Vec<String>,
}

impl Stack {
    fn new(agent: &str) -> Self {
        let lab = Lab::new();
        let (a, b) = (volume(&lab, "a", 4), volume(&lab, "b", 4));
        let memory = memory_volume(&lab);
        let containers = [("a", &a), ("b", &b), ("c", &memory)]
            .map(|(name, data)| sleeper(&lab, name, data, &[]))
            .to_vec();
        lab.sh(&containers[2], "head -c 4M /dev/urandom >/data/noise");
        let home = Home::new()
            .source("a", &volume_source(&a, "pause", ""))
            .source("b", &volume_source(&b, "stop", ""))
            .source("c", &volume_source(&memory, "pause", ""));
        let root = home.root().display().to_string();
        let agent = format!("[agent]\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n{agent}");
        let home = home.extra(&agent).ready();
        let before = containers.iter().map(|c| inspect(&lab, c, "Id")).collect();
        Self { lab, home, containers, before }
    }

    /// A run in a group of its own.
    fn spawn(&self) -> Child {
        // The guardian of the run before may still have the lock, its work done.
        let mut command = self.home.command(&["backup", "--wait", "30s"]);
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn run_ended(child: &mut Child) -> bool {
        child.try_wait().unwrap().is_some()
    }

    /// Waits until the journal has so many lines; false when the run ended without them.
    fn await_lines(&self, child: &mut Child, lines: usize) -> bool {
        let deadline = Instant::now() + Duration::from_secs(240);
        while journal_lines(&self.home) < lines {
            if Self::run_ended(child) {
                return false;
            }
            assert!(Instant::now() < deadline, "the run stands still");
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }

    /// A run that stands still (SIGSTOP) with so many lines in its journal, or a few more: it cannot end before we are
    /// done. On a busy machine it may end before it is seen; then another one.
    #[track_caller]
    fn halted(&self, lines: usize) -> Child {
        for _ in 0..30 {
            let mut child = self.spawn();
            if self.await_lines(&mut child, lines) {
                kill_process(Pid::from_child(&child), Signal::STOP).unwrap();
                if journal_lines(&self.home) >= lines {
                    return child;
                }
                kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
            }
            assert!(child.wait().unwrap().success());
        }
        panic!("every run ends before it is seen");
    }

    fn helpers(&self) -> String {
        // Those of this test's runs: others run beside it.
        let volume = format!("volume={}memory", self.lab.prefix);
        self.lab.ok(&["ps", "-aq", "--filter", "label=tars-backup.helper", "--filter", &volume])
    }

    fn is_as_before(&self) -> bool {
        self.containers
            .iter()
            .zip(&self.before)
            .all(|(name, id)| status(&self.lab, name) == "running" && inspect(&self.lab, name, "Id") == *id)
    }

    /// Everything that a run does outside its own files is undone.
    #[track_caller]
    fn until_recovered(&self, what: &str) {
        until(&format!("the containers run ({what})"), || self.is_as_before());
        until(&format!("the journal is gone ({what})"), || !self.home.path("state/run.journal").exists());
        until(&format!("no helper is left ({what})"), || self.helpers().is_empty());
        let staging = self.home.at("state/staging");
        until(&format!("staging is clear ({what})"), || {
            // It may go while it is looked at.
            sh(&format!("find '{staging}' -mindepth 1 2>/dev/null || true")).is_empty()
        });
        // A stop that was still under way would undo it.
        assert!(self.is_as_before(), "{what}");
        self.home.tars(&["list"]).expect(0);
    }

    #[track_caller]
    fn is_good_at_last(&self) {
        std::thread::sleep(Duration::from_secs(2));
        assert!(self.is_as_before());
        assert_eq!(self.helpers(), "");
        self.home.backup(0);
        assert!(self.is_as_before());
        assert!(!self.home.path("state/run.journal").exists());
        // A run that was killed while it delivered leaves an archive without a commit in the store, which nobody sees.
        assert_eq!(sh(&format!("find '{}' -mindepth 1", self.home.at("state/staging"))), "");
        self.home.tars(&["verify", "--all", "--deep"]).expect(0);
    }
}

/// Kills runs when the journal has 1, 2, … lines and so much time has passed, until one ends by itself.
fn killed_at_every_line(delay: Duration) {
    let stack = Stack::new("");
    // On a busy machine the next line, or the end, may be there before we look; every run writes six.
    let (mut line, mut missed) = (1, 0);
    while missed < if line <= 6 { 30 } else { 2 } {
        let mut child = stack.spawn();
        if !stack.await_lines(&mut child, line) {
            assert!(child.wait().unwrap().success());
            missed += 1;
            continue;
        }
        std::thread::sleep(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        stack.until_recovered(&format!("line {line}, {delay:?} later"));
        (line, missed) = (line + 1, 0);
    }
    assert!(line > 6, "only {} lines were seen", line - 1);
    stack.is_good_at_last();
}

#[test]
fn a_run_killed_at_any_line_of_its_journal_is_undone_by_its_guardian() {
    killed_at_every_line(Duration::ZERO);
}

#[test]
fn a_run_killed_shortly_after_any_line_is_undone_by_its_guardian() {
    killed_at_every_line(Duration::from_millis(12));
}

#[test]
fn a_run_killed_a_while_after_any_line_is_undone_by_its_guardian() {
    killed_at_every_line(Duration::from_millis(50));
}

/// `strace` kills each thread in its n-th sync: the line is written, its act has not begun. The guardian is killed in the
/// same way, so a recovery by hand follows, and is killed too.
#[test]
fn runs_guardians_and_recoveries_killed_between_line_and_act_are_undone() {
    let stack = Stack::new("jobs = 1");
    let killing = |n: usize, verb: &str| {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]);
        command.arg(format!("inject=fdatasync:signal=KILL:when={n}"));
        command.arg(crate::support::PROGRAM).arg("--config").arg(stack.home.path("config.toml")).arg(verb);
        let output = command.stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|e| panic!("no strace ({e}): `make test` installs it"));
        output.status.success()
    };
    let mut kills = 0;
    while !killing(kills + 1, "backup") {
        kills += 1;
        // At its own first line, and then undisturbed.
        killing(1, "recover");
        stack.home.tars(&["recover"]).expect(0);
        stack.until_recovered(&format!("in sync {kills}"));
        assert!(kills < 60, "no run ends any more");
    }
    assert!(kills > 6, "only {kills} syncs were seen");
    stack.is_good_at_last();
}

#[test]
fn a_killed_process_group_is_undone_by_the_guardian() {
    let stack = Stack::new("");
    let mut child = stack.halted(4);
    sh(&format!("kill -KILL -- -{}", child.id()));
    child.wait().unwrap();
    stack.until_recovered("the group");
    stack.is_good_at_last();
}

/// The child of the run, once it is there.
fn guardian_of(child: &Child) -> String {
    let mut found = String::new();
    until("there is a guardian", || {
        found = sh(&format!("pgrep -P {} -f ' guardian ' || true", child.id())).trim().to_owned();
        !found.is_empty()
    });
    found
}

#[test]
fn without_the_guardian_recover_or_the_next_run_undoes_it() {
    let stack = Stack::new("");
    for verb in ["recover", "backup"] {
        let mut child = stack.halted(4);
        sh(&format!("kill -KILL {}; kill -KILL {}", guardian_of(&child), child.id()));
        child.wait().unwrap();
        assert!(stack.home.path("state/run.journal").exists());
        stack.home.tars(&[verb]).expect(0);
        stack.until_recovered(verb);
    }
    // A run outlives its guardian.
    let mut child = stack.halted(2);
    sh(&format!("kill -KILL {}; kill -CONT {}", guardian_of(&child), child.id()));
    assert!(child.wait().unwrap().success());
    stack.is_good_at_last();
}

/// The engine goes on with a stop that nobody waits for any more.
#[test]
fn a_run_killed_while_a_container_stops_leaves_it_running() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 1);
    let mount = format!("{data}:/data");
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    let args = ["--stop-timeout", "5", "-v", &mount, "redis:7-alpine", "bash", "-c", deaf];
    let writer = lab.container(&["run", "-d"], "writer", &args);
    let first_life = inspect(&lab, &writer, "State.StartedAt");
    let home = Home::new().source("data", &volume_source(&data, "stop", "")).ready();
    let mut run = home.spawn(&["backup"]);
    until("it is being stopped", || journal_lines(&home) == 2);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(status(&lab, &writer), "running");
    run.child.kill().unwrap();
    run.child.wait().unwrap();
    until("it was stopped and started", || {
        status(&lab, &writer) == "running" && inspect(&lab, &writer, "State.StartedAt") != first_life
    });
    until("the journal is gone", || !home.path("state/run.journal").exists());
    assert_eq!(status(&lab, &writer), "running");
}
