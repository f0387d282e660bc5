//! Components with plain typed exports: their functions are called by their WIT types, without a toolbox.
//!
//! How types cross JSON, both ways:
//!
//! - `bool`, `string`: as they are. `char`: a string of one character.
//! - integers: numbers. `s64` and `u64` also as strings of decimal digits; they leave as such beyond 2^53 - 1.
//! - `f32`, `f64`: numbers. NaN and infinities leave as `"NaN"`, `"Infinity"`, `"-Infinity"`, and are refused as arguments.
//! - `list<u8>`: a string of base64 (RFC 4648, with padding). Other lists and tuples: arrays.
//! - `record`: an object. A field that is an `option` may be absent.
//! - `variant`: an object with one property, the case's name; null where the case has no value. `result` inside of a
//!   value is the variant of `ok` and `err`.
//! - `enum`: its name. `flags`: an array of names.
//! - `option`: the value or null. An option of an option: `{"some": value}` or null.
//!
//! A function's own `result` is its answer: `err` is a failed call. A string is answered as text alone, no result as `done`,
//! anything else as `structured` and the same JSON as text.

mod exports;
pub(crate) mod json;
pub(crate) mod schema;
mod shape;

use serde_json::Value;
use tool_api::{
    Function, Manifest, Rejection,
    inspection::DESCRIPTION_BYTES_MAX,
    schema::{Schema, SchemaError},
};
use wasmtime::{
    Engine, Store,
    component::{Component, InstancePre, Val},
};

pub(crate) use exports::{is_plain, signature_of};
pub(crate) use json::{BadArgument, NoJson};
pub use shape::Shape;

use crate::{
    contract::toolbox::{CallResult, Content},
    meter::LimitReached,
    sandbox::Sandbox,
};
use exports::Export;

/// What the contract of such a component is called.
pub(crate) const CONTRACT: &str = "wit";
/// The largest integer that every reader of JSON keeps (2^53 - 1).
const SAFE_INTEGER_MAX: u64 = (1 << 53) - 1;
/// Bytes of `requires`: it is shown to people.
const REQUIRES_BYTES_MAX: usize = 64 << 10;

/// A component with plain typed exports, ready to be called.
pub(crate) struct Typed {
    pre: InstancePre<Sandbox>,
    exports: Vec<Export>,
    /// Held for it beside its code, about.
    pub(crate) bytes: usize,
}

impl Typed {
    /// `None`: the component exports no function of its own.
    pub(crate) fn new(
        engine: &Engine,
        component: &Component,
        pre: InstancePre<Sandbox>,
    ) -> Result<Option<Typed>, Rejection> {
        let (exports, bytes) = exports::read(engine, component)?;
        Ok(if exports.is_empty() { None } else { Some(Typed { pre, exports, bytes }) })
    }

    /// What the component says of itself, with what a manifest adds: its functions, and the grants it asks for.
    pub(crate) fn describe(&self, manifest: Option<&Manifest>) -> Result<(Vec<Function>, Value), Rejection> {
        describe(&self.exports, manifest.unwrap_or(&Manifest::default()))
    }

    /// Makes an instance, says `ready`, and calls a function.
    pub(crate) async fn call(
        &self,
        store: &mut Store<Sandbox>,
        function: &str,
        arguments: &Value,
        ready: impl FnOnce(),
    ) -> wasmtime::Result<CallResult> {
        let export = self.exports.iter().find(|export| export.name.as_str() == function);
        let export = export.ok_or_else(|| wasmtime::Error::msg("the component has no such function"))?;
        // Before anything runs: what does not fit costs no instance.
        let parameters = json::arguments(&export.parameters, arguments)?;
        let instance = self.pre.instantiate_async(&mut *store).await?;
        ready();
        let function = instance.get_func(&mut *store, export.index);
        let function = function.ok_or_else(|| wasmtime::Error::msg("the component lost a function"))?;
        let mut results = vec![Val::Bool(false); usize::from(export.result.is_some())];
        function.call_async(store, &parameters, &mut results).await?;
        answer(export.result.as_ref(), results.pop()).map_err(|error| match error {
            NoJson::TooLarge => LimitReached::Output.into(),
            NoJson::Mismatch => error.into(),
        })
    }
}

/// A result as an answer.
fn answer(shape: Option<&Shape>, value: Option<Val>) -> Result<CallResult, NoJson> {
    let (shape, value, is_error) = match (shape, value) {
        (Some(Shape::Result(shapes)), Some(Val::Result(Ok(value)))) => (shapes[0].as_ref(), value.map(|v| *v), false),
        (Some(Shape::Result(shapes)), Some(Val::Result(Err(value)))) => (shapes[1].as_ref(), value.map(|v| *v), true),
        (shape, value) => (shape, value, false),
    };
    let (text, structured) = match (shape, value) {
        (None, None) => (if is_error { "failed" } else { "done" }.to_owned(), None),
        (Some(shape), Some(value)) => match json::result(shape, value)? {
            Value::String(text) if *shape == Shape::String => (text, None),
            json => {
                let json = json.to_string();
                (json.clone(), Some(json))
            }
        },
        _ => return Err(NoJson::Mismatch),
    };
    Ok(CallResult { content: vec![Content::Text(text)], structured, is_error })
}

/// The shape of what a function answers when it does not fail, where it is more than text.
fn structured_shape(result: Option<&Shape>) -> Option<&Shape> {
    let shape = match result? {
        Shape::Result(shapes) => shapes[0].as_ref()?,
        shape => shape,
    };
    Some(shape).filter(|shape| **shape != Shape::String)
}

fn describe(exports: &[Export], manifest: &Manifest) -> Result<(Vec<Function>, Value), Rejection> {
    if let Some(unknown) =
        manifest.functions.keys().find(|name| exports.iter().all(|export| export.full_name != **name))
    {
        let known = exports.iter().take(10).map(|export| format!("`{}`", export.full_name)).collect::<Vec<_>>();
        let more = if exports.len() > known.len() { ", ..." } else { "" };
        let words = format!(
            "the manifest describes `{unknown}`, and the component does not export it; it exports {}{more}",
            known.join(", ")
        );
        return Err(Rejection::new("manifest.unknown_function", words));
    }
    let functions = exports.iter().map(|export| function(export, manifest)).collect::<Result<_, _>>()?;
    Ok((functions, requires(manifest.requires.as_ref())?))
}

fn function(export: &Export, manifest: &Manifest) -> Result<Function, Rejection> {
    let Export { name, full_name, parameters, result, .. } = export;
    let described = manifest.functions.get(full_name).map(|function| function.description.clone());
    let description = described.filter(|text| !text.is_empty()).unwrap_or_else(|| format!("Calls `{full_name}`."));
    if description.len() > DESCRIPTION_BYTES_MAX {
        let words =
            format!("the description of `{name}` has {} bytes; use at most {DESCRIPTION_BYTES_MAX}", description.len());
        return Err(Rejection::new("manifest.bad_function", words));
    }
    let too_much = |which: &str, error: SchemaError| {
        Rejection::new("component.untranslatable_type", format!("the {which} of the function `{full_name}`: {error}"))
    };
    let input_schema = schema::of_arguments(parameters);
    Schema::of_arguments(&input_schema).map_err(|error| too_much("parameters", error))?;
    let output_schema = structured_shape(result.as_ref()).map(schema::of_result);
    if let Some(schema) = &output_schema {
        Schema::parse(schema).map_err(|error| too_much("result", error))?;
    }
    Ok(Function { name: name.clone(), description, input_schema, output_schema })
}

fn requires(requires: Option<&Value>) -> Result<Value, Rejection> {
    let Some(requires) = requires else { return Ok(Value::Object(Default::default())) };
    let bytes = requires.to_string().len();
    if requires.is_object() && bytes <= REQUIRES_BYTES_MAX {
        return Ok(requires.clone());
    }
    let words = format!("`requires` is an object in the shape of grants, of at most {REQUIRES_BYTES_MAX} bytes");
    Err(Rejection::new("manifest.bad_requires", words))
}

#[cfg(test)]
mod tests;
