//! Against the real kernel, as root, each test in a network namespace of its own; iproute2 is the witness.

mod apply;
mod legacy;
mod monitor;
mod rtnl;
mod scratch;
