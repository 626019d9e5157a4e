//! What a thread occupies.

use axum::Json;
use axum::extract::State;
use axum::routing::get;
use http::Method;
use serde_json::{Value, json};

use super::{Params, threads};
use crate::Problem;
use crate::app::{Address, App, Routes};

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes.add(Method::GET, "/threads/{thread_id}/storage", get(show))
}

/// `GET /threads/{thread_id}/storage`
async fn show(State(app): State<App>, Params(params): Params) -> Result<Json<Value>, Problem> {
    let thread = threads::id(&params[0])?;
    threads::overview(&app, thread).await?;
    let used = app.engine.thread_storage(thread).await?;
    let values = used.delta_bytes + used.snapshot_bytes + used.blob_bytes;
    Ok(Json(json!({
        "thread_id": thread.to_string(),
        "total_bytes": used.checkpoint_bytes + values + used.log_bytes + used.artifact_bytes,
        "checkpoints": {"count": used.checkpoints, "bytes": used.checkpoint_bytes},
        "channel_values": {
            "bytes": values,
            "deltas": used.delta_bytes,
            "snapshots": used.snapshot_bytes,
            "blobs": used.blob_bytes,
        },
        "runs": {"count": used.runs, "log_bytes": used.log_bytes},
        "artifacts": {"bytes": used.artifact_bytes},
    })))
}
