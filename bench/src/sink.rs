//! Somebody outside the server who is written to, and who knows what was done how often.
//!
//! It lives in the rig, so it outlives every kill. A write takes a while before it happens and again before it is
//! answered: a kill can fall on either side of it. Once its request was read it happens, as it would elsewhere.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::rng::Rng;
use crate::tap::{read_request, serve_each};

/// A write takes at most this long, in halves before and after it happens.
pub(crate) const SLOWEST: Duration = Duration::from_millis(60);

/// See the module.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    /// Owns the listener and the connections.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Seen {
    /// By what was written, the keys and how often each came.
    by_what: HashMap<String, Vec<(String, u32)>>,
    keys: HashMap<String, u32>,
    rng: Rng,
}

impl Sink {
    pub(crate) async fn start(seed: u64) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the sink's socket")?;
        let address = listener.local_addr()?;
        let (by_what, keys) = (HashMap::new(), HashMap::new());
        let seen = Arc::new(Mutex::new(Seen { by_what, keys, rng: Rng::new(seed) }));
        let mut tasks = JoinSet::new();
        let notes = Arc::clone(&seen);
        tasks.spawn(serve_each(listener, move |stream| serve(stream, Arc::clone(&notes))));
        Ok(Self { address, seen, _tasks: tasks })
    }

    /// How often a request came under a key.
    pub(crate) fn count(&self, key: &str) -> u32 {
        lock(&self.seen).keys.get(key).copied().unwrap_or_default()
    }

    /// How often something was done, and how many requests for it came: under a known key nothing is done again.
    pub(crate) fn times(&self, what: &str) -> (usize, u32) {
        let seen = lock(&self.seen);
        let keys = seen.by_what.get(what).map(Vec::as_slice).unwrap_or_default();
        (keys.len(), keys.iter().map(|(_, count)| count).sum())
    }

    /// Different things that were done.
    pub(crate) fn len(&self) -> usize {
        lock(&self.seen).by_what.len()
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(mut stream: TcpStream, seen: Arc<Mutex<Seen>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(4096);
    while let Some(length) = read_request(&mut stream, &mut buffer).await? {
        let (what, key, writes) = head(&buffer[..length])?;
        buffer.drain(..length);
        if writes {
            let half = u64::try_from(SLOWEST.as_millis() / 2).unwrap_or(1);
            let (before, after) = {
                let mut seen = lock(&seen);
                (seen.rng.within(0..half), seen.rng.within(0..half))
            };
            sleep(Duration::from_millis(before)).await;
            lock(&seen).note(what, key);
            sleep(Duration::from_millis(after)).await;
        }
        stream.write_all(ANSWER).await?;
    }
    Ok(())
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"ok\":true}";

impl Seen {
    fn note(&mut self, what: String, key: String) {
        *self.keys.entry(key.clone()).or_default() += 1;
        let keys = self.by_what.entry(what).or_default();
        match keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, count)) => *count += 1,
            None => keys.push((key, 1)),
        }
    }
}

/// The path, the idempotency key, and whether it is a write.
fn head(request: &[u8]) -> Result<(String, String, bool)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(request)?;
    let key = parsed.headers.iter().find(|f| f.name.eq_ignore_ascii_case("idempotency-key"));
    let key = key.map(|field| String::from_utf8_lossy(field.value).into_owned());
    let what = parsed.path.context("a request without a path")?.to_owned();
    Ok((what, key.unwrap_or_default(), parsed.method != Some("GET")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Conn, Request, exchange};

    #[tokio::test]
    async fn a_repetition_under_the_same_key_is_one_write() {
        let sink = Sink::start(1).await.unwrap();
        let mut conn = Conn::open(sink.address).await.unwrap();
        for key in ["a", "a", "b"] {
            let request =
                Request::post_with("/x", &[("idempotency-key", key)], &serde_json::json!({}));
            exchange(&mut conn, &request).await.unwrap().ok().unwrap();
        }
        exchange(&mut conn, &Request::get("/y")).await.unwrap().ok().unwrap();
        assert_eq!((sink.times("/x"), sink.count("a"), sink.len()), ((2, 3), 2, 1));
        assert_eq!(sink.times("/y"), (0, 0));
    }
}
