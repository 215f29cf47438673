//! Random programs for the law tests: every op, every field, from the words of `OpKind::spec`.
#![allow(dead_code)]

use case::op::FieldSpec;
use case::value::Value;
use case::*;
use proptest::prelude::*;

macro_rules! any_word {
    ($expected:expr, $($ty:ident)*) => {
        $(if $expected == <$ty as Value>::EXPECTED {
            let words: Vec<String> = $ty::ALL.iter().map(|w| w.word().to_string()).collect();
            return proptest::sample::select(words).boxed();
        })*
    };
}

macro_rules! any_flags {
    ($expected:expr, $($ty:ident)*) => {
        $(if $expected == <$ty as Value>::EXPECTED {
            let n = $ty::TABLE.len();
            return proptest::sample::subsequence($ty::TABLE.to_vec(), 0..=n).prop_map(|set| {
                let words: Vec<&str> = set.iter().map(|(_, w)| *w).collect();
                if words.is_empty() { "none".to_string() } else { words.join(",") }
            }).boxed();
        })*
    };
}

macro_rules! any_id {
    ($expected:expr, $($ty:ident)*) => {
        $(if $expected == <$ty as Value>::EXPECTED {
            return (0u8..8).prop_map(|n| $ty(n).to_string()).boxed();
        })*
    };
}

fn printed<T: Value>(value: T) -> String {
    let mut out = String::new();
    value.print(&mut out);
    out
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0u64),
        (0u64..1024).prop_map(|n| n * 4096),
        (0u64..2048).prop_map(|n| n << 20),
        0u64..(4 << 30),
    ]
}

/// Any spelling-correct value of a field.
pub fn field(spec: &'static FieldSpec) -> BoxedStrategy<String> {
    let e = spec.expected;
    if e == <Bytes as Value>::EXPECTED {
        return prop_oneof![bytes(), any::<u64>()].prop_map(|n| printed(Bytes(n))).boxed();
    }
    if e == <Place as Value>::EXPECTED {
        let some = (0u8..8, bytes()).prop_map(|(r, o)| printed(Place::new(r, o)));
        // `to` of mremap may be `none`; a plain place may not.
        if spec.name == "to" {
            return prop_oneof![some, Just("none".to_string())].boxed();
        }
        return some.boxed();
    }
    if e == <FilePart as Value>::EXPECTED {
        let some =
            (0u8..8, bytes()).prop_map(|(f, off)| printed(FilePart { file: FileId(f), off }));
        return prop_oneof![some, Just("none".to_string())].boxed();
    }
    if e == <u8 as Value>::EXPECTED {
        return prop_oneof![any::<u8>().prop_map(printed), Just("none".to_string())].boxed();
    }
    if e == <u32 as Value>::EXPECTED {
        return any::<u32>().prop_map(printed).boxed();
    }
    any_id!(e, FileId RegionId UffdId ProcId PinId);
    any_word!(e, PageSize Share Advice Policy NumaMode Direction Knob);
    any_flags!(e, Prot MemfdFlags Seals MmapFlags MremapFlags FallocFlags MlockFlags);
    any_flags!(e, UffdFeatures UffdModes FillFlags WpFlags MoveFlags PinFlags Nodes What);
    panic!("no strategy for a field that expects {e}");
}

/// The words of one op, fields in random order, optional ones sometimes left out.
pub fn op_text() -> impl Strategy<Value = String> {
    proptest::sample::select(OpKind::ALL).prop_flat_map(op_text_of)
}

pub fn op_text_of(kind: OpKind) -> BoxedStrategy<String> {
    let spec = kind.spec();
    let fields: Vec<_> = spec.fields.iter().map(|f| (field(f), any::<bool>())).collect();
    (fields, any::<prop::sample::Index>())
        .prop_map(move |(values, turn)| {
            let mut left = String::new();
            let mut words = Vec::new();
            for (i, (value, keep)) in values.into_iter().enumerate() {
                if spec.makes && i == 0 {
                    left = format!("{value} = ");
                } else if keep || !spec.fields[i].optional {
                    words.push(format!("{}={value}", spec.fields[i].name));
                }
            }
            if !words.is_empty() {
                let turn = turn.index(words.len());
                words.rotate_left(turn);
            }
            words.insert(0, format!("{left}{}", spec.name));
            words.join(" ")
        })
        .boxed()
}

fn comments() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec("[ -~äö]{0,30}".prop_map(|s| s.trim_end().to_string()), 0..3)
}

fn step() -> impl Strategy<Value = (Vec<String>, String)> {
    let one = (0u8..8, op_text()).prop_map(|(p, op)| match p {
        0 => op,
        p => format!("p{p}: {op}"),
    });
    let thread = || proptest::collection::vec(op_text(), 1..4);
    let par = proptest::collection::vec(thread(), 2..=3).prop_map(|threads| {
        let mut text = String::from("par {\n");
        for (i, ops) in threads.iter().enumerate() {
            for op in ops {
                text.push_str(&format!("\tt{i}:  {op}\n"));
            }
        }
        text + "}"
    });
    (comments(), prop_oneof![8 => one, 1 => par])
}

/// A random program, built through the parser: it can be read, it need not make sense.
pub fn program() -> impl Strategy<Value = Program> {
    (comments(), proptest::collection::vec(step(), 0..12)).prop_map(|(about, steps)| {
        let mut text = String::from("hgm 1\n\n");
        for (_, step) in &steps {
            text.push_str(step);
            text.push_str("\n\n");
        }
        let mut program = case::text::parse(&text).expect("words of the specs parse");
        program.about = about;
        for (step, (notes, _)) in program.steps.iter_mut().zip(steps) {
            step.notes = notes;
        }
        program
    })
}
