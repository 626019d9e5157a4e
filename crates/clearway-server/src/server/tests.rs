use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::testing::{TestServer, options, post, read_until};

mod wire;

#[test]
fn mounts_are_plain_paths() {
    let check = |mount: &str| check_mount(&Door::cofounder(mount, "a")).is_ok();
    for good in ["/", "/cofounder", "/a/b-c_d.e~f"] {
        assert!(check(good), "{good}");
    }
    for bad in ["", "a", "/a/", "/{id}", "/a//b", "/a b", "/*", "/\u{fc}", "/..", "/a/./b"] {
        assert!(!check(bad), "{bad}");
    }
}

#[test]
fn open_files_bound_the_connections() {
    assert_eq!(connections_for(1_048_576), (1_048_576 - 128) / 2);
    assert_eq!(connections_for(64), 16);
}

#[test]
fn doors_do_not_share_addresses() {
    let mut options = options();
    options.doors.push(Door::cofounder("/", "other"));
    let error = BindError::from(routes::table(&options).unwrap_err());
    assert!(error.to_string().contains("POST /chat"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn unknown_addresses_and_methods_are_problems() {
    let mut server = TestServer::start().await;
    let unknown = server.get("/nowhere").await;
    assert_eq!(unknown.status, 404);
    assert_eq!(unknown.header("content-type"), "application/problem+json");
    assert_eq!(unknown.json()["code"], "not_found");
    let wrong = server.get("/chat").await;
    assert_eq!(wrong.status, 405);
    assert_eq!(wrong.json()["code"], "method_not_allowed");
    assert!(wrong.header("allow").contains("POST"), "{wrong:?}");
    let page = server.get("/errors/overloaded").await;
    assert!(page.body.starts_with("overloaded\n"), "{page:?}");
    assert_eq!(server.get("/errors/nonsense").await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn request_ids_come_back() {
    let mut server = TestServer::start().await;
    let head = "GET /nowhere HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let given = server.send(&format!("{head}x-request-id: abc-1\r\n\r\n")).await;
    assert_eq!(given.header("x-request-id"), "abc-1");
    assert_eq!(given.json()["request_id"], "abc-1");
    for bad in ["a b".to_owned(), "x".repeat(200)] {
        let made = server.send(&format!("{head}x-request-id: {bad}\r\n\r\n")).await;
        assert_eq!(made.header("x-request-id").len(), 36, "{made:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_problem_and_the_server_lives() {
    let mut server = TestServer::start().await;
    let answer = server.get("/panics").await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.json()["code"], "internal");
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn pages_of_other_sites_are_turned_away() {
    let mut server = TestServer::start().await;
    let rebound =
        server.send("GET /runs HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n").await;
    assert_eq!((rebound.status, rebound.json()["code"].as_str().unwrap()), (403, "forbidden"));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_refused_in_time() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    let started = tokio::time::Instant::now();
    client
        .write_all(b"POST /chat HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{\"user")
        .await
        .unwrap();
    let answer = read_until(&mut client, "body_timeout").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(started.elapsed().as_secs(), 10);
}

#[tokio::test]
async fn refusals_reach_clients_that_go_on_sending() {
    let mut server = TestServer::start().await;
    let piece = vec![b' '; 1 << 20];
    // More than is read before the answer, and one that is refused before anything is read.
    for (path, pieces, status) in [("/threads", 40, "413"), ("/nowhere", 2, "404")] {
        let mut client = server.connect();
        let length = pieces << 20;
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        for _ in 0..pieces {
            client.write_all(&piece).await.expect("the server reads on");
        }
        let answer = read_until(&mut client, "request_id").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_body_is_refused_after_it_was_sent() {
    let mut server = TestServer::start().await;
    let body = format!("{{\"user_id\":\"a\",\"message\":\"{}\"}}", "x".repeat(10 << 20));
    let answer = server.send(&post("/chat", "", &body)).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.json()["detail"]["error_type"], "body_too_large");
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    let mut server = TestServer::start().await;
    let started = tokio::time::Instant::now();
    let mut silent = server.connect();
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap(), 0);
    assert!((10..=15).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_kept_for_a_while() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.write_all(request).await.unwrap();
    read_until(&mut client, "1.2.3").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    client.write_all(request).await.unwrap();
    read_until(&mut client, "1.2.3").await;
    let idle = tokio::time::Instant::now();
    assert_eq!(client.read(&mut [0; 64]).await.unwrap(), 0);
    assert!((75..=80).contains(&idle.elapsed().as_secs()), "{:?}", idle.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_connections_close_when_the_server_stops() {
    let mut server = TestServer::start().await;
    let mut client = server.connect();
    client.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut client, "1.2.3").await;
    server.stop(crate::stop::Stage::Soft);
    server.closed().await;
}

#[tokio::test(start_paused = true)]
async fn operators_see_what_there_is() {
    let mut server = TestServer::start().await;
    let live = server.get("/health/live").await;
    assert_eq!((live.status, live.json()["status"].as_str().unwrap()), (200, "ok"));
    // Nobody has asked whether it is ready: these are measured, not remembered.
    for name in ["scheduler_lag_ms", "scheduler_lag_max_ms", "uptime_s"] {
        assert!(live.json()[name].is_number(), "{name}: {live:?}");
    }
    let ready = server.get("/health/ready").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    for name in [
        "pools",
        "queue",
        "providers",
        "store",
        "threads",
        "open_files",
        "memory_bytes",
        "scheduler_lag_ms",
    ] {
        assert!(!ready.json()[name].is_null(), "{name}");
    }
    assert_eq!(server.get("/pools").await.json()["pools"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/providers").await.json(), json!({"providers": [], "calls": []}));
    let metrics = server.get("/metrics").await;
    assert!(metrics.body.contains("clearway_pool_runs") && metrics.body.ends_with("# EOF\n"));
    assert!(server.get("/").await.body.contains("/openapi.json"));
    assert_eq!(server.get("/openapi.json").await.json()["openapi"], "3.1.0");
    let odd = server.get("/pools?verbose=1").await;
    assert_eq!(
        (odd.status, odd.json()["hint"].as_str().unwrap()),
        (400, "This address takes none.")
    );
}

#[tokio::test(start_paused = true)]
async fn runs_are_listed_watched_and_cancelled() {
    let mut server = TestServer::start().await;
    let ended = server.post("/chat", &json!({"user_id": "ann", "message": "hello"})).await.run();
    let task = server.post("/chat/async", &json!({"message": "hang"})).await.run();
    server.until(task, |view| view.record.status == clearway_core::Status::Running).await;
    let list = server.get("/runs?status=running,ready").await.json();
    assert_eq!(list["runs"].as_array().unwrap().len(), 1);
    assert_eq!(list["runs"][0]["run_id"], task.to_string());
    assert!(list["runs"][0]["waiting_on"]["sentence"].is_string());
    let page = server.get("/runs?limit=1").await.json();
    let next = page["next"].as_str().unwrap();
    let rest = server.get(&format!("/runs?limit=1&after={next}")).await.json();
    assert_eq!(rest["runs"][0]["run_id"], ended.to_string());
    for bad in ["?status=odd", "?limit=0", "?limit=1001", "?after=x", "?thread_id=x", "?color=red"]
    {
        assert_eq!(server.get(&format!("/runs{bad}")).await.status, 400, "{bad}");
    }

    let head =
        "HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\naccept: application/json\r\n\r\n";
    let events = server.send(&format!("GET /runs/{ended}/events {head}")).await.json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events[0]["kind"], "run.created");
    assert_eq!(events.last().unwrap()["kind"], "run.ended");
    let stream = server.get(&format!("/runs/{ended}/events?after=0")).await;
    assert_eq!(stream.data(), events[1..]);

    let accepted = server.send(&post(&format!("/runs/{task}/cancel?wait=1"), "", "")).await;
    assert_eq!(accepted.status, 200);
    let body = accepted.json();
    assert_eq!((&body["status"], &body["receipt"]["by"]), (&json!("cancelled"), &json!("client")));
    let again = server.send(&post(&format!("/runs/{task}/cancel"), "", "")).await;
    assert_eq!(again.status, 200, "cancelling twice is no mistake");
    let late = server.send(&post(&format!("/runs/{ended}/cancel"), "", "")).await;
    assert_eq!((late.status, late.json()["code"].as_str().unwrap()), (409, "run_ended"));
    assert_eq!(server.get("/runs/nonsense").await.status, 404);
}

#[tokio::test]
async fn a_taken_port_and_an_open_door_are_refused() {
    let server = TestServer::start().await;
    let engine = server.app.engine.clone();
    let mut first = options();
    let bound = Server::bind(engine.clone(), first.clone()).await.unwrap();
    first.listen = bound.local_addr().unwrap();
    let error = Server::bind(engine.clone(), first).await.unwrap_err();
    assert!(matches!(error, BindError::AddressInUse(_)), "{error}");
    let mut open = options();
    open.listen = "0.0.0.0:0".parse().unwrap();
    let error = Server::bind(engine.clone(), open.clone()).await.unwrap_err();
    assert!(matches!(error, BindError::Unguarded(_)), "{error}");
    open.insecure = true;
    assert!(Server::bind(engine, open).await.is_ok());
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = TestServer::start().await;
    let mut options = options();
    options.limits.connections = 1;
    let bound = Server::bind(server.app.engine.clone(), options).await.unwrap();
    let address = bound.local_addr().unwrap();
    let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(bound.serve(soft.clone(), hard.clone()));
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 64];
    assert!(first.read(&mut answer).await.unwrap() > 0);
    let mut second = TcpStream::connect(address).await.unwrap();
    let mut refusal = String::new();
    second.read_to_string(&mut refusal).await.unwrap();
    assert!(refusal.starts_with("HTTP/1.1 503") && refusal.contains("retry-after: 1"), "{refusal}");
    drop(second);
    soft.cancel();
    // The idle connection closes by itself, so nothing has to be cut.
    serving.join_next().await.unwrap().unwrap();
    assert!(!hard.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn every_address_needs_a_key_once_there_is_one() {
    let mut options = options();
    options.doors.push(Door {
        kind: DoorKind::Campaign,
        mount: "/api/v1".to_owned(),
        agent: "agent".to_owned(),
        expose_state: false,
        source: None,
        model: String::new(),
        tools: Vec::new(),
    });
    let mut operator = ApiKey::new("operator", "operators-secret", "default");
    operator.scopes.push(crate::Scope::Operate);
    options.keys = vec![operator];
    let (_, addresses) = routes::table(&options).unwrap().into_parts();
    assert!(addresses.len() > 50, "{}", addresses.len());
    let mut server = TestServer::with(options).await;
    for address in addresses {
        let path = address.path.replace(['{', '}'], "");
        let ask = |key: &str| {
            let method = &address.method;
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{key}\r\n")
        };
        let open = crate::auth::PUBLIC.contains(&path.as_str());
        for wrong in ["", "x-api-key: operators-secre\r\n", "x-clearway-identity: {}\r\n"] {
            let answer = server.send(&ask(wrong)).await;
            assert_eq!(answer.status == 401, !open, "{address} {wrong}: {answer:?}");
        }
        if !open {
            assert_eq!(
                server.send(&ask("")).await.header("www-authenticate"),
                "Bearer realm=\"clearway\""
            );
        }
        // The proof of the pool works for two seconds and is no stream; paused time would hang it.
        if path != "/api/v1/test/thread-pool" && !path.ends_with("/stream") {
            let answer = server.send(&ask("x-api-key: operators-secret\r\n")).await;
            assert_ne!(answer.status, 401, "{address}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_sees_its_users_things_and_no_others() {
    let mut options = options();
    let key = |name: &str, user: Option<&str>| {
        let mut key = ApiKey::new(name, &format!("secret-of-{name}"), "default");
        key.user = user.map(ToOwned::to_owned);
        key
    };
    let mut root = key("root", None);
    root.admin = true;
    options.keys = vec![key("ann", Some("ann")), key("bob", Some("bob")), root];
    let mut server = TestServer::with(options).await;
    let as_user = |name: &str| format!("x-api-key: secret-of-{name}\r\n");
    let body = json!({"user_id": "ann", "message": "hi"}).to_string();
    let chat = server.send(&post("/chat", &as_user("ann"), &body)).await;
    assert_eq!(chat.status, 200, "{chat:?}");
    let run = chat.run();
    let forged = server.send(&post("/chat", &as_user("bob"), &body)).await;
    assert_eq!(forged.status, 403, "{forged:?}");
    let get = |name: &str, path: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{}\r\n", as_user(name))
    };
    for path in ["", "/events", "/artifacts"] {
        let path = format!("/runs/{run}{path}");
        for (name, status) in [("ann", 200), ("bob", 404), ("root", 200)] {
            assert_eq!(server.send(&get(name, &path)).await.status, status, "{name} {path}");
        }
    }
    for (name, seen) in [("ann", 1), ("bob", 0), ("root", 1)] {
        let list = server.send(&get(name, "/runs")).await.json();
        assert_eq!(list["runs"].as_array().map(Vec::len), Some(seen), "{name}");
    }
    let cancel = post(&format!("/runs/{run}/cancel"), &as_user("bob"), "");
    assert_eq!(server.send(&cancel).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn a_socket_begins_with_a_handshake_and_keeps_the_connections_limits() {
    let mut options = options();
    options.doors.push(Door {
        kind: DoorKind::Campaign,
        mount: "/api/v1".to_owned(),
        agent: "agent".to_owned(),
        expose_state: false,
        source: None,
        model: String::new(),
        tools: Vec::new(),
    });
    let mut server = TestServer::with(options).await;
    let plain = server.get("/api/v1/campaigns/ws").await;
    assert_eq!((plain.status, plain.header("upgrade")), (426, "websocket"));
    let head = "GET /api/v1/campaigns/ws HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive, Upgrade\r\n\
                upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = server.connect();
    client.write_all(head.as_bytes()).await.unwrap();
    let shown = read_until(&mut client, "\"snapshot\"").await;
    assert!(shown.starts_with("HTTP/1.1 101 "), "{shown}");
    // The example of RFC 6455.
    assert!(shown.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{shown}");
    // A peer that answers no ping is let go in the end.
    let before = Instant::now();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert!(before.elapsed() >= Duration::from_secs(60), "{:?}", before.elapsed());
    assert!(String::from_utf8_lossy(&rest).contains("\"heartbeat\""));

    let mut client = server.connect();
    client.write_all(head.as_bytes()).await.unwrap();
    read_until(&mut client, "\"snapshot\"").await;
    server.stop(Stage::Soft);
    let end = read_until(&mut client, "the server stops").await;
    assert!(end.contains("shutting_down"), "{end}");
    drop(client);
    server.closed().await;
}
