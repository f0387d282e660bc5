//! Whether a version of a tool takes a call: it has the function, and the arguments fit its schema.

use agent_config::tools::ToolVersion;
use domain::{FieldError, FunctionName, Kind, Problem};
use serde_json::Value;
use tool_api::schema::Schema;

#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("the version has no function `{function}`; it has: {known}")]
    UnknownFunction { function: FunctionName, known: String },
    #[error("the arguments do not fit the function's input schema; see `errors`")]
    BadArguments(Vec<FieldError>),
    #[error("the function's input schema cannot be used")]
    BadSchema,
}

impl Problem for Unfit {
    fn kind(&self) -> Kind {
        match self {
            Unfit::UnknownFunction { .. } | Unfit::BadArguments(_) => Kind::Invalid,
            Unfit::BadSchema => Kind::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Unfit::UnknownFunction { .. } => "tool_call.function_not_found",
            Unfit::BadArguments(_) => "tool_call.bad_arguments",
            Unfit::BadSchema => "internal",
        }
    }

    fn fields(&self) -> Vec<FieldError> {
        match self {
            Unfit::UnknownFunction { .. } => vec![FieldError::new("/function", self.to_string())],
            Unfit::BadArguments(fields) => fields.clone(),
            Unfit::BadSchema => Vec::new(),
        }
    }
}

pub(crate) fn check(version: &ToolVersion, name: &FunctionName, arguments: &Value) -> Result<(), Unfit> {
    let Some(function) = version.functions.iter().find(|function| function.name == *name) else {
        let known: Vec<&str> = version.functions.iter().map(|function| function.name.as_str()).collect();
        return Err(Unfit::UnknownFunction { function: name.clone(), known: known.join(", ") });
    };
    let schema = Schema::of_arguments(&function.input_schema).map_err(|_| Unfit::BadSchema)?;
    let wrong = schema.check(arguments);
    if wrong.is_empty() {
        return Ok(());
    }
    let fields = wrong.into_iter().map(|error| FieldError::new(format!("/arguments{}", error.pointer), error.detail));
    Err(Unfit::BadArguments(fields.collect()))
}
