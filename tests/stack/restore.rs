//! Volumes come back, and the containers that use them see the new data: while they run, after they were removed, when
//! they do not start with it, and after a kill. What could go wrong: a container that goes on with the old directory.

use std::path::Path;

use crate::lab::{Lab, until};
use crate::legacy;
use crate::support::{Home, killed_at_every_line, restore_to_kill, run, sh};

/// A container that appends to a file of its volume and shows what it reads there.
const SERVICE: &str =
    "trap 'exit 0' TERM; while :; do cat /data/value > /data/seen; sleep 0.1 & wait $!; done";

struct Stack {
    lab: Lab,
    volume: String,
    one: String,
    /// Only reads.
    two: String,
}

fn stack() -> Stack {
    let lab = Lab::new();
    let volume = lab.volume("data");
    let writes = format!("{volume}:/data");
    let reads = format!("{volume}:/data:ro");
    let one = lab.container(&["run", "-d"], "one", &["-v", &writes, "redis:7-alpine", "sh", "-c", SERVICE]);
    let two = lab.container(&["run", "-d"], "two", &["-v", &reads, "redis:7-alpine", "sleep", "infinity"]);
    lab.sh(&one, "mkdir -p /data/deep && echo before > /data/value && echo x > /data/deep/x && ln /data/value /data/hard");
    Stack { lab, volume, one, two }
}

impl Stack {
    fn home(&self, more: &str) -> Home {
        let home = Home::new().source(
            "data",
            &format!("type = \"volume\"\nvolume = {:?}\nexclude = [\"seen\"]\n{more}", self.volume),
        );
        let home = home.ready();
        home.backup(0);
        home
    }

    fn value(&self, container: &str) -> String {
        self.lab.sh(container, "cat /data/value")
    }

    fn id_and_state(&self, container: &str) -> String {
        self.lab.ok(&["inspect", "-f", "{{.Id}} {{.State.Status}}", container])
    }

    fn data(&self) -> String {
        self.lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &self.volume]).trim().to_owned()
    }
}

fn assert_clean(home: &Home, data: &str) {
    let beside = Path::new(data).parent().unwrap();
    assert_eq!(sh(&format!("find '{}' -name '*tars-restore*'", beside.display())), "");
    assert!(!home.path("state/run.journal").exists());
}

#[test]
fn every_container_of_a_volume_sees_the_restored_data() {
    let s = stack();
    let home = s.home("");
    s.lab.sh(&s.one, "echo after > /data/value; rm -r /data/deep; echo y > /data/fresh");
    let before = [s.id_and_state(&s.one), s.id_and_state(&s.two)];
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("restored data");
    assert_eq!([s.id_and_state(&s.one), s.id_and_state(&s.two)], before, "the same containers, running");
    for container in [&s.one, &s.two] {
        assert_eq!(s.value(container), "before\n");
        assert_eq!(s.lab.sh(container, "ls /data/deep; ls /data/fresh 2>&1 | grep -c 'No such'"), "x\n1\n");
    }
    // It goes on in the new tree.
    s.lab.sh(&s.one, "echo later > /data/value");
    until("the service reads the new value", || s.lab.sh(&s.two, "cat /data/seen") == "later\n");
    assert_clean(&home, &s.data());
}

#[test]
fn a_container_that_does_not_run_with_the_new_data_gets_the_old_back() {
    let s = stack();
    let home = s.home("");
    // From now on it wants a file that the backup does not have.
    s.lab.sh(&s.one, "echo needed > /data/needed; echo after > /data/value");
    s.lab.ok(&["rm", "-f", &s.one]);
    let mount = format!("{}:/data", s.volume);
    let wants = "test -e /data/needed || exit 3; exec sleep infinity";
    let one = s.lab.container(&["run", "-d"], "picky", &["-v", &mount, "redis:7-alpine", "sh", "-c", wants]);
    home.tars(&["restore", "--latest", "--yes"])
        .expect(1)
        .says("does not run with the new data")
        .says("old data");
    assert_eq!(s.value(&one), "after\n");
    assert_eq!(s.value(&s.two), "after\n");
    assert_clean(&home, &s.data());
    // For a person who wants to look at it.
    home.tars(&["restore", "--latest", "--yes", "--keep"]).expect(1).says("left as it is");
    assert_eq!(sh(&format!("cat '{}/value'", s.data())), "before\n");
}

#[test]
fn stopped_containers_stay_stopped_and_paused_ones_are_refused() {
    let s = stack();
    let home = s.home("");
    s.lab.sh(&s.one, "echo after > /data/value");
    s.lab.ok(&["stop", "-t", "0", &s.one]);
    s.lab.ok(&["pause", &s.two]);
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("is paused");
    assert_eq!(sh(&format!("cat '{}/value'", s.data())), "after\n");
    s.lab.ok(&["unpause", &s.two]);
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert!(s.id_and_state(&s.one).contains("exited"));
    assert_eq!(s.value(&s.two), "before\n");
    assert_clean(&home, &s.data());
}

#[test]
fn a_bind_mount_and_a_volume_that_is_a_directory_come_back() {
    let lab = Lab::new();
    let home = Home::new();
    let (bind, device) = (home.at("bind"), home.at("device"));
    sh(&format!(
        "mkdir -p '{bind}' '{device}'; echo before > '{bind}/value'; echo before > '{device}/value'"
    ));
    let volume = lab.volume("plain");
    lab.ok(&["volume", "rm", &volume]);
    let options = format!("device={device}");
    lab.ok(&[
        "volume",
        "create",
        "--label",
        "tars-lab=test",
        "--opt",
        "type=none",
        "--opt",
        "o=bind",
        "--opt",
        &options,
        &volume,
    ]);
    let a = format!("{bind}:/bind");
    let b = format!("{volume}:/device");
    let one =
        lab.container(&["run", "-d"], "one", &["-v", &a, "-v", &b, "redis:7-alpine", "sleep", "infinity"]);
    let path = |p: &str| format!("type = \"volume\"\ncontainer = {one:?}\npath = \"{p}\"");
    let home = home.source("bind", &path("/bind")).source("device", &path("/device")).ready();
    home.backup(0);
    lab.sh(&one, "echo after > /bind/value; echo after > /device/value");
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    assert_eq!(lab.sh(&one, "cat /bind/value /device/value"), "before\nbefore\n");
}

#[test]
fn a_directory_of_the_host_comes_back_for_every_container_that_has_it_mounted() {
    let lab = Lab::new();
    let home = Home::new();
    let docs = home.at("docs");
    sh(&format!("mkdir -p '{docs}/sub'; echo before | tee '{docs}/value' > '{docs}/sub/value'"));
    let run = |name: &str, mount: &str| {
        lab.container(&["run", "-d"], name, &["-v", mount, "redis:7-alpine", "sh", "-c", SERVICE])
    };
    let whole = run("whole", &format!("{docs}:/data"));
    let part = run("part", &format!("{docs}/sub:/data"));
    let lines = format!("type = \"directory\"\npath = {docs:?}\nexclude = [\"seen\"]");
    let home = home.source("documents", &lines).ready();
    home.backup(0);
    for container in [&whole, &part] {
        lab.sh(container, "echo after > /data/value");
    }
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("restored documents");
    for container in [&whole, &part] {
        assert_eq!(lab.sh(container, "cat /data/value"), "before\n");
        // It goes on in the new tree.
        lab.sh(container, "echo later > /data/value");
    }
    assert_eq!(sh(&format!("cat '{docs}/value' '{docs}/sub/value'")), "later\nlater\n");
    assert_clean(&home, &docs);
    lab.ok(&["pause", &whole]);
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("is paused");
    lab.ok(&["unpause", &whole]);
    assert_eq!(lab.sh(&whole, "cat /data/value"), "later\n");
}

/// A volume that is mounted by the engine only, while a container of it runs.
fn mounted_by_the_engine(lab: &Lab, home: &Home) -> String {
    let dir = home.at("layers");
    sh(&format!("mkdir -p '{dir}'/lower '{dir}'/upper '{dir}'/work"));
    let volume = lab.volume("odd");
    lab.ok(&["volume", "rm", &volume]);
    let options = format!("o=lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work");
    let label = ["volume", "create", "--label", "tars-lab=test"];
    let driver = ["--opt", "type=overlay", "--opt", "device=overlay", "--opt", &options, &volume];
    lab.ok(&[&label[..], &driver[..]].concat());
    volume
}

/// Ids of the helpers that have the volume mounted.
fn helpers(lab: &Lab, volume: &str) -> Vec<String> {
    let mounts = format!("volume={volume}");
    let ids = lab.ok(&["ps", "-aq", "--filter", "label=tars-backup.helper", "--filter", &mounts]);
    ids.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_volume_that_only_the_engine_can_mount_comes_back_wholly_or_not_at_all() {
    let lab = Lab::new();
    let home = Home::new();
    let volume = mounted_by_the_engine(&lab, &home);
    let mount = format!("{volume}:/data");
    let one = lab.container(&["run", "-d"], "one", &["-v", &mount, "redis:7-alpine", "sleep", "infinity"]);
    lab.sh(
        &one,
        "mkdir -p /data/deep/cache; echo before | tee /data/value > /data/deep/value; chmod 750 /data",
    );
    let lines = format!("type = \"volume\"\nvolume = {volume:?}\nexclude = [\"cache\"]");
    let deep = format!("type = \"volume\"\ncontainer = {one:?}\npath = \"/data/deep\"");
    let home = home.source("odd", &lines).ready();
    home.backup(0);
    let change = "rm -f /data/value; echo after > /data/deep/value; mkdir -p /data/deep/cache; \
                  echo kept > /data/deep/cache/x; touch /data/fresh; chmod 700 /data";
    let look =
        || lab.sh(&one, "cat /data/value /data/deep/value /data/deep/cache/x; ls -A /data; stat -c %a /data");
    lab.sh(&one, change);
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("restored odd");
    assert_eq!(look(), "before\nbefore\nkept\ndeep\nvalue\n750\n");
    assert!(helpers(&lab, &volume).is_empty());

    killed_at_every_line(
        &home,
        6,
        || restore_to_kill(&home, false, &[]),
        || drop(lab.sh(&one, change)),
        |line| {
            // As after a power cut: what showed us the volume does not run any more.
            for helper in helpers(&lab, &volume) {
                run("docker", &["kill", &helper]);
            }
            home.tars(&["recover"]).expect(0);
            let now = lab.sh(&one, "cat /data/deep/value /data/deep/cache/x; ls -A /data");
            let old = "after\nkept\ndeep\nfresh\n";
            assert!(now == old || now == "before\nkept\ndeep\nvalue\n", "{now} after a kill at line {line}");
            assert!(helpers(&lab, &volume).is_empty());
            assert!(!home.path("state/run.journal").exists());
        },
    );

    // A directory within it.
    let home = home.only_source("deep", &deep);
    home.backup(0);
    lab.sh(&one, "echo after > /data/deep/value; echo stays > /data/beside");
    home.tars(&["restore", "--latest", "--yes"]).expect(0);
    let now = lab.sh(&one, "cat /data/deep/value /data/beside; ls -A /data");
    assert_eq!(now, "before\nstays\nbeside\ndeep\nvalue\n");
}

#[test]
fn data_in_the_own_layer_of_a_container_comes_back_and_nothing_of_its_image_shows_through() {
    let lab = Lab::new();
    let one = lab.container(&["run", "-d"], "one", &["redis:7-alpine", "sleep", "infinity"]);
    let two = lab.container(&["run", "-d", "--rm"], "two", &["redis:7-alpine", "sleep", "infinity"]);
    lab.sh(
        &one,
        "mkdir /stuff; echo before > /stuff/value; rm /etc/default/useradd; echo x > /etc/default/own",
    );
    lab.sh(&two, "mkdir /stuff; echo before > /stuff/value");
    let path = |c: &str, p: &str| format!("type = \"volume\"\ncontainer = {c:?}\npath = \"{p}\"");
    let home = Home::new()
        .source("stuff", &path(&one, "/stuff"))
        .source("image", &path(&one, "/etc/default"))
        .source("brief", &path(&two, "/stuff"))
        .ready();
    home.backup(0);
    let defaults = || lab.sh(&one, "ls /etc/default; cat /etc/default/own");
    let before = defaults();
    assert!(!before.contains("useradd"));
    lab.sh(&one, "echo after > /stuff/value; echo y > /etc/default/own; echo z > /etc/default/useradd");
    lab.sh(&two, "echo after > /stuff/value");
    let done = home.tars(&["restore", "--latest", "--yes"]).expect(2);
    done.says("restored image, stuff").says("--rm");
    assert_eq!(lab.sh(&one, "cat /stuff/value"), "before\n");
    assert_eq!(defaults(), before);
    assert_eq!(lab.sh(&one, "find / -xdev -name '*tars-restore*'"), "");
    assert_eq!(lab.sh(&two, "cat /stuff/value"), "after\n");
}

#[test]
fn the_volume_of_an_archive_of_the_bash_script_comes_back() {
    let lab = Lab::new();
    let volume = lab.volume("backend_logs");
    let mount = format!("{volume}:/app/logs");
    let backend =
        lab.container(&["run", "-d"], "backend", &["-v", &mount, "redis:7-alpine", "sleep", "infinity"]);
    lab.sh(&backend, "echo newer > /app/logs/app.log; echo x > /app/logs/fresh");
    let home = Home::new()
        .source("backend_logs", &format!("type = \"volume\"\ncontainer = {backend:?}\npath = \"/app/logs\""))
        .ready();
    let archive = legacy::make(&home.path("old"), "20260131_020000", "tar").display().to_string();
    let restore = ["restore", "--backup-file", &archive, "--yes", "--component", "backend_logs"];
    home.tars(&restore).expect(0);
    assert_eq!(lab.sh(&backend, "cat /app/logs/deep/second; ls /app/logs"), "a line\napp.log\ndeep\nlink\n");
    assert_eq!(lab.sh(&backend, "stat -c '%a %u %g' /app/logs/app.log"), "640 12 34\n");
    // What has no source here, and what this version does not put back, is said.
    home.tars(&["restore", "--backup-file", &archive, "--yes"]).expect(2).says("no source of that name");
}

#[test]
fn killed_at_any_step_the_volume_is_old_or_new_and_its_containers_run() {
    let s = stack();
    let home = s.home("");
    let ids = [s.id_and_state(&s.one), s.id_and_state(&s.two)];
    killed_at_every_line(
        &home,
        7,
        || restore_to_kill(&home, true, &[]),
        || drop(s.lab.sh(&s.one, "echo after > /data/value; rm -rf /data/deep; echo y > /data/fresh")),
        |line| {
            // The guardian of the killed run does it, unasked.
            let wait = format!("a recovery after a kill at line {line}");
            until(&wait, || !home.path("state/run.journal").exists());
            until("the containers run", || [s.id_and_state(&s.one), s.id_and_state(&s.two)] == ids);
            let (value, other) = (s.value(&s.one), s.value(&s.two));
            assert_eq!(value, other, "two containers see two trees");
            let fresh = s.lab.sh(&s.one, "ls /data/fresh /data/deep/x 2>/dev/null || true");
            match value.as_str() {
                "before\n" => assert_eq!(fresh, "/data/deep/x\n"),
                "after\n" => assert_eq!(fresh, "/data/fresh\n"),
                odd => panic!("{odd:?}"),
            }
            assert_clean(&home, &s.data());
        },
    );
    home.tars(&["recover"]).expect(0);
}
