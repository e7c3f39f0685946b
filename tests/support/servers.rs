//! Real servers on this machine's loopback, each on a free port and gone when it is dropped: two of S3 that have nothing
//! in common, and one that speaks TLS with a certificate that nobody knows.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::{Handle, Runtime};

pub const KEY_ID: &str = "TESTKEYID0000000";
pub const KEY: &str = "test-secret/with+odd=signs-0123456789";
pub const BUCKET: &str = "vault";

/// What a test needs of a server that speaks S3.
pub trait S3Server {
    /// `http://127.0.0.1:PORT`, with a bucket [`BUCKET`] and the key [`KEY_ID`], [`KEY`].
    fn endpoint(&self) -> String;
}

/// s3s-fs, in this process: it checks signatures, and an object is a file below `root`.
pub struct S3sFs {
    address: SocketAddr,
    root: tempfile::TempDir,
    runtime: Option<Runtime>,
}

impl S3sFs {
    pub fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, KEY));
        let service = builder.build();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Self { address, root, runtime: Some(runtime) }
    }

    /// Directory of the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.root.path().join(BUCKET)
    }

    /// A second bucket.
    pub fn add_bucket(&self, name: &str) {
        std::fs::create_dir(self.root.path().join(name)).unwrap();
    }
}

impl S3Server for S3sFs {
    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for S3sFs {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A program that is ended with the test.
pub struct Program(Child);

impl Program {
    fn start(command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap_or_else(|e| {
            panic!("cannot run {command:?}: {e}; `make test` installs what the tests need")
        }))
    }

    /// Waits until something listens at `address`.
    fn wait_for(&mut self, address: SocketAddr) {
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(address).is_err() {
            assert!(self.0.try_wait().unwrap().is_none(), "the server ended at once");
            assert!(Instant::now() < end, "the server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody has, and that nobody gets who asks the system for any: those begin at 32768.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        // Programs that run at the same time begin at other places.
        let begin = 10_000 + u16::try_from(std::process::id() % 200).unwrap() * 100;
        let port = begin + NEXT.fetch_add(1, Ordering::Relaxed) % 100;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// moto, another make in another language. Any key will do there.
pub struct Moto {
    address: SocketAddr,
    program: Program,
}

impl Moto {
    pub fn start() -> Self {
        let lab = std::env::var_os("LAB_DIR")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab"), PathBuf::from);
        let address = free_port();
        let mut command = Command::new(lab.join("moto/bin/moto_server"));
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let mut program = Program::start(&mut command);
        program.wait_for(address);
        let moto = Self { address, program };
        let answer = moto.ask(&format!("PUT /{BUCKET} HTTP/1.1"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        moto
    }

    /// What is deleted from now on is only hidden, as B2 does it.
    pub fn hides_what_is_deleted(&self) {
        let on = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        let answer = self.tell(&format!("PUT /{BUCKET}?versioning HTTP/1.1"), on);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// Objects that are hidden.
    pub fn hidden(&self) -> usize {
        self.ask(&format!("GET /{BUCKET}?versions HTTP/1.1")).matches("<DeleteMarker>").count()
    }

    /// Sends a request without a body and returns the answer, as text.
    pub fn ask(&self, line: &str) -> String {
        self.tell(line, "")
    }

    fn tell(&self, line: &str, body: &str) -> String {
        let mut socket = TcpStream::connect(self.address).unwrap();
        let (address, length) = (self.address, body.len());
        let head = format!(
            "{line}\r\nHost: {address}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        socket.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Uploads in parts that were begun and neither finished nor given up.
    pub fn unfinished(&self) -> usize {
        self.ask(&format!("GET /{BUCKET}?uploads HTTP/1.1")).matches("<UploadId>").count()
    }
}

impl S3Server for Moto {
    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// A door with TLS before a server: its certificate is for `name`, by an authority that is made for it.
pub struct TlsDoor {
    pub address: SocketAddr,
    /// Who vouches for it.
    pub ca: PathBuf,
    dir: tempfile::TempDir,
}

impl TlsDoor {
    pub fn start(behind: &str, name: &str) -> Self {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};

        tars_backup::tls::choose();
        let dir = tempfile::tempdir().unwrap();
        let (ca, cert, key) =
            (dir.path().join("ca.pem"), dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let script = format!(
            "cd {dir}; new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
             openssl req -x509 $new -days 2 -subj /CN=tester -keyout ca.key -out ca.pem
             openssl req $new -subj /CN=server -keyout key.pem -out server.csr
             openssl x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
               -extfile <(echo subjectAltName={name}) -out cert.pem",
            dir = dir.path().display()
        );
        let made = Command::new("bash").args(["-euc", &script]).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&cert).unwrap()],
                PrivateKeyDer::from_pem_file(&key).unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let behind = behind.trim_start_matches("http://").to_owned();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (config, behind) = (config.clone(), behind.clone());
                std::thread::spawn(move || {
                    let _ = serve_tls(socket, config, &behind);
                });
            }
        });
        Self { address, ca, dir }
    }
}

/// Question by question, so that one thread is enough: a head and its body in, the answer out, the end.
fn serve_tls(socket: TcpStream, config: Arc<rustls::ServerConfig>, behind: &str) -> std::io::Result<()> {
    let connection = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut inside = rustls::StreamOwned::new(connection, socket);
    let (head, mut body) = super::proxy::read_head(&mut inside)?;
    let length = super::proxy::length_of(&head);
    let mut outside = TcpStream::connect(behind)?;
    let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    outside.write_all(head.as_bytes())?;
    while (body.len() as u64) < length {
        let mut piece = [0; 8192];
        let n = inside.read(&mut piece)?;
        if n == 0 {
            break;
        }
        body.extend_from_slice(&piece[..n]);
    }
    outside.write_all(&body)?;
    std::io::copy(&mut outside, &mut inside)?;
    inside.conn.send_close_notify();
    inside.flush()
}

/// A real sshd: its users log in with a key, and see this machine's files.
pub struct Sshd {
    address: SocketAddr,
    dir: tempfile::TempDir,
    _program: Program,
}

impl Sshd {
    pub fn start() -> Self {
        Self::with("internal-sftp", None)
    }

    /// Whose files are kept by the server of OpenSSH as a program of its own, which writes none longer than `blocks` of
    /// 1024 bytes.
    pub fn that_writes(blocks: u32) -> Self {
        let script =
            format!("#!/bin/bash\ntrap '' XFSZ\nulimit -f {blocks}\nexec /usr/lib/openssh/sftp-server\n");
        Self::with("", Some(&script))
    }

    /// Whose files are kept by `sftp.py`, with that oddity.
    pub fn odd(oddity: &str) -> Self {
        let output =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        let python = String::from_utf8(output.stdout).unwrap();
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/sftp.py");
        let script = format!("#!/bin/sh\nexec '{}' '{}' {oddity}\n", python.trim(), program.display());
        Self::with("", Some(&script))
    }

    /// `subsystem`: what serves files; or that script does.
    fn with(subsystem: &str, script: Option<&str>) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let program = dir.path().join("subsystem");
        let subsystem = match script {
            None => subsystem.to_owned(),
            Some(text) => {
                std::fs::write(&program, text).unwrap();
                std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
                program.display().to_string()
            }
        };
        let address = free_port();
        let user = Self::user();
        let script = format!(
            "cd {at}; mkdir -p root; mkdir -p /run/sshd || true
             ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f user; ssh-keygen -q -t ed25519 -N '' -f other
             cp user.pub authorized
             echo '[127.0.0.1]:{port} '\"$(cut -d' ' -f1,2 host.pub)\" >known_hosts
             echo '[127.0.0.1]:{port} '\"$(cut -d' ' -f1,2 other.pub)\" >changed_hosts
             : >no_hosts
             cat >config <<END
ListenAddress 127.0.0.1
Port {port}
HostKey {at}/host
PidFile none
AuthorizedKeysFile {at}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowUsers {user}
Subsystem sftp {subsystem}
END",
            port = address.port()
        );
        let made = Command::new("bash").args(["-euc", &script]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // It insists on a path from the root.
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-f").arg(dir.path().join("config")).arg("-E").arg(dir.path().join("log"));
        let mut program = Program::start(&mut command);
        program.wait_for(address);
        Self { address, dir, _program: program }
    }

    /// Who runs this test.
    pub fn user() -> String {
        let output = Command::new("id").arg("-un").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A directory that is there, for stores.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A file of it: `user` and `other` (private keys), `known_hosts`, `changed_hosts`, `no_hosts`, `log`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keys of an `sftp` store below its root.
    pub fn keys(&self, below: &str, more: &str) -> String {
        format!(
            "type = \"sftp\"\nhost = \"127.0.0.1\"\nport = {}\nuser = {:?}\npath = {:?}\nkey = {{ file = {:?} }}\nknown_hosts = {:?}\n{more}\n",
            self.port(),
            Self::user(),
            self.root().join(below),
            self.file("user"),
            self.file("known_hosts"),
        )
    }

    /// Ends the connections of this process to it.
    pub fn cut(&self) -> usize {
        let of_this = ["-P".to_owned(), std::process::id().to_string(), "-f".to_owned()];
        let output =
            Command::new("pgrep").args(of_this).arg(format!("[-]p {} ", self.port())).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        for child in found.lines() {
            assert!(Command::new("kill").args(["-9", child]).status().unwrap().success());
        }
        found.lines().count()
    }
}

/// A runtime for stores in a test, and what they need of the process.
pub struct World {
    runtime: Runtime,
    pub access: tars_backup::store::Access,
}

impl World {
    pub fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let access = tars_backup::store::Access {
            exe: PathBuf::from(env!("CARGO_BIN_EXE_tars-backup")),
            runtime: runtime.handle().clone(),
            vault: Arc::default(),
        };
        Self { runtime, access }
    }

    pub fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// The one store of that configuration, `[stores.x]` and its keys.
    pub fn store(&self, keys: &str) -> Box<dyn tars_backup::store::Store> {
        let mut stores = self.read(keys).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert_eq!(stores.len(), 1);
        stores.remove(0)
    }

    pub fn read(&self, keys: &str) -> Result<Vec<Box<dyn tars_backup::store::Store>>, Vec<String>> {
        use tars_backup::config::{Doc, Section, Survey};
        let mut problems = Vec::new();
        let doc = Doc::parse(&[("c.toml".into(), format!("[stores.x]\n{keys}\n"))], &mut problems);
        let survey = std::rc::Rc::new(std::cell::RefCell::new(Survey { problems, ..Survey::default() }));
        let stores = tars_backup::store::read_all(&Section::root(&doc, survey.clone()), &self.access);
        let problems: Vec<String> = survey
            .take()
            .problems
            .iter()
            .map(|p| format!("{p}{}", p.hint.as_deref().map_or_else(String::new, |h| format!(" ({h})"))))
            .collect();
        if problems.is_empty() { Ok(stores) } else { Err(problems) }
    }

    /// Files that hold the key of the servers, as keys of a store.
    pub fn keys(&self, dir: &Path) -> String {
        let (id, key) = (dir.join("key-id"), dir.join("key"));
        std::fs::write(&id, format!("{KEY_ID}\n")).unwrap();
        std::fs::write(&key, format!("{KEY}\n")).unwrap();
        format!("key_id = {{ file = {:?} }}\nkey = {{ file = {:?} }}\n", id, key)
    }
}

/// Keys of an `s3` store on a server.
pub fn s3_keys(world: &World, dir: &Path, endpoint: &str, more: &str) -> String {
    format!("type = \"s3\"\nbucket = {BUCKET:?}\nendpoint = {endpoint:?}\n{}{more}\n", world.keys(dir))
}
