//! Which sources does a stack need? What could go wrong: data that nobody names is in no backup, and nobody notices; so
//! whatever a container keeps outside of itself becomes a source, or a line that says why it is none. And the other way
//! round: secrets of the stack's own files in a copy that is not redacted; so those files are left out of such copies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::recognise::Server;
use crate::id::Name;

/// What was found of a project.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    pub services: Vec<Service>,
    /// Volumes of the project that no container has mounted.
    pub loose: Vec<Volume>,
    /// Compose files and files of variables, which become configuration.
    pub files: Vec<String>,
    /// What those are called without links.
    pub real_files: Vec<PathBuf>,
}

/// A container of the stack. Of its environment only places of data are kept.
#[derive(Debug, Clone, Default)]
pub struct Service {
    pub name: String,
    pub container: String,
    /// Somebody chose the name of the container.
    pub own_name: bool,
    pub image: String,
    pub server: Option<Server>,
    /// Where that was told to keep its data.
    pub told: Vec<String>,
    pub mounts: Vec<Mounted>,
}

#[derive(Debug, Clone)]
pub struct Mounted {
    pub destination: String,
    pub writable: bool,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Volume(Volume),
    Bind(Bind),
}

#[derive(Debug, Clone, Default)]
pub struct Volume {
    pub name: String,
    /// As the Compose file calls it.
    pub short: String,
    pub in_memory: bool,
    /// Where its data lies on this host, if anywhere.
    pub dir: Option<PathBuf>,
    /// Nothing is in it now.
    pub is_empty: bool,
}

/// A path of the host.
#[derive(Debug, Clone)]
pub struct Bind {
    pub path: String,
    /// The same without links.
    pub real: PathBuf,
    pub looked: Looked,
    /// It lies on a disk of another machine.
    pub is_network: bool,
}

/// What lies at a path of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looked {
    Directory {
        is_empty: bool,
    },
    /// A file that a person can read.
    Text,
    Sqlite,
    /// Any other file.
    File,
    /// A socket, a device, a pipe.
    Special,
    Missing,
    /// It does not answer, must not be read, or lies on another machine.
    Unknown,
}

/// A table of `[sources]`.
#[derive(Debug, Clone, Serialize)]
pub struct Source {
    pub name: Name,
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Keys besides the type.
    #[serde(serialize_with = "as_table")]
    pub keys: Vec<(&'static str, Value)>,
    /// Where its data comes from, in a few words.
    pub from: String,
    /// What a person should know of it.
    pub about: Vec<String>,
    /// Settings that may be needed, as they would be written.
    #[serde(skip)]
    pub more: Vec<&'static str>,
    /// It is written out of use.
    pub out_of_use: bool,
    /// Its place in the file.
    #[serde(skip)]
    rank: Rank,
    /// The directory of this host that it captures, by each of its names.
    #[serde(skip)]
    dirs: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Chroma,
    Postgres,
    Redis,
    Stopped,
    Data,
    Configuration,
    Models,
    Logs,
}

fn as_table<S: Serializer>(keys: &[(&'static str, Value)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(keys.iter().map(|(key, value)| (key, value)))
}

impl Source {
    /// Whether a backup has it that nobody asked for it.
    pub fn is_on_by_default(&self) -> bool {
        self.rank != Rank::Models && self.rank != Rank::Logs
    }

    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|(k, _)| *k == key)
    }

    /// Whether it copies a directory of the host with all that is in it.
    fn is_whole_copy(&self) -> bool {
        self.rank == Rank::Data
            && !self.out_of_use
            && !self.dirs.is_empty()
            && !self.has("volume")
            && !self.has("mode")
    }
}

/// Something that is no source, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    pub what: String,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct Proposal {
    pub sources: Vec<Source>,
    pub left_out: Vec<LeftOut>,
    /// Directories of this host that are captured, by a copy or by a dump: no store may lie in one, nor one in a store.
    pub dirs: Vec<PathBuf>,
}

/// A database is down for as long as the copy of its files takes.
const MAX_STOP: &str = "30m";

/// How files end that are configuration, and that redaction knows to read.
const CONFIG_ENDINGS: [&str; 13] =
    ["yml", "yaml", "toml", "json", "ini", "conf", "cfg", "cnf", "env", "properties", "xml", "sql", "sh"];

pub fn propose(stack: &Stack) -> Proposal {
    let mut maker = Maker {
        stack,
        sources: Vec::new(),
        left_out: Vec::new(),
        files: stack.files.clone(),
        names: BTreeSet::from([CONFIGURATION.to_owned()]),
        covered: BTreeSet::new(),
        dirs: Vec::new(),
    };
    for service in &stack.services {
        maker.serve(service);
    }
    maker.places();
    for volume in &stack.loose {
        maker.loose(volume);
    }
    maker.configuration();
    maker.finish()
}

const CONFIGURATION: &str = "configuration";

/// A place that is mounted: the same for every container that has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Volume(String),
    Bind(String),
}

impl What {
    fn key(&self) -> Key {
        match self {
            Self::Volume(v) => Key::Volume(v.name.clone()),
            Self::Bind(b) => Key::Bind(b.path.clone()),
        }
    }

    /// The directory of this host that it is, by each of its names.
    fn dirs(&self) -> Vec<PathBuf> {
        match self {
            Self::Volume(v) => v.dir.iter().cloned().collect(),
            Self::Bind(b) => vec![PathBuf::from(&b.path), b.real.clone()],
        }
    }
}

/// A place, and whoever has it mounted: those that write first.
struct Spot<'a> {
    users: Vec<(&'a Service, &'a Mounted)>,
}

impl<'a> Spot<'a> {
    fn first(&self) -> Option<(&'a Service, &'a Mounted)> {
        self.users.first().copied()
    }

    fn is_written(&self) -> bool {
        self.users.iter().any(|(_, m)| m.writable)
    }

    /// The server that must be stopped while it is read.
    fn stopped(&self) -> Option<Server> {
        let writers = self.users.iter().filter(|(_, m)| m.writable);
        writers.filter_map(|(s, _)| s.server).find(|s| is_stopped(*s))
    }

    fn is_log(&self, name: &str) -> bool {
        is_log_name(name) || self.users.iter().all(|(_, m)| m.destination.split('/').any(is_log))
    }

    /// Whether it is where a server that must be stopped keeps its data.
    fn is_of_stopped(&self) -> bool {
        let owned = |(s, m): &(&Service, &Mounted)| {
            s.server.is_some_and(|server| is_stopped(server) && server.owns(&m.destination, &s.told))
        };
        self.users.iter().any(owned)
    }

    fn rank(&self, name: &str) -> Rank {
        match self.stopped() {
            Some(_) if self.is_of_stopped() => Rank::Stopped,
            _ if self.is_log(name) => Rank::Logs,
            Some(_) => Rank::Stopped,
            None => Rank::Data,
        }
    }

    /// For a person: `/data of neo4j, /backup of cron`.
    fn shown(&self) -> String {
        let each = self.users.iter().map(|(s, m)| format!("{} of {}", m.destination, s.container));
        each.collect::<Vec<_>>().join(", ")
    }
}

/// Databases that this version cannot ask for a dump: copies of their files are good when they have ended properly.
fn is_stopped(server: Server) -> bool {
    matches!(server, Server::Neo4j | Server::Mysql | Server::Mongo)
}

/// Names of volumes that nobody chose.
fn is_anonymous(volume: &str) -> bool {
    volume.len() == 64 && volume.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_log(word: &str) -> bool {
    word.eq_ignore_ascii_case("log") || word.eq_ignore_ascii_case("logs")
}

/// `backend_logs`; neither `catalog` nor `log_data`: what is taken for a log is in no backup.
fn is_log_name(name: &str) -> bool {
    name.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().is_some_and(is_log)
}

fn is_below(path: &str, dirs: &[&str]) -> bool {
    dirs.iter().any(|dir| Path::new(path).starts_with(dir))
}

/// What the kernel shows, and what lives no longer than until the next start of the machine.
fn is_of_the_kernel(path: &str) -> bool {
    is_below(path, &["/proc", "/sys", "/dev", "/run", "/var/run", "/tmp/.X11-unix"])
}

/// Much more than the data of one stack.
fn is_whole_tree(path: &str) -> bool {
    let trees = [
        "/", "/etc", "/usr", "/var", "/var/lib", "/var/log", "/home", "/root", "/opt", "/srv", "/mnt",
        "/media",
    ];
    trees.contains(&path) || is_below(path, &["/boot", "/var/lib/docker", "/var/lib/containerd"])
}

/// What belongs to the machine, where it is only read.
fn is_of_the_system(path: &str) -> bool {
    is_below(
        path,
        &["/etc", "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/var/log", "/var/lib/dbus"],
    )
}

/// A text file that may go into a backup after redaction: one that is a secret as a whole is not recognised by its keys.
fn is_configuration(path: &str, destinations: &[&str]) -> bool {
    let ends = Path::new(path).extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_secret = |at: &&str| is_below(at, &["/run/secrets", "/var/run/secrets"]);
    CONFIG_ENDINGS.contains(&ends.as_str()) && !destinations.iter().any(is_secret)
}

/// `path` as a pattern that means nothing else.
fn as_pattern(path: &Path) -> Option<String> {
    let mut pattern = String::from("/");
    for c in path.to_str()?.chars() {
        if "\\?*[]{}".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    Some(pattern)
}

struct Maker<'a> {
    stack: &'a Stack,
    sources: Vec<Source>,
    left_out: Vec<LeftOut>,
    files: Vec<String>,
    names: BTreeSet<String>,
    /// Places that have a source of their own already.
    covered: BTreeSet<Key>,
    /// Directories of the host that they are.
    dirs: Vec<PathBuf>,
}

impl<'a> Maker<'a> {
    /// A source with a name like `wanted` that is good and nobody else has.
    fn source(&mut self, wanted: &str, rank: Rank, kind: &'static str, from: String) -> Option<Source> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
        let mapped: String = wanted.chars().map(plain).collect();
        let base: String = mapped.trim_matches(['-', '_']).chars().take(56).collect();
        let base = if base.is_empty() { "data" } else { base.as_str() };
        let numbered = (2..).map(|n| format!("{base}-{n}"));
        let free = std::iter::once(base.to_owned()).chain(numbered).find(|n| !self.names.contains(n))?;
        let name = free.parse().ok()?;
        self.names.insert(free);
        Some(Source {
            name,
            kind,
            keys: Vec::new(),
            from,
            about: Vec::new(),
            more: Vec::new(),
            out_of_use: false,
            rank,
            dirs: Vec::new(),
        })
    }

    fn leave(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.left_out.push(LeftOut { what: what.into(), why: why.into() });
    }

    /// How a source finds this container: by its name where somebody chose it, or where its service has several.
    fn selector(&self, service: &Service, source: &Name) -> Vec<(&'static str, Value)> {
        let several = self.stack.services.iter().filter(|s| s.name == service.name).count() > 1;
        let mut keys = Vec::new();
        if service.own_name || several {
            keys.push(("container", json!(service.container)));
        }
        if keys.is_empty() || service.name != source.as_str() {
            keys.push(("service", json!(service.name)));
        }
        keys
    }

    /// The source that asks the server of this container itself.
    fn serve(&mut self, service: &Service) {
        let (server, rank, kind) = match service.server {
            Some(s @ Server::Chroma) => (s, Rank::Chroma, "chromadb"),
            Some(s @ Server::Postgres) => (s, Rank::Postgres, "postgres"),
            Some(s @ Server::Redis) => (s, Rank::Redis, "redis"),
            Some(s @ Server::Ollama) => (s, Rank::Models, "ollama"),
            Some(Server::Neo4j | Server::Mysql | Server::Mongo) | None => return,
        };
        let from = format!("container {} ({})", service.container, service.image);
        let Some(mut source) = self.source(&service.name, rank, kind, from) else { return };
        source.keys = self.selector(service, &source.name);
        let data = service.mounts.iter().filter(|m| server.owns(&m.destination, &service.told));
        let mut volume = None;
        for mounted in data {
            self.covered.insert(mounted.what.key());
            self.dirs.extend(mounted.what.dirs());
            if let What::Volume(v) = &mounted.what
                && !is_anonymous(&v.name)
            {
                volume.get_or_insert_with(|| json!(v.name));
            }
        }
        let (about, more): (&[&str], &[&'static str]) = match server {
            Server::Chroma => {
                source.keys.extend(volume.map(|v| ("volume", v)));
                source.keys.push(("export", json!([WEEKLY])));
                (
                    &[
                        "The collections, by a copy of the server's directory; it is paused while that is read, some seconds in a",
                        "small stack. Once a week every record as text as well: a copy needs a server of its version or a newer one,",
                        "an export does not. A token, where the server asks for one:",
                    ],
                    &["token = { credential = \"chroma-token\" }"],
                )
            }
            Server::Postgres => (
                &[
                    "All databases, by the server's own pg_dump, with roles and settings. User and password are those of the",
                    "container: POSTGRES_USER (else postgres) and POSTGRES_PASSWORD. Where it has others:",
                ],
                &["user = \"postgres\"", "password = { credential = \"pg-password\" }"],
            ),
            Server::Redis => (
                &[
                    "A background save of the server. Its password is found by itself in --requirepass or REDIS_PASSWORD. Where it",
                    "is elsewhere:",
                ],
                &["password = { credential = \"redis-password\" }"],
            ),
            Server::Ollama => (
                &[
                    "Models that can be pulled again: in no backup, unless a tier names them, or with --include-models.",
                ],
                &[],
            ),
            Server::Neo4j | Server::Mysql | Server::Mongo => (&[], &[]),
        };
        source.about = about.iter().map(|line| (*line).to_owned()).collect();
        source.more = more.to_vec();
        self.sources.push(source);
    }

    /// Sources of everything else that is mounted, each place once.
    fn places(&mut self) {
        let stack = self.stack;
        let mut spots: BTreeMap<Key, Spot<'a>> = BTreeMap::new();
        for service in &stack.services {
            if service.server.is_some_and(is_stopped) && service.mounts.is_empty() {
                self.leave(
                    format!("the data of {}", service.container),
                    "nothing is mounted there: it lies in the container's own layer, and goes with it; mount a volume",
                );
            }
            for mounted in &service.mounts {
                let key = mounted.what.key();
                if !self.covered.contains(&key) {
                    spots.entry(key).or_insert(Spot { users: Vec::new() }).users.push((service, mounted));
                }
            }
        }
        for mut spot in spots.into_values() {
            spot.users.sort_by_key(|(s, m)| (!m.writable, !s.server.is_some_and(is_stopped)));
            match spot.first() {
                Some((_, Mounted { what: What::Volume(v), .. })) => self.volume(&spot, v),
                Some((_, Mounted { what: What::Bind(b), .. })) => self.bind(&spot, b),
                None => {}
            }
        }
    }

    fn volume(&mut self, spot: &Spot<'a>, volume: &Volume) {
        if volume.in_memory {
            let why = "it lies in memory: nothing there survives a restart";
            return self.leave(format!("volume {} ({})", volume.name, spot.shown()), why);
        }
        if is_anonymous(&volume.name) {
            let Some(mut source) = self.inside(spot, "a volume without a name") else { return };
            source.about.push(
                "This volume has no name: it is lost with its container. Give it one in the Compose file, under volumes.".into(),
            );
            source.out_of_use = spot.stopped().is_none();
            self.sources.push(source);
            return;
        }
        let wanted = self.wanted(spot, &volume.short);
        let rank = spot.rank(&volume.short);
        let from = format!("volume {} ({})", volume.name, spot.shown());
        let Some(mut source) = self.source(&wanted, rank, "volume", from) else { return };
        source.keys.push(("volume", json!(volume.name)));
        treat(&mut source, spot);
        if volume.is_empty {
            allow_empty(&mut source);
        }
        source.dirs = volume.dir.iter().cloned().collect();
        self.sources.push(source);
    }

    /// Name of a source: that of the service for the data of a database, else that of the place.
    fn wanted(&self, spot: &Spot<'a>, place: &str) -> String {
        match (spot.first(), spot.stopped()) {
            (Some((service, mounted)), Some(server)) if server.owns(&mounted.destination, &service.told) => {
                service.name.clone()
            }
            _ => place.to_owned(),
        }
    }

    /// A source that finds a place by the container that has it mounted.
    fn inside(&mut self, spot: &Spot<'a>, what: &str) -> Option<Source> {
        let (service, mounted) = spot.first()?;
        let last = mounted.destination.rsplit('/').next().unwrap_or_default();
        let wanted = self.wanted(spot, &format!("{}-{last}", service.name));
        let from = format!("{what} ({})", spot.shown());
        let place = match &mounted.what {
            What::Bind(bind) => bind.path.as_str(),
            What::Volume(_) => "",
        };
        let mut source = self.source(&wanted, spot.rank(place), "volume", from)?;
        source.keys = self.selector(service, &source.name);
        source.keys.push(("path", json!(mounted.destination)));
        treat(&mut source, spot);
        Some(source)
    }

    fn bind(&mut self, spot: &Spot<'a>, bind: &Bind) {
        let shown = format!("{} ({})", bind.path, spot.shown());
        let path = bind.path.as_str();
        if is_of_the_kernel(path) {
            return;
        }
        match bind.looked {
            Looked::Special => {}
            Looked::Missing => self.leave(shown, "it is not there on this host"),
            Looked::Directory { .. } if is_whole_tree(path) => {
                self.leave(
                    shown,
                    "it is more than the data of this stack; name the directories in it that matter",
                );
            }
            Looked::Directory { .. } | Looked::Text | Looked::File | Looked::Sqlite
                if !spot.is_written() && is_of_the_system(path) =>
            {
                // The clock, certificates, users: every machine has its own.
                if matches!(bind.looked, Looked::Directory { .. }) {
                    self.leave(shown, "the stack only reads it, and it belongs to the machine");
                }
            }
            Looked::Unknown => {
                let Some(mut source) = self.inside(spot, path) else { return };
                source.about.push(
                    "It could not be looked at from here: it does not answer, may not be read, or is on another machine."
                        .into(),
                );
                source.out_of_use = true;
                self.sources.push(source);
            }
            Looked::Text => {
                let at: Vec<&str> = spot.users.iter().map(|(_, m)| m.destination.as_str()).collect();
                if is_configuration(path, &at) {
                    self.files.push(path.to_owned());
                } else {
                    self.leave(
                        shown,
                        "a file that may be a secret as a whole; if it is none, add it to files of [sources.configuration]",
                    );
                }
            }
            Looked::File => self
                .leave(shown, "a single file that is no text; a source of type directory takes one above it"),
            Looked::Sqlite => {
                let stem =
                    Path::new(path).file_stem().and_then(|s| s.to_str()).unwrap_or("sqlite").to_owned();
                let Some(mut source) = self.source(&stem, Rank::Data, "sqlite", shown) else { return };
                source.keys.push(("path", json!(path)));
                source.about.push(
                    "A database of SQLite, by SQLite's own online backup: whoever uses it goes on.".into(),
                );
                self.sources.push(source);
            }
            Looked::Directory { is_empty } => self.directory(spot, bind, is_empty),
        }
    }

    fn directory(&mut self, spot: &Spot<'a>, bind: &Bind, is_empty: bool) {
        let path = bind.path.as_str();
        let source = if spot.is_written() {
            self.inside(spot, path)
        } else {
            let Some((service, mounted)) = spot.first() else { return };
            let last = mounted.destination.rsplit('/').next().unwrap_or_default();
            let from = format!("{path} ({})", spot.shown());
            let made = self.source(&format!("{}-{last}", service.name), Rank::Data, "directory", from);
            made.map(|mut source| {
                source.keys.push(("path", json!(path)));
                only_read(&mut source, bind.is_network);
                source
            })
        };
        let Some(mut source) = source else { return };
        if is_empty {
            allow_empty(&mut source);
        }
        source.dirs = vec![PathBuf::from(path), bind.real.clone()];
        self.sources.push(source);
    }

    fn loose(&mut self, volume: &Volume) {
        if volume.in_memory || is_anonymous(&volume.name) {
            return;
        }
        let from = format!("volume {}", volume.name);
        let Some(mut source) = self.source(&volume.short, Rank::Data, "volume", from) else { return };
        source.keys.push(("volume", json!(volume.name)));
        source.about.push(
            "No container has this volume of the project mounted. Is something in it that is still needed?"
                .into(),
        );
        source.out_of_use = true;
        self.sources.push(source);
    }

    fn configuration(&mut self) {
        let mut files: Vec<&String> = Vec::new();
        for file in &self.files {
            if !files.contains(&file) {
                files.push(file);
            }
        }
        let from = match files.len() {
            0 => "the configuration of tars-backup".to_owned(),
            n => format!("{n} file{} and the configuration of tars-backup", if n == 1 { "" } else { "s" }),
        };
        let Ok(name) = CONFIGURATION.parse() else { return };
        let mut about = vec![
            "Configuration files, redacted: passwords are in no backup unless [encryption] has a recipient. Keep them in".to_owned(),
            "your password safe as well.".to_owned(),
        ];
        if files.is_empty() {
            about.push("No file of the stack was found here: name its Compose and env files.".into());
        }
        self.sources.push(Source {
            name,
            kind: "config_files",
            keys: vec![("files", json!(files))],
            from,
            about,
            more: Vec::new(),
            out_of_use: false,
            rank: Rank::Configuration,
            dirs: Vec::new(),
        });
    }

    fn finish(mut self) -> Proposal {
        // A directory in one that is copied anyway comes along. A database in it, what is only listed, and the stack's own
        // files have sources of their own.
        let whole: Vec<PathBuf> =
            self.sources.iter().filter(|s| s.is_whole_copy()).flat_map(|s| s.dirs.clone()).collect();
        let around = |source: &Source| {
            let is_around =
                |w: &&PathBuf| source.dirs.iter().any(|d| d.starts_with(w)) && !source.dirs.contains(w);
            whole.iter().find(is_around).filter(|_| source.is_whole_copy())
        };
        let mut kept = Vec::new();
        for source in std::mem::take(&mut self.sources) {
            match around(&source) {
                Some(outer) => self.left_out.push(LeftOut {
                    why: format!("it lies in {}, which is captured as a whole", outer.display()),
                    what: source.from,
                }),
                None => kept.push(source),
            }
        }
        let own: Vec<PathBuf> = kept
            .iter()
            .filter(|s| s.rank == Rank::Stopped || s.has("mode"))
            .flat_map(|s| s.dirs.clone())
            .chain(self.dirs.iter().cloned())
            .chain(self.files.iter().map(PathBuf::from))
            .chain(self.stack.real_files.iter().cloned())
            .collect();
        for source in kept.iter_mut().filter(|s| s.is_whole_copy()) {
            let inside = |dir: &PathBuf| {
                let paths =
                    own.iter().filter(|o| *o != dir).filter_map(|o| as_pattern(o.strip_prefix(dir).ok()?));
                paths.collect::<Vec<_>>()
            };
            let patterns: BTreeSet<String> = source.dirs.iter().flat_map(inside).collect();
            if !patterns.is_empty() {
                source.about.push("What is left out has a source of its own.".into());
                source.keys.push(("exclude", json!(patterns)));
            }
        }
        kept.sort_by_key(|s| (s.out_of_use, s.rank));
        let in_use = kept.iter().filter(|s| !s.out_of_use).flat_map(|s| s.dirs.clone());
        let dirs = self.dirs.iter().cloned().chain(in_use).collect();
        Proposal { sources: kept, left_out: self.left_out, dirs }
    }
}

/// Name of the tier that is due once a week.
pub const WEEKLY: &str = "warm";

/// What happens to the containers that can write there.
fn treat(source: &mut Source, spot: &Spot<'_>) {
    match (source.rank, spot.stopped()) {
        (Rank::Stopped, Some(server)) => {
            let word = server.word();
            source.about.push(format!(
                "The files of {word}, which are good only when it has ended properly: it is stopped while they are copied, and"
            ));
            source.about.push(
                "started again; it is away for as long as that takes, and longer than max_pause never. Restore them into a server"
                    .into(),
            );
            source.about.push("of the same version.".into());
            source.keys.push(("consistency", json!("stop")));
            source.keys.push(("max_pause", json!(MAX_STOP)));
        }
        (Rank::Logs, _) => {
            source
                .about
                .push("Logs, by their name: in no backup, unless a tier names them, or --only does.".into());
            for (key, value) in [
                ("consistency", json!("live")),
                ("anomaly", json!(false)),
                ("critical", json!(false)),
                ("on_by_default", json!(false)),
            ] {
                source.keys.push((key, value));
            }
        }
        _ => {
            source.about.push("Whoever can write there is paused while it is read, and longer than max_pause never: then this fails.".into());
            source.more.push("max_pause = \"10m\"");
            source.keys.push(("consistency", json!("pause")));
        }
    }
}

/// A directory that no container writes to.
fn only_read(source: &mut Source, is_network: bool) {
    if !is_network {
        source.about.push("No container writes there, so none is paused.".into());
        return;
    }
    for line in [
        "It lies on another machine, and this stack only reads it: so this is an inventory, which tells when it changes, and",
        "no copy. For a copy take mode away.",
    ] {
        source.about.push(line.into());
    }
    for (key, value) in
        [("mode", json!("inventory")), ("require_mount", json!(true)), ("critical", json!(false))]
    {
        source.keys.push((key, value));
    }
}

fn allow_empty(source: &mut Source) {
    source.about.push("It was empty when this was written. Otherwise an empty one is an error:".into());
    source.keys.push(("allow_empty", json!(true)));
}
