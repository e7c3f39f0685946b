//! Directory trees as they really are: everything that a file system can hold comes back with stock tar; what changes,
//! vanishes or cannot be read while it is captured is told, and never breaks the archive. Needs root.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Home, describe, make_odd, sh};

fn docs(home: &Home) -> std::path::PathBuf {
    home.path("docs")
}

#[test]
fn an_odd_tree_comes_back_with_stock_tar() {
    let home = Home::new().documents();
    make_odd(&docs(&home));
    let home = home.ready();
    let outcome = home.backup(0);
    let warnings = outcome["components"][0]["warnings"].to_string();
    assert!(warnings.contains("sock (socket)") && warnings.contains("null (character device)"), "{warnings}");
    home.tars(&["verify", "--latest", "--deep"]).expect(0);

    let dir = home.unpack("out");
    let archive = dir.join("documents.tar.gz");
    sh(&format!("gunzip -t '{}'", archive.display()));
    let back = home.path("back");
    std::fs::create_dir(&back).unwrap();
    let tar = format!("tar --numeric-owner --xattrs --xattrs-include='*' -p -f '{}'", archive.display());
    sh(&format!("{tar} -xz -C '{}'", back.display()));
    sh(&format!("{tar} --compare -z -C '{}'", docs(&home).display()));

    for gone in ["sock", "null"] {
        std::fs::remove_file(docs(&home).join(gone)).unwrap();
    }
    // Removing them has touched the root.
    sh(&format!("touch -d '2011-01-01 00:00:00.987654321 UTC' '{}'", docs(&home).display()));
    assert_eq!(describe(&back), describe(&docs(&home)));
    sh(&format!("diff -r --no-dereference '{}' '{}' -x fifo", back.display(), docs(&home).display()));
    let meta = |p: &str| std::fs::metadata(back.join(p)).unwrap();
    assert_eq!(meta("plain").ino(), meta("sub/hard").ino());
    assert_eq!(meta("plain").ino(), meta("zz-hard").ino());
    assert!(meta("sparse").blocks() * 512 < 1_000_000, "holes came back as data");
    assert_eq!(
        sh(&format!("getfattr --only-values -n user.colour '{}'", back.join("plain").display())),
        "rot=1%"
    );
    assert_eq!(
        sh(&format!("cd '{}' && getfacl -np plain sub", back.display())),
        sh(&format!("cd '{}' && getfacl -np plain sub", docs(&home).display()))
    );
    // The same by --acls alone, which many people type.
    let acls = home.path("acls");
    std::fs::create_dir(&acls).unwrap();
    sh(&format!("tar --acls --numeric-owner -xpzf '{}' -C '{}'", archive.display(), acls.display()));
    assert_eq!(
        sh(&format!("cd '{}' && getfacl -np plain sub", acls.display())),
        sh(&format!("cd '{}' && getfacl -np plain sub", docs(&home).display()))
    );
}

#[test]
fn every_compression_opens_with_its_stock_tool() {
    for (method, suffix, tool) in
        [("zstd", ".tar.zst", "zstd -dc"), ("none", ".tar", "cat"), ("gzip", ".tar.gz", "gunzip -c")]
    {
        let home = Home::new().documents().extra(&format!("[archive]\ncompression = \"{method}\"")).ready();
        sh(&format!("cp -r /usr/include '{}'", docs(&home).join("include").display()));
        home.backup(0);
        home.tars(&["verify", "--latest", "--deep"]).expect(0);
        let member = home.unpack("out").join(format!("documents{suffix}"));
        sh(&format!("{tool} '{}' | tar --compare -f - -C '{}'", member.display(), docs(&home).display()));
    }
}

#[test]
fn files_that_grow_shrink_and_vanish_never_break_the_archive() {
    let home = Home::new().documents().ready();
    let root = docs(&home);
    for i in 0..300 {
        std::fs::write(root.join(format!("stable-{i:03}")), vec![b's'; 20_000]).unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (root, stop) = (root.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                std::fs::write(root.join("log-grows"), vec![b'g'; 100_000 + (n as usize % 50) * 10_000])
                    .unwrap();
                let f = std::fs::File::create(root.join("log-shrinks")).unwrap();
                f.set_len(3_000_000 - (n % 30) * 100_000).unwrap();
                let temp = root.join(format!("temp-{}", n % 3));
                std::fs::write(&temp, "short lived").unwrap();
                std::fs::remove_file(&temp).unwrap();
                n += 1;
            }
        })
    };
    for _ in 0..10 {
        home.backup(0);
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    home.tars(&["verify", "--all", "--deep"]).expect(0);
    for name in home.committed() {
        let archive = home.at(&format!("store/daily/{name}.tar.gz"));
        sh(&format!("tar -xzOf '{archive}' '{name}/documents.tar.gz' | tar -tzf - >/dev/null"));
    }
}

#[test]
fn a_file_that_shrinks_under_the_reader_is_filled_and_told() {
    // A file in /proc claims no size; one on FUSE is not to be had everywhere. A slow disk is played by size: the file
    // is cut as soon as the capture has begun, long before its end is reached.
    let home = Home::new().documents().ready();
    let big = docs(&home).join("big");
    sh(&format!("head -c 400000000 /dev/urandom > '{}'", big.display()));
    let run = home.spawn(&["backup"]);
    home.wait_for_staging();
    std::fs::OpenOptions::new().write(true).open(&big).unwrap().set_len(1_000).unwrap();
    let done = run.end().expect(0);
    assert!(done.stderr.contains("changed size while being read: big"), "{}", done.stderr);
    home.tars(&["verify", "--latest", "--deep"]).expect(0);
    assert!(home.manifest()["details"]["documents"]["warnings"][0].as_str().unwrap().contains("big"));
}

#[test]
fn a_tree_of_which_much_vanishes_is_a_failure() {
    let home = Home::new().documents().ready();
    let root = docs(&home);
    std::fs::create_dir(root.join("aaa")).unwrap();
    sh(&format!("head -c 300000000 /dev/urandom > '{}'", root.join("aaa/big").display()));
    std::fs::create_dir(root.join("zzz")).unwrap();
    for i in 0..1000 {
        std::fs::write(root.join(format!("name-{i}")), "x").unwrap();
    }
    let run = home.spawn(&["backup"]);
    home.wait_for_staging();
    for i in 0..900 {
        std::fs::remove_file(root.join(format!("name-{i}"))).unwrap();
    }
    let done = run.end().expect(1);
    assert!(done.stderr.contains("vanished while it was read"), "{}", done.stderr);
    home.assert_nothing_left();
}

#[test]
fn a_root_that_is_replaced_mounted_over_or_gone_is_a_failure() {
    for trick in ["mv 'D' 'D.old' && mkdir 'D' && touch 'D/other'", "mount -t tmpfs t 'D'", "mv 'D' 'D.old'"]
    {
        let home = Home::new().documents().ready();
        sh(&format!("head -c 300000000 /dev/urandom > '{}'", docs(&home).join("big").display()));
        let run = home.spawn(&["backup"]);
        home.wait_for_staging();
        sh(&trick.replace('D', &home.at("docs")));
        let done = run.end();
        if trick.starts_with("mount") {
            sh(&format!("umount '{}'", home.at("docs")));
        }
        done.expect(1).says("was replaced, unmounted or mounted over");
        home.assert_nothing_left();
    }
}

#[test]
fn another_file_system_inside_is_a_failure_unless_allowed_or_excluded() {
    let home = Home::new().documents().ready();
    let inner = docs(&home).join("inner");
    std::fs::create_dir(&inner).unwrap();
    sh(&format!("mount -t tmpfs t '{0}' && echo data > '{0}/file'", inner.display()));
    let refused = home.tars(&["backup"]);
    let lines = format!("type = \"directory\"\npath = \"{}\"\ncross_mounts = true", home.at("docs"));
    let crossing = Home::new().source("documents", &lines).ready();
    let taken = crossing.tars(&["backup"]);
    let lines = format!("type = \"directory\"\npath = \"{}\"\nexclude = [\"inner\"]", home.at("docs"));
    let excluding = Home::new().source("documents", &lines).ready();
    let left_out = excluding.tars(&["backup"]);
    sh(&format!("umount '{}'", inner.display()));
    refused.expect(1).says("another file system is mounted at").says("cross_mounts = true");
    taken.expect(0);
    left_out.expect(0);
    let listing = sh(&format!("tar -tzf '{}'", crossing.unpack("out").join("documents.tar.gz").display()));
    assert!(listing.contains("./inner/file"), "{listing}");
    let listing = sh(&format!("tar -tzf '{}'", excluding.unpack("out").join("documents.tar.gz").display()));
    assert!(!listing.contains("inner"), "{listing}");
}

/// Excluded, as the hint says, it cannot be taken over; taken along, it would go with the old files.
#[test]
fn a_directory_is_not_restored_as_long_as_another_file_system_is_mounted_inside() {
    for more in ["exclude = [\"in ner\"]", "cross_mounts = true"] {
        let home = Home::new().documents();
        let lines = format!("type = \"directory\"\npath = \"{}\"\n{more}", home.at("docs"));
        let home = home.only_source("documents", &lines).ready();
        let inner = docs(&home).join("in ner");
        std::fs::create_dir(&inner).unwrap();
        sh(&format!("mount -t tmpfs t '{0}' && echo data > '{0}/file'", inner.display()));
        home.backup(0);
        std::fs::write(home.path("docs/a.txt"), "changed\n").unwrap();
        let before = describe(&docs(&home));
        let shown = home.tars(&["restore", "--latest", "--dry-run"]);
        let done = home.tars(&["restore", "--latest", "--yes"]);
        let after = describe(&docs(&home));
        let still = sh(&format!("cat '{}/file'; ls -A '{}'", inner.display(), home.root().display()));
        sh(&format!("umount '{}'", inner.display()));
        for told in [shown, done] {
            let at = format!("another file system is mounted at {}", inner.display());
            told.expect(1).says(&at).says("umount ").says("--to DIR");
        }
        assert_eq!(after, before, "{more}");
        assert!(still.starts_with("data\n") && !still.contains(".tars-restore"), "{still}");
        home.tars(&["restore", "--latest", "--yes"]).expect(0);
        assert_eq!(std::fs::read_to_string(home.path("docs/a.txt")).unwrap(), "hello\n");
    }
}

#[test]
fn an_empty_or_missing_or_unmounted_directory_is_a_failure() {
    let home = Home::new();
    std::fs::create_dir(home.path("empty")).unwrap();
    let dir = |extra: &str| format!("type = \"directory\"\npath = \"{}\"\n{extra}", home.at("empty"));
    let try_it = |lines: &str| Home::new().source("documents", lines).ready().tars(&["backup"]);
    try_it(&dir("")).expect(1).says("is empty").says("allow_empty = true");
    try_it(&dir("allow_empty = true")).expect(0);
    try_it(&dir("require_mount = true\nallow_empty = true")).expect(1).says("nothing is mounted at");
    try_it("type = \"directory\"\npath = \"/nonexistent/x\"").expect(1).says("is not there");
}

#[test]
fn what_cannot_be_read_makes_the_component_incomplete_and_the_rest_is_kept() {
    let home = Home::new().documents();
    std::fs::write(home.path("docs/secret"), "not for everybody").unwrap();
    std::fs::create_dir(home.path("docs/closed")).unwrap();
    std::fs::set_permissions(home.path("docs/secret"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(home.path("docs/closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    home.write_config();
    // Root reads everything, so the program runs as somebody else here.
    let program = home.at("tars-backup");
    sh(&format!(
        "cp '{}' '{program}'; chmod 755 '{program}'; chown -R 65534:65534 '{}'",
        support::PROGRAM,
        home.root().display()
    ));
    let as_nobody = |args: &[&str]| {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", &program, "--config"])
            .arg(home.path("config.toml"))
            .args(args)
            .output()
            .unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(as_nobody(&["store", "init", "nas"]).0, 0);
    let (code, stderr) = as_nobody(&["backup"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("documents is incomplete: unreadable:"), "{stderr}");
    let manifest = home.manifest();
    assert_eq!(manifest["state"], "partial");
    assert_eq!(manifest["failed_components"][0], "documents");
    assert_eq!(manifest["details"]["documents"]["state"], "incomplete");
    let error = manifest["details"]["documents"]["error"].as_str().unwrap();
    assert!(error.contains("secret") && error.contains("closed"), "{error}");
    let listing = sh(&format!("tar -tzf '{}'", home.unpack("out").join("documents.tar.gz").display()));
    assert!(listing.contains("./a.txt"), "{listing}");
    home.tars(&["verify", &home.only(), "--deep"]).expect(1).says("critical component documents");
}

#[test]
fn an_inventory_counts_and_tells_what_changed() {
    let home = Home::new();
    std::fs::create_dir(home.path("docs")).unwrap();
    std::fs::write(home.path("docs/a"), "12345").unwrap();
    let path = home.at("docs");
    let home = home
        .source("documents", &format!("type = \"directory\"\nmode = \"inventory\"\npath = \"{path}\""))
        .ready();
    home.backup(0);
    let facts = home.manifest()["details"]["documents"]["facts"].clone();
    assert_eq!((facts["files"].as_u64(), facts["bytes"].as_u64()), (Some(1), Some(5)));
    assert!(facts["digest"].as_str().unwrap().starts_with("sha256:"));
    let again = home.backup(0);
    assert_eq!(again["components"][0]["warnings"].as_array().unwrap().len(), 0);
    std::fs::write(home.path("docs/b"), "more").unwrap();
    let third = home.backup(0);
    assert!(
        third["components"][0]["warnings"][0]
            .as_str()
            .unwrap()
            .contains("1 files, 5 bytes then; 2 files, 9 bytes now")
    );
    home.tars(&["verify", "--all", "--deep"]).expect(0);
}

#[test]
fn our_own_directories_and_excluded_names_stay_out() {
    let home = Home::new();
    let root = home.root().display().to_string();
    let lines = format!(
        "type = \"directory\"\npath = \"{root}\"\nexclude = [\"*.tmp\", \"/cache/**\", \"deep/skip\"]"
    );
    for (name, text) in [("x.tmp", "1"), ("keep.txt", "2")] {
        std::fs::write(home.path(name), text).unwrap();
    }
    for dir in ["cache/sub", "deep/skip", "deep/keep/cache"] {
        std::fs::create_dir_all(home.path(dir)).unwrap();
        std::fs::write(home.path(dir).join("f"), "f").unwrap();
    }
    std::fs::write(home.path("deep/y.tmp"), "3").unwrap();
    let home = home.source("documents", &lines).ready();
    home.backup(0);
    let listing = sh(&format!("tar -tzf '{}'", home.unpack("out").join("documents.tar.gz").display()));
    // A directory named on the command line is no place to read from either.
    home.tars(&["backup", "--output-dir", &home.at("stick")]).expect(0);
    home.tars(&["backup", "--output-dir", &home.at("stick")]).expect(0);
    let second = sh(&format!("ls '{}'/*.tar.gz | tail -n 1", home.at("stick")));
    let inside = sh(&format!("tar -xzOf {} --wildcards '*/documents.tar.gz' | tar -tzf -", second.trim()));
    assert!(!inside.contains("./stick"), "{inside}");
    for absent in ["tmp", "./cache/sub", "skip", "./state/", "./run/", "./store"] {
        assert!(!listing.lines().any(|l| l.contains(absent)), "{absent} in\n{listing}");
    }
    for present in ["./keep.txt", "./deep/keep/cache/f", "./cache/"] {
        assert!(listing.lines().any(|l| l == present), "{present} not in\n{listing}");
    }
}
