//! The streams of a connection, each run as a task, and the time limits of their responses.
//!
//! While a peer gives a stream no window, hyper waits without a limit and holds a piece of the
//! response. So the tasks that hyper spawns on this executor end when the time set by [`answered`]
//! has passed. HTTP/2 then resets the stream and frees all of its memory.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    /// The end time set by the stream that is polled on this thread. The inner `None` removes
    /// the time limit.
    static ENDS: Cell<Option<Option<Instant>>> = const { Cell::new(None) };
}

/// Ends the calling stream at this time, unless its response has been sent.
pub(super) fn answered(ends: Instant) {
    ENDS.set(Some(Some(ends)));
}

/// Removes the time limit that [`answered`] has set for the calling stream, which has nothing to send.
pub(super) fn waits() {
    ENDS.set(Some(None));
}

/// The executor that runs streams.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        TokioExecutor::new().execute(Stream { stream, ends: None, timer: None });
    }
}

pin_project! {
    struct Stream<F> {
        #[pin]
        stream: F,
        ends: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        ENDS.set(None);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(ends) = ENDS.take() {
            *this.ends = ends;
            if let (Some(ends), Some(timer)) = (ends, &mut *this.timer) {
                timer.as_mut().reset(ends);
            }
        }
        let Some(ends) = *this.ends else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(ends)));
        if timer.as_mut().poll(cx).is_ready() {
            tracing::debug!("ending a stream whose response was not read in time");
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::{future::pending, time::Duration};

    use tokio::{sync::oneshot, time::timeout};

    use super::*;

    #[tokio::test]
    async fn a_stream_ends_at_the_time_of_its_answer_and_not_before_there_is_one() {
        let (held, mut dropped) = oneshot::channel::<()>();
        let (answer, requested) = oneshot::channel::<()>();
        Streams.execute(async move {
            requested.await.unwrap();
            answered(Instant::now() + Duration::from_millis(20));
            pending::<()>().await;
            drop(held);
        });
        let waits = timeout(Duration::from_millis(60), &mut dropped);
        assert!(waits.await.is_err(), "it has no answer yet");
        answer.send(()).unwrap();
        assert!(timeout(Duration::from_secs(20), dropped).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_stream_that_waits_does_not_end_and_another_answer_has_a_time_of_its_own() {
        let (held, mut dropped) = oneshot::channel::<()>();
        let (answer, requested) = oneshot::channel::<()>();
        Streams.execute(async move {
            answered(Instant::now() + Duration::from_millis(20));
            tokio::task::yield_now().await;
            waits();
            requested.await.unwrap();
            answered(Instant::now() + Duration::from_millis(20));
            pending::<()>().await;
            drop(held);
        });
        let waits = timeout(Duration::from_millis(100), &mut dropped);
        assert!(waits.await.is_err(), "it has nothing to send");
        answer.send(()).unwrap();
        assert!(timeout(Duration::from_secs(20), dropped).await.unwrap().is_err());
    }
}
