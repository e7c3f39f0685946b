//! The units at work, inside their sandboxes, on machines that run systemd: the whole stack to three kinds of stores and
//! back, timers and tiers, what hangs, what is killed, who is told, and what `status` says of it. Needs root and the
//! laboratory (tests/lab). `TARS_BACKUP_DEB` names a package; without it, it is built.

#![allow(clippy::unwrap_used)]

#[path = "support/beside.rs"]
mod beside;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::time::{Duration, Instant};

use beside::{Beside, Stack, docker, socket_dir, volumes};
use machine::{CONFIG, Machine, RECOVER, UNIT, engine};
use serde_json::Value;
use servers::{BUCKET, KEY, KEY_ID, S3Server, S3sFs, Sshd};
use support::{run, sh};

fn unlike(m: &Machine, secret: &str, what: &str) {
    let text = m.sh(what);
    assert!(!text.stdout.contains(secret) && !text.stderr.contains(secret), "{what} shows a secret");
}

#[test]
fn the_whole_stack_goes_to_three_stores_and_back_in_the_sandbox_of_debian_12() {
    the_whole_stack_goes_to_three_stores_and_back("12");
}

#[test]
fn the_whole_stack_goes_to_three_stores_and_back_in_the_sandbox_of_debian_13() {
    the_whole_stack_goes_to_three_stores_and_back("13");
}

fn the_whole_stack_goes_to_three_stores_and_back(release: &str) {
    let stack = Stack::up(release, "postgres redis chromadb backend");
    let (s3, ssh) = (S3sFs::start(), Sshd::start());
    let m = Beside::up(release);
    stack.sql("create table notes (id int primary key, text text); insert into notes values (1, 'one')");
    stack.redis(&["set", "key", "value"]);
    // A database whose log of writes is open: in a sandbox its directory must be writable, or it cannot be read.
    let database = tempfile::tempdir().unwrap();
    let file = database.path().join("app.db");
    sh(&format!(
        "sqlite3 '{0}' 'pragma journal_mode = wal; create table t (n); insert into t values (41)' >/dev/null",
        file.display()
    ));
    m.sh("mkdir -p /srv/app /mnt/nas").expect(0);
    m.put(&file, "/srv/app/app.db");
    m.put(&ssh.file("user"), "/etc/tars-backup/ssh-key");
    m.put(&ssh.file("known_hosts"), "/etc/tars-backup/known_hosts");
    m.sh("chmod 600 /etc/tars-backup/ssh-key; chown -R root: /etc/tars-backup /srv").expect(0);

    // Written by init; what it cannot know stands in conf.d.
    let project = format!("{}deploy", stack.prefix);
    let docker_host = format!("DOCKER_HOST='{}'", engine());
    m.sh(&format!("{docker_host} tars-backup init --project '{project}' --store /mnt/nas/backups")).expect(0);
    m.sh("tars-backup config check").expect(0).says("is good");
    let store = m.out("sed -n 's/^\\[stores\\.\\(.*\\)\\]/\\1/p' /etc/tars-backup/config.toml");
    // One is kept, so that there is something to prune.
    m.sh("sed -i 's/^keep = .*/keep = { last = 1, min = 1 }/' /etc/tars-backup/config.toml").expect(0);
    m.sh(&format!(
        "mkdir -p /etc/tars-backup/conf.d; cat >/etc/tars-backup/conf.d/more.toml <<'END'
[encryption]
recipients = [{:?}]
[sources.documents]
type = \"directory\"
path = \"/srv/documents\"
[sources.app]
type = \"sqlite\"
path = \"/srv/app/app.db\"
[stores.bucket]
type = \"s3\"
bucket = {BUCKET:?}
endpoint = {:?}
key_id = {{ credential = \"bucket-id\" }}
key = {{ credential = \"bucket-key\" }}
[stores.server]
type = \"sftp\"
host = \"127.0.0.1\"
port = {}
user = {:?}
path = {:?}
key = {{ file = \"/etc/tars-backup/ssh-key\" }}
known_hosts = \"/etc/tars-backup/known_hosts\"
[tiers.hot]
stores = [{store:?}, \"bucket\", \"server\"]
trash_days = 0
END",
        recipient(&m),
        s3.endpoint(),
        ssh.port(),
        Sshd::user(),
        ssh.root().join("backups"),
    ))
    .expect(0);
    m.sh(&format!(
        "mkdir -p -m 700 /etc/credstore /etc/credstore.encrypted
         printf %s '{KEY_ID}' | install -m 600 /dev/stdin /etc/credstore/bucket-id
         printf %s '{KEY}' | systemd-creds encrypt --with-key=host --name=bucket-key - /etc/credstore.encrypted/bucket-key"
    ))
    .expect(0);
    m.sh(&format!("for s in {store} bucket server; do tars-backup store init $s; done")).expect(0);

    // Before systemd was told: the store is written (a usual place); then exactly these paths.
    let applied = m.sh("tars-backup config apply").expect(0);
    assert!(applied.stdout.contains("tars-backup-restore@.service.d/50-config.conf"), "{applied:?}");
    m.sh("tars-backup config apply").expect(0).says("knows this configuration already");
    let units = "tars-backup.service tars-backup@hot.service tars-backup-sync.service tars-backup-verify.service tars-backup-recover.service tars-backup-restore@postgres.service tars-backup-drill.service";
    for unit in units.split(' ') {
        let exposure = m.out(&format!("systemd-analyze security --no-pager {unit} | tail -n 1"));
        let score: f64 = exposure.split_whitespace().find_map(|w| w.parse().ok()).unwrap();
        assert!(score <= 2.5, "{unit}: {exposure}");
    }
    assert_eq!(m.out(&format!("systemd-analyze verify --man=no {units} 2>&1")), "");
    m.sh("cd /etc/systemd/system; ! grep -r 'ReadWritePaths=.*/srv/documents' tars-backup.service.d")
        .expect(0);

    for _ in 0..3 {
        m.start().expect(0);
        assert_eq!(m.show("Result"), "success", "{}", m.log());
    }
    let rows: Value = serde_json::from_str(&m.out("tars-backup list --json")).unwrap();
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    assert_eq!(
        (&rows[0]["state"], rows[0]["stores"].as_array().map(Vec::len)),
        (&"complete".into(), Some(3))
    );
    for store in [store.as_str(), "bucket", "server"] {
        let gone = m.entries(&format!("TARS_BACKUP_EVENT=prune.deleted TARS_BACKUP_STORE={store}"));
        assert!(!gone.is_empty(), "nothing was deleted in {store}\n{}", m.log());
    }
    for unit in ["tars-backup-verify.service", "tars-backup-sync.service", RECOVER] {
        m.sh(&format!("systemctl start {unit}")).expect(0);
    }
    let status = m.sh("tars-backup status --json").expect(0).json();
    assert_eq!(status["healthy"], true, "{status}");
    let of_app = status["components"].as_array().unwrap().iter().filter(|c| c["component"] == "app").count();
    assert_eq!(of_app, 3, "{status}");

    // Secrets: handed over by systemd, and seen nowhere.
    for what in [
        &format!("systemctl show {UNIT}; systemctl cat {UNIT}"),
        "journalctl --no-pager -o json --all",
        "tars-backup config show --json; tars-backup status --json",
        "cat /etc/systemd/system/tars-backup*/*",
    ] {
        unlike(&m, KEY, what);
    }
    m.sh("useradd -r somebody; ! setpriv --reuid somebody --clear-groups cat /etc/credstore/bucket-id")
        .expect(0);
    // Typed by root, the same credential is found.
    m.sh("tars-backup store check bucket").expect(0);

    // A database and a directory come back by their units.
    stack.sql("drop table notes");
    m.sh("echo changed >/srv/documents/one; rm /srv/documents/deep/two").expect(0);
    m.sh("systemctl start tars-backup-restore@postgres.service").expect(0);
    assert_eq!(stack.sql("select text from notes"), "one", "{}", m.log());
    m.sh("systemctl start tars-backup-restore@documents.service").expect(0);
    assert_eq!(m.out("cat /srv/documents/one /srv/documents/deep/two"), "one\ntwo");
    // A volume of the engine, with its owner.
    stack.redis(&["set", "key", "other"]);
    m.sh("systemctl start tars-backup-restore@redis.service").expect(0);
    assert_eq!(stack.redis(&["get", "key"]), "value");
    m.sh("systemctl start tars-backup-restore@app.service").expect(0);
    assert_eq!(docker(&["inspect", "-f", "{{.State.Status}}", &stack.container("backend")]), "running");
    assert_eq!(
        m.out("find /var/lib/tars-backup/staging /mnt/nas -name '.tars-backup-tmp-*' -o -path '*/staging/*'"),
        ""
    );
    drills_in_its_sandbox(&m, &stack);
    // The catalog explains what the journal says.
    m.sh("journalctl -x --no-pager TARS_BACKUP_EVENT=backup.committed")
        .expect(0)
        .says("Defined-By: tars-backup");
}

/// The timer drills nothing before an identity is configured; then all of it comes back out of the sealed copy, and nothing
/// live notices.
fn drills_in_its_sandbox(m: &Machine, stack: &Stack) {
    let drill = "tars-backup-drill.service";
    m.sh(&format!("systemctl start {drill}")).expect(0);
    assert_eq!(m.entries(&format!("-u {drill} TARS_BACKUP_EVENT=drill.started")).len(), 0, "{}", m.log());
    m.sh("systemd-creds encrypt --with-key=host --name=identity /root/key.txt /etc/credstore.encrypted/identity
         printf '[encryption]\nidentity = { credential = \"identity\" }\n' >/etc/tars-backup/conf.d/identity.toml
         tars-backup config apply")
        .expect(0);
    let by_name =
        "ExecStart=/usr/bin/tars-backup drill --latest --if-identity --unless-held --wait 12h --from bucket";
    m.drop_in(drill, &format!("[Service]\nExecStart=\n{by_name}\n"));
    let started = |name: &str| docker(&["inspect", "-f", "{{.State.StartedAt}}", &stack.container(name)]);
    let lives = || ["postgres", "redis", "chromadb", "backend"].map(started);
    let before = lives();
    let done = m.sh(&format!("systemctl start {drill}"));
    assert_eq!(done.code, 0, "{}", m.log());
    assert_eq!(lives(), before);
    let good = m.entries(&format!("-u {drill} TARS_BACKUP_EVENT=drill.good"));
    assert_eq!((good.len(), good[0]["TARS_BACKUP_STORE"].as_str()), (1, Some("bucket")), "{}", m.log());
    let status = m.sh("tars-backup status --json").expect(0).json();
    let of = |component: &str| {
        let all = status["components"].as_array().unwrap();
        all.iter().find(|c| c["component"] == component && c["store"] == "bucket").unwrap().clone()
    };
    for component in ["postgres", "redis", "chromadb", "documents", "app"] {
        assert!(of(component)["drilled"]["time"].is_string(), "{component}: {status}");
    }
    assert_eq!(m.out("find /var/lib/tars-backup/staging -mindepth 1"), "");
}

/// A new key of the machine; its recipient.
fn recipient(m: &Machine) -> String {
    m.out("tars-backup key new --output /root/key.txt >/dev/null; grep -o 'age1[0-9a-z]*' /root/key.txt")
}

#[test]
fn what_hangs_is_ended_by_the_start_timeout() {
    let m = Machine::ready("12", CONFIG);
    m.sh("mkdir -p /run/systemd/system/tars-backup.service.d
         printf '[Service]\\nTimeoutStartSec=5s\\n' >/run/systemd/system/tars-backup.service.d/time.conf
         systemctl daemon-reload")
        .expect(0);
    // Both take connections, and say nothing for ever.
    m.sh(
        "systemd-run --unit frozen-engine perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un(\"/run/frozen.sock\")) or die; listen(S, 50); sleep'
         systemd-run --unit hung-store perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0); bind(S, sockaddr_in(9000, INADDR_LOOPBACK)) or die; listen(S, 50); sleep'",
    )
    .expect(0);
    m.wait("test -S /run/frozen.sock");
    m.sh("mkdir -p /var/lib/tars-backup/staging").expect(0);

    m.configure(&format!(
        "[docker]\nsocket = \"/run/frozen.sock\"\n[sources.pg]\ntype = \"postgres\"\ncontainer = \"pg\"\n{}",
        CONFIG.replace("type = \"directory\"", "type = \"directory\"\nmode = \"inventory\"")
    ));
    assert_ended_by_timeout(&m);

    m.configure(&format!(
        "{}[stores.far]\ntype = \"s3\"\nbucket = \"far-away\"\nendpoint = \"http://127.0.0.1:9000\"\nkey_id = {{ file = \"/root/key\" }}\nkey = {{ file = \"/root/key\" }}\n",
        CONFIG.replace("[\"local\"]", "[\"far\"]")
    ));
    m.sh("echo secret >/root/key").expect(0);
    assert_ended_by_timeout(&m);
}

/// Longer than the unit waits, and never silent for long: it is given the time, and tells meanwhile what it does.
#[test]
fn what_is_slow_and_moves_is_not_ended() {
    let slow = "for i in $(seq 30); do head -c 300000 /dev/urandom; sleep 0.4; done";
    let m = Machine::ready(
        "13",
        &format!("{CONFIG}[sources.slow]\ntype = \"command\"\ncommand = [\"sh\", \"-c\", {slow:?}]\n"),
    );
    m.drop_in("tars-backup.service", "[Service]\nTimeoutStartSec=5s\n");
    let started = Instant::now();
    let run = m.spawn("systemctl start tars-backup.service");
    // While it starts, the status of `systemctl status` itself is 3.
    m.wait("(systemctl status tars-backup.service || true) | grep -E 'Status: .*[0-9] MiB'");
    assert_eq!(m.show("ActiveState"), "activating");
    assert_eq!(machine::ended(run), 0, "{}", m.log());
    assert!(started.elapsed() > Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!((m.show("Result"), m.committed()), ("success".into(), 1));
    m.assert_nothing_runs_and_nothing_is_left();
}

#[track_caller]
fn assert_ended_by_timeout(m: &Machine) {
    let started = Instant::now();
    assert_ne!(m.start().code, 0);
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
    assert_eq!(m.show("Result"), "timeout", "{}", m.log());
    assert_eq!(m.committed(), 0);
    m.assert_nothing_runs_and_nothing_is_left();
}

#[test]
fn two_tiers_of_one_minute_wait_for_each_other_and_an_absent_one_is_no_failure() {
    let m = Machine::ready(
        "13",
        &format!("{CONFIG}[tiers.warm]\nstores = [\"local\"]\npath = \"weekly\"\n{}", machine::GATE),
    );
    let [hot, warm] =
        ["hot", "warm"].map(|tier| m.spawn(&format!("systemctl start tars-backup@{tier}.service")));
    m.wait("pgrep -f '[u]ntil . -e /run/go'");
    m.wait("journalctl --sync; journalctl TARS_BACKUP_EVENT=lock.waiting -o cat | grep -c 'Waiting for another run'");
    m.sh("touch /run/go").expect(0);
    assert_eq!((machine::ended(hot), machine::ended(warm)), (0, 0));
    assert_eq!(
        m.out("ls /srv/backups/daily/*.manifest.json /srv/backups/weekly/*.manifest.json | wc -l"),
        "2"
    );

    m.sh("systemctl start tars-backup@cold.service").expect(0);
    let absent = m.entries("TARS_BACKUP_EVENT=tier.absent TARS_BACKUP_TIER=cold");
    assert_eq!(absent.len(), 1, "{absent:?}");
    assert_eq!(absent[0]["PRIORITY"], "5");
    m.sh("tars-backup backup --tier cold").expect(78);
    assert_eq!(m.out("systemctl --failed --no-legend"), "");
}

/// A tier of one's own gets a timer by `config apply`, which fires; and loses it again.
#[test]
fn a_schedule_of_the_configuration_becomes_a_timer_that_fires() {
    let m = Machine::ready("12", CONFIG);
    let often = "[tiers.often]\nstores = [\"local\"]\npath = \"often\"\nschedule = \"*:*:0/10\"\n";
    m.configure(&format!("{CONFIG}schedule = \"*-*-* 04:44\"\n{often}"));
    m.sh("tars-backup config apply --dry-run").expect(0).says("would write");
    m.sh("test ! -e /etc/systemd/system/tars-backup@often.timer").expect(0);
    let status = m.sh("tars-backup status --json").expect(1).json();
    assert!(status["warnings"].to_string().contains("tars-backup config apply"), "{status}");
    m.sh("tars-backup config apply").expect(0);
    m.wait("ls /srv/backups/often/*.manifest.json");
    let next = m.out("systemctl show -p NextElapseUSecRealtime --value tars-backup@hot.timer");
    assert!(next.contains("04:44:"), "{next}");
    let status = m.sh("tars-backup status --json").json();
    let hot = &status["tiers"][0];
    assert_eq!((&hot["tier"], &hot["schedule"]), (&"hot".into(), &"*-*-* 04:44".into()), "{status}");
    assert!(hot["next_run"].is_string(), "{status}");

    m.configure(&format!("{CONFIG}schedule = \"*-13-* 04:44\"\n"));
    m.sh("tars-backup config apply").expect(78).says("tier hot: schedule \"*-13-* 04:44\"");
    m.sh("test -e /etc/systemd/system/tars-backup@often.timer").expect(0);
    m.configure(CONFIG);
    m.sh("tars-backup config apply").expect(0).says("removed");
    m.sh("test ! -e /etc/systemd/system/tars-backup@often.timer").expect(0);
    assert_ne!(m.sh("systemctl is-active tars-backup@often.timer").code, 0);
    let next = m.out("systemctl show -p NextElapseUSecRealtime --value tars-backup@hot.timer");
    assert!(next.contains("02:00:"), "{next}");
}

#[test]
fn a_failure_is_told_by_the_command_of_the_operator_and_by_status() {
    let m = Machine::ready("12", CONFIG);
    m.sh("tars-backup status").expect(1).says("there is no good backup of hot in local");
    m.start().expect(0);
    m.sh("tars-backup status").expect(0).says("healthy");
    m.sh("systemctl start tars-backup-failed@tars-backup.service.service").expect(0);

    let hook = "[hooks]\non_failure = [\"sh\", \"-c\", \"env >/var/lib/tars-backup/told\"]\n";
    let failing = "[sources.extra]\ntype = \"command\"\ncommand = [\"sh\", \"-c\", \"echo no luck >&2; exit 7\"]\ncritical = false\n";
    m.configure(&format!("{CONFIG}{hook}{failing}"));
    // While it is being told, another failure would be taken for the same.
    let told = "systemctl show -p ActiveState --value tars-backup-failed@tars-backup.service.service | grep -cx inactive";
    assert_ne!(m.start().code, 0);
    m.wait("grep -qx TARS_BACKUP_UNIT=tars-backup.service /var/lib/tars-backup/told");
    m.sh("grep -qx MONITOR_EXIT_STATUS=2 /var/lib/tars-backup/told").expect(0);
    m.wait("journalctl --sync; journalctl TARS_BACKUP_EVENT=hook.run -o cat | grep -c 'tars-backup.service has failed'");
    m.sh("tars-backup status").expect(1).says("ended with status 2").says("no luck").says("hint:");
    m.wait(told);
    // Told also where the configuration itself is what is wrong.
    m.sh("rm /var/lib/tars-backup/told").expect(0);
    m.configure(&format!("{CONFIG}{hook}typo = 1\n[agent]\ntypo = 1\n"));
    assert_ne!(m.start().code, 0);
    m.wait("grep -qx MONITOR_EXIT_STATUS=78 /var/lib/tars-backup/told");
    m.wait(told);
    // One that fails is told in the journal.
    m.configure(&format!("{CONFIG}{}{failing}", hook.replace("env >", "exit 3; ")));
    assert_ne!(m.start().code, 0);
    m.wait(
        "journalctl --sync; journalctl TARS_BACKUP_EVENT=hook.failed -o cat | grep -c 'ended with status 3'",
    );

    m.configure(CONFIG);
    m.start().expect(0);
    m.sh("tars-backup status").expect(0);
    m.sh("mv /srv/backups /srv/away").expect(0);
    m.sh("tars-backup status").expect(1).says("local").says("hint:");
}

/// A broken-off restore found by a run whose sandbox lets nothing be put back.
#[test]
fn a_broken_off_restore_is_handed_over_to_the_unit_that_may_put_it_right() {
    let m = Machine::ready("12", CONFIG);
    m.sh("head -c 300M /dev/urandom >/srv/documents/large").expect(0);
    m.sh("tars-backup config apply").expect(0);
    m.start().expect(0);
    let before = m.out("cd /srv/documents; find . -type f -print0 | sort -z | xargs -0 sha256sum");
    let journal = "/var/lib/tars-backup/run.journal";
    m.sh(&format!(
        "setsid env TARS_BACKUP_GUARDIAN=no tars-backup restore --latest --component documents --yes >/dev/null 2>&1 & pid=$!
         until grep -Eqs 'scratch|change' {journal}; do [ -d /proc/$pid ] || exit 1; done; kill -KILL $pid"
    ))
    .expect(0);
    m.sh(&format!("test -s {journal}")).expect(0);
    let left = m.sh("tars-backup status").expect(1);
    assert!(left.stdout.contains("tars-backup recover"), "{left:?}");

    assert_ne!(m.start().code, 0);
    assert!(m.log().contains("tars-backup-recover.service is putting it right"), "{}", m.log());
    m.wait(&format!("test ! -e {journal}"));
    assert_eq!(m.out("cd /srv/documents; find . -type f -print0 | sort -z | xargs -0 sha256sum"), before);
    assert_eq!(m.out("find /srv -maxdepth 1 -name '.*' ! -name ."), "", "nothing is left beside it");
    m.wait(&format!("systemctl show -p ActiveState --value {RECOVER} | grep -cx inactive"));
    m.start().expect(0);
    assert_eq!(m.committed(), 2);
}

/// The machine goes down in the middle of a run, without a word; the engine keeps what it was told.
#[test]
fn after_a_reboot_in_the_middle_of_a_run_the_stack_is_up_again() {
    let name = format!("tars-units-{}-held", std::process::id());
    let held = Held::up(&name);
    // Read only: what cannot write is no writer.
    let (socket, volumes) = (socket_dir(), volumes());
    let flags = [format!("{socket}:{socket}"), format!("{volumes}:{volumes}:ro")];
    let m = Machine::installed_with("12", &["-v", &flags[0], "-v", &flags[1]]);
    m.configure(&format!(
        "[docker]\nsocket = {:?}\n{CONFIG}[sources.held]\ntype = \"volume\"\nvolume = {name:?}\nconsistency = \"stop\"\n",
        engine()
    ));
    m.sh("tars-backup store init local; tars-backup config apply").expect(0);
    let stopped = |state: &str| docker(&["inspect", "-f", "{{.State.Status}}", &held.0]) == state;
    // Until the moment is met: the hold lasts for as long as 200 MB take to read.
    let started = Instant::now();
    loop {
        let backup = m.spawn(&format!("systemctl start {UNIT}"));
        let run = Instant::now();
        while !stopped("exited") && run.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        if stopped("exited") {
            docker(&["kill", &m.name]);
        }
        machine::ended(backup);
        if stopped("exited") {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "the moment was not met\n{}", m.log());
        docker(&["start", &m.name]);
        m.wait("systemctl is-system-running | grep -Ec 'running|degraded'");
    }
    docker(&["start", &m.name]);
    let started = Instant::now();
    while !stopped("running") {
        assert!(started.elapsed() < Duration::from_secs(120), "{}", m.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    m.wait("test ! -e /var/lib/tars-backup/run.journal");
    m.start().expect(0);
    m.assert_nothing_runs_and_nothing_is_left();
}

/// A container with a volume that is worth reading; both go when the test ends.
struct Held(String);

impl Held {
    fn up(name: &str) -> Self {
        docker(&["volume", "create", "--label", "tars-lab=test", name]);
        let dir = docker(&["volume", "inspect", "-f", "{{.Mountpoint}}", name]);
        sh(&format!("head -c 200M /dev/urandom >'{dir}/noise'"));
        let mount = format!("{name}:/data");
        let run = ["run", "-d", "--name", name, "--label", "tars-lab=test", "--network", "none"];
        let how = ["--stop-signal", "KILL", "--restart", "unless-stopped", "-v", &mount];
        docker(&[&run[..], &how, &["redis:7-alpine", "sleep", "infinity"]].concat());
        Self(name.to_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        run("docker", &["-H", engine(), "rm", "-f", "-v", &self.0]);
        run("docker", &["-H", engine(), "volume", "rm", &self.0]);
    }
}
