//! Whether the server can take what the backup has: asked before anything changes.

use std::collections::BTreeSet;

use super::PostgresTarget;
use crate::docker::DockerError;
use crate::docker::hold::InUse;
use crate::format::sqldump::DumpFacts;
use crate::format::sqltext::literal;
use crate::postgres::Server;
use crate::source::{Context, SourceError};

impl PostgresTarget<'_> {
    /// The server, in a container that runs.
    pub(super) fn reach<'b>(&self, context: &'b Context<'_>) -> Result<(InUse<'b>, Server), SourceError> {
        self.source.server(context).map_err(|e| match e {
            SourceError::Docker(DockerError::NotRunning { state, .. }) => self.not_running(&state),
            e => e,
        })
    }

    /// An error when the server does not answer, with a way out.
    pub(super) fn answering<T>(&self, answer: Result<T, DockerError>) -> Result<T, SourceError> {
        answer.map_err(|e| match e {
            DockerError::Exit { stderr, .. } => SourceError::hinted(
                self.what(),
                format!("it does not answer: {stderr}"),
                "mend it, or have it make a new data directory and load into that: --fresh",
            ),
            DockerError::NotRunning { state, .. } => self.not_running(&state),
            // It stopped while it was asked.
            DockerError::Refused { status: 409, .. } | DockerError::Cut { .. } => {
                self.not_running("restarting")
            }
            e => e.into(),
        })
    }

    pub(super) fn not_running(&self, state: &str) -> SourceError {
        let name = &self.container.name;
        let hint = match state {
            "paused" => format!("docker unpause {name}"),
            "restarting" => {
                "see why: docker logs --tail 50 ".to_owned()
                    + name
                    + "; or have it make a new data directory and load into that: --fresh"
            }
            _ => format!(
                "docker start {name}; or, if it does not start, have it make a new data directory and load into that: --fresh"
            ),
        };
        SourceError::hinted(self.what(), format!("the container is {state}"), hint)
    }

    /// Whether this server can take these dumps.
    pub(super) fn must_take(&self, server: &Server, dumps: &[DumpFacts]) -> Result<(), SourceError> {
        let home = self.answering(server.elsewhere(&[]))?;
        let wrong = |why: String, hint: &str| Err(SourceError::hinted(self.what(), why, hint));
        if server.ask(&home, "SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper")?.is_empty() {
            return wrong(
                format!("{} is no superuser, and only one can restore", server.user),
                "set user = of the source",
            );
        }
        let own = server.version(&home)? / 10_000;
        for version in dumps.iter().filter_map(|d| d.server.as_deref()) {
            let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
            if digits.parse::<u32>().is_ok_and(|then| then > own) {
                return wrong(
                    format!("the dump is of version {version}, and the server is of {own}"),
                    "start a server of that version, or a newer one",
                );
            }
        }
        let lacking = |query: &str, of: fn(&DumpFacts) -> &BTreeSet<String>| -> Result<String, SourceError> {
            let mut all: BTreeSet<&String> = dumps.iter().flat_map(of).collect();
            if !all.is_empty() {
                let there = server.ask(&home, query)?;
                all.retain(|n| !there.contains(n));
            }
            Ok(all.into_iter().cloned().collect::<Vec<_>>().join(", "))
        };
        // The image may be the very one that the dump came from: both are set up by hand, beside it.
        let unlike = |why: String, hint: &str| {
            Err(SourceError::Unlike { what: self.what(), why, hint: Some(hint.to_owned()) })
        };
        let extensions = lacking("SELECT name FROM pg_available_extensions", |d| &d.extensions)?;
        if !extensions.is_empty() {
            return unlike(
                format!("the image has no extension {extensions}, which the dump needs"),
                "start the server from an image that has it",
            );
        }
        let spaces = lacking("SELECT spcname FROM pg_tablespace", |d| &d.tablespaces)?;
        if !spaces.is_empty() {
            return unlike(
                format!("it has no tablespace {spaces}, which the dump needs"),
                "a server that has it takes this dump: CREATE TABLESPACE … LOCATION '…'",
            );
        }
        let names: Vec<String> = self.wanted.iter().map(|w| literal(&w.name)).collect();
        let names = names.join(", ");
        let query = format!(
            "SELECT 'a prepared transaction (' || gid || ')|end it: COMMIT PREPARED or ROLLBACK PREPARED'
               FROM pg_prepared_xacts WHERE database IN ({names})
             UNION ALL SELECT 'a logical replication slot (' || slot_name || ')|drop it: SELECT pg_drop_replication_slot(…)'
               FROM pg_replication_slots WHERE database IN ({names})
             UNION ALL SELECT 'a subscription (' || subname || ')|drop it: DROP SUBSCRIPTION'
               FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname IN ({names})"
        );
        if let Some((what, hint)) = server.ask(&home, &query)?.first().and_then(|one| one.rsplit_once('|')) {
            return wrong(format!("{what} keeps a database from being replaced"), hint);
        }
        Ok(())
    }
}
