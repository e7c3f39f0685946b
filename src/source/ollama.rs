//! The models of Ollama. Their files never change once they are complete and are named after their digests, so they are
//! copied while the server runs. What could go wrong: a model that was being pulled or removed, of which only a part is
//! in the copy; so each file is checked against its own name, and each model against its list of files.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, Source, SourceError, Uses, container_facts,
    place_target, selector, tree_facts,
};
use crate::archive::read::walk_tar_watched;
use crate::archive::tree::{Watch, show_name};
use crate::config::Section;
use crate::docker::{Container, Limits, Place, Selector};
use crate::format::tarwalk::Mtime;
use crate::held_copy::{self, Consistency, CopySettings, HeldCopy};
use crate::hint::chain;
use crate::id::Name;
use crate::manifest::Component;
use crate::staging::Stage;
use crate::target::Target;

pub const KIND: Kind = Kind {
    critical: false,
    on_by_default: false,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Directory,
};

/// Where the image keeps its data.
const DEFAULT_PATH: &str = "/root/.ollama";
/// What is still being downloaded.
const UNFINISHED: &str = "*-partial*";

struct Ollama {
    name: Name,
    selector: Selector,
    path: Option<String>,
    copy: CopySettings,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    Box::new(Ollama {
        name: name.clone(),
        selector: selector(name, s),
        path: s.text(
            "path",
            "Directory in the container that holds models/; default: OLLAMA_MODELS, else /root/.ollama",
        ),
        copy: CopySettings::read(s, Consistency::Live, limits.idle).leaving_out(UNFINISHED),
    })
}

impl Ollama {
    fn find(&self, context: &Context<'_>) -> Result<(Container, String, Place), SourceError> {
        let docker = context.docker()?;
        let container = docker.find(&self.selector)?;
        let path = self
            .path
            .clone()
            .or_else(|| container.env.get("OLLAMA_MODELS").filter(|p| p.starts_with('/')).cloned())
            .unwrap_or_else(|| DEFAULT_PATH.to_owned());
        let place = context.place(&container, &path)?;
        Ok((container, path, place))
    }
}

impl Source for Ollama {
    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        _: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        let (container, _, place) = self.find(context)?;
        Ok(Some(place_target(context, place, Some(&container), &self.copy)?))
    }

    fn needs_docker(&self) -> bool {
        true
    }

    fn uses(&self) -> Uses<'_> {
        Uses { container: Some(&self.selector), ..Uses::default() }
    }

    fn method(&self) -> String {
        let container = self.selector.container.as_ref().unwrap_or(&self.selector.service);
        format!("copy of the models of the container {container} ({})", self.copy.consistency.word())
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let (_, _, place) = self.find(context)?;
        held_copy::estimate(&place, &self.copy, context)
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let (container, path, place) = self.find(context)?;
        let member = format!("{}-models.tar", self.name);
        let mut library = Library::default();
        let copy =
            HeldCopy { place: &place, container: Some(&container), settings: &self.copy, member: &member };
        let copied = copy.take(context, stage, &mut library)?;
        let mut facts = tree_facts(&copied.report);
        container_facts(&mut facts, context, &container);
        held_copy::facts(&place, Some(&path), &mut facts);
        facts.extend(library.facts());
        let wrong: Vec<String> = copied.report.incomplete().into_iter().chain(library.problem()).collect();
        Ok(Capture {
            bytes_in: copied.report.bytes,
            files: copied.report.files,
            consistency: self.copy.consistency.word(),
            warnings: copied.warnings,
            incomplete: (!wrong.is_empty()).then(|| wrong.join("; ")),
            facts,
            volumes: place.volume().map(str::to_owned).into_iter().collect(),
            staged: vec![copied.staged],
            paused: copied.paused,
        })
    }
}

/// Longest list of the files of a model; real ones have a few kilobytes.
const MANIFEST_BYTES: u64 = 4 << 20;

/// What the bytes of a copy say about its models.
#[derive(Default)]
struct Library {
    now: Option<Reading>,
    /// Digests of the files that are whole.
    blobs: BTreeSet<String>,
    /// Files that are not what their name says.
    wrong: Vec<String>,
    /// Model -> `(digest, bytes)` of its files; None when its list cannot be read.
    models: BTreeMap<String, Option<Vec<(String, u64)>>>,
}

enum Reading {
    Blob { name: String, hasher: Sha256, at: u64, size: u64 },
    Manifest { model: String, text: Vec<u8> },
}

impl Watch for Library {
    fn file(&mut self, path: &[u8], size: u64, _: Mtime) {
        let shown = show_name(path);
        let parts: Vec<&str> = shown.split('/').collect();
        let after = |word: &str| parts.iter().position(|p| *p == word).map(|i| &parts[i + 1..]);
        self.now = match (after("blobs"), after("manifests")) {
            (Some([name]), _) if name.starts_with("sha256-") => {
                Some(Reading::Blob { name: (*name).to_owned(), hasher: Sha256::new(), at: 0, size })
            }
            (_, Some(rest)) if rest.len() >= 2 && size <= MANIFEST_BYTES => {
                Some(Reading::Manifest { model: model_name(rest), text: Vec::new() })
            }
            _ => None,
        };
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) {
        match &mut self.now {
            Some(Reading::Blob { hasher, at, .. }) => {
                zeros(hasher, offset.saturating_sub(*at));
                hasher.update(bytes);
                *at = offset + bytes.len() as u64;
            }
            Some(Reading::Manifest { text, .. }) => text.extend_from_slice(bytes),
            None => {}
        }
    }

    fn end(&mut self, whole: bool) {
        match self.now.take() {
            Some(Reading::Blob { name, mut hasher, at, size }) => {
                zeros(&mut hasher, size.saturating_sub(at));
                let digest = format!("sha256-{}", hex::encode(hasher.finalize()));
                if whole && digest == name {
                    self.blobs.insert(name);
                } else {
                    self.wrong.push(name);
                }
            }
            Some(Reading::Manifest { model, text }) => {
                self.models.insert(model, files_of(&text).filter(|_| whole));
            }
            None => {}
        }
    }
}

impl Library {
    /// What is wrong with the copy, for a person.
    fn problem(&self) -> Option<String> {
        let mut problems = Vec::new();
        if !self.wrong.is_empty() {
            problems.push(format!("not what their own digests say: {}", self.wrong.join(", ")));
        }
        for (model, files) in &self.models {
            match files {
                None => problems.push(format!("the list of files of {model} cannot be read")),
                Some(files) if files.iter().any(|(digest, _)| !self.blobs.contains(digest)) => {
                    problems.push(format!("files of {model} are missing: is it being pulled or removed?"));
                }
                Some(_) => {}
            }
        }
        (!problems.is_empty()).then(|| problems.join("; "))
    }

    fn facts(&self) -> Map<String, Value> {
        let bytes = |files: &Option<Vec<(String, u64)>>| files.iter().flatten().map(|(_, n)| n).sum::<u64>();
        let models: Map<String, Value> =
            self.models.iter().map(|(name, files)| (name.clone(), json!(bytes(files)))).collect();
        Map::from_iter([
            ("models".to_owned(), Value::Object(models)),
            ("blobs".to_owned(), json!(self.blobs.len())),
        ])
    }
}

fn zeros(hasher: &mut Sha256, mut count: u64) {
    let block = [0u8; 4096];
    while count > 0 {
        let n = count.min(block.len() as u64);
        hasher.update(&block[..usize::try_from(n).unwrap_or(block.len())]);
        count -= n;
    }
}

/// `registry.ollama.ai/library/llama3/8b` as people write it: `llama3:8b`.
fn model_name(parts: &[&str]) -> String {
    let parts = parts.strip_prefix(&["registry.ollama.ai"]).unwrap_or(parts);
    let parts = parts.strip_prefix(&["library"]).unwrap_or(parts);
    match parts {
        [before @ .., tag] if !before.is_empty() => format!("{}:{tag}", before.join("/")),
        _ => parts.join("/"),
    }
}

/// The files that a model consists of, from its list.
fn files_of(text: &[u8]) -> Option<Vec<(String, u64)>> {
    let list: Value = serde_json::from_slice(text).ok()?;
    let layers = list.get("layers")?.as_array()?.iter();
    let file = |v: &Value| {
        let digest = v.get("digest")?.as_str()?.replace(':', "-");
        Some((digest, v.get("size").and_then(Value::as_u64).unwrap_or(0)))
    };
    layers.chain(list.get("config")).map(file).collect()
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    let mut library = Library::default();
    let entries = walk_tar_watched(&mut member.body, &mut library).map_err(|e| CheckError::Bad(chain(&e)))?;
    let facts = &member.component.facts;
    if facts.get("entries").is_some_and(|e| e.as_u64() != Some(entries)) {
        return Err(CheckError::Bad(format!("it has {entries} entries, the manifest says otherwise")));
    }
    if let Some(problem) = library.problem() {
        return Err(CheckError::Bad(problem));
    }
    if facts.get("models").is_some_and(|m| Some(m) != library.facts().get("models")) {
        return Err(CheckError::Bad("its models are not those of the manifest".into()));
    }
    Ok(())
}

fn restore(name: &str, component: &Component) -> String {
    held_copy::guide(name, component)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(library: &mut Library, path: &str, content: &[u8]) {
        library.file(path.as_bytes(), content.len() as u64, Mtime::default());
        library.data(0, content);
        library.end(true);
    }

    fn digest(content: &[u8]) -> String {
        hex::encode(Sha256::digest(content))
    }

    #[test]
    fn a_model_is_whole_when_all_its_files_are() {
        let mut library = Library::default();
        let (weights, config) = (b"weights".as_slice(), b"{}".as_slice());
        see(&mut library, &format!("models/blobs/sha256-{}", digest(weights)), weights);
        let list = json!({
            "config": {"digest": format!("sha256:{}", digest(config)), "size": 2},
            "layers": [{"digest": format!("sha256:{}", digest(weights)), "size": 7}]
        });
        let path = "models/manifests/registry.ollama.ai/library/llama3/8b";
        see(&mut library, path, list.to_string().as_bytes());
        assert!(library.problem().unwrap().contains("llama3:8b"));
        see(&mut library, &format!("models/blobs/sha256-{}", digest(config)), config);
        assert_eq!(library.problem(), None);
        assert_eq!(library.facts()["models"], json!({"llama3:8b": 9}));
    }

    #[test]
    fn a_file_that_is_not_its_name_is_found_and_holes_count_as_zeros() {
        let mut library = Library::default();
        see(&mut library, &format!("models/blobs/sha256-{}", digest(b"other")), b"content");
        assert!(library.problem().unwrap().contains("digests"));
        let mut library = Library::default();
        let name = format!("models/blobs/sha256-{}", digest(b"\0\0\0\0ab\0\0"));
        library.file(name.as_bytes(), 8, Mtime::default());
        library.data(4, b"ab");
        library.end(true);
        assert_eq!(library.problem(), None);
        assert_eq!(library.blobs.len(), 1);
    }

    #[test]
    fn models_are_named_as_people_write_them() {
        assert_eq!(model_name(&["registry.ollama.ai", "library", "llama3", "8b"]), "llama3:8b");
        assert_eq!(model_name(&["registry.ollama.ai", "me", "mine", "latest"]), "me/mine:latest");
        assert_eq!(model_name(&["hf.co", "a", "b", "Q4"]), "hf.co/a/b:Q4");
    }
}
