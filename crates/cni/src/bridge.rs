//! The plugin `bridge`: a container's link into a bridge of the host.
//!
//! The layer 3 path and everything flannel asks of it. VLANs and MAC filtering are left to Go's plugin.

pub mod add;
pub mod config;
pub mod del;
pub mod masquerade;

use fabric::object::LinkName;

use crate::failure::{Code, Failure};

pub use add::{AddFailure, add};
pub use del::del;

/// The IPAM plugin that runs in this process.
pub const HOST_LOCAL: &str = "host-local";

/// A link name the kernel takes.
pub fn link_name(name: &str) -> Result<LinkName, Failure> {
    LinkName::new(name).ok_or_else(|| {
        Failure::new(
            Code::InvalidEnvironment,
            format!("{name:?} is no name for a link"),
        )
    })
}
