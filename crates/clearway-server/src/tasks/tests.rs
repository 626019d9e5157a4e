use serde_json::json;

use clearway_core::message::Role;

use super::*;
use crate::extract::Invalid;
use crate::testing::TestServer;

#[test]
fn bodies_are_read_or_refused_by_field() {
    let ask = Ask::parse(
        br#"{"message":"hi","conversation_history":[{"role":"assistant","content":"yes?"}],"x":1}"#,
    );
    assert_eq!(ask.unwrap().history, [(Role::Ai, "yes?".to_owned())]);
    let wrong =
        json!({"message": " ", "user_id": "", "conversation_history": [{"role": "robot"}, 7]});
    let invalid = Ask::parse(wrong.to_string().as_bytes()).unwrap_err();
    let texts: Vec<String> = invalid.iter().map(Invalid::to_string).collect();
    expect_test::expect![[r#"
        [
            "`message`: must not be empty or blank",
            "`user_id`: must not be empty or blank",
            "`conversation_history.0.content`: this field is required",
            "`conversation_history.0.role`: a role is `user`, `assistant` or `system`, this is `robot`",
            "`conversation_history.1`: an object is expected, this is a number",
        ]
    "#]]
    .assert_debug_eq(&texts);
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_from_pending_to_its_result() {
    let mut server = TestServer::start().await;
    let accepted = server.post("/chat/async", &json!({"message": "hello"})).await;
    assert_eq!(accepted.status, 202);
    let body = accepted.json();
    let id = body["task_id"].as_str().unwrap().to_owned();
    assert_eq!(body["status"], "pending");
    assert_eq!(body["poll"], format!("/chat/task/{id}"));
    server.until(id.parse().unwrap(), |view| view.record.status == Status::Success).await;
    let task = server.get(&format!("/chat/task/{id}")).await.json();
    assert_eq!(task["status"], "completed");
    assert_eq!(task["result"], result("you said: hello"));
    assert!(task["completed_at"].is_string());
    let list = server.get("/tasks?status=completed").await.json();
    assert_eq!(list["tasks"][0]["task_id"], id);
    assert_eq!(server.get("/tasks?status=lost").await.status, 400);
}

#[tokio::test(start_paused = true)]
async fn a_running_task_shows_its_text_and_really_stops() {
    let mut server = TestServer::start().await;
    let body =
        json!({"message": "hang", "conversation_history": [{"role": "user", "content": "before"}]});
    let id = server.post("/chat/async", &body).await.json()["task_id"].as_str().unwrap().to_owned();
    let run = id.parse().unwrap();
    server.until(run, |view| view.record.status == Status::Running).await;
    loop {
        let task = server.get(&format!("/chat/task/{id}")).await.json();
        assert_eq!(task["status"], "running");
        if task["partial"] == "Well" {
            break;
        }
    }
    let cancelled = server
        .send(&format!(
            "DELETE /tasks/{id} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        ))
        .await;
    assert_eq!(cancelled.json()["status"], "cancelled");
    let task = server.get(&format!("/chat/task/{id}")).await.json();
    assert_eq!((&task["status"], &task["error_type"]), (&json!("cancelled"), &json!("cancelled")));
}

#[tokio::test(start_paused = true)]
async fn failures_and_unknown_tasks_say_so() {
    let mut server = TestServer::start().await;
    let failing = server.post("/chat/async", &json!({"message": "fail"})).await;
    server.until(failing.run(), |view| view.record.status.is_terminal()).await;
    let task = server.get(&format!("/chat/task/{}", failing.run())).await.json();
    assert_eq!(task["status"], "failed");
    assert_eq!(task["error"], "upstream.server_error: the provider said 500");
    for id in ["00000000-0000-0000-0000-000000000000", "nonsense", "..%2f..%2fetc"] {
        let unknown = server.get(&format!("/chat/task/{id}")).await;
        assert_eq!(
            (unknown.status, unknown.json()["code"].as_str().unwrap()),
            (404, "run_not_found")
        );
    }
    assert_eq!(server.post("/chat/async", &json!({})).await.status, 422);
}

#[tokio::test(start_paused = true)]
async fn the_same_key_is_the_same_task() {
    let mut server = TestServer::start().await;
    let request = |body: &str| crate::testing::post("/chat/async", "idempotency-key: k\r\n", body);
    let first = server.send(&request(r#"{"message":"hello"}"#)).await;
    let again = server.send(&request(r#"{"message":"hello"}"#)).await;
    assert_eq!(first.json()["task_id"], again.json()["task_id"]);
    let other = server.send(&request(r#"{"message":"bye"}"#)).await;
    assert_eq!(
        (other.status, other.json()["code"].as_str().unwrap()),
        (409, "idempotency_conflict")
    );
}
