//! What we do to containers: keep one from writing, let it go again, and make one that is only a window to a volume.
//! What could go wrong: a blind command, which would wake a container that somebody else paused or stopped; so each
//! act looks first, and a container that is already as it should be is left alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptions,
};
use jiff::Timestamp;

use super::client::{Docker, DockerError};
use super::containers::Container;
use super::place::Seat;
use crate::run_journal::{Held, How};

/// What became of a container that was let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// We woke or started it.
    Continued,
    /// It ran already.
    Ran,
    /// It was removed, and this one runs in its place.
    Replaced(String),
    /// It was removed, and nothing took its place.
    Gone,
}

/// What a helper is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is never started, and cannot write.
    Read,
    /// It runs, and we write through its eyes.
    Write,
}

/// Label of everything that we create in an engine.
pub(super) const HELPER_LABEL: &str = "tars-backup.helper";
/// Where a helper has the volume.
const WINDOW: &str = "/tars-backup-window";
/// How long an engine that is being restarted is waited for.
const ENGINE_BACK: Duration = Duration::from_secs(60);
/// How long a container that somebody is just removing is waited for.
const MOVED: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Docker {
    /// Keeps a running container from writing. A pause may have to be tried again, see `DockerError::is_not_frozen`.
    pub fn take_hold(&self, container: &Container, how: How) -> Result<(), DockerError> {
        match how {
            How::Pause => {
                let what = format!("pausing {}", container.name);
                self.call(&what, self.api.pause_container(&container.id))
            }
            How::Stop => {
                let what = format!("stopping {}", container.name);
                let limit = container.stop_timeout + Duration::from_secs(60);
                let options = None::<StopContainerOptions>;
                unchanged(self.call_within(limit, &what, self.api.stop_container(&container.id, options)))
            }
        }
    }

    /// Starts a container that does not run.
    pub fn start(&self, container: &Container) -> Result<(), DockerError> {
        self.continue_running(container).map(|_| ())
    }

    /// Brings a container that ran before we held it back to running. Waits for an engine that is being restarted.
    pub fn let_go(&self, held: &Held) -> Result<Fate, DockerError> {
        let begun = Instant::now();
        loop {
            let outcome = self.try_to_let_go(held);
            let engine_away = matches!(
                outcome,
                Err(DockerError::Broken { .. }
                    | DockerError::Unreachable { .. }
                    | DockerError::NoAnswer { .. }
                    | DockerError::Refused { status: 500.., .. })
            );
            // Gone between look and act, or just going: its successor may not be there yet.
            let moving = match &outcome {
                Err(DockerError::Refused { status: 404 | 409, .. }) => true,
                Err(DockerError::NotRunning { state, .. }) => state == "removing",
                _ => false,
            };
            let patience = match (engine_away, moving) {
                (true, _) => ENGINE_BACK,
                (_, true) => MOVED,
                _ => return outcome,
            };
            if begun.elapsed() > patience {
                return outcome;
            }
            let _: Option<()> = self.wait(RETRY, std::future::pending())?;
        }
    }

    fn try_to_let_go(&self, held: &Held) -> Result<Fate, DockerError> {
        if let Some(container) = self.settled(held)? {
            return Ok(if self.continue_running(&container)? { Fate::Continued } else { Fate::Ran });
        }
        let Some(successor) = self.successor(held)? else { return Ok(Fate::Gone) };
        // Whoever paused the new one has a reason of his own.
        if successor.state != "paused" {
            self.continue_running(&successor)?;
        }
        Ok(Fate::Replaced(successor.name))
    }

    /// The held container. One that still runs as before may be about to be stopped by a request of somebody who died
    /// meanwhile, so it is watched until that would have happened.
    fn settled(&self, held: &Held) -> Result<Option<Container>, DockerError> {
        loop {
            let container = self.look(&held.id)?;
            let untouched =
                container.as_ref().is_some_and(|c| c.state == "running" && c.started_at == held.started_at);
            if !untouched || held.unsettled(Timestamp::now()).is_zero() {
                return Ok(container);
            }
            let _: Option<()> = self.wait(LOOK_AGAIN, std::future::pending())?;
        }
    }

    /// Whether anything had to be done.
    fn continue_running(&self, container: &Container) -> Result<bool, DockerError> {
        match container.state.as_str() {
            "paused" => {
                let what = format!("continuing {}", container.name);
                match self.call(&what, self.api.unpause_container(&container.id)) {
                    // Somebody was faster, or the engine came back without it.
                    Err(DockerError::Refused { reason, .. }) if reason.contains("not paused") => Ok(true),
                    other => other.map(|()| true),
                }
            }
            "exited" | "created" => {
                let what = format!("starting {}", container.name);
                let options = None::<StartContainerOptions>;
                // A start sets up networks and mounts.
                let limit = Duration::from_secs(180);
                unchanged(self.call_within(limit, &what, self.api.start_container(&container.id, options)))?;
                Ok(true)
            }
            "running" | "restarting" => Ok(false),
            state => Err(DockerError::NotRunning { name: container.name.clone(), state: state.to_owned() }),
        }
    }

    /// A container through which the engine lets us read a volume, or a directory of its host, without being started; or
    /// write there while it runs and does nothing. `image` must be there; nothing is pulled. Returns the path at which
    /// the mount appears in it.
    pub(super) fn create_helper(
        &self,
        name: &str,
        image: &str,
        seat: &Seat,
        purpose: Purpose,
    ) -> Result<&'static str, DockerError> {
        let (typ, source) = match seat {
            Seat::Volume { name } => (MountType::VOLUME, name.clone()),
            Seat::Bind { source } => (MountType::BIND, source.display().to_string()),
            Seat::Layer { container } => {
                return Err(DockerError::NoContainer { wanted: container.clone() });
            }
        };
        let mount = Mount {
            target: Some(WINDOW.to_owned()),
            source: Some(source),
            typ: Some(typ),
            read_only: Some(purpose == Purpose::Read),
            ..Mount::default()
        };
        let config = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(match purpose {
                Purpose::Read => vec!["/tars-backup-never-starts-this".to_owned()],
                Purpose::Write => ["sleep", "2147483647"].map(str::to_owned).to_vec(),
            }),
            cmd: Some(Vec::new()),
            user: Some("0".to_owned()),
            labels: Some([(HELPER_LABEL.to_owned(), "1".to_owned())].into()),
            network_disabled: Some(true),
            host_config: Some(HostConfig {
                mounts: Some(vec![mount]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.call("creating a helper container", self.api.create_container(Some(options), config))?;
        Ok(WINDOW)
    }

    /// Directory of this host at which the helper `name` shows what it has mounted; it is started where it does not run.
    pub fn window(&self, name: &str) -> Result<PathBuf, DockerError> {
        let gone = || DockerError::NoContainer { wanted: format!("{name:?}, a helper of ours") };
        let helper = self.look(name)?.filter(|c| c.is_helper()).ok_or_else(gone)?;
        self.continue_running(&helper)?;
        let now = self.look(name)?.ok_or_else(gone)?;
        if now.state != "running" || !now.is_process_of_this_host() {
            return Err(DockerError::NoWindow { name: name.to_owned(), image: now.image });
        }
        Ok(PathBuf::from(format!("/proc/{}/root", now.pid)))
    }

    /// Removes a helper; one that is not there is fine, if it does not come within `unsettled`; what is not ours is left
    /// alone.
    pub fn remove_helper(&self, name: &str, unsettled: Duration) -> Result<(), DockerError> {
        let deadline = Instant::now() + unsettled;
        let found = loop {
            match self.look(name)? {
                Some(found) => break found,
                None if Instant::now() >= deadline => return Ok(()),
                None => {}
            }
            let _: Option<()> = self.wait(LOOK_AGAIN, std::future::pending())?;
        };
        if !found.is_helper() {
            return Ok(());
        }
        // v: the anonymous volumes that the image declares.
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        let what = format!("removing the helper container {name}");
        match self.call(&what, self.api.remove_container(&found.id, Some(options))) {
            Err(DockerError::Refused { status: 404, .. }) => Ok(()),
            other => other,
        }
    }

    /// Any image of the engine, for a volume that no container uses.
    pub(super) fn any_image(&self) -> Result<String, DockerError> {
        let listed = self.call(
            "listing images",
            self.api.list_images(None::<bollard::query_parameters::ListImagesOptions>),
        )?;
        let smallest = listed.into_iter().min_by_key(|i| i.size);
        smallest.map(|i| i.id).ok_or_else(|| DockerError::NoContainer { wanted: "nor any image".into() })
    }
}

/// "Not modified" is the engine's word for "it is so already".
fn unchanged(outcome: Result<(), DockerError>) -> Result<(), DockerError> {
    match outcome {
        Err(DockerError::Refused { status: 304, .. }) => Ok(()),
        other => other,
    }
}
