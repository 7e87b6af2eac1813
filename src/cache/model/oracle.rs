//! What must come back: kept outside the log, by the side that admitted and was acknowledged.

use std::collections::BTreeMap;

use crate::cache::{Damage, Durable};
use crate::model::{Change, MachineKey, Record, Sequence};

/// One machine's stream as its agent and the cloud log know it.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Everything admitted in this history of the stream, by sequence.
    admitted: BTreeMap<u64, Change>,
    /// Acknowledged through here.
    pub(super) acked: u64,
    /// Published through here: the log may forget it.
    pub(super) published: u64,
    /// Another server owned the machine, and nothing was acknowledged here since: whoever takes the
    /// log over knows that, and uses nothing of this machine.
    elsewhere: bool,
}

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) streams: BTreeMap<MachineKey, Stream>,
    /// Acknowledged by the newest append: row H may lose it if a bit flips there.
    newest: Vec<(MachineKey, u64)>,
    /// Whether bits flipped since the last recovery.
    flipped: bool,
    /// Whether they ever did: damage may be found again.
    damaged: bool,
    /// Whether a record that is sent again says what it said before: then one that was kept back and
    /// is found again is the right one all the same.
    pub(super) repeats: bool,
}

impl Oracle {
    pub(super) fn stream(&mut self, machine: MachineKey) -> &mut Stream {
        self.streams.entry(machine).or_default()
    }

    pub(super) fn admit(&mut self, machine: MachineKey, record: &Record) {
        let stream = self.stream(machine);
        stream.admitted.insert(record.sequence.0, record.change.clone());
    }

    pub(super) fn ack(&mut self, durable: &[Durable]) {
        self.newest.clear();
        for record in durable {
            let (machine, Sequence(sequence)) = (record.machine(), record.sequence());
            self.newest.push((machine, sequence));
            let stream = self.stream(machine);
            assert_eq!(sequence, stream.acked + 1, "acknowledged out of order");
            (stream.acked, stream.elsewhere) = (sequence, false);
        }
    }

    /// The machine's owner changed: what is above `last` is another history now.
    pub(super) fn begin_again(&mut self, machine: MachineKey, last: u64) {
        let stream = self.stream(machine);
        stream.admitted.retain(|&sequence, _| sequence <= last);
        stream.acked = last;
        stream.published = stream.published.max(last);
        stream.elsewhere = true;
    }

    pub(super) fn flip(&mut self) {
        (self.flipped, self.damaged) = (true, true);
    }

    /// Checks a recovery and takes it over as a server would. `reported` counts the damage that was
    /// reported since the last one, by attempts that were cut off as well. Gives what is still needed.
    pub(super) fn check(
        &mut self,
        recovered: Vec<Durable>,
        reported: u64,
        damage: &[Damage],
    ) -> Result<Vec<Durable>, String> {
        if !self.damaged && !damage.is_empty() {
            return Err(format!("damage where nothing was damaged: {damage:?}"));
        }
        let mut runs: BTreeMap<MachineKey, Vec<&Durable>> = BTreeMap::new();
        for record in &recovered {
            runs.entry(record.machine()).or_default().push(record);
        }
        for (&machine, stream) in &mut self.streams {
            let mut run = runs.remove(&machine).unwrap_or_default();
            if stream.elsewhere {
                run.clear();
            }
            if self.damaged && run.first().is_some_and(|r| r.sequence().0 > stream.published + 1) {
                run.clear(); // its beginning is missing: a server must see that, and uses nothing
                stream.elsewhere = true;
            }
            stream.check(&run).map_err(|e| format!("machine {machine}: {e}"))?;
            let usable = run.first();
            let last = usable.map_or(0, |_| run[run.len() - 1].sequence().0);
            let last = last.max(stream.published);
            for lost in last + 1..=stream.acked {
                let row_h = self.flipped && self.newest.contains(&(machine, lost));
                // What an earlier start found has been dealt with then.
                let reported = self.flipped && reported > 0;
                if !row_h && !reported {
                    return Err(format!(
                        "machine {machine}: record {lost} was acknowledged and is lost"
                    ));
                }
            }
            if !self.repeats {
                stream.admitted.retain(|&sequence, _| sequence <= last);
            }
            stream.acked = last; // the agent goes on from here
        }
        if let Some(machine) = runs.keys().next() {
            return Err(format!("records of {machine}, which never was admitted"));
        }
        self.flipped = false;
        self.newest.clear();
        let mut needed = recovered;
        needed.retain(|record| {
            let stream = &self.streams[&record.machine()];
            let sequence = record.sequence().0;
            !stream.elsewhere && sequence > stream.published && sequence <= stream.acked
        });
        Ok(needed)
    }
}

impl Stream {
    fn check(&self, run: &[&Durable]) -> Result<(), String> {
        for (at, record) in run.iter().enumerate() {
            let sequence = record.sequence().0;
            if at > 0 && sequence != run[at - 1].sequence().0 + 1 {
                return Err(format!("record {sequence} does not follow the one before"));
            }
            // Records below `published` may be of a history that another owner has replaced.
            let admitted = self.admitted.get(&sequence);
            if sequence > self.published && admitted.is_none_or(|change| !same(record, change)) {
                return Err(format!("record {sequence} is not the one admitted"));
            }
        }
        Ok(())
    }
}

fn same(record: &Durable, change: &Change) -> bool {
    use crate::cache::DurableChange;
    match (record.change(), change) {
        (DurableChange::Write { disk, extent }, Change::Write { disk: d, extent: e, payload }) => {
            disk == d && extent == e && *payload == *record.payload()
        }
        (DurableChange::Zero { disk, extent }, Change::Zero { disk: d, extent: e }) => {
            disk == d && extent == e
        }
        (DurableChange::Mark(mark), change) => **mark == *change && record.payload().is_empty(),
        _ => false,
    }
}
