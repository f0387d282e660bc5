use belljar_tool::{http, testing::Call};
use fetch::get;
use serde_json::{Value, json};

fn serving(media_type: &'static str, body: &'static str) -> Call {
    Call::new().http(move |_| Ok(http::Response::new(200).with_header("Content-Type", media_type).with_body(body)))
}

#[track_caller]
fn page(call: &Call, arguments: Value) -> Value {
    let answer = call.call::<get>(&arguments.to_string());
    assert!(!answer.is_error, "{answer:?}");
    serde_json::from_str(&answer.structured.unwrap()).unwrap()
}

#[test]
fn a_page_is_read_without_its_markup() {
    let html = "<!-- x --><style>p{}</style><h1>Tea &amp; cake</h1>\n<SCRIPT>if (a < b) {}</Script><p>5 &lt; 6</p>";
    let call = serving("text/html; charset=utf-8", html);
    let page = page(&call, json!({"url": "https://example.com/"}));
    assert_eq!((&page["text"], &page["cut"]), (&json!("Tea & cake 5 < 6"), &json!(false)));
    assert_eq!(call.requests()[0].url(), "https://example.com/");
}

#[test]
fn a_long_page_is_cut() {
    let call = serving("text/plain", "éééééé");
    let page = page(&call, json!({"url": "https://example.com/", "characters": 4}));
    assert_eq!((&page["text"], &page["cut"]), (&json!("éééé"), &json!(true)));
}

#[test]
fn a_model_is_told_what_is_wrong() {
    let ask = |call: Call| get_error(&call);
    let moved = Call::new().http(|_| Ok(http::Response::new(301).with_header("Location", "https://example.org/")));
    assert!(ask(moved).contains("https://example.org/"));
    assert!(ask(Call::new()).contains("denied: add the host to the binding's http grants"));
}

fn get_error(call: &Call) -> String {
    call.run(|| get("https://example.com/".into(), None)).unwrap_err().to_string()
}
