//! Kinds of links: a file for each, and one line of the table below.
//!
//! A kind says of its devices all that anybody else has to know: what makes two of them the same one, whether one does what
//! is asked, what it lies on, which names ours bear. Outside its file, the file of the same name in `kernel` (its bytes) and
//! the plan that wants it, nobody names a kind.

use std::fmt;

use crate::object::LinkName;

/// What a link of one kind is made of, and what follows from that.
pub trait Kind: Clone + Eq + fmt::Debug + fmt::Display {
    /// `IFLA_INFO_KIND`.
    const NAME: &'static str;
    /// Permanent neighbours and forwarding entries on its devices are part of the fabric.
    const HAS_ENTRIES: bool;

    /// Whether this is a name that flannel gives to devices of this kind. A device of any other kind under it is a stranger's.
    fn bears(name: LinkName) -> bool;

    /// The link that it lies on and goes with.
    fn lower(&self) -> Option<LinkName>;

    /// Whether the observed device is the wanted one, or can be turned into it in place. Otherwise it has to be made anew.
    fn is_same_device(&self, observed: &Self) -> bool;

    /// Whether the observed device does what the wanted one asks for.
    fn is_met_by(&self, observed: &Self) -> bool;

    /// Whether the kernel refuses the one while the other is there (`EEXIST`), whatever their names are.
    fn excludes(&self, other: &Self) -> bool;
}

/// How an observed link stands to the wanted one, as far as their kinds go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// It does what is asked.
    Met,
    /// It can be made to in place.
    Changeable,
    /// It is one of the kind, but has to be made anew.
    Another,
    /// It is of another kind, and so not ours to touch.
    Stranger,
}

/// The table: file, and the type in it.
macro_rules! kinds {
    ($($module:ident => $Kind:ident,)*) => {
        $(
            #[doc = concat!("`", stringify!($module), "`.")]
            pub mod $module;
            pub use self::$module::$Kind;
        )*

        /// The kind of a link.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum LinkKind {
            $(
                #[doc = concat!("See [`", stringify!($module), "`].")]
                $Kind(Box<$Kind>),
            )*
            /// A link of a kind no plan makes (`IFLA_INFO_KIND`, or empty for a physical one); only ever observed.
            Other(Box<str>),
        }

        $(
            impl From<$Kind> for LinkKind {
                fn from(kind: $Kind) -> LinkKind {
                    LinkKind::$Kind(Box::new(kind))
                }
            }
        )*

        impl LinkKind {
            /// `IFLA_INFO_KIND`; empty for physical links.
            pub fn name(&self) -> &str {
                match self {
                    $(LinkKind::$Kind(_) => $Kind::NAME,)*
                    LinkKind::Other(name) => name,
                }
            }

            /// Whether permanent neighbours and forwarding entries on it are part of the fabric.
            pub fn has_entries(&self) -> bool {
                match self {
                    $(LinkKind::$Kind(_) => $Kind::HAS_ENTRIES,)*
                    LinkKind::Other(_) => false,
                }
            }

            /// Whether this is a name that flannel gives to devices of this kind.
            pub fn bears(&self, name: LinkName) -> bool {
                match self {
                    $(LinkKind::$Kind(_) => $Kind::bears(name),)*
                    LinkKind::Other(_) => false,
                }
            }

            /// The link that it lies on and goes with, where the kind has one.
            pub fn lower(&self) -> Option<LinkName> {
                match self {
                    $(LinkKind::$Kind(kind) => kind.lower(),)*
                    LinkKind::Other(_) => None,
                }
            }

            /// How an observed link stands to this, the wanted one.
            pub fn likeness(&self, observed: &LinkKind) -> Likeness {
                match (self, observed) {
                    $(
                        (LinkKind::$Kind(wanted), LinkKind::$Kind(observed)) => {
                            if wanted.is_met_by(observed) {
                                Likeness::Met
                            } else if wanted.is_same_device(observed) {
                                Likeness::Changeable
                            } else {
                                Likeness::Another
                            }
                        }
                    )*
                    (wanted, observed) if wanted == observed => Likeness::Met,
                    _ => Likeness::Stranger,
                }
            }

            /// Whether the kernel refuses the one while the other is there (`EEXIST`), whatever their names are.
            pub fn excludes(&self, other: &LinkKind) -> bool {
                match (self, other) {
                    $((LinkKind::$Kind(one), LinkKind::$Kind(other)) => one.excludes(other),)*
                    _ => false,
                }
            }
        }

        impl fmt::Display for LinkKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(LinkKind::$Kind(kind) => kind.fmt(f),)*
                    LinkKind::Other(name) => f.write_str(name),
                }
            }
        }
    };
}

kinds! {
    vxlan => Vxlan,
    ipip => Ipip,
}

impl LinkKind {
    /// Whether it is a kind of the table: one that a plan can make.
    pub fn is_made(&self) -> bool {
        !matches!(self, LinkKind::Other(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_when_in_the_table_then_made_by_plans_and_asked_of_its_file() {
        let name = |name: &str| LinkName::new(name).unwrap();
        let vxlan = LinkKind::from(Vxlan {
            vni: 1,
            port: None,
            local: "192.0.2.1".parse().unwrap(),
            lower: name("eth0"),
            learning: false,
            gbp: false,
        });
        let ipip = LinkKind::from(Ipip {
            local: "192.0.2.1".parse().unwrap(),
            remote: None,
            plain: true,
        });
        let bridge = LinkKind::Other("bridge".into());
        let all = [&vxlan, &ipip, &bridge];
        assert_eq!(all.map(LinkKind::name), ["vxlan", "ipip", "bridge"]);
        assert_eq!(all.map(LinkKind::is_made), [true, true, false]);
        assert_eq!(all.map(LinkKind::has_entries), [true, false, false]);
        assert_eq!(all.map(LinkKind::lower), [Some(name("eth0")), None, None]);
        assert_eq!(
            all.map(|kind| kind.bears(name("flannel.1"))),
            [true, false, false]
        );
        assert_eq!(
            all.map(|kind| kind.bears(name("flannel.ipip"))),
            [false, true, false]
        );
        assert_eq!(bridge.to_string(), "bridge");
        for (n, kind) in all.into_iter().enumerate() {
            for (m, other) in all.into_iter().enumerate() {
                assert_eq!(kind.excludes(other), n == m && kind.is_made(), "{kind}, {other}");
                let expected = if n == m { Likeness::Met } else { Likeness::Stranger };
                assert_eq!(kind.likeness(other), expected, "{kind}, {other}");
            }
        }
        assert_eq!(
            bridge.likeness(&LinkKind::Other("veth".into())),
            Likeness::Stranger
        );
    }
}
