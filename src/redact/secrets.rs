//! The values found secret, and the search for them.
//!
//! What could go wrong: a secret is written in another way than where it was found. So the searched text is also read
//! without percent-encoding, escapes and doubled quotes, and each secret in the forms that its own writing allows.

use super::PLACEHOLDER;
use super::decode::{View, slice, squeeze, undouble, unescape, unpercent, unshell};
use super::judge::{is_number, is_switch};
use super::words::VOCABULARY;
use aho_corasick::Anchored;
use aho_corasick::automaton::Automaton;
use aho_corasick::nfa::contiguous::NFA;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

/// Shorter values occur by chance.
const SHORTEST: usize = 8;

/// Values found secret. Debug never prints a value.
#[derive(Default)]
pub struct Secrets {
    needles: Vec<Vec<u8>>,
    /// For each needle the place in `labels`.
    owners: Vec<usize>,
    labels: Vec<String>,
    known: HashSet<Vec<u8>>,
    /// Whole values of keys that are not secret, and what those keys are called.
    harmless: HashMap<Vec<u8>, String>,
    spaces: bool,
    automaton: OnceLock<Option<NFA>>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").field("labels", &self.labels).finish_non_exhaustive()
    }
}

/// Why a value is not searched for.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exempt {
    /// Too short, a switch, a number: nothing to say.
    Trivial,
    /// A word that keys are made of.
    Vocabulary,
    /// Also the whole value of this key.
    Harmless(String),
}

impl Secrets {
    pub(super) fn new(harmless: HashMap<Vec<u8>, String>) -> Self {
        Self { harmless, ..Self::default() }
    }

    /// True if nothing is searched for.
    pub fn is_empty(&self) -> bool {
        self.needles.is_empty()
    }

    /// Adds a value that is secret for another reason, such as a referenced credential.
    pub fn add(&mut self, label: &str, value: &str) {
        self.insert(label, value.as_bytes());
    }

    /// The label (key name and file) of a searched secret that occurs in these bytes; `None` if they are clean.
    pub fn remains_in(&self, bytes: &[u8]) -> Option<&str> {
        let mut found = None;
        self.visit(bytes, &mut |_, owner| {
            found = Some(owner);
            false
        });
        self.labels.get(found?).map(String::as_str)
    }

    /// Every occurrence replaced, for logs and for strings in a manifest.
    pub fn scrub(&self, text: &str) -> String {
        String::from_utf8_lossy(&self.clean(text.as_bytes())).into_owned()
    }

    pub(super) fn clean(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        // A replacement can bring its neighbours together, in theory without end.
        for _ in 0..4 {
            let ranges = merge(self.ranges(&bytes), &bytes);
            if ranges.is_empty() {
                break;
            }
            bytes = replace(&bytes, &ranges);
        }
        bytes
    }

    pub(super) fn ranges(&self, bytes: &[u8]) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        self.visit(bytes, &mut |range, _| {
            ranges.push(range);
            true
        });
        ranges
    }

    /// Why this value is not searched for; `None` if it is.
    fn exempt(&self, value: &[u8]) -> Option<Exempt> {
        let text = value.trim_ascii();
        if is_trivial(text) {
            return Some(Exempt::Trivial);
        }
        if VOCABULARY.iter().any(|w| text.eq_ignore_ascii_case(w.as_bytes())) {
            return Some(Exempt::Vocabulary);
        }
        self.harmless.get(text).map(|key| Exempt::Harmless(key.clone()))
    }

    /// Returns why the value, or a form of it, is not searched for.
    pub(super) fn insert(&mut self, label: &str, value: &[u8]) -> Option<Exempt> {
        let whole = self.exempt(value);
        if whole.is_some() {
            return whole;
        }
        let owner = self.labels.len();
        let mut worst = None;
        let mut used = false;
        for form in forms(value) {
            let exempt = self.exempt(&form);
            if exempt.is_some() || !self.known.insert(form.clone()) {
                worst = worst.max(exempt);
                continue;
            }
            self.spaces |= form.iter().any(u8::is_ascii_whitespace);
            self.needles.push(form);
            self.owners.push(owner);
            used = true;
        }
        if used {
            self.labels.push(label.to_string());
            self.automaton = OnceLock::new();
        }
        worst
    }

    /// No label may show a value that another key holds.
    pub(super) fn scrub_labels(&mut self) {
        let labels = self.labels.iter().map(|label| self.scrub(label)).collect();
        self.labels = labels;
    }

    fn automaton(&self) -> Option<&NFA> {
        self.automaton.get_or_init(|| NFA::new(&self.needles).ok()).as_ref()
    }

    /// Calls `take` with each occurrence and its owner, until that returns false.
    fn visit(&self, bytes: &[u8], take: &mut dyn FnMut(Range<usize>, usize) -> bool) {
        if self.needles.is_empty() {
            return;
        }
        let plain = self.each(bytes, &mut |range, owner| take(range, owner));
        if !plain {
            return;
        }
        for view in self.views(bytes) {
            let mut mapped = |range: Range<usize>, owner| take(map_back(&view, &range), owner);
            if !self.each(&view.bytes, &mut mapped) {
                return;
            }
        }
    }

    /// Gives the longest secret that ends at each position; shorter ones lie within it. False if `take` ended the
    /// search.
    fn each(&self, bytes: &[u8], take: &mut dyn FnMut(Range<usize>, usize) -> bool) -> bool {
        let started = self.automaton().and_then(|nfa| Some((nfa, nfa.start_state(Anchored::No).ok()?)));
        let Some((nfa, mut state)) = started else { return self.each_slowly(bytes, take) };
        for (n, &byte) in bytes.iter().enumerate() {
            state = nfa.next_state(Anchored::No, state, byte);
            if !nfa.is_match(state) {
                continue;
            }
            // A state lists the pattern that led to it before those that end it.
            let pattern = nfa.match_pattern(state, 0);
            let owner = self.owners.get(pattern.as_usize()).copied().unwrap_or(0);
            let start = (n + 1).saturating_sub(nfa.pattern_len(pattern));
            if !take(start..n + 1, owner) {
                return false;
            }
        }
        true
    }

    /// Without an automaton (too many secrets for it) nothing may stay hidden from the search.
    fn each_slowly(&self, bytes: &[u8], take: &mut dyn FnMut(Range<usize>, usize) -> bool) -> bool {
        self.needles.iter().zip(&self.owners).all(|(needle, &owner)| {
            memchr::memmem::find_iter(bytes, needle).all(|n| take(n..n + needle.len(), owner))
        })
    }

    /// Other readings of a text.
    fn views(&self, bytes: &[u8]) -> Vec<View> {
        let mut views = Vec::new();
        let percent = |view: &View| unpercent(&view.bytes).over(view);
        if bytes.contains(&b'%') {
            let once = unpercent(bytes);
            if once.bytes.contains(&b'%') {
                views.push(percent(&once));
            }
            views.push(once);
        }
        if bytes.contains(&b'\\') {
            let view = unescape(bytes);
            if view.bytes.contains(&b'%') {
                views.push(percent(&view));
            }
            if view.bytes.contains(&b'\\') {
                // A string within a string.
                views.push(unescape(&view.bytes).over(&view));
            }
            if self.spaces {
                views.push(squeeze(&view.bytes).over(&view));
            }
            views.push(view);
        }
        let doubled = |mark: &[u8]| memchr::memmem::find(bytes, mark).is_some();
        if doubled(b"''") || doubled(b"$$") {
            let view = undouble(bytes, true);
            if view.bytes.contains(&b'%') {
                views.push(percent(&view));
            }
            views.push(view);
        }
        if self.spaces {
            views.push(squeeze(bytes));
        }
        views
    }
}

/// The range in the original text; an escape that a match ends in belongs to it as a whole.
fn map_back(view: &View, range: &Range<usize>) -> Range<usize> {
    let start = view.map.get(range.start).copied().unwrap_or(0);
    let last = view.map.get(range.end.saturating_sub(1)).copied().unwrap_or(start);
    let ends = view.map.get(range.end..).unwrap_or_default();
    let end = ends.iter().copied().find(|&at| at > last).unwrap_or(last);
    start..end
}

fn is_trivial(text: &[u8]) -> bool {
    let short = match std::str::from_utf8(text) {
        Ok(text) => text.chars().count() < SHORTEST,
        Err(_) => text.len() < SHORTEST,
    };
    // One mark repeated is a mask or a ruler, not a value.
    let first = text.first().copied().unwrap_or(0);
    let mask = !first.is_ascii_alphanumeric() && first < 0x80 && text.iter().all(|b| *b == first);
    let own = memchr::memmem::find(PLACEHOLDER.as_bytes(), text).is_some();
    // A recipient of age is meant to be read: the manifest of a sealed backup names it.
    let public = text.starts_with(b"age1") && text.len() == 62;
    short || mask || own || public || is_number(text) || is_switch(text) || super::judge::is_redacted(text)
}

/// The ways in which a value may be meant.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let text = value.trim_ascii();
    let mut forms = vec![value.to_vec(), text.to_vec()];
    if text.contains(&b'%') {
        forms.push(unpercent(text).bytes);
    }
    if text.contains(&b'\\') {
        forms.push(unescape(text).bytes);
    }
    if text.contains(&b'\'') || memchr::memmem::find(text, b"$$").is_some() {
        forms.push(undouble(text, true).bytes);
    }
    if text.iter().any(|b| matches!(b, b'\\' | b'\'' | b'"')) {
        forms.push(unshell(text));
    }
    let bare = text.trim_ascii_end();
    let cut = bare.iter().rev().take_while(|b| b",;#)]}'\" ".contains(b)).count();
    forms.push(slice(bare, 0..bare.len() - cut).to_vec());
    if text.iter().any(u8::is_ascii_whitespace) {
        forms.push(squeeze(text).bytes);
        forms.push(text.iter().map(|b| if *b == b' ' { b'+' } else { *b }).collect());
        forms.extend(lines(text));
    }
    forms.retain(|form| !form.trim_ascii().is_empty());
    forms
}

/// Of a value of several lines each one that is a word by itself.
fn lines(text: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let one = !text.contains(&b'\n');
    text.split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(move |line| !one && !line.iter().any(u8::is_ascii_whitespace))
        .map(<[u8]>::to_vec)
}

/// Sorted and joined ranges. A placeholder that is already there is taken in as a whole.
pub(super) fn merge(mut ranges: Vec<Range<usize>>, bytes: &[u8]) -> Vec<Range<usize>> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_by_key(|r| (r.start, r.end));
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let range = over_placeholders(range, bytes);
        match merged.last_mut() {
            Some(last) if range.start <= last.end => {
                last.start = last.start.min(range.start);
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

fn over_placeholders(range: Range<usize>, bytes: &[u8]) -> Range<usize> {
    let n = PLACEHOLDER.len();
    let covers =
        |at: usize| (at.saturating_sub(n)..=at).find(|&s| slice(bytes, s..s + n) == PLACEHOLDER.as_bytes());
    let start = covers(range.start).filter(|&s| s + n >= range.start).unwrap_or(range.start);
    let end = covers(range.end).filter(|&s| s <= range.end).map_or(range.end, |s| range.end.max(s + n));
    start.min(range.start)..end
}

pub(super) fn replace(bytes: &[u8], ranges: &[Range<usize>]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for range in ranges {
        out.extend_from_slice(slice(bytes, from..range.start));
        out.extend_from_slice(PLACEHOLDER.as_bytes());
        from = range.end;
    }
    out.extend_from_slice(slice(bytes, from..bytes.len()));
    out
}
