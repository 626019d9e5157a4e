//! `clearway kb`: documents from the command line.

use anyhow::Result;

use crate::cli::{KbArgs, KbCommand};
use crate::exit::Exit;
use crate::output::Output;

mod eval;

pub(crate) fn run(args: &KbArgs, output: Output) -> Result<Exit> {
    match &args.command {
        KbCommand::Eval(args) => eval::run(args, output),
    }
}
