//! Every command that README.md and docs/*.md show is run as it stands there, in the order of its document, on a machine
//! of its own: Debian with systemd and the installed package, a sample home, a directory and an S3 server as stores, a
//! key. What cannot run on such a machine names the test that runs it. A document that is new is found by itself.
//!
//! What could go wrong: a command that is shown and never run, so whatever is neither run nor named elsewhere fails; and
//! tables that speak of nothing any more, so an entry that no document needs fails too. Needs root and the laboratory
//! (tests/lab). `TARS_BACKUP_DEB` names a package; without it, it is built.

#![allow(clippy::unwrap_used)]

#[path = "support/docs.rs"]
mod docs;
#[path = "support/legacy.rs"]
mod legacy;
#[path = "support/machine.rs"]
mod machine;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use docs::Shown;
use machine::{Machine, package};
use servers::{BUCKET, KEY, KEY_ID, S3Server, S3sFs, Sshd};
use support::{Done, sh};

/// What a command needs that is not there from the beginning, and how it ends when not with 0.
struct Case {
    /// Where; everywhere when empty.
    document: &'static str,
    /// The command as it stands there; BACKUP is NAME.
    command: &'static str,
    /// In a dialogue: the first line of what is said to it there.
    answer: &'static str,
    /// Prints the backup that NAME stands for; the newest when empty.
    name: &'static str,
    /// Lines for a shell on the machine, before and after it; NAME and the like are filled in as in the command.
    before: &'static str,
    after: &'static str,
    status: i32,
    /// Something that it prints.
    says: &'static str,
}

const CASE: Case =
    Case { document: "", command: "", answer: "", name: "", before: "", after: "", status: 0, says: "" };

const CASES: &[Case] = &[
    // README.md
    Case {
        command: "apt install ./target/debian/tars-backup_*.deb",
        before: "dpkg -r tars-backup; mkdir -p target/debian; cp /root/tars-backup.deb target/debian/tars-backup_0_all.deb",
        after: "tars-backup --version",
        ..CASE
    },
    Case {
        document: "README.md",
        command: "systemctl list-timers 'tars-backup*'",
        says: "tars-backup@hot.timer",
        ..CASE
    },
    Case {
        command: "cp /usr/share/doc/tars-backup/examples/files-and-sqlite.toml /etc/tars-backup/config.toml",
        after: "tars-backup config check; cp /root/config.toml /etc/tars-backup/config.toml",
        ..CASE
    },
    Case { command: "apt remove tars-backup", after: KEPT, ..CASE },
    Case { command: "apt purge tars-backup", after: KEPT, ..CASE },
    Case { command: "apt-get purge tars-backup", after: KEPT, ..CASE },
    Case {
        command: "cp tars-backup-archive-keyring.gpg /usr/share/keyrings/",
        before: "dpkg -r tars-backup; cp /srv/apt/tars-backup* .",
        ..CASE
    },
    Case {
        command: "cp tars-backup.sources /etc/apt/sources.list.d/",
        after: "sed -i 's#^URIs: .*#URIs: file:/srv/apt#' /etc/apt/sources.list.d/tars-backup.sources",
        ..CASE
    },
    Case { command: "apt-get install tars-backup", says: "Setting up tars-backup", ..CASE },
    Case { command: "sha256sum -c tars-backup-20261121_154702.tar.gz.sha256", says: ": OK", ..CASE },
    Case {
        command: "less /root/tars-backup-20261121_154702/RESTORE.md",
        says: "## documents",
        ..CASE
    },
    // configuration.md
    Case {
        command: "tars-backup config check",
        answer: "error: /etc/tars-backup/config.toml:9: sources.pg.tiemout: unknown key",
        before: "printf '[stores.nas]\\npath = \"/mnt/nas\"\\n[tiers.hot]\\nstores = [\"nas\"]\\n\\n[sources.pg]\\ntype = \"postgres\"\\n\
                 tiemout = \"9m\"\\n' | sed '5a #' >/etc/tars-backup/config.toml",
        after: "cp /root/config.toml /etc/tars-backup/config.toml",
        status: 78,
        ..CASE
    },
    // manifest.md: both digests are those that the manifest says.
    Case {
        command: "sed -E 's/(\"manifest_sha256\": \")[0-9a-f]*/\\1/' NAME.manifest.json | sha256sum",
        before: "cp /mnt/nas/backups/tars/daily/NAME.* .",
        after: "said=$(sed -nE 's/.*\"manifest_sha256\": \"([0-9a-f]+)\".*/\\1/p' NAME.manifest.json)
                [ \"$(sed -E 's/(\"manifest_sha256\": \")[0-9a-f]*/\\1/' NAME.manifest.json | sha256sum)\" = \"$said  -\" ]",
        ..CASE
    },
    Case {
        command: "cd NAME/config && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum",
        before: "tar -xzf /mnt/nas/backups/tars/daily/NAME.tar.gz",
        after: "sum=$(find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-64)
                grep -q \"\\\"config/\\\": \\\"sha256:$sum\\\"\" ../manifest.json",
        ..CASE
    },
    // retention.md
    Case {
        document: "docs/retention.md",
        command: "tars-backup prune",
        before: "sed -i 's/^keep = .*/keep = { last = 1, min = 1 }/' /etc/tars-backup/config.toml; tars-backup backup",
        ..CASE
    },
    Case {
        command: "tars-backup undelete NAME",
        before: "tars-backup list --trash | grep ^tars-backup- || {
                   sed -i 's/^keep = .*/keep = { last = 1, min = 1 }/' /etc/tars-backup/config.toml; tars-backup backup; }",
        name: "tars-backup list --trash | sed -n '2s/ .*//p'",
        after: "cp /root/config.toml /etc/tars-backup/config.toml; ! tars-backup list --trash | grep -F NAME",
        ..CASE
    },
    Case {
        document: "docs/retention.md",
        command: "tars-backup list",
        before: "rm /srv/documents/many-*; tars-backup backup || [ $? = 2 ]",
        says: "anomaly",
        ..CASE
    },
    Case { command: "tars-backup accept NAME", before: "tars-backup list | grep -F 'anomaly: documents' || {
                   rm /srv/documents/many-*; tars-backup backup || [ $? = 2 ]; }", after: "tars-backup list | grep -F 'anomaly: documents (accepted)'", ..CASE },
    // sealing.md
    Case {
        command: "tars-backup key new --output key.txt",
        before: "rm -f key.txt",
        after: "key=$(sed -n 's/^# public key: //p' key.txt)
                sed -i \"s/^recipients = .*/recipients = [\\\"$key\\\"]/\" /etc/tars-backup/config.toml; tars-backup backup
                cp key.txt /root/key.txt; cp /etc/tars-backup/config.toml /root/config.toml",
        says: "recipients = [\"age1",
        ..CASE
    },
    Case {
        command: "mkdir -m 0700 originals",
        before: "tar -xzf /mnt/nas/backups/tars/daily/NAME.tar.gz --strip-components=1",
        ..CASE
    },
    Case {
        command: "age -d -i key.txt config/originals.tar.age | tar -xpf - -C originals",
        after: "cmp originals/srv/app/app.env /srv/app/app.env",
        ..CASE
    },
    Case {
        command: "age -d -i key.txt tars-backup-YYYYMMDD_HHMMSS.tar.gz.age | tar -xzf -",
        before: "sed -i 's/^recipients/seal = \"always\"\\n&/' /etc/tars-backup/config.toml; tars-backup backup
                 cp /mnt/nas/backups/tars/daily/*.age .; cp /root/config.toml /etc/tars-backup/config.toml",
        after: "ls NAME/RESTORE.md",
        ..CASE
    },
    Case {
        command: "tars-backup restore --latest --component configuration --restore-config --identity key.txt",
        before: "echo lost >/srv/app/app.env",
        after: "grep PASSWORD=correct /srv/app/app.env; grep lost /srv/app/app.env.before-*",
        ..CASE
    },
    Case { command: "mv FILE.before-NAME FILE", after: "grep lost FILE", ..CASE },
    // migration.md
    Case {
        command: "apt install ./tars-backup_*.deb",
        before: "dpkg -r tars-backup; cp /root/tars-backup.deb tars-backup_0_all.deb",
        ..CASE
    },
    Case {
        command: "cp /usr/share/doc/tars-backup/examples/tars-home.toml /etc/tars-backup/config.toml",
        // It names a stack that is not on this machine.
        after: "tars-backup config check; cp /root/config.toml /etc/tars-backup/config.toml",
        ..CASE
    },
    Case { command: "tars-backup list --store file:///mnt/nas/backups", says: "legacy", ..CASE },
    Case {
        command: "tars-backup restore --backup-file /mnt/nas/backups/daily/OLD.tar.gz --to /root/old",
        after: "ls /root/old/postgres.sql /root/old/backend_logs/app.log",
        ..CASE
    },
    // This machine has no stack to restore them to; tests/stack/restore_whole.rs has.
    Case {
        command: "tars-backup restore --backup-file /mnt/nas/backups/daily/OLD.tar.gz --dry-run",
        status: 2,
        says: "Not restored: postgres: the configuration has no source of that name",
        ..CASE
    },
    Case { command: "ls -l /root/rehearsal", says: "documents", ..CASE },
    Case { command: "crontab -l >/root/crontab.before", after: "grep -c backup-tars.sh /root/crontab.before", ..CASE },
    Case {
        command: "crontab /root/crontab.before",
        before: "echo >/root/crontab",
        after: "grep -c backup-tars.sh /root/crontab",
        ..CASE
    },
    Case {
        command: "systemctl disable --now tars-backup@hot.timer tars-backup@warm.timer tars-backup@cold.timer tars-backup@archive.timer",
        after: "! systemctl is-enabled tars-backup@hot.timer; ! systemctl is-enabled tars-backup@archive.timer",
        ..CASE
    },
    Case {
        command: "systemctl disable --now tars-backup-sync.timer tars-backup-verify.timer tars-backup-drill.timer",
        after: "! systemctl is-enabled tars-backup-sync.timer; ! systemctl is-enabled tars-backup-drill.timer",
        ..CASE
    },
    // backup-recovery.md, quick-reference.md
    Case {
        command: "tars-backup store init offsite --with-package tars-backup_0.1.0-1_amd64.deb",
        says: "Store offsite keeps tools/tars-backup_0.1.0-1_amd64.deb",
        before: "cp /root/tars-backup.deb tars-backup_0.1.0-1_amd64.deb",
        ..CASE
    },
    Case { command: "tars-backup key kit --output /root/kit.md", after: "grep AGE-SECRET-KEY-1 /root/kit.md", ..CASE },
    Case { command: "lp /root/kit.md && shred -u /root/kit.md", after: "grep AGE-SECRET-KEY-1 /root/printed; ! ls /root/kit.md", ..CASE },
    Case {
        command: "tars-backup restore --backup-file /var/lib/tars-backup/pre-restore/NAME.tar.gz",
        before: "tars-backup restore --latest --yes",
        name: "ls /var/lib/tars-backup/pre-restore | sed -n 's/\\.manifest\\.json$//p' | tail -n 1",
        says: "restored",
        ..CASE
    },
    Case {
        command: "apt-get install ./tars-backup_0.1.0-1_amd64.deb",
        before: "dpkg -r tars-backup; cp /root/tars-backup.deb tars-backup_0.1.0-1_amd64.deb",
        ..CASE
    },
    Case {
        command: "tars-backup store init STORE --with-package tars-backup_0.1.0-1_amd64.deb",
        before: "cp /root/tars-backup.deb tars-backup_0.1.0-1_amd64.deb",
        says: "keeps tools/",
        ..CASE
    },
    Case {
        command: "tars-backup key kit --output FILE",
        before: "mv FILE /root/app.env; cp /root/tars-backup.deb tars-backup_0.1.0-1_amd64.deb
                 tars-backup store init nas --with-package tars-backup_0.1.0-1_amd64.deb",
        after: "grep AGE-SECRET-KEY-1 FILE; mv /root/app.env FILE",
        ..CASE
    },
    // stores.md
    Case {
        command: "tars-backup key kit",
        before: "cp /root/tars-backup.deb tars-backup_0.1.0-1_amd64.deb
                 tars-backup store init nas --with-package tars-backup_0.1.0-1_amd64.deb",
        says: "AGE-SECRET-KEY-1",
        ..CASE
    },
    Case {
        command: "ssh-keyscan -t ed25519 backup.example.com >/etc/tars-backup/known_hosts",
        after: "grep -c ed25519 /etc/tars-backup/known_hosts",
        ..CASE
    },
    Case {
        command: "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        before: "cp /root/host.pub /etc/ssh/ssh_host_ed25519_key.pub",
        after: "of() { ssh-keygen -lf $1 | cut -d' ' -f2; }
                [ \"$(of /etc/tars-backup/known_hosts)\" = \"$(of /etc/ssh/ssh_host_ed25519_key.pub)\" ]",
        ..CASE
    },
];

/// What a package that is removed leaves.
const KEPT: &str =
    "! command -v tars-backup; ls /etc/tars-backup/config.toml /mnt/nas/backups/tars/daily/NAME.tar.gz
                    dpkg -i /root/tars-backup.deb";

/// A command that cannot run on a machine without Docker or within this test: the place that runs it, as `file` or
/// `file::function`, and what must be found there. Not for what is only tedious to prepare: that is a `Case`.
const ELSEWHERE: &[(&str, &str, &str)] = &[
    ("make demo", "tests/demo.rs::the_demonstration_finds_all_equal", "scripts/demo.sh"),
    (
        "make demo STACK=1",
        "tests/stack/demo.rs::a_stack_that_is_destroyed_comes_back_and_the_demonstration_leaves_nothing",
        "demo",
    ),
    ("make test", ".ci/run", "make test"),
    ("make deb", "tests/support/machine.rs::package", "scripts/deb.sh"),
    ("make apt-repo", "tests/package.rs::repository", "scripts/apt-repo.sh"),
    (
        "tars-backup init",
        "tests/units.rs::the_whole_stack_goes_to_three_stores_and_back",
        "tars-backup init --project",
    ),
    ("make apt-repo APT_KEY=you@example.org", "scripts/apt-repo.sh", "APT_KEY"),
    ("cargo test --test stack", "scripts/test.sh", "cargo test --locked"),
    ("cargo test --test cli", "scripts/test.sh", "cargo test --locked"),
    ("cargo test --test damage -- --nocapture", "scripts/test.sh", "cargo test --locked"),
    (
        "tests/lab/engine.sh up && eval \"$(tests/lab/engine.sh env)\"",
        "scripts/test.sh",
        "tests/lab/engine.sh up",
    ),
    ("tests/lab/images.sh all && tests/lab/stack.sh up", "scripts/demo-stack.sh", "tests/lab/stack.sh"),
    ("tests/lab/stack.sh down; tests/lab/engine.sh down", "scripts/test.sh", "tests/lab/engine.sh down"),
    ("cat NAME.tar.gz.p[0-9]*", "tests/offsite.rs::opens_by_hand", "cat "),
    (
        "tars-backup restore --latest --component postgres --dry-run",
        "tests/stack/restore_postgres.rs",
        "--dry-run",
    ),
    ("tars-backup restore --latest --component postgres", "tests/stack/restore_whole.rs", "\"--component\""),
    (BARE, "tests/recovery.rs::the_whole_walk_from_paper_and_bucket_alone", "--below"),
    (
        "docker compose -f /opt/tars-home/docker-compose.yml up --no-start",
        "tests/recovery.rs::the_whole_walk_from_paper_and_bucket_alone",
        "up --no-start",
    ),
    ("docker compose … up -d", "tests/recovery.rs::the_whole_walk_from_paper_and_bucket_alone", "up -d"),
    ("docker save chromadb/chroma:latest | ssh drillhost docker load", "tests/stack/engine.rs::load", "save"),
    (
        "docker ps -a --filter label=tars-backup.drill",
        "tests/stack/drill.rs::of_drills",
        "label=tars-backup.drill",
    ),
    (
        "tars-backup drill --from 's3://bucket/path?region=eu-central-1' --host home --identity key.txt",
        "tests/stack/drill.rs::odd_data_of_every_service_comes_back_out_of_a_sealed_bucket",
        "\"--from\", &url",
    ),
    (
        "systemd-creds encrypt",
        "tests/seal.rs::credentials_that_this_host_lacks_are_encrypted_anew_for_it",
        "systemd-creds",
    ),
    (
        "systemd-creds decrypt",
        "tests/units.rs::the_whole_stack_goes_to_three_stores_and_back",
        "systemd-creds encrypt --with-key=host --name=bucket-key",
    ),
    (
        "aws s3api restore-object --bucket … --key … --restore-request Days=7",
        "tests/stores.rs",
        "aws s3api restore-object",
    ),
];

/// What a new machine begins with.
const BARE: &str = r"tars-backup restore --latest --component configuration --restore-config --below /opt/tars-home \
  --from 'b2://home-backups/tars?region=eu-central-003' --host tars \
  --identity /root/tars-identity.txt --credentials /root/tars-credentials";

/// Words in capitals that stand for something.
fn stands_for(word: &str, newest: &str, fresh: &Cell<u32>) -> Option<String> {
    let digits = word.len() == 15 && word.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    Some(match word {
        _ if digits || word == "YYYYMMDD_HHMMSS" => newest.trim_start_matches("tars-backup-").to_owned(),
        "BACKUP" | "NAME" => newest.to_owned(),
        "STORE" => "nas".to_owned(),
        "TIER" => "hot".to_owned(),
        "COMPONENT" => "documents".to_owned(),
        "PATH" => "documents.tar.gz".to_owned(),
        "TEXT" => "'a reason'".to_owned(),
        "COMMAND" => "backup".to_owned(),
        "SHELL" => "bash".to_owned(),
        "IDENTITY" => "/root/key.txt".to_owned(),
        "FILE" => "/srv/app/app.env".to_owned(),
        "OLD" => OLD.to_owned(),
        "URL" => "file:///mnt/nas/backups/tars".to_owned(),
        "DIR" => {
            fresh.set(fresh.get() + 1);
            format!("/root/out-{}", fresh.get())
        }
        _ => return None,
    })
}

/// An archive of the bash script.
const OLD: &str = "tars-backup-20260103_020000";

/// Programs for a person: what is shown is read, what a document says is typed.
const PERSON: &str = r#"
mkdir -p /root/walk
printf '#!/bin/sh\nexec cat "$@"\n' >/usr/local/bin/less
printf '#!/bin/sh\nexec cat "$@" >/root/printed\n' >/usr/local/bin/lp
cat >/usr/local/bin/editor <<'END'
#!/bin/sh
for file in "$@"; do
  case $file in
    +*) ;;
    *) if [ -s /root/walk/typed ]; then cat /root/walk/typed >"$file"; else test -w "$file"; fi ;;
  esac
done
END
# The laboratory has no cron; only its table is of interest.
cat >/usr/local/bin/crontab <<'END'
#!/bin/sh
case $1 in
  -l) exec cat /root/crontab ;;
  -e) exec editor /root/crontab ;;
  *) exec cp "$1" /root/crontab ;;
esac
END
echo '0 2 * * * /opt/tars/deploy/backup-tars.sh --output-dir /mnt/nas/backups/daily' >/root/crontab
chmod 755 /usr/local/bin/*
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90yes
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
"#;

/// What is asked at port 22 of `address` is answered by that sshd.
fn open_port_22(address: &str, port: u16) {
    let listener = TcpListener::bind((address, 22)).unwrap();
    std::thread::spawn(move || {
        for inside in listener.incoming().flatten() {
            let outside = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (outside, inside);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
}

/// A machine on which one document is walked through.
struct Walk {
    m: Machine,
    fresh: Cell<u32>,
    ssh: Sshd,
    s3: S3sFs,
}

impl Walk {
    fn begin(document: &str) -> Self {
        let (ssh, s3) = (Sshd::start(), S3sFs::start());
        let m = Machine::installed_beside("12", &[]);
        let walk = Self { m, fresh: Cell::new(0), ssh, s3 };
        walk.prepare();
        let text = docs::read(document);
        if text.contains("backup.example.com") {
            // The whole of 127.0.0.0/8 is this machine; no other test that runs now takes the same address.
            let address = format!("127.22.{}.{}", std::process::id() >> 8 & 0xff, std::process::id() & 0xff);
            open_port_22(&address, walk.ssh.port());
            walk.m
                .sh(&format!("echo '{address} backup.example.com' >>/etc/hosts; mkdir -p /etc/ssh"))
                .expect(0);
            walk.m.put(&walk.ssh.file("host.pub"), "/root/host.pub");
        }
        if text.contains("backup-tars.sh") {
            let dir = tempfile::tempdir().unwrap();
            legacy::make(dir.path(), OLD.trim_start_matches("tars-backup-"), "busybox tar");
            walk.m.sh("mkdir -p /mnt/nas/backups").expect(0);
            walk.m.put(dir.path(), "/mnt/nas/backups/daily");
            let there = "/mnt/nas/backups/daily";
            walk.m
                .sh(&format!("chmod 755 {there}; sed -i 's#  .*/#  {there}/#' {there}/{OLD}.tar.gz.sha256"))
                .expect(0);
        }
        if text.contains("tars-backup.sources") {
            let script = docs::root().join("scripts/apt-repo.sh");
            let made = sh(&format!("TARS_BACKUP_DEB='{}' '{}'", package(), script.display()));
            walk.m.put(Path::new(made.lines().last().unwrap()), "/srv/apt");
        }
        walk
    }

    fn prepare(&self) {
        let m = &self.m;
        m.sh(PERSON).expect(0);
        m.put(Path::new("/usr/bin/age"), "/usr/local/bin/age");
        let db = tempfile::tempdir().unwrap();
        let file = db.path().join("app.db");
        sh(&format!("sqlite3 '{}' 'create table t (n); insert into t values (41)'", file.display()));
        m.sh("mkdir -p /mnt/nas /srv/app; for i in $(seq 9); do seq 1000 >/srv/documents/many-$i; done")
            .expect(0);
        m.put(&file, "/srv/app/app.db");
        m.sh(&format!(
            "chown -R root: /srv/app; printf 'PORT=80\\nPASSWORD=correct-horse-battery\\n' >/srv/app/app.env
             tars-backup key new --output /root/key.txt
             cd /etc/tars-backup; echo {KEY_ID} >bucket-id; echo '{KEY}' >bucket-key; chmod 600 bucket-*"
        ))
        .expect(0);
        let recipient = m.out("sed -n 's/^# public key: //p' /root/key.txt");
        assert!(recipient.starts_with("age1"), "{recipient}");
        m.configure(&format!(
            r#"
[encryption]
recipients = [{recipient:?}]
identity = {{ file = "/root/key.txt" }}
[sources.documents]
type = "directory"
path = "/srv/documents"
[sources.app]
type = "sqlite"
path = "/srv/app/app.db"
[sources.configuration]
type = "config_files"
files = ["/srv/app/app.env"]
own = false
[stores.nas]
type = "fs"
path = "/mnt/nas/backups/tars"
[stores.offsite]
type = "s3"
bucket = {BUCKET:?}
endpoint = {:?}
key_id = {{ file = "/etc/tars-backup/bucket-id" }}
key = {{ file = "/etc/tars-backup/bucket-key" }}
[tiers.hot]
stores = ["nas", "offsite"]
path = "daily"
keep = {{ within = "7d", min = 3 }}
[tiers.warm]
stores = ["nas"]
path = "weekly"
[tiers.cold]
stores = ["offsite"]
path = "monthly"
promote_from = "warm"
"#,
            self.s3.endpoint()
        ));
        // A NAS that is not there yet is what a new machine has; all but README.md begin with one that has backups.
        m.sh("mkdir -p /mnt/nas/backups/tars
              cp /etc/tars-backup/config.toml /root/config.toml
              for s in nas offsite; do tars-backup store init $s; done
              tars-backup backup --tier warm; tars-backup backup")
            .expect(0);
    }

    /// Fills in what stands for something else, and runs it where the last command of its block was.
    fn filled(&self, text: &str, name: &str) -> String {
        let text = ["init", "check", "adopt"].iter().fold(text.to_owned(), |text, verb| {
            text.replace(&format!("store {verb} NAME"), &format!("store {verb} nas"))
        });
        let text = text.replace("--identity FILE", "--identity /root/key.txt");
        // Alone it is an option of tar.
        let text = format!("{text}\n")
            .replace("--component C\n", "--component documents\n")
            .replace("--component C ", "--component documents ");
        let text = text.trim_end();
        let newest = "ls /mnt/nas/backups/tars/*/ | sed -n 's/\\.manifest\\.json$//p' | sort | tail -n 1";
        let name = self.m.out(if name.is_empty() { newest } else { name });
        docs::filled(text, |word| stands_for(word, &name, &self.fresh))
    }

    fn run(&self, shown: &Shown) -> Result<(), String> {
        let case = case_of(shown).unwrap_or(&CASE);
        if !case.before.is_empty() {
            let done = self.line(&self.filled(case.before, ""), false, "");
            if done.code != 0 {
                return Err(format!(
                    "what comes before it ended with {}\n{}{}",
                    done.code, done.stdout, done.stderr
                ));
            }
        }
        let name = self.filled("NAME", case.name);
        let text = self.filled(&shown.text, case.name);
        let edits = text.contains("systemctl edit");
        let typed = if edits { shown.next_block.as_str() } else { "" };
        self.m
            .sh(&format!(
                "cat >/root/walk/typed <<'TYPED'\n{typed}\nTYPED\n[ -n '{}' ] || : >/root/walk/typed",
                if edits { "x" } else { "" }
            ))
            .expect(0);
        let asks = text.starts_with("tars-backup restore")
            && !["--yes", "--force", "--dry-run", "--to "].iter().any(|o| text.contains(o));
        let done = self.line(&text, asks || edits, &name);
        if done.code != case.status {
            return Err(format!(
                "ended with {}, not {}\n{}{}",
                done.code, case.status, done.stdout, done.stderr
            ));
        }
        let wanted = if case.answer.is_empty() { case.says } else { case.answer };
        if !format!("{}{}", done.stdout, done.stderr).contains(wanted) {
            return Err(format!("does not say {wanted:?}\n{}{}", done.stdout, done.stderr));
        }
        if !case.after.is_empty() {
            let done = self.line(&self.filled(case.after, &format!("echo {name}")), false, "");
            if done.code != 0 {
                return Err(format!(
                    "what comes after it ended with {}\n{}{}",
                    done.code, done.stdout, done.stderr
                ));
            }
        }
        Ok(())
    }

    /// Runs it in the directory, and with the variables, that the line before has left. At a terminal, on which the
    /// two questions of a restore are answered.
    fn line(&self, text: &str, terminal: bool, name: &str) -> Done {
        let run = match terminal {
            true => format!("printf 'yes\\n{name}\\n' | script -qec 'bash -e /root/walk/line' /dev/null"),
            false => ". /root/walk/line".to_owned(),
        };
        self.m.sh(&format!(
            "cat >/root/walk/line <<'LINE'\n{text}\nLINE\ncd \"$(cat /root/walk/at)\"; set +u; . /root/walk/env\n{run}\npwd >/root/walk/at; export -p >/root/walk/env"
        ))
    }

    /// Every block begins with the same configuration.
    fn go_home(&self) {
        self.m.sh("rm -rf /etc/tars-backup/conf.d; cp /root/config.toml /etc/tars-backup/; mkdir -p /root/desk; cp /root/key.txt /root/desk/; echo /root/desk >/root/walk/at; : >/root/walk/env").expect(0);
    }
}

fn case_of(shown: &Shown) -> Option<&'static Case> {
    let text = shown.text.replace("BACKUP", "NAME");
    let here = |c: &&Case| c.document.is_empty() || c.document == shown.document;
    CASES.iter().filter(here).find(|c| c.command == text && (c.answer.is_empty() || c.answer == shown.answer))
}

/// How a command is seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// On the machine.
    Machine,
    /// In this repository: a command for those who change the program.
    Here,
    /// By another test.
    Elsewhere,
    /// `tar -xzf` in a sentence names what is run with its arguments at another place.
    Named,
}

fn how(shown: &Shown, all: &[Shown]) -> How {
    let longer = |other: &Shown| other.text.starts_with(&format!("{} ", shown.text));
    if ELSEWHERE.iter().any(|(command, _, _)| *command == shown.text) {
        How::Elsewhere
    } else if is_harmless_here(&shown.text) {
        How::Here
    } else if shown.block.is_none() && !shown.text.starts_with("tars-backup ") && all.iter().any(longer) {
        How::Named
    } else {
        How::Machine
    }
}

fn of(all: &[Shown], wanted: How) -> Vec<&Shown> {
    all.iter().filter(|s| how(s, all) == wanted).collect()
}

/// This repository is no machine of a test's own: nothing but tests is run in it, and `make` only says what it would do.
fn is_harmless_here(text: &str) -> bool {
    let make = text == "make" || text.starts_with("make ");
    (make
        || text.starts_with("cargo test ")
        || docs::program(text) == "cargo" && text.contains(" cargo test "))
        && !text.contains([';', '&', '|', '<', '>', '$', '`', '(', '\n'])
}

/// `make` only says what it would do: it would run this test in itself, or remove what it stands on.
fn run_here(shown: &Shown) -> Result<(), String> {
    let text = match shown.text.strip_prefix("make") {
        Some(rest) => format!("make -n{rest}"),
        None => shown.text.clone(),
    };
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", &text]).current_dir(docs::root());
    // Those of the outer cargo speak of this test.
    for (name, _) in std::env::vars()
        .filter(|(n, _)| n.starts_with("CARGO_") && !["CARGO_HOME", "CARGO_TARGET_DIR"].contains(&n.as_str()))
    {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    let out =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let passed = |line: &str| line.starts_with("test result: ok.") && !line.contains(" 0 passed");
    let tested = !text.contains("cargo test") || out.lines().any(passed);
    if output.status.success() && tested { Ok(()) } else { Err(out) }
}

fn found_elsewhere(place: &str, words: &str) -> Result<(), String> {
    let (file, function) = place.split_once("::").unwrap_or((place, ""));
    let Ok(text) = std::fs::read_to_string(docs::root().join(file)) else {
        return Err(format!("there is no {file}"));
    };
    if !function.is_empty() && !text.contains(&format!("fn {function}(")) {
        return Err(format!("{file} has no function {function}"));
    }
    if !text.contains(words) {
        return Err(format!("{file} has no {words:?}"));
    }
    Ok(())
}

#[test]
fn every_command_of_the_documents_is_run() {
    let all: Vec<Shown> = docs::documents().iter().flat_map(|d| docs::commands(d)).collect();
    assert!(all.len() > 50, "{all:#?}");
    package();
    let wrong = Mutex::new(Vec::new());
    let note = |shown: &Shown, why: &str| {
        wrong.lock().unwrap().push(format!("{}\n  {}", shown.at(), why.trim_end().replace('\n', "\n  ")));
    };
    for shown in of(&all, How::Elsewhere) {
        let entry = ELSEWHERE.iter().find(|(command, _, _)| *command == shown.text).unwrap();
        if let Err(why) = found_elsewhere(entry.1, entry.2) {
            note(shown, &format!("ELSEWHERE says that {} runs it, but {why}", entry.1));
        }
    }
    let on_machines = of(&all, How::Machine);
    let documents: BTreeSet<&str> = on_machines.iter().map(|s| s.document.as_str()).collect();
    let waiting = Mutex::new(documents.into_iter().collect::<Vec<_>>());
    let work = || {
        loop {
            let Some(document) = waiting.lock().unwrap().pop() else { return };
            let walk = Walk::begin(document);
            let mut block = Some(0);
            for shown in on_machines.iter().filter(|s| s.document == document) {
                if shown.block != block || shown.block.is_none() {
                    walk.go_home();
                    block = shown.block;
                }
                if let Err(why) = walk.run(shown) {
                    note(shown, &why);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        for shown in of(&all, How::Here) {
            if let Err(why) = run_here(shown) {
                note(shown, &why);
            }
        }
        workers.into_iter().for_each(|w| w.join().unwrap());
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{}\n\n{} commands of the documents do not do what they say. Mend the document, or the program. One that needs \
         something first, or ends with another status, is told so in CASES of tests/commands.rs; one that needs Docker, or \
         a server that no test machine has, names the test that runs it in ELSEWHERE.",
        wrong.join("\n"),
        wrong.len()
    );
}

#[test]
fn the_tables_speak_of_what_is_there_and_most_commands_are_really_run() {
    let all: Vec<Shown> = docs::documents().iter().flat_map(|d| docs::commands(d)).collect();
    for line in
        ["tests/lab/engine.sh down", "cargo clean", "cargo test x; rm -r x", "make check && x", "rm x"]
    {
        assert!(!is_harmless_here(line), "{line}");
    }
    for (command, _, _) in ELSEWHERE {
        assert!(all.iter().any(|s| s.text == *command), "no document shows it any more: {command}");
    }
    for case in CASES {
        let used = all.iter().any(|s| case_of(s).is_some_and(|c| std::ptr::eq(c, case)));
        assert!(used, "no document shows it any more: {}", case.command);
    }
    let count = |wanted: How| of(&all, wanted).len();
    let (machine, here, elsewhere) = (count(How::Machine), count(How::Here), count(How::Elsewhere));
    all.iter().for_each(|s| println!("{:?} {}", how(s, &all), s.at()));
    println!("{machine} on machines, {here} here, {elsewhere} by other tests, {} named", count(How::Named));
    assert!(machine > 3 * elsewhere, "{machine} commands are run on machines, {elsewhere} only elsewhere");
}
