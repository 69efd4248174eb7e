//! Random scripts: what is done, to which of a few keys, on what condition.
//!
//! A step names what it needs ("the index that this key was last written at") instead of saying
//! it, so that a script in which some steps are left out still means something.

use fastrand::Rng;

/// Where a step acts, below the directory of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// The directory of the run itself.
    Top,
    /// The root of the store.
    Root,
    /// One of [`KEYS`].
    Key(&'static str),
    /// Where an append of this script landed, counted from the first; the first of [`KEYS`] while
    /// there is none.
    Ticket(usize),
    /// Below where an append of this script landed: what makes a directory in its place.
    BelowTicket(usize),
    /// Where something was lately written, counted from the last; the first of [`KEYS`] before.
    Written(usize),
}

/// Files, directories and hidden keys in each other's way, neighbours in the order of bytes, and
/// names that need escaping or look like tickets.
pub(crate) const KEYS: &[&str] = &[
    "a",
    "a/b",
    "a/b/c",
    "a/b/_h",
    "a/_h/y",
    "a-b",
    "ab",
    "_h",
    "_h/x",
    "d",
    "d/e",
    "d/e/f",
    "d/7",
    "d/00000000000000000007",
    "odd é ?#%&+;=:@",
    "a/odd%2F\"<\u{2028}/x",
];

const DIRS: &[&str] = &["q", "q", "d", "a", "_q", "a/b", "d/e"];

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    Empty,
    Short(char),
    Odd,
    /// Too long for a URL.
    Long,
}

impl Text {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Short(it) => it.into(),
            Self::Odd => "ü <&> \u{2028} a=b&c=%41+d;\n\"\\\0".into(),
            Self::Long => "long ".repeat(900),
        }
    }
}

/// A value in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// What was last written there.
    Latest,
    This(Text),
}

/// An index in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// That of the last write there.
    Latest,
    /// That of a recent write anywhere.
    Earlier(usize),
    /// One that is yet to come.
    Future,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Any,
    Absent,
    Present,
    Value(Held),
    Index(Seen),
    Both(Held, Seen),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fresh {
    Any,
    AtLeastNow,
    Linearizable,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Put {
        at: At,
        text: Text,
        when: When,
        hours: Option<u64>,
    },
    /// An append with a tag of its own; one named by its tag may come again.
    Append {
        dir: At,
        ticket: bool,
        tag: u64,
        body: Text,
        hours: Option<u64>,
    },
    /// Of an append of this script, or of one that never was; with or without the node as a hint.
    Withdraw {
        tag: u64,
        hint: bool,
    },
    Delete {
        at: At,
        when: When,
        recursive: bool,
    },
    Node {
        at: At,
        fresh: Fresh,
        keys_only: bool,
    },
    Children {
        /// All below, not only the children.
        tree: bool,
        at: At,
        fresh: Fresh,
        keys_only: bool,
        /// Only those after this name.
        after: Option<&'static str>,
    },
}

/// What a watch follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Follow {
    pub(crate) at: At,
    pub(crate) tree: bool,
    pub(crate) deletes_only: bool,
}

/// What is run on both stores.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) steps: Vec<Step>,
    pub(crate) follow: Vec<Follow>,
}

impl Script {
    /// The script of a seed: `length` steps under three watches.
    pub(crate) fn new(seed: u64, length: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut tags = 0;
        let steps = (0..length).map(|_| step(&mut rng, &mut tags)).collect();
        let top = Follow {
            at: At::Top,
            tree: true,
            deletes_only: false,
        };
        let others = [false, true].map(|tree| Follow {
            at: At::Key(pick(&mut rng, KEYS)),
            tree,
            deletes_only: rng.u8(..4) == 0,
        });
        Self {
            steps,
            follow: [&[top][..], &others].concat(),
        }
    }
}

fn step(rng: &mut Rng, tags: &mut u64) -> Step {
    match rng.u8(..100) {
        0..45 => Step::Put {
            at: at(rng),
            text: text(rng),
            when: when(rng),
            hours: hours(rng),
        },
        45..53 => {
            let ticket = rng.bool();
            // Two tickets of one tag are against the rules; two nodes named by it cannot be.
            let again = !ticket && *tags > 0 && rng.u8(..4) == 0;
            *tags += u64::from(!again);
            Step::Append {
                dir: At::Key(pick(rng, DIRS)),
                ticket,
                tag: if again { rng.u64(1..=*tags) } else { *tags },
                body: text(rng),
                hours: hours(rng),
            }
        }
        53..57 => Step::Withdraw {
            tag: rng.u64(1..=*tags + 1),
            hint: rng.bool(),
        },
        57..76 => {
            let recursive = rng.u8(..3) == 0;
            let conditional = !recursive || rng.u8(..8) == 0;
            Step::Delete {
                at: at(rng),
                when: if conditional { when(rng) } else { When::Any },
                recursive,
            }
        }
        76..88 => Step::Node {
            at: at_below(rng),
            fresh: fresh(rng),
            keys_only: rng.u8(..5) == 0,
        },
        _ => Step::Children {
            tree: rng.bool(),
            at: at_below(rng),
            fresh: fresh(rng),
            keys_only: rng.u8(..5) == 0,
            after: (rng.u8(..4) == 0).then(|| pick(rng, &["_h", "a", "b", "d", "e", "0", "z"])),
        },
    }
}

fn at(rng: &mut Rng) -> At {
    match rng.u8(..60) {
        0 => At::Root,
        _ => at_below(rng),
    }
}

fn at_below(rng: &mut Rng) -> At {
    match rng.u8(..30) {
        0 => At::Top,
        1..3 => At::Ticket(rng.usize(..8)),
        3 => At::BelowTicket(rng.usize(..8)),
        4..10 => At::Written(rng.usize(..4)),
        _ => At::Key(pick(rng, KEYS)),
    }
}

fn when(rng: &mut Rng) -> When {
    let held = match rng.u8(..3) {
        0 => Held::This(text(rng)),
        _ => Held::Latest,
    };
    let seen = match rng.u8(..5) {
        0 => Seen::Earlier(rng.usize(..6)),
        1 => Seen::Future,
        _ => Seen::Latest,
    };
    match rng.u8(..20) {
        0..7 => When::Any,
        7..10 => When::Absent,
        10..13 => When::Present,
        13..15 => When::Value(held),
        15..18 => When::Index(seen),
        _ => When::Both(held, seen),
    }
}

fn text(rng: &mut Rng) -> Text {
    match rng.u8(..20) {
        0..4 => Text::Empty,
        4..17 => Text::Short(rng.char('x'..='z')),
        17..19 => Text::Odd,
        _ => Text::Long,
    }
}

fn hours(rng: &mut Rng) -> Option<u64> {
    match rng.u8(..3) {
        0 => Some(rng.u64(1..4)),
        _ => None,
    }
}

fn fresh(rng: &mut Rng) -> Fresh {
    match rng.u8(..3) {
        0 => Fresh::Any,
        1 => Fresh::AtLeastNow,
        _ => Fresh::Linearizable,
    }
}

fn pick(rng: &mut Rng, from: &[&'static str]) -> &'static str {
    rng.choice(from).copied().unwrap_or_default()
}
