//! What something is waiting for, as a value.
//!
//! Each run keeps a [`WaitCell`]. Whoever makes it wait says so before it waits; anyone can read the
//! cell at any time, and the time spent per kind stays with the finished run, so that an error can
//! say where a deadline went.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::Deadline;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal $who:ident $how:literal,)*) => {
        /// Why something does not move.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum WaitKind { $($(#[$doc])* $name,)* }

        impl WaitKind {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Who can end the wait.
            pub const fn who(self) -> Who {
                match self { $(Self::$name => Who::$who,)* }
            }

            /// What that party can do, as half a sentence.
            pub const fn how(self) -> &'static str {
                match self { $(Self::$name => $how,)* }
            }
        }
    };
}

kinds! {
    /// Running its own code, waiting for nothing outside.
    Work = "work" Nobody "it is working; cancel the run to stop it",
    /// Another run of the same thread goes first.
    Thread = "thread" Client "cancel the run in front, or wait for it",
    /// The pool has no free slot.
    Slot = "slot" Operator "raise the pool's slots, or cancel runs that hold them",
    /// The provider's concurrency limit is reached.
    ProviderSlot = "provider_slot" Operator "raise the provider's limits.concurrent",
    /// A text that waits for the batch in which it will be sent.
    Batch = "batch" Nobody "the batch leaves within moments, or when an earlier one is done",
    RateLimit = "rate_limit" Nobody "the provider's window refills by itself",
    Breaker = "breaker" Operator "the next probe decides; an operator may reset it",
    Dns = "dns" Nobody "name resolution answers or runs into its limit",
    Connect = "connect" Nobody "the connection opens or runs into its limit",
    /// The request is sent, nothing has come back.
    FirstByte = "first_byte" Nobody "the provider answers or runs into its limit",
    /// The answer streams; the last token is this long ago.
    NextToken = "next_token" Nobody "the provider goes on or runs into its limit",
    Tool = "tool" Nobody "the tool ends or runs into its limit",
    Worker = "worker" Nobody "the worker ends or is killed at its limit",
    /// Runs that this one started.
    Child = "child" Nobody "the child runs end, or are cancelled with this run",
    /// An event from outside.
    Signal = "signal" Client "send the signal",
    Person = "person" Person "somebody answers the question",
    Decision = "decision" Operator "clearway runs resolve",
    Outage = "outage" Operator "the provider recovers, or an operator resets it",
    Budget = "budget" Operator "raise the budget",
    Timer = "timer" Nobody "the time comes",
    Store = "store" Operator "free disk space or restore access to the data directory",
    Client = "client" Client "the client reads on",
    Retry = "retry" Nobody "the next attempt starts by itself",
}

/// Who can end a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Nobody,
    Operator,
    Person,
    Client,
}

impl Who {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Operator => "operator",
            Self::Person => "person",
            Self::Client => "client",
        }
    }
}

/// Time spent by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spent([Duration; WaitKind::ALL.len()]);

impl Spent {
    pub const fn get(&self, kind: WaitKind) -> Duration {
        self.0[kind as usize]
    }

    pub fn add(&mut self, kind: WaitKind, duration: Duration) {
        self.0[kind as usize] += duration;
    }

    /// Adds what `later` has more than `earlier`.
    fn add_growth(&mut self, earlier: &Self, later: &Self) {
        for &kind in WaitKind::ALL {
            self.add(kind, later.get(kind).saturating_sub(earlier.get(kind)));
        }
    }

    /// Kinds with at least a millisecond, in the order of [`WaitKind`].
    pub fn iter(&self) -> impl Iterator<Item = (WaitKind, Duration)> {
        WaitKind::ALL
            .iter()
            .map(|&kind| (kind, self.get(kind)))
            .filter(|(_, duration)| duration.as_millis() > 0)
    }

    /// As it is serialized, for who looks into it.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads it as it was serialized; kinds of a newer version are dropped.
    pub fn from_json(value: &Value) -> Self {
        let mut spent = Self::default();
        for &kind in WaitKind::ALL {
            if let Some(ms) = value[kind.as_str()].as_u64() {
                spent.add(kind, Duration::from_millis(ms));
            }
        }
        spent
    }
}

/// `{"slot": 2100, "first_byte": 117500}`, milliseconds.
impl Serialize for Spent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_map(self.iter().map(|(kind, spent)| (kind.as_str(), spent.as_millis() as u64)))
    }
}

impl fmt::Display for Spent {
    /// `slot 2.1, first_byte 117.5`, seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (kind, duration)) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{} {:.1}", kind.as_str(), duration.as_secs_f64())?;
        }
        Ok(())
    }
}

/// What a cell says at one moment.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub kind: WaitKind,
    /// For what exactly: `openai/gpt-5-mini, attempt 2`, `chat`, a run id.
    pub detail: Arc<str>,
    /// How long already. For [`WaitKind::NextToken`], since the last token.
    pub for_: Duration,
    pub deadline: Option<Deadline>,
    /// When it should move, if anybody knows.
    pub eta: Option<Duration>,
    /// Time spent until now, this wait included.
    pub spent: Spent,
}

/// The one place that knows what a run waits for. Written by the run's owner and whatever it calls;
/// read by anyone.
#[derive(Debug)]
pub struct WaitCell {
    inner: Mutex<Inner>,
    epoch: Instant,
    /// Nanoseconds from `epoch` to the last token: written once per token, so not under the lock.
    last_token: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    kind: WaitKind,
    detail: Arc<str>,
    since: Instant,
    deadline: Option<Deadline>,
    eta: Option<Duration>,
    spent: Spent,
    /// Whose wait this one shares, and what that one had spent when the sharing began.
    followed: Option<(Arc<WaitCell>, Spent)>,
}

impl Inner {
    /// Books the time until `now` on what was waited for.
    fn book(&mut self, now: Instant) {
        match self.followed.take() {
            Some((other, before)) => self.spent.add_growth(&before, &other.read(now).spent),
            None => self.spent.add(self.kind, now.saturating_duration_since(self.since)),
        }
    }
}

impl WaitCell {
    /// A cell that waits for `kind`, with the time that earlier processes already spent.
    pub fn new(kind: WaitKind, detail: impl Into<Arc<str>>, spent: Spent, now: Instant) -> Self {
        let inner = Inner {
            kind,
            detail: detail.into(),
            since: now,
            deadline: None,
            eta: None,
            spent,
            followed: None,
        };
        Self { inner: Mutex::new(inner), epoch: now, last_token: AtomicU64::new(0) }
    }

    /// From now on it waits for `kind`; the time since the last call is booked on the kind before.
    pub fn enter(
        &self,
        kind: WaitKind,
        detail: impl Into<Arc<str>>,
        deadline: Option<Deadline>,
        now: Instant,
    ) {
        let mut inner = self.lock();
        inner.book(now);
        inner.kind = kind;
        inner.detail = detail.into();
        inner.since = now;
        inner.deadline = deadline;
        inner.eta = None;
        drop(inner);
        self.token(now);
    }

    /// From now on, and until the next [`WaitCell::enter`], it waits for whatever `other` waits for:
    /// somebody else does the work, for several who need it. `other` follows nobody.
    pub fn follow(&self, other: Arc<Self>, now: Instant) {
        let spent = other.read(now).spent;
        let mut inner = self.lock();
        inner.book(now);
        inner.followed = Some((other, spent));
    }

    /// Starts the account anew from what is stored, because that is what the store has booked.
    pub fn restart(&self, kind: WaitKind, spent: Spent, now: Instant) {
        let mut inner = self.lock();
        *inner = Inner {
            kind,
            detail: "".into(),
            since: now,
            deadline: None,
            eta: None,
            spent,
            followed: None,
        };
        drop(inner);
        self.token(now);
    }

    /// When the present wait should end, in the opinion of whoever grants it.
    pub fn expect(&self, eta: Option<Duration>) {
        self.lock().eta = eta;
    }

    /// A token arrived: one relaxed store, no lock.
    pub fn token(&self, now: Instant) {
        let since_epoch = now.saturating_duration_since(self.epoch).as_nanos();
        self.last_token.store(u64::try_from(since_epoch).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub fn read(&self, now: Instant) -> Waiting {
        let inner = self.lock();
        if let Some((other, before)) = &inner.followed {
            let waiting = other.read(now);
            let mut spent = inner.spent.clone();
            spent.add_growth(before, &waiting.spent);
            return Waiting { spent, ..waiting };
        }
        let since = match inner.kind {
            WaitKind::NextToken => {
                self.epoch + Duration::from_nanos(self.last_token.load(Ordering::Relaxed))
            }
            _ => inner.since,
        };
        let mut spent = inner.spent.clone();
        spent.add(inner.kind, now.saturating_duration_since(inner.since));
        Waiting {
            kind: inner.kind,
            detail: inner.detail.clone(),
            for_: now.saturating_duration_since(since),
            deadline: inner.deadline,
            eta: inner.eta,
            spent,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds this lock; if it did, the values would still be sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_booked_by_kind() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let cell = WaitCell::new(WaitKind::Slot, "chat", Spent::default(), start);
        cell.enter(WaitKind::FirstByte, "sim/m, attempt 1", None, at(2100));
        cell.enter(WaitKind::NextToken, "sim/m, attempt 1", None, at(2500));
        cell.token(at(2900));
        let waiting = cell.read(at(3000));
        assert_eq!(waiting.kind, WaitKind::NextToken);
        assert_eq!(waiting.for_, Duration::from_millis(100), "since the last token");
        assert_eq!(waiting.spent.to_string(), "slot 2.1, first_byte 0.4, next_token 0.5");
        assert_eq!(Spent::from_json(&waiting.spent.to_json()), waiting.spent);
    }

    #[test]
    fn a_shared_wait_is_shown_and_booked_by_everyone() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let shared = Arc::new(WaitCell::new(WaitKind::Connect, "sim/m", Spent::default(), at(0)));
        let cell = WaitCell::new(WaitKind::Batch, "", Spent::default(), at(0));
        cell.follow(shared.clone(), at(1000));
        shared.enter(WaitKind::FirstByte, "sim/m", None, at(1500));
        let waiting = cell.read(at(1800));
        assert_eq!((waiting.kind, waiting.for_), (WaitKind::FirstByte, Duration::from_millis(300)));
        assert_eq!(waiting.spent.to_string(), "batch 1.0, connect 0.5, first_byte 0.3");
        cell.enter(WaitKind::Work, "", None, at(2000));
        shared.enter(WaitKind::Dns, "sim/m", None, at(2000));
        let spent = cell.read(at(2100)).spent.to_string();
        assert_eq!(spent, "work 0.1, batch 1.0, connect 0.5, first_byte 0.5");
    }

    #[test]
    fn every_kind_has_a_distinct_name() {
        let names: std::collections::BTreeSet<_> =
            WaitKind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(names.len(), WaitKind::ALL.len());
    }
}
