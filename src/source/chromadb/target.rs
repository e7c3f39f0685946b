//! The data of a server put back: its directory is exchanged while it is stopped, or an empty one is put in place and the
//! export is loaded through its API. What could go wrong: a server that starts and cannot read what it was given; so it is
//! asked for every collection and for some of its vectors before the old data goes.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Chroma;
use super::server::{COMING_UP, collections};
use crate::change::{self, Change};
use crate::chroma::copy::{self, CollectionFacts, CopyFacts, DATABASE, DatabaseFacts};
use crate::chroma::{Client, Collection, Import};
use crate::docker::{Container, DockerError, Place};
use crate::hint::{Hint, chain};
use crate::manifest::Component;
use crate::mounts;
use crate::run_journal::{How, RunJournal, Step};
use crate::source::{Context, SourceError, tree_target};
use crate::target::{Compared, Existing, Target, TreeTarget, Work, make_empty_like};

pub(super) struct ChromaTarget<'a> {
    source: &'a Chroma,
    tree: TreeTarget,
    container: Option<Container>,
    /// What the copy holds, once it is unpacked.
    copied: OnceCell<CopyFacts>,
}

impl Chroma {
    pub(super) fn find_target(
        &self,
        context: &Context<'_>,
        component: &Component,
    ) -> Result<ChromaTarget<'_>, SourceError> {
        let docker = context.docker()?;
        let (container, place) = match (docker.find(&self.selector), &self.volume) {
            (Err(DockerError::NoContainer { .. }), Some(volume)) => (None, docker.find_volume(volume)?),
            (found, _) => {
                let container = found?;
                let _in_use = context.holds.in_use(&container.id, context.cancel)?;
                let path = self.path_to_fill(context, &container, component)?;
                let place = context.place(&container, &path)?;
                (Some(container), place)
            }
        };
        let tree = tree_target(context, place, &self.copy)?;
        Ok(ChromaTarget { source: self, tree, container, copied: OnceCell::new() })
    }

    /// Where the server will look for its data, which may not be there any more.
    fn path_to_fill(
        &self,
        context: &Context<'_>,
        container: &Container,
        component: &Component,
    ) -> Result<String, SourceError> {
        if let Some(path) = &self.path {
            return Ok(path.clone());
        }
        let looked = self.look(context.docker()?, container)?;
        let then = component.facts.get("path").and_then(Value::as_str);
        let then = then.filter(|path| looked.usual.iter().any(|usual| usual == path)).map(str::to_owned);
        let last = looked.written.into_iter().max().map(|(_, path)| path);
        let found = looked.told.or(last).or(then).or_else(|| looked.usual.into_iter().next());
        found.ok_or_else(|| {
            SourceError::hinted(
                container.name.clone(),
                "nothing says where it keeps its data",
                "set path of the source to the directory in the container",
            )
        })
    }
}

impl ChromaTarget<'_> {
    fn database(&self, work: &Work<'_>) -> PathBuf {
        change::beside(&self.tree.live, work.id).join(DATABASE)
    }

    fn exports<'w>(work: &'w Work<'_>) -> Vec<&'w str> {
        let is_export = |m: &&str| m.ends_with(".jsonl") || m.contains(".jsonl.");
        work.component.members.iter().map(String::as_str).filter(is_export).collect()
    }

    /// An error when the server that is there is of another major version than the one that the data came from.
    fn same_version(&self, work: &Work<'_>, now: &str) -> Result<(), SourceError> {
        let major = |v: &str| v.split('.').next().map(str::to_owned);
        let then = work.component.facts.get("server_version").and_then(Value::as_str);
        match then {
            Some(then) if major(then) != major(now) && !work.wishes.via_export => Err(SourceError::hinted(
                work.name,
                format!("it comes from ChromaDB {then}, and the server is of version {now}"),
                "load its export instead, if the backup has one: --via-export; or use the image of that version",
            )),
            _ => Ok(()),
        }
    }

    /// The container as it is now, and whether it is started for the first time, having been made for this; None with a
    /// warning when it does not run.
    fn running(
        &self,
        context: &Context<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(Container, bool)>, SourceError> {
        let Some(known) = &self.container else {
            warnings.push("there is no container: no server has read it yet".to_owned());
            return Ok(None);
        };
        let docker = context.docker()?;
        let mut now = docker.look(&known.id)?.unwrap_or_default();
        let first = now.state == "created";
        if first {
            // The journal knows it, so that whoever recovers stops it before the data is exchanged again.
            let journal = context.holds.journal();
            journal.record(&Step::Hold(now.to_held(How::Stop)))?;
            docker.start(&now)?;
            journal.record(&Step::Released { id: now.id.clone() })?;
            warnings.push(format!("{} had never been started, and runs now", known.name));
            now = docker.look(&known.id)?.unwrap_or_default();
        }
        if now.state == "running" {
            return Ok(Some((now, first)));
        }
        warnings.push(format!("{} does not run: no server has read it yet", known.name));
        Ok(None)
    }

    /// Whether the server serves what it was given.
    fn ask(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        now: &Container,
        warnings: &mut Vec<String>,
    ) -> Result<(), SourceError> {
        let client = self.client(context, now)?;
        self.same_version(work, client.version())?;
        if work.wishes.via_export {
            self.load(context, work, &client)?;
        }
        self.must_serve(work, &client, warnings)
    }

    fn client(&self, context: &Context<'_>, container: &Container) -> Result<Client, SourceError> {
        let patience = COMING_UP.min(self.source.limits.idle);
        self.source.client(context, container, self.source.limits.total, patience)
    }

    fn load(&self, context: &Context<'_>, work: &Work<'_>, client: &Client) -> Result<(), SourceError> {
        let there = collections(client, &CopyFacts::default())?;
        if !there.is_empty() {
            return Err(SourceError::bad(work.name, "the server is not empty, although its directory was"));
        }
        for member in Self::exports(work) {
            work.open(member, |body| {
                let mut import = Import::begin(client, body)?;
                while import.next_batch()? > 0 {
                    context.cancel.check()?;
                    context.monitor.moved(import.take_bytes());
                }
                Ok(import.finish()?)
            })
            .map_err(|e| match e {
                SourceError::Interrupted(i) => SourceError::Interrupted(i),
                e => SourceError::Bad { what: member.to_owned(), why: chain(&e), hint: e.hint() },
            })?;
        }
        Ok(())
    }

    /// Every collection of the copy has its records at the server, and their vectors can be read.
    fn must_serve(
        &self,
        work: &Work<'_>,
        client: &Client,
        warnings: &mut Vec<String>,
    ) -> Result<(), SourceError> {
        let Some(copied) = self.copied.get() else { return Ok(()) };
        let there = collections(client, copied)?;
        for wanted in &copied.collections {
            let title = || format!("{}/{}/{}", wanted.tenant, wanted.database, wanted.name);
            let Some(found) = there.iter().find(|c| c.id == wanted.id) else {
                return Err(SourceError::bad(work.name, format!("the server does not show {}", title())));
            };
            let count = client.count(found)?;
            if count < wanted.records {
                let why = format!("the server has {count} of {} records of {}", wanted.records, title());
                return Err(SourceError::bad(work.name, why));
            }
            if count > wanted.records {
                warnings.push(format!("{} has already {count} records", title()));
            }
            sample(client, found, wanted)?;
        }
        Ok(())
    }
}

fn sample(client: &Client, collection: &Collection, wanted: &CollectionFacts) -> Result<(), SourceError> {
    if wanted.records > 0 && client.sample(collection)? == 0 {
        return Err(SourceError::bad(collection.title(), "the server shows none of its records"));
    }
    Ok(())
}

impl Target for ChromaTarget<'_> {
    fn describe(&self) -> String {
        let of = self.container.as_ref().map_or_else(String::new, |c| format!(" of {}", c.name));
        format!("ChromaDB{of}: {}", self.tree.describe())
    }

    fn place(&self) -> Option<&Place> {
        self.tree.place()
    }

    fn server(&self) -> Option<&Container> {
        self.container.as_ref()
    }

    fn existing(&self, context: &Context<'_>) -> Result<Existing, SourceError> {
        self.tree.existing(context)
    }

    fn survey(&self, context: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        if let Some(container) = self.container.as_ref().filter(|c| c.state == "running")
            // A server whose data is broken may not answer; it is asked again when it has the new.
            && let Ok(client) = self.source.client(context, container, self.source.limits.idle, Duration::ZERO)
        {
            self.same_version(work, client.version())?;
        }
        if !work.wishes.via_export {
            return self.tree.survey(context, work);
        }
        if Self::exports(work).is_empty() {
            return Err(SourceError::hinted(
                work.name,
                "this backup has no export of it",
                "take one of a tier that is in `export` of the source, or leave --via-export out",
            ));
        }
        mounts::must_hold_none(&self.tree.live)?;
        let on =
            if self.tree.live.is_dir() { Some(self.tree.live.as_path()) } else { self.tree.live.parent() };
        Ok((on.unwrap_or(Path::new("/")).to_owned(), 2 * work.component.bytes_in))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        if work.wishes.via_export {
            let beside = change::beside(&self.tree.live, work.id);
            journal.record(&work.scratch(&beside))?;
            make_empty_like(&self.tree.live, &beside)?;
            return Ok(Vec::new());
        }
        let warnings = self.tree.prepare(context, journal, work)?;
        let found = copy::facts(&self.database(work)).map_err(|e| SourceError::Bad {
            what: work.name.to_owned(),
            why: chain(&e),
            hint: e.hint(),
        })?;
        let dir = self.database(work).with_file_name("");
        if let Some(missing) = found.vector_files().find(|f| !dir.join(f).exists()) {
            return Err(SourceError::bad(work.name, format!("it lacks the vectors in {missing}")));
        }
        let then = work.component.facts.get("collections");
        if work.compare && then.is_some_and(|then| *then != serde_json::json!(found.collections)) {
            return Err(SourceError::bad(work.name, "its collections are not those of the manifest"));
        }
        let _ = self.copied.set(found);
        Ok(warnings)
    }

    fn change(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Change, SourceError> {
        if work.wishes.via_export {
            mounts::must_hold_none(&self.tree.live)?;
            let beside = change::beside(&self.tree.live, work.id);
            return Ok(change::plan_directory(&self.tree.live, &beside, Vec::new())?);
        }
        self.tree.change(context, journal, work)
    }

    fn compare(&self, context: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        // An archive of the bash script does not say.
        if component.facts.is_empty() {
            return Ok(Vec::new());
        }
        let docker = context.docker()?;
        let now = docker.find(&self.source.selector)?;
        let client = self.client(context, &now)?;
        let known = |key: &str| component.facts.get(key).cloned().unwrap_or_default();
        let databases: Vec<DatabaseFacts> = serde_json::from_value(known("databases")).unwrap_or_default();
        let wanted: Vec<CollectionFacts> = serde_json::from_value(known("collections")).unwrap_or_default();
        let tenants = databases.iter().map(|d| d.tenant.clone()).collect();
        let there = collections(&client, &CopyFacts { tenants, databases, ..CopyFacts::default() })?;
        let mut compared = vec![Compared::exactly("collections", wanted.len() as u64, there.len() as u64)];
        for one in &wanted {
            let what = format!("records of {}/{}/{}", one.tenant, one.database, one.name);
            let found = match there.iter().find(|c| c.id == one.id) {
                Some(found) => client.count(found)?,
                None => 0,
            };
            compared.push(Compared::exactly(what, one.records, found));
        }
        Ok(compared)
    }

    fn check(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        containers: &[Container],
    ) -> Result<Vec<String>, SourceError> {
        let mut warnings = self.tree.check(context, work, containers)?;
        let Some((now, first)) = self.running(context, &mut warnings)? else {
            return match work.wishes.via_export {
                true => Err(SourceError::hinted(
                    work.name,
                    "an export is loaded through the server, which does not run",
                    "start it, or restore its files without --via-export",
                )),
                false => Ok(warnings),
            };
        };
        let asked = self.ask(context, work, &now, &mut warnings);
        if asked.is_err() && first {
            // Nobody else would stop it before the old data is back, and it would go on with the new.
            context.docker()?.undisturbed().take_hold(&now, How::Stop)?;
        }
        asked.map(|()| warnings)
    }
}
