//! Since when: how long ago, or a moment, in the ways in which people write that.

use schemars::JsonSchema;
use serde::Deserialize;

/// A moment, as journalctl takes it.
#[derive(Debug, Deserialize, JsonSchema, PartialEq)]
#[serde(try_from = "String")]
#[schemars(extend("minLength" = 1, "maxLength" = 64, "examples" = ["1h"]))]
pub(super) struct Since(pub(super) String);

impl TryFrom<String> for Since {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let since = Some(text.as_str())
            .filter(|text| text.len() <= 64 && !text.contains(char::is_control))
            .and_then(|text| match text {
                "now" | "today" | "yesterday" => Some(text.to_owned()),
                _ => seconds(text).or_else(|| ago(text)).or_else(|| date(text)),
            });
        since.map(Self).ok_or(
            "since: neither how long ago, such as 1h, nor a moment, such as 2026-01-31T12:00:00Z",
        )
    }
}

/// `@` and seconds since 1970.
fn seconds(text: &str) -> Option<String> {
    let digits = text.strip_prefix('@')?;
    let is_number = (1..=12).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.to_owned())
}

/// `1h`, `2d 6h`, `90 minutes ago`.
fn ago(text: &str) -> Option<String> {
    const MOST: u64 = 100 * 366 * 86_400;
    let text = text.strip_prefix('-').unwrap_or(text);
    let mut rest = text.strip_suffix("ago").unwrap_or(text).trim();
    let (mut sum, mut is_any) = (0_u64, false);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| (1..=9).contains(end))?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit = rest[end..].trim_start();
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let seconds = match &unit[..end] {
            "s" | "sec" | "second" | "seconds" => 1,
            "m" | "min" | "minute" | "minutes" => 60,
            "h" | "hr" | "hour" | "hours" => 3_600,
            "d" | "day" | "days" => 86_400,
            "w" | "week" | "weeks" => 7 * 86_400,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(seconds)?)?;
        rest = unit[end..].trim_start();
        is_any = true;
    }
    (is_any && sum <= MOST).then(|| format!("-{sum}s"))
}

/// A date, with a time or without; where it names no zone, it is the host's.
fn date(text: &str) -> Option<String> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time.trim())),
        None => (text, None),
    };
    let numbers = |text: &str, sign: char, widths: &[usize]| -> Option<Vec<i64>> {
        let parts: Vec<&str> = text.split(sign).collect();
        let is_number = |(part, width): (&&str, &usize)| {
            part.len() == *width && part.bytes().all(|b| b.is_ascii_digit())
        };
        let is_it = parts.len() == widths.len() && parts.iter().zip(widths).all(is_number);
        is_it.then(|| parts.iter().filter_map(|part| part.parse().ok()).collect())
    };
    let [year, month, day] = numbers(date, '-', &[4, 2, 2])?.try_into().ok()?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let most = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..=9999).contains(&year) || !(1..=most).contains(&day) {
        return None;
    }
    let Some(time) = time else { return Some(date.to_owned()) };
    let (time, zone) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => (&time[..at], Some(&time[at..])),
        None => (time, None),
    };
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if fraction.is_empty() || fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let clock = numbers(whole, ':', &[2, 2, 2]).or_else(|| {
        let [hour, minute] = numbers(whole, ':', &[2, 2])?.try_into().ok()?;
        Some(vec![hour, minute, 0])
    })?;
    let [hour, minute, second] = clock.try_into().ok()?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let ahead = match zone {
        None => return Some(format!("{date} {hour:02}:{minute:02}:{second:02}")),
        Some("Z" | "z") => 0,
        Some(zone) => {
            let [hours, minutes] = numbers(&zone[1..], ':', &[2, 2])?.try_into().ok()?;
            let ahead = (hours * 60 + minutes) * 60;
            if hours > 23 || minutes > 59 {
                return None;
            }
            if zone.starts_with('-') { -ahead } else { ahead }
        }
    };
    // Counted from 1 March of the year 0, so that a leap day is the last of its year.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = days * 86_400 + hour * 3_600 + minute * 60 + second - ahead;
    (seconds >= 0).then(|| format!("@{seconds}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_translated_for_journalctl() {
        for (text, expected) in [
            ("1h", "-3600s"),
            ("-1h", "-3600s"),
            ("1h ago", "-3600s"),
            ("2d 6h", "-194400s"),
            ("90 minutes ago", "-5400s"),
            ("1w1s", "-604801s"),
            ("today", "today"),
            ("@1735689599", "@1735689599"),
            ("2024-12-31T23:59:59Z", "@1735689599"),
            ("2025-01-01T01:59:59.5+02:00", "@1735689599"),
            ("2024-12-31 20:29:59-03:30", "@1735689599"),
            ("2000-02-29T12:34:56Z", "@951827696"),
            ("2024-02-29", "2024-02-29"),
            ("2024-12-31 12:00", "2024-12-31 12:00:00"),
            ("2024-12-31T12:00:01", "2024-12-31 12:00:01"),
        ] {
            assert_eq!(Since::try_from(text.to_owned()).unwrap().0, expected, "{text:?}");
        }
        for text in [
            "",
            " ",
            "-",
            "ago",
            "h",
            "1",
            "1x",
            "1h;",
            "--until=now",
            "-1h --unit=x",
            "1h\n",
            "2023-02-29",
            "2024-13-01",
            "2024-1-1",
            "24:00",
            "2024-12-31 24:00",
            "@",
            "@-1",
            "@1e9",
            "2024-12-31T12:00:00.Z",
            "2024-12-31T12:00:00+2",
            "99999999999h",
            "1000000000d",
            "ünix",
        ] {
            assert!(Since::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
