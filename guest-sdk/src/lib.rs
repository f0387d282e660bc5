//! Write a Belljar tool in Rust: a plain function, `#[tool]` on it, and one line that exports it.
//!
//! Owns: what a tool author sees of the contract `belljar:tool` (in `wit/`).
//! May use: belljar-tool-macros, schemars, serde, serde_json, wit-bindgen.
//! Never: anything of the host.
//! Start at: [`macro@tool`] and [`toolbox!`].
//!
//! ```
//! use belljar_tool::{tool, toolbox};
//!
//! /// Greets somebody by name.
//! #[tool]
//! fn greet(
//!     /// Whom to greet.
//!     name: String,
//! ) -> String {
//!     format!("Hello, {name}!")
//! }
//!
//! toolbox!(greet);
//!
//! // It is still a plain function:
//! assert_eq!(greet("Ada".into()), "Hello, Ada!");
//! ```
//!
//! Built with `cargo build --release --target wasm32-wasip2` as a `cdylib`, this is a component that Belljar takes.
//! A model reads the doc comments, so write them for a stranger.
//!
//! # Arguments
//!
//! Several parameters become one JSON object with a property each; an `Option` may be left out. A single parameter
//! named `args` (or a struct pattern) is the whole object, of a type with serde's `Deserialize` and schemars'
//! `JsonSchema`:
//!
//! ```
//! use belljar_tool::{tool, toolbox};
//! use schemars::JsonSchema;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(deny_unknown_fields)]
//! struct Args {
//!     /// The numbers to look at; at least one.
//!     numbers: Vec<i64>,
//! }
//!
//! #[derive(Debug, PartialEq, Serialize, JsonSchema)]
//! struct Range {
//!     least: i64,
//!     most: i64,
//! }
//!
//! /// The least and the greatest of some numbers.
//! #[tool]
//! fn range(args: Args) -> Result<Range, String> {
//!     let numbers = args.numbers.into_iter();
//!     let (least, most) = (numbers.clone().min(), numbers.max());
//!     least.zip(most).map(|(least, most)| Range { least, most }).ok_or("give at least one number".into())
//! }
//!
//! toolbox!(range);
//!
//! assert_eq!(range(Args { numbers: vec![3, 1, 2] }), Ok(Range { least: 1, most: 3 }));
//! ```
//!
//! # Results
//!
//! A string is text; any other type with `Serialize` and `JsonSchema` is structured JSON, and the same JSON as text; an
//! [`Answer`] says exactly what is answered, images too. An `Err` is shown to the model, which may try again: any error
//! with `Display` will do, and [`Error`] takes every standard error by `?`.
//!
//! # The call and its grants
//!
//! [`context::get`] tells who is calling; [`http`] sends requests, [`kv`] stores values, [`config`] and [`secrets`] read
//! what the agent's owner granted; [`log`] writes lines into the call's receipt, and [`progress`] tells whoever follows
//! the run. Natively, in `cargo test`, they all answer from a [`testing::Call`]. [`toolbox!`] says what a tool requires.
//!
//! A tool sees no environment, file or network unless it is granted one. With a grant of `scratch_bytes`, `/scratch` is
//! an empty directory for `std::fs` that lives as long as the call.

mod answer;
mod args;
#[cfg(target_family = "wasm")]
mod bindings;
pub mod config;
pub mod context;
mod error;
pub mod http;
pub mod kv;
pub mod log;
pub mod progress;
pub mod secrets;
#[cfg(not(target_family = "wasm"))]
pub mod testing;
mod tool;

// Who answers the tool's questions: the host, or natively a test.
#[cfg(target_family = "wasm")]
use bindings as host;
#[cfg(not(target_family = "wasm"))]
use testing as host;

pub use answer::{Answer, Content, IntoAnswer};
pub use belljar_tool_macros::tool;
pub use error::{Error, Result};
pub use tool::Tool;

/// Exports functions that carry [`#[tool]`](macro@tool) as the toolbox of this component; once per crate.
///
/// `requires` says what the tool needs to be useful: the grants of a binding, without values and with a reason each. It
/// is shown at upload, and a binding can take it whole with `"grants": "as_requested"`. What no grant could be does not
/// compile.
///
/// ```
/// use belljar_tool::{Result, config, http, kv, tool, toolbox};
///
/// /// The weather of a place.
/// #[tool]
/// fn weather(place: String) -> Result<String> {
///     let unit = config::get("unit")?.unwrap_or("celsius".into());
///     let url = http::Request::get("https://api.weather.example/v1/now").query("place", &place).query("unit", &unit);
///     let weather = url.send()?.success()?.text()?;
///     kv::open("seen/{external_user_id}")?.set(&place, &weather)?;
///     Ok(weather)
/// }
///
/// toolbox!(weather; requires = {
///     http: [{
///         host: "api.weather.example",
///         methods: ["GET"],
///         paths: ["/v1"],
///         headers: [{ name: "Authorization", secret: "weather_key", format: "Bearer {}" }],
///         reason: "the weather comes from there",
///     }],
///     key_value: [{
///         namespace: "seen/{external_user_id}",
///         access: "write",
///         reason: "remembers what each user was told",
///     }],
///     config: { unit: "`celsius` or `fahrenheit`" },
/// });
/// ```
///
/// There are also `secrets: [{ name, reason }]` for secrets that the tool reads itself, and
/// `scratch_bytes: { bytes, reason }` for a directory `/scratch`; a host of `http` may have `query`, `basic`,
/// `idempotency_header` and `plain_http` too, as a grant has.
///
/// ```compile_fail
/// # use belljar_tool::{tool, toolbox};
/// # /// Does nothing.
/// # #[tool]
/// # fn nothing() {}
/// toolbox!(nothing; requires = { http: [{ host: "api.weather.example" }] }); // Nobody is told why.
/// ```
#[macro_export]
macro_rules! toolbox {
    ($($function:path),+ $(,)?; requires = { $($requires:tt)* } $(;)?) => {
        $crate::toolbox!(
            @ ::core::option::Option::Some($crate::__private::requires! { $($requires)* }); $($function),+
        );
    };
    ($($function:path),+ $(,)?) => {
        $crate::toolbox!(@ ::core::option::Option::None; $($function),+);
    };
    (@ $requires:expr; $($function:path),+) => {
        const _: () = {
            struct Toolbox;

            impl $crate::__private::Toolbox for Toolbox {
                const REQUIRES: ::core::option::Option<&'static str> = $requires;
                const FUNCTIONS: &'static [$crate::__private::Function] =
                    &[$($crate::__private::Function::of::<$function>()),+];
            }

            $crate::__export!(Toolbox);
        };
    };
}

#[cfg(target_family = "wasm")]
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($toolbox:ident) => {
        $crate::__private::bindings::export!($toolbox with_types_in $crate::__private::bindings);
    };
}

/// A test has nobody to export to; but what is listed is checked and counts as used.
#[cfg(not(target_family = "wasm"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($toolbox:ident) => {
        const _: &[$crate::__private::Function] = <$toolbox as $crate::__private::Toolbox>::FUNCTIONS;
        const _: ::core::option::Option<&str> = <$toolbox as $crate::__private::Toolbox>::REQUIRES;
    };
}

/// What the macros write; no part of the promise.
#[doc(hidden)]
pub mod __private {
    pub use crate::answer::Fallible;
    pub use crate::args::{input_schema, parse};
    #[cfg(target_family = "wasm")]
    pub use crate::bindings::generated as bindings;
    pub use crate::tool::{Function, Toolbox};
    pub use belljar_tool_macros::requires;
    pub use schemars;
    pub use serde;
}

/// The README's code is code too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
