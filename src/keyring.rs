//! The private keys that open sealed backups: read when something sealed is to be opened, and not before. What could go
//! wrong: a key in an output, so the vault learns every secret line before it is parsed; and a host that has public keys
//! only, as it should be, taken for a fault.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::hint::Hint;
use crate::keys::{Identities, IdentityError, secret_lines};
use crate::secret::SecretRef;
use crate::vault::{SecretError, Vault};

/// An identity file larger than this is not one.
const MOST_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the identity file {path}")]
    File {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error(transparent)]
    Secret(Arc<SecretError>),
    #[error("{from} is no identity")]
    Bad {
        from: String,
        #[source]
        source: IdentityError,
    },
}

impl Hint for KeyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("name the file that tars-backup key new or age-keygen wrote".into())
            }
            Self::File { .. } => None,
            Self::Secret(e) => e.hint(),
            Self::Bad { source, .. } => source.hint(),
        }
    }
}

#[derive(Default)]
pub struct Keyring {
    /// `identity` of the configuration.
    pub configured: Option<SecretRef>,
    /// Files that were named for this command. They win over the configured one.
    pub given: Vec<PathBuf>,
    known: Mutex<Option<Option<Arc<Identities>>>>,
}

impl Keyring {
    pub fn new(configured: Option<SecretRef>, given: Vec<PathBuf>) -> Self {
        Self { configured, given, known: Mutex::default() }
    }

    /// The private keys that are there; None when none was named for this command, and none is configured or the
    /// configured one is not on this host.
    pub fn identities(&self, vault: &Vault) -> Result<Option<Arc<Identities>>, KeyError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*known {
            return Ok(found.clone());
        }
        let found = match self.given.as_slice() {
            [] => self.configured(vault)?,
            files => {
                let all: Result<Vec<Identities>, KeyError> =
                    files.iter().map(|path| given(path, vault)).collect();
                Some(Identities::join(all?))
            }
        };
        let found = found.map(Arc::new);
        *known = Some(found.clone());
        Ok(found)
    }

    fn configured(&self, vault: &Vault) -> Result<Option<Identities>, KeyError> {
        let Some(reference) = &self.configured else { return Ok(None) };
        match vault.read(reference) {
            Ok(text) => parse(&text, &reference.to_string(), vault).map(Some),
            Err(SecretError::Missing { .. }) => Ok(None),
            Err(e) => Err(KeyError::Secret(Arc::new(e))),
        }
    }
}

fn given(path: &Path, vault: &Vault) -> Result<Identities, KeyError> {
    let failed = |e: io::Error| KeyError::File { path: path.to_owned(), source: Arc::new(e) };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    // It may be a pipe: --identity <(age -d key.age)
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(failed(io::Error::other("it is larger than 1 MiB")));
    }
    // What is sealed by a passphrase need not be text.
    parse(&String::from_utf8_lossy(&bytes), &path.display().to_string(), vault)
}

fn parse(text: &str, from: &str, vault: &Vault) -> Result<Identities, KeyError> {
    for line in secret_lines(text) {
        vault.learn(from, line);
    }
    Identities::parse(text).map_err(|source| KeyError::Bad { from: from.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::generate;

    #[test]
    fn a_given_file_wins_and_a_configured_one_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (a, b) = (generate("a"), generate("b"));
        std::fs::write(at("a"), &a.file).unwrap();
        std::fs::write(at("b"), &b.file).unwrap();
        let vault = Vault::default();
        let recipients = |ring: &Keyring| {
            let found = ring.identities(&vault).unwrap();
            found.map(|i| i.recipients().map(str::to_owned).collect::<Vec<_>>())
        };
        let configured = Some(SecretRef::File(at("a")));
        let ring = Keyring::new(configured.clone(), Vec::new());
        assert_eq!(recipients(&ring), Some(vec![a.recipient.clone()]));
        let ring = Keyring::new(configured, vec![at("b")]);
        assert_eq!(recipients(&ring), Some(vec![b.recipient.clone()]));
        let ring = Keyring::new(None, vec![at("a"), at("b")]);
        assert_eq!(recipients(&ring), Some(vec![a.recipient, b.recipient]));
        assert_eq!(recipients(&Keyring::new(Some(SecretRef::File(at("gone"))), Vec::new())), None);
        assert_eq!(recipients(&Keyring::default()), None);
        let ring = Keyring::new(None, vec![at("gone")]);
        assert!(matches!(ring.identities(&vault), Err(KeyError::File { .. })));
        // From now on no line shows a key.
        for file in [a.file, b.file] {
            let secret = file.lines().last().unwrap();
            assert!(!vault.scrub(&format!("x {secret} y")).contains(secret));
        }
    }

    #[test]
    fn what_is_no_identity_is_told_with_its_place_and_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "hunter2hunter2\n").unwrap();
        let vault = Vault::default();
        for ring in
            [Keyring::new(None, vec![path.clone()]), Keyring::new(Some(SecretRef::File(path)), vec![])]
        {
            let e = ring.identities(&vault).unwrap_err();
            let text = crate::hint::chain(&e);
            assert!(text.contains("key") && text.contains("line 1") && !text.contains("hunter2"), "{text}");
            assert!(e.hint().is_some());
        }
    }
}
