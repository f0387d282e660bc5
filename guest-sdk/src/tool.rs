//! What `#[tool]` makes of a function, and how a toolbox finds it.

use crate::Answer;

/// A function that a model can call. `#[tool]` implements it for a type of the function's own name.
pub trait Tool {
    /// Unique in the toolbox.
    const NAME: &'static str;
    /// The function's doc comment.
    const DESCRIPTION: &'static str;

    /// JSON Schema (2020-12) of the arguments.
    fn input_schema() -> String;

    /// JSON Schema of the structured answer, where it is an object.
    fn output_schema() -> Option<String>;

    /// Calls the function with a JSON object, as the host does.
    fn call(arguments: &str) -> Answer;
}

/// One line of a toolbox.
#[doc(hidden)]
#[derive(Clone, Copy)]
#[cfg_attr(not(target_family = "wasm"), expect(dead_code, reason = "only the exports read it"))]
pub struct Function {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) input_schema: fn() -> String,
    pub(crate) output_schema: fn() -> Option<String>,
    pub(crate) call: fn(&str) -> Answer,
}

impl Function {
    #[doc(hidden)]
    pub const fn of<T: Tool>() -> Self {
        Self {
            name: T::NAME,
            description: T::DESCRIPTION,
            input_schema: T::input_schema,
            output_schema: T::output_schema,
            call: T::call,
        }
    }
}

/// What `toolbox!` implements.
#[doc(hidden)]
pub trait Toolbox {
    const REQUIRES: Option<&'static str>;
    const FUNCTIONS: &'static [Function];
}
