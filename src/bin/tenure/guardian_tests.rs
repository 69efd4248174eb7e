use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Instant {
    Instant::new(SECOND * u32::try_from(seconds).unwrap())
}

#[test]
fn a_command_is_asked_a_grace_before_the_deadline_and_killed_before_it() {
    let plan = Plan {
        deadline: at(100),
        grace: SECOND * 2,
        stage: Stage::Running,
    };
    assert_eq!(plan.due(at(97)), Stage::Running);
    assert_eq!(plan.due(at(98)), Stage::Asked);
    assert_eq!(plan.due(at(99)), Stage::Asked);
    assert_eq!(plan.due(at(100) - LEAD), Stage::Killing);
    assert_eq!(plan.due(at(200)), Stage::Killing);
}

#[test]
fn whatever_the_grace_each_stage_is_entered_when_it_is_due() {
    for grace in [0, 1, 40, 99, 100, 1_000].map(Duration::from_millis) {
        let deadline = at(100);
        let mut plan = Plan {
            deadline,
            grace,
            stage: Stage::Running,
        };
        let mut now = at(98) + Duration::from_millis(33);
        let mut entered = Vec::new();
        while plan.stage != Stage::Killing {
            now = now + TICK.min(plan.next(now));
            let due = plan.due(now);
            if due != plan.stage {
                plan.stage = due;
                entered.push((due, deadline.since(now)));
            }
        }
        let mut stages = vec![(Stage::Asked, LEAD + grace), (Stage::Killing, LEAD)];
        stages.retain(|(stage, _)| *stage == Stage::Killing || !grace.is_zero());
        assert_eq!(entered, stages);
    }
}

#[test]
fn the_kill_begins_early_enough_to_be_over_by_the_deadline() {
    const { assert!(LEAD.as_millis() >= 100 && LEAD.as_millis() > TICK.as_millis()) }
}

#[test]
fn a_stage_is_never_left_backwards() {
    let plan = Plan {
        deadline: at(100),
        grace: SECOND,
        stage: Stage::Killing,
    };
    assert_eq!(plan.due(at(1)), Stage::Killing);
}

#[test]
fn what_is_told_is_understood() {
    for order in [Order::Deadline(at(3)), Order::Signal(15), Order::Kill] {
        assert_eq!(Order::parse(order.line().trim_end()), Some(order));
    }
    for end in [End::Code(3), End::Signal(9)] {
        for report in [Report::Ended(end), Report::Stopped(end)] {
            assert_eq!(Report::parse(report.line().trim_end()), Some(report));
        }
    }
    assert_eq!(Order::parse("deadline soon"), None);
    assert_eq!(Report::parse("ended"), None);
}
