//! What can be said against a request before the store is asked: etcd's checks, in etcd's order.

use std::collections::HashSet;

use etcd_proto::etcdserverpb::request_op::Request;
use etcd_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use prost::Message;

use super::{MAX_REQUEST_BYTES, MAX_TXN_OPS};
use crate::refusal::Refusal;

/// Refuses what etcd would not put into its log.
pub fn size(request: &impl Message) -> Result<(), Refusal> {
    if request.encoded_len() > MAX_REQUEST_BYTES {
        Err(Refusal::RequestTooLarge)
    } else {
        Ok(())
    }
}

/// A Range on its own or inside a transaction.
pub fn range(request: &RangeRequest) -> Result<(), Refusal> {
    key(&request.key)
}

/// A Put on its own or inside a transaction.
pub fn put(request: &PutRequest) -> Result<(), Refusal> {
    key(&request.key)?;
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

/// A DeleteRange on its own or inside a transaction.
pub fn delete(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    key(&request.key)
}

/// A whole transaction: sizes, keys, and that no key is written twice.
pub fn txn(request: &TxnRequest) -> Result<(), Refusal> {
    operations(request, MAX_TXN_OPS)?;
    let mut writes = Writes::default();
    writes.collect(&request.success)?;
    Writes::default().collect(&request.failure)
}

fn key(key: &[u8]) -> Result<(), Refusal> {
    if key.is_empty() {
        Err(Refusal::EmptyKey)
    } else {
        Ok(())
    }
}

/// `budget` is shared by the levels: each takes its longest list off it.
fn operations(request: &TxnRequest, budget: usize) -> Result<(), Refusal> {
    let most = request
        .compare
        .len()
        .max(request.success.len())
        .max(request.failure.len());
    let left = budget.checked_sub(most).ok_or(Refusal::TooManyOps)?;
    for compare in &request.compare {
        key(&compare.key)?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete(request)?,
            Some(Request::RequestTxn(request)) => operations(request, left)?,
            None => return Err(Refusal::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys one branch puts, and the intervals it deletes.
#[derive(Default)]
struct Writes<'a> {
    puts: HashSet<&'a [u8]>,
    deletes: Vec<&'a DeleteRangeRequest>,
}

impl<'a> Writes<'a> {
    /// Deletions of this level first, then nested transactions in order (their two branches exclude each other, so
    /// they may put the same key), then this level's puts.
    fn collect(&mut self, ops: &'a [RequestOp]) -> Result<(), Refusal> {
        for op in ops {
            if let Some(Request::RequestDeleteRange(request)) = &op.request {
                self.deletes.push(request);
            }
        }
        for op in ops {
            let Some(Request::RequestTxn(nested)) = &op.request else {
                continue;
            };
            let mut then = Writes::default();
            then.collect(&nested.success)?;
            let mut otherwise = Writes::default();
            otherwise.collect(&nested.failure)?;
            for put in &then.puts {
                self.put(put)?;
            }
            for put in &otherwise.puts {
                if !then.puts.contains(put) {
                    self.put(put)?;
                }
            }
            self.deletes.append(&mut then.deletes);
            self.deletes.append(&mut otherwise.deletes);
        }
        for op in ops {
            if let Some(Request::RequestPut(request)) = &op.request {
                self.put(&request.key)?;
            }
        }
        Ok(())
    }

    fn put(&mut self, key: &'a [u8]) -> Result<(), Refusal> {
        if self.deletes.iter().any(|delete| overlaps(delete, key)) || !self.puts.insert(key) {
            return Err(Refusal::DuplicateKey);
        }
        Ok(())
    }
}

/// COMPAT: etcd reads the end "\0" (everything from the key on) as a plain string here, so such a deletion collides
/// with no put; the operations then apply in order.
fn overlaps(delete: &DeleteRangeRequest, key: &[u8]) -> bool {
    match delete.range_end.as_slice() {
        [] => delete.key == key,
        end => key >= delete.key.as_slice() && key < end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use etcd_proto::etcdserverpb::Compare;

    fn put_of(key: &str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestPut(PutRequest {
                key: key.into(),
                ..Default::default()
            })),
        }
    }

    fn delete_of(key: &str, end: &str) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
                key: key.into(),
                range_end: end.into(),
                ..Default::default()
            })),
        }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp {
            request: Some(Request::RequestTxn(of(success, failure))),
        }
    }

    fn of(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest {
            compare: Vec::new(),
            success,
            failure,
        }
    }

    #[test]
    fn put_when_it_says_both_what_is_and_what_is_to_be_is_refused() {
        let good = PutRequest {
            key: b"k".to_vec(),
            value: b"v".to_vec(),
            lease: 7,
            ..Default::default()
        };
        assert_eq!(put(&good), Ok(()));
        let ignoring = |ignore_value, ignore_lease, value: &[u8], lease| {
            put(&PutRequest {
                ignore_value,
                ignore_lease,
                value: value.to_vec(),
                lease,
                ..good.clone()
            })
        };
        assert_eq!(ignoring(true, false, b"v", 7), Err(Refusal::ValueProvided));
        assert_eq!(ignoring(false, true, b"v", 7), Err(Refusal::LeaseProvided));
        assert_eq!(
            (ignoring(true, false, b"", 7), ignoring(false, true, b"v", 0)),
            (Ok(()), Ok(()))
        );
        assert_eq!(put(&PutRequest::default()), Err(Refusal::EmptyKey));
        assert_eq!(range(&RangeRequest::default()), Err(Refusal::EmptyKey));
        assert_eq!(delete(&DeleteRangeRequest::default()), Err(Refusal::EmptyKey));
    }

    #[test]
    fn request_when_as_large_as_may_be_is_taken_and_one_byte_more_is_not() {
        let sized = |value: usize| PutRequest {
            key: b"k".to_vec(),
            value: vec![0; value],
            ..Default::default()
        };
        let head = sized(1 << 20).encoded_len() - (1 << 20);
        assert_eq!(size(&sized(MAX_REQUEST_BYTES - head)), Ok(()));
        assert_eq!(
            size(&sized(MAX_REQUEST_BYTES - head + 1)),
            Err(Refusal::RequestTooLarge)
        );
    }

    #[test]
    fn transaction_when_it_has_more_operations_than_may_be_is_refused_level_by_level() {
        let ops = |count: usize| -> Vec<RequestOp> { (0..count).map(|n| put_of(&format!("k{n}"))).collect() };
        assert_eq!(txn(&of(ops(MAX_TXN_OPS), ops(MAX_TXN_OPS))), Ok(()));
        assert_eq!(txn(&of(ops(MAX_TXN_OPS + 1), vec![])), Err(Refusal::TooManyOps));
        assert_eq!(txn(&of(vec![], ops(MAX_TXN_OPS + 1))), Err(Refusal::TooManyOps));
        let inner = |count| of(vec![nested(ops(count), vec![])], vec![]);
        assert_eq!(txn(&inner(MAX_TXN_OPS - 1)), Ok(()));
        assert_eq!(txn(&inner(MAX_TXN_OPS)), Err(Refusal::TooManyOps));
        let compare = |key: &str| TxnRequest {
            compare: vec![Compare {
                key: key.into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert_eq!(
            (txn(&compare("k")), txn(&compare(""))),
            (Ok(()), Err(Refusal::EmptyKey))
        );
        assert_eq!(
            txn(&of(vec![RequestOp { request: None }], vec![])),
            Err(Refusal::KeyNotFound)
        );
        assert_eq!(txn(&of(vec![], vec![put_of("")])), Err(Refusal::EmptyKey));
    }

    #[test]
    fn transaction_when_one_branch_writes_a_key_twice_is_refused() {
        let twice = Err(Refusal::DuplicateKey);
        assert_eq!(txn(&of(vec![put_of("a"), put_of("a")], vec![])), twice);
        assert_eq!(txn(&of(vec![], vec![put_of("a"), put_of("a")])), twice);
        assert_eq!(txn(&of(vec![put_of("a")], vec![put_of("a")])), Ok(()));
        assert_eq!(txn(&of(vec![put_of("b"), delete_of("a", "c")], vec![])), twice);
        for (from, end, ok) in [
            ("a", "b", true),
            ("b", "c", false),
            ("b", "", false),
            ("c", "d", true),
            ("a", "\0", true),
        ] {
            let refused = txn(&of(vec![delete_of(from, end), put_of("b")], vec![]));
            assert_eq!(refused.is_ok(), ok, "{from} to {end:?}");
        }
        // The branches of an inner transaction exclude each other, and both count outside.
        assert_eq!(
            txn(&of(vec![nested(vec![put_of("a")], vec![put_of("a")])], vec![])),
            Ok(())
        );
        for inner in [
            nested(vec![put_of("a")], vec![]),
            nested(vec![], vec![put_of("a")]),
            nested(vec![delete_of("a", "")], vec![]),
            nested(vec![], vec![delete_of("a", "")]),
        ] {
            assert_eq!(
                txn(&of(vec![inner.clone(), put_of("a")], vec![])),
                twice,
                "{inner:?}"
            );
            assert_eq!(txn(&of(vec![inner, put_of("b")], vec![])), Ok(()));
        }
        assert_eq!(
            txn(&of(
                vec![
                    nested(vec![put_of("a")], vec![]),
                    nested(vec![], vec![put_of("a")])
                ],
                vec![]
            )),
            twice
        );
    }
}
