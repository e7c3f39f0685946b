//! Reads a Redis RDB file once, as a stream: is it undamaged, and how many keys has each database.
//!
//! The one thing that could go wrong is to take a file for good that Redis will refuse to load. The
//! checksum over all bytes decides that; walking the file only finds the counts and the true end. A value
//! type that we do not know (a newer server) costs the counts, never the verdict on integrity.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crc::{CRC_64_REDIS, Crc, Digest, Table};

static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_REDIS);

const HEADER_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 8;
/// The EOF opcode and the checksum.
const END_BYTES: usize = 1 + CHECKSUM_BYTES;
/// Files before this version end with the EOF opcode.
const FIRST_VERSION_WITH_CHECKSUM: u32 = 5;
const BUFFER_BYTES: usize = 256 * 1024;
/// Longest text that is read rather than skipped: names and values of AUX fields.
const MAX_TEXT_BYTES: u64 = 64;
/// Redis allows any number of databases; more non-empty ones than this are hostile input.
const MAX_DATABASES: usize = 65_536;

/// One database of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DbFacts {
    /// Keys in the file, also those that expired since it was written.
    pub keys: u64,
    /// Keys among them that have an expiry time.
    pub expires: u64,
}

/// How the end of the file vouches for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC64 computed and equal.
    Verified,
    /// The server wrote none (`rdbchecksum no`, or a version before 5): only the structure was checked.
    Disabled,
}

/// What a whole RDB file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdbFacts {
    /// Format version from the header: 1 to 12 for Redis, 80 and more for Valkey 9.
    pub version: u32,
    /// Server that wrote the file, `7.0.15` or `valkey 8.0.1`.
    pub redis_version: Option<String>,
    /// Databases that have keys, by number.
    pub keys: BTreeMap<u32, DbFacts>,
    /// Function libraries.
    pub functions: u64,
    /// Length of the file.
    pub bytes: u64,
    pub checksum: Checksum,
}

/// Verdict on a file that is undamaged.
#[derive(Debug)]
pub enum Checked {
    Counted(RdbFacts),
    /// The checksum is right, but the file holds something that could not be walked.
    Opaque {
        version: u32,
        bytes: u64,
        why: RdbError,
    },
}

/// Why a file is damaged or not understood. Offsets count from its begin.
#[derive(Debug, thiserror::Error)]
pub enum RdbError {
    #[error("cannot read the RDB file at byte {offset}")]
    Read { offset: u64, source: io::Error },
    #[error("not an RDB file: neither REDIS nor VALKEY and a version at its begin")]
    NotRdb,
    #[error("the RDB file is cut off after {bytes} bytes")]
    Truncated { bytes: u64 },
    #[error("the RDB file goes on after its end at byte {offset}")]
    TrailingBytes { offset: u64 },
    #[error("the RDB file is damaged: checksum {computed:016x}, but {stored:016x} is stored in it")]
    Checksum { stored: u64, computed: u64 },
    #[error("unknown type or opcode {opcode} at byte {offset} of the RDB file")]
    Unknown { opcode: u8, offset: u64 },
    #[error("impossible {what} at byte {offset} of the RDB file")]
    Malformed { what: &'static str, offset: u64 },
}

/// Facts of an undamaged file. Fails like [`check`], and also with [`RdbError::Unknown`] or
/// [`RdbError::Malformed`] when the checksum is right but the file could not be walked.
pub fn read(input: impl Read) -> Result<RdbFacts, RdbError> {
    match check(input)? {
        Checked::Counted(facts) => Ok(facts),
        Checked::Opaque { why, .. } => Err(why),
    }
}

/// Reads the whole stream and decides whether it is one undamaged RDB file. Fails when it is cut, when
/// bytes follow its end, when the checksum differs, and, if the server wrote no checksum, also when the
/// file cannot be walked to its end: then nothing else vouches for it.
pub fn check(input: impl Read) -> Result<Checked, RdbError> {
    let mut source = Source::new(input);
    let dialect = source.header()?;
    let mut facts = RdbFacts {
        version: dialect.version,
        redis_version: None,
        keys: BTreeMap::new(),
        functions: 0,
        bytes: 0,
        checksum: Checksum::Disabled,
    };
    let walked = match walk(&mut source, dialect, &mut facts) {
        Err(error @ RdbError::Read { .. }) => return Err(error),
        walked => walked,
    };
    let (bytes, trailer) = source.drain()?;
    facts.bytes = bytes;

    let has_checksum = dialect.version >= FIRST_VERSION_WITH_CHECKSUM;
    let trailer_bytes = if has_checksum { CHECKSUM_BYTES as u64 } else { 0 };
    let walked = walked.and_then(|end| match bytes.cmp(&(end + trailer_bytes)) {
        std::cmp::Ordering::Less => Err(RdbError::Truncated { bytes }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(RdbError::TrailingBytes { offset: end + trailer_bytes }),
    });
    let Trailer { stored, computed, follows_eof } = trailer;
    if !has_checksum || stored == 0 {
        return walked.map(|()| Checked::Counted(facts));
    }
    match walked {
        Ok(()) if stored == computed => {
            facts.checksum = Checksum::Verified;
            Ok(Checked::Counted(facts))
        }
        // Zeros after a checksum leave the checksum of the whole correct, hence the further conditions.
        Err(why) if stored == computed && follows_eof && !matches!(why, RdbError::TrailingBytes { .. }) => {
            Ok(Checked::Opaque { version: facts.version, bytes, why })
        }
        // Of the two symptoms of one damage, the lengths explain more than the checksum.
        Err(error @ (RdbError::Truncated { .. } | RdbError::TrailingBytes { .. })) => Err(error),
        _ => Err(RdbError::Checksum { stored, computed }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Redis,
    Valkey,
}

/// Which meaning the type numbers have: from 22 on, Redis and Valkey went separate ways.
#[derive(Debug, Clone, Copy)]
struct Dialect {
    server: Server,
    version: u32,
}

/// The last eight bytes, the checksum of all before them, and whether those end with the EOF opcode.
struct Trailer {
    stored: u64,
    computed: u64,
    follows_eof: bool,
}

/// A length, or the mark of a string in a special encoding.
enum Length {
    Plain(u64),
    Encoded(u8),
}

mod opcode {
    pub const SLOT_INFO: u8 = 244;
    pub const FUNCTION2: u8 = 245;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQ: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZE_DB: u8 = 251;
    pub const EXPIRE_TIME_MS: u8 = 252;
    pub const EXPIRE_TIME: u8 = 253;
    pub const SELECT_DB: u8 = 254;
    pub const EOF: u8 = 255;
    /// Everything from here up is an opcode; below are the types of values.
    pub const FIRST: u8 = 240;
}

/// Walks from behind the header through the EOF opcode; returns the offset behind it.
fn walk<R: Read>(source: &mut Source<R>, dialect: Dialect, facts: &mut RdbFacts) -> Result<u64, RdbError> {
    let mut db = 0;
    let mut expires = false;
    loop {
        let offset = source.offset();
        let code = source.byte()?;
        match code {
            opcode::EOF => return Ok(source.offset()),
            opcode::SELECT_DB => {
                let number = source.length()?;
                db = u32::try_from(number)
                    .map_err(|_| RdbError::Malformed { what: "database number", offset })?;
            }
            opcode::RESIZE_DB => {
                source.length()?;
                source.length()?;
            }
            opcode::EXPIRE_TIME => {
                source.skip(4)?;
                expires = true;
            }
            opcode::EXPIRE_TIME_MS => {
                source.skip(8)?;
                expires = true;
            }
            opcode::FREQ => source.skip(1)?,
            opcode::IDLE => {
                source.length()?;
            }
            opcode::AUX => {
                let name = source.text()?;
                let value = source.text()?;
                match name.as_deref() {
                    Some("redis-ver") => facts.redis_version = value,
                    Some("valkey-ver") => {
                        facts.redis_version = value.map(|version| format!("valkey {version}"));
                    }
                    _ => {}
                }
            }
            opcode::MODULE_AUX => {
                source.length()?;
                module_value(source)?;
            }
            opcode::FUNCTION2 => {
                source.skip_string()?;
                facts.functions += 1;
            }
            opcode::SLOT_INFO => {
                for _ in 0..3 {
                    source.length()?;
                }
            }
            opcode::FIRST.. => {
                return Err(RdbError::Unknown { opcode: code, offset });
            }
            kind => {
                source.skip_string()?;
                value(source, dialect.server, kind, offset)?;
                let known = facts.keys.len();
                let entry = facts.keys.entry(db).or_default();
                entry.keys += 1;
                entry.expires += u64::from(std::mem::take(&mut expires));
                if known == MAX_DATABASES && facts.keys.len() > known {
                    return Err(RdbError::Malformed { what: "number of databases", offset });
                }
            }
        }
    }
}

/// Skips one value. Containers in a compact encoding (ziplist, intset, listpack) are one string each.
fn value<R: Read>(source: &mut Source<R>, server: Server, kind: u8, offset: u64) -> Result<(), RdbError> {
    match (kind, server) {
        // string, zipmap, ziplists, intset, listpacks
        (0 | 9..=13 | 16 | 17 | 20, _) => source.skip_string(),
        // list, set, quicklist of ziplists
        (1 | 2 | 14, _) => source.repeat(|source| source.skip_string()),
        // sorted set, scores as text
        (3, _) => source.repeat(|source| {
            source.skip_string()?;
            source.skip_text_double()
        }),
        // sorted set, scores as binary doubles
        (5, _) => source.repeat(|source| {
            source.skip_string()?;
            source.skip(8)
        }),
        // hash
        (4, _) => source.repeat(|source| {
            source.skip_string()?;
            source.skip_string()
        }),
        // module value
        (7, _) => {
            source.length()?;
            module_value(source)
        }
        // streams, each version with a little more
        (15, _) => stream(source, 1),
        (19, _) => stream(source, 2),
        (21, _) => stream(source, 3),
        // quicklist of plain or listpack nodes
        (18, _) => source.repeat(|source| {
            let offset = source.offset();
            match source.length()? {
                1 | 2 => source.skip_string(),
                _ => Err(RdbError::Malformed { what: "quicklist node", offset }),
            }
        }),
        // hash whose fields expire, 7.4 release candidates
        (22, Server::Redis) => source.repeat(Source::skip_expiring_field),
        (23, Server::Redis) => source.skip_string(),
        // hash whose fields expire, 7.4 and later: the earliest expiry comes first
        (24, Server::Redis) => {
            source.skip(8)?;
            source.repeat(Source::skip_expiring_field)
        }
        (25, Server::Redis) => {
            source.skip(8)?;
            source.skip_string()
        }
        // hash whose fields expire, Valkey 9
        (22, Server::Valkey) => source.repeat(|source| {
            source.skip_string()?;
            source.skip_string()?;
            source.skip(8)
        }),
        _ => Err(RdbError::Unknown { opcode: kind, offset }),
    }
}

/// Skips what a module saved: parts that each say what they are, up to an end mark.
fn module_value<R: Read>(source: &mut Source<R>) -> Result<(), RdbError> {
    loop {
        let offset = source.offset();
        match source.length()? {
            0 => return Ok(()),
            1 | 2 => {
                source.length()?;
            }
            3 => source.skip(4)?,
            4 => source.skip(8)?,
            5 => source.skip_string()?,
            _ => {
                return Err(RdbError::Malformed { what: "module data", offset });
            }
        }
    }
}

fn stream<R: Read>(source: &mut Source<R>, version: u8) -> Result<(), RdbError> {
    const ID_BYTES: u64 = 16;
    // Listpacks by their first entry's id.
    source.repeat(|source| {
        source.skip_string()?;
        source.skip_string()
    })?;
    // Entries and the last id; since version 2 also the first id, the last deleted id, entries ever added.
    let numbers = if version >= 2 { 8 } else { 3 };
    for _ in 0..numbers {
        source.length()?;
    }
    source.repeat(|source| {
        // A group: name, last id, since version 2 entries read.
        source.skip_string()?;
        let numbers = if version >= 2 { 3 } else { 2 };
        for _ in 0..numbers {
            source.length()?;
        }
        // Pending entries: id, time of delivery, number of deliveries.
        source.repeat(|source| {
            source.skip(ID_BYTES + 8)?;
            source.length().map(drop)
        })?;
        // Consumers: name, seen time, since version 3 active time, ids of their pending entries.
        source.repeat(|source| {
            source.skip_string()?;
            source.skip(if version >= 3 { 16 } else { 8 })?;
            source.repeat(|source| source.skip(ID_BYTES))
        })
    })
}

/// Buffered input that computes the checksum of all bytes but the last few seen so far: where the stream
/// ends is known only at its end, and the last eight are then the stored checksum.
struct Source<R> {
    input: R,
    buffer: Vec<u8>,
    /// Offset of the buffer's first byte in the stream.
    base: u64,
    /// In the buffer: begin of what is not hashed, begin of what is not consumed, end of what was read.
    hashed: usize,
    position: usize,
    end: usize,
    digest: Digest<'static, u64, Table<16>>,
}

impl<R: Read> Source<R> {
    fn new(input: R) -> Self {
        Source {
            input,
            buffer: vec![0; BUFFER_BYTES],
            base: 0,
            hashed: 0,
            position: 0,
            end: 0,
            digest: CRC64.digest(),
        }
    }

    /// Of the next byte to be consumed.
    fn offset(&self) -> u64 {
        self.base + self.position as u64
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.position..self.end).unwrap_or_default()
    }

    /// Reads more once everything is consumed; false at the end of the stream.
    fn refill(&mut self) -> Result<bool, RdbError> {
        let kept = self.end.min(END_BYTES);
        let hashable = self.end - kept;
        self.digest.update(&self.buffer[self.hashed..hashable]);
        self.buffer.copy_within(hashable..self.end, 0);
        self.base += hashable as u64;
        self.hashed = 0;
        self.position = kept;
        self.end = kept;
        loop {
            match self.input.read(&mut self.buffer[kept..]) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.end += read;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(RdbError::Read { offset: self.offset(), source });
                }
            }
        }
    }

    /// Reads what is left. Returns the length of the stream and what its end says.
    fn drain(mut self) -> Result<(u64, Trailer), RdbError> {
        loop {
            self.position = self.end;
            if !self.refill()? {
                break;
            }
        }
        // After the last refill, the buffer holds just the bytes that were kept back.
        let kept = &self.buffer[..self.end];
        let trailer = match kept.split_last_chunk::<CHECKSUM_BYTES>() {
            Some((before, stored)) => {
                self.digest.update(before);
                Trailer {
                    stored: u64::from_le_bytes(*stored),
                    computed: self.digest.finalize(),
                    follows_eof: before.last() == Some(&opcode::EOF),
                }
            }
            // Too short for a checksum; the walk has seen that it is cut.
            None => Trailer { stored: 0, computed: 0, follows_eof: false },
        };
        Ok((self.base + self.end as u64, trailer))
    }

    fn more(&mut self) -> Result<(), RdbError> {
        if self.refill()? { Ok(()) } else { Err(RdbError::Truncated { bytes: self.offset() }) }
    }

    fn byte(&mut self) -> Result<u8, RdbError> {
        if self.position == self.end {
            self.more()?;
        }
        let byte = self.buffer[self.position];
        self.position += 1;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RdbError> {
        if let Some(bytes) = self.unread().first_chunk::<N>() {
            let bytes = *bytes;
            self.position += N;
            return Ok(bytes);
        }
        let mut bytes = [0; N];
        for slot in &mut bytes {
            *slot = self.byte()?;
        }
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), RdbError> {
        let mut left = bytes;
        loop {
            let available = self.end - self.position;
            if left <= available as u64 {
                self.position += left as usize;
                return Ok(());
            }
            left -= available as u64;
            self.position = self.end;
            self.more()?;
        }
    }

    fn header(&mut self) -> Result<Dialect, RdbError> {
        let header: [u8; HEADER_BYTES] = self.array()?;
        let (server, digits) = if let Some(digits) = header.strip_prefix(b"REDIS") {
            (Server::Redis, digits)
        } else if let Some(digits) = header.strip_prefix(b"VALKEY") {
            (Server::Valkey, digits)
        } else {
            return Err(RdbError::NotRdb);
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(RdbError::NotRdb);
        }
        let version = digits.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
        if version == 0 {
            return Err(RdbError::NotRdb);
        }
        Ok(Dialect { server, version })
    }

    fn length_or_encoding(&mut self) -> Result<Length, RdbError> {
        let first = self.byte()?;
        let low = first & 0x3f;
        match (first >> 6, low) {
            (0, _) => Ok(Length::Plain(low.into())),
            (1, _) => Ok(Length::Plain(u64::from(low) << 8 | u64::from(self.byte()?))),
            (2, 0) => Ok(Length::Plain(u32::from_be_bytes(self.array()?).into())),
            (2, 1) => Ok(Length::Plain(u64::from_be_bytes(self.array()?))),
            (2, _) => Err(RdbError::Malformed { what: "length", offset: self.offset() - 1 }),
            _ => Ok(Length::Encoded(low)),
        }
    }

    fn length(&mut self) -> Result<u64, RdbError> {
        match self.length_or_encoding()? {
            Length::Plain(length) => Ok(length),
            Length::Encoded(_) => Err(RdbError::Malformed { what: "length", offset: self.offset() - 1 }),
        }
    }

    /// Reads a count and does `element` that often. A false count ends at the end of the stream, because
    /// every element takes at least one byte.
    fn repeat(&mut self, mut element: impl FnMut(&mut Self) -> Result<(), RdbError>) -> Result<(), RdbError> {
        for _ in 0..self.length()? {
            element(self)?;
        }
        Ok(())
    }

    fn skip_string(&mut self) -> Result<(), RdbError> {
        match self.length_or_encoding()? {
            Length::Plain(bytes) => self.skip(bytes),
            Length::Encoded(encoding) => self.skip_encoded(encoding),
        }
    }

    fn skip_encoded(&mut self, encoding: u8) -> Result<(), RdbError> {
        match encoding {
            0 => self.skip(1),
            1 => self.skip(2),
            2 => self.skip(4),
            3 => {
                let compressed_bytes = self.length()?;
                self.length()?;
                self.skip(compressed_bytes)
            }
            _ => Err(RdbError::Malformed { what: "string encoding", offset: self.offset() - 1 }),
        }
    }

    /// A short string that is kept; None if it is long, compressed or not text.
    fn text(&mut self) -> Result<Option<String>, RdbError> {
        match self.length_or_encoding()? {
            Length::Plain(bytes) if bytes <= MAX_TEXT_BYTES => {
                let mut text = Vec::new();
                for _ in 0..bytes {
                    text.push(self.byte()?);
                }
                Ok(String::from_utf8(text).ok())
            }
            Length::Plain(bytes) => self.skip(bytes).map(|()| None),
            Length::Encoded(encoding) => self.skip_encoded(encoding).map(|()| None),
        }
    }

    /// One length byte, or 253 to 255 for the values that have no digits.
    fn skip_text_double(&mut self) -> Result<(), RdbError> {
        match self.byte()? {
            253.. => Ok(()),
            bytes => self.skip(bytes.into()),
        }
    }

    /// A hash field with its time to live in front.
    fn skip_expiring_field(&mut self) -> Result<(), RdbError> {
        self.length()?;
        self.skip_string()?;
        self.skip_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written by Redis 6.2.5: ziplists, intset, text and binary scores, compressed text, a stream with a
    /// group, one key that expires.
    const REDIS_6: &str = "\
        524544495330303039fa0972656469732d76657205362e322e35fa0a72656469732d62697473c040fa056374696d65c23b67\
        016bfa08757365642d6d656dc2805d0e00fa0c616f662d707265616d626c65c000fe00fb0c010d046861736811110000000d\
        0000000200000166030176ff00037374720576616c756504046269676801016601760b04696e74730e020000000300000001\
        00020003000c047a7365741b1b0000001500000004000001610303312e350501620303696e66ff0003696e74c1393000036c\
        7a66c30a405002616261e04201016162fc00d8c32cbb030000000374746c0178020373657402016201610206626967736574\
        03c002c001c0000e046c6973740112120000000c000000020000f2020374776fff05046269677a020161000000000000f83f\
        0162000000000000f0fffe05fb01000f02737401100000000000000001000000000000000030300000001400030100010101\
        8161020001020100010001000104010201010100010101040102010201000102010401ff0303000101670200010000000000\
        0000020000000000000000f53f7bfda101000001010163f53f7bfda10100000100000000000000020000000000000000ff68\
        c6dfc518a07cbc";

    /// The same keys by Redis 7.0.15: listpacks, quicklist 2, stream 2, a function.
    const REDIS_7: &str = "\
        524544495330303130fa0972656469732d76657206372e302e3135fa0a72656469732d62697473c040fa056374696d65c23b\
        67016bfa08757365642d6d656dc260ee1300fa08616f662d62617365c000f5404e23216c7561206e616d653d6c69620a7265\
        6469732e72656769737465725f66756e6374696f6e282766272c2066756e6374696f6e286b6579732c617267732920726574\
        75726e203120656e64290afe00fb0c010003696e74c139300203736574020161016212046c69737401020e0e000000020001\
        018374776f04ff00037374720576616c756511047a7365741717000000040081610283312e350481620283696e6604ff0404\
        62696768010166017605046269677a020161000000000000f83f0162000000000000f0ff00036c7a66c30a405002616261e0\
        42010161620b04696e74730e0200000003000000010002000300020662696773657403c000c002c0011004686173680d0d00\
        00000200816602817602fffc00d8c32cbb030000000374746c0178fe05fb0100130273740110000000000000000100000000\
        0000000030300000001400030100010101816102000102010001000100010401020101010001010104010201020100010201\
        0401ff0303000100000003010167020002010000000000000002000000000000000003427bfda10100000101016303427bfd\
        a10100000100000000000000020000000000000000ffc3d713b3c36f8b57";

    /// The same and more by the branch that became Redis 8: stream 3, hashes whose fields expire, module
    /// values, module data outside keys.
    const REDIS_8: &str = "\
        524544495330303132fa0972656469732d7665720b3235352e3235352e323535fa0a72656469732d62697473c040fa056374\
        696d65c23c67016bfa08757365642d6d656dc2e06e1700fa08616f662d62617365c000f781b5eb2dfffadd6c010201020105\
        0568656c6c6f00f5404e23216c7561206e616d653d6c69620a72656469732e72656769737465725f66756e6374696f6e2827\
        66272c2066756e6374696f6e286b6579732c61726773292072657475726e203120656e64290afe00fb0d0100037374720576\
        616c756514037365740d0d0000000200816102816202ff1004686173680d0d0000000200816602817602ff04046269676801\
        01660176fc00d8c32cbb030000000374746c01780b04696e74730e02000000030000000100020003000702746b81b5eb2dff\
        fadd6c0102010503616263030000c03f05c30f16043078612e61e00300043965702d35000003696e74c13930140662696773\
        65740d0d0000000300000101010201ff11047a7365741717000000040081610283312e350481620283696e6604ff05046269\
        677a020161000000000000f83f0162000000000000f0ff12046c69737401020e0e000000020001018374776f04ff00036c7a\
        66c30a405002616261e04201016162fe05fb0400150273740110000000000000000100000000000000003030000000140003\
        01000101018161020001020100010001000104010201010100010101040102010201000102010401ff030300010000000301\
        0167020002010000000000000002000000000000000064447bfda10100000101016364447bfda101000064447bfda1010000\
        010000000000000002000000000000000007036d6f6481b5eb2dffffddb40102070503737472001802686500d8c32cbb0300\
        0002000162c002010161c0011902686c00d8c32cbb0300001d1d00000006008161020101f400d8c32cbb0300000981620202\
        010001ffff357c1d32a3a2108e";

    fn bytes(hex: &str) -> Vec<u8> {
        hex.as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn sealed(mut file: Vec<u8>) -> Vec<u8> {
        file.push(opcode::EOF);
        let checksum = CRC64.checksum(&file);
        file.extend_from_slice(&checksum.to_le_bytes());
        file
    }

    fn rdb(header: &str, body: &[u8]) -> Vec<u8> {
        sealed([header.as_bytes(), body].concat())
    }

    fn text(text: &str) -> Vec<u8> {
        [&[text.len() as u8], text.as_bytes()].concat()
    }

    /// One key of this type with this value.
    fn key(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind], text("key").as_slice(), value].concat()
    }

    fn keys(facts: &RdbFacts) -> Vec<(u32, u64, u64)> {
        facts.keys.iter().map(|(&db, facts)| (db, facts.keys, facts.expires)).collect()
    }

    #[test]
    fn counts_what_real_servers_wrote() {
        for (file, version, server, counts, functions) in [
            (REDIS_6, 9, "6.2.5", vec![(0, 12, 1), (5, 1, 0)], 0),
            (REDIS_7, 10, "7.0.15", vec![(0, 12, 1), (5, 1, 0)], 1),
            (REDIS_8, 12, "255.255.255", vec![(0, 13, 1), (5, 4, 0)], 1),
        ] {
            let file = bytes(file);
            let facts = read(&file[..]).unwrap();
            assert_eq!(facts.version, version);
            assert_eq!(facts.redis_version.as_deref(), Some(server));
            assert_eq!(keys(&facts), counts);
            assert_eq!(facts.functions, functions);
            assert_eq!(facts.bytes, file.len() as u64);
            assert_eq!(facts.checksum, Checksum::Verified);
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_seen() {
        for file in [REDIS_6, REDIS_7, REDIS_8].map(bytes) {
            for at in 0..file.len() {
                for flip in [1, 0x80, 0xff, file[at]] {
                    let mut damaged = file.clone();
                    damaged[at] ^= flip;
                    assert!(damaged == file || check(&damaged[..]).is_err(), "{flip} at {at}");
                }
                assert!(matches!(check(&file[..at]), Err(RdbError::Truncated { .. })), "cut at {at}");
                let mut zeroed = file.clone();
                zeroed[at..].fill(0);
                // Just the checksum gone: that is how a server writes that it has none.
                let only_checksum = at + CHECKSUM_BYTES == file.len();
                assert_eq!(check(&zeroed[..]).is_ok(), only_checksum, "zeros from {at}");
            }
        }
    }

    #[test]
    fn bytes_after_the_end_are_refused_even_zeros_that_the_checksum_does_not_see() {
        let known = bytes(REDIS_7);
        let unknown = rdb("REDIS0012", &key(99, b"?"));
        for count in 1..20 {
            for byte in [0, 1, 0xff] {
                let tail = vec![byte; count];
                let long = [known.as_slice(), &tail].concat();
                assert!(
                    matches!(check(&long[..]), Err(RdbError::TrailingBytes { offset }) if offset == known.len() as u64)
                );
                let long = [unknown.as_slice(), &tail].concat();
                assert!(check(&long[..]).is_err(), "{count} times {byte}");
            }
        }
        let aof = [known.as_slice(), b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n"].concat();
        assert!(matches!(check(&aof[..]), Err(RdbError::TrailingBytes { .. })));
    }

    #[test]
    fn walks_every_type_and_opcode() {
        let (a, b) = (text("a"), text("b"));
        let pair = [a.as_slice(), &b].concat();
        let id = [0; 16];
        let time = [0; 8];
        let pending = [&id[..], &time, &[1]].concat();
        let group = |numbers: &[u8], times: &[u8]| {
            [b"\x01", a.as_slice(), numbers, b"\x01", &pending, b"\x01", &b, times, b"\x01", &id].concat()
        };
        let one = |element: &[u8]| [b"\x01", element].concat();
        let module =
            [&[0x81, 1, 2, 3, 4, 5, 6, 7, 8, 1, 0x40, 5, 2, 7, 3, 0, 0, 0, 0, 4][..], &time, &[5], &a, &[0]]
                .concat();
        let values: Vec<(u8, Vec<u8>)> = vec![
            (0, b"\xc0\x05".to_vec()),
            (0, b"\xc1\x05\x06".to_vec()),
            (0, b"\xc2\x05\x06\x07\x08".to_vec()),
            (0, b"\xc3\x04\x41\x00zzzz".to_vec()),
            (0, b"\x40\x03abc".to_vec()),
            (0, b"\x80\x00\x00\x00\x03abc".to_vec()),
            (0, b"\x81\x00\x00\x00\x00\x00\x00\x00\x03abc".to_vec()),
            (1, [b"\x02", pair.as_slice()].concat()),
            (2, one(&a)),
            (3, [b"\x04", &a[..], b"\x031.5", &a, b"\xfd", &a, b"\xfe", &a, b"\xff"].concat()),
            (4, one(&pair)),
            (5, one(&[a.as_slice(), &time].concat())),
            (7, module.clone()),
            (9, a.clone()),
            (10, a.clone()),
            (11, a.clone()),
            (12, a.clone()),
            (13, a.clone()),
            (14, one(&a)),
            (15, [&one(&pair)[..], b"\x01\x02\x03", &group(b"\x01\x02", &time)].concat()),
            (16, a.clone()),
            (17, a.clone()),
            (18, [b"\x02\x01", &a[..], b"\x02", &b].concat()),
            (19, [&one(&pair)[..], &[1; 8], &group(b"\x01\x02\x03", &time)].concat()),
            (20, a.clone()),
            (21, [&one(&pair)[..], &[1; 8], &group(b"\x01\x02\x03", &id)].concat()),
            (22, one(&[b"\x00", pair.as_slice()].concat())),
            (23, a.clone()),
            (24, [&time[..], &one(&[b"\x00", pair.as_slice()].concat())].concat()),
            (25, [&time[..], &a].concat()),
        ];
        let mut body = [
            &[opcode::AUX][..],
            &text("redis-bits"),
            b"\xc0\x40",
            &[opcode::FUNCTION2],
            &a,
            &[opcode::SELECT_DB, 3, opcode::RESIZE_DB, 40, 40],
            &[opcode::SLOT_INFO, 1, 2, 3],
            &[opcode::MODULE_AUX],
            &module,
        ]
        .concat();
        for (kind, value) in &values {
            body.extend_from_slice(&key(*kind, value));
        }
        body.extend_from_slice(&[opcode::EXPIRE_TIME, 1, 2, 3, 4, opcode::IDLE, 0x40, 1]);
        body.extend_from_slice(&key(0, &a));
        body.push(opcode::EXPIRE_TIME_MS);
        body.extend_from_slice(&time);
        body.extend_from_slice(&[opcode::FREQ, 7]);
        body.extend_from_slice(&key(0, &a));
        let facts = read(&rdb("REDIS0012", &body)[..]).unwrap();
        assert_eq!(keys(&facts), [(3, values.len() as u64 + 2, 2)]);
        assert_eq!(facts.functions, 1);
    }

    #[test]
    fn valkey_files_have_their_own_header_and_hash_type() {
        let hash = [b"\x01", &text("f")[..], &text("v"), &[0xff; 8]].concat();
        let body = [&[opcode::AUX][..], &text("valkey-ver"), &text("9.0.1"), &key(22, &hash)].concat();
        let facts = read(&rdb("VALKEY080", &body)[..]).unwrap();
        assert_eq!(facts.version, 80);
        assert_eq!(facts.redis_version.as_deref(), Some("valkey 9.0.1"));
        assert_eq!(keys(&facts), [(0, 1, 0)]);
        let redis_only = rdb("VALKEY080", &key(25, &hash));
        assert!(matches!(read(&redis_only[..]), Err(RdbError::Unknown { opcode: 25, offset: 9 })));
    }

    #[test]
    fn files_before_version_5_end_with_their_last_opcode() {
        let mut file = [b"REDIS0003", &key(0, b"\x01v")[..]].concat();
        file.push(opcode::EOF);
        let facts = read(&file[..]).unwrap();
        assert_eq!((keys(&facts), facts.checksum), (vec![(0, 1, 0)], Checksum::Disabled));
        file.push(0);
        assert!(matches!(read(&file[..]), Err(RdbError::TrailingBytes { .. })));
    }

    #[test]
    fn a_file_without_checksum_is_walked_to_its_end() {
        let mut file = rdb("REDIS0010", &key(0, b"\x01v"));
        let end = file.len() - CHECKSUM_BYTES;
        file[end..].fill(0);
        assert_eq!(read(&file[..]).unwrap().checksum, Checksum::Disabled);
        for cut in 0..file.len() {
            assert!(check(&file[..cut]).is_err(), "cut at {cut}");
        }
        file.push(0);
        assert!(matches!(check(&file[..]), Err(RdbError::TrailingBytes { .. })));
    }

    #[test]
    fn an_unknown_type_costs_the_counts_but_not_the_verdict() {
        let mut file = rdb("REDIS0013", &key(99, b"whatever"));
        match check(&file[..]).unwrap() {
            Checked::Opaque { version, bytes, why } => {
                assert_eq!((version, bytes), (13, file.len() as u64));
                assert!(matches!(why, RdbError::Unknown { opcode: 99, offset: 9 }));
            }
            Checked::Counted(facts) => panic!("{facts:?}"),
        }
        assert!(matches!(read(&file[..]), Err(RdbError::Unknown { .. })));
        for at in 9..file.len() {
            file[at] ^= 0x10;
            assert!(check(&file[..]).is_err(), "flip at {at}");
            file[at] ^= 0x10;
            assert!(check(&file[..at]).is_err(), "cut at {at}");
        }
        let end = file.len() - CHECKSUM_BYTES;
        file[end..].fill(0);
        assert!(matches!(check(&file[..]), Err(RdbError::Unknown { .. })));
    }

    #[test]
    fn a_stream_that_is_no_rdb_file_is_refused() {
        for stream in ["REDIS00x0 ", "REDIS0000 ", "redis0009 ", "*3\r\n$3\r\nSET\r\n"] {
            assert!(matches!(check(stream.as_bytes()), Err(RdbError::NotRdb)), "{stream}");
        }
        for stream in ["", "REDIS", "REDIS001"] {
            assert!(matches!(check(stream.as_bytes()), Err(RdbError::Truncated { .. })), "{stream}");
        }
    }

    #[test]
    fn a_claimed_length_takes_no_memory() {
        let length = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let mut claims = vec![key(0, &length), key(0, &[&[0xc3][..], &length, &length].concat())];
        claims.extend((1..=25).filter(|kind| ![6, 8].contains(kind)).map(|kind| key(kind, &length)));
        claims.push([&[opcode::AUX][..], &length].concat());
        for claim in claims {
            let file = [b"REDIS0012", &claim[..]].concat();
            let end = check(&file[..]);
            assert!(
                matches!(end, Err(RdbError::Truncated { .. } | RdbError::Checksum { .. })),
                "{claim:?} {end:?}"
            );
        }
    }

    #[test]
    fn a_long_value_is_passed_over() {
        let value_bytes: u32 = 8 << 20;
        let head = [&key(0, &[0x80])[..], &value_bytes.to_be_bytes()].concat();
        let file = rdb("REDIS0010", &[head, vec![7; value_bytes as usize]].concat());
        let mut source = Source::new(&file[..]);
        let dialect = source.header().unwrap();
        let mut facts = read(&file[..]).unwrap();
        walk(&mut source, dialect, &mut facts).unwrap();
        assert_eq!(source.buffer.len(), BUFFER_BYTES);
    }

    #[test]
    fn too_many_databases_are_refused() {
        let mut body = Vec::new();
        for db in 0..=MAX_DATABASES as u32 {
            body.extend_from_slice(&[opcode::SELECT_DB, 0x80]);
            body.extend_from_slice(&db.to_be_bytes());
            body.extend_from_slice(&key(0, b"\x00"));
        }
        let file = rdb("REDIS0010", &body);
        assert!(matches!(read(&file[..]), Err(RdbError::Malformed { .. })));
    }

    /// Gives one byte at a time, then an error if one is set.
    struct Slow<'a>(&'a [u8], Option<io::ErrorKind>);

    impl Read for Slow<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            if let (true, Some(kind)) = (self.0.is_empty(), self.1) {
                return Err(kind.into());
            }
            let limit = into.len().min(1);
            self.0.read(&mut into[..limit])
        }
    }

    #[test]
    fn a_read_error_is_not_taken_for_the_end() {
        let file = bytes(REDIS_7);
        let end = check(Slow(&file[..100], Some(io::ErrorKind::TimedOut)));
        assert!(matches!(end, Err(RdbError::Read { offset: 100, .. })), "{end:?}");
    }

    proptest! {
        #[test]
        fn any_input_ends_without_panic(body in prop::collection::vec(any::<u8>(), 0..300), seal: bool) {
            let file = [b"REDIS0012", &body[..]].concat();
            let file = if seal { sealed(file) } else { file };
            let checked = check(&file[..]);
            // An EOF opcode inside makes the rest trailing bytes.
            let early_end = matches!(checked, Err(RdbError::TrailingBytes { .. }));
            prop_assert!(!seal || checked.is_ok() || early_end);
        }

        #[test]
        fn pieces_of_any_size_give_the_same_facts(piece in 1usize..40) {
            struct Pieces<'a>(&'a [u8], usize);
            impl Read for Pieces<'_> {
                fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                    let limit = into.len().min(self.1);
                    self.0.read(&mut into[..limit])
                }
            }
            let file = bytes(REDIS_8);
            prop_assert_eq!(read(Pieces(&file, piece)).unwrap(), read(&file[..]).unwrap());
        }
    }
}
