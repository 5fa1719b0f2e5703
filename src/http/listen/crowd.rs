//! Who is connected to a listener, and who has to go when there are too many.
//!
//! Pure bookkeeping: it closes nothing itself, it asks the connection's own task, which knows whether it may.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// A client that has sent no whole request for so long after it connected is the first to go.
const STRANGER: Duration = Duration::from_secs(1);
/// Nobody is asked to leave sooner: a client's first bytes come right behind its connection.
const ARRIVAL: Duration = Duration::from_millis(20);
/// How long whoever is asked to leave may take, before the next is looked for.
const LEAVING: Duration = Duration::from_millis(100);
/// So often is one looked for, for one new connection.
const TRIES: usize = 20;

/// The connections of one listener.
#[derive(Debug)]
pub(super) struct Crowd {
    most: usize,
    inside: Mutex<Inside>,
    /// Told whenever somebody is gone.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    places: HashMap<u64, Arc<Place>>,
}

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Nothing has come of the next request.
    Waiting,
    /// Some of its head has.
    Head,
    /// A request is in hand, or its answer.
    Busy,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) doing: Doing,
    pub(super) since: Instant,
    /// It has had a whole request.
    pub(super) known: bool,
    /// Requests in hand; more than one where a connection carries several.
    turns: usize,
    /// Bytes of an answer may still be on this side.
    pub(super) unsent: bool,
    asked_to_leave: bool,
}

impl State {
    /// Whether closing it now loses nothing that was admitted.
    fn may_leave(&self) -> bool {
        self.doing != Doing::Busy && !self.unsent
    }
}

/// One connection, as its task and its listener share it.
#[derive(Debug)]
pub(super) struct Place {
    state: Mutex<State>,
    leave: Notify,
}

impl Place {
    pub(super) fn new(now: Instant) -> Self {
        let doing = Doing::Waiting;
        let state = State { doing, since: now, known: false, turns: 0, unsent: false, asked_to_leave: false };
        Place { state: Mutex::new(state), leave: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> State {
        *self.state()
    }

    /// The connection can be spoken on: what came before, a handshake, does not count.
    pub(super) fn greeted(&self, now: Instant) {
        let mut state = self.state();
        (state.doing, state.since) = (Doing::Waiting, now);
    }

    pub(super) fn bytes_came(&self, now: Instant) {
        let mut state = self.state();
        if state.doing == Doing::Waiting {
            (state.doing, state.since) = (Doing::Head, now);
        }
    }

    /// A head was whole; the connection is busy until what is returned is dropped.
    pub(super) fn turn(self: &Arc<Self>) -> Turn {
        let mut state = self.state();
        (state.doing, state.known, state.asked_to_leave) = (Doing::Busy, true, false);
        state.turns += 1;
        Turn(Arc::clone(self))
    }

    pub(super) fn writes(&self, unsent: bool) {
        self.state().unsent = unsent;
    }

    /// Resolves when it is asked to leave and nothing keeps it.
    pub(super) async fn asked_to_leave(&self) {
        loop {
            self.leave.notified().await;
            let mut state = self.state();
            if state.asked_to_leave && state.may_leave() {
                return;
            }
            state.asked_to_leave = false;
        }
    }
}

/// A request, until its answer's last byte was handed over.
#[derive(Debug)]
pub(super) struct Turn(Arc<Place>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.turns -= 1;
        if state.turns == 0 {
            (state.doing, state.since) = (Doing::Waiting, Instant::now());
        }
    }
}

/// Whether a connection leaves for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// One is asked to.
    Asked,
    /// None was here long enough; the first one will have been then.
    In(Duration),
    /// All are busy.
    None,
}

/// A place in the crowd, for as long as it is held.
#[derive(Debug)]
pub(super) struct Seat {
    crowd: Arc<Crowd>,
    number: u64,
    pub(super) place: Arc<Place>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.crowd.inside().places.remove(&self.number);
        self.crowd.freed.notify_one();
    }
}

impl Crowd {
    pub(super) fn new(most: usize) -> Self {
        Crowd { most, inside: Mutex::default(), freed: Notify::new() }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, where need be when one that only waits has left. None when all are busy.
    ///
    /// A flood is let in no faster than those before it may leave; who comes meanwhile waits in the system's queue.
    pub(super) async fn enter(self: &Arc<Self>) -> Option<Seat> {
        for _ in 0..TRIES {
            if let Some(seat) = self.sit_down() {
                return Some(seat);
            }
            let patience = match self.make_room() {
                Room::Asked => LEAVING,
                Room::In(soon) => soon,
                Room::None => return None,
            };
            // Whether anybody left shows in what is tried next.
            let _ = tokio::time::timeout(patience, self.freed.notified()).await;
        }
        self.sit_down()
    }

    fn sit_down(self: &Arc<Self>) -> Option<Seat> {
        let mut inside = self.inside();
        if inside.places.len() >= self.most {
            return None;
        }
        let (number, place) = (inside.next, Arc::new(Place::new(Instant::now())));
        inside.next += 1;
        inside.places.insert(number, Arc::clone(&place));
        Some(Seat { crowd: Arc::clone(self), number, place })
    }

    /// Asks a connection that only waits to leave.
    pub(super) fn make_room(&self) -> Room {
        self.inside().ask_one(Instant::now())
    }
}

impl Inside {
    /// First those who have sent no whole request for a while, then whoever has waited longest.
    fn ask_one(&mut self, now: Instant) -> Room {
        let waiting = self.places.values().filter_map(|place| {
            let state = place.look();
            let friend = state.known || now.saturating_duration_since(state.since) < STRANGER;
            state.may_leave().then_some((friend, state.since, place))
        });
        let Some((_, since, place)) = waiting.min_by_key(|(friend, since, _)| (*friend, *since)) else {
            return Room::None;
        };
        match ARRIVAL.checked_sub(now.saturating_duration_since(since)) {
            Some(soon) if !soon.is_zero() => Room::In(soon),
            _ => {
                place.state().asked_to_leave = true;
                place.leave.notify_one();
                Room::Asked
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(seat: &Seat) -> bool {
        seat.place.look().asked_to_leave
    }

    /// As if it had begun to wait so long ago.
    fn waits_since(seat: &Seat, ago: Duration) {
        seat.place.greeted(Instant::now().checked_sub(ago).unwrap());
    }

    /// Somebody who leaves when asked to.
    fn polite(seat: Seat) {
        tokio::spawn(async move {
            seat.place.asked_to_leave().await;
            drop(seat);
        });
    }

    #[tokio::test]
    async fn whoever_only_waits_makes_room_and_whoever_is_busy_does_not() {
        let crowd = Arc::new(Crowd::new(2));
        let (first, second) = (crowd.enter().await.unwrap(), crowd.enter().await.unwrap());
        assert!(matches!(crowd.make_room(), Room::In(_)), "both have only just come");
        let turn = first.place.turn();
        polite(second);
        let third = crowd.enter().await.unwrap();
        let _turns = (third.place.turn(), turn);
        assert!(crowd.enter().await.is_none(), "both are busy");
        drop(first);
        assert!(crowd.enter().await.is_some());
    }

    #[tokio::test]
    async fn there_are_never_more_than_there_may_be() {
        let crowd = Arc::new(Crowd::new(8));
        for _ in 0..100 {
            let Some(seat) = crowd.enter().await else { panic!("nobody left") };
            assert!(crowd.inside().places.len() <= 8);
            waits_since(&seat, ARRIVAL);
            polite(seat);
        }
    }

    #[test]
    fn an_answer_that_is_not_sent_yet_keeps_its_connection() {
        let crowd = Arc::new(Crowd::new(1));
        let seat = crowd.sit_down().unwrap();
        waits_since(&seat, ARRIVAL);
        seat.place.writes(true);
        assert_eq!(crowd.make_room(), Room::None);
        seat.place.writes(false);
        assert_eq!(crowd.make_room(), Room::Asked);
        assert!(asked(&seat));
    }

    #[test]
    fn those_who_never_sent_a_request_go_before_those_who_did() {
        let crowd = Arc::new(Crowd::new(2));
        let (known, stranger) = (crowd.sit_down().unwrap(), crowd.sit_down().unwrap());
        drop(known.place.turn());
        waits_since(&known, 2 * STRANGER);
        waits_since(&stranger, STRANGER);
        assert_eq!(crowd.make_room(), Room::Asked);
        assert!(asked(&stranger) && !asked(&known));
    }

    #[test]
    fn a_connection_is_busy_until_its_last_request_is_done() {
        let crowd = Arc::new(Crowd::new(1));
        let seat = crowd.sit_down().unwrap();
        let (first, second) = (seat.place.turn(), seat.place.turn());
        drop(first);
        assert_eq!(crowd.make_room(), Room::None);
        drop(second);
        waits_since(&seat, ARRIVAL);
        assert_eq!(crowd.make_room(), Room::Asked);
    }

    #[tokio::test]
    async fn a_connection_that_took_a_request_meanwhile_stays() {
        let crowd = Arc::new(Crowd::new(1));
        let seat = crowd.sit_down().unwrap();
        waits_since(&seat, ARRIVAL);
        crowd.make_room();
        let turn = seat.place.turn();
        let short = Duration::from_millis(20);
        assert!(tokio::time::timeout(short, seat.place.asked_to_leave()).await.is_err());
        drop(turn);
        waits_since(&seat, ARRIVAL);
        crowd.make_room();
        seat.place.asked_to_leave().await;
    }
}
