//! How long a thread lives: what clients say about it, and what they are told.

use std::time::Duration;

use clearway_core::{ThreadId, Timestamp};
use clearway_engine::{AfterLife, ThreadTtl};
use serde_json::{Value, json};

use super::errors;
use crate::Problem;
use crate::app::App;
use crate::extract::{Fields, Query};

/// A hundred years: nobody means more.
const LONGEST_MINUTES: f64 = 52_704_000.0;

/// `ttl`: minutes, or `{"ttl": minutes, "strategy": "delete" | "keep_latest"}`.
pub(super) fn read(fields: &mut Fields) -> Option<ThreadTtl> {
    let (minutes, strategy) = match fields.value("ttl")? {
        Value::Null => return None,
        Value::Object(mut map) => {
            let strategy = map.remove("strategy").unwrap_or_default();
            (map.remove("ttl").filter(|minutes| !minutes.is_null())?, strategy)
        }
        minutes => (minutes, Value::Null),
    };
    let then = match strategy.as_str() {
        Some("delete") => Some(AfterLife::Delete),
        Some("keep_latest") => Some(AfterLife::KeepLatest),
        None if strategy.is_null() => Some(AfterLife::Delete),
        _ => None,
    };
    let minutes = minutes.as_f64().filter(|minutes| (0.0..=LONGEST_MINUTES).contains(minutes));
    match (minutes, then) {
        (Some(minutes), Some(then)) => {
            Some(ThreadTtl { lifetime: Duration::from_secs_f64(minutes * 60.0), then })
        }
        _ => {
            let text = "must be minutes, from 0 to a hundred years, or an object with these as `ttl` \
                        and a `strategy`, delete or keep_latest";
            fields.wrong("ttl", "ttl", text);
            None
        }
    }
}

/// As `GET /threads/{thread_id}?include=ttl` shows it.
pub(super) fn to_json(ttl: ThreadTtl, expires_at: Timestamp) -> Value {
    json!({
        "strategy": ttl.then.as_str(),
        "ttl_minutes": ttl.lifetime.as_secs_f64() / 60.0,
        "expires_at": expires_at.to_string(),
    })
}

/// Puts it into a thread that is shown.
pub(super) async fn include(app: &App, thread: ThreadId, shown: &mut Value) -> Result<(), Problem> {
    if let Some((ttl, expires_at)) = app.engine.thread_ttl(thread).await? {
        shown["ttl"] = to_json(ttl, expires_at);
    }
    Ok(())
}

/// Whether a request wants to know of it: `?include=ttl`.
pub(super) fn is_asked_for(uri: &http::Uri) -> Result<bool, Problem> {
    let query = Query::parse(uri).map_err(|why| errors::invalid(vec![why]))?;
    let mut names = query.every("include").flat_map(|names| names.split(','));
    Ok(names.any(|name| name.trim() == "ttl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_minutes_with_a_strategy() {
        let read = |ttl: Value| {
            let mut fields = Fields::of(json!({"ttl": ttl}), &["body"]).unwrap();
            let read = read(&mut fields);
            fields.finish().map(|()| read)
        };
        let of = |seconds, then| {
            Ok(Some(ThreadTtl { lifetime: Duration::from_secs_f64(seconds), then }))
        };
        assert_eq!(read(json!(1.5)), of(90.0, AfterLife::Delete));
        assert_eq!(read(json!({"ttl": 2})), of(120.0, AfterLife::Delete));
        assert_eq!(
            read(json!({"ttl": 0, "strategy": "keep_latest"})),
            of(0.0, AfterLife::KeepLatest)
        );
        for nothing in [json!(null), json!({}), json!({"ttl": null}), json!({"strategy": "delete"})]
        {
            assert_eq!(read(nothing), Ok(None));
        }
        for bad in
            [json!(-1), json!("5"), json!([1]), json!(1e300), json!({"ttl": 1, "strategy": 7})]
        {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
