//! How campaigns end, in the log, in the words that their operators look for.

use std::sync::Arc;

use clearway_core::RunRecord;
use clearway_engine::ArtifactScope;
use tokio::sync::broadcast::error::RecvError;

use super::{DIALECT, is_asking, key_of};
use crate::app::App;
use crate::server::DoorKind;

/// The standing task that tells every end, also of campaigns that an earlier process began.
pub(crate) async fn tell_ends(app: App) {
    let mut ends = app.engine.ends(DIALECT);
    for pool in app.engine.pools().iter().filter(|pool| is_used(&app, &pool.name)) {
        tracing::info!(
            pool = pool.name,
            slots = pool.slots,
            "pool initialized: {} with {} slots",
            pool.name,
            pool.slots
        );
    }
    let stop = app.engine.tasks().hard.clone();
    loop {
        tokio::select! {
            // What ended before the stop is told first.
            biased;
            ended = ends.recv() => match ended {
                Ok(record) => tell(&app, &record).await,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "so many campaigns ended at once that not all are told");
                }
                Err(RecvError::Closed) => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// Whether campaigns run in this pool.
fn is_used(app: &App, pool: &str) -> bool {
    let doors = app.options.doors.iter().filter(|door| door.kind == DoorKind::Campaign);
    doors.filter_map(|door| app.engine.agents().get(&door.agent)).any(|agent| agent.pool == pool)
}

async fn tell(app: &App, record: &Arc<RunRecord>) {
    let Some(id) = key_of(record) else { return };
    let by = record.metadata.get("created_by").and_then(|by| by.as_str()).unwrap_or("anonymous");
    let run = record.id;
    if let Some(failure) = &record.failure {
        tracing::error!(
            run.id = %run, campaign.id = id, user = by, code = %failure.code,
            retryable = failure.retryable,
            "generation failed for {id} by user {by}: {failure}"
        );
        return;
    }
    if is_asking(record) {
        tracing::info!(run.id = %run, campaign.id = id, user = by, "generation of {id} by user {by} waits for an answer");
        return;
    }
    let scope = ArtifactScope::Thread(record.thread);
    let files = app.engine.artifacts(scope).await.unwrap_or_default();
    if let Some(page) = files.iter().find(|file| file.media_type == "text/html") {
        tracing::info!(run.id = %run, campaign.id = id, user = by, file = page.name, "website generated: {}", page.name);
    }
    let begun = record.started_at.unwrap_or(record.created_at);
    let seconds = record.ended_at.unwrap_or(begun).since(begun).as_secs_f64();
    tracing::info!(run.id = %run, campaign.id = id, user = by, "generation completed for {id} by user {by}");
    tracing::info!(run.id = %run, campaign.id = id, user = by, seconds, "execution time {seconds:.2} seconds");
    tracing::info!(run.id = %run, campaign.id = id, user = by, artifacts = files.len(), "artifacts generated: {}", files.len());
}
