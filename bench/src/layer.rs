//! What the provider layer alone adds to a call and to each of its tokens: queue, breakers, keys, timers, decoding,
//! accounting. It runs in the rig's process, against the [`Tap`], beside the rig's own bare client; there is no server
//! and no store in between.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clearway_core::Deadline;
use clearway_upstream::{
    CallCx, ChatEvent, ChatRequest, Config, Endpoint, ModelConfig, ProviderConfig, Secret, Upstream,
};
use serde_json::{Value, json};

use crate::expect::Expected;
use crate::load::{Client, Target};
use crate::report::{Kind, Report, Section, number, say};
use crate::sse::Dialect;
use crate::stats::Hist;
use crate::tap::{Hold, Script, Tap};

/// Parameters of `layer`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Calls of each contender.
    #[arg(long, default_value_t = 2000)]
    calls: u32,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 32)]
    tokens: u32,
    /// Time between tokens.
    #[arg(long, default_value_t = 1)]
    interval_ms: u64,
}

/// What was added to the calls of one contender.
#[derive(Debug, Default)]
struct Added {
    /// Until the request was complete at the provider.
    ask: Hist,
    /// From the provider's first token to its arrival.
    first: Hist,
    /// The same of each further token.
    token: Hist,
    /// From the provider's last byte to the end of the call.
    end: Hist,
}

impl Added {
    /// `arrivals` of the tokens of the call `id`, which began at `begin` and was over at `end`.
    fn add(
        &mut self,
        tap: &Tap,
        id: u64,
        begin: Instant,
        arrivals: &[Instant],
        end: Instant,
    ) -> Result<()> {
        let call = tap.take(id).context("the provider was not called")?;
        ensure!(
            arrivals.len() == call.sent.len(),
            "{} tokens of {}",
            arrivals.len(),
            call.sent.len()
        );
        self.ask.add(call.received.saturating_duration_since(begin));
        for (n, (sent, arrived)) in call.sent.iter().zip(arrivals).enumerate() {
            let late = arrived.saturating_duration_since(*sent);
            if n == 0 { self.first.add(late) } else { self.token.add(late) }
        }
        let finished = call.finished.context("the provider did not finish")?;
        self.end.add(end.saturating_duration_since(finished));
        Ok(())
    }
}

pub(crate) async fn run(options: &Options, report: &mut Report) -> Result<()> {
    say("the provider layer beside a bare client");
    let tap = Tap::start().await?;
    let target = Target { name: "bare", address: tap.address, dialect: Dialect::OpenAi };
    let upstream = upstream(&tap)?;
    let mut added = [Added::default(), Added::default()];
    let mut client = Client::default();
    let expected = Expected::counted(options.tokens);
    let mut id = 0;
    for round in 0..options.calls + WARM {
        let mut scratch = [Added::default(), Added::default()];
        let [bare, layer] = if round < WARM { &mut scratch } else { &mut added };
        let mut script = || {
            id += 1;
            let Options { tokens, interval_ms, .. } = *options;
            Script { id, tokens, interval_ms, hold: Hold::Never }
        };
        let own = script();
        let request = target.stream_request("bare", &own.to_string());
        let seen = client.stream(&target, &request, &expected).await.context("the bare client")?;
        let arrived = |us: &u32| seen.begin + Duration::from_micros((*us).into());
        let arrivals: Vec<Instant> = client.arrivals_us.iter().map(arrived).collect();
        bare.add(&tap, own.id, seen.begin, &arrivals, seen.begin + seen.total)?;

        let own = script();
        let begin = Instant::now();
        let arrivals = call(&upstream, own, &expected).await.context("the layer")?;
        layer.add(&tap, own.id, begin, &arrivals, Instant::now())?;
    }
    let connections = upstream.provider_views().first().context("no provider")?.connections;
    let calls = connections.opened + connections.reused;
    let fresh = connections.opened as f64 / calls as f64;
    report.bar(Kind::Hard, "connections opened for each call", fresh, 0.05);
    present(&added, options, report);
    Ok(())
}

const WARM: u32 = 50;

fn upstream(tap: &Tap) -> Result<Upstream> {
    let url = format!("http://{}/v1", tap.address);
    let endpoint = Endpoint::parse(&url).map_err(|problem| anyhow::anyhow!(problem))?;
    let mut provider = ProviderConfig::new("tap", endpoint);
    provider.keys = vec![(None, Secret::new("bench"))];
    let models = vec![ModelConfig::new("bench", "tap", "bench")];
    let config = Config { providers: vec![provider], models, clock: None };
    Ok(Upstream::new(config, HashMap::new())?)
}

/// One call; when each of its tokens came.
async fn call(upstream: &Upstream, script: Script, expected: &Expected) -> Result<Vec<Instant>> {
    let message =
        |kind: &str, text: &str| Arc::new(json!({"type": kind, "content": text, "id": "1"}));
    let messages: Vec<Arc<Value>> =
        vec![message("system", "You are under load."), message("human", &script.to_string())];
    let request = ChatRequest { model: "bench".into(), messages, ..ChatRequest::default() };
    let deadline = Deadline::after(Instant::now(), Duration::from_secs(60));
    let mut stream = upstream.chat(CallCx::new(deadline, "bench"), request).await?;
    let (mut arrivals, mut reader, mut finished) = (Vec::new(), expected.reader(), false);
    while let Some(event) = stream.next().await? {
        match event {
            ChatEvent::Text(text) => {
                reader.token(&text)?;
                arrivals.push(Instant::now());
            }
            ChatEvent::Finish { .. } => finished = true,
            ChatEvent::Reasoning(_) | ChatEvent::ToolCall { .. } | ChatEvent::Reset { .. } => {}
        }
    }
    reader.end()?;
    ensure!(finished, "the answer did not finish");
    Ok(arrivals)
}

fn present([bare, layer]: &[Added; 2], options: &Options, report: &mut Report) {
    let cell = |hist: &Hist| {
        let [p50, p99] = [0.5, 0.99].map(|share| number(hist.ms(share)));
        format!("{p50} / {p99}")
    };
    let mut section = Section::new(
        "The provider layer beside a bare client, in one process with the provider (p50 / p99 ms)",
        &["", "request", "first token", "each further token", "end"],
    );
    for (name, added) in [("bare client", bare), ("provider layer", layer)] {
        let cells = [&added.ask, &added.first, &added.token, &added.end].map(cell);
        section.row(std::iter::once(name.to_owned()).chain(cells));
    }
    section.note(format!("{} calls of each, {} tokens", layer.ask.count(), options.tokens));
    report.section(section);
    let more = |share, of: &[fn(&Added) -> &Hist]| -> f64 {
        of.iter().map(|get| get(layer).ms(share) - get(bare).ms(share)).sum()
    };
    let call: &[fn(&Added) -> &Hist] =
        &[|added| &added.ask, |added| &added.first, |added| &added.end];
    let token: &[fn(&Added) -> &Hist] = &[|added| &added.token];
    report.bar(Kind::Timing, "call, added p50, ms", more(0.5, call), 0.3);
    report.bar(Kind::Timing, "call, added p99, ms", more(0.99, call), 1.0);
    report.bar(Kind::Timing, "token, added p99, ms", more(0.99, token), 0.2);
    report.figure(
        "layer",
        json!({
            "call_added_ms": {"p50": more(0.5, call), "p99": more(0.99, call)},
            "token_added_ms": {"p50": more(0.5, token), "p99": more(0.99, token)},
        }),
    );
}
