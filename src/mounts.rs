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

/// The mount that `path` lies on.
pub fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let real = std::fs::canonicalize(path)?;
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(longest_mount(&table, &real))
}

/// One line of `/proc/self/mountinfo`.
struct Mount {
    device: Vec<u8>,
    /// Directory of the mounted file system that is seen there.
    root: PathBuf,
    at: PathBuf,
}

/// Where the disk of `path` is mounted, or will be: by what is mounted now and by /etc/fstab. None: on the root disk.
pub fn expected_mount(path: &Path) -> Option<PathBuf> {
    let table = std::fs::read("/etc/fstab").unwrap_or_default();
    // What is not mounted now cannot be asked, and a directory that is not there has no real path.
    let now = path.ancestors().find_map(|p| mount_point(p).ok());
    innermost(path, now.into_iter().chain(fstab(&table)))
}

fn innermost(path: &Path, mounts: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    mounts
        .filter(|m| m != Path::new("/") && path.starts_with(m))
        .max_by_key(|m| m.as_os_str().as_bytes().len())
}

/// Second column of each line that is no comment.
fn fstab(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    let lines = table.split(|b| *b == b'\n').filter(|l| !l.trim_ascii_start().starts_with(b"#"));
    let second =
        |line: &[u8]| line.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).nth(1).map(unescape);
    lines.filter_map(second).map(|at| PathBuf::from(OsString::from_vec(at)))
}

fn longest_mount(mountinfo: &[u8], real: &Path) -> PathBuf {
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let [_, _, device, root, at, ..] = fields.as_slice() else { return None };
        Some(Mount { device: device.to_vec(), root: path(root), at: path(at) })
    };
    let mut above: Vec<Mount> = mountinfo.split(|b| *b == b'\n').filter_map(line).collect();
    above.retain(|m| real.starts_with(&m.at));
    // The outermost first; of several at one place, the last one covers the others.
    above.sort_by_key(|m| m.at.as_os_str().as_bytes().len());
    while let Some(mount) = above.pop() {
        let under = above.iter().rev().find(|m| m.at != mount.at);
        if !under.is_some_and(|under| mount.shows_the_same_as(under)) {
            return mount.at;
        }
    }
    PathBuf::from("/")
}

impl Mount {
    /// A directory that is mounted on itself, as a sandbox does with each path that may be written: no other disk.
    fn shows_the_same_as(&self, under: &Self) -> bool {
        let Ok(below) = self.at.strip_prefix(&under.at) else { return false };
        self.device == under.device && self.root == under.root.join(below)
    }
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
        assert_eq!(longest_mount(table, Path::new("/mnt/my nas/backups")), Path::new("/mnt/my nas"));
        assert_eq!(longest_mount(table, Path::new("/mnt/other")), Path::new("/mnt"));
        assert_eq!(longest_mount(table, Path::new("/mntx")), Path::new("/"));
    }

    #[test]
    fn a_disk_that_is_not_mounted_now_is_known_by_fstab() {
        let table = b"# /dev/x /mnt ext4\n/dev/a / ext4 defaults 0 1\n\nnas:/b\t/mnt/my\\040nas nfs noauto 0 0\nnone swap swap\n";
        let at = |path: &str| innermost(Path::new(path), fstab(table));
        assert_eq!(at("/mnt/my nas/backups"), Some("/mnt/my nas".into()));
        assert_eq!((at("/mnt/other"), at("/srv")), (None, None));
    }

    /// In the sandbox of a unit every path that may be written is a mount point: that must not make a disk of it.
    #[test]
    fn a_directory_that_is_mounted_on_itself_is_no_disk() {
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n2 1 8:1 /mnt/nas/backups /mnt/nas/backups rw - ext4 /dev/a rw\n";
        assert_eq!(longest_mount(table, Path::new("/mnt/nas/backups/daily")), Path::new("/"));
        // With the disk there: it, not what is mounted on itself in it.
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n3 1 0:6 /x /mnt/nas rw - nfs s rw\n2 3 0:6 /x/backups /mnt/nas/backups rw - nfs s rw\n";
        assert_eq!(longest_mount(table, Path::new("/mnt/nas/backups")), Path::new("/mnt/nas"));
        // Another directory of the same disk, mounted there on purpose.
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n2 1 8:1 /data/nas /mnt/nas rw - ext4 /dev/a rw\n";
        assert_eq!(longest_mount(table, Path::new("/mnt/nas")), Path::new("/mnt/nas"));
    }
}
