//! What a node may do while it runs.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use clearway_core::event::Part;
use clearway_core::message::Message;
use clearway_core::{Code, Failure, RunId, Status, ThreadId, Timestamp};
use clearway_engine::chat::complete;
use clearway_engine::upstream::ChatRequest;
use clearway_engine::{ActionError, ArtifactRecord, Child, ChildEnd, Effect, Expiry, NodeError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Error, State, Values};

/// What a node may know and do. Cheap to clone.
///
/// Names given to `step`, `write`, `sleep`, `signal` and `child` are how what was done is found again when
/// the node is called again, so they must be the same each time, and different for different things.
#[derive(Clone, Debug)]
pub struct Ctx {
    inner: clearway_engine::Ctx,
    scope: Arc<str>,
    shown: Arc<Shown>,
}

/// Messages of this try.
#[derive(Debug, Default)]
struct Shown {
    /// Id of the one that the node's tokens make.
    started: OnceLock<Uuid>,
    calls: AtomicU32,
}

impl Ctx {
    pub(super) fn new(inner: clearway_engine::Ctx, scope: Arc<str>) -> Self {
        Self { inner, scope, shown: Arc::default() }
    }

    /// The message that the node's tokens or its last model call made.
    pub(super) fn reply(&self) -> Option<Uuid> {
        let calls = self.shown.calls.load(Ordering::Relaxed);
        match calls.checked_sub(1) {
            Some(last) => Some(self.inner.message_id(last + 1)),
            None => self.shown.started.get().copied(),
        }
    }

    pub const fn run(&self) -> RunId {
        self.inner.run
    }

    pub const fn thread(&self) -> ThreadId {
        self.inner.thread
    }

    /// The node's name; in a subgraph, below the subgraph's.
    pub fn node(&self) -> &str {
        &self.inner.node
    }

    /// What the run's caller set for it alone: `context` or `config.configurable` of LangGraph's
    /// clients.
    pub fn context(&self) -> &Map<String, Value> {
        &self.inner.record().options.context
    }

    /// The superstep, from 0.
    pub const fn superstep(&self) -> i64 {
        self.inner.step
    }

    /// Claims of the run so far: above 1, the server has restarted in between.
    pub const fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// For what this call does outside: the same whenever the call is made again, after a crash too,
    /// and no other call's.
    pub fn idempotency_key(&self) -> String {
        self.inner.idempotency_key()
    }

    /// What this call was sent with, in a fan-out.
    ///
    /// # Errors
    /// It was not sent, or what was sent is something else.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let Some(payload) = &self.inner.payload else {
            let text = format!("node `{}` was not sent a payload", self.node());
            return Err(Failure::new(Code::InvalidUpdate, text).into());
        };
        read(payload, "the payload")
    }

    // ## What readers see at once

    /// A piece of the node's reply.
    ///
    /// # Errors
    /// The run's output is over its limit.
    pub fn token(&self, text: &str) -> Result<(), Error> {
        let id = match self.shown.started.get() {
            Some(id) => *id,
            None => {
                let id = self.inner.message_id(0);
                if self.shown.started.set(id).is_ok() {
                    self.inner.message_started(id)?;
                }
                id
            }
        };
        Ok(self.inner.delta(id, Part::Text, text)?)
    }

    /// The id that a message made of this node's tokens must have in the state.
    pub fn reply_id(&self) -> String {
        self.inner.message_id(0).to_string()
    }

    /// An event for the graph's own clients.
    ///
    /// # Errors
    /// As [`Ctx::token`].
    pub fn emit(&self, name: &str, data: impl Serialize) -> Result<(), Error> {
        Ok(self.inner.emit(name, &json(data)?)?)
    }

    /// Progress as a share of known work.
    ///
    /// # Errors
    /// As [`Ctx::token`].
    pub fn progress(&self, done: u64, total: u64) -> Result<(), Error> {
        Ok(self.inner.progress_of("", done, total)?)
    }

    /// Progress in words.
    ///
    /// # Errors
    /// As [`Ctx::token`].
    pub fn status(&self, text: &str) -> Result<(), Error> {
        Ok(self.inner.progress(text)?)
    }

    /// A sign of life of a call that shows nothing for long; see
    /// [`idle_timeout`](super::IntoNode::idle_timeout).
    pub fn heartbeat(&self) {
        self.inner.heartbeat();
    }

    /// Fires when the call is given up (cancel, time limit, shutdown). The node's future is dropped
    /// then, so only work that this does not stop needs it: a blocking loop elsewhere.
    pub fn cancelled(&self) -> CancellationToken {
        self.inner.cancelled()
    }

    // ## What is kept

    /// Keeps a file with the run. The same name again, from another call, makes a new version.
    ///
    /// # Errors
    /// The name is none, or a limit is reached.
    pub async fn artifact(
        &self,
        name: &str,
        media_type: &str,
        bytes: impl Into<Bytes> + Send,
    ) -> Result<ArtifactRecord, Error> {
        self.inner.artifact(name, media_type, bytes.into()).await.map_err(Error)
    }

    /// Does `work` once: its value is kept and found again when the node is called again.
    ///
    /// # Errors
    /// Those of `work`, which are not kept.
    pub async fn step<T, F>(&self, name: &str, work: F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        F: Future<Output = Result<T, Error>> + Send,
    {
        let work = async { json(work.await.map_err(|error| error.0)?).map_err(|error| error.0) };
        let value = self.inner.step(name, work).await.map_err(Error)?;
        read(&value, name)
    }

    /// Does something outside that must not happen twice.
    ///
    /// It is announced durably before it is done. When its outcome is not known (a crash in between,
    /// or [`ActionError::Unknown`]) the run waits for somebody to decide, instead of guessing:
    /// `clearway runs resolve`. `action` gets an idempotency key to hand on.
    ///
    /// # Errors
    /// Those of the action; waits when its outcome is not known.
    pub async fn write<T, A, F>(&self, name: &str, action: A) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        A: FnOnce(String) -> F + Send,
        F: Future<Output = Result<T, ActionError>> + Send,
    {
        self.act(name, Effect::Write, action).await
    }

    /// As [`Ctx::write`], for an action of any class: what only reads, or is recognised by its
    /// idempotency key, is repeated without asking.
    ///
    /// # Errors
    /// As [`Ctx::write`].
    pub async fn act<T, A, F>(&self, name: &str, effect: Effect, action: A) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        A: FnOnce(String) -> F + Send,
        F: Future<Output = Result<T, ActionError>> + Send,
    {
        let action = move |key| async move {
            let value = action(key).await?;
            serde_json::to_value(value).map_err(|error| {
                let text = format!("the result of `{name}` is no JSON: {error}");
                ActionError::Unknown(Failure::new(Code::InvalidUpdate, text))
            })
        };
        let value = self.inner.act(name, effect, action).await.map_err(Error)?;
        read(&value, name)
    }

    // ## What is waited for without a slot

    /// Asks a person. The run ends with this; a later run of the thread brings the answer, and then
    /// the node is called again and gets it here. Several questions are asked one after the other.
    ///
    /// # Errors
    /// Until the answer is there: hand the error on.
    pub async fn interrupt<T: DeserializeOwned>(
        &self,
        question: impl Serialize + Send,
    ) -> Result<T, Error> {
        let answer = self.inner.interrupt(json(question)?).map_err(Error)?;
        read(&answer, "the answer")
    }

    /// As [`Ctx::interrupt`]; if nobody has answered after so long, `otherwise` is the answer.
    ///
    /// # Errors
    /// As [`Ctx::interrupt`].
    pub async fn interrupt_for<T: Serialize + DeserializeOwned + Send>(
        &self,
        question: impl Serialize + Send,
        after: Duration,
        otherwise: T,
    ) -> Result<T, Error> {
        let expiry = Expiry { after, answer: json(otherwise)? };
        let answer = self.inner.interrupt_for(json(question)?, Some(expiry)).map_err(Error)?;
        read(&answer, "the answer")
    }

    /// Waits for so long, counted from the first time; a wait that is worth it gives up the slot.
    ///
    /// # Errors
    /// Until the time has come: hand the error on.
    pub async fn sleep(&self, name: &str, duration: Duration) -> Result<(), Error> {
        self.inner.sleep(name, duration).await.map_err(Error)
    }

    /// As [`Ctx::sleep`], until a time.
    ///
    /// # Errors
    /// As [`Ctx::sleep`].
    pub async fn sleep_until(&self, name: &str, at: Timestamp) -> Result<(), Error> {
        self.inner.sleep_until(name, at).await.map_err(Error)
    }

    /// The next signal of that name that is sent to the run.
    ///
    /// # Errors
    /// Until there is one: hand the error on.
    pub async fn signal<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        match self.inner.signal(name, None).await.map_err(Error)? {
            Some(value) => read(&value, name),
            None => Err(Failure::new(Code::Internal, "a signal without a value").into()),
        }
    }

    /// As [`Ctx::signal`], until a time; then `None`.
    ///
    /// # Errors
    /// As [`Ctx::signal`].
    pub async fn signal_until<T: DeserializeOwned>(
        &self,
        name: &str,
        until: Timestamp,
    ) -> Result<Option<T>, Error> {
        let value = self.inner.signal(name, Some(until)).await.map_err(Error)?;
        value.map(|value| read(&value, name)).transpose()
    }

    /// Runs another agent, on a thread of its own, and waits for its end. Graphs, workflows and chat
    /// agents are all agents; `input` is what it takes.
    ///
    /// # Errors
    /// It did not end well; until it has ended: hand the error on.
    pub async fn child<C: State>(
        &self,
        name: &str,
        agent: &str,
        input: C::Update,
    ) -> Result<C, Error> {
        let children = vec![(name.to_owned(), input)];
        let mut ends = self.children(agent, children, 1).await?;
        ends.pop().ok_or_else(|| Failure::new(Code::Internal, "a child without an end").into())
    }

    /// As [`Ctx::child`], for many: at most `at_once` of them at the same time.
    ///
    /// # Errors
    /// As [`Ctx::child`].
    pub async fn children<C: State>(
        &self,
        agent: &str,
        inputs: Vec<(String, C::Update)>,
        at_once: usize,
    ) -> Result<Vec<C>, Error> {
        let mut children = Vec::with_capacity(inputs.len());
        for (name, input) in inputs {
            let input = input.into();
            let input = super::Writes::into_input(input)?;
            let child = Child { agent: agent.to_owned(), input, metadata: Map::new() };
            children.push((name, child));
        }
        let ends = self.inner.children(children, at_once).await.map_err(Error)?;
        ends.into_iter().map(state_of).collect()
    }

    // ## Models

    /// Calls a model of the configuration; its tokens are shown as they come.
    ///
    /// # Errors
    /// Those of the provider, after retries and fallbacks.
    pub async fn llm(&self, model: &str, messages: &[Message]) -> Result<Message, Error> {
        let n = self.shown.calls.fetch_add(1, Ordering::Relaxed);
        let request = ChatRequest {
            model: model.to_owned(),
            messages: messages.iter().map(|message| Arc::new(message.to_value())).collect(),
            params: Map::new(),
        };
        let name = if n == 0 { String::new() } else { format!("-{n}") };
        complete(&self.inner, &name, n + 1, request).await.map_err(Error)
    }

    /// The untyped context, for what is not here.
    pub const fn engine(&self) -> &clearway_engine::Ctx {
        &self.inner
    }

    /// Where the channels of this node's graph begin: empty outside of subgraphs.
    pub fn scope(&self) -> &str {
        &self.scope
    }
}

fn state_of<C: State>(end: ChildEnd) -> Result<C, Error> {
    if end.status != Status::Success {
        let failure = end.failure.unwrap_or_else(|| {
            let text = format!("run {} ended as {}", end.run, end.status.as_str());
            Failure::new(Code::StepFailed, text)
        });
        return Err(Error(NodeError::Failed(failure.with("child", end.run.to_string()))));
    }
    let mut state = clearway_core::channel::State::new();
    if let Some(Value::Object(values)) = end.state {
        for (channel, value) in values {
            state.apply(&channel, clearway_core::channel::Op::Assign(value));
        }
    }
    C::read(&Values::new(&state, ""))
}

fn json(value: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|error| {
        Failure::new(Code::InvalidUpdate, format!("a value is no JSON: {error}")).into()
    })
}

fn read<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, Error> {
    T::deserialize(value).map_err(|error| {
        let text = format!("{what} is not what was expected: {error}");
        Failure::new(Code::InvalidUpdate, text).into()
    })
}
