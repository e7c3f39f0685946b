//! The laboratory itself: what other tests build on is there and behaves like the stack that it stands for. What could go
//! wrong: a server that answers nothing, or a dump that sees nothing, would make every comparison hold.

use serde_json::Value;

use crate::lab::{CHROMA, Lab, OLD_CHROMA, http_get, lab_file, until};
use crate::support::{Home, run, sh};

fn health(lab: &Lab, container: &str) -> String {
    lab.ok(&["inspect", "-f", "{{.State.Health.Status}}", container]).trim().to_owned()
}

#[test]
fn the_whole_stack_is_up_as_compose_would_leave_it() {
    let lab = Lab::new();
    let script = |verb| sh(&format!("LAB_PREFIX='{}' '{}' {verb}", lab.prefix, lab_file("stack.sh")));
    script("up");
    let [pg, redis, chroma, ollama, backend] = ["postgres", "redis", "chromadb", "ollama", "backend"]
        .map(|s| format!("{}tars-home-{s}", lab.prefix));

    assert_eq!(lab.sql(&pg, "tars_home", "SELECT 1"), "1\n");
    assert_eq!(lab.redis_cli(&redis, &["PING"]), "PONG\n");
    let answers = |container: &str, port, path: &str| http_get(&lab.url(container, port), path);
    assert_eq!(answers(&chroma, 8000, "/api/v2/heartbeat").0, 200);
    assert_eq!(answers(&chroma, 8000, "/api/v1/heartbeat").0, 410, "which is what its health check asks");
    let (status, models) = answers(&ollama, 11434, "/api/tags");
    assert_eq!(status, 200);
    assert!(models.contains("stand-in:latest"), "{models}");
    assert_eq!(answers(&backend, 8000, "/health").0, 200);
    assert_eq!(answers(&backend, 8000, "/ready").0, 200);
    assert_eq!(answers(&backend, 8000, "/other").0, 404);
    assert!(lab.sh(&backend, "cat /app/logs/backend.log").contains("GET /ready"));

    // By the name of the service on the network of the stack, and by its address from here.
    lab.sh(&backend, "curl -sf http://chromadb:8000/api/v2/heartbeat");
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = lab.ok(&["inspect", "-f", address, &chroma]);
    assert_eq!(http_get(&format!("http://{}:8000", address.trim()), "/api/v2/heartbeat").0, 200);

    let project = format!("{}deploy", lab.prefix);
    for (container, service, volume, destination) in [
        (&pg, "postgres", "postgres_data", "/var/lib/postgresql/data"),
        (&redis, "redis", "redis_data", "/data"),
        (&chroma, "chromadb", "chroma_data", "/chroma/chroma"),
        (&ollama, "ollama", "ollama_data", "/root/.ollama"),
        (&backend, "backend", "backend_logs", "/app/logs"),
    ] {
        let facts: Value = serde_json::from_str(&lab.ok(&["inspect", container])).unwrap();
        let labels = &facts[0]["Config"]["Labels"];
        assert_eq!(labels["com.docker.compose.project"], *project);
        assert_eq!(labels["com.docker.compose.service"], service);
        assert_eq!(facts[0]["HostConfig"]["RestartPolicy"]["Name"], "unless-stopped");
        let mounts = facts[0]["Mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        assert_eq!(mounts[0]["Name"], format!("{project}_{volume}"));
        assert_eq!(mounts[0]["Destination"], destination);
        let needs =
            labels["com.docker.compose.depends_on"].as_str().map(|l| l.split(',').collect::<Vec<_>>());
        let expected =
            ["ollama", "chromadb", "redis", "postgres"].map(|s| format!("{s}:service_healthy:false"));
        assert_eq!(needs.is_some(), service == "backend");
        assert!(needs.is_none_or(|needs| needs == expected));
    }
    for container in [&pg, &redis, &ollama, &backend] {
        until("its health check is content", || health(&lab, container) == "healthy");
    }
    until("its health check has given up", || health(&lab, &chroma) == "unhealthy");

    script("down");
    let filter = format!("name={}", lab.prefix);
    for kind in [["ps", "-aq"], ["volume", "ls"], ["network", "ls"]] {
        let left = lab.ok(&[kind[0], kind[1], "--filter", &filter, "--format", "{{.Labels}}"]);
        assert_eq!(left, "", "{kind:?}");
    }
}

#[test]
fn both_versions_of_chroma_keep_what_they_are_given() {
    let lab = Lab::new();
    let home = Home::new();
    for (image, name, v1) in [(CHROMA, "new", 410), (OLD_CHROMA, "old", 200)] {
        let volume = lab.volume(&format!("{name}_data"));
        let path = "/chroma/chroma";
        let server = lab.chroma(image, name, Some(&format!("{volume}:{path}")), Some(path));
        let url = lab.url(&server, 8000);
        assert_eq!(http_get(&url, "/api/v1/heartbeat").0, v1);
        assert_eq!(http_get(&url, "/api/v2/heartbeat").0, 200);

        lab.chroma_py(&server, &["seed"]);
        let [dump, nearest] = lab.chroma_holds(&server);
        let databases: Value = serde_json::from_str(&dump).unwrap();
        let found: Vec<_> = databases.as_array().unwrap().iter().map(counts).collect();
        // The new one takes lists too.
        let odd = if image == CHROMA { 15 } else { 14 };
        assert_eq!(found, [&[882, 2500, 0, 50, 1200, 30, odd][..], &[120, 0], &[40]]);
        if image == OLD_CHROMA {
            assert!(lab.chroma_py(&server, &["--v1", "dump"]) == dump, "v1 tells another story");
        }

        lab.ok(&["stop", &server]);
        let copy = home.at(name);
        lab.ok(&["cp", &format!("{server}:{path}"), &copy]);
        let second = lab.chroma_data_holds(image, &format!("{name}-copy"), &copy);
        // No assert_eq!: it would print megabytes.
        assert!(second[1] == nearest, "{image}: the index of the copy finds others");
        assert!(same_dumps(&home, [&dump, &second[0]]), "{image}: the copy differs");

        // The comparison sees one changed number.
        let changed = dump.replacen("\"embedding\":[0.", "\"embedding\":[7.", 1);
        assert!(!same_dumps(&home, [&dump, &changed]), "a change is not seen");
    }
}

fn same_dumps(home: &Home, dumps: [&str; 2]) -> bool {
    let [a, b] = [home.at("a.json"), home.at("b.json")];
    std::fs::write(&a, dumps[0]).unwrap();
    std::fs::write(&b, dumps[1]).unwrap();
    let done = run("python3", &[&lab_file("chroma.py"), "-", "compare", &a, &b]);
    assert!(done.code == 0 || done.stderr.contains("the dumps differ"), "{}", done.stderr);
    done.code == 0
}

/// Records of each collection of a database.
fn counts(database: &Value) -> Vec<u64> {
    let collections = database["collections"].as_array().unwrap();
    collections.iter().map(|c| c["count"].as_u64().unwrap()).collect()
}
