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
    /// What is not as it should be, though no record is touched by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
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
    let warnings = check(&db)?;
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
    Ok(CopyFacts { tenants, databases, collections, segments, warnings })
}

/// The integrity check of SQLite. Its words about an index of texts are a warning only: a document with a NUL character
/// is enough for them, servers work on with such an index, and it can be built anew from the documents.
fn check(db: &Connection) -> Result<Vec<String>, CopyError> {
    let mut statement = db.prepare("PRAGMA integrity_check(100)")?;
    let lines: Vec<String> = statement.query_map([], |r| r.get(0))?.collect::<rusqlite::Result<_>>()?;
    let (texts, damage): (Vec<String>, Vec<String>) = lines
        .into_iter()
        .filter(|line| line != "ok")
        .partition(|line| line.contains(" inverted index for FTS"));
    if damage.is_empty() {
        return Ok(texts
            .iter()
            .map(|t| format!("the index for searching in documents is not whole: {t}"))
            .collect());
    }
    Err(CopyError::Damaged(damage.into_iter().take(3).collect::<Vec<_>>().join("; ")))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of a kind of version that matter here, with one collection whose log has its newest writes.
    fn database(dir: &Path, with_places: bool, seen: &str) -> std::path::PathBuf {
        let path = dir.join(DATABASE);
        let db = Connection::open(&path).unwrap();
        let places = if with_places {
            "CREATE TABLE tenants (id TEXT); CREATE TABLE databases (id TEXT, name TEXT, tenant_id TEXT);
             INSERT INTO tenants VALUES ('t'); INSERT INTO databases VALUES ('d-id', 'd', 't');
             CREATE TABLE collections (id TEXT, name TEXT, dimension INTEGER, database_id TEXT);
             INSERT INTO collections VALUES ('c', 'coll', 3, 'd-id');"
        } else {
            "CREATE TABLE collections (id TEXT, name TEXT, topic TEXT);
             INSERT INTO collections VALUES ('c', 'coll', 'persistent://default/default/c');"
        };
        db.execute_batch(&format!(
            "{places}
             CREATE TABLE segments (id TEXT, type TEXT, scope TEXT, collection TEXT);
             INSERT INTO segments VALUES ('v', 'urn:chroma:segment/vector/hnsw-local-persisted', 'VECTOR', 'c');
             INSERT INTO segments VALUES ('m', 'urn:chroma:segment/metadata/sqlite', 'METADATA', 'c');
             INSERT INTO segments VALUES ('left', 'urn:chroma:segment/vector/hnsw-local-persisted', 'VECTOR', 'x');
             CREATE TABLE embeddings (id INTEGER PRIMARY KEY, segment_id TEXT, embedding_id TEXT);
             INSERT INTO embeddings (segment_id, embedding_id) VALUES ('m', 'a'), ('m', 'b'), ('other', 'z');
             CREATE TABLE max_seq_id (segment_id TEXT, seq_id);
             INSERT INTO max_seq_id VALUES ('m', {seen});
             CREATE TABLE embeddings_queue (seq_id INTEGER PRIMARY KEY, operation INTEGER, topic TEXT, id TEXT, vector BLOB);
             INSERT INTO embeddings_queue VALUES
               (255, 0, 'persistent://default/default/c', 'a', x'00'), (256, 0, 'persistent://default/default/c', 'b', x'00'),
               (257, 0, 'persistent://default/default/c', 'b', x'00'), (258, 2, 'persistent://default/default/c', 'new', x'00'),
               (259, 1, 'persistent://default/default/c', 'no', NULL), (260, 3, 'persistent://default/default/c', 'a', NULL),
               (261, 2, 'persistent://default/default/other', 'q', x'00');"
        ))
        .unwrap();
        path
    }

    #[test]
    fn what_the_log_says_later_counts_in_both_spellings_of_its_place() {
        for (with_places, seen) in [(true, "256"), (false, "x'0000000000000100'")] {
            let dir = tempfile::tempdir().unwrap();
            let facts = facts(&database(dir.path(), with_places, seen)).unwrap();
            let c = &facts.collections[0];
            assert_eq!(c.records, 2, "a and b, one more, one less: {facts:?}");
            let place = if with_places { ("t", "d") } else { (DEFAULT_TENANT, DEFAULT_DATABASE) };
            assert_eq!((c.tenant.as_str(), c.database.as_str()), place);
            assert_eq!(c.dimension, with_places.then_some(3));
            assert!(facts.segments.is_empty(), "all vectors are still in the log: {facts:?}");
        }
    }

    #[test]
    fn a_directory_of_vectors_is_wanted_when_the_log_lacks_some_or_the_server_noted_it() {
        for sql in [
            "DELETE FROM embeddings_queue WHERE seq_id = 255",
            "DELETE FROM embeddings_queue",
            "INSERT INTO max_seq_id VALUES ('v', 300)",
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = database(dir.path(), true, "400");
            Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            let facts = facts(&path).unwrap();
            assert_eq!(facts.segments, ["v"], "{sql}");
            assert!(facts.vector_files().any(|f| f == "v/data_level0.bin"));
        }
    }

    #[test]
    fn a_write_that_was_under_way_is_taken_back() {
        let (at, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = database(at.path(), true, "256");
        let db = Connection::open(&path).unwrap();
        // A cache of few pages writes into the file long before the end of the transaction.
        db.execute_batch(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO embeddings (segment_id, embedding_id) SELECT 'm', printf('%0100d', i) FROM n;
             PRAGMA cache_size = 1; BEGIN; DELETE FROM embeddings WHERE id % 2 = 0;",
        )
        .unwrap();
        for name in [DATABASE, "chroma.sqlite3-journal"] {
            std::fs::copy(at.path().join(name), copy.path().join(name)).unwrap();
        }
        let whole = copy.path().join(DATABASE);
        let records = |facts: &CopyFacts| facts.collections[0].records;
        assert_eq!(records(&facts(&whole).unwrap()), 5002);
        std::fs::copy(&path, &whole).unwrap();
        assert!(!facts(&whole).is_ok_and(|f| records(&f) == 5002), "without its journal it is another one");
    }

    #[test]
    fn damage_is_an_error_and_a_bad_index_of_texts_a_warning() {
        let dir = tempfile::tempdir().unwrap();
        let path = database(dir.path(), true, "256");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(
            "CREATE VIRTUAL TABLE embedding_fulltext_search USING fts5(string_value, tokenize='trigram');
             INSERT INTO embedding_fulltext_search VALUES ('some text');",
        )
        .unwrap();
        assert!(facts(&path).unwrap().warnings.is_empty());
        db.execute_batch("UPDATE embedding_fulltext_search_content SET c0 = 'another one'").unwrap();
        let found = facts(&path).unwrap();
        assert_eq!((found.warnings.len(), found.collections[0].records), (1, 2), "{found:?}");
        // An index that says something else than its table.
        db.execute_batch(
            "CREATE INDEX i ON embeddings (embedding_id); PRAGMA writable_schema = ON;
             UPDATE sqlite_schema SET sql = 'CREATE INDEX i ON embeddings (segment_id)' WHERE name = 'i';",
        )
        .unwrap();
        drop(db);
        assert!(matches!(facts(&path), Err(CopyError::Damaged(_))));
    }

    #[test]
    fn what_is_no_database_of_chroma_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASE);
        assert!(matches!(facts(&path), Err(CopyError::Missing(_))));
        assert!(!path.exists(), "nothing is created by looking");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(facts(&path), Err(CopyError::Empty)));
        std::fs::write(&path, "not a database at all, but long enough to be looked at".repeat(40)).unwrap();
        assert!(matches!(facts(&path), Err(CopyError::Sqlite(_))));
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
        assert!(matches!(facts(&path), Err(CopyError::NotChroma("collections"))));
    }
}
