//! The commands that the documents show, as a reader finds them: in blocks, and in the middle of sentences.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// First words of what is taken for a command. A program that no document has named yet is added here.
const PROGRAMS: &[&str] = &[
    "age",
    "age-keygen",
    "apt",
    "apt-cache",
    "apt-get",
    "aws",
    "awk",
    "b2",
    "cargo",
    "cat",
    "cd",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "crontab",
    "curl",
    "cut",
    "dd",
    "df",
    "diff",
    "docker",
    "docker-compose",
    "dpkg",
    "du",
    "echo",
    "editor",
    "export",
    "find",
    "for",
    "gpg",
    "grep",
    "gunzip",
    "gzip",
    "head",
    "hostname",
    "if",
    "install",
    "journalctl",
    "less",
    "ln",
    "lp",
    "ls",
    "make",
    "mkdir",
    "mount",
    "mv",
    "nano",
    "printf",
    "psql",
    "redis-cli",
    "rm",
    "rsync",
    "scp",
    "sed",
    "sha256sum",
    "shred",
    "sqlite3",
    "ssh",
    "ssh-keygen",
    "ssh-keyscan",
    "sudo",
    "systemctl",
    "systemd-analyze",
    "systemd-creds",
    "tail",
    "tar",
    "tars-backup",
    "touch",
    "umount",
    "while",
];

/// A command and where it stands.
#[derive(Debug, Clone)]
pub struct Shown {
    pub document: String,
    pub line: usize,
    /// Without prompt and comment; several lines where it has several.
    pub text: String,
    /// Line of the block that it is in. What changes the directory does so for the rest of its block.
    pub block: Option<usize>,
    /// In a dialogue: the first line of what is said to it.
    pub answer: String,
    /// The next block of the document: what is typed into the file that this command opens.
    pub next_block: String,
}

impl Shown {
    pub fn at(&self) -> String {
        format!("{}:{}: {}", self.document, self.line, self.text)
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every docs/*.md, as names below the root.
pub fn documents() -> Vec<String> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "md"))
        .collect();
    found.sort();
    let names = found.iter().map(|p| format!("docs/{}", p.file_name().unwrap().to_str().unwrap()));
    std::iter::once("README.md".to_owned()).chain(names).collect()
}

pub fn read(document: &str) -> String {
    std::fs::read_to_string(root().join(document)).unwrap_or_else(|e| panic!("{document}: {e}"))
}

/// Every command of a document, in its order.
pub fn commands(document: &str) -> Vec<Shown> {
    commands_in(document, &read(document))
}

/// What stands between backticks in a sentence or a table: line and text.
pub fn spans(document: &str) -> Vec<(usize, String)> {
    pieces(&read(document))
        .into_iter()
        .filter_map(|piece| match piece {
            Piece::Prose { line, text } => Some(spans_in(line, &text)),
            Piece::Block { .. } => None,
        })
        .flatten()
        .collect()
}

pub fn commands_in(document: &str, text: &str) -> Vec<Shown> {
    let pieces = pieces(text);
    let mut all = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        let next_block = pieces[i + 1..].iter().find_map(|p| match p {
            Piece::Block { lines, .. } => Some(lines.join("\n")),
            Piece::Prose { .. } => None,
        });
        let found = match piece {
            Piece::Block { line, lines } => {
                block(*line, lines).into_iter().map(|c| (c, Some(*line))).collect()
            }
            Piece::Prose { line, text } => spans_in(*line, text)
                .into_iter()
                .filter(|(_, span)| is_command(span) && !is_only_names(span))
                .map(|c| (c, None))
                .collect::<Vec<_>>(),
        };
        all.extend(found.into_iter().map(|((line, text), block)| Shown {
            document: document.to_owned(),
            line,
            text,
            block,
            answer: match (piece, block) {
                (Piece::Block { line: first, lines }, Some(_)) if lines[line - first].starts_with("$ ") => {
                    lines.get(line - first + 1).cloned().unwrap_or_default()
                }
                _ => String::new(),
            },
            next_block: next_block.clone().unwrap_or_default(),
        }));
    }
    all
}

enum Piece {
    /// Indented or fenced; without the indentation.
    Block {
        line: usize,
        lines: Vec<String>,
    },
    Prose {
        line: usize,
        text: String,
    },
}

fn pieces(text: &str) -> Vec<Piece> {
    let lines: Vec<&str> = text.lines().collect();
    let mut pieces = Vec::new();
    let mut prose: Option<(usize, Vec<&str>)> = None;
    let mut after_blank = true;
    let mut i = 0;
    let flush = |prose: &mut Option<(usize, Vec<&str>)>, pieces: &mut Vec<Piece>| {
        if let Some((line, lines)) = prose.take() {
            pieces.push(Piece::Prose { line, text: lines.join("\n") });
        }
    };
    while i < lines.len() {
        let start = i;
        if lines[i].trim_start().starts_with("```") {
            let indent = lines[i].len() - lines[i].trim_start().len();
            i += 1;
            let mut inside = Vec::new();
            while i < lines.len() && !lines[i].trim_start().starts_with("```") {
                inside.push(lines[i].get(indent..).unwrap_or_default().to_owned());
                i += 1;
            }
            i += 1;
            flush(&mut prose, &mut pieces);
            pieces.push(Piece::Block { line: start + 2, lines: inside });
            after_blank = true;
        } else if after_blank && lines[i].starts_with("    ") {
            let indent = lines[i].len() - lines[i].trim_start().len();
            let mut inside = Vec::new();
            while i < lines.len() && (lines[i].trim().is_empty() || lines[i].starts_with("    ")) {
                let line = lines[i].get(indent..).unwrap_or(lines[i].trim_start());
                inside.push(line.to_owned());
                i += 1;
            }
            while inside.last().is_some_and(|l| l.trim().is_empty()) {
                inside.pop();
            }
            flush(&mut prose, &mut pieces);
            pieces.push(Piece::Block { line: start + 1, lines: inside });
            after_blank = true;
        } else {
            after_blank = lines[i].trim().is_empty();
            if after_blank {
                flush(&mut prose, &mut pieces);
            } else {
                prose.get_or_insert_with(|| (i + 1, Vec::new())).1.push(lines[i]);
            }
            i += 1;
        }
    }
    flush(&mut prose, &mut pieces);
    pieces
}

fn spans_in(line: usize, text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut at = line;
    for (i, part) in text.split('`').enumerate() {
        if i % 2 == 1 {
            let words: Vec<&str> = part.split_whitespace().collect();
            found.push((at, words.join(" ").replace("\\|", "|")));
        }
        at += part.matches('\n').count();
    }
    found
}

/// A block with a prompt is a dialogue: what follows a prompt is a command, the rest is what it says. A block without one
/// that begins with a command is a list of commands, and nothing else may stand in it.
fn block(first: usize, lines: &[String]) -> Vec<(usize, String)> {
    let dialogue = lines.iter().any(|l| l.starts_with("$ "));
    let begins = lines.iter().map(|l| without_comment(l)).find(|l| !l.is_empty());
    if !dialogue && !begins.as_deref().is_some_and(is_command) {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut i = 0;
    while i < lines.len() {
        let start = i;
        let line = lines[i].as_str();
        i += 1;
        let line = match (dialogue, line.strip_prefix("$ ")) {
            (true, None) => continue,
            (_, Some(rest)) => rest,
            (false, None) => line,
        };
        let mut text = without_comment(line);
        if text.is_empty() {
            continue;
        }
        if let Some((_, mark)) = text.split_once("<<") {
            let mark =
                mark.split_whitespace().next().unwrap_or_default().trim_matches(['\'', '"', '-']).to_owned();
            while i < lines.len() {
                text.push('\n');
                text.push_str(&lines[i]);
                i += 1;
                if lines[i - 1].trim() == mark {
                    break;
                }
            }
        }
        let open = |text: &str| {
            let word = text.split_whitespace().next().unwrap_or_default();
            let last = text.split_whitespace().last().unwrap_or_default();
            let unfinished = match word {
                "for" | "while" => last != "done" && !text.contains("; done"),
                "if" => last != "fi",
                _ => false,
            };
            unfinished || text.ends_with('\\') || text.ends_with('|') || text.ends_with("&&")
        };
        while open(&text) && i < lines.len() {
            text.push('\n');
            text.push_str(&without_comment(&lines[i]));
            i += 1;
        }
        found.push((first + start, text));
    }
    found
}

/// A comment begins with `#` after a blank and before one, outside of quotes.
fn without_comment(line: &str) -> String {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before == ' ' && line[at + 1..].starts_with([' ', '!']) => {
                return line[..at].trim_end().to_owned();
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            _ => {}
        }
        before = c;
    }
    line.trim_end().to_owned()
}

/// `tar`, or `tar | gzip`, names programs and runs none. `make` alone is a command.
fn is_only_names(span: &str) -> bool {
    span != "make" && span.split(' ').all(|w| w == "|" || PROGRAMS.contains(&w))
}

/// Settings of the environment before it do not count. `export = ["hot"]` is a key of the configuration.
fn is_command(text: &str) -> bool {
    let word = program(text);
    let script = |dir: &str| word.starts_with(dir) && word.ends_with(".sh");
    let known = PROGRAMS.contains(&word) || ["tests/lab/", "scripts/", "./"].into_iter().any(script);
    known && !text[text.find(word).unwrap_or(0) + word.len()..].trim_start().starts_with('=')
}

/// The first word that is no setting of the environment.
pub fn program(text: &str) -> &str {
    let is_setting = |w: &&str| {
        let name = w.split('=').next().unwrap_or_default();
        w.contains('=') && !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    };
    text.split_whitespace().find(|w| !is_setting(w)).unwrap_or_default()
}

/// The words of a command up to the first operator of the shell, quotes taken off; `<(…)` is one word.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '<') if chars.peek() == Some(&'(') => {
                for c in chars.by_ref() {
                    if c == ')' {
                        break;
                    }
                }
                word.get_or_insert_default().push_str("/dev/fd/63");
            }
            (None, '|' | ';' | '&' | '<' | '>') => break,
            // The line goes on.
            (None, '\\') if chars.peek() == Some(&'\n') => words.extend(word.take()),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whole words in capitals that stand for something, replaced by what `of` says.
pub fn filled(text: &str, of: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        out.push_str(&of(&word).unwrap_or_else(|| word.clone()));
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}
