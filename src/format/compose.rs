//! A Compose file: which services does each service need? What could go wrong: an application that goes on while its
//! database is replaced, because its file says so in another way; so anchors, merges and both forms of a list are
//! followed, and what Compose itself takes for a need counts as one. Names with variables in them are not replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use saphyr_parser::{Event, Parser};

/// Services by name, and those that each needs.
pub type Needs = BTreeMap<String, BTreeSet<String>>;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ComposeError {
    #[error("line {line} is no YAML")]
    Yaml { line: usize },
    #[error("line {line} is nested too deeply")]
    Depth { line: usize },
    #[error("it has no services")]
    NoServices,
}

/// Deeper than any Compose file; what is freed is freed by recursion.
const DEPTH: usize = 64;
/// How many merges are followed into each other.
const MERGES: usize = 4;

/// What the file says.
pub fn needs(text: &str) -> Result<Needs, ComposeError> {
    let root = read(text)?;
    // The first format, which only Compose 1 reads, has the services at the top.
    let services = match root.get("services") {
        Some(services) => services.entries(),
        None if root.get("version").is_none() => root.entries(),
        None => Vec::new(),
    };
    let of = |service: &Node| -> BTreeSet<String> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let names = |key: &str| service.get(key).map_or_else(Vec::new, Node::names);
        found.extend(names("depends_on"));
        let first = |name: String| name.split(':').next().unwrap_or_default().to_owned();
        found.extend(names("links").into_iter().map(first));
        let from = names("volumes_from");
        found.extend(from.into_iter().filter(|n| !n.starts_with("container:")).map(first));
        for key in ["network_mode", "net", "ipc", "pid"] {
            let shared = service.get(key).and_then(Node::text).and_then(|t| t.strip_prefix("service:"));
            found.extend(shared.map(str::to_owned));
        }
        found
    };
    let known: Needs =
        services.into_iter().filter(|(_, s)| s.is_map()).map(|(name, s)| (name.to_owned(), of(s))).collect();
    if known.is_empty() { Err(ComposeError::NoServices) } else { Ok(known) }
}

#[derive(Debug)]
enum Node {
    Text(String),
    List(Vec<Rc<Node>>),
    /// Keys that are no plain text are nothing to us.
    Map(Vec<(String, Rc<Node>)>),
}

impl Node {
    fn is_map(&self) -> bool {
        matches!(self, Self::Map(_))
    }

    fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn entries(&self) -> Vec<(&str, &Node)> {
        match self {
            Self::Map(entries) => entries.iter().map(|(k, v)| (k.as_str(), &**v)).collect(),
            _ => Vec::new(),
        }
    }

    /// The value of a key: its own, else one that is merged in.
    fn get(&self, key: &str) -> Option<&Node> {
        self.merged(key, MERGES)
    }

    fn merged(&self, key: &str, left: usize) -> Option<&Node> {
        let own = |wanted: &str| self.entries().into_iter().rev().find(|(k, _)| *k == wanted).map(|(_, v)| v);
        if let Some(value) = own(key) {
            return Some(value);
        }
        let left = left.checked_sub(1)?;
        match own("<<")? {
            Self::List(several) => several.iter().find_map(|node| node.merged(key, left)),
            one => one.merged(key, left),
        }
    }

    /// Elements of a list, keys of a map, or the one text.
    fn names(&self) -> Vec<String> {
        match self {
            Self::Text(text) => vec![text.clone()],
            Self::List(all) => all.iter().filter_map(|n| n.text()).map(str::to_owned).collect(),
            Self::Map(entries) => {
                let (merged, own): (Vec<_>, Vec<_>) = entries.iter().partition(|(k, _)| k == "<<");
                let mut names: Vec<String> = own.into_iter().map(|(k, _)| k.clone()).collect();
                // One level, as people write it: `depends_on: { <<: *common, db: … }`.
                for (_, node) in merged {
                    match &**node {
                        Self::List(several) => {
                            names.extend(several.iter().flat_map(|n| n.entries()).map(|(k, _)| k.to_owned()))
                        }
                        one => names.extend(one.entries().into_iter().map(|(k, _)| k.to_owned())),
                    }
                }
                names.retain(|n| n != "<<");
                names
            }
        }
    }
}

/// A list or a map that has begun.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next; the inner None stands for one that is no text.
    key: Option<Option<String>>,
}

/// The first document. What an alias stands for is shared, not copied: a short file cannot become a large tree.
fn read(text: &str) -> Result<Rc<Node>, ComposeError> {
    let mut anchors: BTreeMap<usize, Rc<Node>> = BTreeMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut line = 1;
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|e| ComposeError::Yaml { line: e.marker().line() })?;
        line = span.start.line();
        let (node, anchor) = match event {
            Event::Scalar(value, _, anchor, _) => (Rc::new(Node::Text(value.into_owned())), anchor),
            Event::Alias(anchor) => {
                // In itself it stands for nothing.
                let node = anchors.get(&anchor).cloned().unwrap_or_else(|| Rc::new(Node::List(Vec::new())));
                (node, 0)
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => {
                return Err(ComposeError::Depth { line });
            }
            Event::SequenceStart(anchor, _) => {
                open.push(Open { node: Node::List(Vec::new()), anchor, key: None });
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push(Open { node: Node::Map(Vec::new()), anchor, key: None });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(done) => (Rc::new(done.node), done.anchor),
                None => return Err(ComposeError::Yaml { line }),
            },
            _ => continue,
        };
        if anchor > 0 {
            anchors.insert(anchor, Rc::clone(&node));
        }
        let Some(parent) = open.last_mut() else { return Ok(node) };
        match (&mut parent.node, parent.key.take()) {
            (Node::List(all), _) => all.push(node),
            (Node::Map(_), None) => parent.key = Some(node.text().map(str::to_owned)),
            (Node::Map(entries), Some(Some(key))) => entries.push((key, node)),
            (Node::Map(_), Some(None)) | (Node::Text(_), _) => {}
        }
    }
    Err(ComposeError::Yaml { line })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        let needs = match needs(text) {
            Ok(needs) => needs,
            Err(e) => return e.to_string(),
        };
        let one = |(name, needs): (String, BTreeSet<String>)| {
            format!("{name}: {}", needs.into_iter().collect::<Vec<_>>().join(" "))
        };
        needs.into_iter().map(one).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn both_forms_of_depends_on_are_read() {
        let text = "
# A comment
version: '3.7'
services:
  db:
    image: postgres:15-alpine
  cache: {image: 'redis:7', command: [redis-server, --appendonly, \"yes\"]}
  backend:
    depends_on:
      - db
      - \"cache\"   # both
    environment:
      depends_on: nobody
  worker:
    depends_on:
      db:
        condition: service_healthy
      cache: {condition: service_started}
  proxy: {depends_on: [backend, 'worker']}
volumes:
  data:
    depends_on: [x]
";
        assert_eq!(said(text), "backend: cache db; cache: ; db: ; proxy: backend worker; worker: cache db");
        assert_eq!(said(&text.replace('\n', "\r\n")), said(text));
        assert_eq!(said(&format!("\u{feff}---\n{text}")), said(text));
    }

    #[test]
    fn anchors_and_merges_are_followed() {
        let text = "
x-base: &base
  restart: always
  depends_on: &both [db, cache]
x-map: &map
  db: {condition: service_healthy}
services:
  a: {<<: *base}
  b: {<<: *base, depends_on: [other]}
  c:
    depends_on: *both
  d:
    depends_on:
      <<: *map
      cache: {condition: service_started}
  e:
    <<: [{image: x}, *base]
  db: {image: y}
";
        assert_eq!(said(text), "a: cache db; b: other; c: cache db; d: cache db; db: ; e: cache db");
    }

    #[test]
    fn what_compose_takes_for_a_need_is_one() {
        let text = "
services:
  a: {links: ['db:database', cache]}
  b: {volumes_from: ['db:ro', 'container:elsewhere:ro']}
  c: {network_mode: 'service:db', pid: 'service:cache', ipc: host}
";
        assert_eq!(said(text), "a: cache db; b: db; c: cache db");
        // As it was before there were versions.
        assert_eq!(said("web:\n  links:\n    - db\ndb:\n  image: x\n"), "db: ; web: db");
    }

    #[test]
    fn what_is_no_compose_file_is_said() {
        assert_eq!(said(""), "line 1 is no YAML");
        assert_eq!(said("services:\n  a: [\n"), "line 3 is no YAML");
        assert_eq!(said("services:\n  a: b\n c: d\n"), "line 3 is no YAML");
        assert_eq!(said("just text"), "it has no services");
        assert_eq!(said("version: '3'\nvolumes:\n  a: {}\n"), "it has no services");
        assert_eq!(said("services: [a, b]\n"), "it has no services");
        assert_eq!(said(&format!("{}x", "- ".repeat(1000))), "line 1 is nested too deeply");
        assert_eq!(said(&"[".repeat(1 << 20)), "line 1 is no YAML");
        // In itself an anchor stands for nothing.
        assert_eq!(said("services: {a: &a {<<: *a, depends_on: [b, *a]}}"), "a: b");
    }

    #[test]
    fn a_short_file_never_becomes_a_large_tree() {
        let mut text = "a0: &a0 {x: y}\n".to_owned();
        for i in 1..40 {
            let before = format!("*a{}, ", i - 1).repeat(9);
            text.push_str(&format!("a{i}: &a{i} {{<<: [{before}]}}\n"));
        }
        text.push_str("services:\n  s: {<<: *a39}\n  t: {depends_on: [s]}\n");
        assert_eq!(said(&text), "s: ; t: s");
    }
}
