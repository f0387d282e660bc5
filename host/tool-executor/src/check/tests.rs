use super::*;

fn refusal(wat: &str) -> String {
    check(&wat::parse_str(wat).unwrap()).unwrap_err().code
}

#[test]
fn what_is_not_a_component_is_told_so() {
    for (bytes, code) in [
        (b"".as_slice(), "component.not_wasm"),
        (b"(component)", "component.not_wasm"),
        (b"\x7fELF\x02\x01\x01", "component.not_wasm"),
        (b"#!/bin/sh", "component.not_wasm"),
        (b"\0asm\x01\0\0\0", "component.core_module"),
        (b"\0asm\x0d\0\x01\0\xff\xff", "component.not_wasm"),
        (b"\0asm\x0d\0\x01\0", "component.no_toolbox"),
    ] {
        assert_eq!(check(bytes).unwrap_err().code, code, "{bytes:?}");
    }
}

#[test]
fn imports_are_known_by_package_and_version() {
    for (import, linked) in [
        ("wasi:cli/environment@0.2.0", true),
        ("wasi:cli/environment@0.2.99", true),
        ("wasi:cli/environment@0.3.0", false),
        ("wasi:cli/environment@0.2.0-rc", false),
        ("wasi:cli/environment", false),
        ("wasi:logging/logging", true),
        ("wasi:logging/logging@0.1.0-draft", true),
        ("wasi:keyvalue/store@0.2.0-draft", true),
        ("wasi:keyvalue/store@0.2.0-draft2", false),
        ("wasi:config/store@0.2.0-rc.1", true),
        ("belljar:tool/context@0.1.0", true),
        ("belljar:tool/context@1.0.0", true),
        ("belljar:tool/context@2.0.0", false),
        ("acme:db/sql@0.2.0", false),
        ("a-function", false),
    ] {
        assert_eq!(is_linked(import), linked, "{import}");
    }
    let unknown = r#"(component (import "acme:db/sql@1.0.0" (instance (export "f" (func)))) (import "wasi:io/poll@0.2.3" (instance)))"#;
    let rejection = check(&wat::parse_str(unknown).unwrap()).unwrap_err();
    assert_eq!(rejection.code, "component.unknown_import");
    assert!(rejection.detail.contains("`acme:db/sql@1.0.0`"), "{rejection}");
    assert!(!rejection.detail.contains("wasi:io/poll"), "{rejection}");
}

#[test]
fn an_import_of_types_alone_needs_no_host() {
    let importing = |exports: &str| {
        let wat = format!(
            r#"(component {TRIVIAL} (export "f" (func $f))
                (type $other (list u8))
                (import "acme:shapes/types@1.0.0" (instance (type $a (record (field "x" u8))) {exports})))"#
        );
        check(&wat::parse_str(wat).unwrap()).err().map(|rejection| rejection.code)
    };
    let point = r#"(export "point" (type (eq $a)))"#;
    assert_eq!(importing(point), None);
    let unknown = Some("component.unknown_import".to_owned());
    assert_eq!(importing(&format!(r#"{point} (export "blob" (type (sub resource)))"#)), unknown);
    assert_eq!(importing(&format!(r#"{point} (export "f" (func))"#)), unknown);
}

#[test]
fn a_toolbox_is_known_by_name_and_series() {
    assert_eq!(contract_of("belljar:tool/toolbox@0.1.7").as_deref(), Some("belljar:tool@0.1.7"));
    assert_eq!(contract_of("belljar:tool/toolbox@1.0.0").as_deref(), Some("belljar:tool@1.0.0"));
    assert_eq!(contract_of("belljar:tool/toolbox@0.2.0"), None);
    assert_eq!(contract_of("belljar:tool/toolbox"), None);
    assert_eq!(contract_of("acme:tool/toolbox@0.1.0"), None);
}

#[test]
fn what_has_nothing_to_call_is_told_what_it_is() {
    let exporting = |name: &str| format!(r#"(component (instance $i) (export "{name}" (instance $i)))"#);
    for (name, words) in [
        ("wasi:cli/run@0.2.3", "`main`"),
        ("wasi:http/incoming-handler@0.2.0", "web server"),
        ("belljar:tool/toolbox@2.0.0", "version"),
        ("belljar:tool/other@1.0.0", "exports nothing"),
    ] {
        let rejection = check(&wat::parse_str(exporting(name)).unwrap()).unwrap_err();
        assert_eq!(rejection.code, "component.no_toolbox");
        for words in [words, "SDK", "WIT"] {
            assert!(rejection.detail.contains(words), "{name}: {rejection}");
        }
    }
    for callable in [
        exporting("acme:math/ops@1.0.0"),
        exporting("belljar:tool/toolbox@1.0.0"),
        format!(r#"(component {TRIVIAL} (export "f" (func $f)))"#),
    ] {
        check(&wat::parse_str(callable).unwrap()).unwrap();
    }
}

/// A function `$f` that does nothing.
const TRIVIAL: &str = r#"(core module $m (func (export "f"))) (core instance $i (instantiate $m))
    (func $f (canon lift (core func $i "f")))"#;

/// Each level instantiates the one below ten times.
pub(crate) fn billion_laughs(levels: usize) -> String {
    let mut wat = String::from("(component $c0 (core module $m) (core instance (instantiate $m)))");
    for level in 1..=levels {
        let instances = format!("(instance (instantiate $c{}))", level - 1).repeat(10);
        wat = format!("(component $c{level} {wat} {instances})");
    }
    wat
}

#[test]
fn nested_components_are_multiplied_out() {
    assert_eq!(refusal(&billion_laughs(1)), "component.no_toolbox");
    assert_eq!(refusal(&billion_laughs(3)), "component.too_complex");
    assert_eq!(refusal(&billion_laughs(8)), "component.too_complex");
    // By aliases of an outer component, and through an export that renames it.
    let laughs = "(instance (instantiate $a))".repeat(20);
    let by_alias = format!(
        r#"(component
            (component $a (core module $m) (core instance (instantiate $m)))
            (component $b (alias outer 1 0 (component $a)) {laughs})
            (export $c "c" (component $b))
            {} )"#,
        "(instance (instantiate $c))".repeat(20)
    );
    assert_eq!(refusal(&by_alias), "component.too_complex");
    let from_outside = r#"(component (component $a (import "c" (component $c)) (instance (instantiate $c))))"#;
    assert_eq!(refusal(from_outside), "component.too_complex");
    let deep = (0..DEPTH_MAX).fold("(component)".to_owned(), |inner, _| format!("(component {inner})"));
    assert_eq!(refusal(&deep), "component.too_complex");
}

#[test]
fn functions_are_bounded() {
    let locals = format!("(component (core module (func (local {}))))", "i32 ".repeat(10_001));
    assert_eq!(refusal(&locals), "component.too_complex");
    let body = format!("(component (core module (func {})))", "nop ".repeat(BODY_BYTES_MAX));
    assert_eq!(refusal(&body), "component.too_complex");
}

/// As the text format would not write it: three bytes for each level.
#[test]
fn types_are_not_nested_without_end() {
    let nested = |levels: usize| {
        let mut types = vec![1];
        types.extend([0x42, 1, 0x01].repeat(levels));
        // An instance with nothing in it.
        types.extend([0x42, 0]);
        let mut component = b"\0asm\x0d\0\x01\0\x07".to_vec();
        let mut length = types.len();
        while length >= 0x80 {
            component.push(length as u8 | 0x80);
            length >>= 7;
        }
        component.push(length as u8);
        component.extend(types);
        check(&component).unwrap_err().code
    };
    assert_eq!(nested(10), "component.no_toolbox");
    assert_eq!(nested(100), "component.too_complex");
    assert_eq!(nested(2_000_000), "component.too_complex");
}
