//! `flannelctl registry`: the embedded server, and a small client for it and any etcd v3.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use tonic::transport::{Channel, Endpoint};

use crate::arguments::{Arguments, Ended, Grammar};
use crate::output::Out;

const HELP: &str = "\
An etcd v3 API server for one machine, and a small client for it (or any etcd v3 over http).

Usage: flannelctl registry serve ...
       flannelctl registry put|get|ls|del [--endpoints URL,...] KEY [VALUE]

  serve            run the server; `flannelctl registry serve --help` says how
  put KEY VALUE    write a key
  get KEY          print a key's value; exit status 1 when there is none
  ls PREFIX        print the keys that begin with PREFIX
  del KEY          remove a key

  --endpoints URL,...  where (default http://127.0.0.1:2379); the first that answers
  --json               keys, values and revisions as JSON (get, ls)

Examples:
  flannelctl registry put /coreos.com/network/config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'
  flannelctl registry ls /coreos.com/network/subnets/
";

/// Keys a page of a listing holds.
const PAGE: i64 = 1000;

/// `flannelctl registry ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => return Err(Ended::Usage(format!("registry: no verb\n\n{HELP}"))),
    };
    if !["put", "get", "ls", "del"].contains(&verb) {
        return match verb {
            "serve" => Ok(crate::registry::run(arguments)?),
            "-h" | "--help" | "help" => Err(Ended::Help(HELP)),
            other => Err(Ended::Usage(format!("registry: no verb {other:?}\n\n{HELP}"))),
        };
    }
    let grammar = Grammar {
        help: HELP,
        values: &["endpoints"],
        switches: &["json"],
        stop_at_positional: false,
    };
    let read = grammar.read(rest)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(client(verb, &read, out))
}

async fn client(verb: &str, read: &Arguments, out: &mut Out) -> Result<ExitCode, Ended> {
    let key = match verb {
        "put" => read.exactly(["KEY", "VALUE"])?[0],
        "ls" => read.exactly(["PREFIX"])?[0],
        _ => read.exactly(["KEY"])?[0],
    };
    let mut kv = connect(read.value_or("endpoints", "http://127.0.0.1:2379")).await?;
    match verb {
        "put" => {
            let value = read.positionals.get(1).cloned().unwrap_or_default();
            let request = PutRequest {
                key: key.into(),
                value: value.into(),
                ..PutRequest::default()
            };
            kv.put(request).await.map_err(refused)?;
            Ok(ExitCode::SUCCESS)
        }
        "del" => {
            let request = DeleteRangeRequest {
                key: key.into(),
                ..DeleteRangeRequest::default()
            };
            let deleted = kv
                .delete_range(request)
                .await
                .map_err(refused)?
                .into_inner()
                .deleted;
            Ok(if deleted > 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        "get" => {
            let request = RangeRequest {
                key: key.into(),
                ..RangeRequest::default()
            };
            let answer = kv.range(request).await.map_err(refused)?.into_inner();
            let Some(entry) = answer.kvs.first() else {
                return Ok(ExitCode::FAILURE);
            };
            let value = String::from_utf8_lossy(&entry.value);
            if read.has("json") {
                out.json(&serde_json::json!({
                    "key": key, "value": value, "create_revision": entry.create_revision,
                    "mod_revision": entry.mod_revision, "version": entry.version, "lease": entry.lease,
                }))?;
            } else {
                out.line(&value)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            let keys = list(&mut kv, key).await?;
            if read.has("json") {
                out.json(&keys)?;
            } else {
                for key in keys {
                    out.line(&key)?;
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// All keys with a prefix, page by page, at one revision.
async fn list(kv: &mut KvClient<Channel>, prefix: &str) -> anyhow::Result<Vec<String>> {
    let end = end_of(prefix.as_bytes());
    let (mut from, mut revision, mut keys) = (prefix.as_bytes().to_vec(), 0, Vec::new());
    loop {
        let request = RangeRequest {
            key: from.clone(),
            range_end: end.clone(),
            limit: PAGE,
            revision,
            keys_only: true,
            ..RangeRequest::default()
        };
        let answer = kv.range(request).await.map_err(refused)?.into_inner();
        keys.extend(
            answer
                .kvs
                .iter()
                .map(|kv| String::from_utf8_lossy(&kv.key).into_owned()),
        );
        revision = answer.header.map_or(revision, |h| h.revision);
        match answer.kvs.last() {
            Some(last) if answer.more => {
                from = last.key.clone();
                from.push(0);
            }
            _ => return Ok(keys),
        }
    }
}

/// The first key after all that begin with `prefix`; one NUL means "to the end".
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

async fn connect(endpoints: &str) -> anyhow::Result<KvClient<Channel>> {
    let mut problem = anyhow!("no endpoint given");
    for url in endpoints.split(',').filter(|e| !e.is_empty()) {
        if url.starts_with("https:") {
            bail!("{url}: this small client speaks http only; use etcdctl for TLS");
        }
        let endpoint = Endpoint::from_shared(url.to_owned())
            .with_context(|| format!("--endpoints {url:?}: expected http://ADDRESS:PORT"))?;
        let endpoint = endpoint
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(10));
        match endpoint.connect().await {
            Ok(channel) => return Ok(KvClient::new(channel)),
            Err(error) => problem = anyhow::Error::new(error).context(format!("no answer at {url}")),
        }
    }
    Err(problem)
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("the registry refused: {} ({})", status.message(), status.code())
}

#[cfg(test)]
mod tests {
    use super::end_of;

    #[test]
    fn end_of_a_prefix_is_the_first_key_after_it() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(&[0x61, 0xff]), b"b");
        assert_eq!(end_of(&[0xff, 0xff]), [0]);
        assert_eq!(end_of(b""), [0]);
    }
}
