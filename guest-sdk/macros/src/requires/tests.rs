use super::*;

fn json(text: &str) -> std::result::Result<String, String> {
    let tokens = text.parse::<TokenStream>().unwrap();
    expand(tokens).map_err(|error| error.to_string()).map(|json| syn::parse2::<syn::LitStr>(json).unwrap().value())
}

#[test]
fn what_is_written_is_sent() {
    assert_eq!(json("").unwrap(), "{}");
    let whole = r#"
        http: [{
            host: "api.example.com", methods: ["GET"], paths: ["/v1"],
            headers: [{ name: "Authorization", secret: "weather_key", format: "Bearer {}" }],
            reason: "the \"forecast\"",
        }],
        key_value: [{ namespace: "notes/{external_user_id}", access: "write", reason: "kept here" }],
        secrets: [{ name: "x", reason: "signs" }],
        config: { unit: "lengths", "base-url": "for tests" },
        scratch_bytes: { bytes: 1_048_576, reason: "unpacks" },
    "#;
    assert_eq!(
        json(whole).unwrap(),
        concat!(
            r#"{"http":[{"host":"api.example.com","methods":["GET"],"paths":["/v1"],"headers":[{"name":"Authorization","#,
            r#""secret":"weather_key","format":"Bearer {}"}],"reason":"the \"forecast\""}],"key_value":[{"namespace":"#,
            r#""notes/{external_user_id}","access":"write","reason":"kept here"}],"secrets":[{"name":"x","reason":"#,
            r#""signs"}],"config":{"unit":"lengths","base-url":"for tests"},"scratch_bytes":{"bytes":1048576,"#,
            r#""reason":"unpacks"}}"#,
        )
    );
}

#[test]
fn a_mistake_does_not_compile() {
    for (text, words) in [
        (r#"htp: []"#, "no such field; there are `http`, `key_value`, `secrets`, `config`, `scratch_bytes`"),
        (r#"http: {}"#, "this is a list"),
        (r#"http: [{ host: "a.example" }]"#, "`reason` is missing"),
        (r#"http: [{ reason: "r" }]"#, "`host` is missing"),
        (r#"http: [{ host: "https://a.example", reason: "r" }]"#, "without a scheme"),
        (r#"http: [{ host: "a.example", methods: ["get"], reason: "r" }]"#, "capital letters"),
        (r#"http: [{ host: "a.example", paths: ["v1"], reason: "r" }]"#, "begins with `/`"),
        (r#"http: [{ host: "a.example", plain_http: 1, reason: "r" }]"#, "`true` or `false`"),
        (
            r#"http: [{ host: "a.example", headers: [{ name: "A", secret: "b", format: "" }], reason: "r" }]"#,
            "`{}` once",
        ),
        (r#"http: [{ host: "a.example", reason: " " }]"#, "a person reads this"),
        (r#"key_value: [{ namespace: "a b", access: "read", reason: "r" }]"#, "a namespace is"),
        (r#"key_value: [{ namespace: "a", access: "all", reason: "r" }]"#, "`read` or `write`"),
        (r#"secrets: [{ name: "1", reason: "r" }]"#, "a secret's name"),
        (r#"secrets: ["x"]"#, "this is an object"),
        (r#"config: { unit: 1 }"#, "this is a text"),
        (r#"config: { unit: "a", unit: "b" }"#, "`unit` is here twice"),
        (r#"scratch_bytes: { bytes: "1", reason: "r" }"#, "this is a number"),
        (r#"scratch_bytes: 0.5"#, "expected a text"),
        (r#"scratch_bytes: -1"#, "invalid digit"),
    ] {
        let told = json(text).unwrap_err();
        assert!(told.contains(words), "{text}: {told}");
    }
}
