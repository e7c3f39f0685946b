//! JSON on standard output: one document per command.

use std::io::{self, Write};

use serde::Serialize;

pub fn print(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    io::stdout().lock().write_all(text.as_bytes())
}
