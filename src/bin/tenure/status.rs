//! `tenure leader` and `tenure status`: who has what others wait for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tenure::{Client, Contender, Leader, Result, Who};

use crate::args::{Format, LeaderArgs, StatusArgs};
use crate::exit;
use crate::out::{date, insert_value, millis, one_line, print, say, table, try_say};
use crate::signals::Signals;

/// Who leads; the exit code.
pub(crate) async fn leader(
    client: &Client,
    args: &LeaderArgs,
    format: Format,
    signals: &mut Signals,
) -> u8 {
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        outcome = tell_leader(client, args, format) => outcome,
    };
    exit::reported(outcome)
}

async fn tell_leader(client: &Client, args: &LeaderArgs, format: Format) -> Result<u8> {
    let election = if args.raw {
        client.raw_election(&args.name)
    } else {
        client.election(&args.name)
    };
    if !args.watch {
        let Some(leader) = election.leader().await? else {
            eprintln!("tenure: nobody leads {:?}", args.name);
            return Ok(exit::FALSE);
        };
        say(&leader_line(Some(&leader), format));
        return Ok(exit::DONE);
    }
    let mut leaders = election.observe();
    while let Some(leader) = leaders.next().await {
        if try_say(&leader_line(leader?.as_ref(), format)).is_err() {
            // Whoever read has gone.
            break;
        }
    }
    Ok(exit::DONE)
}

fn leader_line(leader: Option<&Leader>, format: Format) -> String {
    let Some(leader) = leader else {
        return match format {
            Format::Human => "no leader".to_owned(),
            Format::Json => json!({"value": null}).to_string(),
        };
    };
    match format {
        Format::Human => {
            let value = one_line(&String::from_utf8_lossy(leader.proposal()));
            let since = leader.since().map_or(String::new(), date);
            format!("{value}  {}  {since}", leader.token())
        }
        Format::Json => {
            let mut line = Map::new();
            insert_value(&mut line, leader.proposal());
            line.insert("token".into(), leader.token().into());
            line.insert("since_ms".into(), leader.since().map(millis).into());
            Value::Object(line).to_string()
        }
    }
}

/// Who holds and who waits; the exit code.
pub(crate) async fn status(
    client: &Client,
    args: &StatusArgs,
    format: Format,
    signals: &mut Signals,
) -> u8 {
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        outcome = tell_status(client, args, format) => outcome,
    };
    exit::reported(outcome)
}

async fn tell_status(client: &Client, args: &StatusArgs, format: Format) -> Result<u8> {
    let line = if args.election {
        client.election(&args.name).candidates().await?
    } else if args.semaphore {
        client.semaphore(&args.name).contenders().await?
    } else if args.raw {
        client.raw_lock(&args.name).contenders().await?
    } else {
        client.lock(&args.name).contenders().await?
    };
    let mut known: BTreeMap<u64, Option<Who>> = BTreeMap::new();
    for session in line.iter().filter_map(Contender::session) {
        if let Entry::Vacant(place) = known.entry(session) {
            place.insert(client.who(session).await?);
        }
    }
    let who = |contender: &Contender| known.get(&contender.session()?)?.as_ref();
    match format {
        Format::Json => line.iter().for_each(|it| print(&json_line(it, who(it)))),
        Format::Human if line.is_empty() => {
            eprintln!("tenure: nobody holds or waits for {:?}", args.name);
        }
        Format::Human => {
            let rows: Vec<_> = line.iter().map(|it| row(it, who(it))).collect();
            table(["STATE", "TOKEN", "SINCE", "WEIGHT", "WHO", "VALUE"], &rows);
        }
    }
    Ok(if line.is_empty() {
        exit::FALSE
    } else {
        exit::DONE
    })
}

fn state(contender: &Contender) -> &'static str {
    if contender.holds() { "holds" } else { "waits" }
}

fn row(contender: &Contender, who: Option<&Who>) -> [String; 6] {
    [
        state(contender).to_owned(),
        contender.token().to_string(),
        contender.since().map_or_else(|| "-".to_owned(), date),
        contender.weight().to_string(),
        who.map_or_else(|| "unknown".to_owned(), |who| one_line(&who.to_string())),
        one_line(&String::from_utf8_lossy(said(contender))),
    ]
}

fn json_line(contender: &Contender, who: Option<&Who>) -> Value {
    let mut line = Map::new();
    line.insert("state".into(), state(contender).into());
    line.insert("token".into(), contender.token().into());
    line.insert("key".into(), contender.key().as_str().into());
    let since: Option<Duration> = contender.since();
    line.insert("since_ms".into(), since.map(millis).into());
    line.insert("weight".into(), contender.weight().into());
    let session = contender.session().map(|it| format!("{it:016x}"));
    line.insert("session".into(), session.into());
    line.insert("host".into(), who.map(Who::host).into());
    line.insert("pid".into(), who.map(Who::pid).into());
    line.insert("app".into(), who.map(Who::app).into());
    insert_value(&mut line, said(contender));
    Value::Object(line)
}

/// What a ticket says, unless that is its weight, which has a column of its own.
fn said(contender: &Contender) -> &[u8] {
    let is_weight = contender.key().as_str().starts_with("/_semaphores/");
    if is_weight { b"" } else { contender.body() }
}
