//! One node call with what surrounds it: tries, time limits, the cache, the error handler.
//!
//! Not here: making providers' calls again (`clearway_upstream::Attempts`); a node's retry policy is
//! for nodes that fail for other reasons, and off unless configured.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clearway_core::channel::Write;
use clearway_core::event::EventKind;
use clearway_core::journal;
use clearway_core::machine::{Output, Park};
use clearway_core::plan::Goto;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Deadline, Failure};
use clearway_upstream::Class;
use futures_util::FutureExt;
use serde_json::{Value, json};

use crate::agent::{Agent, Expiry, Node, NodeError, NodePolicy, OnError, OnOutage, Retry};
use crate::clock::instant;
use crate::ctx::Ctx;
use crate::engine::bounded_by;
use crate::trace;

/// How a call ended.
pub(crate) enum CallEnd {
    Done(Output),
    Interrupted { value: Value, expiry: Option<Box<Expiry>> },
    Parked(Park),
    Failed(Failure),
    Aborted,
}

impl CallEnd {
    /// For the log.
    pub(crate) const fn outcome(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Interrupted { .. } => "interrupted",
            Self::Parked(_) => "parked",
            Self::Failed(failure) => failure.code.as_str(),
            Self::Aborted => "aborted",
        }
    }
}

/// Makes a call until it ends for good.
pub(crate) async fn make(agent: Arc<Agent>, code: Arc<dyn Node>, cx: Ctx) -> CallEnd {
    let policy = agent.policy(&cx.node);
    let key = policy.cache.map(|_| cache_key(&cx));
    if let Some(key) = &key
        && let Some(output) = cached(&cx, key).await
    {
        return CallEnd::Done(output);
    }
    let mut attempt = 1;
    loop {
        let mark = cx.mark();
        cx.session.shown.store(false, Ordering::Relaxed);
        cx.session.asked.store(0, Ordering::Relaxed);
        crate::live::lock(&cx.session.taken).clear();
        let failure = match one_try(&*code, &policy, cx.clone()).await {
            Ok(output) => {
                if let (Some(key), Some(lifetime)) = (key, policy.cache) {
                    cache(&cx, key, &output, lifetime).await;
                }
                return CallEnd::Done(output);
            }
            Err(NodeError::Interrupt { value, expiry }) => {
                return CallEnd::Interrupted { value, expiry };
            }
            Err(NodeError::Park(park)) => return park_call(&cx, mark, park),
            Err(NodeError::Failed(failure)) => failure,
        };
        if let Some(park) = outage(&agent, &cx, &failure) {
            return park_call(&cx, mark, park);
        }
        let again = attempt < policy.retry.attempts && worth_it(&policy.retry, &failure);
        let pause =
            policy.retry.backoff.saturating_mul(1 << (attempt - 1).min(10)).min(LONGEST_PAUSE);
        let pause = pause.max(failure.retry_after.unwrap_or_default());
        if !again || cx.deadline.remaining(instant()) <= pause {
            trace::failed(failure.code);
            return failed(&policy, &cx, attempt, failure);
        }
        let told = tell(&cx, attempt, &failure, "retry")
            .and_then(|()| cx.take_back(mark, "the step failed and is tried again"));
        if let Err(failure) = told {
            return CallEnd::Failed(failure);
        }
        let detail = format!("node {}, try {} of {}", cx.node, attempt + 1, policy.retry.attempts);
        cx.wait.enter(WaitKind::Retry, detail, Some(Deadline::after(instant(), pause)), instant());
        tokio::time::sleep(pause).await;
        cx.wait.enter(WaitKind::Work, "", Some(cx.deadline), instant());
        attempt += 1;
    }
}

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long an operator's mending is waited for before a look whether it is done.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

async fn one_try(code: &dyn Node, policy: &NodePolicy, mut cx: Ctx) -> Result<Output, NodeError> {
    let now = instant();
    cx.session.touch();
    if let Some(timeout) = policy.timeout {
        cx.deadline = cx.deadline.clip(now, timeout);
    }
    let (session, deadline) = (cx.session.clone(), cx.deadline);
    let node = cx.node.clone();
    let work = AssertUnwindSafe(code.call(cx)).catch_unwind();
    if policy.timeout.is_none() && policy.idle.is_none() {
        // The run's own deadline is the run's business: it drops this call when it passes.
        return work.await.unwrap_or_else(|panic| Err(panicked(&node, panic.as_ref()).into()));
    }
    tokio::pin!(work);
    loop {
        let idle_at = policy.idle.map(|idle| session.last_alive() + idle);
        let next = idle_at.map_or(deadline.0, |at| at.min(deadline.0));
        let ended = tokio::select! {
            biased;
            ended = &mut work => ended,
            () = tokio::time::sleep_until(next.into()) => {
                let now = instant();
                if deadline.has_passed(now) {
                    // The run's own deadline is told by the run, which knows where the time went.
                    let limit = policy.timeout.unwrap_or_default();
                    let text = format!("node `{node}` took longer than {} s", limit.as_secs_f64());
                    return Err(Failure::new(Code::DeadlineExceeded, text)
                        .with("node", &*node)
                        .with("limit", "deadline")
                        .retryable()
                        .into());
                }
                if let Some(idle) = policy.idle && session.last_alive() + idle <= now {
                    let text =
                        format!("node `{node}` showed no sign of life for {} s", idle.as_secs_f64());
                    return Err(Failure::new(Code::DeadlineExceeded, text)
                        .with("node", &*node)
                        .with("limit", "idle")
                        .retryable()
                        .into());
                }
                continue;
            }
        };
        return ended.unwrap_or_else(|panic| Err(panicked(&node, panic.as_ref()).into()));
    }
}

/// The try shows nothing any more that it would not show again.
fn park_call(cx: &Ctx, mark: crate::ctx::Mark, park: Park) -> CallEnd {
    match cx.take_back(mark, "the step waits and begins anew") {
        Ok(()) => CallEnd::Parked(park),
        Err(failure) => CallEnd::Failed(failure),
    }
}

/// Whether a run that nobody waits for should wait for the provider instead of failing.
fn outage(agent: &Agent, cx: &Ctx, failure: &Failure) -> Option<Park> {
    if agent.on_outage == OnOutage::Fail || cx.class != Class::Run {
        return None;
    }
    let after = match failure.code {
        Code::UpstreamRouteOpen => failure.retry_after.unwrap_or(Duration::from_secs(5)),
        Code::UpstreamQuotaExhausted | Code::UpstreamCredentialsExhausted => {
            failure.retry_after.unwrap_or(LOOK_AGAIN).max(LOOK_AGAIN)
        }
        _ => return None,
    };
    tracing::warn!(
        run.id = %cx.run, thread.id = %cx.thread, code = %failure.code,
        "node `{}` waits for a provider: {}", cx.node, failure.message
    );
    Some(Park {
        kind: WaitKind::Outage,
        detail: failure.message.clone(),
        wake_at: Some(cx.inner.clocks.now().plus(after)),
        on_child: false,
    })
}

fn worth_it(retry: &Retry, failure: &Failure) -> bool {
    match failure.code {
        // These mean the run, not the call.
        Code::Fenced | Code::OutputTooLarge | Code::Cancelled => false,
        code if retry.on.is_empty() => failure.retryable || code == Code::Internal,
        code => retry.on.contains(&code),
    }
}

fn failed(policy: &NodePolicy, cx: &Ctx, attempt: u32, failure: Failure) -> CallEnd {
    let (channel, goto, next) = match &policy.on_error {
        // Nobody handles what means the run as a whole.
        _ if matches!(failure.code, Code::Fenced | Code::OutputTooLarge) => {
            return CallEnd::Failed(failure);
        }
        OnError::Fail => return CallEnd::Failed(failure),
        OnError::Continue { channel } => (channel, None, "continue"),
        OnError::Goto { node, channel } => (channel, Some(vec![Goto::Node(node.clone())]), &**node),
    };
    if cx.deadline.has_passed(instant()) {
        return CallEnd::Failed(failure);
    }
    if let Err(failure) = tell(cx, attempt, &failure, next) {
        return CallEnd::Failed(failure);
    }
    let error = json!({"error": failure.to_json()});
    let writes = vec![Write { channel: channel.clone(), value: error, assign: false }];
    CallEnd::Done(Output { writes, goto, ..Output::default() })
}

fn tell(cx: &Ctx, attempt: u32, failure: &Failure, next: &str) -> Result<(), Failure> {
    let data = json!({
        "node": &*cx.node, "step": cx.step, "attempt": attempt, "error": failure.to_json(),
        "next": next,
    });
    cx.fact(EventKind::NodeFailed, &data)
}

// ## Cache

/// Of everything that the call may look at: agent, node, payload, state.
fn cache_key(cx: &Ctx) -> [u8; 32] {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let payload = cx.payload.as_deref().map(Value::to_string).unwrap_or_default();
    let state = cx.state.to_json().to_string();
    let parts = [&*cx.agent, &*cx.node, payload.as_str(), state.as_str()];
    hash.update(&clearway_core::id::length_prefixed(&parts));
    let mut key = [0; 32];
    key.copy_from_slice(hash.finish().as_ref());
    key
}

async fn cached(cx: &Ctx, key: &[u8; 32]) -> Option<Output> {
    let found = cx.inner.store.cached(&cx.record.tenant, key);
    match bounded_by(cx.deadline.0, found).await {
        // A reply's message id belongs to the call that made it.
        Ok(found) => journal::output_from_json(&found?).map(|output| Output {
            reply: None,
            usage: clearway_core::run::Usage::default(),
            ..output
        }),
        Err(error) => {
            tracing::warn!(run.id = %cx.run, "the cache cannot be read: {error}");
            None
        }
    }
}

async fn cache(cx: &Ctx, key: [u8; 32], output: &Output, lifetime: Duration) {
    let value = journal::output_to_json(output);
    let kept = cx.inner.store.cache(&cx.record.tenant, key, value, lifetime);
    if let Err(error) = bounded_by(cx.deadline.0, kept).await {
        tracing::warn!(run.id = %cx.run, "an output could not be cached: {error}");
    }
}

pub(crate) fn panicked(node: &str, panic: &(dyn std::any::Any + Send)) -> Failure {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(node, "a node panicked: {text}");
    Failure::new(Code::Internal, format!("node `{node}` panicked; the log says where"))
}
