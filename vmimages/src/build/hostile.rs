//! What people bring along, broken in every way: mailboxes of patches, fragments, kernel images.

use super::{fragment, mail};
use crate::bzimage;
use std::path::Path;
use std::time::Instant;
use trials::Trial;

const SERIES: &str = "From 1 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nSubject: [PATCH 2/2] second\n\
    Content-Transfer-Encoding: quoted-printable\n\nwhy=3D\n---\n diff --git a/x b/x\n--- a/x\n+++ b/x\n\
    @@ -1 +1 @@\n-a\n+b\n\nFrom 2 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\n\
    Subject: [PATCH 1/2] first\nContent-Transfer-Encoding: base64\n\n\
    LS0tIGEveQorKysgYi95CkBAIC0xICsxIEBACi1hCitiCg==\n";

#[test]
fn mails() {
    let start = Instant::now();
    let diff = b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n".to_vec();
    let words = [
        "From 1 Mon Sep 17 00:00:00 2001\n",
        "Subject: [PATCH v2 1/3] ",
        "Re: ",
        "Content-Transfer-Encoding: base64\n\n",
        "Content-Transfer-Encoding: quoted-printable\n\n",
        "=?UTF-8?q?",
        "=\r\n",
        "\r\n",
        "@@ -0,0 +1 @@\n",
    ];
    let trial = Trial::new("mails", vec![SERIES.as_bytes().to_vec(), diff]).words(&words);
    let figures = trial.run(|bytes| {
        let Ok(pieces) = mail::pieces(bytes) else { return };
        assert!(!pieces.is_empty());
        for piece in pieces {
            assert!(mail::has_diff(&piece.bytes), "{piece:?}");
            assert!(piece.bytes.len() <= 2 * bytes.len() + 1024, "more than was there");
        }
    });
    trials::fault("F6", "mails and patches, mutated", figures.executions, 0, start);
}

#[test]
fn fragments_and_images() {
    let start = Instant::now();
    let fragment = include_bytes!("../../configs/kasan.config").to_vec();
    let mut image = vec![0u8; 1536];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
    image[0x500..0x507].copy_from_slice(b"6.1.0-1");
    let words = ["CONFIG_", "=y\n", "=m\n", "# optional: ", " is not set\n", "HdrS", "\u{7f}ELF"];
    let trial = Trial::new("images", vec![fragment, image]).words(&words);
    let figures = trial.run(|bytes| {
        if let Ok(release) = bzimage::release(Path::new("k"), bytes) {
            assert!(!release.is_empty() && release.is_ascii() && !release.contains(['/', '\0']));
        }
        let text = String::from_utf8_lossy(bytes);
        let _ = (fragment::parse(&text), fragment::settings(&text).len());
    });
    trials::fault("F6", "fragments and images, mutated", figures.executions, 0, start);
}
