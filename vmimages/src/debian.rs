//! Debian's own kernel packages through apt: which package a name means, and its parts unpacked.
//! Nothing is installed; nothing needs root.

use crate::ImageError;
use std::cmp::Ordering;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages listed in a help line.
const OFFERED_MAX: usize = 12;
/// What is taken out of an image package, as tar patterns. The rest (300 MB of drivers) stays
/// packed.
pub const IMAGE_PARTS: &[&str] = &[
    "./boot/vmlinuz-*",
    "./boot/config-*",
    "*/kernel/arch/x86/kernel/*",
    "*/kernel/drivers/virtio/*",
    "*/kernel/drivers/char/virtio_console.ko*",
    "*/kernel/drivers/block/brd.ko*",
    "*/kernel/mm/*",
    "*/kernel/lib/*",
    "*/modules.builtin",
    "*/modules.order",
];

/// A package: a signed image, or kernel sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
}

/// The package `what` means: a series (`6.1`, newest point release), an exact ABI (`6.1.0-50`, with
/// or without `-amd64`), or a package version (`6.1.176-1`).
pub fn resolve(what: &str) -> Result<Package, ImageError> {
    let spec = format!("debian:{what}");
    if !is_version(what) {
        let why = "after `debian:` comes a version such as 6.1 or 6.1.0-50".into();
        return Err(ImageError::UnknownSpec { spec, why });
    }
    let found = if is_series(what) {
        newest(what)?
    } else {
        let abi = what.strip_suffix("-amd64").unwrap_or(what);
        match show(&format!("linux-image-{abi}-amd64"))? {
            None => of_version(what)?.map(|package| (package, String::new())),
            found => found,
        }
    };
    match found {
        Some((package, _)) => Ok(package),
        None => {
            let all = offered("linux-image-")?;
            if all.is_empty() {
                return Err(ImageError::NoLists { spec });
            }
            let prefix = images_of(what);
            let mut near: Vec<&String> = all.iter().filter(|n| n.starts_with(&prefix)).collect();
            if near.is_empty() {
                near = all.iter().collect();
            }
            let names = near.iter().rev().take(OFFERED_MAX).map(|n| spec_of(n)).collect();
            Err(ImageError::NoPackage { spec, offered: names })
        }
    }
}

fn spec_of(package: &str) -> String {
    let abi = package.trim_start_matches("linux-image-").trim_end_matches("-amd64");
    format!("debian:{abi}")
}

/// Newest image of a series: what the meta package depends on, else the highest version offered.
fn newest(series: &str) -> Result<Option<(Package, String)>, ImageError> {
    let prefix = format!("linux-image-{series}.");
    for meta in [format!("linux-image-{series}-amd64"), "linux-image-amd64".into()] {
        let Some((_, depends)) = show(&meta)? else { continue };
        for name in depends.split([',', '|']).filter_map(|d| d.split_whitespace().next()) {
            if name.starts_with(&prefix) {
                return show(name);
            }
        }
    }
    match offered(&prefix)?.last() {
        Some(name) => show(name),
        None => Ok(None),
    }
}

/// Start of the names of all images of the series a version is of.
fn images_of(version: &str) -> String {
    let series: Vec<&str> = version.split(['.', '-', '+']).take(2).collect();
    format!("linux-image-{}.", series.join("."))
}

/// The image of this package version. Its name holds the ABI, which only the lists know.
fn of_version(version: &str) -> Result<Option<Package>, ImageError> {
    let names = offered(&images_of(version))?;
    if names.is_empty() {
        return Ok(None);
    }
    let mut command = apt_cache();
    command.args(["show", "--all-versions"]).args(&names);
    let text = String::from_utf8_lossy(&output(command, "apt")?).into_owned();
    Ok(packages(&text).into_iter().find(|package| package.version == version))
}

/// Name and version of each record `apt-cache show` printed.
fn packages(text: &str) -> Vec<Package> {
    let record = |record: &str| {
        let field = |key: &str| record.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
        let (name, version) = (field("Package:")?, field("Version:")?);
        Some(Package { name: name.into(), version: version.into() })
    };
    text.split("\n\n").filter_map(record).collect()
}

/// The candidate's name and version and its Depends line.
fn show(name: &str) -> Result<Option<(Package, String)>, ImageError> {
    let mut command = apt_cache();
    command.args(["show", "--no-all-versions", name]);
    let text = match output(command, "apt") {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        // apt-cache ends with 100 and says `No packages found`.
        Err(ImageError::Command { .. }) => return Ok(None),
        Err(other) => return Err(other),
    };
    let field = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)).map(str::trim);
    let (Some(package), Some(version)) = (field("Package:"), field("Version:")) else {
        return Ok(None);
    };
    let package = Package { name: package.into(), version: version.into() };
    Ok(Some((package, field("Depends:").unwrap_or_default().into())))
}

/// Generic images apt knows whose name starts with `prefix`, oldest first.
fn offered(prefix: &str) -> Result<Vec<String>, ImageError> {
    let mut command = apt_cache();
    command.args(["pkgnames", prefix]);
    let text = String::from_utf8_lossy(&output(command, "apt")?).into_owned();
    let mut names: Vec<String> = text.lines().filter(|n| is_generic(n)).map(Into::into).collect();
    names.sort_by(|a, b| natural(a, b));
    Ok(names)
}

/// An image with a version in its name, of no special flavour.
fn is_generic(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("linux-image-") else { return false };
    let Some(abi) = rest.strip_suffix("-amd64") else { return false };
    abi.starts_with(|c: char| c.is_ascii_digit())
        && abi.matches('.').count() >= 2
        && !abi.ends_with("-cloud")
        && !abi.ends_with("-rt")
}

/// Numbers inside names compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    fn parts(text: &str) -> Vec<(u64, &str)> {
        text.split_inclusive(|c: char| !c.is_ascii_digit())
            .map(|part| {
                let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
                (part[..end].parse().unwrap_or(0), &part[end..])
            })
            .collect()
    }
    parts(a).cmp(&parts(b))
}

/// Downloads `package` into `dir` and unpacks the parts that `parts`, tar patterns, name; the
/// tree's root.
pub fn fetch(package: &Package, dir: &Path, parts: &[&str]) -> Result<PathBuf, ImageError> {
    let mut command = Command::new("apt-get");
    let exact = format!("{}={}", package.name, package.version);
    command.env("LC_ALL", "C").args(["-q", "download", &exact]).current_dir(dir);
    output(command, "apt")?;
    let deb = std::fs::read_dir(dir)
        .map_err(ImageError::io("cannot read", dir))?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .ok_or(ImageError::BadPackage { package: exact, what: ".deb file" })?;
    let root = dir.join("root");
    std::fs::create_dir(&root).map_err(ImageError::io("cannot create", &root))?;
    unpack(&deb, &root, parts)?;
    Ok(root)
}

/// The package of kernel sources `what` means: a series (`6.1`) or an exact version of one
/// (`6.1.192-2`).
pub fn resolve_source(what: &str) -> Result<Package, ImageError> {
    let spec = format!("debian:{what}");
    is_version(what).then_some(()).ok_or_else(|| ImageError::UnknownSpec {
        spec: spec.clone(),
        why: "after `debian:` comes a version such as 6.1 or 6.1.192-2".into(),
    })?;
    let series: Vec<&str> = what.split(['.', '-', '+']).take(2).collect();
    let name = format!("linux-source-{}", series.join("."));
    let asked = if is_series(what) { name } else { format!("{name}={what}") };
    if let Some((package, _)) = show(&asked)? {
        return Ok(package);
    }
    let mut command = apt_cache();
    command.args(["pkgnames", "linux-source-"]);
    let text = String::from_utf8_lossy(&output(command, "apt")?).into_owned();
    let mut offered: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("linux-source-"))
        .filter(|rest| is_series(rest))
        .map(|rest| format!("debian:{rest}"))
        .collect();
    offered.sort_by(|a, b| natural(a, b));
    if offered.is_empty() {
        return Err(ImageError::NoLists { spec });
    }
    Err(ImageError::NoPackage { spec, offered })
}

fn is_version(what: &str) -> bool {
    what.starts_with(|c: char| c.is_ascii_digit())
        && what.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+~-".contains(&b))
}

/// `6.1`: two numbers and nothing else.
fn is_series(what: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    what.split_once('.').is_some_and(|(a, b)| digits(a) && digits(b))
}

fn unpack(deb: &Path, root: &Path, parts: &[&str]) -> Result<(), ImageError> {
    let mut unpacker = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| spawn_error("dpkg-deb", "dpkg", &e))?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--wildcards", "--directory"]).arg(root).args(parts);
    if let Some(pipe) = unpacker.stdout.take() {
        tar.stdin(pipe);
    }
    let tar_done = tar.env("LC_ALL", "C").output();
    let unpacked = unpacker.wait();
    let tar_done = tar_done.map_err(|e| spawn_error("tar", "tar", &e))?;
    let failed = |stderr: String| ImageError::Command {
        command: format!("dpkg-deb --fsys-tarfile {}", deb.display()),
        stderr,
    };
    if !unpacked.is_ok_and(|status| status.success()) {
        return Err(failed("the package cannot be unpacked".into()));
    }
    // tar also fails when a pattern matched nothing, which is how a package without some part
    // looks; what is needed is checked by the caller. Any other complaint (a full disk) counts.
    let harmless = |line: &&str| {
        line.ends_with("Not found in archive")
            || line.ends_with("Exiting with failure status due to previous errors")
    };
    let stderr = String::from_utf8_lossy(&tar_done.stderr);
    match stderr.lines().find(|line| !harmless(line)) {
        Some(line) => Err(failed(line.to_string())),
        None => Ok(()),
    }
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

fn spawn_error(command: &str, package: &'static str, error: &std::io::Error) -> ImageError {
    if error.kind() == ErrorKind::NotFound {
        return ImageError::NoCommand { command: command.into(), package };
    }
    ImageError::Command { command: command.into(), stderr: error.to_string() }
}

/// The command's standard output, or the line of its standard error that says most.
pub fn output(mut command: Command, package: &'static str) -> Result<Vec<u8>, ImageError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done =
        command.stdin(Stdio::null()).output().map_err(|e| spawn_error(&name, package, &e))?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let stderr = String::from_utf8_lossy(&done.stderr);
    let args: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    Err(ImageError::Command {
        command: format!("{name} {}", args.join(" ")),
        stderr: telling(&stderr).to_string(),
    })
}

/// A full disk wherever it is named: it makes every later line wrong. Else the last line; that of
/// tar only says that there were others.
fn telling(stderr: &str) -> &str {
    let said = |line: &&str| !line.trim().is_empty() && !line.ends_with("due to previous errors");
    let full = stderr.lines().find(|line| line.contains("No space left on device"));
    full.or_else(|| stderr.lines().rfind(said)).unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_whatever_comes_after_it() {
        let tar = "tar: mm/x.c: Cannot write: No space left on device\n\
                   tar: mm/y.c: Cannot open: No such file or directory\n\
                   tar: Exiting with failure status due to previous errors\n";
        assert_eq!(telling(tar), "tar: mm/x.c: Cannot write: No space left on device");
        let torn = "tar: Unexpected EOF in archive\n\
                    tar: Exiting with failure status due to previous errors\n";
        assert_eq!(telling(torn), "tar: Unexpected EOF in archive");
        assert_eq!(telling(" \n"), "it gave no reason");
    }

    #[test]
    fn flavours_are_told_apart() {
        assert!(is_generic("linux-image-6.1.0-56-amd64"));
        assert!(is_generic("linux-image-6.12.117+deb12-amd64"));
        for other in [
            "linux-image-amd64",
            "linux-image-6.12-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-rt-amd64",
            "linux-image-6.1.0-56-amd64-dbg",
            "linux-image-6.1.0-56-amd64-unsigned",
        ] {
            assert!(!is_generic(other), "{other}");
        }
    }

    #[test]
    fn point_releases_sort_by_number() {
        let mut names = ["x-6.1.0-50", "x-6.1.0-9", "x-6.12.100+deb12", "x-6.12.99+deb12"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["x-6.1.0-9", "x-6.1.0-50", "x-6.12.99+deb12", "x-6.12.100+deb12"]);
    }

    #[test]
    fn records_give_names_and_versions() {
        let text = "Package: linux-image-6.1.0-47-amd64\nSource: linux-signed\n\
            Version: 6.1.170-3\nDescription: x\n Version: 9\n\nPackage: a\nVersion: 1\n\n\
            Package: no-version\n";
        let all = packages(text);
        let pairs: Vec<_> = all.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        assert_eq!(pairs, [("linux-image-6.1.0-47-amd64", "6.1.170-3"), ("a", "1")]);
        assert_eq!(images_of("6.1.176-1"), "linux-image-6.1.");
        assert_eq!(images_of("6.12.117-1~deb12u1"), "linux-image-6.12.");
    }

    #[test]
    fn what_is_no_version_never_reaches_apt() {
        for bad in ["", "sid", "6.1;reboot", "../x", "-o=x"] {
            for err in [resolve(bad).unwrap_err(), resolve_source(bad).unwrap_err()] {
                assert!(matches!(err, ImageError::UnknownSpec { .. }), "{bad}: {err}");
            }
        }
    }
}
