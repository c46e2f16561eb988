//! Traffic control: token buckets and the redirection of what a link receives, as netlink messages (`linux/pkt_sched.h`,
//! `pkt_cls.h`).

use kernel::NetlinkError;
use kernel::nl::message::get_u32;
use kernel::nl::{Attributes, Message, flag};
use kernel::rtnl::Rtnl;

const NEW_QDISC: u16 = 36;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCMSG: usize = 20;
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const BUCKET_HANDLE: u32 = 0x0001_0000;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
/// Longest time a packet may wait for tokens, in microseconds.
const LATENCY: f64 = 25_000.0;
const SECOND: f64 = 1_000_000.0;

/// A token bucket as the kernel is given it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// Time that filling the bucket takes, in the scheduler's ticks.
    pub buffer: u32,
}

impl Bucket {
    /// A bucket for a rate in bits a second and a burst in bits, rounded as Go's plugin rounds.
    pub fn new(rate: u64, burst: u64, ticks_per_microsecond: f64) -> Bucket {
        let (rate, burst) = (rate / 8, u32::try_from(burst / 8).unwrap_or(u32::MAX));
        let fill = (f64::from(burst) * SECOND / rate as f64) as u32;
        Bucket {
            rate,
            limit: ((rate as f64 * LATENCY / SECOND) as u32).saturating_add(burst),
            buffer: (f64::from(fill) * ticks_per_microsecond) as u32,
        }
    }
}

/// Ticks of the packet scheduler in a microsecond (`/proc/net/psched`); 15.625 on every kernel of this century.
pub fn ticks_per_microsecond() -> f64 {
    ticks_in(&std::fs::read_to_string("/proc/net/psched").unwrap_or_default())
}

fn ticks_in(text: &str) -> f64 {
    const USUAL: f64 = 15.625;
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|n| u32::from_str_radix(n, 16).ok())
        .map(f64::from)
        .collect();
    match numbers.as_slice() {
        [to_us, of_us, resolution, ..] if *of_us > 0.0 => to_us / of_us * (resolution / SECOND),
        _ => USUAL,
    }
}

fn header(link: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut bytes = [0; TCMSG];
    for (i, number) in [link, handle, parent, info].into_iter().enumerate() {
        if let Some(place) = bytes.get_mut(4 + i * 4..8 + i * 4) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
    }
    bytes
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// Limits what a link sends.
///
/// # Errors
///
/// The kernel's refusal.
pub fn add_bucket(rtnl: &mut Rtnl, link: u32, bucket: Bucket) -> Result<(), NetlinkError> {
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    // Two `tc_ratespec` of three words, then limit, buffer, mtu.
    let parameters = words(&[0, 0, rate, 0, 0, 0, bucket.limit, bucket.buffer, 0]);
    let message = Message::new("create qdisc", NEW_QDISC, flag::ADD)
        .raw(&header(link, BUCKET_HANDLE, ROOT, 0))
        .text(TCA_KIND, "tbf")
        .nest(TCA_OPTIONS, |options| {
            let options = options.attribute(TCA_TBF_PARMS, &parameters);
            if bucket.rate > u64::from(u32::MAX) {
                options.attribute(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes())
            } else {
                options
            }
        });
    rtnl.socket().request(&message)
}

/// Hands everything a link receives to another one, which can then delay it.
///
/// # Errors
///
/// The kernel's refusal.
pub fn redirect_received(rtnl: &mut Rtnl, link: u32, to: u32) -> Result<(), NetlinkError> {
    const TCA_U32_CLASSID: u16 = 1;
    const TCA_U32_SEL: u16 = 5;
    const TCA_U32_ACT: u16 = 7;
    const TCA_ACT_KIND: u16 = 1;
    const TCA_ACT_OPTIONS: u16 = 2;
    const TCA_MIRRED_PARMS: u16 = 2;
    const STOLEN: u32 = 4;
    const EGRESS_REDIR: u32 = 1;
    let ingress = Message::new("create ingress qdisc", NEW_QDISC, flag::ADD)
        .raw(&header(link, INGRESS_HANDLE, INGRESS, 0))
        .text(TCA_KIND, "ingress");
    // Priority 1, all protocols (`ETH_P_ALL`, big-endian).
    let info = 1 << 16 | u32::from(3u16.to_be());
    // `tc_u32_sel`, terminal, with one key whose mask matches everything.
    let mut selector = vec![1, 0, 1, 0];
    selector.extend([0; 12 + 16]);
    let mirred = words(&[0, 0, STOLEN, 0, 0, EGRESS_REDIR, to]);
    let filter = Message::new("add filter", NEW_FILTER, flag::ADD)
        .raw(&header(link, 0, INGRESS_HANDLE, info))
        .text(TCA_KIND, "u32")
        .nest(TCA_OPTIONS, |options| {
            options
                .u32(TCA_U32_CLASSID, BUCKET_HANDLE | 1)
                .attribute(TCA_U32_SEL, &selector)
                .nest(TCA_U32_ACT, |actions| {
                    actions.nest(1, |action| {
                        action
                            .text(TCA_ACT_KIND, "mirred")
                            .nest(TCA_ACT_OPTIONS, |options| {
                                options.attribute(TCA_MIRRED_PARMS, &mirred)
                            })
                    })
                })
        });
    rtnl.socket().pipeline([ingress, filter]).into_iter().collect()
}

/// The token bucket at a link's root, if that is what is there.
///
/// # Errors
///
/// The kernel's, of listing.
pub fn bucket_of(rtnl: &mut Rtnl, link: u32) -> Result<Option<Bucket>, NetlinkError> {
    let listing = Message::new("list qdiscs", GET_QDISC, 0).raw(&header(link, 0, 0, 0));
    rtnl.socket().dump(
        &listing,
        || None,
        |found, reply| {
            if let Some(head) = reply.header(TCMSG)
                && let Some(bucket) = bucket_in(link, head, reply.attributes(TCMSG))
            {
                *found = Some(bucket);
            }
        },
    )
}

/// The bucket in a listed qdisc, if it is one at the root of this link.
fn bucket_in(link: u32, head: &[u8], attributes: Attributes<'_>) -> Option<Bucket> {
    if get_u32(head, 4) != Some(link) || get_u32(head, 12) != Some(ROOT) {
        return None;
    }
    let (mut kind, mut parameters, mut rate64) = ("", None, None);
    for attribute in attributes {
        match attribute.kind {
            TCA_KIND => kind = attribute.text().unwrap_or_default(),
            TCA_OPTIONS => {
                for option in attribute.nested() {
                    match option.kind {
                        TCA_TBF_PARMS => parameters = Some(option.value),
                        TCA_TBF_RATE64 => rate64 = option.value.try_into().ok().map(u64::from_ne_bytes),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (Some(p), "tbf") = (parameters, kind) else {
        return None;
    };
    let word = |i: usize| get_u32(p, i * 4).unwrap_or(0);
    Some(Bucket {
        rate: rate64.unwrap_or_else(|| u64::from(word(2))),
        limit: word(6),
        buffer: word(7),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_when_made_of_bits_is_gos_in_bytes_and_ticks() {
        let bucket = Bucket::new(8_000_000, 800_000, 15.625);
        assert_eq!(
            bucket,
            Bucket {
                rate: 1_000_000,
                limit: 125_000,
                buffer: 1_562_500
            }
        );
        assert_eq!(
            Bucket::new(1, 8, 15.625).rate,
            0,
            "less than a byte a second is refused by the caller"
        );
    }

    use kernel::nl::message::attributes;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn ticks_when_the_kernel_tells_them_are_computed_and_else_the_usual() {
        assert!((ticks_in("000003e8 00000040 000f4240 3b9aca00\n") - 15.625).abs() < 1e-9);
        assert!((ticks_in("00000003 00000002 001e8480 3b9aca00") - 3.0).abs() < 1e-9);
        for text in ["", "1 2", "00000003 00000000 001e8480"] {
            assert!((ticks_in(text) - 15.625).abs() < 1e-9, "{text}");
        }
    }

    #[test]
    fn header_when_written_has_its_four_numbers_behind_the_family() {
        let bytes = header(7, 8, 9, 10);
        let word = |at| get_u32(&bytes, at);
        assert_eq!(
            [0, 4, 8, 12, 16].map(word),
            [Some(0), Some(7), Some(8), Some(9), Some(10)]
        );
        assert_eq!(words(&[1, 2]), [1u32.to_ne_bytes(), 2u32.to_ne_bytes()].concat());
    }

    #[test]
    fn bucket_when_listed_at_the_links_root_is_read_and_nothing_else_is() {
        let parameters = words(&[0, 0, 500, 0, 0, 0, 60, 70, 0]);
        let options = |rate64: Option<u64>| {
            let rate64 = rate64.map(|rate| attribute(TCA_TBF_RATE64, &rate.to_ne_bytes()));
            [attribute(TCA_TBF_PARMS, &parameters), rate64.unwrap_or_default()].concat()
        };
        let listed = |kind: &[u8], rate64| {
            [
                attribute(TCA_KIND, kind),
                attribute(TCA_OPTIONS, &options(rate64)),
            ]
            .concat()
        };
        let read = |link, parent, bytes: &[u8]| {
            bucket_in(link, &header(3, BUCKET_HANDLE, parent, 0), attributes(bytes))
        };
        let tbf = listed(b"tbf\0", None);
        let bucket = Bucket {
            rate: 500,
            limit: 60,
            buffer: 70,
        };
        assert_eq!(read(3, ROOT, &tbf), Some(bucket));
        let fast = Bucket {
            rate: 1 << 40,
            ..bucket
        };
        assert_eq!(read(3, ROOT, &listed(b"tbf\0", Some(1 << 40))), Some(fast));
        assert_eq!(read(4, ROOT, &tbf), None);
        assert_eq!(read(3, INGRESS, &tbf), None);
        assert_eq!(read(3, ROOT, &listed(b"fq\0", None)), None);
        assert_eq!(read(3, ROOT, &attribute(TCA_KIND, b"tbf\0")), None);
    }
}
