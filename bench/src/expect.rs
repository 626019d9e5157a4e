//! What a reply must be: the simulator's counted words, each once and in order.

use anyhow::{Result, bail, ensure};

/// A reply of `tok0 tok1 …`.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    text: String,
    pub(crate) tokens: u32,
}

impl Expected {
    pub(crate) fn counted(tokens: u32) -> Self {
        let words: Vec<String> = (0..tokens).map(|n| format!("tok{n}")).collect();
        Self { text: words.join(" "), tokens }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { left: &self.text, deltas: 0 }
    }
}

/// Follows a stream and refuses the first byte that is not what must come next.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    left: &'a str,
    /// How many deltas there were.
    pub(crate) deltas: u32,
}

impl Reader<'_> {
    pub(crate) fn token(&mut self, text: &str) -> Result<()> {
        let Some(left) = self.left.strip_prefix(text) else {
            let due: String = self.left.chars().take(16).collect();
            bail!("delta {}: {text:?} came where {due:?} was due", self.deltas);
        };
        self.left = left;
        self.deltas += 1;
        Ok(())
    }

    pub(crate) fn end(&self) -> Result<()> {
        ensure!(self.left.is_empty(), "the stream ended {} bytes too early", self.left.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(deltas: &[&str]) -> Result<()> {
        let expected = Expected::counted(3);
        let mut reader = expected.reader();
        deltas.iter().try_for_each(|delta| reader.token(delta))?;
        reader.end()
    }

    #[test]
    fn each_token_once_and_in_order() {
        assert_eq!(Expected::counted(3).text(), "tok0 tok1 tok2");
        read(&["tok0", " tok1", " tok2"]).unwrap();
        read(&["tok0 tok1", " tok2"]).unwrap();
        assert!(read(&["tok0", " tok2"]).is_err(), "one lost");
        assert!(read(&["tok0", " tok1", " tok1", " tok2"]).is_err(), "one twice");
        assert!(read(&["tok0", " tok1"]).is_err(), "cut");
        assert!(read(&["tok0", " tok1", " tok2", " tok3"]).is_err(), "one too many");
    }
}
