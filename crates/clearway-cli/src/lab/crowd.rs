//! Traps that many callers fall into together.
//!
//! Callers of Clearway behave: whoever got an error asks again after a second. Trying again within a
//! call is Clearway's business, and what counts is how many requests that makes of each call.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clearway::client::Client;
use clearway_sim::{Fault, FaultSpec, Options};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::naive::{self, End};
use super::progress::while_shown;
use super::provider::{Provider, Seen};
use super::report::{Promise, Report, Side};
use super::seconds;
use super::server::{self, Answer, Server};
use crate::output::Output;

/// A provider is a network away; on this machine there is none, so the naive client waits instead.
const ROUND_TRIP: Duration = Duration::from_millis(50);
/// Between an error of Clearway's and the next call of the same caller.
const COME_BACK: Duration = Duration::from_secs(1);
/// Between an answer and the next call.
const THINK: Duration = Duration::from_millis(250);

/// Callers of the storm, and how long the provider is out.
const CALLERS: usize = 50;
const OUTAGE: Duration = Duration::from_secs(5);
/// Within it everybody has an answer: the longest that a breaker may keep a route closed that works
/// again, and the outage itself.
const RECOVERED: Duration = Duration::from_secs(36);

/// Callers at the flapping provider, and how long that is looked at.
const FEW: usize = 10;
const FLAPPING: Duration = Duration::from_secs(12);

/// A provider sees no more than this: a fifth over what was asked, and one request per second.
fn bound(calls: u64, took: Duration) -> u64 {
    calls + calls / 5 + took.as_secs() + 1
}

/// A trap: what the provider does, and what the callers do.
struct Setting {
    name: &'static str,
    trap: &'static str,
    options: Options,
    /// The provider is out for so long at the beginning.
    outage: Duration,
    callers: usize,
    /// Each caller is content with one answer; else it goes on asking.
    one_each: bool,
    lasts: Duration,
}

pub(crate) async fn storm(output: Output) -> Result<Report> {
    let setting = Setting {
        name: "storm",
        trap: "the provider is out for 5 s, and 50 callers want an answer",
        options: Options::default(),
        outage: OUTAGE,
        callers: CALLERS,
        one_each: true,
        lasts: RECOVERED,
    };
    show(setting, output).await
}

pub(crate) async fn flap(output: Output) -> Result<Report> {
    let fault = FaultSpec { fault: Fault::Flap, value: Some(2000) };
    let setting = Setting {
        name: "flap",
        trap: "the provider works for 2 s, fails for 2 s, and again",
        options: Options { fault: Some(fault), ..Options::default() },
        outage: Duration::ZERO,
        callers: FEW,
        one_each: false,
        lasts: FLAPPING,
    };
    show(setting, output).await
}

async fn show(setting: Setting, output: Output) -> Result<Report> {
    let naive = Provider::start(setting.options.clone()).await?;
    let provider = Provider::start(setting.options.clone()).await?;
    let server = Server::start(provider.address()).await?;
    let client = server.client();
    let address = naive.address();
    let until = Instant::now() + setting.lasts;
    let outage = async {
        if !setting.outage.is_zero() {
            for provider in [&naive, &provider] {
                provider.outage(true);
            }
            sleep(setting.outage).await;
            for provider in [&naive, &provider] {
                provider.outage(false);
            }
        }
    };
    let mut waits = Vec::new();
    let patient = async {
        let ask = |user| call_patiently(client.clone(), user, setting.one_each, until);
        tokio::select! {
            tally = crowd(&setting, ask) => tally,
            never = server::watch(&client, &mut waits) => match never {},
        }
    };
    let both = async {
        let hasty = crowd(&setting, |_| call_at_once(address, setting.one_each, until));
        tokio::join!(hasty, patient, outage)
    };
    let (hasty, patient, ()) = while_shown(output, (&naive, &provider), both).await;
    let requests = provider.seen().requests;
    let promises = promises(&setting, patient, requests);
    let naive = side(hasty, naive.seen_at_rest().await);
    // Connections that are kept for the next call go with the server.
    server.stop().await;
    let clearway = Side { waits, ..side(patient, provider.seen_at_rest().await) };
    let Setting { name, trap, .. } = setting;
    let habit = "tries again at once, without a limit";
    Ok(Report { name, trap, habit, naive, clearway, promises })
}

fn promises(setting: &Setting, tally: Tally, requests: u64) -> Vec<Promise> {
    let bound = bound(tally.calls, tally.took);
    let few = Promise::new(
        format!("no more than {bound} requests: 1.2 for each call and one for each second"),
        requests <= bound,
    );
    let served = if setting.one_each {
        Promise::new(
            format!("every caller had an answer within {}", seconds(setting.lasts)),
            tally.answered == setting.callers as u64,
        )
    } else {
        Promise::new("calls were answered while the provider worked", tally.answered > 0)
    };
    vec![few, served]
}

/// What became of the calls of one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    calls: u64,
    answered: u64,
    took: Duration,
}

fn side(tally: Tally, seen: Seen) -> Side {
    Side {
        saw: format!("{} answers, {} errors", tally.answered, tally.calls - tally.answered),
        took: tally.took,
        ended: true,
        calls: tally.calls,
        requests: seen.requests,
        open: seen.open,
        waits: Vec::new(),
    }
}

/// All callers at once; what they count, together.
async fn crowd<F>(setting: &Setting, caller: impl Fn(usize) -> F) -> Tally
where
    F: Future<Output = Tally> + Send + 'static,
{
    let mut callers = JoinSet::new();
    for number in 0..setting.callers {
        callers.spawn(caller(number));
    }
    let all = callers.join_all().await;
    all.into_iter().fold(Tally::default(), |sum, one| Tally {
        calls: sum.calls + one.calls,
        answered: sum.answered + one.answered,
        took: sum.took.max(one.took),
    })
}

/// What people write: a loop around the call.
async fn call_at_once(address: SocketAddr, one_each: bool, until: Instant) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::default();
    while Instant::now() < until {
        tally.calls += 1;
        // To its user it is one call, however often it is tried.
        while Instant::now() < until {
            sleep(ROUND_TRIP).await;
            let reply = naive::ask(address, None, until).await;
            if reply.end == End::Success {
                tally.answered += 1;
                break;
            }
        }
        if one_each {
            break;
        }
        sleep(THINK).await;
    }
    tally.took = began.elapsed();
    tally
}

/// Somebody who asks Clearway.
async fn call_patiently(client: Client, number: usize, one_each: bool, until: Instant) -> Tally {
    let began = Instant::now();
    let user = format!("user {number}");
    let mut tally = Tally::default();
    while Instant::now() < until {
        tally.calls += 1;
        match timeout_at(until, server::ask(&client, &user)).await {
            Ok(Ok(Answer::Reply(_))) => {
                tally.answered += 1;
                if one_each {
                    break;
                }
                sleep(THINK).await;
            }
            Ok(Ok(Answer::Error(..)) | Err(_)) => sleep(COME_BACK).await,
            Err(_) => break,
        }
    }
    tally.took = began.elapsed();
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_more_and_one_a_second_are_allowed() {
        assert_eq!(bound(100, Duration::from_secs(10)), 131);
        assert_eq!(bound(0, Duration::ZERO), 1);
    }
}
