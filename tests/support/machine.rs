//! A machine of its own for one test: a container with systemd as PID 1, without network, in which the package is
//! installed as on any other. Needs root and the laboratory (tests/lab).

#![allow(dead_code, clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{self, Done, run};

pub const UNIT: &str = "tars-backup.service";
pub const RECOVER: &str = "tars-backup-recover.service";

/// One directory, one store.
pub const CONFIG: &str = r#"
[sources.documents]
type = "directory"
path = "/srv/documents"
[stores.local]
type = "fs"
path = "/srv/backups"
[tiers.hot]
stores = ["local"]
path = "daily"
"#;

/// A source that is captured once /run/go is there, and says nothing before.
pub const GATE: &str = r#"
[sources.gate]
type = "command"
command = ["sh", "-c", "until [ -e /run/go ]; do sleep 0.1; done; echo open"]
"#;

/// `DOCKER_HOST` of the engine.
pub fn engine() -> &'static str {
    static HOST: OnceLock<String> = OnceLock::new();
    HOST.get_or_init(|| {
        let env = lab("engine.sh", &["env"]);
        assert_eq!(
            env.code, 0,
            "no container engine answers: run `make test`, or tests/lab/engine.sh up\n{env:?}"
        );
        let host = support::sh(&format!("{}\nprintf %s \"$DOCKER_HOST\"", env.stdout));
        assert!(!host.is_empty(), "{env:?}");
        host
    })
}

pub fn lab(script: &str, args: &[&str]) -> Done {
    run(&format!("{}/tests/lab/{script}", env!("CARGO_MANIFEST_DIR")), args)
}

/// The package: the one that `TARS_BACKUP_DEB` names, else it is built.
pub fn package() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var("TARS_BACKUP_DEB") {
        Ok(path) => path,
        Err(_) => {
            let built = run(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/deb.sh"), &[]).expect(0);
            built.stdout.lines().last().unwrap().to_owned()
        }
    })
}

/// A container with systemd as PID 1; it goes when the test ends.
pub struct Machine {
    pub name: String,
}

impl Machine {
    pub fn up(release: &str, flags: &[&str]) -> Self {
        Self::up_in("none", release, flags)
    }

    fn up_in(network: &str, release: &str, flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let machine = Self { name: format!("tars-deb-{}-{count}", std::process::id()) };
        engine();
        let network = format!("LAB_NETWORK={network}");
        let script = format!("{}/tests/lab/systemd.sh", env!("CARGO_MANIFEST_DIR"));
        let up = run("env", &[&[&network, &script, "up", &machine.name, release], flags].concat());
        assert_eq!(up.code, 0, "no machine with Debian {release}: tests/lab/images.sh all\n{}", up.stderr);
        let target = format!("{}:/root/tars-backup.deb", machine.name);
        run("docker", &["-H", engine(), "cp", package(), &target]).expect(0);
        machine.live_in_the_evening();
        machine
    }

    /// A time zone in which it is past seven in the evening. The package starts its timers, from 00:30 to 18:30 of every
    /// day, and one that fires in the middle of a test is a run that the test knows nothing of.
    fn live_in_the_evening(&self) {
        let hour: i64 = self.out("date -u +%-H").parse().unwrap();
        // From nine hours west to fourteen east. In these names, east has a minus.
        let east = if hour < 5 { -5 - hour } else { 19 - hour };
        self.sh(&format!("ln -sfn /usr/share/zoneinfo/Etc/GMT{:+} /etc/localtime", -east)).expect(0);
        assert!(["19", "20"].contains(&self.out("date +%H").as_str()), "no time zones in the machine");
    }

    /// With the package installed, and something to back up.
    pub fn installed(release: &str) -> Self {
        Self::installed_with(release, &[])
    }

    /// With further flags of `docker run`.
    pub fn installed_with(release: &str, flags: &[&str]) -> Self {
        Self::install(Self::up(release, flags))
    }

    /// The same with the network of this machine, and so with the servers on its loopback.
    pub fn installed_beside(release: &str, flags: &[&str]) -> Self {
        Self::install(Self::up_in("host", release, flags))
    }

    /// The same with nothing installed.
    pub fn bare_beside(release: &str, flags: &[&str]) -> Self {
        let machine = Self::up_in("host", release, flags);
        machine.sh("rm /root/tars-backup.deb").expect(0);
        machine
    }

    fn install(machine: Self) -> Self {
        machine.sh("dpkg -i /root/tars-backup.deb").expect(0);
        machine.sh("mkdir -p /srv/documents/deep && echo one >/srv/documents/one && echo two >/srv/documents/deep/two");
        machine
    }

    /// With this configuration too, and its store initialised.
    pub fn ready(release: &str, config: &str) -> Self {
        let machine = Self::installed(release);
        machine.configure(config);
        machine.sh("tars-backup store init local").expect(0);
        machine
    }

    /// Copies a file of this machine there.
    #[track_caller]
    pub fn put(&self, file: &std::path::Path, to: &str) {
        let (from, to) = (file.display().to_string(), format!("{}:{to}", self.name));
        run("docker", &["-H", engine(), "cp", &from, &to]).expect(0);
    }

    pub fn configure(&self, config: &str) {
        self.sh(&format!("cat >/etc/tars-backup/config.toml <<'END'\n{config}\nEND")).expect(0);
    }

    pub fn exec(&self) -> [&str; 8] {
        ["-H", engine(), "exec", &self.name, "bash", "-euo", "pipefail", "-c"]
    }

    pub fn sh(&self, line: &str) -> Done {
        run("docker", &[&self.exec()[..], &[line]].concat())
    }

    /// Standard output of a line that must succeed, without the last line break.
    #[track_caller]
    pub fn out(&self, line: &str) -> String {
        self.sh(line).expect(0).stdout.trim_end().to_owned()
    }

    pub fn spawn(&self, line: &str) -> Child {
        let args = [&self.exec()[..], &[line]].concat();
        Command::new("docker").args(args).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    /// Starts the unit and waits for its end, as an operator does.
    pub fn start(&self) -> Done {
        self.sh(&format!("systemctl start {UNIT}"))
    }

    /// A property of the unit.
    #[track_caller]
    pub fn show(&self, property: &str) -> String {
        self.show_of(UNIT, property)
    }

    /// A property of any unit.
    #[track_caller]
    pub fn show_of(&self, unit: &str, property: &str) -> String {
        self.out(&format!("systemctl show -p {property} --value '{unit}'"))
    }

    /// Writes a drop-in of one's own for a unit, and tells systemd.
    #[track_caller]
    pub fn drop_in(&self, unit: &str, lines: &str) {
        let dir = format!("/etc/systemd/system/{unit}.d");
        self.sh(&format!(
            "mkdir -p '{dir}' && cat >'{dir}/own.conf' <<'END'\n{lines}\nEND\nsystemctl daemon-reload"
        ))
        .expect(0);
    }

    /// Asks again and again until the line succeeds.
    #[track_caller]
    pub fn wait(&self, line: &str) {
        let started = Instant::now();
        while self.sh(line).code != 0 {
            assert!(started.elapsed() < Duration::from_secs(240), "in vain: {line}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts the unit and returns when it waits at its gate and has told so.
    #[track_caller]
    pub fn start_to_gate(&self) -> Child {
        self.start_to_gate_of(UNIT)
    }

    /// The same with any unit that makes backups.
    #[track_caller]
    pub fn start_to_gate_of(&self, unit: &str) -> Child {
        self.sh("rm -f /run/go").expect(0);
        let started = self.spawn(&format!("systemctl start {unit}"));
        self.wait("pgrep -f '[u]ntil . -e /run/go'");
        self.wait(&format!(
            "systemctl show -p StatusText --value {unit} | grep -Ec 'Captur(ed|ing) (documents|gate)'"
        ));
        started
    }

    /// What the journal has of our units, as text.
    pub fn log(&self) -> String {
        // A pattern alone is an error where nothing fits it yet.
        self.out(&format!("journalctl --sync; journalctl -u {UNIT} -u 'tars-backup*' -o cat --no-pager"))
    }

    /// The same, as entries with all their fields; further matches narrow it.
    #[track_caller]
    pub fn entries(&self, matches: &str) -> Vec<Value> {
        let text = self.out(&format!("journalctl --sync; journalctl {matches} -o json --all --no-pager"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn committed(&self) -> usize {
        self.out("find /srv/backups -name '*.manifest.json' | wc -l").parse().unwrap()
    }

    #[track_caller]
    pub fn assert_nothing_runs_and_nothing_is_left(&self) {
        assert_eq!(self.show("MainPID"), "0");
        self.sh("! pgrep -f '[u]ntil . -e /run/go'").expect(0);
        assert_eq!(self.out("find /var/lib/tars-backup/staging -mindepth 1"), "");
        assert_eq!(self.out("find /srv/backups -name '.tars-backup-tmp-*'"), "");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        lab("systemd.sh", &["down", &self.name]);
    }
}

pub fn ended(mut child: Child) -> i32 {
    child.wait().unwrap().code().unwrap()
}
