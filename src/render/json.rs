//! JSON on standard output: one document per command.

use std::io;

use serde::Serialize;

use crate::id::misleads;

pub fn print(value: &impl Serialize) -> io::Result<()> {
    super::text::print(&document(value)?)
}

fn document(value: &impl Serialize) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text.chars().flat_map(plain).collect())
}

/// What some terminals obey is legal in JSON above ASCII; it is written in the way of JSON, so that it stays that.
fn plain(c: char) -> Vec<char> {
    if c == '\n' || !misleads(c) {
        return vec![c];
    }
    // None of them needs more than four digits.
    format!("\\u{:04x}", u32::from(c)).chars().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::show_text;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_the_document_stays_one() {
        let text = "a\u{1b}[31m \u{7f}\u{85}\u{9b} \u{202e}\u{2066}\u{200f}\u{2028} \n\t\r \"\\ ünï 漢 😀";
        let shown = document(&text).unwrap();
        // Printing it changes nothing any more.
        assert_eq!(show_text(&shown), shown);
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        assert!(shown.contains("\\u202e") && shown.contains("ünï 漢 😀"), "{shown}");
    }
}
