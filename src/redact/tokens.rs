//! Finds secrets by their form alone: PEM blocks, JWTs, keys with a known prefix, hashes of passwords, long random text.
//!
//! What could go wrong: a digest, a path or a long name is taken for a key and the file becomes unreadable. The tests
//! for random text therefore ask for much: length, all classes of characters, and frequent changes between them.

use super::PLACEHOLDER;
use super::decode::{at, slice};
use std::ops::Range;

/// Begins of keys that services hand out, and how many characters must follow at least.
const PREFIXES: &[(&str, usize)] = &[
    ("AKIA", 16),
    ("ASIA", 16),
    ("AGE-SECRET-KEY-1", 8),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghu_", 20),
    ("ghs_", 20),
    ("ghr_", 20),
    ("github_pat_", 20),
    ("glpat-", 16),
    ("xoxb-", 16),
    ("xoxp-", 16),
    ("xoxa-", 16),
    ("xapp-", 16),
    ("sk-", 20),
    ("sk_live_", 16),
    ("sk_test_", 16),
    ("rk_live_", 16),
    ("hf_", 20),
    ("AIza", 30),
    ("SG.", 20),
    ("npm_", 20),
    ("pypi-", 20),
    ("dckr_pat_", 16),
    ("hvs.", 20),
    ("whsec_", 16),
];

/// Begins of password hashes; a dollar sign may be doubled in a compose file.
const HASHES: &[&str] =
    &["apr1", "1", "2a", "2b", "2y", "5", "6", "y", "argon2i", "argon2id", "argon2d", "scrypt"];

/// What long random text is called.
pub(super) const RANDOM: &str = "random text";

/// All finds, with what each is.
pub(super) fn find(text: &[u8]) -> Vec<(Range<usize>, &'static str)> {
    let mut found = Vec::new();
    prefixed(text, &mut found);
    jwts(text, &mut found);
    hashes(text, &mut found);
    random(text, &mut found);
    found.retain(|(range, _)| {
        memchr::memmem::find(slice(text, range.clone()), PLACEHOLDER.as_bytes()).is_none()
    });
    found
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn run_end(text: &[u8], from: usize, more: &[u8]) -> usize {
    let mut i = from;
    while i < text.len() && (is_token_byte(at(text, i)) || more.contains(&at(text, i))) {
        i += 1;
    }
    i
}

fn prefixed(text: &[u8], found: &mut Vec<(Range<usize>, &'static str)>) {
    let mut i = 0;
    while i < text.len() {
        let fresh = i == 0 || !at(text, i - 1).is_ascii_alphanumeric();
        let rest = slice(text, i..text.len());
        let hit = PREFIXES.iter().filter(|_| fresh).find(|(p, _)| starts(rest, p));
        if let Some((prefix, least)) = hit {
            let from = i + prefix.len();
            let end = run_end(text, from, b".");
            let body = slice(text, from..end).trim_ascii_end();
            // Words after `sk-` are a name; a key has digits or capitals.
            let keylike = body.iter().any(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
            if body.len() >= *least && keylike {
                found.push((i..end, "service key"));
                i = end;
                continue;
            }
        }
        i += 1;
    }
}

/// Identities of age may be written in either case, the others only as listed.
fn starts(text: &[u8], prefix: &str) -> bool {
    let head = slice(text, 0..prefix.len());
    head == prefix.as_bytes() || (prefix.starts_with("AGE-") && head.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn jwts(text: &[u8], found: &mut Vec<(Range<usize>, &'static str)>) {
    let mut done = 0;
    for start in memchr::memmem::find_iter(text, b"eyJ") {
        if start < done || (start > 0 && at(text, start - 1).is_ascii_alphanumeric()) {
            continue;
        }
        let head = run_end(text, start, b"");
        let body = run_end(text, head + 1, b"");
        done = head;
        if head >= start + 8 && at(text, head) == b'.' && body > head + 5 {
            done = run_end(text, start, b".");
            found.push((start..done, "JWT"));
        }
    }
}

fn hashes(text: &[u8], found: &mut Vec<(Range<usize>, &'static str)>) {
    let mut i = 0;
    while let Some(n) = memchr::memchr(b'$', slice(text, i..text.len())) {
        let start = i + n;
        let name = if at(text, start + 1) == b'$' { start + 2 } else { start + 1 };
        i = name;
        let close = run_end(text, name, b"");
        if at(text, close) != b'$' || !HASHES.iter().any(|h| slice(text, name..close) == h.as_bytes()) {
            continue;
        }
        let end = run_end(text, close, b"./+=$,");
        if end > close + 16 {
            found.push((start..end, "password hash"));
            i = end;
        }
    }
}

/// The bodies of PEM blocks, with what each is; their first and last lines stay.
pub(super) fn pem(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut i = 0;
    let mut ends = true;
    while let Some(n) = memchr::memmem::find(slice(text, i..text.len()), b"-----BEGIN ") {
        let label = i + n + 11;
        let rest = slice(text, label..text.len().min(label + 64));
        let Some(n) = memchr::memmem::find(rest, b"-----") else {
            i = label;
            continue;
        };
        let start = label + n + 5;
        let end =
            if ends { memchr::memmem::find(slice(text, start..text.len()), b"-----END ") } else { None };
        ends = end.is_some();
        let end = end.map_or_else(|| run_end(text, start, b"+/=\\ \t\r\n#"), |n| start + n);
        let body = trim_body(text, start, end);
        i = end;
        let done = super::judge::is_redacted(slice(text, body.clone()));
        if !body.is_empty() && !done {
            found.push(body);
        }
    }
    found
}

/// Without white space, comment marks and written line ends (`\n`) at both ends.
fn trim_body(text: &[u8], start: usize, end: usize) -> Range<usize> {
    let (mut start, mut end) = (start, end);
    while start < end {
        match (at(text, start), at(text, start + 1)) {
            (b'\\', b'n' | b'r') => start += 2,
            (b, _) if b.is_ascii_whitespace() || b == b'#' => start += 1,
            _ => break,
        }
    }
    let start = start.min(end);
    while end > start {
        let written =
            end >= start + 2 && at(text, end - 2) == b'\\' && matches!(at(text, end - 1), b'n' | b'r');
        if written {
            end -= 2;
        } else if at(text, end - 1).is_ascii_whitespace() || at(text, end - 1) == b'#' {
            end -= 1;
        } else {
            break;
        }
    }
    start..end
}

fn random(text: &[u8], found: &mut Vec<(Range<usize>, &'static str)>) {
    let mut i = 0;
    while i < text.len() {
        if !is_token_byte(at(text, i)) && !matches!(at(text, i), b'+' | b'/') {
            i += 1;
            continue;
        }
        let end = run_end(text, i, b"+/");
        let run = i..end;
        i = end + 1;
        if run.len() < 24 || is_public(text, &run) {
            continue;
        }
        let padding = slice(text, end..text.len()).iter().take(2).take_while(|b| **b == b'=').count();
        // Padding ends base64; a `=` in the middle of a line is an assignment.
        let padded = padding > 0 && !is_token_byte(at(text, end + padding));
        random_run(text, run, if padded { padding } else { 0 }, found);
    }
}

/// Digests, recipients and public keys: long, but meant to be read.
fn is_public(text: &[u8], run: &Range<usize>) -> bool {
    let body = slice(text, run.clone());
    let before = slice(text, run.start.saturating_sub(24)..run.start);
    let word =
        before.strip_suffix(b":").map(|b| b.rsplit(|c| !c.is_ascii_alphanumeric()).next().unwrap_or(b));
    let digest = word.is_some_and(|w| {
        [&b"sha1"[..], b"sha256", b"sha384", b"sha512", b"md5", b"blake2b", b"blake3"]
            .iter()
            .any(|name| w.eq_ignore_ascii_case(name))
    });
    let integrity = [&b"sha256-"[..], b"sha384-", b"sha512-"].iter().any(|p| body.starts_with(p));
    let recipient = body.starts_with(b"age1") && body.len() == 62;
    let ssh = body.starts_with(b"AAAA") && is_ssh(before);
    digest || integrity || recipient || ssh
}

fn is_ssh(before: &[u8]) -> bool {
    let word = before.trim_ascii_end().rsplit(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
    [&b"ssh-"[..], b"ecdsa-", b"sk-ssh-"].iter().any(|p| memchr::memmem::find(word, p).is_some())
}

/// Hides a run as a whole if it is random as base64, else the random parts between its marks.
fn random_run(text: &[u8], run: Range<usize>, padding: usize, found: &mut Vec<(Range<usize>, &'static str)>) {
    let body = slice(text, run.clone());
    let shape = Shape::of(body);
    if shape.is_base64(padding) && !is_words(body) {
        found.push((run.start..run.end + padding, RANDOM));
        return;
    }
    let mut start = run.start;
    for part in body.split(|b| !b.is_ascii_alphanumeric()) {
        let end = start + part.len();
        let shape = Shape::of(part);
        if shape.is_hex() || shape.is_random() {
            let tail = if end == run.end { padding } else { 0 };
            found.push((start..end + tail, RANDOM));
        }
        start = end + 1;
    }
}

/// A path or a name: most of its parts are words, or numbers.
fn is_words(body: &[u8]) -> bool {
    let parts: Vec<&[u8]> = body.split(|b| !b.is_ascii_alphanumeric()).filter(|p| !p.is_empty()).collect();
    let plain = |p: &&&[u8]| {
        let letters = p.iter().filter(|b| b.is_ascii_alphabetic()).count();
        let head = slice(p, 1..p.len());
        let one_case =
            head.iter().all(|b| !b.is_ascii_uppercase()) || p.iter().all(|b| !b.is_ascii_lowercase());
        let digits_last = p.iter().skip_while(|b| b.is_ascii_alphabetic()).all(u8::is_ascii_digit);
        one_case && (letters == 0 || digits_last) && p.len() < 24
    };
    parts.len() > 2 && parts.iter().filter(plain).count() * 4 >= parts.len() * 3
}

/// How the letters and digits of a text are mixed.
#[derive(Default)]
struct Shape {
    len: usize,
    marks: usize,
    lower: usize,
    upper: usize,
    digit: usize,
    hex: usize,
    /// Neighbours of different classes, and all neighbours.
    changes: usize,
    pairs: usize,
    entropy: f64,
}

impl Shape {
    fn of(text: &[u8]) -> Self {
        let mut shape = Self::default();
        let mut counts = [0_u32; 256];
        let mut before = 0;
        for &byte in text {
            let class = match byte {
                b'a'..=b'z' => 1,
                b'A'..=b'Z' => 2,
                b'0'..=b'9' => 3,
                _ => 0,
            };
            shape.hex += usize::from(byte.is_ascii_hexdigit());
            match class {
                1 => shape.lower += 1,
                2 => shape.upper += 1,
                3 => shape.digit += 1,
                _ => shape.marks += 1,
            }
            if class != 0 && before != 0 {
                shape.pairs += 1;
                shape.changes += usize::from(class != before);
            }
            before = class;
            if let Some(count) = counts.get_mut(usize::from(byte)) {
                *count += 1;
            }
        }
        shape.len = shape.lower + shape.upper + shape.digit;
        shape.entropy = entropy(&counts, text.len());
        shape
    }

    /// `changes` make at least `percent` of all neighbours.
    fn mixed(&self, percent: usize) -> bool {
        self.changes * 100 >= self.pairs * percent
    }

    fn is_hex(&self) -> bool {
        let letters = self.lower + self.upper;
        self.len >= 32 && self.marks == 0 && self.hex == self.len && self.digit > 0 && letters > 0
    }

    /// One part without marks.
    fn is_random(&self) -> bool {
        if self.len < 24 || self.entropy < 3.5 {
            return false;
        }
        if self.lower > 0 && self.upper > 0 && self.digit > 0 {
            return self.mixed(if self.len >= 32 { 36 } else { 40 });
        }
        let digits = self.digit * 100 >= self.len * 8 && self.digit * 100 <= self.len * 60;
        self.len >= 32 && ((digits && self.mixed(20)) || (self.digit == 0 && self.mixed(42)))
    }

    /// The whole run, marks included.
    fn is_base64(&self, padding: usize) -> bool {
        let classes = self.lower > 0 && self.upper > 0 && self.digit > 0;
        let least = if padding > 0 { 20 } else { 24 };
        let few_marks = self.marks <= (self.len / 8).max(2);
        // Secret keys of AWS have 40 characters; names of just that length are rare.
        let changes = match self.len + self.marks {
            40 => 33,
            32.. => 36,
            _ => 42,
        };
        classes && self.len >= least && few_marks && self.mixed(changes) && self.entropy > 3.6
    }
}

/// Bits per character.
fn entropy(counts: &[u32; 256], len: usize) -> f64 {
    let total = f64::from(u32::try_from(len).unwrap_or(u32::MAX).max(1));
    let share = |count: u32| f64::from(count) / total;
    counts.iter().filter(|c| **c > 0).map(|&c| -share(c) * share(c).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn harmless_long_words_are_not_random() {
        for text in [
            "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "postgres:16@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "123e4567-e89b-12d3-a456-426614174000",
            "/var/lib/docker/volumes/tars-home_postgres_data/_data/base/16384",
            "AbstractSingletonProxyFactoryBean2Configuration",
            "com.example.service.internal.AuthenticationProviderFactory",
            "this_is_a_very_long_snake_case_identifier_with_words_v2",
            "registry.example.org/Team1/Project2/Image3/Tag4/backend",
            "12345678901234567890123456789012345678901234567890",
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
            "v1.0.10-home+build.20240131.abcdef1-x86_64-unknown-linux-gnu",
            "tars-backup-20240131_020000.manifest.json",
            "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
            "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQC7vbqajDRetAhM1Yz8kCq0 me@host",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
            "SHA256:uNiVztksCsDhcc0u9e8BrqpXVUhrLJ0IVKMmyN2bCk4",
            "sk-learn-based-something-with-words",
            "pg_isready -U tars -d tars_home || exit 1",
            "TARS_HOME_BACKUP_RETENTION_DAYS_FOR_MONTHLY_TIER",
            "myapp-7d4b9c6f5d-x2x9z",
            "https://github.com/tars-home/tars-backup/blob/main/docs/backup-recovery.md",
        ] {
            assert!(find(text.as_bytes()).is_empty(), "{text}: {:?}", find(text.as_bytes()));
        }
    }

    #[test]
    fn known_forms_are_found() {
        for text in [
            "AKIAIOSFODNN7EXAMPLE",
            "AGE-SECRET-KEY-1QQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQPQQQ",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
            "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
            "9f86d081884c7d659a2feaa0c55ad015",
            "9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZmdoaWprbG1ubw==",
            "q3Zk+1x/Yt8vBn2LpW7sDf4Gh6JkQe9RtUy0IoPa5c4=",
            "$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
            "$$apr1$$abcdefgh$$ABCDEFGHIJKLMNOPQRSTU.",
            "sk-proj-abcDEF123456abcDEF123456",
            "kX9mQ2vL8nR4tY7wB3zC5dF1",
        ] {
            assert!(!find(text.as_bytes()).is_empty(), "{text}");
        }
    }
}
