//! Reads YAML by indentation, well enough to know which key a value belongs to.
//!
//! What could go wrong: a value that goes on over several lines is seen only as its first one. Block scalars, folded
//! plain scalars, quoted strings and collections are therefore followed to their ends, as far as indentation allows.

use super::decode::{Style, Text, at, slice};
use super::flow::{Dialect, Flow};
use super::outline::{Outline, Quotes, Reach, close_quote, dedents, is_blank, line, skip_blanks, trim_end};
use std::ops::Range;

struct Frame {
    /// Column of its keys or dashes; -1 for the document.
    indent: isize,
    list: bool,
    /// Parent of its keys.
    node: usize,
    /// The newest key: what stands deeper belongs to it.
    last: usize,
    group: usize,
}

struct Yaml<'a> {
    src: &'a [u8],
    out: Outline,
    frames: Vec<Frame>,
    quotes: Quotes,
}

/// Where a value stands.
struct Place {
    node: usize,
    group: usize,
    item: bool,
    /// Lines of the value are indented more than this.
    indent: isize,
}

pub(super) fn read(src: &[u8], from: usize) -> Outline {
    let mut yaml = Yaml { src, out: Outline::new(), frames: Vec::new(), quotes: Quotes::default() };
    yaml.document();
    let mut pos = from;
    while pos < src.len() {
        pos = yaml.line(pos);
    }
    yaml.out
}

fn column(from: usize, to: usize) -> isize {
    isize::try_from(to.saturating_sub(from)).unwrap_or(isize::MAX)
}

impl Yaml<'_> {
    fn document(&mut self) {
        let group = self.out.group();
        self.frames.clear();
        self.frames.push(Frame { indent: -1, list: false, node: 0, last: 0, group });
    }

    /// Reads what begins in this line, returns the start of the line behind it.
    fn line(&mut self, start: usize) -> usize {
        let (end, next) = line(self.src, start);
        let first = skip_blanks(self.src, start, end);
        if first >= end {
            return next;
        }
        if at(self.src, first) == b'#' {
            self.out.loose(first..end);
            return next;
        }
        if first == start && matches!(slice(self.src, start..start + 3), b"---" | b"...") {
            let rest = skip_blanks(self.src, start + 3, end);
            if rest > start + 3 || rest == end {
                self.document();
                return if rest < end { self.content(start, rest, -1) } else { next };
            }
        }
        if first == start && at(self.src, start) == b'%' {
            return next;
        }
        self.content(start, first, column(start, first))
    }

    /// Reads dashes, then a key or a value. `start` is the start of the line, to count columns from.
    fn content(&mut self, start: usize, first: usize, first_column: isize) -> usize {
        let (end, next) = line(self.src, start);
        let mut pos = first;
        let mut col = first_column;
        loop {
            let dash = at(self.src, pos) == b'-' && (pos + 1 >= end || is_blank(at(self.src, pos + 1)));
            self.settle(col, dash);
            if !dash {
                break;
            }
            self.open_list(col);
            pos = skip_blanks(self.src, pos + 1, end);
            if pos >= end {
                return next;
            }
            col = column(start, pos);
        }
        self.entry(pos, col, end)
    }

    /// Leaves the frames that a line at this column is not part of.
    fn settle(&mut self, col: isize, dash: bool) {
        while self.frames.len() > 1
            && self
                .frames
                .last()
                .is_some_and(|top| top.indent > col || (top.indent == col && top.list && !dash))
        {
            self.frames.pop();
        }
    }

    fn open_list(&mut self, col: isize) {
        let Some(top) = self.frames.last() else { return };
        if top.list && top.indent == col {
            return;
        }
        let node = top.last;
        let group = self.out.group();
        self.frames.push(Frame { indent: col, list: true, node, last: node, group });
    }

    fn place(&self) -> Place {
        self.frames.last().map_or(Place { node: 0, group: 0, item: true, indent: -1 }, |top| Place {
            node: top.last,
            group: top.group,
            item: top.list || top.last == top.node,
            indent: top.indent,
        })
    }

    /// `key: value`, or a value alone.
    fn entry(&mut self, pos: usize, col: isize, end: usize) -> usize {
        let (pos, complex) = self.indicator(pos, end);
        let after = self.properties(pos, end);
        if complex == b':' {
            return self.value(after, self.place());
        }
        let key = if complex == b'?' {
            let stop = trim_end(self.src, after, end);
            Some((after..stop, Style::Plain, end))
        } else {
            key(self.src, after, end)
        };
        let Some((span, style, behind)) = key else {
            return self.value(pos, self.place());
        };
        let name = Text::of(self.src, span.clone(), style).bytes;
        self.out.keys.push((span, style));
        let (node, group) = self.open_map(col, &name);
        // Anchors and tags before the key are those of its mapping; with the key they are known by its node.
        self.anchors(pos..after, node);
        self.value(behind, Place { node, group, item: false, indent: col })
    }

    /// `? ` and `: ` of a mapping whose key has lines of its own.
    fn indicator(&self, pos: usize, end: usize) -> (usize, u8) {
        let byte = at(self.src, pos);
        if matches!(byte, b'?' | b':') && is_blank(at(self.src, pos + 1)) {
            return (skip_blanks(self.src, pos + 1, end), byte);
        }
        (pos, 0)
    }

    fn open_map(&mut self, col: isize, name: &[u8]) -> (usize, usize) {
        let fresh = self.frames.last().is_none_or(|top| top.list || top.indent != col);
        if fresh {
            let parent = self.frames.last().map_or(0, |top| top.last);
            let group = self.out.group();
            self.frames.push(Frame { indent: col, list: false, node: parent, last: parent, group });
        }
        let (parent, group) = self.frames.last().map_or((0, 0), |top| (top.node, top.group));
        let node = self.out.node(parent, name);
        if let Some(top) = self.frames.last_mut() {
            top.last = node;
        }
        (node, group)
    }

    /// The position behind tags and anchors.
    fn properties(&self, from: usize, end: usize) -> usize {
        let mut pos = from;
        while pos < end && matches!(at(self.src, pos), b'&' | b'!') {
            while pos < end && !is_blank(at(self.src, pos)) {
                pos += 1;
            }
            pos = skip_blanks(self.src, pos, end);
        }
        pos
    }

    fn anchors(&mut self, range: Range<usize>, node: usize) {
        for word in slice(self.src, range).split(|b| is_blank(*b)) {
            if let Some(name) = word.strip_prefix(b"&") {
                self.out.anchors.push((name.to_vec(), node));
            }
        }
    }

    /// Reads the value that begins at or behind `pos`, returns the start of the line behind it.
    fn value(&mut self, pos: usize, place: Place) -> usize {
        let (end, next) = line(self.src, pos);
        let first = skip_blanks(self.src, pos, end);
        let start = self.properties(first, end);
        self.anchors(first..start, place.node);
        let named = slice(self.src, first..start).starts_with(b"!secret ");
        let before = self.out.leaves.len();
        let after = match at(self.src, start) {
            _ if start >= end => next,
            b'#' => {
                self.out.loose(start..end);
                next
            }
            b'*' => {
                let stop = (start..end).find(|&i| is_blank(at(self.src, i))).unwrap_or(end);
                self.out.aliases.push((slice(self.src, start + 1..stop).to_vec(), place.node));
                self.out.loose(stop..end);
                next
            }
            b'|' | b'>' if is_block_header(slice(self.src, start..end)) => self.block(next, &place),
            b'"' | b'\'' => self.quoted(start, end, &place),
            b'{' | b'[' => {
                let flow = Flow { src: self.src, dialect: Dialect::Yaml, indent: place.indent };
                let behind = flow.collection(start, place.node, &mut self.quotes, &mut self.out);
                self.rest(behind)
            }
            _ => self.plain(start, end, next, &place),
        };
        if named {
            self.out.leaves.iter_mut().skip(before).for_each(|leaf| leaf.named = true);
        }
        after
    }

    /// What stands behind a value in its line.
    fn rest(&mut self, from: usize) -> usize {
        let (end, next) = line(self.src, from);
        self.out.loose(from..end);
        next
    }

    fn push(&mut self, span: Range<usize>, style: Style, place: &Place) {
        if place.item {
            self.out.item(place.node, place.group, span, style);
        } else {
            self.out.leaf(place.node, place.group, span, style);
        }
    }

    fn block(&mut self, from: usize, place: &Place) -> usize {
        let mut pos = from;
        let mut span: Option<Range<usize>> = None;
        while pos < self.src.len() {
            let (end, next) = line(self.src, pos);
            let first = skip_blanks(self.src, pos, end);
            if first < end {
                if column(pos, first) <= place.indent {
                    break;
                }
                let begin = span.map_or(first, |s| s.start);
                span = Some(begin..trim_end(self.src, begin, end));
            }
            pos = next;
        }
        if let Some(span) = span {
            self.push(span, Style::Plain, place);
            self.out.leaves.last_mut().into_iter().for_each(|leaf| leaf.embedded = true);
        }
        pos
    }

    fn quoted(&mut self, start: usize, end: usize, place: &Place) -> usize {
        let style = if at(self.src, start) == b'"' { Style::Double } else { Style::Single };
        let close = self.quotes.close(self.src, start, style, Reach::File);
        let Some(close) = close.filter(|&c| !dedents(self.src, start, c, place.indent)) else {
            let (_, next) = line(self.src, start);
            return self.plain(start, end, next, place);
        };
        let (stop, next) = line(self.src, close);
        let rest = skip_blanks(self.src, close + 1, stop);
        if rest >= stop || (at(self.src, rest) == b'#' && rest > close + 1) {
            self.push(start + 1..close, style, place);
            self.out.loose(rest..stop);
        } else {
            // Not YAML: text behind the closing quote. It may be the rest of a password.
            self.push(start..trim_end(self.src, start, stop), Style::Plain, place);
        }
        next
    }

    /// A plain scalar and the lines that it goes on in.
    fn plain(&mut self, start: usize, end: usize, next: usize, place: &Place) -> usize {
        let (mut stop, comment) = plain_end(self.src, start, end);
        self.out.loose(comment.clone());
        let mut pos = next;
        let mut ahead = next;
        while comment.is_empty() && ahead < self.src.len() {
            let (line_end, line_next) = line(self.src, ahead);
            let first = skip_blanks(self.src, ahead, line_end);
            if first < line_end {
                let document = first == ahead && matches!(slice(self.src, first..first + 3), b"---" | b"...");
                let deep = column(ahead, first) > place.indent;
                if !deep || document || at(self.src, first) == b'#' || is_entry(self.src, first, line_end) {
                    break;
                }
                let (here, note) = plain_end(self.src, first, line_end);
                stop = here;
                pos = line_next;
                if !note.is_empty() {
                    self.out.loose(note);
                    break;
                }
            }
            ahead = line_next;
        }
        self.push(start..stop, Style::Plain, place);
        pos
    }
}

/// `|`, `>-`, `|2+` and the like, with nothing but a comment behind.
fn is_block_header(text: &[u8]) -> bool {
    let word = text.split(|b| is_blank(*b)).next().unwrap_or_default();
    let rest = slice(text, word.len()..text.len()).trim_ascii_start();
    let signs = slice(word, 1..word.len());
    signs.len() <= 2
        && signs.iter().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-'))
        && (rest.is_empty() || rest.starts_with(b"#"))
}

/// The end of plain text in a line, and the comment behind it.
fn plain_end(src: &[u8], start: usize, end: usize) -> (usize, Range<usize>) {
    let hash = (start + 1..end).find(|&i| at(src, i) == b'#' && is_blank(at(src, i - 1)));
    let stop = hash.unwrap_or(end);
    (trim_end(src, start, stop), stop..end)
}

/// A line below a plain scalar that cannot be its continuation.
fn is_entry(src: &[u8], first: usize, end: usize) -> bool {
    key(src, first, end).is_some_and(|(span, _, _)| !slice(src, span).iter().any(|b| is_blank(*b)))
}

/// The key at `pos`: its span, its style, and the position behind the colon.
fn key(src: &[u8], pos: usize, end: usize) -> Option<(Range<usize>, Style, usize)> {
    let byte = at(src, pos);
    if byte == b'"' || byte == b'\'' {
        let style = if byte == b'"' { Style::Double } else { Style::Single };
        let close = close_quote(src, pos, style, Reach::Line).ok()?;
        let colon = skip_blanks(src, close + 1, end);
        return (at(src, colon) == b':' && ends_key(src, colon, end)).then_some((
            pos + 1..close,
            style,
            colon + 1,
        ));
    }
    if matches!(byte, b'#' | b'[' | b'{' | b'|' | b'>' | b'@' | b'`' | b'*') && at(src, pos + 1) != b':' {
        return None;
    }
    let mut i = pos;
    while i < end {
        match at(src, i) {
            b':' if ends_key(src, i, end) => {
                return (i > pos).then(|| (pos..trim_end(src, pos, i), Style::Plain, i + 1));
            }
            b'#' if i > pos && is_blank(at(src, i - 1)) => return None,
            _ => i += 1,
        }
    }
    None
}

fn ends_key(src: &[u8], colon: usize, end: usize) -> bool {
    colon + 1 >= end || is_blank(at(src, colon + 1))
}
