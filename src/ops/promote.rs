//! A tier that is made of the backups of another: the newest good one is copied instead of making one more. What could
//! go wrong: for months the same old backup is copied, and everybody believes in a fresh one; so one that is older than
//! `max_age` is a failure, and only what is complete, verified and accepted is copied.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::World;
use super::backup::{Failure, Outcome, StoreResult, expected_of, seals};
use super::carry::{self, CarryError, Goal, There};
use super::find::{self, Filter, FindError, Found};
use super::prune;
use crate::cancel::Interrupted;
use crate::config::Tier;
use crate::delivery::{DeliveryError, Place, Receipt};
use crate::hint::{Hint, chain};
use crate::manifest::{Manifest, State};
use crate::progress::{Event, What};
use crate::run_guard::RunGuard;
use crate::setup::Setup;
use crate::store::{self, Store, StoreError};
use crate::units::{millis, show_duration};

#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Find(FindError),
    #[error(
        "tier {from:?} has no backup that could be promoted to {to:?}: complete, verified, and without an open anomaly"
    )]
    Nothing { from: String, to: String },
    #[error("the newest good backup of tier {from:?} is {name}, {age} old, and max_age is {max}")]
    Old { from: String, name: String, age: String, max: String },
    #[error("{name} of tier {from:?} lacks what tier {to:?} needs: {lacking}")]
    Lacks { from: String, to: String, name: String, lacking: String },
    #[error(transparent)]
    Carry(CarryError),
}

impl From<CarryError> for PromoteError {
    fn from(e: CarryError) -> Self {
        match e {
            CarryError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Carry(e),
        }
    }
}

impl From<FindError> for PromoteError {
    fn from(e: FindError) -> Self {
        match e {
            FindError::Store(StoreError::Interrupted(i)) => Self::Interrupted(i),
            e => Self::Find(e),
        }
    }
}

impl Hint for PromoteError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Find(e) => return e.hint(),
            Self::Carry(e) => return e.hint(),
            Self::Nothing { from, .. } | Self::Old { from, .. } => {
                format!(
                    "see why there is no newer one: tars-backup list --tier {from}; make one: tars-backup backup --tier {from}"
                )
            }
            Self::Lacks { from, .. } => format!("add them to components of tier {from}"),
            Self::Interrupted(_) => return None,
        })
    }
}

/// The copies of the backup that `tier` is to get, the one that is nearest in front.
pub fn choose<'a>(
    setup: &'a Setup,
    tier: &Tier,
    from: &str,
    world: &World<'_>,
) -> Result<Vec<Found<'a>>, PromoteError> {
    let filter = Filter { tier: Some(from.to_owned()), ..Filter::default() };
    let (found, failed) = find::all(setup, &filter, world.cancel)?;
    for e in failed {
        let text = format!("Backups of tier {from} may be missing: {}", chain(&e));
        world.monitor.event(Event::new(What::Warning, text).tier(from));
    }
    let now = (world.now)();
    let fit = |f: &Found<'_>| {
        let open = f.entry.has_open_anomaly();
        let whole = |m: &Manifest| m.counts() && m.state == State::Complete && m.host == setup.host;
        let past = |m: &Manifest| time_of(m).is_some_and(|t| t <= now);
        !open && f.entry.is_verified() && f.entry.manifest.as_ref().is_ok_and(|m| whole(m) && past(m))
    };
    let mut fit: Vec<Found<'a>> = found.into_iter().filter(fit).collect();
    let (source, target) = (from.to_owned(), tier.name.to_string());
    let newest =
        fit.iter().filter_map(|f| Some((time_of(f.entry.manifest.as_ref().ok()?)?, f.entry.name.clone())));
    let Some((time, name)) = newest.max() else {
        return Err(PromoteError::Nothing { from: source, to: target });
    };
    let age = now.duration_since(time);
    if let Some(max) = tier.max_age
        && age > SignedDuration::try_from(max).unwrap_or(SignedDuration::MAX)
    {
        let age = show_duration(age.unsigned_abs());
        return Err(PromoteError::Old { from: source, name: name.to_string(), age, max: show_duration(max) });
    }
    fit.retain(|f| f.entry.name == name);
    fit.sort_by_key(|f| f.store().local_root().is_none());
    let lacking: Vec<String> = expected_of(setup, tier)
        .filter(|s| s.critical)
        .map(|s| s.name.to_string())
        .filter(|s| !fit.iter().any(|f| f.entry.manifest.as_ref().is_ok_and(|m| m.components.contains(s))))
        .collect();
    if !lacking.is_empty() {
        let (name, lacking) = (name.to_string(), lacking.join(", "));
        return Err(PromoteError::Lacks { from: source, to: target, name, lacking });
    }
    Ok(fit)
}

fn time_of(manifest: &Manifest) -> Option<Timestamp> {
    manifest.timestamp.parse().ok()
}

/// What is to be done for a store of the tier.
enum Asked {
    For {
        begun: bool,
    },
    /// Nothing: there it is.
    Has(Receipt),
    /// Nothing can be, before somebody looks.
    Refused(Failure),
}

fn asked(setup: &Setup, to: Place<'_>, copies: &[Found<'_>], world: &World<'_>) -> Result<Asked, StoreError> {
    let Some(source) = copies.first().and_then(|c| c.entry.manifest.as_ref().ok()) else {
        return Ok(Asked::For { begun: false });
    };
    let (store, backup) = (to.store.name(), &source.backup_name);
    // What is sealed anew has other bytes, and cannot take the place of what is there.
    let seals_anew = !source.encryption.is_sealed() && seals(setup, to.store);
    let refused = |error: String, hint: String| Asked::Refused(Failure { error, hint: Some(hint) });
    Ok(match carry::there(to, source, world.cancel)? {
        There::Nothing => Asked::For { begun: false },
        There::Unfinished => Asked::For { begun: true },
        There::Good(receipt) => Asked::Has(receipt),
        There::Unproven(sha256) if sha256 == source.sha256 && !seals_anew => Asked::For { begun: true },
        There::Unproven(_) => refused(
            format!("its copy of {backup} is not known to be readable"),
            format!("tars-backup verify --store {store} {backup}"),
        ),
        There::Trashed => refused(
            format!("its copy of {backup} is in the trash"),
            format!("to have it back: tars-backup undelete {backup}"),
        ),
        There::Other => {
            let taken = DeliveryError::NameTaken { store: store.to_owned(), name: backup.to_string() };
            Asked::Refused(Failure::of(&taken, world))
        }
    })
}

fn refused(store: &dyn Store, failure: Failure, world: &World<'_>) -> StoreResult {
    world.monitor.event(Event::new(What::StoreFailed, failure.error.clone()).store(store.name()));
    StoreResult { store: store.name().to_owned(), receipt: None, spooled: false, failure: Some(failure) }
}

/// Copies it to every store of the tier, and prunes there. The guard proves that nobody else does.
pub fn run(
    setup: &Setup,
    tier: &Tier,
    from: &str,
    _guard: &RunGuard,
    world: &World<'_>,
) -> Result<Outcome, PromoteError> {
    let started = Instant::now();
    let name = &tier.name;
    world.monitor.event(Event::new(What::RunStarted, format!("Promoting from {from} to {name}")).tier(name));
    let copies = choose(setup, tier, from, world)?;
    let (mut stores, mut goals, mut down) = (Vec::new(), Vec::new(), Vec::new());
    let mut may_pass = false;
    for store in tier.stores.iter().filter_map(|s| setup.store(s)) {
        let dir = store::tier_dir(store, &setup.host, &tier.path);
        let looked = store::check_marker(store, world.owner, world.cancel)
            .and_then(|()| asked(setup, Place { store, dir: &dir }, &copies, world));
        match looked {
            Ok(Asked::For { begun }) => goals.push(Goal { store, dir, begun }),
            Ok(Asked::Has(receipt)) => {
                let text = format!("{} is in {} already", copies[0].entry.name, store.name());
                let event = Event::new(What::Promoted, text).backup(&copies[0].entry.name).tier(name);
                world.monitor.event(event.store(store.name()));
                stores.push(StoreResult {
                    store: store.name().to_owned(),
                    receipt: Some(receipt),
                    spooled: false,
                    failure: None,
                });
            }
            Ok(Asked::Refused(failure)) => stores.push(refused(store, failure, world)),
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => {
                may_pass |= e.may_pass();
                down.push((store, dir, Failure::of(&e, world)));
            }
        }
    }
    // As after a run: what one store gets, or what may come back by itself, is kept for those that are down. What they
    // have of that name is told apart when they are back: by its digest, or by its manifest where it is sealed.
    let waits = may_pass || !goals.is_empty() || stores.iter().any(|s| s.receipt.is_some());
    for (store, dir, failure) in down {
        match waits {
            true => goals.push(Goal { store, dir, begun: true }),
            false => stores.push(refused(store, failure, world)),
        }
    }
    let before = stores.iter().filter(|s| s.receipt.is_some()).count();
    if !goals.is_empty() {
        for done in carry::carry(setup, &copies.iter().collect::<Vec<_>>(), &goals, world)? {
            let spooled = done.receipt.is_none();
            stores.push(StoreResult {
                store: done.store,
                receipt: done.receipt,
                spooled,
                failure: done.failure,
            });
        }
    }
    let have: Vec<&str> = stores.iter().filter(|s| s.receipt.is_some()).map(|s| s.store.as_str()).collect();
    let manifest = copies.first().and_then(|c| c.entry.manifest.as_ref().ok());
    let (mut pruned, mut prune_failure) = (Vec::new(), None);
    if let Some(m) = manifest.filter(|_| !have.is_empty()) {
        if have.len() > before {
            let text = format!("Promoted {} from {from} to {name}", m.backup_name);
            world.monitor.event(Event::new(What::Promoted, text).backup(&m.backup_name).tier(name));
        }
        (pruned, prune_failure) = prune::after_run(setup, tier, &m.backup_name, &have, world);
    }
    Ok(Outcome {
        name: manifest.map(|m| m.backup_name.clone()),
        tier: name.to_string(),
        state: manifest.map(|m| m.state),
        bytes: manifest.and_then(|m| m.bytes).unwrap_or(0),
        sha256: manifest.and_then(|m| m.sha256.clone()),
        duration_ms: millis(started.elapsed()),
        components: Vec::new(),
        stores,
        anomalies: Vec::new(),
        pruned,
        prune_failure,
        left_held: Vec::new(),
    })
}
