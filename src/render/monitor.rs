//! The monitor of the face: events become log lines, movement becomes a progress line on a terminal and a status for
//! systemd.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::Record;

use crate::journal::{Fields, Sink};
use crate::notify::Notify;
use crate::progress::{Event, Monitor, What};
use crate::units::{show_bytes, show_duration};
use crate::vault::Vault;

pub struct FaceMonitor {
    run: String,
    vault: Arc<Vault>,
    notify: Notify,
    moved: AtomicU64,
    phase: Mutex<Phase>,
    /// A progress line is drawn on standard error.
    line: bool,
    sink: Sink,
}

struct Phase {
    text: String,
    total: Option<u64>,
    /// Value of `moved` when it began.
    base: u64,
    started: Instant,
    drawn: Option<Instant>,
}

const REDRAW: Duration = Duration::from_millis(200);

impl FaceMonitor {
    pub fn new(run: String, vault: Arc<Vault>, sink: Sink, quiet: bool) -> Self {
        let line = sink == Sink::Stderr && !quiet && std::io::stderr().is_terminal();
        let phase = Phase { text: String::new(), total: None, base: 0, started: Instant::now(), drawn: None };
        Self {
            run,
            vault,
            notify: Notify::default(),
            moved: AtomicU64::new(0),
            phase: Mutex::new(phase),
            line,
            sink,
        }
    }

    /// Sources may say nothing for so long.
    pub fn allow_silence(&self, longest: Duration) {
        self.notify.allow_silence(longest);
    }

    /// Takes the progress line away; called before anything else is printed.
    pub fn clear(&self) {
        if self.line {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }

    fn show(&self, phase: &mut Phase) {
        if !self.line || phase.drawn.is_some_and(|at| at.elapsed() < REDRAW) {
            return;
        }
        phase.drawn = Some(Instant::now());
        let text = self.progress_text(phase);
        let _ = write!(std::io::stderr().lock(), "\r\x1b[K{text}");
    }

    fn progress_text(&self, phase: &Phase) -> String {
        let done = self.moved.load(Ordering::Relaxed) - phase.base;
        let seconds = phase.started.elapsed().as_secs_f64();
        let mut text = format!("{}: {}", phase.text, show_bytes(done));
        if seconds > 0.5 && done > 0 {
            let rate = done as f64 / seconds;
            text.push_str(&format!(", {}/s", show_bytes(rate as u64)));
            if let Some(left) = phase.total.and_then(|t| t.checked_sub(done)) {
                let eta = Duration::from_secs_f64(left as f64 / rate);
                text.push_str(&format!(", {} left", show_duration(eta)));
            }
        }
        text
    }
}

impl Monitor for FaceMonitor {
    fn event(&self, event: Event) {
        // On a terminal the result of the command says the same.
        let told = matches!(event.what, What::VerifyGood | What::VerifyBad | What::StoreInitialised);
        if told && self.sink == Sink::Stderr {
            return;
        }
        let message = self.vault.scrub(&event.message);
        let mut fields = vec![
            ("MESSAGE_ID", event.what.message_id().to_owned()),
            ("TARS_BACKUP_EVENT", event.what.name().to_owned()),
            ("TARS_BACKUP_RUN", self.run.clone()),
        ];
        let mut field = |key, value: Option<String>| fields.extend(value.map(|v| (key, v)));
        field("TARS_BACKUP_NAME", event.name);
        field("TARS_BACKUP_COMPONENT", event.component);
        field("TARS_BACKUP_STORE", event.store);
        field("TARS_BACKUP_TIER", event.tier);
        field("TARS_BACKUP_BYTES", event.bytes.map(|n| n.to_string()));
        field("TARS_BACKUP_DURATION_MS", event.duration_ms.map(|n| n.to_string()));
        self.clear();
        log::logger().log(
            &Record::builder()
                .args(format_args!("{message}"))
                .level(event.what.level())
                .target("tars_backup")
                .key_values(&Fields(fields))
                .build(),
        );
        if self.sink == Sink::Journal {
            self.notify.status(&message);
        }
    }

    fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        // Another thread that draws right now will do.
        if let Ok(mut phase) = self.phase.try_lock() {
            self.notify.moving(|| self.progress_text(&phase));
            self.show(&mut phase);
        }
    }

    fn phase(&self, text: &str, total: Option<u64>) {
        if let Ok(mut phase) = self.phase.lock() {
            *phase = Phase {
                text: text.to_owned(),
                total,
                base: self.moved.load(Ordering::Relaxed),
                started: Instant::now(),
                drawn: None,
            };
        }
        self.notify.phase(text);
    }

    fn waiting(&self, text: &str) {
        self.notify.moving(|| text.to_owned());
    }
}
