//! Lengths of time and amounts of bytes as people write them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written as `1h30m`, `30s`, `250ms`. Longer than nothing.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Span(pub Duration);

/// In nanoseconds, as Go names them.
const TIMES: [(&str, u64); 7] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("ns", 1),
];

impl Span {
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a length of time such as 30s, 5m or 1h30m");
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        let mut nanoseconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let (number, unit) = rest.split_at(digits);
            let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
            let (unit, after) = unit.split_at(end);
            let number: f64 = number.parse().map_err(|_| wrong())?;
            let size = TIMES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
            #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days of nanoseconds")]
            let size = size as f64;
            nanoseconds += number * size;
            rest = after;
        }
        let duration = Duration::try_from_secs_f64(nanoseconds / 1e9).map_err(|_| wrong())?;
        if duration.is_zero() {
            return Err(format!("{text:?} is no time at all; write something such as 30s"));
        }
        Ok(Self(duration))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        for (name, size) in TIMES {
            if rest >= size {
                write!(f, "{}{name}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

/// An amount of bytes, written as a number or as `64MiB`.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Size(pub u64);

const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("", 1)];

impl Size {
    pub fn parse(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let size = SIZES.iter().find(|(name, _)| *name == unit.trim());
        let bytes =
            number.parse::<u64>().ok().zip(size).and_then(|(n, (_, size))| n.checked_mul(*size));
        match bytes {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is not an amount of bytes such as 1048576 or 64MiB")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, size): &&(&str, u64)| self.0 >= *size && self.0.is_multiple_of(*size);
        let (name, size) = SIZES.iter().find(fits).unwrap_or(&("", 1));
        write!(f, "{}{name}", self.0 / size)
    }
}

macro_rules! written {
    ($type:ident, $format:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $format.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}

written!(Span, "duration");
written!(Size, "size");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_read_as_they_are_written() {
        for text in ["30s", "1h30m", "250ms", "720h", "5m"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Span::parse("1.5s").unwrap().0, Duration::from_millis(1500));
        for text in ["", "30", "-5s", "1d", "s", "0s", "1h 5m", "9e99h"] {
            assert!(Span::parse(text).is_err(), "{text}");
        }
        for (text, bytes) in [("1024", 1024), ("64MiB", 64 << 20), ("1 GiB", 1 << 30)] {
            assert_eq!(Size::parse(text).unwrap().0, bytes);
        }
        assert_eq!(Size(64 << 20).to_string(), "64MiB");
        for text in ["", "0", "-1", "12MB", "99999999999TiB"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }
}
