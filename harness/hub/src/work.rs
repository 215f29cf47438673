//! Work that lies at a hub until somebody did it: tasks, who holds one, and the asker's book. What
//! cannot be made sure of over a network (that a task is done once) is not needed: of a task's
//! answers the first counts, and it is counted once. No I/O, no clock, no meaning of what is asked.

use crate::parcel::is_name;
use crate::{Away, BODY_BYTES_MAX, Exchange, Parcel, Scope};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Who holds a task and says nothing for so long has lost it to the next who asks.
pub const LEASE: Duration = Duration::from_secs(30);
/// Time after which the holder says that he is there.
pub const RENEW: Duration = Duration::from_secs(8);

/// Something to do, asked once. The scope is the kernel it is to be done on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    scope: Scope,
    batch: String,
    id: String,
    body: Vec<u8>,
}

impl Task {
    /// `batch`: what one asker asks; `id`: the program and the number of the attempt, so that what
    /// is asked again is another task. `None` if one is no name or the body is too large.
    pub fn new(scope: &Scope, batch: &str, id: &str, body: Vec<u8>) -> Option<Task> {
        let fits = is_name(batch) && is_name(id) && body.len() <= BODY_BYTES_MAX;
        let (batch, id) = (batch.to_owned(), id.to_owned());
        fits.then(|| Task { scope: scope.clone(), batch, id, body })
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    pub fn batch(&self) -> &str {
        &self.batch
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where it lies: `SCOPE.BATCH.ID`.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.scope.as_str(), self.batch, self.id)
    }

    /// The task of a name and a body that came from outside.
    pub fn of_name(name: &str, body: Vec<u8>) -> Option<Task> {
        let mut words = name.split('.');
        let (scope, batch, id) = (words.next()?, words.next()?, words.next()?);
        if words.next().is_some() {
            return None;
        }
        Task::new(&Scope::new(scope)?, batch, id, body)
    }
}

/// A task that is ours to do, for as long as we say so in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub task: Task,
    /// Who had it before and did not answer.
    pub lost: u64,
    /// Which of the holders we are, to those who can tell.
    pub(crate) turn: u64,
    /// Before the hub was asked for it, or last told that we are there.
    renewed: Instant,
}

/// What is to be done about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    Renew,
    /// Somebody else may have it. Nothing but an answer is of use.
    Over,
}

impl Lease {
    pub fn new(task: Task, lost: u64, turn: u64, asked: Instant) -> Lease {
        Lease { task, lost, turn, renewed: asked }
    }

    /// Times that lie before what was asked of the hub, so that we stop before it does.
    pub fn due(&self, now: Instant) -> Due {
        match now.saturating_duration_since(self.renewed) {
            silent if silent >= LEASE => Due::Over,
            silent if silent >= RENEW => Due::Renew,
            _ => Due::Nothing,
        }
    }

    /// The hub has heard that we are there; `asked` is when it was told.
    pub fn renewed(&mut self, asked: Instant) {
        self.renewed = asked;
    }
}

/// What lies at a hub for one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tasks nobody has.
    pub open: u64,
    /// Tasks somebody has.
    pub held: u64,
    /// Answers, of a day.
    pub done: u64,
}

/// A hub where work lies. Blocking; called by one thread.
pub trait Work: Exchange {
    /// Puts a task up. `Ok` once it lies there; one that does already is not put again.
    fn offer(&mut self, task: &Task) -> Result<(), Away>;
    /// Tasks of the own scope that nobody has, `most` of them; none that is answered.
    fn lease(&mut self, most: usize) -> Result<Vec<Lease>, Away>;
    /// Says that its holder is there. `Ok` once the hub has heard it.
    fn renew(&mut self, lease: &Lease) -> Result<(), Away>;
    /// Gives a task back: the next who asks gets it.
    fn release(&mut self, lease: &Lease) -> Result<(), Away>;
    /// Puts an answer, and takes the task away. False: somebody answered before.
    fn answer(&mut self, lease: &Lease, body: &[u8]) -> Result<bool, Away>;
    /// Answers to a batch of the own scope that were not taken before, by the ids of their tasks;
    /// after the hub was lost from sight, all of them.
    fn answers(&mut self, batch: &str) -> Result<Vec<(String, Vec<u8>)>, Away>;
    /// Takes away what of a batch nobody answered.
    fn withdraw(&mut self, batch: &str) -> Result<(), Away>;
    /// What machines of the own scope have said of themselves since the last call.
    fn statuses(&mut self) -> Result<Vec<Parcel>, Away>;
    /// What lies there.
    fn loads(&mut self) -> Result<BTreeMap<Scope, Load>, Away>;
}

/// What was asked and not answered yet.
#[derive(Debug, Default)]
pub struct Ledger {
    tasks: BTreeMap<String, Task>,
    /// Ids of tasks the hub has not heard of since it was last lost from sight.
    untold: BTreeSet<String>,
    epoch: Option<u64>,
}

impl Ledger {
    pub fn ask(&mut self, task: Task) {
        self.untold.insert(task.id.clone());
        self.tasks.insert(task.id.clone(), task);
    }

    /// The next to be offered. A hub that was lost from sight may have lost what it had.
    pub fn next(&mut self, epoch: u64) -> Option<&Task> {
        if self.epoch.replace(epoch) != Some(epoch) {
            self.untold = self.tasks.keys().cloned().collect();
        }
        self.untold.first().and_then(|id| self.tasks.get(id))
    }

    /// The hub has it.
    pub fn offered(&mut self, id: &str) {
        self.untold.remove(id);
    }

    /// True for the first answer to something that was asked.
    pub fn answered(&mut self, id: &str) -> bool {
        self.untold.remove(id);
        self.tasks.remove(id).is_some()
    }

    /// Tasks without an answer.
    pub fn open(&self) -> usize {
        self.tasks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn task(id: &str) -> Task {
        Task::new(&Scope::new("k").unwrap(), "b", id, id.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn a_name_leads_back_to_its_task_and_others_to_none() {
        let task = task("00ff-1");
        assert_eq!(task.name(), "k.b.00ff-1");
        assert_eq!(Task::of_name("k.b.00ff-1", b"00ff-1".to_vec()), Some(task));
        for name in ["", "k.b", "k.b.c.d", "k.b.*", "k.>.c", "k.B.c", "k..c", "k.b.c/d", "../k.b.c"]
        {
            assert_eq!(Task::of_name(name, Vec::new()), None, "{name}");
        }
        let scope = Scope::new("k").unwrap();
        assert_eq!(Task::new(&scope, "b", "c", vec![0; BODY_BYTES_MAX + 1]), None);
    }

    #[test]
    fn who_says_nothing_knows_that_it_is_over_before_the_hub_does() {
        let start = Instant::now();
        let mut lease = Lease::new(task("1"), 0, 1, start);
        assert_eq!(lease.due(start), Due::Nothing);
        assert_eq!(lease.due(start + RENEW), Due::Renew);
        assert_eq!(lease.due(start + LEASE), Due::Over);
        lease.renewed(start + RENEW);
        assert_eq!(lease.due(start + RENEW), Due::Nothing);
        assert_eq!(lease.due(start + RENEW + LEASE), Due::Over);
        const { assert!(RENEW.as_secs() * 3 < LEASE.as_secs() && LEASE.as_secs() <= 60) };
    }

    #[test]
    fn what_a_hub_may_have_lost_is_offered_again_and_the_first_answer_counts() {
        let mut ledger = Ledger::default();
        ["1", "2", "3"].iter().for_each(|id| ledger.ask(task(id)));
        for id in ["1", "2", "3"] {
            assert_eq!(ledger.next(7).map(Task::id), Some(id));
            ledger.offered(id);
        }
        assert_eq!(ledger.next(7), None);
        assert!(ledger.answered("2"));
        assert!(!ledger.answered("2") && !ledger.answered("of another batch"));
        // Lost from sight: what is not answered is offered again, also if it was not offered yet.
        ledger.ask(task("4"));
        let mut again = Vec::new();
        while let Some(id) = ledger.next(8).map(|task| task.id().to_owned()) {
            ledger.offered(&id);
            again.push(id);
        }
        assert_eq!((again, ledger.open()), (["1", "3", "4"].map(str::to_owned).to_vec(), 3));
    }

    /// A hub as both kinds are one: a task goes to the next who asks once its holder was silent for
    /// the length of a lease, and of its answers the first is kept.
    #[derive(Default)]
    struct Hub {
        tasks: BTreeMap<String, (Task, Option<Word>)>,
        answers: BTreeMap<String, u64>,
        epoch: u64,
        leases: u64,
    }

    /// The last word of a holder: when, and which lease it is about.
    type Word = (Instant, u64);

    struct Worker {
        /// With when it will be done, and the epoch of the hub it is of.
        holds: Option<(Lease, Instant, u64)>,
        frozen_until: Instant,
        cut_until: Instant,
    }

    /// Of each seed.
    const TASKS: u64 = 20;

    /// Machines are lost, freeze, are cut off and come back; the hub loses its disk; messages are
    /// doubled, late and in any order. What was asked is answered, and counted once.
    #[test]
    fn faults_of_all_sorts_leave_the_count_exact() {
        let (start, mut taken_over) = (Instant::now(), 0);
        let seeds = u64::from(trials::rounds(500));
        (0..seeds).for_each(|seed| taken_over += simulate(seed));
        println!("{seeds} seeds, {taken_over} leases taken over");
        let what = "tasks of simulated machines that are lost";
        trials::fault("F31", what, seeds * TASKS, 0, start);
        assert!(taken_over > seeds, "the faults cost nobody a lease: {taken_over}");
    }

    fn simulate(seed: u64) -> u64 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let (mut hub, mut ledger) = (Hub::default(), Ledger::default());
        let mut now = Instant::now();
        let mut workers: Vec<Worker> = Vec::new();
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        let mut on_their_way: Vec<(Instant, String)> = Vec::new();
        let mut taken_over = 0;
        (0..TASKS).for_each(|n| ledger.ask(task(&n.to_string())));
        let mut steps = 0;
        while ledger.open() > 0 {
            steps += 1;
            assert!(steps < 20_000, "seed {seed}: {} tasks are never answered", ledger.open());
            now += Duration::from_millis(500);
            // Faults end after a while, or nothing would ever be done.
            let faulty = steps < 2000;
            workers.resize_with(3, || Worker { holds: None, frozen_until: now, cut_until: now });
            if faulty && rng.random_ratio(1, 400) {
                (hub.tasks, hub.answers) = Default::default();
                hub.epoch += 1;
            }
            while let Some(offer) = ledger.next(hub.epoch).cloned() {
                hub.tasks.entry(offer.name()).or_insert((offer.clone(), None));
                if faulty && rng.random_ratio(1, 4) {
                    break; // not heard that it was kept: offered again
                }
                ledger.offered(offer.id());
            }
            for at in (0..workers.len()).rev() {
                taken_over += step(&mut workers[at], &mut hub, now, rng);
                let fault = if faulty { rng.random_range(0..300) } else { 9 };
                let long = now + Duration::from_secs(rng.random_range(1..90));
                match fault {
                    0 => drop(workers.remove(at)),
                    1 => workers[at].frozen_until = long,
                    2 => workers[at].cut_until = long,
                    _ => {}
                }
            }
            for id in hub.answers.keys() {
                for _ in 0..rng.random_range(0..3) {
                    let late = Duration::from_secs(rng.random_range(0..60));
                    on_their_way.push((now + late, id.clone()));
                }
            }
            on_their_way.shuffle(rng);
            on_their_way.truncate(400);
            on_their_way.retain(|(when, id)| {
                let comes = *when <= now;
                if comes && ledger.answered(id) {
                    *counted.entry(id.clone()).or_default() += 1;
                }
                !comes
            });
        }
        assert_eq!(counted.len() as u64, TASKS, "seed {seed}");
        assert!(counted.values().all(|times| *times == 1), "seed {seed}: {counted:?}");
        taken_over
    }

    /// One step of a worker: 1 if it took over what another was silent about.
    fn step(worker: &mut Worker, hub: &mut Hub, now: Instant, rng: &mut ChaCha8Rng) -> u64 {
        if now < worker.frozen_until {
            return 0;
        }
        let reached = now >= worker.cut_until;
        let Some((mut lease, ready, epoch)) = worker.holds.take() else {
            let free = |(_, held): &(Task, Option<Word>)| {
                held.is_none_or(|(said, _)| now.saturating_duration_since(said) >= LEASE)
            };
            let next = hub.tasks.values_mut().find(|entry| reached && free(entry));
            let Some((task, held)) = next else { return 0 };
            if hub.answers.contains_key(&task.id) {
                let name = task.name();
                hub.tasks.remove(&name);
                return 0;
            }
            let taken_over = u64::from(held.is_some());
            hub.leases += 1;
            *held = Some((now, hub.leases));
            let ready = now + Duration::from_secs(rng.random_range(1..60));
            let lease = Lease::new(task.clone(), taken_over, hub.leases, now);
            worker.holds = Some((lease, ready, hub.epoch));
            return taken_over;
        };
        let held = hub.tasks.get(&lease.task.name()).map(|(_, held)| *held);
        if lease.due(now) != Due::Over && epoch == hub.epoch {
            // Nobody else has it while we think that we do, but if the hub forgot.
            let others = held.flatten().filter(|(_, of)| *of != lease.turn);
            assert_eq!(others, None, "it is held twice");
        }
        let ours = hub.tasks.get_mut(&lease.task.name()).and_then(|(_, held)| held.as_mut());
        if let Some((said, _)) = ours.filter(|(_, of)| *of == lease.turn)
            && lease.due(now) == Due::Renew
            && reached
        {
            *said = now;
            lease.renewed(now);
        }
        if now >= ready && reached {
            *hub.answers.entry(lease.task.id.clone()).or_default() += 1;
            // Sometimes it dies, or is cut off, before it can take the task away.
            if rng.random_ratio(3, 4) {
                hub.tasks.remove(&lease.task.name());
            }
        } else {
            worker.holds = Some((lease, ready, epoch));
        }
        0
    }
}
