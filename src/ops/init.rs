//! A first configuration for the Compose stack of this machine. What could go wrong: one that looks complete and misses
//! data, so what is seen and not captured is written down with the reason; a password in it, so no value of an environment
//! is ever written; and an edited one that is written over, so a file that is there is never touched.

mod propose;
mod recognise;
mod store;
mod text;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use crate::config::Problem;
use crate::docker::{Container, Docker, DockerError, Mount, MountKind, VolumeFacts};
use crate::format::compose;
use crate::hint::{Hint, chain};
use crate::mounts::{self, Table};
use crate::setup::{self, Machine};
use crate::source::quote;
use crate::staging::make_private;
use crate::whole_file;
use propose::{Bind, LeftOut, Looked, Mounted, Proposal, Service, Source, Stack, Volume, What, propose};
use store::{NoStore, StoreChoice};

/// Where the examples lie that need no Docker.
const EXAMPLES: &str = "/usr/share/doc/tars-backup/examples";
/// A longer Compose file is none.
const COMPOSE_BYTES: u64 = 1 << 20;
/// Compose files of one project, with those that they include.
const MOST_FILES: usize = 200;
/// A longer file is no configuration.
const CONFIG_BYTES: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error("there is no container of a Compose project")]
    NoProject,
    #[error("there is no Compose project {wanted:?}")]
    UnknownProject { wanted: String, known: Vec<String> },
    #[error("there are several Compose projects: {}", known.join(", "))]
    Several { known: Vec<String> },
    #[error("the store {store} and what is captured ({captured}) lie in one another")]
    Overlap { store: PathBuf, captured: PathBuf },
    #[error("the path of the store, {path:?}, is no text")]
    NotText { path: PathBuf },
    #[error("cannot read the table of mounts")]
    Mounts(#[source] io::Error),
    #[error("{path} is there already, and is left as it is")]
    Exists { path: PathBuf },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the configuration that was made is not good, and was not written: {}", problems.join("; "))]
    NotGood { problems: Vec<String> },
}

impl Hint for InitError {
    fn hint(&self) -> Option<String> {
        let without = format!("without Docker, start from an example: ls {EXAMPLES}");
        Some(match self {
            Self::Docker(e @ DockerError::Unreachable { .. }) => {
                format!("{}; {without}", e.hint().unwrap_or_default())
            }
            Self::Docker(e) => return e.hint(),
            Self::NoProject => format!(
                "start the stack, or only make its containers: docker compose up --no-start; {without}"
            ),
            Self::UnknownProject { known, .. } => format!("there is: {}", known.join(", ")),
            Self::Several { .. } => "choose one: tars-backup init --project NAME".into(),
            Self::Overlap { .. } => "name a directory of its own for the store: --store DIR".into(),
            Self::NotText { .. } => "name a directory whose name is UTF-8: --store DIR".into(),
            Self::Exists { path } => format!(
                "edit it, or begin anew: mv {0} {0}.old; or write to another file: --config FILE",
                path.display()
            ),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or write to another file: --config FILE".into()
            }
            Self::NotGood { .. } => {
                "this is a mistake of tars-backup; start from an example meanwhile".into()
            }
            Self::Mounts(_) | Self::Write { .. } => return None,
        })
    }
}

/// What a person asks for.
pub struct Request<'a> {
    pub project: Option<&'a str>,
    /// Root of the store.
    pub store: Option<&'a Path>,
    /// The file that is going to be written.
    pub config: &'a Path,
    /// Whether that is where it is looked for anyway.
    pub is_default: bool,
}

/// What was found, and made of it.
#[derive(Debug, Serialize)]
pub struct Found {
    pub config: String,
    pub project: String,
    /// Where the engine is, unless that is where it is looked for anyway.
    pub engine: Option<String>,
    pub containers: Vec<FoundContainer>,
    pub sources: Vec<Source>,
    pub left_out: Vec<LeftOut>,
    pub store: StoreChoice,
    /// Commands, in this order.
    pub next: Vec<String>,
    #[serde(skip)]
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct FoundContainer {
    pub name: String,
    pub service: String,
    pub image: String,
    pub state: String,
}

/// Fails where the file is there already.
pub fn must_be_new(path: &Path) -> Result<(), InitError> {
    // A link that leads nowhere is somebody's, too.
    match path.symlink_metadata() {
        Ok(_) => Err(InitError::Exists { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

/// Looks at the engine and at the files that its labels name; changes nothing.
pub fn find(docker: &Docker, request: &Request<'_>, machine: &Machine<'_>) -> Result<Found, InitError> {
    let all = docker.composed()?;
    let project = choose_project(&all, request.project)?;
    let containers: Vec<&Container> = all.iter().filter(|c| c.project() == Some(project.as_str())).collect();
    let table = Table::read().map_err(InitError::Mounts)?;
    let disk = Disk {
        table: &table,
        exe: &machine.access.exe,
        is_local: docker.is_local(),
        answers: RefCell::default(),
    };

    let volumes: BTreeMap<String, VolumeFacts> =
        docker.volume_facts()?.into_iter().map(|v| (v.name.clone(), v)).collect();
    let look = Look { disk: &disk, volumes: &volumes, project: &project };
    let mut services: Vec<Service> = containers.iter().map(|c| look.service(c)).collect();
    services.sort_by(|a, b| (&a.name, &a.container).cmp(&(&b.name, &b.container)));
    let files = files(&containers, &disk);
    let real_files = files.found.iter().map(|f| disk.real(Path::new(f))).collect();
    let stack = Stack { loose: look.loose(&services), services, files: files.found, real_files };
    let Proposal { sources, mut left_out, dirs } = propose(&stack);
    left_out.extend(files.missing);

    let captured: Vec<PathBuf> = dirs.iter().flat_map(|d| [disk.real(d), d.clone()]).collect();
    let given = request.store.map(plain);
    let store =
        store::choose(&table, given.as_deref(), &captured, &|p| disk.real(p)).map_err(|e| match e {
            NoStore::Overlap { store, captured } => InitError::Overlap { store, captured },
            NoStore::NotText(path) => InitError::NotText { path },
        })?;
    let next = next(request, store.name);
    let elsewhere = Some(docker.address()).filter(|a| *a != DEFAULT_SOCKET);
    let engine = elsewhere.filter(|a| !a.contains('@'));
    if elsewhere != engine {
        left_out.push(LeftOut {
            what: "the address of the engine".to_owned(),
            why: "it may hold a password; set DOCKER_HOST for tars-backup, or socket in [docker]".to_owned(),
        });
    }
    let text = text::render(&text::Sheet {
        project: &project,
        engine,
        sources: &sources,
        left_out: &left_out,
        store: &store,
        next: &next,
    });
    let problems = problems(request.config, &text, machine);
    if !problems.is_empty() {
        return Err(InitError::NotGood { problems });
    }
    let found = |c: &&Container| FoundContainer {
        name: c.name.clone(),
        service: c.service().unwrap_or_default().to_owned(),
        image: c.image.clone(),
        state: c.state.clone(),
    };
    Ok(Found {
        config: request.config.display().to_string(),
        project,
        engine: engine.map(str::to_owned),
        containers: containers.iter().map(found).collect(),
        sources,
        left_out,
        store,
        next,
        text,
    })
}

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Writes a new file that only its owner may read, whole or not at all. A directory that is missing is made, private.
pub fn write(path: &Path, text: &str) -> Result<(), InitError> {
    let fail = |source| InitError::Write { path: path.to_owned(), source };
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_private(dir).map_err(|e| fail(io::Error::other(e)))?;
    whole_file::create(path, text.as_bytes()).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => InitError::Exists { path: path.to_owned() },
        _ => fail(e),
    })
}

/// What `config check` would say.
fn problems(path: &Path, text: &str, machine: &Machine<'_>) -> Vec<String> {
    match setup::load(&[(path.to_owned(), text.to_owned())], machine) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

fn choose_project(containers: &[Container], wanted: Option<&str>) -> Result<String, InitError> {
    let known: BTreeSet<&str> = containers.iter().filter_map(Container::project).collect();
    let owned = || known.iter().map(|p| (*p).to_owned()).collect();
    match (wanted, known.len()) {
        (_, 0) => Err(InitError::NoProject),
        (Some(wanted), _) if known.contains(wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(InitError::UnknownProject { wanted: wanted.to_owned(), known: owned() }),
        (None, 1) => Ok(known.into_iter().collect()),
        (None, _) => Err(InitError::Several { known: owned() }),
    }
}

/// The way from a new configuration to the first backup.
fn next(request: &Request<'_>, store: &str) -> Vec<String> {
    let path = request.config.display().to_string();
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let path = if plain { path } else { quote(&path) };
    let program =
        if request.is_default { "tars-backup".to_owned() } else { format!("tars-backup --config {path}") };
    let mut next = vec![format!("editor {path}")];
    next.extend(["config check", &format!("store init {store}")].map(|verb| format!("{program} {verb}")));
    if request.is_default {
        next.push(format!("{program} config apply"));
    }
    next.push(format!("{program} backup --dry-run"));
    // The units read the file that is looked for by itself.
    next.push(if request.is_default {
        "systemctl start tars-backup.service".into()
    } else {
        format!("{program} backup")
    });
    next
}

/// `path` without `.` and `..`, from the root.
fn plain(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut plain = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

/// Whether a text of a label or a mount can stand in a configuration.
fn is_usable(text: &str) -> bool {
    !text.is_empty() && !text.contains('\0')
}

/// The disks of this host, some of which may not answer.
struct Disk<'a> {
    table: &'a Table,
    exe: &'a Path,
    /// Whether the paths of the engine are those of this host.
    is_local: bool,
    /// Mount points that were asked, each once: a hung one takes its time.
    answers: RefCell<BTreeMap<PathBuf, bool>>,
}

impl Disk<'_> {
    fn is_network(&self, path: &Path) -> bool {
        self.table.of(path).is_some_and(mounts::Mounted::is_network)
    }

    fn answers(&self, path: &Path) -> bool {
        let Some(mount) = self.table.of(path).filter(|m| m.is_network()) else { return true };
        let mut answers = self.answers.borrow_mut();
        *answers
            .entry(mount.point.clone())
            .or_insert_with(|| mounts::real_path(self.exe, &mount.point).is_some())
    }

    /// `path` without links, as far as it is there.
    fn real(&self, path: &Path) -> PathBuf {
        for there in path.ancestors().filter(|a| self.answers(a)) {
            if let (Ok(real), Ok(rest)) = (there.canonicalize(), path.strip_prefix(there)) {
                return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
            }
        }
        path.to_owned()
    }

    fn look(&self, path: &Path) -> Looked {
        if !self.is_local || !path.is_absolute() || !self.answers(path) {
            return Looked::Unknown;
        }
        let meta = match path.metadata() {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Looked::Missing,
            Err(_) => return Looked::Unknown,
        };
        if meta.is_dir() {
            return Looked::Directory { is_empty: is_empty(path) };
        }
        if !meta.is_file() {
            return Looked::Special;
        }
        let mut head = Vec::new();
        match File::open(path).and_then(|f| f.take(8192).read_to_end(&mut head)) {
            Ok(_) if head.starts_with(b"SQLite format 3\0") => Looked::Sqlite,
            Ok(_) if meta.len() <= CONFIG_BYTES && !head.contains(&0) => Looked::Text,
            Ok(_) => Looked::File,
            Err(_) => Looked::Unknown,
        }
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<String> {
        let mut text = String::new();
        if !self.answers(path) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        File::open(path)?.take(most + 1).read_to_string(&mut text)?;
        if text.len() as u64 > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
    }
}

/// Whether a directory is there and has nothing in it.
fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Containers of the engine as the plan needs them.
struct Look<'a> {
    disk: &'a Disk<'a>,
    volumes: &'a BTreeMap<String, VolumeFacts>,
    project: &'a str,
}

impl Look<'_> {
    fn service(&self, container: &Container) -> Service {
        let written = container.mounts().iter().filter(|m| m.writable).map(|m| m.destination.as_str());
        let server = recognise::server(&container.image, &container.args, written);
        Service {
            name: container.service().filter(|s| is_usable(s)).unwrap_or(&container.name).to_owned(),
            container: container.name.clone(),
            own_name: container.has_own_name(),
            image: container.image.clone(),
            server,
            told: server.map_or_else(Vec::new, |s| s.told(&container.env, &container.args)),
            mounts: container.mounts().iter().filter_map(|m| self.mounted(m)).collect(),
        }
    }

    fn mounted(&self, mount: &Mount) -> Option<Mounted> {
        let what = match mount.kind {
            MountKind::Volume => What::Volume(self.volume(&mount.volume)),
            MountKind::Bind => {
                let path = mount.source.to_str()?;
                let path = if path == "/" { path } else { path.trim_end_matches('/') };
                let real = self.disk.real(Path::new(path));
                let (looked, is_network) =
                    (self.disk.look(Path::new(path)), self.disk.is_network(Path::new(path)));
                What::Bind(Bind { path: path.to_owned(), real, looked, is_network })
            }
            MountKind::Other => return None,
        };
        let names = match &what {
            What::Volume(v) => &v.name,
            What::Bind(b) => &b.path,
        };
        let usable = is_usable(names) && is_usable(&mount.destination) && mount.destination.starts_with('/');
        usable.then(|| Mounted { destination: mount.destination.clone(), writable: mount.writable, what })
    }

    fn volume(&self, name: &str) -> Volume {
        let facts = self.volumes.get(name).cloned().unwrap_or_default();
        let dir = facts.dir.filter(|_| self.disk.is_local);
        let short = facts.short.filter(|s| is_usable(s)).or_else(|| {
            let rest = name.strip_prefix(self.project)?.strip_prefix(['_', '-'])?;
            Some(rest.to_owned()).filter(|s| is_usable(s))
        });
        Volume {
            short: short.unwrap_or_else(|| name.to_owned()),
            name: name.to_owned(),
            in_memory: facts.in_memory,
            is_empty: dir.as_deref().is_some_and(|d| self.disk.answers(d) && is_empty(d)),
            dir,
        }
    }

    /// Volumes of the project that none of its containers has.
    fn loose(&self, services: &[Service]) -> Vec<Volume> {
        let used = |name: &str| {
            let mut mounts = services.iter().flat_map(|s| &s.mounts);
            mounts.any(|m| matches!(&m.what, What::Volume(v) if v.name == name))
        };
        let ours = self.volumes.values().filter(|v| v.project.as_deref() == Some(self.project));
        ours.filter(|v| is_usable(&v.name) && !used(&v.name)).map(|v| self.volume(&v.name)).collect()
    }
}

/// Files of a stack.
#[derive(Default)]
struct Files {
    found: Vec<String>,
    missing: Vec<LeftOut>,
}

impl Files {
    /// Whether the file is there; if it is not, `who` named it.
    fn take(&mut self, path: &Path, disk: &Disk<'_>, who: &str) -> bool {
        let why = match (disk.look(path), path.to_str().filter(|p| is_usable(p))) {
            (Looked::Text, Some(text)) => {
                if !self.found.iter().any(|f| f == text) {
                    self.found.push(text.to_owned());
                }
                return true;
            }
            // `/dev/null` says that there is none.
            (Looked::Special, _) => return false,
            (Looked::Missing, _) => "it is not there on this host",
            (Looked::Unknown, _) if !disk.is_local => "the engine is on another machine",
            (Looked::Unknown, _) => "it cannot be read",
            _ => "it is no text file",
        };
        let left = LeftOut { what: path.display().to_string(), why: format!("{who}, but {why}") };
        if !self.missing.contains(&left) {
            self.missing.push(left);
        }
        false
    }
}

/// Compose files, those that they include, and files of variables.
fn files(containers: &[&Container], disk: &Disk<'_>) -> Files {
    let mut files = Files::default();
    let mut queue: VecDeque<(PathBuf, PathBuf, String)> = VecDeque::new();
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    let mut told: BTreeSet<PathBuf> = BTreeSet::new();
    for container in containers {
        let dir = container.project_dir();
        for file in container.compose_files() {
            let path = plain(&file);
            let dir = dir.clone().or_else(|| path.parent().map(Path::to_owned)).unwrap_or_default();
            queue.push_back((path, dir, "Compose was started with it".to_owned()));
        }
        told.extend(container.environment_files().iter().map(|f| plain(f)));
        dirs.extend(dir);
    }
    let mut seen: BTreeSet<PathBuf> = BTreeSet::new();
    let mut env: Vec<(PathBuf, String)> =
        told.into_iter().map(|path| (path, "Compose was started with it".to_owned())).collect();
    while let Some((path, dir, who)) = queue.pop_front() {
        if seen.len() >= MOST_FILES || !seen.insert(path.clone()) || !files.take(&path, disk, &who) {
            continue;
        }
        let named = disk
            .read(&path, COMPOSE_BYTES)
            .map_err(|e| chain(&e))
            .and_then(|text| compose::files(&text).map_err(|e| e.to_string()));
        let named = match named {
            Ok(named) => named,
            Err(why) => {
                let what = format!("files that {} names", path.display());
                files
                    .missing
                    .push(LeftOut { what, why: format!("it cannot be read as a Compose file: {why}") });
                continue;
            }
        };
        let who = format!("{} names it", path.display());
        for name in named.compose {
            if let Some(found) = resolve(&name, &path, &dir, disk, &who, &mut files) {
                let dir = found.parent().map(Path::to_owned).unwrap_or_default();
                queue.push_back((found, dir, who.clone()));
            }
        }
        for name in named.env {
            env.extend(resolve(&name, &path, &dir, disk, &who, &mut files).map(|found| (found, who.clone())));
        }
    }
    for dir in dirs {
        let path = dir.join(".env");
        if matches!(disk.look(&path), Looked::Text) {
            env.push((path, String::new()));
        }
    }
    for (path, who) in env {
        files.take(&path, disk, &who);
    }
    if files.found.is_empty() {
        files.missing.push(LeftOut {
            what: "the files of the stack".to_owned(),
            why: "no Compose file of it was found here; name them in files of [sources.configuration]"
                .to_owned(),
        });
    }
    files
}

/// The path that a Compose file means: from the project, or from the file itself, whichever is there. None where only
/// Compose knows.
fn resolve(
    name: &str,
    file: &Path,
    dir: &Path,
    disk: &Disk<'_>,
    who: &str,
    files: &mut Files,
) -> Option<PathBuf> {
    if name.contains('$') || name.contains("://") {
        let left =
            LeftOut { what: name.to_owned(), why: format!("{who}, and only Compose knows what that is") };
        files.missing.push(left);
        return None;
    }
    let beside = file.parent().unwrap_or(Path::new("/"));
    let places = [plain(&dir.join(name)), plain(&beside.join(name))];
    let there = places.iter().find(|p| !matches!(disk.look(p), Looked::Missing));
    Some(there.unwrap_or(&places[0]).clone())
}

#[cfg(test)]
mod tests;
