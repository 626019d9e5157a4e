//! JSON written straight into a buffer, for the frames that are made once per token.
//!
//! Everything that is not made once per token goes through `serde_json`.
//!
//! Characters that end a line for some clients (Python's `splitlines`, and with it `httpx`) are written
//! as escapes: the old services wrote ASCII only, so a frame was one line to everybody.

use bytes::BytesMut;

/// A JSON string with its quotes.
pub(crate) fn put_string(out: &mut BytesMut, text: &str) {
    out.reserve(text.len() + 2);
    out.extend_from_slice(b"\"");
    put_escaped(out, text);
    out.extend_from_slice(b"\"");
}

/// The inside of a JSON string. Runs of harmless bytes are copied as a whole.
pub(crate) fn put_escaped(out: &mut BytesMut, text: &str) {
    let bytes = text.as_bytes();
    let mut copied = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if !NEEDS_ESCAPE[usize::from(byte)] {
            continue;
        }
        if !byte.is_ascii() {
            if let Some((length, escape)) = line_end(&bytes[at..]) {
                out.extend_from_slice(&bytes[copied..at]);
                out.extend_from_slice(escape);
                copied = at + length;
            }
            continue;
        }
        out.extend_from_slice(&bytes[copied..at]);
        copied = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            _ => {
                let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            }
        }
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// JSON as `serde_json` writes it.
pub(crate) fn put_json(out: &mut BytesMut, json: &[u8]) {
    let mut copied = 0;
    for (at, &byte) in json.iter().enumerate() {
        // Beyond ASCII there are only insides of strings.
        if !byte.is_ascii()
            && NEEDS_ESCAPE[usize::from(byte)]
            && let Some((length, escape)) = line_end(&json[at..])
        {
            out.extend_from_slice(&json[copied..at]);
            out.extend_from_slice(escape);
            copied = at + length;
        }
    }
    out.extend_from_slice(&json[copied..]);
}

/// A character beyond ASCII that ends a line: its length, and how JSON escapes it.
const fn line_end(text: &[u8]) -> Option<(usize, &'static [u8])> {
    match text {
        [0xc2, 0x85, ..] => Some((2, b"\\u0085")),
        [0xe2, 0x80, 0xa8, ..] => Some((3, b"\\u2028")),
        [0xe2, 0x80, 0xa9, ..] => Some((3, b"\\u2029")),
        _ => None,
    }
}

/// A decimal number.
pub(crate) fn put_number(out: &mut BytesMut, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Control characters, the quote and the backslash, and how characters that end a line begin.
const NEEDS_ESCAPE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[0xc2] = true;
    table[0xe2] = true;
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn strings_read_back(
            text in "\\PC*|[\\x00-\\x7f]{0,40}|[ab\u{84}-\u{86}\u{c2}\u{2026}-\u{202a}]{0,20}"
        ) {
            let mut out = BytesMut::new();
            put_string(&mut out, &text);
            prop_assert_eq!(&serde_json::from_slice::<String>(&out).unwrap(), &text);
            let breaks = |out: &BytesMut| {
                let is_end = |c: char| "\n\r\u{85}\u{2028}\u{2029}".contains(c);
                std::str::from_utf8(out).unwrap().contains(is_end)
            };
            prop_assert!(!breaks(&out), "a line break would end a server-sent field");
            let mut out = BytesMut::new();
            put_json(&mut out, serde_json::json!([&text]).to_string().as_bytes());
            prop_assert_eq!(&serde_json::from_slice::<[String; 1]>(&out).unwrap()[0], &text);
            prop_assert!(!breaks(&out));
        }

        #[test]
        fn numbers_print_as_usual(number: u64) {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            prop_assert_eq!(std::str::from_utf8(&out).unwrap(), number.to_string());
        }
    }
}
