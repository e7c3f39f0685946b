//! What a copy of a server's data holds, by its `chroma.sqlite3`. What could go wrong: a copy that opens and lacks half
//! of its vectors. Beyond the newest ones they lie in one directory per collection beside the database, so the facts
//! name every directory that must be there; and a write that was under way when the copy was made is taken back by the
//! `-journal` beside the database, so that file belongs to the copy.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use serde::{Deserialize, Serialize};

use super::client::{DEFAULT_DATABASE, DEFAULT_TENANT};
use crate::hint::Hint;

/// Name of the database in the directory of a server.
pub const DATABASE: &str = "chroma.sqlite3";
/// The files of one directory of vectors.
pub const SEGMENT_FILES: [&str; 5] =
    ["data_level0.bin", "header.bin", "index_metadata.pickle", "length.bin", "link_lists.bin"];

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the copy has no database")]
    Missing(#[source] std::io::Error),
    #[error("the database of the copy is empty")]
    Empty,
    #[error("cannot read the database of the copy")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database of the copy is damaged: {0}")]
    Damaged(String),
    #[error("the database of the copy is not one of ChromaDB: it has no table {0}")]
    NotChroma(&'static str),
}

impl Hint for CopyError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing(_) | Self::Empty | Self::NotChroma(_) => {
                "does the server keep its data there? look for chroma.sqlite3 in the container".into()
            }
            Self::Damaged(_) | Self::Sqlite(_) => {
                "was the server paused or stopped for the copy? if so, its own data may be damaged: \
                 sqlite3 chroma.sqlite3 'PRAGMA integrity_check'"
                    .into()
            }
        })
    }
}

/// Facts of a copy, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CopyFacts {
    pub tenants: Vec<String>,
    pub databases: Vec<DatabaseFacts>,
    pub collections: Vec<CollectionFacts>,
    /// Directories beside the database that vectors of its collections lie in.
    pub segments: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DatabaseFacts {
    pub tenant: String,
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CollectionFacts {
    pub tenant: String,
    pub database: String,
    pub name: String,
    pub id: String,
    /// Numbers of one vector; None before the first record.
    pub dimension: Option<i64>,
    /// What a server that is started on the copy counts.
    pub records: u64,
}

impl CopyFacts {
    /// Files of vectors that must lie beside the database, as paths below its directory.
    pub fn vector_files(&self) -> impl Iterator<Item = String> + '_ {
        self.segments.iter().flat_map(|dir| SEGMENT_FILES.iter().map(move |file| format!("{dir}/{file}")))
    }
}

/// Reads the facts of the database at `path`, which has the name that it had at the server, its `-journal` beside it if
/// there was one. The file is changed when a write must be taken back, so it must be a copy that nobody else uses, in a
/// private directory.
///
/// Fails when the database is not there, damaged, or none of ChromaDB (0.4 to 1.x are known).
pub fn facts(path: &Path) -> Result<CopyFacts, CopyError> {
    if std::fs::metadata(path).map_err(CopyError::Missing)?.len() == 0 {
        return Err(CopyError::Empty);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    let verdict: String = db.query_row("PRAGMA integrity_check(3)", [], |r| r.get(0))?;
    if verdict != "ok" {
        return Err(CopyError::Damaged(verdict));
    }
    for table in ["collections", "segments", "embeddings", "embeddings_queue", "max_seq_id"] {
        if !has_table(&db, table)? {
            return Err(CopyError::NotChroma(table));
        }
    }
    let (tenants, databases) = places(&db)?;
    let queue = Queue::read(&db)?;
    let mut collections = Vec::new();
    let mut segments = Vec::new();
    for mut c in all_collections(&db, &databases)? {
        c.records = count(&db, &queue, &c.id)?;
        collections.push(c);
    }
    for (segment, collection) in vector_segments(&db)? {
        if is_on_disk(&db, &queue, &segment, &collection)? {
            segments.push(segment);
        }
    }
    collections.sort();
    segments.sort();
    let mut databases: Vec<DatabaseFacts> = databases.into_values().collect();
    databases.sort();
    Ok(CopyFacts { tenants, databases, collections, segments })
}

fn has_table(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    db.query_row(
        "SELECT EXISTS(SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)",
        [name],
        |r| r.get(0),
    )
}

/// Tenants, and databases by id. Before 0.4.15 there were neither, which is the default of each.
fn places(db: &Connection) -> rusqlite::Result<(Vec<String>, BTreeMap<String, DatabaseFacts>)> {
    if !has_table(db, "databases")? {
        let one = DatabaseFacts { tenant: DEFAULT_TENANT.into(), name: DEFAULT_DATABASE.into() };
        return Ok((vec![DEFAULT_TENANT.into()], BTreeMap::from([(String::new(), one)])));
    }
    let mut statement = db.prepare("SELECT id FROM tenants ORDER BY id")?;
    let tenants = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut statement = db.prepare("SELECT id, tenant_id, name FROM databases")?;
    let databases = statement
        .query_map([], |r| Ok((r.get(0)?, DatabaseFacts { tenant: r.get(1)?, name: r.get(2)? })))?
        .collect::<rusqlite::Result<_>>()?;
    Ok((tenants, databases))
}

/// All collections, their records not counted yet.
fn all_collections(
    db: &Connection,
    databases: &BTreeMap<String, DatabaseFacts>,
) -> rusqlite::Result<Vec<CollectionFacts>> {
    let column = |name: &str| {
        db.query_row(
            "SELECT EXISTS(SELECT 1 FROM pragma_table_info('collections') WHERE name = ?1)",
            [name],
            |r| r.get::<_, bool>(0),
        )
    };
    let database = if column("database_id")? { "database_id" } else { "''" };
    let dimension = if column("dimension")? { "dimension" } else { "NULL" };
    let mut statement = db.prepare(&format!("SELECT id, name, {dimension}, {database} FROM collections"))?;
    statement
        .query_map([], |r| {
            let key: String = r.get(3)?;
            // A database that is not there is shown by its id.
            let (tenant, database) = databases
                .get(&key)
                .map_or_else(|| (String::new(), key.clone()), |d| (d.tenant.clone(), d.name.clone()));
            Ok(CollectionFacts {
                tenant,
                database,
                name: r.get(1)?,
                id: r.get(0)?,
                dimension: r.get(2)?,
                records: 0,
            })
        })?
        .collect()
}

/// Segment and collection of every index of vectors that lies in files.
fn vector_segments(db: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let mut statement = db.prepare(
        "SELECT s.id, s.collection FROM segments s JOIN collections c ON c.id = s.collection \
         WHERE s.scope = 'VECTOR' AND s.type LIKE '%hnsw-local-persisted%'",
    )?;
    statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?.collect()
}

/// The log of writes: `persistent://default/default/<collection>` is the topic of a collection.
struct Queue {
    topics: HashMap<String, String>,
}

impl Queue {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let mut statement = db.prepare("SELECT DISTINCT topic FROM embeddings_queue")?;
        let topics = statement
            .query_map([], |r| r.get::<_, String>(0))?
            .map(|t| t.map(|t| (t.rsplit('/').next().unwrap_or_default().to_owned(), t)))
            .collect::<rusqlite::Result<_>>()?;
        Ok(Self { topics })
    }

    /// The topic of a collection; a text that no row has when nothing of it is in the log.
    fn topic(&self, collection: &str) -> &str {
        self.topics.get(collection).map_or("", String::as_str)
    }
}

/// Operations of the log.
const UPDATE: i64 = 1;
const DELETE: i64 = 3;

/// Records of a collection: those that its segment of metadata has, and what the log says later than that. A server
/// catches up with its log before it answers, so a copy may be behind.
fn count(db: &Connection, queue: &Queue, collection: &str) -> rusqlite::Result<u64> {
    let segment: Option<String> = db
        .query_row(
            "SELECT id FROM segments WHERE collection = ?1 AND scope = 'METADATA'",
            [collection],
            |r| r.get(0),
        )
        .optional()?;
    let Some(segment) = segment else { return Ok(0) };
    let mut records: i64 =
        db.query_row("SELECT count(*) FROM embeddings WHERE segment_id = ?1", [&segment], |r| r.get(0))?;
    let seen = last_seen(db, &segment)?.unwrap_or(0);
    let mut statement = db.prepare(
        "SELECT id, operation FROM embeddings_queue WHERE topic = ?1 AND seq_id > ?2 AND operation <> ?3 \
         ORDER BY seq_id",
    )?;
    let mut later: HashMap<String, bool> = HashMap::new();
    let mut rows = statement.query(rusqlite::params![queue.topic(collection), seen, UPDATE])?;
    while let Some(row) = rows.next()? {
        later.insert(row.get(0)?, row.get::<_, i64>(1)? != DELETE);
    }
    let mut exists =
        db.prepare("SELECT EXISTS(SELECT 1 FROM embeddings WHERE segment_id = ?1 AND embedding_id = ?2)")?;
    for (id, is_there) in later {
        let was_there: bool = exists.query_row([&segment, &id], |r| r.get(0))?;
        records += i64::from(is_there) - i64::from(was_there);
    }
    Ok(u64::try_from(records).unwrap_or(0))
}

/// Place in the log up to which a segment has everything. 1.x keeps an integer, 0.x its bytes, big end first.
fn last_seen(db: &Connection, segment: &str) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT seq_id FROM max_seq_id WHERE segment_id = ?1", [segment], |r| {
        Ok(match r.get_ref(0)? {
            ValueRef::Integer(n) => n,
            ValueRef::Blob(b) => b.iter().fold(0i64, |n, b| n.wrapping_shl(8) | i64::from(*b)),
            _ => 0,
        })
    })
    .optional()
}

/// Whether vectors of a collection are in files: the server noted how far it wrote them, or the log lacks some.
fn is_on_disk(db: &Connection, queue: &Queue, segment: &str, collection: &str) -> rusqlite::Result<bool> {
    if last_seen(db, segment)?.is_some_and(|n| n > 0) {
        return Ok(true);
    }
    db.query_row(
        "SELECT EXISTS(SELECT 1 FROM embeddings e JOIN segments s ON s.id = e.segment_id \
         WHERE s.collection = ?1 AND s.scope = 'METADATA' \
         AND e.embedding_id NOT IN (SELECT id FROM embeddings_queue WHERE topic = ?2 AND vector IS NOT NULL))",
        [collection, queue.topic(collection)],
        |r| r.get(0),
    )
}
