//! What systemd is asked and told, through its own programs. What could go wrong: a manager that does not answer, so every
//! question has a deadline; and a text that is made for people, so only forms are asked for that do not change.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;

use crate::cancel::Cancel;
use crate::process::{Process, ProcessError, Request};

const DEADLINE: Duration = Duration::from_secs(60);
/// More than any answer has.
const LONGEST: usize = 1 << 20;

/// Whether systemd runs this host.
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

pub struct Systemd {
    runtime: Handle,
    cancel: Cancel,
}

impl Systemd {
    pub fn new(runtime: Handle, cancel: Cancel) -> Self {
        Self { runtime, cancel }
    }

    /// Runs `systemctl`; its output.
    pub fn control(&self, args: &[&str]) -> Result<String, ProcessError> {
        self.ask("systemctl", args)
    }

    /// Properties of a unit, as far as it has them. Times inside of lists come as seconds since 1970 with an `@` before.
    pub fn show(&self, unit: &str, properties: &[&str]) -> Result<BTreeMap<String, String>, ProcessError> {
        let wanted = format!("--property={}", properties.join(","));
        let text = self.control(&["show", "--timestamp=unix", &wanted, "--", unit])?;
        let pair = |line: &str| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// The next `count` moments of a calendar expression after `from`; an error where it is none.
    pub fn calendar(
        &self,
        expression: &str,
        from: Timestamp,
        count: usize,
    ) -> Result<Vec<Timestamp>, ProcessError> {
        let (iterations, base) =
            (format!("--iterations={count}"), format!("--base-time=@{}", from.as_second()));
        let text = self.ask("systemd-analyze", &["calendar", &iterations, &base, "--", expression])?;
        Ok(moments(&text))
    }

    fn ask(&self, program: &str, args: &[&str]) -> Result<String, ProcessError> {
        let request = Request {
            argv: std::iter::once(program).chain(args.iter().copied()).map(str::to_owned).collect(),
            env: [("LC_ALL", "C"), ("SYSTEMD_COLORS", "0"), ("SYSTEMD_PAGER", "")]
                .map(|(k, v)| (k.into(), v.into()))
                .into(),
            dir: None,
            total: DEADLINE,
            idle: DEADLINE,
        };
        let mut process = Process::start(&request, self.runtime.clone(), self.cancel.clone())?;
        let (mut out, mut buffer) = (Vec::new(), [0u8; 8192]);
        loop {
            match process.read(&mut buffer)? {
                0 => break,
                n if out.len() < LONGEST => out.extend_from_slice(&buffer[..n]),
                _ => {}
            }
        }
        process.finish()?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

/// A time as `systemctl --timestamp=unix` writes it; None of one that is not set.
pub fn unix_time(text: &str) -> Option<Timestamp> {
    Timestamp::from_second(text.strip_prefix('@')?.parse().ok()?).ok()
}

/// The moments in UTC of what `systemd-analyze calendar` says: it adds them where the clock shows another time.
fn moments(text: &str) -> Vec<Timestamp> {
    let one = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [.., date, time, "UTC"] = words.as_slice() else { return None };
        format!("{date}T{time}Z").parse().ok()
    };
    text.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_utc() {
        let local = "  Original form: daily\nNormalized form: *-*-* 00:00:00\n    Next elapse: Mon 2026-11-23 00:00:00 CET\n       (in UTC): Sun 2026-11-22 23:00:00 UTC\n       From now: 3h left\n   Iteration #2: Tue 2026-11-24 00:00:00 CET\n       (in UTC): Mon 2026-11-23 23:00:00 UTC\n";
        let utc = "    Next elapse: Sun 2026-11-22 23:00:00 UTC\n       From now: 3h left\n   Iteration #2: Mon 2026-11-23 23:00:00 UTC\n";
        let wanted: Vec<Timestamp> =
            ["2026-11-22T23:00:00Z", "2026-11-23T23:00:00Z"].iter().map(|t| t.parse().unwrap()).collect();
        assert_eq!(moments(local), wanted);
        assert_eq!(moments(utc), wanted);
        assert_eq!(moments("    Next elapse: never\n"), []);
    }

    #[test]
    fn a_time_that_is_not_set_is_none() {
        assert_eq!(unix_time("@1763784000").map(Timestamp::as_second), Some(1_763_784_000));
        assert_eq!((unix_time(""), unix_time("n/a"), unix_time("@0x")), (None, None, None));
    }
}
