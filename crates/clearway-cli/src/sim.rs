//! `clearway sim`: the misbehaving provider as a server of its own.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clearway_sim::{Options, Sim};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};

use crate::cli::SimArgs;
use crate::exit::{Exit, Usage};
use crate::limits;
use crate::output::Output;
use crate::signals::Signals;
use crate::simulator::seconds_since_1970;

pub(crate) fn run(args: &SimArgs, output: Output) -> Result<Exit> {
    let options = Options {
        ttft: Duration::from_millis(args.ttft_ms),
        tokens: args.tokens,
        token_interval: Duration::from_millis(args.token_interval_ms),
        jitter: args.jitter,
        max_concurrent: args.max_concurrent,
        rpm: args.rpm,
        tpm: args.tpm,
        rate_headers: !args.no_rate_headers,
        keys: args.keys.clone(),
        fault: args.fault,
        fault_rate: args.fault_rate,
        outages: args.outages.clone(),
        flap: args.flap,
        outage_fault: args.outage_fault,
        seed: args.seed,
        epoch_s: seconds_since_1970(),
        ..Options::default()
    };
    options.check().map_err(|error| Usage {
        problem: error.to_string(),
        help: "clearway sim --help lists all options".to_owned(),
    })?;
    limits::raise_open_files();
    let runtime = clearway::runtime(None)?;
    runtime.block_on(serve(args, options, output))
}

/// A listener that a crowd of clients does not overflow: where connections are dropped, they come
/// back a second later, which looks like a fault of whoever is tested.
async fn bind(address: (&str, u16)) -> io::Result<TcpListener> {
    let open = |address: SocketAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let mut refused = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host(address).await? {
        match open(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

const BACKLOG: u32 = 4096;

async fn serve(args: &SimArgs, options: Options, output: Output) -> Result<Exit> {
    let mut signals = Signals::new()?;
    let listen = (args.listen.host.as_str(), args.listen.port);
    let listener =
        bind(listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let address = listener.local_addr()?;
    if output.json {
        output.print(&json!({"address": format!("http://{address}"), "base_url": format!("http://{address}/v1")}).to_string());
    } else if !output.quiet {
        let fault = args.fault.map_or("none".to_owned(), |fault| fault.to_string());
        output.print(&format!(
            "clearway sim: a simulated provider on http://{address}/v1, fault: {fault}\n\n\
             \x20 use it    OPENAI_BASE_URL=http://{address}/v1 clearway dev\n\
             \x20 look      curl -s http://{address}/stats\n\
             \x20 break it  curl -s http://{address}/control -d '{{\"outage\": true}}'\n\
             \x20 misbehave curl -sN http://{address}/v1/chat/completions -H 'x-sim-fault: cut_rst:3' \\\n\
             \x20             -d '{{\"model\": \"m\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"hello\"}}]}}'"
        ));
    }
    let sim = Sim::new(options);
    tokio::select! {
        // Dropping it drops every connection, so its own way to stop is not needed.
        served = sim.serve(listener, Default::default()) => served.context("the listener broke")?,
        _ = signals.next() => {}
    }
    Ok(Exit::Ok)
}
