//! What systemd hears of a run: a status line, and more time whenever something really moved. Without systemd: nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// More time that each sign of progress buys; the unit's own start timeout is the same.
const EXTEND: Duration = Duration::from_secs(600);
/// What stays after a source's own deadline to say so and to go on.
const MARGIN: Duration = Duration::from_secs(120);
const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Notify {
    last: Mutex<Option<Instant>>,
    /// Seconds that a source may be silent by its own configuration.
    silence_s: AtomicU64,
}

impl Notify {
    /// Sources may be silent for so long. Each has its own deadline and fails alone by it; the unit's timeout must not
    /// come first and take the whole run down.
    pub fn allow_silence(&self, longest: Duration) {
        self.silence_s.store(longest.as_secs(), Ordering::Relaxed);
    }

    fn extension(&self) -> Duration {
        EXTEND.max(Duration::from_secs(self.silence_s.load(Ordering::Relaxed)) + MARGIN)
    }

    /// The status that `systemctl status` shows.
    pub fn status(&self, text: &str) {
        // A line break would start another assignment.
        let line = text.replace(['\n', '\r'], " ");
        let _ = sd_notify::notify(&[NotifyState::Status(&line)]);
    }

    /// Something moved: the start timeout begins anew. At most once a second; `text` is the status then.
    pub fn moving(&self, text: impl FnOnce() -> String) {
        let Ok(mut last) = self.last.lock() else { return };
        if last.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        self.status(&text());
        self.extend();
    }

    /// A new phase by itself is no progress, and buys no time; only a source that may be silent for longer than the
    /// unit waits gets it before its silence begins.
    pub fn phase(&self, text: &str) {
        self.status(text);
        if self.extension() > EXTEND {
            self.extend();
        }
    }

    fn extend(&self) {
        let micros = u32::try_from(self.extension().as_micros()).unwrap_or(u32::MAX);
        let _ = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
}
