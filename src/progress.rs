//! How an operation tells what it does. Operations never print: they speak to a `Monitor`, and the face decides
//! whether that is a terminal, the journal, a systemd status line or a test.

use log::Level;

/// What happened; its name is the journal field `TARS_BACKUP_EVENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    RunStarted,
    ComponentStarted,
    ComponentCaptured,
    ComponentFailed,
    Warning,
    Packing,
    Delivering,
    StoreFailed,
    Committed,
    RunFinished,
    RunFailed,
    VerifyGood,
    VerifyBad,
    LeftoverRemoved,
    ContainerHeld,
    ContainerReleased,
    ContainerLeft,
    RestoreStarted,
    RestoreReplaced,
    RestoreUndone,
    RestoreFailed,
    RestoreFinished,
    StoreInitialised,
    AnomalyFound,
    AnomalyAccepted,
    PruneTrashed,
    PruneDeleted,
    PruneSwept,
    PruneHalted,
    PruneFailed,
    TrashUndone,
    PinSet,
    PinCleared,
    Promoted,
    Waiting,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            Self::RunStarted => "run.started",
            Self::ComponentStarted => "component.started",
            Self::ComponentCaptured => "component.captured",
            Self::ComponentFailed => "component.failed",
            Self::Warning => "warning",
            Self::Packing => "archive.packing",
            Self::Delivering => "store.delivering",
            Self::StoreFailed => "store.failed",
            Self::Committed => "backup.committed",
            Self::RunFinished => "run.finished",
            Self::RunFailed => "run.failed",
            Self::VerifyGood => "verify.good",
            Self::VerifyBad => "verify.bad",
            Self::LeftoverRemoved => "leftover.removed",
            Self::ContainerHeld => "container.held",
            Self::ContainerReleased => "container.released",
            Self::ContainerLeft => "container.left",
            Self::RestoreStarted => "restore.started",
            Self::RestoreReplaced => "restore.replaced",
            Self::RestoreUndone => "restore.undone",
            Self::RestoreFailed => "restore.failed",
            Self::RestoreFinished => "restore.finished",
            Self::StoreInitialised => "store.initialised",
            Self::AnomalyFound => "anomaly.found",
            Self::AnomalyAccepted => "anomaly.accepted",
            Self::PruneTrashed => "prune.trashed",
            Self::PruneDeleted => "prune.deleted",
            Self::PruneSwept => "prune.swept",
            Self::PruneHalted => "prune.halted",
            Self::PruneFailed => "prune.failed",
            Self::TrashUndone => "trash.undone",
            Self::PinSet => "pin.set",
            Self::PinCleared => "pin.cleared",
            Self::Promoted => "backup.promoted",
            Self::Waiting => "lock.waiting",
        }
    }

    pub fn level(self) -> Level {
        match self {
            Self::ComponentFailed
            | Self::StoreFailed
            | Self::RunFailed
            | Self::VerifyBad
            | Self::RestoreFailed
            | Self::PruneFailed
            | Self::ContainerLeft => Level::Error,
            Self::Warning | Self::LeftoverRemoved | Self::AnomalyFound | Self::PruneHalted => Level::Warn,
            _ => Level::Info,
        }
    }
}

/// One line of the audit trail, with its fields.
#[derive(Debug, Clone)]
pub struct Event {
    pub what: What,
    pub message: String,
    pub name: Option<String>,
    pub component: Option<String>,
    pub store: Option<String>,
    pub tier: Option<String>,
    pub bytes: Option<u64>,
    pub duration_ms: Option<u64>,
}

impl Event {
    pub fn new(what: What, message: impl Into<String>) -> Self {
        Self {
            what,
            message: message.into(),
            name: None,
            component: None,
            store: None,
            tier: None,
            bytes: None,
            duration_ms: None,
        }
    }

    pub fn backup(mut self, name: impl ToString) -> Self {
        self.name = Some(name.to_string());
        self
    }

    pub fn component(mut self, component: impl ToString) -> Self {
        self.component = Some(component.to_string());
        self
    }

    pub fn store(mut self, store: impl ToString) -> Self {
        self.store = Some(store.to_string());
        self
    }

    pub fn tier(mut self, tier: impl ToString) -> Self {
        self.tier = Some(tier.to_string());
        self
    }

    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    pub fn took(mut self, since: std::time::Instant) -> Self {
        self.duration_ms = Some(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        self
    }
}

pub trait Monitor: Send + Sync {
    fn event(&self, event: Event);

    /// `bytes` more were moved. Called only when something really moved: systemd's start timeout hangs on it.
    fn moved(&self, bytes: u64);

    /// A new phase begins; `total` bytes are expected where that is known.
    fn phase(&self, text: &str, total: Option<u64>);

    /// A wait that has its own deadline goes on (a lock, a server that saves).
    fn waiting(&self, text: &str);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// For tests that do not look at what is told.
    pub(crate) struct Quiet;

    impl Monitor for Quiet {
        fn event(&self, _: Event) {}
        fn moved(&self, _: u64) {}
        fn phase(&self, _: &str, _: Option<u64>) {}
        fn waiting(&self, _: &str) {}
    }
}
