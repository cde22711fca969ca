//! Durations as users write them: `100ms`, `10s`, `1h 30m`.

use std::time::Duration;

/// The message for a number without a unit.
pub const UNIT_NEEDED: &str = "a duration needs a unit, such as 100ms or 10s";

/// More digits exceed any sensible duration. They could also overflow the sum of the parts, which
/// `humantime` checks for all values but one.
const DIGITS_MAX: usize = 18;

/// Parses a duration: one or more numbers with units, such as `500ms`, `1.5s`, `1h 30m` or `7d`.
/// Only zero may lack a unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.chars().filter(char::is_ascii_digit).count() > DIGITS_MAX {
        return Err(format!("the number has more than {DIGITS_MAX} digits"));
    }
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::UnknownUnit { unit, .. } if unit.is_empty() => {
            UNIT_NEEDED.to_owned()
        }
        // The library's message repeats parts of the text, which may be a key in the wrong place.
        _ => "not a duration: write it as 500ms, 10s, 1h30m or 7d".to_owned(),
    })
}

/// Returns the text of a duration, without fractions of a millisecond. [`parse`] accepts it.
#[must_use]
pub fn text(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (written, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            (" 2m ", 120_000),
            ("1m 30s", 90_000),
            ("1.5h", 5_400_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(written), Ok(Duration::from_millis(millis)), "{written}");
        }
        for bad in ["", "s", "10x", "-1s", "NaN", "inf", "infs", "1e300"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_without_a_unit_are_refused_with_the_right_form() {
        for number in ["100", "1.5", "10s 5", "00"] {
            assert_eq!(parse(number), Err(UNIT_NEEDED.to_owned()), "{number}");
        }
    }

    /// Regression: `humantime` panics if the seconds are the largest number and the rest is a
    /// whole second.
    #[test]
    fn largest_numbers_are_refused() {
        assert!(parse("18446744073709551615s 1000ms").is_err());
        assert!(parse("5124095576030431h15s1000ms").is_err());
    }

    #[test]
    fn text_can_be_parsed() {
        for millis in [0, 1, 999, 1400, 90_000, 604_800_000, 31_557_600_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(parse(&text(duration)).unwrap(), duration);
        }
        assert_eq!(text(Duration::from_micros(268_100)), "268ms");
    }
}
