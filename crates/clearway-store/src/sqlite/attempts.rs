//! Attempts at provider calls.

use clearway_core::{AttemptRecord, AttemptsOf, Timestamp};
use rusqlite::{Connection, Row};

use super::fail::Fail;
use super::rows::{Id, int, number};
use super::writer::{Operation, Tx};
use crate::rules;

/// Attempts of no run, which nobody waits for.
pub(super) struct Book(pub(super) Vec<AttemptRecord>);

impl Operation for Book {
    type Answer = ();
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        let oldest = tx.now.0.saturating_sub(rules::LOOSE_ATTEMPTS_MS);
        tx.run("DELETE FROM attempts WHERE run IS NULL AND at < ?1", [oldest])?;
        Ok(insert(tx, None, &self.0)?)
    }
}

pub(super) fn insert(
    tx: &Tx<'_>,
    run: Option<i64>,
    attempts: &[AttemptRecord],
) -> rusqlite::Result<()> {
    if attempts.is_empty() {
        return Ok(());
    }
    let mut statement = tx.conn.prepare_cached(
        "INSERT INTO attempts (run, at, call, node, number, provider, endpoint, model, key, class,
             phase, outcome, status, source, input_tokens, output_tokens, cached_tokens,
             reasoning_tokens, price, cost_micros, ms, first_output_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
             ?19, ?20, ?21, ?22)",
    )?;
    for attempt in attempts {
        statement.execute(rusqlite::params![
            run,
            attempt.at.0,
            attempt.call,
            attempt.node,
            attempt.number,
            attempt.provider,
            attempt.endpoint,
            attempt.model,
            attempt.key,
            attempt.class,
            attempt.phase,
            attempt.outcome,
            attempt.status,
            attempt.source,
            int(attempt.input_tokens),
            int(attempt.output_tokens),
            int(attempt.cached_tokens),
            int(attempt.reasoning_tokens),
            attempt.price.map(|price| serde_json::json!(price).to_string()),
            attempt.cost_micros.map(int),
            int(attempt.ms),
            attempt.first_output_ms.map(int),
        ])?;
    }
    Ok(())
}

pub(super) fn list(
    conn: &Connection,
    of: AttemptsOf,
    after: Option<i64>,
    limit: u32,
) -> Result<Vec<AttemptRecord>, Fail> {
    const COLUMNS: &str =
        "SELECT id, at, call, node, number, provider, endpoint, model, key, class, phase, outcome,
         status, source, input_tokens, output_tokens, cached_tokens, reasoning_tokens, price,
         cost_micros, ms, first_output_ms FROM attempts ";
    let limit = rules::page_size(limit) as i64;
    let found = match of {
        AttemptsOf::Run(run) => conn
            .prepare_cached(&format!(
                "{COLUMNS} WHERE run = (SELECT n FROM runs WHERE id = ?1) AND id > ?2
                 ORDER BY id LIMIT ?3"
            ))?
            .query_map((Id(run.0), after.unwrap_or(0), limit), record)?
            .collect::<rusqlite::Result<_>>()?,
        AttemptsOf::NoRun => conn
            .prepare_cached(&format!(
                "{COLUMNS} WHERE run IS NULL AND id < ?1 ORDER BY id DESC LIMIT ?2"
            ))?
            .query_map((after.unwrap_or(i64::MAX), limit), record)?
            .collect::<rusqlite::Result<_>>()?,
    };
    Ok(found)
}

fn record(row: &Row<'_>) -> rusqlite::Result<AttemptRecord> {
    let price: Option<String> = row.get(18)?;
    Ok(AttemptRecord {
        id: row.get(0)?,
        at: Timestamp(row.get(1)?),
        call: row.get(2)?,
        node: row.get(3)?,
        number: row.get(4)?,
        provider: row.get(5)?,
        endpoint: row.get(6)?,
        model: row.get(7)?,
        key: row.get(8)?,
        class: row.get(9)?,
        phase: row.get(10)?,
        outcome: row.get(11)?,
        status: row.get(12)?,
        source: row.get(13)?,
        input_tokens: number(row.get(14)?),
        output_tokens: number(row.get(15)?),
        cached_tokens: number(row.get(16)?),
        reasoning_tokens: number(row.get(17)?),
        price: price.and_then(|text| serde_json::from_str(&text).ok()),
        cost_micros: row.get::<_, Option<i64>>(19)?.map(number),
        ms: number(row.get(20)?),
        first_output_ms: row.get::<_, Option<i64>>(21)?.map(number),
    })
}
