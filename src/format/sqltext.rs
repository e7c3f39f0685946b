//! Short SQL scripts, as pg_dumpall and our own settings query write them: taken apart into statements and words, and
//! put together. What could go wrong: a name or a text that is taken for SQL; so everything is quoted by these two
//! functions, and what is quoted in a script is never looked into.

use std::ops::Range;

/// A word of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// A keyword, a number, or a name that needs no quotes.
    Plain(String),
    /// A name in double quotes, without them.
    Name(String),
    /// A text in single quotes, without them.
    Text(String),
    Other(char),
}

impl Word {
    /// What it says; None for a sign.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Plain(text) | Self::Name(text) | Self::Text(text) => Some(text),
            Self::Other(_) => None,
        }
    }

    pub fn is(&self, keyword: &str) -> bool {
        matches!(self, Self::Plain(word) if word == keyword)
    }
}

/// A name, quoted.
pub fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A text, quoted, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The statements of a script, without comments and without lines for psql. In both kinds of scripts a backslash in a
/// text is doubled or has no meaning, so it never hides a quote.
pub fn statements(script: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = script;
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return found;
        }
        if rest.starts_with("--") || rest.starts_with('\\') {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        let end = end_of_statement(rest);
        found.push(rest[..end].trim_end());
        // Whatever ends it, the rest of its line belongs to psql.
        rest = rest[end..].split_once('\n').map_or("", |(_, after)| after);
    }
}

/// After the semicolon, or before the command of psql that takes its place.
fn end_of_statement(text: &str) -> usize {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(q), _) if q == c => quote = None,
            (None, ';') => return at + 1,
            (None, '\\') => return at,
            _ => {}
        }
    }
    text.len()
}

/// The words of one statement, and where they stand.
pub fn words(statement: &str) -> Vec<(Range<usize>, Word)> {
    let mut found: Vec<(Range<usize>, Word)> = Vec::new();
    let mut at = 0;
    while let Some(c) = statement[at..].chars().next() {
        let rest = &statement[at..];
        let is_plain = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        let (length, word) = match c {
            c if c.is_whitespace() => (c.len_utf8(), None),
            '\'' | '"' => {
                let length = quoted_length(rest, c);
                let inside = rest.get(1..length - 1).unwrap_or_default();
                let text = inside.replace(&format!("{c}{c}"), &c.to_string());
                (length, Some(if c == '"' { Word::Name(text) } else { Word::Text(text) }))
            }
            'E' if rest[1..].starts_with('\'') => {
                let length = 1 + quoted_length(&rest[1..], '\'');
                let inside = rest.get(2..length - 1).unwrap_or_default();
                (length, Some(Word::Text(inside.replace("''", "'").replace("\\\\", "\\"))))
            }
            c if is_plain(c) => {
                let length = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
                (length, Some(Word::Plain(rest[..length].to_owned())))
            }
            c => (c.len_utf8(), Some(Word::Other(c))),
        };
        found.extend(word.map(|w| (at..at + length, w)));
        at += length;
    }
    found
}

/// Length of the quoted text that `rest` begins with, both quotes included; a doubled quote is no end.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut at = 1;
    while let Some(next) = rest[at..].find(quote) {
        at += next + 1;
        if !rest[at..].starts_with(quote) {
            return at;
        }
        at += 1;
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_script_becomes_its_statements() {
        let script = "-- a; 'comment\n\\restrict x;\n\nSET a = 'b;\n-- no comment';\n\
            SELECT 'CREATE \"x\";' WHERE \"a;\\\" = 'it''s' \\gexec\nGRANT a TO \"b;\"\"\n\";\n\\unrestrict x\n";
        assert_eq!(
            statements(script),
            [
                "SET a = 'b;\n-- no comment';",
                "SELECT 'CREATE \"x\";' WHERE \"a;\\\" = 'it''s'",
                "GRANT a TO \"b;\"\"\n\";"
            ]
        );
    }

    #[test]
    fn words_know_names_from_texts() {
        let text = "ALTER ROLE \"a \"\"b\"\"\" SET größe TO E'x\\\\y''z', -1;";
        let found: Vec<Word> = words(text).into_iter().map(|(_, w)| w).collect();
        let plain = |w: &str| Word::Plain(w.into());
        assert_eq!(
            found,
            [
                plain("ALTER"),
                plain("ROLE"),
                Word::Name("a \"b\"".into()),
                plain("SET"),
                plain("größe"),
                plain("TO"),
                Word::Text("x\\y'z".into()),
                Word::Other(','),
                Word::Other('-'),
                plain("1"),
                Word::Other(';')
            ]
        );
        assert_eq!(&text[words(text)[2].0.clone()], "\"a \"\"b\"\"\"");
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(text in ".*", tail in ".*") {
            let statement = format!("{} {};", name(&text), literal(&text));
            let found: Vec<Word> = words(&statement).into_iter().map(|(_, w)| w).collect();
            prop_assert_eq!(&found, &[Word::Name(text.clone()), Word::Text(text), Word::Other(';')]);
            let script = format!("{statement}\n{statement}");
            prop_assert_eq!(statements(&script), [statement.as_str(), statement.as_str()]);
            // Whatever comes, nothing panics.
            words(&tail);
            statements(&tail);
        }
    }
}
