use proptest::prelude::*;
use serde_json::json;

use super::*;

fn values(state: &State, name: &str) -> Value {
    state.get(name).unwrap_or(Value::Null)
}

#[test]
fn merge_replaces_in_place_and_removes() {
    let mut state = State::new();
    state.apply("m", Op::Merge(vec![json!({"id": "a", "n": 1}), json!({"id": "b", "n": 1})]));
    state.apply("m", Op::Merge(vec![json!({"id": "a", "n": 2}), json!({"id": "c"})]));
    assert_eq!(values(&state, "m"), json!([{"id": "a", "n": 2}, {"id": "b", "n": 1}, {"id": "c"}]));
    state.apply(
        "m",
        Op::Merge(vec![json!({"type": "remove", "id": "b"}), json!({"id": "a", "n": 3})]),
    );
    assert_eq!(values(&state, "m"), json!([{"id": "a", "n": 3}, {"id": "c"}]));
    assert_eq!(state.version(), 3);
    assert_eq!(state.channel_version("m"), 3);
}

#[test]
fn fields_of_an_object_are_replaced_one_by_one() {
    let mut state = State::new();
    for fields in [json!({"a": 1, "b": 1}), json!({"b": 2, "c": [3]}), json!({"a": null})] {
        let op = Reducer::Merge.op(fields).unwrap();
        assert_eq!(Op::decode(op.tag(), &op.encode()), Some(op.clone()));
        state.apply("o", op);
    }
    assert_eq!(values(&state, "o"), json!({"b": 2, "c": [3]}));
    assert_eq!(Reducer::Merge.op(json!({})), None);
    let channels = BTreeMap::from([("o".into(), Reducer::Merge)]);
    let write = |value| Write::new("o", value);
    assert_eq!(
        reduce(&channels, [write(json!({"x": 1})), write(json!({"y": 2}))]).unwrap().len(),
        2
    );
    state.apply("o", Reducer::Merge.op(json!("all of it")).unwrap());
    assert_eq!(values(&state, "o"), json!("all of it"));
    state.apply("o", Reducer::Merge.op(json!({"x": 1})).unwrap());
    assert_eq!(values(&state, "o"), json!({"x": 1}));
}

#[test]
fn clones_do_not_see_later_writes() {
    let mut state = State::new();
    state.apply("log", Op::Append(vec![json!(1)]));
    let before = state.clone();
    state.apply("log", Op::Append(vec![json!(2)]));
    assert_eq!(values(&before, "log"), json!([1]));
    assert_eq!(values(&state, "log"), json!([1, 2]));
}

#[test]
fn two_writers_of_a_last_value_channel_are_refused() {
    let channels =
        BTreeMap::from([("draft".into(), Reducer::Last), ("log".into(), Reducer::Append)]);
    let write = |channel: &str| Write::new(channel, json!(1));
    assert_eq!(reduce(&channels, [write("log"), write("log"), write("draft")]).unwrap().len(), 3);
    let failure = reduce(&channels, [write("draft"), write("draft")]).unwrap_err();
    assert_eq!(failure.code, Code::InvalidUpdate);
    let failure = reduce(&channels, [write("nope")]).unwrap_err();
    assert_eq!(failure.message, "no channel `nope`; the agent has: draft, log");
}

#[test]
fn null_writes_nothing_to_a_list_and_a_value_to_last() {
    assert_eq!(Reducer::Append.op(Value::Null), None);
    assert_eq!(Reducer::Last.op(Value::Null), Some(Op::Assign(Value::Null)));
    assert_eq!(Reducer::Set.op(json!("x")), Some(Op::Add(vec![json!("x")])));
}

fn item() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0..6u8).prop_map(|n| json!(n)),
        (0..6u8, 0..3u8).prop_map(|(id, n)| json!({"id": id.to_string(), "n": n})),
        (0..6u8).prop_map(|id| json!({"type": "remove", "id": id.to_string()})),
    ]
}

fn list_op(reducer: Reducer, items: Vec<Value>) -> Option<Op> {
    reducer.op(Value::Array(items))
}

fn apply_all(reducer: Reducer, batches: &[Vec<Value>]) -> Value {
    let mut state = State::new();
    for batch in batches {
        if let Some(op) = list_op(reducer, batch.clone()) {
            state.apply("c", op);
        }
    }
    state.get("c").unwrap_or(json!([]))
}

proptest! {
    /// `r(r(s, xs), ys) = r(s, xs ++ ys)`, for every way to cut the writes into batches.
    #[test]
    fn reducers_are_batching_invariant(
        items in prop::collection::vec(item(), 0..24),
        cuts in prop::collection::vec(0..24usize, 0..6),
    ) {
        for reducer in [Reducer::Append, Reducer::MergeById, Reducer::Set] {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(items.len())).collect();
            cuts.push(0);
            cuts.push(items.len());
            cuts.sort_unstable();
            let batches: Vec<Vec<Value>> =
                cuts.windows(2).map(|pair| items[pair[0]..pair[1]].to_vec()).collect();
            prop_assert_eq!(
                apply_all(reducer, &batches),
                apply_all(reducer, std::slice::from_ref(&items)),
                "{:?}", reducer
            );
        }
    }

    #[test]
    fn ops_survive_storage(items in prop::collection::vec(item(), 1..8)) {
        for reducer in [Reducer::Append, Reducer::MergeById, Reducer::Set] {
            let op = list_op(reducer, items.clone()).unwrap();
            prop_assert_eq!(Op::decode(op.tag(), &op.encode()), Some(op));
        }
        let op = Op::Assign(Value::Array(items));
        prop_assert_eq!(Op::decode(op.tag(), &op.encode()), Some(op));
    }

    #[test]
    fn replay_under_stored_versions_equals_the_live_state(
        writes in prop::collection::vec((0..3u8, item()), 0..24),
    ) {
        let mut live = State::new();
        let mut log = Vec::new();
        for (channel, item) in writes {
            let name = ["a", "b", "c"][channel as usize];
            let reducer = [Reducer::Append, Reducer::MergeById, Reducer::Last][channel as usize];
            let op = reducer.op(item).unwrap();
            let version = live.apply(name, op.clone());
            log.push((name, op.tag(), op.encode(), version));
        }
        let mut replayed = State::new();
        for (name, tag, data, version) in log {
            replayed.apply_at(name, Op::decode(tag, &data).unwrap(), version);
        }
        prop_assert_eq!(&replayed, &live);
        prop_assert_eq!(replayed.weight(), live.weight());
    }
}
