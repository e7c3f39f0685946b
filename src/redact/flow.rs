//! Reads what stands in brackets: JSON, YAML flow collections, TOML arrays and inline tables.
//!
//! What could go wrong: a bracket that is never closed swallows the rest of a YAML file. So a line that is not
//! indented under its key ends the collection, and the caller goes on from there.

use super::decode::{Style, Text, at, slice};
use super::outline::{Outline, Quotes, Reach, close_quote, dedents, is_blank, line, skip_blanks, trim_end};
use std::ops::Range;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Json,
    Yaml,
    Toml,
}

/// A TOML key that is longer is read as loose text.
const LONGEST_KEY: usize = 4096;

struct Level {
    map: bool,
    node: usize,
    /// The node that the next value belongs to.
    last: usize,
    group: usize,
}

pub(super) struct Flow<'a> {
    pub(super) src: &'a [u8],
    pub(super) dialect: Dialect,
    /// A YAML line with this indentation or less ends the collection; -1 for no limit.
    pub(super) indent: isize,
}

/// A whole JSON file. False if it is not JSON at all.
pub(super) fn json(src: &[u8], from: usize, out: &mut Outline) -> bool {
    let flow = Flow { src, dialect: Dialect::Json, indent: -1 };
    let group = out.group();
    let root = Level { map: false, node: 0, last: 0, group };
    flow.run(from, vec![root], &mut Quotes::default(), out).1
}

impl Flow<'_> {
    /// Reads the collection that opens at `from`, returns the position behind it.
    pub(super) fn collection(
        &self,
        from: usize,
        node: usize,
        quotes: &mut Quotes,
        out: &mut Outline,
    ) -> usize {
        let group = out.group();
        let first = Level { map: at(self.src, from) == b'{', node, last: node, group };
        self.run(from + 1, vec![first], quotes, out).0
    }

    /// Returns the end, and whether all brackets were closed.
    fn run(
        &self,
        from: usize,
        mut stack: Vec<Level>,
        quotes: &mut Quotes,
        out: &mut Outline,
    ) -> (usize, bool) {
        let base = usize::from(self.dialect == Dialect::Json);
        let mut pos = from;
        let mut sound = true;
        while pos < self.src.len() {
            let Some(top) = stack.last_mut() else { return (pos, sound) };
            match at(self.src, pos) {
                b'\n' if self.dedented(pos) => return (pos, false),
                b if b.is_ascii_whitespace() => pos += 1,
                b'{' | b'[' => {
                    let level = Level {
                        map: at(self.src, pos) == b'{',
                        node: top.last,
                        last: top.last,
                        group: out.group(),
                    };
                    stack.push(level);
                    pos += 1;
                }
                b'}' | b']' => {
                    if stack.len() > base {
                        stack.pop();
                    } else {
                        sound = false;
                    }
                    pos += 1;
                    if stack.is_empty() {
                        return (pos, sound);
                    }
                }
                b',' => {
                    top.last = top.node;
                    pos += 1;
                }
                _ => {
                    pos = match self.comment(pos) {
                        Some(end) => {
                            out.loose(pos..end);
                            end
                        }
                        None => self.token(pos, top, quotes, out),
                    }
                }
            }
        }
        let closed = stack.len() <= base;
        (pos, sound && closed)
    }

    /// True if the line behind the line end at `pos` does not belong to this collection any more.
    fn dedented(&self, pos: usize) -> bool {
        if self.indent < 0 || self.dialect != Dialect::Yaml {
            return false;
        }
        let start = pos + 1;
        let (end, _) = line(self.src, start);
        let first = skip_blanks(self.src, start, end);
        let deep = isize::try_from(first - start).unwrap_or(isize::MAX) > self.indent;
        !(deep || first >= end || matches!(at(self.src, first), b']' | b'}' | b',' | b'#'))
    }

    /// The end of the comment that begins at `pos`.
    fn comment(&self, pos: usize) -> Option<usize> {
        let before = pos.checked_sub(1).map_or(b' ', |i| at(self.src, i));
        match (self.dialect, at(self.src, pos), at(self.src, pos + 1)) {
            (Dialect::Json, b'/', b'/') => Some(line(self.src, pos).0),
            (Dialect::Json, b'/', b'*') => {
                let rest = slice(self.src, pos + 2..self.src.len());
                Some(memchr::memmem::find(rest, b"*/").map_or(self.src.len(), |n| pos + n + 4))
            }
            (Dialect::Yaml, b'#', _) if before.is_ascii_whitespace() => Some(line(self.src, pos).0),
            (Dialect::Toml, b'#', _) => Some(line(self.src, pos).0),
            _ => None,
        }
    }

    /// Reads a key or a value, returns the position behind it (and behind the separator of a key).
    fn token(&self, pos: usize, top: &mut Level, quotes: &mut Quotes, out: &mut Outline) -> usize {
        if self.dialect == Dialect::Yaml && matches!(at(self.src, pos), b'&' | b'*' | b'!') {
            return self.property(pos, top, out);
        }
        if self.dialect == Dialect::Toml
            && top.map
            && let Some((key, after)) = toml_key(self.src, pos)
        {
            out.keys.push((key.clone(), Style::Plain));
            top.last = out.node(top.node, &unquote(slice(self.src, key)));
            return after;
        }
        let (span, style, after) = self.scalar(pos, quotes);
        if let Some(behind) = self.separator(after, style) {
            let key = Text::of(self.src, span.clone(), style).bytes;
            out.keys.push((span, style));
            top.last = out.node(top.node, &key);
            return behind;
        }
        if top.last == top.node || !top.map {
            out.item(top.last, top.group, span, style);
        } else {
            out.leaf(top.last, top.group, span, style);
        }
        after.max(pos + 1)
    }

    /// `&anchor`, `*alias` or `!tag`.
    fn property(&self, pos: usize, top: &Level, out: &mut Outline) -> usize {
        let mut end = pos + 1;
        while end < self.src.len()
            && !at(self.src, end).is_ascii_whitespace()
            && !matches!(at(self.src, end), b',' | b']' | b'}')
        {
            end += 1;
        }
        let name = slice(self.src, pos + 1..end).to_vec();
        match at(self.src, pos) {
            b'&' => out.anchors.push((name, top.last)),
            b'*' => out.aliases.push((name, top.last)),
            _ => {}
        }
        end
    }

    fn scalar(&self, pos: usize, quotes: &mut Quotes) -> (Range<usize>, Style, usize) {
        let quote = at(self.src, pos);
        if quote == b'"' || quote == b'\'' {
            let found = if self.dialect == Dialect::Toml {
                toml_string(self.src, pos, quotes)
            } else {
                self.string(pos, quotes)
            };
            if let Some(found) = found {
                return found;
            }
        }
        let end = self.plain_end(pos);
        let style = if self.dialect == Dialect::Yaml { Style::Plain } else { Style::Bare };
        (pos..trim_end(self.src, pos, end), style, end)
    }

    fn string(&self, pos: usize, quotes: &mut Quotes) -> Option<(Range<usize>, Style, usize)> {
        let json = self.dialect == Dialect::Json;
        let style = if json || at(self.src, pos) == b'"' { Style::Double } else { Style::Single };
        let close = quotes.close(self.src, pos, style, if json { Reach::Line } else { Reach::File })?;
        (json || !dedents(self.src, pos, close, self.indent)).then_some((pos + 1..close, style, close + 1))
    }

    fn plain_end(&self, pos: usize) -> usize {
        let mut i = pos + 1;
        while i < self.src.len() {
            let byte = at(self.src, i);
            let stop = match byte {
                b',' | b']' | b'}' => true,
                b'[' | b'{' => self.dialect != Dialect::Yaml,
                b':' if self.dialect == Dialect::Json => true,
                b':' if self.dialect == Dialect::Yaml => {
                    let next = at(self.src, i + 1);
                    next.is_ascii_whitespace() || matches!(next, b',' | b']' | b'}' | b'[' | b'{')
                }
                b'"' => self.dialect == Dialect::Json,
                b'#' => self.dialect != Dialect::Json && at(self.src, i - 1).is_ascii_whitespace(),
                b'\n' => self.dialect == Dialect::Toml || self.dedented(i),
                _ => self.dialect == Dialect::Json && byte.is_ascii_whitespace(),
            };
            if stop || (self.dialect == Dialect::Json && byte == b'\n') {
                break;
            }
            i += 1;
        }
        i
    }

    /// The position behind the separator, if what ends at `after` is a key.
    fn separator(&self, after: usize, style: Style) -> Option<usize> {
        if self.dialect == Dialect::Toml {
            return None;
        }
        let mut i = after;
        while i < self.src.len() && at(self.src, i).is_ascii_whitespace() {
            i += 1;
        }
        let next = at(self.src, i + 1);
        let plain = self.dialect == Dialect::Yaml && style == Style::Plain;
        let splits =
            !plain || next.is_ascii_whitespace() || matches!(next, 0 | b',' | b']' | b'}' | b'[' | b'{');
        (at(self.src, i) == b':' && splits).then_some(i + 1)
    }
}

/// The key before a `=` on one line, and the position behind the `=`. Quotes may hold one.
pub(super) fn toml_key(src: &[u8], pos: usize) -> Option<(Range<usize>, usize)> {
    let end = src.len().min(pos + LONGEST_KEY);
    let mut i = pos;
    while i < end {
        match at(src, i) {
            b'=' if i > pos => return Some((pos..trim_end(src, pos, i), i + 1)),
            quote @ (b'"' | b'\'') => {
                let style = if quote == b'"' { Style::Double } else { Style::Literal };
                i = close_quote(src, i, style, Reach::Line).ok()? + 1;
            }
            b if b.is_ascii_alphanumeric() || b >= 0x80 || matches!(b, b'_' | b'-' | b'.') || is_blank(b) => {
                i += 1
            }
            _ => return None,
        }
    }
    None
}

/// A dotted key without its quotes.
pub(super) fn unquote(key: &[u8]) -> Vec<u8> {
    key.iter().copied().filter(|b| !matches!(b, b'"' | b'\'')).collect()
}

/// The string of any of TOML's four kinds that opens at `pos`: content, style, position behind it.
pub(super) fn toml_string(
    src: &[u8],
    pos: usize,
    quotes: &mut Quotes,
) -> Option<(Range<usize>, Style, usize)> {
    let quote = at(src, pos);
    let style = if quote == b'"' { Style::Double } else { Style::Literal };
    if slice(src, pos..pos + 3) != [quote; 3] {
        let close = quotes.close(src, pos, style, Reach::Line)?;
        return Some((pos + 1..close, style, close + 1));
    }
    let start = pos + 3;
    let mut from = pos + 2;
    loop {
        let close = quotes.close(src, from, style, Reach::File)?;
        if slice(src, close..close + 3) == [quote; 3] {
            // Up to two quotes more belong to the string.
            let mut end = close;
            while at(src, end + 3) == quote && end < close + 2 {
                end += 1;
            }
            return Some((start..end, style, end + 3));
        }
        // The next search begins at this quote as if it opened a string.
        from = close;
    }
}
