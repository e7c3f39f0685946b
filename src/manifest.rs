//! What is in a backup. One schema, two places: inside the archive, and as the sidecar `<name>.manifest.json` beside
//! it, which is the commit; beside a sealed archive only what may be known of it. What could go wrong: a sidecar that was
//! changed and still reads as true, so it carries a digest of itself over its exact bytes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::id::{BackupName, Name, is_member, show_name};

mod outside;

use outside::Outside;

/// Schema of the manifests that this version writes.
pub const SCHEMA: u32 = 1;

/// Key of the checksum that covers the whole `config/` directory.
pub const CONFIG_DIR: &str = "config/";

/// Longest piece of a bad name that an error shows.
const SHOWN_CHARS: usize = 100;

const DIGEST_FIELD: &str = "manifest_sha256";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every expected component is in it.
    Complete,
    /// Only components that can be rebuilt are missing.
    Degraded,
    /// A critical component is missing.
    Partial,
}

impl State {
    /// From what was expected (`(name, critical)`) and what is whole.
    pub fn of<'a>(expected: impl IntoIterator<Item = (&'a str, bool)>, whole: &[&str]) -> Self {
        let mut state = Self::Complete;
        for (name, critical) in expected {
            if whole.contains(&name) {
                continue;
            }
            if critical {
                return Self::Partial;
            }
            state = Self::Degraded;
        }
        state
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Degraded => "degraded",
            Self::Partial => "partial",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentState {
    Whole,
    /// What could be read is in the archive; counts as missing.
    Incomplete,
    /// Nothing of it is in the archive.
    Failed,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Component {
    #[serde(rename = "type")]
    pub kind: String,
    pub critical: bool,
    pub state: ComponentState,
    /// Members of the archive that belong to it.
    pub members: Vec<String>,
    /// Bytes read from the source.
    pub bytes_in: u64,
    /// Bytes in the archive.
    pub bytes_stored: u64,
    /// Files, dumps or databases in it.
    pub files: u64,
    pub duration_ms: u64,
    pub consistency: String,
    pub paused_ms: u64,
    pub warnings: Vec<String>,
    pub error: Option<String>,
    pub facts: Map<String, Value>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Options {
    pub include_models: bool,
    pub skip_chromadb: bool,
    pub skip_postgres: bool,
    pub skip_redis: bool,
}

/// How the archive beside a sidecar is sealed; empty while it is plain, and always inside the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encryption {
    /// `age`; None: plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Public keys whose identities open it, as they were configured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
}

impl Encryption {
    pub fn is_sealed(&self) -> bool {
        self.method.is_some()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of tars-backup that wrote it.
    pub version: String,
    /// Start of the run, RFC 3339, UTC.
    pub timestamp: String,
    pub backup_name: BackupName,
    pub components: Vec<String>,
    /// `file -> "sha256:<hex>"`, and `"config/"` for the directory.
    pub checksums: BTreeMap<String, String>,
    pub host: String,
    pub docker_volumes: Vec<String>,
    pub options: Options,
    pub failed_components: Vec<String>,
    pub schema: u32,
    pub tier: String,
    pub tags: Vec<String>,
    pub only: Vec<String>,
    pub skip: Vec<String>,
    pub expected_components: Vec<String>,
    pub state: State,
    /// Components that shrank to under half of what the backup before them had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anomalies: Vec<String>,
    pub encryption: Encryption,
    /// One entry per component that was asked for, failed ones included.
    pub details: BTreeMap<String, Component>,
    /// Made by the bash script that came before; set when it is listed, never written.
    #[serde(skip_deserializing, skip_serializing_if = "std::ops::Not::not")]
    pub legacy: bool,
    /// Sidecar only: bytes of the archive as stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Sidecar only: SHA-256 of the archive as stored, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Sidecar only: SHA-256 of the sidecar's own bytes with this field empty, hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest is not readable JSON of a known schema")]
    Json(#[source] serde_json::Error),
    #[error("the manifest has schema {found}, this version reads up to {SCHEMA}")]
    Schema { found: u32 },
    #[error("the manifest was changed after it was written: its own digest does not match")]
    Changed,
    #[error("the manifest names no {0}")]
    Missing(&'static str),
    #[error("the manifest has {0} where a plain name must be")]
    Name(String),
}

impl ManifestError {
    /// What to do about a manifest that a newer version wrote; None of every other one.
    pub fn of_newer(&self) -> Option<&'static str> {
        matches!(self, Self::Schema { .. }).then_some("use the version that made it, or a newer one")
    }
}

impl Manifest {
    /// The manifest as it lies inside the archive.
    pub fn to_inner(&self) -> Result<Vec<u8>, ManifestError> {
        let mut inner = self.clone();
        (inner.bytes, inner.sha256, inner.manifest_sha256) = (None, None, None);
        // One archive, whether it is sealed afterwards or not.
        inner.encryption = Encryption::default();
        inner.check_names()?;
        pretty(&inner)
    }

    /// The sidecar of an archive of `bytes` with this digest.
    pub fn to_sidecar(&self, bytes: u64, sha256: &str) -> Result<Vec<u8>, ManifestError> {
        // What no reader takes is not written: the backup fails now, and not when it is needed.
        self.check_names()?;
        let (bytes, sha256) = (Some(bytes), Some(sha256.to_owned()));
        let whole = Self { bytes, sha256, manifest_sha256: Some(String::new()), ..self.clone() };
        if whole.encryption.is_sealed() {
            return with_own_digest(Outside::from(&whole), |o| &mut o.manifest_sha256);
        }
        with_own_digest(whole, |m| &mut m.manifest_sha256)
    }

    /// Whether `beside` is a sidecar of the archive that this one was read in. Compared as values: a later version may
    /// write other fields, in another order.
    pub fn is_told_by(&self, beside: &Self) -> bool {
        let sidecar = |m: &Self| m.to_sidecar(0, "").ok();
        let inner = Self { encryption: beside.encryption.clone(), ..self.clone() };
        sidecar(&inner).is_some_and(|told| Some(told) == sidecar(beside))
    }

    /// Reads a manifest from inside an archive.
    pub fn read_inner(text: &[u8]) -> Result<Self, ManifestError> {
        let probe = Probe::of(text)?;
        if probe.encryption.is_sealed() {
            return Err(ManifestError::Missing("contents: it is one from beside a sealed archive"));
        }
        let manifest: Self = serde_json::from_slice(text).map_err(unreadable)?;
        manifest.check_names()?;
        Ok(manifest)
    }

    /// Whoever can write to a store can write a manifest: its names are joined to paths and shown on terminals.
    fn check_names(&self) -> Result<(), ManifestError> {
        let member = |path: &String| is_member(path);
        let word = |text: &String| !text.contains(char::is_control);
        let name = |text: &String| text.parse::<Name>().is_ok();
        let component = |c: &Component| [&c.kind, &c.consistency].into_iter().all(word);
        let first_bad = None
            .or_else(|| self.details.keys().find(|n| !name(n)))
            .or_else(|| self.details.values().flat_map(|c| &c.members).find(|m| !member(m)))
            .or_else(|| self.details.values().find(|c| !component(c)).map(|c| &c.kind))
            .or_else(|| {
                let single = [&self.version, &self.timestamp, &self.host, &self.tier];
                let lists = [
                    &self.components,
                    &self.docker_volumes,
                    &self.failed_components,
                    &self.tags,
                    &self.only,
                    &self.skip,
                    &self.expected_components,
                    &self.anomalies,
                    &self.encryption.recipients,
                ];
                let single = single.into_iter().chain(&self.encryption.method);
                let all = single.chain(lists.into_iter().flatten());
                all.chain(self.checksums.keys()).find(|text| !word(text))
            });
        match first_bad {
            None => Ok(()),
            Some(text) => {
                let begin: String = text.chars().take(SHOWN_CHARS).collect();
                Err(ManifestError::Name(format!("\"{}\"", show_name(begin.as_bytes()))))
            }
        }
    }

    /// Reads a sidecar and proves that not a byte of it was changed.
    pub fn read_sidecar(text: &[u8]) -> Result<Self, ManifestError> {
        let probe = Probe::of(text).map_err(|e| match has_own_digest(text) {
            // One bit of the number is enough to make it look newer.
            Some(false) if e.of_newer().is_some() => ManifestError::Changed,
            _ => e,
        })?;
        let manifest = if probe.encryption.is_sealed() {
            let outside: Outside = serde_json::from_slice(text).map_err(unreadable)?;
            let manifest = Self::from(outside);
            manifest.check_names()?;
            manifest
        } else {
            Self::read_inner(text)?
        };
        let digest = manifest.manifest_sha256.as_deref().ok_or(ManifestError::Missing(DIGEST_FIELD))?;
        if manifest.bytes.is_none() {
            return Err(ManifestError::Missing("bytes"));
        }
        if manifest.sha256.is_none() {
            return Err(ManifestError::Missing("sha256"));
        }
        if is_digest_of(digest, text) { Ok(manifest) } else { Err(ManifestError::Changed) }
    }

    /// File name of the archive that it describes.
    pub fn archive_file(&self) -> String {
        self.backup_name.archive_as(self.encryption.is_sealed())
    }

    /// Components that are in the archive whole.
    pub fn whole(&self) -> impl Iterator<Item = (&str, &Component)> {
        self.details.iter().filter(|(_, c)| c.state == ComponentState::Whole).map(|(n, c)| (n.as_str(), c))
    }

    /// Components that it should have or that failed, of which it says nothing further. What nobody wanted in it is none.
    pub fn missing(&self) -> std::collections::BTreeSet<&str> {
        let wanted =
            |name: &&String| (self.only.is_empty() || self.only.contains(name)) && !self.skip.contains(name);
        let expected = self.expected_components.iter().filter(wanted).chain(&self.failed_components);
        expected.filter(|name| !self.details.contains_key(*name)).map(String::as_str).collect()
    }

    /// Whether `--latest` may choose it: nothing critical missing, and not a run of hand-picked components.
    pub fn counts(&self) -> bool {
        !self.legacy && self.state != State::Partial && !self.is_handpicked()
    }

    /// Whether it holds only what somebody chose for an occasion.
    pub fn is_handpicked(&self) -> bool {
        !self.only.is_empty() || !self.skip.is_empty() || self.tags.iter().any(|t| t == "pre-restore")
    }
}

/// Whether a sidecar has this digest while its field is empty. It is over the bytes as they lie there, not over what a
/// parser makes of them: white space and unknown fields count too.
fn is_digest_of(digest: &str, text: &[u8]) -> bool {
    let field = format!("\"{DIGEST_FIELD}\": \"{digest}\"");
    let Some(at) = memchr::memmem::find(text, field.as_bytes()) else { return false };
    let mut hasher = Sha256::new();
    hasher.update(&text[..at]);
    hasher.update(format!("\"{DIGEST_FIELD}\": \"\""));
    hasher.update(&text[at + field.len()..]);
    hex::encode(hasher.finalize()) == digest
}

/// The same of a sidecar of which nothing else is understood; None where it names no digest.
fn has_own_digest(text: &[u8]) -> Option<bool> {
    let value: Value = serde_json::from_slice(text).ok()?;
    Some(is_digest_of(value.get(DIGEST_FIELD)?.as_str()?, text))
}

/// The text of an error repeats what was read.
fn unreadable(e: serde_json::Error) -> ManifestError {
    use serde::de::Error;
    let shown = show_name(e.to_string().as_bytes());
    ManifestError::Json(serde_json::Error::custom(shown))
}

/// What has to be known before the rest can be read.
#[derive(Deserialize)]
struct Probe {
    schema: u32,
    #[serde(default)]
    encryption: Encryption,
}

impl Probe {
    fn of(text: &[u8]) -> Result<Self, ManifestError> {
        let probe: Self = serde_json::from_slice(text).map_err(unreadable)?;
        if probe.schema > SCHEMA {
            return Err(ManifestError::Schema { found: probe.schema });
        }
        Ok(probe)
    }
}

/// The text of a sidecar, with the digest of that text while `digest` was empty.
fn with_own_digest<T: Serialize>(
    mut sidecar: T,
    digest: fn(&mut T) -> &mut Option<String>,
) -> Result<Vec<u8>, ManifestError> {
    let open = pretty(&sidecar)?;
    *digest(&mut sidecar) = Some(hex::encode(Sha256::digest(&open)));
    pretty(&sidecar)
}

fn pretty(manifest: &impl Serialize) -> Result<Vec<u8>, ManifestError> {
    let mut text = serde_json::to_vec_pretty(manifest).map_err(ManifestError::Json)?;
    text.push(b'\n');
    Ok(text)
}

/// The line of a `.sha256` file: bare file name, so that `sha256sum -c` works in any directory.
pub fn sha256_line(sha256: &str, file_name: &str) -> String {
    format!("{sha256}  {file_name}\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn sample() -> Manifest {
        Manifest {
            version: "0.1.0".into(),
            timestamp: "2026-01-02T03:04:05Z".into(),
            backup_name: "tars-backup-20260102_030405".parse().unwrap(),
            components: vec!["postgres".into()],
            checksums: BTreeMap::from([("postgres.sql.gz".into(), "sha256:00".into())]),
            host: "home".into(),
            docker_volumes: vec![],
            options: Options::default(),
            failed_components: vec![],
            schema: SCHEMA,
            tier: "hot".into(),
            tags: vec![],
            only: vec![],
            skip: vec![],
            expected_components: vec!["postgres".into()],
            state: State::Complete,
            anomalies: vec![],
            encryption: Encryption::default(),
            details: BTreeMap::new(),
            legacy: false,
            bytes: None,
            sha256: None,
            manifest_sha256: None,
        }
    }

    #[test]
    fn a_sidecar_reads_back_and_the_inner_one_has_no_digest_of_the_archive() {
        let m = sample();
        let sidecar = Manifest::read_sidecar(&m.to_sidecar(17, "abcd").unwrap()).unwrap();
        assert_eq!((sidecar.bytes, sidecar.sha256.as_deref()), (Some(17), Some("abcd")));
        let inner = String::from_utf8(m.to_inner().unwrap()).unwrap();
        assert!(!inner.contains("manifest_sha256") && !inner.contains("\"bytes\":"));
    }

    #[test]
    fn a_manifest_of_a_newer_version_is_known_from_one_that_was_changed() {
        let newer = Manifest { schema: SCHEMA + 1, ..sample() }.to_sidecar(17, "abcd").unwrap();
        assert!(Manifest::read_sidecar(&newer).unwrap_err().of_newer().is_some());
        let text = String::from_utf8(sample().to_sidecar(17, "abcd").unwrap()).unwrap();
        let changed = text.replace("\"schema\": 1", "\"schema\": 3");
        assert!(matches!(Manifest::read_sidecar(changed.as_bytes()), Err(ManifestError::Changed)));
    }

    #[test]
    fn beside_a_sealed_archive_lies_only_what_may_be_known() {
        let mut m = sample();
        let mut facts = Map::new();
        facts.insert("rows".into(), serde_json::json!({ "secret_table": 3 }));
        let postgres = Component {
            members: vec!["hidden-member.sql.gz".into()],
            bytes_in: 10,
            bytes_stored: 4,
            warnings: vec!["about secret_table".into()],
            facts,
            ..crate::legacy::bare("postgres")
        };
        m.details.insert("postgres".into(), postgres);
        m.docker_volumes = vec!["hidden_volume".into()];
        m.checksums.insert("hidden-member.sql.gz".into(), "sha256:feed".into());
        m.encryption = Encryption { method: Some("age".into()), recipients: vec!["age1x".into()] };
        let text = m.to_sidecar(17, "abcd").unwrap();
        let shown = String::from_utf8(text.clone()).unwrap();
        for hidden in ["secret_table", "hidden", "feed", "facts", "checksums", "warnings"] {
            assert!(!shown.contains(hidden), "{hidden} in {shown}");
        }
        let read = Manifest::read_sidecar(&text).unwrap();
        assert_eq!((read.bytes, read.details["postgres"].bytes_in, read.state), (Some(17), 10, m.state));
        assert_eq!((&read.components, &read.encryption), (&m.components, &m.encryption));
        assert!(Manifest::read_inner(&text).is_err(), "it does not pass for the one inside");

        let inner = Manifest::read_inner(&m.to_inner().unwrap()).unwrap();
        assert!(inner.is_told_by(&read));
        let other = Manifest { tier: "warm".into(), ..inner.clone() };
        assert!(!other.is_told_by(&read));
        let plain = Manifest { encryption: Encryption::default(), ..m };
        let beside = Manifest::read_sidecar(&plain.to_sidecar(5, "ef").unwrap()).unwrap();
        assert!(inner.is_told_by(&beside));
        let fewer = Manifest { checksums: BTreeMap::new(), ..inner };
        assert!(!fewer.is_told_by(&beside));
    }

    #[test]
    fn names_that_lead_out_or_move_the_cursor_are_neither_read_nor_written() {
        let component = |members: &[&str]| Component {
            members: members.iter().map(|m| (*m).to_owned()).collect(),
            ..crate::legacy::bare("directory")
        };
        type Spoil = fn(&mut Manifest, Component);
        let cases: [(&str, Spoil); 8] = [
            ("../x", |m, c| drop(m.details.insert("../x".into(), c))),
            ("../y.tar.gz", |m, c| {
                drop(m.details.insert("a".into(), Component { members: vec!["../y.tar.gz".into()], ..c }))
            }),
            ("/etc/passwd", |m, c| {
                drop(m.details.insert("a".into(), Component { members: vec!["/etc/passwd".into()], ..c }))
            }),
            ("a//b", |m, c| {
                drop(m.details.insert("a".into(), Component { members: vec!["a//b".into()], ..c }))
            }),
            ("k\\n", |m, c| drop(m.details.insert("a".into(), Component { kind: "k\n".into(), ..c }))),
            ("h\\u{1b}", |m, _| m.host = "h\u{1b}".into()),
            ("t\\n", |m, _| m.tags = vec!["t\n".into()]),
            ("s\\u{9b}", |m, _| drop(m.checksums.insert("s\u{9b}".into(), "sha256:00".into()))),
        ];
        for (shown, spoil) in cases {
            let mut bad = sample();
            spoil(&mut bad, component(&["a.tar.gz"]));
            let written = bad.to_inner().unwrap_err().to_string();
            assert!(written.contains(&format!("\"{shown}\"")), "{written}");
            let read = Manifest::read_inner(&serde_json::to_vec(&bad).unwrap()).unwrap_err();
            assert!(matches!(read, ManifestError::Name(_)), "{shown}: {read:?}");
        }
        let mut good = sample();
        good.details.insert("a-b_1".into(), component(&["config/etc/app name.env.redacted"]));
        assert!(Manifest::read_inner(&good.to_inner().unwrap()).is_ok());
    }

    #[test]
    fn nobody_can_pass_a_manifest_off_as_one_of_the_bash_script() {
        let mut m = sample();
        m.legacy = true;
        assert!(!Manifest::read_inner(&serde_json::to_vec(&m).unwrap()).unwrap().legacy);
    }

    #[test]
    fn a_critical_gap_is_partial_and_a_lesser_one_degraded() {
        let expected = [("pg", true), ("redis", false)];
        assert_eq!(State::of(expected, &["pg", "redis"]), State::Complete);
        assert_eq!(State::of(expected, &["pg"]), State::Degraded);
        assert_eq!(State::of(expected, &["redis"]), State::Partial);
    }

    proptest! {
        #[test]
        fn any_changed_byte_of_a_sidecar_is_found(at in 0usize..4096, to in any::<u8>()) {
            let good = sample().to_sidecar(1_000, &"ab".repeat(32)).unwrap();
            let at = at % good.len();
            prop_assume!(good[at] != to);
            let mut bad = good;
            bad[at] = to;
            prop_assert!(Manifest::read_sidecar(&bad).is_err());
        }
    }
}
