//! The package of tars-backup on its way into a store. What could go wrong: half a download, or another program's, which is
//! noticed on the day when it is needed; so it is read whole and judged before anything is written.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::format::deb::{self, DebError, DebName};
use crate::hint::Hint;
use crate::progress::{Event, Monitor, What};
use crate::store::{Keeping, TOOLS};

/// A larger one is not ours.
const MOST_BYTES: u64 = 256 << 20;
/// Name of our own package.
const OURS: &str = "tars-backup";

#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not named like a package of tars-backup", path.display())]
    Name { path: PathBuf },
    #[error("{} is no Debian package", path.display())]
    Bad {
        path: PathBuf,
        #[source]
        source: DebError,
    },
}

impl Hint for PackageError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Read { .. } => {
                "name the file that was installed: tars-backup_VERSION_ARCHITECTURE.deb".into()
            }
            Self::Name { .. } => {
                "it must be called tars-backup_VERSION_ARCHITECTURE.deb, as it was built".into()
            }
            Self::Bad { .. } => "fetch it again: apt-get download tars-backup".into(),
        })
    }
}

pub struct Package {
    pub file: String,
    pub bytes: Vec<u8>,
}

pub fn read(path: &Path) -> Result<Package, PackageError> {
    let failed = |source| PackageError::Read { path: path.to_owned(), source };
    let file = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    if DebName::parse(&file).is_none_or(|name| name.package != OURS) {
        return Err(PackageError::Name { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|f| f.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(failed(io::Error::other("it is larger than 256 MiB")));
    }
    deb::check(&bytes).map_err(|source| PackageError::Bad { path: path.to_owned(), source })?;
    Ok(Package { file, bytes })
}

/// What became of it, in words; a new one is an event.
pub fn told(monitor: &dyn Monitor, store: &str, file: &str, keeping: &Keeping) -> String {
    match keeping {
        Keeping::Was => format!("Store {store} has {TOOLS}/{file} already"),
        Keeping::Is { gone } => {
            let instead = match gone.as_slice() {
                [] => String::new(),
                gone => format!(", instead of {}", gone.join(", ")),
            };
            let said = format!("Store {store} keeps {TOOLS}/{file}{instead}");
            monitor.event(Event::new(What::PackageKept, said.clone()).store(store));
            said
        }
    }
}
