use super::*;
use crate::{ChunkOptions, Outline, Viewer, chunk, go_on};

fn add(builder: &mut IndexBuilder, id: &str, owner: Option<&str>, text: &str) {
    let outline = Outline::markdown(text);
    let chunks = chunk(id, text, &outline.blocks, &ChunkOptions::default());
    let document = Document {
        id: id.into(),
        collection: "notes".into(),
        owner: owner.map(Into::into),
        title: outline.title.unwrap_or_default(),
        source: id.to_owned(),
        links: outline.links,
    };
    builder.put(document, chunks);
}

fn ids(snapshot: &Snapshot, text: &str, viewer: Viewer<'_>) -> Vec<String> {
    let query = Query::new(text, Scope::of(viewer));
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    answer.hits.iter().map(|hit| hit.document.id.to_string()).collect()
}

#[test]
fn finds_by_any_form_of_a_word_and_only_in_scope() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# Pumps\n\nThe pumps were repaired in May.");
    add(&mut builder, "b", Some("ann"), "# Secret\n\nAnn repairs pumps at night.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    assert_eq!(ids(&snapshot, "repairing pump", Viewer::Anonymous), ["a"]);
    assert_eq!(ids(&snapshot, "repairing pump", Viewer::User("ann")).len(), 2);
    assert_eq!(ids(&snapshot, "night", Viewer::User("bob")), [""; 0]);
}
