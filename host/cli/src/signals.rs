//! Signals that end `conclave serve`.

use std::{io, process, thread};

use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Returns a future that completes at SIGTERM or Ctrl-C. A second signal ends the process
/// immediately, with the exit code that a shell reports for a process ended by that signal.
///
/// A separate thread waits, so that the second signal works even while the node's own threads hang.
pub(super) fn requested() -> io::Result<impl Future<Output = ()>> {
    let (stop, stopped) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let (terminate, interrupt) = {
        let _entered = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let mut signals = (terminate, interrupt);
            next(&mut signals).await;
            // The receiver is gone if the node has ended by itself.
            let _ = stop.send(());
            process::exit(128 + next(&mut signals).await.as_raw_value());
        });
    })?;
    Ok(async {
        // An error means that the thread has ended, which is a reason to stop.
        let _ = stopped.await;
    })
}

async fn next((terminate, interrupt): &mut (Signal, Signal)) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}
