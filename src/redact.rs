//! Copies of configuration files without their secrets.
//!
//! Values of secret keys, and whatever is a secret by its form, become [`PLACEHOLDER`]; structure, comments and
//! harmless values stay. Then every value found is searched for in all files, because operators repeat a password in
//! URLs, commands and comments. All of it works on bytes and is total: no input makes it fail.
//!
//! What could go wrong: a secret stays in a plain copy that leaves the host. Where a file can be read in two ways, the
//! reading that hides more is taken; and [`Secrets::remains_in`] lets the caller prove the result.

mod assign;
mod command;
mod decode;
mod examine;
mod flow;
mod judge;
mod lines;
mod outline;
mod secrets;
mod text;
mod tokens;
mod url;
mod words;
mod yaml;

#[cfg(test)]
mod tests;

pub(crate) use decode::base64;
pub use secrets::Secrets;
pub use words::{HARMLESS_ENDINGS, HARMLESS_KEYS, HARMLESS_LAST_WORDS};

use decode::{Style, Text, slice};
use examine::Examined;
use secrets::Exempt;
use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use words::Keys;

/// What stands in place of a secret.
pub const PLACEHOLDER: &str = "<REDACTED>";

/// A file as it is.
pub struct Input<'a> {
    /// File name or path; it decides the format, and warnings name it.
    pub name: &'a str,
    pub bytes: &'a [u8],
}

/// A file without its secrets.
#[derive(Debug)]
pub struct Redacted {
    pub bytes: Vec<u8>,
    pub changed: bool,
}

/// All files without their secrets.
#[derive(Debug)]
pub struct Report {
    /// In the order of the input.
    pub files: Vec<Redacted>,
    pub secrets: Secrets,
    /// These name keys and files, never values.
    pub warnings: Vec<String>,
}

/// Redacts all files together, so that a secret found in one is removed from the others too. `harmless_keys` are keys
/// whose values stay readable, besides [`HARMLESS_KEYS`].
pub fn redact(files: &[Input<'_>], harmless_keys: &[String]) -> Report {
    redact_with(files, harmless_keys, &[])
}

/// The same with values known to be secret from elsewhere: label and value.
pub fn redact_with(files: &[Input<'_>], harmless_keys: &[String], known: &[(&str, &str)]) -> Report {
    let keys = Keys::new(harmless_keys);
    let mut texts: Vec<Cow<'_, [u8]>> = files.iter().map(|file| utf8(file.bytes)).collect();
    let mut warnings = BTreeSet::new();
    let mut secrets: Option<Secrets> = None;
    // The result is examined like any file, until nothing more is found: odd input is read in another way once a
    // part of it is gone.
    for _ in 0..MOST_ROUNDS {
        let mut examined: Vec<Examined> =
            files.iter().zip(&texts).map(|(file, text)| examine::examine(file.name, text, &keys)).collect();
        let secrets = secrets.get_or_insert_with(|| begin(&mut examined, known));
        collect(&mut examined, secrets, &mut warnings);
        let mut changed = false;
        for (text, found) in texts.iter_mut().zip(&examined) {
            if let Some(bytes) = write(text, found, secrets) {
                changed |= bytes != **text;
                *text = Cow::Owned(bytes);
            }
        }
        if !changed {
            break;
        }
    }
    let mut secrets = secrets.unwrap_or_default();
    secrets.scrub_labels();
    let warnings = warnings.iter().map(|w| secrets.scrub(w)).collect();
    let files = files.iter().zip(texts).map(|(file, text)| finish(file, text)).collect();
    Report { files, secrets, warnings }
}

/// One round finds everything in files that are sound; a second one proves it.
const MOST_ROUNDS: usize = 5;

/// Harmless values first, because they decide what is searched for.
fn begin(examined: &mut [Examined], known: &[(&str, &str)]) -> Secrets {
    let mut harmless = HashMap::new();
    for file in examined.iter_mut() {
        for (value, label) in file.harmless.drain(..) {
            harmless.entry(value).or_insert(label);
        }
    }
    let mut secrets = Secrets::new(harmless);
    for (label, value) in known {
        secrets.add(label, value);
    }
    secrets
}

/// Adds the finds of all files.
fn collect(examined: &mut [Examined], secrets: &mut Secrets, warnings: &mut BTreeSet<String>) {
    // A value found in more ways is called by its key.
    let mut found: Vec<_> = examined.iter_mut().flat_map(|file| file.found.drain(..)).collect();
    found.extend(examined.iter_mut().flat_map(|file| file.formed.drain(..)));
    for (label, value) in found {
        // Text around a placeholder is no value any more.
        if memchr::memmem::find(&value, PLACEHOLDER.as_bytes()).is_some() {
            continue;
        }
        match secrets.insert(&label, &value) {
            Some(Exempt::Harmless(key)) => {
                warnings.insert(format!(
                    "the value of {label} is not secret elsewhere: it is the value of {key}"
                ));
            }
            Some(Exempt::Vocabulary) => {
                warnings
                    .insert(format!("the value of {label} is a common word and only hidden in its place"));
            }
            Some(Exempt::Trivial) | None => {}
        }
    }
}

/// A file without a change comes out as it went in, also if it was read as UTF-16.
fn finish(file: &Input<'_>, text: Cow<'_, [u8]>) -> Redacted {
    if text == utf8(file.bytes) {
        return Redacted { bytes: file.bytes.to_vec(), changed: false };
    }
    Redacted { bytes: text.into_owned(), changed: true }
}

/// The text without what was found in it and what is searched for; `None` if there is nothing of that.
fn write(text: &[u8], found: &Examined, secrets: &Secrets) -> Option<Vec<u8>> {
    let mut ranges: Vec<Range<usize>> = found.hidden.clone();
    ranges.extend(found.snap(text, secrets.ranges(text)));
    let ranges = secrets::merge(ranges, text);
    if ranges.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut from = 0;
    for range in &ranges {
        // A literal that becomes a string needs quotes, for the file to stay readable by programs.
        let whole = found.bare.binary_search_by_key(&(range.start, range.end), |r| (r.start, r.end)).is_ok();
        bytes.extend_from_slice(slice(text, from..range.start));
        bytes.extend_from_slice(if whole { b"\"<REDACTED>\"" } else { PLACEHOLDER.as_bytes() });
        from = range.end;
    }
    bytes.extend_from_slice(slice(text, from..text.len()));
    if secrets.remains_in(&bytes).is_some() {
        bytes = secrets.clean(&bytes);
    }
    Some(bytes)
}

/// UTF-16 with a byte order mark is read as UTF-8; all else stays as it is.
fn utf8(bytes: &[u8]) -> Cow<'_, [u8]> {
    let unit: fn([u8; 2]) -> u16 = match bytes {
        [0xFF, 0xFE, ..] => u16::from_le_bytes,
        [0xFE, 0xFF, ..] => u16::from_be_bytes,
        _ => return Cow::Borrowed(bytes),
    };
    let units = slice(bytes, 2..bytes.len()).chunks_exact(2).map(|pair| match pair {
        [a, b] => unit([*a, *b]),
        _ => 0,
    });
    let text: String = char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    Cow::Owned(text.into_bytes())
}

impl Examined {
    /// A search may end within an escape; what is replaced must not.
    fn snap(&self, src: &[u8], mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
        ranges.sort_by_key(|r| (r.start, r.end));
        let mut string = None;
        for range in &mut ranges {
            let start = self.snap_byte(src, range.start, &mut string).start;
            let end = self.snap_byte(src, range.end.saturating_sub(1), &mut string).end;
            *range = start.min(range.start)..end.max(range.end);
        }
        ranges
    }

    /// The escape that this byte is part of, else the byte. `string` keeps the last string that was looked into.
    fn snap_byte(&self, src: &[u8], at: usize, string: &mut Option<(usize, Text)>) -> Range<usize> {
        let byte = at..at + 1;
        // The longest escape is a pair of surrogates.
        if !slice(src, at.saturating_sub(12)..byte.end).contains(&b'\\') {
            return byte;
        }
        let n = self.escaped.partition_point(|span| span.start <= at);
        let Some((n, span)) = n.checked_sub(1).and_then(|n| Some((n, self.escaped.get(n)?))) else {
            return byte;
        };
        if at >= span.end {
            return byte;
        }
        if string.as_ref().is_none_or(|(held, _)| *held != n) {
            *string = Some((n, Text::of(src, span.clone(), Style::Double)));
        }
        string.as_ref().map_or(byte.clone(), |(_, text)| text.snap(byte.clone()))
    }
}
