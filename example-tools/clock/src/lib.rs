//! What time it is somewhere, and how far apart two days are.

use belljar_tool::{Error, Result, tool, toolbox};
use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use schemars::JsonSchema;
use serde::Serialize;

/// A moment, as a clock on the wall of a zone shows it.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Now {
    /// For example `2026-03-01T17:05:09+01:00`.
    time: String,
    /// The day of the week, in English.
    weekday: String,
    /// The zone's abbreviation at this moment, for example `CET`.
    abbreviation: String,
    /// Whether daylight saving time is on.
    daylight_saving: bool,
    /// Seconds since 1970-01-01T00:00:00Z.
    unix_seconds: i64,
}

/// The date and time right now in a time zone.
#[tool]
pub fn now(
    /// An IANA zone such as `Europe/Berlin` or `UTC`; UTC if left out.
    zone: Option<String>,
) -> Result<Now> {
    at(Timestamp::now(), zone.as_deref().unwrap_or("UTC"))
}

fn at(moment: Timestamp, zone: &str) -> Result<Now> {
    let zone = TimeZone::get(zone)
        .map_err(|_| Error::new(format!("no time zone `{zone}`; give an IANA name such as `America/New_York`")))?;
    let there = moment.to_zoned_datetime(zone.clone());
    let offset = zone.to_offset_info(moment);
    Ok(Now {
        time: there.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string(),
        weekday: there.strftime("%A").to_string(),
        abbreviation: offset.abbreviation().into(),
        daylight_saving: offset.dst().is_dst(),
        unix_seconds: moment.as_second(),
    })
}

/// How far apart two dates are.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct Days {
    /// From the first to the second date; negative if the second is earlier.
    days: i32,
    /// Those of them that are Monday to Friday, without the later date itself.
    weekdays: i32,
}

/// Counts the days from one date to another.
#[tool]
pub fn days_between(
    /// The first date, for example `2026-02-27`.
    from: String,
    /// The second date.
    to: String,
) -> Result<Days> {
    let (from, to) = (date(&from)?, date(&to)?);
    let days = (to - from).get_days();
    let (earlier, sign) = (from.min(to), days.signum());
    // Whole weeks have five weekdays each; only the rest is counted day by day.
    let rest = (days.abs() / 7 * 7..days.abs()).filter_map(|day| earlier.checked_add(day.days()).ok());
    let rest = rest.filter(|day| day.weekday().to_monday_one_offset() <= 5).count() as i32;
    Ok(Days { days, weekdays: sign * (days.abs() / 7 * 5 + rest) })
}

fn date(text: &str) -> Result<Date> {
    text.trim().parse().map_err(|_| Error::new(format!("`{text}` is no date; write it like 2026-02-27")))
}

toolbox!(now, days_between);

#[cfg(test)]
mod tests;
