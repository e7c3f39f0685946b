//! Roles of the backup and of the server: what is not there is made, what is there is kept unless it is asked for.

use super::{PostgresTarget, text};
use crate::format::roles::Globals;
use crate::postgres::{Roles, Server};
use crate::source::SourceError;
use crate::target::Work;

impl PostgresTarget<'_> {
    /// What is to be done to roles, and the statements for those that are not there.
    pub(super) fn roles(
        &self,
        server: &Server,
        work: &Work<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<(Roles, [String; 2]), SourceError> {
        let mut roles = Roles::default();
        let Some(member) = &self.globals else { return Ok((roles, Default::default())) };
        let then = Globals::read(&text(work, member)?);
        let argv = ["pg_dumpall", "--globals-only", "--no-password", "--username", &server.user];
        let mut exec = server.exec(&argv)?;
        let mut now = Vec::new();
        while let Some(chunk) = exec.next_chunk()? {
            now.extend_from_slice(&chunk);
        }
        exec.finish()?;
        let now = Globals::read(&String::from_utf8_lossy(&now));

        let mut create = String::new();
        for (role, wanted) in &then.roles {
            let Some(have) = now.roles.get(role) else {
                roles.created.push(role.clone());
                create += &(wanted.create(role).join("\n") + "\n");
                continue;
            };
            let differs = wanted.differences(have).join(", ");
            if differs.is_empty() {
                continue;
            }
            if *role == server.user {
                warnings.push(format!(
                    "role {role}: {differs}; it is kept, because the restore itself works as {role}"
                ));
            } else if work.wishes.overwrite_roles {
                roles.overwrite.extend(wanted.alter(role, have));
                roles.back.extend(have.alter(role, wanted));
            } else {
                warnings.push(format!("role {role}: {differs}; it is kept (--roles overwrite changes it)"));
            }
        }
        for (_, statement) in then.rights.iter().filter(|(role, _)| roles.created.contains(role)) {
            create += &format!("{statement}\n");
        }
        let known = |role: &str| {
            role.starts_with("pg_") || now.roles.contains_key(role) || then.roles.contains_key(role)
        };
        let (mut as_granted, mut plain) = (create.clone(), create);
        for m in &then.memberships {
            if now.memberships.iter().any(|have| (&have.role, &have.member) == (&m.role, &m.member)) {
                continue;
            }
            if !known(&m.role) || !known(&m.member) {
                warnings.push(format!("{} is no member of {}: there is no such role", m.member, m.role));
                continue;
            }
            roles.granted.push((m.role.clone(), m.member.clone()));
            as_granted += &(m.statement(m.grantor.as_ref().is_some_and(|g| known(g))) + "\n");
            plain += &(m.statement(false) + "\n");
        }
        for space in then.tablespaces.iter().filter(|s| !now.tablespaces.contains(s)) {
            warnings.push(format!("tablespace {space} is not there; nothing that was restored needs it"));
        }
        Ok((roles, [as_granted, plain]))
    }
}
