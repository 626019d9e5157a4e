//! Identifiers.
//!
//! Runs and threads are UUIDs on the wire. Run ids are UUIDv7, so they sort by creation; checkpoint
//! ids are UUIDv6, because existing clients sort checkpoints by them and mix them with imported
//! ones. This crate never makes a random id: whoever has a clock hands them in.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use uuid::Uuid;

use crate::Timestamp;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the hyphenated form: a run must have one spelling in addresses and logs.
                if text.len() != 36 {
                    return Err(InvalidId);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

uuid_id! {
    /// One execution of an agent on a thread. UUIDv7.
    RunId
}
uuid_id! {
    /// Durable state that outlives runs and holds their history. Not an OS thread.
    ThreadId
}
uuid_id! {
    /// A thread's state as committed at the end of a superstep. UUIDv6.
    CheckpointId
}
uuid_id! {
    /// One boot of one server process; never reused, so a restarted server cannot be mistaken for
    /// its predecessor.
    InstanceId
}

uuid_id! {
    /// One call that a run's plan made due. UUIDv5 of run, superstep, node and index, so a superstep
    /// that is planned again after a crash has the same ones. Also the call's idempotency key.
    TaskId
}

impl TaskId {
    pub fn of(run: RunId, step: i64, node: &str, index: u32) -> Self {
        let (step, index) = (step.to_string(), index.to_string());
        Self(Uuid::new_v5(&run.0, &length_prefixed(&["task", &step, node, &index])))
    }

    /// The stable id of the `index`-th message that the call makes: the same call made again after a
    /// crash yields the same id, and `merge_by_id` replaces instead of doubling.
    pub fn message(self, index: u32) -> Uuid {
        Uuid::new_v5(&self.0, &length_prefixed(&["message", &index.to_string()]))
    }

    /// The id of the call's `n`-th question to a person.
    pub fn interrupt(self, n: u32) -> Uuid {
        Uuid::new_v5(&self.0, &length_prefixed(&["interrupt", &n.to_string()]))
    }
}

impl CheckpointId {
    /// An id for the checkpoint that `run` begins with, made of what is known before there is one: its
    /// time is `at`, or right behind the checkpoint that it goes on from where that one is newer.
    pub fn first_of(run: RunId, at: Timestamp, behind: Option<Self>) -> Self {
        /// From the first day of UUIDv6 to 1970, in its ticks of 100 ns.
        const EPOCH: u64 = 0x01b2_1dd2_1381_4000;
        let ticks = u64::try_from(at.0).unwrap_or(0).saturating_mul(10_000).saturating_add(EPOCH);
        let ticks = behind.map_or(ticks, |behind| ticks.max(behind.ticks() + 2));
        // The random half of the run's id tells it from those of other runs.
        let low = run.0.as_u128() & u128::from(u64::MAX >> 2) | 0b10 << 62;
        Self(Uuid::from_u128(0x6 << 76 | low)).at_ticks(ticks)
    }

    /// The same, so many ticks earlier or later.
    pub fn moved(self, ticks: i64) -> Self {
        self.at_ticks(self.ticks().wrapping_add_signed(ticks))
    }

    /// A UUIDv6's 60 bits of time, which stand in order around the version.
    fn ticks(self) -> u64 {
        let bits = self.0.as_u128();
        ((bits >> 80) << 12 | (bits >> 64) & 0xfff) as u64
    }

    fn at_ticks(self, ticks: u64) -> Self {
        let time = u128::from(ticks & ((1 << 60) - 1));
        let rest = self.0.as_u128() & (0xf << 76 | u128::from(u64::MAX));
        Self(Uuid::from_u128((time >> 12) << 80 | (time & 0xfff) << 64 | rest))
    }
}

impl RunId {
    /// When it was made, where the id says so.
    pub fn made_at(self) -> Option<Timestamp> {
        let ms = i64::try_from(self.0.as_u128() >> 80).ok()?;
        (self.0.get_version_num() == 7).then_some(Timestamp(ms))
    }
}

/// The text is not a hyphenated UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID in its 36-character form")]
pub struct InvalidId;

/// Namespace of every name-based id that Clearway derives (UUIDv5).
const NAMESPACE: Uuid = Uuid::from_u128(0x8f0d_27b2_6c0b_5d0e_9d57_3c1e_0c1e_a12a);

impl ThreadId {
    /// The thread behind a dialect's own key, for example user and conversation of the co-founder.
    ///
    /// The parts are length-prefixed before hashing, so `("a::b", "c")` and `("a", "b::c")` are
    /// different threads although their joined spellings are equal.
    pub fn from_key(tenant: &str, dialect: &str, parts: &[&str]) -> Self {
        Self(Uuid::new_v5(&NAMESPACE, &length_prefixed(&[&[tenant, dialect], parts].concat())))
    }
}

/// Joins parts so that no two different lists give the same bytes.
pub fn length_prefixed(parts: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
    for part in parts {
        bytes.extend_from_slice(part.len().to_string().as_bytes());
        bytes.push(b':');
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// The wire id of an event: `<seq>-<fence*256+part>`.
///
/// `seq` is the event's number in its run, `fence` the lease under which it was written, and `part`
/// the frame when one event renders as several. The shape equals the `ms-seq` ids that existing
/// clients check for. After a takeover the fence differs, which is how a resuming client with a
/// lost id is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    pub seq: u64,
    pub fence: u32,
    pub part: u8,
}

impl EventId {
    pub const fn new(seq: u64, fence: u32) -> Self {
        Self { seq, fence, part: 0 }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.seq, u64::from(self.fence) * 256 + u64::from(self.part))
    }
}

impl FromStr for EventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        let (seq, rest) = text.split_once('-').ok_or(InvalidEventId)?;
        let rest: u64 = decimal(rest)?;
        Ok(Self {
            seq: decimal(seq)?,
            fence: u32::try_from(rest / 256).map_err(|_| InvalidEventId)?,
            part: (rest % 256) as u8,
        })
    }
}

/// `u64::from_str` also takes `+5`; an event id has one spelling.
fn decimal(text: &str) -> Result<u64, InvalidEventId> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidEventId);
    }
    text.parse().map_err(|_| InvalidEventId)
}

/// The text is not `<seq>-<number>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an event id of the form <seq>-<number>")]
pub struct InvalidEventId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_separators_inside_stay_apart() {
        let key = |parts: &[&str]| ThreadId::from_key("default", "cofounder", parts);
        assert_ne!(key(&["a::b", "c"]), key(&["a", "b::c"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["a", "b"]), ThreadId::from_key("other", "cofounder", &["a", "b"]));
    }

    #[test]
    fn first_checkpoints_are_known_before_they_are_made() {
        let run: RunId = "01a22385-6827-723e-9e3e-817b58e3d708".parse().unwrap();
        let at = run.made_at().unwrap();
        let first = CheckpointId::first_of(run, at, None);
        assert_eq!(first.0.get_version_num(), 6);
        let (seconds, nanos) = first.0.get_timestamp().unwrap().to_unix();
        assert_eq!(seconds as i64 * 1000 + i64::from(nanos) / 1_000_000, at.0);
        // One tick before it there is room for what was before.
        for behind in [first, first.moved(-1), first.moved(7)] {
            let next = CheckpointId::first_of(run, at, Some(behind));
            assert_eq!(next, behind.moved(2));
            assert!(next.moved(-1) > behind);
        }
        assert_eq!(CheckpointId::first_of(run, at, Some(first.moved(-9))), first);
        let other = RunId(Uuid::from_u128(run.0.as_u128() + 1));
        assert_ne!(CheckpointId::first_of(other, at, None), first);
        assert_eq!(first.moved(5).moved(-5), first);
        assert_eq!(RunId(Uuid::nil()).made_at(), None);
    }

    #[test]
    fn event_ids_have_one_spelling() {
        let id = EventId { seq: 7, fence: 3, part: 2 };
        assert_eq!(id.to_string(), "7-770");
        assert_eq!("7-770".parse(), Ok(id));
        for bad in ["", "7", "7-", "-1", "+7-1", "7-1-1", "7-99999999999999999999", "x-1"] {
            assert_eq!(bad.parse::<EventId>(), Err(InvalidEventId), "{bad}");
        }
    }

    #[test]
    fn ids_parse_only_hyphenated() {
        let run = RunId(Uuid::from_u128(7));
        assert_eq!(run.to_string().parse(), Ok(run));
        assert_eq!(run.0.simple().to_string().parse::<RunId>(), Err(InvalidId));
        assert_eq!("../../etc/passwd".parse::<RunId>(), Err(InvalidId));
    }
}
