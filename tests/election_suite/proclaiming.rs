//! What is promised of proclamations.

use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::store::{Expiry, Put};
use tenure::testkit::{Call, Fault};
use tenure::{ErrorKind, Key, StoreExt};

use super::{TTL, World, announced, campaign, leader, line_length, next, soon};

pub(crate) async fn a_proclamation_keeps_the_term_and_is_seen_by_all(world: World) {
    let (a, b) = (world.client(), world.client());
    let leadership = campaign(&a.election("a"), "one").await;
    let mut observer = b.election("a").observe();
    let term = leadership.token();
    assert_eq!(next(&mut observer).await, Some((term, "one".into())));
    for proposal in ["two", "", "two", "3 "] {
        leadership.proclaim(proposal).await.unwrap();
        assert_eq!(leadership.proposal(), proposal);
        assert_eq!(leader(&b).await, Some((term, proposal.into())));
        assert_eq!(next(&mut observer).await, Some((term, proposal.into())));
    }
    // The same again is fine, and no news.
    leadership.proclaim("3 ").await.unwrap();
    // It is renewed as what it says now.
    let clock = &world.runtime.clock;
    let end = clock.now() + TTL * 2;
    while !clock.has_passed(end) {
        assert!(leadership.is_held());
        clock.sleep(Duration::from_millis(100)).await;
    }
    leadership.proclaim("last").await.unwrap();
    assert_eq!(next(&mut observer).await, Some((term, "last".into())));
    if a.store().about().commits {
        // It is the same ticket, so what it fences is fenced still.
        let data = Key::new("/data").unwrap();
        leadership.put(&data, "1", Expiry::Never).await.unwrap();
    }
    leadership.resign().await.unwrap();
    assert_eq!(next(&mut observer).await, None);
    assert_eq!(line_length(&b).await, 0);
}

pub(crate) async fn proclamations_at_once_are_made_one_after_the_other(world: World) {
    let (a, b) = (world.client(), world.client());
    let leadership = campaign(&a.election("a"), "0").await;
    let mut observer = b.election("a").observe();
    assert_eq!(next(&mut observer).await.unwrap().1, "0");
    let all = (1..=5).map(|number: u32| leadership.proclaim(number.to_string()));
    for outcome in futures_util::future::join_all(all).await {
        outcome.unwrap();
    }
    for number in 1..=5_u32 {
        assert_eq!(next(&mut observer).await.unwrap().1, number.to_string());
    }
    assert_eq!(leadership.proposal(), "5");
    leadership.resign().await.unwrap();
}

pub(crate) async fn what_cannot_be_proclaimed_leaves_the_proposal_as_it_was(world: World) {
    let (a, b) = (world.client(), world.client());
    let leadership = campaign(&a.election("a"), "one").await;
    if let Err(error) = leadership.proclaim(vec![0xff, 0xfe]).await {
        assert_eq!(error.kind(), ErrorKind::InvalidValue, "{error}");
        assert_eq!(leadership.proposal(), "one");
        assert_eq!(leader(&b).await.unwrap().1, "one");
    }
    leadership.proclaim("two").await.unwrap();
    assert_eq!(leader(&b).await.unwrap().1, "two");
    leadership.resign().await.unwrap();
}

pub(crate) async fn a_proclamation_without_an_answer_is_found_out(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let leadership = campaign(&a.election("a"), "0").await;
    announced(&b).await;
    link.set_patience(Duration::from_millis(100));
    for (number, fault) in [
        Fault::LostReply,
        Fault::LostRequest,
        Fault::Unavailable,
        Fault::Unreachable,
        Fault::LateCommit(Duration::from_millis(300)),
    ]
    .into_iter()
    .enumerate()
    {
        let proposal = format!("{fault:?} {number}");
        link.next(Call::Put, fault);
        leadership.proclaim(proposal.clone()).await.unwrap();
        assert_eq!(leader(&b).await.unwrap().1, proposal);
        link.next(Call::Get, fault);
        leadership
            .proclaim(format!("{proposal}, read"))
            .await
            .unwrap();
        assert_eq!(leader(&b).await.unwrap().1, format!("{proposal}, read"));
        link.quiesce().await;
        assert_eq!(leader(&b).await.unwrap().1, format!("{proposal}, read"));
    }
    assert!(leadership.is_held());
    leadership.resign().await.unwrap();
    a.idle().await;
    assert_eq!(line_length(&b).await, 0);
}

pub(crate) async fn a_late_proclamation_never_takes_the_place_of_a_newer_one(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let leadership = campaign(&a.election("a"), "old").await;
    announced(&b).await;
    link.set_patience(Duration::from_millis(50));
    let late = Duration::from_millis(600);
    let puts = link.calls(Call::Put);
    // There and back again, so that the value alone would not tell; the first ones come late.
    link.next(Call::Put, Fault::LateCommit(late));
    leadership.proclaim("late").await.unwrap();
    link.next(Call::Put, Fault::LateCommit(late));
    leadership.proclaim("old").await.unwrap();
    leadership.proclaim("late").await.unwrap();
    leadership.proclaim("old").await.unwrap();
    assert!(link.calls(Call::Put) - puts >= 6, "none was late");
    let mut observer = b.election("a").observe();
    assert_eq!(next(&mut observer).await.unwrap().1, "old");
    link.quiesce().await;
    assert_eq!(leader(&b).await.unwrap().1, "old");
    let news = tokio::time::timeout(Duration::from_millis(300), observer.next()).await;
    assert!(news.is_err(), "something came late: {news:?}");
    leadership.resign().await.unwrap();
}

pub(crate) async fn a_renewal_while_a_proclamation_is_in_doubt_loses_nothing(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let leadership = campaign(&a.election("a"), "one").await;
    announced(&b).await;
    let (clock, renewals) = (&world.runtime.clock, link.calls(Call::Renew));
    let deadline = leadership.deadline().unwrap();
    // Close before a renewal is due; the answer comes when it is overdue.
    clock.sleep_until(deadline - TTL * 2 / 3).await;
    link.next(Call::Put, Fault::SlowReply(TTL));
    let proclaimed = soon("the outcome", leadership.proclaim("two")).await;
    proclaimed.unwrap();
    assert!(link.calls(Call::Renew) > renewals, "there was no renewal");
    assert!(leadership.is_held());
    assert_eq!(leader(&b).await.unwrap().1, "two");
    let renewed = leadership.extended(deadline + TTL / 3);
    assert!(soon("another term", renewed).await.is_some());
    leadership.resign().await.unwrap();
}

pub(crate) async fn a_proclamation_that_finds_no_answer_ends_with_the_term(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let leadership = campaign(&a.election("a"), "one").await;
    let start = world.runtime.clock.now();
    link.set_patience(Duration::from_millis(100));
    link.set_down(true);
    let error = soon("the outcome", leadership.proclaim("two"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    let took = world.runtime.clock.now().since(start);
    assert!(took <= TTL, "{took:?}");
    assert!(!leadership.is_held());
    let error = leadership.proclaim("three").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let next = soon("a successor", b.election("a").campaign("next"))
        .await
        .unwrap();
    assert!(next.token() > leadership.token());
    link.set_down(false);
    drop(leadership);
    a.idle().await;
    assert!(next.is_held());
    assert_eq!(line_length(&b).await, 1);
    next.resign().await.unwrap();
}

pub(crate) async fn a_proclamation_over_a_strangers_value_is_a_loss(world: World) {
    let (a, b) = (world.client(), world.client());
    let leadership = campaign(&a.election("a"), "one").await;
    let node = b.store().node(leadership.key()).await.unwrap().unwrap();
    let put = Put::new(node.key.clone(), "theirs", node.expiry().unwrap());
    b.store().put(put).await.unwrap();
    let error = leadership.proclaim("two").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert!(!leadership.is_held());
    let left = b.store().node(leadership.key()).await.unwrap().unwrap();
    assert_eq!(left.text(), Some("theirs"));
}
