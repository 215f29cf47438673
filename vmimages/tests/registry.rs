//! Kernels from Debian's packages and from files, as a user adds them. Needs apt's lists.

#![allow(clippy::unwrap_used)] // a helper outside `#[test]` may panic as a test may

use std::path::Path;
use vmimages::{ImageError, add, initramfs, kernels};

fn quiet() -> impl FnMut(&str) {
    |_: &str| ()
}

/// A file the boot header check accepts.
fn fake_bzimage(path: &Path, release: &str) {
    let mut image = vec![0u8; 2048];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
    image[0x500..0x500 + release.len()].copy_from_slice(release.as_bytes());
    std::fs::write(path, image).unwrap();
}

#[test]
fn debian_series_become_bootable_kernels() {
    let home = tempfile::tempdir().unwrap();
    let mut lines = Vec::new();
    for (spec, id, release) in
        [("debian:6.1", "debian-6.1.", "6.1."), ("debian:6.12", "debian-6.12.", "6.12.")]
    {
        let kernel = add(home.path(), spec, None, &mut |l| lines.push(l.to_string())).unwrap();
        assert!(kernel.id.starts_with(id), "{}", kernel.id);
        let json = std::fs::read_to_string(kernel.dir.join("kernel.json")).unwrap();
        assert!(json.contains(&format!("\"release\": \"{release}")), "{json}");
        for module in &kernel.modules {
            assert!(std::fs::read(module).unwrap().starts_with(b"\x7fELF"), "{module:?}");
        }
        let names: Vec<_> =
            kernel.modules.iter().map(|m| m.file_name().unwrap().to_str().unwrap()).collect();
        assert!(names.contains(&"hwpoison-inject.ko"), "{names:?}");
        let config = std::fs::read_to_string(kernel.dir.join("config")).unwrap();
        let console = names.contains(&"virtio_console.ko");
        assert!(console || config.contains("CONFIG_VIRTIO_CONSOLE=y"), "{names:?}");

        let again = add(home.path(), spec, None, &mut |l| lines.push(l.to_string())).unwrap();
        assert_eq!(again, kernel);
        assert!(lines.last().unwrap().contains("already there"));
    }
    assert_eq!(kernels(home.path()).len(), 2);
    let hidden = std::fs::read_dir(home.path().join("kernels")).unwrap().count();
    assert_eq!(hidden, 2, "temporary directories stay behind");
}

#[test]
fn an_exact_kernel_nobody_offers_lists_those_offered() {
    let home = tempfile::tempdir().unwrap();
    let err = add(home.path(), "debian:6.1.0-99999", None, &mut quiet()).unwrap_err();
    assert!(matches!(err, ImageError::NoPackage { .. }), "{err}");
    assert!(err.help().contains("debian:6.1.0-"), "{}", err.help());
}

#[test]
fn what_names_no_kernel_says_what_would() {
    let home = tempfile::tempdir().unwrap();
    for spec in ["fedora", "debian:sid", "/no/such/bzImage", "/tmp"] {
        let err = add(home.path(), spec, None, &mut quiet()).unwrap_err();
        assert!(matches!(err, ImageError::UnknownSpec { .. }), "{spec}: {err}");
        assert!(err.to_string().contains(spec));
        assert!(err.help().contains("debian:6.1"));
    }
    let junk = home.path().join("junk");
    std::fs::write(&junk, vec![b'x'; 4096]).unwrap();
    let err = add(home.path(), junk.to_str().unwrap(), None, &mut quiet()).unwrap_err();
    assert!(matches!(err, ImageError::NotAKernel { .. }), "{err}");
    assert!(kernels(home.path()).is_empty());
}

#[test]
fn a_file_with_modules_is_registered_once_under_a_name_of_its_content() {
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("bzImage");
    fake_bzimage(&image, "6.1.0-mine");
    let spec = image.to_str().unwrap();
    let bare = add(home.path(), spec, None, &mut quiet()).unwrap();
    assert!(bare.id.starts_with("6.1.0-mine-"), "{}", bare.id);
    assert!(bare.modules.is_empty());

    let modules = home.path().join("mods");
    std::fs::create_dir(&modules).unwrap();
    std::fs::write(modules.join("brd.ko"), b"\x7fELF\0depends=\0").unwrap();
    let with = add(home.path(), spec, Some(&modules), &mut quiet()).unwrap();
    assert_ne!(with.id, bare.id);
    assert_eq!(with.modules, [with.dir.join("modules/brd.ko")]);
    assert_eq!(add(home.path(), spec, Some(&modules), &mut quiet()).unwrap(), with);
    assert_eq!(kernels(home.path()).len(), 2);
}

#[test]
fn a_half_registered_kernel_is_not_listed_and_is_replaced() {
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("bzImage");
    fake_bzimage(&image, "6.1.0-half");
    let spec = image.to_str().unwrap();
    let kernel = add(home.path(), spec, None, &mut quiet()).unwrap();
    std::fs::remove_file(kernel.dir.join("kernel.json")).unwrap();
    assert!(kernels(home.path()).is_empty());
    assert_eq!(add(home.path(), spec, None, &mut quiet()).unwrap(), kernel);
    assert_eq!(kernels(home.path()), [kernel]);
}

#[test]
fn a_missing_agent_is_an_error_not_an_empty_guest() {
    let home = tempfile::tempdir().unwrap();
    let image = home.path().join("bzImage");
    fake_bzimage(&image, "6.1.0-x");
    let kernel = add(home.path(), image.to_str().unwrap(), None, &mut quiet()).unwrap();
    let err = initramfs(home.path(), &kernel, &home.path().join("agent")).unwrap_err();
    assert!(matches!(err, ImageError::Io { .. }), "{err}");
}
