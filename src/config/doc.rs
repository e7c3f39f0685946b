//! The configuration as written: one tree out of several files, each value with the file and line it came from.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::section::Problem;

/// Where a value was written. Line 0: nowhere (a default).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Rc<Path>,
    pub line: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: Value,
    pub at: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    /// No key takes one; kept to say so.
    Float,
    Bool(bool),
    List(Vec<Node>),
    /// In the order of the file: the first configured database or file has a meaning.
    Table(Vec<(String, Node)>),
}

impl Value {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float => "a number with a fraction",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// All files of a configuration, merged: a later file adds to tables and replaces everything else.
#[derive(Debug)]
pub struct Doc {
    pub(super) root: Node,
    pub files: Vec<PathBuf>,
}

impl Doc {
    /// Parses and merges `(path, text)` in this order. Every syntax error of every file is reported, not only the first.
    pub fn parse(files: &[(PathBuf, String)], problems: &mut Vec<Problem>) -> Self {
        let first = files.first().map_or_else(|| PathBuf::from("config.toml"), |(p, _)| p.clone());
        let mut root =
            Node { value: Value::Table(Vec::new()), at: Place { file: Rc::from(first.as_path()), line: 0 } };
        for (path, text) in files {
            let file: Rc<Path> = Rc::from(path.as_path());
            let lines = Lines::of(text);
            let (table, errors) = DeTable::parse_recoverable(text);
            for e in errors {
                let line = e.span().map_or(1, |s| lines.line(s.start));
                problems.push(Problem {
                    at: Place { file: file.clone(), line },
                    key: String::new(),
                    message: format!("not valid TOML: {}", e.message()),
                    hint: None,
                });
            }
            merge(
                &mut root,
                convert_table(table.get_ref(), &file, &lines, Place { file: file.clone(), line: 1 }),
            );
        }
        Self { root, files: files.iter().map(|(p, _)| p.clone()).collect() }
    }
}

/// Offsets of line starts.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(std::iter::once(0).chain(memchr::memchr_iter(b'\n', text.as_bytes()).map(|i| i + 1)).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset)
    }
}

fn convert_table(table: &DeTable<'_>, file: &Rc<Path>, lines: &Lines, at: Place) -> Node {
    let mut entries: Vec<(usize, String, Node)> = table
        .iter()
        .map(|(key, value)| {
            let start = key.span().start;
            let place = Place { file: file.clone(), line: lines.line(start) };
            (start, key.get_ref().to_string(), convert(value, file, lines, place))
        })
        .collect();
    entries.sort_by_key(|(start, _, _)| *start);
    Node { value: Value::Table(entries.into_iter().map(|(_, k, n)| (k, n)).collect()), at }
}

fn convert(value: &Spanned<DeValue<'_>>, file: &Rc<Path>, lines: &Lines, at: Place) -> Node {
    let converted = match value.get_ref() {
        DeValue::String(s) => Value::Text(s.to_string()),
        // A number that does not fit stays a text, so that the reader of the key says what it wanted.
        DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
            .map_or_else(|_| Value::Text(i.to_string()), Value::Integer),
        DeValue::Float(_) => Value::Float,
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Datetime(d) => Value::Text(d.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|v| {
                    let place = Place { file: file.clone(), line: lines.line(v.span().start) };
                    convert(v, file, lines, place)
                })
                .collect(),
        ),
        DeValue::Table(t) => return convert_table(t, file, lines, at),
    };
    Node { value: converted, at }
}

fn merge(base: &mut Node, over: Node) {
    match (&mut base.value, over.value) {
        (Value::Table(old), Value::Table(new)) => {
            for (key, node) in new {
                match old.iter_mut().find(|(k, _)| *k == key) {
                    Some((_, present)) => merge(present, node),
                    None => old.push((key, node)),
                }
            }
        }
        (slot, value) => {
            *slot = value;
            base.at = over.at;
        }
    }
}
