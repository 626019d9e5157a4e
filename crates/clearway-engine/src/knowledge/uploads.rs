//! What people send: files, and the collections they put them into.
//!
//! **Invariant:** every question names an [`Owner`], and whatever is not that owner's is not there.
//!
//! Not here: how OpenAI's clients call these things (`clearway-server`).

use bytes::Bytes;
use clearway_core::{Code, Failure};
use clearway_store::{
    Collection, DocumentContent, DocumentQuery, DocumentRecord, DocumentState, DocumentStored,
    FileLimits, FileRecord, FileStored, NewDocument, OwnedQuery,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::index::Change;
use super::ingest::trouble_of;
use super::{Inner, Knowledge, UPLOADS};

/// In what is noted about a document.
const CANCELLED: &str = "cancelled";

/// In whose name something is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub tenant: String,
    /// `None` is nobody in particular, who has things of their own.
    pub user: Option<String>,
}

/// How much one owner may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLimits {
    pub file_bytes: u64,
    pub files: u32,
    /// All files together.
    pub bytes: u64,
    pub collections: u32,
    pub documents: u32,
}

impl Default for UploadLimits {
    fn default() -> Self {
        Self {
            file_bytes: 32 << 20,
            files: 1000,
            bytes: 1 << 30,
            collections: 100,
            documents: 10_000,
        }
    }
}

/// A file on its way in.
#[derive(Clone, Debug)]
pub struct FileDraft {
    pub name: String,
    pub bytes: Bytes,
    /// What its sender says it is for, and anything else to be remembered.
    pub about: Map<String, Value>,
}

/// A collection on its way in.
#[derive(Clone, Debug)]
pub struct CollectionDraft {
    /// Of one that is changed.
    pub id: Option<Uuid>,
    pub about: Map<String, Value>,
}

/// A file that is put into a collection.
#[derive(Clone, Debug)]
pub struct Attach {
    pub collection: Uuid,
    pub file: Uuid,
    pub attributes: Map<String, Value>,
    /// With which others it was put there.
    pub batch: Option<String>,
}

/// A user of a tenant, as indexes name viewers. The length in front keeps two pairs from having one
/// name.
pub(crate) fn viewer(tenant: &str, user: &str) -> String {
    format!("{}:{tenant}:{user}", tenant.len())
}

/// Who has things without being anybody in particular.
const NOBODY: &str = "";

impl Owner {
    fn stored(&self) -> String {
        self.user.clone().unwrap_or_else(|| NOBODY.to_owned())
    }

    fn query(&self, id: Option<Uuid>, limit: u32) -> OwnedQuery {
        OwnedQuery {
            id,
            tenant: Some(self.tenant.clone()),
            owner: Some(Some(self.stored())),
            limit,
        }
    }
}

fn gone(what: &str, id: Uuid) -> Failure {
    Failure::new(Code::NotFound, format!("there is no {what} {id}"))
}

fn failed(error: clearway_store::Error) -> Failure {
    crate::Error::from(error).0
}

impl Inner {
    /// A collection that is the owner's.
    pub(crate) async fn own_collection(
        &self,
        owner: &Owner,
        id: Uuid,
    ) -> Result<Collection, Failure> {
        let found = self.kept().collections(owner.query(Some(id), 1)).await.map_err(failed)?;
        found.into_iter().next().ok_or_else(|| gone("collection", id))
    }

    async fn own_file(&self, owner: &Owner, id: Uuid) -> Result<FileRecord, Failure> {
        let found = self.kept().files(owner.query(Some(id), 1)).await.map_err(failed)?;
        found.into_iter().next().ok_or_else(|| gone("file", id))
    }

    /// Before documents are dropped: takes down what their texts cost.
    async fn let_go(&self, documents: &[DocumentRecord]) {
        let Ok(shelf) = self.shelf(UPLOADS) else { return };
        let ids: Vec<Uuid> = documents.iter().map(|record| record.id).collect();
        self.take_down(&shelf, &ids, &[]).await;
    }

    async fn forget(&self, documents: &[DocumentRecord]) {
        let Ok(shelf) = self.shelf(UPLOADS) else { return };
        for record in documents {
            shelf.change(Change::Remove(record.id.to_string().into())).await;
        }
    }
}

impl Knowledge {
    // ## Files

    /// Keeps a file.
    ///
    /// # Errors
    /// `limit_exceeded` naming the limit; `store_unavailable`.
    pub async fn put_file(&self, owner: &Owner, draft: FileDraft) -> Result<FileRecord, Failure> {
        let limits = self.inner().options.uploads.limits;
        let size_bytes = draft.bytes.len() as u64;
        let over = |limit: &str, text: String| {
            Err(Failure::new(Code::LimitExceeded, text).with("limit", limit))
        };
        if size_bytes > limits.file_bytes {
            let text =
                format!("the file has {size_bytes} bytes; the most is {}", limits.file_bytes);
            return over("file_bytes", text);
        }
        let mut about = draft.about;
        about.insert("filename".to_owned(), draft.name.into());
        let file = FileRecord {
            id: self.inner().ids.random(),
            tenant: owner.tenant.clone(),
            owner: Some(owner.stored()),
            size_bytes,
            about: Value::Object(about),
            created_at: self.inner().clocks.now(),
        };
        let most = FileLimits { count: limits.files, bytes: limits.bytes };
        match self.inner().kept().put_file(file.clone(), draft.bytes, most).await.map_err(failed)? {
            FileStored::Stored => Ok(file),
            FileStored::TooMany => {
                over("files", format!("{} files are kept already", limits.files))
            }
            FileStored::TooMuch => {
                over("bytes", format!("all files together may have {} bytes", limits.bytes))
            }
        }
    }

    /// The owner's files, oldest first.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn files(&self, owner: &Owner) -> Result<Vec<FileRecord>, Failure> {
        self.inner().kept().files(owner.query(None, 0)).await.map_err(failed)
    }

    /// # Errors
    /// `not_found`, also for somebody else's.
    pub async fn file(&self, owner: &Owner, id: Uuid) -> Result<FileRecord, Failure> {
        self.inner().own_file(owner, id).await
    }

    /// # Errors
    /// As [`Knowledge::file`].
    pub async fn file_bytes(&self, owner: &Owner, id: Uuid) -> Result<Bytes, Failure> {
        self.inner().own_file(owner, id).await?;
        let bytes = self.inner().kept().file_bytes(id).await.map_err(failed)?;
        bytes.ok_or_else(|| gone("file", id))
    }

    /// Forgets a file, also in every collection it is in.
    ///
    /// # Errors
    /// As [`Knowledge::file`].
    pub async fn drop_file(&self, owner: &Owner, id: Uuid) -> Result<(), Failure> {
        self.inner().own_file(owner, id).await?;
        let query = DocumentQuery { file: Some(id), ..DocumentQuery::default() };
        let documents = self.inner().kept().documents(query).await.map_err(failed)?;
        self.inner().let_go(&documents).await;
        self.inner().kept().drop_file(id).await.map_err(failed)?;
        self.inner().forget(&documents).await;
        Ok(())
    }

    // ## Collections

    /// Makes or changes a collection.
    ///
    /// # Errors
    /// `limit_exceeded`, `not_found` for one that is to be changed, `store_unavailable`.
    pub async fn put_collection(
        &self,
        owner: &Owner,
        draft: CollectionDraft,
    ) -> Result<Collection, Failure> {
        let collection = match draft.id {
            Some(id) => {
                let old = self.inner().own_collection(owner, id).await?;
                Collection { about: Value::Object(draft.about), ..old }
            }
            None => Collection {
                id: self.inner().ids.random(),
                tenant: owner.tenant.clone(),
                owner: Some(owner.stored()),
                about: Value::Object(draft.about),
                created_at: self.inner().clocks.now(),
            },
        };
        let most = self.inner().options.uploads.limits.collections;
        let kept = self.inner().kept().put_collection(collection.clone(), most).await;
        if !kept.map_err(failed)? {
            let text = format!("{most} collections are kept already");
            return Err(Failure::new(Code::LimitExceeded, text).with("limit", "collections"));
        }
        Ok(collection)
    }

    /// The owner's collections, oldest first.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn collections(&self, owner: &Owner) -> Result<Vec<Collection>, Failure> {
        self.inner().kept().collections(owner.query(None, 0)).await.map_err(failed)
    }

    /// # Errors
    /// `not_found`, also for somebody else's.
    pub async fn collection(&self, owner: &Owner, id: Uuid) -> Result<Collection, Failure> {
        self.inner().own_collection(owner, id).await
    }

    /// # Errors
    /// As [`Knowledge::collection`].
    pub async fn drop_collection(&self, owner: &Owner, id: Uuid) -> Result<(), Failure> {
        let documents = self.collection_files(owner, id).await?;
        self.inner().let_go(&documents).await;
        self.inner().kept().drop_collection(id).await.map_err(failed)?;
        self.inner().forget(&documents).await;
        Ok(())
    }

    /// A collection's documents; each is a file in it.
    ///
    /// # Errors
    /// As [`Knowledge::collection`].
    pub async fn collection_files(
        &self,
        owner: &Owner,
        id: Uuid,
    ) -> Result<Vec<DocumentRecord>, Failure> {
        self.inner().own_collection(owner, id).await?;
        let query = DocumentQuery {
            tenant: Some(owner.tenant.clone()),
            source: Some(id.to_string()),
            ..DocumentQuery::default()
        };
        self.inner().kept().documents(query).await.map_err(failed)
    }

    /// Puts a file into a collection: accepted at once, read in the background.
    ///
    /// # Errors
    /// `not_found` for a collection or file that is not the owner's; `limit_exceeded`.
    pub async fn attach(&self, owner: &Owner, attach: Attach) -> Result<DocumentRecord, Failure> {
        let Attach { collection, file, attributes, batch } = attach;
        self.inner().own_collection(owner, collection).await?;
        let file = self.inner().own_file(owner, file).await?;
        let shelf = self.inner().shelf(UPLOADS)?;
        let limit = self.inner().options.uploads.limits.documents;
        let new = NewDocument {
            id: self.inner().ids.random(),
            tenant: owner.tenant.clone(),
            source: collection.to_string(),
            path: file.id.to_string(),
            owner: Some(owner.stored()),
            state: DocumentState::Pending,
            hash: Vec::new(),
            size_bytes: file.size_bytes,
            modified_ms: 0,
            recipe: shelf.recipe(),
            file: Some(file.id),
            about: json!({"filename": file.about["filename"], "attributes": attributes, "batch": batch}),
            content: DocumentContent::default(),
            limit,
            only_if: None,
        };
        let id = match self.inner().kept().put_document(new).await.map_err(failed)? {
            DocumentStored::Stored(id) => id,
            DocumentStored::TooMany | DocumentStored::Gone => {
                let text = format!("the collection has {limit} files already");
                return Err(Failure::new(Code::LimitExceeded, text).with("limit", "documents"));
            }
        };
        shelf.refresh(false);
        let found = self.inner().kept().document(id).await.map_err(failed)?;
        found.map(|(record, _)| record).ok_or_else(|| gone("file", file.id))
    }

    /// Gives a file in a collection other attributes.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn change_attributes(
        &self,
        owner: &Owner,
        id: Uuid,
        file: Uuid,
        attributes: Map<String, Value>,
    ) -> Result<DocumentRecord, Failure> {
        let mut documents = self.collection_files(owner, id).await?.into_iter();
        let document = documents.find(|record| record.file == Some(file));
        let Some(document) = document else { return Err(gone("file", file)) };
        let change = |new: &mut NewDocument| new.about["attributes"] = attributes.into();
        self.rewrite(document.id, change).await
    }

    /// Lets those of some documents be that nobody has read yet. The caller has made sure whose they
    /// are.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn cancel_files(&self, documents: Vec<DocumentRecord>) -> Result<(), Failure> {
        let pending = |record: &DocumentRecord| record.state == DocumentState::Pending;
        for document in documents.into_iter().filter(pending) {
            let cancel = |new: &mut NewDocument| {
                // Who reads it may have been faster.
                if new.state == DocumentState::Pending {
                    new.about[CANCELLED] = true.into();
                    new.state = DocumentState::Failed;
                }
            };
            match self.rewrite(document.id, cancel).await {
                // Deleted meanwhile.
                Err(failure) if failure.code == Code::NotFound => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Whether somebody said that it need not be read.
    pub fn is_cancelled(document: &DocumentRecord) -> bool {
        document.state == DocumentState::Failed && document.about[CANCELLED] == true
    }

    /// Puts a document in its own place, with its contents as they are. One that is being read keeps the change: whoever
    /// reads it takes it over.
    async fn rewrite(
        &self,
        id: Uuid,
        change: impl FnOnce(&mut NewDocument),
    ) -> Result<DocumentRecord, Failure> {
        let shelf = self.inner().shelf(UPLOADS)?;
        let _writing = shelf.writing.lock().await;
        let found = self.inner().kept().document(id).await.map_err(failed)?;
        let Some((now, content)) = found else { return Err(gone("document", id)) };
        let mut new = NewDocument {
            id,
            tenant: now.tenant,
            source: now.source,
            path: now.path,
            owner: now.owner,
            state: now.state,
            hash: now.hash,
            size_bytes: now.size_bytes,
            modified_ms: now.modified_ms,
            recipe: now.recipe,
            file: now.file,
            about: now.about,
            content,
            limit: self.inner().options.uploads.limits.documents,
            only_if: Some(id),
        };
        change(&mut new);
        match self.inner().kept().put_document(new).await.map_err(failed)? {
            DocumentStored::Stored(_) => {}
            DocumentStored::TooMany | DocumentStored::Gone => return Err(gone("document", id)),
        }
        let found = self.inner().kept().document(id).await.map_err(failed)?;
        found.map(|(record, _)| record).ok_or_else(|| gone("document", id))
    }

    /// Takes a file out of a collection; the file itself stays.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn detach(&self, owner: &Owner, id: Uuid, file: Uuid) -> Result<(), Failure> {
        let documents = self.collection_files(owner, id).await?;
        let documents: Vec<DocumentRecord> =
            documents.into_iter().filter(|record| record.file == Some(file)).collect();
        if documents.is_empty() {
            return Err(gone("file", file));
        }
        let ids = documents.iter().map(|record| record.id).collect();
        self.inner().let_go(&documents).await;
        self.inner().kept().drop_documents(ids).await.map_err(failed)?;
        self.inner().forget(&documents).await;
        Ok(())
    }

    /// The text of one of the owner's documents, which the caller has made sure of.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn document_text(&self, id: Uuid) -> Result<String, Failure> {
        self.text_of(id).await
    }

    /// Why a document of a collection could not be read.
    pub fn trouble(record: &DocumentRecord) -> Option<(&'static str, String)> {
        trouble_of(record).map(|trouble| (trouble.kind.as_str(), trouble.message))
    }
}
