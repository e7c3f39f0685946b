//! What the units of this host are allowed beyond what the package gives them, as systemd reads it. What could go wrong:
//! a path that is missing here makes a backup fail that worked in a shell, and one too many makes the sandbox worth
//! less; so the lists come from the configuration alone, and nothing is guessed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// First line of every file that is written from here; a file without it is somebody else's.
pub const MARK: &str = "# Written by: tars-backup config apply";
/// Starts the line that names the configuration which a file was made from.
pub const DIGEST: &str = "# Configuration: ";
const FILE: &str = "50-config.conf";

/// Units that make, finish and check backups.
const RUNS: [&str; 4] =
    ["tars-backup.service", "tars-backup@.service", "tars-backup-sync.service", "tars-backup-verify.service"];
/// Units that put data back.
const RESTORES: [&str; 2] = [RECOVERY, "tars-backup-restore@.service"];
/// The one that puts data where nothing is live.
const DRILL: &str = "tars-backup-drill.service";
/// Those of all these that open sealed backups.
const OPENS: [&str; 3] = ["tars-backup-verify.service", "tars-backup-restore@.service", DRILL];
/// The one of them that has no network by itself.
const RECOVERY: &str = "tars-backup-recover.service";
/// What `ProtectHome=` is about.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// Tiers whose timers are in the package.
const SHIPPED: [&str; 4] = ["hot", "warm", "cold", "archive"];

/// A secret that systemd hands to the unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub name: String,
    /// It lies encrypted in the credential store, or is not there yet and should.
    pub encrypted: bool,
}

/// What this configuration needs on this host. Paths are absolute.
#[derive(Debug, Default)]
pub struct Needs {
    /// Files of the configuration.
    pub files: Vec<PathBuf>,
    /// SHA-256 of their text.
    pub digest: String,
    /// Written by every run: stores, directories of our own, what an SQLite database needs beside it.
    pub writes: Vec<PathBuf>,
    /// Directories in which a restore puts something in place of something else.
    pub replaces: Vec<PathBuf>,
    /// Directory of the engine: volumes of a drill are written there.
    pub engine: Option<PathBuf>,
    /// Read by a run; of interest only where the sandbox hides it.
    pub reads: Vec<PathBuf>,
    /// Mount points that are waited for.
    pub mounts: Vec<PathBuf>,
    pub credentials: Vec<Credential>,
    /// The engine is reached over the network.
    pub remote_engine: bool,
    /// The private key that opens backups.
    pub identity: Option<Credential>,
    /// Tiers and when their timers fire.
    pub schedules: Vec<(String, String)>,
}

/// A file of systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    /// Below the directory of units.
    pub path: PathBuf,
    pub text: String,
}

/// The tier of a timer that is not in the package, by the name of its unit file.
pub fn timer_of(tier: &str) -> String {
    format!("tars-backup@{tier}.timer")
}

pub fn is_shipped(tier: &str) -> bool {
    SHIPPED.contains(&tier)
}

/// All files that this configuration needs.
pub fn unit_files(needs: &Needs) -> Vec<UnitFile> {
    let none: &[PathBuf] = &[];
    let engine = needs.engine.as_slice();
    let runs = RUNS.iter().map(|unit| service(needs, unit, none));
    let restores = RESTORES.iter().map(|unit| service(needs, unit, &needs.replaces));
    let runs = runs.chain([service(needs, DRILL, engine)]);
    let timers = needs.schedules.iter().map(|(tier, when)| timer(needs, tier, when));
    runs.chain(restores).chain(timers).collect()
}

fn head(needs: &Needs) -> String {
    let files: Vec<String> = needs.files.iter().map(|f| f.display().to_string()).collect();
    format!(
        "{MARK}\n# From: {}\n# What is changed here is lost; settings of your own go into another file beside it.\n{DIGEST}{}\n",
        files.join(" "),
        needs.digest
    )
}

/// `more`: where it writes beside what every run does.
fn service(needs: &Needs, unit: &str, more: &[PathBuf]) -> UnitFile {
    let mut text = head(needs);
    if !needs.mounts.is_empty() {
        let units: Vec<String> = needs.mounts.iter().map(|m| mount_unit(m)).collect();
        let units = units.join(" ");
        // Not Requires=: a disk that is missing fails its store, and is told as that.
        let _ = write!(text, "\n[Unit]\nWants={units}\nAfter={units}\n");
    }
    text.push_str("\n[Service]\n");
    let written = outermost(needs.writes.iter().chain(more).cloned().collect());
    // The empty one takes back the list of the package.
    text.push_str("ReadWritePaths=\n");
    for path in written.iter().filter(|p| !is_hidden(p)) {
        let _ = writeln!(text, "ReadWritePaths={}", optional(path));
    }
    for path in written.iter().filter(|p| is_hidden(p)) {
        let _ = writeln!(text, "BindPaths={}", bound(path));
    }
    // Of two settings for the very same directory the narrower one wins; below it the deeper one does.
    if written.iter().any(|p| HOMES.iter().any(|home| p == Path::new(home))) {
        text.push_str("ProtectHome=no\n");
    }
    if needs.remote_engine && unit == RECOVERY {
        text.push_str("RestrictAddressFamilies=AF_INET AF_INET6\n");
    }
    let reads = outermost(needs.reads.iter().filter(|p| is_hidden(p)).cloned().collect());
    for path in reads.iter().filter(|p| !written.iter().any(|w| p.starts_with(w))) {
        let _ = writeln!(text, "BindReadOnlyPaths={}", bound(path));
    }
    let identity = needs.identity.iter().filter(|_| OPENS.contains(&unit));
    for credential in needs.credentials.iter().chain(identity) {
        let key = if credential.encrypted { "LoadCredentialEncrypted" } else { "LoadCredential" };
        let _ = writeln!(text, "{key}={}", percent(&credential.name));
    }
    UnitFile { path: Path::new(&format!("{unit}.d")).join(FILE), text }
}

fn timer(needs: &Needs, tier: &str, when: &str) -> UnitFile {
    let unit = timer_of(tier);
    let mut text = head(needs);
    let when = percent(when);
    if is_shipped(tier) {
        let _ = write!(text, "\n[Timer]\nOnCalendar=\nOnCalendar={when}\n");
        return UnitFile { path: Path::new(&format!("{unit}.d")).join(FILE), text };
    }
    let _ = write!(
        text,
        "\n[Unit]\nDescription=Backup of tier {}\nDocumentation=man:tars-backup(1)\n\n[Timer]\nOnCalendar={when}\nPersistent=true\nRandomizedDelaySec=30s\nAccuracySec=1s\n\n[Install]\nWantedBy=timers.target\n",
        percent(tier)
    );
    UnitFile { path: unit.into(), text }
}

/// Whether a unit with a /tmp of its own does not see it.
fn is_hidden(path: &Path) -> bool {
    path.starts_with("/tmp") || path.starts_with("/var/tmp")
}

/// Those that lie in no other one. Each path in the list becomes a mount point of its own in the sandbox, and nothing can
/// be renamed across one: so none may lie in another.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    paths.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|k| path.starts_with(k)) {
            kept.push(path);
        }
    }
    kept
}

/// A disk that is not mounted, or a directory that is not made yet, must not keep the unit from starting.
fn optional(path: &Path) -> String {
    quote(&format!("-{}", path.display()))
}

/// Source and destination stand in one word, with a colon between.
fn bound(path: &Path) -> String {
    let path = path.display().to_string().replace('\\', "\\\\").replace(':', "\\:");
    quote(&format!("-{path}"))
}

fn quote(word: &str) -> String {
    format!("\"{}\"", percent(&word.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// systemd reads `%h` and the like as something else.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

/// Name of the unit that mounts at `path`.
pub fn mount_unit(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let path = path.strip_prefix("/").unwrap_or(path);
    let mut name = String::new();
    for (i, byte) in path.as_os_str().as_bytes().iter().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if i == 0 => name.push_str("\\x2e"),
            b if b.is_ascii_alphanumeric() || b":_.".contains(b) => name.push(char::from(*b)),
            b => {
                let _ = write!(name, "\\x{b:02x}");
            }
        }
    }
    format!("{}.mount", if name.is_empty() { "-" } else { &name })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Needs {
        Needs {
            files: vec!["/etc/tars-backup/config.toml".into()],
            digest: "abc".into(),
            writes: vec!["/var/lib/tars-backup".into(), "/mnt/my nas/100%".into(), "/tmp/a:b".into()],
            replaces: vec!["/srv".into(), "/srv/www".into(), "/var/lib/docker".into()],
            engine: Some("/var/lib/docker".into()),
            reads: vec!["/srv/www".into(), "/tmp/engine".into()],
            mounts: vec!["/mnt/my nas".into()],
            remote_engine: false,
            credentials: vec![
                Credential { name: "pg".into(), encrypted: true },
                Credential { name: "key".into(), encrypted: false },
            ],
            identity: Some(Credential { name: "age".into(), encrypted: true }),
            schedules: vec![("hot".into(), "*:0/5".into()), ("often".into(), "hourly".into())],
        }
    }

    fn text<'a>(files: &'a [UnitFile], path: &str) -> &'a str {
        &files.iter().find(|f| f.path == Path::new(path)).unwrap().text
    }

    #[test]
    fn each_unit_gets_what_it_needs_and_no_more() {
        let files = unit_files(&sample());
        assert_eq!(files.len(), 9);
        assert!(files.iter().all(|f| f.text.starts_with(MARK)));
        let run = text(&files, "tars-backup@.service.d/50-config.conf");
        let lines: Vec<&str> = run.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
        assert_eq!(
            lines,
            [
                "[Unit]",
                r"Wants=mnt-my\x20nas.mount",
                r"After=mnt-my\x20nas.mount",
                "[Service]",
                "ReadWritePaths=",
                "ReadWritePaths=\"-/mnt/my nas/100%%\"",
                "ReadWritePaths=\"-/var/lib/tars-backup\"",
                r#"BindPaths="-/tmp/a\\:b""#,
                "BindReadOnlyPaths=\"-/tmp/engine\"",
                "LoadCredentialEncrypted=pg",
                "LoadCredential=key",
            ]
        );
        let restore = text(&files, "tars-backup-restore@.service.d/50-config.conf");
        // /srv is one mount point: what lies in it can be exchanged.
        assert!(restore.contains("\"-/srv\"") && !restore.contains("\"-/srv/www\""), "{restore}");
        assert!(!restore.contains("ProtectHome") && !restore.contains("AF_INET"), "{restore}");
        assert!(restore.contains("LoadCredentialEncrypted=age"));
        assert!(!text(&files, "tars-backup-recover.service.d/50-config.conf").contains("age"));
        assert!(text(&files, "tars-backup-verify.service.d/50-config.conf").contains("=age"));
        let drill = text(&files, "tars-backup-drill.service.d/50-config.conf");
        assert!(drill.contains("=age") && drill.contains("\"-/var/lib/docker\""), "{drill}");
        assert!(!drill.contains("ReadWritePaths=\"-/srv"), "nothing live is written: {drill}");
    }

    #[test]
    fn what_lies_right_below_a_home_and_an_engine_elsewhere_need_more() {
        let needs = Needs { replaces: vec!["/root".into()], remote_engine: true, ..sample() };
        let files = unit_files(&needs);
        let has = |unit: &str, line: &str| text(&files, &format!("{unit}.d/50-config.conf")).contains(line);
        assert!(has("tars-backup-restore@.service", "ProtectHome=no"));
        assert!(!has("tars-backup.service", "ProtectHome=no"));
        assert!(has("tars-backup-recover.service", "RestrictAddressFamilies=AF_INET AF_INET6"));
        assert!(!has("tars-backup-restore@.service", "RestrictAddressFamilies"));
    }

    #[test]
    fn a_timer_of_the_package_gets_its_schedule_and_another_tier_a_timer() {
        let files = unit_files(&sample());
        let hot = text(&files, "tars-backup@hot.timer.d/50-config.conf");
        assert!(hot.ends_with("[Timer]\nOnCalendar=\nOnCalendar=*:0/5\n"), "{hot}");
        let often = text(&files, "tars-backup@often.timer");
        assert!(often.contains("OnCalendar=hourly\nPersistent=true\n"), "{often}");
    }

    #[test]
    fn mount_units_are_named_as_systemd_names_them() {
        for (path, unit) in [
            ("/", "-.mount"),
            ("/mnt/nas", "mnt-nas.mount"),
            ("/mnt/a-b", r"mnt-a\x2db.mount"),
            ("/.x/ü", r"\x2ex-\xc3\xbc.mount"),
        ] {
            assert_eq!(mount_unit(Path::new(path)), unit);
        }
    }
}
