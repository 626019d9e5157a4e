//! What a node call does once, across crashes: memoised steps, outward writes, timers, signals,
//! child runs, artifacts.
//!
//! All of it is notes in the run's journal, found again when the call is made again. A note is
//! durable before what it announces happens, and fenced: an owner that lost its lease writes none.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use clearway_core::event::EventKind;
use clearway_core::journal::Entry;
use clearway_core::machine::Park;
use clearway_core::run::RunOptions;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Failure, RunId, RunRecord, Status, TaskId, ThreadId, Timestamp};
use clearway_store::{ArtifactRecord, ArtifactStored, Journaled, NewArtifact};
use serde_json::{Map, Value, json};

use crate::agent::NodeError;
use crate::clock::instant;
use crate::ctx::Ctx;
use crate::engine::bounded_by;
use crate::live::lock;
use crate::{Kind, Submit};

/// What repeating an outward action would mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it only reads.
    Read,
    /// Nothing: the other side recognises the call's idempotency key.
    Idempotent,
    /// It would happen twice.
    Write,
}

impl Effect {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "read" => Some(Self::Read),
            "idempotent" => Some(Self::Idempotent),
            "write" => Some(Self::Write),
            _ => None,
        }
    }
}

/// Why an outward action failed.
#[derive(Clone, Debug)]
pub enum ActionError {
    /// It certainly did not happen, or what happened is known: it may be tried again.
    NotDone(Failure),
    /// Nobody knows whether it happened.
    Unknown(Failure),
}

/// A run to be started by a call.
#[derive(Clone, Debug)]
pub struct Child {
    pub agent: String,
    pub input: Value,
    pub metadata: Map<String, Value>,
}

/// How a child run ended.
#[derive(Clone, Debug)]
pub struct ChildEnd {
    pub run: RunId,
    pub thread: ThreadId,
    pub status: Status,
    pub failure: Option<Failure>,
    /// Its thread's state, when it ended well.
    pub state: Option<Value>,
}

/// How far a run is.
#[derive(Clone, Debug)]
pub struct Look {
    pub record: RunRecord,
    /// Kind and detail, while it has not ended.
    pub waiting_on: Option<(&'static str, Arc<str>)>,
    /// Its thread's state, when it ended well.
    pub state: Option<Value>,
    /// Names of the files it made.
    pub artifacts: Vec<String>,
}

impl Ctx {
    /// Runs `work` unless it was done before under this name; its value is kept.
    ///
    /// # Errors
    /// Those of `work`, which are not kept; `store_unavailable`; `fenced`.
    pub async fn step<F>(&self, name: &str, work: F) -> Result<Value, NodeError>
    where
        F: Future<Output = Result<Value, NodeError>> + Send,
    {
        let key = format!("step:{name}");
        if let Some(value) = self.note(&key) {
            return Ok(value);
        }
        let value = work.await?;
        self.keep(vec![(self.task, key, value.clone())]).await?;
        Ok(value)
    }

    /// Does something outside, as its effect class asks for. `action` gets the idempotency key.
    ///
    /// A write is announced before it is made. When the announcement is there and the outcome is
    /// not, the run waits for a decision: `clearway runs resolve`.
    ///
    /// # Errors
    /// Those of the action; parks when the outcome of a write is not known.
    pub async fn act<A, F>(&self, name: &str, effect: Effect, action: A) -> Result<Value, NodeError>
    where
        A: FnOnce(String) -> F + Send,
        F: Future<Output = Result<Value, ActionError>> + Send,
    {
        let idempotency_key = format!("{}-{name}", self.task);
        if effect != Effect::Write {
            let work = async {
                action(idempotency_key).await.map_err(|error| match error {
                    ActionError::NotDone(failure) | ActionError::Unknown(failure) => {
                        NodeError::Failed(failure)
                    }
                })
            };
            return self.step(name, work).await;
        }
        let mut k = 0;
        while self.note(&format!("intent:{name}:{k}")).is_some() {
            if let Some(value) = self.note(&format!("result:{name}:{k}")) {
                return Ok(value);
            }
            match self.note(&format!("decision:{name}:{k}")) {
                None => return Err(self.undecided(name)),
                Some(decision) if decision["done"].is_null() && decision["retry"] == true => k += 1,
                Some(decision) => return Ok(decision["done"].clone()),
            }
        }
        // Whoever decides must know a write that is being made from one that was left behind.
        let announced = json!({
            "node": &*self.node, "name": name, "at": self.now().to_string(),
            "fence": self.record.fence,
        });
        self.keep(vec![(self.task, format!("intent:{name}:{k}"), announced)]).await?;
        match action(idempotency_key).await {
            Ok(value) => {
                let key = format!("result:{name}:{k}");
                self.keep(vec![(self.task, key, value.clone())]).await?;
                Ok(value)
            }
            Err(ActionError::NotDone(failure)) => {
                let again = json!({"retry": true, "by": "not done"});
                self.keep(vec![(self.task, format!("decision:{name}:{k}"), again)]).await?;
                Err(failure.into())
            }
            Err(ActionError::Unknown(failure)) => {
                tracing::warn!(
                    run.id = %self.run, thread.id = %self.thread, code = %failure.code,
                    "the outcome of write `{name}` of node `{}` is not known", self.node
                );
                self.keep(vec![(self.task, format!("unknown:{name}:{k}"), true.into())]).await?;
                Err(self.undecided(name))
            }
        }
    }

    fn undecided(&self, name: &str) -> NodeError {
        NodeError::Park(Park {
            kind: WaitKind::Decision,
            detail: format!("whether write `{name}` of node `{}` happened", self.node),
            wake_at: None,
            on_child: false,
        })
    }

    /// Waits for so long, counted from the first time. A wait that is worth it gives up the slot.
    ///
    /// # Errors
    /// Parks; `store_unavailable`; `fenced`.
    pub async fn sleep(&self, name: &str, duration: Duration) -> Result<(), NodeError> {
        let at = self.now().plus(duration);
        self.sleep_until(name, at).await
    }

    /// As [`Ctx::sleep`], until a time. The first call under a name decides on it.
    ///
    /// # Errors
    /// As [`Ctx::sleep`].
    pub async fn sleep_until(&self, name: &str, at: Timestamp) -> Result<(), NodeError> {
        let key = format!("timer:{name}");
        let at = match self.note(&key).and_then(|note| note.as_i64()) {
            Some(at) => Timestamp(at),
            None => {
                if at > self.now() {
                    self.keep(vec![(self.task, key, at.0.into())]).await?;
                }
                at
            }
        };
        let left = at.since(self.now());
        if left > SHORT_SLEEP {
            return Err(NodeError::Park(Park {
                kind: WaitKind::Timer,
                detail: format!("node `{}` until {at}", self.node),
                wake_at: Some(at),
                on_child: false,
            }));
        }
        if !left.is_zero() {
            self.wait.enter(WaitKind::Timer, "", Some(self.deadline), instant());
            tokio::time::sleep(left).await;
            self.wait.enter(WaitKind::Work, "", Some(self.deadline), instant());
        }
        Ok(())
    }

    /// The next signal called `name` that was sent to this run; waits for it without a slot, at
    /// most until `until`, and then gives `None`.
    ///
    /// # Errors
    /// Parks; `store_unavailable`; `fenced`.
    pub async fn signal(
        &self,
        name: &str,
        until: Option<Timestamp>,
    ) -> Result<Option<Value>, NodeError> {
        let count = {
            let mut taken = lock(&self.session.taken);
            let count = taken.entry(name.to_owned()).or_default();
            *count += 1;
            *count - 1
        };
        let own = format!("signal:{name}:{count}");
        if let Some(value) = self.note(&own) {
            return Ok(Some(value));
        }
        let (sent, got) = (format!("signal:{name}:"), format!("got:{name}:"));
        let found = {
            let signals = lock(&self.session.signals);
            let mut waiting =
                signals.range(sent.clone()..).take_while(|(key, _)| key.starts_with(&sent));
            waiting
                .find(|(key, _)| !signals.contains_key(&format!("{got}{}", &key[sent.len()..])))
                .map(|(key, value)| (key[sent.len()..].to_owned(), value.clone()))
        };
        if let Some((id, value)) = found {
            let run_task = TaskId(self.run.0);
            let taken = (run_task, format!("{got}{id}"), json!(self.task.to_string()));
            self.keep(vec![taken, (self.task, own, value.clone())]).await?;
            return Ok(Some(value));
        }
        if until.is_some_and(|until| until <= self.now()) {
            return Ok(None);
        }
        Err(NodeError::Park(Park {
            kind: WaitKind::Signal,
            detail: format!("signal `{name}`"),
            wake_at: until,
            on_child: false,
        }))
    }

    /// Starts a run of another agent, on a thread of its own, and waits for its end without a slot.
    ///
    /// # Errors
    /// Parks; those of starting a run.
    pub async fn child(&self, name: &str, child: Child) -> Result<ChildEnd, NodeError> {
        let ends = self.children(vec![(name.to_owned(), child)], 1).await?;
        let end = ends.into_iter().next();
        end.ok_or_else(|| Failure::new(Code::Internal, "a child without an end").into())
    }

    /// As [`Ctx::child`], for many: at most `at_once` of them run at the same time. They end with
    /// this run when it ends without success.
    ///
    /// # Errors
    /// As [`Ctx::child`].
    pub async fn children(
        &self,
        children: Vec<(String, Child)>,
        at_once: usize,
    ) -> Result<Vec<ChildEnd>, NodeError> {
        let mut ends = Vec::with_capacity(children.len());
        let (mut open, total) = (Vec::new(), children.len());
        for (name, child) in children {
            let ended = format!("child-end:{name}");
            if let Some(end) = self.note(&ended).and_then(|note| ChildEnd::from_json(&note)) {
                ends.push(end);
                continue;
            }
            if open.len() >= at_once.max(1) {
                continue;
            }
            let (run, thread) = self.start_run(&name, child, Some(self.run)).await?;
            let Some(end) = self.ended(run, thread).await? else {
                open.push(run);
                continue;
            };
            self.keep(vec![(self.task, ended, end.to_json())]).await?;
            ends.push(end);
        }
        if ends.len() == total {
            for end in ends.iter_mut().filter(|end| end.status == Status::Success) {
                let state = self.repeat(|| self.inner.store.state(end.thread, None)).await?;
                end.state = state.map(|at| at.state.to_json());
            }
            return Ok(ends);
        }
        let detail = match open.as_slice() {
            [one] => format!("run {one}"),
            many => format!("{} runs, {} of {total} ended", many.len(), ends.len()),
        };
        // One that ended meanwhile makes room for the next, so the wait is for any of them.
        Err(NodeError::Park(Park { kind: WaitKind::Child, detail, wake_at: None, on_child: true }))
    }

    /// Starts a run of another agent, on a thread of its own, that goes on by itself: once under
    /// this name, however often the call is made.
    ///
    /// # Errors
    /// Those of starting a run; `store_unavailable`; `fenced`.
    pub async fn start(&self, name: &str, run: Child) -> Result<(RunId, ThreadId), NodeError> {
        self.start_run(name, run, None).await
    }

    /// How far any run is; `None` when there is no such run. Whether this call may know is for the
    /// caller to judge.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn look(&self, run: RunId) -> Result<Option<Look>, NodeError> {
        let store = &self.inner.store;
        let record = bounded_by(self.deadline.0, store.run(run)).await.map_err(lost)?;
        let Some(record) = record else { return Ok(None) };
        let files = store.artifacts(clearway_store::ArtifactScope::Run(run));
        let files = bounded_by(self.deadline.0, files).await.map_err(lost)?;
        let state = match record.status {
            Status::Success => {
                let state = store.state(record.thread, None);
                bounded_by(self.deadline.0, state).await.map_err(lost)?
            }
            _ => None,
        };
        let view = self.inner.view(record).await;
        Ok(Some(Look {
            record: view.record,
            waiting_on: view.waiting.map(|waiting| (waiting.kind.as_str(), waiting.detail)),
            state: state.map(|at| at.state.to_json()),
            artifacts: files.into_iter().map(|file| file.name).collect(),
        }))
    }

    async fn start_run(
        &self,
        name: &str,
        child: Child,
        parent: Option<RunId>,
    ) -> Result<(RunId, ThreadId), NodeError> {
        let key = format!("child:{name}");
        let (run, thread, known) = match self.note(&key) {
            Some(note) => {
                let id = |field: &str| note[field].as_str().and_then(|text| text.parse().ok());
                let run = id("run").map(RunId);
                let thread = id("thread").map(ThreadId);
                let damaged = || Failure::new(Code::Internal, "a child's note is damaged");
                (run.ok_or_else(damaged)?, thread.ok_or_else(damaged)?, true)
            }
            None => {
                let (run, thread) = (self.inner.ids.run(), self.inner.ids.thread());
                let note = json!({
                    "run": run.to_string(), "thread": thread.to_string(), "agent": child.agent,
                });
                self.keep(vec![(self.task, key, note)]).await?;
                (run, thread, false)
            }
        };
        // Noted and not created: the process died in between.
        if known && self.repeat(|| self.inner.store.run(run)).await?.is_some() {
            return Ok((run, thread));
        }
        let submit = Submit {
            owner: self.record.owner.clone(),
            tenant: self.record.tenant.clone(),
            metadata: child.metadata,
            priority: Some(self.record.priority),
            parent,
            id: Some(run),
            kind: Kind::Background { working_limit: None },
            options: RunOptions {
                context: self.record.options.context.clone(),
                ..RunOptions::default()
            },
            ..Submit::new(thread, &child.agent, "child", child.input)
        };
        self.inner.clone().submit_boxed(submit).await.map_err(|error| error.0)?;
        let data = json!({
            "run_id": run.to_string(), "agent": child.agent, "node": &*self.node, "name": name,
        });
        self.fact(EventKind::ChildStarted, &data)?;
        Ok((run, thread))
    }

    async fn ended(&self, run: RunId, thread: ThreadId) -> Result<Option<ChildEnd>, NodeError> {
        let Some(record) = self.repeat(|| self.inner.store.run(run)).await? else {
            let text = format!("child run {run} is gone");
            return Err(Failure::new(Code::RunNotFound, text).into());
        };
        if !record.status.is_terminal() {
            return Ok(None);
        }
        let end =
            ChildEnd { run, thread, status: record.status, failure: record.failure, state: None };
        Ok(Some(end))
    }

    /// Keeps a file. The same name again, from another call, makes a new version of it.
    ///
    /// # Errors
    /// `limit_exceeded` naming `artifact_bytes` or `artifacts_per_run`; `invalid_request` for a
    /// name that is no file name; `store_unavailable`; `fenced`.
    pub async fn artifact(
        &self,
        name: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<ArtifactRecord, NodeError> {
        check_name(name)?;
        let limits = &self.inner.options.limits;
        if bytes.len() > limits.artifact_bytes {
            let text = format!(
                "artifact `{name}` has {} bytes; `artifact_bytes` is {}",
                bytes.len(),
                limits.artifact_bytes
            );
            return Err(Failure::new(Code::LimitExceeded, text)
                .with("limit", "artifact_bytes")
                .into());
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest.as_ref());
        let new = NewArtifact {
            run: self.run,
            fence: self.record.fence,
            task: self.task,
            node: (*self.node).to_owned(),
            name: name.to_owned(),
            media_type: media_type.to_owned(),
            sha256,
            bytes,
            limit: limits.artifacts_per_run,
        };
        // The same call's same name replaces its own version, so a repetition is harmless.
        let stored = self.repeat(|| self.inner.store.put_artifact(new.clone())).await?;
        match stored {
            ArtifactStored::Stored(record) => {
                let data = json!({
                    "name": record.name, "version": record.version,
                    "media_type": record.media_type, "size_bytes": record.size_bytes,
                    "sha256": hex(&record.sha256), "node": record.node,
                });
                self.fact(EventKind::ArtifactSaved, &data)?;
                Ok(record)
            }
            ArtifactStored::TooMany => {
                let text = format!(
                    "the run has {} artifacts already; `artifacts_per_run` allows no more",
                    limits.artifacts_per_run
                );
                let failure = Failure::new(Code::LimitExceeded, text);
                Err(failure.with("limit", "artifacts_per_run").into())
            }
            ArtifactStored::Fenced => Err(fenced()),
        }
    }

    /// A note of this call.
    fn note(&self, key: &str) -> Option<Value> {
        lock(&self.session.notes).get(key).cloned()
    }

    fn now(&self) -> Timestamp {
        self.inner.clocks.now()
    }

    /// Asks the store what may be asked twice; one hiccup of it is not the run's failure.
    async fn repeat<T, F>(&self, ask: impl Fn() -> F) -> Result<T, NodeError>
    where
        F: Future<Output = clearway_store::Result<T>>,
    {
        let mut tries = 0;
        loop {
            match bounded_by(self.deadline.0, ask()).await {
                Ok(value) => return Ok(value),
                Err(error)
                    if tries < KEEP_TRIES && (error.is_transient() || !error.certainly_aborted) =>
                {
                    tries += 1;
                    tokio::time::sleep(KEEP_PAUSE * tries).await;
                }
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Makes notes durable.
    async fn keep(&self, notes: Vec<(TaskId, String, Value)>) -> Result<(), NodeError> {
        self.session.noted.store(true, Ordering::Release);
        let entries: Vec<Entry> = notes
            .iter()
            .map(|(task, key, data)| Entry { task: *task, key: key.clone(), data: data.clone() })
            .collect();
        let store = &self.inner.store;
        let mut tries = 0;
        loop {
            let kept = store.journal(self.run, self.record.fence, entries.clone());
            match bounded_by(self.deadline.0, kept).await {
                Ok(Journaled::Stored) => break,
                Ok(Journaled::Fenced) => return Err(fenced()),
                // The first note under a key stands, so a repetition is harmless.
                Err(error)
                    if tries < KEEP_TRIES && (error.is_transient() || !error.certainly_aborted) =>
                {
                    tries += 1;
                    tracing::warn!(run.id = %self.run, "a note could not be kept, trying again: {error}");
                    tokio::time::sleep(KEEP_PAUSE * tries).await;
                }
                Err(error) => return Err(lost(error)),
            }
        }
        let mut own = lock(&self.session.notes);
        let mut signals = lock(&self.session.signals);
        for (task, key, data) in notes {
            let place = if task == self.task { &mut own } else { &mut signals };
            place.entry(key).or_insert(data);
        }
        Ok(())
    }
}

impl ChildEnd {
    fn to_json(&self) -> Value {
        json!({
            "run": self.run.to_string(),
            "thread": self.thread.to_string(),
            "status": self.status.as_str(),
            "failure": self.failure.as_ref().map(Failure::to_json),
        })
    }

    fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            run: value["run"].as_str()?.parse().ok()?,
            thread: value["thread"].as_str()?.parse().ok()?,
            status: Status::parse(value["status"].as_str()?)?,
            failure: value["failure"].is_object().then(|| Failure::from_json(&value["failure"])),
            // Not noted: it is read when all have ended.
            state: None,
        })
    }
}

/// Below this, giving up the slot costs more than keeping it.
const SHORT_SLEEP: Duration = Duration::from_millis(500);

const KEEP_TRIES: u32 = 5;
const KEEP_PAUSE: Duration = Duration::from_millis(50);

/// Names are shown in addresses and written to disks.
fn check_name(name: &str) -> Result<(), Failure> {
    let sound = !name.is_empty()
        && name.len() <= 200
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':' | '"'));
    if sound {
        return Ok(());
    }
    let text = format!(
        "`{}` is no artifact name: up to 200 bytes, no slash, colon, quote or control character, \
         no leading dot",
        name.chars().take(80).collect::<String>().escape_debug()
    );
    Err(Failure::new(Code::InvalidRequest, text))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fenced() -> NodeError {
    Failure::new(Code::Fenced, "another instance has taken the run over").into()
}

fn lost(error: clearway_store::Error) -> NodeError {
    crate::Error::from(error).0.into()
}
