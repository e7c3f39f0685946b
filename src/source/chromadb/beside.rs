//! A copy looked at while it passes: its database is put aside for its facts, and the times of its vectors are noted. What
//! could go wrong: a copy that opens and lacks half of its vectors, or has them newer than the list of what they are.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::archive::read::walk_tar_watched;
use crate::archive::tree::Watch;
use crate::chroma::copy::{self, CopyFacts, DATABASE};
use crate::docker::Place;
use crate::format::tarwalk::Mtime;
use crate::hint::chain;
use crate::source::{CheckError, Member, SourceError, check_tree};

/// Written after the vectors that it lists.
pub(super) const VECTOR_LIST: &str = "/index_metadata.pickle";
/// How each such list ends.
const PICKLE_END: u8 = b'.';

/// Puts the database of a copy aside while it passes, and notes which files there are.
pub(super) struct Beside<F> {
    make: F,
    now: Option<File>,
    database: Option<PathBuf>,
    kept: Vec<PathBuf>,
    files: BTreeMap<String, Mtime>,
    /// The file that is passing now, and its last byte so far.
    passing: (String, Option<u8>),
    /// Lists of vectors that do not end as such a list does.
    cut: Vec<String>,
    failed: Option<SourceError>,
}

/// Why no facts can be had from a copy.
pub(super) enum Problem {
    Put(SourceError),
    Copy(copy::CopyError),
    NoDatabase,
    NoVectors(String),
}

impl Problem {
    pub fn for_copy_of(self, place: &Place) -> SourceError {
        let what = place.describe();
        match self {
            Self::Put(e) => e,
            Self::Copy(e) => {
                let hint = crate::hint::Hint::hint(&e);
                SourceError::Bad { what, why: chain(&e), hint }
            }
            Self::NoDatabase => SourceError::hinted(
                what,
                format!("there is no {DATABASE} in it"),
                "is it the directory where the server keeps its data? set path of the source",
            ),
            Self::NoVectors(file) => SourceError::bad(
                what,
                format!("its database needs the vectors in {file}, which are not there"),
            ),
        }
    }

    fn of_stored(self) -> CheckError {
        CheckError::Bad(match self {
            // That there is no room for it here is no fault of what is stored.
            Self::Put(SourceError::Write { source, .. }) => return CheckError::Read(source),
            Self::Put(e) => chain(&e),
            Self::Copy(e) => chain(&e),
            Self::NoDatabase => format!("there is no {DATABASE} in it"),
            Self::NoVectors(file) => format!("the vectors in {file} are missing"),
        })
    }
}

impl<F: FnMut(&str) -> Result<(PathBuf, File), SourceError>> Beside<F> {
    pub fn new(make: F) -> Self {
        Self {
            make,
            now: None,
            database: None,
            kept: Vec::new(),
            files: BTreeMap::new(),
            passing: (String::new(), None),
            cut: Vec::new(),
            failed: None,
        }
    }

    fn keep(&mut self, name: &str, size: u64) -> Result<(), SourceError> {
        let (path, file) = (self.make)(name)?;
        file.set_len(size).map_err(SourceError::write(name))?;
        if name == DATABASE {
            self.database = Some(path.clone());
        }
        self.kept.push(path);
        self.now = Some(file);
        Ok(())
    }

    /// Facts of the copy that has passed.
    pub fn facts(mut self) -> Result<CopyFacts, Problem> {
        let facts = match (self.failed.take(), self.database.take()) {
            (Some(e), _) => Err(Problem::Put(e)),
            (None, None) => Err(Problem::NoDatabase),
            (None, Some(database)) => copy::facts(&database).map_err(Problem::Copy),
        };
        for path in &self.kept {
            // They go with the staging directory, at the latest.
            let _ = std::fs::remove_file(path);
        }
        let facts = facts?;
        if let Some(missing) = facts.vector_files().find(|f| !self.files.contains_key(f)) {
            return Err(Problem::NoVectors(missing));
        }
        Ok(facts)
    }

    /// A directory of vectors that the server was writing when it was held, and when it last did. It writes the vectors
    /// first and then the list of what they are; with vectors newer than the list, the two do not fit together, and no
    /// server opens the copy.
    pub fn torn(&self) -> Option<(String, Mtime)> {
        for (path, listed) in self.files.iter().filter(|(p, _)| p.ends_with(VECTOR_LIST)) {
            let directory = path.strip_suffix(VECTOR_LIST)?;
            let inside =
                self.files.range(directory.to_owned()..).take_while(|(p, _)| p.starts_with(directory));
            let written = inside.filter(|(p, _)| p.ends_with(".bin")).map(|(_, at)| *at).max()?;
            if written > *listed || self.cut.contains(path) {
                return Some((directory.to_owned(), written.max(*listed)));
            }
        }
        None
    }
}

impl<F: FnMut(&str) -> Result<(PathBuf, File), SourceError>> Watch for Beside<F> {
    fn file(&mut self, path: &[u8], size: u64, mtime: Mtime) {
        let Ok(path) = std::str::from_utf8(path) else { return };
        self.files.insert(path.to_owned(), mtime);
        self.passing = (path.to_owned(), None);
        let wanted = path.strip_prefix(DATABASE).is_some_and(|rest| matches!(rest, "" | "-journal" | "-wal"));
        if wanted && let Err(e) = self.keep(path, size) {
            self.failed.get_or_insert(e);
        }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.passing.1 = bytes.last().copied().or(self.passing.1);
        if let Some(file) = &self.now
            && let Err(e) = file.write_all_at(bytes, offset)
        {
            self.failed.get_or_insert(SourceError::write(DATABASE)(e));
        }
    }

    fn end(&mut self, _: bool) {
        self.now = None;
        let (path, last) = std::mem::take(&mut self.passing);
        if path.ends_with(VECTOR_LIST) && last != Some(PICKLE_END) {
            self.cut.push(path);
        }
    }
}

pub(super) fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    if member.name.ends_with(".jsonl") {
        return check_export(member);
    }
    // Made by the bash script, which copied a running server: only whole as a tar.
    if member.component.facts.is_empty() {
        return check_tree(member);
    }
    let scratch = member.scratch;
    let mut beside = Beside::new(|name| {
        let path = scratch.join(name);
        let mut new = OpenOptions::new();
        new.write(true).create(true).truncate(true).mode(0o600);
        Ok((path.clone(), new.open(path).map_err(SourceError::write(name))?))
    });
    let entries = walk_tar_watched(&mut member.body, &mut beside).map_err(|e| CheckError::Bad(chain(&e)))?;
    let facts = &member.component.facts;
    if facts.get("entries").and_then(Value::as_u64) != Some(entries) {
        return Err(CheckError::Bad(format!("it has {entries} entries, the manifest says otherwise")));
    }
    let torn = beside.torn().map(|(directory, _)| directory);
    let found = beside.facts().map_err(Problem::of_stored)?;
    if let Some(directory) = torn
        && facts.get("newer_than_its_list").and_then(Value::as_str) != Some(directory.as_str())
    {
        return Err(CheckError::Bad(format!(
            "the vectors in {directory} are newer than the list of them: the server was writing them"
        )));
    }
    if facts.get("collections") != Some(&json!(found.collections)) {
        return Err(CheckError::Bad("its collections are not those of the manifest".into()));
    }
    Ok(())
}

/// One line for the collection, and one for each record.
/// Counts the lines that pass.
struct Lines<'a> {
    body: &'a mut dyn Read,
    count: u64,
    last: u8,
}

impl Read for Lines<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.body.read(buffer)?;
        self.count += memchr::memchr_iter(b'\n', &buffer[..n]).count() as u64;
        self.last = buffer[..n].last().copied().unwrap_or(self.last);
        Ok(n)
    }
}

fn check_export(member: &mut Member<'_>) -> Result<(), CheckError> {
    let mut passing = Lines { body: &mut *member.body, count: 0, last: b'\n' };
    let mut values = 0;
    // Values are passed over as they are read: a record may be of any length.
    let buffered = BufReader::with_capacity(1 << 20, &mut passing);
    for value in serde_json::Deserializer::from_reader(buffered).into_iter::<IgnoredAny>() {
        value.map_err(|e| match e.is_io() {
            true => CheckError::Read(e.into()),
            false => CheckError::Bad(format!("it is not made of JSON lines: {e}")),
        })?;
        values += 1;
    }
    let (lines, last) = (passing.count, passing.last);
    let export = member.component.facts.get("export").and_then(Value::as_object);
    let fact = export.and_then(|e| e.iter().find(|(name, _)| name.as_str() == member.name)).map(|(_, v)| v);
    let records = fact.and_then(|f| f.get("records")).and_then(Value::as_u64);
    if last != b'\n' || values != lines || records.map(|r| r + 1) != Some(lines) {
        return Err(CheckError::Bad(format!("it has {lines} lines, the manifest says otherwise")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_that_are_newer_than_their_list_are_found() {
        let at = |secs: i64, nanos: u32| Mtime { secs, nanos };
        let torn = |bin: Mtime, list: Mtime, end: &[u8]| {
            let mut beside = Beside::new(|_| Err(SourceError::bad("x", "y")));
            for (path, mtime, data) in [
                ("s1/data_level0.bin", bin, b"v".as_slice()),
                ("s1/header.bin", at(1, 0), b"h"),
                ("s1/index_metadata.pickle", list, end),
                // Newer, but of another collection.
                ("s2/data_level0.bin", at(99, 0), b"v"),
                ("s2/index_metadata.pickle", at(99, 0), b"p."),
            ] {
                beside.file(path.as_bytes(), data.len() as u64, mtime);
                beside.data(0, data);
                beside.end(true);
            }
            beside.torn().map(|(directory, _)| directory)
        };
        assert_eq!(torn(at(5, 7), at(5, 7), b"p."), None);
        assert_eq!(torn(at(5, 6), at(5, 7), b"p."), None);
        assert_eq!(torn(at(5, 8), at(5, 7), b"p."), Some("s1".to_owned()));
        assert_eq!(torn(at(5, 7), at(5, 7), b"p"), Some("s1".to_owned()), "a list that was cut");
        assert_eq!(torn(at(5, 7), at(5, 7), b""), Some("s1".to_owned()), "an empty list");
    }

    #[test]
    fn no_room_for_the_database_is_no_fault_of_what_is_stored() {
        let mut tar = vec![0; 512];
        tar[..14].copy_from_slice(DATABASE.as_bytes());
        tar[100..108].copy_from_slice(b"0000600\0");
        tar[108..116].copy_from_slice(b"0000000\0");
        tar[116..124].copy_from_slice(b"0000000\0");
        tar[124..136].copy_from_slice(b"00000000001\0");
        tar[136..148].copy_from_slice(b"00000000000\0");
        tar[148..156].copy_from_slice(b"        ");
        tar[156] = b'0';
        tar[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = tar.iter().map(|b| u32::from(*b)).sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.resize(512 * 4, 0);
        tar[512] = b'x';
        let facts = serde_json::from_str(r#"{"entries": 1}"#).unwrap();
        let component = crate::manifest::Component { facts, ..crate::legacy::bare("chromadb") };
        let scratch = std::path::Path::new("/nonexistent");
        let mut body = tar.as_slice();
        let mut member = Member { name: "chromadb.tar", body: &mut body, component: &component, scratch };
        let found = check(&mut member);
        assert!(matches!(&found, Err(CheckError::Read(e)) if e.raw_os_error().is_some()), "{found:?}");
    }

    #[test]
    fn the_database_is_put_aside_with_its_holes_and_missing_vectors_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut beside = Beside::new(|name| {
            let path = dir.path().join(name);
            Ok((path.clone(), File::create(path).map_err(SourceError::write(name))?))
        });
        beside.file(b"deep/chroma.sqlite3", 3, Mtime::default());
        beside.data(0, b"not");
        beside.end(true);
        beside.file(b"chroma.sqlite3", 8192, Mtime::default());
        beside.data(4096, b"x");
        beside.end(true);
        let text = std::fs::read(dir.path().join(DATABASE)).unwrap();
        assert_eq!((text.len(), text[0], text[4096]), (8192, 0, b'x'));
        assert!(matches!(beside.facts(), Err(Problem::Copy(_))));
    }
}
