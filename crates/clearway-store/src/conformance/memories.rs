//! What is remembered beside runs and threads: assistants and items.

use super::*;
use crate::*;

on_every_store! {
    assistants_have_versions
    assistants_of_tenants_are_apart
    an_assistant_changed_twice_at_once_is_changed_once
    items_are_put_found_and_deleted
    items_are_searched
    items_are_found_by_their_words
    items_expire_and_live_on_when_used
    scopes_do_not_see_each_other
}

fn assistant(number: u128, version: u32) -> Assistant {
    let object = |value: serde_json::Value| value.as_object().cloned().unwrap();
    Assistant {
        id: Uuid::from_u128(number),
        tenant: "acme".to_owned(),
        owner: Some("ann".to_owned()),
        agent: "chat".to_owned(),
        version,
        name: format!("name {version}"),
        description: None,
        config: object(json!({"configurable": {"tone": version}})),
        context: object(json!({"tone": version})),
        metadata: object(json!({"made": "here"})),
        created_at: START,
        updated_at: START.plus(Duration::from_secs(u64::from(version))),
    }
}

async fn put(bed: &Bed, assistant: Assistant, after: Option<u32>) -> AssistantPut {
    bed.store.put_assistant(NewAssistant { assistant, after }).await.unwrap()
}

async fn assistants_have_versions(mut bed: Bed) {
    assert_eq!(put(&bed, assistant(1, 2), Some(1)).await, AssistantPut::Gone);
    assert_eq!(put(&bed, assistant(1, 1), None).await, AssistantPut::Stored);
    assert_eq!(put(&bed, assistant(1, 1), None).await, AssistantPut::Stored, "the same again");
    assert_eq!(put(&bed, assistant(1, 2), Some(1)).await, AssistantPut::Stored);
    assert_eq!(put(&bed, assistant(2, 1), None).await, AssistantPut::Stored);
    bed.restart().await;
    let id = Uuid::from_u128(1);
    let latest = LatestAssistant { latest: assistant(1, 2), newest: 2 };
    assert_eq!(bed.store.assistant("acme", id).await.unwrap(), Some(latest));
    let all = bed.store.assistant_versions("acme", id).await.unwrap();
    assert_eq!(all, [assistant(1, 2), assistant(1, 1)]);
    let back = bed.store.select_assistant("acme", id, 1).await.unwrap();
    assert_eq!(back, Some(assistant(1, 1)));
    assert_eq!(bed.store.select_assistant("acme", id, 9).await.unwrap(), None);
    let latest = LatestAssistant { latest: assistant(1, 1), newest: 2 };
    assert_eq!(bed.store.assistant("acme", id).await.unwrap(), Some(latest));
    let listed = bed.store.assistants("acme", None, 0).await.unwrap();
    assert_eq!(listed, [assistant(1, 1), assistant(2, 1)]);
    let listed = bed.store.assistants("acme", Some(id), 1).await.unwrap();
    assert_eq!(listed, [assistant(2, 1)]);
    assert!(bed.store.delete_assistant("acme", id).await.unwrap());
    assert!(!bed.store.delete_assistant("acme", id).await.unwrap());
    assert_eq!(bed.store.assistant("acme", id).await.unwrap(), None);
    assert_eq!(bed.store.assistant_versions("acme", id).await.unwrap(), []);
}

async fn assistants_of_tenants_are_apart(bed: Bed) {
    put(&bed, assistant(1, 1), None).await;
    let other = Assistant { tenant: "other".to_owned(), ..assistant(1, 1) };
    assert_eq!(put(&bed, other.clone(), None).await, AssistantPut::Stored);
    bed.store.delete_assistant("acme", Uuid::from_u128(1)).await.unwrap();
    assert_eq!(bed.store.assistants("acme", None, 0).await.unwrap(), []);
    assert_eq!(bed.store.assistants("other", None, 0).await.unwrap(), [other]);
}

async fn an_assistant_changed_twice_at_once_is_changed_once(bed: Bed) {
    put(&bed, assistant(1, 1), None).await;
    assert_eq!(put(&bed, assistant(1, 2), Some(1)).await, AssistantPut::Stored);
    let late = Assistant { name: "late".to_owned(), ..assistant(1, 2) };
    let now = LatestAssistant { latest: assistant(1, 2), newest: 2 };
    assert_eq!(put(&bed, late, Some(1)).await, AssistantPut::Exists(Box::new(now.clone())));
    let again = Assistant { name: "again".to_owned(), ..assistant(1, 1) };
    assert_eq!(put(&bed, again, None).await, AssistantPut::Exists(Box::new(now)));
}

fn scope() -> ItemScope {
    ItemScope { tenant: "acme".to_owned(), owner: None }
}

fn space(text: &str) -> Vec<String> {
    text.split('.').map(ToOwned::to_owned).collect()
}

fn item(at: &str, key: &str, value: serde_json::Value) -> NewItem {
    NewItem {
        scope: scope(),
        namespace: space(at),
        key: key.to_owned(),
        words: value.to_string(),
        value: value.as_object().cloned().unwrap(),
        ttl: None,
    }
}

async fn keep(bed: &Bed, item: NewItem) {
    assert_eq!(bed.store.put_item(item).await.unwrap(), ItemPut::Stored);
}

async fn keys(bed: &Bed, search: ItemSearch) -> Vec<String> {
    let found = bed.store.search_items(&scope(), search).await.unwrap();
    found.into_iter().map(|found| found.item.key).collect()
}

async fn items_are_put_found_and_deleted(mut bed: Bed) {
    keep(&bed, item("a.b", "k", json!({"n": 1}))).await;
    bed.advance(5);
    keep(&bed, item("a.b", "k", json!({"n": 2}))).await;
    bed.restart().await;
    let found = bed.store.item(&scope(), &space("a.b"), "k").await.unwrap().unwrap();
    assert_eq!(found.value["n"], 2);
    let at = START.plus(Duration::from_secs(5));
    assert_eq!((found.created_at, found.updated_at), (START, at));
    assert_eq!(found.namespace, space("a.b"));
    assert_eq!(bed.store.item(&scope(), &space("a"), "k").await.unwrap(), None);
    assert!(bed.store.delete_item(&scope(), &space("a.b"), "k").await.unwrap());
    assert!(!bed.store.delete_item(&scope(), &space("a.b"), "k").await.unwrap());
    assert_eq!(bed.store.item(&scope(), &space("a.b"), "k").await.unwrap(), None);
    assert_eq!(keys(&bed, ItemSearch::default()).await, [""; 0]);
}

async fn items_are_searched(bed: Bed) {
    for (at, key, stars) in [("a", "1", 1), ("a.b", "2", 2), ("ab", "3", 3), ("a.c", "4", 4)] {
        keep(&bed, item(at, key, json!({"stars": stars}))).await;
        bed.advance(1);
    }
    let all = || ItemSearch::default();
    assert_eq!(keys(&bed, all()).await, ["4", "3", "2", "1"]);
    let below = ItemSearch { prefix: space("a"), ..all() };
    assert_eq!(keys(&bed, below).await, ["4", "2", "1"]);
    let page = ItemSearch { offset: 1, limit: 2, ..all() };
    assert_eq!(keys(&bed, page).await, ["3", "2"]);
    let filter = |test, stars: i64| {
        vec![Condition { field: "stars".to_owned(), test, operand: stars.into() }]
    };
    let some = ItemSearch { filter: filter(Test::GreaterOrEqual, 3), offset: 1, ..all() };
    assert_eq!(keys(&bed, some).await, ["3"]);
    let spaces = |query| async { bed.store.item_namespaces(&scope(), query).await.unwrap() };
    let found = spaces(NamespaceQuery::default()).await;
    assert_eq!(found, [space("a"), space("a.b"), space("a.c"), space("ab")]);
    let short = NamespaceQuery { prefix: space("a"), max_depth: Some(1), ..Default::default() };
    assert_eq!(spaces(short).await, [space("a")]);
}

async fn items_are_found_by_their_words(bed: Bed) {
    keep(&bed, item("a", "tea", json!({"text": "Green tea, brewed slowly"}))).await;
    keep(&bed, item("a", "coffee", json!({"text": "Black coffee and \"green\" beans"}))).await;
    keep(&bed, item("b", "milk", json!({"text": "Milk"}))).await;
    let ask = |words: &[&str], prefix: &str| ItemSearch {
        words: words.iter().map(|&word| word.to_owned()).collect(),
        prefix: if prefix.is_empty() { Vec::new() } else { space(prefix) },
        ..ItemSearch::default()
    };
    assert_eq!(keys(&bed, ask(&["green", "tea"], "")).await, ["tea", "coffee"]);
    assert_eq!(keys(&bed, ask(&["COFFEE"], "a")).await, ["coffee"]);
    assert_eq!(keys(&bed, ask(&["milk"], "a")).await, [""; 0]);
    assert_eq!(keys(&bed, ask(&["OR", "\"", "nothing"], "")).await, [""; 0]);
    let found = bed.store.search_items(&scope(), ask(&["milk"], "")).await.unwrap();
    assert!(found[0].score.is_some_and(|score| score > 0.0), "{found:?}");
    // What is changed or deleted is not found by what it was.
    keep(&bed, item("b", "milk", json!({"text": "Oats"}))).await;
    bed.store.delete_item(&scope(), &space("a"), "tea").await.unwrap();
    assert_eq!(keys(&bed, ask(&["milk", "tea"], "")).await, [""; 0]);
    assert_eq!(keys(&bed, ask(&["oats"], "")).await, ["milk"]);
    // One without words is there, but not among those that can be found by any.
    keep(&bed, NewItem { words: String::new(), ..item("c", "mute", json!({"text": "x"})) }).await;
    assert_eq!(keys(&bed, ask(&[], "c")).await, ["mute"]);
    assert_eq!(keys(&bed, ItemSearch { indexed: true, ..ask(&[], "c") }).await, [""; 0]);
    assert_eq!(keys(&bed, ItemSearch { indexed: true, ..ask(&[], "b") }).await, ["milk"]);
}

async fn items_expire_and_live_on_when_used(bed: Bed) {
    bed.store.join(ME).await.unwrap();
    let ttl = Some(Duration::from_secs(60));
    keep(&bed, NewItem { ttl, ..item("a", "used", json!({})) }).await;
    keep(&bed, NewItem { ttl, ..item("a", "unused", json!({"text": "words"})) }).await;
    bed.advance(59);
    let used = vec![(space("a"), "used".to_owned())];
    bed.store.touch_items(&scope(), used.clone()).await.unwrap();
    bed.advance(1);
    assert_eq!(keys(&bed, ItemSearch::default()).await, ["used"]);
    let words = vec!["words".to_owned()];
    assert_eq!(keys(&bed, ItemSearch { words, ..Default::default() }).await, [""; 0]);
    bed.sweep().await;
    bed.advance(58);
    assert!(bed.store.item(&scope(), &space("a"), "used").await.unwrap().is_some());
    bed.advance(1);
    assert!(bed.store.item(&scope(), &space("a"), "used").await.unwrap().is_none());
    // What is gone stays gone.
    bed.store.touch_items(&scope(), used).await.unwrap();
    assert!(bed.store.item(&scope(), &space("a"), "used").await.unwrap().is_none());
    assert_eq!(
        bed.store.item_namespaces(&scope(), NamespaceQuery::default()).await.unwrap(),
        [[""; 0]; 0]
    );
}

async fn scopes_do_not_see_each_other(bed: Bed) {
    let others = [
        ItemScope { owner: Some("ann".to_owned()), ..scope() },
        ItemScope { tenant: "other".to_owned(), ..scope() },
    ];
    keep(&bed, item("a", "k", json!({"whose": "nobody"}))).await;
    for other in &others {
        assert_eq!(bed.store.item(other, &space("a"), "k").await.unwrap(), None);
        let found = bed.store.search_items(other, ItemSearch::default()).await.unwrap();
        assert_eq!(found, []);
        keep(&bed, NewItem { scope: other.clone(), ..item("a", "k", json!({})) }).await;
        assert!(bed.store.delete_item(other, &space("a"), "k").await.unwrap());
    }
    let mine = bed.store.item(&scope(), &space("a"), "k").await.unwrap().unwrap();
    assert_eq!(mine.value["whose"], "nobody");
}
