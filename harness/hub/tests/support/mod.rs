//! A nats-server on loopback that can be killed, stopped and robbed of its disk.

#![allow(clippy::unwrap_used, dead_code)] // helpers outside `#[test]` may panic as a test may

use hub::{Access, Kind, Nats, News, Parcel, Post, Scope};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Server {
    child: Child,
    pub port: u16,
    dir: tempfile::TempDir,
    more: Vec<String>,
}

impl Server {
    pub fn start() -> Server {
        Server::with(&[])
    }

    /// A server that is told more on its command line.
    pub fn with(more: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more: Vec<String> = more.iter().map(|word| (*word).to_owned()).collect();
        let child = spawn(port, dir.path().join("js"), &more);
        let server = Server { child, port, dir, more };
        server.wait();
        server
    }

    fn wait(&self) {
        until("the server listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.port, self.dir.path().join("js"), &self.more);
        self.wait();
    }

    pub fn lose_disk(&self) {
        std::fs::remove_dir_all(self.dir.path().join("js")).unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn post(&self, scope: &str) -> Post {
        self.post_with(scope, &Access::default())
    }

    pub fn post_with(&self, scope: &str, access: &Access) -> Post {
        let scope = Scope::new(scope).unwrap();
        let nats = Nats::open("127.0.0.1", self.port, false, access, Some(scope)).unwrap();
        Post::open(Box::new(nats)).unwrap()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, store: PathBuf, more: &[String]) -> Child {
    let mut command = Command::new(server_path());
    command.args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream"]);
    command.arg("--store_dir").arg(store).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("nats-server is installed (ci/install --hub)")
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn entry(scope: &str, key: &str) -> Parcel {
    let body = format!("hgm 1\n# {key}\n").into_bytes();
    Parcel::new(Kind::Entry, &Scope::new(scope).unwrap(), key, body).unwrap()
}

/// Keys that have come to a post, each of which may come once.
#[derive(Default)]
pub struct Got {
    pub keys: BTreeSet<String>,
    pub again: u32,
}

impl Got {
    pub fn look(&mut self, post: &Post) {
        while let Some(news) = post.next() {
            match news {
                News::Parcel(parcel) => {
                    assert!(self.keys.insert(parcel.key().to_owned()), "{} twice", parcel.key());
                }
                News::Again => self.again += 1,
            }
        }
    }
}

/// What the server has of a scope, by a look of its own.
pub fn kept(server: &Server, scope: &str) -> usize {
    let post = server.post(scope);
    let mut got = Got::default();
    let mut last = Instant::now();
    let mut seen = 0;
    while last.elapsed() < Duration::from_millis(700) {
        got.look(&post);
        if got.keys.len() != seen {
            (seen, last) = (got.keys.len(), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    seen
}

/// How often a fault is made: few times in every run of the tests, more when asked.
pub fn rounds() -> u32 {
    trials::rounds(3)
}

/// What the fault table is told: of `tried` words `there` are where they belong. One too many is as
/// wrong as one too few.
pub fn row(id: &str, what: &str, tried: usize, there: usize, since: Instant) {
    trials::fault(id, what, tried as u64, tried.abs_diff(there) as u64, since);
}

/// Where the package puts it, which is not in everybody's PATH.
pub fn server_path() -> &'static str {
    let package = "/usr/sbin/nats-server";
    if std::path::Path::new(package).exists() { package } else { "nats-server" }
}
