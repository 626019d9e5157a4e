//! Assistants and their versions.

use clearway_core::Timestamp;
use rusqlite::types::FromSqlError;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::fail::Fail;
use super::rows::{Id, json};
use super::writer::{Operation, Tx};
use crate::assistants::{ASSISTANTS, VERSIONS};
use crate::{Assistant, AssistantPut, LatestAssistant, NewAssistant, rules};

const SELECT: &str = "SELECT id, tenant, owner, agent, version, name, description, data, created_at, \
     updated_at FROM assistants ";

fn assistant(row: &Row<'_>) -> rusqlite::Result<Assistant> {
    let mut data = json(row, 7)?;
    let mut take = |name: &str| -> rusqlite::Result<Map<String, Value>> {
        match data.get_mut(name).map(Value::take) {
            Some(Value::Object(map)) => Ok(map),
            _ => Err(FromSqlError::InvalidType.into()),
        }
    };
    Ok(Assistant {
        id: row.get::<_, Id>(0)?.0,
        tenant: row.get(1)?,
        owner: row.get(2)?,
        agent: row.get(3)?,
        version: row.get(4)?,
        name: row.get(5)?,
        description: row.get(6)?,
        config: take("config")?,
        context: take("context")?,
        metadata: take("metadata")?,
        created_at: Timestamp(row.get(8)?),
        updated_at: Timestamp(row.get(9)?),
    })
}

pub(super) struct Put(pub(super) NewAssistant);

impl Operation for Put {
    type Answer = AssistantPut;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<AssistantPut, Fail> {
        let NewAssistant { assistant: new, after } = &self.0;
        let known = latest(tx.conn, &new.tenant, new.id)?;
        match (&known, after) {
            (None, None) => {
                let sql = "SELECT count(*) FROM assistants WHERE tenant = ?1 AND latest = 1";
                let count: u32 =
                    tx.conn.prepare_cached(sql)?.query_row([&new.tenant], |row| row.get(0))?;
                if count >= ASSISTANTS {
                    return Ok(AssistantPut::TooMany);
                }
            }
            (None, Some(_)) => return Ok(AssistantPut::Gone),
            // The same again.
            (Some(known), _) if known.latest == *new => return Ok(AssistantPut::Stored),
            (Some(known), Some(after)) if known.newest == *after => {
                if known.newest >= VERSIONS {
                    return Ok(AssistantPut::TooMany);
                }
            }
            (Some(known), _) => return Ok(AssistantPut::Exists(Box::new(known.clone()))),
        }
        let sql = "UPDATE assistants SET latest = 0 WHERE tenant = ?1 AND id = ?2 AND latest = 1";
        tx.run(sql, (&new.tenant, Id(new.id)))?;
        tx.run(
            "INSERT INTO assistants (id, tenant, version, latest, owner, agent, name, description,
                 data, created_at, updated_at)
             VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            (
                Id(new.id),
                &new.tenant,
                new.version,
                &new.owner,
                &new.agent,
                &new.name,
                &new.description,
                new.data(),
                new.created_at.0,
                new.updated_at.0,
            ),
        )?;
        Ok(AssistantPut::Stored)
    }
}

pub(super) fn latest(
    conn: &Connection,
    tenant: &str,
    id: Uuid,
) -> rusqlite::Result<Option<LatestAssistant>> {
    let sql = format!("{SELECT} WHERE tenant = ?1 AND id = ?2 AND latest = 1");
    let found = conn.prepare_cached(&sql)?.query_row((tenant, Id(id)), assistant).optional()?;
    let Some(latest) = found else { return Ok(None) };
    let newest = conn
        .prepare_cached("SELECT max(version) FROM assistants WHERE tenant = ?1 AND id = ?2")?
        .query_row((tenant, Id(id)), |row| row.get(0))?;
    Ok(Some(LatestAssistant { latest, newest }))
}

pub(super) struct Select {
    pub(super) tenant: String,
    pub(super) id: Uuid,
    pub(super) version: u32,
}

impl Operation for Select {
    type Answer = Option<Assistant>;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<Option<Assistant>, Fail> {
        let Self { tenant, id, version } = self;
        let sql = format!("{SELECT} WHERE tenant = ?1 AND id = ?2 AND version = ?3");
        let chosen = tx
            .conn
            .prepare_cached(&sql)?
            .query_row((tenant, Id(*id), version), assistant)
            .optional()?;
        if chosen.is_some() {
            let own = "WHERE tenant = ?1 AND id = ?2";
            let sql = format!("UPDATE assistants SET latest = 0 {own} AND latest = 1");
            tx.run(&sql, (tenant, Id(*id)))?;
            let sql = format!("UPDATE assistants SET latest = 1 {own} AND version = ?3");
            tx.run(&sql, (tenant, Id(*id), version))?;
        }
        Ok(chosen)
    }
}

pub(super) struct Delete {
    pub(super) tenant: String,
    pub(super) id: Uuid,
}

impl Operation for Delete {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let sql = "DELETE FROM assistants WHERE tenant = ?1 AND id = ?2";
        Ok(tx.run(sql, (&self.tenant, Id(self.id)))? > 0)
    }
}

pub(super) fn list(
    conn: &Connection,
    tenant: &str,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Vec<Assistant>, Fail> {
    let sql = format!(
        "{SELECT} WHERE tenant = ?1 AND latest = 1 AND (?2 IS NULL OR id > ?2) ORDER BY id LIMIT ?3"
    );
    let found = conn
        .prepare_cached(&sql)?
        .query_map((tenant, after.map(Id), rules::page_size(limit) as i64), assistant)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found)
}

pub(super) fn versions(conn: &Connection, tenant: &str, id: Uuid) -> Result<Vec<Assistant>, Fail> {
    let sql = format!("{SELECT} WHERE tenant = ?1 AND id = ?2 ORDER BY version DESC");
    let found = conn
        .prepare_cached(&sql)?
        .query_map((tenant, Id(id)), assistant)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found)
}
