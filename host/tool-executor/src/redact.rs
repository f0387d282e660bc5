//! Takes secrets out of what comes back to a tool and of what people read. Pure.
//!
//! A server may reflect what it was sent. Found are a secret's exact bytes, and these forms of the whole value: percent
//! encoding (upper and lower case; of everything that is not unreserved, as `encodeURIComponent` does it, as a form
//! does it, and as a URL's query does it), base64 (standard and URL-safe, also of `user:secret`), hex, and the escapes
//! of JSON and HTML. Not found is a secret that a server changed in another way: reversed, hashed, compressed, in
//! another charset, or as a part of something that was encoded as a whole.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    ops::Range,
    sync::Arc,
};

use aho_corasick::{
    Anchored,
    automaton::{Automaton, StateID},
    nfa::contiguous::NFA,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};

/// Shortest secret that is looked for, in bytes. A shorter one occurs by chance in ordinary answers: what is left of
/// them would be useless, and the gaps would confirm a guess.
const SECRET_BYTES_MIN: usize = 6;
/// All forms that are looked for together, in bytes. An automaton takes about sixty times as much memory while it is
/// made. Where the room ends, the longest secrets are looked for by their exact bytes alone.
const FORMS_BYTES_MAX: usize = 256 << 10;
/// What stands in a text or a header in place of a secret.
const IN_PLACE: &str = "[secret]";
/// What stands in a body in place of each byte of a secret: the body keeps its length, which its head has told.
const MASK: u8 = b'*';

/// The forms of some secrets, ready to be found in one pass.
pub(crate) struct Redactor {
    sought: Sought,
    start: StateID,
    /// How much of the longest form that may begin in the bytes so far lies behind them, by state.
    depths: HashMap<StateID, usize>,
}

enum Sought {
    Nothing,
    Forms(Box<NFA>),
    /// There are too many secrets to look for: all bytes are taken out.
    Everything,
}

impl Redactor {
    /// `values` are secrets in the clear; `basic` are users and passwords as they are sent together.
    pub(crate) fn new<'s>(
        values: impl IntoIterator<Item = &'s str>,
        basic: impl IntoIterator<Item = (&'s str, &'s str)>,
    ) -> Redactor {
        let forms = forms(
            values.into_iter().filter(|value| value.len() >= SECRET_BYTES_MIN).collect(),
            basic.into_iter().filter(|(_, password)| password.len() >= SECRET_BYTES_MIN).collect(),
        );
        let mut redactor = Redactor { sought: Sought::Nothing, start: StateID::default(), depths: HashMap::new() };
        if forms.as_ref().is_some_and(BTreeSet::is_empty) {
            return redactor;
        }
        let automaton = forms.as_ref().and_then(|forms| NFA::new(forms).ok());
        let start = automaton.as_ref().and_then(|automaton| automaton.start_state(Anchored::No).ok());
        let (Some(forms), Some(automaton), Some(start)) = (forms, automaton, start) else {
            return Redactor { sought: Sought::Everything, ..redactor };
        };
        for form in &forms {
            let mut state = start;
            for (depth, byte) in form.iter().enumerate() {
                state = automaton.next_state(Anchored::No, state, *byte);
                redactor.depths.insert(state, depth + 1);
            }
        }
        Redactor { sought: Sought::Forms(Box::new(automaton)), start, ..redactor }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.sought, Sought::Nothing)
    }

    /// Nothing that comes back could be of use.
    pub(crate) fn is_blind(&self) -> bool {
        matches!(self.sought, Sought::Everything)
    }

    pub(crate) fn text(&self, text: &str) -> String {
        match self.replaced(text.as_bytes()) {
            None => text.to_owned(),
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// Every value of every header.
    pub(crate) fn headers(&self, headers: &mut HeaderMap) {
        for value in headers.values_mut() {
            if let Some(bytes) = self.replaced(value.as_bytes()) {
                *value = HeaderValue::from_bytes(&bytes).unwrap_or(HeaderValue::from_static(IN_PLACE));
            }
        }
    }

    /// `None`: there is nothing to replace. A text may have been cut: a secret's first part at its end counts too.
    fn replaced(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.is_blind() {
            return Some(IN_PLACE.into());
        }
        let mut state = self.start;
        let mut found = self.find(&mut state, bytes, 0);
        let begun = self.depth(state);
        if begun >= SECRET_BYTES_MIN {
            add_range(&mut found, bytes.len() - begun..bytes.len());
        }
        if found.is_empty() {
            return None;
        }
        let (mut replaced, mut from) = (Vec::with_capacity(bytes.len()), 0);
        for range in found {
            replaced.extend_from_slice(&bytes[from..range.start]);
            replaced.extend_from_slice(IN_PLACE.as_bytes());
            from = range.end;
        }
        replaced.extend_from_slice(&bytes[from..]);
        Some(replaced)
    }

    /// What secrets cover in `bytes`, in order. `before` bytes came in front of them; ranges count from there.
    fn find(&self, state: &mut StateID, bytes: &[u8], before: usize) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let Sought::Forms(automaton) = &self.sought else { return found };
        for (index, byte) in bytes.iter().enumerate() {
            *state = automaton.next_state(Anchored::No, *state, *byte);
            if automaton.is_special(*state) && automaton.is_match(*state) {
                // All forms that end here: the longest covers the others.
                let forms = (0..automaton.match_len(*state)).map(|n| automaton.match_pattern(*state, n));
                let longest = forms.map(|form| automaton.pattern_len(form)).max().unwrap_or_default();
                let end = before + index + 1;
                // A part of it may have passed already, as a part of another one.
                add_range(&mut found, end.saturating_sub(longest)..end);
            }
        }
        found
    }

    fn depth(&self, state: StateID) -> usize {
        self.depths.get(&state).copied().unwrap_or_default()
    }
}

/// Ends are given in order; what overlaps becomes one.
fn add_range(ranges: &mut Vec<Range<usize>>, mut range: Range<usize>) {
    while let Some(last) = ranges.pop_if(|last| range.start < last.end) {
        range.start = range.start.min(last.start);
    }
    ranges.push(range);
}

/// One body on its way. Bytes that may be the begin of a secret wait for what follows them; all others pass at once.
pub(crate) struct Redaction {
    redactor: Arc<Redactor>,
    state: StateID,
    /// The begin of what may be a secret; parts that another secret covers are masked already.
    held: BytesMut,
}

impl Redaction {
    pub(crate) fn new(redactor: Arc<Redactor>) -> Redaction {
        Redaction { state: redactor.start, redactor, held: BytesMut::new() }
    }

    /// What may pass now.
    pub(crate) fn push(&mut self, piece: Bytes) -> Bytes {
        if self.redactor.is_blind() {
            return vec![MASK; piece.len()].into();
        }
        let found = self.redactor.find(&mut self.state, &piece, self.held.len());
        let begun = self.redactor.depth(self.state);
        if self.held.is_empty() && found.is_empty() && begun == 0 {
            return piece;
        }
        self.held.extend_from_slice(&piece);
        let mut passing = self.held.len().saturating_sub(begun);
        for range in found {
            // What is masked need not wait, even where a longer secret may have begun in it.
            if range.start <= passing {
                passing = passing.max(range.end);
            }
            self.held[range].fill(MASK);
        }
        self.held.split_to(passing).freeze()
    }

    /// The rest, at the end of the body. A secret that the end cuts off is masked too.
    pub(crate) fn finish(&mut self) -> Bytes {
        if self.held.len() >= SECRET_BYTES_MIN {
            self.held.fill(MASK);
        }
        self.state = self.redactor.start;
        self.held.split().freeze()
    }
}

/// `None`: more than can be looked for.
fn forms(mut values: Vec<&str>, basic: Vec<(&str, &str)>) -> Option<BTreeSet<Vec<u8>>> {
    let bytes = |forms: &BTreeSet<Vec<u8>>| forms.iter().map(Vec::len).sum::<usize>();
    let mut forms: BTreeSet<Vec<u8>> = values.iter().map(|value| value.as_bytes().into()).collect();
    for (user, password) in basic {
        add_base64(format!("{user}:{password}").as_bytes(), &mut forms);
    }
    let mut room = FORMS_BYTES_MAX.checked_sub(bytes(&forms))?;
    values.sort_unstable_by_key(|value| (value.len(), *value));
    values.dedup();
    for value in values {
        let mut own = BTreeSet::new();
        add_forms(value, &mut own);
        match room.checked_sub(bytes(&own)) {
            Some(rest) => room = rest,
            None => break,
        }
        forms.append(&mut own);
    }
    Some(forms)
}

fn add_forms(value: &str, forms: &mut BTreeSet<Vec<u8>>) {
    let bytes = value.as_bytes();
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_component = move |byte: u8| is_unreserved(byte) || b"!*'()".contains(&byte);
    let is_form = |byte: u8| byte.is_ascii_alphanumeric() || b"*-._".contains(&byte);
    let is_query = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>'".contains(&byte);
    for upper in [true, false] {
        forms.insert(percent(bytes, upper, is_unreserved).into());
        forms.insert(percent(bytes, upper, is_component).into());
        forms.insert(percent(bytes, upper, is_form).replace("%20", "+").into());
        forms.insert(percent(bytes, upper, is_query).into());
    }
    add_base64(bytes, forms);
    forms.insert(hex::encode(bytes).into());
    forms.insert(hex::encode_upper(bytes).into());
    // Encoders differ in what they escape beyond the necessary: slashes, what is special in HTML, what is not ASCII.
    let json = serde_json::Value::from(value).to_string();
    let json = &json[1..json.len() - 1];
    for slashes in [json.to_owned(), json.replace('/', "\\/")] {
        for escaped in [slashes.clone(), escaped_units(&slashes, "")] {
            forms.insert(escaped.into());
        }
        forms.insert(escaped_units(&slashes, "<>&'").into());
    }
    for apostrophe in ["&#39;", "&#x27;", "&apos;"] {
        let html = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
        forms.insert(html.replace('\'', apostrophe).into());
    }
    forms.insert(value.into());
}

fn percent(bytes: &[u8], upper: bool, stays: impl Fn(u8) -> bool) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = match (stays(*byte), upper) {
            (true, _) => text.write_char(char::from(*byte)),
            (false, true) => write!(text, "%{byte:02X}"),
            (false, false) => write!(text, "%{byte:02x}"),
        };
        text
    })
}

fn add_base64(bytes: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    // Padding tells nothing.
    forms.insert(STANDARD_NO_PAD.encode(bytes).into());
    forms.insert(URL_SAFE_NO_PAD.encode(bytes).into());
}

/// JSON's `\u` escapes in place of what is not ASCII, and of `also`.
fn escaped_units(text: &str, also: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, char| {
        if char.is_ascii() && !also.contains(char) {
            escaped.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        }
        escaped
    })
}

#[cfg(test)]
mod tests;
