//! Files and vector stores, as OpenAI's clients know them.
//!
//! A vector store is a collection of its owner, a file in it a document. Files are accepted at once
//! and read in the background; their state says how far that is. Whose they are comes from the
//! caller's key, or without keys from `X-User-Id`.
//!
//! Not here: reading, indexing, limits.

use axum::Json;
use axum::extract::{RawPathParams, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use clearway_core::Code;
use clearway_engine::knowledge::{
    Attach, CollectionDraft, FileDraft, Found, Owner, SearchLimits, SearchQuery, Sources,
};
use clearway_engine::{Collection, DocumentRecord, DocumentState, FileRecord, Knowledge};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use http::request::Parts;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::Problem;
use crate::app::App;
use crate::extract::{self, Query, shown};
use crate::knowledge::{knowledge, owner};
use crate::problem::Shape;
use crate::server::HttpLimits;

mod changes;
pub(crate) mod multipart;

pub(crate) use changes::{cancel_batch, change_attached};

const FILE: &str = "file-";
const STORE: &str = "vs_";
const BATCH: &str = "vsfb_";

fn id(prefix: &str, id: Uuid) -> String {
    format!("{prefix}{}", id.simple())
}

fn parse_id(prefix: &str, text: &str) -> Option<Uuid> {
    Uuid::try_parse(text.strip_prefix(prefix)?).ok()
}

/// The id of a vector store as clients write it.
pub(crate) fn store_id(text: &str) -> Option<Uuid> {
    parse_id(STORE, text)
}

fn openai(problem: Problem) -> Problem {
    // More than may be kept is the caller's to mend.
    let problem = match problem.code() {
        Code::LimitExceeded => problem.status(http::StatusCode::BAD_REQUEST),
        _ => problem,
    };
    problem.shape(Shape::OpenAi { param: None, code: None })
}

fn refused(param: &'static str, text: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidRequest, text).shape(Shape::OpenAi { param: Some(param), code: None })
}

fn no(what: &str, id: &str) -> Problem {
    openai(Problem::new(Code::NotFound, format!("no {what} found with id '{}'", shown(id))))
}

/// A request understood as far as all of them go.
struct Call {
    app: App,
    parts: Parts,
    body: Bytes,
    owner: Owner,
    /// The path's parameters, in order.
    path: Vec<String>,
}

impl Call {
    async fn read(app: App, params: RawPathParams, request: Request) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let upload = upload_limits(&app);
        let limits = match parts.uri.path().ends_with("/files") && is_multipart(&parts) {
            true => &upload,
            false => &app.options.limits,
        };
        let body = extract::read_body(&parts.headers, body, limits).await.map_err(openai)?;
        let owner = owner(&parts.headers, None).map_err(openai)?;
        let path = params.iter().map(|(_, value)| value.to_owned()).collect();
        Ok(Self { app: app.clone(), parts, body, owner, path })
    }

    fn knowledge(&self) -> Result<&Knowledge, Problem> {
        knowledge(&self.app).map_err(openai)
    }

    fn json(&self) -> Result<Map<String, Value>, Problem> {
        if self.body.is_empty() {
            return Ok(Map::new());
        }
        match extract::parse_json(&self.body) {
            Ok(Value::Object(body)) => Ok(body),
            Ok(_) => Err(openai(Problem::new(Code::InvalidRequest, "the body must be an object"))),
            Err(invalid) => Err(openai(Problem::new(Code::InvalidRequest, invalid.message))),
        }
    }

    fn store(&self) -> Result<Uuid, Problem> {
        let text = self.path.first().map(String::as_str).unwrap_or_default();
        store_id(text).ok_or_else(|| no("vector store", text))
    }

    /// The file named by the path's parameter at this place.
    fn file(&self, at: usize) -> Result<Uuid, Problem> {
        let text = self.path.get(at).map(String::as_str).unwrap_or_default();
        parse_id(FILE, text).ok_or_else(|| no("file", text))
    }

    fn query(&self) -> Result<Query, Problem> {
        Query::parse(&self.parts.uri).map_err(|invalid| openai(invalid.into()))
    }
}

fn is_multipart(parts: &Parts) -> bool {
    multipart::boundary(&parts.headers).is_some()
}

/// Files are larger than other bodies, and take longer to arrive.
fn upload_limits(app: &App) -> HttpLimits {
    let knowledge = app.engine.knowledge();
    let most = knowledge.map_or(0, |knowledge| knowledge.options().uploads.limits.file_bytes);
    let limits = &app.options.limits;
    HttpLimits {
        body_bytes: usize::try_from(most).unwrap_or(usize::MAX).saturating_add(64 << 10),
        body_timeout: limits.body_timeout * 12,
        ..limits.clone()
    }
}

fn seconds(at: clearway_core::Timestamp) -> i64 {
    at.0 / 1000
}

/// A page of a list, as OpenAI's clients walk through it.
fn page(call: &Call, mut items: Vec<Value>, newest_first: bool) -> Result<Json<Value>, Problem> {
    let query = call.query()?;
    let newest_first = match query.get("order") {
        None => newest_first,
        Some("desc") => true,
        Some("asc") => false,
        Some(_) => return Err(refused("order", "`order` must be `asc` or `desc`")),
    };
    let limit = query.read::<usize>("limit", "a whole number").map_err(openai)?.unwrap_or(20);
    if !(1..=10_000).contains(&limit) {
        return Err(refused("limit", "`limit` must be from 1 to 10000"));
    }
    if newest_first {
        items.reverse();
    }
    let find = |name: &str| {
        let id = query.get(name)?;
        items.iter().position(|item| item["id"] == id)
    };
    let (after, before) = (find("after"), find("before"));
    let (start, end) = (after.map_or(0, |at| at + 1), before.unwrap_or(items.len()));
    let all: Vec<Value> = items.get(start..end.max(start)).unwrap_or_default().to_vec();
    let has_more = all.len() > limit;
    let data: Vec<Value> = all.into_iter().take(limit).collect();
    let edge = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    Ok(Json(json!({
        "object": "list",
        "first_id": edge(data.first()),
        "last_id": edge(data.last()),
        "has_more": has_more,
        "data": data,
    })))
}

// ## Files

fn file_json(file: &FileRecord) -> Value {
    json!({
        "id": id(FILE, file.id),
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": seconds(file.created_at),
        "filename": file.about["filename"],
        "purpose": file.about["purpose"],
        "status": "processed",
    })
}

/// `POST /v1/files`
pub(crate) async fn create_file(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let Some(boundary) = multipart::boundary(&call.parts.headers) else {
        return Err(refused(
            "file",
            "the body must be multipart/form-data with the parts `file` and `purpose`",
        ));
    };
    let parts = multipart::parse(&call.body, &boundary).map_err(|why| refused("file", why))?;
    let part = |name: &str| parts.iter().find(|part| part.name == name);
    let file = part("file").ok_or_else(|| refused("file", "`file` is required"))?;
    let name = file.filename.clone().unwrap_or_else(|| "upload".to_owned());
    let name = name.rsplit(['/', '\\']).next().unwrap_or(&name).to_owned();
    if name.is_empty() || extract::check_name(&name).is_err() {
        return Err(refused(
            "file",
            "the file's name is empty, too long, or has control characters",
        ));
    }
    let purpose = part("purpose").map(|part| String::from_utf8_lossy(&part.bytes).into_owned());
    let purpose = purpose.unwrap_or_else(|| "assistants".to_owned());
    if extract::check_name(&purpose).is_err() {
        return Err(refused("purpose", "`purpose` is too long, or has control characters"));
    }
    let about = Map::from_iter([("purpose".to_owned(), purpose.into())]);
    let draft = FileDraft { name, bytes: file.bytes.clone(), about };
    let file =
        call.knowledge()?.put_file(&call.owner, draft).await.map_err(|f| openai(f.into()))?;
    Ok(Json(file_json(&file)))
}

/// `GET /v1/files`
pub(crate) async fn list_files(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let files = call.knowledge()?.files(&call.owner).await.map_err(|f| openai(f.into()))?;
    let query = call.query()?;
    let purpose = query.get("purpose");
    let fits = |file: &&FileRecord| purpose.is_none_or(|purpose| file.about["purpose"] == purpose);
    page(&call, files.iter().filter(fits).map(file_json).collect(), true)
}

/// `GET /v1/files/{id}`
pub(crate) async fn show_file(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let file = call.knowledge()?.file(&call.owner, call.file(0)?).await;
    Ok(Json(file_json(&file.map_err(|f| openai(f.into()))?)))
}

/// `GET /v1/files/{id}/content`
pub(crate) async fn file_content(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Response, Problem> {
    let call = Call::read(app, params, request).await?;
    let bytes = call.knowledge()?.file_bytes(&call.owner, call.file(0)?).await;
    let bytes = bytes.map_err(|failure| openai(failure.into()))?;
    // Somebody's bytes: a download, whatever is in them.
    let headers = [
        (CONTENT_TYPE, "application/octet-stream"),
        (CONTENT_DISPOSITION, "attachment"),
        (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, bytes).into_response())
}

/// `DELETE /v1/files/{id}`
pub(crate) async fn delete_file(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let file = call.file(0)?;
    call.knowledge()?.drop_file(&call.owner, file).await.map_err(|f| openai(f.into()))?;
    Ok(Json(json!({"id": id(FILE, file), "object": "file", "deleted": true})))
}

// ## Vector stores

fn word(document: &DocumentRecord) -> &'static str {
    match document.state {
        DocumentState::Pending => "in_progress",
        DocumentState::Indexed => "completed",
        DocumentState::Failed if Knowledge::is_cancelled(document) => "cancelled",
        DocumentState::Failed => "failed",
    }
}

fn counts(files: &[DocumentRecord]) -> Value {
    let of = |state| files.iter().filter(|file| word(file) == state).count();
    json!({
        "in_progress": of("in_progress"),
        "completed": of("completed"),
        "failed": of("failed"),
        "cancelled": of("cancelled"),
        "total": files.len(),
    })
}

fn store_json(store: &Collection, files: &[DocumentRecord]) -> Value {
    let pending = files.iter().any(|file| file.state == DocumentState::Pending);
    json!({
        "id": id(STORE, store.id),
        "object": "vector_store",
        "created_at": seconds(store.created_at),
        "name": store.about["name"],
        "description": store.about["description"],
        "usage_bytes": files.iter().map(|file| file.size_bytes).sum::<u64>(),
        "file_counts": counts(files),
        "status": if pending { "in_progress" } else { "completed" },
        "expires_after": null,
        "expires_at": null,
        "last_active_at": seconds(store.created_at),
        "metadata": store.about["metadata"],
    })
}

async fn store_view(call: &Call, store: &Collection) -> Result<Value, Problem> {
    let files = call.knowledge()?.collection_files(&call.owner, store.id).await;
    Ok(store_json(store, &files.map_err(|failure| openai(failure.into()))?))
}

/// What a client says about a vector store; what it does not say stays.
fn about(
    body: &Map<String, Value>,
    mut known: Map<String, Value>,
) -> Result<Map<String, Value>, Problem> {
    for name in ["name", "description"] {
        match body.get(name) {
            None => {}
            Some(Value::Null) => {
                known.insert(name.to_owned(), Value::Null);
            }
            Some(Value::String(text)) if extract::check_name(text).is_ok() => {
                known.insert(name.to_owned(), text.clone().into());
            }
            Some(_) => return Err(refused("name", format!("`{name}` must be a short text"))),
        }
    }
    match body.get("metadata") {
        None => {}
        Some(Value::Null) => {
            known.insert("metadata".to_owned(), json!({}));
        }
        Some(Value::Object(map)) if is_metadata(map) => {
            known.insert("metadata".to_owned(), Value::Object(map.clone()));
        }
        Some(_) => return Err(refused("metadata", METADATA)),
    }
    known.entry("metadata").or_insert_with(|| json!({}));
    Ok(known)
}

const METADATA: &str = "`metadata` must be an object of at most 16 short texts, numbers or truths";

fn is_metadata(map: &Map<String, Value>) -> bool {
    let short = |value: &Value| match value {
        Value::String(text) => text.len() <= 512,
        Value::Number(_) | Value::Bool(_) => true,
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    };
    map.len() <= 16 && map.iter().all(|(key, value)| key.len() <= 64 && short(value))
}

fn file_ids(body: &Map<String, Value>) -> Result<Vec<Uuid>, Problem> {
    let ids = match body.get("file_ids") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() <= 500 => ids,
        Some(_) => return Err(refused("file_ids", "`file_ids` must be a list of at most 500 ids")),
    };
    let parse = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        parse_id(FILE, text).ok_or_else(|| no("file", text))
    };
    ids.iter().map(parse).collect()
}

fn attributes(body: &Map<String, Value>) -> Result<Map<String, Value>, Problem> {
    match body.get("attributes") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) if is_metadata(map) => Ok(map.clone()),
        Some(_) => Err(refused("attributes", METADATA)),
    }
}

/// `POST /v1/vector_stores`
pub(crate) async fn create_store(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let body = call.json()?;
    let files = file_ids(&body)?;
    let knowledge = call.knowledge()?;
    for file in &files {
        knowledge.file(&call.owner, *file).await.map_err(|f| openai(f.into()))?;
    }
    let draft = CollectionDraft { id: None, about: about(&body, Map::new())? };
    let store = knowledge.put_collection(&call.owner, draft).await.map_err(|f| openai(f.into()))?;
    for file in files {
        let attach = Attach { collection: store.id, file, attributes: Map::new(), batch: None };
        knowledge.attach(&call.owner, attach).await.map_err(|f| openai(f.into()))?;
    }
    Ok(Json(store_view(&call, &store).await?))
}

/// `GET /v1/vector_stores`
pub(crate) async fn list_stores(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let stores = call.knowledge()?.collections(&call.owner).await.map_err(|f| openai(f.into()))?;
    let mut items = Vec::with_capacity(stores.len());
    for store in &stores {
        items.push(store_view(&call, store).await?);
    }
    page(&call, items, true)
}

async fn own_store(call: &Call) -> Result<Collection, Problem> {
    let store = call.knowledge()?.collection(&call.owner, call.store()?).await;
    store.map_err(|_| no("vector store", call.path.first().map(String::as_str).unwrap_or_default()))
}

/// `GET /v1/vector_stores/{id}`
pub(crate) async fn show_store(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    Ok(Json(store_view(&call, &store).await?))
}

/// `POST /v1/vector_stores/{id}`
pub(crate) async fn change_store(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    let known = store.about.as_object().cloned().unwrap_or_default();
    let draft = CollectionDraft { id: Some(store.id), about: about(&call.json()?, known)? };
    let knowledge = call.knowledge()?;
    let store = knowledge.put_collection(&call.owner, draft).await.map_err(|f| openai(f.into()))?;
    Ok(Json(store_view(&call, &store).await?))
}

/// `DELETE /v1/vector_stores/{id}`
pub(crate) async fn delete_store(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    call.knowledge()?.drop_collection(&call.owner, store.id).await.map_err(|f| openai(f.into()))?;
    Ok(Json(json!({"id": id(STORE, store.id), "object": "vector_store.deleted", "deleted": true})))
}

// ## Files of a vector store

fn store_file_json(record: &DocumentRecord) -> Value {
    let store = record.source.parse().map(|store| id(STORE, store)).unwrap_or_default();
    let error = Knowledge::trouble(record).map(|(kind, message)| {
        let code = match kind {
            "unsupported" => "unsupported_file",
            "no_reader" | "timeout" | "crashed" => "server_error",
            _ => "invalid_file",
        };
        json!({"code": code, "message": message, "kind": kind})
    });
    json!({
        "id": record.file.map(|file| id(FILE, file)),
        "object": "vector_store.file",
        "created_at": seconds(record.created_at),
        "usage_bytes": record.size_bytes,
        "vector_store_id": store,
        "status": word(record),
        "last_error": error,
        "attributes": record.about["attributes"],
        "chunking_strategy": {"type": "other"},
    })
}

async fn store_files(call: &Call) -> Result<Vec<DocumentRecord>, Problem> {
    let store = own_store(call).await?;
    let files = call.knowledge()?.collection_files(&call.owner, store.id).await;
    files.map_err(|failure| openai(failure.into()))
}

async fn one_store_file(call: &Call) -> Result<DocumentRecord, Problem> {
    let file = call.file(1)?;
    let found = store_files(call).await?.into_iter().find(|record| record.file == Some(file));
    found.ok_or_else(|| no("file", &id(FILE, file)))
}

/// `POST /v1/vector_stores/{id}/files`
pub(crate) async fn attach(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    let body = call.json()?;
    let named = body.get("file_id").and_then(Value::as_str);
    let Some(named) = named else { return Err(refused("file_id", "`file_id` is required")) };
    let file = parse_id(FILE, named).ok_or_else(|| no("file", named))?;
    let attach = Attach { collection: store.id, file, attributes: attributes(&body)?, batch: None };
    let record = call.knowledge()?.attach(&call.owner, attach).await;
    Ok(Json(store_file_json(&record.map_err(|failure| openai(failure.into()))?)))
}

/// `GET /v1/vector_stores/{id}/files`
pub(crate) async fn list_attached(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let files = store_files(&call).await?;
    let query = call.query()?;
    let filter = query.get("filter");
    let fits = |record: &&DocumentRecord| filter.is_none_or(|filter| word(record) == filter);
    page(&call, files.iter().filter(fits).map(store_file_json).collect(), true)
}

/// `GET /v1/vector_stores/{id}/files/{file}`
pub(crate) async fn show_attached(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    Ok(Json(store_file_json(&one_store_file(&call).await?)))
}

/// `GET /v1/vector_stores/{id}/files/{file}/content`
pub(crate) async fn attached_content(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let record = one_store_file(&call).await?;
    let text = call.knowledge()?.document_text(record.id).await.map_err(|f| openai(f.into()))?;
    Ok(Json(json!({
        "object": "vector_store.file_content.page",
        "file_id": record.file.map(|file| id(FILE, file)),
        "filename": record.about["filename"],
        "attributes": record.about["attributes"],
        "data": [{"type": "text", "text": text}],
        "has_more": false,
        "next_page": null,
    })))
}

/// `DELETE /v1/vector_stores/{id}/files/{file}`
pub(crate) async fn detach(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let (store, file) = (own_store(&call).await?, call.file(1)?);
    let done = call.knowledge()?.detach(&call.owner, store.id, file).await;
    done.map_err(|_| no("file", &id(FILE, file)))?;
    Ok(Json(json!({
        "id": id(FILE, file), "object": "vector_store.file.deleted", "deleted": true,
    })))
}

// ## Batches

fn batch_json(store: Uuid, batch: &str, files: &[DocumentRecord]) -> Value {
    let pending = files.iter().any(|file| file.state == DocumentState::Pending);
    let created = files.iter().map(|file| seconds(file.created_at)).min();
    json!({
        "id": batch,
        "object": "vector_store.file_batch",
        "created_at": created.unwrap_or_default(),
        "vector_store_id": id(STORE, store),
        "status": if pending { "in_progress" } else { "completed" },
        "file_counts": counts(files),
    })
}

/// The documents of a batch: each carries the batch's id.
async fn batch_files(call: &Call) -> Result<(Uuid, String, Vec<DocumentRecord>), Problem> {
    let store = own_store(call).await?.id;
    let batch = call.path.get(1).cloned().unwrap_or_default();
    let mut files = store_files(call).await?;
    files.retain(|record| record.about["batch"] == batch.as_str());
    if files.is_empty() {
        return Err(no("file batch", &batch));
    }
    Ok((store, batch, files))
}

/// `POST /v1/vector_stores/{id}/file_batches`
pub(crate) async fn create_batch(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    let body = call.json()?;
    // Either ids alone, or ids each with attributes of its own.
    let mut wanted: Vec<(Uuid, Map<String, Value>)> = Vec::new();
    let shared = attributes(&body)?;
    for file in file_ids(&body)? {
        wanted.push((file, shared.clone()));
    }
    for entry in body.get("files").and_then(Value::as_array).into_iter().flatten().take(500) {
        let named = entry["file_id"].as_str().unwrap_or_default();
        let file = parse_id(FILE, named).ok_or_else(|| no("file", named))?;
        let own = entry.as_object().map(attributes).transpose()?.unwrap_or_default();
        wanted.push((file, own));
    }
    if wanted.is_empty() {
        return Err(refused("file_ids", "`file_ids` is required"));
    }
    let knowledge = call.knowledge()?;
    for (file, _) in &wanted {
        knowledge.file(&call.owner, *file).await.map_err(|f| openai(f.into()))?;
    }
    let batch = id(BATCH, call.app.engine.new_id());
    let mut files = Vec::with_capacity(wanted.len());
    for (file, attributes) in wanted {
        let batch = Some(batch.clone());
        let attach = Attach { collection: store.id, file, attributes, batch };
        files.push(knowledge.attach(&call.owner, attach).await.map_err(|f| openai(f.into()))?);
    }
    Ok(Json(batch_json(store.id, &batch, &files)))
}

/// `GET /v1/vector_stores/{id}/file_batches/{batch}`
pub(crate) async fn show_batch(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let (store, batch, files) = batch_files(&call).await?;
    Ok(Json(batch_json(store, &batch, &files)))
}

/// `GET /v1/vector_stores/{id}/file_batches/{batch}/files`
pub(crate) async fn list_batch(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let (_, _, files) = batch_files(&call).await?;
    page(&call, files.iter().map(store_file_json).collect(), true)
}

// ## Search

/// `POST /v1/vector_stores/{id}/search`
pub(crate) async fn search(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let store = own_store(&call).await?;
    let body = call.json()?;
    let text = match body.get("query") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(texts)) => {
            texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
        }
        Some(_) | None => {
            return Err(refused("query", "`query` is required: a text, or a list of texts"));
        }
    };
    let most = match body.get("max_num_results") {
        None | Some(Value::Null) => 10,
        Some(value) => value
            .as_u64()
            .filter(|most| (1..=50).contains(most))
            .ok_or_else(|| refused("max_num_results", "`max_num_results` must be from 1 to 50"))?,
    };
    let threshold =
        match body.get("ranking_options").and_then(|options| options.get("score_threshold")) {
            None | Some(Value::Null) => 0.0,
            Some(value) => value.as_f64().filter(|n| (0.0..=1.0).contains(n)).ok_or_else(|| {
                refused("ranking_options", "`score_threshold` must be from 0 to 1")
            })?,
        };
    let deadline = extract::deadline(&call.parts.headers, None).map_err(openai)?;
    let knowledge = call.knowledge()?;
    let documents = knowledge.collection_files(&call.owner, store.id).await;
    let documents = documents.map_err(|failure| openai(failure.into()))?;
    let fitting: Option<Vec<String>> = match body.get("filters") {
        None | Some(Value::Null) => None,
        Some(filter) => {
            let mut ids = Vec::new();
            for record in &documents {
                if fits(filter, &record.about["attributes"], 0)? {
                    ids.push(record.id.to_string());
                }
            }
            Some(ids)
        }
    };
    let query = SearchQuery {
        text: text.clone(),
        owner: call.owner.clone(),
        sources: Sources::Collections(vec![store.id]),
        documents: fitting,
        limits: SearchLimits {
            similarity_threshold: threshold as f32,
            max_chunks: most as usize,
            token_budget: u32::MAX,
        },
        deadline,
        wait: None,
    };
    let found = knowledge.search(query).await.map_err(|failure| openai(failure.into()))?;
    Ok(Json(json!({
        "object": "vector_store.search_results.page",
        "search_query": [text],
        "data": results(&found, &documents),
        "has_more": false,
        "next_page": null,
        "explanation": found.explanation_json(),
    })))
}

fn results(found: &Found, documents: &[DocumentRecord]) -> Vec<Value> {
    let result = |chunk: &clearway_engine::knowledge::FoundChunk| {
        let record = documents.iter().find(|record| record.id.to_string() == *chunk.chunk.doc_id);
        json!({
            "file_id": record.and_then(|record| record.file).map(|file| id(FILE, file)),
            "filename": chunk.document.source,
            "score": chunk.scores.similarity,
            "attributes": record.map(|record| record.about["attributes"].clone()),
            "content": [{"type": "text", "text": &*chunk.chunk.content}],
            "chunk": chunk.to_json(),
        })
    };
    found.chunks.iter().map(result).collect()
}

/// Whether attributes fit a filter of OpenAI's shape.
fn fits(filter: &Value, attributes: &Value, depth: usize) -> Result<bool, Problem> {
    let wrong = |text: &str| Err(refused("filters", text.to_owned()));
    if depth > 8 {
        return wrong("`filters` are nested too deeply");
    }
    let kind = filter["type"].as_str().unwrap_or_default();
    if matches!(kind, "and" | "or") {
        let Some(parts) = filter["filters"].as_array() else {
            return wrong("a filter of the type `and` or `or` needs `filters`");
        };
        let mut any = false;
        let mut all = true;
        for part in parts {
            let one = fits(part, attributes, depth + 1)?;
            any |= one;
            all &= one;
        }
        return Ok(if kind == "and" { all } else { any });
    }
    let Some(key) = filter["key"].as_str() else { return wrong("a filter needs a `key`") };
    let (have, want) = (&attributes[key], &filter["value"]);
    let order = || have.as_f64().zip(want.as_f64()).and_then(|(a, b)| a.partial_cmp(&b));
    let within = || want.as_array().is_some_and(|list| list.contains(have));
    Ok(match kind {
        "eq" => have == want,
        "ne" => have != want,
        "gt" => order().is_some_and(|order| order.is_gt()),
        "gte" => order().is_some_and(|order| order.is_ge()),
        "lt" => order().is_some_and(|order| order.is_lt()),
        "lte" => order().is_some_and(|order| order.is_le()),
        "in" => within(),
        "nin" => !within(),
        _ => {
            return wrong("a filter's `type` is one of eq, ne, gt, gte, lt, lte, in, nin, and, or");
        }
    })
}

/// Every body of these addresses, for whatever bytes.
pub(crate) fn fuzz(data: &[u8]) {
    let _ = multipart::parse(&Bytes::copy_from_slice(data), "b");
    if let Ok(value) = serde_json::from_slice::<Value>(data) {
        let _ = fits(&value, &value, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let attributes = json!({"year": 2024, "team": "sales", "draft": false});
        let check = |filter: Value| fits(&filter, &attributes, 0).unwrap();
        assert!(check(json!({"type": "eq", "key": "team", "value": "sales"})));
        assert!(!check(json!({"type": "gt", "key": "team", "value": 1})));
        assert!(check(json!({"type": "and", "filters": [
            {"type": "gte", "key": "year", "value": 2024},
            {"type": "in", "key": "team", "value": ["sales", "law"]},
        ]})));
        assert!(!check(json!({"type": "or", "filters": [
            {"type": "lt", "key": "year", "value": 2024},
            {"type": "ne", "key": "draft", "value": false},
        ]})));
        let mut deep = json!({"type": "eq", "key": "a", "value": 1});
        for _ in 0..20 {
            deep = json!({"type": "and", "filters": [deep]});
        }
        assert!(fits(&deep, &attributes, 0).is_err());
        assert!(fits(&json!({"type": "like"}), &attributes, 0).is_err());
    }

    #[test]
    fn ids() {
        let uuid = Uuid::from_u128(7);
        assert_eq!(store_id(&id(STORE, uuid)), Some(uuid));
        assert_eq!(store_id(&id(FILE, uuid)), None);
        assert_eq!(store_id("vs_"), None);
    }
}
