//! A Compose file: which services does each service need, and which other files does it name? What could go wrong: an
//! application that goes on while its database is replaced, because its file says so in another way; so anchors, merges
//! and both forms of a list are followed, and what Compose itself takes for a need counts as one. Names with variables in
//! them are not replaced.

use std::cell::Cell;
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
    #[error("what its aliases stand for is too much")]
    Length,
    #[error("it has no services")]
    NoServices,
}

/// Deeper than any Compose file, with what aliases stand for; what is freed is freed by recursion.
const DEPTH: usize = 64;
/// How many merges are followed into each other.
const MERGES: usize = 4;
/// How much is looked at in one file: keys, and names, of which each counts for several.
const STEPS: usize = 1_000_000;
const NAME_STEPS: usize = 10;

/// Other files that a Compose file names, as they are written there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Files of environment variables.
    pub env: BTreeSet<String>,
    /// Further Compose files.
    pub compose: BTreeSet<String>,
}

/// The files that it names. One that has no services of its own may name others.
pub fn files(text: &str) -> Result<Named, ComposeError> {
    let root = read(text)?;
    let budget = Budget(Cell::new(STEPS));
    let mut named = Named::default();
    if let Some(include) = root.get("include", &budget)? {
        include.paths("path", &budget, &mut named.compose)?;
        for part in include.parts() {
            if let Some(env) = part.get("env_file", &budget)? {
                env.paths("path", &budget, &mut named.env)?;
            }
        }
    }
    for (_, service) in services(&root, &budget)?.iter().filter(|(_, s)| s.is_map()) {
        if let Some(env) = service.get("env_file", &budget)? {
            env.paths("path", &budget, &mut named.env)?;
        }
        if let Some(extends) = service.get("extends", &budget)?
            && let Some(file) = extends.get("file", &budget)?
        {
            file.paths("path", &budget, &mut named.compose)?;
        }
    }
    Ok(named)
}

/// The first format, which only Compose 1 reads, has the services at the top.
fn services<'a>(root: &'a Node, budget: &Budget) -> Result<&'a [(String, Rc<Node>)], ComposeError> {
    Ok(match root.get("services", budget)? {
        Some(services) => services.entries(),
        None if root.get("version", budget)?.is_none() => root.entries(),
        None => &[],
    })
}

/// What the file says.
pub fn needs(text: &str) -> Result<Needs, ComposeError> {
    let root = read(text)?;
    let budget = Budget(Cell::new(STEPS));
    let services = services(&root, &budget)?;
    let of = |service: &Node| -> Result<BTreeSet<String>, ComposeError> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let names = |key: &str| -> Result<BTreeSet<String>, ComposeError> {
            service.get(key, &budget)?.map_or_else(|| Ok(BTreeSet::new()), |node| node.names(&budget))
        };
        found.extend(names("depends_on")?);
        let first = |name: String| name.split(':').next().unwrap_or_default().to_owned();
        found.extend(names("links")?.into_iter().map(first));
        let from = names("volumes_from")?;
        found.extend(from.into_iter().filter(|n| !n.starts_with("container:")).map(first));
        for key in ["network_mode", "net", "ipc", "pid"] {
            let shared = service.get(key, &budget)?.and_then(Node::text);
            found.extend(shared.and_then(|t| t.strip_prefix("service:")).map(str::to_owned));
        }
        Ok(found)
    };
    let mut known = Needs::new();
    for (name, service) in services.iter().filter(|(_, s)| s.is_map()) {
        known.insert(name.clone(), of(service)?);
    }
    if known.is_empty() { Err(ComposeError::NoServices) } else { Ok(known) }
}

/// What may still be looked at: aliases let a short file stand for any number of things.
struct Budget(Cell<usize>);

impl Budget {
    fn spend(&self, steps: usize) -> Result<(), ComposeError> {
        self.0.set(self.0.get().checked_sub(steps).ok_or(ComposeError::Length)?);
        Ok(())
    }
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

    fn entries(&self) -> &[(String, Rc<Node>)] {
        if let Self::Map(entries) = self { entries } else { &[] }
    }

    /// The value of a key: its own, else one that is merged in.
    fn get(&self, key: &str, budget: &Budget) -> Result<Option<&Node>, ComposeError> {
        self.merged(key, MERGES, budget)
    }

    fn merged(&self, key: &str, left: usize, budget: &Budget) -> Result<Option<&Node>, ComposeError> {
        budget.spend(1 + self.entries().len())?;
        let own = |wanted: &str| self.entries().iter().rev().find(|(k, _)| k == wanted).map(|(_, v)| &**v);
        if let Some(value) = own(key) {
            return Ok(Some(value));
        }
        let (Some(left), Some(merged)) = (left.checked_sub(1), own("<<")) else { return Ok(None) };
        let Self::List(several) = merged else { return merged.merged(key, left, budget) };
        for node in several {
            if let Some(found) = node.merged(key, left, budget)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The elements of a list, else the one thing that it is.
    fn parts(&self) -> Vec<&Self> {
        if let Self::List(all) = self { all.iter().map(|n| &**n).collect() } else { vec![self] }
    }

    /// A path, a list of them, or maps that have one or several under `key`.
    fn paths(&self, key: &str, budget: &Budget, into: &mut BTreeSet<String>) -> Result<(), ComposeError> {
        for part in self.parts() {
            budget.spend(NAME_STEPS)?;
            let inside = if part.is_map() { part.get(key, budget)? } else { Some(part) };
            for path in inside.map_or_else(Vec::new, Self::parts) {
                budget.spend(NAME_STEPS)?;
                into.extend(path.text().filter(|t| !t.is_empty()).map(str::to_owned));
            }
        }
        Ok(())
    }

    /// Elements of a list, keys of a map, or the one text.
    fn names(&self, budget: &Budget) -> Result<BTreeSet<String>, ComposeError> {
        let mut names = BTreeSet::new();
        let mut add = |name: &str| -> Result<(), ComposeError> {
            budget.spend(NAME_STEPS)?;
            if name != "<<" {
                names.insert(name.to_owned());
            }
            Ok(())
        };
        match self {
            Self::Text(text) => add(text)?,
            Self::List(all) => all.iter().filter_map(|n| n.text()).try_for_each(add)?,
            Self::Map(entries) => {
                for (key, node) in entries {
                    add(key)?;
                    // One level, as people write it: `depends_on: { <<: *common, db: … }`.
                    let merged = match (key.as_str(), &**node) {
                        ("<<", Self::List(several)) => several.as_slice(),
                        ("<<", _) => std::slice::from_ref(node),
                        _ => &[],
                    };
                    for node in merged {
                        budget.spend(1)?;
                        node.entries().iter().try_for_each(|(k, _)| add(k))?;
                    }
                }
            }
        }
        Ok(names)
    }
}

/// A list or a map that has begun.
struct Open {
    node: Node,
    anchor: usize,
    /// In a map: the key whose value comes next; the inner None stands for one that is no text.
    key: Option<Option<String>>,
    /// Of the deepest thing in it so far.
    height: usize,
}

/// The first document. What an alias stands for is shared, not copied; how deep it is counts wherever it stands.
fn read(text: &str) -> Result<Rc<Node>, ComposeError> {
    let mut anchors: BTreeMap<usize, (Rc<Node>, usize)> = BTreeMap::new();
    let mut open: Vec<Open> = Vec::new();
    let mut line = 1;
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|e| ComposeError::Yaml { line: e.marker().line() })?;
        line = span.start.line();
        let (node, height, anchor) = match event {
            Event::Scalar(value, _, anchor, _) => (Rc::new(Node::Text(value.into_owned())), 0, anchor),
            Event::Alias(anchor) => {
                // In itself it stands for nothing.
                let nothing = || (Rc::new(Node::List(Vec::new())), 0);
                let (node, height) = anchors.get(&anchor).cloned().unwrap_or_else(nothing);
                if open.len() + height > DEPTH {
                    return Err(ComposeError::Depth { line });
                }
                (node, height, 0)
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() >= DEPTH => {
                return Err(ComposeError::Depth { line });
            }
            Event::SequenceStart(anchor, _) => {
                open.push(Open { node: Node::List(Vec::new()), anchor, key: None, height: 0 });
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push(Open { node: Node::Map(Vec::new()), anchor, key: None, height: 0 });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(done) => (Rc::new(done.node), done.height + 1, done.anchor),
                None => return Err(ComposeError::Yaml { line }),
            },
            _ => continue,
        };
        if anchor > 0 {
            anchors.insert(anchor, (Rc::clone(&node), height));
        }
        let Some(parent) = open.last_mut() else { return Ok(node) };
        parent.height = parent.height.max(height);
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

    fn named(text: &str) -> String {
        match files(text) {
            Ok(Named { env, compose }) => {
                let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" ");
                format!("{} | {}", join(env), join(compose))
            }
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn every_form_of_naming_a_file_is_read() {
        let text = "
x-base: &base
  env_file: &env [common.env]
include:
  - other.yml
  - path: [one.yml, ../two.yml]
    env_file: [included.env]
    project_directory: ..
  - {path: three.yml, env_file: three.env}
services:
  a: {env_file: a.env}
  b: {env_file: [b.env, ./sub/b2.env, '${ANY}/b3.env']}
  c:
    env_file:
      - path: ./c.env
        required: false
      - {path: c2.env, format: raw}
  d: {<<: *base}
  e: {env_file: *env, extends: {file: base.yml, service: x}}
  f: {extends: d}
  g: {environment: {env_file: nobody.env}, env_file: ''}
";
        let env = "${ANY}/b3.env ./c.env ./sub/b2.env a.env b.env c2.env common.env included.env three.env";
        assert_eq!(named(text), format!("{env} | ../two.yml base.yml one.yml other.yml three.yml"));
        assert_eq!(named("web: {env_file: first.env}\n"), "first.env | ");
        assert_eq!(named("include: only.yml\n"), " | only.yml");
        assert_eq!(named("version: '3'\nvolumes: {a: {}}\n"), " | ");
        assert_eq!(named("services:\n  a: [\n"), "line 3 is no YAML");
        let deep = format!("services: {{a: {{env_file: {}x{}}}}}", "[".repeat(80), "]".repeat(80));
        assert_eq!(named(&deep), "line 1 is nested too deeply");
        assert_eq!(named("services: {a: {env_file: &a [x, *a, [y, z], {path: [v, w]}]}}"), "v w x y z | ");
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
        let merges = |levels: usize| {
            let mut text = "a0: &a0 {x: y}\n".to_owned();
            for i in 1..levels {
                let before = format!("*a{}, ", i - 1).repeat(9);
                text.push_str(&format!("a{i}: &a{i} {{<<: [{before}]}}\n"));
            }
            text + &format!("services:\n  s: {{<<: *a{}}}\n  t: {{depends_on: [s]}}\n", levels - 1)
        };
        assert_eq!(said(&merges(30)), "s: ; t: s");
        // Deeper than anybody writes, were it written out.
        assert!(said(&merges(40)).ends_with("is nested too deeply"), "{}", said(&merges(40)));
    }

    /// What is freed by recursion would overflow the stack.
    #[test]
    fn aliases_of_aliases_are_as_deep_as_what_they_stand_for() {
        let mut text = "- &a0 [x]\n".to_owned();
        for i in 1..70_000 {
            text.push_str(&format!("- &a{i} [*a{}]\n", i - 1));
        }
        assert_eq!(said(&text), "line 64 is nested too deeply");
    }

    #[test]
    fn what_aliases_stand_for_is_looked_at_only_so_far() {
        let many =
            |what: &str, n: usize| (0..n).map(|i| what.replace('#', &i.to_string())).collect::<String>();
        let keys = many("k#: , ", 60_000);
        let merged = format!(
            "x: &a {{{keys}}}\nservices:\n  s: {{depends_on: {{<<: [{}]}}}}\n",
            "*a, ".repeat(100_000)
        );
        let shared = format!(
            "x: &x\n  depends_on: [{}]\nservices:\n{}",
            many("n#, ", 30_000),
            many("  s#: *x\n", 60_000)
        );
        let wide = "*a, ".repeat(20_000);
        let levels = format!(
            "a: &a {{x: y}}\nb: &b {{<<: [{wide}]}}\nc: &c {{<<: [{}]}}\nservices:\n  s: {{<<: [{}]}}\n",
            wide.replace('a', "b"),
            wide.replace('a', "c")
        );
        for text in [merged, shared, levels] {
            assert_eq!(said(&text), "what its aliases stand for is too much");
        }
        let env = format!(
            "x: &x\n  env_file: [{}]\nservices:\n{}",
            many("n#, ", 30_000),
            many("  s#: *x\n", 60_000)
        );
        assert_eq!(named(&env), "what its aliases stand for is too much");
        // A large file of a person is read.
        let large = many("  s#:\n    image: x\n    restart: always\n    depends_on: [s0, s1]\n", 2_000);
        assert_eq!(needs(&format!("services:\n{large}")).map(|n| n.len()), Ok(2_000));
    }
}
