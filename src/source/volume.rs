//! A Docker volume, or a directory of a container wherever it lies. What could go wrong: an empty volume beside the
//! real data, and a copy of files that are being written; so the place is found through the container's own mounts, and
//! the containers that write there are held while it is read.

use serde_json::json;

use super::{
    Capture, CheckError, Context, Kind, Member, Rehearsal, Source, SourceError, Uses, check_tree,
    container_facts, layer_warning, place_target, tree_facts,
};
use crate::archive::tree::Unwatched;
use crate::config::Section;
use crate::docker::{Container, DockerError, Limits, Place, Seat, Selector};
use crate::held_copy::{self, Consistency, CopySettings, HeldCopy};
use crate::id::Name;
use crate::manifest::Component;
use crate::staging::Stage;
use crate::target::Target;

pub const KIND: Kind = Kind {
    critical: true,
    on_by_default: true,
    watched: true,
    read,
    check,
    restore,
    rehearsal: Rehearsal::Directory,
};

struct Volume {
    name: Name,
    /// A volume by its name, found without a container.
    volume: Option<String>,
    /// A path in a container.
    inside: Option<(Selector, String)>,
    copy: CopySettings,
}

fn read(name: &Name, s: &Section<'_>, limits: Limits) -> Box<dyn Source> {
    let volume = s.text("volume", "Volume, as in the Compose file or in full");
    let selector = super::selector(name, s);
    let path =
        s.text("path", "Directory in the container, wherever it lies: a volume, a bind mount or its layer");
    match (&path, &volume) {
        (None, None) => s.problem(
            "volume",
            "missing",
            Some("name a volume, or a container and the path of its data".into()),
        ),
        (Some(p), _) if !p.starts_with('/') => s.problem("path", "must be absolute", None),
        (None, Some(_)) if selector.container.is_some() => s.problem(
            "container",
            "needs the path of the data in it",
            Some("add path = \"/…\", or leave out container: a volume is found without one".into()),
        ),
        _ => {}
    }
    Box::new(Volume {
        name: name.clone(),
        volume,
        inside: path.map(|path| (selector, path)),
        copy: CopySettings::read(s, Consistency::Pause, limits.idle),
    })
}

impl Volume {
    fn find(&self, context: &Context<'_>) -> Result<(Option<Container>, Place, Vec<String>), SourceError> {
        let docker = context.docker()?;
        let Some((selector, path)) = &self.inside else {
            let wanted = self.volume.as_deref().unwrap_or_default();
            return Ok((None, docker.find_volume(wanted)?, Vec::new()));
        };
        let container = match (docker.find(selector), &self.volume) {
            // Nobody writes to it then, and the volume is still there.
            (Err(e @ DockerError::NoContainer { .. }), Some(volume)) => {
                let place = docker.find_volume(volume)?;
                return Ok((None, place, vec![format!("{e}; took the volume {volume} without it")]));
            }
            (found, _) => found?,
        };
        let place = context.place(&container, path)?;
        let mut warnings = Vec::new();
        if matches!(place.seat, Seat::Layer { .. }) {
            warnings.push(layer_warning(&container, path));
        }
        if let Some(volume) = &self.volume {
            let meant = docker.find_volume(volume)?;
            if meant.volume() != place.volume() {
                warnings.push(format!(
                    "{path} of {} lies in {}, not in the volume {volume} that the configuration names",
                    container.name,
                    place.describe()
                ));
            }
        }
        Ok((Some(container), place, warnings))
    }
}

impl Source for Volume {
    fn target<'a>(
        &'a self,
        context: &Context<'_>,
        _: &Component,
    ) -> Result<Option<Box<dyn Target + 'a>>, SourceError> {
        let (container, place, _) = self.find(context)?;
        Ok(Some(place_target(context, place, container.as_ref(), &self.copy)?))
    }

    fn needs_docker(&self) -> bool {
        true
    }

    fn uses(&self) -> Uses<'_> {
        let container = self.inside.as_ref().map(|(selector, _)| selector);
        Uses { container, volume: self.volume.as_deref(), ..Uses::default() }
    }

    fn method(&self) -> String {
        let what = match (&self.inside, &self.volume) {
            (Some((selector, path)), _) => {
                format!(
                    "{path} of the container {}",
                    selector.container.as_ref().unwrap_or(&selector.service)
                )
            }
            (None, volume) => format!("volume {}", volume.as_deref().unwrap_or_default()),
        };
        format!("copy of {what} ({})", self.copy.consistency.word())
    }

    fn probe(&self, context: &Context<'_>) -> Result<Option<u64>, SourceError> {
        let (_, place, _) = self.find(context)?;
        held_copy::estimate(&place, &self.copy, context)
    }

    fn capture(&self, context: &Context<'_>, stage: &Stage<'_>) -> Result<Capture, SourceError> {
        let (container, place, mut warnings) = self.find(context)?;
        let member = format!("{}.tar", self.name);
        let copy =
            HeldCopy { place: &place, container: container.as_ref(), settings: &self.copy, member: &member };
        let copied = copy.take(context, stage, &mut Unwatched)?;
        let mut facts = tree_facts(&copied.report);
        if let Some(container) = &container {
            container_facts(&mut facts, context, container);
        }
        held_copy::facts(&place, self.inside.as_ref().map(|(_, path)| path.as_str()), &mut facts);
        if !self.copy.exclude.patterns().is_empty() {
            facts.insert("excluded".into(), json!(self.copy.exclude.patterns()));
        }
        warnings.extend(copied.warnings);
        Ok(Capture {
            bytes_in: copied.report.bytes,
            files: copied.report.files,
            consistency: self.copy.consistency.word(),
            incomplete: copied.report.incomplete(),
            warnings,
            facts,
            volumes: place.volume().map(str::to_owned).into_iter().collect(),
            staged: vec![copied.staged],
            paused: copied.paused,
        })
    }
}

fn check(member: &mut Member<'_>) -> Result<(), CheckError> {
    check_tree(member)
}

fn restore(name: &str, component: &Component) -> String {
    held_copy::guide(name, component)
}
