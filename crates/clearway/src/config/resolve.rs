//! From names to things: every reference is looked up, every default filled in.
//!
//! Also here: what exists without being written down. The providers `openai`, `anthropic` and
//! `ollama` when the environment has a key or an address for them, the provider `sim`, the model
//! `default`, models that embed where the file has none, the pool `chat`, and the built-in agents
//! in a file that has none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clearway_engine::upstream::{Commit, EmbeddingModel, Endpoint, Kind};
use serde_json::Map;

use super::env::Env;
use super::models::ModelDraft;
use super::providers::usual_url;
use super::read::{AgentDraft, Draft};
use super::report::Problem;
use super::tools::{self, Names, ToolKind};
use super::walk::{At, Walk, nearest};
use super::workflow::{self, Workflow, WorkflowDraft};
use super::{
    ANTHROPIC, Agent, Config, DEFAULT_AGENT, DEFAULT_MODEL, Http, Key, Model, OLLAMA, OPENAI,
    Origin, Pool, Provider, ProviderKind, Remote, SIM, Secret, Server, Sim, Webhooks, doors,
    knowledge,
};

const OPENAI_MODEL: &str = "gpt-5-mini";
const EMBEDDING_MODEL: &str = "text-embedding-3-small";
const EMBEDDING_DIMENSIONS: u32 = 1536;

const TURN: Duration = Duration::from_secs(120);
const WORKING: Duration = Duration::from_secs(30 * 60);
/// Enough for a long conversation, and a bound on what one turn costs.
const HISTORY_TOKENS: u32 = 16_000;

pub(super) fn config(walk: &Walk<'_>, draft: Draft, server: Server) -> Config {
    let mut pools = BTreeMap::from([("chat".to_owned(), Pool { slots: 1024, queue: 4096 })]);
    pools.extend(draft.pools);
    let default = default_model(&draft.providers, &draft.models, walk.env);
    let mut providers = draft.providers;
    add_providers(walk, &mut providers);
    note_fallbacks(walk, &draft.models, matches!(default, Some(Default::New(_))));
    let mut models: BTreeMap<String, Model> = draft
        .models
        .into_iter()
        .map(|(name, model)| (name, resolve_model(walk, &providers, model)))
        .collect();
    if let Some(default) = default {
        let model = match default {
            Default::Same(name) => models[&name].clone(),
            Default::New(model) => *model,
        };
        models.insert(DEFAULT_MODEL.to_owned(), model);
    }
    // Names as written: an agent with an error in it is not missing as well.
    let names: Vec<String> = draft.agents.keys().cloned().collect();
    let default_agent = choose_default_agent(&draft.agents);
    let tools = Names {
        workflows: draft.workflows.keys().cloned().collect(),
        mcp: draft.mcp.keys().cloned().collect(),
        knowledge: draft.knowledge.keys().cloned().collect(),
    };
    let mut agents: BTreeMap<String, Agent> = draft
        .agents
        .into_iter()
        .filter_map(|(name, agent)| {
            Some((name.clone(), resolve_agent(walk, &name, &models, &pools, &tools, agent)?))
        })
        .collect();
    let default_agent = default_agent.unwrap_or_else(|| {
        agents = built_in_agents(walk, &models, &tools);
        "cofounder".to_owned()
    });
    doors::note_collisions(walk, &draft.doors);
    for door in draft.doors.values() {
        if let Some(agent) = &door.agent
            && agent.value != DEFAULT_AGENT
        {
            let built_in = names.is_empty().then(|| agents.keys()).into_iter().flatten();
            let all = names.iter().chain(built_in).chain(draft.workflows.keys());
            known(walk, "agent", agent, all);
        }
        if let Some(source) = &door.source {
            known(walk, "knowledge", source, draft.knowledge.keys());
        }
    }
    let around = Around { models: &models, agents: &agents, tools: &tools, http: &draft.http };
    let workflows = resolve_workflows(walk, draft.workflows, &around, &mut pools);
    add_embeddings(&providers, &mut models);
    for cron in draft.crons.values() {
        let all = agents.keys().chain(workflows.keys());
        if cron.runs.value != DEFAULT_AGENT {
            known(walk, "agent or workflow", &cron.runs, all);
        }
    }
    let crons = draft.crons.into_iter().map(|(name, draft)| (name, draft.cron)).collect();
    let (knowledge, uploads) =
        knowledge::resolve(walk, draft.knowledge, draft.uploads, &models, |walk, model| {
            known(walk, "model", model, models.keys())
        });
    let doors = draft.doors.into_iter().map(|(name, door)| (name, door.door)).collect();
    Config {
        origin: Origin::Text,
        server,
        providers,
        models,
        pools,
        agents,
        workflows,
        http: draft.http,
        mcp: draft.mcp.into_iter().filter_map(|(name, mcp)| Some((name, mcp?))).collect(),
        knowledge,
        uploads,
        doors,
        telemetry: None,
        auth: Vec::new(),
        webhooks: Webhooks::default(),
        alerts: clearway_engine::Alerts::default(),
        crons,
        default_agent,
        files: Vec::new(),
        warnings: Vec::new(),
        ignored_variables: Vec::new(),
    }
}

fn resolve_workflows(
    walk: &Walk<'_>,
    mut drafts: BTreeMap<String, WorkflowDraft>,
    around: &Around<'_>,
    pools: &mut BTreeMap<String, Pool>,
) -> BTreeMap<String, Workflow> {
    let names: Vec<String> = drafts.keys().cloned().collect();
    if !drafts.is_empty() {
        pools.entry(workflow::POOL.to_owned()).or_insert(Pool { slots: 16, queue: 1000 });
    }
    for (name, draft) in &drafts {
        for (what, used) in &draft.uses {
            match *what {
                "model" => known(walk, "model", used, around.models.keys()),
                "agent" => known(walk, "agent", used, around.agents.keys()),
                "knowledge" => known(walk, "knowledge", used, around.tools.knowledge.iter()),
                "host" => permitted(walk, around.http, used),
                "mcp" => known(walk, "mcp", used, around.tools.mcp.iter()),
                _ => known(walk, "workflow", used, names.iter()),
            };
        }
        if let Some(pool) = &draft.pool {
            known(walk, "pool", pool, pools.keys());
        }
        if calls_itself(&drafts, name) {
            let place = draft.uses.iter().find(|(what, _)| *what == "workflow");
            let text = format!("workflow `{name}` runs itself, directly or through others");
            if let Some((_, used)) = place {
                walk.note(problem_at(walk, Problem::new(text), used, "round and round"));
            }
        }
    }
    for draft in drafts.values_mut() {
        for (at, refs) in std::mem::take(&mut draft.tools) {
            let resolved = tools::resolve(walk, refs, around.tools, &[]);
            if let workflow::StepKind::Llm { tools, .. } = &mut draft.workflow.steps[at].kind {
                *tools = resolved;
            }
        }
    }
    drafts.into_iter().map(|(name, draft)| (name, draft.workflow)).collect()
}

/// What workflows may name.
struct Around<'a> {
    models: &'a BTreeMap<String, Model>,
    agents: &'a BTreeMap<String, Agent>,
    tools: &'a Names,
    http: &'a Http,
}

/// Notes a problem unless `http` steps may ask this host.
fn permitted(walk: &Walk<'_>, http: &Http, host: &At<String>) -> bool {
    if http.permits(&host.value) {
        return true;
    }
    let help = match http.hosts.is_empty() {
        true => format!("add [http] hosts = [\"{}\"]", host.value),
        false => format!("add it to [http] hosts; there are: {}", http.hosts.join(", ")),
    };
    let text = format!("`http` steps may not ask `{}`", host.value);
    walk.note(problem_at(walk, Problem::new(text).help(help), host, "not permitted"));
    false
}

fn calls_itself(drafts: &BTreeMap<String, WorkflowDraft>, name: &str) -> bool {
    let called = |name: &str| {
        let uses = drafts.get(name).map(|draft| draft.uses.as_slice()).unwrap_or_default();
        uses.iter().filter(|(what, _)| *what == "workflow").map(|(_, used)| used.value.clone())
    };
    let mut seen = BTreeSet::new();
    let mut open: Vec<String> = called(name).collect();
    while let Some(next) = open.pop() {
        if next == name {
            return true;
        }
        if seen.insert(next.clone()) {
            open.extend(called(&next));
        }
    }
    false
}

/// Notes a problem unless `name` is one of `names`.
fn known<'n>(
    walk: &Walk<'_>,
    what: &str,
    name: &At<String>,
    names: impl Iterator<Item = &'n String> + Clone,
) -> bool {
    if names.clone().any(|known| *known == name.value) {
        return true;
    }
    let list: Vec<&str> = names.clone().map(String::as_str).collect();
    let help = match nearest(&name.value, list.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if list.is_empty() && matches!(what, "knowledge" | "mcp") => {
            format!("there is none: add [{what}.{}]", name.value)
        }
        None if list.is_empty() => format!("there are no {what}s: add [{what}s.{}]", name.value),
        None => format!("there are: {}", list.join(", ")),
    };
    let problem = Problem::new(format!("there is no {what} `{}`", name.value)).help(help);
    walk.note(problem_at(walk, problem, name, "not defined"));
    false
}

fn problem_at(walk: &Walk<'_>, problem: Problem, name: &At<String>, label: &str) -> Problem {
    match &name.span {
        Some(span) => problem.at(&walk.source, span.clone(), label),
        None => problem,
    }
}

/// The providers that exist without being in the file.
fn add_providers(walk: &Walk<'_>, providers: &mut BTreeMap<String, Provider>) {
    let of_environment = [
        (OPENAI, "OPENAI_BASE_URL", openai_of_environment(walk.env)),
        (ANTHROPIC, "ANTHROPIC_API_KEY", anthropic_of_environment(walk.env)),
        (OLLAMA, "OLLAMA_HOST", ollama_of_environment(walk.env)),
    ];
    for (name, variable, remote) in of_environment {
        let Some(remote) = remote.filter(|_| !providers.contains_key(name)) else { continue };
        if let Err(why) = Endpoint::parse(&remote.base_url) {
            // People put passwords into addresses, so the value is not repeated.
            let why = why.replace(&format!("{:?} ", remote.base_url), "it ");
            let problem = Problem::new(format!("{variable}: {why}"));
            walk.note(problem.help(format!("such as {}", usual_url(remote.speaks))));
        }
        providers.insert(name.to_owned(), Provider::new(ProviderKind::Remote(remote)));
    }
    let sim = || Provider::new(ProviderKind::Sim(Sim::default()));
    providers.entry(SIM.to_owned()).or_insert_with(sim);
}

/// A key or an address in the environment makes a provider; servers on the own machine need no key.
fn openai_of_environment(env: &Env) -> Option<Remote> {
    let key = env.get("OPENAI_API_KEY");
    let base_url = env.get("OPENAI_BASE_URL").map(|url| url.trim().to_owned());
    (key.is_some() || base_url.is_some()).then(|| plain_remote(Kind::OpenAi, key, base_url))
}

fn anthropic_of_environment(env: &Env) -> Option<Remote> {
    let key = env.get("ANTHROPIC_API_KEY")?;
    Some(plain_remote(Kind::Anthropic, Some(key), None))
}

fn ollama_of_environment(env: &Env) -> Option<Remote> {
    let host = env.get("OLLAMA_HOST")?;
    Some(plain_remote(Kind::Ollama, None, Some(ollama_url(host.trim()))))
}

/// `OLLAMA_HOST` is what the server binds to, in its own short form: `0.0.0.0`, `:11434`, `box:80`.
fn ollama_url(host: &str) -> String {
    if host.contains("://") {
        return host.to_owned();
    }
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
        Some(_) | None => (host, "11434"),
    };
    let name = if matches!(name, "" | "0.0.0.0" | "[::]") { "127.0.0.1" } else { name };
    format!("http://{name}:{port}")
}

fn plain_remote(speaks: Kind, key: Option<&str>, base_url: Option<String>) -> Remote {
    Remote {
        speaks,
        base_url: base_url.unwrap_or_else(|| usual_url(speaks).to_owned()),
        keys: key
            .map(|key| Key { name: None, secret: Secret::new(key.trim()) })
            .into_iter()
            .collect(),
        headers: Vec::new(),
        ca_file: None,
    }
}

/// Where the file has no model that embeds: two names for the usual one, at the provider `openai`
/// or at the simulator, if anything there is used anyhow.
fn add_embeddings(providers: &BTreeMap<String, Provider>, models: &mut BTreeMap<String, Model>) {
    if models.values().any(|model| model.embedding.is_some()) {
        return;
    }
    let is_used = |name: &str| models.values().any(|model| model.provider == name);
    let provider = if providers.get(OPENAI).is_some_and(is_openai) && is_used(OPENAI) {
        OPENAI
    } else if matches!(&providers[SIM].kind, ProviderKind::Sim(_)) && is_used(SIM) {
        SIM
    } else {
        return;
    };
    for name in ["embed", EMBEDDING_MODEL] {
        let model = plain_model(provider.to_owned(), EMBEDDING_MODEL.to_owned());
        let embedding = Some(EmbeddingModel { dimensions: Some(EMBEDDING_DIMENSIONS) });
        models.entry(name.to_owned()).or_insert(Model { embedding, ..model });
    }
}

/// What the name `default` stands for when the file does not say.
enum Default {
    /// The only model of the file that answers.
    Same(String),
    New(Box<Model>),
}

/// `None` when the file defines it, or when it is not clear which model is meant.
fn default_model(
    providers: &BTreeMap<String, Provider>,
    models: &BTreeMap<String, ModelDraft>,
    env: &Env,
) -> Option<Default> {
    if models.contains_key(DEFAULT_MODEL) {
        return None;
    }
    let answering = models.iter().filter(|(_, model)| model.embedding.is_none());
    let mut names = answering.map(|(name, _)| name);
    match (names.next(), names.next()) {
        (Some(only), None) => return Some(Default::Same(only.clone())),
        (Some(_), Some(_)) => return None,
        (None, _) => {}
    }
    let real: Vec<&String> = providers
        .iter()
        .filter(|(_, provider)| is_openai(provider))
        .map(|(name, _)| name)
        .collect();
    let provider = match real.as_slice() {
        [only] => (*only).clone(),
        [] if openai_of_environment(env).is_some() => OPENAI.to_owned(),
        [] => {
            let model = SIM.to_owned();
            return Some(Default::New(Box::new(plain_model(SIM.to_owned(), model))));
        }
        several => {
            several.iter().find(|name| name.as_str() == OPENAI).map(|name| (*name).clone())?
        }
    };
    let model = env.get("OPENAI_MODEL").map_or(OPENAI_MODEL, str::trim);
    Some(Default::New(Box::new(plain_model(provider, model.to_owned()))))
}

/// Whether it has, or imitates, the models that are known here by name.
fn is_openai(provider: &Provider) -> bool {
    matches!(&provider.kind, ProviderKind::Remote(remote)
        if matches!(remote.speaks, Kind::OpenAi | Kind::Responses))
}

fn plain_model(provider: String, model: String) -> Model {
    let reasoning = thinks_first(&model);
    Model {
        provider,
        model,
        params: Map::new(),
        context_tokens: None,
        reasoning,
        deadline: None,
        embedding: None,
        fallback: Vec::new(),
        spread: Vec::new(),
        weight: 1,
        affinity: false,
        commit: Commit::Fail,
        prefill: false,
        price: None,
    }
}

/// Models that are known to be silent for long before their first token, by name.
fn thinks_first(model: &str) -> bool {
    let name = model.rsplit('/').next().unwrap_or(model);
    ["gpt-5", "o1", "o3", "o4"].iter().any(|prefix| name.starts_with(prefix))
        && !name.contains("chat")
}

fn resolve_model(
    walk: &Walk<'_>,
    providers: &BTreeMap<String, Provider>,
    draft: ModelDraft,
) -> Model {
    if let Some(provider) = &draft.provider {
        known(walk, "provider", provider, providers.keys());
        if draft.embedding.is_some() {
            note_no_embeddings(walk, provider, providers);
        }
    }
    Model {
        provider: draft.provider.map(|provider| provider.value).unwrap_or_default(),
        reasoning: draft.reasoning.unwrap_or_else(|| thinks_first(&draft.model)),
        model: draft.model,
        params: draft.params,
        context_tokens: draft.context_tokens,
        deadline: draft.deadline,
        embedding: draft.embedding,
        fallback: draft.fallback.into_iter().map(|name| name.value).collect(),
        spread: draft.spread.into_iter().map(|name| name.value).collect(),
        weight: draft.weight,
        affinity: draft.affinity,
        commit: draft.commit,
        prefill: draft.prefill,
        price: draft.price,
    }
}

/// Embeddings are asked for in OpenAI's way, whatever the provider speaks otherwise.
fn note_no_embeddings(
    walk: &Walk<'_>,
    provider: &At<String>,
    providers: &BTreeMap<String, Provider>,
) {
    let Some(ProviderKind::Remote(remote)) =
        providers.get(&provider.value).map(|provider| &provider.kind)
    else {
        return;
    };
    let help = match remote.speaks {
        Kind::OpenAi | Kind::Responses => return,
        Kind::Anthropic => "Anthropic has none: use another provider",
        Kind::Ollama => {
            "Ollama has them at /v1: add a provider with kind = \"openai\" and base_url = \"http://127.0.0.1:11434/v1\""
        }
    };
    let kind = remote.speaks.as_str();
    let problem = Problem::new(format!("providers of the kind `{kind}` have no embeddings"));
    walk.note(problem_at(walk, problem, provider, "cannot embed").help(help));
}

/// Whether every fallback and equal is a model that can answer instead. Cycles are harmless: a call follows
/// the list of its own model and no other.
fn note_fallbacks(walk: &Walk<'_>, models: &BTreeMap<String, ModelDraft>, has_default: bool) {
    let default = has_default.then(|| DEFAULT_MODEL.to_owned());
    let names = || models.keys().chain(default.iter());
    for (name, model) in models {
        let fallbacks = model.fallback.iter().map(|other| ("fallback", other));
        for (key, fallback) in fallbacks.chain(model.spread.iter().map(|other| ("spread", other))) {
            let other = models.get(&fallback.value);
            let (what, label) = if fallback.value == *name {
                let what = if key == "spread" {
                    "it is one of them anyway"
                } else {
                    "it cannot be its own fallback"
                };
                (what, "itself")
            } else if model.embedding.is_some() {
                ("vectors of different models do not compare", "a model that embeds has none")
            } else if other.is_some_and(|other| other.embedding.is_some()) {
                ("a model that embeds cannot answer instead", "embeds")
            } else {
                known(walk, "model", fallback, names().filter(|other| *other != name));
                continue;
            };
            let problem = Problem::new(format!("`models.{name}.{key}`: {what}"));
            walk.note(problem_at(walk, problem, fallback, label));
        }
    }
}

/// `agent` if there is one, else `cofounder`, else the first of the file; `None` without agents.
fn choose_default_agent(agents: &BTreeMap<String, AgentDraft>) -> Option<String> {
    let named = [DEFAULT_AGENT, "cofounder"].into_iter().find(|name| agents.contains_key(*name));
    let first =
        || agents.iter().min_by_key(|(_, agent)| agent.span.start).map(|(name, _)| name.clone());
    named.map(ToOwned::to_owned).or_else(first)
}

fn resolve_agent(
    walk: &Walk<'_>,
    name: &str,
    models: &BTreeMap<String, Model>,
    pools: &BTreeMap<String, Pool>,
    names: &Names,
    draft: AgentDraft,
) -> Option<Agent> {
    let model = match draft.model {
        Some(model) => {
            known(walk, "model", &model, models.keys());
            if models.get(&model.value).is_some_and(|model| model.embedding.is_some()) {
                let problem = Problem::new(format!(
                    "the model `{}` embeds texts, and an agent needs one that answers",
                    model.value
                ));
                walk.note(problem_at(walk, problem, &model, "embeds"));
            }
            model.value
        }
        None => {
            if !models.contains_key(DEFAULT_MODEL) {
                note_no_default(walk, &format!("agents.{name}"), models, &draft.span);
            }
            DEFAULT_MODEL.to_owned()
        }
    };
    let pool = draft.pool.unwrap_or(At { value: "chat".to_owned(), span: None });
    known(walk, "pool", &pool, pools.keys());
    // A quarter of the context is left for the answer.
    let context = models.get(&model).and_then(|model| model.context_tokens);
    let history = context.map_or(HISTORY_TOKENS, |context| HISTORY_TOKENS.min(context / 4 * 3));
    let parts: Vec<&str> = draft.state.keys().map(String::as_str).collect();
    let tools = tools::resolve(walk, draft.tools, names, &parts);
    tools::check_confirm(walk, &draft.confirm, &tools);
    if let Some(cite) = &draft.cite
        && !tools.iter().any(|tool| tool.kind == ToolKind::Search)
    {
        let place = At { value: String::new(), span: cite.span.clone() };
        let text = format!("`agents.{name}.cite`: there is nothing to cite");
        let problem = problem_at(walk, Problem::new(text), &place, "no sources");
        walk.note(problem.help("give it a source: tools = [\"search:NAME\"]"));
    }
    // Such an agent answers within one node, and an approval would end it with what it found.
    if draft.cite.is_some()
        && let Some(pattern) = draft.confirm.first()
    {
        let text = format!("`agents.{name}`: an agent with `cite` cannot ask for approval");
        let problem = problem_at(walk, Problem::new(text), pattern, "would ask nobody");
        walk.note(problem.help("leave out `cite`, or give these tools to another agent"));
    }
    Some(Agent {
        title: draft.title.unwrap_or_else(|| name.to_owned()),
        model,
        prompt: draft.prompt?,
        pool: pool.value,
        deadline: draft.deadline.unwrap_or(TURN),
        working_limit: draft.working_limit.unwrap_or(WORKING),
        when_busy: draft.when_busy.unwrap_or_default(),
        history_tokens: draft.history_tokens.unwrap_or(history),
        keep: draft.keep.unwrap_or(clearway_engine::Keep::All),
        params: draft.params,
        tools,
        confirm: draft.confirm.into_iter().map(|pattern| pattern.value).collect(),
        tool_rounds: draft.tool_rounds.unwrap_or(clearway_engine::tool::ROUNDS),
        state: draft.state,
        cite: draft.cite.map(|cite| cite.value),
    })
}

fn note_no_default(
    walk: &Walk<'_>,
    path: &str,
    models: &BTreeMap<String, Model>,
    span: &std::ops::Range<usize>,
) {
    let problem = Problem::new(format!("`{path}` has no `model`, and there are several"));
    let names: Vec<&str> = models.keys().map(String::as_str).collect();
    let help = if names.is_empty() {
        "there are several providers: add [models] default = { provider = \"…\", model = \"…\" }"
            .to_owned()
    } else {
        format!("one of: {}; or name one of them `{DEFAULT_MODEL}`", names.join(", "))
    };
    walk.note(problem.at(&walk.source, span.clone(), "which model?").help(help));
}

/// The agents of the built-in examples, on the file's models.
fn built_in_agents(
    walk: &Walk<'_>,
    models: &BTreeMap<String, Model>,
    names: &Names,
) -> BTreeMap<String, Agent> {
    if walk.has_problems() {
        // What is missing may be missing because of an error that is noted already.
        return BTreeMap::new();
    }
    if !models.contains_key(DEFAULT_MODEL) {
        let problem = Problem::new(format!(
            "there are no agents, and the built-in one needs a model `{DEFAULT_MODEL}`"
        ));
        walk.note(
            problem.help("add [agents.NAME] with a model, or name one of the models `default`"),
        );
        return BTreeMap::new();
    }
    match Config::built_in(&Env::default()) {
        Ok(mut config) => {
            // Without what only the examples have.
            for agent in config.agents.values_mut() {
                let state: Vec<&str> = agent.state.keys().map(String::as_str).collect();
                agent.tools.retain(|tool| names.has(tool, &state));
            }
            config.agents.retain(|_, agent| agent.cite.is_none() || !agent.tools.is_empty());
            config.agents
        }
        Err(report) => {
            report.problems.into_iter().for_each(|problem| walk.note(problem));
            BTreeMap::new()
        }
    }
}
