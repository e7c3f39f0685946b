//! An SQLite database, through its own online backup. What could go wrong: copying the file alone loses what still
//! lies in its write-ahead log, and a path that is not there becomes an empty database that passes every check; so the
//! backup API reads it, nothing is ever created, and the copy is checked before it counts.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, Source, SourceError, Uses, copy, examine_sqlite,
    quote,
};
use crate::config::Section;
use crate::docker::Limits;
use crate::id::{Name, show_name};
use crate::manifest::Component;
use crate::staging::Stage;
use crate::target::{SqliteTarget, Target};

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::File,
};

struct Sqlite {
    name: Name,
    path: PathBuf,
    limits: Limits,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    Box::new(Sqlite { name: name.clone(), path: s.required_path("path", "Database file"), limits })
}

/// Pages of one step: a writer gets its turn between two steps.
const STEP_PAGES: i32 = 2048;
/// Restarts by a busy writer after which the rest is copied in one step.
const RESTARTS: u32 = 5;

impl Sqlite {
    fn error(&self, e: &rusqlite::Error) -> SourceError {
        SourceError::hinted(
            self.path.display().to_string(),
            e.to_string(),
            format!("look at it: sqlite3 -readonly {} 'PRAGMA integrity_check'", self.path.display()),
        )
    }

    fn open(&self) -> Result<Connection, SourceError> {
        let size = std::fs::metadata(&self.path)
            .map_err(|source| SourceError::Read { what: self.path.display().to_string(), source })?
            .len();
        if size == 0 {
            return Err(SourceError::hinted(
                self.path.display().to_string(),
                "the file is empty",
                "is it the right path, and is the disk mounted?",
            ));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&self.path, flags).map_err(|e| self.error(&e))?;
        db.busy_timeout(Duration::from_millis(250)).map_err(|e| self.error(&e))?;
        Ok(db)
    }

    /// Copies all pages. Between two steps others may write; if they do so all the time, the last attempt is one step
    /// under one read lock.
    fn copy_pages(
        &self,
        context: &Context<'_>,
        from: &Connection,
        to: &mut Connection,
    ) -> Result<(), SourceError> {
        let started = Instant::now();
        let mut progress = Instant::now();
        let backup = Backup::new(from, to).map_err(|e| self.error(&e))?;
        let (mut restarts, mut left_before) = (0, i32::MAX);
        loop {
            context.cancel.check()?;
            let pages = if restarts > RESTARTS { -1 } else { STEP_PAGES };
            match step(&backup, pages).map_err(|e| self.error(&e))? {
                StepResult::Done => return Ok(()),
                StepResult::More => {
                    let left = backup.progress().remaining;
                    if left >= left_before {
                        restarts += 1;
                    }
                    left_before = left;
                    progress = Instant::now();
                    context.monitor.waiting("copying the database");
                }
                _ => {
                    context.monitor.waiting("waiting for a writer of the database");
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            if progress.elapsed() > self.limits.idle || started.elapsed() > self.limits.total {
                return Err(SourceError::hinted(
                    self.path.display().to_string(),
                    "it stayed locked",
                    "which program holds it? fuser -v the file; or raise idle_timeout",
                ));
            }
        }
    }
}

/// One step of the copy. Whoever recovers the log of a writer that died holds the database too, which has a code of its
/// own.
fn step(backup: &Backup<'_, '_>, pages: i32) -> rusqlite::Result<StepResult> {
    match backup.step(pages) {
        Err(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(StepResult::Busy),
        other => other,
    }
}

impl Source for Sqlite {
    fn target<'a>(
        &'a self,
        _: &Context<'_>,
        _: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        Ok(Some(Box::new(SqliteTarget { live: self.path.clone() })))
    }

    fn uses(&self) -> Uses<'_> {
        Uses {
            reads: vec![&self.path],
            // A database with a write-ahead log wants its -shm file, also of one that only reads.
            writes: self.path.parent().into_iter().collect(),
            replaces: vec![&self.path],
            ..Uses::default()
        }
    }

    fn method(&self) -> String {
        format!("online backup of {}", self.path.display())
    }

    fn probe(&self, _: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let db = self.open()?;
        let pages: i64 =
            db.pragma_query_value(None, "page_count", |r| r.get(0)).map_err(|e| self.error(&e))?;
        let size: i64 = db.pragma_query_value(None, "page_size", |r| r.get(0)).map_err(|e| self.error(&e))?;
        Ok(u64::try_from(pages.saturating_mul(size)).ok())
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let source = self.open()?;
        let (path, _) = stage.scratch("copy.sqlite3")?;
        let mut target = Connection::open(&path).map_err(|e| self.error(&e))?;
        // The copy is ours alone and thrown away if we die: no journal, no syncs.
        target
            .execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;")
            .map_err(|e| self.error(&e))?;
        self.copy_pages(context, &source, &mut target)?;
        target.close().map_err(|(_, e)| self.error(&e))?;
        let found =
            examine_sqlite(&path).map_err(|why| SourceError::bad(self.path.display().to_string(), why))?;

        let member = format!("{}.sqlite3", self.name);
        let mut out = stage.compressed(&member)?;
        let mut raw =
            File::open(&path).map_err(|e| SourceError::Read { what: "the copy".into(), source: e })?;
        let bytes_in = copy(context, "the copy of the database", &mut raw, &member, &mut out)?;
        let staged = out.finish().map_err(SourceError::write(&member))?;
        std::fs::remove_file(&path).map_err(|e| SourceError::Read { what: "the copy".into(), source: e })?;

        let mut facts = found;
        facts.insert("path".into(), json!(self.path.display().to_string()));
        if let Ok(meta) = std::fs::metadata(&self.path) {
            facts.insert("mode".into(), json!(format!("{:o}", meta.mode() & 0o7777)));
            facts.insert("uid".into(), json!(meta.uid()));
            facts.insert("gid".into(), json!(meta.gid()));
        }
        Ok(Capture {
            staged: vec![staged],
            bytes_in,
            files: 1,
            consistency: "online backup",
            facts,
            ..Capture::default()
        })
    }
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    let path = member.scratch.join("check.sqlite3");
    // A whole database, which nobody else may read.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(CheckError::Read)?;
    std::io::copy(member.body, &mut file).map_err(CheckError::Read)?;
    let found = examine_sqlite(&path).map_err(CheckError::Bad);
    std::fs::remove_file(&path).map_err(CheckError::Read)?;
    if found?.get("rows") != member.component.facts.get("rows") {
        return Err(CheckError::Bad("its row counts are not those of the manifest".into()));
    }
    Ok(())
}

fn restore(name: &str, component: &Component) -> String {
    let path = component.facts.get("path").and_then(Value::as_str).unwrap_or("/path/database.sqlite3");
    let mode = component.facts.get("mode").and_then(Value::as_str).unwrap_or("600");
    let owner = |key: &str| component.facts.get(key).and_then(Value::as_u64).unwrap_or(0);
    let member = component.members.first().map_or("", String::as_str);
    let parent = Path::new(path).parent().map_or("/".into(), Path::to_string_lossy);
    let [wal, shm, journal] = ["-wal", "-shm", "-journal"].map(|end| quote(&format!("{path}{end}")));
    format!(
        "SQLite database `{}`. Stop whatever uses it, keep the old file, and leave no `-wal`, `-shm` or `-journal` of \
         the old one beside the new one:\n\n```\n{} > {name}.restored.sqlite3\n\
         sqlite3 -readonly {name}.restored.sqlite3 'PRAGMA integrity_check'\n\
         mkdir -p {}\n\
         for f in {live} {wal} {shm} {journal}; do [ ! -e \"$f\" ] || mv \"$f\" \"$f.old\"; done\n\
         install -m {mode} -o {} -g {} {name}.restored.sqlite3 {live}\n```\n",
        show_name(path.as_bytes()),
        crate::archive::layout::cat(member),
        quote(&parent),
        owner("uid"),
        owner("gid"),
        live = quote(path),
    )
}
