//! The stacks whose containers have to be made before their data comes back. What could go wrong: a stack under another
//! project, or one without its variables; so what its containers said of it goes before what file names look like.

use std::path::{Path, PathBuf};

use super::{KitError, World};
use crate::catalog::Entry;
use crate::docker::compose::Stack;
use crate::ops::find::{self, Filter, FindError};
use crate::setup::Setup;
use crate::store::StoreError;

/// As their containers said when the newest backup was made; where none did, by the names of the files of the
/// configuration.
pub(super) fn of(
    setup: &Setup,
    only: Option<&str>,
    files: &[&Path],
    world: &World<'_>,
) -> Result<Vec<Stack>, KitError> {
    let filter = Filter { store: only.map(str::to_owned), ..Filter::default() };
    // That a store cannot be looked at is told where it is asked for the package.
    let found = match find::all(setup, &filter, world.cancel) {
        Ok((found, _)) => found,
        Err(FindError::Store(StoreError::Interrupted(i))) => return Err(i.into()),
        Err(_) => Vec::new(),
    };
    let mut stacks = found.iter().rev().map(|f| noted(&f.entry)).find(|s| !s.is_empty()).unwrap_or_default();
    if stacks.is_empty() {
        let project = &setup.docker.project;
        stacks = compose_files(files)
            .into_iter()
            .map(|files| Stack { project: project.clone(), files, ..Stack::default() })
            .collect();
    }
    for stack in &mut stacks {
        stack.environment = environment(stack, files);
    }
    Ok(stacks)
}

fn noted(entry: &Entry) -> Vec<Stack> {
    let mut all = Vec::new();
    for stack in entry.manifest.iter().flat_map(|m| m.details.values()).filter_map(Stack::noted) {
        if !all.contains(&stack) {
            all.push(stack);
        }
    }
    all
}

/// Without the file of variables, passwords would be empty. Compose reads `.env` by itself; another one has to be named,
/// and version 1 did not note which. One too many only tells names that nobody asks for.
fn environment(stack: &Stack, files: &[&Path]) -> Vec<PathBuf> {
    let dir = stack.directory.as_deref().or_else(|| stack.files.first()?.parent());
    let beside: Vec<&Path> = files.iter().copied().filter(|f| f.parent() == dir).collect();
    if !stack.environment.is_empty() || beside.iter().any(|f| f.ends_with(".env")) {
        return stack.environment.clone();
    }
    beside.into_iter().filter(|f| f.extension().is_some_and(|e| e == "env")).map(Path::to_owned).collect()
}

/// Compose files by directory, `docker-compose.yml` before `docker-compose.override.yml`.
fn compose_files(files: &[&Path]) -> Vec<Vec<PathBuf>> {
    let is_compose = |p: &&&Path| {
        let name = p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
        yaml && (name.starts_with("compose.") || name.starts_with("docker-compose"))
    };
    let mut dirs: Vec<Vec<PathBuf>> = Vec::new();
    for path in files.iter().filter(is_compose) {
        match dirs.iter_mut().find(|d| d.first().and_then(|p| p.parent()) == path.parent()) {
            Some(dir) => dir.push(path.to_path_buf()),
            None => dirs.push(vec![path.to_path_buf()]),
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_variables_is_named_unless_compose_finds_it() {
        let path = Path::new;
        let files = [path("/a/docker-compose.home.yml"), path("/a/tars-home.env"), path("/b/x.env")];
        let of = |files: &[&Path]| {
            let stack = Stack { files: vec!["/a/docker-compose.home.yml".into()], ..Stack::default() };
            environment(&stack, files)
        };
        assert_eq!(of(&files), [path("/a/tars-home.env")]);
        assert_eq!(of(&[&files[..], &[path("/a/.env")]].concat()), [""; 0].map(PathBuf::from));
    }
}
