//! Which container is meant, and what the engine knows of it. What could go wrong: the container of another stack; so
//! what fits several is refused, and what was found by name or label is used by its id from then on.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, ContainerSummary, HealthStatusEnum, PortBinding};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::acts::HELPER_LABEL;
use super::client::{Docker, DockerError};
use super::throwaway::DRILL_LABEL;
use crate::run_journal::{Held, How};

const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
const ENVIRONMENT_FILE: &str = "com.docker.compose.project.environment_file";
const DEPENDS_ON: &str = "com.docker.compose.depends_on";

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    Volume,
    Bind,
    /// In memory, or of a kind that we do not know: nothing there can be read from outside.
    Other,
}

#[derive(Debug, Clone)]
pub struct Mount {
    pub kind: MountKind,
    pub destination: String,
    /// Directory on the engine's host.
    pub source: PathBuf,
    /// Name of the volume; empty for other kinds.
    pub volume: String,
    pub writable: bool,
    /// Directory inside the volume that is mounted instead of all of it.
    pub subpath: Option<String>,
}

#[derive(Debug, Clone, Default)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    pub image_id: String,
    pub state: String,
    /// What its health check says: `starting`, `healthy`, `unhealthy`; empty where it has none.
    pub health: String,
    /// When it was last started, as the engine writes it; another value means another life.
    pub started_at: String,
    /// Process number of its first process on the engine's host; 0 while it does not run.
    pub pid: i32,
    /// The engine removes it, with its layer, when it ends.
    pub auto_remove: bool,
    /// Time that the engine gives it to end before it is killed.
    pub stop_timeout: Duration,
    /// Addresses of this host that its ports are published on: container port, `host:port`.
    pub published: Vec<(u16, String)>,
    /// Its addresses in the networks of the engine.
    pub addresses: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Entry point, command and arguments.
    pub args: Vec<String>,
    /// Directory that its program is started in.
    pub working_dir: String,
    pub labels: BTreeMap<String, String>,
    /// Directory of the engine's host with what it changed of its image, where the engine keeps that as a directory.
    pub layer: Option<PathBuf>,
    pub(super) mounts: Vec<Mount>,
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

    /// Compose service that it is.
    pub fn service(&self) -> Option<&str> {
        self.labels.get(SERVICE).map(String::as_str)
    }

    /// What Compose says of where it came from: project, service, directory, files (with commas between).
    pub fn compose(&self) -> Vec<(&'static str, String)> {
        let labels = [
            ("project", PROJECT),
            ("service", SERVICE),
            ("working_dir", WORKING_DIR),
            ("config_files", CONFIG_FILES),
            ("environment_file", ENVIRONMENT_FILE),
        ];
        labels.into_iter().filter_map(|(key, label)| Some((key, self.label(label)?))).collect()
    }

    /// Services of its project that it needs, as Compose 2 writes them: `db:service_healthy:true,cache:…`.
    pub fn depends_on(&self) -> Vec<&str> {
        let all = self.labels.get(DEPENDS_ON).map_or("", String::as_str);
        all.split(',').filter_map(|d| d.split(':').next()).filter(|d| !d.is_empty()).collect()
    }

    /// Whether Compose noted what it needs, if only that it needs nothing. Version 1 did not.
    pub fn notes_needs(&self) -> bool {
        self.labels.contains_key(DEPENDS_ON)
    }

    /// The Compose files that it was made from, as far as Compose noted them.
    pub fn compose_files(&self) -> Vec<PathBuf> {
        self.labelled_paths(CONFIG_FILES)
    }

    /// The files of variables that Compose was told to read instead of `.env`.
    pub fn environment_files(&self) -> Vec<PathBuf> {
        self.labelled_paths(ENVIRONMENT_FILE)
    }

    /// Directory of its project.
    pub fn project_dir(&self) -> Option<PathBuf> {
        self.label(WORKING_DIR).map(PathBuf::from).filter(|dir| dir.is_absolute())
    }

    fn labelled_paths(&self, label: &str) -> Vec<PathBuf> {
        let dir = PathBuf::from(self.label(WORKING_DIR).unwrap_or_default());
        let files = self.label(label).unwrap_or_default();
        let paths = files.split(',').filter(|f| !f.is_empty()).map(|f| dir.join(f));
        paths.filter(|p| p.is_absolute()).collect()
    }

    /// Whether somebody chose its name. Otherwise it is of project, service and number, and another one when the project
    /// is renamed.
    pub fn has_own_name(&self) -> bool {
        let (Some(project), Some(service)) = (self.project(), self.service()) else { return true };
        let number = self.label(NUMBER).unwrap_or_else(|| "1".to_owned());
        // Version 1 joins by another character, and puts something before the name while it makes a container anew.
        let of_compose = ["-", "_"].map(|joint| [project, service, number.as_str()].join(joint));
        !of_compose.iter().any(|name| self.name == *name || self.name.ends_with(&format!("_{name}")))
    }

    /// What is mounted in it.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Whether its process number means its process here too, and not that of somebody else.
    pub fn is_process_of_this_host(&self) -> bool {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap_or_default();
        self.pid > 0 && !self.id.is_empty() && groups.contains(&self.id)
    }

    /// Its volumes and where they are mounted, for a person: `chroma_data at /data`.
    pub fn volumes(&self) -> Vec<String> {
        let volumes = self.mounts.iter().filter(|m| m.kind == MountKind::Volume);
        volumes.map(|m| format!("{} at {}", m.volume, m.destination)).collect()
    }

    /// Whether it is one of ours, which only shows a volume to us.
    pub fn is_helper(&self) -> bool {
        self.labels.contains_key(HELPER_LABEL)
    }

    /// Whether anything in it can run now or soon, and so can write.
    pub fn is_active(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting")
    }

    fn label(&self, key: &str) -> Option<String> {
        self.labels.get(key).cloned()
    }

    /// What is needed to find it, or its successor, after a kill.
    pub fn to_held(&self, how: How) -> Held {
        Held {
            id: self.id.clone(),
            name: self.name.clone(),
            project: self.label(PROJECT),
            service: self.label(SERVICE),
            number: self.label(NUMBER),
            how,
            started_at: self.started_at.clone(),
            at: jiff::Timestamp::now(),
            settle_s: match how {
                // As long as the runtime waits for a busy group to freeze, and a little.
                How::Pause => 12,
                How::Stop => self.stop_timeout.as_secs() + 5,
            },
        }
    }
}

impl Docker {
    /// Finds by name, else by Compose labels. Never creates anything.
    pub fn find(&self, selector: &Selector) -> Result<Container, DockerError> {
        if let Some(name) = &selector.container
            && let Some(container) = self.look(name)?
        {
            return Ok(container);
        }
        let mut labels = vec![format!("{SERVICE}={}", selector.service)];
        labels.extend(self.project().map(|p| format!("{PROJECT}={p}")));
        let found = self.labelled(&labels)?;
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

    /// The container that took the place of a removed one: the same service of the same project, else the same name.
    pub fn successor(&self, held: &Held) -> Result<Option<Container>, DockerError> {
        let (Some(project), Some(service)) = (&held.project, &held.service) else {
            return self.look(&held.name);
        };
        let mut labels = vec![format!("{PROJECT}={project}"), format!("{SERVICE}={service}")];
        labels.extend(held.number.as_ref().map(|n| format!("{NUMBER}={n}")));
        match self.labelled(&labels)?.first().and_then(|c| c.id.clone()) {
            Some(id) => self.look(&id),
            None => Ok(None),
        }
    }

    /// Containers that can write now or soon. Paused ones cannot.
    pub fn active(&self) -> Result<Vec<Container>, DockerError> {
        let options = ListContainersOptionsBuilder::default().build();
        let listed = self.call("listing containers", self.api.list_containers(Some(options)))?;
        let mut active = Vec::new();
        for id in listed.iter().filter_map(|c| c.id.as_deref()) {
            // Gone between the two questions is as good as never there.
            active.extend(self.look(id)?.filter(|c| c.is_active() && !c.is_helper()));
        }
        Ok(active)
    }

    /// Containers that Compose made, running or not, without those of `compose run` and without ours.
    pub fn composed(&self) -> Result<Vec<Container>, DockerError> {
        let mut composed = Vec::new();
        for id in self.labelled(&[PROJECT.to_owned()])?.iter().filter_map(|c| c.id.as_deref()) {
            composed.extend(self.look(id)?.filter(|c| !c.is_helper()));
        }
        Ok(composed)
    }

    /// Every container, whatever its state.
    pub(super) fn all(&self) -> Result<Vec<Container>, DockerError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let listed = self.call("listing containers", self.api.list_containers(Some(options)))?;
        let mut all = Vec::new();
        for id in listed.iter().filter_map(|c| c.id.as_deref()) {
            all.extend(self.look(id)?);
        }
        Ok(all)
    }

    pub(super) fn paused(&self) -> Result<Vec<Container>, DockerError> {
        let filters = HashMap::from([("status".to_owned(), vec!["paused".to_owned()])]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let listed = self.call("listing containers", self.api.list_containers(Some(options)))?;
        let mut paused = Vec::new();
        for id in listed.iter().filter_map(|c| c.id.as_deref()) {
            paused.extend(self.look(id)?);
        }
        Ok(paused)
    }

    fn labelled(&self, labels: &[String]) -> Result<Vec<ContainerSummary>, DockerError> {
        let filters = HashMap::from([("label".to_owned(), labels.to_vec())]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let mut found = self.call("listing containers", self.api.list_containers(Some(options)))?;
        // One-off containers of `compose run` carry the same labels.
        found.retain(|c| {
            c.labels.as_ref().and_then(|l| l.get("com.docker.compose.oneoff")).is_none_or(|v| v != "True")
        });
        Ok(found)
    }

    /// The container of this name or id; None when there is none.
    pub fn look(&self, name: &str) -> Result<Option<Container>, DockerError> {
        match self.inspect(name) {
            Ok(container) => Ok(Some(container)),
            Err(DockerError::Refused { status: 404, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn inspect(&self, name: &str) -> Result<Container, DockerError> {
        let what = format!("looking at container {name}");
        let raw = self.call(&what, self.api.inspect_container(name, None::<InspectContainerOptions>))?;
        let container = convert(raw);
        match &self.fence {
            Some(drill) if container.labels.get(DRILL_LABEL) != Some(drill) => {
                Err(DockerError::Refused { what, status: 404, reason: "it is none of this drill".into() })
            }
            _ => Ok(container),
        }
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
    let host = raw.host_config.unwrap_or_default();
    let in_memory = host.tmpfs.unwrap_or_default();
    let subpaths: HashMap<String, String> = host
        .mounts
        .unwrap_or_default()
        .into_iter()
        .filter_map(|m| Some((m.target?, m.volume_options?.subpath?)))
        .collect();
    let mut mounts: Vec<Mount> = raw
        .mounts
        .unwrap_or_default()
        .into_iter()
        .filter_map(|m| {
            let destination = m.destination?;
            Some(Mount {
                kind: match m.typ.as_deref() {
                    Some("volume") => MountKind::Volume,
                    Some("bind") => MountKind::Bind,
                    _ => MountKind::Other,
                },
                source: PathBuf::from(m.source.unwrap_or_default()),
                volume: m.name.unwrap_or_default(),
                writable: m.rw.unwrap_or(true),
                subpath: subpaths.get(&destination).filter(|p| !p.is_empty()).cloned(),
                destination,
            })
        })
        .collect();
    // What `--tmpfs` and `tmpfs:` mount is not in the engine's list.
    mounts.extend(in_memory.into_keys().map(|destination| Mount {
        kind: MountKind::Other,
        source: PathBuf::new(),
        volume: String::new(),
        writable: true,
        subpath: None,
        destination: destination.trim_end_matches('/').to_owned(),
    }));
    let mut args: Vec<String> = raw.path.into_iter().collect();
    args.extend(raw.args.unwrap_or_default());
    let state = raw.state.unwrap_or_default();
    let network = raw.network_settings.unwrap_or_default();
    let own: Vec<String> = network
        .networks
        .unwrap_or_default()
        .into_values()
        .filter_map(|n| n.ip_address.filter(|a| !a.is_empty()))
        .collect();
    let layer = raw.graph_driver.filter(|d| d.name == "overlay2");
    let layer = layer.and_then(|d| d.data.get("UpperDir").map(PathBuf::from));
    let of_host = host.network_mode.as_deref() == Some("host");
    Container {
        id: raw.id.unwrap_or_default(),
        name: raw.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        image_id: raw.image.unwrap_or_default(),
        state: state.status.map(|s| s.to_string()).unwrap_or_default(),
        health: health(state.health.and_then(|h| h.status)),
        started_at: state.started_at.unwrap_or_default(),
        pid: state.pid.and_then(|p| i32::try_from(p).ok()).unwrap_or(0),
        auto_remove: host.auto_remove.unwrap_or(false),
        // The engine's own default.
        stop_timeout: Duration::from_secs(
            config.stop_timeout.and_then(|t| u64::try_from(t).ok()).unwrap_or(10),
        ),
        published: published(network.ports.unwrap_or_default()),
        addresses: if of_host { vec!["127.0.0.1".to_owned()] } else { own },
        env,
        args,
        working_dir: config.working_dir.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        layer,
        mounts,
    }
}

/// "none" is the engine's word for a container without a check.
fn health(status: Option<HealthStatusEnum>) -> String {
    let word = status.map(|s| s.to_string()).unwrap_or_default();
    if word == "none" { String::new() } else { word }
}

/// `{"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8001"}]}` as pairs.
fn published(ports: HashMap<String, Option<Vec<PortBinding>>>) -> Vec<(u16, String)> {
    let mut found = Vec::new();
    for (port, bindings) in ports {
        let Some(inside) = port.strip_suffix("/tcp").and_then(|p| p.parse().ok()) else { continue };
        for binding in bindings.unwrap_or_default() {
            let Some(outside) = binding.host_port.filter(|p| !p.is_empty()) else { continue };
            let host = match binding.host_ip.as_deref() {
                None | Some("" | "0.0.0.0") => "127.0.0.1".to_owned(),
                Some("::") => "[::1]".to_owned(),
                Some(ip) if ip.contains(':') => format!("[{ip}]"),
                Some(ip) => ip.to_owned(),
            };
            found.push((inside, format!("{host}:{outside}")));
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, labels: &[(&str, &str)]) -> Container {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Container { name: name.into(), labels, ..Container::default() }
    }

    #[test]
    fn a_name_that_somebody_chose_is_told_from_one_that_compose_made() {
        let own = |name: &str, number: &str| {
            container(name, &[(PROJECT, "home"), (SERVICE, "db"), (NUMBER, number)]).has_own_name()
        };
        for (name, number) in [("home-db-1", "1"), ("home_db_1", "1"), ("home-db-2", "2")] {
            assert!(!own(name, number), "{name}");
        }
        // As version 1 renames a container that it replaces.
        assert!(!own("0123abcd_home_db_1", "1"));
        for (name, number) in [("db", "1"), ("home-db", "1"), ("home-db-1", "2"), ("my-home-db-1", "1")] {
            assert!(own(name, number), "{name}");
        }
        assert!(container("home-db-1", &[]).has_own_name());
    }

    #[test]
    fn the_files_of_a_project_lie_below_its_directory_or_where_they_say() {
        let labels = [
            (WORKING_DIR, "/srv/home"),
            (CONFIG_FILES, "/srv/home/compose.yml,over.yml,"),
            (ENVIRONMENT_FILE, "conf/home.env"),
        ];
        let c = container("x", &labels);
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(c.compose_files(), paths(&["/srv/home/compose.yml", "/srv/home/over.yml"]));
        assert_eq!(c.environment_files(), paths(&["/srv/home/conf/home.env"]));
        assert_eq!(c.project_dir(), Some("/srv/home".into()));
        let c = container("x", &[(CONFIG_FILES, "compose.yml"), (WORKING_DIR, "C:\\home")]);
        assert_eq!((c.compose_files(), c.project_dir()), (Vec::new(), None));
    }
}
