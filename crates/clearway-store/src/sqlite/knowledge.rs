//! Documents, collections and files.

use bytes::Bytes;
use clearway_core::Timestamp;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use uuid::Uuid;

use super::SqliteStore;
use super::fail::Fail;
use super::rows::{Id, blob, int, json, number, pack, unpack};
use super::writer::{Operation, Tx};
use crate::error::Result;
use crate::knowledge::*;

#[async_trait::async_trait]
impl KnowledgeStore for SqliteStore {
    async fn put_document(&self, new: NewDocument) -> Result<DocumentStored> {
        self.queue.write(Put(new)).await
    }

    async fn touch_document(&self, id: Uuid, size_bytes: u64, modified_ms: i64) -> Result<bool> {
        self.queue.write(Touch { id, size_bytes, modified_ms }).await
    }

    async fn drop_documents(&self, documents: Vec<Uuid>) -> Result<u64> {
        self.queue.write(Drop(documents)).await
    }

    async fn documents(&self, query: DocumentQuery) -> Result<Vec<DocumentRecord>> {
        self.readers.read(move |conn| list(conn, &query)).await
    }

    async fn document_contents(
        &self,
        tenant: &str,
        source: &str,
        after: u64,
        max_bytes: usize,
    ) -> Result<Vec<(DocumentRecord, DocumentContent)>> {
        let (tenant, source) = (tenant.to_owned(), source.to_owned());
        self.readers.read(move |conn| contents(conn, &tenant, &source, after, max_bytes)).await
    }

    async fn document(&self, id: Uuid) -> Result<Option<(DocumentRecord, DocumentContent)>> {
        self.readers.read(move |conn| one(conn, id)).await
    }

    async fn keep_vectors(&self, model: &str, vectors: Vec<(ChunkHash, Bytes)>) -> Result<()> {
        self.queue.write(KeepVectors { model: model.to_owned(), vectors }).await
    }

    async fn vectors(
        &self,
        model: &str,
        hashes: Vec<ChunkHash>,
    ) -> Result<Vec<(ChunkHash, Bytes)>> {
        let model = model.to_owned();
        self.readers.read(move |conn| vectors(conn, &model, &hashes)).await
    }

    async fn put_collection(&self, collection: Collection, limit: u32) -> Result<bool> {
        self.queue.write(PutCollection { collection, limit }).await
    }

    async fn collections(&self, query: OwnedQuery) -> Result<Vec<Collection>> {
        self.readers.read(move |conn| collections(conn, &query)).await
    }

    async fn drop_collection(&self, id: Uuid) -> Result<bool> {
        self.queue.write(DropCollection(id)).await
    }

    async fn put_file(
        &self,
        file: FileRecord,
        bytes: Bytes,
        limits: FileLimits,
    ) -> Result<FileStored> {
        self.queue.write(PutFile { file, bytes, limits }).await
    }

    async fn files(&self, query: OwnedQuery) -> Result<Vec<FileRecord>> {
        self.readers.read(move |conn| files(conn, &query)).await
    }

    async fn file_bytes(&self, id: Uuid) -> Result<Option<Bytes>> {
        self.readers.read(move |conn| file_bytes(conn, id)).await
    }

    async fn drop_file(&self, id: Uuid) -> Result<bool> {
        self.queue.write(DropFile(id)).await
    }
}

// ## Documents

const COLUMNS: &str = "SELECT n, id, tenant, source, path, owner, state, hash, size, modified_ms, \
     recipe, file, chunks, about, created_at, changed_at FROM kb_documents ";

fn record(row: &Row<'_>) -> rusqlite::Result<DocumentRecord> {
    Ok(DocumentRecord {
        n: number(row.get(0)?),
        id: row.get::<_, Id>(1)?.0,
        tenant: row.get(2)?,
        source: row.get(3)?,
        path: row.get(4)?,
        owner: row.get(5)?,
        state: match row.get::<_, i64>(6)? {
            0 => DocumentState::Pending,
            1 => DocumentState::Indexed,
            _ => DocumentState::Failed,
        },
        hash: row.get(7)?,
        size_bytes: number(row.get(8)?),
        modified_ms: row.get(9)?,
        recipe: row.get(10)?,
        file: row.get::<_, Option<Id>>(11)?.map(|id| id.0),
        chunks: row.get(12)?,
        about: json(row, 13)?,
        created_at: Timestamp(row.get(14)?),
        changed_at: Timestamp(row.get(15)?),
    })
}

const fn state_number(state: DocumentState) -> i64 {
    match state {
        DocumentState::Pending => 0,
        DocumentState::Indexed => 1,
        DocumentState::Failed => 2,
    }
}

struct Put(NewDocument);

impl Operation for Put {
    type Answer = DocumentStored;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<DocumentStored, Fail> {
        let new = &self.0;
        let known: Option<(i64, Id)> = tx
            .conn
            .prepare_cached(
                "SELECT n, id FROM kb_documents WHERE tenant = ?1 AND source = ?2 AND path = ?3",
            )?
            .query_row((&new.tenant, &new.source, &new.path), |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some(wanted) = new.only_if
            && known.as_ref().is_none_or(|(_, id)| id.0 != wanted)
        {
            return Ok(DocumentStored::Gone);
        }
        let (n, id, old) = match known {
            Some((n, id)) => (n, id.0, hashes_of(tx, n)?),
            None => {
                let count: u32 = tx
                    .conn
                    .prepare_cached(
                        "SELECT count(*) FROM kb_documents WHERE tenant = ?1 AND source = ?2",
                    )?
                    .query_row((&new.tenant, &new.source), |row| row.get(0))?;
                if count >= new.limit {
                    return Ok(DocumentStored::TooMany);
                }
                tx.run(
                    "INSERT INTO kb_documents (id, tenant, source, path, state, hash, size,
                         modified_ms, recipe, chunks, about, created_at, changed_at)
                     VALUES (?1, ?2, ?3, ?4, 0, x'', 0, 0, '', 0, '{}', ?5, ?5)",
                    (Id(new.id), &new.tenant, &new.source, &new.path, tx.now.0),
                )?;
                (tx.conn.last_insert_rowid(), new.id, Vec::new())
            }
        };
        let body = (!new.content.body.is_empty()).then(|| pack(&new.content.body));
        tx.run(
            "UPDATE kb_documents SET owner = ?2, state = ?3, hash = ?4, size = ?5,
                 modified_ms = ?6, recipe = ?7, file = ?8, chunks = ?9, about = ?10, body = ?11,
                 changed_at = ?12 WHERE n = ?1",
            (
                n,
                &new.owner,
                state_number(new.state),
                &new.hash,
                int(new.size_bytes),
                new.modified_ms,
                &new.recipe,
                new.file.map(Id),
                new.content.chunks.len() as i64,
                new.about.to_string(),
                body,
                tx.now.0,
            ),
        )?;
        tx.run("DELETE FROM kb_chunks WHERE document = ?1", [n])?;
        for (ord, chunk) in new.content.chunks.iter().enumerate() {
            tx.run(
                "INSERT INTO kb_chunks (document, ord, hash, data) VALUES (?1, ?2, ?3, ?4)",
                (n, ord as i64, &chunk.hash[..], pack(&chunk.data)),
            )?;
        }
        drop_unused_vectors(tx, &old)?;
        Ok(DocumentStored::Stored(id))
    }
}

fn hashes_of(tx: &Tx<'_>, n: i64) -> Result<Vec<ChunkHash>, Fail> {
    let mut statement = tx.conn.prepare_cached("SELECT hash FROM kb_chunks WHERE document = ?1")?;
    let hashes = statement.query_map([n], |row| row.get(0))?;
    Ok(hashes.collect::<rusqlite::Result<_>>()?)
}

/// A vector stays for as long as some chunk has its text.
fn drop_unused_vectors(tx: &Tx<'_>, hashes: &[ChunkHash]) -> Result<(), Fail> {
    for hash in hashes {
        tx.run(
            "DELETE FROM kb_vectors WHERE hash = ?1
                 AND NOT EXISTS (SELECT 1 FROM kb_chunks WHERE hash = ?1)",
            [&hash[..]],
        )?;
    }
    Ok(())
}

fn drop_document(tx: &Tx<'_>, n: i64) -> Result<(), Fail> {
    let hashes = hashes_of(tx, n)?;
    tx.run("DELETE FROM kb_chunks WHERE document = ?1", [n])?;
    tx.run("DELETE FROM kb_documents WHERE n = ?1", [n])?;
    drop_unused_vectors(tx, &hashes)
}

fn numbers(tx: &Tx<'_>, sql: &str, params: impl rusqlite::Params) -> Result<Vec<i64>, Fail> {
    let mut statement = tx.conn.prepare_cached(sql)?;
    let numbers = statement.query_map(params, |row| row.get(0))?;
    Ok(numbers.collect::<rusqlite::Result<_>>()?)
}

struct Touch {
    id: Uuid,
    size_bytes: u64,
    modified_ms: i64,
}

impl Operation for Touch {
    type Answer = bool;
    // Lost, it is found out again.
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let changed = tx.run(
            "UPDATE kb_documents SET size = ?2, modified_ms = ?3 WHERE id = ?1",
            (Id(self.id), int(self.size_bytes), self.modified_ms),
        )?;
        Ok(changed > 0)
    }
}

struct Drop(Vec<Uuid>);

impl Operation for Drop {
    type Answer = u64;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<u64, Fail> {
        let mut dropped = 0;
        for id in &self.0 {
            for n in numbers(tx, "SELECT n FROM kb_documents WHERE id = ?1", [Id(*id)])? {
                drop_document(tx, n)?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}

fn list(conn: &Connection, query: &DocumentQuery) -> Result<Vec<DocumentRecord>, Fail> {
    let mut sql = format!("{COLUMNS} WHERE n > ?");
    let mut values = vec![Sql::Integer(int(query.after))];
    for (condition, text) in
        [(" AND tenant = ?", &query.tenant), (" AND source = ?", &query.source)]
    {
        if let Some(text) = text {
            sql.push_str(condition);
            values.push(Sql::Text(text.clone()));
        }
    }
    if let Some(state) = query.state {
        sql.push_str(&format!(" AND state = {}", state_number(state)));
    }
    if let Some(file) = query.file {
        sql.push_str(" AND file = ?");
        values.push(Sql::Blob(file.as_bytes().to_vec()));
    }
    sql.push_str(&format!(" ORDER BY n LIMIT {}", rows(query.limit)));
    let mut statement = conn.prepare_cached(&sql)?;
    let found = statement.query_map(params_from_iter(values), record)?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn contents(
    conn: &Connection,
    tenant: &str,
    source: &str,
    after: u64,
    max_bytes: usize,
) -> Result<Vec<(DocumentRecord, DocumentContent)>, Fail> {
    let sql =
        format!("{COLUMNS} WHERE tenant = ?1 AND source = ?2 AND state = 1 AND n > ?3 ORDER BY n");
    let mut statement = conn.prepare_cached(&sql)?;
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut all = statement.query((tenant, source, int(after)))?;
    while let Some(row) = all.next()? {
        let record = record(row)?;
        let content = content(conn, record.n)?;
        bytes += content.body.len() + content.chunks.iter().map(|c| c.data.len()).sum::<usize>();
        found.push((record, content));
        if bytes >= max_bytes {
            break;
        }
    }
    Ok(found)
}

fn content(conn: &Connection, n: u64) -> Result<DocumentContent, Fail> {
    let body = conn
        .prepare_cached("SELECT body FROM kb_documents WHERE n = ?1 AND body IS NOT NULL")?
        .query_row([int(n)], unpacked)
        .optional()?
        .unwrap_or_default();
    let mut statement =
        conn.prepare_cached("SELECT data, hash FROM kb_chunks WHERE document = ?1 ORDER BY ord")?;
    let chunks = statement
        .query_map([int(n)], |row| Ok(ChunkRow { data: unpacked(row)?, hash: row.get(1)? }))?;
    Ok(DocumentContent { body, chunks: chunks.collect::<rusqlite::Result<_>>()? })
}

fn unpacked(row: &Row<'_>) -> rusqlite::Result<Bytes> {
    Ok(Bytes::from(unpack(blob(row, 0)?)?.into_owned()))
}

fn one(conn: &Connection, id: Uuid) -> Result<Option<(DocumentRecord, DocumentContent)>, Fail> {
    let sql = format!("{COLUMNS} WHERE id = ?1");
    let found = conn.prepare_cached(&sql)?.query_row([Id(id)], record).optional()?;
    found.map(|record| content(conn, record.n).map(|content| (record, content))).transpose()
}

// ## Vectors

struct KeepVectors {
    model: String,
    vectors: Vec<(ChunkHash, Bytes)>,
}

impl Operation for KeepVectors {
    type Answer = ();
    const DURABLE: bool = false;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<(), Fail> {
        for (hash, vector) in &self.vectors {
            tx.run(
                "INSERT OR REPLACE INTO kb_vectors (hash, model, data) VALUES (?1, ?2, ?3)",
                (&hash[..], &self.model, &vector[..]),
            )?;
        }
        Ok(())
    }
}

fn vectors(
    conn: &Connection,
    model: &str,
    hashes: &[ChunkHash],
) -> Result<Vec<(ChunkHash, Bytes)>, Fail> {
    let mut statement =
        conn.prepare_cached("SELECT data FROM kb_vectors WHERE hash = ?1 AND model = ?2")?;
    let mut found = Vec::new();
    for hash in hashes {
        let vector = statement
            .query_row((&hash[..], model), |row| blob(row, 0).map(Bytes::copy_from_slice))
            .optional()?;
        found.extend(vector.map(|vector| (*hash, vector)));
    }
    Ok(found)
}

// ## Collections and files

/// The rest of a statement over rows with tenant and owner, and its values.
fn owned(query: &OwnedQuery) -> (String, Vec<Sql>) {
    let mut sql = String::from(" WHERE true");
    let mut values = Vec::new();
    if let Some(id) = query.id {
        sql.push_str(" AND id = ?");
        values.push(Sql::Blob(id.as_bytes().to_vec()));
    }
    if let Some(tenant) = &query.tenant {
        sql.push_str(" AND tenant = ?");
        values.push(Sql::Text(tenant.clone()));
    }
    if let Some(owner) = &query.owner {
        sql.push_str(" AND owner IS ?");
        values.push(owner.clone().map_or(Sql::Null, Sql::Text));
    }
    sql.push_str(&format!(" ORDER BY created_at, id LIMIT {}", rows(query.limit)));
    (sql, values)
}

struct PutCollection {
    collection: Collection,
    limit: u32,
}

impl Operation for PutCollection {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let Collection { id, tenant, owner, about, created_at } = &self.collection;
        let others: u32 = tx
            .conn
            .prepare_cached(
                "SELECT count(*) FROM kb_collections
                 WHERE tenant = ?1 AND owner IS ?2 AND id <> ?3",
            )?
            .query_row((tenant, owner, Id(*id)), |row| row.get(0))?;
        if others >= self.limit {
            return Ok(false);
        }
        tx.run(
            "INSERT OR REPLACE INTO kb_collections (id, tenant, owner, about, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (Id(*id), tenant, owner, about.to_string(), created_at.0),
        )?;
        Ok(true)
    }
}

fn collections(conn: &Connection, query: &OwnedQuery) -> Result<Vec<Collection>, Fail> {
    let (rest, values) = owned(query);
    let sql = format!("SELECT id, tenant, owner, about, created_at FROM kb_collections{rest}");
    let mut statement = conn.prepare_cached(&sql)?;
    let found = statement.query_map(params_from_iter(values), |row| {
        Ok(Collection {
            id: row.get::<_, Id>(0)?.0,
            tenant: row.get(1)?,
            owner: row.get(2)?,
            about: json(row, 3)?,
            created_at: Timestamp(row.get(4)?),
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

struct DropCollection(Uuid);

impl Operation for DropCollection {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let there = tx.run("DELETE FROM kb_collections WHERE id = ?1", [Id(self.0)])? > 0;
        let source = self.0.to_string();
        for n in
            numbers(tx, "SELECT n FROM kb_documents WHERE source = ?1 AND tenant <> ''", [source])?
        {
            drop_document(tx, n)?;
        }
        Ok(there)
    }
}

struct PutFile {
    file: FileRecord,
    bytes: Bytes,
    limits: FileLimits,
}

impl Operation for PutFile {
    type Answer = FileStored;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<FileStored, Fail> {
        let FileRecord { id, tenant, owner, size_bytes, about, created_at } = &self.file;
        let (count, bytes): (u32, i64) = tx
            .conn
            .prepare_cached(
                "SELECT count(*), coalesce(sum(size), 0) FROM kb_files
                 WHERE tenant = ?1 AND owner IS ?2 AND id <> ?3",
            )?
            .query_row((tenant, owner, Id(*id)), |row| Ok((row.get(0)?, row.get(1)?)))?;
        if count >= self.limits.count {
            return Ok(FileStored::TooMany);
        }
        if number(bytes).saturating_add(*size_bytes) > self.limits.bytes {
            return Ok(FileStored::TooMuch);
        }
        tx.run(
            "INSERT OR REPLACE INTO kb_files (id, tenant, owner, size, about, data, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            (
                Id(*id),
                tenant,
                owner,
                int(*size_bytes),
                about.to_string(),
                pack(&self.bytes),
                created_at.0,
            ),
        )?;
        Ok(FileStored::Stored)
    }
}

fn files(conn: &Connection, query: &OwnedQuery) -> Result<Vec<FileRecord>, Fail> {
    let (rest, values) = owned(query);
    let sql = format!("SELECT id, tenant, owner, size, about, created_at FROM kb_files{rest}");
    let mut statement = conn.prepare_cached(&sql)?;
    let found = statement.query_map(params_from_iter(values), |row| {
        Ok(FileRecord {
            id: row.get::<_, Id>(0)?.0,
            tenant: row.get(1)?,
            owner: row.get(2)?,
            size_bytes: number(row.get(3)?),
            about: json(row, 4)?,
            created_at: Timestamp(row.get(5)?),
        })
    })?;
    Ok(found.collect::<rusqlite::Result<_>>()?)
}

fn file_bytes(conn: &Connection, id: Uuid) -> Result<Option<Bytes>, Fail> {
    let mut statement = conn.prepare_cached("SELECT data FROM kb_files WHERE id = ?1")?;
    Ok(statement.query_row([Id(id)], unpacked).optional()?)
}

struct DropFile(Uuid);

impl Operation for DropFile {
    type Answer = bool;
    const DURABLE: bool = true;

    fn apply(&self, tx: &mut Tx<'_>) -> Result<bool, Fail> {
        let there = tx.run("DELETE FROM kb_files WHERE id = ?1", [Id(self.0)])? > 0;
        for n in numbers(tx, "SELECT n FROM kb_documents WHERE file = ?1", [Id(self.0)])? {
            drop_document(tx, n)?;
        }
        Ok(there)
    }
}
