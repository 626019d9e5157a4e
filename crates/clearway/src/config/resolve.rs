//! From names to things: every reference is looked up, every default filled in.
//!
//! Also here: what exists without being written down. The provider `openai` when the environment
//! has a key or an address for it, the provider `sim`, the model `default`, the pool `chat`,
//! and the built-in agents in a file that has none.

use std::collections::BTreeMap;
use std::time::Duration;

use clearway_engine::upstream::Endpoint;
use serde_json::Map;

use super::env::Env;
use super::read::{AgentDraft, Draft, ModelDraft};
use super::report::Problem;
use super::walk::{At, Walk, nearest};
use super::{
    Agent, Config, DEFAULT_AGENT, DEFAULT_MODEL, Deadlines, Model, OPENAI, Origin, Pool, Provider,
    ProviderKind, SIM, Secret, Server, Sim,
};

pub(super) const OPENAI_URL: &str = "https://api.openai.com/v1";
const OPENAI_MODEL: &str = "gpt-5-mini";

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
    let mut models: BTreeMap<String, Model> = draft
        .models
        .into_iter()
        .map(|(name, model)| (name, resolve_model(walk, &providers, model)))
        .collect();
    if let Some(default) = default {
        let model = match default {
            Default::Same(name) => models[&name].clone(),
            Default::New(model) => model,
        };
        models.insert(DEFAULT_MODEL.to_owned(), model);
    }
    // Names as written: an agent with an error in it is not missing as well.
    let names: Vec<String> = draft.agents.keys().cloned().collect();
    let default_agent = choose_default_agent(&draft.agents);
    let mut agents: BTreeMap<String, Agent> = draft
        .agents
        .into_iter()
        .filter_map(|(name, agent)| {
            Some((name.clone(), resolve_agent(walk, &name, &models, &pools, agent)?))
        })
        .collect();
    let default_agent = default_agent.unwrap_or_else(|| {
        agents = built_in_agents(walk, &models);
        "cofounder".to_owned()
    });
    for door in draft.doors.values() {
        if let Some(agent) = &door.agent
            && agent.value != DEFAULT_AGENT
        {
            let built_in = names.is_empty().then(|| agents.keys()).into_iter().flatten();
            known(walk, "agent", agent, names.iter().chain(built_in));
        }
    }
    let doors = draft.doors.into_iter().map(|(name, door)| (name, door.door)).collect();
    Config {
        origin: Origin::Text,
        server,
        providers,
        models,
        pools,
        agents,
        doors,
        default_agent,
        files: Vec::new(),
        warnings: Vec::new(),
        ignored_variables: Vec::new(),
    }
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
        None if list.is_empty() => format!("there are no {what}s: add [{what}s.{}]", name.value),
        None => format!("there are: {}", list.join(", ")),
    };
    let problem = Problem::new(format!("there is no {what} `{}`", name.value)).help(help);
    walk.note(match &name.span {
        Some(span) => problem.at(&walk.source, span.clone(), "not defined"),
        None => problem,
    });
    false
}

/// The providers that exist without being in the file.
fn add_providers(walk: &Walk<'_>, providers: &mut BTreeMap<String, Provider>) {
    let provider = |kind| Provider {
        kind,
        concurrent: None,
        queue: None,
        connections: None,
        keep_alive: None,
        deadline: Deadlines::default(),
    };
    if let Some(kind) = openai_of_environment(walk.env)
        && !providers.contains_key(OPENAI)
    {
        if let ProviderKind::OpenAi { base_url, .. } = &kind
            && let Err(why) = Endpoint::parse(base_url)
        {
            // People put passwords into addresses, so the value is not repeated.
            let why = why.replace(&format!("{base_url:?} "), "it ");
            let problem = Problem::new(format!("OPENAI_BASE_URL: {why}"));
            walk.note(problem.help(format!("such as {OPENAI_URL}")));
        }
        providers.insert(OPENAI.to_owned(), provider(kind));
    }
    providers.entry(SIM.to_owned()).or_insert_with(|| provider(ProviderKind::Sim(Sim::default())));
}

/// A key or an address in the environment makes a provider; servers on the own machine need no key.
fn openai_of_environment(env: &Env) -> Option<ProviderKind> {
    let api_key = env.get("OPENAI_API_KEY").map(|key| Secret::new(key.trim()));
    let base_url = env.get("OPENAI_BASE_URL").map(|url| url.trim().to_owned());
    if api_key.is_none() && base_url.is_none() {
        return None;
    }
    Some(ProviderKind::OpenAi {
        base_url: base_url.unwrap_or_else(|| OPENAI_URL.to_owned()),
        api_key,
        ca_file: None,
    })
}

/// What the name `default` stands for when the file does not say.
enum Default {
    /// The only model of the file.
    Same(String),
    New(Model),
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
    let mut names = models.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => return Some(Default::Same(only.clone())),
        (Some(_), Some(_)) => return None,
        (None, _) => {}
    }
    let real: Vec<&String> = providers
        .iter()
        .filter(|(_, provider)| matches!(provider.kind, ProviderKind::OpenAi { .. }))
        .map(|(name, _)| name)
        .collect();
    let provider = match real.as_slice() {
        [only] => (*only).clone(),
        [] if openai_of_environment(env).is_some() => OPENAI.to_owned(),
        [] => {
            let model = SIM.to_owned();
            return Some(Default::New(plain_model(SIM.to_owned(), model)));
        }
        several => {
            several.iter().find(|name| name.as_str() == OPENAI).map(|name| (*name).clone())?
        }
    };
    let model = env.get("OPENAI_MODEL").map_or(OPENAI_MODEL, str::trim);
    Some(Default::New(plain_model(provider, model.to_owned())))
}

fn plain_model(provider: String, model: String) -> Model {
    let reasoning = thinks_first(&model);
    Model { provider, model, params: Map::new(), context_tokens: None, reasoning, deadline: None }
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
    }
    Model {
        provider: draft.provider.map(|provider| provider.value).unwrap_or_default(),
        reasoning: draft.reasoning.unwrap_or_else(|| thinks_first(&draft.model)),
        model: draft.model,
        params: draft.params,
        context_tokens: draft.context_tokens,
        deadline: draft.deadline,
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
    draft: AgentDraft,
) -> Option<Agent> {
    let model = match draft.model {
        Some(model) => {
            known(walk, "model", &model, models.keys());
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
    Some(Agent {
        title: draft.title.unwrap_or_else(|| name.to_owned()),
        model,
        prompt: draft.prompt?,
        pool: pool.value,
        deadline: draft.deadline.unwrap_or(TURN),
        working_limit: draft.working_limit.unwrap_or(WORKING),
        when_busy: draft.when_busy.unwrap_or_default(),
        history_tokens: draft.history_tokens.unwrap_or(history),
        params: draft.params,
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
fn built_in_agents(walk: &Walk<'_>, models: &BTreeMap<String, Model>) -> BTreeMap<String, Agent> {
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
        Ok(config) => config.agents,
        Err(report) => {
            report.problems.into_iter().for_each(|problem| walk.note(problem));
            BTreeMap::new()
        }
    }
}
