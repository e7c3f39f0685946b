//! A store in the memory of this process, for tests. What could go wrong: somebody keeps backups there. It says of itself
//! that it forgets, and the examples do not show it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock, PoisonError};

use opendal::Operator;
use opendal::services::Memory;

use super::remote::Remote;
use super::{Access, Refusal, Store, StoreError};
use crate::config::Section;

/// What lies where: two stores of one path share it, as long as the process lives.
static PLACES: Mutex<BTreeMap<String, Operator>> = Mutex::new(BTreeMap::new());

pub(super) fn read(name: &str, s: &Section<'_>, access: &Access) -> Box<dyn Store> {
    let path = s.text_or(
        "path",
        name,
        "Name of the place in the memory of this process, which forgets it at its end",
    );
    let by_host =
        s.flag("hosts", true, "Keep each machine below hosts/NAME, so that several share the store");
    let part_bytes = s.size("part_size", 1, "Archives that are longer go up in parts of this size");
    let (store, place) = (name.to_owned(), path.clone());
    Box::new(Remote {
        name: name.to_owned(),
        location: format!("memory {path}, forgotten at the end"),
        place: format!("memory://{path}"),
        prefix: String::new(),
        offsite: false,
        by_host,
        marker: true,
        part_bytes,
        pace: None,
        runtime: access.runtime.clone(),
        operator: OnceLock::new(),
        there: AtomicBool::new(false),
        thaw: |_, _| String::new(),
        kit: None,
        connect: Box::new(move || {
            let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(operator) = places.get(&place) {
                return Ok(operator.clone());
            }
            let operator = Operator::new(Memory::default()).map_err(|e| StoreError::Refused {
                store: store.clone(),
                action: "use",
                object: "memory".to_owned(),
                refusal: Refusal::Other,
                why: e.to_string(),
            })?;
            places.insert(place.clone(), operator.clone());
            Ok(operator)
        }),
    })
}
