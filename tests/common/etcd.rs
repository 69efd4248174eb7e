//! A real etcd for tests: one member, or three, on free loopback ports, gone when dropped.
//!
//! `TENURE_TEST_ETCD` names the binary; by default it is `etcd` from the path. From 3.6 on there is
//! no v2 API: such a server starts without, for the tests of v3, and whoever talks v2 to it is told
//! so. A file with tests of both keeps those of v2 where their path has `etcd2` in it, so that
//! `scripts/test` can leave them out, which it says.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// How long a member may take to become healthy. Only a broken one takes it.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A member, running or stopped.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    options: Options,
    name: String,
    /// All members and their peer addresses, as etcd wants to be told.
    members: String,
    client: u16,
    tls: u16,
    peer: u16,
    /// Where its peers reach it: its own port, or a gate before it.
    peer_gate: u16,
    data: PathBuf,
}

/// How a member is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether the v2 API is on, if this etcd has one. Default: yes.
    pub v2: bool,
    /// Election after 100 ms and heartbeats every 10 ms instead of etcd's own 1 s and 100 ms: ten
    /// times faster to start. Default: yes.
    pub quick: bool,
    /// Its data on a real disk, as in production. Default: no.
    pub on_disk: bool,
    /// A certificate and its key: then it also speaks TLS, at [`Etcd::tls_host`]. Default: none.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// More arguments.
    pub args: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            v2: true,
            quick: true,
            on_disk: false,
            tls: None,
            args: Vec::new(),
        }
    }
}

impl Etcd {
    /// Starts a member, with the v2 API if it has one, and waits until it is healthy.
    pub fn start() -> Self {
        Self::start_with(&Options::default())
    }

    /// Starts a member and waits until it is healthy.
    ///
    /// # Panics
    /// Without an etcd binary, or when it does not become healthy.
    pub fn start_with(options: &Options) -> Self {
        for _ in 0..10 {
            let mut etcd = Self::prepare(options, "one");
            etcd.members = etcd.member();
            etcd.spawn();
            // The ports were free a moment ago. If somebody was quicker, etcd ends at once.
            if etcd.wait_until_healthy() {
                return etcd;
            }
        }
        panic!("etcd does not start: ten pairs of ports were taken");
    }

    /// Starts three members of one cluster and waits until all are healthy.
    pub fn start_three() -> [Self; 3] {
        Self::start_three_behind(|_, peer| peer)
    }

    /// The same, each reached by its peers at the port that `gate` makes of its number and its
    /// own port.
    pub fn start_three_behind(gate: impl Fn(usize, u16) -> u16) -> [Self; 3] {
        for _ in 0..10 {
            let options = Options::default();
            let mut all = ["one", "two", "three"].map(|name| Self::prepare(&options, name));
            for (number, etcd) in all.iter_mut().enumerate() {
                etcd.peer_gate = gate(number, etcd.peer);
            }
            let members = all.each_ref().map(Self::member).join(",");
            for etcd in &mut all {
                etcd.members.clone_from(&members);
                etcd.spawn();
            }
            if all.iter_mut().all(Self::wait_until_healthy) {
                return all;
            }
        }
        panic!("etcd does not start: ten sets of ports were taken");
    }

    fn prepare(options: &Options, name: &str) -> Self {
        static PREPARED: AtomicU32 = AtomicU32::new(0);
        let number = PREPARED.fetch_add(1, Ordering::Relaxed);
        let dir = format!("tenure-etcd-{}-{number}", std::process::id());
        let [client, tls, peer] = free_ports();
        Self {
            child: None,
            options: options.clone(),
            name: name.to_owned(),
            members: String::new(),
            client,
            tls,
            peer,
            peer_gate: peer,
            data: if options.on_disk {
                std::env::temp_dir()
            } else {
                data_root()
            }
            .join(dir),
        }
    }

    fn member(&self) -> String {
        format!("{}=http://127.0.0.1:{}", self.name, self.peer_gate)
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// `127.0.0.1:port` of the port that speaks TLS.
    pub fn tls_host(&self) -> String {
        format!("127.0.0.1:{}", self.tls)
    }

    /// The port for clients.
    pub fn client_port(&self) -> u16 {
        self.client
    }

    /// Kills it. The data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it if it runs, starts it on the same ports and data, and waits until it is healthy.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn();
        let healthy = self.wait_until_healthy();
        assert!(healthy, "etcd does not start again on {}", self.url());
    }

    /// Kills it, throws its data away and starts it on the same ports: another cluster, with
    /// another id and small indexes.
    pub fn rebuild(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.data);
        // A cluster's id is made of its name and its members' peer addresses.
        self.peer = free_ports::<1>()[0];
        self.peer_gate = self.peer;
        self.members = self.member();
        self.spawn();
        let healthy = self.wait_until_healthy();
        assert!(healthy, "etcd does not start anew on {}", self.url());
    }

    /// Kills it, copies its data and starts it again.
    pub fn back_up(&mut self) {
        self.stop();
        let copied = Command::new("cp")
            .arg("-r")
            .args([&self.data, &self.backup()])
            .status();
        assert!(copied.is_ok_and(|it| it.success()), "cp");
        self.restart();
    }

    /// Kills it and starts it with the data of [`back_up`](Self::back_up): the cluster's id is the
    /// same, its index is not.
    pub fn go_back(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.data);
        fs::rename(self.backup(), &self.data).expect("there is a backup");
        self.restart();
    }

    fn backup(&self) -> PathBuf {
        self.data.with_extension("backup")
    }

    /// Stops it from running, as a machine that hangs.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// Lets it run on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    /// A GET of `path`: the status and the body.
    pub fn http(&self, path: &str) -> std::io::Result<(u16, String)> {
        self.request("GET", path, "")
    }

    /// A request with a form: the status and the body.
    pub fn request(&self, method: &str, path: &str, form: &str) -> std::io::Result<(u16, String)> {
        let form_type = "Content-Type: application/x-www-form-urlencoded\r\n";
        self.exchange(method, path, form_type, form)
    }

    /// A request with a JSON body, for the auth API: the status and the body.
    pub fn json(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        self.exchange(method, path, "Content-Type: application/json\r\n", body)
    }

    /// The same with Basic credentials, already encoded.
    pub fn json_as(
        &self,
        credentials: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        let headers =
            format!("Content-Type: application/json\r\nAuthorization: Basic {credentials}\r\n");
        self.exchange(method, path, &headers, body)
    }

    /// Tells how long leases have left.
    pub fn lease_clock(&self) -> LeaseClock {
        LeaseClock(self.client)
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> std::io::Result<(u16, String)> {
        assert!(
            !path.starts_with("/v2/") || has_v2(),
            "this test needs etcd's v2 API, and {} has none: it went with 3.6",
            binary()
        );
        exchange(self.client, method, path, headers, body)
    }

    /// The value of one of its counters, summed over the labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, body) = self.http("/metrics").expect("metrics");
        body.lines()
            .filter(|line| {
                let rest = line.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with([' ', '{']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What it counts of one kind of call: `started`, `msg_sent`.
    pub fn calls(&self, what: &str, method: &str) -> f64 {
        let (_, body) = self.http("/metrics").expect("metrics");
        let name = format!("grpc_server_{what}_total{{");
        let method = format!("grpc_method=\"{method}\"");
        let lines = body
            .lines()
            .filter(|it| it.starts_with(&name) && it.contains(&method));
        lines
            .filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Lets it forget what happened before `index`, and what was deleted there.
    pub fn compact(&self, index: u64) {
        compact(self.client, index);
    }

    /// What it has done so far.
    pub fn metrics(&self) -> Metrics {
        Metrics {
            proposals: self.metric("etcd_server_proposals_applied_total") as u64,
            http_requests: self.metric("etcd_http_received_total") as u64,
        }
    }

    fn spawn(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let advertised = format!("http://127.0.0.1:{}", self.peer_gate);
        let mut listen = client.clone();
        let mut command = Command::new(binary());
        if let Some((certificate, key)) = &self.options.tls {
            listen = format!("{client},https://{}", self.tls_host());
            command.arg("--cert-file").arg(certificate);
            command.arg("--key-file").arg(key);
        }
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(&self.data)
            .args(["--listen-client-urls", &listen])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &advertised])
            .args(["--initial-cluster", &self.members])
            .args(["--logger", "zap", "--log-level", "panic"])
            .args(&self.options.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if self.options.v2 && has_v2() {
            command.arg("--enable-v2");
        }
        if self.options.quick {
            command.args(["--election-timeout", "100", "--heartbeat-interval", "10"]);
        }
        let child = command.spawn().unwrap_or_else(|error| {
            panic!(
                "no etcd here ({}: {error}): run ./scripts/test, which fetches what the tests need",
                binary()
            )
        });
        self.child = Some(child);
    }

    /// False when it ended by itself.
    fn wait_until_healthy(&mut self) -> bool {
        for _ in 0..(PATIENCE.as_millis() / POLL.as_millis()) {
            let ended = self
                .child
                .as_mut()
                .is_none_or(|child| child.try_wait().is_ok_and(|status| status.is_some()));
            if ended {
                self.child = None;
                return false;
            }
            if let Ok((200, body)) = self.http("/health")
                && body.contains("true")
            {
                return true;
            }
            sleep(POLL);
        }
        panic!("etcd on {} is not healthy after {PATIENCE:?}", self.url());
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("etcd runs");
        let status = Command::new("kill")
            .args([signal, &child.id().to_string()])
            .status();
        assert!(status.is_ok_and(|it| it.success()), "kill {signal}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.data);
        let _ = fs::remove_dir_all(self.backup());
    }
}

/// The same of the member that serves this port.
pub fn compact(port: u16, index: u64) {
    let body = format!("{{\"revision\":\"{index}\",\"physical\":true}}");
    let json = "Content-Type: application/json\r\n";
    let (status, answer) = exchange(port, "POST", "/v3/kv/compaction", json, &body).unwrap();
    assert_eq!(status, 200, "{answer}");
}

/// Asks a member, through its gateway, how long v3 leases have left.
#[derive(Clone, Copy, Debug)]
pub struct LeaseClock(u16);

impl LeaseClock {
    /// How long this lease has left; `None` when it is gone.
    pub fn left(&self, lease: u64) -> Option<Duration> {
        let json = "Content-Type: application/json\r\n";
        let ask = format!("{{\"ID\": {lease}}}");
        let (_, body) = exchange(self.0, "POST", "/v3/lease/timetolive", json, &ask).ok()?;
        let (_, rest) = body.split_once("\"TTL\":\"")?;
        let seconds: i64 = rest.split('"').next()?.parse().ok()?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }
}

/// What a member has done since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Entries of the log that were applied: what writes and quorum reads cost.
    pub proposals: u64,
    /// Requests to the v2 API.
    pub http_requests: u64,
}

/// The binary that is tested with.
pub fn binary() -> String {
    let named = std::env::var("TENURE_TEST_ETCD").ok();
    named
        .filter(|it| !it.is_empty())
        .unwrap_or_else(|| "etcd".to_owned())
}

/// Major and minor version of that binary.
pub fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let output = Command::new(binary()).arg("--version").output();
        let output = output.unwrap_or_else(|error| {
            panic!(
                "no etcd here ({}: {error}): run ./scripts/test, which fetches what the tests need",
                binary()
            )
        });
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .lines()
            .find_map(|it| it.strip_prefix("etcd Version: "));
        let mut parts = version.unwrap_or_default().split('.');
        let mut next = || parts.next()?.parse().ok();
        let version = next().zip(next());
        version.unwrap_or_else(|| panic!("{} says of its version: {text}", binary()))
    })
}

/// Whether that binary has the v2 API.
pub fn has_v2() -> bool {
    version() < (3, 6)
}

/// Memory, where there is enough of it: what a slow disk does to etcd is not what these tests are
/// about. Else the directory for temporary files.
fn data_root() -> PathBuf {
    const ENOUGH_KIB: u64 = 4 << 20;
    let df = Command::new("df")
        .args(["-k", "--output=avail", "/dev/shm"])
        .output();
    let free = df.ok().and_then(|df| {
        let text = String::from_utf8(df.stdout).ok()?;
        text.lines().last()?.trim().parse::<u64>().ok()
    });
    if free.is_some_and(|free| free >= ENOUGH_KIB) {
        PathBuf::from("/dev/shm")
    } else {
        std::env::temp_dir()
    }
}

fn exchange(
    port: u16,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: test\r\n{headers}\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] =
        std::array::from_fn(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    listeners.map(|it| it.local_addr().expect("an address").port())
}
