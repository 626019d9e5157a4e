use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn candidate(key: u32, tenant: usize, level: u8, ready_at: i64) -> Candidate<u32> {
    let priority = Priority::new(level).unwrap();
    Candidate { key, tenant, priority, ready_at: Timestamp(ready_at) }
}

fn tenant(held: u32, weight: u32) -> Tenant {
    Tenant { held, weight, served: None }
}

#[test]
fn ageing_lifts_one_level_at_a_time() {
    let level =
        |waited: i64| effective(Priority::LOW, Timestamp(0), 30 * SECOND, Timestamp(waited * 1000));
    assert_eq!([0, 29, 30, 59, 60, 90, 1_000_000].map(level), [4, 4, 3, 3, 2, 1, 1]);
    let never = effective(Priority::LOW, Timestamp(0), Duration::ZERO, Timestamp(i64::MAX));
    assert_eq!(never, 4, "no ageing is none, not endless");
    let before = effective(Priority::LOW, Timestamp(100), SECOND, Timestamp(0));
    assert_eq!(before, 4, "a clock that went backwards lifts nobody");
}

#[test]
fn shares_are_compared_exactly() {
    let share = |slots, weight| Share { slots, weight };
    assert!(share(1, 3) < share(1, 2));
    assert!(share(2, 2) == share(1, 1));
    assert!(share(u32::MAX, 1) > share(u32::MAX, 2));
}

#[test]
fn a_tenant_that_holds_less_goes_first() {
    let candidates = vec![candidate(1, 0, 3, 0), candidate(2, 0, 3, 1), candidate(3, 1, 3, 9)];
    let chosen = pick(candidates, &[tenant(1, 1), tenant(0, 1)], 2, SECOND, Timestamp(9));
    assert_eq!(chosen, [3, 1]);
}

#[test]
fn old_runs_of_a_flood_do_not_go_before_new_ones_of_others() {
    let now = Timestamp(600_000);
    let flood: Vec<_> = (0..50).map(|key| candidate(key, 0, 3, i64::from(key))).collect();
    let mut candidates = flood.clone();
    candidates.push(candidate(99, 1, 3, 599_000));
    let served = |at| Tenant { served: Some(Timestamp(at)), ..tenant(7, 1) };
    let pick = |tenants: &[Tenant]| pick(candidates.clone(), tenants, 1, 30 * SECOND, now);
    assert_eq!(pick(&[served(599_500), tenant(0, 1)]), [99]);
    assert_eq!(pick(&[served(500_000), tenant(0, 1)]), [0], "it has got nothing for long");
}

#[test]
fn within_a_tenant_waiting_counts_however_much_it_is_served() {
    let now = Timestamp(121_000);
    let mut candidates: Vec<_> = (0..9).map(|key| candidate(key, 0, 1, 120_000)).collect();
    candidates.push(candidate(50, 0, 5, 0));
    let served = Tenant { served: Some(now), ..tenant(3, 1) };
    assert_eq!(pick(candidates, &[served], 1, 30 * SECOND, now), [50]);
}

proptest! {
    /// The larger of two tenants' backlogs does not matter: while both wait, slots differ by their
    /// weights and by at most one.
    #[test]
    fn weights_divide_the_slots(
        slots in 1..60u32, first in 1..5u32, second in 1..5u32, crowd in 60..90u32,
    ) {
        let candidates = (0..crowd).map(|key| candidate(key, 0, 3, 0))
            .chain((1000..1060).map(|key| candidate(key, 1, 3, 5)))
            .collect();
        let tenants = [tenant(0, first), tenant(0, second)];
        let chosen = pick(candidates, &tenants, slots, SECOND, Timestamp(5));
        prop_assert_eq!(chosen.len() as u32, slots);
        let of_first = chosen.iter().filter(|&&key| key < 1000).count() as f64;
        let fair = f64::from(slots) * f64::from(first) / f64::from(first + second);
        prop_assert!((of_first - fair).abs() <= 1.0, "{of_first} of {slots}, fair is {fair}");
    }

    /// What is chosen is never of a worse level than what is left, and within a tenant and level
    /// never younger.
    #[test]
    fn nobody_better_is_passed_over(
        waiting in prop::collection::vec((0..4usize, 1..=5u8, 0..200i64), 0..60),
        slots in 0..20u32,
    ) {
        let now = Timestamp(200_000);
        let candidates: Vec<_> = waiting.iter().enumerate()
            .map(|(key, &(tenant, level, at))| candidate(key as u32, tenant, level, at * 1000))
            .collect();
        let tenants = [tenant(0, 1), tenant(3, 1), tenant(0, 2), tenant(1, 3)];
        let chosen = pick(candidates.clone(), &tenants, slots, 30 * SECOND, now);
        let level = |candidate: &Candidate<u32>| {
            effective(candidate.priority, candidate.ready_at, 30 * SECOND, now)
        };
        let (taken, left): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|candidate| chosen.contains(&candidate.key));
        prop_assert_eq!(taken.len(), candidates.len().min(slots as usize));
        for taken in &taken {
            for left in &left {
                prop_assert!(level(taken) <= level(left));
                if (taken.tenant, level(taken)) == (left.tenant, level(left)) {
                    prop_assert!(taken.ready_at <= left.ready_at);
                }
            }
        }
    }

    /// Dropping deltas keeps every fact as it was, in as few rows as there are stretches of one
    /// fence.
    #[test]
    fn dropping_deltas_keeps_facts(parts in prop::collection::vec((any::<bool>(), 0..3u32, 1..5u64), 1..20)) {
        let (mut log, mut seq, mut fence) = (Vec::new(), 0, 0);
        for (is_fact, raised, count) in parts {
            fence += raised / 2;
            let segment = if is_fact {
                crate::conformance::facts(seq, count, fence)
            } else {
                crate::conformance::tokens(seq, count, fence)
            };
            log.push(segment);
            seq += count;
        }
        let facts = |log: &[Segment]| -> Vec<Event> {
            let events = log.iter().flat_map(|segment| segment.decode().unwrap());
            events.filter(|event| matches!(event.body, Body::Fact(_))).collect()
        };
        let kept = without_deltas(&log).unwrap();
        let all: Vec<Event> = kept.iter().flat_map(|segment| segment.decode().unwrap()).collect();
        prop_assert_eq!(&all, &facts(&log));
        let mut rows: BTreeMap<u32, u32> = BTreeMap::new();
        for segment in &kept {
            *rows.entry(segment.fence).or_default() += 1;
        }
        prop_assert!(rows.values().all(|&rows| rows == 1));
        prop_assert_eq!(without_deltas(&kept).unwrap(), kept, "nothing is left to drop");
    }
}
