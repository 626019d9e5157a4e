//! Embeddings without a model: each word votes for a few places of the vector, so texts that share words are near.

use std::fmt::Write as _;

use serde_json::Value;

use crate::chat::Model;
use crate::fault::Fault;
use crate::plan::Payload;
use crate::prng::Prng;
use crate::problem::Problem;

const DEFAULT_DIMENSIONS: usize = 1536;
const MAX_DIMENSIONS: u64 = 8192;
/// As at OpenAI.
const MAX_INPUTS: usize = 2048;
/// Numbers in one answer: 2048 vectors of the default size.
const MAX_NUMBERS: usize = MAX_INPUTS * DEFAULT_DIMENSIONS;

/// An embeddings request.
#[derive(Debug)]
pub(crate) struct Embed {
    pub(crate) model: Model,
    texts: Vec<String>,
    dimensions: usize,
    base64: bool,
}

impl Embed {
    pub(crate) fn read(body: &Value) -> Result<Self, Problem> {
        let model = Model::read(body)?;
        let wrong =
            || Problem::invalid("input must be a text, a list of texts, or tokens").param("input");
        let texts: Vec<String> = match body.get("input") {
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(inputs)) if inputs.first().is_some_and(Value::is_number) => {
                vec![tokens(inputs)]
            }
            Some(Value::Array(inputs)) => inputs
                .iter()
                .map(|input| match input {
                    Value::String(text) => Ok(text.clone()),
                    Value::Array(inputs) => Ok(tokens(inputs)),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                        Err(wrong())
                    }
                })
                .collect::<Result<_, _>>()?,
            Some(_) | None => return Err(wrong()),
        };
        if texts.is_empty() || texts.len() > MAX_INPUTS {
            return Err(
                Problem::invalid(format!("input must have 1 to {MAX_INPUTS} texts")).param("input")
            );
        }
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err(Problem::invalid("input must not contain an empty text").param("input"));
        }
        let dimensions = match body.get("dimensions") {
            None | Some(Value::Null) => DEFAULT_DIMENSIONS,
            Some(value) => {
                let wanted = value.as_u64().filter(|wanted| (1..=MAX_DIMENSIONS).contains(wanted));
                let wanted = wanted.and_then(|wanted| usize::try_from(wanted).ok());
                wanted.ok_or_else(|| {
                    Problem::invalid(format!("dimensions must be 1 to {MAX_DIMENSIONS}"))
                        .param("dimensions")
                })?
            }
        };
        if texts.len() * dimensions > MAX_NUMBERS {
            return Err(Problem::invalid("input and dimensions ask for too large an answer")
                .param("dimensions"));
        }
        let base64 = body.get("encoding_format").and_then(Value::as_str) == Some("base64");
        Ok(Self { model, texts, dimensions, base64 })
    }

    /// Whether a text holds the word that `embed_poison` chokes on.
    pub(crate) fn poisoned(&self) -> bool {
        self.texts.iter().any(|text| text.to_lowercase().contains("poison"))
    }

    /// Whether a text holds the word that no one can swallow, fault or not.
    pub(crate) fn deadly(&self) -> bool {
        self.texts.iter().any(|text| text.contains("POISON"))
    }

    /// How many texts there are.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    /// A token per word, as for chats.
    pub(crate) fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.split_whitespace().count()).sum()
    }

    /// The body of the answer, got wrong as `fault` says. A large batch takes a while to compute, so it lets others run.
    pub(crate) async fn body(
        &self,
        fault: Option<Fault>,
        payload: Payload,
        no_usage: bool,
    ) -> Vec<u8> {
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        match fault {
            Some(Fault::EmbedShort) => order.truncate(order.len() - 1),
            Some(Fault::EmbedReorder) => order.reverse(),
            Some(_) | None => {}
        }
        if payload == Payload::NoChoices {
            order.clear();
        }
        let mut out = String::from("{\"object\":\"list\",\"data\":[");
        for (place, &index) in order.iter().enumerate() {
            if place % 4 == 3 {
                tokio::task::yield_now().await;
            }
            let mut vector = vector(&self.texts[index], self.dimensions);
            match fault {
                Some(Fault::EmbedNan | Fault::EmbedNull) if index == 0 => vector[0] = f32::NAN,
                Some(Fault::EmbedZeros) if index == 0 => vector.fill(0.0),
                Some(Fault::EmbedEmpty) if index == 0 => vector.clear(),
                Some(Fault::EmbedDims) if index + 1 == self.texts.len() => {
                    vector.pop();
                }
                Some(_) | None => {}
            }
            let said = if fault == Some(Fault::EmbedDuplicate) { 0 } else { index };
            let comma = if place > 0 { "," } else { "" };
            // Writing to a string cannot fail.
            let _ =
                write!(out, "{comma}{{\"object\":\"embedding\",\"index\":{said},\"embedding\":");
            if self.base64 {
                push_base64(&mut out, &vector);
            } else {
                // JSON has no word for it: some say NaN all the same, some say null.
                let nan = if fault == Some(Fault::EmbedNull) { "null" } else { "NaN" };
                push_floats(&mut out, &vector, nan);
            }
            out.push('}');
        }
        let model = Value::from(self.model.name.as_str());
        let _ = write!(out, "],\"model\":{model}");
        if !no_usage {
            let words = self.tokens();
            let _ =
                write!(out, ",\"usage\":{{\"prompt_tokens\":{words},\"total_tokens\":{words}}}");
        }
        out.push('}');
        out.into_bytes()
    }
}

/// Tokens stand for words of their own.
fn tokens(inputs: &[Value]) -> String {
    inputs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// A vector of length 1.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    // A little of everything, the same for all texts: real models leave no dimension empty.
    let mut background = Prng::new(1);
    let mut vector: Vec<f32> = (0..dimensions)
        .map(|_| if background.next_u64().is_multiple_of(2) { BACKGROUND } else { -BACKGROUND })
        .collect();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let mut prng = Prng::new(hash(&word.to_lowercase()));
        for _ in 0..8 {
            let place = usize::try_from(prng.below(dimensions as u64)).unwrap_or(0);
            vector[place] += if prng.next_u64().is_multiple_of(2) { 1.0 } else { -1.0 };
        }
    }
    // In double precision: so many small squares add up to an error.
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}

/// Small beside a word's vote of 1, so that similarity is still about words.
const BACKGROUND: f32 = 0.01;

/// FNV-1a.
fn hash(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn push_floats(out: &mut String, vector: &[f32], nan: &str) {
    out.push('[');
    for (index, number) in vector.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = if number.is_nan() {
            write!(out, "{comma}{nan}")
        } else {
            write!(out, "{comma}{number}")
        };
    }
    out.push(']');
}

/// Little-endian floats, as OpenAI's clients ask for by default.
fn push_base64(out: &mut String, vector: &[f32]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    out.push('"');
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            out.push(if place > group.len() { '=' } else { char::from(digit) });
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn answer(mut body: Value, fault: Option<Fault>) -> String {
        body["model"] = "m".into();
        let embed = Embed::read(&body).unwrap_or_else(|problem| panic!("{problem:?}"));
        String::from_utf8(embed.body(fault, Payload::Text, false).await).unwrap()
    }

    async fn parsed(body: Value, fault: Option<Fault>) -> Value {
        serde_json::from_str(&answer(body, fault).await).unwrap()
    }

    #[test]
    fn texts_that_share_words_are_near() {
        let near = |a: &str, b: &str| -> f32 {
            vector(a, 1536).iter().zip(&vector(b, 1536)).map(|(a, b)| a * b).sum()
        };
        assert!((near("a bakery", "a bakery") - 1.0).abs() < 1e-5);
        assert!(near("open a bakery in Bonn", "a BAKERY in Bonn!") > 0.7);
        assert!(near("open a bakery", "quantum chromodynamics").abs() < 0.3);
        let length: f32 = vector("!?", 3).iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "nothing but punctuation is a vector, too");
        assert!(vector("a", 1536).iter().all(|x| *x != 0.0));
    }

    #[tokio::test]
    async fn base64_holds_the_same_numbers() {
        let mut out = String::new();
        push_base64(&mut out, &[1.0, -2.5]);
        assert_eq!(out, "\"AACAPwAAIMA=\"");
        out.clear();
        push_base64(&mut out, &[1.0]);
        assert_eq!(out, "\"AACAPw==\"");
        let answer =
            parsed(json!({"input": "x", "encoding_format": "base64", "dimensions": 3}), None).await;
        assert_eq!(answer["data"][0]["embedding"].as_str().map(str::len), Some(16));
    }

    #[tokio::test]
    async fn faults_touch_what_they_name() {
        let input = json!({"input": ["a", "b", "c"], "dimensions": 4});
        let indices = async |fault| {
            let answer = parsed(input.clone(), fault).await;
            let data = answer["data"].as_array().unwrap();
            data.iter().map(|row| row["index"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(indices(None).await, [0, 1, 2]);
        assert_eq!(indices(Some(Fault::EmbedShort)).await, [0, 1]);
        assert_eq!(indices(Some(Fault::EmbedReorder)).await, [2, 1, 0]);
        assert_eq!(indices(Some(Fault::EmbedDuplicate)).await, [0, 0, 0]);
        assert!(answer(input.clone(), Some(Fault::EmbedNan)).await.contains("\"embedding\":[NaN,"));
        let first =
            async |fault| parsed(input.clone(), Some(fault)).await["data"][0]["embedding"].clone();
        assert_eq!(first(Fault::EmbedNull).await[0], Value::Null);
        assert_eq!(first(Fault::EmbedZeros).await, json!([0, 0, 0, 0]));
        assert_eq!(first(Fault::EmbedEmpty).await, json!([]));
        let short = parsed(input, Some(Fault::EmbedDims)).await;
        let lengths: Vec<_> =
            (0..3).map(|row| short["data"][row]["embedding"].as_array().unwrap().len()).collect();
        assert_eq!(lengths, [4, 4, 3]);
    }

    #[test]
    fn inputs_are_checked() {
        let error = |body: Value| Embed::read(&body).unwrap_err().message;
        assert!(error(json!({"model": "m"})).contains("input must be"));
        assert!(error(json!({"model": "m", "input": []})).contains("1 to 2048"));
        assert!(error(json!({"model": "m", "input": [" "]})).contains("empty text"));
        assert!(error(json!({"model": "m", "input": "x", "dimensions": 0})).contains("dimensions"));
        assert!(Embed::read(&json!({"model": "m", "input": [[1, 2], [3]]})).is_ok());
        assert!(Embed::read(&json!({"model": "m", "input": [1, 2]})).is_ok());
    }
}
