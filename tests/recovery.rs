//! Recovery from nothing: a machine that has only the paper and the bucket gets everything back by following the paper. And
//! what could go wrong on the way: originals that somebody else sealed, a kill in the middle, timers that run too early, keys
//! that are seen. Needs root and the laboratory (tests/lab). `TARS_BACKUP_DEB` names a package; without it, it is built.

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

use beside::{Beside, Stack, docker};
use machine::{Machine, engine};
use servers::{BUCKET, KEY, KEY_ID, S3Server, S3sFs};
use support::{Done, run, sh};

const PASSWORD: &str = "correct-horse-battery-9";

/// A configuration of files, directories and secrets, with its backups in a directory.
const FILES: &str = r#"
[sources.configuration]
type = "config_files"
files = ["/opt/stack/.env", "/opt/stack/deploy/docker-compose.yml"]
[sources.documents]
type = "directory"
path = "/srv/documents"
[sources.told]
type = "command"
command = ["echo", "x"]
[sources.told.secret]
credential = "told-secret"
[stores.local]
type = "fs"
path = "/srv/backups"
[tiers.hot]
stores = ["local"]
path = "daily"
"#;

/// The machine of [`FILES`] with one backup, sealed for /root/key.txt; `more` is added to its configuration, after `prepare`.
fn backed_up(prepare: &str, more: &str) -> Machine {
    let m = Machine::installed("12");
    let recipient =
        m.out("tars-backup key new --output /root/key.txt 2>&1 | grep -o 'age1[0-9a-z]*' | head -n 1");
    m.sh(&format!(
        "mkdir -p /opt/stack/deploy; printf 'PASSWORD={PASSWORD}\\nPORT=80\\n' >/opt/stack/.env; chmod 640 /opt/stack/.env
         chown 1234:4321 /opt/stack/.env; echo 'services: {{}}' >/opt/stack/deploy/docker-compose.yml
         mkdir -p -m 700 /etc/credstore; printf told-by-systemd-0815 | install -m 600 /dev/stdin /etc/credstore/told-secret
         {prepare}"
    ))
    .expect(0);
    m.configure(&format!("{FILES}{more}\n[encryption]\nrecipients = [\"{recipient}\"]\n"));
    m.sh("chmod 600 /etc/tars-backup/config.toml; tars-backup store init local").expect(0);
    m.sh("tars-backup backup").expect(0);
    m
}

/// As if it were new, but for the store and the key.
fn wipe(m: &Machine) {
    m.sh("rm -rf /etc/tars-backup /var/lib/tars-backup /opt/stack /etc/credstore /etc/credstore.encrypted")
        .expect(0);
}

const RESTORE: &str = "tars-backup restore --latest --from file:///srv/backups --component configuration --restore-config --identity /root/key.txt";

/// Everything that a restore could have touched.
fn picture(m: &Machine) -> String {
    m.out("find /etc /opt /root /srv /usr/local /var/spool /home -xdev -type f -printf '%p %m %U:%G %s %T@\\n' -o -xdev -printf '%p %m %l\\n' | grep -v '^/etc/credstore.encrypted 700' | sort")
}

#[test]
fn what_would_lie_outside_is_refused_before_anything_is_written() {
    // A backup of somebody who wants more than his stack: a file of the system, and a credential that systemd acts on.
    let hostile = "[sources.more]\ntype = \"command\"\ncommand = [\"echo\", \"x\"]\nsecret = { file = \"/etc/cron.d/evil\" }\n\
                   [sources.boot]\ntype = \"command\"\ncommand = [\"echo\", \"x\"]\nsecret = { credential = \"tmpfiles.extra\" }\n";
    let m = backed_up(
        "mkdir -p /etc/cron.d; echo evil-evil-evil >/etc/cron.d/evil; cp /etc/cron.d/evil /etc/credstore/tmpfiles.extra",
        &format!("[agent]\nstate_dir = \"/srv/state\"\n{hostile}"),
    );
    wipe(&m);
    m.sh("rm -rf /etc/cron.d/evil /srv/state").expect(0);
    let before = picture(&m);
    for named in ["", "--below /opt/stack"] {
        let refused = m.sh(&format!("{RESTORE} {named} --yes"));
        assert_eq!(refused.code, 1, "{refused:?}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        for outside in ["/etc/cron.d/evil", "tmpfiles.extra"] {
            assert!(said.contains(outside), "{said}");
        }
        assert_eq!(said.contains("--below /opt/stack"), named.is_empty(), "{said}");
        assert!(!said.contains("evil-evil-evil") && !said.contains(PASSWORD), "{said}");
        assert_eq!(picture(&m), before);
        m.sh("test ! -e /var/lib/tars-backup/held.json").expect(0);
    }
    for dir in ["/etc", "/", "/root/.ssh"] {
        m.sh(&format!("{RESTORE} --below {dir} --yes")).expect(64).says("belongs to the system");
    }
    // A link on the way leads somewhere else.
    m.sh("mkdir /opt/stack; ln -s /etc/cron.d /opt/stack/deploy").expect(0);
    let linked = m.sh(&format!("{RESTORE} --below /opt/stack --allow-partial --yes"));
    assert_eq!(linked.code, 1, "{linked:?}");
    assert_eq!(m.out("find /etc/cron.d -name '*compose*'; ls -A /opt/stack"), "deploy");
    m.sh("rm -r /opt/stack").expect(0);
    // Without what is of the system it comes back, and says what it lacks.
    let left_out = m.sh(&format!("{RESTORE} --below /opt/stack --allow-partial --yes"));
    assert_eq!(left_out.code, 2, "{left_out:?}");
    m.sh("test -e /opt/stack/.env -a ! -e /etc/cron.d/evil -a ! -e /etc/credstore.encrypted/tmpfiles.extra -a ! -e /srv/state").expect(0);
    m.sh("systemd-creds decrypt --name=told-secret /etc/credstore.encrypted/told-secret - | grep -qx told-by-systemd-0815").expect(0);
}

#[test]
fn what_is_missing_is_told_with_what_to_do() {
    let m = backed_up("", "");
    wipe(&m);
    let bare = RESTORE.replace(" --identity /root/key.txt", "");
    m.sh(&format!("{bare} --yes")).expect(1).says("--identity FILE");
    m.sh(&format!("{} --yes", RESTORE.replace(" --restore-config", ""))).expect(78).says("tars-backup init");
    m.sh(&format!("{} --yes", RESTORE.replace("configuration ", "documents ")))
        .expect(1)
        .says("only the configuration");
    m.sh(&format!("{RESTORE} </dev/null")).expect(64).says("nobody is there to confirm");
    m.sh(&format!("{RESTORE} --yes")).expect(1).says("--below /opt/stack");
    // The plan shows every path, and changes nothing.
    let plan = m.sh(&format!("{RESTORE} --below /opt/stack --dry-run")).expect(0);
    for path in [
        "/opt/stack/.env",
        "/opt/stack/deploy/docker-compose.yml",
        "/etc/tars-backup/config.toml",
        "/etc/credstore.encrypted/told-secret",
        "the command of source told",
    ] {
        assert!(plan.stdout.contains(path), "{path}: {}", plan.stdout);
    }
    m.sh("test ! -e /etc/tars-backup/config.toml -a ! -e /opt/stack -a ! -e /var/lib/tars-backup/held.json")
        .expect(0);
}

/// Files, credentials and modes as they were; a machine that is held until somebody accepts it.
#[test]
fn a_bare_machine_is_held_until_it_is_accepted() {
    let m = backed_up("", "");
    let files = "cd /; stat -c '%n %a %u:%g %.9Y' opt/stack/.env opt/stack/deploy/docker-compose.yml etc/tars-backup/config.toml; sha256sum opt/stack/.env opt/stack/deploy/* etc/tars-backup/config.toml";
    let before = m.out(files);
    wipe(&m);
    m.sh(&format!("{RESTORE} --below /opt/stack --yes")).expect(0).says("tars-backup accept --host");
    assert_eq!(m.out(files), before);
    m.sh("systemd-creds decrypt --name=told-secret /etc/credstore.encrypted/told-secret - | grep -qx told-by-systemd-0815").expect(0);
    assert_eq!(m.out("stat -c %a /etc/credstore.encrypted/told-secret"), "600");
    m.sh("tars-backup config check").expect(0);
    m.sh("tars-backup config apply").expect(0);

    let committed = m.committed();
    for unit in ["tars-backup@hot.service", "tars-backup-sync.service", "tars-backup-verify.service"] {
        m.sh(&format!("systemctl start {unit}")).expect(0);
    }
    assert_eq!(m.committed(), committed);
    let told = m.entries("TARS_BACKUP_EVENT=host.held");
    assert!(told.len() >= 3, "{told:?}");
    for refused in ["backup", "sync", "prune --confirm"] {
        m.sh(&format!("tars-backup {refused}"))
            .expect(1)
            .says("is held until")
            .says("tars-backup accept --host");
    }
    m.sh("tars-backup prune").expect(0);
    m.sh("tars-backup backup --dry-run").expect(0);
    m.sh("tars-backup status").expect(1).says("its timers do nothing").says("tars-backup accept --host");
    m.sh("tars-backup accept --host").expect(0).says("is accepted");
    assert_eq!(m.entries("TARS_BACKUP_EVENT=host.accepted").len(), 0, "a shell is not in the journal");
    m.sh("tars-backup accept --host").expect(0).says("nothing to accept");
    m.sh("systemctl start tars-backup@hot.service").expect(0);
    assert_eq!(m.committed(), committed + 1);
    m.sh("tars-backup status").expect(0);
}

/// Nothing is named: what lay beside the Compose file comes back there, and what lay elsewhere is asked for.
#[test]
fn the_directory_of_the_compose_file_need_not_be_named() {
    let m = backed_up("mkdir -p /opt/stack/deploy; echo PORT=81 >/opt/stack/deploy/app.env", "");
    let files = FILES.replace("/opt/stack/.env", "/opt/stack/deploy/app.env");
    let recipient = m.out("sed -n 's/^# public key: //p' /root/key.txt");
    m.configure(&format!("{files}\n[encryption]\nrecipients = [\"{recipient}\"]\n"));
    m.sh("tars-backup backup").expect(0);
    wipe(&m);
    let plan = m.sh(&format!("{RESTORE} --dry-run")).expect(0);
    for path in
        ["/opt/stack/deploy/app.env", "/opt/stack/deploy/docker-compose.yml", "/etc/tars-backup/config.toml"]
    {
        assert!(plan.stdout.contains(path), "{path}: {}", plan.stdout);
    }
    m.sh(&format!("{RESTORE} --yes")).expect(0);
    assert_eq!(
        m.out("cat /opt/stack/deploy/app.env; ls /opt/stack/deploy"),
        "PORT=81\napp.env\ndocker-compose.yml"
    );
}

/// Killed at every line of the run journal: `recover` leaves nothing or all of it, and never a machine that is not held.
#[test]
fn a_bare_restore_that_is_killed_is_taken_back() {
    let m = backed_up("", "");
    wipe(&m);
    // Faster than a shell could look: all of it takes a moment only.
    let watch = r#"my ($pid, $lines) = @ARGV;
        while (-d "/proc/$pid") {
            open(my $journal, "<", "/var/lib/tars-backup/run.journal") or next;
            my $count = () = <$journal>;
            if ($count >= $lines) { print "killed\n" if kill KILL => $pid; last }
        }"#;
    let mut killed = 0;
    'lines: for lines in 1..40 {
        for attempt in 0.. {
            m.sh("rm -rf /etc/tars-backup /opt/stack /etc/credstore.encrypted/told-secret /var/lib/tars-backup/held.json").expect(0);
            let run = m.sh(&format!(
                "setsid env TARS_BACKUP_GUARDIAN=no {RESTORE} --below /opt/stack --yes >/dev/null 2>&1 & pid=$!
                 perl -e '{watch}' $pid {lines}; wait $pid || true"
            ));
            let was_killed = run.stdout.contains("killed");
            if was_killed {
                killed += 1;
                m.sh("test -e /var/lib/tars-backup/held.json").expect(0);
            }
            m.sh("tars-backup recover").expect(0);
            let there = m.out("for f in /etc/tars-backup/config.toml /opt/stack/.env /opt/stack/deploy/docker-compose.yml /etc/credstore.encrypted/told-secret; do test -e $f && echo $f || true; done | wc -l");
            assert!(there == "0" || there == "4", "{lines}: {there} of 4 are there");
            assert_eq!(m.out("find /etc /opt -name '.*tars*' -o -name '*.before-*' | wc -l"), "0", "{lines}");
            m.sh("test ! -e /var/lib/tars-backup/run.journal").expect(0);
            match (was_killed, attempt) {
                (true, _) => break,
                // The next line, or the end, may be there before the look; every run writes three.
                (false, attempt) if attempt < if lines <= 3 { 30 } else { 4 } => {}
                (false, _) => break 'lines,
            }
        }
    }
    assert!(killed >= 3, "{killed}");
}

/// What follows the words of the kit, step by step: title and commands.
fn steps_of(kit: &str) -> Vec<(String, String)> {
    let (_, commands) = kit.split_once("## Commands").unwrap();
    let mut steps = Vec::new();
    let mut title = String::new();
    for (number, part) in commands.split("```\n").enumerate() {
        if number % 2 == 0 {
            title = part.trim().lines().last().unwrap_or_default().to_owned();
        } else {
            steps.push((title.clone(), part.to_owned()));
        }
    }
    steps
}

const CHROMA: &str =
    "http://localhost:8000/api/v2/tenants/default_tenant/databases/default_database/collections";

/// On a busy machine a server now and then loses a request without a word, so all of ours may be said twice.
fn chroma(stack: &Stack, path: &str, body: &str) -> serde_json::Value {
    let url = format!("{CHROMA}{path}");
    let answer = docker(&[
        "exec",
        &stack.container("chromadb"),
        "curl",
        "-sf",
        "--max-time",
        "60",
        "--retry",
        "3",
        "-H",
        "content-type: application/json",
        "-d",
        body,
        &url,
    ]);
    serde_json::from_str(&answer).unwrap_or_default()
}

fn records(stack: &Stack, collection: &str) -> serde_json::Value {
    let (container, url) = (stack.container("chromadb"), format!("{CHROMA}/{collection}"));
    let id = docker(&["exec", &container, "curl", "-sf", "--max-time", "60", "--retry", "3", &url]);
    let id: serde_json::Value = serde_json::from_str(&id).unwrap();
    let id = id["id"].as_str().unwrap();
    let got =
        chroma(stack, &format!("/{id}/get"), r#"{"include": ["documents", "embeddings", "metadatas"]}"#);
    serde_json::json!([got["ids"], got["documents"], got["embeddings"], got["metadatas"]])
}

/// The stack as Compose itself makes it from a file of the machine; it goes with the test. The backend has no data that is
/// backed up, and depends on those that have.
struct Composed {
    stack: Stack,
    project: String,
}

impl Composed {
    fn new(name: &str) -> Self {
        engine();
        for images in ["services", "chroma"] {
            sh(&format!("'{}/tests/lab/images.sh' {images}", env!("CARGO_MANIFEST_DIR")));
        }
        let stack = Stack { prefix: format!("tars-units-{}-{name}-", std::process::id()) };
        Self { project: format!("{}deploy", stack.prefix), stack }
    }

    /// The Compose file: names of this test, no port of this machine.
    fn file(&self) -> String {
        let name = |service: &str| format!("container_name: {}", self.stack.container(service));
        format!(
            "version: \"2.4\"
services:
  postgres:
    image: postgres:15-alpine
    {}
    restart: unless-stopped
    stop_signal: SIGINT
    environment: {{POSTGRES_USER: tars, POSTGRES_DB: tars_home, POSTGRES_PASSWORD: \"${{POSTGRES_PASSWORD}}\"}}
    volumes: [\"postgres_data:/var/lib/postgresql/data\"]
  redis:
    image: redis:7-alpine
    {}
    restart: unless-stopped
    command: redis-server --appendonly yes
    volumes: [\"redis_data:/data\"]
  chromadb:
    image: chromadb/chroma:latest
    {}
    restart: unless-stopped
    command: run --host 0.0.0.0 --port 8000 --path /chroma/chroma
    volumes: [\"chroma_data:/chroma/chroma\"]
  backend:
    image: tars-backend:v1.0.10-home
    {}
    restart: unless-stopped
    depends_on: [postgres, redis, chromadb]
volumes: {{postgres_data: , redis_data: , chroma_data: }}
",
            name("postgres"),
            name("redis"),
            name("chromadb"),
            name("backend"),
        )
    }

    fn state(&self, service: &str) -> String {
        docker(&["inspect", "-f", "{{.State.Status}} {{.State.StartedAt}}", &self.stack.container(service)])
    }

    /// What `docker compose down --volumes` removes.
    fn down(&self) {
        let of_it = format!("label=com.docker.compose.project={}", self.project);
        for (list, remove) in [
            (["ps", "-aq"], &["rm", "-f", "-v"][..]),
            (["volume", "ls"], &["volume", "rm"]),
            (["network", "ls"], &["network", "rm"]),
        ] {
            let found =
                docker(&[&list[..], &["-q", "--filter", &of_it][usize::from(list[0] == "ps")..]].concat());
            for id in found.lines() {
                docker(&[remove, &[id]].concat());
            }
        }
    }
}

impl Drop for Composed {
    fn drop(&mut self) {
        self.down();
    }
}

/// Until its servers answer.
#[track_caller]
fn until_up(stack: &Stack) {
    let probes: [(&str, &[&str]); 3] = [
        ("postgres", &["pg_isready", "-q", "-h", "127.0.0.1", "-U", "tars", "-d", "tars_home"]),
        ("redis", &["redis-cli", "get", "x"]),
        ("chromadb", &["curl", "-sf", "http://localhost:8000/api/v2/heartbeat"]),
    ];
    for (service, probe) in probes {
        let deadline = Instant::now() + Duration::from_secs(240);
        let container = stack.container(service);
        while run("docker", &[&["-H", engine(), "exec", &container], probe].concat()).code != 0 {
            assert!(Instant::now() < deadline, "{container} does not answer");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The engine where Compose looks for it.
fn engine_at_its_place(m: &Machine) {
    m.sh(&format!("ln -sfn '{}' /var/run/docker.sock", engine().trim_start_matches("unix://"))).expect(0);
}

#[test]
fn the_whole_walk_from_paper_and_bucket_alone() {
    let s3 = S3sFs::start();
    let composed = Composed::new("walk");
    let (stack, project) = (&composed.stack, &composed.project);

    // The first machine.
    let old = Beside::bare("12", "tars-old");
    engine_at_its_place(&old);
    let compose = composed.file();
    old.sh(&format!(
        "mkdir -p /opt/tars-home/deploy; printf 'POSTGRES_PASSWORD={PASSWORD}\\n' >/opt/tars-home/deploy/tars-home.env; chmod 640 /opt/tars-home/deploy/tars-home.env
         chown 1000:1000 /opt/tars-home/deploy/tars-home.env
         cat >/opt/tars-home/deploy/docker-compose.home.yml <<'END'\n{compose}END\n"
    ))
    .expect(0);
    old.sh(&format!("cd /opt/tars-home/deploy; docker-compose -p '{project}' --env-file tars-home.env -f docker-compose.home.yml up -d")).expect(0);
    until_up(stack);
    stack.sql("create table notes (id int primary key, text text); insert into notes select g, 'note ' || g from generate_series(1, 500) g");
    stack.redis(&["set", "key", "value"]);
    stack.redis(&["hset", "hash", "a", "1", "b", "2"]);
    let made = chroma(stack, "", r#"{"name": "memories", "get_or_create": true}"#);
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
    chroma(
        stack,
        &format!("/{id}/add"),
        r#"{"ids": ["one", "two"], "embeddings": [[1.5, 2, 3], [4, 5, 6.25]], "documents": ["first", "second"], "metadatas": [{"n": 1}, {"n": 2}]}"#,
    );
    let data = || {
        (
            stack.sql("select count(*), md5(string_agg(id || text, ',' order by id)) from notes"),
            stack.redis(&["get", "key"]) + &stack.redis(&["hget", "hash", "b"]),
            records(stack, "memories"),
        )
    };
    let wanted = data();

    let kit;
    let files = "cd /; stat -c '%n %a %u:%g' opt/tars-home/deploy/tars-home.env opt/tars-home/deploy/docker-compose.home.yml etc/tars-backup/config.toml; sha256sum opt/tars-home/deploy/* etc/tars-backup/config.toml";
    let files_wanted;
    let machine_id;
    {
        let m = old;
        m.put(std::path::Path::new(machine::package()), &format!("/root/{}", deb_name()));
        m.sh(&format!("dpkg -i /root/{}", deb_name())).expect(0);
        machine_id = m.out("cat /etc/machine-id");
        let recipient =
            m.out("tars-backup key new --output /root/key.txt 2>&1 | grep -o 'age1[0-9a-z]*' | head -n 1");
        m.sh(&format!(
            "mkdir -p -m 700 /etc/credstore.encrypted
             printf %s '{KEY_ID}' | systemd-creds encrypt --with-key=host --name=bucket-id - /etc/credstore.encrypted/bucket-id
             printf %s '{KEY}' | systemd-creds encrypt --with-key=host --name=bucket-key - /etc/credstore.encrypted/bucket-key"
        ))
        .expect(0);
        let containers = ["postgres", "redis", "chromadb"]
            .map(|s| format!("[sources.{s}]\ntype = \"{s}\"\ncontainer = {:?}\n", stack.container(s)))
            .concat();
        m.configure(&format!(
            "[docker]\nsocket = {:?}\nproject = {project:?}\n{containers}[sources.configuration]\ntype = \"config_files\"\n\
             files = [\"/opt/tars-home/deploy/tars-home.env\", \"/opt/tars-home/deploy/docker-compose.home.yml\"]\n\
             [stores.bucket]\ntype = \"s3\"\nbucket = {BUCKET:?}\npath = \"back ups/of home\"\nendpoint = {:?}\n\
             key_id = {{ credential = \"bucket-id\" }}\nkey = {{ credential = \"bucket-key\" }}\n\
             [tiers.hot]\nstores = [\"bucket\"]\npath = \"daily\"\n[encryption]\nrecipients = [{recipient:?}]\n",
            engine(),
            s3.endpoint(),
        ));
        m.sh("chmod 600 /etc/tars-backup/config.toml").expect(0);
        m.sh(&format!("tars-backup store init bucket --with-package /root/{}", deb_name()))
            .expect(0)
            .says("keeps tools/");
        m.sh(&format!("tars-backup store init bucket --with-package /root/{}", deb_name()))
            .expect(0)
            .says("has tools/");
        m.sh("tars-backup config apply").expect(0);
        m.start().expect(0);
        m.start().expect(0);
        m.sh("tars-backup status").expect(0);
        let printed = m.sh("tars-backup key kit --identity /root/key.txt").expect(0);
        assert!(
            !printed.stderr.contains(KEY) && !printed.stderr.contains("AGE-SECRET"),
            "{}",
            printed.stderr
        );
        kit = printed.stdout;
        files_wanted = m.out(files);
        // Nothing of it is anywhere else.
        m.sh("systemd-run --wait --collect tars-backup key kit").expect(64);
        m.sh("systemd-run --wait --collect tars-backup key kit --output /root/kit.md").expect(0);
        assert_eq!(m.out("stat -c '%a %u' /root/kit.md; rm /root/kit.md"), "600 0");
        let secret = m.out("tail -n 1 /root/key.txt");
        let journal = m.out("journalctl --sync; journalctl --no-pager -o json --all");
        assert!(!journal.contains(KEY) && !journal.contains(&secret), "the journal shows a key");
    }
    // All of it burns.
    composed.down();

    // The next one has a newer Debian, with the other Compose.
    let began = Instant::now();
    let m = Beside::bare("13", "tars-new");
    assert_ne!(m.out("cat /etc/machine-id"), machine_id);
    engine_at_its_place(&m);
    let mut made = Vec::new();
    let mut done: Vec<String> = Vec::new();
    for (title, commands) in steps_of(&kit) {
        for line in by_line(&commands) {
            let ran = step(&m, &line);
            let held =
                line == "tars-backup status" && !done.contains(&"tars-backup accept --host".to_owned());
            assert_eq!(ran.code, i32::from(held), "{title}\n{line}\n{}{}", ran.stdout, ran.stderr);
            if line.contains("up --no-start") {
                made = ["postgres", "redis", "chromadb", "backend"].map(|s| composed.state(s)).to_vec();
            }
            done.push(line);
        }
    }
    let took = began.elapsed();
    println!("from nothing to a machine that makes backups again: {took:.1?}");

    assert_eq!(made, ["created 0001-01-01T00:00:00Z"; 4], "no server ran before its data was there");
    assert_eq!(data(), wanted);
    // The file of variables is not where Compose looks by itself.
    let environment = docker(&["inspect", "-f", "{{json .Config.Env}}", &stack.container("postgres")]);
    assert!(environment.contains(&format!("POSTGRES_PASSWORD={PASSWORD}\"")), "{environment}");
    assert!(composed.state("backend").starts_with("running "));
    assert_eq!(m.out(files), files_wanted);
    for (name, value) in [("bucket-id", KEY_ID), ("bucket-key", KEY)] {
        let told = m.out(&format!("systemd-creds decrypt --name={name} /etc/credstore.encrypted/{name} -"));
        assert_eq!(told, value);
    }
    // The same directory of the bucket, under the name of the old machine; and a timer works.
    let rows = m.sh("tars-backup list --json").expect(0).json();
    assert_eq!(rows.as_array().map(Vec::len), Some(3), "{rows}");
    m.sh("systemctl start tars-backup@hot.service").expect(0);
    let rows = m.sh("tars-backup list --json").expect(0).json();
    assert_eq!(rows.as_array().map(Vec::len), Some(4), "{rows}");
    let hosts = sh(&format!("ls '{}/back ups/of home/hosts'", s3.bucket().display()));
    assert_eq!(hosts, "tars-old\n");
    m.sh("systemctl list-timers --all | grep tars-backup@hot.timer").expect(0);
    m.sh("test ! -e /root/tars-credentials -a ! -e /root/tars-identity.txt").expect(0);
}

fn deb_name() -> String {
    std::path::Path::new(machine::package()).file_name().unwrap().to_string_lossy().into_owned()
}

/// Commands one by one, what is written into a file with its command.
fn by_line(commands: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut open = false;
    for line in commands.lines() {
        if open {
            let last = lines.last_mut().unwrap();
            last.push('\n');
            last.push_str(line);
            open = line != "END";
        } else {
            lines.push(line.to_owned());
            open = line.contains("<<'END'");
        }
    }
    lines
}

/// One line as a person types it. The machine has no network of its own for apt, and no curl: this one asks for it.
fn step(m: &Machine, line: &str) -> Done {
    if line.contains("apt-get install -y curl") {
        return m.sh("true");
    }
    if line.starts_with("curl ") {
        let dir = tempfile::tempdir().unwrap();
        let config = m.out("cat /root/tars-curl");
        std::fs::write(dir.path().join("tars-curl"), config).unwrap();
        let here = line.replace("/root/tars-curl", "tars-curl");
        let done = run("bash", &["-c", &format!("cd '{}' && {here}", dir.path().display())]);
        if done.code == 0 {
            m.put(&dir.path().join(deb_name()), &format!("/root/{}", deb_name()));
        }
        return done;
    }
    let restore = line.starts_with("tars-backup restore") && !line.contains("--dry-run");
    m.sh(&format!("cd /root; {line}{}", if restore { " --yes" } else { "" }))
}
