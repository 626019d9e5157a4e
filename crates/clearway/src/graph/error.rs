//! What a node may fail with.

use std::fmt;

use clearway_core::{Code, Failure};
use clearway_engine::NodeError;

use super::state::Next;

/// What a node returns.
pub type NodeResult<S> = Result<Next<S>, Error>;

/// Why a node did not end well, or that it has to be called again later.
///
/// Any error of the standard kind becomes one with `?`. Such an error may be worth another try, so a
/// node with [`retry`](super::IntoNode::retry) is called again; [`Error::permanent`] says that it is
/// not. What [`Ctx`](super::Ctx) returns is to be handed on as it is: it is also how a node waits.
pub struct Error(pub(super) NodeError);

impl Error {
    /// A failure that another try may get around.
    pub fn new(message: impl fmt::Display) -> Self {
        Failure::new(Code::StepFailed, message.to_string()).retryable().into()
    }

    /// A failure that another try would meet again.
    pub fn permanent(message: impl fmt::Display) -> Self {
        Failure::new(Code::StepFailed, message.to_string()).into()
    }

    /// The failure; `None` when the node only waits.
    pub const fn failure(&self) -> Option<&Failure> {
        match &self.0 {
            NodeError::Failed(failure) => Some(failure),
            NodeError::Interrupt { .. } | NodeError::Park(_) => None,
        }
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let error: Box<dyn std::error::Error + Send + Sync> = Box::new(error);
        let error = match error.downcast::<Failure>() {
            Ok(failure) => return Self(NodeError::Failed(*failure)),
            Err(error) => error,
        };
        let error = match error.downcast::<clearway_engine::Error>() {
            Ok(error) => return Self(NodeError::Failed(error.0)),
            Err(error) => error,
        };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        Self::new(text)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            NodeError::Failed(failure) => failure.fmt(f),
            NodeError::Interrupt { .. } => f.write_str("the node asks a person"),
            NodeError::Park(park) => write!(f, "the node waits: {}", park.detail),
        }
    }
}
