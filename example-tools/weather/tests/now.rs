use belljar_tool::{http, testing::Call};
use weather::now;

fn answering(status: u16, body: &'static str) -> Call {
    Call::new().http(move |_| Ok(http::Response::new(status).with_body(body)))
}

#[test]
fn the_service_is_asked_in_the_configured_unit() {
    let call = answering(200, r#"{"place": "Bø i Telemark", "sky": "snow", "temperature": 14.5}"#)
        .config("unit", "fahrenheit")
        .config("base_url", "http://127.0.0.1:9000");
    let answer = call.call::<now>(r#"{"place": "Bø"}"#);
    let expected = r#"{"place":"Bø i Telemark","sky":"snow","temperature":14.5,"unit":"fahrenheit"}"#;
    assert_eq!(answer.structured.as_deref(), Some(expected), "{answer:?}");
    let request = &call.requests()[0];
    assert_eq!(request.url(), "http://127.0.0.1:9000/v1/now?place=B%C3%B8&unit=fahrenheit");
    assert!(request.headers().iter().all(|(name, _)| name == "Accept"), "the key is the host's business");
    assert_eq!(call.progress(), [(None, "asking for the weather in Bø".to_owned())]);
}

#[test]
fn each_failure_says_what_to_do() {
    for (call, words) in [
        (answering(401, ""), "set the secret `weather_key` again"),
        (answering(404, ""), "no place is called `Oslo`"),
        (answering(429, ""), "in a minute"),
        (answering(503, ""), "status 503"),
        (answering(200, "<html>"), "the response cannot be read"),
        (Call::new(), "denied: add the host to the binding's http grants: GET https://api.weather.example/v1/now"),
    ] {
        let told = call.run(|| now("Oslo".into())).unwrap_err().to_string();
        assert!(told.contains(words), "{told}");
    }
}
