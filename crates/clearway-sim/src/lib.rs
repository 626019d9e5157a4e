//! The provider that misbehaves on purpose: an OpenAI-compatible server with a scripted model and a box of faults.
//!
//! It is the model for those who have no key, the provider of every test, and the other end of the load tests. It
//! speaks HTTP/1.1 over anything that can be read and written, because a fault such as a missing last chunk cannot be
//! told to an HTTP library. Here are no providers' real quirks beyond their wire, no tool calls (but a broken one), and
//! no TLS.
//!
//! What must stay true: a client that leaves is noticed at once, wherever the reply is; nothing waits or grows without
//! a bound; the same seed gives the same behaviour; time comes from tokio only, so paused tests work.
//!
//! # Serving
//!
//! [`Sim::serve`] takes a listener. [`Sim::serve_connection`] takes any stream, for example one end of
//! `tokio::io::duplex`: a provider within the process, without a socket.
//!
//! | address | does |
//! |---|---|
//! | `POST /v1/chat/completions` | the model: streamed or not, `stream_options.include_usage`, `max_tokens`, `response_format` |
//! | `POST /v1/embeddings` | vectors by words: floats or base64, `dimensions` |
//! | `GET /v1/models` | the configured names; any other name is served too |
//! | `GET /stats`, `POST /stats/reset` | what was seen: see [`Stats`] |
//! | `GET /faults`, `GET /health` | the table of faults; `{"status":"ok"}` |
//!
//! The prefix `/v1` may be left out everywhere. Any key is good.
//!
//! # Choosing a fault
//!
//! The first of these that is present counts:
//!
//! 1. the request header `x-sim-fault: stall:20`, or `x-sim-fault: none` for a good reply;
//! 2. the model name: `gpt-5-mini+stall:20` is the model `gpt-5-mini` with a fault;
//! 3. [`Options::fault`] (`--fault`), for the share [`Options::fault_rate`] of the requests.
//!
//! The number after the colon is milliseconds, seconds, tokens or megabytes, as [`Fault::about`] says; without it a
//! default holds. A name that is no fault is answered with 400, because a misspelt fault would test nothing.
//! Faults named `..._once` happen to the first request for each model and then no more, until `POST /stats/reset`.
//! A fault that strikes "after so many tokens" strikes at the last one if the reply is shorter, and in the middle of
//! the body if it is not streamed. Faults that mean nothing for a request (the line ends of a reply in one piece)
//! leave it good and are not counted. `no_read` cannot be chosen by model name, which is in the body: there it only
//! means that no answer comes.
//!
//! The headers `x-sim-ttft-ms`, `x-sim-tokens` and `x-sim-token-interval-ms` set the pace of one request.
//!
//! # Examples
//!
//! ```
//! use clearway_sim::{Fault, Options, Sim};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
//! let sim = Sim::new(Options { fault: Some(Fault::Unavailable.into()), ..Options::default() });
//! let (mut client, provider) = tokio::io::duplex(64 * 1024);
//! let talk = async {
//!     let body = r#"{"model": "any", "messages": [{"role": "user", "content": "hello"}]}"#;
//!     let head = "POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\n";
//!     let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
//!     client.write_all(request.as_bytes()).await.unwrap();
//!     let mut answer = String::new();
//!     client.read_to_string(&mut answer).await.unwrap();
//!     answer
//! };
//! let ((), answer) = tokio::join!(sim.serve_connection(provider), talk);
//! assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
//! assert_eq!(sim.stats().faults["unavailable"], 1);
//! # });
//! ```

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod chat;
mod conn;
mod embed;
mod fault;
mod http;
mod job;
mod options;
mod plan;
mod prng;
mod problem;
mod reply;
mod schema;
mod session;
mod sse;
mod stats;
mod stream;
mod usage;
mod whole;

#[cfg(test)]
mod tests;

pub use fault::{About, Fault, FaultSpec, Group, Parameter, ParseError, Unit};
pub use options::{Limits, MAX_TOKENS, Options, OptionsError, ScriptRule};
pub use stats::Stats;

use conn::Hooks;
use reply::Script;
use stats::Counters;

/// How long accepting pauses after the system refused it, for example because no file descriptor was left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A simulated provider. Clones are the same provider.
#[derive(Clone, Debug)]
pub struct Sim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    script: Script,
    counters: Counters,
}

impl Sim {
    /// A provider with these options. Call [`Options::check`] first to have mistakes named.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let options = options.clamped();
        let script = Script::new(&options.script);
        Self { inner: Arc::new(Inner { options, script, counters: Counters::new() }) }
    }

    /// The options it works with: those it was made with, numbers clamped to their ranges.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// What was seen so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner.counters.snapshot()
    }

    /// Serves one connection until it ends. Dropping the future drops the connection.
    ///
    /// Without a socket there are no resets, so faults that reset only drop the connection; and a client that leaves
    /// while its request is deliberately not read (`no_read`) goes unnoticed until [`Limits::hold`] is over.
    pub fn serve_connection<I>(&self, io: I) -> impl Future<Output = ()> + Send + use<I>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        async move { session::serve(&inner, io, Hooks::none()).await }
    }

    /// Accepts and serves connections until `shutdown` is cancelled, and then drops them all.
    ///
    /// # Errors
    /// Never because of a client or a lack of descriptors; only if the listener itself cannot be used any more.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        // A listener that has no address is no listener; everything later passes.
        listener.local_addr()?;
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                // Finished tasks are taken out, or the set would grow for ever.
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(serve_tcp(Arc::clone(&self.inner), stream));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
        connections.shutdown().await;
        Ok(())
    }
}

async fn serve_tcp(inner: Arc<Inner>, stream: TcpStream) {
    // A token must not wait for the acknowledgement of the one before. Failing, it is only slower.
    let _ = stream.set_nodelay(true);
    let hooks = Hooks {
        make_reset: |stream: &TcpStream| {
            // Failing, the connection is closed in order instead, which the client sees as a cut as well.
            let _ = stream.set_zero_linger();
        },
        has_left: |stream, cx| match pin!(stream.ready(Interest::READABLE)).poll(cx) {
            Poll::Ready(Ok(ready)) => ready.is_read_closed(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        },
    };
    session::serve(&inner, stream, hooks).await;
}
