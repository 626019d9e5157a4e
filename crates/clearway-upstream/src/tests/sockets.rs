//! The faults of single calls, over real sockets and in real time.
//!
//! Each [`Case`] says what a call must make of a fault: how it ends and in which phase, which attempts it
//! makes and how the provider counts them, how long that takes, and what could be seen of it meanwhile.
//! Times are those of a machine that does other things, too; to the millisecond they are in the tests with
//! paused time. Afterwards every case must have let go of everything on both sides, and a healthy call must succeed.
//! The cases of a test run side by side, since most of them only wait. The numbers are those of the list
//! in `list`.

use futures_util::future::join_all;

use super::lab::*;
use super::*;

/// A fault, and what must come of it.
#[derive(Clone)]
struct Case {
    number: u32,
    fault: &'static str,
    /// Faults of provider `a` for the attempts after the first; the last one stays.
    then: &'static [&'static str],
    /// A second provider, which is well.
    spare: bool,
    /// So many calls one after the other, which all end alike.
    times: u32,
    deadline: Duration,
    change: fn(&mut Config),
    ask: fn() -> ChatRequest,
    /// `ok`, or the code of the error.
    outcome: &'static str,
    /// Of the error.
    phase: &'static str,
    trail: &'static str,
    /// The least that it takes, in milliseconds; it takes at most [`SLACK`] more.
    took: u64,
    /// What it waited for on the way.
    shows: &'static [WaitKind],
}

/// The machine has other things to do, too.
const SLACK: u64 = 6000;

fn case(number: u32, fault: &'static str) -> Case {
    Case {
        number,
        fault,
        then: &[],
        spare: false,
        times: 1,
        deadline: Duration::from_secs(20),
        change: |_| {},
        ask,
        outcome: "ok",
        phase: "",
        trail: "a ok",
        took: 0,
        shows: &[],
    }
}

impl Case {
    fn spare(self) -> Self {
        Self { spare: true, ..self }
    }

    fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    fn then(self, then: &'static [&'static str]) -> Self {
        Self { then, ..self }
    }

    fn within(self, millis: u64) -> Self {
        Self { deadline: Duration::from_millis(millis), ..self }
    }

    fn with(self, change: fn(&mut Config)) -> Self {
        Self { change, ..self }
    }

    fn asks(self, ask: fn() -> ChatRequest) -> Self {
        Self { ask, ..self }
    }

    /// It succeeds in the end.
    fn by(self, trail: &'static str) -> Self {
        Self { trail, ..self }
    }

    fn fails(self, outcome: &'static str, phase: &'static str, trail: &'static str) -> Self {
        Self { outcome, phase, trail, ..self }
    }

    fn took(self, millis: u64) -> Self {
        Self { took: millis, ..self }
    }

    fn shows(self, shows: &'static [WaitKind]) -> Self {
        Self { shows, ..self }
    }

    async fn play(self) {
        let what =
            format!("{}, {}{}", self.number, self.fault, if self.spare { " + b" } else { "" });
        let faults: &[&str] = if self.spare { &[self.fault, ""] } else { &[self.fault] };
        let lab = Lab::on_sockets(faults.iter().map(|fault| options(fault)), self.change).await;
        for _ in 0..self.times {
            let before = [lab.requests(0), lab.sims.get(1).map_or(0, |sim| sim.stats().requests)];
            let call = lab.call_with(cx(self.deadline), (self.ask)(), self.then).await;
            self.judge(&what, &call);
            let counts =
                |name: &str| call.rows.iter().filter(|row| &*row.provider == name).count() as u64;
            // A connection that turned out to be dead when it was used again makes one more, which
            // is no attempt; a provider that does not read counts nothing.
            let seen = lab.requests(0) - before[0];
            let replaced = u64::from(self.fault == "reset_reused");
            assert!((counts("a")..=counts("a") + replaced).contains(&seen), "{what}: {seen} seen");
            if self.spare {
                assert_eq!(lab.requests(1) - before[1], counts("b"), "{what}");
            }
        }
        lab.assert_closed(&what).await;
        // Nothing of it is left behind for the next one.
        lab.sims[0].change(|control| control.fault = None);
        assert!(lab.upstream.reset("a"));
        let call = lab.call_with(cx(Duration::from_secs(20)), super::ask(), &[]).await;
        assert_eq!(
            (call.error.as_ref(), call.trail().as_str()),
            (None, "a ok"),
            "{what}: after it"
        );
        lab.assert_closed(&what).await;
    }

    fn judge(&self, what: &str, call: &Call) {
        assert_eq!(call.trail(), self.trail, "{what}: {}", call.line());
        let took = call.took.as_millis() as u64;
        assert!(call.took <= self.deadline + Duration::from_secs(1), "{what}: {took} ms");
        assert!((self.took..=self.took + SLACK).contains(&took), "{what}: {took} ms");
        for kind in self.shows {
            assert!(!call.spent.get(*kind).is_zero(), "{what}: not {kind:?} but {}", call.spent);
        }
        match &call.error {
            None => {
                assert_eq!(self.outcome, "ok", "{what}");
                // Once, and all of it.
                let words = call.text.split_whitespace().count();
                assert_eq!(words as u32, if call.tools > 0 { 0 } else { TOKENS }, "{what}");
                let last = call.rows.last().unwrap();
                assert!(call.route.starts_with(&*last.provider), "{what}: it names who answered");
                assert!(call.finish.is_some(), "{what}");
                // Counted by the provider, or estimated; never nothing.
                assert_ne!(last.source, UsageSource::None, "{what}");
                assert!(last.usage.output_tokens > 0, "{what}");
            }
            Some(error) => {
                assert_eq!(error.code.as_str(), self.outcome, "{what}: {error}");
                assert_eq!(error.detail["phase"], self.phase, "{what}: {error}");
                let attempts = error.detail["attempts"].as_array().unwrap();
                assert_eq!(attempts.len(), call.rows.len(), "{what}: all attempts are told");
            }
        }
        // Nobody pays for what brought nothing.
        for row in call.rows.iter().filter(|row| !row.is_ok() && row.first_output.is_none()) {
            assert_eq!((row.usage, row.source), (Usage::default(), UsageSource::None), "{what}");
        }
    }
}

async fn play(cases: impl IntoIterator<Item = Case>) {
    join_all(cases.into_iter().map(|case| Box::pin(case.play()))).await;
}

const LIMITED: &str = "upstream.rate_limited";
const THRICE_LIMITED: &str =
    "a upstream.rate_limited, a upstream.rate_limited, a upstream.rate_limited";
const LIMITED_ONCE: &str = "a upstream.rate_limited, a ok";

#[tokio::test]
async fn rate_limits_and_empty_accounts() {
    use WaitKind::{RateLimit, Retry};
    play([
        case(1, "rate_limit_once:1").by(LIMITED_ONCE).took(1000).shows(&[Retry]),
        case(2, "rate_limit")
            .fails(LIMITED, "headers", THRICE_LIMITED)
            .shows(&[Retry, RateLimit])
            .took(2000),
        case(2, "rate_limit").spare().by("a upstream.rate_limited, b ok"),
        case(3, "retry_after:3600").fails(LIMITED, "headers", "a upstream.rate_limited"),
        case(3, "retry_after:3600").spare().by("a upstream.rate_limited, b ok"),
        // No time is left for an answer after the wait: told at once.
        case(3, "rate_limit_once:2").within(3500).fails(
            LIMITED,
            "headers",
            "a upstream.rate_limited",
        ),
        case(4, "insufficient_quota").fails(
            "upstream.quota_exhausted",
            "headers",
            "a upstream.quota_exhausted",
        ),
        case(4, "credit_balance").fails(
            "upstream.quota_exhausted",
            "headers",
            "a upstream.quota_exhausted",
        ),
        case(4, "credit_balance").spare().by("a upstream.quota_exhausted, b ok"),
        // The date is that of the provider, in whole seconds.
        case(5, "retry_after_date:2").then(&[""]).by(LIMITED_ONCE).took(900).shows(&[Retry]),
        case(5, "retry_after_ms:300").then(&[""]).by(LIMITED_ONCE).took(300).shows(&[Retry]),
        case(5, "retry_after_text:400").then(&[""]).by(LIMITED_ONCE).took(400).shows(&[Retry]),
        case(5, "retry_after_negative").then(&[""]).by(LIMITED_ONCE).took(900),
        case(5, "retry_after_nan").then(&[""]).by(LIMITED_ONCE).took(900),
        case(5, "retry_after_huge").fails(LIMITED, "headers", "a upstream.rate_limited"),
    ])
    .await;
}

#[tokio::test]
async fn failing_and_breaking_connections() {
    use WaitKind::Retry;
    play([
        case(6, "server_error_once").by("a upstream.server_error, a ok").shows(&[Retry]),
        case(6, "server_error")
            .spare()
            .by("a upstream.server_error, a upstream.server_error, b ok"),
        case(6, "unavailable").spare().by("a upstream.overloaded, b ok"),
        case(6, "unavailable").fails(
            "upstream.overloaded",
            "headers",
            "a upstream.overloaded, a upstream.overloaded, a upstream.overloaded",
        ),
        case(7, "reset_once").by("a upstream.connect_failed, a ok").took(200).shows(&[Retry]),
        case(7, "reset")
            .spare()
            .by("a upstream.connect_failed, a upstream.connect_failed, b ok")
            .took(200),
        case(7, "reset_reused").times(4),
        case(8, "idle_close:5").times(40),
        case(8, "close_after_reply").times(40),
    ])
    .await;
}

#[tokio::test]
async fn silence_and_slowness() {
    use WaitKind::{FirstByte, NextToken};
    const SILENT: &str = "upstream.headers_timeout";
    play([
        case(9, "no_answer").spare().by("a upstream.headers_timeout, b ok").took(1500).shows(&[FirstByte]),
        case(9, "no_answer")
            .fails(
                SILENT,
                "headers",
                "a upstream.headers_timeout, a upstream.headers_timeout, a upstream.headers_timeout",
            )
            .took(4500)
            .shows(&[FirstByte]),
        case(9, "drip_headers:100").spare().by("a upstream.headers_timeout, b ok").took(1500),
        case(12, "ttft:400").took(400).shows(&[FirstByte]),
        case(12, "slow_headers:400").took(400).shows(&[FirstByte]),
        case(12, "ttft:60000").spare().by("a upstream.first_token_timeout, b ok").took(1500).shows(&[FirstByte]),
        case(14, "stall").fails("upstream.stream_idle", "stream", "a upstream.stream_idle").took(1500).shows(&[NextToken]),
        case(14, "stall").spare().with(restart).by("a upstream.stream_idle, b ok").took(1500),
        case(15, "stall_keepalive")
            .fails("upstream.stream_stalled", "stream", "a upstream.stream_stalled")
            .took(2500)
            .shows(&[NextToken]),
        case(16, "reasoning:2").with(|config| config.models[0].reasoning = true).took(2000).shows(&[FirstByte]),
        case(17, "drip:400").within(3000).fails("deadline_exceeded", "stream", "a deadline_exceeded").took(3000).shows(&[NextToken]),
        // Fewer than two tokens a second come, and four are wanted.
        case(17, "drip:600")
            .with(|config| config.providers[0].timeouts.rate_floor = Some(4.0))
            .fails("upstream.stream_too_slow", "stream", "a upstream.stream_too_slow")
            .took(5000)
            .shows(&[NextToken]),
        case(17, "drip:600")
            .spare()
            .with(|config| {
                config.providers[0].timeouts.rate_floor = Some(4.0);
                restart(config);
            })
            .by("a upstream.stream_too_slow, b ok")
            .took(5000),
        case(53, "slow_headers:2000").within(300).fails("deadline_exceeded", "headers", "a deadline_exceeded").took(300),
    ])
    .await;
}

fn restart(config: &mut Config) {
    config.models[0].commit = Commit::Restart;
}

/// Two routes, and a model that goes on with an answer that has begun.
fn go_on(config: &mut Config) {
    for model in &mut config.models {
        model.commit = Commit::Continue;
        model.prefill = true;
    }
}

#[tokio::test]
async fn answers_that_break_off() {
    const CUT: &str = "upstream.stream_truncated";
    const CUT_TWICE: &str = "a upstream.stream_truncated, a upstream.stream_truncated, b ok";
    let cut = |fault| case(18, fault).fails(CUT, "stream", "a upstream.stream_truncated");
    play([
        // Nothing was shown before the error.
        case(13, "error_after_role")
            .spare()
            .by("a upstream.server_error, a upstream.server_error, b ok"),
        case(13, "error_after_role").then(&[""]).by("a upstream.server_error, a ok"),
        cut("cut_rst:40"),
        cut("cut_fin:40"),
        cut("cut_chunk:40"),
        cut("cut_end:40"),
        case(18, "cut_rst:40").spare().with(restart).by(CUT_TWICE),
        case(18, "cut_end:40").spare().with(restart).by(CUT_TWICE),
        case(18, "error_event:40").fails(
            "upstream.server_error",
            "stream",
            "a upstream.server_error",
        ),
        case(19, "no_done"),
        case(19, "no_usage"),
        case(20, "done_linger"),
        case(20, "finish_linger").took(300),
        case(26, "cut_fin")
            .with(go_on)
            .then(&["reject_prefill"])
            .by("a upstream.stream_truncated, a upstream.invalid_request, a ok"),
        case(54, "unavailable").spare().with(priced).by("a upstream.overloaded, b ok"),
        case(55, "tool_call_cut").fails(CUT, "stream", "a upstream.stream_truncated"),
    ])
    .await;
}

fn priced(config: &mut Config) {
    for model in &mut config.models {
        model.price = Some(Price { input: 1_000_000, cached_input: 0, output: 1_000_000 });
    }
}

#[tokio::test]
async fn odd_bytes_and_answers_that_are_none() {
    let twice = |fault, trail| case(22, fault).spare().by(trail);
    play([
        case(21, "bad_json").fails(
            "upstream.stream_malformed",
            "stream",
            "a upstream.stream_malformed",
        ),
        case(21, "split_utf8"),
        case(21, "crlf"),
        case(21, "cr"),
        case(21, "lf"),
        case(21, "mixed_eol"),
        case(21, "one_byte"),
        case(21, "multi_line"),
        case(21, "bom"),
        twice("error_200", "a upstream.server_error, a upstream.server_error, b ok"),
        twice("html_200", "a upstream.bad_response, a upstream.bad_response, b ok"),
        twice("empty_200", "a upstream.empty_response, a upstream.empty_response, b ok"),
        twice("empty_choices", "a upstream.empty_response, a upstream.empty_response, b ok"),
        twice("wrong_type", "a upstream.bad_response, a upstream.bad_response, b ok"),
        // The status stands, however little of the body came.
        case(24, "stalled_error")
            .fails(
                "upstream.server_error",
                "headers",
                "a upstream.server_error, a upstream.server_error",
            )
            .took(600),
        case(24, "endless_error").fails(
            "upstream.server_error",
            "headers",
            "a upstream.server_error, a upstream.server_error",
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_the_request_is_asked_once() {
    let once = |fault, code, trail| case(25, fault).fails(code, "headers", trail);
    play([
        once("context_length", "upstream.context_length", "a upstream.context_length"),
        once("content_filter", "upstream.content_policy", "a upstream.content_policy"),
        once("unauthorized", "upstream.credentials_exhausted", "a upstream.credentials_exhausted"),
        once("forbidden", "upstream.forbidden", "a upstream.forbidden"),
        once("model_not_found", "upstream.model_unavailable", "a upstream.model_unavailable"),
        once("context_length", "upstream.context_length", "a upstream.context_length").spare(),
        once("content_filter", "upstream.content_policy", "a upstream.content_policy").spare(),
        case(25, "unauthorized").spare().by("a upstream.credentials_exhausted, b ok"),
        case(25, "model_not_found").spare().by("a upstream.model_unavailable, b ok"),
        case(25, "forbidden").spare().by("a upstream.forbidden, b ok"),
    ])
    .await;
}

/// A prompt that no socket's buffers hold.
fn much() -> ChatRequest {
    let content = "x".repeat(6 << 20);
    ChatRequest {
        messages: vec![Arc::new(json!({"type": "human", "content": content, "id": "1"}))],
        ..ask()
    }
}

#[tokio::test]
async fn a_provider_that_does_not_read_its_request() {
    play([case(11, "no_read")
        .asks(much)
        .with(|config| config.providers[0].retry.attempts = 1)
        .fails("upstream.send_timeout", "send", "a upstream.send_timeout")
        .took(1500)
        .shows(&[WaitKind::FirstByte])])
    .await;
}

/// What this process held at most, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The simulator writes it piece by piece, so what is held is held by the client.
#[tokio::test]
async fn endless_events_cost_no_memory() {
    const TWICE: &str = "a upstream.stream_too_large, a upstream.stream_too_large";
    let before = peak_memory();
    for fault in ["giant_event:100", "endless_line"] {
        let phase = "first_token";
        play([case(23, fault).fails("upstream.stream_too_large", phase, TWICE)]).await;
    }
    let grown = peak_memory() - before;
    assert!(grown < 48 << 20, "{} MiB more", grown >> 20);
}
