//! The command that makes the containers of a stack without starting them: a restore needs them to be there. What could go
//! wrong: a person who starts the empty stack first, and an application that fills it; so the words are exact.

use crate::docker::compose::{self, Stack};
use crate::manifest::Component;

/// What to type when the container of a component is gone.
pub(super) fn make_containers(component: &Component) -> String {
    let stack = Stack::noted(component).unwrap_or_default();
    let command = stack.command(compose::program());
    format!("make the containers without starting them: {command} up --no-start; then again")
}
