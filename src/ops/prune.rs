//! Deletes what the rules let go, first into the trash. What could go wrong: the last good copy goes; so `retention`
//! decides from a whole listing alone, whatever is odd (a clock, a store that is not ours, an anomaly, a pin that is not
//! written everywhere) stops all of it, and a deletion that breaks off leaves nothing visible without its archive.

mod clock;
mod deed;

use std::collections::BTreeSet;

use jiff::SignedDuration;
use serde::Serialize;

use super::World;
use super::backup::Failure;
use super::pins;
use crate::cancel::Interrupted;
use crate::catalog::{Entry, Listing};
use crate::config::Tier;
use crate::hint::Hint;
use crate::id::BackupName;
use crate::manifest::State;
use crate::marks::{Mark, Pin, Trash, Verified};
use crate::progress::{Event, What};
use crate::retention::{self, Circumstances, Copy, Halt, Pinned, Reason, Standing};
use crate::run_guard::RunGuard;
use crate::setup::Setup;
use crate::spool::{Spool, SpoolError};
use crate::store::{self, Store, StoreError};

pub use deed::{Deed, What as DeedKind};

/// What was never committed, and nobody waits for, is removed when its name is this old.
const UNCOMMITTED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Which tiers and stores are meant; all, where nothing is named.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub tier: Option<String>,
    pub store: Option<String>,
}

/// What is to happen in the directory of one tier in one store.
#[derive(Debug, Serialize)]
pub struct Plot {
    pub tier: String,
    pub store: String,
    pub dir: String,
    /// Set: nothing is deleted here, and why.
    pub halted: Option<String>,
    /// The halt is a fault that somebody has to mend.
    #[serde(flatten)]
    pub failure: Option<Failure>,
    pub decisions: Vec<Line>,
    pub deeds: Vec<Deed>,
    #[serde(skip)]
    suspect: Option<BackupName>,
    /// Nobody has to do anything about the halt: there is no rule, or nothing yet that it could be about.
    #[serde(skip)]
    natural: bool,
}

/// One backup, and why it stays or goes.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub name: BackupName,
    pub keep: bool,
    pub reasons: Vec<String>,
}

impl Plot {
    fn new(tier: &Tier, store: &dyn Store, dir: String) -> Self {
        Self {
            tier: tier.name.to_string(),
            store: store.name().to_owned(),
            dir,
            halted: None,
            failure: None,
            decisions: Vec::new(),
            deeds: Vec::new(),
            suspect: None,
            natural: false,
        }
    }

    fn halt(&mut self, why: impl Into<String>) {
        self.halted.get_or_insert(why.into());
        self.deeds.clear();
    }

    fn fail<E: std::error::Error + Hint>(&mut self, e: &E, world: &World<'_>) {
        let failure = Failure::of(e, world);
        self.halt(failure.error.clone());
        self.failure.get_or_insert(failure);
    }

    /// What would go by its looks, and stays: a person has to decide.
    fn spare(&mut self, name: BackupName, why: String, world: &World<'_>) {
        let text = format!("{name} stays in {}: {why}", self.store);
        world
            .monitor
            .event(Event::new(What::Warning, text).backup(&name).store(&self.store).tier(&self.tier));
        self.decisions.push(Line { name, keep: true, reasons: vec![why] });
    }

    /// Deeds that were done.
    pub fn done(&self) -> impl Iterator<Item = &Deed> {
        self.deeds.iter().filter(|d| d.done)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("there is no tier {0:?}")]
    NoTier(String),
    #[error("there is no store {0:?}")]
    NoStore(String),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Pins(#[from] pins::PinError),
}

impl Hint for PruneError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoTier(_) | Self::NoStore(_) => {
                Some("see what is configured: tars-backup config show".into())
            }
            Self::Spool(e) => e.hint(),
            Self::Pins(e) => e.hint(),
            Self::Interrupted(_) => None,
        }
    }
}

/// Whose listing is taken when: what a run made is counted in its stores, and is missing where the store was full.
#[derive(Clone, Copy)]
struct Occasion<'a> {
    this_run: Option<&'a BackupName>,
    count_this_run: bool,
}

const BY_HAND: Occasion<'static> = Occasion { this_run: None, count_this_run: true };

/// What would be deleted, and why. Deletes and writes nothing.
pub fn plan(setup: &Setup, request: &Request, world: &World<'_>) -> Result<Vec<Plot>, PruneError> {
    if let Some(name) = request.tier.as_ref().filter(|n| setup.tier(n).is_none()) {
        return Err(PruneError::NoTier(name.clone()));
    }
    if let Some(name) = request.store.as_ref().filter(|n| setup.store(n).is_none()) {
        return Err(PruneError::NoStore(name.clone()));
    }
    let mut plots = Vec::new();
    for tier in setup.tiers.iter().filter(|t| request.tier.as_deref().is_none_or(|n| n == t.name.as_str())) {
        // A store that was not asked for may hold the anomaly that stops the others.
        let of_tier = plots_of(setup, tier, BY_HAND, world)?;
        plots.extend(of_tier.into_iter().filter(|p| request.store.as_deref().is_none_or(|n| n == p.store)));
    }
    Ok(plots)
}

fn plots_of(
    setup: &Setup,
    tier: &Tier,
    occasion: Occasion<'_>,
    world: &World<'_>,
) -> Result<Vec<Plot>, PruneError> {
    let waiting: BTreeSet<BackupName> = Spool::new(&setup.agent.spool_dir, 0).names()?.into_iter().collect();
    let blocked = pins::unwritten(setup)?;
    let mut plots = Vec::new();
    for store in tier.stores.iter().filter_map(|name| setup.store(name)) {
        world.cancel.check()?;
        let mut plot = Plot::new(tier, store, store::tier_dir(store, &setup.host, &tier.path));
        match draw(&mut plot, setup, tier, store, occasion, &waiting, world) {
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => plot.fail(&e, world),
            Ok(()) => {}
        }
        if let Some(name) = blocked.get(store.name()) {
            plot.halt(format!("the pin of {name} is not yet written there: tars-backup sync"));
        }
        plots.push(plot);
    }
    if let Some(name) = plots.iter().filter_map(|p| p.suspect.clone()).max() {
        let why = retention::Halt::Anomaly(name).to_string();
        plots.iter_mut().for_each(|p| p.halt(why.clone()));
    }
    Ok(plots)
}

fn draw(
    plot: &mut Plot,
    setup: &Setup,
    tier: &Tier,
    store: &dyn Store,
    occasion: Occasion<'_>,
    waiting: &BTreeSet<BackupName>,
    world: &World<'_>,
) -> Result<(), StoreError> {
    store::check_marker(store, world.owner, world.cancel)?;
    let now = (world.now)();
    let listing = Listing::of(store, &plot.dir, world.cancel)?;
    let entries = listing.entries()?;
    let copies: Vec<Copy> = entries.iter().filter(|e| e.trash.is_none()).map(|e| copy(e, setup)).collect();
    let components: Vec<String> = setup.sources.iter().map(|s| s.name.to_string()).collect();
    let circumstances = Circumstances {
        now,
        keep: &tier.keep,
        components: &components,
        this_run: occasion.this_run,
        count_this_run: occasion.count_this_run,
    };
    let decided = retention::plan(&copies, &circumstances);
    let objects = |name: &BackupName| listing.objects_of(name).iter().map(|o| o.name.clone()).collect();
    for d in &decided.decisions {
        let reasons: Vec<String> = d.reasons.iter().map(ToString::to_string).collect();
        if !d.keep {
            let reason = reasons.join(", ");
            plot.deeds.push(Deed::new(&d.name, DeedKind::Trash, reason, objects(&d.name)));
        }
        plot.decisions.push(Line { name: d.name.clone(), keep: d.keep, reasons });
    }
    let days = SignedDuration::from_hours(i64::from(tier.trash_days) * 24);
    let mut spared = Vec::new();
    let needed = needed_out_of_the_trash(&entries, setup, &circumstances);
    for entry in &entries {
        let Some(Trash { time: Some(since), reason }) = &entry.trash else { continue };
        if now.duration_since(*since) < days {
            continue;
        }
        if needed.contains(&entry.name) {
            spared.push((entry.name.clone(), format!("{NEEDED}: tars-backup undelete {}", entry.name)));
        } else {
            plot.deeds.push(Deed::new(&entry.name, DeedKind::Delete, reason.clone(), objects(&entry.name)));
        }
    }
    let committed: BTreeSet<&BackupName> = entries.iter().map(|e| &e.name).collect();
    let uncommitted: BTreeSet<BackupName> = listing.used().filter(|n| !committed.contains(n)).collect();
    for name in uncommitted {
        let there: Vec<String> = objects(&name);
        if there.contains(&Trash::file(&name)) {
            let reason = "its deletion had broken off".to_owned();
            plot.deeds.push(Deed::new(&name, DeedKind::Finish, reason, there));
        } else if was_whole(&name, &there) {
            spared.push((name, BEHEADED.to_owned()));
        } else if name.time() < now - UNCOMMITTED
            && !waiting.contains(&name)
            && !there.contains(&Pin::file(&name))
        {
            let reason = "it was never committed, and nobody waits for it".to_owned();
            plot.deeds.push(Deed::new(&name, DeedKind::Sweep, reason, there));
        }
    }
    spared.into_iter().for_each(|(name, why)| plot.spare(name, why, world));
    if let Some(halt) = decided.halted {
        plot.halt(halt.to_string());
        plot.natural = matches!(halt, Halt::EmptyRule | Halt::NothingGood);
        if let Halt::Anomaly(name) = halt {
            plot.suspect = Some(name);
        }
    }
    Ok(())
}

const NEEDED: &str = "it is in the trash, and needed by now, as newer ones are not good any more";
const BEHEADED: &str = "it was stored whole, and its manifest is gone: the archive has another one inside; restore from it or \
                        delete it by hand";

/// What is in the trash counts nowhere. But what was found bad since then may be what it was let go for.
fn needed_out_of_the_trash(
    entries: &[Entry],
    setup: &Setup,
    circumstances: &Circumstances<'_>,
) -> BTreeSet<BackupName> {
    let all: Vec<Copy> = entries.iter().map(|e| copy(e, setup)).collect();
    let is_needed = |r: &Reason| matches!(r, Reason::Min(_) | Reason::NewestWith(_));
    let decisions = retention::plan(&all, circumstances).decisions;
    decisions.into_iter().filter(|d| d.keep && d.reasons.iter().any(is_needed)).map(|d| d.name).collect()
}

/// Whether it had been committed: both marks are made after that.
fn was_whole(name: &BackupName, there: &[String]) -> bool {
    let is_archive = |o: &String| o.starts_with(&name.archive()) && !o.ends_with(".sha256");
    let marked = there.contains(&Verified::file(name)) || there.contains(&name.receipt_file());
    marked && there.iter().any(is_archive)
}

/// What retention sees of a backup.
pub(super) fn copy(entry: &Entry, setup: &Setup) -> Copy {
    let manifest = entry.manifest.as_ref().ok();
    Copy {
        name: entry.name.clone(),
        time: manifest.and_then(|m| m.timestamp.parse().ok()),
        standing: match manifest {
            None => Standing::Damaged,
            Some(m) if m.legacy => Standing::Legacy,
            Some(m) => match m.state {
                State::Complete => Standing::Complete,
                State::Degraded => Standing::Degraded,
                State::Partial => Standing::Partial,
            },
        },
        whole: manifest.map(|m| m.whole().map(|(n, _)| n.to_owned()).collect()).unwrap_or_default(),
        handpicked: manifest.is_some_and(crate::manifest::Manifest::is_handpicked),
        // Those of the script, and damaged ones, do not say whose they are: they stay for other reasons.
        ours: manifest.is_none_or(|m| m.legacy || m.host == setup.host),
        verified: entry.is_verified(),
        pinned: entry.pin.as_ref().map(|p| Pinned { until: p.until, reason: p.reason.clone() }),
        suspect: entry.has_open_anomaly(),
    }
}

/// Does what was planned. The guard proves that nobody else does.
pub fn apply(
    setup: &Setup,
    plots: &mut [Plot],
    _guard: &RunGuard,
    world: &World<'_>,
) -> Result<(), Interrupted> {
    carry_out(setup, plots, false, world)
}

/// `at_once`: without waiting in the trash, because the room is needed now.
fn carry_out(setup: &Setup, plots: &mut [Plot], at_once: bool, world: &World<'_>) -> Result<(), Interrupted> {
    let local = clock::went_back(&setup.agent.state_dir, (world.now)());
    // What makes room is not the end of its run.
    if !at_once {
        // A clock that cannot be noted is compared with an older note, or none: the store's clock is looked at too.
        let _ = clock::note(&setup.agent.state_dir, (world.now)());
    }
    for plot in plots.iter_mut() {
        let (Some(tier), Some(store)) = (setup.tier(&plot.tier), setup.store(&plot.store)) else { continue };
        if !plot.deeds.is_empty() {
            if let Some(why) = &local {
                plot.halt(why.clone());
            } else {
                match clock::differs(store, &setup.host, world) {
                    Err(StoreError::Interrupted(i)) => return Err(i),
                    Err(e) => plot.fail(&e, world),
                    Ok(Some(why)) => plot.halt(why),
                    Ok(None) => {}
                }
            }
        }
        let dir = plot.dir.clone();
        let mut failed = None;
        for deed in &mut plot.deeds {
            world.cancel.check()?;
            match deed.carry_out(store, &dir, at_once || tier.trash_days == 0, world) {
                Ok(()) => deed.tell(&plot.tier, store.name(), world),
                Err(e) => {
                    failed = Some(Failure::of(&e, world));
                    break;
                }
            }
        }
        world.cancel.check()?;
        if let Some(failure) = failed {
            let event = Event::new(What::PruneFailed, failure.error.clone());
            world.monitor.event(event.store(store.name()).tier(&plot.tier));
            plot.failure = Some(failure);
        } else if let Some(why) = plot.halted.as_ref().filter(|_| !plot.natural) {
            let text = format!("Nothing is pruned of tier {} in {}: {why}", plot.tier, plot.store);
            world.monitor.event(Event::new(What::PruneHalted, text).store(&plot.store).tier(&plot.tier));
        }
    }
    Ok(())
}

/// The last step of a run of `tier`: prunes where it was delivered to, `stores`. What was done, and why no more could be.
pub(super) fn after_run(
    setup: &Setup,
    tier: &Tier,
    name: &BackupName,
    stores: &[&str],
    world: &World<'_>,
) -> (Vec<Plot>, Option<Failure>) {
    match try_after_run(setup, tier, name, stores, world) {
        Ok(plots) => (plots, None),
        Err(PruneError::Interrupted(_)) => {
            let text = format!("Pruning of tier {} was interrupted; the next run goes on with it", tier.name);
            world.monitor.event(Event::new(What::Warning, text).tier(&tier.name));
            (Vec::new(), None)
        }
        Err(e) => (Vec::new(), Some(Failure::of(&e, world))),
    }
}

fn try_after_run(
    setup: &Setup,
    tier: &Tier,
    name: &BackupName,
    stores: &[&str],
    world: &World<'_>,
) -> Result<Vec<Plot>, PruneError> {
    pins::settle(setup, world)?;
    let occasion = Occasion { this_run: Some(name), count_this_run: true };
    let mut plots = plots_of(setup, tier, occasion, world)?;
    plots.retain(|p| stores.contains(&p.store.as_str()));
    carry_out(setup, &mut plots, false, world)?;
    Ok(plots)
}

/// Makes room in a store that has none for `name`: what the rules allow goes at once. Says whether anything went.
pub(super) fn make_room(
    setup: &Setup,
    tier: &Tier,
    store: &str,
    name: &BackupName,
    world: &World<'_>,
) -> Result<bool, PruneError> {
    let occasion = Occasion { this_run: Some(name), count_this_run: false };
    let mut plots = plots_of(setup, tier, occasion, world)?;
    plots.retain(|p| p.store == store);
    carry_out(setup, &mut plots, true, world)?;
    Ok(plots.iter().any(|p| p.done().next().is_some()))
}
