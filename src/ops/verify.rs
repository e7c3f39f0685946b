//! Is a stored backup still what was stored, and can every component of it be read? What could go wrong: a check that
//! looks at less than it says, so the verdict names how deep it went; and a store that does not answer taken for a copy that
//! is damaged, so what could not be looked at gets no verdict.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::World;
use super::find::Found;
use crate::archive::layout::{self, config_digest};
use crate::archive::read::{codec_of, decompress, walk_archive};
use crate::archive::seal::{SealError, unseal};
use crate::cancel::{Cancel, Interrupted};
use crate::format::tarwalk::{Body, Entry as TarEntry, Kind, TarError};
use crate::hint::chain;
use crate::id::{parts_file, sha256_file, show_name};
use crate::legacy;
use crate::manifest::{CONFIG_DIR, ComponentState, Manifest, State, sha256_line};
use crate::marks::{self, Depth, Verified};
use crate::progress::{Event, Monitor, What};
use crate::source::{self, Member};
use crate::store::{StoreError, object};

#[derive(Debug, Serialize)]
pub struct Report {
    pub name: String,
    pub store: String,
    pub tier: String,
    /// How deep it was looked at: less than was asked for, where a sealed archive could not be opened.
    pub depth: Depth,
    /// Whether that is as deep as was asked for.
    pub as_asked: bool,
    pub good: bool,
    /// Every fault that was found; empty when it is good.
    pub faults: Vec<String>,
    /// Whether only a newer version can check it.
    #[serde(skip)]
    pub newer: bool,
    /// Why it could not be checked to its end: then it is neither good nor, without a fault, bad.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unchecked: Option<String>,
    /// What is worth knowing and no fault of the copy.
    pub notes: Vec<String>,
}

/// Verifies one copy of one backup, and notes the result beside it.
pub fn verify(
    found: &Found<'_>,
    depth: Depth,
    scratch: &Path,
    world: &World<'_>,
) -> Result<Report, Interrupted> {
    let store = found.store();
    let name = &found.entry.name;
    world.monitor.phase(
        &format!("verifying {name} in {}", store.name()),
        found.entry.manifest.as_ref().ok().and_then(|m| m.bytes),
    );
    let mut report = Report {
        name: name.to_string(),
        store: store.name().to_owned(),
        tier: found.tier.clone(),
        depth,
        as_asked: true,
        good: false,
        faults: Vec::new(),
        newer: false,
        unchecked: None,
        notes: Vec::new(),
    };
    match &found.entry.manifest {
        Err(damage) => match damage.of_newer() {
            Some(hint) => leave_to_newer(&chain(damage), hint, &mut report),
            None => report.faults.push(chain(damage)),
        },
        Ok(manifest) => match check(found, manifest, depth, scratch, world, &mut report) {
            Ok(()) => {}
            Err(StoreError::Interrupted(i)) => return Err(i),
            Err(e) if e.is_not_found() => report.faults.push(chain(&e)),
            Err(e) => report.unchecked = Some(chain(&e)),
        },
    }
    // Much of it is what the archive calls its members.
    for text in report.faults.iter_mut().chain(&mut report.notes).chain(&mut report.unchecked) {
        *text = show_name(text.as_bytes());
    }
    report.good = report.faults.is_empty() && report.unchecked.is_none();
    note(found, &mut report, world);
    Ok(report)
}

fn leave_to_newer(why: &str, hint: &str, report: &mut Report) {
    report.newer = true;
    report.unchecked = Some(format!("{why}: {hint}"));
}

/// Renews the mark of a good copy; takes that of a bad one away, so that nothing relies on it. Of one that could not be
/// checked nothing new is known.
fn note(found: &Found<'_>, report: &mut Report, world: &World<'_>) {
    let (store, name) = (found.store(), &found.entry.name);
    if let (Some(why), true) = (&report.unchecked, report.faults.is_empty()) {
        let text = format!("{name} in {} could not be checked: {why}", store.name());
        let what = if report.newer { What::Warning } else { What::StoreFailed };
        let event = Event::new(what, text);
        world.monitor.event(event.backup(name).store(store.name()));
        return;
    }
    let noted = if report.good {
        let sha256 = found.entry.manifest.as_ref().ok().and_then(|m| m.sha256.clone()).unwrap_or_default();
        let time = (world.now)().strftime("%FT%TZ").to_string();
        marks::set(store, &found.dir, name, &Verified { time, depth: report.depth, sha256 })
    } else {
        marks::clear::<Verified>(store, &found.dir, name)
    };
    if let Err(e) = noted {
        report.notes.push(format!("the result could not be noted in the store: {}", chain(&e)));
    }
    let how = if report.depth == Depth::Deep { "every component read" } else { "digest" };
    let event = if report.good {
        Event::new(What::VerifyGood, format!("Verified {name} in {}: good ({how})", store.name()))
    } else {
        Event::new(
            What::VerifyBad,
            format!("{name} in {} is damaged: {}", store.name(), report.faults.join("; ")),
        )
    };
    world.monitor.event(event.backup(name).store(store.name()));
}

fn check(
    found: &Found<'_>,
    manifest: &Manifest,
    depth: Depth,
    scratch: &Path,
    world: &World<'_>,
    report: &mut Report,
) -> Result<(), StoreError> {
    let store = found.store();
    let wanted = manifest.sha256.clone().unwrap_or_default();
    let archive = manifest.archive_file();
    let sidecar = sha256_file(&archive);
    match store.read_small(&object(&found.dir, &sidecar), world.cancel) {
        // There it is all that is known of the archive, and was read for that.
        Ok(_) if manifest.legacy => {}
        Ok(line) if line == sha256_line(&wanted, &archive).as_bytes() => {}
        Ok(_) => report.faults.push(format!("{sidecar} does not say what the manifest says")),
        Err(e) if e.is_not_found() => report.faults.push(format!("{sidecar} is missing")),
        Err(e) => return Err(e),
    }
    let (reader, sums) = found.entry.archive.open(store, &found.dir, world.cancel)?;
    let mut tee = Tee::new(reader, world.cancel, world.monitor);
    let known = report.faults.len();
    if depth == Depth::Deep {
        look_inside(&mut tee, manifest, scratch, world, report);
    }
    // The digest is over all of it, also behind the place where looking stopped.
    let mut buffer = vec![0; 1 << 20];
    loop {
        match tee.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The tee keeps it.
            Err(_) => break,
        }
    }
    world.cancel.check()?;
    if let Some(e) = tee.broken.take() {
        // What was found inside may come from that.
        report.faults.truncate(known);
        return Err(store.broken(&object(&found.dir, &archive), e));
    }
    let (bytes, sha256) = tee.finish();
    let sums = sums.lock().map(|s| s.clone()).unwrap_or_default();
    check_parts(found, &archive, &sums, world.cancel, report)?;
    if manifest.bytes != Some(bytes) {
        report.faults.insert(
            0,
            format!("{bytes} bytes are stored, the manifest says {}", manifest.bytes.unwrap_or(0)),
        );
    } else if sha256 != wanted {
        report.faults.insert(0, "the stored bytes have another SHA-256 than the manifest says".to_owned());
    }
    Ok(())
}

/// What ends the look at an archive.
enum Fault {
    Bad(String),
    /// This machine could not do what a check needs: it says nothing of the archive.
    Here(String),
    /// Only a newer version can: why, and what to do.
    Newer(String, &'static str),
}

impl From<TarError> for Fault {
    fn from(e: TarError) -> Self {
        Self::Bad(chain(&e))
    }
}

/// What is in the archive; a sealed one is opened first, where somebody here can.
fn look_inside(
    tee: &mut Tee<'_>,
    manifest: &Manifest,
    scratch: &Path,
    world: &World<'_>,
    report: &mut Report,
) {
    let inside = match (manifest.encryption.is_sealed(), manifest.legacy) {
        (true, _) => match world.keyring.identities(world.vault) {
            Ok(Some(identities)) => match unseal(Box::new(&mut *tee), &identities) {
                Ok(mut plain) => walk(&mut plain, manifest, scratch, report).and_then(|()| {
                    // Only at its end does age know that nothing is missing.
                    let rest = io::copy(&mut plain, &mut io::sink());
                    rest.map(|_| ()).map_err(|e| Fault::Bad(format!("the sealed archive: {e}")))
                }),
                Err(e @ SealError::NoIdentity { .. }) => return only_outside(&chain(&e), report),
                Err(e) => Err(Fault::Bad(chain(&e))),
            },
            Ok(None) => return only_outside("it is sealed, and no identity is here", report),
            Err(e) => return only_outside(&chain(&e), report),
        },
        (false, true) => walk_legacy(tee, manifest, scratch, report),
        (false, false) => walk(tee, manifest, scratch, report),
    };
    match inside {
        Ok(()) => {}
        Err(Fault::Bad(text)) => report.faults.push(text),
        Err(Fault::Here(text)) => report.unchecked = Some(text),
        Err(Fault::Newer(why, hint)) => leave_to_newer(&why, hint, report),
    }
}

fn only_outside(why: &str, report: &mut Report) {
    report.depth = Depth::Digest;
    report.as_asked = false;
    report.notes.push(format!("only the digest of the sealed archive was checked: {why}"));
}

/// The digests of the parts, as a person with stock tools would check them.
fn check_parts(
    found: &Found<'_>,
    archive: &str,
    sums: &[String],
    cancel: &Cancel,
    report: &mut Report,
) -> Result<(), StoreError> {
    if !found.entry.archive.in_parts(archive) {
        return Ok(());
    }
    let file = parts_file(archive);
    let parts = found.entry.archive.objects().iter().zip(sums);
    let wanted: String = parts.map(|(part, sha256)| sha256_line(sha256, &part.name)).collect();
    match found.store().read_small(&object(&found.dir, &file), cancel) {
        Ok(lines) if lines == wanted.as_bytes() => {}
        Ok(_) => report.faults.push(format!("{file} does not say what the parts are")),
        Err(e) if e.is_not_found() => report.faults.push(format!("{file} is missing")),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Reads the archive to its end and compares everything in it with the manifest.
fn walk(
    archive: &mut dyn Read,
    manifest: &Manifest,
    scratch: &Path,
    report: &mut Report,
) -> Result<(), Fault> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    // Beside a sealed archive lies little of it; the manifest inside comes first, and knows the rest.
    let mut known = manifest.clone();
    let prefix = format!("{}/", manifest.backup_name);
    let mut faults: Vec<String> = Vec::new();
    walk_archive(archive, |entry: &TarEntry, body: &mut Body<'_>| -> Result<(), Fault> {
        let path = String::from_utf8(entry.path.clone())
            .map_err(|_| Fault::Bad("a file name is not text".into()))?;
        let inside = path
            .strip_prefix(&prefix)
            .ok_or_else(|| Fault::Bad(format!("{path:?} lies outside {prefix}")))?;
        match entry.kind {
            Kind::Directory => return Ok(()),
            Kind::Regular => {}
            _ => return Err(Fault::Bad(format!("{path:?} is no file"))),
        }
        if seen.contains_key(inside) {
            return Err(Fault::Bad(format!("{inside:?} is in it twice")));
        }
        let digest = match inside {
            layout::MANIFEST => {
                let (digest, inner) = check_inner(body, manifest, &mut faults)?;
                if let Some(inner) = inner.filter(|_| manifest.encryption.is_sealed()) {
                    known = inner;
                }
                digest
            }
            layout::GUIDE => hash(body, inside)?,
            _ => check_member(inside, body, &known, scratch, &mut faults)?,
        };
        seen.insert(inside.to_owned(), digest);
        Ok(())
    })?;
    report.faults.extend(faults);
    if !seen.contains_key(layout::MANIFEST) {
        report.faults.push(format!("{} is missing in the archive", layout::MANIFEST));
    }
    compare(&seen, &known, report);
    Ok(())
}

/// The same for an archive of the bash script, whose manifest lies only inside.
fn walk_legacy(
    archive: &mut dyn Read,
    manifest: &Manifest,
    scratch: &Path,
    report: &mut Report,
) -> Result<(), Fault> {
    let mut known = manifest.clone();
    let (mut seen, mut inner, mut faults) = (BTreeMap::new(), None, Vec::new());
    let prefix = format!("{}/", manifest.backup_name);
    walk_archive(archive, |entry: &TarEntry, body: &mut Body<'_>| -> Result<(), Fault> {
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        let Some(inside) = path.trim_start_matches("./").strip_prefix(&prefix) else { return Ok(()) };
        if entry.kind != Kind::Regular {
            return Ok(());
        }
        if inside == layout::MANIFEST {
            let mut text = Vec::new();
            body.take(64 << 20).read_to_end(&mut text).map_err(|e| Fault::Bad(format!("{inside}: {e}")))?;
            inner = Some(text);
            return Ok(());
        }
        if let Some((component, kind)) = legacy::component_of(inside) {
            let details = known.details.entry(component.to_owned()).or_insert_with(|| legacy::bare(kind));
            details.members.push(inside.to_owned());
        }
        let digest = check_member(inside, body, &known, scratch, &mut faults)?;
        seen.insert(inside.to_owned(), digest);
        Ok(())
    })?;
    report.faults.extend(faults);
    let inner = inner.ok_or_else(|| Fault::Bad(format!("{} is missing in the archive", layout::MANIFEST)))?;
    let mut known = manifest.clone();
    legacy::fill(&mut known, &inner, &[]).map_err(|e| Fault::Bad(format!("{}: {e}", layout::MANIFEST)))?;
    for (file, wanted) in &known.checksums {
        match seen.get(file) {
            Some(digest) if *wanted == format!("sha256:{digest}") => {}
            Some(_) => report.faults.push(format!("{file} has another SHA-256 than the manifest says")),
            None => report.faults.push(format!("{file} is missing in the archive")),
        }
    }
    for name in &known.failed_components {
        report.notes.push(format!("the component {name} had failed when it was made"));
    }
    Ok(())
}

/// Digest of the manifest inside, and the manifest if it is the one that the sidecar is of.
fn check_inner(
    body: &mut Body<'_>,
    sidecar: &Manifest,
    faults: &mut Vec<String>,
) -> Result<(String, Option<Manifest>), Fault> {
    let mut text = Vec::new();
    body.take(64 << 20)
        .read_to_end(&mut text)
        .map_err(|e| Fault::Bad(format!("{}: {e}", layout::MANIFEST)))?;
    let digest = hex::encode(Sha256::digest(&text));
    match Manifest::read_inner(&text) {
        Err(e) => match e.of_newer() {
            Some(hint) => return Err(Fault::Newer(format!("{}: {}", layout::MANIFEST, chain(&e)), hint)),
            None => faults.push(format!("{}: {}", layout::MANIFEST, chain(&e))),
        },
        Ok(inner) if inner.is_told_by(sidecar) => return Ok((digest, Some(inner))),
        Ok(_) => faults.push("the manifest inside differs from the one beside the archive".to_owned()),
    }
    Ok((digest, None))
}

fn check_member(
    name: &str,
    body: &mut Body<'_>,
    manifest: &Manifest,
    scratch: &Path,
    faults: &mut Vec<String>,
) -> Result<String, Fault> {
    let mut tee = HashRead { inner: body, hasher: Sha256::new() };
    let owner = manifest.details.iter().find(|(_, c)| c.members.iter().any(|m| m == name));
    if let Some((component_name, component)) = owner {
        let (base, codec) = codec_of(name);
        let checked =
            decompress(codec, &mut tee).map_err(source::CheckError::Read).and_then(|mut content| {
                let mut member = Member { name: base, body: &mut content, component, scratch };
                source::check(&mut member)?;
                // A check that stops early would leave the rest unread and a damaged end unseen.
                io::copy(&mut content, &mut io::sink()).map(|_| ()).map_err(source::CheckError::Read)
            });
        match checked {
            Ok(()) => {}
            // Nothing that an archive holds is an error of the system: it comes from what the check writes here, or from
            // the store, which is asked first.
            Err(source::CheckError::Read(e)) if e.raw_os_error().is_some() => {
                return Err(Fault::Here(format!(
                    "{component_name}: {name}: cannot use {}: {e}",
                    scratch.display()
                )));
            }
            Err(e) => faults.push(format!("{component_name}: {name}: {}", chain(&e))),
        }
    }
    io::copy(&mut tee, &mut io::sink()).map_err(|e| Fault::Bad(format!("{name}: {e}")))?;
    Ok(hex::encode(tee.hasher.finalize()))
}

fn hash(body: &mut Body<'_>, name: &str) -> Result<String, Fault> {
    let mut tee = HashRead { inner: body, hasher: Sha256::new() };
    io::copy(&mut tee, &mut io::sink()).map_err(|e| Fault::Bad(format!("{name}: {e}")))?;
    Ok(hex::encode(tee.hasher.finalize()))
}

/// What the archive holds against what the manifest promises.
fn compare(seen: &BTreeMap<String, String>, manifest: &Manifest, report: &mut Report) {
    for (file, wanted) in &manifest.checksums {
        if file == CONFIG_DIR {
            let mut inside: Vec<(&str, &str)> = seen
                .iter()
                .filter_map(|(name, digest)| Some((name.strip_prefix(CONFIG_DIR)?, digest.as_str())))
                .collect();
            if *wanted != format!("sha256:{}", config_digest(&mut inside)) {
                report.faults.push(format!("{CONFIG_DIR} has another digest than the manifest says"));
            }
            continue;
        }
        match seen.get(file) {
            None => report.faults.push(format!("{file} is missing in the archive")),
            Some(digest) if *wanted != format!("sha256:{digest}") => {
                report.faults.push(format!("{file} has another SHA-256 than the manifest says"));
            }
            Some(_) => {}
        }
    }
    for file in seen.keys() {
        if !manifest.checksums.contains_key(file) && file != layout::MANIFEST && file != layout::GUIDE {
            report.faults.push(format!("{file} is in the archive, but not in the manifest"));
        }
    }
    for name in manifest.missing() {
        // It failed, and is none without which a backup would be partial.
        let harmless =
            manifest.failed_components.iter().any(|f| f == name) && manifest.state != State::Partial;
        match harmless {
            true => report.notes.push(format!("the component {name} is not in it")),
            false => report.faults.push(format!("the component {name} should be in it, and is not")),
        }
    }
    for (name, component) in &manifest.details {
        let lacking = component.state != ComponentState::Whole;
        if lacking && component.critical {
            report.faults.push(format!("the critical component {name} is not in it, or not whole"));
        } else if lacking {
            report.notes.push(format!("the component {name} is not in it, or not whole"));
        }
    }
}

/// Hashes what passes through.
struct HashRead<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}

/// Hashes and counts the archive while it is read; an interrupt is a read error. What reading fails with is kept: whoever
/// looks inside passes it on as a text at best.
struct Tee<'a> {
    inner: HashRead<Box<dyn Read + Send + 'a>>,
    bytes: u64,
    broken: Option<io::Error>,
    cancel: &'a Cancel,
    monitor: &'a dyn Monitor,
}

impl<'a> Tee<'a> {
    fn new(inner: Box<dyn Read + Send + 'a>, cancel: &'a Cancel, monitor: &'a dyn Monitor) -> Self {
        let inner = HashRead { inner, hasher: Sha256::new() };
        Self { inner, bytes: 0, broken: None, cancel, monitor }
    }

    fn finish(self) -> (u64, String) {
        (self.bytes, hex::encode(self.inner.hasher.finalize()))
    }
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        if let Some(e) = &self.broken {
            return Err(io::Error::other(e.to_string()));
        }
        match self.inner.read(buf) {
            Ok(n) => {
                self.bytes += n as u64;
                self.monitor.moved(n as u64);
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let told = io::Error::other(e.to_string());
                self.broken = Some(e);
                Err(told)
            }
        }
    }
}
