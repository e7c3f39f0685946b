//! How an operation tells what it does. Operations never print: they speak to a `Monitor`, and the face decides
//! whether that is a terminal, the journal, a systemd status line or a test.

use log::Level;

/// What happened; its name is the journal field `TARS_BACKUP_EVENT`. Names and numbers never change their meaning.
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
    DrillStarted,
    DrillGood,
    DrillPartly,
    DrillBad,
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
    NotReady,
    TierAbsent,
    RecoveryHandedOver,
    HostHeld,
    HostAccepted,
    PackageKept,
    HookRun,
    HookFailed,
}

impl What {
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// Field `MESSAGE_ID` of the journal; `packaging/systemd/tars-backup.catalog` explains each.
    pub fn message_id(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::RunStarted => ("run.started", "e49a390241be4ee897419b34320d6757"),
            Self::ComponentStarted => ("component.started", "9e6fd0e312c24ec2b9fe1b3772e995a8"),
            Self::ComponentCaptured => ("component.captured", "356111496cdb433da80dc48bd25d22d1"),
            Self::ComponentFailed => ("component.failed", "3c4e53ffc3b04a82a7212856c20b1db4"),
            Self::Warning => ("warning", "08ac7f9724974218a6eb720ffe213bfd"),
            Self::Packing => ("archive.packing", "744f773b6627497b9e02a5f519211da4"),
            Self::Delivering => ("store.delivering", "a2569c59415246ca86fd84e225d524a1"),
            Self::StoreFailed => ("store.failed", "e83dd14aecd747c284e85999dd9abe76"),
            Self::Committed => ("backup.committed", "21ff540f5aaf4c09bcd771dc74ad5ef6"),
            Self::RunFinished => ("run.finished", "d0a7487df6a74bc4b6a3e12adacc7e21"),
            Self::RunFailed => ("run.failed", "24f0875e0f41430d8fca2684fda98866"),
            Self::VerifyGood => ("verify.good", "abff78ee91cd4692b84b012824df7faa"),
            Self::VerifyBad => ("verify.bad", "834b600a47214b0e93d713cb43aa6554"),
            Self::DrillStarted => ("drill.started", "bf9b140d7352492dbef05a4bd02b3174"),
            Self::DrillGood => ("drill.good", "d8ee6c8fb9f34c479fda7cca1691616e"),
            Self::DrillPartly => ("drill.partly", "0ca56b1255864873ae2cc13bd507de5b"),
            Self::DrillBad => ("drill.bad", "8fb2b1748bd442988311bfe348d4a306"),
            Self::LeftoverRemoved => ("leftover.removed", "fe75e4ca15844bfeb40e1375417f6428"),
            Self::ContainerHeld => ("container.held", "c3efe0a9ab6f41afa413aa02fd70f282"),
            Self::ContainerReleased => ("container.released", "99b86d3fa36f4128921d3a5f46b30c69"),
            Self::ContainerLeft => ("container.left", "8b7e04a67b6c4597aa20bc5ba2b2ee4c"),
            Self::RestoreStarted => ("restore.started", "305350481eec487b9b1c9f0d0ed8e82f"),
            Self::RestoreReplaced => ("restore.replaced", "5ec80e8f833448c79d10e19a42013ea3"),
            Self::RestoreUndone => ("restore.undone", "c4d521cd65674e20825240acec37a86b"),
            Self::RestoreFailed => ("restore.failed", "e8d7e46117ea4d0cbd878a0f5676783a"),
            Self::RestoreFinished => ("restore.finished", "8b712ab213ac4849ab48ac27d6028f35"),
            Self::StoreInitialised => ("store.initialised", "59a4ed86913843e98be82475506be95a"),
            Self::AnomalyFound => ("anomaly.found", "d56d51c5cfe34eb0b97c2c69e1fb6442"),
            Self::AnomalyAccepted => ("anomaly.accepted", "bd26344c36484b4cbd762c48e25989c9"),
            Self::PruneTrashed => ("prune.trashed", "1d9411bdb5d043bfbbf33c51d0210773"),
            Self::PruneDeleted => ("prune.deleted", "1f2edb39f9d34012bd11a2e577a2345f"),
            Self::PruneSwept => ("prune.swept", "db8a21ff147b4df28f684337242782dd"),
            Self::PruneHalted => ("prune.halted", "0a16ae4f0cc9418d8797a1c09e836e4b"),
            Self::PruneFailed => ("prune.failed", "92eb327e0d454a728b8fb6fc8f2479a6"),
            Self::TrashUndone => ("trash.undone", "8ade75331a8447cd9629b871dace55b1"),
            Self::PinSet => ("pin.set", "b08697feda8d435b8df158beb958ad75"),
            Self::PinCleared => ("pin.cleared", "cf84646d902d47a0aef93b0b62553d0e"),
            Self::Promoted => ("backup.promoted", "4bc64b29096f4e06a0d8e31cabb781ed"),
            Self::Waiting => ("lock.waiting", "6be08656e8f643758821a2a6fb99822e"),
            Self::NotReady => ("run.not-ready", "fd5222b6fd3a45cebc7eb0ea993d87cb"),
            Self::TierAbsent => ("tier.absent", "6aca7f89e9e64d309292e14ca1b4c6bf"),
            Self::RecoveryHandedOver => ("recovery.handed-over", "64bf1fbf276b44fea18bb108f5af032c"),
            Self::HostHeld => ("host.held", "4c66c79075f246b790bc68118eb2d6a4"),
            Self::HostAccepted => ("host.accepted", "bf9ef0687e344dfa9384b5c621e47bf5"),
            Self::PackageKept => ("package.kept", "d6f495fb560943c89a607ec539bed9bc"),
            Self::HookRun => ("hook.run", "87db4b7645f540de923ebc15b4f49647"),
            Self::HookFailed => ("hook.failed", "1981521ea7334839b3f7a7ea501975f0"),
        }
    }

    pub fn level(self) -> Level {
        match self {
            Self::ComponentFailed
            | Self::StoreFailed
            | Self::RunFailed
            | Self::VerifyBad
            | Self::DrillBad
            | Self::RestoreFailed
            | Self::PruneFailed
            | Self::HookFailed
            | Self::ContainerLeft => Level::Error,
            Self::Warning
            | Self::DrillPartly
            | Self::LeftoverRemoved
            | Self::AnomalyFound
            | Self::PruneHalted
            | Self::RecoveryHandedOver
            | Self::HostHeld => Level::Warn,
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

    /// Keeps what is told.
    #[derive(Default)]
    pub(crate) struct Listener(pub std::sync::Mutex<Vec<String>>);

    impl Monitor for Listener {
        fn event(&self, event: Event) {
            self.0.lock().unwrap().push(event.message);
        }
        fn moved(&self, _: u64) {}
        fn phase(&self, _: &str, _: Option<u64>) {}
        fn waiting(&self, _: &str) {}
    }

    impl Monitor for Quiet {
        fn event(&self, _: Event) {}
        fn moved(&self, _: u64) {}
        fn phase(&self, _: &str, _: Option<u64>) {}
        fn waiting(&self, _: &str) {}
    }
}
