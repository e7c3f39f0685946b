//! The floors of docs/design.md hold: a file uses its own floor and lower ones, kinds of one thing do not know each
//! other, and nothing unfinished is in the tree.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// The modules of the crate, lowest floor first.
const FLOORS: [&[&str]; 5] = [
    &["cancel", "exit", "hint", "id", "legacy", "manifest", "progress", "secret", "units"],
    &["anomaly", "config", "format", "keys", "reach", "redact", "retention", "sandbox"],
    &[
        "archive",
        "catalog",
        "change",
        "chroma",
        "delivery",
        "docker",
        "guardian",
        "held_copy",
        "held_host",
        "host",
        "journal",
        "keyring",
        "last_run",
        "marks",
        "mounts",
        "notify",
        "postgres",
        "process",
        "run_guard",
        "run_journal",
        "setup",
        "source",
        "spool",
        "staging",
        "store",
        "stored",
        "systemd",
        "target",
        "tls",
        "vault",
        "whole_file",
    ],
    &["ops"],
    &["cli", "render"],
];

/// Modules whose files are kinds of one thing.
const KINDS: [&str; 2] = ["source", "store"];

/// Files among them that are no kind: several kinds are made of them.
const SHARED: [(&str, &[&str]); 1] =
    [("store", &["bucket", "credentials", "fault", "http", "kit", "pace", "remote", "tools"])];

/// And those that choose among kinds, as the module above them does.
const CHOOSERS: [(&str, &str); 1] = [("store", "url")];

fn repo() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `path`, in order.
fn files(path: &Path, into: &mut Vec<PathBuf>) {
    if path.is_dir() {
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        inside.sort();
        inside.iter().for_each(|p| files(p, into));
    } else if path.exists() {
        into.push(path.to_owned());
    }
}

/// A source file: its module path and its lines without comments.
struct Source {
    file: String,
    module: Vec<String>,
    lines: Vec<String>,
}

fn sources() -> Vec<Source> {
    let src = repo().join("src");
    let mut paths = Vec::new();
    files(&src, &mut paths);
    let inside = |p: &Path| p.strip_prefix(&src).unwrap().display().to_string();
    paths
        .iter()
        .map(|p| (inside(p), std::fs::read_to_string(p).unwrap()))
        .filter(|(file, _)| file.ends_with(".rs") && file != "lib.rs" && file != "main.rs")
        .map(|(file, text)| Source {
            module: file
                .trim_end_matches(".rs")
                .trim_end_matches("/mod")
                .split('/')
                .map(str::to_owned)
                .collect(),
            lines: text.lines().map(|l| l.split("//").next().unwrap_or_default().to_owned()).collect(),
            file,
        })
        .collect()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&module))
}

/// The first words of the paths that follow `prefix` in `line`; of a group, those of all its members.
fn after(line: &str, prefix: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut words = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        if line[..at].ends_with(|c: char| is_word(c) || c == ':') {
            continue;
        }
        let rest = &line[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => words.extend(group.split([',', '}']).map(|part| word(part.trim()))),
            None => words.push(word(rest)),
        }
    }
    words.retain(|w| !w.is_empty());
    words
}

#[test]
fn every_module_has_its_floor() {
    let text = std::fs::read_to_string(repo().join("src/lib.rs")).unwrap();
    let mut modules: Vec<&str> = text
        .lines()
        .filter_map(|l| l.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let mut known: Vec<&str> = FLOORS.concat();
    modules.sort_unstable();
    known.sort_unstable();
    assert_eq!(modules, known);
}

#[test]
fn no_file_uses_a_higher_floor() {
    let mut wrong = Vec::new();
    for s in sources() {
        let own = floor(&s.module[0]).unwrap_or_else(|| panic!("{} is on no floor", s.file));
        for (number, line) in s.lines.iter().enumerate() {
            let at = format!("src/{}:{}: {}", s.file, number + 1, line.trim());
            if line.contains("super::super::") || line.trim() == "use crate::{" {
                wrong.push(format!("{at} (write each path from crate::, on one line)"));
            }
            for used in after(line, "crate::") {
                match floor(&used) {
                    Some(floor) if floor > own => {
                        wrong.push(format!("{at} (floor {own} uses {used} of floor {floor})"))
                    }
                    Some(_) => {}
                    None => wrong.push(format!("{at} ({used} is no module)")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn kinds_do_not_know_each_other() {
    let all = sources();
    let mut wrong = Vec::new();
    for kind in KINDS {
        let shared = SHARED.iter().find(|(k, _)| *k == kind).map_or(&[][..], |(_, shared)| shared);
        let siblings: Vec<&str> = all
            .iter()
            .filter(|s| s.module[0] == kind && s.module.len() > 1)
            .map(|s| s.module[1].as_str())
            .filter(|name| !shared.contains(name))
            .collect();
        for s in all.iter().filter(|s| s.module[0] == kind && s.module.len() > 1) {
            if CHOOSERS.contains(&(kind, s.module[1].as_str())) {
                continue;
            }
            for (number, line) in s.lines.iter().enumerate() {
                for prefix in ["super::".to_owned(), format!("crate::{kind}::")] {
                    for used in after(line, &prefix) {
                        if used != s.module[1] && siblings.contains(&used.as_str()) {
                            wrong.push(format!("src/{}:{}: {}", s.file, number + 1, line.trim()));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "a kind uses another one:\n{}", wrong.join("\n"));
}

#[test]
fn nothing_unfinished_is_in_the_tree() {
    // In two pieces, so that this file does not find itself.
    let marks = [
        ("TO", "DO"),
        ("FIX", "ME"),
        ("todo", "!("),
        ("dbg", "!("),
        ("unimplemented", "!("),
        ("#[ig", "nore"),
    ]
    .map(|(a, b)| format!("{a}{b}"));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(repo()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !["target", ".git", "Cargo.lock"].contains(&name.as_str()) {
            files(&path, &mut paths);
        }
    }
    let mut found = Vec::new();
    for path in paths {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            if marks.iter().any(|m| line.contains(m.as_str())) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
