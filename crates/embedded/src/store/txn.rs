//! The Txn call: comparisons choose a branch at every level first, then everything chosen is checked, then applied.

use std::cmp::Ordering;

use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::response_op::Response;
use etcd_proto::etcdserverpb::{Compare, PutRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse};
use etcd_proto::mvccpb::KeyValue;

use super::history::Disk;
use super::index::Found;
use super::range;
use super::span::Span;
use super::state::{State, Writing, header};
use crate::refusal::Refusal;

/// Whether the request can only read, whatever its comparisons say.
pub fn is_read_only(request: &TxnRequest) -> bool {
    let reads = |op: &RequestOp| matches!(op.request, Some(Request::RequestRange(_)));
    request.success.iter().all(reads) && request.failure.iter().all(reads)
}

/// A transaction whose branches are chosen: nothing of it can fail any more for what the store holds.
#[derive(Debug)]
pub struct Chosen<'a> {
    succeeded: bool,
    ops: Vec<ChosenOp<'a>>,
}

#[derive(Debug)]
enum ChosenOp<'a> {
    Plain(&'a Request),
    Nested(Chosen<'a>),
}

/// Compares as of revision `main` and checks the chosen operations: leases and previous values for the puts first,
/// then the revisions of the reads.
pub fn choose<'a>(
    state: &State,
    disk: &Disk,
    request: &'a TxnRequest,
    main: i64,
) -> Result<Chosen<'a>, Refusal> {
    let chosen = choose_branch(state, disk, request, main)?;
    chosen.check(&|op| match op {
        Request::RequestPut(put) => check_put(state, put),
        _ => Ok(()),
    })?;
    chosen.check(&|op| match op {
        Request::RequestRange(range) if range.revision > main => Err(Refusal::FutureRevision),
        Request::RequestRange(range) if range.revision != 0 && range.revision < state.compacted => {
            Err(Refusal::Compacted)
        }
        _ => Ok(()),
    })?;
    Ok(chosen)
}

/// What a Put needs that only the store knows.
pub fn check_put(state: &State, request: &PutRequest) -> Result<(), Refusal> {
    if (request.ignore_value || request.ignore_lease) && state.index.newest(&request.key).is_none() {
        return Err(Refusal::KeyNotFound);
    }
    if request.lease != 0 && state.leases.get(request.lease).is_none() {
        return Err(Refusal::LeaseNotFound);
    }
    Ok(())
}

fn choose_branch<'a>(
    state: &State,
    disk: &Disk,
    request: &'a TxnRequest,
    main: i64,
) -> Result<Chosen<'a>, Refusal> {
    let mut succeeded = true;
    for compare in &request.compare {
        if !holds(state, disk, compare, main)? {
            succeeded = false;
            break;
        }
    }
    let branch = if succeeded {
        &request.success
    } else {
        &request.failure
    };
    let mut ops = Vec::with_capacity(branch.len());
    for op in branch {
        match &op.request {
            Some(Request::RequestTxn(nested)) => {
                ops.push(ChosenOp::Nested(choose_branch(state, disk, nested, main)?));
            }
            Some(plain) => ops.push(ChosenOp::Plain(plain)),
            None => {}
        }
    }
    Ok(Chosen { succeeded, ops })
}

impl Chosen<'_> {
    fn check(&self, refuse: &dyn Fn(&Request) -> Result<(), Refusal>) -> Result<(), Refusal> {
        for op in &self.ops {
            match op {
                ChosenOp::Plain(plain) => refuse(plain)?,
                ChosenOp::Nested(nested) => nested.check(refuse)?,
            }
        }
        Ok(())
    }

    /// Reads and writes in order.
    pub fn apply(&self, writing: &mut Writing<'_>, disk: &Disk) -> Result<TxnResponse, Refusal> {
        let mut responses = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let response = match op {
                ChosenOp::Plain(Request::RequestPut(put)) => Response::ResponsePut(writing.put(put)?),
                ChosenOp::Plain(Request::RequestDeleteRange(delete)) => {
                    Response::ResponseDeleteRange(writing.delete(delete))
                }
                ChosenOp::Plain(Request::RequestRange(range)) => {
                    let picked = range::pick(writing.state(), disk, range, writing.revision())?;
                    Response::ResponseRange(range::finish(picked, range)?)
                }
                // A nested transaction is never kept as a plain operation.
                ChosenOp::Plain(Request::RequestTxn(_)) => continue,
                ChosenOp::Nested(nested) => {
                    let mut response = nested.apply(writing, disk)?;
                    response.header = header(0);
                    Response::ResponseTxn(response)
                }
            };
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: header(writing.revision()),
            succeeded: self.succeeded,
            responses,
        })
    }

    /// The same for a transaction that only reads, as of `main`.
    pub fn read(&self, state: &State, disk: &Disk, main: i64) -> Result<TxnResponse, Refusal> {
        let mut responses = Vec::with_capacity(self.ops.len());
        for op in &self.ops {
            let ChosenOp::Plain(Request::RequestRange(range)) = op else {
                continue;
            };
            let picked = range::pick(state, disk, range, main)?;
            let response = Response::ResponseRange(range::finish(picked, range)?);
            responses.push(ResponseOp {
                response: Some(response),
            });
        }
        Ok(TxnResponse {
            header: header(main),
            succeeded: self.succeeded,
            responses,
        })
    }
}

/// Whether a comparison is true of every key of its range. A range without keys is compared as if it held one
/// row of zeros, except by value: no value equals a missing one.
fn holds(state: &State, disk: &Disk, compare: &Compare, main: i64) -> Result<bool, Refusal> {
    let span = Span::new(&compare.key, &compare.range_end);
    let mut history = None;
    let mut any = false;
    for (_, found) in state.index.range(&span, main) {
        any = true;
        let row = match found {
            Found::Row(row) => row,
            Found::Stored(at) => match &mut history {
                Some(history) => history,
                closed => closed.insert(disk.history()?),
            }
            .row(at)?,
        };
        if !holds_for(compare, &row) {
            return Ok(false);
        }
    }
    let by_value = compare.target == CompareTarget::Value as i32;
    Ok(any || (!by_value && holds_for(compare, &KeyValue::default())))
}

/// COMPAT: a target the union does not carry is compared with zero or the empty value; an unknown operator holds.
fn holds_for(compare: &Compare, row: &KeyValue) -> bool {
    let number = |carried: Option<i64>, has: i64| has.cmp(&carried.unwrap_or(0));
    let union = compare.target_union.as_ref();
    let order = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let wanted = match union {
                Some(TargetUnion::Value(value)) => value.as_slice(),
                _ => &[],
            };
            row.value.as_slice().cmp(wanted)
        }
        Ok(CompareTarget::Create) => number(
            union.and_then(|union| match union {
                TargetUnion::CreateRevision(revision) => Some(*revision),
                _ => None,
            }),
            row.create_revision,
        ),
        Ok(CompareTarget::Mod) => number(
            union.and_then(|union| match union {
                TargetUnion::ModRevision(revision) => Some(*revision),
                _ => None,
            }),
            row.mod_revision,
        ),
        Ok(CompareTarget::Version) => number(
            union.and_then(|union| match union {
                TargetUnion::Version(version) => Some(*version),
                _ => None,
            }),
            row.version,
        ),
        Ok(CompareTarget::Lease) => number(
            union.and_then(|union| match union {
                TargetUnion::Lease(lease) => Some(*lease),
                _ => None,
            }),
            row.lease,
        ),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(target: CompareTarget, result: CompareResult, union: Option<TargetUnion>) -> Compare {
        Compare {
            result: result.into(),
            target: target.into(),
            target_union: union,
            ..Default::default()
        }
    }

    #[test]
    fn comparison_when_of_any_target_compares_that_and_with_zero_where_the_request_has_another() {
        let row = KeyValue {
            key: b"k".to_vec(),
            create_revision: 3,
            mod_revision: 5,
            version: 2,
            value: b"m".to_vec(),
            lease: 7,
        };
        type Wanted = fn(i64) -> TargetUnion;
        let numbers: [(CompareTarget, i64, Wanted, TargetUnion); 4] = [
            (
                CompareTarget::Create,
                3,
                TargetUnion::CreateRevision,
                TargetUnion::Version(3),
            ),
            (
                CompareTarget::Mod,
                5,
                TargetUnion::ModRevision,
                TargetUnion::Version(5),
            ),
            (
                CompareTarget::Version,
                2,
                TargetUnion::Version,
                TargetUnion::Lease(2),
            ),
            (
                CompareTarget::Lease,
                7,
                TargetUnion::Lease,
                TargetUnion::Version(7),
            ),
        ];
        let results = [
            CompareResult::Equal,
            CompareResult::NotEqual,
            CompareResult::Greater,
            CompareResult::Less,
        ];
        for (target, number, union, other) in numbers {
            let holds = |wanted: i64| {
                results.map(|result| holds_for(&compare(target, result, Some(union(wanted))), &row))
            };
            assert_eq!(holds(number), [true, false, false, false], "{target:?}");
            assert_eq!(holds(number - 1), [false, true, true, false], "{target:?}");
            assert_eq!(holds(number + 1), [false, true, false, true], "{target:?}");
            for union in [Some(other), None] {
                assert!(!holds_for(
                    &compare(target, CompareResult::Equal, union.clone()),
                    &row
                ));
                assert!(
                    holds_for(&compare(target, CompareResult::Greater, union), &row),
                    "than zero"
                );
            }
        }
        let value = |result, wanted: &[u8]| {
            holds_for(
                &compare(
                    CompareTarget::Value,
                    result,
                    Some(TargetUnion::Value(wanted.to_vec())),
                ),
                &row,
            )
        };
        assert!(
            value(CompareResult::Equal, b"m")
                && value(CompareResult::Greater, b"a")
                && value(CompareResult::Less, b"z")
        );
        assert!(!value(CompareResult::Equal, b"mm"));
        assert!(holds_for(
            &compare(CompareTarget::Value, CompareResult::Greater, None),
            &row
        ));
        let mut unknown = compare(
            CompareTarget::Mod,
            CompareResult::Equal,
            Some(TargetUnion::ModRevision(99)),
        );
        unknown.result = 77;
        assert!(holds_for(&unknown, &row));
        unknown.result = CompareResult::Equal.into();
        unknown.target = 77;
        assert!(holds_for(&unknown, &row));
    }

    #[test]
    fn transaction_when_anything_in_it_may_write_is_not_for_reading_alone() {
        let op = |request| RequestOp { request };
        let read = || op(Some(Request::RequestRange(Default::default())));
        let put = || op(Some(Request::RequestPut(Default::default())));
        let of = |success: Vec<RequestOp>, failure: Vec<RequestOp>| TxnRequest {
            success,
            failure,
            ..Default::default()
        };
        assert!(is_read_only(&of(vec![read()], vec![read()])) && is_read_only(&of(vec![], vec![])));
        assert!(!is_read_only(&of(vec![read(), put()], vec![])) && !is_read_only(&of(vec![], vec![put()])));
        assert!(!is_read_only(&of(vec![op(None)], vec![])));
    }
}
