//! Things that can be recognised in a message without understanding it. Pure.

/// Dates `2026-01-31`, with the time of day if one follows.
pub(super) fn dates(text: &str) -> Vec<&str> {
    date_spans(text).into_iter().map(|(from, to)| &text[from..to]).collect()
}

fn date_spans(text: &str) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let is_date = |at: usize| {
        let Some(date) = bytes.get(at..at + 10) else { return false };
        let digits = |from: usize, to: usize| date[from..to].iter().all(u8::is_ascii_digit);
        digits(0, 4) && date[4] == b'-' && digits(5, 7) && date[7] == b'-' && digits(8, 10)
    };
    let mut spans = Vec::new();
    let mut at = 0;
    while at + 10 <= bytes.len() {
        let begins = at == 0 || !bytes[at - 1].is_ascii_alphanumeric();
        let ends = bytes.get(at + 10).is_none_or(|byte| !byte.is_ascii_digit());
        if begins && ends && is_date(at) {
            let mut to = at + 10;
            if bytes.get(to) == Some(&b'T') {
                to += bytes[to..].iter().take_while(|b| b.is_ascii_digit() || b"T:.+-Z".contains(b)).count();
                to = at + text[at..to].trim_end_matches(['.', ':', '-', '+']).len();
            }
            spans.push((at, to));
            at = to;
        } else {
            at += 1;
        }
    }
    spans
}

/// The same length, with `|` where dates were: their digits are no numbers.
fn without_dates(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for (from, to) in date_spans(text) {
        bytes[from..to].fill(b'|');
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// Time zones: `Europe/Berlin`, `UTC`.
pub(super) fn zone(text: &str) -> Option<&str> {
    let is_zone = |word: &&str| {
        let parts: Vec<&str> = word.split('/').collect();
        let named = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
        };
        matches!(*word, "UTC" | "GMT")
            || (2..=3).contains(&parts.len())
                && parts.iter().all(named)
                && parts[0].len() > 1
                && parts[0].starts_with(|c: char| c.is_ascii_uppercase())
    };
    tokens(text).find(is_zone)
}

pub(super) fn numbers(text: &str) -> Vec<String> {
    let text = without_dates(text);
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let before = at.checked_sub(1).map(|at| bytes[at]);
        let begins = before.is_none_or(|b| !b.is_ascii_alphanumeric() && !matches!(b, b'.' | b'_' | b')'));
        let sign = usize::from(bytes[at] == b'-');
        let length = bytes[at + sign..].iter().take_while(|b| b.is_ascii_digit() || **b == b'.').count();
        let number = text.get(at..at + sign + length).unwrap_or_default().trim_end_matches('.');
        let digits = number.len() > sign && bytes[at + sign].is_ascii_digit();
        let ends = bytes.get(at + number.len()).is_none_or(|b| !b.is_ascii_alphabetic());
        if begins && digits && ends && number.parse::<f64>().is_ok() {
            found.push(number.to_owned());
        }
        at += (sign + length).max(1);
    }
    found
}

/// Arithmetic: the longest stretch of numbers and operators with an operator between two operands.
pub(super) fn expression(text: &str) -> Option<String> {
    let mut text = format!(" {} ", without_dates(text).to_lowercase());
    for (words, sign) in [
        (" multiplied by ", " * "),
        (" divided by ", " / "),
        (" times ", " * "),
        (" plus ", " + "),
        (" minus ", " - "),
        ("×", "*"),
        ("÷", "/"),
        ("−", "-"),
    ] {
        text = text.replace(words, sign);
    }
    let of_arithmetic = |c: char| c.is_ascii_digit() || " .+-*/%^()".contains(c);
    let mut best = None::<&str>;
    for run in text.split(|c| !of_arithmetic(c)) {
        let run = balanced(run.trim_start_matches([' ', '+', '*', '/', '%', '^', ')', '.']));
        let run = run.trim_end_matches([' ', '.', '+', '-', '*', '/', '%', '^', '(']);
        if has_operator(run) && best.is_none_or(|best| run.len() > best.len()) {
            best = Some(run);
        }
    }
    best.map(|found| found.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Without the parentheses at either end that belong to the sentence.
fn balanced(run: &str) -> &str {
    let mut rest = run.trim_matches(' ');
    let (mut open, mut close) = (rest.matches('(').count(), rest.matches(')').count());
    loop {
        rest = rest.trim_matches(' ');
        rest = match open.cmp(&close) {
            std::cmp::Ordering::Greater if rest.starts_with('(') => {
                open -= 1;
                &rest[1..]
            }
            std::cmp::Ordering::Less if rest.ends_with(')') => {
                close -= 1;
                &rest[..rest.len() - 1]
            }
            // A full stop may stand after the parenthesis.
            std::cmp::Ordering::Less if rest.ends_with('.') => &rest[..rest.len() - 1],
            _ => return rest,
        };
    }
}

fn has_operator(run: &str) -> bool {
    let dense: Vec<u8> = run.bytes().filter(|b| *b != b' ').collect();
    let operand_before = |b: u8| b.is_ascii_digit() || b == b')';
    let operand_after = |b: u8| b.is_ascii_digit() || matches!(b, b'(' | b'-' | b'.');
    dense.windows(3).any(|w| operand_before(w[0]) && b"+-*/%^".contains(&w[1]) && operand_after(w[2]))
}

/// Text in quotation marks or backticks.
pub(super) fn quoted(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '“', '`']) {
        let open = rest[at..].chars().next().unwrap_or('"');
        let close = if open == '“' { '”' } else { open };
        let inner = &rest[at + open.len_utf8()..];
        let Some(end) = inner.find(close) else { break };
        if end > 0 {
            found.push(&inner[..end]);
        }
        rest = &inner[end + close.len_utf8()..];
    }
    found
}

/// Where a table stands in the text: between ``` lines, or the longest stretch of lines with equally many commas.
pub(super) fn table(text: &str) -> Option<&str> {
    if let Some(from) = text.find("```") {
        let inner = &text[from + 3..];
        let inner = &inner[inner.find('\n')? + 1..];
        return Some(inner[..inner.find("```").unwrap_or(inner.len())].trim_end());
    }
    let commas = |line: &str| match line.trim_end() {
        // The sentence that announces the table.
        announcing if announcing.ends_with(':') => 0,
        line => line.matches(',').count(),
    };
    let mut best = None::<(usize, usize, usize)>;
    let (mut begin, mut rows, mut columns, mut at) = (0, 0, 0, 0);
    for line in text.split_inclusive('\n').chain([""]) {
        if commas(line) != columns {
            if columns > 0 && rows >= 2 && best.is_none_or(|(most, ..)| rows > most) {
                best = Some((rows, begin, at));
            }
            (begin, rows, columns) = (at, 0, commas(line));
        }
        rows += 1;
        at += line.len();
    }
    best.map(|(_, from, to)| text[from..to].trim_end())
}

/// The words between spaces, without the punctuation around them.
pub(super) fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().map(bare).filter(|token| !token.is_empty())
}

pub(super) fn bare(token: &str) -> &str {
    token
        .trim_start_matches(['"', '\'', '(', '[', '`', '“'])
        .trim_end_matches(['"', '\'', ')', ']', '`', '”', '?', '!', '.', ',', ';', ':'])
}

/// Words to compare by: lower case, `camelCase` and `snake_case` apart, without a plural's `s`.
pub(super) fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower_before = false;
    for c in text.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && lower_before) {
            words.push(String::new());
        }
        lower_before = c.is_lowercase();
        if let (true, Some(word)) = (c.is_alphanumeric(), words.last_mut()) {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    for word in &mut words {
        if word.len() > 3 && word.ends_with('s') && !word.ends_with("ss") {
            word.pop();
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_of_parentheses_is_read_once() {
        // Quadratic, this would take minutes.
        let run = "(".repeat(1 << 20);
        assert_eq!(balanced(&run), "");
    }

    #[test]
    fn arithmetic_is_found() {
        for (text, expected) in [
            ("What is 12.5 * 3?", Some("12.5 * 3")),
            ("what's 2+2", Some("2+2")),
            ("(1 + 2) * 3 =", Some("(1 + 2) * 3")),
            ("Add this (7 - 4).", Some("(7 - 4)")),
            ("(that is 7 - 4)", Some("7 - 4")),
            ("compute -5 * (3 - -2), please", Some("-5 * (3 - -2)")),
            ("7 times 6", Some("7 * 6")),
            ("100 divided by 8 plus 1.", Some("100 / 8 + 1")),
            ("3 × 4 − 1", Some("3 * 4 - 1")),
            ("I have 2 cats and 12.5 * 3 dogs", Some("12.5 * 3")),
            ("between 2026-01-01 and 2026-02-01", None),
            ("hello - there", None),
            ("12", None),
            ("1.5", None),
            ("- -", None),
            ("", None),
        ] {
            assert_eq!(expression(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn dates_zones_numbers_quotes_and_tables_are_found() {
        assert_eq!(dates("from 2026-01-01 to 2026-02-01T10:00:00Z."), ["2026-01-01", "2026-02-01T10:00:00Z"]);
        assert_eq!(dates("2026-01-01..2026-02-01, 12026-01-01 2026-1-1 é"), ["2026-01-01", "2026-02-01"]);
        for (text, expected) in [
            ("What time is it in Europe/Berlin?", Some("Europe/Berlin")),
            ("now (America/Argentina/Buenos_Aires)", Some("America/Argentina/Buenos_Aires")),
            ("in UTC.", Some("UTC")),
            ("and/or", None),
            ("http://x/y", None),
            ("Berlin", None),
        ] {
            assert_eq!(zone(text), expected, "{text}");
        }
        assert_eq!(numbers("3 cats, -4.5 dogs; 2026-01-01 x9 9x 7."), ["3", "-4.5", "7"]);
        assert_eq!(quoted("say \"a b\" and `c` and “d”, not \"e"), ["a b", "c", "d"]);
        let csv = "city,amount\nRome,3\nOslo,4";
        assert_eq!(table(&format!("Sum amount, by city:\n\n{csv}\n\nThanks, bye")), Some(csv));
        assert_eq!(table(&format!("Sum amount by city:\n```csv\n{csv}\n```\nThanks, bye")), Some(csv));
        assert_eq!(table(csv), Some(csv));
        assert_eq!(table("a, b"), None);
        assert_eq!(table("```"), None);
    }

    #[test]
    fn words_are_comparable() {
        assert_eq!(
            words("days_between groupBy Evaluates class XML"),
            ["day", "between", "group", "by", "evaluate", "class", "xml"]
        );
    }
}
