//! Conversations and messages against a real Postgres, as the application role.
#![expect(clippy::unwrap_used, reason = "test code: a failed step ends the test")]

use std::time::Duration;

use conversation_store::{
    Conversation, ConversationFilter, ConversationPatch, MessageError, NewConversation, NewMessage, conversations,
    messages,
};
use domain::{
    AgentId, CallId, ConversationId, MessageId, Problem, RunId, SystemIds, Timestamp,
    message::{Part, Role},
    page::PageRequest,
};
use kit::TestDb;
use serde_json::{Map, Value, json};
use tenancy::{Tenant, TenantTx};

fn now() -> Timestamp {
    Timestamp::parse("2026-05-01T12:00:00Z").unwrap()
}

fn later() -> Timestamp {
    now().plus(Duration::from_secs(60))
}

fn map(value: Value) -> Map<String, Value> {
    serde_json::from_value(value).unwrap()
}

fn new(agent_id: AgentId, external_user_id: Option<&str>) -> NewConversation {
    NewConversation { agent_id, external_user_id: external_user_id.map(Into::into), title: None, metadata: Map::new() }
}

fn says(role: Role, text: &str) -> NewMessage {
    NewMessage { id: MessageId::new(&SystemIds), role, parts: vec![Part::text(text)], run_id: None }
}

async fn open(tenant: &Tenant, new: NewConversation) -> Conversation {
    let mut tx = tenant.begin().await.unwrap();
    let conversation = conversations::create(&mut tx, new, &[], &SystemIds, now()).await.unwrap();
    tx.commit().await.unwrap();
    conversation
}

async fn append(tenant: &Tenant, id: ConversationId, new: &[NewMessage]) -> Vec<u32> {
    let mut tx = tenant.begin().await.unwrap();
    let written = messages::append(&mut tx, id, new, later()).await.unwrap();
    tx.commit().await.unwrap();
    written.iter().map(|message| message.position).collect()
}

async fn texts(tx: &mut TenantTx, id: ConversationId) -> Vec<String> {
    let page = messages::list(tx, id, PageRequest { limit: 100, after: None }).await.unwrap();
    page.data.into_iter().map(|message| message.content).collect()
}

fn patch(value: Value) -> ConversationPatch {
    serde_json::from_value(value).unwrap()
}

#[tokio::test]
async fn a_strangers_conversation_is_none() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let run = RunId::new(&SystemIds);
    let conversation = open(&ada, new(db.agent(&ada).await, None)).await;
    append(&ada, conversation.id, &[NewMessage { run_id: Some(run), ..says(Role::User, "mine") }]).await;

    let mut tx = bob.begin().await.unwrap();
    assert_eq!(conversations::get(&mut tx, conversation.id).await.unwrap(), None);
    assert!(texts(&mut tx, conversation.id).await.is_empty());
    assert!(messages::newest(&mut tx, conversation.id, 10).await.unwrap().is_empty());
    assert_eq!(messages::last_of_run(&mut tx, run).await.unwrap(), None);
    let list = conversations::list(&mut tx, &ConversationFilter::default(), PageRequest::default()).await.unwrap();
    assert!(list.data.is_empty());
    for code in [
        conversations::find_for_user(&mut tx, conversation.id, None).await.unwrap_err().code(),
        conversations::lock(&mut tx, conversation.id).await.unwrap_err().code(),
        conversations::update(&mut tx, conversation.id, patch(json!({"title": "x"})), now()).await.unwrap_err().code(),
        conversations::delete(&mut tx, conversation.id).await.unwrap_err().code(),
        messages::append(&mut tx, conversation.id, &[says(Role::User, "x")], now()).await.unwrap_err().code(),
    ] {
        assert_eq!(code, "conversation.not_found");
    }
    tx.commit().await.unwrap();

    let mut tx = ada.begin().await.unwrap();
    assert_eq!(conversations::get(&mut tx, conversation.id).await.unwrap().unwrap().title, None);
    assert_eq!(texts(&mut tx, conversation.id).await, ["mine"]);
}

#[tokio::test]
async fn a_strangers_agent_does_not_exist() {
    let db = TestDb::start().await;
    let (ada, bob) = (db.tenant("ada").await, db.tenant("bob").await);
    let agent = db.agent(&ada).await;
    for agent in [agent, AgentId::new(&SystemIds)] {
        let mut tx = bob.begin().await.unwrap();
        let error = conversations::create(&mut tx, new(agent, None), &[], &SystemIds, now()).await.unwrap_err();
        assert_eq!(error.code(), "agent.not_found");
    }
}

#[tokio::test]
async fn another_users_conversation_is_not_found() {
    let db = TestDb::start().await;
    let tenant = db.tenant("shop").await;
    let agent = db.agent(&tenant).await;
    let (adas, nobodys) = (open(&tenant, new(agent, Some("ada"))).await, open(&tenant, new(agent, None)).await);
    let mut tx = tenant.begin().await.unwrap();
    for (conversation, user) in [(&adas, "bob"), (&nobodys, "bob"), (&nobodys, "ada")] {
        let error = conversations::find_for_user(&mut tx, conversation.id, Some(user)).await.unwrap_err();
        assert_eq!(error.code(), "conversation.not_found");
    }
    for (conversation, user) in [(&adas, Some("ada")), (&adas, None), (&nobodys, None)] {
        assert_eq!(&conversations::find_for_user(&mut tx, conversation.id, user).await.unwrap(), conversation);
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_by_its_field() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let good = new(db.agent(&tenant).await, None);
    let of_bytes = |bytes: usize| map(json!({"k": "x".repeat(bytes - 8)}));
    let mut tx = tenant.begin().await.unwrap();
    for (wrong, code, pointer) in [
        (NewConversation { title: Some(String::new()), ..good.clone() }, "conversation.bad_title", "/title"),
        (NewConversation { title: Some("é".repeat(201)), ..good.clone() }, "conversation.bad_title", "/title"),
        (
            NewConversation { metadata: of_bytes(16 * 1024 + 1), ..good.clone() },
            "conversation.metadata_too_large",
            "/metadata",
        ),
        (new(good.agent_id, Some("")), "conversation.bad_external_user_id", "/external_user_id"),
        (new(good.agent_id, Some("a\0")), "conversation.bad_external_user_id", "/external_user_id"),
        (new(good.agent_id, Some(&"x".repeat(257))), "conversation.bad_external_user_id", "/external_user_id"),
    ] {
        let error = conversations::create(&mut tx, wrong, &[], &SystemIds, now()).await.unwrap_err();
        assert_eq!((error.code(), error.fields()[0].pointer.as_str()), (code, pointer));
    }
    let longest = NewConversation { title: Some("é".repeat(200)), metadata: of_bytes(16 * 1024), ..good };
    let made = conversations::create(&mut tx, longest, &[], &SystemIds, now()).await.unwrap();
    assert_eq!(conversations::get(&mut tx, made.id).await.unwrap(), Some(made));
}

#[tokio::test]
async fn a_list_is_filtered_and_newest_first() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let (clerk, nurse) = (db.agent(&tenant).await, db.agent(&tenant).await);
    let mut made = Vec::new();
    for (agent, user) in [(clerk, Some("u1")), (nurse, Some("u1")), (clerk, None), (clerk, Some("u2"))] {
        made.push(open(&tenant, new(agent, user)).await.id);
    }
    let mut tx = tenant.begin().await.unwrap();
    for (agent, agents, user, expected) in [
        (None, None, None, vec![made[3], made[2], made[1], made[0]]),
        (Some(clerk), None, None, vec![made[3], made[2], made[0]]),
        (None, None, Some("u1"), vec![made[1], made[0]]),
        (Some(clerk), None, Some("u1"), vec![made[0]]),
        (Some(nurse), None, Some("u2"), vec![]),
        (None, Some(vec![nurse]), None, vec![made[1]]),
        (None, Some(vec![nurse, clerk]), Some("u1"), vec![made[1], made[0]]),
        (Some(clerk), Some(vec![nurse]), None, vec![]),
        (None, Some(vec![]), None, vec![]),
    ] {
        let filter = ConversationFilter { agent, agents, external_user_id: user.map(Into::into) };
        // In pages of one: what a page leaves out is on the next.
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = conversations::list(&mut tx, &filter, PageRequest { limit: 1, after }).await.unwrap();
            found.extend(page.data.into_iter().map(|conversation| conversation.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let first = NewConversation {
        title: Some("old".into()),
        metadata: map(json!({"keep": 1, "drop": {"a": 1}})),
        ..new(db.agent(&tenant).await, None)
    };
    let id = open(&tenant, first).await.id;
    let mut tx = tenant.begin().await.unwrap();
    let body = json!({"title": "new\0", "metadata": {"drop": null, "add": "x\0"}});
    let changed = conversations::update(&mut tx, id, patch(body), later()).await.unwrap();
    assert_eq!(changed.title.as_deref(), Some("new\u{FFFD}"));
    assert_eq!(Value::from(changed.metadata.clone()), json!({"keep": 1, "add": "x\u{FFFD}"}));
    assert_eq!((changed.created_at, changed.updated_at), (now(), later()));
    assert_eq!(conversations::get(&mut tx, id).await.unwrap(), Some(changed));

    let cleared =
        conversations::update(&mut tx, id, patch(json!({"title": null, "metadata": null})), later()).await.unwrap();
    assert_eq!((cleared.title, cleared.metadata), (None, Map::new()));
    let too_long = patch(json!({"title": "x".repeat(201)}));
    assert_eq!(
        conversations::update(&mut tx, id, too_long, later()).await.unwrap_err().code(),
        "conversation.bad_title"
    );
}

#[tokio::test]
async fn two_patches_at_once_both_survive() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, None)).await.id;
    let change = async |body: Value| {
        let mut tx = tenant.begin().await.unwrap();
        conversations::update(&mut tx, id, patch(body), later()).await.unwrap();
        tx.commit().await.unwrap();
    };
    tokio::join!(change(json!({"metadata": {"a": 1}})), change(json!({"metadata": {"b": 2}})));
    let mut tx = tenant.begin().await.unwrap();
    let metadata = conversations::get(&mut tx, id).await.unwrap().unwrap().metadata;
    assert_eq!(Value::from(metadata), json!({"a": 1, "b": 2}));
}

#[tokio::test]
async fn what_is_deleted_is_gone_with_its_messages() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let agent = db.agent(&tenant).await;
    let (gone, kept) = (open(&tenant, new(agent, None)).await.id, open(&tenant, new(agent, None)).await.id);
    for id in [gone, kept] {
        append(&tenant, id, &[says(Role::User, "hello")]).await;
    }
    let mut tx = tenant.begin().await.unwrap();
    conversations::delete(&mut tx, gone).await.unwrap();
    assert_eq!(conversations::get(&mut tx, gone).await.unwrap(), None);
    assert!(texts(&mut tx, gone).await.is_empty());
    assert_eq!(texts(&mut tx, kept).await, ["hello"]);
    assert_eq!(conversations::delete(&mut tx, gone).await.unwrap_err().code(), "conversation.not_found");
}

#[tokio::test]
async fn messages_follow_the_last_one() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let agent = db.agent(&tenant).await;
    let (id, other) = (open(&tenant, new(agent, None)).await.id, open(&tenant, new(agent, None)).await.id);
    assert_eq!(append(&tenant, id, &[says(Role::User, "a"), says(Role::Assistant, "b")]).await, [1, 2]);
    assert_eq!(append(&tenant, other, &[says(Role::User, "x")]).await, [1]);
    assert!(append(&tenant, id, &[]).await.is_empty());
    assert_eq!(append(&tenant, id, &[says(Role::User, "c")]).await, [3]);
    let mut tx = tenant.begin().await.unwrap();
    assert_eq!(texts(&mut tx, id).await, ["a", "b", "c"]);
    assert_eq!(conversations::get(&mut tx, id).await.unwrap().unwrap().updated_at, later());
}

#[tokio::test]
async fn messages_at_once_leave_no_gap_and_lose_none() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, None)).await.id;
    let speak = async |text: &str| append(&tenant, id, &[says(Role::User, text), says(Role::Assistant, text)]).await;
    let (a, b, c, d) = tokio::join!(speak("a"), speak("b"), speak("c"), speak("d"));
    let mut pairs = [a, b, c, d];
    pairs.sort();
    assert_eq!(pairs.concat(), (1..=8).collect::<Vec<u32>>());
}

#[tokio::test]
async fn a_nul_character_becomes_the_replacement_character() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, None)).await.id;
    let call = |name: &str, arguments: Value| Part::ToolCall {
        id: CallId::from(uuid::Uuid::from_u128(1)),
        provider_id: "p".into(),
        name: name.into(),
        arguments,
    };
    let message = NewMessage {
        parts: vec![Part::text("a\0b"), call("x\0", json!({"k\0": ["\0"], "n": 1.5}))],
        ..says(Role::Assistant, "")
    };
    let stored = vec![Part::text("a\u{FFFD}b"), call("x\u{FFFD}", json!({"k\u{FFFD}": ["\u{FFFD}"], "n": 1.5}))];
    let mut tx = tenant.begin().await.unwrap();
    let written = messages::append(&mut tx, id, &[message], now()).await.unwrap();
    assert_eq!((&written[0].parts, written[0].content.as_str()), (&stored, "a\u{FFFD}b"));
    assert_eq!(messages::newest(&mut tx, id, 1).await.unwrap(), written);
}

#[tokio::test]
async fn messages_are_read_in_pages_backwards_and_by_run() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, None)).await.id;
    let run = RunId::new(&SystemIds);
    let mut said: Vec<_> = (1..=5).map(|n| says(Role::User, &n.to_string())).collect();
    for (message, role) in said[1..4].iter_mut().zip([Role::Assistant, Role::Assistant, Role::Tool]) {
        (message.run_id, message.role) = (Some(run), role);
    }
    append(&tenant, id, &said).await;
    let contents = |messages: &[messages::Message]| messages.iter().map(|m| m.content.clone()).collect::<Vec<_>>();

    let mut tx = tenant.begin().await.unwrap();
    let first = messages::list(&mut tx, id, PageRequest { limit: 3, after: None }).await.unwrap();
    assert_eq!(contents(&first.data), ["1", "2", "3"]);
    let rest = messages::list(&mut tx, id, PageRequest { limit: 3, after: first.next }).await.unwrap();
    assert_eq!((contents(&rest.data), rest.next), (vec!["4".into(), "5".into()], None));
    let beyond = PageRequest { limit: 3, after: Some(uuid::Uuid::max()) };
    assert!(messages::list(&mut tx, id, beyond).await.unwrap().data.is_empty());
    assert_eq!(contents(&messages::newest(&mut tx, id, 2).await.unwrap()), ["4", "5"]);
    assert_eq!(contents(&messages::newest(&mut tx, id, 99).await.unwrap()).len(), 5);
    let last = messages::last_of_run(&mut tx, run).await.unwrap().unwrap();
    assert_eq!((last.content.as_str(), last.run_id), ("3", Some(run)));
}

#[tokio::test]
async fn an_imported_history_is_whole_or_refused() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, None)).await.id;
    let text = |role, text: &str| (role, vec![Part::text(text)]);
    let mut tx = tenant.begin().await.unwrap();
    let wrong = vec![text(Role::User, "hello"), text(Role::Tool, "42")];
    let error = messages::imported(wrong, &SystemIds).unwrap_err();
    assert!(matches!(&error, MessageError::BadHistory(fields) if fields[0].pointer == "/messages/1/role"));

    let longest = messages::imported(vec![text(Role::User, "hello"); 1_000], &SystemIds).unwrap();
    let written = messages::append(&mut tx, id, &longest, now()).await.unwrap();
    assert_eq!((written.len(), written[999].position), (1_000, 1_000));
}

#[tokio::test]
async fn a_message_is_shown_as_the_api_says() {
    let db = TestDb::start().await;
    let tenant = db.tenant("ada").await;
    let id = open(&tenant, new(db.agent(&tenant).await, Some("u"))).await;
    let mut tx = tenant.begin().await.unwrap();
    let message = messages::append(&mut tx, id.id, &[says(Role::User, "hi")], now()).await.unwrap().remove(0);
    assert_eq!(
        serde_json::to_value(&message).unwrap(),
        json!({"id": message.id, "position": 1, "role": "user", "parts": [{"type": "text", "text": "hi"}],
               "content": "hi", "created_at": "2026-05-01T12:00:00Z"})
    );
    assert_eq!(
        serde_json::to_value(&id).unwrap(),
        json!({"id": id.id, "agent_id": id.agent_id, "external_user_id": "u", "title": null, "metadata": {},
               "created_at": "2026-05-01T12:00:00Z", "updated_at": "2026-05-01T12:00:00Z"})
    );
}
