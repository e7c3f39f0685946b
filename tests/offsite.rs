//! Sealed and elsewhere: whole runs of the program against real servers on this machine, what is stored there opened with
//! stock tools, and what happens when a server is down, lies, or the run is killed half way.

#![allow(clippy::unwrap_used)]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use proxy::{Act, Proxy};
use servers::{BUCKET, KEY, KEY_ID, Moto, S3Server, S3sFs, Sshd, TlsDoor};
use sha2::{Digest, Sha256};
use support::{Done, Home, run, sh};

const HOST: &str = "home-1";

/// Data that does not shrink.
fn noise(bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 32);
    let mut last = Sha256::digest(b"noise");
    while out.len() < bytes {
        out.extend_from_slice(&last);
        last = Sha256::digest(last);
    }
    out.truncate(bytes);
    out
}

/// A home with `bytes` of documents, a key of its own, and the stores that a test adds.
struct Place {
    home: Home,
    key: PathBuf,
}

impl Place {
    fn new(bytes: usize) -> Self {
        Self::named(HOST, bytes)
    }

    fn named(host: &str, bytes: usize) -> Self {
        let home = Home::new().documents();
        std::fs::write(home.path("docs/noise"), noise(bytes)).unwrap();
        for (name, value) in [("key-id", KEY_ID), ("secret", KEY)] {
            std::fs::write(home.path(name), value).unwrap();
        }
        let key = home.path("identity.txt");
        let made = run(support::PROGRAM, &["key", "new", "--json", "--output", key.to_str().unwrap()]);
        let recipient = made.expect(0).json()["recipient"].as_str().unwrap().to_owned();
        let root = home.root().display().to_string();
        let home = home.extra(&format!(
            "[agent]\nhost = \"{host}\"\nstate_dir = \"{root}/state\"\nruntime_dir = \"{root}/run\"\n\
             [encryption]\nrecipients = [\"{recipient}\"]"
        ));
        Self { home, key }
    }

    /// A store that speaks S3, in parts of 5 MiB.
    fn s3(self, name: &str, endpoint: &str, more: &str) -> Self {
        let (id, key) = (self.home.at("key-id"), self.home.at("secret"));
        Self {
            home: self.home.extra(&format!(
                "[stores.{name}]\ntype = \"s3\"\nbucket = \"{BUCKET}\"\nendpoint = \"{endpoint}\"\n\
                 region = \"us-east-1\"\nkey_id = {{ file = \"{id}\" }}\nkey = {{ file = \"{key}\" }}\n\
                 part_size = \"5 MiB\"\n{more}"
            )),
            ..self
        }
    }

    fn extra(self, text: &str) -> Self {
        Self { home: self.home.extra(text), ..self }
    }

    /// A tier `away` at `weekly` that goes to these stores, which are initialised.
    fn ready(self, stores: &[&str]) -> Self {
        let list: Vec<String> = stores.iter().map(|s| format!("{s:?}")).collect();
        let tier = format!("[tiers.away]\nstores = [{}]\npath = \"weekly\"", list.join(", "));
        let home = self.home.extra(&tier);
        home.write_config();
        for store in stores.iter().filter(|s| **s != "nas") {
            home.tars(&["store", "init", store]).expect(0);
        }
        Self { home: home.ready(), ..self }
    }

    fn tars(&self, args: &[&str]) -> Done {
        let done = self.home.tars(args);
        let all = format!("{}{}", done.stdout, done.stderr);
        assert!(!all.contains(KEY) && !all.contains("test-secret"), "a credential is shown:\n{all}");
        let key = std::fs::read_to_string(&self.key).unwrap();
        let key = key.lines().find(|l| l.starts_with("AGE-SECRET-KEY-1")).unwrap();
        assert!(!all.contains(key), "the key is shown:\n{all}");
        done
    }

    fn backup(&self, code: i32) -> (String, Done) {
        let done = self.tars(&["backup", "--tier", "away", "--json"]).expect(code);
        (done.json()["name"].as_str().unwrap_or_default().to_owned(), done)
    }

    /// Restores from `from` below a new directory and compares.
    fn comes_back(&self, from: &str, more: &[&str]) {
        let to = self.home.at(&format!("back-{}", std::fs::read_dir(self.home.root()).unwrap().count()));
        std::fs::create_dir(&to).unwrap();
        let key = self.key.display().to_string();
        let base = ["restore", "--latest", "--from", from, "--to", &to, "--identity", &key];
        self.tars(&[&base, more].concat()).expect(0);
        sh(&format!("diff -r '{}' '{to}/documents'", self.home.at("docs")));
    }

    /// The configuration as it was before anything was to be sealed.
    fn unsealed(&self) {
        let text = std::fs::read_to_string(self.home.path("config.toml")).unwrap();
        let never = text.replace("[encryption]", "[encryption]\nseal = \"never\"");
        assert_ne!(text, never);
        std::fs::write(self.home.path("config.toml"), never).unwrap();
    }

    fn waiting(&self) -> usize {
        std::fs::read_dir(self.home.path("state/spool")).map_or(0, Iterator::count)
    }
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|all| all.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

/// As a person would, with nothing but stock tools: joined, compared, opened, unpacked.
fn opens_by_hand(dir: &Path, name: &str, key: &Path, wanted: &str) {
    sh(&format!(
        "cd '{dir}'; if [ -e {name}.tar.gz.age.p0001 ]; then
           sha256sum -c --quiet {name}.tar.gz.age.parts; cat {name}.tar.gz.age.p[0-9]* >{name}.tar.gz.age
         fi
         sha256sum -c --quiet {name}.tar.gz.age.sha256
         age -d -i '{key}' {name}.tar.gz.age >{name}.tar.gz
         tar -tzf {name}.tar.gz >list; grep -qx {name}/RESTORE.md list; rm list
         tar -xzf {name}.tar.gz; mkdir out; tar -xzf {name}/documents.tar.gz -C out; diff -r '{wanted}' out",
        dir = dir.display(),
        key = key.display(),
    ));
}

#[test]
fn one_run_to_four_kinds_of_store_each_opened_by_hand_and_restored() {
    let (s3, moto, sshd) = (S3sFs::start(), Moto::start(), Sshd::start());
    let place = Place::new(12_000_000)
        .s3("one", &s3.endpoint(), "")
        .s3("two", &moto.endpoint(), "")
        .extra(&format!("[stores.ssh]\n{}", sshd.keys("backups", "")))
        .ready(&["nas", "one", "two", "ssh"]);
    let (name, _) = place.backup(0);

    // The house keeps it plain, what is elsewhere is sealed, and in parts where it is an object.
    let plain = place.home.path("store/weekly");
    assert!(
        plain.join(format!("{name}.tar.gz")).exists() && !plain.join(format!("{name}.tar.gz.age")).exists()
    );
    let one = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let stored = files(&one);
    for file in [
        "tar.gz.age.p0001",
        "tar.gz.age.p0003",
        "tar.gz.age.parts",
        "tar.gz.age.sha256",
        "manifest.json",
        "receipt.json",
    ] {
        assert!(stored.contains(&format!("{name}.{file}")), "{file}: {stored:?}");
    }
    let docs = place.home.at("docs");
    let by_hand = |what: &str, from: &str| {
        let dir = place.home.path(what);
        std::fs::create_dir(&dir).unwrap();
        sh(&from.replace("DIR", dir.to_str().unwrap()));
        opens_by_hand(&dir, &name, &place.key, &docs);
    };
    by_hand("hand-one", &format!("cp '{}'/{name}.* DIR", one.display()));
    by_hand("hand-ssh", &format!(
        "sftp -q -P {} -i '{}' -o UserKnownHostsFile='{}' -b <(echo \"get backups/hosts/{HOST}/weekly/{name}.* DIR\") {}@127.0.0.1",
        sshd.port(), sshd.file("user").display(), sshd.file("known_hosts").display(), Sshd::user()
    ).replace("get backups", &format!("get {}/backups", sshd.root().display())));
    let url = format!("{}/{BUCKET}/hosts/{HOST}/weekly/{name}", moto.endpoint());
    by_hand("hand-two", &format!(
        "cd DIR; for f in tar.gz.age.p0001 tar.gz.age.p0002 tar.gz.age.p0003 tar.gz.age.parts tar.gz.age.sha256; do
           curl -sf --aws-sigv4 aws:amz:us-east-1:s3 --user '{KEY_ID}:{KEY}' -o {name}.$f '{url}.'$f
         done"
    ));

    for store in ["nas", "one", "two", "ssh"] {
        place.comes_back(store, &[]);
    }
    // Without a configuration that names it: by its address, keys from a file that only its owner reads.
    let keys = place.home.path("keys");
    std::fs::write(&keys, format!("key_id = {KEY_ID}\nkey = {KEY}\n")).unwrap();
    sh(&format!("chmod 600 '{}'", keys.display()));
    let url = format!("s3://{BUCKET}?endpoint={}&region=us-east-1", s3.endpoint());
    place.comes_back(&url, &["--credentials", keys.to_str().unwrap()]);
    place.comes_back(&url, &["--credentials", keys.to_str().unwrap(), "--host", HOST]);
    let other = ["list", "--store", &url, "--host", "home-2", "--credentials", keys.to_str().unwrap()];
    place.tars(&other).expect(1).says("no machine \"home-2\"").says(HOST);
    let secret = format!("s3://{KEY_ID}:{}@{BUCKET}", KEY.replace('/', "%2F"));
    place.tars(&["list", "--store", &secret]).expect(64);

    // What this host knows of it can be lost: it is all beside the backups.
    let before = place.tars(&["list", "--json"]).expect(0).json();
    std::fs::remove_dir_all(place.home.path("state")).unwrap();
    let mut after = place.tars(&["list", "--json"]).expect(0).json();
    after[0]["age_s"] = before[0]["age_s"].clone();
    assert_eq!(before, after);
    assert_eq!(before[0]["stores"].as_array().unwrap().len(), 4);
}

#[test]
fn a_host_without_identity_backs_up_and_checks_what_it_can_and_a_key_is_proved_on_what_is_stored() {
    let s3 = S3sFs::start();
    let place = Place::new(6_000_000).s3("one", &s3.endpoint(), "").ready(&["one"]);
    let (name, _) = place.backup(0);
    let key = place.key.display().to_string();
    place.tars(&["verify", &name]).expect(0);
    place.tars(&["verify", "--deep", &name]).expect(2).says("no identity is here");
    place.tars(&["verify", "--deep", &name, "--identity", &key]).expect(0);
    place.tars(&["key", "test"]).expect(1).says("no identity is here").says("--identity FILE");
    place.tars(&["key", "test", "--identity", &key]).expect(0).says(&format!("opens {name} in one"));
    let other = place.home.at("other.txt");
    run(support::PROGRAM, &["key", "new", "--output", &other]).expect(0);
    place.tars(&["key", "test", "--identity", &other]).expect(1).says("none of the identities opens it");
    place.tars(&["key", "test", "--identity", &other, "--identity", &key]).expect(0);
    let to = place.home.at("nothing");
    std::fs::create_dir(&to).unwrap();
    place.tars(&["restore", "--latest", "--to", &to]).expect(1).says("no identity is here");
    place
        .tars(&["extract", &name, "--to", &to, "--identity", &other])
        .expect(1)
        .says("none of the identities");
    place.tars(&["extract", &name, "RESTORE.md", "--to", &to, "--identity", &key]).expect(0);
    assert_eq!(files(Path::new(&to)), ["RESTORE.md"]);

    // A bit of a part, a part that is gone, its list of digests: each is found.
    let dir = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let part = dir.join(format!("{name}.tar.gz.age.p0002"));
    let good = std::fs::read(&part).unwrap();
    let mut bad = good.clone();
    bad[1000] ^= 1;
    std::fs::write(&part, &bad).unwrap();
    place.tars(&["verify", &name]).expect(1).says("another SHA-256");
    assert!(!files(&dir).contains(&format!("{name}.verified")));
    place.tars(&["verify", "--deep", &name, "--identity", &key]).expect(1);
    std::fs::remove_file(&part).unwrap();
    place.tars(&["verify", &name]).expect(1).says("bytes long");
    std::fs::write(&part, &good).unwrap();
    std::fs::write(dir.join(format!("{name}.tar.gz.age.parts")), "x\n").unwrap();
    place.tars(&["verify", &name]).expect(1).says(".parts does not say");
}

/// Whatever has been read when a line breaks, it says nothing about the copy, which keeps its marks.
#[test]
fn a_line_that_breaks_while_an_archive_is_read_is_no_damage() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    let (name, _) = place.backup(0);
    let dir = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let mark = dir.join(format!("{name}.verified"));
    assert!(mark.exists());
    let (to, key) = (place.home.at("to"), place.key.display().to_string());
    std::fs::create_dir(&to).unwrap();
    // In the header of what is sealed, and after it.
    for (act, args) in [
        (Act::HeadOnly, &["drill", &name, "--identity", &key][..]),
        (Act::HeadOnly, &["restore", &name, "--to", &to, "--identity", &key]),
        (Act::HeadOnly, &["verify", "--deep", &name, "--identity", &key]),
        (Act::CutAnswer, &["drill", &name, "--identity", &key]),
        (Act::CutAnswer, &["extract", &name, "--to", &to, "--identity", &key]),
    ] {
        proxy.on(move |seen| if seen.is("GET", ".tar.gz.age.p") { act.clone() } else { Act::Pass });
        let done = place.tars(args).expect(1);
        let said = format!("{}{}", done.stdout, done.stderr);
        assert!(!said.contains("damaged") && mark.exists(), "{args:?}: {said}");
        assert_eq!(files(Path::new(&to)), [""; 0], "{args:?}");
    }
    proxy.on(|_| Act::Pass);
    place.tars(&["drill", &name, "--identity", &key]).expect(0);
}

#[test]
fn a_store_that_is_down_costs_a_warning_and_gets_the_backup_later() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["nas", "one"]);
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let cases: [(Act, &str); 4] = [
        (Act::error(503, "SlowDown"), "SlowDown"),
        (Act::error(403, "AccessDenied"), "AccessDenied"),
        (Act::error(404, "NoSuchBucket"), "NoSuchBucket"),
        (Act::EchoAuthorization, "one"),
    ];
    for (i, (act, says)) in cases.into_iter().enumerate() {
        let (permanent, during) = (i > 0, act.clone());
        proxy.on(move |_| during.clone());
        let done = place.tars(&["backup", "--tier", "away"]).expect(2);
        done.says("it waits in the spool for one").says("tars-backup sync").says(says);
        assert!(proxy.seen().len() < if permanent { 8 } else { 40 }, "{} requests", proxy.seen().len());
        assert_eq!(place.waiting(), i + 1);
    }
    // One that fails only when the archive is on its way.
    proxy.on(|seen| if seen.is("PUT", ".p00") { Act::error(500, "InternalError") } else { Act::Pass });
    place.tars(&["backup", "--tier", "away"]).expect(2).says("it waits in the spool");
    assert!(!files(&away).iter().any(|f| f.ends_with(".manifest.json")));
    place.tars(&["sync"]).expect(1).says("still waits for one");
    assert_eq!(place.waiting(), 5);

    proxy.on(|_| Act::Pass);
    place.tars(&["sync"]).expect(0).says("is in one now");
    assert_eq!(place.waiting(), 0);
    place.tars(&["sync"]).expect(0).says("Nothing waits");
    assert_eq!(files(&away).iter().filter(|f| f.ends_with(".manifest.json")).count(), 5);
    place.tars(&["verify", "--all"]).expect(0);
    place.comes_back("one", &[]);
}

#[test]
fn with_no_store_in_reach_the_backup_is_kept_and_is_none_until_one_has_it() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(100_000).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    proxy.on(|_| Act::error(503, "ServiceUnavailable"));
    let done = place.tars(&["backup", "--tier", "away"]).expect(1);
    done.says("in no store yet").says("it waits in the spool for one");
    let mode =
        sh(&format!("cd '{}'; find . -type f -printf '%m\\n' | sort -u", place.home.at("state/spool")));
    assert_eq!(mode, "600\n");
    proxy.on(|_| Act::Pass);
    assert_eq!(
        place.tars(&["list", "--tier", "away", "--json"]).expect(0).json().as_array().unwrap().len(),
        0
    );
    place.tars(&["sync"]).expect(0);
    place.comes_back("one", &[]);
}

#[test]
fn a_store_that_lies_is_found_out() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["nas", "one"]);
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    for act in [Act::Flip, Act::Swallow] {
        let (what, during) = (format!("{act:?}"), act);
        proxy.on(move |seen| {
            let archive = seen.target.contains(".tar.gz.age.p0001");
            if archive && seen.method == "PUT" { during.clone() } else { Act::Pass }
        });
        place.tars(&["backup", "--tier", "away"]).expect(2);
        assert!(!files(&away).iter().any(|f| f.ends_with(".manifest.json")), "{what}: {:?}", files(&away));
        assert_eq!(
            place.tars(&["list", "--store", "one", "--json"]).expect(0).json().as_array().unwrap().len(),
            0
        );
        proxy.on(|_| Act::Pass);
        place.tars(&["sync"]).expect(0);
        place.comes_back("one", &[]);
        std::fs::remove_dir_all(&away).unwrap();
    }
    // It takes all of it, and then a piece of it is gone.
    let dir = away.clone();
    proxy.on(move |seen| {
        if seen.is("GET", ".tar.gz.age.p0001") {
            let part = files(&dir).into_iter().find(|f| f.ends_with(".p0001")).unwrap();
            std::fs::File::options().write(true).open(dir.join(part)).unwrap().set_len(1000).unwrap();
        }
        Act::Pass
    });
    place.tars(&["backup", "--tier", "away"]).expect(2).says("it waits in the spool");
    assert!(!files(&away).iter().any(|f| f.ends_with(".manifest.json")), "{:?}", files(&away));
    proxy.on(|_| Act::Pass);
    place.tars(&["sync"]).expect(0);
    place.comes_back("one", &[]);
}

#[test]
fn what_happens_on_the_way_is_mended_or_told() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["nas", "one"]);
    // Cut in the middle, once; and slow.
    let cut = std::sync::atomic::AtomicBool::new(false);
    proxy.on(move |seen| {
        let first = seen.is("PUT", ".p0001") && !cut.swap(true, std::sync::atomic::Ordering::SeqCst);
        if first { Act::CutRequest } else { Act::Pass }
    });
    place.tars(&["backup", "--tier", "away"]).expect(0);
    proxy.on(|seen| if seen.is("PUT", ".p00") { Act::After(Duration::from_secs(2)) } else { Act::Pass });
    place.tars(&["backup", "--tier", "away"]).expect(0);
    // An account that is full.
    proxy.on(|seen| match seen.is("PUT", ".p00") {
        true => Act::Error {
            status: 403,
            code: "AccessDenied",
            message: "Storage cap exceeded. Please see the Caps & Alerts page".into(),
        },
        false => Act::Pass,
    });
    let done = place.tars(&["backup", "--tier", "away"]).expect(2);
    done.says("Storage cap exceeded").says("raise the cap").says("it waits in the spool for one");
    assert!(proxy.count(|seen| seen.is("PUT", ".p00")) < 4, "what asking again cannot mend is asked once");
    proxy.on(|_| Act::Pass);
    place.tars(&["sync"]).expect(0);
    place.comes_back("one", &[]);

    // Somebody else's certificate.
    let door = TlsDoor::start(&s3.endpoint(), "DNS:elsewhere.example");
    let endpoint = format!("https://{}", door.address);
    let ca = format!("ca = \"{}\"", door.ca.display());
    let place = Place::new(1000).s3("one", &endpoint, &ca);
    let place = Place {
        home: place.home.extra("[tiers.away]\nstores = [\"nas\", \"one\"]\npath = \"weekly\"").ready(),
        ..place
    };
    let done = place.tars(&["backup", "--tier", "away"]).expect(2);
    done.says("certificate").says("find out who answers there").says("it waits in the spool for one");
}

/// Command lines of a process and of all that it started.
fn arguments_below(pid: u32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut family = vec![pid.to_string()];
    while let Some(pid) = family.pop() {
        // Whoever ended meanwhile has nothing to show.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        lines.push(String::from_utf8_lossy(&line).into_owned());
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            family.extend(children.split_whitespace().map(str::to_owned));
        }
    }
    lines
}

#[test]
fn no_credential_is_an_argument_or_shown_by_the_configuration() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(12_000_000).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    for command in
        [&["config", "show"][..], &["config", "show", "--json"], &["config", "check"], &["list", "-vv"]]
    {
        place.tars(command).expect(0);
    }
    proxy.on(|seen| if seen.is("PUT", ".p00") { Act::After(Duration::from_secs(1)) } else { Act::Pass });
    let mut child = place.home.spawn(&["backup", "--tier", "away", "-vv"]).child;
    let mut looked = 0;
    while child.try_wait().unwrap().is_none() {
        for line in arguments_below(child.id()) {
            assert!(!line.contains(KEY) && !line.contains("AGE-SECRET-KEY-1"), "{line}");
            looked += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(looked > 2, "{looked}");
}

#[test]
fn an_upload_that_was_killed_goes_on_where_it_was() {
    const BYTES: usize = 60_000_000;
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(BYTES).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    proxy.on(|_| Act::Pass);
    let mut run = place.home.command(&["backup", "--tier", "away"]);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    while proxy.received() < BYTES as u64 / 2 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be killed");
        assert!(Instant::now() < end, "nothing is sent");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    assert!(!files(&away).iter().any(|f| f.ends_with(".manifest.json")));
    assert_eq!(place.tars(&["list", "--json"]).expect(0).json().as_array().unwrap().len(), 0);
    place.tars(&["sync"]).expect(0).says("is in one now");
    let sent = proxy.received() as f64 / BYTES as f64;
    assert!(sent < 1.2, "{sent:.2} times its bytes were sent");
    place.tars(&["verify", "--all"]).expect(0);
    place.comes_back("one", &[]);
}

#[test]
fn a_signal_in_the_middle_of_an_upload_leaves_what_can_be_gone_on_with() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(30_000_000).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    proxy.on(|seen| if seen.is("PUT", ".p0004") { Act::Hang } else { Act::Pass });
    let running = place.home.spawn(&["backup", "--tier", "away"]);
    let end = Instant::now() + Duration::from_secs(120);
    while proxy.count(|seen| seen.target.contains(".p0004")) == 0 {
        assert!(Instant::now() < end, "nothing is sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    running.signal("TERM");
    running.end().expect(143);
    proxy.on(|_| Act::Pass);
    place.tars(&["sync"]).expect(0);
    assert!(proxy.received() < 20_000_000, "{} bytes were sent again", proxy.received());
    place.comes_back("one", &[]);
}

#[test]
fn two_hosts_share_a_bucket_and_a_third_that_takes_a_name_is_refused() {
    let s3 = S3sFs::start();
    let first = Place::new(1000).s3("one", &s3.endpoint(), "").ready(&["one"]);
    let second = Place::named("home-2", 2000).s3("one", &s3.endpoint(), "").ready(&["one"]);
    first.backup(0);
    second.backup(0);
    for place in [&first, &second] {
        assert_eq!(place.tars(&["list", "--json"]).expect(0).json().as_array().unwrap().len(), 1);
        place.comes_back("one", &[]);
    }
    let listed = first.tars(&["list", "--host", "home-2", "--store", "one", "--json"]).expect(0).json();
    assert_eq!(listed[0]["host"], "home-2");
    // As another machine of the same name would find it.
    let marker = s3.bucket().join(format!("hosts/{HOST}/tars-backup-store.json"));
    sh(&format!("sed -i 's/\"machine_id\": \"[0-9a-f]*/&0/' '{}'", marker.display()));
    let done = first.tars(&["backup", "--tier", "away"]).expect(1);
    done.says("belongs to another machine").says("store adopt one");
    first.comes_back("one", &[]);
    first.tars(&["store", "adopt", "one"]).expect(0).says(&format!("it was of {HOST}"));
    first.backup(0);
    // A name that has nothing there is not taken over: most likely it is the wrong one.
    let third = Place::named("home-3", 1000).s3("one", &s3.endpoint(), "");
    let third = third.extra("[tiers.away]\nstores = [\"one\"]\npath = \"weekly\"");
    third.home.write_config();
    let refused = third.tars(&["store", "adopt", "one"]).expect(1).says("nothing of home-3");
    refused.says(&format!("backups of: {HOST}, home-2")).says("[agent] host");
    assert_eq!(files(&s3.bucket().join("hosts")), [HOST, "home-2"]);
}

#[test]
fn a_store_with_the_manners_of_b2_works() {
    let moto = Moto::start();
    let proxy = Proxy::start(&moto.endpoint());
    proxy.on(proxy::b2);
    let place = Place::new(12_000_000);
    let (id, key) = (place.home.at("key-id"), place.home.at("secret"));
    let place = place
        .extra(&format!(
            "[stores.b2]\ntype = \"b2\"\nbucket = \"{BUCKET}\"\nregion = \"us-west-004\"\nendpoint = \"{}\"\n\
             key_id = {{ file = \"{id}\" }}\nkey = {{ file = \"{key}\" }}\npart_size = \"5 MiB\"",
            proxy.endpoint()
        ))
        .ready(&["b2"]);
    place.tars(&["store", "check", "b2"]).expect(0);
    place.backup(0);
    place.comes_back("b2", &[]);
}

#[test]
fn a_store_that_does_not_answer_is_no_damage() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["one"]);
    let (name, _) = place.backup(0);
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let mark = std::fs::read(away.join(format!("{name}.verified"))).unwrap();
    let key = place.key.display().to_string();
    // At once, and in the middle; while it is only hashed, and while it is looked into.
    for deep in [&["verify", &name][..], &["verify", &name, "--deep", "--identity", &key]] {
        for part in [".p0001", ".p0002"] {
            proxy.on(
                move |seen| if seen.is("GET", part) { Act::error(403, "AccessDenied") } else { Act::Pass },
            );
            let done = place.tars(deep).expect(1);
            assert!(!done.stderr.contains("damaged") && !done.stdout.contains("BAD"), "{done:?}");
            done.says("NOT CHECKED").says("could not be checked").says("AccessDenied");
            assert_eq!(std::fs::read(away.join(format!("{name}.verified"))).unwrap(), mark);
        }
    }
    proxy.on(|_| Act::Pass);
    place.tars(&["verify", &name]).expect(0);
}

#[test]
fn what_waits_unsealed_is_sealed_before_it_goes_where_nothing_unsealed_is_to_be() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(12_000_000).s3("one", &proxy.endpoint(), "").ready(&["nas", "one"]);
    place.unsealed();
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    // Broken off in the middle: a part of it lies there in the clear, and is ours.
    proxy.on(|seen| if seen.is("PUT", ".p0002") { Act::error(403, "AccessDenied") } else { Act::Pass });
    let (name, _) = place.backup(2);
    assert!(files(&away).contains(&format!("{name}.tar.gz.p0001")), "{:?}", files(&away));
    place.home.write_config();
    proxy.on(|_| Act::Pass);
    // What rotted meanwhile is not sealed: nobody could tell afterwards.
    let waits = place.home.path(&format!("state/spool/{name}/{name}.tar.gz"));
    let good = std::fs::read(&waits).unwrap();
    let mut bad = good.clone();
    bad[6_000_000] ^= 1;
    std::fs::write(&waits, &bad).unwrap();
    place.tars(&["sync"]).expect(1).says("is not what was packed any more");
    std::fs::write(&waits, &good).unwrap();
    // Half of a sealed one, by a run that was killed.
    std::fs::write(waits.with_extension("gz.age"), "half").unwrap();
    place.tars(&["sync"]).expect(0);
    let clear: Vec<String> =
        files(&away).into_iter().filter(|f| f.contains(".tar.gz") && !f.contains(".tar.gz.age")).collect();
    assert_eq!(clear, [""; 0]);
    assert_eq!(place.waiting(), 0);
    place.tars(&["verify", "--all"]).expect(0);
    place.comes_back("one", &[]);
    place.comes_back("nas", &[]);
}

#[test]
fn an_archive_that_cannot_be_sealed_still_goes_where_it_need_not_be() {
    let s3 = S3sFs::start();
    let place = Place::new(12_000_000).s3("one", &s3.endpoint(), "").ready(&["nas", "one"]);
    let (name, _) = place.backup(0);
    let plain = place.home.path(&format!("store/weekly/{name}.tar.gz"));
    let bytes = std::fs::metadata(plain).unwrap().len();
    // Sealed it is longer: a file of that length is one too many.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes.div_ceil(1024) + 1);
    let config = place.home.at("config.toml");
    let mut limited = std::process::Command::new("bash");
    let args = ["-c", &script, "limited", support::PROGRAM, "--config", &config, "backup", "--tier", "away"];
    let output = limited.args(args).env_remove("JOURNAL_STREAM").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("it could not be sealed") && said.contains("Committed"), "{said}");
    assert_eq!(place.waiting(), 1);
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    let second = place.home.committed_at("store/weekly").pop().unwrap();
    assert!(second > name && !files(&away).iter().any(|f| f.starts_with(&second)), "{:?}", files(&away));
    place.tars(&["sync"]).expect(0);
    assert!(files(&away).contains(&format!("{second}.tar.gz.age.parts")), "{:?}", files(&away));
    assert_eq!(place.waiting(), 0);
    place.comes_back("one", &[]);
}

#[test]
fn a_store_that_was_down_on_the_night_is_asked_for_the_name_when_it_is_back() {
    let s3 = S3sFs::start();
    let proxy = Proxy::start(&s3.endpoint());
    let place = Place::new(6_000_000).s3("one", &proxy.endpoint(), "").ready(&["nas", "one"]);
    proxy.on(|_| Act::error(403, "AccessDenied"));
    let (name, _) = place.backup(2);
    proxy.on(|_| Act::Pass);
    let away = s3.bucket().join(format!("hosts/{HOST}/weekly"));
    std::fs::create_dir_all(&away).unwrap();
    let theirs = away.join(format!("{name}.tar.gz.age.p0001"));
    std::fs::write(&theirs, "theirs").unwrap();
    place.tars(&["sync"]).expect(1).says("exists already");
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "theirs");
    std::fs::remove_file(&theirs).unwrap();
    place.tars(&["sync"]).expect(0);
    place.comes_back("one", &[]);
}
