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

#[test]
fn a_hit_says_why_it_was_found() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# Cold chain\n\nGlycemia, and how the cold chain is kept.");
    add(&mut builder, "b", None, "# Warm meals\n\nA chain of shops keeps meals cold.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let query = Query::new("cold chain hyperglycemia", Scope::of(Viewer::Anonymous));
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    let why: Vec<&Why> = answer.hits.iter().map(|hit| &hit.why).collect();
    assert_eq!(why[0].words, ["cold", "chain"]);
    assert_eq!(why[0].phrases, ["cold chain"]);
    assert_eq!(why[0].parts, ["hyperglycemia"]);
    assert!(why[0].title);
    assert_eq!(why[1].words, ["cold", "chain"]);
    assert!(why[1].phrases.is_empty() && why[1].parts.is_empty() && !why[1].title);
}

/// Texts about three things, each in words of its own, with some in common.
fn corpus(builder: &mut IndexBuilder, count: usize) {
    let themes = [
        ["engine", "piston", "valve", "cylinder", "fuel", "torque"],
        ["violin", "cello", "sonata", "orchestra", "chamber", "melody"],
        ["glacier", "moraine", "ice", "valley", "erosion", "alpine"],
    ];
    for at in 0..count {
        let theme = themes[at % 3];
        let words: Vec<&str> = (0..4).map(|k| theme[(at / 3 + k * (1 + at % 2)) % 6]).collect();
        add(
            builder,
            &format!("t{at:03}"),
            None,
            &format!("# Note {at}\n\n{} measured again.", words.join(" ")),
        );
    }
}

#[test]
fn texts_without_a_common_word_are_near_by_their_company() {
    let mut builder = IndexBuilder::new();
    corpus(&mut builder, 60);
    add(&mut builder, "x", None, "# X\n\nPiston torque alone.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    assert!(snapshot.stats().latent_dimensions > 1);
    let query = Query::new("valve", Scope::of(Viewer::Anonymous));
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    let hit = answer.hits.iter().find(|hit| &*hit.document.id == "x").expect("found by company");
    assert!(hit.scores.latent.is_some_and(|cosine| cosine > 0.3), "{:?}", hit.scores);
    let other = answer.hits.iter().find(|hit| hit.chunk.content.contains("sonata"));
    assert!(other.is_none_or(|other| other.scores.fused < hit.scores.fused));
}

#[test]
fn a_chunk_folded_in_lies_where_it_would_have_been_learned() {
    let mut builder = IndexBuilder::new();
    corpus(&mut builder, 60);
    let mut edited = builder.clone().build(Learn::Anew, &go_on).expect("not stopped").edit();
    let text = "# X\n\nViolin and cello, a sonata for orchestra.";
    add(&mut edited, "x", None, text);
    add(&mut builder, "x", None, text);
    let kept = edited.build(Learn::Keep, &go_on).expect("not stopped");
    let anew = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let cosine = |snapshot: &Snapshot| {
        let query = Query::new("chamber melody", Scope::of(Viewer::Anonymous));
        let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
        answer
            .hits
            .iter()
            .find(|hit| &*hit.document.id == "x")
            .and_then(|hit| hit.scores.latent)
            .unwrap_or(0.0)
    };
    assert!(
        (cosine(&kept) - cosine(&anew)).abs() < 0.15,
        "{} and {}",
        cosine(&kept),
        cosine(&anew)
    );
}

#[test]
fn a_mistyped_word_is_taken_for_the_one_in_scope() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# A\n\nThe compressor was replaced.");
    add(&mut builder, "b", Some("ann"), "# B\n\nCompresser of Ann.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let query = Query::new("compresor", Scope::of(Viewer::Anonymous));
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    assert_eq!(answer.hits.len(), 1);
    assert_eq!(
        answer.explanation.scanned.corrected,
        [("compresor".to_owned(), "compressor".to_owned())]
    );
}

#[test]
fn nothing_found_says_why() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# A\n\nThe pump was replaced on the third floor by a new model.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let explain = |text: &str, limits: &Limits| {
        let query = Query::new(text, Scope::of(Viewer::Anonymous));
        let answer = snapshot.search(&query, limits, &go_on).expect("not stopped");
        assert!(answer.hits.is_empty());
        answer.explanation.to_string()
    };
    let limits = Limits::default();
    assert_eq!(
        explain("zebra", &limits),
        "1 chunks of 1 documents in scope; none has anything in common with the query; unknown words: zebra"
    );
    assert_eq!(
        explain("the", &limits),
        "1 chunks of 1 documents in scope; the query has no word to look for"
    );
    assert!(explain("pump zebra lion tiger", &limits).contains("best similarity 0."));
    assert!(
        explain("pump", &Limits { token_budget: 1, ..limits })
            .contains("1 over the budget of 1 tokens")
    );
}

#[test]
fn a_stop_is_heard_everywhere() {
    let mut builder = IndexBuilder::new();
    corpus(&mut builder, 60);
    let asked = std::sync::atomic::AtomicU32::new(0);
    for most in 0..12 {
        asked.store(0, std::sync::atomic::Ordering::Relaxed);
        let go_on = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < most;
        assert_eq!(builder.clone().build(Learn::Anew, &go_on).err(), Some(Stopped));
    }
}

#[test]
fn provider_vectors_join_in() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# A\n\nAlpha words.");
    add(&mut builder, "b", None, "# B\n\nBeta words.");
    let missing = builder.without_vector();
    assert_eq!(missing.len(), 2);
    for (hash, chunk) in missing {
        let vector = if chunk.content.contains("Alpha") { [1.0, 0.0] } else { [0.0, 1.0] };
        builder.vector(hash, &vector);
    }
    assert!(builder.without_vector().is_empty());
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let query = Query {
        embedding: Some(&[0.1, 0.9]),
        ..Query::new("unrelated", Scope::of(Viewer::Anonymous))
    };
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    assert_eq!(&*answer.hits[0].document.id, "b");
    assert!(answer.hits[0].scores.similarity > 0.98);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> Snapshot {
        let mut builder = IndexBuilder::new();
        corpus(&mut builder, 30);
        for (at, owner) in ["ann", "bob"].into_iter().enumerate() {
            for n in 0..5 {
                let text = format!("# Own {n}\n\nsecret{at} piston sonata glacier word{n}");
                add(&mut builder, &format!("{owner}{n}"), Some(owner), &text);
            }
        }
        builder.build(Learn::Anew, &go_on).expect("not stopped")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn scope_never_leaks(words in "(secret0|secret1|piston|sonata|glacer|own|word[0-9]| |\\PC){0,12}", ann in any::<bool>(), top_k in 0_usize..40) {
            let snapshot = snapshot();
            let (viewer, other) = if ann { (Viewer::User("ann"), "bob") } else { (Viewer::Anonymous, "") };
            let query = Query { top_k, ..Query::new(&words, Scope::of(viewer)) };
            let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
            prop_assert!(answer.hits.len() <= top_k);
            for hit in &answer.hits {
                prop_assert!(hit.document.owner.as_deref().is_none_or(|owner| ann && owner != other));
                prop_assert!((0.0..=1.0).contains(&hit.scores.similarity));
            }
            let unknown = &answer.explanation.scanned.unknown_words;
            if words.split(' ').any(|word| word == "secret1") {
                prop_assert!(unknown.iter().any(|word| word == "secret1") || answer.explanation.scanned.corrected.iter().any(|(from, _)| from == "secret1"));
            }
        }
    }

    #[test]
    fn any_query_is_answered() {
        let snapshot = snapshot();
        let long = "piston sonata xylophone ".repeat(5_000);
        let letters = "z".repeat(100_000);
        let wide = "漢字".repeat(20_000);
        for text in [
            "",
            "the of and",
            "🙂🙃🎻",
            "\0\u{feff}\u{202e}",
            &long,
            &letters,
            &wide,
            "a.b_c:d/e",
            "é\u{301}\u{301}",
        ] {
            let query = Query::new(text, Scope::of(Viewer::Anonymous));
            snapshot.search(&query, &Limits::default(), &go_on).expect("not stopped");
        }
        let empty = Snapshot::default();
        let answer =
            empty.search(&Query::new("x", Scope::of(Viewer::Operator)), &Limits::default(), &go_on);
        assert_eq!(answer.expect("not stopped").explanation.to_string(), "no document is in scope");
    }
}

#[test]
fn many_texts_with_few_words_in_common_are_indexed() {
    let mut builder = IndexBuilder::new();
    for at in 0..60 {
        add(&mut builder, &format!("n{at}"), None, &format!("# Note {at}\n\nThe word{at} stands."));
    }
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    assert_eq!(snapshot.stats().latent_dimensions, 0);
    assert_eq!(ids(&snapshot, "word7", Viewer::Anonymous), ["n7"]);
}

#[test]
fn words_of_a_rare_language_are_stemmed_as_its_texts_are() {
    let mut builder = IndexBuilder::new();
    for at in 0..60 {
        let text = format!("# Note {at}\n\nThe pumps of the harbour were repaired in week {at}.");
        add(&mut builder, &format!("e{at}"), None, &text);
    }
    let text = "# Kündigung\n\nDie Fristen für die Verträge sind in den Anlagen beschrieben.";
    add(&mut builder, "de", None, text);
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    for query in ["Frist", "Vertrag Anlage", "Wie ist die Frist für den Vertrag?"] {
        assert_eq!(
            ids(&snapshot, query, Viewer::Anonymous).first().map(String::as_str),
            Some("de")
        );
    }
}

#[test]
fn a_text_without_small_words_is_not_taken_for_another_language() {
    // Words that are small ones elsewhere: German `die`, Dutch `men`, Italian `per`.
    let mut builder = IndexBuilder::new();
    let text = "statins recurrences cancers per cohort die casting studies men mortality trials";
    add(&mut builder, "x", None, text);
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    assert_eq!(ids(&snapshot, "statin study cancer", Viewer::Anonymous), ["x"]);
}

#[test]
fn only_the_documents_that_are_named_take_part() {
    let mut builder = IndexBuilder::new();
    for id in ["a", "b", "c"] {
        add(&mut builder, id, (id == "c").then_some("ann"), "# Pumps\n\nThe pumps were repaired.");
    }
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let found = |viewer, documents: &[&str]| -> Vec<String> {
        let scope = Scope { documents: Some(documents), ..Scope::of(viewer) };
        let answer = snapshot.search(&Query::new("pumps", scope), &Limits::NONE, &go_on);
        let hits = answer.expect("not stopped").hits;
        hits.iter().map(|hit| hit.document.id.to_string()).collect()
    };
    assert_eq!(found(Viewer::Anonymous, &["b", "c", "zz"]), ["b"]);
    assert_eq!(found(Viewer::User("ann"), &["c"]), ["c"]);
    assert_eq!(found(Viewer::User("ann"), &[]), [""; 0]);
}

#[test]
fn words_that_are_alike_in_part_count_between_equals() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "# One\n\nThe boiler was painted over.");
    add(&mut builder, "b", None, "# Two\n\nThe boiler was overheating.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    // Nothing has the word itself.
    assert_eq!(ids(&snapshot, "boiler heat", Viewer::Operator), ["b", "a"]);
}

#[test]
fn what_a_title_says_in_full_comes_before_what_it_says_among_other_things() {
    let mut builder = IndexBuilder::new();
    let text = "It was agreed that it is looked at again.";
    let title = |words: &str| format!("# {words}\n\n{text}");
    add(&mut builder, "a", None, &title("Copper prices, wages and weather"));
    add(&mut builder, "b", None, &title("Copper prices"));
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    assert_eq!(ids(&snapshot, "copper prices", Viewer::Operator), ["b", "a"]);
}

#[test]
fn what_means_the_same_is_found_in_english() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "The automobile needs new tires before winter comes.");
    add(&mut builder, "b", None, "The committee signed a treaty about fishing rights.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let query = Query::new("car", Scope::of(Viewer::Anonymous));
    let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
    assert_eq!(&*answer.hits[0].document.id, "a");
    assert_eq!(answer.hits[0].scores.words, None);
    assert!(answer.hits[0].scores.meaning.is_some());
    assert_eq!(answer.hits[0].why.meanings, ["car"]);
    assert_eq!(ids(&snapshot, "qqxzw", Viewer::Anonymous), [""; 0]);
}

#[test]
fn other_languages_have_no_general_meaning() {
    let mut builder = IndexBuilder::new();
    add(
        &mut builder,
        "a",
        None,
        "Das Auto war schon alt und hand signal art war gut, und es ist so.",
    );
    add(&mut builder, "b", None, "The hand of the clock is a signal, and it was on time.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let meaning = |text| {
        let query = Query::new(text, Scope::of(Viewer::Anonymous));
        let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
        let with = answer.hits.iter().filter(|hit| hit.scores.meaning.is_some());
        with.map(|hit| hit.document.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(meaning("what is the hand of a clock"), ["b"]);
    assert_eq!(meaning("was ist das für eine Hand und ein Signal"), [""; 0]);
}

/// What a question says in words of its own takes little from the passage that answers it.
#[test]
fn asking_words_and_strange_ones_do_not_hide_the_answer() {
    let mut builder = IndexBuilder::new();
    add(&mut builder, "a", None, "The company has 41 employees in two offices.");
    add(&mut builder, "b", None, "Probes are sealed against water and salt.");
    let snapshot = builder.build(Learn::Anew, &go_on).expect("not stopped");
    let best = |text: &str| {
        let query = Query::new(text, Scope::of(Viewer::Anonymous));
        let answer = snapshot.search(&query, &Limits::NONE, &go_on).expect("not stopped");
        let hit = answer.hits.first().expect("something is found");
        (hit.document.id.to_string(), hit.scores.similarity)
    };
    for query in ["How many employees are there?", "several employees", "wie viele employees"] {
        let (found, similarity) = best(query);
        assert!(found == "a" && similarity > 0.9, "{query}: {found} {similarity}");
    }
    let (found, similarity) = best("employees qqqx");
    assert!(found == "a" && (0.5..0.9).contains(&similarity), "{found} {similarity}");
}
