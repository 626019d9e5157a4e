//! How long it takes to choose who is next, when very many wait.

use std::time::Instant;

use anyhow::{Result, ensure};
use clearway_core::Priority;
use serde_json::json;

use super::{Disk, Opened, Wanted, claim, spread};
use crate::report::{Kind, Report, Section, number, say};
use crate::stats::Hist;

/// Parameters of `claims`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs that wait.
    #[arg(long, default_value_t = 200_000)]
    waiting: u64,
    /// Tenants that they belong to.
    #[arg(long, default_value_t = 200)]
    tenants: u64,
    /// Slots that are free at each claim.
    #[arg(long, default_value_t = 32)]
    slots: u32,
    /// Claims.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    #[command(flatten)]
    disk: Disk,
}

const POOL: &str = "queue";

pub(crate) async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let opened = Opened::new(&options.disk).await?;
    say(&format!("{} runs begin to wait", options.waiting));
    let begin = Instant::now();
    let (store, tenants) = (opened.store.clone(), u128::from(options.tenants));
    spread(1, options.waiting, 512, move |numbers| {
        let store = store.clone();
        async move {
            for number in numbers {
                let tenant = format!("t{}", number % tenants);
                let level = u8::try_from(number % 5).unwrap_or(0) + 1;
                let priority = Priority::new(level).unwrap_or(Priority::NORMAL);
                let wanted = Wanted { number, tenant: &tenant, pool: POOL, priority, claim: false };
                wanted.create(&*store).await?;
            }
            Ok(())
        }
    })
    .await?;
    let filled = begin.elapsed();
    let mut times = Hist::default();
    for _ in 0..options.rounds {
        let begin = Instant::now();
        let claimed = claim(&*opened.store, POOL, options.slots).await?;
        times.add(begin.elapsed());
        ensure!(claimed.len() == options.slots as usize, "{} claimed", claimed.len());
    }
    let size = opened.close().await?;

    let mut section = Section::new(
        format!("Claims of {} out of {} waiting runs", options.slots, options.waiting),
        &["p50 ms", "p99 ms", "max ms"],
    );
    section.row([times.ms(0.5), times.ms(0.99), times.max_ms()].map(number));
    section.note(format!(
        "{} tenants, five priorities, {} claims; {:.0} runs accepted per second before; file {:.0} MB",
        options.tenants,
        options.rounds,
        options.waiting as f64 / filled.as_secs_f64(),
        size as f64 / 1e6
    ));
    report.section(section);
    report.bar(Kind::Timing, "claim p50, ms", times.ms(0.5), 15.0);
    report.figure(
        "claims",
        json!({"waiting": options.waiting, "p50_ms": times.ms(0.5), "p99_ms": times.ms(0.99),
               "max_ms": times.max_ms(), "bytes": size}),
    );
    Ok(())
}
