//! How a database is created, and what it is besides its data: owner, rights, comment, limit, settings. Neither `pg_dump`
//! nor `pg_dumpall --globals-only` has it, so the server itself writes it as SQL; and a restore runs that for a database
//! of another name.

use crate::format::sqltext::{self, Word, name};

/// Closing line of a settings file: without it the file is not whole.
pub const SETTINGS_END: &str = "-- tars-backup settings complete";

/// Before the tablespace of a database that does not lie in the default one.
const TABLESPACE: &str = "-- it lay in the tablespace ";

/// SQL that writes the settings of the current database as SQL, for servers from 10 on: columns that came later are
/// read through `to_jsonb`, where a missing one is null.
pub const SETTINGS_QUERY: &str = r#"
WITH d AS (SELECT db.*, to_jsonb(db) AS j FROM pg_database db WHERE datname = current_database())
SELECT line FROM (
  SELECT 1 AS step, '' AS sub,
    format('SELECT %L WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = %L) \gexec',
    format('CREATE DATABASE %I WITH TEMPLATE template0 ENCODING %L', datname, pg_encoding_to_char(encoding))
    || CASE j->>'datlocprovider'
         WHEN 'i' THEN format(' LOCALE_PROVIDER icu ICU_LOCALE %L', coalesce(j->>'datlocale', j->>'daticulocale'))
                       || CASE WHEN j->>'daticurules' IS NULL THEN '' ELSE format(' ICU_RULES %L', j->>'daticurules') END
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

/// The settings of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    create: String,
    /// Everything after its creation.
    rest: Vec<String>,
    pub owner: Option<String>,
    pub tablespace: Option<String>,
}

impl Settings {
    /// None when `script` is not what `SETTINGS_QUERY` writes.
    pub fn read(script: &str) -> Option<Self> {
        let statements = sqltext::statements(script);
        let (select, rest) = statements.split_first()?;
        let words = sqltext::words(select);
        let create =
            words.iter().find_map(|(_, w)| if let Word::Text(t) = w { Some(t.clone()) } else { None })?;
        if !create.starts_with("CREATE DATABASE ") || !select.starts_with("SELECT ") {
            return None;
        }
        let owner = rest.iter().find_map(|statement| {
            let words = sqltext::words(statement);
            let at = words.iter().position(|(_, w)| w.is("OWNER"))?;
            words.get(at + 2)?.1.value().map(str::to_owned)
        });
        let tablespace = script
            .lines()
            .find_map(|l| l.strip_prefix(TABLESPACE))
            .and_then(|l| sqltext::words(l).first().and_then(|(_, w)| w.value()).map(str::to_owned));
        let rest = rest.iter().map(|s| (*s).to_owned()).collect();
        Some(Self { create, rest, owner, tablespace })
    }

    /// The statement that creates a database `new` like it.
    pub fn create_as(&self, new: &str, in_tablespace: bool) -> String {
        // What an early version of the query wrote for a database without such rules.
        let words = sqltext::words(&self.create);
        let rules = words.windows(2).find(|w| w[0].1.is("ICU_RULES") && w[1].1.is("NULL"));
        let mut create = self.create.clone();
        if let Some([(from, _), (to, _)]) = rules {
            create.replace_range(from.start..to.end, "");
        }
        let create = rename(&create, new);
        match self.tablespace.as_ref().filter(|_| in_tablespace) {
            Some(space) => format!("{} TABLESPACE {};", create.trim_end_matches(';'), name(space)),
            None => create,
        }
    }

    /// What is to be run for `new` then.
    pub fn rest_as(&self, new: &str) -> String {
        self.rest.iter().map(|s| rename(s, new) + "\n").collect()
    }
}

/// The statement for a database of another name: `DATABASE` in capitals is the keyword, a name is quoted or small.
fn rename(statement: &str, new: &str) -> String {
    let words = sqltext::words(statement);
    let at = words.iter().position(|(_, w)| w.is("DATABASE"));
    match at.and_then(|at| words.get(at + 1)) {
        Some((range, _)) => format!("{}{}{}", &statement[..range.start], name(new), &statement[range.end..]),
        None => statement.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"-- Settings of the database a "b". Run it …
SELECT 'CREATE DATABASE "a ""b""" WITH TEMPLATE template0 ENCODING ''UTF8'' LC_COLLATE ''C'' LC_CTYPE ''C'';' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'a "b"') \gexec
ALTER DATABASE "a ""b""" OWNER TO "odd owner";
COMMENT ON DATABASE "a ""b""" IS 'home''s "database"; DATABASE x
-- PostgreSQL database dump complete';
-- it lay in the tablespace "fast disk"
REVOKE ALL ON DATABASE "a ""b""" FROM PUBLIC, "odd owner";
GRANT CREATE ON DATABASE "a ""b""" TO database WITH GRANT OPTION;
ALTER ROLE database IN DATABASE "a ""b""" SET search_path TO '', 'DATABASE y';
-- tars-backup settings complete
"#;

    #[test]
    fn settings_are_those_of_another_database() {
        let settings = Settings::read(SCRIPT).unwrap();
        assert_eq!(settings.owner.as_deref(), Some("odd owner"));
        assert_eq!(settings.tablespace.as_deref(), Some("fast disk"));
        let create =
            "CREATE DATABASE \"n\"\"w\" WITH TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'";
        assert_eq!(settings.create_as("n\"w", false), format!("{create};"));
        assert_eq!(settings.create_as("n\"w", true), format!("{create} TABLESPACE \"fast disk\";"));
        let rest = settings.rest_as("new");
        let wanted = SCRIPT.lines().skip(2).filter(|l| !l.starts_with("-- it") && !l.starts_with("-- tars"));
        let wanted: Vec<String> = wanted.map(|l| l.replace("\"a \"\"b\"\"\"", "\"new\"")).collect();
        assert_eq!(rest.lines().collect::<Vec<_>>(), wanted);
        let rules = SCRIPT.replace(" LC_COLLATE", " ICU_RULES NULL LC_COLLATE");
        let made = Settings::read(&rules).unwrap().create_as("n", false);
        assert!(made.contains("ENCODING 'UTF8'  LC_COLLATE 'C'"), "{made}");
        assert_eq!(Settings::read("SELECT 1;"), None);
        assert_eq!(Settings::read(""), None);
    }
}
