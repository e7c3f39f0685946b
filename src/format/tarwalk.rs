//! Reads a tar stream strictly, entry by entry: the reader behind verifying an archive and behind taking
//! files out of one.
//!
//! The one thing that could go wrong is leniency. A tar cut between two entries looks complete to most
//! readers, and where two readers disagree about what an entry is, an archive can show one thing to the
//! check and another to the restore. So: every header checksum, every number and every extension record is
//! checked, the end marker must be there, only zeros may follow it, and what is ambiguous is an error.
//! Names are handed out as they are: whether a path may be written to is the caller's question.

use std::collections::BTreeMap;
use std::io::{self, Read};

const BLOCK_BYTES: usize = 512;
const BUFFER_BYTES: usize = 128 * 1024;
/// Longest extension body (long name, PAX records), and most that global records may add up to.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Most data regions taken of one sparse file.
pub const MAX_EXTENTS: usize = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Hardlink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Any other type flag, with a body that only its writer understands.
    Other(u8),
}

/// Time since 1970; `nanos` always counts forward, also before 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    pub secs: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// A region of a sparse file that has data; between regions are holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where the region begins in the file.
    pub offset: u64,
    pub bytes: u64,
}

/// One entry, extensions applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As stored, in any encoding, with the trailing slash that directories may have. Never empty, no NUL.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Length of the file, holes included.
    pub size: u64,
    /// Length of the body in the archive: `size`, or the sum of the extents.
    pub stored_bytes: u64,
    /// Target of a symlink, path of the entry that a hardlink repeats; empty for other kinds.
    pub link: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Mtime,
    /// Name (`user.comment`) and value, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Regions of a sparse file in ascending order, or None: then the body is the file.
    pub extents: Option<Vec<Extent>>,
}

/// What a complete archive holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TarFacts {
    pub entries: u64,
    /// Regular files.
    pub files: u64,
    /// Sum of the regular files' stored bytes: without holes, padding and headers.
    pub bytes: u64,
}

/// Why a stream is not a whole tar archive. Offsets count from its begin.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("cannot read the tar archive at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("the tar archive is cut off after {bytes} bytes")]
    Truncated { bytes: u64 },
    #[error("the tar archive goes on after its end marker, at byte {offset}")]
    AfterEnd { offset: u64 },
    #[error("the tar header at byte {offset} is damaged: its checksum does not match")]
    HeaderChecksum { offset: u64 },
    #[error("invalid {what} in the tar entry at byte {offset}")]
    Invalid { what: &'static str, offset: u64 },
    #[error("{what} of the tar entry at byte {offset} is too long: {bytes} bytes")]
    TooLong { what: &'static str, offset: u64, bytes: u64 },
}

/// The stored bytes of one entry: the file, or of a sparse file its extents one after the other. What is
/// not read is skipped.
pub struct Body<'a> {
    input: &'a mut dyn Input,
    left: u64,
}

impl Body<'_> {
    /// Stored bytes not yet read.
    pub fn left(&self) -> u64 {
        self.left
    }
}

impl Read for Body<'_> {
    /// Fails with `UnexpectedEof` when the archive ends inside the body.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let wanted = into.len().min(most);
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.input.read_some(&mut into[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Reads a whole archive and calls `on_entry` for each entry, in order, with its body. Stops at the first
/// error of either side. Fails unless the end marker (two blocks of zeros) is there and nothing but zeros
/// follows it up to the end of the stream.
pub fn walk<E: From<TarError>>(
    input: impl Read,
    mut on_entry: impl FnMut(&Entry, &mut Body<'_>) -> Result<(), E>,
) -> Result<TarFacts, E> {
    let mut source = Source::new(input);
    let mut globals = Records::default();
    let mut facts = TarFacts::default();
    while let Some((entry, packed_bytes)) = next_entry(&mut source, &mut globals)? {
        facts.entries += 1;
        if entry.kind == Kind::Regular {
            facts.files += 1;
            facts.bytes = facts.bytes.saturating_add(entry.stored_bytes);
        }
        let mut body = Body { input: &mut source, left: entry.stored_bytes };
        on_entry(&entry, &mut body)?;
        let left = body.left;
        source.skip(left)?;
        source.skip(padding(packed_bytes))?;
    }
    source.expect_zeros()?;
    Ok(facts)
}

/// Reads headers and extensions up to the body of the next entry. Returns it with the number of bytes that
/// it takes in the archive before padding, or None behind the end marker.
fn next_entry<R: Read>(
    source: &mut Source<R>,
    globals: &mut Records,
) -> Result<Option<(Entry, u64)>, TarError> {
    let mut records = Records::default();
    let mut long_path = None;
    let mut long_link = None;
    loop {
        let offset = source.offset;
        let extended = !records.is_empty() || long_path.is_some() || long_link.is_some();
        let Some(header) = source.header()? else {
            if extended {
                return Err(TarError::Invalid { what: "extension without an entry", offset });
            }
            return Ok(None);
        };
        let flag = header.flag();
        let extension = match flag {
            b'x' => "PAX header",
            b'g' => "global PAX header",
            b'L' => "long name",
            b'K' => "long link target",
            _ => {
                let extensions = Extensions { records: &records, globals, long_path, long_link };
                return entry(source, &header, &extensions).map(Some);
            }
        };
        let text = source.extension(extension, header.size()?, offset)?;
        match flag {
            b'x' => records.add(&text, offset)?,
            b'g' => globals.add(&text, offset)?,
            b'L' => long_path = Some(until_nul(text, extension, offset)?),
            _ => long_link = Some(until_nul(text, extension, offset)?),
        }
    }
}

/// What stood in front of an entry's own header.
struct Extensions<'a> {
    records: &'a Records,
    globals: &'a Records,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions<'_> {
    /// The entry's own record, else the global one. An empty value takes the header's value back in force.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.get(key).or_else(|| self.globals.get(key)).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &[u8], offset: u64) -> Result<Option<u64>, TarError> {
        self.get(key).map(|value| record_number(value, offset)).transpose()
    }
}

fn record_number(value: &[u8], offset: u64) -> Result<u64, TarError> {
    decimal(value).ok_or(TarError::Invalid { what: "number in a PAX record", offset })
}

/// Builds the entry and reads the sparse map, which lies between header and body.
fn entry<R: Read>(
    source: &mut Source<R>,
    header: &Header,
    extensions: &Extensions<'_>,
) -> Result<(Entry, u64), TarError> {
    let offset = header.offset;
    let invalid = |what| TarError::Invalid { what, offset };

    let path = extensions
        .records
        .get(b"GNU.sparse.name")
        .or_else(|| extensions.get(b"path"))
        .map(<[u8]>::to_vec)
        .or_else(|| extensions.long_path.clone())
        .unwrap_or_else(|| header.path());
    let link = extensions
        .get(b"linkpath")
        .map(<[u8]>::to_vec)
        .or_else(|| extensions.long_link.clone())
        .unwrap_or_else(|| header.text(LINK).to_vec());
    if path.is_empty() || path.contains(&0) {
        return Err(invalid("path"));
    }

    let packed_bytes = match extensions.number(b"size", offset)? {
        Some(size) => size,
        None => header.size()?,
    };
    let mut kind = match header.flag() {
        b'0' | 0 | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    };
    if kind == Kind::Regular && path.ends_with(b"/") {
        // How directories looked before they had a type of their own.
        kind = Kind::Directory;
    }
    match kind {
        Kind::Regular | Kind::Other(_) => {}
        // Some readers would skip that many bytes and others none.
        _ if packed_bytes != 0 => return Err(invalid("size of an entry that has no body")),
        _ => {}
    }
    let is_link = matches!(kind, Kind::Hardlink | Kind::Symlink);
    if is_link && (link.is_empty() || link.contains(&0)) {
        return Err(invalid("link target"));
    }

    let mtime = match extensions.get(b"mtime") {
        Some(value) => timestamp(value).ok_or(invalid("mtime in a PAX record"))?,
        None => Mtime { secs: header.signed(MTIME, "mtime")?, nanos: 0 },
    };
    let uid = match extensions.number(b"uid", offset)? {
        Some(uid) => uid,
        None => header.number(UID, "uid")?,
    };
    let gid = match extensions.number(b"gid", offset)? {
        Some(gid) => gid,
        None => header.number(GID, "gid")?,
    };
    // The masked value fits: twelve bits.
    let mode = (header.number(MODE, "mode")? & 0o7777) as u32;

    let sparse = if kind == Kind::Regular {
        sparse_map(source, header, extensions.records, packed_bytes)?
    } else {
        None
    };
    let (size, stored_bytes, extents) = match sparse {
        Some(Sparse { size, map_bytes, extents }) => {
            let stored_bytes = packed_bytes
                .checked_sub(map_bytes)
                .filter(|&stored| is_sound(&extents, size, stored))
                .ok_or(invalid("sparse map"))?;
            (size, stored_bytes, Some(extents))
        }
        None => (packed_bytes, packed_bytes, None),
    };
    let entry = Entry {
        path,
        kind,
        size,
        stored_bytes,
        link: if is_link { link } else { Vec::new() },
        mode,
        uid,
        gid,
        mtime,
        xattrs: xattrs(extensions.records),
        extents,
    };
    Ok((entry, packed_bytes))
}

/// Only the entry's own: attributes that every file shares are nothing that a writer means.
fn xattrs(records: &Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    records
        .values
        .iter()
        .filter_map(|(key, value)| {
            let name = key.strip_prefix(b"SCHILY.xattr.")?;
            Some((name.to_vec(), value.clone()))
        })
        .collect()
}

struct Sparse {
    size: u64,
    /// What the map itself takes of the body.
    map_bytes: u64,
    extents: Vec<Extent>,
}

/// The map of a sparse file in any of GNU tar's four forms, or None if the file is not sparse.
fn sparse_map<R: Read>(
    source: &mut Source<R>,
    header: &Header,
    records: &Records,
    packed_bytes: u64,
) -> Result<Option<Sparse>, TarError> {
    let offset = header.offset;
    let invalid = TarError::Invalid { what: "sparse map", offset };
    if header.flag() == b'S' {
        return old_sparse_map(source, header).map(Some);
    }
    let number = |key: &[u8]| records.get(key).map(|value| record_number(value, offset)).transpose();
    let major = number(b"GNU.sparse.major")?;
    let minor = number(b"GNU.sparse.minor")?;
    // The size of the file has one name in the first two forms and another in the third.
    let size = match number(b"GNU.sparse.realsize")? {
        Some(size) => Some(size),
        None => number(b"GNU.sparse.size")?,
    };
    match (major, minor, size) {
        (None, None, None) if records.sparse_numbers.is_empty() => Ok(None),
        (Some(1), Some(0), Some(size)) => {
            let (map_bytes, extents) = source.sparse_map(packed_bytes, offset)?;
            Ok(Some(Sparse { size, map_bytes, extents }))
        }
        (None, None, Some(size)) | (Some(0), Some(_), Some(size)) => {
            let numbers = match records.get(b"GNU.sparse.map") {
                Some(map) => {
                    map.split(|&byte| byte == b',').map(decimal).collect::<Option<Vec<_>>>().ok_or(invalid)?
                }
                None => records.sparse_numbers.clone(),
            };
            Ok(Some(Sparse { size, map_bytes: 0, extents: pairs(&numbers, offset)? }))
        }
        _ => Err(invalid),
    }
}

/// GNU tar's oldest form: regions in the header and in as many further blocks as are announced.
fn old_sparse_map<R: Read>(source: &mut Source<R>, header: &Header) -> Result<Sparse, TarError> {
    const REGION_BYTES: usize = 24;
    let offset = header.offset;
    let mut extents = Vec::new();
    let mut take = |regions: &[u8]| -> Result<(), TarError> {
        for region in regions.chunks_exact(REGION_BYTES) {
            let (begin, bytes) = region.split_at(REGION_BYTES / 2);
            if bytes.first() == Some(&0) {
                return Ok(());
            }
            let number = |field| unsigned(field, "sparse map", offset);
            extents.push(Extent { offset: number(begin)?, bytes: number(bytes)? });
            if extents.len() > MAX_EXTENTS {
                return Err(TarError::TooLong {
                    what: "sparse map",
                    offset,
                    bytes: (extents.len() * REGION_BYTES) as u64,
                });
            }
        }
        Ok(())
    };
    take(&header.block[386..482])?;
    let mut more = header.block[482] != 0;
    while more {
        let block = source.block()?.ok_or(TarError::Truncated { bytes: source.offset })?;
        take(&block[..504])?;
        more = block[504] != 0;
    }
    Ok(Sparse { size: header.number((483, 12), "size of a sparse file")?, map_bytes: 0, extents })
}

fn pairs(numbers: &[u64], offset: u64) -> Result<Vec<Extent>, TarError> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(TarError::Invalid { what: "sparse map", offset });
    }
    Ok(pairs.iter().map(|&[offset, bytes]| Extent { offset, bytes }).collect())
}

/// Regions ascend without overlap, lie inside the file and together make up the body.
fn is_sound(extents: &[Extent], size: u64, stored_bytes: u64) -> bool {
    let mut end = 0;
    let mut sum = 0u64;
    for extent in extents {
        let Some(next) = extent.offset.checked_add(extent.bytes) else {
            return false;
        };
        if extent.offset < end || next > size {
            return false;
        }
        end = next;
        // No overflow: the regions do not overlap.
        sum += extent.bytes;
    }
    sum == stored_bytes
}

/// PAX records by key, the last one of a key counts.
#[derive(Debug, Default)]
struct Records {
    values: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Values of GNU.sparse.offset and .numbytes in order: the one case where a key repeats.
    sparse_numbers: Vec<u64>,
    /// What all keys and values take.
    bytes: usize,
}

impl Records {
    fn is_empty(&self) -> bool {
        self.values.is_empty() && self.sparse_numbers.is_empty()
    }

    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Adds the records of one extended header: each is its own length in decimal, a space, key, `=`,
    /// value, newline.
    fn add(&mut self, text: &[u8], offset: u64) -> Result<(), TarError> {
        let invalid = || TarError::Invalid { what: "PAX record", offset };
        let mut rest = text;
        while !rest.is_empty() {
            let space = memchr::memchr(b' ', rest).ok_or_else(invalid)?;
            let length = decimal(&rest[..space])
                .and_then(|length| usize::try_from(length).ok())
                .filter(|&length| length > space + 1)
                .ok_or_else(invalid)?;
            let record = rest.get(space + 1..length).ok_or_else(invalid)?;
            rest = &rest[length..];
            let record = record.strip_suffix(b"\n").ok_or_else(invalid)?;
            let equals = memchr::memchr(b'=', record).filter(|&at| at > 0).ok_or_else(invalid)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                let is_offset = self.sparse_numbers.len().is_multiple_of(2);
                if is_offset != key.ends_with(b"offset") {
                    return Err(invalid());
                }
                self.sparse_numbers.push(decimal(value).ok_or_else(invalid)?);
                self.bytes += size_of::<u64>();
            } else {
                self.bytes += value.len();
                match self.values.insert(key.to_vec(), value.to_vec()) {
                    Some(old) => self.bytes -= old.len(),
                    None => self.bytes += key.len(),
                }
            }
            // Each header is bounded by itself; global ones, and several of one entry, add up.
            if self.bytes as u64 > MAX_EXTENSION_BYTES {
                return Err(TarError::TooLong { what: "PAX header", offset, bytes: self.bytes as u64 });
            }
        }
        Ok(())
    }
}

/// Offset and length of a header field.
type Field = (usize, usize);
const NAME: Field = (0, 100);
const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const LINK: Field = (157, 100);
const PREFIX: Field = (345, 155);

struct Header {
    block: [u8; BLOCK_BYTES],
    offset: u64,
}

impl Header {
    fn flag(&self) -> u8 {
        self.block[156]
    }

    fn field(&self, (begin, bytes): Field) -> &[u8] {
        &self.block[begin..begin + bytes]
    }

    /// A text field up to its NUL, if it has one.
    fn text(&self, field: Field) -> &[u8] {
        let field = self.field(field);
        field.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        // GNU tar's own format has the same magic but for a space, and times where the prefix would be.
        let prefix = if self.block[257..263] == *b"ustar\0" { self.text(PREFIX) } else { &[] };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn size(&self) -> Result<u64, TarError> {
        self.number(SIZE, "size")
    }

    fn number(&self, field: Field, what: &'static str) -> Result<u64, TarError> {
        unsigned(self.field(field), what, self.offset)
    }

    fn signed(&self, field: Field, what: &'static str) -> Result<i64, TarError> {
        number(self.field(field))
            .and_then(|number| i64::try_from(number).ok())
            .ok_or(TarError::Invalid { what, offset: self.offset })
    }

    /// The sum of all bytes with the checksum field as spaces. Old writers added signed bytes.
    fn has_right_checksum(&self) -> bool {
        let (begin, bytes) = CHECKSUM;
        let field = begin..begin + bytes;
        let (mut unsigned, mut signed) = (0i128, 0i128);
        for (at, &byte) in self.block.iter().enumerate() {
            let byte = if field.contains(&at) { b' ' } else { byte };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        number(self.field(CHECKSUM)).is_some_and(|stored| stored == unsigned || stored == signed)
    }
}

/// A number of a header: octal digits between optional spaces, up to a space, a NUL or the field's end;
/// blank is 0. Or, with the top bit set, the field as one big-endian number in two's complement.
fn number(field: &[u8]) -> Option<i128> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 is the sign; fields have at most twelve bytes, so the value always fits.
        let sign = if first & 0x40 != 0 { -1 } else { 0 };
        let top = sign << 7 | i128::from(first & 0x7f);
        return Some(rest.iter().fold(top, |value, &byte| value << 8 | i128::from(byte)));
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|byte| matches!(byte, b' ' | 0)).unwrap_or(digits.len());
    if !digits[end..].iter().all(|byte| matches!(byte, b' ' | 0)) {
        return None;
    }
    digits[..end].iter().try_fold(0, |value, &digit| {
        matches!(digit, b'0'..=b'7').then(|| value << 3 | i128::from(digit - b'0'))
    })
}

fn unsigned(field: &[u8], what: &'static str, offset: u64) -> Result<u64, TarError> {
    number(field).and_then(|number| u64::try_from(number).ok()).ok_or(TarError::Invalid { what, offset })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds in decimal, perhaps negative, perhaps with a fraction; digits behind the ninth are dropped.
fn timestamp(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let secs = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanos =
        (0..9).fold(0, |nanos, at| nanos * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    Some(match (negative, nanos) {
        (false, _) => Mtime { secs, nanos },
        (true, 0) => Mtime { secs: -secs, nanos },
        (true, _) => Mtime { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// A long name without its closing NUL.
fn until_nul(mut text: Vec<u8>, what: &'static str, offset: u64) -> Result<Vec<u8>, TarError> {
    while text.last() == Some(&0) {
        text.pop();
    }
    if text.is_empty() || text.contains(&0) {
        return Err(TarError::Invalid { what, offset });
    }
    Ok(text)
}

fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK_BYTES as u64
}

/// What a body needs from its archive, whatever that is read from.
trait Input {
    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize>;
}

/// Buffered input that knows its place.
struct Source<R> {
    input: R,
    buffer: Vec<u8>,
    position: usize,
    end: usize,
    /// Of the next byte to be consumed.
    offset: u64,
}

impl<R: Read> Input for Source<R> {
    fn read_some(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.position == self.end && into.len() >= BUFFER_BYTES {
            let read = read_retrying(&mut self.input, into)?;
            self.offset += read as u64;
            return Ok(read);
        }
        let available = self.fill()?;
        let read = available.len().min(into.len());
        into[..read].copy_from_slice(&available[..read]);
        self.consume(read);
        Ok(read)
    }
}

impl<R: Read> Source<R> {
    fn new(input: R) -> Self {
        Source { input, buffer: vec![0; BUFFER_BYTES], position: 0, end: 0, offset: 0 }
    }

    /// What is buffered, read anew if that is nothing; empty at the end of the stream.
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.position == self.end {
            self.position = 0;
            self.end = 0;
            self.end = read_retrying(&mut self.input, &mut self.buffer)?;
        }
        Ok(&self.buffer[self.position..self.end])
    }

    fn consume(&mut self, bytes: usize) {
        self.position += bytes;
        self.offset += bytes as u64;
    }

    fn fill_or_error(&mut self) -> Result<&[u8], TarError> {
        let offset = self.offset;
        self.fill().map_err(|source| TarError::Read { offset, source })
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        let mut left = bytes;
        while left > 0 {
            let available = self.fill_or_error()?.len();
            if available == 0 {
                return Err(TarError::Truncated { bytes: self.offset });
            }
            let skipped = usize::try_from(left).unwrap_or(usize::MAX).min(available);
            self.consume(skipped);
            left -= skipped as u64;
        }
        Ok(())
    }

    /// One block, or None at the end of the stream. Part of a block is an error.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut have = 0;
        while have < BLOCK_BYTES {
            let available = self.fill_or_error()?;
            let taken = available.len().min(BLOCK_BYTES - have);
            block[have..have + taken].copy_from_slice(&available[..taken]);
            self.consume(taken);
            if taken == 0 {
                return match have {
                    0 => Ok(None),
                    _ => Err(TarError::Truncated { bytes: self.offset }),
                };
            }
            have += taken;
        }
        Ok(Some(block))
    }

    /// The next header, or None behind the end marker.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let offset = self.offset;
        let end = |source: &Self| TarError::Truncated { bytes: source.offset };
        let block = self.block()?.ok_or_else(|| end(self))?;
        if is_zero(&block) {
            let second = self.block()?.ok_or_else(|| end(self))?;
            if !is_zero(&second) {
                return Err(TarError::Invalid { what: "single block of zeros", offset });
            }
            return Ok(None);
        }
        let header = Header { block, offset };
        if !header.has_right_checksum() {
            return Err(TarError::HeaderChecksum { offset });
        }
        Ok(Some(header))
    }

    fn extension(&mut self, what: &'static str, bytes: u64, offset: u64) -> Result<Vec<u8>, TarError> {
        if bytes > MAX_EXTENSION_BYTES {
            return Err(TarError::TooLong { what, offset, bytes });
        }
        let mut text = Vec::new();
        while (text.len() as u64) < bytes {
            let wanted = bytes as usize - text.len();
            let available = self.fill_or_error()?;
            let taken = available.len().min(wanted);
            text.extend_from_slice(&available[..taken]);
            self.consume(taken);
            if taken == 0 {
                return Err(TarError::Truncated { bytes: self.offset });
            }
        }
        self.skip(padding(bytes))?;
        Ok(text)
    }

    /// The map at the begin of a body: the number of regions, then offset and length of each, in decimal,
    /// one a line, filled up to whole blocks. Returns how much of the body it took.
    fn sparse_map(&mut self, packed_bytes: u64, offset: u64) -> Result<(u64, Vec<Extent>), TarError> {
        let invalid = || TarError::Invalid { what: "sparse map", offset };
        let mut map_bytes = 0;
        let mut wanted = None;
        let mut numbers = Vec::new();
        let mut number: Option<u64> = None;
        loop {
            if map_bytes + BLOCK_BYTES as u64 > packed_bytes {
                return Err(invalid());
            }
            let block = self.block()?.ok_or(TarError::Truncated { bytes: self.offset })?;
            map_bytes += BLOCK_BYTES as u64;
            for &byte in &block {
                if byte != b'\n' {
                    let digit = decimal(&[byte]).ok_or_else(invalid)?;
                    number = number.unwrap_or(0).checked_mul(10).and_then(|number| number.checked_add(digit));
                    if number.is_none() {
                        return Err(invalid());
                    }
                    continue;
                }
                let line = number.take().ok_or_else(invalid)?;
                match wanted {
                    None if line > MAX_EXTENTS as u64 => {
                        return Err(TarError::TooLong { what: "sparse map", offset, bytes: line });
                    }
                    None => wanted = Some(line as usize * 2),
                    Some(_) => numbers.push(line),
                }
                if wanted == Some(numbers.len()) {
                    return Ok((map_bytes, pairs(&numbers, offset)?));
                }
            }
        }
    }

    fn expect_zeros(&mut self) -> Result<(), TarError> {
        loop {
            let offset = self.offset;
            let available = self.fill_or_error()?;
            if let Some(at) = available.iter().position(|&byte| byte != 0) {
                return Err(TarError::AfterEnd { offset: offset + at as u64 });
            }
            let zeros = available.len();
            if zeros == 0 {
                return Ok(());
            }
            self.consume(zeros);
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|&byte| byte == 0)
}

fn read_retrying(input: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, MetadataExt, symlink};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    type Listed = Vec<(Entry, Vec<u8>)>;

    fn list(tar: &[u8]) -> Result<(Listed, TarFacts), TarError> {
        let mut listed = Vec::new();
        let facts = walk(tar, |entry, body| {
            let mut content = Vec::new();
            if body.read_to_end(&mut content).is_ok() {
                listed.push((entry.clone(), content));
            }
            Ok::<_, TarError>(())
        })?;
        Ok((listed, facts))
    }

    fn skip(tar: &[u8]) -> Result<TarFacts, TarError> {
        walk(tar, |_, _| Ok(()))
    }

    /// A header with right checksum.
    fn header(name: &[u8], flag: u8, size: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK_BYTES];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        sign(&mut block);
        block
    }

    fn sign(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }

    fn padded(content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        content.resize(content.len().next_multiple_of(BLOCK_BYTES), 0);
        content
    }

    fn member(name: &[u8], flag: u8, content: &[u8]) -> Vec<u8> {
        [header(name, flag, content.len() as u64), padded(content)].concat()
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        [length.to_string().as_bytes(), &rest].concat()
    }

    fn closed(members: &[Vec<u8>]) -> Vec<u8> {
        [members.concat(), vec![0; 2 * BLOCK_BYTES]].concat()
    }

    fn one(members: &[Vec<u8>]) -> (Entry, Vec<u8>) {
        let (mut listed, _) = list(&closed(members)).unwrap();
        assert_eq!(listed.len(), 1);
        listed.remove(0)
    }

    fn invalid(members: &[Vec<u8>]) -> &'static str {
        match skip(&closed(members)) {
            Err(TarError::Invalid { what, .. } | TarError::TooLong { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    /// Names as bytes, because not all are UTF-8.
    fn at(root: &Path, name: &[u8]) -> std::path::PathBuf {
        root.join(std::ffi::OsStr::from_bytes(name))
    }

    fn make_tree(root: &Path) {
        fs::create_dir_all(root.join("dir/empty")).unwrap();
        fs::write(root.join("a"), "hello\n").unwrap();
        fs::write(root.join("nothing"), "").unwrap();
        fs::write(root.join("block"), [7; 512]).unwrap();
        fs::write(root.join("more"), vec![9; 70_000]).unwrap();
        fs::hard_link(root.join("a"), root.join("dir/again")).unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("t".repeat(150), root.join("long link")).unwrap();
        let deep = root.join(["n".repeat(90), "o".repeat(90), "p".repeat(90)].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "deep").unwrap();
        fs::write(at(root, b"bad\xff\xfe=\nname"), "odd").unwrap();
        let sparse = fs::File::create(root.join("sparse")).unwrap();
        sparse.set_len(3 << 20).unwrap();
        for hole in 0..30 {
            sparse.write_at(b"data", hole * 100_000 + 65_536).unwrap();
        }
    }

    /// None, with a note, where the program is missing.
    fn run_tar(program: &[&str], root: &Path) -> Option<Vec<u8>> {
        let output = Command::new(program[0])
            .args(&program[1..])
            .args(["-cf", "-", "-C"])
            .arg(root)
            .arg(".")
            .stderr(Stdio::null())
            .output();
        match output {
            Ok(output) if !output.stdout.is_empty() => Some(output.stdout),
            _ => {
                eprintln!("skipped: {program:?} does not run here");
                None
            }
        }
    }

    fn assert_same(tar: &[u8], root: &Path, writer: &[&str]) {
        let (listed, facts) = list(tar).unwrap();
        assert_eq!(facts.entries, listed.len() as u64, "{writer:?}");
        let mut files = 0;
        for (entry, content) in &listed {
            let path = at(root, &entry.path);
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!(u64::from(meta.uid()), entry.uid);
            assert_eq!(meta.mtime(), entry.mtime.secs);
            assert_eq!(meta.mode() & 0o7777, entry.mode);
            match entry.kind {
                Kind::Regular => {
                    files += 1;
                    let mut whole = vec![0; entry.size as usize];
                    let body = [Extent { offset: 0, bytes: entry.size }];
                    let mut rest = content.as_slice();
                    for extent in entry.extents.as_deref().unwrap_or(&body) {
                        let (data, after) = rest.split_at(extent.bytes as usize);
                        whole[extent.offset as usize..][..data.len()].copy_from_slice(data);
                        rest = after;
                    }
                    assert!(whole == fs::read(&path).unwrap(), "{path:?} by {writer:?}");
                }
                Kind::Symlink => {
                    let link = fs::read_link(&path).unwrap();
                    assert_eq!(link.as_os_str().as_bytes(), entry.link);
                }
                Kind::Hardlink => {
                    let first = fs::metadata(at(root, &entry.link)).unwrap();
                    assert_eq!(first.ino(), meta.ino());
                }
                Kind::Directory => assert!(meta.is_dir()),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(facts.files, files);
    }

    #[test]
    fn reads_what_stock_programs_write() {
        let temp = tempfile::tempdir().unwrap();
        make_tree(temp.path());
        for writer in [
            &["tar", "--format=gnu"][..],
            &["tar", "--format=gnu", "-S"],
            &["tar", "--format=oldgnu", "-S"],
            &["tar", "--format=posix"],
            &["tar", "--format=posix", "-S"],
            &["tar", "--format=posix", "-S", "--sparse-version=0.0"],
            &["tar", "--format=posix", "-S", "--sparse-version=0.1"],
            &["tar", "--format=posix", "--pax-option=comment=x"],
            // These two cut a long link target.
            &["tar", "--format=ustar", "--exclude=long link"],
            &["tar", "--format=v7", "--exclude=long link"],
            &["busybox", "tar"],
        ] {
            let Some(tar) = run_tar(writer, temp.path()) else {
                continue;
            };
            assert_same(&tar, temp.path(), writer);
            let sparse = list(&tar).unwrap().0.into_iter().find(|(entry, _)| entry.path == b"./sparse");
            let extents = sparse.unwrap().0.extents.map_or(0, |extents| extents.len());
            assert_eq!(extents > 20, writer.contains(&"-S"), "{writer:?}");
        }
    }

    #[test]
    fn every_cut_that_touches_the_end_marker_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        make_tree(temp.path());
        for format in ["--format=gnu", "--format=posix"] {
            let Some(tar) = run_tar(&["tar", format, "-S"], temp.path()) else {
                continue;
            };
            let content_bytes = tar.len() - tar.iter().rev().take_while(|&&byte| byte == 0).count();
            // The last body's padding is zeros too, so the marker begins at a block boundary after it.
            let marker = content_bytes.next_multiple_of(BLOCK_BYTES);
            for cut in (0..tar.len()).step_by(BLOCK_BYTES) {
                let whole = cut >= marker + 2 * BLOCK_BYTES;
                assert_eq!(skip(&tar[..cut]).is_ok(), whole, "{format} cut at {cut}");
            }
            for cut in [1, 511, 513, marker - 1, marker + 1, marker + 1023] {
                let end = skip(&tar[..cut]);
                assert!(matches!(end, Err(TarError::Truncated { .. })), "{end:?}");
            }
        }
    }

    #[test]
    fn bytes_after_the_end_marker_are_refused_unless_zero() {
        let tar = closed(&[member(b"a", b'0', b"x")]);
        assert!(skip(&[tar.as_slice(), &[0; 7777]].concat()).is_ok());
        let mut long = [tar.as_slice(), &[0; 7777]].concat();
        long.push(1);
        let offset = long.len() as u64 - 1;
        assert!(matches!(skip(&long), Err(TarError::AfterEnd { offset: at }) if at == offset));
        let twice = [tar.as_slice(), &tar].concat();
        assert!(matches!(skip(&twice), Err(TarError::AfterEnd { .. })));
        let lone = closed(&[vec![0; BLOCK_BYTES], member(b"a", b'0', b"x")]);
        assert!(matches!(skip(&lone), Err(TarError::Invalid { .. })));
    }

    #[test]
    fn a_damaged_header_is_refused() {
        let tar = closed(&[member(b"a", b'0', b"x")]);
        for at in (0..BLOCK_BYTES).filter(|at| !(148..156).contains(at)) {
            let mut damaged = tar.clone();
            damaged[at] ^= 1;
            let end = skip(&damaged);
            assert!(matches!(end, Err(TarError::HeaderChecksum { offset: 0 })), "byte {at}: {end:?}");
        }
    }

    #[test]
    fn pax_records_override_the_header_and_global_ones() {
        let own = [
            record("path", "größe/\u{1F4BE}".as_bytes()),
            record("mtime", b"-1.25"),
            record("size", b"3"),
            record("uid", b"4294967296"),
            record("SCHILY.xattr.user.z", b"a=\n\0b"),
            record("SCHILY.xattr.security.capability", b""),
            record("comment", b"none"),
        ]
        .concat();
        let global = [record("mtime", b"77.5"), record("gid", b"42")].concat();
        let mut file = header(b"short", b'0', 0);
        file.extend_from_slice(&padded(b"abc"));
        let members = [member(b"g", b'g', &global), member(b"x", b'x', &own), file];
        let (entry, content) = one(&members);
        assert_eq!(entry.path, "größe/\u{1F4BE}".as_bytes());
        assert_eq!(entry.mtime, Mtime { secs: -2, nanos: 750_000_000 });
        assert_eq!((entry.uid, entry.gid, entry.size), (4_294_967_296, 42, 3));
        assert_eq!(content, b"abc");
        assert_eq!(
            entry.xattrs,
            [(b"security.capability".to_vec(), b"".to_vec()), (b"user.z".to_vec(), b"a=\n\0b".to_vec())]
        );
        let (listed, facts) = list(&closed(&[&members[..], &[member(b"next", b'0', b"")]].concat())).unwrap();
        assert_eq!(listed[1].0.mtime, Mtime { secs: 77, nanos: 500_000_000 });
        assert_eq!((listed[1].0.gid, listed[1].0.uid), (42, 0));
        assert!(listed[1].0.xattrs.is_empty());
        assert_eq!(facts, TarFacts { entries: 2, files: 2, bytes: 3 });
    }

    #[test]
    fn timestamps_count_nanoseconds_forward() {
        let nanos = |secs, nanos| Some(Mtime { secs, nanos });
        for (text, expected) in [
            ("0", nanos(0, 0)),
            ("1.5", nanos(1, 500_000_000)),
            ("1.", nanos(1, 0)),
            ("1.0000000019", nanos(1, 1)),
            ("-1", nanos(-1, 0)),
            ("-0.5", nanos(-1, 500_000_000)),
            ("-9223372036854775807.9", nanos(i64::MIN, 100_000_000)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("1.x", None),
            (" 1", None),
            ("1e3", None),
        ] {
            assert_eq!(timestamp(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn header_numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"  644 \0 ", Some(0o644)),
            (b"77777777", Some(0o77_777_777)),
            (b"        ", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some((1 << 88) - 1)),
            (b"0000648\0", None),
            (b"12 34\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn mtime_before_1970_is_read_from_the_header() {
        let mut block = header(b"old", b'0', 0);
        block[136..148].copy_from_slice(&[&[0xff; 11][..], &[0xfe]].concat());
        sign(&mut block);
        assert_eq!(one(&[block]).0.mtime, Mtime { secs: -2, nanos: 0 });
    }

    #[test]
    fn long_names_come_from_either_kind_of_extension() {
        let name = "n".repeat(300);
        let target = "t".repeat(300);
        let nul = |text: &str| [text.as_bytes(), b"\0"].concat();
        let (entry, _) = one(&[
            member(b"././@LongLink", b'K', &nul(&target)),
            member(b"././@LongLink", b'L', &nul(&name)),
            header(b"cut", b'2', 0),
        ]);
        assert_eq!((entry.path, entry.link), (name.clone().into_bytes(), target.into_bytes()));
        let mut block = header(b"file", b'0', 0);
        block[345..349].copy_from_slice(b"some");
        sign(&mut block);
        assert_eq!(one(&[block.clone()]).0.path, b"some/file");
        block[257..265].copy_from_slice(b"ustar  \0");
        sign(&mut block);
        assert_eq!(one(&[block]).0.path, b"file");
    }

    #[test]
    fn what_readers_could_take_two_ways_is_refused() {
        let mut link = header(b"link", b'1', 512);
        link[157] = b'a';
        sign(&mut link);
        assert_eq!(invalid(&[link, vec![1; 512]]), "size of an entry that has no body");
        assert_eq!(invalid(&[member(b"dir/", b'0', b"x")]), "size of an entry that has no body");
        assert_eq!(invalid(&[header(b"link", b'2', 0)]), "link target");
        assert_eq!(invalid(&[header(b"", b'0', 0)]), "path");
        assert_eq!(invalid(&[member(b"L", b'L', b"a\0b\0"), header(b"a", b'0', 0)]), "long name");
        let nul = record("path", b"a\0b");
        assert_eq!(invalid(&[member(b"x", b'x', &nul), header(b"a", b'0', 0)]), "path");
        let orphan = member(b"x", b'x', &record("path", b"a"));
        assert_eq!(invalid(&[orphan]), "extension without an entry");
        assert_eq!(one(&[header(b"dir/", b'0', 0)]).0.kind, Kind::Directory);
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for text in [
            &b"x"[..],
            b"6 a=b",
            b"6 a=bc\n",
            b"7 a=b\n",
            b"5 a=b\n",
            b"0 a=b\n",
            b"5 =b\n",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"+6 a=b\n",
            b"6 a=b\n\0",
        ] {
            let members = [member(b"x", b'x', text), header(b"a", b'0', 0)];
            assert_eq!(invalid(&members), "PAX record", "{:?}", text.escape_ascii().to_string());
        }
        for (key, value) in [("size", "-1"), ("size", "x"), ("uid", "99999999999999999999"), ("mtime", "now")]
        {
            let text = record(key, value.as_bytes());
            invalid(&[member(b"x", b'x', &text), header(b"a", b'0', 0)]);
        }
    }

    #[test]
    fn absurd_lengths_are_refused_before_memory_is_taken() {
        for flag in [b'x', b'g', b'L', b'K'] {
            let end = skip(&header(b"x", flag, MAX_EXTENSION_BYTES + 1));
            assert!(matches!(end, Err(TarError::TooLong { .. })), "{end:?}");
            let end = skip(&header(b"x", flag, MAX_EXTENSION_BYTES));
            assert!(matches!(end, Err(TarError::Truncated { .. })), "{end:?}");
        }
        let mut huge = header(b"huge", b'0', 0);
        huge[124..136].copy_from_slice(&[&[0x80, 0, 0, 0][..], &[0xff; 8]].concat());
        sign(&mut huge);
        assert!(matches!(list(&huge), Err(TarError::Truncated { .. })));
        huge[125..128].fill(0xff);
        sign(&mut huge);
        assert!(matches!(skip(&huge), Err(TarError::Invalid { .. })));
        let text = vec![b'v'; MAX_EXTENSION_BYTES as usize / 2];
        let many: Vec<_> = ["a", "b", "c"].map(|key| member(b"g", b'g', &record(key, &text))).into();
        assert_eq!(invalid(&many), "PAX header");
        let same: Vec<_> = ["a", "a", "a"].map(|key| member(b"g", b'g', &record(key, &text))).into();
        assert!(skip(&closed(&same)).is_ok());
    }

    #[test]
    fn unsound_sparse_maps_are_refused() {
        let sparse = |map: &str, stored: &[u8]| {
            let records = [
                record("GNU.sparse.major", b"1"),
                record("GNU.sparse.minor", b"0"),
                record("GNU.sparse.name", b"real"),
                record("GNU.sparse.realsize", b"1000"),
            ];
            let body = [padded(map.as_bytes()), stored.to_vec()].concat();
            [member(b"x", b'x', &records.concat()), member(b"fake", b'0', &body)]
        };
        let (entry, content) = one(&sparse("2\n10\n3\n900\n2\n", b"abcde"));
        assert_eq!((entry.path, entry.size, entry.stored_bytes), (b"real".to_vec(), 1000, 5));
        assert_eq!(content, b"abcde");
        let region = |offset, bytes| Extent { offset, bytes };
        assert_eq!(entry.extents, Some(vec![region(10, 3), region(900, 2)]));
        assert_eq!(one(&sparse("0\n", b"")).0.extents, Some(vec![]));
        for map in [
            "1\n10\n4\n",
            "1\n10\n6\n",
            "1\n996\n5\n",
            "2\n10\n3\n12\n2\n",
            "2\n900\n2\n10\n3\n",
            "1\n18446744073709551615\n5\n",
            "1\n99999999999999999999\n5\n",
            "2\n10\n5\n",
            "\n10\n5\n",
            "x",
            "",
            "9999999\n",
        ] {
            assert_eq!(invalid(&sparse(map, b"abcde")), "sparse map", "{map:?}");
        }
        let digits = "1".repeat(2000);
        assert_eq!(invalid(&sparse(&digits, b"")), "sparse map");
    }

    #[test]
    fn a_callback_may_read_part_of_a_body_or_stop_the_walk() {
        #[derive(Debug, thiserror::Error)]
        enum Caller {
            #[error("tar")]
            Tar(#[from] TarError),
            #[error("enough")]
            Enough,
        }
        let tar = closed(&[member(b"a", b'0', &[1; 2000]), member(b"b", b'0', b"second")]);
        let mut seen = Vec::new();
        let facts = walk(&tar[..], |entry, body| {
            let mut start = [0; 3];
            body.read_exact(&mut start).map_err(|_| Caller::Enough)?;
            seen.push((entry.path.clone(), start, body.left()));
            Ok::<_, Caller>(())
        });
        assert_eq!(facts.unwrap().bytes, 2006);
        assert_eq!(seen, [(b"a".to_vec(), [1; 3], 1997), (b"b".to_vec(), *b"sec", 3)]);
        let stopped = walk(&tar[..], |_, _| Err(Caller::Enough));
        assert!(matches!(stopped, Err(Caller::Enough)));
        let cut = walk(&tar[..600], |_, _| Ok::<_, Caller>(()));
        assert!(matches!(cut, Err(Caller::Tar(TarError::Truncated { bytes: 600 }))));
    }

    #[test]
    fn a_body_that_is_cut_does_not_look_short() {
        let tar = member(b"a", b'0', &[1; 2000]);
        let mut kind = None;
        let end = walk(&tar[..1000], |_, body| {
            kind = io::copy(body, &mut io::sink()).err().map(|error| error.kind());
            Ok::<_, TarError>(())
        });
        assert_eq!(kind, Some(io::ErrorKind::UnexpectedEof));
        assert!(matches!(end, Err(TarError::Truncated { .. })));
    }

    #[test]
    fn a_read_error_is_not_taken_for_the_end() {
        struct Failing<'a>(&'a [u8]);
        impl Read for Failing<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                self.0.read(into)
            }
        }
        let tar = closed(&[member(b"a", b'0', b"x")]);
        let end: Result<_, TarError> = walk(Failing(&tar), |_, _| Ok(()));
        assert!(matches!(end, Err(TarError::Read { offset: 2048, .. })));
    }

    #[test]
    fn changed_bytes_never_panic() {
        let sparse = [
            record("GNU.sparse.major", b"1"),
            record("GNU.sparse.minor", b"0"),
            record("GNU.sparse.realsize", b"1000"),
        ];
        let mut old = header(b"old", b'S', 3);
        old[386..410].copy_from_slice(b"00000000012\x0000000000003\0");
        old[483..494].copy_from_slice(b"00000001000");
        sign(&mut old);
        let tar = closed(&[
            member(b"x", b'x', &sparse.concat()),
            member(b"s", b'0', &[padded(b"1\n10\n3\n"), b"abc".to_vec()].concat()),
            old,
            padded(b"abc"),
            member(b"L", b'L', b"long\0"),
            member(b"a", b'0', b"x"),
        ]);
        assert_eq!(list(&tar).unwrap().1, TarFacts { entries: 3, files: 3, bytes: 7 });
        for at in 0..tar.len() {
            for flip in [1, 0x40, 0x80, 0xff] {
                let mut damaged = tar.clone();
                damaged[at] ^= flip;
                let _ = list(&damaged);
                // Again with a checksum that fits, so that the field itself is reached.
                let block = at / BLOCK_BYTES * BLOCK_BYTES;
                sign(&mut damaged[block..block + BLOCK_BYTES]);
                let _ = list(&damaged);
            }
        }
    }

    proptest! {
        #[test]
        fn any_input_ends_without_panic(
            fields in prop::collection::vec((0usize..BLOCK_BYTES, any::<u8>()), 0..40),
            flag in prop::sample::select(b"01257xgLKS\0".to_vec()),
            body in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut block = header(b"name", flag, body.len() as u64);
            for (at, byte) in fields {
                block[at] = byte;
            }
            sign(&mut block);
            let _ = list(&closed(&[block, padded(&body), member(b"a", b'0', b"x")]));
        }
    }
}
