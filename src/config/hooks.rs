//! Commands of the operator that are run when something happens.

use super::section::Section;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Program and arguments, run when a unit has failed; none when empty.
    pub on_failure: Vec<String>,
}

impl Hooks {
    pub fn read(root: &Section<'_>) -> Self {
        let s = root.table("hooks");
        let on_failure = s.texts(
            "on_failure",
            "Program and arguments, run when a unit of tars-backup has failed; it is told in TARS_BACKUP_UNIT and MONITOR_*",
        );
        if on_failure.first().is_some_and(String::is_empty) {
            s.problem("on_failure", "names no program", None);
        }
        s.finish();
        Self { on_failure }
    }
}
