//! What the provider layer owes its callers when there are many: queries beside bulk work, and a crowd at a
//! provider that takes its time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Tools};
use crate::http::{Conn, Request, exchange};
use crate::load::Target;
use crate::report::{Kind, Report, Section, number, say};
use crate::sse::Dialect;
use crate::stats::Hist;

/// Parameters of `providers`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Texts that are ingested while queries are asked.
    #[arg(long, default_value_t = 10_000)]
    texts: u32,
    /// Texts in a request of the ingest.
    #[arg(long, default_value_t = 50)]
    batch: u32,
    /// Requests of the ingest at once.
    #[arg(long, default_value_t = 8)]
    ingesters: u32,
    /// How long the provider takes for a request for embeddings.
    #[arg(long, default_value_t = 50)]
    embed_ms: u64,
    /// Callers at once of a provider that takes a second.
    #[arg(long, value_delimiter = ',', default_values_t = [5, 50, 500])]
    crowds: Vec<u32>,
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("queries beside bulk work");
    bulk(tools, options, report).await?;
    say("crowds at a slow provider");
    crowds(tools, options, report).await
}

/// Queries alone, then queries while thousands of texts are ingested.
async fn bulk(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: options.embed_ms, tokens: 1, interval_ms: 1 }).await?;
    let server = bed.serve(&Config::embedding(sim.address)).await?;
    let mut asker = Asker { conn: Conn::open(server.address).await?, asked: 0 };
    for _ in 0..WARM {
        asker.ask().await?;
    }
    let idle = asker.ask_while(|asked| asked < QUERIES).await?;
    let over = Arc::new(AtomicBool::new(false));
    let begin = Instant::now();
    let ingest = ingest(server.address, options.clone(), over.clone());
    let (busy, ingested) = tokio::join!(asker.ask_while(|_| !over.load(Ordering::Relaxed)), ingest);
    let (busy, ingested) = (busy?, ingested?);
    let took = begin.elapsed();
    ensure!(ingested == options.texts, "{ingested} vectors for {} texts", options.texts);

    let mut section = Section::new(
        format!(
            "Queries beside {} texts (the provider takes {} ms for a request)",
            options.texts, options.embed_ms
        ),
        &["", "queries", "p50 / p95 / p99 ms"],
    );
    for (name, times) in [("alone", &idle), ("beside the ingest", &busy)] {
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| number(times.ms(share)));
        let times_of = format!("{p50} / {p95} / {p99}");
        section.row([name.to_owned(), times.count().to_string(), times_of]);
    }
    section.note(format!("the ingest took {} s", number(took.as_secs_f64())));
    report.section(section);
    let ratio = busy.ms(0.95) / idle.ms(0.95);
    report.bar(Kind::Timing, "query p95 beside bulk work, times alone", ratio, 1.3);
    let figures = |times: &Hist| json!({"p50": times.ms(0.5), "p95": times.ms(0.95)});
    report.figure(
        "bulk",
        json!({"alone_ms": figures(&idle), "beside_ms": figures(&busy), "ratio": ratio}),
    );
    Ok(())
}

const WARM: u32 = 5;
const QUERIES: u32 = 60;

/// One who asks a new query again and again.
struct Asker {
    conn: Conn,
    asked: u32,
}

impl Asker {
    async fn ask(&mut self) -> Result<Duration> {
        self.asked += 1;
        let body = json!({"model": "embed", "input": format!("query {}", self.asked)});
        let begin = Instant::now();
        let answer = exchange(&mut self.conn, &Request::post("/v1/embeddings", &body)).await?;
        let answer = answer.ok()?;
        let took = begin.elapsed();
        ensure!(vectors(&answer) == 1, "not one vector for a query");
        Ok(took)
    }

    async fn ask_while(&mut self, more: impl Fn(u32) -> bool) -> Result<Hist> {
        let mut times = Hist::default();
        let mut asked = 0;
        while more(asked) {
            times.add(self.ask().await?);
            asked += 1;
        }
        Ok(times)
    }
}

/// Sends all texts, so many requests at once; how many vectors came back.
async fn ingest(server: SocketAddr, options: Options, over: Arc<AtomicBool>) -> Result<u32> {
    let batches = options.texts.div_ceil(options.batch);
    let mut ingesters = JoinSet::new();
    for first in 0..options.ingesters {
        let Options { texts, batch, ingesters: step, .. } = options;
        ingesters.spawn(async move {
            let mut conn = Conn::open(server).await?;
            let mut count = 0;
            for number in (first..batches).step_by(step as usize) {
                let range = number * batch..texts.min((number + 1) * batch);
                let input: Vec<String> =
                    range.map(|n| format!("chunk {n} of a long document")).collect();
                let body = json!({"model": "embed", "input": input, "purpose": "document"});
                let request = Request::post("/v1/embeddings", &body);
                count += vectors(&exchange(&mut conn, &request).await?.ok()?);
            }
            anyhow::Ok(count)
        });
    }
    let mut count = 0;
    let mut outcome = Ok(());
    while let Some(joined) = ingesters.join_next().await {
        match joined.context("an ingester").and_then(|counted| counted) {
            Ok(counted) => count += counted,
            Err(error) => outcome = Err(error),
        }
    }
    over.store(true, Ordering::Relaxed);
    outcome.map(|()| count)
}

fn vectors(answer: &Value) -> u32 {
    answer["data"].as_array().map_or(0, |data| data.len() as u32)
}

/// So many chats at once at a provider that takes a second, which bears them all.
async fn crowds(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(Pace { ttft_ms: 1000, tokens: 1, interval_ms: 1 }).await?;
    let server = bed.serve(&Config::roomy(sim.address)).await?;
    let target = Target { name: "clearway", address: server.address, dialect: Dialect::Chat };
    let mut section = Section::new(
        "Callers at once of a provider that takes 1 s",
        &["callers", "last answer ms"],
    );
    for &callers in &options.crowds {
        let begin = Instant::now();
        let mut crowd = JoinSet::new();
        for caller in 0..callers {
            crowd.spawn(async move {
                let request = target.whole_request(&format!("crowd-{callers}-{caller}"), "hello");
                let mut conn = Conn::open(target.address).await?;
                exchange(&mut conn, &request).await?.ok()
            });
        }
        while let Some(joined) = crowd.join_next().await {
            joined.context("a caller")??;
        }
        let took = begin.elapsed().as_secs_f64() * 1e3;
        section.row([callers.to_string(), number(took)]);
        report.bar(Kind::Timing, format!("{callers} callers of a 1 s provider, ms"), took, 1500.0);
        report.figure(format!("crowd_{callers}_ms"), json!(took));
    }
    report.section(section);
    Ok(())
}
