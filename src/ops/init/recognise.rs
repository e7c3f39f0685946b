//! What does a container serve, by its image, its program, and where its data is mounted? What could go wrong: a tool that
//! only has the name of a database in its own (an exporter, a web interface) taken for one, so a name counts as a whole; and
//! a database that is copied like any files, so what the image does not tell is told by the place of the data.

use std::collections::BTreeMap;

/// Servers that are treated each in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    Chroma,
    Postgres,
    Redis,
    Neo4j,
    /// MySQL, or one of its kin.
    Mysql,
    Mongo,
    Ollama,
}

/// How a server is known, and where its data lies.
struct Signs {
    server: Server,
    /// Last part of the name of the image.
    images: &'static [&'static str],
    /// The program that its container runs.
    programs: &'static [&'static str],
    /// Places of its data in the container.
    data: &'static [&'static str],
    /// Those at which nobody else keeps anything. `/data` is anybody's.
    telling: &'static [&'static str],
    /// Variables and options that name another place.
    told_by: &'static [&'static str],
}

const SIGNS: [Signs; 7] = [
    Signs {
        server: Server::Chroma,
        images: &["chroma", "chromadb"],
        programs: &["chroma"],
        data: &["/chroma/chroma", "/data", "/index_data"],
        telling: &["/chroma/chroma"],
        told_by: &["PERSIST_DIRECTORY", "CHROMA_PERSIST_PATH", "--path"],
    },
    Signs {
        server: Server::Postgres,
        images: &[
            "postgres",
            "postgresql",
            "pgvector",
            "timescaledb",
            "timescaledb-ha",
            "postgis",
            "pgvecto-rs",
            "vchord-postgres",
            "paradedb",
            "citus",
        ],
        programs: &["postgres"],
        data: &["/var/lib/postgresql", "/bitnami/postgresql", "/home/postgres/pgdata"],
        telling: &["/var/lib/postgresql", "/bitnami/postgresql"],
        told_by: &["PGDATA"],
    },
    Signs {
        server: Server::Redis,
        images: &["redis", "valkey", "keydb", "redis-stack", "redis-stack-server"],
        programs: &["redis-server", "valkey-server", "keydb-server"],
        data: &["/data", "/var/lib/redis", "/var/lib/valkey", "/bitnami/redis", "/bitnami/valkey"],
        telling: &["/var/lib/redis", "/var/lib/valkey", "/bitnami/redis", "/bitnami/valkey"],
        told_by: &["--dir"],
    },
    Signs {
        server: Server::Neo4j,
        images: &["neo4j"],
        programs: &["neo4j"],
        data: &["/data", "/var/lib/neo4j"],
        telling: &["/var/lib/neo4j"],
        told_by: &[],
    },
    Signs {
        server: Server::Mysql,
        images: &["mysql", "mysql-server", "mariadb", "mariadb-server", "percona", "percona-server"],
        programs: &["mysqld", "mysqld_safe", "mariadbd"],
        data: &["/var/lib/mysql", "/bitnami/mysql", "/bitnami/mariadb"],
        telling: &["/var/lib/mysql", "/bitnami/mysql", "/bitnami/mariadb"],
        told_by: &["--datadir"],
    },
    Signs {
        server: Server::Mongo,
        images: &["mongo", "mongodb", "mongodb-community-server", "mongodb-enterprise-server"],
        programs: &["mongod"],
        data: &["/data/db", "/bitnami/mongodb"],
        telling: &["/data/db", "/bitnami/mongodb"],
        told_by: &["--dbpath"],
    },
    Signs {
        server: Server::Ollama,
        images: &["ollama"],
        programs: &["ollama"],
        data: &["/root/.ollama"],
        telling: &["/root/.ollama"],
        told_by: &["OLLAMA_MODELS"],
    },
];

/// Programs that come in the image of a server, and are none.
const CLIENTS: [&str; 11] = [
    "psql",
    "pg_dump",
    "pg_dumpall",
    "pg_basebackup",
    "redis-cli",
    "redis-sentinel",
    "--sentinel",
    "mysqldump",
    "mariadb-dump",
    "mongodump",
    "mongosh",
];

/// The server of a container: by its image, else by the program in `args`, else by a place of `written`, the mounts that it
/// may write to.
pub fn server<'a>(image: &str, args: &[String], written: impl Iterator<Item = &'a str>) -> Option<Server> {
    let words = || args.iter().flat_map(|a| a.split(|c: char| c.is_whitespace() || ";&|()".contains(c)));
    if words().any(|w| CLIENTS.contains(&file_name(w))) {
        return None;
    }
    let name = image_name(image);
    let by_image = SIGNS.iter().find(|s| s.images.contains(&name.as_str()));
    // Entry point and program; what comes behind may be the name of anything.
    let by_program = || {
        let first = args.iter().take(2).filter(|a| !a.starts_with('-')).map(|a| file_name(a));
        first.filter_map(|word| SIGNS.iter().find(|s| s.programs.contains(&word))).next()
    };
    let mut written = written;
    let by_place = || written.find_map(|at| SIGNS.iter().find(|s| s.telling.iter().any(|t| is_in(at, t))));
    by_image.or_else(by_program).or_else(by_place).map(|s| s.server)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `registry:5000/team/postgres:15@sha256:…` -> `postgres`.
fn image_name(image: &str) -> String {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = file_name(without_digest);
    last.split(':').next().unwrap_or(last).to_ascii_lowercase()
}

/// Whether `path` is `dir` or lies in it.
fn is_in(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Server {
    fn signs(self) -> &'static Signs {
        // Every server has a row; the first one stands in for none.
        SIGNS.iter().find(|s| s.server == self).unwrap_or(&SIGNS[0])
    }

    /// Where the environment or the arguments of a container say that its data lies. Nothing else of the environment is
    /// kept: it has passwords.
    pub fn told(self, env: &BTreeMap<String, String>, args: &[String]) -> Vec<String> {
        let option = |key: &str| {
            args.iter().enumerate().find_map(|(i, a)| {
                let rest = a.strip_prefix(key)?;
                if rest.is_empty() {
                    args.get(i + 1).cloned()
                } else {
                    rest.strip_prefix('=').map(str::to_owned)
                }
            })
        };
        let value = |key: &&str| if key.starts_with("--") { option(key) } else { env.get(*key).cloned() };
        self.signs().told_by.iter().filter_map(value).filter(|path| path.starts_with('/')).collect()
    }

    /// Whether what is mounted at `destination` is its data.
    pub fn owns(self, destination: &str, told: &[String]) -> bool {
        let usual = self.signs().data.iter().copied();
        usual.chain(told.iter().map(String::as_str)).any(|at| is_in(destination, at))
            // One level above, as people mount it; more than that may hold other things, too.
            || told.iter().any(|at| at.rsplit_once('/').is_some_and(|(above, _)| above == destination))
    }

    /// Its name for a person.
    pub fn word(self) -> &'static str {
        match self {
            Self::Chroma => "ChromaDB",
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Neo4j => "Neo4j",
            Self::Mysql => "MySQL or MariaDB",
            Self::Mongo => "MongoDB",
            Self::Ollama => "Ollama",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn the_last_part_of_an_image_tells_what_it_serves_and_a_part_of_a_word_does_not() {
        use Server::*;
        for (image, wanted) in [
            ("postgres:15-alpine", Some(Postgres)),
            ("docker.io/library/postgres", Some(Postgres)),
            ("registry.local:5000/team/Postgres:15@sha256:0123", Some(Postgres)),
            ("registry.local:5000/postgres@sha256:0123", Some(Postgres)),
            ("pgvector/pgvector:pg16", Some(Postgres)),
            ("timescale/timescaledb-ha:pg16", Some(Postgres)),
            ("postgis/postgis:16-3.4", Some(Postgres)),
            ("redis:7-alpine", Some(Redis)),
            ("valkey/valkey:8", Some(Redis)),
            ("eqalpha/keydb", Some(Redis)),
            ("chromadb/chroma:latest", Some(Chroma)),
            ("ghcr.io/chroma-core/chroma:1.5.9", Some(Chroma)),
            ("ollama/ollama:rocm", Some(Ollama)),
            ("neo4j:5-community", Some(Neo4j)),
            ("mariadb:11", Some(Mysql)),
            ("mysql/mysql-server:8", Some(Mysql)),
            ("mongo:7", Some(Mongo)),
            ("prometheuscommunity/postgres-exporter", None),
            ("oliver006/redis_exporter:v1", None),
            ("redis/redisinsight", None),
            ("dpage/pgadmin4", None),
            ("mongo-express", None),
            ("ghcr.io/open-webui/open-webui:ollama", None),
            ("postgres/tool:1", None),
            ("tars-backend:v1.0.10-home", None),
            ("sha256:0123456789abcdef", None),
            ("", None),
        ] {
            assert_eq!(server(image, &[], std::iter::empty()), wanted, "{image}");
        }
    }

    #[test]
    fn an_image_of_ones_own_is_known_by_its_program_or_by_the_place_of_its_data() {
        use Server::*;
        for (line, places, wanted) in [
            ("docker-entrypoint.sh postgres -c fsync=on", &[][..], Some(Postgres)),
            ("/usr/bin/redis-server --appendonly yes", &[], Some(Redis)),
            ("tini mongod", &[], Some(Mongo)),
            ("python app.py postgres", &[], None),
            ("app --with redis-server", &[], None),
            ("app", &["/var/lib/postgresql/data"], Some(Postgres)),
            ("app", &["/var/lib/postgresql"], Some(Postgres)),
            ("app", &["/bitnami/mariadb/data"], Some(Mysql)),
            ("app", &["/chroma/chroma"], Some(Chroma)),
            ("app", &["/root/.ollama"], Some(Ollama)),
            ("app", &["/logs", "/data/db"], Some(Mongo)),
            ("app", &["/var/lib/mysql-files"], None),
            ("app", &["/data"], None),
            ("app", &["/config"], None),
        ] {
            assert_eq!(server("own:1", &args(line), places.iter().copied()), wanted, "{line} {places:?}");
        }
    }

    #[test]
    fn a_client_in_the_image_of_its_server_serves_nothing() {
        for (image, line) in [
            ("postgres:15", "docker-entrypoint.sh psql -h db -f /migrate.sql"),
            ("postgres:15", "sh -c pg_dumpall|gzip>/out"),
            ("redis:7", "docker-entrypoint.sh redis-sentinel /etc/sentinel.conf"),
            ("redis:7", "redis-server /etc/sentinel.conf --sentinel"),
            ("mongo:7", "mongosh --eval x"),
        ] {
            assert_eq!(server(image, &args(line), std::iter::empty()), None, "{image} {line}");
        }
        let line = args("docker-entrypoint.sh sh -c redis-server");
        assert_eq!(server("redis:7", &line, std::iter::empty()), Some(Server::Redis));
    }

    #[test]
    fn its_data_is_what_lies_at_its_places_or_where_it_was_told() {
        let env = BTreeMap::from([
            ("PGDATA".to_owned(), "/srv/pg/15".to_owned()),
            ("POSTGRES_PASSWORD".to_owned(), "/secret".to_owned()),
        ]);
        let told = Server::Postgres.told(&env, &[]);
        assert_eq!(told, ["/srv/pg/15"]);
        for (at, wanted) in [
            ("/var/lib/postgresql/data", true),
            ("/var/lib/postgresql", true),
            ("/srv/pg", true),
            ("/srv/pg/15/base", true),
            ("/srv", false),
            ("/var/lib/postgresql-old", false),
            ("/backups", false),
            ("/docker-entrypoint-initdb.d", false),
        ] {
            assert_eq!(Server::Postgres.owns(at, &told), wanted, "{at}");
        }
        let none = BTreeMap::new();
        assert_eq!(Server::Chroma.told(&none, &args("run --path /x --port 1")), ["/x"]);
        assert_eq!(Server::Redis.told(&none, &args("redis-server --dir=/y")), ["/y"]);
        assert!(Server::Redis.told(&none, &args("redis-server --dir")).is_empty());
        assert!(Server::Chroma.told(&none, &args("run --path relative")).is_empty());
        assert!(Server::Redis.owns("/data", &[]) && !Server::Redis.owns("/usr/local/etc/redis", &[]));
    }
}
