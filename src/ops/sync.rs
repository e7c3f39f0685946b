//! Brings what waits in the spool to the stores that still lack it, and to each store of a tier what the others have and it
//! should have. What could go wrong: to give up what waits because it
//! could not be delivered today; an entry goes only when every store has it.

mod complete;

use serde::Serialize;

use super::World;
use super::backup::{Failure, bring, committed};
use super::pins::{self, PinError};
use crate::cancel::Interrupted;
use crate::delivery::{Attempt, Place, Receipt};
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::progress::{Event, What};
use crate::run_guard::RunGuard;
use crate::setup::Setup;
use crate::spool::{Entry, Pending, Spool, SpoolError};
use crate::store::{self, StoreError};

/// How one delivery came out.
#[derive(Debug, Serialize)]
pub struct Delivered {
    pub name: BackupName,
    pub store: String,
    pub receipt: Option<Receipt>,
    #[serde(flatten)]
    pub failure: Option<Failure>,
}

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub deliveries: Vec<Delivered>,
    /// Entries of the spool that cannot be read.
    pub unreadable: Vec<Failure>,
}

impl Outcome {
    pub fn delivered(&self) -> usize {
        self.deliveries.iter().filter(|d| d.receipt.is_some()).count()
    }

    /// Whether nothing waits any more.
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_empty() && self.delivered() == self.deliveries.len()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Pins(PinError),
}

impl From<PinError> for SyncError {
    fn from(e: PinError) -> Self {
        match e {
            PinError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Pins(e),
        }
    }
}

impl Hint for SyncError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Spool(e) => e.hint(),
            Self::Pins(e) => e.hint(),
            Self::Interrupted(_) => None,
        }
    }
}

/// Delivers all that waits, and then what a store lacks that another one of its tier has. The guard proves that nobody else does.
pub fn run(setup: &Setup, _guard: &RunGuard, world: &World<'_>) -> Result<Outcome, SyncError> {
    let spool = Spool::new(&setup.agent.spool_dir, setup.agent.spool_limit);
    spool.sweep()?;
    let mut outcome = Outcome { deliveries: Vec::new(), unreadable: Vec::new() };
    for entry in spool.entries()? {
        match entry {
            Ok(entry) => outcome.deliveries.extend(of_entry(entry, setup, world)?),
            Err(e) => outcome.unreadable.push(Failure::of(&e, world)),
        }
    }
    complete::run(setup, world, &mut outcome)?;
    for (_, e) in pins::settle(setup, world)? {
        outcome.unreadable.push(Failure::of(&e, world));
    }
    Ok(outcome)
}

/// Delivers to each store that the entry waits for.
pub(super) fn of_entry(
    mut entry: Entry,
    setup: &Setup,
    world: &World<'_>,
) -> Result<Vec<Delivered>, Interrupted> {
    let mut delivered = Vec::new();
    let name = entry.manifest().backup_name.clone();
    for pending in entry.pending().to_vec() {
        world.cancel.check()?;
        let done = one(&entry, &pending, setup, world);
        world.cancel.check()?;
        let (noted, receipt, failure) = match done {
            Ok(receipt) => {
                committed(&receipt, entry.manifest(), world);
                (entry.delivered(&pending.store), Some(receipt), None)
            }
            Err(failure) => {
                let text = format!("{name} still waits for {}: {}", pending.store, failure.error);
                world.monitor.event(Event::new(What::StoreFailed, text).store(&pending.store).backup(&name));
                (entry.failed(&pending.store, &failure.error), None, Some(failure))
            }
        };
        if let Err(e) = noted {
            let text = format!("The spool could not be brought up to date: {}", chain(&e));
            world.monitor.event(Event::new(What::Warning, text).backup(&name));
        }
        delivered.push(Delivered { name: name.clone(), store: pending.store, receipt, failure });
    }
    Ok(delivered)
}

fn one(entry: &Entry, pending: &Pending, setup: &Setup, world: &World<'_>) -> Result<Receipt, Failure> {
    let Some(store) = setup.store(&pending.store) else {
        return Err(Failure {
            error: format!("there is no store {:?} in the configuration any more", pending.store),
            hint: Some("name it in [stores] again".into()),
        });
    };
    let Some(parcel) = entry.parcel(pending.sealed) else {
        return Err(Failure { error: "its archive is not in the spool".into(), hint: None });
    };
    let failed = |e: StoreError| Failure::of(&e, world);
    store::check_marker(store, world.owner, world.cancel).map_err(failed)?;
    let (manifest, bytes) = (entry.manifest(), parcel.packed.bytes);
    let phase = format!("delivering {} to {}", manifest.backup_name, store.name());
    world.monitor.phase(&phase, Some(2 * bytes));
    let to = Place { store, dir: &pending.dir };
    bring(to, manifest, &parcel, Attempt::Again, world).map_err(|e| Failure::of(&e, world))
}
