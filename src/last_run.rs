//! What the last run of each tier found and how it ended, on this machine: a sealed backup tells no facts in the clear, and
//! a source that compares itself with the run before needs them. What could go wrong: somebody relies on it; so it is a
//! hint that may be gone at any time. It may make a backup suspect, and never makes one good.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::manifest::Manifest;
use crate::whole_file;

pub struct LastRun {
    /// What it found.
    manifest: PathBuf,
    /// What the last one found that was complete and not suspect.
    measure: PathBuf,
    /// How it ended.
    ended: PathBuf,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub time: Timestamp,
    /// Its exit status.
    pub status: u8,
    /// Its last words.
    pub summary: String,
    /// Nothing was wrong but that a store did not get it: the spool tells whether it has by now.
    #[serde(default)]
    pub only_delivery: bool,
}

impl LastRun {
    pub fn of(state_dir: &Path, tier: &str) -> Self {
        let dir = state_dir.join("last-run");
        let file = format!("{tier}.json");
        Self {
            manifest: dir.join(&file),
            measure: dir.join("measure").join(&file),
            ended: dir.join("ended").join(file),
        }
    }

    /// What was noted; None where nothing readable is.
    pub fn recall(&self) -> Option<Manifest> {
        Manifest::read_inner(&std::fs::read(&self.manifest).ok()?).ok()
    }

    /// Readable by its owner alone: it names tables and files.
    pub fn note(&self, manifest: &Manifest) -> io::Result<()> {
        write(&self.manifest, &manifest.to_inner().map_err(io::Error::other)?)
    }

    /// What sizes can be compared with where no store can be asked.
    pub fn measure(&self) -> Option<Manifest> {
        Manifest::read_inner(&std::fs::read(&self.measure).ok()?).ok()
    }

    pub fn note_measure(&self, manifest: &Manifest) -> io::Result<()> {
        write(&self.measure, &manifest.to_inner().map_err(io::Error::other)?)
    }

    pub fn ended(&self) -> Option<Ended> {
        read(&self.ended)
    }

    pub fn note_end(&self, ended: &Ended) -> io::Result<()> {
        write(&self.ended, &serde_json::to_vec(ended)?)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    whole_file::write(path, text)
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
        assert_eq!(std::fs::metadata(&hot.manifest).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&hot.manifest, "{").unwrap();
        assert!(hot.recall().is_none());
    }

    #[test]
    fn how_it_ended_is_told_beside() {
        let dir = tempfile::tempdir().unwrap();
        let hot = LastRun::of(dir.path(), "hot");
        assert_eq!(hot.ended(), None);
        let ended = Ended {
            time: Timestamp::UNIX_EPOCH,
            status: 2,
            summary: "redis: gone".into(),
            only_delivery: false,
        };
        hot.note_end(&ended).unwrap();
        assert_eq!((hot.ended(), hot.recall().is_some()), (Some(ended), false));
    }
}
