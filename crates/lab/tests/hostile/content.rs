//! What somebody might write to the registry, by a generator: the same each time.

use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde_json::json;

/// The generator.
pub struct Content {
    numbers: u64,
    /// The subnet of the honest peer, and what it is known by.
    honest: IpNet,
    mac: String,
    /// Keys of leases that are there: who writes over them needs no weakness.
    taken: Vec<String>,
    /// The node's own address.
    own: Ipv4Addr,
}

/// What is no text for a terminal.
const PAINT: &[&str] = &[
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\nWARN all is lost",
    "\u{202e}txt",
    "\r",
    "\x7f\u{9b}2J",
];

impl Content {
    pub fn new(honest: IpNet, taken: Vec<String>, mac: &str, own: Ipv4Addr) -> Content {
        Content {
            numbers: 16,
            honest,
            taken,
            mac: mac.to_owned(),
            own,
        }
    }

    /// splitmix64.
    fn below(&mut self, bound: usize) -> usize {
        self.numbers = self.numbers.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.numbers;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(bound).unwrap()).unwrap()
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// Keys and values, no key twice.
    pub fn leases(&mut self, count: usize) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        while all.len() < count {
            let entry = (self.key(), self.value());
            if !self.taken.contains(&entry.0) && !all.iter().any(|(key, _)| *key == entry.0) {
                all.push(entry);
            }
        }
        all
    }

    fn key(&mut self) -> String {
        let base = self.honest.network();
        let IpNet::V4(honest) = self.honest else {
            panic!("{}", self.honest)
        };
        let inside = u32::from(honest.network()) + u32::try_from(self.below(256)).unwrap();
        match self.below(12) {
            // Inside the honest peer's subnet.
            0 | 1 => {
                let length = 25 + self.below(7);
                let net = ipnet::Ipv4Net::new(inside.into(), u8::try_from(length).unwrap())
                    .unwrap()
                    .trunc();
                format!("{}-{length}", net.network())
            }
            // Around it.
            2 => {
                let length = 1 + self.below(23);
                let net = ipnet::Ipv4Net::new(honest.network(), u8::try_from(length).unwrap())
                    .unwrap()
                    .trunc();
                format!("{}-{length}", net.network())
            }
            // The same, with another half.
            3 => format!("{base}-24&fd00:{:x}::-64", self.below(65536)),
            4 => format!("{base}-0{}", self.below(100)),
            5 => format!("{}-24", Ipv4Addr::from(inside)),
            6..=8 => format!("10.244.{}.0-24", self.below(256)),
            9 => format!("{}{}", self.pick(PAINT), self.below(1000)),
            10 => "k".repeat(1000 + self.below(20_000)),
            _ => format!(
                "{}/{}",
                self.pick(&["a", "..", "config", "10.244.9.0-24"]),
                self.below(1000)
            ),
        }
    }

    fn value(&mut self) -> String {
        let own = self.own.to_string();
        let mac = self.mac.clone();
        let public = self
            .pick(&[
                "192.0.2.66",
                "255.255.255.255",
                "0.0.0.0",
                "127.0.0.1",
                "224.0.0.1",
                "240.0.0.1",
                "0.1.2.3",
                "10.244.0.9",
                "::1",
                &own,
                "not an address",
                "\x1b[31m",
            ])
            .to_owned();
        let mac = self
            .pick(&[
                &mac,
                "02:00:00:00:00:66",
                "ff:ff:ff:ff:ff:ff",
                "00:00:00:00:00:00",
                "\x1b]0;x\x07",
                "",
            ])
            .to_owned();
        let kind = self
            .pick(&["vxlan", "vxlan", "vxlan", "vxlan", "host-gw", "\u{202e}nalxv", ""])
            .to_owned();
        let lease =
            json!({ "PublicIP": public, "BackendType": kind, "BackendData": { "VNI": 1, "VtepMAC": mac } });
        match self.below(10) {
            0 => "{".to_owned(),
            1 => "[".repeat(10_000),
            2 => format!(
                "{{\"PublicIP\":\"192.0.2.66\",\"x\":{}1{}}}",
                "[".repeat(100),
                "]".repeat(100)
            ),
            3 => {
                json!({ "PublicIP": "192.0.2.66", "BackendType": "vxlan", "BackendData": "x".repeat(30_000) })
                    .to_string()
            }
            4 => self.pick(PAINT).to_owned(),
            _ => lease.to_string(),
        }
    }

    /// Network configs.
    pub fn configs(&mut self, count: usize) -> Vec<String> {
        let one = |content: &mut Content| {
            let network = content.pick(&[
                "10.244.0.0/16",
                "10.99.0.0/16",
                "0.0.0.0/0",
                "",
                "fd00::/48",
                "\x1b[31m",
            ]);
            let kind = content.pick(&["vxlan", "udp", "\x1b]0;x\x07", "extension"]);
            match content.below(6) {
                0 => "{".to_owned(),
                1 => "[".repeat(100_000),
                2 => json!({ "Network": network, "x": "y".repeat(500_000) }).to_string(),
                3 => content.pick(PAINT).to_owned(),
                _ => json!({ "Network": network, "Backend": { "Type": kind, "VNI": content.below(99), "PreStartupCommand": "touch /hostile" } })
                    .to_string(),
            }
        };
        (0..count).map(|_| one(self)).collect()
    }

    /// A lease, and what is none, of one key.
    pub fn flap(&self) -> [(String, String); 2] {
        let key = "10.244.255.0-24".to_owned();
        let good = json!({ "PublicIP": "192.0.2.66", "BackendType": "vxlan", "BackendData": { "VNI": 1, "VtepMAC": "02:00:00:00:00:66" } });
        [(key.clone(), good.to_string()), (key, "{".to_owned())]
    }
}

/// Leases of hosts that are not there, in `100.64.0.0/10`: the first 4,000 subnets are left to the hosts that are.
pub fn crowd(count: usize) -> impl Iterator<Item = (String, String)> {
    let first = u32::from(Ipv4Addr::new(100, 64, 0, 0)) + 4_000 * 64;
    (0..u32::try_from(count).unwrap()).map(move |n| {
        let [_, b, c, d] = n.to_be_bytes();
        let value = json!({
            "PublicIP": Ipv4Addr::new(11, 1 + b, c, d),
            "PublicIPv6": null,
            "BackendType": "vxlan",
            "BackendData": { "VNI": 1, "VtepMAC": format!("02:00:00:{b:02x}:{c:02x}:{d:02x}") },
        });
        (
            format!("{}-26", Ipv4Addr::from(first + n * 64)),
            value.to_string(),
        )
    })
}
