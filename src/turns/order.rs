//! The order of turns: start-time fair queueing over machines, and a reserve. Sans-io.
//!
//! Every wish gets a tag: the virtual time at which its machine's turn begins. It is the present
//! virtual time, or, while the machine has had more than its share, the end of its last turn; a
//! turn is as long as its cost. The smallest tag is served first (Goyal, Vin, Cheng: Start-time
//! Fair Queueing, 1996), so a machine with a thousand wishes waits behind one that has just come.
//!
//! The order alone does not help who comes when everything is given out already. So the units are
//! two pools: the reserve goes only to machines that have nothing. And while others are about, one
//! machine gets at most half of the rest: with all of it in the hands of one, whose turns are long,
//! the others would wait for those to end, however early their turn is.

use std::collections::{BTreeMap, HashMap};

use crate::model::MachineKey;

/// Which part of the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Common,
    Reserve,
}

/// What a wish was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) who: MachineKey,
    pub(super) pool: Pool,
    pub(super) units: u64,
}

#[derive(Debug)]
struct Wish<T> {
    who: MachineKey,
    units: u64,
    tell: T,
}

#[derive(Debug, Default)]
struct Share {
    /// Turns that it has.
    turns: u64,
    waiting: u64,
    /// Common units that it has.
    common: u64,
    /// Virtual time at which its next turn may begin.
    next: u64,
}

impl Share {
    fn is_idle(&self) -> bool {
        self.turns + self.waiting == 0
    }
}

/// Wishes, and what is given out.
#[derive(Debug)]
pub(super) struct Order<T> {
    common: u64,
    reserve: u64,
    common_used: u64,
    reserve_used: u64,
    now: u64, // virtual time: the tag of the newest turn
    ids: u64,
    shares: HashMap<MachineKey, Share>,
    active: usize,                         // shares with turns or wishes
    wishes: BTreeMap<(u64, u64), Wish<T>>, // by (tag, id)
    tags: HashMap<u64, u64>,               // id → tag
    granted: HashMap<u64, Granted>,        // not collected yet
}

impl<T> Order<T> {
    pub(super) fn new(capacity: u64, reserve: u64) -> Self {
        let mut order = Self {
            common: 0,
            reserve: 0,
            common_used: 0,
            reserve_used: 0,
            now: 0,
            ids: 0,
            shares: HashMap::new(),
            active: 0,
            wishes: BTreeMap::new(),
            tags: HashMap::new(),
            granted: HashMap::new(),
        };
        order.resize(capacity, reserve);
        order
    }

    pub(super) fn resize(&mut self, capacity: u64, reserve: u64) {
        self.common = capacity.saturating_sub(reserve).max(1);
        self.reserve = reserve.min(capacity.saturating_sub(1));
    }

    pub(super) fn capacity(&self) -> u64 {
        self.common + self.reserve
    }

    pub(super) fn in_use(&self) -> u64 {
        self.common_used + self.reserve_used
    }

    pub(super) fn waiting(&self) -> usize {
        self.wishes.len()
    }

    /// Queues a wish; its id names it until it was collected or withdrawn.
    pub(super) fn ask(&mut self, who: MachineKey, units: u64, cost: u64, tell: T) -> u64 {
        let share = self.shares.entry(who).or_default();
        let tag = share.next.max(self.now);
        share.next = tag.saturating_add(cost.max(1));
        self.active += usize::from(share.is_idle());
        share.waiting += 1;
        self.ids += 1;
        self.wishes.insert((tag, self.ids), Wish { who, units, tell });
        self.tags.insert(self.ids, tag);
        self.ids
    }

    /// Grants the next wish that can be, if any.
    pub(super) fn serve(&mut self) -> Option<T> {
        let (at, pool, units) = self.next()?;
        let wish = self.wishes.remove(&at).expect("the key was just seen");
        let (tag, id) = at;
        self.tags.remove(&id);
        self.now = self.now.max(tag);
        let share = self.shares.entry(wish.who).or_default();
        share.waiting = share.waiting.saturating_sub(1);
        share.turns += 1;
        share.common += if pool == Pool::Common { units } else { 0 };
        *self.used(pool) += units;
        self.granted.insert(id, Granted { who: wish.who, pool, units });
        self.forget();
        Some(wish.tell)
    }

    /// The wish whose turn it is. In the common pool nobody overtakes: who needs more than is free
    /// is waited for. Past it, machines that have nothing may use the reserve.
    fn next(&self) -> Option<((u64, u64), Pool, u64)> {
        let free = self.common.saturating_sub(self.common_used);
        let spare = self.reserve.saturating_sub(self.reserve_used);
        let half = self.common.div_ceil(2);
        let mut common_open = true;
        for (&at, wish) in &self.wishes {
            let units = wish.units.min(self.common);
            let share = self.shares.get(&wish.who);
            let has = share.map_or(0, |share| share.common);
            if has > 0 && has + units > half && self.active > 1 {
                continue;
            }
            if common_open && units <= free {
                return Some((at, Pool::Common, units));
            }
            common_open = false;
            if spare == 0 {
                return None;
            }
            let has_nothing = share.is_none_or(|share| share.turns == 0);
            if has_nothing {
                // Nor does anybody overtake in the reserve.
                let units = wish.units.min(self.reserve);
                return (units <= spare).then_some((at, Pool::Reserve, units));
            }
        }
        None
    }

    /// Who was told takes what it was given.
    pub(super) fn collect(&mut self, id: u64) -> Granted {
        self.granted.remove(&id).expect("told once, collected once")
    }

    /// The wish is given up, whether it was granted or not.
    pub(super) fn withdraw(&mut self, id: u64) {
        if let Some(granted) = self.granted.remove(&id) {
            self.give_back(granted.who, granted.pool, granted.units, true);
        } else if let Some(tag) = self.tags.remove(&id)
            && let Some(wish) = self.wishes.remove(&(tag, id))
            && let Some(share) = self.shares.get_mut(&wish.who)
        {
            share.waiting = share.waiting.saturating_sub(1);
            self.active -= usize::from(share.is_idle());
            self.forget();
        }
    }

    /// Units come back; `whole` when their turn ends with them.
    pub(super) fn give_back(&mut self, who: MachineKey, pool: Pool, units: u64, whole: bool) {
        let used = self.used(pool);
        *used = used.saturating_sub(units);
        if let Some(share) = self.shares.get_mut(&who) {
            share.turns = share.turns.saturating_sub(u64::from(whole));
            self.active -= usize::from(whole && share.is_idle());
            share.common -= if pool == Pool::Common { units.min(share.common) } else { 0 };
        }
        self.forget();
    }

    fn used(&mut self, pool: Pool) -> &mut u64 {
        match pool {
            Pool::Common => &mut self.common_used,
            Pool::Reserve => &mut self.reserve_used,
        }
    }

    /// While nobody waits nobody owes anything: only machines that have something are remembered,
    /// so this is as large as there are turns and wishes, not as there were machines.
    fn forget(&mut self) {
        if self.wishes.is_empty() {
            self.shares.retain(|_, share| share.turns > 0);
            self.shares.values_mut().for_each(|share| share.next = self.now);
        }
    }
}
