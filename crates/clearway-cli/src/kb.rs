//! `clearway kb`: documents from the command line.
//!
//! Works on a folder, or on the sources of a configuration, without a server; while a server holds
//! the data directory, the server is asked.

use anyhow::Result;
use clearway::client::Client;
use clearway::knowledge::{FOLDER, Library, LibraryOptions};
use clearway::runtime;
use serde_json::Value;

use crate::cli::{KbArgs, KbCommand, KbSource};
use crate::exit::{Exit, Usage};
use crate::output::Output;
use crate::serve::Settings;
use crate::simulator::simulator;

mod eval;
mod graph;
mod index;
mod search;

/// The hidden command under which this program reads documents.
pub(crate) const READER: &str = "parse-document";

pub(crate) fn run(args: &KbArgs, output: Output) -> Result<Exit> {
    match &args.command {
        KbCommand::Index(args) => index::run(args, output),
        KbCommand::Search(args) => search::run(args, output),
        KbCommand::Graph(args) => graph::run(args, output),
        KbCommand::Eval(args) => eval::run(args, output),
    }
}

/// Reads documents for a server, until there are no more requests.
pub(crate) fn read_documents() -> Result<Exit> {
    clearway_ingest::reader::serve(clearway_ingest::reader::Limits::default())?;
    Ok(Exit::Ok)
}

/// Where documents are.
enum Place {
    /// In this process.
    Here(Box<Library>),
    /// With a server that runs.
    There(Client),
}

impl Place {
    async fn open(source: &KbSource) -> Result<Self> {
        let options =
            LibraryOptions { simulator: Some(simulator()), reader: vec![READER.to_owned()] };
        if let Some(folder) = &source.folder {
            if !folder.is_dir() {
                anyhow::bail!(Usage {
                    problem: format!("there is no folder {}", folder.display()),
                    help: "name a folder with documents".to_owned(),
                });
            }
            let files = (!source.files.is_empty()).then(|| source.files.clone());
            return Ok(Self::Here(Box::new(Library::folder(folder, files, options)?)));
        }
        let config = Settings::of_kb(source.config.clone(), source.data.clone()).load()?;
        let data = clearway::knowledge::data_of(&config);
        match Library::open(config, &data, options).await {
            Ok(library) => Ok(Self::Here(Box::new(library))),
            Err(error) if error.is_locked() => Ok(Self::There(Client::new(&source.client.server)?)),
            Err(error) => Err(error.into()),
        }
    }

    async fn close(self) {
        if let Self::Here(library) = self {
            library.close().await;
        }
    }
}

/// Runs a command on a runtime like a server's.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime(Some(2))?.block_on(work)
}

/// The sources that are meant: the named one, or all.
fn sources(library: &Library, named: Option<&String>) -> Result<Vec<String>> {
    let all = library.sources();
    match named {
        None if all.is_empty() => Err(Usage {
            problem: "no source of knowledge is configured".to_owned(),
            help: "add [knowledge.NAME] with a folder, or name one with --folder".to_owned(),
        }
        .into()),
        None => Ok(all.to_vec()),
        Some(name) if all.contains(name) => Ok(vec![name.clone()]),
        Some(name) => Err(Usage {
            problem: format!("there is no source `{name}`"),
            help: format!("there are: {}", all.join(", ")),
        }
        .into()),
    }
}

/// A source's name for people.
fn shown(source: &str) -> &str {
    if source == FOLDER { "the folder" } else { source }
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_default()
}
