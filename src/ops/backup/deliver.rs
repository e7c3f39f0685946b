//! From the archive into every store of the tier, each on its own: a store that has it and proved it is committed, and
//! does not wait for a slow one. What a store still lacks stays in the spool.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{BackupError, BackupPlan, Failure, StoreResult, Target, World, store_failed};
use crate::archive::compress::Reserve;
use crate::archive::pack::Packed;
use crate::archive::seal::{SealError, seal};
use crate::cancel::Interrupted;
use crate::delivery::{self, Attempt, DeliveryError, Parcel, Place, Receipt};
use crate::hint::chain;
use crate::id::BackupName;
use crate::manifest::{Encryption, Manifest};
use crate::progress::{Event, What};
use crate::setup::Setup;
use crate::spool::{Entry, Pending, Slot, Spool};
use crate::staging::{Staging, StagingError};
use crate::store;
use crate::units::show_bytes;

/// Where the archive is packed: in the spool, from where it can be delivered later; or in staging, where the spool has
/// no room or nobody waits for it.
pub(super) enum Bench {
    Spool(Slot),
    Staging(PathBuf),
}

impl Bench {
    pub fn prepare(
        setup: &Setup,
        plan: &BackupPlan<'_>,
        bytes: u64,
        staging: &Staging,
        name: &BackupName,
        world: &World<'_>,
    ) -> Self {
        let in_staging = Self::Staging(staging.dir().to_owned());
        if !plan.targets.iter().any(Target::is_configured) {
            return in_staging;
        }
        let spool = Spool::new(&setup.agent.spool_dir, setup.agent.spool_limit);
        // Plain and sealed, where both are wanted.
        let forms = [true, false].iter().filter(|s| plan.targets.iter().any(|t| t.sealed == **s)).count();
        let bytes = bytes.saturating_mul(forms as u64);
        let slot = spool.sweep().and_then(|_| spool.has_room(bytes)).and_then(|room| match room {
            true => spool.begin(name).map(Some),
            false => Ok(None),
        });
        let why = match slot {
            Ok(Some(slot)) => return Self::Spool(slot),
            Ok(None) => format!("{} would be over {}", show_bytes(bytes), show_bytes(spool.limit())),
            Err(e) => chain(&e),
        };
        let text =
            format!("The spool does not take {name} ({why}): what a store refuses now will not be kept");
        world.monitor.event(Event::new(What::Warning, text).backup(name));
        in_staging
    }

    /// What stays free of its disk.
    pub fn reserve(&self) -> Result<Reserve, StagingError> {
        let dir = self.dir();
        Reserve::of(dir).map_err(|source| StagingError::Unusable { path: dir.to_owned(), source })
    }

    pub fn dir(&self) -> &std::path::Path {
        match self {
            Self::Spool(slot) => slot.dir(),
            Self::Staging(dir) => dir,
        }
    }
}

/// The archive in every form that a store wants, and the spool's hold on it.
pub(super) struct Shipment {
    parcels: Vec<Parcel>,
    /// Why there is no sealed one, where a store wants it.
    unsealed: Option<Failure>,
    entry: Option<Mutex<Entry>>,
    /// Stores to which something was sent.
    begun: Mutex<BTreeSet<String>>,
    /// Without an entry the archive goes with it, at the end.
    _slot: Option<Slot>,
}

impl Shipment {
    /// Seals what is to be sealed, and enters it into the spool. What fails there costs the stores that want it sealed, or
    /// the second try, never the others. `failed`: stores that were found unusable before.
    pub fn prepare(
        setup: &Setup,
        plan: &BackupPlan<'_>,
        manifest: &Manifest,
        packed: Packed,
        bench: Bench,
        failed: &[StoreResult],
        world: &World<'_>,
    ) -> Result<Self, BackupError> {
        let name = &manifest.backup_name;
        let wants = |sealed: bool| plan.targets.iter().any(|t| t.sealed == sealed);
        let (mut parcels, mut unsealed) = (Vec::new(), None);
        if wants(true) {
            match sealed(setup, name, &packed, &bench.dir().join(name.sealed_archive()), world) {
                Ok(parcel) => parcels.push(parcel),
                Err(SealError::Interrupted(i)) => return Err(i.into()),
                Err(e) => unsealed = Some(Failure::of(&e, world)),
            }
        }
        // What is not sealed today waits as it is: whoever delivers it seals it first.
        if wants(false) || unsealed.is_some() {
            parcels.push(Parcel { packed, encryption: Encryption::default() });
        } else {
            // What cannot be removed now goes with the rest of the directory.
            let _ = std::fs::remove_file(&packed.path);
        }
        let (mut entry, mut kept) = (None, None);
        if let Bench::Spool(mut slot) = bench {
            let error = |store: &str| {
                let f = failed.iter().find(|f| f.store == store)?;
                f.failure.as_ref().map(|f| f.error.clone())
            };
            let pending = |t: &Target<'_>| {
                let store = t.store().name().to_owned();
                let sealed = t.sealed && unsealed.is_none();
                Pending { error: error(&store), store, dir: t.dir.clone(), sealed, begun: false }
            };
            let pending = plan.targets.iter().map(pending).collect();
            match slot.enter(manifest, &parcels.iter().collect::<Vec<_>>(), pending) {
                Ok(entered) => entry = Some(Mutex::new(entered)),
                Err(e) => {
                    let text = format!(
                        "The spool does not take {name} ({}): what a store refuses now will not be kept",
                        chain(&e)
                    );
                    world.monitor.event(Event::new(What::Warning, text).backup(name));
                }
            }
            kept = Some(slot);
        }
        Ok(Self { parcels, unsealed, entry, begun: Mutex::default(), _slot: kept })
    }

    fn parcel(&self, sealed: bool) -> Option<&Parcel> {
        self.parcels.iter().find(|p| p.encryption.is_sealed() == sealed)
    }

    /// What stands for the archive in a summary: the plain one where there is one.
    pub fn packed(&self) -> Option<&Packed> {
        self.parcel(false).or_else(|| self.parcel(true)).map(|p| &p.packed)
    }

    pub fn is_spooled(&self) -> bool {
        self.entry.is_some()
    }

    /// Notes in the spool how a delivery came out. An entry that could not be written says too little, never too much:
    /// a store that has the backup already is found to have it.
    fn note(&self, store: &str, outcome: Result<(), &str>, world: &World<'_>) {
        let Some(entry) = &self.entry else { return };
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        let noted = match outcome {
            Ok(()) => entry.delivered(store),
            Err(error) => entry.failed(store, error),
        };
        if let Err(e) = noted {
            let text = format!("The spool could not be brought up to date: {}", chain(&e));
            world.monitor.event(Event::new(What::Warning, text).store(store));
        }
    }

    /// Notes that something is sent to a store: what has the name there is ours from now on.
    fn begin(&self, store: &str, world: &World<'_>) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).insert(store.to_owned());
        if let Some(entry) = &self.entry {
            note_begun(&mut entry.lock().unwrap_or_else(PoisonError::into_inner), store, world);
        }
    }

    fn has_begun(&self, store: &str) -> bool {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).contains(store)
    }

    /// Gives the spool's hold up: nobody is to have this backup.
    fn abandon(&self) {
        if let Some(entry) = &self.entry {
            let entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
            // Otherwise `sync` finds it, which harms nobody.
            let _ = entry.remove();
        }
    }
}

/// The archive `plain`, sealed as the new file `to`.
pub(in crate::ops) fn sealed(
    setup: &Setup,
    name: &BackupName,
    plain: &Packed,
    to: &Path,
    world: &World<'_>,
) -> Result<Parcel, SealError> {
    let recipients = &setup.encryption.recipients;
    world.monitor.phase("sealing", Some(plain.bytes));
    world.monitor.event(Event::new(What::Packing, format!("Sealing {name}")).backup(name));
    let reserve = Reserve::of(to.parent().unwrap_or(to))
        .map_err(|source| SealError::Write { path: to.to_owned(), source })?;
    let packed = seal(&plain.path, to, recipients, reserve, world.cancel, world.monitor)?;
    let encryption = Encryption {
        method: Some("age".to_owned()),
        recipients: recipients.texts().map(str::to_owned).collect(),
    };
    Ok(Parcel { packed, encryption })
}

/// Notes in the spool that something is sent. Without that note a later try refuses what this one leaves there, and
/// somebody has to look; so it is no reason not to send.
pub(in crate::ops) fn note_begun(entry: &mut Entry, store: &str, world: &World<'_>) {
    if let Err(e) = entry.begun(store) {
        let text = format!("The spool could not be brought up to date: {}", chain(&e));
        world.monitor.event(Event::new(What::Warning, text).store(store));
    }
}

/// Delivers to all usable stores at once. After an interrupt what is committed stays, and what was begun in parts goes
/// on with `sync`; else nothing is left.
pub(super) fn all(
    usable: &[&Target<'_>],
    manifest: &Manifest,
    shipment: &Shipment,
    make_room: &MakeRoom<'_>,
    world: &World<'_>,
) -> Result<Vec<StoreResult>, Interrupted> {
    let bytes: u64 = usable.iter().filter_map(|t| shipment.parcel(t.sealed)).map(|p| p.packed.bytes).sum();
    // Written once, read back once.
    world.monitor.phase("delivering", Some(2 * bytes));
    let results: Vec<StoreResult> = std::thread::scope(|scope| {
        let running: Vec<_> = usable
            .iter()
            .map(|target| scope.spawn(|| one(target, manifest, shipment, make_room, world)))
            .collect();
        let joined = running.into_iter().zip(usable).map(|(thread, target)| {
            thread.join().unwrap_or_else(|_| {
                let failure = Failure::text("internal error: the delivery panicked");
                store_failed(target.store().name(), failure, world)
            })
        });
        joined.collect()
    });
    // A signal that comes when every store has it comes too late.
    let all = !results.is_empty() && results.iter().all(|r| r.receipt.is_some());
    if let (Err(interrupted), false) = (world.cancel.check(), all) {
        let name = &manifest.backup_name;
        let never = crate::cancel::Cancel::default();
        let parts_left =
            |t: &&Target<'_>| delivery::left_parts(Place { store: t.store(), dir: &t.dir }, name, &never);
        let committed = results.iter().any(|r| r.receipt.is_some());
        if !committed && !usable.iter().any(parts_left) {
            shipment.abandon();
        }
        return Err(interrupted);
    }
    Ok(results)
}

/// Deletes what may go from a store that is full; says whether anything went.
type MakeRoom<'a> = dyn Fn(&str) -> bool + Sync + 'a;

fn one(
    target: &Target<'_>,
    manifest: &Manifest,
    shipment: &Shipment,
    make_room: &MakeRoom<'_>,
    world: &World<'_>,
) -> StoreResult {
    let store = target.store();
    let first = try_one(target, manifest, shipment, world);
    let full = matches!(&first, Err(DeliveryError::Store(e)) if e.is_full()) && target.is_configured();
    let delivered = match full && make_room(store.name()) {
        true => try_one(target, manifest, shipment, world),
        false => first,
    };
    match delivered {
        Ok(receipt) => {
            shipment.note(store.name(), Ok(()), world);
            committed(&receipt, manifest, world);
            StoreResult {
                store: store.name().to_owned(),
                receipt: Some(receipt),
                failure: None,
                spooled: false,
            }
        }
        Err(e) => {
            let failure = Failure::of(&e, world);
            shipment.note(store.name(), Err(&failure.error), world);
            StoreResult { spooled: shipment.is_spooled(), ..store_failed(store.name(), failure, world) }
        }
    }
}

/// Tells that a store has the backup.
pub(in crate::ops) fn committed(receipt: &Receipt, manifest: &Manifest, world: &World<'_>) {
    let name = &manifest.backup_name;
    let text = format!(
        "Committed {name} to {}: {}, {}, read back",
        receipt.store,
        show_bytes(receipt.bytes),
        manifest.state
    );
    let event = Event::new(What::Committed, text).backup(name).store(&receipt.store).tier(&manifest.tier);
    let mut event = event.bytes(receipt.bytes);
    event.duration_ms = Some(receipt.duration_ms);
    world.monitor.event(event);
}

fn try_one(
    target: &Target<'_>,
    manifest: &Manifest,
    shipment: &Shipment,
    world: &World<'_>,
) -> Result<Receipt, DeliveryError> {
    let Some(parcel) = shipment.parcel(target.sealed) else {
        let (why, hint) = Failure::split(shipment.unsealed.clone());
        return Err(DeliveryError::NotSealed { why: why.unwrap_or_default(), hint });
    };
    let store = target.store();
    let begun = || shipment.begin(store.name(), world);
    let attempt = if shipment.has_begun(store.name()) { Attempt::Again } else { Attempt::First(&begun) };
    bring(Place { store, dir: &target.dir }, manifest, parcel, attempt, world)
}

/// One delivery with what goes before it: clears what killed runs left. What is a directory may have been unmounted since
/// it was looked at, and is another directory then.
pub(in crate::ops) fn bring(
    to: Place<'_>,
    manifest: &Manifest,
    parcel: &Parcel,
    attempt: Attempt<'_>,
    world: &World<'_>,
) -> Result<Receipt, DeliveryError> {
    let (store, name) = (to.store, &manifest.backup_name);
    let event = Event::new(What::Delivering, format!("Delivering {name} to {}", store.name()));
    world.monitor.event(event.backup(name).store(store.name()));
    let is_ours = || match store.local_root() {
        Some(_) => store::check_marker(store, world.owner, world.cancel),
        None => Ok(()),
    };
    is_ours()?;
    for left in store.sweep(to.dir)? {
        let text = format!("Removed what a killed run left in {}: {left}", store.name());
        world.monitor.event(Event::new(What::LeftoverRemoved, text).store(store.name()));
    }
    let receipt = delivery::deliver(to, manifest, parcel, attempt, world.cancel, world.monitor, world.now)?;
    is_ours()?;
    Ok(receipt)
}
