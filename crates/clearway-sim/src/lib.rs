//! The provider that misbehaves on purpose: a server with a scripted model, accounts with limits, and a box of faults.
//!
//! It is the model for those who have no key, the provider of every test, and the other end of the load tests. It
//! speaks HTTP/1.1 over anything that can be read and written, because a fault such as a missing last chunk cannot be
//! told to an HTTP library. Here are no providers' real quirks beyond their wire, no HTTP/2, and no TLS.
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
//! | `POST /v1/chat/completions` | the model in OpenAI's words: streamed or not, `stream_options.include_usage`, `response_format` |
//! | `POST /v1/responses` | the same in those of OpenAI's responses |
//! | `POST /v1/messages` | the same in Anthropic's; needs `anthropic-version` and `max_tokens`, as there |
//! | `POST /api/chat` | the same in Ollama's: a JSON per line, streamed unless told not to |
//! | `POST /v1/embeddings` | vectors by words: floats or base64, `dimensions`, texts or tokens |
//! | `GET /v1/models`, `GET /api/tags` | the configured names; any other name is served too |
//! | `GET /stats`, `POST /stats/reset` | what was seen: see [`Stats`] |
//! | `GET /control`, `POST /control` | the settings, and changes to them: see below |
//! | `GET /faults`, `GET /health` | the table of faults; `{"status":"ok"}` |
//!
//! The prefix `/v1` may be left out everywhere. Any key is good unless [`Options::keys`] says otherwise; it comes as
//! `authorization: Bearer KEY` or `x-api-key: KEY`, in any dialect.
//!
//! # What the model says
//!
//! What the script says, and else a text of its own about the user's. `gpt-5-mini+think:10` thinks aloud first, in ten
//! pieces. It calls a tool that the request offers if a rule of the script or the user says so
//! (`call the tool NAME with {json}`), or if `tool_choice` demands it; then the arguments fit the tool's schema.
//!
//! # Who is refused
//!
//! In this order: during an outage every request meets [`Options::outage_fault`], whatever it chose; a bad key is
//! refused; then requests beyond [`Options::max_concurrent`]; then those beyond `rpm` and `tpm`, which hold per key,
//! and are told in the headers that the dialect's provider sends. A text to be embedded that contains `POISON` spoils
//! its whole batch.
//!
//! # Changing settings
//!
//! `POST /control` takes an object with any of these, for the requests to come; [`Sim::change`] does the same:
//! `fault` and `outage_fault` (`"stall:3"`), `fault_rate`, `outage` (`true`, `false`, or `null` for the schedule),
//! `concurrency`, `rpm`, `tpm`, `tokens`, `ttft_ms`, `token_interval_ms`, and `keys` (`{"sk-1": "dead"}`). `null`
//! takes away what may be missing.
//!
//! # Choosing a fault
//!
//! The first of these that is present counts:
//!
//! 1. the request header `x-sim-fault: stall:20`, or `x-sim-fault: none` for a good reply;
//! 2. the model name: `gpt-5-mini+stall:20` is the model `gpt-5-mini` with a fault;
//! 3. [`Options::fault`] (`--fault`), for the share [`Options::fault_rate`] of the requests.
//!
//! The number after the colon is milliseconds, seconds, tokens, megabytes or a status, as [`Fault::about`] says;
//! without it a default holds. A name that is no fault is answered with 400, because a misspelt fault would test
//! nothing. Faults named `..._once` happen to the first request for each model and then no more, until
//! `POST /stats/reset`. A fault that strikes "after so many tokens" strikes at the last one if the reply is shorter,
//! and in the middle of the body if it is not streamed; thoughts are not counted. Faults that mean nothing for a
//! request (the line ends of a reply in one piece) leave it good and are not counted. `no_read` cannot be chosen by
//! model name, which is in the body: there it only means that no answer comes.
//!
//! All faults but those of embeddings exist in every dialect, in its own words: where there is no `[DONE]`, `no_done`
//! leaves out `message_stop`, `response.completed` or the line that is `done`. A keepalive is a comment, Anthropic's
//! `ping`, or an empty line.
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

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod account;
mod addresses;
mod chat;
mod conn;
mod control;
mod dates;
mod dialect;
mod embed;
mod fault;
mod frames;
mod http;
mod job;
mod options;
mod plan;
mod prng;
mod problem;
mod prompts;
mod reply;
mod rerank;
mod schedule;
mod schema;
mod session;
mod stats;
mod stream;
mod usage;
mod whole;
mod words;

#[cfg(test)]
mod tests;

pub use account::{KeyError, KeyRule, KeyState};
pub use control::Control;
pub use fault::{About, Fault, FaultSpec, Group, Parameter, ParseError, Unit};
pub use options::{Limits, MAX_TOKENS, Options, OptionsError, ScriptRule, ToolRule};
pub use schedule::{Flap, ScheduleError, Window};
pub use stats::{Calls, Second, Stats, Tally};

use account::Accounts;
use conn::Hooks;
use prompts::Prompts;
use reply::Script;
use schedule::Schedule;
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
    schedule: Schedule,
    accounts: Accounts,
    counters: Counters,
    prompts: Prompts,
    /// Replaced as a whole, so that a request sees one state of it.
    control: Mutex<Arc<Control>>,
}

impl Inner {
    fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts what `change` makes of the settings in their place, unless it refuses.
    fn try_change<E>(&self, change: impl FnOnce(&Control) -> Result<Control, E>) -> Result<(), E> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        *control = Arc::new(change(&control)?.clamped());
        Ok(())
    }

    /// Whether requests meet an outage now.
    fn is_down(&self, control: &Control) -> bool {
        let uptime = Duration::from_millis(self.counters.uptime_ms());
        control.outage.unwrap_or_else(|| self.schedule.is_down(uptime))
    }

    /// The wall clock, in seconds since 1970.
    fn now_s(&self) -> u64 {
        self.options.epoch_s.saturating_add(self.counters.uptime_ms() / 1000)
    }
}

impl Sim {
    /// A provider with these options. Call [`Options::check`] first to have mistakes named.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let options = options.clamped();
        let script = Script::new(&options.script);
        let schedule = Schedule { windows: options.outages.clone(), flap: options.flap };
        let control = Mutex::new(Arc::new(Control::new(&options).clamped()));
        let (accounts, counters) = (Accounts::default(), Counters::new());
        let prompts = Prompts::default();
        let inner = Inner { options, script, schedule, accounts, counters, prompts, control };
        Self { inner: Arc::new(inner) }
    }

    /// The options it works with: those it was made with, numbers clamped to their ranges.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// The settings that hold now.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::clone(&self.inner.control())
    }

    /// Changes the settings for the requests to come; numbers are clamped to their ranges.
    pub fn change(&self, change: impl FnOnce(&mut Control)) {
        let changed = self.inner.try_change(|control| {
            let mut control = control.clone();
            change(&mut control);
            Ok::<_, Infallible>(control)
        });
        match changed {
            Ok(()) => {}
        }
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
