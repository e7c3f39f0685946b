//! The services of a stack in a real Docker engine: odd data comes back whole, and whatever fails is said.

#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod chroma_api;
mod engine;
mod failures;
mod lab;
mod laboratory;
mod places;
mod postgres;
mod redis;
mod secrets;
mod whole;
mod writers;
