//! Channels: a thread's state as named values, each with a reducer.
//!
//! A channel is a log of [`Op`]s; its value is what the ops add up to. Only ops are stored, which is
//! what keeps a conversation's size linear in its length.
//!
//! **Invariant:** reducers are deterministic and batching-invariant: applying `xs` and then `ys`
//! equals applying `xs ++ ys`. Snapshots and replay rely on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{Code, Failure};

/// How writes to a channel combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reducer {
    /// The last write stands. Two writers in one superstep are an error.
    Last,
    /// A list that grows.
    Append,
    /// A list of objects with an `id`; a known id is replaced in place,
    /// `{"type": "remove", "id": …}` takes it out.
    MergeById,
    /// A list without equal elements, in order of first appearance.
    Set,
    /// An object whose fields are replaced one by one; `null` takes a field out.
    Merge,
}

impl Reducer {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Append => "append",
            Self::MergeById => "merge_by_id",
            Self::Set => "set",
            Self::Merge => "merge",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Last, Self::Append, Self::MergeById, Self::Set, Self::Merge]
            .into_iter()
            .find(|reducer| reducer.as_str() == text)
    }

    /// The op that a node's write means under this reducer. A lone value counts as a list of one;
    /// `null` for a list channel writes nothing, and what is no object replaces an object as a whole.
    pub fn op(self, value: Value) -> Option<Op> {
        let items = |value: Value| match value {
            Value::Array(items) => items,
            Value::Null => Vec::new(),
            other => vec![other],
        };
        let op = match self {
            Self::Last => return Some(Op::Assign(value)),
            Self::Append => Op::Append(items(value)),
            Self::MergeById => Op::Merge(items(value)),
            Self::Set => Op::Add(items(value)),
            Self::Merge => match value {
                Value::Object(fields) => Op::Patch(fields),
                Value::Null => return None,
                other => return Some(Op::Assign(other)),
            },
        };
        (!op.is_empty()).then_some(op)
    }
}

/// One change of one channel: what is stored as a delta.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Replace the whole value, of any channel.
    Assign(Value),
    Append(Vec<Value>),
    Merge(Vec<Value>),
    Add(Vec<Value>),
    /// Replace fields of an object; `null` takes one out.
    Patch(Map<String, Value>),
}

impl Op {
    /// Stored tag of the op; numbers are never reused.
    pub const fn tag(&self) -> u8 {
        match self {
            Self::Assign(_) => 0,
            Self::Append(_) => 1,
            Self::Merge(_) => 2,
            Self::Add(_) => 3,
            Self::Patch(_) => 4,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Assign(_) => false,
            Self::Append(items) | Self::Merge(items) | Self::Add(items) => items.is_empty(),
            Self::Patch(fields) => fields.is_empty(),
        }
    }

    /// The op's data as JSON; with [`Op::tag`] all that a store keeps.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = match self {
            Self::Assign(value) => serde_json::to_vec(value),
            Self::Append(items) | Self::Merge(items) | Self::Add(items) => {
                serde_json::to_vec(items)
            }
            Self::Patch(fields) => serde_json::to_vec(fields),
        };
        encoded.expect("JSON values always encode")
    }

    /// Reads what a store kept. `None` means the row is damaged or from a newer version.
    pub fn decode(tag: u8, data: &[u8]) -> Option<Self> {
        match tag {
            0 => return serde_json::from_slice(data).ok().map(Self::Assign),
            4 => return serde_json::from_slice(data).ok().map(Self::Patch),
            _ => {}
        }
        let items = serde_json::from_slice(data).ok()?;
        match tag {
            1 => Some(Self::Append(items)),
            2 => Some(Self::Merge(items)),
            3 => Some(Self::Add(items)),
            _ => None,
        }
    }
}

/// All channels of a thread at one point.
///
/// Cloning shares the values; the next write copies only the list of pointers, and not even that
/// when the clone is gone.
#[derive(Clone, Debug, Default)]
pub struct State {
    channels: BTreeMap<Arc<str>, Channel>,
    /// Version of the newest op; versions rise over the whole thread.
    version: u64,
    /// Rough size of the values in bytes, for caches.
    weight: usize,
}

#[derive(Clone, Debug)]
struct Channel {
    version: u64,
    value: ChannelValue,
}

#[derive(Clone, Debug)]
enum ChannelValue {
    One(Arc<Value>),
    List(Arc<List>),
}

#[derive(Clone, Debug, Default)]
struct List {
    items: Vec<Arc<Value>>,
    /// Position by key; built at the first op that needs it.
    index: Option<(Key, HashMap<String, usize>)>,
}

/// What a list's index is keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Id,
    Text,
}

impl Key {
    fn of(self, item: &Value) -> Option<String> {
        match self {
            Self::Id => item.get("id")?.as_str().map(ToOwned::to_owned),
            Self::Text => Some(item.to_string()),
        }
    }
}

impl State {
    pub fn new() -> Self {
        Self::default()
    }

    /// Version of the newest op applied.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Makes the next op get a number above `version`, for a thread whose newest ops are on another
    /// branch.
    pub fn raise_version(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// Rough size in bytes.
    pub const fn weight(&self) -> usize {
        self.weight
    }

    /// The version of each channel: what a checkpoint row holds.
    pub fn versions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.channels.iter().map(|(name, channel)| (&**name, channel.version))
    }

    /// Version of one channel; 0 when it was never written.
    pub fn channel_version(&self, name: &str) -> u64 {
        self.channels.get(name).map_or(0, |channel| channel.version)
    }

    /// Items of a list channel, oldest first; empty when it was never written.
    pub fn list(&self, name: &str) -> &[Arc<Value>] {
        match self.channels.get(name).map(|channel| &channel.value) {
            Some(ChannelValue::List(list)) => &list.items,
            Some(ChannelValue::One(_)) | None => &[],
        }
    }

    /// A channel's value as JSON; `None` when it was never written.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.channels.get(name).map(|channel| channel.value.to_json())
    }

    pub fn to_json(&self) -> Value {
        let values: Map<String, Value> = self
            .channels
            .iter()
            .map(|(name, channel)| ((**name).to_owned(), channel.value.to_json()))
            .collect();
        Value::Object(values)
    }

    /// Applies one op under the next version and returns that version.
    pub fn apply(&mut self, name: &str, op: Op) -> u64 {
        let version = self.version + 1;
        self.apply_at(name, op, version);
        version
    }

    /// Applies an op that already has its version, as when a stored log is replayed.
    pub fn apply_at(&mut self, name: &str, op: Op, version: u64) {
        self.version = self.version.max(version);
        let added = weigh_op(&op);
        let gone = if let Some(channel) = self.channels.get_mut(name) {
            channel.version = version;
            channel.value.apply(op)
        } else {
            let mut value = ChannelValue::empty_for(&op);
            let gone = value.apply(op);
            self.channels.insert(name.into(), Channel { version, value });
            gone
        };
        self.weight = (self.weight + added).saturating_sub(gone);
    }
}

impl PartialEq for State {
    /// Equal values under equal versions; caches and index layout do not count.
    fn eq(&self, other: &Self) -> bool {
        self.versions().eq(other.versions()) && self.to_json() == other.to_json()
    }
}

impl ChannelValue {
    fn empty_for(op: &Op) -> Self {
        match op {
            // Replaced at once; empty, so that it weighs nothing.
            Op::Assign(_) | Op::Append(_) | Op::Merge(_) | Op::Add(_) | Op::Patch(_) => {
                Self::List(Arc::default())
            }
        }
    }

    /// Returns the weight of what the op replaced or did not keep.
    fn apply(&mut self, op: Op) -> usize {
        match op {
            Op::Assign(value) => {
                let gone = self.weigh();
                *self = match value {
                    Value::Array(items) => Self::List(Arc::new(List::from_items(items))),
                    other => Self::One(Arc::new(other)),
                };
                gone
            }
            Op::Append(items) => {
                let list = self.make_list();
                items.into_iter().for_each(|item| list.append(item));
                0
            }
            Op::Merge(items) => {
                let list = self.make_list();
                items.into_iter().map(|item| list.merge(item)).sum()
            }
            Op::Add(items) => {
                let list = self.make_list();
                items.into_iter().map(|item| list.add(item)).sum()
            }
            Op::Patch(fields) => self.patch(fields),
        }
    }

    /// Anything but an object gives way to one.
    fn patch(&mut self, fields: Map<String, Value>) -> usize {
        let mut gone = 0;
        let mut object = match self {
            Self::One(value) if value.is_object() => Arc::unwrap_or_clone(std::mem::take(value)),
            Self::One(_) | Self::List(_) => {
                gone += self.weigh();
                Value::Object(Map::new())
            }
        };
        if let Value::Object(map) = &mut object {
            for (key, value) in fields {
                let old = match value {
                    Value::Null => {
                        gone += weigh(&value) + key.len();
                        map.shift_remove(&key)
                    }
                    value => map.insert(key.clone(), value),
                };
                gone += old.map_or(0, |old| weigh(&old) + key.len());
            }
        }
        *self = Self::One(Arc::new(object));
        gone
    }

    /// A list op on a single value (the channel's type was changed in the configuration) starts
    /// the list with that value, so nothing is lost.
    fn make_list(&mut self) -> &mut List {
        if let Self::One(value) = self {
            let items = if value.is_null() { Vec::new() } else { vec![(**value).clone()] };
            *self = Self::List(Arc::new(List::from_items(items)));
        }
        match self {
            Self::List(list) => Arc::make_mut(list),
            Self::One(_) => unreachable!("made a list above"),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::One(value) => (**value).clone(),
            Self::List(list) => {
                Value::Array(list.items.iter().map(|item| (**item).clone()).collect())
            }
        }
    }

    fn weigh(&self) -> usize {
        match self {
            Self::One(value) => weigh(value),
            Self::List(list) => list.items.iter().map(|item| weigh(item)).sum(),
        }
    }
}

impl List {
    fn from_items(items: Vec<Value>) -> Self {
        Self { items: items.into_iter().map(Arc::new).collect(), index: None }
    }

    fn append(&mut self, item: Value) {
        // A keyed index would no longer match; a channel keeps one reducer, so this is rare.
        self.index = None;
        self.items.push(Arc::new(item));
    }

    /// Returns the weight of the item that was replaced or removed.
    fn merge(&mut self, item: Value) -> usize {
        let Some(id) = Key::Id.of(&item) else {
            self.items.push(Arc::new(item));
            return 0;
        };
        let found = self.keyed(Key::Id).get(&id).copied();
        let remove = item.get("type").and_then(Value::as_str) == Some("remove");
        // The op that removes is not kept as an item, and was weighed as one.
        let unkept = if remove { weigh(&item) } else { 0 };
        let gone = found.map_or(0, |at| weigh(&self.items[at]));
        match (found, remove) {
            (Some(at), true) => {
                self.items.remove(at);
                self.index = None;
            }
            (None, true) => {}
            (Some(at), false) => self.items[at] = Arc::new(item),
            (None, false) => self.push_keyed(id, item),
        }
        gone + unkept
    }

    /// Returns the weight of the item if it was there before.
    fn add(&mut self, item: Value) -> usize {
        let key = item.to_string();
        if self.keyed(Key::Text).contains_key(&key) {
            return weigh(&item);
        }
        self.push_keyed(key, item);
        0
    }

    fn push_keyed(&mut self, key: String, item: Value) {
        if let Some((_, index)) = &mut self.index {
            index.insert(key, self.items.len());
        }
        self.items.push(Arc::new(item));
    }

    fn keyed(&mut self, key: Key) -> &HashMap<String, usize> {
        if self.index.as_ref().is_none_or(|(kind, _)| *kind != key) {
            let items = self.items.iter().enumerate();
            let index = items.filter_map(|(at, item)| Some((key.of(item)?, at))).collect();
            self.index = Some((key, index));
        }
        match &self.index {
            Some((_, index)) => index,
            None => unreachable!("made above"),
        }
    }
}

fn weigh_op(op: &Op) -> usize {
    match op {
        Op::Assign(value) => weigh(value),
        Op::Append(items) | Op::Merge(items) | Op::Add(items) => items.iter().map(weigh).sum(),
        Op::Patch(fields) => fields.iter().map(|(key, value)| key.len() + weigh(value)).sum(),
    }
}

/// Rough heap size of a JSON value in bytes.
fn weigh(value: &Value) -> usize {
    const NODE: usize = 40;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => NODE,
        Value::String(text) => NODE + text.len(),
        Value::Array(items) => NODE + items.iter().map(weigh).sum::<usize>(),
        Value::Object(map) => {
            NODE + map.iter().map(|(key, value)| NODE + key.len() + weigh(value)).sum::<usize>()
        }
    }
}

/// A node's write to one channel, before the reducer has seen it.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    pub channel: Arc<str>,
    pub value: Value,
    /// Replace the whole value, whatever the reducer.
    pub assign: bool,
}

impl Write {
    /// A write that the channel's reducer combines with what is there.
    pub fn new(channel: &str, value: Value) -> Self {
        Self { channel: channel.into(), value, assign: false }
    }
}

/// Turns the writes of one superstep into ops, in call order.
///
/// # Errors
/// `invalid_update` when a channel is unknown, or a last-value channel has two writers.
pub fn reduce(
    channels: &BTreeMap<Arc<str>, Reducer>,
    writes: impl IntoIterator<Item = Write>,
) -> Result<Vec<(Arc<str>, Op)>, Failure> {
    let mut ops: Vec<(Arc<str>, Op)> = Vec::new();
    for Write { channel, value, assign } in writes {
        let Some(reducer) = channels.get(&channel) else {
            let known: Vec<&str> = channels.keys().map(|name| &**name).collect();
            return Err(Failure::new(
                Code::InvalidUpdate,
                format!("no channel `{channel}`; the agent has: {}", known.join(", ")),
            ));
        };
        if *reducer == Reducer::Last && ops.iter().any(|(name, _)| *name == channel) {
            return Err(Failure::new(
                Code::InvalidUpdate,
                format!("two writes to the last-value channel `{channel}` in one superstep"),
            ));
        }
        if assign {
            ops.push((channel, Op::Assign(value)));
        } else if let Some(op) = reducer.op(value) {
            ops.push((channel, op));
        }
    }
    Ok(ops)
}

#[cfg(test)]
mod tests;
