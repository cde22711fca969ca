//! The effects of one operation on the state, and the events for watchers.

use conclave_sdk::{Context, Event, Failure, prost::Message as _};

use crate::{
    limits::{STORE_BYTES_MAX, VALUE_BYTES_MAX, check_key, within},
    pb::{
        DeleteRequest, DeleteResponse, GetRequest, GetResponse, KeyValue, PutRequest, PutResponse,
        WatchResponse, key_value, put_request, watch_response::Kind,
    },
    state::{Content, Record, State, counted_bytes},
};

/// The operations of one entry. They share one revision, which the first change creates. Each
/// operation checks its request before it changes anything.
pub(crate) struct Step<'a> {
    state: &'a mut State,
    time_ms: u64,
    index: u64,
    changed: bool,
    events: Vec<Event>,
    event_bytes: usize,
}

impl<'a> Step<'a> {
    pub(crate) fn new(state: &'a mut State, context: &Context) -> Self {
        let Context { time_ms, index, .. } = *context;
        Self { state, time_ms, index, changed: false, events: Vec::new(), event_bytes: 0 }
    }

    /// Returns the events of the operations.
    pub(crate) fn into_events(self) -> Vec<Event> {
        self.events
    }

    /// Deletes expired keys: at most `count`, and only until their events reach `bytes`.
    pub(crate) fn sweep(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            if self.event_bytes >= bytes {
                return;
            }
            let Some(key) = self.state.sweep_one(self.time_ms) else { return };
            let kv = KeyValue { key: key.to_string(), ..KeyValue::default() };
            self.tell(Kind::Expire, kv);
        }
    }

    /// Returns the bytes of the events so far, as counted by the host.
    pub(crate) fn event_bytes(&self) -> usize {
        self.event_bytes
    }

    fn tell(&mut self, kind: Kind, kv: KeyValue) {
        let (revision, index) = (self.state.revision(), self.index);
        let message = WatchResponse { kind: kind.into(), kv: Some(kv), revision, index };
        let payload = message.encode_to_vec();
        let topic = message.kv.unwrap_or_default().key.into_bytes();
        let event = Event { topic, payload };
        self.event_bytes += event.counted_bytes();
        self.events.push(event);
    }

    pub(crate) fn state(&self) -> &State {
        self.state
    }

    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    pub(crate) fn put(&mut self, request: PutRequest) -> Result<PutResponse, Failure> {
        check_key(&request.key)?;
        let content = match request.content {
            Some(put_request::Content::Value(value)) => Content::Value(value),
            Some(put_request::Content::Text(text)) => Content::Text(text),
            None => Content::Value(Vec::new()),
        };
        within("the value", content.bytes().len(), VALUE_BYTES_MAX, "bytes")?;
        let expires_at_ms = self.expires_at_ms(request.ttl_ms)?;
        self.check_room(&request.key, &content)?;

        let revision = self.change();
        let told = content.clone();
        let (mut create_revision, mut version) = (revision, 1);
        self.state.put(&request.key, self.time_ms, |old| {
            if let Some(old) = old {
                (create_revision, version) = (old.create_revision, old.version + 1);
            }
            Record { content, create_revision, mod_revision: revision, version, expires_at_ms }
        });
        let mod_revision = revision;
        let content = Some(told.into());
        self.tell(
            Kind::Put,
            KeyValue {
                key: request.key,
                content,
                create_revision,
                mod_revision,
                version,
                expires_at_ms,
            },
        );
        Ok(PutResponse { revision, create_revision, version })
    }

    pub(crate) fn delete(&mut self, request: &DeleteRequest) -> Result<DeleteResponse, Failure> {
        check_key(&request.key)?;
        let deleted = self.state.get(&request.key, self.time_ms).is_some();
        if deleted {
            self.state.remove(&request.key);
            let mod_revision = self.change();
            let key = request.key.clone();
            self.tell(Kind::Delete, KeyValue { key, mod_revision, ..KeyValue::default() });
        }
        Ok(DeleteResponse { revision: self.state.revision(), deleted })
    }

    pub(crate) fn get(&self, request: &GetRequest) -> Result<GetResponse, Failure> {
        get(self.state, self.time_ms, request)
    }

    fn change(&mut self) -> u64 {
        if self.changed {
            return self.state.revision();
        }
        self.changed = true;
        self.state.next_revision()
    }

    /// Checks that the store has room for a put. A put that does not make the store larger always
    /// passes. This allows repairing a store that exceeds the limit, for example after a version
    /// with a higher limit.
    fn check_room(&self, key: &str, content: &Content) -> Result<(), Failure> {
        let bytes = self.state.bytes();
        // The old content is looked up only if the store is nearly full.
        if bytes + counted_bytes(key, content) <= STORE_BYTES_MAX {
            return Ok(());
        }
        let after = self.state.bytes_with(key, content);
        if after <= bytes.max(STORE_BYTES_MAX) {
            return Ok(());
        }
        Err(Failure::resource_exhausted(format!(
            "the store is full: with this put its keys and values would count {after} bytes, and at \
             most {STORE_BYTES_MAX} are allowed: delete keys first"
        )))
    }

    fn expires_at_ms(&self, ttl_ms: i64) -> Result<u64, Failure> {
        match u64::try_from(ttl_ms) {
            Ok(0) => Ok(0),
            Ok(ttl_ms) => Ok(self.time_ms.saturating_add(ttl_ms)),
            Err(_) => Err(Failure::invalid_argument(format!(
                "ttl_ms is {ttl_ms}; it must be positive, or 0 for a key that never expires"
            ))),
        }
    }
}

/// Returns one key. The response has no `kv` if the key does not exist.
pub(crate) fn get(
    state: &State,
    time_ms: u64,
    request: &GetRequest,
) -> Result<GetResponse, Failure> {
    check_key(&request.key)?;
    let kv = state.get(&request.key, time_ms).map(|record| key_value(&request.key, record, false));
    Ok(GetResponse { kv, revision: state.revision() })
}

impl From<Content> for key_value::Content {
    fn from(content: Content) -> Self {
        match content {
            Content::Value(value) => Self::Value(value),
            Content::Text(text) => Self::Text(text),
        }
    }
}

pub(crate) fn key_value(key: &str, record: &Record, key_only: bool) -> KeyValue {
    let content = match &record.content {
        _ if key_only => None,
        content => Some(content.clone().into()),
    };
    KeyValue {
        key: key.to_owned(),
        content,
        create_revision: record.create_revision,
        mod_revision: record.mod_revision,
        version: record.version,
        expires_at_ms: record.expires_at_ms,
    }
}
