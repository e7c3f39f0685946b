//! What a person must have on paper to find a store again when no configuration is left. What could go wrong: a URL that
//! leads somewhere else than the store does; so each kind writes it beside the code that knows the place, and a test reads
//! each back.

use std::path::PathBuf;

use super::credentials::Key;
use crate::mounts::Mounted;

/// What a file of a store is for, in the words of the configuration.
pub const CA: &str = "ca";
pub const KNOWN_HOSTS: &str = "known_hosts";
pub const SSH_CONFIG: &str = "ssh_config";

/// Where a store is, and with what it opens: references to its keys, not the keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kit {
    /// What `--from` takes.
    pub url: String,
    /// The same in words: endpoint, bucket, region, user.
    pub facts: Vec<(&'static str, String)>,
    /// By the names that a file of `--credentials` gives them.
    pub keys: Vec<(&'static str, Key)>,
    /// Files that the URL or the configuration names, and what each is for: they must lie there on another machine, too.
    pub files: Vec<(&'static str, PathBuf)>,
    /// Where its root is seen by any program that speaks https, and the region that a request is signed for.
    pub web: Option<(String, String)>,
    /// What has to be mounted first, where its directory lies on a disk of its own.
    pub mount: Option<Mounted>,
    /// What the URL cannot say.
    pub notes: Vec<String>,
}

/// Text as it stands in the path of a URL.
pub(super) fn in_path(text: &str) -> String {
    encode(text, b"-._~/")
}

/// The same as the value of a parameter, or a user.
pub(super) fn in_value(text: &str) -> String {
    encode(text, b"-._~/:")
}

/// The same as a user: what comes before `@`.
pub(super) fn in_user(text: &str) -> String {
    encode(text, b"-._~")
}

fn encode(text: &str, plain: &[u8]) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || plain.contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
