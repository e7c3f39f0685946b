//! Reads a plain-text PostgreSQL dump as it passes and says what is in it and whether it is whole.
//!
//! The one thing that could go wrong is to trust the text too early: a dump cut between two statements
//! loads without any error, and function bodies, strings and rows may hold text that looks like COPY, like
//! the end of a block or like the trailer. So the scanner splits the stream as psql does, counts only what
//! psql would execute, and calls a dump whole only after the trailer that pg_dump writes last.

use std::collections::{BTreeMap, BTreeSet};

use memchr::{memchr, memchr2};

use super::sqltext;

/// Longest COPY statement taken: 1600 columns of doubled 63-byte names fit several times.
const MAX_COPY_STATEMENT_BYTES: usize = 1 << 20;
/// Longest table name taken, schema and quotes included; two doubled 63-byte names need 257.
const MAX_TABLE_NAME_BYTES: usize = 1024;
/// What is kept of any other statement: enough to recognise the few that matter.
const STATEMENT_HEAD_BYTES: usize = 128;
/// What is kept of a comment or a psql command.
const LINE_HEAD_BYTES: usize = 1024;
/// Longest `$tag$` taken. pg_dump makes the tag longer for as long as the body contains it.
const MAX_DOLLAR_TAG_BYTES: usize = 64 * 1024;
/// What is kept of a word: longer than any keyword that matters, so that a cut word equals none.
const WORD_HEAD_BYTES: usize = 16;

/// Which program wrote the dump: the two differ in their first and last comment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpKind {
    /// `pg_dump`: one database.
    Database,
    /// `pg_dumpall`: roles and tablespaces, perhaps with all databases.
    Cluster,
}

impl DumpKind {
    fn header(self) -> &'static [u8] {
        match self {
            DumpKind::Database => b"-- PostgreSQL database dump",
            DumpKind::Cluster => b"-- PostgreSQL database cluster dump",
        }
    }

    fn trailer(self) -> &'static [u8] {
        match self {
            DumpKind::Database => b"-- PostgreSQL database dump complete",
            DumpKind::Cluster => b"-- PostgreSQL database cluster dump complete",
        }
    }
}

/// What a complete dump holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpFacts {
    /// Rows per table, from the COPY blocks; the name exactly as the dump writes it (`public.users`,
    /// `"Odd Schema"."t.x"`), bytes that are not UTF-8 as `\xNN`. Empty tables are there with 0. A table
    /// whose rows come in several blocks (partitions loaded through their root, several databases in one
    /// cluster dump) has their sum.
    pub rows: BTreeMap<String, u64>,
    /// Large objects, each once.
    pub large_objects: u64,
    /// Length of the dump.
    pub bytes: u64,
    /// Version of the server that it comes from, as the dump says it.
    pub server: Option<String>,
    /// Extensions that it creates.
    pub extensions: BTreeSet<String>,
    /// Tablespaces that it puts tables into.
    pub tablespaces: BTreeSet<String>,
    /// Whether it keeps psql from taking commands out of it (`\\restrict`).
    pub restricted: bool,
}

/// Where a dump that stopped too early stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutAt {
    /// In the rows of this table.
    Rows { table: String },
    /// In a quoted string or a dollar-quoted body.
    Text,
    /// In a quoted identifier.
    Identifier,
    /// In a `/* */` comment.
    Comment,
    /// In a statement, before its semicolon.
    Statement,
    /// After a whole statement, but before the trailer.
    Trailer,
    /// After the trailer, but before the `\unrestrict` that answers `\restrict`.
    Unrestrict,
}

impl std::fmt::Display for CutAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CutAt::Rows { table } => write!(f, "in the rows of {table}"),
            CutAt::Text => f.write_str("inside a string"),
            CutAt::Identifier => f.write_str("inside a quoted identifier"),
            CutAt::Comment => f.write_str("inside a comment"),
            CutAt::Statement => f.write_str("inside a statement"),
            CutAt::Trailer => f.write_str("before the comment that closes a dump"),
            CutAt::Unrestrict => f.write_str("before its \\unrestrict line"),
        }
    }
}

/// Why a stream is not a whole dump.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    #[error("the dump is empty")]
    Empty,
    #[error("the stream does not begin as a {kind:?} dump does")]
    NoHeader { kind: DumpKind },
    #[error("the dump is cut off after {bytes} bytes, {at}")]
    Truncated { bytes: u64, at: CutAt },
    #[error("the dump goes on after its closing comment, at byte {offset}")]
    AfterTrailer { offset: u64 },
    #[error("COPY at byte {offset} is not one that pg_dump writes")]
    UnknownCopy { offset: u64 },
    #[error("a name, a COPY statement or a dollar quote before byte {offset} is absurdly long")]
    TooLong { offset: u64 },
}

/// What the next byte belongs to. Two-byte marks have a state for "first byte seen", because a chunk may
/// end between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Normal,
    /// After `-`; `line_start` if it may begin a comment line of its own.
    Dash {
        line_start: bool,
    },
    /// After `/`.
    Slash,
    LineComment {
        line_start: bool,
    },
    /// `last` is the previous byte if it may be half of `/*` or `*/`, else 0.
    BlockComment {
        depth: u32,
        last: u8,
    },
    Str {
        escapes: bool,
    },
    /// After a backslash in a string that has escapes.
    StrEscape,
    /// After a quote in a string: the end, or half of a doubled quote.
    StrQuote {
        escapes: bool,
    },
    Ident,
    /// After `$`, reading what may be an opening tag.
    DollarTag,
    /// In a dollar-quoted body; that many bytes of the closing tag matched so far.
    Dollar {
        matched: usize,
    },
    /// In a psql command, which ends with its line.
    Meta,
    /// After the semicolon of COPY … FROM stdin, before its rows.
    CopyTail,
    CopyRows,
    Failed,
}

/// How far the current statement looks like `CREATE [OR REPLACE] {FUNCTION | PROCEDURE}`: only there do
/// BEGIN ATOMIC and END enclose semicolons that do not end the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Routine {
    Start,
    Create,
    CreateOr,
    CreateOrReplace,
    Yes,
    /// The last word was BEGIN.
    YesBegin,
    No,
}

/// Scanner of one dump. Feed it the whole stream in pieces of any size, then [`DumpScanner::finish`] it; a
/// scanner that is not finished has proven nothing.
#[derive(Debug)]
pub struct DumpScanner {
    kind: DumpKind,
    state: State,
    offset: u64,
    failure: Option<DumpError>,
    rows: BTreeMap<String, u64>,
    lo_opened: u64,
    lo_created: u64,
    server: Option<String>,
    extensions: BTreeSet<String>,
    tablespaces: BTreeSet<String>,
    restricted: bool,

    /// Begin of the current statement, without comments; empty between statements.
    statement: Vec<u8>,
    statement_offset: u64,
    is_copy: bool,
    routine: Routine,
    word: Vec<u8>,
    parens: u32,
    atomic: u32,
    /// The previous byte ended a line.
    line_start: bool,
    standard_strings: bool,

    /// Begin of the current comment or psql command.
    line: Vec<u8>,
    /// The dollar quote's tag, both dollar signs included.
    tag: Vec<u8>,
    table: String,
    table_rows: u64,
    /// Begin of a row whose end was not in the chunk, and its whole length.
    row_head: [u8; 4],
    row_bytes: u64,

    header_seen: bool,
    trailer_seen: bool,
    trailer_closed: bool,
    restrict_key: Option<Vec<u8>>,
}

impl DumpScanner {
    pub fn new(kind: DumpKind) -> Self {
        DumpScanner {
            kind,
            state: State::Normal,
            offset: 0,
            failure: None,
            rows: BTreeMap::new(),
            lo_opened: 0,
            lo_created: 0,
            server: None,
            extensions: BTreeSet::new(),
            tablespaces: BTreeSet::new(),
            restricted: false,
            statement: Vec::new(),
            statement_offset: 0,
            is_copy: false,
            routine: Routine::Start,
            word: Vec::new(),
            parens: 0,
            atomic: 0,
            line_start: true,
            standard_strings: true,
            line: Vec::new(),
            tag: Vec::new(),
            table: String::new(),
            table_rows: 0,
            row_head: [0; 4],
            row_bytes: 0,
            header_seen: false,
            trailer_seen: false,
            trailer_closed: false,
            restrict_key: None,
        }
    }

    /// Takes the next piece of the stream. Faults are kept for [`DumpScanner::finish`].
    pub fn feed(&mut self, bytes: &[u8]) {
        let end = self.offset + bytes.len() as u64;
        let mut rest = bytes;
        while !rest.is_empty() {
            self.offset = end - rest.len() as u64;
            rest = self.step(rest);
        }
        self.offset = end;
    }

    /// The facts of a whole dump. Fails when the stream is not a dump of the announced kind, when it ends
    /// before pg_dump's last line, and when anything but comments follows its trailer.
    pub fn finish(mut self) -> Result<DumpFacts, DumpError> {
        // The last line may lack its newline; what it says still counts.
        match self.state {
            State::LineComment { line_start } => self.end_comment(line_start),
            State::Meta if self.line.starts_with(b"\\unrestrict ") => self.end_meta(),
            _ => {}
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.offset == 0 {
            return Err(DumpError::Empty);
        }
        if !self.header_seen {
            return Err(DumpError::NoHeader { kind: self.kind });
        }
        let cut = match self.state {
            State::CopyTail | State::CopyRows => Some(CutAt::Rows { table: self.table }),
            State::Str { .. } | State::StrEscape | State::Dollar { .. } => Some(CutAt::Text),
            State::Ident => Some(CutAt::Identifier),
            State::BlockComment { .. } => Some(CutAt::Comment),
            State::Dash { .. } | State::Slash | State::DollarTag | State::StrQuote { .. } => {
                Some(CutAt::Statement)
            }
            State::Meta if !self.line.starts_with(b"\\unrestrict ") => {
                Some(if self.trailer_seen { CutAt::Unrestrict } else { CutAt::Statement })
            }
            State::Normal | State::LineComment { .. } | State::Meta | State::Failed => {
                if !self.statement.is_empty() {
                    Some(CutAt::Statement)
                } else if !self.trailer_closed {
                    Some(CutAt::Trailer)
                } else if self.restrict_key.is_some() {
                    Some(CutAt::Unrestrict)
                } else {
                    None
                }
            }
        };
        match cut {
            Some(at) => Err(DumpError::Truncated { bytes: self.offset, at }),
            None => Ok(DumpFacts {
                rows: self.rows,
                // Servers 12 to 17 write one lo_create in the schema part and one lo_open in the data part
                // per object; a dump of only one part has only one of them.
                large_objects: self.lo_opened.max(self.lo_created),
                bytes: self.offset,
                server: self.server,
                extensions: self.extensions,
                tablespaces: self.tablespaces,
                restricted: self.restricted,
            }),
        }
    }

    /// Handles the begin of `bytes` and returns what is left.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match self.state {
            State::Normal => self.normal(bytes),
            State::Dash { line_start } => {
                if bytes[0] == b'-' {
                    self.line.clear();
                    self.line.extend_from_slice(b"--");
                    self.state = State::LineComment { line_start };
                    &bytes[1..]
                } else {
                    self.state = State::Normal;
                    self.keep(b'-', 0);
                    bytes
                }
            }
            State::Slash => {
                if bytes[0] == b'*' {
                    self.state = State::BlockComment { depth: 1, last: 0 };
                    &bytes[1..]
                } else {
                    self.state = State::Normal;
                    self.keep(b'/', 0);
                    bytes
                }
            }
            State::LineComment { line_start } => match self.line_end(bytes) {
                Some(rest) => {
                    self.state = State::Normal;
                    self.line_start = true;
                    self.end_comment(line_start);
                    rest
                }
                None => &[],
            },
            State::Meta => match self.line_end(bytes) {
                Some(rest) => {
                    self.state = State::Normal;
                    self.line_start = true;
                    self.end_meta();
                    rest
                }
                None => &[],
            },
            State::BlockComment { depth, last } => self.block_comment(bytes, depth, last),
            State::Str { escapes } => {
                let found = if escapes { memchr2(b'\'', b'\\', bytes) } else { memchr(b'\'', bytes) };
                let Some(at) = found else {
                    self.keep_all(bytes);
                    return &[];
                };
                self.keep_all(&bytes[..=at]);
                self.state = if bytes[at] == b'\\' { State::StrEscape } else { State::StrQuote { escapes } };
                &bytes[at + 1..]
            }
            State::StrEscape => {
                self.keep_all(&bytes[..1]);
                self.state = State::Str { escapes: true };
                &bytes[1..]
            }
            State::StrQuote { escapes } => {
                if bytes[0] == b'\'' {
                    self.keep_all(&bytes[..1]);
                    self.state = State::Str { escapes };
                    &bytes[1..]
                } else {
                    self.state = State::Normal;
                    bytes
                }
            }
            State::Ident => match memchr(b'"', bytes) {
                Some(at) => {
                    // A doubled quote ends one identifier and begins the next, which is the same here.
                    self.keep_all(&bytes[..=at]);
                    self.state = State::Normal;
                    &bytes[at + 1..]
                }
                None => {
                    self.keep_all(bytes);
                    &[]
                }
            },
            State::DollarTag => self.dollar_tag(bytes),
            State::Dollar { matched } => self.dollar_body(bytes, matched),
            State::CopyTail => self.copy_tail(bytes),
            State::CopyRows => self.copy_rows(bytes),
            State::Failed => &[],
        }
    }

    fn normal<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            let rest = &bytes[at + 1..];
            let was_line_start = std::mem::replace(&mut self.line_start, byte == b'\n');
            if is_word_byte(byte) || (byte == b'$' && !self.word.is_empty()) {
                if self.word.len() < WORD_HEAD_BYTES {
                    self.word.push(byte);
                }
                if !self.keep(byte, at) {
                    return &[];
                }
                continue;
            }
            let escapes = !self.standard_strings || self.word.eq_ignore_ascii_case(b"E");
            self.end_word();
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' | b'\x0b' | b'\x0c' => {
                    if !self.statement.is_empty() && !self.keep(byte, at) {
                        return &[];
                    }
                    continue;
                }
                b'-' => {
                    self.state = State::Dash { line_start: was_line_start && self.statement.is_empty() };
                    return rest;
                }
                b'/' => {
                    self.state = State::Slash;
                    return rest;
                }
                // As in psql, a command may stand anywhere outside quotes and takes the rest of its line.
                b'\\' => {
                    self.line.clear();
                    self.line.push(byte);
                    self.state = State::Meta;
                    return rest;
                }
                b'$' => {
                    self.tag.clear();
                    self.tag.push(byte);
                    self.state = State::DollarTag;
                    return rest;
                }
                _ => {}
            }
            if !self.keep(byte, at) {
                return &[];
            }
            match byte {
                b'\'' => {
                    self.state = State::Str { escapes };
                    return rest;
                }
                b'"' => {
                    self.state = State::Ident;
                    return rest;
                }
                b'(' => self.parens = self.parens.saturating_add(1),
                b')' => self.parens = self.parens.saturating_sub(1),
                b';' if self.parens == 0 && self.atomic == 0 => {
                    self.end_statement();
                    if self.state != State::Normal {
                        return rest;
                    }
                }
                _ => {}
            }
        }
        &[]
    }

    /// Adds a byte to the statement, beginning one if none is open. False if that was a fault.
    fn keep(&mut self, byte: u8, at: usize) -> bool {
        if self.statement.is_empty() {
            self.statement_offset = self.offset + at as u64;
            if self.trailer_seen {
                self.fail(DumpError::AfterTrailer { offset: self.statement_offset });
                return false;
            }
            if !self.header_seen {
                self.fail(DumpError::NoHeader { kind: self.kind });
                return false;
            }
        }
        if self.statement.len() < STATEMENT_HEAD_BYTES || self.is_copy {
            self.statement.push(byte);
            if self.statement.len() > MAX_COPY_STATEMENT_BYTES {
                self.fail(DumpError::TooLong { offset: self.offset });
                return false;
            }
        }
        true
    }

    /// Adds text inside quotes to the open statement.
    fn keep_all(&mut self, bytes: &[u8]) {
        let limit = if self.is_copy { MAX_COPY_STATEMENT_BYTES + 1 } else { STATEMENT_HEAD_BYTES };
        let room = limit.saturating_sub(self.statement.len());
        self.statement.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn end_word(&mut self) {
        if self.word.is_empty() {
            return;
        }
        let is = |keyword: &[u8]| self.word.eq_ignore_ascii_case(keyword);
        if self.routine == Routine::Start && is(b"COPY") {
            self.is_copy = true;
        }
        self.routine = match self.routine {
            Routine::Start if is(b"CREATE") => Routine::Create,
            Routine::Create if is(b"OR") => Routine::CreateOr,
            Routine::CreateOr if is(b"REPLACE") => Routine::CreateOrReplace,
            Routine::Create | Routine::CreateOrReplace if is(b"FUNCTION") || is(b"PROCEDURE") => Routine::Yes,
            Routine::YesBegin if is(b"ATOMIC") => {
                self.atomic = self.atomic.saturating_add(1);
                Routine::Yes
            }
            Routine::Yes | Routine::YesBegin => {
                // CASE and END are reserved words: as names they would stand in quotes.
                if self.atomic > 0 && is(b"CASE") {
                    self.atomic = self.atomic.saturating_add(1);
                } else if self.atomic > 0 && is(b"END") {
                    self.atomic -= 1;
                }
                if is(b"BEGIN") { Routine::YesBegin } else { Routine::Yes }
            }
            _ => Routine::No,
        };
        self.word.clear();
    }

    fn end_statement(&mut self) {
        if self.is_copy {
            match copy_target(&self.statement) {
                CopyTarget::Stdin(name) if name.len() > MAX_TABLE_NAME_BYTES => {
                    self.fail(DumpError::TooLong { offset: self.offset });
                }
                CopyTarget::Stdin(name) => {
                    self.table = readable(name);
                    self.table_rows = 0;
                    self.row_bytes = 0;
                    self.state = State::CopyTail;
                }
                CopyTarget::Elsewhere => {}
                CopyTarget::Unknown => self.fail(DumpError::UnknownCopy { offset: self.statement_offset }),
            }
        } else if self.statement.starts_with(b"SELECT pg_catalog.lo_open(") {
            self.lo_opened += 1;
        } else if self.statement.starts_with(b"SELECT pg_catalog.lo_create(") {
            self.lo_created += 1;
        } else if let Some(rest) = self.statement.strip_prefix(b"CREATE EXTENSION IF NOT EXISTS ") {
            self.extensions.extend(first_name(rest));
        } else if let Some(rest) = self.statement.strip_prefix(b"SET default_tablespace = ") {
            // The default one is the empty name.
            self.tablespaces.extend(first_name(rest).filter(|n| !n.is_empty()));
        } else if self.statement == b"SET standard_conforming_strings = off;" {
            self.standard_strings = false;
        } else if self.statement == b"SET standard_conforming_strings = on;" {
            self.standard_strings = true;
        }
        self.statement.clear();
        self.is_copy = false;
        self.routine = Routine::Start;
        self.parens = 0;
        self.atomic = 0;
    }

    /// Adds to the line up to its newline; the bytes after it, or None if there is no newline yet.
    fn line_end<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = memchr(b'\n', bytes);
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let room = LINE_HEAD_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        end.map(|end| &bytes[end + 1..])
    }

    /// `line_start`: the comment has its line for itself and stands between statements.
    fn end_comment(&mut self, line_start: bool) {
        if !line_start {
            return;
        }
        let line = self.line.trim_ascii_end();
        if line == self.kind.header() {
            self.header_seen = true;
        } else if line == self.kind.trailer() {
            self.trailer_seen = true;
        } else if line == b"--" && self.trailer_seen {
            // The rule below the trailer: with it, not one byte of a dump can be missing unseen.
            self.trailer_closed = true;
        } else if self.server.is_none()
            && let Some(version) = line.strip_prefix(b"-- Dumped from database version ")
        {
            self.server = Some(readable(version));
        }
    }

    fn end_meta(&mut self) {
        let line = self.line.trim_ascii_end();
        if let Some(key) = line.strip_prefix(b"\\unrestrict ") {
            if self.restrict_key.as_deref() == Some(key) {
                self.restrict_key = None;
            }
        } else if self.trailer_seen {
            self.fail(DumpError::AfterTrailer { offset: self.offset });
        } else if !self.header_seen {
            self.fail(DumpError::NoHeader { kind: self.kind });
        } else if let Some(key) = line.strip_prefix(b"\\restrict ") {
            self.restrict_key = Some(key.to_vec());
            self.restricted = true;
        }
    }

    fn block_comment<'a>(&mut self, bytes: &'a [u8], depth: u32, last: u8) -> &'a [u8] {
        let (mut depth, mut last, mut rest) = (depth, last, bytes);
        while let Some(&byte) = rest.first() {
            match (last, byte) {
                (b'/', b'*') => {
                    depth = depth.saturating_add(1);
                    last = 0;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    last = 0;
                    if depth == 0 {
                        self.state = State::Normal;
                        return &rest[1..];
                    }
                }
                (_, b'/' | b'*') => last = byte,
                _ => {
                    last = 0;
                    let skip = memchr2(b'/', b'*', rest).unwrap_or(rest.len());
                    rest = &rest[skip..];
                    continue;
                }
            }
            rest = &rest[1..];
        }
        self.state = State::BlockComment { depth, last };
        rest
    }

    fn dollar_tag<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, &byte) in bytes.iter().enumerate() {
            if byte == b'$' {
                self.tag.push(byte);
                if !self.keep(byte, at) {
                    return &[];
                }
                self.state = State::Dollar { matched: 0 };
                return &bytes[at + 1..];
            }
            if !is_word_byte(byte) || (self.tag.len() == 1 && byte.is_ascii_digit()) {
                // A parameter such as $1, or a dollar sign that quotes nothing.
                self.state = State::Normal;
                self.keep(b'$', at);
                return if self.failure.is_some() { &[] } else { &bytes[at..] };
            }
            self.tag.push(byte);
            if self.tag.len() > MAX_DOLLAR_TAG_BYTES {
                self.fail(DumpError::TooLong { offset: self.offset });
                return &[];
            }
        }
        &[]
    }

    fn dollar_body<'a>(&mut self, bytes: &'a [u8], matched: usize) -> &'a [u8] {
        let (mut matched, mut rest) = (matched, bytes);
        while let Some(&byte) = rest.first() {
            if matched == 0 {
                let Some(at) = memchr(b'$', rest) else {
                    rest = &[];
                    break;
                };
                rest = &rest[at + 1..];
                matched = 1;
                continue;
            }
            rest = &rest[1..];
            if self.tag.get(matched) == Some(&byte) {
                matched += 1;
                if matched == self.tag.len() {
                    self.state = State::Normal;
                    return rest;
                }
            } else {
                // Only the first and the last byte of a tag are dollar signs: no other overlap exists.
                matched = usize::from(byte == b'$');
            }
        }
        self.state = State::Dollar { matched };
        rest
    }

    fn copy_tail<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match bytes[0] {
            b'\n' => self.state = State::CopyRows,
            b'\r' => {}
            _ => self.fail(DumpError::UnknownCopy { offset: self.offset }),
        }
        &bytes[1..]
    }

    fn copy_rows<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let mut rest = bytes;
        let mut rows = 0;
        while let Some(end) = memchr(b'\n', rest) {
            let row = &rest[..end];
            rest = &rest[end + 1..];
            let is_end = if self.row_bytes == 0 {
                is_end_of_rows(row)
            } else {
                self.begin_row(row);
                let known = self.row_head.get(..self.row_bytes as usize);
                self.row_bytes = 0;
                known.is_some_and(is_end_of_rows)
            };
            if is_end {
                let table = std::mem::take(&mut self.table);
                *self.rows.entry(table).or_insert(0) += self.table_rows + rows;
                self.state = State::Normal;
                self.line_start = true;
                return rest;
            }
            rows += 1;
        }
        self.table_rows += rows;
        self.begin_row(rest);
        &[]
    }

    /// Remembers a piece of a row that the chunk does not end.
    fn begin_row(&mut self, piece: &[u8]) {
        for (at, &byte) in piece.iter().take(self.row_head.len()).enumerate() {
            if let Some(slot) = self.row_head.get_mut(self.row_bytes as usize + at) {
                *slot = byte;
            }
        }
        self.row_bytes += piece.len() as u64;
    }

    fn fail(&mut self, failure: DumpError) {
        self.failure.get_or_insert(failure);
        self.state = State::Failed;
    }
}

/// A row that holds `\.` is written as `\\.`, so this line is never data. psql takes a carriage return too.
fn is_end_of_rows(row: &[u8]) -> bool {
    row == b"\\." || row == b"\\.\r"
}

/// Letters, digits, underscore and every byte of a multi-byte character, as in PostgreSQL's own lexer.
fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

#[derive(Debug, PartialEq, Eq)]
enum CopyTarget<'a> {
    /// Rows of this table follow.
    Stdin(&'a [u8]),
    /// No rows follow.
    Elsewhere,
    /// Rows may follow, but not in the form that pg_dump writes.
    Unknown,
}

/// Reads a whole COPY statement: `COPY name [(columns)] FROM stdin;`.
fn copy_target(statement: &[u8]) -> CopyTarget<'_> {
    let Some(rest) = statement.get(4..).map(<[u8]>::trim_ascii_start) else {
        return CopyTarget::Unknown;
    };
    let name_bytes = outside_quotes(rest, |byte| byte == b'(' || byte.is_ascii_whitespace());
    let (name, rest) = rest.split_at(name_bytes);
    let mut rest = rest.trim_ascii_start();
    if name.is_empty() {
        // COPY (query) TO …
        return CopyTarget::Elsewhere;
    }
    if rest.first() == Some(&b'(') {
        let columns_bytes = outside_quotes(rest, |byte| byte == b')');
        let Some(after) = rest.get(columns_bytes + 1..) else {
            return CopyTarget::Unknown;
        };
        rest = after;
    }
    let rest = rest.strip_suffix(b";").unwrap_or(rest);
    let mut words = rest.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (from, stdin, more) = (words.next(), words.next(), words.next());
    let is =
        |word: Option<&[u8]>, keyword: &[u8]| word.is_some_and(|word| word.eq_ignore_ascii_case(keyword));
    if !is(from, b"FROM") || !is(stdin, b"STDIN") {
        CopyTarget::Elsewhere
    } else if more.is_some() {
        CopyTarget::Unknown
    } else {
        CopyTarget::Stdin(name)
    }
}

/// Position of the first byte outside double quotes that `wanted` accepts, or the length.
fn outside_quotes(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    let mut quoted = false;
    bytes
        .iter()
        .position(|&byte| {
            quoted ^= byte == b'"';
            !quoted && wanted(byte)
        })
        .unwrap_or(bytes.len())
}

/// The name or text that a statement goes on with.
fn first_name(rest: &[u8]) -> Option<String> {
    let text = readable(rest);
    let (_, word) = sqltext::words(&text).into_iter().next()?;
    word.value().map(str::to_owned)
}

/// The name as text. Bytes outside UTF-8 (dumps of LATIN1 databases) become `\xNN`, so that two names
/// never become one.
fn readable(name: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing into a String cannot fail.
            let _ = write!(text, "\\x{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &str = "--\n-- PostgreSQL database dump\n--\n\n\\restrict k3y\n\n\
        -- Dumped from database version 15.18\n\nSET standard_conforming_strings = on;\n";
    const TRAILER: &str = "--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict k3y\n\n";

    fn scan_in(kind: DumpKind, dump: &[u8], chunk_bytes: usize) -> Result<DumpFacts, DumpError> {
        let mut scanner = DumpScanner::new(kind);
        for chunk in dump.chunks(chunk_bytes) {
            scanner.feed(chunk);
        }
        scanner.finish()
    }

    fn scan(dump: &str) -> Result<DumpFacts, DumpError> {
        scan_in(DumpKind::Database, dump.as_bytes(), usize::MAX)
    }

    fn whole(body: &str) -> String {
        format!("{HEADER}{body}\n{TRAILER}")
    }

    fn rows(body: &str) -> Vec<(String, u64)> {
        scan(&whole(body)).unwrap().rows.into_iter().collect()
    }

    fn counts(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(name, rows)| (name.to_string(), *rows)).collect()
    }

    fn cut(body: &str) -> CutAt {
        match scan(&format!("{HEADER}{body}")) {
            Err(DumpError::Truncated { at, .. }) => at,
            other => panic!("{other:?}"),
        }
    }

    /// Everything that pg_dump 15 writes for a database made to be difficult, shortened.
    const ODD: &str = r#"
CREATE FUNCTION public.atomic(begin integer) RETURNS integer
    LANGUAGE sql
    BEGIN ATOMIC
 SELECT begin AS begin;
 SELECT CASE WHEN (begin = 1) THEN CASE WHEN true THEN 1 END ELSE 2 END AS "case";
 SELECT lo_open((5)::oid, 131072) AS lo_open;
END;

CREATE FUNCTION public.begin() RETURNS integer
    LANGUAGE sql
    RETURN 1;

CREATE FUNCTION public.body() RETURNS void
    LANGUAGE plpgsql
    AS $_X$
BEGIN
-- PostgreSQL database dump complete
  EXECUTE $$
COPY public.fake (a) FROM stdin;
1
\.
$$;
  EXECUTE $_$ $_X '; /* $_$;
END $_X$;

CREATE FUNCTION public.quoted() RETURNS text
    LANGUAGE sql
    AS $_$SELECT $1 || 'COPY public.fake FROM stdin;
1
\.
'$_$;

CREATE VIEW public.v AS
 SELECT (E'a\\''b;'::text || '$$'::text) AS x,
    '
COPY public.fake FROM stdin;'::text AS y,
    '-- no'::text AS z,
    '/* no'::text AS "w;
COPY public.fake FROM stdin;";

/* a comment /* in a comment */
COPY public.fake FROM stdin;
**/
CREATE RULE r1 AS
    ON INSERT TO public.empty_t DO ( INSERT INTO public.inh (a)
  VALUES (7);
 UPDATE public.inh SET a = 8;
);

SELECT 1-1 AS a, 4/2 AS b, 1<-/ 2 AS c, a$b$c AS d;

COMMENT ON TABLE public.users IS 'multi
-- PostgreSQL database dump complete
COPY x FROM stdin;';

SELECT pg_catalog.lo_create('16564');
ALTER LARGE OBJECT 16564 OWNER TO postgres;
SELECT pg_catalog.lo_create('16565');
COPY "Odd Schema"."t.x" ("a b", "FROM stdin", "q""u)ote") FROM stdin;
1	\\.	COPY public.fake (a) FROM stdin;
2	-- PostgreSQL database dump complete	$$
3	'	/*
\.


COPY "Odd Schema"."(a;'$$--/*" (x) FROM stdin;
1
\.


COPY public.empty_t (a) FROM stdin;
\.


COPY public.zero  FROM stdin;



\.


COPY public.dots (t) FROM stdin;

.
\\.
..
\.x
\.


COPY public."größe 表" ("größe") FROM stdin;
11
\.


BEGIN;

SELECT pg_catalog.lo_open('16564', 131072);
SELECT pg_catalog.lo_close(0);

SELECT pg_catalog.lo_open('16565', 131072);
SELECT pg_catalog.lowrite(0, '\x68656c6c6f');
SELECT pg_catalog.lo_close(0);

COMMIT;
SELECT pg_catalog.setval('public.users_id_seq', 3, true);
"#;

    #[test]
    fn counts_the_rows_of_every_copy_block_and_of_nothing_that_looks_like_one() {
        let facts = scan(&whole(ODD)).unwrap();
        assert_eq!(
            facts.rows.into_iter().collect::<Vec<_>>(),
            counts(&[
                ("\"Odd Schema\".\"(a;'$$--/*\"", 1),
                ("\"Odd Schema\".\"t.x\"", 3),
                ("public.\"größe 表\"", 1),
                ("public.dots", 5),
                ("public.empty_t", 0),
                ("public.zero", 3),
            ])
        );
        assert_eq!(facts.large_objects, 2);
        assert_eq!(facts.bytes, whole(ODD).len() as u64);
    }

    #[test]
    fn what_a_server_must_have_for_a_dump_is_found() {
        let body = "CREATE EXTENSION IF NOT EXISTS hstore WITH SCHEMA public;\n\
            CREATE EXTENSION IF NOT EXISTS \"uuid-ossp\" WITH SCHEMA public;\n\
            COMMENT ON EXTENSION hstore IS 'CREATE EXTENSION IF NOT EXISTS no;';\n\
            SET default_tablespace = '';\nSET default_tablespace = 'fast disk';\n\
            SET default_tablespace = slow;\n";
        let facts = scan(&whole(body)).unwrap();
        let all = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>();
        assert_eq!(all(&facts.extensions), ["hstore", "uuid-ossp"]);
        assert_eq!(all(&facts.tablespaces), ["fast disk", "slow"]);
        assert_eq!(facts.server.as_deref(), Some("15.18"));
        assert!(facts.restricted);
    }

    #[test]
    fn facts_do_not_depend_on_where_chunks_end() {
        let dump = whole(ODD);
        let expected = scan(&dump);
        for chunk_bytes in [1, 2, 3, 5, 7, 64] {
            let got = scan_in(DumpKind::Database, dump.as_bytes(), chunk_bytes);
            assert_eq!(got, expected, "chunks of {chunk_bytes}");
        }
    }

    #[test]
    fn every_cut_is_seen_unless_only_the_last_newlines_are_missing() {
        let dump = whole(ODD);
        for end in 0..dump.len() {
            let facts = scan_in(DumpKind::Database, &dump.as_bytes()[..end], usize::MAX);
            let lost = &dump[dump.floor_char_boundary(end)..];
            assert_eq!(facts.is_ok(), lost.trim().is_empty(), "cut at {end}");
        }
    }

    #[test]
    fn a_dump_without_restrict_is_whole_with_the_rule_below_its_trailer() {
        let dump = "--\n-- PostgreSQL database dump\n--\n\n--\n-- PostgreSQL database dump complete\n--\n\n";
        assert!(scan(dump).is_ok());
        assert!(scan(dump.trim_end()).is_ok());
        assert_eq!(
            scan(dump.trim_end().trim_end_matches('-')),
            Err(DumpError::Truncated { bytes: dump.len() as u64 - 4, at: CutAt::Trailer })
        );
    }

    #[test]
    fn a_cut_says_where_it_is() {
        assert_eq!(cut("COPY public.t (a) FROM stdin;\n1\n"), CutAt::Rows { table: "public.t".into() });
        assert_eq!(cut("COPY public.t (a) FROM stdin;"), CutAt::Rows { table: "public.t".into() });
        assert_eq!(cut("SELECT 'a"), CutAt::Text);
        assert_eq!(cut("SELECT E'a\\'"), CutAt::Text);
        assert_eq!(cut("DO $x$ begin $x"), CutAt::Text);
        assert_eq!(cut("SELECT \"a"), CutAt::Identifier);
        assert_eq!(cut("/* /* */"), CutAt::Comment);
        assert_eq!(cut("SELECT 1"), CutAt::Statement);
        assert_eq!(cut("SELECT (1;"), CutAt::Statement);
        assert_eq!(cut("SELECT 1;\n"), CutAt::Trailer);
        let no_unrestrict = format!("SELECT 1;\n{}", TRAILER.split('\\').next().unwrap());
        assert_eq!(cut(&no_unrestrict), CutAt::Unrestrict);
    }

    #[test]
    fn a_trailer_in_a_string_or_in_rows_closes_nothing() {
        assert_eq!(cut(&format!("SELECT '\n{TRAILER}")), CutAt::Text);
        assert_eq!(cut(&format!("SELECT 1\n{TRAILER}")), CutAt::Statement);
        assert_eq!(cut(&format!("COPY t (a) FROM stdin;\n{TRAILER}")), CutAt::Rows { table: "t".into() });
    }

    #[test]
    fn whatever_follows_the_trailer_is_refused_unless_it_is_a_comment() {
        assert!(scan(&format!("{}-- done\n/* really */\n", whole(""))).is_ok());
        for more in ["SELECT 1;\n", "x", "\\connect db\n", "\\restrict k3y\n"] {
            let end = scan(&format!("{}{more}", whole("")));
            assert!(matches!(end, Err(DumpError::AfterTrailer { .. })), "{more} {end:?}");
        }
    }

    #[test]
    fn a_stream_that_does_not_begin_as_a_dump_is_refused() {
        assert_eq!(scan(""), Err(DumpError::Empty));
        let kind = DumpKind::Database;
        for stream in ["\n", "SELECT 1;\n", "pg_dump: error\n", "\\connect x\n"] {
            let end = scan(&format!("{stream}{TRAILER}"));
            assert_eq!(end, Err(DumpError::NoHeader { kind }), "{stream}");
        }
    }

    #[test]
    fn a_cluster_dump_ends_with_its_own_trailer_only() {
        let inner = whole("COPY public.t (a) FROM stdin;\n1\n\\.\n");
        let dump = format!(
            "--\n-- PostgreSQL database cluster dump\n--\n\nCREATE ROLE \"we'ird\";\n\\connect template1\n{inner}\\connect app\n{inner}"
        );
        let scan = |dump: &str| scan_in(DumpKind::Cluster, dump.as_bytes(), usize::MAX);
        assert!(matches!(scan(&dump), Err(DumpError::Truncated { at: CutAt::Trailer, .. })));
        let dump = format!("{dump}--\n-- PostgreSQL database cluster dump complete\n--\n\n");
        let facts = scan(&dump).unwrap();
        assert_eq!(facts.rows, BTreeMap::from([("public.t".to_string(), 2)]));
        let kind = DumpKind::Database;
        assert_eq!(scan_in(kind, dump.as_bytes(), usize::MAX), Err(DumpError::NoHeader { kind }));
    }

    #[test]
    fn blocks_of_one_table_are_added_up() {
        let block = "COPY public.parted (a) FROM stdin;\n1\n2\n\\.\n";
        assert_eq!(rows(&format!("{block}{block}")), [("public.parted".into(), 4)]);
    }

    #[test]
    fn large_objects_count_once_whether_schema_or_data_or_both_are_there() {
        let create = "SELECT pg_catalog.lo_create('1');\nSELECT pg_catalog.lo_create('2');\n";
        let open = "SELECT pg_catalog.lo_open('1', 131072);\nSELECT pg_catalog.lo_close(0);\n\
            SELECT pg_catalog.lo_open('2', 131072);\nSELECT pg_catalog.lo_close(0);\n";
        let drop =
            "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = '1';\n";
        for body in [create, open, &format!("{drop}{create}{open}")] {
            assert_eq!(scan(&whole(body)).unwrap().large_objects, 2);
        }
        let old = "SELECT pg_catalog.lo_open(pg_catalog.lo_create('1'), 131072);\n";
        assert_eq!(scan(&whole(old)).unwrap().large_objects, 1);
    }

    #[test]
    fn backslashes_escape_in_plain_strings_when_the_dump_says_so() {
        let body = "SET standard_conforming_strings = off;\nSELECT 'a\\'; COPY fake (a) FROM stdin;\n';\n";
        assert_eq!(rows(body), []);
        let body = "SELECT 'a\\';\nCOPY t (a) FROM stdin;\n1\n\\.\n";
        assert_eq!(rows(body), counts(&[("t", 1)]));
    }

    #[test]
    fn carriage_returns_of_a_terminal_do_not_hide_the_ends() {
        let dump = whole("COPY t (a) FROM stdin;\n1\n\\.\n").replace('\n', "\r\n");
        assert_eq!(scan(&dump).unwrap().rows, BTreeMap::from([("t".into(), 1)]));
    }

    #[test]
    fn copy_that_brings_no_rows_is_no_block() {
        assert_eq!(rows("COPY (SELECT 1) TO stdout;\nCOPY t TO stdout;\nCOPY t FROM '/f';\n"), []);
    }

    #[test]
    fn copy_in_a_form_that_cannot_be_counted_is_refused() {
        for body in
            ["COPY t FROM stdin WITH (FORMAT csv);\n\"a\nb\"\n\\.\n", "COPY t FROM stdin; SELECT 1;\n"]
        {
            let end = scan(&whole(body));
            assert!(matches!(end, Err(DumpError::UnknownCopy { .. })), "{body} {end:?}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_in_bounded_memory() {
        let name = "n".repeat(MAX_TABLE_NAME_BYTES + 1);
        let columns = "c,".repeat(MAX_COPY_STATEMENT_BYTES);
        let tag = "t".repeat(MAX_DOLLAR_TAG_BYTES + 1);
        for body in [
            format!("COPY {name} FROM stdin;\n\\.\n"),
            format!("COPY t ({columns}c) FROM stdin;\n\\.\n"),
            format!("SELECT ${tag}$ ${tag}$;\n"),
        ] {
            let end = scan(&whole(&body));
            assert!(matches!(end, Err(DumpError::TooLong { .. })), "{end:?}");
        }
        let mut scanner = DumpScanner::new(DumpKind::Database);
        scanner.feed(HEADER.as_bytes());
        for start in ["SELECT '", "--", "\\x", "SELECT w"] {
            scanner.feed(start.as_bytes());
            for _ in 0..64 {
                scanner.feed(&[b'x'; 65536]);
            }
            scanner.feed(b"\n';\n");
        }
        assert!(scanner.statement.capacity() + scanner.line.capacity() < 64 * 1024);
        assert!(scanner.word.capacity() < 64);
    }

    #[test]
    fn names_outside_utf8_stay_distinct() {
        let mut dump = HEADER.as_bytes().to_vec();
        for byte in [0xe4, 0xe9] {
            dump.extend_from_slice(b"COPY public.\"t");
            dump.push(byte);
            dump.extend_from_slice(b"\" (a) FROM stdin;\n1\n\\.\n");
        }
        dump.extend_from_slice(TRAILER.as_bytes());
        let facts = scan_in(DumpKind::Database, &dump, usize::MAX).unwrap();
        let names: Vec<_> = facts.rows.keys().map(String::as_str).collect();
        assert_eq!(names, ["public.\"t\\xE4\"", "public.\"t\\xE9\""]);
    }

    /// Pieces that change the lexer's state, in any order.
    fn fragment() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "'",
            "\"",
            "$$",
            "$a$",
            "$",
            "--",
            "-",
            "/*",
            "*/",
            "/",
            "*",
            "\\.",
            "\\.\n",
            "\\",
            "\n",
            ";",
            "(",
            ")",
            "E'",
            " ",
            "COPY t (a) FROM stdin;\n",
            "1\n",
            "BEGIN ATOMIC ",
            "END ",
            "CREATE FUNCTION f() ",
            "CASE ",
            "\\restrict x\n",
            "\\unrestrict x\n",
            TRAILER,
            HEADER,
            "\r",
            "é",
            "SELECT ",
            "x",
        ])
    }

    proptest! {
        #[test]
        fn chunks_never_change_the_outcome(
            parts in prop::collection::vec(fragment(), 0..40),
            chunk_bytes in 1usize..9,
        ) {
            let dump = format!("{HEADER}{}", parts.concat());
            let at_once = scan(&dump);
            let chunked = scan_in(DumpKind::Database, dump.as_bytes(), chunk_bytes);
            prop_assert_eq!(at_once.is_ok(), chunked.is_ok());
            if at_once.is_ok() {
                prop_assert_eq!(at_once, chunked);
            }
        }
    }
}
