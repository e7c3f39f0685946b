//! Tiers: what is backed up when, to which stores, under which path.

use std::time::Duration;

use super::section::{Section, nearest};
use crate::id::Name;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Components {
    /// Every source that is on by default.
    Default,
    All,
    These(Vec<String>),
}

/// How long backups of a tier are kept. Decides nothing by itself: `retention` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// Calendar months and days.
    pub within: Option<(u32, u32)>,
    pub last: Option<u32>,
    pub daily: Option<u32>,
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    pub forever: bool,
    pub min: u32,
}

#[derive(Debug, Clone)]
pub struct Tier {
    pub name: Name,
    pub stores: Vec<String>,
    /// Directory below the root of each store.
    pub path: String,
    pub components: Components,
    pub keep: Keep,
    /// Days that what a rule lets go lies in the trash, from where it can be had back.
    pub trash_days: u32,
    /// Tier whose newest good backup is copied, instead of making one.
    pub promote_from: Option<String>,
    /// How old that may be.
    pub max_age: Option<Duration>,
    /// systemd calendar expression of its timer.
    pub schedule: Option<String>,
}

impl Tier {
    pub fn read_all(root: &Section<'_>) -> Vec<Self> {
        let mut tiers = Vec::new();
        for (name, section) in root.tables("tiers") {
            let tier = Self::read(&name, &section);
            section.finish();
            tiers.extend(tier);
        }
        tiers
    }

    pub fn read(name: &str, s: &Section<'_>) -> Option<Self> {
        let parsed = name.parse::<Name>().map_err(|e| s.problem("", e.to_string(), None)).ok();
        let path = s
            .text(
                "path",
                "Directory of this tier below the root of each store; default: the name of the tier",
            )
            .unwrap_or_else(|| name.to_owned());
        if !is_tier_path(&path) {
            s.problem(
                "path",
                "must be a relative path of plain names",
                Some("for example \"daily\" or \"tars/daily\"".into()),
            );
        }
        let stores = s.texts("stores", "Stores that get each backup of this tier");
        if stores.is_empty() && s.is_present() {
            s.problem("stores", "names no store", Some("add stores = [\"nas\"]".into()));
        }
        let listed =
            s.texts("components", "\"default\" (sources with on_by_default), \"all\", or a list of sources");
        let components = match listed.as_slice() {
            [] => Components::Default,
            [one] if one == "default" => Components::Default,
            [one] if one == "all" => Components::All,
            _ => Components::These(listed),
        };
        let schedule = s.text("schedule", "When its timer fires, as systemd.time(7) writes it");
        let keep = Keep::read(&s.table("keep"));
        let trash_days =
            s.whole_or("trash_days", 1, "Days in the trash before what a rule lets go is deleted", 0..=3650);
        let promote_from = s.text(
            "promote_from",
            "Copy the newest complete, verified backup of this tier instead of making one",
        );
        let max_age = s.duration("max_age", "An older backup is not promoted: the run fails");
        if max_age.is_some() && promote_from.is_none() {
            s.problem(
                "max_age",
                "says nothing without promote_from",
                Some("add promote_from = \"…\"".into()),
            );
        }
        let trash_days = u32::try_from(trash_days).unwrap_or(1);
        Some(Self {
            name: parsed?,
            stores,
            path,
            components,
            keep,
            trash_days,
            promote_from,
            max_age,
            schedule,
        })
    }
}

impl Keep {
    fn read(s: &Section<'_>) -> Self {
        let count = |key, about| s.whole(key, about, 1..=100_000).and_then(|n| u32::try_from(n).ok());
        let within_text = s.text(
            "within",
            "Keep every backup this long, counted from the newest good one: \"7d\", \"12 months\"",
        );
        let within = within_text.as_deref().and_then(calendar);
        if within_text.is_some() && within.is_none() {
            s.problem(
                "within",
                "must be a length such as \"7d\", \"4 weeks\", \"12 months\" or \"2 years\"",
                None,
            );
        }
        let keep = Self {
            within,
            last: count("last", "Keep the newest n"),
            daily: count("daily", "Keep the newest of each of n days"),
            weekly: count("weekly", "Keep the newest of each of n weeks"),
            monthly: count("monthly", "Keep the newest of each of n months"),
            yearly: count("yearly", "Keep the newest of each of n years"),
            forever: s.flag("forever", false, "Keep every backup"),
            min: u32::try_from(s.whole_or("min", 3, "Verified backups that are never deleted", 1..=100_000))
                .unwrap_or(3),
        };
        s.finish();
        keep
    }
}

/// `"12 months"` -> (12, 0), `"4 weeks"` -> (0, 28).
fn calendar(text: &str) -> Option<(u32, u32)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let n: u32 = text[..digits].parse().ok().filter(|n| *n > 0)?;
    match text[digits..].trim() {
        "d" | "day" | "days" => Some((0, n)),
        "w" | "week" | "weeks" => Some((0, n.checked_mul(7)?)),
        "month" | "months" => Some((n, 0)),
        "y" | "year" | "years" => Some((n.checked_mul(12)?, 0)),
        _ => None,
    }
}

fn is_tier_path(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| part.parse::<Name>().is_ok())
}

/// What only shows when tiers, stores and sources are seen together.
pub fn check_tiers(
    root: &Section<'_>,
    tiers: &[Tier],
    stores: &[&str],
    sources: &[&str],
    default_tier: &str,
) {
    let known = |kind: &str, name: &str, names: &[&str]| {
        if names.contains(&name) {
            return None;
        }
        let hint = nearest(name, names.iter().copied()).map_or_else(
            || {
                format!(
                    "configured {kind}s: {}",
                    if names.is_empty() { "none".into() } else { names.join(", ") }
                )
            },
            |n| format!("did you mean {n}?"),
        );
        Some((format!("there is no {kind} {name:?}"), Some(hint)))
    };
    let sections = root.table("tiers");
    for tier in tiers {
        let section = sections.table(tier.name.as_str());
        for (i, store) in tier.stores.iter().enumerate() {
            if tier.stores[..i].contains(store) {
                section.problem("stores", format!("names {store:?} twice"), None);
            }
            if let Some((message, hint)) = known("store", store, stores) {
                section.problem("stores", message, hint);
            }
        }
        if let Some(from) = &tier.promote_from {
            let names: Vec<&str> =
                tiers.iter().map(|t| t.name.as_str()).filter(|n| *n != tier.name.as_str()).collect();
            if let Some((message, hint)) = known("tier", from, &names) {
                section.problem("promote_from", message, hint);
            } else if tiers.iter().any(|t| t.name.as_str() == from && t.promote_from.is_some()) {
                section.problem("promote_from", "names a tier that is itself promoted", None);
            }
        }
        if let Components::These(names) = &tier.components {
            for name in names {
                if let Some((message, hint)) = known("source", name, sources) {
                    section.problem("components", message, hint);
                }
            }
        }
    }
    for (i, a) in tiers.iter().enumerate() {
        for b in &tiers[i + 1..] {
            let inside =
                |x: &str, y: &str| x == y || x.strip_prefix(y).is_some_and(|rest| rest.starts_with('/'));
            if inside(&a.path, &b.path) || inside(&b.path, &a.path) {
                sections.table(b.name.as_str()).problem(
                    "path",
                    format!("{:?} and {:?} of tier {} lie in one another", b.path, a.path, a.name),
                    Some("the tier of a backup is its path: give each tier its own".into()),
                );
            }
        }
    }
    if tiers.is_empty() {
        sections.problem("", "no tier is configured", Some("add [tiers.hot] with stores = [\"…\"]".into()));
    } else if !tiers.iter().any(|t| t.name.as_str() == default_tier) {
        let names: Vec<&str> = tiers.iter().map(|t| t.name.as_str()).collect();
        let (message, hint) = known("tier", default_tier, &names).unwrap_or_default();
        root.table("agent").problem("default_tier", message, hint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_lengths() {
        assert_eq!(calendar("7d"), Some((0, 7)));
        assert_eq!(calendar("12 months"), Some((12, 0)));
        assert_eq!(calendar("2 years"), Some((24, 0)));
        for bad in ["", "7", "0d", "7 m", "d", "-1d"] {
            assert_eq!(calendar(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_tier_path_cannot_climb() {
        assert!(is_tier_path("daily") && is_tier_path("tars/daily"));
        for bad in ["", "/daily", "daily/", "../x", "a//b", ".", "a/.."] {
            assert!(!is_tier_path(bad), "{bad}");
        }
    }
}
