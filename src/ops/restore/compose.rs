//! The command that makes the containers of a stack without starting them: a restore needs them to be there. What could go
//! wrong: a person who starts the empty stack first, and an application that fills it; so the words are exact.

use serde_json::Value;

use crate::docker::compose;
use crate::manifest::Component;
use crate::source::quote;

/// What to type when the container of a component is gone.
pub(super) fn make_containers(component: &Component) -> String {
    command(component, compose::program())
}

fn command(component: &Component, program: &str) -> String {
    let fact = |key: &str| component.facts.get("compose").and_then(|c| c.get(key)).and_then(Value::as_str);
    let mut words = vec![program.to_owned()];
    for (flag, key) in [("--project-name", "project"), ("--project-directory", "working_dir")] {
        words.extend(fact(key).map(|value| format!("{flag} {}", plain(value))));
    }
    for (flag, key) in [("--file", "config_files"), ("--env-file", "environment_file")] {
        let files = fact(key).into_iter().flat_map(|files| files.split(','));
        words.extend(files.filter(|f| !f.is_empty()).map(|file| format!("{flag} {}", plain(file))));
    }
    format!("make the containers without starting them: {} up --no-start; then again", words.join(" "))
}

/// Quoted where a shell would need it.
fn plain(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-".contains(&b);
    if !text.is_empty() && text.bytes().all(is_plain) { text.to_owned() } else { quote(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_that_of_the_very_stack() {
        let mut component = crate::legacy::bare("redis");
        assert_eq!(
            command(&component, "docker-compose"),
            "make the containers without starting them: docker-compose up --no-start; then again"
        );
        component.facts.insert(
            "compose".into(),
            serde_json::json!({
                "project": "deploy", "working_dir": "/srv/my stack",
                "config_files": "/srv/my stack/a.yml,/srv/b.yml", "environment_file": "",
            }),
        );
        assert_eq!(
            command(&component, "docker compose"),
            "make the containers without starting them: docker compose --project-name deploy --project-directory \
             '/srv/my stack' --file '/srv/my stack/a.yml' --file /srv/b.yml up --no-start; then again"
        );
    }
}
