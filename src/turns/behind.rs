//! Threads that may wait for the CPU.

/// Nice value of threads behind the cache: a third of the weight of those that an ack waits for.
const NICE: i32 = 5;

/// The calling thread, and those that it will start, get out of the way of those that an ack waits for
/// (receiving, the cache log). What they do is as much as before; when the CPU is short it is done
/// later, until the cache fills and agents get less credit.
pub fn behind_acks() {
    // Linux: of the calling thread alone. Refused nowhere, and without it all is as right, only slower.
    // Who was started further behind stays there.
    if rustix::process::getpriority_process(None).is_ok_and(|present| present < NICE) {
        let _unchanged = rustix::process::setpriority_process(None, NICE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_this_thread_and_no_other() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let behind = std::thread::spawn(move || {
            behind_acks();
            (nice(), std::thread::spawn(nice).join().unwrap())
        });
        assert_eq!(behind.join().unwrap(), (NICE.max(before), NICE.max(before)));
        assert_eq!(nice(), before);
    }
}
