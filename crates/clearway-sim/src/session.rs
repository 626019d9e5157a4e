//! A connection from its first request to its end: which request, which fault, which answer.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::Inner;
use crate::chat::{Chat, Model};
use crate::conn::{After, Conn, Hooks, Lost};
use crate::embed::Embed;
use crate::fault::{Fault, FaultSpec};
use crate::http::{Framing, Head, Method, NoRequest, Overrides, push_chunk, push_head};
use crate::job::{Job, Pace, Writer};
use crate::plan::{Action, Canned, Facts, Kind, Plan, Rest, act};
use crate::prng::Prng;
use crate::problem::Problem;
use crate::reply::Reply;
use crate::sse::{Fragments, Signature};
use crate::stats::Flight;
use crate::{stream, whole};

/// Serves a connection until it ends.
pub(crate) async fn serve<I: AsyncRead + AsyncWrite + Unpin>(sim: &Inner, io: I, hooks: Hooks<I>) {
    let limits = &sim.options.limits;
    let mut conn = Conn::new(io, hooks, limits.write_timeout);
    let Some(_connected) = sim.counters.connect(limits.max_connections) else {
        let problem = Problem::new(503, "server_error", "too many connections");
        let _ = send_canned(sim, &mut conn, &Canned::from(&problem), false).await;
        return conn.close(After::Close).await;
    };
    let mut idle = limits.idle_timeout;
    let mut reused = false;
    loop {
        let result = async {
            let head = conn.read_head(limits, idle).await?;
            answer(sim, &mut conn, head, reused).await
        };
        let after = match result.await {
            Ok(after) => after,
            Err(NoRequest::Over) => After::Close,
            Err(NoRequest::Bad(problem)) => {
                sim.counters.bad_request();
                match send_canned(sim, &mut conn, &Canned::from(&problem), false).await {
                    Ok(_) => After::CloseLingering,
                    Err(_) => After::Close,
                }
            }
        };
        reused = true;
        match after {
            After::KeepAlive => idle = limits.idle_timeout,
            After::IdleFor(duration) => idle = duration,
            After::Close | After::CloseLingering | After::Reset => return conn.close(after).await,
        }
    }
}

/// Reads what is left of a request and answers it.
async fn answer<I: AsyncRead + AsyncWrite + Unpin>(
    sim: &Inner,
    conn: &mut Conn<I>,
    head: Head,
    reused: bool,
) -> Result<After, NoRequest> {
    let limits = &sim.options.limits;
    let chat = match (head.method, head.path.as_str()) {
        (Method::Post, "/chat/completions") => true,
        (Method::Post, "/embeddings") => false,
        _ => {
            conn.read_body(&head, limits).await?;
            let canned = sim.plain(&head);
            return Ok(send_canned(sim, conn, &canned, head.keep_alive)
                .await
                .unwrap_or(After::Close));
        }
    };
    let number = sim.counters.next_number();
    let mut prng = Prng::for_request(sim.options.seed, number);
    let drawn = sim.draw(&mut prng);
    if unread(&head, drawn) {
        return Ok(leave_unread(sim, conn).await);
    }
    let body = conn.read_body(&head, limits).await?;
    // The clock of the reply starts when the request is complete, before it is looked at.
    let started = Instant::now();
    let Some(mut flight) = sim.counters.enter(sim.options.max_concurrent) else {
        let problem = Problem::new(429, "requests", "Too many concurrent requests.")
            .code("rate_limit_exceeded");
        let canned =
            Canned { headers: vec![("retry-after", "1".to_owned())], ..Canned::from(&problem) };
        return Ok(send_canned(sim, conn, &canned, head.keep_alive).await.unwrap_or(After::Close));
    };
    let request = Request::read(&head, chat, &body);
    drop(body);
    let call = Call { head: &head, number, started, reused, prng, drawn };
    let result = match request {
        Ok((request, overrides)) => sim.reply(conn, &mut flight, call, &request, &overrides).await,
        Err(problem) => sim.refuse(conn, &mut flight, &head, &problem).await,
    };
    Ok(match result {
        Ok(after) => after,
        Err(Lost::Gone) => {
            flight.abort();
            After::Close
        }
        Err(Lost::Stuck) => After::Reset,
    })
}

/// Whether the request's body is to be left unread. Only the header and the flag can say so before it is read.
fn unread(head: &Head, drawn: Option<FaultSpec>) -> bool {
    match &head.overrides {
        Ok(Overrides { fault: Some(name), .. }) => {
            name.parse() == Ok(FaultSpec::from(Fault::NoRead))
        }
        Ok(Overrides { fault: None, .. }) => drawn.is_some_and(|spec| spec.fault == Fault::NoRead),
        Err(_) => false,
    }
}

/// Neither reads nor answers.
async fn leave_unread<I: AsyncRead + AsyncWrite + Unpin>(sim: &Inner, conn: &mut Conn<I>) -> After {
    let flight = sim.counters.enter(None);
    sim.counters.fault(Fault::NoRead);
    let result = conn.ignore(sim.options.limits.hold).await;
    if let (Some(mut flight), Err(Lost::Gone)) = (flight, result) {
        flight.abort();
    }
    After::Reset
}

/// A request for the model.
enum Request {
    Chat(Chat),
    Embed(Embed),
}

impl Request {
    fn read(head: &Head, chat: bool, body: &[u8]) -> Result<(Self, Overrides), Problem> {
        let overrides = head.overrides.clone()?;
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let request =
            if chat { Self::Chat(Chat::read(&body)?) } else { Self::Embed(Embed::read(&body)?) };
        Ok((request, overrides))
    }

    fn model(&self) -> &Model {
        match self {
            Self::Chat(chat) => &chat.model,
            Self::Embed(embed) => &embed.model,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Chat(chat) if chat.stream => Kind::Stream,
            Self::Chat(_) => Kind::Whole,
            Self::Embed(_) => Kind::Embeddings,
        }
    }

    fn prefilled(&self) -> bool {
        match self {
            Self::Chat(chat) => {
                chat.messages.last().is_some_and(|message| message.role == "assistant")
            }
            Self::Embed(_) => false,
        }
    }

    fn poisoned(&self) -> bool {
        match self {
            Self::Chat(_) => false,
            Self::Embed(embed) => embed.poisoned(),
        }
    }
}

/// What is known of a request besides its body.
struct Call<'a> {
    head: &'a Head,
    number: u64,
    started: Instant,
    reused: bool,
    prng: Prng,
    drawn: Option<FaultSpec>,
}

impl Inner {
    /// The fault of the options, if this request draws it.
    fn draw(&self, prng: &mut Prng) -> Option<FaultSpec> {
        let chance = prng.next_f64();
        self.options.fault.filter(|_| chance < self.options.fault_rate)
    }

    async fn reply<'s, I: AsyncRead + AsyncWrite + Unpin>(
        &'s self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'s>,
        mut call: Call<'_>,
        request: &Request,
        overrides: &Overrides,
    ) -> Result<After, Lost> {
        let spec = match overrides.fault.as_deref() {
            Some("none") => None,
            Some(name) => match name.parse::<FaultSpec>() {
                Ok(spec) => Some(spec),
                Err(error) => {
                    let problem = Problem::invalid(format!("header x-sim-fault: {error}"));
                    return self.refuse(conn, flight, call.head, &problem).await;
                }
            },
            None => request.model().fault.or(call.drawn),
        };
        let action = spec.and_then(|spec| {
            let action = self.act(spec, &mut call, request)?;
            self.counters.fault(spec.fault);
            Some(action)
        });
        let plan = match action {
            None => Plan::default(),
            Some(Action::Reply(plan)) => plan,
            Some(Action::Answer(canned)) => {
                flight.release();
                return send_canned(self, conn, &canned, call.head.keep_alive).await;
            }
            Some(Action::Hang) => {
                conn.wait(self.options.limits.hold).await?;
                return Ok(After::Close);
            }
            Some(Action::Reset) => {
                flight.release();
                return Ok(After::Reset);
            }
        };
        self.speak(conn, flight, call, request, overrides, plan).await
    }

    fn act(&self, spec: FaultSpec, call: &mut Call<'_>, request: &Request) -> Option<Action> {
        let model = request.model().base();
        let uptime_ms = self.counters.uptime_ms();
        let facts = Facts {
            kind: request.kind(),
            model,
            prefilled: request.prefilled(),
            poisoned: request.poisoned(),
            reused: call.reused,
            uptime: Duration::from_millis(uptime_ms),
            now_s: self.options.epoch_s.saturating_add(uptime_ms / 1000),
            chance: call.prng.next_u64(),
        };
        act(spec, &facts, || self.counters.first_time(model, spec.fault))
    }

    /// Gives the reply of the model as planned.
    async fn speak<'s, I: AsyncRead + AsyncWrite + Unpin>(
        &'s self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'s>,
        call: Call<'_>,
        request: &Request,
        overrides: &Overrides,
        plan: Plan,
    ) -> Result<After, Lost> {
        let options = &self.options;
        let interval = plan.interval.or(overrides.token_interval).unwrap_or(options.token_interval);
        let ttft = plan.ttft.or(overrides.ttft).unwrap_or(options.ttft);
        let pace = Pace { ttft, interval, jitter: options.jitter };
        let wide = plan.wire.fragments == Fragments::HalfCharacters;
        let job = Job {
            plan,
            pace,
            started: call.started,
            request_id: format!("req_sim_{:012x}", call.number),
            keep_alive: call.head.keep_alive,
            chunks: call.head.version_11,
            prng: call.prng,
            counters: &self.counters,
            limits: &options.limits,
        };
        let chat = match request {
            Request::Chat(chat) => chat,
            Request::Embed(embed) => {
                let body =
                    embed.body(job.plan.embedding, job.plan.payload, job.plan.no_usage).await;
                return whole::whole(Writer::new(conn, flight, &job), body, 0).await;
            }
        };
        let tokens = overrides.tokens.or(options.tokens);
        let mut reply = match Reply::new(&self.script, chat, tokens) {
            Ok(reply) => reply,
            Err(problem) => return self.refuse(conn, flight, call.head, &problem).await,
        };
        if wide {
            reply.pieces = reply.pieces.with_wide_characters();
        }
        let created = options.epoch_s.saturating_add(self.counters.uptime_ms() / 1000);
        let signature = Signature { id: format!("chatcmpl-sim-{:012x}", call.number), created };
        if chat.stream {
            stream::stream(Writer::new(conn, flight, &job), &signature, chat, &reply).await
        } else {
            let body = whole::chat_body(&job, &signature, chat, &reply).to_string().into_bytes();
            whole::whole(Writer::new(conn, flight, &job), body, reply.pieces.len()).await
        }
    }

    async fn refuse<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'_>,
        head: &Head,
        problem: &Problem,
    ) -> Result<After, Lost> {
        self.counters.bad_request();
        flight.release();
        send_canned(self, conn, &Canned::from(problem), head.keep_alive).await
    }

    /// The answers that do not come from a model.
    fn plain(&self, head: &Head) -> Canned {
        let ok = |body: Value| Canned {
            status: 200,
            content_type: "application/json",
            headers: Vec::new(),
            body: body.to_string(),
            rest: Rest::Nothing,
        };
        let created = self.options.epoch_s;
        let model = |id: &str| json!({"id": id, "object": "model", "created": created, "owned_by": "clearway-sim"});
        match (head.method, head.path.as_str()) {
            (Method::Get, "/health") => ok(json!({"status": "ok"})),
            (Method::Get, "/stats") => ok(self.counters.snapshot().to_json()),
            (Method::Post, "/stats/reset") => {
                self.counters.reset();
                ok(self.counters.snapshot().to_json())
            }
            (Method::Get, "/faults") => ok(faults()),
            (Method::Get, "/models") => {
                let models: Vec<_> = self.options.models.iter().map(|id| model(id)).collect();
                ok(json!({"object": "list", "data": models}))
            }
            (Method::Get, path) if path.starts_with("/models/") => {
                ok(model(&path["/models/".len()..]))
            }
            (_, "/chat/completions" | "/embeddings" | "/stats/reset") => wrong_method("POST"),
            (_, "/health" | "/stats" | "/faults" | "/models") => wrong_method("GET"),
            (_, path) => Canned::from(&Problem::new(
                404,
                "invalid_request_error",
                format!("no such address: {path}"),
            )),
        }
    }
}

fn wrong_method(allowed: &str) -> Canned {
    let problem =
        Problem::new(405, "invalid_request_error", format!("this address takes {allowed}"));
    Canned { headers: vec![("allow", allowed.to_owned())], ..Canned::from(&problem) }
}

/// The table of faults, for those who have no command line at hand.
fn faults() -> Value {
    let row = |fault: &Fault| {
        let about = fault.about();
        json!({
            "name": about.name,
            "group": about.group.title(),
            "does": about.line,
            "unit": about.parameter.map(|parameter| parameter.unit.symbol()),
            "default": about.parameter.map(|parameter| parameter.default),
        })
    };
    json!({"faults": Fault::ALL.iter().map(row).collect::<Vec<_>>()})
}

/// Sends an answer that does not come from the model, and what a fault lets follow it.
async fn send_canned<I: AsyncRead + AsyncWrite + Unpin>(
    sim: &Inner,
    conn: &mut Conn<I>,
    canned: &Canned,
    keep_alive: bool,
) -> Result<After, Lost> {
    let limits = &sim.options.limits;
    let body = canned.body.as_bytes();
    let framing =
        if canned.rest == Rest::Endless { Framing::Chunked } else { Framing::Length(body.len()) };
    let mut headers = vec![("content-type", canned.content_type)];
    headers.extend(canned.headers.iter().map(|(name, value)| (*name, value.as_str())));
    let mut out = Vec::with_capacity(256 + body.len());
    push_head(&mut out, canned.status, framing, keep_alive, &headers);
    match canned.rest {
        Rest::Nothing => {
            out.extend_from_slice(body);
            conn.send(&mut out).await?;
            Ok(if keep_alive { After::KeepAlive } else { After::Close })
        }
        Rest::Stalled => {
            out.extend_from_slice(&body[..body.len() / 2]);
            conn.send(&mut out).await?;
            conn.wait(limits.hold).await?;
            Ok(After::Close)
        }
        Rest::Endless => {
            let block = vec![b' '; 16 * 1024];
            push_chunk(&mut out, body);
            let mut sent = 0;
            while sent < limits.endless_bytes {
                push_chunk(&mut out, &block);
                conn.send(&mut out).await?;
                sent += block.len() as u64;
            }
            Ok(After::Reset)
        }
    }
}
