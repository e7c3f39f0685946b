//! Which Compose this machine has. What could go wrong: a command on paper that the machine does not know; so it is looked
//! for where a shell and Docker would look.

use std::path::{Path, PathBuf};

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
