//! Shows a run as one page for a browser: the operations with their times and answers, the faults,
//! and the point at which no order of the operations can be continued.
//!
//! The page is a single file without external resources. It shows the operations of the groups of
//! keys with a violation, or all operations if there is none.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use crate::{
    chaos::Run,
    history::{Kind, Operation, Outcome},
    linearizability::Violation,
};

/// Maximum number of operations on a page. Browsers become slow with more.
const OPERATIONS_MAX: usize = 4000;
/// Pixels per second of the run.
const SCALE: f64 = 240.0;
const ROW: f64 = 18.0;
const LEFT: f64 = 130.0;

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8886; --text: CanvasText; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
pre { background: #8882; padding: .7rem; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
svg { display: block; font: 11px system-ui, sans-serif; }
svg text { fill: var(--text); }
.write { fill: #3b7ddd; } .read { fill: #2a9d62; } .lease { fill: #8a63d2; } .stale { fill: #999; }
.unknown { fill: none; stroke: #e08a00; stroke-width: 1.5; stroke-dasharray: 3 2; } .failed { fill: #8885; }
.stuck { stroke: #d01818; stroke-width: 3; fill: #f06060; }
.fault { fill: #d0181822; } .grid { stroke: var(--line); }
.key span { display: inline-block; width: .9em; height: .9em; margin: 0 .3em 0 1em; vertical-align: -.1em; border-radius: 2px; }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
";

/// Renders the page of a run.
pub fn page(run: &Run) -> String {
    let mut page = String::new();
    let title = format!("Chaos run with seed {}", run.seed);
    let _ = write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1><p>{}</p>",
        escaped(&run.figures.to_string())
    );
    let verdict = match run.violations.is_empty() {
        true => "Everything holds.".to_owned(),
        false => run.violations.to_string(),
    };
    let _ = write!(page, "<h2>Verdict</h2><pre>{}</pre>", escaped(&verdict));
    let _ = write!(page, "<h2>Schedule</h2><pre>{}</pre>", escaped(&run.schedule.to_string()));
    for violation in &run.linearizability.violations {
        let _ = write!(page, "<h2>Keys {}</h2>", escaped(&violation.keys.join(", ")));
        legend(&mut page);
        drawing(&mut page, run, &violation.operations.iter().collect::<Vec<_>>(), Some(violation));
        table(&mut page, violation);
    }
    if run.linearizability.violations.is_empty() {
        let count = run.history.len();
        let shown = run.history.iter().take(OPERATIONS_MAX).collect::<Vec<_>>();
        let _ = write!(page, "<h2>Operations ({} of {count})</h2>", shown.len());
        legend(&mut page);
        drawing(&mut page, run, &shown, None);
    }
    for (id, log) in &run.logs {
        let _ = write!(page, "<h2>The end of the log of node {id}</h2><pre>{}</pre>", escaped(log));
    }
    page.push_str("</html>\n");
    page
}

fn legend(page: &mut String) {
    page.push_str("<p class=key>");
    for (color, text) in [
        ("#3b7ddd", "write"),
        ("#2a9d62", "read"),
        ("#8a63d2", "lease read"),
        ("#999", "stale read"),
        ("#e08a00", "outcome unknown (outline)"),
        ("#8885", "failed"),
        ("#f06060", "does not fit"),
        ("#d0181822", "fault"),
    ] {
        let _ = write!(page, "<span style=\"background:{color}\"></span>{text}");
    }
    page.push_str(" — point at an operation to read it.</p>");
}

fn drawing(page: &mut String, run: &Run, operations: &[&Operation], violation: Option<&Violation>) {
    let Some(first) = operations.iter().map(|operation| operation.begun).min() else { return };
    let last = operations.iter().map(|operation| operation.ended).max().unwrap_or(first);
    let begin = first.saturating_sub(Duration::from_millis(200));
    let x = |time: Duration| LEFT + time.saturating_sub(begin).as_secs_f64() * SCALE;
    let mut rows: BTreeMap<u32, usize> =
        operations.iter().map(|operation| (operation.client, 0)).collect();
    let faults: Vec<_> =
        run.faults.iter().filter(|fault| fault.ended >= begin && fault.begun <= last).collect();
    let top = ROW * (faults.len() as f64 + 2.0);
    for (row, number) in rows.values_mut().enumerate() {
        *number = row;
    }
    let (width, height) = (x(last) + 60.0, top + ROW * (rows.len() as f64 + 1.0));
    let _ = write!(
        page,
        "<div class=scroll><svg width=\"{width:.0}\" height=\"{height:.0}\" role=img>"
    );
    let seconds = begin.as_secs()..=last.as_secs() + 1;
    for second in seconds.filter(|second| Duration::from_secs(*second) >= begin) {
        let at = x(Duration::from_secs(second));
        let _ = write!(
            page,
            "<line class=grid x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"0\" y2=\"{height:.0}\"/>\
             <text x=\"{:.1}\" y=\"12\">{second} s</text>",
            at + 3.0
        );
    }
    for (row, fault) in faults.iter().enumerate() {
        let (left, right) = (x(fault.begun), x(fault.ended.min(last)));
        let y = ROW * (row as f64 + 1.0);
        let _ = write!(
            page,
            "<rect class=fault x=\"{left:.1}\" width=\"{:.1}\" y=\"{y:.1}\" height=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            (right - left).max(1.0),
            height - y,
            left + 3.0,
            y + 13.0,
            escaped(&fault.text)
        );
    }
    for (client, row) in &rows {
        let y = top + ROW * (*row as f64 + 0.7);
        let name =
            if *client == u32::MAX { "faults".to_owned() } else { format!("client {client}") };
        let _ = write!(page, "<text x=\"4\" y=\"{y:.1}\">{name}</text>");
    }
    for (at, operation) in operations.iter().enumerate() {
        let stuck = violation.is_some_and(|violation| violation.stuck.next.contains(&at));
        let y = top + ROW * rows.get(&operation.client).copied().unwrap_or(0) as f64;
        bar(page, operation, stuck, (x(operation.begun), x(operation.ended)), y);
    }
    page.push_str("</svg></div>");
}

fn bar(page: &mut String, operation: &Operation, stuck: bool, (left, right): (f64, f64), y: f64) {
    let class = match (&operation.outcome, operation.kind) {
        (Outcome::Unknown(_), _) => "unknown",
        (Outcome::Failed(_), _) => "failed",
        (_, Kind::Write) => "write",
        (_, Kind::Read) => "read",
        (_, Kind::LeaseRead) => "lease",
        (_, Kind::StaleRead) => "stale",
    };
    let class = if stuck { format!("{class} stuck") } else { class.to_owned() };
    let _ = write!(
        page,
        "<rect class=\"{class}\" x=\"{left:.1}\" width=\"{:.1}\" y=\"{:.1}\" height=\"{:.1}\" rx=\"2\">\
         <title>{}</title></rect>",
        (right - left).max(1.5),
        y + 2.0,
        ROW - 4.0,
        escaped(&operation.to_string())
    );
}

/// The longest order found, and the operations that do not fit after it.
fn table(page: &mut String, violation: &Violation) {
    let stuck = &violation.stuck;
    let _ = write!(
        page,
        "<p>{} of {} operations have an order. Then the state is <b>{}</b>, and none of these fits:</p><pre>",
        stuck.order.len(),
        violation.operations.len(),
        escaped(&stuck.state)
    );
    for at in &stuck.next {
        let _ = writeln!(page, "{}", escaped(&violation.operations[*at].to_string()));
    }
    page.push_str("</pre><details><summary>The order</summary><pre>");
    for at in &stuck.order {
        let _ = writeln!(page, "{}", escaped(&violation.operations[*at].to_string()));
    }
    page.push_str("</pre></details>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
