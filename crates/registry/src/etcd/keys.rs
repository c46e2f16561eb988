//! Where things lie in etcd: `<prefix>/config` and `<prefix>/subnets/<subnet key>`.

use fabric::lease::Subnet;

/// The keys below one `--etcd-prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    config: String,
    subnets: String,
}

impl Keys {
    /// Joins path-wise as the reference does: repeated slashes, `.` and `..` are resolved, a trailing slash does not count, and
    /// a prefix without a leading slash stays without.
    pub fn new(prefix: &str) -> Keys {
        let below = |name: &str| clean(&format!("{prefix}/{name}"), prefix.starts_with('/'));
        Keys {
            config: below("config"),
            subnets: below("subnets") + "/",
        }
    }

    /// The key of the network config.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The key that all of this lies below, without the slash.
    pub fn prefix(&self) -> &str {
        self.config.strip_suffix("/config").unwrap_or_default()
    }

    /// Other keys that the network config is often put under by mistake: one level too high, or by a slash at its beginning more or less.
    pub fn mistaken_configs(&self) -> Vec<String> {
        let prefix = self.prefix();
        let above = prefix
            .rsplit_once('/')
            .map(|(above, _)| format!("{above}/config"));
        let slash = match self.config.strip_prefix('/') {
            Some(without) => without.to_owned(),
            None => format!("/{}", self.config),
        };
        above.into_iter().chain([slash]).collect()
    }

    /// The parent of all leases, slash included: `<prefix>/subnets-old/` is something else.
    pub fn subnets(&self) -> &str {
        &self.subnets
    }

    /// The first key behind all keys below [`Keys::subnets`].
    pub fn subnets_end(&self) -> Vec<u8> {
        let mut end = self.subnets.clone().into_bytes();
        end.pop();
        end.push(b'/' + 1);
        end
    }

    /// The key of a lease.
    pub fn of(&self, subnet: &Subnet) -> String {
        self.at(&subnet.to_string())
    }

    /// The key of what is called this below [`Keys::subnets`].
    pub fn at(&self, below: &str) -> String {
        format!("{}{below}", self.subnets)
    }

    /// The part of a key below [`Keys::subnets`]; `None` for a key that is not there. Bytes that are no UTF-8 are replaced,
    /// which no subnet key survives.
    pub fn below<'a>(&self, key: &'a [u8]) -> Option<std::borrow::Cow<'a, str>> {
        key.strip_prefix(self.subnets.as_bytes())
            .map(String::from_utf8_lossy)
    }
}

fn clean(path: &str, rooted: bool) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !matches!(*part, "" | ".")) {
        match part {
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if rooted { format!("/{joined}") } else { joined }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_joined_and_cleaned_like_a_path() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//coreos.com//network//", "/coreos.com/network/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/../a", "/a/config"),
            ("flannel", "flannel/config"),
            ("a/../../b", "../b/config"),
            ("", "config"),
            ("/", "/config"),
        ] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.config(), config, "{prefix:?}");
            assert_eq!(keys.subnets(), config.replace("config", "subnets/"), "{prefix:?}");
        }
    }

    #[test]
    fn only_the_exact_parent_counts_and_the_range_ends_right_behind_it() {
        let keys = Keys::new("/n");
        assert_eq!(
            keys.below(b"/n/subnets/10.5.1.0-24").as_deref(),
            Some("10.5.1.0-24")
        );
        assert_eq!(keys.below(b"/n/subnets-old/10.5.1.0-24"), None);
        assert_eq!(keys.below(b"/n/subnets"), None);
        assert_eq!(keys.below(b"/n/subnets/\xff").as_deref(), Some("\u{fffd}"));
        assert_eq!(keys.subnets_end(), b"/n/subnets0");
        let subnet = Subnet::parse_key("10.5.1.0-24&fd00::-64").unwrap();
        assert_eq!(keys.of(&subnet), "/n/subnets/10.5.1.0-24&fd00::-64");
    }
}
