//! Archives of the bash script that came before: what can be known of one by its `.sha256`, and by the manifest inside.
//! What could go wrong: something unfinished taken for one of them; so only the script's own mark counts, a `.sha256` that
//! names the archive by an absolute path.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::id::{BackupName, show_name};
use crate::manifest::{CONFIG_DIR, Component, ComponentState, Encryption, Manifest, Options, State};

/// The digest that the script's `.sha256` has for this archive; None when the script did not write it.
pub fn digest_in(text: &[u8], name: &BackupName) -> Option<String> {
    let line = std::str::from_utf8(text).ok()?.trim_end();
    let (digest, path) = line.split_once("  ").or_else(|| line.split_once(" *"))?;
    let hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    let absolute = path.starts_with('/') && path.ends_with(&format!("/{}", name.archive()));
    (hex && absolute && !line.contains('\n')).then(|| digest.to_ascii_lowercase())
}

/// What is known before the archive is read. Times in names of the script are local.
pub fn outside(name: BackupName, bytes: u64, sha256: String) -> Manifest {
    Manifest {
        version: "bash".to_owned(),
        timestamp: local_time(&name),
        backup_name: name,
        components: Vec::new(),
        checksums: BTreeMap::new(),
        host: String::new(),
        docker_volumes: Vec::new(),
        options: Options::default(),
        failed_components: Vec::new(),
        schema: 0,
        tier: String::new(),
        tags: Vec::new(),
        only: Vec::new(),
        skip: Vec::new(),
        expected_components: Vec::new(),
        state: State::Complete,
        anomalies: Vec::new(),
        encryption: Encryption::default(),
        details: BTreeMap::new(),
        legacy: true,
        bytes: Some(bytes),
        sha256: Some(sha256),
        manifest_sha256: None,
    }
}

/// `20260131_020000` as `2026-01-31T02:00:00`, without a zone.
fn local_time(name: &BackupName) -> String {
    let digits: String = name.to_string().chars().filter(char::is_ascii_digit).collect();
    let part = |from: usize, to: usize| digits.get(from..to).unwrap_or_default();
    format!("{}-{}-{}T{}:{}:{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 12), part(12, 14))
}

/// The component that a file of the archive belongs to, and its type.
pub fn component_of(member: &str) -> Option<(&'static str, &'static str)> {
    Some(match member {
        "chromadb.tar.gz" => ("chromadb", "chromadb"),
        "postgres.sql.gz" => ("postgres", "postgres"),
        "redis-dump.rdb" => ("redis", "redis"),
        "ollama-models.tar.gz" => ("ollama", "ollama"),
        "backend_logs.tar.gz" => ("backend_logs", "volume"),
        _ if member.starts_with(CONFIG_DIR) => ("configuration", "config_files"),
        _ => return None,
    })
}

/// A component with nothing known of it but its type.
pub fn bare(kind: &str) -> Component {
    Component {
        kind: kind.to_owned(),
        critical: matches!(kind, "chromadb" | "postgres" | "config_files"),
        state: ComponentState::Whole,
        members: Vec::new(),
        bytes_in: 0,
        bytes_stored: 0,
        files: 0,
        duration_ms: 0,
        consistency: "unknown".to_owned(),
        paused_ms: 0,
        warnings: Vec::new(),
        error: None,
        facts: Map::new(),
    }
}

/// Fills in what the manifest inside the archive says, and the files that are there (`(name, bytes)`). The digest of
/// `config/` is left out: the script took it over files in no certain order.
pub fn fill(
    manifest: &mut Manifest,
    inside: &[u8],
    files: &[(String, u64)],
) -> Result<(), serde_json::Error> {
    let inner: Value = serde_json::from_slice(inside)?;
    let texts = |key: &str| -> Vec<String> {
        let list = inner.get(key).and_then(Value::as_array).into_iter().flatten();
        // A run without failures wrote one empty name.
        list.filter_map(Value::as_str).filter(|t| !t.is_empty()).map(|t| show_name(t.as_bytes())).collect()
    };
    manifest.failed_components = texts("failed_components");
    manifest.docker_volumes = texts("docker_volumes");
    manifest.host = show_name(inner.get("host").and_then(Value::as_str).unwrap_or_default().as_bytes());
    let sums = inner.get("checksums").and_then(Value::as_object);
    manifest.checksums = sums
        .into_iter()
        .flatten()
        .filter(|(file, _)| *file != CONFIG_DIR)
        .filter_map(|(file, sum)| Some((file.clone(), sum.as_str()?)))
        .map(|(file, sum)| (file, format!("sha256:{}", sum.trim_start_matches("sha256:"))))
        .collect();
    for (file, bytes) in files {
        let Some((component, kind)) = component_of(file) else { continue };
        let details = manifest.details.entry(component.to_owned()).or_insert_with(|| bare(kind));
        details.members.push(file.clone());
        details.files += 1;
        details.bytes_stored += bytes;
        details.bytes_in += bytes;
    }
    manifest.components = manifest.details.keys().cloned().collect();
    manifest.expected_components = manifest.components.clone();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_mark_of_the_script_counts() {
        let name: BackupName = "tars-backup-20260131_020000".parse().unwrap();
        let digest = "a".repeat(64);
        let is = |line: String| digest_in(line.as_bytes(), &name).is_some();
        assert!(is(format!("{digest}  /mnt/nas/daily/tars-backup-20260131_020000.tar.gz\n")));
        assert!(!is(format!("{digest}  tars-backup-20260131_020000.tar.gz\n")), "one of ours");
        assert!(!is(format!("{digest}  /mnt/nas/daily/tars-backup-20260131_020001.tar.gz\n")), "another one");
        assert!(!is(format!("{}  /mnt/tars-backup-20260131_020000.tar.gz\n", "z".repeat(64))));
        assert!(!is(format!("{digest}  /a\n{digest}  /mnt/tars-backup-20260131_020000.tar.gz\n")));
        assert_eq!(local_time(&name), "2026-01-31T02:00:00");
    }

    #[test]
    fn the_manifest_inside_is_read_as_the_script_wrote_it() {
        let name: BackupName = "tars-backup-20260131_020000".parse().unwrap();
        let mut manifest = outside(name, 5, "a".repeat(64));
        assert!(!manifest.counts());
        let inner = serde_json::json!({
            "version": "1.0.12", "host": "home", "components": ["redis"], "failed_components": [""],
            "docker_volumes": ["deploy_redis_data"], "checksums": {"redis-dump.rdb": "ab", "config/": "cd"}
        });
        let files =
            [("redis-dump.rdb".to_owned(), 7), ("config/tars-home.env".to_owned(), 3), ("odd".to_owned(), 1)];
        fill(&mut manifest, inner.to_string().as_bytes(), &files).unwrap();
        assert_eq!(manifest.components, ["configuration", "redis"]);
        assert_eq!(manifest.failed_components, [""; 0]);
        assert_eq!(manifest.checksums["redis-dump.rdb"], "sha256:ab");
        assert!(!manifest.checksums.contains_key(CONFIG_DIR));
    }
}
