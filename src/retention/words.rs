//! Reasons in words for people.

use std::fmt;

use super::{Halt, Lack, Pinned, Reason, Rhythm};
use crate::id::show_name;

impl fmt::Display for Rhythm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Partial => "partial",
            Self::Handpicked => "hand-picked",
            Self::Unverified => "not verified",
        })
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pinned")?;
        if let Some(until) = self.until {
            write!(f, " until {until}")?;
        }
        match &self.reason {
            Some(reason) => write!(f, ": {}", show_name(reason.as_bytes())),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("kept for ever"),
            Self::ThisRun => f.write_str("of this run"),
            Self::Min(n) => write!(f, "newest {n} verified"),
            Self::Within { months, days } => {
                write!(f, "within {} of the newest good one", length(*months, *days))
            }
            Self::Last(n) => write!(f, "last {n}"),
            Self::NewestOf { rhythm, period } => write!(f, "{rhythm} {period}"),
            Self::StandsIn { rhythm, wanted } => {
                write!(f, "oldest: stands in until there are {wanted} {rhythm} ones")
            }
            Self::NewestWith(component) => write!(f, "newest that holds {component}"),
            Self::Pinned(pinned) => pinned.fmt(f),
            Self::Legacy => f.write_str("made by the old script"),
            Self::Foreign => f.write_str("of another host"),
            Self::Unreadable => f.write_str("unreadable manifest"),
            Self::Undated => f.write_str("its time is not known"),
            Self::Future => f.write_str("dated in the future"),
            Self::Suspect => f.write_str("an anomaly of it is not accepted"),
            Self::NoNewerComplete => f.write_str("no newer complete one is verified here"),
            Self::NoReference => f.write_str("no good one is here to count its age from"),
            Self::Outdated => f.write_str("older than every rule keeps"),
            Self::Expired { lack, days, than } => {
                write!(f, "{lack}, {} older than {than}", amount(*days, "day"))
            }
        }
    }
}

impl fmt::Display for Halt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyRule => f.write_str("the rule is empty"),
            Self::NothingGood => f.write_str("no verified backup that counts was here before"),
            Self::NothingLeft => f.write_str("the rule would leave no verified backup that counts"),
            Self::Anomaly(name) => write!(f, "an anomaly of {name} is not accepted"),
        }
    }
}

fn length(months: u32, days: u32) -> String {
    match (months, days) {
        (0, days) => amount(days.into(), "day"),
        (months, 0) => amount(months.into(), "month"),
        (months, days) => format!("{} and {}", amount(months.into(), "month"), amount(days.into(), "day")),
    }
}

fn amount(n: i64, unit: &str) -> String {
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}
