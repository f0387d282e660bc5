//! A type and JSON for it: what is taken fits the schema, and comes back as the same value.

#![no_main]

use libfuzzer_sys::{
    arbitrary::{self, Unstructured},
    fuzz_target,
};
use serde_json::{Map, Value, json};
use tool_executor::fuzzing::{Shape, json_values};

/// Types inside types.
const DEPTH_MAX: u32 = 6;
const NAMES: [&str; 6] = ["a", "b-c", "some", "ok", "err", "x1"];

fuzz_target!(|bytes: &[u8]| {
    let mut from = Unstructured::new(bytes);
    let Ok(shape) = shape(&mut from, 0) else { return };
    // The rest as JSON where it is some, else as choices that mostly fit the type.
    if let Ok(json) = serde_json::from_slice(from.peek_bytes(from.len()).unwrap_or_default()) {
        json_values(&shape, &json);
    }
    if let Ok(json) = fitting(&mut from, &shape) {
        json_values(&shape, &json);
    }
});

fn shape(from: &mut Unstructured<'_>, depth: u32) -> arbitrary::Result<Shape> {
    let last = if depth == DEPTH_MAX { 15 } else { 22 };
    let depth = depth + 1;
    Ok(match from.int_in_range(0..=last)? {
        0 => Shape::Bool,
        1 => Shape::S8,
        2 => Shape::U8,
        3 => Shape::S16,
        4 => Shape::U16,
        5 => Shape::S32,
        6 => Shape::U32,
        7 => Shape::S64,
        8 => Shape::U64,
        9 => Shape::F32,
        10 => Shape::F64,
        11 => Shape::Char,
        12 => Shape::String,
        13 => Shape::Bytes,
        14 => Shape::Enum(names(from)?.into_iter().collect()),
        15 => Shape::Flags(names(from)?.into_iter().collect()),
        16 => Shape::List(Box::new(shape(from, depth)?)),
        17 => Shape::FixedList(Box::new(shape(from, depth)?), from.int_in_range(1..=3)?),
        18 => Shape::Record(
            names(from)?.into_iter().map(|name| Ok((name, shape(from, depth)?))).collect::<arbitrary::Result<_>>()?,
        ),
        19 => Shape::Tuple((0..from.int_in_range(1..=3)?).map(|_| shape(from, depth)).collect::<Result<_, _>>()?),
        20 => Shape::Variant(
            names(from)?.into_iter().map(|name| Ok((name, payload(from, depth)?))).collect::<arbitrary::Result<_>>()?,
        ),
        21 => Shape::Option(Box::new(shape(from, depth)?)),
        _ => Shape::Result(Box::new([payload(from, depth)?, payload(from, depth)?])),
    })
}

fn payload(from: &mut Unstructured<'_>, depth: u32) -> arbitrary::Result<Option<Shape>> {
    if from.ratio(1, 3)? { Ok(None) } else { shape(from, depth).map(Some) }
}

fn names(from: &mut Unstructured<'_>) -> arbitrary::Result<Vec<String>> {
    let first = from.int_in_range(0..=NAMES.len() - 1)?;
    let last = from.int_in_range(first..=NAMES.len() - 1)?;
    Ok(NAMES[first..=last].iter().map(|&name| name.to_owned()).collect())
}

fn fitting(from: &mut Unstructured<'_>, shape: &Shape) -> arbitrary::Result<Value> {
    if from.ratio(1, 20)? {
        return Ok(from.choose(&[json!(null), json!(0), json!(""), json!([]), json!({}), json!("NaN")])?.clone());
    }
    Ok(match shape {
        Shape::Bool => from.arbitrary::<bool>()?.into(),
        Shape::S8 | Shape::U8 | Shape::S16 | Shape::U16 => from.arbitrary::<i16>()?.into(),
        Shape::S32 | Shape::U32 => from.arbitrary::<i64>()?.into(),
        Shape::S64 | Shape::U64 => match from.int_in_range(0..=3)? {
            0 => from.arbitrary::<u64>()?.into(),
            1 => from.arbitrary::<i64>()?.into(),
            2 => from.arbitrary::<f64>()?.into(),
            _ => from.arbitrary::<i64>()?.to_string().into(),
        },
        Shape::F32 | Shape::F64 => from.arbitrary::<f64>()?.into(),
        Shape::Char => from.arbitrary::<char>()?.to_string().into(),
        Shape::String | Shape::Bytes => from.arbitrary::<&str>()?.into(),
        Shape::Enum(names) => chosen(from, names.len(), |index| names.get_index(index))?.as_str().into(),
        Shape::Flags(names) => Value::Array(
            (0..from.int_in_range(0..=names.len())?)
                .map(|_| Ok(chosen(from, names.len(), |index| names.get_index(index))?.as_str().into()))
                .collect::<arbitrary::Result<_>>()?,
        ),
        Shape::List(element) => several(from, element, 0)?,
        Shape::FixedList(element, length) => several(from, element, *length)?,
        Shape::Record(fields) => {
            let mut object = Map::new();
            for (name, shape) in fields {
                if !from.ratio(1, 8)? {
                    object.insert(name.clone(), fitting(from, shape)?);
                }
            }
            object.into()
        }
        Shape::Tuple(shapes) => {
            Value::Array(shapes.iter().map(|shape| fitting(from, shape)).collect::<Result<_, _>>()?)
        }
        Shape::Variant(cases) => {
            let (name, payload) = chosen(from, cases.len(), |index| cases.get_index(index))?;
            json!({ name: fitting_payload(from, payload.as_ref())? })
        }
        Shape::Option(_) if from.ratio(1, 4)? => Value::Null,
        Shape::Option(some) if matches!(**some, Shape::Option(_)) => json!({ "some": fitting(from, some)? }),
        Shape::Option(some) => fitting(from, some)?,
        Shape::Result(payloads) => match from.arbitrary()? {
            true => json!({ "ok": fitting_payload(from, payloads[0].as_ref())? }),
            false => json!({ "err": fitting_payload(from, payloads[1].as_ref())? }),
        },
    })
}

/// One of `length` members of a type.
fn chosen<T>(from: &mut Unstructured<'_>, length: usize, get: impl Fn(usize) -> Option<T>) -> arbitrary::Result<T> {
    get(from.choose_index(length)?).ok_or(arbitrary::Error::IncorrectFormat)
}

/// `length` elements, or a few.
fn several(from: &mut Unstructured<'_>, element: &Shape, length: u32) -> arbitrary::Result<Value> {
    let length = if length == 0 { from.int_in_range(0..=3)? } else { length };
    Ok(Value::Array((0..length).map(|_| fitting(from, element)).collect::<Result<_, _>>()?))
}

fn fitting_payload(from: &mut Unstructured<'_>, shape: Option<&Shape>) -> arbitrary::Result<Value> {
    shape.map_or(Ok(Value::Null), |shape| fitting(from, shape))
}
