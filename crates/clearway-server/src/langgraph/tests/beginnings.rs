//! Where a run begins, and when a thread ends.

use super::*;

fn ids(states: &Value) -> Vec<String> {
    let states = states.as_array().expect("states");
    states.iter().map(|state| state["checkpoint_id"].as_str().unwrap().to_owned()).collect()
}

/// Asks again until there is something, for a minute of paused time at most.
async fn until<T>(what: &str, mut get: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = get().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn the_input_is_told_before_anything_is_done_with_it() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    for turn in 0..2 {
        let mut body = hello("hi");
        body["stream_mode"] = json!(["checkpoints", "values", "tasks"]);
        let answer = server.post(&format!("/threads/{thread}/runs/stream"), &body).await;
        let frames = frames(&answer);
        let names: Vec<&str> = frames.iter().map(|(name, _)| name.as_str()).collect();
        let expected = ["metadata", "checkpoints", "values", "checkpoints", "tasks"];
        assert_eq!(names[..5], expected, "{names:?}");
        assert_eq!(names[5..], ["tasks", "values", "checkpoints"], "{names:?}");
        let told: Vec<&Value> =
            frames.iter().filter(|(name, _)| name == "checkpoints").map(|(_, data)| data).collect();
        let shapes = told.iter().map(|one| (&one["metadata"]["source"], &one["next"]));
        let (input, looped) = (json!("input"), json!("loop"));
        let (start, node, end) = (json!(["__start__"]), json!(["answer"]), json!([]));
        assert!(shapes.eq([(&input, &start), (&looped, &node), (&looped, &end)]), "{told:?}");
        assert_eq!(told[1]["tasks"][0]["id"], frames[4].1["id"]);
        // They are the ones that are kept.
        let path = format!("/threads/{thread}/history");
        let kept = ids(&json_of(&mut server, "POST", &path, &json!({"limit": 3})).await);
        let of = |told: &Value| told["checkpoint"]["checkpoint_id"].as_str().unwrap().to_owned();
        assert_eq!(kept, [of(told[2]), of(told[1]), of(told[0])], "turn {turn}");
        assert_eq!(told[1]["parent_checkpoint"], told[0]["checkpoint"]);
    }
}

#[tokio::test]
async fn what_a_run_has_taken_in_is_there_while_it_works() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let (state, history) =
        (format!("/threads/{thread}/state"), format!("/threads/{thread}/history"));
    for before in [0, 5] {
        let run = hang(&mut server, &thread).await;
        let now = json_of(&mut server, "GET", &state, &Value::Null).await;
        assert_eq!(contents(&now["values"]).last(), Some(&"hang"));
        assert_eq!(
            (&now["next"], &now["metadata"]["source"]),
            (&json!(["answer"]), &json!("loop"))
        );
        let all = json_of(&mut server, "POST", &history, &json!({"limit": 10})).await;
        let working = ids(&all);
        assert_eq!(working.len(), before + 2, "{all}");
        assert_eq!(all[1]["metadata"]["source"], "input");
        assert_eq!(all[1]["tasks"][0]["result"]["messages"][0]["content"], "hang");
        assert_eq!(now["checkpoint_id"], all[0]["checkpoint_id"]);
        assert_eq!(now["parent_checkpoint_id"], all[1]["checkpoint_id"]);
        assert!(working.is_sorted_by(|newer, older| newer > older), "{working:?}");
        for id in &working[..2] {
            let one = json_of(&mut server, "GET", &format!("{state}/{id}"), &Value::Null).await;
            assert_eq!(one["checkpoint_id"], **id);
        }
        // The end commits what was shown.
        let path = format!("/threads/{thread}/runs/{run}/cancel?wait=1");
        json_of(&mut server, "POST", &path, &Value::Null).await;
        assert_eq!(
            ids(&json_of(&mut server, "POST", &history, &json!({"limit": 10})).await),
            working
        );
        json_of(&mut server, "POST", &format!("/threads/{thread}/runs/wait"), &hello("on")).await;
    }
}

#[tokio::test]
async fn names_that_nobody_knows_mean_nothing() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    let mut body = hello("hi");
    body["input"]["odd"] = json!(1);
    let values = json_of(&mut server, "POST", &wait, &body).await;
    assert_eq!(values.as_object().unwrap().len(), 1, "{values}");
    let only = json!({"assistant_id": "agent", "input": {"odd": 1}});
    json_of(&mut server, "POST", &wait, &only).await;
    let change = json!({"values": {"odd": 1, "messages": [{"role": "user", "content": "more"}]}});
    json_of(&mut server, "POST", &format!("/threads/{thread}/state"), &change).await;
    let now = json_of(&mut server, "GET", &format!("/threads/{thread}/state"), &Value::Null).await;
    assert_eq!(contents(&now["values"]).last(), Some(&"more"));
}

#[tokio::test(start_paused = true)]
async fn a_thread_lives_as_long_as_was_said() {
    let mut server = TestServer::start().await;
    let long = json!({"ttl": {"ttl": 1.5, "strategy": "keep_latest"}});
    let made = json_of(&mut server, "POST", "/threads", &long).await;
    let path = format!("/threads/{}", made["thread_id"].as_str().unwrap());
    let shown = json_of(&mut server, "GET", &format!("{path}?include=ttl"), &Value::Null).await;
    assert_eq!(shown["ttl"]["strategy"], "keep_latest");
    assert_eq!(shown["ttl"]["ttl_minutes"], 1.5);
    assert!(json_of(&mut server, "GET", &path, &Value::Null).await.get("ttl").is_none());

    // It keeps its state and loses what was before.
    for _ in 0..2 {
        json_of(&mut server, "POST", &format!("{path}/runs/wait"), &hello("hi")).await;
    }
    let history = format!("{path}/history");
    let now = json!({"ttl": {"ttl": 0, "strategy": "keep_latest"}});
    json_of(&mut server, "PATCH", &path, &now).await;
    let left = until("all but the newest is gone", async || {
        let left = json_of(&mut server, "POST", &history, &json!({"limit": 10})).await;
        (ids(&left).len() == 1).then_some(left)
    })
    .await;
    assert_eq!(contents(&left[0]["values"]).len(), 4);

    // One that is at work waits until it is not.
    let thread = made["thread_id"].as_str().unwrap().to_owned();
    let run = hang(&mut server, &thread).await;
    let with_ttl = format!("{path}?include=ttl");
    json_of(&mut server, "PATCH", &path, &json!({"ttl": 0})).await;
    let first = json_of(&mut server, "GET", &with_ttl, &Value::Null).await["ttl"].clone();
    until("its end is put off", async || {
        let now = json_of(&mut server, "GET", &with_ttl, &Value::Null).await;
        (now["ttl"]["expires_at"] != first["expires_at"]).then_some(())
    })
    .await;
    let cancel = format!("{path}/runs/{run}/cancel?wait=1");
    json_of(&mut server, "POST", &cancel, &Value::Null).await;
    json_of(&mut server, "PATCH", &path, &json!({"ttl": 0})).await;
    until("it is gone", async || {
        (send(&mut server, "GET", &path, "").await.status == 404).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_first_message_can_be_edited_again_and_again() {
    let mut server = TestServer::start().await;
    let thread = thread(&mut server).await;
    let wait = format!("/threads/{thread}/runs/wait");
    let path = format!("/threads/{thread}/history");
    json_of(&mut server, "POST", &wait, &hello("one")).await;
    let mut parents = Vec::new();
    for text in ["two", "three"] {
        let states = json_of(&mut server, "POST", &path, &json!({"limit": 100})).await;
        let states = states.as_array().unwrap();
        // As `useStream` looks for it: where the message came from.
        let id = &states[0]["values"]["messages"][0]["id"];
        let has = |state: &&Value| state["values"]["messages"][0]["id"] == *id;
        let first = states.iter().rev().find(has).unwrap();
        parents.push(first["parent_checkpoint_id"].clone());
        let mut body = hello(text);
        body["checkpoint"] = first["parent_checkpoint"].clone();
        let values = json_of(&mut server, "POST", &wait, &body).await;
        assert_eq!(contents(&values), [text, &format!("you said: {text}")]);
    }
    assert_eq!(parents[0], parents[1], "they are alternatives of each other");
}
