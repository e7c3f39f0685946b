//! Redis comes back: with and without an append-only file, under odd names, whether it runs or not; and whatever does not
//! serve the restored keys gets its old data again. What could go wrong: a server that ignores the dump file and is empty.

use std::path::{Path, PathBuf};

use crate::lab::{Lab, ODD_PASSWORD, lab_file, source, until};
use crate::legacy;
use crate::redis::portrait;
use crate::support::{Home, halted_before_the_exchange, killed_at_every_line, restore_to_kill, sh};

const RESTORE: [&str; 3] = ["restore", "--latest", "--yes"];
const APPEND: [&str; 4] = ["--appendonly", "yes", "--enable-debug-command", "yes"];

fn home(container: &str, more: &str) -> Home {
    Home::new().source("redis", &source("redis", container, more)).ready()
}

fn data(lab: &Lab, volume: &str) -> String {
    lab.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", volume]).trim().to_owned()
}

fn state(lab: &Lab, container: &str) -> String {
    lab.ok(&["inspect", "-f", "{{.State.Status}}", container]).trim().to_owned()
}

fn odd(lab: &Lab, container: &str) {
    sh(&format!("'{}' '{container}'", lab_file("odd-redis.sh")));
    // Some have been saved before.
    lab.redis_cli(container, &["SET", "late", "1"]);
}

#[track_caller]
fn assert_same(lab: &Lab, container: &str, wanted: &[String]) {
    for (wanted, now) in wanted.iter().zip(&portrait(lab, container)) {
        assert_eq!(wanted, now);
    }
    assert_eq!(portrait(lab, container).len(), wanted.len());
}

/// Nothing of a restore lies beside the data, and nothing is left to be undone.
#[track_caller]
fn assert_clean(home: &Home, data: &str) {
    let beside = Path::new(data).parent().unwrap();
    assert_eq!(sh(&format!("find '{}' -name '*tars-restore*'", beside.display())), "");
    assert!(!home.path("state/run.journal").exists());
}

fn restart(lab: &Lab, container: &str) {
    lab.ok(&["restart", "-t", "10", container]);
    lab.await_redis(container);
    until("its data is read", || lab.redis_info(container, "loading") == "0");
}

#[test]
fn every_key_comes_back_and_stays_whatever_the_server_reads() {
    let lab = Lab::new();
    let cases: [(&str, &[&str]); 3] = [
        ("append", &APPEND),
        ("dump", &["--enable-debug-command", "yes"]),
        ("memory", &["--save", "", "--enable-debug-command", "yes"]),
    ];
    for (name, server) in cases {
        let volume = lab.volume(name);
        let redis = lab.redis(name, &["-v", &format!("{volume}:/data")], server);
        odd(&lab, &redis);
        lab.sh(&redis, "echo mine > /data/nodes.conf; mkdir /data/modules; echo so > /data/modules/m.so; chown -R redis:redis /data; chmod 750 /data");
        lab.redis_cli(&redis, &["SAVE"]);
        let home = home(&redis, "");
        home.backup(0);
        let before = portrait(&lab, &redis);
        let looks = "find . -not -name '*.incr.aof' -printf '%P %U %G %m\\n' | sort";
        let data = data(&lab, &volume);
        let files = sh(&format!("cd '{data}'; {looks}"));
        lab.redis_cli(&redis, &["FLUSHALL"]);
        lab.redis_cli(&redis, &["FUNCTION", "FLUSH"]);
        lab.redis_cli(&redis, &["SET", "newer", "1"]);
        home.tars(&["restore", "--latest", "--dry-run"]).expect(0).says("Redis 7.0.15, 1 keys");
        assert_eq!(lab.redis_cli(&redis, &["GET", "newer"]), "1\n", "a dry run changes nothing");
        home.tars(&RESTORE).expect(0).says("restored redis");
        assert_same(&lab, &redis, &before);
        assert_eq!(sh(&format!("cd '{data}'; {looks}")), files, "owners and modes");
        assert_eq!(sh(&format!("cat '{data}/nodes.conf' '{data}/modules/m.so'")), "mine\nso\n");
        lab.redis_cli(&redis, &["SET", "later", "1"]);
        assert_clean(&home, &data);
        if name == "memory" {
            continue;
        }
        restart(&lab, &redis);
        assert_eq!(lab.redis_cli(&redis, &["DEL", "later"]), "1\n");
        assert_same(&lab, &redis, &before);
    }
}

#[test]
fn odd_names_and_an_odd_password_are_those_of_the_server() {
    let lab = Lab::new();
    let volume = lab.volume("odd");
    let data = data(&lab, &volume);
    // The server runs as user 100.
    sh(&format!("mkdir '{data}/re dis'; chown -R 100:102 '{data}'"));
    let server = [
        "--dir",
        "/srv/re dis",
        "--dbfilename",
        "odd name.rdb",
        "--appendonly",
        "yes",
        "--appenddirname",
        "aof dir",
        "--appendfilename",
        "an odd \"name\".aof",
        "--requirepass",
        ODD_PASSWORD,
        "--enable-debug-command",
        "yes",
    ];
    let redis = lab.redis("odd", &["-v", &format!("{volume}:/srv")], &server);
    let auth = format!("REDISCLI_AUTH={ODD_PASSWORD}");
    let cli = |words: &[&str]| {
        let mut args = vec!["exec", "-e", &auth, &redis, "redis-cli", "--no-auth-warning"];
        args.extend(words);
        lab.ok(&args)
    };
    sh(&format!("REDIS_PASSWORD={} '{}' '{redis}'", quoted(ODD_PASSWORD), lab_file("odd-redis.sh")));
    let home = home(&redis, "");
    home.backup(0);
    let digest = cli(&["DEBUG", "DIGEST"]);
    cli(&["FLUSHALL"]);
    let done = home.tars(&RESTORE).expect(0);
    assert!(!format!("{}{}", done.stdout, done.stderr).contains("w'ord"), "the password is shown");
    assert_eq!(cli(&["DEBUG", "DIGEST"]), digest);
    lab.ok(&["restart", &redis]);
    lab.await_redis(&redis);
    until("its data is read", || cli(&["INFO", "persistence"]).contains("loading:0"));
    assert_eq!(cli(&["DEBUG", "DIGEST"]), digest);
    assert_clean(&home, &data);
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[test]
fn a_stopped_server_gets_its_files_and_stays_stopped() {
    let lab = Lab::new();
    for (name, destroy) in [("left", "true"), ("wiped", "rm -rf appendonlydir dump.rdb")] {
        let volume = lab.volume(name);
        let redis = lab.redis(name, &["-v", &format!("{volume}:/data")], &APPEND);
        odd(&lab, &redis);
        let home = home(&redis, "");
        home.backup(0);
        let before = portrait(&lab, &redis);
        lab.redis_cli(&redis, &["FLUSHALL"]);
        lab.ok(&["stop", &redis]);
        let data = data(&lab, &volume);
        sh(&format!("cd '{data}'; {destroy}; echo mine > other"));
        home.tars(&RESTORE).expect(0).says("no server has read the new data yet");
        assert_eq!(state(&lab, &redis), "exited");
        assert_eq!(
            sh(&format!("stat -c '%U %a' '{data}/dump.rdb'")),
            sh(&format!("stat -c '%U 644' '{data}'"))
        );
        assert_eq!(sh(&format!("cat '{data}/other'")), "mine\n");
        restart(&lab, &redis);
        assert_same(&lab, &redis, &before);
        restart(&lab, &redis);
        assert_same(&lab, &redis, &before);
        sh(&format!("rm -rf '{data}'/../_data.before-*"));
        assert_clean(&home, &data);
    }
}

#[test]
fn a_server_that_only_its_configuration_file_tells_to_append_is_not_empty() {
    let lab = Lab::new();
    let volume = lab.volume("conf");
    let data = data(&lab, &volume);
    sh(&format!(
        "printf 'save \"\"\\nappendonly yes\\nappenddirname \"set of files\"\\n' > '{data}/redis.conf'"
    ));
    // The entry point of the laboratory puts arguments of its own between.
    let run = "chown -R redis:redis /data; cd /data; exec setpriv --reuid=redis --regid=redis --init-groups redis-server /data/redis.conf";
    let redis = lab.container(
        &["run", "-d"],
        "conf",
        &["-v", &format!("{volume}:/data"), "redis:7-alpine", "sh", "-c", run],
    );
    lab.await_redis(&redis);
    lab.redis_cli(&redis, &["SET", "k", "v"]);
    let home = home(&redis, "");
    home.backup(0);
    lab.ok(&["stop", &redis]);
    sh(&format!("cd '{data}'; rm -rf 'set of files' *.rdb"));
    // Nothing but the file knows of it.
    let archive = as_legacy(&home, "20260131_020000");
    home.tars(&["restore", "--backup-file", &archive, "--yes", "--component", "redis"]).expect(0);
    restart(&lab, &redis);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "v\n");
    assert_eq!(lab.redis_info(&redis, "aof_enabled"), "1");
}

/// The dump of the one backup in an archive as the bash script made them.
fn as_legacy(home: &Home, stamp: &str) -> String {
    let dump = home.unpack("dump").join("redis-dump.rdb");
    legacy_with(home, stamp, &dump)
}

fn legacy_with(home: &Home, stamp: &str, dump: &Path) -> String {
    let archive: PathBuf = legacy::make(&home.path("old"), stamp, "tar");
    let (a, n) = (archive.display(), format!("tars-backup-{stamp}"));
    sh(&format!(
        r#"w=$(mktemp -d); tar -xzf '{a}' -C "$w"; cp '{}' "$w/{n}/redis-dump.rdb"
        sum=$(sha256sum "$w/{n}/redis-dump.rdb" | cut -d' ' -f1)
        sed -i "s/\"checksums\": {{/&\"redis-dump.rdb\": \"$sum\", /" "$w/{n}/manifest.json"
        tar -czf '{a}' -C "$w" '{n}'; sha256sum '{a}' > '{a}.sha256'; rm -rf "$w""#,
        dump.display()
    ));
    archive.display().to_string()
}

#[test]
fn the_dump_of_the_bash_script_comes_back_to_a_server_that_appends() {
    let lab = Lab::new();
    let volume = lab.volume("legacy");
    let redis = lab.redis("legacy", &["-v", &format!("{volume}:/data")], &APPEND);
    odd(&lab, &redis);
    let home = home(&redis, "");
    home.backup(0);
    let before = portrait(&lab, &redis);
    lab.redis_cli(&redis, &["FLUSHALL"]);
    let archive = as_legacy(&home, "20260131_020000");
    home.tars(&["restore", "--backup-file", &archive, "--yes", "--component", "redis"]).expect(0);
    assert_same(&lab, &redis, &before);
    restart(&lab, &redis);
    assert_same(&lab, &redis, &before);

    // From a newer server: nothing is touched.
    let dump = home.path("newer.rdb");
    sh(&format!(
        "f='{0}'; cp '{1}/redis-dump.rdb' \"$f\"; printf REDIS0011 | dd of=\"$f\" conv=notrunc status=none; \
         truncate -s -8 \"$f\"; head -c 8 /dev/zero >> \"$f\"; sed -i s/7.0.15/7.2.15/ \"$f\"",
        dump.display(),
        home.path("dump").join(home.only()).display()
    ));
    let archive = legacy_with(&home, "20260131_030000", &dump);
    let started = lab.ok(&["inspect", "-f", "{{.State.StartedAt}}", &redis]);
    home.tars(&["restore", "--backup-file", &archive, "--yes", "--component", "redis"])
        .expect(1)
        .says("made by Redis 7.2.15, and Redis 7.0.15, which is there now, cannot read it");
    assert_eq!(lab.ok(&["inspect", "-f", "{{.State.StartedAt}}", &redis]), started);
    assert_same(&lab, &redis, &before);
}

/// Makes the container anew on its volume, as `docker compose up` would with another command.
fn remake(lab: &Lab, old: &str, how: &[&str], name: &str, volume: &str, script: &str) -> String {
    lab.ok(&["rm", "-f", old]);
    lab.container(how, name, &["-v", &format!("{volume}:/data"), "redis:7-alpine", "sh", "-c", script])
}

#[test]
fn a_container_that_was_never_started_is_started_and_looked_at() {
    let lab = Lab::new();
    let volume = lab.volume("made");
    let redis = lab.redis("made", &["-v", &format!("{volume}:/data")], &APPEND);
    odd(&lab, &redis);
    let before = portrait(&lab, &redis);
    let service = format!("type = \"redis\"\nservice = \"{}made\"", lab.prefix);
    let home = Home::new().source("redis", &service).ready();
    home.backup(0);
    lab.redis_cli(&redis, &["FLUSHALL"]);
    lab.ok(&["rm", "-f", &redis]);
    let mount = format!("{volume}:/data");
    let mut args = vec!["-v", mount.as_str(), "redis:7-alpine", "redis-server"];
    args.extend(APPEND);
    let redis = lab.container(&["create"], "made", &args);
    home.tars(&RESTORE).expect(0).says("had never been started; it runs now");
    assert_eq!(state(&lab, &redis), "running");
    assert_same(&lab, &redis, &before);
    let data = data(&lab, &volume);
    sh(&format!("rm -rf '{data}'/../_data.before-*"));
    assert_clean(&home, &data);

    // One that throws away what it finds: the old data is back, and nothing runs on it.
    lab.redis_cli(&redis, &["SET", "old", "1"]);
    lab.ok(&["stop", &redis]);
    let wipes = "rm -rf /data/*; exec redis-server --dir /data --save ''";
    let redis = remake(&lab, &redis, &["create"], "made", &volume, wipes);
    home.tars(&RESTORE).expect(1).says("came up empty, and the backup has 166 keys");
    assert_eq!(state(&lab, &redis), "exited");
    assert_clean(&home, &data);
    let redis = remake(
        &lab,
        &redis,
        &["run", "-d"],
        "made",
        &volume,
        "exec redis-server --dir /data --appendonly yes",
    );
    lab.await_redis(&redis);
    assert_eq!(lab.redis_cli(&redis, &["GET", "old"]), "1\n");
}

#[test]
fn a_server_that_does_not_serve_the_restored_keys_gets_its_old_data_back() {
    let lab = Lab::new();
    let volume = lab.volume("bad");
    let redis = lab.redis("bad", &["-v", &format!("{volume}:/data")], &[]);
    lab.redis_cli(&redis, &["SET", "needle", "in the backup"]);
    let home = home(&format!("{}bad", lab.prefix), "");
    home.backup(0);
    lab.redis_cli(&redis, &["FLUSHALL"]);
    lab.redis_cli(&redis, &["SET", "old", "0"]);
    lab.redis_cli(&redis, &["SAVE"]);
    let data = data(&lab, &volume);
    // It writes nothing unless somebody asks, and so has what is in no file.
    let serve = "exec redis-server --dir /data --save ''";
    // One that ends with the new data, and two that come up without it.
    for (script, says) in [
        (format!("! grep -q needle /data/dump.rdb || exit 3; {serve}"), "does not run with the new data"),
        (format!("grep -q needle /data/dump.rdb && rm /data/dump.rdb; {serve}"), "came up empty"),
        (
            format!("grep -q needle /data/dump.rdb && sleep 4 && exit 3; {serve}"),
            "does not run with the new data",
        ),
    ] {
        let redis = remake(&lab, &redis, &["run", "-d"], "bad", &volume, &script);
        lab.await_redis(&redis);
        assert_eq!(lab.redis_cli(&redis, &["INCR", "old"]), "1\n");
        let restore = ["restore", "--latest", "--yes", "--no-safety-backup"];
        home.tars(&restore).expect(1).says(says).says("the old data is as it was");
        until("it runs", || state(&lab, &redis) == "running");
        lab.await_redis(&redis);
        assert_eq!(lab.redis_cli(&redis, &["GET", "old"]), "1\n");
        lab.redis_cli(&redis, &["SET", "old", "0"]);
        lab.redis_cli(&redis, &["SAVE"]);
        assert_eq!(lab.redis_cli(&redis, &["EXISTS", "needle"]), "0\n");
        assert_clean(&home, &data);
    }
    // For a person who wants to look at it.
    home.tars(&["restore", "--latest", "--yes", "--keep"])
        .expect(1)
        .says("left as it is")
        .says("_data.before-");
    assert_eq!(sh(&format!("grep -c needle '{data}/dump.rdb'")), "1\n");
}

/// Every byte was good when it was fetched and compared; then the disk lies. Whatever the server says of it, the old data
/// is served again.
#[test]
fn what_is_damaged_after_it_was_verified_is_not_left_live() {
    fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
        let found = sh(&format!("find '{}' -type f -name '*{ending}'", dir.display()));
        assert!(!found.is_empty(), "nothing ends with {ending} in {}", dir.display());
        found.lines().map(PathBuf::from).collect()
    }
    fn each(dir: &Path, ending: &str, change: impl Fn(&mut Vec<u8>)) {
        for file in files(dir, ending) {
            let mut bytes = std::fs::read(&file).unwrap();
            change(&mut bytes);
            std::fs::write(file, bytes).unwrap();
        }
    }
    type Damage = fn(&Path, &Path);
    let flipped: (Damage, &str) = (
        |new, _| {
            each(new, ".rdb", |bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0x40;
            });
        },
        "does not run with the new data",
    );
    // Undamaged in itself: only what the server counts tells.
    let another: (Damage, &str) = (
        |new, other| {
            let dump = std::fs::read(other).unwrap();
            each(new, ".rdb", |bytes| bytes.clone_from(&dump));
        },
        "keys that do not expire, and the backup has",
    );
    let no_list: (Damage, &str) =
        (|new, _| each(new, ".manifest", |bytes| bytes.truncate(9)), "does not run with the new data");
    let lab = Lab::new();
    for (name, server, damages) in [
        ("append", &["--appendonly", "yes"][..], &[flipped, another, no_list][..]),
        ("dump", &[], &[flipped, another]),
    ] {
        let volume = lab.volume(name);
        let redis = lab.redis(name, &["-v", &format!("{volume}:/data")], server);
        odd(&lab, &redis);
        let home = home(&redis, "");
        home.backup(0);
        lab.redis_cli(&redis, &["FLUSHALL"]);
        lab.redis_cli(&redis, &["MSET", "old", "1", "older", "2"]);
        lab.redis_cli(&redis, &["SAVE"]);
        let data = data(&lab, &volume);
        // A server that reads a FLUSHALL in its append-only file writes another dump.
        let other = home.path("other.rdb");
        sh(&format!("cp '{data}/dump.rdb' '{}'", other.display()));
        for (damage, says) in damages {
            let (restore, beside) = halted_before_the_exchange(&home, &[]);
            damage(&beside, &other);
            restore.signal("CONT");
            restore
                .end()
                .expect(1)
                .says("nothing was restored")
                .says(says)
                .says("the old data is as it was")
                .says(&format!("docker logs --tail 50 {redis}"));
            assert_eq!(state(&lab, &redis), "running");
            lab.await_redis(&redis);
            assert_eq!(lab.redis_cli(&redis, &["MGET", "old", "older"]), "1\n2\n");
            assert_eq!(lab.redis_cli(&redis, &["DBSIZE"]), "2\n");
            assert_clean(&home, &data);
        }
        // And it was nothing else.
        let (restore, _) = halted_before_the_exchange(&home, &[]);
        restore.signal("CONT");
        restore.end().expect(0).says("restored redis");
        assert_eq!(lab.redis_cli(&redis, &["EXISTS", "old"]), "0\n");
    }
}

#[test]
fn a_server_that_evicts_what_it_reads_is_said() {
    let lab = Lab::new();
    let volume = lab.volume("small");
    let mount = format!("{volume}:/data");
    let redis = lab.redis("small", &["-v", &mount], &["--appendonly", "yes"]);
    let fill = "for i = 1, 40000 do redis.call('SET', 'key' .. i, string.rep('x', 100)) end";
    lab.redis_cli(&redis, &["EVAL", fill, "0"]);
    let home = home(&format!("{}small", lab.prefix), "");
    home.backup(0);
    lab.redis_cli(&redis, &["FLUSHALL"]);
    lab.ok(&["rm", "-f", &redis]);
    let small = ["--appendonly", "yes", "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"];
    let redis = lab.redis("small", &["-v", &mount], &small);
    home.tars(&RESTORE).expect(0).says("its maxmemory is too small for the backup: it has evicted");
    assert_ne!(lab.redis_info(&redis, "evicted_keys"), "0");
    // Without eviction it reads everything, and only refuses to write.
    lab.ok(&["rm", "-f", &redis]);
    let full = ["--appendonly", "yes", "--maxmemory", "4mb", "--maxmemory-policy", "noeviction"];
    let redis = lab.redis("small", &["-v", &mount], &full);
    home.tars(&RESTORE).expect(0);
    assert_eq!(lab.redis_cli(&redis, &["DBSIZE"]), "40000\n");
}

#[test]
fn a_server_that_reads_for_long_is_waited_for_but_not_for_ever() {
    let lab = Lab::new();
    // With the second it answers while it reads, without it nobody.
    for (name, interval) in [("silent", "2097152"), ("talks", "1024")] {
        let mount = format!("{}:/data", lab.volume(name));
        // Twenty seconds for 200 keys: on a busy machine, too, two are over before.
        let slow = [
            "--appendonly",
            "yes",
            "--key-load-delay",
            "100000",
            "--loading-process-events-interval-bytes",
            interval,
        ];
        let redis = lab.redis(name, &["-v", &mount], &slow);
        let fill = "for i = 1, 200 do redis.call('SET', 'key' .. i, string.rep('x', 100)) end";
        lab.redis_cli(&redis, &["EVAL", fill, "0"]);
        let home = home(&redis, "save_timeout = \"2s\"");
        home.backup(0);
        lab.redis_cli(&redis, &["FLUSHALL"]);
        lab.redis_cli(&redis, &["SET", "old", "1"]);
        home.tars(&RESTORE).expect(1).says("did not serve the new data within 2 s");
        lab.await_redis(&redis);
        assert_eq!(lab.redis_cli(&redis, &["GET", "old"]), "1\n");
        sh(&format!("sed -i /save_timeout/d '{}'", home.at("config.toml")));
        // Whoever is tired of waiting gets the old data, too.
        let waiting = home.spawn(&RESTORE);
        let begun = lab.ok(&["inspect", "-f", "{{.State.StartedAt}}", &redis]);
        until("it is started with the new data", || {
            lab.ok(&["inspect", "-f", "{{.State.StartedAt}} {{.State.Running}}", &redis])
                != format!("{} true\n", begun.trim())
                && state(&lab, &redis) == "running"
        });
        waiting.signal("INT");
        assert!(waiting.end().code > 2);
        until("it runs", || state(&lab, &redis) == "running");
        lab.await_redis(&redis);
        assert_eq!(lab.redis_cli(&redis, &["GET", "old"]), "1\n");
        home.tars(&RESTORE).expect(0);
        assert_eq!(lab.redis_cli(&redis, &["DBSIZE"]), "200\n");
    }
}

#[test]
fn a_server_that_dies_of_its_data_again_and_again_gets_the_restored() {
    let lab = Lab::new();
    let volume = lab.volume("loop");
    let mount = format!("{volume}:/data");
    let mut args = vec!["--restart", "unless-stopped", "-v", mount.as_str()];
    args.push("redis:7-alpine");
    let redis = lab.redis("loop", &args, &APPEND);
    odd(&lab, &redis);
    lab.redis_cli(&redis, &["BGREWRITEAOF"]);
    until("it is written", || lab.redis_info(&redis, "aof_rewrite_in_progress") == "0");
    let home = home(&redis, "");
    home.backup(0);
    let before = portrait(&lab, &redis);
    lab.ok(&["stop", &redis]);
    let data = data(&lab, &volume);
    sh(&format!(
        "cd '{data}/appendonlydir'; for f in *.base.rdb; do printf XXXX | dd of=\"$f\" bs=1 seek=5000 conv=notrunc status=none; done"
    ));
    lab.ok(&["start", &redis]);
    until("it dies", || lab.ok(&["inspect", "-f", "{{.RestartCount}}", &redis]).trim() != "0");
    home.tars(&RESTORE).expect(0).says("it is kept in");
    assert_eq!(state(&lab, &redis), "running");
    assert_same(&lab, &redis, &before);
    sh(&format!("ls '{data}'/../_data.before-*/appendonlydir; rm -rf '{data}'/../_data.before-*"));
    assert_clean(&home, &data);
}

#[test]
fn what_cannot_be_put_back_is_refused_before_anything_is_touched() {
    let lab = Lab::new();
    // In the container's own layer.
    let own = lab.redis("own", &["tars-lab/services:1"], &[]);
    lab.redis_cli(&own, &["SET", "k", "v"]);
    let of_own = home(&own, "");
    of_own.backup(0);
    lab.redis_cli(&own, &["SET", "k", "w"]);
    of_own.tars(&RESTORE).expect(0);
    assert_eq!(lab.redis_cli(&own, &["GET", "k"]), "v\n");
    of_own.tars(&["restore", "--latest", "--to", &of_own.at("out")]).expect(0);
    sh(&format!("redis-check-rdb '{}/redis-dump.rdb'", of_own.at("out")));

    let mount = format!("{}:/data", lab.volume("a"));
    let redis = lab.redis("a", &["-v", &mount], &["--appendonly", "yes"]);
    lab.redis_cli(&redis, &["SET", "k", "v"]);
    let home = home(&format!("{}a", lab.prefix), "");
    home.backup(0);
    // A replica takes its data from elsewhere again.
    lab.redis_cli(&redis, &["REPLICAOF", "master.example", "6379"]);
    home.tars(&RESTORE).expect(1).says("is a replica of master.example");
    lab.redis_cli(&redis, &["REPLICAOF", "NO", "ONE"]);
    // A part of its data lies elsewhere. A server that appends does not even start so.
    lab.ok(&["rm", "-f", &redis]);
    let nested = format!("{}:/data/appendonlydir", lab.volume("b"));
    let redis = lab.redis("a", &["-v", &mount, "-v", &nested], &[]);
    home.tars(&RESTORE).expect(1).says("/data/appendonlydir is a mount of its own");
    assert_eq!(state(&lab, &redis), "running");
}

#[test]
fn one_component_alone_comes_back_and_a_bind_mount_as_well() {
    let lab = Lab::new();
    let home = Home::new().documents();
    let bind = home.at("re dis");
    sh(&format!("mkdir '{bind}'"));
    let redis = lab.redis("bind", &["-v", &format!("{bind}:/data")], &["--appendonly", "yes"]);
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = home.source("redis", &source("redis", &redis, "")).ready();
    home.backup(0);
    lab.redis_cli(&redis, &["SET", "k", "after"]);
    std::fs::write(home.path("docs/a.txt"), "after\n").unwrap();
    home.tars(&["restore", "--latest", "--yes", "--component", "redis"]).expect(0);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "before\n");
    assert_eq!(std::fs::read_to_string(home.path("docs/a.txt")).unwrap(), "after\n");
    // What was there is in the safety copy.
    let found = sh(&format!("ls '{}'/*.tar.gz", home.at("state/pre-restore")));
    home.tars(&["restore", "--backup-file", found.trim(), "--yes", "--component", "redis"]).expect(0);
    assert_eq!(lab.redis_cli(&redis, &["GET", "k"]), "after\n");
}

#[test]
fn killed_at_any_step_the_server_is_old_or_new_and_runs() {
    let lab = Lab::new();
    let volume = lab.volume("killed");
    let redis = lab.redis("killed", &["-v", &format!("{volume}:/data")], &["--appendonly", "yes"]);
    lab.redis_cli(&redis, &["MSET", "k", "before", "only", "before"]);
    let home = home(&redis, "");
    home.backup(0);
    let data = data(&lab, &volume);
    killed_at_every_line(
        &home,
        6,
        || restore_to_kill(&home, true, &[]),
        || {
            lab.redis_cli(&redis, &["SET", "k", "after"]);
            lab.redis_cli(&redis, &["DEL", "only"]);
        },
        |line| {
            until("it is recovered", || !home.path("state/run.journal").exists());
            until("it runs", || state(&lab, &redis) == "running");
            lab.await_redis(&redis);
            until("its data is read", || lab.redis_info(&redis, "loading") == "0");
            let values = lab.redis_cli(&redis, &["MGET", "k", "only"]);
            assert!(["before\nbefore\n", "after\n\n"].contains(&values.as_str()), "{line}: {values:?}");
            assert_clean(&home, &data);
        },
    );
    home.tars(&["recover"]).expect(0);
}

#[test]
fn killed_while_a_container_is_started_for_the_first_time_it_has_old_or_new_data() {
    let lab = Lab::new();
    let volume = lab.volume("first");
    let mount = format!("{volume}:/data");
    let redis = lab.redis("first", &["-v", &mount], &["--appendonly", "yes"]);
    lab.redis_cli(&redis, &["SET", "k", "before"]);
    let home = home(&redis, "");
    home.backup(0);
    lab.redis_cli(&redis, &["SET", "k", "after"]);
    let data = data(&lab, &volume);
    killed_at_every_line(
        &home,
        5,
        || restore_to_kill(&home, true, &[]),
        || {
            lab.ok(&["rm", "-f", &redis]);
            lab.container(
                &["create"],
                "first",
                &["-v", &mount, "redis:7-alpine", "redis-server", "--appendonly", "yes"],
            );
        },
        |line| {
            until("it is recovered", || !home.path("state/run.journal").exists());
            if state(&lab, &redis) != "running" {
                lab.ok(&["start", &redis]);
            }
            lab.await_redis(&redis);
            until("its data is read", || lab.redis_info(&redis, "loading") == "0");
            let value = lab.redis_cli(&redis, &["GET", "k"]);
            assert!(["before\n", "after\n"].contains(&value.as_str()), "{line}: {value:?}");
            assert_clean(&home, &data);
            lab.redis_cli(&redis, &["SET", "k", "after"]);
        },
    );
}
