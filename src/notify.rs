//! What systemd hears of a run: a status line, and more time whenever something really moved. Without systemd: nothing.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// More time that each sign of progress buys; the unit's own start timeout is the same.
const EXTEND: Duration = Duration::from_secs(600);
const EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Notify {
    last: Mutex<Option<Instant>>,
}

impl Notify {
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
        let micros = u32::try_from(EXTEND.as_micros()).unwrap_or(u32::MAX);
        let _ = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }
}
