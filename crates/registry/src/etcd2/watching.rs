//! The watch: one answer that does not end, in which every event comes as it happens, at no request per event.
//!
//! COMPAT: etcd answers a watch from an index that has passed with the one event it finds in its memory, and tells nothing of what
//! follows on that answer. So an event that is no later than the index at which the watch was taken up ends it, and another goes on
//! from there; and who is far behind lists again.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::connection::{Ask, At, Connection, Stream};
use super::listing::Listed;
use super::store::path_of;
use super::wire::{CLEARED, Event, LONGEST, Refused, event_of, read};
use super::{Stamp, Store, no_config};
use crate::RegistryError;
use crate::entries::{Change, End, Mark, Told};
use crate::etcd::{Line, REQUEST_DEADLINE};

/// Events that are caught up with one by one; beyond that one listing is cheaper.
const CAUGHT_UP: u32 = 8;
/// How often it is asked whether the member is still there, and part of the cluster, while it tells nothing: HTTP/1.1 has no ping.
/// An idle node asks for less than one thing a minute.
const LOOK: Duration = Duration::from_secs(61);
/// And so much more at random, so that the nodes do not ask all at once.
const SPREAD: Duration = Duration::from_secs(10);
/// Bytes of a config's strings that are kept: all that etcd takes.
const LONGEST_CONFIG: usize = 10 << 20;

/// How it stands with a store that was listed.
enum Standing {
    Same,
    Another,
    /// Too much has happened since to tell.
    Forgotten,
}

/// Why a stream of events ended.
enum Over {
    /// It told an event of the past, and will tell nothing more: this is how far it came.
    Caught(i64),
    /// The directory of the leases is gone, or another connection is to be made: nothing is wrong, list again.
    Anew,
    /// The store is not what it was.
    Another,
    Broken(String),
}

/// Watches from the index after a listing's.
pub(super) async fn watch(store: &Store, after: Mark, told: &(dyn Fn(Told<Stamp>) + Send + Sync)) -> End {
    let Some(listed) = store.recall(&after) else {
        return End::Compacted;
    };
    match standing(store, &listed, after).await {
        Ok(Standing::Same) => {}
        Ok(Standing::Another) => return exchanged(store, "the store"),
        Ok(Standing::Forgotten) => return End::Compacted,
        Err(error) => return End::Failed(error),
    }
    let line = match store.members.line().await {
        Ok(line) => line,
        Err(error) => return End::Failed(RegistryError::from(error).to_string()),
    };
    let mut come = after.number;
    for behind in 0..=CAUGHT_UP {
        let path = path_of(
            store.keys.subnets().trim_end_matches('/'),
            &format!("wait=true&stream=true&recursive=true&waitIndex={}", come + 1),
        );
        let over = match open(store, &line, path, LONGEST).await {
            Err(Refused::No { code: CLEARED, .. }) => return End::Compacted,
            Err(refused) => Over::Broken(refused.to_string()),
            Ok(stream) if is_another(&listed, come, stream.at) => Over::Another,
            Ok(stream) => {
                if behind == 0 {
                    told(Told::Standing);
                }
                deliver(store, &line, stream, told, &listed).await
            }
        };
        match over {
            Over::Caught(index) => come = index,
            Over::Anew => return End::Compacted,
            Over::Another => return exchanged(store, &line.endpoint().to_string()),
            Over::Broken(reason) => {
                let error = format!("{}: watch: {reason}", line.endpoint());
                store.members.give_up(&line, &error).await;
                return End::Failed(error);
            }
        }
    }
    End::Compacted
}

/// The member is well, but what it holds is not what was listed.
fn exchanged(store: &Store, whose: &str) -> End {
    let error = format!("{whose}: watch: the store is not the one that was listed");
    store.members.note_failure(&error, false);
    End::Exchanged
}

fn is_another(listed: &Listed, come: i64, at: At) -> bool {
    at.index < come || (listed.cluster != 0 && at.cluster != listed.cluster)
}

/// Whether the store is still the one that was listed: it has not gone back, and the entry that was written last is there, or was.
///
/// The index alone does not tell, nor does the cluster's id: a store that was emptied may have come as far, and bears the same one.
async fn standing(store: &Store, listed: &Listed, mark: Mark) -> Result<Standing, String> {
    let words = |error: super::store::CallError| RegistryError::from(error).to_string();
    let Some((name, stamp)) = &listed.newest else {
        let (index, _) = store.network_config().await.map_err(words)?;
        return Ok(match index < mark.number {
            true => Standing::Another,
            false => Standing::Same,
        });
    };
    Ok(match store.entry_was(name, stamp).await.map_err(words)? {
        Some(true) => Standing::Same,
        Some(false) => Standing::Another,
        None => Standing::Forgotten,
    })
}

async fn open(store: &Store, line: &Connection, path: String, longest: usize) -> Result<Stream, Refused> {
    let opening = async {
        let own = store.beside(line).await?;
        own.stream(Ask::get(path), 0, longest).await
    };
    match timeout(REQUEST_DEADLINE, opening).await {
        Ok(stream) => stream,
        Err(_) => Err(Refused::Unanswered {
            why: "no answer".to_owned(),
            is_foreign: false,
        }),
    }
}

async fn deliver(
    store: &Store,
    line: &Connection,
    mut stream: Stream,
    told: &(dyn Fn(Told<Stamp>) + Send + Sync),
    listed: &Listed,
) -> Over {
    let began = stream.at.index;
    let mut look = Instant::now() + LOOK + store.chance.jitter(SPREAD);
    loop {
        let mut events: Vec<Result<Event, Refused>> = Vec::new();
        let asked = Instant::now();
        let mut take = |piece: &[u8]| {
            events.push(read(piece).map(|reply| event_of(&store.keys, &reply, asked)));
        };
        tokio::select! {
            biased;
            more = stream.next(&mut take) => match more {
                Ok(true) => {}
                Ok(false) => return Over::Broken("the server ended the answer".to_owned()),
                Err(refused) => return Over::Broken(refused.to_string()),
            },
            () = store.members.left(line) => return Over::Anew,
            () = sleep_until(look) => {
                match is_there(store, line).await {
                    Err(reason) => return Over::Broken(reason),
                    Ok(Some(at)) if is_another(listed, began, at) => return Over::Another,
                    Ok(_) => look = Instant::now() + LOOK + store.chance.jitter(SPREAD),
                }
                continue;
            }
        }
        if let Some(over) = tell(events, began, told) {
            return over;
        }
    }
}

/// Tells events that have come. Why there will be no more, if so.
fn tell(
    events: Vec<Result<Event, Refused>>,
    began: i64,
    told: &(dyn Fn(Told<Stamp>) + Send + Sync),
) -> Option<Over> {
    let mut changes: Vec<(i64, Change<Stamp>)> = Vec::new();
    let mut over = None;
    for event in events {
        match event {
            Err(refused) => {
                over = Some(Over::Broken(refused.to_string()));
                break;
            }
            Ok(event) => {
                let index = event.index();
                match event {
                    Event::Change(index, change) => changes.push((index, change)),
                    Event::Swept(_) => over = Some(Over::Anew),
                    Event::Elsewhere(_) => {}
                }
                if index <= began && over.is_none() {
                    over = Some(Over::Caught(index));
                }
            }
        }
    }
    if !changes.is_empty() {
        told(Told::Changes(changes));
    }
    over
}

/// Whether the member of this connection answers, with the others' consent; where its store is, where it says so.
async fn is_there(store: &Store, line: &Connection) -> Result<Option<At>, String> {
    let look = async {
        let own = store.beside(line).await?;
        let ask = Ask::get(path_of(store.keys.config(), "quorum=true"));
        match own.whole(ask).await {
            Err(refused) if !refused.is_final() => Err(refused),
            Ok((at, _)) => Ok(Some(at)),
            // It answers: that there is no config, or that we may not read it.
            Err(_) => Ok(None),
        }
    };
    match timeout(REQUEST_DEADLINE, look).await {
        Ok(Ok(at)) => Ok(at),
        Ok(Err(refused)) => Err(refused.to_string()),
        Err(_) => Err(format!("no answer within {} s", REQUEST_DEADLINE.as_secs())),
    }
}

/// Tells the network config as it is and as it becomes, until something ends that.
pub(super) async fn follow_config(
    store: &Store,
    told: &(dyn Fn(Result<Vec<u8>, RegistryError>) + Send + Sync),
) {
    let Ok((index, config)) = store.network_config().await else {
        return;
    };
    let Ok(line) = store.members.line().await else {
        return told(config);
    };
    let query = format!("wait=true&stream=true&waitIndex={}", index + 1);
    let path = path_of(store.keys.config(), &query);
    let opened = open(store, &line, path, LONGEST_CONFIG).await;
    // Only now: who hears of it may change it, and this answer tells of that only if it stands by then.
    told(config);
    // Whether the member is well is the other watch's to find out.
    let Ok(mut stream) = opened else { return };
    let began = stream.at.index;
    if began < index {
        return;
    }
    loop {
        let mut last = None;
        let mut take = |piece: &[u8]| {
            let Ok(reply) = read(piece) else { return };
            let is_value = reply.is_write() && !reply.node.dir && reply.node.key == store.keys.config();
            let config = match is_value {
                true => Ok(reply.node.value.into_owned().into_bytes()),
                false => Err(no_config(&store.keys)),
            };
            last = Some((reply.node.modified_index, config));
        };
        tokio::select! {
            biased;
            more = stream.next(&mut take) => if !matches!(more, Ok(true)) { return },
            () = store.members.left(&line) => return,
        }
        if let Some((index, config)) = last {
            told(config);
            // An answer that tells of the past tells nothing more.
            if index <= began {
                return;
            }
        }
    }
}
