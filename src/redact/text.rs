//! Finds secrets in running text: assignments, commands, URLs, headers, whatever the format around them.
//!
//! What could go wrong: the same text is searched once per find, and a long line takes minutes. Each search therefore
//! goes on behind what it has taken, or takes only single words from there on.

use super::assign::Assignments;
use super::command::commands;
use super::decode::{at, slice};
use super::judge::{expansion, is_redacted, judge, references};
use super::words::{Class, Keys};
use super::{tokens, url};
use std::ops::Range;

/// What kind of text is searched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Context {
    /// Written for people.
    Comment,
    /// Lines of some configuration.
    Lines,
    /// One value, on one line.
    Value,
    /// An element of a list: may be one assignment from end to end.
    Item,
    /// Keys, brackets and whatever stands between values: no assignments.
    Markup,
}

/// A find, as a range of the text that was searched.
pub(super) struct Hit {
    pub(super) range: Range<usize>,
    pub(super) label: String,
    /// Looked for in all files; else only hidden here.
    pub(super) searched: bool,
    /// Known by nothing but its randomness.
    pub(super) random: bool,
}

pub(super) fn scan(text: &[u8], context: Context, keys: &Keys) -> Vec<Hit> {
    let mut hits = Vec::new();
    for info in url::userinfo(text, context) {
        let password = slice(text, info.range.clone());
        let class = Class { password: true, path_ok: false, plural: false };
        let parts =
            references(class, password).unwrap_or_else(|| std::iter::once(0..password.len()).collect());
        hits.extend(parts.into_iter().map(|r| Hit {
            range: r.start + info.range.start..r.end + info.range.start,
            label: "password in a URL".to_string(),
            searched: info.searched,
            random: false,
        }));
    }
    hits.extend(tokens::find(text).into_iter().map(|(range, label)| Hit {
        range,
        label: label.to_string(),
        searched: true,
        random: false,
    }));
    defaults(text, keys, &mut hits);
    if matches!(context, Context::Value | Context::Item) {
        let label = "password in an address";
        hits.extend(url::bare(text).map(|range| Hit {
            range,
            label: label.to_string(),
            searched: true,
            random: false,
        }));
    }
    if context != Context::Markup {
        acl_passwords(text, &mut hits);
        authorizations(text, &mut hits);
        Assignments::new(text, context, keys, &mut hits).run();
        commands(text, 0..text.len(), context, keys, 0, &mut hits);
    }
    hits
}

/// `${SECRET:-default}` wherever it stands.
fn defaults(text: &[u8], keys: &Keys, hits: &mut Vec<Hit>) {
    for i in memchr::memmem::find_iter(text, b"${") {
        let Some(unit) = expansion(text, i).filter(|u| !u.default.is_empty()) else { continue };
        let name = slice(text, unit.name);
        let Some(class) = keys.class(name) else { continue };
        for part in judge(class, slice(text, unit.default.clone())) {
            hits.push(Hit {
                range: part.start + unit.default.start..part.end + unit.default.start,
                label: lossy(name),
                searched: true,
                random: false,
            });
        }
    }
}

/// `user default on >password ~* +@all` of Redis.
fn acl_passwords(text: &[u8], hits: &mut Vec<Hit>) {
    const RULES: [&[u8]; 4] = [b" on", b" ~", b" +@", b" allkeys"];
    let mut start = 0;
    for line in text.split_inclusive(|b| *b == b'\n') {
        let user = memchr::memmem::find(line, b"user ").is_some_and(|n| n < 24);
        if user && RULES.iter().any(|rule| memchr::memmem::find(line, rule).is_some()) {
            for n in memchr::memmem::find_iter(line, b" >") {
                let word = slice(line, n + 2..line.len());
                let len = word.iter().position(u8::is_ascii_whitespace).unwrap_or(word.len());
                let from = start + n + 2;
                if len > 0 && !is_redacted(slice(word, 0..len)) {
                    let label = "password of a Redis user".to_string();
                    hits.push(Hit { range: from..from + len, label, searched: true, random: false });
                }
            }
        }
        start += line.len();
    }
}

pub(super) fn lossy(name: &[u8]) -> String {
    let end = name.len().min(80);
    String::from_utf8_lossy(slice(name, 0..end)).into_owned()
}

/// `Bearer …` and `Basic …` outside of any key.
fn authorizations(text: &[u8], hits: &mut Vec<Hit>) {
    let mut i = 0;
    while i < text.len() {
        let fresh = i == 0 || !at(text, i - 1).is_ascii_alphanumeric();
        let scheme = ["Bearer", "Basic"]
            .iter()
            .find(|s| fresh && slice(text, i..i + s.len()).eq_ignore_ascii_case(s.as_bytes()));
        let Some(scheme) = scheme else {
            i += 1;
            continue;
        };
        let mut start = i + scheme.len();
        let behind = start;
        while matches!(at(text, start), b' ' | b'\t') {
            start += 1;
        }
        let mut end = start;
        while at(text, end).is_ascii_alphanumeric()
            || (end < text.len() && b"-._~+/=".contains(&at(text, end)))
        {
            end += 1;
        }
        i = end.max(behind);
        let token = slice(text, start..end);
        let header = ends_with_header(slice(text, behind.saturating_sub(64)..behind - scheme.len()));
        let found = if *scheme == "Basic" { is_basic(token) } else { is_bearer(token) };
        if start > behind && !token.is_empty() && (header || found) {
            hits.push(Hit { range: start..end, label: (*scheme).to_string(), searched: true, random: false });
        }
    }
}

fn ends_with_header(before: &[u8]) -> bool {
    let name = before.trim_ascii_end();
    let name = name.strip_suffix(b":").or(name.strip_suffix(b"=")).unwrap_or(name).trim_ascii_end();
    let name = name.strip_suffix(b"\"").or(name.strip_suffix(b"'")).unwrap_or(name);
    let n = name.len().saturating_sub(b"authorization".len());
    slice(name, n..name.len()).eq_ignore_ascii_case(b"authorization")
}

fn is_basic(token: &[u8]) -> bool {
    let pair = super::decode::base64(token).is_some_and(|d| d.contains(&b':') && d.is_ascii());
    token.len() >= 4 && (token.ends_with(b"=") || pair)
}

/// `Bearer tokens` and `bearer authentication` are prose.
fn is_bearer(token: &[u8]) -> bool {
    let trimmed = token.strip_suffix(b".").unwrap_or(token);
    trimmed.len() >= 6 && (!is_wordlike(trimmed) || trimmed.len() >= 24)
}

/// A word of prose: letters in one case or with one capital, perhaps a mark behind.
pub(super) fn is_wordlike(word: &[u8]) -> bool {
    let body = word.strip_suffix(b".").or(word.strip_suffix(b",")).unwrap_or(word);
    let tail = slice(body, 1..body.len());
    let lower = tail.iter().all(|b| b.is_ascii_lowercase() || *b == b'-');
    let upper = body.iter().all(|b| b.is_ascii_uppercase() || *b == b'_');
    at(body, 0).is_ascii_alphabetic() && (lower || upper) && body.len() <= 16
}
