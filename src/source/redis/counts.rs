//! Whether a server holds what a backup holds. What could go wrong: a server that came up without the data and looks well;
//! and clients that were faster than we: they may have added keys, so more is fine and less is not.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::format::rdb::{Checked, DbFacts};
use crate::target::Compared;

/// What a server says of itself, all of one moment.
#[derive(Debug, Default)]
pub struct Holdings {
    databases: BTreeMap<u32, DbFacts>,
    evicted: u64,
    /// Keys in the file that it read when it started, also those that it left out as expired. Known since Redis 7.
    read: Option<u64>,
    functions: Option<u64>,
}

impl Holdings {
    /// From the answer to `INFO all`.
    pub fn of(info: &BTreeMap<String, String>) -> Self {
        let number = |key: &str| info.get(key).and_then(|v| v.parse::<u64>().ok());
        let database = |(name, fields): (&String, &String)| {
            let field = |key: &str| {
                let of_key = |f: &str| f.strip_prefix(key)?.strip_prefix('=')?.parse().ok();
                fields.split(',').find_map(of_key)
            };
            let db = name.strip_prefix("db")?.parse().ok()?;
            Some((db, DbFacts { keys: field("keys")?, expires: field("expires")? }))
        };
        Self {
            databases: info.iter().filter_map(database).collect(),
            evicted: number("evicted_keys").unwrap_or(0),
            read: number("rdb_last_load_keys_loaded")
                .map(|loaded| loaded + number("rdb_last_load_keys_expired").unwrap_or(0)),
            functions: number("number_of_libraries"),
        }
    }

    pub fn keys(&self) -> u64 {
        self.databases.values().map(|d| d.keys).sum()
    }

    /// What the manifest says beside what the server has. Keys that expire may be gone.
    pub fn beside(&self, facts: &Map<String, Value>) -> Vec<Compared> {
        let mut compared = Vec::new();
        let databases = facts.get("databases").and_then(Value::as_object);
        if databases.is_some_and(Map::is_empty) {
            compared.push(Compared::exactly("keys", 0, self.keys()));
        }
        for (db, then) in databases.into_iter().flatten() {
            let number = |key: &str| then.get(key).and_then(Value::as_u64).unwrap_or(0);
            let now = db.parse().ok().and_then(|db: u32| self.databases.get(&db));
            let (keys, expires) = now.map_or((0, 0), |d| (d.keys, d.expires));
            let lasting = number("keys").saturating_sub(number("expires"));
            let found = keys.saturating_sub(expires);
            compared.push(Compared::exactly(format!("lasting keys of database {db}"), lasting, found));
            if number("expires") > 0 {
                let what = format!("keys of database {db} that expire");
                compared.push(Compared::at_most(what, number("expires"), expires));
            }
        }
        compared
    }

    /// Whether it is what the file holds. Keys that expire may be gone; warnings, or what is missing.
    pub fn against(&self, wanted: &Checked) -> Result<Vec<String>, String> {
        let now = self.keys();
        let Checked::Counted(wanted) = wanted else {
            return match now + self.evicted + self.read.unwrap_or(0) {
                0 => Err("it came up empty".into()),
                _ => Ok(vec![format!("the keys in the backup could not be counted; the server has {now}")]),
            };
        };
        let lasting = |d: &DbFacts| d.keys.saturating_sub(d.expires);
        let total: u64 = wanted.keys.values().map(|d| d.keys).sum();
        let mut missing = 0;
        let mut first = None;
        for (db, then) in &wanted.keys {
            let (then, now) = (lasting(then), self.databases.get(db).map_or(0, lasting));
            if now < then {
                missing += then - now;
                first.get_or_insert_with(|| {
                    format!("database {db} has {now} keys that do not expire, and the backup has {then}")
                });
            }
        }
        if total > 0 && now == 0 && self.evicted == 0 && (missing > 0 || self.read == Some(0)) {
            return Err(format!("it came up empty, and the backup has {total} keys"));
        }
        if let Some(functions) = self.functions.filter(|n| *n < wanted.functions) {
            return Err(format!(
                "it has {functions} libraries of functions, and the backup has {}",
                wanted.functions
            ));
        }
        match first {
            _ if self.evicted > 0 && missing <= self.evicted => Ok(vec![format!(
                "its maxmemory is too small for the backup: it has evicted {} keys since it started",
                self.evicted
            )]),
            None => Ok(Vec::new()),
            Some(_) if self.read.is_some_and(|read| read >= total) => Ok(vec![format!(
                "the server read all {total} keys, and {missing} of them are gone since: something works with it already"
            )]),
            Some(why) => Err(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::rdb::{Checksum, RdbError, RdbFacts};

    fn backup(databases: &[(u32, u64, u64)], functions: u64) -> Checked {
        Checked::Counted(RdbFacts {
            version: 10,
            redis_version: None,
            keys: databases
                .iter()
                .map(|(db, keys, expires)| (*db, DbFacts { keys: *keys, expires: *expires }))
                .collect(),
            functions,
            bytes: 0,
            checksum: Checksum::Verified,
        })
    }

    fn says(lines: &[(&str, &str)]) -> Holdings {
        Holdings::of(&lines.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn keys_that_do_not_expire_must_be_there_and_others_may_be_gone() {
        let wanted = backup(&[(0, 10, 4), (5, 3, 0)], 0);
        let is = |db0: &str, db5: &str| says(&[("db0", db0), ("db5", db5)]).against(&wanted);
        assert_eq!(is("keys=10,expires=4,avg_ttl=1", "keys=3,expires=0"), Ok(vec![]));
        assert_eq!(is("keys=6,expires=0", "keys=3,expires=0"), Ok(vec![]), "those that expire are gone");
        assert_eq!(is("keys=99,expires=9", "keys=4,expires=0"), Ok(vec![]), "clients added some");
        assert!(is("keys=9,expires=4", "keys=3,expires=0").unwrap_err().contains("database 0 has 5 keys"));
        assert!(is("keys=10,expires=4", "keys=2,expires=0").unwrap_err().contains("database 5"));
        assert!(says(&[]).against(&wanted).unwrap_err().contains("came up empty"));
    }

    #[test]
    fn keys_that_were_read_and_then_deleted_or_evicted_are_a_warning() {
        let wanted = backup(&[(0, 10, 0)], 0);
        let with = |more: (&str, &str)| {
            says(&[("db0", "keys=7,expires=0"), more]).against(&wanted).map(|w| w.join(" "))
        };
        assert!(with(("evicted_keys", "3")).unwrap().contains("maxmemory"));
        assert!(with(("evicted_keys", "2")).is_err());
        assert!(with(("rdb_last_load_keys_loaded", "10")).unwrap().contains("3 of them are gone"));
        assert!(with(("rdb_last_load_keys_loaded", "9")).is_err());
        let emptied = says(&[("rdb_last_load_keys_loaded", "10")]).against(&wanted);
        assert!(emptied.is_err(), "nothing of it is there");
    }

    #[test]
    fn an_empty_server_is_good_only_where_everything_may_have_expired() {
        let cache = backup(&[(0, 10, 10)], 0);
        assert_eq!(says(&[]).against(&cache), Ok(vec![]));
        let read = |n: &str| says(&[("rdb_last_load_keys_loaded", "0"), ("rdb_last_load_keys_expired", n)]);
        assert_eq!(read("10").against(&cache), Ok(vec![]));
        assert!(read("0").against(&cache).is_err(), "it read nothing at all");
        assert_eq!(read("0").against(&backup(&[], 0)), Ok(vec![]));
        let opaque = Checked::Opaque { version: 99, bytes: 500, why: RdbError::NotRdb };
        assert!(says(&[]).against(&opaque).is_err());
        assert!(says(&[("db0", "keys=1,expires=0")]).against(&opaque).unwrap()[0].contains("has 1"));
    }

    #[test]
    fn an_empty_backup_is_counted_and_one_without_numbers_is_not() {
        let facts = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let empty = says(&[]).beside(&facts(r#"{"databases": {}}"#));
        assert_eq!(empty, [Compared::exactly("keys", 0, 0)]);
        assert!(!says(&[("db3", "keys=1,expires=0")]).beside(&facts(r#"{"databases": {}}"#))[0].equal);
        assert_eq!(says(&[("db0", "keys=1,expires=0")]).beside(&facts("{}")), []);
    }

    #[test]
    fn functions_must_be_there() {
        let wanted = backup(&[], 1);
        assert!(says(&[("number_of_libraries", "0")]).against(&wanted).is_err());
        assert_eq!(says(&[("number_of_libraries", "1")]).against(&wanted), Ok(vec![]));
        assert_eq!(says(&[]).against(&wanted), Ok(vec![]), "older servers do not say");
    }
}
