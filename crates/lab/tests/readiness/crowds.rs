//! Many at the health port.

use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use lab::inside;

use crate::bed::Bed;
use crate::table::Table;
use crate::witness::PORT;

const MANY: usize = 200;
/// A tenth of a second is aimed at.
const SLOWEST: Duration = Duration::from_secs(1);

pub fn rows(bed: &mut Bed, table: &mut Table) {
    let netns = bed.host().network_file();
    let connect = || -> std::io::Result<Vec<TcpStream>> {
        (0..MANY)
            .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)))
            .collect()
    };
    let mut crowd = Vec::new();
    bed.prober.slowest();
    table.ready(
        bed,
        "200 idle connections to the health port",
        |_| {
            let now = Instant::now();
            crowd = inside::run(&netns, connect).unwrap();
            now
        },
        |bed| {
            std::thread::sleep(Duration::from_secs(2));
            let slowest = bed.prober.slowest();
            let found = format!(
                "/healthz and /readyz answer within {:.3} s",
                slowest.as_secs_f64()
            );
            if slowest < SLOWEST { Ok(found) } else { Err(found) }
        },
        |_| {},
    );
    drop(crowd);
}
