use super::*;
use proptest::prelude::*;

fn through(bytes: &[u8], portion: usize) -> Vec<u8> {
    let mut incoming = Incoming::default();
    let mut out = Vec::new();
    for portion in bytes.chunks(portion) {
        incoming.take(portion);
        let mut buffer = [0; 64];
        loop {
            let mut buf = ReadBuf::new(&mut buffer);
            if !incoming.hand_out(&mut buf) {
                break;
            }
            out.extend_from_slice(buf.filled());
        }
    }
    incoming.end();
    out.extend_from_slice(&incoming.ready);
    out
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

fn literal(value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap();
    // Indexed :method POST, a literal name, then :authority with indexing.
    [&[0x83, 0x00, 0x01, b'a', 0x01, b'b', 0x41, length], value].concat()
}

#[test]
fn an_authority_when_it_is_a_url_is_corrected_wherever_it_stands() {
    let bad = literal(b"http://127.0.0.1:2379");
    let good = literal(b"httpB--127.0.0.1:2379");
    let padded = |block: &[u8]| [&[2u8, 0, 0, 0, 0, 16][..], block, &[0, 0]].concat();
    let whole = |block: &[u8]| {
        let frames = [
            frame(4, 0, &[0; 6]),
            frame(HEADERS, 4, block),
            frame(0, 0, b"\x41\x15http://127.0.0.1:2379"),
            frame(HEADERS, 4 | PADDED | PRIORITY, &padded(block)),
        ];
        [PREFACE, &frames.concat()].concat()
    };
    for portion in [1, 7, 1000] {
        assert_eq!(through(&whole(&bad), portion), whole(&good));
    }
}

#[test]
fn an_authority_when_it_is_huffman_coded_is_corrected() {
    // "http://" and "https://", each with the bits of 'a' (00011) after it.
    let mut plain = [0x9d, 0x29, 0xae, 0xe3, 0x0c, 0b0000_1111];
    correct_value(true, &mut plain);
    assert_eq!(plain, [0x9d, 0x29, 0xae, 0xea, 0xcb, 0b0000_1111]);
    let mut tls = [0x9d, 0x29, 0xad, 0x17, 0x18, 0b0110_0000, 0b0111_1111];
    correct_value(true, &mut tls);
    assert_eq!(tls, [0x9d, 0x29, 0xad, 0x17, 0x56, 0b0101_1000, 0b0111_1111]);
}

proptest! {
    #[test]
    fn bytes_when_they_hold_no_such_authority_pass_unchanged(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        portion in 1usize..50,
        http2 in any::<bool>(),
    ) {
        let bytes = if http2 { [PREFACE, &bytes].concat() } else { bytes };
        prop_assert_eq!(through(&bytes, portion), bytes);
    }
}

#[test]
fn integer_when_coded_as_in_rfc_7541_is_read_and_one_without_end_is_not() {
    assert_eq!(integer(&[0x0a], 0, 5), Some((10, 1)));
    assert_eq!(
        integer(&[0xff, 0xea], 1, 5),
        Some((10, 2)),
        "the other bits are not its"
    );
    assert_eq!(integer(&[0x1f, 0x9a, 0x0a], 0, 5), Some((1337, 3)));
    assert_eq!(integer(&[0x1f, 0x00], 0, 5), Some((31, 2)));
    assert_eq!(
        integer(&[0x7f, 0x80, 0x80, 0x80, 0x01], 0, 7),
        Some((127 + (1 << 21), 5))
    );
    for cut in [
        &[][..],
        &[0x1f],
        &[0x1f, 0x80],
        &[0x1f, 0x80, 0x80, 0x80, 0x80, 0x01],
    ] {
        assert_eq!(integer(cut, 0, 5), None, "{cut:?}");
    }
}

#[test]
fn authority_when_named_in_any_way_a_block_can_is_found_and_no_other_header_is_touched() {
    const BAD: &[u8] = b"https://a";
    const GOOD: &[u8] = b"httpsB--a";
    let value = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
    let corrected = |before: &[u8], text: &[u8], after: &[u8]| {
        let mut block = [before, &value(text), after].concat();
        correct_block(&mut block).unwrap();
        block
    };
    // With indexing, without, never; behind an indexed header and a change of the table's size.
    for before in [
        &[0x41][..],
        &[0x01],
        &[0x11],
        &[0x83, 0x41],
        &[0x3f, 0xe1, 0x1f, 0x41],
        &[0x40, 1, b'x', 1, b'y', 0x41],
    ] {
        let after = [0x82, 0x10, 1, b'n', 1, b'v'];
        assert_eq!(
            corrected(before, BAD, &after),
            [before, &value(GOOD), &after].concat(),
            "{before:?}"
        );
    }
    for other in [&[0x44][..], &[0x40, 1, b'x'], &[0x04]] {
        assert_eq!(
            corrected(other, BAD, &[]),
            [other, &value(BAD)].concat(),
            "{other:?}"
        );
    }
    for fine in [&b"a:2379"[..], b"http:/", b"httpx://", b"xhttp://"] {
        assert_eq!(
            corrected(&[0x41], fine, &[]),
            [&[0x41], &value(fine)[..]].concat()
        );
    }
    // One that ends in its middle.
    assert_eq!(correct_block(&mut [0x41, 9, b'h']), None);
    assert_eq!(correct_block(&mut [0x40, 9]), None);
    // A value that is Huffman coded is none in the clear, and the other way round.
    let mut coded = [0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x80];
    correct_value(true, &mut coded);
    assert_eq!(coded[3], 0xe3, "another character follows than two slashes");
    correct_value(false, &mut coded);
    assert_eq!(coded, [0x9d, 0x29, 0xae, 0xe3, 0x0c, 0x80]);
    let mut tls = [0x9d, 0x29, 0xad, 0x17, 0x18, 0x63];
    correct_value(true, &mut tls);
    assert_eq!(tls[4..], [0x56, 0x5b]);
}

#[test]
fn frame_when_padded_or_weighted_has_its_block_between() {
    let (bad, good) = (literal(b"http://a"), literal(b"httpB--a"));
    let framed = |flags: u8, block: &[u8]| {
        let mut payload = Vec::new();
        if flags & PADDED != 0 {
            payload.push(3);
        }
        if flags & PRIORITY != 0 {
            payload.extend([0, 0, 0, 0, 16]);
        }
        payload.extend_from_slice(block);
        if flags & PADDED != 0 {
            payload.extend([0; 3]);
        }
        payload
    };
    for flags in [0, PADDED, PRIORITY, PADDED | PRIORITY, 0x4] {
        let mut payload = framed(flags, &bad);
        correct_frame(flags, &mut payload);
        assert_eq!(payload, framed(flags, &good), "{flags:#x}");
    }
    correct_frame(PADDED, &mut []);
    correct_frame(PADDED, &mut [200, 1]);
    correct_frame(PRIORITY, &mut [1, 2]);
}

#[test]
fn headers_when_in_a_frame_beyond_what_is_taken_pass_as_they_are() {
    let block = |bytes: usize| {
        let mut block = literal(b"http://a");
        // Indexed headers, one byte each.
        block.resize(bytes, 0x82);
        block
    };
    let whole = |block: &[u8]| {
        [
            PREFACE,
            &frame(HEADERS, 4, block),
            &frame(HEADERS, 4, &literal(b"http://b")),
        ]
        .concat()
    };
    let taken = through(&whole(&block(LARGEST)), 5000);
    let beyond = through(&whole(&block(LARGEST + 1)), 5000);
    assert!(taken.windows(8).any(|w| w == b"httpB--a") && beyond.windows(8).any(|w| w == b"http://a"));
    for out in [taken, beyond] {
        assert!(out.ends_with(b"httpB--b"), "the next frame is found");
    }
    let other = [
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        &frame(HEADERS, 4, &literal(b"http://a"))[..],
    ]
    .concat();
    assert_eq!(through(&other, 1), other);
}

#[tokio::test]
async fn connection_when_read_and_written_through_is_the_one_below() {
    use std::future::poll_fn;
    let (near, far) = tokio::net::UnixStream::pair().unwrap();
    let mut tolerant = Tolerant::new(near);
    assert!(tolerant.is_write_vectored());
    let sent = poll_fn(|cx| Pin::new(&mut tolerant).poll_write(cx, b"hello"))
        .await
        .unwrap();
    let parts = [io::IoSlice::new(b" the"), io::IoSlice::new(b"re")];
    let more = poll_fn(|cx| Pin::new(&mut tolerant).poll_write_vectored(cx, &parts))
        .await
        .unwrap();
    assert_eq!((sent, more), (5, 6));
    poll_fn(|cx| Pin::new(&mut tolerant).poll_flush(cx))
        .await
        .unwrap();
    far.readable().await.unwrap();
    let mut heard = [0; 32];
    assert_eq!(far.try_read(&mut heard).unwrap(), 11);
    assert_eq!(&heard[..11], b"hello there");
    poll_fn(|cx| Pin::new(&mut tolerant).poll_shutdown(cx))
        .await
        .unwrap();
    far.readable().await.unwrap();
    assert_eq!(far.try_read(&mut heard).unwrap(), 0);
    far.writable().await.unwrap();
    far.try_write(b"PRI").unwrap();
    drop(far);
    let mut read = Vec::new();
    loop {
        let mut bytes = [0; 2];
        let mut buffer = ReadBuf::new(&mut bytes);
        poll_fn(|cx| Pin::new(&mut tolerant).poll_read(cx, &mut buffer))
            .await
            .unwrap();
        if buffer.filled().is_empty() {
            break;
        }
        read.extend_from_slice(buffer.filled());
    }
    assert_eq!(read, b"PRI", "what was held is handed out at the end");
}
