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
    #[error("another file system is mounted at {inner}: it would go with the old data of {path}")]
    Inside { path: PathBuf, inner: PathBuf },
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
            Self::Inside { inner, .. } => {
                Some(format!("unmount it: umount {}; or restore elsewhere with --to DIR", inner.display()))
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

/// The mount that `path` lies on, or the root.
pub fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let real = std::fs::canonicalize(path)?;
    Ok(Table::read()?.disk_of(&real))
}

/// An error when something is mounted below `path`: whatever takes the place of that directory would take it along, and
/// whoever removes the old one would empty it. One that is not there holds nothing.
pub fn must_hold_none(path: &Path) -> Result<(), MountError> {
    let look = |path: &Path, source| MountError::Look { path: path.to_owned(), source };
    let real = match std::fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| look(path, e))?,
    };
    let table = Table::read().map_err(|e| look(Path::new(MOUNTINFO), e))?;
    match table.below(&real) {
        Some(inner) => Err(MountError::Inside { path: path.to_owned(), inner: inner.to_owned() }),
        None => Ok(()),
    }
}

/// Where the disk of `path` is mounted, or will be: by what is mounted now and by /etc/fstab. None: on the root disk. Links
/// are not followed, and no disk has to answer.
pub fn expected_mount(path: &Path) -> Option<PathBuf> {
    let now = Table::read().unwrap_or_default();
    let planned = std::fs::read("/etc/fstab").unwrap_or_default();
    innermost(path, now.of(path).map(|m| m.point.clone()).into_iter().chain(fstab(&planned)))
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

/// What the kernel says is mounted. Nothing in it is looked at, so no disk has to answer.
#[derive(Debug, Default)]
pub struct Table(Vec<Mounted>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub point: PathBuf,
    /// Kind of file system: `ext4`, `nfs4`, `fuse.sshfs`.
    pub kind: String,
    pub writable: bool,
    /// What is mounted: a device, or a directory of another machine.
    pub source: String,
    /// Options of the file system that say how to reach it; nothing that could be a secret.
    pub options: Vec<String>,
    device: Vec<u8>,
    /// Directory of the file system that is seen there.
    root: PathBuf,
}

/// Kinds of file systems that lie on another machine, and may not answer.
const NETWORK: [&str; 20] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ncpfs",
    "afs",
    "ceph",
    "glusterfs",
    "lustre",
    "davfs",
    "fuse.sshfs",
    "fuse.rclone",
    "fuse.glusterfs",
    "fuse.ceph",
    "fuse.davfs2",
    "fuse.s3fs",
    "fuse.smbnetfs",
    "fuse.curlftpfs",
    "fuse.juicefs",
];

/// Options that a person has to type to mount the same again. All others are the kernel's own, or hold a secret.
const TO_BE_TYPED: [&str; 10] =
    ["vers", "sec", "port", "proto", "username", "domain", "uid", "gid", "file_mode", "dir_mode"];

impl Mounted {
    pub fn is_network(&self) -> bool {
        NETWORK.contains(&self.kind.as_str())
    }

    /// A directory that is mounted on itself, as a sandbox does with each path that may be written: no other disk.
    fn shows_the_same_as(&self, around: &Self) -> bool {
        let Ok(below) = self.point.strip_prefix(&around.point) else { return false };
        self.device == around.device && self.root == around.root.join(below)
    }
}

const MOUNTINFO: &str = "/proc/self/mountinfo";

impl Table {
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read(MOUNTINFO)?))
    }

    pub(crate) fn parse(mountinfo: &[u8]) -> Self {
        let one = |line: &[u8]| {
            let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
            // Before the dash stand any number of further fields.
            let dash = fields.iter().skip(6).position(|f| *f == b"-")? + 6;
            let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
            let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
            let is_typed = |option: &&[u8]| {
                let key = option.split(|b| *b == b'=').next().unwrap_or_default();
                option.contains(&b'=') && TO_BE_TYPED.iter().any(|known| known.as_bytes() == key)
            };
            let read_only = |options: &&[u8]| options.split(|b| *b == b',').any(|o| o == b"ro");
            Some(Mounted {
                device: fields[2].to_vec(),
                root: path(fields[3]),
                point: path(fields[4]),
                kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
                writable: ![fields[5], fields.get(dash + 3)?].iter().any(read_only),
                source: text(fields.get(dash + 2)?),
                options: fields.get(dash + 3)?.split(|b| *b == b',').filter(is_typed).map(text).collect(),
            })
        };
        Self(mountinfo.split(|b| *b == b'\n').filter_map(one).collect())
    }

    /// The mount of the disk that `real`, a path without links, lies on.
    fn disk_of(&self, real: &Path) -> PathBuf {
        let mut around: Vec<&Mounted> = self.0.iter().filter(|m| real.starts_with(&m.point)).collect();
        // The outermost first; of several at one place, the last one covers the others.
        around.sort_by_key(|m| m.point.components().count());
        while let Some(inner) = around.pop() {
            around.retain(|m| m.point != inner.point);
            if !around.last().is_some_and(|outer| inner.shows_the_same_as(outer)) {
                return inner.point.clone();
            }
        }
        PathBuf::from("/")
    }

    /// A mount in `real`, a path without links, that is not `real` itself. Of several in each other the innermost, which is
    /// the first to be unmounted.
    fn below(&self, real: &Path) -> Option<&Path> {
        let inside =
            self.0.iter().map(|m| m.point.as_path()).filter(|at| *at != real && at.starts_with(real));
        inside.max_by_key(|at| at.components().count())
    }

    /// The disk that `path` lies on by its name; None: that of the root.
    pub fn disk(&self, path: &Path) -> Option<&Mounted> {
        let point = self.disk_of(path);
        self.0.iter().rev().find(|m| m.point == point && point != Path::new("/"))
    }

    /// The mount that `path` lies on by its name: links are not followed. Of several at one place the last one hides the
    /// others.
    pub fn of(&self, path: &Path) -> Option<&Mounted> {
        let above = self.0.iter().filter(|m| path.starts_with(&m.point));
        above.max_by_key(|m| m.point.components().count())
    }

    /// Disks on the network that can be written to, each once.
    pub fn network(&self) -> Vec<&Mounted> {
        let seen = |m: &&Mounted| m.is_network() && m.writable && self.of(&m.point) == Some(*m);
        let mut found: Vec<&Mounted> = self.0.iter().filter(seen).collect();
        found.dedup();
        found
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

    fn disk(table: &[u8], real: &Path) -> PathBuf {
        Table::parse(table).disk_of(real)
    }

    #[test]
    fn the_innermost_mount_wins_and_blanks_are_understood() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /mnt/my\\040nas rw - nfs x rw\n3 1 0:6 / /mnt rw - tmpfs t rw\n";
        assert_eq!(disk(table, Path::new("/mnt/my nas/backups")), Path::new("/mnt/my nas"));
        assert_eq!(disk(table, Path::new("/mnt/other")), Path::new("/mnt"));
        assert_eq!(disk(table, Path::new("/mntx")), Path::new("/"));
    }

    #[test]
    fn what_is_mounted_below_a_directory_is_found_and_the_directory_itself_is_not() {
        let table = Table::parse(
            b"1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:5 / /srv/data rw - tmpfs x rw\n\
              3 2 0:6 / /srv/data/my\\040nas rw - tmpfs t rw\n4 3 0:7 / /srv/data/my\\040nas/deep rw - tmpfs t rw\n",
        );
        let below = |path: &str| table.below(Path::new(path)).map(|at| at.display().to_string());
        assert_eq!(below("/srv/data"), Some("/srv/data/my nas/deep".into()));
        assert_eq!(below("/srv/data/my nas"), Some("/srv/data/my nas/deep".into()));
        assert_eq!(
            (below("/srv/data/my nas/deep"), below("/srv/dat"), below("/srv/data/my")),
            (None, None, None)
        );
    }

    #[test]
    fn a_disk_that_is_not_mounted_now_is_known_by_fstab() {
        let table = b"# /dev/x /mnt ext4\n/dev/a / ext4 defaults 0 1\n\nnas:/b\t/mnt/my\\040nas nfs noauto 0 0\nnone swap swap\n";
        let at = |path: &str| innermost(Path::new(path), fstab(table));
        assert_eq!(at("/mnt/my nas/backups"), Some("/mnt/my nas".into()));
        assert_eq!((at("/mnt/other"), at("/srv")), (None, None));
    }

    #[test]
    fn what_is_told_of_a_mount_has_no_secret() {
        let table = Table::parse(
            b"24 21 0:42 / /mnt/nas rw - cifs //nas/my\\040files rw,vers=3.0,username=me,password=hunter2,pass=x,\
              credentials=/root/cred,secret=y,addr=10.0.0.1,sec=ntlmssp\n",
        );
        let nas = table.of(Path::new("/mnt/nas")).unwrap();
        assert_eq!(nas.source, "//nas/my files");
        assert_eq!(nas.options, ["vers=3.0", "username=me", "sec=ntlmssp"]);
    }

    /// In the sandbox of a unit every path that may be written is a mount point: that must not make a disk of it.
    #[test]
    fn a_directory_that_is_mounted_on_itself_is_no_disk() {
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n2 1 8:1 /mnt/nas/backups /mnt/nas/backups rw - ext4 /dev/a rw\n";
        assert_eq!(disk(table, Path::new("/mnt/nas/backups/daily")), Path::new("/"));
        // With the disk there: it, not what is mounted on itself in it.
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n3 1 0:6 /x /mnt/nas rw - nfs s rw\n2 3 0:6 /x/backups /mnt/nas/backups rw - nfs s rw\n";
        assert_eq!(disk(table, Path::new("/mnt/nas/backups")), Path::new("/mnt/nas"));
        // Another directory of the same disk, mounted there on purpose.
        let table = b"1 0 8:1 / / ro - ext4 /dev/a rw\n2 1 8:1 /data/nas /mnt/nas rw - ext4 /dev/a rw\n";
        assert_eq!(disk(table, Path::new("/mnt/nas")), Path::new("/mnt/nas"));
    }

    #[test]
    fn the_table_tells_disks_on_the_network_and_asks_none_of_them() {
        let table = Table::parse(
            b"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
              22 21 0:40 / /mnt/nas rw,relatime shared:2 - autofs systemd-1 rw,fd=1\n\
              23 22 0:41 / /mnt/nas rw,relatime shared:3 master:4 - nfs4 nas:/export rw,vers=4.2\n\
              24 21 0:42 / /mnt/read\\040only ro,relatime - cifs //nas/x rw\n\
              25 21 0:43 / /mnt/also ro - nfs nas:/y ro\n\
              26 21 0:44 / /mnt/gone rw - nfs nas:/z rw\n\
              27 26 0:45 / /mnt/gone rw - tmpfs t rw\n\
              28 21 0:46 / /home/me/there rw,nosuid - fuse.sshfs me@there: rw\nnonsense\n1 2 3\n",
        );
        let shown: Vec<(String, &str)> =
            table.network().iter().map(|m| (m.point.display().to_string(), m.kind.as_str())).collect();
        assert_eq!(shown, [("/mnt/nas".into(), "nfs4"), ("/home/me/there".to_owned(), "fuse.sshfs")]);
        let nas = table.disk(Path::new("/mnt/nas/deep")).unwrap();
        assert_eq!(table.disk(Path::new("/srv/backups")), None);
        assert_eq!((nas.source.as_str(), nas.options.join(",")), ("nas:/export", "vers=4.2".into()));
        let of = |path: &str| table.of(Path::new(path)).map(|m| m.kind.as_str());
        assert_eq!(of("/mnt/nas/deep"), Some("nfs4"));
        assert_eq!(of("/mnt/nasty"), Some("ext4"));
        assert_eq!(of("/mnt/gone/x"), Some("tmpfs"));
        assert_eq!(of("/mnt/read only/x"), Some("cifs"));
        assert!(Table::read().unwrap().of(Path::new("/proc/self")).is_some_and(|m| m.kind == "proc"));
    }
}
