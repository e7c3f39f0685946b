//! The configuration made real: settings, sources, stores and tiers out of TOML text, or all that is wrong with it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::{
    Agent, Archive, Doc, DockerSettings, Encryption, Hooks, Key, Places, Problem, Section, Survey, Tier,
    check_tiers, json_schema,
};
use crate::secret::SecretRef;
use crate::source::{self, Configured};
use crate::store::{self, Access, Store};

pub struct Setup {
    pub agent: Agent,
    /// Name of this machine, in manifests and below `hosts/`.
    pub host: String,
    pub archive: Archive,
    pub docker: DockerSettings,
    pub encryption: Encryption,
    pub hooks: Hooks,
    pub sources: Vec<Configured>,
    pub stores: Vec<Box<dyn Store>>,
    pub tiers: Vec<Tier>,
    /// Every key that can be set here, with the value in force.
    pub keys: Vec<Key>,
    /// Where the secrets of all keys are to be found, each once; without the identity that opens backups.
    pub secret_refs: Vec<SecretRef>,
    /// The files it was read from.
    pub files: Vec<PathBuf>,
    /// SHA-256 of their names and text.
    pub digest: String,
}

/// What the configuration cannot know by itself.
pub struct Machine<'a> {
    pub places: Places,
    pub cores: usize,
    /// Its name, where the configuration gives it none.
    pub host: String,
    pub access: &'a Access,
}

/// Reads `(path, text)` of all configuration files, in the order in which they override each other.
pub fn load(files: &[(PathBuf, String)], machine: &Machine<'_>) -> Result<Setup, Vec<Problem>> {
    let mut problems = Vec::new();
    let doc = Doc::parse(files, &mut problems);
    let survey = Rc::new(RefCell::new(Survey { problems, ..Survey::default() }));
    let root = Section::root(&doc, survey.clone());

    let agent = Agent::read(&root, &machine.places, machine.cores);
    let archive = Archive::read(&root);
    let docker = DockerSettings::read(&root);
    let encryption = Encryption::read(&root);
    let hooks = Hooks::read(&root);
    let sources = source::read_all(&root);
    let stores = store::read_all(&root, machine.access);
    let tiers = Tier::read_all(&root);
    let store_names: Vec<&str> = stores.iter().map(|s| s.name()).collect();
    let source_names: Vec<&str> = sources.iter().map(|s| s.name.as_str()).collect();
    for source in &sources {
        for tier in source.source.tiers() {
            if !tiers.iter().any(|t| t.name.as_str() == tier) {
                let known: Vec<&str> = tiers.iter().map(|t| t.name.as_str()).collect();
                let table = root.table("sources").table(source.name.as_str());
                table.problem(
                    "export",
                    format!("there is no tier {tier:?}"),
                    Some(format!("one of: {}", known.join(", "))),
                );
            }
        }
    }
    check_tiers(&root, &tiers, &store_names, &source_names, &agent.default_tier);
    root.finish();

    let survey = survey.take();
    if !survey.problems.is_empty() {
        let mut problems = survey.problems;
        problems.sort_by(|a, b| (&a.at.file, a.at.line).cmp(&(&b.at.file, b.at.line)));
        return Err(problems);
    }
    let host = agent.host.clone().unwrap_or_else(|| machine.host.clone());
    let secret_refs = secret_refs(survey.secrets, encryption.identity.as_ref());
    let (keys, digest, files) = (survey.keys, digest(files), doc.files.clone());
    Ok(Setup {
        agent,
        host,
        archive,
        docker,
        encryption,
        hooks,
        sources,
        stores,
        tiers,
        keys,
        secret_refs,
        files,
        digest,
    })
}

fn digest(files: &[(PathBuf, String)]) -> String {
    let mut hasher = Sha256::new();
    for (path, text) in files {
        hasher.update(path.as_os_str().as_encoded_bytes());
        hasher.update([0]);
        hasher.update(text.as_bytes());
        hasher.update([0]);
    }
    hex::encode(hasher.finalize())
}

/// What is referred to, each once. The identity is named as one wherever it stands: a key that opens backups is in none.
fn secret_refs(found: Vec<(String, SecretRef)>, identity: Option<&SecretRef>) -> Vec<SecretRef> {
    let mut refs: Vec<SecretRef> = Vec::new();
    for (_, reference) in found {
        if Some(&reference) != identity && !refs.contains(&reference) {
            refs.push(reference);
        }
    }
    refs
}

/// The settings of the agent, read past everything that is wrong elsewhere: for clearing up after a killed run.
pub fn agent_alone(files: &[(PathBuf, String)], machine: &Machine<'_>) -> (Agent, Vec<Problem>) {
    let mut problems = Vec::new();
    let doc = Doc::parse(files, &mut problems);
    let survey = Rc::new(RefCell::new(Survey { problems, ..Survey::default() }));
    let agent = Agent::read(&Section::root(&doc, survey.clone()), &machine.places, machine.cores);
    (agent, survey.take().problems)
}

/// Where a machine without any configuration works, and how it reaches its engine.
pub fn bare(machine: &Machine<'_>) -> (Agent, DockerSettings) {
    let doc = Doc::parse(&[], &mut Vec::new());
    let root = Section::root(&doc, Rc::default());
    (Agent::read(&root, &machine.places, machine.cores), DockerSettings::read(&root))
}

/// The hooks, read the same way: a mistake elsewhere is a failure that somebody wants to hear of.
pub fn hooks_alone(files: &[(PathBuf, String)]) -> Hooks {
    let doc = Doc::parse(files, &mut Vec::new());
    Hooks::read(&Section::root(&doc, Rc::default()))
}

/// Sources alone, with nothing else that a run knows: for what is brought back where nothing is live. `text` is a
/// configuration that has only them.
pub fn of_sources(
    text: &str,
    agent: &Agent,
    docker: &DockerSettings,
    host: &str,
) -> Result<Setup, Vec<Problem>> {
    let mut problems = Vec::new();
    let doc = Doc::parse(&[(PathBuf::new(), text.to_owned())], &mut problems);
    let survey = Rc::new(RefCell::new(Survey { problems, ..Survey::default() }));
    let root = Section::root(&doc, survey.clone());
    let sources = if text.is_empty() { Vec::new() } else { source::read_all(&root) };
    let (archive, encryption, hooks) = (Archive::read(&root), Encryption::read(&root), Hooks::read(&root));
    let problems = survey.take().problems;
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Setup {
        agent: agent.clone(),
        host: host.to_owned(),
        archive,
        docker: docker.clone(),
        encryption,
        hooks,
        sources,
        stores: Vec::new(),
        tiers: Vec::new(),
        keys: Vec::new(),
        secret_refs: Vec::new(),
        files: Vec::new(),
        digest: String::new(),
    })
}

impl Setup {
    pub fn tier(&self, name: &str) -> Option<&Tier> {
        self.tiers.iter().find(|t| t.name.as_str() == name)
    }

    pub fn store(&self, name: &str) -> Option<&dyn Store> {
        self.stores.iter().find(|s| s.name() == name).map(AsRef::as_ref)
    }
}

/// The JSON schema of a configuration file.
pub fn schema(machine: &Machine<'_>) -> Value {
    let (root, survey) = Section::blank("");
    Agent::read(&root, &machine.places, machine.cores);
    Archive::read(&root);
    DockerSettings::read(&root);
    Encryption::read(&root);
    Hooks::read(&root);
    Tier::read("name", &blank_at("tiers.*", &survey));
    let mut schema = json_schema("", &survey.borrow().keys);
    schema["properties"]["sources"] =
        json!({ "type": "object", "additionalProperties": { "oneOf": source::schemas() } });
    schema["properties"]["stores"] =
        json!({ "type": "object", "additionalProperties": { "anyOf": store::schemas(machine.access) } });
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("tars-backup configuration");
    schema
}

fn blank_at(path: &str, into: &Rc<RefCell<Survey>>) -> Section<'static> {
    Section::blank_into(path, into.clone())
}
