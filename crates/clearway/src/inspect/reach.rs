//! The way to a provider, timed step by step.
//!
//! The connection is opened by the dialler that opens those of calls, so what is measured is what
//! runs. One `GET` of the list of models follows, without a key: it costs nothing, and an answer of
//! any status says that the provider is reachable.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use clearway_upstream::{Dial, DialPhase, Endpoint, TcpDial};
use http::header::{ACCEPT, HOST, USER_AGENT};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Provider, ProviderKind, Remote};

/// How long each step may take.
pub const STEP: Duration = Duration::from_secs(5);

/// The step behind those of the dialler.
const FIRST_BYTE: &str = "first byte";

/// What came of trying to reach a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Method and address of what was called, without a query, which may hold a key.
    pub called: String,
    /// In the order in which they were begun; the last one is where it ended.
    pub phases: Vec<Phase>,
    pub outcome: Outcome,
}

/// One step on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// `dns`, `connect`, `tls` or `first byte`.
    pub name: &'static str,
    /// Since the beginning of the first.
    pub began: Duration,
    pub took: Duration,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status, whatever it says.
    Answered(u16),
    /// The last phase failed.
    Failed(String),
    /// The last phase took longer than [`STEP`].
    TimedOut,
}

/// Tries to reach a provider. Takes no longer than four times [`STEP`].
///
/// # Errors
/// There is no way to time: the provider is the simulator, or its settings cannot be used.
pub async fn reach(provider: &Provider) -> Result<Reach, String> {
    let ProviderKind::Remote(Remote { base_url, ca_file, .. }) = &provider.kind else {
        return Err("it is the simulator in this process, there is no network to it".to_owned());
    };
    let mut endpoint = Endpoint::parse(base_url)?;
    let mut dial = TcpDial::new();
    if let Some(file) = ca_file {
        dial.trust(file).map_err(|error| {
            format!("cannot use the certificates in {}: {error}", file.display())
        })?;
        endpoint.ca_file = Some(file.clone());
    }
    let clock = Stopwatch::default();
    let outcome = match walk(&dial, &endpoint, &clock).await {
        Ok(status) => Outcome::Answered(status),
        Err(Stop::TimedOut) => Outcome::TimedOut,
        Err(Stop::Failed(problem)) => Outcome::Failed(problem),
    };
    Ok(Reach { called: format!("GET {endpoint}/models"), phases: clock.phases(), outcome })
}

/// Why it went no further.
enum Stop {
    TimedOut,
    Failed(String),
}

async fn walk(dial: &TcpDial, endpoint: &Endpoint, clock: &Stopwatch) -> Result<u16, Stop> {
    let report = |phase: DialPhase| clock.begin(phase.as_str());
    let mut dialling = dial.dial(endpoint, &report);
    let stream = loop {
        // Each phase has the limit to itself, so one that began meanwhile gets its own.
        let limit = clock.limit();
        match timeout_at(limit, &mut dialling).await {
            Ok(Ok(stream)) => break stream,
            Ok(Err(error)) => return Err(Stop::Failed(error.to_string())),
            Err(_) if clock.limit() > limit => {}
            Err(_) => return Err(Stop::TimedOut),
        }
    };
    clock.begin(FIRST_BYTE);
    match timeout(STEP, ask(stream, endpoint)).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(problem)) => Err(Stop::Failed(problem)),
        Err(_) => Err(Stop::TimedOut),
    }
}

async fn ask(stream: Box<dyn clearway_upstream::Io>, endpoint: &Endpoint) -> Result<u16, String> {
    let request = http::Request::get(endpoint.target("/models"))
        .header(HOST, endpoint.host_header())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("clearway/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let broken = |error: hyper::Error| format!("the connection broke: {error}");
    let (mut sender, mut connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut answer = std::pin::pin!(sender.send_request(request));
    // The connection works while it is awaited; it may well end with the answer.
    tokio::select! {
        answer = &mut answer => answer.map_err(broken).map(|answer| answer.status().as_u16()),
        ended = &mut connection => match (answer.await, ended) {
            (Ok(answer), _) => Ok(answer.status().as_u16()),
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(broken(error)),
        },
    }
}

/// When each phase began.
struct Stopwatch(Mutex<Vec<(&'static str, Instant)>>);

impl Default for Stopwatch {
    /// What happens before the dialler reports anything counts as looking at the name.
    fn default() -> Self {
        Self(Mutex::new(vec![(DialPhase::Dns.as_str(), Instant::now())]))
    }
}

impl Stopwatch {
    fn begin(&self, name: &'static str) {
        let mut began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if began.last().is_none_or(|(last, _)| *last != name) {
            began.push((name, Instant::now()));
        }
    }

    /// When the present phase has taken too long.
    fn limit(&self) -> Instant {
        let began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        began.last().map_or_else(Instant::now, |(_, at)| *at) + STEP
    }

    fn phases(&self) -> Vec<Phase> {
        let began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = began.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
        let first = began.first().map_or_else(Instant::now, |(_, at)| *at);
        began
            .iter()
            .zip(ends)
            .map(|((name, at), end)| Phase { name, began: *at - first, took: end - *at })
            .collect()
    }
}

#[cfg(test)]
mod tests;
