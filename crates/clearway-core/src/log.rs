//! The live end of a run's event log.
//!
//! The owner of a run appends here; readers follow; the store gets segments in order. Three marks
//! move through the log, each never past the one before it:
//!
//! ```text
//! first ..... stored ..... sent ..... visible ..... end
//!   dropped when long       to the store    readers     hidden until their commit
//! ```
//!
//! Deltas and other output become visible when appended: they are volatile until stored, and a
//! crash announces their loss with `output.reset`. Facts that belong to a commit are appended
//! *hidden* and revealed when the commit is durable, so nobody sees an end that did not happen.
//!
//! **Invariant:** numbers rise by one; what was visible never changes.
//!
//! Not here: wakers and locks (`clearway-engine`).

use std::collections::VecDeque;

use crate::Timestamp;
use crate::event::{Body, Event, Segment};

/// See the module.
#[derive(Debug)]
pub struct Log {
    fence: u32,
    events: VecDeque<Event>,
    /// Number of `events[0]`.
    first: u64,
    stored: u64,
    sent: u64,
    visible: u64,
    bytes: usize,
}

impl Log {
    /// An empty live end whose next event is `next_seq`; earlier ones are only in the store.
    pub const fn new(fence: u32, next_seq: u64) -> Self {
        Self {
            fence,
            events: VecDeque::new(),
            first: next_seq,
            stored: next_seq,
            sent: next_seq,
            visible: next_seq,
            bytes: 0,
        }
    }

    pub const fn fence(&self) -> u32 {
        self.fence
    }

    /// Number of the oldest event still in memory.
    pub const fn first_seq(&self) -> u64 {
        self.first
    }

    /// The number that the next event will get.
    pub fn next_seq(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Number after the last event that readers may see.
    pub const fn visible_seq(&self) -> u64 {
        self.visible
    }

    /// Number after the last event known to be stored.
    pub const fn stored_seq(&self) -> u64 {
        self.stored
    }

    /// Rough memory held, in bytes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an event that readers see at once.
    ///
    /// # Panics
    /// When hidden events wait for their commit: a run produces no output while it commits.
    pub fn append(&mut self, at: Timestamp, body: Body) -> u64 {
        assert_eq!(self.visible, self.next_seq(), "output while a commit is under way");
        let seq = self.append_hidden(at, body);
        self.visible = seq + 1;
        seq
    }

    /// Appends an event that readers see after [`Log::committed`].
    pub fn append_hidden(&mut self, at: Timestamp, body: Body) -> u64 {
        let seq = self.next_seq();
        self.bytes += weigh(&body);
        self.events.push_back(Event::new(seq, self.fence, at, body));
        seq
    }

    /// Continues under a new lease that begins where this log ends: the store has all of it, whether
    /// or not that was ever answered.
    pub fn adopt_fence(&mut self, fence: u32) {
        self.fence = fence;
        self.committed();
    }

    /// Takes over events that the store wrote itself (a queued run was cancelled, say), as far as
    /// they touch what is in memory. Output that is not stored yet keeps its place and its marks.
    pub fn adopt_stored(&mut self, events: Vec<Event>) {
        for event in events {
            let end = self.next_seq();
            if event.seq == end && self.stored == end {
                self.bytes += weigh(&event.body);
                self.events.push_back(event);
                (self.stored, self.sent, self.visible) = (end + 1, end + 1, end + 1);
            } else {
                self.prepend_stored(event);
            }
        }
    }

    /// Puts a stored event in front of the oldest one in memory; ignored when it does not fit there.
    pub fn prepend_stored(&mut self, event: Event) {
        if event.seq + 1 == self.first {
            self.bytes += weigh(&event.body);
            self.first = event.seq;
            self.events.push_front(event);
        }
    }

    /// Whether there is output that the store has not been given.
    pub const fn has_unsent(&self) -> bool {
        self.sent < self.visible
    }

    /// Output since the last call, as one segment to be stored without a sync.
    pub fn take_output(&mut self) -> Option<Segment> {
        self.take_until(self.visible)
    }

    /// Everything unsent including hidden facts: what goes into a commit.
    pub fn take_for_commit(&mut self) -> Option<Segment> {
        self.take_until(self.next_seq())
    }

    fn take_until(&mut self, end: u64) -> Option<Segment> {
        // A commit under way has taken what is visible, and more.
        if end <= self.sent {
            return None;
        }
        let from = usize::try_from(self.sent - self.first).unwrap_or(usize::MAX);
        let count = usize::try_from(end - self.sent).unwrap_or(usize::MAX);
        let segment = Segment::encode(self.events.iter().skip(from).take(count))?;
        self.sent = end;
        Some(segment)
    }

    /// The store has everything below `end`.
    pub fn stored(&mut self, end: u64) {
        self.stored = self.stored.max(end.min(self.sent));
    }

    /// The store did not take the last segments; they will be sent again.
    pub const fn resend(&mut self) {
        self.sent = self.stored;
    }

    /// A commit with everything sent is durable: hidden facts become visible.
    pub fn committed(&mut self) {
        let end = self.next_seq();
        (self.stored, self.sent, self.visible) = (end, end, end);
    }

    /// The lease is lost: hidden facts did not happen.
    pub fn discard_hidden(&mut self) {
        while self.next_seq() > self.visible {
            if let Some(event) = self.events.pop_back() {
                self.bytes -= weigh(&event.body);
            }
        }
        self.sent = self.sent.min(self.visible);
    }

    /// Drops the oldest stored events until at most `limit` bytes are held.
    pub fn trim(&mut self, limit: usize) {
        while self.bytes > limit && self.first < self.stored.min(self.visible) {
            let Some(event) = self.events.pop_front() else { break };
            self.bytes -= weigh(&event.body);
            self.first += 1;
        }
    }

    /// Visible events from number `from` on that are still in memory.
    ///
    /// Empty when `from` is older than memory: the reader then asks the store.
    pub fn read(&self, from: u64) -> impl Iterator<Item = &Event> {
        let skip = from.checked_sub(self.first).map_or(usize::MAX, |skip| skip as usize);
        let count = self.visible.saturating_sub(from.max(self.first)) as usize;
        self.events.iter().skip(skip).take(count)
    }
}

fn weigh(body: &Body) -> usize {
    /// An event's struct and its place in the queue.
    const FIXED: usize = 128;
    FIXED
        + match body {
            Body::Delta(delta) => delta.text().len(),
            Body::Fact(fact) => fact.data.len(),
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::event::{Delta, EventKind, Fact, Part};

    fn token(text: &str) -> Body {
        Body::Delta(Delta::new(Uuid::from_u128(1), Part::Text, text))
    }

    fn fact() -> Body {
        Body::Fact(Fact::new(EventKind::RunEnded, &json!({})))
    }

    fn seqs(log: &Log, from: u64) -> Vec<u64> {
        log.read(from).map(|event| event.seq).collect()
    }

    #[test]
    fn hidden_facts_appear_with_their_commit() {
        let mut log = Log::new(1, 5);
        log.append(Timestamp(0), token("a"));
        log.append_hidden(Timestamp(0), fact());
        assert_eq!(seqs(&log, 0), [0u64; 0], "older than memory: ask the store");
        assert_eq!(seqs(&log, 5), [5]);
        assert_eq!(log.take_for_commit().unwrap().end_seq, 7);
        assert!(log.take_for_commit().is_none());
        log.committed();
        assert_eq!(seqs(&log, 5), [5, 6]);
        assert_eq!(log.stored_seq(), 7);
    }

    #[test]
    fn a_refused_commit_can_be_sent_again_or_forgotten() {
        let mut log = Log::new(1, 0);
        log.append(Timestamp(0), token("a"));
        log.append_hidden(Timestamp(0), fact());
        let first = log.take_for_commit().unwrap();
        log.resend();
        assert_eq!(log.take_for_commit().unwrap(), first);
        log.discard_hidden();
        assert_eq!(log.next_seq(), 1);
        log.resend();
        assert_eq!(log.take_output().unwrap().end_seq, 1);
    }

    #[test]
    fn a_new_lease_does_not_send_what_the_old_one_wrote() {
        let mut log = Log::new(1, 0);
        log.append(Timestamp(0), token("a"));
        log.take_output().unwrap();
        // The answer was lost, and the run was given up and claimed again.
        log.resend();
        log.adopt_fence(3);
        log.append(Timestamp(0), token("b"));
        let segment = log.take_output().unwrap();
        assert_eq!((segment.fence, segment.first_seq, segment.end_seq), (3, 1, 2));
    }

    proptest! {
        /// Whatever the order of operations, segments are contiguous, readers see each number
        /// once, and trimming never drops what is not stored.
        #[test]
        fn segments_are_gapless(ops in prop::collection::vec(0..9u8, 0..80)) {
            let mut log = Log::new(1, 0);
            let mut in_store = 0;
            let mut reader = 0;
            for op in ops {
                let committing = log.visible_seq() < log.next_seq();
                match op {
                    0 | 1 if committing => {}
                    0 | 1 => { log.append(Timestamp(0), token("x")); }
                    2 => if let Some(segment) = log.take_output() {
                        prop_assert!(segment.first_seq <= in_store);
                        in_store = in_store.max(segment.end_seq);
                    },
                    3 => log.stored(in_store),
                    4 => log.resend(),
                    5 => log.trim(0),
                    6 => { log.append_hidden(Timestamp(0), fact()); }
                    7 => {
                        log.resend();
                        if let Some(segment) = log.take_for_commit() {
                            prop_assert!(segment.first_seq <= in_store);
                            in_store = in_store.max(segment.end_seq);
                        }
                    }
                    // The commit's answer; what it carried is in the store.
                    _ => if in_store == log.next_seq() { log.committed() },
                }
                prop_assert!(log.first_seq() <= log.stored_seq());
                prop_assert!(log.stored_seq() <= in_store);
                if reader >= log.first_seq() {
                    for event in log.read(reader) {
                        prop_assert_eq!(event.seq, reader);
                        reader += 1;
                    }
                } else {
                    prop_assert!(log.first_seq() <= in_store, "the store has what memory dropped");
                    reader = log.first_seq();
                }
            }
        }
    }
}
