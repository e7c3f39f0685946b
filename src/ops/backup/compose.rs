//! From staging to one archive: manifest, guide, packing; and the last look for secrets before they leave.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Map;

use super::capture::Captured;
use super::deliver::Bench;
use super::{BackupError, BackupPlan, ComponentResult, Failure, World};
use crate::anomaly::Anomaly;
use crate::archive::compress::Staged;
use crate::archive::layout;
use crate::archive::pack::{self, Packed, Text};
use crate::id::BackupName;
use crate::manifest::{self, Component, ComponentState, Manifest, SCHEMA, State};
use crate::progress::{Event, What};
use crate::source::{self, MODELS};
use crate::staging::Staging;
use crate::units::millis;

pub(super) fn pack_all(
    plan: &BackupPlan<'_>,
    captured: &mut [Captured<'_>],
    anomalies: &[Anomaly],
    staging: &Staging,
    bench: &Bench,
    (name, time): (&BackupName, Timestamp),
    world: &World<'_>,
) -> Result<(Manifest, Packed), BackupError> {
    let (manifest, guide) = loop {
        let anomalies = anomalies.iter().map(|a| a.component.clone()).collect();
        let manifest = Manifest { anomalies, ..manifest_of(plan, captured, name, time, world) };
        let sections: Vec<(String, String)> = manifest
            .details
            .iter()
            .filter(|(_, c)| !c.members.is_empty())
            .map(|(n, c)| (n.clone(), source::restore_guide(n, c)))
            .collect();
        let guide = layout::guide(&manifest, &sections);
        let text = manifest.to_inner()?;
        let leak = world.vault.remains_in(&text).or_else(|| world.vault.remains_in(guide.as_bytes()));
        match leak {
            Some(label) if fail_configuration(captured, &label, world) => {}
            _ => break (manifest, guide),
        }
    };
    let inner = manifest.to_inner()?;
    let files: Vec<&Staged> =
        captured.iter().filter_map(|c| c.outcome.as_ref().ok()).flat_map(|c| &c.staged).collect();
    let total = files.iter().map(|f| f.bytes).sum();
    world.monitor.phase("packing", Some(total));
    world.monitor.event(Event::new(What::Packing, format!("Packing {name}")).backup(name));
    let texts = [
        Text { member: layout::MANIFEST, bytes: &inner },
        Text { member: layout::GUIDE, bytes: guide.as_bytes() },
    ];
    let packed = pack::pack(
        &pack::Plan { name, time: time.as_second(), texts: &texts, files: &files },
        &bench.dir().join(name.archive()),
        bench.reserve()?,
        staging.pool(),
        staging.how(),
        world.cancel,
        world.monitor,
    )?;
    Ok((manifest, packed))
}

/// A secret of the configuration stands in the manifest or the guide, as the name of something else: then the
/// configuration component fails. Says whether there was one to fail.
fn fail_configuration(captured: &mut [Captured<'_>], label: &str, world: &World<'_>) -> bool {
    let mut failed = false;
    for c in captured.iter_mut().filter(|c| c.configured.kind == "config_files" && c.outcome.is_ok()) {
        let error = format!("the value of {label} would stand readable in the manifest or in RESTORE.md");
        let text = format!("{} failed: {error}", c.configured.name);
        world.monitor.event(Event::new(What::ComponentFailed, text).component(&c.configured.name));
        c.outcome = Err(Failure {
            error,
            hint: Some(
                "it is also the name of something; choose another secret, or name its key in harmless_keys"
                    .into(),
            ),
        });
        failed = true;
    }
    failed
}

fn manifest_of(
    plan: &BackupPlan<'_>,
    captured: &[Captured<'_>],
    name: &BackupName,
    time: Timestamp,
    world: &World<'_>,
) -> Manifest {
    let mut details = BTreeMap::new();
    let mut volumes = Vec::new();
    for c in captured {
        if let Ok(capture) = &c.outcome {
            volumes.extend(
                capture.volumes.iter().filter(|v| !volumes.contains(*v)).cloned().collect::<Vec<_>>(),
            );
        }
        details.insert(c.configured.name.to_string(), component_of(c, world));
    }
    let names = |wanted: fn(ComponentState) -> bool| -> Vec<String> {
        captured.iter().filter(|c| wanted(state_of(c))).map(|c| c.configured.name.to_string()).collect()
    };
    let whole = names(|s| s == ComponentState::Whole);
    let whole_refs: Vec<&str> = whole.iter().map(String::as_str).collect();
    let staged = captured.iter().filter_map(|c| c.outcome.as_ref().ok()).flat_map(|c| &c.staged);
    let skipped = |component: &str| {
        plan.expected.iter().any(|s| s.name.as_str() == component)
            && !plan.selected.iter().any(|s| s.name.as_str() == component)
    };
    Manifest {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        timestamp: time.strftime("%FT%TZ").to_string(),
        backup_name: name.clone(),
        components: whole.clone(),
        checksums: layout::checksums(staged),
        host: world.owner.host.clone(),
        docker_volumes: volumes,
        options: manifest::Options {
            include_models: plan.selected.iter().any(|s| s.kind == MODELS),
            skip_chromadb: skipped("chromadb"),
            skip_postgres: skipped("postgres"),
            skip_redis: skipped("redis"),
        },
        failed_components: names(|s| s != ComponentState::Whole),
        schema: SCHEMA,
        tier: plan.tier.name.to_string(),
        tags: plan.request.tags.clone(),
        only: plan.request.only.clone(),
        skip: plan
            .request
            .skip
            .iter()
            .cloned()
            .chain(plan.request.skip_if_present.iter().filter(|s| skipped(s)).map(|s| (*s).to_owned()))
            .collect(),
        expected_components: plan.expected.iter().map(|s| s.name.to_string()).collect(),
        state: State::of(plan.expected.iter().map(|s| (s.name.as_str(), s.critical)), &whole_refs),
        anomalies: Vec::new(),
        encryption: manifest::Encryption::default(),
        details,
        legacy: false,
        bytes: None,
        sha256: None,
        manifest_sha256: None,
    }
}

fn state_of(c: &Captured<'_>) -> ComponentState {
    match &c.outcome {
        Ok(capture) if capture.incomplete.is_none() => ComponentState::Whole,
        Ok(_) => ComponentState::Incomplete,
        Err(_) => ComponentState::Failed,
    }
}

fn component_of(c: &Captured<'_>, world: &World<'_>) -> Component {
    let mut component = Component {
        kind: c.configured.kind.to_owned(),
        critical: c.configured.critical,
        state: state_of(c),
        members: Vec::new(),
        bytes_in: 0,
        bytes_stored: 0,
        files: 0,
        duration_ms: millis(c.took),
        consistency: "none".to_owned(),
        paused_ms: 0,
        warnings: Vec::new(),
        error: None,
        facts: Map::new(),
    };
    match &c.outcome {
        Ok(capture) => {
            component.members = capture.staged.iter().map(|s| s.member.clone()).collect();
            component.bytes_in = capture.bytes_in;
            component.bytes_stored = capture.staged.iter().map(|s| s.bytes).sum();
            component.files = capture.files;
            component.paused_ms = millis(capture.paused);
            component.consistency = capture.consistency.to_owned();
            component.warnings = capture.warnings.iter().map(|w| world.vault.scrub(w)).collect();
            component.error = capture.incomplete.as_ref().map(|e| world.vault.scrub(e));
            component.facts = capture.facts.clone();
        }
        Err(failure) => component.error = Some(failure.error.clone()),
    }
    component
}

pub(super) fn result_of(c: &Captured<'_>, world: &World<'_>) -> ComponentResult {
    let component = component_of(c, world);
    ComponentResult {
        name: c.configured.name.to_string(),
        critical: component.critical,
        state: component.state,
        bytes_in: component.bytes_in,
        bytes_stored: component.bytes_stored,
        duration_ms: component.duration_ms,
        warnings: component.warnings,
        failure: match &c.outcome {
            Err(failure) => Some(failure.clone()),
            Ok(_) => component.error.map(Failure::text),
        },
    }
}
