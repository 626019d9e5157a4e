//! What becomes of documents whose reader dies: as a script, it dies when it is told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clearway_core::Clock;
use clearway_engine::knowledge::{
    ChunkOptions, ReaderCommand, SearchLimits, SourceContent, SourceOptions,
};
use clearway_engine::{Knowledge, KnowledgeOptions, Lanes, Store};
use clearway_ingest::protocol::{self, Answer, Block, BlockKind, Parsed, Stamp};
use clearway_store::{MemStore, SystemClock};
use serde_json::Value;
use tokio::time::timeout;

use crate::support;

/// Dies as often as it is told to, counting its starts; then it answers what it was given.
const SCRIPT: &str = "echo >> \"$0/starts\"
if [ \"$(wc -l < \"$0/starts\")\" -le \"$1\" ]; then kill -9 $$; fi
cat \"$0/answer\"
cat > /dev/null";

struct Bed {
    folder: tempfile::TempDir,
    /// Beside the folder, of the script.
    own: tempfile::TempDir,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
}

impl Bed {
    fn new() -> Self {
        let (folder, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(folder.path().join("a.txt"), "Some words.").unwrap();
        let parsed = Parsed {
            format: "text".to_owned(),
            text: "Some words.".to_owned(),
            blocks: vec![Block { kind: BlockKind::Paragraph, span: 0..11, page: None }],
            ..Parsed::default()
        };
        let answer = Answer::Parsed { stamp: Stamp::default(), parsed };
        std::fs::write(own.path().join("answer"), protocol::frame(&answer).unwrap()).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Self { folder, own, store: Arc::new(MemStore::new(clock.clone())), clock }
    }

    /// A server's knowledge, whose reader dies so many times more.
    fn start(&self, deaths: usize) -> Knowledge {
        let arguments = [
            "-c".to_owned(),
            SCRIPT.to_owned(),
            self.own.path().display().to_string(),
            (self.starts() + deaths).to_string(),
        ];
        let reader = ReaderCommand {
            program: "/bin/sh".into(),
            arguments: arguments.to_vec(),
            limit: ReaderCommand::LIMIT,
        };
        let knowledge = Knowledge::new(
            KnowledgeOptions {
                sources: BTreeMap::from([("docs".to_owned(), source(self.folder.path()))]),
                reader: Some(reader),
                ..KnowledgeOptions::default()
            },
            self.store.clone(),
            support::upstream(&support::sim(), 1),
            Lanes::default(),
            self.clock.clone(),
        );
        knowledge.start(None).unwrap();
        knowledge
    }

    fn starts(&self) -> usize {
        std::fs::read(self.own.path().join("starts")).map_or(0, |starts| starts.len())
    }
}

fn source(folder: &Path) -> SourceOptions {
    SourceOptions {
        content: SourceContent::Folder {
            path: folder.to_owned(),
            files: vec!["*.txt".to_owned()],
            watch: false,
        },
        chunk: ChunkOptions::default(),
        embeddings: None,
        rerank: None,
        graph: false,
        triples: None,
        search: SearchLimits::default(),
    }
}

async fn settled(knowledge: &Knowledge) -> Value {
    timeout(Duration::from_secs(60), knowledge.settled("docs")).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_reader_that_dies_once_loses_no_document() {
    let bed = Bed::new();
    let knowledge = bed.start(1);
    let report = settled(&knowledge).await;
    assert_eq!(
        (report["documents"].as_u64(), report["failed"].as_u64()),
        (Some(1), Some(0)),
        "{report}"
    );
    assert_eq!(bed.starts(), 2);
    knowledge.close().await;
}

#[tokio::test]
async fn a_document_that_kills_its_reader_is_tried_twice_after_each_start() {
    let bed = Bed::new();
    let knowledge = bed.start(100);
    let report = settled(&knowledge).await;
    assert_eq!(report["failures"][0]["kind"], "crashed", "{report}");
    assert_eq!(bed.starts(), 2);
    knowledge.refresh("docs", false).unwrap();
    let report = settled(&knowledge).await;
    assert_eq!(
        (report["failed"].as_u64(), bed.starts()),
        (Some(1), 2),
        "no more than that: {report}"
    );
    knowledge.close().await;
    // Whatever it was may be over.
    let knowledge = bed.start(0);
    let report = settled(&knowledge).await;
    assert_eq!(
        (report["documents"].as_u64(), report["failed"].as_u64()),
        (Some(1), Some(0)),
        "{report}"
    );
    knowledge.close().await;
}
