//! Outputs of nodes that may be used again.

use std::time::Duration;

use clearway_core::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde_json::Value;

use super::fail::Fail;
use super::rows::{blob, from_json, ms, pack, unpack};
use super::writer::{Operation, Tx};
use crate::rules;

pub(super) fn find(
    conn: &Connection,
    tenant: &str,
    key: &[u8; 32],
    now: Timestamp,
) -> Result<Option<Value>, Fail> {
    let found = conn
        .prepare_cached(
            "SELECT data FROM node_cache WHERE tenant = ?1 AND key = ?2 AND expires_at > ?3",
        )?
        .query_row((tenant, &key[..], now.0), |row| from_json(&unpack(blob(row, 0)?)?))
        .optional()?;
    Ok(found)
}

pub(super) struct Keep {
    pub(super) tenant: String,
    pub(super) key: [u8; 32],
    pub(super) value: Value,
    pub(super) lifetime: Duration,
}

impl Operation for Keep {
    type Answer = ();
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        tx.run("DELETE FROM node_cache WHERE expires_at <= ?1", [tx.now.0])?;
        tx.run(
            "INSERT OR REPLACE INTO node_cache (tenant, key, expires_at, data)
             VALUES (?1, ?2, ?3, ?4)",
            (
                &self.tenant,
                &self.key[..],
                tx.now.0.saturating_add(ms(self.lifetime)),
                pack(self.value.to_string().as_bytes()),
            ),
        )?;
        // The oldest give way.
        tx.run(
            "DELETE FROM node_cache WHERE tenant = ?1 AND id <= (SELECT id FROM node_cache
                 WHERE tenant = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            (&self.tenant, rules::CACHED_OUTPUTS as i64),
        )?;
        Ok(())
    }
}
