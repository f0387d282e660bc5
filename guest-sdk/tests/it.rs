//! What `#[tool]` promises, as a tool author meets it.

use belljar_tool::testing::Call;
use belljar_tool::{Answer, Content, Tool, config, context, http, kv, log, tool, toolbox};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize, JsonSchema)]
struct Order {
    /// What is sold.
    item: Item,
    count: Option<u32>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Item {
    Tea,
    Cake { name: String },
}

#[derive(Serialize, JsonSchema)]
struct Sold {
    total: u32,
}

/// Sells something.
///
/// Only to grown-ups.
#[tool]
fn sell(args: Order) -> Result<Sold, String> {
    let price = match args.item {
        Item::Tea => 2,
        Item::Cake { name } if name == "stale" => return Err("that cake is stale; ask for another".into()),
        Item::Cake { .. } => 5,
    };
    Ok(Sold { total: price * args.count.unwrap_or(1) })
}

/// Repeats a word.
#[tool(name = "say-again")]
fn say_again(
    /// What to say.
    word: String,
    /// How often; twice if left out.
    #[serde(default = "twice")]
    mut times: usize,
) -> String {
    times = times.min(5);
    log::warn!("{word} x {times}");
    word.repeat(times)
}

fn twice() -> usize {
    2
}

mod deep {
    use super::*;

    /// Answers with nothing.
    #[tool]
    pub(crate) fn nothing() {}

    /// Answers with a number.
    #[tool]
    pub(crate) fn number() -> i32 {
        7
    }
}

/// Takes a pattern, answers in parts.
#[tool]
fn parts(Sizes { width, .. }: Sizes) -> belljar_tool::Result<Answer> {
    let user = context::get().external_user_id.ok_or_else(|| belljar_tool::Error::new("who are you?"))?;
    Ok(Answer::text(user).and_image("image/png", vec![0; width]).and_text(config::get("end")?.unwrap_or_default()))
}

#[derive(Deserialize, JsonSchema)]
struct Sizes {
    width: usize,
    #[expect(dead_code, reason = "left out by the pattern")]
    height: usize,
}

toolbox!(sell, say_again, deep::nothing, deep::number, parts; requires = { config: { end: "the last word" } });

fn schema(text: String) -> Value {
    serde_json::from_str(&text).expect("a schema is JSON")
}

#[test]
fn doc_comments_become_descriptions() {
    assert_eq!(sell::NAME, "sell");
    assert_eq!(sell::DESCRIPTION, "Sells something.\n\nOnly to grown-ups.");
    assert_eq!(say_again::NAME, "say-again");
    let schema = schema(say_again::input_schema());
    assert_eq!(schema["properties"]["word"]["description"], "What to say.");
    assert_eq!(schema["properties"]["times"]["default"], 2);
}

#[test]
fn an_input_schema_is_a_closed_object_with_local_refs() {
    for text in [sell::input_schema(), say_again::input_schema(), deep::nothing::input_schema(), parts::input_schema()]
    {
        let schema = schema(text);
        assert_eq!(schema["type"], "object", "{schema}");
        assert_eq!(schema["additionalProperties"], false, "{schema}");
        assert!(schema.get("$schema").is_none() && schema.get("title").is_none(), "{schema}");
    }
    assert_eq!(schema(sell::input_schema())["properties"]["item"]["$ref"], "#/$defs/Item");
    assert_eq!(schema(sell::input_schema())["required"], json!(["item"]));
    assert_eq!(schema(say_again::input_schema())["required"], json!(["word"]));
}

#[test]
fn only_an_object_has_an_output_schema() {
    let sold = schema(sell::output_schema().unwrap());
    assert_eq!(sold["properties"]["total"]["type"], "integer");
    assert_eq!(say_again::output_schema(), None);
    assert_eq!(deep::nothing::output_schema(), None);
    assert_eq!(deep::number::output_schema(), None);
    assert_eq!(parts::output_schema(), None);
}

#[test]
fn answers_are_text_and_structured() {
    let call = Call::new();
    let sold = call.call::<sell>(r#"{"item": "tea", "count": 3}"#);
    assert_eq!(sold.structured.as_deref(), Some(r#"{"total":6}"#));
    assert_eq!(sold, Answer { structured: sold.structured.clone(), ..Answer::text(r#"{"total":6}"#) });
    assert_eq!(call.call::<say_again>(r#"{"word": "a\"b"}"#), Answer::text("a\"ba\"b"));
    assert_eq!(call.call::<deep::nothing>("{}"), Answer::text("done"));
    assert_eq!(call.call::<deep::number>("{}").structured.as_deref(), Some("7"));
}

#[test]
fn a_failure_is_words_for_the_model() {
    let call = Call::new();
    let stale = call.call::<sell>(r#"{"item": {"cake": {"name": "stale"}}}"#);
    assert_eq!(stale, Answer::error("that cake is stale; ask for another"));
    assert_eq!(call.call::<parts>(r#"{"width": 1, "height": 1}"#), Answer::error("who are you?"));
    for wrong in ["{}", "[", r#"{"word": "a", "loud": true}"#] {
        assert!(call.call::<say_again>(wrong).is_error, "{wrong}");
    }
}

#[test]
fn a_call_is_seen_only_inside_its_run() {
    let call =
        Call::new().external_user_id("ada").config("end", "fin").context("plan", "gold").agent("clerk", "conv_1");
    let answer = call.call::<parts>(r#"{"width": 3, "height": 1}"#);
    let image = Content::Image { media_type: "image/png".into(), data: vec![0; 3] };
    assert_eq!(answer.content, [Content::Text("ada".into()), image, Content::Text("fin".into())]);

    call.run(|| {
        assert_eq!(context::get().value("plan"), Some("gold"));
        assert_eq!(context::get().agent.as_deref(), Some("clerk"));
        assert_eq!(config::get_all(), Ok(vec![("end".into(), "fin".into())]));
        Call::new().run(|| assert_eq!(context::get().external_user_id, None));
        assert_eq!(context::get().external_user_id.as_deref(), Some("ada"));
        say_again("ha".into(), 9)
    });
    let logs = call.logs();
    assert_eq!((logs[0].level, logs[0].message.as_str()), (log::Level::Warn, "ha x 5"));
    assert_eq!(context::get().external_user_id, None);
}

#[test]
fn what_is_not_granted_is_denied_as_the_host_does() {
    let call = Call::new().key_value_read("seen").entry("seen", "a", "1").entry("hidden", "b", "2");
    call.run(|| {
        assert_eq!(
            http::get("https://example.com/x?key=1").unwrap_err().to_string(),
            "denied: add the host to the binding's http grants: GET https://example.com/x"
        );
        assert_eq!(kv::open("hidden").unwrap_err(), kv::Error::Denied);
        let seen = kv::open("").unwrap();
        assert_eq!(seen.get_text("a"), Ok(Some("1".into())));
        assert_eq!(seen.set("a", "2"), Err(kv::Error::Denied));
        assert_eq!(seen.increment("a", 1), Err(kv::Error::Denied));
        assert_eq!(seen.delete("a"), Err(kv::Error::Denied));
    });
    assert!(call.requests().is_empty());
}

#[test]
fn a_store_keeps_what_is_written() {
    let call = Call::new().key_value("n");
    call.run(|| {
        let store = kv::open("n").unwrap();
        for key in ["c", "a", "e", "b", "d"] {
            store.set_json(key, &vec![key]).unwrap();
        }
        store.delete("b").unwrap();
        assert_eq!(store.keys().collect::<Result<Vec<_>, _>>().unwrap(), ["a", "c", "d", "e"]);
        assert_eq!(store.get_json::<Vec<String>>("a"), Ok(Some(vec!["a".into()])));
        assert!(matches!(store.get_json::<u32>("a"), Err(kv::Error::Unreadable(_))));
        assert_eq!(store.get_many(&["d", "b"]), Ok(vec![Some(br#"["d"]"#.to_vec()), None]));
        assert_eq!((store.exists("b"), store.increment("n", 2), store.increment("n", 3)), (Ok(false), Ok(2), Ok(5)));
        assert!(matches!(store.increment("a", 1), Err(kv::Error::Failed(_))));
    });
    assert_eq!(call.entries("n").len(), 5);
}
