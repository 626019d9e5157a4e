//! What a caller hands down with a call, and what it can see of it from outside.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clearway_core::wait::{Spent, WaitCell, WaitKind};
use clearway_core::{Deadline, RunId};

pub use crate::guard::limiter::Class;
use crate::usage::Observer;
use crate::watch::now;

/// The context of one call: how long it may take, who watches, under which id it is known.
#[derive(Clone, Debug)]
pub struct CallCx {
    /// Cuts every stage; nothing here can widen it.
    pub deadline: Deadline,
    /// Told before each wait what is waited for.
    pub wait: Arc<WaitCell>,
    pub probe: Arc<CallProbe>,
    /// Goes to the provider as `X-Client-Request-Id: <call_id>-<attempt>`.
    pub call_id: String,
    /// For whose sake it is made, as the log tells.
    pub run: Option<RunId>,
    pub class: Class,
    /// Tenants take turns where there is a queue.
    pub tenant: Arc<str>,
    /// What calls belong together, for models that keep such calls at one place.
    pub conversation: Option<Arc<str>>,
    /// Told of every attempt when it is over.
    pub observer: Option<Arc<dyn Observer>>,
}

impl CallCx {
    /// The context of a call that nobody watches, for one tenant.
    pub fn new(deadline: Deadline, call_id: impl Into<String>) -> Self {
        Self {
            deadline,
            wait: Arc::new(WaitCell::new(WaitKind::Work, "", Spent::default(), now())),
            probe: Arc::default(),
            call_id: call_id.into(),
            run: None,
            class: Class::Interactive,
            tenant: "default".into(),
            conversation: None,
            observer: None,
        }
    }
}

/// The call seen from outside, also after its future or stream is dropped.
#[derive(Debug, Default)]
pub struct CallProbe {
    connected: AtomicBool,
}

impl CallProbe {
    /// A socket to a provider is open for this call, or being opened. Once the call is dropped this
    /// is `false`, and it becomes so only after the socket is closed or handed back for reuse.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(crate) fn set_connected(&self) {
        self.connected.store(true, Ordering::Release);
    }

    pub(crate) fn clear_connected(&self) {
        self.connected.store(false, Ordering::Release);
    }
}

/// How far an attempt had come; part of every error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for one of the provider's slots.
    Queue,
    Dns,
    Connect,
    Tls,
    /// The request leaves.
    Send,
    /// The request is out, no status line yet.
    Headers,
    /// The body of an error answer.
    ErrorBody,
    /// The status is fine, no output yet.
    FirstToken,
    /// Output has begun.
    Stream,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Send => "send",
            Self::Headers => "headers",
            Self::ErrorBody => "error_body",
            Self::FirstToken => "first_token",
            Self::Stream => "stream",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
