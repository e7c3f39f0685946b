//! The whole stack in one backup, with odd data in every part of it and all of it running: what comes out of the archive
//! is what the servers had. What could go wrong: each part alone is good, and together they name, hold or report badly.

use std::path::Path;

use serde_json::{Value, json};
use tars_backup::manifest::Component;
use tars_backup::source::{Member, check};

use crate::lab::{CHROMA, Lab, OLD_CHROMA, lab_file, source, verify_deep};
use crate::support::{Home, run, sh};
use crate::{chroma_api, postgres};

/// `DUMP DIRECTORY`: prints the dump with the records, counts and metadata that the files of an export have instead.
const FROM_EXPORT: &str = r#"
import gzip, json, os, sys, urllib.parse
places, root = json.load(open(sys.argv[1])), sys.argv[2]
quoted = lambda name: urllib.parse.quote(name, safe="")
seen = set()
for place in places:
    for c in place["collections"]:
        path = os.path.join(root, quoted(place["tenant"]), quoted(place["database"]), quoted(c["name"]) + ".jsonl.gz")
        seen.add(path)
        head, *records = map(json.loads, gzip.open(path).read().splitlines())
        assert (head["tenant"], head["database"]) == (place["tenant"], place["database"]), head
        assert head["count"] == len(records), head
        c.update(name=head["name"], metadata=head["metadata"], count=len(records))
        wanted = {"id", "embedding", "document", "metadata", "uri"}
        assert all(set(r) == wanted for r in records), records[:1]
        c["records"] = sorted(records, key=lambda r: r["id"])
files = {os.path.join(d, f) for d, _, names in os.walk(root) for f in names}
assert files == seen, files ^ seen
json.dump(places, sys.stdout)
"#;

/// Fails unless the export in `dir` and the dump of a server say the same of every record.
#[track_caller]
fn assert_export_is(home: &Home, dir: &Path, dump: &str) {
    let [of_server, of_export] = [home.at("server.json"), home.at("export.json")];
    std::fs::write(&of_server, dump).unwrap();
    let done = run("python3", &["-c", FROM_EXPORT, &of_server, &dir.display().to_string()]).expect(0);
    std::fs::write(&of_export, done.stdout).unwrap();
    compare(&of_server, &of_export);
}

/// Two dumps; the first difference fails the test.
#[track_caller]
fn compare(a: &str, b: &str) {
    run("python3", &[&lab_file("chroma.py"), "-", "compare", a, b]).expect(0);
}

/// A second server on the copy has what the first one had, and finds it by its index.
#[track_caller]
fn assert_copy_is(lab: &Lab, home: &Home, image: &str, member: &Path, held: &[String; 2]) {
    let copy = home.at("chroma-copy");
    std::fs::create_dir(&copy).unwrap();
    sh(&format!("tar --numeric-owner -xpf '{}' -C '{copy}'", member.display()));
    let found = lab.chroma_data_holds(image, "second", &copy);
    let [a, b] = [home.at("before.json"), home.at("after.json")];
    std::fs::write(&a, &held[0]).unwrap();
    std::fs::write(&b, &found[0]).unwrap();
    compare(&a, &b);
    // No assert_eq!: it would print much.
    assert!(found[1] == held[1], "the index of the copy finds others");
}

/// Records per `tenant/database/collection`, as the servers count them.
fn counts(dump: &str) -> Value {
    let places: Value = serde_json::from_str(dump).unwrap();
    let mut all = serde_json::Map::new();
    for place in places.as_array().unwrap() {
        for c in place["collections"].as_array().unwrap() {
            let words = [&place["tenant"], &place["database"], &c["name"]].map(|w| w.as_str().unwrap());
            all.insert(words.join("/"), c["count"].clone());
        }
    }
    all.into()
}

/// The same by the facts of a manifest.
fn counted(facts: &Value) -> Value {
    let name =
        |c: &Value| ["tenant", "database", "name"].map(|k| c[k].as_str().unwrap().to_owned()).join("/");
    let all = facts["collections"].as_array().unwrap().iter().map(|c| (name(c), c["records"].clone()));
    all.collect::<serde_json::Map<_, _>>().into()
}

/// What the check of a component says of one file of it.
fn said_of(home: &Home, component: &str, name: &str, file: &str) -> String {
    let component: Component = serde_json::from_value(home.manifest()["details"][component].clone()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut body = std::fs::File::open(file).unwrap();
    let mut member = Member { name, body: &mut body, component: &component, scratch: scratch.path() };
    check(&mut member).map_or_else(|e| e.to_string(), |()| "good".to_owned())
}

#[test]
fn the_whole_stack_in_one_backup_with_odd_data_in_every_part() {
    let lab = Lab::new();
    let script = |verb| sh(&format!("LAB_PREFIX='{}' '{}' {verb}", lab.prefix, lab_file("stack.sh")));
    script("up");
    let [pg, redis, chroma, ollama, backend] = ["postgres", "redis", "chromadb", "ollama", "backend"]
        .map(|s| format!("{}tars-home-{s}", lab.prefix));
    lab.chroma_py(&chroma, &["seed"]);
    postgres::load_odd_data(&lab, &pg);
    sh(&format!("'{}' '{redis}'", lab_file("odd-redis.sh")));
    let held = lab.chroma_holds(&chroma);
    let states = || {
        lab.ok(&[
            "ps",
            "-a",
            "--filter",
            &format!("name={}", lab.prefix),
            "--format",
            "{{.Names}} {{.State}}",
        ])
    };
    let before = states();

    let home = Home::new();
    let env = home.at("tars-home.env");
    std::fs::write(&env, "REDIS_PASSWORD=hunter2-and-more\nPORT=8001\n").unwrap();
    let home = home
        .source("chromadb", &source("chromadb", &chroma, "export = [\"hot\"]"))
        .source("postgres", &source("postgres", &pg, ""))
        .source("redis", &source("redis", &redis, ""))
        .source("configuration", &format!("type = \"config_files\"\nfiles = [{env:?}]\nown = false"))
        .source("ollama", &source("ollama", &ollama, ""))
        .source("backend_logs", "type = \"volume\"\nvolume = \"backend_logs\"\nconsistency = \"live\"")
        .extra(&format!("[docker]\nproject = \"{}deploy\"", lab.prefix))
        .ready();
    let done = home.tars(&["backup", "--include-models", "--json"]).expect(0);
    assert_eq!(done.json()["state"], "complete");
    assert_eq!(states(), before);
    verify_deep(&home);
    home.assert_nothing_left();

    let manifest = home.manifest();
    let all = ["chromadb", "postgres", "redis", "configuration", "ollama", "backend_logs"];
    assert_eq!(manifest["components"], json!(all));
    assert_eq!(manifest["options"]["include_models"], true);
    let project = format!("{}deploy", lab.prefix);
    let mut volumes: Vec<&str> =
        manifest["docker_volumes"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    volumes.sort_unstable();
    let wanted = ["backend_logs", "chroma_data", "ollama_data", "postgres_data", "redis_data"];
    assert_eq!(volumes, wanted.map(|v| format!("{project}_{v}")));
    for (component, paused) in [("chromadb", true), ("ollama", false), ("backend_logs", false)] {
        let details = &manifest["details"][component];
        assert_eq!(details["paused_ms"].as_u64() > Some(0), paused, "{component}");
        assert_eq!(details["warnings"], json!([]), "{component}");
    }
    for (component, container) in
        [("chromadb", &chroma), ("ollama", &ollama), ("postgres", &pg), ("redis", &redis)]
    {
        assert_eq!(manifest["details"][component]["facts"]["container"], **container);
    }

    let unpacked = home.unpack("out");
    let files = sh(&format!("cd '{}'; find . -type f -printf '%P\\n' | sort", unpacked.display()));
    for file in [
        "chromadb.tar.gz",
        "chromadb-export/default_tenant/default_database/odd.jsonl.gz",
        "chromadb-export/default_tenant/default_database/empty.jsonl.gz",
        "chromadb-export/second-tenant/second_database/documents.jsonl.gz",
        "chromadb-export/Mandant%20%C3%A9%202/third.database/documents.jsonl.gz",
        "ollama-models.tar.gz",
        "backend_logs.tar.gz",
        "postgres.sql.gz",
        "postgres-globals.sql.gz",
        "redis-dump.rdb",
        "config/tars-home.env.redacted",
        "config/INVENTORY.txt",
        "RESTORE.md",
        "manifest.json",
    ] {
        assert!(files.lines().any(|f| f == file), "{file} is not in\n{files}");
    }
    assert_copy_is(&lab, &home, CHROMA, &unpacked.join("chromadb.tar.gz"), &held);
    assert_export_is(&home, &unpacked.join("chromadb-export"), &held[0]);
    let facts = &manifest["details"]["chromadb"]["facts"];
    assert_eq!(counted(facts), counts(&held[0]));
    assert_eq!(facts["path"], "/chroma/chroma");
    // All of 1.x say so.
    assert_eq!(facts["server_version"], "1.0.0");

    let models = home.at("models");
    sh(&format!(
        "mkdir '{models}'; tar -xf '{}/ollama-models.tar.gz' -C '{models}'; cd '{models}/models/blobs'
         [ $(ls | wc -l) = 2 ]; for f in *; do [ \"sha256-$(sha256sum <\"$f\" | cut -c1-64)\" = \"$f\" ]; done",
        unpacked.display()
    ));
    assert!(manifest["details"]["ollama"]["facts"]["models"]["stand-in:latest"].as_u64() >= Some(3_000_000));
    let logs = format!("tar -xOf '{}/backend_logs.tar.gz' ./backend.log", unpacked.display());
    let now = lab.sh(&backend, "cat /app/logs/backend.log");
    let logged = sh(&logs);
    assert!(logged.contains("started with pid") && now.starts_with(&logged), "{logged}");

    damage_is_found(&home, &unpacked);
    script("down");
}

/// Damage that a digest would not show, because whoever wrote the archive wrote it so.
fn damage_is_found(home: &Home, unpacked: &Path) {
    let at = |name: &str| home.at(name);
    let plain = |member: &str, to: &str| {
        sh(&format!("gzip -dc '{}/{member}.gz' >'{}'", unpacked.display(), at(to)));
        at(to)
    };
    // A tar with the same entries, changed by a shell line in its directory.
    let changed = |member: &str, line: &str| {
        let (tar, dir) = (plain(member, "plain.tar"), at("changed"));
        let list = at("list");
        sh(&format!(
            "rm -rf '{dir}'; mkdir '{dir}'; tar -tf '{tar}' >'{list}'; tar -xpf '{tar}' -C '{dir}'; cd '{dir}'; {line}
             tar --no-recursion -cf '{0}' -T '{list}'",
            at("changed.tar")
        ));
        at("changed.tar")
    };
    let flip = |file: &str, offset: &str| {
        format!(
            "python3 -c 'import sys; f = open(sys.argv[1], \"r+b\"); f.seek({offset}); b = f.read(1)[0]; f.seek({offset}); f.write(bytes([b ^ 64]))' {file}"
        )
    };
    let sql = |text: &str| {
        format!(
            "python3 -c 'import sqlite3; d = sqlite3.connect(\"chroma.sqlite3\"); d.execute(\"{text}\"); d.commit()'"
        )
    };
    let (chroma, models) = ("chromadb.tar", "ollama-models.tar");
    let one_less = "DELETE FROM embeddings WHERE id = (SELECT max(id) FROM embeddings)";
    // A page of a table: its first byte says what kind of page it is.
    let cases = [
        ("chromadb", chroma, "true".to_owned(), "good"),
        ("chromadb", chroma, sql(one_less), "not those of the manifest"),
        ("chromadb", chroma, flip("chroma.sqlite3", "4096 * 20"), ""),
        ("chromadb", chroma, "truncate -s -4096 chroma.sqlite3".to_owned(), ""),
        ("chromadb", chroma, ": >chroma.sqlite3".to_owned(), ""),
        ("chromadb", chroma, "rm */data_level0.bin; sed -i '/data_level0/d' ../list".to_owned(), "entries"),
        ("ollama", models, "true".to_owned(), "good"),
        ("ollama", models, flip("models/blobs/$(ls -S models/blobs | head -1)", "1500000"), "digests"),
        ("ollama", models, "sed -i 's/sha256:/sha256:0/' models/manifests/*/*/*/*".to_owned(), "missing"),
        ("ollama", models, "truncate -s -1 models/manifests/*/*/*/*".to_owned(), "cannot be read"),
    ];
    for (component, member, line, wanted) in cases {
        let said = said_of(home, component, member, &changed(member, &line));
        assert!(said.contains(wanted) && (wanted == "good" || said != "good"), "{line}: {said}");
    }
    let name = "chromadb-export/default_tenant/default_database/odd.jsonl";
    for (line, wanted) in [
        ("true", "good"),
        ("sed -i '$d'", "lines"),
        ("truncate -s -1", "lines"),
        ("sed -i '3s/.*/{\"id\":/'", ""),
        ("sed -i 1d", ""),
    ] {
        let file = plain(name, "plain.jsonl");
        sh(&format!("{line} '{file}'"));
        let said = said_of(home, "chromadb", name, &file);
        assert!(said.contains(wanted) && (wanted == "good" || said != "good"), "{line}: {said}");
    }
}

#[test]
fn the_old_chroma_is_copied_and_exported_too() {
    let lab = Lab::new();
    let mount = format!("{}:/chroma/chroma", lab.volume("chroma_data"));
    let server = lab.chroma(OLD_CHROMA, "old", Some(&mount), None);
    lab.chroma_py(&server, &["seed"]);
    let held = lab.chroma_holds(&server);
    let home = Home::new().source("chroma", &source("chromadb", &server, "export = [\"hot\"]")).ready();
    home.backup(0);
    verify_deep(&home);
    let unpacked = home.unpack("out");
    let facts = &home.manifest()["details"]["chroma"]["facts"];
    assert_eq!(counted(facts), counts(&held[0]));
    assert_eq!(facts["server_version"], "0.6.3");
    assert_copy_is(&lab, &home, OLD_CHROMA, &unpacked.join("chroma.tar.gz"), &held);
    assert_export_is(&home, &unpacked.join("chroma-export"), &held[0]);
}

#[test]
fn the_client_of_chroma_holds_with_real_servers() {
    let lab = Lab::new();
    for (image, name) in [(CHROMA, "new"), (OLD_CHROMA, "old")] {
        let data = tempfile::tempdir().unwrap();
        let mount = format!("{}:/chroma/chroma", data.path().display());
        let server = lab.chroma(image, name, Some(&mount), Some("/chroma/chroma"));
        chroma_api::check_everything(&lab, &server, data.path());
    }
}
