//! A PostgreSQL server in its container, asked and fed through its own psql. What could go wrong: a password in a list of
//! processes, so it travels by the environment of the one command; a name that is taken for a connection parameter; and
//! a session that goes on when whoever opened it is dead, so the sessions of a restore carry a name of their own.

mod settings;
mod swap;

use std::io::Read;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use settings::{SETTINGS_END, SETTINGS_QUERY, Settings};
pub use swap::{Databases, Pair, Prepared, Roles, beside};

use crate::change::ChangeError;
use crate::docker::{Container, Docker, DockerError, Exec, Limits};
use crate::format::sqltext::literal;
use crate::hint::chain;
use crate::run_journal::{Held, How};
use crate::secret::SecretRef;
use crate::vault::Vault;

/// Time for a question that reads no tables.
const ANSWER: Limits = Limits { total: Duration::from_secs(120), idle: Duration::from_secs(120) };
/// How long a server that is just starting is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A server that can be asked.
pub struct Server {
    docker: Docker,
    pub container: Container,
    pub user: String,
    env: Vec<(String, String)>,
    limits: Limits,
}

impl Server {
    pub fn new(
        docker: &Docker,
        container: Container,
        user: String,
        password: Option<String>,
        limits: Limits,
    ) -> Self {
        let mut env = vec![("PGCONNECT_TIMEOUT".to_owned(), "30".to_owned())];
        env.extend(password.map(|p| ("PGPASSWORD".to_owned(), p)));
        Self { docker: docker.clone(), container, user, env, limits }
    }

    /// The same, for sessions that are found again by `tag`, and that no setting of a database keeps from writing.
    pub fn tagged(mut self, tag: &str) -> Self {
        // Whatever is loaded becomes live in a later transaction, which is on the disk when it is reported.
        let options = "-c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0 \
                       -c synchronous_commit=off -c client_min_messages=warning";
        self.env.push(("PGAPPNAME".to_owned(), tag.to_owned()));
        self.env.push(("PGOPTIONS".to_owned(), options.to_owned()));
        self
    }

    /// Starts a program of the server, for its output.
    pub fn exec(&self, argv: &[&str]) -> Result<Exec<'_>, DockerError> {
        self.docker.exec(&self.container, None, &self.env, argv, self.limits)
    }

    fn psql<'b>(&'b self, target: &'b str, more: &[&'b str]) -> Vec<&'b str> {
        let mut argv = vec!["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "--no-password"];
        argv.extend(["--username", &self.user, "--dbname", target]);
        argv.extend(more);
        argv
    }

    /// Names as UTF-8, whatever the locale of the container says.
    fn env_of_answers(&self) -> Vec<(String, String)> {
        let mut env = self.env.clone();
        env.push(("PGCLIENTENCODING".to_owned(), "UTF8".to_owned()));
        env
    }

    /// Answers of a query, one per row.
    pub fn ask(&self, database: &str, query: &str) -> Result<Vec<String>, DockerError> {
        self.ask_within(database, query, self.limits)
    }

    fn ask_within(&self, database: &str, query: &str, limits: Limits) -> Result<Vec<String>, DockerError> {
        let target = conninfo(database);
        // Rows end with NUL: a name may hold a line break.
        let argv = self.psql(&target, &["-A", "-t", "-0", "-c", query]);
        let output = self.docker.run(&self.container, None, &self.env_of_answers(), &argv, limits)?.text();
        Ok(output.split('\0').filter(|r| !r.is_empty()).map(str::to_owned).collect())
    }

    /// Runs a script, which may hold passwords; its answers, one per row.
    pub fn script(&self, database: &str, script: &str) -> Result<Vec<String>, DockerError> {
        let target = conninfo(database);
        let argv = self.psql(&target, &["-A", "-t", "-0", "-v", "VERBOSITY=terse", "-f", "-"]);
        let mut rest = Some(script.as_bytes().to_vec());
        let mut next = |piece: &mut Vec<u8>| {
            piece.extend(rest.take().unwrap_or_default());
            Ok::<(), DockerError>(())
        };
        let limits = Limits { idle: self.limits.total, ..self.limits };
        let env = self.env_of_answers();
        let output =
            self.docker.feed(&self.container, &env, &argv, limits, &mut next, &mut || Ok(()))?.text();
        Ok(output.split('\0').filter(|r| !r.is_empty()).map(str::to_owned).collect())
    }

    /// Loads a dump; it stops at the first error. `watch`: see `Docker::feed`.
    pub fn load<E: From<DockerError>>(
        &self,
        database: &str,
        dump: &mut dyn Read,
        failed: impl Fn(std::io::Error) -> E,
        watch: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let target = conninfo(database);
        let argv = self.psql(&target, &["-o", "/dev/null", "-f", "-"]);
        let moved = std::cell::Cell::new(0);
        let mut next = |piece: &mut Vec<u8>| {
            piece.resize(256 << 10, 0);
            let n = loop {
                match dump.read(piece) {
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    other => break other.map_err(&failed)?,
                }
            };
            piece.truncate(n);
            moved.set(moved.get() + n as u64);
            Ok(())
        };
        // An index of a large table is built without a word.
        let limits = Limits { idle: self.limits.total, ..self.limits };
        let mut watch = || watch(moved.take());
        self.docker.feed(&self.container, &self.env, &argv, limits, &mut next, &mut watch)?;
        Ok(())
    }

    /// Databases that take connections, templates left out.
    pub fn databases(&self) -> Result<Vec<String>, DockerError> {
        let query =
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname";
        self.ask(&self.elsewhere(&[])?, query)
    }

    /// A database to connect to that is none of these: for what is done to databases.
    pub fn elsewhere(&self, not: &[&str]) -> Result<String, DockerError> {
        let mut last = None;
        // The maintenance database may have been dropped.
        for database in ["postgres", "template1", &self.user].into_iter().filter(|d| !not.contains(d)) {
            match self.ask_within(database, "SELECT 1", ANSWER) {
                Ok(_) => return Ok(database.to_owned()),
                Err(e @ DockerError::Exit { .. }) => last = last.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| DockerError::Exit {
            program: "psql".into(),
            container: self.container.name.clone(),
            status: None,
            stderr: "there is no database to connect to".into(),
        }))
    }

    /// `150018` for 15.18.
    pub fn version(&self, database: &str) -> Result<u32, DockerError> {
        let answer = self.ask_within(database, "SHOW server_version_num", ANSWER)?;
        Ok(answer.first().and_then(|v| v.trim().parse().ok()).unwrap_or(0))
    }

    /// Whether its psql knows the command that keeps a dump from giving commands to psql.
    pub fn knows_restrict(&self) -> Result<bool, DockerError> {
        let argv = ["psql", "--help=commands"];
        let help = self.docker.run(&self.container, None, &[], &argv, ANSWER)?;
        Ok(help.text().contains("\\restrict"))
    }

    /// Waits until the server that stays answers: the one that only initialises the data listens on no address.
    pub fn await_ready(&mut self, patience: Duration) -> Result<(), DockerError> {
        let until = Instant::now() + patience;
        let argv = ["pg_isready", "-q", "-h", "127.0.0.1"];
        let mut good = 0;
        loop {
            let found = self.docker.look(&self.container.id)?;
            let active = found.as_ref().is_some_and(Container::is_active);
            let state = found.as_ref().map_or("gone".to_owned(), |c| c.state.clone());
            if let Some(now) = found {
                self.container = now;
            }
            let answer = match active {
                true => self.docker.run(&self.container, None, &self.env, &argv, ANSWER).map(|_| ()),
                false => Err(DockerError::NotRunning { name: self.container.name.clone(), state }),
            };
            good = if answer.is_ok() { good + 1 } else { 0 };
            match answer {
                Ok(()) if good == 2 => return Ok(()),
                Err(e @ DockerError::Interrupted(_)) => return Err(e),
                Err(e) if !active || Instant::now() > until => return Err(e),
                _ => self.docker.rest(LOOK_AGAIN)?,
            }
        }
    }

    /// Ends the sessions that carry `tag`, and waits until none is left.
    fn end_tagged(&self, database: &str, tag: &str) -> Result<(), DockerError> {
        let query = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE application_name = {} AND pid <> pg_backend_pid()",
            literal(tag)
        );
        for _ in 0..50 {
            if self.ask_within(database, &query, ANSWER)?.is_empty() {
                return Ok(());
            }
            self.docker.rest(Duration::from_millis(100))?;
        }
        Ok(())
    }
}

/// Names a database so that nothing in its name is taken for another connection parameter.
pub fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// How a server is reached again, by whoever reads it in the journal. No password is in here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    pub container: Held,
    pub user: String,
    /// None: what the container's environment says.
    pub password: Option<SecretRef>,
    /// What the sessions of this restore are called.
    pub tag: String,
}

impl Access {
    pub fn new(container: &Container, user: &str, password: Option<SecretRef>, tag: String) -> Self {
        Self { container: container.to_held(How::Stop), user: user.to_owned(), password, tag }
    }

    /// The server, answering. A signal does not disturb what is done through it.
    pub fn reach(&self, engine: Option<&Docker>) -> Result<Server, ChangeError> {
        let name = &self.container.name;
        let away = |why: String| ChangeError::Away { container: name.clone(), why };
        let docker = engine.ok_or_else(|| away("there is no Docker engine".into()))?.undisturbed();
        let until = Instant::now() + PATIENCE;
        loop {
            let found = match docker.look(&self.container.id)? {
                Some(container) => Some(container),
                None => docker.successor(&self.container)?,
            };
            let container = found.ok_or_else(|| away("it is gone".into()))?;
            if !container.is_active() {
                return Err(away(format!("it is {}", container.state)));
            }
            let password = match &self.password {
                Some(reference) => Some(Vault::default().read(reference)?),
                None => container.env.get("POSTGRES_PASSWORD").filter(|p| !p.is_empty()).cloned(),
            };
            // Renaming and dropping waits for others, but reads no data.
            let server = Server::new(&docker, container, self.user.clone(), password, ANSWER);
            match server.elsewhere(&[]) {
                Ok(_) => return Ok(server),
                Err(e) if Instant::now() > until => return Err(away(chain(&e))),
                Err(_) => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_database_name_becomes_a_connection_parameter() {
        assert_eq!(conninfo("plain"), "dbname='plain'");
        assert_eq!(conninfo(r"a' host=evil \x"), r"dbname='a\' host=evil \\x'");
    }
}
