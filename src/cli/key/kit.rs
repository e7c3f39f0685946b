//! `tars-backup key kit`. What could go wrong: this is the one command that shows keys, and something else than a printer
//! keeps what it shows; so they go to standard output or into a new private file, and nothing else has a word of them.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::{cannot_write, write_new};
use crate::cli::args::Global;
use crate::cli::session::{DEFAULT_CONFIG, Failed, Session, config_path, load};
use crate::exit::Exit;
use crate::journal::Sink;
use crate::ops::kit::{self, KitError};
use crate::render;

pub fn run(
    global: &Global,
    store: Option<&str>,
    identity: &[PathBuf],
    output: Option<&Path>,
    sink: Sink,
) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = load(global, &session.access)?;
    session.opens_with(Some(&setup), identity);
    // Standard output of a unit is the journal.
    if output.is_none() && is_journal() {
        let hint = "write it to a new file: --output FILE".to_owned();
        return Err(Failed::text(
            Exit::Usage,
            "what is printed here goes into the journal, and the kit holds keys",
            Some(hint),
        ));
    }
    let owner = session.reader(Some(&setup))?;
    // What lies at its usual place need not be named.
    let config = Some(config_path(global)).filter(|path| path != Path::new(DEFAULT_CONFIG));
    let world = session.world(&owner);
    let kit = kit::gather(&setup, store, config.as_deref(), &world).map_err(|e| match e {
        KitError::Interrupted(i) => session.interrupted(i),
        KitError::NoStore(_) | KitError::NoUrl(_) => session.failed(Exit::Usage, &e),
        e => session.failed(Exit::Failed, &e),
    })?;
    session.monitor.clear();
    // Not scrubbed: showing what the vault hides is what it is for.
    let text = match global.json {
        true => serde_json::to_string_pretty(&kit).map(|t| t + "\n").map_err(|e| Failed::output(e.into()))?,
        false => render::kit::text(&kit),
    };
    match output {
        Some(path) => write_new(path, &text).map_err(|e| cannot_write(path, &e))?,
        None => io::stdout().lock().write_all(text.as_bytes()).map_err(Failed::output)?,
    }
    for lack in kit.missing.iter().chain(&kit.advice) {
        log::warn!("{}", session.vault.scrub(lack));
    }
    let mut err = io::stderr().lock();
    let said = match output {
        Some(path) => format!("The kit is in {}: print it, and remove the file\n", path.display()),
        None if io::stdout().is_terminal() => {
            "The kit above holds keys: clear the screen when it is printed\n".to_owned()
        }
        None => String::new(),
    };
    err.write_all(said.as_bytes()).map_err(Failed::output)?;
    // A kit that lacks something is one all the same, and says what.
    Ok(if kit.missing.is_empty() { Exit::Ok } else { Exit::Partial })
}

/// Whether standard output is the stream that systemd has connected to the journal.
fn is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let told = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let here = std::fs::metadata("/proc/self/fd/1").map(|m| format!("{}:{}", m.dev(), m.ino()));
    here.is_ok_and(|here| here == told)
}
