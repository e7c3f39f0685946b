//! Settings of the agent itself: where it works, how it packs, how it reaches Docker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::section::Section;

/// Where the agent works when the configuration does not say.
#[derive(Debug, Clone)]
pub struct Places {
    pub state: PathBuf,
    pub runtime: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Agent {
    /// Name of this machine in manifests; None: the host name.
    pub host: Option<String>,
    /// Name of the stack, recorded in the marker of a store.
    pub stack: Option<String>,
    pub default_tier: String,
    pub state_dir: PathBuf,
    pub staging_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub spool_dir: PathBuf,
    /// Bytes that may wait in the spool.
    pub spool_limit: u64,
    /// Sources that are captured at the same time.
    pub jobs: usize,
    /// Threads that compress.
    pub threads: usize,
}

/// Where a run leaves things.
#[derive(Debug, Clone)]
pub struct Dirs {
    pub state: PathBuf,
    pub staging: PathBuf,
    pub runtime: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Gzip,
    Zstd,
    None,
}

impl Method {
    /// What is added to the name of a compressed file.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
            Self::None => "",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Archive {
    pub method: Method,
    /// gzip 1 to 12, zstd 1 to 19.
    pub level: i32,
}

#[derive(Debug, Clone)]
pub struct DockerSettings {
    /// None: `DOCKER_HOST`, else the default socket.
    pub socket: Option<String>,
    /// None: any project.
    pub project: Option<String>,
    /// How long a restore waits for containers that depend on what it restored.
    pub health_timeout: Duration,
}

const MAX_THREADS: i64 = 16;

impl Agent {
    pub fn read(root: &Section<'_>, places: &Places, cores: usize) -> Self {
        let s = root.table("agent");
        let host = s.text("host", "Name of this machine in manifests and listings; default: the host name");
        if host.as_deref().is_some_and(|h| h.is_empty() || h.contains(['/', '\n'])) {
            s.problem("host", "must be a plain name", None);
        }
        let state_dir =
            s.path_or("state_dir", &places.state, "What must survive a reboot: staging, spool, caches");
        let (staging_default, spool_default) = (state_dir.join("staging"), state_dir.join("spool"));
        let threads = i64::try_from(cores).unwrap_or(MAX_THREADS).clamp(1, MAX_THREADS);
        let agent = Self {
            host,
            stack: s.text(
                "stack",
                "Name of the stack, kept in the marker of each store; default: the Compose project",
            ),
            default_tier: s.text_or("default_tier", "hot", "Tier of a backup that names none"),
            staging_dir: s.path_or(
                "staging_dir",
                &staging_default,
                "Private scratch space of a run: about twice the compressed size",
            ),
            runtime_dir: s.path_or("runtime_dir", &places.runtime, "Where the lock lies; one lock per host"),
            spool_dir: s.path_or("spool_dir", &spool_default, "Where archives wait that a store still lacks"),
            spool_limit: s.size_or(
                "spool_limit",
                "50 GiB",
                1 << 20,
                "How much may wait there; what does not fit is lost when a store fails",
            ),
            state_dir,
            jobs: usize::try_from(s.whole_or("jobs", 3, "Sources captured at the same time", 1..=32))
                .unwrap_or(1),
            threads: usize::try_from(s.whole_or(
                "threads",
                threads,
                "Threads that compress; default: one per core",
                1..=MAX_THREADS,
            ))
            .unwrap_or(1),
        };
        s.finish();
        agent
    }

    pub fn dirs(&self) -> Dirs {
        let (state, staging) = (self.state_dir.clone(), self.staging_dir.clone());
        Dirs { state, staging, runtime: self.runtime_dir.clone() }
    }

    /// Directories of our own that no source ever captures.
    pub fn own_dirs(&self) -> Vec<&Path> {
        vec![&self.state_dir, &self.staging_dir, &self.runtime_dir, &self.spool_dir]
    }
}

impl Archive {
    /// Level 4 of libdeflate is as small as gzip -6 within 3 % and more than twice as fast as its own level 6.
    const GZIP_LEVEL: i64 = 4;
    const ZSTD_LEVEL: i64 = 3;

    pub fn read(root: &Section<'_>) -> Self {
        let s = root.table("archive");
        let method = s.choice(
            "compression",
            &[("gzip", Method::Gzip), ("zstd", Method::Zstd), ("none", Method::None)],
            "How components are compressed; every choice opens with stock tools",
        );
        let (default, highest) = match method {
            Method::Gzip => (Self::GZIP_LEVEL, 12),
            Method::Zstd => (Self::ZSTD_LEVEL, 19),
            Method::None => (1, 19),
        };
        let level = s.whole_or("level", default, "1 (fast) to 12 (small) for gzip, to 19 for zstd", 1..=19);
        if level > highest {
            s.problem("level", format!("gzip has levels up to {highest}, not {level}"), None);
        }
        s.finish();
        Self { method, level: i32::try_from(level).unwrap_or(1) }
    }
}

impl DockerSettings {
    pub fn read(root: &Section<'_>) -> Self {
        let s = root.table("docker");
        let socket =
            s.text("socket", "Engine socket, such as /var/run/docker.sock; default: DOCKER_HOST or that one");
        let project = s.text("project", "Compose project; default: whichever the containers belong to");
        let health_timeout = s.duration_or(
            "health_timeout",
            Duration::from_secs(120),
            "How long a restore waits for containers that depend on what it restored",
        );
        s.finish();
        Self { socket, project, health_timeout }
    }
}
