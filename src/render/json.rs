//! JSON on standard output: one document per command.

use std::io;

use serde::Serialize;

pub fn print(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    super::text::print(&text)
}
