//! What lies in the clear beside a sealed backup. What could go wrong: a sidecar that tells what was sealed (names of
//! tables, files and volumes, digests that a guess can be compared with); so this is a list of what may be known, and
//! whatever a manifest learns later is sealed until it is named here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{Component, ComponentState, Encryption, Manifest, Options, State};
use crate::id::BackupName;

#[derive(Serialize, Deserialize)]
pub(super) struct Outside {
    version: String,
    timestamp: String,
    backup_name: BackupName,
    components: Vec<String>,
    host: String,
    failed_components: Vec<String>,
    schema: u32,
    tier: String,
    tags: Vec<String>,
    only: Vec<String>,
    skip: Vec<String>,
    expected_components: Vec<String>,
    state: State,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    anomalies: Vec<String>,
    encryption: Encryption,
    details: BTreeMap<String, Part>,
    bytes: Option<u64>,
    sha256: Option<String>,
    pub(super) manifest_sha256: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    critical: bool,
    state: ComponentState,
    bytes_in: u64,
    bytes_stored: u64,
}

impl From<&Manifest> for Outside {
    fn from(m: &Manifest) -> Self {
        let part = |c: &Component| Part {
            critical: c.critical,
            state: c.state,
            bytes_in: c.bytes_in,
            bytes_stored: c.bytes_stored,
        };
        Self {
            version: m.version.clone(),
            timestamp: m.timestamp.clone(),
            backup_name: m.backup_name.clone(),
            components: m.components.clone(),
            host: m.host.clone(),
            failed_components: m.failed_components.clone(),
            schema: m.schema,
            tier: m.tier.clone(),
            tags: m.tags.clone(),
            only: m.only.clone(),
            skip: m.skip.clone(),
            expected_components: m.expected_components.clone(),
            state: m.state,
            anomalies: m.anomalies.clone(),
            encryption: m.encryption.clone(),
            details: m.details.iter().map(|(name, c)| (name.clone(), part(c))).collect(),
            bytes: m.bytes,
            sha256: m.sha256.clone(),
            manifest_sha256: m.manifest_sha256.clone(),
        }
    }
}

impl From<Outside> for Manifest {
    fn from(o: Outside) -> Self {
        let component = |p: Part| Component {
            kind: String::new(),
            critical: p.critical,
            state: p.state,
            members: Vec::new(),
            bytes_in: p.bytes_in,
            bytes_stored: p.bytes_stored,
            files: 0,
            duration_ms: 0,
            consistency: String::new(),
            paused_ms: 0,
            warnings: Vec::new(),
            error: None,
            facts: Map::new(),
        };
        Self {
            version: o.version,
            timestamp: o.timestamp,
            backup_name: o.backup_name,
            components: o.components,
            checksums: BTreeMap::new(),
            host: o.host,
            docker_volumes: Vec::new(),
            options: Options::default(),
            failed_components: o.failed_components,
            schema: o.schema,
            tier: o.tier,
            tags: o.tags,
            only: o.only,
            skip: o.skip,
            expected_components: o.expected_components,
            state: o.state,
            anomalies: o.anomalies,
            encryption: o.encryption,
            details: o.details.into_iter().map(|(name, p)| (name, component(p))).collect(),
            legacy: false,
            bytes: o.bytes,
            sha256: o.sha256,
            manifest_sha256: o.manifest_sha256,
        }
    }
}
