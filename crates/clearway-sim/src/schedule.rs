//! When the provider is down: windows after its start, or up and down in turns.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// A time of outage, counted from the start: `10..25`, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it begins.
    pub start: Duration,
    /// When it is over.
    pub end: Duration,
}

/// Up and down in turns, beginning with up: `20/5`, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flap {
    /// How long it is up.
    pub up: Duration,
    /// How long it is down.
    pub down: Duration,
}

/// Why a text is no time of outage.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScheduleError {
    /// A window is something else.
    #[error("an outage is START..END in seconds, such as 10..25: {0}")]
    Window(String),
    /// Turns are something else.
    #[error("flapping is UP/DOWN in seconds, such as 20/5: {0}")]
    Flap(String),
}

/// When requests meet an outage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) windows: Vec<Window>,
    pub(crate) flap: Option<Flap>,
}

impl Schedule {
    pub(crate) fn is_down(&self, uptime: Duration) -> bool {
        self.windows.iter().any(|window| (window.start..window.end).contains(&uptime))
            || self.flap.is_some_and(|flap| flap.is_down(uptime))
    }
}

impl Flap {
    fn is_down(self, uptime: Duration) -> bool {
        let round = (self.up + self.down).as_nanos();
        round > 0 && uptime.as_nanos() % round >= self.up.as_nanos()
    }
}

/// Seconds, perhaps with a fraction, of less than a year.
fn seconds(text: &str) -> Option<Duration> {
    let seconds = text.trim().parse().ok().filter(|seconds| (0.0..YEAR).contains(seconds))?;
    Some(Duration::from_secs_f64(seconds))
}

const YEAR: f64 = 366.0 * 86_400.0;

impl FromStr for Window {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (start, end) = text.split_once("..").unwrap_or((text, ""));
        match (seconds(start), seconds(end)) {
            (Some(start), Some(end)) if start < end => Ok(Self { start, end }),
            _ => Err(ScheduleError::Window(text.to_owned())),
        }
    }
}

impl FromStr for Flap {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        let (up, down) = text.split_once('/').unwrap_or((text, ""));
        match (seconds(up), seconds(down)) {
            (Some(up), Some(down)) if !up.is_zero() && !down.is_zero() => Ok(Self { up, down }),
            _ => Err(ScheduleError::Flap(text.to_owned())),
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start.as_secs_f64(), self.end.as_secs_f64())
    }
}

impl fmt::Display for Flap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.up.as_secs_f64(), self.down.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_and_turns_follow_the_clock() {
        let down = |schedule: &Schedule| {
            (0..10)
                .filter(|second| schedule.is_down(Duration::from_secs(*second)))
                .collect::<Vec<u64>>()
        };
        let windows = vec!["1..3".parse().unwrap(), "6.5..7.5".parse().unwrap()];
        let windows = Schedule { windows, flap: None };
        assert_eq!(down(&windows), vec![1_u64, 2, 7]);
        let flap = Schedule { windows: Vec::new(), flap: Some("3/2".parse().unwrap()) };
        assert_eq!(down(&flap), vec![3_u64, 4, 8, 9]);
        assert!(down(&Schedule::default()).is_empty());
    }

    #[test]
    fn texts_round_trip_and_nonsense_is_named() {
        for text in ["1..3", "0..0.5"] {
            assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
        }
        assert_eq!("2/0.5".parse::<Flap>().unwrap().to_string(), "2/0.5");
        for text in ["3..1", "1..1", "x..2", "1", "-1..2", "1..inf", "0..NaN", "1..1e300"] {
            let error = text.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains("START..END") && error.ends_with(text), "{error}");
        }
        for text in ["0/1", "1/0", "1", "1/x"] {
            assert!(text.parse::<Flap>().unwrap_err().to_string().contains("UP/DOWN"), "{text}");
        }
    }
}
