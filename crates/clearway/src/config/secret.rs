//! Secrets, and where they come from.

use std::fmt;

/// Text that is never printed: not by `Debug`, not in errors, not in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// One piece of a text with `${NAME}` in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

/// Splits at `${NAME}`; `None` when a `${` has no end or no sensible name.
pub(super) fn pieces(text: &str) -> Option<Vec<Piece<'_>>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}')?;
        let sound = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !name.chars().all(sound)
        {
            return None;
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        pieces.push(Piece::Variable(name));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_printed() {
        assert_eq!(format!("{:?}", Some(Secret::new("sk-123"))), "Some(Secret(***))");
    }

    #[test]
    fn variables_are_found() {
        use Piece::{Text, Variable};
        assert_eq!(pieces("plain"), Some(vec![Text("plain")]));
        assert_eq!(pieces("${KEY}"), Some(vec![Variable("KEY")]));
        assert_eq!(
            pieces("http://${HOST}:80"),
            Some(vec![Text("http://"), Variable("HOST"), Text(":80")])
        );
        for bad in ["${", "${}", "${A B}", "${1A}", "${A"] {
            assert_eq!(pieces(bad), None, "{bad}");
        }
    }
}
