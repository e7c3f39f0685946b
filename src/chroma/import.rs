//! An export loaded into a server that does not have its collections yet. What could go wrong: a record that the server
//! takes and forgets, as it does with one whose id it has, or takes without the metadata that its version does not know;
//! so the collection must be new, and each batch is read back.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::client::{Api, Client, Collection};
use super::error::ChromaError;
use super::export::Records;
use super::http::Ask;

/// Records in one question, and bytes after which it is sent before it has that many.
const RECORDS: usize = 1000;
const BYTES: usize = 8 << 20;
/// Longest line of an export: one record.
const LONGEST: u64 = 1 << 30;
/// Key of the metadata that tells, before 1.0, how vectors are compared.
const SPACE: &str = "hnsw:space";

/// What the first line of an export says.
#[derive(Deserialize)]
struct Header {
    tenant: String,
    database: String,
    name: String,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    configuration_json: Option<Value>,
    count: u64,
}

#[derive(Deserialize)]
struct Record {
    id: String,
    embedding: Box<RawValue>,
    #[serde(default)]
    document: Option<Box<RawValue>>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
    #[serde(default)]
    uri: Option<Box<RawValue>>,
}

/// One collection on its way into a server.
pub struct Import<'a> {
    client: &'a Client,
    lines: BufReader<&'a mut dyn Read>,
    collection: Collection,
    wanted: u64,
    sent: u64,
    bytes: u64,
}

impl<'a> Import<'a> {
    /// Reads the first line and makes the collection, its tenant and its database. Fails when the server has it already.
    pub fn begin(client: &'a Client, body: &'a mut dyn Read) -> Result<Self, ChromaError> {
        let mut lines = BufReader::with_capacity(1 << 20, body);
        let line = read_line(&mut lines)?.ok_or_else(|| bad("it is empty"))?;
        let header: Header = serde_json::from_str(&line).map_err(|e| bad(&e.to_string()))?;
        client.ensure(&header.tenant, &header.database)?;
        let collection = client.create(&header)?;
        Ok(Self { client, lines, collection, wanted: header.count, sent: 0, bytes: 0 })
    }

    /// Sends the next records; how many, 0 at the end.
    pub fn next_batch(&mut self) -> Result<usize, ChromaError> {
        let mut records: Vec<Record> = Vec::new();
        let mut bytes = 0;
        while records.len() < self.client.batch.min(RECORDS) && bytes < BYTES {
            let Some(line) = read_line(&mut self.lines)? else { break };
            bytes += line.len();
            records.push(serde_json::from_str(&line).map_err(|e| bad(&e.to_string()))?);
        }
        if records.is_empty() {
            return Ok(0);
        }
        let n = records.len();
        self.client.add(&self.collection, &records)?;
        self.client.has(&self.collection, &records)?;
        self.sent += n as u64;
        self.bytes += bytes as u64;
        Ok(n)
    }

    /// Bytes of the export that were sent since this was last asked.
    pub fn take_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// Good when the server counts as many records as the export has; an export may have fewer than its first line says,
    /// for what was deleted while it was made.
    pub fn finish(self) -> Result<(), ChromaError> {
        let count = self.client.count(&self.collection)?;
        if self.sent > self.wanted {
            return Err(bad("it has more records than its first line says"));
        }
        if count < self.sent {
            let what = format!("loading {}", self.collection.title());
            let why = format!("it took {} records and counts {count}", self.sent);
            return Err(self.client.http.malformed(&what, why));
        }
        Ok(())
    }
}

fn bad(why: &str) -> ChromaError {
    ChromaError::Export { why: why.to_owned() }
}

/// One line without its end; None after the last.
fn read_line(lines: &mut BufReader<&mut dyn Read>) -> Result<Option<String>, ChromaError> {
    let mut line = String::new();
    let n = lines.take(LONGEST).read_line(&mut line).map_err(|e| bad(&e.to_string()))?;
    match line.pop() {
        None => Ok(None),
        Some('\n') => Ok(Some(line)),
        Some(_) => Err(bad(&format!("a line of {n} bytes has no end"))),
    }
}

impl Client {
    fn ensure(&self, tenant: &str, database: &str) -> Result<(), ChromaError> {
        let name = |name: &str| json!({ "name": name });
        self.make("making the tenant", &self.route(&["tenants"]).post(&name(tenant)))?;
        let databases = match self.api() {
            Api::V1 => self.route(&["databases"]).query("tenant", tenant),
            Api::V2 => self.route(&["tenants", tenant, "databases"]),
        };
        self.make("making the database", &databases.post(&name(database)))
    }

    /// What is there already is fine: each version says so in its own way.
    fn make(&self, what: &str, ask: &Ask) -> Result<(), ChromaError> {
        let answer = self.http.ask(what, ask)?;
        if (200..300).contains(&answer.status) || answer.status == 409 {
            return Ok(());
        }
        match self.http.refused(what, &answer) {
            ChromaError::Refused { reason, .. }
                if reason.contains("already exists") || reason.contains("UniqueConstraint") =>
            {
                Ok(())
            }
            e => Err(e),
        }
    }

    fn create(&self, header: &Header) -> Result<Collection, ChromaError> {
        let title = format!("{}/{}/{}", header.tenant, header.database, header.name);
        let what = format!("making {title}");
        let route = || self.collections_route(&header.tenant, &header.database);
        let mut refused = None;
        for way in ways(header) {
            let mut body =
                json!({ "name": header.name, "metadata": header.metadata, "get_or_create": false });
            match way {
                Way::Configuration(configuration) => body["configuration"] = configuration,
                Way::Metadata(metadata) => body["metadata"] = Value::Object(metadata),
                Way::Plain => {}
            }
            let answer = self.http.ask(&what, &route().post(&body))?;
            match answer.status {
                200..300 => {
                    let all = self.collections(&header.tenant, &header.database)?;
                    return all.into_iter().find(|c| c.name == header.name).ok_or_else(|| {
                        self.http.malformed(&what, "it says that it made it, and does not list it")
                    });
                }
                // A part of it that this version does not know; 0.6 says 500 then.
                400 | 422 | 500 => refused = Some(self.http.refused(&what, &answer)),
                _ => return Err(self.http.refused(&what, &answer)),
            }
        }
        Err(refused.unwrap_or_else(|| self.http.malformed(&what, "no way was left to make it")))
    }

    fn add(&self, c: &Collection, records: &[Record]) -> Result<(), ChromaError> {
        let what = format!("loading {}", c.title());
        let all = |pick: fn(&Record) -> Option<&RawValue>| -> Option<Vec<Option<&RawValue>>> {
            let values: Vec<_> = records.iter().map(pick).collect();
            values.iter().any(Option::is_some).then_some(values)
        };
        #[derive(serde::Serialize)]
        struct Body<'a> {
            ids: Vec<&'a str>,
            embeddings: Vec<&'a RawValue>,
            #[serde(skip_serializing_if = "Option::is_none")]
            documents: Option<Vec<Option<&'a RawValue>>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            metadatas: Option<Vec<Option<Map<String, Value>>>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            uris: Option<Vec<Option<&'a RawValue>>>,
        }
        let metadatas: Vec<_> = records.iter().map(|r| r.metadata.clone().and_then(without_nulls)).collect();
        let body = Body {
            ids: records.iter().map(|r| r.id.as_str()).collect(),
            embeddings: records.iter().map(|r| r.embedding.as_ref()).collect(),
            documents: all(|r| r.document.as_deref()),
            metadatas: metadatas.iter().any(Option::is_some).then_some(metadatas),
            uris: all(|r| r.uri.as_deref()),
        };
        let body = serde_json::to_vec(&body).map_err(|e| bad(&e.to_string()))?;
        let ask = Ask { body: Some(body), ..self.collection_route(c, "add") };
        let answer = self.http.ask(&what, &ask)?;
        if (200..300).contains(&answer.status) { Ok(()) } else { Err(self.http.refused(&what, &answer)) }
    }

    /// An error unless the server shows these records as they are. Vectors may be made anew for their space, so only that
    /// they are there, with all their numbers, is looked at.
    fn has(&self, c: &Collection, records: &[Record]) -> Result<(), ChromaError> {
        let what = format!("reading what was loaded into {}", c.title());
        let ids: Vec<String> = records.iter().map(|r| r.id.clone()).collect();
        let body = self.records(c, &ids)?;
        let shown: Records<'_> =
            serde_json::from_slice(&body).map_err(|e| self.http.malformed(&what, e.to_string()))?;
        let at: HashMap<&str, usize> = shown.ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
        for wanted in records {
            let lost = |part: &str| ChromaError::NotKept {
                collection: c.title(),
                id: wanted.id.escape_debug().take(100).collect(),
                part: part.to_owned(),
            };
            let i = *at.get(wanted.id.as_str()).ok_or_else(|| lost("the record"))?;
            let value = |list: &Option<Vec<&RawValue>>| -> Option<Value> {
                let value: Value = serde_json::from_str(list.as_ref()?.get(i)?.get()).ok()?;
                (!value.is_null()).then_some(value)
            };
            let given = |raw: Option<&RawValue>| -> Option<Value> {
                serde_json::from_str(raw?.get()).ok().filter(|v: &Value| !v.is_null())
            };
            let numbers = |v: Option<Value>| v.and_then(|v| v.as_array().map(Vec::len));
            let metadata = match value(&shown.metadatas) {
                Some(Value::Object(map)) => without_nulls(map),
                _ => None,
            };
            if numbers(value(&shown.embeddings)) != numbers(given(Some(&wanted.embedding))) {
                return Err(lost("the vector"));
            }
            if value(&shown.documents) != given(wanted.document.as_deref()) {
                return Err(lost("the document"));
            }
            if metadata != wanted.metadata.clone().and_then(without_nulls) {
                return Err(lost("the metadata"));
            }
            if value(&shown.uris) != given(wanted.uri.as_deref()) {
                return Err(lost("the address"));
            }
        }
        Ok(())
    }
}

/// A key without a value is none, and some servers refuse it; so do they an empty set of keys.
fn without_nulls(metadata: Map<String, Value>) -> Option<Map<String, Value>> {
    let kept: Map<String, Value> = metadata.into_iter().filter(|(_, v)| !v.is_null()).collect();
    (!kept.is_empty()).then_some(kept)
}

/// How a collection is asked for.
#[derive(Debug, PartialEq)]
enum Way {
    Configuration(Value),
    Metadata(Map<String, Value>),
    Plain,
}

/// Ways to ask, fullest first: how vectors are compared must come out the same, the rest is for speed.
fn ways(header: &Header) -> Vec<Way> {
    let hnsw = header.configuration_json.as_ref().and_then(|c| c.get("hnsw")).filter(|h| h.is_object());
    let of_metadata = header.metadata.as_ref().and_then(|m| m.get(SPACE)).and_then(Value::as_str);
    // Before 1.0 the metadata is true, whatever the configuration says.
    let space = of_metadata.or_else(|| hnsw.and_then(|h| h.get("space")).and_then(Value::as_str));
    let mut ways = Vec::new();
    if let (Some(hnsw), None) = (hnsw, of_metadata) {
        ways.push(Way::Configuration(json!({ "hnsw": hnsw })));
    }
    match (space, of_metadata) {
        (Some(space), None) => {
            ways.push(Way::Configuration(json!({ "hnsw": { "space": space } })));
            // As it was said before 1.0.
            let mut metadata = header.metadata.clone().unwrap_or_default();
            metadata.insert(SPACE.to_owned(), space.into());
            ways.push(Way::Metadata(metadata));
        }
        (Some(space), Some(_)) => {
            ways.extend([Way::Configuration(json!({ "hnsw": { "space": space } })), Way::Plain]);
        }
        (None, _) => ways.push(Way::Plain),
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_vectors_are_compared_is_never_left_to_chance() {
        let ways_of = |metadata: Value, configuration: Value| {
            let text = json!({
                "tenant": "t", "database": "d", "name": "n", "count": 0,
                "metadata": metadata, "configuration_json": configuration,
            });
            ways(&serde_json::from_value(text).unwrap())
        };
        let cosine = || Way::Configuration(json!({ "hnsw": { "space": "cosine" } }));
        let full = json!({ "hnsw": { "space": "cosine", "ef_search": 7 }, "spann": null });
        let said = Map::from_iter([(SPACE.to_owned(), json!("cosine"))]);
        assert_eq!(
            ways_of(Value::Null, full),
            [
                Way::Configuration(json!({ "hnsw": { "space": "cosine", "ef_search": 7 } })),
                cosine(),
                Way::Metadata(said.clone())
            ]
        );
        let old = json!({ "hnsw_configuration": { "space": "l2" } });
        assert_eq!(ways_of(Value::Object(said), old), [cosine(), Way::Plain]);
        assert_eq!(ways_of(Value::Null, Value::Null), [Way::Plain]);
    }

    #[test]
    fn a_line_without_its_end_is_no_record() {
        let mut text = b"{}\n{\"id\"".as_slice();
        let mut lines = BufReader::new(&mut text as &mut dyn Read);
        assert_eq!(read_line(&mut lines).unwrap().as_deref(), Some("{}"));
        assert!(matches!(read_line(&mut lines), Err(ChromaError::Export { .. })));
    }
}
