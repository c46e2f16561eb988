//! `flannelctl registry`: the embedded server, and a small client for it and any etcd v3.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use etcd_proto::etcdserverpb::kv_client::KvClient;
use etcd_proto::etcdserverpb::lease_client::LeaseClient;
use etcd_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use registry::etcd::{Options, TlsFiles, parse_endpoints};
use registry::etcd3::{Connection, clients};
use tokio::time::timeout;

use crate::arguments::{Arguments, Ended, Grammar};
use crate::migrate;
use crate::output::Out;

const HELP: &str = "\
An etcd v3 API server for one machine, and a small client for it (or any etcd v3).

Usage: flannelctl registry serve ...
       flannelctl registry put|get|ls|del [--endpoints URL,...] [--cafile FILE] [--certfile FILE --keyfile FILE] KEY [VALUE]
       flannelctl registry migrate --from v2 --to v3 [--dry-run] [--finish] [--prefix PREFIX] [--endpoints URL,...] ...

  serve            run the server; `flannelctl registry serve --help` says how
  put KEY VALUE    write a key
  get KEY          print a key's value; exit status 1 when there is none
  ls PREFIX        print the keys that begin with PREFIX
  del KEY          remove a key
  migrate          copy network config and leases from etcd's v2 API to its v3 API, times and reservations kept; refused where v3
                   holds something else. With --finish: remove under v2 what its node holds under v3. Exit status 1 when not all
                   could be done

  --endpoints URL,...  where (default http://127.0.0.1:2379); the first that answers
  --cafile FILE        authority of https endpoints, PEM (default: the system's)
  --certfile FILE      the client's certificate, PEM
  --keyfile FILE       its key, PEM
  --json               as JSON (get, ls, migrate)
  --dry-run            say what would be written or removed (migrate)
  --prefix PREFIX      flanneld's --etcd-prefix (migrate; default /coreos.com/network)

Examples:
  flannelctl registry put /coreos.com/network/config '{\"Network\":\"10.244.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}'
  flannelctl registry ls /coreos.com/network/subnets/
";

type Client = KvClient<Connection>;

/// One endpoint has this long to take a connection.
const CONNECTING: Duration = Duration::from_secs(3);
/// And each request this long to be answered.
const ANSWERING: Duration = Duration::from_secs(10);
/// Keys a page of a listing holds.
const PAGE: i64 = 1000;

/// `flannelctl registry ...`.
pub fn run(arguments: &[String], out: &mut Out) -> Result<ExitCode, Ended> {
    let (verb, rest) = match arguments.split_first() {
        Some((verb, rest)) => (verb.as_str(), rest),
        None => return Err(Ended::Usage(format!("registry: no verb\n\n{HELP}"))),
    };
    if !["put", "get", "ls", "del", "migrate"].contains(&verb) {
        return match verb {
            "serve" => Ok(crate::registry::run(arguments)?),
            "-h" | "--help" | "help" => Err(Ended::Help(HELP)),
            other => Err(Ended::Usage(format!("registry: no verb {other:?}\n\n{HELP}"))),
        };
    }
    let grammar = Grammar {
        help: HELP,
        values: match verb {
            "migrate" => &[
                "endpoints",
                "cafile",
                "certfile",
                "keyfile",
                "prefix",
                "from",
                "to",
            ],
            _ => &["endpoints", "cafile", "certfile", "keyfile"],
        },
        switches: match verb {
            "migrate" => &["json", "dry-run", "finish"],
            _ => &["json"],
        },
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
        "migrate" => "",
        "put" => read.exactly(["KEY", "VALUE"])?[0],
        "ls" => read.exactly(["PREFIX"])?[0],
        _ => read.exactly(["KEY"])?[0],
    };
    let file = |name| read.value(name).map(PathBuf::from);
    let files = TlsFiles {
        cafile: file("cafile"),
        certfile: file("certfile"),
        keyfile: file("keyfile"),
    };
    if files.certfile.is_some() != files.keyfile.is_some() {
        return Err(Ended::Usage(
            "--certfile and --keyfile: expected both or none".to_owned(),
        ));
    }
    let endpoints = read.value_or("endpoints", "http://127.0.0.1:2379");
    if verb == "migrate" {
        let defaults = Options::default();
        let options = Options {
            endpoints: endpoints.to_owned(),
            prefix: read.value_or("prefix", &defaults.prefix).to_owned(),
            tls: files,
            ..defaults
        };
        return migrate::run(read, options, out).await;
    }
    let (mut kv, _) = connect(endpoints, &files).await?;
    match verb {
        "put" => {
            let value = read.positionals.get(1).cloned().unwrap_or_default();
            let request = PutRequest {
                key: key.into(),
                value: value.into(),
                ..PutRequest::default()
            };
            answered(kv.put(request)).await?;
            Ok(ExitCode::SUCCESS)
        }
        "del" => {
            let request = DeleteRangeRequest {
                key: key.into(),
                ..DeleteRangeRequest::default()
            };
            let deleted = answered(kv.delete_range(request)).await?.deleted;
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
            let answer = answered(kv.range(request)).await?;
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
                out.value(&entry.value)?;
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
async fn list(kv: &mut Client, prefix: &str) -> anyhow::Result<Vec<String>> {
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
        let answer = answered(kv.range(request)).await?;
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

/// Clients of the first endpoint that answers.
pub async fn connect(endpoints: &str, files: &TlsFiles) -> anyhow::Result<(Client, LeaseClient<Connection>)> {
    let mut problem = anyhow!("no endpoint given");
    for endpoint in parse_endpoints(endpoints, files.any()).context("--endpoints")? {
        let url = endpoint.to_string();
        match timeout(CONNECTING, clients(endpoint, files)).await {
            Ok(Ok(clients)) => return Ok(clients),
            Ok(Err(error)) => problem = anyhow!("no answer at {url}: {error}"),
            Err(_) => problem = anyhow!("no answer at {url} within {} s", CONNECTING.as_secs()),
        }
    }
    Err(problem)
}

/// An answer, or why there is none.
pub async fn answered<T>(
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> anyhow::Result<T> {
    match timeout(ANSWERING, request).await {
        Ok(answer) => Ok(answer.map_err(refused)?.into_inner()),
        Err(_) => bail!("the registry does not answer within {} s", ANSWERING.as_secs()),
    }
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
