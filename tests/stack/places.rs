//! Data in the wrong place: what is captured is what the service really uses, or the backup says why it is not. What
//! could go wrong: an empty volume beside the real data counts as a good copy of it, and a copy of `/etc` as one of a
//! volume with a link in it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::lab::{CHROMA, Lab, assert_failed, source, verify_deep};
use crate::support::{Home, follow_the_guide, run, sh};

/// A container that only sleeps; `args` are those of `docker run` before the image.
fn sleeper(lab: &Lab, name: &str, args: &[&str]) -> String {
    let mut all = vec!["--stop-signal", "KILL", "--entrypoint", "sleep"];
    all.extend(args);
    all.extend(["tars-lab/services:1", "infinity"]);
    lab.container(&["run", "-d"], name, &all)
}

/// A volume with driver options; its full name.
fn volume_with(lab: &Lab, name: &str, options: &[&str]) -> String {
    let full = format!("{}{name}", lab.prefix);
    let mut args = vec!["volume", "create", "--label", "tars-lab=test"];
    args.extend(options.iter().flat_map(|o| ["--opt", *o]));
    args.push(&full);
    lab.ok(&args);
    full
}

/// A volume that Compose made for `project`; its full name.
fn volume_of_project(lab: &Lab, project: &str, short: &str) -> String {
    let full = format!("{project}_{short}");
    let labels =
        ["com.docker.compose.project", "com.docker.compose.volume"].into_iter().zip([project, short]);
    let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={v}")).collect();
    let mut args = vec!["volume", "create", "--label", "tars-lab=test"];
    args.extend(labels.iter().flat_map(|l| ["--label", l.as_str()]));
    args.push(&full);
    lab.ok(&args);
    full
}

fn home(lines: &str) -> Home {
    Home::new().documents().source("data", lines).ready()
}

fn volume(more: &str) -> Home {
    home(&format!("type = \"volume\"\n{more}"))
}

/// The one whole backup of `home` made now; the directory of its unpacked member `name`, and the manifest.
#[track_caller]
fn captured(home: &Home, name: &str) -> (PathBuf, Value) {
    home.backup(0);
    verify_deep(home);
    let unpacked = home.unpack("out");
    let into = home.path("member");
    std::fs::create_dir(&into).unwrap();
    sh(&format!(
        "tar --xattrs --xattrs-include='*' -xpf '{}/{name}.tar.gz' -C '{}'",
        unpacked.display(),
        into.display()
    ));
    (into, home.manifest())
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

fn warnings(manifest: &Value) -> String {
    manifest["details"]["data"]["warnings"].to_string()
}

/// A backup in which `data` fails for these reasons; `hint` is said too.
#[track_caller]
fn fails(home: &Home, reasons: &[&str], hint: &str) {
    let done = home.tars(&["backup"]).says(hint);
    assert_failed(home, done, "data", reasons, "partial");
}

/// Containers and volumes of this test, and containers that use one of its volumes.
fn inventory(lab: &Lab) -> String {
    let filter = format!("name={}", lab.prefix);
    let mut all = lab.ok(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}} {{.State}}"]);
    let volumes = lab.ok(&["volume", "ls", "-q", "--filter", &filter]);
    for v in volumes.lines() {
        let by = format!("volume={v}");
        all.push_str(&format!("{v}: {}", lab.ok(&["ps", "-a", "--filter", &by, "--format", "{{.Names}}"])));
    }
    all
}

/// A server whose data lies in its own layer, an unused volume at the place of older versions, and some records.
fn chroma_in_its_layer(lab: &Lab) -> String {
    let mount = format!("{}:/chroma/chroma", lab.volume("chroma_data"));
    let server = lab.chroma(CHROMA, "chroma", Some(&mount), Some("/data"));
    lab.chroma_py(&server, &["hammer", "1"]);
    server
}

#[test]
fn data_of_chroma_in_the_layer_of_its_container_is_taken_with_a_warning() {
    let lab = Lab::new();
    let server = chroma_in_its_layer(&lab);
    let [dump, _] = lab.chroma_holds(&server);

    for how in ["pause", "stop", "live"] {
        let home = home(&source("chromadb", &server, &format!("consistency = {how:?}")));
        let before = inventory(&lab);
        let (copy, manifest) = captured(&home, "data");
        assert_eq!(inventory(&lab), before, "{how}");
        let said = warnings(&manifest);
        for part in [
            "/data lies in the container's own layer",
            "volumes: - NAME:/data",
            "chroma_data at /chroma/chroma",
        ] {
            assert!(said.contains(part), "{how}: {part:?} is not in {said}");
        }
        // Also after a stop it was asked whether the copy has all: the server is waited for.
        assert!(!said.contains("not compared"), "{how}: {said}");
        assert_eq!(manifest["docker_volumes"], json!([]), "{how}");
        assert_eq!(manifest["details"]["data"]["paused_ms"].as_u64() > Some(0), how != "live", "{how}");
        lab.await_chroma(&server);
        let held = lab.chroma_data_holds(CHROMA, &format!("copy-{how}"), &copy.display().to_string());
        assert!(held[0] == dump, "{how}: the copy holds something else");
    }
}

#[test]
fn of_old_and_new_data_that_of_the_server_is_taken() {
    let lab = Lab::new();
    // Old data in a directory, made by a server that is gone.
    let scratch = Home::new();
    let old_data = scratch.at("old");
    let first = lab.chroma(CHROMA, "first", Some(&format!("{old_data}:/data")), Some("/data"));
    lab.chroma_py(&first, &["hammer", "0.2"]);
    lab.ok(&["rm", "-f", &first]);
    // With a configuration file nothing in the command says where the data is.
    let silent = scratch.at("silent.yaml");
    std::fs::write(&silent, "port: 8000\nlisten_address: \"0.0.0.0\"\n").unwrap();
    let saying = scratch.at("saying.yaml");
    std::fs::write(&saying, "port: 8000\nlisten_address: \"0.0.0.0\"\npersist_path: \"/data\"\n").unwrap();
    let with_file = |name: &str, file: &str, directory: &str, mount: &str| {
        let file = format!("{file}:/config.yaml");
        let args = [
            "-p",
            "127.0.0.1::8000",
            "-v",
            &file,
            "-v",
            mount,
            "-w",
            directory,
            CHROMA,
            "run",
            "/config.yaml",
        ];
        let server = lab.container_on("bridge", &["create"], name, &args);
        (server, name.to_owned())
    };
    let copy_of = |name: &str| {
        let copy = scratch.at(name);
        sh(&format!("cp -a '{old_data}' '{copy}'"));
        copy
    };
    // Name, server not yet started, where the old data lies in it, where its own is.
    let cases = [
        (
            with_file("volume", &saying, "/", &format!("{}:/data", lab.volume("new_volume"))),
            "/chroma/chroma",
            "/data",
        ),
        (
            with_file("layer", &saying, "/", &format!("{}:/chroma/chroma", copy_of("bound"))),
            "/chroma/chroma",
            "/data",
        ),
        (
            with_file("silent", &silent, "/srv", &format!("{}:/data", copy_of("unused"))),
            "/data",
            "/srv/chroma",
        ),
    ];
    for ((server, name), old, own) in cases {
        if name == "volume" {
            // The engine makes no directories on its way.
            let below = scratch.path(&format!("tree{old}"));
            std::fs::create_dir_all(below.parent().unwrap()).unwrap();
            sh(&format!("cp -a '{old_data}' '{}'", below.display()));
            lab.ok(&["cp", &format!("{}/.", scratch.at("tree")), &format!("{server}:/")]);
        }
        lab.ok(&["start", &server]);
        lab.await_chroma(&server);
        lab.chroma_py(&server, &["hammer", "0.5"]);
        let [dump, _] = lab.chroma_holds(&server);
        let home = home(&source("chromadb", &server, ""));
        let (copy, manifest) = captured(&home, "data");
        assert_eq!(manifest["details"]["data"]["facts"]["path"], own, "{name}: {}", warnings(&manifest));
        let held = lab.chroma_data_holds(CHROMA, &format!("copy-{name}"), &copy.display().to_string());
        assert!(held[0] == dump, "{name}: the copy holds something else: {}", warnings(&manifest));

        // Whoever insists on the old place is told that the server has something else.
        let home = self::home(&source("chromadb", &server, &format!("path = {old:?}")));
        let done = home.tars(&["backup"]).expect(2).says("the server has what the copy of");
        assert!(done.stderr.contains("set path to where it keeps its data"), "{}", done.stderr);
        assert_eq!(home.manifest()["details"]["data"]["state"], "incomplete");
    }
}

#[test]
fn a_volume_that_stands_for_a_directory_is_read_there() {
    let lab = Lab::new();
    let scratch = Home::new();
    let device = scratch.at("device");
    std::fs::create_dir(&device).unwrap();
    let name = volume_with(&lab, "bound", &["type=none", "o=bind", &format!("device={device}")]);
    let c = sleeper(&lab, "app", &["-v", &format!("{name}:/data")]);
    lab.sh(&c, "echo one > /data/a");
    let by_volume = format!("volume = {name:?}");
    let by_path = format!("container = {c:?}\npath = \"/data\"");
    for state in ["running", "stopped", "gone"] {
        for lines in [&by_volume, &by_path] {
            if state == "gone" && *lines == by_path {
                continue;
            }
            let home = volume(lines);
            let (copy, manifest) = captured(&home, "data");
            assert_eq!(text(&copy.join("a")), "one", "{state}");
            assert_eq!(manifest["docker_volumes"], json!([name]), "{state}");
            assert_eq!(manifest["details"]["data"]["paused_ms"].as_u64() > Some(0), state == "running");
            assert_eq!(warnings(&manifest), "[]", "{state}");
        }
        match state {
            "running" => lab.ok(&["stop", &c]),
            _ => lab.ok(&["rm", "-f", &c]),
        };
    }
    // The guide puts it back into the directory that is meant.
    let home = volume(&by_volume);
    home.backup(0);
    std::fs::write(scratch.path("device/a"), "two").unwrap();
    std::fs::write(scratch.path("device/late"), "").unwrap();
    follow_the_guide(&home.unpack("out"), "data", &name, &name);
    assert_eq!(text(&scratch.path("device/a")), "one");
    assert!(!scratch.path("device/late").exists());

    std::fs::rename(&device, scratch.path("away")).unwrap();
    fails(&volume(&by_volume), &[&device, "which is not there"], "is its disk mounted?");
}

#[test]
fn a_directory_of_the_host_and_one_inside_a_volume() {
    let lab = Lab::new();
    let scratch = Home::new();
    let bound = scratch.at("bound");
    std::fs::create_dir(&bound).unwrap();
    let name = lab.volume("data");
    let c = sleeper(&lab, "app", &["-v", &format!("{bound}:/bound"), "-v", &format!("{name}:/data")]);
    lab.sh(&c, "mkdir -p /data/in/deep /data/beside /own/dir; for d in /bound /data/in /data/beside /own/dir; do echo $d > $d/a; done");
    for (path, volumes) in [("/bound", json!([])), ("/data/in", json!([name])), ("/own/dir", json!([]))] {
        for how in ["pause", "stop", "live"] {
            let home = volume(&format!("container = {c:?}\npath = {path:?}\nconsistency = {how:?}"));
            let (copy, manifest) = captured(&home, "data");
            assert_eq!(text(&copy.join("a")), path, "{how}");
            assert!(!copy.join("beside").exists());
            assert_eq!(manifest["docker_volumes"], volumes, "{path} {how}");
            let layer = path == "/own/dir";
            assert_eq!(
                warnings(&manifest).contains("own layer"),
                layer,
                "{path} {how}: {}",
                warnings(&manifest)
            );
        }
    }
    let home = volume(&format!("container = {c:?}\npath = \"/data/in\""));
    home.backup(0);
    lab.sh(&c, "echo new > /data/in/a; echo new > /data/beside/a; touch /data/in/late");
    follow_the_guide(&home.unpack("out"), "data", &name, &name);
    assert_eq!(lab.sh(&c, "cat /data/in/a /data/beside/a; ls /data/in"), "/data/in\nnew\na\ndeep\n");
}

#[test]
fn what_is_missing_is_said_and_nothing_is_created_by_looking() {
    let lab = Lab::new();
    let (there, gone) = (lab.volume("there"), format!("{}nothing", lab.prefix));
    let c = sleeper(&lab, "app", &["-v", &format!("{there}:/data")]);
    lab.sh(&c, "echo one > /data/a");
    let before = inventory(&lab);
    let cases = [
        (format!("type = \"volume\"\nvolume = {gone:?}"), "there is no volume", "docker volume ls"),
        (
            format!("type = \"volume\"\ncontainer = {gone:?}\npath = \"/data\""),
            "there is no container",
            "docker ps -a",
        ),
        (
            format!("type = \"volume\"\ncontainer = {gone:?}\npath = \"/data\"\nvolume = {gone:?}"),
            "there is no volume",
            "docker volume ls",
        ),
        (format!("type = \"volume\"\ncontainer = {c:?}\npath = \"/data/none\""), "/none is not there", ""),
        (format!("type = \"volume\"\ncontainer = {c:?}\npath = \"/none\""), "/none", ""),
        (
            format!("type = \"volume\"\ncontainer = {c:?}\npath = \"/none\"\nconsistency = \"live\""),
            "/none",
            "",
        ),
        (format!("type = \"volume\"\ncontainer = {c:?}\npath = \"/data/a\""), "not a directory", ""),
        (format!("type = \"chromadb\"\ncontainer = {c:?}"), "there is no chroma.sqlite3 in", "set path"),
        (format!("type = \"chromadb\"\ncontainer = {gone:?}"), "there is no container", "docker ps -a"),
        (
            format!("type = \"chromadb\"\ncontainer = {gone:?}\nvolume = {gone:?}"),
            "there is no volume",
            "docker volume ls",
        ),
        (
            format!("type = \"chromadb\"\ncontainer = {gone:?}\nvolume = {there:?}"),
            "there is no chroma.sqlite3",
            "set path",
        ),
    ];
    for (lines, reason, hint) in &cases {
        let home = home(lines);
        home.tars(&["backup", "--dry-run"]);
        assert_eq!(inventory(&lab), before, "--dry-run: {lines}");
        fails(&home, &[reason], hint);
        assert_eq!(inventory(&lab), before, "{lines}");
    }
    // A volume that is named beside a container that is gone is taken, and that is said.
    let home = volume(&format!("container = {gone:?}\npath = \"/data\"\nvolume = {there:?}"));
    let (copy, manifest) = captured(&home, "data");
    assert_eq!(text(&copy.join("a")), "one");
    assert!(warnings(&manifest).contains("took the volume"), "{}", warnings(&manifest));
    // One that is not where the data is does not count, and that is said too.
    let other = lab.volume("other");
    let home = volume(&format!("container = {c:?}\npath = \"/data\"\nvolume = {other:?}"));
    let (copy, manifest) = captured(&home, "data");
    assert_eq!(text(&copy.join("a")), "one");
    assert!(warnings(&manifest).contains("not in the volume"), "{}", warnings(&manifest));
}

#[test]
fn a_volume_that_only_the_engine_can_mount_is_read_through_it() {
    let lab = Lab::new();
    let name = volume_with(&lab, "memory", &["type=tmpfs", "device=tmpfs"]);
    let c = sleeper(&lab, "app", &["-v", &format!("{name}:/data")]);
    lab.sh(&c, "mkdir /data/in; echo one > /data/a; echo two > /data/in/b; ln -s /etc /data/link; ln -s in /data/short");
    let before = inventory(&lab);
    let by_volume = format!("volume = {name:?}");
    for lines in [by_volume.clone(), format!("container = {c:?}\npath = \"/data\"")] {
        let home = volume(&lines);
        let (copy, manifest) = captured(&home, "data");
        assert_eq!((text(&copy.join("a")), text(&copy.join("in/b"))), ("one".to_owned(), "two".to_owned()));
        assert!(warnings(&manifest).contains("read through the engine"), "{}", warnings(&manifest));
        assert!(manifest["details"]["data"]["paused_ms"].as_u64() > Some(0));
        assert_eq!(inventory(&lab), before, "the helper is gone");
    }
    let below = volume(&format!("container = {c:?}\npath = \"/data/in\""));
    assert_eq!(text(&captured(&below, "data").0.join("b")), "two");
    fails(&volume(&format!("container = {c:?}\npath = \"/data/link\"")), &["link"], "");
    assert_eq!(inventory(&lab), before);

    // Without its container it is empty, which is no success.
    lab.ok(&["rm", "-f", &c]);
    fails(&volume(&by_volume), &["is empty"], "allow_empty");
}

#[test]
fn memory_links_that_lead_out_and_empty_volumes_are_refused() {
    let lab = Lab::new();
    let (name, empty) = (lab.volume("data"), lab.volume("empty"));
    let mounts = [format!("{name}:/data"), format!("{empty}:/empty")];
    let c = sleeper(&lab, "app", &["-v", &mounts[0], "-v", &mounts[1], "--tmpfs", "/memory"]);
    lab.sh(
        &c,
        "mkdir /data/in; echo one > /data/in/a; ln -s /etc /data/link; ln -s ../../../../etc /data/up; ln -s in /data/short; touch /memory/a",
    );
    let at = |path: &str| volume(&format!("container = {c:?}\npath = {path:?}"));
    fails(&at("/memory"), &["/memory", "lies in memory"], "mount a volume there");
    fails(&at("/data/link"), &["link", "leads out of the volume"], "");
    fails(&at("/data/up"), &["up", "leads out of the volume"], "");
    fails(&at("/empty"), &["is empty"], "allow_empty");
    assert_eq!(text(&captured(&at("/data/short"), "data").0.join("a")), "one");
    // The link itself is data.
    let home = at("/data");
    let whole = captured(&home, "data").0;
    assert_eq!(std::fs::read_link(whole.join("link")).unwrap(), Path::new("/etc"));
    let allowed = volume(&format!("volume = {empty:?}\nallow_empty = true"));
    assert_eq!(std::fs::read_dir(captured(&allowed, "data").0).unwrap().count(), 0);
}

#[test]
fn mounts_inside_are_not_part_of_it_and_that_is_said() {
    let lab = Lab::new();
    let (outer, inner) = (lab.volume("outer"), lab.volume("inner"));
    let mounts = [format!("{outer}:/data"), format!("{inner}:/data/inner"), format!("{inner}:/own/inner")];
    let c = sleeper(&lab, "app", &["-v", &mounts[0], "-v", &mounts[1], "-v", &mounts[2]]);
    lab.sh(&c, "echo outer > /data/a; echo inner > /data/inner/b; echo own > /own/a");
    for (path, own) in [("/data", "outer"), ("/own", "own")] {
        for how in ["pause", "stop", "live"] {
            let home = volume(&format!("container = {c:?}\npath = {path:?}\nconsistency = {how:?}"));
            let (copy, manifest) = captured(&home, "data");
            assert_eq!(text(&copy.join("a")), own, "{path} {how}");
            let said = warnings(&manifest);
            assert!(said.contains(&format!("mounts of their own: {path}/inner")), "{path} {how}: {said}");
            assert!(!copy.join("inner/b").exists(), "{path} {how}: it is there, and the warning denies it");
        }
    }
}

#[test]
fn one_name_in_two_projects_needs_the_project() {
    let lab = Lab::new();
    let projects = [format!("{}one", lab.prefix), format!("{}two", lab.prefix)];
    let short = format!("{}data", lab.prefix.replace('-', ""));
    for project in &projects {
        let full = volume_of_project(&lab, project, &short);
        let c = sleeper(&lab, &format!("fill-{project}"), &["-v", &format!("{full}:/data")]);
        lab.sh(&c, &format!("echo {project} > /data/a"));
        lab.ok(&["rm", "-f", &c]);
    }
    let lines = format!("volume = {short:?}");
    fails(&volume(&lines), &["fits several", &format!("{}_{short}", projects[0])], "docker.project");
    for project in &projects {
        let home = Home::new()
            .source("data", &format!("type = \"volume\"\n{lines}"))
            .extra(&format!("[docker]\nproject = {project:?}"))
            .ready();
        let (copy, manifest) = captured(&home, "data");
        assert_eq!(text(&copy.join("a")), *project);
        assert_eq!(manifest["docker_volumes"], json!([format!("{project}_{short}")]));
    }
}

#[test]
fn a_link_of_the_image_to_a_volume_is_followed_to_it() {
    let lab = Lab::new();
    let name = lab.volume("data");
    let c = sleeper(&lab, "app", &["-v", &format!("{name}:/data")]);
    lab.sh(&c, "echo one > /data/a; ln -s /data /srv/app");
    for how in ["pause", "stop", "live"] {
        let home = volume(&format!("container = {c:?}\npath = \"/srv/app\"\nconsistency = {how:?}"));
        let (copy, manifest) = captured(&home, "data");
        assert_eq!(text(&copy.join("a")), "one", "{how}");
        assert_eq!(manifest["docker_volumes"], json!([name]), "{how}: {}", warnings(&manifest));
    }
}

/// Everything that a directory can hold and copies lose.
const ODD: &str = r#"cd "$1"
mkdir -p 'with space/é' empty deep/er; chmod 1777 empty; chown 1234:4321 empty; chmod 2750 deep
printf x > 'with space/é/line
break'; printf y > "$(printf 'bytes-\377')"; printf z > -n; printf w > "$(printf 'n%.0s' $(seq 1 250))"
printf 'linked twice' > first; ln first second; ln first deep/third
ln -s /nowhere dangling; ln -s "$(printf 'l%.0s' $(seq 1 200))" long
mkfifo fifo; printf end | dd of=sparse bs=1 seek=9000000 conv=notrunc status=none; truncate -s 12M sparse
printf s > setuid; chown 65534:65534 setuid; chmod 4755 setuid
printf a > attributes; python3 -c 'import os
os.setxattr("attributes", "user.note", b"a\0b"); os.setxattr("attributes", "user.empty", b"")
import socket; socket.socket(socket.AF_UNIX).bind("socket")'
touch -d '1999-12-31 23:59:59.123456789' first 'with space'; touch -d '1901-12-14' attributes
"#;

/// Kind, mode, owner, size and link target of everything below; with nanosecond times where `times`.
fn portrait(dir: &Path, times: bool) -> String {
    let time = if times { "%T@" } else { "" };
    let line =
        format!("cd '{}'; find . ! -type s -printf '%P %y %m %U:%G %s %l {time}\\n' | sort", dir.display());
    // The size of a directory is its file system's own business.
    sh(&format!("{{ {line}; }} | sed -E 's/^(.* d [0-7]+ [0-9]+:[0-9]+) [0-9]+/\\1/'"))
}

#[test]
fn odd_files_of_a_volume_are_as_gnu_tar_sees_them() {
    let lab = Lab::new();
    let name = lab.volume("odd");
    let real = PathBuf::from(lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &name]).trim());
    run("bash", &["-euc", ODD, "-", &real.display().to_string()]).expect(0);
    let home = volume(&format!("volume = {name:?}"));
    home.backup(0);
    verify_deep(&home);
    let member = home.unpack("out").join("data.tar.gz");
    let compare =
        format!("tar --compare --xattrs --numeric-owner -f '{}' -C '{}'", member.display(), real.display());
    assert_eq!(sh(&compare), "");
    let (copy, into) = (home.path("copy"), home.at("copy"));
    std::fs::create_dir(&copy).unwrap();
    sh(&format!(
        "tar --numeric-owner --xattrs --xattrs-include='*' -xpf '{}' -C '{into}'
         [ $(stat -c %b '{into}/sparse') -lt 100 ]; [ $(stat -c %h '{into}/first') = 3 ]",
        member.display()
    ));
    assert_eq!(portrait(&copy, true), portrait(&real, true));
    let attributes =
        "import os, sys; print(sorted((n, os.getxattr(sys.argv[1], n)) for n in os.listxattr(sys.argv[1])))";
    let of = |dir: &Path| {
        run("python3", &["-c", attributes, &dir.join("attributes").display().to_string()]).stdout
    };
    assert_eq!(of(&copy), of(&real));
    assert!(of(&copy).contains("user.note"));
    let manifest = home.manifest();
    assert!(warnings(&manifest).contains("socket"), "{}", warnings(&manifest));

    // The same directory where only the engine can read it. An overlay has the same content, and no path of ours.
    let options = format!("o=lowerdir={}:{}", real.display(), home.at("docs"));
    std::fs::remove_file(home.path("docs/a.txt")).unwrap();
    let engine = volume_with(&lab, "overlay", &["type=overlay", "device=overlay", &options]);
    let home = volume(&format!("volume = {engine:?}"));
    let (copy, manifest) = captured(&home, "data");
    assert_eq!(portrait(&copy, false), portrait(&real, false));
    sh(&format!(
        "cmp '{0}/sparse' '{1}/sparse'; cmp '{0}/second' '{1}/first'",
        copy.display(),
        real.display()
    ));
    let times = "find . -type f -printf '%P %T@\\n' | sed -E 's/[.][0-9]+$//' | sort";
    let seconds = |dir: &Path| sh(&format!("cd '{}'; {times}", dir.display()));
    assert_eq!(seconds(&copy), seconds(&real));
    let said = warnings(&manifest);
    for lost in ["extended attributes", "sockets", "holes", "fractions of seconds"] {
        assert!(said.contains(lost), "{lost:?} is not in {said}");
    }
}

#[test]
fn a_volume_without_a_directory_comes_back_by_the_guide_alone() {
    let lab = Lab::new();
    let scratch = Home::new();
    for dir in ["lower", "upper", "work"] {
        std::fs::create_dir(scratch.path(dir)).unwrap();
    }
    let at = |dir: &str| scratch.at(dir);
    let options = format!("o=lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let name = volume_with(&lab, "disk", &["type=overlay", "device=overlay", &options]);
    let c = sleeper(&lab, "app", &["-v", &format!("{name}:/data")]);
    let fill = "cd /data; mkdir in; echo one > in/a; echo two > b; ln b c; ln -s /etc link; chown 7:8 in; chmod 750 in";
    lab.sh(&c, fill);
    let seen = |c: &str| lab.sh(c, "cd /data; find . -printf '%P %m %U:%G %n %l\\n' | sort; cat in/a b");
    let before = seen(&c);
    for lines in [format!("volume = {name:?}"), format!("container = {c:?}\npath = \"/data\"")] {
        let home = volume(&lines);
        home.backup(0);
        lab.sh(&c, "cd /data; echo new > in/a; rm b; touch late .hidden");
        follow_the_guide(&home.unpack("out"), "data", &name, &name);
        assert_eq!(seen(&c), before);
    }
    let home = volume(&format!("container = {c:?}\npath = \"/data/in\""));
    home.backup(0);
    lab.sh(&c, "rm /data/in/a /data/c; touch /data/late");
    follow_the_guide(&home.unpack("out"), "data", &name, &name);
    assert_eq!(lab.sh(&c, "cat /data/in/a; ls /data"), "one\nb\nin\nlate\nlink\n");
}

#[test]
fn a_server_of_chroma_comes_back_by_the_guide_alone() {
    let lab = Lab::new();
    let name = lab.volume("chroma_data");
    let server =
        lab.chroma(CHROMA, "chroma", Some(&format!("{name}:/chroma/chroma")), Some("/chroma/chroma"));
    lab.chroma_py(&server, &["hammer", "1"]);
    let [dump, nearest] = lab.chroma_holds(&server);
    let home = home(&source("chromadb", &server, ""));
    home.backup(0);
    lab.chroma_py(&server, &["clear"]);
    assert!(lab.chroma_holds(&server)[0] != dump, "nothing to take back");
    lab.chroma_py(&server, &["hammer", "0.2"]);
    follow_the_guide(&home.unpack("out"), "data", &name, &name);
    lab.await_chroma(&server);
    assert!(lab.chroma_holds(&server) == [dump, nearest], "the server holds something else");
}
