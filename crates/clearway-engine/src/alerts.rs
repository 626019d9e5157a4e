//! Alerts: somebody is told when a measurement stays beyond its threshold.
//!
//! The configured measurements are taken every few seconds. One that has been beyond its threshold for the whole of
//! `hold` raises an alert, and one that has been within it for as long again clears it. Both are told in the log and, if
//! there is an address, by a signed request like that of a webhook. Those that are raised stand in
//! [`Engine::alerts`](crate::Engine::alerts).
//!
//! **Invariant:** a receiver that hangs delays the next message and no measurement; what waits to be told is bounded.
//!
//! Not here: runs that need somebody (`control`), and Prometheus, whose rules are in the documentation. Nothing is kept
//! across a restart: what still holds then is raised again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clearway_core::Timestamp;
use clearway_store::DeliveryOutcome;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::engine::{Inner, bounded};
use crate::health::Process;
use crate::live::lock;

/// Which measurements are looked at, and who is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alerts {
    /// Told besides the log.
    pub webhook: Option<String>,
    /// So long something must be beyond its threshold.
    pub hold: Duration,
    pub thresholds: Vec<(Measure, f64)>,
}

/// What is measured. Each is beyond its threshold when it is above, [`Measure::DiskFree`] when it is below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Bytes of the process in memory.
    Memory,
    /// Of the open files that the system allows, the share that is open: sockets are files, too.
    OpenFiles,
    /// OS threads more than after the start, which there should never be.
    ExtraThreads,
    /// Seconds by which the scheduler is late.
    SchedulerLag,
    /// Bytes left on the disk under the data.
    DiskFree,
    /// The share of a pool's queue that is full.
    Queue,
    /// Of the runs that ended within [`WINDOW`], the share that failed or ran out of time.
    FailedRuns,
    /// 1 for a provider whose breaker is open, for whatever model.
    Breaker,
}

impl Measure {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::OpenFiles => "open_files",
            Self::ExtraThreads => "extra_threads",
            Self::SchedulerLag => "scheduler_lag",
            Self::DiskFree => "disk_free",
            Self::Queue => "queue",
            Self::FailedRuns => "failed_runs",
            Self::Breaker => "breaker",
        }
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Memory => "bytes of memory",
            Self::OpenFiles => "the share of open files that are in use",
            Self::ExtraThreads => "OS threads more than at the start",
            Self::SchedulerLag => "seconds by which the scheduler is late",
            Self::DiskFree => "bytes left on the disk",
            Self::Queue => "the share of the queue that is full",
            Self::FailedRuns => "the share of runs that fail",
            Self::Breaker => "breakers open",
        }
    }

    fn beyond(self, value: f64, threshold: f64) -> bool {
        if matches!(self, Self::DiskFree) { value < threshold } else { value > threshold }
    }
}

/// An alert that is raised or was cleared.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub measure: Measure,
    /// A pool or a provider; empty for the whole server.
    pub subject: String,
    pub value: f64,
    pub threshold: f64,
    pub raised_at: Timestamp,
    pub cleared_at: Option<Timestamp>,
}

impl Alert {
    /// One sentence.
    pub fn text(&self) -> String {
        let of = match self.subject.as_str() {
            "" => String::new(),
            subject => format!(" of `{subject}`"),
        };
        let (what, value) = (self.measure.what(), plain(self.value));
        let threshold = plain(self.threshold);
        let bound = if self.measure == Measure::DiskFree { "at least" } else { "at most" };
        match self.cleared_at {
            None => format!("{what}{of}: {value}, and it should be {bound} {threshold}"),
            Some(_) => format!("{what}{of}: {value}, which is within {threshold} again"),
        }
    }

    pub fn to_json(&self) -> Value {
        json!({
            "alert": self.measure.as_str(),
            "subject": self.subject,
            "state": if self.cleared_at.is_some() { "cleared" } else { "raised" },
            "value": self.value,
            "threshold": self.threshold,
            "raised_at": self.raised_at.to_string(),
            "cleared_at": self.cleared_at.map(|at| at.to_string()),
            "detail": self.text(),
        })
    }
}

/// No more digits than somebody reads.
fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// One measurement.
#[derive(Clone, Debug)]
struct Reading {
    measure: Measure,
    subject: String,
    value: f64,
}

/// Decides from readings alone.
#[derive(Debug, Default)]
struct Judge {
    options: Alerts,
    standing: BTreeMap<(Measure, String), Standing>,
}

#[derive(Debug)]
struct Standing {
    /// Since when it has been on the other side than the alert says.
    turned: Option<Timestamp>,
    raised: Option<Alert>,
}

impl Judge {
    /// What is to be told after these readings, which are all there are.
    fn judge(&mut self, readings: &[Reading], now: Timestamp) -> Vec<Alert> {
        let mut news = Vec::new();
        for (measure, threshold) in &self.options.thresholds {
            for reading in readings.iter().filter(|reading| reading.measure == *measure) {
                let key = (*measure, reading.subject.clone());
                let standing =
                    self.standing.entry(key).or_insert(Standing { turned: None, raised: None });
                let beyond = measure.beyond(reading.value, *threshold);
                if let Some(alert) = &mut standing.raised
                    && beyond
                {
                    alert.value = reading.value;
                }
                if beyond == standing.raised.is_some() {
                    standing.turned = None;
                    continue;
                }
                let turned = *standing.turned.get_or_insert(now);
                if now.since(turned) < self.options.hold {
                    continue;
                }
                standing.turned = None;
                let (subject, value) = (reading.subject.clone(), reading.value);
                let told = match standing.raised.take() {
                    Some(alert) => Alert { value, cleared_at: Some(now), ..alert },
                    None => {
                        let alert = Alert {
                            measure: *measure,
                            subject,
                            value,
                            threshold: *threshold,
                            raised_at: now,
                            cleared_at: None,
                        };
                        standing.raised = Some(alert.clone());
                        alert
                    }
                };
                news.push(told);
            }
        }
        // What is not there any more needs nobody.
        let there = |measure: Measure, subject: &str| {
            readings.iter().any(|reading| reading.measure == measure && reading.subject == subject)
        };
        self.standing.retain(|(measure, subject), _| there(*measure, subject));
        news
    }

    fn raised(&self) -> Vec<Alert> {
        self.standing.values().filter_map(|standing| standing.raised.clone()).collect()
    }
}

/// The share of failures among the ends of the last while.
#[derive(Debug, Default)]
struct Ends(VecDeque<(Timestamp, u64, u64)>);

impl Ends {
    /// `None` while too few have ended.
    fn failed(&mut self, now: Timestamp, ended: u64, failed: u64) -> Option<f64> {
        self.0.push_back((now, ended, failed));
        // The one before the window is what the window is counted from.
        while self.0.get(1).is_some_and(|(at, ..)| now.since(*at) >= WINDOW) {
            self.0.pop_front();
        }
        let (_, before, failed_before) = self.0[0];
        let (ended, failed) = (ended - before, failed - failed_before);
        (ended >= FEW_ENDS).then(|| failed as f64 / ended as f64)
    }
}

impl Inner {
    /// The standing task that measures and tells. It starts with the server, and ends at once without a threshold.
    pub(crate) async fn watch_alerts(self: Arc<Self>) {
        let options = self.options.alerts.clone();
        if options.thresholds.is_empty() {
            return;
        }
        let (tell, told) = mpsc::channel(WAITING);
        let measuring = async {
            let every = (options.hold / 4).clamp(SHORTEST, LONGEST);
            let mut judge = Judge { options: options.clone(), ..Judge::default() };
            let mut ends = Ends::default();
            loop {
                tokio::time::sleep(every).await;
                let readings = self.readings(&options, &mut ends).await;
                let news = judge.judge(&readings, self.clocks.now());
                *lock(&self.alerts) = judge.raised();
                for alert in news {
                    log(&alert);
                    if options.webhook.is_some() && tell.try_send(alert).is_err() {
                        tracing::error!("an alert is not sent: {WAITING} others wait to be");
                    }
                }
            }
        };
        tokio::select! {
            () = self.tasks.soft.cancelled() => {}
            () = measuring => {}
            () = self.send_alerts(options.webhook.as_deref(), told) => {}
        }
    }

    async fn readings(&self, options: &Alerts, ends: &mut Ends) -> Vec<Reading> {
        let wanted = |measure| options.thresholds.iter().any(|(other, _)| *other == measure);
        let mut readings = Vec::new();
        let mut add = |measure, subject: &str, value| {
            if wanted(measure) {
                readings.push(Reading { measure, subject: subject.to_owned(), value });
            }
        };
        // Listing the open files of a busy server takes a while, and all lanes may be taken.
        let measured = tokio::time::timeout(LONGEST, self.options.lanes.run(Process::measure));
        if let Ok(Some(process)) = measured.await {
            let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
            let extra = i64::from(process.os_threads)
                - i64::from(self.threads_at_start.load(Ordering::Relaxed));
            add(Measure::Memory, "", process.memory_bytes as f64);
            add(Measure::ExtraThreads, "", extra.max(0) as f64);
            if let Some(limit) = limit.current.filter(|limit| *limit > 0) {
                add(Measure::OpenFiles, "", f64::from(process.open_files) / limit as f64);
            }
        }
        add(Measure::SchedulerLag, "", self.watchdog.lag.now().as_secs_f64());
        for pool in self.pool_views().iter().filter(|pool| pool.queue_limit > 0) {
            let queued = f64::from(pool.ready + pool.blocked);
            add(Measure::Queue, &pool.name, queued / f64::from(pool.queue_limit));
        }
        for provider in self.upstream.provider_views() {
            let open = u8::from(provider.breaker.state != "closed");
            add(Measure::Breaker, &provider.name, f64::from(open));
        }
        let (ended, failed) = self.metrics.ends();
        let share = ends.failed(self.clocks.now(), ended, failed);
        add(Measure::FailedRuns, "", share.unwrap_or(0.0));
        if wanted(Measure::DiskFree)
            && let Ok(info) = bounded(self.store.info()).await
            && let Some(free) = info.disk_free_bytes
        {
            add(Measure::DiskFree, "", free as f64);
        }
        readings
    }

    /// One after the other: that something is over must not be told before that it is.
    async fn send_alerts(&self, webhook: Option<&str>, mut told: mpsc::Receiver<Alert>) {
        let Some(url) = webhook else { return std::future::pending().await };
        while let Some(alert) = told.recv().await {
            let id = self.ids.random();
            let mut attempt = 0;
            loop {
                let now = self.clocks.now();
                let body = json!({
                    "type": if alert.cleared_at.is_some() { "alert.cleared" } else { "alert.raised" },
                    "delivery_id": id.to_string(),
                    "attempt": attempt + 1,
                    "created_at": now.to_string(),
                    "alert": alert.to_json(),
                });
                match self.webhooks.tell(url, "alert", &id.to_string(), &body, attempt, now).await {
                    DeliveryOutcome::Done => break,
                    DeliveryOutcome::Retry { after, error } => {
                        tracing::warn!("an alert could not be sent, trying again: {error}");
                        tokio::time::sleep(after).await;
                    }
                    DeliveryOutcome::Dead { error } => {
                        tracing::error!("an alert could not be sent: {error}");
                        break;
                    }
                }
                attempt += 1;
            }
        }
    }
}

fn log(alert: &Alert) {
    let (name, subject) = (alert.measure.as_str(), alert.subject.as_str());
    let (value, threshold) = (alert.value, alert.threshold);
    match alert.cleared_at {
        None => {
            tracing::error!(
                alert = name,
                subject,
                value,
                threshold,
                "alert raised: {}",
                alert.text()
            );
        }
        Some(_) => {
            tracing::info!(
                alert = name,
                subject,
                value,
                threshold,
                "alert cleared: {}",
                alert.text()
            );
        }
    }
}

/// How long an end of a run counts.
const WINDOW: Duration = Duration::from_secs(600);
/// A share of fewer ends says nothing.
const FEW_ENDS: u64 = 10;
/// Alerts that wait to be sent.
const WAITING: usize = 64;
/// Between two looks.
const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(measure: Measure, threshold: f64) -> Judge {
        let options = Alerts {
            webhook: None,
            hold: Duration::from_secs(10),
            thresholds: vec![(measure, threshold)],
        };
        Judge { options, ..Judge::default() }
    }

    fn at(second: i64, judge: &mut Judge, values: &[(&str, f64)]) -> Vec<(String, bool)> {
        let measure = judge.options.thresholds[0].0;
        let readings: Vec<Reading> = values
            .iter()
            .map(|(subject, value)| Reading {
                measure,
                subject: (*subject).to_owned(),
                value: *value,
            })
            .collect();
        let news = judge.judge(&readings, Timestamp(second * 1000));
        news.into_iter().map(|alert| (alert.subject, alert.cleared_at.is_none())).collect()
    }

    #[test]
    fn an_alert_needs_the_whole_of_its_time_and_so_does_its_end() {
        let mut judge = judge(Measure::Queue, 0.8);
        assert!(at(0, &mut judge, &[("chat", 0.9), ("campaigns", 0.1)]).is_empty());
        // A break in between: it counts anew.
        assert!(at(9, &mut judge, &[("chat", 0.8), ("campaigns", 0.1)]).is_empty());
        assert!(at(10, &mut judge, &[("chat", 0.9), ("campaigns", 0.1)]).is_empty());
        assert!(at(19, &mut judge, &[("chat", 1.0), ("campaigns", 0.1)]).is_empty());
        let raised = at(20, &mut judge, &[("chat", 1.0), ("campaigns", 0.1)]);
        assert_eq!(raised, [("chat".to_owned(), true)]);
        // Told once.
        assert!(at(90, &mut judge, &[("chat", 1.0), ("campaigns", 0.1)]).is_empty());
        assert_eq!(judge.raised().len(), 1);
        assert!(at(91, &mut judge, &[("chat", 0.2), ("campaigns", 0.1)]).is_empty());
        assert_eq!(at(101, &mut judge, &[("chat", 0.2)]), [("chat".to_owned(), false)]);
        assert!(judge.raised().is_empty());
    }

    #[test]
    fn little_left_is_beyond_and_what_is_gone_is_forgotten() {
        let mut judge = judge(Measure::DiskFree, 100.0);
        at(0, &mut judge, &[("", 50.0)]);
        assert_eq!(at(10, &mut judge, &[("", 50.0)]), [(String::new(), true)]);
        assert_eq!(
            judge.raised()[0].text(),
            "bytes left on the disk: 50, and it should be at least 100"
        );
        assert!(at(11, &mut judge, &[]).is_empty());
        assert!(judge.raised().is_empty());
    }

    #[test]
    fn failures_are_a_share_of_what_ended_lately() {
        let mut ends = Ends::default();
        let mut failed =
            |second: i64, ended, failed| ends.failed(Timestamp(second * 1000), ended, failed);
        assert_eq!(failed(0, 100, 100), None);
        assert_eq!(failed(60, 105, 101), None);
        assert_eq!(failed(120, 120, 105), Some(0.25));
        // What failed long ago counts no more.
        assert_eq!(failed(721, 140, 105), Some(0.0));
    }
}
