//! Knowledge at our own addresses: search, how far each source is, what its documents connect.
//!
//! Not here: ranking, reading, indexing; the knowledge agent's dialect ([`crate::notes`]); uploads
//! as OpenAI's clients know them ([`crate::files`]).

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use clearway_core::Code;
use clearway_engine::Knowledge;
use clearway_engine::knowledge::{
    GraphQuery, Owner, SearchLimits, SearchQuery, SearchView, Sources,
};
use http::HeaderMap;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Problem;
use crate::app::App;
use crate::caller::caller;
use crate::extract::{self, Fields, Invalid, PathText, Query, read_body, shown};

/// What documents say, in a server that has some.
pub(crate) fn knowledge(app: &App) -> Result<&Knowledge, Problem> {
    app.engine.knowledge().ok_or_else(|| {
        Problem::new(Code::NotFound, "this server has no knowledge").hint("Add [knowledge.NAME].")
    })
}

/// In whose name a request asks. Without keys a client says for whom it asks.
pub(crate) fn owner(headers: &HeaderMap, user: Option<&str>) -> Result<Owner, Problem> {
    let named = headers.get(USER).and_then(|value| value.to_str().ok()).map(str::trim);
    let caller = caller(headers, user.or(named.filter(|user| !user.is_empty())))?;
    Ok(Owner { tenant: caller.tenant, user: caller.owner })
}

/// For clients whose bodies have no place for a user.
const USER: &str = "x-user-id";

/// `POST /knowledge/search`
#[derive(Debug, PartialEq)]
struct Ask {
    query: String,
    user: Option<String>,
    sources: Sources,
    documents: Option<Vec<String>>,
    threshold: Option<f32>,
    max_chunks: Option<usize>,
    token_budget: Option<u32>,
    deadline: Option<Value>,
}

const FIELDS: &[&str] = &[
    "query",
    "user_id",
    "source",
    "sources",
    "vector_store_ids",
    "doc_ids",
    "similarity_threshold",
    "max_chunks",
    "token_budget",
    "deadline_ms",
];

impl Ask {
    fn parse(body: &[u8]) -> Result<Self, Vec<Invalid>> {
        let value = extract::parse_json(body).map_err(|invalid| vec![invalid])?;
        let unknown: Vec<String> = value
            .as_object()
            .into_iter()
            .flat_map(|body| body.keys())
            .filter(|key| !FIELDS.contains(&key.as_str()))
            .cloned()
            .collect();
        let mut fields = Fields::of(value, &["body"]).map_err(|invalid| vec![invalid])?;
        for name in unknown {
            let text = format!("no such field; there are: {}", FIELDS.join(", "));
            fields.wrong("extra_forbidden", "body", format!("`{}`: {text}", shown(&name)));
        }
        let query = fields.text("query");
        fields.not_blank("query", &query);
        let user = fields.nullable_text("user_id");
        if let Some(user) = &user {
            fields.check_name("user_id", user);
        }
        let source = fields.nullable_text("source");
        let mut named = texts(&mut fields, "sources");
        if let Some(source) = source {
            named.get_or_insert_default().push(source);
        }
        let collections = texts(&mut fields, "vector_store_ids");
        let documents = texts(&mut fields, "doc_ids");
        let threshold = number(
            &mut fields,
            "similarity_threshold",
            |n| n > 0.0 && n <= 1.0,
            "above 0, at most 1",
        );
        let max_chunks = number(
            &mut fields,
            "max_chunks",
            |n| n.fract() == 0.0 && (1.0..=100.0).contains(&n),
            "a whole number from 1 to 100",
        );
        let token_budget = number(
            &mut fields,
            "token_budget",
            |n| n.fract() == 0.0 && (1.0..=1e6).contains(&n),
            "a whole number from 1 to 1000000",
        );
        let deadline = fields.value("deadline_ms");
        let sources = match (named, collections) {
            (None, None) => Sources::All,
            (Some(names), None) => Sources::Named(names),
            (None, Some(ids)) => {
                let ids: Option<Vec<Uuid>> =
                    ids.iter().map(|id| crate::files::store_id(id)).collect();
                Sources::Collections(ids.unwrap_or_else(|| {
                    fields.wrong(
                        "value_error",
                        "vector_store_ids",
                        "one of them is no id of a vector store",
                    );
                    Vec::new()
                }))
            }
            (Some(_), Some(_)) => {
                fields.wrong(
                    "value_error",
                    "vector_store_ids",
                    "either this or `sources`, not both",
                );
                Sources::All
            }
        };
        fields.finish()?;
        Ok(Self {
            query,
            user,
            sources,
            documents,
            threshold: threshold.map(|number| number as f32),
            max_chunks: max_chunks.map(|number| number as usize),
            token_budget: token_budget.map(|number| number as u32),
            deadline,
        })
    }
}

/// A list of texts that may be absent; at most a hundred.
fn texts(fields: &mut Fields, name: &'static str) -> Option<Vec<String>> {
    let value = fields.value(name).filter(|value| !value.is_null())?;
    let texts: Option<Vec<String>> = value
        .as_array()
        .and_then(|items| items.iter().map(|item| item.as_str().map(ToOwned::to_owned)).collect());
    match texts.filter(|texts| (1..=100).contains(&texts.len())) {
        Some(texts) => Some(texts),
        None => {
            fields.wrong("list_type", name, "a list of 1 to 100 strings is expected");
            None
        }
    }
}

fn number(
    fields: &mut Fields,
    name: &'static str,
    fits: impl Fn(f64) -> bool,
    expected: &str,
) -> Option<f64> {
    let value = fields.value(name).filter(|value| !value.is_null())?;
    let number = value.as_f64().filter(|number| fits(*number));
    if number.is_none() {
        fields.wrong("value_error", name, format!("must be {expected}"));
    }
    number
}

/// Every body of these addresses, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    let _ = Ask::parse(data);
}

/// `POST /knowledge/search`
pub(crate) async fn search(
    State(app): State<App>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_body(&parts.headers, body, &app.options.limits).await?;
    let ask = Ask::parse(&body)?;
    let deadline = extract::deadline(&parts.headers, ask.deadline.clone())?;
    let knowledge = knowledge(&app)?;
    let usual = match &ask.sources {
        Sources::Named(names) => names.first().and_then(|name| knowledge.source(name)),
        Sources::All | Sources::Collections(_) => None,
    };
    let usual = usual.map(|source| source.search).unwrap_or_default();
    let limits = SearchLimits {
        similarity_threshold: ask.threshold.unwrap_or(usual.similarity_threshold),
        max_chunks: ask.max_chunks.unwrap_or(usual.max_chunks),
        token_budget: ask.token_budget.unwrap_or(usual.token_budget),
    };
    let query = SearchQuery {
        text: ask.query.clone(),
        owner: owner(&parts.headers, ask.user.as_deref())?,
        sources: ask.sources,
        documents: ask.documents,
        limits,
        deadline,
        wait: None,
    };
    let found = knowledge.search(query).await?;
    let mut answer = found.to_json();
    answer["query"] = ask.query.into();
    Ok(Json(answer))
}

/// `GET /knowledge`
pub(crate) async fn list(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let knowledge = knowledge(&app)?;
    let searches: Vec<Value> = knowledge.searches().iter().map(search_view).collect();
    Ok(Json(json!({"sources": knowledge.status(), "searches": searches})))
}

fn search_view(view: &SearchView) -> Value {
    let waiting = &view.waiting;
    json!({
        "id": view.id,
        "sources": view.sources,
        "age_ms": view.for_.as_millis() as u64,
        "left_ms": view.left.as_millis() as u64,
        "waiting_on": {
            "kind": waiting.kind.as_str(),
            "detail": &*waiting.detail,
            "for_ms": waiting.for_.as_millis() as u64,
        },
        "spent_ms": waiting.spent.to_json(),
    })
}

/// `GET /knowledge/{source}`
pub(crate) async fn show(
    State(app): State<App>,
    PathText(source): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    Ok(Json(knowledge(&app)?.source_status(&source)?))
}

/// `POST /knowledge/{source}/refresh?all=1`
pub(crate) async fn refresh(
    State(app): State<App>,
    PathText(source): PathText,
    request: Request,
) -> Result<Response, Problem> {
    let all = Query::own(request.uri(), &["all"])?.flag("all")?;
    let knowledge = knowledge(&app)?;
    knowledge.refresh(&source, all)?;
    Ok((StatusCode::ACCEPTED, Json(knowledge.source_status(&source)?)).into_response())
}

/// `GET /knowledge/{source}/documents`
pub(crate) async fn documents(
    State(app): State<App>,
    PathText(source): PathText,
    request: Request,
) -> Result<Json<Value>, Problem> {
    Query::own(request.uri(), &[])?;
    let notes = knowledge(&app)?.notes(&source)?;
    let notes: Vec<Value> = notes.iter().map(|note| note.to_json()).collect();
    Ok(Json(json!({"source": source, "documents": notes})))
}

/// `GET /knowledge/{source}/graph?entity=&to=&limit=&format=`
pub(crate) async fn graph(
    State(app): State<App>,
    PathText(source): PathText,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::own(request.uri(), &["entity", "to", "limit", "format"])?;
    let text = |name: &str| query.get(name).filter(|text| !text.is_empty()).map(ToOwned::to_owned);
    let wanted = GraphQuery {
        entity: text("entity"),
        to: text("to"),
        limit: query.read::<usize>("limit", "a whole number")?.unwrap_or(0),
    };
    refuse_aimless(&wanted)?;
    let knowledge = knowledge(&app)?;
    match query.get("format") {
        None | Some("json") => Ok(Json(knowledge.graph(&source, wanted).await?).into_response()),
        Some("svg") => {
            let picture = knowledge.graph_picture(&source, wanted).await?;
            // A picture of foreign texts: nothing in it may run.
            let headers = [
                (CONTENT_TYPE, "image/svg+xml"),
                (
                    http::header::CONTENT_SECURITY_POLICY,
                    "default-src 'none'; style-src 'unsafe-inline'",
                ),
            ];
            Ok((headers, picture).into_response())
        }
        Some(other) => {
            let text = format!("`format` must be `json` or `svg`, this is `{}`", shown(other));
            Err(Problem::new(Code::InvalidRequest, text))
        }
    }
}

/// A way has two ends.
pub(crate) fn refuse_aimless(wanted: &GraphQuery) -> Result<(), Problem> {
    if wanted.entity.is_none() && wanted.to.is_some() {
        let text = "`to` is the end of a way: `entity` must say where it begins";
        return Err(Problem::new(Code::InvalidRequest, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_are_read_or_refused() {
        let ask = Ask::parse(br#"{"query": "x", "source": "a", "max_chunks": 3}"#).unwrap();
        assert_eq!(ask.sources, Sources::Named(vec!["a".to_owned()]));
        assert_eq!(ask.max_chunks, Some(3));
        for bad in [
            r#"{}"#,
            r#"{"query": " "}"#,
            r#"{"query": "x", "similarity_threshold": 0}"#,
            r#"{"query": "x", "similarity_threshold": 1.1}"#,
            r#"{"query": "x", "max_chunks": 1.5}"#,
            r#"{"query": "x", "token_budget": -1}"#,
            r#"{"query": "x", "sources": "a"}"#,
            r#"{"query": "x", "sources": []}"#,
            r#"{"query": "x", "vector_store_ids": ["nonsense"]}"#,
            r#"{"query": "x", "limit": 3}"#,
            "[]",
        ] {
            assert!(Ask::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
