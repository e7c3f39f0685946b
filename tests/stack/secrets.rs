//! Passwords reach the servers, and nothing else.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::lab::{Lab, ODD_PASSWORD, assert_failed, source};
use crate::support::{Done, Home, sh};

/// A password that any encoding leaves recognisable.
fn password(core: &str) -> String {
    format!("{ODD_PASSWORD}{core}")
}

/// Runs a backup while every command line of the machine is looked at, from outside and inside the containers.
fn watched(lab: &Lab, home: &Home, containers: &[&str], cores: &[&str]) -> Done {
    let over = AtomicBool::new(false);
    let seen = |text: &str, place: &str| {
        for core in cores {
            assert!(!text.contains(core), "a password is in the process list ({place}): {text}");
        }
    };
    std::thread::scope(|scope| {
        let outside = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::SeqCst) {
                for entry in std::fs::read_dir("/proc").unwrap() {
                    // Processes come and go while we look.
                    let line = std::fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
                    seen(&String::from_utf8_lossy(&line), "/proc");
                }
                rounds += 1;
            }
            rounds
        });
        let inside = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                for container in containers {
                    seen(&lab.ok(&["top", container, "-eo", "pid,args"]), "docker top");
                }
            }
        });
        let done = home.tars(&["-vv", "backup", "--json"]);
        over.store(true, Ordering::SeqCst);
        assert!(outside.join().unwrap() > 2, "too few looks to prove anything");
        inside.join().unwrap();
        done
    })
}

#[test]
fn passwords_are_in_no_process_list_no_output_and_no_archive() {
    let lab = Lab::new();
    let pg = lab.start_postgres("postgres");
    let redis = lab.redis("redis", &[], &["--save", ""]);
    let (pg_core, redis_core) = ("CorePg7316", "CoreRedis4921");
    let (pg_password, redis_password) = (password(pg_core), password(redis_core));
    // Set while they run, by standard input: no container knows them.
    lab.feed(
        &redis,
        &["redis-cli"],
        format!("SET k v\nCONFIG SET requirepass {}\n", serde_json::to_string(&redis_password).unwrap())
            .as_bytes(),
    );
    lab.await_postgres(&pg);
    lab.sql(&pg, "tars_home", &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD $p${pg_password}$p$"));
    lab.sh(
        &pg,
        "f=$PGDATA/pg_hba.conf; { echo 'local all keeper scram-sha-256'; cat $f; } >/tmp/hba && cat /tmp/hba >$f",
    );
    lab.sql(&pg, "tars_home", "SELECT pg_reload_conf()");

    let with = |pg_secret: &str, redis_secret: &str, env: &[(&str, &str)]| {
        let home = Home::new().documents();
        std::fs::write(home.path("pg password"), format!("{pg_password}\n")).unwrap();
        let at = |text: &str| text.replace("HOME", &home.at(""));
        let (pg_secret, redis_secret) = (at(pg_secret), at(redis_secret));
        let mut home = home
            .source("postgres", &source("postgres", &pg, &format!("user = \"keeper\"\n{pg_secret}")))
            .source("redis", &source("redis", &redis, &redis_secret));
        for (key, value) in env {
            home = home.env(key, value);
        }
        home.ready()
    };
    let by_file = "password = { file = \"HOMEpg password\" }";
    let by_env = "password = { env = \"REDIS_SECRET\" }";

    let home = with(by_file, by_env, &[("REDIS_SECRET", &redis_password)]);
    let cores = [pg_core, redis_core];
    let done = watched(&lab, &home, &[&pg, &redis], &cores).expect(0);
    let outputs = format!("{}{}", done.stdout, done.stderr);
    let unpacked = home.unpack("out");
    sh(&format!("gunzip -r '{}'", unpacked.display()));
    for core in cores {
        assert!(!outputs.contains(core), "{outputs}");
        for place in ["store", "out", "state", "config.toml"] {
            let found = sh(&format!("grep -rl {core} '{}' || true", home.at(place)));
            assert_eq!(found, "", "a password is in a file");
        }
    }
    assert_eq!(home.manifest()["details"]["redis"]["facts"]["databases"]["0"]["keys"], 1);

    // A missing and a wrong one: said, with what to do, and still not shown.
    let home = with(by_file, "", &[]);
    let done = home.tars(&["backup"]).says("set password = ");
    assert_failed(&home, done, "redis", &["NOAUTH Authentication required"], "degraded");
    let wrong = password("CoreWrong8035");
    let home = with(by_file, by_env, &[("REDIS_SECRET", &wrong)]);
    let done = home.tars(&["backup"]).says("set password = ");
    assert!(!done.stderr.contains("CoreWrong8035"), "{}", done.stderr);
    assert_failed(&home, done, "redis", &["WRONGPASS"], "degraded");
    let home = with(
        by_env,
        by_env.replace("REDIS", "RIGHT").as_str(),
        &[("REDIS_SECRET", &wrong), ("RIGHT_SECRET", &redis_password)],
    );
    let done = home.tars(&["backup"]);
    assert!(!done.stderr.contains("CoreWrong8035"), "{}", done.stderr);
    assert_failed(
        &home,
        done,
        "postgres",
        &["password authentication failed for user \"keeper\""],
        "partial",
    );
}

#[test]
fn the_password_in_the_arguments_of_redis_is_used_and_never_shown() {
    let lab = Lab::new();
    let core = "CoreArgs5150";
    let password = password(core);
    let redis = lab.redis("redis", &[], &["--save", "", "--requirepass", &password]);
    let home = Home::new().source("redis", &source("redis", &redis, "")).ready();
    let done = watched(&lab, &home, &[&redis], &[core]).expect(0);
    assert!(!format!("{}{}", done.stdout, done.stderr).contains(core));
    home.unpack("out");
    assert_eq!(sh(&format!("grep -rl {core} '{}' || true", home.root().display())), "");
}
