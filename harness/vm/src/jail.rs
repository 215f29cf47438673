//! The wall around QEMU: namespaces of its own, a root that holds the libraries and what this VM
//! reads, nowhere to write. Under TCG it is the only wall there is, since QEMU emulates what the
//! guest does. Policy only, made with bubblewrap: [`crate::process`] starts it, sets limits and
//! kills it. What QEMU may call is QEMU's own `-sandbox` ([`crate::command`]).

use crate::probe::find_program;
use crate::process::Launch;
use crate::{Accel, VmSpec};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether QEMU stands behind a wall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Jail {
    /// None: QEMU sees what its user sees.
    #[default]
    Open,
    /// `bwrap`, by its path, which was tried.
    Bubblewrap(PathBuf),
}

/// Who QEMU is inside: nobody.
const NOBODY: &str = "65534";
/// Beside a QEMU that is not below /usr: where its firmware and libraries may be, from its folder.
const AROUND_QEMU: &[&str] =
    &["pc-bios", "qemu-bundle", "../share/qemu", "../share/seabios", "../lib"];

impl Jail {
    /// The jail of this host, or why there is none.
    pub fn find() -> Result<Jail, String> {
        let bwrap = find_program(Path::new("bwrap"));
        if !bwrap.is_absolute() {
            return Err("bwrap is not installed (package bubblewrap)".into());
        }
        let mut args = walls();
        args.extend(["--", "/usr/bin/true"].map(OsString::from));
        let tried = Command::new(&bwrap).args(args).env_clear().stdin(Stdio::null()).output();
        match tried {
            Ok(done) if done.status.success() => Ok(Jail::Bubblewrap(bwrap)),
            Ok(done) => {
                let text = String::from_utf8_lossy(&done.stderr).into_owned();
                Err(text.lines().next().map_or_else(|| done.status.to_string(), str::to_owned))
            }
            Err(error) => Err(format!("{}: {error}", bwrap.display())),
        }
    }

    /// What to start for `qemu` with `args` to run behind this wall and see `files`.
    pub fn around(
        &self,
        qemu: &Path,
        args: Vec<OsString>,
        files: &[PathBuf],
        accel: Accel,
    ) -> Launch {
        let Jail::Bubblewrap(bwrap) = self else {
            return Launch { program: qemu.to_owned(), args, walled: false };
        };
        let qemu = find_program(qemu);
        let mut all = walls();
        let mut add = |words: &[&OsStr]| all.extend(words.iter().map(|&word| word.to_owned()));
        let word = OsStr::new;
        if accel == Accel::Kvm {
            add(&["--dev-bind", "/dev/kvm", "/dev/kvm"].map(word));
        }
        for file in beside(&qemu).iter().chain(files) {
            add(&[word("--ro-bind-try"), file.as_os_str(), file.as_os_str()]);
        }
        // Nothing was written yet, and from here on nothing can be. /proc/sys asks for the user, not
        // for capabilities: root's would change the host's settings.
        for mount in ["/proc", "/dev", "/"] {
            add(&["--remount-ro", mount].map(word));
        }
        add(&[word("--")]);
        add(&[qemu.as_os_str()]);
        all.extend(args);
        Launch { program: bwrap.clone(), args: all, walled: true }
    }
}

/// Files of the host a VM's QEMU opens by name. Guest memory, sockets and counters it inherits; a
/// clone has kernel and initramfs in its memory.
pub fn files(spec: &VmSpec, clone: bool) -> Vec<PathBuf> {
    let plugin = spec.cover.as_ref().map(|cover| cover.plugin.clone());
    let boots = [&spec.kernel, &spec.initrd].into_iter().filter(|_| !clone);
    boots.cloned().chain(plugin).collect()
}

/// A QEMU of the distribution is in /usr; any other comes with what it loads.
fn beside(qemu: &Path) -> Vec<PathBuf> {
    if qemu.starts_with("/usr") {
        return Vec::new();
    }
    let dir = qemu.parent().unwrap_or(Path::new("/"));
    let near = AROUND_QEMU.iter().map(|name| dir.join(name));
    std::iter::once(qemu.to_owned()).chain(near.filter(|path| path.is_dir())).collect()
}

/// What every QEMU has around it.
fn walls() -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |words: &[&OsStr]| all.extend(words.iter().map(|&word| word.to_owned()));
    let word = OsStr::new;
    add(&["--unshare-all", "--unshare-user", "--disable-userns", "--uid", NOBODY].map(word));
    add(&["--gid", NOBODY, "--hostname", "vm", "--die-with-parent", "--new-session"].map(word));
    add(&["--cap-drop", "ALL", "--clearenv", "--chdir", "/", "--ro-bind", "/usr", "/usr"].map(word));
    // On a merged /usr these are links, elsewhere folders of their own.
    for name in ["/bin", "/lib", "/lib32", "/lib64"] {
        match std::fs::read_link(name) {
            Ok(target) => add(&[word("--symlink"), target.as_os_str(), word(name)]),
            Err(_) => add(&["--ro-bind-try", name, name].map(word)),
        }
    }
    add(&["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"].map(word));
    // QEMU opens the guest's memory as /proc/self/fd/N; /proc shows its own namespace only.
    add(&["--proc", "/proc", "--dev", "/dev"].map(word));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wall_nothing_is_put_around() {
        let args = vec![OsString::from("-x")];
        let launch = Jail::Open.around(Path::new("qemu"), args.clone(), &[], Accel::Tcg);
        assert_eq!(launch, Launch { program: "qemu".into(), args, walled: false });
    }

    #[test]
    fn a_qemu_of_ones_own_is_seen_and_its_home_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("bin/qemu");
        std::fs::create_dir_all(dir.path().join("bin/pc-bios")).unwrap();
        std::fs::write(&qemu, "").unwrap();
        let jail = Jail::Bubblewrap("/usr/bin/bwrap".into());
        let kernel = PathBuf::from("/k/vmlinuz");
        let launch = jail.around(&qemu, vec!["-x".into()], &[kernel], Accel::Kvm);
        assert_eq!((launch.program.as_path(), launch.walled), (Path::new("/usr/bin/bwrap"), true));
        let words: Vec<_> = launch.args.iter().map(|word| word.to_string_lossy()).collect();
        let text = words.join(" ");
        let place = dir.path().display();
        for part in [
            format!("--ro-bind-try {place}/bin/qemu {place}/bin/qemu"),
            format!("--ro-bind-try {place}/bin/pc-bios {place}/bin/pc-bios"),
            "--ro-bind-try /k/vmlinuz /k/vmlinuz".into(),
            "--dev-bind /dev/kvm /dev/kvm".into(),
            format!("--remount-ro / -- {place}/bin/qemu -x"),
        ] {
            assert!(text.contains(&part), "{part}: {text}");
        }
        assert!(!text.contains(&format!("{place} ")), "{text}");
    }
}
