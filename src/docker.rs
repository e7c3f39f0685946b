//! Our few words over the Docker engine. Calls block; each has a deadline and ends when the run is cancelled.

mod client;
mod containers;
mod exec;

pub use client::{Docker, DockerError};
pub use containers::{Container, DataAt, Selector};
pub use exec::{Exec, Limits, Output};
