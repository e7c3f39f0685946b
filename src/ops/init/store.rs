//! Where do backups go, before anybody has said so? What could go wrong: a store on the disk that it is to outlive, taken for
//! a safe one, so it says what it is; and a store in what is captured, which then holds all earlier backups in each new one.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::mounts::Table;

/// The store of a new configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreChoice {
    pub name: &'static str,
    pub path: String,
    pub require_mount: bool,
    /// The disk that it lies on: kind of file system, and where it is mounted.
    pub disk: Option<String>,
    /// Disks of other machines that it could have been, where there are several.
    pub others: Vec<String>,
}

/// Why there is none.
#[derive(Debug, PartialEq, Eq)]
pub enum NoStore {
    /// The store and what is captured lie in one another.
    Overlap { store: PathBuf, captured: PathBuf },
    /// Its path cannot be written into a configuration.
    NotText(PathBuf),
}

const LOCAL: &str = "/var/backups/tars-backup";

/// Chooses one: `given`, else one on the only disk of another machine, else one on this one. `captured` are the directories
/// that a backup reads; `real` is what a path is without links.
pub fn choose(
    table: &Table,
    given: Option<&Path>,
    captured: &[PathBuf],
    real: &dyn Fn(&Path) -> PathBuf,
) -> Result<StoreChoice, NoStore> {
    let on = |path: &Path| on(table, path, &real(path), captured);
    let network: Vec<(&Path, &str)> = table
        .network()
        .iter()
        .filter(|m| is_anybodys(&m.point))
        .map(|m| (m.point.as_path(), m.kind.as_str()))
        .collect();
    let others = || match network.as_slice() {
        [_] => Vec::new(),
        several => several.iter().map(|(point, kind)| format!("{} ({kind})", point.display())).collect(),
    };
    if let Some(path) = given {
        return on(path);
    }
    if let [(point, _)] = network.as_slice()
        && let Ok(nas) = on(&point.join("tars-backup"))
    {
        return Ok(nas);
    }
    on(Path::new(LOCAL)).map(|local| StoreChoice { others: others(), ..local })
}

/// Not one that the engine has mounted for a container.
fn is_anybodys(point: &Path) -> bool {
    !point.starts_with("/var/lib/docker") && !point.starts_with("/run") && point.to_str().is_some()
}

fn on(table: &Table, path: &Path, real: &Path, captured: &[PathBuf]) -> Result<StoreChoice, NoStore> {
    let overlaps = |dir: &&PathBuf| [path, real].iter().any(|p| dir.starts_with(p) || p.starts_with(dir));
    if let Some(dir) = captured.iter().find(overlaps) {
        return Err(NoStore::Overlap { store: path.to_owned(), captured: dir.clone() });
    }
    let Some(text) = path.to_str() else { return Err(NoStore::NotText(path.to_owned())) };
    let mounted = table.of(real);
    let is_network = mounted.is_some_and(crate::mounts::Mounted::is_network);
    let own = mounted.filter(|m| m.point != Path::new("/"));
    Ok(StoreChoice {
        name: match (is_network, own) {
            (true, _) => "nas",
            (false, Some(_)) => "disk",
            (false, None) => "local",
        },
        path: text.to_owned(),
        require_mount: own.is_some(),
        disk: own.map(|m| format!("{} at {}", m.kind, m.point.display())),
        others: Vec::new(),
    })
}

impl StoreChoice {
    /// What a person should know of it.
    pub fn about(&self) -> Vec<String> {
        let mut lines = Vec::new();
        match (self.name, &self.disk) {
            ("nas", Some(disk)) => lines.push(format!("A disk of another machine ({disk}).")),
            (_, Some(disk)) => lines.push(format!(
                "A disk that is mounted here ({disk}). If it is another one than that of the stack, this store outlives that, \
                 but neither the machine nor the house."
            )),
            (_, None) => lines.push(
                "THIS STORE LIES ON THE DISK OF THE MACHINE ITSELF. It is good for what somebody deletes by mistake. It does not \
                 survive the loss of the disk: add a store elsewhere, and name it in stores = of the tiers below."
                    .to_owned(),
            ),
        }
        if !self.others.is_empty() {
            lines.push(format!(
                "Several disks of other machines are mounted, so none was chosen: {}.",
                self.others.join(", ")
            ));
        }
        lines
    }
}
