//! Configurations and unit files that people published, word for word: they work.

#![allow(clippy::unwrap_used, clippy::panic)] // Everything here is a test.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use lab::command::run_with_input;
use lab::rig::{Rig, Wish, vxlan_lease};
use lab::witness::{addresses, link, neighbours, route};
use lab::{Families, Lab};
use serde_json::json;

/// A network configuration with its own layout, as typed.
const MIN_MAX: &str = r#"{
  "Network": "172.20.0.0/16",
  "SubnetMin": "172.20.10.0",
  "SubnetMax": "172.20.254.0",
  "Backend": {
    "Type":"vxlan"
  }
}
"#;

const LEN_21: &str = r#"{"Network":"172.30.0.0/16", "SubnetLen": 21, "Backend": {"Type": "vxlan"}}"#;

fn ready(lab: &Lab, seconds: u64) {
    lab.wait("subnet.env", Duration::from_secs(seconds), || {
        let env = lab.env(1).ok().filter(|e| e.mtu.is_some());
        Ok(env
            .is_none()
            .then(|| lab::process::tail(&lab.spec.directory().join("h1-flanneld.log"), 8)))
    })
    .unwrap();
}

fn device(lab: &Lab) -> (String, String) {
    let address = addresses(lab.host(1), "flannel.1")
        .unwrap()
        .into_iter()
        .find(|a| a["family"] == "inet")
        .unwrap();
    let mac = link(lab.host(1), "flannel.1").unwrap().unwrap()["address"]
        .as_str()
        .unwrap()
        .to_owned();
    (
        format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]),
        mac,
    )
}

#[test]
fn subnet_min_and_max_bound_the_key_and_the_device_carries_its_base() {
    let mut wish = Wish::of(Families::V4, json!({})).hosts(1);
    wish.config = serde_json::from_str(MIN_MAX).unwrap();
    let rig = Rig::bare(&wish).unwrap();
    let mut rig = rig;
    rig.lab.put("/coreos.com/network/config", MIN_MAX).unwrap();
    let daemon = rig.lab.start_daemon(1, &[]).unwrap();
    rig.daemons.push(daemon);
    ready(&rig.lab, 15);
    let (address, mac) = device(&rig.lab);
    let subnet = rig.subnet(1, 4).unwrap();
    assert_eq!(subnet.prefix_len(), 24);
    let third = subnet
        .addr()
        .to_string()
        .split('.')
        .nth(2)
        .unwrap()
        .parse::<u8>()
        .unwrap();
    assert!(
        subnet.addr().to_string().starts_with("172.20.") && (10..=254).contains(&third),
        "{subnet}"
    );
    assert_eq!(address, format!("{}/32", subnet.addr()));
    assert_eq!(link(rig.lab.host(1), "flannel.1").unwrap().unwrap()["mtu"], 1450);
    let leases = rig.lab.leases().unwrap();
    assert_eq!(leases[0].0, format!("{}-24", subnet.addr()));
    assert_eq!(
        leases[0].1,
        format!(
            "{{\"PublicIP\":\"198.18.0.11\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\
             \"BackendData\":{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}}}"
        )
    );

    // A peer of v0.11: no PublicIPv6, no VNI.
    let old = json!({ "PublicIP": "10.211.55.101", "BackendType": "vxlan", "BackendData": { "VtepMAC": "f6:df:b4:d0:5d:72" } });
    rig.put_lease("172.20.97.0-24", &old).unwrap();
    rig.settle("a route to the v0.11 peer", &true, |lab| {
        let all = route(lab.host(1), "172.20.97.0/24".parse().unwrap())?;
        Ok(all[0]["gateway"] == "172.20.97.0" && all[0]["dev"] == "flannel.1")
    })
    .unwrap();
    let neighbour = neighbours(rig.lab.host(1), "flannel.1").unwrap();
    assert_eq!(neighbour[0]["lladdr"], "f6:df:b4:d0:5d:72");
}

/// Whatever part of a config it is that cannot be used: the daemon names the key in the registry and what is wrong, stays, and takes
/// the next one. What is accepted without effect is said.
#[test]
fn config_when_it_cannot_be_used_is_waited_out_by_the_key_and_what_has_no_effect_is_said() {
    let wish = Wish::of(Families::V4, json!({})).hosts(1);
    let mut rig = Rig::bare(&wish).unwrap();
    rig.lab.put("/coreos.com/network/config", "{}").unwrap();
    let daemon = rig.lab.start_daemon(1, &[]).unwrap();
    rig.daemons.push(daemon);
    let log = rig.lab.spec.directory().join("h1-flanneld.log");
    let backend = r#""Backend":{"Type":"vxlan"}"#;
    for (config, words) in [
        (format!(r#"{{"Network":"10.5.0.0/16","SubnetLen":"24",{backend}}}"#), r#"SubnetLen is "24": expected a whole number"#),
        (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":"7"}}"#.to_owned(), r#"Backend.VNI is "7": expected a whole number"#),
        (r#"{"Network":"10.5.0.0/16"}"#.to_owned(), "Backend is not set"),
        (
            r#"{"EnableIPv6":true,"IPv6Network":"fd00::/48","Network":"10.5.0.0/16","Backend":{"Type":"ipip"}}"#.to_owned(),
            "carries IPv4 only",
        ),
    ] {
        rig.lab.put("/coreos.com/network/config", &config).unwrap();
        rig.lab
            .wait(words, Duration::from_secs(15), || {
                let said = lab::process::tail(&log, 3);
                let named = said.contains(words) && said.contains("/coreos.com/network/config");
                Ok((!named).then_some(said))
            })
            .unwrap();
    }
    let idle = format!(r#"{{"Network":"10.5.6.7/16","Prot":1,{backend}}}"#);
    rig.lab.put("/coreos.com/network/config", &idle).unwrap();
    ready(&rig.lab, 15);
    let said = lab::process::tail(&log, 40);
    for words in [
        "Network is 10.5.6.7/16: its host bits have no effect",
        "Prot has no effect",
    ] {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn subnet_len_21_gives_keys_of_that_length() {
    let mut wish = Wish::of(Families::V4, json!({})).hosts(1);
    wish.config = serde_json::from_str(LEN_21).unwrap();
    let rig = Rig::alone(&wish).unwrap();
    let subnet = rig.subnet(1, 4).unwrap();
    assert_eq!(subnet.prefix_len(), 21);
    let leases = rig.lab.leases().unwrap();
    assert_eq!(leases[0].0, format!("{}-21", subnet.addr()));
    assert_eq!(device(&rig.lab).0, format!("{}/32", subnet.addr()));
    let peer = json!({ "PublicIP": "172.24.8.72", "BackendType": "vxlan", "BackendData": { "VtepMAC": "02:00:00:00:00:72" } });
    let base = if subnet.addr().to_string() == "172.30.128.0" {
        "172.30.208.0"
    } else {
        "172.30.128.0"
    };
    rig.put_lease(&format!("{base}-21"), &peer).unwrap();
    rig.settle("a route to the peer", &json!(base), |lab| {
        Ok(route(lab.host(1), format!("{base}/21").parse().unwrap())?[0]["gateway"].clone())
    })
    .unwrap();
}

#[test]
fn docker_options_written_over_subnet_env_stay_and_our_keys_come_back() {
    let mut rig = Rig::alone(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let before = rig.lab.env(1).unwrap();
    let docker = "DOCKER_OPT_BIP=\"--bip=10.244.9.1/24\"\nDOCKER_NETWORK_OPTIONS=\" --bip=10.244.9.1/24 --mtu=1450\"\n";
    rig.lab.host(1).write("/run/flannel/subnet.env", docker).unwrap();
    rig.settle("our keys beside docker's", &(before.clone(), true), |lab| {
        let text = lab.host(1).read("/run/flannel/subnet.env")?;
        Ok((
            lab::flannel::Env::parse(&text),
            docker.lines().all(|l| text.lines().any(|t| t == l)),
        ))
    })
    .unwrap();
    // Written over, then a reboot of the daemon: it starts from such a file, too, with its old subnet.
    rig.daemons[0].kill();
    rig.lab.host(1).write("/run/flannel/subnet.env", docker).unwrap();
    rig.restart(1, &[]).unwrap();
    rig.settle("the same subnet", &before.subnet, |lab| Ok(lab.env(1)?.subnet))
        .unwrap();
}

/// The unit that is shipped, as far as privileges go: its capabilities and no others, nothing to be gained by exec, no core file, a file
/// system that is read-only but for what the unit says. With either variant of iptables, whose older one needs more.
#[test]
fn unit_that_is_shipped_gives_all_that_a_node_needs() {
    let unit =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/systemd/flanneld.service");
    let unit = std::fs::read_to_string(unit).unwrap();
    let of = |key: &str| {
        unit.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    };
    let capabilities: Vec<String> = of("CapabilityBoundingSet")
        .unwrap()
        .split(' ')
        .map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    assert!(capabilities.len() <= 2, "{capabilities:?}");
    for (key, value) in [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ReadWritePaths", "/run"),
        ("LimitCORE", "0"),
    ] {
        assert_eq!(of(key), Some(value), "{key}");
    }
    for variant in ["nft", "legacy"] {
        let mut rig = Rig::bare(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
        // Whose root is read-only; `/run` and `/var/lib/flannel` are file systems of the host's own.
        let script = format!(
            "mkdir /run/variant
            for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
                ln -s $(command -v xtables-{variant}-multi) /run/variant/$name
            done
            mount -o remount,bind,ro /
            ulimit -c 0
            PATH=/run/variant:$PATH exec setpriv --bounding-set=-all{} --no-new-privs {}",
            capabilities.concat(),
            rig.lab.daemon_arguments().unwrap().join(" ")
        );
        let daemon = rig
            .lab
            .host(1)
            .spawn("flanneld", &["unshare", "--mount", "sh", "-ec", &script])
            .unwrap();
        let pid = daemon.record().pid;
        rig.daemons.push(daemon);
        ready(&rig.lab, 20);
        let process = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        // NET_ADMIN is bit 12, NET_RAW 13 (linux/capability.h).
        for field in [
            "CapEff:\t0000000000003000",
            "CapBnd:\t0000000000003000",
            "NoNewPrivs:\t1",
        ] {
            assert!(process.contains(field), "{variant}: {field} not in {process}");
        }
        let peer = vxlan_lease("198.18.0.12", None, "02:00:00:00:00:72", None);
        rig.put_lease("10.244.77.0-24", &peer).unwrap();
        let whole = |rig: &Rig, what: &str| {
            rig.settle(&format!("{variant}: {what}"), &(true, true, 200), |lab| {
                let routed = route(lab.host(1), "10.244.77.0/24".parse().unwrap())?;
                let save = lab
                    .host(1)
                    .run(&[&format!("xtables-{variant}-multi"), "iptables-save"])?;
                let ready = lab
                    .host(1)
                    .shell("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8081/readyz || true")?;
                Ok((
                    routed[0]["dev"] == "flannel.1",
                    save.contains("-A FLANNEL-POSTRTG") && save.contains("-A FLANNEL-FWD"),
                    ready.parse::<u16>().unwrap_or(0),
                ))
            })
            .unwrap();
        };
        whole(&rig, "a node");
        rig.lab.host(1).run(&["ip", "link", "del", "flannel.1"]).unwrap();
        rig.lab
            .host(1)
            .run(&[
                &format!("xtables-{variant}-multi"),
                "iptables",
                "-t",
                "nat",
                "-F",
                "FLANNEL-POSTRTG",
            ])
            .unwrap();
        whole(&rig, "repaired");
        lab::process::send(pid, rustix::process::Signal::HUP);
        whole(&rig, "after a reload");
        let log = lab::process::tail(&rig.lab.spec.directory().join("h1-flanneld.log"), 60);
        let good = ["Permission denied", "not permitted", "Read-only"]
            .iter()
            .all(|words| !log.contains(words));
        assert!(good && log.contains("SIGHUP"), "{variant}: {log}");
    }
}

#[test]
fn unit_file_that_passes_all_options_as_one_argument_starts_on_the_default_endpoints() {
    // systemd hands ${FLANNEL_OPTIONS} over as one word that begins with a blank.
    let options = " --etcd-endpoints=https://10.211.55.100:2379,https://10.211.55.101:2379 \
                   --etcd-ca-file=/opt/etcd/ssl/ca.pem --etcd-cert-file=/opt/etcd/ssl/server.pem \
                   --etcd-key-file=/opt/etcd/ssl/server-key.pem ";
    let rig = Rig::bare(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let host = rig.lab.host(1);
    // Default endpoints are on loopback: an etcd in the host itself.
    let data = rig.lab.spec.directory().join("local-etcd");
    let _etcd = host
        .spawn(
            "etcd",
            &[
                "etcd",
                "--data-dir",
                &data.display().to_string(),
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
            ],
        )
        .unwrap();
    rig.lab
        .wait("etcd in the host", Duration::from_secs(20), || {
            let put = ["etcdctl", "put", "/coreos.com/network/config", MIN_MAX];
            let mut command = host.command(&put);
            command.env("ETCDCTL_API", "3");
            Ok(lab::command::run(&mut command).err().map(|e| e.to_string()))
        })
        .unwrap();
    let notified = UnixDatagram::bind(host.path("/run/notify")).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let daemon = host
        .spawn_with(
            "flanneld",
            &["flanneld", "--ip-masq", options],
            &[("NOTIFY_SOCKET", "/run/notify")],
        )
        .unwrap();
    ready(&rig.lab, 20);
    assert_eq!(
        rig.lab.env(1).unwrap().network,
        Some("172.20.0.0/16".parse().unwrap())
    );
    assert_eq!(rig.lab.env(1).unwrap().ipmasq, Some(true));
    let log = daemon.log();
    for flag in [
        "etcd-endpoints",
        "etcd-ca-file",
        "etcd-cert-file",
        "etcd-key-file",
    ] {
        assert!(
            log.contains(flag),
            "the log does not warn of the ignored {flag}:\n{log}"
        );
    }
    let (mut buffer, start) = ([0; 4096], std::time::Instant::now());
    loop {
        let n = notified.recv(&mut buffer).unwrap_or(0);
        if String::from_utf8_lossy(&buffer[..n])
            .lines()
            .any(|l| l == "READY=1")
        {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "no READY=1 for Type=notify:\n{}",
            daemon.log()
        );
    }
}

#[test]
fn unit_file_with_single_dashes_certificates_and_prefix_starts() {
    let mut rig = Rig::bare(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    rig.store.kill();
    let directory = rig.lab.spec.directory().join("tls");
    std::fs::create_dir(&directory).unwrap();
    certificates(&directory.display().to_string());
    let file = |name: &str| directory.join(name).display().to_string();
    let endpoint = "https://198.18.0.1:2379";
    let (data, ca, crt, key) = (
        file("data"),
        file("ca.crt"),
        file("server.crt"),
        file("server.key"),
    );
    let _etcd = rig
        .lab
        .switch()
        .spawn(
            "etcd-tls",
            &[
                "etcd",
                "--data-dir",
                &data,
                "--listen-client-urls",
                endpoint,
                "--advertise-client-urls",
                endpoint,
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                "--cert-file",
                &crt,
                "--key-file",
                &key,
                "--trusted-ca-file",
                &ca,
                "--client-cert-auth",
            ],
        )
        .unwrap();
    let (client, client_key) = (file("client.crt"), file("client.key"));
    let etcdctl = |words: &[&str]| {
        let mut all = vec![
            "etcdctl",
            "--endpoints",
            endpoint,
            "--cacert",
            &ca,
            "--cert",
            &client,
            "--key",
            &client_key,
        ];
        all.extend(words);
        let mut command = rig.lab.switch().command(&all);
        command.env("ETCDCTL_API", "3");
        lab::command::run(&mut command)
    };
    rig.lab
        .wait("etcd with TLS", Duration::from_secs(20), || {
            Ok(etcdctl(&["put", "/kubernetes/network/config", LEN_21])
                .err()
                .map(|e| e.to_string()))
        })
        .unwrap();
    // The host has a private /run, where the lab's files are not: give it its own copies.
    let host = rig.lab.host(1);
    host.run(&["mkdir", "-p", "/run/cert"]).unwrap();
    for name in ["ca.crt", "client.crt", "client.key"] {
        host.write(
            &format!("/run/cert/{name}"),
            &std::fs::read_to_string(directory.join(name)).unwrap(),
        )
        .unwrap();
    }
    let daemon = host
        .spawn(
            "flanneld",
            &[
                "flanneld",
                "-etcd-cafile=/run/cert/ca.crt",
                "-etcd-certfile=/run/cert/client.crt",
                "-etcd-keyfile=/run/cert/client.key",
                "-etcd-endpoints=https://198.18.0.1:2379",
                "-etcd-prefix=/kubernetes/network",
                "-iface=eth0",
                "-ip-masq",
            ],
        )
        .unwrap();
    ready(&rig.lab, 20);
    let subnet = rig.subnet(1, 4).unwrap();
    assert_eq!(subnet.prefix_len(), 21);
    let keys = etcdctl(&["get", "--prefix", "--keys-only", "/kubernetes/network/subnets/"]).unwrap();
    assert_eq!(
        keys.trim(),
        format!("/kubernetes/network/subnets/{}-21", subnet.addr())
    );
    let log = daemon.log();
    assert!(!log.contains("PRIVATE KEY"), "{log}");
}

fn certificates(directory: &str) {
    let script = r#"
        cd "$1"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab-ca -keyout ca.key -out ca.crt
        for c in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$c -keyout $c.key -out $c.csr
            printf 'subjectAltName=IP:198.18.0.1,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' >$c.ext
            openssl x509 -req -in $c.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out $c.crt -extfile $c.ext
        done"#;
    run_with_input(
        &mut lab::command::words(&["sh", "-ec", script, "sh", directory]),
        "",
    )
    .unwrap();
}

#[test]
fn docker_gets_the_options_the_document_shows() {
    // The script is shipped beside the daemon; sourced file, key and target as in the unit files.
    let rig = Rig::alone(&Wish::of(Families::V4, json!({ "Type": "vxlan" })).hosts(1)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/mk-docker-opts.sh");
    let host = rig.lab.host(1);
    host.run(&[
        "sh",
        script,
        "-k",
        "DOCKER_NETWORK_OPTIONS",
        "-d",
        "/run/flannel/docker",
    ])
    .unwrap();
    let text = host.read("/run/flannel/docker").unwrap();
    let bip = format!("{}/24", lab::flannel::first_address(rig.subnet(1, 4).unwrap()));
    let combined = format!("DOCKER_NETWORK_OPTIONS=\" --bip={bip} --ip-masq=false --mtu=1450\"");
    assert!(text.lines().any(|l| l == combined), "{text}");
}
