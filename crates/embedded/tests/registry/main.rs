//! The server from outside: beside a real etcd, under etcdctl, and under kill -9.

mod differential;
mod etcdctl;
mod killed;
mod refusals;
mod rig;
mod tls;
mod watching;
