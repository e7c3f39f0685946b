//! A Redis server in its container: asked through its own redis-cli. What could go wrong: a refusal taken for an answer,
//! because redis-cli ends with 0 either way; so the reply itself is read.

use std::collections::BTreeMap;

use super::Redis;
use super::settings::argument;
use crate::docker::hold::InUse;
use crate::docker::{Container, Docker, Limits};
use crate::source::{Context, SourceError};

/// A server that can be asked.
pub(super) struct Server<'a> {
    pub docker: &'a Docker,
    /// Nobody holds the container while it is asked. None where we hold it ourselves and have started it again.
    _in_use: Option<InUse<'a>>,
    pub container: Container,
    env: Vec<(String, String)>,
    options: Vec<String>,
    pub limits: Limits,
}

impl<'a> Server<'a> {
    /// `container` runs.
    pub fn of(
        source: &Redis,
        context: &'a Context<'_>,
        container: Container,
        in_use: Option<InUse<'a>>,
    ) -> Result<Self, SourceError> {
        let docker = context.docker()?;
        let password = match &source.password {
            Some(reference) => Some(context.vault.read(reference)?),
            None => argument(&container.args, "--requirepass")
                .or_else(|| container.env.get("REDIS_PASSWORD").cloned())
                .filter(|p| !p.is_empty()),
        };
        let mut env = Vec::new();
        if let Some(password) = password {
            let names = [source.name.as_str(), &container.name, &container.image];
            context.vault.learn_unless_name("the password of Redis", &password, &names);
            env.push(("REDISCLI_AUTH".to_owned(), password));
        }
        let mut options = Vec::new();
        let port = source.port.map(|p| p.to_string()).or_else(|| argument(&container.args, "--port"));
        if let Some(port) = port {
            options.extend(["-p".to_owned(), port]);
        }
        if let Some(user) = &source.user {
            options.extend(["--user".to_owned(), user.clone()]);
        }
        Ok(Self { docker, _in_use: in_use, container, env, options, limits: source.limits })
    }

    /// The reply to one command. redis-cli ends with 0 even when the server refused, so the reply itself is read.
    pub fn command(&self, words: &[&str]) -> Result<String, SourceError> {
        let mut argv: Vec<&str> = vec!["redis-cli", "--no-auth-warning"];
        argv.extend(self.options.iter().map(String::as_str));
        argv.extend(words);
        let output = self.docker.run(&self.container, None, &self.env, &argv, self.limits)?;
        let reply = output.text();
        let first = reply.split_whitespace().next().unwrap_or_default();
        let refused = ["NOAUTH", "WRONGPASS", "NOPERM", "ERR", "LOADING", "MISCONF", "BUSY", "MASTERDOWN"];
        if refused.contains(&first) {
            let hint = match first {
                "NOAUTH" | "WRONGPASS" => "set password = { credential = \"…\" } of the source",
                "NOPERM" => "allow the user INFO, BGSAVE and CONFIG GET, or set rdb_path",
                _ => "look at the server: docker logs",
            };
            let what = format!("{} of {}", words.join(" "), self.container.name);
            // After a wrong password redis-cli goes on without one: the reply alone would say that none was given.
            let why =
                if output.stderr.contains("WRONGPASS") { output.stderr } else { reply.trim().to_owned() };
            return Err(SourceError::hinted(what, why, hint));
        }
        Ok(reply)
    }

    pub fn info(&self, section: &str) -> Result<BTreeMap<String, String>, SourceError> {
        let reply = self.command(&["INFO", section])?;
        Ok(reply
            .lines()
            .filter_map(|l| l.trim_end().split_once(':'))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect())
    }

    pub fn persistence(&self) -> Result<BTreeMap<String, String>, SourceError> {
        let state = self.info("persistence")?;
        if state.contains_key("rdb_bgsave_in_progress") {
            return Ok(state);
        }
        Err(SourceError::bad(self.container.name.clone(), "INFO persistence was not answered as Redis does"))
    }

    /// What `CONFIG GET` says of one key.
    pub fn setting(&self, key: &str) -> Result<String, SourceError> {
        let reply = self.command(&["CONFIG", "GET", key])?;
        let mut lines = reply.lines();
        match (lines.next(), lines.next()) {
            (Some(k), Some(value)) if k == key && !value.is_empty() => Ok(value.to_owned()),
            _ => Err(SourceError::hinted(
                self.container.name.clone(),
                format!("CONFIG GET {key} was not answered"),
                "set rdb_path of the source to the dump file in the container",
            )),
        }
    }

    pub fn begin_save(&self) -> Result<(), SourceError> {
        match self.command(&["BGSAVE"]) {
            Ok(_) => Ok(()),
            Err(SourceError::Bad { why, .. }) if why.contains("already in progress") => Ok(()),
            // A rewrite of the append-only file goes first; the save follows it.
            Err(SourceError::Bad { why, .. }) if why.contains("rewrit") || why.contains("child process") => {
                self.command(&["BGSAVE", "SCHEDULE"]).map(|_| ())
            }
            Err(e) => Err(e),
        }
    }
}
