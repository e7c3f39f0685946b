//! Backups that were made by somebody who can write to the store, and are consistent: every digest fits. Whatever they
//! hold, the commands end as they say they do, change nothing but what they were asked for, and bring a component back
//! wholly or not at all. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/hostile.rs"]
mod hostile;
mod support;

use std::io::{Read, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use hostile::{Dice, Thing, Tree};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Done, Home, sh};
use tars_backup::archive::unpack::{Limits, survey};
use tars_backup::cancel::Cancel;

/// In every wicked name that has a line break: a line that begins with it was forged.
const FORGED: &str = "FORGED";

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    MultiGzDecoder::new(bytes).read_to_end(&mut out).unwrap();
    out
}

/// A member of the outer archive.
#[derive(Clone)]
struct Member {
    name: Vec<u8>,
    flag: u8,
    link: Vec<u8>,
    content: Vec<u8>,
}

impl Member {
    fn file(name: impl Into<Vec<u8>>, content: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), flag: b'0', link: Vec::new(), content: content.into() }
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut put = |name: &[u8], flag, content: &[u8], link: &[u8]| {
            tar.extend(hostile::header(name, flag, content.len() as u64, link, [0o644, 0, 0, 1]));
            tar.extend(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        };
        if self.name.len() > 100 {
            put(b"././@LongLink", b'L', &[&self.name[..], b"\0"].concat(), b"");
        }
        put(&self.name, self.flag, &self.content, &self.link);
    }
}

/// A backup as it will lie in the store.
#[derive(Clone)]
struct Backup {
    name: String,
    /// Members of the outer archive besides `manifest.json`, under their whole names.
    members: Vec<Member>,
    manifest: Value,
}

/// What lies in the store.
struct Objects {
    archive: Vec<u8>,
    sums: Vec<u8>,
    manifest: Option<Vec<u8>>,
}

impl Backup {
    fn path(&self, member: &str) -> Vec<u8> {
        format!("{}/{member}", self.name).into_bytes()
    }

    fn content(&mut self, member: &str) -> &mut Vec<u8> {
        let path = self.path(member);
        &mut self.members.iter_mut().find(|m| m.name == path).unwrap().content
    }

    /// Replaces a member, and what the manifest says of its bytes.
    fn replace(&mut self, component: &str, member: &str, content: Vec<u8>) {
        self.manifest["checksums"][member] = json!(format!("sha256:{}", sha256(&content)));
        self.manifest["details"][component]["bytes_stored"] = json!(content.len());
        *self.content(member) = content;
    }

    fn tar(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        let inner = serde_json::to_vec_pretty(&self.manifest).unwrap();
        Member::file(self.path("manifest.json"), inner).write(&mut tar);
        self.members.iter().for_each(|m| m.write(&mut tar));
        tar.extend([0; 1024]);
        tar
    }

    fn seal(&self) -> Objects {
        self.seal_archive(gzip(&self.tar()))
    }

    /// Small files that fit the archive.
    fn seal_archive(&self, archive: Vec<u8>) -> Objects {
        let digest = sha256(&archive);
        let mut manifest = self.manifest.clone();
        // What the manifest says of the archive may be a lie already.
        for (key, value) in [("bytes", json!(archive.len())), ("sha256", json!(digest))] {
            if manifest.get(key).is_none() {
                manifest[key] = value;
            }
        }
        manifest["manifest_sha256"] = json!("");
        let open = serde_json::to_string_pretty(&manifest).unwrap();
        let field = "\"manifest_sha256\": \"";
        let manifest = open.replace(field, &format!("{field}{}", sha256(open.as_bytes())));
        let sums = format!("{digest}  {}.tar.gz\n", self.name);
        Objects { archive, sums: sums.into_bytes(), manifest: Some(manifest.into_bytes()) }
    }
}

/// Live data, something precious around it, and a good backup to make bad ones of.
struct World {
    home: Home,
    good: Backup,
    old: Tree,
    /// Everything else in the home.
    around: Tree,
}

impl World {
    fn new() -> Self {
        let home = Home::in_memory();
        sh(&format!(
            "mkdir -p '{0}/sentinel/a' '{0}/etc' '{0}/docs/a' '{1}'; cd '{0}'; echo precious > sentinel/file; \
             ln -s file sentinel/link; echo root > etc/passwd; echo new > docs/n.txt; echo kept > docs/a/kept; \
             printf 'PORT=80\\nPASSWORD=correct-horse\\n' > app.env; mkdir more; echo more > more/m.txt
             sqlite3 app.sqlite3 'CREATE TABLE t(v); INSERT INTO t VALUES (1),(2)'",
            home.at("area"),
            home.at("tmp")
        ));
        let (docs, more) = (home.at("area/docs"), home.at("area/more"));
        let (db, env) = (home.at("area/app.sqlite3"), home.at("area/app.env"));
        let temporary = home.at("tmp");
        let home = home
            .source("documents", &format!("type = \"directory\"\npath = \"{docs}\"\nexclude = [\"a/kept\"]"))
            .source("more", &format!("type = \"directory\"\npath = \"{more}\""))
            .source("app", &format!("type = \"sqlite\"\npath = \"{db}\""))
            .source("configuration", &format!("type = \"config_files\"\nfiles = [\"{env}\"]"))
            .env("TMPDIR", &temporary)
            .ready();
        home.backup(0);
        home.tars(&["restore", "--latest", "--yes", "--no-safety-backup", "--restore-config"]).expect(0);
        let name = home.only();
        let mut manifest = home.manifest();
        for field in ["bytes", "sha256", "manifest_sha256"] {
            manifest.as_object_mut().unwrap().remove(field);
        }
        let tar = gunzip(&std::fs::read(home.object(".tar.gz")).unwrap());
        let mut members = Vec::new();
        for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path_bytes().into_owned();
            if entry.header().entry_type().is_file() && !path.ends_with(b"/manifest.json") {
                members.push(Member::file(path, content));
            }
        }
        sh(&format!(
            "cd '{}'; sqlite3 app.sqlite3 'DELETE FROM t; INSERT INTO t VALUES (99)'; cp app.sqlite3 ../app.old",
            home.at("area")
        ));
        let mut world =
            Self { home, good: Backup { name, members, manifest }, old: Tree::new(), around: Tree::new() };
        world.lay_old();
        world.old = hostile::look(&world.home.path("area/docs"));
        world.around = world.look_around();
        world
    }

    fn docs(&self) -> PathBuf {
        self.home.path("area/docs")
    }

    /// The live data as it was before any restore.
    fn lay_old(&self) {
        let (docs, area) = (self.docs(), self.home.path("area"));
        let _ = std::fs::remove_dir_all(&docs);
        std::fs::create_dir_all(docs.join("a")).unwrap();
        std::fs::write(docs.join("a/kept"), "kept\n").unwrap();
        std::fs::write(docs.join("old.txt"), "old\n").unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000);
        for path in ["old.txt", "a/kept", "a", "."] {
            std::fs::File::open(docs.join(path)).unwrap().set_modified(time).unwrap();
        }
        std::fs::write(area.join("more/m.txt"), "more\n").unwrap();
        std::fs::copy(self.home.path("app.old"), area.join("app.sqlite3")).unwrap();
    }

    /// Everything below the home but the store and the live data. Times count where we do not work ourselves.
    fn look_around(&self) -> Tree {
        let ours: [&[u8]; 5] =
            [b"store/", b"area/docs/", b"area/more/", b"area/app.sqlite3", b"area/app.env.reference"];
        let mut tree = hostile::look(self.home.root());
        // In the lock stands who had it last.
        tree.retain(|path, _| !ours.iter().any(|o| path.starts_with(o)) && path != b"run/lock");
        for (path, item) in &mut tree {
            if !(path.starts_with(b"area/sentinel") || path.starts_with(b"area/etc")) {
                item.numbers.3 = None;
            }
            if path == b"area/docs" || path == b"area/more" {
                item.numbers = (0, 0, 0, None);
            }
        }
        tree
    }

    fn rows(&self, path: &Path) -> String {
        let db = rusqlite::Connection::open(path).unwrap();
        db.query_row("SELECT group_concat(v) FROM t", [], |r| r.get(0)).unwrap()
    }

    fn store(&self, objects: &Objects) {
        let dir = self.home.path("store/daily");
        std::fs::remove_dir_all(&dir).unwrap();
        std::fs::create_dir(&dir).unwrap();
        let put = |suffix: &str, bytes: &[u8]| {
            std::fs::write(dir.join(format!("{}{suffix}", self.good.name)), bytes).unwrap();
        };
        put(".tar.gz", &objects.archive);
        put(".tar.gz.sha256", &objects.sums);
        if let Some(manifest) = &objects.manifest {
            put(".manifest.json", manifest);
        }
    }

    /// Runs the program; whatever is stored, it must end in one of these ways and say so in good order.
    #[track_caller]
    fn run(&self, why: &str, args: &[&str], codes: &[i32]) -> Done {
        let done = self.home.tars(args);
        let all = format!("{}{}", done.stdout, done.stderr);
        let told =
            || format!("{why}: {args:?} ended with {}:\n{:?}\n{:?}", done.code, done.stdout, done.stderr);
        assert!(codes.contains(&done.code), "{}", told());
        assert!(!all.contains("panicked"), "{}", told());
        assert!(!all.contains(|c: char| c.is_control() && c != '\n' && c != '\t'), "{}", told());
        assert!(!all.lines().any(|l| l.trim_start().starts_with(FORGED)), "{}", told());
        assert!(all.len() < 200_000, "{}", told());
        assert!(self.look_around() == self.around, "{}\n{}", told(), self.difference());
        done
    }

    fn difference(&self) -> String {
        let now = self.look_around();
        let lines = |a: &Tree, b: &Tree, sign: &str| {
            a.iter()
                .filter(|(path, item)| b.get(*path) != Some(item))
                .map(|(path, item)| format!("{sign} {:?} {item:?}\n", String::from_utf8_lossy(path)))
                .collect::<String>()
        };
        lines(&self.around, &now, "-") + &lines(&now, &self.around, "+")
    }
}

/// What `docs` may be after it was restored from this tar; what the source leaves out is taken over from the old data.
fn expected(tar: &[u8], old: Option<&Tree>) -> Option<Tree> {
    let mut tree = hostile::model(tar)?;
    let Some(old) = old else { return Some(tree) };
    for kept in [&b"a"[..], b"a/kept"] {
        let item = old[kept].clone();
        match tree.get(kept) {
            None => drop(tree.insert(kept.to_vec(), item)),
            Some(there) if kept == b"a" && there.thing == Thing::Directory => {}
            Some(_) => return None,
        }
    }
    Some(tree)
}

/// Whether a tree is what it should be, where that is known.
fn fits(real: &Tree, wanted: &Tree) -> bool {
    let mut real = real.clone();
    if !wanted.contains_key(&b""[..]) {
        real.remove(&b""[..]);
    }
    let timeless = |tree: &Tree| {
        let mut tree = tree.clone();
        for (path, item) in &mut tree {
            // Of parents that are not listed the time is when they were made.
            if wanted.get(path).is_none_or(|w| w.numbers.3.is_none()) {
                item.numbers.3 = None;
            }
        }
        tree
    };
    timeless(&real) == timeless(wanted)
}

/// One hostile backup, and what it may make of the live data.
struct Case {
    objects: Objects,
    /// Tars that `documents` may be restored from.
    tars: Vec<Vec<u8>>,
    /// The manifest may name what is taken over from the old data: new and old may lie side by side.
    mixes: bool,
    /// The digests do not fit: nothing at all may be restored.
    unfit: bool,
    /// There is nothing wrong with it: it must be restored.
    good: bool,
}

const CASES: u64 = 700;

fn case(world: &World, seed: u64, dice: &mut Dice) -> Case {
    match seed % 10 {
        0..=3 => hostile_tree(world, dice),
        4 | 5 => hostile_archive(world, dice),
        6 | 7 => hostile_manifest(world, dice),
        _ => damaged(world, dice),
    }
}

const DOCS: &str = "documents.tar.gz";

fn docs_tar(world: &World) -> Vec<u8> {
    gunzip(world.good.clone().content(DOCS))
}

fn hostile_tree(world: &World, dice: &mut Dice) -> Case {
    let (tar, damaged) = hostile::archive(dice, &world.home.path("area/sentinel"));
    let mut backup = world.good.clone();
    let mut packed = match dice.below(4) {
        // Two gzip members are one stream.
        0 => [gzip(&tar[..tar.len() / 2]), gzip(&tar[tar.len() / 2..])].concat(),
        _ => gzip(&tar),
    };
    let cut = dice.one_in(12);
    if cut {
        packed.truncate(packed.len() - 1 - dice.below(packed.len() / 2));
    }
    backup.replace("documents", DOCS, packed);
    let facts = &mut backup.manifest["details"]["documents"]["facts"];
    let found = survey(&tar[..], &Limits::default(), &Cancel::default());
    let mut counted = false;
    match &found {
        Ok(found) if dice.one_in(2) => {
            counted = true;
            facts["entries"] = json!(found.entries);
            facts["files"] = json!(found.files);
            facts["bytes"] = json!(found.bytes);
        }
        _ if dice.one_in(8) => {}
        _ => {
            counted = true;
            for key in ["entries", "files", "bytes"] {
                facts.as_object_mut().unwrap().remove(key);
            }
        }
    }
    let good = counted && !cut && !damaged && found.is_ok();
    Case { objects: backup.seal(), tars: vec![tar], mixes: false, unfit: false, good }
}

fn wicked_names(world: &World) -> Vec<Vec<u8>> {
    let name = &world.good.name;
    let area = world.home.at("area");
    [
        "../x".to_owned(),
        format!("{area}/sentinel/file"),
        format!("{area}/etc/passwd"),
        format!("{name}/../x"),
        format!("{name}/../../../area/sentinel/file"),
        format!("{name}/config/../../../x"),
        format!("{name}/.."),
        format!("{name}/"),
        name.clone(),
        format!("{name}//x"),
        format!("{name}/./x"),
        format!("./{name}/x"),
        format!("{name}/{DOCS}"),
        format!("{name}/{DOCS}/below"),
        format!("{name}/manifest.json"),
        format!("{name}/manifest.json/x"),
        format!("{name}/more.tar.gz"),
        format!("{name}/RESTORE.md"),
        format!("{name}/config"),
        format!("{name}/\u{1b}]0;x\u{7}\n{FORGED} restored documents"),
        format!("{name}/\u{1b}[2J\n{FORGED}/{}", "l".repeat(300)),
        format!("\u{1b}[2J\n{FORGED}\u{9b}31m"),
        format!("{name}/{}", "d/".repeat(2500)),
        format!("{name}/{}", "n".repeat(256)),
        "tars-backup-20200101_000000/documents.tar.gz".to_owned(),
        String::new(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .chain([format!("{name}/").into_bytes().into_iter().chain(*b"latin-\xe9\xff").collect()])
    .collect()
}

fn hostile_archive(world: &World, dice: &mut Dice) -> Case {
    let mut backup = world.good.clone();
    let names = wicked_names(world);
    for _ in 0..=dice.below(2) {
        let at = dice.below(backup.members.len() + 1);
        match dice.below(10) {
            0 => drop(backup.members.remove(at.min(backup.members.len() - 1))),
            1 => {
                let twice = backup.members[at.min(backup.members.len() - 1)].clone();
                backup.members.insert(at, twice);
            }
            2 => backup.members.insert(at, Member::file(backup.path("unknown"), b"unknown".to_vec())),
            _ => {
                let flag = b"000000001234567DVxg"[dice.below(19)];
                let links = ["../../../area/sentinel/file", "/etc/passwd", DOCS, ".", ""];
                let link = links[dice.below(links.len())].as_bytes().to_vec();
                let content = if flag == b'0' { vec![b'x'; dice.below(2000)] } else { Vec::new() };
                let name = names[dice.below(names.len())].clone();
                backup.members.insert(at, Member { name, flag, link, content });
            }
        }
    }
    let objects = match dice.below(8) {
        // As if the bash script had made it: only what lies inside is believed.
        0 => {
            let objects = backup.seal();
            let sums = format!("{}  /mnt/nas/{}.tar.gz\n", sha256(&objects.archive), backup.name);
            Objects { sums: sums.into_bytes(), manifest: None, ..objects }
        }
        _ => backup.seal(),
    };
    Case { objects, tars: vec![docs_tar(world)], mixes: false, unfit: false, good: false }
}

/// A value of any type, wicked where it is text.
fn wicked(world: &World, dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => json!(u64::MAX),
        1 => json!(i64::MIN),
        2 => json!(1e308),
        3 => json!(null),
        4 => json!([["x", "../x"], {}]),
        5 => json!({ "../x": "\u{1b}[2J" }),
        6 => json!(true),
        _ => {
            let names = wicked_names(world);
            let text = String::from_utf8_lossy(&names[dice.below(names.len())]).into_owned();
            match dice.one_in(2) {
                true => json!(text),
                false => json!(text.strip_prefix(&format!("{}/", world.good.name)).unwrap_or(&text)),
            }
        }
    }
}

fn hostile_manifest(world: &World, dice: &mut Dice) -> Case {
    let mut backup = world.good.clone();
    let components = ["documents", "more", "app", "configuration"];
    let mut mixes = false;
    for _ in 0..=dice.below(3) {
        let component = components[dice.below(4)];
        let value = wicked(world, dice);
        let text = value.as_str().unwrap_or("../\u{1b}[2J").to_owned();
        let m = &mut backup.manifest;
        if m["details"].get(component).is_none_or(|d| !d.is_object()) {
            continue;
        }
        match dice.below(16) {
            0 => {
                let details = m["details"].as_object_mut().unwrap();
                let moved = details.remove(component).unwrap();
                details.insert(text, moved);
            }
            1 => m["details"][component]["members"] = json!([text]),
            2 => {
                let members = m["details"][component]["members"].as_array_mut();
                members.into_iter().for_each(|a| a.push(json!(text)));
            }
            3 => m["details"][component]["members"] = m["details"]["more"]["members"].clone(),
            4 => m["details"][component]["members"] = json!(["manifest.json", "RESTORE.md", DOCS, DOCS]),
            5 => {
                let kinds = ["directory", "sqlite", "config_files", "volume", "redis", "\u{1b}[2J\nFORGED"];
                m["details"][component]["type"] = json!(kinds[dice.below(kinds.len())]);
            }
            6 | 7 => {
                let keys = ["entries", "files", "bytes", "rows", "mode", "uid", "gid", "excluded", "path"];
                m["details"][component]["facts"][keys[dice.below(keys.len())]] = value;
            }
            8 => {
                let patterns = ["*", "**", "old.txt", "a", "../sentinel", "[", "/etc", "n.txt", &text];
                m["details"][component]["facts"]["excluded"] = json!([patterns[dice.below(patterns.len())]]);
            }
            9 => {
                let keys = ["bytes_in", "bytes_stored", "files", "duration_ms", "warnings", "error", "state"];
                m["details"][component][keys[dice.below(keys.len())]] = value;
            }
            10 => m["details"][component]["warnings"] = json!([text]),
            11 => m["details"][component]["error"] = json!(text),
            12 => {
                let keys = ["host", "version", "timestamp", "tier", "backup_name", "state", "schema", "tags"];
                m[keys[dice.below(keys.len())]] = value;
            }
            13 => {
                let keys =
                    ["tags", "only", "skip", "docker_volumes", "expected_components", "failed_components"];
                m[keys[dice.below(keys.len())]] = json!([text]);
            }
            14 => {
                let sums = m["checksums"].as_object_mut();
                sums.into_iter().for_each(|s| drop(s.insert(text.clone(), json!("sha256:00"))));
            }
            _ => {
                let keys = ["legacy", "bytes", "sha256", "schema", "details", "checksums", "components"];
                m[keys[dice.below(keys.len())]] = value;
            }
        }
        mixes |= m["details"]["documents"]["facts"]["excluded"] != json!(["a/kept"]);
    }
    let more = gunzip(world.good.clone().content("more.tar.gz"));
    Case { objects: backup.seal(), tars: vec![docs_tar(world), more], mixes, unfit: false, good: false }
}

fn hit(dice: &mut Dice, bytes: &mut Vec<u8>) {
    match dice.below(5) {
        0 => bytes.truncate(dice.below(bytes.len())),
        1 => bytes.extend([0, 7, 255]),
        _ => {
            let at = dice.below(bytes.len());
            bytes[at] ^= 1 << dice.below(8);
        }
    }
}

fn damaged(world: &World, dice: &mut Dice) -> Case {
    let backup = &world.good;
    let mut objects = backup.seal();
    let mut unfit = true;
    match dice.below(4) {
        0 => hit(dice, &mut objects.archive),
        1 => hit(dice, objects.manifest.as_mut().unwrap()),
        // The digests of the archive fit, those of its members may not.
        within => {
            unfit = false;
            let mut tar = backup.tar();
            if within == 2 {
                hit(dice, &mut tar);
            }
            let mut archive = gzip(&tar);
            if within == 3 {
                hit(dice, &mut archive);
            }
            objects = backup.seal_archive(archive);
        }
    }
    Case { objects, tars: vec![docs_tar(world)], mixes: false, unfit, good: false }
}

impl Case {
    /// Whether `docs` is what one of the tars says; `old` is what lay there before.
    fn explains(&self, real: &Tree, old: Option<&Tree>) -> bool {
        self.tars.iter().any(|tar| match (expected(tar, old), hostile::model(tar), old) {
            (Some(wanted), _, _) if fits(real, &wanted) => true,
            (_, Some(plain), Some(old)) if self.mixes => {
                plain.keys().all(|path| path.is_empty() || real.contains_key(path))
                    && real.keys().all(|path| plain.contains_key(path) || old.contains_key(path))
            }
            _ => false,
        })
    }
}

/// What a restore said of one component.
fn fate<'a>(done: &'a Value, component: &str) -> &'a str {
    let all = done["components"].as_array().unwrap();
    all.iter().find(|c| c["component"] == component).map_or("", |c| c["fate"].as_str().unwrap())
}

#[derive(Debug, Default)]
struct Count {
    restored: AtomicU64,
    refused: AtomicU64,
    elsewhere: AtomicU64,
    verified: AtomicU64,
}

impl Count {
    fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn one(world: &World, seed: u64, count: &Count) {
    let mut dice = Dice(seed.wrapping_mul(7919));
    let case = case(world, seed, &mut dice);
    world.store(&case.objects);
    let why = format!("seed {seed}");
    let name = world.good.name.as_str();
    let lenient = dice.one_in(4);
    let skip: &[&str] = if lenient { &["--skip-validation"] } else { &[] };

    // Looking at it, which changes nothing.
    let look: &[&[&str]] = &[&["list"], &["show", name], &["list", "--json"], &["show", name, "--json"]];
    world.run(&why, look[seed as usize / 10 % 4], &[0, 1]);
    let before_deep = case.unfit;
    match seed % 3 {
        0 => {
            let done = world.run(&why, &["verify", "--deep", name], &[0, 1]);
            assert!(!(before_deep && done.code == 0), "{why}: verify finds nothing");
            Count::add(&count.verified);
        }
        1 => drop(world.run(&why, &[&["restore", name, "--dry-run"], skip].concat(), &[0, 1, 2])),
        _ if dice.one_in(4) => extract(world, &case, &why),
        _ => elsewhere(world, &case, &why, skip, count),
    }
    assert!(hostile::look(&world.docs()) == world.old, "{why}: looking has changed something");

    let json = dice.one_in(2);
    let more: &[&str] = match (json, dice.below(3)) {
        (true, _) => &["--json"],
        (_, 0) => &["--allow-partial"],
        (_, 1) => &["--component", "documents"],
        _ => &[],
    };
    let words = ["restore", name, "--yes", "--no-safety-backup", "--restore-config"];
    let done = world.run(&why, &[&words, skip, more].concat(), &[0, 1, 2, 64]);
    let told = || format!("{why}: {}{}", done.stdout, done.stderr);
    let docs = hostile::look(&world.docs());
    let rows = world.rows(&world.home.path("area/app.sqlite3"));
    let more = std::fs::read_to_string(world.home.path("area/more/m.txt")).unwrap_or_default();
    let changed = docs != world.old;
    if changed {
        assert!(case.explains(&docs, Some(&world.old)), "{}: it became {docs:#?}", told());
        Count::add(&count.restored);
    } else {
        Count::add(&count.refused);
    }
    assert!(rows == "99" || rows == "1,2", "{}: {rows}", told());
    if case.unfit && !lenient {
        assert!(done.code != 0 && !changed && rows == "99", "{}", told());
    }
    if case.good && expected(&case.tars[0], Some(&world.old)).is_some() {
        assert!(changed, "{}: nothing is wrong with it", told());
    }
    if json && done.stdout.starts_with('{') {
        let outcome = done.json();
        assert_eq!(fate(&outcome, "documents") == "restored", changed, "{}", told());
        if fate(&outcome, "app") != "restored" {
            assert_eq!(rows, "99", "{}", told());
        }
    }
    if changed || rows != "99" || more != "more\n" {
        world.lay_old();
    }
    let _ = std::fs::remove_file(world.home.path("area/app.env.reference"));
}

fn elsewhere(world: &World, case: &Case, why: &str, skip: &[&str], count: &Count) {
    let scratch = tempfile::tempdir_in(world.home.root().parent().unwrap()).unwrap();
    let to = scratch.path().join("one/to");
    let words = ["restore", &world.good.name, "--to", to.to_str().unwrap(), "--allow-partial"];
    let done = world.run(why, &[&words, skip].concat(), &[0, 1, 2]);
    let beside: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(
        beside.len() <= 1 && (!to.exists() || std::fs::read_dir(to.parent().unwrap()).unwrap().count() == 1)
    );
    let docs = to.join("documents");
    if done.code == 0 && docs.exists() {
        assert!(case.explains(&hostile::look(&docs), None), "{why}: --to: {}", done.stderr);
        assert!(!(case.unfit && skip.is_empty()), "{why}: damaged, and written");
        Count::add(&count.elsewhere);
    }
}

fn extract(world: &World, case: &Case, why: &str) {
    let scratch = tempfile::tempdir_in(world.home.root().parent().unwrap()).unwrap();
    let to = scratch.path().join("to");
    let done = world.run(why, &["extract", &world.good.name, "--to", to.to_str().unwrap()], &[0, 1]);
    assert!(!(case.unfit && done.code == 0), "{why}: damaged, and extracted");
    let beside: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(beside.iter().all(|path| *path == to), "{why}: {beside:?}");
    if to.exists() {
        let strange = |item: &hostile::Item| !matches!(item.thing, Thing::Directory | Thing::File(_));
        assert!(!hostile::look(&to).values().any(strange), "{why}: more than plain files came out");
    }
}

#[test]
fn hostile_backups_change_nothing_outside_and_bring_a_component_back_wholly_or_not_at_all() {
    let (next, failed, count) = (AtomicU64::new(0), AtomicU64::new(0), Count::default());
    // One seed alone, to look closer.
    let only: Option<u64> = std::env::var("TARS_BACKUP_TEST_SEED").ok().and_then(|s| s.parse().ok());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut world = World::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= CASES {
                        break;
                    }
                    if only.is_some_and(|o| o != seed) {
                        continue;
                    }
                    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| one(&world, seed, &count)));
                    if ended.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        world = World::new();
                    }
                }
            });
        }
    });
    println!("{count:?}");
    assert_eq!(failed.into_inner(), 0, "seeds failed; each is told above");
    if only.is_none() {
        let at_least = |counter: &AtomicU64, n| assert!(counter.load(Ordering::Relaxed) >= n, "{count:?}");
        at_least(&count.restored, 80);
        at_least(&count.refused, 100);
        at_least(&count.elsewhere, 20);
        at_least(&count.verified, 150);
    }
}

/// A backup of `world` with this tree in `docs`.
fn with_tree(world: &World, build: &str) -> (Backup, Vec<u8>) {
    let tree = world.home.at("tree");
    sh(&format!("mkdir '{tree}'; cd '{tree}'; {build}; tar -cf ../tree.tar .; rm -rf '{tree}'"));
    let tar = std::fs::read(world.home.path("tree.tar")).unwrap();
    std::fs::remove_file(world.home.path("tree.tar")).unwrap();
    let mut backup = world.good.clone();
    backup.replace("documents", DOCS, gzip(&tar));
    let facts = backup.manifest["details"]["documents"]["facts"].as_object_mut().unwrap();
    facts.retain(|key, _| !["entries", "files", "bytes"].contains(&key.as_str()));
    (backup, tar)
}

#[test]
fn a_link_where_something_is_taken_over_does_not_lead_it_away() {
    let world = World::new();
    let sentinel = world.home.at("area/sentinel");
    // The source leaves out a/kept; the manifest wants more to be taken over.
    for link in [sentinel.as_str(), "../sentinel", "b"] {
        let (backup, _) = with_tree(&world, &format!("mkdir b; ln -s '{link}' a"));
        world.store(&backup.seal());
        let words = ["restore", "--latest", "--yes", "--no-safety-backup", "--component", "documents"];
        world.run(link, &words, &[1]).says("is no directory");
        assert!(hostile::look(&world.docs()) == world.old, "{link}: {:#?}", hostile::look(&world.docs()));
    }
}

#[test]
fn what_is_larger_than_the_manifest_says_does_not_fill_the_disk() {
    let world = World::new();
    let zeros = vec![0; 200 << 20];
    // A file that grows further ends the program with a signal.
    let limited = |backup: &Backup, rest: &[&str], code: i32| {
        world.store(&backup.seal());
        let config = world.home.at("config.toml");
        let words = ["--fsize=20000000", support::PROGRAM, "--config", &config, "restore", "--latest"];
        let done = support::run("prlimit", &[&words, rest].concat()).expect(code);
        assert!(world.look_around() == world.around, "{}", world.difference());
        done
    };
    // Nobody asked for it, so it is not written.
    let mut backup = world.good.clone();
    backup.members.push(Member::file(backup.path("unknown"), zeros.clone()));
    let here = ["--yes", "--no-safety-backup", "--component", "more"];
    limited(&backup, &here, 0);
    let mut backup = world.good.clone();
    backup.replace("documents", DOCS, zeros.clone());
    backup.manifest["details"]["documents"]["bytes_stored"] = json!(1000);
    limited(&backup, &here, 1).says("larger than the manifest says");
    // A small member that is large when it is inflated.
    let mut tar = Vec::new();
    Member::file("bomb", zeros).write(&mut tar);
    tar.extend([0; 1024]);
    let mut backup = world.good.clone();
    backup.replace("documents", DOCS, gzip(&tar));
    backup.manifest["details"]["documents"]["facts"]["entries"] = json!(1);
    let here = ["--yes", "--no-safety-backup", "--component", "documents"];
    limited(&backup, &here, 1).says("bytes that it may have");
    assert!(hostile::look(&world.docs()) == world.old);
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("to").display().to_string();
    limited(&backup, &["--to", &to, "--component", "documents"], 1).says("bytes that it may have");
    assert_eq!(sh(&format!("ls '{to}'")), "");
}

#[test]
fn what_fails_elsewhere_leaves_nothing_half_there() {
    let world = World::new();
    let (mut backup, tar) = with_tree(&world, "for i in $(seq 40); do echo $i > f$i; done");
    backup.replace("documents", DOCS, gzip(&tar[..tar.len() / 2]));
    world.store(&backup.seal());
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("to").display().to_string();
    world.home.tars(&["restore", "--latest", "--to", &to]).expect(2).says("documents: ");
    assert_eq!(sh(&format!("ls '{to}'")), "app.sqlite3\nconfig\nmore\n");
    // What lay there before stays.
    sh(&format!("rm -r '{to}'; mkdir -p '{to}/documents'; echo mine > '{to}/documents/mine'"));
    world.home.tars(&["restore", "--latest", "--to", &to, "--component", "documents"]).expect(1);
    assert_eq!(sh(&format!("cat '{to}/documents/mine'")), "mine\n");
}
