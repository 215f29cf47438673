//! Two campaigns that meet at a real nats-server: each has what the other found, also after one of them
//! and the server were killed.

#![allow(clippy::unwrap_used)]

#[path = "support/home.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod home;

use home::{Home, json, the_kernel, wait_for};
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16, store: &Path) -> Server {
        let child = Command::new(server_path())
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"])
            .arg("--store_dir")
            .arg(store)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed (ci/install --hub)");
        wait_for("the server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Server { child, port }
    }

    fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn entries(corpus: &Path) -> BTreeSet<String> {
    let names = std::fs::read_dir(corpus).into_iter().flatten().flatten();
    names.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.ends_with(".hgm")).collect()
}

/// A campaign of one VM; a test that fails leaves none behind.
struct Campaign(Child);

impl Drop for Campaign {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn campaign(home: &Home, hub: &str, seed: &str, time: &str) -> Campaign {
    let corpus = home.0.path().join("corpus");
    let kernel = the_kernel("6.1");
    let args = ["fuzz", "--kernel", &kernel, "--jobs", "1", "--seed", seed, "--for", time, "--hub"];
    let more = ["--no-canaries", "--progress", "none", "--json", "--corpus"];
    let all: Vec<&str> =
        args.into_iter().chain([hub]).chain(more).chain([corpus.to_str().unwrap()]).collect();
    Campaign(home.start(&all))
}

#[test]
fn campaigns_have_what_the_others_found_whoever_is_killed() {
    let (a, b) = (Home::new(), Home::new());
    let store = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Server::start(port, store.path());
    let hub = server.address();
    let corpora = [&a, &b].map(|home| home.0.path().join("corpus"));

    let mut first = campaign(&a, &hub, "1", "1h");
    let mut second = campaign(&b, &hub, "2", "1h");
    let shared = || entries(&corpora[0]).intersection(&entries(&corpora[1])).count();
    wait_for("both found things", || shared() >= 60);

    // The server is away for a while; both go on, and what they find meanwhile waits.
    server.kill();
    let before = [0, 1].map(|n| entries(&corpora[n]).len());
    wait_for("both go on", || (0..2).all(|n| entries(&corpora[n]).len() >= before[n] + 5));
    let mut server = Server::start(port, store.path());
    let alone = entries(&corpora[0]);
    wait_for("what was found alone arrives", || alone.is_subset(&entries(&corpora[1])));

    let status = || json(&a.run(&["status", "--hub", &hub, "--json"]));
    wait_for("both say how they do", || status()["machines"].as_array().unwrap().len() == 2);

    // One dies at once: what it had on disk and had sent, the other has; the rest comes when its
    // corpus is fuzzed again.
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let left = entries(&corpora[0]);
    let mut again = campaign(&a, &hub, "3", "1h");
    wait_for("it is back", || status()["machines"].as_array().unwrap().len() == 3);
    wait_for("nothing is lost", || left.is_subset(&entries(&corpora[1])));

    // Both end by themselves, and the hub has exactly the entries they have.
    for child in [&again, &second] {
        let pid = nix::unistd::Pid::from_raw(child.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }
    assert_eq!(again.0.wait().unwrap().code(), Some(130));
    assert_eq!(second.0.wait().unwrap().code(), Some(130));
    let seen = status();
    let kept = seen["kept"][0]["entries"].as_u64().unwrap();
    let union: BTreeSet<String> = corpora.iter().flat_map(|corpus| entries(corpus)).collect();
    assert_eq!(kept, union.len() as u64, "{seen}");
    server.kill();
}

/// Where the package puts it, which is not in everybody's PATH.
fn server_path() -> &'static str {
    let package = "/usr/sbin/nats-server";
    if std::path::Path::new(package).exists() { package } else { "nats-server" }
}
