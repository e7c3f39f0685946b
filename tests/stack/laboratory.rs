//! The laboratory itself: what other tests build on is there and behaves like the stack that it stands for. What could go
//! wrong: a server that answers nothing, or a dump that sees nothing, would make every comparison hold.

use serde_json::Value;

use crate::lab::{CHROMA, Lab, OLD_CHROMA, http_get, lab_file, until};
use crate::support::{Home, sh};

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
    let mut before = String::new();
    for (image, name, v1) in [(CHROMA, "new", 410), (OLD_CHROMA, "old", 200)] {
        let volume = lab.volume(&format!("{name}_data"));
        let path = "/chroma/chroma";
        let server = lab.chroma(image, name, Some(&format!("{volume}:{path}")), Some(path));
        let url = lab.url(&server, 8000);
        assert_eq!(http_get(&url, "/api/v1/heartbeat").0, v1);
        assert_eq!(http_get(&url, "/api/v2/heartbeat").0, 200);

        lab.chroma_py(&server, &["seed"]);
        let held = lab.chroma_holds(&server);
        let dump: Value = serde_json::from_str(&held[0]).unwrap();
        let counts: Vec<_> = dump.as_array().unwrap().iter().map(counts).collect();
        assert_eq!(
            counts,
            [[882, 2500, 0, 50, 1200, 30, if v1 == 200 { 14 } else { 15 }].as_slice(), &[120, 0], &[40]]
        );
        if v1 == 200 {
            assert!(lab.chroma_py(&server, &["--v1", "dump"]) == held[0], "v1 tells another story");
        }

        if name == "old" {
            before.push_str(&held[0]);
        }
        lab.ok(&["stop", &server]);
        let copy = home.at(name);
        lab.ok(&["cp", &format!("{server}:{path}"), &copy]);
        // No assert_eq!: it would print megabytes.
        assert!(
            lab.chroma_data_holds(image, &format!("{name}-copy"), &copy) == held,
            "{image}: the copy differs"
        );
    }
    // Data of the old one that the new one opens are the same data.
    let [dump, _] = lab.chroma_data_holds(CHROMA, "upgraded", &home.at("old"));
    std::fs::write(home.path("before.json"), before).unwrap();
    std::fs::write(home.path("upgraded.json"), dump).unwrap();
    let (before, upgraded) = (home.at("before.json"), home.at("upgraded.json"));
    sh(&format!("python3 '{}' - compare '{before}' '{upgraded}'", lab_file("chroma.py")));
}

/// Records of each collection of a database.
fn counts(database: &Value) -> Vec<u64> {
    let collections = database["collections"].as_array().unwrap();
    collections.iter().map(|c| c["count"].as_u64().unwrap()).collect()
}
