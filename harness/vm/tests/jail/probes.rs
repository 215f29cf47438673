//! What a QEMU that was taken over would try: started in its place by the tests of the jail, behind the
//! wall and without it, it prints one line a probe. What it knows of the host stands in a file beside
//! it; a VM's command line says which files and descriptors it was given. No part of hgm.

#![allow(clippy::unwrap_used)] // it is part of a test

use nix::errno::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{FromRawFd, RawFd};
use std::path::{Path, PathBuf};

/// The host as the probes need to know it.
struct Host {
    port: u16,
    pid: i32,
    secret: PathBuf,
    walled: bool,
}

impl Host {
    fn told() -> Host {
        let own = PathBuf::from(std::env::args_os().next().unwrap());
        let told = fs::read_to_string(own.with_file_name("pc-bios/host")).unwrap();
        let word = |name: &str| {
            let mut words = told.lines();
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

/// What a VM's command line gives.
struct Given {
    args: Vec<String>,
    /// Sockets, and memory that may be read.
    sockets: usize,
    memory: Vec<RawFd>,
}

impl Given {
    fn told() -> Given {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let words = || args.iter().flat_map(|arg| arg.split(','));
        let sockets = words().filter(|word| word.starts_with("fd=")).count();
        let memory = words().filter_map(|word| word.strip_prefix("mem-path=/proc/self/fd/"));
        let memory = memory.map(|number| number.parse().unwrap()).collect();
        Given { sockets, memory, args }
    }

    /// Files on the command line.
    fn paths(&self) -> impl Iterator<Item = &Path> {
        let words = self.args.iter().flat_map(|arg| arg.split(','));
        let values = words.map(|word| word.rsplit('=').next().unwrap_or(word));
        values.map(Path::new).filter(|path| path.is_absolute())
    }

    fn after(&self, option: &str) -> Option<&Path> {
        let at = self.args.iter().position(|arg| arg == option)?;
        self.args.get(at + 1).map(Path::new)
    }

    fn descriptors(&self) -> usize {
        self.sockets + self.memory.len()
    }
}

fn main() {
    // SAFETY: the signal of a file that grows beyond the limit is turned into the call's error.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let host = Host::told();
    let given = Given::told();
    for (name, outcome) in probes(&host, &given) {
        let word = match outcome {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("denied {error}"),
        };
        println!("probe {name}: {word}");
    }
}

type Probes = Vec<(&'static str, io::Result<()>)>;

fn probes(host: &Host, given: &Given) -> Probes {
    let mut all = files(host, given);
    all.extend(files_of_a_vm(given));
    all.extend(given.memory.iter().zip(MEMORY).flat_map(|(&fd, names)| memory(fd, names)));
    all.extend(network(host));
    all.extend(processes(host, given.descriptors()));
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

/// Whether there is anything in `dir` that is not expected.
fn found(dir: &Path, expected: &[&str]) -> io::Result<()> {
    let names: Vec<String> =
        fs::read_dir(dir)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    only_if(names.iter().any(|name| !expected.contains(&name.as_str())))
}

fn files(host: &Host, given: &Given) -> Probes {
    let here = std::env::current_exe().unwrap();
    let beside = here.parent().unwrap();
    let write = |path: &Path| {
        let made = File::create_new(path).map(drop);
        let _ = fs::remove_file(path);
        made
    };
    let root = ["usr", "bin", "lib", "lib32", "lib64", "proc", "dev", "etc", "tmp", "k", "i"];
    // What was given by name lies where it did outside.
    let paths = given.paths().chain([here.as_path()]);
    let top: Vec<String> = paths
        .filter_map(|path| path.components().nth(1))
        .map(|name| name.as_os_str().to_string_lossy().into())
        .collect();
    let root: Vec<&str> = root.into_iter().chain(top.iter().map(String::as_str)).collect();
    vec![
        ("read the host's users", File::open("/etc/passwd").map(drop)),
        ("read a file of the user", File::open(&host.secret).map(drop)),
        ("list the root", found(Path::new("/"), &root)),
        ("list homes", fs::read_dir("/home").map(drop)),
        ("list what lies beside QEMU", {
            let own = here.file_name().unwrap().to_str().unwrap();
            found(beside, &[own, "pc-bios"])
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

/// What was given by name is there to be read.
fn files_of_a_vm(given: &Given) -> Probes {
    let mut all = Vec::new();
    let change = |path: &Path| File::options().append(true).open(path).map(drop);
    if let (Some(kernel), Some(initrd)) = (given.after("-kernel"), given.after("-initrd")) {
        let name = |path: &'_ Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let (own, top) = ([name(kernel), name(initrd)], kernel.parent().unwrap());
        all.push(("change the kernel", change(kernel)));
        all.push(("change the initramfs", change(initrd)));
        all.push(("list what lies beside the kernel", found(top, &[&own[0], &own[1], "bin"])));
    }
    if let Some(dir) = given.after("-name").and_then(|name| name.to_str()?.split_once("hgm ")) {
        all.push(("see the folder of the VM", fs::read_dir(dir.1).map(drop)));
        // SAFETY: a terminated string and integers; a new descriptor ends with this process.
        let up = unsafe { libc::openat(1, c"..".as_ptr(), libc::O_RDONLY) };
        all.push(("go up from its log", call(up.into())));
    }
    all
}

/// What is tried on the memory of each node.
type Tries = [&'static str; 6];
const MEMORY: [Tries; 2] = [
    [
        "write the golden memory",
        "cut the golden memory",
        "extend the golden memory",
        "punch the golden memory",
        "map the golden memory to write",
        "open the golden memory to write",
    ],
    [
        "write the far golden memory",
        "cut the far golden memory",
        "extend the far golden memory",
        "punch the far golden memory",
        "map the far golden memory to write",
        "open the far golden memory to write",
    ],
];

fn memory(fd: RawFd, names: Tries) -> Probes {
    let (len, both) = (4096, libc::PROT_READ | libc::PROT_WRITE);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let again = || {
        let mut file = File::options().write(true).open(format!("/proc/self/fd/{fd}"))?;
        file.write_all(&[1; 4096])
    };
    // SAFETY: a live buffer of that length and integers; a new mapping is touched by nobody.
    let outcomes = unsafe {
        let mapped = libc::mmap(std::ptr::null_mut(), len, both, libc::MAP_SHARED, fd, 0);
        [
            call(libc::pwrite(fd, [1u8; 4096].as_ptr().cast(), len, 0) as libc::c_long),
            call(libc::ftruncate(fd, 4096).into()),
            call(libc::ftruncate(fd, 1 << 40).into()),
            call(libc::fallocate(fd, punch, 0, 4096).into()),
            only_if(mapped != libc::MAP_FAILED),
            again(),
        ]
    };
    names.into_iter().zip(outcomes).collect()
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

fn processes(host: &Host, given: usize) -> Probes {
    let seen = fs::read_dir("/proc").map_or(0, |dir| {
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        dir.filter_map(name).filter(|name| name.parse::<u32>().is_ok()).count()
    });
    let descriptors: Vec<PathBuf> = fs::read_dir("/proc/self/fd").map_or(vec![], |dir| {
        dir.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
    });
    // 0 to 2, the one that lists them, and what a VM is given.
    let most = 4 + given;
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
            ("open more files than it may", {
                let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
                call(libc::setrlimit(libc::RLIMIT_NOFILE, &limit).into())
            }),
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
        // SAFETY: a terminated name; the descriptor is new and nobody else's.
        let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 0)) };
        let block = vec![1u8; 1 << 20];
        (0..65).try_for_each(|_| file.write_all(&block))
    };
    let core = || {
        let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_CORE)?;
        only_if(soft > 0)
    };
    vec![("open 300 files", many()), ("write 65 MiB", long()), ("leave a core", core())]
}
