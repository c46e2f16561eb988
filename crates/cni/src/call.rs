//! One call of a plugin: its environment and its configuration, checked as Go's skeleton checks them and in that order.

use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::json::{self, JsonObject};
use crate::version;

/// What the runtime asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it; always possible.
    Del,
    /// Compare an attachment with its result.
    Check,
    /// Remove what belongs to no listed attachment.
    Gc,
    /// Say whether an ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl Verb {
    /// The verb of `CNI_COMMAND`, upper case only.
    pub fn parse(text: &str) -> Option<Verb> {
        Some(match text {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            _ => return None,
        })
    }

    /// Its spelling in `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }
}

/// The `CNI_*` variables; one that is not set is the empty string.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`.
    pub command: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`, a path.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`, `:`-separated folders.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`.
    pub netns_override: String,
}

impl Environment {
    /// Reads the variables by a function that gives the empty string for one that is not set.
    pub fn read(mut get: impl FnMut(&str) -> String) -> Environment {
        Environment {
            command: get("CNI_COMMAND"),
            container_id: get("CNI_CONTAINERID"),
            netns: get("CNI_NETNS"),
            ifname: get("CNI_IFNAME"),
            args: get("CNI_ARGS"),
            path: get("CNI_PATH"),
            netns_override: get("CNI_NETNS_OVERRIDE"),
        }
    }

    /// Checks what the verb needs: a malformed value at once, missing ones together.
    ///
    /// # Errors
    ///
    /// Code 4 with the variables that are missing or malformed.
    pub fn check(&self) -> Result<(), Failure> {
        let verb = Verb::parse(&self.command);
        let attachment = matches!(verb, Some(Verb::Add | Verb::Del | Verb::Check));
        let namespace = matches!(verb, Some(Verb::Add | Verb::Check));
        let path = matches!(verb, Some(verb) if verb != Verb::Version);
        let mut missing = Vec::new();
        let mut require = |needed: bool, name: &'static str, value: &str| {
            if needed && value.is_empty() {
                missing.push(name);
            }
            needed && !value.is_empty()
        };
        require(true, "CNI_COMMAND", &self.command);
        if require(attachment, "CNI_CONTAINERID", &self.container_id) {
            check_container_id(&self.container_id)?;
        }
        require(namespace, "CNI_NETNS", &self.netns);
        if require(attachment, "CNI_IFNAME", &self.ifname) {
            check_ifname(&self.ifname)?;
            // Not where something is removed: nothing has such a name.
            if verb == Some(Verb::Add) && self.ifname.contains('%') {
                return Err(invalid_environment(
                    "interface name contains %, for which the kernel puts a number",
                )
                .with_details(&self.ifname));
            }
        }
        require(path, "CNI_PATH", &self.path);
        if missing.is_empty() {
            return Ok(());
        }
        let list = missing.join(",");
        Err(invalid_environment(format!(
            "required env variables [{list}] missing"
        )))
    }

    /// The same-netns guard is switched off.
    pub fn allows_own_netns(&self) -> bool {
        self.netns_override == "1" || self.netns_override.eq_ignore_ascii_case("true")
    }
}

fn invalid_environment(msg: impl Into<String>) -> Failure {
    Failure::new(Code::InvalidEnvironment, msg)
}

/// The characters of container ids and network names: `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`.
pub fn is_plain_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn check_container_id(id: &str) -> Result<(), Failure> {
    if is_plain_name(id) {
        return Ok(());
    }
    Err(invalid_environment("invalid characters in containerID").with_details(id))
}

fn check_ifname(name: &str) -> Result<(), Failure> {
    if name.len() > 15 {
        return Err(invalid_environment("interface name is too long")
            .with_details("interface name should be less than 16 characters"));
    }
    if name == "." || name == ".." {
        return Err(invalid_environment("interface name is . or .."));
    }
    if name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(invalid_environment(
            "interface name contains / or : or whitespace characters",
        ));
    }
    Ok(())
}

/// A checked call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its variables.
    pub env: Environment,
    /// What is asked for.
    pub verb: Verb,
    /// stdin as it came.
    pub stdin: Vec<u8>,
    /// stdin as a tree.
    pub config: Value,
    /// The network's name.
    pub name: String,
    /// The configuration's version; never empty.
    pub version: String,
}

impl Call {
    /// Checks stdin, then the version and the verb against each other.
    ///
    /// # Errors
    ///
    /// Code 6 for what is no JSON, 7 for a wrong name or version, 1 for a verb that the version does not have.
    pub fn check(env: Environment, stdin: Vec<u8>) -> Result<Call, Failure> {
        let decoding = |text: String| Failure::new(Code::Decoding, text);
        let config =
            json::parse(&stdin).map_err(|e| decoding(format!("error unmarshall network config: {e}")))?;
        let name = {
            let read = || JsonObject::of(&config)?.string("name");
            let name = read().map_err(|e| decoding(format!("error unmarshall network config: {e}")))?;
            name.unwrap_or_default().to_owned()
        };
        if name.is_empty() {
            return Err(Failure::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_plain_name(&name) {
            let failure = Failure::new(Code::InvalidConfig, "invalid characters found in network name");
            return Err(failure.with_details(name));
        }
        let Some(verb) = Verb::parse(&env.command) else {
            return Err(invalid_environment(format!(
                "unknown CNI_COMMAND: {}",
                env.command
            )));
        };
        let version = {
            let read = || JsonObject::of(&config)?.string("cniVersion");
            let version =
                read().map_err(|e| decoding(format!("decoding version from network config: {e}")))?;
            version.filter(|v| !v.is_empty()).unwrap_or("0.1.0").to_owned()
        };
        match verb {
            Verb::Add | Verb::Del | Verb::Version => version::check_supported(&version, &version::SUPPORTED)?,
            Verb::Check => version::check_verb(&version, "CHECK", "0.4.0")?,
            Verb::Gc => version::check_verb(&version, "GC", "1.1.0")?,
            Verb::Status => version::check_verb(&version, "STATUS", "1.1.0")?,
        }
        Ok(Call {
            env,
            verb,
            stdin,
            config,
            name,
            version,
        })
    }

    /// The configuration's fields.
    pub fn fields(&self) -> JsonObject<'_> {
        // `check` took the document for an object or `null`.
        JsonObject::of(&self.config).unwrap_or_else(|_| JsonObject::at(empty(), ""))
    }

    /// The same call with another verb.
    pub fn with_verb(&self, verb: Verb) -> Call {
        Call { verb, ..self.clone() }
    }

    /// The same call with another configuration, as a delegate in this process gets it.
    pub fn delegated(&self, config: Value, stdin: Vec<u8>) -> Call {
        let field = |name: &str| {
            let object = JsonObject::of(&config).ok();
            object
                .and_then(|o| o.string(name).ok().flatten())
                .unwrap_or_default()
                .to_owned()
        };
        let (name, version) = (field("name"), field("cniVersion"));
        let version = if version.is_empty() {
            "0.1.0".to_owned()
        } else {
            version
        };
        Call {
            env: self.env.clone(),
            verb: self.verb,
            stdin,
            name,
            version,
            config,
        }
    }
}

fn empty() -> &'static serde_json::Map<String, Value> {
    static EMPTY: std::sync::LazyLock<serde_json::Map<String, Value>> =
        std::sync::LazyLock::new(Default::default);
    &EMPTY
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            let found = pairs.iter().find(|(have, _)| name == format!("CNI_{have}"));
            found.map(|(_, value)| (*value).to_owned()).unwrap_or_default()
        })
    }

    const ADD: &[(&str, &str)] = &[
        ("COMMAND", "ADD"),
        ("CONTAINERID", "c1"),
        ("NETNS", "/x"),
        ("IFNAME", "eth0"),
        ("PATH", "/p"),
    ];

    #[test]
    fn environment_when_variables_are_missing_lists_them_in_table_order() {
        let missing = |command: &str| env(&[("COMMAND", command)]).check().map_err(|f| (f.code, f.msg));
        let text = |list: &str| Err((4, format!("required env variables [{list}] missing")));
        assert_eq!(
            missing("ADD"),
            text("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH")
        );
        assert_eq!(
            missing("CHECK"),
            text("CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH")
        );
        assert_eq!(missing("DEL"), text("CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"));
        assert_eq!(missing("GC"), text("CNI_PATH"));
        assert_eq!(missing("STATUS"), text("CNI_PATH"));
        assert_eq!(missing("VERSION"), Ok(()));
        assert_eq!(missing("FOO"), Ok(()));
        assert_eq!(missing(""), text("CNI_COMMAND"));
    }

    #[test]
    fn environment_when_a_value_is_malformed_says_so_before_what_is_missing() {
        for (name, value, msg, details) in [
            ("CONTAINERID", "a/b", "invalid characters in containerID", "a/b"),
            ("CONTAINERID", ".x", "invalid characters in containerID", ".x"),
            (
                "IFNAME",
                "sixteencharacter",
                "interface name is too long",
                "interface name should be less than 16 characters",
            ),
            ("IFNAME", "..", "interface name is . or ..", ""),
            (
                "IFNAME",
                "a:b",
                "interface name contains / or : or whitespace characters",
                "",
            ),
            (
                "IFNAME",
                "a\u{2003}b",
                "interface name contains / or : or whitespace characters",
                "",
            ),
        ] {
            let failure = env(&[("COMMAND", "ADD"), (name, value)]).check().unwrap_err();
            assert_eq!(
                (failure.code, failure.msg.as_str(), failure.details.as_str()),
                (4, msg, details)
            );
        }
        let template = |command: &str| env(&[("COMMAND", command), ("IFNAME", "eth%d")]).check();
        let refused = template("ADD").unwrap_err();
        assert!(refused.msg.starts_with("interface name contains %"), "{refused}");
        assert!(template("DEL").unwrap_err().msg.starts_with("required env"));
        // Values a verb does not need are not looked at.
        assert_eq!(
            env(&[("COMMAND", "STATUS"), ("PATH", "/p"), ("IFNAME", "..")]).check(),
            Ok(())
        );
    }

    #[test]
    fn stdin_when_wrong_gives_gos_codes_in_gos_order() {
        let check =
            |stdin: &str| Call::check(env(ADD), stdin.as_bytes().to_vec()).map_err(|f| (f.code, f.msg));
        assert_eq!(
            check(""),
            Err((
                6,
                "error unmarshall network config: unexpected end of JSON input".into()
            ))
            .map(no)
        );
        assert!(matches!(check("[]"), Err((6, _))));
        assert!(
            matches!(check(r#"{"name":5}"#), Err((6, msg)) if msg.contains("name is 5: expected a string"))
        );
        assert_eq!(check("null").map(drop), Err((7, "missing network name".into())));
        assert_eq!(check("{}").map(drop), Err((7, "missing network name".into())));
        assert_eq!(
            check(r#"{"name":"a b","cniVersion":"9.9.9"}"#).map(drop),
            Err((7, "invalid characters found in network name".into()))
        );
        assert_eq!(
            check(r#"{"name":"a","cniVersion":"9.9.9"}"#).map(drop),
            Err((1, "incompatible CNI versions".into()))
        );
        let bad_verb = env(&[("COMMAND", "FOO")]);
        let failure = Call::check(bad_verb, br#"{"name":"a","cniVersion":"9.9.9"}"#.to_vec()).unwrap_err();
        assert_eq!(
            (failure.code, failure.msg.as_str()),
            (4, "unknown CNI_COMMAND: FOO")
        );
        let call = Call::check(env(ADD), br#"{"name":"a","NAME":null}"#.to_vec()).unwrap();
        assert_eq!((call.name.as_str(), call.version.as_str()), ("a", "0.1.0"));
    }

    fn no(call: Call) -> Call {
        call
    }

    impl PartialEq for Call {
        fn eq(&self, other: &Call) -> bool {
            self.stdin == other.stdin && self.env == other.env
        }
    }

    #[test]
    fn guard_when_overridden_by_one_or_true_is_off() {
        for (value, off) in [
            ("1", true),
            ("TRUE", true),
            ("true", true),
            ("0", false),
            ("yes", false),
            ("", false),
        ] {
            assert_eq!(
                env(&[("NETNS_OVERRIDE", value)]).allows_own_netns(),
                off,
                "{value}"
            );
        }
    }

    #[test]
    fn verb_when_spelled_and_read_is_the_same() {
        for verb in [
            Verb::Add,
            Verb::Del,
            Verb::Check,
            Verb::Gc,
            Verb::Status,
            Verb::Version,
        ] {
            assert_eq!(Verb::parse(verb.as_str()), Some(verb));
            assert_eq!(Verb::parse(&verb.as_str().to_lowercase()), None);
        }
    }

    #[test]
    fn names_when_at_their_limits_are_taken_and_beyond_them_not() {
        let check = |ifname: &str| {
            env(&[
                ("COMMAND", "DEL"),
                ("CONTAINERID", "c"),
                ("PATH", "/p"),
                ("IFNAME", ifname),
            ])
            .check()
        };
        assert_eq!(check("fifteenletters1"), Ok(()));
        for bad in ["sixteenletters16", ".", "..", "a/b", "a:b", "a b"] {
            assert_eq!(check(bad).unwrap_err().code, 4, "{bad}");
        }
        for (name, plain) in [
            ("a", true),
            ("9_.-", true),
            ("", false),
            ("_a", false),
            ("a/b", false),
            ("a b", false),
            ("\u{e4}", false),
        ] {
            assert_eq!(is_plain_name(name), plain, "{name}");
        }
    }

    #[test]
    fn call_when_handed_on_keeps_its_attachment_and_takes_the_other_configuration() {
        let call = Call::check(env(ADD), br#"{"name":"a","cniVersion":"1.0.0","x":7}"#.to_vec()).unwrap();
        assert_eq!(call.fields().whole("x"), Ok(Some(7)));
        let del = call.with_verb(Verb::Del);
        assert_eq!(
            (del.verb, del.name.as_str(), &del.env),
            (Verb::Del, "a", &call.env)
        );
        let inner = serde_json::json!({"name": "b", "cniVersion": "0.4.0", "y": 8});
        let other = del.delegated(inner.clone(), b"text".to_vec());
        assert_eq!((other.verb, &other.env), (Verb::Del, &call.env));
        assert_eq!((other.name.as_str(), other.version.as_str()), ("b", "0.4.0"));
        assert_eq!((&other.config, other.stdin.as_slice()), (&inner, &b"text"[..]));
        let bare = call.delegated(serde_json::json!({}), Vec::new());
        assert_eq!((bare.name.as_str(), bare.version.as_str()), ("", "0.1.0"));
        let none = call.delegated(Value::Bool(true), Vec::new());
        assert!(none.fields().get("x").is_none());
    }
}
