//! Running make in the jail: its output into the log, objects counted as they come, stopped when
//! asked, and safe to go on with after any end.

use super::error::BuildError;
use super::jail::Jail;
use super::log;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

/// Bytes of the log read back to find the first error.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// Between looks at whether the build shall stop.
const LOOK: Duration = Duration::from_millis(100);
/// Outputs this close to the newest one may have been in the making when make was killed.
const IN_FLIGHT: Duration = Duration::from_secs(60);
/// Stands in the build folder while make runs.
const RUNNING: &str = ".hgm-running";

/// One build folder and how make is run for it.
pub struct Make<'a> {
    pub jail: &'a Jail,
    pub src: &'a Path,
    pub out: &'a Path,
    pub log: &'a Path,
    /// Asked often; true stops the build.
    pub stop: &'a dyn Fn() -> bool,
}

impl std::fmt::Debug for Make<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Make").field("out", &self.out).finish_non_exhaustive()
    }
}

impl Make<'_> {
    /// `make -C SRC O=OUT ARGS`; `on_object` hears of each object. An `Err` names the first error.
    pub fn run(&self, args: &[&str], on_object: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
        let failed = |what| BuildError::io(what, self.log);
        recover(self.out)?;
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log)
            .map_err(failed("cannot write"))?;
        let from = file.metadata().map_err(failed("cannot read"))?.len();
        let marker = self.out.join(RUNNING);
        std::fs::write(&marker, "").map_err(BuildError::io("cannot write", &marker))?;
        let ended = self.watch(args, &mut file, on_object)?;
        if ended == Ended::Stopped {
            // The marker stays: what make was writing is not to be trusted.
            return Err(BuildError::Stopped { path: self.out.to_path_buf() });
        }
        let _ = std::fs::remove_file(&marker);
        if ended == Ended::Well {
            return Ok(());
        }
        let mut text = Vec::new();
        std::fs::File::open(self.log)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(from))?;
                file.take(LOG_BYTES_MAX).read_to_end(&mut text)
            })
            .map_err(failed("cannot read"))?;
        let text = String::from_utf8_lossy(&text);
        if log::is_disk_full(&text) {
            return Err(BuildError::NoSpace { path: self.out.to_path_buf() });
        }
        let excerpt = log::first_error(&text)
            .or_else(|| text.lines().last().map(|line| vec![line.to_string()]))
            .unwrap_or_default();
        let target = args.last().copied().unwrap_or("all").to_string();
        Err(BuildError::Compile { target, excerpt, log: self.log.to_path_buf() })
    }

    fn watch(
        &self,
        args: &[&str],
        file: &mut std::fs::File,
        on_object: &mut dyn FnMut(&str),
    ) -> Result<Ended, BuildError> {
        let failed = |what| BuildError::io(what, self.log);
        let (reader, writer) = std::io::pipe().map_err(failed("no pipe for"))?;
        let mut command = self.jail.command("make");
        command.arg("-C").arg(self.src).arg(format!("O={}", self.out.display())).args(args);
        // The same inputs give the same image: who built it when stays out of it.
        command.envs([
            ("KBUILD_BUILD_TIMESTAMP", "Thu Jan  1 00:00:00 UTC 1970"),
            ("KBUILD_BUILD_USER", "hgm"),
            ("KBUILD_BUILD_HOST", "hgm"),
            ("KBUILD_BUILD_VERSION", "1"),
        ]);
        // A group of its own: Ctrl-C reaches us, and we end all of it.
        command.stdout(writer.try_clone().map_err(failed("no pipe for"))?).stderr(writer);
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                BuildError::NoTools { missing: vec!["make".into()], packages: vec!["make".into()] }
            }
            _ => failed("cannot start make, log")(error),
        })?;
        drop(command);
        let (send, lines) = channel();
        let reader = std::thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut line = Vec::new();
            // A reader that stops would stop make: it goes on until all writers are gone.
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let _ = send.send(std::mem::take(&mut line));
            }
        });
        let stopped = loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => {
                    file.write_all(&line).map_err(failed("cannot write"))?;
                    if let Some(name) = log::object(String::from_utf8_lossy(&line).trim_end()) {
                        on_object(name);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if (self.stop)() {
                break true;
            }
        };
        if stopped {
            end(&child);
        }
        let status = child.wait().map_err(failed("lost make, log"))?;
        let _ = reader.join();
        Ok(match (stopped, status.success()) {
            (true, _) => Ended::Stopped,
            (false, true) => Ended::Well,
            (false, false) => Ended::Failed,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Well,
    Failed,
    Stopped,
}

/// Asks the whole group to end, then insists. The child is left to be waited for: until then its
/// number, and so that of the group, is nobody else's.
fn end(child: &std::process::Child) {
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    let _ = killpg(group, Signal::SIGTERM);
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    for _ in 0..50 {
        if !matches!(waitid(Id::Pid(group), look), Ok(WaitStatus::StillAlive)) {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let _ = killpg(group, Signal::SIGKILL);
}

/// Where an earlier make was killed: removes what it may have been writing, so that the next one
/// makes it again. An object cut short looks finished to make.
fn recover(out: &Path) -> Result<(), BuildError> {
    let marker = out.join(RUNNING);
    if !marker.exists() {
        return Ok(());
    }
    let mut files = Vec::new();
    outputs(out, &mut files)?;
    let newest = files.iter().map(|(_, time)| *time).max().unwrap_or(SystemTime::UNIX_EPOCH);
    for (path, time) in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let linked = name.starts_with("vmlinux") || name.starts_with(".tmp_vmlinux");
        let young = newest.duration_since(time).is_ok_and(|age| age < IN_FLIGHT);
        if linked || young {
            std::fs::remove_file(&path).map_err(BuildError::io("cannot remove", &path))?;
        }
    }
    let _ = std::fs::remove_file(&marker);
    Ok(())
}

/// Everything make wrote below `dir`, but for configuration files of ours.
fn outputs(dir: &Path, files: &mut Vec<(PathBuf, SystemTime)>) -> Result<(), BuildError> {
    for entry in std::fs::read_dir(dir).map_err(BuildError::io("cannot read", dir))? {
        let entry = entry.map_err(BuildError::io("cannot read", dir))?;
        let meta = entry.metadata().map_err(BuildError::io("cannot read", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if meta.is_dir() {
            outputs(&entry.path(), files)?;
        } else if meta.is_file() && !name.starts_with(".config") && name != RUNNING {
            files.push((entry.path(), meta.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree whose Makefile is all there is to it.
    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new(makefile: &str) -> Tree {
            let dir = tempfile::tempdir().unwrap();
            for name in ["src", "out"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            std::fs::write(dir.path().join("src/Makefile"), makefile).unwrap();
            Tree { dir }
        }
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }
        fn run(
            &self,
            stop: &dyn Fn() -> bool,
            objects: &mut Vec<String>,
        ) -> Result<(), BuildError> {
            let (src, out, log) = (self.path("src"), self.path("out"), self.path("log"));
            let (jail, _) = Jail::around(&src, &out);
            let make = Make { jail: &jail, src: &src, out: &out, log: &log, stop };
            make.run(&["all"], &mut |name| objects.push(name.into()))
        }
    }

    #[test]
    fn objects_are_counted_and_the_log_is_kept() {
        let tree = Tree::new(
            "all:\n\t@echo '  CC      a.o'\n\t@echo '  LD      x'\n\t@echo '  AS      b.o' >&2\n\
             \t@test \"$(O)\" = \"$$PWD/../out\" -o -d \"$(O)\"\n",
        );
        let mut objects = Vec::new();
        tree.run(&|| false, &mut objects).unwrap();
        assert_eq!(objects, ["a.o", "b.o"]);
        let log = std::fs::read_to_string(tree.path("log")).unwrap();
        assert!(log.contains("  LD      x"), "{log}");
        assert!(!tree.path("out").join(RUNNING).exists());
    }

    #[test]
    fn a_broken_source_file_gives_the_compilers_first_error() {
        let tree = Tree::new("all:\n\t@echo '  CC      a.o'\n\tcc -c a.c -o $(O)/a.o\n");
        let code = "int f(void)\n{\n\treturn missing_name;\n}\nint g(void) { return other; }\n";
        std::fs::write(tree.path("src/a.c"), code).unwrap();
        match tree.run(&|| false, &mut Vec::new()).unwrap_err() {
            BuildError::Compile { excerpt, target, log } => {
                let text = excerpt.join("\n");
                assert!(text.contains("a.c:3:") && text.contains("missing_name"), "{text}");
                assert!(!text.contains("other"), "{text}");
                assert_eq!((target.as_str(), log), ("all", tree.path("log")));
            }
            other => panic!("{other}"),
        }
        assert!(!tree.path("out").join(RUNNING).exists(), "make ended by itself");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let tree = Tree::new("all:\n\t@echo 'x.s: No space left on device'; exit 1\n");
        let error = tree.run(&|| false, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, BuildError::NoSpace { .. }), "{error}");
    }

    /// Somebody waits for the number of a build that is ended, and each signal is late.
    #[test]
    fn whoever_gets_the_number_of_an_ended_build_is_left_alone() {
        let name = "build::make::tests::whoever_gets_the_number_of_an_ended_build_is_left_alone";
        if !trials::pids::in_namespace(name, Some(Duration::from_millis(300))) {
            return;
        }
        let start = std::time::Instant::now();
        let (mut tried, mut lost) = (0, 0);
        for _ in 0..trials::rounds(2) {
            let mut make = std::process::Command::new("sleep");
            let mut make = make.arg("1000").process_group(0).spawn().unwrap();
            let pid = make.id();
            let waiting = std::thread::spawn(move || {
                loop {
                    match trials::pids::stranger(pid) {
                        Some(stranger) => return stranger,
                        None => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            });
            end(&make);
            make.wait().unwrap();
            let stranger = waiting.join().unwrap();
            tried += 1;
            lost += u64::from(!trials::pids::survived(stranger));
        }
        trials::fault("F11", "the number of a build is another's", tried, lost, start);
        assert_eq!(lost, 0);
    }

    #[test]
    fn a_stopped_build_ends_at_once_and_its_unfinished_object_goes() {
        let tree =
            Tree::new("all:\n\t@echo half >$(O)/cut.o\n\t@echo '  CC      cut.o'\n\t@sleep 600\n");
        let old = tree.path("out/old.o");
        std::fs::write(&old, "whole").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(3600);
        std::fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        let cut = tree.path("out/cut.o");
        let start = std::time::Instant::now();
        let error = tree.run(&|| cut.exists(), &mut Vec::new()).unwrap_err();
        assert!(matches!(error, BuildError::Stopped { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(60));
        assert!(tree.path("out").join(RUNNING).exists());

        std::fs::write(tree.path("src/Makefile"), "all:\n\t@test ! -e $(O)/cut.o\n").unwrap();
        tree.run(&|| false, &mut Vec::new()).unwrap();
        assert!(old.exists());
    }
}
