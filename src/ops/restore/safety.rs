//! The copy of what is there before a restore: an ordinary backup of these components. What could go wrong: it cannot be
//! made, which is often why one restores; then what was there is not removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::RestoreError;
use crate::docker::hold::Holds;
use crate::id::BackupName;
use crate::manifest::ComponentState;
use crate::ops::World;
use crate::ops::backup::{self, BackupError, Request};
use crate::setup::Setup;
use crate::staging::make_private;

/// What of the old data is saved.
#[derive(Debug, Default)]
pub(super) struct Safety {
    pub archive: Option<String>,
    lacking: BTreeSet<String>,
}

impl Safety {
    /// Whether the old data of a component is nowhere but beside the new.
    pub fn lacks(&self, component: &str) -> bool {
        self.lacking.contains(component)
    }
}

/// Kept whatever their age, and those younger than this whatever their number.
const NEWEST: usize = 3;
const YOUNG: Duration = Duration::from_secs(14 * 24 * 3600);

pub(super) fn copy(
    setup: &Setup,
    components: &[&str],
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
    let all = || components.iter().map(|c| (*c).to_owned()).collect::<BTreeSet<_>>();
    let plan = match backup::plan(setup, &request, world.exe) {
        Ok(plan) => plan,
        Err(_) => return Ok(Safety { archive: None, lacking: all() }),
    };
    let outcome = match backup::run_inside(setup, &plan, holds, world) {
        Ok(outcome) => outcome,
        Err(BackupError::Interrupted(i)) => return Err(i.into()),
        Err(_) => return Ok(Safety { archive: None, lacking: all() }),
    };
    let stored = outcome.stores.iter().any(|s| s.receipt.is_some());
    let saved = |name: &str| {
        stored && outcome.components.iter().any(|c| c.name == name && c.state == ComponentState::Whole)
    };
    let lacking = all().into_iter().filter(|name| !saved(name)).collect();
    let archive = outcome.name.filter(|_| stored).map(|name| dir.join(name.archive()).display().to_string());
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
