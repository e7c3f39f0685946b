//! Files out of an archive, into a directory, nothing else touched. What could go wrong: an archive that somebody else
//! made writes where it should not; so its digest is checked first, every name is taken apart, and nothing that exists
//! is overwritten or followed.

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;

use super::World;
use super::find::{Found, OpenError};
use crate::archive::read::walk_archive;
use crate::cancel::Interrupted;
use crate::delivery;
use crate::format::tarwalk::{Body, Entry, Kind, TarError};
use crate::hint::Hint;
use crate::store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Open(OpenError),
    #[error("{name} is damaged: {why}")]
    Damaged { name: String, why: String },
    #[error("the archive cannot be read")]
    Tar(#[source] TarError),
    #[error("the archive holds {path:?}, which is no plain file below its own directory")]
    Hostile { path: String },
    #[error("{0:?} is not in the archive")]
    NotThere(String),
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {member} of the archive")]
    Read {
        member: String,
        #[source]
        source: io::Error,
    },
}

impl From<StoreError> for ExtractError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Interrupted(i) => Self::Interrupted(i),
            e => Self::Store(e),
        }
    }
}

impl From<OpenError> for ExtractError {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Store(e) => e.into(),
            e => Self::Open(e),
        }
    }
}

impl From<TarError> for ExtractError {
    fn from(e: TarError) -> Self {
        Self::Tar(e)
    }
}

impl Hint for ExtractError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Store(e) => return e.hint(),
            Self::Open(e) => return e.hint(),
            Self::Damaged { .. } | Self::Tar(_) | Self::Hostile { .. } => {
                "use another copy or another backup: tars-backup list".into()
            }
            Self::NotThere(_) => "see what is in it: tars-backup show BACKUP".into(),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "extract into a new or empty directory".into()
            }
            _ => return None,
        })
    }
}

#[derive(Debug, Serialize)]
pub struct Extracted {
    pub name: String,
    pub to: PathBuf,
    pub files: Vec<String>,
    pub bytes: u64,
}

/// Writes the wanted members (all, if `paths` is empty) below `to`. A path names a file, or a directory with all in it.
pub fn extract(
    found: &Found<'_>,
    paths: &[String],
    to: &Path,
    world: &World<'_>,
) -> Result<Extracted, ExtractError> {
    let name = found.entry.name.to_string();
    let damaged = |why: String| ExtractError::Damaged { name: name.clone(), why };
    let manifest = found.entry.manifest.as_ref().map_err(|e| damaged(crate::hint::chain(e)))?;
    world.monitor.phase(&format!("extracting {name}"), manifest.bytes.map(|b| 2 * b));
    let (reader, _) = found.open(world.cancel)?;
    let read = |source| ExtractError::Read { member: manifest.archive_file(), source };
    let (_, sha256) = delivery::digest(reader, world.cancel, world.monitor).map_err(read)?;
    if manifest.sha256.as_deref() != Some(sha256.as_str()) {
        return Err(damaged("its bytes have another SHA-256 than the manifest says".into()));
    }

    let wanted: Vec<&str> = paths.iter().map(|p| p.trim_start_matches("./").trim_end_matches('/')).collect();
    let mut used = vec![false; wanted.len()];
    let mut out = Extracted { name: name.clone(), to: to.to_owned(), files: Vec::new(), bytes: 0 };
    let prefix = format!("{name}/");
    walk_archive(
        found.open_plain(manifest, world)?,
        |entry: &Entry, body: &mut Body<'_>| -> Result<(), ExtractError> {
            world.cancel.check()?;
            let shown = crate::archive::tree::show_name(&entry.path);
            let hostile = || ExtractError::Hostile { path: shown.clone() };
            let path = std::str::from_utf8(&entry.path).map_err(|_| hostile())?;
            let inside = path.strip_prefix(&prefix).ok_or_else(hostile)?.trim_end_matches('/');
            if entry.kind == Kind::Directory {
                return Ok(());
            }
            if entry.kind != Kind::Regular || !is_plain(inside) {
                return Err(hostile());
            }
            let chosen = wanted.iter().position(|w| {
                inside == *w || inside.strip_prefix(w).is_some_and(|rest| rest.starts_with('/'))
            });
            match chosen {
                Some(i) => used[i] = true,
                None if wanted.is_empty() => {}
                None => return Ok(()),
            }
            out.bytes += write_file(to, inside, body, world)?;
            out.files.push(inside.to_owned());
            Ok(())
        },
    )?;
    match used.iter().position(|u| !u) {
        Some(missing) => Err(ExtractError::NotThere(paths[missing].clone())),
        None => Ok(out),
    }
}

fn is_plain(path: &str) -> bool {
    crate::id::is_member(path)
}

fn write_file(to: &Path, inside: &str, body: &mut Body<'_>, world: &World<'_>) -> Result<u64, ExtractError> {
    let path = to.join(inside);
    let fail = |source| ExtractError::Write { path: path.clone(), source };
    let dir = path.parent().unwrap_or(to);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|e| fail(e.into()))?;
    let mut file = std::fs::File::from(fd);
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        world.cancel.check()?;
        let n = body
            .read(&mut buffer)
            .map_err(|source| ExtractError::Read { member: inside.to_owned(), source })?;
        if n == 0 {
            file.sync_all().map_err(fail)?;
            return Ok(bytes);
        }
        file.write_all(&buffer[..n]).map_err(fail)?;
        world.monitor.moved(n as u64);
        bytes += n as u64;
    }
}
