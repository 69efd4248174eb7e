//! Each edge of the shared line's machine, without any I/O; and random lines checked against the
//! truth.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::super::picture::body;
use super::*;
use crate::key::{LeaseId, Sequence, Tag};
use crate::runtime::Entropy;
use crate::store::{Change, Node, View};

fn index(number: u64) -> Index {
    Index::new(number).unwrap()
}

fn at(millis: u64) -> Instant {
    Instant::new(Duration::from_millis(millis))
}

fn place() -> Shared {
    let root = Key::new("/_semaphores/a").unwrap();
    Shared {
        line: root.join("line").unwrap(),
        limit: root.join("permits").unwrap(),
        root,
    }
}

/// The ticket that was appended at this index.
fn ticket(number: u64) -> Position {
    let key = place().line.join(&format!("{number:020}")).unwrap();
    Position::new(Sequence::new(number), key)
}

fn node(number: u64, weight: u32) -> Node {
    let tag = Tag::new(LeaseId::new(1).unwrap(), number);
    let value = Layout::Numbered.ticket_value(tag, &body(weight));
    Node::file(ticket(number).key, value, index(number), index(number))
}

fn limit_node(limit: u32, when: u64) -> Node {
    Node::file(place().limit, limit.to_string(), index(1), index(when))
}

/// A line of tickets by number and weight, under a limit that was set at the beginning.
fn picture(when: u64, limit: u32, tickets: &[(u64, u32)]) -> Picture {
    let tickets = tickets
        .iter()
        .map(|(number, weight)| node(*number, *weight));
    let nodes = tickets.chain([limit_node(limit, 1)]).collect();
    Picture::of(Layout::Numbered, &place(), &View::new(index(when), nodes))
}

fn put(when: u64, node: Node) -> Event {
    Event::new(index(when), node.key.clone(), Change::Put(node))
}

fn delete(when: u64, key: Key) -> Event {
    Event::new(index(when), key, Change::Delete { expired: false })
}

fn machine() -> Machine {
    Machine::new(Layout::Numbered, Arc::new(place()), false)
}

fn admit(number: u64, limit: u32) -> Effect {
    Effect::Admit(ticket(number), limit)
}

fn gone(number: u64) -> Effect {
    Effect::Gone(ticket(number))
}

#[test]
fn a_ticket_that_fits_is_admitted_on_the_first_list() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    assert_eq!(machine.effects(), []);
    let wants = machine.wants(at(0));
    assert_eq!((wants.list, wants.follow), (Some(index(5)), Follow::Keep));
    machine.listed(picture(7, 2, &[(3, 1), (5, 1)]));
    assert_eq!(machine.effects(), [admit(5, 2)]);
}

#[test]
fn a_picture_older_than_the_ticket_admits_nobody() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.listed(picture(4, 9, &[]));
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(5)));
}

#[test]
fn a_picture_without_a_limit_refuses_nobody_who_came_after_it() {
    let mut machine = machine();
    machine.join(ticket(9), index(9));
    let nodes = vec![node(3, 1)];
    let old = View::new(index(4), nodes);
    machine.listed(Picture::of(Layout::Numbered, &place(), &old));
    assert_eq!(machine.effects(), []);
    machine.listed(picture(9, 1, &[(9, 1)]));
    assert_eq!(machine.effects(), [admit(9, 1)]);
}

#[test]
fn one_that_waits_follows_from_the_list_and_is_admitted_by_the_event_alone() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.listed(picture(7, 2, &[(3, 2), (5, 1)]));
    assert_eq!(machine.effects(), []);
    let wants = machine.wants(at(0));
    assert_eq!(
        (wants.list, wants.follow),
        (None, Follow::From(index(7), true))
    );
    machine.follow(true);
    machine.changed(&delete(9, ticket(3).key));
    assert_eq!(machine.effects(), [admit(5, 2)]);
    assert_eq!(machine.wants(at(0)).list, None);
}

#[test]
fn a_heavy_head_holds_up_light_ones_behind_it() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.join(ticket(6), index(6));
    machine.listed(picture(7, 3, &[(3, 1), (5, 3), (6, 1)]));
    assert_eq!(machine.effects(), []);
    machine.follow(true);
    machine.changed(&delete(8, ticket(3).key));
    assert_eq!(machine.effects(), [admit(5, 3)]);
    machine.holding(&ticket(5), at(0));
    machine.leaving(&ticket(5), at(0));
    machine.left(&ticket(5), index(9), true);
    assert_eq!(machine.effects(), [admit(6, 3)]);
}

#[test]
fn our_own_release_counts_with_its_acknowledgement_and_older_news_does_not_undo_it() {
    let mut machine = machine();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.listed(picture(5, 1, &[(5, 1)]));
    machine.follow(true);
    machine.leaving(&ticket(5), at(0));
    machine.left(&ticket(5), index(9), true);
    // The picture is still that of 5: a list of 8 would show it again.
    machine.join(ticket(7), index(7));
    machine.listed(picture(8, 1, &[(5, 1), (7, 1)]));
    assert_eq!(machine.effects(), [admit(7, 1)]);
    machine.holding(&ticket(7), at(0));
    machine.changed(&delete(9, ticket(5).key));
    machine.changed(&put(10, node(10, 1)));
    assert_eq!(machine.effects(), []);
}

#[test]
fn a_put_that_comes_after_its_ticket_was_given_back_does_not_bring_it_back() {
    let mut machine = machine();
    machine.join(ticket(9), index(9));
    machine.listed(picture(4, 1, &[(3, 1)]));
    machine.follow(true);
    machine.leaving(&ticket(9), at(0));
    machine.left(&ticket(9), index(12), true);
    machine.join(ticket(13), index(13));
    machine.changed(&put(9, node(9, 1)));
    machine.changed(&delete(10, ticket(3).key));
    machine.changed(&delete(12, ticket(9).key));
    machine.changed(&put(13, node(13, 1)));
    assert_eq!(machine.effects(), [admit(13, 1)]);
}

#[test]
fn while_events_come_a_new_ticket_waits_for_its_own_and_reads_nothing() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.listed(picture(5, 1, &[(3, 1), (5, 1)]));
    machine.follow(true);
    machine.join(ticket(8), index(8));
    let wants = machine.wants(at(0));
    assert_eq!(
        (wants.list, wants.follow),
        (None, Follow::From(index(5), true))
    );
    machine.interrupted();
    assert_eq!(machine.wants(at(0)).list, Some(index(8)));
    machine.changed(&put(8, node(8, 1)));
    assert_eq!(
        machine.wants(at(0)).list,
        Some(index(5)),
        "the one for what may be lost"
    );
}

#[test]
fn growing_admits_in_order_and_shrinking_takes_nothing_away() {
    let mut machine = machine();
    for number in [5, 6, 7] {
        machine.join(ticket(number), index(number));
    }
    machine.listed(picture(7, 1, &[(5, 1), (6, 1), (7, 1)]));
    assert_eq!(machine.effects(), [admit(5, 1)]);
    machine.holding(&ticket(5), at(0));
    machine.changed(&put(9, limit_node(2, 9)));
    assert_eq!(machine.effects(), [admit(6, 2)]);
    machine.holding(&ticket(6), at(0));
    machine.changed(&put(10, limit_node(1, 10)));
    assert_eq!(machine.effects(), []);
    machine.changed(&delete(11, ticket(2).key));
    machine.leaving(&ticket(5), at(0));
    machine.left(&ticket(5), index(12), true);
    assert_eq!(machine.effects(), [], "6 alone is all there is room for");
    machine.leaving(&ticket(6), at(0));
    machine.left(&ticket(6), index(13), true);
    assert_eq!(machine.effects(), [admit(7, 1)]);
}

#[test]
fn whoever_has_become_too_heavy_is_told_once_and_blocks_until_it_has_left() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.join(ticket(6), index(6));
    machine.listed(picture(7, 3, &[(3, 1), (5, 3), (6, 1)]));
    machine.changed(&put(8, limit_node(2, 8)));
    let too_heavy = Refusal::TooHeavy {
        weight: 3,
        limit: 2,
    };
    assert_eq!(machine.effects(), [Effect::Refuse(ticket(5), too_heavy)]);
    machine.changed(&put(9, node(9, 1)));
    assert_eq!(machine.effects(), []);
    machine.left(&ticket(5), index(10), true);
    assert_eq!(machine.effects(), [admit(6, 2)]);
}

#[test]
fn a_limit_that_is_gone_or_no_number_ends_the_wait_of_those_who_wait() {
    for event in [
        delete(9, place().limit),
        put(9, Node::file(place().limit, "few", index(1), index(9))),
    ] {
        let mut machine = machine();
        machine.join(ticket(5), index(5));
        machine.join(ticket(6), index(6));
        machine.listed(picture(7, 1, &[(5, 1), (6, 1)]));
        assert_eq!(machine.effects(), [admit(5, 1)]);
        machine.holding(&ticket(5), at(0));
        machine.changed(&event);
        let refused = match machine.effects().as_slice() {
            [Effect::Refuse(ticket, Refusal::NoLimit | Refusal::NoNumber(_))] => ticket.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused, ticket(6));
    }
}

#[test]
fn our_ticket_seen_deleted_is_lost_and_casts_doubt_on_the_others_until_a_list() {
    let mut machine = machine();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.listed(picture(7, 1, &[(5, 1), (6, 1)]));
    machine.changed(&delete(9, ticket(5).key));
    assert_eq!(machine.effects(), [gone(5)]);
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    // What took 5 took 6 too.
    machine.listed(picture(10, 1, &[]));
    assert_eq!(machine.effects(), [gone(6)]);
}

#[test]
fn a_ticket_that_was_gone_when_it_was_taken_back_casts_doubt_on_the_others() {
    let mut machine = machine();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.listed(picture(7, 1, &[(5, 1), (6, 1)]));
    machine.leaving(&ticket(5), at(0));
    machine.left(&ticket(5), index(9), false);
    assert_eq!(machine.effects(), []);
    assert_eq!(machine.wants(at(0)).list, Some(index(9)));
    machine.listed(picture(9, 1, &[(6, 1)]));
    assert_eq!(machine.effects(), [admit(6, 1)]);
}

#[test]
fn the_directory_deleted_by_force_takes_all_with_it() {
    let mut machine = machine();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.join(ticket(6), index(6));
    machine.listed(picture(7, 1, &[(5, 1), (6, 1)]));
    machine.changed(&delete(9, place().root));
    assert_eq!(machine.effects(), [gone(5), gone(6)]);
}

#[test]
fn an_event_that_a_list_has_overtaken_is_not_news() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.listed(picture(20, 1, &[(5, 1)]));
    assert_eq!(machine.effects(), [admit(5, 1)]);
    machine.holding(&ticket(5), at(0));
    machine.changed(&put(12, limit_node(9, 12)));
    machine.changed(&put(13, node(13, 1)));
    machine.join(ticket(21), index(21));
    machine.changed(&put(21, node(21, 1)));
    assert_eq!(machine.effects(), [], "the limit is 1");
    machine.left(&ticket(5), index(22), true);
    assert_eq!(machine.effects(), [admit(21, 1)], "13 was gone by 20");
}

#[test]
fn a_list_that_events_have_overtaken_still_corrects_a_lost_one() {
    let mut machine = machine();
    machine.join(ticket(5), index(5));
    machine.listed(picture(5, 1, &[(3, 1), (5, 1)]));
    machine.recheck();
    assert_eq!(machine.wants(at(0)).list, Some(index(5)));
    machine.changed(&put(9, node(9, 1)));
    // The event of 3's end at 6 never came; a list of 7 is older than 9 by now.
    machine.listed(picture(7, 1, &[(5, 1)]));
    assert_eq!(machine.effects(), [admit(5, 1)]);
    assert_eq!(machine.wants(at(0)).list, None);
}

#[test]
fn a_short_hold_costs_nothing_and_a_long_one_is_followed() {
    let mut machine = machine();
    machine.join_holding(ticket(5), index(5), at(0));
    machine.listed(picture(5, 1, &[(5, 1)]));
    let wants = machine.wants(at(249));
    assert_eq!((wants.list, wants.follow), (None, Follow::Keep));
    assert_eq!(wants.wake, Some(at(250)));
    let wants = machine.wants(at(250));
    assert_eq!(
        (wants.follow, wants.wake),
        (Follow::From(index(5), false), None)
    );
    machine.leaving(&ticket(5), at(0));
    assert_eq!(machine.wants(at(251)), Wants::default());
}

#[test]
fn where_it_is_cheap_a_line_that_was_followed_stays_so_for_a_second() {
    let mut machine = Machine::new(Layout::Numbered, Arc::new(place()), true);
    machine.join_holding(ticket(5), index(5), at(0));
    machine.listed(picture(5, 1, &[(5, 1)]));
    machine.leaving(&ticket(5), at(10));
    machine.left(&ticket(5), index(6), true);
    assert_eq!(machine.wants(at(11)), Wants::default(), "it was not");
    machine.join(ticket(8), index(8));
    machine.listed(picture(8, 1, &[(7, 1), (8, 1)]));
    machine.follow(true);
    machine.leaving(&ticket(8), at(20));
    machine.left(&ticket(8), index(9), true);
    let wants = machine.wants(at(1_019));
    assert_eq!((wants.list, wants.follow), (None, Follow::Keep));
    assert_eq!(wants.wake, Some(at(1_020)));
    // Who comes back waits for its own event.
    machine.changed(&delete(10, ticket(7).key));
    machine.join(ticket(11), index(11));
    assert_eq!(machine.wants(at(1_019)).list, None);
    machine.changed(&put(11, node(11, 1)));
    assert_eq!(machine.effects(), [admit(11, 1)]);
    machine.leaving(&ticket(11), at(2_000));
    machine.left(&ticket(11), index(12), true);
    assert_eq!(machine.wants(at(3_000)), Wants::default());
}

#[test]
fn another_store_is_looked_at_afresh() {
    let mut machine = machine();
    machine.join(ticket(50), index(50));
    machine.listed(picture(60, 1, &[(40, 1), (50, 1)]));
    machine.forget();
    assert_eq!(machine.wants(at(0)).list, Some(index(50)));
}

/// A store, and processes that see it late and through what they ask for.
struct World {
    dice: Entropy,
    index: u64,
    live: BTreeMap<u64, u32>,
    limit: (u32, u64),
    history: Vec<Event>,
    /// Each limit and when it came.
    limits: Vec<(u64, u32)>,
    processes: Vec<Process>,
}

struct Process {
    machine: Machine,
    appended: Vec<u64>,
    waiting: BTreeSet<u64>,
    holding: BTreeSet<u64>,
    deleted: VecDeque<(u64, u64)>,
    list: Option<Picture>,
    /// How far the events were delivered, if they come.
    stream: Option<u64>,
    admissions: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let process = || Process {
            machine: machine(),
            appended: Vec::new(),
            waiting: BTreeSet::new(),
            holding: BTreeSet::new(),
            deleted: VecDeque::new(),
            list: None,
            stream: None,
            admissions: 0,
        };
        Self {
            dice: Entropy::seeded(seed),
            index: 1,
            live: BTreeMap::new(),
            limit: (3, 1),
            history: Vec::new(),
            limits: vec![(1, 3)],
            processes: (0..3).map(|_| process()).collect(),
        }
    }

    fn pick(&self, below: usize) -> usize {
        (self.dice.u64() % below as u64) as usize
    }

    fn picture(&self) -> Picture {
        let tickets = self
            .live
            .iter()
            .map(|(number, weight)| node(*number, *weight));
        let limit = limit_node(self.limit.0, self.limit.1);
        let view = View::new(index(self.index), tickets.chain([limit]).collect());
        Picture::of(Layout::Numbered, &place(), &view)
    }

    fn happens(&mut self, event: impl FnOnce(u64) -> Event) {
        self.index += 1;
        self.history.push(event(self.index));
    }

    fn remove(&mut self, number: u64) {
        if self.live.remove(&number).is_some() {
            self.happens(|when| delete(when, ticket(number).key));
        }
    }

    fn step(&mut self) {
        let who = self.pick(3);
        match self.pick(12) {
            0 if self.live.len() < 9 => {
                let weight = 1 + self.pick(2) as u32;
                self.happens(|when| put(when, node(when, weight)));
                self.live.insert(self.index, weight);
                self.processes[who].appended.push(self.index);
            }
            1 | 2 => {
                let process = &mut self.processes[who];
                if let Some(number) = process.appended.pop() {
                    process.waiting.insert(number);
                    process.machine.join(ticket(number), index(number));
                }
            }
            3 | 4 => {
                if let Some(number) = self.processes[who].holding.pop_first() {
                    self.processes[who].machine.leaving(&ticket(number), at(0));
                    self.remove(number);
                    let at = self.index;
                    self.processes[who].deleted.push_back((number, at));
                }
            }
            5 => {
                let process = &mut self.processes[who];
                if let Some((number, when)) = process.deleted.pop_front() {
                    process.machine.left(&ticket(number), index(when), true);
                }
            }
            6 if self.processes[who].machine.wants(at(9_000)).list.is_some() => {
                let picture = self.picture();
                self.processes[who].list.get_or_insert(picture);
            }
            7 => {
                if let Some(picture) = self.processes[who].list.take() {
                    self.processes[who].machine.listed(picture);
                }
            }
            8 | 9 => self.deliver(who),
            10 if self.pick(6) == 0 => {
                let limit = 2 + self.pick(3) as u32;
                self.happens(|when| put(when, limit_node(limit, when)));
                self.limit = (limit, self.index);
                self.limits.push((self.index, limit));
            }
            // A waiter or holder is deleted by force, or expires.
            11 if self.pick(8) == 0 => {
                let nth = self.pick(self.live.len().max(1));
                let number = self.live.keys().nth(nth).copied();
                if let Some(number) = number {
                    self.remove(number);
                }
            }
            _ => {}
        }
        for who in 0..3 {
            for effect in self.processes[who].machine.effects() {
                self.check(who, effect);
            }
        }
    }

    /// The next event reaches a process that follows, if there is one.
    fn deliver(&mut self, who: usize) {
        let process = &mut self.processes[who];
        match process.machine.wants(at(9_000)).follow {
            Follow::No => {
                process.stream = None;
                process.machine.follow(false);
            }
            Follow::From(known, _) if process.stream.is_none() => {
                process.stream = Some(known.get());
                process.machine.follow(true);
            }
            Follow::From(..) | Follow::Keep => {}
        }
        let Some(told) = process.stream else { return };
        let next = self.history.iter().find(|it| it.index.get() > told);
        if let Some(event) = next {
            process.stream = Some(event.index.get());
            process.machine.changed(event);
        }
    }

    fn check(&mut self, who: usize, effect: Effect) {
        let process = &mut self.processes[who];
        match effect {
            Effect::Admit(position, limit) => {
                let number = position.sequence.get();
                assert!(
                    process.waiting.remove(&number),
                    "admitted {number}, which does not wait"
                );
                let sum: u32 = self.live.range(..=number).map(|(_, weight)| weight).sum();
                assert!(
                    sum <= limit,
                    "admitted {number}: {sum} under a limit of {limit}"
                );
                let mut later = self.limits.iter().map(|(when, _)| *when).skip(1);
                let mut ends = self.limits.iter().map(|(_, limit)| (*limit, later.next()));
                let was = |(it, end): (u32, Option<u64>)| {
                    it == limit && end.is_none_or(|end| end > number)
                };
                assert!(ends.any(was), "{limit} was not in force since {number}");
                process.machine.holding(&position, at(0));
                process.holding.insert(number);
                process.admissions += 1;
            }
            Effect::Gone(position) => {
                let number = position.sequence.get();
                assert!(!self.live.contains_key(&number), "{number} is there");
                process.waiting.remove(&number);
                process.holding.remove(&number);
            }
            Effect::Refuse(position, refusal) => {
                panic!("nobody is too heavy: {position:?}: {refusal:?}");
            }
        }
    }
}

#[test]
fn in_a_thousand_random_lines_nobody_is_admitted_above_the_limit_and_the_line_moves() {
    let mut admissions = 0;
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for _ in 0..1_200 {
            world.step();
        }
        let moved: usize = world.processes.iter().map(|it| it.admissions).sum();
        assert!(moved > 3, "seed {seed}: the line stands still");
        admissions += moved;
    }
    println!("{admissions} admissions");
}
