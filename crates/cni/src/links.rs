//! Names of links: those calls give, and those we give.

use fabric::digest::fnv1a;
use fabric::object::LinkName;

use crate::failure::{Code, Failure};
use crate::owner::Owner;

/// A link name the kernel takes.
///
/// # Errors
///
/// Code 4 for any other.
pub fn link_name(name: &str) -> Result<LinkName, Failure> {
    LinkName::new(name).ok_or_else(|| {
        Failure::new(
            Code::InvalidEnvironment,
            format!("{name:?} is no name for a link"),
        )
    })
}

/// Name of the host's end of an attachment's link, so that it can be found without the container's. In form it is as random as
/// any other; where it is taken another is.
///
/// # Errors
///
/// None that could happen: the name is made to be one.
pub fn host_end(owner: &Owner) -> Result<LinkName, Failure> {
    // Nothing here needs the SHA-512 of the chains' names, which asks the processor what it can do before it begins, and on virtual
    // machines that costs more than the sum.
    let sum = fnv1a(owner.content().as_bytes());
    link_name(&format!("veth{:08x}", (sum >> 32) ^ (sum & 0xffff_ffff)))
}

/// The host's end of an attachment's link is there.
pub fn has_host_end(owner: &Owner) -> bool {
    let seen = host_end(owner)
        .ok()
        .and_then(|name| kernel::rtnl::Rtnl::open().ok()?.link_by_name(name).ok()?);
    seen.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_when_the_kernel_would_not_take_it_is_refused_as_a_wrong_variable() {
        assert_eq!(link_name("eth0").unwrap().as_str(), "eth0");
        let refused = link_name("a/b").unwrap_err();
        assert_eq!(
            (refused.code, refused.msg.as_str()),
            (4, "\"a/b\" is no name for a link")
        );
    }

    /// DELs of other versions find it by its name.
    #[test]
    fn hosts_end_when_named_is_the_same_in_every_version_and_anothers_is_another() {
        let name =
            |container: &str, ifname: &str| host_end(&Owner::new(container, ifname)).unwrap().to_string();
        assert_eq!(name("c1", "eth0"), "veth3f87d20b");
        assert_ne!(name("c1", "eth0"), name("c1", "eth1"));
        assert_ne!(name("c1", "eth0"), name("c2", "eth0"));
        assert!(!has_host_end(&Owner::new("nobody-has-this-id", "eth0")));
    }
}
