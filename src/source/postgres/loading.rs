//! A dump on its way into a database. What could go wrong: commands for psql in an old dump, which would run on its host;
//! and a disk that gets full, on which the server itself could not go on. So no dump is read without `\restrict` where
//! psql knows it, and the load ends while there is still room.

use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::archive::compress::free_bytes;
use crate::docker::DockerError;
use crate::format::sqltext::{literal, name};
use crate::postgres::Server;
use crate::source::{Context, SourceError};

/// Room that a server needs to go on: four files of its log.
const RESERVE: u64 = 64 << 20;
const LOOK_AGAIN: Duration = Duration::from_millis(500);

pub struct Loading<'a> {
    context: &'a Context<'a>,
    pub server: &'a Server,
    /// A database to connect to that is not loaded.
    pub home: &'a str,
    /// The server's data directory, where its disk can be looked at.
    data: Option<PathBuf>,
    knows_restrict: bool,
}

impl<'a> Loading<'a> {
    pub fn new(
        context: &'a Context<'a>,
        server: &'a Server,
        home: &'a str,
        data: Option<PathBuf>,
    ) -> Result<Self, SourceError> {
        Ok(Self { context, server, home, data, knows_restrict: server.knows_restrict()? })
    }

    /// Loads a dump, as `owner` where it names none itself.
    pub fn load(
        &mut self,
        database: &str,
        dump: &mut dyn Read,
        restricted: bool,
        owner: Option<&str>,
    ) -> Result<(), SourceError> {
        let mut before = String::new();
        if self.knows_restrict && !restricted {
            before += &format!("\\restrict {}\n", super::target::short(&[database]));
        }
        if let Some(owner) = owner {
            before += &format!("SET SESSION AUTHORIZATION {};\n", name(owner));
        }
        let before = io::Cursor::new(before.into_bytes());
        let failed = |source| SourceError::Read { what: "the dump in the archive".into(), source };
        let mut looked = Instant::now();
        let mut watch = |moved: u64| {
            self.context.cancel.check()?;
            self.context.monitor.moved(moved);
            if moved > 0 && looked.elapsed() < LOOK_AGAIN {
                return Ok(());
            }
            looked = Instant::now();
            let Some(data) = &self.data else { return Ok(()) };
            match free_bytes(data) {
                Ok(free) if free < RESERVE => Err(SourceError::Place {
                    path: data.clone(),
                    source: io::Error::new(
                        io::ErrorKind::StorageFull,
                        "the server would have no room to go on",
                    ),
                }),
                _ => Ok(()),
            }
        };
        match self.knows_restrict {
            true => self.server.load(database, &mut before.chain(dump), failed, &mut watch),
            false => {
                let plain = Unrestricted { input: dump, held: Vec::new(), key: None, line_start: true };
                self.server.load(database, &mut before.chain(plain), failed, &mut watch)
            }
        }
    }
}

/// Rows of each of these tables, whose names are SQL.
pub fn counts<'n>(
    server: &Server,
    database: &str,
    tables: impl Iterator<Item = &'n String>,
) -> Result<Vec<(String, u64)>, DockerError> {
    // A name that is not UTF-8 was made readable, and cannot be asked for.
    let tables: Vec<&String> = tables.filter(|t| !t.contains("\\x")).collect();
    let count = |t: &&String| {
        format!(
            "SELECT CASE (SELECT relkind FROM pg_class WHERE oid = {}::regclass) \
             WHEN 'p' THEN (SELECT count(*) FROM {t}) ELSE (SELECT count(*) FROM ONLY {t}) END;\n",
            literal(t)
        )
    };
    let script: String =
        "SET row_security = off;\n".to_owned() + &tables.iter().map(count).collect::<String>();
    let answers = server.script(database, &script)?;
    let counted = answers.iter().map(|n| n.trim().parse().unwrap_or(u64::MAX));
    Ok(tables.into_iter().cloned().zip(counted.chain(std::iter::repeat(u64::MAX))).collect())
}

/// A dump without its `\restrict` and `\unrestrict`, for a psql that does not know them. A row may begin with the same
/// letters, so only the first one counts, and the line that has its key.
struct Unrestricted<R> {
    input: R,
    held: Vec<u8>,
    key: Option<Vec<u8>>,
    line_start: bool,
}

/// Longer than such a line ever is.
const LINE: usize = 256;

impl<R: Read> Unrestricted<R> {
    /// Whether the line that begins here is one of the two, as far as it is held.
    fn is_ours(&mut self) -> bool {
        let end = self.held.iter().position(|b| *b == b'\n').unwrap_or(self.held.len());
        let line = self.held[..end].trim_ascii_end();
        if let Some(key) = line.strip_prefix(b"\\restrict ") {
            let first = self.key.is_none();
            self.key.get_or_insert_with(|| key.to_vec());
            return first;
        }
        line.strip_prefix(b"\\unrestrict ").is_some_and(|key| self.key.as_deref() == Some(key))
    }
}

impl<R: Read> Read for Unrestricted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            while self.held.len() < LINE {
                let mut more = [0; 8192];
                match self.input.read(&mut more)? {
                    0 => break,
                    n => self.held.extend_from_slice(&more[..n]),
                }
            }
            if self.held.is_empty() {
                return Ok(0);
            }
            let end = self.held.iter().position(|b| *b == b'\n').map_or(self.held.len(), |at| at + 1);
            if self.line_start && self.is_ours() {
                self.held.drain(..end);
                continue;
            }
            let n = end.min(buf.len());
            buf[..n].copy_from_slice(&self.held[..n]);
            self.line_start = self.held[..n].ends_with(b"\n");
            self.held.drain(..n);
            return Ok(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_lines_of_the_dump_are_left_out() {
        let long = "x".repeat(20_000);
        let dump = format!(
            "--\n\\restrict k3y\n\nCOPY t FROM stdin;\n\\restrict no\n\\unrestrict no\n{long}\\unrestrict k3y\n\\.\n\\unrestrict k3y\n"
        );
        let wanted = dump.replacen("\\restrict k3y\n", "", 1);
        let wanted = wanted.strip_suffix("\\unrestrict k3y\n").unwrap();
        for step in [1, 7, 4096] {
            let mut reader =
                Unrestricted { input: dump.as_bytes(), held: Vec::new(), key: None, line_start: true };
            let mut found = Vec::new();
            let mut buffer = vec![0; step];
            loop {
                match reader.read(&mut buffer).unwrap() {
                    0 => break,
                    n => found.extend_from_slice(&buffer[..n]),
                }
            }
            assert_eq!(String::from_utf8(found).unwrap(), wanted);
        }
    }
}
