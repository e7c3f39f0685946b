//! An export loaded into a server that does not have its collections yet. What could go wrong: a record that the server
//! takes and forgets, as it does with one whose id it has; so the collection must be new, and its records are counted.

use std::io::{BufRead, BufReader, Read};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::client::{Api, Client, Collection};
use super::error::ChromaError;
use super::http::Ask;

/// Records in one question, and bytes after which it is sent before it has that many.
const RECORDS: usize = 1000;
const BYTES: usize = 8 << 20;
/// Longest line of an export: one record.
const LONGEST: u64 = 1 << 30;

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
        self.client.add(&self.collection, records)?;
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
        for configuration in configurations(header) {
            let mut body =
                json!({ "name": header.name, "metadata": header.metadata, "get_or_create": false });
            if let Some(configuration) = configuration {
                body["configuration"] = configuration;
            }
            let answer = self.http.ask(&what, &route().post(&body))?;
            match answer.status {
                200..300 => {
                    let all = self.collections(&header.tenant, &header.database)?;
                    return all.into_iter().find(|c| c.name == header.name).ok_or_else(|| {
                        self.http.malformed(&what, "it says that it made it, and does not list it")
                    });
                }
                // A part of the configuration that this version does not know: with less of it.
                400 | 422 => refused = Some(self.http.refused(&what, &answer)),
                _ => return Err(self.http.refused(&what, &answer)),
            }
        }
        Err(refused.unwrap_or_else(|| self.http.malformed(&what, "no way was left to make it")))
    }

    fn add(&self, c: &Collection, records: Vec<Record>) -> Result<(), ChromaError> {
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
}

/// A key without a value is none, and some servers refuse it; so do they an empty set of keys.
fn without_nulls(metadata: Map<String, Value>) -> Option<Map<String, Value>> {
    let kept: Map<String, Value> = metadata.into_iter().filter(|(_, v)| !v.is_null()).collect();
    (!kept.is_empty()).then_some(kept)
}

/// What to ask for, fullest first: how vectors are compared must come out the same, the rest is for speed.
fn configurations(header: &Header) -> Vec<Option<Value>> {
    let hnsw = header.configuration_json.as_ref().and_then(|c| c.get("hnsw")).filter(|h| h.is_object());
    let of_metadata = header.metadata.as_ref().and_then(|m| m.get("hnsw:space")).and_then(Value::as_str);
    // Before 1.0 the metadata is true, whatever the configuration says.
    let space = of_metadata.or_else(|| hnsw.and_then(|h| h.get("space")).and_then(Value::as_str));
    let mut ways = Vec::new();
    if let (Some(hnsw), None) = (hnsw, of_metadata) {
        ways.push(Some(json!({ "hnsw": hnsw })));
    }
    if let Some(space) = space {
        ways.push(Some(json!({ "hnsw": { "space": space } })));
    }
    // Left out, a server takes it from the metadata, or its own default where neither says anything.
    if of_metadata.is_some() || space.is_none_or(|s| s == "l2") {
        ways.push(None);
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_vectors_are_compared_is_never_left_to_chance() {
        let ways = |metadata: Value, configuration: Value| {
            let text = json!({
                "tenant": "t", "database": "d", "name": "n", "count": 0,
                "metadata": metadata, "configuration_json": configuration,
            });
            configurations(&serde_json::from_value(text).unwrap())
        };
        let cosine = json!({ "hnsw": { "space": "cosine" } });
        let full = json!({ "hnsw": { "space": "cosine", "ef_search": 7 }, "spann": null });
        assert_eq!(
            ways(Value::Null, full),
            [Some(json!({ "hnsw": { "space": "cosine", "ef_search": 7 } })), Some(cosine.clone())]
        );
        let old = json!({ "hnsw_configuration": { "space": "l2" } });
        assert_eq!(ways(json!({ "hnsw:space": "cosine" }), old), [Some(cosine), None]);
        assert_eq!(ways(Value::Null, Value::Null), [None]);
    }

    #[test]
    fn a_line_without_its_end_is_no_record() {
        let mut text = b"{}\n{\"id\"".as_slice();
        let mut lines = BufReader::new(&mut text as &mut dyn Read);
        assert_eq!(read_line(&mut lines).unwrap().as_deref(), Some("{}"));
        assert!(matches!(read_line(&mut lines), Err(ChromaError::Export { .. })));
    }
}
