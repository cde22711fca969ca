//! Captures the log lines that the state machines of this process write to the node's log.

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
};

use conclave_testing::wat::Wat;

static LINES: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();

struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns all lines since the first call, of the state machines of all tests.
pub(crate) fn printed() -> String {
    let lines = LINES.get_or_init(|| {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&lines);
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Lines(Arc::clone(&writer)))
            .with_env_filter("machine=info")
            .init();
        lines
    });
    String::from_utf8_lossy(&lines.lock().unwrap()).into_owned()
}

/// Adds `$say` to a component, a function that logs these words, so that a test can wait for them.
pub(crate) fn saying(words: &str, wat: Wat) -> Wat {
    // Starts the capture, if it has not been started.
    printed();
    assert!(wat.imports.is_empty() && words.len() < 200);
    Wat {
        imports: r#"(import "conclave:fsm/log@0.1.0" "write" (func $log (param i32 i32 i32)))"#,
        more: format!(
            "{} (data (i32.const 5000) \"{words}\")
             (func $say (call $log (i32.const 2) (i32.const 5000) (i32.const {})))",
            wat.more,
            words.len()
        ),
        ..wat
    }
}
