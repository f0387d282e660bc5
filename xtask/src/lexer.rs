//! Rust source, as far as tidy needs it: code without comments and literals, and the literals.

/// What is left of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// Comments and literals are replaced by spaces.
    pub(crate) code: String,
    pub(crate) strings: Vec<String>,
}

pub(crate) fn read(text: &str) -> Source {
    let mut source = Source::default();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = after_block_comment(rest);
        } else if let Some((string, after)) = raw_string(rest, &source.code) {
            source.strings.push(string.to_owned());
            source.code.push(' ');
            rest = after;
        } else if c == '"' {
            let end = end_of_string(rest);
            source.strings.push(rest[1..end].to_owned());
            source.code.push(' ');
            rest = rest.get(end + 1..).unwrap_or_default();
        } else if c == '\'' {
            rest = after_char_or_lifetime(rest);
            source.code.push(' ');
        } else {
            source.code.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    source
}

/// Whether `word` stands in `code` as a word of its own. `r#word` is a name.
pub(crate) fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && !['_', '#'].contains(&c)).any(|found| found == word)
}

fn after_block_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        (depth, at) = match rest {
            [b'/', b'*', ..] => (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth - 1, at + 2),
            _ => (depth, at + 1),
        };
        if depth == 0 {
            return &text[at..];
        }
    }
    ""
}

/// `r"..."`, `br#"..."#` and their kin: the content and what follows.
fn raw_string<'t>(text: &'t str, before: &str) -> Option<(&'t str, &'t str)> {
    if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let rest = ["br", "cr", "r"].iter().find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    let content = rest[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    content.split_once(end.as_str())
}

/// The place of the closing quote of a text that begins with one.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn after_char_or_lifetime(text: &str) -> &str {
    let inner = &text[1..];
    if let Some(escape) = inner.strip_prefix('\\') {
        let end = escape.char_indices().skip(1).find(|(_, c)| *c == '\'').map_or(escape.len(), |(at, _)| at + 1);
        return &escape[end..];
    }
    let mut chars = inner.char_indices().skip(1);
    match chars.next() {
        Some((at, '\'')) => &inner[at + 1..],
        _ => inner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_comments_are_not_code() {
        let source = read(concat!(
            "// unsafe\n",
            "/* unsafe /* nested */ unsafe */ fn a<'u>(x: &'u str) {\n",
            "let c = '\"'; let d = '\\''; let e = '\\u{1F600}'; b(\"unsafe \\\" x\", r#\"SET \"y\"\"#, br\"z\") }",
        ));
        assert!(!has_word(&source.code, "unsafe"), "{}", source.code);
        assert!(has_word(&source.code, "let"));
        assert_eq!(source.strings, ["unsafe \\\" x", "SET \"y\"", "z"]);
    }

    #[test]
    fn a_word_is_whole() {
        assert!(has_word("unsafe { x }", "unsafe"));
        assert!(!has_word("unsafe_code, row.r#unsafe", "unsafe"));
    }
}
