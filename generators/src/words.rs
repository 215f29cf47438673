//! Values of fields: offsets and lengths that sit on the edges of huge pages, flag sets with a
//! bias to the common, and the replacing of one field of an op by its name.

use case::op::FieldSpec;
use case::text::{parse, print_op};
use case::value::Value;
use case::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

pub const K4: u64 = 4096;
pub const M2: u64 = 2 << 20;

/// True `percent` times in a hundred.
pub fn chance(rng: &mut ChaCha8Rng, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}

/// One of a list; lists here are never empty.
pub fn one<T: Copy>(rng: &mut ChaCha8Rng, list: &[T]) -> T {
    list[rng.random_range(0..list.len())]
}

/// One of a list by weight; the weights are not all 0.
pub fn weighted<T: Copy>(rng: &mut ChaCha8Rng, list: &[(u32, T)]) -> T {
    let total: u32 = list.iter().map(|(w, _)| w).sum();
    let mut at = rng.random_range(0..total);
    for (weight, item) in list {
        if at < *weight {
            return *item;
        }
        at -= weight;
    }
    list[list.len() - 1].1
}

/// An offset below `room` near the edges of pages of size `h`.
pub fn offset(rng: &mut ChaCha8Rng, room: u64, h: u64) -> u64 {
    let pages = (room / h).max(1);
    let base = rng.random_range(0..pages) * h;
    let edge = one(rng, &[0, 0, 0, K4, h / 2, (h / 2).saturating_sub(K4), h - K4, h]);
    let odd = match rng.random_range(0..16) {
        0 => rng.random_range(0..h / K4) * K4,
        _ => edge,
    };
    // Base pages have no inner edges.
    let off = if h <= K4 { base } else { base + odd };
    if off < room { off } else { 0 }
}

/// A length that fits into `room`, near the sizes that matter for pages of size `h`.
pub fn length(rng: &mut ChaCha8Rng, room: u64, h: u64) -> u64 {
    let len = one(rng, &[K4, K4, 2 * K4, M2, h - K4, h, h, h + K4, 2 * h, room]);
    len.clamp(K4, room.max(K4))
}

fn id_word(rng: &mut ChaCha8Rng, letter: &str) -> String {
    // Low numbers: those objects are likely to exist.
    let n = if chance(rng, 85) { rng.random_range(0..3) } else { rng.random_range(0..8) };
    format!("{letter}{n}")
}

fn printed<T: Value>(value: T) -> String {
    let mut out = String::new();
    value.print(&mut out);
    out
}

fn bytes_word(rng: &mut ChaCha8Rng, name: &str) -> String {
    let h = one(rng, &[M2, M2, M2, M2, K4]);
    let n = match (name, rng.random_range(0..20)) {
        (_, 0) => 0,
        (_, 1) => one(rng, &[1, 8, 4095, 4097, M2 + 1, M2 - 1]),
        (_, 2) => one(rng, &[8 * M2, 32 << 20]),
        ("off", _) => offset(rng, 4 * M2, h),
        _ => length(rng, 4 * M2, h),
    };
    printed(Bytes(n))
}

fn place_word(rng: &mut ChaCha8Rng) -> String {
    let region = if chance(rng, 90) { rng.random_range(0..3) } else { rng.random_range(0..8) };
    let mut off = offset(rng, 4 * M2, M2);
    if chance(rng, 5) {
        off += one(rng, &[1, 8, 512, 4088]);
    }
    printed(Place::new(region, off))
}

macro_rules! words_of {
    ($rng:expr, $expected:expr, $($ty:ident)*) => {
        $(if $expected == <$ty as Value>::EXPECTED {
            return one($rng, $ty::ALL).word().to_string();
        })*
    };
}

macro_rules! flags_of {
    ($rng:expr, $expected:expr, $($ty:ident)*) => {
        $(if $expected == <$ty as Value>::EXPECTED {
            let mut set = $ty::NONE;
            for _ in 0..one($rng, &[0, 1, 1, 1, 2, 2, 3]) {
                set = set | one($rng, $ty::TABLE).0;
            }
            return printed(set);
        })*
    };
}

/// A new value for a field, spelled for the text form.
pub fn any_word(rng: &mut ChaCha8Rng, field: &FieldSpec) -> String {
    let e = field.expected;
    if e == <Bytes as Value>::EXPECTED {
        return bytes_word(rng, field.name);
    }
    if e == <Place as Value>::EXPECTED {
        return place_word(rng);
    }
    if e == <FilePart as Value>::EXPECTED {
        let off = offset(rng, 4 * M2, M2);
        let file = FileId(rng.random_range(0..3));
        let part = FilePart { file, off };
        return if chance(rng, 20) { "none".into() } else { printed(part) };
    }
    if e == <PageSize as Value>::EXPECTED {
        // 1 GiB pages cost seconds each.
        let page =
            weighted(rng, &[(60, PageSize::Huge2M), (39, PageSize::Base), (1, PageSize::Huge1G)]);
        return printed(page);
    }
    if e == <Option<u8> as Value>::EXPECTED {
        return one(rng, &["none", "0", "1", "0", "1", "9"]).to_string();
    }
    if e == <u32 as Value>::EXPECTED {
        return one(rng, &[0, 1, 1, 2, 3, 4, 8, 16, 60, 70]).to_string();
    }
    for (id, letter) in [
        (<FileId as Value>::EXPECTED, "f"),
        (<RegionId as Value>::EXPECTED, "r"),
        (<UffdId as Value>::EXPECTED, "u"),
        (<ProcId as Value>::EXPECTED, "p"),
        (<PinId as Value>::EXPECTED, "g"),
    ] {
        if e == id {
            return id_word(rng, letter);
        }
    }
    words_of!(rng, e, Share Advice Policy NumaMode Direction Knob);
    flags_of!(rng, e, Prot MemfdFlags Seals MmapFlags MremapFlags FallocFlags MlockFlags);
    flags_of!(rng, e, UffdFeatures UffdModes FillFlags WpFlags MoveFlags PinFlags Nodes What);
    "0".into()
}

/// The op with one field set to a word, or to its default by an empty one; `None` if the word does
/// not suit it.
pub fn with_field(op: &Op, field: &FieldSpec, word: &str) -> Option<Op> {
    let spec = op.kind().spec();
    let text = print_op(op);
    let (mut left, rest) = match text.split_once(" = ") {
        Some((left, rest)) => (left.to_string(), rest),
        None => (String::new(), text.as_str()),
    };
    let mut words: Vec<String> = rest.split(' ').map(str::to_string).collect();
    let prefix = format!("{}=", field.name);
    if spec.makes && spec.fields[0].name == field.name {
        left = word.to_string();
    } else {
        words.retain(|w| !w.starts_with(&prefix));
        if !word.is_empty() {
            words.push(format!("{prefix}{word}"));
        }
    }
    let line = if spec.makes { format!("{left} = ") } else { String::new() };
    let program = parse(&format!("{}\n\n{line}{}\n", case::text::HEAD, words.join(" "))).ok()?;
    match program.steps.into_iter().next()?.act {
        Act::One(line) => Some(line.op),
        Act::Par(_) => None,
    }
}

/// The op with one field changed at random; the same op if it has none.
pub fn change_field(rng: &mut ChaCha8Rng, op: &Op) -> Op {
    let fields = op.kind().spec().fields;
    for _ in 0..8 {
        if fields.is_empty() {
            break;
        }
        let field = &fields[rng.random_range(0..fields.len())];
        let word = any_word(rng, field);
        match with_field(op, field, &word) {
            Some(new) if new != *op => return new,
            _ => {}
        }
    }
    op.clone()
}
