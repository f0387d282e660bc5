use proptest::prelude::*;
use serde_json::json;
use tool_api::schema::Schema;

use super::*;
use crate::typed::schema;

fn one(shape: &Shape) -> Vec<(String, Shape)> {
    vec![("a".to_owned(), shape.clone())]
}

fn lift(shape: &Shape, json: Value) -> Result<Val, BadArgument> {
    arguments(&one(shape), &json!({ "a": json })).map(|mut values| values.remove(0))
}

fn option(shape: Shape) -> Shape {
    Shape::Option(Box::new(shape))
}

fn texts(names: &[&str]) -> IndexSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn what_does_not_fit_is_told_where() {
    let names = || texts(&["red", "green"]);
    let point = || Shape::Record(vec![("x".into(), Shape::S8), ("y/~".into(), option(Shape::S8))]);
    let variant = || Shape::Variant([("circle".into(), Some(Shape::F64)), ("none".into(), None)].into());
    for (shape, json, pointer, words) in [
        (Shape::Bool, json!(1), "/a", "true or false"),
        (Shape::S8, json!(128), "/a", "-128 to 127"),
        (Shape::U8, json!(-1), "/a", "0 to 255"),
        (Shape::U8, json!("1"), "/a", "0 to 255"),
        (Shape::U32, json!(1.5), "/a", "integer"),
        (Shape::S64, json!("9223372036854775808"), "/a", "string of its digits"),
        (Shape::S64, json!(1e18), "/a", "integer"),
        (Shape::U64, json!("-1"), "/a", "0 to 18446744073709551615"),
        (Shape::U64, json!("+1"), "/a", "integer"),
        (Shape::U64, json!(""), "/a", "integer"),
        (Shape::U64, json!("0x10"), "/a", "integer"),
        (Shape::U64, json!("000000000000000000001"), "/a", "integer"),
        (Shape::F32, json!(1e300), "/a", "3.4028234"),
        (Shape::F64, json!("NaN"), "/a", "number"),
        (Shape::F64, json!(null), "/a", "number"),
        (Shape::Char, json!("ab"), "/a", "one character"),
        (Shape::Char, json!(""), "/a", "one character"),
        (Shape::String, json!(1), "/a", "string"),
        (Shape::Bytes, json!("AQI"), "/a", "base64"),
        (Shape::Bytes, json!([1]), "/a", "string"),
        (Shape::List(Box::new(Shape::Bool)), json!([true, 0]), "/a/1", "true or false"),
        (Shape::FixedList(Box::new(Shape::U8), 2), json!([1]), "/a", "exactly 2"),
        (point(), json!({}), "/a/x", "missing"),
        (point(), json!({"x": 1, "y/~": "1"}), "/a/y~1~0", "integer"),
        (point(), json!({"x": 1, "z": 1}), "/a/z", "no such property"),
        (point(), json!([1]), "/a", "object"),
        (Shape::Tuple(vec![Shape::U8, Shape::U8]), json!([1]), "/a", "exactly 2"),
        (Shape::Tuple(vec![Shape::U8, Shape::U8]), json!([1, 256]), "/a/1", "255"),
        (variant(), json!({"circle": "x"}), "/a/circle", "number"),
        (variant(), json!({"none": 1}), "/a/none", "null"),
        (variant(), json!({"square": 1}), "/a", "no case `square`"),
        (variant(), json!({"circle": 1, "none": null}), "/a", "exactly one"),
        (variant(), json!("none"), "/a", "exactly one"),
        (Shape::Result(Box::new([Some(Shape::U8), None])), json!({"fine": 1}), "/a", "`err`"),
        (Shape::Enum(names()), json!("blue"), "/a", "`red`, `green`"),
        (Shape::Flags(names()), json!(["red", "red"]), "/a/1", "twice"),
        (Shape::Flags(names()), json!(["blue"]), "/a/0", "not one of"),
        (option(option(Shape::U8)), json!(1), "/a", "one property"),
        (option(option(Shape::U8)), json!({"none": 1}), "/a", "`some`"),
    ] {
        let bad = lift(&shape, json.clone()).unwrap_err();
        assert_eq!(bad.pointer, pointer, "{shape:?} of {json}: {bad}");
        assert!(bad.words.contains(words), "{shape:?} of {json}: {bad}");
    }
    assert_eq!(arguments(&[], &json!({"b": 1})).unwrap_err().pointer, "/b");
    assert_eq!(arguments(&[], &json!([])).unwrap_err().pointer, "");
}

#[test]
fn values_cross_both_ways() {
    let variant = || Shape::Variant([("circle".into(), Some(Shape::F64)), ("none".into(), None)].into());
    for (shape, json) in [
        (Shape::S64, json!(-9_007_199_254_740_991i64)),
        (Shape::S64, json!("-9007199254740992")),
        (Shape::S64, json!("-9223372036854775808")),
        (Shape::U64, json!(9_007_199_254_740_991u64)),
        (Shape::U64, json!("18446744073709551615")),
        (Shape::F32, json!(0.1)),
        (Shape::F64, json!(-0.0)),
        (Shape::F64, json!(1e300)),
        (Shape::Char, json!("\u{1F514}")),
        (Shape::String, json!("\0\"\u{2028}")),
        (Shape::Bytes, json!("")),
        (Shape::Bytes, json!("AQIDBA==")),
        (Shape::List(Box::new(Shape::U8)), json!([1, 2])),
        (Shape::FixedList(Box::new(Shape::Bool), 2), json!([true, false])),
        (Shape::Tuple(vec![Shape::Bool, option(Shape::U8)]), json!([true, null])),
        (variant(), json!({"circle": 1.5})),
        (variant(), json!({"none": null})),
        (Shape::Result(Box::new([Some(Shape::U8), None])), json!({"ok": 1})),
        (Shape::Result(Box::new([Some(Shape::U8), None])), json!({"err": null})),
        (Shape::Enum(texts(&["red", "green"])), json!("green")),
        (Shape::Flags(texts(&["red", "green"])), json!(["green", "red"])),
        (option(variant()), json!({"none": null})),
        (option(option(option(Shape::U8))), json!({"some": {"some": 1}})),
        (option(option(option(Shape::U8))), json!({"some": null})),
        (option(option(option(Shape::U8))), json!(null)),
    ] {
        let value = lift(&shape, json.clone()).unwrap();
        assert_eq!(result(&shape, value).unwrap(), json, "{shape:?}");
    }
}

/// Other ways to write the same value.
#[test]
fn arguments_may_be_written_in_more_than_one_way() {
    for (shape, json, value) in [
        (Shape::S64, json!("-42"), Val::S64(-42)),
        (Shape::S64, json!(i64::MIN), Val::S64(i64::MIN)),
        (Shape::U64, json!(u64::MAX), Val::U64(u64::MAX)),
        (Shape::U8, json!(7.0), Val::U8(7)),
        (Shape::F64, json!(7), Val::Float64(7.0)),
    ] {
        assert_eq!(lift(&shape, json).unwrap(), value);
    }
    let optional = vec![("a".to_owned(), option(option(Shape::U8)))];
    assert_eq!(arguments(&optional, &json!({})).unwrap(), [Val::Option(None)]);
}

#[test]
fn numbers_that_json_lacks_leave_as_texts() {
    for (value, json) in [
        (Val::Float64(f64::NAN), json!("NaN")),
        (Val::Float64(f64::INFINITY), json!("Infinity")),
        (Val::Float64(f64::NEG_INFINITY), json!("-Infinity")),
    ] {
        assert_eq!(result(&Shape::F64, value).unwrap(), json);
    }
    assert_eq!(result(&Shape::F32, Val::Float32(f32::NAN)).unwrap(), json!("NaN"));
}

/// A short JSON text may stand for many values: what they take is bounded.
#[test]
fn arguments_and_results_are_bounded() {
    let wide = Shape::Record((0..100).map(|n| (format!("field-{n}"), option(Shape::U8))).collect());
    let bad = lift(&Shape::List(Box::new(wide)), json!(vec![json!({}); 10_000])).unwrap_err();
    assert!(bad.words.contains("bytes of memory"), "{bad}");
    let bad = lift(&Shape::Bytes, json!("AAAA".repeat(1 << 20))).unwrap_err();
    assert!(bad.words.contains("bytes of memory"), "{bad}");
    for text in ["\u{1}".repeat(RESULT_BYTES_MAX / 6 + 1), "x".repeat(RESULT_BYTES_MAX)] {
        assert_eq!(result(&Shape::String, Val::String(text)), Err(NoJson::TooLarge));
    }
    let list = Val::List(vec![Val::String("x".repeat(1 << 20)); 5]);
    assert_eq!(result(&Shape::List(Box::new(Shape::String)), list), Err(NoJson::TooLarge));
    assert_eq!(result(&Shape::Bool, Val::U8(1)), Err(NoJson::Mismatch));
    assert_eq!(result(&Shape::Bytes, Val::List(vec![Val::Bool(true)])), Err(NoJson::Mismatch));
}

fn names() -> impl Strategy<Value = IndexSet<String>> {
    prop::collection::btree_set("[a-z][a-z0-9]{0,6}", 1..5).prop_map(|names| names.into_iter().collect())
}

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        prop::sample::select(vec![
            Shape::Bool,
            Shape::S8,
            Shape::U8,
            Shape::S16,
            Shape::U16,
            Shape::S32,
            Shape::U32,
            Shape::S64,
            Shape::U64,
            Shape::F32,
            Shape::F64,
            Shape::Char,
            Shape::String,
            Shape::Bytes,
        ]),
        names().prop_map(Shape::Enum),
        names().prop_map(Shape::Flags),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let payload = prop::option::of(inner.clone());
        let named = (names(), prop::collection::vec(inner.clone(), 5));
        let cases = (names(), prop::collection::vec(payload.clone(), 5));
        prop_oneof![
            inner.clone().prop_map(|shape| Shape::List(Box::new(shape))),
            (inner.clone(), 1u32..4).prop_map(|(shape, length)| Shape::FixedList(Box::new(shape), length)),
            named.prop_map(|(names, shapes)| Shape::Record(names.into_iter().zip(shapes).collect())),
            prop::collection::vec(inner.clone(), 1..4).prop_map(Shape::Tuple),
            cases.prop_map(|(names, shapes)| Shape::Variant(names.into_iter().zip(shapes).collect())),
            inner.prop_map(|shape| Shape::Option(Box::new(shape))),
            (payload.clone(), payload).prop_map(|(ok, err)| Shape::Result(Box::new([ok, err]))),
        ]
    })
}

/// A value of a shape. Floats are finite: others are refused as arguments.
fn values(shape: &Shape) -> BoxedStrategy<Val> {
    let payload = |shape: &Option<Shape>| match shape {
        Some(shape) => values(shape).prop_map(|value| Some(Box::new(value))).boxed(),
        None => Just(None).boxed(),
    };
    match shape {
        Shape::Bool => any::<bool>().prop_map(Val::Bool).boxed(),
        Shape::S8 => any::<i8>().prop_map(Val::S8).boxed(),
        Shape::U8 => any::<u8>().prop_map(Val::U8).boxed(),
        Shape::S16 => any::<i16>().prop_map(Val::S16).boxed(),
        Shape::U16 => any::<u16>().prop_map(Val::U16).boxed(),
        Shape::S32 => any::<i32>().prop_map(Val::S32).boxed(),
        Shape::U32 => any::<u32>().prop_map(Val::U32).boxed(),
        Shape::S64 => any::<i64>().prop_map(Val::S64).boxed(),
        Shape::U64 => any::<u64>().prop_map(Val::U64).boxed(),
        Shape::F32 => any::<f32>().prop_map(Val::Float32).boxed(),
        Shape::F64 => any::<f64>().prop_map(Val::Float64).boxed(),
        Shape::Char => any::<char>().prop_map(Val::Char).boxed(),
        Shape::String => any::<String>().prop_map(Val::String).boxed(),
        Shape::Bytes => prop::collection::vec(any::<u8>().prop_map(Val::U8), 0..20).prop_map(Val::List).boxed(),
        Shape::List(element) => prop::collection::vec(values(element), 0..4).prop_map(Val::List).boxed(),
        Shape::FixedList(element, length) => {
            prop::collection::vec(values(element), *length as usize).prop_map(Val::FixedLengthList).boxed()
        }
        Shape::Record(fields) => {
            let fields = fields.iter().map(|(name, shape)| (Just(name.clone()), values(shape)));
            fields.collect::<Vec<_>>().prop_map(Val::Record).boxed()
        }
        Shape::Tuple(shapes) => shapes.iter().map(values).collect::<Vec<_>>().prop_map(Val::Tuple).boxed(),
        Shape::Variant(cases) => {
            let (cases, payloads) = (cases.clone(), payload);
            let case = prop::sample::select(cases.into_iter().collect::<Vec<_>>());
            case.prop_flat_map(move |(name, shape)| {
                payloads(&shape).prop_map(move |payload| Val::Variant(name.clone(), payload))
            })
            .boxed()
        }
        Shape::Enum(names) => {
            prop::sample::select(names.iter().cloned().collect::<Vec<_>>()).prop_map(Val::Enum).boxed()
        }
        Shape::Flags(names) => prop::sample::subsequence(names.iter().cloned().collect::<Vec<_>>(), 0..=names.len())
            .prop_map(Val::Flags)
            .boxed(),
        Shape::Option(some) => {
            prop::option::of(values(some)).prop_map(|value| Val::Option(value.map(Box::new))).boxed()
        }
        Shape::Result(payloads) => prop_oneof![
            payload(&payloads[0]).prop_map(|value| Val::Result(Ok(value))),
            payload(&payloads[1]).prop_map(|value| Val::Result(Err(value))),
        ]
        .boxed(),
    }
}

/// Infinite floats leave as texts, which are no arguments.
fn is_finite(json: &Value) -> bool {
    match json {
        Value::String(text) => !["NaN", "Infinity", "-Infinity"].contains(&text.as_str()),
        Value::Array(items) => items.iter().all(is_finite),
        Value::Object(fields) => fields.values().all(is_finite),
        _ => true,
    }
}

proptest! {
    /// What leaves fits the schema of results, and comes in again as the same value; and it fits the schema of arguments.
    #[test]
    fn a_round_trip_changes_nothing(
        (shape, value) in shapes().prop_flat_map(|shape| { let values = values(&shape); (Just(shape), values) })
    ) {
        let json = result(&shape, value.clone()).unwrap();
        let outwards = Schema::parse(&schema::of_result(&shape)).unwrap();
        prop_assert_eq!(outwards.check(&json), []);
        prop_assume!(is_finite(&json));
        // As a text, as it is stored and sent.
        let json: Value = serde_json::from_str(&json.to_string()).unwrap();
        let inwards = Schema::of_arguments(&schema::of_arguments(&one(&shape))).unwrap();
        prop_assert_eq!(inwards.check(&json!({"a": json})), []);
        prop_assert_eq!(lift(&shape, json).unwrap(), value);
    }
}
