//! The secrets of a run: read by reference when they are needed, and kept from every line that leaves the program.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::RwLock;

use crate::hint::Hint;
use crate::redact::Secrets;
use crate::secret::SecretRef;

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret {reference} is not there")]
    Missing { reference: SecretRef },
    #[error("cannot read the secret {reference}")]
    Read {
        reference: SecretRef,
        #[source]
        source: io::Error,
    },
    #[error("the secret {reference} is empty, not text, or holds a NUL byte")]
    Unusable { reference: SecretRef },
}

impl Hint for SecretError {
    fn hint(&self) -> Option<String> {
        let (Self::Missing { reference } | Self::Read { reference, .. } | Self::Unusable { reference }) =
            self;
        Some(match reference {
            SecretRef::Credential(name) => format!(
                "store it: systemd-creds encrypt --name={name} - /etc/credstore.encrypted/{name} (type the secret, then Ctrl-D)"
            ),
            SecretRef::File(path) => format!("write it: install -m 0600 /dev/stdin {}", path.display()),
            SecretRef::Env(name) => format!("set {name} in the environment of tars-backup"),
        })
    }
}

#[derive(Default)]
pub struct Vault {
    /// Values that we hold ourselves: passwords of servers, credentials.
    held: RwLock<Secrets>,
    /// What was found secret in the configuration files of the stack.
    found: RwLock<Vec<Secrets>>,
}

impl Vault {
    /// The value behind a reference, without a final line break. From now on no line shows it.
    pub fn read(&self, reference: &SecretRef) -> Result<String, SecretError> {
        let value = match reference {
            SecretRef::Env(name) => std::env::var(name)
                .map_err(|_| SecretError::Missing { reference: reference.clone() })?
                .into_bytes(),
            SecretRef::File(path) => read_file(path, reference)?,
            SecretRef::Credential(name) => credential(name, reference)?,
        };
        let unusable = || SecretError::Unusable { reference: reference.clone() };
        let text = String::from_utf8(value).map_err(|_| unusable())?;
        let text = text.trim_end_matches(['\n', '\r']);
        if text.is_empty() || text.contains('\0') {
            return Err(unusable());
        }
        self.learn(&reference.to_string(), text);
        Ok(text.to_owned())
    }

    /// Hides `value` in every line from now on.
    pub fn learn(&self, label: &str, value: &str) {
        if let Ok(mut held) = self.held.write() {
            held.add(label, value);
        }
    }

    /// The same for a password that a container tells. One that is also part of a name is public: hiding it would only
    /// make every line unreadable.
    pub fn learn_unless_name(&self, label: &str, value: &str, names: &[&str]) {
        if !names.iter().any(|n| n.contains(value)) {
            self.learn(label, value);
        }
    }

    /// Hides what was found in configuration files, and lets `remains_in` look for it.
    pub fn learn_found(&self, secrets: Secrets) {
        if let Ok(mut found) = self.found.write() {
            found.push(secrets);
        }
    }

    /// `text` without any known secret.
    pub fn scrub(&self, text: &str) -> String {
        let (Ok(held), Ok(found)) = (self.held.read(), self.found.read()) else { return String::new() };
        found.iter().fold(held.scrub(text), |text, secrets| secrets.scrub(&text))
    }

    /// Label of a secret of the configuration files that `bytes` hold.
    pub fn remains_in(&self, bytes: &[u8]) -> Option<String> {
        let found = self.found.read().ok()?;
        found.iter().find_map(|secrets| secrets.remains_in(bytes).map(str::to_owned))
    }
}

fn read_file(path: &Path, reference: &SecretRef) -> Result<Vec<u8>, SecretError> {
    std::fs::read(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SecretError::Missing { reference: reference.clone() },
        _ => SecretError::Read { reference: reference.clone(), source },
    })
}

/// From systemd where we run as a unit; for root on a shell the same credential from the stores that systemd reads.
fn credential(name: &str, reference: &SecretRef) -> Result<Vec<u8>, SecretError> {
    if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") {
        let path = PathBuf::from(dir).join(name);
        if path.exists() {
            return read_file(&path, reference);
        }
    }
    if let Some(path) = find_credential(name, false) {
        return read_file(&path, reference);
    }
    match find_credential(name, true) {
        Some(path) => decrypt(name, &path, reference),
        None => Err(SecretError::Missing { reference: reference.clone() }),
    }
}

/// The file of a credential in the stores that systemd searches: those of plain ones, or those of encrypted ones.
pub fn find_credential(name: &str, encrypted: bool) -> Option<PathBuf> {
    let suffix = if encrypted { ".encrypted" } else { "" };
    let store = |dir: &str| Path::new(dir).join(format!("credstore{suffix}")).join(name);
    ["/etc", "/run", "/usr/lib"].into_iter().map(store).find(|path| path.exists())
}

fn decrypt(name: &str, path: &Path, reference: &SecretRef) -> Result<Vec<u8>, SecretError> {
    let fail = |source| SecretError::Read { reference: reference.clone(), source };
    let output = Command::new("systemd-creds")
        .arg("decrypt")
        .arg(format!("--name={name}"))
        .arg(path)
        .arg("-")
        .output()
        .map_err(fail)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(fail(io::Error::other(format!("systemd-creds: {why}"))))
}
