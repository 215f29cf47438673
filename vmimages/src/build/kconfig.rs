//! Why a tree does not give a symbol: what its Kconfig files say of it. Reads, never writes.

use std::path::Path;

/// How deep a source tree is searched.
const DEPTH_MAX: u32 = 12;
/// Bytes of a Kconfig file that are read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// One line on each symbol: not in this tree, or what it depends on.
pub fn reasons(tree: &Path, names: &[&str]) -> Vec<String> {
    let mut texts = Vec::new();
    collect(tree, DEPTH_MAX, &mut texts);
    names.iter().map(|name| reason(&texts, name)).collect()
}

fn collect(dir: &Path, depth: u32, texts: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        if kind.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, texts);
        } else if kind.is_file()
            && name.as_encoded_bytes().starts_with(b"Kconfig")
            && entry.metadata().is_ok_and(|meta| meta.len() <= FILE_BYTES_MAX)
            && let Ok(bytes) = std::fs::read(entry.path())
        {
            texts.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}

fn reason(texts: &[String], name: &str) -> String {
    let entries: Vec<Vec<String>> = texts.iter().flat_map(|text| depends(text, name)).collect();
    if entries.is_empty() {
        return "no such symbol in this tree".into();
    }
    // A symbol may be declared once per architecture; each declaration is a way to have it.
    let mut ways: Vec<String> =
        entries.iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join(" && ")).collect();
    ways.sort();
    ways.dedup();
    match ways.len() {
        0 => "another option decides it".into(),
        _ => format!("depends on {}", ways.join(", or ")),
    }
}

/// The `depends on` expressions of each declaration of `name`.
fn depends(text: &str, name: &str) -> Vec<Vec<String>> {
    let mut found: Vec<Vec<String>> = Vec::new();
    let mut inside = false;
    // Conditions of the `if` blocks around the line.
    let mut around: Vec<String> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let indented = line.starts_with([' ', '\t']);
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !indented && !first.starts_with('#') {
            match first {
                "if" => around.push(words.clone().collect::<Vec<_>>().join(" ")),
                "endif" => drop(around.pop()),
                _ => {}
            }
            inside = matches!(first, "config" | "menuconfig") && words.next() == Some(name);
            if inside {
                found.push(around.iter().map(|condition| grouped(condition)).collect());
            }
            continue;
        }
        // Help text ends an entry for our purposes: prose may begin with anything.
        if inside && matches!(first, "help" | "---help---") {
            inside = false;
        }
        if inside && let Some(rest) = line.trim().strip_prefix("depends on ") {
            let mut whole = rest.trim().to_string();
            while whole.ends_with('\\') {
                whole.pop();
                whole = format!("{} {}", whole.trim(), lines.next().unwrap_or_default().trim());
            }
            if let Some(entry) = found.last_mut() {
                entry.push(grouped(&whole));
            }
        }
    }
    found
}

/// Fit to stand beside `&&`.
fn grouped(expression: &str) -> String {
    if expression.contains("||") { format!("({expression})") } else { expression.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "config KCSAN_X\n\tbool \"x\"\n\tdepends on NEVER\n\n\
        menuconfig KCSAN\n\tbool \"y\"\n\tdepends on A && B\n\tdepends on C || \\\n\t\tD\n\
        \thelp\n\t  It\n\t  depends on prose.\nconfig BARE\n\tbool\n\
        if MENU\nconfig INNER\n\tbool\n\tdepends on E\nendif # MENU\nconfig AFTER\n\tdepends on F\n";

    #[test]
    fn the_dependencies_of_a_symbol_are_quoted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("lib")).unwrap();
        std::fs::write(dir.path().join("lib/Kconfig.kcsan"), TEXT).unwrap();
        assert_eq!(
            reasons(dir.path(), &["KCSAN", "BARE", "INNER", "AFTER", "GONE"]),
            [
                "depends on A && B && (C || D)",
                "another option decides it",
                "depends on MENU && E",
                "depends on F",
                "no such symbol in this tree"
            ]
        );
    }
}
