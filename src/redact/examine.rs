//! Finds the secrets of one file: by the names of keys, then by the form of the text.
//!
//! What could go wrong: the name of a service or of a secret is taken for a secret key and everything below it is
//! hidden, or the other way round. `Secrecy` decides that for each key from the keys above it.

use super::command::Command;
use super::decode::{Style, Text, slice};
use super::judge::{is_redacted, judge};
use super::outline::{Leaf, Outline};
use super::text::{Context, lossy, scan};
use super::words::{Class, Keys, is_digest, is_setting};
use super::{flow, lines, tokens, yaml};
use std::collections::HashMap;
use std::ops::Range;

/// What one file told.
pub(super) struct Examined {
    pub(super) hidden: Vec<Range<usize>>,
    /// Literals among these that become strings, in order.
    pub(super) bare: Vec<Range<usize>>,
    /// Strings with backslash escapes, in order.
    pub(super) escaped: Vec<Range<usize>>,
    /// Label and value of each secret that a key names.
    pub(super) found: Vec<(String, Vec<u8>)>,
    /// The same of those known by their form.
    pub(super) formed: Vec<(String, Vec<u8>)>,
    /// Whole values of other keys, with the names of those.
    pub(super) harmless: Vec<(Vec<u8>, String)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Env,
    Yaml,
    Toml,
    Json,
    Ini,
    /// Records with fields between colons, and how many of them are no secret.
    Records(usize),
    /// Words: `login x password y`.
    Netrc,
    Unknown,
}

fn format(name: &str) -> Format {
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name).to_ascii_lowercase();
    let base = without_copy_ending(&base);
    // `.env.local` and `.env.example` are env files too.
    if base.starts_with(".env") || base.starts_with("env.") || base.contains(".env.") {
        return Format::Env;
    }
    match base.rsplit('.').next().unwrap_or(base) {
        "env" | "envrc" | "environment" | "sh" => Format::Env,
        "yml" | "yaml" => Format::Yaml,
        "toml" => Format::Toml,
        "json" | "jsonc" | "json5" | "ndjson" => Format::Json,
        "ini" | "cfg" | "cnf" | "properties" | "service" | "timer" | "socket" => Format::Ini,
        "pgpass" => Format::Records(4),
        "htpasswd" => Format::Records(1),
        "netrc" => Format::Netrc,
        _ => Format::Unknown,
    }
}

/// `compose.yml.bak` and `config.toml.example` are what stands before.
fn without_copy_ending(name: &str) -> &str {
    const ENDINGS: &[&str] = &[
        ".redacted",
        ".bak",
        ".old",
        ".orig",
        ".save",
        ".example",
        ".sample",
        ".dist",
        ".template",
        ".tmpl",
        ".j2",
        ".local",
        ".dpkg-old",
        ".dpkg-dist",
        "~",
    ];
    let mut name = name;
    while let Some(before) = ENDINGS.iter().find_map(|end| name.strip_suffix(end)).filter(|n| !n.is_empty()) {
        name = before;
    }
    name
}

fn outline(format: Format, src: &[u8], from: usize, keys: &Keys) -> Outline {
    match format {
        Format::Env => lines::env(src, from),
        Format::Yaml => yaml::read(src, from),
        Format::Toml => lines::toml(src, from),
        Format::Json => {
            let mut out = Outline::new();
            flow::json(src, from, &mut out);
            out
        }
        Format::Records(skip) => lines::records(src, from, skip),
        Format::Netrc => lines::netrc(src, from),
        Format::Ini => lines::ini(src, from, keys),
        Format::Unknown => guess(src, from, keys),
    }
}

/// JSON is known by its first and last byte and by being whole, YAML by its first line.
fn guess(src: &[u8], from: usize, keys: &Keys) -> Outline {
    let text = slice(src, from..src.len()).trim_ascii();
    // A section of an ini file begins with a bracket, too.
    if matches!((text.first(), text.last()), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']'))) {
        let mut out = Outline::new();
        if flow::json(src, from, &mut out) && !out.keys.is_empty() {
            return out;
        }
    }
    if text.starts_with(b"---\n") || text.starts_with(b"---\r\n") || text.starts_with(b"%YAML") {
        return yaml::read(src, from);
    }
    lines::ini(src, from, keys)
}

pub(super) fn examine(name: &str, src: &[u8], keys: &Keys) -> Examined {
    let from = if src.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    let format = format(name);
    let outline = outline(format, src, from, keys);
    let mut examiner = Examiner {
        name,
        src,
        keys,
        json: format == Format::Json,
        result: Examined {
            hidden: Vec::new(),
            bare: Vec::new(),
            escaped: Vec::new(),
            found: Vec::new(),
            formed: Vec::new(),
            harmless: Vec::new(),
        },
    };
    examiner.leaves(&outline);
    examiner.rest(&outline, from);
    let mut result = examiner.result;
    result.bare.sort_by_key(|r| (r.start, r.end));
    result.bare.dedup();
    result.escaped.sort_by_key(|r| (r.start, r.end));
    result
}

/// What a key's name says about the values at and below it.
#[derive(Clone, Copy, Default)]
struct Secrecy {
    here: Option<Class>,
    /// For keys below, and how many levels of them.
    below: Option<(Class, u8)>,
}

/// Keys below these are names that someone gave to a thing.
const NAMED_THINGS: &[&[u8]] = &[
    b"services",
    b"networks",
    b"volumes",
    b"configs",
    b"depends_on",
    b"sources",
    b"stores",
    b"tiers",
    b"notify",
    b"profiles",
    b"containers",
];

/// A weak word (`auth:`) covers the keys right below it, a strong one all.
const ALL_LEVELS: u8 = u8::MAX;

fn secrecies(outline: &Outline, keys: &Keys) -> Vec<Secrecy> {
    let mut forced: HashMap<usize, Class> = HashMap::new();
    // An alias under a secret key makes its anchor secret, which may hold another alias.
    for _ in 0..4 {
        let secrecies = secrecies_once(outline, keys, &forced);
        let before = forced.len();
        let anchors: HashMap<&[u8], usize> =
            outline.anchors.iter().map(|(n, node)| (n.as_slice(), *node)).collect();
        for (name, node) in &outline.aliases {
            let class = secrecies.get(*node).and_then(|s| s.here).filter(|_| outline.key(*node) != b"<<");
            if let (Some(class), Some(&anchor)) = (class, anchors.get(name.as_slice())) {
                forced.entry(anchor).or_insert(class);
            }
        }
        if forced.len() == before {
            return secrecies;
        }
    }
    secrecies_once(outline, keys, &forced)
}

fn secrecies_once(outline: &Outline, keys: &Keys, forced: &HashMap<usize, Class>) -> Vec<Secrecy> {
    let mut all: Vec<Secrecy> = Vec::with_capacity(outline.nodes.len());
    for (n, node) in outline.nodes.iter().enumerate() {
        let above = all.get(node.parent).copied().unwrap_or_default();
        let secrecy = match forced.get(&n) {
            Some(&class) => Secrecy { here: Some(class), below: Some((class, ALL_LEVELS)) },
            None => own_secrecy(outline, keys, n, &node.key, above),
        };
        all.push(secrecy);
    }
    all
}

fn own_secrecy(outline: &Outline, keys: &Keys, n: usize, key: &[u8], above: Secrecy) -> Secrecy {
    let parent = outline.parent(n);
    if grants_secrets(outline, n) {
        return Secrecy::default();
    }
    let thing = NAMED_THINGS.contains(&outline.key(parent)) && n != parent;
    match keys.class(key) {
        Some(class) => {
            let levels = if class.path_ok { 1 } else { ALL_LEVELS };
            Secrecy { here: Some(class), below: (!thing).then_some((class, levels)) }
        }
        None if is_setting(key) || keys.is_listed(key) => Secrecy::default(),
        None => match above.below {
            Some((class, levels)) if levels > 0 => {
                let deeper = if levels == ALL_LEVELS { ALL_LEVELS } else { levels - 1 };
                Secrecy { here: Some(class), below: Some((class, deeper)) }
            }
            _ => Secrecy::default(),
        },
    }
}

/// `secrets:` of a compose service lists the names of secrets that are defined elsewhere.
fn grants_secrets(outline: &Outline, n: usize) -> bool {
    let parent = outline.parent(n);
    let service = if outline.key(parent) == b"build" { outline.parent(parent) } else { parent };
    outline.key(n) == b"secrets" && parent != 0 && outline.key(outline.parent(service)) == b"services"
}

/// What the members of one mapping or list say about each other.
#[derive(Default)]
struct Group {
    leaves: usize,
    /// Of `{name: DB_PASSWORD, value: x}`.
    name: Option<(Class, String)>,
    has_value: bool,
    command: Command,
}

struct Examiner<'a> {
    name: &'a str,
    src: &'a [u8],
    keys: &'a Keys,
    json: bool,
    result: Examined,
}

impl Examiner<'_> {
    fn label(&self, key: &str) -> String {
        format!("{key} in {}", self.name)
    }

    fn leaves(&mut self, outline: &Outline) {
        let secrecies = secrecies(outline, self.keys);
        let mut groups = self.groups(outline);
        for leaf in &outline.leaves {
            let text = Text::of(self.src, leaf.span.clone(), leaf.style);
            let before = self.result.hidden.len();
            let secrecy = secrecies.get(leaf.node).copied().unwrap_or_default();
            let group = groups.entry(leaf.group).or_default();
            if let Some((class, label)) = self.class(outline, leaf, &text, secrecy, group) {
                self.hide_value(leaf, &text, class, &label);
            }
            self.option(leaf, &text, group);
            self.scan(&text, context(leaf, &text), is_digest(outline.key(leaf.node)));
            if self.json || leaf.style == Style::Double {
                self.pem(&text);
            }
            self.finish(outline, leaf, &text, before);
        }
    }

    /// Names and values that stand beside each other.
    fn groups(&self, outline: &Outline) -> HashMap<usize, Group> {
        let mut groups: HashMap<usize, Group> = HashMap::new();
        for leaf in &outline.leaves {
            let group = groups.entry(leaf.group).or_default();
            group.leaves += 1;
            if leaf.item || leaf.span.len() > 256 {
                continue;
            }
            let key = outline.key(leaf.node);
            group.has_value |= key.eq_ignore_ascii_case(b"value");
            if [&b"name"[..], b"key", b"variable", b"var"].iter().any(|k| key.eq_ignore_ascii_case(k)) {
                let name = slice(self.src, leaf.span.clone());
                let plain = name.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(b));
                if let Some(class) = self.keys.class(name).filter(|_| plain) {
                    group.name = Some((class, lossy(name)));
                }
            }
        }
        groups
    }

    /// The class and the name of the secret that this value is by its place.
    fn class(
        &self,
        outline: &Outline,
        leaf: &Leaf,
        text: &Text,
        secrecy: Secrecy,
        group: &Group,
    ) -> Option<(Class, String)> {
        let key = outline.key(leaf.node);
        if leaf.named {
            return None;
        }
        if key.eq_ignore_ascii_case(b"value")
            && let Some((class, name)) = group.name.clone().filter(|_| !leaf.item)
        {
            return Some((class, name));
        }
        let class = secrecy.here?;
        // `{key: DB_PASSWORD, value: x}`: the key's value is a name. `{ credential = "x" }`: a reference by name.
        let naming = key.eq_ignore_ascii_case(b"key") && group.has_value && group.name.is_some();
        let reference = key == b"credential" && group.leaves == 1 && !leaf.item && is_name(&text.bytes);
        if naming || (reference && self.inline(outline, leaf)) {
            return None;
        }
        Some((class, lossy(key)))
    }

    /// In braces: `key = { credential = "name" }`.
    fn inline(&self, outline: &Outline, leaf: &Leaf) -> bool {
        let key = outline.nodes.get(leaf.node);
        let before = slice(self.src, leaf.span.start.saturating_sub(64)..leaf.span.start);
        let brace = before.iter().rposition(|b| *b == b'{');
        key.is_some_and(|k| k.parent != 0)
            && brace.is_some_and(|n| !slice(before, n..before.len()).contains(&b'\n'))
    }

    fn hide_value(&mut self, leaf: &Leaf, text: &Text, class: Class, label: &str) {
        for part in judge(class, &text.bytes) {
            let raw = text.raw(part.clone());
            let label = self.label(label);
            let value = slice(&text.bytes, part).to_vec();
            self.found_forms(&label, &value, slice(self.src, raw.clone()), class);
            self.result.hidden.push(raw);
            if leaf.style == Style::Bare {
                self.result.bare.push(leaf.span.clone());
            }
        }
    }

    /// A value may be a list, a pair, or written in another way than it is meant.
    fn found_forms(&mut self, label: &str, value: &[u8], raw: &[u8], class: Class) {
        let mut add = |part: &[u8]| self.result.found.push((label.to_string(), part.to_vec()));
        add(value);
        if raw != value {
            add(raw);
        }
        if class.plural {
            value.split(|b| matches!(b, b',' | b' ' | b'\n')).for_each(&mut add);
        }
        // `admin:password` and `neo4j/password`; only what stands behind, because the name is none.
        if class.path_ok
            && let Some(n) = value.iter().position(|b| matches!(b, b':' | b'/'))
            && !slice(value, n..value.len()).starts_with(b"://")
        {
            add(slice(value, n + 1..value.len()));
        }
        if let Some(pair) = super::decode::base64(value).filter(|d| d.is_ascii() && class.path_ok)
            && let Some(n) = pair.iter().position(|b| *b == b':')
        {
            add(slice(&pair, n + 1..pair.len()));
        }
    }

    /// Elements of lists: `--requirepass`, then its value; `KEY=value`.
    fn option(&mut self, leaf: &Leaf, text: &Text, group: &mut Group) {
        if !leaf.item {
            return;
        }
        if text.bytes.iter().any(u8::is_ascii_whitespace) && !group.command.waits() {
            return;
        }
        let label = self.name.to_string();
        for (part, option) in group.command.word(&text.bytes, self.keys) {
            let raw = text.raw(part.clone());
            self.result.found.push((format!("{option} in {label}"), slice(&text.bytes, part).to_vec()));
            self.result.hidden.push(raw);
        }
    }

    /// `digest`: random text is a checksum here.
    fn scan(&mut self, text: &Text, context: Context, digest: bool) {
        for hit in scan(&text.bytes, context, self.keys).into_iter().filter(|hit| !hit.random || !digest) {
            let value = slice(&text.bytes, hit.range.clone());
            let raw = text.raw(hit.range.clone());
            if hit.searched && !is_redacted(value) {
                self.result.formed.push((self.label(&hit.label), value.to_vec()));
            }
            self.result.hidden.push(raw);
        }
    }

    fn pem(&mut self, text: &Text) {
        for body in tokens::pem(&text.bytes) {
            let label = self.label("PEM block");
            let value = slice(&text.bytes, body.clone());
            self.result.formed.push((label.clone(), value.to_vec()));
            // Written line ends are found by their lines.
            let lines = value.split(|b| matches!(b, b'\n' | b'\\' | b'\r' | b'#')).map(<[u8]>::trim_ascii);
            for line in lines {
                let line = line.strip_prefix(b"n").filter(|_| value.contains(&b'\\')).unwrap_or(line);
                if line.len() >= 16 && !line.iter().any(u8::is_ascii_whitespace) {
                    self.result.formed.push((label.clone(), line.to_vec()));
                }
            }
            self.result.hidden.push(text.raw(body));
        }
    }

    /// Literals are replaced as a whole; a value that nothing was hidden in is harmless.
    fn finish(&mut self, outline: &Outline, leaf: &Leaf, text: &Text, before: usize) {
        let touched = self.result.hidden.len() > before;
        if leaf.style == Style::Double {
            self.result.escaped.push(leaf.span.clone());
        }
        if touched && leaf.style == Style::Bare {
            self.result.hidden.push(leaf.span.clone());
            self.result.bare.push(leaf.span.clone());
        }
        let key = outline.key(leaf.node);
        let secret = self.keys.class(key).is_some();
        if touched || secret {
            return;
        }
        let (key, value) = match pair(&text.bytes).filter(|_| leaf.item) {
            Some((key, value)) => (key, value),
            None if leaf.item || key.is_empty() => return,
            None => (key, text.bytes.as_slice()),
        };
        let value = value.trim_ascii();
        if !value.is_empty() && self.keys.class(key).is_none() {
            self.result.harmless.push((value.to_vec(), self.label(&lossy(key))));
        }
    }

    /// Comments, keys, and what stands between.
    fn rest(&mut self, outline: &Outline, from: usize) {
        let mut taken: Vec<Range<usize>> = outline.leaves.iter().map(|leaf| leaf.span.clone()).collect();
        for span in &outline.loose {
            let comment = matches!(slice(self.src, span.clone()).first(), Some(b'#' | b';' | b'/'));
            let context = if comment { Context::Comment } else { Context::Lines };
            self.scan(&Text::plain(self.src, span.clone()), context, false);
            taken.push(span.clone());
        }
        for (span, style) in &outline.keys {
            self.scan(&Text::of(self.src, span.clone(), *style), Context::Markup, false);
            if *style == Style::Double {
                self.result.escaped.push(span.clone());
            }
            taken.push(span.clone());
        }
        taken.sort_by_key(|r| (r.start, r.end));
        let mut pos = from;
        for span in taken {
            self.gap(pos..span.start);
            pos = pos.max(span.end);
        }
        self.gap(pos..self.src.len());
        if !self.json {
            self.pem(&Text::plain(self.src, 0..self.src.len()));
        }
    }

    fn gap(&mut self, gap: Range<usize>) {
        let mut pos = gap.start;
        for part in slice(self.src, gap).split_inclusive(|b| *b == b'\n') {
            // Brackets, colons and spaces, most of them.
            if part.len() >= 8 {
                self.scan(&Text::plain(self.src, pos..pos + part.len()), Context::Markup, false);
            }
            pos += part.len();
        }
    }
}

fn context(leaf: &Leaf, text: &Text) -> Context {
    if leaf.embedded || text.bytes.contains(&b'\n') {
        Context::Lines
    } else if leaf.item {
        Context::Item
    } else {
        Context::Value
    }
}

/// `KEY=value` of an environment list.
fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let n = text.iter().position(|b| *b == b'=')?;
    let key = slice(text, 0..n);
    let name = key.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(b));
    (name && !key.is_empty()).then(|| (key, slice(text, n + 1..text.len())))
}

/// The name of a credential: small letters, digits and marks.
fn is_name(text: &[u8]) -> bool {
    text.len() <= 64
        && text.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b))
}
