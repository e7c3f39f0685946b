//! Where a server keeps its data, from what its container shows. What could go wrong: the image's habit changed with 1.0
//! (`/chroma/chroma` before, `/data` since), and old settings that a new server ignores still stand in Compose files; so
//! this names one explicit place at most, and the usual ones in order, and the caller looks which has `chroma.sqlite3`.

/// What a container shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown<'a> {
    /// Entrypoint and command, one after the other.
    pub argv: &'a [String],
    pub env: &'a [(String, String)],
    /// Directory that the program is started in.
    pub working_dir: &'a str,
    /// Image as the container names it.
    pub image: &'a str,
    /// Version, where the server or a label tells it.
    pub version: Option<&'a str>,
    /// Text of the file that `config_file` names, where the caller could read it.
    pub config: Option<&'a str>,
}

/// A place that somebody chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explicit {
    pub path: String,
    /// Where it is written, for people.
    pub said_by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The place that the server was told to use, by the rules of its version.
    pub explicit: Option<Explicit>,
    /// Where it may be otherwise, likeliest first, the explicit place not among them.
    pub candidates: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// 0.x, in Python.
    Zero,
    /// 1.x, in Rust.
    One,
    Unknown,
}

/// Absolute path of the configuration file that the server was started with: `chroma run FILE`, a way of 1.x.
pub fn config_file(shown: &Shown<'_>) -> Option<String> {
    let words = words(shown.argv);
    let run = words.iter().position(|w| w == "run")?;
    let mut rest = words[run + 1..].iter();
    while let Some(word) = rest.next() {
        if !word.starts_with('-') {
            return Some(absolute(shown.working_dir, word));
        }
        if !word.contains('=') {
            rest.next();
        }
    }
    None
}

/// Says where the data is.
pub fn of(shown: &Shown<'_>) -> Location {
    let line = line(shown);
    let explicit = explicit(shown, line)
        .map(|(path, said_by)| Explicit { path: absolute(shown.working_dir, &path), said_by });
    let own = |name: &str| absolute(shown.working_dir, name);
    let zero = ["/chroma/chroma".to_owned(), own("chroma"), own("chroma_data")];
    let one = ["/data".to_owned(), own("chroma")];
    let mut usual: Vec<String> = match line {
        Line::Zero => zero.into_iter().chain(one).collect(),
        Line::One | Line::Unknown => one.into_iter().chain(zero).collect(),
    };
    // Last: settings that this server should not heed.
    let old = ["PERSIST_DIRECTORY", "CHROMA_PERSIST_PATH"].into_iter().filter_map(|k| value(shown.env, k));
    usual.extend(old.map(|path| absolute(shown.working_dir, path)));
    let mut candidates: Vec<String> = Vec::new();
    for path in usual {
        if explicit.as_ref().is_none_or(|e| e.path != path) && !candidates.contains(&path) {
            candidates.push(path);
        }
    }
    Location { explicit, candidates }
}

fn explicit(shown: &Shown<'_>, line: Line) -> Option<(String, &'static str)> {
    let words = words(shown.argv);
    let env = |key| value(shown.env, key).map(str::to_owned);
    // `--path` and a configuration file exclude each other.
    if let Some(path) = option(&words, "--path") {
        return Some((path, "--path of its command"));
    }
    // Beside a configuration file the environment wins; without one it is not read.
    let by_file = || {
        config_file(shown)?;
        env("CHROMA_PERSIST_PATH")
            .map(|p| (p, "CHROMA_PERSIST_PATH of its environment"))
            .or_else(|| Some((persist_path(shown.config?)?, "persist_path of its configuration file")))
    };
    // `chroma run` of 0.x sets the directory itself; only its app by a web server reads this.
    let by_app = || {
        let by_command = words.iter().any(|w| w == "run");
        if by_command {
            None
        } else {
            env("PERSIST_DIRECTORY").map(|p| (p, "PERSIST_DIRECTORY of its environment"))
        }
    };
    match line {
        Line::Zero => by_app(),
        Line::One => by_file(),
        Line::Unknown => by_file().or_else(by_app),
    }
}

fn line(shown: &Shown<'_>) -> Line {
    let of_version = |text: &str| match text.trim_start_matches('v').split_once('.') {
        Some(("0", _)) => Line::Zero,
        Some((major, _)) if major.parse::<u32>().is_ok() => Line::One,
        _ => Line::Unknown,
    };
    let name = shown.image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let tag = last.split_once(':').map_or("", |(_, tag)| tag);
    let words = words(shown.argv);
    let by_program = || {
        if words.iter().any(|w| w.ends_with("docker_entrypoint.sh") || w.contains("chromadb.app")) {
            Line::Zero
        } else if config_file(shown).is_some() {
            Line::One
        } else {
            Line::Unknown
        }
    };
    [shown.version.map_or(Line::Unknown, of_version), of_version(tag)]
        .into_iter()
        .find(|l| *l != Line::Unknown)
        .unwrap_or_else(by_program)
}

/// The words of a command line; those that a shell would read out of one argument too.
fn words(argv: &[String]) -> Vec<String> {
    let split = |a: &String| {
        let quoted = |w: &str| w.trim_matches(['"', '\'']).to_owned();
        if a.contains("chroma ") { a.split_whitespace().map(quoted).collect() } else { vec![a.clone()] }
    };
    argv.iter().flat_map(split).collect()
}

/// Value of `--name X` or `--name=X`; the last one wins.
fn option(words: &[String], name: &str) -> Option<String> {
    let mut found = None;
    for (i, word) in words.iter().enumerate() {
        if word == name {
            found = words.get(i + 1).cloned();
        } else if let Some(value) = word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            found = Some(value.to_owned());
        }
    }
    found.filter(|v| !v.is_empty())
}

fn value<'a>(env: &'a [(String, String)], key: &str) -> Option<&'a str> {
    env.iter().rev().find(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str())
}

/// `persist_path` of a configuration file: a plain or quoted text at the outermost level is all that it can be.
fn persist_path(text: &str) -> Option<String> {
    let line = text.lines().rev().find_map(|l| {
        let rest = l.strip_prefix("persist_path").or_else(|| l.strip_prefix("\"persist_path\""))?;
        rest.trim_start().strip_prefix(':')
    })?;
    let line = line.trim();
    let path = match line.chars().next()? {
        quote @ ('"' | '\'') => line[1..].split(quote).next()?,
        _ => line.split(" #").next()?.trim(),
    };
    (!path.is_empty()).then(|| path.to_owned())
}

/// `path` below `dir` unless it is absolute, without `.` and double slashes.
fn absolute(dir: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("/{dir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    fn locate(argv: &[&str], env: &[(&str, &str)], image: &str, config: Option<&str>) -> Location {
        let env: Vec<(String, String)> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let argv = texts(argv);
        of(&Shown { argv: &argv, env: &env, working_dir: "/app", image, version: None, config })
    }

    fn place(l: &Location) -> Option<(&str, &str)> {
        l.explicit.as_ref().map(|e| (e.path.as_str(), e.said_by.split(' ').next().unwrap()))
    }

    #[test]
    fn the_command_line_says_it_in_every_spelling() {
        for argv in [
            &["chroma", "run", "--path", "/p/./q", "--port", "8000"][..],
            &["dumb-init", "--", "chroma", "run", "--host=0.0.0.0", "--path=/p/q/"],
            &["sh", "-c", "exec chroma run --path \"/p/q\" --port 8000"],
        ] {
            for image in ["chromadb/chroma:0.6.3", "chromadb/chroma:1.5.9", "chromadb/chroma"] {
                let l = locate(argv, &[("PERSIST_DIRECTORY", "/old")], image, Some("persist_path: /c"));
                assert_eq!(place(&l), Some(("/p/q", "--path")), "{argv:?} {image}");
            }
        }
        let relative = locate(&["chroma", "run", "--path", "../store"], &[], "x", None);
        assert_eq!(place(&relative), Some(("/store", "--path")));
    }

    #[test]
    fn beside_a_configuration_file_the_environment_wins() {
        let argv = ["dumb-init", "--", "chroma", "run", "--port", "8000", "/config.yaml"];
        let config = "port: 8000\npersist_path: '/from file' # here\n  persist_path: /nested\n";
        let l = locate(&argv, &[], "chromadb/chroma:1.5.9", Some(config));
        assert_eq!(place(&l), Some(("/from file", "persist_path")));
        let l = locate(&argv, &[("CHROMA_PERSIST_PATH", "/env")], "chromadb/chroma:latest", Some(config));
        assert_eq!(place(&l), Some(("/env", "CHROMA_PERSIST_PATH")));
        let l = locate(&["chroma", "run"], &[("CHROMA_PERSIST_PATH", "/env")], "chromadb/chroma:1.5.9", None);
        assert_eq!(place(&l), None);
        assert_eq!(l.candidates, ["/data", "/app/chroma", "/chroma/chroma", "/app/chroma_data", "/env"]);
    }

    #[test]
    fn the_old_server_heeds_the_old_variable_and_the_new_one_does_not() {
        let env = [("IS_PERSISTENT", "TRUE"), ("PERSIST_DIRECTORY", "/index")];
        let old = ["/docker_entrypoint.sh", "--workers", "1", "--port", "8000"];
        for image in ["chromadb/chroma:0.5.23", "registry.example:5000/chroma", "chroma:latest@sha256:00"] {
            let l = locate(&old, &env, image, None);
            assert_eq!(place(&l), Some(("/index", "PERSIST_DIRECTORY")), "{image}");
            assert_eq!(l.candidates[0], "/chroma/chroma");
        }
        let l = locate(&["chroma", "run", "/config.yaml"], &env, "chromadb/chroma:1.0.12", None);
        assert_eq!(place(&l), None);
        assert_eq!(l.candidates.first().map(String::as_str), Some("/data"));
        assert_eq!(l.candidates.last().map(String::as_str), Some("/index"));
    }

    #[test]
    fn the_version_of_the_server_counts_more_than_the_tag() {
        let argv = texts(&["uvicorn", "chromadb.app:app"]);
        let shown = Shown { argv: &argv, image: "chroma:1.0", version: Some("0.6.3"), ..Shown::default() };
        assert_eq!(of(&shown).candidates[0], "/chroma/chroma");
        let shown = Shown { version: Some("1.0.0"), image: "chroma:0.6.3", ..shown };
        assert_eq!(of(&shown).candidates[0], "/data");
    }

    #[test]
    fn the_configuration_file_is_found_among_options() {
        let file = |argv: &[&str]| {
            let argv = texts(argv);
            config_file(&Shown { argv: &argv, working_dir: "/w", ..Shown::default() })
        };
        assert_eq!(file(&["chroma", "run", "/config.yaml"]).as_deref(), Some("/config.yaml"));
        assert_eq!(file(&["chroma", "run", "--port", "1", "c.yaml"]).as_deref(), Some("/w/c.yaml"));
        assert_eq!(file(&["chroma", "run", "--port=1", "--host", "::"]), None);
        assert_eq!(file(&["/docker_entrypoint.sh", "--port", "1"]), None);
    }
}
