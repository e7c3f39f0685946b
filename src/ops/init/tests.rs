//! From what is seen to a configuration that is good: tables of stacks, and names that nobody would choose.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::propose::*;
use super::recognise::Server;
use super::store::{NoStore, StoreChoice, choose};
use super::text::{Sheet, render};
use super::*;
use crate::config::Places;
use crate::docker::Container;
use crate::mounts::Table;
use crate::setup::{Machine, Setup};
use crate::store::Access;
use crate::vault::Vault;

/// What the program says of a configuration; the runtime is never used.
fn load(text: &str) -> Result<Setup, Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let exe = "/nonexistent/tars-backup".into();
    let access = Access { exe, runtime: runtime.handle().clone(), vault: Arc::new(Vault::default()) };
    let places = Places { state: "/var/lib/tars-backup".into(), runtime: "/run/tars-backup".into() };
    let machine = Machine { places, cores: 2, host: "test".into(), access: &access };
    setup::load(&[("/etc/tars-backup/config.toml".into(), text.to_owned())], &machine)
        .map_err(|problems| problems.iter().map(|p| format!("{p} {:?}", p.hint)).collect())
}

fn local() -> StoreChoice {
    choose(&Table::default(), None, &[], &|p| p.to_owned()).unwrap()
}

fn written(project: &str, made: &Proposal, store: &StoreChoice) -> String {
    render(&Sheet {
        project,
        engine: Some("unix:///run/other.sock"),
        sources: &made.sources,
        left_out: &made.left_out,
        store,
        next: &["editor x".to_owned()],
    })
}

/// The text with every setting in use.
fn all_in_use(text: &str) -> String {
    let setting = |line: &str| {
        let rest = line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
        rest.unwrap_or(line).to_owned()
    };
    text.lines().map(setting).collect::<Vec<_>>().join("\n")
}

/// Proposes, and proves that what is written is good, as it is and with everything in use.
#[track_caller]
fn good(stack: &Stack) -> Proposal {
    let made = propose(stack);
    let text = written("home", &made, &local());
    let in_use: Vec<&str> = made.sources.iter().filter(|s| !s.out_of_use).map(|s| s.name.as_str()).collect();
    match load(&text) {
        Ok(setup) => {
            let read: Vec<&str> = setup.sources.iter().map(|s| s.name.as_str()).collect();
            assert_eq!(read, in_use, "{text}");
            assert_eq!(setup.docker.project.as_deref(), Some("home"));
            let tiers: Vec<&str> = setup.tiers.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(tiers, ["hot", "warm"]);
        }
        Err(problems) => panic!("{problems:#?}\n{text}"),
    }
    match load(&all_in_use(&text)) {
        Ok(setup) => {
            assert_eq!(setup.sources.len(), made.sources.len(), "{text}");
            assert_eq!((setup.stores.len(), setup.tiers.len()), (4, 4));
        }
        Err(problems) => panic!("{problems:#?}\n{text}"),
    }
    made
}

fn service(name: &str, server: Option<Server>, mounts: Vec<Mounted>) -> Service {
    let container = format!("home-{name}-1");
    Service { name: name.into(), container, image: "any:1".into(), server, mounts, ..Service::default() }
}

fn volume(name: &str, destination: &str) -> Mounted {
    let dir = Some(PathBuf::from(format!("/var/lib/docker/volumes/home_{name}/_data")));
    let volume = Volume { name: format!("home_{name}"), short: name.into(), dir, ..Volume::default() };
    Mounted { destination: destination.into(), writable: true, what: What::Volume(volume) }
}

fn bind(path: &str, destination: &str, looked: Looked) -> Mounted {
    let what = What::Bind(Bind {
        path: path.into(),
        real: path.into(),
        looked,
        is_network: path.starts_with("/mnt/nas"),
    });
    Mounted { destination: destination.into(), writable: true, what }
}

fn only_read(mounted: Mounted) -> Mounted {
    Mounted { writable: false, ..mounted }
}

const DIR: Looked = Looked::Directory { is_empty: false };

/// `name: type key=value …`, one line per source; those out of use begin with a minus.
fn lines(made: &Proposal) -> Vec<String> {
    let one = |s: &Source| {
        let keys: Vec<String> = s.keys.iter().map(|(k, v)| format!(" {k}={v}")).collect();
        format!(
            "{}{}: {}{}",
            if s.out_of_use { "-" } else { "" },
            s.name,
            s.kind,
            keys.concat().replace('"', "")
        )
    };
    made.sources.iter().map(one).collect()
}

fn left(made: &Proposal) -> Vec<&str> {
    made.left_out.iter().map(|l| l.what.as_str()).collect()
}

const OWN: &str = "configuration: config_files files=[]";

#[test]
fn the_home_stack_is_what_its_example_says() {
    let named = |s: Service| Service { container: format!("tars-home-{}", s.name), own_name: true, ..s };
    let services = vec![
        service("backend", None, vec![volume("backend_logs", "/app/logs")]),
        service("chromadb", Some(Server::Chroma), vec![volume("chroma_data", "/chroma/chroma")]),
        service("ollama", Some(Server::Ollama), vec![volume("ollama_data", "/root/.ollama")]),
        service(
            "postgres",
            Some(Server::Postgres),
            vec![volume("postgres_data", "/var/lib/postgresql/data")],
        ),
        service("redis", Some(Server::Redis), vec![volume("redis_data", "/data")]),
    ];
    let files = vec!["/opt/tars/docker-compose.home.yml".to_owned(), "/opt/tars/tars-home.env".to_owned()];
    let stack = Stack { services: services.into_iter().map(named).collect(), files, ..Stack::default() };
    let made = good(&stack);
    assert_eq!(
        lines(&made),
        [
            "chromadb: chromadb container=tars-home-chromadb volume=home_chroma_data export=[warm]",
            "postgres: postgres container=tars-home-postgres",
            "redis: redis container=tars-home-redis",
            "configuration: config_files files=[/opt/tars/docker-compose.home.yml,/opt/tars/tars-home.env]",
            "ollama: ollama container=tars-home-ollama",
            "backend_logs: volume volume=home_backend_logs consistency=live anomaly=false critical=false on_by_default=false",
        ]
    );
    assert!(made.left_out.is_empty());
    assert_eq!(made.dirs.len(), 5);
    let on: Vec<&str> =
        made.sources.iter().filter(|s| s.is_on_by_default()).map(|s| s.name.as_str()).collect();
    assert_eq!(on, ["chromadb", "postgres", "redis", "configuration"]);
    let setup = load(&written("home", &made, &local())).unwrap_or_else(|p| panic!("{p:#?}"));
    for source in &setup.sources {
        let wanted = made.sources.iter().find(|s| s.name == source.name).unwrap();
        assert_eq!(source.on_by_default, wanted.is_on_by_default(), "{}", source.name);
    }
}

#[test]
fn a_container_without_a_name_of_its_own_is_found_by_its_service() {
    let mut second = service("db", Some(Server::Postgres), vec![]);
    second.container = "home-db-2".into();
    let stack = |services| Stack { services, ..Stack::default() };
    let one = service("db", Some(Server::Postgres), vec![]);
    assert_eq!(lines(&good(&stack(vec![one.clone()]))), ["db: postgres service=db", OWN]);
    // Where a service has several containers, it tells none.
    assert_eq!(
        lines(&good(&stack(vec![one, second]))),
        ["db: postgres container=home-db-1", "db-2: postgres container=home-db-2 service=db", OWN]
    );
    let odd = Service { name: "Ärger/1".into(), ..service("x", Some(Server::Redis), vec![]) };
    assert_eq!(lines(&good(&stack(vec![odd]))), ["rger-1: redis service=Ärger/1", OWN]);
    let reserved = service("configuration", Some(Server::Redis), vec![]);
    assert_eq!(lines(&good(&stack(vec![reserved])))[0], "configuration-2: redis service=configuration");
}

#[test]
fn databases_without_a_dump_are_stopped_and_named_after_their_service() {
    let stopped = "consistency=stop max_pause=30m";
    let services = vec![
        service(
            "graph",
            Some(Server::Neo4j),
            vec![volume("neo4j_data", "/data"), volume("neo4j_logs", "/logs"), volume("plugins", "/plugins")],
        ),
        service("db", Some(Server::Mysql), vec![bind("/srv/home/mysql", "/var/lib/mysql", DIR)]),
        service("doc", Some(Server::Mongo), vec![]),
        service("cron", None, vec![only_read(volume("neo4j_data", "/backup"))]),
    ];
    let made = good(&Stack { services, ..Stack::default() });
    assert_eq!(
        lines(&made),
        [
            format!("graph: volume volume=home_neo4j_data {stopped}"),
            format!("plugins: volume volume=home_plugins {stopped}"),
            format!("db: volume service=db path=/var/lib/mysql {stopped}"),
            OWN.to_owned(),
            "neo4j_logs: volume volume=home_neo4j_logs consistency=live anomaly=false critical=false on_by_default=false".into(),
        ]
    );
    assert_eq!(left(&made), ["the data of home-doc-1"]);
}

#[test]
fn a_volume_is_one_source_whoever_has_it() {
    let mut empty = volume("empty", "/e");
    let mut memory = volume("memory", "/m");
    let mut nameless = volume("x", "/var/cache/it");
    for (mounted, change) in [
        (&mut empty, (|v| v.is_empty = true) as fn(&mut Volume)),
        (&mut memory, |v| v.in_memory = true),
        (&mut nameless, |v| v.name = "0a".repeat(32)),
    ] {
        if let What::Volume(v) = &mut mounted.what {
            change(v);
        }
    }
    let services = vec![
        service("a", None, vec![only_read(volume("shared", "/in")), volume("catalog", "/c"), memory]),
        service("b", None, vec![volume("shared", "/out"), empty, nameless, volume("log_data", "/l")]),
        service("pg", Some(Server::Postgres), vec![volume("pg", "/var/lib/postgresql/data")]),
        service("copier", None, vec![only_read(volume("pg", "/pg")), volume("x-log", "/anything")]),
        service("reader", None, vec![volume("any", "/var/log/x")]),
    ];
    let loose = vec![Volume { name: "home_old".into(), short: "old".into(), ..Volume::default() }];
    let made = good(&Stack { services, loose, ..Stack::default() });
    let off = "consistency=live anomaly=false critical=false on_by_default=false";
    assert_eq!(
        lines(&made),
        [
            "pg: postgres service=pg".to_owned(),
            "catalog: volume volume=home_catalog consistency=pause".into(),
            "empty: volume volume=home_empty consistency=pause allow_empty=true".into(),
            "log_data: volume volume=home_log_data consistency=pause".into(),
            "shared: volume volume=home_shared consistency=pause".into(),
            OWN.into(),
            format!("any: volume volume=home_any {off}"),
            format!("x-log: volume volume=home_x-log {off}"),
            "-b-it: volume service=b path=/var/cache/it consistency=pause".into(),
            "-old: volume volume=home_old".into(),
        ]
    );
    assert_eq!(left(&made), ["volume home_memory (/m of home-a-1)"]);
}

#[test]
fn a_directory_of_the_host_is_data_unless_it_belongs_to_the_machine() {
    let mounts = vec![
        bind("/srv/home/data", "/data", DIR),
        bind("/srv/home/data/inner", "/inner", DIR),
        bind("/srv/home/new", "/new", Looked::Directory { is_empty: true }),
        bind("/srv/home/logs", "/app/logs", DIR),
        only_read(bind("/srv/home/site [1]", "/site", DIR)),
        only_read(bind("/mnt/nas/documents", "/documents", DIR)),
        bind("/mnt/nas/inbox", "/inbox", DIR),
        bind("/srv/home/gone", "/gone", Looked::Missing),
        bind("/mnt/dead/x", "/dead", Looked::Unknown),
        bind("/srv/home/app.db", "/app.db", Looked::Sqlite),
        bind("/srv/home/app.yml", "/app.yml", Looked::Text),
        only_read(bind("/srv/home/key.txt", "/run/secrets/key", Looked::Text)),
        only_read(bind("/srv/home/token.yml", "/run/secrets/token", Looked::Text)),
        bind("/srv/home/blob", "/blob", Looked::File),
        bind("/var/run/docker.sock", "/var/run/docker.sock", Looked::Special),
        only_read(bind("/proc", "/host/proc", DIR)),
        only_read(bind("/sys", "/host/sys", DIR)),
        only_read(bind("/etc/localtime", "/etc/localtime", Looked::File)),
        only_read(bind("/etc/ssl/certs", "/certs", DIR)),
        only_read(bind("/", "/rootfs", DIR)),
        bind("/var/lib/docker/containers", "/containers", DIR),
        bind("/etc/letsencrypt", "/etc/letsencrypt", DIR),
    ];
    let made = good(&Stack { services: vec![service("app", None, mounts)], ..Stack::default() });
    let inside =
        |name: &str, path: &str| format!("app-{name}: volume service=app path={path} consistency=pause");
    assert_eq!(
        lines(&made),
        [
            inside("letsencrypt", "/etc/letsencrypt"),
            "app-documents: directory path=/mnt/nas/documents mode=inventory require_mount=true critical=false".into(),
            inside("inbox", "/inbox"),
            "app: sqlite path=/srv/home/app.db".into(),
            inside("data", "/data"),
            inside("new", "/new") + " allow_empty=true",
            "app-site: directory path=/srv/home/site [1]".into(),
            "configuration: config_files files=[/srv/home/app.yml]".into(),
            "app-logs: volume service=app path=/app/logs consistency=live anomaly=false critical=false on_by_default=false".into(),
            format!("-{}", inside("dead", "/dead")),
        ]
    );
    let mut left = left(&made);
    left.sort_unstable();
    let paths: Vec<&str> = left.iter().filter_map(|l| l.split(" (").next()).collect();
    assert_eq!(
        paths,
        [
            "/",
            "/etc/ssl/certs",
            "/srv/home/blob",
            "/srv/home/data/inner",
            "/srv/home/gone",
            "/srv/home/key.txt",
            "/srv/home/token.yml",
            "/var/lib/docker/containers",
        ]
    );
}

#[test]
fn what_has_a_source_of_its_own_is_left_out_of_a_directory_around_it() {
    let services = vec![
        service("app", None, vec![bind("/srv/home", "/src", DIR), bind("/srv/home/logs", "/logs", DIR)]),
        service("db", Some(Server::Postgres), vec![bind("/srv/home/pg", "/var/lib/postgresql/data", DIR)]),
        service("graph", Some(Server::Neo4j), vec![bind("/srv/home/a*b/graph", "/data", DIR)]),
    ];
    let files =
        vec!["/srv/home/.env".to_owned(), "/srv/home/compose.yml".to_owned(), "/srv/other.env".to_owned()];
    let made = good(&Stack { services, files, ..Stack::default() });
    let source = made.sources.iter().find(|s| s.name.as_str() == "app-src").unwrap();
    let exclude = source.keys.iter().find(|(k, _)| *k == "exclude").map(|(_, v)| v.clone());
    assert_eq!(exclude, Some(json!(["/.env", "/a\\*b/graph", "/compose.yml", "/pg"])));
    // The logs come along: what is left out there would be in no backup.
    assert_eq!(made.sources.len(), 5);
    // The project may lie behind a link, and be named by either of its names.
    let mut linked = bind("/opt/home", "/src", DIR);
    if let What::Bind(b) = &mut linked.what {
        b.real = "/srv/home".into();
    }
    let services = vec![service("app", None, vec![linked])];
    for (file, real) in
        [("/srv/home/.env", "/srv/home/.env"), ("/etc/app.env", "/srv/home/.env"), ("/opt/home/.env", "/x")]
    {
        let (files, real_files) = (vec![file.to_owned()], vec![real.into()]);
        let made = good(&Stack { services: services.clone(), files, real_files, ..Stack::default() });
        assert!(lines(&made)[0].ends_with("exclude=[/.env]"), "{:?}", lines(&made));
    }
    // What is only listed is no copy of what lies in it.
    let services = vec![service(
        "app",
        None,
        vec![only_read(bind("/mnt/nas/all", "/all", DIR)), bind("/mnt/nas/all/mine", "/mine", DIR)],
    )];
    let made = good(&Stack { services, ..Stack::default() });
    assert!(lines(&made)[1].starts_with("app-mine: volume"), "{:?}", lines(&made));
}

fn table(lines: &[(&str, &str, &str)]) -> Table {
    let line = |(i, (point, kind, how)): (usize, &(&str, &str, &str))| {
        format!("{i} 1 0:{i} / {point} {how} - {kind} x {how}\n")
    };
    Table::parse(lines.iter().enumerate().map(line).collect::<String>().as_bytes())
}

#[test]
fn the_store_is_on_the_only_nas_else_here_and_never_in_what_is_captured() {
    let real = |p: &Path| p.to_owned();
    let root = ("/", "ext4", "rw");
    let nas = ("/mnt/nas", "nfs4", "rw");
    let chosen = |lines: &[(&str, &str, &str)], captured: &[&str]| {
        let captured: Vec<PathBuf> = captured.iter().map(PathBuf::from).collect();
        let c = choose(&table(lines), None, &captured, &real).unwrap();
        format!("{} {} {} {}", c.name, c.path, c.require_mount, c.others.len())
    };
    let here = "local /var/backups/tars-backup false";
    assert_eq!(chosen(&[root, nas], &["/srv"]), "nas /mnt/nas/tars-backup true 0");
    assert_eq!(chosen(&[root], &[]), format!("{here} 0"));
    assert_eq!(chosen(&[root, nas, ("/mnt/two", "cifs", "rw")], &[]), format!("{here} 2"));
    assert_eq!(chosen(&[root, ("/mnt/nas", "nfs4", "ro")], &[]), format!("{here} 0"));
    assert_eq!(
        chosen(&[root, nas, ("/var/lib/docker/volumes/x/_data", "nfs4", "rw")], &[]),
        "nas /mnt/nas/tars-backup true 0"
    );
    // The NAS is captured as a whole, so it holds no store.
    assert_eq!(chosen(&[root, nas], &["/mnt/nas"]), format!("{here} 0"));
    assert_eq!(chosen(&[root, nas], &["/mnt/nas/tars"]), "nas /mnt/nas/tars-backup true 0");
    let given = |path: &str, captured: &str| {
        choose(
            &table(&[root, nas, ("/mnt/usb", "ext4", "rw")]),
            Some(Path::new(path)),
            &[captured.into()],
            &real,
        )
    };
    let name = |path: &str| given(path, "/srv/data").map(|c| (c.name, c.require_mount));
    assert_eq!(name("/mnt/usb/b"), Ok(("disk", true)));
    assert_eq!(name("/mnt/nas/b"), Ok(("nas", true)));
    assert_eq!(name("/srv/data2"), Ok(("local", false)));
    for path in ["/srv", "/srv/data", "/srv/data/deep"] {
        assert!(matches!(name(path), Err(NoStore::Overlap { .. })), "{path}");
    }
    let linked = choose(&table(&[root]), Some(Path::new("/link")), &["/srv".into()], &|_| "/srv/in".into());
    assert!(matches!(linked, Err(NoStore::Overlap { .. })));
    use std::os::unix::ffi::OsStrExt;
    let odd = Path::new(std::ffi::OsStr::from_bytes(b"/caf\xe9"));
    assert_eq!(choose(&table(&[root]), Some(odd), &[], &real), Err(NoStore::NotText(odd.to_owned())));
}

#[test]
fn every_kind_of_store_is_written_well() {
    for path in ["/mnt/nas/x", "/mnt/usb/x", "/x \"y\"\n"] {
        let table = table(&[
            ("/", "ext4", "rw"),
            ("/mnt/nas", "cifs", "rw"),
            ("/mnt/two", "nfs", "rw"),
            ("/mnt/usb", "xfs", "rw"),
        ]);
        let store = choose(&table, Some(Path::new(path)), &[], &|p| p.to_owned()).unwrap();
        let text = written("home", &propose(&Stack::default()), &store);
        let setup = load(&text).unwrap_or_else(|p| panic!("{p:#?}\n{text}"));
        assert_eq!(setup.stores[0].local_root(), Some(Path::new(path)));
        assert_eq!(setup.stores[0].name(), store.name);
        load(&all_in_use(&text)).unwrap_or_else(|p| panic!("{p:#?}\n{text}"));
    }
}

#[test]
fn of_several_projects_none_is_guessed() {
    let of = |project: &str| {
        let mut container = Container::default();
        container.labels.insert("com.docker.compose.project".to_owned(), project.to_owned());
        container
    };
    let choose = |all: &[Container], wanted| choose_project(all, wanted).map_err(|e| e.to_string());
    let both = [of("b"), of("a"), of("b")];
    assert_eq!(choose(&both[..1], None), Ok("b".into()));
    assert_eq!(choose(&both, None), Err("there are several Compose projects: a, b".into()));
    assert_eq!(choose(&both, Some("a")), Ok("a".into()));
    assert_eq!(choose(&both, Some("c")), Err("there is no Compose project \"c\"".into()));
    assert_eq!(choose(&[], Some("a")), Err("there is no container of a Compose project".into()));
}

#[test]
fn a_new_file_is_private_and_one_that_is_there_is_never_touched() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/config.toml");
    must_be_new(&path).unwrap();
    write(&path, "x = 1\n").unwrap();
    let mode = |p: &Path| p.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&dir.path().join("a/b"))), (0o600, 0o700));
    assert!(matches!(must_be_new(&path), Err(InitError::Exists { .. })));
    assert!(matches!(write(&path, "y = 2\n"), Err(InitError::Exists { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x = 1\n");
    assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
}

#[test]
fn a_path_is_made_plain() {
    for (path, wanted) in [("/a/./b/../c", "/a/c"), ("/../x", "/x"), ("/a/..", "/"), ("/a//b/", "/a/b")] {
        assert_eq!(plain(Path::new(path)), Path::new(wanted), "{path}");
    }
}

fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|s| s.replace('\0', "")),
        "[a-z\"'\\\\#\\[\\]{}=\n\r\t\u{7f}\u{85}\u{202e} $.-]{1,40}",
        "[a-z_-]{1,80}",
    ]
    .prop_filter("no text", |s| !s.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever labels and mounts say: it is good, and means what was seen.
    #[test]
    fn any_names_make_a_good_configuration(
        project in odd(),
        names in proptest::collection::vec((odd(), odd(), odd(), 0usize..9), 0..6),
        files in proptest::collection::vec(odd(), 0..4),
        path in odd(),
    ) {
        let servers = [
            None, Some(Server::Chroma), Some(Server::Postgres), Some(Server::Redis), Some(Server::Neo4j),
            Some(Server::Mysql), Some(Server::Mongo), Some(Server::Ollama), None,
        ];
        let each = |(i, (service, at, place, kind)): (usize, &(String, String, String, usize))| Service {
            name: service.clone(),
            container: format!("c{at}"),
            own_name: i % 2 == 0,
            image: place.clone(),
            server: servers[*kind],
            told: vec![format!("/{at}")],
            mounts: vec![
                volume(place, &format!("/{at}")),
                bind(&format!("/srv/{place}"), &format!("/x/{at}"), DIR),
                bind(&format!("/opt/a/{at}"), &format!("/y/{at}"), Looked::Text),
                bind(&format!("/opt/b/{at}"), &format!("/z/{at}"), Looked::Sqlite),
                only_read(bind(&format!("/opt/c/{at}"), &format!("/w/{at}"), DIR)),
                bind(&format!("/opt/d/{at}"), &format!("/v/{at}"), Looked::Unknown),
            ],
        };
        let services = names.iter().enumerate().map(each).collect();
        let files: Vec<String> = files.iter().map(|f| format!("/{f}")).collect();
        let made = propose(&Stack { services, files: files.clone(), ..Stack::default() });
        let store = choose(&Table::default(), Some(Path::new(&format!("/{path}"))), &[], &|p| p.to_owned()).unwrap();
        let text = written(&project, &made, &store);
        let setup = load(&text).map_err(|p| TestCaseError::fail(format!("{p:#?}\n{text}")))?;
        prop_assert_eq!(&setup.docker.project, &Some(project));
        let kept = |sources: &[Source]| sources.iter().filter(|s| !s.out_of_use).count();
        prop_assert_eq!(setup.sources.len(), kept(&made.sources));
        for source in made.sources.iter().filter(|s| !s.out_of_use) {
            let table = format!("sources.{}", source.name);
            for (key, wanted) in &source.keys {
                let there = setup.keys.iter().find(|k| k.table == table && k.name == *key);
                prop_assert_eq!(there.and_then(|k| k.value.as_ref()), Some(wanted));
            }
        }
        load(&all_in_use(&text)).map_err(|p| TestCaseError::fail(format!("{p:#?}\n{text}")))?;
    }
}
