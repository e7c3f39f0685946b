//! Our few words over a ChromaDB server and over a copy of its data. Calls block; each has a deadline and ends when the
//! run is cancelled. What could go wrong: an export that looks whole and is not, because records were deleted between
//! two pages; so the list of ids is fixed first, and what was gone when it was asked for is counted.

mod client;
pub mod copy;
mod error;
mod export;
mod http;
mod ids;
mod import;
pub mod location;
mod pages;

pub use client::{Api, Client, Collection, DEFAULT_DATABASE, DEFAULT_TENANT, Endpoint};
pub use error::ChromaError;
pub use export::Exported;
pub use http::Token;
pub use import::Import;
pub use pages::Pages;
