//! Names and ids that go back to a provider which may not have made them: another model may have answered before. Pure.

use std::borrow::Cow;

/// Longest name of a function that every provider takes.
const FUNCTION_CHARS_MAX: usize = 64;

/// The name of a function as every provider takes it. Ours all are so; what a model made up may not be.
pub(crate) fn function(name: &str) -> Cow<'_, str> {
    match plain(name) {
        Cow::Borrowed("") => Cow::Borrowed("unnamed"),
        name if name.len() > FUNCTION_CHARS_MAX => Cow::Owned(name[..FUNCTION_CHARS_MAX].to_owned()),
        name => name,
    }
}

/// Letters, digits, `_` and `-`; everything else becomes `_`.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|c| if is_plain(c) { c } else { '_' }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_nobody_takes_becomes_one_that_all_do() {
        for (name, expected) in [
            ("calc__evaluate", "calc__evaluate"),
            ("functions.get_weather:0", "functions_get_weather_0"),
            ("Grüße", "Gr__e"),
            ("", "unnamed"),
        ] {
            assert_eq!(function(name), expected);
        }
        assert_eq!(function(&"n".repeat(100)).len(), 64);
        assert_eq!(plain("call:é"), "call__");
    }
}
