//! Somebody outside who remembers what was done to them.
//!
//! An HTTP server in the test's own process: what it has seen outlives the server under test, however
//! often that is killed. A write takes a while before it happens and again before it is answered, so
//! that a kill can fall on either side of it; once its request was read it happens, whoever is still
//! there to hear of it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// See the module.
#[derive(Debug)]
pub struct Sink {
    address: SocketAddr,
    seen: Seen,
    /// Owns the listener and the connections.
    _tasks: JoinSet<()>,
}

/// What was written, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The request's path: what the write is about.
    pub what: String,
    pub key: String,
}

type Seen = Arc<Mutex<Vec<Write>>>;

impl Sink {
    /// Writes take `pause` before they happen and `pause` after.
    ///
    /// # Errors
    /// No port.
    pub async fn start(pause: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the sink")?;
        let address = listener.local_addr()?;
        let seen = Seen::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, seen.clone(), pause));
        Ok(Self { address, seen, _tasks: tasks })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn writes(&self) -> Vec<Write> {
        lock(&self.seen).clone()
    }

    /// How often each thing was done: a key that was seen before is recognised, and nothing is done.
    pub fn times(&self) -> BTreeMap<String, usize> {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for Write { what, key } in self.writes() {
            let keys = keys.entry(what).or_default();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys.into_iter().map(|(what, keys)| (what, keys.len())).collect()
    }

    /// How often a request came under this key.
    pub fn count(&self, key: &str) -> usize {
        lock(&self.seen).iter().filter(|write| write.key == key).count()
    }
}

fn lock(seen: &Seen) -> MutexGuard<'_, Vec<Write>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, seen: Seen, pause: Duration) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let seen = seen.clone();
                connections.spawn(async move {
                    // A caller that was killed shows in what it does next.
                    let _ = serve(stream, &seen, pause).await;
                });
            }
        }
    }
}

async fn serve(stream: TcpStream, seen: &Seen, pause: Duration) -> Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some((method, write, length)) = head(&mut stream).await? {
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let answer = if method == "GET" {
            json!({"writes": lock(seen).len()})
        } else {
            sleep(pause).await;
            let answer = said(&write);
            lock(seen).push(write);
            sleep(pause).await;
            answer
        };
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        stream.get_mut().write_all((head + &text).as_bytes()).await?;
    }
    Ok(())
}

/// What the writer is told.
fn said(write: &Write) -> Value {
    json!({"done": write.what})
}

/// Method, path and key, and the body's length. `None`: no further request.
async fn head(stream: &mut BufReader<TcpStream>) -> Result<Option<(String, Write, usize)>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().context("no method")?.to_owned();
    let what = words.next().context("no path")?.to_owned();
    let (mut key, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "idempotency-key" => value.trim().clone_into(&mut key),
            "content-length" => length = value.trim().parse()?,
            _ => {}
        }
    }
    Ok(Some((method, Write { what, key }, length)))
}
