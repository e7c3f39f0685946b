//! Is what a component holds today far less than it was? What could go wrong: a database that was emptied at noon is backed
//! up well at night, and the rules then let the good ones go. So a component that is empty, or under half of what the
//! newest good backup has, is told, and while nobody accepts it nothing is deleted.

use std::collections::BTreeMap;

use crate::manifest::{ComponentState, Manifest};
use crate::units::show_bytes;

/// A component that shrank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    pub component: String,
    /// Bytes that were read.
    pub now: u64,
    /// The same in the backup that it is compared with.
    pub before: u64,
}

impl std::fmt::Display for Anomaly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (now, before) = (show_bytes(self.now), show_bytes(self.before));
        match self.now {
            0 => write!(f, "{} is empty, and had {before}", self.component),
            _ => write!(f, "{} has {now}, under half of {before}", self.component),
        }
    }
}

/// Bytes of each component that is whole.
pub fn sizes(manifest: &Manifest) -> BTreeMap<String, u64> {
    let whole = manifest.details.iter().filter(|(_, c)| c.state == ComponentState::Whole);
    whole.map(|(name, c)| (name.clone(), c.bytes_in)).collect()
}

/// What shrank to under half, among the components that are `watched`. What was not there before, or is not whole now, is
/// no matter of size.
pub fn anomalies(
    now: &BTreeMap<String, u64>,
    before: &BTreeMap<String, u64>,
    watched: impl Fn(&str) -> bool,
) -> Vec<Anomaly> {
    let shrunk = |(name, bytes): (&String, &u64)| {
        let before = *before.get(name)?;
        // Twice as much cannot overflow where it is compared in 128 bits.
        let shrank = before > 0 && u128::from(*bytes) * 2 < u128::from(before);
        (shrank && watched(name)).then(|| Anomaly { component: name.clone(), now: *bytes, before })
    };
    now.iter().filter_map(shrunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes_of(list: &[(&str, u64)]) -> BTreeMap<String, u64> {
        list.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
    }

    #[test]
    fn under_half_is_told_and_half_is_not() {
        let before = sizes_of(&[("a", 100), ("b", 100), ("c", 100), ("d", 0), ("gone", 5), ("e", 100)]);
        let now = sizes_of(&[("a", 49), ("b", 50), ("c", 0), ("d", 0), ("new", 1), ("e", 1)]);
        let told: Vec<String> =
            anomalies(&now, &before, |name| name != "e").into_iter().map(|a| a.to_string()).collect();
        assert_eq!(told, ["a has 49 B, under half of 100 B", "c is empty, and had 100 B"]);
        let huge = sizes_of(&[("a", u64::MAX)]);
        assert!(anomalies(&huge, &huge, |_| true).is_empty());
    }
}
