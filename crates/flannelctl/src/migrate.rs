//! `flannelctl registry migrate`: config and leases from etcd's v2 API to its v3 API.
//!
//! INVARIANT: nothing that v3 holds is changed, and nothing under v2 goes before its owner was seen under v3. Leases come before the
//! config, so a run that was cut short leaves no config without its leases, and can be made again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use etcd_proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use etcd_proto::mvccpb::KeyValue;
use fabric::lease::{Lease, Snapshot};
use registry::entries::{Entries as _, Scope, Wish};
use registry::etcd::{Keys, Options};
use registry::etcd3::Connection;
use registry::{Etcd2, Etcd3, etcd2};
use serde::Serialize;
use tokio::time::Instant;

use crate::arguments::{Arguments, Ended};
use crate::output::Out;
use crate::store::{answered, connect};

/// Both APIs tell ends in whole seconds, and are asked one after the other.
const ROUNDING: Duration = Duration::from_secs(5);

/// What is or would be done with one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Deed {
    Write,
    There,
    Differs,
    Remove,
    Stays,
}

impl Deed {
    fn word(self, is_dry: bool) -> &'static str {
        match (self, is_dry) {
            (Deed::Write, true) => "would write",
            (Deed::Write, false) => "wrote",
            (Deed::There, _) => "there already",
            (Deed::Differs, _) => "differs",
            (Deed::Remove, true) => "would remove",
            (Deed::Remove, false) => "removed",
            (Deed::Stays, _) => "stays",
        }
    }
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Step {
    deed: Deed,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Seconds to live; none: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Step {
    fn new(deed: Deed, key: &str) -> Step {
        Step {
            deed,
            key: key.to_owned(),
            value: None,
            seconds: None,
            why: None,
        }
    }

    fn because(self, why: impl Into<String>) -> Step {
        Step {
            why: Some(why.into()),
            ..self
        }
    }
}

/// An entry under v2.
struct Old {
    /// Below the parent of all leases.
    name: String,
    lease: Lease,
    value: Vec<u8>,
    stamp: etcd2::Stamp,
    /// None: a reservation.
    ends: Option<Instant>,
}

impl Old {
    fn seconds(&self) -> Option<i64> {
        let left = |ends: Instant| ends.saturating_duration_since(Instant::now());
        let whole = |left: Duration| i64::try_from(left.as_secs()).unwrap_or(i64::MAX).max(1);
        self.ends.map(|ends| whole(left(ends)))
    }
}

struct Migration {
    v2: Etcd2,
    v3: Etcd3,
    keys: Keys,
    kv: KvClient<Connection>,
    leases: LeaseClient<Connection>,
    config: Vec<u8>,
    old: Vec<Old>,
    steps: Vec<Step>,
}

/// `flannelctl registry migrate --from v2 --to v3`.
pub async fn run(read: &Arguments, options: Options, out: &mut Out) -> Result<ExitCode, Ended> {
    read.exactly([])?;
    for (flag, only) in [("from", "v2"), ("to", "v3")] {
        match read.value(flag) {
            Some(value) if value == only => {}
            Some(value) => return Err(Ended::Usage(format!("--{flag}={value}: expected {only}"))),
            None => return Err(Ended::Usage(format!("--{flag} {only} is missing"))),
        }
    }
    let is_dry = read.has("dry-run");
    let mut migration = Migration::look(options).await?;
    let outcome = match read.has("finish") {
        true => migration.finish(is_dry).await,
        false => migration.copy(is_dry).await,
    };
    // Also of what failed half way, it is said how far it came.
    if read.has("json") {
        out.json(&serde_json::json!({ "dry_run": is_dry, "steps": migration.steps }))?;
    } else {
        for step in &migration.steps {
            let mut line = format!("{:<13} {}", step.deed.word(is_dry), step.key);
            let parts = [
                step.value.clone(),
                step.seconds.map(|seconds| format!("(ends in {seconds} s)")),
                step.why.as_ref().map(|why| format!("({why})")),
            ];
            for part in parts.into_iter().flatten() {
                line.push(' ');
                line.push_str(&part);
            }
            out.line(&line)?;
        }
    }
    out.flush()?;
    outcome?;
    let is_clean = |step: &Step| !matches!(step.deed, Deed::Differs | Deed::Stays);
    Ok(match migration.steps.iter().all(is_clean) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

impl Migration {
    /// Reads all that is under v2.
    async fn look(options: Options) -> anyhow::Result<Migration> {
        let (kv, leases) = connect(&options.endpoints, &options.tls).await?;
        let (v2, v3) = (Etcd2::new(&options)?, Etcd3::new(&options)?);
        let store = v2.entries();
        let config = store.config().await?;
        let wish = Wish {
            scope: Scope::All,
            note: &|_, _, lease| lease.is_some(),
            own: None,
        };
        let listing = store.list(&wish).await?;
        let mut old = Vec::new();
        for (name, _) in listing.noted {
            let Some(entry) = store.read(&name).await?.entry else {
                continue;
            };
            let ends = store.expires(&name, &entry.handle).await?;
            if let Ok(lease) = Lease::read(&name, &entry.value, entry.created)
                && ends.is_none_or(|ends| ends > Instant::now())
            {
                old.push(Old {
                    name,
                    lease,
                    value: entry.value,
                    stamp: entry.handle,
                    ends,
                });
            }
        }
        old.sort_by_key(|old| old.lease.subnet);
        let rejected = listing.snapshot.rejected.into_iter();
        let keys = Keys::new(&options.prefix);
        let steps = rejected
            .map(|rejected| Step::new(Deed::Stays, &keys.at(&rejected.key)).because(rejected.reason))
            .collect();
        Ok(Migration {
            v2,
            v3,
            keys,
            kv,
            leases,
            config,
            old,
            steps,
        })
    }

    async fn there(&mut self, key: &str) -> anyhow::Result<Option<KeyValue>> {
        let request = RangeRequest {
            key: key.into(),
            ..RangeRequest::default()
        };
        Ok(answered(self.kv.range(request)).await?.kvs.into_iter().next())
    }

    /// What is to be done about one key, by what v3 has there.
    async fn plan(&mut self, key: &str, value: &[u8], seconds: Option<i64>) -> anyhow::Result<Step> {
        let step = match self.there(key).await? {
            Some(there) if there.value == value => return Ok(Step::new(Deed::There, key)),
            Some(there) => {
                let why = format!("v3 has {}", String::from_utf8_lossy(&there.value));
                Step::new(Deed::Differs, key).because(why)
            }
            None => Step::new(Deed::Write, key),
        };
        Ok(Step {
            value: Some(String::from_utf8_lossy(value).into_owned()),
            seconds,
            ..step
        })
    }

    async fn copy(&mut self, is_dry: bool) -> anyhow::Result<()> {
        let newer = self.v3.entries().list(&Wish::leases(Scope::All)).await?.snapshot;
        let mut wanted: Vec<(String, Vec<u8>, Option<Instant>)> = Vec::new();
        let mut plan = Vec::new();
        for old in std::mem::take(&mut self.old) {
            let key = self.keys.at(&old.name);
            let step = match overlapping(&newer, &old.lease) {
                Some(other) => {
                    Step::new(Deed::Differs, &key).because(format!("v3 has {other}, which overlaps"))
                }
                None => self.plan(&key, &old.value, old.seconds()).await?,
            };
            plan.push(step);
            wanted.push((key, old.value, old.ends));
        }
        let config = (self.keys.config().to_owned(), self.config.clone(), None);
        plan.push(self.plan(&config.0, &config.1, None).await?);
        wanted.push(config);
        let differing = plan.iter().filter(|step| step.deed == Deed::Differs).count();
        if is_dry || differing > 0 {
            self.steps.extend(
                plan.into_iter()
                    .filter(|step| is_dry || step.deed == Deed::Differs),
            );
            if differing > 0 {
                bail!("v3 holds something else under {differing} of the keys: nothing is written");
            }
            return Ok(());
        }
        for (step, (key, value, ends)) in plan.into_iter().zip(wanted) {
            if step.deed == Deed::Write {
                self.write(&key, &value, ends).await?;
            }
            self.steps.push(step);
        }
        Ok(())
    }

    /// Puts a key where there is none, to end when it did.
    async fn write(&mut self, key: &str, value: &[u8], ends: Option<Instant>) -> anyhow::Result<()> {
        let mut lease = 0;
        if let Some(ends) = ends {
            let left = ends.saturating_duration_since(Instant::now()).as_secs();
            let request = LeaseGrantRequest {
                ttl: i64::try_from(left).unwrap_or(i64::MAX).max(1),
                id: 0,
            };
            lease = answered(self.leases.lease_grant(request)).await?.id;
        }
        let put = PutRequest {
            key: key.into(),
            value: value.to_vec(),
            lease,
            ..PutRequest::default()
        };
        let request = TxnRequest {
            compare: vec![Compare {
                target: CompareTarget::Version.into(),
                key: key.into(),
                target_union: Some(TargetUnion::Version(0)),
                ..Compare::default()
            }],
            success: vec![RequestOp {
                request: Some(Request::RequestPut(put)),
            }],
            failure: Vec::new(),
        };
        if answered(self.kv.txn(request)).await?.succeeded {
            return Ok(());
        }
        if lease != 0 {
            answered(self.leases.lease_revoke(LeaseRevokeRequest { id: lease })).await?;
        }
        bail!("{key}: somebody wrote it to v3 meanwhile; what was written before is listed, run again");
    }

    async fn finish(&mut self, is_dry: bool) -> anyhow::Result<()> {
        let config = self.keys.config().to_owned();
        match self.there(&config).await? {
            Some(there) if there.value == self.config => {}
            Some(_) => bail!("{config}: v3 has another than v2: nothing is removed"),
            None => bail!("{config}: v3 has none: migrate without --finish first"),
        }
        for old in std::mem::take(&mut self.old) {
            let key = self.keys.at(&old.name);
            let mut why = match self.there(&key).await? {
                Some(twin) => self.reason_to_stay(&old, &twin).await?,
                None => Some("v3 has no such lease"),
            };
            if why.is_none() && !is_dry && !self.v2.entries().delete(&old.name, &old.stamp).await? {
                why = Some("it was written under v2 meanwhile");
            }
            self.steps.push(match why {
                Some(why) => Step::new(Deed::Stays, &key).because(why),
                None => Step::new(Deed::Remove, &key),
            });
        }
        let mut why = None;
        if self.steps.iter().any(|step| step.deed == Deed::Stays) {
            why = Some("whoever has a lease under v2 goes by it");
        } else if !is_dry && !self.v2.entries().delete_config(&self.config).await? {
            why = Some("it was written under v2 meanwhile");
        }
        self.steps.push(match why {
            Some(why) => Step::new(Deed::Stays, &config).because(why),
            None => Step::new(Deed::Remove, &config),
        });
        Ok(())
    }

    /// Why a lease has to stay under v2; none where its node holds it under v3.
    async fn reason_to_stay(&self, old: &Old, twin: &KeyValue) -> anyhow::Result<Option<&'static str>> {
        let Ok(lease) = Lease::read(&old.name, &twin.value, twin.create_revision) else {
            return Ok(Some("what v3 has there is no lease"));
        };
        let addresses = |lease: &Lease| (lease.attributes.public_ip, lease.attributes.public_ip6);
        if addresses(&lease) != addresses(&old.lease) {
            return Ok(Some("under v3 it is another node's"));
        }
        let Some(old_ends) = old.ends.filter(|_| twin.version <= 1) else {
            return Ok(None);
        };
        // A copy ends when it would under v2; who holds it there prolongs it there, and who holds it here, here.
        let store = self.v3.entries();
        let ends = match store.read(&old.name).await?.entry {
            Some(entry) => store.expires(&old.name, &entry.handle).await?,
            None => return Ok(Some("v3 has no such lease")),
        };
        let is_held = ends.is_none_or(|ends| ends > old_ends + ROUNDING);
        Ok((!is_held).then_some("its node has not prolonged it under v3 yet"))
    }
}

/// The lease under v3 that has addresses of this one, and is another.
fn overlapping(newer: &Snapshot, old: &Lease) -> Option<String> {
    let mut others = newer.leases.keys();
    let other = others.find(|other| **other != old.subnet && other.overlaps(&old.subnet));
    other.map(ToString::to_string)
}
