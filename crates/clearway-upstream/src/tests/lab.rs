//! Several simulated providers behind one client: in memory and with paused time, or on real sockets.
//!
//! Provider `a` is asked first, for the model `m`; `b` and `c`, if there are any, are its fallbacks
//! and models of their own.

use std::collections::VecDeque;

use clearway_core::Failure;
use clearway_core::wait::Spent;
use clearway_sim::{FaultSpec, Options, Sim};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

pub(super) struct Lab {
    pub(super) upstream: Upstream,
    pub(super) sims: Vec<Sim>,
    pub(super) lines: Vec<Arc<Line>>,
    /// Those that listen on sockets.
    _servers: JoinSet<std::io::Result<()>>,
}

/// Dials a simulator, unless the line is down.
#[derive(Debug)]
pub(super) struct Line {
    sim: Sim,
    pub(super) dialled: AtomicUsize,
    down: Mutex<Option<Down>>,
    tasks: Mutex<JoinSet<()>>,
}

/// Why no connection comes about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Down {
    Refused,
    NoSuchName,
    /// Not a packet comes back, in this phase.
    Silent(DialPhase),
}

impl Line {
    pub(super) fn set(&self, down: Option<Down>) {
        *self.down.lock().unwrap() = down;
    }
}

impl Dial for Line {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        let down = *self.down.lock().unwrap();
        self.dialled.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match down {
                None => {
                    let (ours, theirs) = duplex(64 * 1024);
                    let mut tasks = self.tasks.lock().unwrap();
                    while tasks.try_join_next().is_some() {}
                    tasks.spawn(self.sim.serve_connection(theirs));
                    Ok(Box::new(ours) as Box<dyn Io>)
                }
                Some(Down::Refused) => Err(DialError::new(DialPhase::Connect, "refused")),
                Some(Down::NoSuchName) => Err(DialError::new(DialPhase::Dns, "no such name")),
                Some(Down::Silent(phase)) => {
                    report(phase);
                    std::future::pending().await
                }
            }
        })
    }
}

impl Lab {
    /// A provider for each of the options.
    pub(super) fn new(
        options: impl IntoIterator<Item = Options>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        let mut dialers = HashMap::<_, Arc<dyn Dial>>::new();
        let (mut sims, mut lines) = (Vec::new(), Vec::new());
        for (name, options) in ["a", "b", "c"].into_iter().zip(options) {
            let sim = Sim::new(options);
            let endpoint = Endpoint::parse(&format!("http://{name}/v1")).unwrap();
            let mut provider = ProviderConfig::new(name, endpoint);
            provider.dial = Some(name.into());
            provider.keys = vec![(None, Secret::new(format!("key-of-{name}")))];
            config.providers.push(provider);
            let model = if name == "a" { "m" } else { name };
            config.models.push(ModelConfig::new(model, name, format!("m-{name}")));
            if name != "a" {
                config.models[0].fallback.push(name.into());
            }
            let line = Arc::new(Line {
                sim: sim.clone(),
                dialled: AtomicUsize::new(0),
                down: Mutex::default(),
                tasks: Mutex::default(),
            });
            dialers.insert(name.to_owned(), line.clone());
            lines.push(line);
            sims.push(sim);
        }
        change(&mut config);
        let upstream = Upstream::new(config, dialers).unwrap();
        Self { upstream, sims, lines, _servers: JoinSet::new() }
    }

    /// The same, but each provider listens on the loopback, time is real and all limits are short.
    pub(super) async fn on_sockets(
        options: impl IntoIterator<Item = Options>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut urls = Vec::new();
        let mut listeners = Vec::new();
        for _ in 0..3 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            urls.push(format!("http://{}/v1", listener.local_addr().unwrap()));
            listeners.push(listener);
        }
        let mut lab = Self::new(options, |config| {
            for (provider, url) in config.providers.iter_mut().zip(urls) {
                provider.endpoint = Endpoint::parse(&url).unwrap();
                provider.dial = None;
                provider.timeouts = short_timeouts();
                provider.retry.backoff = Duration::from_millis(50);
            }
            change(config);
        });
        for (sim, listener) in lab.sims.iter().zip(listeners) {
            let sim = sim.clone();
            let never = CancellationToken::new();
            lab._servers.spawn(async move { sim.serve(listener, never).await });
        }
        lab
    }

    /// A provider for each of the faults; an empty one is none.
    pub(super) fn faulty(faults: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        Self::new(faults.iter().map(|fault| options(fault)), change)
    }

    /// One call with a deadline of two minutes.
    pub(super) async fn call(&self) -> Call {
        self.call_with(cx(Duration::from_secs(120)), ask(), &[]).await
    }

    /// One call; before each further attempt, provider `a` gets the next fault.
    pub(super) async fn call_with(&self, mut cx: CallCx, ask: ChatRequest, then: &[&str]) -> Call {
        let ledger = Arc::new(Ledger {
            rows: Mutex::default(),
            first: self.sims[0].clone(),
            then: Mutex::new(then.iter().map(|fault| spec(fault)).collect()),
        });
        cx.observer = Some(ledger.clone());
        let started = now();
        let mut call = Call::default();
        let outcome = async {
            let mut stream = self.upstream.chat(cx.clone(), ask).await?;
            while let Some(event) = stream.next().await? {
                match event {
                    ChatEvent::Text(text) => call.text.push_str(&text),
                    ChatEvent::Finish { usage, .. } => {
                        assert_eq!(call.finish, None, "an answer ends once");
                        call.finish = Some(usage);
                    }
                    ChatEvent::Reset { reason } => {
                        call.text.clear();
                        call.tools = 0;
                        call.resets.push(reason);
                    }
                    ChatEvent::ToolCall { .. } => call.tools += 1,
                    ChatEvent::Reasoning(_) => {}
                }
            }
            call.route = stream.route().to_owned();
            Ok::<_, Error>(())
        }
        .await;
        call.error = outcome.err().map(Error::into_failure);
        call.took = now() - started;
        assert!(!cx.probe.is_connected(), "the call is over");
        assert!(call.error.is_none() || call.finish.is_none(), "a failed answer is not whole");
        call.rows = std::mem::take(&mut *ledger.rows.lock().unwrap());
        call.spent = cx.wait.read(now()).spent;
        call
    }

    /// Requests that provider `index` has read.
    pub(super) fn requests(&self, index: usize) -> u64 {
        self.sims[index].stats().requests
    }

    /// Nothing is held, here and there: at once on this side, within moments on the other, which
    /// has to read of it from a socket. Afterwards no connection is left, either.
    pub(super) async fn assert_closed(&self, what: &str) {
        for view in self.upstream.provider_views() {
            let queued: usize = view.limiter.queued.iter().sum();
            assert_eq!((view.limiter.in_flight, queued), (0, 0), "{what}: {}", view.name);
            let connections = view.connections;
            let open = connections.opened - connections.closed;
            assert_eq!(open, connections.idle as u64, "{what}: {}", view.name);
        }
        self.upstream.expire_idle(now() + Duration::from_secs(60));
        let began = now();
        for sim in &self.sims {
            loop {
                let stats = sim.stats();
                // Who does not read does not see anybody leave.
                let blind = stats.faults.get("no_read").copied().unwrap_or_default();
                if stats.in_flight <= blind && stats.connections_open <= blind {
                    break;
                }
                let left = (stats.in_flight, stats.connections_open);
                assert!(now() - began < Duration::from_secs(3), "{what}: {left:?} are open");
                settle().await;
            }
        }
    }

    /// Nothing is held, here and there.
    pub(super) async fn assert_at_rest(&self) {
        settle().await;
        for (view, sim) in self.upstream.provider_views().iter().zip(&self.sims) {
            let queued: usize = view.limiter.queued.iter().sum();
            assert_eq!((view.limiter.in_flight, queued), (0, 0), "{}", view.name);
            let connections = view.connections;
            let open = connections.opened - connections.closed;
            assert_eq!(open, connections.idle as u64, "{}", view.name);
            let stats = sim.stats();
            // Who does not read does not see anybody leave.
            let blind = stats.faults.get("no_read").copied().unwrap_or_default();
            assert_eq!(stats.in_flight, blind, "{}", view.name);
        }
    }
}

/// Books a call's attempts, and tells provider `a` what to do with the next.
#[derive(Debug)]
struct Ledger {
    rows: Mutex<Vec<UsageRow>>,
    first: Sim,
    then: Mutex<VecDeque<Option<FaultSpec>>>,
}

impl Observer for Ledger {
    fn attempt(&self, row: &UsageRow) {
        self.rows.lock().unwrap().push(row.clone());
        if let Some(fault) = self.then.lock().unwrap().pop_front() {
            self.first.change(|control| control.fault = fault);
        }
    }
}

/// What became of a call.
#[derive(Debug, Default)]
pub(super) struct Call {
    pub(super) text: String,
    pub(super) tools: usize,
    pub(super) finish: Option<Option<Usage>>,
    pub(super) resets: Vec<&'static str>,
    pub(super) error: Option<Failure>,
    pub(super) took: Duration,
    pub(super) rows: Vec<UsageRow>,
    /// What it waited for.
    pub(super) spent: Spent,
    /// Of the answer.
    pub(super) route: String,
}

impl Call {
    pub(super) fn code(&self) -> Option<Code> {
        self.error.as_ref().map(|error| error.code)
    }

    /// Its attempts: `a upstream.server_error, b ok`.
    pub(super) fn trail(&self) -> String {
        let steps = self.rows.iter().map(|row| format!("{} {}", row.provider, row.outcome));
        steps.collect::<Vec<_>>().join(", ")
    }

    /// The whole text, once.
    #[track_caller]
    pub(super) fn assert_whole(&self) {
        self.assert_says(TOKENS);
    }

    #[track_caller]
    pub(super) fn assert_says(&self, tokens: u32) {
        assert_eq!(self.error, None, "{}", self.trail());
        assert!(self.finish.is_some(), "{}", self.trail());
        assert_eq!(self.text, whole_text(tokens), "{}", self.trail());
    }

    /// Its end in a line, for tables.
    pub(super) fn line(&self) -> String {
        let end = match &self.error {
            None => format!("{} tokens", self.text.split_whitespace().count()),
            Some(error) => {
                let after = error.retry_after.map(|after| format!(" (after {after:?})"));
                format!("{}{}", error.code, after.unwrap_or_default())
            }
        };
        let resets = if self.resets.is_empty() {
            String::new()
        } else {
            format!(" after reset for {}", self.resets.join(", "))
        };
        format!("{end}{resets}; {:.1} s: {}", self.took.as_secs_f64(), self.trail())
    }
}

pub(super) const TOKENS: u32 = 60;

/// What a simulator says in so many tokens.
pub(super) fn whole_text(tokens: u32) -> String {
    let tokens = (0..tokens).map(|number| format!("tok{number}"));
    tokens.collect::<Vec<_>>().join(" ")
}

/// Limits of a second or so, in the usual order.
pub(super) fn short_timeouts() -> Timeouts {
    let millis = Duration::from_millis;
    Timeouts {
        queue: millis(5000),
        connect: millis(1000),
        send: millis(1500),
        headers: millis(1500),
        ttft: millis(1500),
        ttft_reasoning: millis(5000),
        idle: millis(1500),
        idle_output: millis(1500),
        progress: millis(2500),
        progress_reasoning: millis(5000),
        tail: millis(300),
        error_body: millis(300),
        ..Timeouts::default()
    }
}

pub(super) fn options(fault: &str) -> Options {
    Options { fault: spec(fault), tokens: Some(TOKENS), ..Options::default() }
}

fn spec(fault: &str) -> Option<FaultSpec> {
    (!fault.is_empty()).then(|| fault.parse().unwrap())
}
