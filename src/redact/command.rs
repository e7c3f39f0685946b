//! Finds secrets on command lines, where an option and its value are words of their own.
//!
//! What could go wrong: the same letter means different things to different programs (`-p`). Short options are
//! therefore read only behind the name of a program that takes a secret there.

use super::assign::{is_any, is_name_byte};
use super::decode::{at, slice};
use super::judge::{judge, reference_end};
use super::text::{Context, Hit, is_wordlike, lossy};
use super::words::{Class, Keys};
use std::ops::Range;

/// Follows the words of a command, for options whose value is a word of its own.
#[derive(Default)]
pub(super) struct Command {
    redis: bool,
    mysql: bool,
    curl: bool,
    sshpass: bool,
    ldap: bool,
    mongo: bool,
    login: bool,
    pending: Option<Pending>,
}

#[derive(Clone)]
struct Pending {
    class: Class,
    label: String,
    /// The secret stands behind the first colon (`-u user:password`).
    after_colon: bool,
    /// No option, but a word that may stand in a sentence.
    bare: bool,
}

const PASSWORD: Class = Class { password: true, path_ok: false, plural: false };
const NO_VALUE: &[&str] =
    &["no", "without", "disable", "enable", "ask", "prompt", "require", "allow", "skip", "use"];

impl Command {
    /// The parts of this word to hide.
    pub(super) fn word(&mut self, word: &[u8], keys: &Keys) -> Vec<(Range<usize>, String)> {
        if let Some(pending) = self.pending.take() {
            let option = word.starts_with(b"--") || (word.len() == 2 && word.starts_with(b"-"));
            let operator = matches!(word, b"|" | b"||" | b"&&" | b";" | b">" | b"<");
            if !option && !operator {
                return pending.judge(word, 0);
            }
        }
        self.program(word);
        self.attached(word).unwrap_or_else(|| {
            self.pending = self.option(word, keys);
            Vec::new()
        })
    }

    /// True if a sentence may go on with this word.
    fn in_sentence(&self, word: &[u8], more: bool) -> bool {
        self.pending.as_ref().is_some_and(|p| p.bare) && more && is_wordlike(word)
    }

    /// True if the next word is the value of an option.
    pub(super) fn waits(&self) -> bool {
        self.pending.is_some()
    }

    fn program(&mut self, word: &[u8]) {
        let name = word.rsplit(|b| *b == b'/').next().unwrap_or(word);
        let has = |prefixes: &[&str]| prefixes.iter().any(|p| name.starts_with(p.as_bytes()));
        self.redis |= has(&["redis-", "valkey-", "keydb-"]);
        self.mysql |= has(&["mysql", "mariadb"]);
        self.curl |= has(&["curl", "wget", "http"]);
        self.sshpass |= has(&["sshpass"]);
        self.ldap |= has(&["ldap"]);
        self.mongo |= has(&["mongo"]);
        self.login |= name == b"login";
    }

    /// An option and its value in one word.
    fn attached(&self, word: &[u8]) -> Option<Vec<(Range<usize>, String)>> {
        let short = |flag: &[u8]| word.starts_with(flag) && word.len() > flag.len();
        let password = Pending {
            class: PASSWORD,
            label: "password option".to_string(),
            after_colon: false,
            bare: false,
        };
        let user = Pending { after_colon: true, ..password.clone() };
        if (self.mysql || self.sshpass) && short(b"-p") {
            return Some(password.judge(word, 2));
        }
        if self.curl && short(b"-u") {
            return Some(user.judge(word, 2));
        }
        if self.curl && short(b"--user=") {
            return Some(user.judge(word, 7));
        }
        None
    }

    /// What the next word is, if this one is an option for a secret.
    fn option(&self, word: &[u8], keys: &Keys) -> Option<Pending> {
        let bare = !word.starts_with(b"-");
        let pending = |class, after_colon| Some(Pending { class, label: lossy(word), after_colon, bare });
        match word {
            b"-a" | b"--pass" if self.redis => return pending(PASSWORD, false),
            b"-p" if self.sshpass || self.mongo || self.login => return pending(PASSWORD, false),
            b"-w" if self.ldap => return pending(PASSWORD, false),
            b"-u" | b"--user" | b"--proxy-user" if self.curl => return pending(PASSWORD, true),
            _ => {}
        }
        // `proxy_set_header X-Api-Key x;`
        if slice(word, 0..2).eq_ignore_ascii_case(b"x-")
            && let Some(class) = keys.class(word).filter(|_| word.iter().all(|b| is_name_byte(*b)))
        {
            return pending(class, false);
        }
        if is_any(word, &["requirepass", "masterauth"]) || (self.redis && is_any(word, &["auth"])) {
            return pending(PASSWORD, false);
        }
        let name = word.strip_prefix(b"--").or(word.strip_prefix(b"-"))?;
        let first = name.split(|b| *b == b'-').next().unwrap_or_default();
        let plain = name.len() > 2 && name.iter().all(|b| is_name_byte(*b));
        let class = keys.class(name).filter(|_| plain && !is_any(first, NO_VALUE))?;
        pending(class, false)
    }
}

impl Pending {
    fn judge(&self, word: &[u8], from: usize) -> Vec<(Range<usize>, String)> {
        let mut start = from;
        if self.after_colon {
            let Some(n) = slice(word, from..word.len()).iter().position(|b| *b == b':') else {
                return Vec::new();
            };
            start = from + n + 1;
        }
        let parts = judge(self.class, slice(word, start..word.len()));
        parts.into_iter().map(|r| (r.start + start..r.end + start, self.label.clone())).collect()
    }
}

/// Quoted words are commands of their own (`sh -c "…"`), so deep.
const DEEPEST: usize = 3;

/// Searches a part of a text, and the commands within its quotes.
pub(super) fn commands(
    text: &[u8],
    range: Range<usize>,
    context: Context,
    keys: &Keys,
    depth: usize,
    hits: &mut Vec<Hit>,
) {
    let mut command = Command::default();
    let mut none_before = [0_usize; 3];
    let mut i = range.start;
    while i < range.end {
        let byte = at(text, i);
        let joined = byte == b'\\' && matches!(at(text, i + 1), b'\n' | b'\r');
        if byte.is_ascii_whitespace() || joined {
            // The next line of a comment or a configuration is another command, unless it was joined.
            if byte == b'\n' && context != Context::Lines && context != Context::Value {
                command = Command::default();
            }
            i += if joined { 2 } else { 1 };
            continue;
        }
        let (word, next) = word(text, i, range.end, &mut none_before);
        let quoted = word.start > i;
        let rest = slice(text, next..range.end);
        let more = rest.iter().take_while(|b| **b != b'\n').any(|b| !b.is_ascii_whitespace());
        if context == Context::Comment && command.in_sentence(slice(text, word.clone()), more) {
            command.pending = None;
        }
        for (part, label) in command.word(slice(text, word.clone()), keys) {
            let part = part.start + word.start..part.end + word.start;
            let prose = context == Context::Comment && is_wordlike(slice(text, part.clone()));
            hits.push(Hit { range: part, label, searched: !prose, random: false });
        }
        let nested = slice(text, word.clone()).iter().any(u8::is_ascii_whitespace);
        if quoted && nested && depth < DEEPEST {
            commands(text, word, context, keys, depth + 1, hits);
        }
        i = next;
    }
}

/// The word at `i`, without the quotes around it, and the position behind it.
fn word(text: &[u8], i: usize, limit: usize, none_before: &mut [usize; 3]) -> (Range<usize>, usize) {
    let quote = at(text, i);
    let slot = match quote {
        b'"' => Some(0),
        b'\'' => Some(1),
        b'`' => Some(2),
        _ => None,
    };
    if let Some(memo) = slot.and_then(|s| none_before.get_mut(s))
        && i >= *memo
    {
        match memchr::memchr(quote, slice(text, i + 1..limit)) {
            Some(n)
                if at(text, i + n + 2).is_ascii_whitespace() || b",;)]}|&".contains(&at(text, i + n + 2)) =>
            {
                return (i + 1..i + 1 + n, i + n + 2);
            }
            Some(n) if i + n + 2 >= limit => return (i + 1..i + 1 + n, limit),
            Some(_) => {}
            None => *memo = limit,
        }
    }
    let mut end = i;
    while end < limit && !at(text, end).is_ascii_whitespace() {
        end = reference_end(text, end).map_or(end + 1, |stop| stop.min(limit));
    }
    // A lone quote at one end belongs to the text around.
    let start = if slot.is_some() && end > i + 1 { i + 1 } else { i };
    let mut stop = end;
    while stop > start + 1
        && b"\"'`".contains(&at(text, stop - 1))
        && !slice(text, start..stop - 1).contains(&at(text, stop - 1))
    {
        stop -= 1;
    }
    (start..stop, end.max(i + 1))
}
