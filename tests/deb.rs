//! The package on machines that run systemd: containers with systemd as PID 1, of Debian 12 and 13, without network.
//! Needs root and the laboratory (tests/lab). `TARS_BACKUP_DEB` names a package; without it, it is built.

#![allow(clippy::unwrap_used)]

mod support;

#[path = "support/machine.rs"]
mod machine;

use std::time::{Duration, Instant};

use machine::{CONFIG, GATE, Machine, RECOVER, UNIT, ended, engine};
use serde_json::Value;
use support::run;

#[test]
fn from_installation_to_purge_on_debian_12() {
    from_installation_to_purge("12");
}

#[test]
fn from_installation_to_purge_on_debian_13() {
    from_installation_to_purge("13");
}

fn from_installation_to_purge(release: &str) {
    let m = Machine::installed(release);

    // Nothing runs, and this unit will not by itself.
    assert_eq!(m.sh(&format!("systemctl is-enabled {UNIT}")).stdout.trim(), "static");
    assert_eq!(m.sh(&format!("systemctl is-active {UNIT}")).stdout.trim(), "inactive");
    assert_eq!(m.out("tars-backup --version"), concat!("tars-backup ", env!("CARGO_PKG_VERSION")));
    for dir in ["/run/tars-backup", "/var/lib/tars-backup", "/etc/tars-backup"] {
        assert_eq!(m.out(&format!("stat -c '%a %U %G' {dir}")), "700 root root", "{dir}");
    }
    // The one that recovers at boot is ready for the next, and has not been started.
    assert_eq!(m.out(&format!("systemctl is-enabled {RECOVER}")), "enabled");
    assert_eq!(m.sh(&format!("systemctl is-active {RECOVER}")).stdout.trim(), "inactive");
    assert_eq!(m.out(&format!("systemd-analyze verify --man=no {UNIT} {RECOVER} 2>&1")), "");
    m.sh("gunzip -c /usr/share/man/man1/tars-backup.1.gz | grep -c '^.TH tars-backup 1'").expect(0);
    m.sh("bash -n /usr/share/bash-completion/completions/tars-backup").expect(0);
    for file in [
        "zsh/vendor-completions/_tars-backup",
        "fish/vendor_completions.d/tars-backup.fish",
        "doc/tars-backup/copyright",
        "doc/tars-backup/README.md",
        "doc/tars-backup/changelog",
        "doc/tars-backup/changelog.Debian",
        "doc/tars-backup/examples/config.toml",
    ] {
        m.sh(&format!("zcat -f /usr/share/{file}* | grep -c .")).expect(0);
    }

    // Without a configuration it fails, and says what to do.
    assert_ne!(m.start().code, 0);
    assert_eq!(m.show("ExecMainStatus"), "78");
    let log = m.log();
    assert!(log.contains("cannot read the configuration /etc/tars-backup/config.toml"), "{log}");
    assert!(log.contains("hint: write one"), "{log}");

    m.configure(CONFIG);
    m.sh("tars-backup store init local").expect(0);
    m.start().expect(0);
    assert_eq!(m.show("Result"), "success");
    let rows: Value = serde_json::from_str(&m.out("tars-backup list --json")).unwrap();
    let name = rows[0]["name"].as_str().unwrap();
    assert_eq!(rows[0]["state"], "complete");
    assert_eq!(rows.as_array().map(Vec::len), Some(1));

    // Private, all of it.
    assert_eq!(m.out("find /srv/backups -type f ! -perm 600"), "");
    assert_eq!(m.out("find /srv/backups /run/tars-backup /var/lib/tars-backup -type d ! -perm 700"), "");
    m.assert_nothing_runs_and_nothing_is_left();

    // One entry with all its fields.
    let entries = m.entries("TARS_BACKUP_EVENT=backup.committed");
    assert_eq!(entries.len(), 1, "{entries:?}");
    let entry = &entries[0];
    let bytes = m.out(&format!("stat -c %s /srv/backups/daily/{name}.tar.gz"));
    for (field, value) in [
        ("TARS_BACKUP_NAME", name),
        ("TARS_BACKUP_STORE", "local"),
        ("TARS_BACKUP_TIER", "hot"),
        ("TARS_BACKUP_BYTES", &bytes),
        ("SYSLOG_IDENTIFIER", "tars-backup"),
        ("_SYSTEMD_UNIT", UNIT),
    ] {
        assert_eq!(entry[field], value, "{field} of {entry}");
    }
    let this_run = entry["TARS_BACKUP_RUN"].as_str().unwrap();
    let of_run = m.entries(&format!("-u {UNIT} TARS_BACKUP_RUN={this_run}"));
    let events: Vec<&str> = of_run.iter().map(|e| e["TARS_BACKUP_EVENT"].as_str().unwrap()).collect();
    assert_eq!(events.first(), Some(&"run.started"));
    assert_eq!(events.last(), Some(&"run.finished"));

    // Nothing to recover is a good start, without an engine too.
    m.sh(&format!("systemctl start {RECOVER}")).expect(0);
    // What somebody has disabled stays so.
    m.sh(&format!("systemctl disable {RECOVER} && dpkg -i /root/tars-backup.deb")).expect(0);
    assert_eq!(m.sh(&format!("systemctl is-enabled {RECOVER}")).stdout.trim(), "disabled");
    m.sh(&format!("systemctl enable {RECOVER}")).expect(0);

    // An upgrade keeps the configuration; removal and purge keep the backups, and the configuration that finds them.
    let before = m.out("cd /srv/backups && find . -type f -print0 | sort -z | xargs -0 sha256sum");
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    m.start().expect(0);
    assert_eq!(m.committed(), 2);
    m.sh("dpkg -r tars-backup").expect(0);
    assert_ne!(m.sh(&format!("systemctl cat {UNIT}")).code, 0);
    m.sh("dpkg -P tars-backup").expect(0);
    assert_eq!(m.out("find /etc/systemd/system -name 'tars-backup*'"), "");
    assert_eq!(m.committed(), 2);
    let lines = format!("cd /srv/backups && sha256sum -c --quiet <<'END'\n{before}\nEND");
    m.sh(&lines).expect(0);
    m.sh("test -s /etc/tars-backup/config.toml").expect(0);
    assert_eq!(m.out("systemctl is-system-running"), "running", "removal leaves no failed unit");
}

#[test]
fn every_ending_reaches_systemd() {
    let m = Machine::installed("12");

    m.configure(CONFIG);
    assert_ne!(m.start().code, 0);
    assert_eq!(m.show("ExecMainStatus"), "1", "{}", m.log());
    assert_eq!(m.show("Result"), "exit-code");
    assert!(m.log().contains("/srv/backups is not there"), "{}", m.log());

    m.sh("tars-backup store init local").expect(0);
    m.configure(&format!(
        "{CONFIG}[sources.extra]\ntype = \"command\"\ncommand = [\"false\"]\ncritical = false\n"
    ));
    assert_ne!(m.start().code, 0);
    assert_eq!(m.show("ExecMainStatus"), "2", "{}", m.log());
    assert_eq!(m.committed(), 1);
    let failed = m.entries("TARS_BACKUP_EVENT=component.failed TARS_BACKUP_COMPONENT=extra");
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["PRIORITY"], "3");

    // All problems at once. The program ends at once too: its last lines are found under the unit all the same.
    m.configure(
        "[sources.documents]\ntyp = \"directory\"\n[stores.local]\ntype = \"fs\"\n[tiers.hot]\nstores = [\"nas\"]\n",
    );
    assert_ne!(m.start().code, 0);
    assert_eq!(m.show("ExecMainStatus"), "78");
    let log = m.log();
    for text in ["typ", "stores.local", "there is no store \"nas\"", "problems in the configuration"] {
        assert!(log.contains(text), "{text:?} is not in:\n{log}");
    }
}

#[test]
fn a_run_shows_its_state_is_joined_survives_an_upgrade_and_stops_in_good_order() {
    let m = Machine::ready("12", &format!("{CONFIG}{GATE}"));

    let first = m.start_to_gate();
    assert_eq!(m.show("ActiveState"), "activating");
    let pid = m.show("MainPID");
    // A second start joins, and a run in a shell is told who holds the lock.
    let second = m.spawn(&format!("systemctl start {UNIT}"));
    m.sh("tars-backup backup").expect(75).says(&format!("pid {pid} backup since"));
    // A new version comes while it runs.
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    assert_eq!(m.show("MainPID"), pid);
    assert_eq!(m.show("ActiveState"), "activating");
    m.sh("touch /run/go").expect(0);
    assert_eq!((ended(first), ended(second)), (0, 0), "{}", m.log());
    assert_eq!(m.committed(), 1);
    m.assert_nothing_runs_and_nothing_is_left();

    let stopped = m.start_to_gate();
    m.sh(&format!("systemctl stop {UNIT}")).expect(0);
    assert_ne!(ended(stopped), 0);
    assert_eq!(m.show("ExecMainStatus"), "143", "{}", m.log());
    assert_eq!(m.committed(), 1);
    m.assert_nothing_runs_and_nothing_is_left();

    // Killed: what was left is cleared when the unit ends.
    let killed = m.start_to_gate();
    m.sh(&format!("systemctl kill -s KILL {UNIT}")).expect(0);
    assert_ne!(ended(killed), 0);
    assert_eq!(m.entries("TARS_BACKUP_EVENT=leftover.removed").len(), 1);
    m.assert_nothing_runs_and_nothing_is_left();
    m.sh("touch /run/go").expect(0);
    m.start().expect(0);
    m.assert_nothing_runs_and_nothing_is_left();

    // Removal ends a run, in good order.
    let removed = m.start_to_gate();
    m.sh("dpkg -r tars-backup").expect(0);
    assert_ne!(ended(removed), 0);
    m.assert_nothing_runs_and_nothing_is_left();
    assert_eq!(m.committed(), 2);
}

#[test]
fn only_progress_buys_time() {
    let m = Machine::ready("12", &format!("{CONFIG}{GATE}"));
    let drop_in = "/etc/systemd/system/tars-backup.service.d";
    m.sh(&format!(
        "mkdir -p {drop_in} && printf '[Service]\\nTimeoutStartSec=5s\\n' >{drop_in}/time.conf && systemctl daemon-reload"
    ))
    .expect(0);

    // The documents are no progress of the gate: make them nothing that moves.
    m.configure(&format!(
        "{}{GATE}",
        CONFIG.replace("type = \"directory\"", "type = \"directory\"\nmode = \"inventory\"")
    ));
    let started = Instant::now();
    assert_ne!(m.start().code, 0);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert_eq!(m.show("Result"), "timeout", "{}", m.log());
    assert_eq!(m.committed(), 0);
    m.assert_nothing_runs_and_nothing_is_left();

    let steady = "[sources.steady]\ntype = \"command\"\ncommand = [\"sh\", \"-c\", \"for i in $(seq 80); do echo $i; sleep 0.1; done\"]\n";
    m.configure(&format!("{CONFIG}{steady}"));
    let started = Instant::now();
    m.start().expect(0);
    assert!(started.elapsed() > Duration::from_secs(8));
    assert_eq!(m.committed(), 1);
}

/// Containers beside the machine, in the same engine; they go when the test ends.
struct Held {
    names: Vec<String>,
    volumes: Vec<String>,
    ids: Vec<String>,
}

impl Held {
    /// One that is to be paused, and one that is to be stopped.
    fn up() -> Self {
        let mut held = Self { names: Vec::new(), volumes: Vec::new(), ids: Vec::new() };
        for part in ["paused", "stopped"] {
            let name = format!("tars-deb-{}-{part}", std::process::id());
            held.volumes.push(name.clone());
            docker(&["volume", "create", "--label", "tars-lab=test", &name]);
            let dir = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", &name]);
            support::sh(&format!("head -c 30M /dev/urandom >'{dir}/noise'"));
            let mount = format!("{name}:/data");
            let run = ["run", "-d", "--name", &name, "--label", "tars-lab=test", "--network", "none"];
            let how = ["--stop-signal", "KILL", "--stop-timeout", "1", "-v", &mount];
            held.names.push(name.clone());
            held.ids.push(docker(&[&run[..], &how, &["redis:7-alpine", "sleep", "infinity"]].concat()));
        }
        held
    }

    fn sources(&self) -> String {
        let how = ["pause", "stop"];
        let table = |(name, how): (&String, &str)| {
            format!("[sources.{how}]\ntype = \"volume\"\nvolume = {name:?}\nconsistency = {how:?}\n")
        };
        self.volumes.iter().zip(how).map(table).collect()
    }

    fn states(&self) -> Vec<String> {
        let one = |id: &String| docker(&["inspect", "-f", "{{.State.Status}}", id]);
        self.ids.iter().map(one).collect()
    }

    #[track_caller]
    fn until_running(&self, why: &str, m: &Machine) {
        let started = Instant::now();
        while self.states() != ["running", "running"] {
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(240), "{why}: {:?}\n{}", self.states(), m.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for name in &self.names {
            run("docker", &["-H", engine(), "rm", "-f", "-v", name]);
        }
        for volume in &self.volumes {
            run("docker", &["-H", engine(), "volume", "rm", volume]);
        }
    }
}

#[track_caller]
fn docker(args: &[&str]) -> String {
    let done = run("docker", &[&["-H", engine()], args].concat()).expect(0);
    done.stdout.trim_end().to_owned()
}

/// What a killed run held goes on when its unit has ended; after a power cut, at the next boot.
#[test]
fn a_killed_unit_leaves_every_container_running_and_so_does_a_power_cut() {
    let held = Held::up();
    // The engine's socket and its data, where the engine has them.
    let socket = engine().trim_start_matches("unix://");
    let socket_dir = std::path::Path::new(socket).parent().unwrap().display().to_string();
    let data = docker(&["info", "-f", "{{.DockerRootDir}}"]);
    let mounts = [format!("{socket_dir}:{socket_dir}"), format!("{data}:{data}:ro,rslave")];
    let m = Machine::installed_with("12", &["-v", &mounts[0], "-v", &mounts[1]]);
    // The engine of the laboratory may lie below /tmp, of which a unit has its own.
    for unit in [UNIT, RECOVER] {
        m.drop_in(unit, "[Service]\nPrivateTmp=no");
    }
    m.configure(&format!("[docker]\nsocket = {:?}\n{CONFIG}{}", engine(), held.sources()));
    m.sh("tars-backup store init local").expect(0);
    let journal = "/var/lib/tars-backup/run.journal";
    // Starts the unit and kills when the journal has so many lines; fails when the run ended without them.
    let kill_at = |line: usize, kill: &str| {
        m.sh(&format!(
            "systemctl start --no-block {UNIT}
             until pid=$(systemctl show -p MainPID --value {UNIT}); [ $pid != 0 ]; do :; done
             while [ -d /proc/$pid ]; do
               lines=()
               [ ! -e {journal} ] || mapfile -t lines <{journal} 2>/dev/null || true
               if [ ${{#lines[@]}} -ge {line} ]; then {kill}; exit 0; fi
             done
             exit 1"
        ))
        .code
            == 0
    };
    let ended = format!("systemctl show -p ActiveState --value {UNIT} | grep -Ec '^(failed|inactive)'");

    let mut line = 0;
    loop {
        line += 1;
        // The whole unit, or the agent alone.
        let all = format!("systemctl kill -s KILL {UNIT}");
        if !kill_at(line, if line % 2 == 0 { &all } else { "kill -KILL $pid" }) {
            break;
        }
        m.wait(&ended);
        held.until_running(&format!("line {line}"), &m);
        m.sh(&format!("test ! -e {journal}")).expect(0);
        assert_eq!(m.out("find /var/lib/tars-backup/staging -mindepth 1"), "");
        m.sh("! pgrep -f '[g]uardian '").expect(0);
    }
    assert!(line > 3, "only {line} lines were seen\n{}", m.log());
    m.wait(&ended);
    assert_eq!(m.show("Result"), "success", "{}", m.log());

    // A power cut: nobody is left who could undo anything, and the engine keeps what it was told.
    let run = "setsid env TARS_BACKUP_GUARDIAN=no tars-backup backup >/dev/null 2>&1 & pid=$!";
    let lines = format!("$(wc -l 2>/dev/null <{journal} || echo 0)");
    let cut = || {
        m.sh(&format!(
            "{run}; until [ \"{lines}\" -ge 3 ]; do [ -d /proc/$pid ] || exit 1; done; kill -KILL $pid"
        ));
        // What was asked of the engine is done a little later.
        let killed = Instant::now();
        while held.states() == ["running", "running"] {
            if killed.elapsed() > Duration::from_secs(10) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    };
    // On a busy machine the kill may come before the first hold is asked for, or after the end.
    let mut tries = 1;
    while !cut() {
        assert!(tries < 10, "nothing was held in {tries} tries\n{}", m.log());
        m.sh("tars-backup recover").expect(0);
        tries += 1;
    }
    m.sh(&format!("test -s {journal}")).expect(0);
    let before = m.committed();
    // The engine comes later: the unit tries again by itself.
    m.sh(&format!("sed -i 's#{socket}#/run/late.sock#' {journal}")).expect(0);
    assert_ne!(m.sh(&format!("systemctl start {RECOVER}")).code, 0);
    m.sh(&format!("test -s {journal}")).expect(0);
    m.sh(&format!("ln -s {socket} /run/late.sock")).expect(0);
    held.until_running("after the power cut", &m);
    m.wait(&format!("test ! -e {journal}"));
    assert_eq!(m.committed(), before);
    m.start().expect(0);
    assert_eq!(held.states(), ["running", "running"]);
    m.assert_nothing_runs_and_nothing_is_left();
}
