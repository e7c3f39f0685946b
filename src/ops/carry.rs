//! Takes a stored backup to stores that lack it, byte for byte: out of one store into the spool, and from there as
//! anything that waits there. What could go wrong: a copy of something damaged; so it is hashed while it is fetched, and
//! read back where it was brought.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::World;
use super::find::Found;
use super::sync::{self, Delivered};
use crate::archive::compress::{Reserve, free_bytes};
use crate::archive::pack::Packed;
use crate::cancel::{Cancel, Interrupted};
use crate::catalog::Listing;
use crate::delivery::{Parcel, Place, Receipt};
use crate::hint::{Hint, chain};
use crate::id::BackupName;
use crate::manifest::Manifest;
use crate::marks::{self, Accepted};
use crate::ops::pins::{self, PinError};
use crate::progress::{Event, What};
use crate::setup::Setup;
use crate::spool::{self, Pending, Spool, SpoolError};
use crate::store::{self, StoreError, object};
use crate::units::show_bytes;

#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Pins(PinError),
    #[error("{name} still waits in the spool for another store")]
    Waits { name: BackupName },
    #[error("the spool would hold more than {limit} with {name}, which has {bytes}")]
    Full { name: BackupName, bytes: String, limit: String },
    #[error("{name} has {bytes}, and the disk of the spool has {free} free")]
    Disk { name: BackupName, bytes: String, free: String },
    #[error("no copy of {name} could be fetched: {why}")]
    NoCopy { name: BackupName, why: String },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<PinError> for CarryError {
    fn from(e: PinError) -> Self {
        match e {
            PinError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Pins(e),
        }
    }
}

impl Hint for CarryError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Spool(e) => return e.hint(),
            Self::Pins(e) => return e.hint(),
            Self::Waits { .. } => "deliver that first: tars-backup sync".into(),
            Self::Full { .. } => "deliver what waits (tars-backup sync), or raise agent.spool_limit".into(),
            Self::NoCopy { name, .. } => format!("look at its copies: tars-backup verify {name}"),
            Self::Disk { .. } | Self::Write { .. } => {
                "make room, or set agent.spool_dir to a larger disk".into()
            }
            Self::Interrupted(_) => return None,
        })
    }
}

/// What a store has of the name of a backup.
pub(super) enum There {
    Nothing,
    /// Nothing that is committed, or a commit that does not read as one.
    Unfinished,
    /// The same backup, whole and found good; it may have been sealed another time.
    Good(Receipt),
    /// The same backup, and nobody knows whether it is good. These are its bytes.
    Unproven(Option<String>),
    /// The same backup, on its way out.
    Trashed,
    /// Another backup.
    Other,
}

/// Looks whether a store has that backup. A second sealing has other bytes, so its digest cannot tell.
pub(super) fn there(to: Place<'_>, manifest: &Manifest, cancel: &Cancel) -> Result<There, StoreError> {
    let name = &manifest.backup_name;
    let listing = Listing::of(to.store, to.dir, cancel)?;
    if !listing.used().any(|n| n == *name) {
        return Ok(There::Nothing);
    }
    let committed = listing.names().contains(name);
    let Some(entry) = committed.then(|| listing.entry(name.clone())).transpose()?.flatten() else {
        return Ok(There::Unfinished);
    };
    let Ok(stored) = &entry.manifest else { return Ok(There::Unfinished) };
    if stored.host != manifest.host || stored.timestamp != manifest.timestamp {
        return Ok(There::Other);
    }
    Ok(match (&entry.trash, &entry.verified, stored.bytes, &stored.sha256) {
        (Some(_), ..) => There::Trashed,
        (None, Some(mark), Some(bytes), Some(sha256)) if entry.is_verified() => There::Good(Receipt {
            store: to.store.name().to_owned(),
            object: object(to.dir, &stored.archive_file()),
            bytes,
            sha256: sha256.clone(),
            method: "read-back".to_owned(),
            time: mark.time.clone(),
            duration_ms: 0,
        }),
        _ => There::Unproven(stored.sha256.clone()),
    })
}

/// Where a copy is to go.
pub(super) struct Goal<'a> {
    pub store: &'a dyn store::Store,
    pub dir: String,
    /// What has the name there is a copy of it, whole or not.
    pub begun: bool,
}

/// Brings a backup to `goals`. `copies`: the good ones of it, the one to be read first in front. What a store does not
/// take now waits in the spool.
pub(super) fn carry(
    setup: &Setup,
    copies: &[&Found<'_>],
    goals: &[Goal<'_>],
    world: &World<'_>,
) -> Result<Vec<Delivered>, CarryError> {
    let Some(name) = copies.first().map(|c| &c.entry.name) else { return Ok(Vec::new()) };
    // A copy is kept as long as what it is a copy of.
    if let Some(pin) = copies.iter().find_map(|c| c.entry.pin.as_ref()) {
        let stores: Vec<&str> = goals.iter().map(|g| g.store.name()).collect();
        pins::note(setup, name, pin, &stores)?;
    }
    let entry = enter(setup, name, copies, goals, world)?;
    let accepted = copies.iter().any(|c| c.entry.accepted);
    let mut delivered = sync::of_entry(entry, setup, world)?;
    // It may wait for other stores too.
    delivered.retain(|d| goals.iter().any(|g| g.store.name() == d.store));
    for done in delivered.iter().filter(|d| accepted && d.receipt.is_some()) {
        let Some(goal) = goals.iter().find(|g| g.store.name() == done.store) else { continue };
        let mark = Accepted { time: Some((world.now)()) };
        if let Err(e) = marks::set(goal.store, &goal.dir, name, &mark) {
            let text = format!("{name} is not marked as accepted in {}: {}", done.store, chain(&e));
            world.monitor.event(Event::new(What::Warning, text).backup(name).store(&done.store));
        }
    }
    pins::settle(setup, world)?;
    Ok(delivered)
}

/// The backup in the spool, where it waits for the goals: as what waits there already, or fetched.
fn enter(
    setup: &Setup,
    name: &BackupName,
    copies: &[&Found<'_>],
    goals: &[Goal<'_>],
    world: &World<'_>,
) -> Result<spool::Entry, CarryError> {
    // A store that gets nothing but sealed archives has a plain one sealed when it is delivered.
    let pending = |sealed: bool| -> Vec<Pending> {
        let to = |goal: &Goal<'_>| Pending {
            store: goal.store.name().to_owned(),
            dir: goal.dir.clone(),
            sealed,
            begun: goal.begun,
            error: None,
        };
        goals.iter().map(to).collect()
    };
    let spool = Spool::new(&setup.agent.spool_dir, setup.agent.spool_limit);
    spool.sweep()?;
    if spool.names()?.contains(name) {
        let mut entries = spool.entries()?.into_iter().flatten();
        let waiting = entries.find(|e| e.manifest().backup_name == *name);
        let mut entry = waiting.ok_or_else(|| CarryError::Waits { name: name.clone() })?;
        // A store that waits for it in another directory has to have that one first.
        let elsewhere = |p: &Pending| goals.iter().any(|g| g.store.name() == p.store && g.dir != p.dir);
        let form = [false, true].into_iter().find(|sealed| entry.parcel(*sealed).is_some());
        let (Some(sealed), false) = (form, entry.pending().iter().any(elsewhere)) else {
            return Err(CarryError::Waits { name: name.clone() });
        };
        let mut more = pending(sealed);
        more.retain(|p| !entry.pending().iter().any(|known| known.store == p.store));
        entry.also(more)?;
        return Ok(entry);
    }
    let bytes = copies.iter().filter_map(|c| c.entry.manifest.as_ref().ok()?.bytes).max().unwrap_or(0);
    if !spool.has_room(bytes)? {
        let (bytes, limit) = (show_bytes(bytes), show_bytes(spool.limit()));
        return Err(CarryError::Full { name: name.clone(), bytes, limit });
    }
    let mut slot = spool.begin(name)?;
    // Other services live of that disk, too.
    let room = |source| CarryError::Write { path: slot.dir().to_owned(), source };
    let (free, reserve) = (free_bytes(slot.dir()).map_err(room)?, Reserve::of(slot.dir()).map_err(room)?);
    if free < bytes.saturating_add(reserve.bytes) {
        let (bytes, free) = (show_bytes(bytes), show_bytes(free));
        return Err(CarryError::Disk { name: name.clone(), bytes, free });
    }
    let (manifest, packed) = fetch(copies, slot.dir(), world)?;
    let parcel = Parcel { packed, encryption: manifest.encryption.clone() };
    let pending = pending(parcel.encryption.is_sealed());
    Ok(slot.enter(manifest, &[&parcel], pending)?)
}

/// The archive of the first copy that is what its manifest says, and that manifest: one copy may be sealed, and another not.
fn fetch<'a>(
    copies: &[&'a Found<'_>],
    dir: &Path,
    world: &World<'_>,
) -> Result<(&'a Manifest, Packed), CarryError> {
    let mut reasons = Vec::new();
    for copy in copies {
        let Ok(manifest) = &copy.entry.manifest else { continue };
        let path = dir.join(manifest.archive_file());
        match one(copy, manifest, &path, world) {
            Ok(packed) => return Ok((manifest, packed)),
            Err(CarryError::NoCopy { why, .. }) => {
                log::warn!("{} in {}: {why}", copy.entry.name, copy.store().name());
                reasons.push(format!("{}: {why}", copy.store().name()));
            }
            Err(e) => return Err(e),
        }
    }
    let name = copies[0].entry.name.clone();
    Err(CarryError::NoCopy { name, why: reasons.join("; ") })
}

fn one(copy: &Found<'_>, manifest: &Manifest, path: &Path, world: &World<'_>) -> Result<Packed, CarryError> {
    let name = &manifest.backup_name;
    let bad = |why: String| CarryError::NoCopy { name: name.clone(), why };
    let write = |source| CarryError::Write { path: path.to_owned(), source };
    world.monitor.phase(&format!("fetching {name} from {}", copy.store().name()), manifest.bytes);
    let mut stored = match copy.open(world.cancel) {
        Ok((stored, _)) => stored,
        Err(StoreError::Interrupted(i)) => return Err(i.into()),
        Err(e) => return Err(bad(chain(&e))),
    };
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(write)?;
    let (mut hasher, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        world.cancel.check()?;
        let n = match stored.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => {
                world.cancel.check()?;
                return Err(bad(e.to_string()));
            }
        };
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n]).map_err(write)?;
        bytes += n as u64;
        world.monitor.moved(n as u64);
    }
    file.sync_all().map_err(write)?;
    let sha256 = hex::encode(hasher.finalize());
    if manifest.bytes != Some(bytes) || manifest.sha256.as_deref() != Some(sha256.as_str()) {
        return Err(bad("its bytes are not what its manifest says".to_owned()));
    }
    Ok(Packed { path: path.to_owned(), bytes, sha256 })
}
