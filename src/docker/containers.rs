//! Which container is meant, and where its data lies. What could go wrong: the data of another stack, or an empty
//! volume beside the real data; so a place is resolved from the mounts of the very container, by destination.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::client::{Docker, DockerError};

const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";

/// How a source names its container: by name, else by the Compose service.
#[derive(Debug, Clone)]
pub struct Selector {
    pub container: Option<String>,
    pub service: String,
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.container {
            Some(c) => write!(f, "{c:?} (nor one of Compose service {:?})", self.service),
            None => write!(f, "of Compose service {:?}", self.service),
        }
    }
}

#[derive(Debug, Clone)]
struct Mount {
    destination: String,
    /// Directory on the engine's host.
    source: PathBuf,
    /// Name of the volume; None for a bind mount.
    volume: Option<String>,
    driver: String,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    pub image_id: String,
    pub state: String,
    pub env: BTreeMap<String, String>,
    /// Entry point, command and arguments.
    pub args: Vec<String>,
    pub labels: BTreeMap<String, String>,
    mounts: Vec<Mount>,
}

/// Where a path of a container really lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataAt {
    /// In a volume or bind mount that can be read directly at this path of the host.
    Host { path: PathBuf, volume: Option<String> },
    /// Only through the engine: the container's own layer, or a volume that is not a plain local directory.
    Engine { volume: Option<String> },
}

impl DataAt {
    pub fn volume(&self) -> Option<&str> {
        match self {
            Self::Host { volume, .. } | Self::Engine { volume } => volume.as_deref(),
        }
    }
}

impl Container {
    /// An error unless commands can be run in it.
    pub fn must_run(&self) -> Result<(), DockerError> {
        if self.state == "running" {
            return Ok(());
        }
        Err(DockerError::NotRunning { name: self.name.clone(), state: self.state.clone() })
    }

    /// Compose project that it belongs to.
    pub fn project(&self) -> Option<&str> {
        self.labels.get(PROJECT).map(String::as_str)
    }

    fn mount_of(&self, path: &str) -> Option<(&Mount, String)> {
        let under = |m: &Mount| {
            let rest = path.strip_prefix(m.destination.trim_end_matches('/'))?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
        };
        self.mounts
            .iter()
            .filter_map(|m| under(m).map(|rest| (m, rest)))
            .max_by_key(|(m, _)| m.destination.len())
    }
}

impl Docker {
    /// Finds by name, else by Compose labels. Never creates anything.
    pub fn find(&self, selector: &Selector) -> Result<Container, DockerError> {
        if let Some(name) = &selector.container {
            match self.inspect(name) {
                Err(DockerError::Refused { status: 404, .. }) => {}
                other => return other,
            }
        }
        let mut labels = vec![format!("{SERVICE}={}", selector.service)];
        labels.extend(self.project().map(|p| format!("{PROJECT}={p}")));
        let filters = std::collections::HashMap::from([("label".to_owned(), labels)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let mut found = self.call("listing containers", self.api.list_containers(Some(options)))?;
        // One-off containers of `compose run` carry the same labels.
        found.retain(|c| {
            c.labels.as_ref().and_then(|l| l.get("com.docker.compose.oneoff")).is_none_or(|v| v != "True")
        });
        let ids: Vec<String> = found.iter().filter_map(|c| c.id.clone()).collect();
        match ids.as_slice() {
            [] => Err(DockerError::NoContainer { wanted: selector.to_string() }),
            [one] => self.inspect(one),
            _ => {
                let names: Vec<String> = found
                    .iter()
                    .filter_map(|c| c.names.as_ref()?.first())
                    .map(|n| n.trim_start_matches('/').to_owned())
                    .collect();
                Err(DockerError::Ambiguous { wanted: selector.to_string(), found: names.join(", ") })
            }
        }
    }

    fn inspect(&self, name: &str) -> Result<Container, DockerError> {
        let what = format!("looking at container {name}");
        let raw = self.call(&what, self.api.inspect_container(name, None::<InspectContainerOptions>))?;
        Ok(convert(raw))
    }

    /// Where `path` of the container lies, and whether it may be read without the engine.
    pub fn data_at(&self, container: &Container, path: &str) -> Result<DataAt, DockerError> {
        let Some((mount, rest)) = container.mount_of(path) else {
            return Ok(DataAt::Engine { volume: None });
        };
        let host = mount.source.join(rest);
        if let Some(name) = &mount.volume {
            let volume = self.call(&format!("looking at volume {name}"), self.api.inspect_volume(name))?;
            let plain = mount.driver == "local" && volume.options.is_empty();
            if !plain {
                return Ok(DataAt::Engine { volume: Some(name.clone()) });
            }
        }
        // A remote engine, or one in another mount namespace: the path means nothing here.
        if !mount.source.is_dir() {
            return Ok(DataAt::Engine { volume: mount.volume.clone() });
        }
        Ok(DataAt::Host { path: host, volume: mount.volume.clone() })
    }
}

fn convert(raw: ContainerInspectResponse) -> Container {
    let config = raw.config.unwrap_or_default();
    let env = config
        .env
        .unwrap_or_default()
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let mounts = raw
        .mounts
        .unwrap_or_default()
        .into_iter()
        .filter_map(|m| {
            let is_volume = m.typ.as_deref() == Some("volume");
            Some(Mount {
                destination: m.destination?,
                source: PathBuf::from(m.source.unwrap_or_default()),
                volume: m.name.filter(|_| is_volume),
                driver: m.driver.unwrap_or_default(),
            })
        })
        .collect();
    let mut args: Vec<String> = raw.path.into_iter().collect();
    args.extend(raw.args.unwrap_or_default());
    Container {
        id: raw.id.unwrap_or_default(),
        name: raw.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: raw.image.unwrap_or_default(),
        state: raw.state.and_then(|s| s.status).map(|s| s.to_string()).unwrap_or_default(),
        env,
        args,
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        mounts,
    }
}
