//! Text as it is meant, with the way back to the bytes as they are written.
//!
//! What could go wrong: an offset that maps back into the middle of an escape. A placeholder put there would break
//! the string around it, so every decoded byte remembers where its whole escape begins.

use std::ops::Range;

/// How a value is written in its file, which says how it may be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Style {
    /// Unquoted text: the placeholder can stand there as it is.
    Plain,
    /// A JSON or TOML literal (number, boolean): the placeholder needs quotes of its own.
    Bare,
    /// Single quotes without any escape (TOML literal, env).
    Literal,
    /// YAML single quotes: a doubled quote is one quote.
    Single,
    /// Backslash escapes.
    Double,
}

/// Decoded bytes of a part of a file.
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    /// For each decoded byte, and for the end, the offset in the file; `None` while both run in step.
    map: Option<Vec<usize>>,
    base: usize,
}

impl Text {
    pub(super) fn plain(src: &[u8], span: Range<usize>) -> Self {
        Self { bytes: slice(src, span.clone()).to_vec(), map: None, base: span.start }
    }

    pub(super) fn of(src: &[u8], span: Range<usize>, style: Style) -> Self {
        let raw = slice(src, span.clone());
        let view = match style {
            Style::Double if raw.contains(&b'\\') => unescape(raw),
            Style::Single if memchr::memmem::find(raw, b"''").is_some() => undouble(raw, false),
            _ => return Self::plain(src, span),
        };
        let map = view.map.into_iter().map(|at| at + span.start).collect();
        Self { bytes: view.bytes, map: Some(map), base: span.start }
    }

    /// Where a range of the decoded bytes is written.
    pub(super) fn raw(&self, range: Range<usize>) -> Range<usize> {
        self.offset(range.start)..self.offset(range.end)
    }

    /// Widens a range of the file to whole escapes of this text.
    pub(super) fn snap(&self, range: Range<usize>) -> Range<usize> {
        let Some(map) = &self.map else { return range };
        let start = map.partition_point(|&at| at <= range.start).saturating_sub(1);
        let end = map.partition_point(|&at| at < range.end);
        let start = map.get(start).map_or(range.start, |&at| at.min(range.start));
        let end = map.get(end).map_or(range.end, |&at| at.max(range.end));
        start..end
    }

    fn offset(&self, at: usize) -> usize {
        match &self.map {
            None => self.base + at,
            Some(map) => map.get(at).or(map.last()).copied().unwrap_or(self.base),
        }
    }
}

/// Decoded bytes and, for each of them and for the end, the offset in what they were decoded from.
pub(super) struct View {
    pub(super) bytes: Vec<u8>,
    pub(super) map: Vec<usize>,
}

impl View {
    fn with_capacity(n: usize) -> Self {
        Self { bytes: Vec::with_capacity(n), map: Vec::with_capacity(n + 1) }
    }

    fn push(&mut self, byte: u8, at: usize) {
        self.bytes.push(byte);
        self.map.push(at);
    }

    fn push_char(&mut self, c: char, at: usize) {
        let mut buffer = [0; 4];
        for byte in c.encode_utf8(&mut buffer).bytes() {
            self.push(byte, at);
        }
    }

    fn end(mut self, at: usize) -> Self {
        self.map.push(at);
        self
    }

    /// This view's offsets counted in what `under` was decoded from.
    pub(super) fn over(mut self, under: &Self) -> Self {
        let last = under.map.last().copied().unwrap_or(0);
        for at in &mut self.map {
            *at = under.map.get(*at).copied().unwrap_or(last);
        }
        self
    }
}

/// A part of `src`; empty where the range lies outside of it.
pub(super) fn slice(src: &[u8], range: Range<usize>) -> &[u8] {
    src.get(range).unwrap_or_default()
}

/// One byte of `src`, 0 behind its end.
pub(super) fn at(src: &[u8], i: usize) -> u8 {
    src.get(i).copied().unwrap_or(0)
}

fn hex(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(16)
}

fn hex_run(src: &[u8], from: usize, digits: usize) -> Option<u32> {
    let run = src.get(from..from + digits)?;
    run.iter().try_fold(0_u32, |value, &b| Some((value << 4) | hex(b)?))
}

/// Backslash escapes of JSON, YAML, TOML and env files in one; what none of them knows stays as it is.
pub(super) fn unescape(src: &[u8]) -> View {
    let mut view = View::with_capacity(src.len());
    let mut i = 0;
    while i < src.len() {
        let byte = at(src, i);
        if byte != b'\\' || i + 1 >= src.len() {
            view.push(byte, i);
            i += 1;
            continue;
        }
        i += unescape_one(src, i, &mut view);
    }
    view.end(src.len())
}

/// Decodes the escape at `i`, returns its length.
fn unescape_one(src: &[u8], i: usize, view: &mut View) -> usize {
    let simple = match at(src, i + 1) {
        b'n' => Some(b'\n'),
        b't' => Some(b'\t'),
        b'r' => Some(b'\r'),
        b'0' => Some(0),
        b'a' => Some(7),
        b'b' => Some(8),
        b'v' => Some(11),
        b'f' => Some(12),
        b'e' => Some(27),
        b @ (b'"' | b'\'' | b'\\' | b'/' | b' ' | b'$' | b'`') => Some(b),
        _ => None,
    };
    if let Some(byte) = simple {
        view.push(byte, i);
        return 2;
    }
    match at(src, i + 1) {
        b'x' => numeric(src, i, 2, view),
        b'u' => numeric(src, i, 4, view),
        b'U' => numeric(src, i, 8, view),
        b'\r' | b'\n' => line_join(src, i),
        other => {
            view.push(b'\\', i);
            // An unknown escape is still one unit: a cut between its two bytes would make another one.
            view.push(other, i);
            2
        }
    }
}

fn numeric(src: &[u8], i: usize, digits: usize, view: &mut View) -> usize {
    let Some(first) = hex_run(src, i + 2, digits) else {
        view.push(b'\\', i);
        view.push(at(src, i + 1), i);
        return 2;
    };
    let mut len = 2 + digits;
    let mut code = first;
    let high = digits == 4 && (0xD800..0xDC00).contains(&first) && slice(src, i + 6..i + 8) == b"\\u";
    let low = hex_run(src, i + 8, 4).filter(|low| high && (0xDC00..0xE000).contains(low));
    if let Some(low) = low {
        code = 0x1_0000 + ((first - 0xD800) << 10) + (low - 0xDC00);
        len = 12;
    }
    view.push_char(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), i);
    len
}

/// A backslash at the end of a line joins it with the next one, without the indentation.
fn line_join(src: &[u8], i: usize) -> usize {
    let mut j = i + 1;
    while matches!(at(src, j), b'\r' | b'\n' | b' ' | b'\t') && j < src.len() {
        j += 1;
    }
    j - i
}

/// `''` read as `'`, and `$$` as `$` if `dollars`.
pub(super) fn undouble(src: &[u8], dollars: bool) -> View {
    let mut view = View::with_capacity(src.len());
    let mut i = 0;
    while i < src.len() {
        let byte = at(src, i);
        view.push(byte, i);
        let doubled = (byte == b'\'' || (dollars && byte == b'$')) && at(src, i + 1) == byte;
        i += if doubled { 2 } else { 1 };
    }
    view.end(src.len())
}

/// `%41` read as `A`.
pub(super) fn unpercent(src: &[u8]) -> View {
    let mut view = View::with_capacity(src.len());
    let mut i = 0;
    while i < src.len() {
        let byte = at(src, i);
        match hex_run(src, i + 1, 2).and_then(|v| u8::try_from(v).ok()).filter(|_| byte == b'%') {
            Some(decoded) => {
                view.push(decoded, i);
                i += 3;
            }
            None => {
                view.push(byte, i);
                i += 1;
            }
        }
    }
    view.end(src.len())
}

/// Each run of white space, line ends included, read as one space.
pub(super) fn squeeze(src: &[u8]) -> View {
    let mut view = View::with_capacity(src.len());
    let mut i = 0;
    while i < src.len() {
        let byte = at(src, i);
        if !byte.is_ascii_whitespace() {
            view.push(byte, i);
            i += 1;
            continue;
        }
        view.push(b' ', i);
        while i < src.len() && at(src, i).is_ascii_whitespace() {
            i += 1;
        }
    }
    view.end(src.len())
}

/// What a shell makes of one word: quotes removed, backslashes applied.
pub(super) fn unshell(src: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(src.len());
    let mut quote = 0;
    let mut i = 0;
    while i < src.len() {
        let byte = at(src, i);
        if byte == b'\\' && quote != b'\'' && i + 1 < src.len() {
            out.push(at(src, i + 1));
            i += 2;
            continue;
        }
        match byte {
            b'"' | b'\'' if quote == 0 => quote = byte,
            _ if byte == quote && quote != 0 => quote = 0,
            _ => out.push(byte),
        }
        i += 1;
    }
    out
}

/// Standard base64 with or without padding; `None` if it is not that.
pub(crate) fn base64(src: &[u8]) -> Option<Vec<u8>> {
    let body = src.strip_suffix(b"==").or(src.strip_suffix(b"=")).unwrap_or(src);
    let mut out = Vec::with_capacity(body.len() * 3 / 4);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for &byte in body {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from((bits >> held) & 0xFF).ok()?);
        }
    }
    Some(out)
}
