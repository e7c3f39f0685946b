//! The manifest inside a stored archive: what a sealed backup holds, and the proof that a key opens what is really
//! stored. What could go wrong: a proof on something else than the backup; so the archive itself is opened, up to the
//! manifest in it, and that is compared with the one beside it. No more is fetched.

use std::io::{self, Read};

use super::World;
use super::find::{Found, OpenError};
use crate::archive::layout;
use crate::archive::read::walk_archive;
use crate::format::tarwalk::{Body, Entry, TarError};
use crate::hint::Hint;
use crate::manifest::{Manifest, ManifestError};

#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    #[error("{0} cannot be opened")]
    Open(String, #[source] OpenError),
    #[error("the manifest beside {0} is damaged")]
    Damaged(String),
    #[error("what is sealed in {0} cannot be read")]
    Inside(String, #[source] TarError),
    #[error("the sealed {0} cannot be read to the manifest in it")]
    Torn(String, #[source] io::Error),
    #[error("{0} opens, and holds another backup than the manifest beside it says")]
    Other(String),
    #[error("{0} opens, and its manifest cannot be read")]
    Manifest(String, #[source] ManifestError),
}

impl Hint for InsideError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Open(_, e) => e.hint(),
            _ => Some("look at it: tars-backup verify BACKUP; test another one: tars-backup list".into()),
        }
    }
}

/// How the walk through an archive ends.
enum End {
    /// The manifest was found: all that is wanted.
    Seen(Vec<u8>),
    Fault(TarError),
    Torn(io::Error),
}

impl From<TarError> for End {
    fn from(e: TarError) -> Self {
        Self::Fault(e)
    }
}

/// Opens one copy and reads its manifest.
pub fn manifest(found: &Found<'_>, world: &World<'_>) -> Result<Manifest, InsideError> {
    let name = format!("{} in {}", found.entry.name, found.store().name());
    let beside = found.entry.manifest.as_ref().map_err(|_| InsideError::Damaged(name.clone()))?;
    let plain = found.open_plain(beside, world).map_err(|e| InsideError::Open(name.clone(), e))?;
    let wanted = format!("{}/{}", found.entry.name, layout::MANIFEST);
    let walked = walk_archive(plain, |entry: &Entry, body: &mut Body<'_>| {
        if entry.path != wanted.as_bytes() {
            return Ok(());
        }
        let mut text = Vec::new();
        body.take(64 << 20).read_to_end(&mut text).map_err(End::Torn)?;
        Err(End::Seen(text))
    });
    match walked {
        Err(End::Seen(text)) => {
            let broken = |e| InsideError::Manifest(name.clone(), e);
            let inner = Manifest::read_inner(&text).map_err(broken)?;
            if inner.is_told_by(beside) { Ok(inner) } else { Err(InsideError::Other(name)) }
        }
        Err(End::Torn(e)) => Err(InsideError::Torn(name, e)),
        Err(End::Fault(e)) => Err(InsideError::Inside(name, e)),
        Ok(_) => Err(InsideError::Other(name)),
    }
}
