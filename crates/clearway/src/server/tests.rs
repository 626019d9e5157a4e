//! Servers on loopback, started and stopped by their handle.

use std::future::{pending, ready};

use clearway_server::BindError;

use super::*;
use crate::client::Client;
use crate::config::Env;

const HOUSE: &str = "[providers.house]\nkind = 'openai'\nbase_url = 'http://127.0.0.1:9/v1'\n";
const AGENT: &str = "[agents.a]\nprompt = 'one'\n";

fn config(text: &str, data: &Path) -> Config {
    let mut config = Config::parse("clearway.toml", text, &Env::default()).unwrap();
    config.server.listen = Some("127.0.0.1:0".parse().unwrap());
    config.server.data = Some(data.to_owned());
    config
}

async fn start(text: &str, data: &Path) -> Clearway {
    Clearway::start(config(text, data), Options::default()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_ready_when_start_returns_and_gone_when_shutdown_does() {
    let data = tempfile::tempdir().unwrap();
    let clearway = start(HOUSE, data.path()).await;
    let client = Client::new(&format!("http://{}", clearway.address())).unwrap();
    assert_eq!(client.get("/runs").await.unwrap()["runs"], serde_json::json!([]));
    clearway.shutdown(Duration::from_secs(5), pending()).await;
    assert!(client.get("/runs").await.is_err());
    // The data directory is free again.
    start(HOUSE, data.path()).await.shutdown(Duration::ZERO, ready(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_told_before_anything_else_happens() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clearway = start(HOUSE, one.path()).await;
    let mut second = config(HOUSE, &two.path().join("data"));
    second.server.listen = Some(clearway.address().to_string().parse().unwrap());

    let refused = Clearway::start(second.clone(), Options::default()).await.unwrap_err();
    assert!(matches!(refused, StartError::Bind(BindError::AddressInUse(_))), "{refused}");
    assert!(!two.path().join("data").exists(), "the data directory was touched");

    let next = Options { ports: Ports::NextFree, ..Options::default() };
    let beside = Clearway::start(second, next).await.unwrap();
    assert_eq!(beside.port_taken(), Some(clearway.address().port()));
    assert!(beside.address().port() > clearway.address().port());
    beside.shutdown(Duration::ZERO, ready(())).await;
    clearway.shutdown(Duration::ZERO, ready(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_not_let_in_by_accident() {
    let data = tempfile::tempdir().unwrap();
    let mut open = config(HOUSE, data.path());
    open.server.listen = Some("0.0.0.0:0".parse().unwrap());
    let refused = Clearway::start(open.clone(), Options::default()).await.unwrap_err();
    assert!(matches!(refused, StartError::Bind(BindError::Unguarded(_))), "{refused}");
    open.server.insecure = true;
    let clearway = Clearway::start(open, Options::default()).await.unwrap();
    clearway.shutdown(Duration::ZERO, ready(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_has_one_server() {
    let data = tempfile::tempdir().unwrap();
    let clearway = start(HOUSE, data.path()).await;
    let refused =
        Clearway::start(config(HOUSE, data.path()), Options::default()).await.unwrap_err();
    assert!(refused.to_string().contains("is in use by another Clearway server"), "{refused}");
    clearway.shutdown(Duration::ZERO, ready(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_change_at_once_and_the_rest_at_the_next_start() {
    let data = tempfile::tempdir().unwrap();
    let mut clearway = start(&format!("{HOUSE}{AGENT}"), data.path()).await;
    let names =
        |clearway: &Clearway| clearway.engine.agents().all().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&clearway), ["a", "agent"]);

    let more = config(&format!("{HOUSE}{AGENT}[agents.b]\nprompt = 'two'\n"), data.path());
    assert_eq!(clearway.reload(more), [""; 0]);
    assert_eq!(names(&clearway), ["a", "agent", "b"]);

    let other = format!(
        "{HOUSE}{AGENT}[agents.c]\npool = 'new'\n[pools.new]\nslots = 1\n[models]\nx = {{ provider = 'house', model = 'm' }}\n"
    );
    assert_eq!(clearway.reload(config(&other, data.path())), ["pools"]);
    assert!(clearway.engine.upstream().model("x").is_some(), "models are there at once");
    assert_eq!(names(&clearway), ["a", "agent"], "an agent whose pool is not there yet waits");
    clearway.shutdown(Duration::ZERO, ready(())).await;
}

#[derive(crate::graph::State)]
struct Nothing {
    done: Option<bool>,
}

#[expect(clippy::panic, reason = "what it is for")]
async fn panics(_cx: crate::graph::Ctx, _state: Arc<Nothing>) -> crate::graph::NodeResult<Nothing> {
    panic!("something that its author did not think of");
}

const FINE: &str = "[workflows.fine.steps.only]\ndo = 'set'\nvalue = '1 + 1'\n";

/// On the runtime that `serve` has: all its threads are there before the first run.
#[test]
fn a_graph_that_panics_hurts_itself_alone() {
    crate::threads::runtime(Some(2)).unwrap().block_on(panicking_graphs_beside_healthy_ones());
}

async fn panicking_graphs_beside_healthy_ones() {
    let data = tempfile::tempdir().unwrap();
    let boom = crate::graph::Graph::<Nothing>::builder("boom").node("fuse", panics).start("fuse");
    let options = Options { graphs: vec![boom.build().unwrap().agent()], ..Options::default() };
    let config = config(&format!("{HOUSE}{FINE}"), data.path());
    let clearway = Clearway::start(config, options).await.unwrap();
    let client = Client::new(&format!("http://{}", clearway.address())).unwrap();
    let before = client.get("/health/ready").await.unwrap()["threads"].clone();
    let body = serde_json::json!({"assistant_id": "boom", "input": {}});
    let fine = serde_json::json!({"input": {}});
    let mut runs = Vec::new();
    for _ in 0..3 {
        let boom = client.post("/runs", Some(&body)).await.unwrap();
        runs.push((boom["run_id"].as_str().unwrap().to_owned(), "error"));
        let fine = client.post("/workflows/fine/runs", Some(&fine)).await.unwrap();
        runs.push((fine["run_id"].as_str().unwrap().to_owned(), "success"));
    }
    for (run, status) in &runs {
        let ended = clearway.engine.wait(run.parse().unwrap());
        timeout(Duration::from_secs(20), ended).await.unwrap().unwrap();
        let run = client.get(&format!("/runs/{run}")).await.unwrap();
        assert_eq!(run["status"], *status, "{run}");
        if *status == "error" {
            assert_eq!(run["error"]["code"], "internal", "{run}");
            assert!(run["error"]["message"].as_str().unwrap().contains("`fuse` panicked"), "{run}");
        }
    }
    assert_eq!(client.get("/health/ready").await.unwrap()["threads"], before);
    clearway.shutdown(Duration::ZERO, ready(())).await;
}
