//! JSON to values, by shape; and back, in `outwards`. The schema has been checked before, by others: nothing here relies
//! on it.

mod outwards;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use indexmap::IndexSet;
use serde_json::{Number, Value};
use wasmtime::component::Val;

pub(crate) use outwards::{NoJson, result};

use super::{SAFE_INTEGER_MAX, schema::INTEGER_TEXT_BYTES_MAX, shape::Shape};
use crate::meter::RESULT_BYTES_MAX;

/// Bytes that arguments may take in the host's memory as values: as much as a result may.
const ARGUMENTS_BYTES_MAX: usize = RESULT_BYTES_MAX;

/// An argument that does not fit its type.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pointer}: {words}")]
pub(crate) struct BadArgument {
    /// A JSON pointer into the arguments.
    pub(crate) pointer: String,
    pub(crate) words: String,
}

/// A function's arguments, in the order of its parameters.
pub(crate) fn arguments(parameters: &[(String, Shape)], arguments: &Value) -> Result<Vec<Val>, BadArgument> {
    let mut lifting = Lifting { bytes_left: ARGUMENTS_BYTES_MAX };
    let fields = lifting.fields(parameters, arguments, &At::ROOT)?;
    Ok(fields.into_iter().map(|(_, value)| value).collect())
}

/// A place in the arguments. Its pointer is made only for an error.
struct At<'a> {
    outer: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    const ROOT: At<'static> = At { outer: None, step: Step::Root };

    fn key(&'a self, key: &'a str) -> At<'a> {
        At { outer: Some(self), step: Step::Key(key) }
    }

    fn index(&'a self, index: usize) -> At<'a> {
        At { outer: Some(self), step: Step::Index(index) }
    }

    fn pointer(&self) -> String {
        let outer = self.outer.map(At::pointer).unwrap_or_default();
        match self.step {
            Step::Root => outer,
            Step::Key(key) => format!("{outer}/{}", key.replace('~', "~0").replace('/', "~1")),
            Step::Index(index) => format!("{outer}/{index}"),
        }
    }

    fn bad(&self, words: impl Into<String>) -> BadArgument {
        BadArgument { pointer: self.pointer(), words: words.into() }
    }
}

struct Lifting {
    bytes_left: usize,
}

impl Lifting {
    fn value(&mut self, shape: &Shape, json: &Value, at: &At<'_>) -> Result<Val, BadArgument> {
        self.pay(size_of::<Val>(), at)?;
        Ok(match shape {
            Shape::Bool => Val::Bool(json.as_bool().ok_or_else(|| at.bad("use true or false"))?),
            Shape::S8 => Val::S8(small(json, at)?),
            Shape::U8 => Val::U8(small(json, at)?),
            Shape::S16 => Val::S16(small(json, at)?),
            Shape::U16 => Val::U16(small(json, at)?),
            Shape::S32 => Val::S32(small(json, at)?),
            Shape::U32 => Val::U32(small(json, at)?),
            Shape::S64 => Val::S64(large(json, at)?),
            Shape::U64 => Val::U64(large(json, at)?),
            Shape::F32 => Val::Float32(float(json, at, f32::MAX.into())? as f32),
            Shape::F64 => Val::Float64(float(json, at, f64::MAX)?),
            Shape::Char => {
                let mut letters = text(json, at)?.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => Val::Char(letter),
                    _ => return Err(at.bad("use a string of exactly one character")),
                }
            }
            Shape::String => {
                let text = text(json, at)?;
                self.pay(text.len(), at)?;
                Val::String(text.to_owned())
            }
            Shape::Bytes => {
                let text = text(json, at)?;
                // Three bytes in four letters.
                self.pay((text.len() / 4 * 3).saturating_mul(size_of::<Val>()), at)?;
                let bytes = BASE64.decode(text).map_err(|error| at.bad(format!("this is not base64: {error}")))?;
                Val::List(bytes.into_iter().map(Val::U8).collect())
            }
            Shape::List(element) => Val::List(self.elements(element, json, at)?),
            Shape::FixedList(element, length) => {
                let values = self.elements(element, json, at)?;
                if values.len() != *length as usize {
                    return Err(at.bad(format!("use an array of exactly {length}, not of {}", values.len())));
                }
                Val::FixedLengthList(values)
            }
            Shape::Record(fields) => Val::Record(self.fields(fields, json, at)?),
            Shape::Tuple(shapes) => {
                let items = array(json, at)?;
                if items.len() != shapes.len() {
                    return Err(at.bad(format!("use an array of exactly {}, not of {}", shapes.len(), items.len())));
                }
                let values = shapes.iter().zip(items).enumerate();
                Val::Tuple(
                    values
                        .map(|(index, (shape, item))| self.value(shape, item, &at.index(index)))
                        .collect::<Result<_, _>>()?,
                )
            }
            Shape::Variant(cases) => {
                let (name, payload) = one_property(json, at)?;
                let Some(shape) = cases.get(name) else {
                    return Err(at.bad(format!("there is no case `{}`", shown(name))));
                };
                self.pay(name.len(), at)?;
                Val::Variant(name.to_owned(), self.payload(shape.as_ref(), payload, &at.key(name))?)
            }
            Shape::Result(payloads) => {
                let (name, payload) = one_property(json, at)?;
                match name {
                    "ok" => Val::Result(Ok(self.payload(payloads[0].as_ref(), payload, &at.key(name))?)),
                    "err" => Val::Result(Err(self.payload(payloads[1].as_ref(), payload, &at.key(name))?)),
                    _ => return Err(at.bad("use an object with `ok` or `err`")),
                }
            }
            Shape::Enum(names) => {
                let name = one_name(names, json, at)?;
                self.pay(name.len(), at)?;
                Val::Enum(name.to_owned())
            }
            Shape::Flags(names) => {
                let items = array(json, at)?;
                let mut flags: Vec<String> = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let name = one_name(names, item, &at.index(index))?;
                    if flags.iter().any(|flag| flag == name) {
                        return Err(at.index(index).bad("this name is there twice"));
                    }
                    self.pay(size_of::<String>() + name.len(), at)?;
                    flags.push(name.to_owned());
                }
                Val::Flags(flags)
            }
            Shape::Option(_) if json.is_null() => Val::Option(None),
            Shape::Option(some) if some.is_nullable() => match one_property(json, at)? {
                ("some", payload) => Val::Option(Some(Box::new(self.value(some, payload, &at.key("some"))?))),
                _ => return Err(at.bad("use null, or an object with `some`")),
            },
            Shape::Option(some) => Val::Option(Some(Box::new(self.value(some, json, at)?))),
        })
    }

    /// An object with these properties; one that may be null may be absent too.
    fn fields(
        &mut self,
        fields: &[(String, Shape)],
        json: &Value,
        at: &At<'_>,
    ) -> Result<Vec<(String, Val)>, BadArgument> {
        let object = json.as_object().ok_or_else(|| at.bad("use an object"))?;
        let mut given = 0;
        let mut values = Vec::with_capacity(fields.len());
        for (name, shape) in fields {
            self.pay(size_of::<String>() + name.len(), at)?;
            let at = at.key(name);
            let value = match object.get(name) {
                Some(json) => {
                    given += 1;
                    self.value(shape, json, &at)?
                }
                None if shape.is_nullable() => self.value(shape, &Value::Null, &at)?,
                None => return Err(at.bad("this is missing")),
            };
            values.push((name.clone(), value));
        }
        if given < object.len()
            && let Some(unknown) = object.keys().find(|key| fields.iter().all(|(name, _)| name != *key))
        {
            return Err(at.key(shown(unknown)).bad("there is no such property"));
        }
        Ok(values)
    }

    fn elements(&mut self, element: &Shape, json: &Value, at: &At<'_>) -> Result<Vec<Val>, BadArgument> {
        let items = array(json, at)?.iter().enumerate();
        items.map(|(index, item)| self.value(element, item, &at.index(index))).collect()
    }

    fn payload(&mut self, shape: Option<&Shape>, json: &Value, at: &At<'_>) -> Result<Option<Box<Val>>, BadArgument> {
        match shape {
            Some(shape) => Ok(Some(Box::new(self.value(shape, json, at)?))),
            None if json.is_null() => Ok(None),
            None => Err(at.bad("this has no value; use null")),
        }
    }

    fn pay(&mut self, bytes: usize, at: &At<'_>) -> Result<(), BadArgument> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or_else(|| {
            at.bad(format!("the arguments take more than {ARGUMENTS_BYTES_MAX} bytes of memory; send less"))
        })?;
        Ok(())
    }
}

fn text<'j>(json: &'j Value, at: &At<'_>) -> Result<&'j str, BadArgument> {
    json.as_str().ok_or_else(|| at.bad("use a string"))
}

fn array<'j>(json: &'j Value, at: &At<'_>) -> Result<&'j [Value], BadArgument> {
    json.as_array().map(Vec::as_slice).ok_or_else(|| at.bad("use an array"))
}

fn one_property<'j>(json: &'j Value, at: &At<'_>) -> Result<(&'j str, &'j Value), BadArgument> {
    let mut properties = json.as_object().into_iter().flatten();
    match (properties.next(), properties.next()) {
        (Some((name, value)), None) => Ok((name, value)),
        _ => Err(at.bad("use an object with exactly one property")),
    }
}

fn one_name<'j>(names: &IndexSet<String>, json: &'j Value, at: &At<'_>) -> Result<&'j str, BadArgument> {
    let name = text(json, at)?;
    if names.contains(name) {
        return Ok(name);
    }
    let known = names.iter().take(10).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = if names.len() > 10 { ", ..." } else { "" };
    Err(at.bad(format!("`{}` is not one of {known}{more}", shown(name))))
}

/// As much of a stranger's text as an error quotes.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(80)]
}

/// An integer of at most 32 bits.
fn small<T: TryFrom<i128> + Bounded>(json: &Value, at: &At<'_>) -> Result<T, BadArgument> {
    let number = json.as_number().and_then(whole);
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| at.bad(T::words("")))
}

/// An integer of 64 bits, as a number or as a text of decimal digits.
fn large<T: TryFrom<i128> + Bounded>(json: &Value, at: &At<'_>) -> Result<T, BadArgument> {
    let number = match json {
        Value::Number(number) => whole(number),
        Value::String(text) => decimal(text),
        _ => None,
    };
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| at.bad(T::words(", or a string of its digits")))
}

/// `1.0` is an integer in JSON Schema. Above what a float keeps apart it would be some other integer.
fn whole(number: &Number) -> Option<i128> {
    if let Some(number) = number.as_i128() {
        return Some(number);
    }
    let float = number.as_f64()?;
    (float.fract() == 0.0 && float.abs() <= SAFE_INTEGER_MAX as f64).then_some(float as i128)
}

fn decimal(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let fits = text.len() <= INTEGER_TEXT_BYTES_MAX && !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if fits { text.parse().ok() } else { None }
}

trait Bounded {
    fn words(also: &str) -> String;
}

macro_rules! bounded {
    ($($int:ty),*) => {
        $(impl Bounded for $int {
            fn words(also: &str) -> String {
                format!("use an integer from {} to {}{also}", <$int>::MIN, <$int>::MAX)
            }
        })*
    };
}

bounded!(i8, u8, i16, u16, i32, u32, i64, u64);

fn float(json: &Value, at: &At<'_>, max: f64) -> Result<f64, BadArgument> {
    let number = json.as_f64().ok_or_else(|| at.bad("use a number"))?;
    if number.abs() <= max { Ok(number) } else { Err(at.bad(format!("use a number from {:e} to {max:e}", -max))) }
}

#[cfg(test)]
mod tests;
