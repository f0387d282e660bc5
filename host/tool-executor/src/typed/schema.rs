//! Shapes as JSON Schemas. What a schema cannot say (that a text is base64, that a number is a 64-bit one) is said again,
//! exactly, in `json`.

use serde_json::{Map, Value, json};

use super::{SAFE_INTEGER_MAX, shape::Shape};

/// Longest decimal text of a 64-bit integer: `-9223372036854775808`, `18446744073709551615`.
pub(super) const INTEGER_TEXT_BYTES_MAX: usize = 20;

/// Which way values go. Only floats differ: a number that JSON does not have leaves as a text, and does not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

/// The schema of a function's arguments: an object with a property for each parameter.
pub(crate) fn of_arguments(parameters: &[(String, Shape)]) -> Value {
    object(parameters, Way::In)
}

/// The schema of a result.
pub(crate) fn of_result(shape: &Shape) -> Value {
    schema(shape, Way::Out)
}

fn schema(shape: &Shape, way: Way) -> Value {
    match shape {
        Shape::Bool => json!({"type": "boolean"}),
        Shape::S8 => integer(i8::MIN, i8::MAX),
        Shape::U8 => integer(u8::MIN, u8::MAX),
        Shape::S16 => integer(i16::MIN, i16::MAX),
        Shape::U16 => integer(u16::MIN, u16::MAX),
        Shape::S32 => integer(i32::MIN, i32::MAX),
        Shape::U32 => integer(u32::MIN, u32::MAX),
        Shape::S64 => large_integer(i64::MIN, i64::MAX),
        Shape::U64 => large_integer(u64::MIN, u64::MAX),
        Shape::F32 | Shape::F64 if way == Way::In => json!({"type": "number"}),
        Shape::F32 | Shape::F64 => json!({"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}),
        Shape::Char => json!({"type": "string", "minLength": 1, "maxLength": 1}),
        Shape::String => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "contentEncoding": "base64"}),
        Shape::List(element) => json!({"type": "array", "items": schema(element, way)}),
        Shape::FixedList(element, length) => {
            json!({"type": "array", "items": schema(element, way), "minItems": length, "maxItems": length})
        }
        Shape::Record(fields) => object(fields, way),
        Shape::Tuple(shapes) => {
            let items: Vec<_> = shapes.iter().map(|shape| schema(shape, way)).collect();
            let length = items.len();
            json!({"type": "array", "prefixItems": items, "items": false, "minItems": length, "maxItems": length})
        }
        Shape::Variant(cases) => {
            one_of(cases.iter().map(|(name, payload)| (name.as_str(), payload.as_ref())).collect(), way)
        }
        Shape::Result(payloads) => one_of(vec![("ok", payloads[0].as_ref()), ("err", payloads[1].as_ref())], way),
        Shape::Enum(names) => json!({"type": "string", "enum": names}),
        Shape::Flags(names) => json!({
            "type": "array",
            "items": {"type": "string", "enum": names},
            "uniqueItems": true,
            "maxItems": names.len(),
        }),
        Shape::Option(some) if some.is_nullable() => or_null(one_property(schema(some, way))),
        Shape::Option(some) => or_null(schema(some, way)),
    }
}

fn integer(min: impl Into<i64>, max: impl Into<i64>) -> Value {
    json!({"type": "integer", "minimum": min.into(), "maximum": max.into()})
}

/// Beyond what every reader of JSON keeps, an integer is a text.
fn large_integer(min: impl Into<Value>, max: impl Into<Value>) -> Value {
    json!({
        "type": ["integer", "string"],
        "minimum": min.into(),
        "maximum": max.into(),
        "maxLength": INTEGER_TEXT_BYTES_MAX,
        "description": format!("A 64-bit integer; beyond {SAFE_INTEGER_MAX} as a string of decimal digits"),
    })
}

fn object(fields: &[(String, Shape)], way: Way) -> Value {
    let properties: Map<_, _> = fields.iter().map(|(name, shape)| (name.clone(), schema(shape, way))).collect();
    let required: Vec<_> =
        fields.iter().filter(|(_, shape)| !shape.is_nullable()).map(|(name, _)| name.as_str()).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// An object with one of these properties, and nothing else. Two keywords say so in less than a schema for each case.
fn one_of(cases: Vec<(&str, Option<&Shape>)>, way: Way) -> Value {
    let payload = |payload: Option<&Shape>| payload.map_or_else(|| json!({"type": "null"}), |shape| schema(shape, way));
    let properties: Map<_, _> = cases.into_iter().map(|(name, shape)| (name.to_owned(), payload(shape))).collect();
    json!({
        "type": "object",
        "description": "Exactly one of these properties",
        "properties": properties,
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": false,
    })
}

/// `{"some": ...}`: keeps a value that may be null apart from its absence.
fn one_property(schema: Value) -> Value {
    json!({"type": "object", "properties": {"some": schema}, "required": ["some"], "additionalProperties": false})
}

fn or_null(mut schema: Value) -> Value {
    match schema.get_mut("type") {
        // An `enum` or `anyOf` beside the type would still exclude null.
        Some(kind @ Value::String(_)) => {
            *kind = json!([kind.take(), "null"]);
            if let Some(Value::Array(names)) = schema.get_mut("enum") {
                names.push(Value::Null);
            }
            schema
        }
        _ => json!({"anyOf": [schema, {"type": "null"}]}),
    }
}

#[cfg(test)]
mod tests {
    use tool_api::schema::Schema;

    use super::*;

    fn named(fields: &[(&str, Shape)]) -> Vec<(String, Shape)> {
        fields.iter().map(|(name, shape)| ((*name).to_owned(), shape.clone())).collect()
    }

    fn option(shape: Shape) -> Shape {
        Shape::Option(Box::new(shape))
    }

    #[test]
    fn parameters_become_an_object() {
        let schema = of_arguments(&named(&[("the-text", Shape::String), ("at", option(Shape::U32))]));
        assert_eq!(
            schema,
            json!({
                "type": "object",
                "properties": {
                    "the-text": {"type": "string"},
                    "at": {"type": ["integer", "null"], "minimum": 0, "maximum": 4_294_967_295u32},
                },
                "required": ["the-text"],
                "additionalProperties": false,
            })
        );
        let nothing = of_arguments(&[]);
        assert_eq!(nothing["type"], "object");
        Schema::of_arguments(&nothing).unwrap();
    }

    /// What a schema takes and refuses, by shape.
    #[test]
    fn schemas_say_what_fits() {
        let names = || ["red".to_owned(), "green".to_owned()].into();
        let shape = || Shape::Variant([("circle".into(), Some(Shape::F64)), ("none".into(), None)].into());
        let cases = [
            (Shape::Bool, vec![json!(true)], vec![json!(1), json!("true"), json!(null)]),
            (Shape::S8, vec![json!(-128), json!(127)], vec![json!(-129), json!(128), json!(1.5), json!("1")]),
            (Shape::U32, vec![json!(0), json!(u32::MAX)], vec![json!(-1), json!(4_294_967_296u64)]),
            (
                Shape::S64,
                vec![json!(i64::MIN), json!(i64::MAX), json!("-9223372036854775808")],
                vec![json!(u64::MAX), json!(0.5), json!("123456789012345678901")],
            ),
            (Shape::U64, vec![json!(u64::MAX), json!("18446744073709551615")], vec![json!(-1), json!(null)]),
            (Shape::F32, vec![json!(1.5), json!(1)], vec![json!("NaN"), json!(null)]),
            (Shape::Char, vec![json!("a"), json!("\u{1F514}")], vec![json!(""), json!("ab"), json!(97)]),
            (Shape::Bytes, vec![json!("AQID")], vec![json!([1, 2, 3])]),
            (Shape::List(Box::new(Shape::U8)), vec![json!([]), json!([1])], vec![json!([256]), json!("a")]),
            (Shape::FixedList(Box::new(Shape::U8), 2), vec![json!([1, 2])], vec![json!([1]), json!([1, 2, 3])]),
            (
                Shape::Record(named(&[("a", Shape::Bool), ("b", option(Shape::Bool))])),
                vec![json!({"a": true}), json!({"a": true, "b": null}), json!({"a": true, "b": false})],
                vec![json!({}), json!({"a": true, "c": 1}), json!([true])],
            ),
            (
                Shape::Tuple(vec![Shape::Bool, Shape::String]),
                vec![json!([true, ""])],
                vec![json!([true]), json!([true, "", 1]), json!(["", true])],
            ),
            (
                shape(),
                vec![json!({"circle": 1.5}), json!({"none": null})],
                vec![json!({}), json!({"circle": 1, "none": null}), json!({"square": 1}), json!("none")],
            ),
            (
                Shape::Result(Box::new([Some(Shape::U8), None])),
                vec![json!({"ok": 1}), json!({"err": null})],
                vec![json!({"ok": null}), json!(1)],
            ),
            (Shape::Enum(names()), vec![json!("red")], vec![json!("blue"), json!(null)]),
            (option(Shape::Enum(names())), vec![json!("red"), json!(null)], vec![json!("blue")]),
            (
                Shape::Flags(names()),
                vec![json!([]), json!(["green", "red"])],
                vec![json!(["red", "red"]), json!(["blue"]), json!("red")],
            ),
            (option(shape()), vec![json!(null), json!({"none": null})], vec![json!({})]),
            (
                option(option(Shape::Bool)),
                vec![json!(null), json!({"some": null}), json!({"some": true})],
                vec![json!(true), json!({})],
            ),
            (option(Shape::S64), vec![json!(null), json!(1), json!("1")], vec![json!(true)]),
        ];
        for (shape, fit, unfit) in cases {
            let object = of_arguments(&named(&[("a", shape.clone())]));
            let schema = Schema::of_arguments(&object).unwrap();
            for value in fit {
                assert_eq!(schema.check(&json!({"a": value})), [], "{shape:?}");
            }
            for value in unfit {
                assert!(!schema.check(&json!({"a": value})).is_empty(), "{shape:?} takes {value}");
            }
        }
    }

    #[test]
    fn a_float_may_leave_as_a_text() {
        let schema = Schema::parse(&of_result(&option(Shape::F64))).unwrap();
        for value in [json!(1.5), json!("NaN"), json!("-Infinity"), json!(null)] {
            assert_eq!(schema.check(&value), []);
        }
        assert!(!schema.check(&json!("1.5")).is_empty());
    }
}
