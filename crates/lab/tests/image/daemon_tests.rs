//! flanneld in a container of the image with the rights of our manifest, on a node with a registry.

use std::time::{Duration, Instant};

use lab::process::Process;

use crate::container::Network;
use crate::manifests::ours;
use crate::objects::executable;
use crate::rootfs::{Image, run};

/// Waits until `/readyz` says so, which is when devices, rules and files are in place.
fn wait_until_ready(network: &Network, log: impl Fn() -> String) {
    let since = Instant::now();
    loop {
        let output = network
            .command("curl")
            .args(["-sf", "http://127.0.0.1:8081/readyz"])
            .output();
        if output.unwrap().status.success() {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn flanneld_when_it_has_the_rights_of_the_manifest_alone_brings_the_network_up_in_the_hosts_variant() {
    for (variant, other) in [("nft", "legacy"), ("legacy", "nft")] {
        let image = Image::open();
        let network = Network::new();
        for words in [
            &["link", "add", "eth0", "type", "veth", "peer", "name", "wire"][..],
            &["link", "set", "wire", "up"],
            &["addr", "add", "192.0.2.1/24", "dev", "eth0"],
            &["link", "set", "eth0", "up"],
            &["route", "add", "default", "via", "192.0.2.254"],
        ] {
            run(network.command("ip").args(words));
        }
        let kubelet = format!("iptables-{variant}");
        run(network
            .command(&kubelet)
            .args(["-t", "mangle", "-N", "KUBE-KUBELET-CANARY"]));

        let flannelctl = executable("flannelctl").to_str().unwrap().to_owned();
        let mut command = network.command(&flannelctl);
        command.args(["registry", "serve", "--listen", "127.0.0.1:2379", "--data-dir"]);
        command.arg(image.host("registry"));
        let mut registry = Process::start(command, &image.host("log").join("registry")).unwrap();
        let since = Instant::now();
        let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#;
        let put = || -> std::process::Output {
            let mut command = network.command(&flannelctl);
            command.args(["registry", "put", "--endpoints", "http://127.0.0.1:2379"]);
            command
                .args(["/coreos.com/network/config", config])
                .output()
                .unwrap()
        };
        while !put().status.success() {
            assert!(since.elapsed() < Duration::from_secs(20), "{}", registry.log());
            std::thread::sleep(Duration::from_millis(100));
        }

        let manifest = ours(&image);
        manifest.configure(&image);
        let mut container = manifest.flanneld(&image);
        container.words.retain(|word| word != "--kube-subnet-mgr");
        container
            .words
            .push("--etcd-endpoints=http://127.0.0.1:2379".to_owned());
        let mut running = container.start(&image, &network);
        wait_until_ready(&network, || running.log());

        let save = |variant: &str| {
            run(network
                .command(&format!("iptables-{variant}-save"))
                .args(["-t", "nat"]))
        };
        assert!(save(variant).contains("-A POSTROUTING") && save(variant).contains("FLANNEL-POSTRTG"));
        assert!(!save(other).contains("FLANNEL"), "{}", save(other));
        let link = run(network.command("ip").args(["-d", "link", "show", "flannel.1"]));
        assert!(link.contains("vxlan id 1"), "{link}");
        let file = std::fs::read_to_string(image.host("/run/flannel").join("subnet.env")).unwrap();
        assert!(file.contains("FLANNEL_NETWORK=10.244.0.0/16"), "{file}");
        // What is to survive a reboot is on the node, not in the container.
        assert!(image.host("/var/lib/flannel").join("state.json").is_file());
        // As `kubectl exec` runs it.
        let mut status = manifest.flanneld(&image);
        status.words = ["flannelctl", "status"].map(str::to_owned).to_vec();
        let text = status.succeed(&image, &network);
        assert!(text.contains("10.244."), "{text}");

        assert_eq!(running.stop(), Some(0), "{}", running.log());
        // Stopping leaves the data path.
        assert!(save(variant).contains("FLANNEL-POSTRTG"));
        registry.stop(Duration::from_secs(10));
    }
}
