//! Containers that are held while their data is read. What could go wrong: a service that stays down, one that is touched
//! though it was not ours to touch, and a copy that somebody wrote to all the same and that passes for a good one.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::engine::SecondEngine;
use crate::lab::{Lab, assert_failed, source, until};
use crate::support::{Done, Home, Running, sh};

/// A volume with so many MB of noise in it; nothing compresses it, so reading it takes a while.
pub fn volume(lab: &Lab, name: &str, megabytes: u32) -> String {
    let full = lab.volume(name);
    let dir = lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &full]);
    sh(&format!("head -c {megabytes}M /dev/urandom >'{}/noise'", dir.trim()));
    full
}

/// A volume that only the engine can read; its full name.
pub fn memory_volume(lab: &Lab) -> String {
    let full = format!("{}memory", lab.prefix);
    let options = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--label", "tars-lab=test"];
    lab.ok(&[&["volume", "create"], &options[..], &[full.as_str()]].concat());
    full
}

/// A container that has the volume at /data and sleeps. It ends at once when it is stopped.
pub fn sleeper(lab: &Lab, name: &str, volume: &str, args: &[&str]) -> String {
    let mount = format!("{volume}:/data");
    let mut all = vec!["--stop-signal", "KILL", "--stop-timeout", "1", "-v", &mount];
    all.extend(args);
    all.extend(["redis:7-alpine", "sleep", "infinity"]);
    lab.container(&["run", "-d"], name, &all)
}

pub fn volume_source(volume: &str, how: &str, more: &str) -> String {
    format!("type = \"volume\"\nvolume = {volume:?}\nconsistency = {how:?}\n{more}")
}

pub fn inspect(lab: &Lab, container: &str, field: &str) -> String {
    lab.ok(&["inspect", "-f", &format!("{{{{.{field}}}}}"), container]).trim().to_owned()
}

pub fn status(lab: &Lab, container: &str) -> String {
    inspect(lab, container, "State.Status")
}

/// Whole lines of the run journal; 0 when there is none.
pub fn journal_lines(home: &Home) -> usize {
    let text = std::fs::read(home.path("state/run.journal")).unwrap_or_default();
    text.iter().filter(|b| **b == b'\n').count()
}

/// Whether a staged file has grown past 1 MB. On a busy machine a shell that looks is too late.
fn staged(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    // They come and go.
    entries.flatten().any(|entry| match entry.metadata() {
        Ok(m) if m.is_dir() => staged(&entry.path()),
        Ok(m) => m.len() > 1_000_000,
        Err(_) => false,
    })
}

/// A run that holds the container, and itself stands still until it gets SIGCONT.
#[track_caller]
fn frozen(home: &Home, lab: &Lab, container: &str, held: &str) -> Running {
    let mut run = home.spawn(&["backup"]);
    // Reading has begun, so whatever happens from now on disturbs it.
    while !staged(&home.path("state/staging")) {
        assert!(run.child.try_wait().unwrap().is_none(), "it ended before it read anything");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&run.child), Signal::STOP).unwrap();
    assert_eq!(status(lab, container), held, "the hold was over before the test could look");
    run
}

/// Once so many holds are in the journal, lets the run go on for moments only: it cannot get beyond what is waited for.
#[track_caller]
fn freeze_when(home: &Home, run: &Running, holds: usize, mut condition: impl FnMut() -> bool) {
    until("the last hold is begun", || journal_lines(home) > holds);
    until("it holds what is waited for", || {
        run.signal("STOP");
        let reached = condition();
        if !reached {
            run.signal("CONT");
        }
        reached
    });
}

/// Lets a run go on that `frozen` returned.
fn thawed(run: Running) -> Done {
    run.signal("CONT");
    run.end()
}

/// An engine of the tests that ask what it remembers: it forgets all but the last 256 events, and each command in a
/// container makes three. It goes when the last of these tests ends.
struct QuietEngine {
    host: String,
    /// Lines of the configuration.
    socket: String,
}

/// How many use it.
static QUIET: Mutex<(usize, Option<SecondEngine>)> = Mutex::new((0, None));

impl QuietEngine {
    fn up() -> Self {
        let first = Lab::new();
        let mut quiet = QUIET.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = quiet.1.take().unwrap_or_else(|| {
            let engine = SecondEngine::up("quiet-engine");
            engine.load(&first, "redis:7-alpine");
            engine
        });
        let host = engine.host.clone();
        *quiet = (quiet.0 + 1, Some(engine));
        Self { socket: format!("[docker]\nsocket = {host:?}"), host }
    }

    fn lab(&self) -> Lab {
        Lab::on(Some(self.host.clone()))
    }
}

impl Drop for QuietEngine {
    fn drop(&mut self) {
        let mut quiet = QUIET.lock().unwrap_or_else(PoisonError::into_inner);
        quiet.0 -= 1;
        if quiet.0 == 0 {
            quiet.1 = None;
        }
    }
}

/// Nothing of a hold is left.
#[track_caller]
fn assert_clean(home: &Home) {
    assert!(!home.path("state/run.journal").exists(), "the journal is still there");
    home.assert_nothing_left();
}

#[test]
fn only_running_writers_are_held_and_everything_is_as_before() {
    let quiet = QuietEngine::up();
    let lab = quiet.lab();
    let data = volume(&lab, "data", 1);
    let other = volume(&lab, "other", 1);
    let writer = sleeper(&lab, "writer", &data, &[]);
    let read_only = format!("{data}:/data:ro");
    let reader =
        lab.container(&["run", "-d"], "reader", &["-v", &read_only, "redis:7-alpine", "sleep", "600"]);
    let beside = sleeper(&lab, "beside", &other, &[]);
    let stopped = sleeper(&lab, "stopped", &data, &[]);
    lab.ok(&["stop", &stopped]);
    let paused = sleeper(&lab, "paused", &data, &[]);
    lab.ok(&["pause", &paused]);
    let untouched = [&reader, &beside, &stopped, &paused];
    let life = |c: &str| inspect(&lab, c, "Id}} {{.State.Status}} {{.State.StartedAt}} {{.State.Pid");
    for how in ["pause", "stop"] {
        let before: Vec<String> = untouched.iter().map(|c| life(c)).collect();
        let (id, since) = (inspect(&lab, &writer, "Id"), sh("date +%s.%N"));
        let home = Home::new()
            .source("held", &volume_source(&data, how, ""))
            .source("live", &volume_source(&other, "live", ""))
            .extra(&quiet.socket)
            .ready();
        home.backup(0);
        assert_clean(&home);
        assert_eq!(untouched.iter().map(|c| life(c)).collect::<Vec<_>>(), before, "{how}");
        assert_eq!((inspect(&lab, &writer, "Id"), status(&lab, &writer).as_str()), (id, "running"), "{how}");
        // The engine's own word on what was done.
        let events = |c: &str| {
            let until = sh("date +%s.%N");
            let filter = format!("container={c}");
            let since = ["events", "--since", since.trim(), "--until", until.trim()];
            lab.ok(&[&since[..], &["--filter", &filter, "--format", "{{.Action}}"]].concat())
        };
        assert!(events(&writer).contains(how), "{}", events(&writer));
        for container in untouched {
            assert_eq!(events(container), "", "{how}: {container}");
        }
        let details = &home.manifest()["details"];
        assert!(details["held"]["paused_ms"].as_u64().unwrap() > 0, "{details}");
        assert_eq!(details["live"]["paused_ms"], 0);
    }
}

/// What somebody does to a container while it is held, and what the failed component says.
#[test]
fn whatever_is_done_to_a_held_container_fails_its_component() {
    let quiet = QuietEngine::up();
    let lab = quiet.lab();
    let data = volume(&lab, "data", 100);
    let name = "writer";
    let mut writer = sleeper(&lab, name, &data, &[]);
    let mut case = |how: &str, reason: &str, act: &dyn Fn(&str)| {
        let held = if how == "pause" { "paused" } else { "exited" };
        let home = Home::new().documents().source("data", &volume_source(&data, how, ""));
        let home = home.extra(&quiet.socket).ready();
        let run = frozen(&home, &lab, &writer, held);
        act(&writer);
        assert_failed(&home, thawed(run), "data", &[reason], "partial");
        assert_clean(&home);
        let removed = lab.docker(&["inspect", &writer]).code != 0;
        if removed {
            writer = sleeper(&lab, name, &data, &[]);
        }
        assert_eq!(status(&lab, &writer), "running", "{how}: {reason}");
    };
    case("pause", "was continued by somebody else", &|w| drop(lab.ok(&["unpause", w])));
    case("pause", "was started again", &|w| drop(lab.ok(&["restart", "-t", "0", w])));
    // It is thawed for its signal, and may write its last words.
    case("pause", "was stopped", &|w| drop(lab.ok(&["stop", w])));
    case("pause", "was continued", &|w| {
        lab.ok(&["unpause", w]);
        lab.ok(&["pause", w]);
    });
    case("pause", "was removed", &|w| drop(lab.ok(&["rm", "-f", w])));
    case("stop", "was started again", &|w| drop(lab.ok(&["start", w])));
    case("stop", "was started again", &|w| {
        lab.ok(&["start", w]);
        lab.ok(&["stop", w]);
    });
    for (how, replaced) in [("pause", "was removed"), ("stop", "was started")] {
        case(how, replaced, &|w| {
            lab.ok(&["rm", "-f", w]);
            sleeper(&lab, name, &data, &[]);
        });
        case(how, "was started", &|_| drop(sleeper(&lab, "new", &data, &[])));
        lab.ok(&["rm", "-f", &format!("{}new", lab.prefix)]);
    }
    // Made, but not yet started by whoever replaces the old one: a service that ran shall run.
    case("pause", "was removed", &|w| {
        lab.ok(&["rm", "-f", w]);
        let mount = format!("{data}:/data");
        let args = ["--stop-signal", "KILL", "-v", &mount, "redis:7-alpine", "sleep", "infinity"];
        lab.container(&["create"], name, &args);
    });
}

#[test]
fn a_writer_that_came_and_went_is_noticed() {
    let quiet = QuietEngine::up();
    let lab = quiet.lab();
    let data = volume(&lab, "data", 200);
    let writer = sleeper(&lab, "writer", &data, &[]);
    let home = Home::new().documents().source("data", &volume_source(&data, "pause", ""));
    let home = home.extra(&quiet.socket).ready();
    let run = frozen(&home, &lab, &writer, "paused");
    let mount = format!("{data}:/data");
    lab.container(&["run", "--rm"], "brief", &["-v", &mount, "redis:7-alpine", "touch", "/data/written"]);
    assert_failed(&home, thawed(run), "data", &["was started"], "partial");
    assert_clean(&home);
    assert_eq!(status(&lab, &writer), "running");
}

#[test]
fn a_hung_container_is_paused_and_stopped_like_any_other() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 1);
    let writer = sleeper(&lab, "writer", &data, &["--stop-signal", "TERM"]);
    for how in ["pause", "stop"] {
        sh(&format!("kill -STOP {}", inspect(&lab, &writer, "State.Pid")));
        let home = Home::new().source("data", &volume_source(&data, how, "")).ready();
        home.backup(0);
        assert_clean(&home);
        assert_eq!(status(&lab, &writer), "running");
    }
}

#[test]
fn a_second_run_and_a_recovery_leave_the_holds_of_a_living_run_alone() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 200);
    let writer = sleeper(&lab, "writer", &data, &[]);
    let home = Home::new().source("data", &volume_source(&data, "pause", "")).ready();
    let run = frozen(&home, &lab, &writer, "paused");
    let journal = std::fs::read(home.path("state/run.journal")).unwrap();
    home.tars(&["recover"]).expect(0).says("Nothing touched");
    home.tars(&["backup"]).expect(75);
    assert_eq!(status(&lab, &writer), "paused");
    assert_eq!(std::fs::read(home.path("state/run.journal")).unwrap(), journal);
    thawed(run).expect(0);
    assert_clean(&home);
    assert_eq!(status(&lab, &writer), "running");
}

#[test]
fn when_max_pause_is_over_the_containers_go_on_and_the_component_fails() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 120);
    let writer = sleeper(&lab, "writer", &data, &[]);
    for how in ["pause", "stop"] {
        let more = "max_pause = \"200ms\"";
        let home = Home::new().documents().source("data", &volume_source(&data, how, more)).ready();
        let done = home.tars(&["backup"]).says("max_pause");
        let place = |text: &str| done.stderr.find(text).unwrap_or_else(|| panic!("{text}: {}", done.stderr));
        let word = if how == "pause" { "Continued" } else { "Started" };
        assert!(place(&format!("{word} {writer}")) < place("data failed"), "{}", done.stderr);
        assert_failed(
            &home,
            done,
            "data",
            &["could not be read within 0.2s", "was continued first"],
            "partial",
        );
        assert_clean(&home);
        assert_eq!(status(&lab, &writer), "running");
    }
}

#[test]
fn a_signal_during_a_hold_leaves_every_container_running() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 200);
    let writer = sleeper(&lab, "writer", &data, &[]);
    for (how, signal, code) in
        [("pause", "TERM", 143), ("pause", "INT", 130), ("stop", "TERM", 143), ("stop", "INT", 130)]
    {
        let home = Home::new().source("data", &volume_source(&data, how, "")).ready();
        let held = if how == "pause" { "paused" } else { "exited" };
        let run = frozen(&home, &lab, &writer, held);
        run.signal(signal);
        thawed(run).expect(code).says("interrupted");
        assert_eq!(status(&lab, &writer), "running", "{how} {signal}");
        assert_eq!(home.committed(), [""; 0]);
        assert_clean(&home);
    }
}

#[test]
fn a_hold_is_shared_by_its_kind_and_others_wait_for_each_other() {
    let lab = Lab::new();
    let (one, two) = (volume(&lab, "one", 20), volume(&lab, "two", 60));
    let second = format!("{two}:/two");
    let redis = lab.redis("redis", &["-v", &format!("{one}:/data"), "-v", &second], &[]);
    lab.redis_cli(&redis, &["SET", "a", "1"]);
    for (first, other) in [("pause", "pause"), ("pause", "stop"), ("stop", "stop")] {
        let home = Home::new()
            .source("one", &volume_source(&one, first, ""))
            .source("two", &volume_source(&two, other, ""))
            .source("redis", &source("redis", &redis, ""))
            .ready();
        home.backup(0);
        assert_clean(&home);
        assert_eq!(status(&lab, &redis), "running");
        lab.await_redis(&redis);
        let details = &home.manifest()["details"];
        for name in ["one", "two"] {
            assert!(details[name]["paused_ms"].as_u64().unwrap() > 0, "{details}");
        }
        assert_eq!(details["redis"]["facts"]["databases"]["0"]["keys"], 1);
    }
}

#[test]
fn a_container_that_goes_when_it_stops_is_not_stopped() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 1);
    let writer = sleeper(&lab, "writer", &data, &["--rm"]);
    let id = inspect(&lab, &writer, "Id");
    let home = Home::new().documents().source("data", &volume_source(&data, "stop", "")).ready();
    let done = home.tars(&["backup"]).says("consistency = \"pause\"");
    assert_failed(&home, done, "data", &["is removed when it stops"], "partial");
    assert_clean(&home);
    assert_eq!((inspect(&lab, &writer, "Id"), status(&lab, &writer).as_str()), (id, "running"));
}

#[test]
fn a_volume_in_memory_is_not_lost_by_stopping_its_container() {
    let lab = Lab::new();
    let memory = memory_volume(&lab);
    let writer = sleeper(&lab, "writer", &memory, &[]);
    lab.sh(&writer, "echo one >/data/one");
    let home = Home::new().documents().source("data", &volume_source(&memory, "stop", "")).ready();
    let done = home.tars(&["backup"]);
    assert_eq!(lab.sh(&writer, "cat /data/one"), "one\n");
    let done = done.says("consistency = \"pause\"");
    assert_failed(&home, done, "data", &["lies in memory"], "partial");
    assert_eq!(status(&lab, &writer), "running");
}

/// Clients of the engine often give up after two minutes.
#[test]
fn a_container_may_take_longer_to_stop_than_any_default() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 1);
    let mount = format!("{data}:/data");
    let script = "trap 'sleep 122; exit 0' TERM; while :; do sleep 0.1; done";
    let args = ["--stop-timeout", "130", "-v", &mount, "redis:7-alpine", "bash", "-c", script];
    let writer = lab.container(&["run", "-d"], "writer", &args);
    let home = Home::new().source("data", &volume_source(&data, "stop", "")).ready();
    let started = Instant::now();
    home.backup(0);
    assert!(started.elapsed() > Duration::from_secs(120), "it was killed");
    assert!(home.manifest()["details"]["data"]["paused_ms"].as_u64().unwrap() > 120_000);
    assert_clean(&home);
    assert_eq!(status(&lab, &writer), "running");
}

/// The engine ends its containers and starts those that its policy says; the others are ours to start.
#[test]
fn an_engine_that_is_restarted_or_dies_during_a_hold_leaves_all_running_and_no_good_copy() {
    let first = Lab::new();
    let engine = SecondEngine::up("third-engine");
    engine.load(&first, "redis:7-alpine");
    let lab = Lab::on(Some(engine.host.clone()));
    a_helper_that_is_just_being_made_is_removed(&lab, &engine);
    let kinds =
        [("pause", "no"), ("pause", "unless-stopped"), ("stop", "unless-stopped"), ("stop", "always")];
    let made: Vec<(String, String)> = kinds
        .iter()
        .enumerate()
        .map(|(i, (_, policy))| {
            let data = volume(&lab, &format!("data{i}"), 60);
            (sleeper(&lab, &format!("c{i}"), &data, &["--restart", policy]), data)
        })
        .collect();
    for violent in [false, true] {
        let mut home = Home::new().documents();
        for (i, ((how, _), (_, data))) in kinds.iter().zip(&made).enumerate() {
            home = home.source(&format!("s{i}"), &volume_source(data, how, ""));
        }
        // All at once, so that one restart hits all.
        let agent = format!(
            "[agent]\njobs = 8\nstate_dir = \"{0}/state\"\nruntime_dir = \"{0}/run\"\n[docker]\nsocket = {1:?}",
            home.root().display(),
            engine.host
        );
        let home = home.extra(&agent).ready();
        let run = home.spawn(&["backup"]);
        freeze_when(&home, &run, kinds.len(), || {
            made.iter().zip(&kinds).all(|((c, _), (how, _))| {
                status(&lab, c) == if *how == "pause" { "paused" } else { "exited" }
            })
        });
        engine.restart(violent);
        let done = thawed(run);
        assert!([1, 2].contains(&done.code), "{}: {}", done.code, done.stderr);
        for (i, ((how, policy), (container, _))) in kinds.iter().zip(&made).enumerate() {
            assert_eq!(status(&lab, container), "running", "{how} {policy}: {}", done.stderr);
            // What was stopped, and stayed so, was copied well.
            if (*how, *policy) != ("stop", "unless-stopped") {
                let failed = home.manifest()["details"][format!("s{i}")]["state"] == "failed";
                assert!(failed, "{how} {policy}: {}", done.stderr);
            }
        }
        assert_clean(&home);
    }
}

/// Its creation lies before an engine that stands still when the run is killed.
fn a_helper_that_is_just_being_made_is_removed(lab: &Lab, engine: &SecondEngine) {
    let memory = memory_volume(lab);
    let writer = sleeper(lab, "memory", &memory, &[]);
    lab.sh(&writer, "head -c 4M /dev/urandom >/data/noise");
    let home = Home::new().source("memory", &volume_source(&memory, "live", ""));
    let home = home.extra(&format!("[docker]\nsocket = {:?}", engine.host)).ready();
    for round in 0..4 {
        let mut run = home.spawn(&["backup"]);
        until("a helper is asked for", || journal_lines(&home) >= 2);
        engine.signal("STOP");
        run.child.kill().unwrap();
        run.child.wait().unwrap();
        // The guardian asks already.
        std::thread::sleep(Duration::from_millis(300));
        engine.signal("CONT");
        until("the journal is gone", || !home.path("state/run.journal").exists());
        std::thread::sleep(Duration::from_secs(1));
        let left = lab.ok(&["ps", "-a", "--filter", "label=tars-backup.helper", "--format", "{{.Names}}"]);
        assert_eq!(left, "", "round {round}");
    }
}

/// A terminal that goes takes the run along, and whatever it writes to.
#[test]
fn a_run_whose_terminal_goes_leaves_every_container_running() {
    let lab = Lab::new();
    let data = volume(&lab, "data", 300);
    let writer = sleeper(&lab, "writer", &data, &[]);
    let home = Home::new().source("data", &volume_source(&data, "pause", "")).ready();
    let mut command = home.command(&["backup"]);
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    until("the container is held", || status(&lab, &writer) == "paused");
    drop((child.stdout.take(), child.stderr.take()));
    sh(&format!("kill -HUP -- -{}", child.id()));
    child.wait().unwrap();
    until("it runs again", || status(&lab, &writer) == "running");
    until("the journal is gone", || !home.path("state/run.journal").exists());
    until("staging is clear", || sh(&format!("find '{}' -mindepth 1", home.at("state/staging"))).is_empty());
}
