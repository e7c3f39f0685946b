//! One run at a time on a host. What could go wrong: a lock that outlives its holder and stops all backups, so it is a
//! kernel lock on an open file; the file itself stays and only tells who holds it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Interrupted};
use crate::hint::Hint;
use crate::progress::{Event, Monitor, What};
use crate::staging::make_private;

#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("another run holds the lock: {holder}")]
    Busy { holder: String },
    #[error("cannot use the lock file {path}")]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for GuardError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => {
                Some("wait for it with --wait 1h, or look: systemctl status 'tars-backup*'".into())
            }
            Self::Unusable { .. } => {
                Some("run as root, or set agent.runtime_dir to a directory that you own".into())
            }
            _ => None,
        }
    }
}

/// Proof that this process is the only run. Released when it is dropped, or when we die.
#[must_use = "the lock is released when the guard is dropped"]
pub struct RunGuard {
    _lock: File,
}

const LOCK_FILE: &str = "lock";
const RETRY: Duration = Duration::from_millis(200);

impl RunGuard {
    /// Takes the lock in `dir` for `verb`, waiting up to `wait` for its holder.
    pub fn acquire(
        dir: &Path,
        verb: &str,
        wait: Duration,
        cancel: &Cancel,
        monitor: &dyn Monitor,
    ) -> Result<Self, GuardError> {
        let path = dir.join(LOCK_FILE);
        let unusable = |source| GuardError::Unusable { path: path.clone(), source };
        make_private(dir).map_err(|e| match e {
            crate::staging::StagingError::Unusable { source, .. }
            | crate::staging::StagingError::Write { source, .. } => unusable(source),
        })?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(unusable)?;
        let started = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(source)) => return Err(unusable(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = holder(&mut file);
            if started.elapsed() >= wait {
                return Err(GuardError::Busy { holder });
            }
            if !told {
                monitor.event(Event::new(What::Waiting, format!("Waiting for another run: {holder}")));
                told = true;
            }
            monitor.waiting(&format!("waiting for {holder}"));
            cancel.check()?;
            std::thread::sleep(RETRY.min(wait.saturating_sub(started.elapsed())));
        }
        let text = format!(
            "pid {} {verb} since {}\n",
            std::process::id(),
            jiff::Timestamp::now().strftime("%FT%TZ")
        );
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(unusable)?;
        Ok(Self { _lock: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let text = text.trim();
    if read.is_err() || text.is_empty() {
        "a process that has not said its name yet".to_owned()
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tests::Quiet;

    #[test]
    fn a_second_run_is_refused_and_told_who_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        let first = RunGuard::acquire(dir.path(), "backup", Duration::ZERO, &cancel, &Quiet).unwrap();
        let Err(GuardError::Busy { holder }) =
            RunGuard::acquire(dir.path(), "verify", Duration::ZERO, &cancel, &Quiet)
        else {
            panic!("the lock was given twice");
        };
        assert!(holder.contains(&format!("pid {} backup since", std::process::id())), "{holder}");
        drop(first);
        // A program that another test is just starting may have the open file for a moment.
        let wait = Duration::from_secs(10);
        let _again = RunGuard::acquire(dir.path(), "verify", wait, &cancel, &Quiet).unwrap();
    }

    #[test]
    fn waiting_ends_when_the_run_is_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let cancel = Cancel::default();
        let _first = RunGuard::acquire(dir.path(), "backup", Duration::ZERO, &cancel, &Quiet).unwrap();
        cancel.request(crate::exit::Signal::Terminate);
        let second = RunGuard::acquire(dir.path(), "backup", Duration::from_secs(60), &cancel, &Quiet);
        assert!(matches!(second, Err(GuardError::Interrupted(_))));
    }
}
