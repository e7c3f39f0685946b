//! Finds the credentials in an URL: `scheme://user:password@host`.
//!
//! What could go wrong: a password with `@`, `/`, `?` or `#` in it, not encoded, ends the search too early. So the last
//! `@` before something like a host is taken, as far as the text before it can be a password at all.

use super::PLACEHOLDER;
use super::decode::{at, slice};
use super::text::Context;
use std::ops::Range;

pub(super) struct UserInfo {
    pub(super) range: Range<usize>,
    /// False for a mere login name: hidden, but not looked for elsewhere.
    pub(super) searched: bool,
}

/// Login names of these are no secret; they go with a key.
const SHELL_SCHEMES: &[&str] = &["ssh", "sftp", "scp", "rsync", "git", "git+ssh", "svn+ssh"];

pub(super) fn userinfo(text: &[u8], context: Context) -> Vec<UserInfo> {
    let mut found = Vec::new();
    let mut starts: Vec<usize> = memchr::memmem::find_iter(text, b"://").collect();
    // Right behind another one, `user://x` is a user and a password that begins with slashes.
    starts.dedup_by(|next, colon| scheme_start(text, *next) == *colon + 3);
    let mut counted = 0;
    let mut odd = [false; 3];
    for (n, &colon) in starts.iter().enumerate() {
        let scheme_start = scheme_start(text, colon);
        for &byte in slice(text, counted..scheme_start) {
            count_quote(byte, &mut odd);
        }
        counted = counted.max(scheme_start);
        let limit = starts.get(n + 1).map_or(text.len(), |&next| scheme_limit(text, next, colon + 3));
        let region =
            Region { from: colon + 3, limit, scheme: scheme_start, odd, markup: context == Context::Markup };
        let scheme = slice(text, scheme_start..colon);
        let value = matches!(context, Context::Value | Context::Item);
        let end = region.end(text, false);
        let info = credentials(scheme, text, colon + 3..end);
        // `user:a password with spaces@host` is not an URL any more, but a password still.
        let broken = info.is_none() && value && bad_port(slice(text, colon + 3..end));
        found.extend(if broken {
            credentials(scheme, text, colon + 3..region.end(text, true))
        } else {
            info
        });
    }
    found.extend(go_dsn(text));
    found
}

fn count_quote(byte: u8, odd: &mut [bool; 3]) {
    match byte {
        b'"' => odd[0] = !odd[0],
        b'\'' => odd[1] = !odd[1],
        b'`' => odd[2] = !odd[2],
        b'\n' => *odd = [false; 3],
        _ => {}
    }
}

fn scheme_start(text: &[u8], colon: usize) -> usize {
    let mut i = colon;
    while i > 0
        && colon - i < 32
        && (at(text, i - 1).is_ascii_alphanumeric() || matches!(at(text, i - 1), b'+' | b'.' | b'-'))
    {
        i -= 1;
    }
    i
}

/// Where the next URL begins. A separator before it is not part of this one.
fn scheme_limit(text: &[u8], next: usize, least: usize) -> usize {
    scheme_start(text, next).max(least)
}

/// The part of a text that an URL may take.
struct Region {
    from: usize,
    limit: usize,
    /// Where its scheme begins.
    scheme: usize,
    /// Quotes that are open there.
    odd: [bool; 3],
    /// The text is written with its quotes.
    markup: bool,
}

impl Region {
    fn end(&self, text: &[u8], spaces: bool) -> usize {
        let before = self.scheme.checked_sub(1).map_or(0, |i| at(text, i));
        let mut i = self.from;
        while i < self.limit {
            let byte = at(text, i);
            let stop = match byte {
                b'"' => self.markup || self.odd[0],
                b'\'' => self.odd[1],
                b'`' => self.odd[2],
                b'>' => before == b'<',
                b')' => before == b'(',
                b' ' => !spaces,
                _ => byte < 0x20,
            };
            if stop {
                break;
            }
            i += 1;
        }
        i
    }
}

fn credentials(scheme: &[u8], text: &[u8], region: Range<usize>) -> Option<UserInfo> {
    let body = slice(text, region.clone());
    let end = userinfo_end(scheme, body)?;
    let info = slice(body, 0..end);
    if info.is_empty() || memchr::memmem::find(info, PLACEHOLDER.as_bytes()).is_some() {
        return None;
    }
    let start = region.start;
    match info.iter().position(|b| *b == b':') {
        // With an empty or a dummy password the name is the token.
        Some(n) if matches!(slice(info, n + 1..end), b"" | b"x" | b"x-oauth-basic") => {
            (n > 0).then_some(UserInfo { range: start..start + n, searched: is_token(slice(info, 0..n)) })
        }
        Some(n) => Some(UserInfo { range: start + n + 1..start + end, searched: true }),
        None => {
            let shell = SHELL_SCHEMES.iter().any(|s| scheme.eq_ignore_ascii_case(s.as_bytes()));
            let token = is_token(info);
            (!shell || token).then_some(UserInfo { range: start..start + end, searched: token })
        }
    }
}

/// A login name is short or has no digit.
fn is_token(name: &[u8]) -> bool {
    name.len() >= 24 || (name.len() >= 12 && name.iter().any(u8::is_ascii_digit))
}

/// The position of the `@` that ends the user information.
fn userinfo_end(scheme: &[u8], body: &[u8]) -> Option<usize> {
    let authority_end = body.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(body.len());
    let authority = slice(body, 0..authority_end);
    let plain = authority.iter().rposition(|b| *b == b'@');
    let last = last_at(body);
    match plain {
        Some(n) => {
            let sloppy =
                slice(body, 0..n).contains(&b':') || bad_port(slice(authority, n + 1..authority_end));
            Some(if sloppy { last.map_or(n, |l| l.max(n)) } else { n })
        }
        None => {
            let web =
                ["http", "https", "ws", "wss"].iter().any(|s| scheme.eq_ignore_ascii_case(s.as_bytes()));
            let colon = authority.iter().position(|b| *b == b':')?;
            let ipv6 = authority.first() == Some(&b'[');
            let sloppy = !ipv6 && (!web || colon == 0 || bad_port(authority));
            last.filter(|_| sloppy)
        }
    }
}

/// `host:port` whose port is none.
fn bad_port(host: &[u8]) -> bool {
    if host.first() == Some(&b'[') {
        return false;
    }
    host.iter().position(|b| *b == b':').is_some_and(|n| {
        let port = slice(host, n + 1..host.len());
        // More hosts may follow; a variable may stand for the port.
        let port = port.split(|b| *b == b',').next().unwrap_or_default();
        port.is_empty() || !(port.iter().all(u8::is_ascii_digit) || port.starts_with(b"$"))
    })
}

/// The last `@` with something like a host behind it, outside of `?name=value`.
fn last_at(body: &[u8]) -> Option<usize> {
    let first = memchr::memchr(b'@', body)?;
    // A `?x=` before any `@` is part of the password.
    let query =
        (first..body.len()).find(|&i| at(body, i) == b'?' && is_query(slice(body, i + 1..body.len())));
    let limit = query.unwrap_or(body.len());
    slice(body, 0..limit).iter().enumerate().rev().filter(|(_, b)| **b == b'@').map(|(n, _)| n).find(|&n| {
        let next = at(body, n + 1);
        n + 1 >= body.len() || next.is_ascii_alphanumeric() || next >= 0x80 || b"[${<%/_(".contains(&next)
    })
}

fn is_query(text: &[u8]) -> bool {
    let name = text.iter().take_while(|b| b.is_ascii_alphanumeric() || b"_-.".contains(b)).count();
    // A query of a password that holds `?x=` ends before its `@`, so it still must have a host before it.
    name > 0 && at(text, name) == b'='
}

/// `user:password@host:25/x` and nothing else. An image with its digest looks nearly the same.
pub(super) fn bare(text: &[u8]) -> Option<Range<usize>> {
    let start = if text.starts_with(b"//") { 2 } else { 0 };
    let at_sign = memchr::memrchr(b'@', text)?;
    let colon = start + memchr::memchr(b':', slice(text, start..at_sign))?;
    let (user, host) = (slice(text, start..colon), slice(text, at_sign + 1..text.len()));
    let password = slice(text, colon + 1..at_sign);
    let name = |part: &[u8], more: &[u8]| part.iter().all(|b| b.is_ascii_alphanumeric() || more.contains(b));
    let scheme = ["mailto", "npm", "acct", "xmpp", "sip", "sips"].iter().any(|s| user == s.as_bytes());
    let digest = [&b"sha256:"[..], b"sha512:"].iter().any(|p| host.starts_with(p));
    let other =
        [b"://", PLACEHOLDER.as_bytes(), b"${"].iter().any(|m| memchr::memmem::find(text, m).is_some());
    let spaced = text.iter().any(u8::is_ascii_whitespace);
    let host_fits = host.iter().any(u8::is_ascii_alphabetic) && name(host, b".-_:/") && !digest;
    let fits = !user.is_empty() && name(user, b"._%+-") && !password.is_empty() && host_fits;
    (fits && !spaced && !scheme && !other).then_some(colon + 1..at_sign)
}

/// `user:password@tcp(host:3306)/db`, as Go programs write it.
fn go_dsn(text: &[u8]) -> Vec<UserInfo> {
    let mut found = Vec::new();
    for mark in [&b"@tcp("[..], b"@unix(", b"@tcp6("] {
        let mut least = 0;
        for end in memchr::memmem::find_iter(text, mark) {
            let mut start = end;
            while start > least
                && !at(text, start - 1).is_ascii_whitespace()
                && !b"\"'=".contains(&at(text, start - 1))
            {
                start -= 1;
            }
            least = end;
            let info = slice(text, start..end);
            let scheme = memchr::memmem::find(info, b"://").is_some();
            let redacted = memchr::memmem::find(info, PLACEHOLDER.as_bytes()).is_some();
            if let Some(n) = info.iter().position(|b| *b == b':').filter(|_| !scheme && !redacted) {
                found.push(UserInfo { range: start + n + 1..end, searched: true });
            }
        }
    }
    found
}
