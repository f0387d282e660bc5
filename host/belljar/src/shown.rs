//! Numbers for people.

/// `1,000,000`
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let (head, rest) = digits.split_at(first);
    let mut text = head.to_owned();
    for (at, digit) in rest.chars().enumerate() {
        if at % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in KiB or MiB, to a tenth.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{}.{} KiB", bytes >> 10, (bytes % 1024) * 10 / 1024),
        _ => format!("{}.{} MiB", bytes >> 20, (bytes % 1_048_576) * 10 / 1_048_576),
    }
}

/// Microseconds, or milliseconds to a tenth.
pub(crate) fn duration_us(us: u64) -> String {
    match us {
        0..1000 => format!("{us} µs"),
        _ => format!("{}.{} ms", us / 1000, us % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
        for (bytes, text) in [(12, "12 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB")] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!((duration_us(999).as_str(), duration_us(12_340).as_str()), ("999 µs", "12.3 ms"));
    }
}
