//! Numbers as people write them: `"90s"`, `"7d"`, `"512 MiB"`; and as they read them.

use std::time::Duration;

/// Whole milliseconds.
pub fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// A length of time for timeouts: `s`, `m`/`min`, `h`, `d`, `w`; several parts may follow each other (`1h 30m`).
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, unit, tail) = part(rest)?;
        let seconds = match unit {
            "s" | "sec" | "second" | "seconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60.0,
            "h" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            "ms" => 0.001,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

/// A number of bytes: `B`, `kB`, `MB`, `GB`, `TB` (powers of 1000) and `KiB`, `MiB`, `GiB`, `TiB` (powers of 1024).
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit, tail) = part(text.trim())?;
    if !tail.is_empty() {
        return None;
    }
    let factor: f64 = match unit.to_ascii_lowercase().as_str() {
        "b" | "bytes" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" | "k" => 1024.0,
        "mib" | "m" => 1_048_576.0,
        "gib" | "g" => 1_073_741_824.0,
        "tib" | "t" => 1_099_511_627_776.0,
        _ => return None,
    };
    let value = number * factor;
    // Exact up to 2^53, which is 8 PiB: more than any small stack holds.
    (value <= 9_007_199_254_740_992.0).then_some(value.round() as u64)
}

/// `(number, unit, rest)` of the first part of `text`.
fn part(text: &str) -> Option<(f64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let rest = text[digits..].trim_start();
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    Some((number, &rest[..letters], rest[letters..].trim_start()))
}

/// `1536` -> `1.5 KiB`.
pub fn show_bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Whole seconds in the largest unit that reads well: `3m 20s`, `5d 2h`.
pub fn show_duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{}.{}s", s, d.subsec_millis() / 100),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// The exact value in the largest whole unit, as it would be written in the configuration.
pub fn write_duration(d: Duration) -> String {
    let s = d.as_secs();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        if s > 0 && s.is_multiple_of(size) {
            return format!("{}{unit}", s / size);
        }
    }
    format!("{s}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_as_people_write_them() {
        assert_eq!(duration("7d"), Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(duration("1h 30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5h"), Some(Duration::from_secs(5400)));
        assert_eq!(bytes("512 MiB"), Some(512 << 20));
        assert_eq!(bytes("20GB"), Some(20_000_000_000));
        for bad in ["", "7", "d", "7 fortnights", "-3s", "1e9s", "5m x"] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
        for bad in ["", "12", "MiB", "1 MiB 2 KiB", "99999 TiB"] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn shown_values_read_well() {
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_duration(Duration::from_secs(200)), "3m 20s");
        assert_eq!(write_duration(Duration::from_secs(7200)), "2h");
        assert_eq!(duration(&write_duration(Duration::from_secs(5401))), Some(Duration::from_secs(5401)));
    }
}
