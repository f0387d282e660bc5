//! Components whose types become schemas: bytes as they are, or types made from the bytes.

#![no_main]

use std::fmt::Write;

use libfuzzer_sys::{
    arbitrary::{self, Unstructured},
    fuzz_target,
};

/// Types of one component, at most. They unfold to more than a schema may be, and do not keep the compiler long.
const TYPES_MAX: u32 = 14;
/// Types in one type, and names in one type, at most.
const MEMBERS_MAX: u32 = 6;
const NAMES_MAX: u32 = 32;

fuzz_target!(|bytes: &[u8]| {
    if bytes.starts_with(b"\0asm") {
        return tool_executor::fuzzing::types_schema(bytes);
    }
    let Ok(text) = component(&mut Unstructured::new(bytes)) else { return };
    match wat::parse_str(&text) {
        Ok(component) => tool_executor::fuzzing::types_schema(&component),
        Err(error) => panic!("{error}\n{text}"),
    }
});

/// A component that imports one interface: each type refers to those before it, so that few of them unfold to much.
fn component(from: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let mut body = String::new();
    let mut types = 0;
    while types < TYPES_MAX && !from.is_empty() {
        let ty = named(from, types)?;
        // Types with names of their own must be exported before anything may use them.
        let _ = write!(body, "(type $a{types} {ty}) (export \"t{types}\" (type $t{types} (eq $a{types})))\n");
        types += 1;
    }
    let (parameter, result) = (reference(from, types)?, reference(from, types)?);
    Ok(format!(
        "(component (import \"a:b/c\" (instance (export \"blob\" (type $blob (sub resource)))\n{body}\
         (export \"f\" (func (param \"x\" {parameter}) (result {result}))))))"
    ))
}

fn named(from: &mut Unstructured<'_>, types: u32) -> arbitrary::Result<String> {
    let count = from.int_in_range(1..=MEMBERS_MAX)?;
    let names = from.int_in_range(1..=NAMES_MAX)?;
    Ok(match from.int_in_range(0..=9)? {
        0 => format!("(record {})", members(count, |n| Ok(format!("(field \"f{n}\" {})", reference(from, types)?)))?),
        1 => format!(
            "(variant {})",
            members(count, |n| Ok(match from.ratio(1, 3)? {
                true => format!("(case \"c{n}\")"),
                false => format!("(case \"c{n}\" {})", reference(from, types)?),
            }))?
        ),
        2 => format!("(enum {})", members(names, |n| Ok(format!("\"e{n}\"")))?),
        3 => format!("(flags {})", members(names, |n| Ok(format!("\"l{n}\"")))?),
        4 => format!("(tuple {})", members(count, |_| reference(from, types))?),
        5 => format!("(option {})", reference(from, types)?),
        6 => format!("(result {} (error {}))", reference(from, types)?, reference(from, types)?),
        7 => "(result)".into(),
        8 => "(own $blob)".into(),
        _ => format!("(list {})", reference(from, types)?),
    })
}

fn members(count: u32, mut member: impl FnMut(u32) -> arbitrary::Result<String>) -> arbitrary::Result<String> {
    (0..count).map(|n| member(n).map(|text| text + " ")).collect()
}

fn reference(from: &mut Unstructured<'_>, types: u32) -> arbitrary::Result<String> {
    const PLAIN: [&str; 13] =
        ["bool", "s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64", "f32", "f64", "char", "string"];
    if types > 0 && from.ratio(2, 3)? {
        return Ok(format!("$t{}", from.int_in_range(0..=types - 1)?));
    }
    from.choose(&PLAIN).map(|name| (*name).to_owned())
}
