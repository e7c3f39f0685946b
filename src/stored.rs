//! The archive of a backup as a store holds it: one object, or parts that `cat` joins. What could go wrong: parts that
//! are not all there; so they count from 1 without a gap, and their length together is compared with the manifest.

use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use crate::cancel::Cancel;
use crate::id::part_file;
use crate::store::{Object, Store, StoreError, object};

/// Where the bytes of an archive lie, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stored {
    objects: Vec<Object>,
}

/// SHA-256 of each part that was read to its end, hex.
pub type PartSums = Arc<Mutex<Vec<String>>>;

impl Stored {
    /// What a listing shows of `archive`; None where it shows nothing of it.
    pub fn find(listing: &[Object], archive: &str) -> Option<Self> {
        let named = |name: &str| listing.iter().find(|o| o.name == name).cloned();
        let objects: Vec<Object> = match named(archive) {
            Some(whole) => vec![whole],
            None => (1..).map_while(|n| named(&part_file(archive, n))).collect(),
        };
        (!objects.is_empty()).then_some(Self { objects })
    }

    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|o| o.bytes).sum()
    }

    /// Whether it lies in parts, be it only one.
    pub fn in_parts(&self, archive: &str) -> bool {
        self.objects.first().is_some_and(|o| o.name != archive)
    }

    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// The archive as one stream, and the digests of its objects as they were read.
    pub fn open<'a>(
        &self,
        store: &'a dyn Store,
        dir: &str,
        cancel: &Cancel,
    ) -> Result<(Box<dyn Read + Send + 'a>, PartSums), StoreError> {
        let mut paths: Vec<String> = self.objects.iter().map(|o| object(dir, &o.name)).collect();
        paths.reverse();
        let sums = PartSums::default();
        let mut joined = Joined {
            store,
            paths,
            now: None,
            hasher: Sha256::new(),
            sums: sums.clone(),
            cancel: cancel.clone(),
        };
        // An object that is not there is told as what it is, not as an error of reading.
        joined.next()?;
        Ok((Box::new(joined), sums))
    }
}

struct Joined<'a> {
    store: &'a dyn Store,
    /// What is still to be opened, the next one last.
    paths: Vec<String>,
    now: Option<Box<dyn Read + Send>>,
    hasher: Sha256,
    sums: PartSums,
    cancel: Cancel,
}

impl Joined<'_> {
    /// Opens the next object. One that does not open stays the next one: whoever reads on gets it or an error, never
    /// what comes after it.
    fn next(&mut self) -> Result<(), StoreError> {
        if let Some(path) = self.paths.last() {
            self.now = Some(self.store.open(path, &self.cancel)?);
            self.paths.pop();
        }
        Ok(())
    }
}

impl Read for Joined<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(now) = &mut self.now else {
                if self.paths.is_empty() {
                    return Ok(0);
                }
                self.next().map_err(io::Error::other)?;
                continue;
            };
            let n = now.read(buf)?;
            if n > 0 {
                self.hasher.update(&buf[..n]);
                return Ok(n);
            }
            let sum = std::mem::take(&mut self.hasher).finalize();
            if let Ok(mut sums) = self.sums.lock() {
                sums.push(hex::encode(sum));
            }
            self.now = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FsStore;
    use crate::store::tests::{Odd, down};
    use std::path::Path;

    fn listed(names: &[(&str, u64)]) -> Vec<Object> {
        names.iter().map(|(name, bytes)| Object { name: (*name).to_owned(), bytes: *bytes }).collect()
    }

    #[test]
    fn parts_count_from_one_without_a_gap() {
        let all = listed(&[("a.p0001", 3), ("a.p0002", 2), ("a.p0004", 9), ("b", 1)]);
        let found = Stored::find(&all, "a").unwrap();
        assert_eq!((found.bytes(), found.in_parts("a")), (5, true));
        assert_eq!(Stored::find(&all, "c"), None);
        assert_eq!(Stored::find(&listed(&[("a.p0002", 2)]), "a"), None);
        assert!(!Stored::find(&all, "b").unwrap().in_parts("b"));
    }

    #[test]
    fn parts_read_as_one_stream_each_with_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("a.p0001", "one "), ("a.p0002", "two")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let store = FsStore::unmarked(dir.path(), Path::new("/nonexistent"));
        let found = Stored::find(&listed(&[("a.p0001", 4), ("a.p0002", 3)]), "a").unwrap();
        let (mut reader, sums) = found.open(&store, "", &Cancel::default()).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        let want: Vec<String> = ["one ", "two"].iter().map(|t| hex::encode(Sha256::digest(t))).collect();
        assert_eq!(*sums.lock().unwrap(), want);
    }

    #[test]
    fn a_part_that_went_away_is_an_error_and_no_end() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.p0001"), "one").unwrap();
        let store = FsStore::unmarked(dir.path(), Path::new("/nonexistent"));
        let found = Stored::find(&listed(&[("a.p0001", 3), ("a.p0002", 3)]), "a").unwrap();
        let (mut reader, _) = found.open(&store, "", &Cancel::default()).unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
        let gone = Stored { objects: listed(&[("z", 1)]) };
        assert!(gone.open(&store, "", &Cancel::default()).err().is_some_and(|e| e.is_not_found()));
    }

    #[test]
    fn whoever_reads_on_after_an_error_misses_no_part() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.p0001", "a.p0002", "a.p0003"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let store = Odd::new(dir.path());
        let found = Stored::find(&listed(&[("a.p0001", 7), ("a.p0002", 7), ("a.p0003", 7)]), "a").unwrap();
        let mut left = 2;
        store.on(move |verb, object| {
            let fails = verb == "open" && object == "a.p0002" && left > 0;
            left -= i32::from(fails);
            fails.then(|| down(object))
        });
        let (mut reader, sums) = found.open(&store, "", &Cancel::default()).unwrap();
        let mut text = String::new();
        for _ in 0..2 {
            let broken = reader.read_to_string(&mut text).unwrap_err();
            let told = (&store as &dyn Store).broken("a", broken);
            assert!(matches!(told, StoreError::Down { .. }), "{told:?}");
        }
        reader.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("a.p0002a.p0003"), "{text}");
        assert_eq!(sums.lock().unwrap().len(), 3);
    }
}
