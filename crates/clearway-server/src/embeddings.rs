//! Embeddings as OpenAI's clients ask for them, and one vector for people who want to look at it.
//!
//! What OpenAI does not know: `purpose` (or `input_type`, as others call it) says whether the texts
//! are questions or documents, and the header `X-Deadline-Ms` how long the answer may take.
//!
//! Not here: batches, the cache and what makes a vector usable; all that is behind the one call.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::{Code, Deadline, Failure};
use clearway_engine::upstream::{
    CallCx, EmbedRequest, EmbeddingInfo, Embeddings, Error, Purpose, Upstream,
};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::Problem;
use crate::app::App;
use crate::extract::{self, PathText, Query, shown};
use crate::problem::Shape;

/// A request body, understood.
#[derive(Debug, PartialEq)]
struct Ask {
    model: String,
    texts: Vec<Arc<str>>,
    purpose: Purpose,
    dimensions: Option<u32>,
    format: Format,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Float,
    Base64,
}

impl Ask {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body = extract::parse_json(body).map_err(|invalid| refused(None, &invalid.message))?;
        let Value::Object(body) = body else {
            return Err(refused(None, "the body must be a JSON object"));
        };
        let Some(model) = body.get("model").and_then(Value::as_str) else {
            return Err(refused(Some("model"), "`model` is required, and must be a string"));
        };
        let texts = texts(body.get("input"))?;
        let format = match field(&body, "encoding_format") {
            None => Format::Float,
            Some(Value::String(word)) if word == "float" => Format::Float,
            Some(Value::String(word)) if word == "base64" => Format::Base64,
            Some(_) => {
                let text = "`encoding_format` must be `float` or `base64`";
                return Err(refused(Some("encoding_format"), text));
            }
        };
        let dimensions = match field(&body, "dimensions") {
            None => None,
            Some(value) => {
                let text = "`dimensions` must be a whole number above 0";
                let wrong = || refused(Some("dimensions"), text);
                let dimensions = value.as_u64().filter(|dimensions| *dimensions > 0);
                Some(u32::try_from(dimensions.ok_or_else(wrong)?).map_err(|_| wrong())?)
            }
        };
        // Whoever embeds many texts at once is filling an index.
        let usual = if texts.len() > 1 { Purpose::Document } else { Purpose::Query };
        let asked = field(&body, "purpose").or_else(|| field(&body, "input_type"));
        let purpose = match asked {
            None => usual,
            Some(word) => word.as_str().and_then(purpose).ok_or_else(|| {
                refused(Some("purpose"), "`purpose` must be `query` or `document`")
            })?,
        };
        Ok(Self { model: model.to_owned(), texts, purpose, dimensions, format })
    }
}

fn field<'a>(body: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    body.get(name).filter(|value| !value.is_null())
}

fn texts(input: Option<&Value>) -> Result<Vec<Arc<str>>, Problem> {
    let wrong = |text: &str| refused(Some("input"), text);
    let items = match input {
        Some(Value::String(text)) => return Ok(vec![text.as_str().into()]),
        Some(Value::Array(items)) => items,
        Some(_) | None => return Err(wrong("`input` must be a string or a list of strings")),
    };
    if items.is_empty() || items.len() > MAX_INPUTS {
        let text = format!("`input` must have 1 to {MAX_INPUTS} texts, this has {}", items.len());
        return Err(wrong(&text));
    }
    let text = |item: &Value| match item {
        Value::String(text) => Ok(text.as_str().into()),
        Value::Number(_) | Value::Array(_) => Err(wrong(
            "`input` holds token numbers; only texts are taken here, because tokens differ from \
             model to model",
        )),
        Value::Null | Value::Bool(_) | Value::Object(_) => {
            Err(wrong("`input` must be a string or a list of strings"))
        }
    };
    items.iter().map(text).collect()
}

/// The words that providers use for the two purposes.
fn purpose(word: &str) -> Option<Purpose> {
    match word {
        "query" | "search_query" => Some(Purpose::Query),
        "document" | "search_document" | "passage" => Some(Purpose::Document),
        _ => None,
    }
}

/// `POST /v1/embeddings`
pub(crate) async fn create(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let openai = |problem: Problem| problem.shape(Shape::OpenAi { param: None, code: None });
    let (parts, body) = request.into_parts();
    let body =
        extract::read_body(&parts.headers, body, &app.options.limits).await.map_err(openai)?;
    let ask = Ask::parse(&body)?;
    let deadline = deadline(&parts.headers).map_err(openai)?;
    let upstream = upstream(&app).map_err(openai)?;
    let Some(model) = upstream.embedding_model(&ask.model) else {
        return Err(no_model(&ask.model)
            .shape(Shape::OpenAi { param: Some("model"), code: Some("model_not_found") }));
    };
    // Known or not, the answer's size is bounded before anything is asked for.
    let dimensions = ask.dimensions.or(model.dimensions).unwrap_or(MAX_DIMENSIONS_UNKNOWN);
    if ask.texts.len() as u64 * u64::from(dimensions) > MAX_NUMBERS {
        let text = "`input` and `dimensions` together ask for too large an answer";
        return Err(refused(Some("input"), text));
    }
    let Ask { texts, purpose, dimensions, format, .. } = ask;
    let request = EmbedRequest { model: model.name, texts, purpose, dimensions };
    let is_list = request.texts.len() > 1;
    let in_input = |error: Error| {
        let mut failure = error.into_failure();
        if let Some(index) = failure.detail.get("index").filter(|_| is_list) {
            failure.message = format!("input {index}: {}", failure.message);
        }
        problem(failure).shape(Shape::OpenAi { param: Some("input"), code: None })
    };
    let cx = call(&parts.headers, deadline);
    let embeddings = upstream.embed(cx, request).await.map_err(in_input)?;
    render(embeddings, &ask.model, format).await.map_err(in_input)
}

/// `GET /embeddings/{text}?model=&purpose=`
pub(crate) async fn show(
    State(app): State<App>,
    PathText(text): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let query = Query::own(request.uri(), &["model", "purpose"])?;
    let purpose = match query.get("purpose") {
        None => Purpose::Query,
        Some(word) => purpose(word).ok_or_else(|| {
            let text =
                format!("`purpose` must be `query` or `document`, this is `{}`", shown(word));
            Problem::new(Code::InvalidRequest, text)
        })?,
    };
    let deadline = deadline(request.headers())?;
    let upstream = upstream(&app)?;
    let model = model(upstream, query.get("model"))?;
    let request_for = EmbedRequest {
        model: model.name,
        texts: vec![text.as_str().into()],
        purpose,
        dimensions: None,
    };
    let cx = call(request.headers(), deadline);
    let failed = |error: Error| problem(error.into_failure());
    let embeddings = upstream.embed(cx, request_for).await.map_err(failed)?;
    let vector = embeddings.vectors.into_iter().next().transpose().map_err(failed)?;
    let vector = vector.unwrap_or_default();
    Ok(Json(json!({
        "text": text,
        "model": embeddings.model,
        "purpose": purpose.as_str(),
        "dimensions": vector.len(),
        "embedding": &*vector,
        "cached": embeddings.cached > 0,
        "usage": usage(embeddings.usage.input_tokens),
    })))
}

/// The model with this name; without one the only model, or of several the one that the old
/// service's address meant.
fn model(upstream: &Upstream, name: Option<&str>) -> Result<EmbeddingInfo, Problem> {
    if let Some(name) = name {
        return upstream.embedding_model(name).ok_or_else(|| no_model(name));
    }
    if let Some(usual) = upstream.embedding_model(USUAL) {
        return Ok(usual);
    }
    match <[_; 1]>::try_from(upstream.embedding_models()) {
        Ok([only]) => Ok(only),
        Err(models) if models.is_empty() => {
            Err(Problem::new(Code::NotFound, "no embedding model is configured"))
        }
        Err(models) => {
            let names: Vec<String> = models.into_iter().map(|model| model.name).collect();
            let text = format!("`model` is required, one of: {}", names.join(", "));
            Err(Problem::new(Code::InvalidRequest, text))
        }
    }
}

fn upstream(app: &App) -> Result<&Upstream, Problem> {
    if app.engine.is_draining() {
        return Err(Problem::new(Code::ShuttingDown, "the server stops and takes no new work"));
    }
    Ok(app.engine.upstream())
}

fn deadline(headers: &HeaderMap) -> Result<Duration, Problem> {
    let asked = extract::deadline(headers, None)?;
    Ok(asked.unwrap_or(DEADLINE).min(MAX_DEADLINE))
}

fn call(headers: &HeaderMap, deadline: Duration) -> CallCx {
    let now = Instant::now().into_std();
    let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or("embeddings");
    CallCx::new(Deadline::after(now, deadline), id)
}

/// The answer, or the first text's problem: OpenAI's shape has no place for vectors beside errors.
async fn render(embeddings: Embeddings, model: &str, format: Format) -> Result<Response, Error> {
    let mut body = Vec::new();
    body.extend_from_slice(br#"{"object":"list","data":["#);
    for (index, vector) in embeddings.vectors.into_iter().enumerate() {
        let vector = vector?;
        if index > 0 {
            body.push(b',');
        }
        // Writing into memory cannot fail.
        let _ = write!(body, r#"{{"object":"embedding","index":{index},"embedding":"#);
        match format {
            Format::Float => {
                let _ = serde_json::to_writer(&mut body, &*vector);
            }
            Format::Base64 => push_base64(&mut body, &vector),
        }
        body.push(b'}');
        // Thousands of vectors take a while to write.
        if index % 4 == 3 {
            tokio::task::yield_now().await;
        }
    }
    let tokens = usage(embeddings.usage.input_tokens);
    let _ = write!(body, r#"],"model":{},"usage":{tokens}}}"#, Value::from(model));
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

fn usage(tokens: u64) -> Value {
    json!({"prompt_tokens": tokens, "total_tokens": tokens})
}

/// The bytes of the numbers, little end first, as a JSON string.
fn push_base64(body: &mut Vec<u8>, vector: &[f32]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    body.push(b'"');
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte))
            << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            body.push(if place > group.len() { b'=' } else { digit });
        }
    }
    body.push(b'"');
}

fn refused(param: Option<&'static str>, text: &str) -> Problem {
    Problem::new(Code::InvalidRequest, text).shape(Shape::OpenAi { param, code: None })
}

fn no_model(name: &str) -> Problem {
    let text = format!("there is no embedding model `{}`", shown(name));
    Problem::new(Code::NotFound, text).hint("GET /providers shows what is configured.")
}

/// A failed call. Where the text is to blame, the client is told so, whoever noticed.
fn problem(failure: Failure) -> Problem {
    let is_input = matches!(
        failure.code,
        Code::UpstreamInvalidRequest | Code::UpstreamContextLength | Code::UpstreamContentPolicy
    );
    let problem = Problem::from(failure);
    if is_input { problem.status(StatusCode::BAD_REQUEST) } else { problem }
}

/// Every body of this door, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    let _ = Ask::parse(data);
}

/// What is meant where no model is named.
const USUAL: &str = "text-embedding-3-small";
/// As at OpenAI.
const MAX_INPUTS: usize = 2048;
/// Numbers in one answer: as many of the longest usual vectors.
const MAX_NUMBERS: u64 = MAX_INPUTS as u64 * 3072;
/// What a model of which nothing is known is taken to answer.
const MAX_DIMENSIONS_UNKNOWN: u32 = 3072;
const DEADLINE: Duration = Duration::from_secs(25);
const MAX_DEADLINE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests;
