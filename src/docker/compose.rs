//! Commands of Compose, as a person types them on this machine. What could go wrong: words that make another stack than the
//! one that was: another project, so other volumes; without the file of variables, so empty passwords. So what Compose noted
//! in its labels is repeated to the letter.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::manifest::Component;
use crate::source::quote;

/// Where Docker looks for its plugin.
const PLUGINS: [&str; 4] = [
    "/usr/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
];

pub const PLUGIN: &str = "docker compose";
pub const ALONE: &str = "docker-compose";

/// What a person types here: [`PLUGIN`], or [`ALONE`] where only version 1 is. Where neither is there yet, the plugin is what
/// people install.
pub fn program() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = PLUGINS.iter().map(PathBuf::from).collect();
    places.extend(std::env::home_dir().map(|home| home.join(".docker/cli-plugins")));
    let has = |dir: &Path| dir.join(ALONE).is_file();
    let alone = !places.iter().any(|p| has(p)) && std::env::split_paths(&path).any(|p| has(&p));
    if alone { ALONE } else { PLUGIN }
}

/// What tells Compose which stack is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stack {
    pub project: Option<String>,
    pub directory: Option<PathBuf>,
    pub files: Vec<PathBuf>,
    /// Files of variables, in place of `.env`. Version 1 notes none.
    pub environment: Vec<PathBuf>,
}

impl Stack {
    /// The one that the container of a component was part of, as the backup has it. None where it was of none.
    pub fn noted(component: &Component) -> Option<Self> {
        let facts = component.facts.get("compose")?;
        let fact = |key: &str| facts.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let directory = fact("working_dir").map(PathBuf::from);
        // Version 1 notes names below the directory.
        let below =
            |file: &str| directory.as_deref().map_or_else(|| PathBuf::from(file), |dir| dir.join(file));
        let list = |key: &str| {
            fact(key).unwrap_or_default().split(',').filter(|f| !f.is_empty()).map(below).collect::<Vec<_>>()
        };
        Some(Self {
            project: fact("project").map(str::to_owned),
            files: list("config_files"),
            environment: list("environment_file"),
            directory,
        })
    }

    /// Program and options; the verb follows.
    pub fn command(&self, program: &str) -> String {
        let mut out = program.to_owned();
        let mut option = |flag: &str, value: &str| out.push_str(&format!(" {flag} {}", plain(value)));
        if let Some(project) = &self.project {
            option("--project-name", project);
        }
        let paths = [
            ("--project-directory", self.directory.as_slice()),
            ("--file", &self.files),
            ("--env-file", &self.environment),
        ];
        for (flag, paths) in paths {
            paths.iter().for_each(|path| option(flag, &path.display().to_string()));
        }
        out
    }
}

/// Quoted where a shell would need it.
fn plain(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    if !text.is_empty() && text.bytes().all(is_plain) { text.to_owned() } else { quote(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(compose: Value) -> Stack {
        let mut component = crate::legacy::bare("redis");
        component.facts.insert("compose".into(), compose);
        Stack::noted(&component).unwrap_or_default()
    }

    #[test]
    fn the_command_is_that_of_the_very_stack() {
        assert_eq!(Stack::noted(&crate::legacy::bare("redis")), None);
        assert_eq!(Stack::default().command(ALONE), "docker-compose");
        let stack = noted(serde_json::json!({
            "project": "deploy", "working_dir": "/srv/my stack",
            "config_files": "/srv/my stack/a.yml,/srv/b.yml", "environment_file": "",
        }));
        assert_eq!(
            stack.command(PLUGIN),
            "docker compose --project-name deploy --project-directory '/srv/my stack' --file '/srv/my stack/a.yml' \
             --file /srv/b.yml"
        );
    }

    #[test]
    fn what_version_1_noted_lies_below_its_directory() {
        let stack = noted(serde_json::json!({ "working_dir": "/srv/x", "config_files": "a.yml,more/b.yml" }));
        assert_eq!(
            stack.command(ALONE),
            "docker-compose --project-directory /srv/x --file /srv/x/a.yml --file /srv/x/more/b.yml"
        );
    }

    #[test]
    fn variables_come_from_the_same_file() {
        let stack = noted(serde_json::json!({ "working_dir": "/srv/x", "environment_file": "home.env" }));
        assert_eq!(
            stack.command(PLUGIN),
            "docker compose --project-directory /srv/x --env-file /srv/x/home.env"
        );
    }
}
