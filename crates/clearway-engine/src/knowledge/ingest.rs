//! Looks which documents there are, and has those read that changed.
//!
//! Each document is one durable transaction: before it the old one is in force, after it the new
//! one. So a process that is killed in the middle loses nothing: the next one finds by size, time
//! and hash what is left to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use clearway_ingest::protocol::{Answer, Parsed, Request, Source, Stamp, Trouble, TroubleKind};
use clearway_knowledge::{Block, Chunk};
use clearway_store::{
    ChunkRow, DocumentContent, DocumentQuery, DocumentRecord, DocumentState, DocumentStored,
    NewDocument,
};
use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use serde_json::{Value, json};
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use super::index::Change;
use super::reader::Readers;
use super::shelf::Phase;
use super::walk::{self, FoundFile};
use super::{Inner, Knowledge, Shelf, SourceContent, lock};
use crate::clock::instant;

mod rows;

pub(crate) use rows::trouble_of;
use rows::{
    block, chunks_of, document_of, from_hex, hex, links, record_of, row, title, trouble_json,
};

/// A hint is followed by more of them.
const SETTLE: Duration = Duration::from_millis(150);
/// A watched folder is looked at without a hint, too.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// What changed while it was read is read again after this.
const SOON: Duration = Duration::from_secs(1);
/// Bytes of stored documents read at once.
const PAGE: usize = 4 << 20;

pub(crate) fn start(inner: &Arc<Inner>, shelf: &Arc<Shelf>) {
    let (owner, inner, shelf) = (inner.tasks.clone(), inner.clone(), shelf.clone());
    owner.spawn(async move {
        let (stop, own) = (inner.tasks.soft.clone(), shelf.stop.clone());
        tokio::select! {
            () = stop.cancelled() => {}
            () = own.cancelled() => {}
            () = (Ingest { inner, shelf, tries: Mutex::default() }).run() => {}
        }
    });
}

struct Ingest {
    inner: Arc<Inner>,
    shelf: Arc<Shelf>,
    /// Documents that killed their reader since the start, or let it run out of time: the bytes by
    /// size and time, and how often.
    tries: Mutex<BTreeMap<String, (u64, i64, u32)>>,
}

/// How often such a document is read after a start, in case it was the moment's fault.
const TRIES: u32 = 2;

/// One document to be read.
struct Work {
    /// The name below its source.
    path: String,
    at: Origin,
    known: Option<DocumentRecord>,
}

enum Origin {
    File {
        file: FoundFile,
        root: String,
    },
    Bytes(Bytes),
    /// An uploaded file, with the document that waits for it.
    Upload(Box<DocumentRecord>),
}

impl Ingest {
    async fn run(self) {
        self.load().await;
        let watched =
            matches!(&self.shelf.content, Some(SourceContent::Folder { watch: true, .. }));
        loop {
            let wanted = self.shelf.read(|state| state.scans_wanted);
            let soon = self.look().await;
            self.shelf.with(|state| {
                state.scans_done = wanted;
                state.phase = Phase::Idle;
                state.last_scan = Some(self.inner.clocks.now());
            });
            self.inner.readers.rest();
            let pause = if soon { SOON } else { LOOK_AGAIN };
            let again = Instant::now() + pause;
            tokio::select! {
                () = self.shelf.wake.notified() => {}
                () = sleep_until(again), if watched || soon => {}
            }
            sleep(SETTLE).await;
        }
    }

    // ## What earlier processes stored

    async fn load(&self) {
        let mut after = 0;
        loop {
            let page = self.page(after).await;
            let Some((last, _)) = page.last() else { break };
            after = last.n;
            for (record, content) in page {
                self.take_in(&record, &content).await;
            }
        }
        self.shelf.change(Change::Loaded).await;
    }

    /// The next stored documents; tries again for as long as the store cannot be read.
    async fn page(&self, after: u64) -> Vec<(DocumentRecord, DocumentContent)> {
        loop {
            let page = match &self.shelf.content {
                Some(_) => {
                    let (tenant, source) = (self.shelf.tenant, &self.shelf.name);
                    self.inner.kept().document_contents(tenant, source, after, PAGE).await
                }
                None => self.uploads_page(after).await,
            };
            match page {
                Ok(page) => return page,
                Err(error) => {
                    tracing::warn!(source = self.shelf.name, "documents cannot be loaded: {error}");
                    self.shelf.with(|state| state.problem = Some(error.to_string()));
                    sleep(SOON).await;
                }
            }
        }
    }

    /// Documents of all collections: everything that no configured source has.
    async fn uploads_page(
        &self,
        after: u64,
    ) -> Result<Vec<(DocumentRecord, DocumentContent)>, clearway_store::Error> {
        let query = DocumentQuery {
            state: Some(DocumentState::Indexed),
            after,
            limit: 256,
            ..DocumentQuery::default()
        };
        let mut page = Vec::new();
        for record in self.inner.kept().documents(query).await? {
            if record.tenant.is_empty() {
                // Keeps its place, so that the page is not taken for the last one.
                page.push((record, DocumentContent::default()));
            } else if let Some(found) = self.inner.kept().document(record.id).await? {
                page.push(found);
            }
        }
        Ok(page)
    }

    /// Puts a stored document into the index.
    async fn take_in(&self, record: &DocumentRecord, content: &DocumentContent) {
        if content.chunks.is_empty() {
            return;
        }
        let chunks = chunks_of(record, content);
        self.index(record, chunks).await;
    }

    async fn index(&self, record: &DocumentRecord, chunks: Vec<Chunk>) {
        let document = document_of(record, &self.shelf.name);
        self.shelf.change(Change::Put(document, chunks)).await;
    }

    // ## A look at what there is

    /// Whether to look again soon.
    async fn look(&self) -> bool {
        self.shelf.with(|state| {
            state.phase = Phase::Scanning;
            state.begun = Some(instant());
            (state.total, state.done, state.changed, state.removed) = (0, 0, 0, 0);
        });
        let outcome = match &self.shelf.content {
            Some(SourceContent::Folder { path, files, watch }) => {
                if *watch {
                    self.keep_watching(path).await;
                }
                self.folder(path, files).await
            }
            Some(SourceContent::BuiltIn(documents)) => self.built_in(documents).await,
            None => self.pending().await,
        };
        let took = self.shelf.read(|state| state.begun.map(|begun| instant() - begun));
        let (changed, removed, failed) = self.shelf.with(|state| {
            state.took = took;
            state.problem = outcome.as_ref().err().cloned();
            (state.changed, state.removed, state.failures.len())
        });
        if let Err(problem) = &outcome {
            tracing::warn!(source = self.shelf.name, "the source cannot be looked at: {problem}");
        }
        if changed > 0 || removed > 0 {
            tracing::info!(
                source = self.shelf.name,
                changed,
                removed,
                failed,
                ms = took.unwrap_or_default().as_millis() as u64,
                "documents read"
            );
        }
        outcome.unwrap_or(false)
    }

    /// Whoever makes a folder anew in the place of an old one is watched, too.
    async fn keep_watching(&self, root: &Path) {
        let Some(watcher) = self.inner.watcher() else { return };
        let (root, shelf) = (root.to_owned(), self.shelf.clone());
        let look = move || {
            use std::os::unix::fs::MetadataExt as _;
            // Numbers are given again; the time of making tells two folders apart then.
            let now = std::fs::metadata(&root).ok();
            let now = now.map(|now| (now.dev(), now.ino(), now.created().ok()));
            let before = shelf.with(|state| std::mem::replace(&mut state.folder, now));
            if now.is_some() && before != now {
                watcher.watch(&shelf, &root);
            }
        };
        let _ = self.inner.lanes.run(look).await;
    }

    async fn folder(&self, root: &Path, patterns: &[String]) -> Result<bool, String> {
        let most = self.inner.options.limits.documents as usize;
        let (folder, files) = (root.to_owned(), patterns.to_owned());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = StopOnDrop(stop.clone());
        let walked = self.inner.lanes.run(move || walk::walk(&folder, &files, most, &stop)).await;
        drop(stopped);
        let found = walked.ok_or("the server is stopping")??;
        let mut known = self.known().await?;
        let stored = known.len();
        let all = self.shelf.read_all.swap(false, Ordering::Relaxed);
        self.shelf.with(|state| {
            state.failures.clear();
            state.notes.clear();
            if found.too_many {
                let text = format!("the folder has more than {most} files; the rest is left out");
                state.failures.insert(String::new(), Trouble::new(TroubleKind::TooLarge, text));
            }
        });
        // Readers work in another folder: a relative path would lead them elsewhere.
        let root = std::path::absolute(root)
            .map_err(|error| format!("{}: {error}", root.display()))?
            .display()
            .to_string();
        let mut work = Vec::new();
        for (path, file) in found.files {
            let known = known.remove(&path);
            let same = known.as_ref().filter(|record| !all && self.is_same(record, &file));
            match same {
                Some(record) => self.recall(record),
                None => {
                    let at = Origin::File { file, root: root.clone() };
                    work.push(Work { path, at, known });
                }
            }
        }
        for (path, trouble) in found.troubles {
            let known = known.remove(&path);
            let passing = trouble.kind.is_passing();
            self.fail(&path, known.as_ref(), &Stamp::default(), &trouble, passing).await?;
        }
        let gone: Vec<DocumentRecord> = known.into_values().collect();
        let new = work.iter().filter(|work| work.known.is_none()).count();
        if stored + new > most {
            // There is no room for both.
            self.forget(gone).await?;
            return self.read(work).await;
        }
        // A renamed file keeps what was made of its texts, also when this process is killed meanwhile.
        self.hide(&gone).await;
        let again = self.read(work).await?;
        self.drop_stored(&gone).await?;
        Ok(again)
    }

    async fn built_in(&self, documents: &[(&'static str, &'static str)]) -> Result<bool, String> {
        let mut known = self.known().await?;
        let all = self.shelf.read_all.swap(false, Ordering::Relaxed);
        let mut work = Vec::new();
        for (path, text) in documents {
            let known = known.remove(*path);
            let hash = blake3::hash(text.as_bytes());
            let same = |record: &&DocumentRecord| {
                record.hash == hash.as_bytes()
                    && record.recipe == self.shelf.recipe()
                    && record.state == DocumentState::Indexed
            };
            if all || known.as_ref().filter(same).is_none() {
                let at = Origin::Bytes(Bytes::from_static(text.as_bytes()));
                work.push(Work { path: (*path).to_owned(), at, known });
            }
        }
        self.forget(known.into_values().collect()).await?;
        self.read(work).await
    }

    /// Uploaded documents that nobody has read yet.
    async fn pending(&self) -> Result<bool, String> {
        let query =
            DocumentQuery { state: Some(DocumentState::Pending), ..DocumentQuery::default() };
        let mut pending =
            self.inner.kept().documents(query).await.map_err(|error| error.to_string())?;
        if self.shelf.read(|state| state.last_scan.is_none()) {
            pending.extend(self.doubtful().await?);
        }
        let work = pending.into_iter().filter(|record| !record.tenant.is_empty());
        let work = work.map(|record| Work {
            path: record.path.clone(),
            at: Origin::Upload(Box::new(record)),
            known: None,
        });
        self.read(work.collect()).await
    }

    /// Uploaded documents that killed their reader before this start.
    async fn doubtful(&self) -> Result<Vec<DocumentRecord>, String> {
        let mut found = Vec::new();
        let mut after = 0;
        loop {
            let query = DocumentQuery {
                state: Some(DocumentState::Failed),
                after,
                limit: 1000,
                ..DocumentQuery::default()
            };
            let page = self.inner.kept().documents(query).await.map_err(|e| e.to_string())?;
            let Some(last) = page.last() else { return Ok(found) };
            after = last.n;
            let is_doubtful = |record: &DocumentRecord| {
                !record.tenant.is_empty()
                    && trouble_of(record).is_some_and(|trouble| trouble.kind.is_doubtful())
            };
            found.extend(page.into_iter().filter(is_doubtful));
        }
    }

    async fn known(&self) -> Result<BTreeMap<String, DocumentRecord>, String> {
        let mut known = BTreeMap::new();
        let mut after = 0;
        loop {
            let query = DocumentQuery {
                tenant: Some(self.shelf.tenant.to_owned()),
                source: Some(self.shelf.name.clone()),
                after,
                limit: 10_000,
                ..DocumentQuery::default()
            };
            let page = self.inner.kept().documents(query).await.map_err(|e| e.to_string())?;
            let Some(last) = page.last() else { return Ok(known) };
            after = last.n;
            known.extend(page.into_iter().map(|record| (record.path.clone(), record)));
        }
    }

    fn is_same(&self, record: &DocumentRecord, file: &FoundFile) -> bool {
        let passing = trouble_of(record).is_some_and(|trouble| {
            let worth_a_try = trouble.kind.is_doubtful()
                && self.tries(&record.path, file.size, file.modified_ms) < TRIES;
            trouble.kind.is_passing() || worth_a_try
        });
        record.size_bytes == file.size
            && record.modified_ms == file.modified_ms
            && record.recipe == self.shelf.recipe()
            && record.state != DocumentState::Pending
            && !passing
    }

    /// What is known of a document that need not be read again.
    fn recall(&self, record: &DocumentRecord) {
        if let Some(trouble) = trouble_of(record) {
            self.shelf.with(|state| state.failures.insert(record.path.clone(), trouble));
        }
    }

    /// Documents that are not there any more.
    async fn forget(&self, gone: Vec<DocumentRecord>) -> Result<(), String> {
        self.hide(&gone).await;
        self.drop_stored(&gone).await
    }

    /// Nobody finds them from now on.
    async fn hide(&self, gone: &[DocumentRecord]) {
        for record in gone {
            self.shelf.change(Change::Remove(record.id.to_string().into())).await;
        }
        self.shelf.with(|state| state.removed += gone.len());
    }

    async fn drop_stored(&self, gone: &[DocumentRecord]) -> Result<(), String> {
        for some in gone.chunks(100) {
            let ids: Vec<Uuid> = some.iter().map(|record| record.id).collect();
            self.inner.take_down(&self.shelf, &ids, &[]).await;
            self.inner.kept().drop_documents(ids).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// How often these bytes killed their reader since the start.
    fn tries(&self, document: &str, size: u64, modified_ms: i64) -> u32 {
        let tries = lock(&self.tries);
        let of_these = tries.get(document).filter(|(s, m, _)| (*s, *m) == (size, modified_ms));
        of_these.map_or(0, |(_, _, times)| *times)
    }

    /// One more time; whether another try is worth it.
    fn tried(&self, document: &str, stamp: &Stamp) -> bool {
        let times = self.tries(document, stamp.size, stamp.modified_ms) + 1;
        let entry = (stamp.size, stamp.modified_ms, times);
        lock(&self.tries).insert(document.to_owned(), entry);
        times < TRIES
    }

    // ## Reading

    async fn read(&self, work: Vec<Work>) -> Result<bool, String> {
        self.shelf.with(|state| {
            state.total = work.len();
            state.phase = Phase::Reading;
        });
        let mut again = false;
        let mut told = Instant::now();
        let mut waiting = stream::iter(work);
        let mut reading = FuturesUnordered::new();
        loop {
            while reading.len() < Readers::COUNT
                && let Some(next) = waiting.next().await
            {
                reading.push(self.document(next));
            }
            let Some(outcome) = reading.next().await else { break };
            again |= outcome?;
            let (done, total) = self.shelf.with(|state| {
                state.done += 1;
                (state.done, state.total)
            });
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                tracing::info!(source = self.shelf.name, done, total, "reading documents");
            }
        }
        Ok(again)
    }

    /// Reads one document and keeps what it says. Whether it is to be read again soon.
    async fn document(&self, work: Work) -> Result<bool, String> {
        let Work { path, at, known } = work;
        let (source, inline, root) = match &at {
            Origin::File { file, root } => {
                let path = file.path.display().to_string();
                (Source::File { path, root: root.clone() }, None, Some(root.clone()))
            }
            Origin::Bytes(bytes) => (inline(bytes), Some(bytes.clone()), None),
            Origin::Upload(record) => match self.uploaded(record).await? {
                Some(bytes) => (inline(&bytes), Some(bytes), None),
                None => return Ok(false),
            },
        };
        let same_recipe = known.as_ref().filter(|record| {
            record.recipe == self.shelf.recipe() && record.state == DocumentState::Indexed
        });
        let limits = &self.inner.options.limits;
        let request = Request {
            name: match &at {
                Origin::Upload(record) => {
                    record.about["filename"].as_str().unwrap_or(&path).to_owned()
                }
                Origin::File { .. } | Origin::Bytes(_) => path.clone(),
            },
            source,
            max_bytes: limits.file_bytes,
            max_text: limits.text_bytes,
            known: same_recipe.map(|record| hex(&record.hash)),
        };
        match self.inner.readers.read(&request, inline).await {
            Answer::Parsed { stamp, parsed } => {
                lock(&self.tries).remove(&path);
                self.keep(&path, &at, known.as_ref(), stamp, parsed).await?;
                Ok(false)
            }
            Answer::Unchanged { stamp } => {
                if let Some(record) = &known {
                    let (size, modified) = (stamp.size, stamp.modified_ms);
                    let touched = self.inner.kept().touch_document(record.id, size, modified).await;
                    touched.map_err(|error| error.to_string())?;
                }
                Ok(false)
            }
            Answer::Failed { trouble } if trouble.kind == TroubleKind::Missing => {
                // A folder that vanishes is no folder whose files were deleted.
                if let Some(root) = root
                    && !Path::new(&root).is_dir()
                {
                    return Err(format!("{root}: the folder is not there any more"));
                }
                self.forget(known.into_iter().collect()).await?;
                Ok(true)
            }
            Answer::Failed { trouble } => {
                let stamp = match &at {
                    Origin::File { file, .. } => {
                        Stamp { size: file.size, modified_ms: file.modified_ms, ..Stamp::default() }
                    }
                    Origin::Bytes(_) | Origin::Upload(_) => Stamp::default(),
                };
                let retry = trouble.kind.is_doubtful() && self.tried(&path, &stamp);
                if retry {
                    // Whoever waits for everything to be read waits for that, too.
                    self.shelf.with(|state| state.scans_wanted += 1);
                }
                let passing = retry || trouble.kind.is_passing();
                match at {
                    // It goes on to wait.
                    Origin::Upload(_) if retry => {}
                    Origin::Upload(record) => self.fail_upload(&record, &trouble).await?,
                    Origin::File { .. } | Origin::Bytes(_) => {
                        self.fail(&path, known.as_ref(), &stamp, &trouble, passing).await?;
                    }
                }
                Ok(passing)
            }
        }
    }

    async fn uploaded(&self, record: &DocumentRecord) -> Result<Option<Bytes>, String> {
        let Some(file) = record.file else { return Ok(None) };
        self.inner.kept().file_bytes(file).await.map_err(|error| error.to_string())
    }

    async fn keep(
        &self,
        path: &str,
        at: &Origin,
        known: Option<&DocumentRecord>,
        stamp: Stamp,
        parsed: Parsed,
    ) -> Result<(), String> {
        let mut new = self.new_document(path, at, known, &stamp);
        let id = new.id.to_string();
        let options = self.shelf.chunk;
        let cut = move || {
            let blocks: Vec<Block> = parsed.blocks.iter().map(block).collect();
            let chunks = clearway_knowledge::chunk(&id, &parsed.text, &blocks, &options);
            let rows = chunks.iter().map(row).collect();
            (parsed, chunks, rows)
        };
        let (parsed, chunks, rows): (Parsed, Vec<Chunk>, Vec<ChunkRow>) =
            self.inner.lanes.run(cut).await.ok_or("the server is stopping")?;
        if let Value::Object(about) = &mut new.about {
            about.insert("title".to_owned(), title(&parsed, path).into());
            about.insert("format".to_owned(), parsed.format.clone().into());
            about.insert("links".to_owned(), json!(links(&parsed)));
            about.insert("front".to_owned(), json!(parsed.front));
            if !parsed.notes.is_empty() {
                about.insert("notes".to_owned(), json!(parsed.notes));
            }
        }
        new.state = DocumentState::Indexed;
        new.content = DocumentContent { body: Bytes::from(parsed.text), chunks: rows };
        let _writing = match at {
            Origin::Upload(record) => match self.take_over(record, &mut new).await? {
                Some(writing) => Some(writing),
                None => return Ok(()),
            },
            Origin::File { .. } | Origin::Bytes(_) => None,
        };
        let record = record_of(&new);
        let hashes: Vec<_> = new.content.chunks.iter().map(|chunk| chunk.hash).collect();
        if let Some(known) = known {
            self.inner.take_down(&self.shelf, &[known.id], &hashes).await;
        }
        let stored =
            self.inner.kept().put_document(new).await.map_err(|error| error.to_string())?;
        match stored {
            DocumentStored::Stored(_) => {
                self.inner.bring_back(&self.shelf, &hashes).await;
                self.shelf.with(|state| {
                    state.changed += 1;
                    state.failures.remove(path);
                    if !parsed.notes.is_empty() {
                        state.notes.insert(path.to_owned(), parsed.notes);
                    }
                });
                self.index(&record, chunks).await;
            }
            DocumentStored::TooMany => {
                let text = "its source has as many documents as it may";
                let trouble = Trouble::new(TroubleKind::TooLarge, text);
                self.shelf.with(|state| state.failures.insert(path.to_owned(), trouble));
            }
            DocumentStored::Gone => {}
        }
        Ok(())
    }

    /// What the owner of an upload changed while it was read goes into the new document. `None` when it is not wanted any
    /// more; otherwise nobody else changes it until it is written.
    async fn take_over(
        &self,
        read: &DocumentRecord,
        new: &mut NewDocument,
    ) -> Result<Option<MutexGuard<'_, ()>>, String> {
        let writing = self.shelf.writing.lock().await;
        let now = self.inner.kept().document(read.id).await.map_err(|error| error.to_string())?;
        let wanted =
            |now: &DocumentRecord| now.state == read.state && !Knowledge::is_cancelled(now);
        let Some((now, _)) = now.filter(|(now, _)| wanted(now)) else { return Ok(None) };
        new.about["attributes"] = now.about["attributes"].clone();
        Ok(Some(writing))
    }

    /// Keeps why a document cannot be read; what it said before is void, unless the trouble may pass.
    async fn fail(
        &self,
        path: &str,
        known: Option<&DocumentRecord>,
        stamp: &Stamp,
        trouble: &Trouble,
        passing: bool,
    ) -> Result<(), String> {
        self.shelf.with(|state| state.failures.insert(path.to_owned(), trouble.clone()));
        let told = known.is_some_and(|record| {
            record.state == DocumentState::Failed
                && trouble_of(record).as_ref() == Some(trouble)
                && record.size_bytes == stamp.size
                && record.modified_ms == stamp.modified_ms
                && record.recipe == self.shelf.recipe()
        });
        if told {
            return Ok(());
        }
        // What passes leaves the document as it was.
        if passing && known.is_some() {
            return Ok(());
        }
        if let Some(known) = known {
            self.inner.take_down(&self.shelf, &[known.id], &[]).await;
        }
        let mut new = self.new_document(path, &Origin::Bytes(Bytes::new()), known, stamp);
        new.state = DocumentState::Failed;
        new.about = json!({"trouble": trouble_json(trouble)});
        let id = new.id;
        self.inner.kept().put_document(new).await.map_err(|error| error.to_string())?;
        if known.is_some() {
            self.shelf.change(Change::Remove(id.to_string().into())).await;
        }
        Ok(())
    }

    async fn fail_upload(&self, record: &DocumentRecord, trouble: &Trouble) -> Result<(), String> {
        if trouble.kind == TroubleKind::NoReader {
            return Ok(());
        }
        let mut new = self.new_document(
            &record.path,
            &Origin::Upload(Box::new(record.clone())),
            None,
            &Stamp::default(),
        );
        new.state = DocumentState::Failed;
        new.about["trouble"] = trouble_json(trouble);
        let Some(_writing) = self.take_over(record, &mut new).await? else { return Ok(()) };
        self.inner.kept().put_document(new).await.map_err(|error| error.to_string())?;
        Ok(())
    }

    fn new_document(
        &self,
        path: &str,
        at: &Origin,
        known: Option<&DocumentRecord>,
        stamp: &Stamp,
    ) -> NewDocument {
        let upload = match at {
            Origin::Upload(record) => Some(&**record),
            Origin::File { .. } | Origin::Bytes(_) => None,
        };
        let own = || {
            let parts = [self.shelf.tenant, self.shelf.name.as_str(), path];
            Uuid::new_v5(&Uuid::NAMESPACE_URL, &clearway_core::id::length_prefixed(&parts))
        };
        let before = known.or(upload);
        let of_upload = |take: fn(&DocumentRecord) -> String| upload.map(take);
        NewDocument {
            id: before.map_or_else(own, |record| record.id),
            tenant: of_upload(|record| record.tenant.clone())
                .unwrap_or_else(|| self.shelf.tenant.to_owned()),
            source: of_upload(|record| record.source.clone())
                .unwrap_or_else(|| self.shelf.name.clone()),
            path: path.to_owned(),
            owner: upload.and_then(|record| record.owner.clone()),
            state: DocumentState::Pending,
            hash: from_hex(&stamp.hash),
            size_bytes: upload.map_or(stamp.size, |record| record.size_bytes),
            modified_ms: stamp.modified_ms,
            recipe: self.shelf.recipe(),
            file: upload.and_then(|record| record.file),
            about: upload.map_or_else(|| json!({}), |record| record.about.clone()),
            content: DocumentContent::default(),
            limit: self.inner.options.limits.documents,
            only_if: upload.map(|record| record.id),
        }
    }
}

/// Tells a job in a lane to stop when its caller is gone.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn inline(bytes: &Bytes) -> Source {
    Source::Inline { bytes: bytes.len() as u64 }
}
