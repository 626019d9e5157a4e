//! A graph's state, what a node writes to it, and where it goes on.

use std::marker::PhantomData;
use std::sync::Arc;

use clearway_core::channel::{self, Reducer, Write};
use clearway_core::plan::{END, Goto};
use clearway_core::{Code, Failure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;

/// The state of a graph: each field is a *channel* of the thread.
///
/// Derive it. A field's type must be `Default` (a channel that nothing has written yet) and
/// (de)serialisable by serde. `#[channel(…)]` says how writes combine:
///
/// | attribute | means |
/// |---|---|
/// | none, or `last` | the last value stands; two writers in one superstep are an error |
/// | `append` | a list that grows |
/// | `merge_by_id` | a list of objects with an `id`; a known id is replaced in place |
/// | `set` | a list without equal elements |
/// | `merge` | an object whose fields are replaced one by one |
/// | `name = "…"` | the channel's name, where it is not the field's |
///
/// Only what is written is stored: a list that grows costs what is added, not what it is.
pub trait State: Send + Sync + Sized + 'static {
    /// Writes to some of the channels.
    type Update: Into<Writes> + Into<Next<Self>> + Default + Send;

    fn channels() -> Vec<(&'static str, Reducer)>;

    /// # Errors
    /// Says which channel holds what does not fit its field.
    fn read(values: &Values<'_>) -> Result<Self, Error>;

    /// Writes that replace all channels by this state.
    fn write_all(&self) -> Writes;
}

/// The channels of a thread, for [`State::read`].
#[derive(Debug)]
pub struct Values<'a> {
    state: &'a channel::State,
    scope: &'a str,
}

impl<'a> Values<'a> {
    pub(super) const fn new(state: &'a channel::State, scope: &'a str) -> Self {
        Self { state, scope }
    }

    /// A channel's value; the default when nothing was written.
    ///
    /// # Errors
    /// What is stored does not fit.
    pub fn get<T: DeserializeOwned + Default>(&self, channel: &str) -> Result<T, Error> {
        let name = format!("{}{channel}", self.scope);
        let Some(value) = self.state.get(&name) else { return Ok(T::default()) };
        serde_json::from_value(value).map_err(|error| {
            let text = format!("channel `{name}` does not fit its field: {error}");
            Failure::new(Code::InvalidUpdate, text).into()
        })
    }
}

/// Writes to channels, by name; made by the derived update.
#[derive(Debug, Default)]
pub struct Writes {
    writes: Vec<Write>,
    failed: Option<Failure>,
}

impl Writes {
    /// For the channel's reducer to combine with what is there.
    pub fn put<T: Serialize + ?Sized>(&mut self, channel: &str, value: &T) {
        self.add(channel, value, false);
    }

    /// In place of what is there.
    pub fn replace<T: Serialize + ?Sized>(&mut self, channel: &str, value: &T) {
        self.add(channel, value, true);
    }

    fn add<T: Serialize + ?Sized>(&mut self, channel: &str, value: &T, assign: bool) {
        match serde_json::to_value(value) {
            Ok(value) => self.writes.push(Write { channel: channel.into(), value, assign }),
            Err(error) => {
                let text = format!("what is written to channel `{channel}` is no JSON: {error}");
                self.failed.get_or_insert_with(|| Failure::new(Code::InvalidUpdate, text));
            }
        }
    }

    /// The writes, to channels below `scope`.
    pub(super) fn scoped(self, scope: &str) -> Result<Vec<Write>, Failure> {
        if let Some(failure) = self.failed {
            return Err(failure);
        }
        let scoped = self
            .writes
            .into_iter()
            .map(|write| Write { channel: format!("{scope}{}", write.channel).into(), ..write });
        Ok(scoped.collect())
    }

    /// As an agent's input: `{channel: value}`.
    pub(super) fn into_input(self) -> Result<Value, Failure> {
        let writes = self.scoped("")?;
        Ok(Value::Object(
            writes.into_iter().map(|write| (write.channel.to_string(), write.value)).collect(),
        ))
    }
}

/// What a node leaves: writes, and where to go on.
///
/// Made from an update (`Review::update().draft(d).into()`), by [`goto`] or [`end`]. Without a
/// destination the graph's edges and branches decide.
#[derive(Debug)]
#[must_use]
pub struct Next<S> {
    pub(super) writes: Writes,
    pub(super) goto: Option<Vec<To>>,
    state: PhantomData<fn() -> S>,
}

impl<S> Default for Next<S> {
    /// Nothing written, on along the edges.
    fn default() -> Self {
        Self::writing(Writes::default())
    }
}

impl<S> Next<S> {
    pub const fn writing(writes: Writes) -> Self {
        Self { writes, goto: None, state: PhantomData }
    }

    /// On to that node instead of along the edges. The graph must have been told of it by
    /// [`may_go`](super::Builder::may_go) or a branch. Several destinations run side by side.
    pub fn goto(self, node: impl Into<String>) -> Self {
        self.to(To::node(node))
    }

    /// A call of that node with a payload of its own, beside others.
    pub fn send(self, node: impl Into<String>, payload: impl Serialize) -> Self {
        self.to(To::send(node, payload))
    }

    pub fn to(mut self, to: To) -> Self {
        self.goto.get_or_insert_default().push(to);
        self
    }
}

impl<S: State> Next<S> {
    /// Adds writes.
    pub fn update(mut self, update: S::Update) -> Self {
        let Writes { writes, failed } = update.into();
        self.writes.writes.extend(writes);
        self.writes.failed = self.writes.failed.or(failed);
        self
    }
}

impl<S> From<()> for Next<S> {
    fn from((): ()) -> Self {
        Self::default()
    }
}

/// On to that node.
pub fn goto<S>(node: impl Into<String>) -> Next<S> {
    Next::default().goto(node)
}

/// This branch of the graph ends here.
pub fn end<S>() -> Next<S> {
    Next::default().goto(END)
}

/// One destination.
#[derive(Clone, Debug)]
pub struct To {
    pub(super) node: String,
    pub(super) payload: Option<Result<Value, String>>,
}

impl To {
    pub fn node(node: impl Into<String>) -> Self {
        Self { node: node.into(), payload: None }
    }

    /// With a payload, which the call reads by [`Ctx::payload`](super::Ctx::payload).
    pub fn send(node: impl Into<String>, payload: impl Serialize) -> Self {
        let payload = serde_json::to_value(payload).map_err(|error| error.to_string());
        Self { node: node.into(), payload: Some(payload) }
    }

    /// For the engine, below `scope`.
    pub(super) fn scoped(&self, scope: &str) -> Result<Goto, Failure> {
        let node: Arc<str> =
            if self.node == END { END.into() } else { format!("{scope}{}", self.node).into() };
        match &self.payload {
            None => Ok(Goto::Node(node)),
            Some(Ok(payload)) => Ok(Goto::Send { node, payload: payload.clone() }),
            Some(Err(error)) => {
                let text = format!("the payload for `{}` is no JSON: {error}", self.node);
                Err(Failure::new(Code::InvalidUpdate, text))
            }
        }
    }
}

impl From<&str> for To {
    fn from(node: &str) -> Self {
        Self::node(node)
    }
}

impl From<String> for To {
    fn from(node: String) -> Self {
        Self::node(node)
    }
}

/// Where a branch leads: a node's name, or several destinations; none ends the branch.
#[derive(Clone, Debug, Default)]
pub struct Route(pub(super) Vec<To>);

impl From<&str> for Route {
    fn from(node: &str) -> Self {
        Self(vec![To::node(node)])
    }
}

impl From<String> for Route {
    fn from(node: String) -> Self {
        Self(vec![To::node(node)])
    }
}

impl From<To> for Route {
    fn from(to: To) -> Self {
        Self(vec![to])
    }
}

impl<T: Into<To>> From<Vec<T>> for Route {
    fn from(to: Vec<T>) -> Self {
        Self(to.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<To>> From<Option<T>> for Route {
    fn from(to: Option<T>) -> Self {
        Self(to.into_iter().map(Into::into).collect())
    }
}

/// How a node failed that an error handler took over from; the type of the field that
/// [`on_error`](super::IntoNode::on_error) names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    pub error: FaultError,
}

/// See [`Fault`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FaultError {
    /// As [`Code`], which is stable.
    pub code: String,
    pub message: String,
}
