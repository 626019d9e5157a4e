//! Durations as written in configuration: a number and a unit, in quotes.

use std::ops::RangeInclusive;
use std::time::Duration;

/// No wait in the product is longer than this.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// What a deadline may be unless its key says otherwise.
pub(super) const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=LONGEST;

/// Why a text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Invalid {
    /// `none`, `infinite`: every wait needs an end.
    NoEnd,
    /// `0`, which people write for "at once" and for "without end".
    Zero,
    /// A number without a unit.
    NoUnit,
    Malformed,
}

/// A duration, if the text is one.
pub fn read(text: &str) -> Option<Duration> {
    parse(text).ok()
}

/// Reads `500ms`, `120s`, `30m`, `2h`, `1d`, and sums such as `1m30s`.
pub(super) fn parse(text: &str) -> Result<Duration, Invalid> {
    let text = text.trim();
    let words =
        ["", "none", "never", "off", "inf", "infinite", "infinity", "unlimited", "forever", "-1"];
    if words.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return Err(Invalid::NoEnd);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().map_err(|_| Invalid::Malformed)?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit_ms = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" if number == 0 && total.is_zero() && rest.is_empty() => return Err(Invalid::Zero),
            "" if rest.is_empty() => return Err(Invalid::NoUnit),
            _ => return Err(Invalid::Malformed),
        };
        let part = number.checked_mul(unit_ms).ok_or(Invalid::Malformed)?;
        total = total.saturating_add(Duration::from_millis(part));
        rest = rest[letters..].trim_start();
    }
    if total.is_zero() { Err(Invalid::Zero) } else { Ok(total) }
}

/// As [`parse`] would read it, in the largest unit that loses nothing.
pub fn show(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if ms >= unit_ms && ms.is_multiple_of(unit_ms) {
            return format!("{}{unit}", ms / unit_ms);
        }
    }
    format!("{ms}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units() {
        let ms = |text| parse(text).map(|duration| duration.as_millis());
        assert_eq!(ms("500ms"), Ok(500));
        assert_eq!(ms("120s"), Ok(120_000));
        assert_eq!(ms(" 30 m "), Ok(1_800_000));
        assert_eq!(ms("1m30s"), Ok(90_000));
        assert_eq!(ms("1h 5min"), Ok(3_900_000));
        assert_eq!(ms("2d"), Ok(172_800_000));
    }

    #[test]
    fn every_wait_needs_an_end() {
        for text in ["none", "Infinite", "never", "", "-1", "inf"] {
            assert_eq!(parse(text), Err(Invalid::NoEnd), "{text}");
        }
        for text in ["0", "0s", "00ms", "0m0s"] {
            assert_eq!(parse(text), Err(Invalid::Zero), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(parse("30"), Err(Invalid::NoUnit));
        for text in ["s", "1.5s", "3 apples", "-3s", "1s2", "99999999999999999999s", "1M", "5s,"] {
            assert!(matches!(parse(text), Err(Invalid::Malformed | Invalid::NoUnit)), "{text}");
        }
    }

    #[test]
    fn shown_as_it_would_be_written() {
        for text in ["500ms", "1500ms", "90s", "2m", "30h", "2d"] {
            let duration = parse(text).unwrap();
            assert_eq!(parse(&show(duration)), Ok(duration), "{text}");
        }
        assert_eq!(show(Duration::from_secs(90)), "90s");
        assert_eq!(show(Duration::from_secs(120)), "2m");
    }
}
