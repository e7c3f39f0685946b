//! A ChromaDB server: which API it speaks, and what it holds. What could go wrong: a listing that is shorter than the
//! truth, because a page ended early or something was deleted between two pages; so pages are read until nothing new
//! comes, and a list of several pages counts only when it came out the same twice.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::error::ChromaError;
use super::http::{Ask, Http, Token};
use super::pages::Pages;
use crate::cancel::Cancel;
use crate::id::encode;

pub const DEFAULT_TENANT: &str = "default_tenant";
pub const DEFAULT_DATABASE: &str = "default_database";

/// Batch for a server that does not say its own.
const BATCH: usize = 1000;
/// Attempts to list what changes all the time.
pub(super) const ATTEMPTS: usize = 5;
/// Longest file name of a member before `.jsonl` and the suffixes of its compression.
const LONGEST_NAME: usize = 200;

/// The versions of the HTTP API. 0.4 speaks only the first, 1.x only the second, those between speak both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    V1,
    V2,
}

/// Where a server is, and how long it may take.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Base address, `http://host:port`, perhaps with a path; no user, no password.
    pub url: String,
    pub token: Option<Token>,
    /// Longest time for everything that is asked of one `Client`.
    pub total: Duration,
    /// Longest silence within one answer.
    pub idle: Duration,
    pub pages: Pages,
}

pub struct Client {
    pub(super) http: Http,
    api: Api,
    version: String,
    pub(super) batch: usize,
    pub(super) pages: Pages,
}

/// A collection as the server describes it. What we do not need to understand is kept as the server's own text.
#[derive(Debug, Clone)]
pub struct Collection {
    pub tenant: String,
    pub database: String,
    pub id: String,
    pub name: String,
    /// Numbers of one vector; None before the first record, and where the server does not tell it (0.4).
    pub dimension: Option<u64>,
    pub metadata: Option<Box<RawValue>>,
    pub configuration: Option<Box<RawValue>>,
    pub schema: Option<Box<RawValue>>,
}

impl Collection {
    /// The name for people.
    pub fn title(&self) -> String {
        format!("{}/{}/{}", self.tenant, self.database, self.name)
    }

    /// Name of its export in an archive. A name that no file system would take is cut and ends in `~` and a digest of
    /// the whole; the first line of the export has the true one.
    pub fn member(&self) -> String {
        let part = |name: &str| {
            let encoded = encode(name);
            if encoded.len() <= LONGEST_NAME {
                return encoded;
            }
            let digest = hex::encode(Sha256::digest(name.as_bytes()));
            format!("{}~{}", &encoded[..LONGEST_NAME - 17], &digest[..16])
        };
        format!("chromadb-export/{}/{}/{}.jsonl", part(&self.tenant), part(&self.database), part(&self.name))
    }
}

#[derive(Deserialize)]
struct WireDatabase {
    name: String,
}

#[derive(Deserialize)]
struct WireCollection {
    id: String,
    name: String,
    #[serde(default)]
    dimension: Option<u64>,
    #[serde(default)]
    metadata: Option<Box<RawValue>>,
    #[serde(default)]
    configuration_json: Option<Box<RawValue>>,
    #[serde(default)]
    schema: Option<Box<RawValue>>,
}

impl Client {
    /// Finds out which API the server speaks and what it says of itself. Its deadline begins here.
    ///
    /// Fails when nothing answers, when what answers is no ChromaDB, and when it wants a token that it did not get.
    pub fn connect(endpoint: Endpoint, runtime: Handle, cancel: Cancel) -> Result<Self, ChromaError> {
        let Endpoint { url, token, total, idle, pages } = endpoint;
        let pages = Pages { ids: pages.ids.max(2), ..pages };
        let http = Http::new(&url, token, (total, idle), pages.largest, runtime, cancel)?;
        let api = find_api(&http)?;
        let mut client = Self { http, api, version: String::new(), batch: BATCH, pages };
        let what = "asking for the version";
        client.version = client.json(what, &client.route(&["version"]))?;
        // A server that does not know the question has no such limit to tell.
        let checks = client.http.ask("asking for its limits", &client.route(&["pre-flight-checks"]))?;
        match checks.status {
            200 => {
                #[derive(Deserialize)]
                struct Limits {
                    max_batch_size: Option<usize>,
                }
                let limits: Limits = serde_json::from_slice(&checks.body)
                    .map_err(|e| client.http.malformed("asking for its limits", e.to_string()))?;
                client.batch = limits.max_batch_size.unwrap_or(BATCH).max(1);
            }
            404 | 405 => {}
            _ => return Err(client.http.refused("asking for its limits", &checks)),
        }
        Ok(client)
    }

    pub fn api(&self) -> Api {
        self.api
    }

    /// What the server says is its version. All of 1.x say "1.0.0", whatever they are.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The databases of a tenant. Before 0.6 the API cannot list them: then the answer is `known` (the names that a copy
    /// of the server's data has), and the default database for the default tenant. A tenant that is not there has none.
    ///
    /// No API lists tenants: their names come from a copy too, and `DEFAULT_TENANT` always.
    pub fn databases(&self, tenant: &str, known: &[String]) -> Result<Vec<String>, ChromaError> {
        let what = format!("listing the databases of {tenant}");
        let ask =
            |limit, offset| paged(Ask::get(&["api", "v2", "tenants", tenant, "databases"]), limit, offset);
        let listed = match self.api {
            Api::V1 => None,
            Api::V2 => match self.list(&what, ask, |d: &WireDatabase| &d.name) {
                // They can be made there, but not listed.
                Err(ChromaError::Refused { status: 405, .. }) => None,
                listed => Some(listed.map_err(|e| self.slash(e, &[tenant]))?),
            },
        };
        if let Some(listed) = listed {
            return Ok(listed.into_iter().map(|d| d.name).collect());
        }
        let mut names = known.to_vec();
        if tenant == DEFAULT_TENANT {
            names.push(DEFAULT_DATABASE.to_owned());
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The collections of a database, by name. A database that is not there has none.
    pub fn collections(&self, tenant: &str, database: &str) -> Result<Vec<Collection>, ChromaError> {
        let what = format!("listing the collections of {tenant}/{database}");
        let ask = |limit, offset| paged(self.collections_route(tenant, database), limit, offset);
        let listed = self
            .list(&what, ask, |c: &WireCollection| &c.id)
            .map_err(|e| self.slash(e, &[tenant, database]))?;
        let mut collections: Vec<Collection> = listed
            .into_iter()
            .map(|c| Collection {
                tenant: tenant.to_owned(),
                database: database.to_owned(),
                id: c.id,
                name: c.name,
                dimension: c.dimension,
                metadata: c.metadata,
                configuration: c.configuration_json,
                schema: c.schema,
            })
            .collect();
        collections.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(collections)
    }

    /// How many records the server counts in a collection now.
    pub fn count(&self, collection: &Collection) -> Result<u64, ChromaError> {
        let what = format!("counting {}", collection.title());
        self.json(&what, &self.collection_route(collection, "count"))
    }

    pub(super) fn route(&self, path: &[&str]) -> Ask {
        Ask::get(&["api", if self.api == Api::V1 { "v1" } else { "v2" }]).join(path)
    }

    pub(super) fn collections_route(&self, tenant: &str, database: &str) -> Ask {
        match self.api {
            Api::V1 => self.route(&["collections"]).query("tenant", tenant).query("database", database),
            Api::V2 => self.route(&["tenants", tenant, "databases", database, "collections"]),
        }
    }

    /// A question to one collection.
    pub(super) fn collection_route(&self, c: &Collection, verb: &str) -> Ask {
        match self.api {
            // By its id alone: there the names would only be looked at by an access check that we do not need.
            Api::V1 => self.route(&["collections", &c.id, verb]),
            Api::V2 => self.collections_route(&c.tenant, &c.database).join(&[&c.id, verb]),
        }
    }

    fn json<T: DeserializeOwned>(&self, what: &str, ask: &Ask) -> Result<T, ChromaError> {
        let body = self.http.fetch(what, ask)?;
        serde_json::from_slice(&body).map_err(|e| self.http.malformed(what, e.to_string()))
    }

    /// All pages of a listing, each item once.
    fn list<T: DeserializeOwned>(
        &self,
        what: &str,
        ask: impl Fn(usize, usize) -> Ask,
        key: impl Fn(&T) -> &String,
    ) -> Result<Vec<T>, ChromaError> {
        let mut before: Option<HashSet<String>> = None;
        for _ in 0..ATTEMPTS {
            let (mut items, mut keys, mut offset, mut pages) = (Vec::new(), HashSet::new(), 0, 0);
            loop {
                let page: Vec<T> = self.json(what, &ask(self.pages.ids, offset))?;
                offset += page.len();
                let known = keys.len();
                items.extend(page.into_iter().filter(|item| keys.insert(key(item).clone())));
                if keys.len() == known {
                    break;
                }
                pages += 1;
            }
            // One page that was not full is one answer: nothing could move while it was made.
            if (pages <= 1 && offset < self.pages.ids) || before.as_ref() == Some(&keys) {
                return Ok(items);
            }
            before = Some(keys);
        }
        Err(ChromaError::Changing { what: what.to_owned() })
    }

    /// Servers of the 0.x line take an encoded slash for a slash of the path, and find nothing there.
    fn slash(&self, e: ChromaError, names: &[&str]) -> ChromaError {
        match (e, names.iter().find(|n| n.contains('/'))) {
            (ChromaError::Refused { status: 404, url, .. }, Some(name)) => {
                ChromaError::Slash { url, name: (*name).to_owned() }
            }
            (e, _) => e,
        }
    }
}

fn paged(ask: Ask, limit: usize, offset: usize) -> Ask {
    ask.query("limit", limit).query("offset", offset)
}

fn find_api(http: &Http) -> Result<Api, ChromaError> {
    let what = "looking for the server";
    let mut last = None;
    for (api, version) in [(Api::V2, "v2"), (Api::V1, "v1")] {
        let answer = http.ask(what, &Ask::get(&["api", version, "heartbeat"]))?;
        match answer.status {
            200 => {
                let body: Result<serde_json::Map<String, serde_json::Value>, _> =
                    serde_json::from_slice(&answer.body);
                if body.is_ok_and(|b| b.contains_key("nanosecond heartbeat")) {
                    return Ok(api);
                }
                last = Some("its heartbeat is another one".to_owned());
            }
            404 | 405 | 410 => {
                last.get_or_insert_with(|| format!("it has no heartbeat (status {})", answer.status));
            }
            300..400 => last = Some(format!("it leads elsewhere (status {})", answer.status)),
            _ => return Err(http.refused(what, &answer)),
        }
    }
    Err(ChromaError::NotChroma { url: http.shown(), reason: last.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(tenant: &str, database: &str, name: &str) -> Collection {
        Collection {
            tenant: tenant.into(),
            database: database.into(),
            id: String::new(),
            name: name.into(),
            dimension: None,
            metadata: None,
            configuration: None,
            schema: None,
        }
    }

    #[test]
    fn a_member_is_named_safely_whatever_the_collection_is_called() {
        let c = collection("Zweiter Mandant é", "a/b", "..");
        assert_eq!(c.member(), "chromadb-export/Zweiter%20Mandant%20%C3%A9/a%2Fb/%2E%2E.jsonl");
        let (one, two) = (collection("t", "d", &"ü".repeat(300)), collection("t", "d", &"ü".repeat(301)));
        assert_ne!(one.member(), two.member());
        for c in [one, two] {
            let member = c.member();
            let file = member.rsplit('/').next().unwrap();
            assert_eq!(file.len(), LONGEST_NAME + ".jsonl".len(), "{file}");
        }
    }
}
