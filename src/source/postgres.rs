//! PostgreSQL through the server's own pg_dump, in its container: dump of each database, roles, and the settings that
//! neither holds. What could go wrong: half a dump with a good end of stream, so a dump counts only when pg_dump ended
//! with 0, its closing comment is there, and its rows were counted in the very stream that was stored.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Source, SourceError, container_facts, quote, selector,
};
use crate::archive::compress::Staged;
use crate::archive::layout::cat;
use crate::config::Section;
use crate::docker::hold::InUse;
use crate::docker::{Container, Docker, DockerError, Limits, Selector};
use crate::format::sqldump::{DumpFacts, DumpKind, DumpScanner};
use crate::id::{Name, encode};
use crate::manifest::Component;
use crate::secret::SecretRef;
use crate::staging::Stage;

pub const KIND: Kind = Kind { critical: true, on_by_default: true, read, check, restore };

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

/// A server that can be asked.
struct Server<'a> {
    docker: &'a Docker,
    _in_use: InUse<'a>,
    container: Container,
    user: String,
    env: Vec<(String, String)>,
    limits: Limits,
}

/// Closing line of a settings file: without it the file is not whole.
const SETTINGS_END: &str = "-- tars-backup settings complete";

impl Postgres {
    fn server<'a>(&self, context: &'a Context<'_>) -> Result<Server<'a>, SourceError> {
        let docker = context.docker()?;
        let (in_use, container) = context.running(&self.selector)?;
        let from_env = |key: &str| container.env.get(key).filter(|v| !v.is_empty()).cloned();
        let user =
            self.user.clone().or_else(|| from_env("POSTGRES_USER")).unwrap_or_else(|| "postgres".into());
        let password = match &self.password {
            Some(reference) => Some(context.vault.read(reference)?),
            None => from_env("POSTGRES_PASSWORD"),
        };
        let mut env = vec![("PGCONNECT_TIMEOUT".to_owned(), "30".to_owned())];
        if let Some(password) = password {
            let names = [self.name.as_str(), &container.name, &user, &container.image];
            context.vault.learn_unless_name("the password of the PostgreSQL user", &password, &names);
            env.push(("PGPASSWORD".to_owned(), password));
        }
        Ok(Server { docker, _in_use: in_use, container, user, env, limits: self.limits })
    }

    /// Databases to dump, the main one first.
    fn choose(&self, server: &Server<'_>) -> Result<Vec<String>, SourceError> {
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

    fn method(&self) -> String {
        let which =
            if self.databases.is_empty() { "all databases".into() } else { self.databases.join(", ") };
        format!(
            "pg_dump of {which} in the container {}",
            self.selector.container.as_ref().unwrap_or(&self.selector.service)
        )
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let server = self.server(context)?;
        let mut bytes = 0u64;
        for database in self.choose(&server)? {
            let answer = server.ask(&database, "SELECT pg_database_size(current_database())")?;
            bytes += answer.first().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Some(bytes))
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let server = self.server(context)?;
        let databases = self.choose(&server)?;
        let mut capture = Capture { consistency: "dump", ..Capture::default() };
        container_facts(&mut capture.facts, &server.container);
        let main = databases.first().map_or("postgres", String::as_str);
        let version = server.ask(main, "SHOW server_version")?;
        capture.facts.insert("server_version".into(), json!(version.first()));
        if let Ok(at) = server.docker.place(&server.container, "/var/lib/postgresql/data") {
            capture.volumes.extend(at.volume().map(str::to_owned));
        }

        if self.globals {
            let member = self.globals_member();
            let argv = ["pg_dumpall", "--globals-only", "--no-password", "--username", &server.user];
            let (staged, _) = server.dump(context, stage, &member, &argv, DumpKind::Cluster)?;
            capture.staged.push(staged);
        }
        let mut facts = Map::new();
        for (index, database) in databases.iter().enumerate() {
            let base = self.base(index, database);
            let settings = format!("{base}.settings.sql");
            capture.staged.push(server.settings(stage, &settings, database)?);
            let member = format!("{base}.sql");
            let target = conninfo(database);
            let argv = ["pg_dump", "--no-password", "--username", &server.user, "--dbname", &target];
            let (staged, found) = server.dump(context, stage, &member, &argv, DumpKind::Database)?;
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

impl Server<'_> {
    /// Answers of a query, one per row.
    fn ask(&self, database: &str, query: &str) -> Result<Vec<String>, SourceError> {
        let target = conninfo(database);
        // Rows end with NUL: a name may hold a line break.
        let argv = [
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-0",
            "-v",
            "ON_ERROR_STOP=1",
            "--no-password",
            "--username",
            &self.user,
            "--dbname",
            &target,
            "-c",
            query,
        ];
        let output = self.docker.run(&self.container, None, &self.env, &argv, self.limits)?.text();
        let rows = output.split('\0').filter(|r| !r.is_empty()).map(str::to_owned);
        Ok(rows.collect())
    }

    fn databases(&self) -> Result<Vec<String>, SourceError> {
        let query =
            "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname";
        let mut last = None;
        // The maintenance database may have been dropped.
        for database in ["postgres", "template1", &self.user] {
            match self.ask(database, query) {
                Ok(names) => return Ok(names),
                Err(SourceError::Docker(e @ DockerError::Exit { .. })) => last = last.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        Err(last
            .map_or_else(|| SourceError::bad("PostgreSQL", "no database to connect to"), SourceError::from))
    }

    fn dump(
        &self,
        context: &Context<'_>,
        stage: &Stage<'_>,
        member: &str,
        argv: &[&str],
        kind: DumpKind,
    ) -> Result<(Staged, DumpFacts), SourceError> {
        let mut out = stage.compressed(member)?;
        let mut scanner = DumpScanner::new(kind);
        let mut exec = self.docker.exec(&self.container, None, &self.env, argv, self.limits)?;
        while let Some(chunk) = exec.next_chunk()? {
            scanner.feed(&chunk);
            out.write_all(&chunk).map_err(SourceError::write(member))?;
            context.monitor.moved(chunk.len() as u64);
        }
        exec.finish()?;
        let facts = scanner.finish().map_err(|e| {
            SourceError::hinted(
                member,
                e.to_string(),
                format!("look at the server: docker logs --tail 50 {}", self.container.name),
            )
        })?;
        let staged = out.finish().map_err(SourceError::write(member))?;
        Ok((staged, facts))
    }

    /// What `pg_dump` and `pg_dumpall --globals-only` both leave out: how the database is created, its owner, rights,
    /// comment, limit and settings.
    fn settings(&self, stage: &Stage<'_>, member: &str, database: &str) -> Result<Staged, SourceError> {
        let mut text = format!(
            "-- Settings of the database {}. Run it in the database \"postgres\" as a superuser,\n\
             -- after the roles and before the dump is loaded.\n",
            database.replace(['\n', '\r'], " ")
        );
        for line in self.ask(database, SETTINGS_QUERY)? {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str(SETTINGS_END);
        text.push('\n');
        let mut out = stage.compressed(member)?;
        out.write_all(text.as_bytes()).map_err(SourceError::write(member))?;
        out.finish().map_err(SourceError::write(member))
    }
}

/// Names a database so that nothing in its name is taken for another connection parameter.
fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// SQL that writes the settings of the current database as SQL, for servers from 10 on: columns that came later are
/// read through `to_jsonb`, where a missing one is null.
const SETTINGS_QUERY: &str = r#"
WITH d AS (SELECT db.*, to_jsonb(db) AS j FROM pg_database db WHERE datname = current_database())
SELECT line FROM (
  SELECT 1 AS step, '' AS sub,
    format('SELECT %L WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = %L) \gexec',
    format('CREATE DATABASE %I WITH TEMPLATE template0 ENCODING %L', datname, pg_encoding_to_char(encoding))
    || CASE j->>'datlocprovider'
         WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', coalesce(j->>'datlocale', j->>'daticulocale'))
                       || coalesce(format(' ICU_RULES %L', j->>'daticurules'), '')
         WHEN 'b' THEN format(' LOCALE_PROVIDER builtin BUILTIN_LOCALE %L', j->>'datlocale')
         WHEN 'c' THEN ' LOCALE_PROVIDER libc'
         ELSE '' END
    || format(' LC_COLLATE %L LC_CTYPE %L;', datcollate, datctype), datname) AS line FROM d
  UNION ALL
  SELECT 2, '', format('ALTER DATABASE %I OWNER TO %I;', datname, pg_get_userbyid(datdba)) FROM d
  UNION ALL
  SELECT 3, '', format('ALTER DATABASE %I CONNECTION LIMIT %s;', datname, datconnlimit) FROM d WHERE datconnlimit <> -1
  UNION ALL
  SELECT 4, '', format('COMMENT ON DATABASE %I IS %L;', datname, shobj_description(d.oid, 'pg_database')) FROM d
    WHERE shobj_description(d.oid, 'pg_database') IS NOT NULL
  UNION ALL
  SELECT 5, '', format('-- it lay in the tablespace %I', spcname) FROM d JOIN pg_tablespace t ON t.oid = d.dattablespace
    WHERE spcname <> 'pg_default'
  UNION ALL
  SELECT 6, '', format('REVOKE ALL ON DATABASE %I FROM PUBLIC, %I;', datname, pg_get_userbyid(datdba)) FROM d
    WHERE datacl IS NOT NULL
  UNION ALL
  SELECT 7, a.grantee::text || a.privilege_type, format('GRANT %s ON DATABASE %I TO %s%s;', a.privilege_type, datname,
    CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(a.grantee)) END,
    CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM d, aclexplode(datacl) a
  UNION ALL
  SELECT 8, s.setrole::text || c.entry,
    CASE WHEN s.setrole = 0 THEN format('ALTER DATABASE %I', datname)
         ELSE format('ALTER ROLE %I IN DATABASE %I', pg_get_userbyid(s.setrole), datname) END
    || format(' SET %I TO ', split_part(c.entry, '=', 1))
    || CASE WHEN split_part(c.entry, '=', 1) IN ('search_path', 'temp_tablespaces', 'local_preload_libraries',
              'session_preload_libraries', 'shared_preload_libraries', 'unix_socket_directories')
            -- A list: each name as a literal, for an empty one cannot be written as an identifier.
            THEN coalesce((SELECT string_agg(format('%L', CASE WHEN m[1] LIKE '"%'
                     THEN replace(substr(m[1], 2, length(m[1]) - 2), '""', '"') ELSE m[1] END), ', ' ORDER BY n)
                   FROM regexp_matches(substr(c.entry, strpos(c.entry, '=') + 1), '"(?:[^"]|"")*"|[^,\s]+', 'g')
                     WITH ORDINALITY AS names(m, n)), quote_literal(''))
            ELSE format('%L', substr(c.entry, strpos(c.entry, '=') + 1)) END || ';'
    FROM d JOIN pg_db_role_setting s ON s.setdatabase = d.oid, unnest(s.setconfig) AS c(entry)
) AS lines ORDER BY step, sub"#;

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
    fn no_database_name_becomes_a_connection_parameter() {
        assert_eq!(conninfo("plain"), "dbname='plain'");
        assert_eq!(conninfo(r"a' host=evil \x"), r"dbname='a\' host=evil \\x'");
    }

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
