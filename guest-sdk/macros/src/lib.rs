//! The macros of `belljar-tool`.
//!
//! Owns: how a Rust function is read as a tool's function, and what may stand in `requires`.
//! May use: proc-macro2, quote, syn.
//! Never: the contract itself; it names only what `belljar_tool` offers.
//! Start at: [`macro@tool`].

mod function;
mod requires;

use proc_macro::TokenStream;

/// Makes a function callable by a model, under its own name or under `#[tool(name = "...")]`.
///
/// The doc comment is the description that a model reads. Each parameter is a property of the arguments, described by
/// its own doc comment, and may carry serde's and schemars' field attributes; one parameter named `args`, or a struct
/// pattern, takes the whole object. A return type called `Result` fails with the error's `Display`.
///
/// The function itself stays as it is. Beside it stands a type of the same name, which implements `Tool`.
#[proc_macro_attribute]
pub fn tool(attribute: TokenStream, item: TokenStream) -> TokenStream {
    function::expand(attribute.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// The `requires` of `belljar_tool::toolbox!`, as JSON.
#[doc(hidden)]
#[proc_macro]
pub fn requires(input: TokenStream) -> TokenStream {
    requires::expand(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}
