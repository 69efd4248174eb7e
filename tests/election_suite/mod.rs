//! What the election promises, over any store: each check takes a [`World`] of clients that share
//! one store. `tests/election_embedded.rs`, `tests/election_v2like.rs` and
//! `tests/election_etcd2.rs` run all of them.

mod proclaiming;

use std::future::{Future, IntoFuture};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use tenure::runtime::Runtime;
use tenure::store::Delete;
use tenure::testkit::{Faulty, cancel_after};
use tenure::{Client, Election, ErrorKind, Key, Leader, Leaders, Leadership, Store, StoreExt, Ttl};

pub(crate) use proclaiming::{
    a_late_proclamation_never_takes_the_place_of_a_newer_one,
    a_proclamation_keeps_the_term_and_is_seen_by_all,
    a_proclamation_over_a_strangers_value_is_a_loss,
    a_proclamation_that_finds_no_answer_ends_with_the_term,
    a_proclamation_without_an_answer_is_found_out,
    a_renewal_while_a_proclamation_is_in_doubt_loses_nothing,
    proclamations_at_once_are_made_one_after_the_other,
    what_cannot_be_proclaimed_leaves_the_proposal_as_it_was,
};

/// Clients that share one store, each over a connection of its own.
pub(crate) struct World {
    pub(crate) open: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync>,
    pub(crate) runtime: Runtime,
}

pub(crate) const TTL: Duration = Duration::from_secs(3);
/// How long after a TTL a server may take to remove what expired (etcd looks every 0.5 s).
const SWEEP: Duration = Duration::from_millis(700);
/// Far more than any step takes on a slow machine; only a hang reaches it.
const LONG: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn client(&self) -> Client {
        self.client_of((self.open)())
    }

    /// A client whose link to the store can be cut.
    fn client_on_a_link(&self) -> (Client, Faulty<dyn Store>) {
        let link = Faulty::shared((self.open)(), 1);
        (self.client_of(link.clone()), link)
    }

    fn client_of(&self, store: impl Store) -> Client {
        Client::builder(store)
            .runtime(self.runtime.clone())
            .ttl(Ttl::new(TTL).unwrap())
            .app("candidate")
            .build()
    }
}

fn dir() -> Key {
    Key::new("/_elections/a").unwrap()
}

async fn eventually<F: Future<Output = bool>>(what: &str, limit: Duration, check: impl Fn() -> F) {
    let wait = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let reached = tokio::time::timeout(limit, wait).await;
    assert!(reached.is_ok(), "{what}: not within {limit:?}");
}

async fn soon<T>(what: &str, future: impl IntoFuture<Output = T>) -> T {
    match tokio::time::timeout(LONG, future.into_future()).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: still pending after {LONG:?}"),
    }
}

async fn line_length(client: &Client) -> usize {
    client.store().children(&dir()).await.unwrap().len()
}

async fn line_has(client: &Client, length: usize) {
    let has = || async { line_length(client).await == length };
    eventually(&format!("{length} in line"), LONG, has).await;
}

/// Returns once the leader's session has said who it is: from then on the next put is a
/// proclamation.
async fn announced(client: &Client) {
    let leader = client.election("a").leader().await.unwrap().unwrap();
    let session = leader.session().unwrap();
    let known = || async { client.who(session).await.unwrap().is_some() };
    eventually("the leader's session is announced", LONG, known).await;
}

async fn delete_by_force(client: &Client, key: &Key) {
    let delete = Delete::new(key.clone());
    client.store().delete(delete).await.unwrap();
}

async fn campaign(election: &Election, proposal: &str) -> Leadership {
    let proposal = proposal.to_owned();
    soon("the campaign", election.campaign(proposal))
        .await
        .unwrap()
}

/// A campaign in the background.
fn candidate(
    client: &Client,
    proposal: &'static str,
) -> tokio::task::JoinHandle<tenure::Result<Leadership>> {
    let election = client.election("a");
    tokio::spawn(async move { election.campaign(proposal).await })
}

async fn leader(client: &Client) -> Option<(u64, String)> {
    let leader = client.election("a").leader().await.unwrap();
    leader.as_ref().map(told)
}

fn told(leader: &Leader) -> (u64, String) {
    let proposal = leader.proposal().to_vec();
    (leader.token(), String::from_utf8(proposal).unwrap())
}

/// The next item of an observer.
async fn next(leaders: &mut Leaders) -> Option<(u64, String)> {
    let item = soon("the next item", leaders.next()).await;
    item.unwrap().unwrap().as_ref().map(told)
}

pub(crate) async fn one_leads_at_a_time_terms_rise_and_the_line_is_fair(world: World) {
    let first = world.client();
    let leadership = campaign(&first.election("a"), "0").await;
    let leading = Arc::new(AtomicBool::new(false));
    let terms = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = tokio::task::JoinSet::new();
    let clients = [world.client(), world.client()];
    for turn in 1..=6 {
        let (client, leading, terms) = (clients[turn % 2].clone(), leading.clone(), terms.clone());
        tasks.spawn(async move {
            let won = campaign(&client.election("a"), &turn.to_string()).await;
            assert!(!leading.swap(true, Ordering::SeqCst), "two leaders");
            terms.lock().unwrap().push((won.token(), turn));
            assert_eq!(leader(&client).await, Some((won.token(), turn.to_string())));
            assert!(won.is_held());
            assert!(leading.swap(false, Ordering::SeqCst));
            won.resign().await.unwrap();
        });
        line_has(&first, turn + 1).await;
    }
    let proposals = |it: &tenure::Contender| String::from_utf8(it.body().to_vec()).unwrap();
    let candidates = first.election("a").candidates().await.unwrap();
    let order: Vec<String> = candidates.iter().map(proposals).collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "5", "6"]);
    let holders: Vec<bool> = candidates.iter().map(tenure::Contender::holds).collect();
    assert_eq!(holders, [true, false, false, false, false, false, false]);
    leadership.resign().await.unwrap();
    while let Some(done) = soon("all leaders", tasks.join_next()).await {
        done.unwrap();
    }
    let terms = terms.lock().unwrap().clone();
    assert!(terms.is_sorted_by(|one, two| one < two), "{terms:?}");
    let turns: Vec<usize> = terms.iter().map(|(_, turn)| *turn).collect();
    assert_eq!(turns, [1, 2, 3, 4, 5, 6]);
    assert_eq!(line_length(&first).await, 0);
}

pub(crate) async fn a_leader_is_seen_with_its_term_its_proposal_and_who_it_is(world: World) {
    let (a, b) = (world.client(), world.client());
    assert_eq!(b.election("a").leader().await.unwrap(), None);
    let leadership = campaign(&a.election("a"), "ünder 1 ").await;
    let leader = b.election("a").leader().await.unwrap().unwrap();
    assert_eq!(leader.token(), leadership.token());
    assert_eq!(leader.proposal(), &leadership.proposal());
    assert_eq!(leader.key(), leadership.key());
    assert!(leader.since().is_some());
    let session = leader.session().unwrap();
    announced(&b).await;
    let who = b.who(session).await.unwrap().unwrap();
    assert_eq!((who.app(), who.pid()), ("candidate", std::process::id()));
    assert_eq!(b.sessions().await.unwrap().get(&session), Some(&who));
    leadership.resign().await.unwrap();
    a.shutdown(LONG).await;
    assert_eq!(b.who(session).await.unwrap(), None);
}

pub(crate) async fn try_campaign_leads_only_where_nobody_is_in_line(world: World) {
    let (a, b) = (world.client(), world.client());
    let won = a.election("a").try_campaign("1").await.unwrap().unwrap();
    assert!(b.election("a").try_campaign("2").await.unwrap().is_none());
    assert_eq!(line_length(&a).await, 1);
    won.resign().await.unwrap();
    assert_eq!(leader(&b).await, None);
}

pub(crate) async fn who_campaigned_is_known_however_short_it_led(world: World) {
    for looks_first in [false, true] {
        let (a, b) = (world.client(), world.client());
        let won = match looks_first {
            false => campaign(&a.election("a"), "1").await,
            true => a.election("a").try_campaign("1").await.unwrap().unwrap(),
        };
        let session = b.election("a").leader().await.unwrap().unwrap().session();
        won.resign().await.unwrap();
        let known = || async { b.who(session.unwrap()).await.unwrap().is_some() };
        eventually("it is announced", LONG, known).await;
    }
}

pub(crate) async fn a_candidate_whose_ticket_is_gone_is_told_and_never_wins(world: World) {
    let (a, b) = (world.client(), world.client());
    let leadership = campaign(&a.election("a"), "one").await;
    let waiting = candidate(&b, "two");
    line_has(&a, 2).await;
    let mut tickets = a.store().children(&dir()).await.unwrap();
    tickets.retain(|ticket| ticket.key != *leadership.key());
    let ticket = tickets.remove(0);
    delete_by_force(&a, &ticket.key).await;
    let outcome = tokio::time::timeout(TTL, waiting).await;
    let outcome = outcome.expect("told within a TTL").unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    assert!(leadership.is_held());
    leadership.resign().await.unwrap();
    assert_eq!(leader(&a).await, None);
}

pub(crate) async fn a_candidate_whose_session_died_is_told_while_another_leads(world: World) {
    let a = world.client();
    let (b, link) = world.client_on_a_link();
    let leadership = campaign(&a.election("a"), "one").await;
    let waiting = candidate(&b, "two");
    line_has(&a, 2).await;
    link.set_down(true);
    let cut = world.runtime.clock.now();
    let outcome = soon("the candidate", waiting).await.unwrap();
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Lost);
    assert!(world.runtime.clock.now().since(cut) <= TTL);
    assert!(leadership.is_held());
    leadership.resign().await.unwrap();
    link.set_down(false);
    b.idle().await;
    line_has(&a, 0).await;
}

pub(crate) async fn a_leader_that_vanishes_is_followed_within_its_ttl(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let leadership = campaign(&a.election("a"), "one").await;
    let mut observer = b.election("a").observe();
    assert_eq!(next(&mut observer).await.unwrap().1, "one");
    let waiting = candidate(&b, "two");
    line_has(&b, 2).await;
    link.set_down(true);
    let cut = world.runtime.clock.now();
    soon("the loss", leadership.lost()).await;
    let lost_after = world.runtime.clock.now().since(cut);
    let won = soon("the successor", waiting).await.unwrap().unwrap();
    let after = world.runtime.clock.now().since(cut);
    assert!(lost_after <= after, "two leaders");
    assert!(after <= TTL + SWEEP, "{after:?}");
    assert!(won.token() > leadership.token());
    assert_eq!(next(&mut observer).await, Some((won.token(), "two".into())));
    assert_eq!(
        leadership.resign().await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    won.resign().await.unwrap();
}

pub(crate) async fn an_observer_is_told_that_nobody_leads(world: World) {
    let (a, b) = (world.client(), world.client());
    let mut observer = b.election("a").observe();
    assert_eq!(next(&mut observer).await, None);
    let first = campaign(&a.election("a"), "1").await;
    assert_eq!(next(&mut observer).await, Some((first.token(), "1".into())));
    drop(first);
    assert_eq!(next(&mut observer).await, None);
    let second = campaign(&a.election("a"), "2").await;
    assert_eq!(
        next(&mut observer).await,
        Some((second.token(), "2".into()))
    );
    // Also when it goes without a word.
    delete_by_force(&b, second.key()).await;
    assert_eq!(next(&mut observer).await, None);
}

pub(crate) async fn lead_does_the_work_again_after_each_loss_and_ends_with_it(world: World) {
    let (a, b) = (world.client(), world.client());
    let terms = Arc::new(Mutex::new(Vec::new()));
    let leading = tokio::spawn({
        let (election, terms) = (a.election("a"), terms.clone());
        async move {
            let work = async move |leadership: &Leadership| {
                let turn = {
                    let mut terms = terms.lock().unwrap();
                    terms.push(leadership.token());
                    terms.len()
                };
                if turn < 3 {
                    std::future::pending::<()>().await;
                }
                leadership.proclaim("done soon").await.unwrap();
                leadership.token()
            };
            election.lead("worker", work).await
        }
    });
    for turn in 1..3 {
        let works = || async { terms.lock().unwrap().len() == turn };
        eventually("it works", LONG, works).await;
        let key = b
            .election("a")
            .leader()
            .await
            .unwrap()
            .unwrap()
            .key()
            .clone();
        delete_by_force(&b, &key).await;
    }
    let output = soon("the work", leading).await.unwrap().unwrap();
    let terms = terms.lock().unwrap().clone();
    assert!(terms.len() == 3 && terms.is_sorted(), "{terms:?}");
    assert_eq!(output, terms[2]);
    assert_eq!(leader(&b).await, None, "it has resigned");
}

pub(crate) async fn lead_outlasts_an_outage_and_ends_with_the_client(world: World) {
    let (a, link) = world.client_on_a_link();
    let b = world.client();
    let (works, stops) = (Arc::new(Mutex::new(0)), Arc::new(AtomicBool::new(false)));
    struct Stops(Arc<AtomicBool>);
    impl Drop for Stops {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let leading = tokio::spawn({
        let (election, works, stops) = (a.election("a"), works.clone(), stops.clone());
        async move {
            let work = async move |_: &Leadership| {
                *works.lock().unwrap() += 1;
                let _stops = Stops(stops.clone());
                std::future::pending::<()>().await;
            };
            election.lead("worker", work).await
        }
    });
    let has_worked = |times| {
        let works = works.clone();
        move || {
            let works = works.clone();
            async move { *works.lock().unwrap() == times }
        }
    };
    eventually("it works", LONG, has_worked(1)).await;
    link.set_patience(Duration::from_millis(200));
    link.set_down(true);
    let cut = world.runtime.clock.now();
    let stopped = || async { stops.load(Ordering::SeqCst) };
    eventually("the work is stopped", LONG, stopped).await;
    assert!(world.runtime.clock.now().since(cut) <= TTL);
    link.set_down(false);
    eventually("it works again", LONG, has_worked(2)).await;
    assert!(leader(&b).await.is_some());
    a.shutdown(LONG).await;
    let error = soon("the end", leading).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    line_has(&b, 0).await;
}

pub(crate) async fn a_future_dropped_at_any_poll_leaves_nothing_or_goes_on(world: World) {
    let (a, b) = (world.client(), world.client());
    // Campaign and resign.
    for polls in 0.. {
        let election = a.election("a");
        let cycle = async { campaign(&election, "1").await.resign().await.unwrap() };
        let done = cancel_after(cycle, polls).await.is_some();
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b).await, 0, "after {polls} polls");
        if done {
            assert!(polls > 1, "the future never waited");
            break;
        }
    }
    // Waiting behind a leader, who is still there afterwards.
    let leadership = campaign(&b.election("a"), "0").await;
    for polls in 0..12 {
        let election = a.election("a");
        let limited = election.campaign("1").timeout(Duration::from_millis(20));
        cancel_after(limited.into_future(), polls).await;
        soon("the janitor", a.idle()).await;
        assert_eq!(line_length(&b).await, 1, "waiting, after {polls} polls");
    }
    // Proclaiming: whatever was dropped, the next one counts, and nothing comes after it.
    for polls in 0.. {
        let dropped = leadership.proclaim(format!("dropped after {polls}"));
        let done = cancel_after(dropped, polls).await.is_some();
        leadership.proclaim(format!("{polls}")).await.unwrap();
        assert_eq!(leader(&a).await.unwrap().1, format!("{polls}"));
        if done {
            assert!(polls > 0, "the future never waited");
            break;
        }
    }
    assert!(leadership.is_held());
    // Resigning while a proclamation is under way.
    let mut leadership = leadership;
    for polls in 0..4 {
        let dropped = leadership.proclaim("at the last moment");
        cancel_after(dropped, polls).await;
        let key = leadership.key().clone();
        leadership.resign().await.unwrap();
        assert!(b.store().node(&key).await.unwrap().is_none());
        leadership = campaign(&b.election("a"), "again").await;
        assert!(b.store().node(&key).await.unwrap().is_none());
    }
    leadership.resign().await.unwrap();
    assert_eq!(line_length(&a).await, 0);
}

pub(crate) async fn bad_names_and_ttls_are_refused_before_anything_is_sent(world: World) {
    let client = world.client();
    for name in ["", "a\nb"] {
        let election = client.election(name);
        let kinds = [
            election.campaign("1").await.unwrap_err().kind(),
            election.try_campaign("1").await.unwrap_err().kind(),
            election.leader().await.unwrap_err().kind(),
            election.candidates().await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::InvalidName; 4], "{name:?}");
        let items: Vec<_> = election.observe().collect().await;
        assert!(matches!(&*items, [Err(error)] if error.kind() == ErrorKind::InvalidName));
        let lead = election.lead("1", async |_| ()).await;
        assert_eq!(lead.unwrap_err().kind(), ErrorKind::InvalidName);
    }
    let short = client.election("a").ttl(Duration::from_millis(1));
    let error = short.campaign("1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl);
    assert_eq!(client.session_state(), None, "a session was started");
    let limit = Duration::from_millis(200);
    let _leads = campaign(&world.client().election("a"), "1").await;
    let late = client.election("a").campaign("2").timeout(limit).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
}

/// Runs every check of the suite, each in a world of its own that `$world` makes.
#[macro_export]
macro_rules! election_suite {
    ($attributes:meta, $world:expr) => {
        $crate::election_suite!(@each $attributes, $world,
            one_leads_at_a_time_terms_rise_and_the_line_is_fair,
            a_leader_is_seen_with_its_term_its_proposal_and_who_it_is,
            try_campaign_leads_only_where_nobody_is_in_line,
            who_campaigned_is_known_however_short_it_led,
            a_proclamation_keeps_the_term_and_is_seen_by_all,
            proclamations_at_once_are_made_one_after_the_other,
            what_cannot_be_proclaimed_leaves_the_proposal_as_it_was,
            a_proclamation_without_an_answer_is_found_out,
            a_late_proclamation_never_takes_the_place_of_a_newer_one,
            a_renewal_while_a_proclamation_is_in_doubt_loses_nothing,
            a_proclamation_that_finds_no_answer_ends_with_the_term,
            a_proclamation_over_a_strangers_value_is_a_loss,
            a_candidate_whose_ticket_is_gone_is_told_and_never_wins,
            a_candidate_whose_session_died_is_told_while_another_leads,
            a_leader_that_vanishes_is_followed_within_its_ttl,
            an_observer_is_told_that_nobody_leads,
            lead_does_the_work_again_after_each_loss_and_ends_with_it,
            lead_outlasts_an_outage_and_ends_with_the_client,
            a_future_dropped_at_any_poll_leaves_nothing_or_goes_on,
            bad_names_and_ttls_are_refused_before_anything_is_sent,
        );
    };
    (@each $attributes:meta, $world:expr, $($check:ident,)*) => {
        $(
            #[$attributes]
            async fn $check() {
                let (world, _server) = $world.await;
                suite::$check(world).await;
            }
        )*
    };
}
