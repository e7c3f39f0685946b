//! Reads formats of one assignment a line: env, ini and its many relatives, TOML, and text of no known format.
//!
//! What could go wrong: the end of a value is taken for a comment, or the next line for another key. Where a format
//! leaves that open, the longer reading is hidden.

use super::decode::{Style, at, slice};
use super::flow::{Dialect, Flow, toml_key, toml_string, unquote};
use super::outline::{Outline, Quotes, Reach, close_quote, line, skip_blanks, trim_end};
use super::words::Keys;
use std::ops::Range;

/// `KEY=value`, quoted values over several lines.
pub(super) fn env(src: &[u8], from: usize) -> Outline {
    let mut out = Outline::new();
    let mut quotes = Quotes::default();
    let group = out.group();
    let mut pos = from;
    while pos < src.len() {
        let (end, next) = line(src, pos);
        let first = skip_blanks(src, pos, end);
        let first = skip_word(src, first, end, b"export");
        pos = match assignment(src, first, end, b"=") {
            Some((key, value)) => {
                out.keys.push((key.clone(), Style::Plain));
                let node = out.node(0, slice(src, key));
                env_value(src, value..end, next, (node, group), &mut quotes, &mut out)
            }
            None => {
                out.loose(first..end);
                next
            }
        };
    }
    out
}

fn skip_word(src: &[u8], pos: usize, end: usize, word: &[u8]) -> usize {
    let behind = pos + word.len();
    let found = slice(src, pos..behind) == word && matches!(at(src, behind), b' ' | b'\t');
    if found { skip_blanks(src, behind, end) } else { pos }
}

/// A key, a separator out of `separators`, and where the value begins.
fn assignment(src: &[u8], first: usize, end: usize, separators: &[u8]) -> Option<(Range<usize>, usize)> {
    let mut i = first;
    while i < end && (!separators.contains(&at(src, i)) || slice(src, i..i + 3) == b"://") {
        let byte = at(src, i);
        if slice(src, i..i + 3) == b"://" {
            return None;
        }
        if matches!(byte, b'"' | b'\'' | b'#' | b';' | b'{' | b'<' | b'(') {
            return None;
        }
        i += 1;
    }
    let stop = trim_end(src, first, i);
    let key = slice(src, first..stop);
    let known =
        key.iter().all(|b| b.is_ascii_alphanumeric() || *b >= 0x80 || b"_-./ \t:[]@$\\*%".contains(b));
    // A key of many words is a sentence.
    let words = key.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty()).count();
    (i < end && !key.is_empty() && known && words <= 4).then_some((first..stop, i + 1))
}

fn env_value(
    src: &[u8],
    value: Range<usize>,
    next: usize,
    (node, group): (usize, usize),
    quotes: &mut Quotes,
    out: &mut Outline,
) -> usize {
    let start = skip_blanks(src, value.start, value.end);
    let quote = at(src, start);
    if start < value.end && matches!(quote, b'"' | b'\'' | b'`') {
        let style = if quote == b'"' { Style::Double } else { Style::Literal };
        let close = if quote == b'`' { None } else { quotes.close(src, start, style, Reach::File) };
        if let Some(close) = close {
            let (stop, after) = line(src, close);
            let rest = skip_blanks(src, close + 1, stop);
            let clean = rest >= stop || (at(src, rest) == b'#' && rest > close + 1);
            if clean {
                out.leaf(node, group, start + 1..close, style);
                out.loose(rest..stop);
                return after;
            }
            // More text behind the closing quote. On one line it belongs to the value; a quote that closes only in
            // another assignment was never meant to go that far.
        }
    }
    let (stop, comment) = unquoted_end(src, start, value.end, b"#");
    out.leaf(node, group, start..stop, Style::Plain);
    out.loose(comment);
    next
}

/// The end of an unquoted value, and the comment behind it. Only a mark between two spaces begins a comment here:
/// ` #x` may be a part of a password.
fn unquoted_end(src: &[u8], start: usize, end: usize, marks: &[u8]) -> (usize, Range<usize>) {
    let blank = |i: usize| matches!(at(src, i), b' ' | b'\t');
    let comment = (start..end).find(|&i| {
        marks.contains(&at(src, i)) && (i == start || blank(i - 1)) && i + 1 < end && blank(i + 1)
    });
    let stop = comment.unwrap_or(end);
    (trim_end(src, start, stop), stop..end)
}

/// Sections, `key = value`, `key: value`, `key value`; deeper lines go on with a value.
pub(super) fn ini(src: &[u8], from: usize, keys: &Keys) -> Outline {
    let mut out = Outline::new();
    let mut section = (0, out.group());
    // Indentation and place of the newest key.
    let mut newest: Option<(usize, usize)> = None;
    let mut joined = false;
    let mut pos = from;
    while pos < src.len() {
        let (end, next) = line(src, pos);
        let first = skip_blanks(src, pos, end);
        let indent = first - pos;
        pos = next;
        let deeper = newest.filter(|(column, _)| joined || indent > *column);
        joined = slice(src, first..end).ends_with(b"\\");
        if first >= end {
            continue;
        }
        if matches!(at(src, first), b'#' | b';') || slice(src, first..end).starts_with(b"//") {
            out.loose(first..end);
        } else if let Some((_, node)) = deeper {
            out.leaf(node, section.1, first..trim_end(src, first, end), Style::Plain);
            out.leaves.last_mut().into_iter().for_each(|leaf| leaf.embedded = true);
        } else if at(src, first) == b'[' {
            let close = (first..end).rev().find(|&i| at(src, i) == b']').unwrap_or(end);
            let group = out.group();
            section = (out.node(0, slice(src, first + 1..close)), group);
            newest = None;
            out.loose(close + 1..end);
        } else {
            newest = ini_entry(src, first, end, section, keys, &mut out).map(|node| (indent, node));
        }
    }
    out
}

fn ini_entry(
    src: &[u8],
    first: usize,
    end: usize,
    (parent, group): (usize, usize),
    keys: &Keys,
    out: &mut Outline,
) -> Option<usize> {
    let first = skip_word(src, first, end, b"export");
    // The directive first: a separator in its value is a part of that.
    let found = directive(src, first, end, keys).or_else(|| assignment(src, first, end, b"=:"));
    let Some((key, value)) = found else {
        out.loose(first..end);
        return None;
    };
    let node = out.node(parent, slice(src, key.clone()));
    out.keys.push((key, Style::Plain));
    let start = skip_blanks(src, value, end);
    let quote = at(src, start);
    if start < end && matches!(quote, b'"' | b'\'') {
        let style = if quote == b'"' { Style::Double } else { Style::Literal };
        if let Ok(close) = close_quote(src, start, style, Reach::Line) {
            let rest = skip_blanks(src, close + 1, end);
            if rest >= end
                || (matches!(at(src, rest), b'#' | b';') && rest > close + 1)
                || at(src, rest) == b';'
            {
                out.leaf(node, group, start + 1..close, style);
                out.loose(rest..end);
                return Some(node);
            }
        }
    }
    let (stop, comment) = unquoted_end(src, start, end, b"#;");
    out.leaf(node, group, start..stop, Style::Plain);
    out.loose(comment);
    Some(node)
}

/// `requirepass foobared`: a secret key and its value with only a space between them. Sentences are left alone.
fn directive(src: &[u8], first: usize, end: usize, keys: &Keys) -> Option<(Range<usize>, usize)> {
    let stop = (first..end).find(|&i| matches!(at(src, i), b' ' | b'\t'))?;
    let key = slice(src, first..stop);
    let words = slice(src, stop..end).split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty()).count();
    let value = at(src, skip_blanks(src, stop, end));
    let quoted = matches!(value, b'"' | b'\'');
    let lone = matches!(at(src, skip_blanks(src, stop, end) + 1), b' ' | b'\t' | b'\r' | b'\n' | 0);
    let redis = key.eq_ignore_ascii_case(b"requirepass") || key.eq_ignore_ascii_case(b"masterauth");
    if matches!(value, b'=' | b':') && (lone || (value == b'=' && !redis)) {
        return None;
    }
    let name = key.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    (name && (words == 1 || quoted) && keys.class(key).is_some()).then_some((first..stop, stop))
}

/// Tables, dotted and quoted keys, strings of all four kinds, arrays and inline tables.
pub(super) fn toml(src: &[u8], from: usize) -> Outline {
    let mut out = Outline::new();
    let mut quotes = Quotes::default();
    let mut table = (0, out.group());
    let mut pos = from;
    while pos < src.len() {
        let (end, next) = line(src, pos);
        let first = skip_blanks(src, pos, end);
        if at(src, first) == b'[' && first < end {
            table = toml_table(src, first, end, &mut out);
            pos = next;
        } else if let Some((key, value)) = toml_key(src, first).filter(|(_, v)| *v <= end) {
            out.keys.push((key.clone(), Style::Plain));
            let node = out.node(table.0, &unquote(slice(src, key)));
            pos = toml_value(src, value, (node, table.1), &mut quotes, &mut out);
        } else {
            out.loose(first..end);
            pos = next;
        }
    }
    out
}

/// `[a.b]` hangs below the node of `a`, so that a secret name covers the tables below it.
fn toml_table(src: &[u8], first: usize, end: usize, out: &mut Outline) -> (usize, usize) {
    let close = (first..end).find(|&i| at(src, i) == b']').unwrap_or(end);
    let name = unquote(slice(src, first..close));
    let name = name.strip_prefix(b"[[").or(name.strip_prefix(b"[")).unwrap_or(&name);
    let mut node = 0;
    for part in name.split(|b| *b == b'.') {
        node = out.node(node, part.trim_ascii());
    }
    out.loose(close + 1..end);
    (node, out.group())
}

fn toml_value(
    src: &[u8],
    from: usize,
    (node, group): (usize, usize),
    quotes: &mut Quotes,
    out: &mut Outline,
) -> usize {
    let (end, next) = line(src, from);
    let start = skip_blanks(src, from, end);
    let behind = match at(src, start) {
        b'"' | b'\'' => toml_string(src, start, quotes).map(|(span, style, behind)| {
            out.leaf(node, group, span, style);
            behind
        }),
        b'[' | b'{' => {
            let flow = Flow { src, dialect: Dialect::Toml, indent: -1 };
            Some(flow.collection(start, node, quotes, out))
        }
        _ => None,
    };
    if let Some(behind) = behind {
        let (stop, after) = line(src, behind);
        out.loose(behind..stop);
        return after;
    }
    let hash = (start..end).find(|&i| at(src, i) == b'#').unwrap_or(end);
    out.leaf(node, group, start..trim_end(src, start, hash), Style::Bare);
    out.loose(hash..end);
    next
}

/// Lines of fields between colons, as in `.pgpass`; what stands behind the first `skip` of them is a password.
pub(super) fn records(src: &[u8], from: usize, skip: usize) -> Outline {
    let mut out = Outline::new();
    let group = out.group();
    let mut pos = from;
    while pos < src.len() {
        let (end, next) = line(src, pos);
        let colons = (pos..end).filter(|&i| at(src, i) == b':' && (i == pos || at(src, i - 1) != b'\\'));
        match colons.skip(skip.saturating_sub(1)).min() {
            Some(colon) if at(src, pos) != b'#' => {
                let node = out.node(0, b"password");
                out.leaf(node, group, colon + 1..end, Style::Plain);
            }
            _ => out.loose(pos..end),
        }
        pos = next;
    }
    out
}

/// `machine x login y password z`, over any number of lines.
pub(super) fn netrc(src: &[u8], from: usize) -> Outline {
    let mut out = Outline::new();
    let group = out.group();
    let mut secret = false;
    let mut i = from;
    while i < src.len() {
        let start = i;
        while i < src.len() && !at(src, i).is_ascii_whitespace() {
            i += 1;
        }
        let word = slice(src, start..i);
        if secret && !word.is_empty() {
            let node = out.node(0, b"password");
            out.leaf(node, group, start..i, Style::Plain);
            secret = false;
        } else if !word.is_empty() {
            secret = matches!(word, b"password" | b"account" | b"passwd");
            out.loose(start..i);
        }
        i += 1;
    }
    out
}
