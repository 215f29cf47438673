//! Posts over a folder: what one sends the other gets once, and what is no parcel is nobody's.

#![allow(clippy::unwrap_used)] // helpers outside `#[test]` may panic as a test may

mod support;

use hub::{Folder, Kind, Parcel, Post, Scope};
use std::path::Path;
use std::time::Duration;
use support::{Got, entry, until};

fn post(dir: &Path, scope: &str) -> Post {
    let folder = Folder::open(dir, Scope::new(scope)).unwrap();
    Post::open(Box::new(folder)).unwrap()
}

#[test]
fn a_folder_is_a_hub_too() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (post(dir.path(), "k"), post(dir.path(), "k"));
    let other = post(dir.path(), "another-kernel");
    for n in 0..50 {
        a.send(entry("k", &format!("{n}")));
    }
    // Half written, of nobody, too large, a folder: none of it is a parcel.
    let inside = dir.path().join("v1");
    until("the folder is there", || inside.is_dir());
    std::fs::write(inside.join(".tmp1234"), "x").unwrap();
    std::fs::write(inside.join("k.entry.A/../b".replace('/', "-")), "x").unwrap();
    // Whole at once: while it is written it is small enough.
    std::fs::write(inside.join(".tmp-large"), vec![0; hub::BODY_BYTES_MAX + 1]).unwrap();
    std::fs::rename(inside.join(".tmp-large"), inside.join("k.entry.large")).unwrap();
    std::fs::create_dir(inside.join("k.entry.folder")).unwrap();
    let mut got = Got::default();
    until("all arrive", || {
        got.look(&b);
        got.keys.len() == 50
    });
    let scope = Scope::new("k").unwrap();
    a.send(Parcel::new(Kind::Status, &scope, "machine", b"one".to_vec()).unwrap());
    until("what it says of itself arrives", || {
        got.look(&b);
        got.keys.contains("machine")
    });
    let late = post(dir.path(), "k");
    let mut all = Got::default();
    until("a late comer gets everything", || {
        all.look(&late);
        all.keys.len() == 51
    });
    std::thread::sleep(Duration::from_millis(500));
    got.look(&b);
    all.look(&late);
    let mut strange = Got::default();
    strange.look(&other);
    assert_eq!((got.keys.len(), all.keys.len(), strange.keys.len()), (51, 51, 0));
    assert_eq!(a.figures().sent, 51);
}
