//! What etcd says of itself while it answers: alarms, for as long as they stand.
//!
//! A cluster without space goes on prolonging leases, so that nobody notices until a node has to write.

use std::convert::Infallible;
use std::time::Duration;

use etcd_proto::etcdserverpb::StatusRequest;
use etcd_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tokio::time::{sleep, timeout};

use super::connection::Connection;
use super::store::Store;
use crate::etcd::REQUEST_DEADLINE;
use crate::state::Trouble;

/// Until a watch that stands asks for the first time.
const FIRST: Duration = Duration::from_secs(5);
/// Between two questions: the member answers without the others, and all nodes together ask every few milliseconds at most.
const EVERY: Duration = Duration::from_secs(100);
/// The same while an alarm stands, so that its end is seen soon.
const WHILE_ALARMED: Duration = Duration::from_secs(10);

/// Asks a member from time to time, and at once when it has said no.
pub(super) async fn follow(store: &Store, connection: &Connection) -> Infallible {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            biased;
            () = store.members.denied() => {}
            () = sleep(store.chance.jitter(pause)) => {}
        }
        let mut client = MaintenanceClient::with_origin(connection.clone(), connection.origin.clone());
        // A server that does not know the question has no alarms.
        if let Ok(Ok(reply)) = timeout(REQUEST_DEADLINE, client.status(StatusRequest {})).await {
            let trouble = trouble(&reply.into_inner().errors);
            pause = if trouble.is_some() { WHILE_ALARMED } else { EVERY };
            store.members.note_trouble(trouble);
        }
    }
}

/// The errors of a status in words: `memberID:10276657743932975437 alarm:NOSPACE `, as etcd's messages print themselves.
fn trouble(errors: &[String]) -> Option<Trouble> {
    let mut alarms: Vec<&str> = errors
        .iter()
        .flat_map(|error| error.split_ascii_whitespace())
        .filter_map(|word| word.strip_prefix("alarm:"))
        .filter(|alarm| !matches!(*alarm, "" | "NONE") && alarm.bytes().all(|byte| byte.is_ascii_uppercase()))
        .collect();
    alarms.sort_unstable();
    alarms.dedup();
    let (what, hint) = match *alarms.first()? {
        "NOSPACE" => (
            "nothing can be written: nodes get no lease, and what is deleted stays away; leases that are there are prolonged",
            "make room (etcdctl compact, defrag; --quota-backend-bytes), then `etcdctl alarm disarm`",
        ),
        "CORRUPT" => (
            "its members hold different data, and it answers nothing until that is mended",
            "see etcd's documentation on data corruption",
        ),
        _ => ("see etcd's documentation", "etcdctl alarm list"),
    };
    Some(Trouble {
        text: format!("etcd has raised the alarm {}: {what}", alarms.join(", ")),
        hint: hint.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_when_a_member_names_alarms_then_each_is_named_once_and_nothing_else_is_one() {
        let said = |errors: &[&str]| {
            let errors: Vec<String> = errors.iter().map(|error| (*error).to_owned()).collect();
            trouble(&errors).map(|trouble| trouble.text)
        };
        let full = "memberID:10276657743932975437 alarm:NOSPACE ";
        let text = said(&[full, full]).unwrap();
        assert!(
            text.starts_with("etcd has raised the alarm NOSPACE: nothing can be written"),
            "{text}"
        );
        let text = said(&["alarm:NOSPACE memberID:1", "memberID:2 alarm:CORRUPT "]).unwrap();
        assert!(
            text.starts_with("etcd has raised the alarm CORRUPT, NOSPACE: "),
            "{text}"
        );
        assert_eq!(said(&[]), None);
        assert_eq!(
            said(&["etcdserver: no leader", "alarm:", "alarm:NONE", "alarm:\u{1b}[1m"]),
            None
        );
    }
}
