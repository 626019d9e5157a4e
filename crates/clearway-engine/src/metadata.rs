//! What clients keep beside runs and threads: their own, and small.
//!
//! It comes back with every line of every list, so what is large in it would make all of them slow.

use std::io::{self, Write};

use clearway_core::Code;
use serde_json::{Map, Value};

use crate::Error;

/// Bytes of one run's or thread's metadata at most, as JSON.
pub(crate) const METADATA_BYTES: usize = 64 << 10;

/// # Errors
/// `invalid_request` when there is too much of it.
pub(crate) fn check(metadata: &Map<String, Value>) -> Result<(), Error> {
    if metadata.is_empty() {
        return Ok(());
    }
    let mut size = Size(0);
    // Counting cannot fail, and a map of values is always JSON.
    let _ = serde_json::to_writer(&mut size, metadata);
    if size.0 <= METADATA_BYTES {
        return Ok(());
    }
    let text = format!(
        "`metadata` has {} bytes and may have {METADATA_BYTES}; what is larger belongs into the input",
        size.0
    );
    Err(Error::new(Code::InvalidRequest, text))
}

/// Counts what is written.
struct Size(usize);

impl Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_limit_is_one_of_bytes() {
        let of = |bytes: usize| Map::from_iter([("a".to_owned(), json!("x".repeat(bytes)))]);
        let frame = r#"{"a":""}"#.len();
        assert!(check(&Map::new()).is_ok());
        assert!(check(&of(METADATA_BYTES - frame)).is_ok());
        let refused = check(&of(METADATA_BYTES - frame + 1)).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidRequest);
        assert!(refused.to_string().contains("65537 bytes"), "{refused}");
    }
}
