//! Shakes the oracle against a real kernel: random programs, every disagreement once, nothing
//! confirmed and nothing saved but the first program of each signature. For people who write
//! rules; users want `hgm fuzz`.
//!
//! What was seen is kept in OUT-DIR/seen.bin, so that a change of a rule is tried on all of it
//! without a guest.
//!
//! Usage: shake KERNEL-SPEC PROGRAMS SEED OUT-DIR [FILE.hgm...]
//!        shake judge OUT-DIR...

use anyhow::{Context, Result, bail};
use case::link::{FromGuest, Look, RunOutcome, RunRequest, ToGuest};
use case::wire::{self, Decoder};
use case::{Observation, Profile, Program, Verdict, Violation};
use oracles::known::Known;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vm::{Accel, Vm, VmSpec};

/// Huge pages of a VM at its start, and how many of them known leaks may take before it is booted
/// anew: campaigns replace a VM at the first.
const POOL_2M: i64 = 64;
const SPOILT: i64 = 8;
/// What was seen: the guest's profile, then program and observation by turns, framed.
const KEPT: &str = "seen.bin";
/// Programs from one sign of life to the next.
const PROGRESS: u64 = 500;

#[derive(Default)]
struct Seen {
    count: u32,
    text: String,
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, dirs @ ..] = args.as_slice()
        && word == "judge"
    {
        return judge_again(dirs);
    }
    let [kernel, programs, seed, out, files @ ..] = args.as_slice() else {
        bail!("usage: shake KERNEL-SPEC PROGRAMS SEED OUT-DIR [FILE.hgm...]");
    };
    let (programs, seed) = (programs.parse::<u64>()?, seed.parse::<u64>()?);
    let out = PathBuf::from(out);
    std::fs::create_dir_all(&out)?;
    let spec = spec(kernel, &out)?;
    let mut vm = boot(&spec)?;
    let profile = vm.profile().clone();
    println!("{profile:?}");
    let mut kept = BufWriter::new(File::create(out.join(KEPT))?);
    kept.write_all(&wire::encode(&profile)?)?;
    let known = Known::builtin();
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let start = Instant::now();
    let (mut done, mut passed, mut ops, mut judge) = (0u64, 0u64, 0u64, Duration::ZERO);
    let (mut guest, mut slow) = (Duration::ZERO, 0u32);
    let queue = queue(files, programs, seed, &profile)?;
    let mut spoilt = false;
    for (name, program) in queue {
        if std::mem::take(&mut spoilt) {
            vm = boot(&spec)?;
        }
        let mark = vm.console_len();
        let outcome = match patient(&mut vm, done, &program, &profile, &known) {
            Ok(outcome) => outcome,
            Err(e) => {
                let text = format!("{e:#}");
                let sort = format!("DEATH/{}", text.lines().next().unwrap_or(""));
                note(&mut seen, &out, sort, &program, &text, &name)?;
                vm = boot(&spec)?;
                done += 1;
                continue;
            }
        };
        done += 1;
        for (sort, text) in reports(&vm.console_since(mark), &known, &profile) {
            note(&mut seen, &out, sort, &program, &text, &name)?;
        }
        if done.is_multiple_of(PROGRESS) {
            sign_of_life(done, passed, &seen, start);
        }
        let at = Instant::now();
        match outcome {
            RunOutcome::Finished(observation) => {
                kept.write_all(&wire::encode(&(case::text::print(&program), &observation))?)?;
                let nanos = Duration::from_nanos(observation.nanos);
                guest += nanos;
                slow += u32::from(nanos > Duration::from_secs(1));
                let report = oracles::judge::judge(&program, &observation, &profile, &known);
                judge += at.elapsed();
                let pool = observation.after.pool_2m;
                spoilt = pool.rsvd.max(POOL_2M - pool.free) > SPOILT;
                ops += u64::from(report.ops);
                tally(&mut seen, &report);
                match report.verdict {
                    Verdict::Pass => passed += 1,
                    Verdict::Violation(v) => {
                        let line = observation.lines.get(usize::from(v.line));
                        let (at, expected, observed) = (v.line, &v.expected, &v.observed);
                        let text = format!(
                            "line {at} expected {expected}\nobserved {observed}\n{line:#?}"
                        );
                        note(&mut seen, &out, v.signature(), &program, &text, &name)?;
                    }
                    Verdict::Inconclusive(why) => {
                        note(&mut seen, &out, format!("INCONCLUSIVE/{why}"), &program, &why, &name)?
                    }
                }
            }
            other => {
                // What hangs may keep locks and a CPU.
                spoilt = true;
                let (sort, text) = ended(&program, &other);
                if let Some(id) = listed(&known, &profile, &sort) {
                    seen.entry(format!("(known {id}) {sort}")).or_default().count += 1;
                    continue;
                }
                note(&mut seen, &out, sort, &program, &text, &name)?;
            }
        }
    }
    kept.flush()?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{done} programs, {passed} passed, {ops} ops judged, {:.1} programs/s, judge {:.0} us each, guest {:.1} s, {slow} slow programs",
        done as f64 / seconds,
        judge.as_micros() as f64 / done.max(1) as f64,
        guest.as_secs_f64(),
    );
    print_tally(&seen);
    Ok(())
}

/// Judges what earlier calls kept by the rules as they are now.
fn judge_again(dirs: &[String]) -> Result<()> {
    let known = Known::builtin();
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let (mut programs, mut passed) = (0u64, 0u64);
    for dir in dirs {
        let mut file = File::open(Path::new(dir).join(KEPT))?;
        let mut decoder = Decoder::new();
        let mut profile: Option<Profile> = None;
        let mut bytes = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut bytes)?;
            if n == 0 {
                break;
            }
            decoder.push(&bytes[..n]);
            loop {
                let Some(profile) = &profile else {
                    profile = decoder.next()?;
                    if profile.is_none() {
                        break;
                    }
                    continue;
                };
                let Some((text, observation)) = decoder.next::<(String, Observation)>()? else {
                    break;
                };
                programs += 1;
                let program = case::text::parse(&text)?;
                let report = oracles::judge::judge(&program, &observation, profile, &known);
                tally(&mut seen, &report);
                match report.verdict {
                    Verdict::Pass => passed += 1,
                    Verdict::Violation(v) => {
                        let signature = v.signature();
                        if !seen.contains_key(&signature) {
                            println!("{signature}\n  {} | {}\n{text}", v.expected, v.observed);
                        }
                        seen.entry(signature).or_default().count += 1;
                    }
                    Verdict::Inconclusive(why) => seen.entry(why).or_default().count += 1,
                }
            }
        }
    }
    println!("{programs} programs, {passed} passed");
    print_tally(&seen);
    Ok(())
}

fn print_tally(seen: &BTreeMap<String, Seen>) {
    let mut rows: Vec<_> = seen.iter().collect();
    rows.sort_by_key(|(_, s)| std::cmp::Reverse(s.count));
    for (signature, s) in rows {
        println!("{:6}  {signature}", s.count);
    }
}

/// Counts what ended precise judgement and what is known.
fn tally(seen: &mut BTreeMap<String, Seen>, report: &oracles::judge::Report) {
    if let Some(why) = &report.blurred {
        let why = why.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        seen.entry(format!("(blurred) {why}")).or_default().count += 1;
    }
    for (v, id) in &report.known {
        seen.entry(format!("(known {id}) {}", v.signature())).or_default().count += 1;
    }
}

/// The id of the known deviation of a name `a/b/c`.
fn listed(known: &Known, profile: &Profile, name: &str) -> Option<String> {
    let mut parts = name.splitn(3, '/').map(str::to_owned);
    let mut part = || parts.next().unwrap_or_default();
    let (rule, op, class) = (part(), part(), part());
    let (line, expected, observed) = (0, String::new(), String::new());
    let violation = Violation { rule, op, class, line, expected, observed, expectation: None };
    known.find(profile, &violation).map(|deviation| deviation.id.clone())
}

fn sign_of_life(done: u64, passed: u64, seen: &BTreeMap<String, Seen>, start: Instant) {
    let wrong = seen.keys().filter(|name| !name.starts_with('(')).count();
    let rate = done as f64 / start.elapsed().as_secs_f64();
    println!("{done}: {passed} passed, {wrong} disagreements, {rate:.1} programs/s");
}

/// What the kernel reported and lived on: signature, in brackets if it is listed, and text.
fn reports(console: &[u8], known: &Known, profile: &Profile) -> Vec<(String, String)> {
    let found = oracles::console::scan(console).into_iter().map(|report| {
        let text = String::from_utf8_lossy(report.text(console)).into_owned();
        match listed(known, profile, &report.signature) {
            Some(id) => (format!("(known {id}) {}", report.signature), text),
            None => (report.signature, text),
        }
    });
    found.collect()
}

/// The sort of a run that was not finished, and what its threads did.
fn ended(program: &Program, outcome: &RunOutcome) -> (String, String) {
    match outcome {
        RunOutcome::WorkerHung { line, stuck, killed } => {
            let signature = oracles::known::hang_signature(program, *line, *killed);
            (signature, String::from_utf8_lossy(stuck).into_owned())
        }
        other => (format!("{other:?}"), String::new()),
    }
}

fn queue(
    files: &[String],
    programs: u64,
    seed: u64,
    profile: &case::Profile,
) -> Result<Vec<(String, Program)>> {
    let mut queue = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.clone())?;
        let program = case::text::parse(&text).map_err(|e| anyhow::anyhow!("{file}: {e}"))?;
        queue.push((file.clone(), program));
    }
    for n in 0..programs {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(n));
        queue.push((format!("random {seed} {n}"), generators::random(&mut rng, profile, 24)));
    }
    Ok(queue)
}

fn note(
    seen: &mut BTreeMap<String, Seen>,
    out: &Path,
    signature: String,
    program: &Program,
    text: &str,
    name: &str,
) -> Result<()> {
    let entry = seen.entry(signature.clone()).or_default();
    entry.count += 1;
    if entry.count <= 3 {
        let slug: String = signature
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
            .take(100)
            .collect();
        let body = format!("{}\n# {signature}\n# from {name}\n", case::text::print(program));
        std::fs::write(out.join(format!("{slug}.{}.hgm", entry.count)), body)?;
        std::fs::write(out.join(format!("{slug}.{}.txt", entry.count)), text)?;
        text.clone_into(&mut entry.text);
    }
    Ok(())
}

/// Milliseconds until an op is broken off: many programs wait for what never comes.
const OP_TIMEOUT_MS: u32 = 1500;
/// The same for a program whose op did not come back: a busy machine only needs more time.
const OP_PATIENCE_MS: u32 = 15_000;

/// Runs a program, and again with more time if something in it seems to hang.
fn patient(
    vm: &mut Vm,
    id: u64,
    program: &Program,
    profile: &Profile,
    known: &Known,
) -> Result<RunOutcome> {
    let outcome = run(vm, id, program, OP_TIMEOUT_MS)?;
    let late = match &outcome {
        RunOutcome::WorkerHung { .. } => true,
        RunOutcome::Finished(seen) => {
            match oracles::judge::judge(program, seen, profile, known).verdict {
                Verdict::Violation(v) => v.class.ends_with("->hang"),
                _ => false,
            }
        }
        _ => false,
    };
    if late { run(vm, id, program, OP_PATIENCE_MS) } else { Ok(outcome) }
}

fn run(vm: &mut Vm, id: u64, program: &Program, op_timeout_ms: u32) -> Result<RunOutcome> {
    let request = RunRequest {
        id,
        program: program.clone(),
        look: Look::Each,
        fresh: false,
        canary: None,
        op_timeout_ms,
    };
    let dead =
        |d: vm::Death| anyhow::anyhow!("{:?}\n{}", d.kind, String::from_utf8_lossy(&d.console));
    vm.send(&ToGuest::Run(request)).map_err(dead)?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while Instant::now() < deadline {
        match vm.recv(Duration::from_secs(5)).map_err(dead)? {
            Some(FromGuest::Done { id: got, outcome }) if got == id => return Ok(outcome),
            _ => {}
        }
    }
    bail!("Silent\n{}", String::from_utf8_lossy(&vm.console_since(0)))
}

/// A few tries: under TCG with two CPUs a kernel that patches its own text while it boots now
/// and then runs into the old bytes (`Oops: int3`), which is the emulator's race and not a result.
fn boot(spec: &VmSpec) -> Result<Vm> {
    let mut tries = 0;
    loop {
        tries += 1;
        match Vm::boot(spec) {
            Ok(vm) => return Ok(vm),
            Err(e) if tries < 4 => println!("boot again: {e}"),
            Err(e) => bail!("{e}"),
        }
    }
}

fn spec(kernel: &str, out: &Path) -> Result<VmSpec> {
    let home = PathBuf::from(std::env::var("HGM_HOME").context("HGM_HOME")?);
    let agent = PathBuf::from(std::env::var("HGM_AGENT").context("HGM_AGENT")?);
    let registered = vmimages::kernels(&home).into_iter().find(|k| k.id == kernel);
    let kernel = match registered {
        Some(kernel) => kernel,
        None => vmimages::add(&home, kernel, None, &mut |line| println!("{line}"))?,
    };
    let initrd = vmimages::initramfs(&home, &kernel, &agent)?;
    Ok(VmSpec {
        qemu: "qemu-system-x86_64".into(),
        kernel: kernel.image,
        initrd,
        memory_mib: vm::MEMORY_MIB_DEFAULT,
        cpus: 2,
        accel: Accel::Tcg,
        jail: vm::Jail::find().unwrap_or_default(),
        dir: out.join("vm"),
        boot_timeout: Duration::from_secs(90),
        extra_cmdline: String::new(),
        serial_link: false,
        cover: None,
    })
}
