//! The roles of a cluster, from what `pg_dumpall --globals-only` writes. What could go wrong: a role that is there gets
//! the password of long ago because a script was simply run; so each role is known by itself, and what differs is told
//! without ever showing a password.

use std::collections::{BTreeMap, BTreeSet};

use super::sqltext::{self, Word, literal, name};

#[derive(Debug, Default)]
pub struct Globals {
    pub roles: BTreeMap<String, Role>,
    pub memberships: Vec<Membership>,
    pub tablespaces: Vec<String>,
    /// Rights that a role has in the cluster itself: role, statement.
    pub rights: Vec<(String, String)>,
}

#[derive(Default, PartialEq, Eq)]
pub struct Role {
    /// `LOGIN`, `NOSUPERUSER`, …
    attributes: BTreeSet<String>,
    limit: Option<String>,
    valid_until: Option<String>,
    /// As the server keeps it, hashed.
    password: Option<String>,
    /// Name of a setting, and the statement that makes it.
    settings: BTreeMap<String, String>,
    comment: Option<String>,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role").field("attributes", &self.attributes).finish_non_exhaustive()
    }
}

/// `GRANT role TO member`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    pub role: String,
    pub member: String,
    pub grantor: Option<String>,
    /// From `TO member` to the grantor: options, with a blank before them.
    options: String,
}

impl Membership {
    /// `as_grantor`: on behalf of the role that granted it.
    pub fn statement(&self, as_grantor: bool) -> String {
        let by = self.grantor.as_ref().filter(|_| as_grantor);
        let by = by.map_or(String::new(), |g| format!(" GRANTED BY {}", name(g)));
        format!("GRANT {} TO {}{}{by};", name(&self.role), name(&self.member), self.options)
    }
}

impl Globals {
    pub fn read(script: &str) -> Self {
        let mut globals = Self::default();
        for statement in sqltext::statements(script) {
            let words = sqltext::words(statement);
            let kept: Vec<&Word> = words.iter().map(|(_, w)| w).collect();
            let value = |at: usize| kept.get(at).and_then(|w| w.value()).unwrap_or_default().to_owned();
            let starts = |keywords: &[&str]| keywords.iter().zip(&kept).all(|(k, w)| w.is(k));
            if starts(&["CREATE", "ROLE"]) {
                globals.roles.entry(value(2)).or_default();
            } else if starts(&["ALTER", "ROLE"]) && kept.get(3).is_some_and(|w| w.is("WITH")) {
                globals.roles.entry(value(2)).or_default().take_attributes(&kept[4..]);
            } else if starts(&["ALTER", "ROLE"]) && kept.get(3).is_some_and(|w| w.is("SET")) {
                let role = globals.roles.entry(value(2)).or_default();
                role.settings.insert(value(4), statement.to_owned());
            } else if starts(&["COMMENT", "ON", "ROLE"]) {
                globals.roles.entry(value(3)).or_default().comment = Some(statement.to_owned());
            } else if starts(&["CREATE", "TABLESPACE"]) {
                globals.tablespaces.push(value(2));
            } else if starts(&["GRANT"]) {
                let to = kept.iter().position(|w| w.is("TO")).unwrap_or(0);
                if kept.iter().any(|w| w.is("ON")) {
                    globals.rights.push((value(to + 1), statement.to_owned()));
                } else if to == 2 {
                    let by = kept.iter().position(|w| w.is("GRANTED"));
                    let after = words.get(4).map_or(statement.len(), |(range, _)| range.start);
                    let end = by.map_or(statement.trim_end_matches(';').len(), |by| words[by].0.start);
                    let options = statement.get(after..end).unwrap_or_default().trim_end();
                    globals.memberships.push(Membership {
                        role: value(1),
                        member: value(3),
                        grantor: by.map(|by| value(by + 2)),
                        options: if options.is_empty() { String::new() } else { format!(" {options}") },
                    });
                }
            }
        }
        globals
    }
}

impl Role {
    fn take_attributes(&mut self, words: &[&Word]) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word {
                w if w.is("CONNECTION") => {
                    words.next();
                    self.limit = words.next().and_then(|w| w.value()).map(str::to_owned);
                }
                w if w.is("PASSWORD") => {
                    self.password = words.next().and_then(|w| w.value()).map(str::to_owned);
                }
                w if w.is("VALID") => {
                    words.next();
                    self.valid_until = words.next().and_then(|w| w.value()).map(str::to_owned);
                }
                Word::Plain(word) => {
                    self.attributes.insert(word.clone());
                }
                _ => {}
            }
        }
    }

    /// What makes it, where it is not there.
    pub fn create(&self, role: &str) -> Vec<String> {
        let mut statements = vec![format!("CREATE ROLE {};", name(role))];
        statements.extend(self.alter(role, &Self::default()));
        statements
    }

    /// What gives it these attributes, this password and these settings, where it has those of `now`.
    pub fn alter(&self, role: &str, now: &Self) -> Vec<String> {
        let mut alter = format!("ALTER ROLE {} WITH", name(role));
        for word in &self.attributes {
            alter.push(' ');
            alter.push_str(word);
        }
        let mut add = |keyword: &str, to: Option<String>| {
            if let Some(to) = to {
                alter.push_str(&format!(" {keyword} {to}"));
            }
        };
        let or = |to: &Option<String>, now: &Option<String>, none: &str| {
            to.as_deref().map(literal).or_else(|| now.as_ref().map(|_| none.to_owned()))
        };
        add("CONNECTION LIMIT", self.limit.clone().or_else(|| now.limit.as_ref().map(|_| "-1".into())));
        add("PASSWORD", or(&self.password, &now.password, "NULL"));
        add("VALID UNTIL", or(&self.valid_until, &now.valid_until, "'infinity'"));
        let mut statements = Vec::new();
        if !alter.ends_with(" WITH") {
            statements.push(format!("{alter};"));
        }
        if !now.settings.is_empty() {
            statements.push(format!("ALTER ROLE {} RESET ALL;", name(role)));
        }
        statements.extend(self.settings.values().cloned());
        statements.extend(self.comment.clone());
        statements
    }

    /// In what it differs from the role that is there, for a person.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let other: Vec<&str> = now.attributes.difference(&self.attributes).map(String::as_str).collect();
        if !other.is_empty() {
            found.push(format!("{} now", other.join(" ")));
        }
        for (what, then, now) in [
            ("password", &self.password, &now.password),
            ("connection limit", &self.limit, &now.limit),
            ("end of validity", &self.valid_until, &now.valid_until),
        ] {
            if then != now {
                found.push(format!("another {what}"));
            }
        }
        if self.settings != now.settings {
            found.push("other settings".to_owned());
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What pg_dumpall 15 and 16 write, shortened.
    const GLOBALS: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict k3y

SET default_transaction_read_only = off;
CREATE ROLE app_group;
ALTER ROLE app_group WITH NOSUPERUSER INHERIT NOLOGIN;
COMMENT ON ROLE app_group IS 'group;
-- it''s not a login';
CREATE ROLE "Rolle ""x""";
ALTER ROLE "Rolle ""x""" WITH NOSUPERUSER LOGIN CONNECTION LIMIT 7 PASSWORD 'SCRAM-SHA-256$4096:a;b' VALID UNTIL '2099-12-31 00:00:00+00';
ALTER ROLE "Rolle ""x""" SET search_path TO 'a', 'b';
GRANT app_group TO "Rolle ""x""" WITH ADMIN OPTION GRANTED BY tars;
GRANT app_group TO tars WITH INHERIT TRUE;
GRANT SET ON PARAMETER work_mem TO app_group;
CREATE TABLESPACE "fast disk" OWNER tars LOCATION '/fast';
\unrestrict k3y
"#;

    #[test]
    fn roles_memberships_and_tablespaces_are_found() {
        let globals = Globals::read(GLOBALS);
        assert_eq!(globals.roles.keys().collect::<Vec<_>>(), ["Rolle \"x\"", "app_group"]);
        assert_eq!(globals.tablespaces, ["fast disk"]);
        assert_eq!(globals.rights.len(), 1);
        let granted: Vec<String> = globals.memberships.iter().map(|m| m.statement(true)).collect();
        assert_eq!(
            granted,
            [
                "GRANT \"app_group\" TO \"Rolle \"\"x\"\"\" WITH ADMIN OPTION GRANTED BY \"tars\";",
                "GRANT \"app_group\" TO \"tars\" WITH INHERIT TRUE;"
            ]
        );
        assert!(!globals.memberships[0].statement(false).contains("GRANTED"));
        let role = &globals.roles["Rolle \"x\""];
        let made = role.create("Rolle \"x\"").join("\n");
        assert_eq!(Globals::read(&made).roles["Rolle \"x\""], *role);
    }

    #[test]
    fn differences_are_told_without_passwords_and_can_be_made_and_unmade() {
        let then = &Globals::read(GLOBALS).roles["Rolle \"x\""];
        let now = Role { password: Some("md5abc".into()), ..Role::default() };
        let told = then.differences(&now).join(", ");
        assert_eq!(
            told,
            "another password, another connection limit, another end of validity, other settings"
        );
        assert!(then.differences(then).is_empty());
        let back = now.alter("r", then).join("\n");
        assert_eq!(
            back,
            "ALTER ROLE \"r\" WITH CONNECTION LIMIT -1 PASSWORD 'md5abc' VALID UNTIL 'infinity';\n\
             ALTER ROLE \"r\" RESET ALL;"
        );
        assert!(Role::default().alter("r", &now).join("").contains("PASSWORD NULL"));
        assert!(!format!("{now:?}").contains("md5"));
    }
}
