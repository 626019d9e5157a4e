//! Assistants and items of [`super::MemStore`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clearway_core::Timestamp;
use uuid::Uuid;

use super::data::Data;
use crate::assistants::{ASSISTANTS, VERSIONS};
use crate::items::{ITEMS, joined};
use crate::rules;
use crate::types::*;

#[derive(Clone, Debug, Default)]
pub(super) struct Memories {
    /// By version, and which one runs take.
    assistants: BTreeMap<(String, Uuid), (BTreeMap<u32, Assistant>, u32)>,
    items: BTreeMap<(ItemScope, String, String), Row>,
    writes: u64,
}

#[derive(Clone, Debug)]
struct Row {
    item: Item,
    words: BTreeSet<String>,
    expires_at: Option<Timestamp>,
    /// Order of writing.
    n: u64,
}

impl Row {
    fn lives(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }
}

impl Data {
    // ## Assistants

    pub(super) fn put_assistant(&mut self, new: &NewAssistant) -> AssistantPut {
        let NewAssistant { assistant, after } = new;
        let known = self.assistant(&assistant.tenant, assistant.id);
        match (known, after) {
            (None, None) => {
                let own = |(tenant, _): &&(String, Uuid)| *tenant == assistant.tenant;
                let count = self.memories.assistants.keys().filter(own).count();
                if count >= ASSISTANTS as usize {
                    return AssistantPut::TooMany;
                }
            }
            (None, Some(_)) => return AssistantPut::Gone,
            (Some(known), _) if known.latest == *assistant => return AssistantPut::Stored,
            (Some(known), Some(after)) if known.newest == *after => {
                if known.newest >= VERSIONS {
                    return AssistantPut::TooMany;
                }
            }
            (Some(known), _) => return AssistantPut::Exists(Box::new(known)),
        }
        let key = (assistant.tenant.clone(), assistant.id);
        let (versions, latest) = self.memories.assistants.entry(key).or_default();
        versions.insert(assistant.version, assistant.clone());
        *latest = assistant.version;
        self.synced();
        AssistantPut::Stored
    }

    pub(super) fn assistant(&self, tenant: &str, id: Uuid) -> Option<LatestAssistant> {
        let (versions, latest) = self.memories.assistants.get(&(tenant.to_owned(), id))?;
        let newest = versions.last_key_value().map_or(0, |(newest, _)| *newest);
        Some(LatestAssistant { latest: versions.get(latest)?.clone(), newest })
    }

    pub(super) fn assistants(
        &self,
        tenant: &str,
        after: Option<Uuid>,
        limit: u32,
    ) -> Vec<Assistant> {
        let all = self.memories.assistants.iter();
        all.filter(|((of, id), _)| of == tenant && after.is_none_or(|after| *id > after))
            .filter_map(|(_, (versions, latest))| versions.get(latest).cloned())
            .take(rules::page_size(limit))
            .collect()
    }

    pub(super) fn assistant_versions(&self, tenant: &str, id: Uuid) -> Vec<Assistant> {
        let found = self.memories.assistants.get(&(tenant.to_owned(), id));
        found.map(|(versions, _)| versions.values().rev().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn select_assistant(
        &mut self,
        tenant: &str,
        id: Uuid,
        version: u32,
    ) -> Option<Assistant> {
        let key = (tenant.to_owned(), id);
        let (versions, latest) = self.memories.assistants.get_mut(&key)?;
        let chosen = versions.get(&version)?.clone();
        *latest = version;
        self.synced();
        Some(chosen)
    }

    pub(super) fn delete_assistant(&mut self, tenant: &str, id: Uuid) -> bool {
        self.synced();
        self.memories.assistants.remove(&(tenant.to_owned(), id)).is_some()
    }

    // ## Items

    pub(super) fn put_item(&mut self, new: &NewItem, now: Timestamp) -> ItemPut {
        let items = &mut self.memories.items;
        items.retain(|_, row| row.lives(now));
        let key = (new.scope.clone(), joined(&new.namespace), new.key.clone());
        let own = |(scope, ..): &&(ItemScope, String, String)| scope.tenant == new.scope.tenant;
        let known = items.get(&key).map(|row| row.item.created_at);
        if known.is_none() && items.keys().filter(own).count() >= ITEMS as usize {
            return ItemPut::TooMany;
        }
        self.memories.writes += 1;
        let row = Row {
            item: Item {
                namespace: new.namespace.clone(),
                key: new.key.clone(),
                value: new.value.clone(),
                ttl: new.ttl,
                created_at: known.unwrap_or(now),
                updated_at: now,
            },
            words: words(&new.words),
            expires_at: new.ttl.map(|ttl| now.plus(ttl)),
            n: self.memories.writes,
        };
        self.memories.items.insert(key, row);
        self.synced();
        ItemPut::Stored
    }

    pub(super) fn item(
        &self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
        now: Timestamp,
    ) -> Option<Item> {
        let key = (scope.clone(), joined(namespace), key.to_owned());
        let row = self.memories.items.get(&key)?;
        row.lives(now).then(|| row.item.clone())
    }

    pub(super) fn delete_item(
        &mut self,
        scope: &ItemScope,
        namespace: &[String],
        key: &str,
    ) -> bool {
        self.synced();
        let key = (scope.clone(), joined(namespace), key.to_owned());
        self.memories.items.remove(&key).is_some()
    }

    pub(super) fn touch_items(
        &mut self,
        scope: &ItemScope,
        items: &[(Vec<String>, String)],
        now: Timestamp,
    ) {
        for (namespace, key) in items {
            let key = (scope.clone(), joined(namespace), key.clone());
            if let Some(row) = self.memories.items.get_mut(&key)
                && let Some(ttl) = row.item.ttl
                && row.lives(now)
            {
                row.expires_at = Some(now.plus(Duration::max(ttl, Duration::ZERO)));
            }
        }
    }

    fn items_of<'a>(
        &'a self,
        scope: &'a ItemScope,
        now: Timestamp,
    ) -> impl Iterator<Item = &'a Row> {
        let all = self.memories.items.iter();
        all.filter(move |((of, ..), row)| of == scope && row.lives(now)).map(|(_, row)| row)
    }

    pub(super) fn search_items(
        &self,
        scope: &ItemScope,
        search: &ItemSearch,
        now: Timestamp,
    ) -> Vec<FoundItem> {
        let wanted: BTreeSet<String> = search.words.iter().flat_map(|word| words(word)).collect();
        let hits = |row: &Row| row.words.intersection(&wanted).count();
        let mut found: Vec<&Row> = self
            .items_of(scope, now)
            .filter(|row| row.item.namespace.starts_with(&search.prefix))
            .filter(|row| search.filter.iter().all(|condition| condition.holds(&row.item.value)))
            .filter(|row| search.words.is_empty() || hits(row) > 0)
            .filter(|row| !search.indexed || !row.words.is_empty())
            .collect();
        found.sort_by_key(|row| std::cmp::Reverse((hits(row), row.item.updated_at, row.n)));
        found
            .into_iter()
            .skip(search.offset as usize)
            .take(rules::page_size(search.limit))
            .map(|row| FoundItem {
                item: row.item.clone(),
                score: (!search.words.is_empty()).then(|| hits(row) as f64),
            })
            .collect()
    }

    pub(super) fn item_namespaces(
        &self,
        scope: &ItemScope,
        query: &NamespaceQuery,
        now: Timestamp,
    ) -> Vec<Vec<String>> {
        query.select(self.items_of(scope, now).map(|row| row.item.namespace.clone()))
    }
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|letter: char| !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}
