//! The embedded store against a real etcd: seeded scripts are run step by step on both, through
//! the trait, and all that they tell is compared.
//!
//! Each pair of stores counts its indexes alike, so that there is nothing to translate: values,
//! indexes, the names of tickets and the order of events must be the same. A difference must
//! show twice, because etcd writes a little by itself, the second time on a new embedded store;
//! then the script is cut down to what shows it.
//!
//! `TENURE_SEEDS` sets how many scripts, `TENURE_FIRST_SEED` where they begin.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;
#[path = "differential/pair.rs"]
mod pair;
#[path = "differential/script.rs"]
mod script;
#[path = "differential/told.rs"]
mod told;

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use pair::{Difference, Ends, Pair};
use script::Script;

const SEEDS: u64 = 120;
/// Steps of a script.
const LENGTH: usize = 80;
/// Servers that work at the same time.
const PAIRS: usize = 3;
/// For how long a story is tried with something left out.
const CUTTING: Duration = Duration::from_secs(10);

/// What scripts must come to, by the kind of step.
const ENDS: &[(&str, &str)] = &[
    ("put", "done NotAFile NotADirectory RootReadOnly"),
    ("put if absent", "done AlreadyExists NotADirectory"),
    ("put if present", "done NotFound NotAFile NotADirectory"),
    ("put if it holds", CONDITIONAL_PUT),
    ("put if it is at", CONDITIONAL_PUT),
    ("put if both", CONDITIONAL_PUT),
    ("append a ticket", "done NotADirectory"),
    ("append by tag", "done NotADirectory AlreadyExists"),
    ("withdraw", "done"),
    ("delete", "done NotFound NotAFile RootReadOnly"),
    ("delete if absent", "ConditionFailed NotFound NotAFile"),
    ("delete if present", "done NotFound NotAFile"),
    ("delete if it holds", CONDITIONAL_DELETE),
    ("delete if it is at", CONDITIONAL_DELETE),
    ("delete if both", CONDITIONAL_DELETE),
    ("delete all", "done NotFound InvalidOptions RootReadOnly"),
    ("read", "done"),
    ("list", "done"),
];
const CONDITIONAL_PUT: &str = "done ConditionFailed NotFound NotAFile NotADirectory";
const CONDITIONAL_DELETE: &str = "done ConditionFailed NotFound NotAFile";

#[test]
fn the_embedded_store_and_etcd_tell_the_same_story() {
    let seeds = number("TENURE_SEEDS", SEEDS);
    let first = number("TENURE_FIRST_SEED", 1);
    let next = AtomicU64::new(first);
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(worker(&next, first + seeds))
    };
    let (mut steps, mut failures, mut ends) = (0, String::new(), Ends::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..PAIRS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            match worker.join().unwrap() {
                Ok((done, ended)) => {
                    steps += done;
                    for (end, times) in ended {
                        *ends.entry(end).or_default() += times;
                    }
                }
                Err(story) => failures.push_str(&story),
            }
        }
    });
    assert!(failures.is_empty(), "{failures}");
    println!("{seeds} scripts, {steps} steps, no difference: {ends:?}");
    if seeds >= SEEDS {
        for (step, expected) in ENDS {
            for end in expected.split(' ') {
                let end = format!("{step}: {end}");
                assert!(ends.contains_key(&end), "no script comes to {end}");
            }
        }
    }
}

#[tokio::test]
async fn both_remember_equally_much() {
    let mut pair = Pair::start();
    let compared = pair.compare_memories().await;
    compared.unwrap_or_else(|difference| panic!("{difference}"));
}

/// Takes seeds until there are no more; the story of the first that fails.
async fn worker(next: &AtomicU64, end: u64) -> Result<(usize, Ends), String> {
    let mut pair = Pair::start();
    let (mut steps, mut passing) = (0, 0);
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return Ok((steps, pair.ends));
        }
        let script = Script::new(seed, LENGTH);
        let Err(first) = pair.run(&script).await.map(|done| steps += done) else {
            continue;
        };
        pair.renew();
        if let Err(again) = pair.run(&script).await {
            next.store(end, Ordering::Relaxed);
            return Err(shortest(&mut pair, seed, script, again).await);
        }
        passing += 1;
        println!("seed {seed} differed once, and not again:\n{first}");
        if passing > 2 {
            return Err(format!(
                "seed {seed}, and two before it, differ at times:\n{first}"
            ));
        }
    }
}

/// The shortest story that is found by leaving out ever smaller parts.
async fn shortest(pair: &mut Pair, seed: u64, mut script: Script, mut why: Difference) -> String {
    let length = script.steps.len();
    if let Some(step) = why.step {
        script.steps.truncate(step + 1);
    }
    let until = Instant::now() + CUTTING;
    let mut part = script.steps.len() / 2;
    while part > 0 {
        let mut at = 0;
        let before = script.steps.len();
        while at < script.steps.len() && Instant::now() < until {
            let mut shorter = script.clone();
            shorter.steps.drain(at..(at + part).min(script.steps.len()));
            pair.renew();
            match pair.run(&shorter).await {
                Err(difference) => {
                    if let Some(step) = difference.step {
                        shorter.steps.truncate(step + 1);
                    }
                    (script, why) = (shorter, difference);
                }
                Ok(_) => at += part,
            }
        }
        // At the end once more as long as it helps: a step may be needed by one that went later.
        if part > 1 || script.steps.len() == before {
            part /= 2;
        }
    }
    for watch in (0..script.follow.len()).rev() {
        if Instant::now() >= until {
            break;
        }
        let mut shorter = script.clone();
        shorter.follow.remove(watch);
        pair.renew();
        if let Err(difference) = pair.run(&shorter).await {
            (script, why) = (shorter, difference);
        }
    }
    tell(seed, length, &script, &why)
}

fn tell(seed: u64, length: usize, script: &Script, why: &Difference) -> String {
    let mut story = format!(
        "\nseed {seed} differs; {} of its {length} steps show it:\n",
        script.steps.len()
    );
    for (number, step) in script.steps.iter().enumerate() {
        let _ = writeln!(story, "{number:3} {step:?}");
    }
    if why.step.is_none() {
        let _ = writeln!(story, "    under the watches {:?}", script.follow);
    }
    let at = why
        .step
        .map_or("at the end".into(), |step| format!("at {step}"));
    let _ = writeln!(story, "{at}: {why}");
    story
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}
