//! Where a drill brings things back: scratch of ours, and containers that are made for it. What could go wrong: something
//! that stays when the drill is over or dead; so the journal has the drill before its first act, and what it made is found
//! by its label.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::{DrillError, Ground};
use crate::docker::hold::Holds;
use crate::docker::{Docker, DockerError, Image, Throwaway};
use crate::hint::{Hint, chain};
use crate::manifest::Component;
use crate::ops::World;
use crate::ops::backup::holds;
use crate::progress::{Event, What};
use crate::run_journal::{Drill, Helper, Step};
use crate::setup::{self, Setup};
use crate::source::Configured;
use crate::units::write_duration;

/// Where one component is brought back.
pub struct Place {
    pub component: String,
    /// Type of the source that brings it there.
    pub kind: String,
    /// For a person.
    pub shown: String,
    /// Facts of where it came from that are not true of it.
    pub forget: Vec<&'static str>,
    /// The rest of the table of that source.
    settings: String,
}

/// Why a component is not drilled, and what to do.
pub type LeftOut = (String, Option<String>);

pub struct Scene<'a> {
    id: String,
    scratch: PathBuf,
    ground: &'a Ground<'a>,
    world: &'a World<'a>,
    holds: Holds<'a>,
    places: Vec<Place>,
    /// None until a server is needed.
    docker: Option<Result<Docker, DockerError>>,
    network: Option<String>,
    begun: bool,
    /// Whether the engine may still make what it was asked for: it did not answer.
    in_doubt: bool,
}

impl<'a> Scene<'a> {
    pub fn new(scratch: &Path, ground: &'a Ground<'a>, world: &'a World<'a>) -> Self {
        let id = format!("{}-{}", std::process::id(), Timestamp::now().as_millisecond());
        Self {
            id,
            scratch: scratch.to_owned(),
            ground,
            world,
            holds: holds(ground.agent, world),
            places: Vec::new(),
            docker: None,
            network: None,
            begun: false,
            in_doubt: false,
        }
    }

    pub fn holds(&self) -> &Holds<'a> {
        &self.holds
    }

    pub fn place_of(&self, component: &str) -> Option<&Place> {
        self.places.iter().find(|p| p.component == component)
    }

    /// Whether a text names something that the drill made.
    pub fn is_about_it(&self, text: &str) -> bool {
        text.contains(&self.prefix())
    }

    fn prefix(&self) -> String {
        format!("tars-backup-drill-{}", self.id)
    }

    /// A directory of ours for a tree.
    pub fn directory(&mut self, component: &str) {
        let path = self.scratch.join(component);
        self.places.push(Place {
            component: component.to_owned(),
            kind: "directory".into(),
            shown: "a scratch directory".into(),
            forget: Vec::new(),
            settings: format!("path = {}", quoted(&path.display().to_string())),
        });
    }

    /// A file of ours for a database.
    pub fn file(&mut self, component: &str, kind: &str) {
        let path = self.scratch.join(format!("{component}.db"));
        self.places.push(Place {
            component: component.to_owned(),
            kind: kind.to_owned(),
            shown: "a scratch file".into(),
            forget: Vec::new(),
            settings: format!("path = {}", quoted(&path.display().to_string())),
        });
    }

    /// A container of the image that a component came from.
    pub fn server(
        &mut self,
        component: &str,
        wanted: &Component,
        make: fn(&Component, &Image) -> Throwaway,
    ) -> Result<Result<(), LeftOut>, DrillError> {
        let docker = match self.connect() {
            Ok(docker) => docker,
            Err(DockerError::Interrupted(i)) => return Err(i.into()),
            Err(e) => return Ok(Err((chain(&e), e.hint()))),
        };
        let (reference, image) = match image_of(&docker, wanted) {
            Ok(Ok(found)) => found,
            Ok(Err(left_out)) => return Ok(Err(left_out)),
            Err(DockerError::Interrupted(i)) => return Err(i.into()),
            Err(e) => return Ok(Err((chain(&e), e.hint()))),
        };
        self.begin(Some(&docker))?;
        let name = format!("{}-{component}", self.prefix());
        let throwaway = make(wanted, &image);
        // Deaf to the interrupt, which would leave us in doubt about what the engine does.
        let made = (|engine: Docker| {
            let network = match &self.network {
                _ if !throwaway.by_network => None,
                Some(network) => Some(network.clone()),
                None => Some(self.network.insert(engine.create_drill_network(&self.id)?).clone()),
            };
            engine.create_throwaway(&self.id, network.as_deref(), &name, &reference, &throwaway)
        })(docker.undisturbed());
        let id = match made {
            Ok(id) => id,
            Err(e) => {
                self.in_doubt |= !matches!(e, DockerError::Refused { .. });
                return Ok(Err((format!("no container can be made for it: {}", chain(&e)), e.hint())));
            }
        };
        self.world.cancel.check()?;
        let shown = wanted.facts.get("image").and_then(Value::as_str).unwrap_or(&reference);
        self.places.push(Place {
            component: component.to_owned(),
            kind: wanted.kind.clone(),
            shown: format!("a throwaway container of {shown}"),
            forget: throwaway.forget,
            // By its number, also as a service: nothing that is live has such a name.
            settings: format!("container = {0}\nservice = {0}", quoted(&id)),
        });
        Ok(Ok(()))
    }

    fn connect(&mut self) -> Result<Docker, DockerError> {
        let (ground, world) = (self.ground, self.world);
        let connect = || {
            Docker::connect(
                ground.docker.socket.as_deref(),
                None,
                world.runtime.clone(),
                world.cancel.clone(),
            )
        };
        self.docker.get_or_insert_with(connect).clone()
    }

    /// Before each act: whoever recovers waits as long after the last one as the engine may still be at it.
    fn begin(&mut self, docker: Option<&Docker>) -> Result<(), DrillError> {
        if !self.begun {
            self.holds.begin_changes(docker)?;
            self.begun = true;
        }
        let drill = Drill { id: self.id.clone(), at: Timestamp::now() };
        Ok(self.holds.journal().record(&Step::Drill(drill))?)
    }

    /// The engine, in which there is nothing but what the drill made.
    pub fn engine(&self) -> Result<Docker, DockerError> {
        match &self.docker {
            Some(docker) => docker.clone().map(|d| d.fenced(&self.id)),
            None => Err(DockerError::Unreachable { socket: String::new(), reason: "not asked for".into() }),
        }
    }

    /// Why the engine that made the containers does not answer any more: then they ended with it, whatever they held.
    pub fn engine_gone(&self) -> Option<DockerError> {
        let Some(Ok(docker)) = &self.docker else { return None };
        docker.undisturbed().version().err().filter(DockerError::is_of_this_machine)
    }

    /// A configuration of these places alone.
    pub fn setup(&mut self) -> Result<Setup, DrillError> {
        if !self.places.is_empty() && !self.begun {
            self.begin(None)?;
        }
        let mut text = String::new();
        for place in &self.places {
            let (name, kind) = (quoted(&place.component), quoted(&place.kind));
            let limits = limits_for(place, self.ground.sources);
            let _ = writeln!(text, "[sources.{name}]\ntype = {kind}\n{}\n{limits}", place.settings);
        }
        sources_of(self.ground, &text)
    }

    /// Removes all that was made; what is left, for a person.
    pub fn clear(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if !self.begun {
            return left;
        }
        self.begun = false;
        self.world.monitor.phase("removing what the drill made", None);
        let settle = if self.in_doubt { Helper::SETTLE } else { Duration::ZERO };
        let removed = match &self.docker {
            Some(Ok(docker)) => docker.undisturbed().remove_drill(&self.id, settle).map(|_| ()),
            _ => Ok(()),
        };
        let known = removed.map_err(|e| chain(&e)).and_then(|()| {
            let step = Step::DrillRemoved { id: self.id.clone() };
            self.holds.journal().record(&step).map_err(|e| chain(&e))
        });
        if let Err(why) = known {
            let text = format!(
                "what the drill made could not be removed ({why}): tars-backup recover, or docker ps -a --filter label={}={}",
                crate::docker::DRILL_LABEL,
                self.id
            );
            self.world.monitor.event(Event::new(What::ContainerLeft, text.clone()));
            left.push(text);
        }
        left.extend(self.holds.finish());
        left
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        // What is left then is told as an event, and the journal has it.
        let _ = self.clear();
    }
}

/// What to call the image that a component came from, and what is in it. Never by its name alone: another one may have
/// that by now.
fn image_of(docker: &Docker, component: &Component) -> Result<Result<(String, Image), LeftOut>, DockerError> {
    let fact = |key: &str| component.facts.get(key).and_then(Value::as_str).filter(|v| !v.is_empty());
    let (name, id, digest) = (fact("image"), fact("image_id"), fact("image_digest"));
    for reference in [id, digest].into_iter().flatten() {
        let Some(image) = docker.image(reference)? else { continue };
        // Servers tell their version by it, where it still means the same.
        let same = match name.map(|n| docker.image(n)).transpose()?.flatten() {
            Some(named) if named.id == image.id => name,
            _ => None,
        };
        return Ok(Ok((same.unwrap_or(reference).to_owned(), image)));
    }
    Ok(Err(match (id, digest, name) {
        (None, None, _) => ("the backup does not say which image it came from".into(), None),
        (_, Some(digest), _) => {
            (format!("its image {digest} is not on this engine"), Some(format!("docker pull {digest}")))
        }
        (Some(id), None, name) => (
            format!("its image {} ({id}) is not on this engine", name.unwrap_or("of no name")),
            Some("bring it there: docker save it where it runs, docker load it here".into()),
        ),
    }))
}

fn sources_of(ground: &Ground<'_>, text: &str) -> Result<Setup, DrillError> {
    setup::of_sources(text, ground.agent, ground.docker, ground.host).map_err(|problems| {
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        DrillError::Sources(texts.join("; "))
    })
}

/// How long the configured source of the same name may take, as lines of a table.
fn limits_for(place: &Place, sources: &[Configured]) -> String {
    let Some(of_name) = sources.iter().find(|s| s.name.as_str() == place.component) else {
        return String::new();
    };
    let mut limits = vec![("timeout", of_name.limits.total), ("idle_timeout", of_name.limits.idle)];
    if of_name.kind == place.kind {
        limits.extend(of_name.source.more_limits());
    }
    let line = |(key, limit): (&str, Duration)| format!("{key} = {}\n", quoted(&write_duration(limit)));
    limits.into_iter().map(line).collect()
}

/// As TOML writes a string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
