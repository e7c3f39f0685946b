//! `tars-backup key`. What could go wrong: a private key where it does not belong; `new` writes it to one place, which is
//! private and new. `kit` shows keys on purpose, on paper; nothing else here has more than public keys in hand.

mod kit;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::args::{Global, KeyAction, KeyArgs, PlaceArgs};
use super::inspect;
use super::session::{Failed, Session, load, load_optional};
use crate::config::{Encryption, Seal};
use crate::exit::Exit;
use crate::journal::Sink;
use crate::keys::{self, Identities};
use crate::ops::find::Wanted;
use crate::ops::inside;
use crate::render::{json, text};

pub fn run(global: &Global, args: &KeyArgs, sink: Sink) -> Result<Exit, Failed> {
    match &args.action {
        KeyAction::New { output } => new(global, output.as_deref()),
        KeyAction::Show { identity } => show(global, identity, sink),
        KeyAction::Kit { store, identity, output } => {
            kit::run(global, store.as_deref(), identity, output.as_deref(), sink)
        }
        KeyAction::Test { backup, identity, place } => test(global, backup.as_deref(), identity, place, sink),
    }
}

fn new(global: &Global, output: Option<&Path>) -> Result<Exit, Failed> {
    let new = keys::generate(&Timestamp::now().strftime("%FT%TZ").to_string());
    if let Some(path) = output {
        write_new(path, &new.file).map_err(|e| cannot_write(path, &e))?;
    }
    let printed = match (global.json, output) {
        (true, Some(path)) => {
            json::print(&json!({ "recipient": new.recipient, "file": path.display().to_string() }))
        }
        (true, None) => json::print(&json!({ "recipient": new.recipient, "identity": new.file })),
        (false, None) => text::print(&new.file),
        (false, Some(_)) => Ok(()),
    };
    printed.map_err(Failed::output)?;
    if !global.json {
        let recipient = &new.recipient;
        let next = format!(
            "Public key: {recipient}\n  next: recipients = [\"{recipient}\"] in [encryption] of the configuration\n  \
             and keep the private key off this host, at two places: without it no sealed backup can ever be opened\n"
        );
        io::stderr().lock().write_all(next.as_bytes()).map_err(Failed::output)?;
    }
    Ok(Exit::Ok)
}

fn cannot_write(path: &Path, e: &io::Error) -> Failed {
    let hint = match e.kind() {
        io::ErrorKind::AlreadyExists => {
            "a key that is there may be the only one that opens old backups: name another file"
        }
        io::ErrorKind::PermissionDenied => "run as root, or name a file in a directory of yours",
        _ => "name a file in a directory that is there",
    };
    Failed::text(Exit::Failed, format!("cannot write {}: {e}", path.display()), Some(hint.into()))
}

/// A private file that was not there, on disk when this returns.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(dir)?.sync_all());
    if written.is_err() {
        // Half a key is none. The error that is told already matters more.
        let _ = std::fs::remove_file(path);
    }
    written
}

#[derive(Serialize)]
struct Shown {
    /// Whom backups are sealed for.
    recipients: Vec<String>,
    seal: &'static str,
    /// Where the private keys are to be found.
    identity: Option<String>,
    /// Those that are there, by their public keys.
    opens: Vec<Opens>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Opens {
    recipient: String,
    /// It is one of those that backups are sealed for.
    configured: bool,
}

fn show(global: &Global, given: &[PathBuf], sink: Sink) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = match given {
        [] => Some(load(global, &session.access)?),
        _ => load_optional(global, &session.access)?,
    };
    session.opens_with(setup.as_ref(), given);
    let found = session.keyring.identities(&session.vault).map_err(|e| session.failed(Exit::Failed, &e))?;
    let nothing = Encryption::default();
    let encryption = setup.as_ref().map_or(&nothing, |s| &s.encryption);
    let shown = look(encryption, given, found.as_deref());
    session.monitor.clear();
    let printed = if global.json { json::print(&shown) } else { text::print(&sentences(&shown)) };
    printed.map_err(Failed::output)?;
    Ok(Exit::Ok)
}

/// Tests every sealed copy of one backup, the newest that has one where none is named.
fn test(
    global: &Global,
    backup: Option<&str>,
    given: &[PathBuf],
    place: &PlaceArgs,
    sink: Sink,
) -> Result<Exit, Failed> {
    let mut session = Session::start(global, sink)?;
    let setup = load_optional(global, &session.access)?;
    session.opens_with(setup.as_ref(), given);
    let (mut copies, exit) = match backup {
        Some(name) => {
            let wanted = inspect::parse(&session, name)?;
            inspect::search(&session, setup.as_ref(), &[wanted], place)?
        }
        None => inspect::search(&session, setup.as_ref(), &[Wanted::All], place)?,
    };
    copies.retain(|f| f.entry.manifest.as_ref().is_ok_and(|m| m.encryption.is_sealed()));
    let newest = copies.iter().map(|f| f.entry.name.clone()).max();
    copies.retain(|f| Some(&f.entry.name) == newest.as_ref());
    if copies.is_empty() {
        let hint =
            "name another backup (tars-backup list), or see what is sealed: seal of [encryption]".to_owned();
        return Err(Failed::text(Exit::Failed, "there is no sealed backup to test a key on", Some(hint)));
    }
    let owner = session.reader(setup.as_ref())?;
    let world = session.world(&owner);
    let mut opened = Vec::new();
    for copy in &copies {
        inside::manifest(copy, &world).map_err(|e| session.failed(Exit::Failed, &e))?;
        opened.push((copy.entry.name.to_string(), copy.store().name().to_owned()));
    }
    session.monitor.clear();
    let printed = match global.json {
        true => {
            let rows =
                opened.iter().map(|(name, store)| json!({ "name": name, "store": store, "opens": true }));
            json::print(&rows.collect::<Vec<_>>())
        }
        false => {
            let lines = opened.iter().map(|(name, store)| format!("The key opens {name} in {store}\n"));
            text::print(&lines.collect::<String>())
        }
    };
    printed.map_err(Failed::output)?;
    Ok(exit)
}

fn look(encryption: &Encryption, given: &[PathBuf], found: Option<&Identities>) -> Shown {
    let recipients: Vec<String> = encryption.recipients.texts().map(str::to_owned).collect();
    let opens: Vec<Opens> = found
        .into_iter()
        .flat_map(Identities::recipients)
        .map(|r| Opens { recipient: r.to_owned(), configured: recipients.iter().any(|known| known == r) })
        .collect();
    let identity = match given {
        [] => encryption.identity.as_ref().map(ToString::to_string),
        files => Some(files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")),
    };
    let here = |r: &String| opens.iter().any(|o| o.recipient == *r);
    let mut warnings = Vec::new();
    if recipients.is_empty() {
        warnings.push(
            "no recipients are configured: nothing is sealed, and the secrets of this stack are in no backup"
                .to_owned(),
        );
    } else if found.is_some() && !opens.iter().any(|o| o.configured) {
        warnings.push("no key that is there opens what is sealed from now on".to_owned());
    }
    if given.is_empty() && !recipients.is_empty() && recipients.iter().all(here) {
        warnings.push(
            "every key that opens the backups lies on this host: when it is lost, so are they; keep a copy elsewhere, \
             or add a recipient whose key is elsewhere"
                .to_owned(),
        );
    }
    let seal = match encryption.seal {
        Seal::Offsite => "offsite",
        Seal::Always => "always",
        Seal::Never => "never",
    };
    Shown { recipients, seal, identity, opens, warnings }
}

fn sentences(s: &Shown) -> String {
    let mut out = format!("Sealed for (seal = \"{}\"):\n", s.seal);
    let mine = |r: &String| s.opens.iter().any(|o| o.recipient == *r);
    for r in &s.recipients {
        out.push_str(&format!("  {r}{}\n", if mine(r) { "  (its key is there)" } else { "" }));
    }
    if s.recipients.is_empty() {
        out.push_str("  nobody\n");
    }
    out.push_str(&match (&s.identity, s.opens.as_slice()) {
        (None, _) => "Identity: none is configured\n".to_owned(),
        (Some(from), []) => format!("Identity: {from} is not on this host\n"),
        (Some(from), _) => format!("Identity: {from}\n"),
    });
    for o in s.opens.iter().filter(|o| !o.configured) {
        out.push_str(&format!("  {}  (not a recipient)\n", o.recipient));
    }
    out.extend(s.warnings.iter().map(|w| format!("Warning: {w}\n")));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Recipients, generate};

    #[test]
    fn a_key_that_lies_only_here_is_a_warning_and_one_more_elsewhere_is_not() {
        let (here, elsewhere) = (generate("a"), generate("b"));
        let found = Identities::parse(&here.file).unwrap();
        let encryption = |texts: &[&str]| Encryption {
            recipients: Recipients::parse(texts).unwrap(),
            identity: Some(crate::secret::SecretRef::Credential("age".into())),
            ..Encryption::default()
        };
        let warned = |e: &Encryption, found| look(e, &[], found).warnings.join("; ");
        let only = encryption(&[&here.recipient]);
        assert!(warned(&only, Some(&found)).contains("keep a copy elsewhere"));
        assert_eq!(warned(&only, None), "");
        let both = encryption(&[&here.recipient, &elsewhere.recipient]);
        assert_eq!(warned(&both, Some(&found)), "");
        let other = encryption(&[&elsewhere.recipient]);
        assert!(warned(&other, Some(&found)).contains("no key that is there"));
        assert!(warned(&encryption(&[]), None).contains("in no backup"));
        let text = sentences(&look(&other, &[], Some(&found)));
        assert!(text.contains(&format!("{}  (not a recipient)", here.recipient)), "{text}");
    }
}
