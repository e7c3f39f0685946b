//! Archives as the bash script before us made them (v1.0.12), with GNU tar or busybox tar and GNU gzip: the same layout,
//! bare digests, an absolute path in `.sha256`, names of local time, an empty name for "nothing failed".

use std::path::{Path, PathBuf};

use crate::support::sh;

/// Makes one in `dir`; its archive. `tar` is `tar` or `busybox tar`.
pub fn make(dir: &Path, stamp: &str, tar: &str) -> PathBuf {
    let name = format!("tars-backup-{stamp}");
    let script = format!(
        r#"
        d='{dir}'; n='{name}'; w=$(mktemp -d); mkdir -p "$d" "$w/$n/config" "$w/logs/deep" "$w/models/blobs"
        echo 'a line' > "$w/logs/app.log"; ln "$w/logs/app.log" "$w/logs/deep/second"; ln -s app.log "$w/logs/link"
        chown 12:34 "$w/logs/app.log"; chmod 640 "$w/logs/app.log"
        echo model > "$w/models/blobs/file"
        (cd "$w/logs" && {tar} -cf - . | gzip > "$w/$n/backend_logs.tar.gz")
        (cd "$w/models" && {tar} -cf - . | gzip > "$w/$n/ollama-models.tar.gz")
        printf -- '--\n-- PostgreSQL database dump\n--\n\nDROP TABLE IF EXISTS t;\nCREATE TABLE t (v integer);\n--\n-- PostgreSQL database dump complete\n--\n\n' | gzip > "$w/$n/postgres.sql.gz"
        echo 'PORT=80' > "$w/$n/config/tars-home.env"
        cd "$w/$n"
        sum() {{ sha256sum "$1" | cut -d' ' -f1; }}
        cat > manifest.json <<J
{{"version": "1.0.12", "timestamp": "2026-01-31T02:00:00+01:00", "backup_name": "$n",
 "components": ["postgres", "ollama", "backend_logs", "configuration"],
 "checksums": {{"postgres.sql.gz": "$(sum postgres.sql.gz)", "ollama-models.tar.gz": "$(sum ollama-models.tar.gz)",
   "backend_logs.tar.gz": "$(sum backend_logs.tar.gz)", "config/": "$(find config -type f -exec sha256sum {{}} + | sha256sum | cut -d' ' -f1)"}},
 "host": "home", "docker_volumes": ["deploy_chroma_data", "deploy_postgres_data", "deploy_redis_data"],
 "options": {{"include_models": true}}, "failed_components": [""]}}
J
        cd "$w" && tar -czf "$d/$n.tar.gz" "$n"
        sha256sum "$d/$n.tar.gz" > "$d/$n.tar.gz.sha256"
        rm -rf "$w"
        "#,
        dir = dir.display()
    );
    sh(&script);
    dir.join(format!("{name}.tar.gz"))
}

/// Puts what `command` prints into the archive, as its member `name`, and makes its digests anew.
#[allow(dead_code)]
pub fn put_in(archive: &Path, name: &str, command: &str) {
    sh(&format!(
        r#"
        a='{archive}'; n=$(basename "$a" .tar.gz); w=$(mktemp -d); tar -xzf "$a" -C "$w"; cd "$w/$n"
        {{ {command}; }} > '{name}'
        python3 - '{name}' "$(sha256sum '{name}' | cut -d' ' -f1)" <<'P'
import json, sys
m = json.load(open("manifest.json")); m["checksums"][sys.argv[1]] = sys.argv[2]
component = {{"chromadb.tar.gz": "chromadb", "redis-dump.rdb": "redis", "postgres.sql.gz": "postgres"}}[sys.argv[1]]
m["components"] = sorted({{*m["components"], component}}); json.dump(m, open("manifest.json", "w"))
P
        cd "$w"; tar -czf "$a" "$n"; sha256sum "$a" > "$a.sha256"; rm -rf "$w"
        "#,
        archive = archive.display()
    ));
}
