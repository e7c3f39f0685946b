//! Putting restored data in place, so that it can be taken back: by whoever did it, or after a kill by whoever reads the
//! journal. What could go wrong: a directory that is half old and half new. So the new data lies complete beside the old
//! before anything changes, one exchange of names does it where the file system can, and every other way is a row of
//! renames that is finished or reversed as a whole.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::docker::{Docker, DockerError};
use crate::hint::Hint;
use crate::postgres::{Databases, Prepared};
use crate::vault::SecretError;

/// Names in a directory that is changed from within: the new data, and the old.
pub const NEW: &str = ".tars-restore-new";
const OLD: &str = ".tars-restore-old";

/// What is done to live data. Everything that undoing it takes is in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "way", rename_all = "snake_case")]
pub enum Change {
    /// Two directories exchange their names.
    Exchange {
        live: PathBuf,
        beside: PathBuf,
        /// Device and inode of the new tree: which of the two it is now. The device may have another number after a boot,
        /// and both names are on the same.
        new: (u64, u64),
        /// There was nothing at the live path.
        absent: bool,
        /// What the backup leaves out, and is taken over from the old tree: paths below it.
        carried: Vec<PathBuf>,
    },
    /// The entries of a directory that cannot be renamed itself (a mount point).
    Within { root: PathBuf, carried: Vec<PathBuf> },
    /// The same behind the window of a helper container: its paths are those within it.
    Window { helper: String, inner: Box<Change> },
    /// Several files, each exchanged with one beside it.
    Files { files: Vec<Change> },
    /// An SQLite database, changed by SQLite itself.
    Sqlite {
        live: PathBuf,
        new: PathBuf,
        /// A copy of it; None where there was none.
        old: Option<PathBuf>,
        /// What SQLite counts of the live one (`PRAGMA schema_version`), another number once it was loaded; its user may
        /// have written to it since. None where there was none.
        #[serde(default)]
        count: Option<i64>,
        /// Inode of `new`: whether what is live is that very file.
        #[serde(default)]
        inode: Option<u64>,
    },
    /// Databases of a PostgreSQL server exchange their names.
    Databases(Box<Databases>),
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("cannot {what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {what}")]
    Sqlite {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: rusqlite::Error,
    },
    #[error("cannot take over {path}, which the backup leaves out: in it {link} is no directory")]
    NoDirectory { path: PathBuf, link: PathBuf },
    #[error("{path} is locked by another program")]
    Locked { path: PathBuf },
    #[error("the database {path} that is there now cannot be read")]
    Unreadable {
        path: PathBuf,
        #[source]
        source: rusqlite::Error,
    },
    #[error("{path} is not there, but {left} of it: they would be mixed into the new database")]
    Remains { path: PathBuf, left: String },
    #[error(transparent)]
    Docker(#[from] DockerError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("the PostgreSQL server in {container} cannot be asked: {why}")]
    Away { container: String, why: String },
}

impl ChangeError {
    /// Whether the reason is the engine or this machine, and not the data.
    pub fn is_of_this_machine(&self) -> bool {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, OutOfMemory, ReadOnly, SystemIoFailure};
        match self {
            Self::File { .. } | Self::Locked { .. } | Self::Secret(_) => true,
            Self::Sqlite { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(CannotOpen | DiskFull | OutOfMemory | ReadOnly | SystemIoFailure)
            ),
            Self::Docker(e) => e.is_of_this_machine(),
            _ => false,
        }
    }
}

impl Hint for ChangeError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Locked { path } => {
                Some(format!("stop what uses it (fuser -v {}), then again", path.display()))
            }
            Self::Unreadable { path, .. } | Self::Remains { path, .. } => {
                let all = std::iter::once(path.clone()).chain(beside_database(path));
                let moves = all.filter(|f| f.symlink_metadata().is_ok()).map(|f| {
                    let word = |p: &Path| crate::source::quote(&p.to_string_lossy());
                    format!("mv -n {} {}", word(&f), word(&with_ending(&f, ".old")))
                });
                let moves: Vec<String> = moves.collect();
                Some(format!(
                    "stop what uses it, move all of it away together, then again: {}",
                    moves.join("; ")
                ))
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room on the disk of the data".into())
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Some("it is read-only: mount -o remount,rw, or restore elsewhere with --to".into())
            }
            Self::Docker(e) => e.hint(),
            Self::Secret(e) => e.hint(),
            Self::Away { container, .. } => {
                Some(format!("start it (docker start {container}), then: tars-backup recover"))
            }
            _ => None,
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ChangeError {
    let path = path.to_owned();
    move |source| ChangeError::File { what, path, source }
}

fn errno(what: &'static str, path: &Path) -> impl FnOnce(Errno) -> ChangeError {
    let failed = failed(what, path);
    move |e| failed(e.into())
}

fn id_of(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Whether that is the new tree.
fn is_new(meta: &Metadata, new: (u64, u64)) -> bool {
    meta.ino() == new.1
}

fn look(path: &Path) -> Result<Option<Metadata>, ChangeError> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(failed("look at", path)(e)),
    }
}

/// Where the new data of a directory is unpacked: on the same file system, out of sight.
pub fn beside(live: &Path, id: &str) -> PathBuf {
    if is_mount_point(live) {
        return live.join(NEW);
    }
    beside_name(live, id, "")
}

/// A hidden name beside live data that nobody else has: `.NAME.tars-restore-ID`, and an ending.
pub fn beside_name(live: &Path, id: &str, ending: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(live.file_name().unwrap_or_default());
    name.push(format!(".tars-restore-{id}{ending}"));
    live.parent().unwrap_or(Path::new("/")).join(name)
}

fn is_mount_point(path: &Path) -> bool {
    let (Ok(own), Some(parent)) = (path.symlink_metadata(), path.parent()) else { return false };
    if parent.metadata().is_ok_and(|p| p.dev() != own.dev()) {
        return true;
    }
    // A directory that is bound to a place of its own file system has the same device.
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return false };
    let wanted = path.to_string_lossy();
    table.lines().filter_map(|l| l.split(' ').nth(4)).any(|at| unescape(at) == wanted)
}

/// `\040` and its like, as the kernel writes blanks.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// How the tree at `beside` will come to `live`.
pub fn plan_directory(live: &Path, beside: &Path, carried: Vec<PathBuf>) -> Result<Change, ChangeError> {
    if beside == live.join(NEW) {
        return Ok(Change::Within { root: live.to_owned(), carried });
    }
    let new = look(beside)?.ok_or_else(|| failed("look at", beside)(io::ErrorKind::NotFound.into()))?;
    let absent = look(live)?.is_none();
    Ok(Change::Exchange {
        live: live.to_owned(),
        beside: beside.to_owned(),
        new: id_of(&new),
        absent,
        carried,
    })
}

/// How the file at `beside` will come to `live`. A link that lies there is exchanged itself, and not followed.
pub fn plan_file(live: &Path, beside: &Path) -> Result<Change, ChangeError> {
    let new = look(beside)?.ok_or_else(|| failed("look at", beside)(io::ErrorKind::NotFound.into()))?;
    let absent = look(live)?.is_none();
    let (live, beside) = (live.to_owned(), beside.to_owned());
    Ok(Change::Exchange { live, beside, new: id_of(&new), absent, carried: Vec::new() })
}

/// How the database `new` will come to `live`. `old`: a copy of what is there, None where nothing is.
pub fn plan_database(live: &Path, new: &Path, old: Option<PathBuf>) -> Result<Change, ChangeError> {
    let count = old.is_some().then(|| schema_version(live)).transpose()?;
    let inode = look(new)?.map(|m| m.ino());
    Ok(Change::Sqlite { live: live.to_owned(), new: new.to_owned(), old, count, inode })
}

/// Something new beside live data, of no use without us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Scratch {
    /// A file, or a directory with all in it.
    Path { path: PathBuf },
    /// The same within a helper container.
    Window { helper: String, path: PathBuf },
    /// Databases of a PostgreSQL server.
    Databases(Box<Prepared>),
}

/// A path of a helper container as one of this host.
fn through(window: &Path, path: &Path) -> PathBuf {
    window.join(path.strip_prefix("/").unwrap_or(path))
}

/// The window of a helper: where its root is for us.
fn window(engine: Option<&Docker>, helper: &str) -> Result<PathBuf, ChangeError> {
    let unknown = || DockerError::NoContainer { wanted: format!("{helper:?}, as no engine is known") };
    Ok(engine.ok_or_else(unknown)?.window(helper)?)
}

impl Scratch {
    /// Whether it is removed through the engine.
    pub fn needs_engine(&self) -> bool {
        matches!(self, Self::Databases(_))
    }

    /// Removes it; what is not there is fine.
    pub fn remove(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        match self {
            Self::Window { helper, path } => {
                Self::Path { path: through(&window(engine, helper)?, path) }.remove(engine)
            }
            Self::Databases(prepared) => prepared.remove(engine),
            Self::Path { path } => match look(path)? {
                Some(meta) if meta.is_dir() => remove(path),
                Some(_) => remove_file(path),
                None => Ok(()),
            },
        }
    }
}

impl std::fmt::Display for Scratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path { path } => path.display().fmt(f),
            Self::Window { helper, path } => write!(f, "{} of {helper}", path.display()),
            Self::Databases(prepared) => prepared.fmt(f),
        }
    }
}

impl Change {
    /// The same change with the paths of a helper container where this host sees them.
    fn seen_through(&self, window: &Path) -> Self {
        self.with_paths(|path| through(window, path))
    }

    /// The same change with other paths; those below the data stay.
    pub fn with_paths(&self, to: impl Fn(&Path) -> PathBuf) -> Self {
        match self {
            Self::Exchange { live, beside, new, absent, carried } => Self::Exchange {
                live: to(live),
                beside: to(beside),
                new: *new,
                absent: *absent,
                carried: carried.clone(),
            },
            Self::Within { root, carried } => Self::Within { root: to(root), carried: carried.clone() },
            Self::Files { files } => {
                let to: &dyn Fn(&Path) -> PathBuf = &to;
                Self::Files { files: files.iter().map(|f| f.with_paths(to)).collect() }
            }
            other => other.clone(),
        }
    }

    /// Id of the container that must run for it to be undone or finished.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::Databases(databases) => Some(&databases.access.container.id),
            _ => None,
        }
    }

    /// Makes the new data live. Whatever fails, `undo` is to be called. `engine`: where what runs in containers is reached.
    pub fn apply(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        match self {
            Self::Window { helper, inner } => inner.seen_through(&window(engine, helper)?).apply(engine),
            Self::Databases(databases) => databases.apply(engine),
            Self::Files { files } => files.iter().try_for_each(|f| f.apply(engine)),
            Self::Exchange { live, beside, absent, carried, .. } => {
                carry(live, beside, carried)?;
                let flags = if *absent { RenameFlags::NOREPLACE } else { RenameFlags::EXCHANGE };
                rustix::fs::renameat_with(CWD, beside, CWD, live, flags)
                    .map_err(errno("put the new data at", live))?;
                sync_parent(live)
            }
            Self::Within { root, carried } => {
                let (new, old) = (root.join(NEW), root.join(OLD));
                carry(root, &new, carried)?;
                make_like(root, &old)?;
                move_all(root, &old)?;
                let half = old.join(HALF);
                File::create(&half).and_then(|f| f.sync_all()).map_err(failed("write", &half))?;
                sync(&old)?;
                move_all(&new, root)?;
                copy_attributes(&new, root)?;
                sync(root)
            }
            Self::Sqlite { live, new, old, .. } => {
                if old.is_none() {
                    // Looked at again: whoever made them since would be mixed with the new one.
                    must_have_no_remains(live)?;
                    let flags = RenameFlags::NOREPLACE;
                    rustix::fs::renameat_with(CWD, new, CWD, live, flags)
                        .map_err(errno("put the new database at", live))?;
                    return sync_parent(live);
                }
                load(new, live)
            }
        }
    }

    /// Makes the old data live again, however far `apply` came, and removes the new.
    pub fn undo(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        match self {
            Self::Window { helper, inner } => inner.seen_through(&window(engine, helper)?).undo(engine),
            Self::Databases(databases) => databases.undo(engine),
            Self::Files { files } => files.iter().rev().try_for_each(|f| f.undo(engine)),
            Self::Exchange { live, beside, new, absent, carried } => {
                if look(live)?.is_some_and(|m| is_new(&m, *new)) {
                    let flags = if *absent { RenameFlags::NOREPLACE } else { RenameFlags::EXCHANGE };
                    rustix::fs::renameat_with(CWD, live, CWD, beside, flags)
                        .map_err(errno("put the old data back to", live))?;
                    sync_parent(live)?;
                }
                uncarry(beside, live, carried)?;
                // Only the new tree may go: never what carries the old data.
                match look(beside)? {
                    Some(m) if is_new(&m, *new) => remove(beside),
                    _ => Ok(()),
                }
            }
            Self::Within { root, carried } => {
                take_out(root, carried)?;
                remove(&root.join(NEW))?;
                sync(root)
            }
            Self::Sqlite { live, new, old, count, inode } => {
                match old {
                    Some(old) if look(old)?.is_some() || look(new)?.is_some() => {
                        // A load that failed has changed nothing, and whoever locked it may still do so, and write.
                        if was_loaded(live, old, *count)? {
                            load(old, live)?;
                        }
                        // The last thing to go is what tells that the old one is back.
                        remove_file(new)?;
                        return remove_file(old);
                    }
                    // Somebody did it before, and was killed at the end of it.
                    Some(_) => {}
                    // `new` is still there unless it went live. What is there now may be somebody else's.
                    None if look(new)?.is_none()
                        && inode
                            .is_none_or(|i| look(live).is_ok_and(|m| m.is_some_and(|m| m.ino() == i))) =>
                    {
                        // There was none of these before it went live.
                        for path in beside_database(live).iter().chain([live]) {
                            remove_file(path)?;
                        }
                    }
                    None => {}
                }
                remove_file(new)
            }
        }
    }

    /// Removes the old data. The new is live and good.
    pub fn finish(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        match self {
            Self::Window { helper, inner } => inner.seen_through(&window(engine, helper)?).finish(engine),
            Self::Databases(databases) => databases.finish(engine),
            Self::Files { files } => files.iter().try_for_each(|f| f.finish(engine)),
            Self::Exchange { live, beside, new, .. } => {
                let went_live = look(live)?.is_some_and(|m| is_new(&m, *new));
                if went_live { remove(beside) } else { Ok(()) }
            }
            Self::Within { root, .. } => keeping_times(&[root], || {
                remove(&root.join(OLD))?;
                remove(&root.join(NEW))
            }),
            Self::Sqlite { new, old, .. } => {
                if let Some(old) = old {
                    remove_file(old)?;
                }
                remove_file(new)
            }
        }
    }

    /// Called when it failed and a person wants to look at it: what is live stays so, and the other data gets a name that
    /// is found. Where nothing went live, or only a part of it, the old data is live.
    pub fn keep_failed(&self, id: &str, engine: Option<&Docker>) -> Result<Kept, ChangeError> {
        let new = match self {
            Self::Window { helper, inner } => {
                let window = window(engine, helper)?;
                return Ok(inner.seen_through(&window).keep_failed(id, engine)?.map(in_volume));
            }
            Self::Databases(databases) => match databases.keep_new(id, engine)? {
                Some(new) => return Ok(Kept::New(new)),
                None => None,
            },
            Self::Files { files } => {
                let (mut old, mut new) = (Vec::new(), Vec::new());
                for file in files {
                    match file.keep_failed(id, engine)? {
                        Kept::Nothing => {}
                        Kept::Old(path) => old.push(path),
                        Kept::New(path) => new.push(path),
                    }
                }
                return Ok(match (old.as_slice(), new.as_slice()) {
                    ([], []) => Kept::Nothing,
                    (_, []) => Kept::Old(old.join(", ")),
                    // Where only some went live, what is beside is named; which is which its ending tells.
                    _ => Kept::New([new, old].concat().join(", ")),
                });
            }
            Self::Exchange { live, beside, new, carried, .. } => {
                match look(live)?.is_some_and(|m| is_new(&m, *new)) {
                    true => None,
                    false => {
                        uncarry(beside, live, carried)?;
                        Some((beside.clone(), with_ending(live, &format!(".restored-{id}"))))
                    }
                }
            }
            Self::Within { root, carried } => match names(&root.join(NEW))?.unwrap_or_default().is_empty() {
                true => None,
                false => {
                    take_out(root, carried)?;
                    Some((root.join(NEW), root.join(format!("restored-{id}"))))
                }
            },
            Self::Sqlite { live, new, old, count, .. } => {
                let still_old = match old {
                    Some(old) => !was_loaded(live, old, *count)?,
                    None => look(new)?.is_some(),
                };
                still_old.then(|| (new.clone(), with_ending(live, &format!(".restored-{id}"))))
            }
        };
        let Some((new, to)) = new else {
            return Ok(self.keep(id, engine)?.map_or(Kept::Nothing, Kept::Old));
        };
        rustix::fs::renameat_with(CWD, &new, CWD, &to, RenameFlags::NOREPLACE)
            .map_err(errno("keep the new data in", &to))?;
        sync_parent(&to)?;
        if let Self::Sqlite { old: Some(old), .. } = self {
            remove_file(old)?;
        }
        Ok(Kept::New(to.display().to_string()))
    }

    /// Gives the old data a name that a person finds, instead of removing it: where it is then, None when there was none.
    /// The new data is live.
    pub fn keep(&self, id: &str, engine: Option<&Docker>) -> Result<Option<String>, ChangeError> {
        // Called again after a kill, it finds that it was done.
        let named = |live: &Path| with_ending(live, &format!(".before-{id}"));
        let (old, to) = match self {
            Self::Window { helper, inner } => {
                return Ok(inner.seen_through(&window(engine, helper)?).keep(id, engine)?.map(in_volume));
            }
            Self::Databases(databases) => return databases.keep(id, engine),
            Self::Files { files } => {
                let mut kept = Vec::new();
                for file in files {
                    kept.extend(file.keep(id, engine)?);
                }
                return Ok((!kept.is_empty()).then(|| kept.join(", ")));
            }
            Self::Exchange { absent: true, .. } | Self::Sqlite { old: None, .. } => return Ok(None),
            Self::Exchange { live, beside, .. } => (beside.clone(), named(live)),
            Self::Within { root, .. } => (root.join(OLD), root.join(format!("before-{id}"))),
            Self::Sqlite { live, new, old: Some(old), .. } => {
                remove_file(new)?;
                (old.clone(), named(live))
            }
        };
        if let Self::Within { root, .. } = self {
            remove_file(&old.join(HALF))?;
            remove(&root.join(NEW))?;
        }
        if std::fs::remove_dir(&old).is_ok() {
            // It was empty.
            return Ok(None);
        }
        let (first, mut to) = (to.clone(), to);
        if look(&old)?.is_some() {
            // The same backup may have been restored before, and what it replaced then is there still.
            let mut number = 1;
            loop {
                number += 1;
                match rustix::fs::renameat_with(CWD, &old, CWD, &to, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => to = first.with_file_name(numbered(&first, number)),
                    other => break other.map_err(errno("keep the old data in", &to))?,
                }
            }
        }
        Ok(Some(to.display().to_string()))
    }
}

/// `name.2`, where `name` is taken.
fn numbered(path: &Path, number: u32) -> std::ffi::OsString {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    name
}

/// What `Change::keep_failed` kept, and where it is now.
#[derive(Debug, PartialEq, Eq)]
pub enum Kept {
    /// There was no old data, and the new is live.
    Nothing,
    Old(String),
    New(String),
}

impl Kept {
    fn map(self, to: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Old(path) => Self::Old(to(path)),
            Self::New(path) => Self::New(to(path)),
        }
    }
}

/// A path behind a window means nothing once its helper is gone.
fn in_volume(path: String) -> String {
    let name = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
    format!("{name} in the volume")
}

/// The name beside `path` that ends with this.
pub fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Brings the old entries of a directory back from wherever a change within it stopped; the new ones lie in `NEW` then.
fn take_out(root: &Path, carried: &[PathBuf]) -> Result<(), ChangeError> {
    let (new, old) = (root.join(NEW), root.join(OLD));
    if look(&old)?.is_some() {
        // Without the marker, whatever is in the root is old and has not moved out yet.
        if look(&old.join(HALF))?.is_some() {
            move_all(root, &new)?;
            remove_file(&old.join(HALF))?;
            sync(&old)?;
        }
        move_all(&old, root)?;
        copy_attributes(&old, root)?;
        remove(&old)?;
    }
    uncarry(&new, root, carried)
}

/// In the old directory once it is complete: from then on, what is in the root is new.
const HALF: &str = ".tars-restore-half";

/// Changes entries of directories that keep their times: these are data too.
fn keeping_times<T>(dirs: &[&Path], act: impl FnOnce() -> T) -> T {
    let times = |dir: &Path| {
        let meta = dir.symlink_metadata().ok()?;
        let times = std::fs::FileTimes::new().set_modified(meta.modified().ok()?);
        Some(times.set_accessed(meta.accessed().ok()?))
    };
    let before: Vec<_> = dirs.iter().filter_map(|dir| Some((*dir, times(dir)?))).collect();
    let out = act();
    for (dir, times) in before {
        // A time is no reason to give up a change that has happened.
        let _ = File::open(dir).and_then(|d| d.set_times(times));
    }
    out
}

/// Moves one entry to where nothing is.
fn shift(from: &Path, to: &Path) -> Result<(), Errno> {
    let dirs: Vec<&Path> = [from.parent(), to.parent()].into_iter().flatten().collect();
    keeping_times(&dirs, || rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE))
}

fn carry(from: &Path, to: &Path, carried: &[PathBuf]) -> Result<(), ChangeError> {
    for path in carried {
        if look(&from.join(path))?.is_none() {
            continue;
        }
        let target = to.join(path);
        if let Some(link) = link_above(to, path)? {
            return Err(ChangeError::NoDirectory { path: from.join(path), link });
        }
        make_parents(from, to, path)?;
        match shift(&from.join(path), &target) {
            Ok(()) => {}
            // Gone since it was listed.
            Err(Errno::NOENT) => {}
            Err(e) => return Err(errno("take over", &from.join(path))(e)),
        }
    }
    Ok(())
}

fn uncarry(from: &Path, to: &Path, carried: &[PathBuf]) -> Result<(), ChangeError> {
    for path in carried {
        // Behind a link of the new tree is nothing that was taken over.
        if link_above(from, path)?.is_some() {
            continue;
        }
        match shift(&from.join(path), &to.join(path)) {
            Ok(()) | Err(Errno::NOENT | Errno::EXIST) => {}
            Err(e) => return Err(errno("give back", &to.join(path))(e)),
        }
    }
    Ok(())
}

/// What is no directory among the parents of `path` below `root`, above all a link, which leads out of the tree.
fn link_above(root: &Path, path: &Path) -> Result<Option<PathBuf>, ChangeError> {
    for parent in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
        if look(&root.join(parent))?.is_some_and(|m| !m.is_dir()) {
            return Ok(Some(root.join(parent)));
        }
    }
    Ok(None)
}

/// The directories above `path` below `to`, as they are below `from`.
fn make_parents(from: &Path, to: &Path, path: &Path) -> Result<(), ChangeError> {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    parents.reverse();
    for parent in parents {
        let target = to.join(parent);
        if look(&target)?.is_none() {
            keeping_times(&[target.parent().unwrap_or(to)], || make_private(&target))?;
            copy_attributes(&from.join(parent), &target)?;
        }
    }
    Ok(())
}

fn make_private(path: &Path) -> Result<(), ChangeError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(failed("make", path)),
    }
}

/// Makes the directory `to` with the attributes of `like`: with all of them, or not at all.
fn make_like(like: &Path, to: &Path) -> Result<(), ChangeError> {
    let making = with_ending(to, ".making");
    make_private(&making)?;
    copy_attributes(like, &making)?;
    rustix::fs::renameat_with(CWD, &making, CWD, to, RenameFlags::NOREPLACE).map_err(errno("make", to))
}

/// Owner, mode and times of a directory.
fn copy_attributes(from: &Path, to: &Path) -> Result<(), ChangeError> {
    let meta = from.symlink_metadata().map_err(failed("look at", from))?;
    chown(to, Some(meta.uid()), Some(meta.gid())).map_err(failed("give an owner to", to))?;
    std::fs::set_permissions(to, meta.permissions()).map_err(failed("set the mode of", to))?;
    let times = std::fs::FileTimes::new()
        .set_modified(meta.modified().map_err(failed("look at", from))?)
        .set_accessed(meta.accessed().map_err(failed("look at", from))?);
    File::open(to).and_then(|f| f.set_times(times)).map_err(failed("set the time of", to))
}

/// Names in a directory, ours left out; None when it is not there.
fn names(dir: &Path) -> Result<Option<Vec<std::ffi::OsString>>, ChangeError> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("list", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed("list", dir))?.file_name();
        if ![NEW, OLD, HALF, ".tars-restore-old.making"].iter().any(|own| name == *own) {
            names.push(name);
        }
    }
    Ok(Some(names))
}

fn move_all(from: &Path, to: &Path) -> Result<(), ChangeError> {
    for name in names(from)?.unwrap_or_default() {
        let (a, b) = (from.join(&name), to.join(&name));
        shift(&a, &b).map_err(errno("move", &a))?;
    }
    sync(to)
}

fn remove(dir: &Path) -> Result<(), ChangeError> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        // A file that was exchanged by itself.
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => remove_file(dir),
        other => other.map_err(failed("remove", dir)),
    }
}

fn remove_file(path: &Path) -> Result<(), ChangeError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

fn sync(dir: &Path) -> Result<(), ChangeError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(failed("sync", dir))
}

fn sync_parent(path: &Path) -> Result<(), ChangeError> {
    path.parent().map_or(Ok(()), sync)
}

/// Replaces the content of the database `to` by that of the file `from`, in one transaction of SQLite: whoever has it
/// open sees the old or the new, and a crash leaves the old.
fn load(from: &Path, to: &Path) -> Result<(), ChangeError> {
    let wrong = |what: &'static str| {
        let path = to.to_owned();
        move |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                ChangeError::Locked { path }
            }
            _ => ChangeError::Sqlite { path, what, source },
        }
    };
    let source = open_alone(from).map_err(wrong("the restored database cannot be read"))?;
    let mut target = Connection::open(to).map_err(wrong("cannot be opened"))?;
    target.busy_timeout(PATIENCE).map_err(wrong("cannot be opened"))?;
    // Folds a write-ahead log into the file, and fails when somebody else uses one.
    target
        .pragma_update(None, "journal_mode", "DELETE")
        .map_err(wrong("its write-ahead log cannot be closed"))?;
    {
        let backup = Backup::new(&source, &mut target).map_err(wrong("cannot be written"))?;
        let started = std::time::Instant::now();
        loop {
            match backup.step(-1).map_err(wrong("cannot be written"))? {
                StepResult::Done => break,
                _ if started.elapsed() > PATIENCE => {
                    return Err(ChangeError::Locked { path: to.to_owned() });
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
    target.close().map_err(|(_, e)| wrong("cannot be closed")(e))
}

/// The files that SQLite keeps beside a database.
fn beside_database(live: &Path) -> [PathBuf; 3] {
    ["-wal", "-shm", "-journal"].map(|ending| with_ending(live, ending))
}

/// An error when the database is gone and files of it are not: SQLite takes them for those of whatever takes its name.
pub fn must_have_no_remains(live: &Path) -> Result<(), ChangeError> {
    if look(live)?.is_some() {
        return Ok(());
    }
    let mut left = Vec::new();
    for path in beside_database(live) {
        if look(&path)?.is_some() {
            left.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    Err(ChangeError::Remains { path: live.to_owned(), left: left.join(", ") })
}

/// A copy of a database that may be in use, in the new file `to`: for its owner alone until it is whole, then as open as
/// the one that it was made from.
pub fn copy_database(from: &Path, to: &Path) -> Result<(), ChangeError> {
    let unreadable = |source| ChangeError::Unreadable { path: from.to_owned(), source };
    let wrong = |what: &'static str| {
        move |source: rusqlite::Error| match source.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                unreadable(source)
            }
            _ => ChangeError::Sqlite { path: from.to_owned(), what, source },
        }
    };
    // To write, so that a transaction that a kill has cut can be rolled back; it is what any program would do first.
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(unreadable)?;
    let meta = from.metadata().map_err(failed("look at", from))?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(failed("make", to))?;
    let mut target = Connection::open(to).map_err(wrong("no copy of it can be made"))?;
    // Of no use unless it is whole: no journal that a kill would leave beside it, and one sync at the end.
    target
        .execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
        .and_then(|()| Backup::new(&source, &mut target))
        .and_then(|b| b.run_to_completion(4096, Duration::from_millis(5), None))
        .map_err(wrong("no copy of it can be made"))?;
    target.close().map_err(|(_, e)| wrong("no copy of it can be made")(e))?;
    // Without the right to give it away it stays ours alone.
    if chown(to, Some(meta.uid()), Some(meta.gid())).is_ok() {
        std::fs::set_permissions(to, meta.permissions()).map_err(failed("set the mode of", to))?;
    }
    File::open(to).and_then(|f| f.sync_all()).map_err(failed("sync", to))
}

/// Whether other data was loaded into the database `live` since `count` was taken, and `old` copied. Each load counts by
/// one more; what programs write to their tables does not.
fn was_loaded(live: &Path, old: &Path, count: Option<i64>) -> Result<bool, ChangeError> {
    match count {
        Some(count) => Ok(schema_version(live)? != count),
        None => Ok(!is_same(live, old)?),
    }
}

/// Of a database that may be in use. A load that a kill has cut is rolled back by that.
fn schema_version(path: &Path) -> Result<i64, ChangeError> {
    let wrong = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
            ChangeError::Locked { path: path.to_owned() }
        }
        _ => ChangeError::Unreadable { path: path.to_owned(), source },
    };
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(wrong)?;
    db.busy_timeout(PATIENCE).map_err(wrong)?;
    db.pragma_query_value(None, "schema_version", |row| row.get(0)).map_err(wrong)
}

/// Whether the database `live` is the one that `old` was copied from: a copy of it now has the same bytes.
fn is_same(live: &Path, old: &Path) -> Result<bool, ChangeError> {
    let now = with_ending(old, ".now");
    remove_file(&now)?;
    let same = copy_database(live, &now).and_then(|()| same_bytes(&now, old));
    remove_file(&now)?;
    same
}

/// Whether two files hold the same. However long they are, little of them is in memory.
fn same_bytes(a: &Path, b: &Path) -> Result<bool, ChangeError> {
    const PIECE: usize = 1 << 20;
    let open = |path: &Path| File::open(path).map_err(failed("read", path));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let length = |file: &File, path: &Path| file.metadata().map(|m| m.len()).map_err(failed("look at", path));
    if length(&left, a)? != length(&right, b)? {
        return Ok(false);
    }
    let (mut of_left, mut of_right) = (Vec::with_capacity(PIECE), Vec::with_capacity(PIECE));
    loop {
        for (file, piece, path) in [(&mut left, &mut of_left, a), (&mut right, &mut of_right, b)] {
            piece.clear();
            file.take(PIECE as u64).read_to_end(piece).map_err(failed("read", path))?;
        }
        if of_left != of_right {
            return Ok(false);
        }
        if of_left.is_empty() {
            return Ok(true);
        }
    }
}

/// How long another program may hold its lock.
const PATIENCE: Duration = Duration::from_secs(10);

/// A database file that nobody else uses; it may carry the mark of a write-ahead log that it does not have.
fn open_alone(path: &Path) -> rusqlite::Result<Connection> {
    let uri = format!("file:{}?immutable=1", crate::source::percent(path));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// All files below a directory and what they hold.
    fn tree(dir: &Path) -> BTreeMap<PathBuf, String> {
        fn walk(dir: &Path, base: &Path, into: &mut BTreeMap<PathBuf, String>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(base).unwrap().to_owned();
                if path.is_dir() {
                    into.insert(name, "dir".into());
                    walk(&path, base, into);
                } else {
                    into.insert(name, std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut found = BTreeMap::new();
        walk(dir, dir, &mut found);
        found
    }

    fn fill(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
    }

    struct Case {
        _dir: tempfile::TempDir,
        live: PathBuf,
        new: PathBuf,
        change: Change,
        before: BTreeMap<PathBuf, String>,
    }

    /// Old data with something excluded, new data beside it.
    fn case(within: bool) -> Case {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let old = [
            ("a", "old a"),
            ("only-old", "x"),
            ("deep/b", "old b"),
            ("deep/cache/c", "kept"),
            ("no/cache/d", "kept too"),
        ];
        fill(&live, &old);
        let before = tree(&live);
        let new = if within { live.join(NEW) } else { beside(&live, "1") };
        fill(&new, &[("a", "new a"), ("deep/b", "new b"), ("only-new", "y")]);
        let carried = vec!["deep/cache".into(), "no/cache".into(), "was/never".into()];
        let change = plan_directory(&live, &new, carried).unwrap();
        Case { _dir: dir, live, new, change, before }
    }

    fn is_new(live: &Path) {
        let now = tree(live);
        assert_eq!(now[Path::new("a")], "new a");
        assert_eq!(now[Path::new("deep/b")], "new b");
        assert_eq!(now[Path::new("deep/cache/c")], "kept");
        assert_eq!(now[Path::new("no/cache/d")], "kept too");
        assert!(!now.contains_key(Path::new("only-old")));
    }

    #[test]
    fn the_new_data_goes_live_with_what_the_backup_left_out() {
        for within in [false, true] {
            let c = case(within);
            c.change.apply(None).unwrap();
            c.change.finish(None).unwrap();
            is_new(&c.live);
            let parent = std::fs::read_dir(c.live.parent().unwrap()).unwrap().count();
            assert_eq!(parent, 1, "something is left beside");
            assert!(!c.live.join(OLD).exists() && !c.live.join(NEW).exists());
            c.change.finish(None).unwrap();
            is_new(&c.live);
        }
    }

    #[test]
    fn old_data_that_is_to_be_kept_gets_a_name_that_people_find() {
        for within in [false, true] {
            let c = case(within);
            c.change.apply(None).unwrap();
            let kept = c.change.keep("x", None).unwrap().unwrap();
            assert_eq!(tree(Path::new(&kept))[Path::new("a")], "old a");
            assert!(kept.contains("before-x"), "{kept:?}");
            assert!(!c.live.join(OLD).exists() && !c.live.join(NEW).exists());
        }
    }

    #[test]
    fn what_failed_before_it_went_live_is_kept_as_what_it_is() {
        for within in [false, true] {
            // What was to be taken over is in the new tree already.
            let c = case(within);
            let (Change::Exchange { carried, .. } | Change::Within { carried, .. }) = &c.change else {
                unreachable!()
            };
            carry(&c.live, &c.new, carried).unwrap();
            let Kept::New(kept) = c.change.keep_failed("x", None).unwrap() else { panic!("{within}") };
            assert!(kept.contains("restored-x"), "{kept}");
            assert_eq!(tree(Path::new(&kept))[Path::new("a")], "new a");
            if within {
                std::fs::remove_dir_all(&kept).unwrap();
            }
            assert_eq!(tree(&c.live), c.before, "{within}");

            let c = case(within);
            c.change.apply(None).unwrap();
            let Kept::Old(kept) = c.change.keep_failed("x", None).unwrap() else { panic!("{within}") };
            assert_eq!(tree(Path::new(&kept))[Path::new("a")], "old a");
            assert_eq!(std::fs::read_to_string(c.live.join("a")).unwrap(), "new a");
        }
        // Half way, some of both is in the root.
        let c = case(true);
        let Change::Within { carried, .. } = &c.change else { unreachable!() };
        let (new, old) = (c.live.join(NEW), c.live.join(OLD));
        carry(&c.live, &new, carried).unwrap();
        make_like(&c.live, &old).unwrap();
        move_all(&c.live, &old).unwrap();
        std::fs::write(old.join(HALF), "").unwrap();
        std::fs::rename(new.join("a"), c.live.join("a")).unwrap();
        let Kept::New(kept) = c.change.keep_failed("x", None).unwrap() else { panic!() };
        assert_eq!(tree(Path::new(&kept))[Path::new("a")], "new a");
        std::fs::remove_dir_all(&kept).unwrap();
        assert_eq!(tree(&c.live), c.before);

        // Where nothing was, and where the old cannot be told from the new by its name.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let restored = Kept::New(at("live.restored-x").display().to_string());
        let new = beside(&at("live"), "1");
        fill(&new, &[("a", "new")]);
        let change = plan_directory(&at("live"), &new, Vec::new()).unwrap();
        assert_eq!(change.keep_failed("x", None).unwrap(), restored);
        assert!(!at("live").exists());
        std::fs::remove_dir_all(at("live.restored-x")).unwrap();
        drop(database(&at("live"), "old", "DELETE"));
        copy_database(&at("live"), &at("old")).unwrap();
        drop(database(&at("new"), "new", "DELETE"));
        let change = plan_database(&at("live"), &at("new"), Some(at("old"))).unwrap();
        assert_eq!(change.keep_failed("x", None).unwrap(), restored);
        assert_eq!(value(&Connection::open(at("live")).unwrap()), "old");
        assert_eq!(value(&Connection::open(at("live.restored-x")).unwrap()), "new");
        assert!(!at("old").exists() && !at("new").exists());
    }

    #[test]
    fn undoing_brings_back_exactly_what_was_there() {
        for within in [false, true] {
            for applied in [false, true] {
                let c = case(within);
                if applied {
                    c.change.apply(None).unwrap();
                }
                c.change.undo(None).unwrap();
                assert_eq!(tree(&c.live), c.before, "within {within}, applied {applied}");
                assert!(!c.new.exists());
                c.change.undo(None).unwrap();
                assert_eq!(tree(&c.live), c.before, "twice");
            }
        }
    }

    /// Every state that a kill can leave between two renames of `Within`.
    #[test]
    fn a_change_within_is_undone_from_wherever_it_stopped() {
        for moved_out in 0..=3 {
            let c = case(true);
            let (root, new, old) = (&c.live, c.live.join(NEW), c.live.join(OLD));
            let Change::Within { carried, .. } = &c.change else { unreachable!() };
            carry(root, &new, carried).unwrap();
            make_like(root, &old).unwrap();
            for name in names(root).unwrap().unwrap().into_iter().take(moved_out) {
                std::fs::rename(root.join(&name), old.join(&name)).unwrap();
            }
            c.change.undo(None).unwrap();
            assert_eq!(tree(root), c.before, "{moved_out} moved out");
        }
        for moved_in in 0..=3 {
            let c = case(true);
            let (root, new, old) = (&c.live, c.live.join(NEW), c.live.join(OLD));
            let Change::Within { carried, .. } = &c.change else { unreachable!() };
            carry(root, &new, carried).unwrap();
            make_like(root, &old).unwrap();
            move_all(root, &old).unwrap();
            std::fs::write(old.join(HALF), "").unwrap();
            for name in names(&new).unwrap().unwrap().into_iter().take(moved_in) {
                std::fs::rename(new.join(&name), root.join(&name)).unwrap();
            }
            c.change.undo(None).unwrap();
            assert_eq!(tree(root), c.before, "{moved_in} moved in");
        }
    }

    #[test]
    fn a_directory_that_was_gone_comes_and_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let new = beside(&live, "1");
        fill(&new, &[("a", "new")]);
        let change = plan_directory(&live, &new, Vec::new()).unwrap();
        change.apply(None).unwrap();
        assert_eq!(tree(&live).len(), 1);
        assert_eq!(change.keep("x", None).unwrap(), None);
        change.undo(None).unwrap();
        assert!(!live.exists() && !new.exists());
    }

    fn database(path: &Path, value: &str, mode: &str) -> Connection {
        let db = Connection::open(path).unwrap();
        db.pragma_update(None, "journal_mode", mode).unwrap();
        db.execute_batch("CREATE TABLE IF NOT EXISTS t(v); DELETE FROM t").unwrap();
        db.execute("INSERT INTO t VALUES (?1)", [value]).unwrap();
        db
    }

    fn value(db: &Connection) -> String {
        db.query_row("SELECT v FROM t", [], |r| r.get(0)).unwrap()
    }

    /// A kill in the middle of loading leaves a journal that must be rolled back before anything can be read.
    #[test]
    fn a_database_whose_loading_was_killed_is_brought_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        drop(database(&at("live"), "old", "DELETE"));
        copy_database(&at("live"), &at("old")).unwrap();
        drop(database(&at("new"), "new", "DELETE"));
        {
            // A writer that spills into the file and dies: its files are copied as they are then.
            let db = Connection::open(at("live")).unwrap();
            db.execute_batch("PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; UPDATE t SET v='torn';")
                .unwrap();
            db.execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000) INSERT INTO t SELECT hex(randomblob(40)) FROM n",
            )
            .unwrap();
            std::fs::copy(at("live"), at("torn")).unwrap();
            std::fs::copy(at("live-journal"), at("torn-journal")).unwrap();
        }
        let live = at("torn");
        // Of a journal that an earlier version wrote, and of ours.
        let count = Some(schema_version(&at("live")).unwrap());
        let inode = None;
        let change = Change::Sqlite { live, new: at("new"), old: Some(at("old")), count, inode };
        change.undo(None).unwrap();
        assert_eq!(value(&Connection::open(at("torn")).unwrap()), "old");
        assert!(!at("old").exists() && !at("new").exists());
    }

    /// A database `live` that an application has open, and what would replace it by `new`.
    fn in_use(dir: &Path, mode: &str) -> (Connection, Change) {
        let at = |name: &str| dir.join(name);
        drop(database(&at("new"), "new", "DELETE"));
        let application = database(&at("live"), "old", mode);
        copy_database(&at("live"), &at("old")).unwrap();
        (application, plan_database(&at("live"), &at("new"), Some(at("old"))).unwrap())
    }

    /// Wherever a kill cut it: whoever comes next does the rest, and may come twice.
    #[test]
    fn bringing_a_database_back_can_be_repeated() {
        for gone in [&[][..], &["new"], &["new", "old"]] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            drop(database(&at("live"), "old", "DELETE"));
            copy_database(&at("live"), &at("old")).unwrap();
            drop(database(&at("new"), "new", "DELETE"));
            let change = plan_database(&at("live"), &at("new"), Some(at("old"))).unwrap();
            change.apply(None).unwrap();
            if !gone.is_empty() {
                load(&at("old"), &at("live")).unwrap();
            }
            for name in gone {
                std::fs::remove_file(at(name)).unwrap();
            }
            for _ in 0..2 {
                change.undo(None).unwrap();
                assert_eq!(value(&Connection::open(at("live")).unwrap()), "old");
                assert!(!at("old").exists() && !at("new").exists(), "{gone:?}");
            }
        }
        // What was loaded and has no old one any more is not called undone.
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        drop(database(&at("live"), "old", "DELETE"));
        drop(database(&at("new"), "new", "DELETE"));
        let change = plan_database(&at("live"), &at("new"), Some(at("old"))).unwrap();
        load(&at("new"), &at("live")).unwrap();
        change.undo(None).unwrap_err();
        assert_eq!(value(&Connection::open(at("live")).unwrap()), "new");
        assert!(at("new").exists());
    }

    /// A load that was refused has changed nothing; what its user wrote since is not taken back.
    #[test]
    fn what_was_written_to_a_database_that_could_not_be_replaced_stays() {
        for mode in ["DELETE", "WAL"] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let (application, change) = in_use(dir.path(), mode);
            application.execute("UPDATE t SET v = 'written since'", []).unwrap();
            if mode == "WAL" {
                assert!(matches!(change.apply(None), Err(ChangeError::Locked { .. })));
            }
            // Still open, or not: nothing is to be done to it.
            change.undo(None).unwrap();
            assert_eq!(value(&application), "written since");
            assert!(!at("old").exists() && !at("new").exists());
        }
    }

    #[test]
    fn a_database_that_somebody_made_meanwhile_is_not_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        drop(database(&at("new"), "new", "DELETE"));
        let change = plan_database(&at("live"), &at("new"), None).unwrap();
        change.apply(None).unwrap();
        change.undo(None).unwrap();
        assert!(!at("live").exists() && !at("new").exists());
        // The inode of what is gone is given to the next file.
        std::fs::write(at("takes the inode"), "").unwrap();
        drop(database(&at("live"), "of the application", "DELETE"));
        change.undo(None).unwrap();
        assert_eq!(value(&Connection::open(at("live")).unwrap()), "of the application");
    }

    #[test]
    fn a_disk_may_have_another_number_after_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fill(&at("live"), &[("a", "old")]);
        fill(&at("beside"), &[("a", "new")]);
        let change = plan_directory(&at("live"), &at("beside"), Vec::new()).unwrap();
        change.apply(None).unwrap();
        let Change::Exchange { live, beside, new, absent, carried } = change else { panic!() };
        let change = Change::Exchange { live, beside, new: (new.0 + 1, new.1), absent, carried };
        change.undo(None).unwrap();
        assert_eq!(std::fs::read_to_string(at("live/a")).unwrap(), "old");
        assert!(!at("beside").exists());
    }

    /// SQLite would read the old frames into the new file.
    #[test]
    fn a_new_database_is_not_laid_beside_what_is_left_of_an_old_one() {
        for ending in ["-wal", "-shm", "-journal"] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            drop(database(&at("new"), "new", "DELETE"));
            let left = at(&format!("it's{ending}"));
            std::fs::write(&left, "old").unwrap();
            let change = plan_database(&at("it's"), &at("new"), None).unwrap();
            let e = change.apply(None).unwrap_err();
            assert!(matches!(e, ChangeError::Remains { .. }), "{e:?}");
            assert!(e.to_string().contains(&format!("but it's{ending} of it")), "{e}");
            assert!(!at("it's").exists());
            // The command that is told is enough.
            let hint = e.hint().unwrap();
            let (_, command) = hint.split_once("then again: ").unwrap();
            assert!(std::process::Command::new("sh").args(["-c", command]).status().unwrap().success());
            assert!(!left.exists() && at(&format!("it's{ending}.old")).exists());
            change.apply(None).unwrap();
            assert_eq!(value(&Connection::open(at("it's")).unwrap()), "new");
            // Whoever used it meanwhile has left nothing either.
            std::fs::write(&left, "").unwrap();
            change.undo(None).unwrap();
            assert!(!at("it's").exists() && !left.exists());
        }
    }

    #[test]
    fn what_is_no_database_any_more_is_to_be_moved_away_with_all_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("live"), "no database at all, but long enough to be taken for one".repeat(20))
            .unwrap();
        std::fs::write(at("live-wal"), "").unwrap();
        let e = copy_database(&at("live"), &at("old")).unwrap_err();
        assert!(matches!(e, ChangeError::Unreadable { .. }), "{e:?}");
        let hint = e.hint().unwrap();
        assert!(hint.contains("live.old'") && hint.contains("live-wal.old'"), "{hint}");
    }

    #[test]
    fn a_copy_of_a_database_is_as_private_as_the_database() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        drop(database(&at("live"), "old", "DELETE"));
        for mode in [0o600, 0o640] {
            std::fs::set_permissions(at("live"), std::fs::Permissions::from_mode(mode)).unwrap();
            let copy = at(&format!("copy{mode:o}"));
            copy_database(&at("live"), &copy).unwrap();
            assert_eq!(copy.metadata().unwrap().mode() & 0o7777, mode);
        }
    }

    #[test]
    fn files_are_compared_to_their_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let bytes = |last: u8| {
            let mut all = vec![7; (2 << 20) + 1];
            all.push(last);
            all
        };
        for (name, bytes) in [("a", bytes(1)), ("b", bytes(1)), ("c", bytes(2)), ("d", vec![7; 2 << 20])] {
            std::fs::write(at(name), bytes).unwrap();
        }
        let same = |a: &str, b: &str| same_bytes(&at(a), &at(b)).unwrap();
        assert!(same("a", "b") && !same("a", "c") && !same("a", "d") && !same("d", "a"));
    }

    #[test]
    fn whoever_has_the_database_open_sees_the_new_data_or_stops_us() {
        for mode in ["DELETE", "WAL"] {
            let dir = tempfile::tempdir().unwrap();
            let (application, change) = in_use(dir.path(), mode);
            match (mode, change.apply(None)) {
                ("DELETE", outcome) => {
                    outcome.unwrap();
                    assert_eq!(value(&application), "new");
                    change.undo(None).unwrap();
                    assert_eq!(value(&application), "old");
                }
                (_, outcome) => {
                    assert!(matches!(outcome, Err(ChangeError::Locked { .. })), "{outcome:?}");
                    change.undo(None).unwrap();
                    assert_eq!(value(&application), "old");
                }
            }
        }
    }
}
