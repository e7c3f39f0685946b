//! A stack in the engine of the laboratory, and a machine with systemd that sees it as its own.

#![allow(dead_code, clippy::unwrap_used)]

use crate::machine::{Machine, engine};
use crate::support::{run, sh};

#[track_caller]
pub fn docker(args: &[&str]) -> String {
    run("docker", &[&["-H", engine()], args].concat()).expect(0).stdout.trim_end().to_owned()
}

/// The stack of the laboratory under names of this test; it goes with the test.
pub struct Stack {
    pub prefix: String,
}

impl Stack {
    pub fn up(name: &str, services: &str) -> Self {
        engine();
        let stack = Self { prefix: format!("tars-units-{}-{name}-", std::process::id()) };
        stack.lab(&format!("LAB_SERVICES='{services}'"), "up");
        stack
    }

    pub fn lab(&self, more: &str, verb: &str) {
        let script = format!("{}/tests/lab/stack.sh", env!("CARGO_MANIFEST_DIR"));
        sh(&format!("LAB_PREFIX='{}' {more} '{script}' {verb}", self.prefix));
    }

    pub fn container(&self, service: &str) -> String {
        format!("{}tars-home-{service}", self.prefix)
    }

    pub fn sql(&self, text: &str) -> String {
        let psql = ["psql", "-X", "-A", "-t", "-q", "-U", "tars", "-d", "tars_home", "-c", text];
        docker(&[&["exec", &self.container("postgres")], &psql[..]].concat())
    }

    pub fn redis(&self, args: &[&str]) -> String {
        docker(&[&["exec", &self.container("redis"), "redis-cli"], args].concat())
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.lab("", "down");
    }
}

/// A machine that sees the engine, its volumes and the loopback of this one. What a container has mounted by the engine is
/// held as a writer, and so would be the machine itself: so the volumes come in by a way that the engine does not know.
pub struct Beside {
    m: Machine,
    shared: tempfile::TempDir,
}

impl std::ops::Deref for Beside {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.m
    }
}

impl Beside {
    pub fn up(release: &str) -> Self {
        Self::with(|flags| Machine::installed_beside(release, flags))
    }

    /// One of that name in which nothing is installed.
    pub fn bare(release: &str, hostname: &str) -> Self {
        Self::with(|flags| Machine::bare_beside(release, &[&["--hostname", hostname], flags].concat()))
    }

    fn with(up: impl FnOnce(&[&str]) -> Machine) -> Self {
        let shared = tempfile::tempdir().unwrap();
        let at = shared.path().display().to_string();
        sh(&format!("mount --bind '{at}' '{at}'; mount --make-shared '{at}'; mkdir '{at}/volumes'"));
        let (socket, door) = (socket_dir(), format!("{at}:/mnt/shared:rslave"));
        // Debian 13 would mount a /tmp of its own over what lies there.
        let tmp = "/dev/null:/etc/systemd/system/tmp.mount";
        let m = up(&["-v", &format!("{socket}:{socket}"), "-v", &door, "-v", tmp]);
        let volumes = volumes();
        sh(&format!("mount --bind '{volumes}' '{at}/volumes'"));
        m.sh(&format!("mkdir -p '{volumes}'; mount --bind /mnt/shared/volumes '{volumes}'")).expect(0);
        Self { m, shared }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let at = self.shared.path().display();
        run("umount", &["-l", &format!("{at}/volumes")]);
        run("umount", &["-l", &at.to_string()]);
    }
}

/// Directory of the engine's socket.
pub fn socket_dir() -> String {
    let socket = engine().trim_start_matches("unix://");
    std::path::Path::new(socket).parent().unwrap().display().to_string()
}

/// Directory of the engine's volumes.
pub fn volumes() -> String {
    format!("{}/volumes", docker(&["info", "-f", "{{.DockerRootDir}}"]))
}
