use super::*;
use crate::{ChunkOptions, IndexBuilder, Learn, Outline, Scope, Viewer, chunk, go_on};

fn snapshot(documents: &[(&str, Option<&str>, &str)]) -> Snapshot {
    let mut builder = IndexBuilder::new();
    for (id, owner, text) in documents {
        let outline = Outline::markdown(text);
        let document = Document {
            id: (*id).into(),
            collection: "notes".into(),
            owner: owner.map(Into::into),
            title: outline.title.clone().unwrap_or_default(),
            source: (*id).to_owned(),
            links: outline.links,
        };
        builder.put(document, chunk(id, text, &outline.blocks, &ChunkOptions::default()));
    }
    builder.build(Learn::Anew, &go_on).expect("not stopped")
}

const NOTES: &[(&str, Option<&str>, &str)] = &[
    (
        "a",
        None,
        "# Harbour Line\n\nThe ferry is run by Mara Lindqvist. She reports to Otto Brandt.",
    ),
    ("b", None, "# Night Watch\n\nOn weekends Otto Brandt covers with [[Quay Safety]]."),
    ("c", Some("ann"), "# Private\n\nMara Lindqvist will join Blue Heron."),
];

fn graph<'a>(snapshot: &'a Snapshot, viewer: Viewer<'_>) -> Graph<'a> {
    snapshot.graph(&Scope::of(viewer))
}

#[test]
fn names_are_found_with_what_is_named_beside_them() {
    let snapshot = snapshot(NOTES);
    let graph = graph(&snapshot, Viewer::Anonymous);
    let near: Vec<_> =
        graph.neighbours("otto brandt", 9).expect("named").into_iter().map(|n| n.name).collect();
    assert!(
        near.contains(&"Mara Lindqvist".to_owned()) && near.contains(&"Quay Safety".to_owned()),
        "{near:?}"
    );
    assert_eq!(graph.find("mara", 5), [Entity { name: "Mara Lindqvist".into(), chunks: 1 }]);
    assert_eq!(
        graph.path("Mara Lindqvist", "Quay Safety"),
        Some(vec!["Mara Lindqvist".into(), "Otto Brandt".into(), "Quay Safety".into()])
    );
    assert_eq!(graph.neighbours("The ferry", 5), None);
}

#[test]
fn what_others_own_is_not_in_it() {
    let snapshot = snapshot(NOTES);
    let seen = |viewer| {
        let graph = graph(&snapshot, viewer);
        (
            graph.find("blue heron", 5).len(),
            graph.neighbours("Blue Heron", 5).is_some(),
            graph.path("Otto Brandt", "Blue Heron").is_some(),
        )
    };
    assert_eq!(seen(Viewer::Anonymous), (0, false, false));
    assert_eq!(seen(Viewer::User("bob")), (0, false, false));
    assert_eq!(seen(Viewer::User("ann")), (1, true, true));
}

#[test]
fn the_drawing_is_the_same_every_time_and_well_formed() {
    let snapshot = snapshot(&[
        ("a", None, "# A <b> & c\n\nAlpha One met Beta Two."),
        ("b", None, "# D\n\nIt met Alpha One and Beta Two."),
    ]);
    let graph = graph(&snapshot, Viewer::Anonymous);
    let picture = graph.overview(10);
    assert_eq!(picture.edges.len(), 1);
    assert_eq!(picture.svg(), graph.overview(10).svg());
    let svg = graph.around("A <b> & c", 10).expect("named").svg();
    assert!(svg.contains("A &lt;b&gt; &amp; c") && svg.ends_with("</svg>\n"));
}

#[test]
fn documents_and_what_they_name_lead_to_each_other_in_scope() {
    let snapshot = snapshot(NOTES);
    let graph = graph(&snapshot, Viewer::Anonymous);
    let ids = |name: &str| -> Vec<String> {
        graph.documents(name, 9).into_iter().map(|(document, _)| document.id.to_string()).collect()
    };
    assert_eq!(ids("Otto Brandt"), ["a", "b"]);
    assert_eq!(ids("Mara Lindqvist"), ["a"]);
    assert_eq!(ids("Blue Heron"), [""; 0]);
    assert_eq!(graph.documents("Otto Brandt", 1).len(), 1);
    let names: Vec<_> = graph.named_in("b", 9).into_iter().map(|entity| entity.name).collect();
    assert!(names.contains(&"Otto Brandt".to_owned()), "{names:?}");
    assert!(graph.named_in("c", 9).is_empty() && graph.named_in("z", 9).is_empty());
    assert_eq!(graph.entity("otto brandt").map(|entity| entity.chunks), Some(2));
    assert_eq!(graph.entity("blue heron"), None);
}

#[test]
fn phrases_in_small_letters_stand_beside_names() {
    let snapshot = snapshot(&[
        (
            "a",
            None,
            "# Lumen\n\nThe delivery contract with Harbour Line ends in May. Without a delivery contract nothing is \
             shipped; see the price list.",
        ),
        ("b", None, "# Desk\n\nOtto Brandt keeps the delivery contract in the safe."),
        ("c", Some("ann"), "# Private\n\nThe secret formula. Blue Heron has the secret formula."),
    ]);
    let graph = graph(&snapshot, Viewer::Anonymous);
    assert_eq!(
        graph.entity("Delivery contract"),
        Some(Entity { name: "delivery contract".into(), chunks: 2 })
    );
    let near: Vec<_> = graph.neighbours("delivery contract", 9).expect("there");
    let near: Vec<&str> = near.iter().map(|near| &*near.name).collect();
    assert!(near.contains(&"Harbour Line") && near.contains(&"Otto Brandt"), "{near:?}");
    assert_eq!(
        graph.path("Harbour Line", "Otto Brandt").map(|way| way.len()),
        Some(3),
        "over what both are named with"
    );
    assert_eq!(graph.entity("price list"), None, "said once");
    assert_eq!(graph.entity("secret formula"), None, "somebody else's");
    // A query names names; phrases take no part in ranking.
    assert!(snapshot.names().within("which delivery contract").is_empty());
}

#[test]
fn what_a_model_says_is_seen_by_those_who_see_the_text() {
    let snapshot = snapshot(NOTES);
    let mut builder = snapshot.edit();
    let triple = |subject: &str, relation: &str, object: &str| Triple {
        subject: subject.into(),
        relation: relation.into(),
        object: object.into(),
    };
    let missing = builder.without_triples();
    assert_eq!(missing.len(), 3);
    for (hash, chunk) in missing {
        let said = match &*chunk.doc_id {
            "a" => vec![
                triple("Mara Lindqvist", "runs", "the ferry"),
                triple("x", "is", "x"),
                triple("", "is", "y"),
            ],
            "c" => vec![triple("Mara Lindqvist", "joins", "Blue Heron")],
            _ => Vec::new(),
        };
        builder.triples(hash, said);
    }
    assert!(builder.without_triples().is_empty());
    let snapshot = builder.build(Learn::Keep, &go_on).expect("not stopped");
    let said = |viewer, name: &str| -> Vec<String> {
        let relations = graph(&snapshot, viewer).relations(name, 9).into_iter();
        relations.map(|r| format!("{} {} {}", r.subject, r.relation, r.object)).collect()
    };
    assert_eq!(said(Viewer::Anonymous, "mara lindqvist"), ["Mara Lindqvist runs the ferry"]);
    assert_eq!(said(Viewer::Anonymous, "the ferry"), ["Mara Lindqvist runs the ferry"]);
    assert_eq!(said(Viewer::User("ann"), "mara lindqvist").len(), 2);
    assert!(said(Viewer::Anonymous, "x").is_empty());
    // It is kept for the next index.
    let again = snapshot.edit().build(Learn::Keep, &go_on).expect("not stopped");
    assert_eq!(graph(&again, Viewer::Anonymous).relations("the ferry", 9).len(), 1);
}
