//! What the server adds to a call when it has little to do.
//!
//! The provider is the rig's own [`Tap`], so provider time is known exactly and subtracted call by call: percentiles
//! are of what was added, not differences of percentiles. The same calls straight to the tap show the rig's own share.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::bed::config::Config;
use crate::bed::{Bed, Tools};
use crate::expect::Expected;
use crate::http::{Conn, exchange};
use crate::load::{Client, Target};
use crate::report::{Kind, Report, Section, number, say};
use crate::sse::Dialect;
use crate::stats::Hist;
use crate::tap::{Hold, Script, Tap};

/// Parameters of `overhead`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Calls of each kind to each contender.
    #[arg(long, default_value_t = 400)]
    calls: u32,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 32)]
    tokens: u32,
    /// Time between tokens.
    #[arg(long, default_value_t = 2)]
    interval_ms: u64,
}

/// What was added to the calls of one contender.
#[derive(Debug, Default)]
struct Added {
    /// To a whole call: all of its time but the provider's.
    whole: Hist,
    /// Until the first token of a stream, from the provider's first write.
    first: Hist,
    /// To each token after the first.
    token: Hist,
    /// To the end of a stream.
    end: Hist,
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say("overhead at low load");
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    let server = bed.serve(&Config::roomy(tap.address)).await?;
    let targets = [
        Target { name: "direct", address: tap.address, dialect: Dialect::OpenAi },
        Target { name: "clearway", address: server.address, dialect: Dialect::Chat },
    ];
    let mut added = [Added::default(), Added::default()];
    let mut disk = SyncProbe::open(&bed.data())?;
    let mut next = 0;
    for round in 0..options.calls + WARM {
        for (target, added) in targets.iter().zip(&mut added) {
            let mut script = |interval_ms| {
                next += 1;
                Script { id: next, tokens: options.tokens, interval_ms, hold: Hold::Never }
            };
            let mut scratch = Added::default();
            let into = if round < WARM { &mut scratch } else { added };
            whole_call(&tap, target, script(1), into).await.context("a whole call")?;
            if target.dialect == Dialect::OpenAi {
                // Nobody has written for as long as the provider took, as before the commit at the end of
                // a call: a shared disk that has nothing to do is slower than one that is kept busy.
                disk.sample()?;
            }
            stream_call(&tap, target, script(options.interval_ms), into)
                .await
                .context("a stream")?;
        }
    }
    present(&added, &disk.times, report);
    Ok(())
}

/// Calls that only warm up: connections, caches, the first pages of the database.
const WARM: u32 = 20;

async fn whole_call(tap: &Tap, target: &Target, script: Script, added: &mut Added) -> Result<()> {
    let request = target.whole_request(&format!("w{}", script.id), &script.to_string());
    let mut conn = Conn::open(target.address).await?;
    let begin = Instant::now();
    let answer = exchange(&mut conn, &request).await?.ok()?;
    let total = begin.elapsed();
    let expected = Expected::counted(script.tokens);
    ensure!(target.reply(&answer) == Some(expected.text()), "wrong reply: {answer}");
    let call = tap.take(script.id).context("the provider was not called")?;
    let provider = call.finished.context("the provider did not finish")? - call.received;
    added.whole.add(total.saturating_sub(provider));
    Ok(())
}

async fn stream_call(tap: &Tap, target: &Target, script: Script, added: &mut Added) -> Result<()> {
    let request = target.stream_request(&format!("s{}", script.id), &script.to_string());
    let mut client = Client::default();
    let seen = client.stream(target, &request, &Expected::counted(script.tokens)).await?;
    let call = tap.take(script.id).context("the provider was not called")?;
    let finished = call.finished.context("the provider did not finish")?;
    for (n, (sent, us)) in call.sent.iter().zip(&client.arrivals_us).enumerate() {
        let arrived = seen.begin + Duration::from_micros((*us).into());
        let late = arrived.saturating_duration_since(*sent);
        if n == 0 {
            let before = call.received.saturating_duration_since(seen.begin);
            added.first.add(before + late);
        } else {
            added.token.add(late);
        }
    }
    added.end.add((seen.begin + seen.total).saturating_duration_since(finished));
    Ok(())
}

/// What a disk takes to make 4 KiB durable, which no durable call can be faster than.
struct SyncProbe {
    file: File,
    /// Bytes written.
    end: u64,
    times: Hist,
}

impl SyncProbe {
    fn open(folder: &Path) -> Result<Self> {
        // Its name goes at once, and the file with the probe.
        let file = tempfile::tempfile_in(folder).context("the fsync probe")?;
        Ok(Self { file, end: 0, times: Hist::default() })
    }

    fn sample(&mut self) -> Result<()> {
        let block = [7; 4096];
        let begin = Instant::now();
        self.file.write_all_at(&block, self.end)?;
        self.file.sync_data()?;
        self.times.add(begin.elapsed());
        self.end += block.len() as u64;
        Ok(())
    }
}

/// The same for a disk that is kept busy: one after the other.
pub(crate) fn fsync_times(folder: &Path) -> Result<Hist> {
    let mut probe = SyncProbe::open(folder)?;
    for _ in 0..200 {
        probe.sample()?;
    }
    Ok(probe.times)
}

fn present(added: &[Added; 2], fsync: &Hist, report: &mut Report) {
    let [direct, clearway] = added;
    let pair = |hist: &Hist| format!("{} / {}", number(hist.ms(0.5)), number(hist.ms(0.99)));
    let mut section = Section::new(
        "Added time at low load, p50 / p99 ms (provider time subtracted call by call)",
        &["", "whole call", "first token", "each further token", "end of stream"],
    );
    for (name, added) in [("direct", direct), ("clearway", clearway)] {
        let cells = [&added.whole, &added.first, &added.token, &added.end].map(pair);
        section.row(std::iter::once(name.to_owned()).chain(cells));
    }
    section.note(format!("{} calls of each kind", clearway.whole.count()));
    section
        .note(format!("making 4 KiB durable on this disk (write + fdatasync): {} ms", pair(fsync)));
    report.section(section);

    let less = |get: fn(&Added) -> &Hist, share| get(clearway).ms(share) - get(direct).ms(share);
    let durable = fsync.ms(0.5);
    report.bar(
        Kind::Timing,
        "whole call, added p50, ms (one fsync + 0.3)",
        less(|a| &a.whole, 0.5),
        durable + 0.3,
    );
    report.bar(
        Kind::Timing,
        "whole call, added p99, ms (one fsync p99 + 1)",
        less(|a| &a.whole, 0.99),
        fsync.ms(0.99) + 1.0,
    );
    report.bar(Kind::Timing, "streamed token, added p99, ms", less(|a| &a.token, 0.99), 0.2);
    let both = |hist: &Hist| json!({"p50": hist.ms(0.5), "p99": hist.ms(0.99)});
    let figures = |added: &Added| {
        json!({
            "whole_ms": both(&added.whole),
            "first_token_ms": both(&added.first),
            "token_ms": both(&added.token),
            "end_ms": both(&added.end),
        })
    };
    report.figure(
        "overhead",
        json!({"direct": figures(direct), "clearway": figures(clearway), "fsync_ms": both(fsync)}),
    );
}
