//! A restore on a machine that has no configuration: the one in the backup takes its place. What could go wrong: age does not
//! say who sealed, so it may be anybody's; it chooses nothing of where this machine itself works, and what it would run is
//! told before a person agrees.

use std::path::{Path, PathBuf};

use super::{Chosen, Fetched, Request};
use crate::config::{Agent, Problem};
use crate::hint::Hint;
use crate::id::show_name;
use crate::ops::World;
use crate::reach::{OWN, Reach};
use crate::setup::{self, Machine, Setup};
use crate::source::{self, OwnConfig, SourceError};
use crate::store::SSH_CONFIG;

#[derive(Debug, thiserror::Error)]
pub enum BareError {
    #[error("without a configuration on this machine only the configuration can come back, and {0} is none")]
    NotConfiguration(String),
    #[error("{backup} does not hold the configuration as it was, only copies without its secrets")]
    NoOriginals { backup: String },
    #[error("{why}")]
    Closed { why: String, hint: Option<String> },
    /// `others`: what may be it, under another name.
    #[error("{} is not among the originals of {backup}", path.display())]
    NoConfig { backup: String, path: PathBuf, others: Vec<PathBuf> },
    #[error("the configuration in {backup} has a problem: {}", problems.first().map(ToString::to_string).unwrap_or_default())]
    Problems { backup: String, problems: Vec<Problem> },
    #[error(transparent)]
    Source(#[from] SourceError),
}

impl Hint for BareError {
    fn hint(&self) -> Option<String> {
        let by_hand = "write it elsewhere and put it together by hand: --to DIR instead of --restore-config";
        Some(match self {
            Self::NotConfiguration(_) => {
                "first: --component configuration --restore-config; then, with it in place, the rest".into()
            }
            Self::NoOriginals { .. } => {
                format!("[encryption] of that machine named no recipient when it was made; {by_hand}")
            }
            Self::Closed { hint, .. } => return hint.clone(),
            Self::NoConfig { others, .. } => {
                let shown = |path: &PathBuf| show_name(path.as_os_str().as_encoded_bytes());
                match others.iter().find(|path| Reach::default().judge(path).is_ok()) {
                    Some(it) => format!("it may be {0}: tars-backup --config {0} restore …", shown(it)),
                    None if others.is_empty() => by_hand.into(),
                    None => format!(
                        "it may be {}, and only what lay below {OWN} comes back by itself: {by_hand}",
                        others.iter().map(shown).collect::<Vec<_>>().join(" or ")
                    ),
                }
            }
            Self::Problems { .. } => format!("another version of tars-backup may have written it; {by_hand}"),
            Self::Source(e) => return e.hint(),
        })
    }
}

/// The configuration in the backup, made real. `here`: where this machine works, whatever that configuration says.
pub fn setup_of(
    fetched: &Fetched,
    chosen: &[Chosen<'_>],
    request: &Request,
    config: &Path,
    machine: &Machine<'_>,
    here: &Agent,
    world: &World<'_>,
) -> Result<Setup, BareError> {
    let backup = fetched.manifest.backup_name.to_string();
    if let Some(other) = chosen.iter().find(|c| c.component.kind != source::CONFIGURATION) {
        return Err(BareError::NotConfiguration(other.name.to_owned()));
    }
    let mut why = BareError::NoOriginals { backup: backup.clone() };
    for c in chosen {
        let work = fetched.work(c.name, c.component, request);
        let files = match source::own_config(&work, config, world.keyring, world.vault, world.cancel)? {
            OwnConfig::None => continue,
            OwnConfig::Closed(text, hint) => {
                why = BareError::Closed { why: text, hint };
                continue;
            }
            OwnConfig::Elsewhere(others) => {
                why = BareError::NoConfig { backup: backup.clone(), path: config.to_owned(), others };
                continue;
            }
            OwnConfig::Files(files) => files,
        };
        let mut setup =
            setup::load(&files, machine).map_err(|problems| BareError::Problems { backup, problems })?;
        setup.agent = Agent {
            state_dir: here.state_dir.clone(),
            staging_dir: here.staging_dir.clone(),
            runtime_dir: here.runtime_dir.clone(),
            spool_dir: here.spool_dir.clone(),
            ..setup.agent
        };
        return Ok(setup);
    }
    Err(why)
}

/// Where the Compose files of the stack lay: by what its containers said, and by the names of its configuration files.
pub fn compose_dirs(setup: &Setup, fetched: &Fetched) -> Vec<PathBuf> {
    let labelled = fetched.manifest.details.values().filter_map(|c| {
        let dir = c.facts.get("compose")?.get("working_dir")?.as_str()?;
        Some(PathBuf::from(dir))
    });
    let is_compose = |path: &&PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        name.contains("compose") && (name.ends_with(".yml") || name.ends_with(".yaml"))
    };
    let files = setup.sources.iter().flat_map(|s| s.source.files()).filter(is_compose);
    let mut dirs: Vec<PathBuf> =
        labelled.chain(files.filter_map(|f| f.parent().map(Path::to_owned))).collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

/// What a configuration runs on its host, for a person who has to agree to it.
pub fn programs_of(setup: &Setup) -> Vec<String> {
    let sources = setup.sources.iter().filter(|s| s.kind == source::COMMAND);
    let mut all: Vec<String> = sources.map(|s| format!("the command of source {}", s.name)).collect();
    if let Some(program) = setup.hooks.on_failure.first() {
        all.push(format!("{program} when a unit fails"));
    }
    for store in &setup.stores {
        let files = store.kit().map(|kit| kit.files).unwrap_or_default();
        for (_, path) in files.iter().filter(|(what, _)| *what == SSH_CONFIG) {
            let (name, path) = (store.name(), path.display());
            all.push(format!("what the ssh settings of store {name} ({path}) say, which may be any program"));
        }
    }
    all
}
