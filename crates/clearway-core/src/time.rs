//! Instants and deadlines as values; nobody in this crate looks at a clock.

use std::fmt;
use std::time::{Duration, Instant};

/// Milliseconds since the Unix epoch, as stored and judged by the store's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to `self`; zero when the clock went backwards.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    /// ISO 8601 with milliseconds and `+00:00`, as clients of all dialects read it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.0.div_euclid(86_400_000);
        let ms = self.0.rem_euclid(86_400_000);
        let (year, month, day) = civil_from_days(days);
        let mut text = *b"0000-00-00T00:00:00.000+00:00";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], month);
        digits(&mut text[8..10], day);
        digits(&mut text[11..13], ms / 3_600_000);
        digits(&mut text[14..16], ms / 60_000 % 60);
        digits(&mut text[17..19], ms / 1000 % 60);
        digits(&mut text[20..23], ms % 1000);
        let text = std::str::from_utf8(&text).map_err(|_| fmt::Error)?;
        match year {
            0..=9999 => f.write_str(text),
            _ => write!(f, "{year:04}{}", &text[4..]),
        }
    }
}

/// Writes the last digits of a number: each response has several times in it, and the general way
/// takes ten times as long.
fn digits(text: &mut [u8], mut number: i64) {
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10).unsigned_abs() as u8;
        number /= 10;
    }
}

/// Gregorian date of a day number counted from 1970-01-01.
///
/// Formula: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// Where wall-clock time comes from. The store judges leases and deadlines by one of these.
pub trait Clock: Send + Sync + fmt::Debug {
    fn now(&self) -> Timestamp;
}

/// An instant on the monotonic clock by which something must have ended.
///
/// Made once at the edge and passed down; a stage narrows it with [`Deadline::clip`] and can never
/// widen it. It does not outlive the process: what does is a [`Timestamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    pub fn after(now: Instant, duration: Duration) -> Self {
        // An absurd duration must not panic the server; three years is "never" for a run.
        let most = Duration::from_secs(3 * 365 * 86_400);
        Self(now + duration.min(most))
    }

    pub fn remaining(self, now: Instant) -> Duration {
        self.0.saturating_duration_since(now)
    }

    /// The deadline of a stage that may take at most `cap` from `now`.
    pub fn clip(self, now: Instant, cap: Duration) -> Self {
        Self(self.0.min(now + cap))
    }

    pub fn has_passed(self, now: Instant) -> bool {
        now >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_as_iso_8601() {
        assert_eq!(Timestamp(0).to_string(), "1970-01-01T00:00:00.000+00:00");
        assert_eq!(Timestamp(1_795_207_589_363).to_string(), "2026-11-20T20:46:29.363+00:00");
        assert_eq!(Timestamp(951_782_400_000).to_string(), "2000-02-29T00:00:00.000+00:00");
        assert_eq!(Timestamp(-1).to_string(), "1969-12-31T23:59:59.999+00:00");
    }

    #[test]
    fn a_stage_never_widens_a_deadline() {
        let now = Instant::now();
        let deadline = Deadline::after(now, Duration::from_secs(2));
        assert_eq!(deadline.clip(now, Duration::from_secs(30)), deadline);
        assert_eq!(
            deadline.clip(now, Duration::from_secs(1)).remaining(now),
            Duration::from_secs(1)
        );
        assert!(Deadline::after(now, Duration::MAX).remaining(now) > Duration::from_secs(86_400));
    }
}
