//! The Range call: which rows, in which order, how many.

use std::cmp::Ordering;
use std::sync::Arc;

use etcd_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use etcd_proto::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use etcd_proto::mvccpb::KeyValue;

use super::history::{Disk, History};
use super::index::Found;
use super::span::Span;
use super::state::State;
use crate::refusal::Refusal;

/// What a Range call selected, its older rows not read yet: built under the state's lock, finished outside it.
#[derive(Debug)]
pub struct Picked {
    rows: Vec<Found>,
    /// Opened under the lock, so that no compaction can take away rows that were selected.
    history: Option<History>,
    count: usize,
    revision: i64,
}

/// Selects rows as of `current`, the newest revision the caller may see.
pub fn pick(state: &State, disk: &Disk, request: &RangeRequest, current: i64) -> Result<Picked, Refusal> {
    if request.revision > current {
        return Err(Refusal::FutureRevision);
    }
    let main = if request.revision <= 0 {
        current
    } else {
        request.revision
    };
    if main < state.compacted {
        return Err(Refusal::Compacted);
    }
    let span = Span::new(&request.key, &request.range_end);
    if request.count_only {
        let count = state.index.count(&span, main);
        return Ok(Picked {
            rows: Vec::new(),
            history: None,
            count,
            revision: current,
        });
    }
    let wanted = match usize::try_from(request.limit) {
        Ok(limit) if limit > 0 && !needs_all(request) => limit.saturating_add(1),
        _ => usize::MAX,
    };
    let mut rows = Vec::new();
    let mut count = 0;
    for (_, found) in state.index.range(&span, main) {
        count += 1;
        if count <= wanted {
            rows.push(found);
        }
    }
    let stored = rows.iter().any(|found| matches!(found, Found::Stored(_)));
    let history = if stored { Some(disk.history()?) } else { None };
    Ok(Picked {
        rows,
        history,
        count,
        revision: current,
    })
}

/// Whether rows must be seen before it is known which ones to return.
fn needs_all(request: &RangeRequest) -> bool {
    request.sort_order != SortOrder::None as i32
        || request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Reads, filters, sorts and cuts; the header carries only the revision.
pub fn finish(picked: Picked, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
    let mut rows = Vec::with_capacity(picked.rows.len());
    for found in picked.rows {
        rows.push(match (found, &picked.history) {
            (Found::Row(row), _) => row,
            (Found::Stored(at), Some(history)) => history.row(at)?,
            (Found::Stored(_), None) => return Err(Refusal::Compacted),
        });
    }
    rows.retain(|row| is_within(row, request));
    sort(&mut rows, request);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && rows.len() > limit;
    if more {
        rows.truncate(limit);
    }
    let kvs = rows.iter().map(|row| {
        if request.keys_only {
            without_value(row)
        } else {
            (**row).clone()
        }
    });
    Ok(RangeResponse {
        header: Some(ResponseHeader {
            revision: picked.revision,
            ..Default::default()
        }),
        kvs: kvs.collect(),
        more,
        count: i64::try_from(picked.count).unwrap_or(i64::MAX),
    })
}

fn is_within(row: &KeyValue, request: &RangeRequest) -> bool {
    let inside = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    inside(
        row.mod_revision,
        request.min_mod_revision,
        request.max_mod_revision,
    ) && inside(
        row.create_revision,
        request.min_create_revision,
        request.max_create_revision,
    )
}

/// COMPAT: a sort target other than the key without an order sorts upwards; after the limit cut the rows, as in
/// etcd (`needs_all` looks at the order alone).
fn sort(rows: &mut [Arc<KeyValue>], request: &RangeRequest) {
    let target = SortTarget::try_from(request.sort_target).ok();
    let by_key = target == Some(SortTarget::Key);
    let order = match SortOrder::try_from(request.sort_order) {
        Ok(SortOrder::None) if by_key => return,
        Ok(SortOrder::None) => SortOrder::Ascend,
        Ok(order) => order,
        Err(_) => return,
    };
    let compare = |a: &Arc<KeyValue>, b: &Arc<KeyValue>| match target {
        Some(SortTarget::Key) => a.key.cmp(&b.key),
        Some(SortTarget::Version) => a.version.cmp(&b.version),
        Some(SortTarget::Create) => a.create_revision.cmp(&b.create_revision),
        Some(SortTarget::Mod) => a.mod_revision.cmp(&b.mod_revision),
        Some(SortTarget::Value) => a.value.cmp(&b.value),
        None => Ordering::Equal,
    };
    match order {
        SortOrder::Descend => rows.sort_by(|a, b| compare(b, a)),
        _ => rows.sort_by(compare),
    }
}

fn without_value(row: &KeyValue) -> KeyValue {
    KeyValue {
        value: Vec::new(),
        key: row.key.clone(),
        ..*row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, create: i64, modified: i64, version: i64, value: &str) -> Arc<KeyValue> {
        Arc::new(KeyValue {
            key: key.into(),
            create_revision: create,
            mod_revision: modified,
            version,
            value: value.into(),
            lease: 0,
        })
    }

    fn rows() -> Vec<Arc<KeyValue>> {
        vec![
            row("a", 2, 9, 1, "z"),
            row("b", 4, 4, 3, "x"),
            row("c", 3, 5, 2, "y"),
        ]
    }

    fn keys(rows: &[Arc<KeyValue>]) -> String {
        rows.iter()
            .map(|row| String::from_utf8_lossy(&row.key).into_owned())
            .collect()
    }

    #[test]
    fn rows_when_sorted_are_in_the_order_of_the_target() {
        let sorted = |target: SortTarget, order: SortOrder| {
            let mut rows = rows();
            let request = RangeRequest {
                sort_target: target.into(),
                sort_order: order.into(),
                ..Default::default()
            };
            sort(&mut rows, &request);
            keys(&rows)
        };
        for (target, ascending, descending) in [
            (SortTarget::Key, "abc", "cba"),
            (SortTarget::Version, "acb", "bca"),
            (SortTarget::Create, "acb", "bca"),
            (SortTarget::Mod, "bca", "acb"),
            (SortTarget::Value, "bca", "acb"),
        ] {
            assert_eq!(sorted(target, SortOrder::Ascend), ascending, "{target:?}");
            assert_eq!(sorted(target, SortOrder::Descend), descending, "{target:?}");
        }
        assert_eq!(sorted(SortTarget::Key, SortOrder::None), "abc");
        assert_eq!(sorted(SortTarget::Mod, SortOrder::None), "bca");
        let mut reversed = rows();
        reversed.reverse();
        sort(&mut reversed, &RangeRequest::default());
        assert_eq!(keys(&reversed), "cba", "as they came");
    }

    #[test]
    fn rows_when_bounds_are_given_are_those_within_both_ends_included() {
        let kept = |request: RangeRequest| {
            let mut rows = rows();
            rows.retain(|row| is_within(row, &request));
            keys(&rows)
        };
        let any = RangeRequest::default;
        assert_eq!(kept(any()), "abc");
        assert_eq!(
            kept(RangeRequest {
                min_mod_revision: 5,
                ..any()
            }),
            "ac"
        );
        assert_eq!(
            kept(RangeRequest {
                max_mod_revision: 5,
                ..any()
            }),
            "bc"
        );
        assert_eq!(
            kept(RangeRequest {
                min_create_revision: 3,
                ..any()
            }),
            "bc"
        );
        assert_eq!(
            kept(RangeRequest {
                max_create_revision: 3,
                ..any()
            }),
            "ac"
        );
        assert_eq!(
            kept(RangeRequest {
                min_mod_revision: 5,
                max_create_revision: 2,
                ..any()
            }),
            "a"
        );
        for request in [
            RangeRequest {
                min_mod_revision: 1,
                ..any()
            },
            RangeRequest {
                max_mod_revision: 1,
                ..any()
            },
            RangeRequest {
                min_create_revision: 1,
                ..any()
            },
            RangeRequest {
                max_create_revision: 1,
                ..any()
            },
            RangeRequest {
                sort_order: SortOrder::Ascend.into(),
                ..any()
            },
        ] {
            assert!(needs_all(&request), "{request:?}");
        }
        assert!(!needs_all(&RangeRequest {
            sort_target: SortTarget::Mod.into(),
            ..any()
        }));
    }

    #[test]
    fn answer_when_a_limit_is_given_has_so_many_rows_and_counts_all() {
        let answer = |request: RangeRequest| {
            let picked = Picked {
                rows: rows().into_iter().map(Found::Row).collect(),
                history: None,
                count: 3,
                revision: 12,
            };
            finish(picked, &request).unwrap()
        };
        let of = |limit| {
            answer(RangeRequest {
                limit,
                ..Default::default()
            })
        };
        let shape = |response: RangeResponse| (response.kvs.len(), response.more, response.count);
        assert_eq!(
            (shape(of(0)), shape(of(2)), shape(of(3))),
            ((3, false, 3), (2, true, 3), (3, false, 3))
        );
        let keys_only = answer(RangeRequest {
            keys_only: true,
            ..Default::default()
        });
        assert!(
            keys_only
                .kvs
                .iter()
                .all(|kv| kv.value.is_empty() && !kv.key.is_empty() && kv.mod_revision > 0)
        );
        assert_eq!(of(0).header.unwrap().revision, 12);
        assert!(!of(0).kvs[0].value.is_empty());
    }
}
