//! PostgreSQL through the server's own pg_dump, in its container: dump of each database, roles, and the settings that
//! neither holds. What could go wrong: half a dump with a good end of stream, so a dump counts only when pg_dump ended
//! with 0, its closing comment is there, and its rows were counted in the very stream that was stored.

mod loading;
mod target;

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, Source, SourceError, Uses, container_facts, quote,
    selector,
};
use crate::archive::compress::Staged;
use crate::archive::layout::cat;
use crate::config::Section;
use crate::docker::hold::InUse;
use crate::docker::{Container, DockerError, Image, Limits, Selector, Throwaway};
use crate::format::sqldump::{DumpFacts, DumpKind, DumpScanner};
use crate::hint::chain;
use crate::id::{Name, encode};
use crate::manifest::Component;
use crate::postgres::{SETTINGS_END, SETTINGS_QUERY, Server, conninfo};
use crate::secret::SecretRef;
use crate::staging::Stage;
use crate::target::Target;

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Server(throwaway),
};

struct Postgres {
    name: Name,
    selector: Selector,
    databases: Vec<String>,
    user: Option<String>,
    password: Option<SecretRef>,
    globals: bool,
    limits: Limits,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    Box::new(Postgres {
        name: name.clone(),
        selector: selector(name, s),
        databases: s.texts(
            "databases",
            "Databases to dump, the main one first; default: all that take connections and are no templates",
        ),
        user: s
            .text("user", "Superuser of the server; default: POSTGRES_USER of the container, else postgres"),
        password: s.secret("password", "Its password, where the server asks for one on its own socket"),
        globals: s.flag(
            "globals",
            true,
            "Also dump roles and tablespaces, for which the user must be a superuser",
        ),
        limits,
    })
}

/// An empty cluster of the same superuser: the image makes it when it starts for the first time.
fn throwaway(component: &Component, image: &Image) -> Throwaway {
    let user = component.facts.get("user").and_then(Value::as_str).unwrap_or("postgres");
    let data = image.env.iter().find(|(key, _)| key == "PGDATA").map(|(_, path)| path.as_str());
    let data = data.unwrap_or("/var/lib/postgresql/data");
    let env = [
        ("POSTGRES_USER", user.to_owned()),
        // The database of its name would be one that the backup need not have.
        ("POSTGRES_DB", "postgres".to_owned()),
        ("POSTGRES_PASSWORD", target::short(&["drill", user])),
    ];
    Throwaway {
        volumes: image.volumes_with(&[data]),
        env: env.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        ..Throwaway::default()
    }
}

impl Postgres {
    fn user(&self, container: &Container) -> String {
        let from_env = container.env.get("POSTGRES_USER").filter(|v| !v.is_empty());
        self.user.clone().or_else(|| from_env.cloned()).unwrap_or_else(|| "postgres".into())
    }

    /// The server in its container, which nobody holds while the first part of the result lives.
    fn server<'a>(&self, context: &'a Context<'_>) -> Result<(InUse<'a>, Server), SourceError> {
        let (in_use, container) = context.running(&self.selector)?;
        Ok((in_use, self.server_in(context, container)?))
    }

    fn server_in(&self, context: &Context<'_>, container: Container) -> Result<Server, SourceError> {
        let user = self.user(&container);
        let password = match &self.password {
            Some(reference) => Some(context.vault.read(reference)?),
            None => container.env.get("POSTGRES_PASSWORD").filter(|v| !v.is_empty()).cloned(),
        };
        if let Some(password) = &password {
            let names = [self.name.as_str(), &container.name, &user, &container.image];
            context.vault.learn_unless_name("the password of the PostgreSQL user", password, &names);
        }
        Ok(Server::new(context.docker()?, container, user, password, self.limits))
    }

    /// Databases to dump, the main one first.
    fn choose(&self, server: &Server) -> Result<Vec<String>, SourceError> {
        let present = server.databases()?;
        if self.databases.is_empty() {
            let main = ["POSTGRES_DB", "POSTGRES_USER"]
                .iter()
                .find_map(|k| server.container.env.get(*k).filter(|v| present.contains(v)).cloned());
            let mut chosen: Vec<String> = main.into_iter().collect();
            for database in present {
                if !chosen.contains(&database) {
                    chosen.push(database);
                }
            }
            return Ok(chosen);
        }
        match self.databases.iter().find(|d| !present.contains(d)) {
            None => Ok(self.databases.clone()),
            Some(missing) => Err(SourceError::hinted(
                format!("database {missing:?}"),
                "the server has no such database that takes connections",
                format!("it has: {}", present.join(", ")),
            )),
        }
    }

    /// Name of the files of the database at `index`, before `.sql`.
    fn base(&self, index: usize, database: &str) -> String {
        if index == 0 {
            return self.name.to_string();
        }
        let mut encoded = encode(database);
        // `<source>-globals.sql` is the name of something else.
        if encoded == "globals" {
            encoded = "%67lobals".to_owned();
        }
        format!("{}-{encoded}", self.name)
    }

    fn globals_member(&self) -> String {
        format!("{}-globals.sql", self.name)
    }
}

impl Source for Postgres {
    fn needs_docker(&self) -> bool {
        true
    }

    fn uses(&self) -> Uses<'_> {
        Uses { container: Some(&self.selector), ..Uses::default() }
    }

    fn method(&self) -> String {
        let which =
            if self.databases.is_empty() { "all databases".into() } else { self.databases.join(", ") };
        format!(
            "pg_dump of {which} in the container {}",
            self.selector.container.as_ref().unwrap_or(&self.selector.service)
        )
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let (_in_use, server) = self.server(context)?;
        let mut bytes = 0u64;
        for database in self.choose(&server)? {
            let answer = server.ask(&database, "SELECT pg_database_size(current_database())")?;
            bytes += answer.first().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Some(bytes))
    }

    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        component: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        let container = context.docker()?.find(&self.selector).map_err(|e| match e {
            DockerError::NoContainer { .. } => SourceError::hinted(
                "PostgreSQL",
                chain(&e),
                "make it from the directory of the Compose file: docker compose up --no-start; then again",
            ),
            e => e.into(),
        })?;
        Ok(Some(Box::new(target::PostgresTarget::new(self, container, component))))
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let (_in_use, server) = self.server(context)?;
        let databases = self.choose(&server)?;
        let mut capture = Capture { consistency: "dump", ..Capture::default() };
        container_facts(&mut capture.facts, context, &server.container);
        let main = databases.first().map_or("postgres", String::as_str);
        let version = server.ask(main, "SHOW server_version")?;
        capture.facts.insert("server_version".into(), json!(version.first()));
        if let Ok(at) = context.docker()?.place(&server.container, "/var/lib/postgresql/data") {
            capture.volumes.extend(at.volume().map(str::to_owned));
        }

        if self.globals {
            let member = self.globals_member();
            let argv = ["pg_dumpall", "--globals-only", "--no-password", "--username", &server.user];
            let (staged, _) = dump(&server, context, stage, &member, &argv, DumpKind::Cluster)?;
            capture.staged.push(staged);
        }
        let mut facts = Map::new();
        for (index, database) in databases.iter().enumerate() {
            let base = self.base(index, database);
            let settings = format!("{base}.settings.sql");
            capture.staged.push(write_settings(&server, stage, &settings, database)?);
            let member = format!("{base}.sql");
            let target = conninfo(database);
            let argv = ["pg_dump", "--no-password", "--username", &server.user, "--dbname", &target];
            let (staged, found) = dump(&server, context, stage, &member, &argv, DumpKind::Database)?;
            facts.insert(
                database.clone(),
                json!({
                    "member": member, "settings": settings, "rows": found.rows,
                    "large_objects": found.large_objects, "bytes": found.bytes,
                }),
            );
            capture.files += 1;
            capture.staged.push(staged);
        }
        capture.facts.insert("databases".into(), Value::Object(facts));
        capture.facts.insert("main_database".into(), json!(main));
        capture.facts.insert("user".into(), json!(server.user));
        capture.bytes_in = capture.staged.iter().map(|s| s.bytes_in).sum();
        Ok(capture)
    }
}

fn dump(
    server: &Server,
    context: &Context<'_>,
    stage: &Stage<'_>,
    member: &str,
    argv: &[&str],
    kind: DumpKind,
) -> Result<(Staged, DumpFacts), SourceError> {
    let mut out = stage.compressed(member)?;
    let mut scanner = DumpScanner::new(kind);
    let mut exec = server.exec(argv)?;
    while let Some(chunk) = exec.next_chunk()? {
        scanner.feed(&chunk);
        out.write_all(&chunk).map_err(SourceError::write(member))?;
        context.monitor.moved(chunk.len() as u64);
    }
    exec.finish()?;
    let facts = scanner.finish().map_err(|e| {
        let hint = format!("look at the server: docker logs --tail 50 {}", server.container.name);
        SourceError::hinted(member, e.to_string(), hint)
    })?;
    let staged = out.finish().map_err(SourceError::write(member))?;
    Ok((staged, facts))
}

/// What `pg_dump` and `pg_dumpall --globals-only` both leave out: how the database is created, its owner, rights,
/// comment, limit and settings.
fn write_settings(
    server: &Server,
    stage: &Stage<'_>,
    member: &str,
    database: &str,
) -> Result<Staged, SourceError> {
    let text = format!(
        "-- Settings of the database {}. Run it in the database \"postgres\" as a superuser,\n\
         -- after the roles and before the dump is loaded.\n{}",
        database.replace(['\n', '\r'], " "),
        settings_of(server, database)?,
    );
    let mut out = stage.compressed(member)?;
    out.write_all(text.as_bytes()).map_err(SourceError::write(member))?;
    out.finish().map_err(SourceError::write(member))
}

/// The settings of a database of the server, as a script.
fn settings_of(server: &Server, database: &str) -> Result<String, SourceError> {
    let mut text = String::new();
    for line in server.ask(database, SETTINGS_QUERY)? {
        text.push_str(&line);
        text.push('\n');
    }
    text.push_str(SETTINGS_END);
    text.push('\n');
    Ok(text)
}

/// Facts of the database whose dump `member` is.
fn database_of<'a>(component: &'a Component, member: &str) -> Option<&'a Value> {
    let databases = component.facts.get("databases")?.as_object()?;
    databases.values().find(|d| d.get("member").and_then(Value::as_str) == Some(member))
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    if member.name.ends_with(".settings.sql") {
        let mut text = String::new();
        member.body.read_to_string(&mut text).map_err(CheckError::Read)?;
        return match text.lines().last() {
            Some(SETTINGS_END) => Ok(()),
            _ => Err(CheckError::Bad("its closing line is missing".into())),
        };
    }
    let database = database_of(member.component, member.name);
    // Nothing is known of a dump that the bash script made, but that it is one of a database.
    let unknown = member.component.facts.is_empty();
    let kind = if database.is_some() || unknown { DumpKind::Database } else { DumpKind::Cluster };
    let mut scanner = DumpScanner::new(kind);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match member.body.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => scanner.feed(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(CheckError::Read(e)),
        }
    }
    let found = scanner.finish().map_err(|e| CheckError::Bad(e.to_string()))?;
    let Some(wanted) = database else { return Ok(()) };
    let rows: BTreeMap<String, u64> =
        wanted.get("rows").cloned().and_then(|r| serde_json::from_value(r).ok()).unwrap_or_default();
    if rows != found.rows {
        return Err(CheckError::Bad("its rows per table are not those of the manifest".into()));
    }
    if wanted.get("large_objects").and_then(Value::as_u64) != Some(found.large_objects) {
        return Err(CheckError::Bad("its large objects are not those of the manifest".into()));
    }
    Ok(())
}

fn restore(name: &str, component: &Component) -> String {
    let fact = |key: &str| component.facts.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let container = fact("container");
    let user = fact("user");
    let psql = format!("docker exec -i {} psql -X -v ON_ERROR_STOP=1 -U {}", quote(&container), quote(&user));
    let stored = |base: &str| {
        component.members.iter().find(|m| m.starts_with(base) && !m[base.len()..].contains("sql"))
    };
    let mut text = format!(
        "PostgreSQL {} (image `{}`). Into an empty cluster: start the container with a new, empty data volume, then\n\n```\nset -o pipefail\n",
        fact("server_version"),
        fact("image"),
    );
    if let Some(globals) = stored(&format!("{name}-globals.sql")) {
        text.push_str(&format!(
            "# roles; \"already exists\" for {user} is harmless, so this one line goes on after errors\n{} | docker exec -i {} psql -X -U {} -d postgres\n",
            cat(globals),
            quote(&container),
            quote(&user)
        ));
    }
    let databases = component.facts.get("databases").and_then(Value::as_object).cloned().unwrap_or_default();
    for (database, facts) in &databases {
        let member = |key: &str| facts.get(key).and_then(Value::as_str).and_then(stored);
        let (Some(settings), Some(dump)) = (member("settings"), member("member")) else { continue };
        text.push_str(&format!("{} | {psql} -d postgres\n", cat(settings)));
        text.push_str(&format!("{} | {psql} -d {}\n", cat(dump), quote(&conninfo(database))));
    }
    text.push_str(
        "```\n\nNothing here drops anything: a table that exists already stops the load with an error. If the image has \
         made an empty database with another encoding or collation than the settings file says, drop it first \
         (`dropdb`).\n\nA dump ends with a line that says it is complete; rows per table stand in `manifest.json`.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_named_globals_does_not_take_the_place_of_the_roles() {
        let survey = Section::blank("sources.pg");
        let name: Name = "pg".parse().unwrap();
        let limits =
            Limits { total: std::time::Duration::from_secs(1), idle: std::time::Duration::from_secs(1) };
        drop(read(&name, &survey.0, limits));
        let p = Postgres {
            name,
            selector: Selector { container: None, service: "pg".into() },
            databases: vec![],
            user: None,
            password: None,
            globals: true,
            limits,
        };
        assert_ne!(format!("{}.sql", p.base(1, "globals")), p.globals_member());
        assert_eq!(p.base(0, "anything"), "pg");
    }
}
