//! From the archive into every store of the tier: delivered to all, then committed in each.

use super::{Failure, StoreResult, Target, World, store_failed};
use crate::archive::pack::Packed;
use crate::cancel::Interrupted;
use crate::delivery::{self, DeliveryError, Uncommitted};
use crate::id::BackupName;
use crate::manifest::Manifest;
use crate::progress::{Event, What};
use crate::store::StoreError;
use crate::units::show_bytes;

/// Delivers to all stores at once, each on its own; commits only after every one was tried, so that an interrupt
/// leaves either nothing or whole backups.
pub(super) fn all(
    usable: &[&Target<'_>],
    manifest: &Manifest,
    packed: &Packed,
    world: &World<'_>,
) -> Result<Vec<StoreResult>, Interrupted> {
    let name = &manifest.backup_name;
    // Written once, read back once.
    world.monitor.phase("delivering", Some(2 * packed.bytes * usable.len() as u64));
    let attempts: Vec<Result<Uncommitted, DeliveryError>> = std::thread::scope(|scope| {
        let running: Vec<_> =
            usable.iter().map(|target| scope.spawn(|| one(target, name, packed, world))).collect();
        running
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(DeliveryError::Archive(std::io::Error::other(
                        "internal error: the delivery panicked",
                    )))
                })
            })
            .collect()
    });
    if let Err(interrupted) = world.cancel.check() {
        for (target, attempt) in usable.iter().zip(attempts) {
            if let Ok(delivered) = attempt {
                delivered.withdraw(target.store());
            }
        }
        return Err(interrupted);
    }
    let mut results = Vec::new();
    for (target, attempt) in usable.iter().zip(attempts) {
        let store = target.store();
        let committed = attempt.and_then(|delivered| {
            delivery::commit(store, &target.dir, manifest, packed, delivered, (world.now)())
        });
        results.push(match committed {
            Ok(receipt) => {
                let text = format!(
                    "Committed {name} to {}: {}, {}, read back",
                    store.name(),
                    show_bytes(receipt.bytes),
                    manifest.state
                );
                let event =
                    Event::new(What::Committed, text).backup(name).store(store.name()).tier(&manifest.tier);
                let mut event = event.bytes(receipt.bytes);
                event.duration_ms = Some(receipt.duration_ms);
                world.monitor.event(event);
                StoreResult { store: store.name().to_owned(), receipt: Some(receipt), failure: None }
            }
            Err(e) => store_failed(store.name(), Failure::of(&e, world), world),
        });
    }
    Ok(results)
}

fn one(
    target: &Target<'_>,
    name: &BackupName,
    packed: &Packed,
    world: &World<'_>,
) -> Result<Uncommitted, DeliveryError> {
    let store = target.store();
    let event = Event::new(What::Delivering, format!("Delivering {name} to {}", store.name()));
    world.monitor.event(event.backup(name).store(store.name()));
    for left in store.sweep(&target.dir)? {
        let text = format!("Removed what a killed run left in {}: {left}", store.name());
        world.monitor.event(Event::new(What::LeftoverRemoved, text).store(store.name()));
    }
    if let Some(free) = store.free_bytes()?
        && free < packed.bytes
    {
        return Err(StoreError::Io {
            store: store.name().to_owned(),
            action: "write",
            object: name.archive(),
            source: std::io::Error::new(
                std::io::ErrorKind::StorageFull,
                format!("{} are free, {} are needed", show_bytes(free), show_bytes(packed.bytes)),
            ),
        }
        .into());
    }
    delivery::deliver(store, &target.dir, name, packed, world.cancel, world.monitor)
}
