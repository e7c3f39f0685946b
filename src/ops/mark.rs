//! What a person says of a backup: pinned, no longer pinned, accepted, back out of the trash. What could go wrong: it is
//! said to one copy and not to the others; so every copy in every store is told, and what could not be told is a failure.

use jiff::Timestamp;
use serde::Serialize;

use super::World;
use super::backup::Failure;
use super::find::{self, FindError, Found};
use super::pins::{self, PinError};
use crate::cancel::Interrupted;
use crate::hint::Hint;
use crate::id::BackupName;
use crate::marks::{self, Accepted, Pin, Trash};
use crate::progress::{Event, What};
use crate::run_guard::RunGuard;
use crate::setup::Setup;
use crate::store::{self, StoreError};

/// A person's word.
#[derive(Debug, Clone)]
pub enum Word {
    Pin { reason: Option<String>, until: Option<Timestamp> },
    Unpin,
    Accept,
    Undelete,
}

#[derive(Debug, Serialize)]
pub struct Outcome {
    pub name: BackupName,
    /// Copies that were told, as `store/tier`.
    pub told: Vec<String>,
    /// Stores that were not.
    pub failed: Vec<NotTold>,
}

#[derive(Debug, Serialize)]
pub struct NotTold {
    pub store: String,
    #[serde(flatten)]
    pub failure: Failure,
}

#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Find(FindError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error("{0} has no anomaly that could be accepted")]
    NoAnomaly(BackupName),
    #[error("{0} is in no trash")]
    NotInTrash(BackupName),
    #[error("{0} is in the trash")]
    InTrash(BackupName),
}

impl From<FindError> for MarkError {
    fn from(e: FindError) -> Self {
        match e {
            FindError::Store(StoreError::Interrupted(i)) => Self::Interrupted(i),
            e => Self::Find(e),
        }
    }
}

impl Hint for MarkError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Find(e) => return e.hint(),
            Self::Pins(e) => return e.hint(),
            Self::NoAnomaly(_) => "see which have one: tars-backup list".into(),
            Self::NotInTrash(_) => "see what is there: tars-backup list --trash".into(),
            Self::InTrash(name) => format!("take it out first: tars-backup undelete {name}"),
            Self::Interrupted(_) => return None,
        })
    }
}

/// Tells every copy. The guard proves that nobody prunes meanwhile.
pub fn tell(
    setup: &Setup,
    name: &BackupName,
    word: &Word,
    _guard: &RunGuard,
    world: &World<'_>,
) -> Result<Outcome, MarkError> {
    let (copies, unlisted) = find::copies_of(setup, name, world.cancel)?;
    let copies = fit(copies, name, word, unlisted.is_empty())?;
    let mut outcome = Outcome { name: name.clone(), told: Vec::new(), failed: Vec::new() };
    let now = (world.now)();
    let pin = match word {
        Word::Pin { reason, until } => {
            let pin = Pin { time: Some(now), reason: reason.clone(), until: *until };
            let stores: Vec<&str> = setup.stores.iter().map(|s| s.name()).collect();
            pins::note(setup, name, &pin, &stores)?;
            Some(pin)
        }
        Word::Unpin => {
            pins::forget(setup, name)?;
            None
        }
        Word::Accept | Word::Undelete => None,
    };
    for copy in &copies {
        world.cancel.check()?;
        let (store, dir) = (copy.store(), copy.dir.as_str());
        let told = store::check_marker(store, world.owner, world.cancel).and_then(|()| match word {
            Word::Pin { .. } => marks::set(store, dir, name, &pin.clone().unwrap_or_default()),
            Word::Unpin => marks::clear::<Pin>(store, dir, name),
            Word::Accept => marks::set(store, dir, name, &Accepted { time: Some(now) }),
            Word::Undelete => marks::clear::<Trash>(store, dir, name),
        });
        match told {
            Ok(()) => outcome.told.push(format!("{}/{}", store.name(), copy.tier)),
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => outcome
                .failed
                .push(NotTold { store: store.name().to_owned(), failure: Failure::of(&e, world) }),
        }
    }
    for (store, e) in &unlisted {
        outcome.failed.push(NotTold { store: store.clone(), failure: Failure::of(e, world) });
    }
    if pin.is_some() {
        // What was just written is written once more, which costs little; the rest is kept for later.
        pins::settle(setup, world)?;
    }
    if !outcome.told.is_empty() {
        let (what, verb) = match word {
            Word::Pin { .. } => (What::PinSet, "Pinned"),
            Word::Unpin => (What::PinCleared, "Unpinned"),
            Word::Accept => (What::AnomalyAccepted, "Accepted the anomaly of"),
            Word::Undelete => (What::TrashUndone, "Took out of the trash"),
        };
        let text = format!("{verb} {name} in {}", outcome.told.join(", "));
        world.monitor.event(Event::new(what, text).backup(name));
    }
    Ok(outcome)
}

/// The copies that the word fits. `all_listed`: no store is missing, so that what is not found is nowhere.
fn fit<'a>(
    copies: Vec<Found<'a>>,
    name: &BackupName,
    word: &Word,
    all_listed: bool,
) -> Result<Vec<Found<'a>>, MarkError> {
    if copies.is_empty() && (all_listed || !matches!(word, Word::Pin { .. })) {
        return Err(FindError::NoBackup(name.to_string()).into());
    }
    let (trashed, here): (Vec<_>, Vec<_>) = copies.into_iter().partition(|c| c.entry.trash.is_some());
    match word {
        Word::Undelete if trashed.is_empty() => Err(MarkError::NotInTrash(name.clone())),
        Word::Undelete => Ok(trashed),
        _ if here.is_empty() && !trashed.is_empty() => Err(MarkError::InTrash(name.clone())),
        Word::Accept if !here.iter().any(|c| c.entry.has_open_anomaly()) => {
            Err(MarkError::NoAnomaly(name.clone()))
        }
        Word::Accept | Word::Pin { .. } | Word::Unpin => Ok(here),
    }
}
