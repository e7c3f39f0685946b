//! What the last run of each tier found, on this machine: a sealed backup tells no facts in the clear, and a source that
//! compares itself with the run before needs them. What could go wrong: somebody relies on it; so it is a hint that may
//! be gone at any time, and no decision about a backup is made from it.

use std::fs::DirBuilder;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::manifest::Manifest;

pub struct LastRun {
    dir: PathBuf,
    file: PathBuf,
}

impl LastRun {
    pub fn of(state_dir: &Path, tier: &str) -> Self {
        let dir = state_dir.join("last-run");
        let file = dir.join(format!("{tier}.json"));
        Self { dir, file }
    }

    /// What was noted; None where nothing readable is.
    pub fn recall(&self) -> Option<Manifest> {
        Manifest::read_inner(&std::fs::read(&self.file).ok()?).ok()
    }

    /// Readable by its owner alone: it names tables and files.
    pub fn note(&self, manifest: &Manifest) -> io::Result<()> {
        let text = manifest.to_inner().map_err(io::Error::other)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&text)?;
        file.persist(&self.file).map_err(|e| e.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_last_one_of_a_tier_is_told_privately() {
        let dir = tempfile::tempdir().unwrap();
        let hot = LastRun::of(dir.path(), "hot");
        assert!(hot.recall().is_none());
        hot.note(&sample()).unwrap();
        let second = Manifest { host: "second".into(), ..sample() };
        hot.note(&second).unwrap();
        assert_eq!(hot.recall().unwrap().host, "second");
        assert!(LastRun::of(dir.path(), "warm").recall().is_none());
        assert_eq!(std::fs::metadata(&hot.file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&hot.file, "{").unwrap();
        assert!(hot.recall().is_none());
    }
}
