//! The windows of a budget: days and months of UTC, or all time.

use domain::Timestamp;
use serde::{Deserialize, Serialize};
use time::{Date, Month};

/// When a budget begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// A day in UTC.
    Day,
    /// A month in UTC.
    Month,
    /// Never.
    Total,
}

/// When the present windows began and when the next ones begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Starts {
    pub(crate) day: Timestamp,
    pub(crate) month: Timestamp,
    /// The same moment for ever.
    pub(crate) total: Timestamp,
    next_day: Timestamp,
    next_month: Timestamp,
}

impl Window {
    pub fn as_str(self) -> &'static str {
        match self {
            Window::Day => "day",
            Window::Month => "month",
            Window::Total => "total",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Window> {
        [Window::Day, Window::Month, Window::Total].into_iter().find(|window| window.as_str() == text)
    }
}

impl Starts {
    pub(crate) fn at(now: Timestamp) -> Starts {
        let today = now.offset().date();
        let tomorrow = today.next_day().unwrap_or(today);
        let next = today.month().next();
        let next_year = if next == Month::January { today.year().saturating_add(1) } else { today.year() };
        let first = |year, month| Date::from_calendar_date(year, month, 1).unwrap_or(today);
        let midnight = |date: Date| Timestamp::from(date.midnight().assume_utc());
        Starts {
            day: midnight(today),
            month: midnight(first(today.year(), today.month())),
            total: Timestamp::from_unix_us(0),
            next_day: midnight(tomorrow),
            next_month: midnight(first(next_year, next)),
        }
    }

    pub(crate) fn of(self, window: Window) -> Timestamp {
        match window {
            Window::Day => self.day,
            Window::Month => self.month,
            Window::Total => self.total,
        }
    }

    pub(crate) fn end(self, window: Window) -> Option<Timestamp> {
        match window {
            Window::Day => Some(self.next_day),
            Window::Month => Some(self.next_month),
            Window::Total => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_begin_at_midnight_of_utc() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        for (now, day, month, next_day, next_month) in [
            ("2026-05-17T23:59:59.999999Z", "2026-05-17", "2026-05-01", "2026-05-18", "2026-06-01"),
            ("2026-05-17T00:00:00Z", "2026-05-17", "2026-05-01", "2026-05-18", "2026-06-01"),
            ("2026-12-31T12:00:00+14:00", "2026-12-30", "2026-12-01", "2026-12-31", "2027-01-01"),
            ("2028-02-29T01:00:00Z", "2028-02-29", "2028-02-01", "2028-03-01", "2028-03-01"),
        ] {
            let starts = Starts::at(at(now));
            let midnight = |date: &str| at(&format!("{date}T00:00:00Z"));
            assert_eq!((starts.day, starts.month), (midnight(day), midnight(month)), "{now}");
            assert_eq!(starts.end(Window::Day), Some(midnight(next_day)), "{now}");
            assert_eq!(starts.end(Window::Month), Some(midnight(next_month)), "{now}");
            assert_eq!(starts.end(Window::Total), None);
        }
    }
}
