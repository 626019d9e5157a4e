//! Documents, their vectors, collections and files.

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use super::*;
use crate::knowledge::*;

on_every_store! {
    a_document_is_replaced_as_a_whole
    vectors_live_as_long_as_their_texts
    pages_of_contents_lose_nothing
    what_was_deleted_meanwhile_does_not_come_back
    sources_and_owners_have_limits
    a_collection_takes_its_documents_with_it
    a_file_takes_its_documents_with_it
    documents_outlive_a_restart
}

fn new(path: &str, texts: &[&str]) -> NewDocument {
    NewDocument {
        id: Uuid::new_v5(&Uuid::nil(), path.as_bytes()),
        tenant: String::new(),
        source: "company".to_owned(),
        path: path.to_owned(),
        owner: None,
        state: DocumentState::Indexed,
        hash: vec![7; 32],
        size_bytes: 12,
        modified_ms: 34,
        recipe: "1".to_owned(),
        file: None,
        about: json!({"title": path}),
        content: DocumentContent {
            body: Bytes::from(texts.concat()),
            chunks: texts
                .iter()
                .map(|text| ChunkRow { hash: hash(text), data: Bytes::from((*text).to_owned()) })
                .collect(),
        },
        limit: 100,
        only_if: None,
    }
}

fn hash(text: &str) -> ChunkHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(Uuid::new_v5(&Uuid::nil(), text.as_bytes()).as_bytes());
    hash
}

/// Stores it under an id that is its own in its tenant and source.
async fn put(bed: &Bed, new: NewDocument) -> Uuid {
    let whole = [&*new.tenant, &*new.source, &*new.path].join("\n");
    let new = NewDocument { id: Uuid::new_v5(&Uuid::nil(), whole.as_bytes()), ..new };
    match bed.store.knowledge().put_document(new).await.unwrap() {
        DocumentStored::Stored(id) => id,
        other => panic!("not stored: {other:?}"),
    }
}

async fn all(bed: &Bed) -> Vec<DocumentRecord> {
    bed.store.knowledge().documents(DocumentQuery::default()).await.unwrap()
}

async fn a_document_is_replaced_as_a_whole(bed: Bed) {
    let first = put(&bed, new("a.md", &["one", "two"])).await;
    bed.advance(5);
    let again = NewDocument { id: Uuid::max(), ..new("a.md", &["one", "three", "four"]) };
    assert_eq!(put(&bed, again).await, first, "it keeps its id");
    let (record, content) = bed.store.knowledge().document(first).await.unwrap().unwrap();
    assert_eq!((record.chunks, record.created_at), (3, START));
    assert_eq!(record.changed_at, bed.now());
    assert_eq!(content.body, "onethreefour");
    assert_eq!(content.chunks[1].data, "three");
    assert_eq!(bed.store.knowledge().document(Uuid::max()).await.unwrap(), None);
    assert!(bed.store.knowledge().touch_document(first, 5, 6).await.unwrap());
    assert!(!bed.store.knowledge().touch_document(Uuid::max(), 5, 6).await.unwrap());
    let (record, _) = bed.store.knowledge().document(first).await.unwrap().unwrap();
    assert_eq!((record.size_bytes, record.modified_ms), (5, 6));
    let failed = NewDocument { state: DocumentState::Failed, ..new("a.md", &[]) };
    put(&bed, failed).await;
    let (record, content) = bed.store.knowledge().document(first).await.unwrap().unwrap();
    assert_eq!((record.state, content), (DocumentState::Failed, DocumentContent::default()));
    assert_eq!(
        bed.store.knowledge().drop_documents(vec![first, first, Uuid::max()]).await.unwrap(),
        1
    );
    assert_eq!(all(&bed).await, []);
}

async fn vectors_live_as_long_as_their_texts(bed: Bed) {
    let a = put(&bed, new("a.md", &["shared", "own"])).await;
    let b = put(&bed, new("b.md", &["shared"])).await;
    let vector = |text: &str| (hash(text), Bytes::from(format!("v {text}")));
    bed.store.knowledge().keep_vectors("m", vec![vector("shared"), vector("own")]).await.unwrap();
    let known = async |model: &str| {
        let hashes = ["shared", "own", "never"].map(hash).to_vec();
        bed.store.knowledge().vectors(model, hashes).await.unwrap()
    };
    assert_eq!(known("m").await, [vector("shared"), vector("own")]);
    assert_eq!(known("other").await, []);
    put(&bed, new("a.md", &["changed"])).await;
    assert_eq!(known("m").await, [vector("shared")], "the other document still has it");
    bed.store.knowledge().drop_documents(vec![a, b]).await.unwrap();
    assert_eq!(known("m").await, []);
}

async fn pages_of_contents_lose_nothing(bed: Bed) {
    for number in 0..7 {
        put(&bed, new(&format!("{number}.md"), &["some text", "and more"])).await;
    }
    put(&bed, NewDocument { state: DocumentState::Pending, ..new("p.md", &[]) }).await;
    put(&bed, NewDocument { source: "other".to_owned(), ..new("0.md", &["x"]) }).await;
    for max_bytes in [1, 70, 1 << 20] {
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let page = bed
                .store
                .knowledge()
                .document_contents("", "company", after, max_bytes)
                .await
                .unwrap();
            let Some((last, _)) = page.last() else { break };
            after = last.n;
            seen.extend(page.into_iter().map(|(record, content)| {
                assert_eq!(content.chunks.len(), 2);
                record.path
            }));
        }
        let expected: Vec<String> = (0..7).map(|number| format!("{number}.md")).collect();
        assert_eq!(seen, expected);
    }
    let pending = DocumentQuery { state: Some(DocumentState::Pending), ..DocumentQuery::default() };
    let pending = bed.store.knowledge().documents(pending).await.unwrap();
    assert_eq!(pending.len(), 1);
    let two = DocumentQuery {
        tenant: Some(String::new()),
        source: Some("company".to_owned()),
        after: 2,
        limit: 2,
        ..DocumentQuery::default()
    };
    let two: Vec<String> = bed
        .store
        .knowledge()
        .documents(two)
        .await
        .unwrap()
        .into_iter()
        .map(|record| record.path)
        .collect();
    assert_eq!(two, ["2.md", "3.md"]);
}

async fn what_was_deleted_meanwhile_does_not_come_back(bed: Bed) {
    let id = put(&bed, new("a.md", &["one"])).await;
    bed.store.knowledge().drop_documents(vec![id]).await.unwrap();
    let late = NewDocument { only_if: Some(id), ..new("a.md", &["one"]) };
    assert_eq!(bed.store.knowledge().put_document(late).await.unwrap(), DocumentStored::Gone);
    assert_eq!(all(&bed).await, []);
}

async fn sources_and_owners_have_limits(bed: Bed) {
    put(&bed, NewDocument { limit: 1, ..new("a.md", &["one"]) }).await;
    put(&bed, NewDocument { limit: 1, ..new("a.md", &["two"]) }).await;
    let second = NewDocument { limit: 1, ..new("b.md", &["one"]) };
    assert_eq!(bed.store.knowledge().put_document(second).await.unwrap(), DocumentStored::TooMany);
    assert!(bed.store.knowledge().put_collection(collection(1, "ann"), 1).await.unwrap());
    assert!(
        bed.store.knowledge().put_collection(collection(1, "ann"), 1).await.unwrap(),
        "it is the same"
    );
    assert!(!bed.store.knowledge().put_collection(collection(2, "ann"), 1).await.unwrap());
    assert!(bed.store.knowledge().put_collection(collection(3, "bob"), 1).await.unwrap());
    let limits = FileLimits { count: 2, bytes: 10 };
    let keep = async |number: u128, owner: &str, bytes: &'static str| {
        let file = file(number, owner, bytes.len() as u64);
        bed.store.knowledge().put_file(file, Bytes::from(bytes), limits).await.unwrap()
    };
    assert_eq!(keep(1, "ann", "12345678").await, FileStored::Stored);
    assert_eq!(keep(2, "ann", "123").await, FileStored::TooMuch);
    assert_eq!(keep(2, "ann", "12").await, FileStored::Stored);
    assert_eq!(keep(3, "ann", "").await, FileStored::TooMany);
    assert_eq!(keep(3, "bob", "123").await, FileStored::Stored);
}

fn collection(number: u128, owner: &str) -> Collection {
    Collection {
        id: Uuid::from_u128(number),
        tenant: "acme".to_owned(),
        owner: Some(owner.to_owned()),
        about: json!({"name": owner}),
        created_at: START,
    }
}

fn file(number: u128, owner: &str, size_bytes: u64) -> FileRecord {
    FileRecord {
        id: Uuid::from_u128(number),
        tenant: "acme".to_owned(),
        owner: Some(owner.to_owned()),
        size_bytes,
        about: json!({"name": "a.md"}),
        created_at: START,
    }
}

fn of(owner: &str) -> OwnedQuery {
    OwnedQuery {
        tenant: Some("acme".to_owned()),
        owner: Some(Some(owner.to_owned())),
        ..OwnedQuery::default()
    }
}

async fn a_collection_takes_its_documents_with_it(bed: Bed) {
    for owner in [1, 2] {
        bed.store.knowledge().put_collection(collection(owner, "ann"), 9).await.unwrap();
        let source = Uuid::from_u128(owner).to_string();
        let tenant = "acme".to_owned();
        put(&bed, NewDocument { tenant, source, ..new("a.md", &["one"]) }).await;
    }
    assert_eq!(bed.store.knowledge().collections(of("ann")).await.unwrap().len(), 2);
    assert_eq!(bed.store.knowledge().collections(of("bob")).await.unwrap(), []);
    assert!(bed.store.knowledge().drop_collection(Uuid::from_u128(1)).await.unwrap());
    assert!(!bed.store.knowledge().drop_collection(Uuid::from_u128(1)).await.unwrap());
    assert_eq!(bed.store.knowledge().collections(of("ann")).await.unwrap(), [collection(2, "ann")]);
    let left = all(&bed).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].source, Uuid::from_u128(2).to_string());
}

async fn a_file_takes_its_documents_with_it(bed: Bed) {
    let limits = FileLimits { count: 9, bytes: 99 };
    for number in [1, 2] {
        let stored = bed
            .store
            .knowledge()
            .put_file(file(number, "ann", 3), Bytes::from("abc"), limits)
            .await;
        assert_eq!(stored.unwrap(), FileStored::Stored);
        let file = Some(Uuid::from_u128(number));
        put(&bed, NewDocument { file, ..new(&format!("{number}.md"), &["one"]) }).await;
    }
    assert_eq!(bed.store.knowledge().file_bytes(Uuid::from_u128(1)).await.unwrap().unwrap(), "abc");
    assert_eq!(bed.store.knowledge().files(of("ann")).await.unwrap().len(), 2);
    let one = OwnedQuery { id: Some(Uuid::from_u128(2)), ..OwnedQuery::default() };
    assert_eq!(bed.store.knowledge().files(one).await.unwrap(), [file(2, "ann", 3)]);
    assert!(bed.store.knowledge().drop_file(Uuid::from_u128(1)).await.unwrap());
    assert!(!bed.store.knowledge().drop_file(Uuid::from_u128(1)).await.unwrap());
    assert_eq!(bed.store.knowledge().file_bytes(Uuid::from_u128(1)).await.unwrap(), None);
    assert_eq!(all(&bed).await.len(), 1);
}

async fn documents_outlive_a_restart(mut bed: Bed) {
    put(&bed, new("a.md", &["one", "two"])).await;
    bed.store.knowledge().put_collection(collection(1, "ann"), 9).await.unwrap();
    let before = all(&bed).await;
    bed.restart().await;
    assert_eq!(all(&bed).await, before);
    assert_eq!(bed.store.knowledge().collections(of("ann")).await.unwrap().len(), 1);
}
