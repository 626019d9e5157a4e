//! Whom we call: model providers, over HTTP/1.1; what can be streamed is.
//!
//! [`Upstream::chat`] sends one request and returns at the first output; [`ChatStream`] gives the
//! rest. A call has one deadline and one timer, says what it waits for before it waits, and is
//! polled by its caller alone: there is no task, thread or channel of ours behind it, and dropping
//! it closes the provider's socket.
//!
//! [`Upstream::embed`] turns texts into vectors. Callers share that work, so it lives in tasks that
//! the client owns; it ends when nobody waits for it any more.
//!
//! **Invariants:** an answer counts as whole only after the provider's terminal event; every stage
//! has a limit and none outlasts the caller's deadline; a slot is held exactly as long as the call
//! uses its connection; nothing a provider sends reaches an error message unscrubbed.
//!
//! Not here: which agent asks what, what becomes of the answer, and anything of the database.
//!
//! Start reading at [`Upstream`], then `chat`, `attempt` and `live` in the order of a call's life.

mod attempt;
mod attempts;
mod call;
mod chat;
mod classify;
pub mod codec;
pub mod config;
pub mod dial;
mod embed;
mod failure;
mod guard;
mod latency;
mod lease;
mod live;
pub mod ndjson;
mod pool;
mod record;
mod route;
pub mod sse;
mod tally;
mod transport;
mod upstream;
mod usage;
mod watch;

pub use call::{CallCx, CallProbe, Class, Phase};
pub use chat::{ChatRequest, ChatStream};
pub use codec::{ChatEvent, FinishReason, Usage};
pub use config::{
    BreakerLimits, Commit, Config, ConfigError, EmbeddingModel, Endpoint, Kind, Limits,
    ModelConfig, ProviderConfig, Retry, Secret, Timeouts,
};
pub use dial::{Dial, DialError, DialPhase, Io, TcpDial};
pub use embed::{EmbedRequest, EmbeddingInfo, Embeddings, Purpose};
pub use failure::Error;
pub use guard::breaker::{BreakerView, RecentView, TransitionView};
pub use guard::keys::KeyView;
pub use guard::limiter::{LimiterView, ModelLimiterView, RateView};
pub use guard::retry_budget::RetryBudgetView;
pub use tally::TallyView;
pub use upstream::{ConnectionsView, ModelInfo, ModelView, ProviderView, Upstream};
pub use usage::{Observer, Price, UsageRow, UsageSource};

#[cfg(test)]
mod tests;
