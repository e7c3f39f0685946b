//! What is shipped to be read and copied is true: every example is a good configuration, and the documents name every
//! key, command, exit status and event that the program has, and none that it has not.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{PROGRAM, run};
use tars_backup::manifest::Manifest;
use toml::Table;

fn repo(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repo(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn files_of(dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repo(dir))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == extension))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "nothing in {dir}");
    files
}

#[track_caller]
fn check(path: &Path) {
    run(PROGRAM, &["--config", &path.display().to_string(), "config", "check"]).expect(0).says("is good");
}

/// A line of the teaching configuration that is a setting taken out of use: `#` and no blank.
fn setting(line: &str) -> Option<&str> {
    line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '))
}

/// The teaching configuration with every setting in use.
fn everything_in_use() -> String {
    read("config/config.toml").lines().map(|l| setting(l).unwrap_or(l)).collect::<Vec<_>>().join("\n")
}

/// One key of the configuration.
struct Key {
    /// `agent`, `tiers`, `tiers.keep`, `sources: TYPE`, or `stores: TYPE`.
    table: String,
    name: String,
    schema: Value,
}

/// Keys of every source stand under `sources`, those of one type under `sources: TYPE`; stores alike.
fn keys() -> Vec<Key> {
    let schema = run(PROGRAM, &["config", "schema"]).expect(0).json();
    let mut keys = Vec::new();
    for (table, entry) in schema["properties"].as_object().unwrap() {
        let kinds = &entry["additionalProperties"];
        if let Some(kinds) = kinds.get("oneOf").or(kinds.get("anyOf")).and_then(Value::as_array) {
            for kind in kinds {
                let word = kind["properties"]["type"]["const"].as_str().unwrap();
                collect(&format!("{table}: {word}"), kind, &mut keys);
            }
        } else {
            collect(
                table,
                entry.get("additionalProperties").filter(|a| a.is_object()).unwrap_or(entry),
                &mut keys,
            );
        }
    }
    keys
}

fn collect(table: &str, schema: &Value, into: &mut Vec<Key>) {
    for (name, entry) in schema["properties"].as_object().unwrap() {
        if entry.get("properties").is_some() {
            collect(&format!("{table}.{name}"), entry, into);
        } else {
            into.push(Key { table: table.to_owned(), name: name.clone(), schema: entry.clone() });
        }
    }
}

/// Keys that every type of source has, with the same meaning. The defaults of three of them differ.
const OF_EVERY_SOURCE: [&str; 7] =
    ["type", "critical", "on_by_default", "anomaly", "timeout", "idle_timeout", "dependents"];

/// Defaults that depend on the machine, the user, or the name of the table.
fn depends(key: &Key) -> bool {
    matches!(
        key.name.as_str(),
        "state_dir"
            | "staging_dir"
            | "spool_dir"
            | "runtime_dir"
            | "threads"
            | "service"
            | "filename"
            | "path_style"
    ) || (key.table == "tiers" && key.name == "path")
}

#[test]
fn every_example_is_a_good_configuration() {
    for path in files_of("config", "toml") {
        check(&path);
    }
}

#[test]
fn the_teaching_configuration_is_good_with_everything_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, everything_in_use()).unwrap();
    check(&path);
}

#[test]
fn the_teaching_configuration_has_every_key() {
    let config: Table = everything_in_use().parse().unwrap();
    let mut present: BTreeSet<(String, String)> = BTreeSet::new();
    for (table, entries) in &config {
        let entries = entries.as_table().unwrap();
        for (name, value) in entries {
            match (table.as_str(), value.as_table()) {
                ("sources" | "stores", Some(one)) => {
                    let word = one["type"].as_str().unwrap();
                    present.extend(one.keys().map(|k| (format!("{table}: {word}"), k.clone())));
                }
                ("tiers", Some(one)) => {
                    present.extend(one.keys().map(|k| (table.clone(), k.clone())));
                    let keep = one.get("keep").and_then(toml::Value::as_table);
                    present.extend(
                        keep.into_iter().flat_map(Table::keys).map(|k| ("tiers.keep".to_owned(), k.clone())),
                    );
                }
                _ => {
                    present.insert((table.clone(), name.clone()));
                }
            }
        }
    }
    for key in keys() {
        assert!(
            present.contains(&(key.table.clone(), key.name.clone())),
            "config.toml lacks {}.{}",
            key.table,
            key.name
        );
    }
}

#[test]
fn a_setting_out_of_use_shows_its_default() {
    let schemas = keys();
    let in_use: Table = read("config/config.toml").parse().unwrap();
    let kind = |table: &str, name: &str| {
        let one = in_use[table].as_table()?.get(name)?.as_table()?;
        Some(one.get("type").map_or("fs", |t| t.as_str().unwrap()).to_owned())
    };
    let mut table = String::new();
    for line in read("config/config.toml").lines() {
        if let Some(heading) = line.trim_start_matches('#').strip_prefix('[') {
            let path = heading.trim_end_matches(']');
            let parts: Vec<&str> = path.split('.').collect();
            // The settings of a table that is itself out of use are an example; those of one in use are defaults.
            table = match parts.as_slice() {
                _ if line.starts_with('#') => String::new(),
                [table @ ("sources" | "stores"), name] => {
                    kind(table, name).map_or_else(String::new, |k| format!("{table}: {k}"))
                }
                ["tiers", _, "keep"] => "tiers.keep".to_owned(),
                [first, _] => (*first).to_owned(),
                _ => path.to_owned(),
            };
            continue;
        }
        let Some((name, value)) = setting(line).and_then(|s| s.split_once(" = ")) else { continue };
        let known = schemas.iter().find(|k| k.table == table && k.name == name && !depends(k));
        let Some(default) = known.and_then(|k| k.schema.get("default")).filter(|d| !d.is_array()) else {
            continue;
        };
        assert_eq!(value, default.to_string(), "[{table}] {name}");
    }
}

/// A word for the type of a key, as docs/configuration.md has it.
fn type_of(schema: &Value) -> String {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => format!("{} to {}", schema["minimum"], schema["maximum"]),
        Some("string") if schema["examples"].to_string().contains("MiB") => "bytes".to_owned(),
        Some("string") if schema.get("examples").is_some() => "length of time".to_owned(),
        Some("string") => "text".to_owned(),
        Some("object") => "table of texts".to_owned(),
        _ if schema.get("oneOf").is_some() => "secret".to_owned(),
        _ => "text or list of texts".to_owned(),
    }
}

/// The rows that docs/configuration.md must have, per heading: `| key | type | default |`, and a meaning behind them.
fn rows() -> BTreeMap<String, Vec<String>> {
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in keys() {
        let common = match key.table.split_once(": ") {
            Some(("sources", _)) => OF_EVERY_SOURCE.contains(&key.name.as_str()),
            Some(("stores", _)) => key.name == "type",
            _ => false,
        };
        let table = if common { key.table.split(':').next().unwrap().to_owned() } else { key.table.clone() };
        let list = rows.entry(table).or_default();
        let mut row = format!("| `{}` | ", key.name);
        let same_everywhere =
            !matches!(key.name.as_str(), "type" | "critical" | "on_by_default" | "anomaly") || !common;
        if same_everywhere {
            row.push_str(&type_of(&key.schema));
            row.push_str(" | ");
            match key.schema.get("default").filter(|d| d.as_array().is_none_or(|a| !a.is_empty())) {
                _ if depends(&key) => {}
                Some(default) => row.push_str(&format!("`{default}` | ")),
                None => {}
            }
        }
        if !list.contains(&row) {
            list.push(row);
        }
    }
    rows
}

#[test]
fn the_list_of_keys_is_whole_and_true() {
    let text = read("docs/configuration.md");
    let mut written: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut heading = String::new();
    for line in text.lines() {
        if let Some(h) = line.strip_prefix("## ").or(line.strip_prefix("### ")) {
            heading = h.split('`').nth(1).unwrap_or_default().to_owned();
        } else if line.starts_with("| `") {
            written.entry(heading.clone()).or_default().push(line);
        }
    }
    for (table, rows) in rows() {
        let there = written.remove(&table).unwrap_or_default();
        for row in &rows {
            let found = there.iter().filter(|w| w.starts_with(row.as_str())).count();
            assert_eq!(
                found, 1,
                "docs/configuration.md, heading `{table}`: wanted one row that begins\n{row}"
            );
        }
        assert_eq!(
            there.len(),
            rows.len(),
            "docs/configuration.md, heading `{table}`: a key that does not exist: {there:#?}"
        );
    }
    assert_eq!(
        written.keys().collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "docs/configuration.md: unknown tables"
    );
}

#[test]
fn the_example_of_a_manifest_is_one_and_has_no_field_that_is_not_explained() {
    let text = read("docs/manifest.md");
    let (_, rest) = text.split_once("```json\n").unwrap();
    let (example, prose) = rest.split_once("```").unwrap();
    let manifest = Manifest::read_sidecar(example.as_bytes()).unwrap();
    let fields: Value = serde_json::to_value(&manifest).unwrap();
    let details = fields["details"].as_object().unwrap();
    let components = details.values().flat_map(|d| d.as_object().unwrap().keys());
    for field in fields.as_object().unwrap().keys().chain(components) {
        let quoted = format!("`{field}`");
        let row = prose
            .lines()
            .filter(|l| l.starts_with("| "))
            .any(|l| l.split(" | ").next().unwrap().contains(&quoted));
        assert!(row, "docs/manifest.md does not explain {field}");
    }
}

#[test]
fn the_reference_has_every_exit_status_and_every_event() {
    let reference = read("docs/reference.md");
    let mut missing = Vec::new();
    let exit = read("src/exit.rs");
    let codes = exit.split("fn code").nth(1).and_then(|rest| rest.split("fn ").next()).unwrap();
    for code in codes.lines().filter_map(|l| l.trim_end_matches(',').split_once("=> ")) {
        let row = format!("| {} |", code.1);
        missing.extend((!reference.contains(&row)).then_some(row));
    }
    for text in events().into_values().flatten() {
        let cell = format!("| `{text}` |");
        missing.extend((!reference.contains(&cell)).then_some(cell));
    }
    assert_eq!(missing, Vec::<String>::new(), "missing in docs/reference.md");
}

/// The string that each event has in one of the tables of src/progress.rs.
fn events() -> BTreeMap<String, Vec<String>> {
    let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in read("src/progress.rs").lines() {
        if let Some((event, text)) = line.trim().strip_prefix("Self::").and_then(|l| l.split_once(" => \"")) {
            events.entry(event.to_owned()).or_default().push(text.trim_end_matches("\",").to_owned());
        }
    }
    events
}

#[test]
fn every_event_has_an_id_of_its_own_that_the_reference_and_the_catalog_know() {
    let (reference, catalog) = (read("docs/reference.md"), read("packaging/systemd/tars-backup.catalog"));
    let mut ids = BTreeSet::new();
    for (event, texts) in events() {
        let is_id = |t: &&String| t.len() == 32 && t.bytes().all(|b| b.is_ascii_hexdigit());
        let (found, names): (Vec<_>, Vec<_>) = texts.iter().partition(is_id);
        let ([id], [name]) = (&found[..], &names[..]) else {
            panic!("{event} needs one name and one id in src/progress.rs: {texts:?}");
        };
        assert!(ids.insert((*id).clone()), "{event}: {id} is of another event, too");
        let row = reference.lines().find(|l| l.starts_with(&format!("| `{name}` |")));
        let told = row.is_some_and(|l| l.ends_with(&format!("| `{id}` |")));
        assert!(told, "docs/reference.md lacks `{id}` in the row of {name}");
        let entry = format!("# {name}\n-- {id}\nSubject: ");
        assert_eq!(catalog.matches(&entry).count(), 1, "tars-backup.catalog lacks {entry}");
    }
    assert_eq!(catalog.matches("\n-- ").count(), ids.len(), "tars-backup.catalog explains what there is not");
}

#[test]
fn the_readme_has_every_command() {
    let help = run(PROGRAM, &["--help"]).expect(0).stdout;
    let readme = read("README.md");
    let commands = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let mut count = 0;
    for command in commands.filter_map(|l| l.split_whitespace().next()).filter(|c| *c != "help") {
        assert!(readme.contains(&format!("| `{command}")), "README.md lacks the command {command}");
        count += 1;
    }
    assert!(count > 5, "{help}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = files_of("docs", "md");
    documents.extend(files_of(".", "md"));
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, _) = target.split_once('#').unwrap_or((target, ""));
            let outside = target.starts_with("http");
            let there = file.is_empty() || document.parent().unwrap().join(file).exists();
            assert!(outside || there, "{}: {target} leads nowhere", document.display());
        }
    }
}
