//! The package of tars-backup in a store, for the day when only the store is left. What could go wrong: a package that is not
//! whole, or not the one that was put there. So it is checked before, read back after, and its digest lies beside it.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::{Put, Store, StoreError, object};
use crate::cancel::Cancel;
use crate::format::deb::DebName;

/// Directory at the root of a store, shared by all machines.
pub const TOOLS: &str = "tools";

/// A package that lies in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub file: String,
    /// As it was when it was put there; None where its digest is gone.
    pub sha256: Option<String>,
}

/// What became of a package that was to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeping {
    /// It is there, and was before.
    Was,
    /// It is there now; these older ones are gone.
    Is { gone: Vec<String> },
}

fn sum_of(file: &str) -> String {
    format!("{file}.sha256")
}

/// Brings a package, checked by the caller, to the store, and removes other versions of it for the same architecture.
pub fn keep(
    store: &dyn Store,
    file: &str,
    bytes: &[u8],
    moved: &dyn Fn(u64),
    cancel: &Cancel,
) -> Result<Keeping, StoreError> {
    let sha256 = hex::encode(Sha256::digest(bytes));
    let path = object(TOOLS, file);
    let there = store.list(TOOLS, cancel)?;
    let same = there.iter().any(|o| o.name == file && o.bytes == bytes.len() as u64)
        && digest_in(store, file, cancel)?.as_deref() == Some(&sha256);
    if same && reads_back(store, &path, &sha256, cancel)? {
        return Ok(Keeping::Was);
    }
    // A digest beside another package would be believed.
    store.delete(&object(TOOLS, &sum_of(file)))?;
    store.put(&path, &mut &bytes[..], bytes.len() as u64, Put::Replace, cancel, moved)?;
    if !reads_back(store, &path, &sha256, cancel)? {
        return Err(StoreError::ReadBack { store: store.name().to_owned(), object: path });
    }
    let line = format!("{sha256}  {file}\n");
    store.put_small(&object(TOOLS, &sum_of(file)), line.as_bytes(), Put::Replace)?;
    let mut gone = Vec::new();
    for old in there.iter().filter(|o| o.name != file && replaces(file, &o.name)) {
        store.delete(&object(TOOLS, &sum_of(&old.name)))?;
        store.delete(&object(TOOLS, &old.name))?;
        gone.push(old.name.clone());
    }
    Ok(Keeping::Is { gone })
}

/// Whether the file `new` is another version of what `old` is.
fn replaces(new: &str, old: &str) -> bool {
    match (DebName::parse(new), DebName::parse(old)) {
        (Some(new), Some(old)) => (new.package, new.architecture) == (old.package, old.architecture),
        _ => false,
    }
}

/// Packages that lie there.
pub fn kept(store: &dyn Store, cancel: &Cancel) -> Result<Vec<Kept>, StoreError> {
    let mut all = Vec::new();
    for found in store.list(TOOLS, cancel)?.into_iter().filter(|o| DebName::parse(&o.name).is_some()) {
        let sha256 = digest_in(store, &found.name, cancel)?;
        all.push(Kept { file: found.name, sha256 });
    }
    Ok(all)
}

fn digest_in(store: &dyn Store, file: &str, cancel: &Cancel) -> Result<Option<String>, StoreError> {
    let text = match store.read_small(&object(TOOLS, &sum_of(file)), cancel) {
        Ok(text) => String::from_utf8(text).unwrap_or_default(),
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e),
    };
    let sum = text.split_whitespace().next().unwrap_or_default();
    Ok((sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit())).then(|| sum.to_owned()))
}

fn reads_back(store: &dyn Store, path: &str, sha256: &str, cancel: &Cancel) -> Result<bool, StoreError> {
    let mut from = store.open(path, cancel)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        cancel.check()?;
        match from.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hasher.finalize()) == sha256),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(store.broken(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::FsStore;
    use crate::store::tests::{Odd, down};

    fn files(dir: &std::path::Path) -> Vec<String> {
        let mut all: Vec<String> = std::fs::read_dir(dir.join(TOOLS))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn another_version_takes_the_place_of_the_old_one_and_leaves_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let store = FsStore::unmarked(dir.path(), std::path::Path::new("/nonexistent"));
        let cancel = Cancel::default();
        let keep = |file: &str, bytes: &[u8]| keep(&store, file, bytes, &|_| (), &cancel).unwrap();
        assert_eq!(keep("a_1_amd64.deb", b"one"), Keeping::Is { gone: vec![] });
        assert_eq!(keep("a_1_amd64.deb", b"one"), Keeping::Was);
        assert_eq!(keep("a_1_arm64.deb", b"arm"), Keeping::Is { gone: vec![] });
        std::fs::write(dir.path().join("tools/notes.txt"), "mine").unwrap();
        assert_eq!(keep("a_2_amd64.deb", b"two"), Keeping::Is { gone: vec!["a_1_amd64.deb".into()] });
        let there = files(dir.path());
        let sums =
            ["a_1_arm64.deb", "a_1_arm64.deb.sha256", "a_2_amd64.deb", "a_2_amd64.deb.sha256", "notes.txt"];
        assert_eq!(there, sums);
        let line = std::fs::read_to_string(dir.path().join("tools/a_2_amd64.deb.sha256")).unwrap();
        assert_eq!(line, format!("{}  a_2_amd64.deb\n", hex::encode(Sha256::digest(b"two"))));
        let kept = kept(&store, &cancel).unwrap();
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|k| k.sha256.is_some()));
        // One that was damaged there is put there again, under the same name.
        std::fs::write(dir.path().join("tools/a_2_amd64.deb"), "twO").unwrap();
        assert_eq!(keep("a_2_amd64.deb", b"two"), Keeping::Is { gone: vec![] });
    }

    #[test]
    fn the_old_one_stays_until_the_new_one_is_proved() {
        let dir = tempfile::tempdir().unwrap();
        let odd = Odd::new(dir.path());
        let cancel = Cancel::default();
        keep(&odd, "a_1_amd64.deb", b"one", &|_| (), &cancel).unwrap();
        odd.on(|verb, object| (verb == "read" && object.contains("a_2")).then(|| down(object)));
        assert!(keep(&odd, "a_2_amd64.deb", b"two", &|_| (), &cancel).is_err());
        let there = files(dir.path());
        assert!(
            there.contains(&"a_1_amd64.deb".to_owned()) && there.contains(&"a_1_amd64.deb.sha256".to_owned())
        );
        assert!(!there.contains(&"a_2_amd64.deb.sha256".to_owned()), "{there:?}");
    }
}
