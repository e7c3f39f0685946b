//! Commands in a container. What could go wrong: the stream of a killed container, and of a killed engine, ends like
//! that of a finished command. So the output counts only when `finish` saw the exit status 0; and a command that we
//! give up is killed, because the engine would let it run on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::ExecConfig;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::client::{Docker, DockerError, from_api};
use super::containers::Container;

/// How long a command may take, and how long it may say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub total: Duration,
    pub idle: Duration,
}

/// The shell tells its process number before it becomes the command, so that the command can be killed from outside.
const TELL_PID: &str = r#"echo "tars-backup-pid $$" >&2; exec "$@""#;
const PID_MARK: &str = "tars-backup-pid ";
/// How often somebody looks after a command that takes its time.
const TICK: Duration = Duration::from_secs(1);
/// What is kept of the error output.
const STDERR_KEPT: usize = 2000;

/// A command that runs in a container.
pub struct Exec<'a> {
    docker: &'a Docker,
    container: String,
    container_id: String,
    program: String,
    id: String,
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, ApiError>> + Send>>,
    input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    limits: Limits,
    started: Instant,
    stderr: VecDeque<u8>,
    pid: Option<String>,
    finished: bool,
}

/// Output of a short command.
#[derive(Debug)]
pub struct Output {
    pub stdout: Vec<u8>,
    /// End of the error output, on one line.
    pub stderr: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Docker {
    /// Starts `argv` in a running container. `env` reaches only that command; secrets travel there, never in `argv`.
    pub fn exec(
        &self,
        container: &Container,
        user: Option<&str>,
        env: &[(String, String)],
        argv: &[&str],
        limits: Limits,
    ) -> Result<Exec<'_>, DockerError> {
        self.start_exec(container, user, env, argv, limits, false)
    }

    fn start_exec(
        &self,
        container: &Container,
        user: Option<&str>,
        env: &[(String, String)],
        argv: &[&str],
        limits: Limits,
        with_input: bool,
    ) -> Result<Exec<'_>, DockerError> {
        container.must_run()?;
        let program = argv.first().copied().unwrap_or_default().to_owned();
        let what = format!("starting {program} in {}", container.name);
        let mut cmd: Vec<String> = ["sh", "-c", TELL_PID, "sh"].map(str::to_owned).to_vec();
        cmd.extend(argv.iter().map(|a| (*a).to_owned()));
        let config = ExecConfig {
            attach_stdin: Some(with_input),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(false),
            user: user.map(str::to_owned),
            env: (!env.is_empty()).then(|| env.iter().map(|(k, v)| format!("{k}={v}")).collect()),
            cmd: Some(cmd),
            ..ExecConfig::default()
        };
        let id = self.call(&what, self.api.create_exec(&container.id, config))?.id;
        let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(256 << 10) };
        match self.call(&what, self.api.start_exec(&id, Some(options)))? {
            StartExecResults::Attached { output, input } => Ok(Exec {
                docker: self,
                container: container.name.clone(),
                container_id: container.id.clone(),
                program,
                id,
                output,
                input: with_input.then_some(input),
                limits,
                started: Instant::now(),
                stderr: VecDeque::new(),
                pid: None,
                finished: false,
            }),
            StartExecResults::Detached => {
                Err(DockerError::Broken { what, reason: "the engine did not attach the output".into() })
            }
        }
    }

    /// Runs a short command to its end.
    pub fn run(
        &self,
        container: &Container,
        user: Option<&str>,
        env: &[(String, String)],
        argv: &[&str],
        limits: Limits,
    ) -> Result<Output, DockerError> {
        let mut exec = self.exec(container, user, env, argv, limits)?;
        let mut stdout = Vec::new();
        while let Some(chunk) = exec.next_chunk()? {
            stdout.extend_from_slice(&chunk);
        }
        let stderr = exec.stderr_text();
        exec.finish()?;
        Ok(Output { stdout, stderr })
    }

    /// Runs a command to its end that reads what `next` puts into the buffer, until that puts nothing. `watch` is called
    /// between two pieces, and every second while the command takes none; its error ends the command.
    pub fn feed<E: From<DockerError>>(
        &self,
        container: &Container,
        env: &[(String, String)],
        argv: &[&str],
        limits: Limits,
        next: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), E>,
        watch: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Output, E> {
        let mut exec = self.start_exec(container, None, env, argv, limits, true)?;
        let (mut stdout, mut piece, mut written) = (Vec::new(), Vec::new(), 0);
        let mut moved = Instant::now();
        loop {
            if written == piece.len() && exec.input.is_some() {
                (written, _) = (0, piece.clear());
                next(&mut piece)?;
                if piece.is_empty() {
                    exec.close_input()?;
                }
            }
            watch()?;
            match exec.turn(&piece[written..])? {
                Turn::Wrote(n) => written += n,
                Turn::Said(chunk) => stdout.extend_from_slice(&chunk),
                Turn::Ended => break,
                Turn::Nothing if moved.elapsed() < limits.idle => continue,
                Turn::Nothing => return Err(exec.idle(limits.idle).into()),
            }
            moved = Instant::now();
        }
        let stderr = exec.stderr_text();
        exec.finish()?;
        Ok(Output { stdout, stderr })
    }
}

/// What happened first.
enum Turn {
    Wrote(usize),
    Said(Bytes),
    /// It says nothing any more.
    Ended,
    Nothing,
}

impl Exec<'_> {
    /// The next piece of standard output; None when the stream has ended, which by itself proves nothing.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, DockerError> {
        loop {
            let left = self.left()?;
            let limit = self.limits.idle.min(left);
            let Some(item) = self.docker.wait(limit, self.output.next())? else {
                if limit < self.limits.idle {
                    continue;
                }
                return Err(self.idle(limit));
            };
            let Some(item) = item else { return Ok(None) };
            if let Some(chunk) = self.take(item)? {
                return Ok(Some(chunk));
            }
        }
    }

    /// What is left of its time.
    fn left(&self) -> Result<Duration, DockerError> {
        let left = self.limits.total.saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return Err(DockerError::TooLong {
                program: self.program.clone(),
                container: self.container.clone(),
                seconds: self.limits.total.as_secs(),
            });
        }
        Ok(left)
    }

    fn idle(&self, limit: Duration) -> DockerError {
        DockerError::Idle {
            program: self.program.clone(),
            container: self.container.clone(),
            seconds: limit.as_secs(),
        }
    }

    /// Standard output of one item of the stream.
    fn take(&mut self, item: Result<LogOutput, ApiError>) -> Result<Option<Bytes>, DockerError> {
        match item {
            Ok(LogOutput::StdOut { message }) => Ok(Some(message).filter(|m| !m.is_empty())),
            Ok(LogOutput::StdErr { message }) => {
                self.note_stderr(&message);
                Ok(None)
            }
            // A rest without a frame: the stream was cut in the middle of one.
            Ok(LogOutput::Console { .. } | LogOutput::StdIn { .. }) => {
                Err(DockerError::Cut { program: self.program.clone(), container: self.container.clone() })
            }
            Err(e) => Err(from_api(&format!("{} in {}", self.program, self.container), &e)),
        }
    }

    /// Writes some of `rest` or reads some output, whichever can be done first: a command that waits for us to read would
    /// never read what we write.
    fn turn(&mut self, rest: &[u8]) -> Result<Turn, DockerError> {
        let limit = TICK.min(self.left()?);
        let (input, output) = (&mut self.input, &mut self.output);
        let either = async {
            match input.as_mut().filter(|_| !rest.is_empty()) {
                None => Err(output.next().await),
                Some(input) => tokio::select! {
                    item = output.next() => Err(item),
                    n = input.write(rest) => Ok(n),
                },
            }
        };
        Ok(match self.docker.wait(limit, either)? {
            None => Turn::Nothing,
            Some(Ok(Ok(n))) if n > 0 => Turn::Wrote(n),
            // It reads no more: how it ends tells why.
            Some(Ok(_)) => {
                self.input = None;
                Turn::Wrote(rest.len())
            }
            Some(Err(None)) => Turn::Ended,
            Some(Err(Some(item))) => self.take(item)?.map_or(Turn::Wrote(0), Turn::Said),
        })
    }

    /// The end of its input, so that the command comes to its own.
    fn close_input(&mut self) -> Result<(), DockerError> {
        if let Some(mut input) = self.input.take() {
            // What could go wrong here shows in how the command ends.
            let _ = self.docker.wait(Duration::from_secs(30), input.shutdown())?;
        }
        Ok(())
    }

    fn note_stderr(&mut self, message: &[u8]) {
        let mut rest = message;
        if self.pid.is_none()
            && let Some(after) = message.strip_prefix(PID_MARK.as_bytes())
        {
            let end = after.iter().position(|b| *b == b'\n').unwrap_or(after.len());
            let pid = String::from_utf8_lossy(&after[..end]).trim().to_owned();
            if !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()) {
                self.pid = Some(pid);
            }
            rest = &after[(end + 1).min(after.len())..];
        }
        self.stderr.extend(rest);
        let surplus = self.stderr.len().saturating_sub(STDERR_KEPT);
        self.stderr.drain(..surplus);
    }

    /// Success is the exit status 0, asked from the engine after the stream has ended. Nothing else is.
    pub fn finish(mut self) -> Result<(), DockerError> {
        let what = format!("asking how {} ended", self.program);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer = self.docker.call(&what, self.docker.api.inspect_exec(&self.id))?;
            let running = answer.running.unwrap_or(true);
            if !running {
                self.finished = true;
                return match answer.exit_code {
                    Some(0) => Ok(()),
                    status => Err(DockerError::Exit {
                        program: self.program.clone(),
                        container: self.container.clone(),
                        status,
                        stderr: self.stderr_text(),
                    }),
                };
            }
            if Instant::now() > deadline {
                return Err(DockerError::Cut {
                    program: self.program.clone(),
                    container: self.container.clone(),
                });
            }
            let _: Option<()> = self.docker.wait(Duration::from_millis(50), std::future::pending())?;
        }
    }

    fn stderr_text(&self) -> String {
        let bytes: Vec<u8> = self.stderr.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        lines.join("; ")
    }
}

impl Drop for Exec<'_> {
    /// A command that we gave up would hold its locks until it is done: end it. Best effort, bounded.
    fn drop(&mut self) {
        let (Some(pid), false) = (self.pid.take(), self.finished) else { return };
        let api = self.docker.api.clone();
        let container = self.container_id.clone();
        let config = ExecConfig {
            // `kill` of the shell: not every image has the program.
            cmd: Some(["sh", "-c", r#"kill -TERM "$1""#, "sh", &pid].map(str::to_owned).to_vec()),
            ..ExecConfig::default()
        };
        self.docker.runtime.block_on(async {
            let kill = async {
                let exec = api.create_exec(&container, config).await?;
                let options = StartExecOptions { detach: true, ..StartExecOptions::default() };
                api.start_exec(&exec.id, Some(options)).await
            };
            // Whether it worked cannot change what we report.
            let _ = tokio::time::timeout(Duration::from_secs(5), kill).await;
        });
    }
}
