use expect_test::expect;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn refusal(bytes: &[u8]) -> String {
    parse_json(bytes).unwrap_err().to_string()
}

#[test]
fn bad_bodies_are_refused_with_the_place() {
    expect!["body: the body is empty; a JSON object is expected"].assert_eq(&refusal(b" \n"));
    expect!["body: not valid UTF-8 at byte 2"].assert_eq(&refusal(b"{\"\xff\"}"));
    expect!["body: not valid JSON: expected `,` or `}` at line 3 column 2"]
        .assert_eq(&refusal(b"{\n \"a\": 1\n \"b\": 2}"));
    let deep = format!("{{\"a\":\n{}1{}}}", "[".repeat(100), "]".repeat(100));
    expect!["body: nested deeper than 64 levels at line 2 column 64"]
        .assert_eq(&refusal(deep.as_bytes()));
    let just = format!("{}{}", "[".repeat(64), "]".repeat(64));
    assert!(parse_json(just.as_bytes()).is_ok());
    let in_text = format!("{{\"a\": \"\\\"{}\"}}", "[".repeat(100));
    assert!(parse_json(in_text.as_bytes()).is_ok(), "brackets inside a string do not nest");
}

#[test]
fn all_wrong_fields_are_named_at_once() {
    let body = json!({"user_id": 7, "metadata": [1], "conversation_id": false, "history": "x"});
    let mut fields = Fields::parse(body.to_string().as_bytes()).unwrap();
    let user = fields.text("user_id");
    fields.check_name("user_id", &user);
    fields.text("message");
    fields.object("metadata");
    fields.nullable_text("conversation_id");
    fields.list("history");
    let texts: Vec<String> = fields.finish().unwrap_err().iter().map(Invalid::to_string).collect();
    expect![[r#"
        [
            "`user_id`: a string is expected, this is a number",
            "`message`: this field is required",
            "`metadata`: an object is expected, this is a list",
            "`conversation_id`: a string is expected, this is a boolean",
            "`history`: a list is expected, this is a string",
        ]
    "#]]
    .assert_debug_eq(&texts);
    assert_eq!(Fields::parse(b"[]").unwrap_err()[0].kind, "object_type");
}

#[test]
fn names_are_bounded_and_printable() {
    assert!(check_name("a::b/../\u{fc}").is_ok(), "any spelling is safe");
    assert!(check_name(&"\u{fc}".repeat(256)).is_ok(), "characters count, not bytes");
    assert_eq!(check_name(&"x".repeat(257)).unwrap_err().0, "string_too_long");
    expect!["control characters are not allowed, this has U+0000"]
        .assert_eq(&check_name("a\0b").unwrap_err().1);
}

#[test]
fn queries_decode_and_refuse() {
    let uri: Uri = "/x?a=1+2%20%C3%BC&flag&list=x,y&list=z".parse().unwrap();
    let query = Query::parse(&uri).unwrap();
    assert_eq!(query.get("a"), Some("1 2 \u{fc}"));
    assert_eq!(query.all("list").collect::<Vec<_>>(), ["x", "y", "z"]);
    assert!(query.flag("flag").unwrap());
    assert!(!query.flag("other").unwrap());
    assert!(query.flag("a").is_err());
    let python: Uri = "/x?yes=True&no=False".parse().unwrap();
    let python = Query::parse(&python).unwrap();
    assert!(python.flag("yes").unwrap() && !python.flag("no").unwrap());
    for broken in ["/x?a=%", "/x?a=%2", "/x?a=%zz", "/x?a=%ff", "/x?%ff=1"] {
        assert!(Query::parse(&broken.parse().unwrap()).is_err(), "{broken}");
    }
    let unknown = Query::own(&uri, &["a", "flag"]).unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidRequest);
}

#[test]
fn the_smallest_deadline_wins() {
    let read = |header: Option<&str>, field: Option<Value>| {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("x-deadline-ms", header.parse().unwrap());
        }
        deadline(&headers, field).map_err(|problem| problem.code())
    };
    let ms = |ms| Ok(Some(Duration::from_millis(ms)));
    assert_eq!(read(None, None), Ok(None));
    assert_eq!(read(Some("500"), Some(json!(300))), ms(300));
    assert_eq!(read(Some("200"), Some(json!(300))), ms(200));
    assert_eq!(read(None, Some(Value::Null)), Ok(None));
    for bad in ["0", "-1", "1.5", "soon", "", "1e3", "99999999999999999999"] {
        assert_eq!(read(Some(bad), None), Err(Code::InvalidRequest), "{bad}");
    }
    for bad in [json!("500"), json!(-1), json!(0), json!(1.5), json!([])] {
        assert_eq!(read(None, Some(bad)), Err(Code::InvalidRequest));
    }
}

#[tokio::test]
async fn bodies_are_bounded() {
    let limits = HttpLimits { body_bytes: 8, ..HttpLimits::default() };
    let read =
        async |text: &'static str| read_body(&HeaderMap::new(), Body::from(text), &limits).await;
    assert_eq!(read("12345678").await.unwrap(), "12345678");
    assert_eq!(read("123456789").await.unwrap_err().code(), Code::BodyTooLarge);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, "9".parse().unwrap());
    let refused = read_body(&headers, Body::empty(), &limits).await;
    assert_eq!(refused.unwrap_err().code(), Code::BodyTooLarge);
}

#[test]
fn a_request_may_belong_to_a_trace() {
    let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let traced = |header: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_str(header).unwrap());
        let metadata = Map::from_iter([("a".to_owned(), json!(1))]);
        Value::Object(super::traced(metadata, &headers))
    };
    assert_eq!(traced(good), json!({"a": 1, "traceparent": good}));
    assert_eq!(traced(&good.replace("00-", "01-"))["traceparent"], good.replace("00-", "01-"));
    for bad in [
        "",
        "nonsense",
        &good[..54],
        &format!("{good}-more"),
        &good.to_uppercase(),
        &good.replace("00-", "ff-"),
        &good.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
        &good.replace("b7ad6b7169203331", "0000000000000000"),
        &format!("01{}-{}", &good[2..], "x".repeat(300)),
    ] {
        assert_eq!(traced(bad), json!({"a": 1}), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        crate::fuzz_request_bodies(&bytes);
    }

    #[test]
    fn no_json_makes_a_parser_panic(
        names in prop::collection::vec("user_id|message|conversation_id|metadata|deadline_ms|conversation_history", 0..6),
        values in prop::collection::vec("\"[^\"\\\\]{0,9}\"|[0-9]{1,5}|null|\\{\\}|\\[\\{\"role\":\"user\"\\}\\]|\\[1\\]", 6),
    ) {
        let fields: Vec<String> =
            names.iter().zip(&values).map(|(name, value)| format!("\"{name}\":{value}")).collect();
        crate::fuzz_request_bodies(format!("{{{}}}", fields.join(",")).as_bytes());
    }
}
