//! Agents with tools: what the model hears, what is done once, who is asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clearway_core::machine::{Command, Resume};
use clearway_core::plan::MESSAGES;
use clearway_core::run::RunOptions;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, EventKind, Failure, RunId, Status};
use clearway_engine::chat::ChatOptions;
use clearway_engine::tool::{
    FixedTools, Tool, ToolCall, ToolError, ToolReply, ToolSpec, Toolbox, agent_nodes, model_name,
};
use clearway_engine::upstream::{
    Config, Dial, DialError, DialPhase, Endpoint, Io, ModelConfig, ProviderConfig, Upstream,
};
use clearway_engine::{Agent, Agents, Ctx, Decision, Effect, Engine, Kind, Submit, Which};
use clearway_store::MemStore;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::task::TaskTracker;

use crate::support::*;

/// A model that says what it was told to, one answer after the other, and remembers what it was asked.
#[derive(Clone, Debug, Default)]
struct Model {
    answers: Arc<Mutex<Vec<Answer>>>,
    asked: Arc<Mutex<Vec<Value>>>,
    connections: TaskTracker,
}

#[derive(Clone, Debug)]
enum Answer {
    Says(&'static str),
    /// Name and arguments of each call.
    Calls(Vec<(&'static str, &'static str)>),
}

impl Model {
    fn new(answers: &[Answer]) -> Self {
        let answers = answers.iter().rev().cloned().collect();
        Self { answers: Arc::new(Mutex::new(answers)), ..Self::default() }
    }

    fn answer(&self, request: Value) -> String {
        self.asked.lock().unwrap().push(request);
        let next = self.answers.lock().unwrap().pop();
        let (delta, reason) = match next.unwrap_or(Answer::Says("nothing more")) {
            Answer::Says(text) => (json!({"content": text}), "stop"),
            Answer::Calls(calls) => {
                let one = |(at, (name, arguments)): (usize, &(&str, &str))| {
                    json!({"index": at, "id": format!("c{at}"), "type": "function",
                        "function": {"name": name, "arguments": arguments}})
                };
                let calls: Vec<Value> = calls.iter().enumerate().map(one).collect();
                (json!({"tool_calls": calls}), "tool_calls")
            }
        };
        let chunks = [
            json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]}),
            json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}),
        ];
        let mut body: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        body.push_str("data: [DONE]\n\n");
        format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )
    }

    async fn serve(self, mut io: tokio::io::DuplexStream) {
        let mut bytes = Vec::new();
        let request = loop {
            if io.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            let text = String::from_utf8_lossy(&bytes);
            let Some((_, body)) = text.split_once("\r\n\r\n") else { continue };
            if let Ok(request) = serde_json::from_str(body) {
                break request;
            }
        };
        let answer = self.answer(request);
        let _ = io.write_all(answer.as_bytes()).await;
    }

    /// The messages of its n-th request, as `role: text` or `role call: text`.
    fn heard(&self, n: usize) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let told = |message: &Value| {
            let text = message["content"].as_str().unwrap_or_default();
            let role = message["role"].as_str().unwrap_or_default();
            match message["tool_call_id"].as_str() {
                Some(call) => format!("{role} {call}: {text}"),
                None => format!("{role}: {text}"),
            }
        };
        asked[n]["messages"].as_array().unwrap().iter().map(told).collect()
    }
}

impl Dial for Model {
    fn dial<'a>(
        &'a self,
        _endpoint: &'a Endpoint,
        _report: &'a (dyn Fn(DialPhase) + Sync),
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        let (ours, theirs) = tokio::io::duplex(256 << 10);
        drop(self.connections.spawn(self.clone().serve(theirs)));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}

type Work =
    Box<dyn Fn(u32, ToolCall) -> BoxFuture<'static, Result<ToolReply, ToolError>> + Send + Sync>;

/// A tool that counts how often it was called.
struct Counted {
    spec: ToolSpec,
    calls: Arc<AtomicU32>,
    work: Work,
}

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.spec.id)
    }
}

#[async_trait::async_trait]
impl Tool for Counted {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, _cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let count = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        (self.work)(count, call).await
    }
}

fn counted(id: &str, effect: Effect, work: Work) -> (Arc<dyn Tool>, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let spec = ToolSpec {
        name: model_name(id),
        id: id.to_owned(),
        description: "does it".to_owned(),
        arguments: json!({"type": "object", "properties": {"n": {"type": "integer"}}}),
        effect,
        deadline: Duration::from_secs(5),
    };
    (Arc::new(Counted { spec, calls: calls.clone(), work }), calls)
}

/// Answers with its arguments, the first calls last.
fn echo() -> Work {
    Box::new(|_, call| {
        Box::pin(async move {
            let n = call.arguments.get("n").and_then(Value::as_u64).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(100 - 10 * n.min(9))).await;
            Ok(ToolReply::new(json!(call.arguments)))
        })
    })
}

struct Bed {
    model: Model,
    store: Arc<MemStore>,
    clock: Arc<TestClock>,
    toolbox: Toolbox,
}

impl Bed {
    fn new(answers: &[Answer], tools: Vec<Arc<dyn Tool>>) -> Self {
        let clock = TestClock::new();
        Self {
            model: Model::new(answers),
            store: Arc::new(MemStore::new(clock.clone())),
            clock,
            toolbox: Toolbox::new(vec![Arc::new(FixedTools::new("test", tools))]),
        }
    }

    async fn engine(&self) -> Engine {
        let mut provider = ProviderConfig::new("p", Endpoint::parse("http://model/v1").unwrap());
        provider.dial = Some("p".to_owned());
        let models = vec![ModelConfig::new("m", "p", "m")];
        let config = Config { providers: vec![provider], models, clock: None };
        let dial: Arc<dyn Dial> = Arc::new(self.model.clone());
        let upstream = Upstream::new(config, HashMap::from([("p".to_owned(), dial)])).unwrap();
        let chat = ChatOptions {
            model: "m".to_owned(),
            system: Arc::new(|_| Ok(String::new())),
            history_tokens: 4000,
            params: Map::new(),
        };
        let graph = agent_nodes(chat, self.toolbox.clone(), &[]);
        let code = graph.nodes["model"].clone();
        let agent = Agent {
            plan: Arc::new(graph.plan),
            nodes: graph.nodes,
            ..Agent::single("a", "agent", "model", code)
        };
        let agents = Agents::new([("a".to_owned(), Arc::new(agent))]);
        Engine::start(options(8, 100), self.store.clone(), upstream, agents, self.clock.clone())
            .await
            .unwrap()
    }
}

async fn ask(engine: &Engine, text: &str) -> clearway_core::RunRecord {
    let submitted = engine.submit(turn("a", "c", text)).await.unwrap();
    engine.wait(submitted.run).await.unwrap()
}

async fn answer(engine: &Engine, value: Value) -> clearway_core::RunRecord {
    let command = Command { resume: Some(Resume::All(value)), ..Command::default() };
    let options = RunOptions { command: Some(command), ..RunOptions::default() };
    let submit = Submit { options, input: json!({}), ..turn("a", "c", "x") };
    let submitted = engine.submit(submit).await.unwrap();
    engine.wait(submitted.run).await.unwrap()
}

async fn said(engine: &Engine) -> Vec<(String, String)> {
    conversation(engine, turn("a", "c", "").thread).await
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_message_run_side_by_side_and_are_answered_in_order() {
    let (tool, calls) = counted("look", Effect::Read, echo());
    let asks = Answer::Calls(vec![("look", "{\"n\":1}"), ("look", "{\"n\":9}"), ("look", "")]);
    let bed = Bed::new(&[asks, Answer::Says("done")], vec![tool]);
    let engine = bed.engine().await;
    let begun = tokio::time::Instant::now();
    let record = ask(&engine, "go").await;
    ended(&record, Status::Success);
    assert!(begun.elapsed() < Duration::from_millis(150), "{:?}", begun.elapsed());
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(
        bed.model.heard(1),
        ["user: go", "assistant: ", "tool c0: {\"n\":1}", "tool c1: {\"n\":9}", "tool c2: {}"]
    );
    assert_eq!(bed.model.asked.lock().unwrap()[0]["tools"][0]["function"]["name"], "look");
    let reply = engine.reply(&record).await.unwrap().unwrap();
    assert_eq!(reply.content.text(), "done");
    let kinds: Vec<EventKind> =
        whole_log(&engine, record.id).await.iter().map(clearway_core::Event::kind).collect();
    let count = |kind| kinds.iter().filter(|other| **other == kind).count();
    assert_eq!((count(EventKind::ToolStarted), count(EventKind::ToolCompleted)), (3, 3));
    assert_eq!(record.step, 2, "model, tools, model");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_with_a_call_is_told_to_the_model() {
    let fails: Work = Box::new(|_, _| {
        Box::pin(async {
            Err(ToolError::Failed(Failure::new(Code::NotFound, "there is no such customer")))
        })
    });
    let hangs: Work = Box::new(|_, _| Box::pin(std::future::pending()));
    let (look, looked) = counted("look", Effect::Read, echo());
    let (fails, _) = counted("fails", Effect::Read, fails);
    let (hangs, _) = counted("hangs", Effect::Read, hangs);
    let asks = Answer::Calls(vec![
        ("lokk", "{}"),
        ("look", "{\"n\":\"many\"}"),
        ("look", "not json"),
        ("fails", "{}"),
        ("hangs", "{}"),
    ]);
    let bed = Bed::new(&[asks, Answer::Says("sorry")], vec![look, fails, hangs]);
    let engine = bed.engine().await;
    ended(&ask(&engine, "go").await, Status::Success);
    let heard = bed.model.heard(1).split_off(2).join("\n");
    expect_test::expect![[r#"
        tool c0: error (not_found): there is no tool `lokk`; there are: look, fails, hangs
        tool c1: error (invalid_request): the arguments do not fit: at /n: "many" is not of type "integer"
        tool c3: error (not_found): there is no such customer
        tool c4: error (deadline_exceeded): `hangs` took longer than 5 s
        tool c2: error (invalid_request): the arguments are no JSON object: not json"#]]
    .assert_eq(&heard);
    assert_eq!(looked.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn rounds_are_bounded() {
    let (tool, calls) = counted("look", Effect::Read, echo());
    let again = Answer::Calls(vec![("look", "{}")]);
    let mut bed = Bed::new(&vec![again; 10], vec![tool]);
    bed.toolbox.rounds = 3;
    let engine = bed.engine().await;
    let record = ask(&engine, "go").await;
    ended(&record, Status::Error);
    let failure = record.failure.unwrap();
    assert_eq!(
        (failure.code, &failure.detail["limit"]),
        (Code::LimitExceeded, &json!("tool_rounds"))
    );
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let asked = bed.model.asked.lock().unwrap();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[3]["tool_choice"], "none", "it is told to answer before it fails");
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_outcome_is_unknown_waits_for_a_decision() {
    let hangs: Work = Box::new(|count, call| {
        Box::pin(async move {
            assert!(!call.key.is_empty());
            if count == 1 {
                std::future::pending::<()>().await;
            }
            Ok(ToolReply::new("sent"))
        })
    });
    let (tool, calls) = counted("mail", Effect::Write, hangs);
    let asks = Answer::Calls(vec![("mail", "{}")]);
    let bed = Bed::new(&[asks, Answer::Says("it is sent")], vec![tool]);
    let engine = bed.engine().await;
    let submit = Submit { kind: Kind::Background { working_limit: None }, ..turn("a", "c", "go") };
    let run = engine.submit(submit).await.unwrap().run;
    while calls.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The process dies after the announcement and before the answer.
    engine.shutdown(Duration::ZERO).await;
    let engine = bed.engine().await;
    assert_eq!(waiting(&engine, run).await, WaitKind::Decision);
    assert_eq!(calls.load(Ordering::SeqCst), 1, "it is not sent again by itself");
    engine.resolve(run, Which::All, &Decision::Done(json!("it was sent")), "test").await.unwrap();
    ended(&engine.wait(run).await.unwrap(), Status::Success);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let expected = [("human", "go"), ("ai", ""), ("tool", "it was sent"), ("ai", "it is sent")];
    let expected = expected.map(|(role, text)| (role.to_owned(), text.to_owned()));
    assert_eq!(said(&engine).await, expected);
}

async fn waiting(engine: &Engine, run: RunId) -> WaitKind {
    loop {
        let view = engine.run(run).await.unwrap();
        assert!(!view.record.status.is_terminal(), "{:?}", view.record.failure);
        if view.record.status == Status::Waiting {
            return view.waiting.unwrap().kind;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_person_approves_edits_and_rejects() {
    let (mail, mailed) = counted("crm:mail", Effect::Write, echo());
    let (look, looked) = counted("crm:look", Effect::Read, echo());
    let asks = Answer::Calls(vec![
        ("crm_mail", "{\"n\":1}"),
        ("crm_look", "{\"n\":2}"),
        ("crm_mail", "{\"n\":3}"),
    ]);
    let mut bed = Bed::new(&[asks, Answer::Says("one is sent")], vec![mail, look]);
    bed.toolbox.confirm = vec!["crm:m*".to_owned()];
    let engine = bed.engine().await;
    let record = ask(&engine, "go").await;
    ended(&record, Status::Success);
    assert!(!record.next.is_empty(), "it waits for a person");
    assert_eq!((mailed.load(Ordering::SeqCst), looked.load(Ordering::SeqCst)), (0, 0));
    let state = engine.thread_state(record.thread).await.unwrap().unwrap();
    let question = Engine::questions(&state).remove(0).value;
    assert_eq!(question["action_requests"][0]["args"], json!({"n": 1}));
    assert_eq!(question["action_requests"].as_array().unwrap().len(), 2);
    assert_eq!(question["review_configs"][0]["action_name"], "crm_mail");
    // An answer that cannot be used is asked for again.
    let record = answer(&engine, json!({"decisions": [{"type": "approve"}]})).await;
    assert!(!record.next.is_empty());
    let edit = json!({"type": "edit", "edited_action": {"name": "crm_mail", "args": {"n": 7}}});
    let reject = json!({"type": "reject", "message": "too early"});
    let record = answer(&engine, json!({"decisions": [edit, reject]})).await;
    ended(&record, Status::Success);
    assert!(record.next.is_empty());
    assert_eq!((mailed.load(Ordering::SeqCst), looked.load(Ordering::SeqCst)), (1, 1));
    let mut heard = bed.model.heard(1).split_off(2);
    heard.sort();
    expect_test::expect![[r#"
        tool c0: {"n":7}
        tool c1: {"n":2}
        tool c2: error (forbidden): a person rejected this call: too early"#]]
    .assert_eq(&heard.join("\n"));
    let calls = engine.thread_state(record.thread).await.unwrap().unwrap().state;
    let calls = calls.list(MESSAGES)[1]["tool_calls"].clone();
    assert_eq!(calls[0]["args"], json!({"n": 7}), "the conversation shows what was done");
}

#[tokio::test(start_paused = true)]
async fn a_turn_goes_on_beside_an_approval_that_nobody_gave() {
    let (mail, mailed) = counted("mail", Effect::Write, echo());
    let asks = Answer::Calls(vec![("mail", "{}")]);
    let mut bed = Bed::new(&[asks, Answer::Says("all right")], vec![mail]);
    bed.toolbox.confirm = vec!["mail".to_owned()];
    let engine = bed.engine().await;
    assert!(!ask(&engine, "mail them").await.next.is_empty());
    let record = ask(&engine, "never mind").await;
    ended(&record, Status::Success);
    assert_eq!(mailed.load(Ordering::SeqCst), 0);
    expect_test::expect![[r#"
        user: mail them
        assistant: 
        tool c0: error (cancelled): this call was not made
        user: never mind"#]]
    .assert_eq(&bed.model.heard(1).join("\n"));
}
