//! OpenAI's shape of a request for embeddings and of its answer. Pure functions.
//!
//! **Invariant:** what [`read`] returns is complete, paired with its text, and fit for use; anything
//! less is a fault. A vector never ends up at another text: an answer whose indexes do not say
//! exactly which vector is whose is refused as a whole.

use std::fmt;

use bytes::Bytes;
use clearway_core::Code;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tracing::warn;

use super::validate::{self, UNUSUAL};
use crate::call::Phase;
use crate::codec::failure::{Rejection, Secrets};
use crate::failure::Fault;

/// The vectors of one batch, in the order of its texts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoded {
    pub(crate) vectors: Vec<Vec<f32>>,
    /// As the provider counted, if it did.
    pub(crate) input_tokens: Option<u64>,
}

/// Writes the body of a request. `params` are the model's own.
pub(super) fn request<'a>(
    model: &str,
    params: &Map<String, Value>,
    texts: impl Iterator<Item = &'a str>,
    dimensions: Option<u32>,
) -> Bytes {
    let mut body = params.clone();
    body.insert("model".to_owned(), model.into());
    body.insert("input".to_owned(), texts.map(Value::from).collect());
    // A quarter of the size of decimal numbers, and exact.
    body.insert("encoding_format".to_owned(), "base64".into());
    if let Some(dimensions) = dimensions {
        body.insert("dimensions".to_owned(), dimensions.into());
    }
    Value::Object(body).to_string().into()
}

/// Reads the answer to a request for `count` texts. `dimensions` is the expected length of the
/// vectors; when nobody knows it, they must at least agree.
///
/// # Errors
///
/// `upstream.bad_vectors` when there are vectors, but they cannot be used; otherwise what the
/// provider says, or that it is no such answer.
pub(super) fn read(
    body: &[u8],
    count: usize,
    dimensions: Option<usize>,
    secrets: Secrets<'_>,
) -> Result<Decoded, Fault> {
    let answer: Answer = serde_json::from_slice(body).map_err(|error| no_json(body, &error))?;
    if answer.error.is_some() {
        return Err(Fault::rejected(Rejection::in_band(body, secrets), Phase::FirstToken));
    }
    let Some(rows) = answer.data else {
        return Err(bad_response("the answer is JSON, but has no embeddings"));
    };
    let vectors = pair(rows, count)?;
    let mut expected = dimensions;
    for (index, vector) in vectors.iter().enumerate() {
        let most = validate::check(vector, expected)
            .map_err(|defect| bad_vectors(&format!("vector {index}: {defect}")))?;
        if most > UNUSUAL {
            warn!(index, most, "an embedding has unusually large values");
        }
        expected = Some(vector.len());
    }
    Ok(Decoded { vectors, input_tokens: answer.usage.and_then(input_tokens) })
}

/// Puts the vectors into the order of their texts.
fn pair(rows: Vec<Row>, count: usize) -> Result<Vec<Vec<f32>>, Fault> {
    if rows.len() != count {
        return Err(bad_vectors(&format!("{} vectors for {count} texts", rows.len())));
    }
    let numbered = rows.iter().filter(|row| row.index.is_some()).count();
    if numbered != 0 && numbered != count {
        return Err(bad_vectors(&format!("{numbered} of {count} vectors have an index")));
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; count];
    for (position, row) in rows.into_iter().enumerate() {
        let index = row.index.unwrap_or(position as u64);
        let place = usize::try_from(index).ok().and_then(|index| vectors.get_mut(index));
        let Some(place) = place else {
            return Err(bad_vectors(&format!("index {index} of {count} texts")));
        };
        let vector = row
            .embedding
            .0
            .map_err(|problem| bad_vectors(&format!("vector {index}: {problem}")))?;
        if place.replace(vector).is_some() {
            return Err(bad_vectors(&format!("index {index} comes twice")));
        }
    }
    // As many as there are texts, and none twice: each place has one.
    Ok(vectors.into_iter().flatten().collect())
}

fn input_tokens(usage: Value) -> Option<u64> {
    usage["prompt_tokens"].as_u64().or_else(|| usage["total_tokens"].as_u64())
}

fn no_json(body: &[u8], error: &serde_json::Error) -> Fault {
    // Some servers print what JSON has no word for.
    let says = |word: &str| memchr::memmem::find(body, word.as_bytes()).is_some();
    if error.is_syntax() && (says("NaN") || says("Infinity")) {
        return bad_vectors("a value is not a number");
    }
    bad_response(&format!("the answer is not a list of embeddings: {error}"))
}

fn bad_response(problem: &str) -> Fault {
    Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem)
}

fn bad_vectors(problem: &str) -> Fault {
    let problem = format!("Generated embedding failed validation: {problem}");
    Fault::new(Code::UpstreamBadVectors, Phase::FirstToken, problem)
}

#[derive(serde::Deserialize)]
struct Answer {
    data: Option<Vec<Row>>,
    usage: Option<Value>,
    error: Option<serde::de::IgnoredAny>,
}

#[derive(serde::Deserialize)]
struct Row {
    index: Option<u64>,
    #[serde(default)]
    embedding: Vector,
}

/// A vector in either of its forms, or why it is none.
struct Vector(Result<Vec<f32>, &'static str>);

impl Default for Vector {
    fn default() -> Self {
        Self(Ok(Vec::new()))
    }
}

impl<'de> Deserialize<'de> for Vector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(VectorVisitor)
    }
}

struct VectorVisitor;

impl<'de> Visitor<'de> for VectorVisitor {
    type Value = Vector;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of numbers, or their bytes in base64")
    }

    fn visit_str<E>(self, text: &str) -> Result<Vector, E> {
        Ok(Vector(floats(text)))
    }

    fn visit_unit<E>(self) -> Result<Vector, E> {
        Ok(Vector::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vector, A::Error> {
        let mut vector = Vec::new();
        // JavaScript writes NaN as null.
        while let Some(number) = numbers.next_element::<Option<f32>>()? {
            vector.push(number.unwrap_or(f32::NAN));
        }
        Ok(Vector(Ok(vector)))
    }
}

/// Little-endian floats from base64, with or without padding.
fn floats(text: &str) -> Result<Vec<f32>, &'static str> {
    let digits = text.trim_end_matches('=').as_bytes();
    let mut floats = Vec::with_capacity(digits.len() * 3 / 16);
    let (mut word, mut bits, mut bytes) = (0_u32, 0, Vec::with_capacity(4));
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err("it is not base64"),
        };
        word = (word << 6) | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
            if let Ok(float) = <[u8; 4]>::try_from(bytes.as_slice()) {
                floats.push(f32::from_le_bytes(float));
                bytes.clear();
            }
        }
    }
    if !bytes.is_empty() {
        return Err("its bytes are not whole numbers of four bytes");
    }
    Ok(floats)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read_text(body: &str, count: usize) -> Result<Vec<Vec<f32>>, (Code, String)> {
        read(body.as_bytes(), count, Some(2), Secrets::default())
            .map(|decoded| decoded.vectors)
            .map_err(|fault| (fault.code, fault.message))
    }

    fn rows(rows: &[(Option<u64>, [f32; 2])]) -> String {
        let rows: Vec<Value> = rows
            .iter()
            .map(|(index, vector)| json!({"index": index, "embedding": vector}))
            .collect();
        json!({"data": rows}).to_string()
    }

    #[test]
    fn requests_carry_the_models_params_and_ours_win() {
        let params = json!({"user": "u", "encoding_format": "float"});
        let body = request("m-1", params.as_object().unwrap(), ["a", "b"].into_iter(), Some(8));
        let body: Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({"user": "u", "encoding_format": "base64", "model": "m-1",
            "input": ["a", "b"], "dimensions": 8});
        assert_eq!(body, expected);
    }

    #[test]
    fn vectors_find_their_texts() {
        let (a, b) = ([1.0, 0.0], [0.0, 2.0]);
        let right = Ok(vec![a.to_vec(), b.to_vec()]);
        assert_eq!(read_text(&rows(&[(Some(0), a), (Some(1), b)]), 2), right);
        assert_eq!(read_text(&rows(&[(Some(1), b), (Some(0), a)]), 2), right, "reordered");
        assert_eq!(read_text(&rows(&[(None, a), (None, b)]), 2), right, "by position");

        for (bad, problem) in [
            (rows(&[(Some(0), a)]), "1 vectors for 2 texts"),
            (rows(&[(Some(0), a), (Some(0), b)]), "index 0 comes twice"),
            (rows(&[(Some(0), a), (Some(2), b)]), "index 2 of 2 texts"),
            (rows(&[(Some(0), a), (None, b)]), "1 of 2 vectors have an index"),
            (rows(&[(None, a), (None, [0.0, 0.0])]), "vector 1: it is all zeros"),
            (
                r#"{"data":[{"embedding":[1,null]},{"embedding":[1,2]}]}"#.to_owned(),
                "vector 0: its value at 1 is NaN",
            ),
            (
                r#"{"data":[{"embedding":[1,NaN]},{"embedding":[1,2]}]}"#.to_owned(),
                "a value is not a number",
            ),
            (
                r#"{"data":[{"embedding":null},{"embedding":[1,2]}]}"#.to_owned(),
                "vector 0: it is empty",
            ),
            (
                r#"{"data":[{"embedding":"AAAAAAA"},{"embedding":[1,2]}]}"#.to_owned(),
                "vector 0: its bytes are not whole numbers of four bytes",
            ),
        ] {
            let expected = format!("Generated embedding failed validation: {problem}");
            assert_eq!(read_text(&bad, 2), Err((Code::UpstreamBadVectors, expected)), "{bad}");
        }
    }

    #[test]
    fn vectors_of_unknown_length_must_agree() {
        let body = br#"{"data":[{"embedding":[1]},{"embedding":[1,2]}]}"#;
        let fault = read(body, 2, None, Secrets::default()).unwrap_err();
        assert!(fault.message.ends_with("vector 1: it has 2 dimensions instead of 1"));
    }

    #[test]
    fn what_is_no_list_of_vectors_is_told_apart() {
        let code = |body: &str| read_text(body, 1).unwrap_err().0;
        assert_eq!(code("<html>"), Code::UpstreamBadResponse);
        assert_eq!(code("{}"), Code::UpstreamBadResponse);
        assert_eq!(code(r#"{"data":[{"embedding":true}]}"#), Code::UpstreamBadResponse);
        let refused = r#"{"error":{"message":"no","type":"invalid_request_error"}}"#;
        assert_eq!(code(refused), Code::UpstreamInvalidRequest);
    }

    #[test]
    fn base64_is_read_exactly() {
        assert_eq!(floats("AACAPwAAAMA="), Ok(vec![1.0, -2.0]));
        assert_eq!(floats("AACAPwAAAMA"), Ok(vec![1.0, -2.0]));
        assert_eq!(floats(""), Ok(vec![]));
        assert!(floats("AACA!wAAAMA=").is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(body: Vec<u8>, count in 0..4_usize) {
            let _ = read(&body, count, None, Secrets::default());
        }
    }
}
