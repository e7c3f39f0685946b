//! Which paths may a backup write to on a machine that has no configuration yet? What could go wrong: age does not say who
//! sealed, so what is opened may be somebody else's, and one file in the right place of the system is the whole machine. So
//! our own directory is open, what a person names is open, and what belongs to the system is not, whoever names it.

use std::path::{Component, Path, PathBuf};

/// Our own directory, in which the configuration lies on every machine.
pub const OWN: &str = "/etc/tars-backup";

/// What belongs to the system: programs, their settings, and what is run or believed from there.
const SYSTEM: [&str; 20] = [
    "/bin",
    "/boot",
    "/dev",
    "/efi",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/lost+found",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/cache",
    "/var/lock",
    "/var/mail",
    "/var/run",
    "/var/spool",
];

/// What of `/var/lib` belongs to the system: the state of what runs there.
const STATE: [&str; 11] = [
    "apt",
    "cloud",
    "containerd",
    "dbus",
    "docker",
    "dpkg",
    "pam",
    "polkit-1",
    "private",
    "systemd",
    "tars-backup",
];

/// Names of directories from which keys are believed or programs are run, wherever they lie.
const ANYWHERE: [&str; 3] = [".ssh", ".gnupg", ".git"];

/// Why a path is not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// It belongs to the system, or is no plain path.
    System,
    /// Nobody has named a directory that it lies in; this one would do.
    Unnamed(PathBuf),
}

/// What is open.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    named: Vec<PathBuf>,
    /// What lies outside is left out, instead of being a reason to put nothing back.
    pub leave_the_rest: bool,
}

impl Reach {
    /// `named`: by a person, in words of his own. One that must not be named is the error.
    pub fn new(named: &[PathBuf], leave_the_rest: bool) -> Result<Self, PathBuf> {
        match named.iter().find(|dir| !may_be_named(dir)) {
            Some(bad) => Err(bad.clone()),
            None => Ok(Self { named: named.to_vec(), leave_the_rest }),
        }
    }

    /// `dirs`: where a backup says that its stack lay. What is of the system is not believed.
    pub fn told(dirs: &[PathBuf], leave_the_rest: bool) -> Self {
        let named = dirs.iter().filter(|dir| may_be_named(dir)).cloned().collect();
        Self { named, leave_the_rest }
    }

    pub fn judge(&self, path: &Path) -> Result<(), Outside> {
        if !is_plain(path) || is_of_the_system(path) {
            return Err(Outside::System);
        }
        let own = Path::new(OWN);
        let open = std::iter::once(own).chain(self.named.iter().map(PathBuf::as_path));
        match path.parent() {
            Some(dir) if open.into_iter().any(|open| dir.starts_with(open)) => Ok(()),
            Some(dir) if may_be_named(dir) => Err(Outside::Unnamed(dir.to_owned())),
            _ => Err(Outside::System),
        }
    }
}

/// Whether a credential of this name is only ours. Names with a dot are those that systemd itself looks for: it would make
/// files, users and keys of them at the next boot (tmpfiles.extra, passwd.hashed-password.root, ssh.authorized_keys.root).
pub fn is_our_credential(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && !name.contains(['.', '/'])
        && !name.contains(char::is_control)
}

/// What a person has to name so that all of `paths` come back that may: each directory, without those inside of others.
pub fn dirs_of<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<PathBuf> {
    let none = Reach::default();
    let mut dirs: Vec<PathBuf> = paths
        .filter_map(|path| match none.judge(path) {
            Err(Outside::Unnamed(dir)) => Some(dir),
            _ => None,
        })
        .collect();
    dirs.sort();
    dirs.dedup();
    let all = dirs.clone();
    dirs.retain(|dir| !all.iter().any(|other| other != dir && dir.starts_with(other)));
    dirs
}

/// Absolute, without `.`, `..` or anything that would make another line of a list.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    let text = path.to_string_lossy();
    parts.next() == Some(Component::RootDir)
        && parts.all(|part| matches!(part, Component::Normal(_)))
        && !text.contains(char::is_control)
}

fn may_be_named(dir: &Path) -> bool {
    // The root itself holds all of the system.
    is_plain(dir) && dir != Path::new("/") && !is_of_the_system(dir)
}

fn is_of_the_system(path: &Path) -> bool {
    let own = Path::new(OWN);
    if path.starts_with(own) && path != own {
        return false;
    }
    let hidden = |at: usize| {
        let part = path.components().nth(at).map(|c| c.as_os_str().to_string_lossy().into_owned());
        // `.env` is what a stack has; everything else that is hidden in a home is read by a shell, a desktop or ssh.
        part.is_some_and(|name| name.starts_with('.') && !name.starts_with(".env"))
    };
    let of_a_home =
        (path.starts_with("/root") && hidden(2)) || (path.starts_with("/home") && (hidden(2) || hidden(3)));
    let anywhere = path.components().any(|c| ANYWHERE.iter().any(|name| c.as_os_str() == *name));
    let state = path.strip_prefix("/var/lib").ok().and_then(|below| below.components().next());
    let of_state = state.is_some_and(|first| STATE.iter().any(|name| first.as_os_str() == *name));
    of_a_home || anywhere || of_state || SYSTEM.iter().any(|system| path.starts_with(system))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(named: &[&str]) -> Reach {
        Reach::new(&named.iter().map(PathBuf::from).collect::<Vec<_>>(), false).unwrap()
    }

    #[test]
    fn what_is_of_the_system_is_never_open_whoever_names_what() {
        let reach = reach(&["/opt", "/var", "/root", "/home", "/home/me"]);
        for path in [
            "/etc/passwd",
            "/etc/tars-backup",
            "/etc/tars-backup/../cron.d/x",
            "/etc/tars-backup-evil/x",
            "/etc/cron.d/x",
            "/etc/systemd/system/x.service",
            "/root/.ssh/authorized_keys",
            "/root/.bashrc",
            "/home/me/.profile",
            "/home/me/.config/systemd/user/x.service",
            "/home/.x/y",
            "/opt/stack/.ssh/authorized_keys",
            "/opt/stack/.git/hooks/post-merge",
            "/opt/../etc/shadow",
            "/usr/local/bin/x",
            "/bin/sh",
            "/boot/grub/grub.cfg",
            "/var/spool/cron/crontabs/root",
            "/var/lib/systemd/x",
            "/var/run/x",
            "/run/x",
            "/dev/sda",
            "/opt/a\nb",
            "opt/a",
            "/",
        ] {
            assert_eq!(reach.judge(Path::new(path)), Err(Outside::System), "{path}");
        }
    }

    #[test]
    fn our_own_directory_and_what_a_person_names_are_open() {
        let reach = reach(&["/opt/tars-home", "/home/me/stack", "/root"]);
        for path in [
            "/etc/tars-backup/config.toml",
            "/etc/tars-backup/conf.d/a.toml",
            "/opt/tars-home/.env",
            "/opt/tars-home/docker/compose.yml",
            "/home/me/stack/.env.local",
            "/root/.env",
            "/root/compose.yml",
        ] {
            assert_eq!(reach.judge(Path::new(path)), Ok(()), "{path}");
        }
        let unnamed = |path: &str| reach.judge(Path::new(path));
        assert_eq!(unnamed("/opt/tars-home2/.env"), Err(Outside::Unnamed("/opt/tars-home2".into())));
        // The directory itself is no file in it.
        assert_eq!(unnamed("/opt/tars-home"), Err(Outside::Unnamed("/opt".into())));
        assert_eq!(unnamed("/compose.yml"), Err(Outside::System));
    }

    #[test]
    fn a_directory_of_the_system_cannot_be_named() {
        for dir in [
            "/",
            "/etc",
            "/etc/cron.d",
            "/usr",
            "/root/.ssh",
            "/var/spool",
            "relative",
            "/opt/../etc",
            "/var/lib/docker",
        ] {
            assert_eq!(Reach::new(&[PathBuf::from(dir)], false).unwrap_err(), Path::new(dir));
        }
    }

    #[test]
    fn what_a_backup_says_of_its_stack_opens_nothing_of_the_system() {
        let dirs = ["/etc", "/", "/root/.ssh", "/opt/a/../../etc", "/opt/stack"].map(PathBuf::from);
        let told = Reach::told(&dirs, false);
        assert_eq!(told.named, [PathBuf::from("/opt/stack")]);
        assert_eq!(told.judge(Path::new("/opt/stack/.env")), Ok(()));
        assert_eq!(told.judge(Path::new("/etc/cron.d/x")), Err(Outside::System));
    }

    #[test]
    fn what_is_to_be_named_is_the_fewest_directories() {
        let paths = [
            "/opt/a/.env",
            "/opt/a/docker/c.yml",
            "/srv/b/x",
            "/etc/tars-backup/key",
            "/etc/docker/daemon.json",
        ];
        let dirs = dirs_of(paths.iter().map(Path::new));
        assert_eq!(dirs, [PathBuf::from("/opt/a"), PathBuf::from("/srv/b")]);
    }

    #[test]
    fn a_credential_that_systemd_would_act_on_is_none_of_ours() {
        for name in ["b2-key", "b2_key", "KEY"] {
            assert!(is_our_credential(name), "{name}");
        }
        for name in [
            "tmpfiles.extra",
            "passwd.hashed-password.root",
            "ssh.authorized_keys.root",
            "",
            "a/b",
            "-x",
            "..",
        ] {
            assert!(!is_our_credential(name), "{name}");
        }
    }
}
