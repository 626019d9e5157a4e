//! What a campaign made: its website, its report, and every other file.

use std::io::{Cursor, Write as _};

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use clearway_core::Code;
use clearway_engine::{ArtifactRecord, ArtifactScope};
use http::StatusCode;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use serde_json::{Value, json};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Campaign, asked, records, word};
use crate::Problem;
use crate::app::App;
use crate::control::{self, download};
use crate::extract::{Query, shown};

/// A campaign's files, oldest first.
pub(super) async fn of(app: &App, campaign: &Campaign) -> Result<Vec<ArtifactRecord>, Problem> {
    records(app, campaign).await
}

/// A file's name as a part of an address.
pub(super) fn encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `GET …/campaigns/{id}/website` and `/pdf`, and `GET /campaigns/view/{id}`
pub(crate) async fn file(
    app: App,
    id: &str,
    media_type: &str,
    attachment: bool,
    request: Request,
) -> Result<Response, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let state = word(&campaign.record);
    if state != "completed" {
        let text = format!("Campaign is not completed yet: {state}");
        return Err(Problem::new(Code::InvalidRequest, text)
            .status(StatusCode::BAD_REQUEST)
            .hint("Its progress says how far it is."));
    }
    let files = of(&app, &campaign).await?;
    let Some(found) = files.iter().rfind(|file| file.media_type == media_type) else {
        return Err(Problem::new(Code::ArtifactNotFound, "this campaign has no such file"));
    };
    let scope = ArtifactScope::Thread(campaign.record.thread);
    let (record, bytes) = app.engine.artifact(scope, &found.name, None).await?;
    Ok(download(&record, bytes.into(), attachment))
}

/// `GET …/campaigns/{id}/artifacts`
pub(crate) async fn artifacts(
    app: App,
    id: &str,
    request: Request,
) -> Result<Json<Value>, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let files = of(&app, &campaign).await?;
    let files: Vec<Value> = files.iter().map(control::artifact).collect();
    Ok(Json(json!({"campaign_id": campaign.id, "artifacts": files})))
}

/// `GET …/campaigns/{id}/artifacts/{name}`
pub(crate) async fn artifact(
    app: App,
    id: &str,
    name: &str,
    request: Request,
) -> Result<Response, Problem> {
    let query = Query::parse(request.uri())?;
    let version = query.read::<u32>("version", "a version's number")?;
    let campaign = asked(&app, id, request.headers()).await?;
    let scope = ArtifactScope::Thread(campaign.record.thread);
    let (record, bytes) = app.engine.artifact(scope, name, version).await?;
    Ok(download(&record, bytes.into(), true))
}

/// `GET …/campaigns/{id}/zip`: all files as one, whatever the campaign's state.
pub(crate) async fn zip(app: App, id: &str, request: Request) -> Result<Response, Problem> {
    let campaign = asked(&app, id, request.headers()).await?;
    let files = of(&app, &campaign).await?;
    let size: u64 = files.iter().map(|file| file.size_bytes).sum();
    if size > LARGEST_ZIP {
        let text = format!(
            "the files are {size} bytes and an archive holds at most {LARGEST_ZIP}: fetch them one by one"
        );
        return Err(Problem::new(Code::LimitExceeded, text));
    }
    let scope = ArtifactScope::Thread(campaign.record.thread);
    let mut contents = Vec::with_capacity(files.len());
    for file in &files {
        let (record, bytes) = app.engine.artifact(scope, &file.name, None).await?;
        contents.push((record.name, bytes));
    }
    // Checksums of megabytes are work for a lane.
    let packed = app.lanes.run(move || pack(&contents)).await;
    let archive = match packed {
        Some(Ok(archive)) => archive,
        Some(Err(error)) => {
            let text = format!("the archive of {} cannot be made: {error}", shown(id));
            return Err(Problem::new(Code::Internal, text));
        }
        None => return Err(Problem::new(Code::Internal, "the archive's work was lost")),
    };
    let mut response = Response::new(Body::from(archive));
    let headers = response.headers_mut();
    let name = format!("attachment; filename=\"{}.zip\"", campaign.id);
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/zip"));
    if let Ok(name) = name.try_into() {
        headers.insert(CONTENT_DISPOSITION, name);
    }
    Ok(response)
}

/// The most that is packed in memory.
const LARGEST_ZIP: u64 = 64 << 20;

fn pack(files: &[(String, bytes::Bytes)]) -> zip::result::ZipResult<Vec<u8>> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in files {
        // A name is a name here, and never a way out of the folder that it is unpacked into.
        let name: String =
            name.chars().map(|c| if matches!(c, '/' | '\\' | ':') { '_' } else { c }).collect();
        archive.start_file(name.trim_start_matches('.'), options)?;
        archive.write_all(bytes)?;
    }
    Ok(archive.finish()?.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_holds_every_file_under_a_harmless_name() {
        let files = [
            ("page.html".to_owned(), bytes::Bytes::from_static(b"<p>hi")),
            ("../../etc/x".to_owned(), bytes::Bytes::from_static(b"1")),
        ];
        let packed = pack(&files).unwrap();
        assert!(packed.starts_with(b"PK"));
        let mut archive = zip::ZipArchive::new(Cursor::new(packed)).unwrap();
        let names: Vec<String> = (0..archive.len())
            .map(|at| archive.by_index(at).unwrap().name().unwrap().into_owned())
            .collect();
        assert_eq!(names, ["page.html", "_.._etc_x"]);
    }

    #[test]
    fn names_become_parts_of_addresses() {
        assert_eq!(encoded("a b/\u{fc}.json"), "a%20b%2F%C3%BC.json");
    }
}
