//! Whether a turn's own time grows with the conversation.
//!
//! Old conversations are first grown to just below the turn in question. Then turns of old and of new conversations are
//! taken alternately, so that both meet the same machine. The provider is the rig's [`Tap`]: its time is subtracted.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::bed::config::Config;
use crate::bed::{Bed, Process, Tools};
use crate::expect::Expected;
use crate::http::{Conn, Request, exchange};
use crate::load::chat_body;
use crate::report::{Kind, Report, Section, number, say};
use crate::stats::Hist;
use crate::tap::{Hold, Script, Tap};

/// Parameters of `turns`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The late turn that is compared with turn 4.
    #[arg(long, default_value_t = 400)]
    turn: u32,
    /// Old conversations.
    #[arg(long, default_value_t = 4)]
    conversations: u32,
    /// Samples of each kind per old conversation.
    #[arg(long, default_value_t = 16)]
    samples: u32,
    /// Characters of what the user says in a turn.
    #[arg(long, default_value_t = 1000)]
    characters: usize,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 150)]
    tokens: u32,
}

const EARLY: u32 = 4;

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    say(&format!("turn {} against turn {EARLY}", options.turn));
    ensure!(options.turn > EARLY + options.samples, "the late turn must lie beyond the samples");
    let bed = Bed::new(tools)?;
    let tap = Tap::start().await?;
    let server = bed.serve(&Config::roomy(tap.address)).await?;
    let mut talker = Talker::new(&tap, &server, options.characters, options.tokens).await?;

    let old: Vec<String> = (0..options.conversations).map(|n| format!("old{n}")).collect();
    // The samples surround the turn in question.
    let grown = options.turn - options.samples / 2;
    let mut growth = Vec::new();
    for turn in 1..=grown {
        let mut hist = Hist::default();
        for who in &old {
            hist.add_us(talker.turn(who).await?);
        }
        if turn.is_power_of_two() {
            growth.push((turn, hist.ms(0.5)));
        }
    }
    let (mut early, mut late) = (Hist::default(), Hist::default());
    for sample in 0..options.samples {
        for who in &old {
            let young = format!("{who}-young{sample}");
            for _ in 1..EARLY {
                talker.turn(&young).await?;
            }
            early.add_us(talker.turn(&young).await?);
            late.add_us(talker.turn(who).await?);
        }
    }
    present(options, &growth, &early, &late, report);
    Ok(())
}

/// Somebody who says a lot, over one connection.
pub(crate) struct Talker<'a> {
    tap: &'a Tap,
    conn: Conn,
    filler: String,
    expected: Expected,
    next: u64,
}

impl<'a> Talker<'a> {
    pub(crate) async fn new(
        tap: &'a Tap,
        server: &Process,
        characters: usize,
        tokens: u32,
    ) -> Result<Self> {
        let words = "what shall we do about it ".repeat(characters / 26 + 1);
        Ok(Self {
            tap,
            conn: Conn::open(server.address).await?,
            filler: words.chars().take(characters).collect(),
            expected: Expected::counted(tokens),
            next: 0,
        })
    }

    /// The turn's own time in microseconds: from request to reply, without the provider's part.
    pub(crate) async fn turn(&mut self, who: &str) -> Result<u64> {
        self.next += 1;
        let script = Script {
            id: self.next,
            tokens: self.expected.tokens,
            interval_ms: 0,
            hold: Hold::Never,
        };
        let request = Request::post("/chat", &chat_body(who, &format!("{} {script}", self.filler)));
        let begin = Instant::now();
        let answer = exchange(&mut self.conn, &request).await?.ok()?;
        let total = begin.elapsed();
        ensure!(answer["reply"] == self.expected.text(), "wrong reply: {answer}");
        let call = self.tap.take(script.id).context("the provider was not called")?;
        let provider = call.finished.context("the provider did not finish")? - call.received;
        Ok(total.saturating_sub(provider).as_micros() as u64)
    }
}

fn present(
    options: &Options,
    growth: &[(u32, f64)],
    early: &Hist,
    late: &Hist,
    report: &mut Report,
) {
    let mut section = Section::new("A turn's own time", &["turn", "p50 ms", "p90 ms", "samples"]);
    for (turn, hist) in [(EARLY, early), (options.turn, late)] {
        section.row([
            turn.to_string(),
            number(hist.ms(0.5)),
            number(hist.ms(0.9)),
            hist.count().to_string(),
        ]);
    }
    let ratio = late.ms(0.5) / early.ms(0.5);
    section.note(format!("turn {} to turn {EARLY}: {}", options.turn, number(ratio)));
    let growth: Vec<String> =
        growth.iter().map(|(turn, ms)| format!("{turn}: {}", number(*ms))).collect();
    section.note(format!("while growing, turn: ms: {}", growth.join(", ")));
    report.section(section);
    report.bar(Kind::Timing, format!("turn {} to turn {EARLY}, times", options.turn), ratio, 1.2);
    report.figure(
        "turns",
        json!({"early_ms": early.ms(0.5), "late_ms": late.ms(0.5), "turn": options.turn, "ratio": ratio}),
    );
}
