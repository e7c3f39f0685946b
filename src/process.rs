//! A program on this host whose standard output is wanted. What could go wrong: output that ends like that of a
//! success although the program failed or was killed, so it counts only after `finish` saw the exit status 0; and
//! children left running, so the whole process group is ended with it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};
use tokio::runtime::Handle;

use crate::cancel::{Cancel, Interrupted};

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the output of {program}")]
    Read {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} sent nothing for {seconds} s")]
    Idle { program: String, seconds: u64 },
    #[error("{program} was not done after {seconds} s")]
    TooLong { program: String, seconds: u64 },
    #[error("{program} {status}{}", if stderr.is_empty() { String::new() } else { format!(": {stderr}") })]
    Exit { program: String, status: String, stderr: String },
}

impl crate::hint::Hint for ProcessError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Start { program, .. } => {
                Some(format!("is it installed, and is the path right? command -v {program}"))
            }
            Self::Idle { .. } => Some("raise idle_timeout of the source if it is only slow".into()),
            Self::TooLong { .. } => Some("raise timeout of the source".into()),
            Self::Exit { .. } => Some("run the command by hand and look at what it says".into()),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    /// Program and arguments; no shell reads them.
    pub argv: Vec<String>,
    pub env: Vec<(OsString, OsString)>,
    pub dir: Option<PathBuf>,
    pub total: Duration,
    pub idle: Duration,
}

const STDERR_KEPT: usize = 2000;

pub struct Process {
    runtime: Handle,
    cancel: Cancel,
    program: String,
    child: Child,
    stdout: ChildStdout,
    stderr: tokio::task::JoinHandle<VecDeque<u8>>,
    group: Option<Pid>,
    started: Instant,
    total: Duration,
    idle: Duration,
}

impl Process {
    pub fn start(request: &Request, runtime: Handle, cancel: Cancel) -> Result<Self, ProcessError> {
        Self::start_with(request, Stdio::null(), runtime, cancel)
    }

    /// The same, with something to read.
    pub fn start_with(
        request: &Request,
        input: impl Into<Stdio>,
        runtime: Handle,
        cancel: Cancel,
    ) -> Result<Self, ProcessError> {
        let program = request.argv.first().cloned().unwrap_or_default();
        let failed = |source| ProcessError::Start { program: program.clone(), source };
        let mut command = Command::new(&program);
        command
            .args(request.argv.iter().skip(1))
            .envs(request.env.iter().map(|(k, v)| (k, v)))
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(dir) = &request.dir {
            command.current_dir(dir);
        }
        let _inside = runtime.enter();
        let mut child = command.spawn().map_err(failed)?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pipe = |missing: &str| failed(io::Error::other(format!("no {missing}")));
        let stdout = child.stdout.take().ok_or_else(|| pipe("standard output"))?;
        let mut errors = child.stderr.take().ok_or_else(|| pipe("error output"))?;
        let stderr = runtime.spawn(async move {
            let mut kept = VecDeque::new();
            let mut buffer = [0u8; 4096];
            while let Ok(n @ 1..) = errors.read(&mut buffer).await {
                kept.extend(&buffer[..n]);
                let surplus = kept.len().saturating_sub(STDERR_KEPT);
                kept.drain(..surplus);
            }
            kept
        });
        Ok(Self {
            runtime: runtime.clone(),
            cancel,
            program,
            child,
            stdout,
            stderr,
            group,
            started: Instant::now(),
            total: request.total,
            idle: request.idle,
        })
    }

    /// Reads a piece of standard output; 0 at its end, which by itself proves nothing.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ProcessError> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let limit = self.idle.min(left);
        // What is ready is read before the time is looked at, and there may always be something.
        if left.is_zero() {
            return Err(self.late(left));
        }
        let read = wait(&self.runtime, &self.cancel, limit, self.stdout.read(buffer))?;
        match read {
            Some(n) => n.map_err(|source| ProcessError::Read { program: self.program.clone(), source }),
            None => Err(self.late(limit)),
        }
    }

    fn late(&self, limit: Duration) -> ProcessError {
        let program = self.program.clone();
        if limit < self.idle {
            ProcessError::TooLong { program, seconds: self.total.as_secs() }
        } else {
            ProcessError::Idle { program, seconds: self.idle.as_secs() }
        }
    }

    /// Success is the exit status 0, and nothing else.
    pub fn finish(mut self) -> Result<(), ProcessError> {
        let left = self.total.saturating_sub(self.started.elapsed());
        let limit = self.idle.min(left);
        let Some(status) = wait(&self.runtime, &self.cancel, limit, self.child.wait())? else {
            return Err(self.late(limit));
        };
        let status = status.map_err(|source| ProcessError::Read { program: self.program.clone(), source })?;
        if status.success() {
            // Whatever it left in the background is not ours to end.
            self.group = None;
            return Ok(());
        }
        // A grandchild may hold the pipe open: what came so far is enough.
        let kept = wait(&self.runtime, &self.cancel, Duration::from_secs(1), &mut self.stderr)?;
        let bytes: Vec<u8> = kept.and_then(Result::ok).unwrap_or_default().into();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        use std::os::unix::process::ExitStatusExt;
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended in an unknown way".to_owned(),
        };
        Err(ProcessError::Exit { program: self.program.clone(), status, stderr: lines.join("; ") })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(group) = self.group.take() else { return };
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        // First the polite way, then the sure one: a command may have temporary files of its own to remove.
        let _ = rustix::process::kill_process_group(group, Signal::TERM);
        let child = &mut self.child;
        self.runtime.block_on(async {
            if tokio::time::timeout(Duration::from_secs(3), child.wait()).await.is_err() {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                let _ = tokio::time::timeout(Duration::from_secs(3), child.wait()).await;
            }
        });
    }
}

fn wait<T>(
    runtime: &Handle,
    cancel: &Cancel,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Result<Option<T>, Interrupted> {
    runtime.block_on(async {
        tokio::select! {
            () = cancel.requested() => Err(Interrupted),
            outcome = tokio::time::timeout(limit, future) => Ok(outcome.ok()),
        }
    })
}
