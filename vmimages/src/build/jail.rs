//! The wall around make: no network, no files but the tools, the sources (read only) and the build
//! folder. A kernel tree is somebody's code that runs on this host. Policy only: `make` runs it.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where tools are looked for, inside and outside.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files of the host that compilers and linkers read besides /usr.
const READABLE: &[&str] =
    &["/opt", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"];

/// How commands of a build are started.
#[derive(Clone, Debug)]
pub struct Jail {
    /// `bwrap` and its arguments; empty where the host has none that works.
    wrap: Vec<OsString>,
}

impl Jail {
    /// A jail that sees `src` and may write `out`; or none, and why.
    pub fn around(src: &Path, out: &Path) -> (Jail, Option<String>) {
        let wrap = arguments(src, out);
        let why = match Command::new(&wrap[0])
            .args(&wrap[1..])
            .arg("true")
            .env_clear()
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .output()
        {
            Ok(done) if done.status.success() => return (Jail { wrap }, None),
            Ok(done) => String::from_utf8_lossy(&done.stderr)
                .lines()
                .next()
                .map_or_else(|| done.status.to_string(), str::to_owned),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                "bwrap is not installed (package bubblewrap)".into()
            }
            Err(error) => error.to_string(),
        };
        (Jail { wrap: Vec::new() }, Some(why))
    }

    /// `program` at the lowest priority, with an environment that holds nothing of the user's.
    pub fn command(&self, program: &str) -> Command {
        let nice = ["nice", "-n", "19"].map(OsString::from);
        let mut words = self.wrap.iter().cloned().chain(nice).chain([OsString::from(program)]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command.env_clear().envs([("PATH", PATH), ("LC_ALL", "C"), ("HOME", "/nonexistent")]);
        command.stdin(Stdio::null());
        command
    }
}

fn arguments(src: &Path, out: &Path) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |words: &[&OsStr]| all.extend(words.iter().map(|&word| word.to_owned()));
    let word = OsStr::new;
    add(&["bwrap", "--unshare-all", "--die-with-parent", "--new-session"].map(word));
    add(&["--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"].map(word));
    // On a merged /usr these are links, elsewhere folders of their own.
    for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"] {
        match std::fs::read_link(name) {
            Ok(target) => add(&[word("--symlink"), target.as_os_str(), word(name)]),
            Err(_) => add(&["--ro-bind-try", name, name].map(word)),
        }
    }
    for name in READABLE {
        add(&["--ro-bind-try", name, name].map(word));
    }
    // /proc/sys asks for the user, not for capabilities: root's builds could change the host.
    add(&["--proc", "/proc", "--remount-ro", "/proc"].map(word));
    add(&["--dev", "/dev", "--tmpfs", "/tmp"].map(word));
    let (src, out) = (src.as_os_str(), out.as_os_str());
    add(&[word("--ro-bind"), src, src, word("--bind"), out, out, word("--chdir"), out]);
    add(&[word("--")]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a shell line inside; what it printed and whether it ended well.
    fn inside(jail: &Jail, line: &str) -> (bool, String) {
        let done = jail.command("sh").args(["-c", line]).output().unwrap();
        let text = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    #[test]
    fn a_build_sees_its_folders_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (src, out) = (dir.path().join("src"), dir.path().join("out"));
        std::fs::create_dir(&src).unwrap();
        std::fs::create_dir(&out).unwrap();
        std::fs::write(src.join("a"), "source").unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let (jail, why) = Jail::around(&src, &out);
        if let Some(why) = why {
            // The host forbids it: then there is no wall, and the builder has to say so.
            assert!(jail.wrap.is_empty() && !why.is_empty());
            return;
        }
        let start = std::time::Instant::now();
        let shown = |path: &Path| path.display().to_string();
        assert_eq!(inside(&jail, &format!("cat {}/a", shown(&src))), (true, "source".into()));
        assert!(inside(&jail, &format!("echo x >{}/made", shown(&out))).0);
        assert_eq!(std::fs::read(out.join("made")).unwrap(), b"x\n");
        let probes = [
            format!("echo x >{}/a", shown(&src)),
            format!("cat {}/secret", shown(dir.path())),
            "cat /etc/passwd".into(),
            "echo x >/usr/hgm-was-here".into(),
            "ls /root /home".into(),
            "test -s /proc/net/route && grep -q . /proc/net/route && \
             test $(wc -l </proc/net/route) -gt 1"
                .into(),
            "test -n \"$CARGO\"".into(),
            "mount -t tmpfs none /usr".into(),
            "echo hgm-was-here >/proc/sys/kernel/hostname".into(),
        ];
        let mut done = Vec::new();
        for probe in &probes {
            let (fine, text) = inside(&jail, probe);
            done.extend(fine.then(|| format!("{probe}: {text}")));
        }
        trials::fault("J5", "probes of a build", probes.len() as u64, done.len() as u64, start);
        assert!(done.is_empty(), "{done:?}");
    }
}
