//! `tars-backup config`.

use serde_json::{Value, json};

use super::args::{ConfigAction, ConfigArgs, Global};
use super::session::{Failed, Session, load, machine, try_load};
use crate::config::{Key, Problem};
use crate::exit::Exit;
use crate::journal::Sink;
use crate::ops::apply::{self, ApplyError};
use crate::render::{json, text};
use crate::setup;

pub fn run(global: &Global, args: &ConfigArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let access = &session.access;
    match args.action {
        ConfigAction::Schema => json::print(&setup::schema(&machine(access))),
        ConfigAction::Check => {
            let setup = match try_load(global, access)? {
                Ok(setup) => setup,
                Err(problems) => {
                    if global.json {
                        json::print(&json!({ "ok": false, "problems": shown(&problems) }))
                            .map_err(Failed::output)?;
                    }
                    return Err(Failed::problems(&problems));
                }
            };
            let files: Vec<String> = setup.files.iter().map(|f| f.display().to_string()).collect();
            if global.json {
                json::print(&json!({ "ok": true, "files": files }))
            } else {
                text::print(&format!("The configuration is good: {}\n", files.join(", ")))
            }
        }
        ConfigAction::Apply { dry_run } => return apply(global, &session, dry_run),
        ConfigAction::Show => {
            let setup = load(global, access)?;
            if global.json { json::print(&tree(&setup.keys)) } else { text::print(&toml(&setup.keys)) }
        }
    }
    .map_err(Failed::output)?;
    Ok(Exit::Ok)
}

fn apply(global: &Global, session: &Session, dry_run: bool) -> Result<Exit, Failed> {
    let setup = load(global, &session.access)?;
    let owner = session.reader(Some(&setup))?;
    let world = session.world(&owner);
    let told = |e: ApplyError| match e {
        ApplyError::Interrupted(i) => session.interrupted(i),
        e @ (ApplyError::Schedule { .. } | ApplyError::Path { .. }) => session.failed(Exit::Config, &e),
        e => session.failed(Exit::Failed, &e),
    };
    let plan = apply::plan(&setup, &world).map_err(told)?;
    if !dry_run {
        apply::run(&plan, &world).map_err(told)?;
    }
    let printed = match global.json {
        true => json::print(&plan),
        false => text::print(&text::applied(&plan, dry_run)),
    };
    printed.map_err(Failed::output)?;
    Ok(Exit::Ok)
}

fn shown(problems: &[Problem]) -> Vec<Value> {
    let one = |p: &Problem| json!({ "file": p.at.file.display().to_string(), "line": p.at.line, "key": p.key, "message": p.message, "hint": p.hint });
    problems.iter().map(one).collect()
}

/// The values in force as one JSON document.
fn tree(keys: &[Key]) -> Value {
    let mut root = json!({});
    for key in keys {
        let Some(value) = &key.value else { continue };
        let parts = key.table.split('.').filter(|p| !p.is_empty());
        // Indexing makes the tables that are not there yet.
        let table = parts.fold(&mut root, |table, part| &mut table[part]);
        table[key.name.as_str()] = value.clone();
    }
    root
}

/// The same as TOML that could be a configuration: what is not set stands there as a comment.
fn toml(keys: &[Key]) -> String {
    let mut out = String::new();
    let mut tables: Vec<&str> = Vec::new();
    for key in keys {
        if !tables.contains(&key.table.as_str()) {
            tables.push(&key.table);
        }
    }
    for table in tables {
        out.push_str(&format!("[{table}]\n"));
        for key in keys.iter().filter(|k| k.table == table) {
            match &key.value {
                Some(value) => out.push_str(&format!("{} = {}\n", key.name, inline(value))),
                None => out.push_str(&format!("# {} is not set: {}\n", key.name, key.about)),
            }
        }
        out.push('\n');
    }
    out
}

fn inline(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let pairs: Vec<String> =
                map.iter().map(|(k, v)| format!("{} = {}", bare(k), inline(v))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        // A JSON text is a TOML basic string: both escape quotes, backslashes and control characters alike.
        other => other.to_string(),
    }
}

fn bare(key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain { key.to_owned() } else { json!(key).to_string() }
}
