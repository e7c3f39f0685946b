//! The JSON schema of the configuration, made from the very questions that read it.

use serde_json::{Map, Value as Json, json};

use super::section::Key;

/// A schema object for `keys`, which all belong to tables at or below `base`. `*` in a table path stands for any name.
pub fn json_schema(base: &str, keys: &[Key]) -> Json {
    let mut properties = Map::new();
    let mut tables: Vec<String> = Vec::new();
    for key in keys {
        if key.table == base {
            let mut entry = key.schema.clone();
            if let Some(object) = entry.as_object_mut() {
                object.insert("description".into(), json!(key.about));
                if let Some(default) = &key.default {
                    object.insert("default".into(), default.clone());
                }
            }
            properties.insert(key.name.clone(), entry);
        } else if let Some(rest) = below(&key.table, base) {
            let head = rest.split('.').next().unwrap_or(rest).to_owned();
            if !tables.contains(&head) {
                tables.push(head);
            }
        }
    }
    for table in tables {
        let path = if base.is_empty() { table.clone() } else { format!("{base}.{table}") };
        properties.insert(table, json_schema(&path, keys));
    }
    match properties.remove("*") {
        Some(any) => json!({"type": "object", "additionalProperties": any}),
        None => json!({"type": "object", "properties": properties, "additionalProperties": false}),
    }
}

fn below<'a>(table: &'a str, base: &str) -> Option<&'a str> {
    if base.is_empty() { Some(table) } else { table.strip_prefix(base)?.strip_prefix('.') }
}
