//! The bytes of each kind of link, in a file of the same name as in [`fabric::kind`], and one line of the table below.

use fabric::kind::Kind as _;
use fabric::object::{Link, LinkKind, LinkName};
use rustix::io::Errno;

use crate::nl::{Attributes, Message};

/// How a kind of link is said to the kernel and read from it. Messages hold besides what every link has: name, MTU, address, state.
pub trait Kind: fabric::kind::Kind {
    /// What makes a device, as the kernel shows it: other links by index.
    type Observed: Clone + std::fmt::Debug + PartialEq + Eq;
    /// Its devices have an Ethernet address.
    const HAS_MAC: bool;

    /// Reads `IFLA_INFO_DATA`.
    fn read(data: Attributes<'_>) -> Self::Observed;

    /// What was seen of the link of this name, as an object; `name_of` gives names to indices.
    ///
    /// What the object cannot say is said by a value that no plan has, so that it is seen to differ.
    fn to_object(seen: &Self::Observed, name: LinkName, name_of: &dyn Fn(u32) -> Option<LinkName>) -> Self;

    /// Writes the `IFLA_INFO_DATA` that makes the device; `lower` is the index of the link it lies on, 0 where it has none.
    fn write(&self, data: Message, lower: u32) -> Message;

    /// Writes the `IFLA_INFO_DATA` that turns a device of ours that differs [in place](fabric::kind::Likeness::Changeable) into this.
    fn write_change(&self, data: Message) -> Message;

    /// What it means when the kernel refuses to make such a device with this error, and what helps; `None` where its own words
    /// say enough.
    fn explain(errno: Errno) -> Option<&'static str>;

    /// Fills in what the kernel adds when it makes the device, for the kernel [in memory](crate::memory); what it refuses for the
    /// sake of the link below.
    fn complete(&mut self, mtu: u32, lower: Option<&Link>) -> Result<(), Errno>;

    /// Turns the device into the wanted one as far as the kernel can in place, for the kernel [in memory](crate::memory).
    fn become_like(&mut self, wanted: &Self) -> Result<(), Errno>;
}

/// The table: file, and the type of [`fabric::kind`].
macro_rules! kinds {
    ($($module:ident => $Kind:ident,)*) => {
        $(
            #[doc = concat!("`", stringify!($module), "`.")]
            pub mod $module;
            use fabric::kind::$Kind;
        )*

        /// What makes a device of a kind of the table, as the kernel shows it.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum ObservedKind {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $Kind(<$Kind as Kind>::Observed),
            )*
        }

        impl ObservedKind {
            /// Reads the `IFLA_INFO_DATA` of a link whose `IFLA_INFO_KIND` is `kind`; `None` for kinds that are not in the table.
            pub fn read(kind: &str, data: Attributes<'_>) -> Option<ObservedKind> {
                $(
                    if kind == $Kind::NAME {
                        return Some(ObservedKind::$Kind(<$Kind as Kind>::read(data)));
                    }
                )*
                None
            }

            /// What was seen of the link of this name, as an object.
            pub fn to_object(&self, name: LinkName, name_of: &dyn Fn(u32) -> Option<LinkName>) -> LinkKind {
                match self {
                    $(ObservedKind::$Kind(seen) => <$Kind as Kind>::to_object(seen, name, name_of).into(),)*
                }
            }

            /// Whether permanent neighbours and forwarding entries on it are part of the fabric.
            pub fn has_entries(&self) -> bool {
                match self {
                    $(ObservedKind::$Kind(_) => $Kind::HAS_ENTRIES,)*
                }
            }
        }

        /// Writes the `IFLA_INFO_DATA` that makes a link.
        pub fn write(kind: &LinkKind, data: Message, lower: u32) -> Message {
            match kind {
                $(LinkKind::$Kind(kind) => kind.write(data, lower),)*
                LinkKind::Other(_) => data,
            }
        }

        /// Writes the `IFLA_INFO_DATA` that turns a link into one of this kind in place.
        pub fn write_change(kind: &LinkKind, data: Message) -> Message {
            match kind {
                $(LinkKind::$Kind(kind) => kind.write_change(data),)*
                LinkKind::Other(_) => data,
            }
        }

        /// What it means when the kernel refuses to make a link of this kind with this error.
        pub fn explain(kind: &LinkKind, errno: Errno) -> Option<&'static str> {
            match kind {
                $(LinkKind::$Kind(_) => $Kind::explain(errno),)*
                LinkKind::Other(_) => None,
            }
        }

        /// Whether links of this kind have an Ethernet address.
        pub(crate) fn has_mac(kind: &LinkKind) -> bool {
            match kind {
                $(LinkKind::$Kind(_) => $Kind::HAS_MAC,)*
                LinkKind::Other(_) => true,
            }
        }

        /// See [`Kind::complete`].
        pub(crate) fn complete(kind: &mut LinkKind, mtu: u32, lower: Option<&Link>) -> Result<(), Errno> {
            match kind {
                $(LinkKind::$Kind(kind) => kind.complete(mtu, lower),)*
                LinkKind::Other(_) => Ok(()),
            }
        }

        /// See [`Kind::become_like`]; a link stays of its kind.
        pub(crate) fn become_like(kind: &mut LinkKind, wanted: &LinkKind) -> Result<(), Errno> {
            match (kind, wanted) {
                $((LinkKind::$Kind(kind), LinkKind::$Kind(wanted)) => kind.become_like(wanted),)*
                _ => Ok(()),
            }
        }
    };
}

kinds! {
    vxlan => Vxlan,
    ipip => Ipip,
}
