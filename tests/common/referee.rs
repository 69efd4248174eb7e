//! Who looks on while programs hold what only one can hold: over TCP, a line for each question.
//!
//! | a holder says | and is answered `ok` if |
//! |---|---|
//! | `in WHO KEY [TOKEN]` | nobody else is in; its key is there, and of all that is in the line it was created first; it was created after everybody who was in before; the token is its create revision |
//! | `out` | it was in |
//!
//! A holder says `out` and waits for the answer before it gives back, so two that are in at once
//! held at once. The line is read with `in` not yet answered, linearizably, and through etcd's JSON
//! gateway: nothing of what is tested has a part in it. A connection that ends while in is a holder
//! that died: the next one is in only when the dead one's key, which was created before, is gone.
#![allow(unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::common::etcd::Etcd;

/// A referee of one line. It is there as long as the process.
#[derive(Clone)]
pub struct Referee {
    pub port: u16,
    etcd: Arc<Etcd>,
    /// The line, with the `/` that ends it.
    line: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    inside: Option<(String, String)>,
    last: u64,
    turns: BTreeMap<String, u64>,
    died: u64,
    wrong: Vec<String>,
}

impl Referee {
    pub fn new(etcd: &Arc<Etcd>, line: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let referee = Self {
            port: listener.local_addr().unwrap().port(),
            etcd: etcd.clone(),
            line: format!("{line}/"),
            state: Arc::default(),
        };
        let judge = referee.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let judge = judge.clone();
                thread::spawn(move || judge.listen(&stream));
            }
        });
        referee
    }

    /// How often each has been in.
    pub fn turns(&self) -> BTreeMap<String, u64> {
        self.state.lock().unwrap().turns.clone()
    }

    /// How many died while they were in.
    pub fn died(&self) -> u64 {
        self.state.lock().unwrap().died
    }

    /// What was not as it must be.
    pub fn wrong(&self) -> Vec<String> {
        self.state.lock().unwrap().wrong.clone()
    }

    /// Who is in.
    pub fn inside(&self) -> Option<String> {
        let state = self.state.lock().unwrap();
        state.inside.as_ref().map(|(who, _)| who.clone())
    }

    /// The keys in the line with their create revisions, in the order of those.
    pub fn line(&self) -> Vec<(String, u64)> {
        keys(&self.etcd, &self.line)
    }

    /// Is in for a while, as a holder; false if the referee was not content.
    pub fn held(&self, who: &str, key: &str, token: Option<u64>, hold: Duration) -> bool {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut answers = BufReader::new(&stream);
        let mut ask = |question: String| {
            writeln!(&stream, "{question}").unwrap();
            let mut answer = String::new();
            answers.read_line(&mut answer).unwrap();
            answer.trim() == "ok"
        };
        let token = token.map_or(String::new(), |it| it.to_string());
        if !ask(format!("in {who} {key} {token}")) {
            return false;
        }
        thread::sleep(hold);
        ask("out".to_owned())
    }

    /// A script for bash that does the same, with what it finds in these variables.
    pub fn script(&self, who: &str, key: &str, token: &str, hold: Duration) -> String {
        let (port, hold) = (self.port, hold.as_secs_f64());
        format!(
            "exec 3<>/dev/tcp/127.0.0.1/{port} && echo \"in {who} ${key} ${token}\" >&3 &&
             read -r answer <&3 && [ \"$answer\" = ok ] && sleep {hold} &&
             echo out >&3 && read -r answer <&3 && [ \"$answer\" = ok ]"
        )
    }

    fn listen(&self, stream: &TcpStream) {
        let mut mine: Option<(String, String)> = None;
        for question in BufReader::new(stream).lines().map_while(Result::ok) {
            let answer = self.judge(&question, &mut mine);
            if writeln!(&*stream, "{answer}").is_err() {
                break;
            }
        }
        let mut state = self.state.lock().unwrap();
        if mine.is_some() && state.inside == mine {
            state.inside = None;
            state.died += 1;
        }
    }

    fn judge(&self, question: &str, mine: &mut Option<(String, String)>) -> String {
        let mut state = self.state.lock().unwrap();
        let words: Vec<&str> = question.split_whitespace().collect();
        let wrong = match *words.as_slice() {
            ["in", who, key] => self.enter(&mut state, who, key, None),
            ["in", who, key, token] => self.enter(&mut state, who, key, Some(token)),
            ["out"] if mine.is_some() && state.inside == *mine => {
                (state.inside, *mine) = (None, None);
                return "ok".to_owned();
            }
            _ => vec![format!("{question:?} by {mine:?}")],
        };
        if let (["in", who, key, ..], true) = (words.as_slice(), wrong.is_empty()) {
            *mine = Some(((*who).to_owned(), (*key).to_owned()));
            state.inside.clone_from(mine);
            return "ok".to_owned();
        }
        state.wrong.extend(wrong.iter().cloned());
        wrong.join("; ")
    }

    fn enter(&self, state: &mut State, who: &str, key: &str, token: Option<&str>) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Some(other) = &state.inside {
            wrong.push(format!("{who} holds {key} while {other:?} does"));
        }
        let line = self.line();
        let Some(place) = line.iter().position(|(it, _)| it == key) else {
            wrong.push(format!("{who} holds {key}, which is not in {line:?}"));
            return wrong;
        };
        let created = line[place].1;
        if place != 0 {
            wrong.push(format!("{who} holds {key} out of turn: {line:?}"));
        }
        if created <= state.last {
            wrong.push(format!("{who}: {created} comes after {}", state.last));
        }
        if token.is_some_and(|it| it != created.to_string()) {
            wrong.push(format!("{who} says its token is {token:?}: {created}"));
        }
        state.last = created;
        *state.turns.entry(who.to_owned()).or_default() += 1;
        wrong
    }
}

/// All keys that begin so, with their create revisions, in the order of those.
pub fn keys(etcd: &Etcd, prefix: &str) -> Vec<(String, u64)> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    let from = if prefix.is_empty() { "\0" } else { prefix };
    let request = serde_json::json!({
        "key": encode(from.as_bytes()), "range_end": encode(&end), "keys_only": true,
        "sort_target": "CREATE", "sort_order": "ASCEND",
    });
    let answer = ask(etcd, "/v3/kv/range", &request);
    let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
    let pair = |kv: &serde_json::Value| {
        let key = decode(kv["key"].as_str().unwrap());
        (
            key,
            kv["create_revision"].as_str().unwrap().parse().unwrap(),
        )
    };
    kvs.iter().map(pair).collect()
}

/// A call through the JSON gateway.
pub fn ask(etcd: &Etcd, path: &str, request: &serde_json::Value) -> serde_json::Value {
    let answer = etcd.json("POST", path, &request.to_string());
    let (status, body) = answer.unwrap();
    assert_eq!(status, 200, "{path} {request}: {body}");
    serde_json::from_str(&body).unwrap()
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base 64.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let filled = digit <= three.len();
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if filled { DIGITS[index] as char } else { '=' });
        }
    }
    text
}

/// Base 64 of UTF-8.
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut bits, mut filled) = (0_u32, 0);
    for digit in text.bytes().filter(|it| *it != b'=') {
        let value = DIGITS.iter().position(|it| *it == digit).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        filled += 6;
        if filled >= 8 {
            filled -= 8;
            bytes.push((bits >> filled & 255) as u8);
        }
    }
    String::from_utf8(bytes).unwrap()
}
