//! What a run has changed outside its own files, so that somebody else can undo it when the run is killed. What could go
//! wrong: an act that nobody knows of; so each step is on the disk before its act, and a line cut by a power failure
//! is one whose act has not begun. Lines are only appended, and the file goes when everything is undone.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::change::{Change, ChangeError, Scratch};
use crate::docker::Docker;
use crate::hint::Hint;

const FILE: &str = "run.journal";

/// How a container is kept from writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    Pause,
    Stop,
}

/// A container that ran before we held it: what is needed to find it, or its successor, again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub id: String,
    pub name: String,
    /// Labels of Compose, where it has them.
    pub project: Option<String>,
    pub service: Option<String>,
    pub number: Option<String>,
    pub how: How,
    /// When it was started, in the engine's words; another value later means that it was started again.
    pub started_at: String,
    /// Time of the act, and for how many seconds after it the engine may still be about to do it, whoever asked for it
    /// being dead by then.
    pub at: Timestamp,
    pub settle_s: u64,
}

impl Held {
    /// How long the engine may still be at it.
    pub fn unsettled(&self, now: Timestamp) -> Duration {
        rest_of(Duration::from_secs(self.settle_s), self.at, now)
    }
}

/// A container of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helper {
    pub name: String,
    /// When it was asked for.
    pub at: Timestamp,
}

impl Helper {
    /// How long the engine may still be about to create it, whoever asked for it being dead by then.
    pub const SETTLE: Duration = Duration::from_secs(10);

    pub fn unsettled(&self, now: Timestamp) -> Duration {
        rest_of(Self::SETTLE, self.at, now)
    }
}

/// What is left of `limit` since `at`. A clock that went backwards does not make it longer.
fn rest_of(limit: Duration, at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(at)).map_or(limit, |passed| limit.saturating_sub(passed))
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// First line: which run, and where its engine is if it uses one.
    Run { pid: u32, socket: Option<String> },
    /// A container is going to be held.
    Hold(Held),
    /// It runs again, or is gone for good.
    Released { id: String },
    /// A container is going to be created, only to read a volume through it; it is never started.
    Helper(Helper),
    /// It is removed.
    HelperRemoved { name: String },
    /// Something new is going to be made beside live data, of no use without us.
    Scratch { component: String, scratch: Scratch },
    /// Live data is going to be changed.
    Change { component: String, change: Change },
    /// The change is good: from here on it is finished, and not undone any more. `keep`: the old data is saved nowhere
    /// else, and gets a name with this in it.
    Committed { component: String, keep: Option<String> },
    /// The change is finished or undone, and nothing of it is left.
    Settled { component: String },
    /// Everything that this run does from here on, it does to what carries the label of this drill, and to its own files.
    /// Again before each thing that the engine makes for it.
    Drill(Drill),
    /// All of that is removed.
    DrillRemoved { id: String },
}

/// A drill that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drill {
    /// What its label says.
    pub id: String,
    pub at: Timestamp,
}

impl Drill {
    /// How long the engine may still be about to make something of it, whoever asked for it being dead by then.
    pub fn unsettled(&self, now: Timestamp) -> Duration {
        rest_of(Helper::SETTLE, self.at, now)
    }
}

/// What a run has left to undo.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Pending {
    pub socket: Option<String>,
    pub held: Vec<Held>,
    /// All containers that the run ever held, also those that it let go again.
    pub touched: Vec<Held>,
    pub helpers: Vec<Helper>,
    /// Component, and what was made for it beside live data.
    pub scratch: Vec<(String, Scratch)>,
    pub changes: Vec<PendingChange>,
    pub drill: Option<Drill>,
}

/// A change of live data that was not brought to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingChange {
    pub component: String,
    pub change: Change,
    pub committed: bool,
    /// Set when the old data must not be removed, see `Step::Committed`.
    pub keep: Option<String>,
}

impl PendingChange {
    /// Brings a change that was committed to its end.
    pub fn finish(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        match &self.keep {
            Some(id) => self.change.keep(id, engine).map(|_| ()),
            None => self.change.finish(engine),
        }
    }
}

impl Pending {
    fn of(steps: Vec<Step>) -> Self {
        let mut pending = Self::default();
        // What a drill does to things that are thrown away need not be undone.
        let mut drilling = false;
        for step in steps {
            match step {
                Step::Run { socket, .. } => {
                    // A later run without an engine does not take that of what an earlier one left.
                    pending.socket = socket.or(pending.socket);
                    drilling = false;
                }
                Step::Drill(drill) => {
                    pending.drill = Some(drill);
                    drilling = true;
                }
                Step::DrillRemoved { .. } => {
                    pending.drill = None;
                    drilling = false;
                }
                Step::Released { id } => pending.held.retain(|h| h.id != id),
                Step::HelperRemoved { name } => pending.helpers.retain(|h| h.name != name),
                _ if drilling => {}
                Step::Hold(held) => {
                    pending.touched.retain(|h| h.id != held.id);
                    pending.touched.push(held.clone());
                    // Tried again.
                    pending.held.retain(|h| (&h.id, h.how) != (&held.id, held.how));
                    pending.held.push(held);
                }
                Step::Helper(helper) => pending.helpers.push(helper),
                Step::Scratch { component, scratch } => pending.scratch.push((component, scratch)),
                Step::Change { component, change } => {
                    // What lay beside is part of the change now, and may be the old data.
                    pending.scratch.retain(|(c, _)| *c != component);
                    pending.changes.push(PendingChange { component, change, committed: false, keep: None });
                }
                Step::Committed { component, keep } => {
                    for change in pending.changes.iter_mut().filter(|c| c.component == component) {
                        change.committed = true;
                        change.keep.clone_from(&keep);
                    }
                }
                Step::Settled { component } => {
                    pending.scratch.retain(|(c, _)| *c != component);
                    pending.changes.retain(|c| c.component != component);
                }
            }
        }
        pending
    }

    /// Whether live data was being replaced: undoing that writes where a run that only reads may not.
    pub fn is_of_a_restore(&self) -> bool {
        !self.scratch.is_empty() || !self.changes.is_empty()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
            && self.helpers.is_empty()
            && self.scratch.is_empty()
            && self.changes.is_empty()
            && self.drill.is_none()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot write the run journal {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the run journal {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("line {line} of the run journal {path} cannot be understood")]
    Damaged { path: PathBuf, line: usize },
}

impl Hint for JournalError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Damaged { path, .. } => Some(format!(
                "it names the containers that a killed run held: look (cat {}), start them by hand (docker ps -a), \
                 then move it away",
                path.display()
            )),
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room for agent.state_dir".into())
            }
            _ => None,
        }
    }
}

/// The journal of the one run that holds the lock.
pub struct RunJournal {
    path: PathBuf,
    file: Mutex<Option<File>>,
}

impl RunJournal {
    /// Below `dir`; the file is made by the first step.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join(FILE), file: Mutex::new(None) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns once the step is on the disk.
    pub fn record(&self, step: &Step) -> Result<(), JournalError> {
        let wrong = |source| JournalError::Write { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(step).map_err(|e| wrong(e.into()))?;
        line.push(b'\n');
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *open {
            Some(file) => file,
            none => none.insert(self.open().map_err(wrong)?),
        };
        // One write, so that no other line can come between its halves.
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        if written.is_err() {
            // Half a line may be there: the next one opens it anew, which cuts that off.
            *open = None;
        }
        written.map_err(wrong)
    }

    fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
        // A line that a power failure cut has no end: ours must not grow onto it.
        let text = std::fs::read(&self.path)?;
        let whole = text.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        if whole < text.len() {
            file.set_len(whole as u64)?;
        }
        sync_dir(&self.path)?;
        Ok(file)
    }

    /// What is still to undo.
    pub fn pending(&self) -> Result<Pending, JournalError> {
        let text = match std::fs::read(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Pending::default()),
            other => other.map_err(|source| JournalError::Read { path: self.path.clone(), source })?,
        };
        let mut steps = Vec::new();
        for (index, line) in text.split_inclusive(|b| *b == b'\n').enumerate() {
            let Some(line) = line.strip_suffix(b"\n") else { break };
            let step = serde_json::from_slice(line)
                .map_err(|_| JournalError::Damaged { path: self.path.clone(), line: index + 1 })?;
            steps.push(step);
        }
        Ok(Pending::of(steps))
    }

    /// Removes the journal when nothing is left to undo; what is left, otherwise.
    pub fn finish(&self) -> Result<Pending, JournalError> {
        let pending = self.pending()?;
        if pending.is_empty() {
            *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
            let removed = match std::fs::remove_file(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other.and_then(|()| sync_dir(&self.path)),
            };
            removed.map_err(|source| JournalError::Write { path: self.path.clone(), source })?;
        }
        Ok(pending)
    }
}

fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(id: &str) -> Held {
        let (name, number) = (format!("name-{id}"), Some("1".to_owned()));
        let project = Some("deploy".into());
        Held {
            id: id.into(),
            name,
            project,
            service: None,
            number,
            how: How::Stop,
            started_at: String::new(),
            at: Timestamp::UNIX_EPOCH,
            settle_s: 15,
        }
    }

    #[test]
    fn what_is_tried_again_settles_after_the_last_try() {
        let late = |seconds| Timestamp::from_second(seconds).unwrap();
        let hold = |how, seconds| Step::Hold(Held { how, at: late(seconds), ..held("a") });
        let pending = Pending::of(vec![hold(How::Pause, 1), hold(How::Pause, 9)]);
        let Step::Hold(last) = hold(How::Pause, 9) else { unreachable!() };
        assert_eq!(pending.held, [last]);
        let pending =
            Pending::of([1, 9].map(|s| Step::Drill(Drill { id: "d".into(), at: late(s) })).to_vec());
        assert_eq!(pending.drill.unwrap().at, late(9));
    }

    #[test]
    fn a_drill_that_is_still_there_hides_nothing_of_a_later_run() {
        let drill = Drill { id: "d".into(), at: Timestamp::UNIX_EPOCH };
        let run = |socket: Option<&str>| Step::Run { pid: 1, socket: socket.map(str::to_owned) };
        let mut steps = vec![run(Some("/s")), Step::Drill(drill.clone()), Step::Hold(held("thrown away"))];
        steps.extend([run(None), Step::Hold(held("live"))]);
        assert_eq!(Pending::of(steps.clone()).held, [held("live")]);
        // Without it, its containers would be taken for none.
        assert_eq!(Pending::of(steps.clone()).socket.as_deref(), Some("/s"));
        assert_eq!(Pending::of(steps.clone()).drill, Some(drill));
        steps.push(Step::DrillRemoved { id: "d".into() });
        assert_eq!(Pending::of(steps.clone()).held, [held("live")]);
        steps.push(Step::Released { id: "live".into() });
        assert!(Pending::of(steps).is_empty());
    }

    #[test]
    fn what_was_not_released_is_pending_and_keeps_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RunJournal::new(dir.path());
        assert!(journal.pending().unwrap().is_empty());
        journal.record(&Step::Run { pid: 7, socket: Some("/s".into()) }).unwrap();
        journal.record(&Step::Hold(held("a"))).unwrap();
        let helper = Helper { name: "h".into(), at: Timestamp::UNIX_EPOCH };
        journal.record(&Step::Helper(helper.clone())).unwrap();
        journal.record(&Step::Hold(held("b"))).unwrap();
        journal.record(&Step::Released { id: "a".into() }).unwrap();
        let want = Pending {
            socket: Some("/s".into()),
            held: vec![held("b")],
            touched: vec![held("a"), held("b")],
            helpers: vec![helper],
            ..Pending::default()
        };
        assert_eq!(journal.finish().unwrap(), want);
        assert_eq!(RunJournal::new(dir.path()).pending().unwrap(), want);
        journal.record(&Step::Released { id: "b".into() }).unwrap();
        journal.record(&Step::HelperRemoved { name: "h".into() }).unwrap();
        assert!(journal.finish().unwrap().is_empty());
        assert!(!journal.path().exists());
    }

    #[test]
    fn an_act_settles_in_its_time_whatever_the_clock_says() {
        let held = held("a");
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        assert_eq!(held.unsettled(at(5)), Duration::from_secs(10));
        assert_eq!(held.unsettled(at(500)), Duration::ZERO);
        assert_eq!(held.unsettled(at(-500)), Duration::from_secs(15));
    }

    #[test]
    fn old_data_beside_is_never_taken_for_scratch() {
        let change = Change::Within { root: "/r".into(), carried: Vec::new() };
        let component = || "docs".to_owned();
        let mut steps =
            vec![Step::Scratch { component: component(), scratch: Scratch::Path { path: "/r/new".into() } }];
        assert_eq!(Pending::of(steps.clone()).scratch.len(), 1);
        steps.push(Step::Change { component: component(), change });
        let pending = Pending::of(steps.clone());
        assert!(pending.scratch.is_empty() && !pending.changes[0].committed);
        steps.push(Step::Committed { component: component(), keep: Some("id".into()) });
        let committed = &Pending::of(steps.clone()).changes[0];
        assert!(committed.committed && committed.keep.as_deref() == Some("id"));
        steps.push(Step::Settled { component: component() });
        assert!(Pending::of(steps).is_empty());
    }

    #[test]
    fn a_line_cut_by_a_power_failure_is_ignored_and_written_over() {
        let dir = tempfile::tempdir().unwrap();
        RunJournal::new(dir.path()).record(&Step::Hold(held("a"))).unwrap();
        let path = dir.path().join(FILE);
        let mut cut = std::fs::read(&path).unwrap();
        cut.extend_from_slice(b"{\"step\":\"hold\",\"id\":\"b");
        std::fs::write(&path, cut).unwrap();
        let next = RunJournal::new(dir.path());
        assert_eq!(next.pending().unwrap().held, [held("a")]);
        next.record(&Step::Released { id: "a".into() }).unwrap();
        assert!(next.finish().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_line_is_an_error_and_the_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "{\"step\":\"hold\"}\n").unwrap();
        let journal = RunJournal::new(dir.path());
        assert!(matches!(journal.finish(), Err(JournalError::Damaged { line: 1, .. })));
        assert!(path.exists());
    }
}
