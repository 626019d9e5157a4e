//! Traps that one call falls into.

use std::time::Duration;

use anyhow::Result;
use clearway_sim::{Fault, FaultSpec, Options};
use tokio::time::Instant;

use super::naive::{self, End, Reply};
use super::progress::while_shown;
use super::provider::Provider;
use super::report::{Promise, Report, Side};
use super::server::{self, Answer, DEADLINE, Server};
use crate::output::Output;

/// How long the naive client is looked at: longer than Clearway's call may take.
const PATIENCE: Duration = Duration::from_secs(12);

/// For ending a call and telling about it.
const SLACK: Duration = Duration::from_secs(1);

/// A trap: what is wrong, and what is expected.
struct Setting {
    name: &'static str,
    trap: &'static str,
    habit: &'static str,
    options: Options,
    /// The naive client's limit of one read.
    read: Option<Duration>,
    /// The code that Clearway's error has.
    codes: &'static [&'static str],
}

pub(crate) async fn hang(output: Output) -> Result<Report> {
    let options = faulty(FaultSpec::from(Fault::NoAnswer));
    let setting = Setting {
        name: "hang",
        trap: "the provider accepts the request and never answers",
        habit: "no timeout",
        options,
        read: None,
        codes: &["upstream.headers_timeout", "upstream.timeout", "deadline_exceeded"],
    };
    show(setting, output).await
}

pub(crate) async fn drip(output: Output) -> Result<Report> {
    let options = faulty(FaultSpec { fault: Fault::StallKeepalive, value: Some(3) });
    let setting = Setting {
        name: "drip",
        trap: "after three tokens the provider sends a comment each second and nothing else",
        habit: "a timeout of 2 s for each read",
        options,
        read: Some(Duration::from_secs(2)),
        codes: &["upstream.stream_stalled", "deadline_exceeded"],
    };
    show(setting, output).await
}

pub(crate) async fn truncate(output: Output) -> Result<Report> {
    let options = Options {
        token_interval: Duration::from_millis(20),
        ..faulty(FaultSpec { fault: Fault::CutFin, value: Some(CUT_AFTER) })
    };
    let setting = Setting {
        name: "truncate",
        trap: "the provider's stream of 60 tokens ends after 40, as if that were all",
        habit: "the end of the stream is the end of the answer",
        options,
        read: Some(Duration::from_secs(2)),
        codes: &["upstream.stream_truncated", "deadline_exceeded"],
    };
    show(setting, output).await
}

const TOKENS: u32 = 60;
const CUT_AFTER: u64 = 40;

fn faulty(fault: FaultSpec) -> Options {
    Options { tokens: Some(TOKENS), fault: Some(fault), ..Options::default() }
}

async fn show(setting: Setting, output: Output) -> Result<Report> {
    let naive_provider = Provider::start(setting.options.clone()).await?;
    let provider = Provider::start(setting.options).await?;
    let server = Server::start(provider.address()).await?;
    let both = async {
        tokio::join!(
            naive_side(&naive_provider, setting.read),
            clearway_side(&provider, &server, setting.codes)
        )
    };
    let (naive, clearway) = while_shown(output, (&naive_provider, &provider), both).await;
    server.stop().await;
    let (clearway, promises) = clearway?;
    let Setting { name, trap, habit, .. } = setting;
    Ok(Report { name, trap, habit, naive, clearway, promises })
}

async fn naive_side(provider: &Provider, read: Option<Duration>) -> Side {
    let began = Instant::now();
    let reply = naive::ask(provider.address(), read, began + PATIENCE).await;
    let took = began.elapsed();
    // The reply still holds its socket if the client would.
    let seen = provider.seen_at_rest().await;
    Side {
        saw: saw(&reply),
        took,
        ended: reply.end != End::StillWaiting,
        calls: 1,
        requests: seen.requests,
        open: seen.open,
        waits: Vec::new(),
    }
}

fn saw(reply: &Reply) -> String {
    let tokens = format!("{} of {TOKENS} tokens", reply.tokens);
    match &reply.end {
        End::Success => format!("{tokens}, as a success"),
        End::StillWaiting if reply.tokens == 0 => "nothing; it still waits".to_owned(),
        End::StillWaiting => format!("{tokens}; it still waits"),
        End::Refused(status) => format!("status {status}"),
        End::Broke(problem) => format!("{tokens}, then {problem}"),
        End::ReadTimeout => format!("{tokens}, then a timeout"),
    }
}

async fn clearway_side(
    provider: &Provider,
    server: &Server,
    codes: &[&str],
) -> Result<(Side, Vec<Promise>)> {
    let client = server.client();
    let mut waits = Vec::new();
    let began = Instant::now();
    let answer = tokio::select! {
        answer = server::ask(&client, "ann") => answer?,
        never = server::watch(&client, &mut waits) => match never {},
    };
    let took = began.elapsed();
    let seen = provider.seen_at_rest().await;
    let (saw, has_code) = match &answer {
        Answer::Reply(reply) => (format!("a reply: {reply}"), false),
        Answer::Error(code, detail) => {
            (format!("error {code}: {detail}"), codes.contains(&code.as_str()))
        }
    };
    let promises = vec![
        Promise::new(format!("an error that says so: {}", codes.join(" or ")), has_code),
        Promise::new(
            format!("the call ended within its deadline of {} s", DEADLINE.as_secs()),
            took <= DEADLINE + SLACK,
        ),
        Promise::new("no socket to the provider was left open", seen.open == 0),
        Promise::new("anybody could ask what it was waiting for", !waits.is_empty()),
    ];
    let side =
        Side { saw, took, ended: true, calls: 1, requests: seen.requests, open: seen.open, waits };
    Ok((side, promises))
}
