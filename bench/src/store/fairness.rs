//! Who gets the next slot: a small tenant beside one that floods.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clearway_core::channel::State;
use clearway_core::{Priority, RunId};
use clearway_store::Claim;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant as Tick, sleep, sleep_until};
use uuid::Uuid;

use super::{Disk, Opened, Wanted, claim, commit, spread};
use crate::report::{Kind, Report, Section, number};
use crate::stats::Hist;

/// Parameters of `fairness`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Runs of the tenant that floods, for each of the small one.
    #[arg(long, default_value_t = 1000)]
    flood: u64,
    /// Runs of the small tenant.
    #[arg(long, default_value_t = 50)]
    small: u64,
    #[arg(long, default_value_t = 16)]
    slots: u32,
    /// How long a run holds its slot.
    #[arg(long, default_value_t = 200)]
    hold_ms: u64,
    #[command(flatten)]
    disk: Disk,
}

const POOL: &str = "queue";
const SMALL: u128 = 1 << 64;

pub(crate) async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let opened = Opened::new(&options.disk).await?;
    let store = opened.store.clone();
    let hold = Duration::from_millis(options.hold_ms);
    // Enough that it never runs dry, and at least as many as were asked for.
    let spent = options.small * u64::from(options.slots);
    spread(1, options.flood.max(spent * 2), 256, |numbers| {
        let store = store.clone();
        async move {
            for number in numbers {
                let priority = Priority::NORMAL;
                let wanted = Wanted { number, tenant: "flood", pool: POOL, priority, claim: false };
                wanted.create(&*store).await?;
            }
            Ok(())
        }
    })
    .await?;

    let mut asked: HashMap<RunId, Instant> = HashMap::new();
    let (mut waited, mut floods) = (Hist::default(), 0_u64);
    let mut running: JoinSet<Result<()>> = JoinSet::new();
    let mut next_small = Tick::now() + hold;
    let mut sent = 0;
    // As the engine does it: whenever a slot frees itself, and whenever a run comes.
    while waited.count() < options.small {
        let free = options.slots.saturating_sub(u32::try_from(running.len()).unwrap_or(u32::MAX));
        if free > 0 {
            for (n, claimed) in claim(&*store, POOL, free).await?.into_iter().enumerate() {
                match asked.remove(&claimed.record.id) {
                    Some(at) => waited.add(at.elapsed()),
                    None => floods += 1,
                }
                // At first all slots fill at once; from then on they are to free themselves one by one.
                let first = floods <= u64::from(options.slots);
                let share = (n as u32 + 1) * hold / options.slots;
                let store = store.clone();
                running.spawn(work(store, claimed, if first { share } else { hold }));
            }
        }
        tokio::select! {
            done = running.join_next() => done.context("no slot is taken")?.context("a run broke")??,
            () = sleep_until(next_small), if sent < options.small => {
                let number = SMALL + u128::from(sent);
                asked.insert(RunId(Uuid::from_u128(number)), Instant::now());
                let priority = Priority::NORMAL;
                let wanted =
                    Wanted { number, tenant: "small", pool: POOL, priority, claim: false };
                wanted.create(&*store).await?;
                sent += 1;
                next_small += hold * 37 / 100;
            }
        }
    }
    running.abort_all();
    while running.join_next().await.is_some() {}
    drop(store);
    opened.close().await?;

    let bound = 2.0 * hold.as_secs_f64() * 1e3 / f64::from(options.slots);
    let mut section = Section::new(
        format!("A small tenant beside a flood of {} to 1", options.flood),
        &["waited p50 ms", "p90 ms", "max ms", "twice the mean run divided by slots, ms"],
    );
    section.row([waited.ms(0.5), waited.ms(0.9), waited.max_ms(), bound].map(number));
    section.note(format!(
        "{} slots held for {} ms each, {} runs of the small tenant beside {floods} of the other",
        options.slots,
        options.hold_ms,
        waited.count()
    ));
    report.section(section);
    report.bar(Kind::Timing, "fairness: wait of the small tenant p90, ms", waited.ms(0.9), bound);
    report.figure(
        "fairness",
        json!({"p50_ms": waited.ms(0.5), "p90_ms": waited.ms(0.9), "max_ms": waited.max_ms(), "bound_ms": bound}),
    );
    Ok(())
}

async fn work(
    store: std::sync::Arc<dyn clearway_store::Store>,
    mut claimed: Claim,
    hold: Duration,
) -> Result<()> {
    sleep(hold).await;
    commit(&*store, &mut claimed, &mut State::new(), 0, 1).await
}
