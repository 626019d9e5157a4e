//! Documents, collections and files of [`super::MemStore`].

use std::collections::BTreeMap;

use bytes::Bytes;
use clearway_core::Timestamp;
use uuid::Uuid;

use super::MemStore;
use crate::error::Result;
use crate::knowledge::*;

#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    next: u64,
    rows: BTreeMap<u64, (DocumentRecord, DocumentContent)>,
    vectors: BTreeMap<(ChunkHash, String), Bytes>,
    collections: BTreeMap<(Timestamp, Uuid), Collection>,
    files: BTreeMap<(Timestamp, Uuid), (FileRecord, Bytes)>,
}

#[async_trait::async_trait]
impl KnowledgeStore for MemStore {
    async fn put_document(&self, new: NewDocument) -> Result<DocumentStored> {
        self.call("put_document", |data, now| Ok(data.documents.put(&new, now)))
    }

    async fn touch_document(&self, id: Uuid, size_bytes: u64, modified_ms: i64) -> Result<bool> {
        self.call("touch_document", |data, _| {
            let mut rows = data.documents.rows.values_mut().map(|(record, _)| record);
            let Some(record) = rows.find(|record| record.id == id) else { return Ok(false) };
            (record.size_bytes, record.modified_ms) = (size_bytes, modified_ms);
            Ok(true)
        })
    }

    async fn drop_documents(&self, documents: Vec<Uuid>) -> Result<u64> {
        self.call("drop_documents", |data, _| {
            Ok(data.documents.drop_where(|record| documents.contains(&record.id)))
        })
    }

    async fn documents(&self, query: DocumentQuery) -> Result<Vec<DocumentRecord>> {
        self.call("documents", |data, _| {
            let fits = |record: &&DocumentRecord| {
                record.n > query.after
                    && query.tenant.as_ref().is_none_or(|tenant| *tenant == record.tenant)
                    && query.source.as_ref().is_none_or(|source| *source == record.source)
                    && query.state.is_none_or(|state| state == record.state)
                    && query.file.is_none_or(|file| Some(file) == record.file)
            };
            let all = data.documents.rows.values().map(|(record, _)| record);
            Ok(all.filter(fits).take(rows(query.limit) as usize).cloned().collect())
        })
    }

    async fn document_contents(
        &self,
        tenant: &str,
        source: &str,
        after: u64,
        max_bytes: usize,
    ) -> Result<Vec<(DocumentRecord, DocumentContent)>> {
        self.call("document_contents", |data, _| {
            let mut bytes = 0;
            let fits = |(record, _): &&(DocumentRecord, DocumentContent)| {
                record.tenant == tenant
                    && record.source == source
                    && record.state == DocumentState::Indexed
            };
            let after = data.documents.rows.range(after + 1..).map(|(_, row)| row);
            let page = after.filter(fits).take_while(|(_, content)| {
                let more = bytes == 0 || bytes < max_bytes;
                bytes += content.body.len()
                    + content.chunks.iter().map(|chunk| chunk.data.len()).sum::<usize>();
                more
            });
            Ok(page.cloned().collect())
        })
    }

    async fn document(&self, id: Uuid) -> Result<Option<(DocumentRecord, DocumentContent)>> {
        self.call("document", |data, _| {
            Ok(data.documents.rows.values().find(|(record, _)| record.id == id).cloned())
        })
    }

    async fn keep_vectors(&self, model: &str, vectors: Vec<(ChunkHash, Bytes)>) -> Result<()> {
        self.call("keep_vectors", |data, _| {
            let rows = vectors.iter().map(|(hash, v)| ((*hash, model.to_owned()), v.clone()));
            data.documents.vectors.extend(rows);
            Ok(())
        })
    }

    async fn vectors(
        &self,
        model: &str,
        hashes: Vec<ChunkHash>,
    ) -> Result<Vec<(ChunkHash, Bytes)>> {
        self.call("vectors", |data, _| {
            let known = |hash: &ChunkHash| {
                let vector = data.documents.vectors.get(&(*hash, model.to_owned()))?;
                Some((*hash, vector.clone()))
            };
            Ok(hashes.iter().filter_map(known).collect())
        })
    }

    async fn put_collection(&self, collection: Collection, limit: u32) -> Result<bool> {
        self.call("put_collection", |data, _| {
            let all = &mut data.documents.collections;
            let others = all.values().filter(|other| {
                other.tenant == collection.tenant
                    && other.owner == collection.owner
                    && other.id != collection.id
            });
            if others.count() >= limit as usize {
                return Ok(false);
            }
            all.retain(|_, other| other.id != collection.id);
            all.insert((collection.created_at, collection.id), collection.clone());
            Ok(true)
        })
    }

    async fn collections(&self, query: OwnedQuery) -> Result<Vec<Collection>> {
        self.call("collections", |data, _| {
            let all = data.documents.collections.values();
            let fit = all.filter(|one| fits(&query, one.id, &one.tenant, one.owner.as_ref()));
            Ok(fit.take(rows(query.limit) as usize).cloned().collect())
        })
    }

    async fn drop_collection(&self, id: Uuid) -> Result<bool> {
        self.call("drop_collection", |data, _| {
            let all = &mut data.documents.collections;
            let before = all.len();
            all.retain(|_, collection| collection.id != id);
            let there = all.len() < before;
            let source = id.to_string();
            data.documents
                .drop_where(|record| record.source == source && !record.tenant.is_empty());
            Ok(there)
        })
    }

    async fn put_file(
        &self,
        file: FileRecord,
        bytes: Bytes,
        limits: FileLimits,
    ) -> Result<FileStored> {
        self.call("put_file", |data, _| {
            let all = &mut data.documents.files;
            let (mut count, mut total) = (0, 0);
            for (other, _) in all.values() {
                if other.tenant == file.tenant && other.owner == file.owner && other.id != file.id {
                    count += 1;
                    total += other.size_bytes;
                }
            }
            if count >= limits.count {
                return Ok(FileStored::TooMany);
            }
            if total.saturating_add(file.size_bytes) > limits.bytes {
                return Ok(FileStored::TooMuch);
            }
            all.insert((file.created_at, file.id), (file.clone(), bytes.clone()));
            Ok(FileStored::Stored)
        })
    }

    async fn files(&self, query: OwnedQuery) -> Result<Vec<FileRecord>> {
        self.call("files", |data, _| {
            let all = data.documents.files.values().map(|(file, _)| file);
            let fit = all.filter(|one| fits(&query, one.id, &one.tenant, one.owner.as_ref()));
            Ok(fit.take(rows(query.limit) as usize).cloned().collect())
        })
    }

    async fn file_bytes(&self, id: Uuid) -> Result<Option<Bytes>> {
        self.call("file_bytes", |data, _| {
            let found = data.documents.files.values().find(|(file, _)| file.id == id);
            Ok(found.map(|(_, bytes)| bytes.clone()))
        })
    }

    async fn drop_file(&self, id: Uuid) -> Result<bool> {
        self.call("drop_file", |data, _| {
            let before = data.documents.files.len();
            data.documents.files.retain(|_, (file, _)| file.id != id);
            let there = data.documents.files.len() < before;
            data.documents.drop_where(|record| record.file == Some(id));
            Ok(there)
        })
    }
}

fn fits(query: &OwnedQuery, id: Uuid, tenant: &str, owner: Option<&String>) -> bool {
    query.id.is_none_or(|wanted| wanted == id)
        && query.tenant.as_ref().is_none_or(|wanted| wanted == tenant)
        && query.owner.as_ref().is_none_or(|wanted| wanted.as_ref() == owner)
}

impl Documents {
    fn put(&mut self, new: &NewDocument, now: Timestamp) -> DocumentStored {
        let same = |record: &DocumentRecord| {
            record.tenant == new.tenant && record.source == new.source && record.path == new.path
        };
        let known = self.rows.values().find(|(record, _)| same(record));
        let known = known.map(|(record, _)| (record.n, record.id, record.created_at));
        if let Some(wanted) = new.only_if
            && known.is_none_or(|(_, id, _)| id != wanted)
        {
            return DocumentStored::Gone;
        }
        let (n, id, created_at) = match known {
            Some(known) => known,
            None => {
                let beside = |(record, _): &&(DocumentRecord, DocumentContent)| {
                    record.tenant == new.tenant && record.source == new.source
                };
                if self.rows.values().filter(beside).count() >= new.limit as usize {
                    return DocumentStored::TooMany;
                }
                self.next += 1;
                (self.next, new.id, now)
            }
        };
        let record = DocumentRecord {
            n,
            id,
            tenant: new.tenant.clone(),
            source: new.source.clone(),
            path: new.path.clone(),
            owner: new.owner.clone(),
            state: new.state,
            hash: new.hash.clone(),
            size_bytes: new.size_bytes,
            modified_ms: new.modified_ms,
            recipe: new.recipe.clone(),
            file: new.file,
            chunks: new.content.chunks.len() as u32,
            about: new.about.clone(),
            created_at,
            changed_at: now,
        };
        let old = self.rows.insert(n, (record, new.content.clone()));
        self.drop_unused_vectors(old.as_ref().map(|(_, content)| content));
        DocumentStored::Stored(id)
    }

    fn drop_where(&mut self, goes: impl Fn(&DocumentRecord) -> bool) -> u64 {
        let gone: Vec<u64> =
            self.rows.values().filter(|(record, _)| goes(record)).map(|(r, _)| r.n).collect();
        for n in &gone {
            let old = self.rows.remove(n);
            self.drop_unused_vectors(old.as_ref().map(|(_, content)| content));
        }
        gone.len() as u64
    }

    /// A vector stays for as long as some chunk has its text.
    fn drop_unused_vectors(&mut self, old: Option<&DocumentContent>) {
        for chunk in old.into_iter().flat_map(|content| &content.chunks) {
            let used = self
                .rows
                .values()
                .any(|(_, content)| content.chunks.iter().any(|other| other.hash == chunk.hash));
            if !used {
                self.vectors.retain(|(hash, _), _| *hash != chunk.hash);
            }
        }
    }
}
