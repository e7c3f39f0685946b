//! What a reader of one format finds: keys, values and comments, each with its place in the file.
//!
//! What could go wrong: a reader that gives up on odd input loses the rest of the file. Readers therefore never fail;
//! what they cannot read they hand on as loose text, which is searched line by line.

use super::decode::{Style, at};
use std::ops::Range;

/// A key and where it hangs. Node 0 is the file.
pub(super) struct Node {
    pub(super) parent: usize,
    pub(super) key: Vec<u8>,
}

/// One value.
pub(super) struct Leaf {
    /// The nearest key above it.
    pub(super) node: usize,
    /// The mapping or list that it stands in; equal for all values of one list.
    pub(super) group: usize,
    /// An element of a list, not the value of a key.
    pub(super) item: bool,
    /// Between the quotes.
    pub(super) span: Range<usize>,
    pub(super) style: Style,
    /// The value is a name by its tag (`!secret db_password`).
    pub(super) named: bool,
    /// Lines of some other configuration.
    pub(super) embedded: bool,
}

pub(super) struct Outline {
    pub(super) nodes: Vec<Node>,
    pub(super) leaves: Vec<Leaf>,
    /// Keys as written, between their quotes.
    pub(super) keys: Vec<(Range<usize>, Style)>,
    /// Comments, and what could not be read.
    pub(super) loose: Vec<Range<usize>>,
    /// Names of YAML anchors and the nodes that carry them.
    pub(super) anchors: Vec<(Vec<u8>, usize)>,
    pub(super) aliases: Vec<(Vec<u8>, usize)>,
    groups: usize,
}

impl Outline {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![Node { parent: 0, key: Vec::new() }],
            leaves: Vec::new(),
            keys: Vec::new(),
            loose: Vec::new(),
            anchors: Vec::new(),
            aliases: Vec::new(),
            groups: 0,
        }
    }

    pub(super) fn group(&mut self) -> usize {
        self.groups += 1;
        self.groups
    }

    pub(super) fn node(&mut self, parent: usize, key: &[u8]) -> usize {
        self.nodes.push(Node { parent, key: key.to_vec() });
        self.nodes.len() - 1
    }

    pub(super) fn key(&self, node: usize) -> &[u8] {
        self.nodes.get(node).map_or(&[], |n| n.key.as_slice())
    }

    pub(super) fn parent(&self, node: usize) -> usize {
        self.nodes.get(node).map_or(0, |n| n.parent)
    }

    pub(super) fn leaf(&mut self, node: usize, group: usize, span: Range<usize>, style: Style) {
        if !span.is_empty() {
            self.leaves.push(Leaf { node, group, item: false, span, style, named: false, embedded: false });
        }
    }

    pub(super) fn item(&mut self, node: usize, group: usize, span: Range<usize>, style: Style) {
        if !span.is_empty() {
            self.leaves.push(Leaf { node, group, item: true, span, style, named: false, embedded: false });
        }
    }

    pub(super) fn loose(&mut self, span: Range<usize>) {
        if !span.is_empty() {
            self.loose.push(span);
        }
    }
}

/// The end of the line that `from` lies in, before its `\r\n` or `\n`, and the start of the next one.
pub(super) fn line(src: &[u8], from: usize) -> (usize, usize) {
    let rest = src.get(from..).unwrap_or_default();
    match memchr::memchr(b'\n', rest) {
        Some(n) => {
            let end = from + n;
            let cut = usize::from(n > 0 && at(src, end - 1) == b'\r');
            (end - cut, end + 1)
        }
        None => {
            let cut = usize::from(rest.ends_with(b"\r"));
            (src.len() - cut.min(src.len()), src.len())
        }
    }
}

pub(super) fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The first position from `from` on, below `end`, that holds no space or tab.
pub(super) fn skip_blanks(src: &[u8], from: usize, end: usize) -> usize {
    let mut i = from;
    while i < end && is_blank(at(src, i)) {
        i += 1;
    }
    i
}

/// `start..end` without white space at its end.
pub(super) fn trim_end(src: &[u8], start: usize, end: usize) -> usize {
    let mut end = end;
    while end > start && at(src, end - 1).is_ascii_whitespace() {
        end -= 1;
    }
    end
}

/// How far a quoted string may reach.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Line,
    File,
}

/// Finds closing quotes, and remembers where there is none, so that broken files cost no more than sound ones.
#[derive(Default)]
pub(super) struct Quotes {
    none_before: [usize; 2],
}

impl Quotes {
    /// The position of the quote that closes the one at `open`.
    pub(super) fn close(&mut self, src: &[u8], open: usize, style: Style, reach: Reach) -> Option<usize> {
        let memo = self.none_before.get_mut(usize::from(at(src, open) == b'"'))?;
        if open < *memo {
            return None;
        }
        match close_quote(src, open, style, reach) {
            Ok(close) => Some(close),
            Err(stop) => {
                *memo = stop;
                None
            }
        }
    }
}

/// The position of the closing quote, or where the search for it ended.
pub(super) fn close_quote(src: &[u8], open: usize, style: Style, reach: Reach) -> Result<usize, usize> {
    let quote = at(src, open);
    let mut i = open + 1;
    while i < src.len() {
        let byte = at(src, i);
        if style == Style::Double && byte == b'\\' {
            i += 2;
        } else if byte == b'\n' && reach == Reach::Line {
            return Err(i);
        } else if byte != quote {
            i += 1;
        } else if style == Style::Single && at(src, i + 1) == quote {
            i += 2;
        } else {
            return Ok(i);
        }
    }
    Err(src.len())
}

/// True if a line that begins between `from` and `to` is indented by `indent` or less, and so ends the YAML block.
pub(super) fn dedents(src: &[u8], from: usize, to: usize, indent: isize) -> bool {
    memchr::memchr_iter(b'\n', src.get(from..to).unwrap_or_default()).any(|n| {
        let start = from + n + 1;
        let first = skip_blanks(src, start, to);
        let blank = matches!(at(src, first), b'\r' | b'\n');
        !blank && isize::try_from(first - start).unwrap_or(isize::MAX) <= indent
    })
}
