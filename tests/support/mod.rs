//! A small world for one test: a directory with a configuration, a store and sources, and the program run in it as a
//! person would run it.

#![allow(dead_code, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_tars-backup");

/// What a finished program left.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// Fails the test with everything that was printed unless the exit status is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        let all = format!("{}{}", self.stdout, self.stderr);
        assert!(all.contains(text), "{text:?} is not in:\n{all}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}):\n{}", self.stdout))
    }
}

/// Runs any program; the test fails when it cannot be started.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> Done {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().unwrap_or_else(|e| {
            panic!("cannot run {program}: {e}; `make test` installs what the tests need")
        });
    done(output)
}

/// A shell line whose failure fails the test; returns its standard output.
#[track_caller]
pub fn sh(line: &str) -> String {
    let d = run("bash", &["-euo", "pipefail", "-c", line]);
    assert_eq!(d.code, 0, "{line}\n{}{}", d.stdout, d.stderr);
    d.stdout
}

fn done(output: std::process::Output) -> Done {
    use std::os::unix::process::ExitStatusExt;
    Done {
        code: output.status.code().unwrap_or_else(|| 1000 + output.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A machine of its own below a temporary directory.
pub struct Home {
    dir: tempfile::TempDir,
    sources: String,
    extra: String,
    env: Vec<(String, String)>,
}

impl Home {
    /// With an initialised store `nas` and a tier `hot` at `daily`; sources are added by the test.
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// The same in memory where that is possible: for tests of many small writes that are synced each.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::below(memory) } else { Self::new() }
    }

    fn below(base: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("tars-home-").tempdir_in(base).unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        Self { dir, sources: String::new(), extra: String::new(), env: Vec::new() }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// The same as text, for shell lines.
    pub fn at(&self, relative: &str) -> String {
        self.path(relative).display().to_string()
    }

    /// Adds `[sources.NAME]` with these lines.
    pub fn source(mut self, name: &str, lines: &str) -> Self {
        writeln!(self.sources, "[sources.{name}]\n{lines}").unwrap();
        self
    }

    /// Gives all sources up for one with these lines.
    pub fn only_source(self, name: &str, lines: &str) -> Self {
        let home = Self { sources: String::new(), ..self }.source(name, lines);
        home.write_config();
        home
    }

    /// Adds a directory source `documents` at `docs`, with one file in it.
    pub fn documents(self) -> Self {
        std::fs::create_dir_all(self.path("docs")).unwrap();
        std::fs::write(self.path("docs/a.txt"), "hello\n").unwrap();
        let path = self.at("docs");
        self.source("documents", &format!("type = \"directory\"\npath = \"{path}\""))
    }

    /// Adds a store `second` and a tier `both` at `both` that goes to it and to `nas`.
    pub fn second_store(self) -> Self {
        let path = self.at("second");
        self.extra(&format!(
            "[stores.second]\ntype = \"fs\"\npath = \"{path}\"\n[tiers.both]\nstores = [\"nas\", \"second\"]\npath = \"both\""
        ))
    }

    /// Adds any further configuration text.
    pub fn extra(mut self, text: &str) -> Self {
        self.extra.push_str(text);
        self.extra.push('\n');
        self
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Writes the configuration and initialises the store.
    pub fn ready(self) -> Self {
        self.write_config();
        self.tars(&["store", "init", "nas"]).expect(0);
        self
    }

    pub fn write_config(&self) {
        let root = self.root().display();
        let agent = if self.extra.contains("[agent]") {
            String::new()
        } else {
            format!("[agent]\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n")
        };
        let text = format!(
            "{agent}{}\n{}\n[stores.nas]\ntype = \"fs\"\npath = \"{root}/store\"\n[tiers.hot]\nstores = [\"nas\"]\npath = \"daily\"\n",
            self.sources, self.extra
        );
        std::fs::write(self.path("config.toml"), text).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program with this configuration.
    #[track_caller]
    pub fn tars(&self, args: &[&str]) -> Done {
        done(self.command(args).output().unwrap())
    }

    /// Starts it and does not wait.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let child = self.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Running { child }
    }

    /// One backup that must end with `code`; its outcome.
    #[track_caller]
    pub fn backup(&self, code: i32) -> Value {
        self.tars(&["backup", "--json"]).expect(code).json()
    }

    /// Names of the committed backups below the store.
    pub fn committed(&self) -> Vec<String> {
        self.committed_at("store/daily")
    }

    /// The same in that directory.
    pub fn committed_at(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(dir)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|e| {
                e.unwrap().file_name().to_str()?.strip_suffix(".manifest.json").map(str::to_owned)
            })
            .collect();
        names.sort();
        names
    }

    /// The one committed backup.
    #[track_caller]
    pub fn only(&self) -> String {
        let names = self.committed();
        assert_eq!(names.len(), 1, "{names:?}");
        names[0].clone()
    }

    /// Path of an object of the one backup: `.tar.gz`, `.manifest.json`, …
    pub fn object(&self, suffix: &str) -> PathBuf {
        self.path("store/daily").join(format!("{}{suffix}", self.only()))
    }

    pub fn manifest(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.object(".manifest.json")).unwrap()).unwrap()
    }

    /// Unpacks the one archive with stock tar into `out`; returns the directory of the backup.
    pub fn unpack(&self, out: &str) -> PathBuf {
        let (archive, to) = (self.object(".tar.gz"), self.path(out));
        std::fs::create_dir_all(&to).unwrap();
        sh(&format!("tar -xzf '{}' -C '{}'", archive.display(), to.display()));
        to.join(self.only())
    }

    /// Waits until the capture is under way: its staged file has grown past 1 MiB.
    #[track_caller]
    pub fn wait_for_staging(&self) {
        wait_for_growth(&self.path("state/staging"), "");
    }

    /// Nothing of a run is left: no staging, no temporary or uncommitted object in the store.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let staging = self.path("state/staging");
        if staging.exists() {
            assert_eq!(sh(&format!("find '{}' -mindepth 1", staging.display())), "");
        }
        let committed = self.committed();
        for line in sh(&format!("find '{}' -type f -printf '%f\\n'", self.at("store"))).lines() {
            let own = line == "RESTORE.md" || line == "tars-backup-store.json";
            assert!(own || committed.iter().any(|c| line.starts_with(c.as_str())), "left behind: {line}");
        }
    }
}

/// Waits until a file below `dir`, with this in its path, has grown past 1 MiB.
#[track_caller]
pub fn wait_for_growth(dir: &Path, part: &str) {
    fn has_grown(dir: &Path, part: &str) -> bool {
        // What goes while we look was not what is waited for.
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).any(|path| match path.symlink_metadata() {
            Ok(meta) if meta.is_dir() => has_grown(&path, part),
            Ok(meta) => meta.is_file() && meta.len() > 1 << 20 && path.to_string_lossy().contains(part),
            Err(_) => false,
        })
    }
    let deadline = Instant::now() + Duration::from_secs(240);
    while !has_grown(dir, part) {
        assert!(Instant::now() < deadline, "nothing has grown in {}", dir.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub struct Running {
    pub child: Child,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Sends a signal to the program alone; one that has ended by itself is fine. Without a shell: when it comes is what
    /// most tests are about.
    pub fn signal(&self, name: &str) {
        let signal = match name {
            "INT" => Signal::INT,
            "TERM" => Signal::TERM,
            "KILL" => Signal::KILL,
            "STOP" => Signal::STOP,
            "CONT" => Signal::CONT,
            "HUP" => Signal::HUP,
            other => panic!("which signal is {other}?"),
        };
        // Nobody else has its number before we have asked how it ended.
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until its standard error has shown `text`; returns all that was read.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) -> String {
        let stderr = self.child.stderr.as_mut().unwrap();
        let mut seen = Vec::new();
        let mut byte = [0u8; 1];
        while !String::from_utf8_lossy(&seen).contains(text) {
            if stderr.read(&mut byte).unwrap() == 0 {
                panic!("ended without saying {text:?}:\n{}", String::from_utf8_lossy(&seen));
            }
            seen.push(byte[0]);
        }
        String::from_utf8_lossy(&seen).into_owned()
    }

    pub fn end(self) -> Done {
        done(self.child.wait_with_output().unwrap())
    }
}

/// Between two looks at a journal: shorter than any step, and a processor is left to what is looked at.
const GLANCE: Duration = Duration::from_micros(100);

/// A restore of all, for [`killed_at_every_line`]. Without its guardian, which would be faster than us, what it left stays
/// until somebody looks.
pub fn restore_to_kill(home: &Home, guardian: bool, more: &[&str]) -> Command {
    let mut run = home.command(&["restore", "--latest", "--yes", "--no-safety-backup", "--wait", "30s"]);
    run.args(more);
    if !guardian {
        run.env("TARS_BACKUP_GUARDIAN", "no");
    }
    run
}

/// Kills what `run` makes when the run journal has 1, 2, … lines, until it ends by itself. `before` and `after` come
/// around each attempt, killed or not; `after` is told the line.
///
/// On a busy machine the next line, or the end, may be there before we look. So a line is tried again, and each of the
/// first `least`, which every run writes, until it is hit.
#[track_caller]
pub fn killed_at_every_line(
    home: &Home,
    least: usize,
    run: impl Fn() -> Command,
    mut before: impl FnMut(),
    mut after: impl FnMut(usize),
) {
    let (mut line, mut missed) = (1, 0);
    while missed < if line <= least { 30 } else { 3 } {
        before();
        let killed = killed_at(home, line, run());
        after(line);
        (line, missed) = if killed { (line + 1, 0) } else { (line, missed + 1) };
    }
    assert!(line > least, "only {} kills hit", line - 1);
}

/// False when it ended before the run journal had so many lines.
fn killed_at(home: &Home, lines: usize, mut run: Command) -> bool {
    let said = home.path("killed.log");
    let mut child = run.stdout(Stdio::null()).stderr(std::fs::File::create(&said).unwrap()).spawn().unwrap();
    let journal = home.path("state/run.journal");
    let deadline = Instant::now() + Duration::from_secs(240);
    loop {
        let now = std::fs::read(&journal).unwrap_or_default();
        if now.iter().filter(|b| **b == b'\n').count() >= lines {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(
            Instant::now() < deadline,
            "it hangs\n{}\n{}",
            String::from_utf8_lossy(&now),
            std::fs::read_to_string(&said).unwrap()
        );
        std::thread::sleep(GLANCE);
    }
}

/// A restore of all that stands still (SIGSTOP) since the run journal named a container that is going to be stopped: the
/// new data lies complete beside the old, and nothing is exchanged yet. Also returns where the new data lies.
#[track_caller]
pub fn halted_before_the_exchange(home: &Home, more: &[&str]) -> (Running, PathBuf) {
    let mut args = vec!["restore", "--latest", "--yes", "--no-safety-backup"];
    args.extend(more);
    let mut running = home.spawn(&args);
    let journal = home.path("state/run.journal");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = std::fs::read_to_string(&journal).unwrap_or_default();
        if now.contains("\"step\":\"hold\"") {
            running.signal("STOP");
            let lines: Vec<Value> = now.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
            let scratch = lines.iter().find(|l| l["step"] == "scratch").unwrap();
            assert!(!std::fs::read_to_string(&journal).unwrap().contains("\"step\":\"change\""), "too late");
            return (running, scratch["scratch"]["path"].as_str().unwrap().into());
        }
        assert!(running.child.try_wait().unwrap().is_none(), "it ended before it stopped anything");
        assert!(Instant::now() < deadline, "it hangs");
        std::thread::sleep(GLANCE);
    }
}

/// The fenced commands of a guide, one text per block.
pub fn commands_of(guide: &str) -> Vec<String> {
    guide.split("```\n").skip(1).step_by(2).map(str::to_owned).collect()
}

/// Runs the commands of the section `component` in RESTORE.md, with `from` replaced by `to`: another container, for
/// example. Returns what they said.
#[track_caller]
pub fn follow_the_guide(unpacked: &Path, component: &str, from: &str, to: &str) -> String {
    let guide = std::fs::read_to_string(unpacked.join("RESTORE.md")).unwrap();
    let section = guide.split(&format!("\n## {component}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let block = commands_of(section).swap_remove(0);
    let script = format!("cd '{}'\n{}", unpacked.display(), block.replace(from, to));
    // Every single command must succeed, as a person would look at each.
    let d = run("bash", &["-e", "-c", &script]);
    assert_eq!(d.code, 0, "{script}\n{}{}", d.stdout, d.stderr);
    d.stderr
}

/// A tree with everything that a file system can hold, a socket and a device among it. Needs root.
pub fn make_odd(root: &Path) {
    let at = |p: &str| root.join(p);
    std::fs::create_dir_all(at("sub/deep")).unwrap();
    std::fs::create_dir(at("empty dir")).unwrap();
    std::fs::write(at("plain"), "plain\n").unwrap();
    std::fs::write(at("zero"), "").unwrap();
    std::fs::write(at(&"n".repeat(250)), "long name\n").unwrap();
    let deep = "d".repeat(120);
    std::fs::create_dir_all(at(&format!("{deep}/{deep}"))).unwrap();
    std::fs::write(at(&format!("{deep}/{deep}/file")), "long path\n").unwrap();
    std::fs::write(at("line\nbreak and \u{1b}[31m"), "odd name\n").unwrap();
    std::fs::write(at("ünïcødé 漢字"), "unicode\n").unwrap();
    use std::os::unix::ffi::OsStrExt;
    let latin1 = std::ffi::OsStr::from_bytes(b"latin1-\xe9\xff");
    std::fs::write(root.join(latin1), "not utf-8\n").unwrap();
    std::fs::hard_link(at("plain"), at("sub/hard")).unwrap();
    std::fs::hard_link(at("plain"), at("zz-hard")).unwrap();
    symlink("plain", at("sym")).unwrap();
    symlink("/etc/passwd", at("sym-absolute")).unwrap();
    symlink("../../outside", at("sub/sym-out")).unwrap();
    symlink("x".repeat(300), at("sym-long")).unwrap();
    symlink("nowhere", at("sym-dangling")).unwrap();
    std::fs::write(at("suid"), "#!/bin/sh\n").unwrap();
    std::os::unix::fs::chown(at("suid"), Some(1234), Some(3_000_000)).unwrap();
    std::fs::set_permissions(at("suid"), std::fs::Permissions::from_mode(0o6755)).unwrap();
    std::fs::set_permissions(at("sub/deep"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(at("zero"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o2750)).unwrap();
    sh(&format!("mkfifo -m 0640 '{}'", at("fifo").display()));
    sh(&format!(
        "python3 -c 'import socket,sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])' '{}'",
        at("sock").display()
    ));
    sh(&format!("mknod '{}' c 1 3", at("null").display()));
    sh(&format!("setfattr -n user.colour -v 'rot=1%' '{}'", at("plain").display()));
    sh(&format!("setfattr -n user.dir -v x '{}'", at("sub").display()));
    sh(&format!("setfacl -m u:4242:rw '{}'", at("plain").display()));
    sh(&format!("setfacl -d -m g:77:rx '{}'", at("sub").display()));
    // Holes at the begin, in the middle and at the end; one file that is only a hole.
    sh(&format!(
        "f='{0}'; printf head | dd of=\"$f\" bs=1 seek=3000000 conv=notrunc status=none; \
         printf tail | dd of=\"$f\" bs=1 seek=9000000 conv=notrunc status=none; truncate -s 20000000 \"$f\"; \
         truncate -s 5000000 '{1}'",
        at("sparse").display(),
        at("sparse-all").display()
    ));
    for (name, time) in [
        ("plain", "2001-02-03 04:05:06.123456789 UTC"),
        ("zero", "1969-12-31 23:59:58.250000000 UTC"),
        ("suid", "2100-01-01 00:00:00.000000001 UTC"),
        ("sub", "2010-01-01 00:00:00.5 UTC"),
        (".", "2011-01-01 00:00:00.987654321 UTC"),
    ] {
        sh(&format!("touch -h -d '{time}' '{}'", at(name).display()));
    }
}

/// One line per entry with everything that must survive; inode numbers are replaced by the count of links.
pub fn describe(root: &Path) -> String {
    sh(&format!(
        "cd '{}' && find . -printf '%P|%y|%m|%U|%G|%s|%T@|%n|%l\\0' | sort -z | tr '\\0' '\\n'",
        root.display()
    ))
}
