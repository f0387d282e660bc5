//! What the fuzz targets reach. Each panics when a promise is broken, and says nothing else.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tool_api::schema::{Schema, SchemaError};
use wasmtime::{
    Engine,
    component::{
        Component,
        types::{ComponentFunc, ComponentItem},
    },
};

pub use crate::typed::Shape;
use crate::{
    check, engine,
    typed::{self, NoJson},
};

/// Bytes that a stranger uploads.
pub fn upload_check(bytes: &[u8]) {
    if let Err(rejection) = check::check(bytes) {
        assert!(rejection.code.starts_with("component.") && !rejection.detail.is_empty(), "{rejection:?}");
    }
}

/// A component's types become schemas that can be used, or are refused. Imports count too: they need no code, so that a
/// component of types alone will do.
pub fn types_schema(component: &[u8]) {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    if let Err(rejection) = check::check(component)
        && !matches!(rejection.code.as_str(), "component.no_toolbox" | "component.unknown_import")
    {
        return;
    }
    #[expect(clippy::unwrap_used, reason = "without an engine there is nothing to try")]
    let engine = ENGINE.get_or_init(|| engine::for_compiling().unwrap());
    let Ok(component) = Component::new(engine, component) else { return };
    for ty in functions(engine, &component) {
        let Ok((parameters, result)) = typed::signature_of(engine, &component, &ty) else { continue };
        usable(Schema::of_arguments(&typed::schema::of_arguments(&parameters)));
        if let Some(result) = result {
            usable(Schema::parse(&typed::schema::of_result(&result)));
        }
    }
}

fn functions(engine: &Engine, component: &Component) -> Vec<ComponentFunc> {
    let ty = component.component_type();
    let mut functions = Vec::new();
    for (_, item) in ty.imports(engine).chain(ty.exports(engine)) {
        match item.ty {
            ComponentItem::ComponentFunc(ty) => functions.push(ty),
            ComponentItem::ComponentInstance(instance) => {
                functions.extend(instance.exports(engine).filter_map(|(_, item)| match item.ty {
                    ComponentItem::ComponentFunc(ty) => Some(ty),
                    _ => None,
                }));
            }
            _ => {}
        }
    }
    functions
}

fn usable(schema: Result<Schema, SchemaError>) {
    match schema {
        Ok(_) | Err(SchemaError::TooLarge(_) | SchemaError::TooComplex) => {}
        Err(error) => panic!("a schema that cannot be used: {error}"),
    }
}

/// JSON that is taken as a value fits the schema, leaves as JSON that fits the schema of results, and comes in again as
/// the same value.
pub fn json_values(shape: &Shape, json: &Value) {
    let parameters = [("a".to_owned(), shape.clone())];
    let given = json!({ "a": json });
    let Ok(values) = typed::json::arguments(&parameters, &given) else { return };
    let inwards = Schema::of_arguments(&typed::schema::of_arguments(&parameters));
    if let Ok(schema) = &inwards {
        assert_eq!(schema.check(&given), [], "{shape:?} takes what its schema refuses");
    }
    let [value] = values.as_slice() else { panic!("one parameter, {} values", values.len()) };
    let left = match typed::json::result(shape, value.clone()) {
        Ok(left) => left,
        Err(NoJson::TooLarge) => return,
        Err(NoJson::Mismatch) => panic!("{value:?} is taken for {shape:?} and is none"),
    };
    if let Ok(schema) = Schema::parse(&typed::schema::of_result(shape)) {
        assert_eq!(schema.check(&left), [], "{shape:?} leaves as what its schema refuses");
    }
    match typed::json::arguments(&parameters, &json!({ "a": left })) {
        Ok(again) => assert_eq!(again, values, "{shape:?} of {left}"),
        Err(bad) => panic!("{shape:?} of {left}: {bad}"),
    }
}
