//! Percentiles and medians.

use std::time::Duration;

/// The value below which `percent` of all lie. Zero of none.
pub(crate) fn percentile(latencies: &mut [Duration], percent: f64) -> Duration {
    latencies.sort_unstable();
    let at = (latencies.len() as f64 * percent / 100.0) as usize;
    latencies.get(at.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
}

pub(crate) fn median(values: &mut [Duration]) -> Duration {
    percentile(values, 50.0)
}

pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64() * 1e3)
}
