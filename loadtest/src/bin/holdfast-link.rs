//! A long path on one machine: two network devices and what lies between them. Every packet that
//! leaves through one comes out of the other later, or never. Both transports run over the same
//! one, packet by packet, so what is lost is lost to TCP's own recovery as it is to QUIC's.
//!
//! Makes the devices, says `ready`, carries packets for `--seconds`, ends. Whoever started it moves
//! the devices into their network namespaces (`loadtest/side-by-side.sh`). Needs CAP_NET_ADMIN.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use clap::Parser;
use holdfast::clock::{Clock, System};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::ioctl::{Setter, ioctl};

/// `TUNSETIFF` of linux/if_tun.h.
const SET_DEVICE: rustix::ioctl::Opcode = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI`: IP packets, nothing before them.
const IP_PACKETS: i16 = 0x1001;
/// Packets on their way in one direction; a gigabit for a second.
const PACKETS_MAX: usize = 100_000;

/// A path with delay, loss and a bottleneck between two devices
#[derive(Debug, Parser)]
#[command(name = "holdfast-link", version)]
struct Args {
    /// The two devices to make
    #[arg(long, num_args = 2, default_values_t = ["hf-near".to_owned(), "hf-far".to_owned()])]
    devices: Vec<String>,
    /// Delay of each direction, ms
    #[arg(long, default_value_t = 50)]
    delay: u64,
    /// Packets lost in each direction, %
    #[arg(long, default_value_t = 1.0)]
    loss: f64,
    /// Rate of the bottleneck of each direction, Mbit/s
    #[arg(long, default_value_t = 500)]
    rate: u64,
    /// How much the bottleneck queues before it drops, ms at its rate
    #[arg(long, default_value_t = 100)]
    queue: u64,
    /// When to end
    #[arg(long)]
    seconds: u64,
}

/// `struct ifreq`, as far as the request reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

/// A packet and the moment at which it comes out.
type Late = (Duration, Vec<u8>);

fn device(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: IP_PACKETS, rest: [0; 22] };
    let fits = name.len() < request.name.len();
    let place = request.name.get_mut(..name.len()).filter(|_| fits);
    let place = place.ok_or_else(|| io::Error::other(format!("{name}: a longer name than 15")))?;
    place.copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads one `struct ifreq` of 40 bytes, which `Request` is, and writes the
    // device's name into it; it lives until the call returns.
    #[allow(unsafe_code, reason = "the only way to make a network device")]
    unsafe {
        ioctl(&file, Setter::<SET_DEVICE, Request>::new(request))?;
    }
    Ok(file)
}

/// Takes packets from one device and decides what becomes of them.
fn take(mut from: File, onward: SyncSender<Late>, args: &Args, seed: u64) -> io::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let (delay, queue) = (Duration::from_millis(args.delay), Duration::from_millis(args.queue));
    let mut free_at = Duration::ZERO;
    let mut packet = vec![0; 65_536];
    loop {
        let length = from.read(&mut packet)?;
        let now = System.monotonic();
        let begins_at = free_at.max(now);
        let lost = random.random_bool(args.loss / 100.0);
        if lost || begins_at - now > queue {
            continue;
        }
        free_at = begins_at + Duration::from_nanos(length as u64 * 8_000 / args.rate.max(1));
        match onward.try_send((free_at + delay, packet[..length].to_vec())) {
            Ok(()) | Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => return Ok(()),
        }
    }
}

/// Lets packets out of the other device when it is their time.
fn give(mut to: File, late: Receiver<Late>) {
    for (at, packet) in late {
        let wait = at.saturating_sub(System.monotonic());
        if !wait.is_zero() {
            pause(wait);
        }
        // A device that is not up yet takes nothing: that packet is lost, too.
        drop(to.write(&packet));
    }
}

#[allow(clippy::disallowed_methods, reason = "delay is what this program makes")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

fn run(args: &Args) -> io::Result<()> {
    let [near, far] = [device(&args.devices[0])?, device(&args.devices[1])?];
    std::thread::scope(|scope| {
        for (seed, from, to) in [(1, &near, &far), (2, &far, &near)] {
            let (onward, late) = sync_channel(PACKETS_MAX);
            let (from, to) = (from.try_clone()?, to.try_clone()?);
            scope.spawn(move || give(to, late));
            scope.spawn(move || take(from, onward, args, seed));
        }
        println!("ready");
        io::stdout().flush()?;
        pause(Duration::from_secs(args.seconds));
        // The threads sit in reads that nothing ends but the end of the process.
        std::process::exit(0)
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}; does this user have CAP_NET_ADMIN?");
            ExitCode::FAILURE
        }
    }
}
