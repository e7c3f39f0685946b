//! A machine that has just started: the timer that was missed fires before the network, the disks and the containers are
//! there. What could go wrong: waiting for what will never come; so it ends when the machine has been up for a while, and
//! the run then says what is missing.

use std::time::Duration;

use super::{BackupPlan, TargetStore, World, connect, context, holds, own_dirs};
use crate::cancel::Interrupted;
use crate::hint::chain;
use crate::host;
use crate::progress::{Event, What};
use crate::setup::Setup;
use crate::source::SourceError;
use crate::store::{self, StoreError};

const EVERY: Duration = Duration::from_secs(3);
/// The pieces of a wait, so that an interrupt is heard.
const STEP: Duration = Duration::from_millis(200);

/// Returns when everything is there that the run needs, or when the machine has been up for `limit`.
pub fn wait(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    limit: Duration,
    world: &World<'_>,
) -> Result<(), Interrupted> {
    let mut told = false;
    while host::up_for().is_some_and(|up| up < limit) {
        let Some(lacking) = lacking(setup, plan, world)? else { return Ok(()) };
        let text = format!("Waiting, as this machine has just started: {lacking}");
        if !told {
            world.monitor.event(Event::new(What::NotReady, text.clone()).tier(&plan.tier.name));
            told = true;
        }
        world.monitor.waiting(&text);
        for _ in 0..EVERY.as_millis() / STEP.as_millis() {
            world.cancel.check()?;
            std::thread::sleep(STEP);
        }
    }
    Ok(())
}

/// The first thing that is not there yet; None when nothing is missing, or nothing that time would bring.
fn lacking(setup: &Setup, plan: &BackupPlan<'_>, world: &World<'_>) -> Result<Option<String>, Interrupted> {
    for target in &plan.targets {
        let TargetStore::Configured(store) = &target.store else { continue };
        match store::check_marker(*store, world.owner, world.cancel) {
            Ok(()) => {}
            Err(StoreError::Interrupted(i)) => return Err(i),
            // It will be another machine's in an hour, too.
            Err(StoreError::ForeignMarker { .. }) => {}
            Err(e) => return Ok(Some(world.vault.scrub(&chain(&e)))),
        }
    }
    let docker = connect(setup, plan, world)?;
    let own_dirs = own_dirs(setup, plan);
    let holds = holds(&setup.agent, world);
    for selected in &plan.selected {
        let context = context(setup, plan.tier.name.as_str(), world, &docker, &holds, &own_dirs, None);
        match selected.source.probe(&context) {
            Ok(_) => {}
            Err(SourceError::Interrupted(i)) => return Err(i),
            Err(e) => return Ok(Some(world.vault.scrub(&format!("{}: {}", selected.name, chain(&e))))),
        }
    }
    Ok(None)
}
