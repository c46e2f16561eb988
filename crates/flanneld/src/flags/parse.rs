//! Go's `flag` grammar over the table: from arguments to [`Raw`].
//!
//! The rules, each recorded from the real package in `tests/data/go-flag.jsonl`: `-name` and `--name` are one; a value
//! follows after `=` or as the next argument, whatever that looks like; a boolean never takes the next argument; the
//! first argument that is no flag ends it all, and so does `--`.

use std::collections::BTreeMap;
use std::fmt;

use super::leftover::nearest;
use super::options::several_flags;
use super::table::{self, Flag, Kind, TABLE};

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `--name=value`.
    CommandLine,
    /// `FLANNELD_NAME=value`.
    Environment,
}

/// What was typed: every flag's value, the default where none was given. Right in form, not yet in meaning.
#[derive(Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each field is the flag of its name; the table documents them"
)]
pub struct Raw {
    pub etcd_endpoints: String,
    pub etcd_prefix: String,
    pub etcd_api: String,
    pub etcd_keyfile: String,
    pub etcd_certfile: String,
    pub etcd_cafile: String,
    pub etcd_username: String,
    pub etcd_password: String,
    pub iface: Vec<String>,
    pub iface_regex: Vec<String>,
    pub iface_can_reach: String,
    pub subnet_file: String,
    pub public_ip: String,
    pub public_ipv6: String,
    pub subnet_lease_renew_margin: i64,
    pub ip_masq: bool,
    pub ip_masq_fully_random_disable: bool,
    pub kube_subnet_mgr: bool,
    pub kube_api_url: String,
    pub kube_annotation_prefix: String,
    pub kubeconfig_file: String,
    pub version: bool,
    pub healthz_ip: String,
    pub healthz_port: i64,
    pub iptables_resync: i64,
    pub iptables_forward_rules: bool,
    pub ip_blackhole_route: bool,
    pub net_config_path: String,
    pub set_node_network_unavailable: bool,
    pub v: i32,
    pub vmodule: String,
    pub log_backtrace_at: String,
    /// The flags that were given, and where.
    pub given: BTreeMap<&'static str, Source>,
}

impl Default for Raw {
    fn default() -> Raw {
        let mut raw = Raw {
            etcd_endpoints: String::new(),
            etcd_prefix: String::new(),
            etcd_api: String::new(),
            etcd_keyfile: String::new(),
            etcd_certfile: String::new(),
            etcd_cafile: String::new(),
            etcd_username: String::new(),
            etcd_password: String::new(),
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: String::new(),
            subnet_file: String::new(),
            public_ip: String::new(),
            public_ipv6: String::new(),
            subnet_lease_renew_margin: 0,
            ip_masq: false,
            ip_masq_fully_random_disable: false,
            kube_subnet_mgr: false,
            kube_api_url: String::new(),
            kube_annotation_prefix: String::new(),
            kubeconfig_file: String::new(),
            version: false,
            healthz_ip: String::new(),
            healthz_port: 0,
            iptables_resync: 0,
            iptables_forward_rules: false,
            ip_blackhole_route: false,
            net_config_path: String::new(),
            set_node_network_unavailable: false,
            v: 0,
            vmodule: String::new(),
            log_backtrace_at: String::new(),
            given: BTreeMap::new(),
        };
        for flag in TABLE.iter().filter(|flag| !flag.default.is_empty()) {
            // A default that does not parse cannot reach a user: a test sets every one of them.
            let _ = flag.set(&mut raw, flag.default);
        }
        raw
    }
}

impl fmt::Debug for Raw {
    /// Names what was given; never a value, for one of them is a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw")
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}

impl Raw {
    /// How the user wrote the flag `name`: `--name` or its variable. For messages.
    pub fn spelling(&self, name: &str) -> String {
        match self.given.get(name) {
            Some(Source::Environment) => table::variable(name),
            _ => format!("--{name}"),
        }
    }
}

/// Why and where reading the arguments ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// All arguments were flags.
    End,
    /// At `--`, with these arguments after it.
    Terminator(Vec<String>),
    /// At the first of these, which is no flag.
    Positional {
        /// The argument and all that follow.
        rest: Vec<String>,
        /// The boolean flag right before it, when that was given without `=`: its writer meant the argument as a value.
        after_boolean: Option<&'static str>,
    },
}

impl Stop {
    /// The arguments that were not read.
    pub fn rest(&self) -> &[String] {
        match self {
            Stop::End => &[],
            Stop::Terminator(rest) | Stop::Positional { rest, .. } => rest,
        }
    }
}

/// A command line that is right in form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// The flags, and what was left over.
    Flags {
        /// Values of the flags.
        raw: Box<Raw>,
        /// What ended the reading.
        stop: Stop,
    },
    /// `-h`, `-help` or `--help` was met.
    Help,
}

/// A command line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    /// One line, in the words of Go's package `flag` where that has words for it.
    pub line: String,
    /// The likely cure.
    pub hint: Option<String>,
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for UsageError {}

/// An argument as it stands, control characters escaped: what is printed stays one line.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

fn plain(line: String) -> UsageError {
    UsageError { line, hint: None }
}

/// Reads `arguments`, program name not among them.
pub fn parse(arguments: &[String]) -> Result<Parsed, UsageError> {
    let mut raw = Box::new(Raw::default());
    let mut rest = arguments;
    let mut after_boolean = None;
    loop {
        let Some((argument, following)) = rest.split_first() else {
            return Ok(Parsed::Flags { raw, stop: Stop::End });
        };
        if argument == "--" {
            let stop = if following.is_empty() {
                Stop::End
            } else {
                Stop::Terminator(following.to_vec())
            };
            return Ok(Parsed::Flags { raw, stop });
        }
        let Some(body) = argument.strip_prefix('-').filter(|body| !body.is_empty()) else {
            let stop = Stop::Positional {
                rest: rest.to_vec(),
                after_boolean,
            };
            return Ok(Parsed::Flags { raw, stop });
        };
        let body = body.strip_prefix('-').unwrap_or(body);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(plain(format!("bad flag syntax: {}", printable(argument))));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (body, None),
        };
        rest = following;
        let Some(flag) = table::find(name) else {
            if name == "help" || name == "h" {
                return Ok(Parsed::Help);
            }
            return Err(unknown(name));
        };
        after_boolean = None;
        let value = match (inline, &flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool(_)) => {
                after_boolean = Some(flag.name);
                "true"
            }
            (None, _) => match following.split_first() {
                Some((value, following)) => {
                    rest = following;
                    value
                }
                None => return Err(plain(format!("flag needs an argument: -{}", flag.name))),
            },
        };
        flag.set(&mut raw, value)
            .map_err(|why| refused(flag, value, &why))?;
        raw.given.insert(flag.name, Source::CommandLine);
    }
}

fn unknown(name: &str) -> UsageError {
    let hint = if name.contains(char::is_whitespace) {
        Some("several flags arrived as one argument: write $FLANNEL_OPTIONS, not ${FLANNEL_OPTIONS}, in a systemd unit".into())
    } else {
        nearest(name).map(|flag| format!("did you mean --{flag}?"))
    };
    UsageError {
        line: format!("flag provided but not defined: -{}", printable(name)),
        hint,
    }
}

fn refused(flag: &Flag, value: &str, why: &str) -> UsageError {
    let quoted = super::go_value::quote(value);
    let line = match flag.kind {
        Kind::Bool(_) => format!("invalid boolean value {quoted} for -{}: {why}", flag.name),
        _ => format!("invalid value {quoted} for flag -{}: {why}", flag.name),
    };
    let hint = match flag.kind {
        _ if value.contains(char::is_whitespace) => several_flags(value),
        Kind::Bool(_) => Some("expected true or false".into()),
        Kind::Int(_) | Kind::Level(_) => Some(match flag.default {
            "" => "expected a whole number".into(),
            default => format!("expected a whole number, such as {default}"),
        }),
        _ => None,
    };
    UsageError { line, hint }
}
