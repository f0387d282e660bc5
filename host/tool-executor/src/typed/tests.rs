use serde_json::json;
use tool_api::inspection::FunctionManifest;

use super::*;

/// A component of these types and functions. `$f` takes an `i32` and returns one, `$g` takes nothing, and both have
/// memory to themselves.
fn component(wat: &str) -> (Engine, Component) {
    let wat = format!(
        r#"(component
            (core module $m
                (memory (export "memory") 1)
                (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
                (func (export "f") (param i32) (result i32) (i32.const 8))
                (func (export "g") (result i32) (i32.const 8)))
            (core instance $i (instantiate $m))
            {wat})"#
    );
    let engine = crate::engine::for_compiling().unwrap();
    let component = Component::new(&engine, wat::parse_str(wat).unwrap()).unwrap();
    (engine, component)
}

fn exports(wat: &str) -> Result<Vec<Export>, Rejection> {
    let (engine, component) = component(wat);
    exports::read(&engine, &component).map(|(exports, _)| exports)
}

/// A function without parameters, whose result lies in memory.
fn returning(name: &str, ty: &str) -> String {
    format!(
        r#"(func (export "{name}") (result {ty}) (canon lift (core func $i "g") (memory (core memory $i "memory"))))"#
    )
}

const ADD: &str = r#"(func (export "add") (param "one" u32) (result u32) (canon lift (core func $i "f")))"#;

fn manifest(json: Value) -> Manifest {
    serde_json::from_value(json).unwrap()
}

#[test]
fn what_cannot_cross_json_is_refused_by_name() {
    let blob = r#"(type $blob' (resource (rep i32))) (export $blob "blob" (type $blob'))"#;
    let taking = format!(
        r#"{blob} (func (export "keep") (param "it" (own $blob)) (result u32) (canon lift (core func $i "f")))"#
    );
    let hidden = format!(
        r#"{blob} (func (export "peek") (param "it" (borrow $blob)) (result u32) (canon lift (core func $i "f"))) {}"#,
        returning("all", "(list (tuple u8 (own $blob)))")
    );
    for (wat, words) in [
        (taking, ["`keep`", "parameter `it`", "`own<blob>`"]),
        (hidden, ["`peek`", "parameter `it`", "`borrow<blob>`"]),
        (format!("{blob} {}", returning("all", "(list (tuple u8 (own $blob)))")), ["`all`", "result", "`own<blob>`"]),
    ] {
        let rejection = exports(&wat).err().unwrap();
        assert_eq!(rejection.code, "component.untranslatable_type");
        for words in words {
            assert!(rejection.detail.contains(words), "{rejection}");
        }
    }
}

/// A component of some hundred bytes whose types unfold to thousands.
#[test]
fn types_are_bounded_before_they_unfold() {
    let doubled = |levels: usize| {
        let types: String =
            (1..=levels).map(|level| format!("(type $t{level} (tuple $t{0} $t{0})) ", level - 1)).collect();
        format!("(type $t0 (tuple u8 u8)) {types}")
    };
    let nested = format!("{}u8{}", "(list ".repeat(40), ")".repeat(40));
    for (wat, words) in [
        (format!("{} {}", doubled(16), returning("large", "$t16")), "unfold"),
        (returning("deep", &nested), "nested"),
        (
            format!("{} {}", doubled(9), (0..20).map(|n| returning(&format!("f{n}"), "$t9")).collect::<String>()),
            "all functions",
        ),
    ] {
        let rejection = exports(&wat).err().unwrap();
        assert_eq!(rejection.code, "component.untranslatable_type");
        assert!(rejection.detail.contains(words), "{rejection}");
    }
    let many: String = (0..129).map(|n| returning(&format!("f{n}"), "string")).collect();
    assert_eq!(exports(&many).err().unwrap().code, "toolbox.too_many_functions");
}

/// Within the bounds of shapes, and still more than a schema may be.
#[test]
fn a_schema_that_is_too_large_is_refused() {
    let types: String = (1..=10).map(|level| format!("(type $t{level} (tuple $t{0} $t{0})) ", level - 1)).collect();
    let exports = exports(&format!("(type $t0 (tuple s64 s64)) {types} {}", returning("large", "$t10"))).unwrap();
    let rejection = describe(&exports, &Manifest::default()).unwrap_err();
    assert_eq!(rejection.code, "component.untranslatable_type");
    assert!(rejection.detail.contains("`large`"), "{rejection}");
}

#[test]
fn a_manifest_says_what_types_cannot() {
    let exports = exports(ADD).unwrap();
    let (functions, requires) = describe(&exports, &Manifest::default()).unwrap();
    assert_eq!((functions[0].description.as_str(), requires), ("Calls `add`.", json!({})));
    let full = manifest(json!({
        "functions": {"add": {"description": "Adds one."}},
        "requires": {"http": [{"reason": "none"}]},
    }));
    let (functions, requires) = describe(&exports, &full).unwrap();
    assert_eq!(functions[0].description, "Adds one.");
    assert_eq!(requires, json!({"http": [{"reason": "none"}]}));
    assert_eq!(functions[0].input_schema["required"], json!(["one"]));
    assert_eq!(functions[0].output_schema.as_ref().unwrap()["type"], "integer");
    let long = Manifest {
        functions: [("add".to_owned(), FunctionManifest { description: "x".repeat(DESCRIPTION_BYTES_MAX + 1) })].into(),
        requires: None,
    };
    for (manifest, code, words) in [
        (manifest(json!({"functions": {"sub": {}}})), "manifest.unknown_function", "`sub`"),
        (manifest(json!({"functions": {"sub": {}}})), "manifest.unknown_function", "exports `add`"),
        (manifest(json!({"requires": []})), "manifest.bad_requires", "object"),
        (long, "manifest.bad_function", "4097 bytes"),
    ] {
        let rejection = describe(&exports, &manifest).unwrap_err();
        assert_eq!(rejection.code, code);
        assert!(rejection.detail.contains(words), "{rejection}");
    }
}

#[test]
fn a_result_becomes_an_answer() {
    let result = |ok: Option<Shape>, err: Option<Shape>| Shape::Result(Box::new([ok, err]));
    let ok = |value: Option<Val>| Val::Result(Ok(value.map(Box::new)));
    let err = |value: Option<Val>| Val::Result(Err(value.map(Box::new)));
    let text = || Val::String("a \"b\"".into());
    for (shape, value, answered) in [
        (None, None, ("done", None, false)),
        (Some(Shape::U8), Some(Val::U8(7)), ("7", Some("7"), false)),
        (Some(Shape::String), Some(text()), ("a \"b\"", None, false)),
        // A text that stands for something else is JSON.
        (Some(Shape::F64), Some(Val::Float64(f64::NAN)), ("\"NaN\"", Some("\"NaN\""), false)),
        (Some(Shape::Option(Box::new(Shape::String))), Some(Val::Option(None)), ("null", Some("null"), false)),
        (Some(result(Some(Shape::U8), None)), Some(ok(Some(Val::U8(7)))), ("7", Some("7"), false)),
        (Some(result(None, Some(Shape::String))), Some(ok(None)), ("done", None, false)),
        (Some(result(None, Some(Shape::String))), Some(err(Some(text()))), ("a \"b\"", None, true)),
        (Some(result(None, Some(Shape::U8))), Some(err(Some(Val::U8(7)))), ("7", Some("7"), true)),
        (Some(result(None, None)), Some(err(None)), ("failed", None, true)),
    ] {
        let answer = answer(shape.as_ref(), value).unwrap();
        let [Content::Text(text)] = answer.content.as_slice() else { panic!("{shape:?}") };
        assert_eq!((text.as_str(), answer.structured.as_deref(), answer.is_error), answered, "{shape:?}");
    }
    assert_eq!(answer(Some(&Shape::U8), None).err(), Some(NoJson::Mismatch));
}

#[test]
fn only_what_is_more_than_text_has_a_schema() {
    let result = |ok: Option<Shape>| Shape::Result(Box::new([ok, Some(Shape::U8)]));
    assert_eq!(structured_shape(None), None);
    assert_eq!(structured_shape(Some(&Shape::String)), None);
    assert_eq!(structured_shape(Some(&result(None))), None);
    assert_eq!(structured_shape(Some(&result(Some(Shape::String)))), None);
    assert_eq!(structured_shape(Some(&result(Some(Shape::Bool)))), Some(&Shape::Bool));
    assert_eq!(structured_shape(Some(&Shape::Bool)), Some(&Shape::Bool));
}
