//! The type of settings that are durations: text with units on the command line and in files.

use std::{fmt, str::FromStr, time::Duration};

use conclave_types::duration::{UNIT_NEEDED, parse};
use serde::{Deserialize, Deserializer, de};

/// A duration that is written with units, such as `100ms`, `10s` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

impl From<Duration> for HumanDuration {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration in quotes, such as \"100ms\" or \"10s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<HumanDuration, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<HumanDuration, E> {
        Err(E::custom(format!("{UNIT_NEEDED}, in quotes")))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<HumanDuration, E> {
        Err(E::custom(format!("{UNIT_NEEDED}, in quotes")))
    }
}
