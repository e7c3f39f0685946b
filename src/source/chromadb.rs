//! ChromaDB: a copy of its directory, and where the tier asks for it an export through its API. What could go wrong: the
//! wrong directory, because the place of the data changed between versions; so the database file is looked for where the
//! server would keep it, and afterwards the server is asked for what must be in the copy. And a copy of no moment: the
//! vectors lie beside the database, and both must be of one time, so the server is paused.

mod beside;
mod server;
mod target;

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{
    Capture, Context, Kind, Rehearsal, Source, SourceError, Uses, container_facts, layer_warning, selector,
    tree_facts,
};
use crate::archive::compress::Staged;
use crate::chroma::copy::{CopyFacts, DATABASE};
use crate::chroma::{ChromaError, Collection, Exported, location};
use crate::config::Section;
use crate::docker::{Container, Docker, DockerError, Image, Limits, Place, Seat, Selector, Throwaway};
use crate::held_copy::{self, Consistency, Copied, CopySettings, HeldCopy};
use crate::hint::chain;
use crate::id::Name;
use crate::manifest::Component;
use crate::secret::SecretRef;
use crate::staging::Stage;
use crate::target::Target;
use beside::{Beside, VECTOR_LIST, check};
use server::{COMING_UP, collections, lacks};

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Server(throwaway),
};

/// Copies until one is not of a moment at which the server wrote vectors, and the rest between two of them.
const ATTEMPTS: usize = 8;
const BETWEEN: Duration = Duration::from_millis(700);
/// Seconds after which nobody can be in the middle of writing a directory of vectors.
const SETTLED_S: i64 = 300;

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

/// A server that keeps its data where the other one did. It is asked over the network, and without a token: no container
/// reaches it, but any process of this host does while the drill runs.
fn throwaway(component: &Component, image: &Image) -> Throwaway {
    let argv: Vec<String> = image.entrypoint.iter().chain(&image.cmd).cloned().collect();
    let image_name = component.facts.get("image").and_then(Value::as_str).unwrap_or_default();
    let shown = location::Shown {
        argv: &argv,
        env: &image.env,
        working_dir: &image.working_dir,
        image: image_name,
        version: component.facts.get("server_version").and_then(Value::as_str),
        config: None,
    };
    let then = component.facts.get("path").and_then(Value::as_str).map(str::to_owned);
    let usual = || location::of(&shown).candidates.into_iter().next().unwrap_or_else(|| "/data".into());
    let path = then.unwrap_or_else(usual);
    // The command of 1.x; what starts 0.x in the usual image reads the environment instead.
    let by_command = image.cmd.first().is_none_or(|word| word == "run");
    let run = ["run", "--host", "0.0.0.0", "--port", "8000", "--path", &path].map(str::to_owned);
    let env =
        [("IS_PERSISTENT", "TRUE"), ("PERSIST_DIRECTORY", path.as_str()), ("ANONYMIZED_TELEMETRY", "FALSE")];
    Throwaway {
        volumes: image.volumes_with(&[&path]),
        env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        cmd: by_command.then(|| run.to_vec()),
        by_network: true,
        ..Throwaway::default()
    }
}

/// The data of a server that was found.
struct Found {
    container: Option<Container>,
    path: Option<String>,
    place: Place,
    warnings: Vec<String>,
}

/// What a container shows of where its data is.
struct Looked {
    /// Where the server was told to keep it.
    told: Option<String>,
    /// Where it may be otherwise.
    usual: Vec<String>,
    /// Time and path of each place that has a database.
    written: Vec<(String, String)>,
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
        let Looked { told, usual, written } = self.look(docker, container)?;
        let elsewhere = written.iter().map(|(_, p)| p.as_str()).collect::<Vec<_>>().join(", ");
        if let Some(path) = &self.path {
            return match written.iter().any(|(_, p)| p == path) {
                true => Ok(path.clone()),
                false => Err(SourceError::hinted(
                    format!("{path} of {}", container.name),
                    format!("there is no {DATABASE}"),
                    match elsewhere.is_empty() {
                        true => "leave path out, or look where the server keeps its data".to_owned(),
                        false => format!("there is one in {elsewhere}: set path to it, or leave path out"),
                    },
                )),
            };
        }
        if let Some(told) = &told {
            if written.iter().any(|(_, p)| p == told) {
                return Ok(told.clone());
            }
            warnings
                .push(format!("{} is told to keep its data in {told}, where there is none", container.name));
        }
        // The latest one: the engine writes times so that they sort.
        let Some((_, path)) = written.iter().max() else {
            let looked: Vec<&str> = told.iter().chain(&usual).map(String::as_str).collect();
            return Err(SourceError::hinted(
                container.name.clone(),
                format!("there is no {DATABASE} in {}", looked.join(", ")),
                "set path of the source to the directory in the container that has it",
            ));
        };
        if written.len() > 1 {
            warnings
                .push(format!("there is a {DATABASE} in {elsewhere}; took {path}, which was written last"));
        }
        Ok(path.clone())
    }

    fn look(&self, docker: &Docker, container: &Container) -> Result<Looked, SourceError> {
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
        let told = location.explicit.map(|e| e.path);
        let usual = location.candidates;
        let mut written: Vec<(String, String)> = Vec::new();
        for path in self.path.iter().chain(&told).chain(&usual) {
            let file = format!("{}/{DATABASE}", path.trim_end_matches('/'));
            let found = docker.file_stat(&container.id, &file)?.filter(|(size, _)| *size > 0);
            if let Some((_, time)) = found
                && !written.iter().any(|(_, p)| p == path)
            {
                written.push((time, path.clone()));
            }
        }
        Ok(Looked { told, usual, written })
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

impl Source for Chroma {
    fn needs_docker(&self) -> bool {
        true
    }

    fn tiers(&self) -> &[String] {
        &self.export
    }

    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        component: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        Ok(Some(Box::new(self.find_target(context, component)?)))
    }

    fn uses(&self) -> Uses<'_> {
        Uses { container: Some(&self.selector), volume: self.volume.as_deref(), ..Uses::default() }
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
            container_facts(&mut facts, context, container);
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
