//! One batch on its way to the provider: all attempts, and the hedge against a slow one.
//!
//! Half a batch is of no use, and embedding twice changes nothing, so a call that is slow beyond its
//! model's habits is sent a second time, and the first valid answer wins. That costs the provider,
//! therefore few calls may.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use clearway_core::{Code, Deadline};
use futures_util::future::BoxFuture;

use super::Sender;
use super::wire::Decoded;
use crate::attempt::{Attempt, WholeLimits};
use crate::attempts::{Admitted, Attempts, CallKind};
use crate::call::CallCx;
use crate::codec::Usage;
use crate::failure::{Error, Fault};
use crate::record::CallRecord;
use crate::route::Route;
use crate::watch::{Watch, now};

/// Sends over the provider's own connections and slots.
pub(super) struct Direct {
    /// By configured name.
    routes: HashMap<String, Arc<Route>>,
}

/// What both legs of a hedged attempt send, and how they read the answer.
struct Leg<'a> {
    cx: &'a CallCx,
    body: Bytes,
    limits: WholeLimits,
    decode: &'a (dyn Fn(&[u8]) -> Result<Decoded, Fault> + Sync),
}

impl Direct {
    pub(super) const fn new(routes: HashMap<String, Arc<Route>>) -> Self {
        Self { routes }
    }
}

impl Sender for Direct {
    fn send<'a>(
        &'a self,
        cx: &'a CallCx,
        model: &'a str,
        body: Bytes,
        _items: usize,
        tokens: u64,
        decode: &'a (dyn Fn(&[u8]) -> Result<Decoded, Fault> + Sync),
    ) -> BoxFuture<'a, Result<Decoded, Error>> {
        Box::pin(async move {
            let Some(route) = self.routes.get(model) else {
                let problem = format!("there is no embedding model {model:?}");
                return Err(Error::refused(Code::InvalidConfig, problem));
            };
            let started = now();
            let mut watch = Watch::new(cx.deadline);
            let mut record = CallRecord::start("embeddings", cx, route, started);
            let routes: Arc<[_]> = Arc::new([route.clone()]);
            let mut attempts = Attempts::new(routes, CallKind::EMBEDDING, tokens, started);
            let limits = WholeLimits { bytes: MAX_ANSWER, within: route.timeouts.headers };
            let leg = Leg { cx, body, limits, decode };
            loop {
                let outcome = match attempts.admit(cx, &mut watch, &record.span).await {
                    Ok(admitted) => {
                        let began = now();
                        match hedged(&mut attempts, admitted, &mut watch, &leg, &record).await {
                            Ok(decoded) => {
                                route.latencies.add(now().saturating_duration_since(began));
                                record.finished(attempts.made());
                                return Ok(decoded);
                            }
                            Err(fault) => {
                                attempts.failed(route.clone(), fault, began, cx, &mut watch).await
                            }
                        }
                    }
                    Err(error) => Err(error),
                };
                outcome.map_err(|error| record.failed(error, attempts.made()))?;
            }
        })
    }
}

/// One attempt, and a second one beside it when the first is slow.
async fn hedged(
    attempts: &mut Attempts,
    first: Admitted,
    watch: &mut Watch,
    leg: &Leg<'_>,
    record: &CallRecord,
) -> Result<Decoded, Fault> {
    let route = first.route.clone();
    let patience = route.latencies.p95().unwrap_or_default().max(LEAST_PATIENCE);
    let slow_at = Deadline(now() + patience);
    let mut spare = Watch::new(leg.cx.deadline);
    let mut first = pin!(attempt(first, watch, leg));
    if let Ok(early) = spare.within(slow_at, |cx| first.as_mut().poll(cx)).await {
        return early;
    }
    let Some(second) = attempts.second(&route, leg.cx, &record.span, now()) else {
        return first.await;
    };
    let mut second = pin!(attempt(second, &mut spare, leg));
    let mut fault = None;
    let (mut first_runs, mut second_runs) = (true, true);
    poll_fn(|cx| {
        if first_runs && let Poll::Ready(outcome) = first.as_mut().poll(cx) {
            first_runs = false;
            match outcome {
                Ok(decoded) => return Poll::Ready(Ok(decoded)),
                Err(error) => fault = Some(error),
            }
        }
        if second_runs && let Poll::Ready(outcome) = second.as_mut().poll(cx) {
            second_runs = false;
            match outcome {
                Ok(decoded) => return Poll::Ready(Ok(decoded)),
                Err(error) => fault = Some(fault.take().unwrap_or(error)),
            }
        }
        match fault.take() {
            Some(fault) if !first_runs && !second_runs => Poll::Ready(Err(fault)),
            kept => {
                fault = kept;
                Poll::Pending
            }
        }
    })
    .await
}

async fn attempt(admitted: Admitted, watch: &mut Watch, leg: &Leg<'_>) -> Result<Decoded, Fault> {
    let Admitted { route, lease, number, detail } = admitted;
    let target = &route.provider.embeddings;
    let attempt = Attempt { route: &route, target, cx: leg.cx, watch, number, detail, lease };
    let decode = |answer: &[u8]| {
        let decoded = (leg.decode)(answer)?;
        let usage =
            decoded.input_tokens.map(|input_tokens| Usage { input_tokens, ..Usage::default() });
        Ok((decoded, usage))
    };
    attempt.whole(leg.body.clone(), leg.limits, decode).await
}

/// A full batch of long vectors, written out as decimal numbers.
const MAX_ANSWER: usize = 32 << 20;
/// However quick a model usually is, so much is not slow.
const LEAST_PATIENCE: Duration = Duration::from_millis(1500);
