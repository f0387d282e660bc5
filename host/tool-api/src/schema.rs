//! JSON Schemas that strangers write, bounded before they are used: a schema is code (hardening: `allOf` of two `$ref`s
//! a level doubles the work at each level).

use domain::FieldError;
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

/// Bytes of a schema's JSON: it travels with every model call.
pub const SCHEMA_BYTES_MAX: usize = 64 * 1024;
/// Subschemas after every `$ref` is followed, counted by multiplying: what one validation may visit.
const SCHEMA_NODES_MAX: u64 = 10_000;
/// Regular expressions of one schema: each is compiled, on this host, whenever the schema is used.
pub const PATTERNS_MAX: usize = 64;
/// Memory of one compiled regular expression, in bytes.
const PATTERN_BYTES_MAX: usize = 64 * 1024;
/// Errors told of one value: the first ones say enough.
const ERRORS_MAX: usize = 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    #[error("the schema has {0} bytes, more than {SCHEMA_BYTES_MAX}; describe less")]
    TooLarge(usize),
    #[error("`$ref` `{0}` leaves the schema; use `#/$defs/...`")]
    ForeignRef(String),
    #[error("`$ref` `{0}` points to nothing; define it under `$defs`")]
    DanglingRef(String),
    #[error("the schema refers to itself at `{0}` outside of `properties` and `items`; break the circle")]
    Circle(String),
    #[error("the schema unfolds to more than {SCHEMA_NODES_MAX} parts; share less or describe less")]
    TooComplex,
    #[error("the schema has {0} regular expressions, more than {PATTERNS_MAX}; use fewer")]
    TooManyPatterns(usize),
    #[error("`{0}` is not supported; use `$ref` with `#/$defs/...`")]
    Unsupported(String),
    #[error("arguments are a JSON object; give the schema `\"type\": \"object\"`")]
    NotAnObject,
    #[error("not a JSON Schema: {0}")]
    Invalid(String),
}

/// A schema that is safe to use.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
}

impl Schema {
    /// The schema of a function's arguments.
    pub fn of_arguments(schema: &Value) -> Result<Schema, SchemaError> {
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(SchemaError::NotAnObject);
        }
        Schema::parse(schema)
    }

    pub fn parse(schema: &Value) -> Result<Schema, SchemaError> {
        bounded(schema)?;
        let validator = jsonschema::options()
            .with_pattern_options(
                PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX),
            )
            .build(schema)
            .map_err(|error| SchemaError::Invalid(cut(&error.to_string())))?;
        Ok(Schema { validator })
    }

    /// What is wrong with a value; empty when it fits.
    pub fn check(&self, value: &Value) -> Vec<FieldError> {
        self.validator
            .iter_errors(value)
            .take(ERRORS_MAX)
            .map(|error| FieldError::new(error.instance_path().to_string(), cut(&error.to_string())))
            .collect()
    }
}

/// Error texts quote the value: keep them short.
fn cut(text: &str) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

fn bounded(schema: &Value) -> Result<(), SchemaError> {
    let bytes = schema.to_string().len();
    if bytes > SCHEMA_BYTES_MAX {
        return Err(SchemaError::TooLarge(bytes));
    }
    let patterns = patterns(schema);
    if patterns > PATTERNS_MAX {
        return Err(SchemaError::TooManyPatterns(patterns));
    }
    Unfolding { root: schema, nodes: 0, open: Vec::new(), consumed: 0 }.schema(schema)
}

/// Regular expressions anywhere in a schema, whether they are used or not.
fn patterns(at: &Value) -> usize {
    match at {
        Value::Array(items) => items.iter().map(patterns).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match (key.as_str(), value) {
                ("pattern", Value::String(_)) => 1,
                ("patternProperties", Value::Object(schemas)) => {
                    schemas.len() + schemas.values().map(patterns).sum::<usize>()
                }
                _ => patterns(value),
            })
            .sum(),
        _ => 0,
    }
}

/// A walk over a schema with each `$ref` unfolded where it stands.
struct Unfolding<'s> {
    root: &'s Value,
    nodes: u64,
    /// The references on the way here, each with `consumed` as it was when the reference was followed.
    open: Vec<(&'s str, usize)>,
    /// Steps into a property or an item on the way here. Each consumes a piece of the instance, so a circle through one
    /// ends with the instance; a circle without one never ends.
    consumed: usize,
}

impl<'s> Unfolding<'s> {
    fn schema(&mut self, at: &'s Value) -> Result<(), SchemaError> {
        self.nodes += 1;
        if self.nodes > SCHEMA_NODES_MAX {
            return Err(SchemaError::TooComplex);
        }
        let Value::Object(keywords) = at else { return Ok(()) };
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(target)) => self.follow(target)?,
                ("$dynamicRef" | "$recursiveRef" | "$anchor" | "$dynamicAnchor", _) => {
                    return Err(SchemaError::Unsupported(keyword.clone()));
                }
                ("$id" | "id", Value::String(_)) if !std::ptr::eq(at, self.root) => {
                    return Err(SchemaError::Unsupported(keyword.clone()));
                }
                // Data, or schemas that count where they are referred to.
                ("enum" | "const" | "default" | "examples" | "required" | "$defs" | "definitions", _) => {}
                ("properties" | "patternProperties", Value::Object(schemas)) => {
                    schemas.values().try_for_each(|schema| self.inside(schema))?;
                }
                ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                    schemas.values().try_for_each(|schema| self.schema(schema))?;
                }
                (
                    "items" | "prefixItems" | "additionalItems" | "additionalProperties" | "contains",
                    Value::Array(schemas),
                ) => {
                    schemas.iter().try_for_each(|schema| self.inside(schema))?;
                }
                ("items" | "prefixItems" | "additionalItems" | "additionalProperties" | "contains", schema) => {
                    self.inside(schema)?;
                }
                (_, Value::Array(schemas)) => schemas.iter().try_for_each(|schema| self.schema(schema))?,
                (_, schema) => self.schema(schema)?,
            }
        }
        Ok(())
    }

    fn inside(&mut self, schema: &'s Value) -> Result<(), SchemaError> {
        self.consumed += 1;
        let seen = self.schema(schema);
        self.consumed -= 1;
        seen
    }

    fn follow(&mut self, target: &'s str) -> Result<(), SchemaError> {
        let pointer = target.strip_prefix('#').ok_or_else(|| SchemaError::ForeignRef(cut(target)))?;
        if let Some((_, consumed)) = self.open.iter().find(|(open, _)| *open == target) {
            return if *consumed < self.consumed { Ok(()) } else { Err(SchemaError::Circle(cut(target))) };
        }
        let found = self.root.pointer(pointer).ok_or_else(|| SchemaError::DanglingRef(cut(target)))?;
        self.open.push((target, self.consumed));
        self.schema(found)?;
        self.open.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: Value) -> Option<SchemaError> {
        Schema::of_arguments(&schema).err()
    }

    /// `levels` definitions, each of which applies the next one twice.
    fn bomb(levels: usize) -> Value {
        let mut defs = serde_json::Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"allOf": [next, next]}));
        }
        defs.insert(format!("d{levels}"), json!({"type": "object"}));
        json!({"type": "object", "allOf": [{"$ref": "#/$defs/d0"}], "$defs": defs})
    }

    #[test]
    fn a_schema_cannot_hurt_whoever_uses_it() {
        assert_eq!(refused(json!({"type": "string"})), Some(SchemaError::NotAnObject));
        assert_eq!(refused(json!(true)), Some(SchemaError::NotAnObject));
        assert_eq!(refused(bomb(30)), Some(SchemaError::TooComplex));
        let hidden = json!({"type": "object", "properties": {"enum": bomb(30)}});
        assert!(refused(hidden).is_some(), "a property may be called like a keyword");
        assert_eq!(
            refused(json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}})),
            Some(SchemaError::ForeignRef("https://example.com/x".into()))
        );
        assert_eq!(
            refused(json!({"type": "object", "allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}})),
            Some(SchemaError::Circle("#/$defs/a".into()))
        );
        assert_eq!(
            refused(json!({"type": "object", "$ref": "#/$defs/gone"})),
            Some(SchemaError::DanglingRef("#/$defs/gone".into()))
        );
        assert!(matches!(
            refused(json!({"type": "object", "properties": {"a": {"type": "nothing"}}})),
            Some(SchemaError::Invalid(_))
        ));
        let pattern = json!({"type": "string", "pattern": "a+"});
        let many = json!({"type": "object", "properties": {"a": {"anyOf": vec![pattern; PATTERNS_MAX + 1]}}});
        assert_eq!(refused(many), Some(SchemaError::TooManyPatterns(PATTERNS_MAX + 1)));
        let huge = json!({"type": "object", "properties": {"a": {"pattern": r"(\p{L}x|\p{N}y){80}N"}}});
        assert!(matches!(refused(huge), Some(SchemaError::Invalid(_))), "a small pattern may be a large machine");
        let text = "x".repeat(SCHEMA_BYTES_MAX);
        assert!(matches!(refused(json!({"type": "object", "title": text})), Some(SchemaError::TooLarge(_))));
    }

    #[test]
    fn fair_patterns_fit() {
        for fair in [r"^[\w.+-]+@[\w-]+\.[\w.]+$", r"^\d{4}-\d{2}-\d{2}$", "^[a-z0-9-]{1,64}$", r"^\p{L}+$"] {
            let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": fair}}});
            assert_eq!(refused(schema), None, "{fair}");
        }
        let keys = |count: usize| -> Value {
            let keys: serde_json::Map<String, Value> = (0..count).map(|n| (format!("^k{n}$"), json!(true))).collect();
            json!({"type": "object", "patternProperties": keys})
        };
        assert_eq!(refused(keys(PATTERNS_MAX)), None);
        assert_eq!(refused(keys(PATTERNS_MAX + 1)), Some(SchemaError::TooManyPatterns(PATTERNS_MAX + 1)));
    }

    #[test]
    fn a_tree_may_refer_to_itself() {
        let tree = json!({
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#"}}},
            "additionalProperties": false,
        });
        let schema = Schema::of_arguments(&tree).unwrap();
        assert_eq!(schema.check(&json!({"children": [{"children": []}]})), []);
        let errors = schema.check(&json!({"children": [{"kids": 1}]}));
        assert_eq!(errors[0].pointer, "/children/0");
    }
}
