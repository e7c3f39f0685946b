//! Reading archives, ours and those that others give us. What could go wrong: a reader that stops early and calls it
//! the end; every stream here is read to its real end, and all members of a gzip count.

use std::io::{self, Read};

use super::gunzip::Gunzip;
use super::tree::Watch;
use crate::format::tarwalk::{self, Body, Entry, Extent, Kind, TarError, TarFacts};

/// A member's name without the suffix of its compression, and how to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Zstd,
    Plain,
}

/// `postgres.sql.gz` -> (`postgres.sql`, gzip).
pub fn codec_of(member: &str) -> (&str, Codec) {
    if let Some(base) = member.strip_suffix(".gz") {
        (base, Codec::Gzip)
    } else if let Some(base) = member.strip_suffix(".zst") {
        (base, Codec::Zstd)
    } else {
        (member, Codec::Plain)
    }
}

/// The content of a member.
pub fn decompress<'a>(codec: Codec, body: &'a mut dyn Read) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match codec {
        Codec::Gzip => Box::new(Gunzip::new(body)),
        Codec::Zstd => Box::new(zstd::Decoder::new(body)?),
        Codec::Plain => Box::new(body),
    })
}

/// Reads a whole `.tar.gz`, entry by entry, to its end.
pub fn walk_archive<E: From<TarError>>(
    mut archive: impl Read,
    on_entry: impl FnMut(&Entry, &mut Body<'_>) -> Result<(), E>,
) -> Result<TarFacts, E> {
    tarwalk::walk(Gunzip::new(&mut archive), on_entry)
}

/// Reads a tar to its end; returns the number of its entries.
pub fn walk_tar(tar: impl Read) -> Result<u64, TarError> {
    tarwalk::walk(tar, |_, _| Ok::<(), TarError>(())).map(|facts| facts.entries)
}

/// The same; `watch` sees every file as it was when the tar was written.
pub fn walk_tar_watched(tar: impl Read, watch: &mut dyn Watch) -> Result<u64, TarError> {
    let mut buffer = vec![0; 1 << 20];
    tarwalk::walk(tar, |entry, body| {
        if entry.kind != Kind::Regular {
            return Ok(());
        }
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        watch.file(path, entry.size, entry.mtime);
        let whole = [Extent { offset: 0, bytes: entry.size }];
        for extent in entry.extents.as_deref().unwrap_or(&whole) {
            let mut done = 0;
            while done < extent.bytes {
                let most = usize::try_from(extent.bytes - done).unwrap_or(usize::MAX).min(buffer.len());
                let n = body
                    .read(&mut buffer[..most])
                    .map_err(|source| TarError::Read { offset: extent.offset + done, source })?;
                watch.data(extent.offset + done, &buffer[..n]);
                done += n as u64;
            }
        }
        watch.end(true);
        Ok(())
    })
    .map(|facts| facts.entries)
}

/// Hands the one regular file of a tar to `take`; the tar is still read to its end.
pub fn only_file(tar: impl Read, mut take: impl FnMut(&mut dyn Read) -> io::Result<()>) -> io::Result<()> {
    let mut files = 0;
    tarwalk::walk(tar, |entry, body| {
        if entry.kind != Kind::Regular {
            return Ok(());
        }
        files += 1;
        if files > 1 {
            return Err(Stop(io::Error::other("more than one file came")));
        }
        take(body).map_err(Stop)
    })
    .map_err(|Stop(e)| e)?;
    if files == 1 { Ok(()) } else { Err(io::Error::other("it is not a regular file")) }
}

struct Stop(io::Error);

impl From<TarError> for Stop {
    fn from(e: TarError) -> Self {
        Self(io::Error::other(e))
    }
}
