//! Whom we call: model providers, over HTTP/1.1, chat always streamed.
//!
//! [`Upstream::chat`] sends one request and returns at the first output; [`ChatStream`] gives the
//! rest. [`Upstream::embed`] turns texts into validated vectors. A call has one deadline and one
//! timer, says what it waits for before it waits, and a chat is polled by its caller alone: there is
//! no task, thread or channel of ours behind it, and dropping it closes the provider's socket.
//!
//! One loop (`attempts`) decides about retries, keys, fallbacks and waiting for a provider that is
//! down. In front of every attempt stand the state machines of `guard`; what an attempt holds is
//! settled by its `lease`, however it ends. What a provider speaks is its [`Kind`]; [`codec`] has a
//! dialect for each.
//!
//! **Invariants:** an answer counts as whole only after the provider's terminal event; every stage
//! has a limit and none outlasts the caller's deadline; a slot is held exactly as long as the call
//! uses its connection; nothing a provider sends reaches an error message unscrubbed; nobody but the
//! loop repeats a call.
//!
//! Not here: which agent asks what, what becomes of the answer, and anything of the database.
//!
//! Start reading at [`Upstream`], then `chat`, `attempts`, `attempt` and `live` in the order of a
//! call's life.

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
pub mod http1;
mod latency;
mod lease;
mod live;
pub mod ndjson;
mod outward;
mod pool;
mod record;
mod rerank;
mod route;
pub mod sse;
mod tally;
mod transport;
mod upstream;
mod usage;
mod waiting;
mod watch;

pub use call::{CallCx, CallProbe, Class, Phase};
pub use chat::{ChatRequest, ChatStream};
pub use codec::{ChatEvent, FinishReason, Usage};
pub use config::{
    BreakerLimits, Commit, Config, ConfigError, EmbeddingModel, Endpoint, Kind, Limits,
    ModelConfig, ProviderConfig, Retry, RetryOn, Secret, Timeouts,
};
pub use dial::{Dial, DialError, DialPhase, Io, TcpDial};
pub use embed::{EmbedRequest, EmbeddingInfo, Embeddings, Purpose};
pub use failure::Error;
pub use guard::breaker::{BreakerView, RecentView, TransitionView};
pub use guard::keys::KeyView;
pub use guard::limiter::{LimiterView, ModelLimiterView, RateView};
pub use guard::load::LoadView;
pub use guard::retry_budget::RetryBudgetView;
pub use outward::{Allowed, Outward, OutwardError, Policy as OutwardPolicy, Posted};
pub use rerank::RerankRequest;
pub use tally::TallyView;
pub use upstream::{ConnectionsView, ModelInfo, ModelView, ProviderView, Upstream};
pub use usage::{Observer, Price, UsageRow, UsageSource};
pub use waiting::CallView;

#[cfg(test)]
mod tests;
