//! What the package brings besides the program: a signed repository to install it from, units in sandboxes, timers, the
//! catalog of the journal; and what removal and purge leave. On Debian 12 and 13, without network. Needs root and the
//! laboratory (tests/lab), lintian, apt-utils and gnupg (`make test` installs them).

#![allow(clippy::unwrap_used)]

#[path = "support/machine.rs"]
mod machine;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use machine::{CONFIG, GATE, Machine, RECOVER, UNIT, ended, engine, package};
use support::run;

/// Those that the package enables.
const TIMERS: [&str; 7] = [
    "tars-backup@hot.timer",
    "tars-backup@warm.timer",
    "tars-backup@cold.timer",
    "tars-backup@archive.timer",
    "tars-backup-sync.timer",
    "tars-backup-verify.timer",
    "tars-backup-drill.timer",
];

const HOT: &str = "tars-backup@hot.service";

/// First lines of the two sandboxes.
const NARROW: &str = "# The sandbox, word for word the same";
const WIDE: &str = "# The wider sandbox, word for word the same";

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every file of packaging/systemd with that ending: its name and text.
fn units(ending: &str) -> BTreeMap<String, String> {
    let found: BTreeMap<String, String> = std::fs::read_dir(repo("packaging/systemd"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file() && p.to_str().unwrap().ends_with(ending))
        .map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&p).unwrap()))
        .collect();
    assert!(!found.is_empty(), "no *{ending} in packaging/systemd");
    found
}

/// A name that systemd can start: templates get an instance.
fn startable(name: &str) -> String {
    let instance = match name {
        "tars-backup@.service" => "hot",
        // Not BACKUP:COMPONENT: systemd-analyze takes what follows a colon for another name of the unit.
        "tars-backup-restore@.service" => "postgres",
        "tars-backup-failed@.service" => HOT,
        _ => "",
    };
    name.replace("@.", &format!("@{instance}."))
}

/// The repository, made from the package once.
fn repository() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let line = format!("TARS_BACKUP_DEB='{}' '{}'", package(), repo("scripts/apt-repo.sh").display());
        support::sh(&line).lines().last().unwrap().to_owned()
    })
}

/// The values of `key` in a unit, in order.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|l| l.split_once('=')).filter(|(k, _)| *k == key).map(|(_, v)| v).collect()
}

/// From the line that begins so to the next empty one.
fn block<'a>(text: &'a str, first: &str) -> Option<&'a str> {
    let from = text.find(&format!("\n{first}"))? + 1;
    text[from..].split("\n\n").next().map(str::trim_end)
}

#[test]
fn every_service_has_one_of_two_sandboxes_word_for_word() {
    let (mut narrow, mut wide) = (BTreeMap::new(), BTreeMap::new());
    for (name, text) in units(".service") {
        match (block(&text, NARROW), block(&text, WIDE)) {
            (Some(block), None) => narrow.insert(name, block.to_owned()),
            (None, Some(block)) => wide.insert(name, block.to_owned()),
            _ => panic!("{name} has no sandbox, or two"),
        };
    }
    let names = |blocks: &BTreeMap<String, String>| blocks.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&wide),
        ["tars-backup-drill.service", "tars-backup-recover.service", "tars-backup-restore@.service"]
    );
    for blocks in [&narrow, &wide] {
        let texts: BTreeSet<&String> = blocks.values().collect();
        assert_eq!(texts.len(), 1, "the sandboxes of {:?} differ", names(blocks));
    }

    // The two differ where data is put back, and nowhere else.
    let (narrow, wide) = (narrow.values().next().unwrap(), wide.values().next().unwrap());
    let keys = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| l.split('=').next().unwrap().to_owned())
            .collect()
    };
    let differ: Vec<String> =
        keys(narrow).union(&keys(wide)).filter(|k| values(narrow, k) != values(wide, k)).cloned().collect();
    let wanted = [
        "CapabilityBoundingSet",
        "IPAddressAllow",
        "IPAddressDeny",
        "ReadWritePaths",
        "RestrictSUIDSGID",
        "SystemCallFilter",
    ];
    assert_eq!(differ, wanted);
    assert_eq!(values(narrow, "ProtectSystem"), ["strict"]);
}

#[test]
fn every_service_ends_in_time_is_private_and_is_reported() {
    for (name, text) in units(".service") {
        let one = |key: &str| values(&text, key).join(" | ");
        for (key, value) in [
            ("Type", "oneshot"),
            ("KillMode", "mixed"),
            ("UMask", "0077"),
            ("LimitCORE", "0"),
            ("TimeoutStartSec", if name.contains("failed@") { "2min" } else { "10min" }),
        ] {
            assert_eq!(one(key), value, "{key} of {name}");
        }
        assert!(!one("TimeoutStopSec").is_empty(), "{name} may stop for ever");
        assert!(
            !text.contains("\nRuntimeDirectory"),
            "{name} would take the lock away from others when it ends"
        );
        let reported = if name.contains("failed@") { "" } else { "tars-backup-failed@%n.service" };
        assert_eq!(one("OnFailure"), reported, "OnFailure of {name}");
        // Skipped without a configuration: what timers start. The others must fail, or need none.
        let inert = [
            "tars-backup@.service",
            "tars-backup-sync.service",
            "tars-backup-verify.service",
            "tars-backup-drill.service",
        ];
        let condition = if inert.contains(&name.as_str()) {
            "|/etc/tars-backup/config.toml | |/var/lib/tars-backup/last-run"
        } else {
            ""
        };
        assert_eq!(one("ConditionPathExists"), condition, "{name}");
        let lenient = if name == "tars-backup-verify.service" { "2" } else { "" };
        assert_eq!(one("SuccessExitStatus"), lenient, "{name}");
        let holds = !["verify", "failed", "recover"].iter().any(|w| name.contains(w));
        assert_eq!(one("ExecStopPost"), if holds { "/usr/bin/tars-backup recover" } else { "" }, "{name}");
    }
    let timers = units(".timer");
    assert_eq!(timers.keys().map(String::as_str).collect::<BTreeSet<_>>(), BTreeSet::from(TIMERS));
    for (name, text) in timers {
        for (key, value) in [("Persistent", "true"), ("RandomizedDelaySec", "30s"), ("AccuracySec", "1s")] {
            assert_eq!(values(&text, key), [value], "{key} of {name}");
        }
        assert_eq!(values(&text, "WantedBy"), ["timers.target"], "{name}");
    }
}

#[test]
fn lintian_finds_nothing() {
    let done = run("lintian", &["--fail-on", "error,warning", "--allow-root", package()]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.stderr);
}

#[test]
fn systemd_takes_every_unit_and_finds_it_little_exposed_on_debian_12() {
    little_exposed("12");
}

#[test]
fn systemd_takes_every_unit_and_finds_it_little_exposed_on_debian_13() {
    little_exposed("13");
}

fn little_exposed(release: &str) {
    let m = Machine::installed(release);
    let services: Vec<String> = units(".service").keys().map(|n| startable(n)).collect();
    let all = [&services[..], &TIMERS.map(str::to_owned)].concat().join("' '");
    assert_eq!(m.out(&format!("systemd-analyze verify --man=no '{all}' 2>&1")), "");
    for service in &services {
        // In tenths.
        let security = format!("systemd-analyze security --no-pager --threshold=25 '{service}'");
        let done = m.sh(&format!("{security} | tail -n 3"));
        assert_eq!(done.code, 0, "{service}: {}{}", done.stdout, done.stderr);
        assert!(done.stdout.contains("Overall exposure level"), "{}", done.stdout);
    }
    for timer in TIMERS {
        let calendar = m.out(&format!("sed -n 's/^OnCalendar=//p' /usr/lib/systemd/system/{timer}"));
        m.sh(&format!("systemd-analyze calendar '{calendar}'")).expect(0).says("Next elapse");
    }
}

#[test]
fn apt_installs_from_the_signed_repository_on_debian_12() {
    from_the_repository("12");
}

#[test]
fn apt_installs_from_the_signed_repository_on_debian_13() {
    from_the_repository("13");
}

fn from_the_repository(release: &str) {
    let m = Machine::up(release, &[]);
    m.sh("rm /root/tars-backup.deb; ! command -v cc gcc rustc cargo").expect(0);
    assert_eq!(m.out("ls /sys/class/net"), "lo");
    let kept = format!("{}:/srv/kept", m.name);
    run("docker", &["-H", engine(), "cp", repository(), &kept]).expect(0);
    let key = "/usr/share/keyrings/tars-backup-archive-keyring.gpg";
    m.sh(&format!(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
         chown -R root:root /srv/kept
         cp /srv/kept/tars-backup-archive-keyring.gpg {key}
         echo 'deb [signed-by={key}] file:/srv/apt stable main' >/etc/apt/sources.list.d/tars-backup.list"
    ))
    .expect(0);
    // The repository after `change`, and what apt says to it.
    let update = |change: &str| {
        m.sh(&format!(
            "rm -rf /srv/apt /var/lib/apt/lists/* /var/cache/apt/*.bin; cp -r /srv/kept /srv/apt; cd /srv/apt; {change}
             apt-get -q update"
        ))
    };
    let install = || m.sh("DEBIAN_FRONTEND=noninteractive apt-get -q install -y tars-backup");
    let index = "dists/stable/main/binary-*/Packages";
    let other_index = format!("rm {index}.gz; sed -i 's/^Section: .*/Section: net/' {index};");

    for (why, change) in [
        ("unsigned", "rm dists/stable/InRelease dists/stable/Release.gpg;"),
        ("the signed text was changed", "sed -i 's/^Label: .*/Label: other/' dists/stable/InRelease;"),
        (
            "signed apart, and changed",
            "rm dists/stable/InRelease; sed -i 's/^Label: .*/Label: o/' dists/stable/Release;",
        ),
        ("another index", other_index.as_str()),
    ] {
        let refused = update(change);
        assert_ne!(refused.code, 0, "{why}: {}{}", refused.stdout, refused.stderr);
        assert_ne!(install().code, 0, "{why}");
        m.sh("! dpkg -s tars-backup").expect(0);
    }
    update("printf x >>pool/main/t/tars-backup/*.deb;").expect(0);
    let refused = install();
    assert_ne!(refused.code, 0, "a changed package: {}", refused.stdout);
    m.sh("! dpkg -s tars-backup").expect(0);
    // Nobody else's key will do.
    m.sh(&format!("mv {key} /root/key; : >{key}")).expect(0);
    assert_ne!(update("").code, 0);
    m.sh(&format!("mv /root/key {key}")).expect(0);

    // Signed apart, as older clients read it.
    update("rm dists/stable/InRelease;").expect(0);
    update("").expect(0);
    install().expect(0);
    assert_eq!(m.out("tars-backup --version"), concat!("tars-backup ", env!("CARGO_PKG_VERSION")));
    m.sh("dpkg -s tars-backup | grep -c '^Status: install ok installed'").expect(0);
    m.sh("dpkg --verify tars-backup").expect(0);
    m.sh("dpkg -P tars-backup").expect(0);

    // And as the example says.
    m.sh(
        "rm /etc/apt/sources.list.d/*; sed 's#^URIs: .*#URIs: file:/srv/apt#' /srv/apt/tars-backup.sources \
          >/etc/apt/sources.list.d/tars-backup.sources",
    )
    .expect(0);
    update("").expect(0);
    install().expect(0);
    m.sh(&format!("systemctl is-enabled {}", TIMERS[0])).expect(0);
}

#[test]
fn timers_wait_for_a_configuration_on_debian_12() {
    timers_wait("12");
}

#[test]
fn timers_wait_for_a_configuration_on_debian_13() {
    timers_wait("13");
}

/// Enabled, and without a sign where there is no configuration; a configuration that is gone is something else.
fn timers_wait(release: &str) {
    let m = Machine::installed(release);
    let failed = "systemctl --failed --no-legend --plain";
    for timer in TIMERS {
        assert_eq!(m.out(&format!("systemctl is-enabled {timer}")), "enabled");
        assert_eq!(m.out(&format!("systemctl is-active {timer}")), "active");
        assert_eq!(m.show_of(timer, "Persistent"), "yes");
    }
    let started =
        [HOT, "tars-backup-sync.service", "tars-backup-verify.service", "tars-backup-drill.service"];
    for service in started {
        m.sh(&format!("systemctl start {service}")).expect(0);
        assert_eq!(m.show_of(service, "ConditionResult"), "no", "{service}");
    }
    assert_eq!(m.out(failed), "");
    assert_eq!(m.out("systemctl is-system-running"), "running");

    m.configure(CONFIG);
    m.sh("tars-backup store init local").expect(0);
    m.start().expect(0);
    m.sh("mv /etc/tars-backup/config.toml /root/").expect(0);
    for service in started {
        assert_ne!(m.sh(&format!("systemctl start {service}")).code, 0, "{service}");
        assert_eq!(m.show_of(service, "ExecMainStatus"), "78", "{service}: {}", m.log());
    }
}

#[test]
fn a_timer_catches_up_and_fires_when_it_is_told_and_a_tier_that_is_not_there_is_no_failure() {
    let m = Machine::ready("12", CONFIG);
    // The night was missed: the machine was off.
    m.sh("stamp=/var/lib/systemd/timers/stamp-tars-backup@hot.timer
         systemctl stop tars-backup@hot.timer
         touch -d '3 days ago' $stamp
         systemctl start tars-backup@hot.timer")
        .expect(0);
    m.wait("[ \"$(find /srv/backups -name '*.manifest.json' | wc -l)\" = 1 ]");
    m.wait(&format!("[ \"$(systemctl show -p ActiveState --value {HOT})\" = inactive ]"));
    assert_eq!(m.show_of(HOT, "Result"), "success", "{}", m.log());
    let committed = m.entries(&format!("-u {HOT} TARS_BACKUP_EVENT=backup.committed"));
    assert_eq!(committed.len(), 1);
    assert_eq!(committed[0]["TARS_BACKUP_TIER"], "hot");

    // Another time, by a drop-in of one's own.
    m.drop_in("tars-backup@hot.timer", "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/5\nRandomizedDelaySec=0");
    m.sh("systemctl restart tars-backup@hot.timer").expect(0);
    m.wait("[ \"$(find /srv/backups -name '*.manifest.json' | wc -l)\" -ge 2 ]");
    m.sh("systemctl stop tars-backup@hot.timer").expect(0);
    m.wait(&format!("[ \"$(systemctl show -p ActiveState --value {HOT})\" = inactive ]"));

    // Three more timers are installed, and the configuration has one tier.
    let before = m.committed();
    for tier in ["warm", "cold", "archive"] {
        let unit = format!("tars-backup@{tier}.service");
        m.sh(&format!("systemctl start {unit}")).expect(0);
        assert_eq!(m.show_of(&unit, "ConditionResult"), "yes");
        // Our own lines: systemd's name the tier, too.
        let said =
            m.out(&format!("journalctl --sync; journalctl -u {unit} -t tars-backup -o cat --no-pager"));
        assert!(said.contains(tier), "nobody is told that there is no tier {tier}: {said}");
    }
    assert_eq!(m.committed(), before);
    assert_eq!(m.out("systemctl is-system-running"), "running");
}

#[test]
fn what_timers_start_works_in_its_sandbox() {
    let m = Machine::ready("13", CONFIG);
    for service in
        [HOT, "tars-backup-sync.service", "tars-backup-verify.service", "tars-backup-drill.service"]
    {
        m.sh(&format!("systemctl start {service}")).expect(0);
        assert_eq!(m.show_of(service, "Result"), "success", "{service}: {}", m.log());
        assert_eq!(m.show_of(service, "ConditionResult"), "yes", "{service}");
    }
    assert_eq!(m.committed(), 1);
    assert_eq!(m.entries("-u tars-backup-verify.service TARS_BACKUP_EVENT=verify.good").len(), 1);
    // No identity is configured, so the timer has nothing drilled, and says so.
    assert_eq!(m.entries("-u tars-backup-drill.service TARS_BACKUP_EVENT=drill.started").len(), 0);
    let said = m.out("journalctl --sync; journalctl -u tars-backup-drill.service -o cat --no-pager");
    assert!(said.contains("No identity is configured here"), "{said}");
    m.assert_nothing_runs_and_nothing_is_left();
}

#[test]
fn the_catalog_explains_an_entry() {
    let m = Machine::ready("12", CONFIG);
    m.start().expect(0);
    let shown =
        m.out("journalctl --sync; journalctl -x -o short TARS_BACKUP_EVENT=backup.committed --no-pager");
    for text in ["Subject: local has tars-backup-", "backup of the tier hot", "tars-backup show tars-backup-"]
    {
        assert!(shown.contains(text), "{text:?} is not in:\n{shown}");
    }
    // No field is named that an event lacks: its name would be shown.
    let all = m.out(&format!("journalctl -x -o short -u {UNIT} --no-pager"));
    let named = all.replace("journalctl TARS_BACKUP_RUN=", "");
    assert!(named.contains("Subject: ") && !named.contains("TARS_BACKUP_"), "{all}");
    let entries: usize = m.out("journalctl --list-catalog | grep -c tars-backup").parse().unwrap();
    assert_eq!(entries, units(".catalog")["tars-backup.catalog"].matches("\n-- ").count());
    m.sh("dpkg -r tars-backup").expect(0);
    assert_eq!(m.out("journalctl --list-catalog | grep -c tars-backup || true"), "0");
}

#[test]
fn the_sandbox_holds_and_a_drop_in_of_ones_own_opens_it() {
    let m = Machine::installed("12");
    let proof = "[sources.proof]\ntype = \"command\"\n\
                 command = [\"sh\", \"-c\", \"touch /etc/proof /usr/proof /root/proof; touch /srv/proof; echo done\"]\n";
    m.configure(&format!("{CONFIG}{proof}"));
    m.sh("tars-backup store init local").expect(0);
    m.start().expect(0);
    m.sh("test -e /srv/proof").expect(0);
    assert_eq!(m.out("ls /etc/proof /usr/proof /root/proof 2>/dev/null || true"), "");

    // A store where none usually lies.
    let elsewhere = CONFIG.replace("/srv/backups", "/data/backups");
    m.configure(&elsewhere);
    m.sh("mkdir -p /data/backups && tars-backup store init local").expect(0);
    assert_ne!(m.start().code, 0);
    assert!(m.log().contains("Read-only file system"), "{}", m.log());
    m.drop_in(UNIT, "[Service]\nReadWritePaths=/data/backups");
    m.start().expect(0);
    assert_eq!(m.out("find /data/backups -name '*.manifest.json' | wc -l"), "1");
    assert_eq!(m.out("find /data/backups -type f ! -perm 600"), "");
}

/// In a sandbox every path that may be written is a mount point; that must not stand for the NAS.
#[test]
fn a_nas_that_is_not_mounted_is_missed_in_the_sandbox_too() {
    let m = Machine::installed("12");
    m.configure(&CONFIG.replace("path = \"/srv/backups\"", "path = \"/mnt/nas/tars\"\nrequire_mount = true"));
    m.sh("mkdir -p /mnt/nas && mount -t tmpfs nas /mnt/nas && mkdir /mnt/nas/tars").expect(0);
    m.sh("tars-backup store init local").expect(0);
    m.start().expect(0);
    // The same marker lies on the root disk, perhaps from before the NAS was bought.
    m.sh("cp -a /mnt/nas/tars /root/ && umount /mnt/nas && mv /root/tars /mnt/nas/").expect(0);
    let files = "find /mnt/nas/tars -type f | sort";
    let before = m.out(files);
    for lines in
        ["", "[Service]\nReadWritePaths=\nReadWritePaths=/mnt/nas/tars /var/lib/tars-backup /run/tars-backup"]
    {
        m.drop_in(UNIT, lines);
        assert_ne!(m.start().code, 0, "{lines}");
        let id = m.show("InvocationID");
        let said =
            m.out(&format!("journalctl --sync; journalctl _SYSTEMD_INVOCATION_ID={id} -o cat --no-pager"));
        assert!(said.contains("nothing is mounted at /mnt/nas/tars"), "{lines}: {said}");
        assert_eq!(m.out(files), before, "{lines}");
    }
}

#[test]
fn a_failure_is_reported_once_on_debian_12() {
    reported_once("12");
}

#[test]
fn a_failure_is_reported_once_on_debian_13() {
    reported_once("13");
}

fn reported_once(release: &str) {
    let m = Machine::installed(release);
    // What the program makes of it is tested with the program; this is about who is told of what, and how often.
    m.drop_in(
        "tars-backup-failed@.service",
        "[Service]\nExecStart=\nExecStart=/bin/sh -c 'echo \"$$0 $$MONITOR_EXIT_STATUS\" >>/srv/reports' %i",
    );
    let reports = "cat /srv/reports; rm /srv/reports";
    assert_ne!(m.start().code, 0);
    m.wait("test -s /srv/reports");
    assert_eq!(m.out(reports), format!("{UNIT} 78"));
    m.sh("mkdir -p /var/lib/tars-backup/last-run").expect(0);
    assert_ne!(m.sh(&format!("systemctl start {HOT}")).code, 0);
    m.wait("test -s /srv/reports");
    assert_eq!(m.out(reports), format!("{HOT} 78"));

    // Recovery tries again by itself; only that it has given up is told.
    m.drop_in(
        RECOVER,
        "[Unit]\nStartLimitBurst=4\n[Service]\nRestartSec=2\nExecStart=\nExecStart=/bin/sh -c 'echo >>/srv/tries; exit 1'",
    );
    m.sh(&format!("systemctl start --no-block {RECOVER}")).expect(0);
    m.wait("test -s /srv/reports");
    assert_eq!(m.out("wc -l </srv/tries"), "4");
    m.wait(&format!("[ \"$(systemctl show -p ActiveState --value {RECOVER})\" = failed ]"));
    m.wait("[ -z \"$(systemctl list-jobs --no-legend)\" ]");
    assert_eq!(m.out(reports), format!("{RECOVER} 1"));
    assert_eq!(m.out("systemctl list-units --failed --no-legend --plain 'tars-backup-failed@*'"), "");
}

#[test]
fn the_command_of_the_configuration_hears_of_a_failure() {
    let m = Machine::installed("12");
    let hooks = "[hooks]\non_failure = [\"sh\", \"-c\", \"echo told >>/srv/reports\"]\n";
    m.configure(&format!("{CONFIG}{hooks}"));
    // The store was never initialised.
    assert_ne!(m.start().code, 0);
    m.wait("test -s /srv/reports");
    let reporter = format!("tars-backup-failed@{UNIT}.service");
    m.wait(&format!("[ \"$(systemctl show -p ActiveState --value {reporter})\" = inactive ]"));
    assert_eq!(m.show_of(&reporter, "Result"), "success", "{}", m.log());
    assert_eq!(m.out("cat /srv/reports"), "told");
    // Nobody is to be told: that is no failure of its own.
    m.configure(CONFIG);
    assert_ne!(m.start().code, 0);
    m.wait(&format!("[ \"$(systemctl show -p ActiveState --value {reporter})\" = inactive ]"));
    assert_eq!(m.show_of(&reporter, "Result"), "success", "{}", m.log());
    assert_eq!(m.out("cat /srv/reports"), "told");
}

#[test]
fn a_restore_works_in_its_sandbox() {
    let m = Machine::ready("12", CONFIG);
    // What a narrower sandbox could not give back: owners, set-id bits.
    m.sh("cd /srv/documents; chown 1234:4321 one; cp /bin/true suid; chown 33:33 suid; chmod 6755 suid
         mkdir group; chgrp 50 group; chmod 2775 group; mkfifo -m 640 fifo")
        .expect(0);
    let look = "cd /srv/documents && find . -printf '%P %y %m %U:%G %s %T@ %l\\n' | sort && cat one deep/two";
    let before = m.out(look);
    m.start().expect(0);
    let name = m.out("basename -s .manifest.json /srv/backups/daily/*.manifest.json");
    for instance in ["latest", "documents", &name, &format!("{name}:documents")] {
        m.sh("rm -r /srv/documents/* && echo wrong >/srv/documents/wrong").expect(0);
        let unit = format!("tars-backup-restore@{instance}.service");
        let done = m.sh(&format!("systemctl start '{unit}'"));
        assert_eq!(done.code, 0, "{instance}: {}\n{}", done.stderr, m.log());
        assert_eq!(m.out(look), before, "{instance}");
        assert_eq!(m.out("ls -A /srv"), "backups\ndocuments", "{instance}");
    }
    // Only what is there can be asked for.
    let done = m.sh("systemctl start tars-backup-restore@nothing.service");
    assert_ne!(done.code, 0);
    assert_eq!(m.out(look), before);
}

#[test]
fn a_backup_that_a_timer_started_survives_an_upgrade() {
    let m = Machine::ready("13", &format!("{CONFIG}{GATE}"));
    let run = m.start_to_gate_of(HOT);
    let pid = m.show_of(HOT, "MainPID");
    assert_ne!(pid, "0");
    m.sh("systemctl disable --now tars-backup@cold.timer && systemctl stop tars-backup@warm.timer").expect(0);
    let next = m.show_of(TIMERS[0], "NextElapseUSecRealtime");
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    assert_eq!(m.show_of(HOT, "MainPID"), pid);
    assert_eq!(m.show_of(HOT, "ActiveState"), "activating");
    // What was disabled stays so; the others are there, and none begins anew.
    assert_eq!(m.sh("systemctl is-enabled tars-backup@cold.timer").stdout.trim(), "disabled");
    assert_eq!(m.sh("systemctl is-active tars-backup@cold.timer").stdout.trim(), "inactive");
    for timer in TIMERS.iter().filter(|t| !t.contains("cold")) {
        assert_eq!(m.out(&format!("systemctl is-active {timer}")), "active");
    }
    // The delay is drawn again; the night is the same.
    let (day, again) = (next.split(':').next(), m.show_of(TIMERS[0], "NextElapseUSecRealtime"));
    assert_eq!(day, again.split(':').next());
    m.sh("touch /run/go").expect(0);
    assert_eq!(ended(run), 0, "{}", m.log());
    assert_eq!(m.committed(), 1);
    m.assert_nothing_runs_and_nothing_is_left();
}

#[test]
fn removal_and_purge_leave_what_a_person_or_no_store_has() {
    let m = Machine::ready("12", CONFIG);
    let timer_of = |tier: &str| {
        let lines = "[Timer]\\nOnCalendar=daily\\n[Install]\\nWantedBy=timers.target\\n";
        format!("printf '%s\\n{lines}' \"$written\" >/etc/systemd/system/tars-backup@{tier}.timer")
    };
    m.start().expect(0);
    // As `config apply` leaves them, and of an administrator.
    m.sh(&format!(
        "written='# Written by: tars-backup config apply'
         cd /etc/systemd/system
         mkdir -p tars-backup.service.d tars-backup@.service.d
         printf '%s\\n[Service]\\nReadWritePaths=/srv\\n' \"$written\" | tee tars-backup.service.d/50-config.conf >tars-backup@.service.d/50-config.conf
         printf '[Service]\\nNice=5\\n' >tars-backup.service.d/own.conf
         {}
         written='# mine'; {}
         systemctl daemon-reload
         systemctl enable --now tars-backup@daily.timer tars-backup@mine.timer
         mkdir -p /var/lib/tars-backup/spool/x /var/lib/tars-backup/staging/y /var/lib/tars-backup/pre-restore
         echo archive >/var/lib/tars-backup/spool/x/archive; echo safety >/var/lib/tars-backup/pre-restore/copy",
        timer_of("daily"),
        timer_of("mine")
    ))
    .expect(0);

    // Removed, and installed again: as before.
    m.sh("dpkg -r tars-backup").expect(0);
    assert_eq!(m.out("systemctl list-timers --no-legend 'tars-backup*'"), "");
    m.sh(
        "test -e /var/lib/tars-backup/spool/x/archive && test -e /etc/systemd/system/tars-backup@daily.timer",
    )
    .expect(0);
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    for timer in TIMERS {
        assert_eq!(
            m.out(&format!("systemctl is-enabled {timer}; systemctl is-active {timer}")),
            "enabled\nactive"
        );
    }

    let state = "find /var/lib/tars-backup -type f | sort";
    let purged = m.sh("dpkg -P tars-backup").expect(0);
    for text in [
        "WARNING: /var/lib/tars-backup/spool is kept",
        "tars-backup sync",
        "rm -r /var/lib/tars-backup/spool",
    ] {
        assert!(purged.stderr.contains(text), "{text:?} is not in:\n{}", purged.stderr);
    }
    assert_eq!(m.out(state), "/var/lib/tars-backup/pre-restore/copy\n/var/lib/tars-backup/spool/x/archive");
    assert_eq!(
        m.out("cd /etc/systemd/system && find . -path '*tars-backup*' ! -type d | sort"),
        "./tars-backup.service.d/own.conf\n./tars-backup@mine.timer\n./timers.target.wants/tars-backup@mine.timer"
    );
    assert_eq!(m.out("find /var/lib/systemd -path '*tars-backup*'"), "");
    assert_eq!(m.committed(), 1);
    m.sh("test -s /etc/tars-backup/config.toml").expect(0);
    m.sh(
        "rm -r /var/lib/tars-backup/spool /var/lib/tars-backup/pre-restore /etc/systemd/system/tars-backup* \
          /etc/systemd/system/timers.target.wants/tars-backup*",
    )
    .expect(0);

    // With something to undo, and a run in a shell: nothing is thrown away, and both are told.
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    m.sh("mkdir -p /var/lib/tars-backup/staging/y; echo '{}' >/var/lib/tars-backup/run.journal; dpkg -P tars-backup")
        .expect(0)
        .says("tars-backup recover");
    m.sh("test -s /var/lib/tars-backup/run.journal && test -d /var/lib/tars-backup/staging/y").expect(0);
    m.sh("rm /var/lib/tars-backup/run.journal; dpkg -i /root/tars-backup.deb").expect(0);
    m.sh("mkdir -p /run/tars-backup; exec 9>/run/tars-backup/lock; flock 9; dpkg -P tars-backup")
        .expect(0)
        .says("a run is under way");
    m.sh("test -d /var/lib/tars-backup/staging/y").expect(0);

    // With nothing left but caches: no word, and no trace.
    m.sh("dpkg -i /root/tars-backup.deb").expect(0);
    let purged = m.sh("dpkg -P tars-backup").expect(0);
    assert!(!purged.stderr.contains("tars-backup:"), "{}", purged.stderr);
    m.sh("! ls /var/lib/tars-backup").expect(0);
    assert_eq!(m.out("find /etc/systemd/system -path '*tars-backup*'"), "");
    assert_eq!(m.out("systemctl is-system-running"), "running");
}
