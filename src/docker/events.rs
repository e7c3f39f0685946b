//! What the engine remembers of the last minutes. What could go wrong: it forgets (a few hundred events, none after a
//! restart), and its clock may be another; so this only adds to what can be seen of the containers themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::TryStreamExt;
use jiff::Timestamp;

use super::client::{Docker, DockerError};

/// A container that was started or continued.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Woken {
    pub id: String,
    pub name: String,
    /// Volumes that it had mounted for writing.
    pub volumes: BTreeSet<String>,
}

impl Docker {
    /// Containers that were started or continued after `since`, in this order; of a remote engine, none.
    pub(super) fn woken_since(&self, since: Timestamp) -> Result<Vec<Woken>, DockerError> {
        if !self.is_local() {
            return Ok(Vec::new());
        }
        let text = |t: Timestamp| format!("{}.{:09}", t.as_second(), t.subsec_nanosecond());
        let filters = HashMap::from([
            ("type", vec!["container", "volume"]),
            ("event", vec!["start", "unpause", "mount"]),
        ]);
        let options = EventsOptionsBuilder::default()
            .since(&text(since))
            .until(&text(Timestamp::now()))
            .filters(&filters)
            .build();
        let events = self.api.events(Some(options)).try_collect::<Vec<_>>();
        Ok(woken(self.call("asking what happened meanwhile", events)?))
    }
}

fn woken(events: Vec<EventMessage>) -> Vec<Woken> {
    let mut volumes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut found: Vec<Woken> = Vec::new();
    for event in events {
        let actor = event.actor.unwrap_or_default();
        let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
        let attribute = |key: &str| attributes.get(key).cloned().unwrap_or_default();
        match event.typ {
            // The engine writes the key like this.
            Some(EventMessageTypeEnum::VOLUME) if attribute("read/write") == "true" => {
                volumes.entry(attribute("container")).or_default().insert(id);
            }
            Some(EventMessageTypeEnum::CONTAINER) if found.iter().all(|w| w.id != id) => {
                found.push(Woken { id, name: attribute("name"), volumes: BTreeSet::new() });
            }
            _ => {}
        }
    }
    for container in &mut found {
        container.volumes = volumes.remove(&container.id).unwrap_or_default();
    }
    found
}
