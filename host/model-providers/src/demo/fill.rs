//! Arguments for a function out of a message, by the function's schema. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::find;

pub(super) struct Filled {
    pub(super) arguments: Map<String, Value>,
    /// How telling the things are that were found.
    pub(super) score: u32,
}

/// What a property wants, as far as its schema, name and description tell.
#[derive(Debug, Clone, PartialEq)]
enum Wants {
    OneOf(Vec<Value>),
    Integer,
    Number,
    Boolean,
    Date,
    Zone,
    Expression,
    Table,
    Url,
    Email,
    Text,
    List(Box<Wants>),
    /// Objects, and what has no type.
    Unknown,
}

/// How well something in the message fits.
const CERTAIN: u32 = 3;
const LIKELY: u32 = 2;
const POSSIBLE: u32 = 1;

/// Fills what is required, and of the rest what the message names or surely means. `None` if something required is not
/// in the message.
pub(super) fn fill(schema: &Value, read: &Read, function_words: &BTreeSet<String>) -> Option<Filled> {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut filled = Filled { arguments: Map::new(), score: 0 };
    let is_required: BTreeSet<&str> = required.iter().copied().collect();
    let mut source = Source::new(read, function_words, required.len() == 1);
    let empty = Map::new();
    let properties = schema["properties"].as_object().unwrap_or(&empty);
    // Required ones first, and in their order: `from` comes before `to`.
    let optional = properties.keys().map(String::as_str).filter(|name| !is_required.contains(name));
    for (name, is_required) in required.iter().map(|name| (*name, true)).chain(optional.map(|name| (name, false))) {
        let property = resolve(schema, properties.get(name).unwrap_or(&Value::Null));
        match source.take(&wants(name, property), name, is_required) {
            Some((value, score)) => {
                filled.arguments.insert(name.to_owned(), value);
                filled.score += score;
            }
            None if is_required => return None,
            None => {}
        }
    }
    Some(filled)
}

/// Arguments that fit a schema, to show how a call is written.
pub(super) fn example(schema: &Value) -> Value {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let arguments = required.map(|name| {
        let property = resolve(schema, &schema["properties"][name]);
        (name.to_owned(), example_of(&wants(name, property)))
    });
    Value::Object(arguments.collect())
}

fn example_of(wants: &Wants) -> Value {
    match wants {
        Wants::OneOf(values) => values.first().cloned().unwrap_or_default(),
        Wants::Integer | Wants::Number => json!(1),
        Wants::Boolean => json!(true),
        Wants::Date => json!("2026-01-31"),
        Wants::Zone => json!("Europe/Berlin"),
        Wants::Expression => json!("12.5 * 3"),
        Wants::Table => json!("city,amount\nRome,3\nOslo,4"),
        Wants::Url => json!("https://example.com"),
        Wants::Email => json!("ada@example.com"),
        Wants::Text => json!("some text"),
        Wants::List(item) => json!([example_of(item)]),
        Wants::Unknown => json!({}),
    }
}

/// Follows a local reference, and takes the first alternative that is not null, as optional values are written.
fn resolve<'a>(root: &'a Value, mut property: &'a Value) -> &'a Value {
    // References may form a circle; no honest schema has this many in a row.
    for _ in 0..8 {
        let alternatives = ["anyOf", "oneOf", "allOf"].into_iter().find_map(|word| property[word].as_array());
        let target = match (property["$ref"].as_str(), alternatives) {
            (Some(reference), _) => reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)),
            (None, Some(all)) if !all.iter().any(|one| one.get("const").is_some()) => {
                all.iter().find(|one| one["type"] != "null")
            }
            _ => None,
        };
        match target {
            Some(target) => property = target,
            None => break,
        }
    }
    property
}

fn wants(name: &str, schema: &Value) -> Wants {
    let constants = schema["oneOf"].as_array().map(|all| all.iter().filter_map(|one| one.get("const").cloned()));
    let values: Vec<Value> = match (schema["enum"].as_array(), constants) {
        (Some(values), _) => values.iter().filter(|value| !value.is_null()).cloned().collect(),
        (None, Some(constants)) => constants.collect(),
        (None, None) => schema.get("const").cloned().into_iter().collect(),
    };
    if !values.is_empty() {
        return Wants::OneOf(values);
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    match kind {
        Some("integer") => Wants::Integer,
        Some("number") => Wants::Number,
        Some("boolean") => Wants::Boolean,
        Some("array") => Wants::List(Box::new(wants(name, &schema["items"]))),
        Some("string") => text_wants(name, schema),
        _ => Wants::Unknown,
    }
}

fn text_wants(name: &str, schema: &Value) -> Wants {
    let description = schema["description"].as_str().unwrap_or_default();
    let (named, described) = (find::words(name), find::words(description));
    let has = |word: &str| named.iter().chain(&described).any(|found| found == word);
    let is_named = |words: &[&str]| words.iter().any(|word| named.iter().any(|found| found == word));
    let is_border = is_named(&["from", "to", "start", "end", "since", "until", "begin"]);
    match schema["format"].as_str().unwrap_or_default() {
        "date" | "date-time" => return Wants::Date,
        "uri" | "url" => return Wants::Url,
        "email" => return Wants::Email,
        _ => {}
    }
    if has("csv") {
        Wants::Table
    } else if is_named(&["date", "day"]) || description.contains("YYYY-MM-DD") || is_border && has("date") {
        Wants::Date
    } else if has("zone") || has("timezone") || has("iana") || is_named(&["tz"]) {
        Wants::Zone
    } else if is_named(&["expression", "formula", "calculation"]) || has("arithmetic") {
        Wants::Expression
    } else if is_named(&["url", "uri"]) {
        Wants::Url
    } else if is_named(&["email"]) {
        Wants::Email
    } else {
        Wants::Text
    }
}

/// What a message holds, found once for all functions and all their properties.
pub(super) struct Read<'a> {
    message: &'a str,
    table: Option<&'a str>,
    /// The message without its table.
    prose: String,
    /// The words of `prose`, and the same to compare names with.
    said: Vec<String>,
    plain: Vec<String>,
    words: Vec<String>,
    zone: Option<String>,
    expression: Option<String>,
    dates: Vec<String>,
    numbers: Vec<String>,
    quoted: Vec<String>,
}

impl<'a> Read<'a> {
    pub(super) fn new(message: &'a str) -> Self {
        let table = find::table(message);
        let prose = table.map_or_else(|| message.to_owned(), |table| message.replace(table, " "));
        let owned = |found: Vec<&str>| found.into_iter().rev().map(str::to_owned).collect();
        let mut numbers = find::numbers(&prose);
        numbers.reverse();
        let spaced = prose.replace('=', " = ").replace(": ", " : ");
        let said: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        Read {
            message,
            table,
            plain: said.iter().map(|word| find::words(word).concat()).collect(),
            said,
            words: find::words(&prose),
            zone: find::zone(&prose).map(str::to_owned),
            expression: find::expression(&prose),
            dates: owned(find::dates(&prose)),
            numbers,
            quoted: owned(find::quoted(&prose)),
            prose,
        }
    }
}

/// What is left of the message to fill arguments from. What was taken once is not taken again.
struct Source<'a> {
    read: &'a Read<'a>,
    function_words: &'a BTreeSet<String>,
    dates: Vec<String>,
    numbers: Vec<String>,
    quoted: Vec<String>,
    /// The one required property may have all the rest of the message.
    only_one: bool,
}

impl<'a> Source<'a> {
    fn new(read: &'a Read<'a>, function_words: &'a BTreeSet<String>, only_one: bool) -> Source<'a> {
        let (dates, numbers, quoted) = (read.dates.clone(), read.numbers.clone(), read.quoted.clone());
        Source { read, function_words, dates, numbers, quoted, only_one }
    }

    fn take(&mut self, wants: &Wants, name: &str, is_required: bool) -> Option<(Value, u32)> {
        let text = |text: String, score| (Value::String(text), score);
        match wants {
            Wants::OneOf(values) => {
                let said = &self.read.words;
                let is_said = |value: &&Value| {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    let words = find::words(&value);
                    !words.is_empty() && said.windows(words.len()).any(|window| window == words)
                };
                values.iter().find(is_said).map(|value| (value.clone(), LIKELY))
            }
            Wants::Integer | Wants::Number => self.take_number(*wants == Wants::Integer, name, is_required),
            Wants::Boolean => {
                let named = self.named(name).first().and_then(|word| match word.as_str() {
                    "true" | "yes" | "on" => Some((json!(true), POSSIBLE)),
                    "false" | "no" | "off" => Some((json!(false), POSSIBLE)),
                    _ => None,
                });
                named.or_else(|| is_required.then_some((json!(false), 0)))
            }
            Wants::Date => {
                let named = self.named(name).into_iter().find(|word| find::dates(word).first() == Some(&word.as_str()));
                let date = match named.and_then(|word| self.dates.iter().rposition(|date| *date == word)) {
                    Some(at) => Some(self.dates.remove(at)),
                    None if is_required => self.dates.pop(),
                    None => None,
                };
                date.map(|date| text(date, CERTAIN))
            }
            Wants::Zone => self.read.zone.clone().map(|zone| text(zone, CERTAIN)),
            Wants::Expression => self.read.expression.clone().map(|found| text(found, CERTAIN)),
            Wants::Table => self.read.table.map(|table| text(table.to_owned(), CERTAIN)),
            Wants::Url => self.token(|token| token.starts_with("https://") || token.starts_with("http://")),
            Wants::Email => self.token(|token| token.find('@').is_some_and(|at| at > 0 && at + 1 < token.len())),
            Wants::Text if is_required => self.take_text(name),
            Wants::Text => self.named(name).into_iter().next().map(|word| text(word, LIKELY)),
            Wants::List(item) => self.take_list(item, name, is_required),
            Wants::Unknown => None,
        }
    }

    fn token(&self, fits: impl Fn(&str) -> bool) -> Option<(Value, u32)> {
        find::tokens(&self.read.prose).find(|token| fits(token)).map(|token| (Value::String(token.to_owned()), CERTAIN))
    }

    fn take_number(&mut self, whole: bool, name: &str, is_required: bool) -> Option<(Value, u32)> {
        let parse = |text: &str| -> Option<Value> {
            match text.parse::<i64>() {
                Ok(number) => Some(json!(number)),
                Err(_) if whole => None,
                Err(_) => text.parse::<f64>().ok().map(|number| json!(number)),
            }
        };
        if let Some(word) = self.named(name).first()
            && let Some(number) = parse(word)
        {
            self.numbers.retain(|left| left != word);
            return Some((number, LIKELY));
        }
        let at = self.numbers.iter().rposition(|text| parse(text).is_some()).filter(|_| is_required)?;
        parse(&self.numbers.remove(at)).map(|number| (number, POSSIBLE))
    }

    /// Quoted text, else what follows a colon or the property's name, else the message without its request.
    fn take_text(&mut self, name: &str) -> Option<(Value, u32)> {
        if let Some(quoted) = self.quoted.pop() {
            return Some((Value::String(quoted), POSSIBLE));
        }
        let message = self.read.message;
        let after_colon = message.split_once(": ").or_else(|| message.split_once(":\n"));
        if let (true, Some((_, text))) = (self.only_one, after_colon) {
            return Some((Value::String(text.trim().to_owned()), POSSIBLE));
        }
        if let (false, Some(word)) = (self.only_one, self.named(name).into_iter().next()) {
            return Some((Value::String(word), LIKELY));
        }
        let named = find::words(name);
        let is_request = |word: &str| {
            let words = find::words(word);
            !words.is_empty()
                && words.iter().all(|word| {
                    self.function_words.contains(word)
                        || named.contains(word)
                        || REQUEST_WORDS.split(' ').any(|w| w == word)
                })
        };
        let mut rest = message.trim();
        while let Some(word) = rest.split_whitespace().next()
            && is_request(word)
        {
            rest = rest[word.len()..].trim_start();
        }
        let text = if rest.is_empty() { message.trim() } else { rest };
        (!text.is_empty()).then(|| (Value::String(text.to_owned()), 0))
    }

    fn take_list(&mut self, item: &Wants, name: &str, is_required: bool) -> Option<(Value, u32)> {
        match item {
            Wants::Integer | Wants::Number if is_required => {
                let mut all = Vec::new();
                while let Some((number, _)) = self.take_number(*item == Wants::Integer, "", true) {
                    all.push(number);
                }
                (!all.is_empty()).then_some((Value::Array(all), POSSIBLE))
            }
            Wants::Text => {
                let mut words = self.named(name);
                if let Some(table) = self.read.table {
                    let columns: Vec<&str> =
                        table.lines().next().unwrap_or_default().split(',').map(str::trim).collect();
                    words.retain(|word| columns.contains(&word.as_str()));
                }
                if words.is_empty() && is_required {
                    words = self.quoted.drain(..).rev().collect();
                }
                (!words.is_empty()).then(|| (json!(words), LIKELY))
            }
            _ => self.take(item, name, is_required).map(|(value, score)| (json!([value]), score)),
        }
    }

    /// The words that follow the property's name: `limit 5`, `sum of amount`, `group by city, country`. Of a name of
    /// several words its first or last one will do.
    fn named(&self, name: &str) -> Vec<String> {
        let name = find::words(name);
        let Read { said, plain, .. } = self.read;
        let ends = [&name[..], &name[..name.len().min(1)], &name[name.len().saturating_sub(1)..]];
        let after = ends.into_iter().filter(|words| !words.is_empty()).find_map(|words| {
            let at = plain.windows(words.len()).position(|window| window == words)?;
            Some(at + words.len())
        });
        let Some(after) = after else { return Vec::new() };
        let mut found = Vec::new();
        let mut rest =
            said[after..].iter().skip_while(|word| FILLERS.split(' ').any(|filler| filler == word.as_str())).peekable();
        while let Some(word) = rest.next() {
            let bare = find::bare(word);
            if !bare.is_empty() {
                found.push(bare.to_owned());
            }
            let goes_on = word.ends_with(',') | rest.next_if(|next| **next == "and").is_some();
            if !goes_on {
                break;
            }
        }
        found
    }
}

/// Words between a property's name and its value.
const FILLERS: &str = "of is are = : the a an equals";
/// Words that ask for something and are not part of it.
const REQUEST_WORDS: &str = "please can could you me my the a an this that of for to with into i want need what is";
