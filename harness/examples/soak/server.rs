//! The hub of a soak: a nats-server on loopback that can be killed, stopped and robbed.

use anyhow::{Context, Result, bail};
use hub::{Access, Exchange, Kind, Nats};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Until a server that was started listens.
const START: Duration = Duration::from_secs(20);
/// What arrives later than this does not arrive.
const TAKE: Duration = Duration::from_secs(2);

pub struct Server {
    child: Child,
    port: u16,
    store: PathBuf,
    /// CPU seconds of servers that are gone.
    pub spent: f64,
}

/// Entries of the campaign's corpus, and those of them the hub does not have.
pub struct Kept {
    pub entries: usize,
    pub missing: usize,
}

impl Server {
    pub fn start(store: &Path) -> Result<Server> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = spawn(port, store)?;
        Ok(Server { child, port, store: store.to_owned(), spent: 0.0 })
    }

    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()), signal)?)
    }

    pub fn kill(&mut self) -> Result<()> {
        self.spent += crate::figures::cpu(self.pid()).unwrap_or(0.0);
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(self.port, &self.store)?;
        Ok(())
    }

    pub fn lose_disk(&self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.store)?)
    }

    /// What a machine that comes now would get, held against what the campaign has.
    pub fn missing(&self, corpus: &Path) -> Result<Kept> {
        let nats = Nats::open("127.0.0.1", self.port, false, &Access::default(), None);
        let mut nats = nats.map_err(|away| anyhow::anyhow!("{away}"))?;
        let mut got = BTreeSet::new();
        let (start, mut silent) = (Instant::now(), Instant::now());
        while silent.elapsed() < TAKE {
            let parcels = match nats.take(TAKE) {
                Ok(parcels) => parcels,
                // The first answer takes a moment.
                Err(_) if start.elapsed() < START => {
                    silent = Instant::now();
                    continue;
                }
                Err(away) => bail!("the hub does not answer: {away}"),
            };
            if !parcels.is_empty() {
                silent = Instant::now();
            }
            let entries = parcels.into_iter().filter(|p| p.kind == Kind::Entry);
            got.extend(entries.map(|p| p.key().to_owned()));
        }
        let names = std::fs::read_dir(corpus)?.flatten();
        let own: BTreeSet<String> = names
            .filter_map(|e| e.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".hgm")?.to_owned()))
            .collect();
        let missing = own.iter().filter(|name| !got.contains(*name)).count();
        Ok(Kept { entries: own.len(), missing })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.signal(Signal::SIGCONT);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, store: &Path) -> Result<Child> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let server = dirs.map(|dir| dir.join("nats-server")).find(|path| path.is_file());
    let server = server.context("nats-server is not installed: run ci/install --hub")?;
    let child = Command::new(server)
        .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"])
        .arg(store)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let end = Instant::now() + START;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > end {
            bail!("nats-server does not listen on port {port}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child)
}
