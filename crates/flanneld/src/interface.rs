//! Which interface carries the traffic between hosts.
/// What the user said about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// `--iface`, in order.
    pub iface: Vec<String>,
    /// `--iface-regex`, in order.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`.
    pub can_reach: Option<std::net::IpAddr>,
    /// `--public-ip`.
    pub public_ip: Option<std::net::Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<std::net::Ipv6Addr>,
}
