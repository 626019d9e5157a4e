//! Chores of the repository that are longer than a line: `cargo xtask arrows | tidy | mutants`.
//!
//! Not here: anything that a user of Clearway needs.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for a terminal")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

mod arrows;
mod mutants;
mod tidy;

const USAGE: &str = "\
cargo xtask COMMAND
  arrows            who may depend on whom
  tidy              what a stranger would notice first
  mutants [NAME…]   deliberate breakages, each of which a test must catch; `mutants --list` names them";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let root = root()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["arrows"] => arrows::check(&root),
        ["tidy"] => tidy::check(&root),
        ["mutants", "--list"] => mutants::list(&root),
        ["mutants", names @ ..] => mutants::run(&root, names),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        [other, ..] => bail!("no command `{other}`\n{USAGE}"),
    }
}

/// The repository, from where this crate was built.
fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.map(ToOwned::to_owned).context("the crate has no folder above it")
}

/// Fails with all problems at once, or says that there are none.
fn report(what: &str, problems: &[String]) -> Result<()> {
    for problem in problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("{what}: good");
        return Ok(());
    }
    bail!("{what}: {} problems", problems.len())
}
