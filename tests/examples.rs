//! What is shipped to be read and copied is true: every example is a good configuration, and the documents name every
//! key, command, exit status and event that the program has, and none that it has not.

#![allow(clippy::unwrap_used)]

#[path = "support/docs.rs"]
mod docs;
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
    for (event, id) in events() {
        let row = reference.lines().any(|l| l.starts_with(&format!("| `{event}` |")) && l.contains(&id));
        missing.extend((!row).then_some(event));
    }
    assert_eq!(missing, Vec::<String>::new(), "missing in docs/reference.md");
}

/// Events of the journal, with their message ids.
fn events() -> Vec<(String, String)> {
    let source = read("src/progress.rs");
    let one = |line: &str| {
        let (_, words) = line.split_once("=> (\"")?;
        let (event, id) = words.trim_end_matches("\"),").split_once("\", \"")?;
        Some((event.to_owned(), id.to_owned()))
    };
    let events: Vec<_> = source.lines().filter_map(one).collect();
    assert!(events.len() > 30, "{events:?}");
    events
}

/// A run that takes the lock undoes a broken-off restore first, and a sandbox lets it undo half of that.
#[test]
fn every_unit_that_may_find_a_broken_off_restore_hands_it_over() {
    let hands_over = "\nEnvironment=TARS_BACKUP_RECOVERY_UNIT=tars-backup-recover.service\n";
    let mut takes_the_lock = 0;
    for path in files_of("packaging/systemd", "service").iter().filter(|p| p.is_file()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let start =
            text.lines().find_map(|l| l.strip_prefix("ExecStart=/usr/bin/tars-backup ")).unwrap_or("");
        match start.split(' ').next().unwrap_or_default() {
            // They put it right themselves; they take no lock.
            "recover" | "restore" | "verify" | "on-failure" | "" => {}
            verb => {
                takes_the_lock += 1;
                assert!(text.contains(hands_over), "{name} ({verb})");
            }
        }
    }
    assert_eq!(takes_the_lock, 4, "backup twice, sync, drill");
}

#[test]
fn the_catalog_of_the_journal_explains_every_event() {
    let catalog = read("packaging/systemd/tars-backup.catalog");
    let mut of_event: BTreeMap<String, String> = BTreeMap::new();
    let mut event = String::new();
    for line in catalog.lines() {
        if let Some(word) = line.strip_prefix("# ").filter(|w| !w.contains(' ')) {
            event = word.to_owned();
        } else if let Some(id) = line.strip_prefix("-- ") {
            let twice = of_event.insert(event.clone(), id.to_owned());
            assert_eq!(twice, None, "{event} is explained twice");
        }
    }
    assert_eq!(of_event, events().into_iter().collect());
    let ids: BTreeSet<&String> = of_event.values().collect();
    assert_eq!(ids.len(), of_event.len(), "an id stands for two events");
    let hexadecimal = |id: &&&String| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    assert!(ids.iter().all(|id| hexadecimal(&id)), "{ids:?}");
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

/// A synopsis shows what may be typed; a command is what somebody types.
fn is_synopsis(text: &str) -> bool {
    let bytes = text.as_bytes();
    let between_words = |i: usize| {
        let word = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        bytes[i] == b'|' && i > 0 && word(bytes.get(i - 1)) && word(bytes.get(i + 1))
    };
    text.contains(['[', '…']) || text.contains(" | --") || (0..bytes.len()).any(between_words)
}

/// Every option that a command of the program takes, with those of all commands.
fn options_of(command: &clap::Command) -> BTreeSet<String> {
    let own = command.get_arguments().chain(PROGRAM_ITSELF.get_arguments());
    let names = own.flat_map(|a| {
        let aliases = a.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned);
        a.get_long().map(str::to_owned).into_iter().chain(aliases).collect::<Vec<_>>()
    });
    names.chain(["help".to_owned(), "version".to_owned()]).map(|n| format!("--{n}")).collect()
}

static PROGRAM_ITSELF: std::sync::LazyLock<clap::Command> =
    std::sync::LazyLock::new(tars_backup::cli::command);

/// The commands that these words may mean: `key new|show` are two. None where the first word is no command.
fn meant(words: &[String]) -> Option<Vec<&'static clap::Command>> {
    let first = PROGRAM_ITSELF.find_subcommand(words.first()?)?;
    if !first.has_subcommands() {
        return Some(vec![first]);
    }
    words.get(1)?.split('|').map(|w| first.find_subcommand(w)).collect()
}

fn options_in(text: &str) -> Vec<String> {
    text.split(|c: char| c.is_whitespace() || "[]()|=`".contains(c))
        .filter(|w| w.starts_with("--") && w.len() > 2 && !w.ends_with('…'))
        .map(|w| w.trim_end_matches(['.', ',', ';', ':']).to_owned())
        .collect()
}

/// Options of other programs that the documents name alone.
const OF_OTHER_PROGRAMS: [&str; 3] = ["--port", "--requirepass", "--single-transaction"];

#[test]
fn every_command_line_of_the_documents_is_one() {
    let placeholder = |word: &str| {
        Some(match word {
            "COMMAND" => "backup".to_owned(),
            "DURATION" | "DUR" => "1h".to_owned(),
            "DATE" => "2030-01-31".to_owned(),
            "SHELL" => "bash".to_owned(),
            _ => return None,
        })
    };
    let (mut wrong, mut count) = (Vec::new(), 0);
    let mut unused = BTreeSet::from(OF_OTHER_PROGRAMS);
    let anywhere: BTreeSet<String> = PROGRAM_ITSELF
        .get_subcommands()
        .flat_map(|c| options_of(c).into_iter().chain(c.get_subcommands().flat_map(options_of)))
        .collect();
    for document in docs::documents() {
        let mut lines: Vec<(usize, String)> = docs::commands(&document)
            .into_iter()
            // What stands behind a pipe, or before the program, is not ours.
            .flat_map(|c| {
                let parts = c.text.split("tars-backup ").skip(1).map(str::to_owned).collect::<Vec<_>>();
                let begins = c.text.starts_with("tars-backup ");
                parts.into_iter().filter(move |_| begins).map(move |p| (c.line, p))
            })
            .collect();
        for (line, span) in docs::spans(&document) {
            let words: Vec<String> = span.split(' ').map(str::to_owned).collect();
            if span.starts_with("--") {
                for option in options_in(&span) {
                    let other =
                        unused.remove(option.as_str()) || OF_OTHER_PROGRAMS.contains(&option.as_str());
                    if !other && !anywhere.contains(&option) {
                        wrong.push(format!("{document}:{line}: no command has {option}"));
                    }
                    count += 1;
                }
            } else if words.len() > 1 && meant(&words).is_some() {
                lines.push((line, span));
            }
        }
        for (line, text) in lines {
            count += 1;
            let shown = format!("{document}:{line}: tars-backup {text}");
            if is_synopsis(&text) {
                let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
                let Some(commands) = meant(&words) else {
                    wrong.push(format!("{shown}: there is no such command"));
                    continue;
                };
                for option in options_in(&text) {
                    if !commands.iter().any(|c| options_of(c).contains(&option)) {
                        wrong.push(format!("{shown}: it has no {option}"));
                    }
                }
                continue;
            }
            let typed = docs::words(&docs::filled(&text, placeholder));
            if let Err(e) = PROGRAM_ITSELF
                .clone()
                .try_get_matches_from([&["tars-backup".to_owned()], &typed[..]].concat())
            {
                use clap::error::ErrorKind::{DisplayHelp, DisplayVersion, MissingRequiredArgument};
                // In a sentence `verify --deep` may stand without the backup.
                let lenient = !docs::commands(&document).iter().any(|c| c.line == line);
                match e.kind() {
                    DisplayHelp | DisplayVersion => {}
                    MissingRequiredArgument if lenient => {}
                    _ => wrong.push(format!("{shown}: {e}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} command lines were found");
    assert!(unused.is_empty(), "no document names {unused:?} any more: take it out of OF_OTHER_PROGRAMS");
}

#[test]
fn every_option_is_in_the_reference_and_in_a_test() {
    let mut tests = String::new();
    let mut waiting = vec![repo("tests"), repo("scripts")];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                waiting.push(entry);
            } else if entry.extension().is_some_and(|x| x == "rs" || x == "sh") {
                tests.push_str(&std::fs::read_to_string(entry).unwrap());
            }
        }
    }
    let reference = read("docs/reference.md");
    let (mut missing, mut count) = (Vec::new(), 0);
    let commands = PROGRAM_ITSELF.get_subcommands().filter(|c| !c.is_hide_set());
    for command in commands.flat_map(|c| std::iter::once(c).chain(c.get_subcommands())) {
        for option in command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long()) {
            count += 1;
            let quoted = format!("\"--{option}\"");
            let typed = format!("--{option} ");
            if !tests.contains(&quoted) && !tests.contains(&typed) {
                missing.push(format!("no test uses --{option} of {}", command.get_name()));
            }
            if !options_in(&reference).contains(&format!("--{option}")) {
                missing.push(format!("docs/reference.md lacks --{option} of {}", command.get_name()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(count > 50, "only {count} options were found");
}

#[test]
fn commands_are_found_where_a_reader_finds_them() {
    let text = "# Head\n\nSay `tars-backup status`, or `systemctl\nstart x`; not `tar` and not `export = [\"hot\"]`.\n\n    \
        A=b cargo test   # why\n    sed 's/ # /x/' f | \\\n      cat\n\nThen:\n\n```\n$ tars-backup list\nBACKUP\n$ cat >f <<'END'\nrm x\nEND\n```\n\n\
        - item\n    rm goes on\n\n      $ ls -l\n      total\n\n    [Unit]\n    tar = 1\n";
    let found: Vec<_> = docs::commands_in("d", text).into_iter().map(|c| (c.line, c.text)).collect();
    let wanted = [
        (3, "tars-backup status"),
        (3, "systemctl start x"),
        (6, "A=b cargo test"),
        (7, "sed 's/ # /x/' f | \\\n  cat"),
        (13, "$ tars-backup list"),
        (15, "$ cat >f <<'END'\nrm x\nEND"),
        (23, "$ ls -l"),
    ];
    let wanted: Vec<_> = wanted.iter().map(|(l, t)| (*l, t.trim_start_matches("$ ").to_owned())).collect();
    assert_eq!(found, wanted);
    assert_eq!(
        docs::words("a 'b c' --x=\"d\" -i <(age -d k) | e"),
        ["a", "b c", "--x=d", "-i", "/dev/fd/63"]
    );
    assert_eq!(docs::filled("a NAME.tar NAMED", |w| (w == "NAME").then(|| "n".into())), "a n.tar NAMED");
}
