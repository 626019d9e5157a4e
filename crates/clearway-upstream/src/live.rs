//! An answer that is arriving.
//!
//! **Invariant:** it ends with [`ChatEvent::Finish`] only when the provider said that the answer is
//! whole; everything else that ends it is a fault.
//!
//! Two clocks watch it. *Bytes* restarts with whatever arrives, comments included, and tells a dead
//! connection from a living one; *progress* restarts with output only, and tells a provider that
//! merely keeps the line open. Where a provider has a `rate_floor`, output is counted in windows of
//! five seconds besides. All of them stand still while the reader of the answer is away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clearway_core::{Code, Deadline};

use crate::attempt::expired;
use crate::call::Phase;
use crate::codec::failure::{Rejection, looks_like_html};
use crate::codec::{self, ChatEvent, Decoder, Reader, Step, Unfinished, Usage};
use crate::failure::Fault;
use crate::lease::Lease;
use crate::route::Route;
use crate::transport::{Exchange, WireError};
use crate::watch::{Expired, Watch, now};

/// See the module.
pub(crate) struct Live {
    route: Arc<Route>,
    /// `None` once the answer has ended, well or not.
    source: Option<Source>,
    decoder: Decoder,
    reader: Reader,
    events: VecDeque<ChatEvent>,
    /// To be told when the events before it are gone.
    fault: Option<Fault>,
    clocks: Clocks,
    pub(crate) request_id: Option<String>,
}

/// What the answer holds on to: both are released the moment it ends.
struct Source {
    exchange: Exchange,
    lease: Lease,
}

struct Clocks {
    sent_at: Instant,
    /// How long the first output may take.
    ttft: Duration,
    /// `None` before the first byte of the body.
    last_byte: Option<Instant>,
    /// `None` before the first output.
    last_progress: Option<Instant>,
    stopped_at: Option<Instant>,
    /// The present window of output, and its tokens; none before the first output.
    window: Option<(Instant, u64)>,
    /// When the last read was over.
    left_at: Instant,
}

impl Live {
    pub(crate) fn new(
        route: Arc<Route>,
        lease: Lease,
        exchange: Exchange,
        sent_at: Instant,
    ) -> Self {
        let ttft = lease.first_token_limit();
        let mut live = Self::with(route, VecDeque::new(), sent_at);
        live.clocks.ttft = ttft;
        live.source = Some(Source { exchange, lease });
        live
    }

    /// An answer that came in one piece.
    pub(crate) fn whole(
        route: Arc<Route>,
        mut lease: Lease,
        events: VecDeque<ChatEvent>,
        sent_at: Instant,
    ) -> Self {
        count(&mut lease, events.iter(), now());
        lease.succeed(usage(&events));
        Self::with(route, events, sent_at)
    }

    fn with(route: Arc<Route>, events: VecDeque<ChatEvent>, sent_at: Instant) -> Self {
        let (kind, ttft) = (route.provider.kind, route.limits.ttft);
        Self {
            route,
            source: None,
            decoder: Decoder::new(kind),
            reader: Reader::new(kind),
            events,
            fault: None,
            clocks: Clocks {
                sent_at,
                ttft,
                last_byte: None,
                last_progress: None,
                stopped_at: None,
                window: None,
                left_at: sent_at,
            },
            request_id: None,
        }
    }

    /// Reads until there is something to show, or the answer is whole without anything.
    pub(crate) async fn await_output(&mut self, watch: &mut Watch) -> Result<(), Fault> {
        while self.events.is_empty() {
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            self.read(watch).await;
        }
        Ok(())
    }

    /// An event that has been read already.
    pub(crate) fn pop(&mut self) -> Option<ChatEvent> {
        self.events.pop_front()
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Why the answer ended early, once the events before that are taken.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    pub(crate) const fn has_ended(&self) -> bool {
        self.source.is_none()
    }

    /// When the last read was over.
    pub(crate) const fn read_at(&self) -> Instant {
        self.clocks.left_at
    }

    /// One read: waits for bytes and decodes them into events, a fault, or the end.
    pub(crate) async fn read(&mut self, watch: &mut Watch) {
        let Some(source) = &mut self.source else { return };
        let arrived = now();
        self.clocks.resume(arrived);
        let (limit, verdict) = self.clocks.limit(&self.route);
        // Where something is always ready, no timer is ever looked at.
        if let Some(which) = watch.has_expired(arrived, limit) {
            if verdict == Verdict::Window && self.clocks.is_fast_enough(&self.route, arrived) {
                return;
            }
            return self.expire(which, verdict);
        }
        let outcome = watch.within(limit, |cx| source.exchange.poll_data(cx)).await;
        let at = now();
        self.clocks.left_at = at;
        match outcome {
            Ok(Ok(true)) => {
                self.decoder.feed(source.exchange.data());
                self.take(at);
            }
            Ok(Ok(false)) => self.end(None),
            Ok(Err(error)) => self.end(Some(error)),
            Err(Expired::Stage)
                if verdict == Verdict::Window && self.clocks.is_fast_enough(&self.route, at) => {}
            Err(which) => self.expire(which, verdict),
        }
    }

    fn take(&mut self, at: Instant) {
        self.clocks.last_byte = Some(at);
        let known = self.events.len();
        self.decode(at);
        if self.route.limits.rate_floor.is_some() {
            self.clocks.count(self.events.iter().skip(known), at);
        }
        if let Some(Source { lease, .. }) = &mut self.source {
            count(lease, self.events.iter().skip(known), at);
        }
    }

    fn decode(&mut self, at: Instant) {
        loop {
            let step = match self.decoder.next() {
                Ok(None) => return,
                Ok(Some(event)) => {
                    let secrets = self.route.provider.secrets();
                    self.reader.take(event, secrets, &mut self.events)
                }
                Err(error) => {
                    let problem = error.to_string();
                    return self.fail(Code::UpstreamStreamTooLarge, problem);
                }
            };
            match step {
                Ok(Step::Nothing) => {}
                Ok(Step::Output) => self.clocks.last_progress = Some(at),
                Ok(Step::Stopped) => {
                    self.clocks.last_progress = Some(at);
                    self.clocks.stopped_at = Some(at);
                }
                Ok(Step::Complete) => return self.complete(),
                Err(fault) => return self.reject(fault),
            }
        }
    }

    /// The answer is whole, whatever the stream still holds.
    fn complete(&mut self) {
        match self.reader.finish() {
            Ok(finish) => self.events.push_back(finish),
            Err(unfinished) => return self.fail_unfinished(unfinished, ""),
        }
        if let Some(Source { exchange, mut lease }) = self.source.take() {
            self.route.provider.give_back(exchange);
            count(&mut lease, self.events.iter(), now());
            lease.succeed(usage(&self.events));
        }
    }

    /// The stream is over, with or without an error.
    fn end(&mut self, error: Option<WireError>) {
        // A last event that was not closed counts if it is readable.
        if let Ok(Some(event)) = self.decoder.finish() {
            match self.reader.take(event, self.route.provider.secrets(), &mut self.events) {
                Ok(_) | Err(codec::Fault::Malformed(_)) => {}
                Err(fault) => return self.reject(fault),
            }
        }
        match (self.reader.finish(), error) {
            // With an error the connection is of no use, but the answer was whole before.
            (Ok(finish), Some(_)) => {
                self.events.push_back(finish);
                self.succeed_without_connection();
            }
            (Ok(_), None) => self.complete(),
            (Err(unfinished), error) => {
                let why = error.map(|error| format!(": {}", error.message)).unwrap_or_default();
                self.fail_unfinished(unfinished, &why);
            }
        }
    }

    fn fail_unfinished(&mut self, unfinished: Unfinished, why: &str) {
        let stray = self.decoder.stray();
        match unfinished {
            Unfinished::Truncated => {
                let problem = format!("the stream ended before the answer was whole{why}");
                self.fail(Code::UpstreamStreamTruncated, problem);
            }
            Unfinished::Empty if !why.is_empty() => {
                let problem = format!("the stream broke off before any output{why}");
                self.fail(Code::UpstreamStreamTruncated, problem);
            }
            Unfinished::Empty if stray.trim_ascii_start().starts_with(b"{") => {
                let secrets = self.route.provider.secrets();
                self.reject(codec::Fault::Rejected(Rejection::in_band(stray, secrets)));
            }
            Unfinished::Empty if !stray.is_empty() => {
                let what = if looks_like_html(stray) { "an HTML page" } else { "something else" };
                let problem = format!("expected a stream of events, got {what}");
                self.fail(Code::UpstreamBadResponse, problem);
            }
            Unfinished::Empty => {
                let problem = "the stream ended without any output".to_owned();
                self.fail(Code::UpstreamEmptyResponse, problem);
            }
        }
    }

    fn expire(&mut self, which: Expired, verdict: Verdict) {
        // Nothing but usage was missing.
        if verdict == Verdict::Tail
            && let Ok(finish) = self.reader.finish()
        {
            self.events.push_back(finish);
            return self.succeed_without_connection();
        }
        let limits = &self.route.limits;
        let (code, problem) = match verdict {
            Verdict::FirstToken => (
                Code::UpstreamFirstTokenTimeout,
                format!("no output within {:?} after the request was sent", self.clocks.ttft),
            ),
            Verdict::Idle => (
                Code::UpstreamStreamIdle,
                format!("not a byte for {:?}", self.clocks.idle_limit(&self.route)),
            ),
            Verdict::Window => (
                Code::UpstreamStreamTooSlow,
                format!(
                    "fewer than {} tokens a second over {RATE_WINDOW:?}",
                    limits.rate_floor.unwrap_or_default()
                ),
            ),
            Verdict::Progress | Verdict::Tail => (
                Code::UpstreamStreamStalled,
                format!("the stream is alive, but without output for {:?}", limits.progress),
            ),
        };
        let fault = expired(which, code, self.phase(), &problem);
        self.settle(fault);
    }

    fn reject(&mut self, fault: codec::Fault) {
        match fault {
            codec::Fault::Malformed(problem) => self.fail(Code::UpstreamStreamMalformed, problem),
            codec::Fault::Rejected(rejection) => {
                let fault = Fault::rejected(rejection, self.phase());
                self.settle(fault);
            }
        }
    }

    fn fail(&mut self, code: Code, problem: String) {
        let fault = Fault::new(code, self.phase(), problem);
        self.settle(fault);
    }

    /// Ends the answer with a fault; the connection is closed and the slot free at once.
    fn settle(&mut self, fault: Fault) {
        if let Some(Source { exchange, lease }) = self.source.take() {
            drop(exchange);
            lease.fail(&fault);
        }
        self.fault = Some(Fault { request_id: self.request_id.clone(), ..fault });
    }

    /// The answer is whole, but its connection is of no more use.
    fn succeed_without_connection(&mut self) {
        if let Some(Source { exchange, lease }) = self.source.take() {
            drop(exchange);
            lease.succeed(usage(&self.events));
        }
    }

    const fn phase(&self) -> Phase {
        if self.clocks.last_progress.is_some() { Phase::Stream } else { Phase::FirstToken }
    }
}

/// Books output on the attempt.
fn count<'a>(lease: &mut Lease, events: impl Iterator<Item = &'a ChatEvent>, at: Instant) {
    for event in events {
        match event {
            ChatEvent::Text(text) | ChatEvent::Reasoning(text) => lease.output(text.len(), at),
            ChatEvent::ToolCall { arguments, .. } => lease.output(arguments.len(), at),
            ChatEvent::Reset { .. } | ChatEvent::Finish { .. } => {}
        }
    }
}

/// What the provider counted, when the answer is whole.
fn usage(events: &VecDeque<ChatEvent>) -> Option<Usage> {
    match events.back() {
        Some(ChatEvent::Finish { usage, .. }) => *usage,
        _ => None,
    }
}

/// Which limit of a stream comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    FirstToken,
    Idle,
    Progress,
    /// Of output that is counted.
    Window,
    Tail,
}

/// How long output is counted before it is judged.
const RATE_WINDOW: Duration = Duration::from_secs(5);

impl Clocks {
    /// The reader of the answer was away; that is not the provider's fault.
    fn resume(&mut self, now: Instant) {
        let away = now.saturating_duration_since(self.left_at);
        let clocks = [&mut self.last_byte, &mut self.last_progress, &mut self.stopped_at];
        for at in clocks.into_iter().flatten() {
            *at += away;
        }
        if let Some((begin, _)) = &mut self.window {
            *begin += away;
        }
    }

    /// Counts output; many send a token in each event, some send several.
    fn count<'a>(&mut self, events: impl Iterator<Item = &'a ChatEvent>, at: Instant) {
        let worth = |text: &str| (text.len() as u64 / 4).max(1);
        let tokens: u64 = events
            .map(|event| match event {
                ChatEvent::Text(text) | ChatEvent::Reasoning(text) => worth(text),
                ChatEvent::ToolCall { arguments, .. } => worth(arguments),
                ChatEvent::Reset { .. } | ChatEvent::Finish { .. } => 0,
            })
            .sum();
        if tokens > 0 {
            let window = self.window.get_or_insert((at, 0));
            window.1 = window.1.saturating_add(tokens);
        }
    }

    /// Judges the window that is over, and begins the next one if it was good.
    fn is_fast_enough(&mut self, route: &Route, at: Instant) -> bool {
        let (Some(floor), Some((_, tokens))) = (route.limits.rate_floor, self.window) else {
            return true;
        };
        let is_good = tokens as f64 >= floor * RATE_WINDOW.as_secs_f64();
        if is_good {
            self.window = Some((at, 0));
        }
        is_good
    }

    fn limit(&self, route: &Route) -> (Deadline, Verdict) {
        let limits = &route.limits;
        if let Some(stopped_at) = self.stopped_at {
            return (Deadline(stopped_at + limits.tail), Verdict::Tail);
        }
        let progress = match self.last_progress {
            None => (Deadline(self.sent_at + self.ttft), Verdict::FirstToken),
            Some(at) => (Deadline(at + limits.progress), Verdict::Progress),
        };
        let progress = match self.window {
            Some((begin, _)) if begin + RATE_WINDOW < progress.0.0 => {
                (Deadline(begin + RATE_WINDOW), Verdict::Window)
            }
            _ => progress,
        };
        // Before its first byte only the limit for output counts: some think in silence.
        let Some(last_byte) = self.last_byte else { return progress };
        let idle = (Deadline(last_byte + self.idle_limit(route)), Verdict::Idle);
        if idle.0 < progress.0 { idle } else { progress }
    }

    const fn idle_limit(&self, route: &Route) -> Duration {
        if self.last_progress.is_some() { route.limits.idle_output } else { route.limits.idle }
    }
}
