//! The built-in simulator, attached to the server in memory.

use std::sync::Arc;

use clearway::Simulator;
use clearway::config;
use clearway_sim::{Flap, Options, ScriptRule, Sim, ToolRule};

/// Simulated providers for `kind = "sim"`.
pub(crate) fn simulator() -> Simulator {
    Simulator::new(|settings| {
        let options = options(settings);
        options.check().map_err(|error| error.to_string())?;
        let sim = Sim::new(options);
        Ok(Arc::new(move |connection| Box::pin(sim.serve_connection(connection))))
    })
}

fn options(settings: &config::Sim) -> Options {
    let rule = |rule: &config::ScriptRule| ScriptRule {
        match_text: rule.matches.clone(),
        reply: rule.reply.clone(),
        tool: rule
            .tool
            .as_ref()
            .map(|name| ToolRule { name: name.clone(), arguments: rule.reply.clone() }),
    };
    Options {
        ttft: settings.ttft,
        token_interval: settings.token_interval,
        tokens: settings.tokens,
        jitter: settings.jitter,
        max_concurrent: settings.max_concurrent,
        rpm: settings.rpm,
        tpm: settings.tpm,
        flap: settings.flap.map(|flap| Flap { up: flap.up, down: flap.down }),
        script: settings.script.iter().map(rule).collect(),
        epoch_s: seconds_since_1970(),
        ..Options::default()
    }
}

/// What the simulator takes for the time of its start.
pub(crate) fn seconds_since_1970() -> u64 {
    u64::try_from(clearway::now().0 / 1000).unwrap_or(0)
}
