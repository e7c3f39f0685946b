//! What the rule of a tier holds in one of its stores, and another one lacks: a store that is new, or was away for weeks.
//! What could go wrong: to bring back what was deleted on purpose, or to spread a damaged copy; so what is in a trash
//! anywhere stays away, and only verified copies are copied.

use std::collections::{BTreeMap, BTreeSet};

use super::{Failure, Outcome, SyncError};
use crate::catalog::Listing;
use crate::config::Tier;
use crate::id::BackupName;
use crate::ops::World;
use crate::ops::carry::{self, CarryError, Goal};
use crate::ops::find::{Found, StoreRef};
use crate::ops::prune;
use crate::retention::{self, Circumstances, Copy, Halt};
use crate::setup::Setup;
use crate::spool::Spool;
use crate::store::{self, Store, StoreError};

pub(super) fn run(setup: &Setup, world: &World<'_>, outcome: &mut Outcome) -> Result<(), SyncError> {
    for tier in setup.tiers.iter().filter(|t| t.stores.len() > 1) {
        of_tier(setup, tier, world, outcome)?;
    }
    Ok(())
}

/// One store of a tier, as it was listed.
struct Side<'a> {
    store: &'a dyn Store,
    dir: String,
    /// Names in use there, committed or not.
    used: BTreeSet<BackupName>,
}

fn of_tier(setup: &Setup, tier: &Tier, world: &World<'_>, outcome: &mut Outcome) -> Result<(), SyncError> {
    let (mut sides, mut found, mut trashed) = (Vec::new(), Vec::new(), BTreeSet::new());
    for store in tier.stores.iter().filter_map(|name| setup.store(name)) {
        let dir = store::tier_dir(store, &setup.host, &tier.path);
        match look(store, &dir, world) {
            Ok((used, entries)) => {
                trashed.extend(entries.iter().filter(|e| e.trash.is_some()).map(|e| e.name.clone()));
                let tier = tier.name.to_string();
                found.extend(entries.into_iter().map(|entry| Found {
                    store: StoreRef::Configured(store),
                    dir: dir.clone(),
                    tier: tier.clone(),
                    entry,
                }));
                sides.push(Side { store, dir, used });
            }
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => outcome.unreadable.push(Failure::of(&e, world)),
        }
    }
    let waiting = Spool::new(&setup.agent.spool_dir, 0).names()?;
    for name in wanted(setup, tier, &found, world).into_iter().rev() {
        if trashed.contains(&name) || waiting.contains(&name) {
            continue;
        }
        let lacks = sides.iter().filter(|s| !s.used.contains(&name));
        let goals: Vec<Goal<'_>> =
            lacks.map(|s| Goal { store: s.store, dir: s.dir.clone(), begun: false }).collect();
        let mut copies: Vec<&Found<'_>> =
            found.iter().filter(|f| f.entry.name == name && is_good(f, setup)).collect();
        copies.sort_by_key(|f| f.store().local_root().is_none());
        if goals.is_empty() || copies.is_empty() {
            continue;
        }
        match carry::carry(setup, &copies, &goals, world) {
            Ok(delivered) => outcome.deliveries.extend(delivered),
            Err(CarryError::Interrupted(i)) => return Err(i.into()),
            Err(e) => outcome.unreadable.push(Failure::of(&e, world)),
        }
    }
    Ok(())
}

type Looked = (BTreeSet<BackupName>, Vec<crate::catalog::Entry>);

fn look(store: &dyn Store, dir: &str, world: &World<'_>) -> Result<Looked, StoreError> {
    store::check_marker(store, world.owner, world.cancel)?;
    let listing = Listing::of(store, dir, world.cancel)?;
    Ok((listing.used().collect(), listing.entries()?))
}

fn is_good(found: &Found<'_>, setup: &Setup) -> bool {
    let copy = prune::copy(&found.entry, setup);
    let counts = found.entry.manifest.as_ref().is_ok_and(crate::manifest::Manifest::counts);
    counts && copy.ours && copy.verified && !copy.suspect && found.entry.trash.is_none()
}

/// What the rule would hold if one store had all of it, oldest first. An open anomaly stops this too.
fn wanted(setup: &Setup, tier: &Tier, found: &[Found<'_>], world: &World<'_>) -> Vec<BackupName> {
    let suspect = found.iter().any(|f| f.entry.trash.is_none() && prune::copy(&f.entry, setup).suspect);
    if suspect {
        return Vec::new();
    }
    let good = found.iter().filter(|f| is_good(f, setup));
    let copies: BTreeMap<&BackupName, Copy> =
        good.map(|f| (&f.entry.name, prune::copy(&f.entry, setup))).collect();
    let copies: Vec<Copy> = copies.into_values().collect();
    let components: Vec<String> = setup.sources.iter().map(|s| s.name.to_string()).collect();
    let plan = retention::plan(
        &copies,
        &Circumstances {
            now: (world.now)(),
            keep: &tier.keep,
            components: &components,
            this_run: None,
            count_this_run: true,
        },
    );
    match plan.halted {
        // Without a rule nothing is ever deleted: each store has all.
        None | Some(Halt::EmptyRule) => {
            plan.decisions.into_iter().filter(|d| d.keep).map(|d| d.name).collect()
        }
        Some(_) => Vec::new(),
    }
}
