//! Values to JSON.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Number, Value};
use wasmtime::component::Val;

use crate::{
    meter::RESULT_BYTES_MAX,
    typed::{SAFE_INTEGER_MAX, shape::Shape},
};

/// Bytes of a JSON text that a value without a text of its own is counted as: a comma, and a digit or bracket.
const VALUE_TEXT_BYTES: usize = 2;

/// Why a value has no JSON.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoJson {
    #[error("the result is too large")]
    TooLarge,
    /// The engine checks that a value has its function's type, so this is a mistake of this host.
    #[error("the result is not of its function's type")]
    Mismatch,
}

/// A result. Its text has about `RESULT_BYTES_MAX` bytes at most; what exactly a call may answer is checked later.
pub(crate) fn result(shape: &Shape, value: Val) -> Result<Value, NoJson> {
    Lowering { bytes_left: RESULT_BYTES_MAX }.json(shape, value)
}

struct Lowering {
    bytes_left: usize,
}

impl Lowering {
    fn json(&mut self, shape: &Shape, value: Val) -> Result<Value, NoJson> {
        self.pay(VALUE_TEXT_BYTES)?;
        Ok(match (shape, value) {
            (Shape::Bool, Val::Bool(value)) => value.into(),
            (Shape::S8, Val::S8(value)) => value.into(),
            (Shape::U8, Val::U8(value)) => value.into(),
            (Shape::S16, Val::S16(value)) => value.into(),
            (Shape::U16, Val::U16(value)) => value.into(),
            (Shape::S32, Val::S32(value)) => value.into(),
            (Shape::U32, Val::U32(value)) => value.into(),
            (Shape::S64, Val::S64(value)) if value.unsigned_abs() <= SAFE_INTEGER_MAX => value.into(),
            (Shape::U64, Val::U64(value)) if value <= SAFE_INTEGER_MAX => value.into(),
            (Shape::S64, Val::S64(value)) => value.to_string().into(),
            (Shape::U64, Val::U64(value)) => value.to_string().into(),
            (Shape::F32, Val::Float32(value)) => float_json(shortest(value)),
            (Shape::F64, Val::Float64(value)) => float_json(value),
            (Shape::Char, Val::Char(value)) => value.to_string().into(),
            (Shape::String, Val::String(value)) => {
                self.pay(text_bytes(&value))?;
                value.into()
            }
            (Shape::Bytes, Val::List(values)) => {
                self.pay(values.len().div_ceil(3) * 4)?;
                let bytes: Vec<u8> = values
                    .into_iter()
                    .map(|value| if let Val::U8(byte) = value { Ok(byte) } else { Err(NoJson::Mismatch) })
                    .collect::<Result<_, _>>()?;
                BASE64.encode(bytes).into()
            }
            (Shape::List(element), Val::List(values))
            | (Shape::FixedList(element, _), Val::FixedLengthList(values)) => {
                values.into_iter().map(|value| self.json(element, value)).collect::<Result<_, _>>()?
            }
            (Shape::Record(fields), Val::Record(values)) if fields.len() == values.len() => {
                let mut object = Map::new();
                for ((_, shape), (name, value)) in fields.iter().zip(values) {
                    self.pay(name.len())?;
                    object.insert(name, self.json(shape, value)?);
                }
                object.into()
            }
            (Shape::Tuple(shapes), Val::Tuple(values)) if shapes.len() == values.len() => {
                shapes.iter().zip(values).map(|(shape, value)| self.json(shape, value)).collect::<Result<_, _>>()?
            }
            (Shape::Variant(cases), Val::Variant(name, payload)) => {
                let shape = cases.get(&name).ok_or(NoJson::Mismatch)?;
                self.one_property(name, shape.as_ref(), payload)?
            }
            (Shape::Result(payloads), Val::Result(Ok(payload))) => {
                self.one_property("ok".into(), payloads[0].as_ref(), payload)?
            }
            (Shape::Result(payloads), Val::Result(Err(payload))) => {
                self.one_property("err".into(), payloads[1].as_ref(), payload)?
            }
            (Shape::Enum(_), Val::Enum(name)) => {
                self.pay(name.len())?;
                name.into()
            }
            (Shape::Flags(_), Val::Flags(names)) => {
                self.pay(names.iter().map(|name| name.len() + VALUE_TEXT_BYTES).sum())?;
                names.into()
            }
            (Shape::Option(_), Val::Option(None)) => Value::Null,
            (Shape::Option(some), Val::Option(Some(value))) if some.is_nullable() => {
                self.one_property("some".into(), Some(some), Some(value))?
            }
            (Shape::Option(some), Val::Option(Some(value))) => self.json(some, *value)?,
            _ => return Err(NoJson::Mismatch),
        })
    }

    fn one_property(
        &mut self,
        name: String,
        shape: Option<&Shape>,
        payload: Option<Box<Val>>,
    ) -> Result<Value, NoJson> {
        self.pay(name.len() + VALUE_TEXT_BYTES)?;
        let payload = match (shape, payload) {
            (Some(shape), Some(value)) => self.json(shape, *value)?,
            (None, None) => Value::Null,
            _ => return Err(NoJson::Mismatch),
        };
        Ok(Value::Object(Map::from_iter([(name, payload)])))
    }

    fn pay(&mut self, bytes: usize) -> Result<(), NoJson> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(NoJson::TooLarge)?;
        Ok(())
    }
}

/// Bytes of a string in JSON: a control character becomes up to six.
fn text_bytes(text: &str) -> usize {
    let bytes = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(bytes).sum()
}

/// The float with the fewest digits that is this one as an `f32`: 0.1, not 0.10000000149011612.
fn shortest(value: f32) -> f64 {
    match value.to_string().parse::<f64>() {
        Ok(short) if short as f32 == value => short,
        _ => value.into(),
    }
}

/// JSON has no NaN and no infinity: they are these texts, as in the JSON of protocol buffers.
fn float_json(value: f64) -> Value {
    match Number::from_f64(value) {
        Some(number) => number.into(),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}
