//! `tenure watch --cache`: what is below a key, kept as a config cache keeps it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tenure::recipes::cache::{Cache, CacheState, Change, Diff};
use tenure::{Client, Key, Result};

use crate::args::{Format, WatchArgs};
use crate::exit;
use crate::out::{insert_value, one_line, try_say};
use crate::signals::Signals;

/// How often it is looked whether the cache is stale.
const GLANCE: Duration = Duration::from_millis(100);

/// Prints the snapshot, then each change; the exit code.
pub(crate) async fn run(
    client: &Client,
    args: &WatchArgs,
    format: Format,
    signals: &mut Signals,
) -> u8 {
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        outcome = follow(client, args, format) => outcome,
    };
    exit::reported(outcome)
}

async fn follow(client: &Client, args: &WatchArgs, format: Format) -> Result<u8> {
    let key = if args.key.starts_with('/') {
        args.key.clone()
    } else {
        format!("/{}", args.key)
    };
    let cache = client.cache(key).start()?;
    let mut changes = cache.changes();
    let mut teller = Teller {
        format,
        left: args.count,
        state: CacheState::Loading,
    };
    let mut glance = tokio::time::interval(GLANCE);
    while teller.left != Some(0) {
        let told = tokio::select! {
            biased;
            change = changes.next() => match change {
                Some(change) => teller.change(&cache, &change),
                None => break,
            },
            _ = glance.tick() => teller.look(&cache),
        };
        if told.is_err() {
            // Whoever read has gone.
            break;
        }
    }
    Ok(exit::DONE)
}

struct Teller {
    format: Format,
    /// How many changes are still to be told.
    left: Option<u64>,
    state: CacheState,
}

impl Teller {
    fn change(&mut self, cache: &Cache<Bytes>, change: &Change<Bytes>) -> std::io::Result<()> {
        match change {
            Change::Update(diff) => self.diff(diff),
            Change::Resync(diff) if diff.from.is_none() => {
                for changed in &diff.changed {
                    self.key("has", &changed.key, changed.new.as_deref(), diff.to.get())?;
                }
                self.mark("synced", json!({"index": diff.to.get()}), "")?;
                self.state = cache.state();
                Ok(())
            }
            Change::Resync(diff) => {
                self.diff(diff)?;
                self.mark("resynced", json!({"index": diff.to.get()}), "")
            }
            Change::Trouble(error) => {
                let text = error.to_string();
                self.mark("trouble", json!({"error": text}), &text)
            }
            _ => Ok(()),
        }
    }

    fn diff(&mut self, diff: &Diff<Bytes>) -> std::io::Result<()> {
        for changed in &diff.changed {
            let word = if changed.new.is_some() {
                "put"
            } else {
                "delete"
            };
            self.key(word, &changed.key, changed.new.as_deref(), diff.to.get())?;
            self.left = self.left.map(|left| left.saturating_sub(1));
            if self.left == Some(0) {
                break;
            }
        }
        Ok(())
    }

    /// Says so when it begins or ceases to be stale.
    fn look(&mut self, cache: &Cache<Bytes>) -> std::io::Result<()> {
        let state = cache.state();
        if state == self.state {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.state, state);
        match state {
            CacheState::Stale => {
                let why = cache.last_error().map(|error| error.to_string());
                let text = why.clone().unwrap_or_default();
                self.mark("stale", json!({"error": why}), &text)
            }
            CacheState::Live if before == CacheState::Stale => self.mark("live", json!({}), ""),
            _ => Ok(()),
        }
    }

    fn key(&self, word: &str, key: &Key, value: Option<&Bytes>, index: u64) -> std::io::Result<()> {
        match self.format {
            Format::Human => {
                let value = value.map(|value| one_line(&String::from_utf8_lossy(value)));
                let value = value.map_or(String::new(), |value| format!(" {value}"));
                try_say(&format!("{word} {key}{value}"))
            }
            Format::Json => {
                let mut line = Map::new();
                line.insert("change".into(), word.into());
                line.insert("key".into(), key.as_str().into());
                line.insert("index".into(), index.into());
                if let Some(value) = value {
                    insert_value(&mut line, value);
                }
                try_say(&Value::Object(line).to_string())
            }
        }
    }

    fn mark(&self, word: &str, more: Value, text: &str) -> std::io::Result<()> {
        match (self.format, more) {
            (Format::Json, Value::Object(mut line)) => {
                line.insert("change".into(), word.into());
                try_say(&Value::Object(line).to_string())
            }
            _ if text.is_empty() => try_say(&format!("({word})")),
            _ => try_say(&format!("({word}: {})", one_line(text))),
        }
    }
}
