//! Can the clocks be believed? Ages decide what is deleted, and a clock that is wrong makes everything old.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use crate::ops::World;
use crate::store::{Put, Store, StoreError, home, object};
use crate::whole_file;

/// Clocks of two machines differ a little; more than this is a fault.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// In the state directory: what this machine's clock showed at the end of the last run that pruned.
const NOTE: &str = "clock";

/// Why this machine's clock cannot be believed: it shows less than it did when it was last noted.
pub(super) fn went_back(state_dir: &Path, now: Timestamp) -> Option<String> {
    let last: Option<Timestamp> =
        std::fs::read_to_string(state_dir.join(NOTE)).ok().and_then(|t| t.trim().parse().ok());
    let last = last.filter(|last| last.duration_since(now) > TOLERANCE)?;
    Some(format!("the clock of this machine went back: it showed {last} the last time, and shows {now} now"))
}

/// Notes what it shows, in any case, so that a clock that was put right is believed by the next run. Once in a run: all
/// that it would delete is held back.
pub(super) fn note(state_dir: &Path, now: Timestamp) -> std::io::Result<()> {
    whole_file::write(&state_dir.join(NOTE), format!("{now}\n").as_bytes())
}

/// Why the two clocks cannot both be right: what is written now has another time in the store. None: they agree, or the
/// store does not tell.
pub(super) fn differs(
    store: &dyn Store,
    host: &str,
    world: &World<'_>,
) -> Result<Option<String>, StoreError> {
    let dir = home(store, host);
    store.sweep(&dir)?;
    let probe = object(&dir, "tars-backup-clock");
    let before = (world.now)();
    match store.put_small(&probe, b"the time of this object shows the clock of the store\n", Put::Replace) {
        // Then nothing can be asked that way, and room is what is needed.
        Err(e) if e.is_full() => return Ok(None),
        put => put?,
    }
    let there = store.modified(&probe, world.cancel)?;
    let after = (world.now)();
    store.delete(&probe)?;
    let Some(there) = there else { return Ok(None) };
    if there >= before - TOLERANCE && there <= after + TOLERANCE {
        return Ok(None);
    }
    Ok(Some(format!(
        "the clocks differ: this machine shows {after}, the store {} shows {there}",
        store.name()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_back_is_told_until_it_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(went_back(dir.path(), at("2026-03-01T00:00:00Z")), None);
        note(dir.path(), at("2026-03-01T12:00:00Z")).unwrap();
        assert_eq!(went_back(dir.path(), at("2026-03-01T11:56:00Z")), None, "a correction is no jump");
        // Making room, and what is pruned after it, are of one run.
        for _ in 0..2 {
            let told = went_back(dir.path(), at("2026-02-28T00:00:00Z")).unwrap();
            assert!(told.contains("2026-03-01T12:00:00Z"), "{told}");
        }
        note(dir.path(), at("2026-02-28T00:00:00Z")).unwrap();
        assert_eq!(went_back(dir.path(), at("2026-02-28T00:01:00Z")), None);
    }
}
