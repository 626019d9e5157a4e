//! Durable supersteps of trivial runs, and volatile output of many streams.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clearway_core::channel::State;
use clearway_core::event::{Body, Delta as Token, Event, Part, Segment};
use clearway_core::{Priority, RunId, Timestamp};
use clearway_store::{OutputSegment, Store};
use serde_json::json;
use uuid::Uuid;

use super::{Disk, Opened, Wanted, commit, spread};
use crate::overhead::fsync_times;
use crate::report::{Kind, Report, Section, number};
use crate::stats::Hist;

/// Parameters of `store`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs of five supersteps.
    #[arg(long, default_value_t = 20_000)]
    runs: u64,
    /// Of them at the same time.
    #[arg(long, default_value_t = 256)]
    at_once: u64,
    /// Streams whose output is stored.
    #[arg(long, default_value_t = 1000)]
    streams: u64,
    #[command(flatten)]
    disk: Disk,
}

const STEPS: u64 = 5;
/// Rounds of output of each stream.
const ROUNDS: u64 = 200;

pub(crate) async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let opened = Opened::new(&options.disk).await?;
    let sync = fsync_times(opened.folder.path())?;
    let begin = Instant::now();
    let store = opened.store.clone();
    let parts = spread(1, options.runs, options.at_once, move |numbers| {
        let store = store.clone();
        async move {
            let mut times = Hist::default();
            for number in numbers {
                one_run(&*store, number, &mut times).await?;
            }
            Ok(times)
        }
    });
    let mut times = Hist::default();
    parts.await?.iter().for_each(|part| times.merge(part));
    let seconds = begin.elapsed().as_secs_f64();
    let steps = (options.runs * STEPS) as f64 / seconds;
    let output = output(&opened.store, options).await?;
    let size = opened.close().await?;

    let mut section = Section::new("The store alone", &["", ""]);
    let mut row = |what: &str, value: f64| section.row([what.to_owned(), number(value)]);
    row("supersteps per second", steps);
    row("runs per second", options.runs as f64 / seconds);
    row("commit p50, ms", times.ms(0.5));
    row("commit p99, ms", times.ms(0.99));
    row("write + fdatasync of 4 KiB p50, ms", sync.ms(0.5));
    row("volatile output, us per segment", output);
    row("file, MB", size as f64 / 1e6);
    section.note(format!(
        "{} runs of {STEPS} supersteps, {} at once; {} streams",
        options.runs, options.at_once, options.streams
    ));
    report.section(section);
    report.bar(
        Kind::Timing,
        "store: supersteps missing to 12 000 per second",
        12_000.0 - steps,
        0.0,
    );
    report.figure(
        "store",
        json!({
            "supersteps_per_s": steps, "commit_ms": {"p50": times.ms(0.5), "p99": times.ms(0.99)},
            "fsync_ms": sync.ms(0.5), "output_us": output, "bytes": size,
        }),
    );
    Ok(())
}

async fn one_run(store: &dyn Store, number: u128, times: &mut Hist) -> Result<()> {
    let wanted =
        Wanted { number, tenant: "t", pool: "chat", priority: Priority::NORMAL, claim: true };
    let mut claim = wanted.create(store).await?.context("a free pool did not give a slot")?;
    let mut state = State::new();
    for step in 0..STEPS {
        let begin = Instant::now();
        commit(store, &mut claim, &mut state, step, STEPS).await?;
        times.add(begin.elapsed());
    }
    Ok(())
}

/// All streams' output in one call per round; microseconds per segment.
async fn output(store: &Arc<dyn Store>, options: &Options) -> Result<f64> {
    let first = 1_000_000_000_u128;
    for n in 0..options.streams {
        let wanted = Wanted {
            number: first + u128::from(n),
            tenant: "t",
            pool: "chat",
            priority: Priority::NORMAL,
            claim: true,
        };
        wanted.create(&**store).await?;
    }
    let message = Uuid::from_u128(7);
    let begin = Instant::now();
    for round in 0..ROUNDS {
        let mut output = Vec::new();
        for n in 0..options.streams {
            let tokens = [0, 1, 2].map(|token| {
                let body = Body::Delta(Token::new(message, Part::Text, "token "));
                Event::new(1 + round * 3 + token, 1, Timestamp(0), body)
            });
            let segment = Segment::encode(&tokens).context("tokens make a segment")?;
            let run = RunId(Uuid::from_u128(first + u128::from(n)));
            output.push(OutputSegment { run, segment });
        }
        store.append(output).await?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / (options.streams * ROUNDS).max(1) as f64)
}
