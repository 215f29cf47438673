//! Configuration fragments: what a preset asks for, laid over a base `.config`, and whether the
//! final one gives it. Pure: texts in, texts out.
//!
//! A line is `CONFIG_X=value`, `# CONFIG_X is not set`, or a comment. The comment `# optional: WHY`
//! speaks of the next line: a tree or compiler that cannot give it is fine, and is reported.

use std::collections::BTreeMap;

/// What is asked of one symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Without `CONFIG_`.
    pub name: String,
    /// As in `.config`; `n` stands for "is not set".
    pub value: String,
    /// Why it need not hold, from the comment above it.
    pub optional: Option<String>,
}

impl Wish {
    /// The line as it stands in a `.config`.
    pub fn line(&self) -> String {
        line(&self.name, &self.value)
    }
}

fn line(name: &str, value: &str) -> String {
    match value {
        "n" => format!("# CONFIG_{name} is not set"),
        _ => format!("CONFIG_{name}={value}"),
    }
}

/// A wish the final configuration does not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    pub wish: Wish,
    /// What stands there instead: a value, or `None` where the symbol is absent.
    pub got: Option<String>,
}

impl Unmet {
    /// `CONFIG_X=y wanted, absent`.
    pub fn text(&self) -> String {
        let got = match &self.got {
            Some(value) => format!("got {}", line(&self.wish.name, value)),
            None => "absent".into(),
        };
        format!("{} wanted, {got}", self.wish.line())
    }
}

/// The wishes of a fragment, in its order. `Err` names the line that is none.
pub fn parse(text: &str) -> Result<Vec<Wish>, String> {
    let mut all = Vec::new();
    let mut optional = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some((name, value)) = setting(line) {
            let optional = optional.take();
            all.push(Wish { name: name.into(), value: value.into(), optional });
        } else if let Some(why) = line.strip_prefix("# optional:") {
            optional = Some(why.trim().to_string());
        } else if !line.is_empty() && !line.starts_with('#') {
            return Err(format!("line {}: `{line}` sets nothing", index + 1));
        }
    }
    match optional {
        Some(why) => Err(format!("`# optional: {why}` stands above no line")),
        None => Ok(all),
    }
}

/// All that is set in a `.config`, or in the `auto.conf` made of it, which lacks the quotes.
pub fn settings(text: &str) -> BTreeMap<&str, &str> {
    let set = text.lines().filter_map(|line| setting(line.trim()));
    set.filter(|(_, value)| *value != "n")
        .map(|(name, value)| (name, value.trim_matches('"')))
        .collect()
}

/// Name and value of a `.config` line.
fn setting(line: &str) -> Option<(&str, &str)> {
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        return Some((rest.strip_suffix(" is not set")?, "n"));
    }
    line.strip_prefix("CONFIG_")?.split_once('=')
}

/// Several fragments as one; a later wish on a symbol replaces the earlier one.
pub fn merge(fragments: &[Vec<Wish>]) -> Vec<Wish> {
    let mut merged: Vec<Wish> = Vec::new();
    for wish in fragments.iter().flatten() {
        merged.retain(|earlier| earlier.name != wish.name);
        merged.push(wish.clone());
    }
    merged
}

/// `base` with the wishes' symbols taken out and the wishes added.
pub fn lay_over(base: &str, wishes: &[Wish]) -> String {
    let wanted: BTreeMap<&str, ()> = wishes.iter().map(|w| (w.name.as_str(), ())).collect();
    let mut out = String::with_capacity(base.len() + wishes.len() * 32);
    for line in base.lines() {
        if !setting(line).is_some_and(|(name, _)| wanted.contains_key(name)) {
            out.push_str(line);
            out.push('\n');
        }
    }
    for wish in wishes {
        out.push_str(&wish.line());
        out.push('\n');
    }
    out
}

/// What the final `.config` does not give. A symbol that is absent counts as not set.
pub fn unmet(config: &str, wishes: &[Wish]) -> Vec<Unmet> {
    let final_of: BTreeMap<&str, &str> = config.lines().filter_map(setting).collect();
    wishes
        .iter()
        .filter_map(|wish| {
            let got = final_of.get(wish.name.as_str()).copied();
            let fine = match got {
                Some(value) => value == wish.value,
                None => wish.value == "n",
            };
            (!fine).then(|| Unmet { wish: wish.clone(), got: got.map(str::to_string) })
        })
        .collect()
}

/// Whether a symbol is `y` in a `.config`.
pub fn is_set(config: &str, name: &str) -> bool {
    config.lines().filter_map(setting).any(|(n, value)| n == name && value == "y")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Preset;

    #[test]
    fn fragments_speak_the_language_of_config_files() {
        let text = "# group\nCONFIG_A=y\n\n# optional: newer trees\n# CONFIG_B is not set\nCONFIG_S=\"-x\"\n";
        let wishes = parse(text).unwrap();
        let seen: Vec<_> = wishes.iter().map(|w| (w.name.as_str(), w.value.as_str())).collect();
        assert_eq!(seen, [("A", "y"), ("B", "n"), ("S", "\"-x\"")]);
        assert_eq!(wishes[1].optional.as_deref(), Some("newer trees"));
        assert_eq!(wishes[2].optional, None);
        assert!(parse("CONFIG_A\n").unwrap_err().contains("line 1"));
        assert!(parse("# optional: x\n").unwrap_err().contains("no line"));
    }

    #[test]
    fn a_later_wish_wins_and_stands_once() {
        let a = parse("CONFIG_A=y\nCONFIG_L=\"-plain\"\n").unwrap();
        let b = parse("# CONFIG_A is not set\nCONFIG_L=\"-kasan\"\n").unwrap();
        let merged = merge(&[a, b]);
        assert_eq!(merged.len(), 2);
        let base = "CONFIG_A=y\nCONFIG_AB=y\n# CONFIG_L is not set\n";
        let laid = lay_over(base, &merged);
        assert_eq!(laid, "CONFIG_AB=y\n# CONFIG_A is not set\nCONFIG_L=\"-kasan\"\n");
    }

    #[test]
    fn every_line_that_did_not_take_effect_is_named() {
        let wishes =
            parse("CONFIG_A=y\nCONFIG_B=17\n# CONFIG_C is not set\nCONFIG_D=y\nCONFIG_E=y\n");
        let wishes = wishes.unwrap();
        let texts: Vec<String> =
            unmet("CONFIG_A=y\nCONFIG_B=15\nCONFIG_C=y\n# CONFIG_D is not set\n", &wishes)
                .iter()
                .map(Unmet::text)
                .collect();
        assert_eq!(
            texts,
            [
                "CONFIG_B=17 wanted, got CONFIG_B=15",
                "# CONFIG_C is not set wanted, got CONFIG_C=y",
                "CONFIG_D=y wanted, got # CONFIG_D is not set",
                "CONFIG_E=y wanted, absent",
            ]
        );
        assert!(unmet("", &parse("# CONFIG_C is not set\n").unwrap()).is_empty());
    }

    #[test]
    fn the_presets_of_the_house_parse_and_build_on_each_other() {
        for preset in [Preset::Plain, Preset::Kasan, Preset::Race] {
            let wishes = preset.wishes().unwrap();
            let get = |name: &str| wishes.iter().find(|w| w.name == name).map(|w| w.value.clone());
            assert_eq!(get("MODULES").as_deref(), Some("n"), "{preset:?}");
            assert_eq!(get("VIRTIO_CONSOLE").as_deref(), Some("y"), "{preset:?}");
            let kasan = (preset == Preset::Kasan).then(|| "y".to_string());
            assert_eq!(get("KASAN"), kasan, "{preset:?}");
            assert_eq!(get("LOCALVERSION").unwrap(), format!("\"-hgm{}\"", preset.name()));
        }
    }
}
