//! A directory on another server, over SSH. What could go wrong: a copy that was never brought to the disk there, one
//! that replaces what it must not, and a connection that ends at any moment. So an object is written under another name,
//! its length compared, brought to the disk where the server can, and renamed in a way that never replaces; and whatever
//! has begun on a connection that was lost is looked at on a new one.

mod packet;
mod session;

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;

use self::packet::{Attributes, Fields, Reply, Status};
use self::session::{Identity, Route, SYNC, Session, no_sftp};
use super::credentials::Key;
use super::fault::{Fault, Kind, Stop, unless};
use super::kit::{KNOWN_HOSTS, Kit, SSH_CONFIG, in_path, in_user, in_value};
use super::pace::{Pace, Paced};
use super::{Access, Object, Put, Refusal, Store, StoreError, TEMP, is_leftover, temp_name};
use crate::cancel::Cancel;
use crate::config::Section;
use crate::secret::SecretRef;
use crate::vault::Vault;

/// Bytes of one request: any server takes that many.
const PIECE: usize = 32 << 10;
/// Requests under way.
const WINDOW: usize = 64;
/// Tries to get a connection.
const TRIES: u32 = 3;
/// How long clearing up may take.
const CLEAR: Duration = Duration::from_secs(15);
/// Breaks of a download in a row, without one byte in between, that are mended.
const BREAKS: u32 = 3;

const FSYNC: &str = "fsync@openssh.com";
const POSIX_RENAME: &str = "posix-rename@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";

pub(super) struct Settings {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    /// Absolute, or below the directory in which the login ends.
    pub path: String,
    pub key: Option<SecretRef>,
    pub known_hosts: Option<PathBuf>,
    pub ssh_config: Option<PathBuf>,
    pub part_bytes: u64,
    pub limit: Option<u64>,
    pub by_host: bool,
    pub marker: bool,
}

struct Sftp {
    name: String,
    root: String,
    route: Route,
    key: Option<SecretRef>,
    vault: Arc<Vault>,
    runtime: Handle,
    pace: Option<Pace>,
    part_bytes: u64,
    by_host: bool,
    marker: bool,
    /// Connections that nobody uses.
    idle: Idle,
}

type Idle = Arc<Mutex<Vec<Session>>>;

pub(super) fn read(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    let host = s.required("host", "Name or address of the server");
    if !host.is_empty() && !is_host(&host) {
        s.problem("host", "is no name of a host", None);
    }
    let port = s.whole_or("port", 22, "Port of its SSH server", 1..=65_535);
    let user = s.text("user", "User to log in as; default: the one that tars-backup runs as");
    if user.as_deref().is_some_and(|u| !is_user(u)) {
        s.problem("user", "is no name of a user", None);
    }
    let path = s.required("path", "Directory on the server, absolute or below the home of the user");
    let root = root(&path).unwrap_or_else(|| {
        s.problem("path", "must be names with / between them, without . and ..", None);
        String::new()
    });
    let known_hosts =
        s.path_of("known_hosts", "File with the host key of the server; default: the system's files");
    let ssh_config =
        s.path_of("ssh_config", "Settings of ssh to use; default: none, not even those of the system");
    for (key, path) in [("known_hosts", &known_hosts), ("ssh_config", &ssh_config)] {
        if path.as_ref().is_some_and(|p| p.display().to_string().contains(['"', '%', '\n'])) {
            s.problem(key, "must be a path without quotes and percent signs", None);
        }
    }
    let settings = Settings {
        name: name.to_owned(),
        host,
        port: u16::try_from(port).unwrap_or(22),
        user,
        path: root,
        key: s.secret(
            "key",
            "Reference to the private key; default: those of the user that tars-backup runs as",
        ),
        known_hosts,
        ssh_config,
        part_bytes: s.size_or(
            "part_size",
            "128 MiB",
            5 << 20,
            "Archives that are longer go up in parts of this size, each of which survives an interruption",
        ),
        limit: s.size("limit", 1024, "Most bytes per second that go up"),
        by_host: s.flag("hosts", true, "Keep each machine below hosts/NAME, so that several share the store"),
        marker: true,
    };
    store(settings, access)
}

pub(super) fn store(settings: Settings, access: &Access) -> Box<dyn Store> {
    let Settings { name, host, port, user, path, key, known_hosts, ssh_config, .. } = settings;
    Box::new(Sftp {
        name,
        root: path,
        route: Route { host, port, user, known_hosts, ssh_config },
        key,
        vault: access.vault.clone(),
        runtime: access.runtime.clone(),
        pace: settings.limit.map(Pace::new),
        part_bytes: settings.part_bytes,
        by_host: settings.by_host,
        marker: settings.marker,
        idle: Idle::default(),
    })
}

pub(super) fn is_host(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:%".contains(&b))
}

pub(super) fn is_user(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn is_odd(part: &str) -> bool {
    part.is_empty() || part == "." || part == ".." || part.contains('\0')
}

/// The root in one spelling; None where it climbs.
pub(super) fn root(path: &str) -> Option<String> {
    let (absolute, inside) = (path.starts_with('/'), path.trim_matches('/'));
    if inside.is_empty() {
        return absolute.then(|| "/".to_owned());
    }
    (!inside.split('/').any(is_odd)).then(|| format!("{}{inside}", if absolute { "/" } else { "" }))
}

/// What a status means where it is not the one that was hoped for.
fn refusal(status: Status) -> Fault {
    let kind = match status {
        Status::NotThere => Kind::Absent,
        Status::Denied => Kind::Refused(Refusal::Access),
        // The server's own way to its disk, where it stands before another one.
        Status::NoConnection | Status::ConnectionLost => Kind::Passing,
        _ => Kind::Refused(Refusal::Other),
    };
    Fault { kind, text: status.to_string() }
}

fn well(status: Status) -> Result<(), Fault> {
    if status == Status::Ok { Ok(()) } else { Err(refusal(status)) }
}

impl Session {
    /// None where it is not there.
    async fn look(&mut self, kind: u8, path: &str) -> Result<Option<Attributes>, Fault> {
        match self.ask(kind, |r| r.text(path.as_bytes())).await? {
            Reply::Attributes(found) => Ok(Some(found)),
            Reply::Status(Status::NotThere) => Ok(None),
            Reply::Status(status) => Err(refusal(status)),
            _ => Err(no_sftp()),
        }
    }

    async fn handle(
        &mut self,
        kind: u8,
        fill: impl FnOnce(packet::Request) -> packet::Request,
    ) -> Result<Vec<u8>, Fault> {
        match self.ask(kind, fill).await? {
            Reply::Handle(handle) => Ok(handle),
            Reply::Status(status) => Err(refusal(status)),
            _ => Err(no_sftp()),
        }
    }

    /// Length of an open file.
    async fn length(&mut self, handle: &[u8]) -> Result<u64, Fault> {
        match self.ask(packet::FSTAT, |r| r.text(handle)).await? {
            Reply::Attributes(Attributes { bytes: Some(bytes), .. }) => Ok(bytes),
            Reply::Status(status) => Err(refusal(status)),
            _ => Err(no_sftp()),
        }
    }

    async fn close(&mut self, handle: &[u8]) -> Result<(), Fault> {
        well(self.do_it(packet::CLOSE, |r| r.text(handle)).await?)
    }

    /// Every entry of a directory; None where there is no such directory.
    async fn entries(&mut self, path: &str) -> Result<Option<Vec<(String, Attributes)>>, Fault> {
        let handle = match self.handle(packet::OPENDIR, |r| r.text(path.as_bytes())).await {
            Err(fault) if fault.kind == Kind::Absent => return Ok(None),
            other => other?,
        };
        let mut all = Vec::new();
        loop {
            match self.ask(packet::READDIR, |r| r.text(&handle)).await? {
                Reply::Names(names) if names.is_empty() => {
                    return Err(Fault::other("a listing goes on without any name"));
                }
                Reply::Names(names) => {
                    for (name, found) in names {
                        let Ok(name) = String::from_utf8(name) else { continue };
                        if !is_odd(&name) && !name.contains(|c: char| c == '/' || c.is_control()) {
                            all.push((name, found));
                        }
                    }
                }
                Reply::Status(Status::End) => break,
                // It was there when it was opened: this is no absent directory.
                Reply::Status(Status::NotThere) => {
                    return Err(Fault::passing("it went away while it was listed"));
                }
                Reply::Status(status) => return Err(refusal(status)),
                _ => return Err(no_sftp()),
            }
        }
        self.close(&handle).await?;
        // Not every server says of what kind an entry is; what nobody says must not shorten the list.
        let mut known = Vec::with_capacity(all.len());
        for (name, found) in all {
            if found.is_told() {
                known.push((name, found));
            } else if let Some(looked) = self.look(packet::LSTAT, &format!("{path}/{name}")).await? {
                let found = Attributes {
                    bytes: looked.bytes.or(found.bytes),
                    mode: looked.mode.or(found.mode),
                    ..looked
                };
                if !found.is_told() {
                    let text = "the server does not say of what kind and how long its files are";
                    return Err(Fault::other(text));
                }
                known.push((name, found));
            }
        }
        Ok(Some(known))
    }

    /// Bytes that this user may still write there; None where the server does not say.
    async fn free(&mut self, path: &str) -> Result<Option<u64>, Fault> {
        if !self.offers(STATVFS) {
            return Ok(None);
        }
        match self.ask(packet::EXTENDED, |r| r.text(STATVFS.as_bytes()).text(path.as_bytes())).await? {
            Reply::Extended(answer) => {
                let mut fields = Fields(&answer);
                let mut next = || fields.long().ok_or_else(no_sftp);
                let (_, unit, blocks, _, available) = (next()?, next()?, next()?, next()?, next()?);
                Ok((blocks > 0).then(|| available.saturating_mul(unit)))
            }
            Reply::Status(_) => Ok(None),
            _ => Err(no_sftp()),
        }
    }
}

impl Sftp {
    fn error(&self, action: &'static str, object: &str, stop: Stop) -> StoreError {
        stop.told(&self.name, action, object)
    }

    fn path(&self, action: &'static str, object: &str) -> Result<String, StoreError> {
        if object.split('/').any(is_odd) {
            let fault = Fault::other("not a path inside the store");
            return Err(self.error(action, &object.escape_debug().to_string(), fault.into()));
        }
        Ok(format!("{}/{object}", self.root.trim_end_matches('/')))
    }

    fn dir(&self, dir: &str) -> Result<String, StoreError> {
        if dir.is_empty() { Ok(self.root.clone()) } else { self.path("list", dir) }
    }

    /// A connection that works, for one use.
    async fn session(&self, cancel: &Cancel) -> Result<Session, Stop> {
        loop {
            let Some(mut old) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() else { break };
            // It may have been lost while nobody looked.
            let alive = unless(cancel, async {
                let asked = old.ask(packet::REALPATH, |r| r.text(b"."));
                Ok::<_, Fault>(matches!(
                    tokio::time::timeout(Duration::from_secs(10), asked).await,
                    Ok(Ok(Reply::Names(_)))
                ))
            });
            if alive.await? {
                return Ok(old);
            }
        }
        let identity =
            match &self.key {
                None => Identity::Default,
                Some(SecretRef::File(path)) => Identity::File(path.clone()),
                Some(reference) => Identity::Text(self.vault.read(reference).map_err(|source| {
                    Stop::Store(StoreError::Secret { store: self.name.clone(), source })
                })?),
            };
        let begin = std::time::Instant::now();
        let mut attempt = 1;
        loop {
            match unless(cancel, Session::start(&self.route, &identity)).await {
                Err(Stop::Fault(fault))
                    if fault.kind == Kind::Passing && attempt < TRIES && begin.elapsed().as_secs() < 15 =>
                {
                    log::debug!("asking again: {fault}");
                    let pause = Duration::from_millis(500) * attempt;
                    unless(cancel, async {
                        tokio::time::sleep(pause).await;
                        Ok::<_, Fault>(())
                    })
                    .await?;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn give_back(&self, session: Session) {
        if session.is_idle() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }

    /// Does something on a connection of its own; `action` and `object` are for the error.
    fn with<T>(
        &self,
        action: &'static str,
        object: &str,
        cancel: &Cancel,
        what: impl AsyncFnOnce(&mut Session) -> Result<T, Stop>,
    ) -> Result<T, StoreError> {
        let done = self.runtime.block_on(async {
            let mut session = self.session(cancel).await?;
            let done = what(&mut session).await;
            // After anything else nobody knows what is still under way or open there, and an open file keeps its room
            // when its name is gone. With the connection the server lets go of it all.
            let ended = match &done {
                Ok(_) | Err(Stop::Store(StoreError::Exists { .. })) => true,
                Err(Stop::Fault(fault)) => fault.kind == Kind::Absent,
                Err(_) => false,
            };
            if ended {
                self.give_back(session);
            }
            done
        });
        done.map_err(|stop| self.error(action, object, stop))
    }

    fn no_root(&self) -> Fault {
        Fault { kind: Kind::Refused(Refusal::NoPlace), text: format!("there is no directory {}", self.root) }
    }

    async fn check_root(&self, session: &mut Session) -> Result<(), Fault> {
        match session.look(packet::STAT, &self.root).await? {
            Some(found) if found.is_dir() => Ok(()),
            _ => Err(self.no_root()),
        }
    }

    fn each(&self, dir: &str, cancel: &Cancel) -> Result<Vec<(String, Attributes)>, StoreError> {
        let path = self.dir(dir)?;
        self.with("list", if dir.is_empty() { "its root" } else { dir }, cancel, async |session| {
            let entries = unless(cancel, session.entries(&path)).await?;
            if entries.is_none() {
                // A tier that was never written to need not be there; the root must be.
                unless(cancel, self.check_root(session)).await?;
            }
            Ok(entries.unwrap_or_default())
        })
    }

    /// Makes the directories above an object.
    async fn make_dirs(&self, session: &mut Session, object: &str) -> Result<(), Fault> {
        let parts: Vec<&str> = object.split('/').collect();
        let mut path = self.root.trim_end_matches('/').to_owned();
        for part in &parts[..parts.len().saturating_sub(1)] {
            path = format!("{path}/{part}");
            make_dir(session, &path).await?;
        }
        Ok(())
    }

    /// Everything but the rename. The length is what the server says.
    async fn write_temp(
        &self,
        session: &mut Session,
        temp: &str,
        source: &mut Source<'_>,
        bytes: u64,
        cancel: &Cancel,
    ) -> Result<u64, Stop> {
        let open = |r: packet::Request| r.text(temp.as_bytes()).number(packet::FLAG_WRITE_NEW).mode(0o600);
        let handle = unless(cancel, session.handle(packet::OPEN, open)).await?;
        // A server that cannot do this has made it with the mode that it was opened with.
        match unless(cancel, session.do_it(packet::FSETSTAT, |r| r.text(&handle).mode(0o600))).await? {
            Status::Unsupported => {}
            status => well(status)?,
        }
        let mut under_way = VecDeque::new();
        let mut at = 0u64;
        loop {
            // The rest of what was announced, and one byte more to see whether there is more.
            let piece = source.piece(bytes.saturating_sub(at).saturating_add(1), cancel)?;
            if piece.is_empty() {
                break;
            }
            if at + piece.len() as u64 > bytes {
                return Ok(bytes + 1);
            }
            let id = unless(cancel, session.send(packet::WRITE, |r| r.text(&handle).long(at).text(&piece)))
                .await?;
            under_way.push_back(id);
            at += piece.len() as u64;
            while under_way.len() >= WINDOW {
                self.written(session, &mut under_way, cancel).await?;
            }
        }
        while !under_way.is_empty() {
            self.written(session, &mut under_way, cancel).await?;
        }
        if at != bytes {
            return Ok(at);
        }
        unless(cancel, async {
            if session.offers(FSYNC) {
                let id = session.send(packet::EXTENDED, |r| r.text(FSYNC.as_bytes()).text(&handle)).await?;
                well(session.status(id, SYNC).await?)?;
            }
            let found = session.length(&handle).await?;
            session.close(&handle).await?;
            Ok::<_, Fault>(found)
        })
        .await
    }

    /// Waits for the oldest write.
    async fn written(
        &self,
        session: &mut Session,
        under_way: &mut VecDeque<u32>,
        cancel: &Cancel,
    ) -> Result<(), Stop> {
        let Some(id) = under_way.pop_front() else { return Ok(()) };
        match unless(cancel, session.status(id, SYNC)).await? {
            Status::Ok => Ok(()),
            Status::Failure => {
                let why = async { Ok::<_, Fault>(self.why_not(session, under_way).await) };
                Err(unless(cancel, why).await?.into())
            }
            status => Err(refusal(status).into()),
        }
    }

    /// A server says only "failure" of a disk that is full.
    async fn why_not(&self, session: &mut Session, under_way: &mut VecDeque<u32>) -> Fault {
        while let Some(id) = under_way.pop_front() {
            if session.status(id, SYNC).await.is_err() {
                break;
            }
        }
        match session.free(&self.root).await {
            Ok(Some(free)) if free < 1 << 20 => {
                Fault { kind: Kind::Refused(Refusal::Full), text: "no room is left there".to_owned() }
            }
            _ => refusal(Status::Failure),
        }
    }

    async fn rename(&self, session: &mut Session, from: &str, to: &str, how: Put) -> Result<bool, Fault> {
        let replaces = how == Put::Replace && session.offers(POSIX_RENAME);
        if replaces {
            let rename = |r: packet::Request| {
                r.text(POSIX_RENAME.as_bytes()).text(from.as_bytes()).text(to.as_bytes())
            };
            return well(session.do_it(packet::EXTENDED, rename).await?).map(|()| true);
        }
        if how == Put::Replace {
            // A server without it: for a moment there is none.
            session.do_it(packet::REMOVE, |r| r.text(to.as_bytes())).await?;
        } else if session.look(packet::LSTAT, to).await?.is_some() {
            return Ok(false);
        }
        match session.do_it(packet::RENAME, |r| r.text(from.as_bytes()).text(to.as_bytes())).await? {
            Status::Ok => Ok(true),
            // That of OpenSSH never replaces; it says no more than that it failed.
            Status::Failure if how == Put::New && session.look(packet::LSTAT, to).await?.is_some() => {
                Ok(false)
            }
            status => Err(refusal(status)),
        }
    }

    /// Removes a temporary object, on whatever connection there is. One that stays is removed by `sweep`.
    fn clear(&self, temp: &str) {
        let cancel = Cancel::default();
        let clear = async {
            if let Ok(mut session) = self.session(&cancel).await
                && session.do_it(packet::REMOVE, |r| r.text(temp.as_bytes())).await.is_ok()
            {
                self.give_back(session);
            }
        };
        let _ = self.runtime.block_on(async { tokio::time::timeout(CLEAR, clear).await });
    }
}

async fn make_dir(session: &mut Session, path: &str) -> Result<(), Fault> {
    match session.do_it(packet::MKDIR, |r| r.text(path.as_bytes()).mode(0o700)).await? {
        Status::Ok => Ok(()),
        // That it is there already is told as a failure.
        status => match session.look(packet::STAT, path).await? {
            Some(found) if found.is_dir() => Ok(()),
            _ => Err(refusal(status)),
        },
    }
}

/// The data of an object.
struct Source<'a> {
    data: Paced<'a>,
    moved: &'a dyn Fn(u64),
    /// What the data itself failed with.
    broken: Option<io::Error>,
}

impl Source<'_> {
    /// At most `most` bytes; none at the end.
    fn piece(&mut self, most: u64, cancel: &Cancel) -> Result<Vec<u8>, Stop> {
        let mut piece = vec![0; usize::try_from(most).unwrap_or(PIECE).min(PIECE)];
        let mut filled = 0;
        while filled < piece.len() {
            cancel.check()?;
            match self.data.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    cancel.check()?;
                    self.broken = Some(e);
                    return Err(Fault::other("its data cannot be read").into());
                }
            }
        }
        piece.truncate(filled);
        (self.moved)(filled as u64);
        Ok(piece)
    }
}

impl Store for Sftp {
    fn name(&self) -> &str {
        &self.name
    }

    fn location(&self) -> String {
        self.place()
    }

    fn place(&self) -> String {
        let user = self.route.user.as_ref().map_or_else(String::new, |u| format!("{u}@"));
        let root = if self.root.starts_with('/') { self.root.clone() } else { format!("/~/{}", self.root) };
        let host = self.route.host.to_ascii_lowercase();
        format!("sftp://{user}{host}:{}{}", self.route.port, root.trim_end_matches('/'))
    }

    fn kit(&self) -> Option<Kit> {
        let Route { host, port, user, known_hosts, ssh_config } = &self.route;
        let at = user.as_ref().map_or_else(String::new, |u| format!("{}@", in_user(u)));
        // A port is what stands behind the last colon.
        let behind = if *port != 22 || host.contains(':') { format!(":{port}") } else { String::new() };
        let path = match self.root.as_str() {
            root if root.starts_with("/~/") => format!("/{root}"),
            root if root.starts_with('/') => root.to_owned(),
            below_home => format!("/~/{below_home}"),
        };
        let query = known_hosts
            .as_ref()
            .map_or_else(String::new, |p| format!("?known_hosts={}", in_value(&p.display().to_string())));
        let mut facts = vec![("server", host.clone()), ("port", port.to_string())];
        facts.extend(user.clone().map(|u| ("user", u)));
        facts.push(("directory", self.root.clone()));
        let mut notes = Vec::new();
        if self.key.is_none() {
            notes.push(
                "it is opened by the ssh keys of the user that tars-backup runs as: keep one of them, too"
                    .to_owned(),
            );
        }
        if known_hosts.is_none() {
            notes.push(format!(
                "its host key stands in the system's files: ssh-keyscan {host}, and compare it"
            ));
        }
        notes.extend(
            ssh_config
                .as_ref()
                .map(|p| format!("a URL takes no settings of ssh, and {} has some", p.display())),
        );
        let files = [(KNOWN_HOSTS, known_hosts), (SSH_CONFIG, ssh_config)];
        Some(Kit {
            url: format!("sftp://{at}{}{behind}{}{query}", in_value(host), in_path(&path)),
            facts,
            keys: self.key.iter().map(|k| ("ssh_key", Key::Reference(k.clone()))).collect(),
            files: files.into_iter().filter_map(|(what, path)| Some((what, path.clone()?))).collect(),
            web: None,
            mount: None,
            notes,
        })
    }

    fn by_host(&self) -> bool {
        self.by_host
    }

    fn part_bytes(&self) -> Option<u64> {
        Some(self.part_bytes)
    }

    fn reach(&self, cancel: &Cancel) -> Result<(), StoreError> {
        self.with("list", "its root", cancel, async |session| unless(cancel, self.check_root(session)).await)
    }

    fn create_root(&self, cancel: &Cancel) -> Result<(), StoreError> {
        self.with("make", "its root", cancel, async |session| {
            let absolute = self.root.starts_with('/');
            let mut path = String::new();
            for (n, part) in self.root.split('/').filter(|p| !p.is_empty()).enumerate() {
                path = if n == 0 && !absolute { part.to_owned() } else { format!("{path}/{part}") };
                if unless(cancel, session.look(packet::STAT, &path)).await?.is_none() {
                    unless(cancel, make_dir(session, &path)).await?;
                }
            }
            unless(cancel, self.check_root(session)).await
        })
    }

    fn needs_marker(&self) -> bool {
        self.marker
    }

    fn list(&self, dir: &str, cancel: &Cancel) -> Result<Vec<Object>, StoreError> {
        let mut objects: Vec<Object> = self
            .each(dir, cancel)?
            .into_iter()
            .filter(|(name, found)| found.is_file() && !name.starts_with(TEMP))
            .map(|(name, found)| Object { name, bytes: found.bytes.unwrap_or_default() })
            .collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        objects.dedup_by(|a, b| a.name == b.name);
        Ok(objects)
    }

    fn dirs(&self, dir: &str, cancel: &Cancel) -> Result<Vec<String>, StoreError> {
        let found: BTreeSet<String> = self
            .each(dir, cancel)?
            .into_iter()
            .filter(|(_, found)| found.is_dir())
            .map(|(name, _)| name)
            .collect();
        Ok(found.into_iter().collect())
    }

    fn open(&self, object: &str, cancel: &Cancel) -> Result<Box<dyn Read + Send>, StoreError> {
        let path = self.path("read", object)?;
        let (session, handle, length) = self
            .runtime
            .block_on(async {
                let mut session = self.session(cancel).await?;
                let (handle, length) = unless(cancel, open_file(&mut session, &path)).await?;
                Ok((session, handle, length))
            })
            .map_err(|stop| self.error("read", object, stop))?;
        Ok(Box::new(Download {
            again: self.again(),
            runtime: self.runtime.clone(),
            cancel: cancel.clone(),
            idle: self.idle.clone(),
            object: object.to_owned(),
            path,
            length,
            source: Some((session, handle)),
            asked: VecDeque::new(),
            ahead: 0,
            at: 0,
            piece: Vec::new(),
            taken: 0,
            breaks: 0,
        }))
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
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let path = self.path("write", object)?;
        let (dir, file) = path.rsplit_once('/').unwrap_or(("", &path));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let temp = format!("{dir}/{}", temp_name(Some(number), file));
        let exists = || StoreError::Exists { store: self.name.clone(), object: object.to_owned() };
        let mut source =
            Source { data: Paced { data, pace: self.pace.as_ref(), cancel }, moved, broken: None };
        let mut begun = false;

        let written = self.with("write", object, cancel, async |session| {
            if how == Put::New && unless(cancel, session.look(packet::LSTAT, &path)).await?.is_some() {
                return Err(exists().into());
            }
            unless(cancel, async {
                self.check_root(session).await?;
                self.make_dirs(session, object).await
            })
            .await?;
            begun = true;
            let found = self.write_temp(session, &temp, &mut source, bytes, cancel).await?;
            if found != bytes {
                let (store, object) = (self.name.clone(), object.to_owned());
                return Err(StoreError::Length { store, object, wanted: bytes, found }.into());
            }
            // The flag stops what moves data; what is whole is not left half renamed.
            match self.rename(session, &temp, &path, how).await? {
                true => Ok(()),
                false => Err(exists().into()),
            }
        });
        let Err(mut error) = written else { return Ok(()) };
        if let Some(source) = source.broken {
            let (store, object) = (self.name.clone(), object.to_owned());
            error = StoreError::Io { store, action: "take the data of", object, source };
        }
        // The connection may have been lost with the answer: a new object that is there with its length is ours, where it
        // was seen not to be there before.
        if begun && how == Put::New && matches!(error, StoreError::Down { .. }) {
            let to_the_end = Cancel::default();
            let there = self.with("look for", object, &to_the_end, async |session| {
                Ok(session.look(packet::LSTAT, &path).await?)
            });
            if let Ok(Some(found)) = there
                && found.is_file()
                && found.bytes == Some(bytes)
            {
                return Ok(());
            }
        }
        if begun {
            self.clear(&temp);
        }
        // A directory that is not there is a place that is not there, never an absent object.
        if let StoreError::NotFound { store, object } = error {
            let why = "a directory above it went away".to_owned();
            error = StoreError::Refused { store, action: "write", object, refusal: Refusal::NoPlace, why };
        }
        Err(error)
    }

    fn modified(&self, object: &str, cancel: &Cancel) -> Result<Option<Timestamp>, StoreError> {
        let path = self.path("look at", object)?;
        let found = self.with("look at", object, cancel, async |session| {
            Ok(session.look(packet::LSTAT, &path).await?)
        })?;
        let seconds = found.and_then(|f| f.modified);
        Ok(seconds.and_then(|s| Timestamp::from_second(i64::from(s)).ok()))
    }

    fn delete(&self, object: &str) -> Result<(), StoreError> {
        let path = self.path("delete", object)?;
        self.with("delete", object, &Cancel::default(), async |session| {
            match session.do_it(packet::REMOVE, |r| r.text(path.as_bytes())).await? {
                Status::Ok | Status::NotThere => Ok(()),
                status => Err(refusal(status).into()),
            }
        })
    }

    fn sweep(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let cancel = Cancel::default();
        let left: Vec<String> = self
            .each(dir, &cancel)?
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| is_leftover(name))
            .collect();
        for name in &left {
            self.delete(&super::object(dir, name))?;
        }
        Ok(left)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StoreError> {
        let cancel = Cancel::default();
        self.with("look at the free space of", "/", &cancel, async |session| {
            Ok(session.free(&self.root).await?)
        })
    }
}

impl Sftp {
    /// The same store, for whoever outlives a borrow of it.
    fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            root: self.root.clone(),
            route: self.route.clone(),
            key: self.key.clone(),
            vault: self.vault.clone(),
            runtime: self.runtime.clone(),
            pace: None,
            part_bytes: self.part_bytes,
            by_host: self.by_host,
            marker: self.marker,
            idle: self.idle.clone(),
        }
    }
}

async fn open_file(session: &mut Session, path: &str) -> Result<(Vec<u8>, u64), Fault> {
    let open = |r: packet::Request| r.text(path.as_bytes()).number(packet::FLAG_READ).no_attributes();
    let handle = session.handle(packet::OPEN, open).await?;
    let length = session.length(&handle).await?;
    Ok((handle, length))
}

/// An object as it comes, taken up again on a new connection where one was lost.
struct Download {
    again: Sftp,
    runtime: Handle,
    cancel: Cancel,
    idle: Idle,
    object: String,
    path: String,
    length: u64,
    source: Option<(Session, Vec<u8>)>,
    /// Questions under way: id, where, how many bytes.
    asked: VecDeque<(u32, u64, u32)>,
    /// Up to where was asked.
    ahead: u64,
    /// Up to where it came.
    at: u64,
    piece: Vec<u8>,
    taken: usize,
    breaks: u32,
}

impl Download {
    /// The next bytes, none at the end.
    async fn next(&mut self) -> Result<Vec<u8>, Stop> {
        loop {
            if self.at == self.length {
                self.finish().await;
                return Ok(Vec::new());
            }
            let came = match self.step().await {
                Ok(piece) if piece.is_empty() => continue,
                other => other,
            };
            match came {
                Err(Stop::Fault(fault)) if fault.kind == Kind::Passing && self.breaks < BREAKS => {
                    self.breaks += 1;
                    self.source = None;
                }
                Ok(piece) => {
                    self.breaks = 0;
                    return Ok(piece);
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    async fn step(&mut self) -> Result<Vec<u8>, Stop> {
        let cancel = &self.cancel;
        let (session, handle) = match &mut self.source {
            Some(source) => source,
            None => {
                let mut session = self.again.session(cancel).await?;
                let (handle, length) = unless(cancel, open_file(&mut session, &self.path)).await?;
                if length != self.length {
                    return Err(Fault::other("it was replaced while it was read").into());
                }
                self.asked.clear();
                self.ahead = self.at;
                self.source.insert((session, handle))
            }
        };
        while self.asked.len() < WINDOW && self.ahead < self.length {
            let size = u32::try_from((self.length - self.ahead).min(PIECE as u64)).unwrap_or(0);
            let at = self.ahead;
            let id =
                unless(cancel, session.send(packet::READ, |r| r.text(handle).long(at).number(size))).await?;
            self.asked.push_back((id, at, size));
            self.ahead += u64::from(size);
        }
        let Some((id, at, size)) = self.asked.pop_front() else { return Err(no_sftp().into()) };
        let answer = unless(cancel, session.receive(id, Duration::from_secs(60))).await?;
        match answer {
            Reply::Data(piece) if at == self.at && piece.len() <= size as usize && !piece.is_empty() => {
                let missing = size - u32::try_from(piece.len()).unwrap_or(size);
                self.at += piece.len() as u64;
                if missing > 0 {
                    // It gave less than was asked for: the rest comes before what follows it.
                    let at = self.at;
                    let id = unless(
                        cancel,
                        session.send(packet::READ, |r| r.text(handle).long(at).number(missing)),
                    )
                    .await?;
                    self.asked.push_front((id, at, missing));
                }
                Ok(piece)
            }
            Reply::Status(Status::End) => {
                Err(Fault::other(format!("it ends after {} of {} bytes", self.at, self.length)).into())
            }
            Reply::Status(status) => Err(refusal(status).into()),
            _ => Err(no_sftp().into()),
        }
    }

    async fn finish(&mut self) {
        let Some((mut session, handle)) = self.source.take() else { return };
        if session.close(&handle).await.is_ok() && session.is_idle() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        }
    }
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.taken == self.piece.len() {
            let runtime = self.runtime.clone();
            self.piece = runtime
                .block_on(self.next())
                .map_err(|stop| io::Error::other(self.again.error("read", &self.object, stop)))?;
            self.taken = 0;
        }
        let n = buf.len().min(self.piece.len() - self.taken);
        buf[..n].copy_from_slice(&self.piece[self.taken..self.taken + n]);
        self.taken += n;
        Ok(n)
    }
}
