//! Each edge of the line's machine, without any I/O; and a random line checked against the truth.

use std::collections::{BTreeMap, BTreeSet};
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
fn of_a_store_that_has_gone_back_what_was_known_counts_for_nothing() {
    let mut machine = Machine::new(true);
    machine.join_holding(ticket(900), index(900), at(0));
    machine.join_holding(ticket(990), index(990), at(0));
    machine.join(ticket(995), index(995));
    machine.listed(index(1_000), line(&[900, 990, 993, 995]));
    machine.opening();
    machine.opened(index(1_000));
    machine.deleted(&ticket(993).key, index(1_001));
    machine.caught_up();
    machine.effects();

    machine.forget(index(905));
    let wants = machine.wants(at(500));
    assert_eq!((wants.list, wants.follow), (Some(index(905)), false));
    // What is new there is not older than what was known of before.
    machine.join(ticket(906), index(906));
    assert_eq!(machine.effects(), []);
    machine.listed(index(906), line(&[900, 906]));
    let gone = |number| Effect::Gone(ticket(number));
    assert_eq!(machine.effects(), [gone(990), gone(995)]);
    machine.left(&ticket(900), index(907), true);
    assert_eq!(machine.effects(), admit(906));
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
fn a_name_that_is_used_again_is_another_ticket() {
    let again = |number| Position::new(Sequence::new(number), ticket(5).key);
    let mut machine = Machine::new(true);
    machine.join(ticket(5), index(5));
    machine.listed(index(5), line(&[5]));
    assert_eq!(machine.effects(), admit(5));
    machine.leaving(&ticket(5), at(0));
    machine.left(&ticket(5), index(6), true);
    // The name went at 6 and was made again at 7; what is told of 6 comes late.
    machine.join(again(7), index(7));
    machine.deleted(&again(7).key, index(6));
    assert_eq!(machine.effects(), []);
    machine.listed(index(7), vec![again(7)]);
    assert_eq!(machine.effects(), [Effect::Admit(again(7))]);
    // Its own end is told as that of any other.
    machine.deleted(&again(7).key, index(8));
    assert_eq!(machine.effects(), [Effect::Gone(again(7))]);
    // An end that was told before, of a later one, stays told.
    machine.deleted(&again(7).key, index(12));
    machine.deleted(&again(7).key, index(10));
    machine.join(again(11), index(11));
    assert_eq!(machine.effects(), [Effect::Gone(again(11))]);
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

/// A machine of a store whose appends tell who is before, that waits at 5 behind others.
fn waiting_behind(others: &[u64]) -> Machine {
    let mut machine = Machine::new(true);
    machine.join(ticket(5), index(5));
    let all = others.iter().copied().chain([5]).collect::<Vec<_>>();
    machine.listed(index(5), line(&all));
    assert_eq!(machine.effects(), []);
    machine
}

/// The same, with a view that was opened at 6 and a list at 6.
fn covered_behind(others: &[u64]) -> Machine {
    let mut machine = waiting_behind(others);
    machine.opening();
    machine.opened(index(6));
    let all = others.iter().copied().chain([5]).collect::<Vec<_>>();
    machine.listed(index(6), line(&all));
    assert_eq!(machine.effects(), []);
    machine
}

#[test]
fn a_line_is_followed_for_who_waits_for_another_and_read_once_when_that_has_begun() {
    let mut machine = waiting_behind(&[3]);
    let wants = machine.wants(at(0));
    assert_eq!((wants.follow, wants.list), (true, None));
    assert_eq!(wants.watch, BTreeMap::new());
    machine.opening();
    assert_eq!(machine.wants(at(0)).list, None);
    machine.opened(index(8));
    // Between the append and the opening nobody looked.
    assert_eq!(machine.wants(at(0)).list, Some(index(8)));
    machine.listed(index(8), line(&[3, 5, 7]));
    assert_eq!(machine.wants(at(0)).list, None);
    machine.deleted(&ticket(3).key, index(9));
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn who_joins_a_line_that_is_followed_already_is_admitted_without_a_read() {
    let mut machine = covered_behind(&[3]);
    machine.deleted(&ticket(3).key, index(7));
    assert_eq!(machine.effects(), admit(5));
    machine.holding(&ticket(5), at(0));
    machine.leaving(&ticket(5), at(1));
    machine.left(&ticket(5), index(8), true);
    // Back again, behind another.
    machine.join(ticket(10), index(10));
    machine.listed(index(10), line(&[9, 10]));
    assert_eq!(machine.wants(at(2)).list, None);
    machine.deleted(&ticket(9).key, index(11));
    assert_eq!(machine.effects(), admit(10));
    assert_eq!(machine.wants(at(2)).list, None);
}

#[test]
fn a_deletion_that_is_newer_than_the_answer_to_an_append_is_applied_to_it() {
    let mut machine = covered_behind(&[3]);
    machine.deleted(&ticket(3).key, index(7));
    machine.holding(&ticket(5), at(0));
    // 9 was appended at 9, behind 8; 8 goes before that answer is here.
    machine.leaving(&ticket(5), at(1));
    machine.left(&ticket(5), index(8), true);
    machine.deleted(&ticket(8).key, index(10));
    machine.effects();
    assert!(machine.remembers());
    machine.join(ticket(9), index(9));
    machine.listed(index(9), line(&[8, 9]));
    assert_eq!(machine.effects(), admit(9));
}

#[test]
fn what_is_told_of_is_forgotten_when_no_older_answer_can_come() {
    let mut machine = covered_behind(&[3]);
    machine.deleted(&ticket(3).key, index(7));
    assert!(machine.remembers());
    machine.caught_up();
    assert!(!machine.remembers());
    // A list that is older would bring it back, and nobody would tell of its end again.
    machine.holding(&ticket(5), at(0));
    machine.doubt();
    assert_eq!(machine.wants(at(1_000)).list, Some(index(7)));
}

#[test]
fn a_ticket_that_went_together_with_the_one_before_it_was_never_first() {
    let mut machine = covered_behind(&[3]);
    machine.deleted(&ticket(3).key, index(7));
    machine.deleted(&ticket(5).key, index(7));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_deletion_before_the_list_that_covers_it_admits_only_after_that_list() {
    let mut machine = waiting_behind(&[3]);
    machine.opening();
    machine.opened(index(8));
    // 5 went at 7, and nobody was there to see it.
    machine.deleted(&ticket(3).key, index(9));
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    machine.listed(index(9), line(&[]));
    assert_eq!(machine.effects(), [Effect::Gone(ticket(5))]);
}

#[test]
fn a_view_that_was_interrupted_is_read_again() {
    let mut machine = covered_behind(&[3]);
    machine.shut();
    machine.doubt();
    machine.opening();
    machine.opened(index(20));
    assert_eq!(machine.wants(at(0)).list, Some(index(20)));
    machine.listed(index(20), line(&[5]));
    assert_eq!(machine.effects(), admit(5));
}

#[test]
fn a_long_line_is_followed_for_several_only_and_a_followed_one_may_grow() {
    let others: Vec<u64> = (100..100 + SHORT as u64).collect();
    let behind = |others: &[u64], ours: &[u64]| {
        let mut machine = Machine::new(true);
        ours.iter()
            .for_each(|it| machine.join(ticket(*it), index(*it)));
        let all = [others, ours].concat();
        machine.listed(index(900), line(&all));
        machine
    };
    let wants = behind(&others, &[900]).wants(at(0));
    assert!(!wants.follow && wants.watch.len() == 1);
    assert!(behind(&others[1..], &[900]).wants(at(0)).follow);
    assert!(behind(&others, &[899, 900]).wants(at(0)).follow);
    let mut grown = behind(&others, &[900]);
    grown.opening();
    assert!(grown.wants(at(0)).follow);
    let others: Vec<u64> = (100..100 + SHORT as u64 * 4).collect();
    let mut long = behind(&others, &[900]);
    long.opening();
    assert!(!long.wants(at(0)).follow);
}

#[test]
fn a_line_is_followed_for_a_while_after_the_last_ticket_and_a_held_key_within_it() {
    let mut machine = covered_behind(&[3]);
    machine.deleted(&ticket(3).key, index(7));
    machine.holding(&ticket(5), at(0));
    let held = machine.wants(at(60_000));
    assert!(held.follow && held.watch.is_empty());
    machine.leaving(&ticket(5), at(60_000));
    machine.left(&ticket(5), index(8), true);
    let wants = machine.wants(at(60_100));
    assert_eq!((wants.follow, wants.wake), (true, Some(at(61_000))));
    assert!(!machine.wants(at(61_000)).follow);
    // Who never waited for another does not follow.
    let mut alone = Machine::new(true);
    alone.join_holding(ticket(5), index(5), at(0));
    alone.join(ticket(6), index(6));
    alone.listed(index(6), line(&[5, 6]));
    assert!(!alone.wants(at(0)).follow);
}

/// A server that holds one line, three processes with a machine each, and a scheduler that
/// delivers everything late and in any order that the real world allows.
struct World {
    entropy: Entropy,
    index: u64,
    /// Whether a name is used again by the process whose ticket had it.
    thrifty: bool,
    names: Names,
    live: BTreeSet<u64>,
    /// (index, ticket) of every deletion.
    history: Vec<(u64, u64)>,
    processes: Vec<Process>,
}

/// The name of each ticket.
#[derive(Default)]
struct Names(BTreeMap<u64, u64>);

impl Names {
    fn position(&self, number: u64) -> Position {
        Position::new(Sequence::new(number), ticket(self.0[&number]).key)
    }

    fn line(&self, numbers: &[u64]) -> Vec<Position> {
        numbers.iter().map(|it| self.position(*it)).collect()
    }
}

#[derive(Default)]
struct Process {
    /// Names that it has given back.
    spares: Vec<u64>,
    reused: usize,
    machine: Machine,
    follows: bool,
    waiting: BTreeSet<u64>,
    holding: BTreeSet<u64>,
    /// Appended, the reply is on its way, with what was before it.
    appended: Vec<(u64, Vec<u64>)>,
    /// Deleted, the reply is on its way: when, and whether by that.
    deleted: Vec<(u64, u64, bool)>,
    /// A list was taken, the reply is on its way.
    list: Option<(u64, Vec<u64>)>,
    /// How much of the history it was told, while it follows the line.
    told: Option<usize>,
    admissions: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        // Of some worlds nobody follows the line, of others all, of others one.
        let follows = |who| seed % 3 == 1 || (seed % 3 == 2 && who == 0);
        let process = |who| Process {
            machine: Machine::new(follows(who)),
            follows: follows(who),
            ..Process::default()
        };
        let processes = (0..3).map(process).collect();
        Self {
            entropy: Entropy::seeded(seed),
            index: 1,
            thrifty: !seed.is_multiple_of(4),
            names: Names::default(),
            live: BTreeSet::new(),
            history: vec![],
            processes,
        }
    }

    fn pick(&self, below: usize) -> usize {
        usize::try_from(self.entropy.u64() % below as u64).unwrap()
    }

    /// Whether it was there.
    fn remove(&mut self, number: u64) -> bool {
        let is_there = self.live.remove(&number);
        if is_there {
            self.index += 1;
            self.history.push((self.index, number));
        }
        is_there
    }

    fn step(&mut self) {
        let who = self.pick(3);
        match self.pick(10) {
            0 if self.live.len() < 8 => {
                self.index += 1;
                self.live.insert(self.index);
                let spare = self.processes[who].spares.pop();
                let spare = spare.filter(|_| self.thrifty);
                self.processes[who].reused += usize::from(spare.is_some());
                self.names.0.insert(self.index, spare.unwrap_or(self.index));
                let (number, line) = (self.index, self.live.iter().copied().collect());
                self.processes[who].appended.push((number, line));
            }
            1 | 2 => {
                let process = &mut self.processes[who];
                if let Some((number, told)) = process.appended.pop() {
                    process.waiting.insert(number);
                    let position = self.names.position(number);
                    process.machine.join(position, index(number));
                    if process.follows {
                        let told = self.names.line(&told);
                        process.machine.listed(index(number), told);
                    }
                }
            }
            3 => {
                if let Some(number) = self.processes[who].holding.pop_first() {
                    let position = self.names.position(number);
                    self.processes[who].machine.leaving(&position, at(0));
                    let removed = self.remove(number);
                    let at = self.index;
                    self.processes[who].deleted.push((number, at, removed));
                }
            }
            4 => {
                let process = &mut self.processes[who];
                if let Some((number, when, removed)) = process.deleted.pop() {
                    let position = self.names.position(number);
                    process.machine.left(&position, index(when), removed);
                    // What somebody else has removed may not be used again: see `leave`.
                    process
                        .spares
                        .extend(removed.then(|| self.names.0[&number]));
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
                    let tickets = self.names.line(&tickets);
                    self.processes[who].machine.listed(index(when), tickets);
                }
            }
            8 => {
                self.follow(who);
                for (key, from) in self.processes[who].machine.wants(at(1_000)).watch {
                    // A watch that was kept tells what it was asked for before, too.
                    let kept = u64::try_from(self.pick(3)).unwrap() * 5;
                    let from = from.get().saturating_sub(kept);
                    let seen = self.history.iter().find(|(when, number)| {
                        *when >= from && self.names.position(*number).key == key
                    });
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

    /// Opens, reads or shuts the view of the whole line, as the machine wants.
    fn follow(&mut self, who: usize) {
        let upto = self.history.len();
        let some = self.pick(3);
        let process = &mut self.processes[who];
        let wanted = process.machine.wants(at(1_000)).follow;
        match process.told {
            None if wanted => {
                process.machine.opening();
                process.machine.opened(index(self.index));
                process.told = Some(upto);
            }
            Some(_) if !wanted || some == 0 && self.index.is_multiple_of(7) => {
                process.machine.shut();
                process.machine.doubt();
                process.told = None;
            }
            Some(told) => {
                for (when, number) in self.history.iter().skip(told).take(some) {
                    let key = self.names.position(*number).key;
                    process.machine.deleted(&key, index(*when));
                }
                process.told = Some((told + some).min(upto));
            }
            None => {}
        }
        if process.appended.is_empty() && process.list.is_none() {
            process.machine.caught_up();
        }
    }

    fn reused(&self) -> usize {
        self.processes.iter().map(|process| process.reused).sum()
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
    let mut reused = 0;
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for _ in 0..1_200 {
            world.step();
        }
        assert!(world.admissions() > 3, "seed {seed}: the line stands still");
        if world.thrifty {
            reused += world.reused();
        }
    }
    assert!(reused > 3_000, "{reused} names were used again");
}
