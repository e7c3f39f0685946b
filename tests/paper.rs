//! The kit and the first steps that follow it, on a machine whose /etc, /run and /var/lib are the test's own. What could go
//! wrong: a page that says a key is on it, or that a command works, and on the day it is not so. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::{Done, Home, PROGRAM, run, sh};

const IDENTITY: &str = "/root/tars-identity.txt <<'END'\n";

/// A machine with a stack of two files, a key of its own, and a store on a directory.
struct Paper {
    home: Home,
    recipient: String,
}

impl Paper {
    fn new() -> Self {
        let home = Home::new();
        sh(&format!(
            "mkdir '{0}'; echo PORT=80 >'{0}/.env'; echo 'services: {{}}' >'{0}/docker-compose.yml'",
            home.at("stack")
        ));
        let recipient = new_key(&home.at("key.txt"));
        Self { home, recipient }
    }

    /// Its configuration; `files` and `more` are added.
    fn config(&self, files: &str, more: &str) -> String {
        let root = self.home.root().display();
        format!(
            "{more}\n[sources.configuration]\ntype = \"config_files\"\n\
             files = [\"{root}/stack/.env\", \"{root}/stack/docker-compose.yml\"{files}]\n\
             [stores.nas]\ntype = \"fs\"\npath = \"{root}/store\"\n[tiers.hot]\nstores = [\"nas\"]\npath = \"daily\"\n\
             [encryption]\nrecipients = [\"{}\"]\n",
            self.recipient
        )
    }

    /// Runs lines of a shell where `tars` is the program; the status is that of the last one. `config` is written to `at`
    /// before, where it is not empty.
    fn inside(&self, at: &str, config: &str, lines: &str) -> Done {
        let file = self.home.path("the-config");
        std::fs::write(&file, config).unwrap();
        let place = match config {
            "" => String::new(),
            _ => format!("install -D -m 600 '{}' '{at}'", file.display()),
        };
        let script = format!(
            "set -e; for d in /etc /run /var/lib; do mount -t tmpfs none $d; done
             tars() {{ '{PROGRAM}' \"$@\"; }}
             {place}
             {lines}"
        );
        run("unshare", &["-m", "bash", "-c", &script])
    }

    fn usual(&self, config: &str, lines: &str) -> Done {
        self.inside("/etc/tars-backup/config.toml", config, lines)
    }

    /// The private key as the page has it, in a file.
    fn printed(&self, done: &Done) -> String {
        let (_, after) = done.stdout.split_once(IDENTITY).unwrap_or_else(|| panic!("{}", done.stdout));
        let (text, _) = after.split_once("\nEND\n").unwrap();
        let file = self.home.at("printed");
        std::fs::write(&file, format!("{text}\n")).unwrap();
        file
    }

    /// One backup in the store, of a machine with this configuration.
    fn backed_up(&self, at: &str, config: &str) {
        let config_of = if at.ends_with("/config.toml") { String::new() } else { format!("--config {at} ") };
        self.inside(at, config, &format!("tars {config_of}store init nas; tars {config_of}backup")).expect(0);
    }

    fn restore(&self) -> String {
        let (store, key) = (self.home.at("store"), self.home.at("key.txt"));
        format!(
            "restore --latest --from file://{store} --component configuration --restore-config --identity '{key}'"
        )
    }
}

fn new_key(path: &str) -> String {
    let made = run(PROGRAM, &["key", "new", "--json", "--output", path]).expect(0);
    made.json()["recipient"].as_str().unwrap().to_owned()
}

fn public(file: &str) -> String {
    sh(&format!("age-keygen -y '{file}'"))
}

#[test]
fn a_key_that_comes_through_a_pipe_is_on_the_paper() {
    let paper = Paper::new();
    let kit = format!("tars key kit --identity <(cat '{}')", paper.home.at("key.txt"));
    let done = paper.usual(&paper.config("", ""), &kit).expect(0);
    assert_eq!(public(&paper.printed(&done)).trim(), paper.recipient);
}

#[test]
fn keys_of_several_files_are_printed_as_one_file_that_opens() {
    let paper = Paper::new();
    let (key, other, bare) = (paper.home.at("key.txt"), paper.home.at("other"), paper.home.at("bare"));
    let second = new_key(&other);
    sh(&format!("printf %s \"$(cat '{other}')\" >'{bare}'"));
    let kit = format!("tars key kit --identity '{bare}' --identity '{key}'");
    let done = paper.usual(&paper.config("", ""), &kit).expect(0);
    assert_eq!(public(&paper.printed(&done)), format!("{second}\n{}\n", paper.recipient));
}

#[test]
fn a_key_that_opens_nothing_is_a_lack() {
    let paper = Paper::new();
    let other = paper.home.at("other");
    new_key(&other);
    let kit = format!("tars key kit --identity '{other}'");
    let done = paper.usual(&paper.config("", ""), &kit).expect(2).says("opens what is sealed from now on");
    let (_, lacks) = done.stdout.split_once("## What it lacks").unwrap();
    assert!(lacks.contains(&paper.recipient), "{lacks}");
    // One of two is enough.
    let both = format!("{kit} --identity '{}'", paper.home.at("key.txt"));
    paper.usual(&paper.config("", ""), &both).expect(0);
}

#[test]
fn what_does_not_come_back_by_itself_is_named_and_the_command_works_without_it() {
    let paper = Paper::new();
    let kit = "tars key kit --identity";
    let key = paper.home.at("key.txt");
    let plain = paper.usual(&paper.config("", ""), &format!("{kit} '{key}'")).expect(0);
    assert!(!plain.stdout.contains("--allow-partial"), "{}", plain.stdout);
    let program = "type = \"command\"\ncommand = [\"echo\", \"x\"]\n";
    let more = format!(
        "[sources.a]\n{program}secret = {{ file = \"/root/.ssh/id_ed25519\" }}\n\
         [sources.b]\n{program}secret = {{ credential = \"tmpfiles.extra\" }}\n"
    );
    let config = paper.config(", \"/etc/docker/daemon.json\"", &more);
    let done = paper.usual(&config, &format!("{kit} '{key}'")).expect(0);
    for what in ["/etc/docker/daemon.json", "/root/.ssh/id_ed25519", "credential tmpfiles.extra"] {
        assert!(done.stderr.contains(what) && done.stdout.contains(what), "{what}: {done:?}");
    }
    let first = done.stdout.lines().find(|l| l.contains("--restore-config")).unwrap().to_owned();
    assert!(first.contains(" --allow-partial "), "{first}");
}

#[test]
fn a_store_that_no_tier_uses_is_not_the_one_of_the_commands() {
    let paper = Paper::new();
    std::fs::create_dir(paper.home.path("unused")).unwrap();
    let unused = paper.home.at("unused");
    let more = format!("[stores.unused]\ntype = \"fs\"\npath = \"{unused}\"");
    let key = paper.home.at("key.txt");
    let config = paper.config("", &more);
    let done = paper.usual(&config, &format!("tars key kit --identity '{key}'")).expect(0);
    let page = &done.stdout;
    assert!(page.find("## Store nas").unwrap() < page.find("## Store unused").unwrap(), "{page}");
    assert!(page.contains("- no tier uses it"), "{page}");
    let restores: Vec<&str> = page.lines().filter(|l| l.starts_with("tars-backup restore")).collect();
    assert!(!restores.is_empty());
    assert!(restores.iter().all(|l| l.contains(&paper.home.at("store")) && !l.contains(&unused)), "{page}");
}

#[test]
fn a_configuration_under_another_name_comes_back_and_one_elsewhere_is_a_lack() {
    let paper = Paper::new();
    let (config, key) = (paper.config("", ""), paper.home.at("key.txt"));
    let at = "/etc/tars-backup/home.toml";
    let kit = |at: &str| format!("tars --config {at} key kit --identity '{key}'");
    let done = paper.inside(at, &config, &kit(at)).expect(0);
    let is_ours = |l: &&str| l.starts_with("tars-backup ") && !l.starts_with("tars-backup list");
    for line in done.stdout.lines().filter(is_ours) {
        assert!(line.starts_with(&format!("tars-backup --config {at} ")), "{line}");
    }
    paper.backed_up(at, &config);
    let restore = paper.restore();
    let below = paper.home.at("stack");
    let lines = format!("tars --config {at} {restore} --below '{below}' --yes && cat {at}");
    let back = paper.usual("", &lines).expect(0);
    assert!(back.stdout.contains(&config), "{}", back.stdout);
    // Nothing is there under that name: what is there is told.
    paper
        .usual("", &format!("tars {restore} --below '{below}' --yes"))
        .expect(1)
        .says(&format!("--config {at}"));

    let elsewhere = paper.home.at("mine.toml");
    paper.inside(&elsewhere, &config, &kit(&elsewhere)).expect(2).says("cannot come back by itself");
    paper.usual("", &format!("tars --config '{elsewhere}x' {restore} --yes")).expect(78).says("--to DIR");
}

#[test]
fn what_a_store_may_run_is_told_before_a_person_agrees() {
    let paper = Paper::new();
    let settings = paper.home.at("ssh_config");
    std::fs::write(&settings, "").unwrap();
    let more = format!(
        "[stores.away]\ntype = \"sftp\"\nhost = \"203.0.113.1\"\npath = \"x\"\nuser = \"u\"\nssh_config = \"{settings}\""
    );
    paper.backed_up("/etc/tars-backup/config.toml", &paper.config("", &more));
    let below = paper.home.at("stack");
    paper
        .usual("", &format!("tars {} --below '{below}' --dry-run", paper.restore()))
        .expect(0)
        .says(&format!("the ssh settings of store away ({settings})"));
}

#[test]
fn the_step_of_the_configuration_may_be_done_twice() {
    let paper = Paper::new();
    let config = paper.config("", "");
    paper.backed_up("/etc/tars-backup/config.toml", &config);
    let below = paper.home.at("stack");
    let step = format!("tars {} --below '{below}' --yes", paper.restore());
    let done = paper.usual("", &format!("{step}; echo PORT=81 >'{below}/.env'; {step}")).expect(0);
    assert!(!done.stderr.contains("is not among the originals"), "{}", done.stderr);
    assert_eq!(sh(&format!("cat '{below}/.env'")), "PORT=80\n");
    // It opens no more than it did the first time.
    let other = format!("{step}; tars {} --below /opt/elsewhere --yes", paper.restore());
    paper.usual("", &other).expect(1).says("was not named");
    // Without it the configuration says what is put back, as ever.
    paper.usual("", &format!("{step}; tars {} --yes", paper.restore())).expect(0);
}

#[test]
fn a_plan_of_nothing_is_a_failure() {
    let paper = Paper::new();
    paper.backed_up("/etc/tars-backup/config.toml", &paper.config("", ""));
    let named = format!("tars {} --below /opt/elsewhere", paper.restore());
    paper.usual("", &format!("{named} --dry-run")).expect(1).says("was not named");
    paper.usual("", &format!("{named} --yes; s=$?; ls /var/lib/tars-backup; exit $s")).expect(1);
}

#[test]
fn a_place_without_a_marker_is_not_taken_over() {
    let paper = Paper::new();
    let config = paper.config("", "[agent]\nhost = \"here\"\n");
    let empty = || assert_eq!(sh(&format!("ls -A '{}'", paper.home.at("store"))), "");
    paper
        .usual(&config, "tars store adopt nas")
        .expect(1)
        .says("there is no store at")
        .says("is it mounted?")
        .says("tars-backup store init nas");
    empty();
    // Of another machine it is, and is said to be; one that cannot be read, too.
    paper.usual(&config.replace("\"here\"", "\"old-home\""), "tars store init nas").expect(0);
    paper.usual(&config, "tars backup").expect(1).says("belongs to another machine (old-home)");
    paper.usual(&config, "tars store adopt nas; tars backup").expect(0).says("it was of old-home");
    let marker = paper.home.at("store/tars-backup-store.json");
    sh(&format!("echo x >'{marker}'"));
    paper.usual(&config, "tars store adopt nas").expect(0);
    assert!(std::fs::read_to_string(Path::new(&marker)).unwrap().contains("\"here\""));
}
