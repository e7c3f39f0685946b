//! A real Docker engine and what runs in it: odd data comes back whole, whatever fails is said, and containers that were
//! held go on.

#![allow(clippy::unwrap_used)]

#[path = "../support/forge.rs"]
mod forge;
#[path = "../support/legacy.rs"]
mod legacy;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/servers.rs"]
mod servers;
#[path = "../support/mod.rs"]
mod support;

mod chroma_api;
mod demo;
mod drill;
mod engine;
mod failures;
mod holds;
mod kills;
mod lab;
mod laboratory;
mod places;
mod postgres;
mod redis;
mod restore;
mod restore_chroma;
mod restore_postgres;
mod restore_redis;
mod restore_whole;
mod secrets;
mod whole;
mod writers;
