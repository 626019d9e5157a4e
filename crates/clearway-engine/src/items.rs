//! Items: what agents and applications remember beside threads, by namespace and key.
//!
//! Not here: how words are found (the store), names of fields on the wire (the doors).

use std::sync::Arc;
use std::time::Duration;

use clearway_core::{Code, Deadline};
use clearway_store::{FoundItem, Item, ItemPut, ItemScope, ItemSearch, NamespaceQuery, NewItem};
use clearway_upstream::{CallCx, EmbedRequest, Purpose};
use serde_json::{Map, Value};

use crate::Error;
use crate::clock::instant;
use crate::engine::{Engine, bounded};

/// An item as a caller gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct ItemSpec {
    pub namespace: Vec<String>,
    pub key: String,
    pub value: Map<String, Value>,
    pub index: ItemIndex,
    pub ttl: Option<Duration>,
}

/// By which of its words an item is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ItemIndex {
    #[default]
    All,
    None,
    /// Those at these paths: `a.b`, `list[*].c`, `$` for everything.
    Paths(Vec<String>),
}

/// Words of a query that count; more make it no better, only slower.
const QUERY_WORDS: usize = 64;

/// Items whose meaning a search compares: those that words find, and as many of the newest.
const COMPARED: u32 = 200;

/// How much of an item's text is compared.
const COMPARED_BYTES: usize = 8 << 10;

/// How long a provider may take to say what texts mean, before words alone decide.
const MEANING_LIMIT: Duration = Duration::from_secs(5);

/// How much of an item's text is indexed.
const INDEXED_BYTES: usize = 256 << 10;

impl Engine {
    /// Keeps an item, in the place of the one with its namespace and key.
    ///
    /// # Errors
    /// `limit_exceeded`, `store_unavailable`.
    pub async fn put_item(&self, scope: ItemScope, item: ItemSpec) -> Result<(), Error> {
        let ItemSpec { namespace, key, value, index, ttl } = item;
        let words = words(&value, &index);
        let item = NewItem { scope, namespace, key, value, words, ttl };
        match bounded(self.inner().store.put_item(item)).await? {
            ItemPut::Stored => Ok(()),
            ItemPut::TooMany => {
                let text = format!("there are at most {} items", clearway_store::ITEMS);
                Err(Error::new(Code::LimitExceeded, text))
            }
        }
    }

    /// An item; `use_it` lets it live on when it lives from its last use.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
        use_it: Use,
    ) -> Result<Option<Item>, Error> {
        let found = bounded(self.inner().store.item(scope, namespace, key)).await?;
        self.used(scope, found.iter(), use_it).await?;
        Ok(found)
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn delete_item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> Result<bool, Error> {
        Ok(bounded(self.inner().store.delete_item(scope, namespace, key)).await?)
    }

    /// Items that fit: by the words of `query` where it has any, and by its meaning where there is a
    /// model for that.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn search_items(
        &self,
        scope: &ItemScope,
        query: Option<&str>,
        mut search: ItemSearch,
        use_them: Use,
    ) -> Result<Vec<FoundItem>, Error> {
        search.words = query.map(split).unwrap_or_default();
        let model = self.upstream().embedding_models().into_iter().next();
        let found = match (query.filter(|text| !text.trim().is_empty()), model) {
            (Some(text), Some(model)) => self.by_meaning(scope, text, &model.name, search).await?,
            _ => bounded(self.inner().store.search_items(scope, search)).await?,
        };
        self.used(scope, found.iter().map(|found| &found.item), use_them).await?;
        Ok(found)
    }

    /// What the words find, and the newest others, in the order that words and meaning make together; the
    /// score is the likeness of meaning. Without an answer of the provider words alone decide.
    async fn by_meaning(
        &self,
        scope: &ItemScope,
        text: &str,
        model: &str,
        search: ItemSearch,
    ) -> Result<Vec<FoundItem>, Error> {
        let store = &self.inner().store;
        let page = |words| ItemSearch { words, offset: 0, limit: COMPARED, ..search.clone() };
        let mut found = match search.words.is_empty() {
            true => Vec::new(),
            false => bounded(store.search_items(scope, page(search.words.clone()))).await?,
        };
        let by_words = found.len();
        let newest = ItemSearch { indexed: true, ..page(Vec::new()) };
        for one in bounded(store.search_items(scope, newest)).await? {
            let same = |known: &FoundItem| {
                known.item.key == one.item.key && known.item.namespace == one.item.namespace
            };
            if !found[..by_words].iter().any(same) {
                found.push(one);
            }
        }
        let (skip, limit) = (search.offset as usize, search.limit as usize);
        let Some(likeness) = self.likeness(scope, text, model, &found).await else {
            found.truncate(by_words);
            return Ok(found.into_iter().skip(skip).take(limit).collect());
        };
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_by(|one, other| likeness[*other].total_cmp(&likeness[*one]));
        // Places rather than scores: those of words and of meaning cannot be compared.
        let mut placed: Vec<(f64, usize)> = order
            .into_iter()
            .enumerate()
            .map(|(place, at)| {
                let words = if at < by_words { share(at) } else { 0.0 };
                (share(place) + words, at)
            })
            .collect();
        placed.sort_by(|one, other| other.0.total_cmp(&one.0));
        let mut found: Vec<Option<FoundItem>> = found.into_iter().map(Some).collect();
        let pick = |(_, at): (f64, usize)| {
            let score = Some(f64::from(likeness[at]));
            Some(FoundItem { score, ..found[at].take()? })
        };
        Ok(placed.into_iter().skip(skip).take(limit).filter_map(pick).collect())
    }

    /// How like the text each item is, from -1 to 1. `None` when the provider does not say in time.
    async fn likeness(
        &self,
        scope: &ItemScope,
        text: &str,
        model: &str,
        items: &[FoundItem],
    ) -> Option<Vec<f32>> {
        let upstream = self.upstream();
        let ask = async |texts: Vec<Arc<str>>, purpose| {
            let deadline = Deadline::after(instant(), MEANING_LIMIT);
            let tenant = scope.tenant.as_str().into();
            let cx = CallCx { tenant, ..CallCx::new(deadline, format!("items-{}", self.new_id())) };
            let model = model.to_owned();
            let request = EmbedRequest { model, texts, purpose, dimensions: None };
            upstream.embed(cx, request).await.ok().map(|answer| answer.vectors)
        };
        let whole = |found: &FoundItem| -> Arc<str> {
            let text = words(&found.item.value, &ItemIndex::All);
            let end = text.floor_char_boundary(COMPARED_BYTES);
            // A model is not asked about nothing.
            if text.trim().is_empty() { "-".into() } else { text[..end].into() }
        };
        let query = ask(vec![text.into()], Purpose::Query).await?.pop()?.ok()?;
        if items.is_empty() {
            return Some(Vec::new());
        }
        let vectors = ask(items.iter().map(whole).collect(), Purpose::Document).await?;
        let like = |vector: Result<Arc<[f32]>, _>| vector.map_or(-1.0, |one| cosine(&query, &one));
        Some(vectors.into_iter().map(like).collect())
    }

    /// # Errors
    /// `store_unavailable`.
    pub async fn item_namespaces(
        &self,
        scope: &ItemScope,
        query: NamespaceQuery,
    ) -> Result<Vec<Vec<String>>, Error> {
        Ok(bounded(self.inner().store.item_namespaces(scope, query)).await?)
    }

    async fn used(
        &self,
        scope: &ItemScope,
        items: impl Iterator<Item = &Item>,
        how: Use,
    ) -> Result<(), Error> {
        let living = items.filter(|item| item.ttl.is_some());
        let items: Vec<_> = living.map(|item| (item.namespace.clone(), item.key.clone())).collect();
        if how == Use::Look || items.is_empty() {
            return Ok(());
        }
        Ok(bounded(self.inner().store.touch_items(scope, items)).await?)
    }
}

/// Whether reading counts as a use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Count,
    Look,
}

/// The worth of a place in an order.
fn share(place: usize) -> f64 {
    1.0 / (60.0 + place as f64)
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let dot: f32 = one.iter().zip(other).map(|(a, b)| a * b).sum();
    let length = |vector: &[f32]| vector.iter().map(|a| a * a).sum::<f32>().sqrt();
    let lengths = length(one) * length(other);
    if lengths > 0.0 { dot / lengths } else { -1.0 }
}

fn split(query: &str) -> Vec<String> {
    query
        .split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .take(QUERY_WORDS)
        .map(ToOwned::to_owned)
        .collect()
}

/// The text by whose words an item is found.
fn words(value: &Map<String, Value>, index: &ItemIndex) -> String {
    let mut text = String::new();
    match index {
        ItemIndex::None => {}
        ItemIndex::All => value.values().for_each(|value| say(value, &mut text)),
        ItemIndex::Paths(paths) => {
            for path in paths {
                if path == "$" {
                    value.values().for_each(|value| say(value, &mut text));
                } else {
                    let (first, rest) = step(path);
                    if let Some(value) = value.get(first) {
                        at_path(value, rest, &mut text);
                    }
                }
            }
        }
    }
    text
}

/// The first name of a path, and what follows it.
fn step(path: &str) -> (&str, &str) {
    let end = path.find(['.', '[']).unwrap_or(path.len());
    (&path[..end], path[end..].trim_start_matches('.'))
}

fn at_path(value: &Value, path: &str, text: &mut String) {
    if path.is_empty() {
        return say(value, text);
    }
    if let Some(rest) = path.strip_prefix('[') {
        let Some((at, rest)) = rest.split_once(']') else { return };
        let rest = rest.trim_start_matches('.');
        let Value::Array(items) = value else { return };
        return match at {
            "*" => items.iter().for_each(|item| at_path(item, rest, text)),
            at => {
                let at = match at.parse::<i64>() {
                    Ok(at) if at < 0 => items.len().checked_sub(at.unsigned_abs() as usize),
                    Ok(at) => usize::try_from(at).ok(),
                    Err(_) => None,
                };
                if let Some(item) = at.and_then(|at| items.get(at)) {
                    at_path(item, rest, text);
                }
            }
        };
    }
    let (first, rest) = step(path);
    match value {
        Value::Object(map) => {
            if first == "*" {
                map.values().for_each(|value| at_path(value, rest, text));
            } else if let Some(value) = map.get(first) {
                at_path(value, rest, text);
            }
        }
        Value::Array(items) if first == "*" => {
            items.iter().for_each(|item| at_path(item, rest, text));
        }
        _ => {}
    }
}

/// The words of a value, without the names of its fields.
fn say(value: &Value, text: &mut String) {
    if text.len() >= INDEXED_BYTES {
        return;
    }
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => {
            text.push_str(&number.to_string());
            text.push(' ');
        }
        Value::String(said) => {
            let end = said.floor_char_boundary(INDEXED_BYTES - text.len());
            text.push_str(&said[..end]);
            text.push(' ');
        }
        Value::Array(items) => items.iter().for_each(|item| say(item, text)),
        Value::Object(map) => map.values().for_each(|value| say(value, text)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found_by(index: ItemIndex) -> String {
        let value = json!({
            "title": "green tea",
            "stars": 3,
            "in": {"deep": ["one", {"two": "three"}], "other": "four"},
            "flag": true,
        });
        words(value.as_object().unwrap(), &index).trim().to_owned()
    }

    #[test]
    fn items_are_found_by_their_values_or_by_what_paths_name() {
        assert_eq!(found_by(ItemIndex::All), "green tea 3 one three four");
        assert_eq!(found_by(ItemIndex::None), "");
        let paths = |paths: &[&str]| {
            found_by(ItemIndex::Paths(paths.iter().map(|&path| path.to_owned()).collect()))
        };
        assert_eq!(paths(&["title", "in.other"]), "green tea four");
        assert_eq!(paths(&["in.deep[0]", "in.deep[*].two", "in.deep[-1]"]), "one three three");
        assert_eq!(paths(&["in.*"]), "one three four");
        assert_eq!(paths(&["$", "nothing", "in.deep[", "in.deep[x]", "title.more"]).len(), 26);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let value = json!({"text": "ä".repeat(INDEXED_BYTES)});
        let text = words(value.as_object().unwrap(), &ItemIndex::All);
        assert!(text.len() <= INDEXED_BYTES + 1);
        assert_eq!(split("What's new? "), ["What", "s", "new"]);
        assert_eq!(split(&"a ".repeat(1000)).len(), QUERY_WORDS);
    }

    #[test]
    fn likeness_is_about_directions() {
        assert!((cosine(&[1.0, 2.0], &[2.0, 4.0]) - 1.0).abs() < 1e-6);
        assert!(cosine(&[1.0, 0.0], &[0.0, 1.0]).abs() < 1e-6);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), -1.0);
    }
}
