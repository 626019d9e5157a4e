//! Streams side by side: from the simulator directly, through nginx, and through the server.
//!
//! The three take turns within each round, so that whatever else the machine does falls on all of them. Every stream's
//! content is checked byte by byte.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::bed::config::Config;
use crate::bed::{Bed, Pace, Process, Tools};
use crate::health::{Probe, Probed};
use crate::load::{Shot, Target, Volley, volley};
use crate::proc::{self, ThreadWatch};
use crate::report::{Kind, Report, Section, number, say};
use crate::sse::Dialect;

/// Parameters of `streams`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Streams at once; `N@MS` sets the time between tokens for that level.
    #[arg(long, value_delimiter = ',', default_values = ["1", "200", "1000", "5000@100"])]
    levels: Vec<Level>,
    /// Time to the first token.
    #[arg(long, default_value_t = 200)]
    ttft_ms: u64,
    /// Tokens of a reply.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Time between tokens where the level does not say.
    #[arg(long, default_value_t = 20)]
    interval_ms: u64,
    /// How often the three take turns.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Streams of one reader in a turn, one after the other.
    #[arg(long, default_value_t = 2)]
    repeat: u32,
}

/// How many streams at once, and perhaps how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    clients: u32,
    interval_ms: Option<u64>,
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (clients, interval) = match text.split_once('@') {
            Some((clients, interval)) => (clients, Some(interval)),
            None => (text, None),
        };
        let wrong = |_| format!("`{text}` is not N or N@MS");
        let clients = clients.parse().map_err(wrong)?;
        let interval_ms = interval.map(str::parse).transpose().map_err(wrong)?;
        if clients == 0 {
            Err("no streams at all".to_owned())
        } else {
            Ok(Self { clients, interval_ms })
        }
    }
}

pub(crate) async fn run(tools: &Tools, options: &Options, report: &mut Report) -> Result<()> {
    for level in &options.levels {
        let pace = Pace {
            ttft_ms: options.ttft_ms,
            tokens: options.tokens,
            interval_ms: level.interval_ms.unwrap_or(options.interval_ms),
        };
        // A single stream says little: it is repeated until there is something to count.
        let repeat = options.repeat.max(if level.clients < 10 { 10 } else { 0 });
        let volley = Volley { clients: level.clients, repeat, pace };
        say(&format!("{} streams at once, tokens {} ms apart", level.clients, pace.interval_ms));
        measure(tools, volley, options.rounds, report).await?;
    }
    Ok(())
}

/// One of the three, and all that was measured about it.
struct Contender {
    target: Target,
    pids: Vec<u32>,
    shot: Shot,
    cpu: Duration,
    rig_cpu: Duration,
    sim_cpu: Duration,
    foreign_cpu: Duration,
    wall: Duration,
    health: Option<Probed>,
}

impl Contender {
    fn new(target: Target, pids: Vec<u32>) -> Self {
        Self {
            target,
            pids,
            shot: Shot::default(),
            cpu: Duration::ZERO,
            rig_cpu: Duration::ZERO,
            sim_cpu: Duration::ZERO,
            foreign_cpu: Duration::ZERO,
            wall: Duration::ZERO,
            health: None,
        }
    }

    fn per_token_us(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.shot.tokens.max(1) as f64
    }

    /// Tokens per second, ramp and end included.
    fn rate(&self) -> f64 {
        self.shot.tokens as f64 / self.wall.as_secs_f64()
    }

    async fn turn(&mut self, sim: &Process, sent: Volley) -> Result<()> {
        let probe = match self.pids.is_empty() {
            true => None,
            false => Some(Probe::start(self.target.address, "/health")?),
        };
        let me = [std::process::id()];
        let sample =
            || [proc::cpu(&self.pids), proc::cpu(&me), proc::cpu(&[sim.pid]), proc::machine_cpu()];
        let (before, begin) = (sample(), Instant::now());
        let shot = volley(self.target, sent).await;
        let wall = begin.elapsed();
        settle(sim).await?;
        let after = sample();
        let [own, rig, provider, machine] =
            std::array::from_fn(|n| after[n].saturating_sub(before[n]));
        self.cpu += own;
        self.rig_cpu += rig;
        self.sim_cpu += provider;
        self.foreign_cpu += machine.saturating_sub(own + rig + provider);
        self.wall += wall;
        self.shot.merge(shot);
        if let Some(probe) = probe {
            let probed = probe.finish()?;
            let health = self.health.get_or_insert_with(Probed::default);
            health.times.merge(&probed.times);
            health.failures += probed.failures;
        }
        Ok(())
    }
}

/// Waits until the simulator is idle, and a little longer: a server's work does not end with the last byte it sends.
async fn settle(sim: &Process) -> Result<()> {
    for _ in 0..500 {
        if sim.get("/stats").await?["in_flight"] == 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the simulator still has requests in flight 10 s after the last stream")
}

async fn measure(tools: &Tools, sent: Volley, rounds: u32, report: &mut Report) -> Result<()> {
    let bed = Bed::new(tools)?;
    let sim = bed.sim(sent.pace).await?;
    let nginx = bed.nginx(sim.address).await?;
    let server = bed.serve(&Config::roomy(sim.address)).await?;
    let target = |name, address, dialect| Target { name, address, dialect };
    let mut workers = proc::children(nginx.pid);
    workers.push(nginx.pid);
    let mut contenders = [
        Contender::new(target("direct", sim.address, Dialect::OpenAi), Vec::new()),
        Contender::new(target("nginx", nginx.address, Dialect::OpenAi), workers),
        Contender::new(target("clearway", server.address, Dialect::Chat), vec![server.pid]),
    ];
    warm_up(&contenders, sent.pace).await?;
    let rest = proc::threads(server.pid);
    ensure!(rest > 0, "the server has no threads: {}", server.log_end());
    let watch = ThreadWatch::start(server.pid)?;
    sim.post("/stats/reset", &json!({})).await?;
    for round in 0..rounds {
        for n in 0..contenders.len() {
            // Another one begins each round, so that none always follows the same neighbour.
            let index = (n + round as usize) % contenders.len();
            contenders[index].turn(&sim, sent).await?;
        }
    }
    let peak = watch.finish();
    let stats = sim.get("/stats").await?;
    let result = LevelResult {
        contenders,
        rest,
        peak,
        rss_mib: proc::peak_rss_mib(server.pid),
        peak_in_flight: stats["peak_in_flight"].as_u64().context("peak_in_flight")?,
    };
    result.report(sent, report);
    Ok(())
}

/// One stream each, so that nothing is measured for the first time.
async fn warm_up(contenders: &[Contender], pace: Pace) -> Result<()> {
    for contender in contenders {
        let once = Volley { clients: 2, repeat: 1, pace };
        let shot = volley(contender.target, once).await;
        if let Some(error) = shot.errors.first() {
            anyhow::bail!("{}: {error}", contender.target.name);
        }
    }
    Ok(())
}

struct LevelResult {
    contenders: [Contender; 3],
    rest: u64,
    peak: u64,
    rss_mib: f64,
    peak_in_flight: u64,
}

impl LevelResult {
    fn report(&self, sent: Volley, report: &mut Report) {
        let level = sent.clients;
        let title = format!(
            "{level} streams at once ({} ms to the first token, {} tokens, {} ms apart)",
            sent.pace.ttft_ms, sent.pace.tokens, sent.pace.interval_ms
        );
        let columns = [
            "",
            "streams",
            "failed",
            "tokens",
            "first token p50 / p99 ms",
            "added p50 / p99 ms",
            "token late p50 / p99 ms",
            "CPU per token us",
            "health p50 / p99 ms",
            "others' CPU",
        ];
        let mut section = Section::new(title, &columns);
        let [direct, nginx, clearway] = &self.contenders;
        for contender in &self.contenders {
            section.row(row(contender, direct));
        }
        let ratio = clearway.per_token_us(clearway.cpu) / nginx.per_token_us(nginx.cpu);
        section.note(format!("CPU per token, clearway to nginx: {}", number(ratio)));
        let rates =
            self.contenders.each_ref().map(|c| format!("{} {}", c.target.name, number(c.rate())));
        section.note(format!("tokens per second: {}", rates.join(", ")));
        section.note(format!(
            "clearway: peak RSS {} MiB, {} threads at rest, {} at most; simulator: {} in flight at most",
            number(self.rss_mib),
            self.rest,
            self.peak,
            self.peak_in_flight
        ));
        section.note(format!(
            "rig: {} us per token, simulator: {} us",
            number(clearway.per_token_us(clearway.rig_cpu)),
            number(clearway.per_token_us(clearway.sim_cpu))
        ));
        for error in self
            .contenders
            .iter()
            .flat_map(|c| c.shot.errors.iter().take(3).map(move |e| (c.target.name, e)))
        {
            section.note(format!("{}: {}", error.0, error.1));
        }
        report.section(section);
        self.bars(level, ratio, report);
    }

    fn bars(&self, level: u32, ratio: f64, report: &mut Report) {
        let [direct, nginx, clearway] = &self.contenders;
        let name = |what: &str| format!("{level} streams: {what}");
        report.none_of(name("failed or wrong streams"), clearway.shot.errors.len());
        report.none_of(
            name("deltas beyond one per token"),
            clearway.shot.deltas.abs_diff(clearway.shot.tokens) as usize,
        );
        report.none_of(
            name("threads beyond those at rest"),
            self.peak.saturating_sub(self.rest) as usize,
        );
        let health = clearway.health.as_ref();
        report.none_of(name("failed health probes"), health.map_or(0, |health| health.failures));
        let p99 = health.map_or(f64::NAN, |health| health.times.ms(0.99));
        report.bar(Kind::Timing, name("health p99, ms"), p99, 10.0);
        if level >= 200 {
            // With few streams processor time is a handful of ticks.
            report.bar(Kind::Timing, name("CPU per token, times nginx"), ratio, 2.0);
        }
        if level == 1000 {
            report.bar(Kind::Hard, name("peak RSS, MiB"), self.rss_mib, 150.0);
        }
        let added = |share| clearway.shot.first.ms(share) - direct.shot.first.ms(share);
        let health_of =
            |contender: &Contender| contender.health.as_ref().map(|health| health.times.ms(0.99));
        report.figure(
            format!("streams_{level}"),
            json!({
                "streams": clearway.shot.streams,
                "tokens": clearway.shot.tokens,
                "errors": clearway.shot.errors.len(),
                "added_first_token_ms": {"p50": added(0.5), "p99": added(0.99)},
                "first_token_ms": {
                    "direct": [direct.shot.first.ms(0.5), direct.shot.first.ms(0.99)],
                    "nginx": [nginx.shot.first.ms(0.5), nginx.shot.first.ms(0.99)],
                    "clearway": [clearway.shot.first.ms(0.5), clearway.shot.first.ms(0.99)],
                },
                "cpu_per_token_us": {
                    "nginx": nginx.per_token_us(nginx.cpu),
                    "clearway": clearway.per_token_us(clearway.cpu),
                    "ratio": ratio,
                },
                "tokens_per_s": {"direct": direct.rate(), "nginx": nginx.rate(), "clearway": clearway.rate()},
                "health_p99_ms": {"nginx": health_of(nginx), "clearway": health_of(clearway)},
                "peak_rss_mib": self.rss_mib,
                "threads": {"rest": self.rest, "peak": self.peak},
                "peak_in_flight": self.peak_in_flight,
            }),
        );
    }
}

fn row(contender: &Contender, direct: &Contender) -> [String; 10] {
    let shot = &contender.shot;
    let pair =
        |hist: &crate::stats::Hist| format!("{} / {}", number(hist.ms(0.5)), number(hist.ms(0.99)));
    let added = |share| number(shot.first.ms(share) - direct.shot.first.ms(share));
    let is_direct = contender.pids.is_empty();
    let dash = || "-".to_owned();
    [
        contender.target.name.to_owned(),
        shot.streams.to_string(),
        shot.errors.len().to_string(),
        shot.tokens.to_string(),
        pair(&shot.first),
        if is_direct { dash() } else { format!("{} / {}", added(0.5), added(0.99)) },
        pair(&shot.lag),
        if is_direct { dash() } else { number(contender.per_token_us(contender.cpu)) },
        contender.health.as_ref().map_or_else(dash, |health| pair(&health.times)),
        format!(
            "{} %",
            number(contender.foreign_cpu.as_secs_f64() / contender.wall.as_secs_f64() * 100.0)
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_may_carry_a_pace() {
        assert_eq!("200".parse(), Ok(Level { clients: 200, interval_ms: None }));
        assert_eq!("5000@100".parse(), Ok(Level { clients: 5000, interval_ms: Some(100) }));
        assert!("0".parse::<Level>().is_err());
        assert!("5@".parse::<Level>().is_err());
    }
}
