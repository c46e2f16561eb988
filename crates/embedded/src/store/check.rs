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
