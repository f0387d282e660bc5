//! OpenAPI schemas of what is written in more than one form; the derive knows one form a type.

use std::borrow::Cow;

use domain::Grants;
use serde_json::json;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, OneOfBuilder, Ref, Type},
    },
};

use crate::{
    agents::ModelChoice,
    bindings::{ApprovalRule, GrantsSpec},
    tools::VersionRef,
};

impl PartialSchema for VersionRef {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some("^(latest|sha256:[0-9a-f]{64})$"))
            .description(Some("`latest`, the newest version that is ready, or `sha256:...`"))
            .into()
    }
}

impl ToSchema for VersionRef {
    fn name() -> Cow<'static, str> {
        "VersionRef".into()
    }
}

impl PartialSchema for GrantsSpec {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(Ref::from_schema_name(Grants::name()))
            .item(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["as_requested"])))
            .description(Some("What the tool may touch, or `as_requested`: what its version asks for"))
            .into()
    }
}

impl ToSchema for GrantsSpec {
    fn name() -> Cow<'static, str> {
        "GrantsSpec".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Grants::name().into(), Grants::schema()));
        Grants::schemas(schemas);
    }
}

impl PartialSchema for ApprovalRule {
    fn schema() -> RefOr<Schema> {
        let word = || ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["never", "always"]));
        let object = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("default", word())
            .property("functions", ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(word())));
        OneOfBuilder::new()
            .item(word())
            .item(object)
            .description(Some("Which functions wait for a person's word: all, none, or by name"))
            .into()
    }
}

impl ToSchema for ApprovalRule {
    fn name() -> Cow<'static, str> {
        "ApprovalRule".into()
    }
}

impl PartialSchema for ModelChoice {
    fn schema() -> RefOr<Schema> {
        let string = |description: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(description));
        let object = ObjectBuilder::new()
            .schema_type(Type::Object)
            .property("provider", string("A provider key of yours, or a provider of the platform"))
            .property("name", string("The model, as its provider calls it"))
            .property("temperature", ObjectBuilder::new().schema_type(Type::Number))
            .property("max_output_tokens", ObjectBuilder::new().schema_type(Type::Integer))
            .property(
                "options",
                ObjectBuilder::new().schema_type(Type::Object).description(Some("Sent to the provider as they are")),
            )
            .required("name");
        OneOfBuilder::new()
            .item(string("`name` or `provider/name`; answers show the object").examples([json!("openai/gpt-4o")]))
            .item(object)
            .into()
    }
}

impl ToSchema for ModelChoice {
    fn name() -> Cow<'static, str> {
        "ModelChoice".into()
    }
}
