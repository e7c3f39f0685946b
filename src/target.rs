//! Where a component goes back to. What could go wrong: live data that is gone before the new data is known to be good;
//! so a target first brings the new data, whole and compared with the manifest, to a place beside the old, and only then
//! says which change makes it live.

mod window;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::archive::read::{codec_of, decompress};
use crate::archive::tree::{self, Exclude, TreeRules};
use crate::archive::unpack::{self, Limits, Survey};
use crate::change::{self, Change, Scratch};
use crate::docker::{Container, Place, Seat};
use crate::manifest::Component;
use crate::mounts;
use crate::reach::Reach;
use crate::run_journal::{RunJournal, Step};
use crate::source::{Context, SourceError};
use crate::units::show_bytes;

pub use window::WindowTarget;

/// What is needed to bring one component back.
pub struct Work<'a> {
    pub name: &'a str,
    pub component: &'a Component,
    /// Where the members of the archive lie, under their names.
    pub dir: &'a Path,
    /// Part of the names of what is made beside live data.
    pub id: &'a str,
    /// Whether what is unpacked is compared with the manifest.
    pub compare: bool,
    pub wishes: Wishes,
    /// Trees that were read through already, by component.
    pub surveyed: &'a Surveyed,
    /// On a machine without a configuration: where files may be put that the configuration in the backup names.
    pub reach: Option<&'a Reach>,
}

pub type Surveyed = RefCell<BTreeMap<String, Survey>>;

/// What was asked for that only some kinds understand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wishes {
    /// A server that does not start: new data directory, which it fills itself, then load.
    pub fresh: bool,
    /// Load the export through the server instead of putting its files in place.
    pub via_export: bool,
    /// Give roles that are there the attributes and passwords of the backup.
    pub overwrite_roles: bool,
}

impl Work<'_> {
    /// A member without its compression.
    pub fn open<T>(
        &self,
        member: &str,
        read: impl FnOnce(&mut dyn Read) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let failed = |source| SourceError::Read { what: format!("{member} of the archive"), source };
        let mut file = File::open(self.dir.join(member)).map_err(failed)?;
        let mut body = decompress(codec_of(member).1, &mut file).map_err(failed)?;
        read(&mut body)
    }

    /// The member with this name before compression.
    pub fn member(&self, suffix: &str) -> Result<&str, SourceError> {
        let found = self.component.members.iter().find(|m| codec_of(m).0.ends_with(suffix));
        found.map(String::as_str).ok_or_else(|| {
            SourceError::bad(self.name, format!("the archive has no member of it that ends in {suffix}"))
        })
    }

    /// The line of the journal for a path that is going to be made.
    pub fn scratch(&self, path: &Path) -> Step {
        Step::Scratch { component: self.name.to_owned(), scratch: Scratch::Path { path: path.to_owned() } }
    }

    pub fn fact(&self, key: &str) -> Option<u64> {
        self.component.facts.get(key).and_then(Value::as_u64)
    }
}

/// What is there now, for the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Existing {
    Nothing,
    Something(String),
}

/// A number of the manifest beside what is found where the component was put.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// For a person: `rows of tars_home/public.notes`.
    pub what: String,
    pub manifest: u64,
    pub found: u64,
    pub equal: bool,
}

impl Compared {
    pub fn exactly(what: impl Into<String>, manifest: u64, found: u64) -> Self {
        Self { what: what.into(), manifest, found, equal: manifest == found }
    }

    /// Of what may have expired meanwhile.
    pub fn at_most(what: impl Into<String>, manifest: u64, found: u64) -> Self {
        Self { what: what.into(), manifest, found, equal: found <= manifest }
    }
}

pub trait Target {
    /// What is replaced, for a person: `directory /srv/documents`.
    fn describe(&self) -> String;

    /// Everything that is written, one line each, where a person has to agree to each.
    fn listed(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether what was there stays beside the new data under a name that people find, so that no safety copy is needed.
    fn keeps_old(&self) -> bool {
        false
    }

    /// What was asked for and is not put back, for a person: what is known now, and more after `prepare`.
    fn not_put_back(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether `copy`, which the source makes of what is there now, holds all that is replaced.
    fn is_saved_by(&self, _context: &Context<'_>, _copy: &Component) -> bool {
        true
    }

    /// Where every container that mounts it must be stopped meanwhile.
    fn place(&self) -> Option<&Place> {
        None
    }

    /// The container of the server that serves it, where the target knows one: whoever depends on it is stopped meanwhile.
    fn server(&self) -> Option<&Container> {
        None
    }

    fn existing(&self, context: &Context<'_>) -> Result<Existing, SourceError>;

    /// Reads the members and finds out whether they can be put in place; writes nothing. The bytes that will be needed
    /// beside the live data, and the directory whose disk they are needed on.
    fn survey(&self, context: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError>;

    /// Brings the new data beside the old, compared with the manifest. Warnings.
    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError>;

    /// What makes it live. Called when nobody writes any more.
    fn change(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Change, SourceError>;

    /// Whether the new data is what is seen where it is used. `containers` had been stopped, and run again unless somebody
    /// else needs them stopped. Warnings.
    fn check(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        containers: &[Container],
    ) -> Result<Vec<String>, SourceError>;

    /// What the manifest says beside what is there now, counted anew where it is used. For a drill: nobody else works with
    /// it.
    fn compare(&self, _: &Context<'_>, _: &Component) -> Result<Vec<Compared>, SourceError> {
        Ok(Vec::new())
    }
}

/// Makes the empty directory `new` with owner and mode of the live one, where that is there; else it is ours alone.
pub fn make_empty_like(live: &Path, new: &Path) -> Result<(), SourceError> {
    let put = |source| SourceError::Place { path: new.to_owned(), source };
    DirBuilder::new().mode(0o700).create(new).map_err(put)?;
    if let Ok(meta) = live.metadata() {
        chown(new, Some(meta.uid()), Some(meta.gid())).map_err(put)?;
        let mode = std::fs::Permissions::from_mode(meta.mode() & 0o7777);
        std::fs::set_permissions(new, mode).map_err(put)?;
    }
    Ok(())
}

/// A directory: of a source, of a bind mount, or of a volume that can be reached directly.
pub struct TreeTarget {
    pub live: PathBuf,
    pub what: String,
    pub place: Option<Place>,
    /// What the source leaves out now.
    pub exclude: Exclude,
}

impl TreeTarget {
    /// What was left out when the backup was made, and what is left out now.
    fn left_out(&self, work: &Work<'_>) -> Exclude {
        let then = work.component.facts.get("excluded").and_then(Value::as_array);
        let then = then.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
        let mut patterns: Vec<String> = self.exclude.patterns().to_vec();
        patterns.extend(then);
        patterns.sort();
        patterns.dedup();
        Exclude::new(&patterns).unwrap_or_else(|_| self.exclude.clone())
    }

    fn limits(work: &Work<'_>) -> Limits {
        if !work.compare {
            return Limits::default();
        }
        Limits { entries: work.fact("entries"), bytes: work.fact("bytes") }
    }

    fn must_agree(work: &Work<'_>, found: &Survey) -> Result<(), SourceError> {
        let now = [("entries", found.entries), ("files", found.files), ("bytes", found.bytes)];
        for (key, now) in now {
            match work.fact(key) {
                Some(then) if work.compare && then != now => {
                    return Err(SourceError::bad(
                        work.name,
                        format!("it has {now} {key}, the manifest says {then}"),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the tree through, and compares it with the manifest.
    fn survey_member(context: &Context<'_>, work: &Work<'_>) -> Result<Survey, SourceError> {
        if let Some(known) = work.surveyed.borrow().get(work.name) {
            return Ok(*known);
        }
        let found = work.open(work.member(".tar")?, |body| {
            Ok(unpack::survey(body, &Self::limits(work), context.cancel)?)
        })?;
        Self::must_agree(work, &found)?;
        work.surveyed.borrow_mut().insert(work.name.to_owned(), found);
        Ok(found)
    }

    /// Our journal would not be found by whoever recovers while its directory is moved from the old tree to the new.
    fn must_hold_nothing_of_ours(&self, context: &Context<'_>) -> Result<(), SourceError> {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let live = real(&self.live);
        match context.agent_dirs.iter().find(|dir| real(dir).starts_with(&live)) {
            None => Ok(()),
            Some(dir) => Err(SourceError::hinted(
                self.live.display().to_string(),
                format!("{} of tars-backup lies in it, and is in use", dir.display()),
                "restore elsewhere with --to, and copy; or move it first ([agent] in the configuration)",
            )),
        }
    }

    /// Unpacks into the new directory `beside`. Warnings.
    fn unpack(
        &self,
        context: &Context<'_>,
        work: &Work<'_>,
        beside: &Path,
    ) -> Result<Vec<String>, SourceError> {
        let put = |source| SourceError::Place { path: beside.to_owned(), source };
        DirBuilder::new().mode(0o700).create(beside).map_err(put)?;
        let done = work.open(work.member(".tar")?, |body| {
            Ok(unpack::unpack(body, beside, &Self::limits(work), context.cancel, context.monitor)?)
        })?;
        Self::must_agree(work, &done.survey)?;
        self.hide_image(beside)?;
        Ok(done.warnings())
    }

    fn exchange(&self, context: &Context<'_>, work: &Work<'_>) -> Result<Change, SourceError> {
        let beside = change::beside(&self.live, work.id);
        let carried = match self.live.is_dir() {
            true => tree::left_out(&self.live, &self.left_out(work), context.own_dirs, context.cancel)?,
            false => Vec::new(),
        };
        Ok(change::plan_directory(&self.live, &beside, carried)?)
    }

    /// In a container's own layer, lets nothing of its image show through the new directory.
    pub fn hide_image(&self, beside: &Path) -> Result<(), SourceError> {
        if let Some(Place { seat: Seat::Layer { .. }, .. }) = &self.place {
            rustix::fs::lsetxattr(beside, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
                .map_err(|e| SourceError::Place { path: beside.to_owned(), source: e.into() })?;
        }
        Ok(())
    }
}

impl Target for TreeTarget {
    fn describe(&self) -> String {
        self.what.clone()
    }

    fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    fn existing(&self, context: &Context<'_>) -> Result<Existing, SourceError> {
        if !self.live.is_dir() {
            return Ok(Existing::Nothing);
        }
        let found = tree::inventory(&self.live, &whole(), context.cancel)?.report;
        Ok(match found.entries_below() {
            0 => Existing::Nothing,
            _ => Existing::Something(format!("{} files, {}", found.files, show_bytes(found.bytes))),
        })
    }

    fn survey(&self, context: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        let parent = self.live.parent().filter(|p| p.is_dir()).ok_or_else(|| {
            SourceError::hinted(
                self.live.display().to_string(),
                "the directory above it is not there",
                "is its disk mounted? make the directory above it, or restore elsewhere with --to",
            )
        })?;
        mounts::must_hold_none(&self.live)?;
        self.must_hold_nothing_of_ours(context)?;
        let found = Self::survey_member(context, work)?;
        let on = if self.live.is_dir() { &self.live } else { parent };
        Ok((on.to_owned(), found.data_bytes + 4096 * found.inodes))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let beside = change::beside(&self.live, work.id);
        journal.record(&work.scratch(&beside))?;
        self.unpack(context, work, &beside)
    }

    fn change(&self, context: &Context<'_>, _: &RunJournal, work: &Work<'_>) -> Result<Change, SourceError> {
        // Looked at again: a person may have thought about the plan for long.
        mounts::must_hold_none(&self.live)?;
        self.exchange(context, work)
    }

    fn compare(&self, context: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        let found = tree::inventory(&self.live, &whole(), context.cancel)?.report;
        let now = [
            ("files", found.files),
            ("directories", found.directories),
            ("symlinks", found.symlinks),
            ("hardlinks", found.hardlinks),
            ("fifos", found.fifos),
            ("bytes", found.bytes),
        ];
        let then = |key: &str| component.facts.get(key).and_then(Value::as_u64);
        let compared: Vec<Compared> =
            now.into_iter().filter_map(|(key, now)| Some(Compared::exactly(key, then(key)?, now))).collect();
        // None at all is told by whoever asks: archives of the bash script have none.
        match now.into_iter().find(|(key, _)| !compared.is_empty() && then(key).is_none()) {
            None => Ok(compared),
            Some((key, now)) => {
                let why = format!("the manifest does not say how many {key} it has, found {now}");
                Err(SourceError::bad(self.what.clone(), why))
            }
        }
    }

    /// A container that was not stopped in time still has the old tree, although the engine shows the new one. What its
    /// own process sees tells.
    fn check(
        &self,
        context: &Context<'_>,
        _: &Work<'_>,
        containers: &[Container],
    ) -> Result<Vec<String>, SourceError> {
        let Some(place) = &self.place else { return Ok(Vec::new()) };
        let docker = context.docker()?;
        let live = std::fs::metadata(&self.live)
            .map_err(|source| SourceError::Read { what: self.live.display().to_string(), source })?;
        for container in containers {
            let Some(now) = docker.look(&container.id)?.filter(|c| c.pid > 0) else { continue };
            if !docker.is_local() || !now.is_process_of_this_host() {
                continue;
            }
            for seen in place.seen_by(&now) {
                // Without the right to look there is no proof either way.
                let Ok(meta) = std::fs::metadata(&seen) else { continue };
                if (meta.dev(), meta.ino()) != (live.dev(), live.ino()) {
                    return Err(SourceError::bad(now.name.clone(), "it still works on the old data"));
                }
            }
        }
        Ok(Vec::new())
    }
}

/// All that is there.
fn whole() -> TreeRules {
    TreeRules {
        exclude: Exclude::default(),
        own_dirs: Vec::new(),
        cross_mounts: true,
        mounted: Vec::new(),
        allow_empty: true,
    }
}

/// An SQLite database of the host.
pub struct SqliteTarget {
    pub live: PathBuf,
}

impl SqliteTarget {
    fn beside(&self, work: &Work<'_>, what: &str) -> PathBuf {
        change::beside_name(&self.live, work.id, what)
    }

    fn write(&self, context: &Context<'_>, work: &Work<'_>, to: &Path) -> Result<(), SourceError> {
        let put = |source| SourceError::Place { path: to.to_owned(), source };
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(put)?;
        work.open(work.member(".sqlite3")?, |body| {
            let mut buffer = vec![0; 1 << 20];
            loop {
                context.cancel.check()?;
                let n = body.read(&mut buffer).map_err(|source| SourceError::Read {
                    what: "the database in the archive".into(),
                    source,
                })?;
                if n == 0 {
                    return Ok(());
                }
                file.write_all(&buffer[..n]).map_err(put)?;
                context.monitor.moved(n as u64);
            }
        })?;
        file.sync_all().map_err(put)
    }

    fn must_agree(&self, work: &Work<'_>, path: &Path) -> Result<(), SourceError> {
        let found: Map<String, Value> = crate::source::examine_sqlite(path)
            .map_err(|why| SourceError::bad(work.name, format!("the database in the archive: {why}")))?;
        if work.compare && found.get("rows") != work.component.facts.get("rows") {
            return Err(SourceError::bad(work.name, "its row counts are not those of the manifest"));
        }
        Ok(())
    }
}

impl Target for SqliteTarget {
    fn describe(&self) -> String {
        format!("SQLite database {}", self.live.display())
    }

    fn existing(&self, _: &Context<'_>) -> Result<Existing, SourceError> {
        match std::fs::metadata(&self.live) {
            Ok(meta) => Ok(Existing::Something(show_bytes(meta.len()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Existing::Nothing),
            Err(source) => Err(SourceError::Read { what: self.live.display().to_string(), source }),
        }
    }

    fn survey(&self, _: &Context<'_>, work: &Work<'_>) -> Result<(PathBuf, u64), SourceError> {
        let parent = self.live.parent().filter(|p| p.is_dir()).ok_or_else(|| {
            SourceError::bad(self.live.display().to_string(), "the directory above it is not there")
        })?;
        work.member(".sqlite3")?;
        change::must_have_no_remains(&self.live)?;
        let old = std::fs::metadata(&self.live).map_or(0, |m| m.len());
        Ok((parent.to_owned(), work.component.bytes_in.saturating_mul(2).saturating_add(old)))
    }

    fn prepare(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Vec<String>, SourceError> {
        let new = self.beside(work, "");
        journal.record(&work.scratch(&new))?;
        self.write(context, work, &new)?;
        self.must_agree(work, &new)?;
        let put = |source| SourceError::Place { path: new.clone(), source };
        let mode = work.component.facts.get("mode").and_then(Value::as_str);
        let mode = mode.and_then(|m| u32::from_str_radix(m, 8).ok()).unwrap_or(0o600);
        let id = |key: &str| work.fact(key).and_then(|v| u32::try_from(v).ok());
        chown(&new, id("uid"), id("gid")).map_err(put)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(mode)).map_err(put)?;
        Ok(Vec::new())
    }

    fn change(
        &self,
        context: &Context<'_>,
        journal: &RunJournal,
        work: &Work<'_>,
    ) -> Result<Change, SourceError> {
        let new = self.beside(work, "");
        if self.existing(context)? == Existing::Nothing {
            change::must_have_no_remains(&self.live)?;
            return Ok(change::plan_database(&self.live, &new, None)?);
        }
        let old = self.beside(work, ".old");
        journal.record(&work.scratch(&old))?;
        change::copy_database(&self.live, &old)?;
        Ok(change::plan_database(&self.live, &new, Some(old))?)
    }

    fn check(&self, _: &Context<'_>, work: &Work<'_>, _: &[Container]) -> Result<Vec<String>, SourceError> {
        self.must_agree(work, &self.live).map(|()| Vec::new())
    }

    fn compare(&self, _: &Context<'_>, component: &Component) -> Result<Vec<Compared>, SourceError> {
        let found = crate::source::examine_sqlite(&self.live)
            .map_err(|why| SourceError::bad(self.live.display().to_string(), why))?;
        let rows = |facts: &Map<String, Value>| facts.get("rows").and_then(Value::as_object).cloned();
        let (then, now) = (rows(&component.facts).unwrap_or_default(), rows(&found).unwrap_or_default());
        let number = |rows: &Map<String, Value>, table: &str| rows.get(table).and_then(Value::as_u64);
        let mut compared = vec![Compared::exactly("tables", then.len() as u64, now.len() as u64)];
        compared.extend(then.keys().map(|table| {
            let (then, now) = (number(&then, table).unwrap_or(0), number(&now, table).unwrap_or(0));
            Compared::exactly(format!("rows of {table}"), then, now)
        }));
        Ok(compared)
    }
}
