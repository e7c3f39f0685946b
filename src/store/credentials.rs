//! Keys of a store, given for one command. What could go wrong: they are seen. So they come from the environment or from
//! a file that only its owner reads, never from the command line, and no text shows them.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::UrlError;
use crate::secret::SecretRef;
use crate::vault::{SecretError, Vault};

/// Where a key comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Key {
    Reference(SecretRef),
    /// It was given to us; nothing shows it.
    Held(String),
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reference(reference) => write!(f, "{reference}"),
            Self::Held(_) => write!(f, "***"),
        }
    }
}

impl Key {
    /// The key itself, for whoever opens the store; from now on no line shows it.
    pub fn read(&self, label: &str, vault: &Vault) -> Result<String, SecretError> {
        match self {
            Self::Reference(reference) => vault.read(reference),
            Self::Held(value) => {
                vault.learn(label, value);
                Ok(value.clone())
            }
        }
    }
}

/// What opens a store that a URL names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub key_id: Option<Key>,
    pub key: Option<Key>,
    pub session_token: Option<Key>,
    /// Private key for `sftp`.
    pub ssh_key: Option<PathBuf>,
}

impl Credentials {
    /// From the environment, by the names that the tools of each kind use; those that are not set are left out.
    pub fn from_environment(url: &str) -> Self {
        let key = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(|_| Key::Reference(SecretRef::Env(name.to_owned())))
        };
        let ssh_key = std::env::var_os("TARS_BACKUP_SSH_KEY").filter(|v| !v.is_empty()).map(PathBuf::from);
        if url.starts_with("b2:") {
            let (key_id, key) = (key("B2_APPLICATION_KEY_ID"), key("B2_APPLICATION_KEY"));
            return Self { key_id, key, session_token: None, ssh_key };
        }
        Self {
            key_id: key("AWS_ACCESS_KEY_ID"),
            key: key("AWS_SECRET_ACCESS_KEY"),
            session_token: key("AWS_SESSION_TOKEN"),
            ssh_key,
        }
    }

    /// From a file of lines `NAME = VALUE`: `key_id`, `key`, `session_token`, `ssh_key` (a path).
    pub fn from_file(path: &Path) -> Result<Self, UrlError> {
        let fail = |source| UrlError::File { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(fail)?.mode();
        if mode & 0o077 != 0 {
            return Err(UrlError::Open { path: path.to_owned() });
        }
        Self::parse(&std::fs::read_to_string(path).map_err(fail)?)
            .map_err(|line| UrlError::Line { path: path.to_owned(), line })
    }

    /// The number of a line that cannot be used, never its text.
    fn parse(text: &str) -> Result<Self, usize> {
        let mut found = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or(number + 1)?;
            let value = value.trim();
            let bare = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
            if bare.is_empty() {
                return Err(number + 1);
            }
            let held = || Some(Key::Held(bare.to_owned()));
            match name.trim() {
                "key_id" => found.key_id = held(),
                "key" => found.key = held(),
                "session_token" => found.session_token = held(),
                "ssh_key" => found.ssh_key = Some(PathBuf::from(bare)),
                _ => return Err(number + 1),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lines_are_read_and_a_bad_one_is_told_by_its_number_only() {
        let found = Credentials::parse("# mine\nkey_id = AKIA\n key=\"a=b/c\" \n\nssh_key = /root/.ssh/id\n")
            .unwrap();
        assert_eq!(found.key_id, Some(Key::Held("AKIA".into())));
        assert_eq!(found.key, Some(Key::Held("a=b/c".into())));
        assert_eq!(found.ssh_key, Some(PathBuf::from("/root/.ssh/id")));
        assert_eq!(Credentials::parse("key_id = a\nsecret stuff\n"), Err(2));
        assert_eq!(Credentials::parse("password = topsecret\n"), Err(1));
        assert_eq!(Credentials::parse("key =\n"), Err(1));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "key_id = a\nkey = topsecret\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Credentials::from_file(&path), Err(UrlError::Open { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let found = Credentials::from_file(&path).unwrap();
        assert!(!format!("{found:?}").contains("topsecret"));
        assert!(matches!(Credentials::from_file(&dir.path().join("x")), Err(UrlError::File { .. })));
    }
}
