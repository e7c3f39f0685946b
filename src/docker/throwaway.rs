//! Containers that a drill makes, uses and throws away. What could go wrong: something of them that stays, or that reaches
//! what is live, or is reached by it. So whatever is made carries the label of its drill and nothing else that anybody looks
//! for, and is found again by the label alone. It publishes no port and has no network; where its server can be asked in no
//! other way, one of its own that leads nowhere, which only processes of this host reach.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, Mount, MountType, NetworkCreateRequest,
    VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
};

use super::client::{Docker, DockerError};

/// Label of everything that a drill makes; its value is the drill.
pub const DRILL_LABEL: &str = "tars-backup.drill";
/// How long the engine is asked again to remove what is still in use.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(300);

/// An image that the engine has.
#[derive(Debug, Clone, Default)]
pub struct Image {
    pub id: String,
    /// What a registry calls it, `NAME@sha256:…`; empty where it came from none.
    pub digests: Vec<String>,
    pub env: Vec<(String, String)>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// Paths that it declares as volumes.
    pub volumes: Vec<String>,
    pub working_dir: String,
}

impl Image {
    /// The paths that it declares as volumes, and those of `more` that lie in none of them.
    pub fn volumes_with(&self, more: &[&str]) -> Vec<String> {
        let mut paths = self.volumes.clone();
        for path in more {
            if !paths.iter().any(|known| Path::new(path).starts_with(known)) {
                paths.push((*path).to_owned());
            }
        }
        paths
    }
}

/// A container to be made from an image.
#[derive(Debug, Clone, Default)]
pub struct Throwaway {
    /// Paths that get a volume of their own.
    pub volumes: Vec<String>,
    pub env: Vec<(String, String)>,
    /// None: what the image says.
    pub cmd: Option<Vec<String>>,
    /// Whether it is asked over a network: else it has none.
    pub by_network: bool,
    /// Facts of the source that are not true of it.
    pub forget: Vec<&'static str>,
}

impl Docker {
    /// The image of this name, id or digest; None when the engine has none. Nothing is pulled.
    pub fn image(&self, wanted: &str) -> Result<Option<Image>, DockerError> {
        let what = format!("looking for the image {wanted}");
        let found = match self.call(&what, self.api.inspect_image(wanted)) {
            Err(DockerError::Refused { status: 404 | 400, .. }) => return Ok(None),
            other => other?,
        };
        let config = found.config.unwrap_or_default();
        let pair = |line: &String| line.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        Ok(Some(Image {
            id: found.id.unwrap_or_default(),
            digests: found.repo_digests.unwrap_or_default(),
            env: config.env.unwrap_or_default().iter().filter_map(pair).collect(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
        }))
    }

    /// A network of the drill from which nothing else can be reached; its name.
    pub fn create_drill_network(&self, drill: &str) -> Result<String, DockerError> {
        let name = format!("tars-backup-drill-{drill}");
        let request = NetworkCreateRequest {
            name: name.clone(),
            internal: Some(true),
            labels: Some(label(drill)),
            ..NetworkCreateRequest::default()
        };
        self.call("creating the network of the drill", self.api.create_network(request))?;
        Ok(name)
    }

    /// A container of the drill, not started; its id. `image` must be there. Without a network it has its loopback alone.
    pub fn create_throwaway(
        &self,
        drill: &str,
        network: Option<&str>,
        name: &str,
        image: &str,
        wanted: &Throwaway,
    ) -> Result<String, DockerError> {
        let mut mounts = Vec::new();
        for (number, path) in wanted.volumes.iter().enumerate() {
            let volume = format!("{name}-{number}");
            let request = VolumeCreateRequest {
                name: Some(volume.clone()),
                labels: Some(label(drill)),
                ..VolumeCreateRequest::default()
            };
            self.call("creating a volume of the drill", self.api.create_volume(request))?;
            mounts.push(Mount {
                target: Some(path.clone()),
                source: Some(volume),
                typ: Some(MountType::VOLUME),
                ..Mount::default()
            });
        }
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            env: Some(wanted.env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            cmd: wanted.cmd.clone(),
            labels: Some(label(drill)),
            // We ask the server itself.
            healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
            host_config: Some(HostConfig {
                mounts: Some(mounts),
                network_mode: Some(network.unwrap_or("none").to_owned()),
                publish_all_ports: Some(false),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let what = format!("creating a container of {image}");
        Ok(self.call(&what, self.api.create_container(Some(options), body))?.id)
    }

    /// Removes all that carries the label of the drill; the names of what is gone. `unsettled`: how long the engine may
    /// still be about to make something, whoever asked for it being dead.
    pub fn remove_drill(&self, drill: &str, unsettled: Duration) -> Result<Vec<String>, DockerError> {
        let begun = Instant::now();
        let mut removed = Vec::new();
        loop {
            let (gone, trouble) = self.remove_labelled(drill)?;
            let nothing = gone.is_empty() && trouble.is_none();
            removed.extend(gone);
            if nothing && begun.elapsed() >= unsettled {
                return Ok(removed);
            }
            match trouble {
                Some(e) if begun.elapsed() > PATIENCE => return Err(e),
                // Again, also when nothing was in the way: what is made last must be gone, too.
                _ => self.rest(if nothing || trouble.is_some() { AGAIN } else { Duration::ZERO })?,
            }
        }
    }

    /// One round: what went, and the first thing that could not go yet.
    fn remove_labelled(&self, drill: &str) -> Result<(Vec<String>, Option<DockerError>), DockerError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{DRILL_LABEL}={drill}")])]);
        let (mut gone, mut trouble) = (Vec::new(), None);
        let mut note = |name: String, outcome: Result<(), DockerError>| match outcome {
            Ok(()) => gone.push(name),
            Err(DockerError::Refused { status: 404, .. }) => {}
            Err(e) => {
                trouble.get_or_insert(e);
            }
        };
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        for c in self.call("listing containers", self.api.list_containers(Some(options)))? {
            let Some(id) = c.id else { continue };
            let name = c.names.and_then(|n| n.into_iter().next()).unwrap_or_else(|| id.clone());
            // v: anonymous volumes.
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let what = format!("removing {name}");
            let outcome = self.call(&what, self.api.remove_container(&id, Some(options)));
            note(name.trim_start_matches('/').to_owned(), outcome);
        }
        let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
        for n in self.call("listing networks", self.api.list_networks(Some(options)))? {
            let (Some(id), name) = (n.id, n.name.unwrap_or_default()) else { continue };
            let outcome = self.call(&format!("removing the network {name}"), self.api.remove_network(&id));
            note(name, outcome);
        }
        let options = ListVolumesOptionsBuilder::default().filters(&filters).build();
        let listed = self.call("listing volumes", self.api.list_volumes(Some(options)))?;
        for v in listed.volumes.unwrap_or_default() {
            let what = format!("removing the volume {}", v.name);
            let options = None::<RemoveVolumeOptions>;
            let outcome = self.call(&what, self.api.remove_volume(&v.name, options));
            note(v.name, outcome);
        }
        Ok((gone, trouble))
    }
}

fn label(drill: &str) -> HashMap<String, String> {
    HashMap::from([(DRILL_LABEL.to_owned(), drill.to_owned())])
}
