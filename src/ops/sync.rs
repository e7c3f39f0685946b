//! Brings what waits in the spool to the stores that still lack it, and to each store of a tier what the others have and it
//! should have. What could go wrong: to give up what waits because it could not be delivered today; an entry goes only when
//! every store has it. And to send in the clear what waits since before the store was to get nothing but sealed archives;
//! so that is asked anew.

mod complete;

use std::fs::File;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::World;
use super::backup::{Failure, bring, committed, note_begun, sealed, seals};
use super::carry::{self, There};
use super::pins::{self, PinError};
use crate::cancel::Interrupted;
use crate::delivery::{self, Attempt, DeliveryError, Parcel, Place, Receipt};
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
    if let Err(e) = spool.sweep() {
        // What cannot be looked at stays, and shows below; it does not keep the others waiting.
        let text = format!("The spool could not be cleared: {}", chain(&e));
        world.monitor.event(Event::new(What::Warning, text));
    }
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
        let done = one(&mut entry, &pending, setup, world);
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

fn one(entry: &mut Entry, pending: &Pending, setup: &Setup, world: &World<'_>) -> Result<Receipt, Failure> {
    let Some(store) = setup.store(&pending.store) else {
        return Err(Failure {
            error: format!("there is no store {:?} in the configuration any more", pending.store),
            hint: Some("name it in [stores] again".into()),
        });
    };
    let failed = |e: StoreError| Failure::of(&e, world);
    store::check_marker(store, world.owner, world.cancel).map_err(failed)?;
    let to = Place { store, dir: &pending.dir };
    if pending.begun && (pending.sealed || seals(setup, store)) {
        // It may have been sealed another time, and nothing but that tells the two apart.
        let ours = entry.parcel(true).map(|p| p.packed.sha256);
        match carry::there(to, entry.manifest(), world.cancel).map_err(failed)? {
            There::Good(receipt) if ours.as_ref() != Some(&receipt.sha256) => return Ok(receipt),
            _ => {}
        }
    }
    let parcel = match pending.sealed || !seals(setup, store) {
        true => entry.parcel(pending.sealed),
        false => seal_first(entry, store.name(), setup, world)?,
    };
    let parcel =
        parcel.ok_or_else(|| Failure { error: "its archive is not in the spool".into(), hint: None })?;
    let (manifest, bytes) = (entry.manifest().clone(), parcel.packed.bytes);
    let phase = format!("delivering {} to {}", manifest.backup_name, store.name());
    world.monitor.phase(&phase, Some(2 * bytes));
    let entry = Mutex::new(entry);
    let begun = || {
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        note_begun(&mut entry, store.name(), world);
    };
    let attempt = if pending.begun { Attempt::Again } else { Attempt::Late(&begun) };
    bring(to, &manifest, &parcel, attempt, world).map_err(|e| Failure::of(&e, world))
}

/// The archive sealed, which waits unsealed for a store that gets none unsealed any more. For a while there are both: the
/// limit of the spool is for what comes in, this is how it goes out.
fn seal_first(
    entry: &mut Entry,
    store: &str,
    setup: &Setup,
    world: &World<'_>,
) -> Result<Option<Parcel>, Failure> {
    let parcel = match (entry.parcel(true), entry.parcel(false)) {
        (Some(sealed), _) => sealed,
        (None, None) => return Ok(None),
        (None, Some(Parcel { packed: plain, .. })) => {
            // What lay here for days is compared before it is sealed: afterwards nobody could tell.
            let read = File::open(&plain.path)
                .and_then(|file| delivery::digest(file, world.cancel, world.monitor))
                .map_err(|e| Failure::of(&DeliveryError::Archive(e), world))?;
            if read != (plain.bytes, plain.sha256.clone()) {
                let changed = DeliveryError::Changed(plain.path.display().to_string());
                return Err(Failure::of(&changed, world));
            }
            let to = entry.path(true);
            // Half of one, by a run that was killed; what cannot be removed fails the sealing.
            let _ = std::fs::remove_file(&to);
            sealed(setup, &entry.manifest().backup_name, &plain, &to, world)
                .map_err(|e| Failure::of(&e, world))?
        }
    };
    entry.seal_for(store, &parcel).map_err(|e| Failure::of(&e, world))?;
    Ok(Some(parcel))
}
