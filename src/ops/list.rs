//! What is stored where, one line per backup.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::find::{self, Found};
use crate::catalog::Entry;
use crate::id::BackupName;
use crate::marks::{Pin, Trash, Verified};

#[derive(Debug, Serialize)]
pub struct Row {
    pub name: BackupName,
    pub timestamp: Option<String>,
    /// Seconds since the backup was made; None for a damaged or future one.
    pub age_s: Option<u64>,
    pub tier: String,
    pub host: Option<String>,
    pub bytes: Option<u64>,
    /// `complete`, `degraded`, `partial` or `damaged`.
    pub state: String,
    /// Why it is damaged.
    pub error: Option<String>,
    pub stores: Vec<String>,
    /// Whether any of its copies is sealed.
    pub sealed: bool,
    pub components: Vec<String>,
    pub failed_components: Vec<String>,
    pub only: Vec<String>,
    pub skip: Vec<String>,
    pub tags: Vec<String>,
    /// Oldest mark of all its copies: when the least looked-at copy was last found good.
    pub verified: Option<Verified>,
    /// Of any copy that is pinned.
    pub pinned: Option<Pin>,
    /// Components that had shrunk to under half.
    pub anomalies: Vec<String>,
    /// Whether somebody has said that this is right.
    pub accepted: bool,
    pub trash: Option<Trash>,
    /// `--latest` would choose it.
    pub latest: bool,
}

/// Rows, oldest first. Copies of one backup in one tier are one row, unless one of them is damaged.
pub fn rows(found: &[Found<'_>], now: Timestamp) -> Vec<Row> {
    let mut grouped: BTreeMap<(BackupName, String, Option<String>), Row> = BTreeMap::new();
    for f in found {
        let damage = f.entry.manifest.as_ref().err().map(crate::hint::chain_of);
        let key = (
            f.entry.name.clone(),
            f.tier.clone(),
            damage.clone().map(|d| format!("{}: {d}", f.store().name())),
        );
        if let Some(row) = grouped.get_mut(&key) {
            row.stores.push(f.store().name().to_owned());
            row.pinned = row.pinned.take().or_else(|| f.entry.pin.clone());
            row.accepted &= f.entry.accepted;
            row.sealed |= f.entry.manifest.as_ref().is_ok_and(|m| m.encryption.is_sealed());
            row.verified = match (row.verified.take(), f.entry.verified.clone()) {
                (Some(a), Some(b)) => Some(if a.time <= b.time { a } else { b }),
                _ => None,
            };
            continue;
        }
        grouped.insert(key, row(f, damage, now));
    }
    let mut rows: Vec<Row> = grouped.into_values().collect();
    let counts =
        |e: &&Entry| e.trash.is_none() && e.manifest.as_ref().is_ok_and(crate::manifest::Manifest::counts);
    let latest = find::newest(found.iter().map(|f| &f.entry).filter(counts), now).map(|e| &e.name);
    for row in &mut rows {
        row.latest = row.error.is_none() && Some(&row.name) == latest;
    }
    rows
}

fn row(f: &Found<'_>, damage: Option<String>, now: Timestamp) -> Row {
    let manifest = f.entry.manifest.as_ref().ok();
    let time: Option<Timestamp> = manifest.and_then(|m| m.timestamp.parse().ok());
    Row {
        name: f.entry.name.clone(),
        timestamp: manifest.map(|m| m.timestamp.clone()),
        age_s: time.and_then(|t| u64::try_from(now.as_second() - t.as_second()).ok()),
        tier: f.tier.clone(),
        host: manifest.map(|m| m.host.clone()),
        bytes: manifest.and_then(|m| m.bytes),
        state: manifest.map_or_else(
            || "damaged".to_owned(),
            |m| if m.legacy { "legacy".to_owned() } else { m.state.to_string() },
        ),
        error: damage,
        stores: vec![f.store().name().to_owned()],
        sealed: manifest.is_some_and(|m| m.encryption.is_sealed()),
        components: manifest.map(|m| m.components.clone()).unwrap_or_default(),
        failed_components: manifest.map(|m| m.failed_components.clone()).unwrap_or_default(),
        only: manifest.map(|m| m.only.clone()).unwrap_or_default(),
        skip: manifest.map(|m| m.skip.clone()).unwrap_or_default(),
        tags: manifest.map(|m| m.tags.clone()).unwrap_or_default(),
        verified: f.entry.verified.clone(),
        pinned: f.entry.pin.clone(),
        anomalies: manifest.map(|m| m.anomalies.clone()).unwrap_or_default(),
        accepted: f.entry.accepted,
        trash: f.entry.trash.clone(),
        latest: false,
    }
}
