//! Whether runs that are over cost those that are not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clearway_core::Priority;
use clearway_core::channel::State;
use clearway_store::Store;
use serde_json::json;

use super::{Disk, Opened, Wanted, claim, commit, spread};
use crate::report::{Kind, Report, Section, number, say};
use crate::stats::Hist;

/// Parameters of `history`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Stops at so many finished runs.
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Or after so many minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Runs between two looks.
    #[arg(long, default_value_t = 20_000)]
    chunk: u64,
    #[command(flatten)]
    disk: Disk,
}

/// Times at some number of finished runs.
#[derive(Debug, Default)]
struct Look {
    finished: u64,
    create: Hist,
    commit: Hist,
    claim: Hist,
}

const AT_ONCE: u64 = 256;
/// Samples of each look, one after the other: their time is their own, not that of a group.
const SAMPLES: u64 = 200;

pub(crate) async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let opened = Opened::new(&options.disk).await?;
    let limit = Duration::from_secs_f64(options.minutes * 60.0);
    let (begin, mut finished) = (Instant::now(), 0);
    let mut looks = vec![look(&*opened.store, 0).await?];
    while finished < options.runs && begin.elapsed() < limit {
        let store = opened.store.clone();
        let chunk = options.chunk.min(options.runs - finished);
        spread(u128::from(finished) + 1, chunk, AT_ONCE, move |numbers| {
            let store = store.clone();
            async move {
                for number in numbers {
                    let mut unused = Look::default();
                    whole_run(&*store, number, "chat", &mut unused).await?;
                }
                Ok(())
            }
        })
        .await?;
        finished += chunk;
        looks.push(look(&*opened.store, finished).await?);
        if looks.len() % 10 == 0 {
            say(&format!("{finished} runs are over"));
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let size = opened.close().await?;
    present(&looks, finished, seconds, size, report);
    Ok(())
}

/// A run of one superstep.
async fn whole_run(store: &dyn Store, number: u128, pool: &str, look: &mut Look) -> Result<()> {
    let wanted = Wanted { number, tenant: "t", pool, priority: Priority::NORMAL, claim: true };
    let begin = Instant::now();
    let mut claim = wanted.create(store).await?.context("a free pool did not give a slot")?;
    look.create.add(begin.elapsed());
    let begin = Instant::now();
    commit(store, &mut claim, &mut State::new(), 0, 1).await?;
    look.commit.add(begin.elapsed());
    Ok(())
}

async fn look(store: &dyn Store, finished: u64) -> Result<Look> {
    let mut look = Look { finished, ..Look::default() };
    let first = (1_u128 << 64) + (u128::from(finished) << 32);
    for n in 0..SAMPLES {
        let number = first + u128::from(n);
        whole_run(store, number, "chat", &mut look).await?;
        let wanted = Wanted {
            number: number + (1 << 20),
            tenant: "t",
            pool: "queue",
            priority: Priority::NORMAL,
            claim: false,
        };
        wanted.create(store).await?;
        let begin = Instant::now();
        let mut claimed = claim(store, "queue", 32).await?;
        look.claim.add(begin.elapsed());
        for claim in &mut claimed {
            commit(store, claim, &mut State::new(), 0, 1).await?;
        }
    }
    Ok(look)
}

fn present(looks: &[Look], finished: u64, seconds: f64, size: u64, report: &mut Report) {
    let mut section = Section::new(
        "Cost of a run beside finished ones, p50 ms, one at a time",
        &["finished runs", "accept and claim", "commit", "claim from a queue"],
    );
    // Not more rows than one reads: the first, the last, and about ten in between.
    let every = (looks.len() / 10).max(1);
    for (n, look) in looks.iter().enumerate() {
        if n % every == 0 || n + 1 == looks.len() {
            let times = [&look.create, &look.commit, &look.claim].map(|hist| number(hist.ms(0.5)));
            section.row(std::iter::once(look.finished.to_string()).chain(times));
        }
    }
    section.note(format!(
        "{finished} runs in {seconds:.0} s ({:.0} per second); file {:.0} MB, {:.0} bytes per run",
        finished as f64 / seconds,
        size as f64 / 1e6,
        size as f64 / finished.max(1) as f64
    ));
    report.section(section);
    // A disk's mood changes more from minute to minute than anything here: halves are compared.
    let half = looks.len() / 2;
    let mean = |looks: &[Look], of: fn(&Look) -> &Hist| {
        looks.iter().map(|look| of(look).ms(0.5)).sum::<f64>() / looks.len().max(1) as f64
    };
    let ratio = |of: fn(&Look) -> &Hist| mean(&looks[half..], of) / mean(&looks[..half.max(1)], of);
    let ratios =
        [ratio(|look| &look.create), ratio(|look| &look.commit), ratio(|look| &look.claim)];
    for (what, ratio) in ["accept", "commit", "claim"].into_iter().zip(ratios) {
        let text = format!("history: {what}, later half to earlier half, times");
        report.bar(Kind::Timing, text, ratio, 1.3);
    }
    report.figure(
        "history",
        json!({"finished": finished, "seconds": seconds, "bytes": size, "ratios": ratios}),
    );
}
