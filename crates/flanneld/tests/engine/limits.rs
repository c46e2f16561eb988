//! How often the engine looks and how much it may cost, over long times that the test moves.

use std::time::Duration;

use crate::rig::{Rig, VXLAN};

/// Hosts that were started together must not read their kernels together for ever.
#[test]
fn engine_when_nothing_happens_then_audits_are_a_minute_and_up_to_a_quarter_more_apart_and_not_all_alike() {
    let mut rig = Rig::running(VXLAN, 2);
    let (mut seen, mut last) = (rig.engine.host().dumps(), None);
    let mut gaps = Vec::new();
    for second in 0..2000_u64 {
        rig.pass(Duration::from_secs(1));
        let dumps = rig.engine.host().dumps();
        if dumps != seen {
            assert_eq!(dumps, seen + 1, "one at a time");
            gaps.extend(last.map(|last| second - last));
            (seen, last) = (dumps, Some(second));
        }
    }
    assert!(gaps.len() > 20, "{gaps:?}");
    // The clock of this test goes by whole seconds, which makes one of difference either way.
    assert!(gaps.iter().all(|gap| (59..=76).contains(gap)), "{gaps:?}");
    let spread = gaps.iter().max().unwrap() - gaps.iter().min().unwrap();
    assert!(spread >= 5, "{gaps:?}");
}
