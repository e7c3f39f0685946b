//! Sealed originals and keys: what is sealed opens with stock tools and with nothing else, what is put back is what was
//! there, and no private key is in any output. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use sha2::{Digest, Sha256};
use support::{Done, Home, PROGRAM, killed_at_every_line, restore_to_kill, run, sh};
use tars_backup::manifest::Manifest;

const PASSWORD: &str = "correct-horse-battery";

/// A stack with an env file, a secret that is kept in a file, and a key that lies on this host.
struct Stack {
    home: Home,
    recipient: String,
    secret_key: String,
}

impl Stack {
    fn new() -> Self {
        Self::with("")
    }

    /// `files`: more files of the configuration, as `, "/path"`.
    fn with(files: &str) -> Self {
        let home = Home::new().documents();
        let (key, pw, env) = (home.at("key.txt"), home.at("pw"), home.at("stack/app.env"));
        let said = run(PROGRAM, &["key", "new", "--output", &key]).expect(0).stderr;
        let recipient = said.split_whitespace().find(|w| w.starts_with("age1")).unwrap().to_owned();
        let secret_key = sh(&format!("tail -1 '{key}'")).trim().to_owned();
        sh(&format!(
            "mkdir '{0}'; printf 'PASSWORD={PASSWORD}\\nPORT=80\\n' > '{env}'; printf 'pw-in-a-file-0815\\n' > '{pw}'; \
             chown 1234:4321 '{env}'; chmod 640 '{env}'; touch -d '2020-01-02 03:04:05.25 UTC' '{env}'; chmod 600 '{pw}'",
            home.at("stack")
        ));
        let program = "type = \"command\"\ncommand = [\"echo\", \"x\"]";
        let files = files.replace("HOME", &home.at(""));
        let home = home
            .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"{files}]"))
            .source("told", &format!("{program}\nsecret = {{ file = \"{pw}\" }}"))
            .extra(&format!(
                "[encryption]\nrecipients = [\"{recipient}\"]\nseal = \"never\"\nidentity = {{ file = \"{key}\" }}"
            ))
            .ready();
        Self { home, recipient, secret_key }
    }

    fn restore(&self, more: &[&str]) -> Done {
        let base = ["restore", "--latest", "--component", "configuration", "--restore-config"];
        let done = self.home.tars(&[&base, more].concat());
        self.no_key_in(&done);
        done
    }

    #[track_caller]
    fn no_key_in(&self, done: &Done) {
        let all = format!("{}{}", done.stdout, done.stderr);
        // A hint may name what such a key begins with.
        let all = all.replace("AGE-SECRET-KEY-1…", "");
        assert!(!all.to_uppercase().contains("AGE-SECRET-KEY"), "{all}");
        assert!(!all.contains(PASSWORD) && !all.contains("pw-in-a-file"), "{all}");
    }

    fn look(&self) -> String {
        sh(&format!("cd '{}'; stat -c '%n %U:%G %u:%g %a %.9Y' app.env; cat app.env", self.home.at("stack")))
    }

    fn tar_of_originals(&self, out: &str) -> String {
        let unpacked = self.home.unpack(out);
        let (key, to) = (self.home.at("key.txt"), self.home.at(&format!("{out}-originals")));
        sh(&format!(
            "mkdir -m 0700 '{to}'; age -d -i '{key}' '{}/config/originals.tar.age' | tar -xpf - -C '{to}'",
            unpacked.display()
        ));
        to
    }
}

fn lines_of(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_plain_archive_has_the_originals_sealed_and_stock_tools_open_them() {
    let stack = Stack::new();
    let done = stack.home.tars(&["backup", "-vv"]).expect(0);
    stack.no_key_in(&done);
    let to = stack.tar_of_originals("x");
    let root = stack.home.at("");
    let inside = sh(&format!("cd '{to}{root}'; cat stack/app.env; stat -c '%u:%g %a %.9Y' stack/app.env"));
    assert_eq!(inside, format!("PASSWORD={PASSWORD}\nPORT=80\n1234:4321 640 1577934245.250000000\n"));
    assert_eq!(sh(&format!("cat '{to}/credentials/file:{root}/pw'")), "pw-in-a-file-0815\n");
    assert!(sh(&format!("cat '{to}{root}/config.toml'")).contains(&stack.recipient));
    // Public keys are no secrets: they stay readable.
    let readable = sh(&format!("cat '{}'/*/config/config.toml*", stack.home.at("x")));
    assert!(readable.contains(&stack.recipient), "{readable}");
    // Of the key itself nothing is in it, nor in anything else.
    assert_eq!(sh(&format!("grep -rliE 'age-secret-key|{}' '{to}' || true", &stack.secret_key[20..50])), "");
    let plain = stack.home.path("x");
    let found = sh(&format!("grep -rlE '{PASSWORD}|pw-in-a-file|AGE-SECRET' '{}' || true", plain.display()));
    assert_eq!(found, "");
    let manifest = stack.home.manifest();
    let component = &manifest["details"]["configuration"];
    assert_eq!((&component["facts"]["originals"], &component["facts"]["secrets"]), (&2.into(), &1.into()));
    assert_eq!(component["warnings"], serde_json::json!([]));
    stack.home.tars(&["verify", "--latest", "--deep"]).expect(0);
}

#[test]
fn the_guide_tells_the_command_that_opens_them() {
    let stack = Stack::new();
    stack.home.backup(0);
    let unpacked = stack.home.unpack("x");
    support::follow_the_guide(&unpacked, "configuration", "IDENTITY", &stack.home.at("key.txt"));
    let env = format!("{}/originals{}", unpacked.display(), stack.home.at("stack/app.env"));
    assert!(sh(&format!("cat '{env}'")).contains(PASSWORD));
}

#[test]
fn without_recipients_there_are_none_and_nothing_is_said() {
    let home = Home::new();
    std::fs::write(home.path("app.env"), "PORT=80\n").unwrap();
    let env = home.at("app.env");
    let home = home.source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]")).ready();
    home.backup(0);
    let component = home.manifest()["details"]["configuration"].clone();
    assert!(!component["members"].to_string().contains("originals"), "{component}");
    assert_eq!(component["warnings"], serde_json::json!([]));
}

#[test]
fn the_identity_is_left_out_wherever_it_stands() {
    let stack = Stack::with(", \"HOME/key.txt\", \"HOME/notes\", \"HOME/link\"");
    let key = &stack.secret_key;
    sh(&format!(
        "cd '{}'; printf 'a\\nkey: {key} # mine\\nb\\n' > notes; ln -s key.txt link",
        stack.home.at("")
    ));
    let done =
        stack.home.tars(&["backup"]).expect(0).says("key.txt is the identity").says("notes holds a key");
    stack.no_key_in(&done);
    let to = stack.tar_of_originals("x");
    let root = stack.home.at("");
    assert_eq!(sh(&format!("ls -A '{to}{root}'")), "config.toml\nnotes\nstack\n");
    let notes = sh(&format!("cat '{to}{root}/notes'"));
    assert_eq!(notes, "a\nkey: <AGE IDENTITY LEFT OUT> # mine\nb\n");
    assert_eq!(sh(&format!("grep -rl '{key}' '{}' || true", stack.home.at("x"))), "");
    // What lacks its key does not take the place of what has it.
    sh(&format!("echo changed > '{}'", stack.home.at("notes")));
    stack
        .restore(&["--yes"])
        .expect(2)
        .says("notes is left as it is")
        .says("link is not among the originals");
    assert_eq!(sh(&format!("cat '{}'", stack.home.at("notes"))), "changed\n");
}

#[test]
fn a_secret_that_cannot_be_read_is_a_warning_and_no_failure() {
    let stack = Stack::new();
    sh(&format!("rm '{}'", stack.home.at("pw")));
    stack.home.tars(&["backup", "--only", "configuration"]).expect(0).says("is not among the originals");
    let warnings = stack.home.manifest()["details"]["configuration"]["warnings"].to_string();
    assert!(warnings.contains("pw") && warnings.contains("not among the originals"), "{warnings}");
}

#[test]
fn originals_come_back_with_owner_mode_and_time_and_the_old_ones_stay_beside() {
    let stack = Stack::new();
    stack.home.backup(0);
    let before = stack.look();
    let env = stack.home.at("stack/app.env");
    let name = stack.home.only();
    sh(&format!(
        "echo PASSWORD=live-now-and-new > '{env}'; chown 0:0 '{env}'; chmod 600 '{env}'; rm '{}'",
        stack.home.at("pw")
    ));
    let plan = stack.restore(&["--dry-run"]).expect(0).says("app.env").says("1 file, which is kept beside");
    assert!(plan.stdout.contains("pw"), "{}", plan.stdout);
    assert!(!stack.home.path("pw").exists());
    stack
        .restore(&["--yes"])
        .expect(0)
        .says("config.toml is already as it was")
        .says(&format!("app.env.before-{name}"));
    assert_eq!(stack.look(), before);
    let old = format!("{env}.before-{name}");
    assert_eq!(
        sh(&format!("cat '{old}'; stat -c '%u:%g %a' '{old}'")),
        "PASSWORD=live-now-and-new\n0:0 600\n"
    );
    let pw = stack.home.at("pw");
    assert_eq!(sh(&format!("cat '{pw}'; stat -c '%u %a' '{pw}'")), "pw-in-a-file-0815\n0 600\n");
    // A second time nothing is lost either: what is there is newer, and a secret that is there stays.
    sh(&format!("echo again > '{env}'; echo newer-password > '{pw}'"));
    stack.restore(&["--yes"]).expect(0).says("is there, and left as it is");
    assert_eq!(stack.look(), before);
    assert_eq!(sh(&format!("cat '{old}.2' '{pw}'")), "again\nnewer-password\n");
    let left = sh(&format!("find '{}' -name '*tars-restore*' -o -name '*.reference'", stack.home.at("")));
    assert_eq!(left, "");
    assert!(!stack.home.path("state/run.journal").exists());
}

#[test]
fn a_file_that_is_a_secret_too_comes_back_once() {
    let stack = Stack::with(", \"HOME/pw\"");
    stack.home.backup(0);
    let pw = stack.home.at("pw");
    sh(&format!("rm '{pw}'"));
    stack.restore(&["--yes"]).expect(0);
    assert_eq!(sh(&format!("cat '{pw}'; stat -c %a '{pw}'")), "pw-in-a-file-0815\n600\n");
}

#[test]
fn what_was_asked_for_and_is_not_among_the_originals_is_no_full_success() {
    let stack = Stack::new();
    stack.home.backup(0);
    let env = stack.home.at("stack/app.env");
    let other = stack.home.at("stack/other.env");
    sh(&format!("echo OTHER=1 > '{other}'; echo PORT=81 > '{env}'"));
    let files = |files: &str| format!("type = \"config_files\"\nfiles = [{files}]\nown = false");
    let told = format!("{other} is not among the originals");
    let stack = Stack {
        home: stack.home.only_source("configuration", &files(&format!("{env:?}, {other:?}"))),
        ..stack
    };
    stack.restore(&["--dry-run"]).expect(0).says(&told);
    stack.restore(&["--yes"]).expect(2).says(&told);
    assert!(sh(&format!("cat '{env}'")).contains("PORT=80"));
    let stack =
        Stack { home: stack.home.only_source("configuration", &files(&format!("{other:?}"))), ..stack };
    let none = "nothing that the configuration names now is among the originals";
    stack.restore(&["--dry-run"]).expect(1).says(none);
    stack.restore(&["--yes"]).expect(1).says(none);
}

#[test]
fn a_link_at_the_place_is_replaced_and_not_followed() {
    let stack = Stack::new();
    stack.home.backup(0);
    let before = stack.look();
    let env = stack.home.at("stack/app.env");
    sh(&format!("echo precious > '{0}'; ln -sf '{0}' '{env}'", stack.home.at("precious")));
    stack.restore(&["--yes"]).expect(0);
    assert_eq!(stack.look(), before);
    assert_eq!(sh(&format!("cat '{}'", stack.home.at("precious"))), "precious\n");
}

#[test]
fn without_the_right_key_references_lie_beside_and_it_is_said() {
    let stack = Stack::new();
    stack.home.backup(0);
    let (env, other) = (stack.home.at("stack/app.env"), stack.home.at("other.txt"));
    run(PROGRAM, &["key", "new", "--output", &other]).expect(0);
    sh(&format!("echo PASSWORD=new > '{env}'"));
    let untouched = || assert_eq!(sh(&format!("cat '{env}'")), "PASSWORD=new\n");
    stack
        .restore(&["--yes", "--identity", &other])
        .expect(2)
        .says("1 other recipient")
        .says("references lie beside");
    let reference = sh(&format!("cat '{env}.reference'"));
    assert!(reference.contains("PORT=80") && !reference.contains(PASSWORD), "{reference}");
    untouched();
    // A host that has only the public key.
    let away = stack.home.at("away");
    sh(&format!("mv '{}' '{away}'", stack.home.at("key.txt")));
    stack.restore(&["--dry-run"]).expect(0).says("no identity on this host");
    stack.restore(&["--yes"]).expect(2).says("no identity on this host").says("--identity FILE");
    untouched();
    // One that was named must be there, and be one.
    stack.restore(&["--yes", "--identity", "/nonexistent"]).expect(1).says("/nonexistent");
    stack.restore(&["--yes", "--identity", &stack.home.at("docs/a.txt")]).expect(1).says("is no identity");
    untouched();
    stack.restore(&["--yes", "--identity", &other, "--identity", &away]).expect(0);
    assert!(sh(&format!("cat '{env}'")).contains(PASSWORD));
}

/// The manifest beside an archive that was made anew says what lies there now.
fn fit_manifest(home: &Home) {
    let bytes = std::fs::read(home.object(".tar.gz")).unwrap();
    let manifest = Manifest::read_sidecar(&std::fs::read(home.object(".manifest.json")).unwrap()).unwrap();
    let text = manifest.to_sidecar(bytes.len() as u64, &hex::encode(Sha256::digest(&bytes))).unwrap();
    std::fs::write(home.object(".manifest.json"), text).unwrap();
}

#[test]
fn originals_that_we_would_not_have_made_are_refused() {
    let stack = Stack::new();
    stack.home.backup(0);
    let (env, archive) = (stack.home.at("stack/app.env"), stack.home.object(".tar.gz"));
    let unpacked = stack.home.unpack("x");
    let bad = stack.home.at("bad");
    sh(&format!(
        "mkdir -p '{bad}{0}'; echo evil > '{bad}{env}'; echo live > '{env}'",
        stack.home.at("stack")
    ));
    let inside = &env[1..];
    let before = sh(&format!("find '{}' /etc/passwd -newer '{env}' | sort", stack.home.at("stack")));
    let cases = [
        ("an absolute name", format!("tar -cPf - '{env}'")),
        ("a way up", format!("tar -cf - --transform 's,^,../,' '{inside}'")),
        ("a link", format!("ln -s /etc/passwd '{bad}/l'; tar -cf - '{inside}' l")),
        ("a hard link", format!("ln '{bad}{env}' '{bad}/h'; tar -cf - '{inside}' h")),
        ("a device", format!("mknod '{bad}/d' c 1 3; tar -cf - d '{inside}'")),
        ("twice", format!("tar -cf - '{inside}' '{inside}'; true")),
        ("no tar", "echo hello".to_owned()),
        ("cut", format!("{{ tar -cf - '{inside}' || true; }} | head -c 600")),
    ];
    for (what, make) in cases {
        sh(&format!(
            "cd '{bad}'; {{ {make}; }} | age -r {} -o '{1}/config/originals.tar.age'; \
             tar -czf '{2}' -C '{3}' '{4}'",
            stack.recipient,
            unpacked.display(),
            archive.display(),
            stack.home.at("x"),
            stack.home.only()
        ));
        fit_manifest(&stack.home);
        let done = stack.restore(&["--yes", "--skip-validation"]);
        assert_eq!(done.code, 1, "{what}: {}{}", done.stdout, done.stderr);
        assert!(done.stderr.contains("originals.tar.age"), "{what}: {}", done.stderr);
        assert_eq!(sh(&format!("cat '{env}'")), "live\n", "{what}");
    }
    assert_eq!(sh(&format!("find '{}' /etc/passwd -newer '{env}' | sort", stack.home.at("stack"))), before);
    // What is only not named is not written either.
    sh(&format!(
        "cd '{bad}'; echo cron > '{bad}/cron'; tar -cf - cron '{inside}' | age -r {} -o '{1}/config/originals.tar.age'; \
         tar -czf '{2}' -C '{3}' '{4}'",
        stack.recipient,
        unpacked.display(),
        archive.display(),
        stack.home.at("x"),
        stack.home.only()
    ));
    fit_manifest(&stack.home);
    stack.restore(&["--yes", "--skip-validation"]).expect(2).says("config.toml is not among the originals");
    assert_eq!(sh(&format!("cat '{env}'")), "evil\n");
    assert!(!Path::new("/cron").exists());
}

#[test]
fn killed_at_any_step_the_files_are_wholly_old_or_wholly_new() {
    let stack = Stack::with(", \"HOME/stack/b.env\"");
    let (a, b) = (stack.home.at("stack/app.env"), stack.home.at("stack/b.env"));
    sh(&format!("echo B=old-b > '{b}'"));
    stack.home.backup(0);
    let read = || (sh(&format!("cat '{a}'")), sh(&format!("cat '{b}'")));
    let then = read();
    let now = ("live\n".to_owned(), "live\n".to_owned());
    let more = ["--component", "configuration", "--restore-config"];
    killed_at_every_line(
        &stack.home,
        3,
        || restore_to_kill(&stack.home, false, &more),
        || {
            let set = format!(
                "rm -f '{}'/*.before-*; echo live > '{a}'; echo live > '{b}'",
                stack.home.at("stack")
            );
            sh(&set);
        },
        |line| {
            stack.home.tars(&["recover"]).expect(0);
            let found = read();
            assert!(found == then || found == now, "after {line} lines: {found:?}");
            let left = sh(&format!("find '{}' -name '*tars-restore*'", stack.home.at("stack")));
            assert_eq!(left, "", "after {line} lines");
            assert!(!stack.home.path("state/run.journal").exists());
        },
    );
    assert_eq!(read(), then, "the last one was not killed");
}

#[test]
fn credentials_that_this_host_lacks_are_encrypted_anew_for_it() {
    let stack = Stack::new();
    let home = &stack.home;
    // In a world of its own: /etc is empty, and what encrypts for the host only turns letters round.
    let bin = home.at("bin");
    sh(&format!(
        "mkdir '{bin}'; cat > '{bin}/systemd-creds' <<'END'\n#!/bin/sh\necho \"$@\" >> '{0}'\n\
         case \"$1\" in encrypt) tr a-z b-za;; decrypt) tr b-za a-z < \"$3\";; esac\nEND\nchmod 755 '{bin}/systemd-creds'",
        home.at("argv")
    ));
    let config = home.path("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&format!("{{ file = \"{}\" }}", home.at("pw")), "{ credential = \"told-pw\" }");
    std::fs::write(&config, text).unwrap();
    let inside = |prepare: &str, line: &str| {
        let script = format!(
            "mount -t tmpfs none /etc; mkdir -p /etc/credstore; PATH='{bin}':$PATH; {prepare}; \
             '{PROGRAM}' --config '{}' {line}",
            config.display()
        );
        let done = run("unshare", &["-m", "bash", "-c", &script]);
        stack.no_key_in(&done);
        done
    };
    let there = "printf pw-in-a-file-0815 > /etc/credstore/told-pw";
    inside(there, "backup").expect(0);
    let again = "restore --latest --component configuration --restore-config --yes";
    let show = "cat /etc/credstore.encrypted/told-pw 2>/dev/null; ls /etc/credstore.encrypted 2>/dev/null";
    let done = inside(&format!("trap \"{show}; stat -c %a /etc/credstore.encrypted/told-pw\" EXIT"), again);
    assert_eq!(lines_of(&done.stdout), ["qx-jo-b-gjmf-0815told-pw", "600"], "{done:?}");
    // One that is there stays, and without the program it is told how.
    inside(there, again).expect(0).says("is there, and left as it is");
    let gone = "printf '#!/bin/sh\\nexit 1\\n' > \"$(command -v systemd-creds)\"";
    inside(gone, again).expect(2).says("credential told-pw was not put back").says("systemd-creds encrypt");
    let argv = std::fs::read_to_string(home.path("argv")).unwrap();
    assert!(argv.contains("encrypt --name=told-pw - -") && !argv.contains("0815"), "{argv}");
}

#[test]
fn beside_a_sealed_archive_nothing_tells_what_is_in_it() {
    let home = Home::new();
    let (key, db, papers) = (home.at("key.txt"), home.at("db"), home.at("papers"));
    let recipient = sh(&format!("age-keygen -o '{key}' 2>&1 | grep -o 'age1.*'")).trim().to_owned();
    sh(&format!("mkdir '{papers}'; echo 1 > '{papers}/a'; echo 2 > '{papers}/b'"));
    sh(&format!(
        "sqlite3 '{}' 'create table hidden_table (x); insert into hidden_table values (7)'",
        home.at("db")
    ));
    let home = home
        .source("data", &format!("type = \"sqlite\"\npath = \"{db}\""))
        .source("nas", &format!("type = \"directory\"\npath = \"{papers}\"\nmode = \"inventory\""))
        .extra(&format!("[encryption]\nrecipients = [\"{recipient}\"]\nseal = \"always\""))
        .ready();
    home.tars(&["backup"]).expect(0);
    let first = home.only();
    let beside = std::fs::read_to_string(home.object(".manifest.json")).unwrap();
    let inside = ["hidden_table", "inventory", "papers", "sha256:", "facts", "checksums"];
    for hidden in inside {
        assert!(!beside.contains(hidden), "{hidden} in {beside}");
    }
    let shown = home.tars(&["show", &first, "--json"]).expect(0).says("lies beside the sealed archive");
    assert!(!shown.stdout.contains("hidden_table"));
    let shown = home.tars(&["show", &first, "--json", "--identity", &key]).expect(0);
    assert!(shown.stdout.contains("hidden_table") && shown.stdout.contains(&recipient), "{}", shown.stdout);
    home.tars(&["verify", &first, "--deep"]).expect(2);
    home.tars(&["verify", &first, "--deep", "--identity", &key]).expect(0);

    // A source that compares itself with the run before does so all the same.
    sh(&format!("rm '{papers}/b'; sqlite3 '{db}' 'delete from hidden_table'"));
    sh("sleep 1.1");
    home.tars(&["backup"]).expect(0).says("differs from the last run: 2 files");
    home.tars(&["restore", &first, "--component", "data", "--yes", "--identity", &key]).expect(0);
    assert_eq!(sh(&format!("sqlite3 '{db}' 'select x from hidden_table'")), "7\n");

    // The manifest inside is what is believed, and only when it is the one of this sidecar.
    let sidecar = home.path(&format!("store/daily/{first}.manifest.json"));
    let mut other = Manifest::read_sidecar(&std::fs::read(&sidecar).unwrap()).unwrap();
    other.tier = "warm".into();
    let (bytes, sha256) = (other.bytes.unwrap(), other.sha256.clone().unwrap());
    std::fs::write(&sidecar, other.to_sidecar(bytes, &sha256).unwrap()).unwrap();
    for command in [&["verify", "--deep"][..], &["restore", "--component", "data", "--yes"]] {
        let args = [&[command[0], &first], &command[1..], &["--identity", &key]].concat();
        home.tars(&args).expect(1).says("differs from the one beside");
    }
}

#[test]
fn a_new_key_is_private_and_never_written_over_another() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let made = run(PROGRAM, &["key", "new", "--json", "--output", &at("key")]).expect(0).json();
    let recipient = made["recipient"].as_str().unwrap();
    assert_eq!(sh(&format!("stat -c %a '{}'", at("key"))), "600\n");
    assert_eq!(sh(&format!("age-keygen -y '{}'", at("key"))).trim(), recipient);
    let before = sh(&format!("cat '{}'", at("key")));
    run(PROGRAM, &["key", "new", "--output", &at("key")]).expect(1).says("name another file");
    assert_eq!(sh(&format!("cat '{}'", at("key"))), before);
    let printed = run(PROGRAM, &["key", "new"]).expect(0);
    std::fs::write(dir.path().join("printed"), &printed.stdout).unwrap();
    let recipient = sh(&format!("age-keygen -y '{}'", at("printed")));
    assert!(printed.stderr.contains(recipient.trim()) && !printed.stderr.contains("AGE-SECRET"));
    run(PROGRAM, &["key", "new", "--output", &at("no/such/key")]).expect(1).says("cannot write");
}

#[test]
fn show_tells_whether_the_key_that_is_here_opens_the_backups() {
    let stack = Stack::new();
    let show = |more: &[&str]| {
        let done = stack.home.tars(&[&["key", "show"], more].concat()).expect(0);
        stack.no_key_in(&done);
        done
    };
    show(&[]).says(&stack.recipient).says("its key is there").says("lies on this host");
    let shown = show(&["--json"]).json();
    assert_eq!(shown["opens"][0]["configured"], true);
    assert_eq!(shown["recipients"][0], stack.recipient.as_str());
    let other = stack.home.at("other.txt");
    run(PROGRAM, &["key", "new", "--output", &other]).expect(0);
    show(&["--identity", &other]).says("no key that is there").says("not a recipient");
    sh(&format!("rm '{}'", stack.home.at("key.txt")));
    let shown = show(&[]).says("is not on this host");
    assert!(!shown.stdout.contains("Warning"), "{}", shown.stdout);
}

#[test]
fn a_private_key_in_the_configuration_is_refused_and_not_repeated() {
    let stack = Stack::new();
    let config = stack.home.path("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&stack.recipient, &stack.secret_key)).unwrap();
    for args in
        [["config", "check"].as_slice(), &["config", "check", "--json"], &["backup"], &["key", "show"]]
    {
        let done = stack.home.tars(args).expect(78).says("private key");
        stack.no_key_in(&done);
    }
}
