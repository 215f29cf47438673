//! The whole way from a source folder to a registered kernel, with real patches, real make and a
//! real compiler on a tree of one C file. Real kernels take minutes: `ci/kernels` builds those.

#![allow(clippy::unwrap_used)] // a helper outside `#[test]` may panic as a test may

use std::path::{Path, PathBuf};
use vmimages::{BuildError, BuildSpec, Built, Event, Preset, build, kernels};

/// What the kernel's own Makefile does for us, in small: three targets, `O=`, objects that depend
/// on their source. The image is a boot header with the object behind it.
const MAKEFILE: &str = r#"VERSION = 6
PATCHLEVEL = 1
KCONFIG_CONFIG ?= .config
SRC := $(CURDIR)
KCONFIG_AUTOCONFIG ?= $(O)/include/config/auto.conf
allnoconfig:
	@echo '# CONFIG_KASAN is not set' >$(O)/$(KCONFIG_CONFIG)
	@test -e $(KCONFIG_AUTOCONFIG) || { mkdir -p $(O)/include/config; touch $(KCONFIG_AUTOCONFIG); }
olddefconfig:
	@sed -i '/CONFIG_DAMON=y/d' $(O)/$(KCONFIG_CONFIG).none 2>/dev/null || true
$(O)/a.o: mm/a.c
	@echo '  CC      mm/a.o'
	@cc -c mm/a.c -o $(O)/a.o
$(O)/b.o: mm/b.c
	@echo '  CC      mm/b.o'
	@cc -c mm/b.c -o $(O)/b.o
$(O)/include/config/auto.conf: $(O)/.config
	@mkdir -p $(O)/include/config
	@sed -n 's/"//g; /^CONFIG/p' $(O)/.config >$@
bzImage: $(O)/include/config/auto.conf $(O)/a.o $(O)/b.o
	@mkdir -p $(O)/arch/x86/boot
	@sh image.sh $(O)/arch/x86/boot/bzImage
	@cat $(O)/a.o $(O)/b.o >>$(O)/arch/x86/boot/bzImage
	@cp $(O)/a.o $(O)/vmlinux
	@cp $(O)/a.o $(O)/vmlinux.o
"#;

/// The boot sector of Documentation/x86/boot.rst as far as it is looked at.
const IMAGE: &str = r#"head -c 2048 /dev/zero >"$1"
put() { printf "$2" | dd of="$1" bs=1 seek="$3" conv=notrunc 2>/dev/null; }
put "$1" '\125\252' 510
put "$1" HdrS 514
put "$1" '\017\002' 518
put "$1" '\000\003' 526
put "$1" '6.1.0-tiny' 1280
"#;

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree { dir };
        for folder in ["linux/arch/x86", "linux/scripts/kconfig", "linux/mm", "home"] {
            std::fs::create_dir_all(tree.path(folder)).unwrap();
        }
        tree.write("linux/Makefile", MAKEFILE);
        tree.write("linux/Kconfig", "config DAMON\n\tbool\n\tdepends on SYSFS\n");
        tree.write("linux/image.sh", IMAGE);
        tree.write("linux/mm/a.c", "int a(void)\n{\n\treturn 1;\n}\n");
        tree.write("linux/mm/b.c", "int b;\n");
        tree
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
    /// A patch that makes `return 1` something else.
    fn patch(&self, name: &str, instead: &str) -> PathBuf {
        self.write(
            name,
            &format!(
                "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -1,4 +1,4 @@\n int a(void)\n {{\n-\treturn 1;\n\
                 +\treturn {instead};\n }}\n"
            ),
        );
        self.path(name)
    }
    fn build(&self, patches: &[PathBuf]) -> (Result<Built, BuildError>, Vec<String>) {
        self.build_as(patches, Preset::Plain, None)
    }
    fn build_as(
        &self,
        patches: &[PathBuf],
        preset: Preset,
        fixes: Option<&Path>,
    ) -> (Result<Built, BuildError>, Vec<String>) {
        let (home, source) = (self.path("home"), self.path("linux"));
        let spec = BuildSpec {
            home: &home,
            source: source.to_str().unwrap(),
            patches,
            preset,
            name: Some("tiny"),
            jobs: 1,
            fixes,
        };
        let mut heard = Vec::new();
        let built = build(&spec, &|| false, &mut |event| {
            heard.push(match event {
                Event::Step(text) => text.to_string(),
                Event::Warning { what, .. } => format!("warning {what}"),
                Event::Object { name, done, .. } => format!("object {done} {name}"),
            });
        });
        (built, heard)
    }
    /// Names and contents of the user's tree.
    fn sources(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        let mut dirs = vec![self.path("linux")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    all.push((path.clone(), std::fs::read(path).unwrap()));
                }
            }
        }
        all.sort();
        all
    }
}

#[test]
fn sources_become_a_kernel_and_the_same_inputs_are_built_once() {
    let tree = Tree::new();
    let before = tree.sources();
    let (built, heard) = tree.build(&[]);
    let built = built.unwrap();
    assert_eq!((built.kernel.id.as_str(), built.cached, built.objects), ("tiny", false, 2));
    assert_eq!(built.kernel.release, "6.1.0-tiny");
    assert!(built.kernel.vmlinux.as_ref().unwrap().is_file());
    let config = std::fs::read_to_string(built.kernel.dir.join("config")).unwrap();
    assert!(config.contains("CONFIG_HUGETLBFS=y\n"), "{config}");
    let record = built.kernel.build.as_ref().unwrap();
    assert!(record.compiler.contains("gcc") && record.patches.is_empty(), "{record:?}");
    assert_eq!((record.preset.as_str(), record.source_blake3.len()), ("plain", 64));
    assert!(heard.iter().any(|line| line.starts_with("object 2 ")), "{heard:?}");
    assert_eq!(kernels(&tree.path("home")), std::slice::from_ref(&built.kernel));

    let (again, heard) = tree.build(&[]);
    let again = again.unwrap();
    assert!(again.cached && again.kernel == built.kernel, "{heard:?}");
    assert!(!heard.iter().any(|line| line.starts_with("object")), "{heard:?}");
    assert_eq!(tree.sources(), before, "the user's tree is never written");
}

#[test]
fn a_changed_patch_compiles_only_what_it_touches() {
    let tree = Tree::new();
    let first = tree.build(&[]).0.unwrap().kernel;
    let image = |kernel: &vmimages::Kernel| std::fs::read(&kernel.image).unwrap();
    let plain = image(&first);
    for instead in ["2", "3"] {
        let (built, heard) = tree.build(&[tree.patch("p.patch", instead)]);
        let built = built.unwrap();
        assert_eq!(built.objects, 1, "{heard:?}");
        assert_eq!(built.kernel.build.as_ref().unwrap().patches[0].name, "p.patch");
        assert_ne!(image(&built.kernel), plain);
    }
    // Without it the first kernel comes back, byte for byte.
    let (back, heard) = tree.build(&[]);
    let back = back.unwrap();
    assert!(!back.cached && back.objects == 1, "{heard:?}");
    assert_eq!(image(&back.kernel), plain);
    assert_eq!(kernels(&tree.path("home")).len(), 1);
}

/// A build that is interrupted as it begins loses its young `auto.conf`, and kconfig writes a missing
/// one of whatever configuration it has at hand. Make trusts it where it is newer than `.config`.
#[test]
fn the_configuration_compiled_with_is_the_one_that_was_checked() {
    let tree = Tree::new();
    tree.build(&[]).0.unwrap();
    let auto = tree.path("home/builds/tiny/out/include/config/auto.conf");
    let right = std::fs::read_to_string(&auto).unwrap();
    assert!(right.contains("CONFIG_HUGETLBFS=y\n"), "{right}");
    for left_behind in [Some("CONFIG_X86=y\n"), None] {
        match left_behind {
            Some(text) => std::fs::write(&auto, text).unwrap(),
            None => std::fs::remove_file(&auto).unwrap(),
        }
        let instead = if left_behind.is_some() { "2" } else { "3" };
        tree.build(&[tree.patch("p.patch", instead)]).0.unwrap();
        assert_eq!(std::fs::read_to_string(&auto).unwrap(), right, "{left_behind:?}");
    }
}

#[test]
fn what_does_not_build_leaves_the_registered_kernel_alone() {
    let tree = Tree::new();
    let first = tree.build(&[]).0.unwrap().kernel;
    let error = tree.build(&[tree.patch("p.patch", "missing")]).0.unwrap_err();
    assert!(error.is_trees_fault());
    let cause = error.cause().join("\n");
    assert!(cause.contains("mm/a.c:3:") && cause.contains("missing"), "{cause}");
    assert!(error.help().contains("build.log"), "{}", error.help());

    tree.write("bad.patch", "--- a/mm/a.c\n+++ b/mm/a.c\n@@ -1 +1 @@\n-int c;\n+int d;\n");
    let error = tree.build(&[tree.path("bad.patch")]).0.unwrap_err();
    assert!(error.is_trees_fault());
    assert_eq!(
        error.to_string(),
        "the patch bad.patch does not apply: mm/a.c: hunk 1 does not fit at line 1"
    );
    assert_eq!(kernels(&tree.path("home")), [first]);
    let left = std::fs::read_dir(tree.path("home/builds")).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["tiny"], "temporary files stay behind");
}

#[test]
fn a_line_without_effect_stops_the_build_and_says_what_it_depends_on() {
    let tree = Tree::new();
    let makefile = MAKEFILE.replace(".none 2>/dev/null || true", "");
    tree.write("linux/Makefile", &makefile);
    let error = tree.build(&[]).0.unwrap_err();
    assert!(matches!(error, BuildError::Config { .. }), "{error}");
    assert_eq!(error.cause(), ["CONFIG_DAMON=y wanted, absent (depends on SYSFS)"]);
    assert!(kernels(&tree.path("home")).is_empty());
}

#[test]
fn debug_presets_get_the_base_fixes_that_apply() {
    let tree = Tree::new();
    std::fs::create_dir_all(tree.path("fixes/6.1/every")).unwrap();
    tree.patch("fixes/6.1/0001-good.patch", "4");
    tree.patch("fixes/6.1/0002-late.patch", "5");
    let fixes = tree.path("fixes");
    let (built, heard) = tree.build_as(&[], Preset::Kasan, Some(&fixes));
    let build = built.unwrap().kernel.build.unwrap();
    assert_eq!(build.patches.len(), 1);
    assert!(build.patches[0].base_fix && build.patches[0].name == "0001-good.patch");
    assert!(heard.iter().any(|l| l.starts_with("base fix 0002-late.patch left out")), "{heard:?}");

    // The user's patch goes first; a fix that then does not fit is not needed.
    let (built, _) = tree.build_as(&[tree.patch("p.patch", "6")], Preset::Kasan, Some(&fixes));
    let build = built.unwrap().kernel.build.unwrap();
    assert!(build.patches.len() == 1 && !build.patches[0].base_fix, "{:?}", build.patches);
    let (built, _) = tree.build_as(&[], Preset::Plain, Some(&fixes));
    assert!(built.unwrap().kernel.build.unwrap().patches.is_empty());

    // What is wrong for every preset is put right in every preset.
    tree.patch("fixes/6.1/every/0001-driver.patch", "7");
    let (built, _) = tree.build_as(&[], Preset::Plain, Some(&fixes));
    let build = built.unwrap().kernel.build.unwrap();
    assert!(build.patches.len() == 1 && build.patches[0].base_fix, "{:?}", build.patches);
}

#[test]
fn a_name_of_a_kernel_from_elsewhere_is_not_taken() {
    let tree = Tree::new();
    let kernel = tree.build(&[]).0.unwrap().kernel;
    // As `hgm kernel add` registers one: no record of a build.
    let json = kernel.dir.join("kernel.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    manifest.as_object_mut().unwrap().remove("build");
    std::fs::write(&json, manifest.to_string()).unwrap();
    let error = tree.build(&[]).0.unwrap_err();
    assert!(matches!(error, BuildError::NameTaken { .. }), "{error}");
}
