//! What a session decides: pure, no clock, no I/O.
//!
//! ```text
//!            granted                 a renewal failed
//! Starting ───────────▶ Live ─────────────────────────▶ Suspect
//!    │ refused           ▲  renewed before the deadline    │
//!    ▼                   └─────────────────────────────────┤
//! Failed                                                   │ deadline, or the lease is gone
//!                                                          ▼
//!                                                         Lost
//! ```
//!
//! The next renewal is due when a third of the way from the send of the last acknowledged one to the
//! deadline is over; a failed one is tried again after a backoff, for as long as the term lasts.

use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::key::Ttl;
use crate::runtime::{Entropy, Instant, Retry};
use crate::session::SessionState;
use crate::store::Granted;

/// The share of a term by which two clocks may disagree about its length: half a percent, which
/// is fifty times what a bad crystal does.
const RATE_MARGIN: u32 = 200;

/// The time from a check of the deadline to the act that it allows.
const LATENCY_MARGIN: Duration = Duration::from_millis(20);

/// How often a lease is asked for without an answer before the store counts as away.
const GRANTS: u32 = 5;

/// The least time between two renewals, whatever a store answers.
const BREATH: Duration = Duration::from_millis(25);

#[derive(Debug)]
pub(super) struct Machine {
    ttl: Ttl,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Starting { retry: Retry, unanswered: u32 },
    Running(Term),
    Over(SessionState),
}

#[derive(Debug)]
struct Term {
    margin: Duration,
    /// When the last acknowledged request was sent.
    since: Instant,
    /// When the next renewal is to be sent.
    due: Instant,
    /// Set while the last renewal failed.
    suspect: Option<Retry>,
}

impl Term {
    /// The first of a lease that was asked for at `sent`.
    fn of(sent: Instant, granted: Granted) -> Result<Self, Error> {
        let ttl = granted.ttl.get();
        let margin = margin(granted.ttl, granted.skew);
        if margin >= ttl / 2 + ttl / 4 {
            let text = format!(
                "a TTL of {} leaves nothing after a margin of {margin:?} for clock skew; \
                 use a longer TTL or configure a smaller skew",
                granted.ttl
            );
            return Err(Error::new(ErrorKind::InvalidTtl, text));
        }
        Ok(Self {
            margin,
            since: sent,
            due: sent + third(granted.ttl, margin),
            suspect: None,
        })
    }
}

impl Machine {
    pub(super) fn new(ttl: Ttl) -> Self {
        Self {
            ttl,
            phase: Phase::Starting {
                retry: Retry::new(),
                unanswered: 0,
            },
        }
    }

    pub(super) fn ttl(&self) -> Ttl {
        self.ttl
    }

    pub(super) fn state(&self) -> SessionState {
        match &self.phase {
            Phase::Starting { .. } => SessionState::Starting,
            Phase::Running(Term { suspect: None, .. }) => SessionState::Live,
            Phase::Running(Term {
                suspect: Some(_), ..
            }) => SessionState::Suspect,
            Phase::Over(state) => *state,
        }
    }

    /// The store granted a lease that was asked for at `sent`.
    pub(super) fn granted(&mut self, sent: Instant, granted: Granted) -> Result<(), Error> {
        match Term::of(sent, granted) {
            Ok(term) => {
                self.ttl = granted.ttl;
                self.phase = Phase::Running(term);
                Ok(())
            }
            Err(error) => {
                self.phase = Phase::Over(SessionState::Failed);
                Err(error)
            }
        }
    }

    /// When a term ends that is granted like this, if it is one that can be kept.
    pub(super) fn prospect(sent: Instant, granted: Granted) -> Result<Instant, Error> {
        let term = Term::of(sent, granted)?;
        Ok(sent + granted.ttl.get() - term.margin)
    }

    /// Everything hangs on another lease by now, which was asked for at `sent`.
    pub(super) fn moved(&mut self, sent: Instant, granted: Granted, now: Instant) {
        if self.expire(now) {
            return;
        }
        if let Ok(term) = Term::of(sent, granted) {
            self.ttl = granted.ttl;
            self.phase = Phase::Running(term);
        }
    }

    /// The store's clocks differ by so much now. If that is more than before, the margin grows,
    /// and every deadline comes nearer by what is returned.
    pub(super) fn widen(&mut self, skew: Duration) -> Duration {
        match &mut self.phase {
            Phase::Running(term) => {
                let wider = term.margin.max(margin(self.ttl, skew));
                term.due = term.due.min(term.since + third(self.ttl, wider));
                wider - std::mem::replace(&mut term.margin, wider)
            }
            Phase::Starting { .. } | Phase::Over(_) => Duration::ZERO,
        }
    }

    /// The grant failed: how long to wait before the next try, or nothing if that is pointless.
    pub(super) fn refused(&mut self, error: &Error, entropy: &Entropy) -> Option<Duration> {
        if let Phase::Starting { retry, unanswered } = &mut self.phase {
            *unanswered += 1;
            if error.is_ambiguous() && *unanswered < GRANTS {
                return Some(retry.pause(entropy));
            }
            self.phase = Phase::Over(SessionState::Failed);
        }
        None
    }

    /// The store acknowledged a term that counts from `since`; `now` is when that is processed.
    pub(super) fn renewed(&mut self, since: Instant, ttl: Ttl, now: Instant) {
        if self.expire(now) {
            return;
        }
        if let Phase::Running(term) = &mut self.phase {
            self.ttl = ttl;
            term.since = term.since.max(since);
            // An answer that counts from long ago must not make this a loop without a pause.
            term.due = (term.since + third(ttl, term.margin)).max(now + BREATH);
            term.suspect = None;
        }
    }

    /// As [`renewed`](Self::renewed), but some keys were not told about: another attempt is due
    /// after a pause, which grows as long as this goes on.
    pub(super) fn renewed_in_part(
        &mut self,
        since: Instant,
        ttl: Ttl,
        now: Instant,
        entropy: &Entropy,
    ) {
        let retry = match &mut self.phase {
            Phase::Running(term) => term.suspect.take(),
            Phase::Starting { .. } | Phase::Over(_) => None,
        };
        self.renewed(since, ttl, now);
        if let Phase::Running(term) = &mut self.phase {
            term.suspect = retry;
        }
        self.missed(now, entropy);
    }

    /// A key's own deadline may be nearer than the session's: the next renewal must leave it two
    /// thirds of its time, and a try after a failed one must not wait longer than it has. Whether
    /// that makes it due sooner.
    pub(super) fn mind(&mut self, deadline: Instant, now: Instant) -> bool {
        let Phase::Running(term) = &mut self.phase else {
            return false;
        };
        let due = match term.suspect {
            None => deadline - third(self.ttl, term.margin) * 2,
            Some(_) => now + deadline.since(now) / 3,
        };
        let due = due.max(now + BREATH);
        let is_sooner = due < term.due;
        term.due = term.due.min(due);
        is_sooner
    }

    /// A renewal failed; another is due after a pause.
    pub(super) fn missed(&mut self, now: Instant, entropy: &Entropy) {
        if self.expire(now) {
            return;
        }
        let left = self
            .deadline()
            .map_or(BREATH, |deadline| deadline.since(now));
        if let Phase::Running(term) = &mut self.phase {
            let pause = term.suspect.get_or_insert_with(Retry::new).pause(entropy);
            // The last tries must not be spent waiting: the nearer the end, the closer they are.
            term.due = now + pause.min((left / 3).max(BREATH));
        }
    }

    /// The store says that the lease is gone.
    pub(super) fn gone(&mut self) {
        self.end(SessionState::Lost);
    }

    /// Closed on purpose.
    pub(super) fn close(&mut self) {
        self.end(SessionState::Closed);
    }

    /// Lost if the deadline has passed. Whether the session is over.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.end(SessionState::Lost);
        }
        matches!(self.phase, Phase::Over(_))
    }

    /// Until when everything that hangs on the session is surely ours.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running(term) => Some(term.since + self.ttl.get() - term.margin),
            Phase::Starting { .. } | Phase::Over(_) => None,
        }
    }

    /// Until when a key of the session is surely ours if its own last request was sent at `sent`.
    ///
    /// The smaller of the two: on a store with leases the session's decides, on one without the
    /// key's own.
    pub(super) fn deadline_of_key(&self, sent: Instant) -> Instant {
        match &self.phase {
            Phase::Running(term) => term.since.min(sent) + self.ttl.get() - term.margin,
            Phase::Starting { .. } | Phase::Over(_) => sent,
        }
    }

    /// When the next renewal is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Running(term) => Some(term.due),
            Phase::Starting { .. } | Phase::Over(_) => None,
        }
    }

    fn end(&mut self, state: SessionState) {
        if !matches!(self.phase, Phase::Over(_)) {
            self.phase = Phase::Over(state);
        }
    }
}

/// What a deadline leaves before the end of a term.
fn margin(ttl: Ttl, skew: Duration) -> Duration {
    ttl.get() / RATE_MARGIN + LATENCY_MARGIN + skew
}

/// When a renewal is due, counted from the send before it. Of what is left of the term after the
/// margin, not of the whole: else a margin of half a term would leave no time for a second try.
fn third(ttl: Ttl, margin: Duration) -> Duration {
    ttl.get().saturating_sub(margin) / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(9);

    fn at(secs: f64) -> Instant {
        Instant::new(Duration::from_secs_f64(1_000.0 + secs))
    }

    fn ttl() -> Ttl {
        Ttl::new(TTL).unwrap()
    }

    fn a_third(skew: Duration) -> Duration {
        (TTL - TTL / RATE_MARGIN - LATENCY_MARGIN - skew) / 3
    }

    fn live() -> Machine {
        let mut machine = Machine::new(ttl());
        machine.granted(at(0.0), Granted::new(ttl())).unwrap();
        machine
    }

    #[test]
    fn a_term_counts_from_the_send_and_ends_a_margin_early() {
        let machine = live();
        assert_eq!(machine.state(), SessionState::Live);
        assert_eq!(
            machine.deadline(),
            Some(at(9.0) - TTL / RATE_MARGIN - LATENCY_MARGIN)
        );
        assert_eq!(machine.due(), Some(at(0.0) + a_third(Duration::ZERO)));
    }

    #[test]
    fn a_renewal_leaves_two_thirds_of_a_term_however_wide_its_margin() {
        let entropy = Entropy::seeded(1);
        let ttl = Ttl::new(Duration::from_secs(1)).unwrap();
        let skewed = Granted::new(ttl).with_skew(Duration::from_millis(498));
        let mut machine = Machine::new(ttl);
        let left = |machine: &Machine| machine.deadline().unwrap().since(machine.due().unwrap());
        machine.granted(at(0.0), skewed).unwrap();
        let first = left(&machine);
        assert!(first > Duration::from_millis(310), "{first:?}");
        machine.renewed(at(0.16), ttl, at(0.17));
        assert_eq!(left(&machine), first);
        machine.mind(at(0.6), at(0.17));
        assert_eq!(
            machine.due(),
            Some(at(0.6) - first),
            "a key that came before"
        );
        machine.missed(at(0.3), &entropy);
        machine.moved(at(0.31), skewed, at(0.32));
        assert_eq!(left(&machine), first);

        let mut machine = live();
        machine.widen(Duration::from_secs(4));
        let due = at(0.0) + a_third(Duration::from_secs(4));
        assert_eq!(machine.due(), Some(due), "sooner, as the deadline is");
    }

    #[test]
    fn skew_widens_the_margin_and_too_much_of_it_is_refused() {
        let mut machine = Machine::new(ttl());
        let skewed = Granted::new(ttl()).with_skew(Duration::from_secs(2));
        machine.granted(at(0.0), skewed).unwrap();
        assert_eq!(
            machine.deadline(),
            Some(at(7.0) - TTL / RATE_MARGIN - LATENCY_MARGIN)
        );

        let mut machine = Machine::new(ttl());
        let skewed = Granted::new(ttl()).with_skew(Duration::from_secs(8));
        assert_eq!(
            machine.granted(at(0.0), skewed).unwrap_err().kind(),
            ErrorKind::InvalidTtl
        );
        assert_eq!(machine.state(), SessionState::Failed);
    }

    #[test]
    fn skew_that_grows_brings_the_deadline_nearer_and_less_of_it_changes_nothing() {
        let mut machine = live();
        let before = machine.deadline().unwrap();
        assert_eq!(
            machine.widen(Duration::from_secs(2)),
            Duration::from_secs(2)
        );
        assert_eq!(machine.deadline(), Some(before - Duration::from_secs(2)));
        assert_eq!(machine.widen(Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(machine.deadline(), Some(before - Duration::from_secs(2)));
        assert_eq!(
            machine.widen(Duration::from_secs(60)),
            Duration::from_secs(58)
        );
        assert!(machine.expire(at(0.1)), "nothing is left of the term");
    }

    #[test]
    fn a_missed_renewal_is_suspect_and_an_answered_one_live_again() {
        let entropy = Entropy::seeded(1);
        let mut machine = live();
        machine.missed(at(3.5), &entropy);
        assert_eq!(machine.state(), SessionState::Suspect);
        let due = machine.due().unwrap();
        assert!(due > at(3.5) && due <= at(3.525), "{due:?}");
        machine.renewed(at(3.51), ttl(), at(3.6));
        assert_eq!(machine.state(), SessionState::Live);
        assert_eq!(machine.due(), Some(at(3.51) + a_third(Duration::ZERO)));
    }

    #[test]
    fn an_answer_after_the_deadline_revives_nothing() {
        let mut machine = live();
        machine.renewed(at(8.0), ttl(), at(9.0));
        assert_eq!(machine.state(), SessionState::Lost);
        machine.renewed(at(9.1), ttl(), at(9.2));
        assert_eq!(
            (machine.state(), machine.deadline()),
            (SessionState::Lost, None)
        );
    }

    #[test]
    fn an_old_answer_never_shortens_a_term() {
        let mut machine = live();
        machine.renewed(at(3.0), ttl(), at(3.1));
        let deadline = machine.deadline();
        machine.renewed(at(1.0), ttl(), at(3.2));
        assert_eq!(machine.deadline(), deadline);
    }

    #[test]
    fn a_keys_deadline_is_the_smaller_of_its_own_and_the_sessions() {
        let mut machine = live();
        machine.renewed(at(3.0), ttl(), at(3.1));
        assert_eq!(Some(machine.deadline_of_key(at(5.0))), machine.deadline());
        assert_eq!(
            machine.deadline_of_key(at(2.0)),
            machine.deadline().unwrap() - Duration::from_secs(1)
        );
    }

    #[test]
    fn the_pauses_grow_and_stay_below_a_second() {
        let (entropy, mut machine) = (Entropy::seeded(3), live());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            machine.missed(at(3.0), &entropy);
            pauses.push(machine.due().unwrap().since(at(3.0)));
        }
        assert!(pauses[0] <= Duration::from_millis(25), "{pauses:?}");
        assert!(pauses[11] >= Duration::from_millis(500), "{pauses:?}");
        assert!(
            pauses.iter().all(|pause| *pause <= Duration::from_secs(1)),
            "{pauses:?}"
        );
    }

    #[test]
    fn the_first_end_is_the_last_word() {
        let mut machine = live();
        machine.gone();
        machine.close();
        assert_eq!(machine.state(), SessionState::Lost);
        let mut machine = live();
        machine.close();
        assert!(machine.expire(at(100.0)));
        assert_eq!(machine.state(), SessionState::Closed);
    }

    #[test]
    fn an_ambiguous_grant_is_repeated_and_a_refused_one_is_not() {
        let entropy = Entropy::seeded(1);
        let mut machine = Machine::new(ttl());
        assert!(
            machine
                .refused(&Error::new(ErrorKind::Ambiguous, ""), &entropy)
                .is_some()
        );
        assert!(
            machine
                .refused(&Error::new(ErrorKind::Unauthorized, ""), &entropy)
                .is_none()
        );
        assert_eq!(machine.state(), SessionState::Failed);
    }
}
