//! One table of the configuration, read key by key. Each question names the key, its type, its default and what it is
//! for; the answers, the problems and the questions themselves are kept in a `Survey`.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::doc::{Doc, Node, Place, Value};
use crate::secret::SecretRef;
use crate::units;

/// Something wrong in the configuration, and how to mend it.
#[derive(Debug, Clone)]
pub struct Problem {
    pub at: Place,
    /// Dotted path of the key; empty for a file that is not TOML.
    pub key: String,
    pub message: String,
    pub hint: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.at.file.display())?;
        if self.at.line > 0 {
            write!(f, ":{}", self.at.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A question that was asked, and its answer.
#[derive(Debug, Clone)]
pub struct Key {
    /// Dotted path of the table.
    pub table: String,
    pub name: String,
    /// JSON schema of the value.
    pub schema: Json,
    pub about: &'static str,
    pub default: Option<Json>,
    /// The value in force; None where there is neither a value nor a default.
    pub value: Option<Json>,
}

/// What reading the configuration found out.
#[derive(Debug, Default)]
pub struct Survey {
    pub problems: Vec<Problem>,
    pub keys: Vec<Key>,
    /// Secrets that are referred to: dotted path of the key, and where the value is to be found.
    pub secrets: Vec<(String, SecretRef)>,
}

pub struct Section<'a> {
    path: String,
    node: Option<&'a Node>,
    at: Place,
    survey: Rc<RefCell<Survey>>,
    asked: RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    pub fn root(doc: &'a Doc, survey: Rc<RefCell<Survey>>) -> Self {
        Self {
            path: String::new(),
            node: Some(&doc.root),
            at: doc.root.at.clone(),
            survey,
            asked: RefCell::default(),
        }
    }

    /// An empty section to ask for what it could hold.
    pub fn blank(path: &str) -> (Section<'static>, Rc<RefCell<Survey>>) {
        let survey = Rc::new(RefCell::new(Survey::default()));
        (Self::blank_into(path, survey.clone()), survey)
    }

    /// The same, adding to a survey that is under way.
    pub fn blank_into(path: &str, survey: Rc<RefCell<Survey>>) -> Section<'static> {
        let at = Place { file: Rc::from(std::path::Path::new("")), line: 0 };
        Section { path: path.to_owned(), node: None, at, survey, asked: RefCell::default() }
    }

    /// Whether the key is written there, with whatever value.
    pub fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    pub fn is_present(&self) -> bool {
        self.node.is_some()
    }

    /// Reports a problem of this table, or of one of its keys.
    pub fn problem(&self, key: &str, message: impl Into<String>, hint: Option<String>) {
        let at = self.entry(key).map_or_else(|| self.at.clone(), |n| n.at.clone());
        let problem = Problem { at, key: join(&self.path, key), message: message.into(), hint };
        self.survey.borrow_mut().problems.push(problem);
    }

    fn entry(&self, key: &str) -> Option<&'a Node> {
        match self.node.map(|n| &n.value) {
            Some(Value::Table(t)) => t.iter().find(|(k, _)| k == key).map(|(_, n)| n),
            _ => None,
        }
    }

    fn ask<T>(
        &self,
        key: &str,
        about: &'static str,
        schema: Json,
        default: Option<Json>,
        read: impl FnOnce(&'a Node) -> Result<(T, Json), String>,
    ) -> Option<T> {
        self.asked.borrow_mut().push(key.to_owned());
        let mut value = default.clone();
        let mut answer = None;
        if let Some(node) = self.entry(key) {
            match read(node) {
                Ok((v, shown)) => {
                    value = Some(shown);
                    answer = Some(v);
                }
                Err(wanted) => self.problem(key, wanted, None),
            }
        }
        self.survey.borrow_mut().keys.push(Key {
            table: self.path.clone(),
            name: key.to_owned(),
            schema,
            about,
            default,
            value,
        });
        answer
    }

    pub fn text(&self, key: &str, about: &'static str) -> Option<String> {
        self.ask(key, about, json!({"type": "string"}), None, text_of)
    }

    pub fn text_or(&self, key: &str, default: &str, about: &'static str) -> String {
        self.ask(key, about, json!({"type": "string"}), Some(json!(default)), text_of)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A key that must be there. The empty text stands in where it is not; the problem is recorded.
    pub fn required(&self, key: &str, about: &'static str) -> String {
        let answer = self.text(key, about);
        if self.node.is_some() && self.entry(key).is_none() {
            self.problem(key, "missing", Some(format!("add {key} = … to [{}]: {about}", self.path)));
        }
        answer.unwrap_or_default()
    }

    /// An absolute path.
    pub fn path_of(&self, key: &str, about: &'static str) -> Option<PathBuf> {
        self.ask(key, about, json!({"type": "string"}), None, absolute)
    }

    pub fn path_or(&self, key: &str, default: &std::path::Path, about: &'static str) -> PathBuf {
        let shown = Some(json!(default.display().to_string()));
        self.ask(key, about, json!({"type": "string"}), shown, absolute).unwrap_or_else(|| default.to_owned())
    }

    pub fn required_path(&self, key: &str, about: &'static str) -> PathBuf {
        let answer = self.path_of(key, about);
        if self.node.is_some() && self.entry(key).is_none() {
            self.problem(key, "missing", Some(format!("add {key} = \"/…\" to [{}]: {about}", self.path)));
        }
        answer.unwrap_or_default()
    }

    pub fn flag(&self, key: &str, default: bool, about: &'static str) -> bool {
        self.ask(key, about, json!({"type": "boolean"}), Some(json!(default)), |n| match &n.value {
            Value::Bool(b) => Ok((*b, json!(b))),
            other => Err(format!("must be true or false, not {}", other.kind())),
        })
        .unwrap_or(default)
    }

    pub fn whole(&self, key: &str, about: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let (low, high) = (*range.start(), *range.end());
        let schema = json!({"type": "integer", "minimum": low, "maximum": high});
        self.ask(key, about, schema, None, |n| match &n.value {
            Value::Integer(i) if range.contains(i) => Ok((*i, json!(i))),
            Value::Integer(i) => Err(format!("must be from {low} to {high}, not {i}")),
            other => Err(format!("must be a whole number, not {}", other.kind())),
        })
    }

    pub fn whole_or(
        &self,
        key: &str,
        default: i64,
        about: &'static str,
        range: std::ops::RangeInclusive<i64>,
    ) -> i64 {
        let answer = self.whole(key, about, range);
        self.amend_default(json!(default), answer.is_some());
        answer.unwrap_or(default)
    }

    pub fn duration_or(&self, key: &str, default: Duration, about: &'static str) -> Duration {
        self.duration_with(key, Some(default), about).unwrap_or(default)
    }

    /// The same where there is no default.
    pub fn duration(&self, key: &str, about: &'static str) -> Option<Duration> {
        self.duration_with(key, None, about)
    }

    fn duration_with(&self, key: &str, default: Option<Duration>, about: &'static str) -> Option<Duration> {
        let shown = default.map(|d| json!(units::write_duration(d)));
        self.ask(key, about, json!({"type": "string", "examples": ["90s", "30m", "2h"]}), shown, |n| {
            let wanted = "must be a length of time such as \"90s\", \"30m\" or \"2h\"";
            match &n.value {
                Value::Text(t) => match units::duration(t) {
                    Some(d) if !d.is_zero() => Ok((d, json!(t))),
                    Some(_) => Err("must be longer than nothing".to_owned()),
                    None => Err(format!("{wanted}, not {t:?}")),
                },
                other => Err(format!("{wanted} in quotes, not {}", other.kind())),
            }
        })
    }

    /// A number of bytes, at least `least`.
    pub fn size(&self, key: &str, least: u64, about: &'static str) -> Option<u64> {
        self.size_with(key, None, least, about)
    }

    /// The same where the configuration need not say: `default` as it would be written.
    pub fn size_or(&self, key: &str, default: &'static str, least: u64, about: &'static str) -> u64 {
        self.size_with(key, Some(default), least, about).or_else(|| units::bytes(default)).unwrap_or(least)
    }

    fn size_with(
        &self,
        key: &str,
        default: Option<&'static str>,
        least: u64,
        about: &'static str,
    ) -> Option<u64> {
        let schema = json!({"type": "string", "examples": ["512 KiB", "128 MiB", "2 GiB"]});
        self.ask(key, about, schema, default.map(|d| json!(d)), |n| {
            let wanted = "must be a number of bytes such as \"512 KiB\" or \"128 MiB\"";
            match &n.value {
                Value::Text(t) => match units::bytes(t) {
                    Some(bytes) if bytes >= least => Ok((bytes, json!(t))),
                    Some(_) => Err(format!("must be at least {}, not {t:?}", units::show_bytes(least))),
                    None => Err(format!("{wanted}, not {t:?}")),
                },
                other => Err(format!("{wanted} in quotes, not {}", other.kind())),
            }
        })
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, options: &[(&'static str, T)], about: &'static str) -> T {
        let words: Vec<&str> = options.iter().map(|(w, _)| *w).collect();
        let schema = json!({"type": "string", "enum": words});
        self.ask(key, about, schema, Some(json!(words[0])), |n| match &n.value {
            Value::Text(t) => match options.iter().find(|(w, _)| w == t) {
                Some((_, v)) => Ok((*v, json!(t))),
                None => Err(format!("must be one of {}, not {t:?}", words.join(", "))),
            },
            other => Err(format!("must be one of {}, not {}", words.join(", "), other.kind())),
        })
        .unwrap_or(options[0].1)
    }

    /// A list of texts; a single text counts as a list of one.
    pub fn texts(&self, key: &str, about: &'static str) -> Vec<String> {
        let schema = json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]});
        self.ask(key, about, schema, Some(json!([])), |n| {
            let list: Result<Vec<String>, String> = match &n.value {
                Value::Text(t) => Ok(vec![t.clone()]),
                Value::List(items) => items
                    .iter()
                    .map(|i| match &i.value {
                        Value::Text(t) => Ok(t.clone()),
                        other => Err(format!("must be a list of texts, it holds {}", other.kind())),
                    })
                    .collect(),
                other => Err(format!("must be a list of texts, not {}", other.kind())),
            };
            list.map(|l| (l.clone(), json!(l)))
        })
        .unwrap_or_default()
    }

    /// A secret, by reference only. A secret written in place is refused, and not repeated in the message.
    pub fn secret(&self, key: &str, about: &'static str) -> Option<SecretRef> {
        let one = |k: &str| json!({"type": "object", "required": [k], "properties": {k: {"type": "string"}}, "additionalProperties": false});
        let schema = json!({"oneOf": [one("credential"), one("file"), one("env")]});
        let answer = self.ask(key, about, schema, None, |n| {
            let how =
                "must be a reference: { credential = \"name\" }, { file = \"/path\" } or { env = \"NAME\" }";
            let Value::Table(t) = &n.value else {
                return Err(format!("{how}; a secret is never written into the configuration"));
            };
            let [(kind, value)] = t.as_slice() else { return Err(how.to_owned()) };
            let Value::Text(text) = &value.value else { return Err(how.to_owned()) };
            let reference = match kind.as_str() {
                "credential" if !text.is_empty() && !text.contains('/') => {
                    SecretRef::Credential(text.clone())
                }
                "file" if text.starts_with('/') => SecretRef::File(PathBuf::from(text)),
                "env" if !text.is_empty() && !text.contains('=') => SecretRef::Env(text.clone()),
                _ => return Err(how.to_owned()),
            };
            Ok((reference, json!({ kind.as_str(): text })))
        });
        let found = answer.iter().map(|reference: &SecretRef| (join(&self.path, key), reference.clone()));
        self.survey.borrow_mut().secrets.extend(found);
        answer
    }

    /// A table whose keys are free and whose values are texts (environment variables).
    pub fn text_table(&self, key: &str, about: &'static str) -> Vec<(String, String)> {
        let schema = json!({"type": "object", "additionalProperties": {"type": "string"}});
        self.ask(key, about, schema, None, |n| {
            let Value::Table(t) = &n.value else {
                return Err(format!("must be a table, not {}", n.value.kind()));
            };
            let mut pairs = Vec::new();
            for (k, v) in t {
                match &v.value {
                    Value::Text(text) => pairs.push((k.clone(), text.clone())),
                    other => return Err(format!("{k} must be a text, not {}", other.kind())),
                }
            }
            let shown: serde_json::Map<String, Json> =
                pairs.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
            Ok((pairs, Json::Object(shown)))
        })
        .unwrap_or_default()
    }

    /// A sub-table; an absent one answers every question with its default.
    pub fn table(&self, key: &str) -> Section<'a> {
        if !self.asked.borrow().iter().any(|k| k == key) {
            self.asked.borrow_mut().push(key.to_owned());
        }
        let path = join(&self.path, key);
        let entry = self.entry(key);
        if let Some(node) = entry {
            if matches!(node.value, Value::Table(_)) {
                return Section { path, node: Some(node), at: node.at.clone(), ..self.child() };
            }
            self.problem(
                key,
                format!("must be a table, not {}", node.value.kind()),
                Some(format!("write [{path}]")),
            );
        }
        Section { path, node: None, at: self.at.clone(), ..self.child() }
    }

    /// The named sub-tables of a table, in the order of the file.
    pub fn tables(&self, key: &str) -> Vec<(String, Section<'a>)> {
        let all = self.table(key);
        let Some(Value::Table(entries)) = all.node.map(|n| &n.value) else { return Vec::new() };
        let mut out = Vec::new();
        for (name, _) in entries {
            let section = all.table(name);
            if section.node.is_some() {
                out.push((name.clone(), section));
            }
        }
        out
    }

    fn child(&self) -> Section<'a> {
        Section {
            path: String::new(),
            node: None,
            at: self.at.clone(),
            survey: self.survey.clone(),
            asked: RefCell::default(),
        }
    }

    /// Reports every key that nobody asked for. To be called when all questions were asked.
    pub fn finish(&self) {
        let Some(Value::Table(entries)) = self.node.map(|n| &n.value) else { return };
        let asked = self.asked.borrow();
        for (key, _) in entries.iter().filter(|(k, _)| !asked.contains(k)) {
            let near = nearest(key, asked.iter().map(String::as_str));
            let hint = match near {
                Some(n) => format!("did you mean {n}?"),
                None if asked.is_empty() => "nothing can be set here".to_owned(),
                None => format!("known here: {}", asked.join(", ")),
            };
            self.problem(key, "unknown key", Some(hint));
        }
    }

    fn amend_default(&self, default: Json, answered: bool) {
        if let Some(key) = self.survey.borrow_mut().keys.last_mut() {
            if !answered && key.value.is_none() {
                key.value = Some(default.clone());
            }
            key.default = Some(default);
        }
    }
}

fn text_of(node: &Node) -> Result<(String, Json), String> {
    match &node.value {
        Value::Text(t) if t.contains('\0') => Err("must not hold a NUL byte".to_owned()),
        Value::Text(t) => Ok((t.clone(), json!(t))),
        other => Err(format!("must be a text in quotes, not {}", other.kind())),
    }
}

fn absolute(node: &Node) -> Result<(PathBuf, Json), String> {
    let (text, shown) = text_of(node)?;
    if !text.starts_with('/') {
        return Err(format!("must be an absolute path, not {text:?}"));
    }
    Ok((PathBuf::from(text), shown))
}

fn join(path: &str, key: &str) -> String {
    match (path.is_empty(), key.is_empty()) {
        (true, _) => key.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path}.{key}"),
    }
}

/// The candidate that a person most likely meant, if any is near enough.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::damerau_levenshtein(word, c), c))
        .filter(|(distance, c)| *distance <= 1 + word.len().max(c.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(text: &str, read: impl FnOnce(&Section<'_>)) -> Survey {
        let mut problems = Vec::new();
        let doc = Doc::parse(&[(PathBuf::from("c.toml"), text.to_owned())], &mut problems);
        let survey = Rc::new(RefCell::new(Survey { problems, ..Survey::default() }));
        {
            let root = Section::root(&doc, survey.clone());
            read(&root);
            root.finish();
        }
        Rc::try_unwrap(survey).unwrap().into_inner()
    }

    #[test]
    fn every_problem_is_reported_with_its_line_and_the_nearest_key() {
        let s = survey("tiemout = \"5m\"\nsize = 3\nlist = [1]\nflag = \"yes\"\n", |r| {
            r.duration_or("timeout", Duration::from_secs(60), "x");
            r.text("size", "x");
            r.texts("list", "x");
            r.flag("flag", false, "x");
        });
        let lines: Vec<(usize, &str)> = s.problems.iter().map(|p| (p.at.line, p.key.as_str())).collect();
        assert_eq!(lines, [(2, "size"), (3, "list"), (4, "flag"), (1, "tiemout")]);
        assert_eq!(s.problems[3].hint.as_deref(), Some("did you mean timeout?"));
    }

    #[test]
    fn a_secret_in_place_is_refused_and_not_repeated() {
        let s = survey("password = \"hunter2hunter2\"", |r| {
            assert_eq!(r.secret("password", "x"), None);
        });
        assert_eq!(s.problems.len(), 1);
        assert!(!s.problems[0].to_string().contains("hunter2"));
        let s = survey("password = { file = \"/run/pw\" }", |r| {
            assert_eq!(r.secret("password", "x"), Some(SecretRef::File("/run/pw".into())));
        });
        assert!(s.problems.is_empty());
    }

    #[test]
    fn sizes_have_units_and_a_least_value() {
        let s = survey("part = \"1 MiB\"\nlimit = 5\nroom = \"2 GiB\"\n", |r| {
            assert_eq!(r.size_or("part", "128 MiB", 5 << 20, "x"), 128 << 20);
            assert_eq!(r.size("limit", 1, "x"), None);
            assert_eq!(r.size("room", 1, "x"), Some(2 << 30));
            assert_eq!(r.size_or("other", "128 MiB", 5 << 20, "x"), 128 << 20);
        });
        let keys: Vec<&str> = s.problems.iter().map(|p| p.key.as_str()).collect();
        assert_eq!(keys, ["part", "limit"]);
        assert!(s.problems[0].message.contains("at least 5.0 MiB"), "{}", s.problems[0].message);
    }

    #[test]
    fn a_later_file_adds_to_tables_and_replaces_values() {
        let mut problems = Vec::new();
        let doc = Doc::parse(
            &[
                ("a.toml".into(), "[t]\nx = \"1\"\ny = [\"a\"]\n".to_owned()),
                ("b.toml".into(), "[t]\ny = [\"b\"]\nz = \"3\"\n".to_owned()),
            ],
            &mut problems,
        );
        let survey = Rc::new(RefCell::new(Survey::default()));
        let t = Section::root(&doc, survey).table("t");
        assert_eq!(t.text("x", "").as_deref(), Some("1"));
        assert_eq!(t.texts("y", ""), ["b"]);
        assert_eq!(t.text("z", "").as_deref(), Some("3"));
    }

    #[test]
    fn broken_toml_reports_each_error_with_its_line() {
        let mut problems = Vec::new();
        Doc::parse(&[("a.toml".into(), "a = \nb = 1\nc = [1,\n".to_owned())], &mut problems);
        assert!(problems.iter().any(|p| p.at.line == 1), "{problems:?}");
    }
}
