//! ChromaDB comes back, with every vector, and is asked before the old data goes. What could go wrong: a server that starts
//! with data that it cannot read, or that somebody reads it for another version.

use serde_json::Value;

use crate::lab::{ASK, CHROMA, Lab, OLD_CHROMA, lab_file, source};
use crate::legacy;
use crate::support::{Home, killed_at_every_line, restore_to_kill, run, sh};

struct Server {
    lab: Lab,
    volume: String,
    container: String,
    held: [String; 2],
}

fn server(image: &str) -> Server {
    let lab = Lab::new();
    let volume = lab.volume("chroma_data");
    let container = lab.chroma(image, "chroma", Some(&format!("{volume}:/vectors")), Some("/vectors"));
    lab.chroma_py(&container, &["seed"]);
    let held = lab.chroma_holds(&container);
    Server { lab, volume, container, held }
}

impl Server {
    fn home(&self, more: &str) -> Home {
        let home = Home::new().source("chroma", &source("chromadb", &self.container, more)).ready();
        home.backup(0);
        home
    }

    /// Takes the place of the container, with the same name and volume.
    fn replace(&self, how: &str, image: &str, command: &[&str]) {
        self.lab.ok(&["rm", "-f", &self.container]);
        let mount = format!("{}:/vectors", self.volume);
        let mut args = vec!["-p", "127.0.0.1::8000", "-v", &mount, image];
        args.extend(command);
        let how: Vec<&str> = how.split(' ').collect();
        assert_eq!(self.lab.container_on("bridge", &how, "chroma", &args), self.container);
    }

    fn data(&self) -> String {
        self.lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", &self.volume]).trim().to_owned()
    }

    fn state(&self) -> String {
        self.lab.ok(&["inspect", "-f", "{{.State.Status}}", &self.container]).trim().to_owned()
    }

    #[track_caller]
    fn assert_restored(&self, home: &Home) {
        self.lab.await_chroma(&self.container);
        assert_holds(home, &self.held, &self.lab.chroma_holds(&self.container));
        let beside = sh(&format!("find '{}/..' -name '*tars-restore*'", self.data()));
        assert_eq!(beside, "");
        assert!(!home.path("state/run.journal").exists());
    }
}

const RUN: &[&str] = &["run", "--host", "0.0.0.0", "--port", "8000", "--path", "/vectors"];

#[track_caller]
fn assert_holds(home: &Home, wanted: &[String; 2], found: &[String; 2]) {
    let [a, b] = [home.at("wanted.json"), home.at("found.json")];
    std::fs::write(&a, &wanted[0]).unwrap();
    std::fs::write(&b, &found[0]).unwrap();
    run("python3", &[&lab_file("chroma.py"), "-", "compare", &a, &b]).expect(0);
    assert_eq!(found[1], wanted[1], "the index finds something else");
}

/// The first collection goes, and a new one comes.
fn change_it(s: &Server) {
    let url = s.lab.url(&s.container, 8000);
    let base = format!("{url}/api/v2/tenants/default_tenant/databases/default_database/collections");
    s.lab.delete_collection(&format!("{base}/odd"));
    let later = r#"{"name": "later", "get_or_create": true}"#;
    sh(&format!("{ASK} -X POST '{base}' -H 'Content-Type: application/json' -d '{later}'"));
}

#[test]
fn whatever_became_of_the_data_every_vector_comes_back() {
    let s = server(CHROMA);
    let home = s.home("");
    let id = s.lab.ok(&["inspect", "-f", "{{.Id}}", &s.container]);
    change_it(&s);
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("restored chroma");
    s.assert_restored(&home);
    assert_eq!(s.lab.ok(&["inspect", "-f", "{{.Id}}", &s.container]), id, "the same container");

    // Broken while it runs; nothing there at all; another container on the same volume.
    sh(&format!(
        "find '{0}' -name data_level0.bin -exec truncate -s 10 {{}} +; truncate -s 5000 '{0}/chroma.sqlite3'",
        s.data()
    ));
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("it is kept in");
    s.assert_restored(&home);
    s.lab.ok(&["stop", "-t", "1", &s.container]);
    sh(&format!("find '{}' -mindepth 1 -delete", s.data()));
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("does not run: no server has read it yet");
    assert_eq!(s.state(), "exited");
    s.lab.ok(&["start", &s.container]);
    s.assert_restored(&home);
    sh(&format!("find '{}' -mindepth 1 -delete", s.data()));
    s.replace("create", CHROMA, RUN);
    home.tars(&["restore", "--latest", "--yes"]).expect(0).says("had never been started");
    s.assert_restored(&home);
}

#[test]
fn a_server_that_cannot_serve_the_new_data_gets_the_old_back() {
    let s = server(CHROMA);
    let home = s.home("");
    change_it(&s);
    s.lab.ok(&["stop", "-t", "1", &s.container]);
    let before = sh(&format!("cd '{}'; find . -type f -exec sha256sum {{}} + | sort", s.data()));
    let silent: &[&str] = &["-c", "sleep infinity"];
    s.replace("run -d --entrypoint sh", CHROMA, silent);
    // Where it keeps its data cannot be seen any more.
    let extra = "path = \"/vectors\"\nidle_timeout = \"3s\"";
    let home = home.only_source("chroma", &source("chromadb", &s.container, extra));
    home.tars(&["restore", "--latest", "--yes"])
        .expect(1)
        .says("the ChromaDB server at")
        .says("old data is as it was");
    let after = sh(&format!("cd '{}'; find . -type f -exec sha256sum {{}} + | sort", s.data()));
    assert_eq!(after, before);
    // One that was never started is not left running on data that is taken away from it.
    s.replace("create --entrypoint sh", CHROMA, silent);
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("old data is as it was");
    assert_eq!(s.state(), "exited");
    let after = sh(&format!("cd '{}'; find . -type f -exec sha256sum {{}} + | sort", s.data()));
    assert_eq!(after, before);
    s.lab.ok(&["start", &s.container]);
    home.tars(&["restore", "--latest", "--yes", "--keep"]).expect(1).says("left as it is");
    let kept = s.lab.chroma_data_holds(CHROMA, "kept", &s.data());
    assert_holds(&home, &s.held, &kept);
}

#[test]
fn another_major_version_takes_the_export_and_nothing_else() {
    let s = server(OLD_CHROMA);
    let home = s.home("export = [\"hot\"]");
    s.lab.ok(&["stop", "-t", "1", &s.container]);
    sh(&format!("find '{}' -mindepth 1 -delete", s.data()));
    s.replace("run -d", CHROMA, RUN);
    s.lab.await_chroma(&s.container);
    home.tars(&["restore", "--latest", "--yes"]).expect(1).says("comes from ChromaDB 0").says("--via-export");
    // Over data that is there, which goes.
    s.lab.chroma_py(&s.container, &["seed"]);
    change_it(&s);
    home.tars(&["restore", "--latest", "--yes", "--via-export"]).expect(0);
    s.lab.await_chroma(&s.container);
    let found = s.lab.chroma_holds(&s.container);
    assert_same_records(&s.held[0], &found[0]);
    assert_eq!(found[1], s.held[1], "the index finds something else");
}

#[test]
fn a_server_that_would_keep_less_than_the_export_has_gets_its_old_data_back() {
    let s = server(CHROMA);
    let home = s.home("export = [\"hot\"]");
    s.lab.ok(&["stop", "-t", "1", &s.container]);
    sh(&format!("find '{}' -mindepth 1 -delete", s.data()));
    s.replace("run -d", OLD_CHROMA, RUN);
    s.lab.await_chroma(&s.container);
    s.lab.chroma_py(&s.container, &["seed"]);
    let before = s.lab.chroma_py(&s.container, &["dump"]);
    // It takes lists in metadata, and forgets them.
    home.tars(&["restore", "--latest", "--yes", "--via-export"]).expect(1).says("does not keep the metadata");
    s.lab.await_chroma(&s.container);
    let [a, b] = [home.at("a.json"), home.at("b.json")];
    std::fs::write(&a, before).unwrap();
    std::fs::write(&b, s.lab.chroma_py(&s.container, &["dump"])).unwrap();
    run("python3", &[&lab_file("chroma.py"), "-", "compare", &a, &b]).expect(0);
}

/// Places, collections, counts and records; vectors of the cosine space are made anew, so they may differ a little.
#[track_caller]
fn assert_same_records(a: &str, b: &str) {
    let [a, b]: [Value; 2] = [a, b].map(|text| serde_json::from_str(text).unwrap());
    let flat = |dump: &Value| -> Vec<(String, String, String, Vec<Value>)> {
        let mut all = Vec::new();
        for place in dump.as_array().unwrap() {
            for c in place["collections"].as_array().unwrap() {
                let text = |v: &Value| v.as_str().unwrap().to_owned();
                let records = c["records"].as_array().unwrap().clone();
                all.push((text(&place["tenant"]), text(&place["database"]), text(&c["name"]), records));
            }
        }
        all
    };
    let (a, b) = (flat(&a), flat(&b));
    assert_eq!(
        a.iter().map(|c| (&c.0, &c.1, &c.2)).collect::<Vec<_>>(),
        b.iter().map(|c| (&c.0, &c.1, &c.2)).collect::<Vec<_>>()
    );
    for (x, y) in a.iter().zip(&b) {
        assert_eq!(x.3.len(), y.3.len(), "{}", x.2);
        for (r, s) in x.3.iter().zip(&y.3) {
            for key in ["id", "document", "metadata", "uri"] {
                assert_eq!(r[key], s[key], "{} of {}", key, r["id"]);
            }
            for (v, w) in r["embedding"].as_array().unwrap().iter().zip(s["embedding"].as_array().unwrap()) {
                assert!((v.as_f64().unwrap() - w.as_f64().unwrap()).abs() < 1e-5, "{} {v} {w}", r["id"]);
            }
        }
    }
}

const NEW: &str = "changed documents empty inner_product l2-vectors legacy.space odd";
const OLD: &str = "changed documents empty inner_product l2-vectors later legacy.space";

fn collections(s: &Server) -> String {
    let url = s.lab.url(&s.container, 8000);
    let list =
        sh(&format!("{ASK} '{url}/api/v2/tenants/default_tenant/databases/default_database/collections'"));
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut names: Vec<&str> = list.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn killed_at_any_step_it_is_old_or_new_and_runs() {
    let s = server(CHROMA);
    let home = s.home("");
    killed_at_every_line(
        &home,
        5,
        || restore_to_kill(&home, false, &[]),
        || {
            if collections(&s) == NEW {
                change_it(&s);
            }
        },
        |line| {
            home.tars(&["recover"]).expect(0);
            assert_eq!(s.state(), "running");
            s.lab.await_chroma(&s.container);
            let now = collections(&s);
            assert!(now == NEW || now == OLD, "{now} after a kill at line {line}");
        },
    );
    s.lab.await_chroma(&s.container);
    s.assert_restored(&home);
}

#[test]
fn a_copy_of_the_bash_script_comes_back_and_a_damaged_one_does_not() {
    let s = server(CHROMA);
    s.lab.ok(&["stop", "-t", "1", &s.container]);
    let home = Home::new().source("chromadb", &source("chromadb", &s.container, "")).ready();
    let archive = legacy::make(&home.path("store/daily"), "20260131_020000", "tar");
    legacy::put_in(&archive, "chromadb.tar.gz", &format!("tar -C '{}' -czf - .", s.data()));
    s.lab.ok(&["start", &s.container]);
    s.lab.await_chroma(&s.container);
    change_it(&s);
    let name = "tars-backup-20260131_020000";
    home.tars(&["restore", name, "--yes", "--component", "chromadb"]).expect(0);
    s.assert_restored(&home);
    change_it(&s);
    let changed = s.lab.chroma_py(&s.container, &["dump"]);
    let cut = format!(
        "v=$(mktemp -d); cp -a '{0}/.' $v; rm $v/*/data_level0.bin; tar -C $v -czf - .; rm -rf $v",
        s.data()
    );
    legacy::put_in(&archive, "chromadb.tar.gz", &cut);
    home.tars(&["restore", name, "--yes", "--component", "chromadb"]).expect(1).says("lacks the vectors");
    s.lab.await_chroma(&s.container);
    assert_eq!(s.lab.chroma_py(&s.container, &["dump"]), changed);
}
