//! What can be changed of files in a vector store: their attributes, and that they are read at all.

use axum::Json;
use axum::extract::{RawPathParams, Request, State};
use serde_json::{Value, json};

use super::{Call, attributes, batch_files, batch_json, no, openai, own_store, store_file_json};
use crate::Problem;
use crate::app::App;

/// `POST /v1/vector_stores/{id}/files/{file}`
pub(crate) async fn change_attached(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let (store, file) = (own_store(&call).await?, call.file(1)?);
    let attributes = attributes(&call.json()?)?;
    let knowledge = call.knowledge()?;
    let changed = knowledge.change_attributes(&call.owner, store.id, file, attributes).await;
    Ok(Json(store_file_json(&changed.map_err(|failure| openai(failure.into()))?)))
}

/// `POST /v1/vector_stores/{id}/file_batches/{batch}/cancel`
pub(crate) async fn cancel_batch(
    State(app): State<App>,
    params: RawPathParams,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let call = Call::read(app, params, request).await?;
    let (store, batch, files) = batch_files(&call).await?;
    let cancelled = call.knowledge()?.cancel_files(files).await;
    cancelled.map_err(|failure| openai(failure.into()))?;
    let Ok((_, _, files)) = batch_files(&call).await else {
        // Deleted meanwhile.
        return Err(no("file batch", &batch));
    };
    let mut answer = batch_json(store, &batch, &files);
    answer["status"] = json!("cancelled");
    Ok(Json(answer))
}
