//! The copy of what is there before a restore: an ordinary backup of these components. What could go wrong: it cannot be
//! made, which is often why one restores; then what was there is not removed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::RestoreError;
use crate::docker::hold::Holds;
use crate::hint::chain;
use crate::id::BackupName;
use crate::manifest::{Component, ComponentState, Manifest};
use crate::ops::World;
use crate::ops::backup::{self, BackupError, Request};
use crate::setup::Setup;
use crate::staging::make_private;

/// What of the old data is saved.
#[derive(Debug, Default)]
pub(super) struct Safety {
    pub archive: Option<String>,
    /// Components that are not, or not all of them, and why.
    lacking: BTreeMap<String, String>,
}

impl Safety {
    /// Why the old data of a component is nowhere but beside the new; None when it is saved.
    pub fn lacks(&self, component: &str) -> Option<&str> {
        self.lacking.get(component).map(String::as_str)
    }
}

/// Kept whatever their age, and those younger than this whatever their number.
const NEWEST: usize = 3;
const YOUNG: Duration = Duration::from_secs(14 * 24 * 3600);

/// `covers`: whether what lies in the copy is all of a component that will be replaced.
pub(super) fn copy(
    setup: &Setup,
    components: &[&str],
    covers: impl Fn(&str, &Component) -> bool,
    holds: &Holds<'_>,
    world: &World<'_>,
) -> Result<Safety, RestoreError> {
    let dir = setup.agent.state_dir.join("pre-restore");
    make_private(&dir)?;
    let request = Request {
        output_dir: Some(dir.clone()),
        only: components.iter().map(|c| (*c).to_owned()).collect(),
        any_tier: true,
        tags: vec!["pre-restore".to_owned()],
        private: true,
        ..Request::default()
    };
    let none = |why: String| {
        let why = world.vault.scrub(&why);
        let lacking = components.iter().map(|c| ((*c).to_owned(), why.clone())).collect();
        Ok(Safety { archive: None, lacking })
    };
    let plan = match backup::plan(setup, &request, world.exe) {
        Ok(plan) => plan,
        Err(e) => return none(chain(&e)),
    };
    let outcome = match backup::run_inside(setup, &plan, holds, world) {
        Ok(outcome) => outcome,
        Err(BackupError::Interrupted(i)) => return Err(i.into()),
        Err(e) => return none(chain(&e)),
    };
    let stored = outcome.name.as_ref().filter(|_| outcome.stores.iter().any(|s| s.receipt.is_some()));
    let Some(name) = stored else {
        let failures = outcome.stores.iter().filter_map(|s| s.failure.as_ref());
        let of_components = outcome.components.iter().filter_map(|c| c.failure.as_ref());
        let why: Vec<&str> = of_components.chain(failures).map(|f| f.error.as_str()).collect();
        return none(why.join("; "));
    };
    let manifest = std::fs::read(dir.join(name.manifest_file()))
        .map_err(|e| e.to_string())
        .and_then(|text| Manifest::read_sidecar(&text).map_err(|e| chain(&e)));
    let why_not = |component: &str| -> Option<String> {
        let found = match &manifest {
            Ok(manifest) => manifest.details.get(component),
            Err(why) => return Some(format!("its manifest: {why}")),
        };
        match found.filter(|c| c.state == ComponentState::Whole) {
            Some(c) if covers(component, c) => None,
            Some(_) => Some("the source does not capture all that is replaced".to_owned()),
            None => {
                let result = outcome.components.iter().find(|c| c.name == component);
                let failure = result.and_then(|c| c.failure.as_ref()).map(|f| f.error.clone());
                Some(failure.unwrap_or_else(|| "it is not in the copy".to_owned()))
            }
        }
    };
    let lacking = components.iter().filter_map(|c| Some(((*c).to_owned(), why_not(c)?))).collect();
    let archive = Some(dir.join(name.archive()).display().to_string());
    expire(&dir, (world.now)());
    Ok(Safety { archive, lacking })
}

/// Removes old safety copies. What cannot be removed now goes next time.
fn expire(dir: &Path, now: Timestamp) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut objects: Vec<(BackupName, PathBuf)> = Vec::new();
    for entry in entries.flatten() {
        if let Some(name) = BackupName::of_object(&entry.file_name().to_string_lossy()) {
            objects.push((name, entry.path()));
        }
    }
    let mut names: Vec<BackupName> = objects.iter().map(|(n, _)| n.clone()).collect();
    names.sort();
    names.dedup();
    let limit = BackupName::at(now - YOUNG);
    let candidates = names.len().saturating_sub(NEWEST);
    let old: BTreeSet<BackupName> = names.into_iter().take(candidates).filter(|n| *n < limit).collect();
    // The commit goes first.
    objects.sort_by_key(|(_, path)| !path.to_string_lossy().ends_with(".manifest.json"));
    for (_, path) in objects.iter().filter(|(name, _)| old.contains(name)) {
        let _ = std::fs::remove_file(path);
    }
}
