//! From TOML text to values that are known to be right. What could go wrong: a typo that is silence, so every key is
//! asked for by name through a `Section`, and whatever was not asked for is an error that names the nearest key.
//! The same questions, asked of an empty section, are the schema; the answers are `config show`.

mod agent;
mod doc;
mod encryption;
mod hooks;
mod schema;
mod section;
mod tiers;

pub use agent::{Agent, Archive, Dirs, DockerSettings, Method, Places};
pub use doc::{Doc, Place};
pub use encryption::{Encryption, Seal};
pub use hooks::Hooks;
pub use schema::json_schema;
pub(crate) use section::nearest;
pub use section::{Key, Problem, Section, Survey};
pub use tiers::{Components, Keep, Tier, check_tiers};
