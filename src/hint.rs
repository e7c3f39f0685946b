//! What to do next: every error that a person can mend says how. Printed after the error, never inside it.

pub trait Hint {
    /// One sentence or command; None where only the message helps.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// An error and its causes on one line, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let line = c.to_string();
        // Some libraries repeat their cause in their own text; say it once.
        if !text.ends_with(&line) {
            text.push_str(": ");
            text.push_str(&line);
        }
        cause = c.source();
    }
    text
}

/// The same for a known type, to be passed as a function.
pub fn chain_of<E: std::error::Error>(error: &E) -> String {
    chain(error)
}
