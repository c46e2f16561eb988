//! Other plugins, run as processes of their own: found on `CNI_PATH`, given the same environment and a configuration.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use kernel::exec::{self, ExecError, Output, Program};

use crate::call::{Call, Environment, Verb};
use crate::failure::{Code, Failure};
use crate::json::{self, JsonObject};
use crate::notice::{beginning, say};
use crate::result::{AddResult, version_of};

/// How long a delegate may take before it and its children are killed.
pub const TIME_LIMIT: Duration = Duration::from_secs(60);

/// How long all delegates of a call may take together: no runtime waits much longer.
const ALL_LIMIT: Duration = Duration::from_secs(120);
/// Most bytes of what a delegate says that are handed on to people, and into logs.
const MOST_WORDS: usize = 4 << 10;
/// Most bytes of a result.
const MOST_RESULT: usize = 4 << 20;

/// Set (to anything but `0`), every delegate is a process of its own.
pub const EXEC_VARIABLE: &str = "FLANNEL_CNI_EXEC";
/// `false` in flannel's configuration does the same.
const NATIVE_KEY: &str = "nativeDelegate";

/// Every plugin behind flannel is to be a process of its own.
pub fn exec_is_forced(call: &Call) -> bool {
    let native = call.fields().flag_or(NATIVE_KEY, true);
    native.is_ok_and(|native| !native) || says_exec(std::env::var_os(EXEC_VARIABLE).as_deref())
}

/// The value of [`EXEC_VARIABLE`] means it.
fn says_exec(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| !value.is_empty() && value != "0")
}

/// Finds a plugin's file on `CNI_PATH`: the first regular file of that name, symlinks followed, whatever its mode.
///
/// # Errors
///
/// Go's words for a name or a path that is no good, or a plugin that is not there.
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
///
/// # Errors
///
/// The plugin's own error object; without one what it printed and how it ended. It is killed after a minute.
pub fn run(plugin: &str, verb: Verb, stdin: &[u8], env: &Environment) -> Result<Vec<u8>, Failure> {
    let file = find(plugin, &env.path)?;
    let mut program = Program::at(&file);
    // All else is inherited, unless the call is about another attachment than our own, or about one where ours is about none.
    for (name, value) in [
        ("CNI_CONTAINERID", &env.container_id),
        ("CNI_NETNS", &env.netns),
        ("CNI_IFNAME", &env.ifname),
    ] {
        if std::env::var_os(name).unwrap_or_default().to_string_lossy() != *value {
            program = program.env(name, value);
        }
    }
    let left = TIME_LIMIT.min(ALL_LIMIT.saturating_sub(begun().elapsed()));
    let output = execute(program, verb, stdin, left).map_err(|e| unrunnable(&file, &e))?;
    if output.status.success() {
        // Forwarded on success only: on failure it is part of the error.
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.trim().is_empty() {
            say(said.trim_end());
        }
        if output.stdout.len() > MOST_RESULT {
            let most = MOST_RESULT >> 20;
            return Err(Failure::internal(format!(
                "plugin {plugin:?} printed more than {most} MiB"
            )));
        }
        return Ok(output.stdout);
    }
    Err(explain(&output))
}

/// Runs a plugin's STATUS; one without this verb is ready as soon as it is there.
///
/// # Errors
///
/// The plugin's own where it says 50 or 51; any other with code 50.
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
///
/// # Errors
///
/// As [`run`], and a result that cannot be read.
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

/// When this process began to run delegates: a process is one call.
fn begun() -> Instant {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    *BEGUN.get_or_init(Instant::now)
}

/// The same call may well work later where time alone was over.
fn unrunnable(file: &Path, error: &ExecError) -> Failure {
    let code = match error {
        ExecError::Timeout { .. } => Code::TryAgainLater,
        _ => Code::Internal,
    };
    let msg = format!("cannot run plugin {}: {}", file.display(), error.reason());
    Failure::new(code, msg)
}

fn explain(output: &Output) -> Failure {
    let failed = |msg: String| Failure {
        code: 0,
        msg,
        details: String::new(),
    };
    let status = output.ending();
    let stderr = beginning(&String::from_utf8_lossy(&output.stderr), MOST_WORDS);
    let whole = output.stdout.get(..MOST_RESULT).unwrap_or(&output.stdout);
    let stdout = beginning(&String::from_utf8_lossy(whole), MOST_WORDS);
    if stdout.is_empty() {
        return failed(if stderr.is_empty() {
            format!("netplugin failed with no error message: {status}")
        } else {
            format!("netplugin failed: {stderr:?}: {status}")
        });
    }
    let read = || -> Result<Failure, String> {
        let value = json::parse(whole)?;
        let object = JsonObject::of(&value).map_err(|e| e.to_string())?;
        let text = |name: &str| {
            let text = object.string(name)?.unwrap_or_default();
            Ok::<_, json::FieldError>(beginning(text, MOST_WORDS))
        };
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

fn execute(program: Program, verb: Verb, stdin: &[u8], limit: Duration) -> Result<Output, ExecError> {
    exec::converse(&program.env("CNI_COMMAND", verb.as_str()), stdin, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
    fn run_when_time_is_over_is_to_be_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = plugin(&folder, "exec sleep 1000");
        let limit = Duration::from_millis(50);
        let error = execute(Program::at(&file), Verb::Del, b"", limit).unwrap_err();
        let failure = unrunnable(&file, &error);
        assert_eq!(failure.code, 11);
        assert!(
            failure
                .msg
                .ends_with("recorder: gave no answer within 0 s and was killed"),
            "{failure}"
        );
        let error = exec::converse(&Program::at("/nonexistent/x"), b"", limit).unwrap_err();
        assert_eq!(unrunnable(Path::new("/nonexistent/x"), &error).code, 999);
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
        let loud = failure("head -c 100000000 /dev/zero >&2; exit 1");
        assert!(loud.msg.len() < 64 << 10, "{}", loud.msg.len());
        let loud = failure("head -c 10000000 /dev/zero; exit 1");
        assert!(loud.msg.len() < 64 << 10, "{}", loud.msg.len());
        let long = failure(
            r#"printf '{"code":7,"msg":"%s","details":"d"}' "$(head -c 100000 /dev/zero | tr '\0' x)"; exit 1"#,
        );
        assert_eq!((long.code, long.details.as_str()), (7, "d"));
        assert!(
            long.msg.ends_with("xx... (95904 bytes more)"),
            "{}",
            long.msg.len()
        );
        assert_eq!(
            failure("kill -9 $$").msg,
            "netplugin failed with no error message: signal: 9"
        );
    }

    fn call(more: &str) -> Call {
        let env = Environment {
            command: "DEL".into(),
            ..Environment::default()
        };
        Call::check(env, format!(r#"{{"name":"n"{more}}}"#).into_bytes()).unwrap()
    }

    #[test]
    fn process_of_its_own_when_asked_for_by_key_or_variable_is_forced() {
        assert!(exec_is_forced(&call(r#","nativeDelegate":false"#)));
        for more in ["", r#","nativeDelegate":true"#, r#","nativeDelegate":"no""#] {
            assert!(!exec_is_forced(&call(more)), "{more}");
        }
        for (value, forced) in [
            (None, false),
            (Some(""), false),
            (Some("0"), false),
            (Some("1"), true),
            (Some("no"), true),
        ] {
            assert_eq!(says_exec(value.map(OsStr::new)), forced, "{value:?}");
        }
    }

    #[test]
    fn run_when_the_call_is_about_another_attachment_tells_the_plugin_of_that_one() {
        let folder = tempfile::tempdir().unwrap();
        plugin(
            &folder,
            r#"echo "$CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME"; echo said >&2"#,
        );
        let mut env = path_env(&folder);
        env.container_id = "c7".into();
        env.netns = "/run/netns/x".into();
        env.ifname = "net1".into();
        let said = run("recorder", Verb::Del, b"{}", &env).unwrap();
        assert_eq!(String::from_utf8(said).unwrap(), "c7 /run/netns/x net1\n");
    }

    #[test]
    fn run_when_a_result_is_larger_than_any_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let print = |bytes: usize| {
            plugin(&folder, &format!("head -c {bytes} /dev/zero"));
            run("recorder", Verb::Add, b"{}", &path_env(&folder)).map(|said| said.len())
        };
        assert_eq!(print(MOST_RESULT), Ok(4 << 20));
        let refused = print(MOST_RESULT + 1).unwrap_err();
        assert_eq!(refused.msg, "plugin \"recorder\" printed more than 4 MiB");
    }

    #[test]
    fn status_when_a_plugin_does_not_know_it_is_ready_and_other_failures_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let status = |script: &str| {
            plugin(&folder, script);
            status("recorder", b"{}", &path_env(&folder)).map_err(|failure| failure.code)
        };
        let fail = |code: u32, msg: &str| format!(r#"echo '{{"code":{code},"msg":"{msg}"}}'; exit 1"#);
        assert_eq!(status(r#"[ "$CNI_COMMAND" = STATUS ]"#), Ok(()));
        assert_eq!(status(&fail(4, "unknown CNI_COMMAND: STATUS")), Ok(()));
        assert_eq!(status(&fail(4, "no such interface")), Err(50));
        assert_eq!(status(&fail(5, "CNI_COMMAND")), Err(50));
        assert_eq!(status(&fail(51, "x")), Err(51));
        assert_eq!(status(&fail(11, "x")), Err(50));
    }

    #[test]
    fn add_when_it_worked_gives_the_result_in_its_own_version_or_the_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let add = |answer: &str| {
            plugin(&folder, &format!("echo '{answer}'"));
            add("recorder", b"{}", "1.0.0", &path_env(&folder)).map_err(|failure| failure.msg)
        };
        let (result, version) = add(r#"{"cniVersion":"0.4.0","ips":[{"address":"10.0.0.2/24"}]}"#).unwrap();
        assert_eq!((result.ips.len(), version.as_str()), (1, "0.4.0"));
        assert_eq!(add("{}").unwrap().1, "1.0.0");
        assert!(
            add("no")
                .unwrap_err()
                .starts_with("plugin \"recorder\" printed a result that is no JSON: ")
        );
    }
}
