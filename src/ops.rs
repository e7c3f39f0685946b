//! What the program does: one file per verb, free functions over plans and seams. They never print.

pub mod apply;
pub mod backup;
mod carry;
pub mod drill;
pub mod extract;
pub mod find;
pub mod init;
pub mod inside;
pub mod kit;
pub mod list;
pub mod mark;
pub mod pins;
pub mod promote;
pub mod prune;
pub mod recover;
pub mod restore;
pub mod status;
pub mod sync;
pub mod verify;

use std::path::Path;

use jiff::Timestamp;
use tokio::runtime::Handle;

use crate::cancel::Cancel;
use crate::keyring::Keyring;
use crate::progress::Monitor;
use crate::store::Owner;
use crate::vault::Vault;

/// What every operation may use of the world.
pub struct World<'a> {
    pub cancel: &'a Cancel,
    pub monitor: &'a dyn Monitor,
    pub runtime: &'a Handle,
    pub vault: &'a Vault,
    /// What opens sealed backups.
    pub keyring: &'a Keyring,
    pub owner: &'a Owner,
    pub exe: &'a Path,
    pub now: fn() -> Timestamp,
}
