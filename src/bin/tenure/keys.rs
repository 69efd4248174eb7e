//! The keys of a store: `get set create update rm ls append watch`.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use tenure::store::{Change, Condition, Event, Expiry, Node, Put, Update, Watch};
use tenure::{Error, ErrorKind, Index, Key, Result, Store, StoreExt, StoreUrl, Ttl};

use crate::args::{Conditions, Format, KeysCommand, Lifetime, WatchArgs};
use crate::cluster::Cluster;
use crate::exit;
use crate::out::{insert_value, one_line, print, say, try_say};
use crate::signals::Signals;

/// How often a write that keeps a time-to-live is tried anew when somebody came between.
const TRIES: usize = 16;

/// Carries out a verb; the exit code.
pub(crate) async fn run(
    url: &StoreUrl,
    store: &dyn Store,
    command: &KeysCommand,
    format: Format,
    signals: &mut Signals,
) -> u8 {
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => return (128 + signal) as u8,
        outcome = verb(url, store, command, format) => outcome,
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tenure: {error}");
            exit::code(&error)
        }
    }
}

async fn verb(
    url: &StoreUrl,
    store: &dyn Store,
    command: &KeysCommand,
    format: Format,
) -> Result<u8> {
    match command {
        KeysCommand::Get { key } => {
            let key = parse(key)?;
            let Some(node) = store.node(&key).await? else {
                eprintln!("tenure: there is nothing at {key}");
                return Ok(exit::FALSE);
            };
            if node.is_dir && format == Format::Human {
                eprintln!("tenure: {key} is a directory: list it with ls");
                return Ok(exit::FALSE);
            }
            match format {
                Format::Human => print_value(&node.value),
                Format::Json => print(&node_json(&node)),
            }
        }
        KeysCommand::Set {
            key,
            value,
            lifetime,
        } => {
            let (key, value) = (parse(key)?, read_value(value)?);
            let node = set(store, &key, &value, lifetime, Condition::Any).await?;
            written(&node, format, false);
        }
        KeysCommand::Create { key, value, ttl } => {
            let (key, value) = (parse(key)?, read_value(value)?);
            let written_ = store.create(&key, value.into(), expiry(*ttl)?).await?;
            written(&written_.node, format, false);
        }
        KeysCommand::Update {
            key,
            value,
            conditions,
            lifetime,
        } => {
            let (key, value) = (parse(key)?, read_value(value)?);
            let when = condition(conditions)?.unwrap_or(Condition::Present);
            let node = set(store, &key, &value, lifetime, when).await?;
            written(&node, format, false);
        }
        KeysCommand::Rm {
            key,
            recursive,
            conditions,
        } => {
            let key = parse(key)?;
            let deleted = match condition(conditions)? {
                None if *recursive => store.remove_tree(&key).await?,
                None => store.remove(&key).await?,
                Some(when) => store.remove_if(&key, when).await?,
            };
            let Some(deleted) = deleted else {
                eprintln!("tenure: there is nothing at {key}");
                return Ok(exit::FALSE);
            };
            if format == Format::Json {
                print(&json!({"key": key.as_str(), "index": deleted.index.get()}));
            }
        }
        KeysCommand::Ls { key, recursive } => {
            let key = parse(key)?;
            let nodes = if *recursive {
                store.tree(&key).await?
            } else {
                store.children(&key).await?
            };
            if nodes.is_empty() && !key.is_root() && !store.contains(&key).await? {
                eprintln!("tenure: there is nothing at {key}");
                return Ok(exit::FALSE);
            }
            for node in nodes.iter().filter(|node| node.key != key) {
                let end = if node.is_dir { "/" } else { "" };
                match format {
                    Format::Human => say(&format!("{}{end}", node.key)),
                    Format::Json => print(&node_json(node)),
                }
            }
        }
        KeysCommand::Append { dir, value, ttl } => {
            let (dir, value) = (parse(dir)?, read_value(value)?);
            let appended = store
                .append_value(&dir, value.into(), expiry(*ttl)?)
                .await?;
            written(&appended.node, format, true);
        }
        KeysCommand::Watch(args) => watch(store, args, format).await?,
        KeysCommand::Members => Cluster::of(url)?.members(format).await?,
        KeysCommand::Stats => Cluster::of(url)?.stats().await?,
        KeysCommand::Health => return Cluster::of(url)?.health(format).await,
    }
    Ok(exit::DONE)
}

/// Writes a value and keeps or changes the time-to-live, as asked for.
async fn set(
    store: &dyn Store,
    key: &Key,
    value: &[u8],
    lifetime: &Lifetime,
    when: Condition,
) -> Result<Node> {
    let put = |when: Condition, expiry: Expiry| {
        store.put(Put::new(key.clone(), value.to_vec(), expiry).when(when))
    };
    if let Some(expiry) = said(lifetime)? {
        return Ok(put(when, expiry).await?.node);
    }
    for _ in 0..TRIES {
        let there = store.node(key).await?;
        let outcome = match (&when, &there) {
            (Condition::Any, None) => put(Condition::Absent, Expiry::Never).await,
            // The store says why not.
            (when, None) => put(when.clone(), Expiry::Never).await,
            (when, Some(node)) => {
                let expiry = node.expiry()?;
                match when {
                    Condition::Value(value) => {
                        let (value, index) = (value.clone(), node.modified);
                        put(Condition::Both { value, index }, expiry).await
                    }
                    // Which finds out what became of it when its answer is lost.
                    Condition::Any | Condition::Present => {
                        let mut node = node.clone();
                        node.value = value.to_vec().into();
                        store.update(&node, expiry).await
                    }
                    other => put(other.clone(), expiry).await,
                }
            }
        };
        match outcome {
            Err(error) if overtaken(&error, &when) && changed(store, key, &there).await? => {}
            outcome => return Ok(outcome?.node),
        }
    }
    let text = "the key kept changing while it was being written";
    Err(Error::new(ErrorKind::Unavailable, text)
        .during("set")
        .at(key))
}

/// Whether the condition of ours failed, or perhaps only the one that was added.
fn overtaken(error: &Error, when: &Condition) -> bool {
    match error.kind() {
        ErrorKind::ConditionFailed => !matches!(when, Condition::Index(_) | Condition::Both { .. }),
        ErrorKind::AlreadyExists | ErrorKind::NotFound => *when == Condition::Any,
        _ => false,
    }
}

async fn changed(store: &dyn Store, key: &Key, before: &Option<Node>) -> Result<bool> {
    let modified = |node: &Option<Node>| node.as_ref().map(|it| it.modified);
    Ok(modified(&store.node(key).await?) != modified(before))
}

async fn watch(store: &dyn Store, args: &WatchArgs, format: Format) -> Result<()> {
    let key = parse(&args.key)?;
    let watch = if args.recursive {
        Watch::tree(key)
    } else {
        Watch::node(key)
    };
    let watch = match args.from {
        Some(index) => watch.from(index_of(index)?),
        None => watch,
    };
    let mut updates = store.watch(watch);
    let mut left = args.count;
    while left != Some(0)
        && let Some(update) = updates.next().await
    {
        if let Update::Event(event) = update? {
            if !tell(&event, format) {
                // Whoever read has gone.
                break;
            }
            left = left.map(|left| left - 1);
        }
    }
    Ok(())
}

/// Whether somebody reads it. For people it is one line, whatever is in the value.
fn tell(event: &Event, format: Format) -> bool {
    let (word, node) = match &event.change {
        Change::Put(node) => ("put", Some(node)),
        Change::Delete { expired: true } => ("expire", None),
        _ => ("delete", None),
    };
    match format {
        Format::Human => {
            let value = node.map(|node| String::from_utf8_lossy(&node.value).into_owned());
            let value = value.map_or(String::new(), |value| format!(" {}", one_line(&value)));
            try_say(&format!("{word} {}{value}", event.key)).is_ok()
        }
        Format::Json => {
            let mut line = Map::new();
            line.insert("change".into(), word.into());
            line.insert("key".into(), event.key.as_str().into());
            line.insert("index".into(), event.index.get().into());
            if let Some(node) = node {
                insert_value(&mut line, &node.value);
            }
            try_say(&Value::Object(line).to_string()).is_ok()
        }
    }
}

fn parse(text: &str) -> Result<Key> {
    if text.starts_with('/') {
        Key::new(text)
    } else {
        Key::new(format!("/{text}"))
    }
}

/// The value itself, or what stands on standard input for `-`.
fn read_value(text: &str) -> Result<Vec<u8>> {
    if text != "-" {
        return Ok(text.as_bytes().to_vec());
    }
    let mut value = Vec::new();
    std::io::stdin().read_to_end(&mut value).map_err(|cause| {
        let text = "standard input cannot be read";
        Error::new(ErrorKind::InvalidValue, text).caused_by(cause)
    })?;
    Ok(value)
}

fn expiry(ttl: Option<Duration>) -> Result<Expiry> {
    Ok(match ttl {
        Some(ttl) => Expiry::After(Ttl::new(ttl)?),
        None => Expiry::Never,
    })
}

fn said(lifetime: &Lifetime) -> Result<Option<Expiry>> {
    if lifetime.permanent {
        return Ok(Some(Expiry::Never));
    }
    match lifetime.ttl {
        Some(ttl) => expiry(Some(ttl)).map(Some),
        None => Ok(None),
    }
}

fn condition(conditions: &Conditions) -> Result<Option<Condition>> {
    let index = conditions.prev_index.map(index_of).transpose()?;
    let value = conditions.prev_value.clone().map(Into::into);
    Ok(match (value, index) {
        (Some(value), Some(index)) => Some(Condition::Both { value, index }),
        (Some(value), None) => Some(Condition::Value(value)),
        (None, Some(index)) => Some(Condition::Index(index)),
        (None, None) => None,
    })
}

fn index_of(number: u64) -> Result<Index> {
    let text = "an index is at least 1";
    Index::new(number).ok_or_else(|| Error::new(ErrorKind::InvalidOptions, text))
}

fn written(node: &Node, format: Format, tell_key: bool) {
    match format {
        Format::Human if tell_key => say(node.key.as_str()),
        Format::Human => {}
        Format::Json => print(&node_json(node)),
    }
}

fn node_json(node: &Node) -> Value {
    let mut line = Map::new();
    line.insert("key".into(), node.key.as_str().into());
    if node.is_dir {
        line.insert("dir".into(), true.into());
    } else {
        insert_value(&mut line, &node.value);
    }
    if let Some(ttl) = node.ttl {
        line.insert("ttl_s".into(), ttl.as_secs_f64().into());
    }
    if let Some(lease) = node.lease {
        // As etcdctl writes them.
        line.insert("lease".into(), format!("{:x}", lease.get()).into());
    }
    line.insert("created".into(), node.created.get().into());
    line.insert("modified".into(), node.modified.get().into());
    Value::Object(line)
}

fn print_value(value: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(value).and_then(|()| out.write_all(b"\n"));
}
