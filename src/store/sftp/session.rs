//! One connection: an `ssh` that we started, with its SFTP subsystem at the other end. What could go wrong: it asks
//! somebody who is not there, trusts a host that nobody knows, reads settings that were meant for a person, or hangs. So
//! it asks nobody, trusts only known hosts, reads no settings but those it is given, and every answer has its time.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::packet::{self, LONGEST, Reply, Request, Status};
use crate::store::Refusal;
use crate::store::fault::{Fault, Kind, clean};

/// For the connection, by ssh itself.
const CONNECT: u32 = 8;
/// For the connection and everything up to the first answer.
const GREETING: Duration = Duration::from_secs(25);
/// Longest silence after a question.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a server may take to bring data to its disk.
pub(super) const SYNC: Duration = Duration::from_secs(300);
/// What is kept of what ssh says of its failure.
const WORDS: u64 = 16 << 10;

/// How to get there.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub host: String,
    pub port: u16,
    pub user: Option<String>,
    /// None: the system's files.
    pub known_hosts: Option<PathBuf>,
    /// None: no settings of ssh at all.
    pub ssh_config: Option<PathBuf>,
}

/// The private key, as ssh takes it.
pub(super) enum Identity {
    /// Those that ssh finds by itself.
    Default,
    File(PathBuf),
    /// The key itself; it is in a file only until ssh has used it.
    Text(String),
}

pub(super) struct Session {
    // Killed when it is dropped.
    _ssh: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    said: Option<ChildStderr>,
    extensions: Vec<String>,
    next: u32,
    /// Answers that came before they were asked for.
    early: HashMap<u32, Reply>,
    /// Requests that were sent and not answered yet.
    open: usize,
}

/// A directory that nobody else sees, in memory where there is one.
fn private_dir() -> std::io::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("tars-backup-key-");
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    for dir in runtime.iter().map(PathBuf::as_path).chain([Path::new("/run"), Path::new("/dev/shm")]) {
        if let Ok(made) = builder.tempdir_in(dir) {
            return Ok(made);
        }
    }
    builder.tempdir()
}

fn write_key(dir: &Path, text: &str) -> std::io::Result<PathBuf> {
    let path = dir.join("key");
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    // OpenSSH reads no key without its last line break.
    file.write_all(b"\n")?;
    Ok(path)
}

impl Session {
    pub async fn start(route: &Route, identity: &Identity) -> Result<Self, Fault> {
        let unusable = |what: &str, e: &std::io::Error| Fault::other(format!("{what}: {e}"));
        // Removed when this function ends: ssh has read it by then.
        let mut kept = None;
        let mut command = Command::new("ssh");
        let none = PathBuf::from("/dev/null");
        command.arg("-F").arg(route.ssh_config.as_ref().unwrap_or(&none));
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "ControlMaster=no",
            "ControlPath=none",
            "ClearAllForwardings=yes",
            "ForwardAgent=no",
            "PermitLocalCommand=no",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.args(["-o", &format!("ConnectTimeout={CONNECT}")]);
        if let Some(path) = &route.known_hosts {
            let quoted = format!("UserKnownHostsFile=\"{}\"", path.display());
            command.args(["-o", &quoted, "-o", "GlobalKnownHostsFile=/dev/null"]);
        }
        let key = match identity {
            Identity::Default => None,
            Identity::File(path) => Some(path.clone()),
            Identity::Text(text) => {
                let dir =
                    private_dir().map_err(|e| unusable("cannot make a private directory for the key", &e))?;
                let path =
                    write_key(dir.path(), text).map_err(|e| unusable("cannot hand over the key", &e))?;
                kept = Some(dir);
                Some(path)
            }
        };
        if let Some(path) = key {
            command.args(["-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i"]).arg(path);
        }
        if let Some(user) = &route.user {
            command.args(["-l", user]);
        }
        command.args(["-p", &route.port.to_string(), "-s", "--", &route.host, "sftp"]);
        let spawned = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            // A signal of the terminal is for us: we end it ourselves.
            .process_group(0)
            .spawn();
        let mut ssh = spawned.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                Fault::other("the program ssh is not installed: apt-get install openssh-client")
            }
            _ => unusable("cannot start ssh", &e),
        })?;
        let (Some(to), Some(from), Some(said)) = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take())
        else {
            return Err(Fault::other("ssh has no pipes"));
        };
        let mut session = Self {
            _ssh: ssh,
            to,
            from: BufReader::with_capacity(64 << 10, from),
            said: Some(said),
            extensions: Vec::new(),
            next: 0,
            early: HashMap::new(),
            open: 0,
        };
        let greeting = async {
            session.to.write_all(&packet::hello()).await.map_err(|_| None)?;
            session.packet().await
        };
        let answer = match timeout(GREETING, greeting).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(Some(fault))) => return Err(fault),
            Ok(Err(None)) => return Err(session.lost(route).await),
            Err(_) => return Err(Fault::passing("the server does not answer")),
        };
        drop(kept);
        session.extensions = packet::extensions(&answer).ok_or_else(no_sftp)?;
        Ok(session)
    }

    /// What ssh said at its end, judged.
    async fn lost(&mut self, route: &Route) -> Fault {
        let mut words = Vec::new();
        if let Some(said) = self.said.take() {
            let _ = timeout(Duration::from_secs(5), said.take(WORDS).read_to_end(&mut words)).await;
        }
        judge(&String::from_utf8_lossy(&words), route)
    }

    pub fn offers(&self, extension: &str) -> bool {
        self.extensions.iter().any(|e| e == extension)
    }

    /// Whether every question has its answer, so that the connection can be used for something else.
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// The next packet; no fault where the connection ended.
    async fn packet(&mut self) -> Result<Vec<u8>, Option<Fault>> {
        let length = self.from.read_u32().await.map_err(|_| None)? as usize;
        if length == 0 || length > LONGEST {
            return Err(Some(no_sftp()));
        }
        let mut packet = vec![0; length];
        self.from.read_exact(&mut packet).await.map_err(|_| None)?;
        Ok(packet)
    }

    /// Sends a question, without waiting for its answer.
    pub async fn send(&mut self, kind: u8, fill: impl FnOnce(Request) -> Request) -> Result<u32, Fault> {
        self.next = self.next.wrapping_add(1);
        let id = self.next;
        let bytes = fill(Request::new(kind, id)).finish();
        match timeout(ANSWER * 4, self.to.write_all(&bytes)).await {
            Ok(Ok(())) => {
                self.open += 1;
                Ok(id)
            }
            Ok(Err(_)) => Err(broken()),
            Err(_) => Err(Fault::passing("the server takes no more data")),
        }
    }

    /// The answer to that question.
    pub async fn receive(&mut self, id: u32, time: Duration) -> Result<Reply, Fault> {
        loop {
            if let Some(reply) = self.early.remove(&id) {
                self.open -= 1;
                return Ok(reply);
            }
            let packet = match timeout(time, self.packet()).await {
                Ok(Ok(packet)) => packet,
                Ok(Err(fault)) => return Err(fault.unwrap_or_else(broken)),
                Err(_) => return Err(Fault::passing(format!("no answer for {} seconds", time.as_secs()))),
            };
            let (id, reply) = packet::reply(&packet).ok_or_else(no_sftp)?;
            self.early.insert(id, reply);
        }
    }

    pub async fn ask(&mut self, kind: u8, fill: impl FnOnce(Request) -> Request) -> Result<Reply, Fault> {
        let id = self.send(kind, fill).await?;
        self.receive(id, ANSWER).await
    }

    /// A question that is answered by a status.
    pub async fn do_it(&mut self, kind: u8, fill: impl FnOnce(Request) -> Request) -> Result<Status, Fault> {
        let id = self.send(kind, fill).await?;
        self.status(id, ANSWER).await
    }

    pub async fn status(&mut self, id: u32, time: Duration) -> Result<Status, Fault> {
        match self.receive(id, time).await? {
            Reply::Status(status) => Ok(status),
            _ => Err(no_sftp()),
        }
    }
}

pub(super) fn no_sftp() -> Fault {
    Fault::other("what answers there does not speak SFTP; does a shell print something at login?")
}

fn broken() -> Fault {
    Fault::passing("the connection was lost")
}

fn judge(said: &str, route: &Route) -> Fault {
    let lines: Vec<&str> =
        said.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("@@")).collect();
    let says = |text: &str| said.contains(text);
    if says("Host key verification failed")
        || says("host key is known")
        || says("HOST IDENTIFICATION HAS CHANGED")
    {
        let file = route
            .known_hosts
            .as_ref()
            .map_or_else(|| "/etc/ssh/ssh_known_hosts".to_owned(), |p| p.display().to_string());
        let what = if says("HAS CHANGED") {
            "its host key is not the known one"
        } else {
            "its host key is not known"
        };
        let text = format!(
            "{what}; show what it offers: ssh-keyscan -p {} {}; compare that with ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on the server, then add it to {file}",
            route.port, route.host
        );
        return Fault { kind: Kind::Refused(Refusal::Identity), text };
    }
    let last = lines.last().copied().unwrap_or("ssh ended without a word");
    let text = clean(last, &[]);
    let denied = ["Permission denied", "Too many authentication failures", "Load key", "not accessible"];
    if denied.iter().any(|d| says(d)) {
        return Fault { kind: Kind::Refused(Refusal::Access), text };
    }
    if says("subsystem request failed")
        || says("Bad configuration option")
        || says("no argument after keyword")
    {
        return Fault::other(text);
    }
    Fault::passing(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ssh_says_is_judged() {
        let route = Route { host: "nas".into(), port: 22, user: None, known_hosts: None, ssh_config: None };
        let kind = |said: &str| judge(said, &route).kind;
        assert_eq!(
            kind(
                "No ED25519 host key is known for nas and you have requested strict checking.\r\nHost key verification failed.\r\n"
            ),
            Kind::Refused(Refusal::Identity)
        );
        assert_eq!(kind("u@nas: Permission denied (publickey).\r\n"), Kind::Refused(Refusal::Access));
        assert_eq!(kind("ssh: connect to host nas port 22: Connection refused\r\n"), Kind::Passing);
        assert_eq!(
            kind("ssh: Could not resolve hostname nas: Temporary failure in name resolution\r\n"),
            Kind::Passing
        );
        assert_eq!(kind("subsystem request failed on channel 0\r\n"), Kind::Refused(Refusal::Other));
        assert_eq!(kind(""), Kind::Passing);
    }
}
