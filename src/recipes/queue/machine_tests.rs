//! The edges of a consumer's mind, one by one.

use super::super::class::{Class, Seen};
use super::*;
use crate::key::{LeaseId, Name};
use crate::store::{Change, Node};

const MS: Duration = Duration::from_millis(1);
const WALL: Duration = Duration::from_secs(1_795_000_000);

fn at(number: u64) -> Index {
    Index::new(number).unwrap()
}

fn tag(number: u64) -> Tag {
    Tag::new(LeaseId::new(number).unwrap(), number)
}

fn paths() -> Paths {
    Paths::named(&Name::new("q").unwrap()).unwrap()
}

fn key(rest: &str) -> Key {
    Key::new(format!("/_queues/q/{rest}")).unwrap()
}

/// A consumer, and the changes that it sees. Its own tag is 1.
struct Rig {
    machine: Machine,
    entropy: Entropy,
    index: u64,
    passed: Duration,
}

impl Rig {
    fn new(slots: usize) -> Self {
        Self::with(slots, 10)
    }

    fn with(slots: usize, max_attempts: u32) -> Self {
        let mut rig = Self {
            machine: Machine::new(paths(), slots, max_attempts),
            entropy: Entropy::seeded(1),
            index: 1,
            passed: Duration::from_secs(1),
        };
        let view = store::View::new(at(1), Vec::new());
        let time = rig.time();
        rig.machine.snapshot(&paths().root, view, time);
        rig.consumer(1, slots);
        rig.machine.registered(tag(1), at(rig.index));
        rig
    }

    fn time(&self) -> Time {
        Time {
            now: Instant::new(self.passed),
            wall: WALL + self.passed,
        }
    }

    fn pass(&mut self, length: Duration) {
        self.passed += length;
    }

    fn put(&mut self, rest: &str, value: &str) -> Index {
        self.index += 1;
        let index = at(self.index);
        let node = Node::file(key(rest), value.to_owned(), index, index);
        let event = Event::new(index, key(rest), Change::Put(node));
        let time = self.time();
        self.machine.event(&paths().root, event, time);
        index
    }

    fn delete(&mut self, rest: &str) -> Index {
        self.index += 1;
        let event = Event::new(at(self.index), key(rest), Change::Delete { expired: false });
        let time = self.time();
        self.machine.event(&paths().root, event, time);
        at(self.index)
    }

    fn job(&mut self, name: &str) -> Index {
        self.put(&format!("jobs/{name}"), "payload")
    }

    fn state(&mut self, name: &str, register: &Register) -> Index {
        self.put(&format!("state/{name}"), &register.to_string())
    }

    fn consumer(&mut self, number: u64, slots: usize) {
        let card = format!("{{\"slots\": {slots}}}");
        self.put(&format!("consumers/{}", tag(number)), &card);
    }

    fn step(&mut self) -> Step {
        let time = self.time();
        self.machine.step(time, &self.entropy)
    }

    fn wants(&mut self) -> Vec<Want> {
        self.step().wants
    }

    /// The names that are claimed now.
    fn claims(&mut self) -> Vec<String> {
        let name = |want: Want| match want {
            Want::Claim { id, .. } => id.to_string(),
            other => panic!("{other:?}"),
        };
        self.wants().into_iter().map(name).collect()
    }

    /// Claims the only job that is to be had, and shows it.
    fn hold(&mut self) -> (JobId, u64, Index) {
        let wants = self.wants();
        let [Want::Claim { id, to, .. }] = &wants[..] else {
            panic!("{wants:?}");
        };
        let Register::Claimed { claim, .. } = to else {
            panic!("{to:?}");
        };
        let index = self.state(id.as_str(), to);
        assert!(self.machine.claimed(id, *claim, index));
        (id.clone(), *claim, index)
    }

    fn finish(&mut self, id: &JobId, outcome: Outcome) {
        let time = self.time();
        self.machine.finished(id, outcome, time);
    }
}

fn claimed(attempts: u32, consumer: u64, claim: u64) -> Register {
    Register::Claimed {
        attempts,
        consumer: tag(consumer),
        claim,
    }
}

fn ready(attempts: u32, not_before: Duration) -> Register {
    Register::Ready {
        attempts,
        not_before,
    }
}

#[test]
fn open_jobs_are_claimed_in_their_order_up_to_the_slots() {
    let mut rig = Rig::new(2);
    for name in ["c", "a", "p9.x", "b"] {
        rig.job(name);
    }
    assert_eq!(rig.claims(), ["p9.x", "c"]);
    assert_eq!(rig.claims(), [""; 0], "once");
}

#[test]
fn nothing_is_claimed_before_the_view_shows_my_node() {
    let mut rig = Rig::new(1);
    rig.delete(&format!("consumers/{}", tag(1)));
    rig.machine.unregistered();
    rig.job("a");
    assert!(rig.wants().is_empty());
    rig.machine.registered(tag(7), at(rig.index + 1));
    assert!(rig.wants().is_empty());
    assert!(!rig.machine.is_buried(), "it may still come");
    rig.consumer(7, 1);
    assert_eq!(rig.claims(), ["a"]);
    rig.delete(&format!("consumers/{}", tag(7)));
    assert!(rig.machine.is_buried());
}

#[test]
fn a_slot_is_free_when_the_view_shows_the_end_of_the_claim() {
    let mut rig = Rig::new(1);
    rig.job("a");
    rig.job("b");
    let (id, nonce, _) = rig.hold();
    assert!(rig.machine.settling(&id, nonce));
    assert!(!rig.machine.settling(&id, nonce), "once");
    rig.machine.acked(&id);
    assert!(rig.wants().is_empty());
    let done = Register::Done {
        attempts: 1,
        claim: nonce,
    };
    rig.state("a", &done);
    assert_eq!(rig.claims(), ["b"]);
}

#[test]
fn a_claim_that_names_what_was_seen_counts_the_attempts() {
    let mut rig = Rig::new(1);
    let job = rig.job("a");
    let index = rig.state("a", &ready(4, Duration::ZERO));
    let wants = rig.wants();
    let [
        Want::Claim {
            job: read,
            from,
            to,
            ..
        },
    ] = &wants[..]
    else {
        panic!("{wants:?}");
    };
    let register = Some(ready(4, Duration::ZERO));
    assert_eq!((*read, from), (job, &Some(Seen { register, index })));
    assert!(matches!(to, Register::Claimed { attempts: 5, consumer, .. } if *consumer == tag(1)));
}

#[test]
fn what_is_delayed_waits_for_the_wall_clock() {
    let mut rig = Rig::new(1);
    let due = rig.time().wall + MS * 500;
    rig.state("a", &ready(1, due));
    rig.job("a");
    let step = rig.step();
    assert!(step.wants.is_empty());
    assert_eq!(step.wake, Some(rig.time().now + MS * 500));
    rig.pass(MS * 499);
    assert!(rig.wants().is_empty());
    rig.pass(MS);
    assert_eq!(rig.claims(), ["a"]);
}

#[test]
fn a_claim_is_free_once_its_consumer_is_not_in_the_view() {
    let mut rig = Rig::new(1);
    rig.job("a");
    rig.consumer(2, 1);
    rig.state("a", &claimed(3, 2, 77));
    assert!(rig.wants().is_empty());
    rig.delete(&format!("consumers/{}", tag(2)));
    let wants = rig.wants();
    assert!(
        matches!(
            &wants[..],
            [Want::Claim {
                to: Register::Claimed { attempts: 4, .. },
                ..
            }]
        ),
        "{wants:?}"
    );
}

#[test]
fn what_has_failed_too_often_is_given_up() {
    let mut rig = Rig::with(1, 3);
    rig.job("a");
    rig.state("a", &claimed(3, 9, 1));
    let wants = rig.wants();
    let [
        Want::Write {
            to: Register::Dead {
                attempts: 3,
                reason,
            },
            ..
        },
    ] = &wants[..]
    else {
        panic!("{wants:?}");
    };
    assert_eq!(reason, "given up after 3 deliveries");
}

#[test]
fn consumers_with_views_of_different_age_agree_whose_a_job_is() {
    // Each change is seen by all, but the one looks after each, and the other only later.
    let names: Vec<String> = (0..200).map(|n| format!("job{n}")).collect();
    let run = |me: u64| {
        let mut rig = Rig::new(1);
        if me != 1 {
            rig.machine.registered(tag(me), at(rig.index));
        }
        for number in 2..=4 {
            rig.consumer(number, 1);
        }
        let mut whose = Vec::new();
        for name in &names {
            rig.job(name);
            rig.step();
            // Whoever it is claims it and ends it.
            let first = rig.machine.view.pairs().next();
            let (id, to) = first.map(|(id, to)| (id.clone(), to)).unwrap();
            whose.push((id.clone(), to));
            let number = to.nonce();
            rig.state(id.as_str(), &claimed(1, number, 5));
            rig.step();
            rig.state(
                id.as_str(),
                &Register::Done {
                    attempts: 1,
                    claim: 5,
                },
            );
            rig.step();
            rig.delete(&format!("jobs/{id}"));
            rig.step();
        }
        whose
    };
    let one = run(1);
    assert_eq!(one, run(2));
    for number in 1..=4 {
        let share = one.iter().filter(|(_, to)| *to == tag(number)).count();
        assert!((49..=51).contains(&share), "{number}: {share} of 200");
    }
}

#[test]
fn who_lets_a_job_pass_is_passed_over_until_it_claims() {
    let mut rig = Rig::new(3);
    rig.consumer(2, 2);
    // Mine are in line first; three of five are given up, so that I am free again, and behind.
    for name in ["a", "b", "c"] {
        rig.job(name);
    }
    for _ in 0..3 {
        rig.step();
        let id = rig.machine.view.pairs().next().unwrap().0.clone();
        rig.state(id.as_str(), &claimed(1, 1, 7));
        rig.machine.mine.insert(id.clone(), Mine::Settling);
        let reason = String::new();
        rig.state(
            id.as_str(),
            &Register::Dead {
                attempts: 1,
                reason,
            },
        );
        rig.machine.mine.remove(&id);
    }
    let at_first = rig.machine.lapse();
    for name in ["d", "e", "f"] {
        rig.job(name);
    }
    assert_eq!(rig.claims(), ["f"]);
    assert_eq!(rig.step().wake, Some(rig.time().now + at_first));
    rig.pass(at_first - MS);
    assert!(rig.wants().is_empty());
    rig.pass(MS);
    assert_eq!(rig.claims(), ["d", "e"]);
    // It was only slow: it shows itself, takes part again, and is given more time.
    rig.state("d", &claimed(1, 2, 9));
    for id in ["e", "f"] {
        rig.state(id, &claimed(1, 1, 9));
    }
    rig.job("g");
    let whose: Vec<Tag> = rig.machine.view.pairs().map(|(_, to)| to).collect();
    assert_eq!(whose, [tag(2)]);
    assert!(rig.machine.lapse() >= at_first * 2);
}

#[test]
fn a_store_that_is_slow_makes_all_more_patient() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let wants = rig.wants();
    let [Want::Claim { id, to, .. }] = &wants[..] else {
        panic!("{wants:?}");
    };
    rig.pass(MS * 200);
    rig.state(id.as_str(), to);
    rig.consumer(2, 1);
    rig.job("b");
    let wake = rig.step().wake.unwrap();
    assert_eq!(wake, rig.time().now + MS * 600);
}

#[test]
fn a_stray_claim_of_mine_is_put_back_uncounted() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let index = rig.state("a", &claimed(3, 1, 99));
    let wants = rig.wants();
    let register = Some(claimed(3, 1, 99));
    let expected = Want::Write {
        id: JobId::of_node("a"),
        from: Some(Seen { register, index }),
        to: ready(2, Duration::ZERO),
    };
    assert_eq!(wants, [expected]);
    assert!(rig.wants().is_empty(), "once");
}

#[test]
fn a_claim_without_an_answer_that_comes_late_is_a_stray() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let wants = rig.wants();
    let [Want::Claim { id, to, .. }] = &wants[..] else {
        panic!("{wants:?}");
    };
    rig.finish(id, Outcome::Failed);
    assert!(rig.wants().is_empty(), "not at once again");
    rig.state("a", to);
    let wants = rig.wants();
    assert!(matches!(
        &wants[..],
        [Want::Write {
            to: Register::Ready { attempts: 0, .. },
            ..
        }]
    ));
}

#[test]
fn what_failed_without_a_reason_is_tried_again_after_a_second() {
    let mut rig = Rig::new(1);
    rig.job("a");
    assert_eq!(rig.claims(), ["a"]);
    rig.finish(&JobId::of_node("a"), Outcome::Failed);
    let step = rig.step();
    assert_eq!(step.wake, Some(rig.time().now + DOUBT));
    rig.pass(DOUBT);
    assert_eq!(rig.claims(), ["a"]);
}

#[test]
fn what_the_store_will_not_do_holds_nobody_up() {
    let mut rig = Rig::new(1);
    rig.job("a");
    rig.job("b");
    assert_eq!(rig.claims(), ["a"]);
    rig.finish(&JobId::of_node("a"), Outcome::Stuck);
    assert_eq!(rig.claims(), ["b"]);
}

#[test]
fn a_claim_that_another_changes_is_lost_and_an_older_change_means_nothing() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let wants = rig.wants();
    let [
        Want::Claim {
            id,
            to: Register::Claimed { claim, .. },
            ..
        },
    ] = &wants[..]
    else {
        panic!("{wants:?}");
    };
    // The answer is here before the changes that led to it.
    assert!(rig.machine.claimed(id, *claim, at(rig.index + 2)));
    rig.state("a", &ready(0, Duration::ZERO));
    assert!(rig.step().lost.is_empty());
    rig.state("a", &claimed(1, 1, *claim));
    assert!(rig.step().lost.is_empty());
    rig.state("a", &claimed(2, 9, 5));
    assert_eq!(rig.step().lost, [*claim]);
    assert!(!rig.machine.settling(id, *claim));
}

#[test]
fn a_claim_that_was_ended_before_its_answer_is_never_given_out() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let wants = rig.wants();
    let [Want::Claim { id, to, .. }] = &wants[..] else {
        panic!("{wants:?}");
    };
    let Register::Claimed { claim, .. } = to else {
        panic!("{to:?}");
    };
    let index = rig.state("a", to);
    rig.delete("state/a");
    assert!(!rig.machine.claimed(id, *claim, index));
}

#[test]
fn a_snapshot_shows_losses_too() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let (_, nonce, _) = rig.hold();
    let (index, time) = (at(rig.index + 9), rig.time());
    let card = Node::file(
        key(&format!("consumers/{}", tag(1))),
        "{\"slots\":1}",
        at(2),
        at(2),
    );
    let view = store::View::new(index, vec![card]);
    rig.machine.snapshot(&paths().root, view, time);
    assert_eq!(rig.step().lost, [nonce]);
}

/// Jobs, registers and consumers, each as it was written, by the index of that.
fn list(index: Index, nodes: &[(u64, &str, &str)]) -> store::View {
    let node = |(written, rest, value): &(u64, &str, &str)| {
        Node::file(key(rest), (*value).to_owned(), at(*written), at(*written))
    };
    store::View::new(index, nodes.iter().map(node).collect())
}

#[test]
fn lists_one_after_the_other_let_no_sleeper_keep_a_job() {
    let mut rig = Rig::new(1);
    let (me, other) = (
        format!("consumers/{}", tag(1)),
        format!("consumers/{}", tag(2)),
    );
    // The other's slot is the first in line.
    rig.delete(&me);
    rig.consumer(2, 1);
    rig.consumer(1, 1);
    rig.machine.registered(tag(1), at(rig.index));
    let card = "{\"slots\": 1}";
    let show = |rig: &mut Rig, jobs: &[(u64, &str, &str)]| {
        rig.pass(MS * 100);
        rig.index += 1_000;
        let nodes = [&[(3, other.as_str(), card), (4, me.as_str(), card)], jobs].concat();
        let time = rig.time();
        rig.machine
            .snapshot(&paths().root, list(at(rig.index), &nodes), time);
        rig.claims()
    };
    let a = [(5, "jobs/a", "")];
    let lists = (0..30).position(|_| show(&mut rig, &a) == ["a"]);
    assert!(lists.is_some_and(|lists| lists > 1), "{lists:?}");
    // It is known from then on, whatever is listed, until it claims something.
    let done = (6, "state/a", "done 1 0000000000000001");
    rig.finish(&JobId::of_node("a"), Outcome::Written(at(6)));
    assert_eq!(show(&mut rig, &[(7, "jobs/b", ""), done]), ["b"]);
    rig.finish(&JobId::of_node("b"), Outcome::Written(at(8)));
    let b = claimed(1, 2, 9).to_string();
    let awake = [
        (7, "jobs/b", ""),
        (9, "jobs/c", ""),
        (8, "state/b", b.as_str()),
    ];
    assert_eq!(show(&mut rig, &awake), ["c"]);
    let whose = rig.machine.view.pass_over_is_known(tag(2));
    assert!(!whose, "it has claimed");
}

#[test]
fn lists_one_after_the_other_keep_nothing_from_being_cleared_away() {
    let mut rig = Rig::new(1);
    let me = format!("consumers/{}", tag(1));
    let nodes = [
        (2, me.as_str(), "{\"slots\": 1}"),
        (3, "jobs/a", ""),
        (4, "state/a", "done 1 0000000000000001"),
        (5, "state/b", "ready 1 0"),
    ];
    let mut deleted = Vec::new();
    for _ in 0..700 {
        rig.pass(Duration::from_secs(1));
        rig.index += 1_000;
        let time = rig.time();
        rig.machine
            .snapshot(&paths().root, list(at(rig.index), &nodes), time);
        for want in rig.wants() {
            deleted.push((want, rig.passed.as_secs()));
        }
    }
    let [
        (Want::DeleteJob { id, .. }, first),
        (Want::DeleteRegister { id: b, .. }, last),
    ] = &deleted[..]
    else {
        panic!("{deleted:?}");
    };
    assert_eq!((id.as_str(), b.as_str()), ("a", "b"));
    assert!(*first <= 7 && *last <= 605, "{deleted:?}");
}

#[test]
fn what_i_have_ended_is_not_looked_at_before_the_view_shows_it() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let (id, nonce, _) = rig.hold();
    assert!(rig.machine.settling(&id, nonce));
    // Put back, at an index that the view has not reached: no stray.
    rig.finish(&id, Outcome::Written(at(rig.index + 2)));
    assert!(rig.wants().is_empty());
    rig.job("b");
    assert!(
        rig.wants().is_empty(),
        "the slot is still taken in the view"
    );
    rig.state("a", &ready(1, Duration::ZERO));
    assert_eq!(rig.claims(), ["a"]);
}

#[test]
fn a_job_that_is_done_is_deleted_by_others_only_after_a_while() {
    let mut rig = Rig::new(1);
    let index = rig.job("a");
    rig.state(
        "a",
        &Register::Done {
            attempts: 1,
            claim: 3,
        },
    );
    let wake = rig.step().wake.unwrap();
    let wait = wake.since(rig.time().now);
    assert_eq!(wait, FINISHED);
    rig.pass(wait);
    let wait = rig.step().wake.unwrap().since(rig.time().now);
    assert!(wait > Duration::ZERO && wait <= FINISHED, "{wait:?}");
    rig.pass(wait);
    let id = JobId::of_node("a");
    let id2 = id.clone();
    assert_eq!(rig.wants(), [Want::DeleteJob { id, index }]);
    rig.finish(&id2, Outcome::Cleared);
    assert!(rig.wants().is_empty(), "the view is about to show it");
    rig.delete("jobs/a");
    assert_eq!(rig.machine.mine.len(), 0);
    assert!(rig.wants().is_empty());
}

#[test]
fn a_done_register_without_a_job_is_not_kept() {
    let mut rig = Rig::new(1);
    rig.job("a");
    rig.state(
        "a",
        &Register::Done {
            attempts: 1,
            claim: 3,
        },
    );
    rig.delete("jobs/a");
    rig.state(
        "b",
        &Register::Done {
            attempts: 1,
            claim: 3,
        },
    );
    for name in ["a", "b"] {
        assert_eq!(rig.machine.view.class(&JobId::of_node(name)), None);
    }
}

#[test]
fn a_job_that_comes_after_its_end_is_finished_when_that_is_found_out() {
    let mut rig = Rig::new(1);
    rig.job("a");
    let id = JobId::of_node("a");
    assert_eq!(rig.claims(), ["a"]);
    let register = Some(Register::Done {
        attempts: 1,
        claim: 3,
    });
    rig.finish(
        &id,
        Outcome::IsDone(Seen {
            register,
            index: at(2),
        }),
    );
    assert_eq!(rig.machine.view.class(&id), Some(Class::Finished));
    assert!(rig.wants().is_empty());
}

#[test]
fn a_register_without_a_job_is_cleared_away_after_ten_minutes() {
    let mut rig = Rig::new(1);
    let index = rig.state("a", &ready(0, Duration::ZERO));
    rig.state("b", &claimed(1, 9, 9));
    rig.consumer(2, 1);
    rig.state("c", &claimed(1, 2, 9));
    assert!(rig.wants().is_empty());
    rig.pass(ORPHAN - MS);
    rig.job("b");
    assert_eq!(rig.claims(), ["b"]);
    rig.pass(ORPHAN + MS);
    let id = JobId::of_node("a");
    let wants = rig.wants();
    assert_eq!(wants, [Want::DeleteRegister { id, index }]);
}

#[test]
fn a_draining_consumer_claims_nothing_and_still_puts_back() {
    let mut rig = Rig::new(2);
    rig.machine.drain();
    rig.job("a");
    assert!(rig.wants().is_empty());
    rig.job("b");
    rig.state("b", &claimed(1, 1, 42));
    assert!(matches!(&rig.wants()[..], [Want::Write { .. }]));
}

#[test]
fn a_deleted_directory_takes_all_in_it() {
    let mut rig = Rig::new(1);
    rig.job("a");
    rig.state("a", &ready(2, Duration::ZERO));
    rig.consumer(2, 1);
    rig.delete("state");
    let register = rig.machine.view.register(&JobId::of_node("a"));
    assert_eq!(register, None);
    rig.delete("jobs");
    assert_eq!(rig.machine.view.class(&JobId::of_node("a")), None);
    rig.delete("consumers");
    assert!(rig.machine.view.consumers().next().is_none() && rig.machine.is_buried());
}

#[test]
fn what_is_no_register_sets_its_job_aside() {
    let mut rig = Rig::new(3);
    for (name, value) in [("a", "?"), ("b", "ready 07 0"), ("c", "dead 3 why")] {
        rig.job(name);
        rig.put(&format!("state/{name}"), value);
    }
    assert!(rig.wants().is_empty());
    rig.put("state/a", "ready 0 0");
    assert_eq!(rig.claims(), ["a"]);
}

/// Several machines, each as far in one log as it likes, and a store that compares and swaps.
struct Race {
    rigs: Vec<Rig>,
    /// How far each has read.
    read: Vec<usize>,
    log: Vec<(String, Option<String>)>,
    states: BTreeMap<String, (String, Index)>,
    dice: fastrand::Rng,
    /// Claims that wait to be acked: by whom, of what.
    running: Vec<(usize, JobId, u64)>,
    claims: usize,
    conflicts: usize,
    acks: usize,
}

impl Race {
    fn new(seed: u64) -> Self {
        Self {
            rigs: Vec::new(),
            read: Vec::new(),
            log: Vec::new(),
            states: BTreeMap::new(),
            dice: fastrand::Rng::with_seed(seed),
            running: Vec::new(),
            claims: 0,
            conflicts: 0,
            acks: 0,
        }
    }

    /// Another consumer comes, and reads all there is first.
    fn join(&mut self, slots: usize) {
        let number = self.rigs.len() as u64 + 1;
        let mut rig = Rig::new(slots);
        rig.delete(&format!("consumers/{}", tag(1)));
        rig.machine.unregistered();
        rig.entropy = Entropy::seeded(number);
        rig.index = 10;
        self.rigs.push(rig);
        self.read.push(0);
        let card = format!("{{\"slots\": {slots}}}");
        self.log
            .push((format!("consumers/{}", tag(number)), Some(card)));
        let index = at(self.log.len() as u64 + 10);
        let who = self.rigs.len() - 1;
        let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
        for (position, (rest, value)) in self.log.iter().enumerate() {
            let index = at(position as u64 + 11);
            match value {
                None => drop(nodes.remove(rest)),
                Some(value) => {
                    let created = nodes.get(rest).map_or(index, |node| node.created);
                    let node = Node::file(key(rest), value.clone(), created, index);
                    nodes.insert(rest.clone(), node);
                }
            }
        }
        let view = store::View::new(index, nodes.into_values().collect());
        let rig = &mut self.rigs[who];
        let time = rig.time();
        rig.index = index.get();
        rig.machine.snapshot(&paths().root, view, time);
        rig.machine.registered(tag(number), index);
        self.read[who] = self.log.len();
    }

    fn tell(&mut self, who: usize) {
        let (rest, value) = self.log[self.read[who]].clone();
        self.read[who] += 1;
        match value {
            Some(value) => drop(self.rigs[who].put(&rest, &value)),
            None => drop(self.rigs[who].delete(&rest)),
        }
    }

    fn write(&mut self, id: &JobId, to: &Register) -> Index {
        self.log.push((format!("state/{id}"), Some(to.to_string())));
        let index = at(self.log.len() as u64 + 10);
        self.states.insert(id.to_string(), (to.to_string(), index));
        index
    }

    /// One consumer looks at one change, or one job is done.
    fn turn(&mut self) {
        if !self.running.is_empty() && self.dice.u32(..4) == 0 {
            let (who, id, nonce) = self.running.remove(self.dice.usize(..self.running.len()));
            assert!(self.rigs[who].machine.settling(&id, nonce));
            let index = self.write(
                &id,
                &Register::Done {
                    attempts: 1,
                    claim: nonce,
                },
            );
            self.rigs[who].finish(&id, Outcome::Written(index));
            self.log.push((format!("jobs/{id}"), None));
            self.acks += 1;
        }
        let who = self.dice.usize(..self.rigs.len());
        if self.read[who] < self.log.len() {
            self.tell(who);
        }
        for want in self.rigs[who].wants() {
            let Want::Claim {
                id, from: None, to, ..
            } = want
            else {
                panic!("{want:?}");
            };
            self.claims += 1;
            if let Some((_, index)) = self.states.get(id.as_str()) {
                self.conflicts += 1;
                let outcome = Outcome::Written(*index);
                self.rigs[who].finish(&id, outcome);
                continue;
            }
            let Register::Claimed { claim, .. } = to else {
                panic!("{to:?}");
            };
            let index = self.write(&id, &to);
            assert!(self.rigs[who].machine.claimed(&id, claim, index));
            self.running.push((who, id, claim));
        }
    }
}

#[test]
fn consumers_that_came_at_different_times_soon_agree() {
    for (seed, slots) in [(1, 1), (2, 1), (3, 1), (4, 3), (5, 3), (6, 8)] {
        let mut race = Race::new(seed);
        for number in 0..2_000 {
            race.log
                .push((format!("jobs/{number:05}"), Some("x".into())));
        }
        for _ in 0..5 {
            race.join(slots);
            for _ in 0..race.dice.usize(..200) {
                race.turn();
            }
        }
        let (early, acks) = (race.conflicts, race.acks);
        while race.acks < 1_900 {
            race.turn();
        }
        let late = race.conflicts - early;
        let jobs = race.acks - acks;
        println!(
            "seed {seed}, {slots} slots: {early} conflicts at first, then {late} in {jobs} jobs"
        );
        assert!(
            late * 50 <= jobs,
            "seed {seed}: {late} conflicts in {jobs} jobs"
        );
    }
}
