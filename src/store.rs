//! A place that keeps backups. What could go wrong: objects that look stored and are not, and a place that is not the
//! one that was meant. So a store is written to only with its marker in place, an object appears under its name only
//! whole, and what was stored is read back by whoever needs to be sure.

mod b2;
mod bucket;
mod credentials;
mod fault;
mod fs;
mod http;
mod kit;
mod memory;
mod pace;
mod remote;
mod s3;
mod sftp;
mod tools;
mod url;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::cancel::{Cancel, Interrupted};
use crate::config::Section;
use crate::hint::Hint;
use crate::id::{self, Name};
use crate::mounts::{self, MountError};
use crate::vault::{SecretError, Vault};

pub use credentials::{Credentials, Key};
pub use fs::FsStore;
pub use kit::{CA, KNOWN_HOSTS, Kit, SSH_CONFIG};
pub use tools::{Keeping, Kept, TOOLS, keep, kept};
pub use url::{UrlError, from_url};

/// Marker object at the root of a store.
pub const MARKER: &str = "tars-backup-store.json";
/// Temporary objects begin with this; no listing shows them.
const TEMP: &str = ".tars-backup-tmp-";
/// Guide at the root of a store, for the day when nothing else is left.
pub const GUIDE: &str = "RESTORE.md";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("store {store:?}")]
    Mount {
        store: String,
        #[source]
        source: MountError,
    },
    #[error("store {store:?} has no marker {MARKER}")]
    NoMarker { store: String },
    #[error("store {store:?} belongs to another machine ({host})")]
    ForeignMarker { store: String, host: String },
    #[error("the marker of store {store:?} is not readable")]
    BadMarker { store: String },
    #[error("store {store:?} is already initialised, by this machine")]
    HasMarker { store: String },
    #[error("there is no store at {location}: {MARKER} is not there")]
    NothingThere { store: String, location: String },
    /// Of these machines there is something.
    #[error("store {store:?} has nothing of {host}, but backups of: {}", others.join(", "))]
    NothingOfHost { store: String, host: String, others: Vec<String> },
    #[error("store {store:?}: {object} is not there")]
    NotFound { store: String, object: String },
    #[error("store {store:?}: {object} exists already")]
    Exists { store: String, object: String },
    #[error("store {store:?}: {object} is {found} bytes long after writing, not {wanted}")]
    Length { store: String, object: String, wanted: u64, found: u64 },
    #[error("store {store:?}: what was stored as {object} does not read back equal")]
    ReadBack { store: String, object: String },
    /// Asking again would get the same answer.
    #[error("store {store:?} refuses to {action} {object}: {why}")]
    Refused { store: String, action: &'static str, object: String, refusal: Refusal, why: String },
    /// It may do tomorrow what it did not today, however often it was asked.
    #[error("store {store:?} cannot {action} {object}: {why}")]
    Down { store: String, action: &'static str, object: String, why: String },
    #[error("store {store:?}")]
    Secret {
        store: String,
        #[source]
        source: SecretError,
    },
    #[error("store {store:?}: cannot {action} {object}")]
    Io {
        store: String,
        action: &'static str,
        object: String,
        #[source]
        source: std::io::Error,
    },
}

/// Why a store will not do what it was asked, whoever asks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The key is wrong, or may not do this.
    Access,
    /// There is no such bucket, or no such directory.
    NoPlace,
    /// No room is left, or a cap of the account is reached.
    Full,
    /// It is not who it says it is: certificate or host key.
    Identity,
    Other,
}

impl StoreError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether nothing is wrong but that there is no room.
    pub fn is_full(&self) -> bool {
        let full = |e: &std::io::Error| {
            matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        };
        match self {
            Self::Refused { refusal, .. } => *refusal == Refusal::Full,
            Self::Io { source, .. } => full(source),
            _ => false,
        }
    }

    /// Whether it may be over tomorrow without anybody changing the configuration.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Mount { source, .. } => !matches!(source, MountError::Missing { .. }),
            Self::Down { .. } | Self::Refused { .. } | Self::Io { .. } => true,
            _ => false,
        }
    }

    /// Whether there is nothing where it should be: it was never made, or its disk is not mounted.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::NoMarker { .. } | Self::Mount { source: MountError::Missing { .. }, .. })
    }
}

impl Hint for StoreError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Mount { store, source: source @ MountError::Missing { .. } } => {
                let mount = source.hint().unwrap_or_default();
                format!("if it is new: tars-backup store init {store}; else {mount}")
            }
            Self::Mount { source, .. } => return source.hint(),
            Self::NoMarker { store } => {
                format!("is it mounted? if it is new: tars-backup store init {store}")
            }
            Self::ForeignMarker { store, .. } => {
                format!("if this machine replaces that one: tars-backup store adopt {store}")
            }
            Self::BadMarker { store } => {
                format!("look at it; to write a new one: tars-backup store adopt {store}")
            }
            Self::HasMarker { store } => {
                format!("nothing to do; to test it: tars-backup store check {store}")
            }
            Self::NothingThere { store, .. } => {
                format!("is it mounted? if it is new: tars-backup store init {store}")
            }
            Self::NothingOfHost { store, others, .. } => format!(
                "to go on with the backups of one of them, name it: [agent] host = {:?}, then: tars-backup store adopt \
                 {store}; if this machine is new there: tars-backup store init {store}",
                others.first().map_or("", String::as_str)
            ),
            Self::ReadBack { .. } | Self::Length { .. } => {
                "the disk or the network damages data: check it before you rely on it (dmesg, smartctl)"
                    .into()
            }
            Self::Refused { store, refusal, .. } => match refusal {
                Refusal::Access => {
                    format!("check its key and what it may do, then: tars-backup store check {store}")
                }
                Refusal::NoPlace => {
                    format!(
                        "check the name of the bucket and its region, then: tars-backup store check {store}"
                    )
                }
                Refusal::Full => {
                    format!("make room there or raise the cap, then: tars-backup store check {store}")
                }
                Refusal::Identity => {
                    format!("find out who answers there before you trust it: tars-backup store check {store}")
                }
                Refusal::Other => return None,
            },
            Self::Down { store, .. } => {
                format!("when it answers again: tars-backup store check {store}")
            }
            Self::Secret { source, .. } => return source.hint(),
            Self::Io { source, store, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    format!("make room in the store, then: tars-backup store check {store}")
                }
                std::io::ErrorKind::ReadOnlyFilesystem => format!(
                    "in a unit of systemd, tell it which paths may be written: tars-backup config apply; else mount it writable, then: tars-backup store check {store}"
                ),
                std::io::ErrorKind::PermissionDenied => {
                    format!("mount it writable for this user, then: tars-backup store check {store}")
                }
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub name: String,
    pub bytes: u64,
}

/// Whether an object may already be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// An archive or a commit: never overwritten.
    New,
    /// A small object that tells the latest state.
    Replace,
}

/// Paths below are relative to the root of the store, with `/` between parts, and never climb.
pub trait Store: Send + Sync {
    fn name(&self) -> &str;

    /// Where it is, for people; without any secret.
    fn location(&self) -> String;

    /// The same in one spelling: two stores at one place are seen by it.
    fn place(&self) -> String;

    /// What a person must know to find it again without any configuration; None where nothing outlives this process.
    fn kit(&self) -> Option<Kit>;

    /// Its directory on this machine, where it is one: no source takes the backups along.
    fn local_root(&self) -> Option<&Path> {
        None
    }

    /// Whether what it holds leaves the house: sealed by default.
    fn is_offsite(&self) -> bool {
        self.local_root().is_none()
    }

    /// Whether several machines share it, each below `hosts/` and its name.
    fn by_host(&self) -> bool {
        false
    }

    /// Archives that are longer go up in parts of this many bytes; None: whole, whatever their length.
    fn part_bytes(&self) -> Option<u64> {
        None
    }

    /// Whether it is there at all: mounted, answering, in bounded time.
    fn reach(&self, cancel: &Cancel) -> Result<(), StoreError>;

    /// Makes the root where it is new; refuses where it would land on another disk than was meant.
    fn create_root(&self, cancel: &Cancel) -> Result<(), StoreError>;

    /// Whether a marker must be there before anything is written.
    fn needs_marker(&self) -> bool;

    /// The objects directly in `dir`; an absent directory is empty. Any trouble is an error, never a shorter list.
    fn list(&self, dir: &str, cancel: &Cancel) -> Result<Vec<Object>, StoreError>;

    /// The directories directly in `dir`, by name. Like `list`, never shorter than the truth.
    fn dirs(&self, dir: &str, cancel: &Cancel) -> Result<Vec<String>, StoreError>;

    /// Reads what the medium holds, as far as that can be enforced, not what a cache remembers. Shorter than it is an
    /// object reads only with an error, which carries what the store said (`broken`).
    fn open(&self, object: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>, StoreError>;

    /// Stores exactly `bytes` bytes of `data` so that they survive a power cut once this returns. `moved` hears of
    /// progress.
    fn put(
        &self,
        object: &str,
        data: &mut dyn Read,
        bytes: u64,
        how: Put,
        cancel: &Cancel,
        moved: &dyn Fn(u64),
    ) -> Result<(), StoreError>;

    /// When an object was last written, by the clock of the store; None where it does not tell.
    fn modified(&self, object: &str, cancel: &Cancel) -> Result<Option<Timestamp>, StoreError>;

    /// Removes an object; one that is not there is no error.
    fn delete(&self, object: &str) -> Result<(), StoreError>;

    /// Removes half-written objects that killed runs left in `dir`; returns their names. Only for the holder of the lock.
    fn sweep(&self, dir: &str) -> Result<Vec<String>, StoreError>;

    /// Bytes that can still be stored; None where nobody knows.
    fn free_bytes(&self) -> Result<Option<u64>, StoreError>;
}

impl dyn Store + '_ {
    /// A small object, whole.
    pub fn read_small(&self, object: &str, cancel: &Cancel) -> Result<Vec<u8>, StoreError> {
        const LIMIT: u64 = 64 << 20;
        let mut data = Vec::new();
        let mut from = self.open(object, cancel)?.take(LIMIT);
        from.read_to_end(&mut data).map_err(|e| self.broken(object, e))?;
        Ok(data)
    }

    /// What reading an object failed with: what the store said of it, or that we were stopped, where the error carries
    /// that.
    pub fn broken(&self, object: &str, e: std::io::Error) -> StoreError {
        let source = match e.downcast::<StoreError>() {
            Ok(told) => return told,
            Err(e) => e,
        };
        if source.get_ref().is_some_and(|inner| inner.is::<Interrupted>()) {
            return Interrupted.into();
        }
        StoreError::Io { store: self.name().to_owned(), action: "read", object: object.to_owned(), source }
    }

    /// Stores a small object and reads it back.
    pub fn put_small(&self, object: &str, data: &[u8], how: Put) -> Result<(), StoreError> {
        // A commit is not torn by a signal: it is small, and either there or not.
        let to_the_end = Cancel::default();
        self.put(object, &mut &data[..], data.len() as u64, how, &to_the_end, &|_| ())?;
        if self.read_small(object, &to_the_end)? == data {
            return Ok(());
        }
        Err(StoreError::ReadBack { store: self.name().to_owned(), object: object.to_owned() })
    }
}

/// Temporary name of an object: this process, and a number where it may make several at a time.
fn temp_name(number: Option<u64>, file: &str) -> String {
    let number = number.map_or_else(String::new, |n| format!("{n}-"));
    format!("{TEMP}{}-{number}{file}", std::process::id())
}

/// Whether a run that was killed left it: who makes an object holds the lock. But for `verify`, which needs none: its mark
/// is left by a process that is not there any more, or by another one that had the number of ours.
fn is_leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(TEMP) else { return false };
    let process = rest.split('-').next().and_then(|n| n.parse().ok()).and_then(Pid::from_raw);
    let lives = |pid| pid != rustix::process::getpid() && test_kill_process(pid) != Err(Errno::SRCH);
    !(rest.ends_with(".verified") && process.is_some_and(lives))
}

/// `dir/file`; without a directory the file alone.
pub fn object(dir: &str, file: &str) -> String {
    if dir.is_empty() { file.to_owned() } else { format!("{dir}/{file}") }
}

/// Directory of the machines that share a store.
pub const HOSTS: &str = "hosts";

/// Directory of a machine's backups in a store: the root, where it has the store for itself.
pub fn home(store: &dyn Store, host: &str) -> String {
    if store.by_host() { object(HOSTS, &id::encode(host)) } else { String::new() }
}

/// Directory of a tier of that machine.
pub fn tier_dir(store: &dyn Store, host: &str, tier_path: &str) -> String {
    object(&home(store, host), tier_path)
}

/// Who writes into a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub machine_id: String,
    pub host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: String,
    #[serde(flatten)]
    owner: Owner,
    created: String,
}

fn read_marker(store: &dyn Store, host: &str, cancel: &Cancel) -> Result<Option<Marker>, StoreError> {
    match store.read_small(&object(&home(store, host), MARKER), cancel) {
        Ok(text) => match serde_json::from_slice::<Marker>(&text) {
            Ok(m) if m.format == "tars-backup-store" => Ok(Some(m)),
            _ => Err(StoreError::BadMarker { store: store.name().to_owned() }),
        },
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Refuses a store that is not reachable, not initialised, or not ours.
pub fn check_marker(store: &dyn Store, owner: &Owner, cancel: &Cancel) -> Result<(), StoreError> {
    store.reach(cancel)?;
    if !store.needs_marker() {
        return Ok(());
    }
    match read_marker(store, &owner.host, cancel)? {
        None => Err(StoreError::NoMarker { store: store.name().to_owned() }),
        Some(m) if m.owner.machine_id == owner.machine_id => Ok(()),
        Some(m) => Err(StoreError::ForeignMarker { store: store.name().to_owned(), host: m.owner.host }),
    }
}

/// How a marker is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// A new store: there must be none.
    Init,
    /// Whoever it belonged to, it is ours now. There must be one: where a disk is not mounted, there is none.
    Adopt,
}

/// Writes the marker and the guide. Returns whose the store was, where a marker said so.
pub fn claim(
    store: &dyn Store,
    owner: &Owner,
    how: Claim,
    now: Timestamp,
    guide: &str,
    cancel: &Cancel,
) -> Result<Option<Owner>, StoreError> {
    if how == Claim::Init {
        store.create_root(cancel)?;
    }
    store.reach(cancel)?;
    let was = match (how, read_marker(store, &owner.host, cancel)) {
        (Claim::Init, Ok(Some(m))) => {
            let store = store.name().to_owned();
            return Err(if m.owner.machine_id == owner.machine_id {
                StoreError::HasMarker { store }
            } else {
                StoreError::ForeignMarker { store, host: m.owner.host }
            });
        }
        (Claim::Adopt, Ok(None)) if store.needs_marker() => {
            return Err(nothing_to_adopt(store, &owner.host, cancel)?);
        }
        // Somebody has looked at it, and takes the store for his.
        (Claim::Adopt, Err(StoreError::BadMarker { .. })) => None,
        (_, found) => found?.map(|m| m.owner),
    };
    let marker = Marker {
        format: "tars-backup-store".to_owned(),
        owner: owner.clone(),
        created: now.strftime("%FT%TZ").to_string(),
    };
    let mut text = serde_json::to_vec_pretty(&marker).unwrap_or_default();
    text.push(b'\n');
    store.put_small(GUIDE, guide.as_bytes(), Put::Replace)?;
    store.put_small(&object(&home(store, &owner.host), MARKER), &text, Put::Replace)?;
    Ok(was)
}

/// Why a place without a marker is not taken over: an empty one is most likely not mounted, and one that others share knows
/// this machine under another name.
fn nothing_to_adopt(store: &dyn Store, host: &str, cancel: &Cancel) -> Result<StoreError, StoreError> {
    let name = store.name().to_owned();
    let dirs = if store.by_host() { store.dirs(HOSTS, cancel)? } else { Vec::new() };
    let mut others: Vec<String> = dirs.iter().map(|name| id::show_name(name.as_bytes())).collect();
    others.sort();
    Ok(match others.is_empty() {
        true => StoreError::NothingThere { store: name, location: store.location() },
        false => StoreError::NothingOfHost { store: name, host: host.to_owned(), others },
    })
}

/// Proves that a store takes, keeps and gives back an object, and lets it go again.
pub fn prove(store: &dyn Store, owner: &Owner, nonce: &str, cancel: &Cancel) -> Result<(), StoreError> {
    check_marker(store, owner, cancel)?;
    let (dir, file) = (home(store, &owner.host), "tars-backup-check");
    store.sweep(&dir)?;
    let object = object(&dir, file);
    // Never the same bytes twice: one that was killed may have left it there.
    let data = format!("written by tars-backup store check on {} ({nonce})\n", owner.host).repeat(1000);
    store.put_small(&object, data.as_bytes(), Put::Replace)?;
    store.delete(&object)?;
    if store.list(&dir, cancel)?.iter().any(|o| o.name == file) {
        return Err(StoreError::Io {
            store: store.name().to_owned(),
            action: "delete",
            object,
            source: std::io::Error::other("it is still listed"),
        });
    }
    Ok(())
}

/// What a store needs of this process, to reach what it stands for.
#[derive(Clone)]
pub struct Access {
    /// Our own program, for probing mounts.
    pub exe: PathBuf,
    pub runtime: Handle,
    /// Secrets are read when they are needed.
    pub vault: Arc<Vault>,
}

/// Reads `[stores]`. A new kind of store is one file and one line here.
pub fn read_all(root: &Section<'_>, access: &Access) -> Vec<Box<dyn Store>> {
    let mut read: Vec<(Section<'_>, Box<dyn Store>)> = Vec::new();
    for (name, s) in root.tables("stores") {
        if let Err(e) = name.parse::<Name>() {
            s.problem("", e.to_string(), None);
        }
        let store = read_one(&name, &s, access);
        s.finish();
        read.push((s, store));
    }
    let local = read.iter().filter(|(_, store)| store.local_root().is_some()).count();
    let mut roots: Vec<(&str, String)> = Vec::new();
    for (s, store) in &read {
        // A link to a directory is that directory; what does not answer has only its name.
        let real =
            store.local_root().filter(|_| local > 1).and_then(|dir| mounts::real_path(&access.exe, dir));
        let place = real.map_or_else(|| store.place(), |dir| dir.display().to_string());
        if let Some((other, place)) = roots.iter().find(|(_, other)| overlap(other, &place)) {
            s.problem(
                "path",
                format!("{} is or overlaps {place}, the root of store {other:?}", store.location()),
                Some("give each store a directory of its own".into()),
            );
        }
        roots.push((store.name(), place));
    }
    let stores: Vec<Box<dyn Store>> = read.into_iter().map(|(_, store)| store).collect();
    if stores.is_empty() {
        root.table("stores").problem(
            "",
            "no store is configured",
            Some("add [stores.nas] with type = \"fs\" and path = \"/…\"".into()),
        );
    }
    stores
}

/// Whether two places are one, or one lies inside the other.
fn overlap(a: &str, b: &str) -> bool {
    let inside =
        |x: &str, y: &str| x.strip_prefix(y).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    inside(a, b) || inside(b, a)
}

type ReadKind = fn(&str, &Section<'_>, &Access) -> Box<dyn Store>;

/// Every kind of store. `memory` is for tests and left out of what is written about configurations.
const KINDS: [(&str, ReadKind); 5] =
    [("fs", fs::read), ("s3", s3::read), ("b2", b2::read), ("sftp", sftp::read), ("memory", memory::read)];

/// Asks one table of `[stores]` all its questions.
fn read_one(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    s.choice("type", &KINDS, "Kind of store: fs (a local directory or a mounted NAS), s3, b2, sftp")(
        name, s, access,
    )
}

/// The questions of each kind, asked of an empty table: the schema of `[stores.*]`.
pub fn schemas(access: &Access) -> Vec<serde_json::Value> {
    KINDS
        .iter()
        .filter(|(word, _)| *word != "memory")
        .map(|(word, read)| {
            let (section, survey) = Section::blank("store");
            section.choice("type", &KINDS, "Kind of store");
            read("name", &section, access);
            let mut schema = crate::config::json_schema("store", &survey.borrow().keys);
            schema["properties"]["type"] = serde_json::json!({ "const": word });
            if *word != KINDS[0].0 {
                schema["required"] = serde_json::json!(["type"]);
            }
            schema
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;

    pub(crate) type Rule = Box<dyn FnMut(&str, &str) -> Option<StoreError> + Send>;

    /// A directory that fails where a test wants it to.
    pub(crate) struct Odd {
        pub inside: FsStore,
        pub part_bytes: Option<u64>,
        pub free: Option<u64>,
        /// Asked before each act, by its verb and the object: what it fails with. `read` is the first read of an object
        /// that was opened.
        pub rule: Mutex<Rule>,
    }

    impl Odd {
        pub fn new(root: &Path) -> Self {
            Self {
                inside: FsStore::unmarked(root, Path::new("/nonexistent")),
                part_bytes: None,
                free: None,
                rule: Mutex::new(Box::new(|_, _| None)),
            }
        }

        pub fn on(&self, rule: impl FnMut(&str, &str) -> Option<StoreError> + Send + 'static) {
            *self.rule.lock().unwrap() = Box::new(rule);
        }

        fn ask(&self, verb: &str, object: &str) -> Result<(), StoreError> {
            (self.rule.lock().unwrap())(verb, object).map_or(Ok(()), Err)
        }
    }

    pub(crate) fn down(object: &str) -> StoreError {
        let (store, object) = ("odd".to_owned(), object.to_owned());
        StoreError::Down { store, action: "read", object, why: "the line is cut".to_owned() }
    }

    pub(crate) fn refused(object: &str) -> StoreError {
        let (store, object, refusal) = ("odd".to_owned(), object.to_owned(), Refusal::Other);
        StoreError::Refused { store, action: "use", object, refusal, why: "told so".to_owned() }
    }

    /// Breaks at once.
    struct Broken(Option<StoreError>);

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(self.0.take().map_or_else(|| io::Error::other("broken before"), io::Error::other))
        }
    }

    impl Store for Odd {
        fn name(&self) -> &str {
            "odd"
        }

        fn location(&self) -> String {
            self.inside.location()
        }

        fn place(&self) -> String {
            self.inside.place()
        }

        fn kit(&self) -> Option<Kit> {
            self.inside.kit()
        }

        fn part_bytes(&self) -> Option<u64> {
            self.part_bytes
        }

        fn reach(&self, _: &Cancel) -> Result<(), StoreError> {
            self.ask("reach", "")
        }

        fn create_root(&self, _: &Cancel) -> Result<(), StoreError> {
            Ok(())
        }

        fn needs_marker(&self) -> bool {
            false
        }

        fn list(&self, dir: &str, cancel: &Cancel) -> Result<Vec<Object>, StoreError> {
            self.ask("list", dir)?;
            self.inside.list(dir, cancel)
        }

        fn dirs(&self, dir: &str, cancel: &Cancel) -> Result<Vec<String>, StoreError> {
            self.inside.dirs(dir, cancel)
        }

        fn open(&self, object: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>, StoreError> {
            self.ask("open", object)?;
            let inside = self.inside.open(object, cancel)?;
            Ok(match self.ask("read", object) {
                Ok(()) => inside,
                Err(e) => Box::new(Broken(Some(e))),
            })
        }

        fn put(
            &self,
            object: &str,
            data: &mut dyn Read,
            bytes: u64,
            how: Put,
            cancel: &Cancel,
            moved: &dyn Fn(u64),
        ) -> Result<(), StoreError> {
            self.ask("put", object)?;
            self.inside.put(object, data, bytes, how, cancel, moved)
        }

        fn modified(&self, _: &str, _: &Cancel) -> Result<Option<Timestamp>, StoreError> {
            Ok(None)
        }

        fn delete(&self, object: &str) -> Result<(), StoreError> {
            self.ask("delete", object)?;
            self.inside.delete(object)
        }

        fn sweep(&self, _: &str) -> Result<Vec<String>, StoreError> {
            Ok(Vec::new())
        }

        fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
            Ok(self.free)
        }
    }

    #[test]
    fn what_a_broken_read_is_told_as_is_what_the_store_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "data").unwrap();
        let odd = Odd::new(dir.path());
        let store: &dyn Store = &odd;
        odd.on(|verb, object| (verb == "read").then(|| down(object)));
        assert!(matches!(store.read_small("x", &Cancel::default()), Err(StoreError::Down { .. })));
        odd.on(|verb, _| (verb == "read").then(|| Interrupted.into()));
        assert!(matches!(store.read_small("x", &Cancel::default()), Err(StoreError::Interrupted(_))));
        let own = store.broken("x", io::Error::other(Interrupted));
        assert!(matches!(own, StoreError::Interrupted(_)));
        let disk = store.broken("x", io::Error::from_raw_os_error(5));
        assert!(matches!(disk, StoreError::Io { ref source, .. } if source.raw_os_error() == Some(5)));
    }
}
