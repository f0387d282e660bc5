use domain::{CallId, SystemIds};
use serde_json::json;

use super::*;

fn pointers(history: &[(Role, Vec<Part>)]) -> Vec<String> {
    match check_history(history) {
        Ok(()) => Vec::new(),
        Err(error) => {
            assert_eq!((error.kind(), error.code()), (Kind::Invalid, "conversation.bad_history"));
            error.fields().into_iter().map(|field| field.pointer).collect()
        }
    }
}

fn image(media_type: &str, data: &str) -> Part {
    Part::Image { media_type: media_type.into(), data: data.into() }
}

#[test]
fn a_history_holds_only_what_people_and_models_say() {
    let call = Part::ToolCall {
        id: CallId::new(&SystemIds),
        provider_id: "p".into(),
        name: "calc__evaluate".into(),
        arguments: json!({}),
    };
    let result =
        Part::ToolResult { id: CallId::new(&SystemIds), provider_id: "p".into(), is_error: false, text: "3".into() };
    let said = || Part::text("hello");
    for (role, parts, wrong) in [
        (Role::Tool, vec![said()], vec!["/messages/0/role"]),
        (Role::Assistant, vec![said(), call], vec!["/messages/0/parts/1"]),
        (Role::User, vec![result], vec!["/messages/0/parts/0"]),
        (Role::User, vec![], vec!["/messages/0/parts"]),
        (Role::User, vec![Part::text("")], vec!["/messages/0/parts"]),
        (Role::User, vec![image("image/svg+xml", "AAAA")], vec!["/messages/0/parts/0"]),
        (Role::User, vec![image("image/png", "AAA")], vec!["/messages/0/parts/0"]),
        (Role::User, vec![image("image/png", "")], vec!["/messages/0/parts/0"]),
        (Role::User, vec![image("image/png", "A===")], vec!["/messages/0/parts/0"]),
        (Role::User, vec![image("image/png", "AA==")], vec![]),
        (Role::User, vec![said(), image("image/webp", "AAA=")], vec![]),
        (Role::Assistant, vec![said()], vec![]),
    ] {
        assert_eq!(pointers(&[(role, parts.clone())]), wrong, "{role:?} {parts:?}");
    }
}

#[test]
fn a_history_is_bounded() {
    let messages = |count| vec![(Role::User, vec![Part::text("x")]); count];
    assert_eq!(pointers(&messages(HISTORY_MESSAGES_MAX + 1)), ["/messages"]);
    assert!(pointers(&messages(HISTORY_MESSAGES_MAX)).is_empty());

    let of_bytes = |bytes| [(Role::User, vec![Part::text("x"), Part::text("x".repeat(bytes - 1))])];
    assert_eq!(pointers(&of_bytes(MESSAGE_TEXT_BYTES_MAX + 1)), ["/messages/0/parts"]);
    assert!(pointers(&of_bytes(MESSAGE_TEXT_BYTES_MAX)).is_empty());
}
