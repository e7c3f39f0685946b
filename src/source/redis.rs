//! Redis through its own background save. What could go wrong: an old dump file taken for a new one, or a save that
//! failed; so the file must be another one than before (it is replaced by renaming), the server must call the save
//! good, and the copy must pass its own checksum.

mod counts;
mod server;
mod settings;
mod target;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde_json::{Map, Value, json};

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, Source, SourceError, Uses, container_facts, copy,
    quote, selector,
};
use crate::archive::compress::ComponentWriter;
use crate::config::Section;
use crate::docker::{Image, Limits, Selector, Throwaway};
use crate::format::rdb::{self, Checked, RdbFacts};
use crate::id::Name;
use crate::manifest::Component;
use crate::secret::SecretRef;
use crate::staging::Stage;
use crate::target::Target;
use server::Server;
use settings::{fact, first_part, list_of_first_part, list_of_parts};
use target::RedisTarget;

pub const KIND: Kind = Kind {
    critical: false,
    on_by_default: true,
    watched: false,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Server(throwaway),
};

struct Redis {
    name: Name,
    selector: Selector,
    user: Option<String>,
    password: Option<SecretRef>,
    port: Option<i64>,
    rdb_path: Option<PathBuf>,
    save_timeout: Duration,
    limits: Limits,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    Box::new(Redis {
        name: name.clone(),
        selector: selector(name, s),
        user: s.text("user", "ACL user; default: the default user"),
        password: s
            .secret("password", "Password; default: from the arguments or the environment of the container"),
        port: s.whole(
            "port",
            "Port inside the container; default: from its arguments, else 6379",
            1..=65_535,
        ),
        rdb_path: s
            .path_of("rdb_path", "Path of the dump file in the container, where CONFIG GET is not allowed"),
        save_timeout: s.duration_or(
            "save_timeout",
            Duration::from_secs(1800),
            "Longest time for a background save, and for reading the data after a restore",
        ),
        limits,
    })
}

/// A server that keeps an append-only file if the other one did: that is what a restore must get right.
fn throwaway(component: &Component, image: &Image) -> Throwaway {
    let aof = component.facts.get("aof").and_then(Value::as_bool) == Some(true);
    let is_server = |word: &String| word.ends_with("-server");
    let cmd = match (aof, image.cmd.first().is_some_and(is_server)) {
        (true, true) => {
            let more = ["--appendonly", "yes"].map(str::to_owned);
            Some(image.cmd.iter().cloned().chain(more).collect())
        }
        _ => None,
    };
    let dir = if image.working_dir.len() > 1 { image.working_dir.as_str() } else { "/data" };
    Throwaway {
        volumes: image.volumes_with(&[dir]),
        cmd,
        // It keeps its data as its image does, whatever the other one was told.
        forget: vec!["dir", "dbfilename", "appenddirname", "appendfilename"],
        ..Throwaway::default()
    }
}

/// Where the dump file is read from.
enum Dump {
    Host(PathBuf),
    Engine(String),
}

impl Redis {
    fn server<'a>(&self, context: &'a Context<'_>) -> Result<Server<'a>, SourceError> {
        let (in_use, container) = context.running(&self.selector)?;
        Server::of(self, context, container, Some(in_use))
    }

    fn dump_place(&self, server: &Server<'_>) -> Result<(Dump, Option<String>), SourceError> {
        let path = match &self.rdb_path {
            Some(path) => path.display().to_string(),
            None => {
                format!("{}/{}", server.setting("dir")?.trim_end_matches('/'), server.setting("dbfilename")?)
            }
        };
        let place = server.docker.place(&server.container, &path)?;
        let volume = place.volume().map(str::to_owned);
        let dump = place.host_path().map_or(Dump::Engine(path), Dump::Host);
        Ok((dump, volume))
    }

    /// Has the server write a new dump file, or joins a save that is under way; returns once it is complete.
    fn save(&self, context: &Context<'_>, server: &Server<'_>, dump: &Dump) -> Result<(), SourceError> {
        let before = server.fingerprint(dump)?;
        let deadline = Instant::now() + self.save_timeout;
        let mut joined = server.persistence()?.get("rdb_bgsave_in_progress").is_some_and(|v| v == "1");
        if !joined {
            server.begin_save()?;
        }
        let mut pause = Duration::from_millis(50);
        loop {
            let state = server.persistence()?;
            let is = |key: &str, value: &str| state.get(key).is_some_and(|v| v == value);
            if is("rdb_bgsave_in_progress", "0") && is("loading", "0") {
                if !is("rdb_last_bgsave_status", "ok") {
                    return Err(SourceError::hinted(
                        server.container.name.clone(),
                        "the background save failed",
                        format!(
                            "is the disk full or read-only? docker logs --tail 20 {}",
                            server.container.name
                        ),
                    ));
                }
                let now = server.fingerprint(dump)?;
                if now.is_some() && now != before {
                    return Ok(());
                }
                // The save that we joined had put its file in place before we looked at it the first time.
                if joined {
                    server.begin_save()?;
                    joined = false;
                }
            }
            if Instant::now() > deadline {
                return Err(SourceError::hinted(
                    server.container.name.clone(),
                    format!("no new dump file after {} s", self.save_timeout.as_secs()),
                    "raise save_timeout of the source if the data is only large",
                ));
            }
            context.monitor.waiting("waiting for Redis to save");
            context.cancel.check()?;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn fetch(
        &self,
        context: &Context<'_>,
        server: &Server<'_>,
        dump: &Dump,
        member: &str,
        out: &mut ComponentWriter,
    ) -> Result<(), SourceError> {
        match dump {
            Dump::Host(path) => {
                // A container may put a link there that leads out of its volume.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(path, flags, Mode::empty())
                    .map_err(|e| SourceError::Read { what: path.display().to_string(), source: e.into() })?;
                copy(context, &path.display().to_string(), &mut File::from(file), member, out)?;
            }
            Dump::Engine(path) => {
                let download = server.docker.download(&server.container.id, path, self.limits.idle);
                let what = format!("{path} of {}", server.container.name);
                let read = |source| SourceError::Read { what: what.clone(), source };
                let mut write_error = None;
                crate::archive::read::only_file(download, |body| {
                    copy(context, &what, body, member, out).map(|_| ()).map_err(|e| {
                        write_error = Some(e);
                        std::io::Error::other("stopped")
                    })
                })
                .map_err(|e| write_error.take().unwrap_or_else(|| read(e)))?;
            }
        }
        Ok(())
    }
}

impl Source for Redis {
    fn needs_docker(&self) -> bool {
        true
    }

    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        component: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        Ok(Some(Box::new(RedisTarget::find(self, context, &component.facts)?)))
    }

    fn uses(&self) -> Uses<'_> {
        Uses { container: Some(&self.selector), ..Uses::default() }
    }

    fn more_limits(&self) -> Vec<(&'static str, Duration)> {
        vec![("save_timeout", self.save_timeout)]
    }

    fn method(&self) -> String {
        let container = self.selector.container.as_ref().unwrap_or(&self.selector.service);
        format!("background save of the container {container}, copy of its dump file")
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let server = self.server(context)?;
        self.dump_place(&server)?;
        let memory = server.info("memory")?;
        Ok(memory.get("used_memory_dataset").and_then(|v| v.parse().ok()))
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let server = self.server(context)?;
        let (dump, volume) = self.dump_place(&server)?;
        self.save(context, &server, &dump)?;
        let member = format!("{}-dump.rdb", self.name);
        let mut out = stage.plain(&member)?;
        self.fetch(context, &server, &dump, &member, &mut out)?;
        out.flush().map_err(SourceError::write(&member))?;
        let staged = out.finish().map_err(SourceError::write(&member))?;
        let copied =
            File::open(&staged.path).map_err(|source| SourceError::Read { what: member.clone(), source })?;
        let found =
            rdb::check(copied).map_err(|e| SourceError::bad(member.clone(), crate::hint::chain(&e)))?;

        let mut capture = Capture {
            bytes_in: staged.bytes_in,
            files: 1,
            consistency: "background save",
            volumes: volume.into_iter().collect(),
            ..Capture::default()
        };
        container_facts(&mut capture.facts, context, &server.container);
        let about = server.info("server")?;
        capture.facts.insert("server_version".into(), json!(about.get("redis_version")));
        let state = server.persistence()?;
        let aof = state.get("aof_enabled").is_some_and(|v| v == "1");
        capture.facts.insert("aof".into(), json!(aof));
        // Names that a restore needs; a server that does not tell them has the usual ones.
        for key in ["dir", "dbfilename", "appenddirname", "appendfilename"] {
            if let Ok(value) = server.setting(key) {
                capture.facts.insert(key.into(), json!(value));
            }
        }
        match found {
            Checked::Counted(facts) => capture.facts.extend(rdb_facts(&facts)),
            Checked::Opaque { why, .. } => {
                capture
                    .warnings
                    .push(format!("its checksum is right, but its keys could not be counted: {why}"));
            }
        }
        capture.staged.push(staged);
        Ok(capture)
    }
}

impl Server<'_> {
    /// What tells one dump file from the next: Redis writes beside and renames, so inode and time change.
    fn fingerprint(&self, dump: &Dump) -> Result<Option<String>, SourceError> {
        match dump {
            Dump::Host(path) => match std::fs::symlink_metadata(path) {
                Ok(m) => Ok(Some(format!("{}:{}.{}:{}", m.ino(), m.mtime(), m.mtime_nsec(), m.len()))),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(SourceError::Read { what: path.display().to_string(), source }),
            },
            Dump::Engine(path) => {
                let stat = self.docker.file_stat(&self.container.id, path)?;
                Ok(stat.map(|(size, mtime)| format!("{mtime}:{size}")))
            }
        }
    }
}

fn rdb_facts(found: &RdbFacts) -> Map<String, Value> {
    let databases: Map<String, Value> = found
        .keys
        .iter()
        .map(|(db, f)| (db.to_string(), json!({ "keys": f.keys, "expires": f.expires })))
        .collect();
    Map::from_iter([
        ("databases".to_owned(), Value::Object(databases)),
        ("functions".to_owned(), json!(found.functions)),
        ("rdb_version".to_owned(), json!(found.version)),
    ])
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    let body: &mut dyn Read = member.body;
    let found = rdb::check(body).map_err(|e| CheckError::Bad(crate::hint::chain(&e)))?;
    let Some(wanted) = member.component.facts.get("databases") else { return Ok(()) };
    match found {
        Checked::Counted(facts) if rdb_facts(&facts).get("databases") != Some(wanted) => {
            Err(CheckError::Bad("its keys per database are not those of the manifest".into()))
        }
        _ => Ok(()),
    }
}

fn restore(_: &str, component: &Component) -> String {
    let fact = |key: &str, default: &str| fact(&component.facts, key).unwrap_or_else(|| default.to_owned());
    let member = component.members.first().map_or("", String::as_str);
    let (container, image) = (fact("container", "CONTAINER"), fact("image", "IMAGE"));
    let (dir, rdb) = (fact("dir", "/data"), fact("dbfilename", "dump.rdb"));
    let (aof_dir, aof) = (fact("appenddirname", "appendonlydir"), fact("appendfilename", "appendonly.aof"));
    // Directory and file names are the operator's choice, blanks included.
    let aside = format!(
        "cd {}; for f in {} {}; do [ ! -e \"$f\" ] || mv \"$f\" \"$f.old.$(date +%s)\"; done",
        quote(&dir),
        quote(&rdb),
        quote(&aof_dir)
    );
    let mut text = format!(
        "Redis {} (image `{image}`). Stop the server, move its old files aside, put the new ones into the data volume and \
         start it. Run it in the unpacked directory of the backup:\n\n```\nset -e\nredis-check-rdb {member}\n\
         docker stop {container}\n\
         docker run --rm --network none --volumes-from {container} --entrypoint sh {image} -c \\\n  \
         {}\n",
        fact("server_version", ""),
        quote(&aside),
    );
    if component.facts.get("aof").and_then(Value::as_bool) == Some(true) {
        let base = quote(&format!("{aof_dir}/{}", first_part(&aof)));
        text.push_str(&format!(
            "# With appendonly yes the server ignores {rdb}: it gets the file as the base of a new append-only set.\n\
             mkdir {}\ncp {member} {base}\nprintf '%s\\n' {} > {}\nchmod -R a+rX {}\ndocker cp {} {}\n",
            quote(&aof_dir),
            quote(&list_of_first_part(&aof)),
            quote(&format!("{aof_dir}/{}", list_of_parts(&aof))),
            quote(&aof_dir),
            quote(&aof_dir),
            quote(&format!("{container}:{dir}/")),
        ));
    }
    text.push_str(&format!(
        "docker cp {member} {}\n\
         docker run --rm --network none --volumes-from {container} --entrypoint sh {image} -c {}\n\
         docker start {container}\n```\n\nWhen all is well, remove the files that end in `.old.` and a number.\n",
        quote(&format!("{container}:{dir}/{rdb}")),
        quote(&format!("chown -R --reference={0} {0}", quote(&dir))),
    ));
    text
}
