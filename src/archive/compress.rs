//! A component file on its way into staging: compressed, hashed and counted in one pass.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::gzip::{GzWriter, Pool};
use crate::config::{Archive, Method};

/// A file that lies ready in staging.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Name in the archive, below the directory of the backup.
    pub member: String,
    pub path: PathBuf,
    /// Bytes before compression.
    pub bytes_in: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// The outer gzip stores it as it is.
    pub compressed: bool,
}

/// Counts and hashes what the file accepted.
pub struct HashFile {
    file: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    reserve: Reserve,
}

/// Keeps a staging disk from filling up: other services live there too.
#[derive(Debug, Clone)]
pub struct Reserve {
    pub dir: PathBuf,
    /// Bytes that stay free.
    pub bytes: u64,
}

/// What stays free of a large disk; of a small one a twentieth.
const RESERVE: u64 = 256 << 20;

impl Reserve {
    /// Of the disk that holds `dir`.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let total = rustix::fs::statvfs(dir)?;
        let bytes = RESERVE.min(total.f_blocks.saturating_mul(total.f_frsize) / 20);
        Ok(Self { dir: dir.to_owned(), bytes })
    }
}

/// Bytes between two looks at the free space.
const LOOK_EVERY: u64 = 32 << 20;

impl HashFile {
    pub fn new(file: File, reserve: Reserve) -> Self {
        Self { file: BufWriter::with_capacity(256 << 10, file), hasher: Sha256::new(), bytes: 0, reserve }
    }

    pub(crate) fn finish(mut self) -> io::Result<(u64, String)> {
        self.file.flush()?;
        Ok((self.bytes, hex::encode(self.hasher.finalize())))
    }
}

impl Write for HashFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let before = self.bytes / LOOK_EVERY;
        let n = self.file.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.bytes += n as u64;
        if self.bytes / LOOK_EVERY != before && free_bytes(&self.reserve.dir)? < self.reserve.bytes {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("less than {} would stay free", crate::units::show_bytes(self.reserve.bytes)),
            ));
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Bytes that an ordinary writer may still use.
pub fn free_bytes(dir: &std::path::Path) -> io::Result<u64> {
    let s = rustix::fs::statvfs(dir)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

enum Encoder {
    Gzip(GzWriter<HashFile>),
    Zstd(zstd::Encoder<'static, HashFile>),
    Plain(HashFile),
}

pub struct ComponentWriter {
    encoder: Encoder,
    member: String,
    path: PathBuf,
    bytes_in: u64,
}

impl ComponentWriter {
    /// `member` is the name before compression; its suffix is added here.
    pub fn new(member: &str, path: PathBuf, sink: HashFile, pool: &Pool, how: Archive) -> io::Result<Self> {
        let encoder = match how.method {
            Method::Gzip => Encoder::Gzip(pool.writer(sink, how.level)),
            Method::Zstd => {
                let mut e = zstd::Encoder::new(sink, how.level)?;
                e.include_checksum(true)?;
                e.multithread(u32::try_from(pool.threads()).unwrap_or(1))?;
                Encoder::Zstd(e)
            }
            Method::None => Encoder::Plain(sink),
        };
        Ok(Self { encoder, member: format!("{member}{}", how.method.suffix()), path, bytes_in: 0 })
    }

    /// A file that goes into the archive as it is (an RDB, a configuration file).
    pub fn plain(member: &str, path: PathBuf, sink: HashFile) -> Self {
        Self { encoder: Encoder::Plain(sink), member: member.to_owned(), path, bytes_in: 0 }
    }

    /// Bytes taken so far.
    pub fn bytes_in(&self) -> u64 {
        self.bytes_in
    }

    /// Ends the file. A writer that is dropped instead leaves a file that nobody packs.
    pub fn finish(self) -> io::Result<Staged> {
        let (sink, compressed) = match self.encoder {
            Encoder::Gzip(w) => (w.finish()?, true),
            Encoder::Zstd(w) => (w.finish()?, true),
            Encoder::Plain(w) => (w, false),
        };
        let (bytes, sha256) = sink.finish()?;
        Ok(Staged {
            member: self.member,
            path: self.path,
            bytes_in: self.bytes_in,
            bytes,
            sha256,
            compressed,
        })
    }
}

impl Write for ComponentWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = match &mut self.encoder {
            Encoder::Gzip(w) => w.write(buf),
            Encoder::Zstd(w) => w.write(buf),
            Encoder::Plain(w) => w.write(buf),
        }?;
        self.bytes_in += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
