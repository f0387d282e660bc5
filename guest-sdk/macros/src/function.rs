//! From a function to an implementation of `Tool`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::{Attribute, Error, Expr, FnArg, ItemFn, Lit, LitStr, Pat, PatType, Result, ReturnType, Type, ext::IdentExt};

/// As `wit/tool.wit` says.
const NAME_BYTES_MAX: usize = 32;
/// As `wit/tool.wit` says.
const DESCRIPTION_BYTES_MAX: usize = 4096;

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let mut function: ItemFn = syn::parse2(item)?;
    let name = name(attribute, &function)?;
    let description = description(&function)?;
    let parameters = take_parameters(&mut function)?;

    let (vis, ident) = (&function.vis, &function.sig.ident);
    let arguments = Arguments::of(&parameters)?;
    let (declaration, ty, spread) = (arguments.declaration, arguments.ty, arguments.spread);
    let (ok, answer) = output(&function.sig.output);

    Ok(quote! {
        #function

        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code)]
        #vis struct #ident {}

        const _: () = {
            #declaration

            impl ::belljar_tool::Tool for #ident {
                const NAME: &'static str = #name;
                const DESCRIPTION: &'static str = #description;

                fn input_schema() -> ::std::string::String {
                    ::belljar_tool::__private::input_schema::<#ty>()
                }

                fn output_schema() -> ::std::option::Option<::std::string::String> {
                    <#ok as ::belljar_tool::IntoAnswer>::output_schema()
                }

                fn call(arguments: &str) -> ::belljar_tool::Answer {
                    let arguments = match ::belljar_tool::__private::parse::<#ty>(arguments) {
                        ::std::result::Result::Ok(arguments) => arguments,
                        ::std::result::Result::Err(answer) => return answer,
                    };
                    #answer(#ident(#spread))
                }
            }
        };
    })
}

/// The name that a model calls, checked here rather than at the upload.
fn name(attribute: TokenStream, function: &ItemFn) -> Result<String> {
    let mut given: Option<LitStr> = None;
    let parser = syn::meta::parser(|meta| {
        if !meta.path.is_ident("name") {
            return Err(meta.error("only `name = \"...\"` is known here"));
        }
        given = Some(meta.value()?.parse()?);
        Ok(())
    });
    syn::parse::Parser::parse2(parser, attribute)?;

    let ident = &function.sig.ident;
    let (name, span) = match given {
        Some(literal) => (literal.value(), literal.span()),
        None => (ident.unraw().to_string(), ident.span()),
    };
    let fits = name.len() <= NAME_BYTES_MAX
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && !name.contains("__");
    if !fits {
        return Err(Error::new(
            span,
            "a function's name is a letter and then at most 31 letters, digits, `-` or `_`, without `__`; \
             choose another with `#[tool(name = \"...\")]`",
        ));
    }
    Ok(name)
}

fn description(function: &ItemFn) -> Result<String> {
    let lines: Vec<String> = function.attrs.iter().filter_map(doc_line).collect();
    let description = lines.join("\n").trim().to_owned();
    if description.is_empty() {
        return Err(Error::new(
            function.sig.ident.span(),
            "write a doc comment: it tells a model what the function does",
        ));
    }
    if description.len() > DESCRIPTION_BYTES_MAX {
        return Err(Error::new(function.sig.ident.span(), "the doc comment is longer than 4096 bytes; say it shorter"));
    }
    Ok(description)
}

fn doc_line(attribute: &Attribute) -> Option<String> {
    let meta = attribute.meta.require_name_value().ok().filter(|meta| meta.path.is_ident("doc"))?;
    let Expr::Lit(literal) = &meta.value else { return None };
    let Lit::Str(text) = &literal.lit else { return None };
    let text = text.value();
    Some(text.strip_prefix(' ').unwrap_or(&text).to_owned())
}

/// Refuses what has no meaning in a tool, and moves the parameters' attributes out: rustc would not take them.
fn take_parameters(function: &mut ItemFn) -> Result<Vec<PatType>> {
    let signature = &mut function.sig;
    if let Some(word) = &signature.asyncness {
        return Err(Error::new_spanned(word, "a tool's function is called and answers: it cannot be `async`"));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new_spanned(
            &signature.generics,
            "a model passes JSON: a tool's function cannot be generic or take references",
        ));
    }
    let mut parameters = Vec::new();
    for input in &mut signature.inputs {
        let FnArg::Typed(parameter) = input else {
            return Err(Error::new_spanned(input, "a tool's function is a free function, without `self`"));
        };
        if let Type::Reference(reference) = &*parameter.ty {
            return Err(Error::new_spanned(reference, "a parameter is owned: write `String` for `&str`"));
        }
        parameters.push(parameter.clone());
        parameter.attrs.clear();
    }
    Ok(parameters)
}

/// How a JSON object becomes the function's parameters.
struct Arguments {
    declaration: TokenStream,
    ty: TokenStream,
    spread: TokenStream,
}

impl Arguments {
    fn of(parameters: &[PatType]) -> Result<Self> {
        if let [whole] = parameters
            && is_whole(&whole.pat)
        {
            let ty = &whole.ty;
            return Ok(Self { declaration: quote!(), ty: quote!(#ty), spread: quote!(arguments) });
        }
        let (mut fields, mut names) = (Vec::new(), Vec::new());
        for PatType { attrs, pat, ty, .. } in parameters {
            let Pat::Ident(pattern) = &**pat else {
                return Err(Error::new_spanned(pat, "give the parameter a name: it is the property's name"));
            };
            let name = &pattern.ident;
            fields.push(quote!(#(#attrs)* #name: #ty));
            names.push(name.clone());
        }
        // At the call site, so that the types mean what they mean beside the function.
        let ty = format_ident!("__Arguments", span = Span::call_site());
        let declaration = quote! {
            #[derive(::belljar_tool::__private::serde::Deserialize, ::belljar_tool::__private::schemars::JsonSchema)]
            #[serde(crate = "::belljar_tool::__private::serde", deny_unknown_fields)]
            #[schemars(crate = "::belljar_tool::__private::schemars")]
            struct #ty { #(#fields),* }
        };
        Ok(Self { declaration, ty: quote!(#ty), spread: quote!(#(arguments.#names),*) })
    }
}

fn is_whole(pattern: &Pat) -> bool {
    match pattern {
        Pat::Ident(pattern) => pattern.ident == "args" || pattern.ident == "_args",
        Pat::Struct(_) | Pat::TupleStruct(_) => true,
        _ => false,
    }
}

/// The type that is answered, and what makes an `Answer` of it.
fn output(output: &ReturnType) -> (TokenStream, TokenStream) {
    let ty = match output {
        ReturnType::Default => quote!(()),
        ReturnType::Type(_, ty) => quote!(#ty),
    };
    if is_result(output) {
        let fallible = quote!(<#ty as ::belljar_tool::__private::Fallible>);
        return (quote!(#fallible::Ok), quote!(#fallible::answer));
    }
    (ty, quote!(::belljar_tool::IntoAnswer::into_answer))
}

/// By name, because serde and schemars would take a `Result` for one more type to serialise.
fn is_result(output: &ReturnType) -> bool {
    let ReturnType::Type(_, ty) = output else { return false };
    let Type::Path(path) = &**ty else { return false };
    path.path.segments.last().is_some_and(|last| last.ident == "Result")
}
