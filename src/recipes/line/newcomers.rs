//! The tickets that have not been here for long: only those that stay are worth a word about whose
//! they are.

use std::collections::VecDeque;

use super::machine::SHORT_HOLD;
use crate::key::Position;
use crate::runtime::Instant;
use crate::session::Announcer;

/// In the order of time.
#[derive(Default)]
pub(super) struct Newcomers(VecDeque<(Instant, Position, Announcer)>);

impl Newcomers {
    pub(super) fn joined(&mut self, now: Instant, position: Position, announcer: Announcer) {
        self.0.push_back((now + SHORT_HOLD, position, announcer));
    }

    /// Announces those that have stayed; when to look again.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        is_here: impl Fn(&Position) -> bool,
    ) -> Option<Instant> {
        loop {
            let (settled, position, _) = self.0.front()?;
            let here = is_here(position);
            if here && *settled > now {
                return Some(*settled);
            }
            let (_, _, announcer) = self.0.pop_front()?;
            if here {
                announcer.announce();
            }
        }
    }
}
