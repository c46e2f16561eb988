//! Opening and setting up netlink sockets; the system calls that `rustix` does not have.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::LinkNameSpaceType;

use super::{Calls, DATAGRAM, Fault, NetlinkError, Protocol, REPLY_TIMEOUT, Socket};

const RECEIVE_BUFFER: usize = 4 << 20;

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Socket, NetlinkError> {
        let fail = |what: &'static str| move |errno: Errno| NetlinkError::new(what, Fault::Socket, errno, "");
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol.number())
            .map_err(fail("open netlink socket"))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0)).map_err(fail("bind netlink socket"))?;
        let address = rustix::net::getsockname(&fd).map_err(fail("name netlink socket"))?;
        let port = SocketAddrNetlink::try_from(address)
            .map_err(fail("name netlink socket"))?
            .pid();
        // Each of these is missing on some kernel we may meet, and nothing below relies on them for correctness.
        for option in [
            libc::NETLINK_CAP_ACK,
            libc::NETLINK_EXT_ACK,
            libc::NETLINK_GET_STRICT_CHK,
        ] {
            let _ = set_option(&fd, libc::SOL_NETLINK, option, &1i32.to_ne_bytes());
        }
        if sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&fd, RECEIVE_BUFFER);
        }
        let room = sockopt::socket_recv_buffer_size(&fd).map_err(fail("size netlink socket"))?;
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(REPLY_TIMEOUT))
            .map_err(fail("time netlink socket"))?;
        Ok(Socket {
            fd,
            port,
            sequence: 0,
            buffer: vec![0; DATAGRAM],
            room,
            calls: Calls::default(),
        })
    }

    /// Opens a socket in another network namespace, by a thread that goes there and ends; the caller does not move.
    pub fn open_in(protocol: Protocol, netns: BorrowedFd<'_>) -> Result<Socket, NetlinkError> {
        let thread_failed = || {
            NetlinkError::new(
                "open netlink socket",
                Fault::Socket,
                Errno::AGAIN,
                "no thread to be had",
            )
        };
        std::thread::scope(|scope| {
            let opened = std::thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, || {
                    rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
                        .map_err(|errno| {
                            NetlinkError::new("enter network namespace", Fault::Socket, errno, "")
                        })?;
                    Socket::open(protocol)
                });
            match opened {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err(thread_failed())),
                Err(_) => Err(thread_failed()),
            }
        })
    }

    /// Joins a multicast group, by its number (`RTNLGRP_*`, `NFNLGRP_*`).
    pub fn subscribe(&self, group: u32) -> Result<(), NetlinkError> {
        set_option(
            &self.fd,
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            &group.to_ne_bytes(),
        )
        .map_err(|errno| {
            NetlinkError::new(
                "subscribe to netlink group",
                Fault::Socket,
                errno,
                format!("group {group}"),
            )
        })
    }

    /// Has the kernel drop notifications caused by the socket with this port id before they are queued here.
    pub fn ignore_port(&self, port: u32) -> Result<(), NetlinkError> {
        const LOAD_WORD: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        // A packet filter loads big-endian; nlmsg_pid, at offset 12, is host-order.
        let program = [
            libc::sock_filter {
                code: LOAD_WORD,
                jt: 0,
                jf: 0,
                k: 12,
            },
            libc::sock_filter {
                code: JUMP_IF_EQUAL,
                jt: 0,
                jf: 1,
                k: port.to_be(),
            },
            libc::sock_filter {
                code: RETURN,
                jt: 0,
                jf: 0,
                k: 0,
            },
            libc::sock_filter {
                code: RETURN,
                jt: 0,
                jf: 0,
                k: u32::MAX,
            },
        ];
        attach_filter(&self.fd, &program)
            .map_err(|errno| NetlinkError::new("filter netlink socket", Fault::Socket, errno, ""))
    }

    /// Sets the bytes the kernel may queue for us; fewer lose messages sooner.
    pub fn set_receive_buffer(&mut self, bytes: usize) -> Result<(), NetlinkError> {
        let fail = |errno| NetlinkError::new("size netlink socket", Fault::Socket, errno, "");
        if sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes).is_err() {
            sockopt::set_socket_recv_buffer_size(&self.fd, bytes).map_err(fail)?;
        }
        self.room = sockopt::socket_recv_buffer_size(&self.fd).map_err(fail)?;
        Ok(())
    }
}

fn set_option(fd: &OwnedFd, level: i32, option: i32, value: &[u8]) -> Result<(), Errno> {
    // SAFETY: the pointer and length are those of `value`, which outlives the call; the kernel only reads them.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn attach_filter(fd: &OwnedFd, program: &[libc::sock_filter]) -> Result<(), Errno> {
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `header` and the program it points to live until the call returns; the kernel copies both and writes neither.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            std::ptr::from_ref(&header).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
