//! ChromaDB by its API and by a copy of its data: checks that need the address of a running server, nothing in it yet, and
//! the directory where it keeps its data. What went in comes out, number by number, from every version.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tars_backup::cancel::Cancel;
use tars_backup::chroma::copy::{self, CopyFacts};
use tars_backup::chroma::{Api, ChromaError, Client, Collection, DEFAULT_TENANT, Endpoint, Exported, Pages};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::lab::Lab;

const SECOND_TENANT: &str = "Zweiter Mandant é%2F";
const THIRD_TENANT: &str = "third-tenant";
const DIMENSION: usize = 64;

/// All checks, in an order that leaves each what it needs.
pub fn check_everything(lab: &Lab, container: &str, data: &Path) {
    let server = Server::new(&lab.url(container, 8000));
    // A copy of the data of one moment; nobody writes, but the server may still put in order what was written.
    let copied = || {
        lab.ok(&["pause", container]);
        let copied = copied(data);
        lab.ok(&["unpause", container]);
        copied
    };
    let world = server.fill();
    what_went_in_comes_out(&server, &world);
    what_is_deleted_meanwhile_is_counted(&server);
    a_deleted_collection_is_told(&server);
    long_lists_come_in_pages(&server);
    facts_of_a_copy_are_those_of_the_server(&server, &copied);
    writes_that_nobody_read_yet_count(&server, &copied);
    what_is_not_there_is_empty(&server);
}

/// Records by id, as they should come out.
type Records = BTreeMap<String, Value>;

/// A server with two ways to it: ours, and plain requests.
pub struct Server {
    url: String,
    runtime: Runtime,
    plain: reqwest::Client,
    api: Api,
}

/// A collection by plain requests.
struct Raw<'a> {
    server: &'a Server,
    path: String,
    known: Records,
}

impl Server {
    pub fn new(url: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        tars_backup::tls::choose();
        let plain = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let mut server = Self { url: url.to_owned(), runtime, plain, api: Api::V2 };
        server.api = server.client(Pages::default()).api();
        server
    }

    pub fn client(&self, pages: Pages) -> Client {
        let endpoint = Endpoint {
            url: self.url.clone(),
            token: None,
            total: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            pages,
        };
        Client::connect(endpoint, self.runtime.handle().clone(), Cancel::default()).unwrap()
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request = self.plain.request(method.parse().unwrap(), format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let ask = || async {
            let answer = request.try_clone().unwrap().send().await?;
            let status = answer.status().as_u16();
            Ok((status, serde_json::from_str(&answer.text().await?).unwrap_or(Value::Null)))
        };
        // What changes records may be said twice: on a busy machine a server now and then loses a request without a word.
        let twice = ["/add", "/update", "/upsert", "/delete"].iter().any(|verb| path.ends_with(verb));
        self.runtime.block_on(async {
            let mut tries = if twice { 3 } else { 1 };
            loop {
                tries -= 1;
                match ask().await {
                    Err(e) if reqwest::Error::is_timeout(&e) && tries > 0 => {}
                    answer => return answer.unwrap(),
                }
            }
        })
    }

    #[track_caller]
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.request("POST", path, Some(body));
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    fn tenant(&self, name: &str) {
        let v = if self.api == Api::V1 { "v1" } else { "v2" };
        self.post(&format!("/api/{v}/tenants"), &json!({ "name": name }));
    }

    fn database(&self, tenant: &str, name: &str) {
        let path = match self.api {
            Api::V1 => format!("/api/v1/databases?tenant={}", percent(tenant)),
            Api::V2 => format!("/api/v2/tenants/{}/databases", percent(tenant)),
        };
        self.post(&path, &json!({ "name": name }));
    }

    fn collection(&self, tenant: &str, database: &str, name: &str, metadata: &Value) -> Raw<'_> {
        let (tenant, database) = (percent(tenant), percent(database));
        let (create, below) = match self.api {
            Api::V1 => (
                format!("/api/v1/collections?tenant={tenant}&database={database}"),
                "/api/v1/collections".to_owned(),
            ),
            Api::V2 => {
                let path = format!("/api/v2/tenants/{tenant}/databases/{database}/collections");
                (path.clone(), path)
            }
        };
        let made = self.post(&create, &json!({ "name": name, "metadata": metadata }));
        let path = format!("{below}/{}", made["id"].as_str().unwrap());
        Raw { server: self, path, known: Records::new() }
    }

    /// Odd data in three tenants.
    fn fill(&self) -> BTreeMap<String, Records> {
        let mut world = BTreeMap::new();
        self.tenant(SECOND_TENANT);
        self.tenant(THIRD_TENANT);
        self.database(SECOND_TENANT, "db-two");
        self.database(THIRD_TENANT, "db.three");
        self.database(DEFAULT_TENANT, "second_db");

        // Enough for vectors to move into files, with gaps and changes.
        let mut many = self.collection(DEFAULT_TENANT, "default_database", "many", &Value::Null);
        for from in (0..2500).step_by(500) {
            many.write("add", from..from + 500, 1);
        }
        many.delete(0..100);
        many.delete(1200..1210);
        many.write("update", 300..350, 2);
        many.write("upsert", 2490..2520, 3);
        world.insert("default_tenant/default_database/many".to_owned(), many.known);

        let metadata = json!({ "hnsw:space": "cosine", "n": 9_007_199_254_740_993_i64, "f": 0.1, "s": "ü" });
        let mut odd = self.collection(SECOND_TENANT, "db-two", "odd-things", &metadata);
        let ids = ["a", "ünï-☃", " ", "e\"\\\n", "日本", "../x", "0"];
        let vector = [0.6_f32, 0.8, 1e-9];
        let documents = json!(["doc", null, "", "tab\t\u{0}end", "日本語\r\n", "null", "\u{1F600}"]);
        let metadatas = json!([
            { "n": 9_007_199_254_740_993_i64, "least": i64::MIN, "most": i64::MAX, "f": 0.1, "b": true, "s": "" },
            null, { "x": 1.0 }, { "huge": 1e300 }, { "tiny": 5e-324 }, { "ключ": "значение" }, { "zero": 0 }
        ]);
        let uris = json!([null, "file:///ü", null, "", null, null, null]);
        let body = json!({
            "ids": ids, "embeddings": vec![vector; ids.len()], "documents": documents, "metadatas": metadatas, "uris": uris
        });
        odd.add(&body);
        world.insert(format!("{SECOND_TENANT}/db-two/odd-things"), odd.known);

        let empty = self.collection(THIRD_TENANT, "db.three", "empty-one", &Value::Null);
        world.insert(format!("{THIRD_TENANT}/db.three/empty-one"), empty.known);
        for n in 0..5 {
            let mut small =
                self.collection(DEFAULT_TENANT, "second_db", &format!("small-{n}"), &json!({ "n": n }));
            small.write("add", 0..n, 1);
            world.insert(format!("default_tenant/second_db/small-{n}"), small.known);
        }
        world
    }

    /// Every collection of the three tenants.
    fn collections(&self, client: &Client) -> Vec<Collection> {
        let known: [(&str, &[&str]); 3] = [
            (DEFAULT_TENANT, &["default_database", "second_db"]),
            (SECOND_TENANT, &["db-two"]),
            (THIRD_TENANT, &["db.three"]),
        ];
        let mut all = Vec::new();
        for (tenant, databases) in known {
            let names: Vec<String> = databases.iter().map(|d| (*d).to_owned()).collect();
            // From 0.6 on it lists them itself.
            let old = ["0.4.", "0.5."].iter().any(|v| client.version().starts_with(v));
            let told: &[String] = if old { &names } else { &[] };
            let mut found = client.databases(tenant, told).unwrap();
            found.sort();
            assert_eq!(found, names, "databases of {tenant}");
            for database in found {
                all.extend(client.collections(tenant, &database).unwrap());
            }
        }
        all
    }
}

impl Raw<'_> {
    /// Numbered records; `seed` changes their values.
    fn write(&mut self, verb: &str, numbers: std::ops::Range<usize>, seed: usize) {
        if numbers.is_empty() {
            return;
        }
        let n: Vec<usize> = numbers.collect();
        let body = json!({
            "ids": n.iter().map(|i| format!("id{i}")).collect::<Vec<_>>(),
            "embeddings": n.iter().map(|i| vector(i * 31 + seed)).collect::<Vec<_>>(),
            "documents": n.iter().map(|i| format!("text {i} of {seed}")).collect::<Vec<_>>(),
            "metadatas": n.iter().map(|i| json!({ "n": i, "seed": seed })).collect::<Vec<_>>(),
        });
        self.send(verb, &body);
    }

    fn add(&mut self, body: &Value) {
        self.send("add", body);
    }

    fn send(&mut self, verb: &str, body: &Value) {
        self.server.post(&format!("{}/{verb}", self.path), body);
        for (i, id) in body["ids"].as_array().unwrap().iter().enumerate() {
            let of = |key: &str| body.get(key).map_or(Value::Null, |list| list[i].clone());
            let record = json!({
                "embedding": of("embeddings"), "document": of("documents"), "metadata": of("metadatas"), "uri": of("uris")
            });
            self.known.insert(id.as_str().unwrap().to_owned(), record);
        }
    }

    fn delete(&mut self, numbers: std::ops::Range<usize>) {
        let ids: Vec<String> = numbers.map(|i| format!("id{i}")).collect();
        self.server.post(&format!("{}/delete", self.path), &json!({ "ids": ids }));
        ids.iter().for_each(|id| drop(self.known.remove(id)));
    }
}

/// Numbers of every size that are exact as f32.
fn vector(seed: usize) -> Vec<f32> {
    let mut x = seed as u32 ^ 0x9E37_79B9;
    let step = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        (x as f32 / u32::MAX as f32 - 0.5) * if x.is_multiple_of(7) { 1e-6 } else { 3.0 }
    };
    (0..DIMENSION).map(step).collect()
}

fn percent(name: &str) -> String {
    tars_backup::id::encode(name)
}

/// Small pages, so that there are many.
fn small_pages() -> Pages {
    Pages { ids: 300, bytes: 64 << 10, ..Pages::default() }
}

fn export(client: &Client, c: &Collection) -> (Exported, Value, Records) {
    let scratch = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let mut told = 0;
    let exported = client.export(c, scratch.path(), &mut out, &mut |n| told += n).unwrap();
    assert_eq!((exported.bytes, told), (out.len() as u64, out.len() as u64));
    let text = String::from_utf8(out).unwrap();
    assert!(text.ends_with('\n'));
    let mut lines = text.lines().map(|l| serde_json::from_str::<Map<String, Value>>(l).unwrap());
    let header = Value::Object(lines.next().unwrap());
    let mut records = Records::new();
    for mut record in lines {
        let id = record.remove("id").unwrap().as_str().unwrap().to_owned();
        assert!(records.insert(id.clone(), Value::Object(record)).is_none(), "{id} twice");
    }
    assert_eq!(exported.records, records.len() as u64);
    (exported, header, records)
}

fn what_went_in_comes_out(server: &Server, world: &BTreeMap<String, Records>) {
    for pages in [Pages::default(), small_pages()] {
        let client = server.client(pages);
        let all = server.collections(&client);
        let titles: Vec<String> = all.iter().map(Collection::title).collect();
        assert_eq!(titles.len(), world.len(), "{titles:?}");
        for c in &all {
            let wanted = &world[&c.title()];
            let (exported, header, records) = export(&client, c);
            assert_eq!((exported.records, exported.gone), (wanted.len() as u64, 0), "{}", c.title());
            assert_eq!(client.count(c).unwrap(), exported.records);
            assert_eq!(header["name"], json!(c.name));
            assert_eq!(header["tenant"], json!(c.tenant));
            assert_eq!(header["count"], json!(wanted.len()));
            if c.name == "odd-things" {
                assert_eq!(header["metadata"]["n"], json!(9_007_199_254_740_993_i64));
                let dimension = if server.api == Api::V1 { Value::Null } else { json!(3) };
                assert_eq!(header["dimension"], dimension);
            }
            let cosine = c.name == "odd-things";
            for (id, wanted) in wanted {
                let found = records.get(id).unwrap_or_else(|| panic!("{}: {id:?} is missing", c.title()));
                same_vector(&wanted["embedding"], &found["embedding"], cosine);
                for key in ["document", "metadata", "uri"] {
                    assert!(
                        same(&wanted[key], &found[key]),
                        "{} {id:?} {key}: {} became {}",
                        c.title(),
                        wanted[key],
                        found[key]
                    );
                }
            }
        }
    }
}

/// Bit by bit; where the server normalises, nearly.
#[track_caller]
fn same_vector(wanted: &Value, found: &Value, normalised: bool) {
    let numbers = |v: &Value| -> Vec<f32> {
        v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
    };
    let (wanted, found) = (numbers(wanted), numbers(found));
    assert_eq!(wanted.len(), found.len());
    for (w, f) in wanted.iter().zip(&found) {
        let good = if normalised { (w - f).abs() < 1e-6 } else { w.to_bits() == f.to_bits() };
        assert!(good, "{w:?} became {f:?}");
    }
}

/// Equal; 1.x tells no metadata as an empty table.
fn same(wanted: &Value, found: &Value) -> bool {
    match (wanted, found) {
        (Value::Null, Value::Object(o)) => o.is_empty(),
        (Value::Object(w), Value::Object(f)) => {
            w.len() == f.len() && w.iter().all(|(k, v)| f.get(k).is_some_and(|f| same(v, f)))
        }
        (Value::Number(w), Value::Number(f)) if w.is_f64() => {
            f.as_f64().is_some_and(|f| (w.as_f64().unwrap() - f).abs() <= f.abs() * 1e-15)
        }
        _ => wanted == found,
    }
}

fn what_is_deleted_meanwhile_is_counted(server: &Server) {
    let mut raw = server.collection(DEFAULT_TENANT, "default_database", "restless", &Value::Null);
    raw.write("add", 0..400, 1);
    let client = server.client(Pages { bytes: 100 << 10, ..small_pages() });
    let all = client.collections(DEFAULT_TENANT, "default_database").unwrap();
    let c = all.iter().find(|c| c.name == "restless").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let (mut out, mut first) = (Vec::new(), true);
    let exported = client.export(c, scratch.path(), &mut out, &mut |_| {
        if std::mem::take(&mut first) {
            raw.delete(350..400);
            raw.write("add", 500..510, 1);
        }
    });
    let exported = exported.unwrap();
    assert_eq!((exported.records, exported.gone), (350, 50));
    assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 351);
}

fn a_deleted_collection_is_told(server: &Server) {
    let mut raw = server.collection(DEFAULT_TENANT, "default_database", "short-lived", &Value::Null);
    raw.write("add", 0..400, 1);
    let client = server.client(small_pages());
    let all = client.collections(DEFAULT_TENANT, "default_database").unwrap();
    let c = all.iter().find(|c| c.name == "short-lived").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let by_name = match server.api {
        Api::V1 => "/api/v1/collections/short-lived".to_owned(),
        Api::V2 => {
            "/api/v2/tenants/default_tenant/databases/default_database/collections/short-lived".to_owned()
        }
    };
    let mut first = true;
    let failed = client
        .export(c, scratch.path(), &mut std::io::sink(), &mut |_| {
            if std::mem::take(&mut first) {
                let (status, answer) = server.request("DELETE", &by_name, None);
                assert_eq!(status, 200, "{answer}");
            }
        })
        .unwrap_err();
    match server.api {
        Api::V2 => assert!(matches!(failed, ChromaError::Gone { .. }), "{failed}"),
        // 0.4 only says that something went wrong.
        Api::V1 => assert!(matches!(failed, ChromaError::Refused { status: 500, .. }), "{failed}"),
    }
}

fn long_lists_come_in_pages(server: &Server) {
    let client = server.client(Pages { ids: 2, ..Pages::default() });
    let names: Vec<String> =
        client.collections(DEFAULT_TENANT, "second_db").unwrap().into_iter().map(|c| c.name).collect();
    assert_eq!(names, ["small-0", "small-1", "small-2", "small-3", "small-4"]);
    let small = client.collections(DEFAULT_TENANT, "second_db").unwrap();
    assert_eq!(export(&client, &small[4]).0.records, 4);
}

fn copied(data: &Path) -> (TempDir, CopyFacts) {
    let dir = tempfile::tempdir().unwrap();
    let done = std::process::Command::new("cp").arg("-a").arg(data.join(".")).arg(dir.path()).status();
    assert!(done.unwrap().success());
    let facts = copy::facts(&dir.path().join(copy::DATABASE)).unwrap();
    (dir, facts)
}

fn facts_of_a_copy_are_those_of_the_server(server: &Server, copied: &dyn Fn() -> (TempDir, CopyFacts)) {
    let client = server.client(Pages::default());
    let (dir, facts) = copied();
    let mut wanted: Vec<(String, Option<i64>, u64)> = server
        .collections(&client)
        .iter()
        .map(|c| {
            let dimension = c.dimension.and_then(|d| i64::try_from(d).ok());
            (c.title(), dimension, client.count(c).unwrap())
        })
        .collect();
    wanted.sort();
    let mut found: Vec<(String, Option<i64>, u64)> = facts
        .collections
        .iter()
        .map(|c| (format!("{}/{}/{}", c.tenant, c.database, c.name), c.dimension, c.records))
        .collect();
    found.sort();
    if server.api == Api::V1 {
        // 0.4 does not tell it.
        found.iter_mut().for_each(|(_, dimension, _)| *dimension = None);
    }
    assert_eq!(found, wanted);
    assert_eq!(facts.tenants, [SECOND_TENANT, DEFAULT_TENANT, THIRD_TENANT]);
    assert_eq!(facts.databases.len(), 4);
    // A document with a NUL character does it; no record is touched.
    assert!(facts.warnings.iter().all(|w| w.contains("searching in documents")), "{:?}", facts.warnings);
    assert_eq!(serde_json::from_value::<CopyFacts>(serde_json::to_value(&facts).unwrap()).unwrap(), facts);

    assert!(server.api == Api::V1 || !facts.segments.is_empty(), "the vectors of many are in files");
    let missing = |facts: &CopyFacts| facts.vector_files().filter(|f| !dir.path().join(f).exists()).count();
    assert_eq!(missing(&facts), 0, "{:?}", facts.segments);
    if let Some(segment) = facts.segments.first() {
        std::fs::remove_file(dir.path().join(segment).join("data_level0.bin")).unwrap();
        assert_eq!(missing(&facts), 1);
    }
}

fn writes_that_nobody_read_yet_count(server: &Server, copied: &dyn Fn() -> (TempDir, CopyFacts)) {
    let mut raw = server.collection(DEFAULT_TENANT, "default_database", "fresh", &Value::Null);
    raw.write("add", 0..40, 1);
    raw.write("upsert", 30..50, 1);
    raw.delete(0..5);
    let (_dir, facts) = copied();
    assert_eq!(facts.collections.iter().find(|c| c.name == "fresh").unwrap().records, 45);
}

fn what_is_not_there_is_empty(server: &Server) {
    let client = server.client(Pages::default());
    assert!(client.databases("no-such-tenant", &[]).unwrap().is_empty());
    assert!(client.collections(DEFAULT_TENANT, "no_such_database").unwrap().is_empty());
}
