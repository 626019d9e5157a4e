//! `clearway dev` and `clearway serve`: one server in this process, from its configuration to its end.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clearway::config::{Config, Env, FILE, Listen, LogFormat};
use clearway::{Clearway, Options, Ports, ReaderCommand, Telemetry, telemetry};

use crate::cli::{DevArgs, ServeArgs, ServerArgs};
use crate::exit::{Exit, Usage};
use crate::output::Output;
use crate::reload::{Reload, Watcher};
use crate::signals::Signals;
use crate::simulator::simulator;
use crate::{banner, kb, limits, log};

/// What the two commands do differently.
#[derive(Debug)]
struct Mode {
    name: &'static str,
    log: LogFormat,
    /// Below the folder of the configuration.
    data: &'static str,
    ports: Ports,
    reload: Reload,
}

const DEV: Mode = Mode {
    name: "dev",
    log: LogFormat::Pretty,
    data: ".clearway",
    ports: Ports::NextFree,
    reload: Reload::OnChange,
};

const SERVE: Mode = Mode {
    name: "serve",
    log: LogFormat::Json,
    data: "data",
    ports: Ports::Exact,
    reload: Reload::Never,
};

pub(crate) fn dev(args: &DevArgs, output: Output) -> Result<Exit> {
    run(&DEV, &args.dir, &args.server, output)
}

pub(crate) fn serve(args: &ServeArgs, output: Output) -> Result<Exit> {
    run(&SERVE, Path::new("."), &args.server, output)
}

/// Where the configuration is, and what goes before it.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    folder: PathBuf,
    file: Option<PathBuf>,
    listen: Option<Listen>,
    port: Option<u16>,
    data: Option<PathBuf>,
    insecure: bool,
    default_data: PathBuf,
    env: Env,
}

impl Settings {
    fn new(mode: &Mode, folder: &Path, args: &ServerArgs) -> Self {
        let of_file = args.config.as_deref().and_then(Path::parent);
        let base = of_file.unwrap_or(folder);
        Self {
            folder: folder.to_owned(),
            file: args.config.clone(),
            listen: args.listen.clone(),
            port: args.port,
            data: args.data.clone(),
            insecure: args.insecure,
            default_data: if base.as_os_str() == "." {
                mode.data.into()
            } else {
                base.join(mode.data)
            },
            env: Env::process(),
        }
    }

    /// Those of a command that looks into the data of `clearway dev`, or where a file says.
    pub(crate) fn of_kb(config: Option<PathBuf>, data: Option<PathBuf>) -> Self {
        let args = ServerArgs { config, listen: None, port: None, data, insecure: false };
        Self::new(&DEV, Path::new("."), &args)
    }

    /// Those of `clearway serve` with these flags.
    pub(crate) fn of_serve(args: &ServerArgs) -> Self {
        Self::new(&SERVE, Path::new("."), args)
    }

    /// The configuration with flags put over it.
    pub(crate) fn load(&self) -> Result<Config, clearway::Report> {
        let config = match &self.file {
            Some(file) => Config::load(file, &self.env)?,
            None => Config::load_folder(&self.folder, &self.env)?,
        };
        Ok(self.over(config))
    }

    /// Puts the flags over a configuration.
    pub(crate) fn over(&self, mut config: Config) -> Config {
        let server = &mut config.server;
        if let Some(listen) = &self.listen {
            server.listen = Some(listen.clone());
        }
        if let Some(port) = self.port {
            server.listen.get_or_insert_default().port = port;
        }
        if let Some(data) = &self.data {
            server.data = Some(data.clone());
        }
        server.data.get_or_insert_with(|| self.default_data.clone());
        server.insecure |= self.insecure;
        config
    }

    /// The file that is looked for, whether it is there or not.
    pub(crate) fn file(&self) -> PathBuf {
        self.file.clone().unwrap_or_else(|| self.folder.join(FILE))
    }
}

fn run(mode: &Mode, folder: &Path, args: &ServerArgs, output: Output) -> Result<Exit> {
    if let Some(file) = args.config.as_deref().filter(|file| !file.exists()) {
        bail!(Usage {
            problem: format!("there is no file {}", file.display()),
            help: "give another one with --config, or leave it out for the built-in examples"
                .to_owned(),
        });
    }
    let settings = Settings::new(mode, folder, args);
    let config = settings.load()?;
    let format = config.server.log.unwrap_or(mode.log);
    let telemetry = config.telemetry.as_ref().map(Telemetry::start).transpose()?;
    let logging = log::start(format, output, telemetry.as_ref().map(Telemetry::layer))?;
    limits::raise_open_files();
    say_what_is_odd(&config);
    let runtime = clearway::runtime(config.server.worker_threads)?;
    let watcher = Watcher::start(mode.reload, &settings, &config);
    let counts = telemetry.as_ref().map(Telemetry::counts);
    let exit = runtime.block_on(serve_until_told(mode, config, counts, watcher, output));
    // Whatever is left belongs to nobody any more and must not delay the end.
    runtime.shutdown_background();
    drop(telemetry);
    drop(logging);
    exit
}

fn say_what_is_odd(config: &Config) {
    if let Some(telemetry) = &config.telemetry {
        tracing::info!("exporting spans to {}", telemetry.endpoint);
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if !config.ignored_variables.is_empty() {
        let names = config.ignored_variables.join(", ");
        tracing::info!("{names}: not needed any more, without effect");
    }
}

async fn serve_until_told(
    mode: &Mode,
    config: Config,
    telemetry: Option<telemetry::Counts>,
    mut watcher: Watcher,
    output: Output,
) -> Result<Exit> {
    // Before anything is started, so that no signal ends the process in the middle of it.
    let mut signals = Signals::new()?;
    let drain = config.server.drain;
    let reader = Some(ReaderCommand::this_program(&[kb::READER]));
    let options = Options {
        simulator: Some(simulator()),
        ports: mode.ports,
        telemetry,
        reader,
        ..Options::default()
    };
    let mut clearway = tokio::select! {
        started = Clearway::start(config, options) => started?,
        _ = signals.next() => return Ok(Exit::Ok),
    };
    if output.json {
        output.print(&banner::json(&clearway, mode.name).to_string());
    } else if !output.quiet {
        output.print(&banner::text(&clearway, mode.name));
    }
    tracing::info!(address = %clearway.address(), data = %clearway.data().display(), "ready");
    let signal = loop {
        tokio::select! {
            signal = signals.next() => break signal,
            changed = watcher.next() => match changed {
                Ok(config) => reload(&mut clearway, config),
                Err(report) => {
                    tracing::error!("the changed configuration is wrong; the old one stays in force");
                    output.error(&report.render(output.colour_of_errors()));
                }
            },
        }
    };
    tracing::info!(
        signal,
        drain_ms = drain.as_millis() as u64,
        "stopping; a second signal skips the wait"
    );
    clearway
        .shutdown(drain, async {
            signals.insist().await;
            tracing::info!("not waiting any longer");
        })
        .await;
    tracing::info!("stopped");
    Ok(Exit::Ok)
}

fn reload(clearway: &mut Clearway, config: Config) {
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let waiting = clearway.reload(config);
    let agents: Vec<_> = clearway.config().agents.keys().map(String::as_str).collect();
    tracing::info!(agents = agents.join(", "), "configuration reloaded");
    if !waiting.is_empty() {
        let tables: Vec<_> = waiting.iter().map(|table| format!("[{table}]")).collect();
        tracing::warn!("changes of {} take effect after a restart", tables.join(", "));
    }
}
