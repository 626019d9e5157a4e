//! The binary `clearway`: flags, log output, signals, and the wiring of one process.
//!
//! Each command is a module that returns an [`Exit`] or an error; what goes wrong is printed in one
//! place, as what, where, and what to do. Not here: anything a library user would need
//! (`clearway`), and the simulator (`clearway-sim`).

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::exit::report;
use crate::output::Output;

mod banner;
mod chat;
mod check;
mod cli;
mod doctor;
mod exit;
mod kb;
mod lab;
mod limits;
mod log;
mod new;
mod output;
mod reload;
mod runs;
mod serve;
mod signals;
mod sim;
mod simulator;
mod threads;
mod verify;
mod workflow;

/// Lower and flatter memory than the system's allocator under many small buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output { json: cli.json, quiet: cli.quiet };
    let result = match cli.command {
        Command::Dev(args) => serve::dev(&args, output),
        Command::Serve(args) => serve::serve(&args, output),
        Command::Sim(args) => sim::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Lab(args) => lab::run(&args, output),
        Command::Check(args) => check::run(&args, output),
        Command::Chat(args) => chat::run(&args, output),
        Command::Run(args) => workflow::run(&args, output),
        Command::Init(args) => workflow::init(&args, output),
        Command::New(args) => new::run(&args, output),
        Command::Graph(args) => workflow::graph(&args, output),
        Command::Attention(args) => workflow::attention(&args, output),
        Command::Verify(args) => verify::run(&args, output),
        Command::Runs(args) => runs::run(&args, output),
        Command::Kb(args) => kb::run(&args, output),
        Command::Threads(args) => threads::run(&args, output),
        Command::ParseDocument => kb::read_documents(),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => report(&error, output).into(),
    }
}

#[cfg(test)]
mod tests;
