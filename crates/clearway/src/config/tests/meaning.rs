//! What files that are right mean, and what goes before what.

use super::*;

#[test]
fn the_built_in_configuration_is_sound() {
    let config = Config::built_in(&Env::default()).unwrap();
    assert_eq!(config.default_agent, "cofounder");
    assert_eq!(config.agents["cofounder"].pool, "chat");
    assert_eq!(config.agents["cofounder"].when_busy, Multitask::Enqueue);
    let (model, provider) = config.default_model();
    assert_eq!(model.model, "sim");
    assert!(
        matches!(&provider.kind, ProviderKind::Sim(sim) if sim.script.len() == 18),
        "{provider:?}"
    );
    assert_eq!(config.warnings, [""; 0]);
}

fn remote(provider: &Provider) -> &Remote {
    match &provider.kind {
        ProviderKind::Remote(remote) => remote,
        ProviderKind::Sim(_) => panic!("{provider:?}"),
    }
}

fn secrets(remote: &Remote) -> Vec<&str> {
    remote.keys.iter().map(|key| key.secret.expose()).collect()
}

/// Names of models that embed, with their providers.
fn embedders(config: &Config) -> Vec<(&str, &str)> {
    let models = config.models.iter().filter(|(_, model)| model.embedding.is_some());
    models.map(|(name, model)| (name.as_str(), model.provider.as_str())).collect()
}

#[test]
fn a_key_in_the_environment_makes_the_model_real() {
    let config = Config::built_in(&env()).unwrap();
    let (model, provider) = config.default_model();
    assert_eq!((model.model.as_str(), model.reasoning), ("gpt-5-mini", true));
    let openai = remote(provider);
    assert_eq!(openai.base_url, "https://api.openai.com/v1");
    assert_eq!(secrets(openai), ["sk-very-secret"]);
    assert!(!format!("{config:?}").contains("very-secret"));

    let env =
        Env::new([("OPENAI_BASE_URL", "http://127.0.0.1:9000/v1"), ("OPENAI_MODEL", "llama")]);
    let config = Config::built_in(&env).unwrap();
    let (model, provider) = config.default_model();
    assert_eq!(model.model, "llama");
    let local = remote(provider);
    assert_eq!((local.base_url.as_str(), local.keys.len()), ("http://127.0.0.1:9000/v1", 0));
}

#[test]
fn other_providers_come_from_the_environment_too() {
    let base_url = |text: &str, vars: &[(&str, &str)], name: &str| {
        let config = parse_with(text, &Env::new(vars.iter().copied()));
        assert_eq!(config.default_model().0.provider, SIM, "nobody knows a model of theirs");
        remote(&config.providers[name]).base_url.clone()
    };
    let anthropic = [("ANTHROPIC_API_KEY", " sk-ant ")];
    assert_eq!(base_url("", &anthropic, ANTHROPIC), "https://api.anthropic.com/v1");
    let file = "[providers.house]\nkind = \"ollama\"\n";
    assert_eq!(base_url(file, &[], "house"), "http://127.0.0.1:11434");
    for (host, url) in [
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":9999", "http://127.0.0.1:9999"),
        ("box", "http://box:11434"),
        ("box:80", "http://box:80"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:80", "http://[::1]:80"),
        ("https://box/", "https://box/"),
    ] {
        assert_eq!(base_url("", &[("OLLAMA_HOST", host)], OLLAMA), url, "{host}");
    }
}

#[test]
fn there_is_a_model_that_embeds() {
    let sim = [("embed", "sim"), ("text-embedding-3-small", "sim")];
    assert_eq!(embedders(&Config::built_in(&Env::default()).unwrap()), sim);
    let openai = [("embed", "openai"), ("text-embedding-3-small", "openai")];
    let config = Config::built_in(&env()).unwrap();
    assert_eq!(embedders(&config), openai);
    assert_eq!(config.models["embed"].embedding.unwrap().dimensions, Some(1536));
    let own = "[models]\nx = { provider = \"openai\", model = \"m\", dimensions = 3 }\n";
    assert_eq!(embedders(&parse(own)), [("x", "openai")], "the file's own are enough");
    let house = "[providers.house]\nkind = \"openai\"\nbase_url = \"http://house/v1\"\n";
    assert_eq!(embedders(&parse(house)), [], "nothing else goes to another provider");
}

#[test]
fn keys_and_headers() {
    let env = Env::new([("A", "sk-a"), ("B", "sk-b\n"), ("ORG", "org-1")]);
    let config = parse_with(
        r#"
[providers.two]
kind = "openai-responses"
keys = ["${A}", { name = "team", key = "${B}" }]
headers = { OpenAI-Organization = "${ORG}", x-tag = "plain" }
[providers.claude]
kind = "anthropic"
api_key = "${A}"
"#,
        &env,
    );
    let two = remote(&config.providers["two"]);
    assert_eq!((two.speaks, secrets(two)), (Kind::Responses, vec!["sk-a", "sk-b"]));
    let names: Vec<_> = two.keys.iter().map(|key| key.name.as_deref()).collect();
    assert_eq!(names, [None, Some("team")]);
    let headers: Vec<_> =
        two.headers.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(headers, [("OpenAI-Organization", "org-1"), ("x-tag", "plain")]);
    let claude = remote(&config.providers["claude"]);
    assert_eq!(claude.base_url, "https://api.anthropic.com/v1");
    assert!(!format!("{config:?}").contains("sk-"));
}

#[test]
fn how_a_provider_is_spared() {
    let config = parse(
        r#"
[providers.x]
kind = "openai"
limits = { concurrent = 2, queue = 3, per_minute = 60, burst = 5, tokens_per_minute = 200_000 }
retry = { attempts = 1 }
breaker = { failures = 2, window = "30s" }
"#,
    );
    let provider = &config.providers["x"];
    assert_eq!(
        provider.limits,
        ProviderLimits {
            concurrent: Some(2),
            queue: Some(3),
            per_minute: Some(60),
            burst: Some(5),
            tokens_per_minute: Some(200_000),
        }
    );
    assert_eq!(provider.retry, Retry { attempts: 1, ..Retry::default() });
    let window = Duration::from_secs(30);
    assert_eq!(provider.breaker, BreakerLimits { failures: 2, window, ..BreakerLimits::default() });
}

#[test]
fn what_is_known_of_a_model() {
    let config = parse(
        r#"
[models]
fast = { provider = "openai", model = "a", fallback = ["deep", "default"], commit = "continue", price = { input = 0.25, cached_input = 0.025, output = 2 } }
deep = { provider = "openai", model = "b", fallback = ["fast"], spread = ["default"], prefill = true, price = { input = 1_000.000001, output = 0.0 } }
default = { provider = "sim", model = "c", commit = "restart" }
vectors = { provider = "openai", model = "e", embedding = true, price = { input = 0.02 } }
"#,
    );
    let fast = &config.models["fast"];
    assert_eq!(fast.fallback, ["deep", "default"]);
    assert_eq!(
        (&fast.spread[..], &config.models["deep"].spread[..]),
        (&[][..], &["default".to_owned()][..])
    );
    assert_eq!((fast.commit, fast.prefill), (Commit::Continue, false));
    let price = |name: &str| config.models[name].price.unwrap();
    let exact = Price { input: 250_000, cached_input: 25_000, output: 2_000_000 };
    assert_eq!(price("fast"), exact);
    let dear = 1_000_000_001;
    assert_eq!(price("deep"), Price { input: dear, cached_input: dear, output: 0 });
    assert_eq!(price("vectors"), Price { input: 20_000, cached_input: 20_000, output: 0 });
    assert!(config.models["deep"].prefill);
    assert_eq!(config.models["default"].commit, Commit::Restart);
    assert_eq!(config.models["vectors"].embedding, Some(EmbeddingModel { dimensions: None }));
}

#[test]
fn the_documented_example_is_right() {
    let page = include_str!("../../../../../docs/configuration.md");
    let (_, rest) = page.split_once("A whole example").unwrap();
    let (_, rest) = rest.split_once("```toml\n").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let names = ["OPENAI_API_KEY", "OPENAI_API_KEY_2", "ANTHROPIC_API_KEY"];
    let config = parse_with(example, &Env::new(names.map(|name| (name, "sk-x"))));
    assert_eq!(config.models["writer"].fallback, ["second", "offline"]);
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn the_simulator_can_be_tight_and_unreliable() {
    let config = parse(
        "[providers.sim]\nkind = \"sim\"\nrpm = 60\ntpm = 1000\nflap = { up = \"20s\", down = \"5s\" }\n",
    );
    let ProviderKind::Sim(sim) = &config.providers["sim"].kind else { panic!("{config:?}") };
    let seconds = Duration::from_secs;
    assert_eq!((sim.rpm, sim.tpm), (Some(60), Some(1000)));
    assert_eq!(sim.flap, Some(Flap { up: seconds(20), down: seconds(5) }));
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let config = Config::built_in(&Env::new([("OPENAI_API_KEY", ""), ("PORT", " ")])).unwrap();
    assert_eq!(config.default_model().0.provider, SIM);
    assert_eq!(config.server.listen, None);
}

#[test]
fn a_file_without_agents_has_the_built_in_one() {
    let config = parse_with("[server]\nlog = \"json\"\n", &Env::default());
    assert_eq!(config.agents.keys().collect::<Vec<_>>(), ["cofounder"]);
    assert_eq!(config.default_model().0.provider, SIM);
    let house = "[providers.house]\nkind = \"openai\"\nbase_url = \"http://house/v1\"\n";
    assert_eq!(
        parse(house).default_model().0.provider,
        "house",
        "the provider of the file goes first"
    );
}

#[test]
fn the_only_model_is_the_default() {
    let config = parse(
        "[models]\nwriter = { provider = \"openai\", model = \"gpt-4o\", reasoning = false }\n[agents.a]\n",
    );
    assert_eq!(config.agents["a"].model, DEFAULT_MODEL);
    assert_eq!(config.default_model().0.model, "gpt-4o");
    let config = parse(
        "[models]\nwriter = { provider = \"openai\", model = \"gpt-4o\" }\nembed = { provider = \"openai\", model = \"text-embedding-3-small\" }\n",
    );
    assert_eq!(config.default_model().0.model, "gpt-4o", "the other cannot answer");
}

#[test]
fn the_default_agent() {
    assert_eq!(
        parse("[agents.zoe]\n[agents.adam]\n").default_agent,
        "zoe",
        "the first of the file"
    );
    assert_eq!(parse("[agents.zoe]\n[agents.cofounder]\n").default_agent, "cofounder");
    assert_eq!(parse("[agents.zoe]\n[agents.agent]\n[agents.cofounder]\n").default_agent, "agent");
}

#[test]
fn a_whole_file() {
    let config = parse(
        r#"
[server]
listen   = "[::1]:9000"
data     = "./data"
log      = "pretty"
drain    = "5s"
limits   = { max_body_bytes = 1_000_000 }

[providers.openai]
kind     = "openai"
base_url = "https://api.openai.com/v1"
api_key  = "${OPENAI_API_KEY}"
limits   = { concurrent = 10, per_minute = 60 }
pool     = { connections = 20, keep_alive = 10 }
deadline = { connect = "5s", first_byte = "20s", between_bytes = "15s", total = "30s" }
retry    = { attempts = 3, backoff = "500ms", on = ["timeout", "connect", "5xx", "429"] }
breaker  = { failures = 5, recovery = "60s" }

[models]
writer   = { provider = "openai", model = "gpt-5-mini", fallback = ["offline"], params = { temperature = 0.5, stop = ["x"] }, context_tokens = 8000 }
embed    = { provider = "openai", model = "text-embedding-3-small", deadline = "25s" }
offline  = { provider = "sim", model = "offline" }

[pools]
campaigns = { slots = 4, queue = 200 }
chat      = { slots = 256, queue = 2000 }

[agents.cofounder]
title    = "Business co-founder"
model    = "writer"
prompt   = "You are {{ agent.title }}."
pool     = "campaigns"
deadline = "60s"
when_busy = "interrupt"
keep = 3

[doors.cofounder]
mount = "/cofounder"
agent = "cofounder"
expose_state = true
"#,
    );
    assert_eq!(config.server.listen.as_ref().unwrap().to_string(), "[::1]:9000");
    assert_eq!(config.server.data.as_deref(), Some(Path::new("data")));
    assert_eq!(config.server.drain, Duration::from_secs(5));
    assert_eq!(config.server.limits.max_body_bytes, Some(1_000_000));
    assert_eq!(config.pools["chat"], Pool { slots: 256, queue: 2000 });
    let agent = &config.agents["cofounder"];
    assert_eq!((agent.when_busy, agent.history_tokens), (Multitask::Interrupt, 6000));
    assert_eq!(agent.keep, clearway_engine::Keep::Last(3));
    assert_eq!(config.models["writer"].params["stop"], serde_json::json!(["x"]));
    let provider = &config.providers["openai"];
    assert_eq!(
        (provider.limits.concurrent, provider.connections, provider.keep_alive),
        (Some(10), Some(20), Some(10))
    );
    assert_eq!((provider.limits.per_minute, provider.limits.burst), (Some(60), None));
    assert_eq!(provider.deadline.total, Some(Duration::from_secs(30)));
    assert_eq!(provider.retry, Retry::default());
    let minute = Duration::from_secs(60);
    assert_eq!((provider.breaker.recovery, provider.breaker.recovery_max), (minute, minute));
    assert_eq!(config.models["writer"].fallback, ["offline"]);
    assert_eq!(embedders(&config), [("embed", "openai")]);
    let door = &config.doors["cofounder"];
    assert_eq!(
        (door.dialect, door.mount.as_str(), door.expose_state),
        (Dialect::CoFounder, "/cofounder", true)
    );
}

#[test]
fn the_environment_goes_before_the_file() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\ndrain = \"1s\"\ninsecure = false\n";
    let server = |vars: &[(&str, &str)]| parse_with(file, &Env::new(vars.iter().copied())).server;
    let listen = |vars: &[(&str, &str)]| server(vars).listen.unwrap().to_string();
    assert_eq!(listen(&[]), "127.0.0.1:1");
    assert_eq!(listen(&[("PORT", "2")]), "127.0.0.1:2");
    assert_eq!(listen(&[("PORT", "2"), ("CLEARWAY_SERVER__PORT", "3")]), "127.0.0.1:3");
    assert_eq!(listen(&[("PORT", "2"), ("CLEARWAY_SERVER__LISTEN", "localhost:4")]), "localhost:4");
    assert_eq!(server(&[("CLEARWAY_SERVER__DRAIN", "3s")]).drain, Duration::from_secs(3));
    assert!(server(&[("CLEARWAY_SERVER__INSECURE", "true")]).insecure);
    let limits = server(&[("CLEARWAY_SERVER__LIMITS__MAX_BODY_BYTES", "2048")]).limits;
    assert_eq!(limits.max_body_bytes, Some(2048));
    assert_eq!(server(&[("ENVIRONMENT", "production")]).log, Some(LogFormat::Json));
    assert_eq!(
        server(&[("ENVIRONMENT", "production"), ("CLEARWAY_SERVER__LOG", "pretty")]).log,
        Some(LogFormat::Pretty)
    );
}

#[test]
fn variables_that_nobody_reads_are_named() {
    let env = Env::new([
        ("CLEARWAY_SERVER__LISTN", "x"),
        ("CLEARWAY_LOG", "debug"),
        ("CLEARWAY_SERVER", "http://127.0.0.1:8123"),
        ("BC_API_OPENAI_NO_THREAD", "1"),
    ]);
    let config = Config::built_in(&env).unwrap();
    expect![[r#"
        the environment variable CLEARWAY_LOG is not known and has no effect
        the environment variable CLEARWAY_SERVER__LISTN is not known and has no effect"#]]
    .assert_eq(&config.warnings.join("\n"));
    assert_eq!(config.ignored_variables, ["BC_API_OPENAI_NO_THREAD"]);
}

#[test]
fn what_has_no_effect_is_said() {
    let config = parse(
        "[providers.x]\nkind = \"sim\"\npool = { idle_expiry = \"30s\" }\n[doors.cofounder]\non_disconnect = \"continue\"\n",
    );
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].starts_with("`providers.x.pool.idle_expiry` has no effect"));
}

#[test]
fn prompts_are_rendered_per_call() {
    let config = parse(
        "[agents.a]\ntitle = \"Ada <x>\"\nprompt = \"\"\"\n{{ agent.title }} on {{ today }}, turn {{ turn }}{% if turn > 1 %}!{% endif %}\n\n\"\"\"\n",
    );
    let values = prompt::Values {
        agent_name: "a",
        agent_title: &config.agents["a"].title,
        model: "m",
        run_id: String::new(),
        thread_id: String::new(),
        now: "2026-11-20T20:46:29.363+00:00".to_owned(),
        turn: 2,
        state: None,
        context: None,
    };
    assert_eq!(
        config.agents["a"].prompt.render(&values).unwrap(),
        "Ada <x> on 2026-11-20, turn 2!"
    );
}

#[test]
fn a_loop_in_a_prompt_ends() {
    let report = Config::parse(
        FILE,
        "[agents.a]\nprompt = \"{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}\"\n",
        &env(),
    );
    assert!(report.unwrap_err().to_string().contains("fuel"));
}

#[test]
fn where_to_listen() {
    let parse = |text: &str| {
        text.parse::<Listen>().map(|listen| (listen.to_string(), listen.is_loopback()))
    };
    assert_eq!(parse("127.0.0.1:80"), Ok(("127.0.0.1:80".to_owned(), true)));
    assert_eq!(parse("[::1]:80"), Ok(("[::1]:80".to_owned(), true)));
    assert_eq!(parse("localhost:0"), Ok(("localhost:0".to_owned(), true)));
    assert_eq!(parse("0.0.0.0:80"), Ok(("0.0.0.0:80".to_owned(), false)));
    for bad in ["80", ":80", "host", "host:http", "::1:80", "host:99999"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
