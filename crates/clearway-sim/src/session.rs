//! A connection from its first request to its end: which request, which refusal or fault, which answer.
//!
//! What comes first decides: an outage, the key, the limit on requests at once, the limits per minute, and only then
//! the fault that the request chose or drew.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::Inner;
use crate::account::{Limit, Refused, headers, whole_seconds};
use crate::chat::{Chat, Model};
use crate::conn::{After, Conn, Hooks, Lost};
use crate::control::Control;
use crate::dialect::{Dialect, Signature, Told};
use crate::embed::Embed;
use crate::fault::{Fault, FaultSpec};
use crate::frames::Fragments;
use crate::http::{Framing, Head, Method, NoRequest, Overrides, push_chunk, push_head};
use crate::job::{BEAT, Job, Pace, Writer};
use crate::plan::{Action, Canned, Facts, Kind, Opening, Payload, Plan, Rest, act, poison};
use crate::prng::Prng;
use crate::problem::Problem;
use crate::reply::{Pieces, Reply};
use crate::stats::{Arrival, Flight, Refusal};
use crate::usage::Usage;
use crate::{addresses, stream, whole};

/// Serves a connection until it ends.
pub(crate) async fn serve<I: AsyncRead + AsyncWrite + Unpin>(sim: &Inner, io: I, hooks: Hooks<I>) {
    let limits = &sim.options.limits;
    let mut conn = Conn::new(io, hooks, limits.write_timeout);
    let Some(_connected) = sim.counters.connect(limits.max_connections) else {
        let problem = Problem::new(503, "server_error", "too many connections");
        let _ = send_canned(sim, &mut conn, &Canned::error(Dialect::OpenAi, &problem), false).await;
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
                match send_canned(sim, &mut conn, &Canned::error(Dialect::OpenAi, &problem), false)
                    .await
                {
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
    let Some(target) = Target::of(&head) else {
        let body = conn.read_body(&head, limits).await?;
        let canned = addresses::answer(sim, &head, &body);
        return Ok(send_canned(sim, conn, &canned, head.keep_alive).await.unwrap_or(After::Close));
    };
    let control = sim.control();
    let number = sim.counters.next_number();
    let mut prng = Prng::for_request(sim.options.seed, number);
    let drawn = draw(&control, &mut prng);
    let outage = sim.is_down(&control).then_some(control.outage_fault);
    if outage.is_some() {
        sim.counters.outage();
    }
    let key = sim.key_label(&control, head.key.as_deref());
    let mut arrival = Arrival {
        path: target.path(),
        key: &key,
        model: None,
        reused,
        client_request_id: head.client_request_id.as_deref(),
        texts: 0,
    };
    if unread(&head, outage, drawn) {
        return Ok(leave_unread(sim, conn, &arrival).await);
    }
    let body = conn.read_body(&head, limits).await?;
    // The clock of the reply starts when the request is complete, before it is looked at.
    let started = Instant::now();
    let request = Request::read(&head, target, &body);
    drop(body);
    if let Ok((request, _)) = &request {
        arrival.model = Some(request.model().base());
        arrival.texts = request.texts();
        if let Request::Chat(chat) = request {
            sim.prompts.note(chat);
        }
    }
    // An outage is no matter of limits.
    let max = control.max_concurrent.filter(|_| outage.is_none());
    let Some(mut flight) = sim.counters.enter(&arrival, max) else {
        let canned = too_many_at_once(target.dialect());
        return Ok(send_canned(sim, conn, &canned, head.keep_alive).await.unwrap_or(After::Close));
    };
    let (head, control) = (&head, &*control);
    let call = Call { head, target, control, arrival, number, started, prng, drawn, outage };
    let result = match &request {
        Ok((request, overrides)) => sim.reply(conn, &mut flight, call, request, overrides).await,
        Err(problem) => sim.refuse(conn, &mut flight, &call, problem).await,
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

/// Whether the request's body is to be left unread. Only an outage, the header and the flag can say so before it is
/// read.
fn unread(head: &Head, outage: Option<FaultSpec>, drawn: Option<FaultSpec>) -> bool {
    let spec = match (&head.overrides, outage) {
        (_, Some(outage)) => Some(outage),
        (Ok(Overrides { fault: Some(name), .. }), None) => name.parse().ok(),
        (Ok(Overrides { fault: None, .. }), None) => drawn,
        (Err(_), None) => None,
    };
    spec.is_some_and(|spec| spec.fault == Fault::NoRead)
}

/// Neither reads nor answers.
async fn leave_unread<I: AsyncRead + AsyncWrite + Unpin>(
    sim: &Inner,
    conn: &mut Conn<I>,
    arrival: &Arrival<'_>,
) -> After {
    let flight = sim.counters.enter(arrival, None);
    sim.counters.fault(Fault::NoRead);
    let result = conn.ignore(sim.options.limits.hold).await;
    if let (Some(mut flight), Err(Lost::Gone)) = (flight, result) {
        flight.abort();
    }
    After::Reset
}

fn too_many_at_once(dialect: Dialect) -> Canned {
    let problem =
        Problem::new(429, "requests", "Too many concurrent requests.").code("rate_limit_exceeded");
    Canned::error(dialect, &problem).with("retry-after", 1)
}

/// The fault of the settings, if this request draws it.
fn draw(control: &Control, prng: &mut Prng) -> Option<FaultSpec> {
    let chance = prng.next_f64();
    control.fault.filter(|_| chance < control.fault_rate)
}

/// What is asked of the model.
#[derive(Clone, Copy)]
enum Target {
    Chat(Dialect),
    Embeddings,
}

impl Target {
    fn of(head: &Head) -> Option<Self> {
        let path = head.path.as_str();
        let chat = Dialect::ALL.into_iter().find(|dialect| dialect.path() == path);
        let target = chat.map(Self::Chat);
        let target = target.or((path == EMBEDDINGS).then_some(Self::Embeddings));
        target.filter(|_| head.method == Method::Post)
    }

    fn path(self) -> &'static str {
        match self {
            Self::Chat(dialect) => dialect.path(),
            Self::Embeddings => EMBEDDINGS,
        }
    }

    /// Whose words refusals and errors are in.
    fn dialect(self) -> Dialect {
        match self {
            Self::Chat(dialect) => dialect,
            Self::Embeddings => Dialect::OpenAi,
        }
    }
}

pub(crate) const EMBEDDINGS: &str = "/embeddings";

/// A request for the model.
enum Request {
    Chat(Chat),
    Embed(Embed),
}

impl Request {
    fn read(head: &Head, target: Target, body: &[u8]) -> Result<(Self, Overrides), Problem> {
        let overrides = head.overrides.clone()?;
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
        let request = match target {
            Target::Chat(Dialect::Anthropic) if !head.anthropic_version => {
                return Err(Problem::invalid("anthropic-version: header is required"));
            }
            Target::Chat(dialect) => Self::Chat(dialect.read(&body)?),
            Target::Embeddings => Self::Embed(Embed::read(&body)?),
        };
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

    fn texts(&self) -> usize {
        match self {
            Self::Chat(_) => 0,
            Self::Embed(embed) => embed.len(),
        }
    }

    /// The tokens that the request announces: its own, and as many as the reply may have.
    fn announced(&self) -> u64 {
        match self {
            Self::Chat(chat) => {
                chat.prompt_tokens() as u64 + u64::from(chat.max_tokens.unwrap_or(0))
            }
            Self::Embed(embed) => embed.tokens() as u64,
        }
    }
}

/// What is known of a request besides its body.
struct Call<'a> {
    head: &'a Head,
    target: Target,
    control: &'a Control,
    arrival: Arrival<'a>,
    number: u64,
    started: Instant,
    prng: Prng,
    drawn: Option<FaultSpec>,
    outage: Option<FaultSpec>,
}

impl Call<'_> {
    fn key(&self) -> &str {
        self.head.key.as_deref().unwrap_or_default()
    }
}

impl Inner {
    /// The key as `/stats` shows it: whole if the settings name it, else only its end, because it may be a real one.
    fn key_label(&self, control: &Control, key: Option<&str>) -> String {
        match key {
            None => "(none)".to_owned(),
            Some(key) if control.keys.contains_key(key) => key.to_owned(),
            Some(key) => {
                let tail: Vec<char> = key.chars().rev().take(4).collect();
                tail.iter()
                    .rev()
                    .fold("…".to_owned(), |label, c| label + c.encode_utf8(&mut [0; 4]))
            }
        }
    }

    async fn reply<'s, I: AsyncRead + AsyncWrite + Unpin>(
        &'s self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'s>,
        mut call: Call<'_>,
        request: &Request,
        overrides: &Overrides,
    ) -> Result<After, Lost> {
        let dialect = call.target.dialect();
        let (spec, rate_headers) = match call.outage {
            Some(outage) => (Some(outage), Vec::new()),
            None => {
                if let Some(canned) = self.bad_key(&mut call, request) {
                    flight.refuse(&call.arrival, Refusal::Key);
                    return send_canned(self, conn, &canned, call.head.keep_alive).await;
                }
                let rate_headers = match self.admit(&call, request) {
                    Ok(headers) => headers,
                    Err((why, canned)) => {
                        flight.refuse(&call.arrival, why);
                        return send_canned(self, conn, &canned, call.head.keep_alive).await;
                    }
                };
                match choose(overrides, request.model(), call.drawn) {
                    Ok(spec) => (spec, rate_headers),
                    Err(problem) => return self.refuse(conn, flight, &call, &problem).await,
                }
            }
        };
        if let Request::Embed(embed) = request
            && embed.deadly()
        {
            return self.refuse(conn, flight, &call, &poison()).await;
        }
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
        let mut headers =
            vec![(dialect.request_id_header(), format!("req_sim_{:012x}", call.number))];
        headers.extend(rate_headers);
        self.speak(conn, flight, call, request, overrides, (plan, headers)).await
    }

    fn act(&self, spec: FaultSpec, call: &mut Call<'_>, request: &Request) -> Option<Action> {
        let model = request.model().base();
        let facts = Facts {
            kind: request.kind(),
            dialect: call.target.dialect(),
            model,
            prefilled: request.prefilled(),
            poisoned: request.poisoned(),
            reused: call.arrival.reused,
            uptime: Duration::from_millis(self.counters.uptime_ms()),
            now_s: self.now_s(),
            chance: call.prng.next_u64(),
        };
        act(spec, &facts, || self.counters.first_time(model, spec.fault))
    }

    /// The answer to a key that is not good.
    fn bad_key(&self, call: &mut Call<'_>, request: &Request) -> Option<Canned> {
        let spec = call.control.keys.get(call.key())?.fault()?;
        match self.act(spec, call, request)? {
            Action::Answer(canned) => Some(canned),
            Action::Reply(_) | Action::Hang | Action::Reset => None,
        }
    }

    /// Takes the request out of its account: what to say of the rest, or the refusal.
    fn admit(
        &self,
        call: &Call<'_>,
        request: &Request,
    ) -> Result<Vec<(&'static str, String)>, (Refusal, Canned)> {
        let dialect = call.target.dialect();
        let shown = |left| {
            let shown = self.options.rate_headers.then(|| headers(dialect, left, self.now_s()));
            shown.unwrap_or_default()
        };
        match self.accounts.admit(call.key(), call.control.rates(), request.announced()) {
            Ok(left) => Ok(shown(&left)),
            Err(Refused { left, wait, limit }) => {
                let (why, unit) = match limit {
                    Limit::Requests => (Refusal::Requests, "requests"),
                    Limit::Tokens => (Refusal::Tokens, "tokens"),
                };
                let message = format!(
                    "Rate limit reached for {} on {unit} per min. Please try again in {}s.",
                    request.model().base(),
                    wait.as_secs_f64()
                );
                let problem = Problem::new(429, unit, message).code("rate_limit_exceeded");
                let mut canned = Canned::error(dialect, &problem);
                if self.options.rate_headers {
                    canned = canned
                        .with("retry-after", whole_seconds(wait))
                        .with("retry-after-ms", wait.as_millis());
                    canned.headers.extend(shown(&left));
                }
                Err((why, canned))
            }
        }
    }

    /// Counts what a reply costs, and corrects what its request announced.
    fn charge(&self, call: &Call<'_>, request: &Request, tokens: u64) {
        self.counters.count_tokens(tokens);
        if call.control.tpm.is_some() && call.outage.is_none() {
            self.accounts.settle(call.key(), request.announced(), tokens);
        }
    }

    /// Gives the reply of the model as planned.
    async fn speak<'s, I: AsyncRead + AsyncWrite + Unpin>(
        &'s self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'s>,
        call: Call<'_>,
        request: &Request,
        overrides: &Overrides,
        (plan, headers): (Plan, Vec<(&'static str, String)>),
    ) -> Result<After, Lost> {
        let Control { ttft, token_interval, tokens, .. } = *call.control;
        let interval = plan.interval.or(overrides.token_interval).unwrap_or(token_interval);
        let ttft = plan.ttft.or(overrides.ttft).unwrap_or(ttft);
        let job = Job {
            plan,
            pace: Pace { ttft, interval, jitter: self.options.jitter },
            started: call.started,
            dialect: call.target.dialect(),
            headers,
            keep_alive: call.head.keep_alive,
            chunks: call.head.version_11,
            prng: call.prng.clone(),
            counters: &self.counters,
            limits: &self.options.limits,
        };
        let chat = match request {
            Request::Chat(chat) => chat,
            Request::Embed(embed) => {
                self.charge(&call, request, embed.tokens() as u64);
                let Plan { embedding, payload, no_usage, .. } = job.plan;
                let body = embed.body(embedding, payload, no_usage).await;
                return whole::whole(Writer::new(conn, flight, &job), body, 0).await;
            }
        };
        let tokens = overrides.tokens.or(tokens);
        let reply = match Reply::new(&self.script, chat, tokens) {
            Ok(reply) => planned(reply, &job.plan),
            Err(problem) => return self.refuse(conn, flight, &call, &problem).await,
        };
        let usage = Usage::of(chat, &reply);
        self.charge(&call, request, usage.total() as u64);
        let usage = Some(usage).filter(|_| !job.plan.no_usage);
        let model = chat.model.name.clone();
        let signature = Signature { number: call.number, created: self.now_s(), model };
        let words = job.dialect.words(signature, chat);
        let writer = Writer::new(conn, flight, &job);
        if chat.stream {
            return stream::stream(writer, &*words, &reply, usage).await;
        }
        let parts = if job.plan.payload == Payload::NoChoices { Vec::new() } else { reply.parts() };
        let told = Told { parts: &parts, finish: reply.finish, usage };
        let body = words.whole(&told).to_string().into_bytes();
        whole::whole(writer, body, reply.pieces.len()).await
    }

    async fn refuse<I: AsyncRead + AsyncWrite + Unpin>(
        &self,
        conn: &mut Conn<I>,
        flight: &mut Flight<'_>,
        call: &Call<'_>,
        problem: &Problem,
    ) -> Result<After, Lost> {
        self.counters.bad_request();
        flight.release();
        let canned = Canned::error(call.target.dialect(), problem);
        send_canned(self, conn, &canned, call.head.keep_alive).await
    }
}

/// The fault that holds for a request: its own, its model's, or the one it drew.
fn choose(
    overrides: &Overrides,
    model: &Model,
    drawn: Option<FaultSpec>,
) -> Result<Option<FaultSpec>, Problem> {
    match overrides.fault.as_deref() {
        Some("none") => Ok(None),
        Some(name) => name
            .parse()
            .map(Some)
            .map_err(|error| Problem::invalid(format!("header x-sim-fault: {error}"))),
        None => Ok(model.fault.or(drawn)),
    }
}

/// The reply as the plan needs it.
fn planned(mut reply: Reply, plan: &Plan) -> Reply {
    if plan.payload == Payload::CutToolCall {
        return Reply::cut_call();
    }
    if let Opening::Reasoning(duration) = plan.opening {
        let beats = duration.as_nanos().div_ceil(BEAT.as_nanos()).saturating_sub(1);
        reply.thoughts = Some(Pieces::thoughts(u32::try_from(beats).unwrap_or(u32::MAX)));
    }
    if plan.wire.fragments == Fragments::HalfCharacters && reply.tool.is_none() {
        reply.pieces = reply.pieces.with_wide_characters();
    }
    reply
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
