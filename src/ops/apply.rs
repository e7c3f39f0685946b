//! Tells systemd what this configuration needs: which paths its units may write, which credentials they get, when their
//! timers fire. What could go wrong: half of it is written, or a file of somebody else is; so everything is known before
//! the first file changes, each file is replaced as a whole, and only files with our mark are touched.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::World;
use super::backup::connect_if;
use crate::cancel::Interrupted;
use crate::docker::{Docker, DockerError};
use crate::hint::Hint;
use crate::mounts;
use crate::process::ProcessError;
use crate::sandbox::{self, Credential, DIGEST, MARK, Needs, UnitFile};
use crate::secret::SecretRef;
use crate::setup::Setup;
use crate::source::Uses;
use crate::systemd::{self, Systemd};
use crate::vault;
use crate::whole_file;

/// Where an administrator's units lie.
pub const UNITS: &str = "/etc/systemd/system";

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("tier {tier}: schedule {schedule:?} is no calendar expression of systemd")]
    Schedule {
        tier: String,
        schedule: String,
        #[source]
        source: ProcessError,
    },
    #[error("the path {path:?} has a character that no unit can hold")]
    Path { path: PathBuf },
    #[error("{path} is there, and was not written by tars-backup")]
    Foreign { path: PathBuf },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the files are written, but systemd did not take them")]
    Systemd(#[source] ProcessError),
}

impl Hint for ApplyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Interrupted(_) => return None,
            Self::Schedule { schedule, .. } => format!("try it: systemd-analyze calendar {schedule:?}"),
            Self::Path { .. } => "rename the directory: line breaks cannot be written into a unit".into(),
            Self::Foreign { path } => {
                format!("look at it, and move it away: systemctl cat {}", path.display())
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root".into()
            }
            Self::Write { .. } | Self::Read { .. } => format!("look at {UNITS}"),
            Self::Systemd(_) => {
                "look at it, then again: systemctl daemon-reload; tars-backup config apply".into()
            }
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    Same,
    Written,
    Removed,
}

/// A file of systemd, and what happens to it.
#[derive(Debug, Serialize)]
pub struct Change {
    pub path: PathBuf,
    pub fate: Fate,
    #[serde(skip)]
    text: String,
}

/// What is to be done.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub files: Vec<Change>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Whether systemd runs here, and takes the change now.
    pub running: bool,
}

/// Finds out what would change; writes nothing.
pub fn plan(setup: &Setup, world: &World<'_>) -> Result<Plan, ApplyError> {
    let systemd = Systemd::new(world.runtime.clone(), world.cancel.clone());
    let mut notes = Vec::new();
    let needs = needs(setup, world, &mut notes)?;
    check_schedules(&needs, world, &systemd, &mut notes)?;
    let files = compare(Path::new(UNITS), sandbox::unit_files(&needs))?;
    Ok(Plan { files, notes, running: systemd::is_running() })
}

/// Writes what `plan` found, and has systemd read it.
pub fn run(plan: &Plan, world: &World<'_>) -> Result<(), ApplyError> {
    let changed: Vec<&Change> = plan.files.iter().filter(|c| c.fate != Fate::Same).collect();
    let systemd = Systemd::new(world.runtime.clone(), world.cancel.clone());
    let timers = |fate: Fate| {
        let of = move |c: &&&Change| c.fate == fate;
        changed.iter().filter(of).filter_map(|c| own_timer(&c.path)).collect::<Vec<_>>()
    };
    let told = |args: &[&str]| match systemd.control(args) {
        Ok(_) => Ok(()),
        Err(ProcessError::Interrupted(i)) => Err(ApplyError::Interrupted(i)),
        Err(e) => Err(ApplyError::Systemd(e)),
    };
    // A timer that goes is stopped while systemd still knows it.
    if plan.running {
        for timer in timers(Fate::Removed) {
            told(&["disable", "--now", "--quiet", &timer])?;
        }
    }
    for change in &changed {
        match change.fate {
            Fate::Same => {}
            Fate::Written => write(&change.path, &change.text)?,
            Fate::Removed => remove(&change.path)?,
        }
    }
    if !plan.running {
        return Ok(());
    }
    told(&["daemon-reload"])?;
    for timer in timers(Fate::Written) {
        told(&["enable", "--quiet", &timer])?;
        told(&["restart", &timer])?;
    }
    // One that is stopped, or was disabled, stays so.
    for change in &changed {
        if let Some(timer) = timer_of_drop_in(&change.path) {
            told(&["try-restart", &timer])?;
        }
    }
    Ok(())
}

/// Whether the files of systemd were made from another configuration than this one, or not at all; None where systemd
/// does not run.
pub fn is_stale(setup: &Setup) -> Option<bool> {
    if !systemd::is_running() {
        return None;
    }
    let file = Path::new(UNITS).join("tars-backup.service.d/50-config.conf");
    let wanted = format!("{DIGEST}{}", setup.digest);
    let text = std::fs::read_to_string(file).unwrap_or_default();
    Some(!text.lines().any(|line| line == wanted))
}

fn needs(setup: &Setup, world: &World<'_>, notes: &mut Vec<String>) -> Result<Needs, ApplyError> {
    let agent = &setup.agent;
    let mut needs = Needs { files: setup.files.clone(), digest: setup.digest.clone(), ..Needs::default() };
    needs.writes.extend(agent.own_dirs().into_iter().map(Path::to_owned));
    for root in setup.stores.iter().filter_map(|s| s.local_root()) {
        needs.writes.push(root.to_owned());
        needs.mounts.extend(mounts::expected_mount(root));
    }
    let uses: Vec<Uses<'_>> = setup.sources.iter().map(|s| s.source.uses()).collect();
    for used in &uses {
        needs.reads.extend(used.reads.iter().map(|p| (*p).to_owned()));
        needs.writes.extend(used.writes.iter().map(|p| (*p).to_owned()));
        needs.mounts.extend(used.reads.iter().filter_map(|p| mounts::expected_mount(p)));
        for path in &used.replaces {
            replaced(path, &mut needs.replaces, notes);
        }
    }
    // Our own configuration comes back with that of the stack.
    needs.replaces.extend(setup.files.iter().filter_map(|f| f.parent()).map(Path::to_owned));
    engine_needs(setup, world, &uses, &mut needs, notes)?;
    needs.mounts.sort();
    needs.mounts.dedup();
    for reference in &setup.secret_refs {
        needs.credentials.extend(credential(reference, notes));
    }
    needs.identity = setup.encryption.identity.as_ref().and_then(|i| credential(i, notes));
    let schedule = |t: &crate::config::Tier| Some((t.name.to_string(), t.schedule.clone()?));
    needs.schedules = setup.tiers.iter().filter_map(schedule).collect();
    let all = [&needs.writes, &needs.replaces, &needs.reads, &needs.mounts, &needs.files];
    let odd = |p: &&PathBuf| p.to_str().is_none_or(|t| t.chars().any(char::is_control));
    if let Some(path) = all.into_iter().flatten().find(odd) {
        return Err(ApplyError::Path { path: path.clone() });
    }
    Ok(needs)
}

/// What takes the place of `path` is made beside it.
fn replaced(path: &Path, replaces: &mut Vec<PathBuf>, notes: &mut Vec<String>) {
    match path.parent() {
        Some(parent) if parent != Path::new("/") => replaces.push(parent.to_owned()),
        _ => {
            replaces.push(path.to_owned());
            notes.push(format!(
                "{} lies at the root of the file system: restore it in a shell, not by tars-backup-restore@.service",
                path.display()
            ));
        }
    }
}

/// What of this host belongs to the engine and to the containers of the sources.
fn engine_needs(
    setup: &Setup,
    world: &World<'_>,
    uses: &[Uses<'_>],
    needs: &mut Needs,
    notes: &mut Vec<String>,
) -> Result<(), ApplyError> {
    let used = setup.sources.iter().any(|s| s.source.needs_docker());
    if let Some(socket) = setup.docker.socket.as_deref() {
        let path = Path::new(socket.strip_prefix("unix://").unwrap_or(socket));
        needs.remote_engine = !path.is_absolute();
        needs.reads.extend(path.parent().filter(|_| path.is_absolute()).map(Path::to_owned));
    }
    if !used {
        return Ok(());
    }
    let asked = connect_if(true, setup, world)?.and_then(|docker| engine_dirs(&docker, uses));
    match asked {
        Ok((root, dirs)) => {
            needs.reads.push(root.clone());
            needs.replaces.push(root.clone());
            needs.engine = Some(root);
            for dir in dirs {
                needs.reads.push(dir.clone());
                replaced(&dir, &mut needs.replaces, notes);
            }
        }
        Err(DockerError::Interrupted(i)) => return Err(i.into()),
        Err(e) => {
            needs.replaces.push("/var/lib/docker".into());
            needs.engine = Some("/var/lib/docker".into());
            notes.push(format!(
                "{}: directories that containers have mounted are not known, and a restore by a unit cannot write there; run it again when the engine runs",
                crate::hint::chain(&e)
            ));
        }
    }
    Ok(())
}

fn engine_dirs(docker: &Docker, uses: &[Uses<'_>]) -> Result<(PathBuf, Vec<PathBuf>), DockerError> {
    let root = docker.data_root()?;
    let mut dirs = Vec::new();
    for used in uses {
        if let Some(selector) = used.container {
            match docker.find(selector) {
                Ok(container) => dirs.extend(docker.mounted_directories(&container)?),
                Err(DockerError::NoContainer { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(volume) = used.volume {
            match docker.find_volume(volume) {
                Ok(place) => dirs.extend(place.host_path()),
                Err(DockerError::NoVolume { .. } | DockerError::NoDevice { .. }) => {}
                Err(e) => return Err(e),
            }
        }
    }
    dirs.retain(|dir| !dir.starts_with(&root));
    Ok((root, dirs))
}

/// A secret that systemd can hand over. What lies in a file or in the environment is none.
fn credential(reference: &SecretRef, notes: &mut Vec<String>) -> Option<Credential> {
    let SecretRef::Credential(name) = reference else { return None };
    let plain = vault::find_credential(name, false).is_some();
    let sealed = vault::find_credential(name, true);
    if !plain && sealed.is_none() {
        notes.push(format!(
            "the credential {name} is in no store yet: systemd-creds encrypt --name={name} - /etc/credstore.encrypted/{name}"
        ));
    }
    Some(Credential { name: name.clone(), encrypted: !plain })
}

fn check_schedules(
    needs: &Needs,
    world: &World<'_>,
    systemd: &Systemd,
    notes: &mut Vec<String>,
) -> Result<(), ApplyError> {
    for (tier, schedule) in &needs.schedules {
        let failed = |source| ApplyError::Schedule { tier: tier.clone(), schedule: schedule.clone(), source };
        match systemd.calendar(schedule, (world.now)(), 1) {
            Ok(_) => {}
            Err(ProcessError::Interrupted(i)) => return Err(i.into()),
            Err(ProcessError::Start { .. }) => {
                notes.push("systemd-analyze is not installed: schedules were not checked".into());
                break;
            }
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(())
}

/// What is there against what is wanted; ours that nobody wants any more goes.
fn compare(units: &Path, wanted: Vec<UnitFile>) -> Result<Vec<Change>, ApplyError> {
    let mut files = Vec::new();
    for file in wanted {
        let path = units.join(&file.path);
        let fate = match read(&path)? {
            Some(text) if text == file.text => Fate::Same,
            Some(text) if !text.starts_with(MARK) => return Err(ApplyError::Foreign { path }),
            _ => Fate::Written,
        };
        files.push(Change { path, fate, text: file.text });
    }
    for path in ours(units)? {
        if !files.iter().any(|f| f.path == path) {
            files.push(Change { path, fate: Fate::Removed, text: String::new() });
        }
    }
    Ok(files)
}

/// Files below `units` that have our mark.
fn ours(units: &Path) -> Result<Vec<PathBuf>, ApplyError> {
    let mut found = Vec::new();
    for path in entries(units)? {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !name.starts_with("tars-backup") {
            continue;
        }
        let inside = if path.is_dir() { entries(&path)? } else { vec![path] };
        for file in inside {
            if file.is_file() && !file.is_symlink() && read(&file)?.is_some_and(|t| t.starts_with(MARK)) {
                found.push(file);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, ApplyError> {
    let failed = |source| ApplyError::Read { path: dir.to_owned(), source };
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed(e)),
        Ok(all) => all.map(|e| e.map(|e| e.path()).map_err(failed)).collect(),
    }
}

fn read(path: &Path) -> Result<Option<String>, ApplyError> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ApplyError::Read { path: path.to_owned(), source }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), ApplyError> {
    let failed = |source| ApplyError::Write { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).map_err(failed)?;
    // Units are for everybody to read; there is no secret in one.
    whole_file::write_as(path, text.as_bytes(), 0o644).map_err(failed)
}

fn remove(path: &Path) -> Result<(), ApplyError> {
    std::fs::remove_file(path).map_err(|source| ApplyError::Write { path: path.to_owned(), source })?;
    // The directory of a drop-in, if there is nothing else in it.
    if let Some(dir) = path.parent().filter(|d| d.extension().is_some_and(|x| x == "d")) {
        let _ = std::fs::remove_dir(dir);
    }
    Ok(())
}

/// The timer that this file is.
fn own_timer(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.ends_with(".timer").then(|| name.to_owned())
}

/// The timer that this file changes.
fn timer_of_drop_in(path: &Path) -> Option<String> {
    let dir = path.parent()?.file_name()?.to_str()?;
    dir.strip_suffix(".d").filter(|unit| unit.ends_with(".timer")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Vec<UnitFile> {
        names.iter().map(|n| UnitFile { path: n.into(), text: format!("{MARK}\n{n}\n") }).collect()
    }

    fn fates(units: &Path, names: &[&str]) -> Vec<(String, Fate)> {
        let changes = compare(units, wanted(names)).unwrap();
        for change in &changes {
            match change.fate {
                Fate::Written => write(&change.path, &change.text).unwrap(),
                Fate::Removed => remove(&change.path).unwrap(),
                Fate::Same => {}
            }
        }
        let shown = |c: &Change| (c.path.strip_prefix(units).unwrap().display().to_string(), c.fate);
        changes.iter().map(shown).collect()
    }

    #[test]
    fn what_is_wanted_is_written_and_what_was_ours_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = ("tars-backup.service.d/50-config.conf", "tars-backup@x.timer");
        let owned =
            |pairs: &[(&str, Fate)]| pairs.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect::<Vec<_>>();
        assert_eq!(fates(dir.path(), &[a, b]), owned(&[(a, Fate::Written), (b, Fate::Written)]));
        assert_eq!(fates(dir.path(), &[a, b]), owned(&[(a, Fate::Same), (b, Fate::Same)]));
        // What somebody else put there stays, and its directory with it.
        std::fs::write(dir.path().join("tars-backup.service.d/own.conf"), "[Service]\n").unwrap();
        std::fs::write(dir.path().join("tars-backup@y.timer"), "[Timer]\n").unwrap();
        assert_eq!(fates(dir.path(), &[]), owned(&[(a, Fate::Removed), (b, Fate::Removed)]));
        assert!(dir.path().join("tars-backup.service.d/own.conf").exists());
        assert!(dir.path().join("tars-backup@y.timer").exists());
        let foreign = compare(dir.path(), wanted(&["tars-backup@y.timer"]));
        assert!(matches!(foreign, Err(ApplyError::Foreign { .. })), "{foreign:?}");
    }

    #[test]
    fn timers_are_told_from_drop_ins() {
        let of = |path: &str| (own_timer(Path::new(path)), timer_of_drop_in(Path::new(path)));
        assert_eq!(of("/u/tars-backup@x.timer"), (Some("tars-backup@x.timer".into()), None));
        let drop_in = of("/u/tars-backup@hot.timer.d/50-config.conf");
        assert_eq!(drop_in, (None, Some("tars-backup@hot.timer".into())));
        assert_eq!(of("/u/tars-backup.service.d/50-config.conf"), (None, None));
    }
}
