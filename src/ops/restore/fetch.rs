//! An archive from a store into a private directory: hashed while it is read, its members taken apart. What could go
//! wrong: bytes that are not those of the backup, so nothing is used before the whole archive has the digest of the
//! manifest, and each member the one of its line (files below `config/` share one).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};

use super::Request;
use crate::archive::compress::free_bytes;
use crate::archive::layout::{MANIFEST, config_digest};
use crate::archive::read::{codec_of, walk_archive};
use crate::archive::tree::show_name;
use crate::archive::unpack::{self, Limits};
use crate::cancel::Interrupted;
use crate::format::tarwalk::{Body, Entry, Kind, TarError};
use crate::hint::{Hint, chain};
use crate::id::is_member;
use crate::legacy;
use crate::manifest::{CONFIG_DIR, Component, Manifest};
use crate::ops::World;
use crate::ops::find::{Found, OpenError, opened};
use crate::source::SourceError;
use crate::staging::RunDir;
use crate::store::{StoreError, object};
use crate::target::{Surveyed, Work};
use crate::units::{millis, show_bytes};

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Store(StoreError),
    #[error("{name} in {store} cannot be opened")]
    Open {
        name: String,
        store: String,
        #[source]
        source: Box<OpenError>,
    },
    #[error("{name} in {store} was made by a newer version of tars-backup: {why}")]
    Newer { name: String, store: String, why: String, hint: &'static str },
    #[error("{name} in {store} is damaged: {why}")]
    Damaged { name: String, store: String, why: String },
    #[error("{0}")]
    NoGoodCopy(String),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has {free} free, and the archive needs {needed} there", dir.display())]
    Space { dir: PathBuf, free: String, needed: String },
}

impl Hint for FetchError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(e) => return e.hint(),
            Self::Open { source, .. } => return source.hint(),
            Self::Newer { hint, .. } => (*hint).to_owned(),
            Self::Damaged { .. } | Self::NoGoodCopy(_) => "choose another backup: tars-backup list".into(),
            Self::Space { .. } => "make room, or set agent.staging_dir to a larger disk".into(),
            _ => return None,
        })
    }
}

impl From<StoreError> for FetchError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Store(e),
        }
    }
}

impl From<TarError> for FetchError {
    fn from(e: TarError) -> Self {
        Self::NoGoodCopy(chain(&e))
    }
}

/// A backup whose members lie, checked, in a private directory.
pub struct Fetched {
    pub manifest: Manifest,
    /// Part of the names of what is made beside live data.
    pub id: String,
    pub surveyed: Surveyed,
    /// When fetching it began.
    pub(super) began: Instant,
    dir: RunDir,
}

impl Fetched {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// One of its components, to be worked on as was asked for.
    pub fn work<'a>(&'a self, name: &'a str, component: &'a Component, request: &'a Request) -> Work<'a> {
        Work {
            name,
            component,
            dir: self.dir(),
            id: &self.id,
            compare: !request.skip_validation,
            wishes: request.wishes,
            surveyed: &self.surveyed,
            reach: request.reach.as_ref(),
        }
    }

    /// Milliseconds since fetching it began.
    pub fn elapsed_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }
}

/// Fetches the first copy that is what its manifest says. `dir` is a fresh private directory.
pub fn fetch(
    copies: &[Found<'_>],
    request: &Request,
    dir: RunDir,
    world: &World<'_>,
) -> Result<Fetched, FetchError> {
    let began = Instant::now();
    let mut reasons = Vec::new();
    let mut closed = None;
    for copy in copies {
        match one(copy, request, dir.path(), world) {
            Ok(manifest) => {
                let id = manifest.backup_name.to_string();
                return Ok(Fetched { manifest, id, surveyed: Surveyed::default(), began, dir });
            }
            Err(FetchError::Interrupted(i)) => return Err(i.into()),
            Err(e @ (FetchError::Space { .. } | FetchError::Write { .. })) => return Err(e),
            Err(e) => {
                log::warn!("{}", chain(&e));
                reasons.push(chain(&e));
                if let FetchError::Open { .. } | FetchError::Newer { .. } = e {
                    closed = Some(e);
                }
            }
        }
    }
    // What only lacks a key, or a newer version, is told as that, not as damage.
    if let Some(closed) = closed {
        return Err(closed);
    }
    Err(FetchError::NoGoodCopy(match reasons.as_slice() {
        [] => "there is no copy of the backup".to_owned(),
        _ => reasons.join("; "),
    }))
}

/// Fetches this very copy, and no other.
pub fn fetch_one(copy: &Found<'_>, dir: RunDir, world: &World<'_>) -> Result<Fetched, FetchError> {
    let began = Instant::now();
    let manifest = one(copy, &Request::default(), dir.path(), world)?;
    let id = manifest.backup_name.to_string();
    Ok(Fetched { manifest, id, surveyed: Surveyed::default(), began, dir })
}

fn one(found: &Found<'_>, request: &Request, dir: &Path, world: &World<'_>) -> Result<Manifest, FetchError> {
    let name = found.entry.name.to_string();
    let store = found.store().name().to_owned();
    let damaged = |why: String| FetchError::Damaged { name: name.clone(), store: store.clone(), why };
    let manifest = found.entry.manifest.as_ref().map_err(|e| match e.of_newer() {
        Some(hint) => FetchError::Newer { name: name.clone(), store: store.clone(), why: chain(e), hint },
        None => damaged(chain(e)),
    })?;
    let bytes = manifest.bytes.unwrap_or(0);
    let free = free_bytes(dir).map_err(|source| FetchError::Write { path: dir.to_owned(), source })?;
    if free < bytes {
        let (free, needed) = (show_bytes(free), show_bytes(bytes));
        return Err(FetchError::Space { dir: dir.to_owned(), free, needed });
    }
    world.monitor.phase(&format!("fetching {name} from {store}"), manifest.bytes);
    clear(dir)?;
    let (stored, _) = found.open(world.cancel)?;
    let mut input = Hashing { input: stored, hasher: Sha256::new(), world, broken: None };
    let mut members = Members::new(manifest, &store, dir, request.skip_validation);
    let cannot = |e| FetchError::Open { name: name.clone(), store: store.clone(), source: Box::new(e) };
    let read = opened(Box::new(&mut input), manifest, world).map(|mut plain| {
        let read = walk_archive(&mut plain, |entry: &Entry, body: &mut Body<'_>| members.take(entry, body));
        // Only at its end does age know that nothing is missing.
        read.and_then(|_| {
            io::copy(&mut plain, &mut io::sink()).map_err(|e| FetchError::NoGoodCopy(e.to_string()))
        })
    });
    let (sums, inner) = (members.sums, members.inner);
    world.cancel.check()?;
    // What was found in it, also that it is no sealed file, may come from that.
    if let Some(e) = input.broken.take() {
        return Err(found.store().broken(&object(&found.dir, &manifest.archive_file()), e).into());
    }
    match read.map_err(cannot)? {
        Ok(_) => {}
        Err(e @ (FetchError::Write { .. } | FetchError::Newer { .. })) => return Err(e),
        Err(e) => return Err(damaged(chain(&e))),
    }
    if manifest.encryption.is_sealed() && inner.is_none() {
        return Err(damaged(format!("{MANIFEST} is missing in it")));
    }
    if let Err(e) = io::copy(&mut input, &mut io::sink()) {
        let e = input.broken.take().unwrap_or(e);
        return Err(found.store().broken(&object(&found.dir, &manifest.archive_file()), e).into());
    }
    let sha256 = hex::encode(input.hasher.finalize());
    if !request.skip_validation && manifest.sha256.as_deref() != Some(sha256.as_str()) {
        return Err(damaged("its bytes have another SHA-256 than the manifest says".into()));
    }
    let mut manifest = inner.unwrap_or_else(|| manifest.clone());
    if manifest.legacy {
        let inner = read_small(&dir.join(MANIFEST)).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?;
        let bytes = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |m| m.len());
        let files: Vec<(String, u64)> = sums.keys().map(|name| (name.clone(), bytes(name))).collect();
        legacy::fill(&mut manifest, &inner, &files).map_err(|e| damaged(format!("{MANIFEST}: {e}")))?;
    }
    if !request.skip_validation {
        compare(&manifest, &sums).map_err(damaged)?;
    }
    Ok(manifest)
}

/// Every member has the digest of its line, and every line its member.
fn compare(manifest: &Manifest, sums: &BTreeMap<String, String>) -> Result<(), String> {
    for c in manifest.details.values() {
        for member in &c.members {
            let sha256 = sums.get(member).ok_or_else(|| format!("{member} is missing"))?;
            let wanted = manifest.checksums.get(member);
            if wanted.is_some_and(|w| *w != format!("sha256:{sha256}")) {
                return Err(format!("{member} has another SHA-256 than the manifest says"));
            }
        }
    }
    // Its files have one line together.
    if let Some(wanted) = manifest.checksums.get(CONFIG_DIR) {
        let of_config = |(name, sha256)| Some((str::strip_prefix(name, CONFIG_DIR)?, sha256));
        let all = sums.iter().map(|(name, sha256)| (name.as_str(), sha256.as_str()));
        let mut inside: Vec<(&str, &str)> = all.filter_map(of_config).collect();
        if *wanted != format!("sha256:{}", config_digest(&mut inside)) {
            return Err(format!("{CONFIG_DIR} has another digest than the manifest says"));
        }
    }
    Ok(())
}

fn clear(dir: &Path) -> Result<(), FetchError> {
    let failed = |source| FetchError::Write { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        remove_any(&entry.map_err(failed)?.path()).map_err(failed)?;
    }
    Ok(())
}

/// A file, or a directory with all in it; one that is not there is fine.
fn remove_any(path: &Path) -> io::Result<()> {
    let outcome = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match outcome {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Longest manifest that is read, in bytes.
const MANIFEST_LIMIT: u64 = 64 << 20;

/// A manifest of the bash script; nothing else of an archive is read into memory.
fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MANIFEST_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

/// Which members of an archive are written.
enum Named {
    /// All: an archive of the bash script, whose manifest lies somewhere in it.
    All,
    /// What the manifest inside names, the first member: little of it lies beside a sealed archive.
    Inside,
    These(BTreeSet<String>),
}

/// The members of an archive on their way into a directory.
struct Members<'a> {
    beside: &'a Manifest,
    store: &'a str,
    dir: &'a Path,
    lenient: bool,
    named: Named,
    /// The manifest of a sealed archive.
    inner: Option<Manifest>,
    /// Bytes that may still be written.
    left: u64,
    /// SHA-256 of what was written.
    sums: BTreeMap<String, String>,
}

impl<'a> Members<'a> {
    fn new(beside: &'a Manifest, store: &'a str, dir: &'a Path, lenient: bool) -> Self {
        let mut members = Self {
            beside,
            store,
            dir,
            lenient,
            named: Named::All,
            inner: None,
            left: u64::MAX,
            sums: BTreeMap::new(),
        };
        if beside.encryption.is_sealed() {
            members.named = Named::Inside;
        } else if !beside.legacy {
            members.expect(beside);
        }
        members
    }

    fn expect(&mut self, manifest: &Manifest) {
        self.named = Named::These(manifest.details.values().flat_map(|c| c.members.clone()).collect());
        if !self.lenient {
            self.left = manifest.details.values().fold(0, |sum: u64, c| sum.saturating_add(c.bytes_stored));
        }
    }

    fn take_manifest(&mut self, body: &mut Body<'_>) -> Result<(), FetchError> {
        let bad = |why: String| FetchError::NoGoodCopy(format!("{MANIFEST}: {why}"));
        let mut text = Vec::new();
        body.take(MANIFEST_LIMIT).read_to_end(&mut text).map_err(|e| bad(e.to_string()))?;
        let inner = Manifest::read_inner(&text).map_err(|e| match e.of_newer() {
            Some(hint) => {
                let (name, store) = (self.beside.backup_name.to_string(), self.store.to_owned());
                FetchError::Newer { name, store, why: chain(&e), hint }
            }
            None => bad(chain(&e)),
        })?;
        if !self.lenient && !inner.is_told_by(self.beside) {
            return Err(bad("it differs from the one beside the archive".to_owned()));
        }
        self.expect(&inner);
        self.inner = Some(inner);
        Ok(())
    }

    fn take(&mut self, entry: &Entry, body: &mut Body<'_>) -> Result<(), FetchError> {
        let hostile = || {
            FetchError::NoGoodCopy(format!(
                "it holds {}, which is no plain file of it",
                show_name(&entry.path)
            ))
        };
        let path = std::str::from_utf8(&entry.path).map_err(|_| hostile())?;
        if entry.kind == Kind::Directory {
            return Ok(());
        }
        let prefix = format!("{}/", self.beside.backup_name);
        let inside = path.trim_start_matches("./").strip_prefix(&prefix).ok_or_else(hostile)?;
        if entry.kind != Kind::Regular || !is_member(inside) || self.sums.contains_key(inside) {
            return Err(hostile());
        }
        match &self.named {
            Named::Inside if inside == MANIFEST => return self.take_manifest(body),
            Named::Inside => {
                let why = format!("it holds {inside} before its manifest");
                return Err(FetchError::NoGoodCopy(why));
            }
            Named::These(named) if !named.contains(inside) => return Ok(()),
            Named::These(_) | Named::All => {}
        }
        let target = self.dir.join(inside);
        let failed = |source: io::Error| match source.kind() {
            // Names that cannot be together in a directory.
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidFilename => hostile(),
            _ => FetchError::Write { path: target.clone(), source },
        };
        let parent = target.parent().unwrap_or(self.dir);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target).map_err(failed)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = body.read(&mut buffer).map_err(|e| FetchError::NoGoodCopy(e.to_string()))?;
            if n == 0 {
                break;
            }
            self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
                FetchError::NoGoodCopy(format!("{inside} is larger than the manifest says"))
            })?;
            hasher.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(failed)?;
        }
        self.sums.insert(inside.to_owned(), hex::encode(hasher.finalize()));
        Ok(())
    }
}

/// Hashes what passes, and stops for the signal. What reading fails with is kept: whoever looks inside passes it on as a
/// text at best.
struct Hashing<'a, R> {
    input: R,
    hasher: Sha256,
    world: &'a World<'a>,
    broken: Option<io::Error>,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.world.cancel.check().map_err(io::Error::other)?;
        let n = match self.input.read(buf) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let told = io::Error::other(e.to_string());
                self.broken = Some(e);
                return Err(told);
            }
        };
        self.hasher.update(&buf[..n]);
        self.world.monitor.moved(n as u64);
        Ok(n)
    }
}

/// The data of one component below `to`: trees as trees, everything else as files without compression. After an error
/// nothing of it is there.
pub(super) fn write_component(
    work: &Work<'_>,
    to: &Path,
    world: &World<'_>,
) -> Result<Vec<String>, SourceError> {
    let mut made = Vec::new();
    let written = write_members(work, to, world, &mut made);
    if written.is_err() {
        for path in made {
            // The error that is told already matters more.
            let _ = remove_any(&path);
        }
    }
    written
}

fn write_members(
    work: &Work<'_>,
    to: &Path,
    world: &World<'_>,
    made: &mut Vec<PathBuf>,
) -> Result<Vec<String>, SourceError> {
    let mut warnings = Vec::new();
    for member in &work.component.members {
        let (base, _) = codec_of(member);
        let target = match base.strip_suffix(".tar") {
            Some(stem) => to.join(stem),
            None => to.join(base),
        };
        let put = |source| SourceError::Place { path: target.clone(), source };
        let parent = target.parent().unwrap_or(to);
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(put)?;
        work.open(member, |body| {
            if base.ends_with(".tar") {
                DirBuilder::new().mode(0o700).create(&target).map_err(put)?;
                made.push(target.clone());
                let fact = |key: &str| work.component.facts.get(key).and_then(serde_json::Value::as_u64);
                let limits = match work.compare {
                    true => Limits { entries: fact("entries"), bytes: fact("bytes") },
                    false => Limits::default(),
                };
                let done = unpack::unpack(body, &target, &limits, world.cancel, world.monitor)?;
                warnings.extend(done.warnings());
                return Ok(());
            }
            // A dump, or the roles with the hashes of their passwords.
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target).map_err(put)?;
            made.push(target.clone());
            let mut buffer = vec![0; 1 << 20];
            loop {
                world.cancel.check()?;
                let n = body.read(&mut buffer).map_err(|source| SourceError::Read {
                    what: format!("{member} of the archive"),
                    source,
                })?;
                if n == 0 {
                    return file.sync_all().map_err(put);
                }
                file.write_all(&buffer[..n]).map_err(put)?;
                world.monitor.moved(n as u64);
            }
        })?;
    }
    Ok(warnings)
}
