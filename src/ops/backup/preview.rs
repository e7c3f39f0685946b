//! What a run would do, found out without writing anything.

use serde::Serialize;

use super::prune::{self, Plot, PruneError};
use super::{BackupPlan, Failure, Target, TargetStore, World, connect, context, holds, own_dirs};
use crate::cancel::Interrupted;
use crate::ops::recover;
use crate::setup::Setup;
use crate::source::SourceError;
use crate::store::{self, Store, StoreError};

/// The plan of a run, and what would fail.
#[derive(Debug, Serialize)]
pub struct Preview {
    pub tier: String,
    pub components: Vec<PreviewComponent>,
    pub stores: Vec<PreviewStore>,
    /// What the rules would let go, per store.
    pub retention: Vec<Plot>,
    /// What a killed run left, and a run would undo first.
    pub pending: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct PreviewComponent {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub critical: bool,
    pub method: String,
    /// Bytes to be read, where that is cheap to know.
    pub bytes_in: Option<u64>,
    pub error: Option<String>,
    pub hint: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct PreviewStore {
    pub name: String,
    pub location: String,
    pub path: String,
    pub free_bytes: Option<u64>,
    pub error: Option<String>,
    pub hint: Option<String>,
}

impl Preview {
    /// Whether a run has a chance to be complete.
    pub fn is_ready(&self) -> bool {
        self.components.iter().all(|c| c.error.is_none()) && self.stores.iter().all(|s| s.error.is_none())
    }
}

pub fn preview(setup: &Setup, plan: &BackupPlan<'_>, world: &World<'_>) -> Result<Preview, Interrupted> {
    let docker = connect(setup, plan, world)?;
    let own_dirs = own_dirs(setup, plan);
    let holds = holds(&setup.agent, world);
    let mut components = Vec::new();
    for s in &plan.selected {
        let context = context(setup, plan.tier.name.as_str(), world, &docker, &holds, &own_dirs, None);
        let (bytes_in, failure) = match s.source.probe(&context) {
            Ok(bytes) => (bytes, None),
            Err(SourceError::Interrupted(i)) => return Err(i),
            Err(e) => (None, Some(Failure::of(&e, world))),
        };
        let (error, hint) = Failure::split(failure);
        components.push(PreviewComponent {
            name: s.name.to_string(),
            kind: s.kind,
            critical: s.critical,
            method: s.source.method(),
            bytes_in,
            error,
            hint,
        });
    }
    let mut stores = Vec::new();
    for target in &plan.targets {
        let looked = match &target.store {
            TargetStore::Configured(s) => {
                store::check_marker(*s, world.owner, world.cancel).and_then(|()| s.free_bytes())
            }
            TargetStore::Directory(s) => Ok(s.free_bytes().unwrap_or(None)),
        };
        let (free_bytes, failure) = match looked {
            Ok(free) => (free, None),
            Err(StoreError::Interrupted(i)) => return Err(i),
            Err(e) => (None, Some(Failure::of(&e, world))),
        };
        let (error, hint) = Failure::split(failure);
        stores.push(PreviewStore {
            name: target.store().name().to_owned(),
            location: target.store().location(),
            path: target.dir.clone(),
            free_bytes,
            error,
            hint,
        });
    }
    let pending = recover::pending(&setup.agent.dirs());
    let configured = plan.targets.iter().any(Target::is_configured) && !plan.is_handpicked();
    let request = prune::Request { tier: configured.then(|| plan.tier.name.to_string()), store: None };
    let retention = match request.tier.is_some().then(|| prune::plan(setup, &request, world)) {
        Some(Err(PruneError::Interrupted(i))) => return Err(i),
        Some(Ok(plots)) => plots,
        // What stops it is told by the stores above, or when it is asked for by itself.
        Some(Err(_)) | None => Vec::new(),
    };
    Ok(Preview { tier: plan.tier.name.to_string(), components, stores, retention, pending })
}
