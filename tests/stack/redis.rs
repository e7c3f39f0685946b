//! Redis: what is captured is a new save of everything, wherever it lies and whatever else the server does.

use serde_json::{Value, json};

use crate::lab::{Lab, lab_file, source, until, verify_deep};
use crate::support::{Home, follow_the_guide, sh};

fn home(container: &str, more: &str) -> Home {
    Home::new().source("redis", &source("redis", container, more)).ready()
}

/// One line per key.
const KEYS: &str = include_str!("../lab/redis-keys.lua");

pub fn portrait(lab: &Lab, redis: &str) -> Vec<String> {
    let keys = keys(lab, redis);
    let digest = lab.redis_cli(redis, &["DEBUG", "DIGEST"]);
    // Functions of one library come in any order.
    let functions = lab.redis_cli(redis, &["FUNCTION", "LIST", "WITHCODE"]);
    let mut functions: Vec<&str> = functions.lines().collect();
    functions.sort_unstable();
    keys.iter().map(String::as_str).chain(digest.lines()).chain(functions).map(str::to_owned).collect()
}

/// Every key of the two databases, with what it holds.
pub fn keys(lab: &Lab, redis: &str) -> Vec<String> {
    let of = |db| lab.redis_cli(redis, &["-n", db, "EVAL", KEYS, "0"]);
    ["0", "5"].map(of).iter().flat_map(|k| k.lines()).map(str::to_owned).collect()
}

/// Keys and expiring keys per database, by INFO keyspace, as the manifest has them.
fn keyspace(lab: &Lab, redis: &str) -> Value {
    let text = lab.redis_cli(redis, &["INFO", "keyspace"]);
    let number = |fields: &str, key: &str| -> u64 {
        fields
            .split(',')
            .find_map(|f| f.trim().strip_prefix(key)?.strip_prefix('='))
            .unwrap()
            .parse()
            .unwrap()
    };
    let databases = text.lines().filter_map(|l| l.strip_prefix("db")?.split_once(':'));
    databases
        .map(|(db, f)| (db.to_owned(), json!({ "keys": number(f, "keys"), "expires": number(f, "expires") })))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[test]
fn odd_keys_come_back_whole_by_the_commands_of_the_guide_alone() {
    let lab = Lab::new();
    let volume = format!("{}:/data", lab.volume("redis_data"));
    let server = ["--appendonly", "yes", "--enable-debug-command", "yes"];
    let redis = lab.redis("redis", &["-v", &volume], &server);
    sh(&format!("'{}' '{redis}'", lab_file("odd-redis.sh")));
    let home = home(&redis, "");
    home.backup(0);
    verify_deep(&home);
    let unpacked = home.unpack("out");
    sh(&format!("redis-check-rdb '{}/redis-dump.rdb'", unpacked.display()));
    let manifest = home.manifest();
    let facts = &manifest["details"]["redis"]["facts"];
    let keys = keyspace(&lab, &redis);
    assert!(keys["0"]["expires"].as_u64() > Some(20) && keys["5"]["keys"].as_u64() > Some(100), "{keys}");
    assert_eq!(facts["databases"], keys);
    assert_eq!(facts["functions"], 1);
    assert_eq!(manifest["docker_volumes"], json!([format!("{}redis_data", lab.prefix)]));

    // An empty server with the same settings, made but never started.
    let mut args = vec!["redis:7-alpine", "redis-server"];
    args.extend(server);
    let empty = lab.container(&["create"], "empty", &args);
    let said = follow_the_guide(&unpacked, "redis", &redis, &empty);
    lab.await_redis(&empty);
    let (wanted, loaded) = (portrait(&lab, &redis), portrait(&lab, &empty));
    for (wanted, loaded) in wanted.iter().zip(&loaded) {
        assert_eq!(wanted, loaded, "{said}");
    }
    assert_eq!(wanted.len(), loaded.len());
    assert_eq!(lab.redis_info(&empty, "aof_enabled"), "1");
}

#[test]
fn a_save_that_is_under_way_is_joined() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &["--save", "", "--hz", "1"]);
    lab.redis_cli(&redis, &["EVAL", "for i = 1, 100 do redis.call('SET', 'k' .. i, i) end", "0"]);
    // Five seconds, within which the backup gets to it on a busy machine too.
    lab.redis_cli(&redis, &["CONFIG", "SET", "rdb-key-save-delay", "50000"]);
    lab.redis_cli(&redis, &["BGSAVE"]);
    let home = home(&redis, "save_timeout = \"30s\"");
    home.backup(0);
    assert_eq!(lab.redis_info(&redis, "total_forks"), "1", "it saved once more instead of joining");
    assert_eq!(home.manifest()["details"]["redis"]["facts"]["databases"]["0"]["keys"], 100);
}

/// The new file is there a moment before the server notices that its child is done.
#[test]
fn a_save_that_has_just_written_its_file_is_not_waited_for_in_vain() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &["--save", "", "--hz", "1"]);
    lab.redis_cli(&redis, &["SET", "a", "1"]);
    // The moment is short: several tries.
    for _ in 0..4 {
        let home = home(&redis, "save_timeout = \"60s\"");
        lab.sh(
            &redis,
            "touch /tmp/mark; redis-cli BGSAVE; until [ /data/dump.rdb -nt /tmp/mark ]; do sleep 0.01; done",
        );
        home.backup(0);
    }
}

#[test]
fn a_rewrite_of_the_append_only_file_only_delays_the_save() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &["--save", "", "--appendonly", "yes"]);
    // An old dump file is there, and no save runs while the new one is only scheduled.
    lab.redis_cli(&redis, &["SAVE"]);
    lab.redis_cli(&redis, &["EVAL", "for i = 1, 100 do redis.call('SET', 'k' .. i, i) end", "0"]);
    // Five seconds, so that it is seen, and the backup gets to it, on a busy machine too.
    lab.redis_cli(&redis, &["CONFIG", "SET", "rdb-key-save-delay", "50000"]);
    lab.redis_cli(&redis, &["BGREWRITEAOF"]);
    until("the rewrite runs", || lab.redis_info(&redis, "aof_rewrite_in_progress") == "1");
    let home = home(&redis, "");
    home.backup(0);
    let facts = &home.manifest()["details"]["redis"]["facts"];
    assert_eq!(facts["databases"]["0"]["keys"], 100);
    assert_eq!(facts["aof"], true);
    assert_eq!(lab.redis_info(&redis, "aof_last_bgrewrite_status"), "ok");
}

#[test]
fn the_dump_file_is_found_wherever_the_server_keeps_it() {
    let lab = Lab::new();
    // In the container's own layer: no volume at all.
    let own = lab.redis("own", &["tars-lab/services:1"], &["--save", ""]);
    // Another directory, in a volume; another name.
    let volume = format!("{}:/srv/re dis", lab.volume("other"));
    let other = ["--save", "", "--dir", "/srv/re dis", "--dbfilename", "odd name.rdb"];
    let other = lab.redis("other", &["-v", &volume], &other);
    lab.sh(&other, "chown redis:redis '/srv/re dis'");
    for (redis, volumes) in [(&own, json!([])), (&other, json!([format!("{}other", lab.prefix)]))] {
        for keys in [1, 2] {
            // The second time a dump file is there already, of the same size.
            lab.redis_cli(redis, &["FLUSHALL"]);
            lab.redis_cli(redis, &["SET", &format!("k{keys}"), "v"]);
            let home = home(redis, "");
            home.backup(0);
            let manifest = home.manifest();
            assert_eq!(manifest["docker_volumes"], volumes);
            let unpacked = home.unpack("out");
            let dump = std::fs::read(unpacked.join("redis-dump.rdb")).unwrap();
            let key = format!("k{keys}\u{1}v");
            assert!(dump.windows(key.len()).any(|w| w == key.as_bytes()), "an old dump file was taken");
        }
    }
}

#[test]
fn the_guide_names_the_files_of_this_server() {
    let lab = Lab::new();
    let dump = ["--save", "", "--dbfilename", "odd name.rdb"];
    let append =
        ["--appendonly", "yes", "--appenddirname", "aof dir", "--appendfilename", "an odd \"name\".aof"];
    for (n, server) in [dump.as_slice(), append.as_slice()].into_iter().enumerate() {
        let redis = lab.redis(&format!("redis{n}"), &[], server);
        lab.redis_cli(&redis, &["SET", "k", "v"]);
        let home = home(&redis, "");
        home.backup(0);
        let mut args = vec!["redis:7-alpine", "redis-server"];
        args.extend(server);
        let empty = lab.container(&["create"], &format!("empty{n}"), &args);
        follow_the_guide(&home.unpack("out"), "redis", &redis, &empty);
        lab.await_redis(&empty);
        assert_eq!(lab.redis_cli(&empty, &["GET", "k"]), "v\n");
    }
}

#[test]
fn a_container_is_found_by_its_compose_service_and_project() {
    let lab = Lab::new();
    let service = format!("{}cache", lab.prefix);
    let make = |name: &str, project: &str| {
        let labels = lab.labels(project, "cache");
        let mut args: Vec<&str> = labels.iter().map(String::as_str).collect();
        args.push("redis:7-alpine");
        let container = lab.redis(name, &args, &[]);
        lab.redis_cli(&container, &["SET", name, "1"]);
        container
    };
    let first = make("renamed", "one");
    let with = |extra: &str| {
        let source = format!("type = \"redis\"\nservice = \"{service}\"");
        Home::new().documents().source("redis", &source).extra(extra).ready()
    };
    let found = |home: &Home| home.manifest()["details"]["redis"]["facts"]["container"].clone();
    // By the service, whatever the container is called; also where a configured name is not there.
    let home = with("");
    home.backup(0);
    assert_eq!(found(&home), first);
    let second = make("second", "two");
    let home = with("");
    let done = home.tars(&["backup"]).says("set container = of the source, or docker.project");
    let names = [first.as_str(), second.as_str(), "fits several containers"];
    crate::lab::assert_failed(&home, done, "redis", &names, "degraded");
    let home = with(&format!("[docker]\nproject = \"{}two\"", lab.prefix));
    home.backup(0);
    assert_eq!(found(&home), second);
}

/// What keeps a cache is emptied by its nature.
#[test]
fn a_redis_that_shrank_is_no_anomaly() {
    let lab = Lab::new();
    let redis = lab.redis("redis", &[], &[]);
    let fill = "for i = 1, 20000 do redis.call('SET', 'k' .. i, i) end return 'filled'";
    assert_eq!(lab.redis_cli(&redis, &["EVAL", fill, "0"]).trim(), "filled");
    let home = home(&redis, "");
    home.backup(0);
    lab.redis_cli(&redis, &["FLUSHALL"]);
    home.backup(0);
    let read: Vec<u64> = home
        .committed()
        .iter()
        .map(|name| {
            let text = std::fs::read(home.path(&format!("store/daily/{name}.manifest.json"))).unwrap();
            let manifest: Value = serde_json::from_slice(&text).unwrap();
            manifest["details"]["redis"]["bytes_in"].as_u64().unwrap()
        })
        .collect();
    assert!(read.len() == 2 && read[1] * 10 < read[0], "{read:?}");
    home.tars(&["prune"]).expect(0);
}
