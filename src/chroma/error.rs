//! What can fail at a ChromaDB server. What could go wrong: an answer of the server may repeat the token that it was
//! sent; texts come here only after `http` took it out.

use std::io;

use crate::cancel::Interrupted;
use crate::hint::Hint;

/// Facts of a failure. `url` is the address without credentials, `what` the step in words, `reason` the server's text.
#[derive(Debug, thiserror::Error)]
pub enum ChromaError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("the address of the ChromaDB server cannot be used: {why}")]
    Address { why: String },
    #[error("the token for the ChromaDB server at {url} has characters that no header may have")]
    BadToken { url: String },
    #[error("the ChromaDB server at {url} cannot be reached: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("what answers at {url} is no ChromaDB server: {reason}")]
    NotChroma { url: String, reason: String },
    #[error("{what}: the ChromaDB server at {url} wants {} (status {status})", if *sent { "another token" } else { "a token" })]
    Denied { what: String, url: String, status: u16, sent: bool },
    #[error("{what}: the ChromaDB server at {url} sent nothing for {seconds} s")]
    Idle { what: String, url: String, seconds: u64 },
    #[error("{what}: the ChromaDB server at {url} was not done after {seconds} s")]
    TooLong { what: String, url: String, seconds: u64 },
    #[error("{what}: the connection to the ChromaDB server at {url} broke: {reason}")]
    Broken { what: String, url: String, reason: String },
    #[error("{what}: the ChromaDB server at {url} says {status}: {reason}")]
    Refused { what: String, url: String, status: u16, reason: String },
    #[error("{what}: the answer of the ChromaDB server at {url} is longer than {bytes} bytes")]
    TooLarge { what: String, url: String, bytes: usize },
    #[error("{what}: the answer of the ChromaDB server at {url} makes no sense: {why}")]
    Malformed { what: String, url: String, why: String },
    #[error("the ChromaDB server at {url} cannot be asked for {name:?}: its API takes no name with a slash")]
    Slash { url: String, name: String },
    #[error("the collection {collection} was deleted meanwhile")]
    Gone { collection: String },
    #[error("the server does not keep {part} of {id:?} in {collection}")]
    NotKept { collection: String, id: String, part: String },
    #[error("the export cannot be loaded: {why}")]
    Export { why: String },
    #[error("{what}: it changed each time it was listed")]
    Changing { what: String },
    #[error("cannot write the export of {collection}")]
    Write {
        collection: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot keep the ids of {collection} in a temporary file")]
    Spill {
        collection: String,
        #[source]
        source: io::Error,
    },
}

impl Hint for ChromaError {
    fn hint(&self) -> Option<String> {
        let full = |e: &io::Error| {
            matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                .then(|| "staging is full: make room, or set agent.staging_dir to a larger disk".to_owned())
        };
        Some(match self {
            Self::Address { .. } => "write it like http://127.0.0.1:8001".into(),
            Self::BadToken { .. } => "is it one line of plain text? store the secret anew".into(),
            Self::Unreachable { url, .. } => {
                format!("is the container running, and its port published? docker ps; curl {url}/api/v2/heartbeat")
            }
            Self::NotChroma { url, .. } => format!("which program has this port? curl -i {url}/api/v2/heartbeat"),
            Self::Denied { .. } => {
                "compare the token of the configuration with the one of the server (CHROMA_SERVER_AUTHN_CREDENTIALS)"
                    .into()
            }
            Self::Idle { .. } => {
                "is it busy? docker stats --no-stream; raise idle_timeout of the source if it is only slow".into()
            }
            Self::TooLong { .. } => "raise timeout of the source".into(),
            Self::Broken { .. } | Self::Refused { .. } | Self::Malformed { .. } => {
                "look at the server's log: docker logs --tail 50 of its container".into()
            }
            Self::Slash { .. } => "the copy of its files has this data all the same; rename it, or leave the export out".into(),
            Self::NotKept { .. } => "its version may not know such values: load it into a newer one".into(),
            Self::Changing { .. } => "export when fewer clients write".into(),
            Self::Write { source, .. } | Self::Spill { source, .. } => return full(source),
            Self::Interrupted(_) | Self::Export { .. } | Self::TooLarge { .. } | Self::Gone { .. } => return None,
        })
    }
}
