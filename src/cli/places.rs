//! Where a command looks for backups: in the stores of the configuration, in one of them, or in one that a URL names.

use std::path::Path;
use std::sync::Arc;

use super::session::{Failed, Session};
use crate::exit::Exit;
use crate::ops::find::{self, Filter, FindError, Found};
use crate::setup::Setup;
use crate::store::{self, Credentials, StoreError};

/// All backups there, oldest first, and the stores that could not be looked at. `filter.store` may be a URL.
pub fn look<'a>(
    session: &Session,
    setup: Option<&'a Setup>,
    filter: &Filter,
    credentials: Option<&Path>,
) -> Result<(Vec<Found<'a>>, Vec<StoreError>), Failed> {
    if let Some(url) = filter.store.as_deref().filter(|place| place.contains("://")) {
        let store = named(session, url, credentials)?;
        let found = find::everywhere(store, filter.host.as_deref(), &session.cancel);
        return Ok((found.map_err(|e| failed(session, &e))?, Vec::new()));
    }
    let Some(setup) = setup else {
        let hint =
            "name an archive by its path, a store by its URL, or a configuration with --config".to_owned();
        return Err(Failed::text(Exit::Config, "there is no configuration that names a store", Some(hint)));
    };
    find::all(setup, filter, &session.cancel).map_err(|e| failed(session, &e))
}

fn named(session: &Session, url: &str, credentials: Option<&Path>) -> Result<Arc<dyn store::Store>, Failed> {
    let credentials = match credentials {
        Some(file) => Credentials::from_file(file),
        None => Ok(Credentials::from_environment(url)),
    };
    let store = credentials.and_then(|c| store::from_url(url, &c, &session.access, &session.cancel));
    store
        .map(Arc::from)
        .map_err(|e| session.failed(if e.is_usage() { Exit::Usage } else { Exit::Failed }, &e))
}

/// What was mistyped, and what is not there.
pub fn failed(session: &Session, e: &FindError) -> Failed {
    let exit = match e {
        FindError::NoStore(_) | FindError::NoTier(_) | FindError::Name(_) | FindError::ManyHosts(_) => {
            Exit::Usage
        }
        _ => Exit::Failed,
    };
    session.failed(exit, e)
}
