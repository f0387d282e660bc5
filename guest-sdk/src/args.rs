//! From a JSON object to a function's arguments, and the schema that says so.

use crate::Answer;
use schemars::{JsonSchema, Schema, generate::SchemaSettings};
use serde::de::DeserializeOwned;

/// Keywords beside which `additionalProperties: false` would refuse what they allow.
const COMPOSING: [&str; 5] = ["$ref", "allOf", "anyOf", "oneOf", "additionalProperties"];

/// Reads the arguments; the host has checked them, so only a rule that the schema cannot say fails here.
#[doc(hidden)]
pub fn parse<T: DeserializeOwned>(arguments: &str) -> Result<T, Answer> {
    serde_json::from_str(arguments).map_err(|error| Answer::error(format!("the arguments do not fit: {error}")))
}

/// A closed object schema: a model that invents a property is told so.
#[doc(hidden)]
pub fn input_schema<T: JsonSchema>() -> String {
    let mut schema = generate::<T>(SchemaSettings::draft2020_12().for_deserialize());
    // `true` is the schema of a type that takes anything, `serde_json::Value` for one.
    let takes_anything = schema.as_bool() == Some(true);
    if schema.get("type").is_none() {
        schema.insert("type".into(), "object".into());
    }
    if !takes_anything && COMPOSING.iter().all(|keyword| schema.get(*keyword).is_none()) {
        schema.insert("additionalProperties".into(), false.into());
    }
    schema.to_value().to_string()
}

/// The schema of what a function answers.
pub(crate) fn output_schema<T: JsonSchema>() -> Option<String> {
    let schema = generate::<T>(SchemaSettings::draft2020_12().for_serialize());
    let is_object = schema.get("type").and_then(|kind| kind.as_str()) == Some("object");
    is_object.then(|| schema.to_value().to_string())
}

/// Without the name of the Rust type, which tells a model nothing.
fn generate<T: JsonSchema>(settings: SchemaSettings) -> Schema {
    let mut schema = settings.with(|settings| settings.meta_schema = None).into_generator().into_root_schema_for::<T>();
    schema.remove("title");
    schema
}
