//! Webhooks: telling somebody by HTTP that a run has ended.
//!
//! The store writes a delivery in the same transaction that ends the run, so none is lost; this
//! task sends them, again and again with growing pauses, until the receiver takes one or the tries
//! are used up. A receiver sees each delivery at least once; its id says which are the same.
//!
//! Each is signed: `t=<unix seconds>,v1=<hex>`, where the hex is the HMAC-SHA256 of the time, a dot
//! and the body under the configured secret. The time is that of the try, so that an old one cannot
//! be played back.
//!
//! **Invariant:** only so many are under way at once; a receiver that hangs delays nobody else's
//! beyond its place among them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::{Code, RunRecord, Timestamp};
use clearway_store::{Delivery, DeliveryOutcome};
use clearway_upstream::{Outward, OutwardError, OutwardPolicy};
use futures_util::stream::{FuturesUnordered, StreamExt};
use ring::hmac;
use serde_json::json;
use tokio::time::Instant;

use crate::Error;
use crate::durable::hex;
use crate::engine::{Inner, bounded};

/// How webhooks are sent.
#[derive(Clone)]
pub struct Webhooks {
    /// With which they are signed; without one they are not.
    pub secret: Option<String>,
    /// Private addresses that may be told all the same.
    pub policy: OutwardPolicy,
    /// For one try.
    pub deadline: Duration,
    pub attempts: u32,
    /// Before the second try; doubles with each, up to an hour.
    pub backoff: Duration,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            secret: None,
            policy: OutwardPolicy::default(),
            deadline: Duration::from_secs(10),
            attempts: 8,
            backoff: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// The sender at work.
#[derive(Debug)]
pub(crate) struct Sender {
    outward: Outward,
    webhooks: Webhooks,
}

impl Sender {
    pub(crate) fn new(webhooks: &Webhooks) -> Self {
        Self { outward: Outward::new(webhooks.policy.clone()), webhooks: webhooks.clone() }
    }

    /// Refuses an address that could never be told, when it is given rather than when it is due.
    pub(crate) fn check(&self, url: &str) -> Result<(), Error> {
        if url.len() > LONGEST {
            let text = format!("`webhook` is longer than {LONGEST} characters");
            return Err(Error::new(Code::InvalidRequest, text));
        }
        self.outward.check(url).map(drop).map_err(|error| {
            let more = match error {
                OutwardError::Private { .. } => "; [webhooks] allow makes exceptions",
                _ => "",
            };
            Error::new(Code::InvalidRequest, format!("`webhook`: {error}{more}"))
        })
    }

    fn backoff(&self, attempt: u32) -> Duration {
        let doubled = self.webhooks.backoff.saturating_mul(1 << attempt.min(16));
        doubled.min(LONGEST_PAUSE)
    }

    async fn send(
        &self,
        delivery: &Delivery,
        record: &RunRecord,
        now: Timestamp,
    ) -> DeliveryOutcome {
        let (url, id) = (&delivery.url, delivery.id.to_string());
        self.tell(url, "run.ended", &id, &body(delivery, record), delivery.attempt, now).await
    }

    /// One try, the first one with `attempt` 0, and what is to become of the message.
    pub(crate) async fn tell(
        &self,
        url: &str,
        event: &str,
        id: &str,
        body: &serde_json::Value,
        attempt: u32,
        now: Timestamp,
    ) -> DeliveryOutcome {
        let body = body.to_string();
        let mut headers =
            vec![("x-clearway-event", event.to_owned()), ("x-clearway-delivery", id.to_owned())];
        if let Some(secret) = &self.webhooks.secret {
            headers.push(("x-clearway-signature", signature(secret, now, &body)));
        }
        let deadline = Instant::now() + self.webhooks.deadline;
        let posted = self.outward.post(url, &headers, body.into(), deadline).await;
        let (error, asked) = match posted {
            Ok(posted) if (200..300).contains(&posted.status) => return DeliveryOutcome::Done,
            // The receiver says that it is gone for good.
            Ok(posted) if posted.status == 410 => {
                return DeliveryOutcome::Dead { error: "status 410".to_owned() };
            }
            Ok(posted) => (format!("status {}", posted.status), posted.retry_after),
            Err(error @ (OutwardError::Url(_) | OutwardError::Private { .. })) => {
                return DeliveryOutcome::Dead { error: error.to_string() };
            }
            Err(error) => (error.to_string(), None),
        };
        if attempt + 1 >= self.webhooks.attempts {
            return DeliveryOutcome::Dead { error };
        }
        let after = self.backoff(attempt).max(asked.unwrap_or_default());
        DeliveryOutcome::Retry { after: after.min(LONGEST_PAUSE), error }
    }
}

fn signature(secret: &str, now: Timestamp, body: &str) -> String {
    let at = now.0 / 1000;
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex(tag.as_ref()))
}

fn body(delivery: &Delivery, record: &RunRecord) -> serde_json::Value {
    json!({
        "type": "run.ended",
        "delivery_id": delivery.id,
        "attempt": delivery.attempt + 1,
        "created_at": delivery.created_at.to_string(),
        "run": {
            "run_id": record.id.to_string(),
            "thread_id": record.thread.to_string(),
            "agent": record.agent,
            "door": record.door,
            "status": record.status.as_str(),
            "created_at": record.created_at.to_string(),
            "started_at": record.started_at.map(|at| at.to_string()),
            "ended_at": record.ended_at.map(|at| at.to_string()),
            "next": record.next,
            "metadata": record.metadata,
            "error": record.failure.as_ref().map(clearway_core::Failure::to_json),
        },
    })
}

impl Inner {
    /// The standing task that sends what is due.
    pub(crate) async fn send_webhooks(self: Arc<Self>) {
        let mut open = HashSet::new();
        let mut sending = FuturesUnordered::new();
        let mut pause = Duration::ZERO;
        loop {
            tokio::select! {
                () = self.tasks.soft.cancelled() => return,
                Some(id) = sending.next(), if !sending.is_empty() => {
                    open.remove(&id);
                }
                () = tokio::time::sleep(pause) => {}
            }
            if open.len() >= AT_ONCE {
                pause = LOOK_EVERY;
                continue;
            }
            pause = match bounded(self.store.due_deliveries(LOOKED_AT)).await {
                Ok((due, next)) => {
                    for delivery in due {
                        if open.len() < AT_ONCE && open.insert(delivery.id) {
                            let inner = self.clone();
                            sending.push(async move { inner.deliver(delivery).await });
                        }
                    }
                    let until = next.map_or(LOOK_EVERY, |at| at.since(self.clocks.now()));
                    until.clamp(SHORTEST, LOOK_EVERY)
                }
                Err(error) => {
                    tracing::warn!("webhooks cannot be read, trying again: {error}");
                    LOOK_EVERY
                }
            };
        }
    }

    async fn deliver(&self, delivery: Delivery) -> i64 {
        let id = delivery.id;
        let outcome = match bounded(self.store.run(delivery.run)).await {
            Ok(Some(record)) => self.webhooks.send(&delivery, &record, self.clocks.now()).await,
            Ok(None) => DeliveryOutcome::Dead { error: "the run is deleted".to_owned() },
            Err(error) => {
                tracing::warn!(run.id = %delivery.run, "a webhook waits for the store: {error}");
                return id;
            }
        };
        let attempt = delivery.attempt + 1;
        match &outcome {
            DeliveryOutcome::Done => {
                tracing::info!(run.id = %delivery.run, delivery = id, attempt, "webhook delivered");
            }
            DeliveryOutcome::Retry { after, error } => {
                let after_ms = after.as_millis() as u64;
                tracing::warn!(run.id = %delivery.run, delivery = id, attempt, after_ms, "webhook failed, trying again: {error}");
            }
            DeliveryOutcome::Dead { error } => {
                tracing::error!(run.id = %delivery.run, delivery = id, attempt, "webhook given up: {error}");
            }
        }
        if let Err(error) = bounded(self.store.delivered(id, outcome)).await {
            // It is sent again: at least once is what was promised.
            tracing::warn!(delivery = id, "a webhook's end could not be noted: {error}");
        }
        id
    }
}

/// The longest address.
const LONGEST: usize = 2048;
/// Deliveries under way at once.
const AT_ONCE: usize = 16;
/// More than are sent at once, so that those that hang do not hide the others.
const LOOKED_AT: u32 = 256;
const LOOK_EVERY: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let sender = Sender::new(&Webhooks::default());
        let pauses: Vec<u64> = (0..4).map(|attempt| sender.backoff(attempt).as_secs()).collect();
        assert_eq!(pauses, [5, 10, 20, 40]);
        assert_eq!(sender.backoff(60), LONGEST_PAUSE);
    }

    #[test]
    fn signatures_are_what_a_receiver_computes() {
        // Python: hmac.new(b"secret", b"1764000000.{}", "sha256").hexdigest()
        let expected = "t=1764000000,v1=";
        let signed = signature("secret", Timestamp(1_764_000_000_999), "{}");
        assert!(signed.starts_with(expected), "{signed}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
        let tag: Vec<u8> = (0..signed.len() - expected.len())
            .step_by(2)
            .map(|at| {
                let at = expected.len() + at;
                u8::from_str_radix(&signed[at..at + 2], 16).unwrap()
            })
            .collect();
        hmac::verify(&key, b"1764000000.{}", &tag).unwrap();
    }

    #[test]
    fn addresses_that_could_never_be_told_are_refused_at_once() {
        let sender = Sender::new(&Webhooks::default());
        for bad in
            ["", "ftp://x", "hooks.example", "http://127.0.0.1/x", "http://user:pw@example.com/"]
        {
            assert_eq!(sender.check(bad).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
        assert!(sender.check("https://hooks.example/x?y=1").is_ok());
    }
}
