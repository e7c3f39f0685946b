//! One deletion. What could go wrong: to die between two of its steps. So a backup is marked first, then loses its
//! manifest, which makes it invisible, then the rest, and the mark last: whatever is left tells that it is to go.

use serde::Serialize;

use crate::cancel::Cancel;
use crate::id::BackupName;
use crate::marks::{self, Mark, Pin, Trash, Verified};
use crate::ops::World;
use crate::progress::{self, Event};
use crate::store::{Store, StoreError, object};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Into the trash.
    Trash,
    /// Out of the trash, for ever.
    Delete,
    /// The rest of one whose deletion had broken off.
    Finish,
    /// What was never committed.
    Sweep,
}

#[derive(Debug, Clone, Serialize)]
pub struct Deed {
    pub name: BackupName,
    pub what: What,
    pub reason: String,
    pub done: bool,
    /// Everything in the store that belongs to the name.
    #[serde(skip)]
    objects: Vec<String>,
}

impl Deed {
    pub(super) fn new(name: &BackupName, what: What, reason: String, objects: Vec<String>) -> Self {
        Self { name: name.clone(), what, reason, done: false, objects }
    }

    /// `at_once`: what goes into the trash goes out of it too.
    pub(super) fn carry_out(
        &mut self,
        store: &dyn Store,
        dir: &str,
        at_once: bool,
        world: &World<'_>,
    ) -> Result<(), StoreError> {
        let name = &self.name;
        // It may have been pinned since the listing.
        if let Some(pin) = marks::read::<Pin>(store, dir, name, world.cancel)? {
            let over = |until| until <= (world.now)();
            if !pin.unwrap_or_default().until.is_some_and(over) {
                return Ok(());
            }
        }
        if self.what == What::Trash {
            let (time, reason) = (Some((world.now)()), self.reason.clone());
            match marks::set(store, dir, name, &Trash { time, reason }) {
                // A store without room for a mark still has to give room. Should we die between the manifest and the
                // rest, that is what was never committed, and is swept.
                Err(e) if at_once && e.is_full() => {}
                marked => marked?,
            }
        }
        if self.what != What::Trash || at_once {
            self.remove(store, dir, world.cancel)?;
            // The audit trail says what was done.
            if self.what == What::Trash {
                self.what = What::Delete;
            }
        }
        self.done = true;
        Ok(())
    }

    fn remove(&self, store: &dyn Store, dir: &str, cancel: &Cancel) -> Result<(), StoreError> {
        let (manifest, mark) = (self.name.manifest_file(), Trash::file(&self.name));
        // What tells that it had been whole goes before what was whole: the rest is no backup that lost its manifest.
        let proofs = [self.name.receipt_file(), Verified::file(&self.name)];
        let (proofs, rest): (Vec<&String>, Vec<&String>) =
            self.objects.iter().filter(|o| **o != manifest && **o != mark).partition(|o| proofs.contains(o));
        for file in std::iter::once(&manifest).chain(proofs).chain(rest).chain(std::iter::once(&mark)) {
            cancel.check()?;
            store.delete(&object(dir, file))?;
        }
        Ok(())
    }

    /// A line of the audit trail.
    pub(super) fn tell(&self, tier: &str, store: &str, world: &World<'_>) {
        if !self.done {
            return;
        }
        let (what, verb) = match self.what {
            What::Trash => (progress::What::PruneTrashed, "Put into the trash"),
            What::Delete | What::Finish => (progress::What::PruneDeleted, "Deleted"),
            What::Sweep => (progress::What::PruneSwept, "Removed what was left of"),
        };
        let text = format!("{verb} {} of {store}: {}", self.name, self.reason);
        world.monitor.event(Event::new(what, text).backup(&self.name).store(store).tier(tier));
    }
}
