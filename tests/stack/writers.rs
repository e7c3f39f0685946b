//! Writers that never rest: a copy that is made while they write is of one moment. What could go wrong: a torn page, a
//! journal of another moment than its database, two tables that disagree, vectors that are newer than their list; and
//! once in a hundred copies only, so there are many.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::lab::{CHROMA, Lab, source, until};
use crate::support::{Home, run, sh};

/// Two databases whose two tables have the same rows at the end of each transaction. The small cache makes SQLite write
/// into the file in the middle of one.
const WRITER: &str = r#"
import sqlite3
databases = []
for mode in ("delete", "wal"):
    db = sqlite3.connect(f"/data/{mode}.db", isolation_level=None)
    for line in (f"PRAGMA journal_mode = {mode}", "PRAGMA synchronous = OFF", "PRAGMA cache_size = 1"):
        db.execute(line).fetchall()
    for table in ("one", "two"):
        db.execute(f"CREATE TABLE {table} (i INTEGER PRIMARY KEY, v TEXT)")
    databases.append(db)
turn = 0
while True:
    for db in databases:
        db.execute("BEGIN")
        for table in ("one", "two"):
            rows = ((turn * 100 + i, str(turn + i) * 40) for i in range(100))
            db.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
            db.execute(f"DELETE FROM {table} WHERE i < ?", (turn * 100 - 3000,))
        db.execute("COMMIT")
    turn += 1
    open("/data/turn", "w").write(str(turn))
"#;

/// Opens the copies as anybody would who restores them.
const READER: &str = r#"
import sqlite3, sys
for mode in ("delete", "wal"):
    db = sqlite3.connect(f"{sys.argv[1]}/{mode}.db")
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], mode
    same = "SELECT (SELECT count(*) FROM (SELECT * FROM one EXCEPT SELECT * FROM two)), (SELECT count(*) FROM one), (SELECT count(*) FROM two)"
    more, one, two = db.execute(same).fetchone()
    assert more == 0 and one == two and one > 0, (mode, more, one, two)
    assert db.execute("SELECT max(i) % 100 FROM one").fetchone() == (99,), mode
"#;

const BACKUPS: usize = 20;

#[test]
fn every_copy_under_writers_that_never_rest_is_of_one_moment() {
    let lab = Lab::new();
    let (data, vectors) = (lab.volume("data"), lab.volume("vectors"));
    let mount = format!("{data}:/data");
    let args = ["--stop-signal", "KILL", "-v", &mount, "--entrypoint", "python3", CHROMA, "-c", WRITER];
    let writer = lab.container(&["run", "-d"], "writer", &args);
    let server = lab.chroma(CHROMA, "chroma", Some(&format!("{vectors}:/data")), Some("/data"));
    let mut hammer = lab.chroma_command(&server, &["hammer", "600"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(hammer.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "writing");
    until("the writer writes", || lab.docker(&["exec", &writer, "test", "-s", "/data/turn"]).code == 0);

    let home = Home::new()
        .source("files", &source("volume", &writer, "path = \"/data\""))
        .source("chroma", &source("chromadb", &server, ""))
        .ready();
    let mut counts = Vec::new();
    for turn in 0..BACKUPS {
        let name = home.backup(0)["name"].as_str().unwrap().to_owned();
        let manifest = home.path(&format!("store/daily/{name}.manifest.json"));
        let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        for source in ["files", "chroma"] {
            let details = &manifest["details"][source];
            assert!(details["paused_ms"].as_u64() > Some(0), "{details}");
            assert_eq!(details["warnings"], serde_json::json!([]), "{details}");
        }
        let out = home.at("out");
        sh(&format!(
            "rm -rf '{out}'; mkdir -p '{out}/files' '{out}/chroma'; tar -xzf '{0}/{name}.tar.gz' -C '{out}'
             for s in files chroma; do tar -xpf '{out}/{name}/'$s.tar.gz -C '{out}/'$s; done",
            home.at("store/daily")
        ));
        run("python3", &["-c", READER, &format!("{out}/files")]).expect(0);
        let integrity = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('PRAGMA integrity_check').fetchall())";
        run("python3", &["-c", integrity, &format!("{out}/chroma/chroma.sqlite3")])
            .expect(0)
            .says("[('ok',)]");
        let collections = manifest["details"]["chroma"]["facts"]["collections"].as_array().unwrap();
        assert_eq!(collections.len(), 1);
        let records = collections[0]["records"].as_u64().unwrap();
        if turn % 4 == 0 {
            let [dump, nearest] =
                lab.chroma_data_holds(CHROMA, &format!("copy-{turn}"), &format!("{out}/chroma"));
            let dump: Value = serde_json::from_str(&dump).unwrap();
            let there = &dump[0]["collections"][0];
            let got = there["records"].as_array().unwrap();
            let mut ids: Vec<&str> = got.iter().map(|r| r["id"].as_str().unwrap()).collect();
            ids.dedup();
            let all = [there["count"].as_u64().unwrap(), got.len() as u64, ids.len() as u64];
            assert_eq!(all, [records; 3], "count, get, ids, and the facts of copy {turn}");
            assert!(nearest.contains("\"h"), "{nearest}");
        }
        counts.push(records);
    }
    counts.dedup();
    assert!(counts.len() > BACKUPS / 2, "the server was hardly written to: {counts:?}");
    sh(&format!("kill -TERM {}", hammer.id()));
    let end = said.next().unwrap().unwrap();
    assert!(hammer.wait().unwrap().success());
    assert!(end.starts_with("turns=") && end.ends_with("failed=0"), "a client of the server noticed: {end}");
}

/// Held between the vectors and the list of them, a server has them in a state that no server opens. The times tell.
#[test]
fn vectors_that_were_being_written_fail_the_copy_and_old_ones_only_warn() {
    let lab = Lab::new();
    let volume = lab.volume("chroma");
    let server = lab.chroma(CHROMA, "chroma", Some(&format!("{volume}:/data")), None);
    lab.await_chroma(&server);
    lab.chroma_py(&server, &["seed"]);
    lab.ok(&["stop", &server]);
    let data = lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &volume]);
    // Small collections have no list of vectors yet.
    let touch = |time: &str| {
        let list = format!("ls '{}'/*/index_metadata.pickle | head -n 1", data.trim());
        sh(&format!("f=$({list}); touch -d '{time}' \"${{f%/*}}/length.bin\""));
    };
    let home = Home::new().source("chroma", &source("chromadb", &server, "")).ready();
    touch("now");
    home.tars(&["backup"]).expect(1).says("was writing the vectors in");
    sh(&format!("touch -d '2 hours ago' '{}'/*/*", data.trim()));
    touch("1 hour ago");
    home.tars(&["backup"]).expect(0).says("ask the server whether it can still read them");
    home.tars(&["verify", "--deep", "--latest"]).expect(0);
}
