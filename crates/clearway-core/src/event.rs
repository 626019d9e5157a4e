//! Events: the numbered facts of a run, and how they are packed into stored segments.
//!
//! Every view of a run (answer, stream, progress, task status) is made from these. A reader sees
//! numbers `0, 1, 2, …`; the store keeps *segments* of consecutive events, because one row per token
//! would cost more than the token.
//!
//! Not here: how an event looks in a dialect (`clearway-server`), or who may see it when ([`crate::log`]).

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;

use bytes::Bytes;
use uuid::Uuid;

use crate::{EventId, Timestamp};

/// One event of a run.
#[derive(Clone, Debug)]
pub struct Event {
    pub seq: u64,
    /// The lease under which it was written.
    pub fence: u32,
    pub at: Timestamp,
    pub body: Body,
    /// Rendered frames, shared by all readers of the run.
    pub frames: Frames,
}

impl PartialEq for Event {
    /// Frames are a cache and do not count.
    fn eq(&self, other: &Self) -> bool {
        (self.seq, self.fence, self.at, &self.body)
            == (other.seq, other.fence, other.at, &other.body)
    }
}

impl Event {
    pub fn new(seq: u64, fence: u32, at: Timestamp, body: Body) -> Self {
        Self { seq, fence, at, body, frames: Frames::default() }
    }

    pub const fn id(&self) -> EventId {
        EventId::new(self.seq, self.fence)
    }

    pub const fn kind(&self) -> EventKind {
        match &self.body {
            Body::Delta(_) => EventKind::MessageDelta,
            Body::Fact(fact) => fact.kind,
        }
    }
}

/// What an event says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A piece of a message under way: the only kind on the hot path, hence not JSON.
    Delta(Delta),
    Fact(Fact),
}

/// A piece of a message under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// Id of the message it belongs to, equal to the stored message's id.
    pub message: Uuid,
    pub part: Part,
    text: Text,
}

impl Delta {
    pub fn new(message: Uuid, part: Part, text: &str) -> Self {
        let text = match Text::short(text.as_bytes()) {
            Some(short) => short,
            None => Text::Long(Bytes::copy_from_slice(text.as_bytes())),
        };
        Self { message, part, text }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.text.bytes()).expect("made from a str, and checked when decoded")
    }
}

/// UTF-8. Tokens are short and many: those that fit are kept in place, so that neither making nor
/// reading one allocates.
#[derive(Clone)]
enum Text {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Bytes),
}

/// As much as fits beside the tag without making [`Text`] larger than [`Bytes`].
const SHORT: usize = 23;

impl Text {
    fn short(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; SHORT];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self::Short { length: text.len() as u8, bytes })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => &bytes[..usize::from(*length)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self.bytes()).fmt(f)
    }
}

/// Which part of a message a delta extends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Text,
    Reasoning,
    ToolCall,
}

impl Part {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Reasoning => "reasoning",
            Self::ToolCall => "tool_call",
        }
    }

    const fn tag(self) -> u8 {
        match self {
            Self::Text => 0,
            Self::Reasoning => 1,
            Self::ToolCall => 2,
        }
    }

    const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Self::Text),
            1 => Some(Self::Reasoning),
            2 => Some(Self::ToolCall),
            _ => None,
        }
    }
}

/// Everything that is not a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    pub kind: EventKind,
    /// A JSON object.
    pub data: Bytes,
}

impl Fact {
    pub fn new(kind: EventKind, data: &serde_json::Value) -> Self {
        // A value always has a text; and this way it is written faster than by `Display`.
        Self { kind, data: Bytes::from(serde_json::to_vec(data).unwrap_or_default()) }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.data).unwrap_or_default()
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $tag:literal $text:literal,)*) => {
        /// What kind of fact an event is; the text is its name on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum EventKind { $($(#[$doc])* $name,)* }

        impl EventKind {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            const fn tag(self) -> u8 {
                match self { $(Self::$name => $tag,)* }
            }

            const fn from_tag(tag: u8) -> Option<Self> {
                match tag { $($tag => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Always number 0, written in the transaction that accepts the run.
    RunCreated = 0 "run.created",
    /// An instance took the run: `{attempt}`.
    RunStarted = 1 "run.started",
    /// `{node, step}`
    NodeStarted = 2 "node.started",
    /// `{message_id, node}`; deltas of this message follow.
    MessageStarted = 3 "message.started",
    /// `{message_id, part, text}`
    MessageDelta = 4 "message.delta",
    /// `{message_id, finish_reason, usage}`; the message itself is in the thread's state.
    MessageCompleted = 5 "message.completed",
    /// `{node, step, skipped?}`
    NodeCompleted = 6 "node.completed",
    /// `{message, node?, done?, total?}`
    Progress = 7 "progress",
    /// The oldest turns were left out of a prompt: `{dropped_messages, kept_messages, budget_tokens}`.
    HistoryTrimmed = 8 "history.trimmed",
    /// Events after `after` and before this one are void: `{after, reason}`.
    OutputReset = 9 "output.reset",
    /// Somebody asked for the end: `{by}`.
    CancelRequested = 10 "cancel.requested",
    /// Always the last event: `{status, error?, reply_message_id?, spent}`.
    RunEnded = 11 "run.ended",
    /// What a node wrote for its own clients: `{name, data}`.
    Custom = 12 "custom",
    /// The run was handed back and waits for an instance: `{reason}`.
    RunReleased = 13 "run.released",
    /// A provider call failed or was given up: `{attempt, provider, model, key, phase, outcome,
    /// status, input_tokens, output_tokens, source, cost_micros, ms}`. The good one is told by
    /// `message.completed`.
    ProviderAttempt = 14 "provider.attempt",
    /// A call asks a person and the run ends here: `{id, task, node, value}`.
    Interrupt = 15 "interrupt",
    /// The run waits without a slot: `{kind, detail, wake_at?}`.
    RunParked = 16 "run.parked",
    /// A call failed and is tried again, or its error handler goes on: `{node, step, attempt,
    /// error, next}`; `next` is `retry`, `continue` or a node's name.
    NodeFailed = 17 "node.failed",
    /// `{name, version, media_type, size_bytes, sha256, node}`
    ArtifactSaved = 18 "artifact.saved",
    /// `{run_id, agent, node, name}`
    ChildStarted = 19 "child.started",
    /// A model's call of a tool begins: `{call_id, name, tool, node}`.
    ToolStarted = 20 "tool.started",
    /// `{call_id, name, tool, node, status, ms, error?}`; `status` is `success` or `error`.
    ToolCompleted = 21 "tool.completed",
}

/// How many dialects can keep a rendered frame with an event.
pub const FRAME_SLOTS: usize = 4;

/// Frames of one event, one per dialect slot, made by the first reader and shared by the others.
#[derive(Clone, Debug, Default)]
pub struct Frames(OnceLock<Arc<[OnceLock<Bytes>; FRAME_SLOTS]>>);

impl Frames {
    /// Makes clones taken from now on share one cache. Called when a run has several readers.
    pub fn share(&self) {
        self.0.get_or_init(Arc::default);
    }

    /// Whether other readers may profit from a cached frame.
    pub fn is_shared(&self) -> bool {
        self.0.get().is_some()
    }

    pub fn get_or_render(&self, slot: usize, render: impl FnOnce() -> Bytes) -> &Bytes {
        self.0.get_or_init(Arc::default)[slot].get_or_init(render)
    }
}

/// Consecutive events of one run as one stored row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub first_seq: u64,
    /// Number after the last event's.
    pub end_seq: u64,
    pub fence: u32,
    /// Time of the first event; the others are relative to it.
    pub at: Timestamp,
    pub bytes: Bytes,
}

impl Segment {
    /// Packs events that are in order and share a fence. `None` when there are none.
    ///
    /// A record is `tag, seq step, ms since the previous record, length, payload`, numbers as
    /// LEB128. A delta of the same message and part as the one before carries only its text, so a
    /// token costs four bytes beyond itself.
    pub fn encode<'a>(events: impl IntoIterator<Item = &'a Event>) -> Option<Self> {
        let mut events = events.into_iter().peekable();
        let first = *events.peek()?;
        let mut bytes = Vec::with_capacity(256);
        let (mut last_seq, mut last_at) = (first.seq, first.at);
        let mut message: Option<(Uuid, Part)> = None;
        for event in events {
            debug_assert_eq!(event.fence, first.fence, "a segment has one fence");
            let tag = match &event.body {
                Body::Fact(_) => TAG_FACT,
                Body::Delta(delta) if message == Some((delta.message, delta.part)) => TAG_SAME,
                Body::Delta(_) => TAG_DELTA,
            };
            bytes.push(tag);
            put(&mut bytes, event.seq - last_seq);
            put(&mut bytes, u64::try_from(event.at.0 - last_at.0).unwrap_or(0));
            match &event.body {
                Body::Fact(fact) => {
                    put(&mut bytes, fact.data.len() as u64 + 1);
                    bytes.push(fact.kind.tag());
                    bytes.extend_from_slice(&fact.data);
                }
                Body::Delta(delta) if tag == TAG_SAME => {
                    let text = delta.text.bytes();
                    put(&mut bytes, text.len() as u64);
                    bytes.extend_from_slice(text);
                }
                Body::Delta(delta) => {
                    let text = delta.text.bytes();
                    put(&mut bytes, text.len() as u64 + 17);
                    bytes.extend_from_slice(delta.message.as_bytes());
                    bytes.push(delta.part.tag());
                    bytes.extend_from_slice(text);
                    message = Some((delta.message, delta.part));
                }
            }
            // A clock that went backwards must not make later records appear earlier.
            (last_seq, last_at) = (event.seq, last_at.max(event.at));
        }
        Some(Self {
            first_seq: first.seq,
            end_seq: last_seq + 1,
            fence: first.fence,
            at: first.at,
            bytes: bytes.into(),
        })
    }

    /// # Errors
    /// The bytes are damaged or from a newer version.
    pub fn decode(&self) -> Result<Vec<Event>, DamagedSegment> {
        let mut events = Vec::new();
        let mut rest = &self.bytes[..];
        let (mut seq, mut at) = (self.first_seq, self.at);
        let mut message: Option<(Uuid, Part)> = None;
        while let Some((&tag, after)) = rest.split_first() {
            rest = after;
            let step = take_number(&mut rest)?;
            seq = seq.checked_add(step).ok_or(DamagedSegment)?;
            let ms = i64::try_from(take_number(&mut rest)?).map_err(|_| DamagedSegment)?;
            at = Timestamp(at.0.checked_add(ms).ok_or(DamagedSegment)?);
            let length = usize::try_from(take_number(&mut rest)?).map_err(|_| DamagedSegment)?;
            let payload = take(&mut rest, length)?;
            let body = match tag {
                TAG_FACT => {
                    let (&kind, data) = payload.split_first().ok_or(DamagedSegment)?;
                    let kind = EventKind::from_tag(kind).ok_or(DamagedSegment)?;
                    Body::Fact(Fact { kind, data: self.bytes.slice_ref(data) })
                }
                TAG_DELTA => {
                    let (id, after) = payload.split_at_checked(16).ok_or(DamagedSegment)?;
                    let (&part, text) = after.split_first().ok_or(DamagedSegment)?;
                    let id = Uuid::from_slice(id).map_err(|_| DamagedSegment)?;
                    let part = Part::from_tag(part).ok_or(DamagedSegment)?;
                    message = Some((id, part));
                    self.delta((id, part), text)?
                }
                TAG_SAME => self.delta(message.ok_or(DamagedSegment)?, payload)?,
                _ => return Err(DamagedSegment),
            };
            events.push(Event::new(seq, self.fence, at, body));
        }
        // The row's own columns must agree with what is inside, or a cut row would read as a gap.
        if events.last().map_or(self.first_seq, |event| event.seq + 1) > self.end_seq {
            return Err(DamagedSegment);
        }
        Ok(events)
    }

    fn delta(&self, (message, part): (Uuid, Part), text: &[u8]) -> Result<Body, DamagedSegment> {
        std::str::from_utf8(text).map_err(|_| DamagedSegment)?;
        let text = Text::short(text).unwrap_or_else(|| Text::Long(self.bytes.slice_ref(text)));
        Ok(Body::Delta(Delta { message, part, text }))
    }

    /// The same segment without its deltas, for runs whose output has become a stored message.
    ///
    /// Numbers stay as they were. `None` when nothing is left.
    ///
    /// # Errors
    /// As [`Segment::decode`].
    pub fn without_deltas(&self) -> Result<Option<Self>, DamagedSegment> {
        let events = self.decode()?;
        let facts = events.iter().filter(|event| matches!(event.body, Body::Fact(_)));
        Ok(Self::encode(facts))
    }
}

/// A stored segment cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stored event segment is damaged or was written by a newer version")]
pub struct DamagedSegment;

const TAG_FACT: u8 = 0;
const TAG_DELTA: u8 = 1;
const TAG_SAME: u8 = 2;

fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<u64, DamagedSegment> {
    let mut number = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or(DamagedSegment)?;
        *rest = after;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DamagedSegment)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], DamagedSegment> {
    let (taken, after) = rest.split_at_checked(length).ok_or(DamagedSegment)?;
    *rest = after;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            (0..3u128, 0..3u8, ".{0,12}").prop_map(|(id, part, text)| {
                Body::Delta(Delta::new(Uuid::from_u128(id), Part::from_tag(part).unwrap(), &text))
            }),
            (0..EventKind::ALL.len(), ".{0,12}").prop_map(|(kind, text)| {
                Body::Fact(Fact::new(EventKind::ALL[kind], &json!({"text": text})))
            }),
        ]
    }

    fn events(bodies: Vec<(Body, u16)>) -> Vec<Event> {
        let mut at = 1_795_000_000_000;
        let number = |(seq, (body, ms)): (usize, (Body, u16))| {
            at += i64::from(ms);
            Event::new(40 + seq as u64, 3, Timestamp(at), body)
        };
        bodies.into_iter().enumerate().map(number).collect()
    }

    proptest! {
        #[test]
        fn segments_round_trip(bodies in prop::collection::vec((body(), any::<u16>()), 1..20)) {
            let events = events(bodies);
            let segment = Segment::encode(&events).unwrap();
            prop_assert_eq!(segment.first_seq, 40);
            prop_assert_eq!(segment.end_seq, 40 + events.len() as u64);
            prop_assert_eq!(segment.decode().unwrap(), events.clone());
            let facts: Vec<Event> =
                events.into_iter().filter(|event| matches!(event.body, Body::Fact(_))).collect();
            let kept = segment.without_deltas().unwrap();
            prop_assert_eq!(kept.map_or(vec![], |kept| kept.decode().unwrap()), facts);
        }

        #[test]
        fn damaged_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let segment = Segment {
                first_seq: 0, end_seq: 9, fence: 1, at: Timestamp(0), bytes: bytes.into(),
            };
            let _ = segment.decode();
        }
    }

    #[test]
    fn a_token_costs_four_bytes_beyond_its_text() {
        let token = |seq| {
            let body = Body::Delta(Delta::new(Uuid::from_u128(1), Part::Text, "token"));
            Event::new(seq, 1, Timestamp(seq as i64 * 20), body)
        };
        let size = |n| Segment::encode(&(0..n).map(token).collect::<Vec<_>>()).unwrap().bytes.len();
        assert_eq!(size(64) - size(63), 5 + 4);
    }

    #[test]
    fn short_and_long_texts_read_the_same() {
        assert_eq!(size_of::<Text>(), size_of::<Bytes>());
        for length in [0, 1, 22, 23, 24, 200] {
            let text = "x".repeat(length);
            let body = Body::Delta(Delta::new(Uuid::nil(), Part::Text, &text));
            let event = Event::new(0, 1, Timestamp(0), body);
            let decoded = Segment::encode([&event]).unwrap().decode().unwrap();
            assert_eq!(decoded, [event]);
            let Body::Delta(delta) = &decoded[0].body else { panic!("a delta") };
            assert_eq!(delta.text(), text);
        }
    }

    #[test]
    fn frames_are_rendered_once_and_shared_by_clones() {
        let event =
            Event::new(0, 1, Timestamp(0), Body::Fact(Fact::new(EventKind::Progress, &json!({}))));
        let first = event.frames.get_or_render(1, || Bytes::from("frame")).as_ptr();
        let clone = event.clone();
        assert_eq!(clone.frames.get_or_render(1, || panic!("rendered twice")).as_ptr(), first);
        clone.frames.get_or_render(0, || Bytes::from("other dialect"));
    }

    #[test]
    fn kinds_have_distinct_tags_and_names() {
        for &kind in EventKind::ALL {
            assert_eq!(EventKind::from_tag(kind.tag()), Some(kind));
            assert_eq!(
                EventKind::ALL.iter().filter(|other| other.as_str() == kind.as_str()).count(),
                1
            );
        }
    }
}
