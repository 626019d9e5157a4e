//! Who waits for a model, in which order: by class, within a class each tenant in turn, within a
//! tenant by arrival.
//!
//! Invariant: who stands at the head stays there until it is served or leaves, so that whatever it
//! waits for gathers for it and not for smaller ones behind.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Class;

#[derive(Debug, Default)]
pub(super) struct Lines {
    classes: [VecDeque<Line>; Class::ALL.len()],
}

/// The waiters of one tenant; never empty.
#[derive(Debug)]
struct Line {
    tenant: Arc<str>,
    waiters: VecDeque<u64>,
}

impl Lines {
    pub(super) fn push(&mut self, class: Class, tenant: &Arc<str>, waiter: u64) {
        let lines = &mut self.classes[class as usize];
        match lines.iter_mut().find(|line| line.tenant == *tenant) {
            Some(line) => line.waiters.push_back(waiter),
            None => lines.push_back(Line { tenant: tenant.clone(), waiters: [waiter].into() }),
        }
    }

    pub(super) fn head(&self, class: Class) -> Option<u64> {
        self.classes[class as usize].front()?.waiters.front().copied()
    }

    /// Serves the head: the next tenant's turn.
    pub(super) fn pop(&mut self, class: Class) {
        let lines = &mut self.classes[class as usize];
        if let Some(mut line) = lines.pop_front() {
            line.waiters.pop_front();
            if !line.waiters.is_empty() {
                lines.push_back(line);
            }
        }
    }

    pub(super) fn remove(&mut self, class: Class, tenant: &str, waiter: u64) {
        let lines = &mut self.classes[class as usize];
        let Some(at) = lines.iter().position(|line| *line.tenant == *tenant) else { return };
        lines[at].waiters.retain(|it| *it != waiter);
        if lines[at].waiters.is_empty() {
            lines.remove(at);
        }
    }

    pub(super) fn len(&self, class: Class) -> usize {
        self.classes[class as usize].iter().map(|line| line.waiters.len()).sum()
    }

    /// How many of `tenant`'s waiters stand before `waiter`.
    pub(super) fn place(&self, class: Class, tenant: &str, waiter: u64) -> usize {
        let mut lines = self.classes[class as usize].iter();
        lines
            .find(|line| *line.tenant == *tenant)
            .and_then(|line| line.waiters.iter().position(|it| *it == waiter))
            .unwrap_or(0)
    }

    /// How many of a class are served before the one at `place` of `tenant`, which may wait for
    /// another model.
    pub(super) fn before(&self, class: Class, tenant: &str, place: usize) -> usize {
        let mut before = 0;
        let mut is_past = false;
        for line in &self.classes[class as usize] {
            if *line.tenant == *tenant {
                before += place.min(line.waiters.len());
                is_past = true;
            } else {
                before += line.waiters.len().min(place + usize::from(!is_past));
            }
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_stay_in_order() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut lines = Lines::default();
        for waiter in 0..4 {
            lines.push(Class::Run, &a, waiter);
        }
        lines.push(Class::Run, &b, 4);
        lines.push(Class::Run, &b, 5);
        lines.remove(Class::Run, "a", 1);
        let place = lines.place(Class::Run, "b", 5);
        assert_eq!((place, lines.before(Class::Run, "b", place)), (1, 3));
        let mut order = Vec::new();
        while let Some(head) = lines.head(Class::Run) {
            lines.pop(Class::Run);
            order.push(head);
        }
        assert_eq!(order, [0, 4, 2, 5, 3]);
        assert_eq!(lines.head(Class::Interactive), None);
    }
}
