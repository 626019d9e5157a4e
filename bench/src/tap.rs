//! A provider inside the rig, which knows the instant at which everything happened to it.
//!
//! The simulator is the better provider: it has faults, scripts and its own process. But what the server adds to a
//! token, and how soon it closes a socket, can only be told exactly by one clock that sees both ends. The tap is that
//! other end: it notes when a request was complete, when each token was written, and when the server hung up.
//!
//! How to answer is written in the last user message, see [`Script`].

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use memchr::memmem;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::expect::Expected;

/// How to answer one call, as text within a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// Under which the call is noted.
    pub(crate) id: u64,
    pub(crate) tokens: u32,
    pub(crate) interval_ms: u64,
    pub(crate) hold: Hold,
}

/// Where the answer stops for good, the socket staying open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// It does not.
    Never,
    /// Before the first byte.
    Before,
    /// After half of the tokens.
    Halfway,
}

const MARK: &str = "tap:";

impl std::fmt::Display for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hold = match self.hold {
            Hold::Never => "never",
            Hold::Before => "before",
            Hold::Halfway => "halfway",
        };
        write!(f, "{MARK}{}:{}:{}:{hold}:", self.id, self.tokens, self.interval_ms)
    }
}

impl Script {
    /// The last one in a request's body: a conversation repeats those of its earlier turns.
    fn find(body: &[u8]) -> Option<Self> {
        let start = memmem::rfind(body, MARK.as_bytes())? + MARK.len();
        let rest = &body[start..body.len().min(start + 80)];
        let mut parts = std::str::from_utf8(rest.split(|b| *b == b'"').next()?).ok()?.split(':');
        Some(Self {
            id: parts.next()?.parse().ok()?,
            tokens: parts.next()?.parse().ok()?,
            interval_ms: parts.next()?.parse().ok()?,
            hold: match parts.next()? {
                "never" => Hold::Never,
                "before" => Hold::Before,
                "halfway" => Hold::Halfway,
                _ => return None,
            },
        })
    }
}

/// What happened to a call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// The request was complete.
    pub(crate) received: Instant,
    /// Each token, just before it was written.
    pub(crate) sent: Vec<Instant>,
    /// The last byte was written.
    pub(crate) finished: Option<Instant>,
    /// The other side hung up before that.
    pub(crate) closed: Option<Instant>,
}

type Calls = Arc<Mutex<Notes>>;

#[derive(Debug, Default)]
struct Notes {
    calls: HashMap<u64, Call>,
    /// Prompts that no conversation can have led to.
    odd_prompts: Vec<String>,
}

/// The provider.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) address: SocketAddr,
    calls: Calls,
    /// Owns the listener and the connections.
    _tasks: JoinSet<()>,
}

impl Tap {
    pub(crate) async fn start() -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("the tap's socket")?;
        let address = listener.local_addr()?;
        let calls = Calls::default();
        let mut tasks = JoinSet::new();
        let notes = Arc::clone(&calls);
        tasks.spawn(serve_each(listener, move |stream| serve(stream, Arc::clone(&notes))));
        Ok(Self { address, calls, _tasks: tasks })
    }

    /// What is known of a call so far.
    pub(crate) fn call(&self, id: u64) -> Option<Call> {
        lock(&self.calls).calls.get(&id).cloned()
    }

    /// Prompts whose messages do not alternate, or in which somebody says the same twice: what a duplicated or lost
    /// message of a thread looks like to a model.
    pub(crate) fn odd_prompts(&self) -> Vec<String> {
        lock(&self.calls).odd_prompts.clone()
    }

    /// The same, and forgets it.
    pub(crate) fn take(&self, id: u64) -> Option<Call> {
        lock(&self.calls).calls.remove(&id)
    }
}

fn lock(calls: &Calls) -> MutexGuard<'_, Notes> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves each connection in a task of its own, for ever; with the caller all of them end. Whatever
/// ends one early is its client's doing, and shows in what the client does next.
pub(crate) async fn serve_each<F>(listener: TcpListener, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(serve(stream));
                }
            }
        }
    }
}

async fn serve(mut stream: TcpStream, calls: Calls) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(16 * 1024);
    while let Some(length) = read_request(&mut stream, &mut buffer).await? {
        let received = Instant::now();
        let body = &buffer[..length];
        if let Some(odd) = odd_prompt(body) {
            lock(&calls).odd_prompts.push(odd);
        }
        let script = Script::find(body).context("a request without a script")?;
        let streamed = memmem::find(body, b"\"stream\":true").is_some();
        buffer.drain(..length);
        let call = Call { received, sent: Vec::new(), finished: None, closed: None };
        lock(&calls).calls.insert(script.id, call);
        let mut answer = Answer { stream: &mut stream, calls: &calls, script, out: Vec::new() };
        if let Err(error) = answer.give(streamed).await {
            answer.note(|call| call.closed = Some(Instant::now()));
            return Err(error);
        }
    }
    Ok(())
}

/// The length of head and body of the next request, which `buffer` then begins with.
pub(crate) async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> Result<Option<usize>> {
    loop {
        if let Some(length) = request_length(buffer)?
            && buffer.len() >= length
        {
            return Ok(Some(length));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

fn request_length(buffer: &[u8]) -> Result<Option<usize>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(head) = request.parse(buffer)? else { return Ok(None) };
    let length = request.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"));
    let Some(length) = length else {
        ensure!(matches!(request.method, Some("GET" | "HEAD")), "a request without a length");
        return Ok(Some(head));
    };
    Ok(Some(head + std::str::from_utf8(length.value)?.trim().parse::<usize>()?))
}

/// What is odd about the messages of a request, if something is.
fn odd_prompt(request: &[u8]) -> Option<String> {
    let body = &request[memmem::find(request, b"\r\n\r\n")? + 4..];
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return Some("a request that is not JSON".to_owned());
    };
    let messages = body["messages"].as_array()?;
    let mut said = HashSet::new();
    let mut last = "";
    for message in messages.iter().skip_while(|message| message["role"] == "system") {
        let role = message["role"].as_str().unwrap_or_default();
        if role == last {
            return Some(format!("two messages of {role} in a row, {} in all", messages.len()));
        }
        last = role;
        if role == "user" && !said.insert(message["content"].to_string()) {
            return Some(format!("said twice: {}", message["content"]));
        }
    }
    (last != "user").then(|| format!("the last message is by {last:?}"))
}

struct Answer<'a> {
    stream: &'a mut TcpStream,
    calls: &'a Calls,
    script: Script,
    out: Vec<u8>,
}

impl Answer<'_> {
    fn note(&self, change: impl FnOnce(&mut Call)) {
        if let Some(call) = lock(self.calls).calls.get_mut(&self.script.id) {
            change(call);
        }
    }

    async fn give(&mut self, streamed: bool) -> Result<()> {
        if self.script.hold == Hold::Before {
            return self.hold().await;
        }
        if streamed { self.stream().await } else { self.whole().await }
    }

    async fn whole(&mut self) -> Result<()> {
        let tokens = self.script.tokens;
        tokio::time::sleep(Duration::from_millis(self.script.interval_ms * u64::from(tokens)))
            .await;
        let text = Expected::counted(tokens);
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": text.text()}, "finish_reason": "stop"});
        let body = json!({
            "id": "tap", "object": "chat.completion", "created": 0, "model": "tap", "choices": [choice],
            "usage": usage(tokens),
        });
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.out.extend_from_slice(head.as_bytes());
        self.out.extend_from_slice(body.as_bytes());
        self.finish().await
    }

    async fn stream(&mut self) -> Result<()> {
        let tokens = self.script.tokens;
        self.out.extend_from_slice(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        self.event(&json!({"role": "assistant", "content": ""}), None);
        for n in 0..tokens {
            if self.script.hold == Hold::Halfway && n == tokens / 2 {
                return self.hold().await;
            }
            let word = if n == 0 { format!("tok{n}") } else { format!(" tok{n}") };
            self.event(&json!({"content": word}), None);
            if self.script.interval_ms > 0 {
                let now = Instant::now();
                self.note(|call| call.sent.push(now));
                self.flush().await?;
                tokio::time::sleep(Duration::from_millis(self.script.interval_ms)).await;
            }
        }
        self.event(&json!({}), Some("stop"));
        self.chunk(&format!(
            "data: {}\n\n",
            json!({"id": "tap", "object": "chat.completion.chunk", "created": 0, "model": "tap", "choices": [], "usage": usage(tokens)})
        ));
        self.chunk("data: [DONE]\n\n");
        self.out.extend_from_slice(b"0\r\n\r\n");
        self.finish().await
    }

    fn event(&mut self, delta: &Value, reason: Option<&str>) {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let event = json!({"id": "tap", "object": "chat.completion.chunk", "created": 0, "model": "tap", "choices": [choice]});
        self.chunk(&format!("data: {event}\n\n"));
    }

    fn chunk(&mut self, text: &str) {
        self.out.extend_from_slice(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
    }

    async fn flush(&mut self) -> Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Notes the end before the last bytes leave, so that it is there when the server's answer is.
    async fn finish(&mut self) -> Result<()> {
        self.note(|call| call.finished = Some(Instant::now()));
        self.flush().await
    }

    /// Waits for the other side to hang up; that it did is the error.
    async fn hold(&mut self) -> Result<()> {
        self.flush().await?;
        let n = self.stream.read(&mut [0; 64]).await?;
        ensure!(n > 0, "closed");
        anyhow::bail!("{n} bytes in the middle of an answer")
    }
}

fn usage(tokens: u32) -> Value {
    json!({"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Client, Target};
    use crate::sse::Dialect;

    #[test]
    fn the_last_script_of_a_body_counts() {
        let script = |id, hold| Script { id, tokens: 8, interval_ms: 1, hold };
        for hold in [Hold::Never, Hold::Before, Hold::Halfway] {
            let body =
                format!("{{\"a\":\"{} x\",\"b\":\"{}\"}}", script(1, Hold::Never), script(2, hold));
            assert_eq!(Script::find(body.as_bytes()), Some(script(2, hold)));
        }
        assert_eq!(Script::find(b"tap:1:2:3:sometimes:"), None);
        assert_eq!(Script::find(b"{}"), None);
    }

    #[test]
    fn a_prompt_that_repeats_itself_is_odd() {
        let odd = |roles: &[(&str, &str)]| {
            let messages: Vec<_> = roles
                .iter()
                .map(|(role, content)| json!({"role": role, "content": content}))
                .collect();
            odd_prompt(
                format!("POST / HTTP/1.1\r\n\r\n{}", json!({"messages": messages})).as_bytes(),
            )
        };
        let good = [("system", "s"), ("user", "1"), ("assistant", "a"), ("user", "2")];
        assert_eq!(odd(&good), None);
        assert_eq!(odd(&good[1..]), None);
        assert!(odd(&good[..3]).is_some());
        assert!(odd(&[("user", "1"), ("user", "2")]).is_some());
        assert!(
            odd(&[("user", "1"), ("assistant", "a"), ("assistant", "a"), ("user", "2")]).is_some()
        );
        assert!(odd(&[("user", "1"), ("assistant", "a"), ("user", "1")]).is_some());
    }

    #[tokio::test]
    async fn a_stream_is_noted_token_by_token() {
        let tap = Tap::start().await.unwrap();
        let target = Target { name: "tap", address: tap.address, dialect: Dialect::OpenAi };
        let script = Script { id: 7, tokens: 5, interval_ms: 1, hold: Hold::Never };
        let mut client = Client::default();
        for _ in 0..2 {
            let request = target.stream_request("u", &script.to_string());
            client.stream(&target, &request, &Expected::counted(5)).await.unwrap();
            let call = tap.take(7).unwrap();
            assert_eq!((call.sent.len(), client.arrivals_us.len()), (5, 5));
            assert!(
                call.received <= call.sent[0] && call.finished.is_some() && call.closed.is_none()
            );
        }
    }

    #[tokio::test]
    async fn hanging_up_is_noted() {
        let tap = Tap::start().await.unwrap();
        let target = Target { name: "tap", address: tap.address, dialect: Dialect::OpenAi };
        for (id, hold) in [(1, Hold::Before), (2, Hold::Halfway)] {
            let script = Script { id, tokens: 4, interval_ms: 1, hold };
            let mut conn = crate::http::Conn::open(tap.address).await.unwrap();
            conn.send(&target.stream_request("u", &script.to_string())).await.unwrap();
            let sent = if hold == Hold::Before { 0 } else { 2 };
            while tap.call(id).is_none_or(|call| call.sent.len() < sent) {
                tokio::task::yield_now().await;
            }
            drop(conn);
            while tap.call(id).is_none_or(|call| call.closed.is_none()) {
                tokio::task::yield_now().await;
            }
        }
    }
}
