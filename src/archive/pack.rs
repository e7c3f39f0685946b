//! The one archive of a run: staged components, manifest and guide in a single `.tar.gz`. What is compressed already is
//! only stored, at the speed of copying.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::compress::{HashFile, Reserve, Staged};
use super::gzip::{GzWriter, Pool};
use super::tarfile::{Kind, Meta, TarWriter};
use crate::cancel::{Cancel, Interrupted};
use crate::config::{Archive, Method};
use crate::id::BackupName;
use crate::progress::Monitor;

/// The archive, ready to be delivered.
#[derive(Debug, Clone)]
pub struct Packed {
    pub path: PathBuf,
    pub bytes: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("cannot write the archive {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the staged {member}")]
    Read {
        member: String,
        #[source]
        source: io::Error,
    },
    #[error("the staged {member} changed its size")]
    Changed { member: String },
}

impl crate::hint::Hint for PackError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some(
                "its disk is full: make room, or set agent.spool_dir or agent.staging_dir to a larger one"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// What goes in besides the staged files, from memory.
pub struct Text<'a> {
    pub member: &'a str,
    pub bytes: &'a [u8],
}

pub struct Plan<'a> {
    pub name: &'a BackupName,
    /// Seconds since 1970, of every entry.
    pub time: i64,
    pub texts: &'a [Text<'a>],
    pub files: &'a [&'a Staged],
}

/// Writes the archive to `path`, which must not exist.
pub fn pack(
    plan: &Plan<'_>,
    path: &Path,
    reserve: Reserve,
    pool: &Pool,
    how: Archive,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<Packed, PackError> {
    let level = match how.method {
        Method::Gzip => how.level,
        Method::Zstd => 6,
        Method::None => 0,
    };
    let fail = |source| PackError::Write { path: path.to_owned(), source };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    let mut tar = TarWriter::new(pool.writer(HashFile::new(file, reserve), level));

    let mut made: Vec<String> = Vec::new();
    directory(&mut tar, plan, "", &mut made).map_err(fail)?;
    for text in plan.texts {
        let name = format!("{}/{}", plan.name, text.member);
        let mut body =
            tar.file(&meta(&name, Kind::File, 0o600, plan.time), text.bytes.len() as u64).map_err(fail)?;
        body.write(text.bytes).map_err(fail)?;
        body.finish().map_err(fail)?;
    }
    for staged in plan.files {
        if let Some((dir, _)) = staged.member.rsplit_once('/') {
            directory(&mut tar, plan, dir, &mut made).map_err(fail)?;
        }
        tar.get_mut().set_level(if staged.compressed { 0 } else { level }).map_err(fail)?;
        file_entry(&mut tar, plan, staged, path, cancel, monitor)?;
    }
    let sink = tar.finish().and_then(GzWriter::finish).map_err(fail)?;
    let (bytes, sha256) = sink.finish().map_err(fail)?;
    Ok(Packed { path: path.to_owned(), bytes, sha256 })
}

fn meta(name: &str, kind: Kind, mode: u32, time: i64) -> Meta<'_> {
    Meta {
        path: name.as_bytes(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: time,
        mtime_ns: 0,
        link: None,
        xattrs: &[],
    }
}

/// The entries of `dir` and of the directories above it, each once.
fn directory(
    tar: &mut TarWriter<GzWriter<HashFile>>,
    plan: &Plan<'_>,
    dir: &str,
    made: &mut Vec<String>,
) -> io::Result<()> {
    if made.iter().any(|m| m == dir) {
        return Ok(());
    }
    if !dir.is_empty() {
        directory(tar, plan, dir.rsplit_once('/').map_or("", |(above, _)| above), made)?;
    }
    let name = if dir.is_empty() { plan.name.to_string() } else { format!("{}/{dir}", plan.name) };
    tar.entry(&meta(&name, Kind::Directory, 0o700, plan.time))?;
    made.push(dir.to_owned());
    Ok(())
}

fn file_entry(
    tar: &mut TarWriter<GzWriter<HashFile>>,
    plan: &Plan<'_>,
    staged: &Staged,
    path: &Path,
    cancel: &Cancel,
    monitor: &dyn Monitor,
) -> Result<(), PackError> {
    let fail = |source| PackError::Write { path: path.to_owned(), source };
    let read = |source| PackError::Read { member: staged.member.clone(), source };
    let mut file = File::open(&staged.path).map_err(read)?;
    let name = format!("{}/{}", plan.name, staged.member);
    let mut body = tar.file(&meta(&name, Kind::File, 0o600, plan.time), staged.bytes).map_err(fail)?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0u64;
    loop {
        cancel.check()?;
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(read(e)),
        };
        total += n as u64;
        body.write(&buffer[..n]).map_err(fail)?;
        monitor.moved(n as u64);
    }
    let missing = body.finish().map_err(fail)?;
    if missing > 0 || total != staged.bytes {
        return Err(PackError::Changed { member: staged.member.clone() });
    }
    Ok(())
}
