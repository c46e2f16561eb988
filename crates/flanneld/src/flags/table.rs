//! The table of flags.

use super::go_value;
use super::parse::Raw;

/// The kind of a flag's value, with the place it is kept at.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Any text.
    Text(fn(&mut Raw) -> &mut String),
    /// One of the given words.
    Choice(&'static [&'static str], fn(&mut Raw) -> &mut String),
    /// A Go boolean; never takes the next argument.
    Bool(fn(&mut Raw) -> &mut bool),
    /// A Go integer of 64 bits in any base.
    Int(fn(&mut Raw) -> &mut i64),
    /// Text, repeatable, in order; never split.
    List(fn(&mut Raw) -> &mut Vec<String>),
    /// klog's `-v`: a decimal of 32 bits.
    Level(fn(&mut Raw) -> &mut i32),
    /// klog's `-vmodule`.
    Modules(fn(&mut Raw) -> &mut String),
    /// klog's `-log_backtrace_at`.
    Location(fn(&mut Raw) -> &mut String),
}

impl Kind {
    /// The word that stands for the value in help texts; empty for a boolean.
    pub fn placeholder(&self) -> String {
        match self {
            Kind::Text(_) => "text".into(),
            Kind::Choice(words, _) => words.join("|"),
            Kind::Bool(_) => String::new(),
            Kind::Int(_) | Kind::Level(_) => "number".into(),
            Kind::List(_) => "text".into(),
            Kind::Modules(_) => "pattern=number,...".into(),
            Kind::Location(_) => "file.go:line".into(),
        }
    }
}

/// Under which heading help texts show a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Where leases are kept.
    Registry,
    /// Which interface and addresses other hosts reach us at.
    Underlay,
    /// What is written for docker and the CNI plugin, and how long a lease is held.
    Lease,
    /// Masquerading and forwarding rules.
    Firewall,
    /// Kubernetes as the registry.
    Kubernetes,
    /// Health, metrics, logging.
    Operation,
}

impl Section {
    /// All, in the order of help texts.
    pub const ALL: [Section; 6] = [
        Section::Registry,
        Section::Underlay,
        Section::Lease,
        Section::Firewall,
        Section::Kubernetes,
        Section::Operation,
    ];

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Section::Registry => "Registry (etcd)",
            Section::Underlay => "Interface and addresses",
            Section::Lease => "Subnet and lease",
            Section::Firewall => "Firewall and routes",
            Section::Kubernetes => "Kubernetes",
            Section::Operation => "Operation",
        }
    }
}

/// One flag.
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// Kind of the value and where it is kept.
    pub kind: Kind,
    /// Default as one would type it; empty where a text or list is empty.
    pub default: &'static str,
    /// What it does, a sentence or two.
    pub meaning: &'static str,
    /// Heading it belongs under.
    pub section: Section,
    /// The feature it belongs to, when that is not built yet: any value but the default is refused.
    pub unbuilt: Option<&'static str>,
}

impl Flag {
    /// Sets the flag in `raw` from text; the error says what is wrong with the text, in Go's words.
    pub fn set(&self, raw: &mut Raw, text: &str) -> Result<(), String> {
        match self.kind {
            Kind::Text(place) => *place(raw) = text.to_owned(),
            Kind::Choice(words, place) => {
                if !words.contains(&text) {
                    return Err(format!("expected {}", words.join(" or ")));
                }
                *place(raw) = text.to_owned();
            }
            Kind::Bool(place) => *place(raw) = go_value::boolean(text)?,
            Kind::Int(place) => *place(raw) = go_value::integer(text)?,
            Kind::List(place) => place(raw).push(text.to_owned()),
            Kind::Level(place) => *place(raw) = go_value::level(text)?,
            Kind::Modules(place) => {
                go_value::modules(text)?;
                *place(raw) = text.to_owned();
            }
            Kind::Location(place) => {
                go_value::location(text)?;
                *place(raw) = text.to_owned();
            }
        }
        Ok(())
    }

    /// The flag's value as text: what one would type for it. Lists are joined by blanks.
    pub fn text(&self, raw: &Raw) -> String {
        // The accessors hand out the place to write; reading through a copy keeps the table to one accessor per flag.
        let mut raw = raw.clone();
        match self.kind {
            Kind::Text(place) | Kind::Choice(_, place) | Kind::Modules(place) | Kind::Location(place) => {
                place(&mut raw).clone()
            }
            Kind::Bool(place) => place(&mut raw).to_string(),
            Kind::Int(place) => place(&mut raw).to_string(),
            Kind::List(place) => place(&mut raw).join(" "),
            Kind::Level(place) => place(&mut raw).to_string(),
        }
    }

    /// The environment variable that stands for the flag.
    pub fn variable(&self) -> String {
        variable(self.name)
    }
}

/// `FLANNELD_` and the name in capitals, `-` as `_`.
pub fn variable(name: &str) -> String {
    format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// The flag called `name`.
pub fn find(name: &str) -> Option<&'static Flag> {
    TABLE.iter().find(|flag| flag.name == name)
}

/// Where `subnet.env` is by default.
pub const DEFAULT_SUBNET_FILE: &str = fabric::status::SUBNET_FILE;

/// Every flag.
pub static TABLE: &[Flag] = &[
    Flag {
        name: "etcd-endpoints",
        kind: Kind::Text(|raw| &mut raw.etcd_endpoints),
        default: "http://127.0.0.1:4001,http://127.0.0.1:2379",
        meaning: "URLs of the etcd members, commas between. Each one's own scheme decides whether TLS is used.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-prefix",
        kind: Kind::Text(|raw| &mut raw.etcd_prefix),
        default: "/coreos.com/network",
        meaning: "Key under which the network's config and leases are kept.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-api",
        kind: Kind::Choice(&["auto", "v3", "v2"], |raw| &mut raw.etcd_api),
        default: "auto",
        meaning: "etcd API to speak. auto takes the one that holds the config; where both do, v2 while leases live there. \
                  (Not in Go flannel.)",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-keyfile",
        kind: Kind::Text(|raw| &mut raw.etcd_keyfile),
        default: "",
        meaning: "File with the private key of the client certificate, PEM. Used together with --etcd-certfile.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-certfile",
        kind: Kind::Text(|raw| &mut raw.etcd_certfile),
        default: "",
        meaning: "File with the client certificate, PEM. Used together with --etcd-keyfile.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-cafile",
        kind: Kind::Text(|raw| &mut raw.etcd_cafile),
        default: "",
        meaning: "File with the certificates that https endpoints are verified against, PEM. Works alone, without a \
                  client certificate.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-username",
        kind: Kind::Text(|raw| &mut raw.etcd_username),
        default: "",
        meaning: "User name for etcd's authentication. Used together with --etcd-password.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "etcd-password",
        kind: Kind::Text(|raw| &mut raw.etcd_password),
        default: "",
        meaning: "Password for etcd's authentication. Better given as FLANNELD_ETCD_PASSWORD: arguments are seen by \
                  every user of the host.",
        section: Section::Registry,
        unbuilt: None,
    },
    Flag {
        name: "iface",
        kind: Kind::List(|raw| &mut raw.iface),
        default: "",
        meaning: "Interface, by name or by an address it has, through which other hosts are reached. May be repeated: \
                  the first that exists is taken. Empty means the interface of the default route.",
        section: Section::Underlay,
        unbuilt: None,
    },
    Flag {
        name: "iface-regex",
        kind: Kind::List(|raw| &mut raw.iface_regex),
        default: "",
        meaning: "Regular expression, not anchored, matched against the addresses of each interface and then against the \
                  names. May be repeated. Tried after every --iface.",
        section: Section::Underlay,
        unbuilt: None,
    },
    Flag {
        name: "iface-can-reach",
        kind: Kind::Text(|raw| &mut raw.iface_can_reach),
        default: "",
        meaning: "Take the interface through which this address is routed. Tried after --iface and --iface-regex.",
        section: Section::Underlay,
        unbuilt: None,
    },
    Flag {
        name: "public-ip",
        kind: Kind::Text(|raw| &mut raw.public_ip),
        default: "",
        meaning: "IPv4 address that other hosts reach this one at. Without an --iface flag it also chooses the interface \
                  that has it, or, when none does (NAT), that of the default route.",
        section: Section::Underlay,
        unbuilt: None,
    },
    Flag {
        name: "public-ipv6",
        kind: Kind::Text(|raw| &mut raw.public_ipv6),
        default: "",
        meaning: "The same for IPv6.",
        section: Section::Underlay,
        unbuilt: None,
    },
    Flag {
        name: "subnet-file",
        kind: Kind::Text(|raw| &mut raw.subnet_file),
        default: DEFAULT_SUBNET_FILE,
        meaning: "File to write the subnet, MTU and masquerading into, for docker and the CNI plugin. Another file than \
                  the default also moves the status socket (to FILE.sock) and the state (to a folder of its own under \
                  /var/lib/flannel).",
        section: Section::Lease,
        unbuilt: None,
    },
    Flag {
        name: "subnet-lease-renew-margin",
        kind: Kind::Int(|raw| &mut raw.subnet_lease_renew_margin),
        default: "60",
        meaning: "Minutes before its end at which the lease is renewed, 1 to 1439.",
        section: Section::Lease,
        unbuilt: None,
    },
    Flag {
        name: "ip-masq",
        kind: Kind::Bool(|raw| &mut raw.ip_masq),
        default: "false",
        meaning: "Masquerade what leaves the pod network. Also told to docker and CNI through the subnet file.",
        section: Section::Firewall,
        unbuilt: None,
    },
    Flag {
        name: "ip-masq-fully-random-disable",
        kind: Kind::Bool(|raw| &mut raw.ip_masq_fully_random_disable),
        default: "false",
        meaning: "Do not ask for fully random source ports when masquerading.",
        section: Section::Firewall,
        unbuilt: None,
    },
    Flag {
        name: "iptables-forward-rules",
        kind: Kind::Bool(|raw| &mut raw.iptables_forward_rules),
        default: "true",
        meaning: "Accept forwarded packets from and to the pod network.",
        section: Section::Firewall,
        unbuilt: None,
    },
    Flag {
        name: "iptables-resync",
        kind: Kind::Int(|raw| &mut raw.iptables_resync),
        default: "5",
        meaning: "Seconds between checks of the rules where the kernel does not announce changes, at least 1.",
        section: Section::Firewall,
        unbuilt: None,
    },
    Flag {
        name: "ip-blackhole-route",
        kind: Kind::Bool(|raw| &mut raw.ip_blackhole_route),
        default: "false",
        meaning: "Keep a blackhole route for the host's own subnet.",
        section: Section::Firewall,
        unbuilt: Some("the blackhole route"),
    },
    Flag {
        name: "kube-subnet-mgr",
        kind: Kind::Bool(|raw| &mut raw.kube_subnet_mgr),
        default: "false",
        meaning: "Keep leases in Kubernetes' Node objects instead of etcd.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "kube-api-url",
        kind: Kind::Text(|raw| &mut raw.kube_api_url),
        default: "",
        meaning: "URL of the Kubernetes API server. Not needed inside a pod.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "kube-annotation-prefix",
        kind: Kind::Text(|raw| &mut raw.kube_annotation_prefix),
        default: "flannel.alpha.coreos.com",
        meaning: "Prefix of the annotations on Node objects; a / is put at its end where it has none.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "kubeconfig-file",
        kind: Kind::Text(|raw| &mut raw.kubeconfig_file),
        default: "",
        meaning: "A kubeconfig file. Not needed inside a pod.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "net-config-path",
        kind: Kind::Text(|raw| &mut raw.net_config_path),
        default: "/etc/kube-flannel/net-conf.json",
        meaning: "File with the network's config, which is not in the registry when that is Kubernetes.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "set-node-network-unavailable",
        kind: Kind::Bool(|raw| &mut raw.set_node_network_unavailable),
        default: "true",
        meaning: "Set the node's condition NetworkUnavailable to False once the network is up.",
        section: Section::Kubernetes,
        unbuilt: None,
    },
    Flag {
        name: "healthz-ip",
        kind: Kind::Text(|raw| &mut raw.healthz_ip),
        default: "0.0.0.0",
        meaning: "Address to serve /healthz, /readyz and /metrics on.",
        section: Section::Operation,
        unbuilt: None,
    },
    Flag {
        name: "healthz-port",
        kind: Kind::Int(|raw| &mut raw.healthz_port),
        default: "0",
        meaning: "Port to serve them on; 0 serves none.",
        section: Section::Operation,
        unbuilt: None,
    },
    Flag {
        name: "v",
        kind: Kind::Level(|raw| &mut raw.v),
        default: "0",
        meaning: "How much to log: 0 what an operator needs, 1 to 5 also each decision, 6 and more also each message.",
        section: Section::Operation,
        unbuilt: None,
    },
    Flag {
        name: "vmodule",
        kind: Kind::Modules(|raw| &mut raw.vmodule),
        default: "",
        meaning: "Accepted for Go flannel's sake; without effect, and a warning says so.",
        section: Section::Operation,
        unbuilt: None,
    },
    Flag {
        name: "log_backtrace_at",
        kind: Kind::Location(|raw| &mut raw.log_backtrace_at),
        default: "",
        meaning: "Accepted for Go flannel's sake; without effect, and a warning says so.",
        section: Section::Operation,
        unbuilt: None,
    },
    Flag {
        name: "version",
        kind: Kind::Bool(|raw| &mut raw.version),
        default: "false",
        meaning: "Print the version to standard error and leave.",
        section: Section::Operation,
        unbuilt: None,
    },
];
