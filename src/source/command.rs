//! The standard output of a program. What could go wrong: half an output taken for all of it, so only the exit status
//! 0 makes it a capture.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Map, json};

use super::{Capture, CheckError, Context, Kind, Member, Rehearsal, Rehearsed, Source, SourceError};
use crate::config::Section;
use crate::docker::Limits;
use crate::id::{Name, encode};
use crate::manifest::Component;
use crate::process::{Process, Request};
use crate::secret::SecretRef;
use crate::staging::Stage;

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Read(|_, _| Ok(Rehearsed::default())),
};

struct Command {
    argv: Vec<String>,
    member: String,
    env: Vec<(String, String)>,
    secret_env: Option<(String, SecretRef)>,
    dir: Option<PathBuf>,
    allow_empty: bool,
    limits: Limits,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    let argv = s.texts("command", "Program and arguments; no shell reads them");
    if argv.first().is_none_or(String::is_empty) && s.is_present() {
        s.problem(
            "command",
            "names no program",
            Some("for example command = [\"mariadb-dump\", \"--all-databases\"]".into()),
        );
    }
    let member = s
        .text(
            "filename",
            "Name of its output in the archive, before the suffix of its compression; default: NAME.out",
        )
        .unwrap_or_else(|| format!("{name}.out"));
    if member != encode(&member) || member.starts_with('.') {
        s.problem("filename", "must be a plain file name", Some("letters, digits, '.', '_' and '-'".into()));
    }
    let secret = s.secret("secret", "Secret that the program finds in the environment as secret_env");
    let secret_name = s.text_or("secret_env", "TARS_BACKUP_SECRET", "Environment variable for the secret");
    Box::new(Command {
        argv,
        member: encode(&member),
        env: s.text_table("env", "Environment variables; no secrets"),
        secret_env: secret.map(|r| (secret_name, r)),
        dir: s.path_of("directory", "Working directory"),
        allow_empty: s.flag("allow_empty", false, "No output at all is no failure"),
        limits,
    })
}

impl Source for Command {
    fn method(&self) -> String {
        format!("output of {}", self.argv.first().map_or("", String::as_str))
    }

    fn probe(&self, _: &Context<'_>) -> Result<Option<u64>, SourceError> {
        Ok(None)
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let mut env: Vec<(OsString, OsString)> = self.env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        if let Some((name, reference)) = &self.secret_env {
            env.push((name.into(), context.vault.read(reference)?.into()));
        }
        let request = Request {
            argv: self.argv.clone(),
            env,
            dir: self.dir.clone(),
            total: self.limits.total,
            idle: self.limits.idle,
        };
        let mut out = stage.compressed(&self.member)?;
        let mut process = Process::start(&request, context.runtime.clone(), context.cancel.clone())?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let n = process.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            out.write_all(&buffer[..n]).map_err(SourceError::write(&self.member))?;
            context.monitor.moved(n as u64);
        }
        process.finish()?;
        let bytes_in = out.bytes_in();
        if bytes_in == 0 && !self.allow_empty {
            return Err(SourceError::hinted(
                self.method(),
                "there was none",
                "if that is right, set allow_empty = true",
            ));
        }
        let staged = out.finish().map_err(SourceError::write(&self.member))?;
        let facts = Map::from_iter([
            ("program".to_owned(), json!(self.argv.first())),
            ("bytes".to_owned(), json!(bytes_in)),
        ]);
        Ok(Capture {
            staged: vec![staged],
            bytes_in,
            files: 1,
            consistency: "command",
            facts,
            ..Capture::default()
        })
    }
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    let found = std::io::copy(member.body, &mut std::io::sink()).map_err(CheckError::Read)?;
    let wanted = member.component.facts.get("bytes").and_then(serde_json::Value::as_u64);
    if wanted.is_some_and(|w| w != found) {
        return Err(CheckError::Bad(format!("{found} bytes, the manifest says {}", wanted.unwrap_or(0))));
    }
    Ok(())
}

fn restore(_: &str, component: &Component) -> String {
    let member = component.members.first().map_or("", String::as_str);
    let program = component.facts.get("program").and_then(serde_json::Value::as_str).unwrap_or("a program");
    format!("Output of `{program}`, in `{member}`. Unpack it and feed it to the tool that reads it.\n")
}
