//! Each edge of the line's machine, without any I/O; and a random line checked against the truth.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::key::Sequence;
use crate::runtime::Entropy;

fn index(number: u64) -> Index {
    Index::new(number).unwrap()
}

/// The ticket that was appended at this index.
fn ticket(number: u64) -> Position {
    Position::new(
        Sequence::new(number),
        Key::new(format!("/_locks/a/{number:020}")).unwrap(),
    )
}

fn line(tickets: &[u64]) -> Vec<Position> {
    tickets.iter().copied().map(ticket).collect()
}

fn at(millis: u64) -> Instant {
    Instant::new(Duration::from_millis(millis))
}

fn admit(number: u64) -> Vec<Effect> {
    vec![Effect::Admit(ticket(number))]
}

#[test]
fn a_lone_ticket_asks_for_one_list_and_is_admitted_on_it() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(5)));
    machine.listed(index(5), line(&[5]));
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn a_list_older_than_the_ticket_admits_nobody() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(4), line(&[]));
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(5)));
}

#[test]
fn a_list_that_is_older_than_the_last_one_is_not_believed() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(9), line(&[3, 5]));
    let wants = machine.wants(at(0));
    machine.listed(index(7), line(&[3, 4, 5]));
    assert_eq!(machine.wants(at(0)), wants);
}

#[test]
fn a_foreign_predecessor_is_watched_from_the_lists_index_and_a_list_after_its_end_admits() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(7), line(&[3, 5, 6]));
    assert_eq!(machine.effects(), []);
    let wants = machine.wants(at(0));
    assert_eq!(
        (wants.list, wants.watch),
        (None, BTreeMap::from([(ticket(3).key, index(8))]))
    );
    machine.deleted(&ticket(3).key, index(9));
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    machine.listed(index(9), line(&[5, 6]));
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn a_waiter_that_went_before_its_predecessor_is_not_admitted() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(7), line(&[3, 5]));
    // 5 went at 8, unwatched.
    machine.deleted(&ticket(3).key, index(9));
    machine.listed(index(9), line(&[]));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_ticket_that_was_gone_when_it_was_taken_back_casts_doubt_on_the_next_of_ours() {
    for removed in [true, false] {
        let mut machine = Machine::default();
        machine.join_holding(ticket(5), index(5), at(0));
        machine.join(ticket(6), index(6));
        machine.listed(index(6), line(&[5, 6]));
        machine.leaving(&ticket(5), at(1));
        machine.left(&ticket(5), index(9), removed);
        if removed {
            assert_eq!(machine.effects(), admit(6));
        } else {
            assert_eq!(machine.effects(), []);
            assert_eq!(machine.wants(at(1)).list, Some(index(9)));
            machine.listed(index(9), line(&[]));
            assert_eq!(machine.effects(), [Effect::Gone(ticket(6))]);
        }
    }
}

#[test]
fn others_that_may_have_left_unwatched_are_looked_for_once() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(5), line(&[2, 3, 5]));
    machine.deleted(&ticket(3).key, index(9));
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    machine.listed(index(9), line(&[5]));
    assert_eq!(machine.effects(), admit(5));
    assert_eq!(machine.wants(at(0)).list, None);
}

#[test]
fn a_handoff_inside_the_process_reads_nothing() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.join(ticket(7), index(7));
    machine.listed(index(7), line(&[5, 6, 7]));
    assert_eq!(machine.effects(), []);
    machine.left(&ticket(5), index(8), true);
    assert_eq!(machine.effects(), admit(6));
    machine.holding(&ticket(6), at(1));
    machine.left(&ticket(6), index(9), true);
    assert_eq!(machine.effects(), admit(7));
    assert_eq!(machine.wants(at(1)).list, None);
}

#[test]
fn nothing_is_read_while_a_ticket_of_ours_is_in_front() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    let wants = machine.wants(at(1));
    assert_eq!(
        (wants.list, wants.watch, wants.wake),
        (None, BTreeMap::new(), Some(at(250)))
    );
}

#[test]
fn a_long_hold_has_its_own_key_watched_and_a_short_one_not() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    assert!(machine.wants(at(249)).watch.is_empty());
    assert_eq!(
        machine.wants(at(250)).watch,
        BTreeMap::from([(ticket(5).key, index(6))])
    );
    machine.deleted(&ticket(5).key, index(9));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_deleted_line_takes_all_tickets_with_it() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.deleted(&Key::new("/_locks/a").unwrap(), index(9));
    assert_eq!(
        machine.effects(),
        [Effect::Gone(ticket(5)), Effect::Gone(ticket(6))]
    );
}

#[test]
fn a_ticket_missing_from_a_newer_list_is_gone_and_from_an_older_one_not() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(4), line(&[]));
    assert_eq!(machine.effects(), []);
    machine.listed(index(6), line(&[]));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_deletion_newer_than_a_list_survives_that_list() {
    let mut machine = Machine::default();
    machine.join(ticket(3), index(3));
    machine.join(ticket(5), index(5));
    machine.left(&ticket(3), index(9), true);
    machine.listed(index(7), line(&[3, 5]));
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn a_join_that_arrives_after_its_own_end_is_gone() {
    let mut machine = Machine::default();
    machine.join(ticket(3), index(3));
    machine.listed(index(9), line(&[3]));
    machine.effects();
    machine.join(ticket(5), index(5));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_join_that_arrives_after_the_list_that_shows_it_is_ours() {
    let mut machine = Machine::default();
    machine.join(ticket(3), index(3));
    machine.listed(index(9), line(&[3, 5]));
    assert_eq!(machine.effects(), admit(3));
    machine.holding(&ticket(3), at(0));
    machine.join(ticket(5), index(5));
    machine.left(&ticket(3), index(10), true);
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn a_ticket_that_is_leaving_still_stands_in_the_way() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.listed(index(6), line(&[5, 6]));
    machine.leaving(&ticket(5), at(1));
    assert_eq!(machine.effects(), []);
    machine.left(&ticket(5), index(9), true);
    assert_eq!(machine.effects(), admit(6));
}

#[test]
fn a_waiter_that_leaves_lets_the_next_of_ours_be_first() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.join(ticket(6), index(6));
    machine.listed(index(6), line(&[3, 5, 6]));
    machine.leaving(&ticket(5), at(0));
    // 3 is gone, unwatched by 6; 5 is still there until its deletion is known.
    machine.deleted(&ticket(3).key, index(9));
    machine.left(&ticket(5), index(10), true);
    machine.listed(index(10), line(&[6]));
    assert_eq!(machine.effects(), admit(6));
}

#[test]
fn a_ticket_that_comes_back_before_a_held_one_is_an_intruder_and_reported_once() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.listed(index(6), line(&[3, 5]));
    assert_eq!(machine.effects(), [Effect::Intruder(ticket(3))]);
    machine.listed(index(7), line(&[3, 5]));
    assert_eq!(machine.effects(), []);
}

#[test]
fn doubt_asks_for_a_list_that_is_not_older_than_what_is_known() {
    let mut machine = Machine::default();
    machine.join(ticket(5), index(5));
    machine.listed(index(9), line(&[3, 5]));
    machine.doubt();
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    machine.listed(index(9), line(&[3, 5]));
    assert_eq!(machine.wants(at(0)).list, None);
}

#[test]
fn a_holder_alone_in_doubt_is_looked_for_once_it_is_watched() {
    let mut machine = Machine::default();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.doubt();
    assert_eq!(machine.wants(at(0)).list, None);
    assert_eq!(machine.wants(at(300)).list, Some(index(5)));
    machine.listed(index(8), line(&[]));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

/// A server that holds one line, three processes with a machine each, and a scheduler that
/// delivers everything late and in any order that the real world allows.
struct World {
    entropy: Entropy,
    index: u64,
    live: BTreeSet<u64>,
    /// (index, ticket) of every deletion.
    history: Vec<(u64, u64)>,
    processes: Vec<Process>,
}

#[derive(Default)]
struct Process {
    machine: Machine,
    waiting: BTreeSet<u64>,
    holding: BTreeSet<u64>,
    /// Appended, the reply is on its way.
    appended: Vec<u64>,
    /// Deleted, the reply is on its way.
    deleted: Vec<(u64, u64)>,
    /// A list was taken, the reply is on its way.
    list: Option<(u64, Vec<u64>)>,
    admissions: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let processes = (0..3).map(|_| Process::default()).collect();
        Self {
            entropy: Entropy::seeded(seed),
            index: 1,
            live: BTreeSet::new(),
            history: vec![],
            processes,
        }
    }

    fn pick(&self, below: usize) -> usize {
        usize::try_from(self.entropy.u64() % below as u64).unwrap()
    }

    fn remove(&mut self, number: u64) {
        if self.live.remove(&number) {
            self.index += 1;
            self.history.push((self.index, number));
        }
    }

    fn step(&mut self) {
        let who = self.pick(3);
        match self.pick(10) {
            0 if self.live.len() < 8 => {
                self.index += 1;
                self.live.insert(self.index);
                let number = self.index;
                self.processes[who].appended.push(number);
            }
            1 | 2 => {
                let process = &mut self.processes[who];
                if let Some(number) = process.appended.pop() {
                    process.waiting.insert(number);
                    process.machine.join(ticket(number), index(number));
                }
            }
            3 => {
                if let Some(number) = self.processes[who].holding.pop_first() {
                    self.processes[who].machine.leaving(&ticket(number), at(0));
                    self.remove(number);
                    let at = self.index;
                    self.processes[who].deleted.push((number, at));
                }
            }
            4 => {
                let process = &mut self.processes[who];
                if let Some((number, when)) = process.deleted.pop() {
                    process.machine.left(&ticket(number), index(when), true);
                }
            }
            5 | 6 => {
                let wanted = self.processes[who].machine.wants(at(1_000)).list;
                if wanted.is_some() && self.processes[who].list.is_none() {
                    let reply = (self.index, self.live.iter().copied().collect());
                    self.processes[who].list = Some(reply);
                }
            }
            7 => {
                if let Some((when, tickets)) = self.processes[who].list.take() {
                    self.processes[who]
                        .machine
                        .listed(index(when), line(&tickets));
                }
            }
            8 => {
                for (key, from) in self.processes[who].machine.wants(at(1_000)).watch {
                    let seen = self
                        .history
                        .iter()
                        .find(|(when, number)| *when >= from.get() && ticket(*number).key == key);
                    if let Some((when, _)) = seen.copied() {
                        self.processes[who].machine.deleted(&key, index(when));
                    }
                }
            }
            // A waiter or holder is deleted by force, or expires.
            9 if self.pick(6) == 0 => {
                let number = self
                    .live
                    .iter()
                    .nth(self.pick(self.live.len().max(1)))
                    .copied();
                if let Some(number) = number {
                    self.remove(number);
                }
            }
            _ => {}
        }
        for process in &mut self.processes {
            for effect in process.machine.effects() {
                match effect {
                    Effect::Admit(position) => {
                        let number = position.sequence.get();
                        assert!(
                            process.waiting.remove(&number),
                            "admitted {number}, which does not wait"
                        );
                        let before: Vec<_> = self.live.range(..number).collect();
                        assert!(before.is_empty(), "admitted {number} behind {before:?}");
                        process.holding.insert(number);
                        process.machine.holding(&position, at(0));
                        process.admissions += 1;
                    }
                    Effect::Gone(position) => {
                        let number = position.sequence.get();
                        assert!(!self.live.contains(&number), "{number} is there");
                        process.waiting.remove(&number);
                        process.holding.remove(&number);
                    }
                    Effect::Intruder(position) => panic!("nobody comes back: {position:?}"),
                }
            }
        }
    }

    fn admissions(&self) -> usize {
        self.processes
            .iter()
            .map(|process| process.admissions)
            .sum()
    }
}

#[test]
fn in_a_thousand_random_lines_nobody_is_admitted_behind_another_and_the_line_moves() {
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for _ in 0..1_200 {
            world.step();
        }
        assert!(world.admissions() > 3, "seed {seed}: the line stands still");
    }
}
