//! Containers that use what is restored: stopped before anything changes, started when all of it is decided. What could go
//! wrong: an application that writes its old state into restored data, or that is called well because nobody looked.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Action, Part, Restore, RestoreError};
use crate::docker::{Container, Docker, DockerError};
use crate::hint::chain;
use crate::source::SourceError;

const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How long a container without a health check must run to be called well.
const STEADY: Duration = Duration::from_secs(3);

impl Restore<'_> {
    /// Running containers that depend on what serves the components, those that others depend on last.
    pub(super) fn dependents(&self, parts: &[Part<'_>]) -> Result<Vec<Container>, RestoreError> {
        let Ok(docker) = self.docker.as_ref() else { return Ok(Vec::new()) };
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
        let mut found = closure(&running, &roots, &named);
        // A server starts when its own data is in place, whoever else it depends on.
        found.retain(|c| servers.iter().all(|s| s.id != c.id));
        found.reverse();
        Ok(found)
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

/// Those of `running` that depend on a root, or are named, or depend on one of these; each after what it depends on.
fn closure(running: &[Container], roots: &[&Container], named: &BTreeSet<&str>) -> Vec<Container> {
    let needs = |c: &Container, other: &Container| {
        let same = c.project().is_some() && c.project() == other.project();
        c.id != other.id && same && other.service().is_some_and(|s| c.depends_on().contains(&s))
    };
    let is_named =
        |c: &Container| named.contains(c.name.as_str()) || c.service().is_some_and(|s| named.contains(s));
    let mut found: Vec<Container> = Vec::new();
    loop {
        let is_next = |c: &&Container| {
            let known = found.iter().any(|f| f.id == c.id);
            !known && (is_named(c) || roots.iter().any(|r| needs(c, r)) || found.iter().any(|f| needs(c, f)))
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
            closure(&running, &[&db], &named.iter().copied().collect()).into_iter().map(|c| c.id).collect()
        };
        assert_eq!(names(&[]), ["web", "worker", "proxy"]);
        assert_eq!(names(&["p-other-1"]).len(), 4);
        let mut elsewhere = db.clone();
        elsewhere.labels.clear();
        assert!(closure(&running, &[&elsewhere], &BTreeSet::new()).is_empty());
    }

    #[test]
    fn a_circle_ends() {
        let (a, b) = (container("a", "b::,db::"), container("b", "a::"));
        let db = container("db", "");
        assert_eq!(closure(&[a, b], &[&db], &BTreeSet::new()).len(), 2);
    }
}
