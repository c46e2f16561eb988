//! `flannelctl registry serve`: the embedded registry as a process.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use embedded::{ServeOptions, Tls};
use fabric::causes::in_full;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "\
An etcd v3 API server for one machine: labs and small home set-ups. Real clusters use a real etcd (or Kubernetes):
this one has no replicas, no authentication, no snapshots and no v2 API, and refuses them by name.

Usage: flannelctl registry serve [--listen HOST:PORT[,...]] [--data-dir DIR] [--cert-file FILE --key-file FILE]
                                 [--trusted-ca-file FILE] [--insecure]

  --listen HOST:PORT[,...]  where to listen, port 0 = a free one (default 127.0.0.1:2379)
  --data-dir DIR            where the data lives; made when missing (default /var/lib/flannel/registry)
  --cert-file FILE          the server's certificate chain, PEM: every listener then speaks TLS
  --key-file FILE           its key, PEM
  --trusted-ca-file FILE    clients must show a certificate of this authority, PEM
  --insecure                listen beyond loopback without TLS: anyone who can reach the port may change everything

Prints one line with its addresses when it is ready. SIGTERM and SIGINT stop it. Every acknowledged write survives a
kill; leases keep what remains of their time over a restart.
";

/// What the command line says.
#[derive(Debug, PartialEq)]
enum Asked {
    Help,
    Serve(ServeOptions),
}

/// Runs `flannelctl registry serve`; `args` begin after `registry`.
pub fn run(args: &[String]) -> anyhow::Result<ExitCode> {
    let asked = match args.split_first() {
        Some((verb, rest)) if verb == "serve" => parse(rest),
        Some((verb, _)) if is_help(verb) => Ok(Asked::Help),
        Some((verb, _)) => Err(anyhow::anyhow!("registry: no verb {verb:?}, expected serve")),
        None => Err(anyhow::anyhow!("registry: no verb, expected serve")),
    };
    match asked {
        Ok(Asked::Serve(options)) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(serve(options))
        }
        Ok(Asked::Help) => {
            say(HELP)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // Nothing can be done about a closed stderr.
            let _ = writeln!(
                std::io::stderr(),
                "flannelctl registry: {} (see --help)",
                in_full(error.as_ref())
            );
            Ok(ExitCode::from(2))
        }
    }
}

fn is_help(arg: &str) -> bool {
    matches!(arg, "-h" | "-help" | "--help")
}

fn parse(args: &[String]) -> anyhow::Result<Asked> {
    let (mut listen, mut data_dir) = (
        "127.0.0.1:2379".to_owned(),
        "/var/lib/flannel/registry".to_owned(),
    );
    let (mut cert, mut key, mut ca, mut insecure) = (None, None, None, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if is_help(arg) {
            return Ok(Asked::Help);
        }
        let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
            bail!("unexpected argument {arg:?}");
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let mut value = || {
            inline
                .clone()
                .or_else(|| args.next().cloned())
                .with_context(|| format!("--{name}: no value"))
        };
        match name {
            "listen" => listen = value()?,
            "data-dir" => data_dir = value()?,
            "cert-file" => cert = Some(value()?),
            "key-file" => key = Some(value()?),
            "trusted-ca-file" => ca = Some(value()?),
            "insecure" if inline.is_none() => insecure = true,
            "insecure" => bail!("--insecure: expected no value"),
            _ => bail!("unknown flag {arg:?}"),
        }
    }
    if data_dir.is_empty() {
        bail!("--data-dir: expected a directory, got nothing");
    }
    let tls = match (cert, key) {
        (Some(cert), Some(key)) => {
            let trusted_ca_file = ca.map(PathBuf::from);
            Some(Tls {
                cert_file: cert.into(),
                key_file: key.into(),
                trusted_ca_file,
            })
        }
        (None, None) if ca.is_some() => bail!("--trusted-ca-file: needs --cert-file and --key-file"),
        (None, None) => None,
        (Some(_), None) => bail!("--cert-file: needs --key-file"),
        (None, Some(_)) => bail!("--key-file: needs --cert-file"),
    };
    let listen = listen.split(',').map(|listen| listen.trim().to_owned()).collect();
    Ok(Asked::Serve(ServeOptions {
        listen,
        data_dir: data_dir.into(),
        tls,
        insecure,
    }))
}

async fn serve(options: ServeOptions) -> anyhow::Result<ExitCode> {
    // Before the ready line: whoever reads it may send a signal at once.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let data_dir = options.data_dir.clone();
    report_panics(
        "the store cannot be read, its file is damaged; move the data directory away or restore a copy",
    );
    let bound = embedded::serve(options, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
    .await?;
    report_panics("internal error");
    let urls = bound.urls().join(",");
    if let Some(lost) = bound.lost() {
        // Nothing can be done about a closed stderr.
        let _ = writeln!(
            std::io::stderr(),
            "flannelctl registry: the store in {} was damaged: its newest commits, of revisions {} to {}, were acknowledged and are lost; \
             it goes on behind them",
            data_dir.display(),
            lost.kept + 1,
            lost.acknowledged
        );
    }
    // A closed stdout is no reason to take the registry down.
    let _ = say(&format!(
        "flannelctl registry: listening on {urls} (data in {})\n",
        data_dir.display()
    ));
    bound.finished().await?;
    Ok(ExitCode::SUCCESS)
}

fn say(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// One line and status 1 instead of a back trace, also where panics abort: the storage engine panics on some damaged
/// files (a zeroed page).
fn report_panics(prefix: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.to_string().replace('\n', " ");
        // Nothing can be done about a closed stderr.
        let _ = writeln!(std::io::stderr(), "flannelctl registry: {prefix}: {text}");
        #[expect(
            clippy::disallowed_methods,
            reason = "where panics abort no destructor runs either; status 1, not 134"
        )]
        std::process::exit(1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Asked> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    fn options(line: &str) -> ServeOptions {
        match parsed(line).unwrap() {
            Asked::Serve(options) => options,
            Asked::Help => panic!("{line} asked for help"),
        }
    }

    #[test]
    fn parsing_when_nothing_is_given_listens_on_loopback() {
        let options = options("");
        assert_eq!(options.listen, ["127.0.0.1:2379"]);
        assert_eq!(options.data_dir, PathBuf::from("/var/lib/flannel/registry"));
        assert!(options.tls.is_none() && !options.insecure);
    }

    #[test]
    fn parsing_when_both_value_forms_are_used_takes_them() {
        let options =
            options("--listen 127.0.0.1:0,[::1]:0 -data-dir=/d --cert-file c --key-file=k --insecure");
        assert_eq!(options.listen, ["127.0.0.1:0", "[::1]:0"]);
        assert_eq!(options.data_dir, PathBuf::from("/d"));
        assert_eq!(
            options.tls.map(|tls| (tls.cert_file, tls.key_file)),
            Some(("c".into(), "k".into()))
        );
        assert!(options.insecure);
    }

    #[test]
    fn parsing_when_flags_do_not_fit_names_the_flag() {
        for (line, named) in [
            ("--cert-file c", "--key-file"),
            ("--trusted-ca-file c", "--cert-file"),
            ("--listen", "--listen"),
            ("--data-dir=", "--data-dir"),
            ("--insecure=yes", "--insecure"),
            ("--frobnicate", "--frobnicate"),
            ("stray", "stray"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
        assert_eq!(parsed("--listen x --help").unwrap(), Asked::Help);
    }
}
