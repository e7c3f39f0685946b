//! The anomaly gate: has a component shrunk to under half of what the newest good backup of the tier has?

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::capture::Captured;
use super::{BackupPlan, Target};
use crate::anomaly::{self, Anomaly};
use crate::cancel::Interrupted;
use crate::catalog::{Entry, Listing};
use crate::last_run::LastRun;
use crate::manifest::{Manifest, State};
use crate::ops::World;
use crate::progress::{Event, What};
use crate::store::StoreError;

/// What shrank, told to the monitor. A run of hand-picked components is no measure and is not measured.
pub(super) fn check(
    plan: &BackupPlan<'_>,
    captured: &[Captured<'_>],
    usable: &[&Target<'_>],
    last: &LastRun,
    world: &World<'_>,
) -> Result<Vec<Anomaly>, Interrupted> {
    if plan.is_handpicked() || !plan.targets.iter().any(Target::is_configured) {
        return Ok(Vec::new());
    }
    let watched = |c: &&Captured<'_>| c.configured.watched;
    let whole = captured.iter().filter(watched).filter_map(|c| {
        let capture = c.outcome.as_ref().ok().filter(|c| c.incomplete.is_none())?;
        Some((c.configured.name.to_string(), capture.bytes_in))
    });
    let now: BTreeMap<String, u64> = whole.collect();
    if now.is_empty() {
        return Ok(Vec::new());
    }
    let mut newest: Option<Manifest> = None;
    for target in usable {
        match baseline(target, world) {
            Ok(found) => {
                newest = newest.into_iter().chain(found).max_by(|a, b| a.backup_name.cmp(&b.backup_name));
            }
            Err(StoreError::Interrupted(i)) => return Err(i),
            // What cannot be read now is not delivered to either, and nothing is pruned there.
            Err(e) => {
                let text = format!(
                    "No earlier backup to compare sizes with in {}: {}",
                    target.store().name(),
                    crate::hint::chain(&e)
                );
                world.monitor.event(Event::new(What::Warning, text).store(target.store().name()));
            }
        }
    }
    // With no store in reach there would be no measure, and what shrank tonight would be that of tomorrow.
    let Some(before) = newest.or_else(|| last.measure()) else { return Ok(Vec::new()) };
    let found = anomaly::anomalies(&now, &anomaly::sizes(&before), |_| true);
    for a in &found {
        let text = format!("Anomaly: {a} in {}", before.backup_name);
        world.monitor.event(Event::new(What::AnomalyFound, text).component(&a.component));
    }
    Ok(found)
}

/// The newest complete backup there that is a measure. One of the future was made when a clock was wrong, and would be the
/// newest for years.
fn baseline(target: &Target<'_>, world: &World<'_>) -> Result<Option<Manifest>, StoreError> {
    let listing = Listing::of(target.store(), &target.dir, world.cancel)?;
    for name in listing.names().into_iter().rev() {
        let Some(entry) = listing.entry(name)? else { continue };
        let open = entry.has_open_anomaly();
        if let Entry { manifest: Ok(m), trash: None, .. } = entry
            && !open
            && m.counts()
            && m.state == State::Complete
            && m.host == world.owner.host
            && m.timestamp.parse::<Timestamp>().is_ok_and(|time| time <= (world.now)())
        {
            return Ok(Some(m));
        }
    }
    Ok(None)
}
