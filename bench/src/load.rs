//! Many readers of streams at once, and what they saw.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use crate::bed::Pace;
use crate::expect::Expected;
use crate::http::{Conn, Request};
use crate::sse::{Dialect, Events, Meaning};
use crate::stats::Hist;

/// Whom the readers call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) dialect: Dialect,
}

impl Target {
    /// A streamed request; `who` keeps conversations apart.
    pub(crate) fn stream_request(&self, who: &str, message: &str) -> Request {
        match self.dialect {
            Dialect::OpenAi => Request::post(COMPLETIONS, &openai_body(message, true)),
            Dialect::Chat => Request::post("/chat/stream", &chat_body(who, message)),
        }
    }

    /// The same without a stream.
    pub(crate) fn whole_request(&self, who: &str, message: &str) -> Request {
        match self.dialect {
            Dialect::OpenAi => Request::post(COMPLETIONS, &openai_body(message, false)),
            Dialect::Chat => Request::post("/chat", &chat_body(who, message)),
        }
    }

    /// The reply in an answer to [`Self::whole_request`].
    pub(crate) fn reply<'a>(&self, answer: &'a Value) -> Option<&'a str> {
        match self.dialect {
            Dialect::OpenAi => answer["choices"][0]["message"]["content"].as_str(),
            Dialect::Chat => answer["reply"].as_str(),
        }
    }
}

const COMPLETIONS: &str = "/v1/chat/completions";

/// As the server asks the provider: with a system prompt and for usage.
fn openai_body(message: &str, stream: bool) -> Value {
    let messages = json!([
        {"role": "system", "content": "You are under load."},
        {"role": "user", "content": message},
    ]);
    let mut body = json!({"model": "bench", "messages": messages, "stream": stream});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

pub(crate) fn chat_body(who: &str, message: &str) -> Value {
    json!({"user_id": who, "conversation_id": who, "message": message})
}

/// What one reader keeps between streams.
#[derive(Debug, Default)]
pub(crate) struct Client {
    conn: Option<Conn>,
    events: Events,
    /// When each delta came, in microseconds since the request.
    pub(crate) arrivals_us: Vec<u32>,
}

/// One complete stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// The request was about to be sent.
    pub(crate) begin: Instant,
    pub(crate) first: Duration,
    pub(crate) total: Duration,
}

impl Client {
    /// Reads a whole stream and checks every byte of it.
    pub(crate) async fn stream(
        &mut self,
        target: &Target,
        request: &Request,
        expected: &Expected,
    ) -> Result<Seen> {
        let mut conn = match self.conn.take().filter(Conn::is_reusable) {
            Some(conn) => conn,
            None => Conn::open(target.address).await?,
        };
        self.events.clear();
        self.arrivals_us.clear();
        let begin = Instant::now();
        conn.send(request).await?;
        let head = conn.head().await?;
        if head.status != 200 {
            bail!("status {}: {}", head.status, String::from_utf8_lossy(&conn.rest().await?));
        }
        let mut reader = expected.reader();
        let (mut whole, mut over) = (None, false);
        while conn.more(&mut self.events.bytes).await? {
            let now = begin.elapsed();
            while let Some(event) = self.events.next()? {
                match target.dialect.meaning(event.data)? {
                    Meaning::Token(text) if text.is_empty() => {}
                    Meaning::Token(text) => {
                        reader.token(&text)?;
                        self.arrivals_us.push(u32::try_from(now.as_micros()).unwrap_or(u32::MAX));
                    }
                    Meaning::Final(text) => {
                        ensure!(whole.replace(text).is_none(), "two finals");
                        over = true;
                    }
                    Meaning::Done => over = true,
                    Meaning::Error(error) => bail!("the stream says: {error}"),
                    Meaning::Other => {}
                }
            }
        }
        ensure!(!self.events.has_remainder(), "the stream ended inside an event");
        ensure!(over, "the stream ended without saying that it is over");
        reader.end()?;
        if let Some(whole) = whole {
            ensure!(whole == expected.text(), "final differs from the joined deltas");
        }
        self.conn = Some(conn);
        let first = self.arrivals_us.first().copied().context("no token")?;
        Ok(Seen { begin, first: Duration::from_micros(first.into()), total: begin.elapsed() })
    }
}

/// A number of readers, each with a few streams one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volley {
    pub(crate) clients: u32,
    pub(crate) repeat: u32,
    pub(crate) pace: Pace,
}

/// What they saw together.
#[derive(Debug, Default)]
pub(crate) struct Shot {
    /// Request to first token.
    pub(crate) first: Hist,
    /// How late a token is against its stream's own rhythm.
    pub(crate) lag: Hist,
    pub(crate) total: Hist,
    pub(crate) streams: u64,
    pub(crate) tokens: u64,
    pub(crate) deltas: u64,
    pub(crate) errors: Vec<String>,
}

impl Shot {
    pub(crate) fn merge(&mut self, other: Self) {
        self.first.merge(&other.first);
        self.lag.merge(&other.lag);
        self.total.merge(&other.total);
        self.streams += other.streams;
        self.tokens += other.tokens;
        self.deltas += other.deltas;
        self.errors.extend(other.errors);
    }

    fn add(&mut self, seen: Seen, arrivals_us: &[u32], pace: Pace) {
        self.first.add(seen.first);
        self.total.add(seen.total);
        self.streams += 1;
        self.tokens += u64::from(pace.tokens);
        self.deltas += arrivals_us.len() as u64;
        lags(arrivals_us, pace.interval_ms * 1000).for_each(|us| self.lag.add_us(us));
    }
}

/// How late each token is, taking the stream's earliest one (by its rhythm) as the clock.
fn lags(arrivals_us: &[u32], interval_us: u64) -> impl Iterator<Item = u64> {
    let offset = move |(n, us): (usize, &u32)| i64::from(*us) - (n as u64 * interval_us) as i64;
    let base = arrivals_us.iter().enumerate().map(offset).min().unwrap_or(0);
    arrivals_us.iter().enumerate().map(move |at| (offset(at) - base) as u64)
}

/// Lets all readers run. They begin spread over the length of one stream, so that the load is even.
pub(crate) async fn volley(target: Target, volley: Volley) -> Shot {
    let expected = Arc::new(Expected::counted(volley.pace.tokens));
    let shot = Arc::new(Mutex::new(Shot::default()));
    let begin = tokio::time::Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..volley.clients {
        let start = begin + volley.pace.duration() * n / volley.clients;
        let (expected, shot) = (Arc::clone(&expected), Arc::clone(&shot));
        tasks.spawn(async move {
            sleep_until(start).await;
            reader(target, volley, n, &expected, &shot).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        if let Err(error) = done {
            lock(&shot).errors.push(format!("a reader broke: {error}"));
        }
    }
    std::mem::take(&mut *lock(&shot))
}

fn lock(shot: &Mutex<Shot>) -> MutexGuard<'_, Shot> {
    shot.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn reader(target: Target, volley: Volley, n: u32, expected: &Expected, shot: &Mutex<Shot>) {
    let mut client = Client::default();
    let limit = volley.pace.duration() * 4 + Duration::from_secs(30);
    for round in 0..volley.repeat {
        let request = target.stream_request(&unique(n, round), "Say something.");
        let result = timeout(limit, client.stream(&target, &request, expected)).await;
        let error = match result {
            Ok(Ok(seen)) => {
                lock(shot).add(seen, &client.arrivals_us, volley.pace);
                continue;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("a stream took longer than {limit:?}"),
        };
        lock(shot).errors.push(error);
        client = Client::default();
    }
}

/// A name that no other stream of this process has.
fn unique(n: u32, round: u32) -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("u{n}-{round}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_measured_against_the_streams_own_rhythm() {
        let arrivals = [5_000, 25_300, 44_900, 66_000];
        let lags: Vec<u64> = lags(&arrivals, 20_000).collect();
        assert_eq!(lags, [100, 400, 0, 1_100]);
    }
}
