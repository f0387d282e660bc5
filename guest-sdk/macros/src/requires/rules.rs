//! What may stand in `requires`: the names of the grants, and the mistakes that would only be told at an upload.

/// Longest reason, in bytes: a person reads it before granting.
const REASON_BYTES_MAX: usize = 500;

pub(crate) enum Rule {
    /// A text that meets a condition, and the words for one that does not.
    Text(fn(&str) -> bool, &'static str),
    Bytes,
    Flag,
    List(&'static Rule),
    /// Any names.
    Map(&'static Rule),
    Object(&'static [Field]),
}

pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    pub(crate) needed: bool,
}

const fn needed(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, needed: true }
}

const fn maybe(name: &'static str, rule: Rule) -> Field {
    Field { name, rule, needed: false }
}

const REASON: Rule =
    Rule::Text(is_reason, "say in 1 to 500 bytes why the tool needs it: a person reads this before granting it");
const NAME: Rule = Rule::Text(|text| (1..=128).contains(&text.len()), "a name has 1 to 128 bytes");
const SECRET: Rule =
    Rule::Text(is_secret, "a secret's name is a letter and then at most 62 letters, digits, `-` or `_`");

pub(crate) const REQUIRES: &[Field] = &[
    maybe("http", Rule::List(&Rule::Object(HTTP))),
    maybe("key_value", Rule::List(&Rule::Object(KEY_VALUE))),
    maybe("secrets", Rule::List(&Rule::Object(&[needed("name", SECRET), needed("reason", REASON)]))),
    maybe("config", Rule::Map(&REASON)),
    maybe("scratch_bytes", Rule::Object(&[needed("bytes", Rule::Bytes), needed("reason", REASON)])),
];

const HTTP: &[Field] = &[
    needed("host", Rule::Text(is_host, "a host is `name`, `name:port` or `*.name`, without a scheme or a path")),
    maybe("methods", Rule::List(&Rule::Text(is_method, "a method is in capital letters: `GET`"))),
    maybe("paths", Rule::List(&Rule::Text(|path| path.starts_with('/'), "a path begins with `/`"))),
    maybe(
        "headers",
        Rule::List(&Rule::Object(&[
            needed("name", NAME),
            needed("secret", SECRET),
            maybe("format", Rule::Text(|text| text.matches("{}").count() == 1, "a format holds `{}` once")),
        ])),
    ),
    maybe("query", Rule::List(&Rule::Object(&[needed("name", NAME), needed("secret", SECRET)]))),
    maybe(
        "basic",
        Rule::Object(&[
            needed("user", Rule::Text(|user| !user.contains(':'), "a user has no colon")),
            needed("secret", SECRET),
        ]),
    ),
    maybe("idempotency_header", NAME),
    maybe("plain_http", Rule::Flag),
    needed("reason", REASON),
];

const KEY_VALUE: &[Field] = &[
    needed("namespace", Rule::Text(is_namespace, NAMESPACE_WORDS)),
    needed("access", Rule::Text(|text| matches!(text, "read" | "write"), "access is `read` or `write`")),
    needed("reason", REASON),
];

const NAMESPACE_WORDS: &str = "a namespace is 1 to 128 of the characters a-z A-Z 0-9 . _ / -, and \
    `{external_user_id}` for one namespace a user";

fn is_reason(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= REASON_BYTES_MAX
}

fn is_secret(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    !name.is_empty()
        && !name.starts_with(['.', ':'])
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

fn is_method(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
}

fn is_namespace(text: &str) -> bool {
    let plain = text.replace("{external_user_id}", "u");
    (1..=128).contains(&text.len())
        && plain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}
