//! The state machine `lock.v1.Lock`: leases on names, with fencing tokens.
//!
//! An example of the use of time. A state machine has no clock: a lease ends according to the time
//! of the entry that reads it. The state also requests a wake-up at the next end (`wake_at`), so
//! that a tick ends the lease if no call does.
//!
//! - `limits`: the limits;
//! - `state`: holders and waiting owners;
//! - `snapshot`: serialization of the state.

pub mod limits;
mod snapshot;
mod state;

/// The messages of `lock.v1`.
pub mod pb {
    #![allow(missing_docs, reason = "generated from the proto file, which has the documentation")]
    conclave_sdk::include_protobuf!("lock.v1");
}

use conclave_sdk::{Context, Failure, Machine, Reply, Router};

use crate::{
    limits::{
        ENDED_PER_ENTRY, LOCKS_MAX, PAGE_LOCKS_MAX, WAITING_MAX, WAITING_TOTAL_MAX, check_name,
        check_ttl,
    },
    pb::{
        AcquireRequest, AcquireResponse, GetRequest, Lease, LeaveRequest, LeaveResponse,
        ListRequest, ListResponse, LockState, ReleaseRequest, ReleaseResponse, RenewRequest,
    },
    state::{Held, State},
};

/// The state machine.
#[derive(Default)]
pub struct Lock {
    state: State,
}

impl Lock {
    fn acquire(
        &mut self,
        context: &Context,
        request: AcquireRequest,
    ) -> Result<AcquireResponse, Failure> {
        let AcquireRequest { name, owner, ttl_ms, wait } = request;
        check_name("the name", &name)?;
        check_name("the owner", &owner)?;
        check_ttl(ttl_ms)?;
        self.catch_up(&name, context.time_ms);

        let expires_at_ms = context.time_ms.saturating_add(ttl_ms);
        let mut place = 0;
        match self.state.get(&name) {
            None if self.state.len() >= LOCKS_MAX => {
                return Err(Failure::resource_exhausted(format!("{LOCKS_MAX} locks are held")));
            }
            None => self.state.grant(&name, owner.clone(), expires_at_ms),
            Some(held) if held.owner == owner => self.state.extend(&name, expires_at_ms),
            Some(held) if wait => {
                self.check_room(held, &owner)?;
                place = self.state.wait(&name, &owner, ttl_ms);
            }
            Some(held) => place = place_of(held, &owner),
        }
        let lease = self.state.get(&name).map(|held| lease(&name, held));
        let acquired = lease.as_ref().is_some_and(|lease| lease.owner == owner);
        Ok(AcquireResponse { acquired, lease, place: place as u32 })
    }

    fn renew(&mut self, context: &Context, request: RenewRequest) -> Result<Lease, Failure> {
        let RenewRequest { name, owner, token, ttl_ms } = request;
        check_ttl(ttl_ms)?;
        self.catch_up(&name, context.time_ms);
        if !self.holds(&name, &owner, token) {
            return Err(Failure::failed_precondition(format!(
                "the lease of {owner:?} on {name:?} with token {token} has ended: stop the work \
                 that it protects, then acquire the lock again"
            )));
        }
        self.state.extend(&name, context.time_ms.saturating_add(ttl_ms));
        let renewed = self.state.get(&name).map(|held| lease(&name, held));
        Ok(renewed.unwrap_or_default())
    }

    fn release(
        &mut self,
        context: &Context,
        request: ReleaseRequest,
    ) -> Result<ReleaseResponse, Failure> {
        let ReleaseRequest { name, owner, token } = request;
        self.catch_up(&name, context.time_ms);
        let released = self.holds(&name, &owner, token);
        if released {
            self.state.end(&name, context.time_ms);
        }
        Ok(ReleaseResponse { released })
    }

    fn leave(
        &mut self,
        context: &Context,
        request: LeaveRequest,
    ) -> Result<LeaveResponse, Failure> {
        self.catch_up(&request.name, context.time_ms);
        let left = self.state.leave(&request.name, &request.owner);
        Ok(LeaveResponse { left })
    }

    fn get(&self, context: &Context, request: GetRequest) -> Result<LockState, Failure> {
        check_name("the name", &request.name)?;
        let held = self.state.get(&request.name);
        Ok(match held {
            Some(held) => lock_state(&request.name, held, context.time_ms),
            None => LockState { name: request.name, ..LockState::default() },
        })
    }

    fn list(&self, context: &Context, request: ListRequest) -> Result<ListResponse, Failure> {
        let ListRequest { prefix, after, limit } = request;
        let limit = match limit as usize {
            0 => PAGE_LOCKS_MAX,
            asked => asked.min(PAGE_LOCKS_MAX),
        };
        // The first name that begins with the prefix is the prefix itself.
        let first = self.state.get(&prefix).filter(|_| after < prefix).map(|held| (&prefix, held));
        let rest = self.state.after(if after < prefix { &prefix } else { &after });
        let mut locks: Vec<_> = first
            .into_iter()
            .chain(rest)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .take(limit + 1)
            .map(|(name, held)| lock_state(name, held, context.time_ms))
            .collect();
        let more = locks.len() > limit;
        locks.truncate(limit);
        Ok(ListResponse { locks, more })
    }

    /// Ends the leases whose time has come, as a tick does. Always includes the requested lock,
    /// regardless of the bound. These changes are kept even if the call then fails: time alone
    /// would have made them.
    fn catch_up(&mut self, name: &str, time_ms: u64) {
        self.state.sweep(time_ms, ENDED_PER_ENTRY);
        self.state.settle(name, time_ms);
    }

    fn holds(&self, name: &str, owner: &str, token: u64) -> bool {
        self.state.get(name).is_some_and(|held| held.owner == owner && held.token == token)
    }

    /// Checks that one more owner may wait.
    fn check_room(&self, held: &Held, owner: &str) -> Result<(), Failure> {
        if place_of(held, owner) > 0 {
            return Ok(());
        }
        if held.waiting.len() >= WAITING_MAX {
            return Err(Failure::resource_exhausted(format!(
                "{WAITING_MAX} owners wait for this lock already"
            )));
        }
        if self.state.waiting_total() >= WAITING_TOTAL_MAX {
            return Err(Failure::resource_exhausted(format!(
                "{WAITING_TOTAL_MAX} owners wait for locks already"
            )));
        }
        Ok(())
    }
}

/// Returns the owner's place in the queue, from 1, or 0 if the owner does not wait.
fn place_of(held: &Held, owner: &str) -> usize {
    held.waiting.iter().position(|waiter| waiter.owner == owner).map_or(0, |place| place + 1)
}

fn lease(name: &str, held: &Held) -> Lease {
    Lease {
        name: name.to_owned(),
        owner: held.owner.clone(),
        token: held.token,
        expires_at_ms: held.expires_at_ms,
    }
}

/// Returns the state of a lock. A lease whose time has come is not shown, even if no entry has
/// ended it yet.
fn lock_state(name: &str, held: &Held, time_ms: u64) -> LockState {
    LockState {
        name: name.to_owned(),
        lease: (held.expires_at_ms > time_ms).then(|| lease(name, held)),
        waiting: held.waiting.iter().map(|waiter| waiter.owner.clone()).collect(),
    }
}

impl Machine for Lock {
    const NAME: &'static str = "lock";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const STATE_VERSION: u32 = 1;

    fn router() -> Router<Self> {
        Router::new()
            .descriptor_set(pb::DESCRIPTOR_SET)
            .command("lock.v1.Lock/Acquire", Self::acquire)
            .command("lock.v1.Lock/Renew", Self::renew)
            .command("lock.v1.Lock/Release", Self::release)
            .command("lock.v1.Lock/Leave", Self::leave)
            .query("lock.v1.Lock/Get", Self::get)
            .query("lock.v1.Lock/List", Self::list)
    }

    fn tick(&mut self, context: &Context) -> Reply {
        self.state.sweep(context.time_ms, ENDED_PER_ENTRY);
        Reply::default()
    }

    fn wake_at(&self) -> Option<u64> {
        self.state.next_end_ms()
    }

    fn save(&self) -> Vec<u8> {
        snapshot::save(&self.state)
    }

    fn load(_: u32, bytes: &[u8]) -> Result<Self, Failure> {
        Ok(Self { state: snapshot::load(bytes)? })
    }
}

conclave_sdk::export!(Lock);
