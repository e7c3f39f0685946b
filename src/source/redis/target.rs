//! A Redis server as the target of a restore: its data directory with the dump file in it and, where the server keeps an
//! append-only file, that one made from the dump. What could go wrong: a server that ignores what was put there and comes
//! up empty; so what it holds is counted before the old data may go.

use std::cell::{Cell, OnceCell};
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::counts::Holdings;
use super::server::Server;
use super::settings::{
    AppendOnly, Layout, Told, Version, config_path, fact, first_part, list_of_first_part, list_of_parts,
};
use super::{Redis, rdb_facts};
use crate::archive::tree::Exclude;
use crate::change::{self, Change};
use crate::docker::{Container, Docker, Place};
use crate::format::rdb::{self, Checked};
use crate::hint::chain;
use crate::manifest::Component;
use crate::mounts;
use crate::run_journal::{How, RunJournal, Step};
use crate::source::{Context, SourceError, reachable};
use crate::target::{Compared, Existing, Target, TreeTarget, Work};

/// A longer configuration file is none.
const CONFIG_BYTES: u64 = 1 << 20;
const LOOK_AGAIN: Duration = Duration::from_millis(200);

pub(super) struct RedisTarget<'a> {
    source: &'a Redis,
    tree: TreeTarget,
    container: Container,
    layout: Layout,
    version: Option<Version>,
    existing: Existing,
    /// What was put in place.
    placed: OnceCell<Checked>,
    seen: Cell<bool>,
}

/// Answers of a server that runs.
#[derive(Default)]
struct Answers {
    version: Option<Version>,
    keys: u64,
    append_only: bool,
    dir: Option<String>,
    dump: Option<String>,
    append_dir: Option<String>,
    append_file: Option<String>,
}

impl<'a> RedisTarget<'a> {
    pub fn find(
        source: &'a Redis,
        context: &Context<'_>,
        facts: &Map<String, Value>,
    ) -> Result<Self, SourceError> {
        let docker = context.docker()?;
        let container = docker.find(&source.selector)?;
        let told = Told::of(&container, &config(docker, &container, source.limits.idle).unwrap_or_default());
        let answers = match container.state.as_str() {
            "running" => ask(source, context)?,
            _ => None,
        };
        let asked = answers.as_ref();
        let known = |asked: Option<&String>, key: &str, usual: &str| {
            let said = asked.cloned().or_else(|| told.value(key)).or_else(|| fact(facts, key));
            said.unwrap_or_else(|| usual.to_owned())
        };
        let own_path = source.rdb_path.as_deref();
        let of_path = |p: Option<&Path>| p.map(|p| p.display().to_string());
        let dir = of_path(own_path.and_then(Path::parent))
            .or_else(|| asked.and_then(|a| a.dir.clone()))
            .or_else(|| told.dir())
            .or_else(|| fact(facts, "dir"))
            .unwrap_or_else(|| "/data".to_owned());
        let dump = of_path(own_path.and_then(Path::file_name).map(Path::new))
            .or_else(|| asked.and_then(|a| a.dump.clone()));
        let mut layout = Layout {
            dir,
            dump: known(dump.as_ref(), "dbfilename", "dump.rdb"),
            append_dir: known(asked.and_then(|a| a.append_dir.as_ref()), "appenddirname", "appendonlydir"),
            append_file: known(
                asked.and_then(|a| a.append_file.as_ref()),
                "appendfilename",
                "appendonly.aof",
            ),
            append_only: AppendOnly::Off,
        };
        if let Some(why) = layout.problem() {
            return Err(SourceError::hinted(
                container.name,
                format!("nothing can be put in place there: {why}"),
                "restore it elsewhere with --to DIR, then follow RESTORE.md",
            ));
        }
        let place = context.place(&container, &layout.dir)?;
        let live = reachable(context, &place)?;
        let hidden = place.nested.iter().find(|at| {
            let below = Path::new(at).strip_prefix(&layout.dir).ok();
            let first = below.and_then(|b| b.components().next());
            first.is_some_and(|c| layout.owns(&c.as_os_str().to_string_lossy()))
        });
        if let Some(at) = hidden {
            return Err(SourceError::hinted(
                container.name,
                format!("{at} is a mount of its own, so its data cannot be replaced as a whole"),
                "restore it elsewhere with --to DIR, then follow RESTORE.md",
            ));
        }
        // Redis does not make its directory, so a missing one means that it is another one.
        if answers.is_none() && !live.is_dir() {
            return Err(SourceError::hinted(
                container.name,
                format!("its data directory {} is not there", live.display()),
                format!(
                    "start it once, so that it can be asked; or make the directory: mkdir {}",
                    live.display()
                ),
            ));
        }
        let version = asked.and_then(|a| a.version.clone()).or_else(|| told.version());
        layout.append_only = append_only(asked, &told, &version, &live, &layout, facts);
        let existing = match asked {
            Some(a) => {
                let version = a.version.as_ref().map_or_else(|| "Redis".to_owned(), Version::to_string);
                Existing::Something(format!("{version}, {} keys", a.keys))
            }
            None if own_names(&live, &layout)?.is_empty() => Existing::Nothing,
            None => Existing::Something("files of a server that does not run".into()),
        };
        let what = format!("data of {} in {}", container.name, place.describe());
        let tree = TreeTarget { live, what, place: Some(place), exclude: Exclude::default() };
        Ok(Self {
            source,
            tree,
            container,
            layout,
            version,
            existing,
            placed: OnceCell::new(),
            seen: Cell::new(false),
        })
    }

    /// The member read to its end, and compared with the manifest.
    fn read(&self, work: &Work<'_>, body: &mut dyn Read) -> Result<Checked, SourceError> {
        let bad = |why: String| SourceError::bad(work.name, why);
        let found = rdb::check(body).map_err(|e| bad(chain(&e)))?;
        let wanted = work.component.facts.get("databases").filter(|_| work.compare);
        match (&found, wanted) {
            (Checked::Counted(facts), Some(wanted)) if rdb_facts(facts).get("databases") != Some(wanted) => {
                Err(bad("its keys per database are not those of the manifest".into()))
            }
            _ => Ok(found),
        }
    }

    /// Brings the dump file into every file that the server may read.
    fn fill(&self, context: &Context<'_>, work: &Work<'_>, beside: &Path) -> Result<Checked, SourceError> {
        let layout = &self.layout;
        let mut names = vec![PathBuf::from(&layout.dump)];
        let parts = Path::new(&layout.append_dir);
        match layout.append_only {
            AppendOnly::Off => {}
            AppendOnly::OneFile => names.push(layout.append_file.clone().into()),
            AppendOnly::Parts => {
                make(&beside.join(parts))?;
                names.push(parts.join(first_part(&layout.append_file)));
            }
        }
        let mut files = Vec::new();
        for name in names {
            files.push(create(beside.join(name))?);
        }
        let copied = work.open(work.member(".rdb")?, |body| {
            let mut tee = Tee { body, files: &mut files, context, failed: None };
            let read = self.read(work, &mut tee);
            tee.failed.take().map_or(read, Err)
        })?;
        if layout.append_only == AppendOnly::Parts {
            let (path, mut list) = create(beside.join(parts).join(list_of_parts(&layout.append_file)))?;
            writeln!(list, "{}", list_of_first_part(&layout.append_file))
                .map_err(|source| SourceError::Place { path: path.clone(), source })?;
            files.push((path, list));
        }
        self.dress(beside, &files)?;
        Ok(copied)
    }

    /// Owner and mode as the old files have them, everything on the disk.
    fn dress(&self, beside: &Path, files: &[(PathBuf, File)]) -> Result<(), SourceError> {
        let live = &self.tree.live;
        let above = live.parent().unwrap_or(Path::new("/"));
        let root =
            Looks::of(live, Path::is_dir).or_else(|| Looks::of(above, Path::is_dir)).ok_or_else(|| {
                SourceError::bad(live.display().to_string(), "the directory above it is not there")
            })?;
        let old_parts = live.join(&self.layout.append_dir);
        let old_file = [&self.layout.dump, &self.layout.append_file]
            .iter()
            .map(|name| live.join(name))
            .chain([old_parts.join(list_of_parts(&self.layout.append_file))])
            .find_map(|path| Looks::of(&path, Path::is_file));
        // As Redis itself makes them.
        let file = old_file.unwrap_or(Looks { mode: 0o644, ..root });
        let parts = Looks::of(&old_parts, Path::is_dir).unwrap_or(Looks { mode: 0o755, ..file });
        for (path, open) in files {
            Looks { mode: file.mode & 0o777 | 0o600, ..file }.give(path)?;
            open.sync_all().map_err(|source| SourceError::Place { path: path.clone(), source })?;
        }
        let new_parts = beside.join(&self.layout.append_dir);
        if new_parts.is_dir() {
            Looks { mode: parts.mode | 0o700, ..parts }.give(&new_parts)?;
            sync(&new_parts)?;
        }
        root.give(beside)?;
        sync(beside)
    }

    /// A server without an append-only file may hold what is written nowhere: when it is stopped that is gone, and the old
    /// data could not come back.
    fn save_old(&self, context: &Context<'_>) -> Result<(), SourceError> {
        if self.container.state != "running" {
            return Ok(());
        }
        let answered = self.source.server(context).and_then(|server| {
            let state = server.persistence()?;
            Ok((server, state))
        });
        let (server, state) = match answered {
            // It runs for moments only.
            Err(SourceError::Docker(_)) => return Ok(()),
            other => other?,
        };
        let is = |key: &str, value: &str| state.get(key).is_some_and(|v| v == value);
        let (dump, _) = self.source.dump_place(&server)?;
        let written = is("rdb_changes_since_last_save", "0") && server.fingerprint(&dump)?.is_some();
        if is("aof_enabled", "1") || written {
            return Ok(());
        }
        self.source.save(context, &server, &dump).map_err(|e| match e {
            SourceError::Interrupted(i) => i.into(),
            e => SourceError::hinted(
                self.container.name.clone(),
                format!(
                    "what it holds now is not saved, and would be gone if the restore failed: {}",
                    chain(&e)
                ),
                format!(
                    "if it may go, stop the server and restore again: docker stop {}",
                    self.container.name
                ),
            ),
        })
    }

    /// The server holds what was put in place.
    fn ask_for_it(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Vec<String>, SourceError> {
        let server = self.await_loaded(context)?;
        let holdings = Holdings::of(&server.info("all")?);
        let opened;
        let wanted = match self.placed.get() {
            Some(placed) => placed,
            None => {
                opened = work.open(work.member(".rdb")?, |body| self.read(work, body))?;
                &opened
            }
        };
        holdings.against(wanted).map_err(|why| self.unwell(why))
    }

    fn unwell(&self, why: impl Into<String>) -> SourceError {
        let name = &self.container.name;
        SourceError::hinted(name.clone(), why, format!("docker logs --tail 50 {name}"))
    }

    /// Waits until the server has read its data. Nobody holds its container but we.
    fn await_loaded<'c>(&self, context: &'c Context<'_>) -> Result<Server<'c>, SourceError> {
        let docker = context.docker()?;
        let deadline = Instant::now() + self.source.save_timeout;
        let mut life = None;
        loop {
            context.cancel.check()?;
            let now = docker.look(&self.container.id)?.ok_or_else(|| self.unwell("it is gone"))?;
            if now.state != "running" {
                return Err(self.unwell(format!("it does not run with the new data: it is {}", now.state)));
            }
            if life.get_or_insert_with(|| now.started_at.clone()) != &now.started_at {
                return Err(self.unwell("it ended while it read the new data, and was started again"));
            }
            let mut server = Server::of(self.source, context, now, None)?;
            // While it reads it may answer nobody, for as long as that takes.
            let left = deadline.saturating_duration_since(Instant::now());
            let usual = std::mem::replace(&mut server.limits.total, left.max(Duration::from_secs(1)));
            let answer = server.persistence();
            server.limits.total = usual;
            let last = match answer {
                Ok(state) if state.get("loading").is_none_or(|v| v == "0") => return Ok(server),
                Ok(_) => "it still reads its data".to_owned(),
                // It does not listen yet, or answers nobody while it reads.
                Err(e @ SourceError::Docker(_)) => chain(&e),
                Err(SourceError::Bad { why, .. })
                    if why.starts_with("LOADING") || why.starts_with("BUSY") =>
                {
                    why
                }
                Err(e) => return Err(e),
            };
            if Instant::now() > deadline {
                let seconds = self.source.save_timeout.as_secs();
                return Err(self.unwell(format!("it did not serve the new data within {seconds} s: {last}")));
            }
            context.monitor.waiting("waiting for Redis to read its data");
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// A container that was made and never started runs from now on; unless its server does not hold the new data.
    fn start_first(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        container: &Container,
    ) -> Result<Vec<String>, SourceError> {
        let docker = context.docker()?.undisturbed();
        let journal = context.holds.journal();
        // Whoever undoes the change must stop it first.
        let held = container.to_held(How::Stop);
        journal.record(&Step::Hold(held.clone()))?;
        let outcome =
            docker.let_go(&held).map_err(SourceError::from).and_then(|_| self.ask_for_it(context, work));
        if outcome.is_err() {
            docker.take_hold(container, How::Stop)?;
        }
        journal.record(&Step::Released { id: held.id })?;
        let mut warnings = outcome?;
        warnings.push(format!("{} had never been started; it runs now", container.name));
        Ok(warnings)
    }
}

impl Target for RedisTarget<'_> {
    fn describe(&self) -> String {
        self.tree.what.clone()
    }

    fn place(&self) -> Option<&Place> {
        self.tree.place.as_ref()
    }

    fn server(&self) -> Option<&Container> {
        Some(&self.container)
    }

    fn existing(&self, _: &Context<'_>) -> Result<Existing, SourceError> {
        Ok(self.existing.clone())
    }

    fn survey(&self, _: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        mounts::must_hold_none(&self.tree.live)?;
        let found = work.open(work.member(".rdb")?, |body| self.read(work, body))?;
        let (rdb, bytes, made) = match &found {
            Checked::Counted(facts) => (facts.version, facts.bytes, facts.redis_version.clone()),
            Checked::Opaque { version, bytes, .. } => (*version, *bytes, None),
        };
        let made = made.or_else(|| fact(&work.component.facts, "server_version"));
        let made = made.as_deref().and_then(Version::parse);
        if let Some(why) = self.version.as_ref().and_then(|now| now.refuses(made.as_ref(), rdb)) {
            return Err(SourceError::hinted(
                self.container.name.clone(),
                why,
                "use a newer image for it; or restore elsewhere with --to DIR",
            ));
        }
        let copies = if self.layout.append_only == AppendOnly::Off { 1 } else { 2 };
        let live = &self.tree.live;
        let on = if live.is_dir() { live } else { live.parent().unwrap_or(live) };
        Ok((on.to_owned(), copies * bytes + 5 * 4096))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let beside = change::beside(&self.tree.live, work.id);
        journal.record(&work.scratch(&beside))?;
        make(&beside)?;
        self.tree.hide_image(&beside)?;
        let placed = self.fill(context, work, &beside)?;
        // Once per restore; a second value could only be the same.
        let _ = self.placed.set(placed);
        self.save_old(context)?;
        Ok(Vec::new())
    }

    fn change(&self, _: &Context<'_>, _: &RunJournal, work: &Work<'_>) -> Result<Change, SourceError> {
        let live = &self.tree.live;
        mounts::must_hold_none(live)?;
        let own = own_names(live, &self.layout)?;
        let carried = names(live)?.into_iter().filter(|n| n != change::NEW && !own.contains(n));
        let beside = change::beside(live, work.id);
        Ok(change::plan_directory(live, &beside, carried.map(PathBuf::from).collect())?)
    }

    fn compare(&self, context: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        let server = self.source.server(context)?;
        Ok(Holdings::of(&server.info("all")?).beside(&component.facts))
    }

    fn check(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        containers: &[Container],
    ) -> Result<Vec<String>, SourceError> {
        let mut warnings = self.tree.check(context, work, containers)?;
        // Later, clients work with it.
        if self.seen.replace(true) {
            return Ok(warnings);
        }
        let now = context.docker()?.look(&self.container.id)?.ok_or_else(|| self.unwell("it is gone"))?;
        let ran = containers.iter().any(|c| c.id == now.id);
        let first = now.state == "created" && !now.auto_remove;
        match (ran || now.is_active(), first) {
            (true, _) => warnings.extend(self.ask_for_it(context, work)?),
            (false, true) => warnings.extend(self.start_first(context, work, &now)?),
            (false, false) => warnings.push(format!(
                "{0} is {1}, so no server has read the new data yet: docker start {0}, then look: docker exec {0} \
                 redis-cli INFO keyspace",
                now.name, now.state
            )),
        }
        Ok(warnings)
    }
}

/// What the server says; None where it does not come to an answer, as one that is started again and again.
fn ask(source: &Redis, context: &Context<'_>) -> Result<Option<Answers>, SourceError> {
    let outcome = source.server(context).and_then(|server| {
        let info = server.info("all")?;
        Ok((server, info))
    });
    let (server, info) = match outcome {
        Err(SourceError::Docker(_)) => return Ok(None),
        other => other?,
    };
    if info.get("role").is_some_and(|r| r == "slave") {
        let master = info.get("master_host").map_or("another server", String::as_str);
        return Err(SourceError::hinted(
            server.container.name.clone(),
            format!("it is a replica of {master}, and would take its data from there again"),
            "restore that server; or end it first: redis-cli REPLICAOF NO ONE",
        ));
    }
    let setting = |key: &str| match server.setting(key) {
        Ok(value) => Ok(Some(value)),
        Err(SourceError::Bad { .. } | SourceError::Docker(_)) => Ok(None),
        Err(e) => Err(e),
    };
    let version = match info.get("valkey_version") {
        Some(number) => Version::parse(&format!("valkey {number}")),
        None => info.get("redis_version").and_then(|v| Version::parse(v)),
    };
    Ok(Some(Answers {
        version,
        keys: Holdings::of(&info).keys(),
        append_only: info.get("aof_enabled").is_some_and(|v| v == "1"),
        dir: setting("dir")?,
        dump: setting("dbfilename")?,
        append_dir: setting("appenddirname")?,
        append_file: setting("appendfilename")?,
    }))
}

/// Which append-only files the server will look for. It may be on now, or only after a start: files that it does not
/// look for do no harm, and those that it misses leave it empty.
fn append_only(
    asked: Option<&Answers>,
    told: &Told,
    version: &Option<Version>,
    live: &Path,
    layout: &Layout,
    facts: &Map<String, Value>,
) -> AppendOnly {
    let old_parts = live.join(&layout.append_dir).is_dir();
    let on = match (asked.map(|a| a.append_only), told.append_only()) {
        (Some(true), _) | (_, Some(true)) => true,
        (Some(false), _) | (_, Some(false)) => false,
        (None, None) => {
            let before = facts.get("aof").and_then(Value::as_bool) == Some(true);
            old_parts || live.join(&layout.append_file).is_file() || before
        }
    };
    let parts = match (asked, version) {
        (Some(a), _) if a.append_dir.is_some() => true,
        (_, Some(version)) => version.major >= 7,
        _ => old_parts,
    };
    match (on, parts) {
        (false, _) => AppendOnly::Off,
        (true, true) => AppendOnly::Parts,
        (true, false) => AppendOnly::OneFile,
    }
}

/// The configuration file that the arguments name. None where it cannot be read: then it tells us nothing.
fn config(docker: &Docker, container: &Container, idle: Duration) -> Option<String> {
    let path = config_path(container)?;
    let mut text = Vec::new();
    let download = docker.download(&container.id, &path, idle);
    crate::archive::read::only_file(download, |body| {
        body.take(CONFIG_BYTES).read_to_end(&mut text).map(|_| ())
    })
    .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Names in a directory that need not be there.
fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, SourceError> {
    let failed = |source| SourceError::Read { what: dir.display().to_string(), source };
    match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(failed)?.map(|e| Ok(e.map_err(failed)?.file_name())).collect(),
    }
}

/// Those of its entries that are data of the server.
fn own_names(dir: &Path, layout: &Layout) -> Result<Vec<std::ffi::OsString>, SourceError> {
    let mut names = names(dir)?;
    names.retain(|n| n.to_str().is_some_and(|n| layout.owns(n)));
    Ok(names)
}

fn make(dir: &Path) -> Result<(), SourceError> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    made.map_err(|source| SourceError::Place { path: dir.to_owned(), source })
}

fn create(path: PathBuf) -> Result<(PathBuf, File), SourceError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(file) => Ok((path, file)),
        Err(source) => Err(SourceError::Place { path, source }),
    }
}

fn sync(dir: &Path) -> Result<(), SourceError> {
    let synced = File::open(dir).and_then(|d| d.sync_all());
    synced.map_err(|source| SourceError::Place { path: dir.to_owned(), source })
}

/// Owner and mode.
#[derive(Clone, Copy)]
struct Looks {
    uid: u32,
    gid: u32,
    mode: u32,
}

impl Looks {
    /// None where there is nothing of that sort.
    fn of(path: &Path, sort: fn(&Path) -> bool) -> Option<Self> {
        let meta = path.symlink_metadata().ok().filter(|m| !m.is_symlink() && sort(path))?;
        Some(Self { uid: meta.uid(), gid: meta.gid(), mode: meta.mode() & 0o7777 })
    }

    fn give(self, path: &Path) -> Result<(), SourceError> {
        chown(path, Some(self.uid), Some(self.gid))
            .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(self.mode)))
            .map_err(|source| SourceError::Place { path: path.to_owned(), source })
    }
}

/// Passes a stream on, and writes it to files.
struct Tee<'a> {
    body: &'a mut dyn Read,
    files: &'a mut [(PathBuf, File)],
    context: &'a Context<'a>,
    /// Why it ended, where it is not the stream's fault.
    failed: Option<SourceError>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let stopped = || io::Error::other("stopped");
        if let Err(e) = self.context.cancel.check() {
            self.failed = Some(e.into());
            return Err(stopped());
        }
        let n = self.body.read(buf)?;
        for (path, file) in self.files.iter_mut() {
            if let Err(source) = file.write_all(&buf[..n]) {
                self.failed = Some(SourceError::Place { path: path.clone(), source });
                return Err(stopped());
            }
        }
        self.context.monitor.moved(n as u64);
        Ok(n)
    }
}
