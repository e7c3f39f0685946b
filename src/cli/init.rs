//! `tars-backup init`.

use std::path::PathBuf;

use super::args::{Global, InitArgs};
use super::session::{DEFAULT_CONFIG, Failed, Session, machine};
use crate::docker::Docker;
use crate::exit::Exit;
use crate::journal::Sink;
use crate::ops::init::{self, InitError, Request};
use crate::render::{json, text};

pub fn run(global: &Global, args: &InitArgs, sink: Sink) -> Result<Exit, Failed> {
    let session = Session::start(global, sink)?;
    let config = global.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let config: PathBuf = std::path::absolute(&config).unwrap_or(config);
    let failed = |e: InitError| {
        let exit = match e {
            InitError::Several { .. } | InitError::UnknownProject { .. } => Exit::Usage,
            _ => Exit::Failed,
        };
        session.failed(exit, &e)
    };
    init::must_be_new(&config).map_err(failed)?;
    let request = Request {
        project: args.project.as_deref(),
        store: args.store.as_deref(),
        is_default: config == std::path::Path::new(DEFAULT_CONFIG),
        config: &config,
    };
    let found = Docker::connect(None, None, session.runtime.handle().clone(), session.cancel.clone())
        .map_err(InitError::Docker)
        .and_then(|docker| init::find(&docker, &request, &machine(&session.access)))
        .map_err(failed)?;
    init::write(&config, &found.text).map_err(failed)?;
    let printed = if global.json { json::print(&found) } else { text::print(&text::init(&found)) };
    printed.map_err(Failed::output)?;
    Ok(Exit::Ok)
}
