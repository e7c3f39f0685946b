//! Names that reach a file system or an archive. What could go wrong: a name that climbs out of its directory, so every
//! name is parsed once, here, and only these types are joined to paths.

use std::fmt;
use std::str::FromStr;

use jiff::{Timestamp, civil, tz::TimeZone};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "tars-backup-";

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error("{0:?} is not a backup name (tars-backup-YYYYMMDD_HHMMSS, UTC)")]
    Backup(String),
    #[error(
        "{0:?} is not a usable name: letters, digits, '_' and '-' (up to 64, starting with a letter or digit)"
    )]
    Source(String),
}

/// `tars-backup-YYYYMMDD_HHMMSS`, in UTC: sorts by time, and is the same everywhere in the world.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupName(String);

impl BackupName {
    pub fn at(time: Timestamp) -> Self {
        let t = time.to_zoned(TimeZone::UTC);
        Self(format!(
            "{PREFIX}{:04}{:02}{:02}_{:02}{:02}{:02}",
            t.year(),
            t.month(),
            t.day(),
            t.hour(),
            t.minute(),
            t.second()
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The moment that it names.
    pub fn time(&self) -> Timestamp {
        let digits = self.0.trim_start_matches(PREFIX);
        // Every name was parsed once; one that no calendar has is from the beginning of time.
        civil::DateTime::strptime("%Y%m%d_%H%M%S", digits)
            .ok()
            .and_then(|t| t.to_zoned(TimeZone::UTC).ok())
            .map_or(Timestamp::UNIX_EPOCH, |t| t.timestamp())
    }

    /// File name of the unsealed archive.
    pub fn archive(&self) -> String {
        format!("{}.tar.gz", self.0)
    }

    /// File name of the sealed archive.
    pub fn sealed_archive(&self) -> String {
        format!("{}.age", self.archive())
    }

    /// The same of the one or the other.
    pub fn archive_as(&self, sealed: bool) -> String {
        if sealed { self.sealed_archive() } else { self.archive() }
    }

    pub fn manifest_file(&self) -> String {
        format!("{}.manifest.json", self.0)
    }

    /// File name of a small object that tells of it.
    pub fn beside(&self, what: &str) -> String {
        format!("{}.{what}", self.0)
    }

    pub fn receipt_file(&self) -> String {
        self.beside("receipt.json")
    }

    /// The backup whose object this file name is, if it is one.
    pub fn of_object(file_name: &str) -> Option<Self> {
        let end = file_name.find('.')?;
        file_name[..end].parse().ok()
    }
}

/// Name of the file that holds the digest of `archive`.
pub fn sha256_file(archive: &str) -> String {
    format!("{archive}.sha256")
}

/// Name of the file that holds the digests of the parts of `archive`.
pub fn parts_file(archive: &str) -> String {
    format!("{archive}.parts")
}

/// Name of a part of `archive`, counted from 1: `cat ….p[0-9]*` joins them in the order in which a shell lists them.
pub fn part_file(archive: &str, number: usize) -> String {
    format!("{archive}.p{number:04}")
}

/// Whether `file` has the name of a part of `archive`.
pub fn is_part(file: &str, archive: &str) -> bool {
    let number = file.strip_prefix(archive).and_then(|rest| rest.strip_prefix(".p"));
    number.is_some_and(|n| n.len() >= 4 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The highest number of a part that still sorts behind all others.
pub const MAX_PARTS: u64 = 9999;

impl FromStr for BackupName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = || NameError::Backup(s.to_owned());
        let stamp = s.strip_prefix(PREFIX).ok_or_else(bad)?.as_bytes();
        let shape = stamp.len() == 15
            && stamp.iter().enumerate().all(|(i, b)| if i == 8 { *b == b'_' } else { b.is_ascii_digit() });
        if !shape {
            return Err(bad());
        }
        let number =
            |from: usize, to: usize| stamp[from..to].iter().fold(0i32, |n, b| n * 10 + i32::from(b - b'0'));
        let field = |from, to| i8::try_from(number(from, to)).map_err(|_| bad());
        let year = i16::try_from(number(0, 4)).map_err(|_| bad())?;
        civil::DateTime::new(
            year,
            field(4, 6)?,
            field(6, 8)?,
            field(9, 11)?,
            field(11, 13)?,
            field(13, 15)?,
            0,
        )
        .map_err(|_| bad())?;
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for BackupName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<BackupName> for String {
    fn from(n: BackupName) -> String {
        n.0
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Moves the cursor, breaks the line, or turns the direction of what is read.
pub fn misleads(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A foreign name for a person: nothing in it can move the cursor or break a line.
pub fn show_name(name: &[u8]) -> String {
    escape(&String::from_utf8_lossy(name), misleads)
}

/// A text of several lines for a person: what could move the cursor is escaped, its lines stay.
pub fn show_text(text: &str) -> String {
    escape(text, |c| misleads(c) && !matches!(c, '\n' | '\t'))
}

fn escape(text: &str, hide: impl Fn(char) -> bool) -> String {
    text.chars()
        .flat_map(|c| if hide(c) { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Whether `path` can name a file of an archive: parts that stay below a directory, and nothing that misleads.
pub fn is_member(path: &str) -> bool {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
    path.split('/').all(plain) && !path.contains(char::is_control)
}

/// Name of a source, a store or a tier, as written in the configuration. Safe as a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let good = s.len() <= 64
            && s.starts_with(|c: char| c.is_ascii_alphanumeric())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        if good { Ok(Self(s.to_owned())) } else { Err(NameError::Source(s.to_owned())) }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A foreign name (database, tenant, file) made safe as one file name: percent-encoded outside `[A-Za-z0-9._-]`,
/// and never `.` or `..`.
pub fn encode(name: &str) -> String {
    let dots = name.bytes().all(|b| b == b'.');
    let mut out = String::with_capacity(name.len());
    for b in name.bytes() {
        let plain = b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-') || (b == b'.' && !dots);
        if plain {
            out.push(b as char);
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_name_is_utc_and_parses_back() {
        let t: Timestamp = "2026-03-29T01:30:05+01:00".parse().unwrap();
        let n = BackupName::at(t);
        assert_eq!(n.as_str(), "tars-backup-20260329_003005");
        assert_eq!(n.as_str().parse::<BackupName>().unwrap(), n);
        assert_eq!(n.time(), t);
        assert_eq!(BackupName::of_object("tars-backup-20260329_003005.tar.gz.sha256"), Some(n));
    }

    #[test]
    fn impossible_dates_and_paths_are_refused() {
        for bad in [
            "tars-backup-20261301_000000",
            "tars-backup-20260230_000000",
            "tars-backup-20260101_246000",
            "tars-backup-2026010_0000000",
            "tars-backup-20260101_000000/../x",
            "../tars-backup-20260101_000000",
            "",
        ] {
            assert!(bad.parse::<BackupName>().is_err(), "{bad}");
        }
        for bad in ["", "../x", "a/b", ".hidden", "a b", "-x", "é"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn foreign_names_become_one_safe_file_name() {
        assert_eq!(encode("tars_home"), "tars_home");
        assert_eq!(encode("Zweite-DB é"), "Zweite-DB%20%C3%A9");
        assert_eq!(encode(".."), "%2E%2E");
        assert_eq!(encode("a/b"), "a%2Fb");
    }
}
