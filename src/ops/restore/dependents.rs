//! Containers that use what is restored: stopped before anything changes, started when all of it is decided. What could go
//! wrong: an application that writes its old state into restored data, or that is called well because nobody looked.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Action, Part, Restore, RestoreError};
use crate::docker::{Container, Docker, DockerError};
use crate::format::compose::{self, Needs};
use crate::hint::chain;
use crate::source::SourceError;

const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How long a container without a health check must run to be called well.
const STEADY: Duration = Duration::from_secs(3);
/// A longer Compose file is none.
const COMPOSE_BYTES: u64 = 1 << 20;

/// Containers to be stopped, and what could not be found out, for a person.
#[derive(Default)]
pub(super) struct Dependents {
    pub containers: Vec<Container>,
    pub warnings: Vec<String>,
}

impl Restore<'_> {
    /// Running containers that depend on what serves the components, those that others depend on last.
    pub(super) fn dependents(&self, parts: &[Part<'_>]) -> Result<Dependents, RestoreError> {
        let docker = match self.docker.as_ref() {
            Ok(docker) => docker,
            Err(e) => return Ok(self.not_looked_up(parts, e)),
        };
        let mut servers: Vec<Container> = Vec::new();
        let mut users: Vec<Container> = Vec::new();
        let mut named: BTreeSet<&str> = BTreeSet::new();
        for part in parts {
            let Ok(Action::Put(target)) = &part.action else { continue };
            servers.extend(target.server().cloned());
            if let Some(place) = target.place() {
                users.extend(docker.mounting(place)?);
            }
            let source = self.setup.sources.iter().find(|s| s.name.as_str() == part.chosen.name);
            named.extend(source.iter().flat_map(|s| s.dependents.iter().map(String::as_str)));
        }
        let running = docker.active()?;
        let roots: Vec<&Container> = servers.iter().chain(&users).collect();
        let files = self.compose_files(&running, &roots, &named);
        let mut containers = closure(&running, &roots, &named, &files.needs);
        // A server starts when its own data is in place, whoever else it depends on.
        containers.retain(|c| servers.iter().all(|s| s.id != c.id));
        containers.reverse();
        Ok(Dependents { containers, warnings: files.warnings })
    }

    /// Nobody is stopped when the engine cannot be asked: whom that may concern is told.
    fn not_looked_up(&self, parts: &[Part<'_>], e: &DockerError) -> Dependents {
        let why = self.world.vault.scrub(&chain(e));
        let mut warnings = Vec::new();
        for part in parts.iter().filter(|p| matches!(p.action, Ok(Action::Put(_)))) {
            let name = part.chosen.name;
            let Some(source) = self.setup.sources.iter().find(|s| s.name.as_str() == name) else { continue };
            if !source.dependents.is_empty() {
                let named = source.dependents.join(", ");
                warnings.push(format!("{named} cannot be looked up, and is not stopped for {name}: {why}"));
            } else if source.source.may_be_mounted() && is_expected(e) {
                warnings.push(format!("no container that has {name} mounted is stopped: {why}"));
            }
        }
        Dependents { containers: Vec::new(), warnings }
    }

    /// What Compose files say, for the projects whose containers do not say it themselves.
    fn compose_files(
        &self,
        running: &[Container],
        roots: &[&Container],
        named: &BTreeSet<&str>,
    ) -> ComposeFiles {
        let meant = |c: &&Container| roots.iter().any(|r| r.id == c.id) || is_named(c, named);
        let projects: BTreeSet<&str> = running
            .iter()
            .chain(roots.iter().copied())
            .filter(meant)
            .filter_map(Container::project)
            .collect();
        let mut files = ComposeFiles::default();
        for project in projects {
            let of_project = |c: &&Container| c.project() == Some(project);
            let silent = |c: &Container| !c.notes_needs() && roots.iter().all(|r| r.id != c.id);
            if !running.iter().filter(of_project).any(silent) {
                continue;
            }
            let all = running.iter().chain(roots.iter().copied()).filter(of_project);
            let mut paths: BTreeSet<PathBuf> = all.flat_map(Container::compose_files).collect();
            if paths.is_empty() {
                let yaml = |p: &&PathBuf| p.extension().is_some_and(|e| e == "yml" || e == "yaml");
                let sources = self.setup.sources.iter().flat_map(|s| s.source.files());
                paths.extend(sources.filter(yaml).cloned());
            }
            files.read(project, &paths);
        }
        files
    }

    /// Waits until the dependents are well, and looks through them at the data that they alone use. What is wrong, for a
    /// person.
    pub(super) fn health(
        &self,
        dependents: &[Container],
        parts: &[Part<'_>],
        unseen: &[Vec<Container>],
    ) -> Result<Vec<String>, RestoreError> {
        let Ok(docker) = self.docker.as_ref() else { return Ok(Vec::new()) };
        let mut wrong = Vec::new();
        self.world.monitor.phase("waiting for what depends on the data", None);
        let until = Instant::now() + self.setup.docker.health_timeout;
        for container in dependents {
            wrong.extend(self.wait_for(docker, container, until)?);
        }
        for (part, containers) in parts.iter().zip(unseen) {
            let Ok(Action::Put(target)) = &part.action else { continue };
            if containers.is_empty() {
                continue;
            }
            match target.check(&self.context(), &self.work_of(part.chosen), containers) {
                Ok(_) => {}
                Err(SourceError::Interrupted(i)) => return Err(i.into()),
                Err(e) => wrong.push(chain(&e)),
            }
        }
        Ok(wrong)
    }

    /// None when it runs and its health check, if it has one, is content.
    fn wait_for(
        &self,
        docker: &Docker,
        container: &Container,
        until: Instant,
    ) -> Result<Option<String>, RestoreError> {
        let name = &container.name;
        let mut since: Option<(Instant, String)> = None;
        loop {
            self.world.cancel.check()?;
            let now = match docker.look(&container.id) {
                Ok(Some(now)) => now,
                Ok(None) => return Ok(Some(format!("{name} is gone"))),
                Err(DockerError::Interrupted(i)) => return Err(i.into()),
                Err(e) => return Ok(Some(format!("{name} cannot be looked at: {}", chain(&e)))),
            };
            // A container in a loop of restarts runs, too, each time for a moment.
            let began = match since.take() {
                Some((began, life)) if life == now.started_at => began,
                _ => Instant::now(),
            };
            since = Some((began, now.started_at.clone()));
            let steady = began.elapsed() >= STEADY;
            match (now.state.as_str(), now.health.as_str()) {
                ("running", "healthy") => return Ok(None),
                ("running", "") if steady => return Ok(None),
                (state, health) if Instant::now() > until => {
                    let what = if state == "running" { health } else { state };
                    return Ok(Some(format!("{name} is {what}: docker logs --tail 50 {name}")));
                }
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }
}

/// What Compose files say of the services of projects.
#[derive(Default)]
struct ComposeFiles {
    needs: BTreeMap<String, Needs>,
    warnings: Vec<String>,
}

impl ComposeFiles {
    fn read(&mut self, project: &str, paths: &BTreeSet<PathBuf>) {
        let lost = format!(
            "so what depends on restored services of {project} is only stopped where dependents of the source names it"
        );
        if paths.is_empty() {
            self.warnings.push(format!("no Compose file of {project} is known, {lost}"));
        }
        for path in paths {
            let found = read_short(path)
                .map_err(|e| chain(&e))
                .and_then(|text| compose::needs(&text).map_err(|e| e.to_string()));
            match found {
                Ok(found) => {
                    let all = self.needs.entry(project.to_owned()).or_default();
                    for (service, needs) in found {
                        all.entry(service).or_default().extend(needs);
                    }
                }
                Err(why) => self
                    .warnings
                    .push(format!("the Compose file {} cannot be read ({why}), {lost}", path.display())),
            }
        }
    }
}

/// The text of a file that is not large. Nothing else is opened: a pipe would be waited for.
fn read_short(path: &Path) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    File::open(path)?.take(COMPOSE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > COMPOSE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// Whether there should be an engine: a host without its socket has none.
fn is_expected(e: &DockerError) -> bool {
    let DockerError::Unreachable { socket, .. } = e else { return true };
    let path = socket.strip_prefix("unix://").unwrap_or(socket);
    !path.starts_with('/') || Path::new(path).exists()
}

fn is_named(c: &Container, named: &BTreeSet<&str>) -> bool {
    named.contains(c.name.as_str()) || c.service().is_some_and(|s| named.contains(s))
}

/// Those of `running` that depend on a root, or are named, or depend on one of these; each after what it depends on.
fn closure(
    running: &[Container],
    roots: &[&Container],
    named: &BTreeSet<&str>,
    files: &BTreeMap<String, Needs>,
) -> Vec<Container> {
    // What Compose noted when it made the container counts more than what its file says by now.
    let said = |c: &Container, service: &str| match (c.notes_needs(), c.project(), c.service()) {
        (true, ..) => c.depends_on().contains(&service),
        (false, Some(project), Some(own)) => {
            files.get(project).and_then(|p| p.get(own)).is_some_and(|needs| needs.contains(service))
        }
        _ => false,
    };
    let needs = |c: &Container, other: &Container| {
        let same = c.project().is_some() && c.project() == other.project();
        c.id != other.id && same && other.service().is_some_and(|s| said(c, s))
    };
    let mut found: Vec<Container> = Vec::new();
    loop {
        let is_next = |c: &&Container| {
            let known = found.iter().any(|f| f.id == c.id);
            !known
                && (is_named(c, named)
                    || roots.iter().any(|r| needs(c, r))
                    || found.iter().any(|f| needs(c, f)))
        };
        let next: Vec<Container> = running.iter().filter(is_next).cloned().collect();
        if next.is_empty() {
            break;
        }
        found.extend(next);
    }
    // Found by the shortest way; what another one needs goes before it.
    let mut ordered: Vec<Container> = Vec::new();
    while !found.is_empty() {
        let free = found.iter().position(|c| !found.iter().any(|other| needs(c, other))).unwrap_or(0);
        ordered.push(found.remove(free));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(service: &str, depends_on: &str) -> Container {
        let labels = [
            ("com.docker.compose.project", "p"),
            ("com.docker.compose.service", service),
            ("com.docker.compose.depends_on", depends_on),
        ];
        let mut container = Container::default();
        container.id = service.to_owned();
        container.name = format!("p-{service}-1");
        container.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        container
    }

    #[test]
    fn dependents_are_found_through_each_other_and_stop_after_what_needs_them() {
        let db = container("db", "");
        let running = [
            container("proxy", "web:service_started:true,worker:service_healthy:false"),
            container("worker", "db:service_healthy:true,web:service_started:false"),
            db.clone(),
            container("web", "db:service_healthy:false"),
            container("other", "cache:service_started:true"),
        ];
        let names = |named: &[&str]| -> Vec<String> {
            let named = named.iter().copied().collect();
            closure(&running, &[&db], &named, &BTreeMap::new()).into_iter().map(|c| c.id).collect()
        };
        assert_eq!(names(&[]), ["web", "worker", "proxy"]);
        assert_eq!(names(&["p-other-1"]).len(), 4);
        let mut elsewhere = db.clone();
        elsewhere.labels.clear();
        assert!(closure(&running, &[&elsewhere], &BTreeSet::new(), &BTreeMap::new()).is_empty());
    }

    /// As Compose 1 made it.
    fn without_note(service: &str) -> Container {
        let mut container = container(service, "");
        container.labels.remove("com.docker.compose.depends_on");
        container
    }

    #[test]
    fn where_containers_do_not_say_it_their_files_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let main = "services:\n  db: {image: x}\n  web: {depends_on: [db]}\n  other: {image: x}\n  noted: {depends_on: [db]}\n";
        std::fs::write(path("a.yml"), main).unwrap();
        std::fs::write(path("b.yml"), "services:\n  proxy:\n    depends_on:\n      web: {}\n").unwrap();
        std::fs::write(path("odd.yml"), "services: [").unwrap();
        std::fs::write(path("long.yml"), "#".repeat((1 << 20) + 1)).unwrap();
        let all = ["a.yml", "b.yml", "gone.yml", "odd.yml", "long.yml", "."].map(path);
        let mut files = ComposeFiles::default();
        files.read("p", &all.into_iter().collect());
        let db = without_note("db");
        let running = [
            without_note("proxy"),
            without_note("other"),
            db.clone(),
            without_note("web"),
            container("noted", ""),
        ];
        let found = closure(&running, &[&db], &BTreeSet::new(), &files.needs);
        assert_eq!(found.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["web", "proxy"]);
        let warnings = files.warnings.join("\n");
        for wanted in
            ["gone.yml cannot", "odd.yml cannot be read (line", "larger than 1 MiB", "it is no file"]
        {
            assert!(warnings.contains(wanted), "{wanted}: {warnings}");
        }
        assert_eq!(files.warnings.len(), 4, "{warnings}");
    }

    #[test]
    fn the_files_that_compose_1_noted_are_below_its_directory() {
        let mut container = without_note("db");
        let mut label = |key: &str, value: &str| {
            container.labels.insert(format!("com.docker.compose.project.{key}"), value.to_owned());
            container.compose_files().iter().map(|p| p.display().to_string()).collect::<Vec<_>>()
        };
        assert!(label("config_files", "a.yml,/etc/b.yml").iter().eq(["/etc/b.yml"]));
        assert_eq!(label("working_dir", "/srv/my stack"), ["/srv/my stack/a.yml", "/etc/b.yml"]);
    }

    #[test]
    fn a_circle_ends() {
        let (a, b) = (container("a", "b::,db::"), container("b", "a::"));
        let db = container("db", "");
        assert_eq!(closure(&[a, b], &[&db], &BTreeSet::new(), &BTreeMap::new()).len(), 2);
    }
}
