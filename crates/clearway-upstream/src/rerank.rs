//! Reranking: a model reads a question beside each of some texts, and says how well it answers.
//!
//! The shape is the one that Cohere began and that Jina, Voyage, vLLM, llama.cpp and others speak: `POST …/rerank` beside
//! the provider's other addresses. Attempts, limits, keys and breakers are those of any call.
//!
//! **Invariant:** a score never ends up at another text; an answer that does not say whose a score is, is a fault.
//!
//! Not here: what to do without an answer; whoever asks has an order already.

use std::sync::Arc;

use bytes::Bytes;
use clearway_core::Code;
use serde_json::{Value, json};

use crate::attempt::{Attempt, WholeLimits};
use crate::attempts::{Attempts, CallKind};
use crate::call::{CallCx, Phase};
use crate::codec::Usage;
use crate::codec::failure::{Rejection, Secrets};
use crate::failure::{Error, Fault};
use crate::record::CallRecord;
use crate::route::Route;
use crate::watch::{Watch, now};

/// Texts to be held against a question.
#[derive(Clone, Debug)]
pub struct RerankRequest {
    /// Name of a [`crate::ModelConfig`].
    pub model: String,
    pub query: Arc<str>,
    pub texts: Vec<Arc<str>>,
}

/// Two numbers for each text.
const MAX_ANSWER: usize = 4 << 20;

/// A score for each text, in their order; `None` for those that the model left out.
pub(crate) async fn rerank(
    route: &Arc<Route>,
    cx: &CallCx,
    request: &RerankRequest,
) -> Result<Vec<Option<f32>>, Error> {
    let started = now();
    let mut watch = Watch::new(cx.deadline);
    let mut record = CallRecord::start("rerank", cx, route, started);
    let letters = request.texts.iter().map(|text| text.len() + request.query.len());
    let tokens = letters.sum::<usize>() as u64 / 4;
    let routes: Arc<[_]> = Arc::new([route.clone()]);
    let mut attempts = Attempts::new(routes, CallKind::EMBEDDING, tokens, started);
    let body = body(&route.model, request);
    let limits = WholeLimits { bytes: MAX_ANSWER, within: route.timeouts.headers };
    loop {
        let outcome = match attempts.admit(cx, &mut watch, &record.span).await {
            Ok(admitted) => {
                let began = now();
                let secrets = Arc::clone(&admitted.route);
                let attempt = Attempt {
                    route: &admitted.route,
                    target: &admitted.route.provider.rerank,
                    cx,
                    watch: &mut watch,
                    number: admitted.number,
                    detail: admitted.detail,
                    lease: admitted.lease,
                };
                let decode = |answer: &[u8]| {
                    let scores = read(answer, request.texts.len(), secrets.provider.secrets())?;
                    Ok((scores, None::<Usage>))
                };
                match attempt.whole(body.clone(), limits, decode).await {
                    Ok(scores) => {
                        record.finished(attempts.made());
                        return Ok(scores);
                    }
                    Err(fault) => {
                        attempts.failed(route.clone(), fault, began, cx, &mut watch).await
                    }
                }
            }
            Err(error) => Err(error),
        };
        outcome.map_err(|error| record.failed(error, attempts.made()))?;
    }
}

fn body(model: &str, request: &RerankRequest) -> Bytes {
    let texts: Vec<&str> = request.texts.iter().map(AsRef::as_ref).collect();
    let body = json!({
        "model": model,
        "query": &*request.query,
        "documents": texts,
        "top_n": texts.len(),
    });
    body.to_string().into()
}

fn read(answer: &[u8], count: usize, secrets: Secrets<'_>) -> Result<Vec<Option<f32>>, Fault> {
    let bad = |problem: &str| Fault::new(Code::UpstreamBadResponse, Phase::FirstToken, problem);
    let value: Value = serde_json::from_slice(answer)
        .map_err(|error| bad(&format!("the answer is not a list of scores: {error}")))?;
    if !value["error"].is_null() {
        return Err(Fault::rejected(Rejection::in_band(answer, secrets), Phase::FirstToken));
    }
    // Cohere, Jina and vLLM say `results`, Voyage `data`; some answer with the bare list.
    let rows = [&value["results"], &value["data"], &value].into_iter().find_map(Value::as_array);
    let Some(rows) = rows else { return Err(bad("the answer is JSON, but has no scores")) };
    let mut scores = vec![None; count];
    for row in rows {
        let score = row.get("relevance_score").or_else(|| row.get("score")).and_then(Value::as_f64);
        let place = row["index"].as_u64().and_then(|index| usize::try_from(index).ok());
        let (Some(score), Some(place)) = (score, place.and_then(|place| scores.get_mut(place)))
        else {
            return Err(bad("a score does not say whose it is"));
        };
        if place.replace(score as f32).is_some() {
            return Err(bad("a text has two scores"));
        }
    }
    if count > 0 && scores.iter().all(Option::is_none) {
        return Err(bad("no text has a score"));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_come_to_their_texts_or_not_at_all() {
        let read = |answer: &str| read(answer.as_bytes(), 2, Secrets::new(&[])).ok();
        let one =
            r#"{"results":[{"index":1,"relevance_score":0.9},{"index":0,"relevance_score":-2}]}"#;
        assert_eq!(read(one), Some(vec![Some(-2.0), Some(0.9)]));
        assert_eq!(read(r#"[{"index":0,"score":0.5}]"#), Some(vec![Some(0.5), None]));
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"error":{"message":"no"}}"#,
            r#"{"results":[{"index":2,"relevance_score":1}]}"#,
            r#"{"results":[{"relevance_score":1}]}"#,
            r#"{"results":[{"index":0,"relevance_score":1},{"index":0,"relevance_score":2}]}"#,
            r#"{"results":[{"index":0,"relevance_score":"high"}]}"#,
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
