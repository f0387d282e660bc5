use super::*;

const SECRET: &str = "c4n'ry/\"key\" <&é> +~1";

fn redactor(values: &[&str]) -> Arc<Redactor> {
    Arc::new(Redactor::new(values.iter().copied(), []))
}

/// A body in pieces of one size.
fn body(redactor: &Arc<Redactor>, body: &[u8], piece_bytes: usize) -> Vec<u8> {
    let mut redaction = Redaction::new(Arc::clone(redactor));
    let mut passed = Vec::new();
    for piece in body.chunks(piece_bytes) {
        passed.extend(redaction.push(Bytes::copy_from_slice(piece)));
    }
    passed.extend(redaction.finish());
    passed
}

#[test]
fn every_form_is_found() {
    let redactor = redactor(&[SECRET]);
    for form in [
        SECRET,
        "c4n%27ry%2F%22key%22%20%3C%26%C3%A9%3E%20%2B~1",
        "c4n%27ry%2f%22key%22%20%3c%26%c3%a9%3e%20%2b~1",
        "c4n'ry%2F%22key%22%20%3C%26%C3%A9%3E%20%2B~1",
        "c4n%27ry%2F%22key%22+%3C%26%C3%A9%3E+%2B%7E1",
        "c4n%27ry/%22key%22%20%3C&%C3%A9%3E%20+~1",
        "YzRuJ3J5LyJrZXkiIDwmw6k+ICt+MQ",
        "YzRuJ3J5LyJrZXkiIDwmw6k-ICt-MQ",
        "63346e2772792f226b657922203c26c3a93e202b7e31",
        "63346E2772792F226B657922203C26C3A93E202B7E31",
        r#"c4n'ry/\"key\" <&é> +~1"#,
        r#"c4n'ry\/\"key\" <&é> +~1"#,
        r#"c4n'ry/\"key\" <&\u00e9> +~1"#,
        r#"c4n'ry\/\"key\" <&\u00e9> +~1"#,
        r#"c4n\u0027ry/\"key\" \u003c\u0026\u00e9\u003e +~1"#,
        "c4n&#39;ry/&quot;key&quot; &lt;&amp;é&gt; +~1",
        "c4n&#x27;ry/&quot;key&quot; &lt;&amp;é&gt; +~1",
    ] {
        assert_eq!(redactor.text(&format!("a {form} b {form}")), "a [secret] b [secret]", "{form}");
        let masked = format!("a{}b", "*".repeat(form.len()));
        assert_eq!(body(&redactor, format!("a{form}b").as_bytes(), 3), masked.as_bytes(), "{form}");
    }
    let basic = Redactor::new([], [("user", "password")]);
    assert_eq!(basic.text("Basic dXNlcjpwYXNzd29yZA=="), "Basic [secret]==");
}

#[test]
fn a_secret_is_found_across_every_border() {
    let redactor = redactor(&["canary-0001", "canary-0001-longer", "0001-other"]);
    let text = b"canary-canary-0001 canary-0001-longe canary-0001-longer canary-0001-other canary-000";
    let clean = b"canary-*********** ***********-longe ****************** ***************** **********";
    for piece_bytes in 1..=text.len() {
        assert_eq!(body(&redactor, text, piece_bytes), clean, "{piece_bytes}");
    }
}

#[test]
fn nothing_but_a_begun_secret_waits() {
    let redactor = redactor(&["canary-0001"]);
    let mut redaction = Redaction::new(redactor);
    for (piece, passed) in [
        ("data: one\n\n", "data: one\n\n"),
        ("data: can", "data: "),
        ("teen, can", "canteen, "),
        ("ary-0001", "***********"),
        ("", ""),
        ("c", ""),
    ] {
        assert_eq!(redaction.push(Bytes::from_static(piece.as_bytes())), passed, "{piece}");
    }
    assert_eq!(redaction.finish(), "c");
}

#[test]
fn short_secrets_are_not_looked_for() {
    assert!(redactor(&["", "12345"]).is_empty());
    assert_eq!(redactor(&["12345"]).text("12345"), "12345");
    assert!(!redactor(&["123456"]).is_empty());
    assert_eq!(body(&redactor(&[]), b"abc", 1), b"abc");
}

#[test]
fn where_the_room_ends_less_is_found_and_then_nothing_passes() {
    let long = "ä".repeat(FORMS_BYTES_MAX / 4);
    let some = redactor(&[&long, "canary-0001"]);
    assert_eq!(some.text(&format!("{long} canary-0001 Y2FuYXJ5LTAwMDE=")), "[secret] [secret] [secret]=");
    let encoded = hex::encode(&long);
    assert_eq!(some.text(&encoded), encoded);
    let many = redactor(&[&"x".repeat(FORMS_BYTES_MAX), "canary-0001"]);
    assert!(many.is_blind() && !some.is_blind());
    assert_eq!(many.text("anything"), "[secret]");
    assert_eq!(body(&many, b"anything", 3), b"********");
}

#[test]
fn a_secret_that_a_text_or_a_body_cuts_off_is_found() {
    let redactor = redactor(&["canary-0001"]);
    assert_eq!(redactor.text("cut: canary-00"), "cut: [secret]");
    assert_eq!(redactor.text("cut: canar"), "cut: canar");
    assert_eq!(body(&redactor, b"cut: canary-00", 4), b"cut: *********");
}

#[test]
fn headers_lose_secrets_and_nothing_else() {
    let redactor = redactor(&["canary-0001"]);
    let mut headers = HeaderMap::new();
    headers.insert("x-echo", HeaderValue::from_static("a canary-0001 b"));
    headers.append("x-echo", HeaderValue::from_static("Y2FuYXJ5LTAwMDE="));
    headers.append("x-echo", HeaderValue::from_bytes(b"\xff canary-0001").unwrap());
    headers.insert("content-length", HeaderValue::from_static("10"));
    redactor.headers(&mut headers);
    let values: Vec<_> = headers.values().map(HeaderValue::as_bytes).collect();
    assert_eq!(values, [&b"a [secret] b"[..], b"[secret]=", b"\xff [secret]", b"10"]);
}

#[test]
fn a_secret_of_equal_letters_costs_no_more_than_its_bytes() {
    let redactor = redactor(&[&"a".repeat(1_000)]);
    let text = vec![b'a'; 100_000];
    assert_eq!(body(&redactor, &text, 7), vec![b'*'; 100_000]);
}
