//! A child that outlives a run in a shell. What could go wrong: the run is killed while it holds containers, and no unit
//! of systemd is there to look after it. The child waits for the end of a pipe that only the run holds open; an end
//! without the word of dismissal is a death, and the child undoes what the run has left.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Name of the hidden command that the child runs.
pub const COMMAND: &str = "guardian";

/// Set by units that recover by themselves: there the guardian would only get in the way of `ExecStopPost=`.
const RECOVERED_ELSEWHERE: &str = "TARS_BACKUP_GUARDIAN";

const DISMISSED: &[u8] = b"dismissed";

/// The watching child. Dropped without `dismiss`, it sees the same as after a death, and recovers.
pub struct Guardian {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guardian {
    /// Starts it, unless somebody else recovers.
    pub fn start(exe: &Path, arguments: &[OsString]) -> io::Result<Option<Self>> {
        if std::env::var_os(RECOVERED_ELSEWHERE).is_some_and(|v| v == "no") {
            return Ok(None);
        }
        let mut child = Command::new(exe)
            .arg(COMMAND)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Of its own, so that what ends the run by its process group does not end the guardian too.
            .process_group(0)
            .spawn()?;
        let pipe = child.stdin.take();
        Ok(Some(Self { child, pipe }))
    }

    /// Nothing is left to undo.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // When it is gone already, there is nobody to dismiss.
            let _ = pipe.write_all(DISMISSED);
        }
        let _ = self.child.wait();
    }
}

/// The child's side: returns when the run has ended; whether it was dismissed.
pub fn was_dismissed() -> bool {
    let mut word = Vec::new();
    io::stdin().lock().read_to_end(&mut word).is_ok() && word == DISMISSED
}
