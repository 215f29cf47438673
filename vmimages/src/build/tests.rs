//! The pipeline around make: names, keys, and what the verifier says. Real kernels are `ci/kernels`.

use super::*;
use std::collections::BTreeSet;

fn spec<'a>(home: &'a Path, source: &'a str) -> BuildSpec<'a> {
    BuildSpec {
        home,
        source,
        patches: &[],
        preset: Preset::Kasan,
        name: None,
        jobs: 1,
        fixes: None,
    }
}

fn source(how: mirror::How) -> Source {
    Source {
        label: "6.1.192-2".into(),
        about: "test".into(),
        root: "/src".into(),
        files: BTreeSet::new(),
        hash: "hash".into(),
        how,
        series: "6.1".into(),
    }
}

fn patch(text: &str, base_fix: bool) -> AppliedPatch {
    let blake3 = blake3::hash(text.as_bytes()).to_hex().to_string();
    AppliedPatch { name: text.into(), blake3, base_fix }
}

fn inputs() -> Build {
    Build {
        key: String::new(),
        preset: "kasan".into(),
        source_blake3: "s".into(),
        patches: vec![patch("a", false), patch("b", false)],
        compiler: "gcc 12".into(),
        config_blake3: String::new(),
        left_out: Vec::new(),
    }
}

#[test]
fn every_input_is_in_the_key_and_nothing_else() {
    let wishes = fragment::parse("CONFIG_A=y\nCONFIG_B=y\n").unwrap();
    let first = key(&inputs(), &wishes);
    assert_eq!(key(&inputs(), &wishes), first);
    let words = fragment::parse("# words\nCONFIG_A=y\n# optional: x\nCONFIG_B=y\n").unwrap();
    assert_eq!(key(&inputs(), &words), first, "comments decide nothing");
    assert_ne!(key(&inputs(), &wishes[1..]), first);
    let changes: [fn(&mut Build); 6] = [
        |b| b.source_blake3 = "t".into(),
        |b| b.preset = "plain".into(),
        |b| b.compiler = "gcc 13".into(),
        |b| b.patches.reverse(),
        |b| drop(b.patches.pop()),
        |b| b.patches[0].blake3 = "other".into(),
    ];
    for change in changes {
        let mut other = inputs();
        change(&mut other);
        assert_ne!(key(&other, &wishes), first);
    }
    let mut renamed = inputs();
    renamed.patches[0].name = "z".into();
    assert_eq!(key(&renamed, &wishes), first, "a name decides nothing");
}

#[test]
fn names_say_preset_and_tree_and_tell_patches_apart() {
    let home = Path::new("/home");
    let fixes = Path::new("/fixes");
    let debian = source(mirror::How::Link);
    let mut spec = spec(home, "debian:6.1");
    let fix = [patch("fix", true)];
    assert_eq!(default_name(&spec, &debian, &fix), "kasan-6.1.192-2-nofix");
    spec.fixes = Some(fixes);
    assert_eq!(default_name(&spec, &debian, &fix), "kasan-6.1.192-2");
    let one = default_name(&spec, &debian, &[patch("a", false)]);
    let two = default_name(&spec, &debian, &[patch("b", false)]);
    assert!(one != two && one.starts_with("kasan-6.1.192-2-"), "{one} {two}");
    let own = default_name(&spec, &source(mirror::How::Copy), &[]);
    assert!(own.starts_with("kasan-6.1.192-2-") && is_name(&own), "{own}");
    // Patched or not, the objects are shared.
    assert_eq!(folder(&spec, &debian), "kasan-6.1.192-2");
}

#[test]
fn a_name_is_one_visible_word() {
    for good in ["kasan-6.1", "a", "my_tree+1~2"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", ".x", "-x", "a/b", "..", "a b", "a\n", &"x".repeat(65)] {
        assert!(!is_name(bad), "{bad}");
    }
}

#[test]
fn lines_without_effect_are_fatal_unless_optional() {
    let tree = tempfile::tempdir().unwrap();
    std::fs::write(tree.path().join("Kconfig"), "config NEW\n\tbool\n\tdepends on GCC_99\n")
        .unwrap();
    let wishes = fragment::parse("# optional: gcc 99\nCONFIG_NEW=y\nCONFIG_A=y\n").unwrap();
    let left = verify("CONFIG_A=y\n", &wishes, tree.path(), Preset::Plain).unwrap();
    assert_eq!(left, ["CONFIG_NEW=y wanted, absent (gcc 99; depends on GCC_99)"]);
    let error = verify("CONFIG_NEW=y\n", &wishes, tree.path(), Preset::Plain).unwrap_err();
    assert!(error.is_trees_fault());
    assert_eq!(error.cause(), ["CONFIG_A=y wanted, absent (no such symbol in this tree)"]);
}

#[test]
fn a_source_that_is_none_starts_nothing() {
    let home = tempfile::tempdir().unwrap();
    let mut spec = spec(home.path(), "/no/such/tree");
    let error = build(&spec, &|| false, &mut |_| ()).unwrap_err();
    // Without the tools that is said first.
    assert!(error.is_users_mistake() || matches!(error, BuildError::NoTools { .. }), "{error}");
    spec.name = Some("../x");
    let error = build(&spec, &|| false, &mut |_| ()).unwrap_err();
    assert!(matches!(error, BuildError::BadName { .. }), "{error}");
    assert!(!home.path().join("builds").exists());
}

#[test]
fn the_base_fixes_of_the_house_say_why_and_touch_something() {
    let fixes = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixes");
    for needed in ["LICENSE", "README.md"] {
        assert!(fixes.join(needed).is_file(), "{needed}");
    }
    let series: Vec<PathBuf> = std::fs::read_dir(&fixes)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    assert!(series.iter().any(|dir| dir.ends_with("6.1")));
    let every: Vec<PathBuf> =
        series.iter().map(|dir| dir.join("every")).filter(|dir| dir.is_dir()).collect();
    assert_eq!(every.len(), 2, "the driver of pins is wrong in both series");
    let plain = series.iter().filter(|dir| holds_patches(dir)).cloned();
    for patch in patches::load(&plain.chain(every).collect::<Vec<_>>()).unwrap() {
        let text = String::from_utf8_lossy(&patch.bytes).into_owned();
        let (message, diff) = text.split_once("\n---\n").expect("a message above the diff");
        assert!(message.starts_with("Subject: [PATCH] mm/"), "{}", patch.name);
        assert!(message.lines().count() > 5 && diff.contains("\n@@ "), "{}", patch.name);
    }
}
