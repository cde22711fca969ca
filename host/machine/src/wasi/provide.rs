//! The definition of the functions of WASI that a component imports.

use wasmtime::{
    StoreContextMut,
    component::{ComponentNamedList, Lift, LinkerInstance, Lower},
};

use crate::state::{State, charge};

/// The fuel of a call into the host. It corresponds to the time of the call.
const FUEL_PER_CALL: u64 = 100;

pub(super) type Context<'a> = StoreContextMut<'a, State>;
pub(super) type Definitions<'a> = LinkerInstance<'a, State>;

/// Defines one function, and charges the guest fuel for each call.
pub(super) fn provide<P, R>(
    to: &mut Definitions<'_>,
    name: &str,
    body: impl Fn(&mut Context<'_>, P) -> wasmtime::Result<R> + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentNamedList + Lower + 'static,
{
    to.func_wrap(name, move |mut context: Context<'_>, arguments: P| {
        charge(&mut context, FUEL_PER_CALL)?;
        body(&mut context, arguments)
    })
}
