//! What providers say about their rates in the headers of an answer.
//!
//! OpenAI and its likes send `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, Anthropic
//! `anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}`. Some gateways fill in -1 or 0
//! where they know nothing, and at least one counts its requests by the day: nothing here is
//! believed unless it makes sense.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

/// Both windows of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateHeaders {
    pub(crate) requests: Option<RateHeader>,
    pub(crate) tokens: Option<RateHeader>,
}

/// One window as the provider describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RateHeader {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Until the window is full again.
    pub(crate) reset: Option<Duration>,
}

impl RateHeaders {
    /// Reads what is there. `now` is for resets that are given as a time of day, where the answer
    /// has no `Date` of its own.
    pub(crate) fn read(headers: &HeaderMap, now: Option<SystemTime>) -> Self {
        // Most answers of most providers have none of them.
        if !headers.keys().any(|name| name.as_str().contains("ratelimit-")) {
            return Self::default();
        }
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
        let sent = text("date").and_then(|at| httpdate::parse_http_date(at).ok()).or(now);
        let window = |limit: &str, remaining: &str, reset: &str| {
            let limit = text(limit).and_then(count).filter(|it| (1..=MAX_LIMIT).contains(it))?;
            let remaining = text(remaining).and_then(count).filter(|it| *it <= limit)?;
            let reset = text(reset).and_then(|text| span(text).or_else(|| until(text, sent?)));
            Some(RateHeader { limit, remaining, reset })
        };
        Self {
            requests: window(
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            )
            .or_else(|| {
                window(
                    "anthropic-ratelimit-requests-limit",
                    "anthropic-ratelimit-requests-remaining",
                    "anthropic-ratelimit-requests-reset",
                )
            }),
            tokens: window(
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            )
            .or_else(|| {
                window(
                    "anthropic-ratelimit-tokens-limit",
                    "anthropic-ratelimit-tokens-remaining",
                    "anthropic-ratelimit-tokens-reset",
                )
            }),
        }
    }
}

impl RateHeader {
    /// How much comes in a minute; `None` for the quota of an hour or a day, which is to be used as
    /// fast as one likes.
    pub(super) fn per_minute(&self) -> Option<u64> {
        let used = self.limit - self.remaining;
        let Some(reset) = self.reset.filter(|it| !it.is_zero() && used > 0) else {
            return Some(self.limit);
        };
        let period = reset.as_secs_f64() * self.limit as f64 / used as f64;
        if period > LONGEST_PERIOD {
            None
        } else if period >= SHORTEST_MINUTE {
            Some(self.limit)
        } else {
            Some((self.limit as f64 * 60.0 / period.max(1.0)) as u64)
        }
    }
}

fn count(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// `6m0s`, `120ms`, `1.5s`, `1h2m`, or seconds without a unit.
fn span(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        seconds += number
            * match &rest[..letters] {
                "ms" => 0.001,
                "" | "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        rest = &rest[letters..];
    }
    (!text.is_empty() && seconds <= MAX_RESET).then(|| Duration::from_secs_f64(seconds))
}

/// The time from `now` to an RFC 3339 instant in UTC, `2026-11-20T20:46:29Z` or with a fraction or a
/// zero offset.
fn until(text: &str, now: SystemTime) -> Option<Duration> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let time = ["Z", "z", "+00:00"].iter().find_map(|zone| time.strip_suffix(zone))?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u16>().ok());
    let mut time = time.splitn(3, ':');
    let year = date.next()??;
    let month = usize::from(date.next()??);
    let day = date.next()??;
    let hour: u64 = time.next()?.parse().ok()?;
    let minute: u64 = time.next()?.parse().ok()?;
    let second: f64 = time.next()?.parse().ok()?;
    let in_range = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && (0.0..61.0).contains(&second);
    if !in_range {
        return None;
    }
    let year = u64::from(year);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Leap years before this one, counted from the calendar's beginning, less those before 1970.
    let leaps = (year - 1) / 4 - (year - 1) / 100 + (year - 1) / 400 - 477;
    let days = (year - 1970) * 365
        + leaps
        + DAYS_BEFORE[month - 1]
        + u64::from(month > 2 && is_leap)
        + u64::from(day - 1);
    let seconds = (days * 86_400 + hour * 3600 + minute * 60) as f64 + second;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
    let left = (seconds - now).max(0.0);
    (left <= MAX_RESET).then(|| Duration::from_secs_f64(left))
}

const DAYS_BEFORE: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
const MAX_LIMIT: u64 = 100_000_000_000;
/// In seconds: a month.
const MAX_RESET: f64 = 31.0 * 86_400.0;
/// A window that takes longer to fill is no rate. In seconds, with room for rounded resets.
const LONGEST_PERIOD: f64 = 150.0;
/// A window that takes at least so long is one of a minute. In seconds.
const SHORTEST_MINUTE: f64 = 30.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[(&'static str, &str)]) -> RateHeaders {
        let headers =
            lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        RateHeaders::read(&headers.collect(), None)
    }

    fn requests(limit: &str, remaining: &str, reset: &str) -> Option<RateHeader> {
        read(&[
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
        ])
        .requests
    }

    #[test]
    fn openai_windows() {
        let headers = read(&[
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
            ("x-ratelimit-reset-requests", "120ms"),
            ("x-ratelimit-limit-tokens", "30000"),
            ("x-ratelimit-remaining-tokens", "12000"),
            ("x-ratelimit-reset-tokens", "0m36s"),
        ]);
        let ms = |ms| Some(Duration::from_millis(ms));
        let requests = RateHeader { limit: 500, remaining: 499, reset: ms(120) };
        let tokens = RateHeader { limit: 30_000, remaining: 12_000, reset: ms(36_000) };
        assert_eq!(headers, RateHeaders { requests: Some(requests), tokens: Some(tokens) });
        assert_eq!((requests.per_minute(), tokens.per_minute()), (Some(500), Some(30_000)));
    }

    #[test]
    fn anthropic_resets_are_judged_by_the_answers_own_date() {
        let headers = read(&[
            ("date", "Fri, 20 Nov 2026 20:46:29 GMT"),
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "40"),
            ("anthropic-ratelimit-requests-reset", "2026-11-20T20:46:41Z"),
        ]);
        let reset = Some(Duration::from_secs(12));
        assert_eq!(headers.requests, Some(RateHeader { limit: 50, remaining: 40, reset }));
        assert_eq!(headers.requests.unwrap().per_minute(), Some(50));
    }

    #[test]
    fn nonsense_is_no_window() {
        for (limit, remaining) in [
            ("0", "0"),
            ("-1", "-1"),
            ("50", "51"),
            ("50", ""),
            ("1e9", "3"),
            ("9999999999999", "1"),
        ] {
            assert_eq!(requests(limit, remaining, "1s"), None, "{limit} {remaining}");
        }
        for reset in
            ["", "-3s", "soon", "1y", "NaN", "1e300s", "99999999999", "2026-13-01T00:00:00Z"]
        {
            let reset = requests("50", "40", reset).unwrap().reset;
            assert_eq!(reset, None);
        }
    }

    #[test]
    fn a_window_has_the_length_that_its_reset_tells() {
        let rate =
            |limit, remaining, reset| requests(limit, remaining, reset).unwrap().per_minute();
        assert_eq!(rate("14400", "14370", "2m59.56s"), None, "by the day");
        assert_eq!(rate("10", "5", "0.5s"), Some(600), "by the second");
        assert_eq!(rate("60", "60", "0s"), Some(60));
        assert_eq!(rate("60", "0", "1m0s"), Some(60));
    }

    #[test]
    fn instants_are_counted_like_those_of_http() {
        for (rfc3339, http) in [
            ("1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("2000-02-29T12:30:45.000+00:00", "Tue, 29 Feb 2000 12:30:45 GMT"),
            ("2024-03-01T00:00:00Z", "Fri, 01 Mar 2024 00:00:00 GMT"),
            ("2026-11-20T20:46:29Z", "Fri, 20 Nov 2026 20:46:29 GMT"),
        ] {
            let at = httpdate::parse_http_date(http).unwrap();
            assert_eq!(until(rfc3339, at), Some(Duration::ZERO));
            let earlier = at.checked_sub(Duration::from_secs(7)).unwrap();
            let left = until(rfc3339, earlier);
            assert!(left == Some(Duration::from_secs(7)) || http.contains("1970"), "{left:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in ".{0,40}") {
            let _ = (span(&text), until(&text, SystemTime::UNIX_EPOCH));
        }

        #[test]
        fn no_numbers_break_it(limit in 1..=MAX_LIMIT, used in any::<u64>(), ms in any::<u32>()) {
            let reset = Some(Duration::from_millis(ms.into()));
            let header = RateHeader { limit, remaining: limit - used % (limit + 1), reset };
            let _ = header.per_minute();
        }
    }
}
