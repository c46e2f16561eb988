//! Three etcd members on the switch, that show certificates and demand them.

use std::path::PathBuf;
use std::time::Duration;

use lab::process::Process;
use lab::{Lab, LabError};
use rustix::process::Signal;

/// How many members.
pub const MEMBERS: usize = 3;
/// Bytes of a store: small, so that it can be filled.
const QUOTA: &str = "6000000";
/// Where a host has the daemon's certificates.
const FILES: &str = "/run/etcd";
/// The name that hosts may know the members by.
pub const NAME: &str = "etcd.lab.test";

/// The cluster. What runs of it ends with the lab.
pub struct Cluster {
    members: Vec<Option<Process>>,
    folder: PathBuf,
    address: String,
    /// Further flags of every member.
    more: &'static [&'static str],
}

impl Cluster {
    /// All members, with these flags besides, once they answer.
    pub fn start(lab: &Lab, more: &'static [&'static str]) -> Cluster {
        let folder = lab.spec.directory().join("etcd");
        std::fs::create_dir_all(&folder).unwrap();
        let mut cluster = Cluster {
            members: Vec::new(),
            folder,
            address: lab.spec.gateway4(0).to_string(),
            more,
        };
        cluster.certify(lab, "server", 2);
        cluster.certify(lab, "client", 2);
        cluster.members.resize_with(MEMBERS, || None);
        for member in 0..MEMBERS {
            cluster.run(lab, member);
        }
        cluster.wait(lab);
        cluster
    }

    /// What the daemons are told.
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("--etcd-endpoints={}", self.endpoints()),
            format!("--etcd-cafile={FILES}/ca.crt"),
            format!("--etcd-certfile={FILES}/client.crt"),
            format!("--etcd-keyfile={FILES}/client.key"),
        ]
    }

    /// All members' URLs.
    pub fn endpoints(&self) -> String {
        let all: Vec<String> = (0..MEMBERS).map(|member| self.endpoint(member)).collect();
        all.join(",")
    }

    /// URL of one.
    pub fn endpoint(&self, member: usize) -> String {
        format!("https://{}:{}", self.address, port(member))
    }

    /// A certificate of the cluster's authority, good for so many days, or until so many days ago, in `NAME.crt`, `NAME.key`. Each call
    /// makes a new key; every host is given that of the daemons, "client".
    pub fn certify(&self, lab: &Lab, name: &str, days: i32) {
        let script = format!(
            "cd {folder}; exec 2>>openssl.log
            key() {{ openssl req \"$@\" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes; }}
            [ -e ca.crt ] || key -x509 -days 2 -subj /CN=lab -keyout ca.key -out ca.crt
            printf 'subjectAltName=IP:127.0.0.1,IP:{address},DNS:{NAME}\\nextendedKeyUsage=serverAuth,clientAuth\\n' >extensions
            key -subj /CN={name} -keyout {name}.key.new -out {name}.csr
            openssl x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -out {name}.crt.new -extfile extensions
            mv {name}.key.new {name}.key; mv {name}.crt.new {name}.crt",
            folder = self.folder.display(),
            address = self.address,
        );
        lab.switch().shell(&script).unwrap();
        if name == "client" {
            for host in lab.hosts() {
                std::fs::create_dir_all(host.path(FILES)).unwrap();
                for file in ["ca.crt", "client.crt", "client.key"] {
                    let text = std::fs::read_to_string(self.folder.join(file)).unwrap();
                    host.write(&format!("{FILES}/{file}"), &text).unwrap();
                }
            }
        }
    }

    /// Starts a member on what it has in its folder.
    pub fn run(&mut self, lab: &Lab, member: usize) {
        self.run_as(lab, member, "existing");
    }

    fn run_as(&mut self, lab: &Lab, member: usize, state: &str) {
        let file = |name: &str| format!("{}/{name}", self.folder.display());
        let (client, peer) = (self.endpoint(member), peer_url(member));
        let is_new = !self.data(member).exists();
        let mut words = vec!["etcd".to_owned(), format!("--name=m{member}")];
        words.extend([
            format!("--data-dir={}", self.data(member).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", everybody()),
            format!("--initial-cluster-state={}", if is_new { "new" } else { state }),
            format!("--cert-file={}", file("server.crt")),
            format!("--key-file={}", file("server.key")),
            format!("--trusted-ca-file={}", file("ca.crt")),
            "--client-cert-auth".to_owned(),
            format!("--quota-backend-bytes={QUOTA}"),
            "--unsafe-no-fsync".to_owned(),
        ]);
        words.extend(self.more.iter().map(|flag| (*flag).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let process = lab.switch().spawn(&format!("etcd-{member}"), &words).unwrap();
        self.members[member] = Some(process);
    }

    fn data(&self, member: usize) -> PathBuf {
        self.folder.join(format!("data-{member}"))
    }

    /// Waits until every running member answers with a leader.
    pub fn wait(&self, lab: &Lab) {
        let endpoints: Vec<String> = (0..MEMBERS)
            .filter(|member| self.members[*member].is_some())
            .map(|member| self.endpoint(member))
            .collect();
        let all = endpoints.join(",");
        lab.wait("healthy members", Duration::from_secs(60), || {
            let said = self.ctl_at(lab, &all, &["endpoint", "health"]);
            Ok(said.err().map(|error| error.to_string()))
        })
        .unwrap();
    }

    /// Ends a member hard.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.kill();
        }
    }

    /// Ends a member in order, as an upgrade does, and starts it again.
    pub fn restart(&mut self, lab: &Lab, member: usize) {
        if let Some(mut process) = self.members[member].take() {
            process.stop(Duration::from_secs(20));
        }
        self.run(lab, member);
        self.wait(lab);
    }

    /// Ends all members hard.
    pub fn kill_all(&mut self) {
        (0..MEMBERS).for_each(|member| self.kill(member));
    }

    /// Stops a member where it is, or lets it go on.
    pub fn hold(&self, member: usize, held: bool) {
        let signal = if held { Signal::STOP } else { Signal::CONT };
        self.members[member].as_ref().unwrap().record().signal(signal);
    }

    /// Starts those that do not run.
    pub fn run_all(&mut self, lab: &Lab) {
        for member in 0..MEMBERS {
            if self.members[member].is_none() {
                self.run(lab, member);
            }
        }
        self.wait(lab);
    }

    /// Removes all data of all members, which do not run.
    pub fn empty(&self) {
        for member in 0..MEMBERS {
            std::fs::remove_dir_all(self.data(member)).unwrap();
        }
    }

    /// A snapshot, in a file.
    pub fn save(&self, lab: &Lab) -> PathBuf {
        let file = self.folder.join("snapshot");
        let _ = std::fs::remove_file(&file);
        let name = file.display().to_string();
        self.ctl_at(lab, &self.endpoint(0), &["snapshot", "save", &name])
            .unwrap();
        file
    }

    /// Gives all members, which do not run, the data of a snapshot.
    pub fn restore(&self, lab: &Lab, snapshot: &std::path::Path) {
        self.empty();
        for member in 0..MEMBERS {
            let words = [
                "snapshot".to_owned(),
                "restore".to_owned(),
                snapshot.display().to_string(),
                format!("--name=m{member}"),
                format!("--data-dir={}", self.data(member).display()),
                format!("--initial-cluster={}", everybody()),
                format!("--initial-advertise-peer-urls={}", peer_url(member)),
            ];
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            self.ctl_at(lab, &self.endpoint(member), &words).unwrap();
        }
    }

    /// Which member leads.
    pub fn leader(&self, lab: &Lab) -> usize {
        let text = self
            .ctl(lab, &["endpoint", "status", "--write-out=fields"])
            .unwrap();
        let numbers = |name: &str| -> Vec<String> {
            let prefix = format!("\"{name}\" : ");
            text.lines()
                .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
                .collect()
        };
        let (members, leaders) = (numbers("MemberID"), numbers("Leader"));
        members.iter().position(|member| *member == leaders[0]).unwrap()
    }

    /// `etcdctl` as an administrator, with any member.
    ///
    /// # Errors
    /// What it says.
    pub fn ctl(&self, lab: &Lab, arguments: &[&str]) -> Result<String, LabError> {
        self.ctl_at(lab, &self.endpoints(), arguments)
    }

    fn ctl_at(&self, lab: &Lab, endpoints: &str, arguments: &[&str]) -> Result<String, LabError> {
        lab::command::run(&mut self.command(lab, endpoints, arguments))
    }

    /// Where the certificates of an administrator are.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    fn command(&self, lab: &Lab, endpoints: &str, arguments: &[&str]) -> std::process::Command {
        let file = |name: &str| self.folder().join(name).display().to_string();
        let (ca, cert, key) = (file("ca.crt"), file("client.crt"), file("client.key"));
        let mut words = vec!["etcdctl", "--endpoints", endpoints, "--cacert", &ca];
        words.extend([
            "--cert",
            &cert,
            "--key",
            &key,
            "--dial-timeout=2s",
            "--command-timeout=10s",
        ]);
        words.extend(arguments);
        let mut command = lab.switch().command(&words);
        command.env("ETCDCTL_API", "3");
        command
    }

    /// Writes and removes keys in one transaction.
    pub fn write(&self, lab: &Lab, puts: &[(String, String)], removed: &[String]) {
        let mut text = "\n".to_owned();
        for (key, value) in puts {
            text.push_str(&format!("put {key} {value:?}\n"));
        }
        for key in removed {
            text.push_str(&format!("del {key}\n"));
        }
        text.push_str("\n\n");
        // The same twice is the same, and a member that lost its leader may leave one unanswered.
        lab.wait("the transaction", Duration::from_secs(60), || {
            let mut command = self.command(lab, &self.endpoints(), &["txn"]);
            let said = lab::command::run_with_input(&mut command, &text);
            Ok(match said {
                Ok(said) if said.contains("SUCCESS") => None,
                Ok(said) => Some(said),
                Err(error) => Some(error.to_string()),
            })
        })
        .unwrap();
    }
}

/// Port a member serves clients on.
pub fn port(member: usize) -> usize {
    2379 + 100 * member
}

fn peer_url(member: usize) -> String {
    format!("http://127.0.0.1:{}", port(member) + 1)
}

fn everybody() -> String {
    let all: Vec<String> = (0..MEMBERS)
        .map(|member| format!("m{member}={}", peer_url(member)))
        .collect();
    all.join(",")
}
