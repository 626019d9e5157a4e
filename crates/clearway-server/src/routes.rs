//! The table of addresses, and what answers elsewhere.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use clearway_core::Code;
use http::Method;
use http::header::CONTENT_TYPE;

use crate::app::{Address, App, Routes};
use crate::extract::{PathText, shown};
use crate::server::{Door, DoorKind, ServerOptions};
use crate::{
    Problem, attempts, campaigns, codes, cofounder, control, embeddings, files, knowledge,
    langgraph, notes, ops, runs, storage, tasks,
};

/// All addresses of a server with these doors.
///
/// # Errors
/// The address that two doors share.
pub(crate) fn table(options: &ServerOptions) -> Result<Routes, Address> {
    let mut routes = langgraph::table(uploads(own()?)?)?;
    for door in &options.doors {
        routes = match door.kind {
            DoorKind::CoFounder => cofounder(routes, door)?,
            DoorKind::Campaign => campaign(routes, door)?,
            DoorKind::Knowledge => notes_door(routes, door)?,
        };
    }
    Ok(routes.elsewhere(nothing_here, wrong_method))
}

fn own() -> Result<Routes, Address> {
    Routes::default()
        .add(Method::GET, "/", get(ops::home))?
        .add(Method::GET, "/openapi.json", get(openapi))?
        .add(Method::GET, "/errors/{code}", get(error_page))?
        .add(Method::GET, "/health/live", get(ops::live))?
        .add(Method::GET, "/health/ready", get(ops::ready))?
        .add(Method::GET, "/metrics", get(ops::metrics))?
        .add(Method::GET, "/providers", get(ops::providers))?
        .add(Method::GET, "/providers/attempts", get(attempts::of_no_run))?
        .add(Method::POST, "/providers/{name}/reset", post(ops::reset_provider))?
        .add(Method::GET, "/pools", get(ops::pools))?
        .add(Method::GET, "/runs", get(runs::list))?
        .add(Method::GET, "/runs/{run_id}", get(runs::show))?
        .add(Method::GET, "/runs/{run_id}/events", get(runs::events))?
        .add(Method::POST, "/runs/{run_id}/cancel", post(runs::cancel))?
        .add(Method::POST, "/workflows/{name}/runs", post(control::start))?
        .add(Method::POST, "/runs/{run_id}/answer", post(control::answer))?
        .add(Method::POST, "/runs/{run_id}/signals/{name}", post(control::signal))?
        .add(Method::POST, "/runs/{run_id}/wake", post(control::wake))?
        .add(Method::POST, "/runs/{run_id}/resolve", post(control::resolve))?
        .add(Method::GET, "/runs/{run_id}/attempts", get(attempts::of_run))?
        .add(Method::GET, "/runs/{run_id}/artifacts", get(control::artifacts))?
        .add(Method::GET, "/runs/{run_id}/artifacts/{name}", get(control::artifact_bytes))?
        .add(Method::GET, "/attention", get(control::attention))?
        .add(Method::GET, "/storage/threads", get(storage::list))?
        .add(Method::GET, "/storage/threads/{thread_id}", get(storage::show))?
        .add(Method::GET, "/storage/threads/{thread_id}/history", get(storage::history))?
        .add(Method::POST, "/storage/threads/{thread_id}/prune", post(storage::prune))?
        .add(Method::POST, "/storage/threads/{thread_id}/fork", post(storage::fork))?
        .add(Method::PATCH, "/runs/{run_id}", patch(control::change))?
        .add(Method::PATCH, "/pools/{name}", patch(control::change_pool))?
        .add(Method::POST, "/chat/async", post(tasks::create))?
        .add(Method::GET, "/chat/task/{task_id}", get(tasks::show))?
        .add(Method::GET, "/tasks", get(tasks::list))?
        .add(Method::DELETE, "/tasks/{task_id}", delete(tasks::cancel))?
        .add(Method::POST, "/v1/embeddings", post(embeddings::create))?
        .add(Method::GET, "/embeddings/{text}", get(embeddings::show))?
        .add(Method::GET, "/knowledge", get(knowledge::list))?
        .add(Method::POST, "/knowledge/search", post(knowledge::search))?
        .add(Method::GET, "/knowledge/{source}", get(knowledge::show))?
        .add(Method::POST, "/knowledge/{source}/refresh", post(knowledge::refresh))?
        .add(Method::GET, "/knowledge/{source}/documents", get(knowledge::documents))?
        .add(Method::GET, "/knowledge/{source}/graph", get(knowledge::graph))
}

fn uploads(routes: Routes) -> Result<Routes, Address> {
    const STORE: &str = "/v1/vector_stores/{vector_store_id}";
    const FILE: &str = "/v1/vector_stores/{vector_store_id}/files/{file_id}";
    const BATCH: &str = "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}";
    routes
        .add(Method::POST, "/v1/files", post(files::create_file))?
        .add(Method::GET, "/v1/files", get(files::list_files))?
        .add(Method::GET, "/v1/files/{file_id}", get(files::show_file))?
        .add(Method::DELETE, "/v1/files/{file_id}", delete(files::delete_file))?
        .add(Method::GET, "/v1/files/{file_id}/content", get(files::file_content))?
        .add(Method::POST, "/v1/vector_stores", post(files::create_store))?
        .add(Method::GET, "/v1/vector_stores", get(files::list_stores))?
        .add(Method::GET, STORE, get(files::show_store))?
        .add(Method::POST, STORE, post(files::change_store))?
        .add(Method::DELETE, STORE, delete(files::delete_store))?
        .add(Method::POST, format!("{STORE}/search"), post(files::search))?
        .add(Method::POST, format!("{STORE}/files"), post(files::attach))?
        .add(Method::GET, format!("{STORE}/files"), get(files::list_attached))?
        .add(Method::GET, FILE, get(files::show_attached))?
        .add(Method::POST, FILE, post(files::change_attached))?
        .add(Method::DELETE, FILE, delete(files::detach))?
        .add(Method::GET, format!("{FILE}/content"), get(files::attached_content))?
        .add(Method::POST, format!("{STORE}/file_batches"), post(files::create_batch))?
        .add(Method::GET, BATCH, get(files::show_batch))?
        .add(Method::POST, format!("{BATCH}/cancel"), post(files::cancel_batch))?
        .add(Method::GET, format!("{BATCH}/files"), get(files::list_batch))
}

/// A handler of a door that needs the door and the whole request.
macro_rules! at_door {
    ($method:ident, $door:expr, $handler:expr) => {{
        let door = $door.clone();
        $method(async move |State(app): State<App>, request: Request| {
            $handler(app, &door, request).await
        })
    }};
}

/// A handler of a door that looks at nothing of its request.
macro_rules! of_door {
    ($method:ident, $door:expr, $handler:expr) => {{
        let door = $door.clone();
        $method(async move |State(app): State<App>| $handler(app, &door).await)
    }};
}

fn notes_door(routes: Routes, door: &Door) -> Result<Routes, Address> {
    let at = |address: &str| format!("{}{address}", door.mount.trim_end_matches('/'));
    let (clear, rebuild, category) = (door.clone(), door.clone(), door.clone());
    routes
        .add(Method::POST, at("/chat"), at_door!(post, door, notes::chat))?
        .add(Method::POST, at("/chat/stream"), at_door!(post, door, notes::stream))?
        .add(Method::POST, at("/chat/async"), at_door!(post, door, notes::start))?
        .add(
            Method::GET,
            at("/chat/task/{task_id}"),
            get(async move |State(app): State<App>, PathText(id): PathText, request: Request| {
                notes::show_task(app, &id, request).await
            }),
        )?
        .add(
            Method::GET,
            at("/tasks"),
            get(async move |State(app): State<App>, request: Request| {
                notes::list_tasks(app, request).await
            }),
        )?
        .add(
            Method::DELETE,
            at("/tasks/{task_id}"),
            delete(
                async move |State(app): State<App>, PathText(id): PathText, request: Request| {
                    notes::cancel(app, &id, request).await
                },
            ),
        )?
        .add(Method::GET, at("/health"), of_door!(get, door, notes::health))?
        .add(Method::GET, at("/agent/info"), of_door!(get, door, notes::info))?
        .add(Method::GET, at("/knowledge/graph"), at_door!(get, door, notes::graph))?
        .add(Method::GET, at("/knowledge/search"), at_door!(get, door, notes::search))?
        .add(Method::GET, at("/knowledge/search/content"), at_door!(get, door, notes::content))?
        .add(Method::GET, at("/knowledge/categories"), of_door!(get, door, notes::categories))?
        .add(Method::GET, at("/notes"), of_door!(get, door, notes::list))?
        .add(Method::GET, at("/notes/structure"), of_door!(get, door, notes::structure))?
        .add(Method::GET, at("/notes/search"), at_door!(get, door, notes::search))?
        .add(
            Method::GET,
            at("/notes/{category}"),
            get(async move |State(app): State<App>, PathText(name): PathText| {
                notes::category(app, &category, &name).await
            }),
        )?
        .add(Method::GET, at("/cache/stats"), of_door!(get, door, notes::cache_stats))?
        .add(
            Method::POST,
            at("/cache/clear"),
            post(async move |State(app): State<App>, request: Request| {
                notes::rebuild(app, &clear, true, request).await
            }),
        )?
        .add(
            Method::POST,
            at("/cache/rebuild"),
            post(async move |State(app): State<App>, request: Request| {
                notes::rebuild(app, &rebuild, false, request).await
            }),
        )?
        .add(Method::POST, at("/sync"), at_door!(post, door, notes::sync))?
        .add(Method::GET, at("/config/embeddings"), of_door!(get, door, notes::config_embeddings))?
        .add(Method::GET, at("/config/notes"), of_door!(get, door, notes::config_notes))
}

fn cofounder(routes: Routes, door: &Door) -> Result<Routes, Address> {
    let at = |address: &str| format!("{}{address}", door.mount.trim_end_matches('/'));
    let door = || door.clone();
    let (chat, stream, state) = (door(), door(), door());
    routes
        .add(
            Method::POST,
            at("/chat"),
            post(async move |State(app): State<App>, request: Request| {
                cofounder::chat(app, &chat, request).await
            }),
        )?
        .add(
            Method::POST,
            at("/chat/stream"),
            post(async move |State(app): State<App>, request: Request| {
                cofounder::stream(app, &stream, request).await
            }),
        )?
        .add(
            Method::GET,
            at("/chat/stream"),
            get(async move |State(app): State<App>, request: Request| {
                cofounder::rejoin(app, request).await
            }),
        )?
        .add(
            Method::POST,
            at("/reset"),
            post(async move |State(app): State<App>, request: Request| {
                cofounder::reset(app, request).await
            }),
        )?
        .add(
            Method::GET,
            at("/state"),
            get(async move |State(app): State<App>, request: Request| {
                cofounder::state(app, &state, request).await
            }),
        )?
        .add(
            Method::GET,
            at("/health"),
            get(async move |State(app): State<App>| cofounder::health(app).await),
        )
}

fn campaign(routes: Routes, door: &Door) -> Result<Routes, Address> {
    let at = |address: &str| format!("{}{address}", door.mount.trim_end_matches('/'));
    // Handlers get the door that they stand behind.
    macro_rules! with_door {
        ($method:ident, $handler:path) => {{
            let door = door.clone();
            $method(async move |State(app): State<App>, request: Request| {
                $handler(app, &door, request).await
            })
        }};
        ($method:ident, $handler:path, id) => {{
            let door = door.clone();
            $method(
                async move |State(app): State<App>, PathText(id): PathText, request: Request| {
                    $handler(app, &door, &id, request).await
                },
            )
        }};
    }
    // Files are the same behind every door.
    macro_rules! file {
        ($media_type:literal, $attachment:literal) => {
            get(async |State(app): State<App>, PathText(id): PathText, request: Request| {
                campaigns::file(app, &id, $media_type, $attachment, request).await
            })
        };
    }
    let (list, progress) = (at("/campaigns"), at("/campaigns/progress"));
    let one = at("/campaigns/{campaign_id}");
    let of = |address: &str| format!("{one}{address}");
    routes
        .add(Method::POST, at("/campaigns/generate"), with_door!(post, campaigns::generate))?
        .add(Method::POST, &list, with_door!(post, campaigns::create))?
        .add(
            Method::GET,
            &list,
            get(async |State(app): State<App>, request: Request| {
                campaigns::list(app, request).await
            }),
        )?
        .add(Method::GET, &progress, with_door!(get, campaigns::list_progress))?
        .add(Method::GET, at("/campaigns/stream"), with_door!(get, campaigns::stream_all))?
        .add(Method::GET, at("/campaigns/ws"), with_door!(get, campaigns::socket_all))?
        .add(Method::GET, at("/campaigns/progress/ws"), with_door!(get, campaigns::socket_all))?
        .add(Method::GET, &one, with_door!(get, campaigns::show, id))?
        .add(Method::PATCH, &one, with_door!(patch, campaigns::change, id))?
        .add(Method::POST, of("/cancel"), with_door!(post, campaigns::cancel, id))?
        .add(Method::POST, of("/answer"), with_door!(post, campaigns::answer, id))?
        .add(Method::GET, of("/status"), with_door!(get, campaigns::status, id))?
        .add(Method::GET, of("/progress"), with_door!(get, campaigns::progress, id))?
        .add(Method::GET, of("/workflow-steps"), with_door!(get, campaigns::workflow_steps, id))?
        .add(Method::GET, of("/stream"), with_door!(get, campaigns::stream, id))?
        .add(Method::GET, of("/ws"), with_door!(get, campaigns::socket, id))?
        .add(Method::GET, of("/website"), file!("text/html", true))?
        .add(Method::GET, of("/pdf"), file!("application/pdf", true))?
        .add(Method::GET, "/campaigns/view/{campaign_id}", file!("text/html", false))?
        .add(
            Method::GET,
            of("/artifacts"),
            get(async |State(app): State<App>, PathText(id): PathText, request: Request| {
                campaigns::artifacts(app, &id, request).await
            }),
        )?
        .add(
            Method::GET,
            of("/artifacts/{name}"),
            get(
                async |State(app): State<App>,
                       Path((id, name)): Path<(String, String)>,
                       request: Request| {
                    campaigns::artifact(app, &id, &name, request).await
                },
            ),
        )?
        .add(
            Method::GET,
            of("/zip"),
            get(async |State(app): State<App>, PathText(id): PathText, request: Request| {
                campaigns::zip(app, &id, request).await
            }),
        )?
        .add(Method::GET, at("/health"), {
            let door = door.clone();
            get(async move |State(app): State<App>| campaigns::health(app, &door).await)
        })?
        .add(
            Method::GET,
            at("/test/thread-pool"),
            get(async |State(app): State<App>| campaigns::thread_pool(app).await),
        )?
        .add(Method::GET, at("/analytics/campaigns"), with_door!(get, campaigns::analytics))
}

/// `GET /openapi.json`
async fn openapi(State(app): State<App>) -> Response {
    ([(CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

/// `GET /errors/{code}`
async fn error_page(PathText(code): PathText) -> Result<Response, Problem> {
    let code = Code::parse(&code).ok_or_else(|| {
        Problem::new(Code::NotFound, format!("no error has the code `{}`", shown(&code)))
    })?;
    Ok(([(CONTENT_TYPE, "text/plain; charset=utf-8")], codes::page(code)).into_response())
}

async fn nothing_here(request: Request) -> Problem {
    let text = format!("nothing lives at {}", shown(request.uri().path()));
    Problem::new(Code::NotFound, text)
}

async fn wrong_method(request: Request) -> Problem {
    let (method, path) = (request.method(), shown(request.uri().path()));
    Problem::new(
        Code::MethodNotAllowed,
        format!("{path} does not answer {}", shown(method.as_str())),
    )
}
