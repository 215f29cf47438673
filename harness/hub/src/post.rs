//! The thread between a campaign and an exchange. What is sent waits here until the exchange has
//! it; what comes in is handed over once. Both sides may stop for as long as they like.

use crate::{Exchange, Parcel};
use std::collections::{HashSet, VecDeque};
use std::sync::mpsc::{
    Receiver, Sender, SyncSender, TryRecvError, TrySendError, channel, sync_channel,
};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Parcels that came in and wait for the campaign; beyond it no more are taken.
const INBOX: usize = 1024;
/// How long one look for parcels of others may take: as long may one of ours wait.
const LOOK: Duration = Duration::from_millis(100);
/// Pause after an exchange could not be reached, doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Parcels put between two looks.
const PUTS: usize = 64;

/// How the exchange does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Whether the last thing asked of the exchange was done.
    pub reached: bool,
    /// Own parcels the exchange has.
    pub sent: u64,
    /// Own parcels it does not have yet.
    pub waiting: u64,
    /// Parcels of others that were handed over.
    pub received: u64,
    /// Parcels that came again, or that we had as well.
    pub again: u64,
    /// Times the exchange was lost.
    pub lost: u64,
    /// Why the exchange was lost last.
    pub why: Option<String>,
}

/// What comes out of a [`Post`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Parcel(Parcel),
    /// The exchange may have forgotten what it had: send everything again. What it still has is
    /// not sent twice.
    Again,
}

/// See the module's head. Dropped, it ends without waiting for anybody.
#[derive(Debug)]
pub struct Post {
    out: Option<Sender<Parcel>>,
    inbox: Receiver<News>,
    figures: Arc<Mutex<Figures>>,
    stop: Arc<Mutex<Option<Instant>>>,
    thread: Option<JoinHandle<()>>,
}

impl Post {
    pub fn open(exchange: Box<dyn Exchange>) -> std::io::Result<Post> {
        let (out, orders) = channel();
        let (deliver, inbox) = sync_channel(INBOX);
        let figures = Arc::new(Mutex::new(Figures::default()));
        let stop = Arc::new(Mutex::new(None));
        let worker = Worker {
            book: Book { epoch: exchange.epoch(), ..Book::default() },
            exchange,
            orders,
            deliver,
            figures: figures.clone(),
            stop: stop.clone(),
            pause: PAUSE,
        };
        let thread = std::thread::Builder::new().name("hub".into()).spawn(move || worker.run())?;
        Ok(Post { out: Some(out), inbox, figures, stop, thread: Some(thread) })
    }

    /// Takes a parcel to be put; never waits. It must be on disk already.
    pub fn send(&self, parcel: Parcel) {
        if let Some(out) = &self.out {
            // A thread that is gone is seen in the figures.
            let _ = out.send(parcel);
        }
    }

    pub fn next(&self) -> Option<News> {
        self.inbox.try_recv().ok()
    }

    pub fn figures(&self) -> Figures {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends; what waits is still put if that takes no longer than `within`.
    pub fn close(mut self, within: Duration) -> Figures {
        self.end(within);
        self.figures()
    }

    fn end(&mut self, within: Duration) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + within);
        self.out = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// What is known of every parcel. No I/O.
#[derive(Debug, Default)]
struct Book {
    /// Own parcels the exchange does not have, oldest first.
    waiting: VecDeque<Parcel>,
    /// Names of what the exchange has.
    there: HashSet<String>,
    /// Names of own parcels, and of what was handed over: neither is handed over (again).
    ours: HashSet<String>,
    /// Whether everything the exchange has was seen since it was last lost.
    caught_up: bool,
    epoch: u64,
}

impl Book {
    /// An own parcel. False if the exchange has it.
    fn offer(&mut self, parcel: Parcel) -> bool {
        let name = parcel.name();
        let news = parcel.kind.is_replaced() || !self.there.contains(&name);
        self.ours.insert(name);
        if news {
            if parcel.kind.is_replaced() {
                self.waiting.retain(|p| (p.kind, p.key()) != (parcel.kind, parcel.key()));
            }
            self.waiting.push_back(parcel);
        }
        news
    }

    /// A parcel the exchange has. True if it is to be handed over.
    fn found(&mut self, parcel: &Parcel) -> bool {
        let name = parcel.name();
        self.there.insert(name.clone());
        if parcel.kind.is_replaced() { !self.ours.contains(&name) } else { self.ours.insert(name) }
    }

    /// The next that the exchange does not have.
    fn next(&mut self) -> Option<&Parcel> {
        while let Some(first) = self.waiting.front()
            && !first.kind.is_replaced()
            && self.there.contains(&first.name())
        {
            self.waiting.pop_front();
        }
        self.waiting.front()
    }

    fn kept(&mut self) {
        if let Some(parcel) = self.waiting.pop_front() {
            self.there.insert(parcel.name());
        }
    }

    /// True if the exchange was lost from sight since the last call.
    fn lost(&mut self, epoch: u64) -> bool {
        let lost = self.epoch != epoch;
        if lost {
            self.epoch = epoch;
            self.there.clear();
            self.caught_up = false;
        }
        lost
    }
}

struct Worker {
    exchange: Box<dyn Exchange>,
    book: Book,
    orders: Receiver<Parcel>,
    deliver: SyncSender<News>,
    figures: Arc<Mutex<Figures>>,
    stop: Arc<Mutex<Option<Instant>>>,
    pause: Duration,
}

impl Worker {
    fn run(mut self) {
        let mut inbox: VecDeque<News> = VecDeque::new();
        loop {
            let open = self.orders();
            if self.is_over(open) {
                return;
            }
            if self.book.lost(self.exchange.epoch()) {
                inbox.push_back(News::Again);
            }
            if self.book.caught_up {
                self.put();
            }
            if inbox.is_empty() {
                self.take(&mut inbox);
            } else {
                std::thread::sleep(LOOK);
            }
            while let Some(news) = inbox.pop_front() {
                match self.deliver.try_send(news) {
                    Ok(()) => {}
                    Err(TrySendError::Full(news)) => {
                        inbox.push_front(news);
                        break;
                    }
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
        }
    }

    /// Whether more may come.
    fn orders(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(parcel) => {
                    let news = self.book.offer(parcel);
                    self.count(|f| f.again += u64::from(!news));
                }
                Err(end) => {
                    let waiting = self.book.waiting.len() as u64;
                    self.count(|f| f.waiting = waiting);
                    return end == TryRecvError::Empty;
                }
            }
        }
    }

    fn is_over(&self, open: bool) -> bool {
        let end = *self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        match end {
            Some(end) => self.book.waiting.is_empty() || Instant::now() >= end,
            None => !open,
        }
    }

    fn put(&mut self) {
        for _ in 0..PUTS {
            let Some(parcel) = self.book.next() else { break };
            match self.exchange.put(parcel) {
                Ok(()) => {
                    self.book.kept();
                    self.reached();
                    self.count(|f| f.sent += 1);
                }
                Err(why) => return self.away(&why.0),
            }
        }
        let waiting = self.book.waiting.len() as u64;
        self.count(|f| f.waiting = waiting);
    }

    fn take(&mut self, inbox: &mut VecDeque<News>) {
        let wait =
            if self.book.caught_up && self.book.next().is_some() { Duration::ZERO } else { LOOK };
        match self.exchange.take(wait) {
            Ok(parcels) => {
                self.reached();
                self.book.caught_up |= parcels.is_empty();
                for parcel in parcels {
                    let news = self.book.found(&parcel);
                    self.count(|f| {
                        f.received += u64::from(news);
                        f.again += u64::from(!news);
                    });
                    if news {
                        inbox.push_back(News::Parcel(parcel));
                    }
                }
            }
            Err(why) => self.away(&why.0),
        }
    }

    fn reached(&mut self) {
        self.pause = PAUSE;
        self.count(|f| f.reached = true);
    }

    fn away(&mut self, why: &str) {
        tracing::debug!("the hub is away: {why}");
        self.count(|f| {
            f.lost += u64::from(f.reached);
            f.reached = false;
            f.why = Some(why.to_owned());
        });
        let until = Instant::now() + self.pause;
        // Ended in between, it does not sleep on.
        while Instant::now() < until && !self.is_over(true) {
            std::thread::sleep(LOOK.min(self.pause));
        }
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn count(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.figures.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Away, Kind, Scope};

    fn parcel(kind: Kind, key: &str) -> Parcel {
        Parcel::new(kind, &Scope::new("k").unwrap(), key, key.as_bytes().to_vec()).unwrap()
    }

    /// What is kept, and whether it can be reached; shared by several posts.
    #[derive(Debug, Default)]
    struct Store {
        kept: Vec<Parcel>,
        down: bool,
        epoch: u64,
        /// Every parcel comes this often.
        times: usize,
        puts: usize,
    }

    #[derive(Debug)]
    struct Fake {
        store: Arc<Mutex<Store>>,
        next: usize,
        epoch: u64,
    }

    impl Exchange for Fake {
        fn put(&mut self, parcel: &Parcel) -> Result<(), Away> {
            let mut store = self.store.lock().unwrap();
            if store.down {
                return Err(Away("down".into()));
            }
            store.puts += 1;
            store.kept.push(parcel.clone());
            Ok(())
        }
        fn take(&mut self, wait: Duration) -> Result<Vec<Parcel>, Away> {
            let store = self.store.lock().unwrap();
            if store.down {
                return Err(Away("down".into()));
            }
            if self.epoch != store.epoch {
                (self.epoch, self.next) = (store.epoch, 0);
            }
            let new: Vec<Parcel> = store.kept[self.next.min(store.kept.len())..].to_vec();
            self.next = store.kept.len();
            let new: Vec<Parcel> =
                new.iter().rev().flat_map(|p| vec![p.clone(); store.times + 1]).collect();
            drop(store);
            if new.is_empty() {
                std::thread::sleep(wait.min(Duration::from_millis(5)));
            }
            Ok(new)
        }
        fn epoch(&self) -> u64 {
            self.store.lock().unwrap().epoch
        }
    }

    fn post(store: &Arc<Mutex<Store>>) -> Post {
        let fake = Fake { store: store.clone(), next: 0, epoch: 0 };
        Post::open(Box::new(fake)).unwrap()
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn keys(post: &Post) -> Vec<String> {
        std::iter::from_fn(|| post.next())
            .filter_map(|news| match news {
                News::Parcel(parcel) => Some(parcel.key().to_owned()),
                News::Again => None,
            })
            .collect()
    }

    #[test]
    fn what_one_sends_the_other_gets_once_however_often_it_comes() {
        let store = Arc::new(Mutex::new(Store { times: 2, ..Store::default() }));
        let (a, b) = (post(&store), post(&store));
        for n in 0..200 {
            a.send(parcel(Kind::Entry, &format!("{n}")));
        }
        let mut got = Vec::new();
        until("200 arrive", || {
            got.extend(keys(&b));
            got.len() >= 200
        });
        std::thread::sleep(Duration::from_millis(300));
        got.extend(keys(&b));
        got.sort();
        got.dedup();
        assert_eq!(got.len(), 200);
        assert_eq!(b.figures().received, 200);
        assert_eq!(a.figures().received, 0, "own parcels come back to nobody");
        assert_eq!((a.figures().sent, a.figures().waiting), (200, 0));
    }

    #[test]
    fn what_is_sent_while_nobody_is_there_waits() {
        let store = Arc::new(Mutex::new(Store { down: true, ..Store::default() }));
        let a = post(&store);
        for n in 0..50 {
            a.send(parcel(Kind::Entry, &format!("{n}")));
        }
        until("the loss is seen", || a.figures().waiting == 50 && a.figures().why.is_some());
        assert!(!a.figures().reached);
        store.lock().unwrap().down = false;
        until("all are put", || a.figures().sent == 50);
        assert_eq!(a.close(Duration::from_secs(5)).waiting, 0);
        assert_eq!(store.lock().unwrap().puts, 50);
    }

    #[test]
    fn a_hub_that_forgot_gets_it_again_and_one_that_did_not_does_not() {
        let store = Arc::new(Mutex::new(Store::default()));
        let a = post(&store);
        for n in 0..10 {
            a.send(parcel(Kind::Entry, &format!("{n}")));
        }
        until("all are put", || a.figures().sent == 10);
        {
            let mut store = store.lock().unwrap();
            store.kept.truncate(4);
            store.epoch += 1;
        }
        until("it is told", || a.next() == Some(News::Again));
        for n in 0..10 {
            a.send(parcel(Kind::Entry, &format!("{n}")));
        }
        until("six are put again", || a.figures().sent == 16);
        assert_eq!(store.lock().unwrap().kept.len(), 10);
    }

    #[test]
    fn of_what_is_replaced_only_the_last_waits_and_each_of_others_comes() {
        let store = Arc::new(Mutex::new(Store { down: true, ..Store::default() }));
        let (a, b) = (post(&store), post(&store));
        for _ in 0..5 {
            a.send(parcel(Kind::Status, "a"));
        }
        until("one waits", || a.figures().waiting == 1);
        store.lock().unwrap().down = false;
        until("it arrives", || keys(&b) == ["a"]);
        a.send(parcel(Kind::Status, "a"));
        until("it arrives again", || keys(&b) == ["a"]);
    }

    #[test]
    fn a_receiver_that_sleeps_stops_nobody_and_loses_nothing() {
        let store = Arc::new(Mutex::new(Store::default()));
        let (a, b) = (post(&store), post(&store));
        let many = 3 * INBOX;
        for n in 0..many {
            a.send(parcel(Kind::Entry, &format!("{n}")));
        }
        until("all are put", || a.figures().sent == many as u64);
        let mut got = 0;
        until("all arrive", || {
            got += keys(&b).len();
            got == many
        });
    }

    #[test]
    fn the_end_waits_for_what_can_be_put_and_no_longer() {
        let store = Arc::new(Mutex::new(Store { down: true, ..Store::default() }));
        let a = post(&store);
        a.send(parcel(Kind::Entry, "1"));
        let start = Instant::now();
        assert_eq!(a.close(Duration::from_millis(300)).waiting, 1);
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}
