//! The store: items that applications and agents keep beside threads.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, get, post};
use clearway_engine::{
    Condition, Item, ItemIndex, ItemScope, ItemSearch, ItemSpec, NamespaceQuery, Test, Use,
};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Map, Value, json};

use super::errors::{self, bad_request, unprocessable};
use super::state::read_fields;
use crate::Problem;
use crate::app::{Address, App, Routes};
use crate::caller::caller;
use crate::extract::{Fields, Query, shown};

/// Labels of a namespace.
const DEPTH: usize = 32;
/// Bytes of a label or a key.
const NAME_BYTES: usize = 512;
/// The longest that an item may live from its last use: ten years.
const LONGEST_MINUTES: f64 = 10.0 * 366.0 * 24.0 * 60.0;
/// Conditions of one search.
const CONDITIONS: usize = 64;

pub(super) fn routes(routes: Routes) -> Result<Routes, Address> {
    routes
        .add(Method::PUT, "/store/items", routing::put(put))?
        .add(Method::GET, "/store/items", get(show))?
        .add(Method::DELETE, "/store/items", routing::delete(delete))?
        .add(Method::POST, "/store/items/search", post(search))?
        .add(Method::POST, "/store/namespaces", post(namespaces))
}

fn scope(headers: &HeaderMap) -> Result<ItemScope, Problem> {
    let caller = caller(headers, None)?;
    Ok(ItemScope { tenant: caller.tenant, owner: caller.owner })
}

fn shape(item: &Item) -> Value {
    json!({
        "namespace": item.namespace,
        "key": item.key,
        "value": item.value,
        "created_at": item.created_at.to_string(),
        "updated_at": item.updated_at.to_string(),
    })
}

// ## Reading requests

/// A namespace that items can have.
///
/// # Errors
/// 400 for none at all, 422 for labels that cannot be.
fn namespace(labels: Vec<String>) -> Result<Vec<String>, Problem> {
    if labels.is_empty() {
        return Err(bad_request("`namespace` must have at least one label"));
    }
    check_labels("namespace", labels)
}

fn check_labels(name: &str, labels: Vec<String>) -> Result<Vec<String>, Problem> {
    if labels.len() > DEPTH {
        return Err(unprocessable(format!("`{name}` may have at most {DEPTH} labels")));
    }
    for label in &labels {
        let wrong = if label.is_empty() {
            "is empty"
        } else if label.contains('.') {
            "has a dot in it"
        } else if label.len() > NAME_BYTES || label.contains('\0') {
            "is too long, or has a NUL in it"
        } else {
            continue;
        };
        return Err(unprocessable(format!("`{name}`: the label `{}` {wrong}", shown(label))));
    }
    Ok(labels)
}

fn check_key(key: String) -> Result<String, Problem> {
    if key.is_empty() || key.len() > NAME_BYTES || key.contains('\0') {
        let text = format!("`key` must be a text of 1 to {NAME_BYTES} bytes");
        return Err(unprocessable(text));
    }
    Ok(key)
}

/// A list of texts; empty when it is absent or null.
fn texts(fields: &mut Fields, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for value in fields.list(name) {
        match value {
            Value::String(text) => found.push(text),
            _ => {
                fields.wrong("string_type", name, "must be a list of strings");
                return Vec::new();
            }
        }
    }
    found
}

fn counted(fields: &mut Fields, name: &str, most: i64, default: i64) -> u32 {
    u32::try_from(errors::count(fields, name, 0..=most, default)).unwrap_or(u32::MAX)
}

fn used(refresh: bool) -> Use {
    if refresh { Use::Count } else { Use::Look }
}

// ## Items

/// `PUT /store/items`
async fn put(State(app): State<App>, request: Request) -> Result<StatusCode, Problem> {
    let scope = scope(request.headers())?;
    let mut fields = read_fields(&app, request).await?;
    let labels = texts(&mut fields, "namespace");
    let key = fields.text("key");
    let value = match fields.value("value") {
        Some(Value::Object(value)) => value,
        _ => {
            fields.wrong("dict_type", "value", "an object is required");
            Map::new()
        }
    };
    let index = index(&mut fields);
    let ttl = match fields.value("ttl") {
        None | Some(Value::Null) => None,
        Some(minutes) => {
            let minutes = minutes.as_f64().filter(|ttl| *ttl > 0.0 && *ttl <= LONGEST_MINUTES);
            if minutes.is_none() {
                let text = format!("must be minutes, more than 0 and at most {LONGEST_MINUTES}");
                fields.wrong("out_of_range", "ttl", text);
            }
            minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0))
        }
    };
    fields.finish().map_err(errors::invalid)?;
    let item = ItemSpec { namespace: namespace(labels)?, key: check_key(key)?, value, index, ttl };
    app.engine.put_item(scope, item).await.map_err(|error| {
        let is_full = error.code() == clearway_core::Code::LimitExceeded;
        let problem = Problem::from(error);
        if is_full { problem.status(StatusCode::UNPROCESSABLE_ENTITY) } else { problem }
    })?;
    Ok(StatusCode::NO_CONTENT)
}

fn index(fields: &mut Fields) -> ItemIndex {
    match fields.value("index") {
        None | Some(Value::Null) => ItemIndex::All,
        Some(Value::Bool(false)) => ItemIndex::None,
        Some(Value::Array(paths)) if paths.len() <= CONDITIONS => {
            let paths: Option<Vec<String>> =
                paths.iter().map(|path| path.as_str().map(ToOwned::to_owned)).collect();
            paths.map_or_else(
                || {
                    fields.wrong("list_type", "index", "must be a list of paths");
                    ItemIndex::All
                },
                ItemIndex::Paths,
            )
        }
        Some(_) => {
            fields.wrong("union", "index", "must be false, or a list of paths");
            ItemIndex::All
        }
    }
}

/// `GET /store/items?namespace=a.b&key=k`
async fn show(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let query = Query::parse(request.uri()).map_err(|invalid| errors::invalid(vec![invalid]))?;
    // Joined by dots, or one parameter per label.
    let labels = query.each("namespace").flat_map(|labels| labels.split('.'));
    let labels: Vec<String> =
        labels.filter(|label| !label.is_empty()).map(ToOwned::to_owned).collect();
    let key = query.get("key").ok_or_else(|| unprocessable("`key` is required"))?.to_owned();
    let refresh = query.get("refresh_ttl").is_none_or(|text| text != "false" && text != "0");
    // Text without a label is a label that cannot be.
    let labels = namespace(labels).map_err(|no| no.status(StatusCode::UNPROCESSABLE_ENTITY))?;
    let key = check_key(key)?;
    let scope = scope(request.headers())?;
    let found = app.engine.item(&scope, &labels, &key, used(refresh)).await?;
    Ok(Json(found.as_ref().map_or(Value::Null, shape)))
}

/// `DELETE /store/items`
async fn delete(State(app): State<App>, request: Request) -> Result<StatusCode, Problem> {
    let scope = scope(request.headers())?;
    let mut fields = read_fields(&app, request).await?;
    let labels = texts(&mut fields, "namespace");
    let key = fields.text("key");
    fields.finish().map_err(errors::invalid)?;
    app.engine.delete_item(&scope, &namespace(labels)?, &check_key(key)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

// ## Searching

/// `POST /store/items/search`
async fn search(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let scope = scope(request.headers())?;
    let mut fields = read_fields(&app, request).await?;
    let prefix = texts(&mut fields, "namespace_prefix");
    let filter = errors::object(&mut fields, "filter");
    let limit = counted(&mut fields, "limit", 1000, 10);
    let offset = counted(&mut fields, "offset", i64::from(u32::MAX), 0);
    let query = fields.nullable_text("query");
    let refresh = errors::switch(&mut fields, "refresh_ttl", true);
    fields.finish().map_err(errors::invalid)?;
    let prefix = check_labels("namespace_prefix", prefix)?;
    let filter = conditions(filter)?;
    let found = match limit {
        0 => Vec::new(),
        limit => {
            let search = ItemSearch { prefix, filter, offset, limit, ..ItemSearch::default() };
            app.engine.search_items(&scope, query.as_deref(), search, used(refresh)).await?
        }
    };
    let items: Vec<Value> = found
        .iter()
        .map(|found| {
            let mut item = shape(&found.item);
            item["score"] = found.score.into();
            item
        })
        .collect();
    Ok(Json(json!({"items": items})).into_response())
}

/// `{"field": value}`, or `{"field": {"$gte": value}}`.
///
/// # Errors
/// An operator that does not exist.
fn conditions(filter: Map<String, Value>) -> Result<Vec<Condition>, Problem> {
    let mut found = Vec::new();
    for (field, wanted) in filter {
        match wanted {
            Value::Object(operators) if operators.keys().any(|name| name.starts_with('$')) => {
                for (name, operand) in operators {
                    let test = test(&name)?;
                    found.push(Condition { field: field.clone(), test, operand });
                }
            }
            operand => found.push(Condition { field, test: Test::Equal, operand }),
        }
    }
    if found.len() > CONDITIONS {
        return Err(unprocessable(format!("`filter` may have at most {CONDITIONS} conditions")));
    }
    Ok(found)
}

fn test(operator: &str) -> Result<Test, Problem> {
    Ok(match operator {
        "$eq" => Test::Equal,
        "$ne" => Test::Unequal,
        "$gt" => Test::Greater,
        "$gte" => Test::GreaterOrEqual,
        "$lt" => Test::Less,
        "$lte" => Test::LessOrEqual,
        other => {
            let text = format!(
                "`filter`: there is no operator `{}`; there are $eq, $ne, $gt, $gte, $lt, $lte",
                shown(other)
            );
            return Err(unprocessable(text));
        }
    })
}

/// `POST /store/namespaces`
async fn namespaces(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    let scope = scope(request.headers())?;
    let mut fields = read_fields(&app, request).await?;
    let prefix = texts(&mut fields, "prefix");
    let suffix = texts(&mut fields, "suffix");
    let max_depth = match fields.value("max_depth") {
        None | Some(Value::Null) => None,
        Some(depth) => {
            let depth = depth.as_u64().filter(|depth| *depth > 0);
            if depth.is_none() {
                fields.wrong("out_of_range", "max_depth", "must be a whole number from 1 on");
            }
            depth.and_then(|depth| usize::try_from(depth).ok())
        }
    };
    let limit = counted(&mut fields, "limit", 1000, 100);
    let offset = counted(&mut fields, "offset", i64::from(u32::MAX), 0);
    fields.finish().map_err(errors::invalid)?;
    let found = match limit {
        0 => Vec::new(),
        limit => {
            let query = NamespaceQuery {
                prefix: check_labels("prefix", prefix)?,
                suffix: check_labels("suffix", suffix)?,
                max_depth,
                offset,
                limit,
            };
            app.engine.item_namespaces(&scope, query).await?
        }
    };
    Ok(Json(json!({"namespaces": found})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_values_or_operators() {
        let read = |filter: Value| conditions(filter.as_object().cloned().unwrap());
        let found = read(json!({"a": 1, "b": {"$gte": 2, "$lt": 9}, "c": {"d": 1}})).unwrap();
        let tests: Vec<(&str, Test)> =
            found.iter().map(|one| (one.field.as_str(), one.test)).collect();
        let wanted = [
            ("a", Test::Equal),
            ("b", Test::GreaterOrEqual),
            ("b", Test::Less),
            ("c", Test::Equal),
        ];
        assert_eq!(tests, wanted);
        let refused = read(json!({"a": {"$in": [1]}})).unwrap_err();
        assert_eq!(refused.status_code(), StatusCode::UNPROCESSABLE_ENTITY);
    }

    #[test]
    fn namespaces_have_labels_without_dots() {
        let label = |text: &str| vec![text.to_owned()];
        assert!(namespace(label("a b/ü")).is_ok());
        assert_eq!(namespace(Vec::new()).unwrap_err().status_code(), StatusCode::BAD_REQUEST);
        for bad in ["", "a.b", &"x".repeat(513), "\0"] {
            let refused = namespace(label(bad)).unwrap_err();
            assert_eq!(refused.status_code(), StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
        }
        assert!(namespace(vec!["a".to_owned(); 33]).is_err());
        assert!(check_key(String::new()).is_err());
    }
}
