//! The server beside its data: where it listens, and what it says that it has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::Chroma;
use crate::chroma::copy::CopyFacts;
use crate::chroma::{ChromaError, Client, Collection, DEFAULT_TENANT, Endpoint, Pages, Token};
use crate::docker::Container;
use crate::source::{Context, SourceError};

const DEFAULT_PORT: u16 = 8000;
/// Time for the questions that only compare.
pub(super) const QUESTIONS: Duration = Duration::from_secs(60);
/// Time that a server that we stopped gets to answer again, and how often it is asked.
pub(super) const COMING_UP: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(300);

impl Chroma {
    /// Where the server listens.
    fn address(&self, container: &Container) -> Result<String, SourceError> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let after = |flag: &str| {
            let mut words = container.args.iter().flat_map(|a| a.split_ascii_whitespace());
            words.find_map(|w| w.strip_prefix(flag).map(str::to_owned)).map(|rest| {
                match rest.strip_prefix('=') {
                    Some(value) => value.to_owned(),
                    None => words.next().unwrap_or_default().to_owned(),
                }
            })
        };
        let env = |key: &str| container.env.get(key).cloned();
        let port = after("--port")
            .or_else(|| env("CHROMA_PORT"))
            .or_else(|| env("CHROMA_SERVER_HTTP_PORT"))
            .and_then(|p| p.parse().ok())
            .unwrap_or(DEFAULT_PORT);
        let published =
            container.published.iter().find(|(inside, _)| *inside == port).map(|(_, at)| at.clone());
        let own = || container.addresses.first().map(|a| format!("{a}:{port}"));
        published.or_else(own).map(|at| format!("http://{at}")).ok_or_else(|| {
            SourceError::hinted(
                container.name.clone(),
                "it has no address that can be asked",
                "publish its port on 127.0.0.1 in the Compose file, or set url of the source",
            )
        })
    }

    pub(super) fn client(
        &self,
        context: &Context<'_>,
        container: &Container,
        total: Duration,
        patience: Duration,
    ) -> Result<Client, SourceError> {
        container.must_run()?;
        let until = Instant::now() + patience;
        let token = self.token.as_ref().map(|t| context.vault.read(t)).transpose()?.map(Token::new);
        let url = self.address(container)?;
        loop {
            let endpoint = Endpoint {
                url: url.clone(),
                token: token.clone(),
                total,
                idle: self.limits.idle.min(total),
                pages: Pages::default(),
            };
            match Client::connect(endpoint, context.runtime.clone(), context.cancel.clone()) {
                Ok(client) => return Ok(client),
                Err(ChromaError::Interrupted(i)) => return Err(i.into()),
                Err(e) if Instant::now() > until => return Err(e.into()),
                Err(_) => std::thread::sleep(ASK_AGAIN),
            }
        }
    }

    /// What the server says it has; an error when it cannot be asked.
    pub(super) fn census(
        &self,
        context: &Context<'_>,
        container: &Container,
        known: &CopyFacts,
        patience: Duration,
    ) -> Result<Census, SourceError> {
        let _in_use = context.holds.in_use(&container.id, context.cancel)?;
        let now = context.docker()?.look(&container.id)?.unwrap_or_default();
        let client = self.client(context, &now, QUESTIONS, patience)?;
        let mut counts = BTreeMap::new();
        for collection in collections(&client, known)? {
            match client.count(&collection) {
                Ok(count) => {
                    counts.insert(collection.id.clone(), (collection.title(), count));
                }
                // Deleted between the two questions.
                Err(ChromaError::Gone { .. } | ChromaError::Refused { status: 404, .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Census { version: client.version().to_owned(), counts })
    }
}

/// All collections of the tenants and databases that a copy knows, and of the default ones.
pub(super) fn collections(client: &Client, known: &CopyFacts) -> Result<Vec<Collection>, ChromaError> {
    let mut tenants: BTreeSet<&str> = known.tenants.iter().map(String::as_str).collect();
    tenants.insert(DEFAULT_TENANT);
    let mut all = Vec::new();
    for tenant in tenants {
        let names = known.databases.iter().filter(|d| d.tenant == tenant).map(|d| d.name.clone());
        for database in client.databases(tenant, &names.collect::<Vec<_>>())? {
            all.extend(client.collections(tenant, &database)?);
        }
    }
    Ok(all)
}

/// What a server counts: collection id -> title and records.
pub(super) struct Census {
    pub version: String,
    pub counts: BTreeMap<String, (String, u64)>,
}

/// What the server had before and after and the copy lacks. New and deleted records are nobody's fault, but most of them
/// being absent means that the server keeps its data elsewhere.
pub(super) fn lacks(before: &Census, after: &Census, copy: &CopyFacts) -> Option<String> {
    let copied: BTreeMap<&str, u64> = copy.collections.iter().map(|c| (c.id.as_str(), c.records)).collect();
    let mut missing = Vec::new();
    for (id, (title, count)) in &before.counts {
        let Some((_, later)) = after.counts.get(id) else { continue };
        let least = *count.min(later);
        match copied.get(id.as_str()) {
            None => missing.push(format!("{title} is not in it")),
            Some(records) if *records < least.div_ceil(2) => {
                missing.push(format!("{title} has {records} of {least} records"));
            }
            Some(_) => {}
        }
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chroma::copy::CollectionFacts;

    pub(super) fn census(counts: &[(&str, u64)]) -> Census {
        let counts = counts.iter().map(|(id, n)| ((*id).to_owned(), (format!("t/d/{id}"), *n))).collect();
        Census { version: String::new(), counts }
    }

    fn copied(counts: &[(&str, u64)]) -> CopyFacts {
        let one = |(id, records): &(&str, u64)| CollectionFacts {
            tenant: "t".into(),
            database: "d".into(),
            name: (*id).into(),
            id: (*id).into(),
            dimension: None,
            records: *records,
        };
        CopyFacts { collections: counts.iter().map(one).collect(), ..CopyFacts::default() }
    }

    #[test]
    fn a_copy_that_lacks_what_the_server_has_is_found() {
        let before = census(&[("a", 100), ("b", 10), ("gone", 5), ("empty", 0)]);
        let after = census(&[("a", 120), ("b", 2), ("new", 7), ("empty", 0)]);
        let good = copied(&[("a", 110), ("b", 6), ("empty", 0)]);
        assert_eq!(lacks(&before, &after, &good), None);
        let old = copied(&[("a", 40), ("b", 6), ("empty", 0)]);
        assert_eq!(lacks(&before, &after, &old).unwrap(), "t/d/a has 40 of 100 records");
        assert!(lacks(&before, &after, &copied(&[])).unwrap().contains("t/d/b is not in it"));
    }
}
