//! Where a Redis server keeps its data, under which names, and which of its files it reads when it starts. What could go
//! wrong: with an append-only file a server ignores its dump file, and starts empty without a word; so what a server is
//! told in any way counts, and names that lead out of its directory are refused.

use std::path::Path;

use serde_json::{Map, Value};

use crate::docker::Container;

/// How a server keeps an append-only file, which it reads instead of its dump file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendOnly {
    Off,
    /// Before Redis 7, one file. Redis 7 reads it as well, when it has no other, so it is right where nobody knows.
    OneFile,
    /// Since Redis 7, a directory of files and a list of them.
    Parts,
}

/// The files of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub dir: String,
    pub dump: String,
    pub append_dir: String,
    pub append_file: String,
    pub append_only: AppendOnly,
}

impl Layout {
    /// Whether an entry of its directory is data of the server, and none of the other things that people keep there.
    pub fn owns(&self, name: &str) -> bool {
        let temporary = name.starts_with("temp-") && (name.ends_with(".rdb") || name.ends_with(".aof"));
        temporary || [&self.dump, &self.append_dir, &self.append_file].iter().any(|own| *own == name)
    }

    /// Why files must not be written under these names; they may come from an archive.
    pub fn problem(&self) -> Option<String> {
        let plain = |name: &str| !matches!(name, "" | "." | "..") && !name.contains(['/', '\0']);
        for name in [&self.dump, &self.append_dir, &self.append_file] {
            if !plain(name) {
                return Some(format!("{name:?} is no name of a file"));
            }
        }
        if self.dump == self.append_dir
            || self.append_dir == self.append_file
            || self.dump == self.append_file
        {
            return Some("two of its files have the same name".into());
        }
        let dir = Path::new(&self.dir);
        let climbs = dir.components().any(|c| c == std::path::Component::ParentDir);
        (!dir.is_absolute() || climbs).then(|| format!("{:?} is no place for its data", self.dir))
    }
}

/// The first of the append-only files that Redis 7 calls by this name.
pub fn first_part(append_file: &str) -> String {
    format!("{append_file}.1.base.rdb")
}

/// The list of these files.
pub fn list_of_parts(append_file: &str) -> String {
    format!("{append_file}.manifest")
}

/// The one line of a list that has only the first.
pub fn list_of_first_part(append_file: &str) -> String {
    format!("file {} seq 1 type b", represent(&first_part(append_file)))
}

/// A name as Redis writes it in its lists: in quotes where it has more than plain characters.
fn represent(name: &str) -> String {
    if name.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
        return name.to_owned();
    }
    let mut out = String::from("\"");
    for b in name.bytes() {
        match b {
            b'"' | b'\\' => out.extend(['\\', b as char]),
            b' '..=b'~' => out.push(b as char),
            _ => out.push_str(&format!("\\x{b:02x}")),
        }
    }
    out.push('"');
    out
}

/// What a container tells its server when it starts it.
#[derive(Debug, Default)]
pub struct Told {
    args: Vec<String>,
    /// Its configuration file.
    lines: Vec<Vec<String>>,
    aof_env: Option<String>,
    version_env: Option<String>,
    working_dir: String,
}

impl Told {
    pub fn of(container: &Container, config: &str) -> Self {
        Self {
            args: container.args.clone(),
            lines: config.lines().map(words).collect(),
            aof_env: container.env.get("REDIS_AOF_ENABLED").cloned(),
            version_env: container
                .env
                .get("REDIS_VERSION")
                .cloned()
                .or_else(|| container.env.get("VALKEY_VERSION").map(|v| format!("valkey {v}"))),
            working_dir: container.working_dir.clone(),
        }
    }

    /// The value of a setting. Arguments are read after the file; the last one counts.
    pub fn value(&self, key: &str) -> Option<String> {
        argument(&self.args, &format!("--{key}")).or_else(|| {
            let of_key = |line: &&Vec<String>| line.first().is_some_and(|k| k.eq_ignore_ascii_case(key));
            self.lines.iter().rev().find(of_key).and_then(|line| line.get(1).cloned())
        })
    }

    /// The directory, from wherever the server is started.
    pub fn dir(&self) -> Option<String> {
        let dir = self.value("dir")?;
        let start = if self.working_dir.is_empty() { "/" } else { &self.working_dir };
        let full = Path::new(start).join(dir.trim_start_matches("./"));
        Some(full.display().to_string())
    }

    pub fn append_only(&self) -> Option<bool> {
        let said = self.value("appendonly").or_else(|| self.aof_env.clone())?;
        Some(said.eq_ignore_ascii_case("yes"))
    }

    /// The version that the image says it has.
    pub fn version(&self) -> Option<Version> {
        self.version_env.as_deref().and_then(Version::parse)
    }
}

/// The configuration file that the arguments of a container name.
pub fn config_path(container: &Container) -> Option<String> {
    let all: Vec<String> = container.args.iter().flat_map(|a| words(a)).collect();
    let server = all.iter().position(|w| {
        let program = Path::new(w).file_name().unwrap_or_default();
        program == "redis-server" || program == "valkey-server"
    })?;
    let path = all.get(server + 1).filter(|w| !w.starts_with('-'))?;
    Some(Path::new(&container.working_dir).join(path).display().to_string())
}

/// A fact of the backup that is a text.
pub fn fact(facts: &Map<String, Value>, key: &str) -> Option<String> {
    facts.get(key).and_then(Value::as_str).filter(|v| !v.is_empty()).map(str::to_owned)
}

/// Value of `--name value` or `--name=value` in the arguments of a server.
pub fn argument(args: &[String], name: &str) -> Option<String> {
    let mut at = args.iter();
    while let Some(word) = at.next() {
        if word == name {
            return at.next().cloned();
        }
        if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.to_owned());
        }
    }
    // `sh -c "redis-server --requirepass …"`: the words are inside one argument.
    let shell = args.iter().find(|a| a.contains(name) && a.contains(' '))?;
    let inside = words(shell);
    if inside.len() > 1 { argument(&inside, name) } else { None }
}

/// The words of a line, as a shell or a configuration file of Redis has them.
fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.trim().chars();
    if line.trim_start().starts_with('#') {
        return found;
    }
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if c == q => quote = None,
            (Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
            (None, c) if c.is_whitespace() => found.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    found.extend(word);
    found
}

/// A version of Redis, or of Valkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub valkey: bool,
    pub major: u32,
    minor: u32,
    text: String,
}

impl Version {
    /// `7.0.15`, or `valkey 8.0.1`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.strip_prefix("valkey ");
        let mut parts = number.unwrap_or(text).split('.').map(|p| p.parse().ok());
        let major = parts.next()??;
        Some(Self {
            valkey: number.is_some(),
            major,
            minor: parts.next().flatten().unwrap_or(0),
            text: text.to_owned(),
        })
    }

    /// The newest RDB version that it reads, where that is known.
    fn newest_rdb(&self) -> Option<u32> {
        match (self.valkey, self.major, self.minor) {
            (true, 0..=8, _) => Some(11),
            (false, 0..=2, _) | (false, 3, 0..2) => Some(6),
            (false, 3, _) => Some(7),
            (false, 4, _) => Some(8),
            (false, 5 | 6, _) => Some(9),
            (false, 7, 0..2) => Some(10),
            (false, 7, 2..4) => Some(11),
            (false, 7, _) => Some(12),
            _ => None,
        }
    }

    /// Why it cannot read a file of this RDB version that `made` wrote.
    pub fn refuses(&self, made: Option<&Version>, rdb: u32) -> Option<String> {
        // Valkey 9 and later count from 80.
        let foreign = rdb >= 80 && !self.valkey;
        let older = made.is_some_and(|m| m.valkey == self.valkey && m.major > self.major);
        let unknown = self.newest_rdb().is_some_and(|newest| rdb > newest);
        let made = made.map_or_else(|| "a newer server".to_owned(), Self::to_string);
        (foreign || older || unknown)
            .then(|| format!("the backup was made by {made}, and {self}, which is there now, cannot read it"))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.text.strip_prefix("valkey ") {
            Some(number) => write!(f, "Valkey {number}"),
            None => write!(f, "Redis {}", self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(a: &[&str]) -> Vec<String> {
        a.iter().map(|s| (*s).to_owned()).collect()
    }

    fn container(a: &[&str]) -> Container {
        let mut container = Container::default();
        container.args = args(a);
        container.working_dir = "/data".into();
        container
    }

    #[test]
    fn a_password_is_found_in_the_arguments_of_the_server() {
        let find = |a: &[&str]| argument(&args(a), "--requirepass");
        assert_eq!(find(&["redis-server", "--requirepass", "a b"]).as_deref(), Some("a b"));
        assert_eq!(find(&["redis-server", "--requirepass=x"]).as_deref(), Some("x"));
        assert_eq!(find(&["sh", "-c", "redis-server --requirepass 'x' --port 1"]).as_deref(), Some("x"));
        assert_eq!(find(&["sh", "-c", "redis-server --requirepass \"a 'b\""]).as_deref(), Some("a 'b"));
        assert_eq!(find(&["redis-server"]), None);
        assert_eq!(find(&["sh", "-c", "'redis-server --requirepass'"]), None);
    }

    #[test]
    fn what_a_server_is_told_is_found_in_its_arguments_and_in_its_file() {
        let told = |a: &[&str], config: &str| Told::of(&container(a), config);
        let file =
            "# appendonly no\nappendonly no\n  Dir \"/srv/re dis\"\nappendonly yes\nappendfilename 'a b'\n";
        let by_file = told(&["redis-server", "/etc/redis.conf"], file);
        assert_eq!(by_file.append_only(), Some(true), "the last line counts");
        assert_eq!(by_file.dir().as_deref(), Some("/srv/re dis"));
        assert_eq!(by_file.value("appendfilename").as_deref(), Some("a b"));
        assert_eq!(by_file.value("dbfilename"), None);
        let over = told(&["redis-server", "/etc/redis.conf", "--appendonly", "no"], file);
        assert_eq!(over.append_only(), Some(false), "arguments come after the file");
        assert_eq!(told(&[], "dir ./\n").dir().as_deref(), Some("/data/"));
        assert_eq!(told(&[], "").append_only(), None);
    }

    #[test]
    fn the_configuration_file_is_the_word_after_the_server() {
        let path = |a: &[&str]| config_path(&container(a));
        let official = ["docker-entrypoint.sh", "redis-server", "/usr/local/etc/redis.conf", "--save", ""];
        assert_eq!(path(&official).as_deref(), Some("/usr/local/etc/redis.conf"));
        assert_eq!(path(&["/usr/bin/redis-server", "own.conf"]).as_deref(), Some("/data/own.conf"));
        assert_eq!(path(&["sh", "-c", "exec redis-server /c.conf"]).as_deref(), Some("/c.conf"));
        assert_eq!(path(&["redis-server", "--appendonly", "yes"]), None);
        assert_eq!(path(&["redis-server"]), None);
    }

    fn layout(dump: &str, append_dir: &str, append_file: &str) -> Layout {
        Layout {
            dir: "/data".into(),
            dump: dump.into(),
            append_dir: append_dir.into(),
            append_file: append_file.into(),
            append_only: AppendOnly::Parts,
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let good = layout("dump.rdb", "appendonlydir", "appendonly.aof");
        assert_eq!(good.problem(), None);
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "../x"] {
            assert!(layout(bad, "d", "a").problem().is_some(), "{bad}");
            assert!(layout("r", bad, "a").problem().is_some(), "{bad}");
            assert!(layout("r", "d", bad).problem().is_some(), "{bad}");
        }
        assert!(layout("same", "same", "a").problem().is_some());
        for dir in ["data", "/data/../etc", ""] {
            assert!(Layout { dir: dir.into(), ..good.clone() }.problem().is_some(), "{dir}");
        }
    }

    #[test]
    fn only_data_of_the_server_is_replaced() {
        let own = layout("odd name.rdb", "aof dir", "a.aof");
        for name in ["odd name.rdb", "aof dir", "a.aof", "temp-12.rdb", "temp-rewriteaof-bg-7.aof"] {
            assert!(own.owns(name), "{name}");
        }
        for name in ["dump.rdb", "nodes.conf", "users.acl", "module.so", "temp", "appendonlydir"] {
            assert!(!own.owns(name), "{name}");
        }
    }

    /// As Redis 7.0.15 writes them.
    #[test]
    fn names_in_a_list_are_quoted_where_redis_does() {
        let text = list_of_first_part;
        assert_eq!(text("appendonly.aof"), "file appendonly.aof.1.base.rdb seq 1 type b");
        assert_eq!(text("app end.aof"), "file \"app end.aof.1.base.rdb\" seq 1 type b");
        assert_eq!(text("q\"ü"), "file \"q\\\"\\xc3\\xbc.1.base.rdb\" seq 1 type b");
    }

    #[test]
    fn an_older_server_is_told_from_one_that_can_read_the_backup() {
        let refuses = |now: &str, made: &str, rdb: u32| {
            let made = Version::parse(made);
            Version::parse(now).unwrap().refuses(made.as_ref(), rdb)
        };
        for (now, made, rdb) in [
            ("7.0.15", "7.0.15", 10),
            ("7.0.0", "6.2.14", 9),
            ("8.4.0", "7.4.1", 12),
            ("8.0.0", "?", 13),
            ("valkey 8.0.1", "7.2.4", 11),
            ("valkey 9.0.0", "valkey 9.0.0", 80),
        ] {
            assert_eq!(refuses(now, made, rdb), None, "{now} {made}");
        }
        for (now, made, rdb) in [
            ("7.0.15", "7.2.4", 11),
            ("6.2.14", "7.0.15", 10),
            ("5.0.14", "6.2.14", 9),
            ("7.4.1", "valkey 9.0.0", 80),
            ("8.0.1", "valkey 9.0.0", 80),
            ("valkey 8.0.1", "7.4.1", 12),
            ("7.0.15", "?", 12),
        ] {
            assert!(refuses(now, made, rdb).is_some(), "{now} {made}");
        }
        let said = refuses("7.0.15", "valkey 8.1.0", 11).unwrap();
        assert!(said.contains("by Valkey 8.1.0, and Redis 7.0.15"), "{said}");
    }
}
