//! Patch files as people keep them: one diff, one mail, or a mailbox of a series. Bytes in, bytes
//! out; what a patch does to a tree is `patches`.

use std::collections::BTreeMap;

/// One patch of a file, in the order it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its mail subject, or empty.
    pub subject: String,
    /// What `patch` reads: mail headers decoded away, the diff as it was written.
    pub bytes: Vec<u8>,
}

/// Splits a patch file. Mails without a diff (cover letters) and answers (`Re:`) are left out;
/// the rest stands in the order of `[PATCH n/m]` where all have such numbers, else as in the file.
pub fn pieces(file: &[u8]) -> Result<Vec<Piece>, String> {
    let text = without_cr(file);
    if !is_separator(text.split(|&b| b == b'\n').next().unwrap_or_default()) {
        let piece = mail(&text)?;
        return if has_diff(&piece.bytes) {
            Ok(vec![piece])
        } else {
            Err("it holds no diff".into())
        };
    }
    let mut found = Vec::new();
    for part in split(&text) {
        let piece = mail(part)?;
        let answer = piece.subject.to_ascii_lowercase().starts_with("re:");
        if !answer && has_diff(&piece.bytes) {
            found.push(piece);
        }
    }
    if found.is_empty() {
        return Err("no mail in it holds a diff".into());
    }
    in_order(found)
}

/// A file with DOS line ends at every line becomes one without; a lone CR inside a diff stays.
fn without_cr(file: &[u8]) -> Vec<u8> {
    let ends = file.iter().filter(|&&b| b == b'\n').count();
    let dos = file.windows(2).filter(|pair| pair == b"\r\n").count();
    if ends == 0 || dos != ends {
        return file.to_vec();
    }
    let mut out = Vec::with_capacity(file.len());
    for (at, &byte) in file.iter().enumerate() {
        if !(byte == b'\r' && file.get(at + 1) == Some(&b'\n')) {
            out.push(byte);
        }
    }
    out
}

/// `From ADDRESS ... hh:mm:ss YYYY`: a sentence that begins with From has no time of day.
fn is_separator(line: &[u8]) -> bool {
    let Some(rest) = line.strip_prefix(b"From ") else { return false };
    rest.windows(8).any(|w| {
        w[2] == b':'
            && w[5] == b':'
            && [0, 1, 3, 4, 6, 7].iter().all(|&digit| w[digit].is_ascii_digit())
    })
}

fn split(text: &[u8]) -> Vec<&[u8]> {
    let mut starts = Vec::new();
    let mut at = 0;
    let mut after_empty = true;
    for line in text.split_inclusive(|&b| b == b'\n') {
        if after_empty && is_separator(line) {
            starts.push(at);
        }
        after_empty = line == b"\n";
        at += line.len();
    }
    starts.push(text.len());
    starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
}

/// One mail (or a bare diff) with its transfer encoding undone.
fn mail(text: &[u8]) -> Result<Piece, String> {
    let (headers, body) = headers(text);
    let get = |name: &str| headers.get(name).map(String::as_str).unwrap_or_default();
    let subject = get("subject").trim().to_string();
    let encoding = get("content-transfer-encoding").trim().to_ascii_lowercase();
    if get("content-type").trim().to_ascii_lowercase().starts_with("multipart/") {
        let what = if subject.is_empty() { "a mail".to_string() } else { format!("`{subject}`") };
        return Err(format!("{what} is a multipart message; save its text part"));
    }
    let bytes = match encoding.as_str() {
        "quoted-printable" => quoted_printable(body),
        "base64" => base64(body).ok_or_else(|| format!("bad base64 in `{subject}`"))?,
        _ => return Ok(Piece { subject, bytes: text.to_vec() }),
    };
    Ok(Piece { subject, bytes: without_cr(&bytes) })
}

/// Mail headers, lower-case names, continuation lines joined; and the rest.
fn headers(text: &[u8]) -> (BTreeMap<String, String>, &[u8]) {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    let mut at = 0;
    for line in text.split_inclusive(|&b| b == b'\n') {
        let shown = String::from_utf8_lossy(line);
        let shown = shown.trim_end();
        if at == 0 && is_separator(line) {
            at += line.len();
            continue;
        }
        at += line.len();
        if shown.is_empty() {
            return (all, &text[at..]);
        }
        if shown.starts_with([' ', '\t']) && !last.is_empty() {
            let value = all.entry(last.clone()).or_default();
            value.push(' ');
            value.push_str(shown.trim());
            continue;
        }
        match shown.split_once(':') {
            Some((name, value))
                if !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                last = name.to_ascii_lowercase();
                all.insert(last.clone(), value.trim().to_string());
            }
            // No mail: a diff, or text before one.
            _ => return (BTreeMap::new(), text),
        }
    }
    (BTreeMap::new(), text)
}

fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let hex = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let mut out = Vec::with_capacity(body.len());
    let mut at = 0;
    while at < body.len() {
        match &body[at..] {
            [b'=', b'\r', b'\n', ..] => at += 3,
            [b'=', b'\n', ..] => at += 2,
            [b'=', a, b, ..] if hex(*a).is_some() && hex(*b).is_some() => {
                out.push(hex(*a).unwrap_or(0) << 4 | hex(*b).unwrap_or(0));
                at += 3;
            }
            [byte, ..] => {
                out.push(*byte);
                at += 1;
            }
            [] => break,
        }
    }
    out
}

fn base64(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(body.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for &byte in body.iter().filter(|b| !b.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

/// Whether `patch` would find something to do.
pub fn has_diff(bytes: &[u8]) -> bool {
    let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    lines.iter().any(|line| line.starts_with(b"diff --git "))
        || lines.windows(2).any(|w| w[0].starts_with(b"--- ") && w[1].starts_with(b"+++ "))
}

/// By the number in `[PATCH n/m]`, if all have one.
fn in_order(found: Vec<Piece>) -> Result<Vec<Piece>, String> {
    let numbers: Vec<Option<u32>> = found.iter().map(|p| number(&p.subject)).collect();
    if numbers.iter().any(Option::is_none) {
        return Ok(found);
    }
    let mut sorted = BTreeMap::new();
    for (piece, number) in found.into_iter().zip(numbers.into_iter().flatten()) {
        if sorted.insert(number, piece).is_some() {
            return Err(format!("it holds patch {number} of a series twice; keep one version"));
        }
    }
    Ok(sorted.into_values().collect())
}

/// The n of `[PATCH v2 n/m]`.
fn number(subject: &str) -> Option<u32> {
    let (tag, _) = subject.strip_prefix('[')?.split_once(']')?;
    let (n, of) = tag.split_whitespace().last()?.split_once('/')?;
    of.parse::<u32>().ok()?;
    n.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIFF: &str = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n";

    fn letter(subject: &str, extra: &str, body: &str) -> String {
        format!(
            "From 0123456789 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nSubject: {subject}\n{extra}\n\
             {body}\n"
        )
    }

    fn subjects(file: &str) -> Result<Vec<String>, String> {
        Ok(pieces(file.as_bytes())?.into_iter().map(|p| p.subject).collect())
    }

    #[test]
    fn a_bare_diff_is_one_patch_as_it_stands() {
        assert_eq!(pieces(DIFF.as_bytes()).unwrap()[0].bytes, DIFF.as_bytes());
        assert!(pieces(b"hello\n").unwrap_err().contains("no diff"));
        let dos = DIFF.replace('\n', "\r\n");
        assert_eq!(pieces(dos.as_bytes()).unwrap()[0].bytes, DIFF.as_bytes());
    }

    #[test]
    fn a_series_is_ordered_by_number_without_cover_letter_and_answers() {
        let quoted = "> diff --git a/x b/x\n> --- a/x\n";
        let file = [
            letter("[PATCH v2 0/2] all", "", "cover\n\nFrom the start it was so.\n"),
            letter("[PATCH v2 2/2] second", "", DIFF),
            letter("Re: [PATCH v2 1/2] first", "", &format!("{quoted}\n{DIFF}")),
            letter("[PATCH v2\n 1/2] first", "", DIFF),
        ]
        .concat();
        assert_eq!(subjects(&file).unwrap(), ["[PATCH v2 1/2] first", "[PATCH v2 2/2] second"]);
    }

    #[test]
    fn mails_without_numbers_keep_their_order() {
        let file = [letter("[PATCH] b", "", DIFF), letter("[PATCH] a", "", DIFF)].concat();
        assert_eq!(subjects(&file).unwrap(), ["[PATCH] b", "[PATCH] a"]);
    }

    #[test]
    fn two_versions_in_one_mailbox_are_refused() {
        let file =
            [letter("[PATCH 1/2] a", "", DIFF), letter("[PATCH v2 1/2] a", "", DIFF)].concat();
        assert!(subjects(&file).unwrap_err().contains("patch 1"));
    }

    #[test]
    fn a_sentence_beginning_with_from_does_not_split_a_mail() {
        let body = format!("why\n\nFrom here on nobody knows.\n\n{DIFF}");
        assert_eq!(pieces(letter("[PATCH] a", "", &body).as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn transfer_encodings_are_undone() {
        let quoted = DIFF.replace('=', "=3D").replace("-1 +1", "-1 =\n+1");
        let header = "Content-Transfer-Encoding: quoted-printable\n";
        let file = letter("[PATCH] a", header, &quoted);
        let bytes = &pieces(file.as_bytes()).unwrap()[0].bytes;
        assert!(String::from_utf8_lossy(bytes).starts_with(DIFF));

        let encoded = "ZGlmZiAtLWdpdCBhL3ggYi94Ci0tLSBhL3gKKysrIGIveApAQCAtMSArMSBAQAotYQorYgo=";
        let header = "Content-Transfer-Encoding: base64\n";
        let file = letter("[PATCH] a", header, encoded);
        assert_eq!(pieces(file.as_bytes()).unwrap()[0].bytes, DIFF.as_bytes());
        let broken = letter("[PATCH] a", header, "!!!");
        assert!(pieces(broken.as_bytes()).unwrap_err().contains("base64"));
        let header = "Content-Type: multipart/mixed; boundary=x\n";
        assert!(pieces(letter("p", header, DIFF).as_bytes()).unwrap_err().contains("multipart"));
    }
}
