//! The socket over what every host has: its loopback link. Nothing is changed, and no power over the host is needed.

use super::*;
use crate::rtnl::link;
use fabric::object::LinkName;

fn of_lo() -> Message {
    link::get_message(LinkName::new("lo").unwrap())
}

fn of_nobody() -> Message {
    link::get_message(LinkName::new("no-such-link").unwrap())
}

fn all_links() -> Message {
    Message::new("list links", link::GET, 0).raw(&link::header(0, 0, 0))
}

fn open() -> Socket {
    Socket::open(Protocol::Route).unwrap()
}

fn names(socket: &mut Socket) -> Vec<LinkName> {
    socket
        .dump(&all_links(), Vec::new, |names, reply| {
            names.extend(link::read(reply).map(|seen| seen.name))
        })
        .unwrap()
}

#[test]
fn pipeline_when_members_are_answered_refused_or_too_long_then_each_has_its_own_outcome() {
    let mut socket = open();
    let long = Message::new("say too much", link::GET, 0).attribute(1, &[0; 70_000]);
    let mut seen = Vec::new();
    let outcomes = socket.pipeline_get([of_lo(), of_nobody(), long, of_lo()], |at, reply| {
        seen.push((at, link::read(reply).unwrap().index));
    });
    assert_eq!(seen, [(0, 1), (3, 1)]);
    assert_eq!(
        (&outcomes[0], &outcomes[3], outcomes.len()),
        (&Ok(()), &Ok(()), 4)
    );
    let refused = outcomes[1].as_ref().unwrap_err();
    assert!(
        refused.is(Errno::NODEV) && refused.verb == "get link",
        "{refused}"
    );
    let long = outcomes[2].as_ref().unwrap_err();
    assert_eq!((long.fault, &*long.verb), (Fault::Malformed, "say too much"));
    assert_eq!(socket.calls().sends, 2, "what is too long stands alone");
    assert!(socket.calls().receives >= 3);
    let outcomes = socket.pipeline([of_nobody(), of_lo(), of_nobody()]);
    assert_eq!(
        outcomes.iter().map(Result::is_ok).collect::<Vec<bool>>(),
        [false, true, false]
    );
    assert!(socket.request(&of_lo()).is_ok() && socket.request(&of_nobody()).is_err());
}

#[test]
fn pipeline_when_there_are_more_than_fit_then_in_several_sends_and_each_answered_once() {
    let mut socket = open();
    let mut answered = vec![0; 2500];
    let outcomes = socket.pipeline_get((0..2500).map(|_| of_lo()), |at, _| answered[at] += 1);
    assert_eq!(outcomes.len(), 2500);
    assert!(outcomes.iter().all(Result::is_ok) && answered.iter().all(|times| *times == 1));
    let sends = socket.calls().sends;
    let least = 2500 / SEND_MESSAGES as u64 + 1;
    assert!((least..2500).contains(&sends), "{sends}");
    // What a queued answer costs is reckoned with: in a small room fewer at a time.
    let mut small = open();
    small.set_receive_buffer(REPLY_COST).unwrap();
    let most = small.room / REPLY_COST;
    assert!((1..20).contains(&most), "{}", small.room);
    let outcomes = small.pipeline_get((0..20).map(|_| of_lo()), |_, _| {});
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(small.calls().sends as usize, 20_usize.div_ceil(most));
    // And no send is longer than the kernel's buffer for it.
    let mut socket = open();
    let padded = || of_lo().attribute(0x7ff0, &[0; 30_000]);
    socket.pipeline((0..6).map(|_| padded()));
    assert_eq!(socket.calls().sends, 3);
}

#[test]
fn get_when_answered_then_its_answer_and_when_refused_then_the_refusal() {
    let mut socket = open();
    assert_eq!(
        socket.get(&of_lo(), |reply| Some(reply.kind)),
        Ok(Some(link::NEW))
    );
    assert_eq!(socket.get(&of_lo(), |_| None::<u8>), Ok(None));
    assert!(socket.get(&of_nobody(), |reply| Some(reply.kind)).is_err());
}

#[test]
fn dump_when_asked_then_all_of_it_each_time_afresh() {
    let mut socket = open();
    let found = names(&mut socket);
    assert!(found.contains(&LinkName::new("lo").unwrap()));
    assert_eq!(names(&mut socket), found);
    assert_eq!(socket.calls().sends, 2);
    // Left over from a conversation that was given up: not taken for an answer.
    let mut bytes = Vec::new();
    of_lo().write(0x7777, &mut bytes);
    socket.send(&bytes).unwrap();
    assert_eq!(names(&mut socket), found);
    socket.send(&bytes).unwrap();
    let mut answers = 0;
    assert_eq!(socket.pipeline_get([of_lo()], |_, _| answers += 1), [Ok(())]);
    assert_eq!(answers, 1);
    let error = socket.dump(
        &Message::new("list nothing", 0x7ff0, 0).raw(&[0; 16]),
        || (),
        |(), _| {},
    );
    assert_eq!(error.unwrap_err().verb, "list nothing");
}

#[test]
fn datagram_when_longer_than_the_buffer_then_the_buffer_grows_and_the_dump_is_made_again() {
    let mut socket = open();
    let found = names(&mut socket);
    socket.buffer = vec![0; 64];
    let mut starts = 0;
    let again = socket.dump(
        &all_links(),
        || {
            starts += 1;
            Vec::new()
        },
        |names, reply| names.extend(link::read(reply).map(|seen| seen.name)),
    );
    assert_eq!(again.unwrap(), found);
    assert!(starts > 1);
    assert_eq!(socket.buffer.len(), DATAGRAM);
    // An answer that was lost is said to be lost, and the next one is heard.
    socket.buffer = vec![0; 64];
    let outcomes = socket.pipeline_get([of_lo(), of_lo()], |_, _| {});
    assert!(
        outcomes
            .iter()
            .any(|outcome| matches!(outcome, Err(error) if error.fault == Fault::Truncated))
    );
    assert!(
        outcomes
            .iter()
            .flat_map(|outcome| outcome.as_ref().err())
            .all(|error| error.verb == "get link")
    );
    assert_eq!(
        socket.get(&of_lo(), |reply| Some(reply.kind)),
        Ok(Some(link::NEW))
    );
}

#[test]
fn notifications_when_there_are_none_then_not_waited_for() {
    let mut socket = open();
    socket.subscribe(crate::rtnl::group::LINK).unwrap();
    assert_eq!(socket.notifications(|_| {}), Ok(0));
    assert!(
        socket
            .subscribe(0x7fff_fff0)
            .unwrap_err()
            .to_string()
            .contains("group 2147483632")
    );
    assert_ne!(socket.port(), open().port());
    socket.ignore_port(7).unwrap();
    let here = crate::netns::Netns::open("/proc/thread-self/ns/net").unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!(
            names(&mut Socket::open_in(Protocol::Route, here.as_fd()).unwrap()),
            names(&mut socket)
        );
    }
    assert_eq!(Protocol::Route.number(), None);
    assert_ne!(Protocol::Netfilter.number(), Protocol::Generic.number());
}

/// `struct nlmsgerr` and its attributes, as the kernel sends them.
fn error_reply(code: i32, flags: u16, request: &[u8], attributes: &Message) -> Vec<u8> {
    let mut rest = Vec::new();
    attributes.write(0, &mut rest);
    let mut body = code.to_ne_bytes().to_vec();
    body.extend(request);
    body.extend(&rest[16..]);
    let mut bytes = (body.len() as u32 + 16).to_ne_bytes().to_vec();
    bytes.extend(NLMSG_ERROR.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

fn words() -> Message {
    Message::new("", 16, 0).text(1, "no such thing").u32(2, 28)
}

#[test]
fn refusal_when_it_is_explained_then_in_the_kernels_words_wherever_they_stand() {
    let refused = |code, flags, request: &[u8]| {
        let bytes = error_reply(code, flags, request, &words());
        refusal("try", &Replies(&bytes).next().unwrap())
    };
    let mut request = Vec::new();
    Message::new("", 20, 0)
        .raw(&[1, 2, 3, 4, 5, 6, 7, 8])
        .write(0, &mut request);
    let whole = refused(-22, 0x200, &request).unwrap();
    assert_eq!(
        (&*whole.verb, whole.errno, &*whole.text, whole.offset),
        ("try", 22, "no such thing", Some(28))
    );
    assert!(whole.is(Errno::INVAL));
    // Capped: of the request only its header, whose length still is the whole one's.
    assert_eq!(refused(-22, 0x300, &request[..16]), Some(whole.clone()));
    let silent = refused(-22, 0, &request).unwrap();
    assert_eq!((&*silent.text, silent.offset), ("", None));
    assert_eq!(refused(0, 0x200, &request), None, "an acknowledgement");
}

#[test]
fn dump_when_its_end_tells_of_a_failure_then_that_is_its_end() {
    let ended = |code, flags| {
        let bytes = error_reply(code, flags, &[], &words());
        done("try", &Replies(&bytes).next().unwrap())
    };
    assert_eq!((ended(0, 0), ended(7, 0x200)), (Ok(()), Ok(())));
    let error = ended(-22, 0x200).unwrap_err();
    assert_eq!(
        (error.errno, &*error.text, error.offset),
        (22, "no such thing", Some(28))
    );
    let error = ended(-22, 0).unwrap_err();
    assert_eq!((error.errno, &*error.text), (22, ""));
    let bare = [16, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(done("try", &Replies(&bare).next().unwrap()), Ok(()));
}

#[test]
fn failure_when_asked_what_it_is_then_only_a_refusal_of_that_number() {
    let refused = |errno: Errno| NetlinkError::refused("x", -errno.raw_os_error());
    for errno in [Errno::NOENT, Errno::SRCH, Errno::NODEV, Errno::ADDRNOTAVAIL] {
        assert!(refused(errno).is(errno) && refused(errno).is_absent());
        assert!(!refused(errno).is_exists() && !refused(errno).is_unsupported());
    }
    assert!(refused(Errno::EXIST).is_exists() && !refused(Errno::EXIST).is_absent());
    assert!(refused(Errno::OPNOTSUPP).is_unsupported() && !refused(Errno::OPNOTSUPP).is_absent());
    assert!(!NetlinkError::new("x", Fault::Socket, Errno::EXIST, "").is_exists());
    let said = NetlinkError::new("x", Fault::Refused, Errno::PERM, "why").of("y");
    assert_eq!(said.to_string(), "y: Operation not permitted (os error 1): why");
    let bare = NetlinkError::new("x", Fault::Refused, Errno::PERM, "");
    assert_eq!(bare.to_string(), "x: Operation not permitted (os error 1)");
}

#[test]
fn message_when_read_back_then_every_kind_of_value_is_what_was_written() {
    let message = Message::new("x", 16, flag::ACK)
        .raw(&[1, 2, 3, 4])
        .u8(1, 0x7f)
        .u16(2, 0x1234)
        .be16(3, 0x1234)
        .u32(4, 0x1234_5678)
        .text(5, "name")
        .ip(6, "192.0.2.1".parse().unwrap())
        .ip(7, "2001:db8::1".parse().unwrap())
        .attribute(0x8008, b"raw");
    assert_eq!(message.verb(), "x");
    let mut bytes = Vec::new();
    message.write(0x0102_0304, &mut bytes);
    for _ in 0..2 {
        add_flags(&mut bytes, 0, flag::DUMP);
    }
    let reply = Replies(&bytes).next().unwrap();
    assert_eq!(
        (reply.kind, reply.flags, reply.sequence, reply.port),
        (16, 0x305, 0x0102_0304, 0)
    );
    assert_eq!(
        (reply.header(4), reply.header(500)),
        (Some(&[1, 2, 3, 4][..]), None)
    );
    let all: Vec<Attribute<'_>> = reply.attributes(4).collect();
    assert_eq!(
        all.iter().map(|a| a.kind).collect::<Vec<u16>>(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    assert_eq!(
        (all[0].u8(), all[1].u16(), all[2].be16()),
        (Some(0x7f), Some(0x1234), Some(0x1234))
    );
    assert_eq!((all[3].u32(), all[4].text()), (Some(0x1234_5678), Some("name")));
    assert_eq!(all[5].ip(), Some("192.0.2.1".parse().unwrap()));
    assert_eq!(all[6].ip(), Some("2001:db8::1".parse().unwrap()));
    assert_eq!(
        (all[7].text(), all[7].value, all[7].ip(), all[7].u32()),
        (Some("raw"), &b"raw"[..], None, None)
    );
    assert_eq!(
        (all[4].u16(), get_u32(&bytes, 8)),
        (Some(u16::from_ne_bytes(*b"na")), Some(0x0102_0304))
    );
    // Two messages of one datagram.
    let mut two = bytes.clone();
    Message::new("y", 17, 0).raw(&[0; 4]).write(2, &mut two);
    assert_eq!(
        Replies(&two).map(|reply| reply.kind).collect::<Vec<u16>>(),
        [16, 17]
    );
}

#[test]
fn failure_when_a_request_cannot_even_be_sent_then_said_of_what_was_asked() {
    let mut socket = open();
    // Longer than the kernel's buffer for it.
    let huge = (0..10).fold(all_links(), |message, _| message.attribute(0x7ff0, &[0; 60_000]));
    let failed = socket.dump(&huge, || (), |(), _| {}).unwrap_err();
    assert_eq!((failed.fault, &*failed.verb), (Fault::Socket, "list links"));
    let outcomes = socket.pipeline([of_lo(), huge, of_nobody()]);
    let failed = outcomes[1].as_ref().unwrap_err();
    assert_eq!((failed.fault, &*failed.verb), (Fault::Socket, "list links"));
    assert_eq!(
        [outcomes[0].is_ok(), outcomes[2].is_ok()],
        [true, false],
        "it fails alone"
    );
}
