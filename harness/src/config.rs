//! Configuration: one table of keys, `hgm.toml` with profiles, environment, flags.
//!
//! Order, later wins: built-in default, `[profile.default]`, the chosen profile, `HGM_<KEY>`,
//! flags. Every value remembers where it came from. An unknown key is an error, never ignored.

use crate::cli::{
    AccelChoice, CoverageChoice, GlobalArgs, GuideChoice, JailChoice, LookChoice, Override,
};
use crate::exit::{ExpectedError, nearest};
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Bytes of a configuration file that are read at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// File looked for in the current folder.
const FILE_NAME: &str = "hgm.toml";

/// What a key may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int {
        min: u64,
        max: u64,
    },
    Bool,
    Text,
    Path,
    Choice(&'static [&'static str]),
    /// "90s", "10m", "1h30m".
    Duration,
}

/// One row of the table behind `hgm help config`.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    /// As in the file, without quotes; empty means unset.
    pub default: &'static str,
    pub about: &'static str,
}

const fn key(name: &'static str, kind: Kind, default: &'static str, about: &'static str) -> Key {
    Key { name, kind, default, about }
}
const fn int(min: u64, max: u64) -> Kind {
    Kind::Int { min, max }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    key("kernel", Kind::Text, "", "registered kernel, by name or shortest unique prefix"),
    key("jobs", int(1, 256), "", "VMs at a time; unset: one per host CPU"),
    key("verify", Kind::Text, "", "kernel that checks what a campaign finds interesting"),
    key("verify_jobs", int(1, 255), "1", "of the VMs of a campaign, those of the checking kernel"),
    key("vcpus", int(1, 16), "2", "CPUs of one VM"),
    key("memory_mib", int(256, 65536), "4096", "memory of one VM, in MiB; 1 GiB pages need 4096"),
    key("accel", Kind::Choice(&["auto", "kvm", "tcg"]), "auto", "how VMs run"),
    key(
        "jail",
        Kind::Choice(&["auto", "on", "off"]),
        "auto",
        "a wall around QEMU (bubblewrap); auto: a must under TCG, used under KVM where it works",
    ),
    key("qemu", Kind::Path, "qemu-system-x86_64", "QEMU: a path, or a name looked up in PATH"),
    key("cmdline", Kind::Text, "", "words added to the kernel command line"),
    key("boot_timeout_s", int(1, 3600), "120", "seconds until a booting VM is given up"),
    key("op_timeout_ms", int(10, 600_000), "5000", "milliseconds until one op is broken off"),
    key("duration", Kind::Duration, "", "length of a campaign; unset: until stopped"),
    key("corpus", Kind::Path, "", "corpus folder; unset: corpus/ in the home"),
    key("confirm_times", int(1, 1000), "5", "replays of a violation before it is reported"),
    key("confirm_need", int(1, 1000), "3", "of these, those that must show it to fail a gate"),
    key("canaries", Kind::Bool, "true", "plant faults that the pipeline must find"),
    key("canary_every_s", int(10, 86400), "600", "seconds between planted faults"),
    key(
        "coverage",
        Kind::Choice(&["auto", "plugin", "kcov", "off"]),
        "auto",
        "who counts executed kernel text; auto: the plugin under TCG, KCOV under KVM",
    ),
    key(
        "guide",
        Kind::Choice(&["all", "states", "nothing"]),
        "all",
        "what new programs are made by: states and coverage, states, or chance alone",
    ),
    key("look", Kind::Choice(&["each", "asked"]), "each", "when mappings are looked at"),
    key("hub", Kind::Text, "", "exchange with other machines: nats://, tls:// or file:/// address"),
    key("hub_credentials", Kind::Path, "", "file with the hub's token or the seed of an nkey"),
    key("hub_ca", Kind::Path, "", "certificates to trust besides the system's, for tls:// (PEM)"),
    key("hub_plain", Kind::Bool, "false", "talk in the clear to a hub on another machine"),
    key("hub_wait_s", int(1, 86400), "120", "seconds until work nobody does is given up"),
    key("snapshots", Kind::Bool, "true", "clone VMs from one that booted, instead of booting each"),
    key("batch", int(1, 256), "16", "programs sent to a VM ahead of their results"),
    key("vm_programs_max", int(1, 10_000_000), "20000", "programs until a VM is replaced"),
    key("programs_min", int(0, 1 << 40), "100", "fewer programs than this are inconclusive"),
    key("states_min", int(0, 1 << 40), "100", "fewer mapping states leave a gate inconclusive"),
];

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { file: PathBuf, line: usize, profile: String },
    Env(String),
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { file, line, profile } => {
                write!(f, "{}:{line} (profile {profile})", file.display())
            }
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// One key's value and origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub key: &'static str,
    /// Empty means unset.
    pub value: OsString,
    pub origin: Origin,
}

/// A fault in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// From 1; 0 if the fault is the file as a whole.
    pub line: usize,
    pub message: String,
    pub help: String,
}

/// The configuration of one call, ready to use.
#[derive(Clone, Debug)]
pub struct Config {
    pub profile: String,
    pub file: Option<PathBuf>,
    pub kernel: Option<String>,
    pub jobs: u32,
    pub verify: Option<String>,
    pub verify_jobs: u32,
    pub vcpus: u8,
    pub memory_mib: u32,
    pub accel: AccelChoice,
    pub jail: JailChoice,
    pub qemu: PathBuf,
    pub cmdline: String,
    pub boot_timeout: Duration,
    pub op_timeout: Duration,
    pub duration: Option<Duration>,
    pub corpus: Option<PathBuf>,
    pub confirm_times: u32,
    pub confirm_need: u32,
    pub canaries: bool,
    pub canary_every: Duration,
    pub look: LookChoice,
    pub hub: Option<String>,
    pub hub_credentials: Option<PathBuf>,
    pub hub_ca: Option<PathBuf>,
    pub hub_plain: bool,
    pub hub_wait: Duration,
    pub snapshots: bool,
    pub coverage: CoverageChoice,
    pub guide: GuideChoice,
    pub batch: u32,
    pub vm_programs_max: u32,
    pub programs_min: u64,
    pub states_min: u64,
    /// All of the above, as text, with origins; in the order of [`KEYS`].
    pub settings: Vec<Setting>,
}

impl Config {
    /// Reads file and environment, lays flags over them.
    pub fn load(global: &GlobalArgs, flags: &[Override]) -> Result<Config, ExpectedError> {
        let env_text = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let mut values = defaults();
        let file = find_file(global)?;
        let profile = match (&global.profile, env_text("HGM_PROFILE")) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => "default".to_owned(),
        };
        let profiles = match &file {
            Some(path) => read_file(path)?.map_err(|faults| fault_error(path, &faults))?,
            None => Profiles::new(),
        };
        if profile != "default" && !profiles.contains_key(&profile) {
            return Err(unknown_profile(&profile, file.as_deref(), &profiles));
        }
        lay_profile(&mut values, &profiles, "default", file.as_deref());
        lay_profile(&mut values, &profiles, &profile, file.as_deref());
        for key in KEYS {
            let name = format!("HGM_{}", key.name.to_uppercase());
            if let Some(text) = env_text(&name) {
                check(key, &text).map_err(|why| {
                    ExpectedError::config(format!("bad {name}: {why}"), key_help(key))
                })?;
                values.insert(key.name, (text, Origin::Env(name)));
            }
        }
        for flag in flags.iter().chain(&set_flags(&global.set)?) {
            let key = find_key(&flag.key).ok_or_else(|| {
                let (what, help) = unknown_key(&flag.key, "--set");
                ExpectedError::usage(what, help)
            })?;
            check(key, &flag.value).map_err(|why| {
                ExpectedError::usage(format!("bad value for {}: {why}", flag.flag), key_help(key))
            })?;
            values.insert(key.name, (flag.value.clone(), Origin::Flag(flag.flag.clone())));
        }
        Ok(build(profile, file, values))
    }

    /// Whether nobody set `key`.
    pub fn is_default(&self, key: &str) -> bool {
        self.settings.iter().any(|s| s.key == key && s.origin == Origin::Default)
    }

    /// Defaults only, for verbs that must work beside a broken file.
    pub fn builtin() -> Config {
        build("default".to_owned(), None, defaults())
    }
}

/// Profile name → key → (value, line).
type Profiles = BTreeMap<String, BTreeMap<&'static str, (OsString, usize)>>;
type Values = BTreeMap<&'static str, (OsString, Origin)>;

fn defaults() -> Values {
    let value = |key: &Key| match key.name {
        "jobs" => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
        _ => key.default.to_owned(),
    };
    KEYS.iter().map(|key| (key.name, (value(key).into(), Origin::Default))).collect()
}

fn lay_profile(values: &mut Values, profiles: &Profiles, name: &str, file: Option<&Path>) {
    let (Some(keys), Some(file)) = (profiles.get(name), file) else { return };
    for (key, (value, line)) in keys {
        let origin = Origin::File { file: file.to_owned(), line: *line, profile: name.to_owned() };
        values.insert(key, (value.clone(), origin));
    }
}

/// All values are checked when they enter the map, so what does not parse here is a default.
fn build(profile: String, file: Option<PathBuf>, values: Values) -> Config {
    let raw = |name: &str| values.get(name).map(|(value, _)| value.as_os_str()).unwrap_or_default();
    let text = |name: &str| raw(name).to_string_lossy().into_owned();
    let number = |name: &str| text(name).parse::<u64>().unwrap_or(1);
    let small = |name: &str| u32::try_from(number(name)).unwrap_or(u32::MAX);
    let path = |name: &str| Some(PathBuf::from(raw(name))).filter(|p| !p.as_os_str().is_empty());
    let seconds = |name: &str| Duration::from_secs(number(name));
    let settings = KEYS
        .iter()
        .filter_map(|key| values.get(key.name).map(|value| (key.name, value)))
        .map(|(key, (value, origin))| Setting { key, value: value.clone(), origin: origin.clone() })
        .collect();
    Config {
        profile,
        file,
        kernel: Some(text("kernel")).filter(|name| !name.is_empty()),
        jobs: small("jobs"),
        verify: Some(text("verify")).filter(|name| !name.is_empty()),
        verify_jobs: small("verify_jobs"),
        vcpus: u8::try_from(number("vcpus")).unwrap_or(1),
        memory_mib: small("memory_mib"),
        accel: AccelChoice::from_str(&text("accel"), false).unwrap_or(AccelChoice::Auto),
        jail: JailChoice::from_str(&text("jail"), false).unwrap_or(JailChoice::On),
        qemu: path("qemu").unwrap_or_default(),
        cmdline: text("cmdline"),
        boot_timeout: seconds("boot_timeout_s"),
        op_timeout: Duration::from_millis(number("op_timeout_ms")),
        duration: parse_duration(&text("duration")).ok(),
        corpus: path("corpus"),
        confirm_times: small("confirm_times"),
        confirm_need: small("confirm_need"),
        canaries: text("canaries") == "true",
        canary_every: seconds("canary_every_s"),
        look: LookChoice::from_str(&text("look"), false).unwrap_or(LookChoice::Asked),
        hub: Some(text("hub")).filter(|address| !address.is_empty()),
        hub_credentials: path("hub_credentials"),
        hub_ca: path("hub_ca"),
        hub_plain: text("hub_plain") == "true",
        hub_wait: seconds("hub_wait_s"),
        snapshots: text("snapshots") == "true",
        coverage: CoverageChoice::from_str(&text("coverage"), false).unwrap_or(CoverageChoice::Off),
        guide: GuideChoice::from_str(&text("guide"), false).unwrap_or(GuideChoice::All),
        batch: small("batch"),
        vm_programs_max: small("vm_programs_max"),
        programs_min: number("programs_min"),
        states_min: number("states_min"),
        settings,
    }
}

/// `--config`, `$HGM_CONFIG`, `./hgm.toml` if there.
pub fn find_file(global: &GlobalArgs) -> Result<Option<PathBuf>, ExpectedError> {
    let named = global.config.clone().or_else(|| {
        std::env::var_os("HGM_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from)
    });
    if let Some(path) = named {
        if path.is_file() {
            return Ok(Some(path));
        }
        return Err(ExpectedError::config(
            format!("no configuration file {}", path.display()),
            "check --config and HGM_CONFIG; hgm help config shows what the file may hold",
        ));
    }
    let here = PathBuf::from(FILE_NAME);
    Ok(here.is_file().then_some(here))
}

/// Outer error: the file cannot be read. Inner: its faults.
fn read_file(path: &Path) -> Result<Result<Profiles, Vec<Fault>>, ExpectedError> {
    let unreadable = |why: String| {
        ExpectedError::config(
            format!("cannot read configuration file {}", path.display()),
            "check that it is a readable UTF-8 text file",
        )
        .cause(why)
    };
    let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(unreadable(format!("{size} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    let bytes = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| unreadable(error.to_string()))?;
    Ok(parse(&text))
}

/// All faults of a file, in line order; empty if it is fine.
pub fn faults_of(path: &Path) -> Result<Vec<Fault>, ExpectedError> {
    Ok(read_file(path)?.err().unwrap_or_default())
}

fn fault_error(path: &Path, faults: &[Fault]) -> ExpectedError {
    let Some(first) = faults.first() else {
        return ExpectedError::config(format!("bad {}", path.display()), "hgm config check");
    };
    let error = ExpectedError::config(
        format!("{}:{}: {}", path.display(), first.line, first.message),
        first.help.clone(),
    );
    match faults.len() {
        1 => error,
        more => error.cause(format!("and {} more; hgm config check lists all", more - 1)),
    }
}

fn unknown_profile(name: &str, file: Option<&Path>, profiles: &Profiles) -> ExpectedError {
    let names: Vec<&str> = profiles.keys().map(String::as_str).collect();
    let place = match file {
        Some(path) => format!("no profile {name} in {}", path.display()),
        None => format!("no profile {name}: there is no configuration file"),
    };
    let help = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if names.is_empty() => format!("add a [profile.{name}] section to hgm.toml"),
        None => format!("profiles there: {}", names.join(", ")),
    };
    ExpectedError::config(place, help)
}

/// Profiles of a configuration text, or all its faults.
fn parse(text: &str) -> Result<Profiles, Vec<Fault>> {
    let line_of = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let root = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| line_of(span.start));
        let message = error.message().trim().replace('\n', "; ");
        vec![Fault { line, message, help: "the file is TOML; see hgm help config".into() }]
    })?;
    let mut profiles = Profiles::new();
    let mut faults = Vec::new();
    for (name, value) in root.get_ref() {
        let line = line_of(name.span().start);
        let word = name.get_ref().as_ref();
        match (word, value.get_ref()) {
            ("profile", DeValue::Table(table)) => {
                for (profile, body) in table {
                    let keys = parse_profile(profile, body, &line_of, &mut faults);
                    profiles.insert(profile.get_ref().to_string(), keys);
                }
            }
            _ => {
                let help = match find_key(word) {
                    Some(_) => format!("put `{word}` under [profile.default]"),
                    None => "only [profile.NAME] sections stand at the top".to_owned(),
                };
                faults.push(Fault { line, message: format!("unknown key `{word}`"), help });
            }
        }
    }
    faults.sort_by_key(|fault| fault.line);
    if faults.is_empty() { Ok(profiles) } else { Err(faults) }
}

fn parse_profile(
    profile: &Spanned<std::borrow::Cow<'_, str>>,
    body: &Spanned<DeValue<'_>>,
    line_of: &dyn Fn(usize) -> usize,
    faults: &mut Vec<Fault>,
) -> BTreeMap<&'static str, (OsString, usize)> {
    let name = profile.get_ref();
    let mut keys = BTreeMap::new();
    let DeValue::Table(table) = body.get_ref() else {
        faults.push(Fault {
            line: line_of(profile.span().start),
            message: format!("profile {name} is not a table"),
            help: format!("write [profile.{name}] and its keys below"),
        });
        return keys;
    };
    for (word, value) in table {
        let line = line_of(word.span().start);
        let word = word.get_ref().as_ref();
        let Some(key) = find_key(word) else {
            let (message, help) = unknown_key(word, &format!("profile {name}"));
            faults.push(Fault { line, message, help });
            continue;
        };
        match value_text(key, value.get_ref()) {
            Ok(text) => {
                keys.insert(key.name, (text, line));
            }
            Err(why) => faults.push(Fault {
                line,
                message: format!("bad value for `{word}` in profile {name}: {why}"),
                help: key_help(key),
            }),
        }
    }
    keys
}

/// A TOML value as text, if its type and range suit the key.
fn value_text(key: &Key, value: &DeValue<'_>) -> Result<OsString, String> {
    let text = match (key.kind, value) {
        (Kind::Int { .. }, DeValue::Integer(int)) => {
            let digits = int.as_str().replace('_', "");
            let number = i128::from_str_radix(&digits, int.radix())
                .map_err(|_| format!("{digits} is no whole number"))?;
            number.to_string()
        }
        (Kind::Bool, DeValue::Boolean(on)) => on.to_string(),
        (Kind::Text | Kind::Path | Kind::Choice(_) | Kind::Duration, DeValue::String(text)) => {
            text.to_string()
        }
        (_, other) => return Err(format!("{}, found {}", expected(key.kind), toml_kind(other))),
    };
    let text = OsString::from(text);
    check(key, &text)?;
    Ok(text)
}

fn toml_kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn expected(kind: Kind) -> String {
    match kind {
        Kind::Int { min, max } => format!("expected a whole number from {min} to {max}"),
        Kind::Bool => "expected true or false".into(),
        Kind::Text => "expected a string".into(),
        Kind::Path => "expected a path".into(),
        Kind::Choice(words) => format!("expected one of {}", words.join(", ")),
        Kind::Duration => "expected a time like 90s, 10m or 8h".into(),
    }
}

/// Whether a text suits a key; says what was expected if not.
fn check(key: &Key, text: &OsStr) -> Result<(), String> {
    if text.is_empty() && key.default.is_empty() && !matches!(key.kind, Kind::Int { .. }) {
        return Ok(());
    }
    let shown = text.to_string_lossy();
    let fits = match key.kind {
        Kind::Int { min, max } => {
            text.to_str().and_then(|t| t.parse::<u64>().ok()).is_some_and(|n| n >= min && n <= max)
        }
        Kind::Bool => text == "true" || text == "false",
        Kind::Text => text.to_str().is_some_and(|t| !t.contains(['\n', '\0'])),
        Kind::Path => !text.is_empty(),
        Kind::Choice(words) => words.iter().any(|word| text == *word),
        Kind::Duration => return parse_duration(&shown).map(|_| ()),
    };
    if fits { Ok(()) } else { Err(format!("{}, found `{shown}`", expected(key.kind))) }
}

fn find_key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

fn unknown_key(word: &str, place: &str) -> (String, String) {
    match nearest(word, KEYS.iter().map(|key| key.name)) {
        Some(near) => {
            let what = format!("unknown key `{word}` in {place}; did you mean `{near}`?");
            (what, format!("write `{near}`, or see hgm help config"))
        }
        None => (format!("unknown key `{word}` in {place}"), "hgm help config lists all".into()),
    }
}

fn key_help(key: &Key) -> String {
    let shown = if key.default.is_empty() { "unset" } else { key.default };
    format!("`{}`: {} (default: {shown})", key.name, key.about)
}

fn set_flags(words: &[String]) -> Result<Vec<Override>, ExpectedError> {
    let split = |word: &String| match word.split_once('=') {
        Some((key, value)) => Ok(Override {
            key: key.trim().to_owned(),
            value: value.trim().into(),
            flag: format!("--set {}", key.trim()),
        }),
        None => Err(ExpectedError::usage(
            format!("bad --set {word}: no `=`"),
            "write it like --set jobs=2",
        )),
    };
    words.iter().map(split).collect()
}

/// "90s", "10m", "1h30m", "2d" as a duration of at least a second and at most a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a time like 90s, 10m, 8h or 1h30m, found `{text}`");
    let mut total: u64 = 0;
    let mut digits = String::new();
    for c in text.trim().chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit: u64 = match c {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        digits.clear();
        let part = count.checked_mul(unit).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
    }
    let ok = digits.is_empty() && (1..=366 * 86400).contains(&total);
    if ok { Ok(Duration::from_secs(total)) } else { Err(wrong()) }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
