//! Plain text, in whatever encoding.

use encoding_rs::{UTF_16BE, UTF_16LE, WINDOWS_1252};

use crate::protocol::{Trouble, TroubleKind};

/// Bytes as text, with line ends of one kind and without control characters.
pub(super) fn decode(bytes: &[u8]) -> Result<String, Trouble> {
    let text = match bytes {
        [0xFF, 0xFE, ..] => UTF_16LE.decode(bytes).0,
        [0xFE, 0xFF, ..] => UTF_16BE.decode(bytes).0,
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8_lossy(rest),
        _ => {
            refuse_binary(bytes)?;
            match std::str::from_utf8(bytes) {
                Ok(text) => text.into(),
                Err(_) => WINDOWS_1252.decode(bytes).0,
            }
        }
    };
    Ok(clean(&text))
}

/// A picture or a program that calls itself a text.
fn refuse_binary(bytes: &[u8]) -> Result<(), Trouble> {
    let start = &bytes[..bytes.len().min(64 << 10)];
    let strange = |byte: &&u8| matches!(**byte, 0..=8 | 11 | 14..=26 | 28..=31 | 127);
    let count = start.iter().filter(strange).count();
    if start.contains(&0) || count * 50 > start.len() {
        let text = "its bytes are not text, although its name says so";
        return Err(Trouble::new(TroubleKind::Binary, text));
    }
    Ok(())
}

fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    clean.push('\n');
                }
            }
            '\n' | '\t' => clean.push(char),
            '\u{c}' => clean.push('\n'),
            '\u{feff}' => {}
            char if char.is_control() => clean.push(' '),
            char => clean.push(char),
        }
    }
    clean
}
