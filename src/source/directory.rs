//! A directory of files: a full copy, or only an inventory for what is kept elsewhere. What could go wrong: a NAS that
//! is not mounted is an empty directory, so an empty tree is a failure unless it was allowed.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, SET_ASIDE, Source, SourceError, Uses, check_tree,
    exclude, quote, tree_facts,
};
use crate::archive::tarfile::TarWriter;
use crate::archive::tree::{self, Exclude, TreeRules, Unwatched};
use crate::config::Section;
use crate::docker::{Limits, Place, Seat};
use crate::id::{Name, show_name};
use crate::manifest::Component;
use crate::mounts;
use crate::staging::Stage;
use crate::target::{Compared, Target, TreeTarget, Work};
use std::io::Write;

/// What an inventory counts.
const NUMBERS: [&str; 3] = ["files", "directories", "bytes"];

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Directory,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Copy,
    Inventory,
}

struct Directory {
    name: Name,
    path: PathBuf,
    mode: Mode,
    exclude: Exclude,
    require_mount: bool,
    cross_mounts: bool,
    allow_empty: bool,
}

fn read(name: &Name, s: &Section<'_>, _: Limits) -> Box<dyn Source> {
    let path = s.required_path("path", "Directory to capture");
    let mode = s.choice(
        "mode",
        &[("copy", Mode::Copy), ("inventory", Mode::Inventory)],
        "copy: the files; inventory: only what is there (count, bytes, digest of the metadata)",
    );
    Box::new(Directory {
        name: name.clone(),
        path,
        mode,
        exclude: exclude(s),
        require_mount: s.flag(
            "require_mount",
            false,
            "Fail unless the directory lies on a mounted disk of its own",
        ),
        cross_mounts: s.flag("cross_mounts", false, "Also take other file systems that are mounted inside"),
        allow_empty: s.flag("allow_empty", false, "An empty directory is no failure"),
    })
}

impl Directory {
    fn rules(&self, context: &Context<'_>) -> TreeRules {
        TreeRules {
            exclude: self.exclude.clone(),
            own_dirs: context.own_dirs.to_vec(),
            cross_mounts: self.cross_mounts,
            mounted: Vec::new(),
            allow_empty: self.allow_empty,
        }
    }

    /// Asks a child first: a hung mount must not hang us.
    fn check_mount(&self, context: &Context<'_>) -> Result<(), SourceError> {
        Ok(mounts::check(context.exe, &self.path, self.require_mount, context.cancel)?)
    }

    /// Where containers may have it mounted: as it is named here, and as it is called without links. None where no engine
    /// of this host can be asked.
    fn place(&self, context: &Context<'_>) -> Option<Place> {
        context.docker.as_ref().ok().filter(|docker| docker.is_local())?;
        let real = self.path.canonicalize().ok().or_else(|| {
            let parent = self.path.parent()?.canonicalize().ok()?;
            Some(parent.join(self.path.file_name()?))
        });
        let seat = Seat::Bind { source: self.path.clone() };
        let base = Some(real.unwrap_or_else(|| self.path.clone()));
        Some(Place { seat, base, rest: PathBuf::new(), nested: Vec::new() })
    }

    fn inventory(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let survey = tree::inventory(&self.path, &self.rules(context), context.cancel)?;
        let report = &survey.report;
        let mut facts = tree_facts(report);
        facts.insert("digest".into(), json!(format!("sha256:{}", survey.digest)));
        facts.insert("path".into(), json!(self.path.display().to_string()));
        let mut warnings = report.warnings();
        warnings.extend(context.previous.and_then(|before| difference(before, &facts)));
        let member = format!("{}.inventory.json", self.name);
        let mut file = stage.plain(&member)?;
        let text = serde_json::to_vec_pretty(&facts).unwrap_or_default();
        file.write_all(&text).map_err(SourceError::write(&member))?;
        let staged = file.finish().map_err(SourceError::write(&member))?;
        Ok(Capture {
            staged: vec![staged],
            // What is there, though it was not read: an anomaly is told by it.
            bytes_in: report.bytes,
            files: report.files,
            consistency: "inventory",
            warnings,
            incomplete: report.incomplete(),
            facts,
            ..Capture::default()
        })
    }
}

impl Source for Directory {
    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        _: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        if self.mode == Mode::Inventory {
            return Ok(None);
        }
        if self.path.exists() {
            self.check_mount(context)?;
        }
        Ok(Some(Box::new(TreeTarget {
            live: self.path.clone(),
            what: format!("directory {}", self.path.display()),
            place: self.place(context),
            exclude: self.exclude.clone(),
        })))
    }

    fn may_be_mounted(&self) -> bool {
        self.mode == Mode::Copy
    }

    fn compares(&self) -> bool {
        self.mode == Mode::Inventory
    }

    fn uses(&self) -> Uses<'_> {
        let replaces = match self.mode {
            Mode::Copy => vec![self.path.as_path()],
            Mode::Inventory => Vec::new(),
        };
        Uses { reads: vec![&self.path], replaces, ..Uses::default() }
    }

    fn method(&self) -> String {
        let verb = if self.mode == Mode::Copy { "files of" } else { "inventory of" };
        let without = match self.exclude.patterns() {
            [] => String::new(),
            patterns => format!(", without {}", patterns.join(", ")),
        };
        format!("{verb} {}{without}", self.path.display())
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        self.check_mount(context)?;
        let survey = tree::inventory(&self.path, &self.rules(context), context.cancel)?;
        Ok(Some(if self.mode == Mode::Copy { survey.report.bytes } else { 0 }))
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        self.check_mount(context)?;
        if self.mode == Mode::Inventory {
            return self.inventory(context, stage);
        }
        let member = format!("{}.tar", self.name);
        let mut tar = TarWriter::new(stage.compressed(&member)?);
        let report = tree::pack(
            &self.path,
            &self.rules(context),
            &mut tar,
            &mut Unwatched,
            context.cancel,
            context.monitor,
        )?;
        let staged = tar.finish().and_then(|w| w.finish()).map_err(SourceError::write(&member))?;
        let mut facts = tree_facts(&report);
        facts.insert("path".into(), json!(self.path.display().to_string()));
        if !self.exclude.patterns().is_empty() {
            facts.insert("excluded".into(), json!(self.exclude.patterns()));
        }
        Ok(Capture {
            bytes_in: report.bytes,
            files: report.files,
            consistency: "live",
            warnings: report.warnings(),
            incomplete: report.incomplete(),
            facts,
            staged: vec![staged],
            ..Capture::default()
        })
    }
}

/// What changed since the last inventory, for a person.
fn difference(before: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    if before.get("digest") == now.get("digest") {
        return None;
    }
    let number = |facts: &Map<String, Value>, key: &str| facts.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (files, bytes) = (number(before, "files"), number(before, "bytes"));
    Some(format!(
        "differs from the last run: {files} files, {bytes} bytes then; {} files, {} bytes now",
        number(now, "files"),
        number(now, "bytes")
    ))
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    if member.name.ends_with(".inventory.json") {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut member.body, &mut text).map_err(CheckError::Read)?;
        let found: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| CheckError::Bad(format!("not an inventory: {e}")))?;
        let facts = &member.component.facts;
        if found.get("digest") != facts.get("digest") {
            return Err(CheckError::Bad("its digest is not the one of the manifest".into()));
        }
        for key in NUMBERS {
            let number = |all: &Map<String, Value>| all.get(key).and_then(Value::as_u64);
            let shown = |n: Option<u64>| n.map_or_else(|| "nothing".to_owned(), |n| n.to_string());
            let (then, now) = (number(facts), number(&found));
            if then.is_none() || then != now {
                let why = format!("{key}: the manifest says {}, found {}", shown(then), shown(now));
                return Err(CheckError::Bad(why));
            }
        }
        return Ok(());
    }
    check_tree(member)
}

/// The numbers of the manifest beside those of the inventory in the archive; empty where that is none.
pub fn inventoried(work: &Work<'_>) -> Result<Vec<Compared>, SourceError> {
    let Ok(member) = work.member(".inventory.json") else { return Ok(Vec::new()) };
    let found: Map<String, Value> = work.open(member, |body| {
        let mut text = Vec::new();
        std::io::Read::read_to_end(body, &mut text)
            .map_err(|source| SourceError::Read { what: format!("{member} of the archive"), source })?;
        serde_json::from_slice(&text).map_err(|e| SourceError::bad(member, format!("not an inventory: {e}")))
    })?;
    let number = |all: &Map<String, Value>, key: &str| all.get(key).and_then(Value::as_u64).unwrap_or(0);
    let facts = &work.component.facts;
    Ok(NUMBERS.map(|key| Compared::exactly(key, number(facts, key), number(&found, key))).to_vec())
}

fn restore(_: &str, component: &Component) -> String {
    let path = component.facts.get("path").and_then(Value::as_str).unwrap_or("/path");
    let shown = show_name(path.as_bytes());
    let Some(member) = component.members.iter().find(|m| m.contains(".tar")) else {
        return format!("An inventory of `{shown}` only; the files themselves are not in this archive.\n");
    };
    let left_out: Vec<&str> = component
        .facts
        .get("excluded")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect());
    let without = match left_out.as_slice() {
        [] => String::new(),
        patterns => format!(
            "\nNot in the archive, and to be taken from what was set aside: `{}`.\n",
            show_name(patterns.join("`, `").as_bytes())
        ),
    };
    format!(
        "Files of `{shown}`. As root; what is there now is set aside beside it, and the copy is unpacked:\n\n\
         ```\ndir={}\nmkdir -p \"$dir\"\n{SET_ASIDE}\n\
         tar --numeric-owner --xattrs --xattrs-include='*' -xpf {member} -C \"$dir\"\n```\n{without}",
        quote(path),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inventory_tells_what_changed_and_is_silent_when_nothing_did() {
        let facts = |digest: &str, files: u64| {
            Map::from_iter([("digest".to_owned(), json!(digest)), ("files".to_owned(), json!(files))])
        };
        assert_eq!(difference(&facts("a", 3), &facts("a", 3)), None);
        assert!(
            difference(&facts("a", 3), &facts("b", 1)).unwrap().contains("3 files, 0 bytes then; 1 files")
        );
    }
}
