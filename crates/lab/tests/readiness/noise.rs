//! The engine beside others' noise: how fast ours is repaired, what the daemon spends, and what it reads of the kernel as a whole.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::Node;
use lab::process::stat;

use crate::bed::Bed;
use crate::table::print;

/// What gates; a fifth of it is aimed at.
const REPAIR: Duration = Duration::from_secs(1);
/// What is read as a whole in a few seconds without any noise: an audit, and what a link of ours asks for.
const DUMPS: u64 = 6;

struct Measured {
    /// How often the noise began.
    turns: usize,
    repair: Duration,
    /// Ticks of 10 ms.
    ticks: u64,
    took: Duration,
    dumps: u64,
}

/// Times the daemon read the kernel's state as a whole since it started.
fn dumps(bed: &Bed) -> u64 {
    let of = |scope| bed.metric(&format!("flannel_kernel_dumps_total{{scope=\"{scope}\"}}"));
    ["all", "link", "interfaces"].map(of).iter().sum()
}

/// A fourth repair of one object within a minute would be a fight, and its pause what is measured.
const REPAIRS: u32 = 3;

/// Repairs beside a noise that begins anew until they are measured.
fn measure(bed: &Bed, noise: impl Fn(&Node, usize) + Sync) -> Measured {
    let pid = bed.daemon().pid();
    let peer = bed.peer();
    let ticks = || stat(pid).map_or(0, |stat| stat.ticks);
    let (dumped, spent, start) = (dumps(bed), ticks(), Instant::now());
    let mut repair = Duration::ZERO;
    let (host, done, turns) = (bed.host(), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) || turns.load(Ordering::Relaxed) < 2 {
                noise(host, turns.fetch_add(1, Ordering::Relaxed));
            }
        });
        for _ in 0..REPAIRS {
            std::thread::sleep(Duration::from_millis(900));
            let struck = bed.shell(&format!("ip route del {peer}"));
            while host.ip(&["route", "show", &peer]).unwrap().is_empty() {
                assert!(struck.elapsed() < Duration::from_secs(30), "no repair");
            }
            repair = repair.max(struck.elapsed());
        }
        done.store(true, Ordering::Relaxed);
    });
    Measured {
        turns: turns.into_inner(),
        repair,
        ticks: ticks() - spent,
        took: start.elapsed(),
        dumps: dumps(bed) - dumped,
    }
}

pub fn table() {
    let mut bed = Bed::new();
    let mut text = format!(
        "\n{:<44} {:>6} {:>10} {:>10} {:>10} {:>6}\n",
        "NOISE", "TIMES", "REPAIR s", "CPU s", "WALL s", "DUMPS"
    );
    let mut wrong = Vec::new();
    let mut add = |what: &str, measured: &Measured| {
        let _ = writeln!(
            text,
            "{what:<44} {:>6} {:>10.3} {:>10.2} {:>10.1} {:>6}",
            measured.turns,
            measured.repair.as_secs_f64(),
            f64::from(u32::try_from(measured.ticks).unwrap_or(u32::MAX)) / 100.0,
            measured.took.as_secs_f64(),
            measured.dumps
        );
        if measured.repair > REPAIR {
            wrong.push(format!("{what}: repaired after {:?}", measured.repair));
        }
        if measured.dumps > DUMPS {
            wrong.push(format!("{what}: {} dumps", measured.dumps));
        }
    };
    let fresh = |bed: &mut Bed| {
        bed.prober.rest(false);
        bed.restart(&[]);
        bed.ready();
        bed.prober.rest(true);
        // The first writes and renewals are over.
        std::thread::sleep(Duration::from_secs(3));
    };

    fresh(&mut bed);
    assert!(dumps(&bed) > 0, "the first reading counts");
    add(
        "nothing",
        &measure(&bed, |_, _| std::thread::sleep(Duration::from_millis(500))),
    );

    fresh(&mut bed);
    let each = measure(&bed, |host, turn| {
        host.ip(&["route", "add", &format!("172.20.0.{turn}"), "via", "198.18.0.12"])
            .unwrap();
        std::thread::sleep(Duration::from_secs(1));
    });
    add("a foreign route a second", &each);

    fresh(&mut bed);
    let many: String = (0..10_000)
        .map(|n| format!("route add 172.16.{}.{} via 198.18.0.12\n", n / 250, n % 250))
        .collect();
    let gone = many.replace(" add ", " del ");
    let crowd = measure(&bed, |host, turn| {
        host.ip_batch(if turn % 2 == 0 { &many } else { &gone }).unwrap();
    });
    add("10,000 foreign routes at once, or their end", &crowd);

    fresh(&mut bed);
    let links: String = (0..500)
        .map(|n| format!("link add n{n} group 77 type veth peer name m{n}\n"))
        .collect();
    let crowd = measure(&bed, |host, _| {
        host.ip_batch(&links).unwrap();
        host.ip(&["link", "del", "group", "77"]).unwrap();
    });
    add("1,000 links made and removed", &crowd);
    print(&text);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
