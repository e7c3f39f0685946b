//! Databases put in place of others, so that it can be taken back. What could go wrong: half of them, a session that comes
//! in between, or a request of somebody dead that is still on its way. So all names change in one transaction while another
//! session ends whoever is connected; each database is known by its number, whatever it is called by now; and whoever
//! undoes first ends the sessions of the dead, and goes on until nothing of theirs is left.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Access, Server};
use crate::change::ChangeError;
use crate::docker::{Docker, DockerError};
use crate::format::sqltext::{literal, name};

/// One database: what it is called, and what was made beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub name: String,
    /// What the new one is called until it is live.
    pub new: String,
    /// What the old one is called then.
    pub old: String,
    pub new_oid: u32,
    /// None where there was no such database.
    pub old_oid: Option<u32>,
}

/// What is done to roles.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Made by us, because they were not there.
    pub created: Vec<String>,
    /// Memberships that were not there: role, member.
    pub granted: Vec<(String, String)>,
    /// Statements that give roles what the backup has, and those that take it back. They hold hashes of passwords.
    pub overwrite: Vec<String>,
    pub back: Vec<String>,
}

impl std::fmt::Debug for Roles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roles").field("created", &self.created).finish_non_exhaustive()
    }
}

impl Roles {
    /// Takes back what was made before the databases were exchanged. What others use by now stays.
    fn undo(&self, server: &Server, database: &str) -> Result<(), DockerError> {
        let revoked =
            self.granted.iter().map(|(role, member)| format!("REVOKE {} FROM {}", name(role), name(member)));
        let dropped = self.created.iter().map(|role| format!("DROP ROLE IF EXISTS {}", name(role)));
        for statement in revoked.chain(dropped) {
            match server.ask(database, &statement) {
                Ok(_) | Err(DockerError::Exit { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Databases and roles that are going to be made, of no use without us.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub access: Access,
    pub databases: Vec<String>,
    pub roles: Roles,
}

impl Prepared {
    pub fn remove(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        let server = self.access.reach(engine)?;
        let database = server.elsewhere(&[])?;
        for round in 0..2 {
            if round > 0 {
                // Whoever made them may have died with a request on its way.
                std::thread::sleep(Duration::from_secs(1));
            }
            server.end_tagged(&database, &self.access.tag)?;
            for name in &self.databases {
                drop_database(&server, &database, name)?;
            }
        }
        Ok(self.roles.undo(&server, &database)?)
    }
}

impl std::fmt::Display for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "databases {} in {}", self.databases.join(", "), self.access.container.name)
    }
}

/// Databases that take the place of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Databases {
    pub access: Access,
    pub pairs: Vec<Pair>,
    pub roles: Roles,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Forth,
    Back,
}

/// How often names are exchanged when somebody is in the way.
const TRIES: u32 = 3;
/// How long others are kept out, in rounds of 50 ms. The server waits 5 s for them to go.
const ROUNDS: u32 = 140;

impl Databases {
    fn reach(&self, engine: Option<&Docker>) -> Result<(Server, String), ChangeError> {
        let server = self.access.reach(engine)?.tagged(&self.access.tag);
        let ours: Vec<&str> =
            self.pairs.iter().flat_map(|p| [p.name.as_str(), p.new.as_str(), p.old.as_str()]).collect();
        let database = server.elsewhere(&ours)?;
        Ok((server, database))
    }

    /// What the databases with our numbers are called now.
    fn names(&self, server: &Server, database: &str) -> Result<BTreeMap<u32, String>, DockerError> {
        let oids: Vec<String> = self
            .pairs
            .iter()
            .flat_map(|p| [Some(p.new_oid), p.old_oid])
            .flatten()
            .map(|o| o.to_string())
            .collect();
        let query =
            format!("SELECT oid || ' ' || datname FROM pg_database WHERE oid IN ({})", oids.join(", "));
        let rows = server.ask(database, &query)?;
        Ok(rows
            .iter()
            .filter_map(|r| r.split_once(' '))
            .filter_map(|(o, n)| Some((o.parse().ok()?, n.to_owned())))
            .collect())
    }

    fn is_live(&self, names: &BTreeMap<u32, String>) -> bool {
        self.pairs.iter().any(|p| names.get(&p.new_oid) == Some(&p.name))
    }

    /// Whether the new databases are those that clients get.
    pub fn went_live(&self, engine: Option<&Docker>) -> Result<bool, ChangeError> {
        let (server, database) = self.reach(engine)?;
        let names = self.names(&server, &database)?;
        Ok(self.pairs.iter().all(|p| names.get(&p.new_oid) == Some(&p.name)))
    }

    pub fn apply(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        let (server, database) = self.reach(engine)?;
        self.exchange(&server, &database, Way::Forth)
    }

    /// All names in one transaction, and the roles with them.
    fn exchange(&self, server: &Server, database: &str, way: Way) -> Result<(), ChangeError> {
        let rename =
            |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {};\n", name(from), name(to));
        // On the disk before anybody says that it is done.
        let mut script = String::from("SET synchronous_commit = on;\nBEGIN;\n");
        for p in &self.pairs {
            let old = p.old_oid.is_some();
            script += &match way {
                Way::Forth if old => rename(&p.name, &p.old) + &rename(&p.new, &p.name),
                Way::Forth => rename(&p.new, &p.name),
                Way::Back if old => rename(&p.name, &p.new) + &rename(&p.old, &p.name),
                Way::Back => rename(&p.name, &p.new),
            };
        }
        for statement in if way == Way::Forth { &self.roles.overwrite } else { &self.roles.back } {
            script += &format!("{statement}\n");
        }
        script += "COMMIT;\n";
        for left in (0..TRIES).rev() {
            let guard = self.keep_out(way);
            let target = super::conninfo(database);
            let argv = [
                "psql",
                "-X",
                "-q",
                "--no-password",
                "--username",
                &server.user,
                "--dbname",
                &target,
                "-c",
                &guard,
            ];
            // It runs in the container whether we listen or not.
            let mut guard = server.exec(&argv)?;
            let outcome = server.script(database, &script);
            if outcome.is_ok() {
                while let Ok(Some(_)) = guard.next_chunk() {}
                return Ok(());
            }
            drop(guard);
            server.end_tagged(database, &self.access.tag)?;
            let done = self.is_live(&self.names(server, database)?) == (way == Way::Forth);
            match outcome {
                Err(_) if done => return Ok(()),
                Err(DockerError::Exit { .. }) if left > 0 => {}
                other => return Ok(other.map(|_| ())?),
            }
        }
        Ok(())
    }

    /// A statement that ends the sessions of the databases that are live, again and again, until they are it no more.
    fn keep_out(&self, way: Way) -> String {
        let live = |p: &Pair| if way == Way::Forth { p.old_oid } else { Some(p.new_oid) };
        let oids: Vec<String> = self.pairs.iter().filter_map(live).map(|o| o.to_string()).collect();
        let first = self.pairs.first().map_or((0, String::new()), |p| (p.new_oid, p.name.clone()));
        let body = format!(
            "BEGIN FOR i IN 1..{ROUNDS} LOOP \
               EXIT WHEN EXISTS (SELECT FROM pg_database WHERE oid = {} AND datname = {}) = {}; \
               PERFORM pg_stat_clear_snapshot(); \
               PERFORM pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datid = ANY ('{{{}}}'::oid[]) AND pid <> pg_backend_pid(); \
               PERFORM pg_sleep(0.05); \
             END LOOP; END",
            first.0,
            literal(&first.1),
            way == Way::Forth,
            oids.join(",")
        );
        format!("DO {}", literal(&body))
    }

    pub fn undo(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        let (server, database) = self.reach(engine)?;
        loop {
            server.end_tagged(&database, &self.access.tag)?;
            let names = self.names(&server, &database)?;
            if self.is_live(&names) {
                self.exchange(&server, &database, Way::Back)?;
                continue;
            }
            // Under another name it was kept for a person, by somebody who was killed before he could say so.
            let is_ours = |p: &&Pair| names.get(&p.new_oid) == Some(&p.new);
            let left: Vec<&Pair> = self.pairs.iter().filter(is_ours).collect();
            if left.is_empty() {
                break;
            }
            for pair in left {
                drop_database(&server, &database, &pair.new)?;
            }
        }
        Ok(self.roles.undo(&server, &database)?)
    }

    pub fn finish(&self, engine: Option<&Docker>) -> Result<(), ChangeError> {
        let (server, database) = self.reach(engine)?;
        let names = self.names(&server, &database)?;
        for p in &self.pairs {
            let is_old = p.old_oid.and_then(|o| names.get(&o)) == Some(&p.old);
            if is_old && names.get(&p.new_oid) == Some(&p.name) {
                drop_database(&server, &database, &p.old)?;
            }
        }
        Ok(())
    }

    /// See `Change::keep_failed`: None when the new databases are live.
    pub fn keep_new(&self, id: &str, engine: Option<&Docker>) -> Result<Option<String>, ChangeError> {
        let (server, database) = self.reach(engine)?;
        server.end_tagged(&database, &self.access.tag)?;
        let names = self.names(&server, &database)?;
        if self.is_live(&names) {
            return Ok(None);
        }
        let suffix = format!("_restored_{}", id.trim_start_matches("tars-backup-"));
        let mut kept = Vec::new();
        for p in &self.pairs {
            match names.get(&p.new_oid) {
                Some(now) if *now == p.new => {
                    kept.push(rename_beside(&server, &database, now, &p.name, &suffix)?)
                }
                // Called again after a kill, it finds that it was done.
                Some(now) => kept.push(now.clone()),
                None => {}
            }
        }
        Ok(Some(self.told(&kept)))
    }

    fn told(&self, databases: &[String]) -> String {
        let word = if databases.len() == 1 { "the database" } else { "the databases" };
        format!("{word} {} of {}", databases.join(", "), self.access.container.name)
    }

    /// See `Change::keep`.
    pub fn keep(&self, id: &str, engine: Option<&Docker>) -> Result<Option<String>, ChangeError> {
        let (server, database) = self.reach(engine)?;
        let names = self.names(&server, &database)?;
        let suffix = format!("_before_{}", id.trim_start_matches("tars-backup-"));
        let mut kept = Vec::new();
        for p in &self.pairs {
            let Some(now) = p.old_oid.and_then(|o| names.get(&o)) else { continue };
            if *now == p.old {
                kept.push(rename_beside(&server, &database, now, &p.name, &suffix)?);
            } else if *now != p.name {
                kept.push(now.clone());
            }
        }
        Ok((!kept.is_empty()).then(|| self.told(&kept)))
    }
}

/// Gives the database `now` a name that begins with `name` and goes on with `suffix`: the name that it has then.
fn rename_beside(
    server: &Server,
    from: &str,
    now: &str,
    called: &str,
    suffix: &str,
) -> Result<String, DockerError> {
    let taken = server.ask(from, "SELECT datname FROM pg_database")?;
    let to = free_beside(called, suffix, &taken);
    server.ask(from, &format!("ALTER DATABASE {} RENAME TO {}", name(now), name(&to)))?;
    Ok(to)
}

/// The same backup may have been restored before, and what was kept then is there still: a number tells them apart.
fn free_beside(name: &str, suffix: &str, taken: &[String]) -> String {
    let (mut to, mut number) = (beside(name, suffix), 1);
    while taken.contains(&to) {
        number += 1;
        to = beside(name, &format!("{suffix}.{number}"));
    }
    to
}

/// A name that begins with `name`, ends with `suffix` and is not too long for a database.
pub fn beside(name: &str, suffix: &str) -> String {
    let room = 63usize.saturating_sub(suffix.len());
    format!("{}{suffix}", &name[..name.floor_char_boundary(room.min(name.len()))])
}

/// What is not there is fine.
fn drop_database(server: &Server, from: &str, database: &str) -> Result<(), DockerError> {
    let force = if server.version(from)? >= 130_000 { " WITH (FORCE)" } else { "" };
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()",
        literal(database)
    );
    let statement = format!("DROP DATABASE IF EXISTS {}{force}", name(database));
    for left in (0..5).rev() {
        server.ask(from, &end)?;
        match server.ask(from, &statement) {
            Err(DockerError::Exit { .. }) if left > 0 => std::thread::sleep(Duration::from_millis(500)),
            other => return other.map(|_| ()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_fit_and_keep_their_end() {
        assert_eq!(beside("app", "__tars_new_1"), "app__tars_new_1");
        let long = beside(&"é".repeat(31), "__tars_new_12345678");
        assert!(long.len() <= 63 && long.ends_with("__tars_new_12345678"), "{long}");
        assert_eq!(long.chars().filter(|c| *c == 'é').count(), 22);
    }

    #[test]
    fn a_name_beside_that_is_taken_gets_a_number() {
        let mut taken = vec!["app".to_owned()];
        for wanted in ["app_before_1", "app_before_1.2", "app_before_1.3"] {
            taken.push(free_beside("app", "_before_1", &taken));
            assert_eq!(taken.last().map(String::as_str), Some(wanted));
        }
        // Two that differ only where there is no room for it.
        let long = ["a".repeat(60) + "b", "a".repeat(60) + "c"];
        let mut taken = Vec::new();
        for name in &long {
            taken.push(free_beside(name, "_before_1", &taken));
        }
        assert!(taken[0] != taken[1] && taken.iter().all(|t| t.len() <= 63), "{taken:?}");
    }
}
