//! How many attempts may be under way at the same time.
//!
//! What computes has a limit. More attempts at once than the signers can end in time all end without a
//! signature, and what was computed for them is lost; with as many again behind them it stays so, even
//! when what comes in could be carried. So the window is halved when attempts run out of time, and opens
//! again with each that is signed: what a sender does in a crowded network.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many attempts may be under way at least.
const LEAST: u16 = 2;

/// A window, as wide as it may become to begin with.
pub struct Window {
    most: f64,
    places: Semaphore,
    state: Mutex<State>,
}

struct State {
    width: f64,
    /// How many places are to be taken away as attempts leave them.
    owed: usize,
    /// When it was last halved.
    halved: Option<Instant>,
}

/// An attempt's place, until it is dropped.
pub struct Place<'a> {
    window: &'a Window,
    permit: Option<SemaphorePermit<'a>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.window.state();
        if state.owed > 0
            && let Some(permit) = self.permit.take()
        {
            state.owed -= 1;
            permit.forget();
        }
    }
}

impl Window {
    /// For so many attempts at most.
    pub fn new(most: u16) -> Self {
        let state = State { width: most.into(), owed: 0, halved: None };
        Self { most: most.into(), places: Semaphore::new(most.into()), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place; whoever came first gets it first.
    pub async fn enter(&self) -> Place<'_> {
        // An error means that the semaphore was closed, which nobody does.
        Place { window: self, permit: self.places.acquire().await.ok() }
    }

    /// An attempt was signed.
    pub fn open(&self) {
        let mut state = self.state();
        let before = places(state.width);
        state.width = (state.width + 1.0 / state.width).min(self.most);
        if places(state.width) > before {
            match state.owed.checked_sub(1) {
                Some(owed) => state.owed = owed,
                None => self.places.add_permits(1),
            }
        }
    }

    /// An attempt that began then ran out of time.
    pub fn halve(&self, began: Instant) {
        let mut state = self.state();
        // One that began before says nothing of how it has been since.
        if state.halved.is_some_and(|halved| began < halved) {
            return;
        }
        state.halved = Some(Instant::now());
        let before = places(state.width);
        state.width = (state.width / 2.0).max(f64::from(LEAST)).min(self.most);
        let fewer = before - places(state.width);
        state.owed += fewer - self.places.forget_permits(fewer);
        if fewer > 0 {
            tracing::warn!(
                attempts = places(state.width),
                "attempts run out of time: fewer are made at once for a while"
            );
        }
    }
}

/// How many places a width has.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 65535")]
fn places(width: f64) -> usize {
    width as usize
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// As many places as can be had now.
    fn fill(window: &Window) -> Vec<Place<'_>> {
        std::iter::from_fn(|| window.enter().now_or_never()).collect()
    }

    #[test]
    fn it_is_halved_once_for_all_that_began_before() {
        let window = Window::new(48);
        let began = Instant::now();
        let all = fill(&window);
        assert_eq!(all.len(), 48);
        (0..48).for_each(|_| window.halve(began));
        // Those under way leave first.
        let mut all = all.into_iter();
        assert_eq!(all.by_ref().take(24).count(), 24);
        assert!(fill(&window).is_empty());
        drop(all);
        assert_eq!(fill(&window).len(), 24);
        window.halve(Instant::now());
        assert_eq!(fill(&window).len(), 12);
        (0..20).for_each(|_| window.halve(Instant::now()));
        assert_eq!(fill(&window).len(), usize::from(LEAST));
    }

    #[test]
    fn it_opens_with_what_is_signed_up_to_the_most() {
        let window = Window::new(4);
        let all = fill(&window);
        window.halve(Instant::now());
        // Two places are owed; as it opens, they need not be given up.
        (0..5).for_each(|_| window.open());
        drop(all);
        assert_eq!(fill(&window).len(), 3);
        (0..1000).for_each(|_| window.open());
        assert_eq!(fill(&window).len(), 4);
        let one = Window::new(1);
        one.halve(Instant::now());
        one.open();
        assert_eq!(fill(&one).len(), 1);
    }
}
