//! Finds assignments to secret keys in running text: `password=x`, `"token": "x"`, `X-Api-Key: x`, `<secret>x</secret>`.
//!
//! What could go wrong: a value ends later than it seems, and the rest of a password stays. Where quotes, separators
//! and the kind of text leave its end open, the longer one is taken.

use super::decode::{at, slice};
use super::judge::{judge, reference_end, scheme_length};
use super::text::{Context, Hit, is_wordlike, lossy};
use super::words::{Class, Keys};
use std::ops::Range;

/// `---` and the like behind a heading.
fn is_ruler(text: &[u8]) -> bool {
    text.iter().all(|b| b"-=#*_~ ".contains(b))
}

/// Several words without a digit or a capital inside.
fn is_prose(text: &[u8]) -> bool {
    let words = || text.split(|b| is_space(*b)).filter(|w| !w.is_empty());
    let plain = |w: &[u8]| {
        let tail = slice(w, 1..w.len());
        w.len() <= 24 && tail.iter().all(|b| b.is_ascii_lowercase() || b".,-/()'`".contains(b))
    };
    words().count() >= 2 && words().all(plain)
}

/// What separates a key from its value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Separator {
    Equals {
        spaced: bool,
    },
    Colon,
    /// `<password>x</password>`
    Tag,
    /// `PASSWORD 'x'`, or `requirepass x`
    Space,
    /// `password is x`
    Verb,
}

pub(super) struct Assignments<'a> {
    text: &'a [u8],
    context: Context,
    keys: &'a Keys,
    hits: &'a mut Vec<Hit>,
    /// The end of a value that was taken up to the end of its line.
    hidden_until: usize,
    /// The name in `name="SECRET" value="x"`.
    pair: Option<(Class, String)>,
}

/// One key, and what was counted before it on its line.
struct Key {
    start: usize,
    end: usize,
    /// Inside an open `"`, `'` or backtick.
    odd: [bool; 3],
    /// Nothing but marks of a comment or a list before it.
    leads: bool,
}

pub(super) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

impl<'a> Assignments<'a> {
    pub(super) fn new(text: &'a [u8], context: Context, keys: &'a Keys, hits: &'a mut Vec<Hit>) -> Self {
        Self { text, context, keys, hits, hidden_until: 0, pair: None }
    }

    pub(super) fn run(mut self) {
        let mut i = 0;
        let mut odd = [false; 3];
        let mut leads = true;
        while i < self.text.len() {
            let byte = at(self.text, i);
            if !is_name_byte(byte) {
                self.mark(byte, &mut odd, &mut leads);
                i += 1;
                continue;
            }
            let start = i;
            while is_name_byte(at(self.text, i)) {
                i += 1;
            }
            let marks = slice(self.text, start..i).iter().all(|b| matches!(b, b'-' | b'.'));
            let key = Key { start, end: i, odd, leads };
            if !marks {
                let resume = self.key(&key);
                let export = leads && slice(self.text, start..i) == b"export";
                leads = leads && export;
                // Quotes inside of a value that was taken are counted as well.
                for &byte in slice(self.text, i..resume) {
                    self.mark(byte, &mut odd, &mut leads);
                }
                i = resume.max(i);
            }
        }
    }

    fn mark(&mut self, byte: u8, odd: &mut [bool; 3], leads: &mut bool) {
        match byte {
            b'\n' => {
                *odd = [false; 3];
                *leads = true;
                self.pair = None;
            }
            b'"' => odd[0] = !odd[0],
            b'\'' => odd[1] = !odd[1],
            b'`' => odd[2] = !odd[2],
            _ => {}
        }
        *leads = *leads && (byte.is_ascii_whitespace() || b"#/;*!<\"'`\\{,([".contains(&byte));
    }

    /// Takes the value of a secret key, returns where to go on.
    fn key(&mut self, key: &Key) -> usize {
        let Some((separator, value)) = self.separator(key) else { return key.end };
        let name = slice(self.text, key.start..key.end);
        let paired = self.pair.clone().filter(|_| is_any(name, &["value", "val"]));
        let class = self.keys.class(name);
        if is_any(name, &["name", "key", "variable"]) && self.names_secret(value) {
            return value;
        }
        let Some((class, label)) = paired.or_else(|| class.map(|c| (c, lossy(name)))) else { return key.end };
        if !self.fits(key, separator, class, value) {
            return key.end;
        }
        self.take(key, separator, value, class, &label)
    }

    /// True for the first half of `name="SECRET" value="x"`.
    fn names_secret(&mut self, value: usize) -> bool {
        let mut start = value;
        while matches!(at(self.text, start), b'\\' | b'"' | b'\'') {
            start += 1;
        }
        let rest = slice(self.text, start..self.text.len().min(start + 128));
        let name = slice(rest, 0..rest.iter().take_while(|b| is_name_byte(**b)).count());
        let Some(class) = self.keys.class(name) else { return false };
        self.pair = Some((class, lossy(name)));
        true
    }

    /// The separator behind a key, and where the value begins.
    fn separator(&self, key: &Key) -> Option<(Separator, usize)> {
        let text = self.text;
        let before = key.start.checked_sub(1).map_or(0, |i| at(text, i));
        if matches!(before, b'{' | b'$') && key.start >= 1 && is_expansion(text, key.start) {
            return None;
        }
        let mut i = key.end;
        if before == b'<' && at(text, i) == b'>' {
            return Some((Separator::Tag, i + 1));
        }
        // The closing quote of a quoted key, perhaps escaped.
        let mut quoted = i;
        while at(text, quoted) == b'\\' {
            quoted += 1;
        }
        let has_quote = matches!(before, b'"' | b'\'') && at(text, quoted) == before;
        if has_quote {
            i = quoted + 1;
        }
        let blanks = i;
        while matches!(at(text, i), b' ' | b'\t') {
            i += 1;
        }
        let spaced = i > blanks;
        let skip =
            |from: usize| from + slice(text, from..text.len()).iter().take_while(|b| is_space(**b)).count();
        match (at(text, i), at(text, i + 1)) {
            // Without a space before it this is no comparison: the value begins with that mark.
            (b'=', b'=' | b'~') if spaced => None,
            (b'=', b'>') if spaced => Some((Separator::Equals { spaced }, skip(i + 2))),
            (b':', b'=') => Some((Separator::Equals { spaced: true }, skip(i + 2))),
            (b'?' | b'+', b'=') => Some((Separator::Equals { spaced }, skip(i + 2))),
            (b'=', next) => Some((Separator::Equals { spaced: spaced || is_space(next) }, skip(i + 1))),
            (b':', b':') => None,
            (b':', next) => {
                let value = skip(i + 1);
                let open = is_space(next) || has_quote || matches!(next, b'"' | b'\'');
                // A path, an image or a port has a colon without a space.
                let tight = key.leads && !matches!(next, b'/' | b'.' | b'\\') && before != b'/';
                (open || tight).then_some((Separator::Colon, value))
            }
            (b'"' | b'\'', _) if spaced => Some((Separator::Space, i)),
            (b'i', b's') if spaced && is_space(at(text, i + 2)) => Some((Separator::Verb, skip(i + 2))),
            (b'w', b'a') if spaced && slice(text, i..i + 4) == b"was " => {
                Some((Separator::Verb, skip(i + 3)))
            }
            _ => None,
        }
    }

    /// Weak separators count only where the key or the text makes them likely.
    fn fits(&self, key: &Key, separator: Separator, class: Class, value: usize) -> bool {
        let text = self.text;
        match separator {
            Separator::Space => !class.path_ok,
            Separator::Verb => self.context == Context::Comment && !class.path_ok,
            Separator::Colon => {
                let tight = at(text, value.saturating_sub(1)) == b':';
                let quoted = matches!(at(text, value), b'"' | b'\'');
                let value_like = matches!(self.context, Context::Value | Context::Item);
                !(tight && !quoted && value_like && (key.start > 0 || !class.password))
            }
            Separator::Equals { .. } | Separator::Tag => true,
        }
    }

    fn take(&mut self, key: &Key, separator: Separator, value: usize, class: Class, label: &str) -> usize {
        let Some((range, line)) = self.extent(key, separator, value) else { return key.end };
        let found = slice(self.text, range.clone());
        let comment = self.context == Context::Comment;
        if separator == Separator::Verb && is_wordlike(found) {
            return key.end;
        }
        if comment && (is_ruler(found) || (class.path_ok && separator == Separator::Colon && is_prose(found)))
        {
            return key.end;
        }
        // What stands behind a colon in a sentence is hidden, but not looked for elsewhere if it is a mere word.
        let value = matches!(self.context, Context::Value | Context::Item);
        let prose = comment || (value && separator == Separator::Colon);
        for part in judge(class, found) {
            let part = part.start + range.start..part.end + range.start;
            let searched = !(prose && is_wordlike(slice(self.text, part.clone())));
            self.hits.push(Hit { range: part, label: label.to_string(), searched, random: false });
        }
        if !line {
            return range.end.max(key.end);
        }
        self.hidden_until = range.end;
        self.first_word(&range, label);
        range.start
    }

    /// Of a value up to the end of a line, the first word alone may be the secret.
    fn first_word(&mut self, range: &Range<usize>, label: &str) {
        let text = slice(self.text, range.clone());
        let n = text.iter().position(|b| is_space(*b)).unwrap_or(text.len());
        let n = n - slice(text, 0..n).iter().rev().take_while(|b| b",.;:)]}".contains(b)).count();
        let word = slice(text, 0..n);
        if !word.is_empty()
            && n < text.len()
            && !is_wordlike(word)
            && !word.starts_with(b"${")
            && !word.starts_with(b"<")
        {
            let range = range.start..range.start + n;
            self.hits.push(Hit { range, label: label.to_string(), searched: true, random: false });
        }
    }

    /// The value that begins at `value`, and whether it was taken up to the end of the line.
    fn extent(&self, key: &Key, separator: Separator, value: usize) -> Option<(Range<usize>, bool)> {
        let text = self.text;
        if value >= text.len() || matches!(at(text, value), b'\n' | b'\r') {
            return None;
        }
        if separator == Separator::Tag {
            let end =
                value + slice(text, value..text.len()).iter().position(|b| matches!(b, b'<' | b'\n'))?;
            return (end > value && slice(text, end..end + 2) == b"</").then_some((value..end, false));
        }
        // An element of a list that is one assignment ends where the element ends; quotes in it are part of the value.
        let whole = self.context == Context::Item && self.to_line_end(key, separator);
        if let Some(range) = quoted(text, value).filter(|_| !whole) {
            return Some((range, false));
        }
        let before = key.start.checked_sub(1).map_or(0, |i| at(text, i));
        if matches!(before, b'"' | b'\'' | b'`') {
            let rest = slice(text, value..text.len());
            let end = rest.iter().position(|b| *b == before || *b == b'\n').unwrap_or(rest.len());
            let spaces_end = self.opens_word(key);
            if at(text, value + end) == before && !spaces_end {
                return Some((value..value + end, false));
            }
        }
        if self.to_line_end(key, separator) {
            let end = if whole { text.len() } else { line_end(text, value) };
            return Some((value..end, true));
        }
        let end = self.word_end(key, value);
        (end > value).then_some((value..end, false))
    }

    /// A quoted text of several assignments: `"password=x host=y"`.
    fn opens_word(&self, key: &Key) -> bool {
        let rest = slice(self.text, key.end..self.text.len().min(key.end + 512));
        let line = slice(rest, 0..rest.iter().position(|b| matches!(b, b'\n' | b'"')).unwrap_or(rest.len()));
        line.split(|b| is_space(*b)).skip(1).any(|word| {
            let name = word.iter().take_while(|b| is_name_byte(**b)).count();
            name > 0 && at(word, name) == b'=' && at(word, name + 1) != b'='
        })
    }

    fn to_line_end(&self, key: &Key, separator: Separator) -> bool {
        let before = key.start.checked_sub(1).map_or(0, |i| at(self.text, i));
        let flag = at(self.text, key.start) == b'-';
        if key.start < self.hidden_until || matches!(before, b'?' | b'&') || flag {
            return false;
        }
        if self.context == Context::Item {
            return key.start == 0 && matches!(separator, Separator::Equals { .. });
        }
        if self.context == Context::Value {
            return false;
        }
        match separator {
            Separator::Colon => true,
            Separator::Equals { spaced } => key.leads || (spaced && !self.opens_word(key)),
            _ => false,
        }
    }

    /// The end of a single word: white space, an open quote's end, or the separator of its list.
    fn word_end(&self, key: &Key, value: usize) -> usize {
        let text = self.text;
        let before = key.start.checked_sub(1).map_or(0, |i| at(text, i));
        let query = matches!(before, b'?' | b'&');
        let semicolon = self.keyword_list(key, value);
        // `Authorization: Bearer x`: the scheme alone is no value.
        let mut i = value + scheme_length(slice(text, value..text.len()));
        if semicolon && at(text, value) == b'{' {
            // Braces quote in such lists.
            let brace = slice(text, value..text.len()).iter().position(|b| matches!(b, b'}' | b'\n'));
            i += brace.filter(|&n| at(text, value + n) == b'}').unwrap_or(0);
        }
        while i < text.len() {
            let byte = at(text, i);
            if let Some(end) = reference_end(text, i) {
                i = end;
                continue;
            }
            let stop = match byte {
                b'\n' | b'\r' => true,
                b'"' => key.odd[0],
                b'\'' => key.odd[1],
                b'`' => key.odd[2],
                b'&' => query,
                b'#' => query,
                b';' => semicolon || ends_item(text, i) || is_space(at(text, i + 1)),
                b',' => ends_item(text, i),
                _ => is_space(byte) && !semicolon,
            };
            if stop {
                break;
            }
            i += 1;
        }
        i
    }

    /// `Server=x;Password=a b;`: semicolons separate, spaces do not.
    fn keyword_list(&self, key: &Key, value: usize) -> bool {
        let text = self.text;
        let before = slice(text, key.start.saturating_sub(64)..key.start);
        if before.trim_ascii_end().ends_with(b";") {
            return true;
        }
        // `User Password=x`: the word before belongs to the key.
        let words = before.rsplit(|b| *b == b';').next().unwrap_or_default();
        let listed = words.len() < before.len() && words.iter().all(|b| is_name_byte(*b) || *b == b' ');
        let rest = slice(text, value..text.len().min(value + 512));
        let first = key.start == 0
            && rest.iter().position(|b| matches!(b, b';' | b'\n')).is_some_and(|n| ends_item(rest, n));
        listed || first
    }
}

pub(super) fn is_any(name: &[u8], words: &[&str]) -> bool {
    words.iter().any(|w| name.eq_ignore_ascii_case(w.as_bytes()))
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The name at `start` is that of `${NAME…}` or `$NAME`.
fn is_expansion(text: &[u8], start: usize) -> bool {
    let dollar = if at(text, start - 1) == b'{' { start.checked_sub(2) } else { start.checked_sub(1) };
    dollar.is_some_and(|i| at(text, i) == b'$')
}

/// A `;` or `,` with another `name=` behind it, or nothing.
fn ends_item(text: &[u8], i: usize) -> bool {
    let rest = slice(text, i + 1..text.len().min(i + 66)).trim_ascii_start();
    let name = rest.iter().take_while(|b| is_name_byte(**b) || **b == b' ').count();
    rest.is_empty() || (name > 0 && at(rest, name) == b'=')
}

/// The end of a line's text: without a comment mark between spaces, and what closes a comment.
fn line_end(text: &[u8], from: usize) -> usize {
    let rest = slice(text, from..text.len());
    let n = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
    let line = slice(rest, 0..n);
    let mark = memchr::memmem::find(line, b" # ").unwrap_or(n);
    let line = slice(line, 0..mark).trim_ascii_end();
    // The end of a comment stands alone; `*/` at the end of a password does not.
    let line = line.strip_suffix(b" -->").or(line.strip_suffix(b" */")).unwrap_or(line).trim_ascii_end();
    from + line.len()
}

/// The text between the quotes that open at `value`, perhaps escaped ones, on one line.
fn quoted(text: &[u8], value: usize) -> Option<Range<usize>> {
    let mut open = value;
    while at(text, open) == b'\\' {
        open += 1;
    }
    let quote = at(text, open);
    if !matches!(quote, b'"' | b'\'' | b'`') {
        return None;
    }
    let start = open + 1;
    let rest = slice(text, start..text.len());
    let n = if open > value {
        memchr::memmem::find(rest, slice(text, value..start))?
    } else {
        let mut i = 0;
        while i < rest.len() && at(rest, i) != quote {
            let step = if at(rest, i) == b'\\' && quote != b'`' { 2 } else { 1 };
            if at(rest, i) == b'\n' {
                return None;
            }
            i += step;
        }
        i
    };
    let mut end = start + n;
    if end >= text.len() || slice(rest, 0..n).contains(&b'\n') {
        return None;
    }
    // Text right behind the closing quote belongs to the value.
    let behind = end + (start - value);
    let next = at(text, behind);
    let tag_ends = slice(text, behind..behind + 2) == b"/>";
    if behind < text.len() && !tag_ends && !next.is_ascii_whitespace() && !b",;:)]}>&|\\\"'`".contains(&next)
    {
        end = behind;
        while end < text.len() && !at(text, end).is_ascii_whitespace() {
            end += 1;
        }
        return Some(value..end);
    }
    Some(start..end)
}
