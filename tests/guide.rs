//! `RESTORE.md` alone brings everything back: an archive, its guide, and stock tools, when all else is destroyed. Needs
//! root.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;

use support::{Done, Home, commands_of, describe, make_odd, run, sh};

/// Attributes and access lists of everything, in the order of names.
fn attributes(dir: &Path) -> String {
    sh(&format!(
        "cd '{}'; getfattr -dhR -m - -e hex . 2>/dev/null; getfacl -Rnp . 2>/dev/null",
        dir.display()
    ))
}

const DATABASE: &str = "
import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.execute('PRAGMA journal_mode=WAL')
c.execute('CREATE TABLE t(v)')
c.executemany('INSERT INTO t VALUES (?)', [(1,), ('two',), (None,), (b'\\0x',)])
c.commit()";

/// Makes all mounts but `$1` read-only for `$2`.
const ALONE: &str = r#"
mount --bind "$1" "$1"
findmnt -rno TARGET | while read -r at; do
    case $at in
        "$1" | /proc* | /sys* | /dev | /dev/pts | /dev/mqueue) ;;
        *) mount -o remount,bind,ro "$at" ;;
    esac
done
[ ! -w / ]
[ ! -w /tmp ]
cd "$1"
HOME=$1/nobody exec bash -euo pipefail -c "$2""#;

/// Runs the commands of a guide where nothing but `home` can be written: a path that is not quoted well makes commands
/// of its own, and these run as root.
fn follow(home: &Home, script: &str) -> Done {
    let at = home.root().display().to_string();
    run("unshare", &["--mount", "bash", "-euo", "pipefail", "-c", ALONE, "-", &at, script])
}

#[test]
fn the_commands_of_the_guide_bring_back_all_that_was_destroyed() {
    let home = Home::new();
    // Names that a shell takes apart; the test itself reaches them by links.
    let place = home.path("it's $ODD \"here\"");
    let (docs, db, env) =
        (place.join("my `docs` ; * $(docs)"), place.join("app's.db"), place.join("app.env"));
    std::fs::create_dir_all(home.path("docs")).unwrap();
    make_odd(&home.path("docs"));
    std::fs::create_dir(&place).unwrap();
    std::fs::rename(home.path("docs"), &docs).unwrap();
    let (p, d, b) = (home.at("p"), home.path("d"), home.at("p/app'\\''s.db"));
    symlink(&place, &p).unwrap();
    symlink(&docs, &d).unwrap();
    run("python3", &["-c", DATABASE, db.to_str().unwrap()]).expect(0);
    let age = "touch -d '2012-12-12 12:12:12.5 UTC' .";
    sh(&format!(
        "chmod 640 '{b}'; chown 12:34 '{b}'; cd '{p}'; printf 'PORT=80\\nPASSWORD=correct-horse-battery\\n' > app.env; \
         chmod 600 app.env; cd '{}'; rm sock null; mkdir -p cache/deep; echo c > cache/deep/c; {age}",
        d.display()
    ));
    let toml = |path: &Path| format!("{:?}", path.display().to_string());
    let home = home
        .source("documents", &format!("type = \"directory\"\npath = {}\nexclude = [\"cache\"]", toml(&docs)))
        .source("app", &format!("type = \"sqlite\"\npath = {}", toml(&db)))
        .source("configuration", &format!("type = \"config_files\"\nfiles = [{}]", toml(&env)))
        .ready();
    home.backup(0);
    sh(&format!("cd '{}'; rm -r cache; {age}", d.display()));
    let dump =
        format!("sqlite3 '{b}' 'PRAGMA journal_mode; SELECT quote(v) FROM t'; stat -c '%a %u %g' '{b}'");
    let before = (describe(&d.join(".")), attributes(&d), sh(&dump));

    // All that is left is one archive with its checksum.
    let (name, rescue) = (home.only(), home.at("rescue"));
    let store = home.at("store");
    sh(&format!(
        "mkdir '{rescue}'; cp '{store}/daily/{name}'.tar.gz* '{rescue}'; rm -rf '{store}'; rm -rf '{p}/'*"
    ));
    let guide = sh(&format!("tar -xzOf '{rescue}/{name}.tar.gz' '{name}/RESTORE.md'"));
    let script = format!("cd '{rescue}'\n{}", commands_of(&guide).concat());
    for there in ["nothing", "other data"] {
        let done = follow(&home, &script);
        assert_eq!(done.code, 0, "{script}\n{}{}", done.stdout, done.stderr);
        assert!(done.stdout.contains(&format!("{name}.tar.gz: OK")), "{}", done.stdout);
        assert!(done.stdout.lines().any(|l| l == "ok"), "{}", done.stdout);
        assert_eq!(describe(&d.join(".")), before.0, "{there}");
        assert_eq!(attributes(&d), before.1, "{there}");
        assert_eq!(sh(&dump), before.2, "{there}");
        if there == "nothing" {
            sh(&format!(
                "cd '{}'; find . -mindepth 1 -delete; rm -r ../*.before; echo late > late",
                d.display()
            ));
            sh(&format!("sqlite3 '{b}' 'DELETE FROM t'; rm -r '{rescue}/{name}'"));
        }
    }
    // What was there is kept.
    sh(&format!("ln -s '{}'.before '{}'", docs.display().to_string().replace('\'', "'\\''"), home.at("o")));
    let kept = sh(&format!("cat '{}/late'; sqlite3 '{b}.old' 'SELECT count(*) FROM t'", home.at("o")));
    assert_eq!(kept, "late\n0\n");
    assert!(guide.contains("set aside: `cache`"), "{guide}");

    // Of the configuration it says where each file belongs, and nothing secret.
    let inventory = std::fs::read_to_string(format!("{rescue}/{name}/config/INVENTORY.txt")).unwrap();
    let line = inventory.lines().find(|l| l.starts_with(env.to_str().unwrap())).unwrap();
    let fields: Vec<&str> = line.split('\t').collect();
    assert_eq!(fields[1..5], ["0600", "0", "0", "39"], "{inventory}");
    let kept = std::fs::read_to_string(format!("{rescue}/{name}/{}", fields[6])).unwrap();
    assert!(kept.contains("PORT=80") && !kept.contains("correct-horse"), "{kept}");
}
