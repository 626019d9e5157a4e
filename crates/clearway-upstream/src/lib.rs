//! Whom we call: model providers, over HTTP/1.1, always streamed.
//!
//! [`Upstream::chat`] sends one request and returns at the first output; [`ChatStream`] gives the
//! rest. A call has one deadline and one timer, says what it waits for before it waits, and is
//! polled by its caller alone: there is no task, thread or channel of ours behind it, and dropping
//! it closes the provider's socket.
//!
//! **Invariants:** an answer counts as whole only after the provider's terminal event; every stage
//! has a limit and none outlasts the caller's deadline; a slot is held exactly as long as the call
//! uses its connection; nothing a provider sends reaches an error message unscrubbed.
//!
//! Not here: which agent asks what, what becomes of the answer, and anything of the database.
//!
//! Start reading at [`Upstream`], then `chat`, `attempt` and `live` in the order of a call's life.

mod admit;
mod attempt;
mod call;
mod chat;
pub mod config;
pub mod dial;
mod failure;
mod live;
pub mod openai;
mod pool;
mod route;
pub mod sse;
mod transport;
mod upstream;
mod watch;

pub use call::{CallCx, CallProbe, Phase};
pub use chat::{ChatRequest, ChatStream};
pub use config::{
    Config, ConfigError, Endpoint, Limits, ModelConfig, ProviderConfig, Secret, Timeouts,
};
pub use dial::{Dial, DialError, DialPhase, Io, TcpDial};
pub use failure::Error;
pub use openai::{ChatEvent, FinishReason, Usage};
pub use upstream::{ModelInfo, ProviderView, Upstream};

#[cfg(test)]
mod tests;
