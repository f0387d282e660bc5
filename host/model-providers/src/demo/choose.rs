//! Which function fits a message: by shared words, and by how well its arguments can be filled. Pure.

use std::collections::BTreeSet;

use domain::message::FunctionSpec;

use super::{Call, fill, find};

/// What a word counts that is in the message and in a function's name.
const NAME_WORD_SCORE: u32 = 3;
/// The same for its description.
const DESCRIPTION_WORD_SCORE: u32 = 2;
/// Words of a description that count at most: a long one says no more than a short one.
const DESCRIPTION_WORDS_MAX: usize = 3;
/// Below this a function does not fit.
const SCORE_MIN: u32 = 2;

/// Words that are in every message and every description.
const EMPTY_WORDS: &str = "a an and are as at be by can could do does for from give has have hello hi how i if in into \
    is it its just let made make many me much my of on one or please return show tell that the their them there thi \
    these thing this to two tool use used using value want wa what when where which who why will with would you your";

/// The first of the functions that fit best, and arguments for it.
pub(super) fn function(message: &str, functions: &[FunctionSpec]) -> Option<Call> {
    let said = telling_words(message);
    let read = fill::Read::new(message);
    let mut best = None::<(u32, Call)>;
    for function in functions {
        let name = telling_words(&function.model_name);
        let description = telling_words(&function.description);
        let Some(filled) = fill::fill(&function.input_schema, &read, &name) else { continue };
        let score = filled.score
            + NAME_WORD_SCORE * name.intersection(&said).count() as u32
            + DESCRIPTION_WORD_SCORE * description.intersection(&said).count().min(DESCRIPTION_WORDS_MAX) as u32;
        if score >= SCORE_MIN && best.as_ref().is_none_or(|(most, _)| score > *most) {
            best = Some((score, Call { name: function.model_name.clone(), arguments: filled.arguments.into() }));
        }
    }
    best.map(|(_, call)| call)
}

fn telling_words(text: &str) -> BTreeSet<String> {
    let is_telling =
        |word: &String| !word.bytes().all(|b| b.is_ascii_digit()) && !EMPTY_WORDS.split_whitespace().any(|w| w == word);
    find::words(text).into_iter().filter(is_telling).collect()
}
