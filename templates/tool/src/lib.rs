//! {{name}}: each function with `#[tool]` is one that a model can call, under the name `{{name}}__function`.

use belljar_tool::{tool, toolbox};

/// Greets somebody by name.
#[tool]
pub fn greet(
    /// Whom to greet.
    name: String,
    /// The language of the greeting, `en` or `fr`; English if left out.
    language: Option<String>,
) -> Result<String, String> {
    let name = name.trim();
    if name.is_empty() {
        return Err("say whom to greet".into());
    }
    match language.as_deref() {
        None | Some("en") => Ok(format!("Hello, {name}!")),
        Some("fr") => Ok(format!("Bonjour, {name} !")),
        Some(other) => Err(format!("`{other}` is no language of mine; use `en` or `fr`")),
    }
}

toolbox!(greet);

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_tool::{Answer, testing::Call};

    #[test]
    fn greets_by_name() {
        assert_eq!(greet("Ada".into(), None), Ok("Hello, Ada!".into()));
        assert_eq!(greet("Ada".into(), Some("fr".into())), Ok("Bonjour, Ada !".into()));
        assert_eq!(greet(" ".into(), None), Err("say whom to greet".into()));
    }

    #[test]
    fn is_called_with_json() {
        let answer = Call::new().call::<greet>(r#"{"name": "Ada"}"#);
        assert_eq!(answer, Answer::text("Hello, Ada!"));
    }
}
