//! JSON as it is written in Rust: names without quotes, numbers with `_`.

use proc_macro2::Span;
use syn::{
    Error, Ident, LitBool, LitInt, LitStr, Result, Token, braced, bracketed,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    token::{Brace, Bracket},
};

pub(crate) struct Value {
    pub(crate) span: Span,
    pub(crate) kind: Kind,
}

pub(crate) enum Kind {
    Text(String),
    Number(u64),
    Flag(bool),
    List(Vec<Value>),
    /// In order, with the place of each name.
    Object(Vec<(String, Span, Value)>),
}

impl Parse for Value {
    fn parse(input: ParseStream) -> Result<Self> {
        let span = input.span();
        let content;
        let kind = if input.peek(LitStr) {
            Kind::Text(input.parse::<LitStr>()?.value())
        } else if input.peek(LitInt) {
            Kind::Number(input.parse::<LitInt>()?.base10_parse()?)
        } else if input.peek(LitBool) {
            Kind::Flag(input.parse::<LitBool>()?.value)
        } else if input.peek(Bracket) {
            bracketed!(content in input);
            Kind::List(content.parse_terminated(Value::parse, Token![,])?.into_iter().collect())
        } else if input.peek(Brace) {
            braced!(content in input);
            Kind::Object(fields(&content)?)
        } else {
            return Err(input.error("expected a text, a number, `true`, `false`, `[...]` or `{ name: value }`"));
        };
        Ok(Self { span, kind })
    }
}

fn fields(content: ParseStream) -> Result<Vec<(String, Span, Value)>> {
    let mut fields: Vec<(String, Span, Value)> = Vec::new();
    while !content.is_empty() {
        let span = content.span();
        let name = match content.peek(LitStr) {
            true => content.parse::<LitStr>()?.value(),
            false => content.call(Ident::parse_any)?.unraw().to_string(),
        };
        if fields.iter().any(|(known, ..)| *known == name) {
            return Err(Error::new(span, format!("`{name}` is here twice")));
        }
        content.parse::<Token![:]>()?;
        fields.push((name, span, content.parse()?));
        if !content.is_empty() {
            content.parse::<Token![,]>()?;
        }
    }
    Ok(fields)
}

impl Value {
    pub(crate) fn to_json(&self) -> String {
        match &self.kind {
            Kind::Text(text) => quoted(text),
            Kind::Number(number) => number.to_string(),
            Kind::Flag(flag) => flag.to_string(),
            Kind::List(items) => format!("[{}]", items.iter().map(Value::to_json).collect::<Vec<_>>().join(",")),
            Kind::Object(fields) => {
                let fields = fields.iter().map(|(name, _, value)| format!("{}:{}", quoted(name), value.to_json()));
                format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c < ' ' => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}
