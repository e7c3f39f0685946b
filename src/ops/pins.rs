//! Pins that some store has not taken yet. What could go wrong: a backup is pinned, the store that is down tonight never
//! hears of it, and prunes it tomorrow; so what is not written is noted on this machine, tried again, and nothing is
//! pruned in that store until it is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::World;
use super::find;
use crate::cancel::Interrupted;
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::marks::{self, Pin};
use crate::progress::{Event, What};
use crate::setup::Setup;
use crate::spool::{Spool, SpoolError};
use crate::staging::{StagingError, make_private};
use crate::store::{self, Store, StoreError};
use crate::whole_file;

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("the pins that are still to be written cannot be noted in {path}")]
    Note {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} does not say which pins are still to be written")]
    Unreadable { path: PathBuf },
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    State(#[from] StagingError),
}

impl Hint for PinError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable { path } => {
                format!("pin again what is to stay, then remove it: rm {}", path.display())
            }
            Self::Note { .. } => "make room for agent.state_dir".into(),
            Self::Spool(e) => return e.hint(),
            Self::State(e) => return e.hint(),
            Self::Interrupted(_) => return None,
        })
    }
}

/// A pin that one store lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unwritten {
    name: BackupName,
    store: String,
    pin: Pin,
}

fn file(setup: &Setup) -> PathBuf {
    setup.agent.state_dir.join("pins.json")
}

fn load(path: &Path) -> Result<Vec<Unwritten>, PinError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|_| PinError::Unreadable { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(PinError::Note { path: path.to_owned(), source }),
    }
}

fn save(setup: &Setup, list: &[Unwritten]) -> Result<(), PinError> {
    make_private(&setup.agent.state_dir)?;
    let path = file(setup);
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec_pretty(list)?;
        whole_file::write(&path, &text)
    };
    write().map_err(|source| PinError::Note { path: path.clone(), source })
}

/// Notes that these stores are to get the pin, before the first of them is asked.
pub(super) fn note(setup: &Setup, name: &BackupName, pin: &Pin, stores: &[&str]) -> Result<(), PinError> {
    let mut list = load(&file(setup))?;
    list.retain(|u| u.name != *name || !stores.contains(&u.store.as_str()));
    list.extend(stores.iter().map(|store| Unwritten {
        name: name.clone(),
        store: (*store).to_owned(),
        pin: pin.clone(),
    }));
    save(setup, &list)
}

/// No store is to get it any more.
pub(super) fn forget(setup: &Setup, name: &BackupName) -> Result<(), PinError> {
    let list = load(&file(setup))?;
    let rest: Vec<Unwritten> = list.iter().filter(|u| u.name != *name).cloned().collect();
    if rest == list { Ok(()) } else { save(setup, &rest) }
}

/// Stores in which a copy may lack its pin, and of which backup.
pub(super) fn unwritten(setup: &Setup) -> Result<BTreeMap<String, BackupName>, PinError> {
    let entries = Spool::new(&setup.agent.spool_dir, 0).entries()?;
    // What waits for this very store is not there yet: nothing of it can be pruned. One that does not read may be there.
    let waits = |u: &Unwritten| {
        let it = entries.iter().flatten().find(|e| e.manifest().backup_name == u.name);
        it.is_some_and(|e| e.pending().iter().any(|p| p.store == u.store))
    };
    let there = load(&file(setup))?.into_iter().filter(|u| !waits(u));
    Ok(there.map(|u| (u.store, u.name)).collect())
}

/// Writes what can be written now. A copy that does not come any more needs no pin. What failed is told by the stores
/// that are returned, with the reason.
pub(super) fn settle(setup: &Setup, world: &World<'_>) -> Result<Vec<(String, StoreError)>, PinError> {
    let list = load(&file(setup))?;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let spool = Spool::new(&setup.agent.spool_dir, 0).names()?;
    let (mut left, mut failed) = (Vec::new(), Vec::new());
    for unwritten in list {
        world.cancel.check()?;
        // A store that is configured no more may be configured again.
        let Some(store) = setup.store(&unwritten.store) else {
            left.push(unwritten);
            continue;
        };
        match write(setup, store, &unwritten, world) {
            Ok(0) if spool.contains(&unwritten.name) => left.push(unwritten),
            Ok(_) => {}
            Err(StoreError::Interrupted(i)) => return Err(i.into()),
            Err(e) => {
                let text =
                    format!("The pin of {} is not yet in {}: {}", unwritten.name, store.name(), chain(&e));
                world.monitor.event(Event::new(What::Warning, text).store(store.name()));
                failed.push((store.name().to_owned(), e));
                left.push(unwritten);
            }
        }
    }
    save(setup, &left)?;
    Ok(failed)
}

/// Pins every copy in a store; says how many there are.
fn write(
    setup: &Setup,
    store: &dyn Store,
    unwritten: &Unwritten,
    world: &World<'_>,
) -> Result<usize, StoreError> {
    store::check_marker(store, world.owner, world.cancel)?;
    let copies = find::copies_in(setup, store, &unwritten.name, world.cancel)?;
    for copy in &copies {
        marks::set(store, &copy.dir, &unwritten.name, &unwritten.pin)?;
    }
    Ok(copies.len())
}
