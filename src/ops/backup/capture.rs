//! From sources into staging: several at a time, each on its own, none able to take the others down.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::{BackupPlan, Failure, Target, World, context, own_dirs};
use crate::cancel::Interrupted;
use crate::catalog::{Entry, Listing};
use crate::docker::hold::Holds;
use crate::docker::{Docker, DockerError};
use crate::last_run::LastRun;
use crate::progress::{Event, What};
use crate::setup::Setup;
use crate::source::{Capture, Configured, Context, SourceError};
use crate::staging::Staging;
use crate::units::{show_bytes, show_duration};

/// A component after capture.
pub(super) struct Captured<'a> {
    pub configured: &'a Configured,
    pub outcome: Result<Capture, Failure>,
    pub took: Duration,
}

/// Facts of each wanted component in the newest earlier backup of the tier that has it: as this machine remembers it,
/// else as the first store tells it.
fn previous_facts(
    setup: &Setup,
    plan: &BackupPlan<'_>,
    wanted: &[&str],
    usable: &[&Target<'_>],
    world: &World<'_>,
) -> BTreeMap<String, Map<String, Value>> {
    let mut facts = BTreeMap::new();
    if let Some(manifest) = LastRun::of(&setup.agent.state_dir, plan.tier.name.as_str()).recall() {
        facts.extend(manifest.whole().map(|(name, c)| (name.to_owned(), c.facts.clone())));
    }
    let Some(target) = usable.first() else { return facts };
    let Ok(listing) = Listing::of(target.store(), &target.dir, world.cancel) else { return facts };
    for name in listing.names().into_iter().rev() {
        if wanted.iter().all(|w| facts.contains_key(*w)) {
            break;
        }
        if let Ok(Some(Entry { manifest: Ok(manifest), .. })) = listing.entry(name)
            && !manifest.encryption.is_sealed()
        {
            for (name, component) in manifest.whole() {
                facts.entry(name.to_owned()).or_insert_with(|| component.facts.clone());
            }
        }
    }
    facts
}

pub(super) fn all<'a>(
    setup: &Setup,
    plan: &BackupPlan<'a>,
    usable: &[&Target<'_>],
    staging: &Staging,
    docker: &Result<Docker, DockerError>,
    holds: &Holds<'_>,
    world: &World<'_>,
) -> Result<Vec<Captured<'a>>, Interrupted> {
    world.monitor.phase("capturing", None);
    let own_dirs = own_dirs(setup, plan);
    let compared = plan.selected.iter().filter(|s| s.source.compares()).map(|s| s.name.as_str());
    let previous = match compared.collect::<Vec<_>>().as_slice() {
        [] => BTreeMap::new(),
        compared => previous_facts(setup, plan, compared, usable, world),
    };
    let next = AtomicUsize::new(0);
    let workers = setup.agent.jobs.clamp(1, plan.selected.len().max(1));
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::SeqCst);
            let Some(configured) = plan.selected.get(index) else { return done };
            let previous = previous.get(configured.name.as_str());
            let context = context(setup, plan.tier.name.as_str(), world, docker, holds, &own_dirs, previous);
            done.push((index, one(configured, &context, staging, world)));
        }
    };
    let mut done: BTreeMap<usize, Captured<'a>> = std::thread::scope(|scope| {
        let watch = scope.spawn(|| holds.watch());
        let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done = running.into_iter().filter_map(|thread| thread.join().ok()).flatten().collect();
        holds.close();
        // It only waits for the time of a hold, and there is none any more.
        let _ = watch.join();
        done
    });
    world.cancel.check()?;
    // Whatever was asked for has an outcome: one that got lost with its thread has failed, it is not left out.
    let lost = || Err(Failure::text("internal error: the capture ended without a result; please report it"));
    let selected = plan.selected.iter().enumerate();
    Ok(selected
        .map(|(index, configured)| {
            done.remove(&index).unwrap_or_else(|| Captured {
                configured,
                outcome: lost(),
                took: Duration::ZERO,
            })
        })
        .collect())
}

fn one<'a>(
    configured: &'a Configured,
    context: &Context<'_>,
    staging: &Staging,
    world: &World<'_>,
) -> Captured<'a> {
    let started = Instant::now();
    let name = configured.name.as_str();
    let event = |what, text: String| Event::new(what, text).component(name);
    world
        .monitor
        .event(event(What::ComponentStarted, format!("Capturing {name}: {}", configured.source.method())));
    // One broken component must not take the others down.
    let attempt = catch_unwind(AssertUnwindSafe(|| -> Result<Capture, SourceError> {
        let stage = staging.component(name)?;
        configured.source.capture(context, &stage)
    }));
    let outcome = match attempt {
        Ok(Ok(capture)) => Ok(capture),
        Ok(Err(e)) => Err(Failure::of(&e, world)),
        Err(_) => Err(Failure::text("internal error: the capture panicked; please report it")),
    };
    match &outcome {
        Ok(capture) => {
            for warning in &capture.warnings {
                world.monitor.event(event(What::Warning, world.vault.scrub(&format!("{name}: {warning}"))));
            }
            if let Some(why) = &capture.incomplete {
                let text = world.vault.scrub(&format!("{name} is incomplete: {why}"));
                world.monitor.event(event(What::ComponentFailed, text).took(started));
            } else {
                let stored = capture.staged.iter().map(|s| s.bytes).sum();
                let text = format!(
                    "Captured {name}: {} read, {} stored, {}",
                    show_bytes(capture.bytes_in),
                    show_bytes(stored),
                    show_duration(started.elapsed())
                );
                world.monitor.event(event(What::ComponentCaptured, text).bytes(stored).took(started));
            }
        }
        Err(_) if world.cancel.check().is_err() => {}
        Err(failure) => {
            let text = format!("{name} failed: {}{}", failure.error, failure.hint_text());
            world.monitor.event(event(What::ComponentFailed, text).took(started));
        }
    }
    Captured { configured, outcome, took: started.elapsed() }
}

/// Two components that would write one file of the archive: the second one fails.
pub(super) fn refuse_shared_members(captured: &mut [Captured<'_>], world: &World<'_>) {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for c in captured {
        let name = c.configured.name.to_string();
        let Ok(capture) = &c.outcome else { continue };
        let clash =
            capture.staged.iter().find_map(|s| owners.get(&s.member).map(|o| (s.member.clone(), o.clone())));
        match clash {
            Some((member, owner)) => {
                let error = format!("its file {member} is also one of {owner}: give the source another name");
                let text = format!("{name} failed: {error}");
                world.monitor.event(Event::new(What::ComponentFailed, text).component(&name));
                c.outcome = Err(Failure::text(error));
            }
            None => owners.extend(capture.staged.iter().map(|s| (s.member.clone(), name.clone()))),
        }
    }
}
