//! The private scratch directory of one run. What could go wrong: a full disk that takes other services down, or plain
//! copies of data left behind, so a reserve stays free and the directory goes when the run ends, however it ends; what
//! a killed run left is removed by the next one, under the lock.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::archive::compress::{ComponentWriter, HashFile, Reserve, free_bytes};
use crate::archive::gzip::Pool;
use crate::config::Archive;
use crate::hint::Hint;

const RUN_PREFIX: &str = "run-";

#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("cannot use the staging directory {path}")]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path} in staging")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for StagingError {
    fn hint(&self) -> Option<String> {
        let (Self::Unusable { path, source } | Self::Write { path, source }) = self;
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(format!(
                "make room (df -h {}) or set agent.staging_dir to a larger disk",
                path.display()
            )),
            io::ErrorKind::ReadOnlyFilesystem => Some(
                "in a unit of systemd, tell it which paths may be written: tars-backup config apply".into(),
            ),
            io::ErrorKind::PermissionDenied => {
                Some("run as root, or set agent.state_dir to a directory that you own".into())
            }
            _ => None,
        }
    }
}

/// Makes `dir` and its parents, private to us.
pub fn make_private(dir: &Path) -> Result<(), StagingError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StagingError::Unusable { path: dir.to_owned(), source })
}

pub struct Staging {
    dir: PathBuf,
    reserve: Reserve,
    pool: Pool,
    how: Archive,
}

impl Staging {
    /// Makes the directory of run `id` below `root`.
    pub fn create(root: &Path, id: &str, pool: Pool, how: Archive) -> Result<Self, StagingError> {
        make_private(root)?;
        let dir = root.join(format!("{RUN_PREFIX}{id}"));
        let unusable = |source| StagingError::Unusable { path: dir.clone(), source };
        DirBuilder::new().mode(0o700).create(&dir).map_err(unusable)?;
        let reserve = Reserve::of(&dir).map_err(unusable)?;
        let bytes = reserve.bytes;
        let staging = Self { dir, reserve, pool, how };
        let free = free_bytes(&staging.dir)
            .map_err(|source| StagingError::Unusable { path: staging.dir.clone(), source })?;
        if free <= bytes {
            return Err(StagingError::Unusable {
                path: staging.dir.clone(),
                source: io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!("only {} are free", crate::units::show_bytes(free)),
                ),
            });
        }
        Ok(staging)
    }

    /// Removes what dead runs left below `root`; returns the names. Only for the holder of the lock.
    pub fn sweep(root: &Path) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        let entries = match std::fs::read_dir(root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(removed),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(RUN_PREFIX) && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
                removed.push(name);
            }
        }
        Ok(removed)
    }

    /// How much of the staging disk stays free.
    pub fn reserve(&self) -> Reserve {
        self.reserve.clone()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn how(&self) -> Archive {
        self.how
    }

    /// Removes what components left here: it is in the archive now.
    pub fn drop_components<'a>(&self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            // What cannot be removed now goes with the rest of staging.
            let _ = std::fs::remove_dir_all(self.dir.join(name));
        }
    }

    /// The part of staging that belongs to one component.
    pub fn component(&self, name: &str) -> Result<Stage<'_>, StagingError> {
        let dir = self.dir.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|source| StagingError::Unusable { path: dir.clone(), source })?;
        Ok(Stage { staging: self, dir })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A private directory that goes when its work is over, however it ends.
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// In staging, where the next run sweeps it if we are killed.
    pub fn create(root: &Path, id: &str) -> Result<Self, StagingError> {
        make_private(root)?;
        let path = root.join(format!("{RUN_PREFIX}{id}"));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| StagingError::Unusable { path: path.clone(), source })?;
        Ok(Self { path })
    }

    /// Where programs put what they need for a moment, for those that must leave no trace.
    pub fn temporary() -> Result<Self, StagingError> {
        let mut builder = tempfile::Builder::new();
        // One that a killed run left has another name.
        builder.prefix("tars-backup-").permissions(Permissions::from_mode(0o700));
        let dir = builder
            .tempdir()
            .map_err(|source| StagingError::Unusable { path: std::env::temp_dir(), source })?;
        Ok(Self { path: dir.keep() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run, if it is in staging; else by whoever clears /tmp.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Where a source puts its files.
pub struct Stage<'a> {
    staging: &'a Staging,
    dir: PathBuf,
}

impl Stage<'_> {
    /// A new private file of ours that does not enter the archive.
    pub fn scratch(&self, name: &str) -> Result<(PathBuf, File), StagingError> {
        let path = self.dir.join(crate::id::encode(name));
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| StagingError::Write { path: path.clone(), source })?;
        Ok((path, file))
    }

    fn sink(&self, member: &str) -> Result<(PathBuf, HashFile), StagingError> {
        let (path, file) = self.scratch(&format!("member:{member}"))?;
        Ok((path, HashFile::new(file, self.staging.reserve.clone())))
    }

    /// A component file, compressed as the configuration says; the suffix is added to `member`.
    pub fn compressed(&self, member: &str) -> Result<ComponentWriter, StagingError> {
        let (path, sink) = self.sink(member)?;
        ComponentWriter::new(member, path.clone(), sink, &self.staging.pool, self.staging.how)
            .map_err(|source| StagingError::Write { path, source })
    }

    /// A component file that enters the archive as it is.
    pub fn plain(&self, member: &str) -> Result<ComponentWriter, StagingError> {
        let (path, sink) = self.sink(member)?;
        Ok(ComponentWriter::plain(member, path, sink))
    }
}
