//! What a QEMU that was taken over could do to its host: this test program takes QEMU's place, behind
//! the wall and without it, and tries.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

use nix::errno::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vm::jail::Jail;
use vm::process::Process;
use vm::{Accel, VmSpec};

/// Fewer than these were tried: the list was cut, and the test proves less than it says.
const PROBES_MIN: usize = 30;

/// The host as the probes need to know it, as words of the command line.
struct Host {
    port: u16,
    pid: i32,
    secret: PathBuf,
    walled: bool,
}

impl Host {
    fn told() -> Host {
        let word = |name: &str| {
            let mut words = std::env::args();
            words.find_map(|word| word.strip_prefix(name).map(str::to_owned)).unwrap()
        };
        Host {
            port: word("port=").parse().unwrap(),
            pid: word("pid=").parse().unwrap(),
            secret: word("secret=").into(),
            walled: word("walled=") == "true",
        }
    }
}

/// Started by the other tests in QEMU's place; prints one line a probe.
#[test]
#[ignore = "runs in QEMU's place"]
fn what_a_qemu_could_do() {
    let host = Host::told();
    for (name, outcome) in probes(&host) {
        let word = match outcome {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("denied {error}"),
        };
        println!("\nprobe {name}: {word}");
    }
}

type Probes = Vec<(&'static str, io::Result<()>)>;

fn probes(host: &Host) -> Probes {
    let mut all = files(host);
    all.extend(network(host));
    all.extend(processes(host));
    all.push(("gain privileges by exec", only_if(!status().contains("NoNewPrivs:\t1"))));
    if host.walled {
        // Without the wall, and run by root, these would do what they try.
        all.extend(privileges());
    }
    all.extend(limits());
    all
}

/// An error if this is not what the wall must show.
fn only_if(seen: bool) -> io::Result<()> {
    if seen { Ok(()) } else { Err(io::Error::other("not there")) }
}

fn call(result: libc::c_long) -> io::Result<()> {
    Errno::result(result).map(drop).map_err(io::Error::from)
}

fn files(host: &Host) -> Probes {
    let here = std::env::current_exe().unwrap();
    let beside = here.parent().unwrap();
    let write = |path: &Path| {
        let made = File::create_new(path).map(drop);
        let _ = fs::remove_file(path);
        made
    };
    let found = |dir: &str, expected: &[&str]| {
        let names: Vec<String> = fs::read_dir(dir)?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        only_if(names.iter().any(|name| !expected.contains(&name.as_str())))
    };
    let root = ["usr", "bin", "lib", "lib32", "lib64", "proc", "dev", "etc", "tmp", "k", "i"];
    let top: Vec<String> =
        here.components().nth(1).iter().map(|c| c.as_os_str().to_string_lossy().into()).collect();
    let root: Vec<&str> = root.into_iter().chain(top.iter().map(String::as_str)).collect();
    vec![
        ("read the host's users", File::open("/etc/passwd").map(drop)),
        ("read a file of the user", File::open(&host.secret).map(drop)),
        ("list the root", found("/", &root)),
        ("list homes", fs::read_dir("/home").map(drop)),
        ("list what lies beside QEMU", {
            let own = here.file_name().unwrap().to_str().unwrap();
            found(beside.to_str().unwrap(), &[own])
        }),
        ("write beside QEMU", write(&beside.join("hgm-was-here"))),
        ("write beside a file of the user", write(&host.secret.with_extension("new"))),
        ("write to /usr", write(Path::new("/usr/hgm-was-here"))),
        ("write to the root", write(Path::new("/hgm-was-here"))),
        ("write to /tmp", write(Path::new("/tmp/hgm-was-here"))),
        ("write to /dev", write(Path::new("/dev/hgm-was-here"))),
        ("write to /dev/shm", write(Path::new("/dev/shm/hgm-was-here"))),
        ("open the host's memory", File::open("/dev/mem").map(drop)),
        ("open /dev/kvm under TCG", only_if(Path::new("/dev/kvm").exists())),
        ("read the kernel's log", File::open("/dev/kmsg").map(drop)),
        ("change the kernel's settings", {
            File::options().write(true).open("/proc/sys/kernel/hostname").map(drop)
        }),
    ]
}

fn network(host: &Host) -> Probes {
    let local = ("127.0.0.1", host.port);
    let udp = || UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", "192.0.2.1:9").map(drop);
    // SAFETY: integers only; what is opened is closed by nobody and ends with this process.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    let interfaces = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let other = |line: &str| line.contains(':') && !line.trim_start().starts_with("lo:");
    vec![
        ("connect to the host", TcpStream::connect(local).map(drop)),
        ("send a datagram", udp()),
        ("open a raw socket", call(raw.into())),
        ("see an interface", only_if(interfaces.lines().any(other))),
    ]
}

fn processes(host: &Host) -> Probes {
    let seen = fs::read_dir("/proc").map_or(0, |dir| {
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        dir.filter_map(name).filter(|name| name.parse::<u32>().is_ok()).count()
    });
    let descriptors: Vec<PathBuf> = fs::read_dir("/proc/self/fd").map_or(vec![], |dir| {
        dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
    });
    // 0 to 2, and the one that lists them.
    let most = 4;
    // SAFETY: integers only; signal 0 does nothing.
    unsafe {
        vec![
            ("signal a process of the user", call(libc::kill(host.pid, 0).into())),
            ("trace a process of the user", call(libc::ptrace(libc::PTRACE_SEIZE, host.pid, 0, 0))),
            ("see other processes", only_if(seen > 4)),
            ("inherit descriptors", only_if(descriptors.len() > most)),
            ("inherit the environment", only_if(std::env::vars().any(|(name, _)| name != "PWD"))),
            ("open the terminal", File::open("/dev/tty").map(drop)),
        ]
    }
}

fn status() -> String {
    fs::read_to_string("/proc/self/status").unwrap_or_default()
}

fn privileges() -> Probes {
    let status = status();
    let none = |row: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_default();
        u64::from_str_radix(value.trim(), 16) == Ok(0)
    };
    // SAFETY: terminated strings and integers; each either fails or changes this process alone.
    unsafe {
        let mount = |flags: libc::c_ulong| {
            let (none, kind) = (c"none".as_ptr(), c"tmpfs".as_ptr());
            call(libc::mount(none, c"/".as_ptr(), kind, flags, std::ptr::null()).into())
        };
        vec![
            (
                "have capabilities",
                only_if(!(none("CapEff:") && none("CapPrm:") && none("CapBnd:"))),
            ),
            ("be somebody else", call(libc::setresuid(1, 1, 1).into())),
            ("be root", call(libc::setuid(0).into()).and_then(|()| only_if(libc::getuid() == 0))),
            ("make a user namespace", call(libc::unshare(libc::CLONE_NEWUSER).into())),
            ("make a mount namespace", call(libc::unshare(libc::CLONE_NEWNS).into())),
            ("mount", mount(0)),
            ("make the root writable", mount(libc::MS_REMOUNT | libc::MS_BIND)),
            ("leave the root", call(libc::chroot(c"/proc".as_ptr()).into())),
            ("name the host", call(libc::sethostname(c"x".as_ptr(), 1).into())),
            ("watch the processor", {
                let mut attr = [0u8; 128];
                attr[4] = 128;
                let (at, cpu0) = (attr.as_mut_ptr(), 0);
                call(libc::syscall(libc::SYS_perf_event_open, at, -1, cpu0, -1, 0))
            }),
        ]
    }
}

fn limits() -> Probes {
    let many = || {
        let files: io::Result<Vec<File>> = (0..300).map(|_| File::open("/dev/null")).collect();
        files.map(drop)
    };
    let long = || {
        // SAFETY: a terminated name; the descriptor is new and nobody else's. The signal of a
        // write beyond the limit is turned into its error.
        let mut file = unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            File::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 0))
        };
        let block = vec![1u8; 1 << 20];
        (0..65).try_for_each(|_| file.write_all(&block))
    };
    let core = || {
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
        only_if(soft > 0)
    };
    vec![("open 300 files", many()), ("write 65 MiB", long()), ("leave a core", core())]
}

/// Probe by probe, what came of it in the jail.
fn tried(jail: &Jail, pass_all: bool) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut args: Vec<OsString> =
        ["--ignored", "--exact", "--nocapture", "what_a_qemu_could_do"].map(Into::into).into();
    let port = listener.local_addr().unwrap().port();
    args.push(format!("port={port}").into());
    args.push(format!("pid={}", std::process::id()).into());
    args.push(format!("secret={}", secret.display()).into());
    args.push(format!("walled={}", *jail != Jail::Open).into());
    let log = dir.path().join("log");
    let own = std::env::current_exe().unwrap();
    let launch = jail.around(&own, args, &[], Accel::Tcg);
    let out = File::create(&log).unwrap();
    let status = if pass_all {
        // As a user starts QEMU by hand.
        let mut command = std::process::Command::new(launch.program);
        command.args(launch.args).stdout(out).status().ok()
    } else {
        let mut process = Process::start(launch, Vec::new(), out).unwrap();
        process.wait(Duration::from_secs(30))
    };
    let text = fs::read_to_string(&log).unwrap();
    println!("{text}");
    assert!(status.is_some_and(|s| s.success()), "{status:?} {text}");
    let row = |line: &str| {
        let (name, outcome) = line.strip_prefix("probe ")?.split_once(": ")?;
        Some((name.to_owned(), outcome.to_owned()))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn every_probe_is_denied_behind_the_wall() {
    let jail = Jail::find().unwrap();
    let seen = tried(&jail, false);
    for (name, outcome) in &seen {
        println!("{name:36} {outcome}");
    }
    assert!(seen.len() >= PROBES_MIN, "{} probes", seen.len());
    let done: Vec<&String> = seen.iter().filter(|(_, o)| *o == "done").map(|(n, _)| n).collect();
    assert!(done.is_empty(), "{done:?}");
}

/// Without it most are possible: the probes can tell.
#[test]
fn without_the_wall_they_are_not() {
    let seen = tried(&Jail::Open, true);
    for name in [
        "read the host's users",
        "read a file of the user",
        "write beside a file of the user",
        "connect to the host",
        "signal a process of the user",
        "see other processes",
        "inherit the environment",
        "gain privileges by exec",
        "open 300 files",
        "write 65 MiB",
    ] {
        assert_eq!(seen[name], "done", "{name}");
    }
}

/// The wall ends with who started it, and its QEMU with it.
#[test]
fn what_is_inside_dies_with_the_wall() {
    let jail = Jail::find().unwrap();
    let script = vec!["-c".into(), "sleep 1000 & sleep 1000".into()];
    let launch = jail.around(Path::new("/bin/sh"), script, &[], Accel::Tcg);
    let mut process = Process::start(launch, Vec::new(), tempfile::tempfile().unwrap()).unwrap();
    let inside = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid())).ok()?;
        (name == "sleep\n").then(|| process.pid())
    });
    let inside = inside.unwrap();
    process.kill();
    assert!(process.wait(Duration::from_secs(5)).is_some());
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        // Not even as a zombie.
        !Path::new(&format!("/proc/{inside}")).exists()
    });
    assert!(gone, "the namespace outlives its wall");
}

/// What a VM reads by name is seen, at its own path and nothing beside it.
#[test]
fn the_files_of_a_vm_are_seen_and_cannot_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["kernel", "initrd", "other"] {
        fs::write(path(name), name).unwrap();
    }
    let jail = Jail::find().unwrap();
    let spec = VmSpec {
        qemu: "/bin/sh".into(),
        kernel: path("kernel"),
        initrd: path("initrd"),
        memory_mib: 4096,
        cpus: 2,
        accel: Accel::Tcg,
        jail: jail.clone(),
        dir: path("vm"),
        boot_timeout: Duration::from_secs(10),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    };
    let place = dir.path().display();
    let line = format!(
        "cat {place}/kernel {place}/initrd; cat {place}/other; echo x >{place}/kernel; ls {place}"
    );
    let args = vec!["-c".into(), line.into()];
    let launch = jail.around(&spec.qemu, args, &vm::jail::files(&spec), spec.accel);
    let log = path("log");
    let out = File::create(&log).unwrap();
    let mut process = Process::start(launch, Vec::new(), out).unwrap();
    process.wait(Duration::from_secs(20)).unwrap();
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("kernelinitrd"), "{text}");
    assert!(text.ends_with("initrd\nkernel\n"), "{text}");
    assert_eq!(fs::read(path("kernel")).unwrap(), b"kernel");
}
