//! containerd and `ctr run --cni`, everything of them below the machine's own folder.

use lab::process::Process;
use serde_json::{Value, json};

use crate::machine::{HOME, Machine, ROOTFS, wait};
use crate::place::Place;

/// containerd of a machine; goes with it.
pub struct Containerd<'a> {
    machine: &'a Machine,
    spec: Value,
}

/// A container with the `ctr` that made it and that calls DEL when it ends.
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its network.
    pub place: Place,
    ctr: Process,
}

impl<'a> Containerd<'a> {
    /// Starts the daemon, without Kubernetes' part.
    pub fn start(machine: &'a Machine) -> Containerd<'a> {
        Containerd::start_with(
            machine,
            "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]",
        )
    }

    /// Starts it with more in its configuration.
    pub fn start_with(machine: &'a Machine, more: &str) -> Containerd<'a> {
        let folder = format!("{HOME}/containerd");
        std::fs::create_dir_all(machine.node.path(&folder)).unwrap();
        let conf = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n{more}\n\
            [grpc]\naddress = \"{folder}/socket\"\n[ttrpc]\naddress = \"{folder}/socket.ttrpc\"\n"
        );
        let path = format!("{folder}/config.toml");
        machine.node.write(&path, &conf).unwrap();
        let daemon = machine.spawn("containerd", &["containerd", "-c", &path]);
        wait("containerd answers", || {
            let answer = machine.run(&["ctr", "version"]);
            answer.err().map(|e| format!("{e}\n{}", daemon.log()))
        });
        let spec = machine.run(&["ctr", "oci", "spec"]).unwrap();
        Containerd {
            machine,
            spec: serde_json::from_str(&spec).unwrap(),
        }
    }

    /// `ctr ARGS`.
    pub fn call(&self, arguments: &[&str]) -> String {
        let mut all = vec!["ctr"];
        all.extend(arguments);
        self.machine.run(&all).unwrap()
    }

    /// Starts a web server that serves its own name, by `ctr run --rm --cni`; waits for nothing.
    pub fn spawn(&self, name: &str) -> Process {
        let page = self.machine.add_page(name);
        let mut spec = self.spec.clone();
        // Without limits, which need controllers in the unified hierarchy; hence a file instead of ctr's own options.
        spec["linux"]["resources"] = json!({});
        spec["linux"]["cgroupsPath"] = json!(format!("/default/{name}"));
        spec["root"] = json!({ "path": ROOTFS, "readonly": true });
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["/bin/busybox", "httpd", "-f", "-p", "80", "-h", page]);
        let path = format!("{HOME}/containerd/{name}.json");
        self.machine.node.write(&path, &spec.to_string()).unwrap();
        let words = ["ctr", "run", "--rm", "--cni", "--config", &path, name];
        self.machine.spawn(&format!("ctr-{name}"), &words)
    }

    /// Waits until a container serves.
    pub fn wait_for(&self, name: &str, mut ctr: Process) -> Container {
        wait(&format!("container {name}"), || {
            assert!(ctr.ended().is_none(), "{name}: {}", ctr.log());
            let there = self.machine.node.has(&pid_file("default", name));
            (!there).then(|| "no process".to_owned())
        });
        let place = place_of(self.machine, "default", name, name);
        self.machine.wait_for_server(&place);
        Container {
            name: name.to_owned(),
            place,
            ctr,
        }
    }

    /// Both.
    pub fn run(&self, name: &str) -> Container {
        self.wait_for(name, self.spawn(name))
    }

    /// Ends containers all at once, and waits until each `ctr` is done, DEL included.
    pub fn end(&self, containers: Vec<Container>) {
        std::thread::scope(|scope| {
            for container in &containers {
                scope.spawn(|| self.call(&["task", "kill", "-s", "KILL", &container.name]));
            }
        });
        for container in containers {
            container.done();
        }
    }
}

impl Container {
    /// Waits for the end of `ctr`, which is to say nothing.
    pub fn done(mut self) {
        let ended = self.ctr.wait(std::time::Duration::from_secs(30));
        assert!(ended.is_some(), "ctr of {} does not end", self.name);
        assert_eq!(self.ctr.log(), "", "{}", self.name);
    }

    /// Waits for the end of a `ctr` whose container was taken from it; gives what it said.
    pub fn done_with_words(mut self) -> String {
        let ended = self.ctr.wait(std::time::Duration::from_secs(30));
        assert!(ended.is_some(), "ctr of {} does not end", self.name);
        self.ctr.log()
    }
}

fn pid_file(namespace: &str, id: &str) -> String {
    format!("{HOME}/containerd/state/io.containerd.runtime.v2.task/{namespace}/{id}/init.pid")
}

/// The network of a container of containerd.
pub fn place_of(machine: &Machine, namespace: &str, id: &str, name: &str) -> Place {
    let mut pid = None;
    wait(&format!("process of {name}"), || {
        let text = machine.node.read(&pid_file(namespace, id)).unwrap_or_default();
        pid = text.parse().ok();
        pid.is_none().then_some(text)
    });
    machine.place_of(name, pid.unwrap())
}
