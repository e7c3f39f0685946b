//! A machine that was recovered and that nobody has accepted yet. What could go wrong: it is half there, and its timers
//! already make backups of nothing and delete the good ones; or the old machine lives, and two write to one place. So while
//! a note of the recovery lies on this machine, no run of a timer does anything, and whatever cannot be read counts as one.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::whole_file;

const FILE: &str = "held.json";

/// What was brought back, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldHost {
    pub backup: String,
    /// The machine that the backup is of.
    pub host: String,
    pub since: Option<Timestamp>,
}

impl HeldHost {
    /// The note in any of these directories: a restored configuration may name another one than the machine had before.
    pub fn look(dirs: &[PathBuf]) -> Option<Self> {
        dirs.iter().find_map(|dir| match std::fs::read(dir.join(FILE)) {
            // A directory that is closed to us is somebody else's: no run of ours works there.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => None,
            Err(_) => Some(Self::unknown()),
            Ok(text) => Some(serde_json::from_slice(&text).unwrap_or_else(|_| Self::unknown())),
        })
    }

    fn unknown() -> Self {
        Self { backup: "an unknown backup".into(), host: "an unknown machine".into(), since: None }
    }

    /// On disk when this returns.
    pub fn note(&self, dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        whole_file::write(&dir.join(FILE), &text)
    }

    /// Takes the notes away; whether there was one.
    pub fn clear(dirs: &[PathBuf]) -> io::Result<bool> {
        let mut was = false;
        for dir in dirs {
            match std::fs::remove_file(dir.join(FILE)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => {
                    other?;
                    was = true;
                }
            }
        }
        Ok(was)
    }

    /// In words: what happened to this machine.
    pub fn sentence(&self) -> String {
        let since = self.since.map_or_else(String::new, |t| format!(" at {}", t.strftime("%F %T UTC")));
        format!(
            "this machine was recovered from {} of {}{since}, and is held until somebody accepts it",
            self.backup, self.host
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_holds_until_it_is_taken_away_and_so_does_one_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("none"), dir.path().to_owned()];
        assert_eq!(HeldHost::look(&dirs), None);
        assert!(!HeldHost::clear(&dirs).unwrap());
        let held = HeldHost { backup: "b".into(), host: "h".into(), since: Some(Timestamp::UNIX_EPOCH) };
        held.note(dir.path()).unwrap();
        assert_eq!(HeldHost::look(&dirs), Some(held));
        std::fs::write(dir.path().join(FILE), "").unwrap();
        assert!(HeldHost::look(&dirs).unwrap().sentence().contains("is held"));
        assert!(HeldHost::clear(&dirs).unwrap());
        assert_eq!(HeldHost::look(&dirs), None);
        std::fs::create_dir(dir.path().join(FILE)).unwrap();
        assert!(HeldHost::look(&dirs).is_some());
    }
}
