//! How things are shown: tables and sentences for people, JSON for programs, progress while it lasts.

pub mod json;
pub mod kit;
pub mod monitor;
pub mod text;
