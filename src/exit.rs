//! What the caller of the program learns from its exit status. The only place where a code is chosen.

/// Signals that end a run in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Interrupt,
    Terminate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, all of it.
    Ok,
    /// Failed: nothing usable made or changed.
    Failed,
    /// Degraded or partial: the rest is usable. For verify and drill: not checked as deep as asked.
    Partial,
    /// The command line is wrong.
    Usage,
    /// Another run holds the lock.
    Busy,
    /// The configuration is wrong.
    Config,
    /// Stopped by a signal, cleaned up.
    Interrupted(Signal),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Partial => 2,
            Self::Usage => 64,
            Self::Busy => 75,
            Self::Config => 78,
            Self::Interrupted(Signal::Interrupt) => 130,
            Self::Interrupted(Signal::Terminate) => 143,
        }
    }

    /// The graver of two results of one command: bad beats unfinished beats good.
    pub fn worst(self, other: Self) -> Self {
        let rank = |e: Self| match e {
            Self::Ok => 0,
            Self::Partial => 1,
            Self::Failed => 2,
            Self::Usage | Self::Busy | Self::Config | Self::Interrupted(_) => 3,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// How a run ended, in the terms that choose its exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// At least one store holds the committed backup.
    pub committed: bool,
    /// Every component that was asked for is in it, whole.
    pub all_captured: bool,
    /// Every store of the tier has it.
    pub all_delivered: bool,
    /// Every container that was held runs again.
    pub all_released: bool,
    /// No component shrank to under half.
    pub as_before: bool,
    /// What the rules let go could be deleted.
    pub all_pruned: bool,
}

impl From<Verdict> for Exit {
    fn from(v: Verdict) -> Self {
        match v {
            Verdict { committed: false, .. } => Self::Failed,
            Verdict {
                all_captured: true,
                all_delivered: true,
                all_released: true,
                as_before: true,
                all_pruned: true,
                ..
            } => Self::Ok,
            _ => Self::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_backup_in_every_store_is_ok() {
        for bits in 0..64u8 {
            let v = Verdict {
                committed: bits & 1 > 0,
                all_captured: bits & 2 > 0,
                all_delivered: bits & 4 > 0,
                all_released: bits & 8 > 0,
                as_before: bits & 16 > 0,
                all_pruned: bits & 32 > 0,
            };
            let want = match (v.committed, bits | 1 == 63) {
                (false, _) => 1,
                (true, true) => 0,
                (true, false) => 2,
            };
            assert_eq!(Exit::from(v).code(), want, "{v:?}");
        }
    }

    #[test]
    fn the_worst_result_wins() {
        assert_eq!(Exit::Ok.worst(Exit::Partial).worst(Exit::Ok), Exit::Partial);
        assert_eq!(Exit::Failed.worst(Exit::Partial), Exit::Failed);
    }
}
