//! Something scarce that many machines want: who gets it next.
//!
//! Owns: streams, bytes and CPU slots given out machine by machine, so that one that wants a lot
//! cannot make the others wait. Does not own: how much there is (its owner says), what is done with
//! it.

mod behind;
mod order;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

pub use self::behind::behind_acks;
use self::order::{Granted, Order, Pool};
use crate::model::MachineKey;

/// A number of units that machines share by turns. Clones share the same units.
#[derive(Clone, Debug)]
pub struct Turns {
    order: Arc<Mutex<Order<oneshot::Sender<()>>>>,
}

/// Units that a machine has now; given back when dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    who: MachineKey,
    pool: Pool,
    units: u64,
}

impl Turns {
    /// `capacity` units (at least one). Of them `reserve` go only to machines that have none: so a
    /// machine that wants little need not wait for one that wants much.
    #[must_use]
    pub fn new(capacity: u64, reserve: u64) -> Self {
        Self { order: Arc::new(Mutex::new(Order::new(capacity, reserve))) }
    }

    /// Changes how many units there are. Who has some keeps them.
    pub fn resize(&self, capacity: u64, reserve: u64) {
        let mut order = self.order();
        order.resize(capacity, reserve);
        self.serve(order);
    }

    /// Waits for `units`. `cost` is what the turn counts for: a machine comes again when the others
    /// that wait have had as much. More units than there are count as all of them.
    pub async fn take(&self, who: MachineKey, units: u64, cost: u64) -> Turn {
        let (tell, told) = oneshot::channel();
        let mut waiting = {
            let mut order = self.order();
            let id = order.ask(who, units, cost, tell);
            self.serve(order);
            Waiting { turns: self, id: Some(id) }
        };
        drop(told.await); // the sender is only dropped by being told
        let id = waiting.id.take().expect("taken here only");
        self.turn(self.order().collect(id))
    }

    /// Machines' wishes that wait now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.order().waiting()
    }

    /// Units that are given out now.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.order().in_use()
    }

    /// Units that there are.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.order().capacity()
    }

    fn turn(&self, granted: Granted) -> Turn {
        let Granted { who, pool, units } = granted;
        Turn { turns: self.clone(), who, pool, units }
    }

    /// Gives what is free to who comes next.
    fn serve(&self, mut order: MutexGuard<'_, Order<oneshot::Sender<()>>>) {
        while let Some(tell) = order.serve() {
            let _gone = tell.send(()); // who has gone meanwhile gives it back by itself
        }
    }

    fn order(&self) -> MutexGuard<'_, Order<oneshot::Sender<()>>> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Gives back what is not needed for `units`: the item turned out smaller than it might have.
    pub fn shrink_to(&mut self, units: u64) {
        let spare = self.units.saturating_sub(units);
        self.units -= spare;
        let mut order = self.turns.order();
        order.give_back(self.who, self.pool, spare, false);
        self.turns.serve(order);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut order = self.turns.order();
        order.give_back(self.who, self.pool, self.units, true);
        self.turns.serve(order);
    }
}

/// A wish that is withdrawn when its future is dropped.
struct Waiting<'a> {
    turns: &'a Turns,
    id: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut order = self.turns.order();
        order.withdraw(id);
        self.turns.serve(order);
    }
}
