//! `[encryption]`: whom backups are sealed for, and when.

use super::section::Section;
use crate::hint::Hint;
use crate::keys::Recipients;
use crate::secret::SecretRef;

/// Which stores get sealed archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seal {
    /// Those that belong to somebody else.
    #[default]
    Offsite,
    Always,
    Never,
}

#[derive(Debug, Default)]
pub struct Encryption {
    /// Nobody: then nothing is sealed.
    pub recipients: Recipients,
    pub seal: Seal,
    /// Where the private keys are to be found, on a host that has them.
    pub identity: Option<SecretRef>,
}

impl Encryption {
    pub fn read(root: &Section<'_>) -> Self {
        let s = root.table("encryption");
        let texts =
            s.texts("recipients", "Public keys that backups are sealed for: age1…, ssh-ed25519 …, ssh-rsa …");
        let recipients = Recipients::parse(&texts).unwrap_or_else(|wrong| {
            for e in &wrong {
                s.problem("recipients", e.to_string(), e.hint());
            }
            Recipients::default()
        });
        let seal = s.choice(
            "seal",
            &[("offsite", Seal::Offsite), ("always", Seal::Always), ("never", Seal::Never)],
            "Which archives are sealed: those in stores of somebody else, all, or none",
        );
        if seal == Seal::Always && texts.is_empty() {
            s.problem(
                "seal",
                "\"always\" needs recipients, and there are none",
                Some("make a key (tars-backup key new), and name it in recipients".into()),
            );
        }
        let identity = s.secret(
            "identity",
            "Private keys that open backups, for restore, verify and drill; a host that only makes backups needs none",
        );
        s.finish();
        Self { recipients, seal, identity }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Doc, Survey};
    use std::cell::RefCell;
    use std::rc::Rc;

    fn read(text: &str) -> (Encryption, Vec<(usize, String)>) {
        let mut problems = Vec::new();
        let doc = Doc::parse(&[("c.toml".into(), text.to_owned())], &mut problems);
        let survey = Rc::new(RefCell::new(Survey { problems, ..Survey::default() }));
        let encryption = Encryption::read(&Section::root(&doc, survey.clone()));
        let problems = survey.take().problems;
        (encryption, problems.iter().map(|p| (p.at.line, format!("{p} {:?}", p.hint))).collect())
    }

    #[test]
    fn a_key_is_enough_and_none_seals_nothing() {
        let key = crate::keys::generate("x").recipient;
        let (e, problems) = read(&format!("[encryption]\nrecipients = \"{key}\"\n"));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!((e.recipients.texts().collect::<Vec<_>>(), e.seal), (vec![key.as_str()], Seal::Offsite));
        let (e, problems) = read("");
        assert!(problems.is_empty() && e.recipients.is_empty() && e.identity.is_none());
        let (e, problems) = read("[encryption]\nseal = \"offsite\"\nidentity = { credential = \"age\" }\n");
        assert!(problems.is_empty());
        assert_eq!(e.identity, Some(SecretRef::Credential("age".into())));
    }

    #[test]
    fn always_needs_somebody_and_every_wrong_key_has_its_line() {
        let (_, problems) = read("[encryption]\nseal = \"always\"\n");
        assert!(problems.len() == 1 && problems[0].0 == 2, "{problems:?}");
        let secret = crate::keys::generate("x").file.lines().last().unwrap().to_owned();
        let (_, problems) = read(&format!(
            "[encryption]\nseal = \"always\"\nrecipients = [\"{secret}\", \"hunter2hunter2\"]\nidentiy = 1\n"
        ));
        let lines: Vec<usize> = problems.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 3, 4], "{problems:?}");
        let all = format!("{problems:?}");
        assert!(!all.contains(&secret) && !all.contains("hunter2"), "{all}");
    }
}
