//! Databases brought back into a server. What could go wrong: the live data is gone, and then the dump does not load. So
//! each dump is loaded into a new database beside the live one, which is the transaction: what fails is dropped. Only what
//! loaded to its end and has the rows of the manifest takes the name of the old one.

mod fresh;
mod preflight;
mod roles;

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};

use self::fresh::make_directory;
use super::loading::{Loading, counts};
use super::{Postgres, settings_of};
use crate::archive::read::codec_of;
use crate::change::{self, Change};
use crate::docker::{Container, DockerError, Place};
use crate::format::sqldump::{DumpFacts, DumpKind, DumpScanner};
use crate::format::sqltext::{literal, name};
use crate::hint::chain;
use crate::manifest::Component;
use crate::postgres::{Access, Databases, Pair, Prepared, Roles, Server, Settings, beside};
use crate::run_journal::{RunJournal, Step};
use crate::source::{Context, SourceError};
use crate::target::{Compared, Existing, Target, Work};
use crate::units::show_bytes;

/// How long a server that makes a new cluster may take.
const INITIALISING: Duration = Duration::from_secs(300);
const PGDATA: &str = "/var/lib/postgresql/data";

/// A database of the backup.
struct Wanted {
    name: String,
    /// Dump and settings, as they lie in the archive. An archive of the bash script has no settings.
    dump: String,
    settings: Option<String>,
    rows: Option<BTreeMap<String, u64>>,
    large_objects: Option<u64>,
}

pub struct PostgresTarget<'a> {
    source: &'a Postgres,
    container: Container,
    wanted: Vec<Wanted>,
    globals: Option<String>,
    /// Where the data directory lies; set when a new one is wanted.
    fresh: OnceCell<Place>,
    dumps: RefCell<Vec<DumpFacts>>,
    /// What is loaded, and not live yet.
    loaded: RefCell<Option<Databases>>,
    /// A new cluster has everything.
    filled: OnceCell<()>,
}

impl<'a> PostgresTarget<'a> {
    pub fn new(source: &'a Postgres, container: Container, component: &Component) -> Self {
        let stored = |base: &str| component.members.iter().find(|m| codec_of(m).0 == base).cloned();
        let facts = component.facts.get("databases").and_then(Value::as_object);
        let mut wanted: Vec<Wanted> = Vec::new();
        for (name, facts) in facts.into_iter().flatten() {
            let member = |key: &str| facts.get(key).and_then(Value::as_str);
            let Some(base) = member("member") else { continue };
            wanted.push(Wanted {
                name: name.clone(),
                // Where it lacks, reading it says so.
                dump: stored(base).unwrap_or_else(|| base.to_owned()),
                settings: member("settings").map(|base| stored(base).unwrap_or_else(|| base.to_owned())),
                rows: facts.get("rows").cloned().and_then(|r| serde_json::from_value(r).ok()),
                large_objects: facts.get("large_objects").and_then(Value::as_u64),
            });
        }
        let globals = component.members.iter().find(|m| codec_of(m).0.ends_with("-globals.sql"));
        if facts.is_none() {
            let env = |key: &str| container.env.get(key).filter(|v| !v.is_empty()).cloned();
            let main = env("POSTGRES_DB").unwrap_or_else(|| source.user(&container));
            let dump = component.members.first().cloned();
            wanted.extend(dump.map(|dump| Wanted {
                name: main,
                dump,
                settings: None,
                rows: None,
                large_objects: None,
            }));
        }
        let globals = globals.filter(|_| facts.is_some()).cloned();
        Self {
            source,
            container,
            wanted,
            globals,
            fresh: OnceCell::new(),
            dumps: RefCell::default(),
            loaded: RefCell::default(),
            filled: OnceCell::new(),
        }
    }

    fn what(&self) -> String {
        format!("PostgreSQL in {}", self.container.name)
    }

    /// Where the container has its data.
    fn place(&self, context: &Context<'_>) -> Result<Place, SourceError> {
        let path = self.container.env.get("PGDATA").filter(|p| p.starts_with('/'));
        context.place(&self.container, path.map_or(PGDATA, String::as_str))
    }

    /// The data directory on this host, where it can be reached.
    fn data(&self, context: &Context<'_>) -> Option<PathBuf> {
        self.place(context).ok()?.host_path().filter(|p| p.is_dir())
    }

    /// Reads every dump to its end.
    fn scan(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Vec<DumpFacts>, SourceError> {
        let mut found = Vec::new();
        for wanted in &self.wanted {
            let facts = scan(context, work, &wanted.dump, DumpKind::Database)?;
            let what = || format!("the dump of {}", wanted.name);
            if work.compare && wanted.rows.as_ref().is_some_and(|rows| *rows != facts.rows) {
                return Err(SourceError::bad(what(), "its rows per table are not those of the manifest"));
            }
            if work.compare && wanted.large_objects.is_some_and(|n| n != facts.large_objects) {
                return Err(SourceError::bad(what(), "its large objects are not those of the manifest"));
            }
            if let Some(member) = &wanted.settings
                && Settings::read(&text(work, member)?).is_none()
            {
                return Err(SourceError::bad(member.clone(), "it is no settings file"));
            }
            found.push(facts);
        }
        if let Some(member) = &self.globals {
            scan(context, work, member, DumpKind::Cluster)?;
        }
        if found.is_empty() {
            return Err(SourceError::bad(work.name, "the backup has no database"));
        }
        Ok(found)
    }

    /// Makes roles, and every database beside the one that is live; nothing that is live changes.
    fn bring(
        &self,
        context: &Context<'_>,
        journal: Option<&RunJournal>,
        work: &Work<'_>,
        server: Server,
    ) -> Result<Vec<String>, SourceError> {
        let mut warnings = Vec::new();
        self.must_take(&server, &self.dumps.borrow())?;
        let tag = format!("tars-backup-{}", short(&[work.id, &self.container.id]));
        let server = server.tagged(&tag);
        let home = server.elsewhere(&[])?;
        let (roles, scripts) = self.roles(&server, work, &mut warnings)?;
        let access = Access::new(&self.container, &server.user, self.source.password.clone(), tag);
        let pairs: Vec<Pair> = self.wanted.iter().map(|w| pair(&w.name, &access.tag)).collect();
        if let Some(journal) = journal {
            let databases = pairs.iter().map(|p| p.new.clone()).collect();
            // What is overwritten is not made yet: its hashes are written down when they are needed.
            let made = Roles { overwrite: Vec::new(), back: Vec::new(), ..roles.clone() };
            let prepared = Prepared { access: access.clone(), databases, roles: made };
            let scratch = change::Scratch::Databases(Box::new(prepared));
            journal.record(&Step::Scratch { component: work.name.to_owned(), scratch })?;
        }
        let [as_granted, plain] = scripts;
        let whole = |script: &str| format!("BEGIN;\n{script}COMMIT;\n");
        match server.script(&home, &whole(&as_granted)) {
            // From 16 on, a grantor must have the right to grant.
            Err(DockerError::Exit { .. }) if as_granted != plain => {
                server.script(&home, &whole(&plain))?;
            }
            other => {
                other?;
            }
        }
        let mut loading = Loading::new(context, &server, &home, self.data(context))?;
        for ((wanted, pair), facts) in self.wanted.iter().zip(&pairs).zip(&*self.dumps.borrow()) {
            self.load(work, wanted, pair, facts, &mut loading, &mut warnings)?;
        }
        let oids = oids(&server, &home)?;
        let oid = |name: &str| oids.get(name).copied();
        let pairs = pairs
            .into_iter()
            .map(|p| match oid(&p.new) {
                Some(new_oid) => Ok(Pair { new_oid, old_oid: oid(&p.name), ..p }),
                None => Err(SourceError::bad(p.new, "the new database is gone")),
            })
            .collect::<Result<_, SourceError>>()?;
        *self.loaded.borrow_mut() = Some(Databases { access, pairs, roles });
        Ok(warnings)
    }

    fn load(
        &self,
        work: &Work<'_>,
        wanted: &Wanted,
        pair: &Pair,
        facts: &DumpFacts,
        loading: &mut Loading<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<(), SourceError> {
        let server = loading.server;
        let bad = |why: String| SourceError::bad(format!("database {}", wanted.name), why);
        let settings = match &wanted.settings {
            Some(member) => text(work, member)?,
            // The settings of the one that is live, and where there is none those of the template.
            None if oids(server, loading.home)?.contains_key(&wanted.name) => {
                settings_of(server, &wanted.name)?
            }
            None => {
                let create = format!("CREATE DATABASE {} TEMPLATE template0;", name(&wanted.name));
                format!("SELECT {};\n", literal(&create))
            }
        };
        let settings = Settings::read(&settings).ok_or_else(|| bad("its settings cannot be read".into()))?;
        let spaces = server.ask(loading.home, "SELECT spcname FROM pg_tablespace")?;
        let there = settings.tablespace.as_ref().is_none_or(|s| spaces.contains(s));
        if let Some(space) = settings.tablespace.as_ref().filter(|_| !there) {
            warnings.push(format!(
                "database {} lay in the tablespace {space}, which is not there; it lies in the default one",
                wanted.name
            ));
        }
        server.ask(loading.home, &settings.create_as(&pair.new, there))?;
        server.script(loading.home, &settings.rest_as(&pair.new))?;
        // A dump without owners makes everything as whoever loads it.
        let owner = settings.owner.as_deref().filter(|_| wanted.settings.is_none());
        work.open(&wanted.dump, |body| loading.load(&pair.new, body, facts.restricted, owner))?;
        if work.compare {
            let found = counts(server, &pair.new, facts.rows.keys())?;
            for (table, now) in found {
                let then = facts.rows.get(&table).copied().unwrap_or(0);
                if then != now {
                    return Err(bad(format!("{table} has {now} rows, and its dump {then}")));
                }
            }
            let objects = server.ask(&pair.new, "SELECT count(*) FROM pg_largeobject_metadata")?;
            if objects.first().and_then(|n| n.parse().ok()) != Some(facts.large_objects) {
                let now = objects.first().map_or("no", String::as_str);
                return Err(bad(format!("it has {now} large objects, and its dump {}", facts.large_objects)));
            }
        }
        // Without it the first queries are slow; it is no data.
        match server.script(&pair.new, "ANALYZE;") {
            Err(e @ DockerError::Exit { .. }) => {
                warnings.push(format!("database {}: ANALYZE: {}", wanted.name, chain(&e)));
            }
            other => {
                other?;
            }
        }
        Ok(())
    }
}

impl Target for PostgresTarget<'_> {
    fn describe(&self) -> String {
        let names: Vec<&str> = self.wanted.iter().map(|w| w.name.as_str()).collect();
        let fresh = if self.fresh.get().is_some() { ", in a new data directory" } else { "" };
        format!("{}: {}{fresh}", self.what(), names.join(", "))
    }

    /// The source may name fewer databases than the backup has.
    fn is_saved_by(&self, context: &Context<'_>, copy: &Component) -> bool {
        let saved = copy.facts.get("databases").and_then(Value::as_object);
        let is_saved = |name: &String| saved.is_some_and(|s| s.contains_key(name));
        let is_fresh = self.fresh.get().is_some();
        if !is_fresh && self.wanted.iter().all(|w| is_saved(&w.name)) {
            return true;
        }
        let present = self.reach(context).and_then(|(_in_use, server)| Ok(server.databases()?));
        // A new data directory replaces all that is there.
        let replaced = |name: &&String| is_fresh || self.wanted.iter().any(|w| w.name == **name);
        present.is_ok_and(|there| there.iter().filter(replaced).all(is_saved))
    }

    fn place(&self) -> Option<&Place> {
        self.fresh.get()
    }

    fn server(&self) -> Option<&Container> {
        Some(&self.container)
    }

    fn existing(&self, context: &Context<'_>) -> Result<Existing, SourceError> {
        let container = context.docker()?.find(&self.source.selector)?;
        if container.state != "running" {
            let data = self.data(context).and_then(|d| std::fs::read_dir(d).ok());
            return Ok(match data.map(|mut entries| entries.next().is_none()) {
                Some(true) => Existing::Nothing,
                _ => Existing::Something(format!("a server that does not run ({})", container.state)),
            });
        }
        let (_in_use, server) = self.reach(context)?;
        let present = self.answering(server.databases())?;
        let ours: Vec<&String> =
            self.wanted.iter().map(|w| &w.name).filter(|n| present.contains(n)).collect();
        let (mut bytes, mut data) = (0, false);
        for database in &ours {
            let query = "SELECT pg_database_size(current_database()), EXISTS (SELECT FROM pg_class WHERE oid >= 16384 \
                         AND relnamespace <> 'pg_toast'::regnamespace) OR EXISTS (SELECT FROM pg_proc WHERE oid >= 16384) \
                         OR EXISTS (SELECT FROM pg_largeobject_metadata)";
            let answer = server.ask(database, query)?;
            let (size, any) = answer.first().and_then(|a| a.split_once('|')).unwrap_or(("0", "t"));
            bytes += size.parse::<u64>().unwrap_or(0);
            data |= any == "t";
        }
        if !data {
            return Ok(Existing::Nothing);
        }
        let version = server.ask(ours[0], "SHOW server_version")?;
        let version = version.first().and_then(|v| v.split(' ').next()).unwrap_or_default().to_owned();
        let word = if ours.len() == 1 { "database" } else { "databases" };
        let text = format!("PostgreSQL {version}, {} {word}, {}", ours.len(), show_bytes(bytes));
        Ok(Existing::Something(text))
    }

    fn survey(&self, context: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        let dumps = self.scan(context, work)?;
        let bytes = dumps.iter().map(|d| d.bytes).sum();
        if work.wishes.fresh {
            let place = self.replaceable(context, work)?;
            self.fresh.get_or_init(|| place);
        } else if self.container.state == "running" {
            let (_in_use, server) = self.reach(context)?;
            self.must_take(&server, &dumps)?;
        } else if self.container.state != "created" {
            return Err(self.not_running(&self.container.state));
        }
        *self.dumps.borrow_mut() = dumps;
        let disk = self.data(context);
        let needed = if disk.is_some() { bytes } else { 0 };
        Ok((disk.unwrap_or_else(|| PathBuf::from("/")), needed))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        if let Some(place) = self.fresh.get() {
            make_directory(place, journal, work)?;
            return Ok(Vec::new());
        }
        let mut warnings = Vec::new();
        let docker = context.docker()?;
        let container = docker.find(&self.source.selector)?;
        if container.state == "created" {
            docker.start(&container)?;
            let mut server = self.source.server_in(context, container)?;
            server.await_ready(INITIALISING)?;
            warnings.push(format!("{} had never been started; it runs now", self.container.name));
        }
        let (_in_use, server) = self.reach(context)?;
        warnings.extend(self.bring(context, Some(journal), work, server)?);
        Ok(warnings)
    }

    fn change(&self, _: &Context<'_>, _: &RunJournal, work: &Work<'_>) -> Result<Change, SourceError> {
        if let Some(live) = self.fresh.get().and_then(Place::host_path) {
            return Ok(change::plan_directory(&live, &change::beside(&live, work.id), Vec::new())?);
        }
        let loaded = self.loaded.borrow();
        let loaded = loaded.as_ref().ok_or_else(|| SourceError::bad(work.name, "nothing was loaded"))?;
        Ok(Change::Databases(Box::new(loaded.clone())))
    }

    fn compare(&self, context: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        let (_in_use, server) = self.reach(context)?;
        let mut compared = Vec::new();
        for wanted in &self.wanted {
            // An archive of the bash script has none of any database.
            let unknown = wanted.rows.is_none() || wanted.large_objects.is_none();
            if unknown && component.facts.contains_key("databases") {
                let why = "the manifest does not say how many rows and large objects it has";
                return Err(SourceError::bad(format!("database {}", wanted.name), why));
            }
            let rows = wanted.rows.clone().unwrap_or_default();
            for (table, now) in counts(&server, &wanted.name, rows.keys())? {
                let then = rows.get(&table).copied().unwrap_or(0);
                compared.push(Compared::exactly(format!("rows of {}/{table}", wanted.name), then, now));
            }
            if let Some(then) = wanted.large_objects {
                let counted = server.ask(&wanted.name, "SELECT count(*) FROM pg_largeobject_metadata")?;
                let now = counted.first().and_then(|n| n.parse().ok()).unwrap_or(u64::MAX);
                compared.push(Compared::exactly(format!("large objects of {}", wanted.name), then, now));
            }
        }
        Ok(compared)
    }

    fn check(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        _: &[Container],
    ) -> Result<Vec<String>, SourceError> {
        if self.fresh.get().is_some() {
            if self.filled.get().is_some() {
                return Ok(Vec::new());
            }
            let warnings = self.fill(context, work)?;
            self.filled.get_or_init(|| ());
            return Ok(warnings);
        }
        let loaded = self.loaded.borrow();
        let live = loaded.as_ref().map(|l| l.went_live(context.docker().ok())).transpose()?;
        match live {
            Some(true) => Ok(Vec::new()),
            _ => Err(SourceError::bad(self.what(), "the new databases are not those that clients get")),
        }
    }
}

/// Reads a dump to its end.
fn scan(
    context: &Context<'_>,
    work: &Work<'_>,
    member: &str,
    kind: DumpKind,
) -> Result<DumpFacts, SourceError> {
    work.open(member, |body| {
        let mut scanner = DumpScanner::new(kind);
        let mut buffer = vec![0; 256 << 10];
        loop {
            context.cancel.check()?;
            match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => scanner.feed(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(SourceError::Read { what: format!("{member} of the archive"), source });
                }
            }
        }
        scanner.finish().map_err(|e| {
            SourceError::hinted(member, e.to_string(), "choose another backup: tars-backup list")
        })
    })
}

/// A member that is small.
fn text(work: &Work<'_>, member: &str) -> Result<String, SourceError> {
    work.open(member, |body| {
        let mut text = String::new();
        body.take(64 << 20)
            .read_to_string(&mut text)
            .map_err(|source| SourceError::Read { what: format!("{member} of the archive"), source })?;
        Ok(text)
    })
}

fn oids(server: &Server, database: &str) -> Result<BTreeMap<String, u32>, DockerError> {
    let rows = server.ask(database, "SELECT oid || ' ' || datname FROM pg_database")?;
    let split = |row: &String| row.split_once(' ').and_then(|(o, n)| Some((n.to_owned(), o.parse().ok()?)));
    Ok(rows.iter().filter_map(split).collect())
}

/// What a database is called while it is new, and when it is old.
fn pair(database: &str, tag: &str) -> Pair {
    let id = short(&[database, tag]);
    Pair {
        name: database.to_owned(),
        new: beside(database, &format!("__tars_new_{id}")),
        old: beside(database, &format!("__tars_old_{id}")),
        new_oid: 0,
        old_oid: None,
    }
}

/// Eight signs that nobody else has.
pub fn short(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    hasher.update(jiff::Timestamp::now().as_nanosecond().to_le_bytes());
    hasher.update(std::process::id().to_le_bytes());
    hex::encode(hasher.finalize())[..8].to_owned()
}
