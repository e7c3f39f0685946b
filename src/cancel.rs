//! One flag that ends a run in good order. Loops that move bytes ask it between two pieces; waits select on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

use crate::exit::Signal;

/// The run was asked to stop; whoever sees this stops, cleans up and passes it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    signal: Arc<AtomicU8>,
}

impl Cancel {
    /// The first signal wins; later ones change nothing.
    pub fn request(&self, signal: Signal) {
        let value = match signal {
            Signal::Interrupt => 1,
            Signal::Terminate => 2,
        };
        let _ = self.signal.compare_exchange(0, value, Ordering::SeqCst, Ordering::SeqCst);
        self.token.cancel();
    }

    /// A flag that is also raised when this one is; raising it leaves this one alone.
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), signal: self.signal.clone() }
    }

    /// Raises the flag without a signal: a part of the run is to end, not the run.
    pub fn stop(&self) {
        self.token.cancel();
    }

    pub fn signal(&self) -> Option<Signal> {
        match self.signal.load(Ordering::SeqCst) {
            1 => Some(Signal::Interrupt),
            2 => Some(Signal::Terminate),
            _ => None,
        }
    }

    pub fn check(&self) -> Result<(), Interrupted> {
        if self.token.is_cancelled() { Err(Interrupted) } else { Ok(()) }
    }

    pub async fn requested(&self) {
        self.token.cancelled().await;
    }
}
