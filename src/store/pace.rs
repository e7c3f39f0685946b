//! No faster than was asked for. What could go wrong: a request that waits for its turn looks like a server that does not
//! answer. So the data waits before it is handed over, and all that is written to one store at a time shares one pace.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::cancel::{Cancel, Interrupted};

/// Longest sleep before the flag is looked at again.
const NAP: Duration = Duration::from_millis(100);
/// Bytes that go at a time.
const PIECE: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When the line is free again.
    free: Mutex<Option<Instant>>,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free: Mutex::new(None) }
    }

    /// Waits until `bytes` more may go.
    fn wait(&self, bytes: usize, cancel: &Cancel) -> Result<(), Interrupted> {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let start = free.map_or_else(Instant::now, |t| t.max(Instant::now()));
            *free = Some(start + takes);
            start + takes
        };
        loop {
            cancel.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

/// `data`, at that pace.
pub(super) struct Paced<'a> {
    pub data: &'a mut dyn Read,
    pub pace: Option<&'a Pace>,
    pub cancel: &'a Cancel,
}

impl Read for Paced<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(pace) = self.pace else { return self.data.read(buf) };
        let most = buf.len().min(PIECE);
        let n = self.data.read(&mut buf[..most])?;
        pace.wait(n, self.cancel).map_err(io::Error::other)?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_write_share_the_pace_and_a_stop_ends_the_wait() {
        let pace = Pace::new(1 << 20);
        let cancel = Cancel::default();
        let begin = Instant::now();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    let data = vec![7u8; 128 << 10];
                    let mut out = Vec::new();
                    Paced { data: &mut &data[..], pace: Some(&pace), cancel: &cancel }
                        .read_to_end(&mut out)
                        .unwrap();
                    assert_eq!(out, data);
                });
            }
        });
        // A quarter of a second at least, whatever else the machine does.
        assert!(begin.elapsed() >= Duration::from_millis(250));

        cancel.request(crate::exit::Signal::Interrupt);
        let slow = Pace::new(1);
        let stopped =
            Paced { data: &mut &[1u8; 100][..], pace: Some(&slow), cancel: &cancel }.read(&mut [0; 100]);
        assert!(stopped.is_err());
    }
}
