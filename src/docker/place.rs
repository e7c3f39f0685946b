//! Where the data of a container really lies, and who else can write there. What could go wrong: an empty volume beside
//! the real data. So a path is resolved by the mounts of the very container, by destination; a volume with driver
//! options is read where its data is and not where it would be mounted; and nothing is ever created by looking for it.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bollard::models::Volume;
use bollard::query_parameters::{ListVolumesOptions, ListVolumesOptionsBuilder};

use super::client::{Docker, DockerError};
use super::containers::{Container, Mount, MountKind};

const VOLUME: &str = "com.docker.compose.volume";
const PROJECT: &str = "com.docker.compose.project";

/// Where something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seat {
    Volume {
        name: String,
    },
    /// A directory of the engine's host.
    Bind {
        source: PathBuf,
    },
    /// The container's own layer, which goes when the container is removed.
    Layer {
        container: String,
    },
}

/// A path of a container, or a whole volume, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub seat: Seat,
    /// Directory of this host where the mount can be read without the engine.
    pub base: Option<PathBuf>,
    /// The path below the mount; in the container, for its own layer.
    pub rest: PathBuf,
    /// Other mounts of the container inside the path: their data is elsewhere.
    pub nested: Vec<String>,
}

impl Place {
    pub fn volume(&self) -> Option<&str> {
        match &self.seat {
            Seat::Volume { name } => Some(name),
            _ => None,
        }
    }

    /// The path on this host, where it can be read without the engine.
    pub fn host_path(&self) -> Option<PathBuf> {
        self.base.as_ref().map(|base| join(base, &self.rest))
    }

    /// The place as the process of a running container sees it, in the file system of this host.
    pub fn seen_by(&self, container: &Container) -> Vec<PathBuf> {
        let is_here = |m: &&Mount| match &self.seat {
            Seat::Volume { name } => m.kind == MountKind::Volume && m.volume == *name && m.subpath.is_none(),
            Seat::Bind { source } => {
                m.kind == MountKind::Bind && (m.source == *source || Some(&m.source) == self.base.as_ref())
            }
            Seat::Layer { .. } => false,
        };
        let root = format!("/proc/{}/root", container.pid);
        let path = |m: &Mount| {
            let inside = join(Path::new(&m.destination), &self.rest);
            Path::new(&root).join(inside.strip_prefix("/").unwrap_or(&inside))
        };
        container.mounts.iter().filter(is_here).map(path).collect()
    }

    /// Whether `container` mounts anything of it, to write or only to read.
    pub fn is_mounted_by(&self, container: &Container, devices: &Devices) -> bool {
        let mut all = container.clone();
        for mount in &mut all.mounts {
            mount.writable = true;
        }
        self.is_written_by(&all, devices)
    }

    /// For a person: what it is, and where.
    pub fn describe(&self) -> String {
        let below = |rest: &Path| match rest.as_os_str().is_empty() {
            true => String::new(),
            false => format!(", below {}", rest.display()),
        };
        match &self.seat {
            Seat::Volume { name } => format!("volume {name}{}", below(&self.rest)),
            Seat::Bind { source } => source.join(&self.rest).display().to_string(),
            Seat::Layer { .. } => format!("{} in the container's own layer", self.rest.display()),
        }
    }

    /// Whether `container` can write there.
    pub fn is_written_by(&self, container: &Container, devices: &Devices) -> bool {
        let overlaps = |a: &Path, b: &Path| a.starts_with(b) || b.starts_with(a);
        let by_mount = |m: &Mount| match (&self.seat, m.kind) {
            (_, MountKind::Other) => false,
            (Seat::Volume { name }, MountKind::Volume) if *name == m.volume => true,
            (Seat::Layer { .. }, _) => false,
            _ => {
                let there = devices.0.get(&m.volume).unwrap_or(&m.source);
                // A directory that is named through a link may be mounted under either of its names.
                let named = match &self.seat {
                    Seat::Bind { source } => Some(join(source, &self.rest)),
                    _ => None,
                };
                self.host_path().iter().chain(&named).any(|own| overlaps(own, there))
            }
        };
        let own_layer = matches!(&self.seat, Seat::Layer { container: id } if *id == container.id);
        own_layer || container.mounts.iter().any(|m| m.writable && by_mount(m))
    }
}

/// Volumes that are directories of the host under another name: volume -> directory.
#[derive(Debug, Default)]
pub struct Devices(HashMap<String, PathBuf>);

/// A volume, for whoever only wants to know of it.
#[derive(Debug, Clone, Default)]
pub struct VolumeFacts {
    pub name: String,
    /// Compose project that it was made for.
    pub project: Option<String>,
    /// Its name in the Compose file.
    pub short: Option<String>,
    /// Lost with the last container that uses it.
    pub in_memory: bool,
    /// Directory of the engine's host that its data lies in, where the engine need not mount anything for that. Nobody has
    /// looked whether it is there.
    pub dir: Option<PathBuf>,
}

impl Docker {
    /// Every volume. Looks at no disk.
    pub fn volume_facts(&self) -> Result<Vec<VolumeFacts>, DockerError> {
        Ok(self.volumes()?.into_iter().map(facts).collect())
    }

    /// Where `path` of the container lies.
    pub fn place(&self, container: &Container, path: &str) -> Result<Place, DockerError> {
        let path = Path::new(path);
        let inside =
            |m: &&Mount| Path::new(&m.destination).starts_with(path) && Path::new(&m.destination) != path;
        let nested = container.mounts.iter().filter(inside).map(|m| m.destination.clone()).collect();
        let mount = container
            .mounts
            .iter()
            .filter(|m| path.starts_with(&m.destination))
            .max_by_key(|m| Path::new(&m.destination).components().count());
        let Some(mount) = mount else {
            let seat = Seat::Layer { container: container.id.clone() };
            return Ok(Place { seat, base: None, rest: path.to_owned(), nested });
        };
        let below = path.strip_prefix(&mount.destination).unwrap_or(Path::new(""));
        let rest = mount.subpath.as_ref().map_or_else(|| below.to_owned(), |s| join(Path::new(s), below));
        match mount.kind {
            MountKind::Volume => {
                let volume = self.volume(&mount.volume)?;
                Ok(Place { rest, nested, ..self.volume_place(&volume)? })
            }
            MountKind::Bind => {
                let source = mount.source.clone();
                // A remote engine, or one in another mount namespace: the path means nothing here.
                let base = (self.is_local() && source.is_dir()).then(|| source.clone());
                Ok(Place { seat: Seat::Bind { source }, base, rest, nested })
            }
            MountKind::Other => Err(DockerError::Volatile {
                container: container.name.clone(),
                destination: mount.destination.clone(),
            }),
        }
    }

    /// Directories of this host that the container can write in, with those that its volumes stand for.
    pub fn mounted_directories(&self, container: &Container) -> Result<Vec<PathBuf>, DockerError> {
        let mut found = Vec::new();
        for mount in container.mounts.iter().filter(|m| m.writable) {
            match self.place(container, &mount.destination) {
                Ok(place) => found.extend(place.host_path()),
                // Nothing of it lies in a directory.
                Err(DockerError::Volatile { .. } | DockerError::NoDevice { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
    }

    /// The volume that `wanted` means: its very name, else the volume of that name in the Compose project.
    pub fn find_volume(&self, wanted: &str) -> Result<Place, DockerError> {
        match self.volume(wanted) {
            Ok(volume) => return self.volume_place(&volume),
            Err(DockerError::Refused { status: 404, .. }) => {}
            Err(e) => return Err(e),
        }
        let all = self.volumes()?;
        let label = |v: &Volume, key: &str| v.labels.get(key).cloned();
        let of_project = |v: &&Volume| self.project().is_none_or(|p| label(v, PROJECT).as_deref() == Some(p));
        let mut found: Vec<&Volume> =
            all.iter().filter(|v| label(v, VOLUME).as_deref() == Some(wanted)).filter(of_project).collect();
        if found.is_empty()
            && let Some(project) = self.project()
        {
            found = all.iter().filter(|v| v.name == format!("{project}_{wanted}")).collect();
        }
        match found.as_slice() {
            [one] => self.volume_place(one),
            [] => Err(DockerError::NoVolume { wanted: wanted.to_owned() }),
            _ => {
                let names: Vec<&str> = found.iter().map(|v| v.name.as_str()).collect();
                Err(DockerError::Ambiguous { wanted: format!("volume {wanted:?}"), found: names.join(", ") })
            }
        }
    }

    /// Containers that can write at `place` now or soon.
    pub fn writers(&self, place: &Place, devices: &Devices) -> Result<Vec<Container>, DockerError> {
        Ok(self.active()?.into_iter().filter(|c| place.is_written_by(c, devices)).collect())
    }

    /// Whether the volume lies in memory, and so goes with the last container that uses it.
    pub fn lies_in_memory(&self, volume: &str) -> Result<bool, DockerError> {
        Ok(in_memory(&self.volume(volume)?))
    }

    /// Containers that have anything of `place` mounted, whatever their state.
    pub fn mounting(&self, place: &Place) -> Result<Vec<Container>, DockerError> {
        let devices = self.devices()?;
        Ok(self.all()?.into_iter().filter(|c| place.is_mounted_by(c, &devices)).collect())
    }

    pub fn devices(&self) -> Result<Devices, DockerError> {
        let with_device = |v: Volume| Some((v.name.clone(), bind_device(&v)?));
        Ok(Devices(self.volumes()?.into_iter().filter_map(with_device).collect()))
    }

    fn volume(&self, name: &str) -> Result<Volume, DockerError> {
        self.call(&format!("looking at volume {name}"), self.api.inspect_volume(name))
    }

    fn volumes(&self) -> Result<Vec<Volume>, DockerError> {
        let options: ListVolumesOptions = ListVolumesOptionsBuilder::default().build();
        let listed = self.call("listing volumes", self.api.list_volumes(Some(options)))?;
        Ok(listed.volumes.unwrap_or_default())
    }

    fn volume_place(&self, volume: &Volume) -> Result<Place, DockerError> {
        let base = match bind_device(volume) {
            _ if !self.is_local() => None,
            Some(device) if device.is_dir() => Some(device),
            // Its own directory is empty while no container runs, and looks like a volume without data.
            Some(device) => {
                return Err(DockerError::NoDevice { volume: volume.name.clone(), device });
            }
            None => {
                let plain = volume.driver == "local" && volume.options.is_empty();
                let mountpoint = PathBuf::from(&volume.mountpoint);
                (plain && is_plain_directory(&mountpoint)).then_some(mountpoint)
            }
        };
        let seat = Seat::Volume { name: volume.name.clone() };
        Ok(Place { seat, base, rest: PathBuf::new(), nested: Vec::new() })
    }
}

/// `a/b`, without the slash at the end that joining an empty path would leave.
fn join(a: &Path, b: &Path) -> PathBuf {
    if b.as_os_str().is_empty() { a.to_owned() } else { a.join(b) }
}

fn facts(volume: Volume) -> VolumeFacts {
    let label = |key: &str| volume.labels.get(key).cloned();
    let plain = volume.driver == "local" && volume.options.is_empty();
    VolumeFacts {
        project: label(PROJECT),
        short: label(VOLUME),
        in_memory: in_memory(&volume),
        dir: bind_device(&volume).or_else(|| plain.then(|| PathBuf::from(&volume.mountpoint))),
        name: volume.name,
    }
}

fn in_memory(volume: &Volume) -> bool {
    volume.options.get("type").is_some_and(|t| matches!(t.as_str(), "tmpfs" | "ramfs"))
}

/// The directory that a local volume with `type=none, o=bind` stands for.
fn bind_device(volume: &Volume) -> Option<PathBuf> {
    let option = |key: &str| volume.options.get(key).map(String::as_str).unwrap_or_default();
    let bind = option("o").split(',').any(|o| matches!(o.trim(), "bind" | "rbind"));
    let device = Path::new(option("device"));
    (volume.driver == "local" && bind && device.is_absolute()).then(|| device.to_owned())
}

/// There, a directory, and no mountpoint: what is mounted there for the engine need not be mounted for us.
fn is_plain_directory(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return false };
    let (Ok(own), Ok(above)) = (path.symlink_metadata(), parent.metadata()) else { return false };
    own.is_dir() && own.dev() == above.dev()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(options: &[(&str, &str)]) -> Volume {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Volume { driver: "local".into(), options, ..Volume::default() }
    }

    #[test]
    fn only_a_bound_directory_is_a_device_that_we_read() {
        let device = |options| bind_device(&volume(options));
        assert_eq!(device(&[("type", "none"), ("o", "bind"), ("device", "/srv/x")]), Some("/srv/x".into()));
        assert_eq!(device(&[("o", "rw,bind"), ("device", "/srv/x")]), Some("/srv/x".into()));
        assert_eq!(device(&[("type", "nfs"), ("o", "addr=nas,rw"), ("device", ":/export")]), None);
        assert_eq!(device(&[("type", "tmpfs"), ("device", "tmpfs")]), None);
        assert_eq!(device(&[]), None);
    }

    #[test]
    fn a_directory_is_mounted_under_either_of_its_names() {
        let seat = Seat::Bind { source: "/srv/docs".into() };
        let base = Some("/mnt/disk/docs".into());
        let place = Place { seat, base, rest: PathBuf::new(), nested: Vec::new() };
        let mounts = |source: &str| {
            let mount = Mount {
                kind: MountKind::Bind,
                destination: "/x".into(),
                source: source.into(),
                volume: String::new(),
                writable: false,
                subpath: None,
            };
            let container = Container { mounts: vec![mount], pid: 7, ..Container::default() };
            (place.is_mounted_by(&container, &Devices::default()), place.seen_by(&container).len())
        };
        assert_eq!(mounts("/srv/docs"), (true, 1));
        assert_eq!(mounts("/mnt/disk/docs"), (true, 1));
        assert_eq!(mounts("/mnt/disk"), (true, 0));
        assert_eq!(mounts("/srv/docs/deep"), (true, 0));
        assert_eq!(mounts("/srv/other"), (false, 0));
    }

    #[test]
    fn a_volume_a_bind_above_it_and_one_inside_it_are_one_place() {
        let container = |mount: Mount| Container { mounts: vec![mount], ..Container::default() };
        let mount = |kind, volume: &str, source: &str, writable| Mount {
            kind,
            destination: "/x".into(),
            source: source.into(),
            volume: volume.into(),
            writable,
            subpath: None,
        };
        let place = Place {
            seat: Seat::Volume { name: "v".into() },
            base: Some("/srv/v/_data".into()),
            rest: "in".into(),
            nested: Vec::new(),
        };
        let devices = Devices(HashMap::from([("other".to_owned(), "/srv/v/_data".into())]));
        let writes = |m| place.is_written_by(&container(m), &devices);
        assert!(writes(mount(MountKind::Volume, "v", "/elsewhere", true)));
        assert!(!writes(mount(MountKind::Volume, "v", "/elsewhere", false)));
        assert!(writes(mount(MountKind::Volume, "other", "/mnt", true)));
        assert!(!writes(mount(MountKind::Volume, "third", "/mnt", true)));
        assert!(writes(mount(MountKind::Bind, "", "/srv", true)));
        assert!(writes(mount(MountKind::Bind, "", "/srv/v/_data/in/deep", true)));
        assert!(!writes(mount(MountKind::Bind, "", "/srv/v/_data/beside", true)));
        assert!(!writes(mount(MountKind::Bind, "", "/srv/v2", true)));
    }
}
