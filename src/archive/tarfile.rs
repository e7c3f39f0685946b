//! Writes tar: ustar headers, with PAX records for what ustar cannot say (nanoseconds, long or large values, extended
//! attributes, holes). What could go wrong: a body that is shorter or longer than its header says breaks everything
//! behind it, so a body is written through `Body`, which counts.

use std::io::{self, Write};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Hardlink,
    Fifo,
}

/// What a header says.
#[derive(Debug, Clone)]
pub struct Meta<'a> {
    /// Raw bytes, any encoding; a directory without its trailing slash.
    pub path: &'a [u8],
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, may be negative.
    pub mtime: i64,
    pub mtime_ns: u32,
    /// Target of a link.
    pub link: Option<&'a [u8]>,
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Data of a file with holes: `(offset, length)` in order, not overlapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SparseMap {
    pub extents: Vec<(u64, u64)>,
    pub size: u64,
}

const BLOCK: u64 = 512;

pub struct TarWriter<W: Write> {
    out: W,
    entries: u64,
}

impl<W: Write> TarWriter<W> {
    pub fn new(out: W) -> Self {
        Self { out, entries: 0 }
    }

    /// Headers written so far, as a reader counts them.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// An entry without a body.
    pub fn entry(&mut self, meta: &Meta<'_>) -> io::Result<()> {
        self.header(meta, 0, None)
    }

    /// A file of exactly `size` bytes, written through the returned body.
    pub fn file(&mut self, meta: &Meta<'_>, size: u64) -> io::Result<Body<'_, W>> {
        self.header(meta, size, None)?;
        Ok(Body { out: &mut self.out, left: size, pad: padding(size) })
    }

    /// A file with holes; the body takes the data of its extents one after the other.
    pub fn sparse(&mut self, meta: &Meta<'_>, map: &SparseMap) -> io::Result<Body<'_, W>> {
        let data: u64 = map.extents.iter().map(|(_, n)| n).sum();
        let mut text = String::new();
        // A closing empty extent tells where the file ends, also when it ends in a hole.
        let closed = map.extents.last().is_some_and(|(o, n)| o + n == map.size);
        let count = map.extents.len() + usize::from(!closed);
        text.push_str(&format!("{count}\n"));
        for (offset, length) in &map.extents {
            text.push_str(&format!("{offset}\n{length}\n"));
        }
        if !closed {
            text.push_str(&format!("{}\n0\n", map.size));
        }
        let mut head = text.into_bytes();
        head.resize(head.len() + padding(head.len() as u64) as usize, 0);
        let stored = head.len() as u64 + data;
        self.header(meta, stored, Some(map.size))?;
        self.out.write_all(&head)?;
        Ok(Body { out: &mut self.out, left: data, pad: padding(stored) })
    }

    fn header(&mut self, meta: &Meta<'_>, size: u64, sparse_size: Option<u64>) -> io::Result<()> {
        let mut path = meta.path.to_vec();
        if meta.kind == Kind::Directory {
            path.push(b'/');
        }
        let mut pax = Vec::new();
        let mut name = path.clone();
        if let Some(real) = sparse_size {
            record(&mut pax, b"GNU.sparse.major", b"1");
            record(&mut pax, b"GNU.sparse.minor", b"0");
            record(&mut pax, b"GNU.sparse.name", &path);
            record(&mut pax, b"GNU.sparse.realsize", real.to_string().as_bytes());
            // A tar that knows no holes shows this name, so that nobody takes the packed form for the file.
            let cut = path.iter().rposition(|b| *b == b'/').map_or(0, |i| i + 1);
            name = [&path[..cut], b"GNUSparseFile.0/", &path[cut..]].concat();
        }
        let mut header = tar::Header::new_ustar();
        fill(&mut header.as_old_mut().name, &name, &mut pax, b"path");
        if let Some(link) = meta.link {
            fill(&mut header.as_old_mut().linkname, link, &mut pax, b"linkpath");
        }
        header.set_mode(meta.mode & 0o7777);
        number(&mut pax, b"uid", u64::from(meta.uid), 7, |v| header.set_uid(v));
        number(&mut pax, b"gid", u64::from(meta.gid), 7, |v| header.set_gid(v));
        number(&mut pax, b"size", size, 11, |v| header.set_size(v));
        if meta.mtime_ns != 0 || meta.mtime < 0 || meta.mtime >= 1 << 33 {
            record(&mut pax, b"mtime", mtime_text(meta.mtime, meta.mtime_ns).as_bytes());
        }
        header.set_mtime(u64::try_from(meta.mtime).unwrap_or(0).min((1 << 33) - 1));
        for (key, value) in meta.xattrs {
            // `=` ends a keyword, so GNU tar writes it escaped; so do we.
            let mut keyword = b"SCHILY.xattr.".to_vec();
            for b in key {
                match b {
                    b'=' => keyword.extend_from_slice(b"%3D"),
                    b'%' => keyword.extend_from_slice(b"%25"),
                    _ => keyword.push(*b),
                }
            }
            record(&mut pax, &keyword, value);
            // GNU tar restores access lists from text (--acls); the raw attribute needs --xattrs-include.
            if let Some(kind) = key.strip_prefix(b"system.posix_acl_")
                && let Some(text) = acl_text(value)
            {
                record(&mut pax, &[b"SCHILY.acl.", kind].concat(), text.as_bytes());
            }
        }
        header.set_entry_type(match meta.kind {
            Kind::File => tar::EntryType::Regular,
            Kind::Directory => tar::EntryType::Directory,
            Kind::Symlink => tar::EntryType::Symlink,
            Kind::Hardlink => tar::EntryType::Link,
            Kind::Fifo => tar::EntryType::Fifo,
        });
        header.set_cksum();
        if !pax.is_empty() {
            let mut extended = tar::Header::new_ustar();
            fill(&mut extended.as_old_mut().name, b"./PaxHeaders/entry", &mut Vec::new(), b"");
            extended.set_mode(0o600);
            extended.set_uid(0);
            extended.set_gid(0);
            extended.set_mtime(0);
            extended.set_size(pax.len() as u64);
            extended.set_entry_type(tar::EntryType::XHeader);
            extended.set_cksum();
            self.out.write_all(extended.as_bytes())?;
            let pad = padding(pax.len() as u64) as usize;
            pax.resize(pax.len() + pad, 0);
            self.out.write_all(&pax)?;
        }
        self.out.write_all(header.as_bytes())?;
        self.entries += 1;
        Ok(())
    }

    /// Writes the end marker. Without it a reader reports the archive as cut.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.out)
    }
}

/// The body of one file: takes exactly what the header promised.
#[must_use = "a body that is not finished breaks the archive"]
pub struct Body<'a, W: Write> {
    out: &'a mut W,
    left: u64,
    pad: u64,
}

impl<W: Write> Body<'_, W> {
    /// Writes as much of `data` as still belongs to the file; returns how much that was.
    pub fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
        self.out.write_all(&data[..n])?;
        self.left -= n as u64;
        Ok(n)
    }

    /// Fills what is missing with zeros, so that the archive stays whole; returns how much that was.
    pub fn finish(mut self) -> io::Result<u64> {
        let missing = self.left;
        zeros(self.out, self.left)?;
        self.left = 0;
        zeros(self.out, self.pad)?;
        Ok(missing)
    }
}

fn zeros<W: Write>(out: &mut W, mut n: u64) -> io::Result<()> {
    static ZERO: [u8; 64 << 10] = [0; 64 << 10];
    while n > 0 {
        let step = n.min(ZERO.len() as u64) as usize;
        out.write_all(&ZERO[..step])?;
        n -= step as u64;
    }
    Ok(())
}

fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

/// Puts `value` into a header field, or into a PAX record where it does not fit.
fn fill(field: &mut [u8], value: &[u8], pax: &mut Vec<u8>, keyword: &[u8]) {
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
    if n < value.len() && !keyword.is_empty() {
        record(pax, keyword, value);
    }
}

fn number(pax: &mut Vec<u8>, keyword: &[u8], value: u64, digits: u32, set: impl FnOnce(u64)) {
    let limit = 1u64 << (3 * digits);
    if value >= limit {
        record(pax, keyword, value.to_string().as_bytes());
    }
    set(value.min(limit - 1));
}

/// `seconds.nanoseconds`, where a time before 1970 counts down: -1.5 is half a second earlier than -1.
fn mtime_text(seconds: i64, nanos: u32) -> String {
    if seconds >= 0 || nanos == 0 {
        return format!("{seconds}.{nanos:09}");
    }
    let whole = seconds + 1;
    let sign = if whole == 0 { "-" } else { "" };
    format!("{sign}{whole}.{:09}", 1_000_000_000 - nanos)
}

/// A kernel access list (version 2, then entries of tag, permissions and id) as `user::rw-,user:1000:r--,…`. None for
/// anything else.
fn acl_text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return None;
    }
    let mut parts = Vec::new();
    for e in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([e[0], e[1]]);
        let perm = u16::from_le_bytes([e[2], e[3]]);
        let id = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
        let who = match tag {
            0x01 => "user:".to_owned(),
            0x02 => format!("user:{id}"),
            0x04 => "group:".to_owned(),
            0x08 => format!("group:{id}"),
            0x10 => "mask:".to_owned(),
            0x20 => "other:".to_owned(),
            _ => return None,
        };
        let bit = |mask, letter| if perm & mask != 0 { letter } else { '-' };
        parts.push(format!("{who}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x')));
    }
    Some(parts.join(","))
}

/// `"<length> <keyword>=<value>\n"`, where the length counts itself.
fn record(pax: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(keyword);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for n in [0, 1, 80, 85, 86, 87, 88, 89, 90, 980, 985, 990, 995] {
            let mut pax = Vec::new();
            record(&mut pax, b"path", &vec![b'x'; n]);
            let text = String::from_utf8(pax.clone()).unwrap();
            let (length, _) = text.split_once(' ').unwrap();
            assert_eq!(length.parse::<usize>().unwrap(), pax.len(), "{n}");
        }
    }

    #[test]
    fn an_access_list_reads_as_getfacl_writes_it() {
        let entry = |tag: u16, perm: u16, id: u32| {
            [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let list = [
            2u32.to_le_bytes().to_vec(),
            entry(1, 6, u32::MAX),
            entry(2, 7, 4242),
            entry(4, 4, u32::MAX),
            entry(0x10, 7, u32::MAX),
            entry(0x20, 0, u32::MAX),
        ]
        .concat();
        assert_eq!(
            acl_text(&list).as_deref(),
            Some("user::rw-,user:4242:rwx,group::r--,mask::rwx,other::---")
        );
        assert_eq!(acl_text(&list[..list.len() - 1]), None);
        assert_eq!(acl_text(b""), None);
    }

    #[test]
    fn times_before_the_epoch_count_down() {
        assert_eq!(mtime_text(5, 1), "5.000000001");
        assert_eq!(mtime_text(-1, 500_000_000), "-0.500000000");
        assert_eq!(mtime_text(-2, 250_000_000), "-1.750000000");
        assert_eq!(mtime_text(-3, 0), "-3.000000000");
    }

    #[test]
    fn a_body_never_exceeds_its_header_and_is_filled_up() {
        let meta = Meta {
            path: b"f",
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            mtime_ns: 0,
            link: None,
            xattrs: &[],
        };
        let mut t = TarWriter::new(Vec::new());
        let mut body = t.file(&meta, 4).unwrap();
        assert_eq!(body.write(b"abcdefg").unwrap(), 4);
        assert_eq!(body.finish().unwrap(), 0);
        let mut body = t.file(&meta, 1000).unwrap();
        body.write(b"short").unwrap();
        assert_eq!(body.finish().unwrap(), 995);
        let out = t.finish().unwrap();
        assert_eq!(out.len() % 512, 0);
        let mut archive = tar::Archive::new(&out[..]);
        let sizes: Vec<u64> = archive.entries().unwrap().map(|e| e.unwrap().size()).collect();
        assert_eq!(sizes, [4, 1000]);
    }
}
