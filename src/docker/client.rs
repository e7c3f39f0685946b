//! The connection to the engine. What could go wrong: a frozen engine that never answers, so no call waits for ever.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use bollard::API_DEFAULT_VERSION;
use bollard::errors::Error as ApiError;
use bollard::query_parameters::{ContainerArchiveInfoOptionsBuilder, DownloadFromContainerOptionsBuilder};
use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::runtime::Handle;

use crate::cancel::{Cancel, Interrupted};
use crate::hint::Hint;

/// Facts of a failure at the engine. Cloneable, because one unreachable engine fails several sources.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DockerError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("the Docker engine at {socket} does not answer: {reason}")]
    Unreachable { socket: String, reason: String },
    #[error("the Docker engine did not answer within {seconds} s ({what})")]
    NoAnswer { what: String, seconds: u64 },
    #[error("{what}: the Docker engine says: {reason}")]
    Refused { what: String, status: u16, reason: String },
    #[error("{what}: the connection to the Docker engine broke: {reason}")]
    Broken { what: String, reason: String },
    #[error("there is no container {wanted}")]
    NoContainer { wanted: String },
    #[error("{wanted} fits several containers: {found}")]
    Ambiguous { wanted: String, found: String },
    #[error("there is no volume {wanted:?}, nor one of that name in the Compose project")]
    NoVolume { wanted: String },
    #[error("volume {volume} stands for the directory {}, which is not there", device.display())]
    NoDevice { volume: String, device: PathBuf },
    #[error("the helper container {name} does not run: has its image {image} no program `sleep`?")]
    NoWindow { name: String, image: String },
    #[error("{destination} of {container} lies in memory: nothing there survives a restart")]
    Volatile { container: String, destination: String },
    #[error("container {name} is {state}")]
    NotRunning { name: String, state: String },
    #[error("{program} in {container} sent nothing for {seconds} s")]
    Idle { program: String, container: String, seconds: u64 },
    #[error("{program} in {container} was not done after {seconds} s")]
    TooLong { program: String, container: String, seconds: u64 },
    #[error("{program} in {container} ended with status {}{}", status.map_or("unknown".to_owned(), |s| s.to_string()), tail(stderr))]
    Exit { program: String, container: String, status: Option<i64>, stderr: String },
    #[error(
        "{program} in {container} sent output that the engine's framing does not explain; the stream was cut"
    )]
    Cut { program: String, container: String },
}

impl DockerError {
    /// Whether a busy group of processes did not freeze in the time that it was given. It is thawed then, and may freeze
    /// the next time.
    pub fn is_not_frozen(&self) -> bool {
        matches!(self, Self::Refused { status: 500.., reason, .. } if reason.contains("freeze"))
    }

    /// Whether the reason is the engine or this machine, and nothing that a program in a container made of its data.
    pub fn is_of_this_machine(&self) -> bool {
        match self {
            Self::NotRunning { .. } | Self::NoContainer { .. } => false,
            // A program that ended while it was asked is told with either of these words.
            Self::Refused { status, reason, .. } => {
                let ended = reason.contains("not running") || reason.contains("stopped");
                tells_of_a_shortage(reason) || (*status >= 500 && !ended)
            }
            Self::Exit { stderr, .. } => tells_of_a_shortage(stderr),
            _ => true,
        }
    }
}

/// Whether a program says, in the words of the system, that its disk or its memory did not suffice.
fn tells_of_a_shortage(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let shortages =
        ["no space left on device", "disk quota exceeded", "read-only file system", "cannot allocate memory"];
    shortages.iter().any(|words| said.contains(words))
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

impl Hint for DockerError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unreachable { .. } => "is it running? systemctl status docker".into(),
            Self::NoAnswer { .. } => {
                "look at the engine: systemctl status docker; journalctl -u docker -n 50".into()
            }
            Self::NoContainer { .. } => {
                "see what there is: docker ps -a; then set container = or service = of the source".into()
            }
            Self::NoVolume { .. } => {
                "see what there is: docker volume ls; nothing is created by looking".into()
            }
            Self::NoDevice { device, .. } => {
                format!("is its disk mounted? findmnt --target {}", device.display())
            }
            Self::Volatile { .. } => {
                "mount a volume there in the Compose file, or leave this source out".into()
            }
            Self::Ambiguous { .. } => "set container = of the source, or docker.project".into(),
            Self::NotRunning { name, .. } => format!("start it: docker start {name}"),
            Self::Idle { .. } => {
                "is it waiting for a lock? raise idle_timeout of the source if it is only slow".into()
            }
            Self::TooLong { .. } => "raise timeout of the source".into(),
            Self::Exit { container, .. } | Self::Cut { container, .. } => {
                format!("look at the server's log: docker logs --tail 50 {container}")
            }
            _ => return None,
        })
    }
}

/// Time for an ordinary question to the engine.
const ANSWER: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct Docker {
    pub(super) api: bollard::Docker,
    pub(super) runtime: Handle,
    pub(super) cancel: Cancel,
    project: Option<String>,
    address: String,
    /// Containers without this value of the label of drills are not there.
    pub(super) fence: Option<String>,
}

impl Docker {
    /// Connects and agrees on an API version. `socket` as in the configuration; None follows `DOCKER_HOST`.
    pub fn connect(
        socket: Option<&str>,
        project: Option<String>,
        runtime: Handle,
        cancel: Cancel,
    ) -> Result<Self, DockerError> {
        let name = socket
            .map(str::to_owned)
            .or_else(|| std::env::var("DOCKER_HOST").ok().filter(|h| !h.is_empty()))
            .unwrap_or_else(|| "/var/run/docker.sock".to_owned());
        let unreachable = |e: String| DockerError::Unreachable { socket: name.clone(), reason: e };
        let api = if name.starts_with('/') {
            bollard::Docker::connect_with_unix(&name, 120, API_DEFAULT_VERSION)
        } else {
            bollard::Docker::connect_with_host(&name)
        }
        .map_err(|e| unreachable(reason(&e)))?
        // Each of our calls has its own deadline; this one would cut a long stop short.
        .with_timeout(Duration::from_secs(24 * 3600));
        let docker = Self { api: api.clone(), runtime, cancel, project, address: name.clone(), fence: None };
        let negotiated = docker
            .call("negotiating the API version", async move { api.negotiate_version().await })
            .map_err(|e| match e {
                DockerError::Broken { reason, .. } | DockerError::Refused { reason, .. } => {
                    unreachable(reason)
                }
                other => other,
            })?;
        Ok(Self { api: negotiated, ..docker })
    }

    /// The same connection, deaf to the interrupt of the run: for what must be undone in any case.
    pub fn undisturbed(&self) -> Self {
        Self { cancel: Cancel::default(), ..self.clone() }
    }

    /// The same connection, for which there are no containers but those of one drill: whatever is done through it can touch
    /// no other.
    pub fn fenced(&self, drill: &str) -> Self {
        Self { fence: Some(drill.to_owned()), ..self.clone() }
    }

    /// Whether the engine's paths and processes are those of this host.
    pub fn is_local(&self) -> bool {
        self.address.starts_with('/') || self.address.starts_with("unix://")
    }

    /// Where the engine was found, as `connect` takes it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same connection, which looks for services and volumes in this project, unless the configuration names one.
    pub fn else_in_project(self, project: Option<&str>) -> Self {
        Self { project: self.project.or_else(|| project.map(str::to_owned)), ..self }
    }

    /// The Compose project that the configuration names.
    pub fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// Waits for one answer of the engine, but neither for ever nor through an interrupt.
    pub(super) fn call<T>(
        &self,
        what: &str,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, DockerError> {
        self.call_within(ANSWER, what, future)
    }

    /// The same for a question that may take longer.
    pub(super) fn call_within<T>(
        &self,
        limit: Duration,
        what: &str,
        future: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, DockerError> {
        self.wait(limit, future)?.map_or_else(
            || Err(DockerError::NoAnswer { what: what.to_owned(), seconds: limit.as_secs() }),
            |answer| answer.map_err(|e| from_api(what, &e)),
        )
    }

    /// The future's result; None when `limit` passed first.
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<Option<T>, Interrupted> {
        self.runtime.block_on(async {
            tokio::select! {
                () = self.cancel.requested() => Err(Interrupted),
                outcome = tokio::time::timeout(limit, future) => Ok(outcome.ok()),
            }
        })
    }

    /// Waits, but not through an interrupt.
    pub fn rest(&self, time: Duration) -> Result<(), Interrupted> {
        self.wait(time, std::future::pending::<()>()).map(|_| ())
    }

    /// Version text of the engine.
    pub fn version(&self) -> Result<String, DockerError> {
        let v = self.call("asking for the version", self.api.version())?;
        Ok(v.version.unwrap_or_default())
    }

    /// Directory of the engine's host with its volumes and layers.
    pub fn data_root(&self) -> Result<PathBuf, DockerError> {
        let info = self.call("asking for its settings", self.api.info())?;
        Ok(PathBuf::from(info.docker_root_dir.unwrap_or_default()))
    }

    /// Size in bytes and modification time (as text) of a file in a container; None when it is not there.
    pub fn file_stat(&self, container: &str, path: &str) -> Result<Option<(u64, String)>, DockerError> {
        let options = ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        let what = format!("looking at {path} in {container}");
        match self.call(&what, self.api.get_container_archive_info(container, Some(options))) {
            Ok(s) => Ok(Some((u64::try_from(s.size).unwrap_or(0), s.modification_time.unwrap_or_default()))),
            Err(DockerError::Refused { status: 404, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// `path` in a container without its links, as far as they can be followed; what is not there stays as it is.
    pub fn without_links(&self, container: &str, path: &Path) -> Result<PathBuf, DockerError> {
        let mut path = path.to_owned();
        // As many as the kernel follows.
        for _ in 0..40 {
            let Some(next) = self.first_link(container, &path)? else { return Ok(path) };
            path = next;
        }
        Ok(path)
    }

    /// `path` with its first link replaced by where that leads to; None when it has none.
    fn first_link(&self, container: &str, path: &Path) -> Result<Option<PathBuf>, DockerError> {
        let parts: Vec<_> = path.components().collect();
        for end in 2..=parts.len() {
            let part: PathBuf = parts[..end].iter().collect();
            let shown = part.display().to_string();
            let options = ContainerArchiveInfoOptionsBuilder::default().path(&shown).build();
            let what = format!("looking at {shown} in {container}");
            match self.call(&what, self.api.get_container_archive_info(container, Some(options))) {
                // The engine has followed it to its end, within the container.
                Ok(s) if !s.link_target.is_empty() => {
                    let rest: PathBuf = parts[end..].iter().collect();
                    let target = PathBuf::from(s.link_target);
                    return Ok(Some(if rest.as_os_str().is_empty() { target } else { target.join(rest) }));
                }
                Ok(_) => {}
                Err(DockerError::Refused { status: 404, .. }) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
        Ok(None)
    }

    /// A tar of `path` in a container, as the engine's archive API gives it.
    pub fn download(&self, container: &str, path: &str, idle: Duration) -> Download {
        let options = DownloadFromContainerOptionsBuilder::default().path(path).build();
        let stream = self.api.download_from_container(container, Some(options));
        Download {
            docker: self.clone(),
            what: format!("reading {path} of {container}"),
            stream: Box::pin(stream),
            rest: Bytes::new(),
            idle,
        }
    }
}

type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, ApiError>> + Send>>;

/// A stream of the engine as a reader; an error of the engine, silence and an interrupt are read errors.
pub struct Download {
    docker: Docker,
    what: String,
    stream: ByteStream,
    rest: Bytes,
    idle: Duration,
}

impl std::io::Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() {
            let next = self.docker.wait(self.idle, self.stream.next()).map_err(std::io::Error::other)?;
            match next {
                None => {
                    let e = DockerError::NoAnswer { what: self.what.clone(), seconds: self.idle.as_secs() };
                    return Err(std::io::Error::other(e));
                }
                Some(None) => return Ok(0),
                Some(Some(Ok(chunk))) => self.rest = chunk,
                Some(Some(Err(e))) => return Err(std::io::Error::other(from_api(&self.what, &e))),
            }
        }
        let n = buf.len().min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest.advance(n);
        Ok(n)
    }
}

pub(super) fn from_api(what: &str, e: &ApiError) -> DockerError {
    match e {
        ApiError::DockerResponseServerError { status_code, message } => DockerError::Refused {
            what: what.to_owned(),
            status: *status_code,
            reason: message.trim().to_owned(),
        },
        other => DockerError::Broken { what: what.to_owned(), reason: reason(other) },
    }
}

fn reason(e: &ApiError) -> String {
    crate::hint::chain(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_made_of_its_data_is_not_laid_on_the_machine() {
        let refused = |status, reason: &str| {
            DockerError::Refused { what: "x".into(), status, reason: reason.into() }.is_of_this_machine()
        };
        let exit = |stderr: &str| {
            let (program, container) = ("psql".to_owned(), "c".to_owned());
            DockerError::Exit { program, container, status: Some(3), stderr: stderr.into() }
                .is_of_this_machine()
        };
        assert!(exit("ERROR:  could not extend file \"base/1/2\": No space left on device"));
        assert!(!exit("ERROR:  type \"no_such_type\" does not exist"));
        assert!(refused(500, "mkdir /var/lib/docker/x: no space left on device") && refused(503, "busy"));
        assert!(!refused(409, "container abc is not running"));
        assert!(!refused(500, "cannot exec in a stopped container"));
        assert!(DockerError::Unreachable { socket: "s".into(), reason: "r".into() }.is_of_this_machine());
        assert!(DockerError::NoAnswer { what: "w".into(), seconds: 60 }.is_of_this_machine());
        assert!(!DockerError::NotRunning { name: "n".into(), state: "exited".into() }.is_of_this_machine());
    }
}
