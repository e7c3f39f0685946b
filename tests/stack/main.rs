//! A real Docker engine and what runs in it: odd data comes back whole, whatever fails is said, and containers that were
//! held go on.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

/// Not called yet: its checks need containers of ChromaDB.
#[expect(dead_code)]
mod chroma_api;
mod engine;
mod failures;
mod holds;
mod kills;
mod lab;
mod laboratory;
mod postgres;
mod redis;
mod restore;
mod secrets;
