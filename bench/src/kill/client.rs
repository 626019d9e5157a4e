//! A client that does not give up: it repeats what was not answered and goes on reading where it stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::expect::Expected;
use crate::http::{Answer, Conn, Request, exchange};
use crate::sse::{Dialect, Events, Meaning};
use crate::tap::{Hold, Script};

/// What all clients know.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) address: SocketAddr,
    pub(super) expected: Expected,
    pub(super) interval_ms: u64,
    /// Set when the killing is over: turns under way are finished, no more are begun.
    pub(super) stop: AtomicBool,
    pub(super) next: AtomicU64,
}

/// What kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Stream,
    Chat,
    TaskOnOwnThread,
    TaskOnSharedThread,
}

impl Job {
    pub(super) fn of(n: u32) -> Self {
        [Self::Stream, Self::Chat, Self::TaskOnOwnThread, Self::TaskOnSharedThread][n as usize % 4]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stream => "streams",
            Self::Chat => "chats",
            Self::TaskOnOwnThread => "tasks on own threads",
            Self::TaskOnSharedThread => "tasks on shared threads",
        }
    }
}

/// A finished, acknowledged run.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) job: Job,
    pub(super) run: String,
    /// User and conversation, where `/state` can show it.
    pub(super) conversation: Option<String>,
    /// Times that the reader was told that its text is void.
    pub(super) resets: u64,
    /// Times that it had to come back for the rest.
    pub(super) rejoined: u64,
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    shared: Arc<Shared>,
    n: u32,
    job: Job,
    conn: Option<Conn>,
}

/// Between attempts to reach a server that is gone.
const PAUSE: Duration = Duration::from_millis(20);
/// Between looks at a task.
const POLL: Duration = Duration::from_millis(150);
/// One attempt; a run that waits behind others on its thread may take long.
const ATTEMPT: Duration = Duration::from_secs(60);
/// A request that is not through by then never will be.
const PATIENCE: Duration = Duration::from_secs(240);
/// So many tasks share a thread.
const SHARING: u32 = 3;

impl Client {
    pub(super) fn new(shared: Arc<Shared>, n: u32, job: Job) -> Self {
        Self { shared, n, job, conn: None }
    }

    /// Takes turns until told to stop. Also what went wrong.
    pub(super) async fn work(mut self) -> (Vec<Turn>, Vec<String>) {
        let (mut turns, mut problems) = (Vec::new(), Vec::new());
        while !self.shared.stop.load(Ordering::Relaxed) {
            let result = match self.job {
                Job::Stream => self.stream().await,
                Job::Chat => self.chat().await,
                Job::TaskOnOwnThread | Job::TaskOnSharedThread => self.task().await,
            };
            match result {
                Ok(turn) => turns.push(turn),
                Err(error) => {
                    problems.push(format!("{} client {}: {error:#}", self.job.name(), self.n))
                }
            }
        }
        (turns, problems)
    }

    /// What to say, and the key under which it counts once.
    fn say(&self) -> (String, String) {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let tokens = self.shared.expected.tokens;
        let script = Script { id, tokens, interval_ms: self.shared.interval_ms, hold: Hold::Never };
        (script.to_string(), format!("key-{id}"))
    }

    fn turn(&self, run: String, conversation: Option<String>) -> Turn {
        Turn { job: self.job, run, conversation, resets: 0, rejoined: 0 }
    }

    async fn chat(&mut self) -> Result<Turn> {
        let who = format!("chat{}", self.n);
        let (message, key) = self.say();
        let body = json!({"user_id": who, "conversation_id": who, "message": message});
        let answer =
            self.insist(&Request::post_with("/chat", &[("idempotency-key", &key)], &body)).await?;
        let run = answer.head.header("x-run-id").context("no x-run-id")?.to_owned();
        let reply = answer.ok()?;
        ensure!(reply["reply"] == self.shared.expected.text(), "wrong reply of {run}: {reply}");
        Ok(self.turn(run, Some(who)))
    }

    async fn task(&mut self) -> Result<Turn> {
        let (message, key) = self.say();
        let mut body = json!({"message": message});
        if self.job == Job::TaskOnSharedThread {
            // Clients of a kind are four apart.
            body["user_id"] = "sharer".into();
            body["conversation_id"] = format!("shared{}", self.n / 4 / SHARING).into();
        }
        let answer = self
            .insist(&Request::post_with("/chat/async", &[("idempotency-key", &key)], &body))
            .await?;
        let accepted = answer.ok()?;
        let task = accepted["task_id"].as_str().context("no task_id")?.to_owned();
        let look = Request::get(&format!("/chat/task/{task}"));
        let begin = Instant::now();
        loop {
            let view = self
                .insist(&look)
                .await?
                .ok()
                .with_context(|| format!("acknowledged task {task}"))?;
            match view["status"].as_str() {
                Some("completed") => {
                    let reply = &view["result"]["response"];
                    ensure!(
                        *reply == self.shared.expected.text(),
                        "wrong result of {task}: {view}"
                    );
                    return Ok(self.turn(task, None));
                }
                Some("pending" | "running") => {
                    ensure!(begin.elapsed() < PATIENCE, "task {task} does not end: {view}")
                }
                _ => bail!("task {task} ended: {view}"),
            }
            sleep(POLL).await;
        }
    }

    /// Sends a request until it is answered. Only answers that say "not now" are repeated.
    async fn insist(&mut self, request: &Request) -> Result<Answer> {
        let begin = Instant::now();
        loop {
            let error = match self.attempt(request).await {
                Ok(answer) if !matches!(answer.status, 429 | 503) => return Ok(answer),
                Ok(answer) => {
                    anyhow!("status {}: {}", answer.status, answer.text())
                }
                Err(error) => error,
            };
            ensure!(begin.elapsed() < PATIENCE, "no answer: {error:#}");
            sleep(PAUSE).await;
        }
    }

    async fn attempt(&mut self, request: &Request) -> Result<Answer> {
        let mut conn = self.connection().await?;
        let answer =
            timeout(ATTEMPT, exchange(&mut conn, request)).await.context("no answer in time")??;
        self.conn = Some(conn);
        Ok(answer)
    }

    async fn connection(&mut self) -> Result<Conn> {
        match self.conn.take().filter(Conn::is_reusable) {
            Some(conn) => Ok(conn),
            None => super::connect(self.shared.address).await,
        }
    }

    async fn stream(&mut self) -> Result<Turn> {
        let who = format!("stream{}", self.n);
        let (message, key) = self.say();
        let body = json!({"user_id": who, "conversation_id": who, "message": message});
        let mut reader = Reader::default();
        let begin = Instant::now();
        while reader.done.is_none() {
            // Until it is known which run it is, the same request is sent again; then the stream is rejoined.
            let request = match &reader.run {
                None => Request::post_with("/chat/stream", &[("idempotency-key", &key)], &body),
                Some(run) => {
                    reader.rejoined += 1;
                    let path = format!("/chat/stream?run_id={run}");
                    Request::get_with(&path, &[("last-event-id", &reader.last_id)])
                }
            };
            let result = match timeout(ATTEMPT, self.read(&request, &mut reader)).await {
                Ok(result) => result,
                Err(_) => Err(Stopped::Gone(anyhow!("no end in time"))),
            };
            match result {
                Ok(()) => {}
                Err(Stopped::Wrong(error)) => {
                    return Err(error.context(format!("the reader of {:?}", reader.run)));
                }
                Err(Stopped::Gone(error)) => {
                    ensure!(begin.elapsed() < PATIENCE, "no end of {:?}: {error:#}", reader.run);
                    sleep(PAUSE).await;
                }
            }
        }
        let run = reader.run.context("a stream without x-run-id")?;
        let done = reader.done.unwrap_or_default();
        ensure!(done == self.shared.expected.text(), "wrong final text of {run}: {done}");
        ensure!(
            reader.text == done,
            "the reader of {run} has {} bytes, final has {}: text was taken back or repeated silently",
            reader.text.len(),
            done.len()
        );
        let turn = self.turn(run, Some(who));
        Ok(Turn { resets: reader.resets, rejoined: reader.rejoined, ..turn })
    }

    /// Reads as far as it goes.
    async fn read(&mut self, request: &Request, reader: &mut Reader) -> Result<(), Stopped> {
        let mut conn = self.connection().await.map_err(Stopped::Gone)?;
        conn.send(request).await.map_err(Stopped::Gone)?;
        let head = conn.head().await.map_err(Stopped::Gone)?;
        if head.status != 200 {
            let body = conn.rest().await.map_err(Stopped::Gone)?;
            let error = anyhow!("status {}: {}", head.status, String::from_utf8_lossy(&body));
            return Err(if matches!(head.status, 429 | 503) {
                Stopped::Gone(error)
            } else {
                Stopped::Wrong(error)
            });
        }
        if let Some(run) = head.header("x-run-id") {
            reader.run = Some(run.to_owned());
        }
        let mut events = Events::default();
        while conn.more(&mut events.bytes).await.map_err(Stopped::Gone)? {
            while let Some(event) = events.next().map_err(Stopped::Wrong)? {
                reader.event(event.id, event.data).map_err(Stopped::Wrong)?;
            }
        }
        self.conn = Some(conn);
        match reader.done {
            Some(_) => Ok(()),
            None => Err(Stopped::Gone(anyhow!("the stream ended before its final"))),
        }
    }
}

/// Why reading stopped before the end.
#[derive(Debug)]
enum Stopped {
    /// The server went away; another attempt may succeed.
    Gone(anyhow::Error),
    /// What came is not what may come.
    Wrong(anyhow::Error),
}

/// What somebody at the other end of a stream holds in hand.
#[derive(Debug, Default)]
struct Reader {
    run: Option<String>,
    last_id: String,
    text: String,
    resets: u64,
    rejoined: u64,
    done: Option<String>,
}

impl Reader {
    fn event(&mut self, id: Option<&str>, data: &str) -> Result<()> {
        if let Some(id) = id {
            ensure!(id != self.last_id, "event {id} came twice");
            id.clone_into(&mut self.last_id);
        }
        match Dialect::Chat.meaning(data)? {
            Meaning::Token(text) => self.text.push_str(&text),
            Meaning::Final(text) => self.done = Some(text),
            Meaning::Error(error) => {
                // A server that stops says so without an id; the run goes on.
                ensure!(id.is_none(), "the run failed: {error}");
            }
            Meaning::Done => {}
            Meaning::Other => {
                let json: Value = serde_json::from_str(data)?;
                // Deltas start over after it.
                if json["message"]
                    .as_str()
                    .is_some_and(|message| message.starts_with("output.reset"))
                {
                    self.text.clear();
                    self.resets += 1;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_starts_over_when_told_to() {
        let mut reader = Reader::default();
        reader.event(Some("3-256"), r#"{"type":"delta","text":"tok0"}"#).unwrap();
        assert!(reader.event(Some("3-256"), r#"{"type":"delta","text":"tok0"}"#).is_err(), "twice");
        reader
            .event(
                Some("4-512"),
                r#"{"type":"progress","message":"output.reset: what came before is void"}"#,
            )
            .unwrap();
        reader.event(Some("5-512"), r#"{"type":"delta","text":"tok0 tok1"}"#).unwrap();
        reader.event(Some("6-513"), r#"{"type":"final","text":"tok0 tok1"}"#).unwrap();
        assert_eq!((reader.text.as_str(), reader.resets), ("tok0 tok1", 1));
        assert_eq!(reader.done.as_deref(), Some("tok0 tok1"));
        assert!(reader.event(Some("7-512"), r#"{"type":"error","detail":{}}"#).is_err());
        reader.event(None, r#"{"type":"error","detail":{}}"#).unwrap();
    }
}
