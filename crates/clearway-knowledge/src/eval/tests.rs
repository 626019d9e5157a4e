use super::*;
use crate::go_on;

const CORPUS: &str = include_str!("../../../../bench/kb/company/corpus.jsonl");
const QUERIES: &str = include_str!("../../../../bench/kb/company/queries.jsonl");
const JUDGEMENTS: &str = include_str!("../../../../bench/kb/company/qrels/test.tsv");

fn company() -> Collection {
    let mut collection = Collection::default();
    CORPUS.lines().for_each(|line| collection.corpus_line(line).expect("a passage"));
    QUERIES.lines().for_each(|line| collection.query_line(line).expect("a question"));
    for (at, line) in JUDGEMENTS.lines().enumerate() {
        collection.judgement_line(line, at == 0).expect("a judgement");
    }
    collection
}

/// What plain FTS5 reaches on these questions; `clearway-bench kb` measures it.
const PLAIN_FTS5: f64 = 0.842;

#[test]
fn the_company_is_found_better_than_by_plain_words() {
    let collection = company();
    let snapshot = collection.index(&go_on).expect("not stopped");
    let answers: Vec<Vec<String>> = collection
        .judged_questions()
        .map(|question| answer(&snapshot, &question.text, &go_on).expect("not stopped"))
        .collect();
    let quality = collection.quality(&answers);
    assert_eq!(quality.questions, collection.questions.len());
    assert!(quality.ndcg_at_10 > PLAIN_FTS5 * 1.05, "{quality:?}");
}

#[test]
fn measures_are_those_of_the_books() {
    let grades = HashMap::from([("a".to_owned(), 2), ("b".to_owned(), 1), ("c".to_owned(), 0)]);
    let answer = ["c", "b", "x", "a"].map(ToOwned::to_owned);
    let answer: Vec<&String> = answer.iter().collect();
    let third = 3_f64.log2();
    let gained = 1.0 / third + 2.0 / 5_f64.log2();
    assert!((ndcg(&answer, &grades, 10) - gained / (2.0 + 1.0 / third)).abs() < 1e-12);
    assert!((mrr(&answer, &grades, 10) - 0.5).abs() < 1e-12);
    assert!((recall(&answer, &grades, 3) - 0.5).abs() < 1e-12);
    assert!(ndcg(&[], &grades, 10).abs() < 1e-12);
}

#[test]
fn a_question_that_is_a_document_does_not_answer_itself() {
    let mut collection = Collection::default();
    for line in [r#"{"_id": "1", "text": "Ferries  are late"}"#, r#"{"_id": "2", "text": "No"}"#] {
        collection.corpus_line(line).expect("a passage");
    }
    let (one, two) = (
        r#"{"_id": "1", "text": "ferries are late"}"#,
        r#"{"_id": "1", "text": "Ferries are late"}"#,
    );
    let answer = vec!["1".to_owned(), "2".to_owned()];
    for (question, mrr) in [(one, 0.5), (two, 1.0)] {
        let mut collection = collection.clone();
        collection.query_line(question).expect("a question");
        collection.judgement_line("1\t2\t1", false).expect("a judgement");
        assert!((collection.quality([&answer]).mrr_at_10 - mrr).abs() < 1e-12, "{question}");
    }
}

#[test]
fn wrong_lines_are_told_apart() {
    let mut collection = Collection::default();
    collection.corpus_line(r#"{"_id": 7, "text": "x"}"#).expect("numbered, without a title");
    let wrong = |result: Result<(), String>| result.expect_err("wrong");
    assert!(wrong(collection.corpus_line("{")).starts_with("no JSON: "));
    assert_eq!(wrong(collection.corpus_line("[]")), "no JSON object");
    assert_eq!(wrong(collection.corpus_line(r#"{"text": "x"}"#)), "`_id` is missing");
    assert_eq!(wrong(collection.corpus_line(r#"{"_id": "8"}"#)), "`text` is missing");
    assert_eq!(wrong(collection.corpus_line(r#"{"_id": "8", "text": 1}"#)), "`text` is no text");
    assert_eq!(
        wrong(collection.corpus_line(r#"{"_id": "7", "text": ""}"#)),
        r#"a second document with the `_id` "7""#
    );
    collection.judgement_line("query-id\tcorpus-id\tscore", true).expect("a heading");
    assert_eq!(
        wrong(collection.judgement_line("q\td\tgood", false)),
        r#"the grade is no whole number: "good""#
    );
    assert!(wrong(collection.judgement_line("q d 1", false)).starts_with("1 columns"));
}
