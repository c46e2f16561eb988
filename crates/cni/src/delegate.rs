//! Other plugins, run as processes of their own: found on `CNI_PATH`, given the same environment and a configuration.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::call::{Environment, Verb};
use crate::failure::{Code, Failure};
use crate::json::{self, Object};
use crate::process::{self, Output};
use crate::result::{AddResult, version_of};

/// How long a delegate may take before it and its children are killed.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// Finds a plugin's file on `CNI_PATH`: the first regular file of that name, symlinks followed, whatever its mode.
pub fn find(plugin: &str, path: &str) -> Result<PathBuf, Failure> {
    if plugin.is_empty() {
        return Err(Failure::internal("no plugin name provided"));
    }
    if plugin.contains('/') {
        return Err(Failure::internal(format!("invalid plugin name: {plugin}")));
    }
    if path.is_empty() {
        return Err(Failure::internal("no paths provided"));
    }
    let found = path
        .split(':')
        .map(|folder| Path::new(folder).join(plugin))
        .find(|file| file.is_file());
    found.ok_or_else(|| {
        let folders: Vec<&str> = path.split(':').collect();
        Failure::internal(format!(
            "failed to find plugin {plugin:?} in path [{}]",
            folders.join(" ")
        ))
    })
}

/// Runs a plugin and returns what it printed; the error is its own error object, unchanged.
pub fn run(plugin: &str, verb: Verb, stdin: &[u8], env: &Environment) -> Result<Vec<u8>, Failure> {
    let file = find(plugin, &env.path)?;
    let mut command = Command::new(&file);
    // All else is inherited, unless the call is about another attachment than our own, or about one where ours is about none.
    for (name, value) in [
        ("CNI_CONTAINERID", &env.container_id),
        ("CNI_NETNS", &env.netns),
        ("CNI_IFNAME", &env.ifname),
    ] {
        if std::env::var_os(name).unwrap_or_default().to_string_lossy() != *value {
            command.env(name, value);
        }
    }
    let output = execute(&mut command, verb, stdin, TIME_LIMIT)
        .map_err(|e| Failure::internal(format!("cannot run plugin {}: {e}", file.display())))?;
    if output.status.success() {
        // Forwarded on success only: on failure it is part of the error.
        let _ = io::stderr().lock().write_all(&output.stderr);
        return Ok(output.stdout);
    }
    Err(explain(&output))
}

/// Runs a plugin's STATUS; one without this verb is ready as soon as it is there.
pub fn status(plugin: &str, stdin: &[u8], env: &Environment) -> Result<(), Failure> {
    match run(plugin, Verb::Status, stdin, env) {
        Err(failure)
            if failure.code == Code::InvalidEnvironment as u32 && failure.msg.contains("CNI_COMMAND") =>
        {
            Ok(())
        }
        Err(failure) if matches!(failure.code, 50 | 51) => Err(failure),
        Err(failure) => Err(Failure {
            code: Code::NotAvailable as u32,
            ..failure
        }),
        Ok(_) => Ok(()),
    }
}

/// Runs a plugin's ADD and reads its result. The second value is the version the result is in.
pub fn add(
    plugin: &str,
    stdin: &[u8],
    version: &str,
    env: &Environment,
) -> Result<(AddResult, String), Failure> {
    let stdout = run(plugin, Verb::Add, stdin, env)?;
    let value = json::parse(&stdout)
        .map_err(|e| Failure::internal(format!("plugin {plugin:?} printed a result that is no JSON: {e}")))?;
    let version = version_of(&value, version);
    Ok((AddResult::parse(&value, &version)?, version))
}

fn explain(output: &Output) -> Failure {
    let failed = |msg: String| Failure {
        code: 0,
        msg,
        details: String::new(),
    };
    let status = output.ending();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    if stdout.is_empty() {
        return failed(if stderr.is_empty() {
            format!("netplugin failed with no error message: {status}")
        } else {
            format!("netplugin failed: {stderr:?}: {status}")
        });
    }
    let read = || -> Result<Failure, String> {
        let value = json::parse(&output.stdout)?;
        let object = Object::of(&value).map_err(|e| e.to_string())?;
        let text = |name: &str| object.string(name).map(|t| t.unwrap_or_default().to_owned());
        let code = object.whole("code").map_err(|e| e.to_string())?.unwrap_or(0);
        Ok(Failure {
            code: u32::try_from(code).map_err(|_| format!("code {code} is out of range"))?,
            msg: text("msg").map_err(|e| e.to_string())?,
            details: text("details").map_err(|e| e.to_string())?,
        })
    };
    read().unwrap_or_else(|e| {
        failed(format!(
            "netplugin failed but error parsing its diagnostic message {stdout:?}: {e}"
        ))
    })
}

fn execute(command: &mut Command, verb: Verb, stdin: &[u8], limit: Duration) -> io::Result<Output> {
    process::run(command.env("CNI_COMMAND", verb.as_str()), stdin, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Instant;

    fn plugin(folder: &tempfile::TempDir, script: &str) -> PathBuf {
        let file = folder.path().join("recorder");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    fn path_env(folder: &tempfile::TempDir) -> Environment {
        Environment {
            path: folder.path().to_str().unwrap().to_owned(),
            ..Environment::default()
        }
    }

    #[test]
    fn find_when_name_or_path_is_wrong_speaks_gos_words() {
        let msg = |plugin, path| find(plugin, path).unwrap_err().msg;
        assert_eq!(msg("", "/x"), "no plugin name provided");
        assert_eq!(msg("a/b", "/x"), "invalid plugin name: a/b");
        assert_eq!(msg("a", ""), "no paths provided");
        assert_eq!(
            msg("nosuch", "/nonexistent/a:/nonexistent/b"),
            "failed to find plugin \"nosuch\" in path [/nonexistent/a /nonexistent/b]"
        );
        // A folder of that name is not a plugin.
        assert!(find("bin", "/usr").is_err());
    }

    #[test]
    fn run_when_plugin_answers_passes_verb_and_every_byte_of_stdin() {
        let folder = tempfile::tempdir().unwrap();
        plugin(&folder, "echo \"$CNI_COMMAND\"; cat");
        let config = vec![b'x'; 300_000];
        let output = run("recorder", Verb::Del, &config, &path_env(&folder)).unwrap();
        assert!(output.starts_with(b"DEL\nxxx"));
        assert_eq!(output.len(), 4 + config.len());
    }

    #[test]
    fn run_when_plugin_fails_gives_its_own_error_object_or_its_stderr() {
        let folder = tempfile::tempdir().unwrap();
        let failure = |script: &str| {
            plugin(&folder, script);
            run("recorder", Verb::Add, b"{}", &path_env(&folder)).unwrap_err()
        };
        assert_eq!(
            failure(r#"echo '{"code":11,"msg":"later","details":"d"}'; exit 3"#),
            Failure {
                code: 11,
                msg: "later".into(),
                details: "d".into()
            }
        );
        assert_eq!(
            failure("echo oops >&2; exit 2").msg,
            "netplugin failed: \"oops\\n\": exit status 2"
        );
        assert_eq!(
            failure("exit 2").msg,
            "netplugin failed with no error message: exit status 2"
        );
        assert!(
            failure("echo nope; exit 1")
                .msg
                .starts_with("netplugin failed but error parsing its diagnostic message \"nope\\n\": ")
        );
        assert_eq!(
            failure("kill -9 $$").msg,
            "netplugin failed with no error message: signal: 9"
        );
    }

    #[test]
    fn execute_when_plugin_hangs_kills_it_with_its_children_at_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("child");
        let file = plugin(
            &folder,
            &format!("sleep 300 & echo $! > {}; wait", mark.display()),
        );
        let started = Instant::now();
        let error = execute(
            &mut Command::new(&file),
            Verb::Add,
            b"{}",
            Duration::from_millis(500),
        )
        .err()
        .unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() < Duration::from_secs(30));
        let child = std::fs::read_to_string(mark).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        // Whoever inherited the orphan may take a moment to collect it.
        while !state().is_empty() && !state().contains(") Z ") {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "still there: {}",
                state()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
