//! What every command needs before it can begin: configuration, signals, monitor; and how its failure is told.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::args::Global;
use crate::cancel::{Cancel, Interrupted};
use crate::config::{Agent, Hooks, Places, Problem};
use crate::exit::{Exit, Signal};
use crate::hint::{Hint, chain};
use crate::host::{self, Identity};
use crate::journal::Sink;
use crate::keyring::Keyring;
use crate::ops::World;
use crate::render::monitor::FaceMonitor;
use crate::setup::{self, Machine, Setup};
use crate::store::{Access, Owner};
use crate::vault::Vault;

pub(super) const DEFAULT_CONFIG: &str = "/etc/tars-backup/config.toml";

/// A command that did not come to its end.
pub struct Failed {
    pub exit: Exit,
    pub lines: Vec<String>,
}

impl Failed {
    pub fn of<E: std::error::Error + Hint>(exit: Exit, e: &E) -> Self {
        Self::text(exit, chain(e), e.hint())
    }

    pub fn text(exit: Exit, text: impl Into<String>, hint: Option<String>) -> Self {
        let hint = hint.map_or_else(String::new, |h| format!("\n  hint: {h}"));
        Self { exit, lines: vec![format!("{}{hint}", text.into())] }
    }

    pub fn output(e: std::io::Error) -> Self {
        Self::text(Exit::Failed, format!("cannot write the output: {e}"), None)
    }

    pub fn interrupted(cancel: &Cancel) -> Self {
        let signal = cancel.signal().unwrap_or(Signal::Interrupt);
        Self::text(Exit::Interrupted(signal), "interrupted; nothing was left behind", None)
    }

    pub fn problems(problems: &[Problem]) -> Self {
        let mut lines = Vec::new();
        for p in problems {
            let hint = p.hint.as_ref().map_or_else(String::new, |h| format!("\n  hint: {h}"));
            lines.push(format!("{p}{hint}"));
        }
        let count = problems.len();
        lines.push(format!("{count} problem{} in the configuration", if count == 1 { "" } else { "s" }));
        Self { exit: Exit::Config, lines }
    }

    /// Says it once, in one place.
    pub fn report(&self) -> Exit {
        for line in &self.lines {
            log::error!("{line}");
        }
        self.exit
    }
}

/// Everything that a command works with.
pub struct Session {
    pub cancel: Cancel,
    pub runtime: Runtime,
    pub monitor: FaceMonitor,
    pub vault: Arc<Vault>,
    pub access: Access,
    pub keyring: Keyring,
}

impl Session {
    /// Starts listening for signals; from here on they end the command in good order.
    pub fn start(global: &Global, sink: Sink) -> Result<Self, Failed> {
        let failed =
            |what: &str, e: std::io::Error| Failed::text(Exit::Failed, format!("cannot {what}: {e}"), None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| failed("start the runtime", e))?;
        let cancel = Cancel::default();
        for (kind, meaning) in
            [(SignalKind::interrupt(), Signal::Interrupt), (SignalKind::terminate(), Signal::Terminate)]
        {
            let _inside = runtime.enter();
            let mut stream = signal(kind).map_err(|e| failed("listen for signals", e))?;
            let cancel = cancel.clone();
            runtime.spawn(async move {
                while stream.recv().await.is_some() {
                    cancel.request(meaning);
                }
            });
        }
        let exe = std::env::current_exe().map_err(|e| failed("find the program itself", e))?;
        let vault = Arc::new(Vault::default());
        let run = format!("{}-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"), std::process::id());
        let monitor = FaceMonitor::new(run, vault.clone(), sink, global.quiet || global.json);
        let access = Access { exe, runtime: runtime.handle().clone(), vault: vault.clone() };
        Ok(Self { cancel, runtime, monitor, vault, keyring: Keyring::default(), access })
    }

    /// Says where the private keys are to be found: in the files that were named, else where the configuration says.
    pub fn opens_with(&mut self, setup: Option<&Setup>, given: &[PathBuf]) {
        let configured = setup.and_then(|s| s.encryption.identity.clone());
        self.keyring = Keyring::new(configured, given.to_vec());
    }

    pub fn owner(&self, setup: &Setup, identity: Identity) -> Result<Owner, Failed> {
        let agent = &setup.agent;
        let stack = agent.stack.as_deref().or(setup.docker.project.as_deref());
        host::owner(&setup.host, stack, &agent.state_dir, identity).map_err(|e| {
            Failed::text(Exit::Failed, format!("cannot learn the identity of this machine: {e}"), None)
        })
    }

    /// For commands that read: they need no identity, and make none.
    pub fn reader(&self, setup: Option<&Setup>) -> Result<Owner, Failed> {
        match setup {
            Some(setup) => self.owner(setup, Identity::LookOnly),
            None => Ok(Owner { machine_id: String::new(), host: host::name(), stack: None }),
        }
    }

    pub fn world<'a>(&'a self, owner: &'a Owner) -> World<'a> {
        World {
            cancel: &self.cancel,
            monitor: &self.monitor,
            runtime: self.runtime.handle(),
            vault: &self.vault,
            keyring: &self.keyring,
            owner,
            exe: &self.access.exe,
            now: Timestamp::now,
        }
    }

    /// The failure of an operation: interrupted, or what it says.
    pub fn failed<E: std::error::Error + Hint>(&self, exit: Exit, e: &E) -> Failed {
        if self.cancel.check().is_err() {
            return Failed::interrupted(&self.cancel);
        }
        let failed = Failed::of(exit, e);
        Failed { exit: failed.exit, lines: failed.lines.iter().map(|l| self.vault.scrub(l)).collect() }
    }

    pub fn interrupted(&self, _: Interrupted) -> Failed {
        Failed::interrupted(&self.cancel)
    }
}

/// Where we work by default: the system's places for root, the user's own for everybody else.
fn places() -> Places {
    let env = |key: &str| std::env::var_os(key).map(PathBuf::from).filter(|p| p.is_absolute());
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Places { state: "/var/lib/tars-backup".into(), runtime: "/run/tars-backup".into() };
    }
    let home = env("HOME").unwrap_or_else(|| "/nonexistent".into());
    let state = env("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("tars-backup");
    let runtime = env("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |dir| dir.join("tars-backup"));
    Places { state, runtime }
}

/// The settings of the agent on a machine that has no configuration.
pub fn places_alone(access: &Access) -> Agent {
    setup::agent_alone(&[], &machine(access)).0
}

pub fn machine(access: &Access) -> Machine<'_> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Machine { places: places(), cores, host: host::name(), access }
}

/// Reads the configuration and what it says about itself.
pub fn load(global: &Global, access: &Access) -> Result<Setup, Failed> {
    try_load(global, access)?.map_err(|p| Failed::problems(&p))
}

/// The same, with the problems of its text as values.
pub fn try_load(global: &Global, access: &Access) -> Result<Result<Setup, Vec<Problem>>, Failed> {
    let path = global.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let files = read_files(&path)?;
    Ok(setup::load(&files, &machine(access)))
}

/// The settings of the agent, as far as the configuration can be read, and what is wrong with it.
pub fn lenient_agent(global: &Global, access: &Access) -> (Agent, Option<String>) {
    let path = global.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let machine = machine(access);
    let missing = global.config.is_none() && !path.exists();
    match read_files(&path) {
        Ok(files) => {
            let (agent, problems) = setup::agent_alone(&files, &machine);
            let problem =
                problems.first().map(|p| format!("the configuration has problems, the first one: {p}"));
            (agent, problem)
        }
        Err(failed) => {
            let problem = (!missing).then(|| failed.lines.join("; "));
            (setup::agent_alone(&[], &machine).0, problem)
        }
    }
}

/// The hooks, as far as the configuration can be read.
pub fn lenient_hooks(global: &Global) -> Result<Hooks, Failed> {
    let path = global.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    read_files(&path).map(|files| setup::hooks_alone(&files))
}

/// The same for commands that can do without one; None when there is none and none was named.
pub fn load_optional(global: &Global, access: &Access) -> Result<Option<Setup>, Failed> {
    if global.config.is_none() && !Path::new(DEFAULT_CONFIG).exists() {
        return Ok(None);
    }
    load(global, access).map(Some)
}

/// Where the configuration is looked for.
pub fn config_path(global: &Global) -> PathBuf {
    let path = global.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    std::path::absolute(&path).unwrap_or(path)
}

/// Whether there is none, also under the name that was given: what cannot be looked at may be one.
pub fn has_no_config(global: &Global) -> bool {
    matches!(config_path(global).try_exists(), Ok(false))
}

fn read_files(path: &Path) -> Result<Vec<(PathBuf, String)>, Failed> {
    let mut paths = vec![path.to_owned()];
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).join("conf.d");
    match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(unreadable(&dir, &e)),
        Ok(entries) => {
            let mut more = Vec::new();
            for entry in entries {
                let p = entry.map_err(|e| unreadable(&dir, &e))?.path();
                if p.extension().is_some_and(|x| x == "toml") {
                    more.push(p);
                }
            }
            more.sort();
            paths.extend(more);
        }
    }
    paths
        .into_iter()
        .map(|p| match std::fs::read_to_string(&p) {
            Ok(text) => Ok((std::path::absolute(&p).unwrap_or(p), text)),
            Err(e) => Err(unreadable(&p, &e)),
        })
        .collect()
}

fn unreadable(path: &Path, e: &std::io::Error) -> Failed {
    let hint = match e.kind() {
        std::io::ErrorKind::NotFound => {
            "write one: tars-backup init (or see /usr/share/doc/tars-backup/examples); or name another with --config FILE"
        }
        std::io::ErrorKind::PermissionDenied => "run as root, or name another with --config FILE",
        _ => "it must be UTF-8 text in TOML",
    };
    Failed::text(
        Exit::Config,
        format!("cannot read the configuration {}: {e}", path.display()),
        Some(hint.into()),
    )
}
