//! A reference to a secret, as written in the configuration. The value itself never is: it is read when it is needed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretRef {
    /// A systemd credential of this name.
    Credential(String),
    File(PathBuf),
    Env(String),
}

impl std::fmt::Display for SecretRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Credential(n) => write!(f, "{{ credential = {n:?} }}"),
            Self::File(p) => write!(f, "{{ file = {:?} }}", p.display().to_string()),
            Self::Env(n) => write!(f, "{{ env = {n:?} }}"),
        }
    }
}
