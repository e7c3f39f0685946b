//! Is the disk that is meant really there? What could go wrong: an unmounted NAS looks like an empty directory and
//! fills the root disk; and a hung one never answers, so it is asked by a child that may be left behind.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Interrupted};

/// Name of the hidden command that a probing child runs.
pub const PROBE_COMMAND: &str = "probe-path";

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("{path} is not there")]
    Missing { path: PathBuf },
    #[error("{path} does not answer: no reply within {seconds} s")]
    Hung { path: PathBuf, seconds: u64 },
    #[error("nothing is mounted at {path} or above it")]
    NotMounted { path: PathBuf },
    #[error("cannot look at {path}")]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl crate::hint::Hint for MountError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Interrupted(_) => None,
            Self::Missing { path } | Self::NotMounted { path } | Self::Look { path, .. } => {
                Some(format!("mount it, then see: findmnt --target {}", path.display()))
            }
            Self::Hung { path, .. } => {
                Some(format!("the mount hangs; look at the server, or umount -l {}", path.display()))
            }
        }
    }
}

/// How long a mount may take to answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// The same where nothing depends on the answer.
const SHORT_DEADLINE: Duration = Duration::from_secs(3);

/// Asks a child about `path`: its exit status, and what it wrote.
fn ask(
    exe: &Path,
    path: &Path,
    deadline: Duration,
    cancel: &Cancel,
) -> Result<(Option<i32>, Vec<u8>), MountError> {
    let look = |source| MountError::Look { path: path.to_owned(), source };
    let mut child = Command::new(exe)
        .arg(PROBE_COMMAND)
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(look)?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(look)? {
            break status;
        }
        let stop = cancel.check();
        if stop.is_err() || started.elapsed() > deadline {
            // A child that hangs in the kernel cannot be waited for; it ends when the mount answers.
            let _ = child.kill();
            stop?;
            return Err(MountError::Hung { path: path.to_owned(), seconds: deadline.as_secs() });
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // It has ended, and a path fits into a pipe.
    let mut said = Vec::new();
    if let Some(mut from) = child.stdout.take() {
        from.read_to_end(&mut said).map_err(look)?;
    }
    Ok((status.code(), said))
}

/// Asks a child whether `path` answers; then, where `must_be_mount` is set, whether it lies on a mounted disk.
pub fn check(exe: &Path, path: &Path, must_be_mount: bool, cancel: &Cancel) -> Result<(), MountError> {
    let look = |source| MountError::Look { path: path.to_owned(), source };
    let (code, _) = ask(exe, path, DEADLINE, cancel)?;
    match code {
        Some(0) => {}
        Some(PROBE_MISSING) => return Err(MountError::Missing { path: path.to_owned() }),
        _ => return Err(look(io::Error::other("not a directory that can be read"))),
    }
    if must_be_mount && mount_point(path).map_err(look)? == Path::new("/") {
        return Err(MountError::NotMounted { path: path.to_owned() });
    }
    Ok(())
}

/// The directory `path` without the links on its way, told by a child; None where it is not there or does not answer soon.
pub fn real_path(exe: &Path, path: &Path) -> Option<PathBuf> {
    match ask(exe, path, SHORT_DEADLINE, &Cancel::default()) {
        Ok((Some(0), said)) if !said.is_empty() => Some(PathBuf::from(OsString::from_vec(said))),
        _ => None,
    }
}

const PROBE_MISSING: i32 = 3;

/// What the probing child does; its result is its exit status, and the real path on its output.
pub fn probe(path: &Path) -> u8 {
    match std::fs::read_dir(path) {
        Ok(mut entries) => {
            let _ = entries.next();
            if let Ok(real) = std::fs::canonicalize(path) {
                // Whoever does not want to know has gone.
                let mut out = io::stdout();
                let _ = out.write_all(real.as_os_str().as_bytes()).and_then(|()| out.flush());
            }
            0
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => PROBE_MISSING as u8,
        Err(_) => 1,
    }
}

/// The mount that `path` lies on. A place at which only the disk around it shows itself again is no mount: the sandbox of
/// a unit makes one of every path that may be written, and a NAS that is not there must not look as if it were.
pub fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let real = std::fs::canonicalize(path)?;
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(innermost(&table, &real))
}

/// A line of the table: which directory of which disk is to be seen where.
struct Mounted {
    device: Vec<u8>,
    root: PathBuf,
    at: PathBuf,
}

impl Mounted {
    fn read(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').take(5).collect();
        let [_, _, device, root, at] = fields[..] else { return None };
        let path = |field| PathBuf::from(OsString::from_vec(unescape(field)));
        Some(Self { device: device.to_vec(), root: path(root), at: path(at) })
    }

    /// Shows what would be seen there without it.
    fn repeats(&self, around: &Self) -> bool {
        let inside = self.at.strip_prefix(&around.at).unwrap_or(&self.at);
        self.device == around.device && self.root == around.root.join(inside)
    }
}

fn innermost(mountinfo: &[u8], real: &Path) -> PathBuf {
    let lines = mountinfo.split(|b| *b == b'\n').filter_map(Mounted::read);
    let mut above: Vec<Mounted> = lines.filter(|m| real.starts_with(&m.at)).collect();
    // Of several at one place the last lies on top, and stays the last: the order is stable.
    above.sort_by_key(|m| m.at.components().count());
    while let Some(inner) = above.pop() {
        above.retain(|m| m.at != inner.at);
        if !above.last().is_some_and(|around| inner.repeats(around)) {
            return inner.at;
        }
    }
    PathBuf::from("/")
}

/// The kernel writes blanks and backslashes in paths as `\040` and the like.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let octal = field
            .get(i + 1..i + 4)
            .filter(|d| field[i] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(d) = octal {
            out.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
            i += 4;
        } else {
            out.push(field[i]);
            i += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_wins_and_blanks_are_understood() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /mnt/my\\040nas rw - nfs x rw\n3 1 0:6 / /mnt rw - tmpfs t rw\n";
        assert_eq!(innermost(table, Path::new("/mnt/my nas/backups")), Path::new("/mnt/my nas"));
        assert_eq!(innermost(table, Path::new("/mnt/other")), Path::new("/mnt"));
        assert_eq!(innermost(table, Path::new("/mntx")), Path::new("/"));
    }

    /// As a unit sees it whose sandbox may write to /mnt and /mnt/my nas/backups.
    #[test]
    fn a_disk_that_shows_itself_again_is_no_mount() {
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n2 1 8:1 /mnt /mnt rw - ext4 /dev/a rw\n";
        assert_eq!(innermost(table, Path::new("/mnt/my nas/backups")), Path::new("/"));
        let bound = b"3 2 8:1 /mnt/my\\040nas/backups /mnt/my\\040nas/backups rw - ext4 /dev/a rw\n";
        let both = [&table[..], bound].concat();
        assert_eq!(innermost(&both, Path::new("/mnt/my nas/backups/daily")), Path::new("/"));

        let nas = b"3 2 0:5 /export /mnt/my\\040nas rw - nfs x rw\n\
                    4 3 0:5 /export/backups /mnt/my\\040nas/backups rw - nfs x rw\n";
        let mounted = [&table[..], nas].concat();
        assert_eq!(innermost(&mounted, Path::new("/mnt/my nas/backups")), Path::new("/mnt/my nas"));
        // Another directory of the same disk is meant to be there.
        let other = b"3 2 8:1 /data/nas /mnt/my\\040nas rw - ext4 /dev/a rw\n";
        let bound = [&table[..], other].concat();
        assert_eq!(innermost(&bound, Path::new("/mnt/my nas/backups")), Path::new("/mnt/my nas"));
        // What lies on top counts.
        let stacked = [&mounted[..], b"5 3 0:7 / /mnt/my\\040nas rw - tmpfs t rw\n"].concat();
        assert_eq!(innermost(&stacked, Path::new("/mnt/my nas/x")), Path::new("/mnt/my nas"));
    }
}
