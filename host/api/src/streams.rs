//! The streams of a connection, each a task, and the time that their answers have.
//!
//! hyper waits for as long as its peer gives a stream no window, with a piece of the answer in hand. So the tasks that it
//! asks this executor to run end when [`answered`] has set a time and it has passed. HTTP/2 then resets the stream, and
//! everything that it held is free.

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
    /// The end that the stream polled on this thread has set, if it has set or lifted one.
    static ENDS: Cell<Option<Option<Instant>>> = const { Cell::new(None) };
}

/// Ends the stream in which this is called at that time, unless its answer has been sent.
pub(super) fn answered(ends: Instant) {
    ENDS.set(Some(Some(ends)));
}

/// Lifts the time that [`answered`] has set for the stream in which this is called: it has nothing to send.
pub(super) fn waits() {
    ENDS.set(Some(None));
}

/// Runs streams.
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
            tracing::debug!("a stream ends whose answer was not read in time");
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
        let (answer, asked) = oneshot::channel::<()>();
        Streams.execute(async move {
            asked.await.unwrap();
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
        let (answer, asked) = oneshot::channel::<()>();
        Streams.execute(async move {
            answered(Instant::now() + Duration::from_millis(20));
            tokio::task::yield_now().await;
            waits();
            asked.await.unwrap();
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
