//! What of the value of a secret key is to be hidden.
//!
//! What could go wrong: a password that looks like something harmless stays. Only what cannot be a secret is spared:
//! nothing at all, a switch where no password is named, a reference to a variable, the path of a key file.

use super::PLACEHOLDER;
use super::decode::{at, slice};
use super::words::Class;
use std::ops::Range;

/// Longer expansions are not looked into.
const LONGEST_EXPANSION: usize = 1024;

/// The parts of `value` to hide: all of it, the default of a reference, or nothing.
pub(super) fn judge(class: Class, value: &[u8]) -> Vec<Range<usize>> {
    let start = value.len() - value.trim_ascii_start().len();
    let text = value.trim_ascii();
    if text.is_empty() || is_redacted(text) || is_null(text) || is_pem(text) {
        return Vec::new();
    }
    let harmless = (!class.password && is_switch(text))
        || (class.plural && is_number(text))
        || (class.path_ok && is_path(text));
    if harmless {
        return Vec::new();
    }
    let within = match references(class, text) {
        Some(defaults) => defaults,
        None => match scheme_length(text) {
            0 => std::iter::once(0..text.len()).collect(),
            n => {
                judge(class, slice(text, n..text.len())).into_iter().map(|r| r.start + n..r.end + n).collect()
            }
        },
    };
    within.into_iter().map(|r| r.start + start..r.end + start).collect()
}

/// Nothing but placeholders, and marks around them.
pub(super) fn is_redacted(text: &[u8]) -> bool {
    if memchr::memmem::find(text, PLACEHOLDER.as_bytes()).is_none() {
        return false;
    }
    let mut rest = text;
    while let Some(n) = memchr::memmem::find(rest, PLACEHOLDER.as_bytes()) {
        if has_letters(slice(rest, 0..n)) {
            return false;
        }
        rest = slice(rest, n + PLACEHOLDER.len()..rest.len());
    }
    !has_letters(rest)
}

fn has_letters(text: &[u8]) -> bool {
    text.iter().any(|b| b.is_ascii_alphanumeric() || *b >= 0x80)
}

fn is_one_of(text: &[u8], words: &[&str]) -> bool {
    words.iter().any(|w| text.eq_ignore_ascii_case(w.as_bytes()))
}

fn is_null(text: &[u8]) -> bool {
    is_one_of(text, &["null", "~", "none", "nil", "undefined", "{}", "[]", "\"\"", "''"])
}

pub(super) fn is_switch(text: &[u8]) -> bool {
    is_one_of(text, &["true", "false", "yes", "no", "on", "off", "enabled", "disabled"])
}

/// A decimal number, with sign, point and exponent.
pub(super) fn is_number(text: &[u8]) -> bool {
    let body = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let (mantissa, exponent) = match body.iter().position(|b| matches!(b, b'e' | b'E')) {
        Some(n) => (slice(body, 0..n), Some(slice(body, n + 1..body.len()))),
        None => (body, None),
    };
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let exponent_fits =
        exponent.is_none_or(|e| digits(e.strip_prefix(b"-").or(e.strip_prefix(b"+")).unwrap_or(e)));
    let mut parts = mantissa.splitn(2, |b| *b == b'.');
    let whole = parts.next().is_some_and(digits);
    exponent_fits && whole && parts.next().is_none_or(digits)
}

/// A PEM block keeps its first and last line readable; its body is hidden by its form.
fn is_pem(text: &[u8]) -> bool {
    let Some(head) = text.strip_prefix(b"-----BEGIN ") else { return false };
    let alone =
        head.strip_suffix(b"-----").is_some_and(|l| l.iter().all(|b| b.is_ascii_uppercase() || *b == b' '));
    let closed = memchr::memmem::find(head, b"-----END ").is_some() && head.ends_with(b"-----");
    alone || closed
}

const ROOTS: &[&str] = &[
    "etc", "run", "var", "opt", "srv", "home", "usr", "root", "mnt", "data", "certs", "secrets", "app",
    "config",
];
const FILE_ENDINGS: &[&str] = &[
    ".pem", ".key", ".crt", ".cer", ".p12", ".pub", ".txt", ".json", ".yml", ".yaml", ".toml", ".conf",
    ".asc", ".gpg", ".age", ".jks",
];

/// The path of a file: below a well-known directory, relative by its first character, or with a known ending.
fn is_path(text: &[u8]) -> bool {
    let plain = text.iter().all(|b| b.is_ascii_alphanumeric() || b"/._-~".contains(b));
    if !plain || text.len() > 256 {
        return false;
    }
    let rooted = text.strip_prefix(b"/").is_some_and(|rest| {
        let first = rest.split(|b| *b == b'/').next().unwrap_or_default();
        first.len() < rest.len() && ROOTS.iter().any(|root| first == root.as_bytes())
    });
    let relative = [&b"./"[..], b"../", b"~/"].iter().any(|p| text.starts_with(p));
    rooted || relative || FILE_ENDINGS.iter().any(|end| text.ends_with(end.as_bytes()))
}

/// The length of `Bearer ` or the like before a credential.
pub(super) fn scheme_length(text: &[u8]) -> usize {
    for scheme in ["Bearer", "Basic", "Token", "Digest", "ApiKey"] {
        let n = scheme.len();
        let head = slice(text, 0..n);
        let blanks = slice(text, n..text.len()).iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        if head.eq_ignore_ascii_case(scheme.as_bytes()) && blanks > 0 && n + blanks < text.len() {
            return n + blanks;
        }
    }
    0
}

/// For a value made of nothing but references to variables: their defaults that are to be hidden.
pub(super) fn references(class: Class, text: &[u8]) -> Option<Vec<Range<usize>>> {
    if is_template(text) {
        return Some(Vec::new());
    }
    let mut defaults = Vec::new();
    let (mut units, mut marks) = (0_usize, 0_usize);
    let mut i = 0;
    while i < text.len() {
        if let Some(unit) = expansion(text, i) {
            let default = unit.default;
            let hidden = judge(class, slice(text, default.clone()));
            defaults.extend(hidden.into_iter().map(|r| r.start + default.start..r.end + default.start));
            units += 1;
            i = unit.end;
        } else if at(text, i).is_ascii_alphanumeric() || at(text, i) >= 0x80 || at(text, i) == b'$' {
            return None;
        } else {
            marks += 1;
            i += 1;
        }
    }
    (units > 0 && marks <= 4).then_some(defaults)
}

/// `{{ name }}` and `${{ name }}` of templates.
fn is_template(text: &[u8]) -> bool {
    let body = text.strip_prefix(b"$").unwrap_or(text);
    let inner = body.strip_prefix(b"{{").and_then(|b| b.strip_suffix(b"}}"));
    inner.is_some_and(|b| !b.iter().any(|c| matches!(c, b'{' | b'}' | b'"' | b'\'' | b'\n')))
}

/// The end of the `{{ name }}` or `${{ name }}` that begins at `i`.
fn template_end(text: &[u8], i: usize) -> Option<usize> {
    let start = if at(text, i) == b'$' { i + 1 } else { i };
    if slice(text, start..start + 2) != b"{{" {
        return None;
    }
    let inner = slice(text, start..text.len().min(start + 256));
    let end = start + memchr::memmem::find(inner, b"}}")? + 2;
    is_template(slice(text, i..end)).then_some(end)
}

/// The end of the reference to a variable that begins at `i`.
pub(super) fn reference_end(text: &[u8], i: usize) -> Option<usize> {
    match at(text, i) {
        b'$' => expansion(text, i).map(|unit| unit.end).or_else(|| template_end(text, i)),
        b'{' => template_end(text, i),
        _ => None,
    }
}

/// `$NAME`, `${NAME}`, `${NAME:-default}`, also with a doubled dollar sign.
pub(super) struct Expansion {
    pub(super) name: Range<usize>,
    /// Empty if there is none.
    pub(super) default: Range<usize>,
    pub(super) end: usize,
}

pub(super) fn expansion(text: &[u8], i: usize) -> Option<Expansion> {
    if at(text, i) != b'$' {
        return None;
    }
    let start = if at(text, i + 1) == b'$' { i + 2 } else { i + 1 };
    if at(text, start) == b'{' { braced(text, start + 1) } else { bare_name(text, start) }
}

fn name_end(text: &[u8], from: usize) -> usize {
    let mut i = from;
    while at(text, i).is_ascii_alphanumeric() || matches!(at(text, i), b'_' | b'.') {
        i += 1;
    }
    i
}

/// Only names in capitals with an underscore, or a secret's: `$ecretWord1` is a password.
fn bare_name(text: &[u8], start: usize) -> Option<Expansion> {
    let mut end = start;
    while at(text, end).is_ascii_uppercase() || at(text, end).is_ascii_digit() || at(text, end) == b'_' {
        end += 1;
    }
    let name = slice(text, start..end);
    let whole = !(at(text, end).is_ascii_alphanumeric() || at(text, end) >= 0x80);
    let named = name.contains(&b'_')
        || is_one_of(name, &["PASSWORD", "PASS", "SECRET", "TOKEN", "KEY", "PGPASSWORD"]);
    let begins = name.first().is_some_and(|b| !b.is_ascii_digit());
    (whole && named && begins).then_some(Expansion { name: start..end, default: end..end, end })
}

fn braced(text: &[u8], start: usize) -> Option<Expansion> {
    let stop = name_end(text, start);
    let close = closing_brace(text, stop)?;
    let name = start..stop;
    if stop == start {
        return None;
    }
    let none = Expansion { name: name.clone(), default: close..close, end: close + 1 };
    let from = match (at(text, stop), at(text, stop + 1)) {
        (b'}', _) | (b':', b'?') | (b'?', _) => return Some(none),
        (b':', b'-' | b'=' | b'+') => stop + 2,
        // `${env:NAME}` and `${file:path}` are references; with any other name a colon brings a default.
        (b':', _) if is_one_of(slice(text, name.clone()), &["env", "file", "secret", "vault"]) => {
            return Some(none);
        }
        (b'-' | b'=' | b'+' | b':', _) => stop + 1,
        _ => return None,
    };
    Some(Expansion { name, default: from..close, end: close + 1 })
}

/// The brace that closes the one before `from`, on the same line.
fn closing_brace(text: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let limit = text.len().min(from + LONGEST_EXPANSION);
    let mut i = from;
    while i < limit {
        match at(text, i) {
            b'\n' => return None,
            b'{' if at(text, i - 1) == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(i),
            b'}' => depth -= 1,
            _ => {}
        }
        i += 1;
    }
    None
}
