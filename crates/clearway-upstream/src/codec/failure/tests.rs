use clearway_core::Code;

use super::*;
use crate::config::Secret;

fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

fn http(status: u16, body: &str) -> Rejection {
    Rejection::http(status, &HeaderMap::new(), body.as_bytes(), Secrets::default(), None)
}

#[track_caller]
fn check(status: u16, body: &str, code: Code) {
    let rejection = http(status, body);
    assert_eq!(rejection.code, code, "{status} {body}");
    assert_eq!(rejection.retryable, is_retryable(code));
}

#[test]
fn statuses_alone() {
    for (status, code) in [
        (302, Code::UpstreamBadResponse),
        (400, Code::UpstreamInvalidRequest),
        (401, Code::UpstreamCredentialsExhausted),
        (402, Code::UpstreamQuotaExhausted),
        (403, Code::UpstreamForbidden),
        (404, Code::UpstreamModelUnavailable),
        (408, Code::UpstreamTimeout),
        (409, Code::UpstreamConflict),
        (410, Code::UpstreamModelUnavailable),
        (413, Code::UpstreamContextLength),
        (415, Code::UpstreamInvalidRequest),
        (422, Code::UpstreamInvalidRequest),
        (425, Code::UpstreamConflict),
        (429, Code::UpstreamRateLimited),
        (500, Code::UpstreamServerError),
        (502, Code::UpstreamServerError),
        (503, Code::UpstreamOverloaded),
        (504, Code::UpstreamServerError),
        (520, Code::UpstreamServerError),
        (524, Code::UpstreamServerError),
        (529, Code::UpstreamOverloaded),
    ] {
        check(status, "", code);
    }
    assert_eq!(http(500, "").message, "HTTP 500 without an explanation");
}

/// Bodies as providers send them.
#[test]
fn bodies_tell_more() {
    let cases = [
        (
            429,
            r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
            Code::UpstreamQuotaExhausted,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached for gpt-5-mini on tokens per min (TPM): Limit 200000. Please try again in 1.7s.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            Code::UpstreamRateLimited,
        ),
        (
            429,
            r#"[{"error":{"code":429,"message":"You exceeded your current quota","status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"26s"}]}}]"#,
            Code::UpstreamRateLimited,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the API."}}"#,
            Code::UpstreamQuotaExhausted,
        ),
        (
            402,
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error"}}"#,
            Code::UpstreamQuotaExhausted,
        ),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-abcd****wxyz.","code":"invalid_api_key"}}"#,
            Code::UpstreamCredentialsExhausted,
        ),
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
            Code::UpstreamCredentialsExhausted,
        ),
        (
            403,
            r#"{"error":{"code":"unsupported_country_region_territory","message":"Country not supported"}}"#,
            Code::UpstreamForbidden,
        ),
        (
            403,
            r#"{"error":{"message":"Project does not have access to model x","type":"invalid_request_error","code":"model_not_found"}}"#,
            Code::UpstreamModelUnavailable,
        ),
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
            Code::UpstreamModelUnavailable,
        ),
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 128000 tokens.","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            Code::UpstreamContextLength,
        ),
        (
            400,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, you requested 5000","type":"BadRequestError","code":400}"#,
            Code::UpstreamContextLength,
        ),
        (
            400,
            r#"{"error":{"message":"The response was filtered due to the prompt triggering our content management policy.","code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            Code::UpstreamContentPolicy,
        ),
        (
            400,
            r#"{"error":{"message":"Unknown parameter: 'foo'.","type":"invalid_request_error","code":"unknown_parameter"}}"#,
            Code::UpstreamInvalidRequest,
        ),
        (
            422,
            r#"{"detail":[{"loc":["body","messages"],"msg":"field required"}]}"#,
            Code::UpstreamInvalidRequest,
        ),
        (
            500,
            r#"{"error":{"message":"The server is overloaded","type":"server_is_overloaded"}}"#,
            Code::UpstreamOverloaded,
        ),
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            Code::UpstreamOverloaded,
        ),
        (
            503,
            r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#,
            Code::UpstreamOverloaded,
        ),
        (
            502,
            "<html><head><title>502 Bad Gateway</title></head></html>",
            Code::UpstreamServerError,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits."}}"#,
            Code::UpstreamQuotaExhausted,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"}}"#,
            Code::UpstreamContextLength,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Output blocked by content filtering policy"}}"#,
            Code::UpstreamContentPolicy,
        ),
        (404, r#"{"error":"model 'qwen3' not found"}"#, Code::UpstreamModelUnavailable),
    ];
    for (status, body, code) in cases {
        check(status, body, code);
    }
    assert_eq!(http(502, cases[18].1).message, "an HTML page: 502 Bad Gateway");
    assert_eq!(
        http(422, cases[14].1).message,
        r#"[{"loc":["body","messages"],"msg":"field required"}]"#
    );
    let quota = http(429, cases[0].1);
    assert!(!quota.retryable, "waiting does not fill an account");
    assert_eq!(quota.provider_code.as_deref(), Some("insufficient_quota"));
}

#[test]
fn errors_in_the_band_count_like_their_statuses() {
    let code = |body: &str| Rejection::in_band(body.as_bytes(), Secrets::default()).code;
    for (body, expected) in [
        (r#"{"error":{"code":401,"message":"no"}}"#, Code::UpstreamCredentialsExhausted),
        (r#"{"error":{"code":"429","message":"no"}}"#, Code::UpstreamRateLimited),
        (r#"{"error":{"type":"rate_limit_error","message":"no"}}"#, Code::UpstreamRateLimited),
        (r#"{"error":{"type":"insufficient_quota","message":"no"}}"#, Code::UpstreamQuotaExhausted),
        (r#"{"error":{"code":"context_length_exceeded"}}"#, Code::UpstreamContextLength),
        (
            r#"{"error":{"type":"invalid_request_error","message":"no"}}"#,
            Code::UpstreamInvalidRequest,
        ),
        (r#"{"error":{"type":"permission_error","message":"no"}}"#, Code::UpstreamForbidden),
        (r#"{"error":{"type":"timeout_error","message":"no"}}"#, Code::UpstreamTimeout),
        (r#"{"error":{"type":"api_error","message":"no"}}"#, Code::UpstreamServerError),
        (r#"{"error":{}}"#, Code::UpstreamServerError),
        ("not even JSON", Code::UpstreamServerError),
        (r#"{"error":{"code":99999999999,"message":"no"}}"#, Code::UpstreamServerError),
    ] {
        assert_eq!(code(body), expected, "{body}");
    }
}

#[test]
fn retry_hints() {
    let seconds = |hint: Option<Duration>| hint.map(|hint| hint.as_secs_f64());
    let with = |list: &[(&'static str, &str)]| seconds(retry_hint(&headers(list), "", None));
    assert_eq!(with(&[("retry-after", "2")]), Some(2.0));
    assert_eq!(with(&[("retry-after", " 1.5 ")]), Some(1.5));
    assert_eq!(with(&[("retry-after-ms", "250"), ("retry-after", "2")]), Some(0.25));
    assert_eq!(with(&[("x-ms-retry-after-ms", "40.5")]), Some(0.0405));
    assert_eq!(with(&[("retry-after", "3600")]), Some(3600.0));
    assert_eq!(with(&[("retry-after", "1000000000000")]), Some(3600.0), "cut");
    assert_eq!(with(&[("retry-after", "1e400")]), None, "infinite");
    for nonsense in ["-1", "NaN", "inf", "soon", "", "Wed, 99 Foo"] {
        assert_eq!(with(&[("retry-after", nonsense)]), None, "{nonsense}");
    }
    assert_eq!(with(&[("retry-after-ms", "NaN"), ("retry-after", "2")]), Some(2.0));
}

#[test]
fn retry_dates_are_judged_by_the_providers_clock() {
    let date = ("retry-after", "Wed, 21 Oct 2026 07:28:30 GMT");
    let sent = ("date", "Wed, 21 Oct 2026 07:28:00 GMT");
    let now = httpdate::parse_http_date("Wed, 21 Oct 2026 08:00:00 GMT").unwrap();
    let hint = |list: &[(&'static str, &str)], now| retry_hint(&headers(list), "", now);
    assert_eq!(hint(&[date, sent], Some(now)), Some(Duration::from_secs(30)));
    assert_eq!(hint(&[date], Some(now)), Some(Duration::ZERO), "it has passed");
    assert_eq!(hint(&[date], None), None, "no clock, no hint");
    let early = now - Duration::from_secs(86_400);
    assert_eq!(hint(&[date], Some(early)), Some(MAX_HINT));
}

#[test]
fn hints_in_words_and_windows() {
    let text = |message| retry_hint(&HeaderMap::new(), message, None);
    assert_eq!(text("Please try again in 1.7s. Visit"), Some(Duration::from_millis(1700)));
    assert_eq!(text("try again in 20ms."), Some(Duration::from_millis(20)));
    assert_eq!(text("try again in 1m30.5s"), Some(Duration::from_secs_f64(90.5)));
    for nothing in
        ["try again in a while", "try again in ", "try again in .", "later", "try again in 5y"]
    {
        assert_eq!(text(nothing), None, "{nothing}");
    }
    let windows = headers(&[
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "120ms"),
        ("x-ratelimit-remaining-tokens", "5000"),
        ("x-ratelimit-reset-tokens", "6m0s"),
    ]);
    // The tokens' window is not used up, so its reset says nothing.
    assert_eq!(retry_hint(&windows, "", None), Some(Duration::from_millis(120)));
}

#[test]
fn the_provider_may_overrule_what_can_be_retried() {
    let told = |value| {
        let headers = headers(&[("x-should-retry", value), ("retry-after", "1")]);
        Rejection::http(500, &headers, b"", Secrets::default(), None)
    };
    assert!(told("true").retryable);
    assert!(told("maybe").retryable);
    assert!(!told("false").retryable);
    assert_eq!(told("false").retry_after, None);
}

#[test]
fn keys_are_scrubbed() {
    let key = Secret::new("house-key-123");
    let scrub = |text: &str| Secrets::new(std::slice::from_ref(&key)).scrub(text);
    assert_eq!(scrub("bad key house-key-123!"), "bad key [key]!");
    assert_eq!(scrub("key=sk-proj-Ab12_34567890, org"), "key=[key], org");
    assert_eq!(scrub("Incorrect key sk-abcd****wxyz. Find"), "Incorrect key [key] Find");
    assert_eq!(scrub("desk-tops and task-12345678 stay"), "desk-tops and task-12345678 stay");
    assert_eq!(scrub("sk-a gsk_0123456789 AIzaSyA0000000"), "sk-a [key] [key]");
    assert_eq!(scrub("a\u{1b}[31m\n\tb\0c"), "a[31m bc");
    assert_eq!(scrub("house-\u{0}key-123"), "[key]", "joined by taking something out");
    let hidden = format!("{}house-key-123", " ".repeat(MAX_READ - 5));
    assert!(!scrub(&hidden).contains("house"), "not cut into halves");
    assert_eq!(Secrets::default().scrub("x"), "x");
    assert_eq!(Secrets::new(&[Secret::new("")]).scrub("x y"), "x y");
}

#[test]
fn messages_are_cut_between_characters() {
    let long = Secrets::default().scrub(&"ü".repeat(5000));
    assert_eq!(long.chars().count(), MAX_MESSAGE);
    assert!(long.ends_with('…'));
    let exact = "x".repeat(MAX_MESSAGE);
    assert_eq!(Secrets::default().scrub(&exact), exact);
    // A body that is cut inside a character, and one that is not text at all.
    let body = [b"x".repeat(MAX_READ - 1), "ü".as_bytes().to_vec()].concat();
    assert!(!Rejection::in_band(&body, Secrets::default()).message.is_empty());
    assert!(!Rejection::in_band(&[0xff; 100], Secrets::default()).message.is_empty());
}
