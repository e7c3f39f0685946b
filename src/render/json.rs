//! JSON on standard output: one document per command.

use std::io;

use serde::Serialize;

pub fn print(value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    super::text::print(&text.chars().flat_map(plain).collect::<String>())
}

/// Control characters above ASCII are legal in JSON, and some terminals obey them.
fn plain(c: char) -> Vec<char> {
    match c {
        '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", u32::from(c)).chars().collect(),
        c => vec![c],
    }
}
