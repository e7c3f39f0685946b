//! Our few words over the Docker engine. Calls block; each has a deadline and ends when the run is cancelled.

mod acts;
mod client;
pub mod compose;
mod containers;
mod events;
mod exec;
pub mod hold;
mod place;
mod throwaway;

pub use acts::Fate;
pub use client::{Docker, DockerError};
pub use containers::{Container, Mount, MountKind, Selector};
pub use exec::{Exec, Limits, Output};
pub use place::{Devices, Place, Seat, VolumeFacts};
pub use throwaway::{DRILL_LABEL, Image, Throwaway};
