use belljar_tool::testing::Call;
use notes::{add, count, list, search};
use serde_json::{Value, json};

const NAMESPACE: &str = "notes/{external_user_id}";

#[test]
fn notes_are_kept_and_found() {
    let call = Call::new().external_user_id("ada").key_value(NAMESPACE);
    for text in ["Buy tea", "Call Grace", "buy cake"] {
        assert!(!call.call::<add>(&json!({ "text": text }).to_string()).is_error);
    }
    let texts = |answer: belljar_tool::Answer| {
        let answer: Value = serde_json::from_str(&answer.structured.unwrap()).unwrap();
        answer["notes"].as_array().unwrap().iter().map(|note| note["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts(call.call::<list>("{}")), ["Buy tea", "Call Grace", "buy cake"]);
    assert_eq!(texts(call.call::<search>(r#"{"words": "BUY"}"#)), ["Buy tea", "buy cake"]);
    assert_eq!(call.call::<count>("{}").structured.as_deref(), Some("3"));
}

#[test]
fn a_note_is_never_overwritten() {
    let call = Call::new().key_value(NAMESPACE).entry(NAMESPACE, "note-00000001", "another call's");
    call.run(|| add("mine".into())).unwrap();
    let entries = call.entries(NAMESPACE);
    assert_eq!((&entries["note-00000001"][..], &entries["note-00000002"][..]), (&b"another call's"[..], &b"mine"[..]));
}

#[test]
fn a_model_is_told_what_is_wrong() {
    assert!(Call::new().run(list).unwrap_err().to_string().starts_with("denied: add the namespace"));
    let call = Call::new().key_value(NAMESPACE);
    assert!(call.run(|| add("  ".into())).unwrap_err().to_string().contains("empty"));
}
