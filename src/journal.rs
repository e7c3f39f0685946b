//! Where log lines go: to the journal with their fields where systemd runs us, to standard error elsewhere.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use log::kv::{self, Key, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use systemd_journal_logger::{JournalLog, connected_to_journal};

const IDENTIFIER: &str = "tars-backup";
/// A journal that does not answer must not hold up the end of a run.
const SETTLE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    Journal,
    Stderr,
}

/// Installs the logger of this process. Only our own lines pass, unless `level` is Trace.
pub fn install(level: LevelFilter) -> Sink {
    let mut sink = Sink::Stderr;
    if connected_to_journal()
        && let Ok(journal) = JournalLog::empty()
    {
        let journal = journal.with_syslog_identifier(IDENTIFIER.to_owned());
        if log::set_boxed_logger(Box::new(Ours { inner: journal, level })).is_ok() {
            sink = Sink::Journal;
        }
    }
    if sink == Sink::Stderr {
        // A second installation is only possible in tests, which do not look at lines.
        let _ = log::set_boxed_logger(Box::new(Ours { inner: Stderr, level }));
    }
    log::set_max_level(level);
    sink
}

/// Returns when the journal has taken every line of this process. It asks the kernel about a sender only when it takes a
/// line, and no longer learns the unit of one that is gone: without this wait a quick failure may be missing from
/// `journalctl -u`, and nobody sees why the run failed.
pub fn settle(sink: Sink) {
    if sink == Sink::Journal {
        // Only root may ask. Without an answer the lines still arrive, most of the time with their unit.
        let _ = synchronize();
    }
}

/// What `journalctl --sync` does.
fn synchronize() -> io::Result<()> {
    let mut socket = UnixStream::connect("/run/systemd/journal/io.systemd.journal")?;
    socket.set_read_timeout(Some(SETTLE))?;
    socket.set_write_timeout(Some(SETTLE))?;
    socket.write_all(b"{\"method\":\"io.systemd.Journal.Synchronize\"}\0")?;
    BufReader::new(socket).read_until(0, &mut Vec::new())?;
    Ok(())
}

/// Keeps the lines of libraries out: some print requests, and with them secrets.
struct Ours<L> {
    inner: L,
    level: LevelFilter,
}

impl<L: Log> Log for Ours<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tars_backup") && metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.inner.log(record);
        }
    }

    fn flush(&self) {
        self.inner.flush();
    }
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mark = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            _ => "",
        };
        // Nobody is left to tell when standard error is closed.
        let text = crate::id::show_text(&record.args().to_string());
        let _ = writeln!(std::io::stderr().lock(), "{mark}{text}");
    }

    fn flush(&self) {}
}

/// Fields of a line, in the shape that the logger takes.
pub struct Fields<'a>(pub Vec<(&'a str, String)>);

impl kv::Source for Fields<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        for (key, value) in &self.0 {
            visitor.visit_pair(Key::from_str(key), kv::Value::from(value.as_str()))?;
        }
        Ok(())
    }
}
