//! ChromaDB: a copy of its directory, and where the tier asks for it an export through its API. What could go wrong: the
//! wrong directory, because the place of the data changed between versions; so the database file is looked for where the
//! server would keep it, and afterwards the server is asked for what must be in the copy. And a copy of no moment: the
//! vectors lie beside the database, and both must be of one time, so the server is paused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Source, SourceError, check_tree, container_facts,
    layer_warning, selector, tree_facts,
};
use crate::archive::compress::Staged;
use crate::archive::read::walk_tar_watched;
use crate::archive::tree::Watch;
use crate::chroma::copy::{self, CopyFacts, DATABASE};
use crate::chroma::{
    ChromaError, Client, Collection, DEFAULT_TENANT, Endpoint, Exported, Pages, Token, location,
};
use crate::config::Section;
use crate::docker::{Container, Docker, DockerError, Limits, Place, Seat, Selector};
use crate::format::tarwalk::Mtime;
use crate::held_copy::{self, Consistency, Copied, CopySettings, HeldCopy};
use crate::hint::chain;
use crate::id::Name;
use crate::manifest::Component;
use crate::secret::SecretRef;
use crate::staging::Stage;

pub const KIND: Kind = Kind { critical: true, on_by_default: true, read, check, restore };

const DEFAULT_PORT: u16 = 8000;
/// Written after the vectors that it lists.
const VECTOR_LIST: &str = "/index_metadata.pickle";
/// How each such list ends.
const PICKLE_END: u8 = b'.';
/// Copies until one is not of a moment at which the server wrote vectors, and the rest between two of them.
const ATTEMPTS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(700);
/// Seconds after which nobody can be in the middle of writing a directory of vectors.
const SETTLED_S: i64 = 300;
/// Time for the questions that only compare.
const QUESTIONS: Duration = Duration::from_secs(60);
/// Time that a server that we stopped gets to answer again, and how often it is asked.
const COMING_UP: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(300);

struct Chroma {
    name: Name,
    selector: Selector,
    volume: Option<String>,
    path: Option<String>,
    url: Option<String>,
    token: Option<SecretRef>,
    export: Vec<String>,
    copy: CopySettings,
    limits: Limits,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    let path = s.text("path", "Directory of the data in the container; default: where the server keeps it");
    if path.as_ref().is_some_and(|p| !p.starts_with('/')) {
        s.problem("path", "must be absolute", None);
    }
    Box::new(Chroma {
        name: name.clone(),
        selector: selector(name, s),
        volume: s.text("volume", "Volume of the data, for when there is no container"),
        path,
        url: s.text(
            "url",
            "Address of the server; default: the published port of the container, or its own address",
        ),
        token: s.secret("token", "Token that the server asks for"),
        export: s.texts("export", "Tiers whose backups also hold an export through the API"),
        copy: CopySettings::read(s, Consistency::Pause, limits.idle),
        limits,
    })
}

/// The data of a server that was found.
struct Found {
    container: Option<Container>,
    path: Option<String>,
    place: Place,
    warnings: Vec<String>,
}

impl Chroma {
    fn find(&self, context: &Context<'_>) -> Result<Found, SourceError> {
        let docker = context.docker()?;
        let container = match (docker.find(&self.selector), &self.volume) {
            (Err(e @ DockerError::NoContainer { .. }), Some(volume)) => {
                let place = docker.find_volume(volume)?;
                let warnings = vec![format!("{e}; took the volume {volume} without it")];
                return Ok(Found { container: None, path: None, place, warnings });
            }
            (found, _) => found?,
        };
        // The engine is asked for files of the container, which it does not answer while somebody pauses it.
        let _in_use = context.holds.in_use(&container.id, context.cancel)?;
        let mut warnings = Vec::new();
        let path = self.data_path(docker, &container, &mut warnings)?;
        let place = context.place(&container, &path)?;
        if matches!(place.seat, Seat::Layer { .. }) {
            warnings.push(layer_warning(&container, &path));
        }
        Ok(Found { container: Some(container), path: Some(path), place, warnings })
    }

    /// The directory that really has the database: where the configuration says, else where the server was told to keep
    /// it, else the usual place that was written last.
    fn data_path(
        &self,
        docker: &Docker,
        container: &Container,
        warnings: &mut Vec<String>,
    ) -> Result<String, SourceError> {
        let env: Vec<(String, String)> = container.env.clone().into_iter().collect();
        let mut shown = location::Shown {
            argv: &container.args,
            env: &env,
            working_dir: &container.working_dir,
            image: &container.image,
            version: None,
            config: None,
        };
        let config = location::config_file(&shown).map(|file| self.text_of(docker, container, &file));
        let config = config.transpose()?.flatten();
        shown.config = config.as_deref();
        let location = location::of(&shown);
        let written = |path: &str| -> Result<Option<String>, SourceError> {
            let file = format!("{}/{DATABASE}", path.trim_end_matches('/'));
            Ok(docker.file_stat(&container.id, &file)?.filter(|(size, _)| *size > 0).map(|(_, time)| time))
        };
        let mut places: Vec<(String, String)> = Vec::new();
        let told = location.explicit.as_ref().map(|e| e.path.clone());
        for path in told.iter().chain(&location.candidates) {
            if let Some(time) = written(path)? {
                places.push((time, path.clone()));
            }
        }
        let elsewhere = places.iter().map(|(_, p)| p.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(path) = &self.path {
            return match written(path)? {
                Some(_) => Ok(path.clone()),
                None => Err(SourceError::hinted(
                    format!("{path} of {}", container.name),
                    format!("there is no {DATABASE}"),
                    match elsewhere.is_empty() {
                        true => "leave path out, or look where the server keeps its data".to_owned(),
                        false => format!("there is one in {elsewhere}: set path to it, or leave path out"),
                    },
                )),
            };
        }
        if let Some(told) = told {
            if places.iter().any(|(_, p)| *p == told) {
                return Ok(told);
            }
            warnings
                .push(format!("{} is told to keep its data in {told}, where there is none", container.name));
        }
        // The latest one: the engine writes times so that they sort.
        let Some((_, path)) = places.iter().max() else {
            let looked: Vec<&str> = location
                .explicit
                .iter()
                .map(|e| e.path.as_str())
                .chain(location.candidates.iter().map(String::as_str))
                .collect();
            return Err(SourceError::hinted(
                container.name.clone(),
                format!("there is no {DATABASE} in {}", looked.join(", ")),
                "set path of the source to the directory in the container that has it",
            ));
        };
        if places.len() > 1 {
            warnings
                .push(format!("there is a {DATABASE} in {elsewhere}; took {path}, which was written last"));
        }
        Ok(path.clone())
    }

    /// A small text file of the container; None when it is not there.
    fn text_of(
        &self,
        docker: &Docker,
        container: &Container,
        path: &str,
    ) -> Result<Option<String>, SourceError> {
        const LARGEST: u64 = 1 << 20;
        if docker.file_stat(&container.id, path)?.is_none_or(|(size, _)| size > LARGEST) {
            return Ok(None);
        }
        let mut text = Vec::new();
        let sent = docker.download(&container.id, path, self.limits.idle);
        crate::archive::read::only_file(sent, |body| body.read_to_end(&mut text).map(|_| ()))
            .map_err(|source| SourceError::Read { what: format!("{path} of {}", container.name), source })?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// Where the server listens.
    fn address(&self, container: &Container) -> Result<String, SourceError> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let after = |flag: &str| {
            let mut words = container.args.iter().flat_map(|a| a.split_ascii_whitespace());
            words.find_map(|w| w.strip_prefix(flag).map(str::to_owned)).map(|rest| {
                match rest.strip_prefix('=') {
                    Some(value) => value.to_owned(),
                    None => words.next().unwrap_or_default().to_owned(),
                }
            })
        };
        let env = |key: &str| container.env.get(key).cloned();
        let port = after("--port")
            .or_else(|| env("CHROMA_PORT"))
            .or_else(|| env("CHROMA_SERVER_HTTP_PORT"))
            .and_then(|p| p.parse().ok())
            .unwrap_or(DEFAULT_PORT);
        let published =
            container.published.iter().find(|(inside, _)| *inside == port).map(|(_, at)| at.clone());
        let own = || container.addresses.first().map(|a| format!("{a}:{port}"));
        published.or_else(own).map(|at| format!("http://{at}")).ok_or_else(|| {
            SourceError::hinted(
                container.name.clone(),
                "it has no address that can be asked",
                "publish its port on 127.0.0.1 in the Compose file, or set url of the source",
            )
        })
    }

    fn client(
        &self,
        context: &Context<'_>,
        container: &Container,
        total: Duration,
        patience: Duration,
    ) -> Result<Client, SourceError> {
        container.must_run()?;
        let until = Instant::now() + patience;
        let token = self.token.as_ref().map(|t| context.vault.read(t)).transpose()?.map(Token::new);
        let url = self.address(container)?;
        loop {
            let endpoint = Endpoint {
                url: url.clone(),
                token: token.clone(),
                total,
                idle: self.limits.idle.min(total),
                pages: Pages::default(),
            };
            match Client::connect(endpoint, context.runtime.clone(), context.cancel.clone()) {
                Ok(client) => return Ok(client),
                Err(ChromaError::Interrupted(i)) => return Err(i.into()),
                Err(e) if Instant::now() > until => return Err(e.into()),
                Err(_) => std::thread::sleep(ASK_AGAIN),
            }
        }
    }

    /// What the server says it has; an error when it cannot be asked.
    fn census(
        &self,
        context: &Context<'_>,
        container: &Container,
        known: &CopyFacts,
        patience: Duration,
    ) -> Result<Census, SourceError> {
        let _in_use = context.holds.in_use(&container.id, context.cancel)?;
        let now = context.docker()?.look(&container.id)?.unwrap_or_default();
        let client = self.client(context, &now, QUESTIONS, patience)?;
        let mut counts = BTreeMap::new();
        for collection in collections(&client, known)? {
            match client.count(&collection) {
                Ok(count) => {
                    counts.insert(collection.id.clone(), (collection.title(), count));
                }
                // Deleted between the two questions.
                Err(ChromaError::Gone { .. } | ChromaError::Refused { status: 404, .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Census { version: client.version().to_owned(), counts })
    }

    fn export(
        &self,
        context: &Context<'_>,
        stage: &Stage<'_>,
        container: &Container,
        known: &CopyFacts,
        patience: Duration,
    ) -> Result<Export, SourceError> {
        let _in_use = context.holds.in_use(&container.id, context.cancel)?;
        let now = context.docker()?.look(&container.id)?.unwrap_or_default();
        let client = self.client(context, &now, self.limits.total, patience)?;
        let mut export = Export::default();
        let (scratch, file) = stage.scratch("export-ids")?;
        drop(file);
        let scratch = scratch.parent().map(Path::to_owned).unwrap_or_default();
        for collection in collections(&client, known)? {
            // The prefix of the archive is the source's own, so that two servers fit into one backup.
            let member = collection.member();
            let inside = member.split_once('/').map_or(member.as_str(), |(_, rest)| rest);
            let member = format!("{}-export/{inside}", self.name);
            let mut out = stage.compressed(&member)?;
            let outcome = client.export(&collection, &scratch, &mut out, &mut |n| context.monitor.moved(n));
            let exported = match outcome {
                Ok(exported) => exported,
                Err(ChromaError::Gone { collection }) => {
                    export.warnings.push(format!("{collection} was deleted while it was exported"));
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let staged = out.finish().map_err(SourceError::write(&member))?;
            if exported.gone > 0 {
                export.warnings.push(format!(
                    "{} records of {} were deleted while it was exported",
                    exported.gone,
                    collection.title()
                ));
            }
            export.facts.insert(member, fact_of(&collection, &exported));
            export.bytes += exported.bytes;
            export.staged.push(staged);
        }
        Ok(export)
    }
}

#[derive(Default)]
struct Export {
    staged: Vec<Staged>,
    facts: Map<String, Value>,
    warnings: Vec<String>,
    bytes: u64,
}

fn fact_of(collection: &Collection, exported: &Exported) -> Value {
    json!({
        "tenant": collection.tenant,
        "database": collection.database,
        "name": collection.name,
        "records": exported.records,
        "gone": exported.gone,
    })
}

/// All collections of the tenants and databases that a copy knows, and of the default ones.
fn collections(client: &Client, known: &CopyFacts) -> Result<Vec<Collection>, ChromaError> {
    let mut tenants: BTreeSet<&str> = known.tenants.iter().map(String::as_str).collect();
    tenants.insert(DEFAULT_TENANT);
    let mut all = Vec::new();
    for tenant in tenants {
        let names = known.databases.iter().filter(|d| d.tenant == tenant).map(|d| d.name.clone());
        for database in client.databases(tenant, &names.collect::<Vec<_>>())? {
            all.extend(client.collections(tenant, &database)?);
        }
    }
    Ok(all)
}

/// What a server counts: collection id -> title and records.
struct Census {
    version: String,
    counts: BTreeMap<String, (String, u64)>,
}

/// What the server had before and after and the copy lacks. New and deleted records are nobody's fault, but most of them
/// being absent means that the server keeps its data elsewhere.
fn lacks(before: &Census, after: &Census, copy: &CopyFacts) -> Option<String> {
    let copied: BTreeMap<&str, u64> = copy.collections.iter().map(|c| (c.id.as_str(), c.records)).collect();
    let mut missing = Vec::new();
    for (id, (title, count)) in &before.counts {
        let Some((_, later)) = after.counts.get(id) else { continue };
        let least = *count.min(later);
        match copied.get(id.as_str()) {
            None => missing.push(format!("{title} is not in it")),
            Some(records) if *records < least.div_ceil(2) => {
                missing.push(format!("{title} has {records} of {least} records"));
            }
            Some(_) => {}
        }
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

impl Source for Chroma {
    fn needs_docker(&self) -> bool {
        true
    }

    fn tiers(&self) -> &[String] {
        &self.export
    }

    fn method(&self) -> String {
        let container = self.selector.container.as_ref().unwrap_or(&self.selector.service);
        let export = match self.export.as_slice() {
            [] => String::new(),
            tiers => format!(", export in {}", tiers.join(", ")),
        };
        format!("copy of the data of the container {container} ({}){export}", self.copy.consistency.word())
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let found = self.find(context)?;
        held_copy::estimate(&found.place, &self.copy, context)
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let Found { container, path, place, mut warnings } = self.find(context)?;
        let running = container.as_ref().filter(|c| c.is_active());
        let before = running.map(|c| self.census(context, c, &CopyFacts::default(), Duration::ZERO));

        let member = format!("{}.tar", self.name);
        let copy =
            HeldCopy { place: &place, container: container.as_ref(), settings: &self.copy, member: &member };
        let (copied, copy_facts, odd) = whole_copy(&copy, context, stage)?;
        warnings.extend(copied.warnings);
        warnings.extend(copy_facts.warnings.iter().cloned());
        let patience = match self.copy.consistency {
            Consistency::Stop if !copied.paused.is_zero() => COMING_UP,
            _ => Duration::ZERO,
        };
        let mut wrong: Vec<String> = copied.report.incomplete().into_iter().collect();

        let mut facts = tree_facts(&copied.report);
        if let Some(container) = &container {
            container_facts(&mut facts, container);
        }
        held_copy::facts(&place, path.as_deref(), &mut facts);
        facts.insert("collections".into(), json!(copy_facts.collections));
        facts.insert("databases".into(), json!(copy_facts.databases));
        if let Some(directory) = odd {
            warnings.push(format!(
                "the vectors in {directory} are newer than {VECTOR_LIST} beside them, and not from just now: if they were not \
                 copied there by hand, ask the server whether it can still read them"
            ));
            facts.insert("newer_than_its_list".into(), json!(directory));
        }

        match before {
            Some(Ok(before)) => {
                facts.insert("server_version".into(), json!(before.version));
                let after = running.map(|c| self.census(context, c, &copy_facts, patience));
                match after {
                    Some(Ok(after)) => wrong.extend(lacks(&before, &after, &copy_facts).map(|what| {
                        format!(
                            "the server has what the copy of {} lacks ({what}): set path to where it keeps its data",
                            place.describe()
                        )
                    })),
                    Some(Err(SourceError::Interrupted(i))) => return Err(i.into()),
                    Some(Err(e)) => warnings.push(not_compared(&e)),
                    None => {}
                }
            }
            Some(Err(SourceError::Interrupted(i))) => return Err(i.into()),
            Some(Err(e)) => warnings.push(not_compared(&e)),
            None => {}
        }

        let mut staged = vec![copied.staged];
        let mut bytes_in = copied.report.bytes;
        if self.export.iter().any(|tier| tier == context.tier) {
            let outcome = match &container {
                Some(c) => self.export(context, stage, c, &copy_facts, patience),
                None => Err(SourceError::bad("the export", "there is no container to ask")),
            };
            match outcome {
                Ok(export) => {
                    facts.insert("export".into(), Value::Object(export.facts));
                    warnings.extend(export.warnings);
                    bytes_in += export.bytes;
                    staged.extend(export.staged);
                }
                Err(SourceError::Interrupted(i)) => return Err(i.into()),
                Err(e) => wrong.push(format!("the copy is good, but the export failed: {}", chain(&e))),
            }
        }
        Ok(Capture {
            staged,
            bytes_in,
            files: copied.report.files,
            consistency: self.copy.consistency.word(),
            warnings,
            incomplete: (!wrong.is_empty()).then(|| wrong.join("; ")),
            facts,
            volumes: place.volume().map(str::to_owned).into_iter().collect(),
            paused: copied.paused,
        })
    }
}

/// A copy whose vectors fit together. Held in the middle of writing them, the server has them in a state that no server
/// opens: it is let go, and held again a moment later. The last part names a directory where it has been so for long,
/// which nobody is writing: it was copied without its times, or it is damaged.
fn whole_copy(
    copy: &HeldCopy<'_>,
    context: &Context<'_>,
    stage: &Stage<'_>,
) -> Result<(Copied, CopyFacts, Option<String>), SourceError> {
    let mut attempt = 1;
    loop {
        let mut beside = Beside::new(|name| Ok(stage.scratch(name)?));
        let copied = copy.take(context, stage, &mut beside)?;
        let torn = beside.torn();
        let facts = beside.facts().map_err(|problem| problem.for_copy_of(copy.place))?;
        let Some((directory, written)) = torn else { return Ok((copied, facts, None)) };
        if jiff::Timestamp::now().as_second() - written.secs > SETTLED_S {
            return Ok((copied, facts, Some(directory)));
        }
        if attempt == ATTEMPTS {
            return Err(SourceError::hinted(
                copy.place.describe(),
                format!("the server was writing the vectors in {directory} each time it was held"),
                "run it when less is written, and ask for an export: export = [\"TIER\"]",
            ));
        }
        context.monitor.waiting("waiting for a moment at which no vectors are written");
        std::fs::remove_file(&copied.staged.path).map_err(SourceError::write(copy.member))?;
        std::thread::sleep(BETWEEN);
        context.cancel.check()?;
        attempt += 1;
    }
}

fn not_compared(e: &SourceError) -> String {
    format!("not compared with what the server says: {}", chain(e))
}

/// Puts the database of a copy aside while it passes, and notes which files there are.
struct Beside<F> {
    make: F,
    now: Option<File>,
    database: Option<PathBuf>,
    kept: Vec<PathBuf>,
    files: BTreeMap<String, Mtime>,
    /// The file that is passing now, and its last byte so far.
    passing: (String, Option<u8>),
    /// Lists of vectors that do not end as such a list does.
    cut: Vec<String>,
    failed: Option<SourceError>,
}

/// Why no facts can be had from a copy.
enum Problem {
    Put(SourceError),
    Copy(copy::CopyError),
    NoDatabase,
    NoVectors(String),
}

impl Problem {
    fn for_copy_of(self, place: &Place) -> SourceError {
        let what = place.describe();
        match self {
            Self::Put(e) => e,
            Self::Copy(e) => {
                let hint = crate::hint::Hint::hint(&e);
                SourceError::Bad { what, why: chain(&e), hint }
            }
            Self::NoDatabase => SourceError::hinted(
                what,
                format!("there is no {DATABASE} in it"),
                "is it the directory where the server keeps its data? set path of the source",
            ),
            Self::NoVectors(file) => SourceError::bad(
                what,
                format!("its database needs the vectors in {file}, which are not there"),
            ),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Put(e) => chain(&e),
            Self::Copy(e) => chain(&e),
            Self::NoDatabase => format!("there is no {DATABASE} in it"),
            Self::NoVectors(file) => format!("the vectors in {file} are missing"),
        }
    }
}

impl<F: FnMut(&str) -> Result<(PathBuf, File), SourceError>> Beside<F> {
    fn new(make: F) -> Self {
        Self {
            make,
            now: None,
            database: None,
            kept: Vec::new(),
            files: BTreeMap::new(),
            passing: (String::new(), None),
            cut: Vec::new(),
            failed: None,
        }
    }

    fn keep(&mut self, name: &str, size: u64) -> Result<(), SourceError> {
        let (path, file) = (self.make)(name)?;
        file.set_len(size).map_err(SourceError::write(name))?;
        if name == DATABASE {
            self.database = Some(path.clone());
        }
        self.kept.push(path);
        self.now = Some(file);
        Ok(())
    }

    /// Facts of the copy that has passed.
    fn facts(mut self) -> Result<CopyFacts, Problem> {
        if let Some(e) = self.failed.take() {
            return Err(Problem::Put(e));
        }
        let database = self.database.take().ok_or(Problem::NoDatabase)?;
        let facts = copy::facts(&database).map_err(Problem::Copy);
        for path in &self.kept {
            // They go with the staging directory, at the latest.
            let _ = std::fs::remove_file(path);
        }
        let facts = facts?;
        if let Some(missing) = facts.vector_files().find(|f| !self.files.contains_key(f)) {
            return Err(Problem::NoVectors(missing));
        }
        Ok(facts)
    }

    /// A directory of vectors that the server was writing when it was held, and when it last did. It writes the vectors
    /// first and then the list of what they are; with vectors newer than the list, the two do not fit together, and no
    /// server opens the copy.
    fn torn(&self) -> Option<(String, Mtime)> {
        for (path, listed) in self.files.iter().filter(|(p, _)| p.ends_with(VECTOR_LIST)) {
            let directory = path.strip_suffix(VECTOR_LIST)?;
            let inside =
                self.files.range(directory.to_owned()..).take_while(|(p, _)| p.starts_with(directory));
            let written = inside.filter(|(p, _)| p.ends_with(".bin")).map(|(_, at)| *at).max()?;
            if written > *listed || self.cut.contains(path) {
                return Some((directory.to_owned(), written.max(*listed)));
            }
        }
        None
    }
}

impl<F: FnMut(&str) -> Result<(PathBuf, File), SourceError>> Watch for Beside<F> {
    fn file(&mut self, path: &[u8], size: u64, mtime: Mtime) {
        let Ok(path) = std::str::from_utf8(path) else { return };
        self.files.insert(path.to_owned(), mtime);
        self.passing = (path.to_owned(), None);
        let wanted = path.strip_prefix(DATABASE).is_some_and(|rest| matches!(rest, "" | "-journal" | "-wal"));
        if wanted && let Err(e) = self.keep(path, size) {
            self.failed.get_or_insert(e);
        }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.passing.1 = bytes.last().copied().or(self.passing.1);
        if let Some(file) = &self.now
            && let Err(e) = file.write_all_at(bytes, offset)
        {
            self.failed.get_or_insert(SourceError::write(DATABASE)(e));
        }
    }

    fn end(&mut self, _: bool) {
        self.now = None;
        let (path, last) = std::mem::take(&mut self.passing);
        if path.ends_with(VECTOR_LIST) && last != Some(PICKLE_END) {
            self.cut.push(path);
        }
    }
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    if member.name.ends_with(".jsonl") {
        return check_export(member);
    }
    // Made by the bash script, which copied a running server: only whole as a tar.
    if member.component.facts.is_empty() {
        return check_tree(member);
    }
    let scratch = member.scratch;
    let mut beside = Beside::new(|name| {
        let path = scratch.join(name);
        let file = File::create(&path).map_err(SourceError::write(name))?;
        Ok((path, file))
    });
    let entries = walk_tar_watched(&mut member.body, &mut beside).map_err(|e| CheckError::Bad(chain(&e)))?;
    let facts = &member.component.facts;
    if facts.get("entries").and_then(Value::as_u64) != Some(entries) {
        return Err(CheckError::Bad(format!("it has {entries} entries, the manifest says otherwise")));
    }
    let torn = beside.torn().map(|(directory, _)| directory);
    let found = beside.facts().map_err(|p| CheckError::Bad(p.text()))?;
    if let Some(directory) = torn
        && facts.get("newer_than_its_list").and_then(Value::as_str) != Some(directory.as_str())
    {
        return Err(CheckError::Bad(format!(
            "the vectors in {directory} are newer than the list of them: the server was writing them"
        )));
    }
    if facts.get("collections") != Some(&json!(found.collections)) {
        return Err(CheckError::Bad("its collections are not those of the manifest".into()));
    }
    Ok(())
}

/// One line for the collection, and one for each record.
/// Counts the lines that pass.
struct Lines<'a> {
    body: &'a mut dyn Read,
    count: u64,
    last: u8,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.body.read(buffer)?;
        self.count += memchr::memchr_iter(b'\n', &buffer[..n]).count() as u64;
        self.last = buffer[..n].last().copied().unwrap_or(self.last);
        Ok(n)
    }
}

fn check_export(member: &mut Member<'_>) -> Result<(), CheckError> {
    let mut passing = Lines { body: &mut *member.body, count: 0, last: b'\n' };
    let mut values = 0;
    // Values are passed over as they are read: a record may be of any length.
    let buffered = BufReader::with_capacity(1 << 20, &mut passing);
    for value in serde_json::Deserializer::from_reader(buffered).into_iter::<IgnoredAny>() {
        value.map_err(|e| match e.is_io() {
            true => CheckError::Read(e.into()),
            false => CheckError::Bad(format!("it is not made of JSON lines: {e}")),
        })?;
        values += 1;
    }
    let (lines, last) = (passing.count, passing.last);
    let export = member.component.facts.get("export").and_then(Value::as_object);
    let fact = export.and_then(|e| e.iter().find(|(name, _)| name.as_str() == member.name)).map(|(_, v)| v);
    let records = fact.and_then(|f| f.get("records")).and_then(Value::as_u64);
    if last != b'\n' || values != lines || records.map(|r| r + 1) != Some(lines) {
        return Err(CheckError::Bad(format!("it has {lines} lines, the manifest says otherwise")));
    }
    Ok(())
}

fn restore(name: &str, component: &Component) -> String {
    let mut text = held_copy::guide(name, component);
    if component.members.iter().any(|m| m.ends_with(".jsonl") || m.contains(".jsonl.")) {
        text.push_str(&format!(
            "\n`{name}-export/` has the same records as JSON lines, for a server of another version: the first line of a \
             file describes its collection, each further line is one record (`id`, `embedding`, `document`, `metadata`, \
             `uri`), ready for the `add` call of its API.\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chroma::copy::CollectionFacts;

    fn census(counts: &[(&str, u64)]) -> Census {
        let counts = counts.iter().map(|(id, n)| ((*id).to_owned(), (format!("t/d/{id}"), *n))).collect();
        Census { version: String::new(), counts }
    }

    fn copied(counts: &[(&str, u64)]) -> CopyFacts {
        let one = |(id, records): &(&str, u64)| CollectionFacts {
            tenant: "t".into(),
            database: "d".into(),
            name: (*id).into(),
            id: (*id).into(),
            dimension: None,
            records: *records,
        };
        CopyFacts { collections: counts.iter().map(one).collect(), ..CopyFacts::default() }
    }

    #[test]
    fn a_copy_that_lacks_what_the_server_has_is_found() {
        let before = census(&[("a", 100), ("b", 10), ("gone", 5), ("empty", 0)]);
        let after = census(&[("a", 120), ("b", 2), ("new", 7), ("empty", 0)]);
        let good = copied(&[("a", 110), ("b", 6), ("empty", 0)]);
        assert_eq!(lacks(&before, &after, &good), None);
        let old = copied(&[("a", 40), ("b", 6), ("empty", 0)]);
        assert_eq!(lacks(&before, &after, &old).unwrap(), "t/d/a has 40 of 100 records");
        assert!(lacks(&before, &after, &copied(&[])).unwrap().contains("t/d/b is not in it"));
    }

    #[test]
    fn vectors_that_are_newer_than_their_list_are_found() {
        let at = |secs: i64, nanos: u32| Mtime { secs, nanos };
        let torn = |bin: Mtime, list: Mtime, end: &[u8]| {
            let mut beside = Beside::new(|_| Err(SourceError::bad("x", "y")));
            for (path, mtime, data) in [
                ("s1/data_level0.bin", bin, b"v".as_slice()),
                ("s1/header.bin", at(1, 0), b"h"),
                ("s1/index_metadata.pickle", list, end),
                // Newer, but of another collection.
                ("s2/data_level0.bin", at(99, 0), b"v"),
                ("s2/index_metadata.pickle", at(99, 0), b"p."),
            ] {
                beside.file(path.as_bytes(), data.len() as u64, mtime);
                beside.data(0, data);
                beside.end(true);
            }
            beside.torn().map(|(directory, _)| directory)
        };
        assert_eq!(torn(at(5, 7), at(5, 7), b"p."), None);
        assert_eq!(torn(at(5, 6), at(5, 7), b"p."), None);
        assert_eq!(torn(at(5, 8), at(5, 7), b"p."), Some("s1".to_owned()));
        assert_eq!(torn(at(5, 7), at(5, 7), b"p"), Some("s1".to_owned()), "a list that was cut");
        assert_eq!(torn(at(5, 7), at(5, 7), b""), Some("s1".to_owned()), "an empty list");
    }

    #[test]
    fn the_database_is_put_aside_with_its_holes_and_missing_vectors_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut beside = Beside::new(|name| {
            let path = dir.path().join(name);
            Ok((path.clone(), File::create(path).map_err(SourceError::write(name))?))
        });
        beside.file(b"deep/chroma.sqlite3", 3, Mtime::default());
        beside.data(0, b"not");
        beside.end(true);
        beside.file(b"chroma.sqlite3", 8192, Mtime::default());
        beside.data(4096, b"x");
        beside.end(true);
        let text = std::fs::read(dir.path().join(DATABASE)).unwrap();
        assert_eq!((text.len(), text[0], text[4096]), (8192, 0, b'x'));
        assert!(matches!(beside.facts(), Err(Problem::Copy(_))));
    }
}
