use expect_test::expect;
use http::header::RETRY_AFTER;
use http_body_util::BodyExt;

use super::*;

async fn rendered(problem: Problem) -> (StatusCode, HeaderMap, String) {
    let id = HeaderValue::from_static("req-1");
    let response = finish(problem.into_response(), &id);
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (parts.status, parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn every_code_is_an_error_with_a_page() {
    let mut table = String::new();
    for &code in Code::ALL {
        let (status, headers, body) = rendered(Problem::new(code, "detail")).await;
        assert!(status.as_u16() >= 400, "{code}");
        assert_eq!(headers[CONTENT_TYPE], "application/problem+json");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["type"], format!("/errors/{code}"));
        assert_eq!(body["status"], status.as_u16());
        assert_eq!(body["request_id"], "req-1");
        assert_eq!(headers.contains_key(RETRY_AFTER), !body["retry_after_ms"].is_null());
        assert!(codes::page(code).contains("What to do: "));
        let later = if headers.contains_key(RETRY_AFTER) { " later" } else { "" };
        table.push_str(&format!("{} {code}{later}\n", status.as_u16()));
    }
    expect![[r#"
        400 invalid_request
        413 body_too_large
        408 body_timeout later
        405 method_not_allowed
        404 not_found
        401 unauthorized
        403 forbidden
        404 run_not_found
        404 thread_not_found
        404 agent_not_found
        409 thread_busy later
        409 run_ended
        409 idempotency_conflict
        429 overloaded later
        503 shutting_down later
        504 deadline_exceeded
        409 cancelled
        500 poisoned
        500 recursion_limit
        500 invalid_update
        500 limit_exceeded
        409 nothing_waits
        500 budget_exhausted
        404 checkpoint_not_found
        404 artifact_not_found
        409 checkpoint_conflict
        500 output_invalid
        500 step_failed
        502 tool_failed
        502 tool_unavailable later
        500 output_too_large
        503 store_unavailable later
        503 fenced later
        500 invalid_config
        500 template_failed
        500 internal
        503 upstream.queue_timeout
        503 upstream.shed_queue_full
        503 upstream.shed_deadline
        503 upstream.route_open
        503 upstream.rate_limited
        502 upstream.quota_exhausted
        502 upstream.credentials_exhausted
        502 upstream.dns_failed
        502 upstream.connect_failed
        504 upstream.connect_timeout
        502 upstream.tls_failed
        504 upstream.send_timeout
        504 upstream.headers_timeout
        504 upstream.first_token_timeout
        504 upstream.body_timeout
        504 upstream.stream_idle
        504 upstream.stream_stalled
        504 upstream.stream_too_slow
        502 upstream.stream_truncated
        502 upstream.stream_malformed
        502 upstream.stream_too_large
        502 upstream.server_error
        503 upstream.overloaded
        502 upstream.bad_response
        502 upstream.empty_response
        502 upstream.context_length
        502 upstream.content_policy
        502 upstream.invalid_request
        502 upstream.model_unavailable
        502 upstream.forbidden
        504 upstream.timeout
        502 upstream.conflict
        502 upstream.bad_vectors
        400 upstream.input_too_long
    "#]]
    .assert_eq(&table);
}

#[tokio::test]
async fn each_shape_looks_as_its_clients_expect() {
    let busy = || {
        Problem::new(Code::Overloaded, "pool chat is full").retry_after(Duration::from_millis(1200))
    };
    let (_, headers, body) = rendered(busy()).await;
    assert_eq!(headers[RETRY_AFTER], "2", "rounded up");
    expect![[r#"{"type":"/errors/overloaded","title":"Too much at once","status":429,"detail":"pool chat is full","code":"overloaded","request_id":"req-1","hint":"Try again after the time given; an operator can raise the limit.","retry_after_ms":1200}"#]]
        .assert_eq(&body);

    let chat = busy().shape(Shape::Chat { thread_id: Some("bc::u::c".to_owned()) });
    let (_, headers, body) = rendered(chat).await;
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    expect![[r#"{"detail":{"error_type":"overloaded","error_message":"pool chat is full","thread_id":"bc::u::c"},"code":"overloaded","request_id":"req-1","retry_after_ms":1200}"#]]
        .assert_eq(&body);

    let invalid =
        vec![Invalid::new("missing", &["body", "items", "3", "name"], "this field is required")];
    let refused = Problem::from(invalid.clone())
        .status(StatusCode::UNPROCESSABLE_ENTITY)
        .shape(Shape::Invalid(invalid));
    let (status, _, body) = rendered(refused).await;
    assert_eq!(status, 422);
    expect![[r#"{"detail":[{"type":"missing","loc":["body","items",3,"name"],"msg":"this field is required"}],"code":"invalid_request","request_id":"req-1"}"#]]
        .assert_eq(&body);
}

#[tokio::test]
async fn a_problem_is_never_a_success() {
    let (status, _, _) = rendered(Problem::new(Code::Internal, "x").status(StatusCode::OK)).await;
    assert_eq!(status, 500);
}
