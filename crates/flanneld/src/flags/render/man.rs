//! The man page flanneld(8).

use super::super::table::{Kind, Section};
use super::{dashed, of, unbuilt};

/// roff: a backslash and a hyphen are escaped, and a line must not begin with a dot or an apostrophe.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    match escaped.chars().next() {
        Some('.' | '\'') => format!("\\&{escaped}"),
        _ => escaped,
    }
}

/// The page in roff.
pub fn man() -> String {
    let mut page = String::from(
        ".TH FLANNELD 8 \"\" \"flannel\" \"System Administration\"\n.SH NAME\nflanneld \\- layer 3 network between hosts, \
         one subnet each\n.SH SYNOPSIS\n.B flanneld\n.RI [ OPTION ]...\n.SH DESCRIPTION\n",
    );
    for paragraph in [
        "flanneld leases a subnet for this host from a registry, writes it where docker and the CNI plugin find it, and \
         keeps routes, neighbours and forwarding entries to the subnets of all other hosts in the kernel.",
        "Stopping it leaves the network running; it may be restarted or replaced at any time.",
        "\u{2011}name and \u{2011}\u{2011}name are the same. A value follows after = or as the next argument, but that of a \
         boolean only after =. Reading stops at the first argument that is no flag; a warning names what was left over.",
    ] {
        page.push_str(&roff(&paragraph.replace('\u{2011}', "-")));
        page.push_str("\n.PP\n");
    }
    page.push_str(".SH OPTIONS\n");
    for section in Section::ALL {
        page.push_str(&format!(".SS {}\n", roff(section.title())));
        for flag in of(section) {
            let placeholder = flag.kind.placeholder();
            page.push_str(".TP\n");
            if placeholder.is_empty() {
                page.push_str(&format!(".B {}\n", roff(&dashed(flag))));
            } else {
                page.push_str(&format!(
                    ".BI {} \" {}\"\n",
                    roff(&dashed(flag)),
                    roff(&placeholder)
                ));
            }
            page.push_str(&roff(&format!("{}{}", flag.meaning, unbuilt(flag))));
            page.push('\n');
            if matches!(flag.kind, Kind::List(_)) || flag.default.is_empty() {
                continue;
            }
            page.push_str(&format!("Default: {}.\n", roff(flag.default)));
        }
    }
    page.push_str(".SH ENVIRONMENT\n");
    page.push_str(&roff(
        "Every flag but --version may be given as FLANNELD_ and its name in capitals with _ for -, such as \
         FLANNELD_ETCD_ENDPOINTS. The command line wins; an empty variable is none; a value that cannot be used is \
         logged and the default kept.",
    ));
    page.push_str("\n.TP\n.B NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID\n");
    page.push_str(&roff(
        "The service manager's: readiness, status and watchdog are reported there.",
    ));
    page.push_str("\n.SH FILES\n");
    for (path, meaning) in [
        (
            "/run/flannel/subnet.env",
            "This host's subnet, for docker and the CNI plugin (--subnet-file).",
        ),
        (
            "/run/flannel/flanneld.sock",
            "Status, for flannelctl. With another --subnet-file: that path and .sock at its end.",
        ),
        (
            "/var/lib/flannel",
            "What must survive a reboot: the last known leases, former networks, the own lease. With another \
             --subnet-file: a folder in it, named by a hash of that path.",
        ),
    ] {
        page.push_str(&format!(".TP\n.I {}\n{}\n", roff(path), roff(meaning)));
    }
    page.push_str(".SH SIGNALS\n");
    for (signal, meaning) in [
        ("SIGTERM, SIGINT", "Stop; the network goes on without flanneld."),
        (
            "SIGHUP",
            "Run the program file anew in place, as after an upgrade.",
        ),
    ] {
        page.push_str(&format!(".TP\n.B {signal}\n{}\n", roff(meaning)));
    }
    page.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in [
        ("0", "Stopped by a signal, or --help or --version."),
        ("1", "The network could not be set up or kept."),
        ("2", "The command line cannot be used."),
    ] {
        page.push_str(&format!(".TP\n.B {code}\n{}\n", roff(meaning)));
    }
    page.push_str(".SH SEE ALSO\n.BR etcd (1),\n.BR ip (8),\n.BR bridge (8)\n");
    page
}
