//! Items and their words.

use std::time::Duration;

use clearway_core::Timestamp;
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::Value;

use super::fail::Fail;
use super::rows::{blob, from_json, ms, pack, unpack};
use super::writer::{Operation, Tx};
use crate::items::{joined, labels};
use crate::{
    FoundItem, ITEMS, Item, ItemPut, ItemScope, ItemSearch, NamespaceQuery, NewItem, rules,
};

/// Expired items that one operation drops at most.
const EXPIRE_CHUNK: usize = 128;

fn owner(scope: &ItemScope) -> &str {
    scope.owner.as_deref().unwrap_or_default()
}

pub(super) struct Put(pub(super) NewItem);

impl Operation for Put {
    type Answer = ItemPut;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<ItemPut, Fail> {
        let NewItem { scope, namespace, key, value, words, ttl } = &self.0;
        expire(tx)?;
        let space = joined(namespace);
        let known: Option<(i64, i64)> = tx
            .conn
            .prepare_cached(
                "SELECT id, created_at FROM items
                 WHERE tenant = ?1 AND owner = ?2 AND space = ?3 AND key = ?4",
            )?
            .query_row((&scope.tenant, owner(scope), &space, key), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let created_at = match known {
            Some((id, created_at)) => {
                tx.run("DELETE FROM items WHERE id = ?1", [id])?;
                created_at
            }
            None if count(tx.conn, &scope.tenant)? >= i64::from(ITEMS) => {
                return Ok(ItemPut::TooMany);
            }
            None => tx.now.0,
        };
        let data = Value::from(value.clone()).to_string();
        let ttl = ttl.map(ms);
        tx.run(
            "INSERT INTO items (tenant, owner, space, key, data, ttl, expires_at, created_at,
                 updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            (
                &scope.tenant,
                owner(scope),
                &space,
                key,
                pack(data.as_bytes()),
                ttl,
                ttl.map(|ttl| tx.now.0.saturating_add(ttl)),
                created_at,
                tx.now.0,
            ),
        )?;
        if !words.is_empty() {
            let id = tx.conn.last_insert_rowid();
            tx.run("INSERT INTO items_words (rowid, words) VALUES (?1, ?2)", (id, words))?;
        }
        Ok(ItemPut::Stored)
    }
}

fn count(conn: &Connection, tenant: &str) -> rusqlite::Result<i64> {
    let found = conn
        .prepare_cached("SELECT n FROM items_count WHERE tenant = ?1")?
        .query_row([tenant], |row| row.get(0))
        .optional()?;
    Ok(found.unwrap_or(0))
}

/// Drops some of what has expired.
pub(super) fn expire(tx: &Tx<'_>) -> rusqlite::Result<usize> {
    tx.run(
        "DELETE FROM items WHERE id IN (SELECT id FROM items INDEXED BY items_expiry
             WHERE expires_at IS NOT NULL AND expires_at <= ?1 LIMIT ?2)",
        (tx.now.0, EXPIRE_CHUNK as i64),
    )
}

pub(super) struct Delete {
    pub(super) scope: ItemScope,
    pub(super) namespace: Vec<String>,
    pub(super) key: String,
}

impl Operation for Delete {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let sql = "DELETE FROM items WHERE tenant = ?1 AND owner = ?2 AND space = ?3 AND key = ?4";
        let Self { scope, namespace, key } = self;
        Ok(tx.run(sql, (&scope.tenant, owner(scope), joined(namespace), key))? > 0)
    }
}

/// Items were used: those that live from their last use live on.
pub(super) struct Touch {
    pub(super) scope: ItemScope,
    pub(super) items: Vec<(Vec<String>, String)>,
}

impl Operation for Touch {
    type Answer = ();
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        for (namespace, key) in &self.items {
            tx.run(
                "UPDATE items SET expires_at = ?5 + ttl
                 WHERE tenant = ?1 AND owner = ?2 AND space = ?3 AND key = ?4
                     AND ttl IS NOT NULL AND expires_at > ?5",
                (&self.scope.tenant, owner(&self.scope), joined(namespace), key, tx.now.0),
            )?;
        }
        Ok(())
    }
}

/// Columns in the order in which [`item`] reads them.
const COLUMNS: &str = "i.space, i.key, i.data, i.ttl, i.created_at, i.updated_at";

fn item(row: &Row<'_>) -> rusqlite::Result<Item> {
    let Value::Object(value) = from_json(&unpack(blob(row, 2)?)?)? else {
        return Err(FromSqlError::InvalidType.into());
    };
    let ttl: Option<i64> = row.get(3)?;
    Ok(Item {
        namespace: labels(row.get_ref(0)?.as_str()?),
        key: row.get(1)?,
        value,
        ttl: ttl.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        created_at: Timestamp(row.get(4)?),
        updated_at: Timestamp(row.get(5)?),
    })
}

/// Whose, not expired, and within a namespace: parameters 1 to 6.
const WITHIN: &str =
    "i.tenant = ?1 AND i.owner = ?2 AND (i.expires_at IS NULL OR i.expires_at > ?3)
     AND (?4 = '' OR i.space = ?4 OR (i.space >= ?5 AND i.space < ?6))";

pub(super) fn find(
    conn: &Connection,
    scope: &ItemScope,
    namespace: &[String],
    key: &str,
    now: Timestamp,
) -> Result<Option<Item>, Fail> {
    let sql = format!(
        "SELECT {COLUMNS} FROM items i WHERE i.tenant = ?1 AND i.owner = ?2 AND i.space = ?3
             AND i.key = ?4 AND (i.expires_at IS NULL OR i.expires_at > ?5)"
    );
    let found = conn
        .prepare_cached(&sql)?
        .query_row((&scope.tenant, owner(scope), joined(namespace), key, now.0), item)
        .optional()?;
    Ok(found)
}

pub(super) fn search(
    conn: &Connection,
    scope: &ItemScope,
    search: &ItemSearch,
    now: Timestamp,
) -> Result<Vec<FoundItem>, Fail> {
    let prefix = joined(&search.prefix);
    // Everything below `a.b` sorts between `a.b.` and `a.b/`.
    let (from, to) = (format!("{prefix}."), format!("{prefix}/"));
    let words = search
        .words
        .iter()
        .map(|word| format!("\"{}\"", word.replace('"', "\"\"")))
        .collect::<Vec<_>>()
        .join(" OR ");
    // Only ids are sorted; values are read as far as they are wanted.
    let sql = if words.is_empty() {
        format!(
            "SELECT i.id, NULL FROM items i WHERE {WITHIN} AND ?7 = '' AND (NOT ?8
                 OR EXISTS (SELECT 1 FROM items_words WHERE items_words.rowid = i.id))
             ORDER BY i.updated_at DESC, i.id DESC"
        )
    } else {
        format!(
            "SELECT i.id, -bm25(items_words) AS score FROM items_words
                 JOIN items i ON i.id = items_words.rowid
             WHERE items_words MATCH ?7 AND {WITHIN} AND ?8 = ?8 ORDER BY score DESC, i.id DESC"
        )
    };
    let mut statement = conn.prepare_cached(&sql)?;
    let whose = (&scope.tenant, owner(scope), now.0, &prefix, &from, &to, &words, search.indexed);
    let mut rows = statement.query(whose)?;
    let mut values =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM items i WHERE i.id = ?1"))?;
    let (mut skip, limit) = (search.offset, rules::page_size(search.limit));
    let mut found = Vec::new();
    while found.len() < limit
        && let Some(row) = rows.next()?
    {
        let item = values.query_row([row.get::<_, i64>(0)?], item)?;
        if !search.filter.iter().all(|condition| condition.holds(&item.value)) {
            continue;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        found.push(FoundItem { item, score: row.get(1)? });
    }
    Ok(found)
}

pub(super) fn namespaces(
    conn: &Connection,
    scope: &ItemScope,
    query: &NamespaceQuery,
    now: Timestamp,
) -> Result<Vec<Vec<String>>, Fail> {
    let spaces = conn
        .prepare_cached(
            "SELECT DISTINCT space FROM items WHERE tenant = ?1 AND owner = ?2
                 AND (expires_at IS NULL OR expires_at > ?3)",
        )?
        .query_map((&scope.tenant, owner(scope), now.0), |row| {
            Ok(labels(row.get_ref(0)?.as_str()?))
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(query.select(spaces.into_iter()))
}
