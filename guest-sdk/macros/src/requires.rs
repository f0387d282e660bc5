//! What a tool needs, written as grants without values and with a reason each, checked here and sent as JSON.

mod rules;
mod value;

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Error, Result};

use rules::{REQUIRES, Rule};
use value::{Kind, Value};

pub(crate) fn expand(input: TokenStream) -> Result<TokenStream> {
    let value: Value = syn::parse2(quote!({ #input }))?;
    check(&value, &Rule::Object(REQUIRES))?;
    let json = value.to_json();
    Ok(quote!(#json))
}

fn check(value: &Value, rule: &Rule) -> Result<()> {
    let wrong = |words: &str| Err(Error::new(value.span, words));
    match (rule, &value.kind) {
        (Rule::Text(is_right, words), Kind::Text(text)) => {
            if is_right(text) {
                Ok(())
            } else {
                wrong(words)
            }
        }
        (Rule::Text(..), _) => wrong("this is a text in quotes"),
        (Rule::Bytes, Kind::Number(_)) | (Rule::Flag, Kind::Flag(_)) => Ok(()),
        (Rule::Bytes, _) => wrong("this is a number of bytes"),
        (Rule::Flag, _) => wrong("this is `true` or `false`"),
        (Rule::List(rule), Kind::List(items)) => items.iter().try_for_each(|item| check(item, rule)),
        (Rule::List(_), _) => wrong("this is a list: `[...]`"),
        (Rule::Map(rule), Kind::Object(fields)) => fields.iter().try_for_each(|(_, _, value)| check(value, rule)),
        (Rule::Object(known), Kind::Object(fields)) => {
            for (name, span, value) in fields {
                let field = known.iter().find(|field| field.name == name);
                let names = || known.iter().map(|field| format!("`{}`", field.name)).collect::<Vec<_>>().join(", ");
                let field = field.ok_or_else(|| Error::new(*span, format!("no such field; there are {}", names())))?;
                check(value, &field.rule)?;
            }
            match known.iter().find(|field| field.needed && fields.iter().all(|(name, ..)| field.name != name)) {
                Some(missing) => wrong(&format!("`{}` is missing", missing.name)),
                None => Ok(()),
            }
        }
        (Rule::Map(_) | Rule::Object(_), _) => wrong("this is an object: `{ name: value }`"),
    }
}

#[cfg(test)]
mod tests;
