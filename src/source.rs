//! A thing to capture. Each kind is one file that owns its table of the configuration, its way to capture, its check
//! of what was captured and the commands that restore it by hand. A new kind is that file and one line in `KINDS`.

mod chromadb;
mod command;
mod config_files;
mod directory;
mod ollama;
mod postgres;
mod redis;
mod sqlite;
mod volume;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use crate::archive::compress::Staged;
use crate::archive::tree::{self, Exclude, TreeError, TreeReport};
use crate::archive::unpack::UnpackError;
use crate::cancel::{Cancel, Interrupted};
use crate::change::ChangeError;
use crate::chroma::ChromaError;
use crate::config::{Encryption, Section};
use crate::docker::hold::{HoldError, Holds, InUse};
use crate::docker::{Container, Docker, DockerError, Image, Limits, Place, Seat, Selector, Throwaway};
use crate::held_copy::CopySettings;
use crate::hint::Hint;
use crate::id::Name;
use crate::keyring::{KeyError, Keyring};
use crate::manifest::Component;
use crate::mounts::MountError;
use crate::process::ProcessError;
use crate::progress::Monitor;
use crate::run_journal::JournalError;
use crate::secret::SecretRef;
use crate::staging::{Stage, StagingError};
use crate::target::{Compared, Target, TreeTarget, WindowTarget, Work};
use crate::vault::{SecretError, Vault};

/// The kinds of sources, by the word that `type =` takes.
const KINDS: &[(&str, Kind)] = &[
    ("directory", directory::KIND),
    ("sqlite", sqlite::KIND),
    (COMMAND, command::KIND),
    (CONFIGURATION, config_files::KIND),
    ("postgres", postgres::KIND),
    ("redis", redis::KIND),
    ("chromadb", chromadb::KIND),
    ("volume", volume::KIND),
    (MODELS, ollama::KIND),
];

/// The kind that `--include-models` adds.
pub const MODELS: &str = "ollama";

/// The kind that runs a program of the operator's.
pub const COMMAND: &str = "command";
/// The kind of configuration files.
pub const CONFIGURATION: &str = "config_files";

/// What the rest of the program knows about a kind.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Without it a backup is partial, unless the configuration says otherwise.
    critical: bool,
    /// Part of tiers whose components are "default", unless the configuration says otherwise.
    on_by_default: bool,
    /// Told when it shrinks to under half, unless the configuration says otherwise.
    watched: bool,
    /// Asks the table of a source for everything that it may hold.
    read: fn(&Name, &Section<'_>, Limits) -> Box<dyn Source>,
    /// Reads one stored member of this kind and compares it with the facts.
    check: fn(&mut Member<'_>) -> Result<(), CheckError>,
    /// Stock commands that restore a component by hand.
    restore: fn(&str, &Component) -> String,
    /// How a drill brings a component back.
    rehearsal: Rehearsal,
}

/// How a drill brings a component of a kind back, where nothing of it is live.
#[derive(Clone, Copy)]
pub enum Rehearsal {
    /// Into a directory of ours, as a source of type `directory`.
    Directory,
    /// Into a file of ours.
    File,
    /// Into a server, in a container of the image that it came from.
    Server(fn(&Component, &Image) -> Throwaway),
    /// There is no service to bring it into: all that can be known is read out of the archive.
    Read(fn(&Context<'_>, &Work<'_>) -> Result<Rehearsed, SourceError>),
}

/// What was found out by reading alone.
#[derive(Debug, Default)]
pub struct Rehearsed {
    pub compared: Vec<Compared>,
    /// Why a part of it could not be read, and what to do.
    pub closed: Option<(String, Option<String>)>,
}

/// How a drill brings back a component of this type; None for one that this version does not know.
pub fn rehearsal(kind: &str) -> Option<Rehearsal> {
    find_kind(kind).map(|(_, kind)| kind.rehearsal)
}

pub trait Source: Send + Sync {
    fn needs_docker(&self) -> bool {
        false
    }

    /// Whether containers may have mounted what a restore replaces, although it is restored without the engine.
    fn may_be_mounted(&self) -> bool {
        false
    }

    /// What of this host it uses.
    fn uses(&self) -> Uses<'_> {
        Uses::default()
    }

    /// Tiers that its configuration names.
    fn tiers(&self) -> &[String] {
        &[]
    }

    /// Limits of time that its table has beside those of every source.
    fn more_limits(&self) -> Vec<(&'static str, Duration)> {
        Vec::new()
    }

    /// Whether it compares what it finds with the last run.
    fn compares(&self) -> bool {
        false
    }

    /// One line for the plan: what is captured, and how.
    fn method(&self) -> String;

    /// Looks whether the source is really there, without changing anything; bytes to be read where that is cheap to
    /// know.
    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError>;

    /// Where a component of a backup goes back to; None for a kind that this version does not put back.
    fn target<'a>(
        &'a self,
        _: &Context<'_>,
        _: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        Ok(None)
    }

    /// Files of the stack's configuration that it names.
    fn files(&self) -> &[PathBuf] {
        &[]
    }

    /// Whether it is the configuration, which comes back only when that was asked for.
    fn is_configuration(&self) -> bool {
        false
    }

    /// Configuration files: members of the archive, and the live files that they are copies of.
    fn references(&self, _: &Context<'_>, _: &Work<'_>) -> Result<Vec<(String, PathBuf)>, SourceError> {
        Ok(Vec::new())
    }

    /// The same files with their secrets, as far as the archive has them and they can be opened here.
    fn originals<'a>(&'a self, _: &Context<'_>, _: &Work<'_>) -> Result<Originals<'a>, SourceError> {
        Ok(Originals::None)
    }

    /// Puts the state of the source into staging.
    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError>;
}

/// What of this host a source uses: a sandbox must leave it open.
#[derive(Debug, Default)]
pub struct Uses<'a> {
    /// Read by a capture.
    pub reads: Vec<&'a Path>,
    /// Written in by a capture, as by SQLite beside its database.
    pub writes: Vec<&'a Path>,
    /// Files and directories that a restore puts others in place of.
    pub replaces: Vec<&'a Path>,
    /// The container, and the volume, where its data lies.
    pub container: Option<&'a Selector>,
    pub volume: Option<&'a str>,
}

/// Sealed originals of a component of configuration files.
pub enum Originals<'a> {
    /// The archive has none.
    None,
    /// They cannot be opened: why, and what to do.
    Closed(String, Option<String>),
    Open(Box<dyn Target + 'a>),
}

pub use config_files::{OwnConfig, own_config};
pub use directory::inventoried;

/// What a source may use.
pub struct Context<'a> {
    /// The tier of this run.
    pub tier: &'a str,
    pub cancel: &'a Cancel,
    pub monitor: &'a dyn Monitor,
    pub runtime: &'a Handle,
    pub docker: Result<&'a Docker, DockerError>,
    /// Containers that are kept from writing, and those that are in use.
    pub holds: &'a Holds<'a>,
    pub vault: &'a Vault,
    /// Whom originals are sealed for.
    pub encryption: &'a Encryption,
    /// What opens them.
    pub keyring: &'a Keyring,
    /// Secrets that the configuration refers to, without the identity.
    pub secret_refs: &'a [SecretRef],
    /// Our own configuration, which belongs to the configuration of the stack.
    pub config_files: &'a [PathBuf],
    /// Directories of ours that are never captured.
    pub own_dirs: &'a [PathBuf],
    /// Those among them that are in use while anything is done.
    pub agent_dirs: Vec<&'a Path>,
    /// Our own program, for probing mounts.
    pub exe: &'a Path,
    /// Facts of this component in the newest earlier backup.
    pub previous: Option<&'a Map<String, Value>>,
}

impl Context<'_> {
    pub fn docker(&self) -> Result<&Docker, SourceError> {
        self.docker.clone().map_err(SourceError::Docker)
    }

    /// Where `path` of a container lies. Links in its own layer may lead into a volume.
    fn place(&self, container: &Container, path: &str) -> Result<Place, SourceError> {
        let docker = self.docker()?;
        let place = docker.place(container, path)?;
        // What somebody else has paused cannot be asked.
        if !matches!(place.seat, Seat::Layer { .. }) || container.state == "paused" {
            return Ok(place);
        }
        let _in_use = self.holds.in_use(&container.id, self.cancel)?;
        let real = docker.without_links(&container.id, &place.rest)?;
        Ok(docker.place(container, &real.display().to_string())?)
    }

    /// A container to run commands in: nobody holds it while the first part of the result lives.
    fn running(&self, selector: &Selector) -> Result<(InUse<'_>, Container), SourceError> {
        let docker = self.docker()?;
        let found = docker.find(selector)?;
        let in_use = self.holds.in_use(&found.id, self.cancel)?;
        // It may have been held, and so looked different, until now.
        let container = docker.find(selector)?;
        container.must_run()?;
        Ok((in_use, container))
    }
}

/// A component that lies in staging.
#[derive(Debug, Default)]
pub struct Capture {
    pub staged: Vec<Staged>,
    /// Bytes read from the source.
    pub bytes_in: u64,
    pub files: u64,
    pub consistency: &'static str,
    pub warnings: Vec<String>,
    /// Set when something could not be read: what is here is then not all of it.
    pub incomplete: Option<String>,
    pub facts: Map<String, Value>,
    /// Docker volumes that the data came from.
    pub volumes: Vec<String>,
    /// For how long containers were held.
    pub paused: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Docker(DockerError),
    #[error(transparent)]
    Process(ProcessError),
    #[error(transparent)]
    Tree(TreeError),
    #[error(transparent)]
    Chroma(ChromaError),
    #[error(transparent)]
    Hold(HoldError),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error(transparent)]
    Mount(MountError),
    #[error("cannot write {member} in staging")]
    Write {
        member: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Place {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Unpack(UnpackError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the identity")]
    Key(#[source] KeyError),
    /// The server that is there was set up otherwise than the one that the backup came from.
    #[error("{what}: {why}")]
    Unlike { what: String, why: String, hint: Option<String> },
    #[error("{what}: {why}")]
    Bad { what: String, why: String, hint: Option<String> },
}

impl From<DockerError> for SourceError {
    fn from(e: DockerError) -> Self {
        match e {
            DockerError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Docker(e),
        }
    }
}

impl From<ProcessError> for SourceError {
    fn from(e: ProcessError) -> Self {
        match e {
            ProcessError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Process(e),
        }
    }
}

impl From<UnpackError> for SourceError {
    fn from(e: UnpackError) -> Self {
        match e {
            UnpackError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Unpack(e),
        }
    }
}

impl From<ChromaError> for SourceError {
    fn from(e: ChromaError) -> Self {
        match e {
            ChromaError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Chroma(e),
        }
    }
}

impl From<MountError> for SourceError {
    fn from(e: MountError) -> Self {
        match e {
            MountError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Mount(e),
        }
    }
}

impl SourceError {
    /// Whether this machine is the reason, its engine, or what a person gave us: then it says nothing of the backup. What
    /// the data itself tells, or a server that does not take it, is the backup's fault as long as nobody knows better.
    pub fn is_of_this_machine(&self) -> bool {
        match self {
            Self::Interrupted(_)
            | Self::Staging(_)
            | Self::Secret(_)
            | Self::Mount(_)
            | Self::Write { .. }
            | Self::Place { .. }
            | Self::Journal(_)
            | Self::Key(_)
            | Self::Unlike { .. } => true,
            Self::Docker(e) => e.is_of_this_machine(),
            Self::Process(e) => !matches!(e, ProcessError::Exit { .. }),
            Self::Tree(e) => matches!(
                e,
                TreeError::Root { .. }
                    | TreeError::Mount { .. }
                    | TreeError::RootChanged { .. }
                    | TreeError::Write(_)
            ),
            Self::Chroma(e) => matches!(e, ChromaError::Write { .. } | ChromaError::Spill { .. }),
            Self::Hold(e) => e.is_of_this_machine(),
            // A name that no file system takes is the archive's.
            Self::Unpack(UnpackError::Write { source, .. }) => {
                !matches!(source.kind(), io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput)
            }
            Self::Unpack(e) => matches!(e, UnpackError::NotFresh { .. }),
            Self::Change(e) => e.is_of_this_machine(),
            // Nothing that an archive holds is an error of the system.
            Self::Read { source, .. } => source.raw_os_error().is_some(),
            Self::Bad { .. } => false,
        }
    }

    pub(crate) fn bad(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Bad { what: what.into(), why: why.into(), hint: None }
    }

    pub(crate) fn hinted(what: impl Into<String>, why: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Bad { what: what.into(), why: why.into(), hint: Some(hint.into()) }
    }

    pub(crate) fn write(member: &str) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Write { member: member.to_owned(), source }
    }
}

impl Hint for SourceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Docker(e) => e.hint(),
            Self::Process(e) => e.hint(),
            Self::Tree(e) => e.hint(),
            Self::Hold(e) => e.hint(),
            Self::Chroma(e) => e.hint(),
            Self::Unpack(e) => e.hint(),
            Self::Journal(e) => e.hint(),
            Self::Change(e) => e.hint(),
            Self::Place { source, path } if source.kind() == io::ErrorKind::StorageFull => {
                Some(format!("make room: df -h {}", path.display()))
            }
            Self::Staging(e) => e.hint(),
            Self::Secret(e) => e.hint(),
            Self::Mount(e) => e.hint(),
            Self::Write { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Some("staging is full: make room, or set agent.staging_dir to a larger disk".into())
            }
            Self::Key(e) => e.hint(),
            Self::Unlike { hint, .. } | Self::Bad { hint, .. } => hint.clone(),
            _ => None,
        }
    }
}

/// A configured source.
pub struct Configured {
    pub name: Name,
    pub kind: &'static str,
    pub critical: bool,
    /// Part of a tier whose components are "default".
    pub on_by_default: bool,
    /// Whether it is an anomaly when it shrinks to under half.
    pub watched: bool,
    pub limits: Limits,
    /// Containers or services that a restore stops meanwhile, beside those that Compose says depend on it.
    pub dependents: Vec<String>,
    pub source: Box<dyn Source>,
}

/// Reads `[sources]`.
pub fn read_all(root: &Section<'_>) -> Vec<Configured> {
    let mut sources = Vec::new();
    let tables = root.tables("sources");
    if tables.is_empty() {
        root.table("sources").problem(
            "",
            "no source is configured",
            Some("add [sources.documents] with type = \"directory\" and path = \"/…\"".into()),
        );
    }
    for (name, s) in tables {
        match name.parse::<Name>() {
            Ok(name) => sources.extend(read_one(&name, &s)),
            Err(e) => s.problem("", e.to_string(), None),
        }
    }
    sources
}

/// Asks one table all its questions. None when its type is not known.
fn read_one(name: &Name, s: &Section<'_>) -> Option<Configured> {
    let word = s.text("type", "Kind of source");
    let Some((kind_name, kind)) = word.as_deref().and_then(find_kind) else {
        let words: Vec<&str> = KINDS.iter().map(|(w, _)| *w).collect();
        let hint = word
            .as_deref()
            .and_then(|w| crate::config::nearest(w, words.iter().copied()))
            .map_or_else(|| format!("one of: {}", words.join(", ")), |w| format!("did you mean {w:?}?"));
        let message = if word.is_some() { "is not a kind of source" } else { "missing" };
        s.problem("type", message, Some(hint));
        return None;
    };
    let configured = read_as(name, s, kind_name, kind);
    s.finish();
    Some(configured)
}

fn read_as(name: &Name, s: &Section<'_>, kind_name: &'static str, kind: &Kind) -> Configured {
    let critical = s.flag("critical", kind.critical, "Without it a backup is partial, not only degraded");
    let on_by_default =
        s.flag("on_by_default", kind.on_by_default, "Part of tiers whose components are \"default\"");
    let watched = s.flag(
        "anomaly",
        kind.watched,
        "An anomaly, if it is empty or under half of what it was: then nothing is pruned until it is accepted",
    );
    let limits = Limits {
        total: s.duration_or("timeout", Duration::from_secs(6 * 3600), "Longest time for the whole capture"),
        idle: s.duration_or("idle_timeout", Duration::from_secs(300), "Longest time without any progress"),
    };
    let dependents = s.texts(
        "dependents",
        "Containers or services that a restore stops meanwhile, beside those that Compose says depend on it",
    );
    let source = (kind.read)(name, s, limits);
    Configured {
        name: name.clone(),
        kind: kind_name,
        critical,
        on_by_default,
        watched,
        limits,
        dependents,
        source,
    }
}

fn find_kind(word: &str) -> Option<(&'static str, &'static Kind)> {
    KINDS.iter().find(|(w, _)| *w == word).map(|(w, k)| (*w, k))
}

/// The questions of each kind, asked of an empty table: the schema of `[sources.*]`.
pub fn schemas() -> Vec<Value> {
    let Ok(name) = "name".parse::<Name>() else { return Vec::new() };
    KINDS
        .iter()
        .map(|(word, kind)| {
            let (section, survey) = Section::blank("source");
            read_as(&name, &section, word, kind);
            let mut schema = crate::config::json_schema("source", &survey.borrow().keys);
            schema["properties"]["type"] = serde_json::json!({ "const": word });
            schema["required"] = serde_json::json!(["type"]);
            schema
        })
        .collect()
}

/// Stock commands that restore this component; empty for a kind that this version does not know.
pub fn restore_guide(name: &str, component: &Component) -> String {
    find_kind(&component.kind).map_or_else(String::new, |(_, kind)| (kind.restore)(name, component))
}

/// A member of an archive that is being verified, without its compression.
pub struct Member<'a> {
    /// Name without the suffix of its compression.
    pub name: &'a str,
    pub body: &'a mut dyn Read,
    pub component: &'a Component,
    /// Private directory for what must lie on disk to be checked.
    pub scratch: &'a Path,
}

/// Why a stored member is not what the manifest says.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("{0}")]
    Bad(String),
}

/// Checks a member with what its kind knows. Members of unknown kinds are only read to their end.
pub fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    match find_kind(&member.component.kind) {
        Some((_, kind)) => (kind.check)(member),
        None => io::copy(member.body, &mut io::sink()).map(|_| ()).map_err(CheckError::Read),
    }
}

/// Reads a tar to its end and compares its entries with the manifest.
fn check_tree(member: &mut Member<'_>) -> Result<(), CheckError> {
    let found = crate::archive::read::walk_tar(&mut member.body)
        .map_err(|e| CheckError::Bad(crate::hint::chain(&e)))?;
    let wanted = member.component.facts.get("entries").and_then(Value::as_u64);
    if wanted.is_some_and(|w| w != found) {
        return Err(CheckError::Bad(format!("{found} entries, the manifest says {}", wanted.unwrap_or(0))));
    }
    Ok(())
}

/// Which container a source means.
fn selector(name: &Name, s: &Section<'_>) -> Selector {
    Selector {
        container: s.text("container", "Name of the container; default: found by its Compose service"),
        service: s
            .text(
                "service",
                "Compose service, where no container of that name is found; default: the name of the source",
            )
            .unwrap_or_else(|| name.to_string()),
    }
}

/// A place of containers as a target of a restore: as a directory of this host, or else through a helper container.
fn place_target<'a>(
    context: &Context<'_>,
    place: Place,
    container: Option<&Container>,
    copy: &CopySettings,
) -> Result<Box<dyn Target + 'a>, SourceError> {
    match &place.seat {
        Seat::Volume { name } if place.base.is_none() && context.docker()?.is_local() => {
            if context.docker()?.lies_in_memory(name)? {
                return Err(SourceError::hinted(
                    place.describe(),
                    "it lies in memory, and is gone when its containers stop",
                    "restore it elsewhere with --to DIR, then follow RESTORE.md",
                ));
            }
            let image = container.map(|c| c.image_id.clone());
            Ok(Box::new(WindowTarget::new(place, image, copy.exclude.clone())))
        }
        _ => Ok(Box::new(tree_target(context, place, copy)?)),
    }
}

/// The same, of a place that is a directory of this host.
fn tree_target(context: &Context<'_>, place: Place, copy: &CopySettings) -> Result<TreeTarget, SourceError> {
    let (what, live) = (place.describe(), reachable(context, &place)?);
    Ok(TreeTarget { live, what, place: Some(place), exclude: copy.exclude.clone() })
}

/// The directory of this host that can be replaced as a whole. It may not be there any more.
fn reachable(context: &Context<'_>, place: &Place) -> Result<PathBuf, SourceError> {
    let docker = context.docker()?;
    let (base, rest) = match &place.seat {
        Seat::Layer { container } if docker.is_local() => {
            let found = docker.look(container)?;
            if found.as_ref().is_some_and(|c| c.auto_remove) {
                return Err(SourceError::hinted(
                    place.describe(),
                    "the container is removed when it stops, and this goes with it",
                    "mount a volume there, or run it without --rm; then again",
                ));
            }
            let rest = place.rest.strip_prefix("/").unwrap_or(&place.rest).to_owned();
            // The whole of a container is more than its data.
            let layer = found.and_then(|c| c.layer).filter(|_| !rest.as_os_str().is_empty());
            (layer, rest)
        }
        _ => (place.base.clone(), place.rest.clone()),
    };
    let Some(base) = base.filter(|base| base.is_dir()) else {
        return Err(SourceError::hinted(
            place.describe(),
            "it cannot be reached without the engine, so nothing can be put in place there as a whole",
            "restore it elsewhere with --to DIR, then follow RESTORE.md",
        ));
    };
    // The last part may not be there any more; what is above it must be, and no link may lead away.
    match tree::beneath(&base, &rest) {
        Err(TreeError::NoRoot { .. }) => Ok(base.join(&rest)),
        other => Ok(other?),
    }
}

/// What a source leaves out.
pub(crate) fn exclude(s: &Section<'_>) -> Exclude {
    let patterns = s.texts(
        "exclude",
        "Patterns to leave out: a name at any depth (*.tmp), or a path from the directory (cache/**)",
    );
    Exclude::new(&patterns).unwrap_or_else(|(pattern, why)| {
        s.problem("exclude", format!("{pattern:?} is not a pattern: {why}"), None);
        Exclude::default()
    })
}

/// Data that goes with its container, and the line of the Compose file that mends it.
fn layer_warning(container: &Container, path: &str) -> String {
    let volumes = match container.volumes().as_slice() {
        [] => String::new(),
        some => format!(" (now it has {})", some.join(", ")),
    };
    format!(
        "{path} lies in the container's own layer and is lost when {} is removed: mount a volume there in the Compose \
         file, under volumes: - NAME:{path}{volumes}",
        container.name
    )
}

/// What a tree holds, for the manifest.
fn tree_facts(report: &TreeReport) -> Map<String, Value> {
    let mut facts = Map::new();
    for (key, value) in [
        ("files", report.files),
        ("directories", report.directories),
        ("symlinks", report.symlinks),
        ("hardlinks", report.hardlinks),
        ("fifos", report.fifos),
        ("bytes", report.bytes),
        ("entries", report.entries),
    ] {
        facts.insert(key.into(), value.into());
    }
    facts
}

/// Integrity and counts of a database file that nobody else uses; the text says what is wrong.
pub(crate) fn examine_sqlite(path: &Path) -> Result<Map<String, Value>, String> {
    let wrong = |e: rusqlite::Error| e.to_string();
    // immutable: the copy may carry the mark of a write-ahead log that it does not have.
    let uri = format!("file:{}?immutable=1", percent(path));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(uri, flags).map_err(wrong)?;
    let verdict: String = db.query_row("PRAGMA integrity_check(3)", [], |r| r.get(0)).map_err(wrong)?;
    if verdict != "ok" {
        return Err(format!("integrity check: {verdict}"));
    }
    let mut tables: Vec<String> = Vec::new();
    let mut statement = db
        .prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
             AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name",
        )
        .map_err(wrong)?;
    let rows = statement.query_map([], |r| r.get(0)).map_err(wrong)?;
    for name in rows {
        tables.push(name.map_err(wrong)?);
    }
    let mut counts = Map::new();
    for table in tables {
        let quoted = table.replace('"', "\"\"");
        let count: i64 =
            db.query_row(&format!("SELECT count(*) FROM \"{quoted}\""), [], |r| r.get(0)).map_err(wrong)?;
        counts.insert(table, json!(count));
    }
    Ok(Map::from_iter([("rows".to_owned(), Value::Object(counts))]))
}

/// Commands of a guide that empty `$dir` and keep what was in it.
pub(crate) const SET_ASIDE: &str =
    "mkdir \"$dir.before\"\nfind \"$dir\" -mindepth 1 -maxdepth 1 -exec mv -t \"$dir.before\" {} +";

/// A path for an SQLite URI.
pub(crate) fn percent(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut out = String::new();
    for b in path.as_os_str().as_bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-') {
            out.push(*b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// A word for a POSIX shell.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Facts of the container that data came from.
fn container_facts(facts: &mut Map<String, Value>, context: &Context<'_>, container: &Container) {
    facts.insert("container".into(), container.name.clone().into());
    facts.insert("image".into(), container.image.clone().into());
    facts.insert("image_id".into(), container.image_id.clone().into());
    // What it is called on another machine, for a drill there. Nothing fails for the want of it.
    let image = context.docker.as_ref().ok().and_then(|d| d.image(&container.image_id).ok()?);
    if let Some(digest) = image.and_then(|i| i.digests.into_iter().next()) {
        facts.insert("image_digest".into(), digest.into());
    }
    let compose: Map<String, Value> =
        container.compose().into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    if !compose.is_empty() {
        facts.insert("compose".into(), compose.into());
    }
}

/// Copies a stream into a component file, telling progress. The reader's errors are named by `what`.
fn copy(
    context: &Context<'_>,
    what: &str,
    from: &mut dyn Read,
    member: &str,
    to: &mut dyn Write,
) -> Result<u64, SourceError> {
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        context.cancel.check()?;
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(SourceError::Read { what: what.to_owned(), source }),
        };
        to.write_all(&buffer[..n]).map_err(SourceError::write(member))?;
        context.monitor.moved(n as u64);
        total += n as u64;
    }
}
