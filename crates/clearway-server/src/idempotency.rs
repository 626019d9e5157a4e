//! `Idempotency-Key`: the same request sent twice starts one run.

use clearway_core::Code;
use clearway_core::id::length_prefixed;
use clearway_engine::Idempotency;
use http::HeaderMap;
use uuid::Uuid;

use crate::Problem;
use crate::caller::Identity;

/// What the request's `Idempotency-Key` says, if it has one.
///
/// # Errors
/// The key is empty, too long or not printable.
pub(crate) fn read(
    headers: &HeaderMap,
    route: &str,
    body: &[u8],
) -> Result<Option<Idempotency>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=LONGEST).contains(&key.len()));
    let Some(key) = key else {
        let text = format!("Idempotency-Key must be 1 to {LONGEST} printable ASCII characters");
        return Err(Problem::new(Code::InvalidRequest, text));
    };
    let body = fingerprint(body);
    // Users of one tenant may choose the same keys and must not find each other's runs by them.
    let route = match Identity::read(headers).and_then(|identity| identity.user) {
        Some(user) => self::route(route, &user),
        None => route.to_owned(),
    };
    Ok(Some(Idempotency { route, key: key.to_owned(), body }))
}

const LONGEST: usize = 255;

/// 32 bytes that differ for different bodies: two name-based UUIDs, each from a SHA-1 of the body.
///
/// It tells a repetition from a mistake; it is no defence against somebody who looks for collisions
/// among their own keys.
fn fingerprint(body: &[u8]) -> [u8; 32] {
    let first = Uuid::new_v5(&FIRST, body);
    let second = Uuid::new_v5(&SECOND, body);
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(first.as_bytes());
    bytes[16..].copy_from_slice(second.as_bytes());
    bytes
}

const FIRST: Uuid = Uuid::from_u128(0x4f2e_9a36_7d5b_4c0e_8f61_0be5_52c9_71d3);
const SECOND: Uuid = Uuid::from_u128(0xa81c_05d4_1e97_4b7a_b3f2_69c8_d40e_2f15);

/// The route of a door's address: doors with other mounts keep their keys apart.
pub(crate) fn route(door: &str, address: &str) -> String {
    String::from_utf8(length_prefixed(&[door, address])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked_and_bodies_told_apart() {
        let mut headers = HeaderMap::new();
        assert!(read(&headers, "r", b"").unwrap().is_none());
        headers.insert("idempotency-key", "k1".parse().unwrap());
        let first = read(&headers, "r", b"{}").unwrap().unwrap();
        assert_eq!((first.route.as_str(), first.key.as_str()), ("r", "k1"));
        assert_eq!(read(&headers, "r", b"{}").unwrap().unwrap(), first);
        assert_ne!(read(&headers, "r", b"{ }").unwrap().unwrap().body, first.body);
        for bad in ["", "\u{e9}", &"x".repeat(256)] {
            headers
                .insert("idempotency-key", http::HeaderValue::from_bytes(bad.as_bytes()).unwrap());
            assert_eq!(read(&headers, "r", b"").unwrap_err().code(), Code::InvalidRequest);
        }
    }
}
